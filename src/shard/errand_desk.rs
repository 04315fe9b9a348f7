//! Errands of other shards, done here: a portion of a copy is read, written or made stable by a task of its own.
//!
//! Knows the units of this shard, and who may still use them: each errand is looked at anew, because sessions end,
//! reservations change and units go while a copy is under way. Does not know the copy it is for (`copy`).
//!
//! The task is in the background, takes its turns as any other command does, and answers when it is gone: what it was to
//! write is then in the file, or never will be.

use std::sync::Arc;

use crate::buf::BufRef;
use crate::limits;
use crate::plan::WriteKind;
use crate::scsi::{Nexus, ROD_TOKEN_BYTES, Sense, UnitFault, UnitIndex};
use crate::units::{BlockCount, BlockRange, Lba, Sector, SectorRange};

use super::ShardId;
use super::errands::{Abroad, Answer, By, Doing, Errand};
use super::executor::{Core, TaskKey};
use super::task::{Pass, Work};
use super::turns::Turn;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// By what token, if not by an initiator.
    Read(Option<u16>),
    Write,
    Flush,
}

/// What a task does for another shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ErrandWork {
    kind: Kind,
    /// What was read is zeros.
    zeros: bool,
    ended: bool,
}

impl ErrandWork {
    pub(super) fn turn(&self) -> Turn {
        match self.kind {
            Kind::Read(_) => Turn::Reads,
            Kind::Write => Turn::Shared,
            Kind::Flush => Turn::None,
        }
    }

    pub(super) fn flushes(&self) -> bool {
        self.kind == Kind::Flush
    }

    pub(super) fn end(&mut self) {
        self.ended = true;
    }
}

impl Core {
    pub(super) fn errand_asked(&mut self, from: ShardId, ticket: u64, errand: Errand) {
        let answer = match errand {
            Errand::Find { initiator, devices } => {
                let found = devices.iter().map(|device| self.reach_by_name(&initiator, device));
                Answer::Found(found.map(|it| it.map(|it| self.reached_from_abroad(it))).collect())
            }
            Errand::Open { token, skip } => match self.open_token(&token, skip) {
                Ok(answer) => answer,
                Err(sense) => Answer::Failed(sense),
            },
            Errand::Close { unit, serial, delete } => {
                if self.unit_of(unit).is_ok() {
                    self.end_token_use(unit.lun, serial, delete);
                }
                return;
            }
            Errand::Read { unit, by, range, parcel } => {
                let kind = Kind::Read(if let By::Token(serial) = by { Some(serial) } else { None });
                let begun = self.may_do(unit, &by, range, false).and_then(|nexus| {
                    self.begin_errand((from, ticket), unit, nexus, kind, (Pass::Read, range), parcel)
                });
                let Err(sense) = begun else { return };
                Answer::Failed(sense)
            }
            Errand::Write { unit, by, range, zeros, parcel } => {
                let pass = Pass::Write(if zeros { WriteKind::Zero } else { WriteKind::Data });
                let fits = zeros || parcel.len() as u64 == range.bytes().0;
                let may = if fits { self.may_do(unit, &by, range, true) } else { Err(Sense::COPY_ABORTED) };
                let begun = may.and_then(|nexus| {
                    self.begin_errand((from, ticket), unit, nexus, Kind::Write, (pass, range), parcel)
                });
                let Err(sense) = begun else { return };
                Answer::Failed(sense)
            }
            Errand::Flush { unit } => {
                let pass = (Pass::Read, SectorRange::between(Sector(0), Sector(0)));
                let begun = self.unit_of(unit).and_then(|_| {
                    self.begin_errand((from, ticket), unit, Nexus(0), Kind::Flush, pass, Vec::new())
                });
                let Err(sense) = begun else { return };
                Answer::Failed(sense)
            }
        };
        self.errands.answer(from, ticket, answer);
    }

    /// The target and the unit, if it is still the one that was meant.
    fn unit_of(&self, unit: Abroad) -> Result<(usize, UnitIndex), Sense> {
        let lun = self.luns.get(unit.lun as usize).filter(|lun| lun.born == unit.born && !lun.ends);
        let lun = lun.ok_or(Sense::COPY_UNREACHABLE)?;
        let target = lun.target as usize;
        let held = self.errands.closed || self.targets[target].is_held();
        if held { Err(Sense::COPY_UNREACHABLE) } else { Ok((target, lun.unit)) }
    }

    /// Whether these sectors of the unit may be read, or written, now; and for whom.
    fn may_do(&mut self, at: Abroad, by: &By, range: SectorRange, writes: bool) -> Result<Nexus, Sense> {
        let (target, unit) = self.unit_of(at)?;
        match by {
            By::Token(serial) => {
                self.targets[target].device.may_read_rod(unit)?;
                self.check_token(at.lun, *serial)?;
                Ok(Nexus(0))
            }
            By::Initiator(name) => {
                let per_block = self.luns[at.lun as usize].block_size.sectors();
                let start = range.start().0 / per_block;
                let end = range.end().0.div_ceil(per_block);
                let blocks = BlockRange { start: Lba(start), count: BlockCount(end - start) };
                let nexus = self.nexus_of(target, unit, name).ok_or(Sense::COPY_UNREACHABLE)?;
                self.targets[target].device.may_copy(nexus, unit, blocks, writes)?;
                Ok(nexus)
            }
        }
    }

    /// A session of this initiator that sees the unit.
    fn nexus_of(&self, target: usize, unit: UnitIndex, name: &Arc<str>) -> Option<Nexus> {
        let target = &self.targets[target];
        let field = target.device.lun(unit)?.to_field();
        let mut own = target.sessions.iter().filter(|entry| *entry.initiator == **name);
        own.find(|entry| target.device.unit_for(entry.nexus, field) == Some(unit)).map(|entry| entry.nexus)
    }

    fn open_token(&mut self, token: &[u8; ROD_TOKEN_BYTES], skip: u64) -> Result<Answer, Sense> {
        let (lun, serial) = self.find_token(token)?;
        let ranges = self.ranges_from(lun, serial, skip)?;
        let born = self.luns[lun as usize].born;
        let unit = Abroad { shard: self.errands.shard, lun, born };
        self.unit_of(unit)?;
        self.begin_token_use(lun, serial);
        Ok(Answer::Opened { unit, serial, ranges })
    }

    fn begin_errand(
        &mut self,
        (from, ticket): (ShardId, u64),
        unit: Abroad,
        nexus: Nexus,
        kind: Kind,
        (pass, range): (Pass, SectorRange),
        parcel: Vec<u8>,
    ) -> Result<(), Sense> {
        let (target, _) = self.unit_of(unit)?;
        let key = self.spawn(target as u32, unit.lun, nexus).ok_or(Sense::COPY_ABORTED)?;
        let Some(task) = self.tasks.get_mut(key) else { return Ok(()) };
        task.work = Work::Errand(Box::new(ErrandWork { kind, zeros: false, ended: false }));
        task.parcel_waits = pass == Pass::Write(WriteKind::Data);
        task.parcel = parcel;
        task.start_pass(pass, range);
        self.errands.doing.push(Doing { from, ticket, task: key });
        self.execute(key);
        Ok(())
    }

    /// The range of an errand is read.
    pub(super) fn errand_read(&mut self, key: TaskKey) {
        let zeros = self.pool.zero_chunk();
        let Some(task) = self.tasks.get_mut(key) else { return };
        let all_zero = task.is_all_zero(&zeros);
        let lun = task.lun;
        let Work::Errand(errand) = &mut task.work else { return };
        errand.zeros = all_zero;
        let kind = errand.kind;
        if let Kind::Read(Some(serial)) = kind
            && let Err(sense) = self.check_token(lun, serial)
        {
            self.fail(key, sense);
            return;
        }
        if !all_zero {
            self.pack(key);
        }
        self.finish(key);
    }

    /// What was read becomes a parcel, and its buffers are free.
    pub(super) fn pack(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let mut parcel = core::mem::take(&mut task.parcel);
        parcel.clear();
        parcel.reserve_exact(limits::COPY_PORTION_BYTES as usize);
        for part in task.in_parts(0, task.in_len()) {
            let bytes = part.buf.as_slice();
            parcel.extend_from_slice(&bytes[part.start as usize..(part.start + part.len) as usize]);
        }
        task.parcel = parcel;
        task.segments.clear();
        self.freed = true;
    }

    /// A parcel that is to be written gets its buffers. True when the task can go on at once.
    pub(super) fn unpack(&mut self, key: TaskKey) -> bool {
        let Some(task) = self.tasks.get(key) else { return false };
        let chunks = task.parcel.len().div_ceil(limits::CHUNK_BYTES) as u32;
        if !self.affords(key, chunks, 0) {
            self.park(key);
            return false;
        }
        let Some(task) = self.tasks.get_mut(key) else { return false };
        task.parcel_waits = false;
        let parcel = core::mem::take(&mut task.parcel);
        task.segments.clear();
        for piece in parcel.chunks(limits::CHUNK_BYTES) {
            let Some(mut buf) = self.pool.take_chunk() else { break };
            buf.as_mut_slice()[..piece.len()].copy_from_slice(piece);
            let buf: BufRef = buf.share();
            task.push_segment(0, piece.len() as u32, Some(buf));
        }
        let whole = task.in_len() as usize == parcel.len();
        task.parcel = parcel;
        if !whole {
            // `affords` has counted them.
            self.fail_io(key, UnitFault::Internal);
        }
        whole
    }

    /// The task of an errand is going: who asked for it is told.
    pub(super) fn errand_left(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let Work::Errand(errand) = &task.work else { return };
        let answer = match (task.sense, errand.ended && !task.aborted) {
            (Some(sense), _) => Answer::Failed(sense),
            (None, false) => Answer::Failed(Sense::COPY_ABORTED),
            (None, true) => Answer::Done { zeros: errand.zeros, parcel: core::mem::take(&mut task.parcel) },
        };
        task.work = Work::Reply;
        let Some(at) = self.errands.doing.iter().position(|doing| doing.task == key) else { return };
        let Doing { from, ticket, .. } = self.errands.doing.swap_remove(at);
        self.errands.answer(from, ticket, answer);
    }

    /// A reset of a target, or of one unit of it: what others have it do there ends.
    pub(super) fn end_errands_at(&mut self, target: u32, unit: Option<UnitIndex>) {
        let lun = unit.map(|unit| self.lun_of(target, unit));
        let hit: Vec<TaskKey> = self
            .errands
            .doing
            .iter()
            .map(|doing| doing.task)
            .filter(|key| {
                let of = |task: &super::task::Task| {
                    task.target == target && lun.is_none_or(|lun| task.home == lun)
                };
                self.tasks.get(*key).is_some_and(|task| of(task))
            })
            .collect();
        for key in hit {
            self.abort(key);
        }
    }
}
