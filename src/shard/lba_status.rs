//! GET LBA STATUS (SBC-3, 5.6): which blocks the files of a chain hold.
//!
//! Knows how runs of sectors become runs of logical blocks. Does not know who holds a sector (`image`).
//!
//! A block is deallocated when no layer of the chain has any of its sectors; then it reads as zeros. A raw file counts
//! as mapped all over: where its holes are only the file system knows, and mapped blocks may read as zeros too. After SANITIZE with BLOCK ERASE all of a
//! unit counts as deallocated until it is written, or the server is started again.

use crate::limits;
use crate::plan::{ReadStep, Source};
use crate::scsi::{LbaRun, UnitIndex, lba_runs_max, lba_status};
use crate::units::{BlockCount, BlockSize, ByteCount, Lba, SECTOR_BYTES, Sector, SectorCount, SectorRange};

use super::executor::{Begun, Core, TaskKey};
use super::task::{Pass, Work};

/// A run of sectors, all held by some layer or by none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeldRun {
    pub(super) sectors: SectorCount,
    pub(super) held: bool,
}

impl Core {
    /// Starts the answer: so many sectors from `start` as one command looks at.
    pub(super) fn begin_lba_status(
        &mut self,
        key: TaskKey,
        unit: UnitIndex,
        start: Lba,
        allocation: u32,
        read_len: u32,
    ) -> Begun {
        let Some(task) = self.tasks.get_mut(key) else { return Begun::Busy };
        task.lun = self.targets[task.target as usize].lun(unit);
        task.home = task.lun;
        task.read_len = read_len;
        task.work = Work::LbaStatus { start, allocation, runs: Vec::new() };
        let lun = &self.luns[task.lun as usize];
        let first = start.0.saturating_mul(lun.block_size.sectors());
        // Whole blocks: an odd end of the image is not part of the unit.
        let end = lun.chain.sectors().0 / lun.block_size.sectors() * lun.block_size.sectors();
        let most = SectorCount(limits::LBA_STATUS_BYTES_MAX / SECTOR_BYTES);
        task.start_pass(Pass::Status, SectorRange::between(Sector(first), Sector(end)).take(most));
        self.arrive(key);
        self.execute(key);
        Begun::Running(key)
    }

    /// Looks at the next portion. True when the task can go on at once.
    pub(super) fn status_portion(&mut self, key: TaskKey) -> bool {
        let Some(task) = self.tasks.get_mut(key) else { return false };
        let Work::LbaStatus { runs, allocation, .. } = &mut task.work else { return false };
        let lun = &self.luns[task.lun as usize];
        let mut plan = core::mem::take(&mut self.read_plan);
        let more = match self.images.resolve_read(&lun.chain, task.left, &mut plan) {
            ReadStep::NeedBitmap(read) => {
                self.load_bitmap(read, key);
                false
            }
            ReadStep::Ready { covered } => {
                for extent in &plan.extents {
                    let sectors = SectorCount(ByteCount(u64::from(extent.len)).0 / SECTOR_BYTES);
                    push(runs, HeldRun { sectors, held: extent.source != Source::Zero && !lun.erased });
                }
                task.left = task.left.skip(covered);
                // The last run may still grow, and fragments of blocks may vanish in it.
                if runs.len()
                    > lba_runs_max(*allocation).saturating_mul(2 * lun.block_size.sectors() as usize)
                {
                    task.left = task.left.skip(task.left.count());
                }
                true
            }
        };
        self.read_plan = plan;
        more
    }

    pub(super) fn status_done(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let Work::LbaStatus { start, allocation, runs } = &mut task.work else { return };
        let size = self.luns[task.lun as usize].block_size;
        let reply = lba_status(*start, &block_runs(runs, size), *allocation);
        let read_len = task.read_len;
        self.reply(key, reply, read_len);
    }
}

fn push(runs: &mut Vec<HeldRun>, run: HeldRun) {
    match runs.last_mut() {
        Some(last) if last.held == run.held => last.sectors.0 += run.sectors.0,
        _ => runs.push(run),
    }
}

/// The same in logical blocks: a block is deallocated only when all of its sectors are.
fn block_runs(runs: &[HeldRun], size: BlockSize) -> Vec<LbaRun> {
    let per_block = size.sectors();
    let mut blocks: Vec<LbaRun> = Vec::new();
    let mut push = |count: u64, mapped: bool| match blocks.last_mut() {
        _ if count == 0 => {}
        Some(last) if last.mapped == mapped => last.count.0 += count,
        _ => blocks.push(LbaRun { count: BlockCount(count), mapped }),
    };
    let (mut sector, mut block) = (0, 0);
    for run in runs {
        let end = sector + run.sectors.0;
        if !run.held {
            let (first, last) = (sector.div_ceil(per_block), end / per_block);
            if first < last {
                push(first - block, true);
                push(last - first, false);
                block = last;
            }
        }
        sector = end;
    }
    push(sector / per_block - block, true);
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(lengths: &[(u64, bool)]) -> Vec<HeldRun> {
        lengths.iter().map(|(count, held)| HeldRun { sectors: SectorCount(*count), held: *held }).collect()
    }

    fn blocks(lengths: &[(u64, bool)], size: BlockSize) -> Vec<(u64, bool)> {
        block_runs(&runs(lengths), size).iter().map(|run| (run.count.0, run.mapped)).collect()
    }

    #[test]
    fn sectors_of_512_byte_blocks_are_blocks() {
        let held = [(3, true), (5, false), (1, true)];
        assert_eq!(blocks(&held, BlockSize::B512), held);
        assert_eq!(blocks(&[(9, false)], BlockSize::B512), [(9, false)]);
    }

    #[test]
    fn a_block_with_one_held_sector_is_mapped() {
        assert_eq!(
            blocks(&[(16, false), (1, true), (15, false)], BlockSize::B4096),
            [(2, false), (1, true), (1, false)]
        );
        let crumbs = [(4, false), (1, true), (6, false), (1, true), (4, false)];
        assert_eq!(blocks(&crumbs, BlockSize::B4096), [(2, true)]);
    }

    #[test]
    fn block_runs_agree_with_a_look_at_every_sector() {
        let mut seed = 7u64;
        for _ in 0..500 {
            let mut held = Vec::new();
            let mut lengths = Vec::new();
            while held.len() < 64 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let count = (seed >> 40) % 19 + 1;
                let is_held = lengths.len() % 2 == 0;
                lengths.push((count, is_held));
                held.extend((0..count).map(|_| is_held));
            }
            let excess = held.len() as u64 % 8;
            lengths.last_mut().unwrap().0 += 8 - excess;
            held.resize(held.len() + 8 - excess as usize, *held.last().unwrap());
            let expected: Vec<_> = held.chunks(8).map(|block| block.contains(&true)).collect();
            let found: Vec<_> = block_runs(&runs(&lengths), BlockSize::B4096)
                .iter()
                .flat_map(|run| (0..run.count.0).map(|_| run.mapped))
                .collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_raw_unit_is_mapped_up_to_its_end() {
        let mut bench = crate::shard::bench::Bench::new();
        let mut cdb = [0; 16];
        cdb[..2].copy_from_slice(&[0x9E, 0x12]);
        (cdb[9], cdb[13]) = (24, 24);
        let done = bench.begin(&cdb, &[], 24);
        let crate::shard::bench::Ended { status, data, .. } = bench.reply(done).unwrap();
        assert_eq!(status, 0);
        assert_eq!(data[8..], [0, 0, 0, 0, 0, 0, 0, 24, 0, 0, 3, 0xE8, 0, 0, 0, 0]);
    }
}
