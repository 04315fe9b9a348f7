//! The metadata machine: in which order an open image changes its file.
//!
//! Knows the write order of `FORMAT.md` as phases. Does not know files: each phase is a batch of operations that the
//! executor runs, all of them, before it asks for the next.
//!
//! ```text
//! first write:  Header(Mark)   both headers: file and data have changed; the log begins with an empty entry
//!               Header(Open)   both headers: the log is in use
//! a round:      Extend         a longer file, its old bytes zeroed: space to be handed out
//!               Sync           covers the data written so far, that space, and the entry of the round before
//!               Log            the entry of this commit, from a shadow; the pages of the entry before, in their places
//! close:        Settle         Sync, the pages of the last entry in their places, Sync
//!               Header(Clear)  both headers: the log is empty
//!               Cut            the unused end
//! emptied:      Header(Clear), then Reset: a table without entries, nothing behind the regions (`reset`)
//! ```
//!
//! Phases without work are skipped. A commit that is too long for one entry takes several turns of Sync and Log.

use super::HEADER_OFFSETS;
use super::allocate::{Change, Marked, Writer};
use super::bat::{BlockState, Entry, encode_page};
use super::error::Structure;
use super::header::Header;
use super::image::VhdxImage;
use super::log_write::{LogWriter, Pages};
use crate::commits::Wait;
use crate::limits::{VHDX_ENTRY_PAGES_MAX, VHDX_PENDING_MAX};
use crate::plan::{BatchEnd, CommitSeq, IoFault, MetaBatch, MetaOp};
use crate::units::ByteOffset;
use std::collections::BTreeSet;
use uuid::Uuid;

/// What the headers are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Update {
    Mark,
    Open,
    Clear,
}

/// Headers are written one after the other, so that one is whole at any moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copy {
    First,
    Second,
}

/// The phase whose batch comes next, or is being run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Idle,
    Header(Update, Copy),
    HeaderSync(Update, Copy),
    Extend,
    Sync,
    Log,
    Settle,
    Apply,
    ApplySync,
    Cut,
    CutSync,
    Closed,
    Reset,
}

/// Entries of the table and pages of metadata that go into the log together.
#[derive(Debug, Default)]
pub(super) struct Part {
    /// Blocks and sector bitmaps (by chunk) with new entries.
    blocks: BTreeSet<u32>,
    chunks: BTreeSet<u32>,
    /// Pages of the table, by place in the file, and of sector bitmaps, by number.
    tables: BTreeSet<u64>,
    pages: BTreeSet<u32>,
}

impl Part {
    fn len(&self) -> usize {
        self.tables.len() + self.pages.len()
    }
}

impl VhdxImage {
    /// Fills `batch` with the next operations; false when there is nothing to do, or a batch is still being run.
    pub fn next_meta_batch(&mut self, batch: &mut MetaBatch) -> bool {
        batch.clear();
        loop {
            let Some(writer) = &mut self.writer else { return false };
            if writer.commits.is_halted() {
                return false;
            }
            match writer.phase {
                Phase::Idle => {
                    if !self.begin_round() {
                        return false;
                    }
                }
                Phase::Closed => return false,
                phase => {
                    self.fill_batch(phase, batch);
                    let Some(writer) = &mut self.writer else { return false };
                    if !batch.ops.is_empty() {
                        writer.commits.batch_handed_out();
                        return true;
                    }
                    self.phase_done(phase);
                }
            }
        }
    }

    /// Every operation of the batch has ended; `result` is the first failure among them.
    pub fn meta_batch_done(&mut self, result: Result<(), IoFault>) -> BatchEnd {
        let after_extend = self.after_extend();
        let Some(writer) = &mut self.writer else { return BatchEnd::Done };
        if !writer.commits.batch_ended() {
            return BatchEnd::Done;
        }
        match (result, writer.phase) {
            (Ok(()), phase) => self.phase_done(phase),
            // Nothing that anybody relies on was begun: give the group up, and go on with the commit.
            (Err(IoFault::NoSpace), Phase::Extend) => {
                writer.extension = None;
                writer.commits.found_no_space();
                writer.phase = after_extend;
            }
            // The other header is whole, and says that the file is as it was.
            (Err(IoFault::NoSpace), Phase::Header(Update::Mark, _)) => {
                writer.marked = Marked::No;
                writer.commits.found_no_space();
                writer.phase = Phase::Idle;
            }
            // What these write is decided, and nothing they need can be lost: the same bytes, later.
            (Err(IoFault::NoSpace), Phase::Log | Phase::Apply | Phase::Header(..) | Phase::Cut) => {
                return writer.commits.batch_again();
            }
            // A failed flush is final (its pages count as clean afterwards), and so is half a commit.
            (Err(_), _) => writer.commits.failed = true,
        }
        BatchEnd::Done
    }

    /// The last finished commit.
    pub fn committed(&self) -> CommitSeq {
        self.writer.as_ref().map_or(CommitSeq(0), |writer| writer.commits.finished())
    }

    /// As [`crate::vhd::VhdImage::request_commit`].
    pub fn request_commit(&mut self) -> CommitSeq {
        let Some(writer) = &mut self.writer else { return CommitSeq(0) };
        let pending = writer.pending() > 0;
        writer.commits.request(pending)
    }

    /// Blocks and pages of bitmaps that wait for the next commit.
    pub fn pending_blocks(&self) -> usize {
        self.writer.as_ref().map_or(0, |writer| writer.pending())
    }

    /// The last commit whose flush was handed out: nothing that is written from now on goes with it.
    pub fn commit_begun(&self) -> CommitSeq {
        self.writer.as_ref().map_or(CommitSeq(0), |writer| writer.commits.begun())
    }

    /// A flush of the file failed outside of a commit: as if one of its own had.
    pub fn fail(&mut self) {
        if let Some(writer) = &mut self.writer {
            writer.commits.failed = true;
        }
    }

    /// A metadata write or flush has failed: no write is taken, and none that waits will complete.
    pub fn is_failed(&self) -> bool {
        self.writer.as_ref().is_some_and(|writer| writer.commits.failed)
    }

    /// No further writes: the batches that follow finish the commits, empty the log and cut the unused end off.
    pub fn begin_close(&mut self) {
        if let Some(writer) = &mut self.writer {
            writer.commits.closing = true;
        }
    }

    /// Decides what the next round does. False when there is nothing.
    fn begin_round(&mut self) -> bool {
        let unplaced = u64::from(self.layout.blocks).saturating_sub(self.bat.allocated());
        let more = if self.layout.differencing { super::MIB } else { 0 };
        let Some(writer) = &mut self.writer else { return false };
        if core::mem::take(&mut writer.extend_wanted) && !writer.commits.closing {
            let wanted = unplaced.saturating_sub(writer.changes.len() as u64);
            writer.extension = writer.space.plan(self.layout.block_bytes(), wanted, more);
        }
        writer.phase = if writer.marked == Marked::Wanted && !writer.commits.closing {
            Phase::Header(Update::Mark, Copy::First)
        } else if writer.extension.is_some() {
            Phase::Extend
        } else if writer.has_commit() || writer.commits.closing && !writer.filled.is_empty() {
            Phase::Sync
        } else if writer.commits.closing {
            if writer.log.is_some() && writer.marked == Marked::Yes { Phase::Settle } else { Phase::Cut }
        } else {
            return false;
        };
        true
    }

    fn fill_batch(&mut self, phase: Phase, batch: &mut MetaBatch) {
        match phase {
            Phase::Header(update, copy) => self.write_header(update, copy, batch),
            Phase::Extend => self.extend(batch),
            Phase::Log => {
                self.take_part();
                self.write_unapplied(batch);
                self.write_entry(batch);
            }
            Phase::Apply => self.write_unapplied(batch),
            Phase::Cut => {
                let Some(writer) = &self.writer else { return };
                if writer.space.extended && writer.used_end < writer.space.file_len {
                    batch.ops.push(MetaOp::SetLen { len: writer.used_end });
                }
            }
            Phase::Sync => {
                self.begin_commit();
                batch.ops.push(MetaOp::Sync);
            }
            Phase::HeaderSync(..) | Phase::Settle | Phase::ApplySync => batch.ops.push(MetaOp::Sync),
            Phase::CutSync if self.writer.as_ref().is_some_and(|writer| writer.space.extended) => {
                batch.ops.push(MetaOp::Sync);
            }
            Phase::Reset => self.reset_batch(batch),
            Phase::CutSync | Phase::Idle | Phase::Closed => {}
        }
    }

    /// The header of the next update.
    fn next_header(&self, update: Update) -> Header {
        let mut header = self.header;
        header.sequence = header.sequence.saturating_add(1);
        if let Some(writer) = &self.writer {
            header.file_write_guid = writer.ids.file_write;
            header.data_write_guid = writer.ids.data_write;
            header.log_guid = match (update, &writer.log) {
                (Update::Open, Some(log)) => log.guid(),
                _ => Uuid::nil(),
            };
        }
        header.log_version = 0;
        header
    }

    fn write_header(&mut self, update: Update, copy: Copy, batch: &mut MetaBatch) {
        let header = self.next_header(update);
        if let Some(place) = HEADER_OFFSETS.get(1 - self.header_index.min(1)) {
            batch.push_write(ByteOffset(*place), &header.encode());
        }
        // What is only recorded counts as there, and needs the log.
        let settled = self.writer.as_ref().is_none_or(|writer| writer.changes.is_empty());
        let all = self.bat.allocated() == u64::from(self.layout.blocks);
        let all_there = !self.layout.differencing && all && settled;
        if (update, copy) != (Update::Mark, Copy::Second) || all_there {
            return;
        }
        // The log is not in use yet, and says so to nobody: its first entry must be there before a header names it.
        let Some(writer) = &mut self.writer else { return };
        let mut log = LogWriter::new(self.header.log(), writer.ids.log);
        log.fill(batch);
        log.append(&Pages::default(), writer.space.file_len, batch);
        writer.log = Some(log);
    }

    fn extend(&mut self, batch: &mut MetaBatch) {
        let Some(writer) = &mut self.writer else { return };
        let Some(extension) = writer.extension else { return };
        writer.space.begun(&extension);
        if extension.old > extension.start {
            let len = extension.old - extension.start;
            batch.ops.push(MetaOp::Zero { offset: ByteOffset(extension.start), len });
        }
        if extension.longer {
            batch.ops.push(MetaOp::SetLen { len: extension.end });
        }
    }

    /// What is pending now is covered by the flush that begins now.
    fn begin_commit(&mut self) {
        let Some(writer) = &mut self.writer else { return };
        if !writer.commits.begin() {
            return;
        }
        core::mem::swap(&mut writer.pending_blocks, &mut writer.left_blocks);
        core::mem::swap(&mut writer.pending_pages, &mut writer.left_pages);
        // A page may have come to wait, been overtaken by the commit before, and come again.
        writer.left_pages.sort_unstable();
        writer.left_pages.dedup();
        for block in &writer.left_blocks {
            if let Some(change) = writer.changes.get_mut(block) {
                change.wait = Wait::Committing;
            }
        }
        for page in &writer.left_pages {
            if let Some(writes) = self.bitmaps.get(*page).map(|kept| kept.writes()) {
                core::mem::swap(&mut writes.pending, &mut writes.committing);
            }
        }
        for block in core::mem::take(&mut writer.filled) {
            let mut pages = self.layout.pages_of(block);
            let in_flight = |page| {
                self.bitmaps.get(page).is_some_and(|kept| kept.has_writes().is_some_and(|w| w.in_flight > 0))
            };
            // A page that is not in memory has nothing in flight.
            if pages.any(in_flight) {
                // Another commit will do; a file that is closed may say it in bits.
                if !writer.commits.closing {
                    writer.filled.push(block);
                }
                continue;
            }
            let entry = Entry { state: BlockState::Present, mib: self.bat.get(block).mib };
            let change = Change { entry, wait: Wait::Committing, fresh: false, recorded_over: None };
            writer.changes.insert(block, change);
            writer.left_blocks.push(block);
        }
    }

    /// As much of the commit as one entry holds. A block's entry, its bits and the entry of its bitmap stay together.
    fn take_part(&mut self) {
        let Some(writer) = &mut self.writer else { return };
        let page_of = |entry: u64| {
            let place = self.layout.entry_offset(entry);
            place - place % super::PAGE_BYTES as u64
        };
        let mut part = Part::default();
        while let Some(block) = writer.left_blocks.last().copied() {
            let Some(change) = writer.changes.get(&block) else {
                writer.left_blocks.pop();
                continue;
            };
            let chunk = self.layout.chunk_of(block);
            let partial = change.entry.state == BlockState::Partial;
            let bitmap = partial && writer.new_bitmaps.contains_key(&chunk);
            let pages = if partial { self.layout.pages_of(block) } else { 0..0 };
            let tables = [
                Some(page_of(self.layout.block_entry(block))),
                bitmap.then(|| page_of(self.layout.bitmap_entry(chunk))),
            ];
            let most = tables.len() + pages.len();
            if part.len() + most > VHDX_ENTRY_PAGES_MAX {
                break;
            }
            writer.left_blocks.pop();
            part.blocks.insert(block);
            part.chunks.extend(bitmap.then_some(chunk));
            part.tables.extend(tables.into_iter().flatten());
            part.pages.extend(pages);
        }
        while part.len() < VHDX_ENTRY_PAGES_MAX && writer.left_blocks.is_empty() {
            let Some(page) = writer.left_pages.pop() else { break };
            part.pages.insert(page);
        }
        writer.part = part;
    }

    fn write_entry(&mut self, batch: &mut MetaBatch) {
        let Some(writer) = &self.writer else { return };
        let mut pages = Pages::default();
        for place in &writer.part.tables {
            pages.offsets.push(*place);
            self.encode_table(*place, Some(&writer.part), &mut pages.bytes);
        }
        for page in &writer.part.pages {
            let (chunk, within) = self.layout.page_place(*page);
            let new = writer.new_bitmaps.get(&chunk).map(|mib| u64::from(*mib) * super::MIB);
            let start = self.bat.bitmap(chunk).offset().or(new);
            if let (Some(start), Some(kept)) = (start, self.bitmaps.peek(*page)) {
                pages.offsets.push(start + within);
                kept.encode_committing(&mut pages.bytes);
            }
        }
        if let Some(writer) = &mut self.writer
            && let Some(log) = &mut writer.log
        {
            log.append(&pages, writer.space.file_len, batch);
        }
    }

    /// The pages of the last entry, which is stable by now, as it has them.
    fn write_unapplied(&self, batch: &mut MetaBatch) {
        let Some(writer) = &self.writer else { return };
        for place in &writer.unapplied.tables {
            let start = batch.bytes.len();
            self.encode_table(*place, None, &mut batch.bytes);
            batch.ops.push(MetaOp::Write { offset: ByteOffset(*place), bytes: start..batch.bytes.len() });
        }
        for page in &writer.unapplied.pages {
            let (Some(offset), Some(kept)) = (self.page_offset(*page), self.bitmaps.peek(*page)) else {
                continue;
            };
            let start = batch.bytes.len();
            kept.encode_committed(&mut batch.bytes);
            batch.ops.push(MetaOp::Write { offset: ByteOffset(offset), bytes: start..batch.bytes.len() });
        }
    }

    /// A page of the table as it was committed last, with the new entries of `part`. No others: their data may be in
    /// flight.
    fn encode_table(&self, place: u64, part: Option<&Part>, bytes: &mut Vec<u8>) {
        let Some(writer) = &self.writer else { return };
        let entry_of = |structure| {
            let new = match structure {
                Structure::SectorBitmap(chunk) => {
                    let new = part.filter(|part| part.chunks.contains(&chunk));
                    let new = new.and_then(|_| writer.new_bitmaps.get(&chunk));
                    new.map(|mib| Entry { state: BlockState::Present, mib: *mib })
                }
                Structure::Block(block) => {
                    let logged = part.is_some_and(|part| part.blocks.contains(&block));
                    // What is only recorded is in the table in memory, and not yet in that of the file.
                    let change = writer.changes.get(&block);
                    change.and_then(|change| if logged { Some(change.entry) } else { change.recorded_over })
                }
                _ => None,
            };
            new.unwrap_or_else(|| self.bat.of(structure))
        };
        encode_page(&self.layout, place, entry_of, bytes);
    }

    /// Every operation of the phase is done, or it had none.
    fn phase_done(&mut self, phase: Phase) {
        match phase {
            Phase::Header(update, _) => {
                self.header = self.next_header(update);
                self.header_index = 1 - self.header_index.min(1);
            }
            Phase::Log => self.part_logged(),
            Phase::Apply => self.applied(),
            Phase::Reset => self.reset_done(),
            _ => {}
        }
        let after_extend = self.after_extend();
        let Some(writer) = &mut self.writer else { return };
        writer.phase = match phase {
            Phase::Header(update, copy) => Phase::HeaderSync(update, copy),
            Phase::HeaderSync(update, Copy::First) => Phase::Header(update, Copy::Second),
            Phase::HeaderSync(Update::Mark, Copy::Second) if writer.log.is_some() => {
                Phase::Header(Update::Open, Copy::First)
            }
            Phase::HeaderSync(Update::Mark | Update::Open, Copy::Second) => {
                writer.marked = Marked::Yes;
                writer.commits.found_space();
                Phase::Idle
            }
            Phase::HeaderSync(Update::Clear, Copy::Second) if writer.resetting => Phase::Reset,
            Phase::HeaderSync(Update::Clear, Copy::Second) => Phase::Cut,
            Phase::Extend => {
                if let Some(extension) = writer.extension.take() {
                    writer.space.add(&extension, self.layout.block_bytes());
                }
                after_extend
            }
            Phase::Sync => Phase::Log,
            Phase::Log if writer.commits.is_running() => Phase::Sync,
            Phase::Log => Phase::Idle,
            Phase::Settle => Phase::Apply,
            Phase::Apply => Phase::ApplySync,
            Phase::ApplySync => Phase::Header(Update::Clear, Copy::First),
            Phase::Cut => Phase::CutSync,
            Phase::Idle | Phase::Reset => Phase::Idle,
            Phase::CutSync | Phase::Closed => Phase::Closed,
        };
    }

    fn after_extend(&self) -> Phase {
        let commit = self.writer.as_ref().is_some_and(|writer| writer.has_commit());
        if commit { Phase::Sync } else { Phase::Idle }
    }

    /// The entry is in the log: reads see what it says. What the entry before said has its place in the file now.
    fn part_logged(&mut self) {
        self.applied();
        let Some(writer) = &mut self.writer else { return };
        let part = core::mem::take(&mut writer.part);
        for block in &part.blocks {
            let Some(change) = writer.changes.remove(block) else { continue };
            self.bat.set(*block, change.entry);
            let end = change.entry.offset().unwrap_or(0) + self.layout.block_bytes();
            writer.used_end = writer.used_end.max(end);
            if change.fresh && change.entry.state == BlockState::Partial {
                for page in self.layout.pages_of(*block) {
                    if let Some(writes) = self.bitmaps.get(page).and_then(|kept| kept.has_writes_mut()) {
                        writes.reserved = writes.reserved.saturating_sub(1);
                    }
                }
            }
        }
        for chunk in &part.chunks {
            let Some(mib) = writer.new_bitmaps.remove(chunk) else { continue };
            let entry = Entry { state: BlockState::Present, mib };
            self.bat.set_bitmap(*chunk, entry);
            writer.used_end = writer.used_end.max(entry.offset().unwrap_or(0) + super::MIB);
        }
        for page in &part.pages {
            if let Some(kept) = self.bitmaps.get(*page) {
                kept.commit();
            }
        }
        if writer.left_blocks.is_empty() && writer.left_pages.is_empty() {
            writer.commits.finish();
        }
        for page in &part.pages {
            self.note_filled(*page);
        }
        if let Some(writer) = &mut self.writer {
            writer.unapplied = part;
        }
    }

    /// The pages of the last entry lie in their places.
    fn applied(&mut self) {
        let Some(writer) = &mut self.writer else { return };
        for page in core::mem::take(&mut writer.unapplied).pages {
            if let Some(kept) = self.bitmaps.get(page) {
                kept.writes().logged = false;
                kept.settle();
            }
        }
    }

    /// Blocks of this page whose every bit is set: some later commit says so in the table.
    fn note_filled(&mut self, page: u32) {
        let first =
            u64::from(page) * u64::from(super::layout::PAGE_BITS) * u64::from(self.layout.bit_sectors);
        let (block, _) = self.layout.locate(first);
        let blocks = (super::layout::PAGE_BITS / self.layout.bits_of_block()).max(1);
        for block in block..block + blocks {
            if self.bat.get(block).state != BlockState::Partial || !self.is_filled(block) {
                continue;
            }
            let Some(writer) = &mut self.writer else { return };
            let known = writer.filled.contains(&block) || writer.changes.contains_key(&block);
            if !known && writer.filled.len() < VHDX_PENDING_MAX {
                writer.filled.push(block);
            }
        }
    }

    /// True when every sector of the block is known to be in the file.
    fn is_filled(&mut self, block: u32) -> bool {
        let (first, in_page) = self.layout.bits_in_page(block);
        let mut left = self.layout.valid_sectors(block) / self.layout.bit_sectors;
        for page in self.layout.pages_of(block) {
            let bits = left.min(in_page);
            left -= bits;
            if !self.bitmaps.peek(page).is_some_and(|kept| kept.set.all_set(first, bits)) {
                return false;
            }
        }
        true
    }
}

impl Writer {
    /// Something waits for a commit, and somebody for it.
    fn has_commit(&self) -> bool {
        self.commits.is_due(self.pending() > 0)
    }

    fn pending(&self) -> usize {
        self.pending_blocks.len() + self.pending_pages.len()
    }
}
