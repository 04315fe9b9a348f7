//! WRITE ATOMIC: all of the blocks or none of them, whatever happens to the server (SBC-4, 4.29).
//!
//! Knows the journal that makes it so. Does not know where it is kept (`keep`).
//!
//! | step      | the task waits for                                  | a crash here leaves                    |
//! |-----------|-----------------------------------------------------|----------------------------------------|
//! | `Journal` | its turn; then blocks and data in the unit's memory | the old blocks                         |
//! | `Write`   | the write, its commit, the flush                    | the journal: the next start writes it  |
//! | `Forget`  | the memory without them                             | the new blocks, perhaps written twice  |
//!
//! The memory without them is first written, and stable a moment later; a flush of the unit waits for that (`keep`).
//!
//! Meanwhile no other command reads or writes the unit, and what has begun is not aborted any more: whoever aborts it
//! waits. Where a step fails the image takes no more writes, because a later one could be undone by the journal.

use crate::limits;
use crate::plan::WriteKind;
use crate::scsi::{KeptAtomic, KeptUnit, UnitFault, UnitIndex, UnitPlan, UnitReply};
use crate::units::{BlockCount, BlockRange, Lba};

use super::executor::{Core, TaskKey};
use super::keep::Unkept;
use super::task::{Pass, Stage, Task, Work};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AtomicStep {
    Journal,
    Write,
    Forget,
}

impl Task {
    /// It has begun to write, or to write down that it will: it goes on to its end.
    pub(super) fn is_past_abort(&self) -> bool {
        matches!(self.work, Work::WriteAtomic(AtomicStep::Write | AtomicStep::Forget))
    }
}

impl Core {
    /// Its turn has come: what it will write goes into the unit's memory.
    pub(super) fn atomic_journal(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let bytes = task.range.bytes().0 as usize;
        let mut data = Vec::with_capacity(bytes);
        for buf in &task.out {
            let left = (bytes - data.len()).min(buf.as_slice().len());
            data.extend_from_slice(&buf.as_slice()[..left]);
        }
        let size = self.luns[task.lun as usize].block_size;
        let lba = Lba(task.range.start().0 / size.sectors());
        task.work = Work::WriteAtomic(AtomicStep::Write);
        let (target, unit) = self.home_of(key);
        let kept = self.targets[target as usize].device.atomic_begun(unit, &KeptAtomic::new(lba, &data));
        self.keep_atomic(key, kept);
    }

    fn home_of(&self, key: TaskKey) -> (u32, UnitIndex) {
        let Some(task) = self.tasks.get(key) else { return (0, UnitIndex(0)) };
        let unit = self.luns.get(task.home as usize).map_or(UnitIndex(0), |lun| lun.unit);
        (task.target, unit)
    }

    fn keep_atomic(&mut self, key: TaskKey, kept: KeptUnit) {
        let (target, unit) = self.home_of(key);
        let Some(task) = self.tasks.get_mut(key) else { return };
        task.stage = Stage::Keep;
        let then = UnitPlan::Done(UnitReply::good());
        self.unkept.push(Unkept { task: key, target, unit, kept, then });
    }

    /// The memory is stable, or cannot be made so.
    pub(super) fn atomic_kept(&mut self, key: TaskKey, stable: bool) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        if !stable {
            self.fail_io(key, UnitFault::Write);
            return;
        }
        if matches!(task.work, Work::WriteAtomic(AtomicStep::Write)) {
            task.stage = Stage::Resolve;
            self.ready.push_back(key);
        } else {
            task.work = Work::Reply;
            self.finish(key);
        }
    }

    /// All of it is stable: the journal is not needed any more.
    pub(super) fn atomic_written(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        task.work = Work::WriteAtomic(AtomicStep::Forget);
        let (target, unit) = self.home_of(key);
        let kept = self.targets[target as usize].device.atomic_ended(unit);
        self.keep_atomic(key, kept);
    }

    /// The task ends. With a fault the journal stays, and must not be overtaken.
    pub(super) fn atomic_left(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.get(key) else { return };
        if task.is_past_abort() && task.sense.is_some() {
            let leaf = self.luns[task.lun as usize].leaf;
            tracing::error!(
                "an atomic write has failed; its image takes no more writes until the server is started again"
            );
            self.images.fail(leaf);
        }
    }

    /// Writes what the last run of the server has promised; until then the units are not ready.
    pub(super) fn resume_atomic(&mut self, target: u32, unit: UnitIndex) {
        let place = &self.targets[target as usize];
        let Some(kept) = place.device.interrupted_atomic(unit).cloned() else { return };
        tracing::info!(target = %place.name, "an atomic write is completed");
        if self.replay(target, unit, &kept).is_none() {
            tracing::error!(target = %self.targets[target as usize].name, "an atomic write cannot be completed: its LUN stays not ready");
        }
    }

    fn replay(&mut self, target: u32, unit: UnitIndex, kept: &KeptAtomic) -> Option<TaskKey> {
        let lun = self.targets[target as usize].lun(unit);
        let state = &self.luns[lun as usize];
        let (size, data) = (state.block_size, kept.data());
        let blocks = data.len() as u64 / u64::from(size.bytes());
        let range = BlockRange { start: kept.lba(), count: BlockCount(blocks) };
        let range = range.sectors(size).filter(|range| range.end().0 <= state.chain.sectors().0)?;
        let mut task = self.spare.pop().unwrap_or_else(|| Box::new(Task::idle()));
        (task.target, task.lun, task.home, task.background) = (target, lun, lun, true);
        for piece in data.chunks(limits::CHUNK_BYTES) {
            let mut chunk = self.pool.take_chunk()?;
            chunk.as_mut_slice()[..piece.len()].copy_from_slice(piece);
            task.out.push(chunk.share());
        }
        task.work = Work::WriteAtomic(AtomicStep::Write);
        task.start_pass(Pass::Write(WriteKind::Data), range);
        let key = self.tasks.insert(task).ok()?;
        self.execute(key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::UnitIndex;
    use crate::shard::bench::Bench;

    /// Two blocks from LBA 5 on.
    const WRITE: [u8; 16] = [0x9C, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 2, 0, 0];
    const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 5, 0, 0, 2, 0];

    #[test]
    fn the_journal_is_stable_before_the_write_and_gone_before_the_answer() {
        let mut bench = Bench::new();
        let write = bench.begin(&WRITE, &[7; 1024], 0);
        assert!(bench.ops().is_empty(), "nothing is written before it is promised");
        let kept = bench.core.unkept[0].kept.atomic.clone().unwrap();
        assert_eq!((kept.lba().0, kept.data()), (5, &[7; 1024][..]));
        bench.core.keep_all();
        bench.core.run_ready();
        bench.settle();
        assert_eq!(bench.disk[5 * 512..7 * 512], [7; 1024]);
        assert!(bench.reply(write).is_none());
        assert_eq!(bench.core.unkept[0].kept.atomic, None);
        bench.core.keep_all();
        assert_eq!(bench.reply(write).unwrap().status, 0);
    }

    #[test]
    fn nobody_reads_half_of_it() {
        let mut bench = Bench::new();
        let before = bench.begin(&READ, &[], 1024);
        let mut ops = bench.ops();
        bench.begin(&WRITE, &[7; 1024], 0);
        assert!(bench.core.unkept.is_empty(), "it waits for the read");
        let behind = bench.begin(&READ, &[], 1024);
        assert!(bench.ops().is_empty(), "and the next one for it");
        bench.complete(ops.remove(0));
        assert_eq!(bench.reply(before).unwrap().data, [0; 1024]);
        bench.settle_keeping();
        assert_eq!(bench.reply(behind).unwrap().data, [7; 1024]);
    }

    #[test]
    fn what_is_promised_is_written_even_when_the_command_is_aborted() {
        let mut bench = Bench::new();
        let write = bench.begin(&WRITE, &[7; 1024], 0);
        assert!(!bench.core.abort(write), "it ends first");
        assert_eq!(bench.core.targets[0].aborted_in_flight, 1);
        bench.settle_keeping();
        assert_eq!(bench.core.targets[0].aborted_in_flight, 0);
        assert_eq!(bench.disk[5 * 512..7 * 512], [7; 1024]);
        assert!(bench.core.tasks.is_empty());
    }

    /// It waits for a space, a commit, a flush: whoever aborts it then must not make it believe that the wait is over.
    #[test]
    fn an_abort_at_any_moment_does_not_fail_its_image() {
        let mut moments = 0;
        loop {
            let mut bench = Bench::on_vhd();
            let leaf = bench.core.luns[0].leaf;
            let write = bench.begin(&WRITE, &[7; 1024], 0);
            bench.core.keep_all();
            let (mut done, mut ops) = (0, bench.ops());
            while done < moments && !ops.is_empty() {
                bench.complete(ops.remove(0));
                ops.extend(bench.ops());
                done += 1;
            }
            let written = done < moments;
            assert!(!bench.core.abort(write), "it ends first, after {done} operations");
            ops.extend(bench.ops());
            while !ops.is_empty() {
                bench.complete(ops.remove(0));
                ops.extend(bench.ops());
            }
            bench.settle_keeping();
            assert!(!bench.core.images.is_failed(leaf), "aborted after {done} operations");
            assert!(bench.core.tasks.is_empty() && bench.core.targets[0].aborted_in_flight == 0);
            let read = bench.begin(&READ, &[], 1024);
            bench.settle();
            assert_eq!(bench.reply(read).unwrap().data, [7; 1024]);
            if written {
                break;
            }
            moments += 1;
        }
        assert!(moments > 5, "{moments} operations: it waited for nothing");
    }

    #[test]
    fn the_next_start_completes_it_before_the_unit_is_ready() {
        let mut bench = Bench::new();
        bench.begin(&WRITE, &[7; 1024], 0);
        let kept = bench.core.unkept[0].kept.clone();
        let mut bench = Bench::with_kept(kept);
        let early = bench.begin(&READ, &[], 1024);
        assert_eq!(bench.reply(early).unwrap().sense, Some((0x04, 0x01)));
        bench.core.resume_atomic(0, UnitIndex(0));
        bench.settle_keeping();
        let read = bench.begin(&READ, &[], 1024);
        bench.settle();
        assert_eq!(bench.reply(read).unwrap().data, [7; 1024]);
    }
}
