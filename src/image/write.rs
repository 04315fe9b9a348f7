//! Writes to a chain: they go to the leaf, and only to the leaf.
//!
//! Knows when a write of zeros changes nothing, and which parts of a write need a commit. Does not know the order in
//! which a leaf changes its file: that is the leaf's metadata machine, which passes through here.

use super::images::{ChainRun, EXTENT_SECTORS_MAX, Images, bitmap_read};
use super::{Chain, Layer};
use crate::plan::{
    BatchEnd, CommitSeq, FileSlot, IoFault, LayerId, MetaBatch, RecordSink, Source, WriteExtent, WriteKind,
    WritePlan, WriteRefused, WriteRun, WriteStep,
};
use crate::units::{SECTOR_BYTES, Sector, SectorCount, SectorRange};

/// What stopped a plan before its end.
enum Stop {
    Step(WriteStep),
    /// Enough for one step.
    Cut,
}

/// How far a plan has come.
struct Progress {
    at: u64,
    commit: bool,
    skips: bool,
}

impl Images {
    /// Says where the bytes of a write go. `plan` is cleared first.
    ///
    /// A step with `commit` has only file extents. After it, each of its `covered` sectors is reported exactly once,
    /// in any parts: [`Self::data_written`] when the extents are written, [`Self::write_abandoned`] when not. A step
    /// without `commit` is complete when its extents are written, and is not reported.
    ///
    /// # Errors
    /// Why the write cannot be done; nothing was reserved for it.
    pub fn resolve_write(
        &mut self,
        chain: &Chain,
        range: SectorRange,
        kind: WriteKind,
        plan: &mut WritePlan,
    ) -> Result<WriteStep, WriteRefused> {
        plan.clear();
        if range.end().0 > chain.sectors().0 {
            return Err(WriteRefused::OutOfRange);
        }
        let mut progress = Progress { at: range.start().0, commit: false, skips: false };
        while progress.at < range.end().0 {
            match self.resolve_write_run(chain, range.end().0, kind, &mut progress, plan) {
                Ok(()) => {}
                Err(Ok(Stop::Step(step))) if plan.extents.is_empty() => return Ok(step),
                Err(Err(refused)) if plan.extents.is_empty() => return Err(refused),
                // What was resolved so far goes first; the rest is asked for again.
                Err(_) => break,
            }
        }
        let covered = SectorCount(progress.at - range.start().0);
        if !progress.commit {
            self.write_abandoned(chain, range.take(covered));
        }
        Ok(WriteStep::Ready { covered, commit: progress.commit })
    }

    /// One run of the write, at `progress.at`.
    fn resolve_write_run(
        &mut self,
        chain: &Chain,
        end: u64,
        kind: WriteKind,
        progress: &mut Progress,
        plan: &mut WritePlan,
    ) -> Result<(), Result<Stop, WriteRefused>> {
        let at = progress.at;
        let leaf = chain.leaf();
        let stop = |step| Err(Ok(Stop::Step(step)));
        let max = (end - at).min(EXTENT_SECTORS_MAX);
        let (file, run) = self.leaf_run(leaf, at, max).map_err(Err)?;
        let (extent, sectors) = match run {
            WriteRun::NeedBitmap(request) => {
                return stop(WriteStep::NeedBitmap(bitmap_read(leaf, file, request)));
            }
            WriteRun::NeedMetadata => return stop(WriteStep::NeedSpace(leaf)),
            WriteRun::InPlace { offset, sectors, commit } => {
                if commit && progress.skips {
                    return Err(Ok(Stop::Cut));
                }
                progress.commit |= commit;
                (WriteExtent::File { len: bytes(sectors), file, offset }, sectors)
            }
            WriteRun::Unallocated { sectors } => {
                if kind == WriteKind::Zero && self.reads_zero(chain, at, sectors)? {
                    if progress.commit {
                        return Err(Ok(Stop::Cut));
                    }
                    progress.skips = true;
                    (WriteExtent::Skip { len: bytes(sectors) }, sectors)
                } else {
                    let layer = self.layer_mut(leaf).ok_or(Err(WriteRefused::ReadOnly))?;
                    return match layer.reserve(at) {
                        Ok(true) => Ok(()),
                        Ok(false) => stop(WriteStep::NeedSpace(leaf)),
                        Err(refused) => Err(Err(refused)),
                    };
                }
            }
        };
        if !plan.push(extent) {
            return Err(Ok(Stop::Cut));
        }
        if let (WriteExtent::File { .. }, Some(layer)) = (extent, self.layer_mut(leaf)) {
            // At once: the next run may make room for another block's bitmap.
            layer.write_resolved(SectorRange::between(Sector(at), Sector(at + sectors)));
        }
        progress.at += sectors;
        Ok(())
    }

    fn leaf_run(&mut self, leaf: LayerId, at: u64, max: u64) -> Result<(FileSlot, WriteRun), WriteRefused> {
        let layer = self.layer_mut(leaf).ok_or(WriteRefused::ReadOnly)?;
        Ok((layer.file(), layer.write_run_at(at, max)?))
    }

    /// True when no layer has any of these sectors: the leaf says that they are zeros, or asks parents that say so.
    fn reads_zero(
        &mut self,
        chain: &Chain,
        at: u64,
        sectors: u64,
    ) -> Result<bool, Result<Stop, WriteRefused>> {
        let mut done = 0;
        while done < sectors {
            match self.run(chain.layers(), at + done, sectors - done) {
                ChainRun::NeedBitmap(read) => return Err(Ok(Stop::Step(WriteStep::NeedBitmap(read)))),
                ChainRun::Extent { source: Source::File { .. }, .. } => return Ok(false),
                ChainRun::Extent { source: Source::Zero, sectors: zeros } => done += zeros,
            }
        }
        Ok(true)
    }

    /// The data of `range` (a resolved write whose step said `commit`, or a part of it) is in the file. The write is
    /// complete when [`Self::committed`] reaches the answer, and never when [`Self::is_failed`]. `sink` is offered a
    /// record of each part that the file does not say yet; where it takes them all, the write is complete at once, and
    /// the records are to be kept until the commit after [`Self::commit_begun`] of now has ended.
    pub fn data_written(
        &mut self,
        chain: &Chain,
        range: SectorRange,
        sink: &mut dyn RecordSink,
    ) -> CommitSeq {
        self.layer_mut(chain.leaf()).map_or(CommitSeq(0), |layer| layer.data_written(range, sink))
    }

    /// A resolved write whose step said `commit`, or a part of it, was not done or failed.
    pub fn write_abandoned(&mut self, chain: &Chain, range: SectorRange) {
        if let Some(layer) = self.layer_mut(chain.leaf()) {
            layer.write_abandoned(range);
        }
    }

    /// The next file operations of a leaf's metadata. False: nothing to do now, or a batch is being run.
    pub fn next_meta_batch(&mut self, layer: LayerId, batch: &mut MetaBatch) -> bool {
        batch.clear();
        self.layer_mut(layer).is_some_and(|layer| layer.next_meta_batch(batch))
    }

    /// All operations of the batch have ended; `result` is the first failure among them.
    pub fn meta_batch_done(&mut self, layer: LayerId, result: Result<(), IoFault>) -> BatchEnd {
        self.layer_mut(layer).map_or(BatchEnd::Done, |layer| layer.meta_batch_done(result))
    }

    /// Asks for a commit of all that was written to a leaf so far: run batches until [`Self::committed`] reaches the
    /// answer.
    pub fn request_commit(&mut self, layer: LayerId) -> CommitSeq {
        self.layer_mut(layer).map_or(CommitSeq(0), Layer::request_commit)
    }

    /// The last commit that was begun: it has what was written before its flush was handed out, and nothing else.
    pub fn commit_begun(&self, layer: LayerId) -> CommitSeq {
        self.layer(layer).map_or(CommitSeq(0), Layer::commit_begun)
    }

    /// Blocks of a leaf with something that waits for its next commit.
    pub fn pending_blocks(&self, layer: LayerId) -> usize {
        self.layer(layer).map_or(0, Layer::pending_blocks)
    }

    /// The last finished commit of a layer.
    pub fn committed(&self, layer: LayerId) -> CommitSeq {
        self.layer(layer).map_or(CommitSeq(0), Layer::committed)
    }

    /// The layer takes no more writes, and writes that wait for a commit have failed. Reads go on.
    pub fn is_failed(&self, layer: LayerId) -> bool {
        self.layer(layer).is_some_and(Layer::is_failed)
    }

    /// A flush of the leaf's file failed, so that what it should have made stable may be lost: from here on the
    /// layer takes no more writes. Reads go on; the layer does not become immutable, because writes that were
    /// resolved before may still end.
    pub fn fail(&mut self, layer: LayerId) {
        if let Some(layer) = self.layer_mut(layer) {
            layer.fail();
        }
    }

    /// Gives up all that was written to a leaf, which must be a child; nothing may be under way for it, and no operation
    /// of a batch be with anybody. The batches that follow empty the file; then its parent shows through everywhere, and
    /// a layer that had failed takes writes again. False, and nothing happens, where it is no child that is written.
    pub fn begin_reset(&mut self, layer: LayerId) -> bool {
        self.layer_mut(layer).is_some_and(Layer::begin_reset)
    }

    /// Refuses further writes and lets the metadata batches finish the file: the log is emptied (VHDX), the
    /// footer moves down to the last block (VHD), and the unused end is cut. Call when no write is in flight; then run batches until there is none.
    pub fn begin_close(&mut self, layer: LayerId) {
        if let Some(layer) = self.layer_mut(layer) {
            layer.begin_close();
        }
    }
}

/// Runs are at most `EXTENT_SECTORS_MAX` long, so their bytes fit.
fn bytes(sectors: u64) -> u32 {
    (sectors * SECTOR_BYTES) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::ReadPlan;

    #[test]
    fn a_raw_layer_refuses_writes_after_a_failed_flush_and_stays_uncached() {
        let mut images = Images::new();
        let leaf = images.add(Layer::raw(FileSlot(0), SectorCount(8), true));
        let chain = Chain::new(&images, vec![leaf]).unwrap();
        let range = SectorRange::between(Sector(0), Sector(8));
        let mut plan = WritePlan::default();
        assert!(images.resolve_write(&chain, range, WriteKind::Data, &mut plan).is_ok());
        images.fail(leaf);
        assert!(images.is_failed(leaf));
        let refused = images.resolve_write(&chain, range, WriteKind::Data, &mut plan);
        assert_eq!(refused, Err(WriteRefused::Failed));
        let mut plan = ReadPlan::default();
        images.resolve_read(&chain, range, &mut plan);
        assert!(matches!(plan.extents[0].source, Source::File { immutable: false, .. }));
    }
}
