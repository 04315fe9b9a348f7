//! iSCSI names (RFC 7143, 4.2.7; RFC 3722): what may be one, and the form in which two are compared.
//!
//! Knows characters and lengths. Does not know who carries a name, nor whether a name is known.

use crate::limits::ISCSI_NAME_BYTES_MAX;

/// Why a text is no iSCSI name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("an iSCSI name is empty")]
    Empty,
    #[error("an iSCSI name is longer than {ISCSI_NAME_BYTES_MAX} bytes")]
    TooLong,
    #[error(
        "an iSCSI name holds an ASCII character that is no letter, no digit and none of '-', '.', ':', '_'"
    )]
    BadCharacter,
}

/// The form that is kept and compared: case is folded (RFC 3722, 3). Letters beyond ASCII pass; an underscore
/// does too, because firmware uses it. Everything that is configured must go through here as well.
pub fn normalize(name: &str) -> Result<String, NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > ISCSI_NAME_BYTES_MAX {
        return Err(NameError::TooLong);
    }
    let legal = |char: char| match char {
        '-' | '.' | ':' | '_' => true,
        _ if char.is_ascii() => char.is_ascii_alphanumeric(),
        _ => !char.is_whitespace() && !char.is_control(),
    };
    if !name.chars().all(legal) {
        return Err(NameError::BadCharacter);
    }
    let folded = name.to_lowercase();
    if folded.len() > ISCSI_NAME_BYTES_MAX { Err(NameError::TooLong) } else { Ok(folded) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_is_folded() {
        assert_eq!(
            normalize("iqn.2010-04.org.iPXE:Lab_PC-1").as_deref(),
            Ok("iqn.2010-04.org.ipxe:lab_pc-1")
        );
        assert_eq!(normalize("eui.02004567A425678D").as_deref(), Ok("eui.02004567a425678d"));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        assert_eq!(normalize(""), Err(NameError::Empty));
        assert_eq!(normalize(&"a".repeat(224)), Err(NameError::TooLong));
        assert!(normalize(&"a".repeat(223)).is_ok());
        for bad in ["iqn 1", "a/b", "a,b", "a\nb", "a\u{a0}b", "../x"] {
            assert_eq!(normalize(bad), Err(NameError::BadCharacter), "{bad}");
        }
    }

    #[test]
    fn folding_may_not_make_a_name_too_long() {
        // One character of two bytes becomes three.
        assert_eq!(normalize(&"\u{130}".repeat(111)), Err(NameError::TooLong));
    }
}
