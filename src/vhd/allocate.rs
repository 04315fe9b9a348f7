//! Writes to an open image: where they go, and which of them need a commit.
//!
//! Knows reserved blocks and bits whose data is on its way. Does not know the order in which the file learns about
//! them (`commit`).

use super::bitmap_table::{BitmapTable, PendingBits};
use super::block_bitmap::BlockBitmap;
use super::commit::Phase;
use super::image::{Body, OpenMode, Sparse, VhdImage};
use super::layout::Layout;
use super::space::{Extension, Space};
use crate::commits::{Commits, Wait};
pub use crate::plan::WriteRun;
use crate::plan::{CommitSeq, PendingRecord, RecordSink, WriteRefused};
use crate::units::{BlockIndex, ByteOffset, SECTOR_BYTES, SectorRange};
use std::collections::BTreeMap;

/// A block that has its place but no table entry in the file yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reserved {
    pub(super) entry: u32,
    pub(super) wait: Wait,
    /// A record of it survives this process: it is in the table in memory, and reads see it.
    pub(super) recorded: bool,
}

/// What a writable dynamic or differencing image has in memory.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) space: Space,
    pub(super) reserved: BTreeMap<u32, Reserved>,
    /// Blocks whose bits or table entry go with the next commit, and with the one that runs.
    pub(super) pending: Vec<BlockIndex>,
    pub(super) committing: Vec<BlockIndex>,
    pub(super) commits: Commits,
    /// Dynamic: blocks of other writers whose bitmaps must say "all" before data goes in; and those in this round.
    pub(super) fill: Vec<(BlockIndex, u32)>,
    pub(super) filling: Vec<(BlockIndex, u32)>,
    pub(super) extend_wanted: bool,
    pub(super) extension: Option<Extension>,
    pub(super) phase: Phase,
}

impl Writer {
    pub(super) fn new(space: Space) -> Self {
        Self {
            space,
            reserved: BTreeMap::new(),
            pending: Vec::new(),
            committing: Vec::new(),
            commits: Commits::default(),
            fill: Vec::new(),
            filling: Vec::new(),
            extend_wanted: false,
            extension: None,
            phase: Phase::Idle,
        }
    }
}

impl VhdImage {
    /// Where a write of the run at `sector`, at most `max` sectors of it, goes.
    ///
    /// # Errors
    /// Read-only, beyond the end, or an earlier failure.
    pub fn write_run_at(&mut self, sector: u64, max: u64) -> Result<WriteRun, WriteRefused> {
        if self.mode != OpenMode::Writable {
            return Err(WriteRefused::ReadOnly);
        }
        let inside = self.footer.sectors.0.saturating_sub(sector).min(max);
        if inside == 0 {
            return Err(WriteRefused::OutOfRange);
        }
        match &mut self.body {
            Body::Fixed => {
                let offset = ByteOffset(sector * SECTOR_BYTES);
                Ok(WriteRun::InPlace { offset, sectors: inside, commit: false })
            }
            Body::Sparse(sparse) => sparse.write_run_at(sector, inside),
        }
    }

    /// Gives the block of `sector` its place. False when no block is prepared: run the image's batches, ask again.
    ///
    /// # Errors
    /// [`WriteRefused::NoSpace`] once after an attempt to extend the file found no space, [`WriteRefused::FormatFull`]
    /// at 2 TiB.
    pub fn reserve(&mut self, sector: u64) -> Result<bool, WriteRefused> {
        match &mut self.body {
            Body::Fixed => Ok(true),
            Body::Sparse(sparse) => sparse.reserve(sector),
        }
    }

    /// A write of `range`, runs in place, was handed out. Each sector of it is reported exactly once, through
    /// [`Self::data_written`] or [`Self::write_abandoned`]; until then its bitmaps stay in memory.
    pub fn write_resolved(&mut self, range: SectorRange) {
        if let Body::Sparse(sparse) = &mut self.body {
            sparse.each_block(range, |sparse, block, _, count| {
                if let Some(entry) = sparse.bitmaps.get(block) {
                    entry.writes(sparse.layout.block_sectors).in_flight += u64::from(count);
                }
            });
        }
    }

    /// The data of `range`, or a part of what was resolved, is in the file. The commit that completes the write; one
    /// that has ended where `sink` took records of all that the file does not say yet.
    pub fn data_written(&mut self, range: SectorRange, sink: &mut dyn RecordSink) -> CommitSeq {
        let mut seq = CommitSeq(0);
        if let Body::Sparse(sparse) = &mut self.body {
            sparse.each_block(range, |sparse, block, at, count| {
                seq = seq.max(sparse.block_written(block, at, count, sink));
            });
        }
        seq
    }

    /// A write of `range` failed or was given up: its sectors keep the content they had, as far as reads see.
    pub fn write_abandoned(&mut self, range: SectorRange) {
        if let Body::Sparse(sparse) = &mut self.body {
            sparse.each_block(range, |sparse, block, _, count| sparse.release(block, count));
        }
    }
}

impl Sparse {
    fn write_run_at(&mut self, sector: u64, max: u64) -> Result<WriteRun, WriteRefused> {
        let Some(writer) = &mut self.writer else { return Err(WriteRefused::ReadOnly) };
        writer.commits.admit_write()?;
        let (block, at) = self.layout.locate(sector);
        let count = max.min(u64::from(self.layout.block_sectors - at)) as u32;
        let in_place = |entry, commit| WriteRun::InPlace {
            offset: self.layout.data_offset(entry, at),
            sectors: u64::from(count),
            commit,
        };
        if let Some(reserved) = writer.reserved.get(&block.0).filter(|reserved| !reserved.recorded) {
            return Ok(in_place(reserved.entry, true));
        }
        let Some(entry) = self.bat.get(block) else {
            return Ok(WriteRun::Unallocated { sectors: u64::from(count) });
        };
        if self.full.contains(block) {
            return Ok(in_place(entry, false));
        }
        match self.bitmaps.get(block) {
            Some(bitmap) if self.differencing => Ok(in_place(entry, !bitmap.set.all_set(at, count))),
            Some(_) => {
                writer.commits.tell_no_space()?;
                let queued = writer.fill.iter().chain(&writer.filling).any(|(other, _)| *other == block);
                if !queued {
                    writer.fill.push((block, entry));
                }
                Ok(WriteRun::NeedMetadata)
            }
            None => Ok(WriteRun::NeedBitmap(self.request_bitmap(block, entry))),
        }
    }

    fn reserve(&mut self, sector: u64) -> Result<bool, WriteRefused> {
        let (block, _) = self.layout.locate(sector);
        let unprepared = self.unprepared_blocks();
        let Some(writer) = &mut self.writer else { return Err(WriteRefused::ReadOnly) };
        if self.bat.get(block).is_some() || writer.reserved.contains_key(&block.0) {
            return Ok(true);
        }
        let Some(entry) = writer.space.take() else {
            writer.commits.tell_no_space()?;
            if writer.extension.is_none() && writer.space.plan(&self.layout, unprepared).is_none() {
                return Err(WriteRefused::FormatFull);
            }
            writer.extend_wanted = true;
            return Ok(false);
        };
        writer.commits.found_space();
        let low = writer.space.is_low();
        writer.extend_wanted |= low && unprepared > 0 && writer.extension.is_none();
        writer.reserved.insert(block.0, Reserved { entry, wait: Wait::Data, recorded: false });
        if self.differencing {
            self.bitmaps.insert(block, BlockBitmap::empty(self.layout.block_sectors)).reserved = true;
        } else {
            // Its bitmap says "all" since the group was prepared.
            self.full.insert(block);
        }
        Ok(true)
    }

    /// Blocks that have neither a place nor a prepared one waiting.
    pub(super) fn unprepared_blocks(&self) -> u64 {
        let placed = self
            .writer
            .as_ref()
            .map_or(0, |writer| writer.reserved.len() as u64 + u64::from(writer.space.pool_left));
        u64::from(self.layout.blocks).saturating_sub(self.allocated + placed)
    }

    /// Calls `f` with each block of `range`, the first sector in it and how many.
    fn each_block(&mut self, range: SectorRange, mut f: impl FnMut(&mut Self, BlockIndex, u32, u32)) {
        let mut sector = range.start().0;
        let end = range.end().0.min(self.layout.sectors.0);
        while sector < end {
            let (block, at) = self.layout.locate(sector);
            let count = (end - sector).min(u64::from(self.layout.block_sectors - at)) as u32;
            f(self, block, at, count);
            sector += u64::from(count);
        }
    }

    /// The number of the commit that completes a write to these sectors; one that has finished when none is needed.
    fn block_written(
        &mut self,
        block: BlockIndex,
        at: u32,
        count: u32,
        sink: &mut dyn RecordSink,
    ) -> CommitSeq {
        self.release(block, count);
        if self.differencing {
            self.sectors_written(block, at, count, sink)
        } else {
            self.new_block_written(block, at, count, sink)
        }
    }

    /// In a dynamic disk the bits are set before the data is written: only a new block's table entry is pending.
    fn new_block_written(
        &mut self,
        block: BlockIndex,
        at: u32,
        count: u32,
        sink: &mut dyn RecordSink,
    ) -> CommitSeq {
        let Some(writer) = &mut self.writer else { return CommitSeq(0) };
        let next = writer.commits.next();
        let Some(reserved) = writer.reserved.get_mut(&block.0).filter(|reserved| !reserved.recorded) else {
            return writer.commits.finished();
        };
        if reserved.wait == Wait::Committing {
            return writer.commits.begun();
        }
        if reserved.wait == Wait::Data {
            reserved.wait = Wait::Commit;
            writer.pending.push(block);
        }
        let place = Layout::bitmap_offset(reserved.entry);
        if !writer.commits.failed && sink.record(PendingRecord { block, first: at, sectors: count, place }) {
            reserved.recorded = true;
            self.bat.set(block, reserved.entry);
            return writer.commits.finished();
        }
        writer.commits.wanted = true;
        next
    }

    fn sectors_written(
        &mut self,
        block: BlockIndex,
        at: u32,
        count: u32,
        sink: &mut dyn RecordSink,
    ) -> CommitSeq {
        let Some(writer) = &mut self.writer else { return CommitSeq(0) };
        let next = writer.commits.next();
        let Some(bitmap) = self.bitmaps.get(block) else {
            // A full block needs no bits. Anything else was not resolved, or reported twice: its bits are unknown.
            if self.full.contains(block) {
                return writer.commits.finished();
            }
            writer.commits.failed = true;
            return next;
        };
        if bitmap.set.all_set(at, count) {
            return writer.commits.finished();
        }
        let reserved = writer.reserved.get_mut(&block.0);
        let entry = reserved.as_ref().map(|reserved| reserved.entry).or_else(|| self.bat.get(block));
        let place = Layout::bitmap_offset(entry.unwrap_or_default());
        let recorded =
            !writer.commits.failed && sink.record(PendingRecord { block, first: at, sectors: count, place });
        let pending =
            &mut bitmap.writes.get_or_insert_with(|| PendingBits::none(self.layout.block_sectors)).pending;
        if pending.is_clear() {
            writer.pending.push(block);
        }
        pending.set_missing(at, count, &bitmap.set);
        if let Some(reserved) = reserved {
            if reserved.wait == Wait::Data {
                reserved.wait = Wait::Commit;
            }
            if recorded && !reserved.recorded {
                reserved.recorded = true;
                self.bat.set(block, reserved.entry);
            }
        }
        if recorded {
            bitmap.set.set(at, count);
            return writer.commits.finished();
        }
        writer.commits.wanted = true;
        next
    }

    /// `count` sectors of a resolved write to `block` are accounted for.
    fn release(&mut self, block: BlockIndex, count: u32) {
        if let Some(entry) = self.bitmaps.get(block) {
            if let Some(writes) = &mut entry.writes {
                writes.in_flight = writes.in_flight.saturating_sub(u64::from(count));
            }
            forget_full(&mut self.bitmaps, self.full.contains(block), block);
        }
    }
}

/// Drops the bitmap of a full block once nothing refers to it.
pub(super) fn forget_full(bitmaps: &mut BitmapTable, full: bool, block: BlockIndex) {
    if full && bitmaps.get(block).is_some_and(|entry| entry.is_idle()) {
        bitmaps.remove_full(block);
    }
}
