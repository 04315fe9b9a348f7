//! PRE-FETCH (SBC-3, 5.10): blocks go into the golden cache before they are read.
//!
//! Knows which of them are there or on their way, and what status says so. Does not know how they are read (`fill_path`).
//!
//! | the blocks                                                  | status        |
//! |-------------------------------------------------------------|---------------|
//! | all golden (or zeros beside golden ones), in the cache or being read | CONDITION MET |
//! | some find no place there, or the command was cut short      | GOOD          |
//! | some are the unit's own: the kernel's cache is not ours to promise | GOOD   |
//! | none is golden                                              | GOOD          |
//!
//! With IMMED nobody waits for the reads; without, the data is read as for VERIFY.

use crate::plan::{ReadStep, Source};
use crate::scsi::ScsiStatus;

use super::executor::{Core, TaskKey};
use super::task::{Task, Work};

impl Work {
    /// PRE-FETCH: some blocks are in the cache, or on their way there; or they are not.
    pub(super) fn note_cached(&mut self, cached: bool) {
        if let Self::PreFetch { held, missed } = self {
            *held |= cached;
            *missed |= !cached;
        }
    }
}

impl Task {
    /// The command ends.
    pub(super) fn note_pre_fetched(&mut self) {
        if let Work::PreFetch { held: true, missed: false } = self.work
            && self.sense.is_none()
        {
            self.status = ScsiStatus::ConditionMet;
        }
    }
}

impl Core {
    /// PRE-FETCH: begins to read what lies in golden files. True when the task can go on at once.
    pub(super) fn prefetch_portion(&mut self, key: TaskKey) -> bool {
        let Some(task) = self.tasks.get_mut(key) else { return false };
        let mut plan = core::mem::take(&mut self.read_plan);
        let chain = &self.luns[task.lun as usize].chain;
        let more = match self.images.resolve_read(chain, task.left, &mut plan) {
            ReadStep::NeedBitmap(read) => {
                self.load_bitmap(read, key);
                false
            }
            ReadStep::Ready { covered } => {
                task.left = task.left.skip(covered);
                for extent in &plan.extents {
                    if let Source::File { file, offset, immutable } = extent.source {
                        let cached = immutable && self.cache.prefetch(file, offset, extent.len);
                        task.work.note_cached(cached);
                    }
                }
                true
            }
        };
        self.read_plan = plan;
        more
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::cache::{Golden, GoldenCache};
    use crate::image::{Chain, Layer};
    use crate::io::{Op, Outcome};
    use crate::plan::FileSlot;
    use crate::scsi::ScsiStatus;
    use crate::shard::bench::Bench;
    use crate::shard::token::Token;
    use crate::units::SectorCount;

    const GOLDEN: FileSlot = FileSlot(7);

    /// A unit on a golden file of 512 KiB, and a cache for 256 KiB of it.
    fn golden() -> Bench {
        let mut bench = Bench::new();
        let cache = Arc::new(Golden::new(4, false).unwrap());
        let number = cache.register(512 * 1024).unwrap();
        bench.core.cache = GoldenCache::new(cache, 0);
        bench.core.cache.set_file(GOLDEN, number, GOLDEN);
        let layer = bench.core.images.add(Layer::raw(GOLDEN, SectorCount(1024), false));
        bench.core.luns[0].chain = Chain::new(&bench.core.images, vec![layer]).unwrap();
        bench
    }

    /// PRE-FETCH (10) of so many blocks; its status once all reads have ended, well or not.
    fn pre_fetch(bench: &mut Bench, blocks: u16, immediate: bool, well: bool) -> u8 {
        let [a, b] = blocks.to_be_bytes();
        let task = bench.begin(&[0x34, u8::from(immediate) << 1, 0, 0, 0, 0, 0, a, b, 0], &[], 0);
        for _ in 0..4 {
            bench.core.run_ready();
            bench.core.read_claims();
            for (token, op) in core::mem::take(&mut bench.core.ops) {
                let Op::Fill { fills, .. } = op else {
                    bench.complete((token, op));
                    continue;
                };
                let bytes: u32 = fills.iter().map(|fill| fill.left()).sum();
                let result = if well { Ok(bytes) } else { Err(crate::io::Errno(5)) };
                bench.core.file_op_done(Token::decode(token).unwrap(), Outcome::Filled { result, fills });
            }
        }
        bench.reply(task).unwrap().status
    }

    #[test]
    fn what_fits_into_the_cache_meets_the_condition() {
        for immediate in [false, true] {
            let met = ScsiStatus::ConditionMet.code();
            let mut bench = golden();
            assert_eq!(pre_fetch(&mut bench, 512, immediate, true), met);
            assert_eq!(pre_fetch(&mut bench, 512, immediate, true), met, "it is there");
            assert_eq!(bench.core.cache.counts.filled_bytes, 256 * 1024, "and was read once");
        }
    }

    #[test]
    fn what_does_not_fit_or_is_no_golden_data_is_good() {
        for immediate in [false, true] {
            assert_eq!(pre_fetch(&mut golden(), 1024, immediate, true), 0, "half of it finds a place");
            assert_eq!(pre_fetch(&mut Bench::new(), 8, immediate, true), 0, "the unit's own data");
        }
    }

    #[test]
    fn a_read_that_fails_is_no_condition_met() {
        assert_eq!(pre_fetch(&mut golden(), 8, false, false), ScsiStatus::CheckCondition.code());
    }
}
