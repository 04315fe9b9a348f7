//! iSCSI names as an administrator writes them (RFC 7143, 4.2.7; RFC 3722).
//!
//! Knows the iqn, eui and naa forms. Does not know who bears a name.

use crate::limits::ISCSI_NAME_BYTES_MAX;

/// Why a text is no iSCSI name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("it must begin with iqn., eui. or naa.")]
    Type,
    #[error("it is longer than {ISCSI_NAME_BYTES_MAX} bytes")]
    TooLong,
    #[error("it may hold only letters, digits, '-', '.' and ':'")]
    Character,
    #[error(
        "iqn. must be followed by a year and month and a reversed domain name, such as iqn.2026-11.io.goldrush:node-001"
    )]
    Iqn,
    #[error("eui. must be followed by 16 hexadecimal digits")]
    Eui,
    #[error("naa. must be followed by 16 or 32 hexadecimal digits")]
    Naa,
}

/// A target's name in its canonical form: letters are lower case (RFC 3722, 4).
pub fn target_name(text: &str) -> Result<String, NameError> {
    parse(text, b"-.:")
}

/// An initiator's name in its canonical form. Underscores are let through: RFC 3722 has none, host names in
/// Windows' default initiator names do.
pub fn initiator_name(text: &str) -> Result<String, NameError> {
    parse(text, b"-.:_")
}

fn parse(text: &str, punctuation: &[u8]) -> Result<String, NameError> {
    if text.len() > ISCSI_NAME_BYTES_MAX {
        return Err(NameError::TooLong);
    }
    let name = text.to_ascii_lowercase();
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || punctuation.contains(&byte);
    if !name.bytes().all(legal) {
        return Err(NameError::Character);
    }
    let hex = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    match name.split_once('.') {
        Some(("iqn", rest)) if is_iqn(rest) => Ok(name),
        Some(("iqn", _)) => Err(NameError::Iqn),
        Some(("eui", digits)) if digits.len() == 16 && hex(digits) => Ok(name),
        Some(("eui", _)) => Err(NameError::Eui),
        Some(("naa", digits)) if matches!(digits.len(), 16 | 32) && hex(digits) => Ok(name),
        Some(("naa", _)) => Err(NameError::Naa),
        _ => Err(NameError::Type),
    }
}

/// `yyyy-mm.domain` with an optional `:anything`.
fn is_iqn(rest: &str) -> bool {
    let Some((date, after)) = rest.split_once('.') else { return false };
    let Some((year, month)) = date.split_once('-') else { return false };
    let digits = |text: &str, len| text.len() == len && text.bytes().all(|byte| byte.is_ascii_digit());
    let domain = after.split_once(':').map_or(after, |(domain, _)| domain);
    digits(year, 4)
        && digits(month, 2)
        && matches!(month.parse::<u8>(), Ok(1..=12))
        && domain.split('.').all(|label| !label.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_all_three_forms_are_taken_in_lower_case() {
        for name in ["iqn.2026-11.io.goldrush:node-001", "iqn.2001-04.com.example", "eui.02004567a425678d"] {
            assert_eq!(target_name(name).as_deref(), Ok(name));
        }
        assert_eq!(target_name("IQN.2026-11.io.Goldrush:A").as_deref(), Ok("iqn.2026-11.io.goldrush:a"));
        assert!(target_name("naa.52004567ba64678d").is_ok());
        assert!(target_name("naa.62004567ba64678d0123456789abcdef").is_ok());
    }

    #[test]
    fn each_broken_name_has_its_reason() {
        for (name, reason) in [
            ("", NameError::Type),
            ("node-001", NameError::Type),
            ("disk.2026-11.io", NameError::Type),
            ("iqn.2026-13.io.goldrush", NameError::Iqn),
            ("iqn.26-11.io.goldrush", NameError::Iqn),
            ("iqn.2026-11", NameError::Iqn),
            ("iqn.2026-11.:x", NameError::Iqn),
            ("iqn.2026-11.io.goldrush:a b", NameError::Character),
            ("iqn.2026-11.io.goldrush:a,b", NameError::Character),
            ("iqn.2026-11.io.goldrush:a_b", NameError::Character),
            ("eui.0200", NameError::Eui),
            ("naa.xyz", NameError::Naa),
        ] {
            assert_eq!(target_name(name), Err(reason), "{name}");
        }
        assert!(initiator_name("iqn.1991-05.com.microsoft:my_pc").is_ok());
        assert_eq!(target_name(&format!("iqn.2026-11.io:{}", "a".repeat(300))), Err(NameError::TooLong));
    }
}
