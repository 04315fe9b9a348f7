//! SANITIZE: every block of a unit is overwritten or erased, in the background, whatever becomes of the command.
//!
//! Knows portions, passes and pace. Does not know what a unit answers meanwhile (`scsi`).
//!
//! The work is a task of its own that no session knows. It has the unit's writes to itself. An overwrite keeps to a
//! pace: a disk is wiped rarely, and the machines on the other disks are not to notice. When the shard stops, it stops
//! too; a unit with a place to remember that goes on from the beginning at the next start.

use crate::clock::{Duration, Instant};
use crate::limits;
use crate::plan::WriteKind;
use crate::scsi::{SanitizeMethod, Sense, UnitFault, UnitIndex, UnitPlan, UnitReply};
use crate::units::{SECTOR_BYTES, Sector, SectorCount, SectorRange};

use super::executor::{Core, TaskKey};
use super::task::{Pass, Stage, Task, Work};

/// What one background task has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SanitizeWork {
    unit: UnitIndex,
    method: SanitizeMethod,
    /// Of the pass that runs.
    next: Sector,
    passes_done: u8,
    since: Instant,
    sectors_done: u64,
}

/// A command that waits for the end.
#[derive(Debug)]
pub(super) struct SanitizeWaiter {
    worker: TaskKey,
    command: TaskKey,
}

impl Core {
    /// The command begins it; it waits for the end, unless told not to.
    pub(super) fn begin_sanitize(
        &mut self,
        key: TaskKey,
        unit: UnitIndex,
        method: SanitizeMethod,
        immediate: bool,
    ) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        task.work = Work::Reply;
        task.stage = Stage::Keep;
        let target = task.target;
        let Some(worker) = self.spawn_sanitize(target, unit, method) else {
            let _ = self.targets[target as usize].device.sanitize_ended(unit, false);
            self.fail_io(key, UnitFault::Internal);
            return;
        };
        if immediate {
            self.reply(key, UnitReply::good(), 0);
        } else {
            self.sanitizing.push(SanitizeWaiter { worker, command: key });
        }
    }

    /// The command has gone before it could begin the operation, or the unit cannot remember it.
    pub(super) fn sanitize_unattended(
        &mut self,
        target: u32,
        unit: UnitIndex,
        method: SanitizeMethod,
        begins: bool,
    ) {
        if !begins || self.spawn_sanitize(target, unit, method).is_none() {
            let _ = self.targets[target as usize].device.sanitize_ended(unit, false);
        }
    }

    /// `None`: the shard has no task left.
    fn spawn_sanitize(&mut self, target: u32, unit: UnitIndex, method: SanitizeMethod) -> Option<TaskKey> {
        let mut task = self.spare.pop().unwrap_or_else(|| Box::new(Task::idle()));
        let lun = self.targets[target as usize].lun(unit);
        task.target = target;
        task.lun = lun;
        task.home = lun;
        task.background = true;
        if let SanitizeMethod::Overwrite { pattern, .. } = &method {
            let mut chunk = self.pool.take_chunk()?;
            fill(chunk.as_mut_slice(), pattern, self.luns[lun as usize].block_size.bytes() as usize);
            task.out.push(chunk.share());
        }
        let (next, since) = (Sector(0), self.now);
        let work = SanitizeWork { unit, method, next, passes_done: 0, since, sectors_done: 0 };
        task.work = Work::Sanitize(Box::new(work));
        let key = self.tasks.insert(task).ok()?;
        self.next_sanitize_portion(key);
        self.execute(key);
        Some(key)
    }

    /// Goes on with what the last run of the server has begun and not ended.
    pub(super) fn resume_sanitize(&mut self, target: u32, unit: UnitIndex) {
        let place = &self.targets[target as usize];
        let Some(method) = place.device.interrupted_sanitize(unit) else { return };
        tracing::info!(target = %place.name, "a sanitize operation goes on");
        self.sanitize_unattended(target, unit, method, true);
    }

    /// Sets the next portion; false when every pass is done.
    fn next_sanitize_portion(&mut self, key: TaskKey) -> bool {
        let Some(task) = self.tasks.get_mut(key) else { return false };
        let end = self.luns[task.lun as usize].chain.sectors().0;
        let Work::Sanitize(work) = &mut task.work else { return false };
        let (kind, bytes, passes, invert) = match &work.method {
            SanitizeMethod::Overwrite { passes, invert, .. } => {
                (WriteKind::Data, limits::SANITIZE_PORTION_BYTES, *passes, *invert)
            }
            SanitizeMethod::BlockErase => (WriteKind::Zero, limits::SANITIZE_ERASE_BYTES, 1, false),
        };
        if work.next.0 >= end {
            work.passes_done += 1;
            work.next = Sector(0);
            if work.passes_done >= passes {
                return false;
            }
        }
        let flip = invert && work.next.0 == 0 && work.passes_done > 0;
        let range = SectorRange::between(work.next, Sector(end)).take(SectorCount(bytes / SECTOR_BYTES));
        work.next = range.end();
        work.sectors_done += range.count().0;
        let total = u64::from(passes).saturating_mul(end).max(1);
        let parts = (u128::from(work.sectors_done - range.count().0) * 65536 / u128::from(total)).min(65535);
        let (unit, target) = (work.unit, task.target as usize);
        if flip {
            task.invert_out();
        }
        task.start_pass(Pass::Write(kind), range);
        self.targets[target].device.sanitize_progress(unit, parts as u16);
        true
    }

    /// A portion is written, and committed. True when the task can go on at once.
    pub(super) fn sanitize_portion_done(&mut self, key: TaskKey) -> bool {
        if self.is_ending(key) {
            self.finish(key);
            return false;
        }
        if !self.next_sanitize_portion(key) {
            self.sync(key);
            return false;
        }
        let Some(task) = self.tasks.get_mut(key) else { return false };
        let Work::Sanitize(work) = &task.work else { return false };
        if work.method == SanitizeMethod::BlockErase {
            return true;
        }
        let bytes = work.sectors_done.saturating_mul(SECTOR_BYTES);
        let ms = bytes.saturating_mul(1000) / limits::SANITIZE_BYTES_PER_S;
        let due = work.since.after(Duration::from_millis(ms));
        if due <= self.now {
            return true;
        }
        task.stage = Stage::Pace;
        self.paced.push((due, key));
        false
    }

    /// The shard stops, or the unit is taken away.
    fn is_ending(&self, key: TaskKey) -> bool {
        let lun = self.tasks.get(key).and_then(|task| self.luns.get(task.lun as usize));
        self.stopping || lun.is_none_or(|lun| lun.ends)
    }

    /// Portions whose time has come; all of them when the shard stops.
    pub(super) fn wake_paced(&mut self) {
        let (now, stopping) = (self.now, self.stopping);
        let Self { paced, tasks, ready, luns, .. } = self;
        paced.retain(|(due, key)| {
            let ends =
                tasks.get(*key).and_then(|task| luns.get(task.lun as usize)).is_none_or(|lun| lun.ends);
            let wakes = stopping || ends || *due <= now;
            if wakes && let Some(task) = tasks.get_mut(*key) {
                task.stage = Stage::Resolve;
                ready.push_back(*key);
            }
            !wakes
        });
    }

    /// All is stable: the unit forgets that it was being wiped.
    pub(super) fn sanitize_synced(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let Work::Sanitize(work) = &task.work else { return };
        let (unit, target, lun) = (work.unit, task.target as usize, task.lun as usize);
        if work.method == SanitizeMethod::BlockErase {
            self.luns[lun].erased = true;
        }
        let kept = self.targets[target].device.sanitize_ended(unit, true);
        tracing::info!(target = %self.targets[target].name, "a sanitize operation has ended");
        match kept {
            Some(kept) => {
                self.leave_turn(key);
                let then = UnitPlan::Done(UnitReply::good());
                self.begin_keep(key, unit, kept, then);
            }
            None => self.finish(key),
        }
    }

    /// A background task has ended: whoever waits for it is answered.
    pub(super) fn background_done(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.get(key) else { return };
        let failed = task.sense;
        if let (Work::Sanitize(work), Some(sense)) = (&task.work, failed) {
            let (unit, target) = (work.unit, task.target as usize);
            tracing::error!(target = %self.targets[target].name, ?sense, "a sanitize operation has failed");
            let _ = self.targets[target].device.sanitize_ended(unit, false);
        }
        self.release(key);
        for waiter in core::mem::take(&mut self.sanitizing) {
            if waiter.worker != key {
                self.sanitizing.push(waiter);
            } else if self.tasks.get(waiter.command).is_some() {
                match failed {
                    Some(_) => self.fail(waiter.command, Sense::SANITIZE_FAILED),
                    None => self.finish(waiter.command),
                }
            }
        }
    }
}

/// Every block of the chunk becomes the pattern, repeated and cut.
fn fill(chunk: &mut [u8], pattern: &[u8], block: usize) {
    for block in chunk.chunks_mut(block) {
        for (byte, value) in block.iter_mut().zip(pattern.iter().cycle()) {
            *byte = *value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::bench::Bench;

    const OVERWRITE: [u8; 10] = [0x48, 0x01, 0, 0, 0, 0, 0, 0, 7, 0];
    const READY: [u8; 6] = [0; 6];

    #[test]
    fn a_pattern_is_repeated_in_each_block_and_cut_at_its_end() {
        let mut chunk = [0; 16];
        fill(&mut chunk, &[1, 2, 3], 8);
        assert_eq!(chunk, [1, 2, 3, 1, 2, 3, 1, 2, 1, 2, 3, 1, 2, 3, 1, 2]);
    }

    #[test]
    fn overwriting_fills_the_disk_and_others_wait() {
        let mut bench = Bench::new();
        let wipe = bench.begin(&OVERWRITE, &[1, 0, 0, 3, 7, 8, 9], 0);
        assert!(bench.reply(wipe).is_none());
        let other = bench.begin(&READY, &[], 0);
        assert_eq!(bench.reply(other).unwrap().sense, Some((0x04, 0x1B)));
        bench.settle_keeping();
        assert_eq!(bench.reply(wipe).unwrap().status, 0);
        assert!(bench.disk.chunks(512).all(|block| block.starts_with(&[7, 8, 9, 7]) && block[511] == 8));
        let other = bench.begin(&READY, &[], 0);
        assert_eq!(bench.reply(other).unwrap().status, 0);
    }

    #[test]
    fn an_aborted_command_does_not_end_the_operation() {
        let mut bench = Bench::new();
        let wipe = bench.begin(&OVERWRITE, &[1, 0, 0, 3, 7, 8, 9], 0);
        assert!(bench.core.abort(wipe));
        bench.settle_keeping();
        assert_eq!(bench.disk[..4], [7, 8, 9, 7]);
    }

    #[test]
    fn erased_blocks_are_deallocated_until_one_is_written() {
        let mut bench = Bench::new();
        bench.disk.fill(5);
        let status = |bench: &mut Bench| {
            let mut cdb = [0; 16];
            (cdb[0], cdb[1], cdb[13]) = (0x9E, 0x12, 24);
            let task = bench.begin(&cdb, &[], 24);
            bench.reply(task).unwrap().data[20]
        };
        assert_eq!(status(&mut bench), 0);
        bench.begin(&[0x48, 0x82, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0);
        bench.settle_keeping();
        assert!(bench.disk.iter().all(|byte| *byte == 0));
        assert_eq!(status(&mut bench), 1);
        bench.begin(&[0x2A, 0, 0, 0, 0, 9, 0, 0, 1, 0], &[1; 512], 0);
        bench.settle();
        assert_eq!(status(&mut bench), 0);
    }
}
