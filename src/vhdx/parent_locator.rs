//! The parent locator: who the parent is, and where it may be.
//!
//! Knows the pairs of keys and values and their encoding. Does not know the file system (`parent_path`).

use super::error::VhdxErrorKind;
use super::image::ParentInfo;
use crate::limits::VHDX_LOCATOR_BYTES_MAX;
use crate::parent_path::{ParentCandidate, ParentOrigin};
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The type of a parent that is a VHDX: the only one there is.
pub const VHDX_PARENT: Uuid = Uuid::from_u128(0xB04A_EFB7_D19E_4A81_B789_25B8_E944_5913);
const PAIRS_MAX: u16 = 64;

const LINKAGE: &str = "parent_linkage";
const LINKAGE2: &str = "parent_linkage2";
const RELATIVE: &str = "relative_path";
const VOLUME: &str = "volume_path";
const ABSOLUTE: &str = "absolute_win32_path";
/// What Windows puts before a path that it is to take as it stands.
const VERBATIM: &str = r"\\?\";

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawLocator {
    kind: [u8; 16],
    reserved: U16,
    pairs: U16,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawPair {
    key_offset: U32,
    value_offset: U32,
    key_len: U16,
    value_len: U16,
}

/// Paths to a parent, to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParentPaths {
    /// From the child's folder, `/` or `\` separated, without a leading `./`.
    pub relative: String,
    /// `\\?\Volume{...}\...`, where one is known.
    pub volume: Option<String>,
    /// `C:\...`, where one is known.
    pub absolute: Option<String>,
}

/// Parses the bytes of the item.
///
/// # Errors
/// Another type of parent, or a pair that cannot be read. No linkage and no path are such errors too.
pub fn parse(bytes: &[u8]) -> Result<ParentInfo, VhdxErrorKind> {
    let (raw, rest) = RawLocator::read_from_prefix(bytes).map_err(|_| VhdxErrorKind::Locator)?;
    let kind = Uuid::from_bytes_le(raw.kind);
    if kind != VHDX_PARENT {
        return Err(VhdxErrorKind::LocatorType(kind));
    }
    let count = raw.pairs.get();
    if count > PAIRS_MAX || rest.len() < usize::from(count) * size_of::<RawPair>() {
        return Err(VhdxErrorKind::Locator);
    }
    let (mut linkage, mut linkage2, mut paths) = (None, None, Vec::new());
    for bytes_of_pair in rest.chunks_exact(size_of::<RawPair>()).take(usize::from(count)) {
        let pair = RawPair::read_from_bytes(bytes_of_pair).map_err(|_| VhdxErrorKind::Locator)?;
        let text = |offset: U32, len: U16| text(bytes, offset.get(), len.get()).ok_or(VhdxErrorKind::Locator);
        let value = || text(pair.value_offset, pair.value_len);
        match text(pair.key_offset, pair.key_len)?.as_str() {
            LINKAGE => linkage = Some(guid(&value()?)?),
            LINKAGE2 => linkage2 = guid(&value()?).ok().filter(|guid| !guid.is_nil()),
            RELATIVE => paths.extend(ParentCandidate::new(ParentOrigin::Relative, &value()?)),
            VOLUME => paths.extend(base_name(&value()?)),
            ABSOLUTE => paths.extend(ParentCandidate::new(ParentOrigin::Absolute, &plain(&value()?))),
            _ => {}
        }
    }
    if paths.is_empty() {
        return Err(VhdxErrorKind::LocatorPath);
    }
    paths.sort_by_key(|candidate| candidate.origin);
    Ok(ParentInfo { linkage: linkage.ok_or(VhdxErrorKind::Locator)?, linkage2, candidates: paths })
}

/// UTF-16LE up to the first NUL; some writers count one.
fn text(bytes: &[u8], offset: u32, len: u16) -> Option<String> {
    let start = usize::try_from(offset).ok()?;
    let bytes = bytes.get(start..start.checked_add(usize::from(len))?)?;
    if bytes.is_empty() || !bytes.len().is_multiple_of(2) {
        return None;
    }
    let units = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    char::decode_utf16(units.take_while(|unit| *unit != 0)).collect::<Result<_, _>>().ok()
}

/// `{xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx}`, in letters of either case.
fn guid(text: &str) -> Result<Uuid, VhdxErrorKind> {
    Uuid::try_parse(text.trim()).map_err(|_| VhdxErrorKind::Locator)
}

/// Without the prefix that tells Windows to take a path as it stands.
fn plain(path: &str) -> String {
    match path.strip_prefix(VERBATIM) {
        Some(rest) => rest.strip_prefix(r"UNC\").map_or(rest.to_owned(), |share| format!(r"\\{share}")),
        None => path.to_owned(),
    }
}

/// A volume is nothing here; the file's name is.
fn base_name(path: &str) -> Option<ParentCandidate> {
    ParentCandidate::new(ParentOrigin::Name, path.rsplit(['\\', '/']).next()?)
}

/// The bytes of the item: the linkage, then the paths in the order in which Windows tries them.
///
/// # Errors
/// The number of bytes, when they are more than a reader takes.
pub fn encode(linkage: Uuid, paths: &ParentPaths) -> Result<Vec<u8>, usize> {
    let relative = paths.relative.replace('/', "\\");
    let relative = if relative.starts_with("..") { relative } else { format!(".\\{relative}") };
    let mut pairs = vec![(LINKAGE, linkage.braced().to_string()), (RELATIVE, relative)];
    pairs.extend(paths.volume.clone().map(|path| (VOLUME, path)));
    pairs.extend(paths.absolute.clone().map(|path| (ABSOLUTE, path.replace('/', "\\"))));
    encode_pairs(&pairs)
}

/// The bytes of another item with its linkage changed: what it says of places stays.
///
/// # Errors
/// As [`encode`].
pub fn with_linkage(bytes: &[u8], linkage: Uuid, linkage2: Option<Uuid>) -> Result<Vec<u8>, usize> {
    let braced = |guid: Uuid| guid.braced().to_string();
    let mut pairs = vec![(LINKAGE.to_owned(), braced(linkage))];
    pairs.extend(linkage2.map(|guid| (LINKAGE2.to_owned(), braced(guid))));
    let raw = RawLocator::read_from_prefix(bytes).ok();
    let (count, rest) = raw.map_or((0, &[][..]), |(raw, rest)| (raw.pairs.get().min(PAIRS_MAX), rest));
    for pair in rest.chunks_exact(size_of::<RawPair>()).take(usize::from(count)) {
        let Ok(pair) = RawPair::read_from_bytes(pair) else { continue };
        let key = text(bytes, pair.key_offset.get(), pair.key_len.get());
        let value = text(bytes, pair.value_offset.get(), pair.value_len.get());
        if let (Some(key), Some(value)) = (key, value)
            && key != LINKAGE
            && key != LINKAGE2
        {
            pairs.push((key, value));
        }
    }
    encode_pairs(&pairs)
}

fn encode_pairs<K: AsRef<str>>(pairs: &[(K, String)]) -> Result<Vec<u8>, usize> {
    let head = RawLocator {
        kind: VHDX_PARENT.to_bytes_le(),
        reserved: U16::ZERO,
        pairs: U16::new(pairs.len() as u16),
    };
    let mut texts = Vec::new();
    let texts_at = size_of::<RawLocator>() + pairs.len() * size_of::<RawPair>();
    let mut bytes = head.as_bytes().to_vec();
    for (key, value) in pairs {
        let mut place = |text: &str| {
            let start = texts_at + texts.len();
            texts.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
            (start, texts_at + texts.len() - start)
        };
        let ((key_offset, key_len), (value_offset, value_len)) = (place(key.as_ref()), place(value));
        let (Ok(key_len), Ok(value_len)) = (u16::try_from(key_len), u16::try_from(value_len)) else {
            return Err(value_len);
        };
        let pair = RawPair {
            key_offset: U32::new(key_offset as u32),
            value_offset: U32::new(value_offset as u32),
            key_len: U16::new(key_len),
            value_len: U16::new(value_len),
        };
        bytes.extend_from_slice(pair.as_bytes());
    }
    bytes.extend(texts);
    if bytes.len() > VHDX_LOCATOR_BYTES_MAX { Err(bytes.len()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths() -> ParentPaths {
        ParentPaths {
            relative: "../golden/gołd.vhdx".to_owned(),
            volume: Some(r"\\?\Volume{26a21bda-a627-11d7-9931-806e6f6e6963}\golden\gold.vhdx".to_owned()),
            absolute: Some(r"\\?\C:\golden\gold.vhdx".to_owned()),
        }
    }

    #[test]
    fn the_parent_is_who_and_where_it_was_said_to_be() {
        let linkage = Uuid::from_u128(0x0102_0304_0506_0708_090A_0B0C_0D0E_0F10);
        let info = parse(&encode(linkage, &paths()).unwrap()).unwrap();
        assert_eq!((info.linkage, info.linkage2), (linkage, None));
        let places: Vec<_> = info.candidates.iter().map(|c| (c.origin, c.path.as_str())).collect();
        let expected = [
            (ParentOrigin::Relative, "../golden/gołd.vhdx"),
            (ParentOrigin::Absolute, "C:/golden/gold.vhdx"),
            (ParentOrigin::Name, "gold.vhdx"),
        ];
        assert_eq!(places, expected);
    }

    #[test]
    fn the_linkage_is_written_as_windows_writes_an_identifier() {
        let linkage = Uuid::from_u128(0x0102_0304_0506_0708_090A_0B0C_0D0E_0F10);
        let bytes =
            encode(linkage, &ParentPaths { relative: "a".to_owned(), ..ParentPaths::default() }).unwrap();
        let text: Vec<u8> =
            "{01020304-0506-0708-090a-0b0c0d0e0f10}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert!(bytes.windows(text.len()).any(|part| part == text));
    }

    #[test]
    fn a_locator_with_a_pair_outside_or_no_path_is_refused() {
        let good = encode(Uuid::from_u128(1), &paths()).unwrap();
        for (at, value) in [(18, 200), (20, 0xFF), (24, 0xFF), (28, 3), (19, 0xFF)] {
            let mut bytes = good.clone();
            bytes[at] = value;
            assert_eq!(parse(&bytes), Err(VhdxErrorKind::Locator), "{at}");
        }
        let mut other = good.clone();
        other[0] ^= 1;
        assert!(matches!(parse(&other), Err(VhdxErrorKind::LocatorType(_))));
        let mut pathless = good;
        pathless[18] = 1;
        assert_eq!(parse(&pathless), Err(VhdxErrorKind::LocatorPath));
        for len in 0..20 {
            assert!(parse(&encode(Uuid::nil(), &paths()).unwrap()[..len]).is_err());
        }
    }

    #[test]
    fn a_share_stays_a_share() {
        assert_eq!(plain(r"\\?\UNC\server\share\a.vhdx"), r"\\server\share\a.vhdx");
        assert_eq!(plain(r"\\?\C:\a.vhdx"), r"C:\a.vhdx");
        assert_eq!(plain("C:\\a.vhdx"), "C:\\a.vhdx");
    }
}
