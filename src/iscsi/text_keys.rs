//! Key=value text (RFC 7143, 6.1): pairs separated by NUL, continued over PDUs.
//!
//! Knows the syntax of pairs, constants and lists, and how much of it is too much. Does not know any key.

use core::ops::Range;

use crate::limits::{TEXT_BYTES_MAX, TEXT_KEY_BYTES_MAX, TEXT_KEYS_MAX};

/// Why text is refused. All but the first two are protocol errors of the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    #[error("the text of the negotiation is longer than {TEXT_BYTES_MAX} bytes")]
    TooLong,
    #[error("the text of the negotiation holds more than {TEXT_KEYS_MAX} keys")]
    TooManyKeys,
    #[error("a pair of the text has no '='")]
    NoEquals,
    #[error(
        "the name of a key is empty, longer than {TEXT_KEY_BYTES_MAX} bytes, or has an illegal character"
    )]
    BadKey,
    #[error("a value of the text is not UTF-8, or holds a control character")]
    BadValue,
}

/// Collects the data segments of one text until the PDU without the C bit; a pair may lie in several of them.
#[derive(Debug, Default)]
pub struct TextCollector {
    bytes: Vec<u8>,
}

impl TextCollector {
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Adds one data segment. Holds at most `TEXT_BYTES_MAX` bytes.
    pub fn push(&mut self, segment: &[u8]) -> Result<(), TextError> {
        if segment.len() > TEXT_BYTES_MAX - self.bytes.len() {
            return Err(TextError::TooLong);
        }
        self.bytes.extend_from_slice(segment);
        Ok(())
    }

    /// Ends the text and divides it; the collector is empty after.
    pub fn finish(&mut self) -> Result<TextKeys, TextError> {
        TextKeys::parse(core::mem::take(&mut self.bytes))
    }
}

/// The pairs of one complete text, in their order.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct TextKeys {
    text: String,
    pairs: Vec<(Range<usize>, Range<usize>)>,
}

impl TextKeys {
    /// Divides a complete text. A missing NUL after the last pair and empty pairs (a sender that counts its
    /// padding as data) are tolerated.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, TextError> {
        if bytes.len() > TEXT_BYTES_MAX {
            return Err(TextError::TooLong);
        }
        let text = String::from_utf8(bytes).map_err(|_| TextError::BadValue)?;
        let mut pairs = Vec::new();
        let mut start = 0;
        for pair in text.split('\0') {
            let end = start + pair.len();
            if !pair.is_empty() {
                if pairs.len() == TEXT_KEYS_MAX {
                    return Err(TextError::TooManyKeys);
                }
                let equals = pair.find('=').ok_or(TextError::NoEquals)?;
                if !is_key(&pair[..equals]) {
                    return Err(TextError::BadKey);
                }
                if pair[equals + 1..].chars().any(char::is_control) {
                    return Err(TextError::BadValue);
                }
                pairs.push((start..start + equals, start + equals + 1..end));
            }
            start = end + 1;
        }
        Ok(Self { text, pairs })
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(key, value)| (&self.text[key.clone()], &self.text[value.clone()]))
    }

    /// The first value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }
}

/// A standard label (6.1) or one of the `X-`, `X#` names: letters, digits, and `. - + @ _ #`.
fn is_key(key: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b".-+@_#".contains(&byte);
    !key.is_empty() && key.len() <= TEXT_KEY_BYTES_MAX && key.bytes().all(legal)
}

/// Appends pairs to a text that is to be sent.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct TextWriter {
    bytes: Vec<u8>,
}

impl TextWriter {
    pub fn push(&mut self, key: &str, value: &str) {
        write_pair(&mut self.bytes, key, value);
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Takes at most `max` bytes from the front: the data segment of one PDU.
    pub fn take_front(&mut self, max: usize) -> Vec<u8> {
        if self.bytes.len() <= max {
            return core::mem::take(&mut self.bytes);
        }
        let rest = self.bytes.split_off(max);
        core::mem::replace(&mut self.bytes, rest)
    }
}

/// Appends `key=value` and its NUL.
pub fn write_pair(out: &mut Vec<u8>, key: &str, value: &str) {
    out.extend_from_slice(key.as_bytes());
    out.push(b'=');
    out.extend_from_slice(value.as_bytes());
    out.push(0);
}

/// A numerical value: decimal or hexadecimal constant (6.1), below 2^64.
pub fn parse_number(value: &str) -> Option<u64> {
    let (digits, radix) = match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None => (value, 10),
    };
    // `from_str_radix` would take a sign.
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()
}

/// The items of a list of values (6.1).
pub fn list_items(value: &str) -> impl Iterator<Item = &str> {
    value.split(',')
}

/// A binary value of at most `max` bytes: hexadecimal (`0x`) or base64 (`0b`) constant (6.1).
pub fn parse_binary(value: &str, max: usize) -> Option<Vec<u8>> {
    let (prefix, digits) = value.split_at_checked(2)?;
    match prefix {
        "0x" | "0X" => parse_hex(digits.as_bytes(), max),
        "0b" | "0B" => parse_base64(digits.as_bytes(), max),
        _ => None,
    }
}

fn parse_hex(digits: &[u8], max: usize) -> Option<Vec<u8>> {
    if digits.is_empty() || !digits.len().is_multiple_of(2) || digits.len() / 2 > max {
        return None;
    }
    let nibble = |digit: u8| (digit as char).to_digit(16);
    digits.chunks_exact(2).map(|pair| Some((nibble(pair[0])? << 4 | nibble(pair[1])?) as u8)).collect()
}

/// RFC 4648, 4; padding may be left out, bits beyond the last byte must be zero.
fn parse_base64(digits: &[u8], max: usize) -> Option<Vec<u8>> {
    let padded = digits.len();
    let end = digits.iter().position(|&digit| digit == b'=').unwrap_or(padded);
    let (digits, padding) = digits.split_at(end);
    let padding_fits = padding.is_empty() || (padded.is_multiple_of(4) && padding.len() <= 2);
    if digits.is_empty() || !padding_fits || !padding.iter().all(|&pad| pad == b'=') {
        return None;
    }
    if digits.len() % 4 == 1 || digits.len() * 3 / 4 > max {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    for group in digits.chunks(4) {
        let mut bits = 0u32;
        for &digit in group {
            bits = bits << 6 | base64_digit(digit)?;
        }
        bits <<= 6 * (4 - group.len());
        let [_, decoded @ ..] = bits.to_be_bytes();
        let (whole, rest) = decoded.split_at(group.len() * 3 / 4);
        if rest.iter().any(|&byte| byte != 0) {
            return None;
        }
        bytes.extend_from_slice(whole);
    }
    Some(bytes)
}

fn base64_digit(digit: u8) -> Option<u32> {
    let value = match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(u32::from(value))
}

/// A binary value as a hexadecimal constant, the form every initiator reads.
pub fn format_binary(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(2 + 2 * bytes.len());
    text.push_str("0x");
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)] as char);
        text.push(DIGITS[usize::from(byte & 15)] as char);
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pairs(text: &[u8]) -> Result<Vec<(String, String)>, TextError> {
        let keys = TextKeys::parse(text.to_vec())?;
        Ok(keys.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
    }

    #[test]
    fn pairs_keep_their_order_and_may_be_empty_or_hold_equals() {
        let keys = TextKeys::parse(b"A=1\0SendTargets=\0B=x=y\0A=2\0".to_vec()).unwrap();
        let all: Vec<_> = keys.iter().collect();
        assert_eq!(all, [("A", "1"), ("SendTargets", ""), ("B", "x=y"), ("A", "2")]);
        assert_eq!((keys.get("A"), keys.get("C")), (Some("1"), None));
    }

    #[test]
    fn counted_padding_and_a_missing_last_nul_are_tolerated() {
        assert_eq!(pairs(b"A=1\0\0\0B=2").unwrap().len(), 2);
        assert_eq!(pairs(b"\0\0").unwrap().len(), 0);
        assert_eq!(pairs(b"").unwrap().len(), 0);
    }

    #[test]
    fn malformed_text_is_refused() {
        assert_eq!(pairs(b"A\0"), Err(TextError::NoEquals));
        assert_eq!(pairs(b"=1\0"), Err(TextError::BadKey));
        assert_eq!(pairs(b"A B=1\0"), Err(TextError::BadKey));
        assert_eq!(pairs(b"A=\x07\0"), Err(TextError::BadValue));
        assert_eq!(pairs(b"A=\xFF\0"), Err(TextError::BadValue));
        let long = format!("{}=1\0", "K".repeat(TEXT_KEY_BYTES_MAX + 1));
        assert_eq!(pairs(long.as_bytes()), Err(TextError::BadKey));
    }

    #[test]
    fn keys_and_bytes_are_bounded() {
        let full = "A=1\0".repeat(TEXT_KEYS_MAX);
        assert_eq!(pairs(full.as_bytes()).unwrap().len(), TEXT_KEYS_MAX);
        assert_eq!(pairs(format!("{full}B=1").as_bytes()), Err(TextError::TooManyKeys));
        let mut collector = TextCollector::default();
        collector.push(&[0; TEXT_BYTES_MAX]).unwrap();
        assert_eq!(collector.push(b"x"), Err(TextError::TooLong));
    }

    #[test]
    fn numbers_are_decimal_or_hexadecimal_without_sign() {
        assert_eq!(parse_number("262144"), Some(262_144));
        assert_eq!(parse_number("0x40000"), Some(262_144));
        assert_eq!(parse_number("0XfF"), Some(255));
        assert_eq!(parse_number("18446744073709551615"), Some(u64::MAX));
        for bad in ["", "-1", "+1", "0x", "1 ", "1k", "18446744073709551616", "Irrelevant"] {
            assert_eq!(parse_number(bad), None, "{bad}");
        }
    }

    #[test]
    fn binary_values_are_hexadecimal_or_base64() {
        assert_eq!(parse_binary("0x00fF10", 8), Some(vec![0, 255, 16]));
        // RFC 4648, 10.
        assert_eq!(parse_binary("0bZm9vYmFy", 8), Some(b"foobar".to_vec()));
        assert_eq!(parse_binary("0BZm9vYg==", 8), Some(b"foob".to_vec()));
        assert_eq!(parse_binary("0bZm9vYmE=", 8), Some(b"fooba".to_vec()));
        assert_eq!(parse_binary("0bZm9vYmE", 8), Some(b"fooba".to_vec()));
        for bad in
            ["", "0", "12", "0x", "0x123", "0xgg", "0b", "0bZ", "0bZm9v=", "0bZg=x", "0bZh==", "0b====", "é0"]
        {
            assert_eq!(parse_binary(bad, 8), None, "{bad}");
        }
    }

    #[test]
    fn a_binary_value_beyond_its_bound_is_refused() {
        assert!(parse_binary("0x0011", 2).is_some() && parse_binary("0x001122", 2).is_none());
        assert!(parse_binary("0bZm8=", 2).is_some() && parse_binary("0bZm9v", 2).is_none());
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_over_any_segments(
            pairs in prop::collection::vec(("[A-Z][A-Za-z0-9.+@_-]{0,62}", "[ -~\u{e9}]{0,40}"), 0..20),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut writer = TextWriter::default();
            for (key, value) in &pairs {
                writer.push(key, value);
            }
            let text = writer.into_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let mut collector = TextCollector::default();
            for cut in cuts.windows(2) {
                collector.push(&text[cut[0]..cut[1]]).unwrap();
            }
            let keys = collector.finish().unwrap();
            prop_assert!(collector.is_empty());
            let read: Vec<_> = keys.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
            prop_assert_eq!(read, pairs);
        }

        #[test]
        fn binary_values_read_back(bytes in prop::collection::vec(any::<u8>(), 1..80)) {
            prop_assert_eq!(parse_binary(&format_binary(&bytes), 80), Some(bytes));
        }

        #[test]
        fn a_text_is_taken_in_pieces_of_the_given_size(length in 0usize..100, max in 1usize..40) {
            let bytes: Vec<u8> = (0..length as u8).collect();
            let mut writer = TextWriter { bytes: bytes.clone() };
            let mut taken = Vec::new();
            while !writer.is_empty() {
                let piece = writer.take_front(max);
                prop_assert!(piece.len() == max || writer.is_empty());
                taken.extend_from_slice(&piece);
            }
            prop_assert_eq!(taken, bytes);
        }
    }
}
