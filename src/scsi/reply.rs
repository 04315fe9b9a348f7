//! What a unit decided about a command: an answer, or work for whoever holds the data.
//!
//! Knows statuses, sense, data-in bytes and block ranges. Does not know images, buffers or sessions.

use super::copy::Copy;
use super::device::Nexus;
use super::kept::KeptUnit;
use super::rod::{Populate, TokenWrite};
use super::sanitize::SanitizeMethod;
use super::sense::Sense;
use super::status::ScsiStatus;
use crate::units::{BlockCount, BlockRange, BlockSize, Lba};

/// A logical unit of one `Device`, by its place there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitIndex(pub u32);

/// The end of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitReply {
    pub status: ScsiStatus,
    /// With CHECK CONDITION, always; otherwise never. Already in the format the unit is set to.
    pub sense: Option<Sense>,
    /// Data-in, already cut to the allocation length of the CDB.
    pub data: Vec<u8>,
}

impl UnitReply {
    pub const fn good() -> Self {
        Self { status: ScsiStatus::Good, sense: None, data: Vec::new() }
    }

    pub const fn status(status: ScsiStatus) -> Self {
        Self { status, sense: None, data: Vec::new() }
    }

    pub const fn check(sense: Sense) -> Self {
        Self { status: ScsiStatus::CheckCondition, sense: Some(sense), data: Vec::new() }
    }

    /// GOOD with at most `allocation` bytes of `data`.
    pub(super) fn data(mut data: Vec<u8>, allocation: u32) -> Self {
        data.truncate(usize::try_from(allocation).unwrap_or(usize::MAX));
        Self { status: ScsiStatus::Good, sense: None, data }
    }
}

/// What must happen for a command. Ranges lie within the unit and, where data moves, within
/// `limits::TRANSFER_BYTES_MAX`; a range with nothing in it gets here only for `CompareAndWrite`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnitPlan {
    Done(UnitReply),
    /// Data-in: the blocks. `fua`: from the medium, after anything newer in a volatile cache went there.
    Read {
        unit: UnitIndex,
        range: BlockRange,
        fua: bool,
    },
    /// Data-out: the blocks. `fua`: stable before the status. `verify`: read back and compare after writing.
    Write {
        unit: UnitIndex,
        range: BlockRange,
        fua: bool,
        verify: bool,
    },
    /// The blocks must be readable; with `compare` equal to the data-out, which is one block for all of them with
    /// `one_block`. No data-out without `compare`.
    Verify {
        unit: UnitIndex,
        range: BlockRange,
        compare: bool,
        one_block: bool,
    },
    /// Every block becomes the one block of data-out, or zeros without data-out when `zero`. `unmap`: blocks may be
    /// deallocated when the block is all zeros. Fails without the exact amount of data-out. May be longer than a transfer (`limits::WRITE_SAME_BYTES_MAX`).
    WriteSame {
        unit: UnitIndex,
        range: BlockRange,
        zero: bool,
        unmap: bool,
        fua: bool,
    },
    /// UNMAP: the blocks become deallocated and read as zeros. Ranges may overlap.
    Zero {
        unit: UnitIndex,
        ranges: Vec<BlockRange>,
    },
    /// Data-out: twice the range. The first half is compared; when equal, the second half is written; both without
    /// another write in between. Fails without the exact amount of data-out.
    CompareAndWrite {
        unit: UnitIndex,
        range: BlockRange,
        fua: bool,
    },
    /// Data-out: the blocks. They are combined by OR with what is there, without another write in between.
    OrWrite {
        unit: UnitIndex,
        range: BlockRange,
        fua: bool,
    },
    /// Data-out: the blocks, all or none of them whatever happens, stable before the status. Fails without the exact
    /// amount of data-out.
    WriteAtomic {
        unit: UnitIndex,
        range: BlockRange,
    },
    /// EXTENDED COPY: each segment in order, within what `Device::may_copy` allows; then `Device::copy_ended`.
    Copy {
        unit: UnitIndex,
        copy: Box<Copy>,
    },
    /// POPULATE TOKEN: a token for these blocks as they are while no write is under way; then `Device::rod_ended`.
    PopulateToken {
        unit: UnitIndex,
        populate: Box<Populate>,
    },
    /// WRITE USING TOKEN: the data of a token, or zeros, to these blocks; then `Device::rod_ended`.
    WriteUsingToken {
        unit: UnitIndex,
        write: Box<TokenWrite>,
    },
    /// SANITIZE: every block of the unit, whatever becomes of the command; then `Device::sanitize_ended`. With
    /// `immediate` the status comes at once.
    Sanitize {
        unit: UnitIndex,
        method: SanitizeMethod,
        immediate: bool,
    },
    /// Everything written before is stable before the status. `immediate`: the status may come at once.
    Flush {
        unit: UnitIndex,
        immediate: bool,
    },
    /// A hint: the blocks will be read soon. Without `immediate` GOOD says that they have been read once.
    PreFetch {
        unit: UnitIndex,
        range: BlockRange,
        immediate: bool,
        /// All of what was asked for; else only its first part.
        whole: bool,
    },
    /// GET LBA STATUS from `start`: answer with [`lba_status`].
    LbaStatus {
        unit: UnitIndex,
        start: Lba,
        allocation: u32,
    },
    /// `len` bytes of data-out are needed; hand them to `Device::parameter`.
    Parameter {
        len: u32,
    },
    /// What the unit must remember across restarts has changed: it is stable before `then` begins.
    Keep {
        unit: UnitIndex,
        kept: Box<KeptUnit>,
        then: Box<UnitPlan>,
    },
    /// PREEMPT AND ABORT: the commands of these nexuses on this unit end first, then the reply goes out.
    AbortThenDone {
        unit: UnitIndex,
        victims: Vec<Nexus>,
        reply: UnitReply,
    },
}

impl UnitPlan {
    /// Bytes the initiator must send for this plan.
    pub fn data_out_bytes(&self, block_size: BlockSize) -> u64 {
        let block = u64::from(block_size.bytes());
        match self {
            Self::Write { range, .. } | Self::WriteAtomic { range, .. } | Self::OrWrite { range, .. } => {
                range.count.0.saturating_mul(block)
            }
            Self::CompareAndWrite { range, .. } => range.count.0.saturating_mul(2 * block),
            Self::Verify { one_block: true, .. } | Self::WriteSame { zero: false, .. } => block,
            Self::Verify { range, compare: true, .. } => range.count.0.saturating_mul(block),
            Self::Parameter { len } => u64::from(*len),
            _ => 0,
        }
    }

    /// Bytes this plan sends to the initiator.
    pub fn data_in_bytes(&self, block_size: BlockSize) -> u64 {
        match self {
            Self::Read { range, .. } => range.count.0.saturating_mul(u64::from(block_size.bytes())),
            Self::Done(reply) | Self::AbortThenDone { reply, .. } => reply.data.len() as u64,
            _ => 0,
        }
    }
}

/// How a planned operation failed, as far as sense data tells failures apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UnitFault {
    /// The medium could not be read.
    Read,
    /// The medium could not be written or flushed.
    Write,
    /// No space is left under a thin-provisioned unit.
    NoSpace,
    /// The image takes no writes.
    ReadOnly,
    /// The blocks differ from the data-out, first at this byte of it.
    Miscompare { offset: u64 },
    /// The initiator sent, or announced, another amount of data than the CDB asks for.
    DataOutLength,
    /// The data the initiator announced ends within a block.
    PartialBlock,
    /// A limit or invariant of the target itself.
    Internal,
}

/// One run of GET LBA STATUS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LbaRun {
    pub count: BlockCount,
    /// False: the blocks are deallocated and read as zeros.
    pub mapped: bool,
}

/// Room for runs in an answer to [`UnitPlan::LbaStatus`]: more would be cut off.
pub fn lba_runs_max(allocation: u32) -> usize {
    let cap = crate::limits::REPLY_BYTES_MAX as u32;
    ((allocation.min(cap)).saturating_sub(8) / 16).max(1) as usize
}

/// The parameter data of GET LBA STATUS (SBC-3, 5.6.3): runs from `start` on, at least one, none empty.
pub fn lba_status(start: Lba, runs: &[LbaRun], allocation: u32) -> UnitReply {
    const MAPPED: u8 = 0;
    const DEALLOCATED: u8 = 1;
    let mut data = vec![0; 8];
    let mut lba = start.0;
    for run in runs.iter().take(lba_runs_max(allocation)) {
        let mut left = run.count.0;
        // A descriptor counts 32 bits; a longer run takes several, and what does not fit is left to the next ask.
        while left > 0 && data.len() + 16 <= crate::limits::REPLY_BYTES_MAX {
            let count = u32::try_from(left).unwrap_or(u32::MAX);
            data.extend(lba.to_be_bytes());
            data.extend(count.to_be_bytes());
            data.extend([if run.mapped { MAPPED } else { DEALLOCATED }, 0, 0, 0]);
            lba = lba.saturating_add(u64::from(count));
            left -= u64::from(count);
        }
    }
    // PARAMETER DATA LENGTH counts from byte 4 on, whatever the allocation length cuts.
    let len = (data.len() - 4) as u32;
    data[..4].copy_from_slice(&len.to_be_bytes());
    UnitReply::data(data, allocation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lba_status_lists_runs_in_order() {
        let runs =
            [LbaRun { count: BlockCount(8), mapped: true }, LbaRun { count: BlockCount(16), mapped: false }];
        let reply = lba_status(Lba(100), &runs, 4096);
        assert_eq!(reply.data.len(), 8 + 32);
        assert_eq!(reply.data[..4], 36u32.to_be_bytes());
        assert_eq!(reply.data[8..20], [0, 0, 0, 0, 0, 0, 0, 100, 0, 0, 0, 8]);
        assert_eq!(reply.data[24..40], [0, 0, 0, 0, 0, 0, 0, 108, 0, 0, 0, 16, 1, 0, 0, 0]);
    }

    #[test]
    fn lba_status_of_a_huge_run_stays_bounded() {
        let reply = lba_status(Lba(0), &[LbaRun { count: BlockCount(u64::MAX), mapped: false }], u32::MAX);
        assert!(reply.data.len() <= crate::limits::REPLY_BYTES_MAX);
        assert_eq!(lba_runs_max(24), 1);
        assert_eq!(lba_runs_max(0), 1);
    }

    #[test]
    fn data_lengths_of_plans() {
        let range = BlockRange { start: Lba(0), count: BlockCount(3) };
        let unit = UnitIndex(0);
        let size = BlockSize::B512;
        let write = UnitPlan::Write { unit, range, fua: false, verify: false };
        assert_eq!(write.data_out_bytes(size), 1536);
        let swap = UnitPlan::CompareAndWrite { unit, range, fua: false };
        assert_eq!(swap.data_out_bytes(size), 3072);
        let same = UnitPlan::WriteSame { unit, range, zero: false, unmap: true, fua: false };
        assert_eq!(same.data_out_bytes(size), 512);
        let verify = UnitPlan::Verify { unit, range, compare: false, one_block: false };
        assert_eq!(verify.data_out_bytes(size), 0);
        assert_eq!(UnitPlan::Read { unit, range, fua: false }.data_in_bytes(size), 1536);
    }
}
