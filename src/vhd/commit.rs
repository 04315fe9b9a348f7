//! The metadata machine: in which order an open image changes its file.
//!
//! Knows the write order of `FORMAT.md` as phases. Does not know files: each phase is a batch of operations that the
//! executor runs, all of them, before it asks for the next.
//!
//! ```text
//! Idle -> Prepare   new footer at the new end; full bitmaps of other writers' dynamic blocks
//!      -> Sync      covers the data written so far, the new footer, zeros and bitmaps of earlier groups
//!      -> Metadata  bitmap sectors and table pages from a shadow: only what this commit may make stable
//!      -> Zero      what is old of the new group, old footer included
//!      -> Bitmaps   of the new group: its blocks can be handed out
//!      -> Idle
//! ```
//!
//! Phases without work are skipped. One Sync serves a commit and an extension alike. A child that is emptied goes through
//! one phase of its own, from nothing to `Idle` (`reset`).

use super::FOOTER_BYTES;
use super::allocate::{Writer, forget_full};
use super::bat::{ENTRY_BYTES, UNALLOCATED};
use super::image::{Body, Sparse, VhdImage};
use super::layout::Layout;
use super::space::Extension;
use crate::commits::Wait;
use crate::plan::{BatchEnd, CommitSeq, IoFault, MetaBatch, MetaOp};
use crate::units::{ByteOffset, SECTOR_BYTES};

/// Table entries are written in whole pages of the file, as far as they belong to the table: a torn physical sector
/// then takes no neighbour along that was not part of the write.
const PAGE_BYTES: u64 = 4096;

/// The phase whose batch comes next, or is being run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Idle,
    Prepare,
    Sync,
    Metadata,
    Zero,
    Bitmaps,
    CloseFooter,
    CloseSync,
    CloseCut,
    CloseCutSync,
    Closed,
    Reset,
}

impl VhdImage {
    /// Fills `batch` with the next operations; false when there is nothing to do, or a batch is still being run.
    pub fn next_meta_batch(&mut self, batch: &mut MetaBatch) -> bool {
        batch.clear();
        match &mut self.body {
            Body::Fixed => false,
            Body::Sparse(sparse) => sparse.next_meta_batch(&self.footer_bytes, batch),
        }
    }

    /// Every operation of the batch has ended; `result` is the first failure among them.
    pub fn meta_batch_done(&mut self, result: Result<(), IoFault>) -> BatchEnd {
        match &mut self.body {
            Body::Fixed => BatchEnd::Done,
            Body::Sparse(sparse) => sparse.meta_batch_done(result),
        }
    }

    /// The last finished commit.
    pub fn committed(&self) -> CommitSeq {
        self.writer().map_or(CommitSeq(0), |writer| writer.commits.finished())
    }

    /// Asks for a commit of all that was written so far, recorded or not. It has ended when [`Self::committed`] reaches
    /// the answer; run batches until then.
    pub fn request_commit(&mut self) -> CommitSeq {
        let Body::Sparse(sparse) = &mut self.body else { return CommitSeq(0) };
        let Some(writer) = &mut sparse.writer else { return CommitSeq(0) };
        writer.commits.request(!writer.pending.is_empty())
    }

    /// Blocks whose bits or table entry wait for the next commit.
    pub fn pending_blocks(&self) -> usize {
        self.writer().map_or(0, |writer| writer.pending.len())
    }

    /// The last commit whose flush was handed out: nothing that is written from now on goes with it.
    pub fn commit_begun(&self) -> CommitSeq {
        self.writer().map_or(CommitSeq(0), |writer| writer.commits.begun())
    }

    /// A flush of the file failed outside of a commit: as if one of its own had.
    pub fn fail(&mut self) {
        if let Body::Sparse(sparse) = &mut self.body
            && let Some(writer) = &mut sparse.writer
        {
            writer.commits.failed = true;
        }
    }

    /// A metadata write or flush has failed: no write is taken, and none that waits will complete.
    pub fn is_failed(&self) -> bool {
        self.writer().is_some_and(|writer| writer.commits.failed)
    }

    /// No further writes: the batches that follow finish the commits and cut the unused end off the file.
    pub fn begin_close(&mut self) {
        if let Body::Sparse(sparse) = &mut self.body
            && let Some(writer) = &mut sparse.writer
        {
            writer.commits.closing = true;
        }
    }

    fn writer(&self) -> Option<&Writer> {
        match &self.body {
            Body::Fixed => None,
            Body::Sparse(sparse) => sparse.writer.as_ref(),
        }
    }
}

impl Sparse {
    fn next_meta_batch(&mut self, footer: &[u8; FOOTER_BYTES], batch: &mut MetaBatch) -> bool {
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
                    self.fill_batch(phase, footer, batch);
                    let Some(writer) = &mut self.writer else { return false };
                    if batch.ops.is_empty() {
                        self.phase_done(phase);
                    } else {
                        writer.commits.batch_handed_out();
                        return true;
                    }
                }
            }
        }
    }

    /// Decides what the next round does. False when there is nothing.
    fn begin_round(&mut self) -> bool {
        let unprepared = self.unprepared_blocks();
        let Some(writer) = &mut self.writer else { return false };
        writer.filling.append(&mut writer.fill);
        if core::mem::take(&mut writer.extend_wanted) && !writer.commits.closing {
            writer.extension = writer.space.plan(&self.layout, unprepared);
        }
        let commit = writer.commits.is_due(!writer.pending.is_empty());
        if writer.extension.is_some() || !writer.filling.is_empty() || commit {
            writer.phase = Phase::Prepare;
            return true;
        }
        if !writer.commits.closing {
            return false;
        }
        let lower = (self.bat.end(&self.layout) * SECTOR_BYTES).max(writer.space.floor);
        writer.phase = if writer.space.extended && lower < writer.space.footer_at {
            Phase::CloseFooter
        } else {
            Phase::Closed
        };
        writer.phase == Phase::CloseFooter
    }

    fn fill_batch(&mut self, phase: Phase, footer: &[u8; FOOTER_BYTES], batch: &mut MetaBatch) {
        let Some(writer) = &mut self.writer else { return };
        let floor = writer.space.floor;
        let close_at = || (self.bat.end(&self.layout) * SECTOR_BYTES).max(floor);
        match phase {
            Phase::Prepare => {
                if let Some(extension) = &writer.extension {
                    writer.space.begun(extension);
                }
                if let Some(to) = writer.extension.and_then(|extension| extension.footer) {
                    batch.push_write(ByteOffset(to), footer);
                }
                for (_, entry) in &writer.filling {
                    push_bitmap(batch, &self.layout, *entry, 0xFF);
                }
            }
            Phase::Sync => {
                // Zeros may take an older footer: the one that is to count is stable before, though it was found here. A
                // process that was killed may have written it.
                let replaces = |extension: Extension| extension.footer.is_some() || extension.has_old();
                let extends = writer.extension.is_some_and(replaces);
                if extends || !writer.filling.is_empty() || !writer.pending.is_empty() {
                    batch.ops.push(MetaOp::Sync);
                    self.begin_commit();
                }
            }
            Phase::Metadata => {
                if writer.commits.is_running() {
                    self.write_bitmaps(batch);
                    self.write_table(batch);
                }
            }
            Phase::Zero => {
                if let Some(extension) = writer.extension.filter(Extension::has_old) {
                    let offset = ByteOffset(extension.start);
                    batch.ops.push(MetaOp::Zero { offset, len: extension.old - extension.start });
                }
            }
            Phase::Bitmaps => {
                // Written, not left to the zeros: a commit then finds its bitmap sectors allocated.
                let byte = if self.differencing { 0 } else { 0xFF };
                for entry in writer.extension.iter().flat_map(|extension| extension.entries()) {
                    push_bitmap(batch, &self.layout, entry, byte);
                }
            }
            Phase::CloseFooter => batch.push_write(ByteOffset(close_at()), footer),
            Phase::CloseSync | Phase::CloseCutSync => batch.ops.push(MetaOp::Sync),
            Phase::CloseCut => batch.ops.push(MetaOp::SetLen { len: close_at() + FOOTER_BYTES as u64 }),
            Phase::Reset => self.reset_batch(footer, batch),
            Phase::Idle | Phase::Closed => {}
        }
    }

    /// What is pending now is covered by the flush that begins now.
    fn begin_commit(&mut self) {
        let Some(writer) = &mut self.writer else { return };
        if writer.pending.is_empty() || !writer.commits.begin() {
            return;
        }
        core::mem::swap(&mut writer.pending, &mut writer.committing);
        for block in &writer.committing {
            if let Some(writes) = self.bitmaps.get(*block).and_then(|entry| entry.writes.as_mut()) {
                core::mem::swap(&mut writes.pending, &mut writes.committing);
            }
            if let Some(reserved) = writer.reserved.get_mut(&block.0) {
                reserved.wait = Wait::Committing;
            }
        }
    }

    fn write_bitmaps(&mut self, batch: &mut MetaBatch) {
        let Some(writer) = &self.writer else { return };
        for block in &writer.committing {
            let reserved = writer.reserved.get(&block.0).map(|reserved| reserved.entry);
            let Some(entry) = reserved.or_else(|| self.bat.get(*block)) else { continue };
            let Some(bitmap) = self.bitmaps.get(*block) else { continue };
            let Some(writes) = &bitmap.writes else { continue };
            for index in writes.committing.sectors_with_bits() {
                let start = batch.bytes.len();
                bitmap.set.encode_sector(&writes.pending, &writes.committing, index, &mut batch.bytes);
                let offset = ByteOffset(Layout::bitmap_offset(entry).0 + index as u64 * SECTOR_BYTES);
                batch.ops.push(MetaOp::Write { offset, bytes: start..batch.bytes.len() });
            }
        }
    }

    /// The pages of the table that get new entries: those of the file, and those of this commit. No others.
    fn write_table(&mut self, batch: &mut MetaBatch) {
        let Some(writer) = &self.writer else { return };
        let table = self.layout.table_offset;
        let table_end = table + (u64::from(self.layout.blocks) * ENTRY_BYTES).next_multiple_of(SECTOR_BYTES);
        let new = |(block, reserved): (&u32, &super::allocate::Reserved)| {
            (reserved.wait == Wait::Committing).then_some((*block, reserved.entry))
        };
        let mut done_to = table;
        for (block, _) in writer.reserved.iter().filter_map(new) {
            let place = table + u64::from(block) * ENTRY_BYTES;
            if place < done_to {
                continue;
            }
            let start = (place - place % PAGE_BYTES).max(table);
            let end = (start - start % PAGE_BYTES + PAGE_BYTES).min(table_end);
            // Blocks are counted in 32 bits, and so are the entries of this page.
            let first = ((start - table) / ENTRY_BYTES) as u32;
            let last = ((end - table) / ENTRY_BYTES) as u32;
            let at = batch.bytes.len();
            for index in first..last {
                batch.bytes.extend_from_slice(&self.bat.raw(index).to_be_bytes());
            }
            for (index, reserved) in writer.reserved.range(first..last) {
                let entry = if reserved.wait == Wait::Committing { reserved.entry } else { UNALLOCATED };
                let slot = at + (index - first) as usize * ENTRY_BYTES as usize;
                batch.bytes[slot..slot + ENTRY_BYTES as usize].copy_from_slice(&entry.to_be_bytes());
            }
            batch.ops.push(MetaOp::Write { offset: ByteOffset(start), bytes: at..batch.bytes.len() });
            done_to = end;
        }
    }

    fn meta_batch_done(&mut self, result: Result<(), IoFault>) -> BatchEnd {
        let Some(writer) = &mut self.writer else { return BatchEnd::Done };
        if !writer.commits.batch_ended() {
            return BatchEnd::Done;
        }
        match (result, writer.phase) {
            (Ok(()), phase) => self.phase_done(phase),
            // Nothing that anybody relies on was begun: give the group up, and go on with the commit.
            (Err(IoFault::NoSpace), Phase::Prepare | Phase::Zero | Phase::Bitmaps) => {
                writer.extension = None;
                writer.filling.clear();
                writer.commits.found_no_space();
                writer.phase = if writer.phase == Phase::Prepare { Phase::Sync } else { Phase::Idle };
            }
            // The data is stable and the bits are right whenever they come.
            (Err(IoFault::NoSpace), Phase::Metadata) => return writer.commits.batch_again(),
            // The footer further up is as good: the file stays a little longer.
            (Err(IoFault::NoSpace), Phase::CloseFooter) => writer.phase = Phase::Closed,
            // A failed flush is final (its pages count as clean afterwards), and so is half a commit.
            (Err(_), _) => writer.commits.failed = true,
        }
        BatchEnd::Done
    }

    /// Every operation of the phase is done, or it had none.
    fn phase_done(&mut self, phase: Phase) {
        match phase {
            Phase::Sync => self.synced(),
            Phase::Metadata => self.commit_done(),
            Phase::Reset => self.reset_done(),
            _ => {}
        }
        let Some(writer) = &mut self.writer else { return };
        writer.phase = match phase {
            Phase::Prepare => Phase::Sync,
            Phase::Sync => Phase::Metadata,
            Phase::Metadata => Phase::Zero,
            Phase::Zero => Phase::Bitmaps,
            Phase::Bitmaps => {
                if let Some(extension) = writer.extension.take() {
                    writer.space.add(&extension, self.layout.block_bytes());
                }
                Phase::Idle
            }
            Phase::CloseFooter => Phase::CloseSync,
            Phase::CloseSync => Phase::CloseCut,
            Phase::CloseCut => Phase::CloseCutSync,
            Phase::Idle | Phase::Reset => Phase::Idle,
            Phase::CloseCutSync | Phase::Closed => Phase::Closed,
        };
    }

    fn synced(&mut self) {
        let Some(writer) = &mut self.writer else { return };
        for (block, _) in writer.filling.drain(..) {
            self.full.insert(block);
            self.bitmaps.remove_full(block);
        }
        if let Some(extension) = &mut writer.extension
            && let Some(to) = extension.footer.take()
        {
            writer.space.footer_moved(to);
        }
    }

    /// The bits and entries are in the file: reads see them, and writes that waited are complete.
    fn commit_done(&mut self) {
        let Some(writer) = &mut self.writer else { return };
        if !writer.commits.is_running() {
            return;
        }
        for block in writer.committing.drain(..) {
            if let Some(reserved) = writer.reserved.remove(&block.0) {
                self.bat.set(block, reserved.entry);
                self.allocated += 1;
            }
            if let Some(entry) = self.bitmaps.get(block) {
                entry.committed();
                if entry.set.all_set(0, self.layout.valid_sectors(block)) {
                    self.full.insert(block);
                }
            }
            forget_full(&mut self.bitmaps, self.full.contains(block), block);
        }
        writer.commits.finish();
    }
}

fn push_bitmap(batch: &mut MetaBatch, layout: &Layout, entry: u32, byte: u8) {
    let start = batch.bytes.len();
    batch.bytes.resize(start + layout.bitmap_bytes() as usize, byte);
    batch.ops.push(MetaOp::Write { offset: Layout::bitmap_offset(entry), bytes: start..batch.bytes.len() });
}
