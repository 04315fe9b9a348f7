//! Writing the log: entries, one behind the other, around its end.
//!
//! Knows how changed pages become an entry and where the next entry goes. Does not know what the pages hold, nor when
//! an entry may be written: that is the order of `commit`.
//!
//! Each entry names the one before it as its tail. So at any moment the last two entries count: the newest, and, while
//! it may still be torn by a crash, the one before with the tail of its own. An entry is at most `ENTRY_SECTORS_MAX`
//! long and a log has room for three: a new one never lies over one that counts.

use super::log::{
    CHECKSUM_AT, DATA_SIGNATURE, DESCRIPTOR_BYTES, DESCRIPTORS_FIRST, ENTRY_SIGNATURE, PAGE_SIGNATURE,
    RawData, RawDescriptor, RawEntry, descriptor_sectors,
};
use super::{FileRange, MIB, PAGE_BYTES, checksum};
use crate::limits::{CHUNK_BYTES, VHDX_ENTRY_PAGES_MAX};
use crate::plan::{MetaBatch, MetaOp};
use crate::units::ByteOffset;
use uuid::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromZeros, IntoBytes};

/// Sectors of the longest entry: its pages, and one for the header and all descriptors.
const ENTRY_SECTORS_MAX: usize = VHDX_ENTRY_PAGES_MAX + 1;

const _: () = assert!(VHDX_ENTRY_PAGES_MAX <= DESCRIPTORS_FIRST);
// The smallest log there is.
const _: () = assert!(3 * ENTRY_SECTORS_MAX * PAGE_BYTES <= MIB as usize);

/// The log of an image that is written.
#[derive(Clone, Debug)]
pub(super) struct LogWriter {
    place: FileRange,
    guid: Uuid,
    /// Where the next entry goes and where the last one began, in bytes from the log's start.
    next: u64,
    last: u64,
    /// The number of the last entry.
    sequence: u64,
}

/// Changed pages: where they lie, and their bytes one behind the other.
#[derive(Clone, Debug, Default)]
pub(super) struct Pages {
    pub(super) offsets: Vec<u64>,
    pub(super) bytes: Vec<u8>,
}

impl LogWriter {
    /// A log that begins anew, under an identifier nobody has used.
    pub(super) fn new(place: FileRange, guid: Uuid) -> Self {
        Self { place, guid, next: 0, last: 0, sequence: 0 }
    }

    pub(super) fn guid(&self) -> Uuid {
        self.guid
    }

    /// Appends the writes of the next entry to `batch`. It holds at most `VHDX_ENTRY_PAGES_MAX` pages, and may hold
    /// none. `file_len`: bytes the file is known to have, stable before this entry is written.
    pub(super) fn append(&mut self, pages: &Pages, file_len: u64, batch: &mut MetaBatch) {
        self.sequence += 1;
        let tail = if self.sequence == 1 { self.next } else { self.last };
        let entry = encode(self.guid, self.sequence, tail, file_len, pages);
        self.last = self.next;
        self.push(&entry, batch);
    }

    /// In pieces the executor has buffers for, around the end of the log.
    fn push(&mut self, entry: &[u8], batch: &mut MetaBatch) {
        let mut rest = entry;
        while !rest.is_empty() {
            let room = (self.place.len() - self.next).min(CHUNK_BYTES as u64) as usize;
            let (piece, more) = rest.split_at(room.min(rest.len()));
            batch.push_write(ByteOffset(self.place.start + self.next), piece);
            self.next = (self.next + piece.len() as u64) % self.place.len();
            rest = more;
        }
    }

    /// Appends writes of zeros over all of a log that is not too long, but for the page the first entry takes: from
    /// then on no entry is refused for want of space.
    pub(super) fn fill(&self, batch: &mut MetaBatch) {
        if self.place.len() > MIB {
            return;
        }
        let zeros = batch.bytes.len();
        batch.bytes.resize(zeros + CHUNK_BYTES, 0);
        let mut at = self.place.start + PAGE_BYTES as u64;
        while at < self.place.end {
            let len = (self.place.end - at).min(CHUNK_BYTES as u64);
            batch.ops.push(MetaOp::Write { offset: ByteOffset(at), bytes: zeros..zeros + len as usize });
            at += len;
        }
    }
}

/// The sectors of an entry.
fn encode(guid: Uuid, sequence: u64, tail: u64, file_len: u64, pages: &Pages) -> Vec<u8> {
    let count = pages.offsets.len();
    let described = descriptor_sectors(count);
    let mut bytes = vec![0; described * PAGE_BYTES];
    bytes.reserve(count * PAGE_BYTES);
    let header = RawEntry {
        signature: ENTRY_SIGNATURE,
        checksum: U32::ZERO,
        length: U32::new(((described + count) * PAGE_BYTES) as u32),
        // A log is shorter than 4 GiB: its length is a number of 32 bits.
        tail: U32::new(tail as u32),
        sequence: U64::new(sequence),
        descriptors: U32::new(count as u32),
        reserved: U32::ZERO,
        log_guid: guid.to_bytes_le(),
        flushed_file_offset: U64::new(file_len),
        last_file_offset: U64::new(file_len),
    };
    bytes[..size_of::<RawEntry>()].copy_from_slice(header.as_bytes());
    for (index, (offset, page)) in pages.offsets.iter().zip(pages.bytes.chunks_exact(PAGE_BYTES)).enumerate()
    {
        let (leading, rest) = page.split_at(8);
        let (middle, trailing) = rest.split_at(PAGE_BYTES - 12);
        let mut descriptor = RawDescriptor {
            signature: PAGE_SIGNATURE,
            trailing: [0; 4],
            leading: [0; 8],
            file_offset: U64::new(*offset),
            sequence: U64::new(sequence),
        };
        descriptor.trailing.copy_from_slice(trailing);
        descriptor.leading.copy_from_slice(leading);
        let at = size_of::<RawEntry>() + index * DESCRIPTOR_BYTES;
        bytes[at..at + DESCRIPTOR_BYTES].copy_from_slice(descriptor.as_bytes());
        let mut data = RawData::new_zeroed();
        data.signature = DATA_SIGNATURE;
        data.sequence_high = U32::new((sequence >> 32) as u32);
        data.bytes.copy_from_slice(middle);
        data.sequence_low = U32::new(sequence as u32);
        bytes.extend_from_slice(data.as_bytes());
    }
    let sum = checksum(&bytes, CHECKSUM_AT);
    bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::log::replay;
    use super::super::overlay::Content;
    use super::*;
    use proptest::prelude::*;

    const PLACE: FileRange = FileRange { start: MIB, end: 2 * MIB };
    const GUID: Uuid = Uuid::from_u128(0x1234_5678_9ABC_DEF0);
    const LEN: u64 = 64 * MIB;

    fn put(log: &mut [u8], batch: &MetaBatch) {
        for op in &batch.ops {
            let MetaOp::Write { offset, bytes } = op else { panic!("{op:?}") };
            let at = (offset.0 - PLACE.start) as usize;
            log[at..at + bytes.len()].copy_from_slice(&batch.bytes[bytes.clone()]);
        }
    }

    fn pages(numbers: &[u64], byte: u8) -> Pages {
        let offsets = numbers.iter().map(|number| 4 * MIB + number * PAGE_BYTES as u64).collect();
        Pages { offsets, bytes: vec![byte; numbers.len() * PAGE_BYTES] }
    }

    /// The entries whose page (100 + their number, filled with it) the log says is to be changed.
    fn counted(log: &[u8]) -> Vec<usize> {
        let replay = replay(log, GUID, PLACE, LEN).unwrap();
        let own = replay.overlay.parts().filter_map(|(start, _, content)| {
            let entry = ((start - 4 * MIB) / PAGE_BYTES as u64).checked_sub(100)? as usize;
            let Content::Page(page) = content else { panic!("no zeros were written") };
            assert!(page.iter().all(|byte| usize::from(*byte) == entry));
            Some(entry)
        });
        own.collect()
    }

    #[test]
    fn the_bytes_of_an_entry_are_where_the_specification_puts_them() {
        let mut page = vec![7; PAGE_BYTES];
        page[..8].copy_from_slice(b"LEADING.");
        page[4092..].copy_from_slice(b"TAIL");
        let pages = Pages { offsets: vec![0x0012_3000], bytes: page };
        let bytes = encode(GUID, 0x1_0000_0002, 0x5000, 0xABC0_0000, &pages);
        assert_eq!(bytes.len(), 8192);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!(&bytes[..4], b"loge");
        assert_eq!((word(8), word(12), long(16), word(24)), (8192, 0x5000, 0x1_0000_0002, 1));
        assert_eq!(&bytes[32..48], &GUID.to_bytes_le());
        assert_eq!((long(48), long(56)), (0xABC0_0000, 0xABC0_0000));
        assert_eq!(
            (&bytes[64..68], &bytes[68..72], &bytes[72..80]),
            (&b"desc"[..], &b"TAIL"[..], &b"LEADING."[..])
        );
        assert_eq!((long(80), long(88)), (0x0012_3000, 0x1_0000_0002));
        assert_eq!((&bytes[4096..4100], word(4100), word(8188)), (&b"data"[..], 1, 2));
        assert!(bytes[4104..8188].iter().all(|byte| *byte == 7));
        let mut zeroed = bytes.clone();
        zeroed[4..8].fill(0);
        assert_eq!(word(4), crc32c::crc32c(&zeroed));
    }

    #[test]
    fn an_empty_first_entry_makes_a_log_that_changes_nothing() {
        let mut log = vec![0xEE; MIB as usize];
        let mut batch = MetaBatch::default();
        let mut writer = LogWriter::new(PLACE, GUID);
        writer.fill(&mut batch);
        writer.append(&Pages::default(), LEN, &mut batch);
        put(&mut log, &batch);
        let replay = replay(&log, GUID, PLACE, LEN).unwrap();
        assert!(replay.overlay.parts().next().is_none() && replay.entries == 1 && replay.len == LEN);
        assert!(log[PAGE_BYTES..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn no_write_is_longer_than_a_buffer() {
        let mut batch = MetaBatch::default();
        let mut writer = LogWriter::new(PLACE, GUID);
        let all: Vec<u64> = (0..VHDX_ENTRY_PAGES_MAX as u64).collect();
        writer.fill(&mut batch);
        for _ in 0..9 {
            writer.append(&pages(&all, 1), LEN, &mut batch);
        }
        for op in &batch.ops {
            let MetaOp::Write { offset, bytes } = op else { panic!("{op:?}") };
            assert!(bytes.len() <= CHUNK_BYTES && offset.0 >= PLACE.start);
            assert!(offset.0 + bytes.len() as u64 <= PLACE.end);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(6))]
        #[test]
        fn the_last_two_entries_count_and_the_one_before_while_the_last_is_torn(
            sizes in prop::collection::vec(0usize..=VHDX_ENTRY_PAGES_MAX, 3..16),
            torn in 0usize..2000,
        ) {
            let mut log = vec![0; MIB as usize];
            let mut writer = LogWriter::new(PLACE, GUID);
            for (index, size) in sizes.iter().enumerate() {
                // Every entry that changes something changes page 100 + its number, and some that others change too.
                let mut numbers: Vec<u64> = (0..*size as u64).collect();
                numbers.first_mut().into_iter().for_each(|first| *first = 100 + index as u64);
                let mut batch = MetaBatch::default();
                let before = log.clone();
                writer.append(&pages(&numbers, index as u8), LEN, &mut batch);
                put(&mut log, &batch);
                let with_pages = |from: usize, to: usize| -> Vec<usize> {
                    (from..to).filter(|entry| sizes[*entry] > 0).collect()
                };
                prop_assert_eq!(counted(&log), with_pages(index.saturating_sub(1), index + 1));
                // A sector of the new entry is not there: the two before count, as if it had never been begun.
                if index > 0 {
                    let MetaOp::Write { offset, .. } = &batch.ops[0] else { panic!() };
                    let start = (offset.0 - PLACE.start) as usize / PAGE_BYTES;
                    let lost = (start + torn % (1 + size)) % (log.len() / PAGE_BYTES) * PAGE_BYTES;
                    let mut cut = log.clone();
                    cut[lost..lost + PAGE_BYTES].copy_from_slice(&before[lost..lost + PAGE_BYTES]);
                    prop_assert_eq!(counted(&cut), with_pages(index.saturating_sub(2), index));
                }
            }
        }
    }
}
