//! The write half of the executor: ranges become file writes and punched holes, then wait for their commit.
//!
//! Knows data-out pieces and short writes. Does not know the metadata they may need (`commit`).

use crate::io::{Errno, Op, Part};
use crate::limits::CHUNK_BYTES;
use crate::plan::{CommitSeq, FileSlot, IoFault, LayerId, WriteExtent, WriteKind, WriteRefused, WriteStep};
use crate::scsi::UnitFault;
use crate::units::ByteOffset;

use super::executor::{Core, TaskKey};
use super::task::{Stage, Transfer};
use super::token::{Kind, Token};

impl Core {
    /// Resolves the next portion and starts its writes. True when the task can go on at once.
    pub(super) fn write_portion(&mut self, key: TaskKey, kind: WriteKind) -> bool {
        let Some(task) = self.tasks.get_mut(key) else { return false };
        let mut plan = core::mem::take(&mut self.write_plan);
        plan.clear();
        let chain = &self.luns[task.lun as usize].chain;
        let step = self.images.resolve_write(chain, task.left, kind, &mut plan);
        let more = match step {
            Err(refused) => {
                self.fail_io(key, refusal(refused));
                false
            }
            Ok(WriteStep::NeedBitmap(read)) => {
                self.load_bitmap(read, key);
                false
            }
            Ok(WriteStep::NeedSpace(layer)) => {
                self.await_space(layer, key);
                false
            }
            Ok(WriteStep::Ready { covered, commit }) => {
                let first = (task.left.start().0 - task.range.start().0) * crate::units::SECTOR_BYTES;
                task.portion = task.left.take(covered);
                task.left = task.left.skip(covered);
                task.portion_commits = commit;
                task.transfers.clear();
                task.stage = Stage::Transfer;
                let mut position = first;
                for extent in &plan.extents {
                    if let WriteExtent::File { len, file, offset } = *extent {
                        match kind {
                            WriteKind::Data => self.write_extent(key, position, file, offset, len),
                            WriteKind::Zero => self.zero_extent(key, file, offset, u64::from(len)),
                        }
                    }
                    position += u64::from(extent.len());
                }
                true
            }
        };
        self.write_plan = plan;
        more
    }

    fn write_extent(&mut self, key: TaskKey, position: u64, file: FileSlot, offset: ByteOffset, len: u32) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        // COMPARE AND WRITE: the second half of the data-out is what is written.
        let base = match task.work {
            super::task::Work::CompareAndWrite { .. } => task.range.bytes().0,
            _ => 0,
        };
        let mut done = 0;
        while done < len {
            let Some(task) = self.tasks.get_mut(key) else { return };
            let part = task.out_part(base + position + u64::from(done), len - done);
            let Some(part) = part.filter(|part| part.len > 0) else {
                // Cannot be: `collect` has taken a buffer for every byte. Never call unwritten data written.
                self.note_fault(key, UnitFault::Internal);
                return;
            };
            let at = ByteOffset(offset.0 + u64::from(done));
            done += part.len;
            self.write_part(key, file, at, part);
        }
    }

    fn write_part(&mut self, key: TaskKey, file: FileSlot, offset: ByteOffset, part: Part) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let index = task.transfers.len() as u16;
        task.transfers.push(Transfer { file, offset, len: u64::from(part.len), done: 0 });
        task.pending += 1;
        self.submit(Token::of(Kind::Task, key, index), Op::Write { file, offset, part });
    }

    fn zero_extent(&mut self, key: TaskKey, file: FileSlot, offset: ByteOffset, len: u64) {
        if self.punch_refused {
            self.write_zeros(key, file, offset, len);
            return;
        }
        let Some(task) = self.tasks.get_mut(key) else { return };
        let index = task.transfers.len() as u16;
        task.transfers.push(Transfer { file, offset, len, done: 0 });
        task.pending += 1;
        self.submit(Token::of(Kind::Task, key, index), Op::PunchHole { file, offset, len });
    }

    fn write_zeros(&mut self, key: TaskKey, file: FileSlot, mut offset: ByteOffset, mut len: u64) {
        let zeros = self.pool.zero_chunk();
        while len > 0 {
            let take = len.min(CHUNK_BYTES as u64);
            let part = Part { buf: zeros.clone(), start: 0, len: take as u32 };
            self.write_part(key, file, offset, part);
            offset.0 += take;
            len -= take;
        }
    }

    /// A write of a task came back.
    pub(super) fn write_done(
        &mut self,
        key: TaskKey,
        index: u16,
        result: Result<u32, Errno>,
        mut part: Part,
    ) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let Some(transfer) = task.transfers.get_mut(index as usize) else { return };
        match result {
            Ok(moved @ 1..) if moved < part.len => {
                transfer.done += moved;
                part.start += moved;
                part.len -= moved;
                let offset = ByteOffset(transfer.offset.0 + u64::from(transfer.done));
                let op = Op::Write { file: transfer.file, offset, part };
                self.submit(Token::of(Kind::Task, key, index), op);
                return;
            }
            Ok(moved) if moved == part.len => {}
            Ok(_) => self.note_fault(key, UnitFault::Write),
            Err(error) => self.note_fault(key, write_fault(error)),
        }
        self.transfer_ended(key);
    }

    /// A punched hole or an fdatasync of a task came back.
    pub(super) fn control_done(&mut self, key: TaskKey, index: u16, result: Result<(), Errno>) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        if task.stage == Stage::Sync {
            let lun = task.lun as usize;
            let leaf = self.luns[lun].leaf;
            // The kernel tells of a lost page once: an earlier flush may have heard of ours.
            if result.is_err() || self.images.is_failed(leaf) {
                self.note_fault(key, UnitFault::Write);
            }
            self.transfer_ended(key);
            return;
        }
        if let Err(error) = result {
            let Some(transfer) = task.transfers.get(index as usize).copied() else { return };
            if error.0 == libc_eopnotsupp() && !task.aborted {
                tracing::info!("the file system cannot punch holes; zeros are written instead");
                self.punch_refused = true;
                self.write_zeros(key, transfer.file, transfer.offset, transfer.len);
            } else {
                self.note_fault(key, write_fault(error));
            }
        }
        self.transfer_ended(key);
    }

    fn note_fault(&mut self, key: TaskKey, fault: UnitFault) {
        let sense = self.sense_of(key, fault);
        if let Some(task) = self.tasks.get_mut(key)
            && task.sense.is_none()
        {
            task.status = crate::scsi::ScsiStatus::CheckCondition;
            task.sense = Some(sense);
        }
    }

    fn transfer_ended(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        task.pending -= 1;
        if task.pending == 0 {
            self.ready.push_back(key);
        }
    }

    pub(super) fn write_portion_done(&mut self, key: TaskKey) -> bool {
        let Some(task) = self.tasks.get_mut(key) else { return false };
        let (lun, portion, commits) = (task.lun as usize, task.portion, task.portion_commits);
        task.portion_commits = false;
        if let Some(sense) = task.sense {
            if commits {
                self.images.write_abandoned(&self.luns[lun].chain, portion);
            }
            self.fail(key, sense);
            return false;
        }
        task.stage = Stage::Resolve;
        if commits {
            let seq = self.data_written(lun, portion);
            if let Some(task) = self.tasks.get_mut(key) {
                task.commit = task.commit.max(Some(seq));
            }
        }
        true
    }

    /// All data is in the file: waits until the metadata that makes it visible is there too.
    pub(super) fn await_commit(&mut self, key: TaskKey, seq: CommitSeq) -> bool {
        let Some(task) = self.tasks.get_mut(key) else { return false };
        let leaf = self.luns[task.lun as usize].leaf;
        task.stage = Stage::Commit;
        if self.images.committed(leaf) >= seq {
            return true;
        }
        self.await_batch(leaf, seq, key);
        false
    }

    /// Woken from `Stage::Commit`: either it is committed, or the image has failed.
    pub(super) fn commit_done(&mut self, key: TaskKey) -> bool {
        let Some(task) = self.tasks.get_mut(key) else { return false };
        let leaf = self.luns[task.lun as usize].leaf;
        let Some(seq) = task.commit else { return false };
        if self.images.committed(leaf) >= seq {
            task.commit = None;
            task.stage = Stage::Resolve;
            return true;
        }
        self.fail_io(key, self.commit_fault(leaf));
        false
    }

    /// Why a commit that somebody waited for has not ended: its layer has failed, or found no space, which may come back.
    pub(super) fn commit_fault(&self, leaf: LayerId) -> UnitFault {
        if self.images.is_failed(leaf) { UnitFault::Write } else { UnitFault::NoSpace }
    }
}

fn refusal(refused: WriteRefused) -> UnitFault {
    match refused {
        // After a failed flush the medium is as good as protected: a write is not tried, whatever its place.
        WriteRefused::ReadOnly | WriteRefused::Failed => UnitFault::ReadOnly,
        WriteRefused::OutOfRange | WriteRefused::Misaligned => UnitFault::Internal,
        WriteRefused::FormatFull | WriteRefused::NoSpace => UnitFault::NoSpace,
    }
}

fn write_fault(error: Errno) -> UnitFault {
    match io_fault(error) {
        IoFault::NoSpace => UnitFault::NoSpace,
        IoFault::Failed => UnitFault::Write,
    }
}

/// ENOSPC, EDQUOT and EFBIG are a full disk; everything else is a failure.
pub(super) fn io_fault(error: Errno) -> IoFault {
    use std::io::ErrorKind;
    match std::io::Error::from_raw_os_error(error.0).kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => IoFault::NoSpace,
        _ => IoFault::Failed,
    }
}

/// EOPNOTSUPP on Linux; spelled out because only `uring` may name `libc`.
pub(super) const fn libc_eopnotsupp() -> i32 {
    95
}
