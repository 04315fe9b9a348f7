//! The log: which of its entries belong to the file, and what they change.
//!
//! Knows entries, sequences and the changes they describe. Does not know who writes them, nor the structures they
//! change.
//!
//! An entry is whole 4 KiB sectors, and wraps at the end of the log:
//!
//! | sector      | holds                                                                       |
//! |-------------|-----------------------------------------------------------------------------|
//! | first       | a header of 64 bytes, then 126 descriptors of 32 bytes                      |
//! | more        | 128 descriptors each, when there are more                                   |
//! | one a page  | 4084 bytes of a page; its first 8 and last 4 bytes are in the descriptor    |

use super::error::VhdxErrorKind;
use super::overlay::Overlay;
use super::{FileRange, PAGE_BYTES, REGION_TABLE_OFFSETS, checksum};
use crate::limits::VHDX_FILE_BYTES_MAX;
use std::collections::BTreeMap;
use uuid::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub(super) const ENTRY_SIGNATURE: [u8; 4] = *b"loge";
pub(super) const ZERO_SIGNATURE: [u8; 4] = *b"zero";
pub(super) const PAGE_SIGNATURE: [u8; 4] = *b"desc";
pub(super) const DATA_SIGNATURE: [u8; 4] = *b"data";
pub(super) const DESCRIPTOR_BYTES: usize = 32;
/// Descriptors beside the header, and in each further sector.
pub(super) const DESCRIPTORS_FIRST: usize = (PAGE_BYTES - size_of::<RawEntry>()) / DESCRIPTOR_BYTES;
pub(super) const DESCRIPTORS_MORE: usize = PAGE_BYTES / DESCRIPTOR_BYTES;
/// Where the checksum of an entry is.
pub(super) const CHECKSUM_AT: usize = 4;

/// The header of an entry.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawEntry {
    pub(super) signature: [u8; 4],
    pub(super) checksum: U32,
    pub(super) length: U32,
    pub(super) tail: U32,
    pub(super) sequence: U64,
    pub(super) descriptors: U32,
    pub(super) reserved: U32,
    pub(super) log_guid: [u8; 16],
    pub(super) flushed_file_offset: U64,
    pub(super) last_file_offset: U64,
}

/// A descriptor of a page (`desc`) or of zeros (`zero`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawDescriptor {
    pub(super) signature: [u8; 4],
    /// The last 4 bytes of a page.
    pub(super) trailing: [u8; 4],
    /// The first 8 bytes of a page, or how many zeros.
    pub(super) leading: [u8; 8],
    pub(super) file_offset: U64,
    pub(super) sequence: U64,
}

/// A sector of a page's data.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawData {
    pub(super) signature: [u8; 4],
    pub(super) sequence_high: U32,
    pub(super) bytes: [u8; PAGE_BYTES - 12],
    pub(super) sequence_low: U32,
}

const _: () = assert!(size_of::<RawEntry>() == 64 && size_of::<RawDescriptor>() == DESCRIPTOR_BYTES);
const _: () = assert!(size_of::<RawData>() == PAGE_BYTES);

/// Sectors that `descriptors` take, the header included.
pub(super) fn descriptor_sectors(descriptors: usize) -> usize {
    1 + descriptors.saturating_sub(DESCRIPTORS_FIRST).div_ceil(DESCRIPTORS_MORE)
}

/// What a log adds to its file.
#[derive(Clone, Debug, Default)]
pub(super) struct Replay {
    pub(super) overlay: Overlay,
    /// Bytes the file must have afterwards.
    pub(super) len: u64,
    /// Entries replayed.
    pub(super) entries: u32,
}

/// A valid entry.
#[derive(Clone, Copy, Debug)]
struct Entry {
    start: usize,
    sectors: usize,
    header: RawEntry,
}

/// The sectors of a log, numbered as if it had no end.
struct Ring<'a> {
    bytes: &'a [u8],
    sectors: usize,
}

impl<'a> Ring<'a> {
    fn sector(&self, index: usize) -> &'a [u8] {
        let start = index % self.sectors.max(1) * PAGE_BYTES;
        self.bytes.get(start..start + PAGE_BYTES).unwrap_or_default()
    }

    fn signature(&self, index: usize) -> &'a [u8] {
        self.sector(index).get(..4).unwrap_or_default()
    }

    fn descriptor(&self, entry: &Entry, index: usize) -> Option<RawDescriptor> {
        let (sector, at) = match index.checked_sub(DESCRIPTORS_FIRST) {
            None => (0, size_of::<RawEntry>() + index * DESCRIPTOR_BYTES),
            Some(more) => (1 + more / DESCRIPTORS_MORE, more % DESCRIPTORS_MORE * DESCRIPTOR_BYTES),
        };
        let bytes = self.sector(entry.start + sector).get(at..at + DESCRIPTOR_BYTES)?;
        RawDescriptor::read_from_bytes(bytes).ok()
    }

    /// The entry that begins at a sector, when all of it is sound.
    ///
    /// No sector behind the first begins like an entry, so sound entries do not overlap, and looking at all of them
    /// reads each byte of the log once however many claim to be one.
    fn entry(&self, start: usize, log_guid: Uuid) -> Option<Entry> {
        let (header, _) = RawEntry::read_from_prefix(self.sector(start)).ok()?;
        let length = header.length.get() as usize;
        let sectors = length / PAGE_BYTES;
        let tail = header.tail.get() as usize;
        let shape = header.signature == ENTRY_SIGNATURE
            && Uuid::from_bytes_le(header.log_guid) == log_guid
            && header.sequence.get() != 0
            && length.is_multiple_of(PAGE_BYTES)
            && (1..=self.sectors).contains(&sectors)
            && tail.is_multiple_of(PAGE_BYTES)
            && tail / PAGE_BYTES < self.sectors;
        let described = descriptor_sectors(header.descriptors.get() as usize);
        if !shape || described > sectors {
            return None;
        }
        if (1..sectors).any(|index| self.signature(start + index) == ENTRY_SIGNATURE) {
            return None;
        }
        let entry = Entry { start, sectors, header };
        (self.is_described(&entry, described)? && self.is_summed(&entry)).then_some(entry)
    }

    /// Descriptors and data sectors carry the entry's number and there are as many of one as of the other.
    fn is_described(&self, entry: &Entry, described: usize) -> Option<bool> {
        let sequence = entry.header.sequence.get();
        let mut pages = 0;
        for index in 0..entry.header.descriptors.get() as usize {
            let descriptor = self.descriptor(entry, index)?;
            if descriptor.sequence.get() != sequence {
                return None;
            }
            match descriptor.signature {
                PAGE_SIGNATURE => pages += 1,
                ZERO_SIGNATURE => {}
                _ => return None,
            }
        }
        for index in described..(described + pages).min(entry.sectors) {
            let data = RawData::read_from_bytes(self.sector(entry.start + index)).ok()?;
            let number = u64::from(data.sequence_high.get()) << 32 | u64::from(data.sequence_low.get());
            if data.signature != DATA_SIGNATURE || number != sequence {
                return None;
            }
        }
        Some(described + pages <= entry.sectors)
    }

    fn is_summed(&self, entry: &Entry) -> bool {
        let mut sum = checksum_of_first(self.sector(entry.start));
        for index in 1..entry.sectors {
            sum = crc32c::crc32c_append(sum, self.sector(entry.start + index));
        }
        sum == entry.header.checksum.get()
    }
}

fn checksum_of_first(sector: &[u8]) -> u32 {
    checksum(sector, CHECKSUM_AT)
}

/// The entries that belong to the file, oldest first: of all sequences without a gap whose newest entry names a tail
/// inside of it, the one with the newest entry, from that tail on.
fn active_sequence(ring: &Ring<'_>, log_guid: Uuid) -> Vec<Entry> {
    let entries: BTreeMap<usize, Entry> =
        (0..ring.sectors).filter_map(|start| Some((start, ring.entry(start, log_guid)?))).collect();
    let next = |entry: &Entry| {
        let next = entries.get(&((entry.start + entry.sectors) % ring.sectors.max(1)))?;
        (Some(next.header.sequence.get()) == entry.header.sequence.get().checked_add(1)).then_some(next)
    };
    let followers: Vec<usize> = entries.values().filter_map(|entry| Some(next(entry)?.start)).collect();
    let mut best: Vec<Entry> = Vec::new();
    for first in entries.values().filter(|entry| !followers.contains(&entry.start)) {
        // Numbers rise along a sequence, so that it ends.
        let sequence: Vec<Entry> =
            core::iter::successors(Some(first), |entry| next(entry)).copied().collect();
        let Some(head) = sequence.last() else { continue };
        let tail = head.header.tail.get() as usize / PAGE_BYTES;
        let Some(from) = sequence.iter().position(|entry| entry.start == tail) else { continue };
        let newest = best.last().map_or(0, |entry| entry.header.sequence.get());
        if head.header.sequence.get() > newest {
            best = sequence.get(from..).unwrap_or_default().to_vec();
        }
    }
    best
}

/// Reads a log that is not empty: its `bytes` lie at `place` of a file of `len` bytes.
pub(super) fn replay(
    bytes: &[u8],
    log_guid: Uuid,
    place: FileRange,
    len: u64,
) -> Result<Replay, VhdxErrorKind> {
    let ring = Ring { bytes, sectors: bytes.len() / PAGE_BYTES };
    let sequence = active_sequence(&ring, log_guid);
    let Some(head) = sequence.last() else { return Err(VhdxErrorKind::LogNoSequence) };
    let flushed = head.header.flushed_file_offset.get();
    if flushed > len {
        return Err(VhdxErrorKind::LogFileShort { flushed, len });
    }
    let last = head.header.last_file_offset.get();
    if last > VHDX_FILE_BYTES_MAX {
        return Err(VhdxErrorKind::LogTarget(last));
    }
    let mut replay =
        Replay { overlay: Overlay::default(), len: len.max(last), entries: sequence.len() as u32 };
    for entry in &sequence {
        apply(&ring, entry, place, &mut replay)?;
    }
    Ok(replay)
}

fn apply(ring: &Ring<'_>, entry: &Entry, log: FileRange, replay: &mut Replay) -> Result<(), VhdxErrorKind> {
    let count = entry.header.descriptors.get() as usize;
    let mut data = entry.start + descriptor_sectors(count);
    for index in 0..count {
        let Some(descriptor) = ring.descriptor(entry, index) else { continue };
        let start = descriptor.file_offset.get();
        let is_page = descriptor.signature == PAGE_SIGNATURE;
        let len = if is_page { PAGE_BYTES as u64 } else { u64::from_le_bytes(descriptor.leading) };
        let target = FileRange { start, end: start.saturating_add(len) };
        let on_grid = start.is_multiple_of(PAGE_BYTES as u64) && len.is_multiple_of(PAGE_BYTES as u64);
        // Headers are never changed through the log, nor is the log itself.
        if !on_grid || start < REGION_TABLE_OFFSETS[0] || target.end > replay.len || target.overlaps(log) {
            return Err(VhdxErrorKind::LogTarget(start));
        }
        if is_page {
            replay.overlay.put_page(start, page(&descriptor, ring.sector(data)));
            data += 1;
        } else {
            replay.overlay.put_zeros(target.start, target.end);
        }
    }
    Ok(())
}

fn page(descriptor: &RawDescriptor, sector: &[u8]) -> Box<[u8; PAGE_BYTES]> {
    let mut page = Box::new([0; PAGE_BYTES]);
    if let Some(middle) = sector.get(8..PAGE_BYTES - 4) {
        page[8..PAGE_BYTES - 4].copy_from_slice(middle);
    }
    page[..8].copy_from_slice(&descriptor.leading);
    page[PAGE_BYTES - 4..].copy_from_slice(&descriptor.trailing);
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUID: Uuid = Uuid::from_u128(77);
    const PLACE: FileRange = FileRange { start: 1 << 20, end: (1 << 20) + 16 * 4096 };
    const LEN: u64 = 8 << 20;

    /// A change: a page of this byte, or this many bytes of zeros.
    enum Change {
        Page(u64, u8),
        Zeros(u64, u64),
    }

    /// The sectors of an entry.
    fn entry(sequence: u64, tail: usize, changes: &[Change]) -> Vec<u8> {
        let pages = changes.iter().filter(|change| matches!(change, Change::Page(..))).count();
        let described = descriptor_sectors(changes.len());
        let mut bytes = vec![0; described * PAGE_BYTES];
        let header = RawEntry {
            signature: ENTRY_SIGNATURE,
            checksum: U32::ZERO,
            length: U32::new(((described + pages) * PAGE_BYTES) as u32),
            tail: U32::new((tail * PAGE_BYTES) as u32),
            sequence: U64::new(sequence),
            descriptors: U32::new(changes.len() as u32),
            reserved: U32::ZERO,
            log_guid: GUID.to_bytes_le(),
            flushed_file_offset: U64::new(LEN),
            last_file_offset: U64::new(LEN),
        };
        bytes[..64].copy_from_slice(header.as_bytes());
        for (index, change) in changes.iter().enumerate() {
            let (signature, trailing, leading, file_offset) = match change {
                Change::Page(at, byte) => (PAGE_SIGNATURE, [*byte; 4], [*byte; 8], *at),
                Change::Zeros(at, len) => (ZERO_SIGNATURE, [0; 4], len.to_le_bytes(), *at),
            };
            let descriptor = RawDescriptor {
                signature,
                trailing,
                leading,
                file_offset: U64::new(file_offset),
                sequence: U64::new(sequence),
            };
            // The second descriptor sector begins where the first ends.
            bytes[64 + index * 32..][..32].copy_from_slice(descriptor.as_bytes());
            if let Change::Page(_, byte) = change {
                let data = RawData {
                    signature: DATA_SIGNATURE,
                    sequence_high: U32::new((sequence >> 32) as u32),
                    bytes: [*byte; PAGE_BYTES - 12],
                    sequence_low: U32::new(sequence as u32),
                };
                bytes.extend_from_slice(data.as_bytes());
            }
        }
        let sum = checksum(&bytes, CHECKSUM_AT);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// A log of 16 sectors with these entries at these sectors, around its end.
    fn log(entries: &[(usize, Vec<u8>)]) -> Vec<u8> {
        let mut log = vec![0; 16 * PAGE_BYTES];
        for (start, bytes) in entries {
            for (index, sector) in bytes.chunks(PAGE_BYTES).enumerate() {
                log[(start + index) % 16 * PAGE_BYTES..][..PAGE_BYTES].copy_from_slice(sector);
            }
        }
        log
    }

    fn pages(log: &[u8]) -> Result<Vec<(u64, u8)>, VhdxErrorKind> {
        let replay = replay(log, GUID, PLACE, LEN)?;
        let mut page = vec![0xAA; PAGE_BYTES];
        Ok((2 << 20..8 << 20)
            .step_by(PAGE_BYTES)
            .filter_map(|at| {
                page.fill(0xAA);
                replay.overlay.patch(at, &mut page);
                assert!(page.iter().all(|byte| *byte == page[0]), "a page in pieces");
                (page[0] != 0xAA).then_some((at >> 12 & 0xFF, page[0]))
            })
            .collect())
    }

    const AT: u64 = 2 << 20;

    #[test]
    fn entries_are_replayed_in_order_and_around_the_end() {
        let first = entry(5, 13, &[Change::Page(AT, 1), Change::Page(AT + 4096, 2)]);
        let second = entry(6, 13, &[Change::Page(AT, 3), Change::Zeros(AT + 8192, 8192)]);
        let log = log(&[(13, first), (0, second)]);
        assert_eq!(pages(&log), Ok(vec![(0, 3), (1, 2), (2, 0), (3, 0)]));
    }

    #[test]
    fn only_the_newest_sequence_counts_and_only_from_its_tail() {
        let old = entry(90, 8, &[Change::Page(AT, 9)]);
        let retired = entry(100, 0, &[Change::Page(AT + 4096, 1)]);
        let active = entry(101, 2, &[Change::Page(AT, 2)]);
        let log = log(&[(8, old), (0, retired), (2, active)]);
        assert_eq!(pages(&log), Ok(vec![(0, 2)]));
    }

    #[test]
    fn a_damaged_head_leaves_the_sequence_before_it() {
        let first = entry(5, 0, &[Change::Page(AT, 1)]);
        let second = entry(6, 0, &[Change::Page(AT, 2)]);
        for at in [0, 5, 40, 70, 4096 + 100, 8191] {
            let mut second = second.clone();
            second[at] ^= 1;
            assert_eq!(pages(&log(&[(0, first.clone()), (2, second)])), Ok(vec![(0, 1)]), "{at}");
        }
    }

    #[test]
    fn an_empty_or_foreign_log_and_a_tail_outside_are_no_sequence() {
        assert_eq!(pages(&log(&[])), Err(VhdxErrorKind::LogNoSequence));
        let lost = entry(5, 9, &[Change::Page(AT, 1)]);
        assert_eq!(pages(&log(&[(0, lost)])), Err(VhdxErrorKind::LogNoSequence));
        let good = log(&[(0, entry(5, 0, &[Change::Page(AT, 1)]))]);
        let foreign = replay(&good, Uuid::from_u128(78), PLACE, LEN).map(|replay| replay.entries);
        assert_eq!(foreign, Err(VhdxErrorKind::LogNoSequence));
        let short = replay(&good, GUID, PLACE, LEN - 1).map(|replay| replay.entries);
        assert_eq!(short, Err(VhdxErrorKind::LogFileShort { flushed: LEN, len: LEN - 1 }));
    }

    #[test]
    fn the_log_may_not_change_headers_itself_or_what_is_beyond() {
        for at in [0, 64 << 10, 1 << 20, LEN, LEN - 4096 + 512] {
            let log = log(&[(0, entry(5, 0, &[Change::Page(at, 1)]))]);
            assert_eq!(pages(&log), Err(VhdxErrorKind::LogTarget(at)));
        }
        let zeros = log(&[(0, entry(5, 0, &[Change::Zeros(AT, u64::MAX - 4095)]))]);
        assert_eq!(pages(&zeros), Err(VhdxErrorKind::LogTarget(AT)));
    }

    #[test]
    fn many_descriptors_go_on_in_the_next_sector() {
        let changes: Vec<Change> = (0..200).map(|at| Change::Zeros(AT + at * 4096, 4096)).collect();
        assert_eq!(pages(&log(&[(3, entry(5, 3, &changes))])).unwrap().len(), 200);
    }
}
