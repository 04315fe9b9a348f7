//! Sizes as people write them: `40G`, `512K`, `1048576`.
//!
//! Knows the suffixes K, M, G and T (powers of 1024, `KiB` and so on alike). Does not know what is being sized.

use std::fmt;

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not a size: write digits and K, M, G or T (powers of 1024), such as 40G")]
pub struct SizeError {
    text: String,
}

/// A number of bytes written by a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl std::str::FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let wrong = || SizeError { text: text.to_owned() };
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, suffix) = text.split_at(end);
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        let shift = match suffix {
            "" | "B" => 0,
            "K" | "k" | "KiB" => 10,
            "M" | "m" | "MiB" => 20,
            "G" | "g" | "GiB" => 30,
            "T" | "t" | "TiB" => 40,
            _ => return Err(wrong()),
        };
        number.checked_mul(1 << shift).map(Size).ok_or_else(wrong)
    }
}

impl fmt::Display for Size {
    /// The largest unit that leaves no remainder, so that the text parses back to the same number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, suffix) in [(40, "T"), (30, "G"), (20, "M"), (10, "K")] {
            if self.0 != 0 && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{suffix}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// Bytes for a reader: `1.50 GiB`, `12 KiB`, `512 B`.
pub fn human(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        let whole: u64 = 1 << shift;
        if bytes >= whole {
            return if bytes.is_multiple_of(whole) {
                format!("{} {unit}", bytes / whole)
            } else {
                format!("{:.2} {unit}", bytes as f64 / whole as f64)
            };
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_powers_of_1024() {
        for (text, bytes) in [("0", 0), ("512", 512), ("2M", 2 << 20), ("40G", 40 << 30), ("1TiB", 1 << 40)] {
            assert_eq!(text.parse::<Size>(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_refused() {
        for text in ["", "G", "-1", "1.5G", "1X", "1 G", "99999999999999999999", "99999999T"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_size_prints_as_it_parses() {
        for bytes in [0, 1, 512, 1024, 3 << 20, 40 << 30, (1 << 30) + 512] {
            assert_eq!(Size(bytes).to_string().parse::<Size>(), Ok(Size(bytes)));
        }
        assert_eq!(human(1536 << 20), "1.50 GiB");
        assert_eq!(human(40 << 30), "40 GiB");
    }
}
