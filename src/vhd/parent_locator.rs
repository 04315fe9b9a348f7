//! Parent locators: where a differencing disk says its parent is.
//!
//! Knows the platform codes and their encodings. Does not know the file system: a path from here is a claim of an
//! untrusted file, and the caller decides whether, and below which folder, it is followed.

use super::dynamic_header::LocatorEntry;
pub use crate::parent_path::{ParentCandidate, ParentOrigin, PathShape};

/// Entries in a dynamic disk header.
pub const LOCATORS: usize = 8;
/// Bytes of one locator's text we are willing to read.
pub const LOCATOR_BYTES_MAX: usize = 4096;

/// Windows path relative to the child, UTF-16LE.
pub const W2RU: [u8; 4] = *b"W2ru";
/// Absolute Windows path, UTF-16LE.
pub const W2KU: [u8; 4] = *b"W2ku";
/// `file://` URL, UTF-8.
pub const MACX: [u8; 4] = *b"MacX";

/// True for a locator that we can read. Others are skipped, as the specification asks.
pub(super) fn is_known(code: [u8; 4]) -> bool {
    matches!(code, W2RU | W2KU | MACX)
}

/// Decodes the text of a locator. `None`: the bytes are not what the code says.
pub(super) fn decode(entry: &LocatorEntry, bytes: &[u8]) -> Option<ParentCandidate> {
    match entry.code {
        W2RU => ParentCandidate::new(ParentOrigin::Relative, &utf16_le(bytes)?),
        W2KU => ParentCandidate::new(ParentOrigin::Absolute, &utf16_le(bytes)?),
        MACX => ParentCandidate::new(ParentOrigin::Url, &file_url(core::str::from_utf8(bytes).ok()?)?),
        _ => None,
    }
}

/// UTF-16LE up to the first NUL; some writers count one, some do not.
fn utf16_le(bytes: &[u8]) -> Option<String> {
    if !bytes.len().is_multiple_of(2) {
        return None;
    }
    let units = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    char::decode_utf16(units.take_while(|unit| *unit != 0)).collect::<Result<_, _>>().ok()
}

/// The path of `file:///path`, percent-decoded. `file://./x` is relative (vhd-util); another host is UNC.
fn file_url(url: &str) -> Option<String> {
    let rest = url.trim_end_matches('\0').strip_prefix("file://")?;
    let rest = rest.strip_prefix("localhost").filter(|path| path.starts_with('/')).unwrap_or(rest);
    let mut bytes = Vec::with_capacity(rest.len() + 2);
    if !rest.starts_with(['/', '.']) {
        bytes.extend(b"//");
    }
    let mut left = rest.as_bytes();
    while let Some((first, tail)) = left.split_first() {
        if *first == b'%' {
            let (hex, after) = tail.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(core::str::from_utf8(hex).ok()?, 16).ok()?);
            left = after;
        } else {
            bytes.push(*first);
            left = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

/// The bytes of a `W2ru` or `W2ku` locator: `\` separators, no NUL.
pub(super) fn encode(path: &str) -> Vec<u8> {
    path.replace('/', "\\").encode_utf16().flat_map(u16::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(code: [u8; 4]) -> LocatorEntry {
        LocatorEntry { code, ..LocatorEntry::default() }
    }

    fn shape(path: &str) -> PathShape {
        ParentCandidate::new(ParentOrigin::Relative, path).unwrap().shape()
    }

    #[test]
    fn a_relative_locator_survives_its_bytes() {
        let candidate = decode(&entry(W2RU), &encode(".\\dir/Gold Büro.vhd")).unwrap();
        assert_eq!(candidate.path, "./dir/Gold Büro.vhd");
        assert_eq!(candidate.base_name(), Some("Gold Büro.vhd"));
    }

    #[test]
    fn a_counted_nul_is_not_part_of_the_path() {
        let mut bytes = encode("a.vhd");
        bytes.extend([0, 0]);
        assert_eq!(decode(&entry(W2KU), &bytes).unwrap().path, "a.vhd");
    }

    #[test]
    fn odd_lengths_and_lone_surrogates_are_refused() {
        assert!(decode(&entry(W2RU), b"abc").is_none());
        assert!(decode(&entry(W2RU), &0xD800_u16.to_le_bytes()).is_none());
    }

    #[test]
    fn mac_urls_lose_scheme_host_and_escapes() {
        let path = |url: &str| decode(&entry(MACX), url.as_bytes()).map(|candidate| candidate.path);
        assert_eq!(path("file:///a%20b/c.vhd").as_deref(), Some("/a b/c.vhd"));
        assert_eq!(path("file://localhost/c.vhd").as_deref(), Some("/c.vhd"));
        assert_eq!(path("file://./c.vhd").as_deref(), Some("./c.vhd"));
        assert_eq!(path("file://server/c.vhd").as_deref(), Some("//server/c.vhd"));
        assert_eq!(path("http://x/c.vhd"), None);
        assert_eq!(path("file:///a%2"), None);
    }

    #[test]
    fn shapes_tell_unc_and_drives_from_relative_paths() {
        assert_eq!(shape("\\\\server\\share\\a.vhd"), PathShape::Unc);
        assert_eq!(shape("D:\\vhd\\a.vhd"), PathShape::Absolute);
        assert_eq!(shape("/a.vhd"), PathShape::Absolute);
        assert_eq!(shape("..\\a.vhd"), PathShape::Relative);
    }
}
