//! Login and text keys (RFC 7143, section 6): `key=value` strings, each ended by a zero byte.
//!
//! Knows the text form and the choice of the smaller number. Does not know which keys a session needs.

use crate::fail::{Result, failure};

/// Keys in the order in which they arrived.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Keys(Vec<(String, String)>);

impl Keys {
    pub(crate) fn push(&mut self, key: &str, value: impl ToString) {
        self.0.push((key.to_string(), value.to_string()));
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (key, value) in &self.0 {
            bytes.extend_from_slice(key.as_bytes());
            bytes.push(b'=');
            bytes.extend_from_slice(value.as_bytes());
            bytes.push(0);
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Keys> {
        let mut keys = Keys::default();
        for pair in bytes.split(|&b| b == 0).filter(|pair| !pair.is_empty()) {
            let text = std::str::from_utf8(pair)
                .map_err(|_| failure!("a login or text key is not UTF-8: look at what the peer sends"))?;
            let (key, value) = text.split_once('=').ok_or_else(|| {
                failure!("the text {text:?} is no key=value pair: look at what the peer sends")
            })?;
            keys.push(key, value);
        }
        Ok(keys)
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<u32>> {
        let parse = |value: &str| {
            let number = match value.strip_prefix("0x").or(value.strip_prefix("0X")) {
                Some(hex) => u32::from_str_radix(hex, 16),
                None => value.parse(),
            };
            number.map_err(|_| failure!("{key}={value} is no number: look at what the peer sends"))
        };
        self.get(key).map(parse).transpose()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

/// The bytes behind a `0x` value of a CHAP key, or behind a `0b` one (base64).
pub(crate) fn binary(value: &str) -> Result<Vec<u8>> {
    let bad = || failure!("{value:?} is no binary value of the form 0x or 0b: look at what the peer sends");
    let (form, digits) = value.split_at_checked(2).ok_or_else(bad)?;
    match form {
        "0x" | "0X" => {
            let nibble = |c: u8| (c as char).to_digit(16).map(|d| d as u8).ok_or_else(bad);
            let mut nibbles = digits.bytes().map(nibble).collect::<Result<Vec<u8>>>()?;
            if nibbles.len() % 2 == 1 {
                nibbles.insert(0, 0);
            }
            Ok(nibbles.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
        }
        "0b" | "0B" => {
            let mut out = Vec::new();
            let (mut bits, mut have) = (0u32, 0);
            for c in digits.bytes().filter(|&c| c != b'=') {
                let value = match c {
                    b'A'..=b'Z' => c - b'A',
                    b'a'..=b'z' => c - b'a' + 26,
                    b'0'..=b'9' => c - b'0' + 52,
                    b'+' => 62,
                    b'/' => 63,
                    _ => return Err(bad()),
                };
                bits = bits << 6 | u32::from(value);
                have += 6;
                if have >= 8 {
                    have -= 8;
                    out.push((bits >> have) as u8);
                }
            }
            Ok(out)
        }
        _ => Err(bad()),
    }
}

/// A binary value in the `0x` form.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::from("0x"), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_their_text_form() {
        let mut keys = Keys::default();
        keys.push("AuthMethod", "CHAP,None");
        keys.push("MaxBurstLength", 262144);
        let bytes = keys.encode();
        assert_eq!(&bytes[..21], b"AuthMethod=CHAP,None\0");
        let back = Keys::decode(&bytes).unwrap();
        assert_eq!(back, keys);
        assert_eq!(back.number("MaxBurstLength"), Ok(Some(262144)));
        assert_eq!(back.number("FirstBurstLength"), Ok(None));
        assert!(back.number("AuthMethod").is_err());
        assert!(Keys::decode(b"novalue\0").is_err());
    }

    #[test]
    fn binary_values_are_hex_or_base64() {
        assert_eq!(binary("0x0aFf"), Ok(vec![0x0a, 0xff]));
        assert_eq!(binary("0xabc"), Ok(vec![0x0a, 0xbc]));
        assert_eq!(binary("0bTWFu"), Ok(b"Man".to_vec()));
        assert_eq!(binary("0bTWE="), Ok(b"Ma".to_vec()));
        assert!(binary("12").is_err());
        assert_eq!(hex(&[1, 0xfe]), "0x01fe");
    }
}
