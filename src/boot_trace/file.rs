//! The bytes of a trace file.
//!
//! Knows the format, and that any byte of a file may be wrong. Does not know where the file lies.
//!
//! All numbers are little-endian.
//!
//! | bytes    | meaning                                                                            |
//! |----------|------------------------------------------------------------------------------------|
//! | 0..8     | `GRBTRACE`                                                                         |
//! | 8..12    | version, 1                                                                         |
//! | 12..16   | bit 0: the golden file was sealed                                                  |
//! | 16..32   | its unique id                                                                      |
//! | 32..40   | its length                                                                         |
//! | 40..48   | its modification time in nanoseconds since 1970, signed                            |
//! | 48..80   | the fingerprint of its seal, or zeros                                              |
//! | 80..84   | boots                                                                              |
//! | 84..88   | ranges                                                                             |
//! | 88..n-4  | for each range: its first page as the distance from the end of the range before (zig-zag: 0, -1, 1, -2 ...), its pages, its boots; each as LEB128, seven bits a byte, lowest first |
//! | n-4..n   | CRC-32C of all bytes before                                                        |

use super::{BootTrace, GoldenVersion, PAGE_BYTES, PAGES_MAX, RANGES_MAX, TraceRange};

const MAGIC: &[u8; 8] = b"GRBTRACE";
const VERSION: u32 = 1;
const SEALED: u32 = 1;
const HEAD_BYTES: usize = 88;
/// A longer file is no trace: ranges of ten, five and five bytes.
pub const TRACE_FILE_BYTES_MAX: u64 = HEAD_BYTES as u64 + 20 * RANGES_MAX as u64 + 4;

/// Why bytes are no trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    #[error("it is no boot trace")]
    Magic,
    #[error("it has version {0}, not {VERSION}")]
    Version(u32),
    #[error("its checksum is wrong")]
    Checksum,
    #[error("it ends too early")]
    Short,
    #[error("{0} is more than a trace may have")]
    TooMuch(&'static str),
    #[error("range {0} is not in the file it belongs to, or no range")]
    Range(u32),
    #[error("two of its ranges overlap")]
    Overlap,
    #[error("bytes follow its last range")]
    Trailing,
}

impl BootTrace {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_BYTES + self.ranges.len() * 6 + 4);
        let GoldenVersion { unique_id, len, modified_ns, seal } = self.golden;
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(if seal.is_some() { SEALED } else { 0 }).to_le_bytes());
        out.extend_from_slice(&unique_id);
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&modified_ns.to_le_bytes());
        out.extend_from_slice(&seal.unwrap_or_default());
        out.extend_from_slice(&self.boots.to_le_bytes());
        out.extend_from_slice(&(self.ranges.len() as u32).to_le_bytes());
        let mut before = 0_i64;
        for range in &self.ranges {
            let distance = range.page.cast_signed().wrapping_sub(before);
            put(&mut out, (distance << 1 ^ distance >> 63).cast_unsigned());
            put(&mut out, range.pages.into());
            put(&mut out, range.boots.into());
            before = range.end().cast_signed();
        }
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// # Errors
    /// The bytes are not a whole, consistent trace of this version.
    pub fn parse(bytes: &[u8]) -> Result<Self, TraceError> {
        if !bytes.starts_with(MAGIC) {
            return Err(TraceError::Magic);
        }
        let (body, crc) = bytes.split_last_chunk::<4>().ok_or(TraceError::Short)?;
        let mut rest = body.get(8..).ok_or(TraceError::Short)?;
        // The version first: another one may have its checksum elsewhere.
        let version = u32::from_le_bytes(take(&mut rest)?);
        if version != VERSION {
            return Err(TraceError::Version(version));
        }
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return Err(TraceError::Checksum);
        }
        let flags = u32::from_le_bytes(take(&mut rest)?);
        let unique_id = take(&mut rest)?;
        let len = u64::from_le_bytes(take(&mut rest)?);
        let modified_ns = i64::from_le_bytes(take(&mut rest)?);
        let fingerprint = take::<32>(&mut rest)?;
        let seal = (flags & SEALED != 0).then_some(fingerprint);
        let boots = u32::from_le_bytes(take(&mut rest)?);
        let count = u32::from_le_bytes(take(&mut rest)?);
        if count as usize > RANGES_MAX {
            return Err(TraceError::TooMuch("the number of its ranges"));
        }
        let golden = GoldenVersion { unique_id, len, modified_ns, seal };
        let trace = Self { golden, boots, ranges: ranges(&mut rest, count, boots, len)? };
        if !rest.is_empty() {
            return Err(TraceError::Trailing);
        }
        if trace.pages() > PAGES_MAX {
            return Err(TraceError::TooMuch("the number of its pages"));
        }
        if overlaps(&trace.ranges) {
            return Err(TraceError::Overlap);
        }
        Ok(trace)
    }
}

fn ranges(rest: &mut &[u8], count: u32, boots: u32, len: u64) -> Result<Vec<TraceRange>, TraceError> {
    let file_pages = len.div_ceil(PAGE_BYTES);
    // Three bytes at least for each: no more memory than the file is long.
    let mut ranges = Vec::with_capacity((count as usize).min(rest.len() / 3));
    let mut before = 0_i64;
    for number in 0..count {
        let wrong = TraceError::Range(number);
        let zigzag = get(rest)?;
        let distance = (zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed();
        let page = before.checked_add(distance).and_then(|page| u64::try_from(page).ok()).ok_or(wrong)?;
        let pages = u32::try_from(get(rest)?).map_err(|_| wrong)?;
        let range_boots = u32::try_from(get(rest)?).map_err(|_| wrong)?;
        let end = page.checked_add(u64::from(pages)).filter(|end| *end <= file_pages).ok_or(wrong)?;
        if pages == 0 || range_boots == 0 || range_boots > boots {
            return Err(wrong);
        }
        ranges.push(TraceRange { page, pages, boots: range_boots });
        before = i64::try_from(end).map_err(|_| wrong)?;
    }
    Ok(ranges)
}

fn overlaps(ranges: &[TraceRange]) -> bool {
    let mut sorted: Vec<_> = ranges.iter().map(|range| (range.page, range.end())).collect();
    sorted.sort_unstable();
    sorted.windows(2).any(|pair| pair[0].1 > pair[1].0)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], TraceError> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or(TraceError::Short)?;
    *rest = tail;
    Ok(*head)
}

/// LEB128.
fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn get(rest: &mut &[u8]) -> Result<u64, TraceError> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let [byte] = take(rest)?;
        value |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(TraceError::TooMuch("one of its numbers"))
}

/// Puts the right checksum behind bytes that have another one, as damage to come further.
pub(super) fn with_checksum(bytes: &[u8]) -> Vec<u8> {
    let body = bytes.get(..bytes.len().saturating_sub(4)).unwrap_or_default();
    let mut out = body.to_vec();
    out.extend_from_slice(&crc32c::crc32c(body).to_le_bytes());
    out
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Any trace that could have been recorded.
    pub(crate) fn traces() -> impl Strategy<Value = BootTrace> {
        let pieces = proptest::collection::vec((1_u64..5000, 1_u32..600, 1_u32..=8), 0..60);
        let version = (any::<[u8; 16]>(), any::<i64>(), proptest::option::of(any::<[u8; 32]>()), 0_u64..9000);
        (pieces, version).prop_perturb(|(pieces, (unique_id, modified_ns, seal, more)), mut rng| {
            let mut at = 0;
            let mut ranges: Vec<_> = pieces
                .into_iter()
                .map(|(gap, pages, boots)| {
                    let range = TraceRange { page: at + gap, pages, boots };
                    at = range.end();
                    range
                })
                .collect();
            for index in 1..ranges.len() {
                ranges.swap(index, rng.random_range(0..=index));
            }
            let golden = GoldenVersion { unique_id, len: at * PAGE_BYTES + more, modified_ns, seal };
            BootTrace { golden, boots: 8, ranges }
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(trace in traces()) {
            let bytes = trace.encode();
            prop_assert!(bytes.len() as u64 <= TRACE_FILE_BYTES_MAX);
            prop_assert_eq!(BootTrace::parse(&bytes), Ok(trace));
        }

        #[test]
        fn a_changed_byte_and_a_cut_are_noticed(trace in traces(), at in any::<prop::sample::Index>(), bit in 0_u8..8) {
            let mut bytes = trace.encode();
            let at = at.index(bytes.len());
            prop_assert!(BootTrace::parse(&bytes[..at]).is_err());
            bytes[at] ^= 1_u8 << bit;
            prop_assert!(BootTrace::parse(&bytes).is_err());
        }
    }

    fn trace(ranges: Vec<TraceRange>) -> BootTrace {
        let golden = GoldenVersion { unique_id: [7; 16], len: 100 * PAGE_BYTES, modified_ns: -1, seal: None };
        BootTrace { golden, boots: 3, ranges }
    }

    fn range(page: u64, pages: u32, boots: u32) -> TraceRange {
        TraceRange { page, pages, boots }
    }

    #[test]
    fn what_no_recording_makes_is_refused_with_a_reason() {
        let parse = |ranges| BootTrace::parse(&trace(ranges).encode());
        assert!(parse(vec![range(99, 1, 3), range(0, 99, 1)]).is_ok());
        assert_eq!(parse(vec![range(99, 2, 1)]), Err(TraceError::Range(0)));
        assert_eq!(parse(vec![range(5, 1, 1), range(6, 0, 1)]), Err(TraceError::Range(1)));
        assert_eq!(parse(vec![range(5, 1, 4)]), Err(TraceError::Range(0)));
        assert_eq!(parse(vec![range(5, 2, 1), range(6, 1, 1)]), Err(TraceError::Overlap));
        assert_eq!(BootTrace::parse(b"# a seal"), Err(TraceError::Magic));
        let mut other = trace(vec![]).encode();
        other[8] = 2;
        assert_eq!(BootTrace::parse(&other), Err(TraceError::Version(2)));
        let mut more = trace(vec![]).encode();
        more.insert(HEAD_BYTES, 0);
        assert_eq!(BootTrace::parse(&with_checksum(&more)), Err(TraceError::Trailing));
        let mut many = trace(vec![]).encode();
        many[84..88].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(
            BootTrace::parse(&with_checksum(&many)).unwrap_err().to_string(),
            "the number of its ranges is more than a trace may have"
        );
    }

    #[test]
    fn a_trace_is_of_one_version_and_a_seal_outlives_a_copy() {
        let version = trace(vec![]).golden;
        assert!(version.is(&version));
        assert!(!version.is(&GoldenVersion { modified_ns: 0, ..version }));
        assert!(!version.is(&GoldenVersion { len: 1, ..version }));
        assert!(!version.is(&GoldenVersion { unique_id: [8; 16], ..version }));
        let sealed = GoldenVersion { seal: Some([1; 32]), ..version };
        assert!(sealed.is(&GoldenVersion { modified_ns: 0, ..sealed }));
        assert!(!sealed.is(&GoldenVersion { seal: Some([2; 32]), ..sealed }));
        assert!(sealed.is(&version), "sealed since, and not changed");
    }
}
