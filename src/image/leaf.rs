//! A layer that is written: the formats' own methods, told apart once.
//!
//! Knows which format a layer has. Does not know chains (`write`) nor what a format does.

use super::Layer;
use crate::plan::{BatchEnd, CommitSeq, IoFault, MetaBatch, RecordSink, WriteRefused, WriteRun};
use crate::units::{ByteOffset, SECTOR_BYTES, SectorRange};

impl Layer {
    /// As [`crate::vhd::VhdImage::write_run_at`].
    pub(super) fn write_run_at(&mut self, at: u64, max: u64) -> Result<WriteRun, WriteRefused> {
        match self {
            _ if self.is_failed() => Err(WriteRefused::Failed),
            Self::Vhd(vhd) => vhd.image.write_run_at(at, max),
            Self::Vhdx(vhdx) => vhdx.image.write_run_at(at, max),
            Self::Raw(raw) if raw.writable => {
                let offset = ByteOffset(at * SECTOR_BYTES);
                Ok(WriteRun::InPlace { offset, sectors: max, commit: false })
            }
            Self::Raw(_) => Err(WriteRefused::ReadOnly),
        }
    }

    /// As [`crate::vhd::VhdImage::reserve`].
    pub(super) fn reserve(&mut self, sector: u64) -> Result<bool, WriteRefused> {
        match self {
            Self::Raw(_) => Err(WriteRefused::ReadOnly),
            Self::Vhd(vhd) => vhd.image.reserve(sector),
            Self::Vhdx(vhdx) => vhdx.image.reserve(sector),
        }
    }

    pub(super) fn write_resolved(&mut self, range: SectorRange) {
        match self {
            Self::Raw(_) => {}
            Self::Vhd(vhd) => vhd.image.write_resolved(range),
            Self::Vhdx(vhdx) => vhdx.image.write_resolved(range),
        }
    }

    /// As [`super::Images::data_written`].
    pub(super) fn data_written(&mut self, range: SectorRange, sink: &mut dyn RecordSink) -> CommitSeq {
        match self {
            Self::Raw(_) => CommitSeq(0),
            Self::Vhd(vhd) => vhd.image.data_written(range, sink),
            Self::Vhdx(vhdx) => vhdx.image.data_written(range, sink),
        }
    }

    /// Of writes that were answered and are only recorded.
    pub(super) fn request_commit(&mut self) -> CommitSeq {
        match self {
            Self::Raw(_) => CommitSeq(0),
            Self::Vhd(vhd) => vhd.image.request_commit(),
            Self::Vhdx(vhdx) => vhdx.image.request_commit(),
        }
    }

    pub(super) fn commit_begun(&self) -> CommitSeq {
        match self {
            Self::Raw(_) => CommitSeq(0),
            Self::Vhd(vhd) => vhd.image.commit_begun(),
            Self::Vhdx(vhdx) => vhdx.image.commit_begun(),
        }
    }

    pub(super) fn pending_blocks(&self) -> usize {
        match self {
            Self::Raw(_) => 0,
            Self::Vhd(vhd) => vhd.image.pending_blocks(),
            Self::Vhdx(vhdx) => vhdx.image.pending_blocks(),
        }
    }

    pub(super) fn write_abandoned(&mut self, range: SectorRange) {
        match self {
            Self::Raw(_) => {}
            Self::Vhd(vhd) => vhd.image.write_abandoned(range),
            Self::Vhdx(vhdx) => vhdx.image.write_abandoned(range),
        }
    }

    pub(super) fn next_meta_batch(&mut self, batch: &mut MetaBatch) -> bool {
        match self {
            Self::Raw(_) => false,
            Self::Vhd(vhd) => vhd.image.next_meta_batch(batch),
            Self::Vhdx(vhdx) => vhdx.image.next_meta_batch(batch),
        }
    }

    pub(super) fn meta_batch_done(&mut self, result: Result<(), IoFault>) -> BatchEnd {
        match self {
            Self::Raw(_) => BatchEnd::Done,
            Self::Vhd(vhd) => vhd.image.meta_batch_done(result),
            Self::Vhdx(vhdx) => vhdx.image.meta_batch_done(result),
        }
    }

    pub(super) fn committed(&self) -> CommitSeq {
        match self {
            Self::Raw(_) => CommitSeq(0),
            Self::Vhd(vhd) => vhd.image.committed(),
            Self::Vhdx(vhdx) => vhdx.image.committed(),
        }
    }

    pub(super) fn begin_close(&mut self) {
        match self {
            Self::Raw(_) => {}
            Self::Vhd(vhd) => vhd.image.begin_close(),
            Self::Vhdx(vhdx) => vhdx.image.begin_close(),
        }
    }

    /// As [`super::Images::begin_reset`].
    pub(super) fn begin_reset(&mut self) -> bool {
        match self {
            Self::Raw(_) => false,
            Self::Vhd(vhd) => {
                let begun = vhd.image.begin_reset();
                vhd.failed &= !begun;
                begun
            }
            Self::Vhdx(vhdx) => {
                let begun = vhdx.image.begin_reset();
                vhdx.failed &= !begun;
                begun
            }
        }
    }

    /// As [`super::Images::fail`].
    pub(super) fn fail(&mut self) {
        match self {
            Self::Raw(raw) => raw.failed = true,
            Self::Vhd(vhd) => {
                vhd.failed = true;
                vhd.image.fail();
            }
            Self::Vhdx(vhdx) => {
                vhdx.failed = true;
                vhdx.image.fail();
            }
        }
    }
}
