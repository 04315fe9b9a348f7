//! The block allocation table: the state of each block and where it lies.
//!
//! Knows entries and whether they make sense together. Does not know bitmaps of sectors.

use super::error::{Structure, VhdxError, VhdxErrorKind};
use super::layout::Layout;
use super::{FileRange, MIB};
use crate::limits::VHDX_FILE_BYTES_MAX;

/// Blocks of one page of the table in memory.
const PAGE_BLOCKS: usize = 1024;
const STATE_BITS: u32 = 3;

/// What the file says of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockState {
    /// Zeros, or the parent's.
    NotPresent,
    /// Anything; zeros here, also in a child.
    Undefined,
    Zero,
    Unmapped,
    /// All of it is in this file.
    Present,
    /// Its sector bitmap says which sectors are in this file.
    Partial,
}

impl BlockState {
    pub fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::NotPresent,
            1 => Self::Undefined,
            2 => Self::Zero,
            3 => Self::Unmapped,
            6 => Self::Present,
            7 => Self::Partial,
            _ => return None,
        })
    }

    pub fn bits(self) -> u8 {
        match self {
            Self::NotPresent => 0,
            Self::Undefined => 1,
            Self::Zero => 2,
            Self::Unmapped => 3,
            Self::Present => 6,
            Self::Partial => 7,
        }
    }

    /// True when the entry's offset means something.
    pub fn has_place(self) -> bool {
        matches!(self, Self::Present | Self::Partial)
    }
}

/// An entry: a state, and a place in MiB where the state has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub state: BlockState,
    /// 0 in a state without a place, whatever the file has there.
    pub mib: u32,
}

impl Entry {
    pub const NOT_PRESENT: Self = Self { state: BlockState::NotPresent, mib: 0 };

    /// Where the block lies, in bytes.
    pub fn offset(self) -> Option<u64> {
        self.state.has_place().then_some(u64::from(self.mib) * MIB)
    }

    /// The 64 bits of the file.
    pub fn encode(self) -> u64 {
        u64::from(self.state.bits()) | u64::from(self.mib) << 20
    }

    /// From the 64 bits of a file.
    pub fn parse(bits: u64) -> Result<Self, VhdxErrorKind> {
        let low = (bits & 7) as u8;
        let state = BlockState::from_bits(low).ok_or(VhdxErrorKind::BlockState(low))?;
        if bits & 0xF_FFF8 != 0 {
            return Err(VhdxErrorKind::BlockBits);
        }
        if !state.has_place() {
            // A place that was left over is not to be followed.
            return Ok(Self { state, mib: 0 });
        }
        let mib = bits >> 20;
        let range = VhdxErrorKind::BlockRange(mib.saturating_mul(MIB));
        if mib >= VHDX_FILE_BYTES_MAX / MIB {
            return Err(range);
        }
        Ok(Self { state, mib: u32::try_from(mib).map_err(|_| range)? })
    }

    fn pack(self) -> u32 {
        u32::from(self.state.bits()) | self.mib << STATE_BITS
    }

    fn unpack(packed: u32) -> Self {
        let state = BlockState::from_bits((packed & 7) as u8).unwrap_or(BlockState::NotPresent);
        Self { state, mib: packed >> STATE_BITS }
    }
}

const _: () = assert!(VHDX_FILE_BYTES_MAX / MIB <= 1 << (32 - STATE_BITS));

/// The table: an entry per block, one per sector bitmap. Memory is taken for pages of blocks that are not all in their
/// first state.
#[derive(Clone, Debug)]
pub struct Bat {
    pages: Vec<Option<Box<[u32; PAGE_BLOCKS]>>>,
    /// By chunk; empty without a parent.
    bitmaps: Vec<u32>,
    allocated: u64,
}

impl Bat {
    /// Nothing is there.
    pub fn empty(layout: &Layout) -> Self {
        let pages = (layout.blocks as usize).div_ceil(PAGE_BLOCKS);
        let bitmaps = if layout.differencing { layout.chunks as usize } else { 0 };
        Self { pages: vec![None; pages], bitmaps: vec![0; bitmaps], allocated: 0 }
    }

    pub fn get(&self, block: u32) -> Entry {
        let page = self.pages.get(block as usize / PAGE_BLOCKS).and_then(Option::as_ref);
        page.map_or(Entry::NOT_PRESENT, |page| Entry::unpack(page[block as usize % PAGE_BLOCKS]))
    }

    pub fn set(&mut self, block: u32, entry: Entry) {
        let before = self.get(block);
        if before == entry {
            return;
        }
        if let Some(page) = self.pages.get_mut(block as usize / PAGE_BLOCKS) {
            let page = page.get_or_insert_with(|| Box::new([0; PAGE_BLOCKS]));
            page[block as usize % PAGE_BLOCKS] = entry.pack();
            self.allocated += u64::from(entry.state.has_place());
            self.allocated -= u64::from(before.state.has_place());
        }
    }

    /// The entry of a chunk's sector bitmap.
    pub fn bitmap(&self, chunk: u32) -> Entry {
        self.bitmaps.get(chunk as usize).map_or(Entry::NOT_PRESENT, |packed| Entry::unpack(*packed))
    }

    pub fn set_bitmap(&mut self, chunk: u32, entry: Entry) {
        if let Some(slot) = self.bitmaps.get_mut(chunk as usize) {
            *slot = entry.pack();
        }
    }

    /// The entry of a block or of a sector bitmap.
    pub(super) fn of(&self, structure: Structure) -> Entry {
        match structure {
            Structure::Block(block) => self.get(block),
            Structure::SectorBitmap(chunk) => self.bitmap(chunk),
            _ => Entry::NOT_PRESENT,
        }
    }

    /// Another place for what has one.
    pub(super) fn put(&mut self, structure: Structure, mib: u32) {
        let entry = Entry { mib, ..self.of(structure) };
        match structure {
            Structure::Block(block) => self.set(block, entry),
            Structure::SectorBitmap(chunk) => self.set_bitmap(chunk, entry),
            _ => {}
        }
    }

    /// Blocks that have a place in the file.
    pub fn allocated(&self) -> u64 {
        self.allocated
    }

    /// How many blocks from `block` on, at most `max`, have the same state as it and no place.
    pub fn placeless_run(&self, block: u32, max: u32) -> u32 {
        let state = self.get(block).state;
        let mut count = 1;
        while count < max && self.get(block + count).state == state {
            count += 1;
        }
        count
    }

    /// Every entry with a place: blocks by number, then sector bitmaps by chunk.
    pub fn placed(&self) -> impl Iterator<Item = (Structure, Entry)> {
        let pages = self.pages.iter().enumerate().filter_map(|(index, page)| Some((index, page.as_deref()?)));
        let blocks = pages.flat_map(|(index, page)| {
            let numbered = page.iter().enumerate();
            numbered.map(move |(at, packed)| {
                (Structure::Block((index * PAGE_BLOCKS + at) as u32), Entry::unpack(*packed))
            })
        });
        let bitmaps = self.bitmaps.iter().enumerate();
        let bitmaps =
            bitmaps.map(|(chunk, packed)| (Structure::SectorBitmap(chunk as u32), Entry::unpack(*packed)));
        blocks.chain(bitmaps).filter(|(_, entry)| entry.state.has_place())
    }
}

/// A page of the table, at byte `place` of the file, as it is stored.
pub(super) fn encode_page(
    layout: &Layout,
    place: u64,
    entry_of: impl Fn(Structure) -> Entry,
    bytes: &mut Vec<u8>,
) {
    let ratio = u64::from(layout.chunk_blocks);
    let first = layout.entry_at(place);
    for index in first..first + (super::PAGE_BYTES as u64 / super::layout::ENTRY_BYTES) {
        let (chunk, within) = (index / (ratio + 1), index % (ratio + 1));
        // A table of the largest disk has fewer than 2^27 entries.
        let structure = if within == ratio {
            Structure::SectorBitmap(chunk as u32)
        } else {
            Structure::Block((chunk * ratio + within) as u32)
        };
        bytes.extend_from_slice(&entry_of(structure).encode().to_le_bytes());
    }
}

/// Looks at entries one after the other and finds what cannot be: states, places, overlaps.
///
/// One bit per MiB of the file, at most 16 MiB of memory.
#[derive(Debug)]
pub(super) struct Validator {
    layout: Layout,
    /// Bytes the file has, or will have once its log is replayed.
    len: u64,
    taken: Vec<u64>,
}

impl Validator {
    /// `reserved`: the header section, the log and the regions.
    pub(super) fn new(layout: Layout, len: u64, reserved: impl Iterator<Item = FileRange>) -> Self {
        let mibs = len.min(VHDX_FILE_BYTES_MAX).div_ceil(MIB);
        let mut validator = Self { layout, len, taken: vec![0; mibs.div_ceil(64) as usize] };
        for range in reserved {
            validator.take(range);
        }
        validator
    }

    /// Marks a range on the grid; false when some of it was taken.
    fn take(&mut self, range: FileRange) -> bool {
        let mut free = true;
        for mib in range.start / MIB..range.end.div_ceil(MIB) {
            let Some(word) = self.taken.get_mut((mib / 64) as usize) else { continue };
            free &= *word >> (mib % 64) & 1 == 0;
            *word |= 1 << (mib % 64);
        }
        free
    }

    /// The entry of a block.
    pub(super) fn block(&mut self, block: u32, bits: u64) -> Result<Entry, VhdxError> {
        let structure = Structure::Block(block);
        let place = self.layout.entry_offset(self.layout.block_entry(block));
        let fail = |kind| VhdxError::new(kind, structure, place);
        let entry = Entry::parse(bits).map_err(fail)?;
        if entry.state == BlockState::Partial && !self.layout.differencing {
            return Err(fail(VhdxErrorKind::BlockState(entry.state.bits())));
        }
        self.place(entry, self.layout.block_bytes()).map_err(fail)?;
        Ok(entry)
    }

    /// The entry of a chunk's sector bitmap, in a file with a parent: present or not.
    pub(super) fn bitmap(&mut self, chunk: u32, bits: u64) -> Result<Entry, VhdxError> {
        let place = self.layout.entry_offset(self.layout.bitmap_entry(chunk));
        let fail = |kind| VhdxError::new(kind, Structure::SectorBitmap(chunk), place);
        let entry = Entry::parse(bits).map_err(fail)?;
        if !matches!(entry.state, BlockState::NotPresent | BlockState::Present) {
            return Err(fail(VhdxErrorKind::BlockState(entry.state.bits())));
        }
        self.place(entry, MIB).map_err(fail)?;
        Ok(entry)
    }

    fn place(&mut self, entry: Entry, len: u64) -> Result<(), VhdxErrorKind> {
        let Some(start) = entry.offset() else { return Ok(()) };
        let range = FileRange { start, end: start + len };
        if range.start < MIB || range.end > self.len {
            return Err(VhdxErrorKind::BlockRange(start));
        }
        if self.take(range) { Ok(()) } else { Err(VhdxErrorKind::BlockOverlap(start)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::SectorCount;

    fn layout(differencing: bool) -> Layout {
        Layout {
            sectors: SectorCount(4096 * 3000),
            block_sectors: 4096,
            bit_sectors: 1,
            chunk_blocks: 2048,
            blocks: 3000,
            chunks: 2,
            differencing,
            table_offset: 3 << 20,
        }
    }

    fn validator(differencing: bool) -> Validator {
        let reserved = [FileRange { start: 0, end: 4 << 20 }];
        Validator::new(layout(differencing), 100 << 20, reserved.into_iter())
    }

    fn at(mib: u64, state: u64) -> u64 {
        mib << 20 | state
    }

    #[test]
    fn an_entry_is_what_was_encoded() {
        for (state, mib) in [(0, 0), (2, 0), (6, 77), (7, (1 << 27) - 1)] {
            let entry = Entry::parse(at(mib, state)).unwrap();
            assert_eq!((entry.encode(), Entry::unpack(entry.pack())), (at(mib, state), entry));
        }
        assert_eq!(Entry::parse(at(9, 3)).unwrap().mib, 0, "a left-over place");
        assert_eq!(Entry::parse(4), Err(VhdxErrorKind::BlockState(4)));
        assert_eq!(Entry::parse(6 | 8), Err(VhdxErrorKind::BlockBits));
        assert!(matches!(Entry::parse(at(1 << 43, 6)), Err(VhdxErrorKind::BlockRange(_))));
    }

    #[test]
    fn blocks_outside_the_file_or_over_something_are_refused() {
        let kind = |bits: &[u64]| {
            let mut validator = validator(false);
            bits.iter()
                .enumerate()
                .try_for_each(|(block, bits)| validator.block(block as u32, *bits).map(drop))
        };
        assert_eq!(kind(&[at(4, 6), at(6, 6), at(98, 6), 0, at(1, 2)]), Ok(()));
        for mib in [0, 99, 100, 5000] {
            let found = kind(&[at(mib, 6)]).unwrap_err().kind;
            assert_eq!(found, VhdxErrorKind::BlockRange(mib << 20), "{mib}");
        }
        for mib in [3, 8, 9, 7] {
            let found = kind(&[at(8, 6), at(mib, 6)]).unwrap_err();
            assert_eq!(found.kind, VhdxErrorKind::BlockOverlap(mib << 20), "{mib}");
            assert_eq!(found.structure, Structure::Block(1));
        }
    }

    #[test]
    fn a_partial_block_needs_a_parent_and_a_bitmap_is_there_or_not() {
        assert!(validator(false).block(0, at(4, 7)).is_err());
        assert!(validator(true).block(0, at(4, 7)).is_ok());
        assert!(validator(true).bitmap(0, at(4, 6)).is_ok());
        assert!(validator(true).bitmap(0, at(4, 7)).is_err());
        assert!(validator(true).bitmap(1, 0).is_ok());
    }

    #[test]
    fn a_table_takes_memory_only_where_something_is() {
        let mut bat = Bat::empty(&layout(true));
        bat.set(2047, Entry { state: BlockState::Partial, mib: 4 });
        bat.set_bitmap(0, Entry { state: BlockState::Present, mib: 9 });
        assert_eq!(bat.pages.iter().filter(|page| page.is_some()).count(), 1);
        assert_eq!(
            (bat.allocated(), bat.get(2047).offset(), bat.get(2048)),
            (1, Some(4 << 20), Entry::NOT_PRESENT)
        );
        assert_eq!(
            bat.placed().map(|(structure, _)| structure).collect::<Vec<_>>(),
            [Structure::Block(2047), Structure::SectorBitmap(0)]
        );
        assert_eq!((bat.placeless_run(0, 5000), bat.placeless_run(2048, 952)), (2047, 952));
        bat.set(2047, Entry::NOT_PRESENT);
        assert_eq!(bat.allocated(), 0);
    }
}
