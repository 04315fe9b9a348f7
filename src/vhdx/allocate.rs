//! Writes to an open image: where they go, and which of them need a commit.
//!
//! Knows reserved blocks and bits whose data is on its way. Does not know the order in which the file learns about
//! them (`commit`).

use super::MIB;
use super::bat::{BlockState, Entry};
use super::commit::{Part, Phase};
use super::image::VhdxImage;
use super::layout::PAGE_BITS;
use super::log_write::LogWriter;
use super::sector_bitmap::BitmapPage;
use super::space::{Extension, Space};
use crate::commits::{Commits, Wait};
use crate::limits::VHDX_PENDING_MAX;
use crate::plan::{BitmapRequest, CommitSeq, OpenMode, PendingRecord, RecordSink, WriteRefused, WriteRun};
use crate::units::{BlockIndex, ByteOffset, SECTOR_BYTES, Sector, SectorRange};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Identifiers nobody has used, for one opening of an image: a format asks nobody for randomness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteIds {
    pub file_write: Uuid,
    pub data_write: Uuid,
    pub log: Uuid,
}

/// An entry that is not in the log yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub(super) entry: Entry,
    pub(super) wait: Wait,
    /// The block gets its place; otherwise it had it, and only its state changes.
    pub(super) fresh: bool,
    /// A record of it survives this process: it is in the table in memory, and reads see it. What the file has instead.
    pub(super) recorded_over: Option<Entry>,
}

impl Change {
    /// Writes to it wait for its entry.
    fn is_hidden(&self) -> bool {
        self.fresh && self.recorded_over.is_none()
    }
}

/// How far the headers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Marked {
    /// As they were found: the file was not touched.
    No,
    /// A write waits for them.
    Wanted,
    /// Both say that file and data have changed.
    Yes,
}

/// What a writable image has in memory.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) ids: WriteIds,
    pub(super) marked: Marked,
    /// Once both headers name it.
    pub(super) log: Option<LogWriter>,
    pub(super) space: Space,
    /// The end of all that the file refers to.
    pub(super) used_end: u64,
    /// By block.
    pub(super) changes: BTreeMap<u32, Change>,
    /// Sector bitmaps that have a place and no entry in the log yet, by chunk: the place in MiB.
    pub(super) new_bitmaps: BTreeMap<u32, u32>,
    /// Blocks whose entry, and pages whose bits, go with the next commit.
    pub(super) pending_blocks: Vec<u32>,
    pub(super) pending_pages: Vec<u32>,
    pub(super) commits: Commits,
    /// Blocks whose last sector was written: their entry says so in some later commit.
    pub(super) filled: Vec<u32>,
    /// What is left of the commit that runs, and the part of it that is being logged.
    pub(super) left_blocks: Vec<u32>,
    pub(super) left_pages: Vec<u32>,
    pub(super) part: Part,
    /// What the last entry of the log holds: not in its place in the file yet.
    pub(super) unapplied: Part,
    pub(super) extend_wanted: bool,
    pub(super) extension: Option<Extension>,
    /// All blocks are being given up.
    pub(super) resetting: bool,
    pub(super) phase: Phase,
}

impl Writer {
    pub(super) fn new(ids: WriteIds, space: Space, used_end: u64) -> Self {
        Self {
            ids,
            marked: Marked::No,
            log: None,
            space,
            used_end,
            changes: BTreeMap::new(),
            new_bitmaps: BTreeMap::new(),
            pending_blocks: Vec::new(),
            pending_pages: Vec::new(),
            commits: Commits::default(),
            filled: Vec::new(),
            left_blocks: Vec::new(),
            left_pages: Vec::new(),
            part: Part::default(),
            unapplied: Part::default(),
            extend_wanted: false,
            extension: None,
            resetting: false,
            phase: Phase::Idle,
        }
    }

    /// So much waits that the next commit comes first.
    fn is_full(&self) -> bool {
        self.pending_blocks.len() + self.pending_pages.len() >= VHDX_PENDING_MAX
    }
}

impl VhdxImage {
    /// Lets an image that was opened writable be written. Until the first write the file stays as it is.
    pub fn begin_writing(&mut self, ids: WriteIds) {
        if self.mode != OpenMode::Writable {
            return;
        }
        let placed = self.bat.placed().filter_map(|(structure, entry)| {
            let block = matches!(structure, super::Structure::Block(_));
            Some(entry.offset()? + if block { self.layout.block_bytes() } else { MIB })
        });
        let regions = self.regions.all().chain([self.header.log()]).map(|range| range.end);
        let end = placed.chain(regions).max().unwrap_or(MIB).next_multiple_of(MIB);
        self.writer = Some(Box::new(Writer::new(ids, Space::new(self.file_len, end), end)));
    }

    /// What children will have to name once the image has been written; `None` where it is not open for writing.
    pub fn next_data_write_guid(&self) -> Option<Uuid> {
        self.writer.as_ref().map(|writer| writer.ids.data_write)
    }

    /// The writes to come leave the disk as it reads: children of it know it still afterwards.
    pub fn keep_data_write_guid(&mut self) {
        if let Some(writer) = &mut self.writer {
            writer.ids.data_write = self.header.data_write_guid;
        }
    }

    /// Where a write of the run at `sector`, at most `max` sectors of it, goes.
    ///
    /// # Errors
    /// Read-only, beyond the end, no whole logical sector, or an earlier failure.
    pub fn write_run_at(&mut self, sector: u64, max: u64) -> Result<WriteRun, WriteRefused> {
        let Some(writer) = &mut self.writer else { return Err(WriteRefused::ReadOnly) };
        writer.commits.admit_write()?;
        let inside = self.metadata.sectors.0.saturating_sub(sector).min(max);
        if inside == 0 {
            return Err(WriteRefused::OutOfRange);
        }
        if writer.marked != Marked::Yes {
            writer.commits.tell_no_space()?;
            writer.marked = Marked::Wanted;
            return Ok(WriteRun::NeedMetadata);
        }
        let (block, at) = self.layout.locate(sector);
        let sectors = inside.min(u64::from(self.layout.block_sectors - at));
        let (entry, fresh) = self.entry_of(block);
        let Some(start) = entry.offset() else { return self.unallocated_write(block, sectors) };
        let offset = ByteOffset(start + u64::from(at) * SECTOR_BYTES);
        match entry.state {
            BlockState::Partial if !fresh => self.partial_write(sector, sectors, offset),
            BlockState::Partial if !self.is_aligned(sector, sectors) => Err(WriteRefused::Misaligned),
            _ => Ok(WriteRun::InPlace { offset, sectors, commit: fresh }),
        }
    }

    /// What a write sees of a block: the entry of the table or, once it has its place, the one to come; and whether
    /// its place is new.
    ///
    /// A block that is there in part becomes wholly present for writes when its new entry is about to be logged: from
    /// then on its bits are looked at no more (none of its writes is in flight then).
    fn entry_of(&self, block: u32) -> (Entry, bool) {
        let change = self.writer.as_ref().and_then(|writer| writer.changes.get(&block));
        match change {
            Some(change) if change.is_hidden() => (change.entry, true),
            Some(change) if change.wait == Wait::Committing => (change.entry, false),
            _ => (self.bat.get(block), false),
        }
    }

    /// Bits speak for logical sectors: a part of one cannot be written alone.
    pub(super) fn is_aligned(&self, sector: u64, sectors: u64) -> bool {
        let bit_sectors = u64::from(self.layout.bit_sectors);
        sector.is_multiple_of(bit_sectors) && sectors.is_multiple_of(bit_sectors)
    }

    /// A run of one page.
    fn partial_write(&mut self, sector: u64, max: u64, offset: ByteOffset) -> Result<WriteRun, WriteRefused> {
        let (page, bit) = self.layout.bit_of(sector);
        let bit_sectors = u64::from(self.layout.bit_sectors);
        let within = sector % bit_sectors;
        let bits = (within + max).div_ceil(bit_sectors).min(u64::from(PAGE_BITS - bit)) as u32;
        let sectors = (u64::from(bits) * bit_sectors - within).min(max);
        let aligned = self.is_aligned(sector, sectors);
        let Some(kept) = self.bitmaps.get(page) else { return self.page_request(page) };
        let commit = !kept.set.all_set(bit, bits);
        if commit && !aligned {
            return Err(WriteRefused::Misaligned);
        }
        if commit && self.must_commit_first()? {
            return Ok(WriteRun::NeedMetadata);
        }
        Ok(WriteRun::InPlace { offset, sectors, commit })
    }

    fn unallocated_write(&mut self, block: u32, sectors: u64) -> Result<WriteRun, WriteRefused> {
        if self.must_commit_first()? {
            return Ok(WriteRun::NeedMetadata);
        }
        // A page it shares with its neighbours must be known before the block's bits in it are cleared.
        let pages = self.layout.pages_of(block);
        let shared = self.layout.bits_of_block() < PAGE_BITS;
        if self.becomes(block) == BlockState::Partial
            && shared
            && self.bitmaps.get(pages.start).is_none()
            && self.bat.bitmap(self.layout.chunk_of(block)).state.has_place()
        {
            return self.page_request(pages.start);
        }
        Ok(WriteRun::Unallocated { sectors })
    }

    /// True when so much waits that the next commit comes first.
    ///
    /// # Errors
    /// That commit has found no space: said once, then it is tried again.
    fn must_commit_first(&mut self) -> Result<bool, WriteRefused> {
        let Some(writer) = self.writer.as_mut().filter(|writer| writer.is_full()) else { return Ok(false) };
        writer.commits.wanted = true;
        writer.commits.tell_no_space().map(|()| true)
    }

    fn page_request(&mut self, page: u32) -> Result<WriteRun, WriteRefused> {
        // Opening made sure that a block which is there in part has its bitmap.
        let offset = ByteOffset(self.page_offset(page).ok_or(WriteRefused::Failed)?);
        let (block, len) = (BlockIndex(page), super::PAGE_BYTES as u32);
        let ticket = self.bitmaps.next_ticket();
        Ok(WriteRun::NeedBitmap(BitmapRequest { block, offset, len, ticket }))
    }

    /// The state of a block once it has a place: what the parent shows through is there in part. In any other state
    /// its sectors were zeros, and stay so where nothing is written.
    pub(super) fn becomes(&self, block: u32) -> BlockState {
        match self.bat.get(block).state {
            BlockState::NotPresent if self.layout.differencing => BlockState::Partial,
            _ => BlockState::Present,
        }
    }

    /// Gives the block of `sector` its place. False when no space is prepared: run the image's batches, ask again.
    ///
    /// # Errors
    /// [`WriteRefused::NoSpace`] once after an attempt to extend the file found no space, [`WriteRefused::FormatFull`]
    /// when the file cannot become longer.
    pub fn reserve(&mut self, sector: u64) -> Result<bool, WriteRefused> {
        let (block, _) = self.layout.locate(sector);
        let chunk = self.layout.chunk_of(block);
        let state = self.becomes(block);
        let block_bytes = self.layout.block_bytes();
        let unplaced = u64::from(self.layout.blocks) - self.bat.allocated();
        let Some(writer) = &mut self.writer else { return Err(WriteRefused::ReadOnly) };
        if self.bat.get(block).state.has_place() || writer.changes.contains_key(&block) {
            return Ok(true);
        }
        let bitmap = state == BlockState::Partial
            && !self.bat.bitmap(chunk).state.has_place()
            && !writer.new_bitmaps.contains_key(&chunk);
        let wanted = block_bytes + if bitmap { MIB } else { 0 };
        if writer.space.left() < wanted {
            writer.commits.tell_no_space()?;
            let more = if bitmap { MIB } else { 0 };
            if writer.extension.is_none() && writer.space.plan(block_bytes, 1, more).is_none() {
                return Err(WriteRefused::FormatFull);
            }
            writer.extend_wanted = true;
            return Ok(false);
        }
        writer.commits.found_space();
        if bitmap && let Some(mib) = writer.space.take(MIB) {
            writer.new_bitmaps.insert(chunk, mib);
        }
        let Some(mib) = writer.space.take(block_bytes) else { return Ok(false) };
        let low = writer.space.is_low(block_bytes) && unplaced > writer.changes.len() as u64;
        writer.extend_wanted |= low && writer.extension.is_none();
        let entry = Entry { state, mib };
        let change = Change { entry, wait: Wait::Data, fresh: true, recorded_over: None };
        writer.changes.insert(block, change);
        if state == BlockState::Partial {
            self.clear_bits(block);
        }
        Ok(true)
    }

    /// What the file says of the bits of a block that was not there means nothing.
    pub(super) fn clear_bits(&mut self, block: u32) {
        let (first, count) = self.layout.bits_in_page(block);
        for page in self.layout.pages_of(block) {
            let kept = self.bitmaps.get_or_insert(page, BitmapPage::empty());
            kept.set.unset(first, count);
            kept.writes().reserved += 1;
        }
    }

    /// A write of `range`, runs in place, was handed out. Each sector of it is reported exactly once, through
    /// [`Self::data_written`] or [`Self::write_abandoned`]; until then its bitmap pages stay in memory.
    pub fn write_resolved(&mut self, range: SectorRange) {
        self.each_block(range, |image, _, state, range| {
            if state == BlockState::Partial {
                image.each_page(range, |image, page, bits| {
                    if let Some(kept) = image.bitmaps.get(page) {
                        kept.writes().in_flight += u64::from(bits.len);
                    }
                });
            }
        });
    }

    /// A write of `range` failed or was given up: its sectors keep the content they had, as far as reads see.
    pub fn write_abandoned(&mut self, range: SectorRange) {
        self.each_block(range, |image, _, state, range| {
            if state == BlockState::Partial {
                image.each_page(range, |image, page, bits| image.release(page, bits));
            }
        });
    }

    /// The data of `range`, or a part of what was resolved, is in the file. The commit that completes the write; one
    /// that has ended where `sink` took records of all that the file does not say yet.
    pub fn data_written(&mut self, range: SectorRange, sink: &mut dyn RecordSink) -> CommitSeq {
        let mut seq = CommitSeq(0);
        self.each_block(range, |image, block, state, range| {
            if state == BlockState::Partial {
                image.each_page(range, |image, page, bits| image.release(page, bits));
            }
            seq = seq.max(image.block_written(block, state, range, sink));
        });
        seq
    }

    /// The number of the commit that completes a write to these sectors; one that has finished when none is needed.
    fn block_written(
        &mut self,
        block: u32,
        state: BlockState,
        range: SectorRange,
        sink: &mut dyn RecordSink,
    ) -> CommitSeq {
        let (entry, hidden) = self.entry_of(block);
        let missing = state == BlockState::Partial && self.lacks_bits(range);
        let Some(writer) = &mut self.writer else { return CommitSeq(0) };
        if !hidden && !missing {
            return writer.commits.finished();
        }
        let next = writer.commits.next();
        let mut seq = if missing { next } else { writer.commits.finished() };
        if let Some(change) = writer.changes.get_mut(&block).filter(|_| hidden) {
            let with = if change.wait == Wait::Committing { writer.commits.begun() } else { next };
            seq = seq.max(with);
            if change.wait == Wait::Data {
                change.wait = Wait::Commit;
                writer.pending_blocks.push(block);
            }
        }
        let (_, first) = self.layout.locate(range.start().0);
        // A block has fewer than 2^32 sectors.
        let sectors = range.count().0 as u32;
        let place = ByteOffset(entry.offset().unwrap_or_default());
        let record = PendingRecord { block: BlockIndex(block), first, sectors, place };
        let recorded = !writer.commits.failed && sink.record(record);
        if missing {
            self.each_page(range, |image, page, bits| image.bits_pending(page, bits, recorded));
        }
        if recorded {
            self.recorded(block);
            return self.writer.as_ref().map_or(CommitSeq(0), |writer| writer.commits.finished());
        }
        if let Some(writer) = &mut self.writer {
            writer.commits.wanted = true;
        }
        seq
    }

    /// A record of the block is stored: reads see it.
    pub(super) fn recorded(&mut self, block: u32) {
        let before = self.bat.get(block);
        let Some(writer) = &mut self.writer else { return };
        if let Some(change) = writer.changes.get_mut(&block).filter(|change| change.is_hidden()) {
            change.recorded_over = Some(before);
            self.bat.set(block, change.entry);
        }
    }

    /// True when reads do not see all of these sectors of a block that is there in part.
    fn lacks_bits(&mut self, range: SectorRange) -> bool {
        let mut missing = false;
        self.each_page(range, |image, page, bits| {
            let known = image.bitmaps.get(page).is_some_and(|kept| kept.set.all_set(bits.first, bits.count));
            missing |= !known;
        });
        missing
    }

    /// The bits go with the next commit; reads see them at once when they are `recorded`.
    pub(super) fn bits_pending(&mut self, page: u32, bits: Bits, recorded: bool) {
        let Some(writer) = &mut self.writer else { return };
        let Some(kept) = self.bitmaps.get(page) else {
            // It was not resolved, or reported twice: its bits are unknown.
            writer.commits.failed = true;
            return;
        };
        if kept.add_pending(bits.first, bits.count, recorded) {
            writer.pending_pages.push(page);
        }
    }

    /// A piece of a resolved write is accounted for.
    fn release(&mut self, page: u32, bits: Bits) {
        if let Some(kept) = self.bitmaps.get(page)
            && let Some(writes) = kept.has_writes_mut()
        {
            writes.in_flight = writes.in_flight.saturating_sub(u64::from(bits.len));
            kept.settle();
        }
    }

    /// Calls `f` with each block of `range`, its state as writes see it, and the part of the range in it.
    fn each_block(&mut self, range: SectorRange, mut f: impl FnMut(&mut Self, u32, BlockState, SectorRange)) {
        let mut at = range.start().0;
        let end = range.end().0.min(self.metadata.sectors.0);
        while at < end {
            let (block, within) = self.layout.locate(at);
            let to = end.min(at + u64::from(self.layout.block_sectors - within));
            let state = self.entry_of(block).0.state;
            f(self, block, state, SectorRange::between(Sector(at), Sector(to)));
            at = to;
        }
    }

    /// Calls `f` with each page of sector bitmaps that speaks for `range`.
    pub(super) fn each_page(&mut self, range: SectorRange, mut f: impl FnMut(&mut Self, u32, Bits)) {
        let bit_sectors = u64::from(self.layout.bit_sectors);
        let mut at = range.start().0;
        while at < range.end().0 {
            let (page, first) = self.layout.bit_of(at);
            let in_page = u64::from(PAGE_BITS - first) * bit_sectors - at % bit_sectors;
            let sectors = (range.end().0 - at).min(in_page);
            // A page has 2^15 bits of at most 8 sectors.
            let count = (at % bit_sectors + sectors).div_ceil(bit_sectors) as u32;
            f(self, page, Bits { first, count, len: sectors as u32 });
            at += sectors;
        }
    }
}

/// Bits of a page, and the sectors they speak for that are meant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bits {
    first: u32,
    count: u32,
    len: u32,
}
