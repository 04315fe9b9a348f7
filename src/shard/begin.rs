//! The first half of a command: what `scsi` decides becomes work, and data-out gets its buffers.
//!
//! Knows plans of units and parameter lists. Does not know how work is driven (`executor`) nor PDUs.

use crate::iscsi::pdu::scsi_command::TaskAttribute;
use crate::limits;
use crate::plan::WriteKind;
use crate::scsi::{Sense, UnitFault, UnitIndex, UnitPlan, UnitReply};
use crate::units::{BlockCount, BlockRange, Lba, SECTOR_BYTES, SectorCount, SectorRange};

use super::atomic::AtomicStep;
use super::executor::{Begun, Core, Preempting, Request, TaskKey};
use super::task::{Pass, Stage, Task, Work};

const NOTHING: BlockRange = BlockRange { start: Lba(0), count: BlockCount(0) };

impl Core {
    /// Decides and starts a command.
    pub(super) fn begin(&mut self, request: &Request) -> Begun {
        if !self.has_room() {
            self.refused = true;
            return Begun::Busy;
        }
        let mut task = self.spare.pop().unwrap_or_else(|| Box::new(Task::idle()));
        task.conn = request.conn;
        task.id = request.id;
        task.target = request.target;
        task.nexus = request.nexus;
        task.lun_field = request.lun_field;
        task.cdb = request.cdb;
        task.attribute = request.attribute;
        task.since = request.since;
        let key = match self.tasks.insert(task) {
            Ok(key) => key,
            Err(task) => {
                self.spare.push(task);
                return Begun::Busy;
            }
        };
        if request.attribute == TaskAttribute::Aca {
            return self.reply(key, UnitReply::check(Sense::INVALID_MESSAGE), 0);
        }
        let device = &mut self.targets[request.target as usize].device;
        let plan = device.plan(request.nexus, request.lun_field, &request.cdb);
        self.start(key, plan, request.read_len, request.write_len)
    }

    /// Buffers for one more command are free.
    pub(super) fn has_room(&self) -> bool {
        self.pool.chunks_free() >= limits::ADMIT_CHUNKS && self.pool.smalls_free() >= limits::ADMIT_SMALLS
    }

    /// Turns a plan into work. Only `begin`, a completed parameter list and `keep` come here.
    pub(super) fn start(&mut self, key: TaskKey, plan: UnitPlan, read_len: u32, write_len: u32) -> Begun {
        match plan {
            UnitPlan::Done(reply) => self.reply(key, reply, read_len),
            UnitPlan::Read { unit, range, .. } => {
                let Some((task, range, _)) = self.place(key, unit, range) else { return Begun::Busy };
                task.work = Work::Read;
                task.in_total = range.bytes().0 as u32;
                // Only what the initiator expects is fetched; the rest is a residual.
                let fetch = SectorCount(u64::from(read_len).div_ceil(SECTOR_BYTES));
                task.start_pass(Pass::Read, range.take(fetch));
                self.execute(key);
                Begun::Running(key)
            }
            UnitPlan::Zero { unit, mut ranges } => {
                ranges.reverse();
                let first = ranges.pop().unwrap_or(NOTHING);
                let Some((task, range, _)) = self.place(key, unit, first) else { return Begun::Busy };
                task.work = Work::Zero { ranges };
                task.start_pass(Pass::Write(WriteKind::Zero), range);
                self.execute(key);
                Begun::Running(key)
            }
            UnitPlan::PreFetch { unit, range, immediate, whole } => {
                let Some((task, range, _)) = self.place(key, unit, range) else { return Begun::Busy };
                // To begin the reads is enough for one; the other reads as VERIFY does, and leaves the data behind.
                let pass = if immediate { Pass::Prefetch } else { Pass::Read };
                task.work = Work::PreFetch { held: false, missed: !whole };
                task.start_pass(pass, range);
                self.execute(key);
                Begun::Running(key)
            }
            UnitPlan::LbaStatus { unit, start, allocation } => {
                self.begin_lba_status(key, unit, start, allocation, read_len)
            }
            UnitPlan::Copy { .. }
            | UnitPlan::PopulateToken { .. }
            | UnitPlan::WriteUsingToken { .. }
            | UnitPlan::Sanitize { .. } => {
                self.start_operation(key, plan);
                Begun::Running(key)
            }
            UnitPlan::Keep { unit, kept, then } => {
                self.begin_keep(key, unit, *kept, *then);
                Begun::Running(key)
            }
            UnitPlan::AbortThenDone { unit, victims, reply } => {
                let Some(task) = self.tasks.get_mut(key) else { return Begun::Busy };
                task.status = reply.status;
                task.sense = reply.sense;
                task.work = Work::Reply;
                task.stage = Stage::Preempt;
                self.preempting.push(Preempting { task: key, target: task.target, unit, victims });
                Begun::Running(key)
            }
            UnitPlan::Flush { unit, .. } => {
                let Some((task, ..)) = self.place(key, unit, NOTHING) else { return Begun::Busy };
                task.work = Work::Flush;
                self.execute(key);
                Begun::Running(key)
            }
            plan => self.start_with_data(key, plan, write_len),
        }
    }

    /// The plans that are more than one traversal, and may outlast their command.
    fn start_operation(&mut self, key: TaskKey, plan: UnitPlan) {
        let unit = match &plan {
            UnitPlan::Copy { unit, .. }
            | UnitPlan::PopulateToken { unit, .. }
            | UnitPlan::WriteUsingToken { unit, .. } => *unit,
            UnitPlan::Sanitize { unit, method, immediate } => {
                self.begin_sanitize(key, *unit, method.clone(), *immediate);
                return;
            }
            _ => return,
        };
        if self.place(key, unit, NOTHING).is_none() {
            return;
        }
        match plan {
            UnitPlan::Copy { copy, .. } => self.begin_copy(key, unit, *copy),
            UnitPlan::PopulateToken { populate, .. } => self.begin_populate(key, unit, *populate),
            UnitPlan::WriteUsingToken { write, .. } => self.begin_token_write(key, unit, write),
            _ => {}
        }
    }

    /// The plans that take data-out (and their forms without any).
    fn start_with_data(&mut self, key: TaskKey, plan: UnitPlan, write_len: u32) -> Begun {
        let (unit, range) = match plan {
            UnitPlan::Write { unit, range, .. }
            | UnitPlan::Verify { unit, range, .. }
            | UnitPlan::WriteSame { unit, range, .. }
            | UnitPlan::WriteAtomic { unit, range }
            | UnitPlan::CompareAndWrite { unit, range, .. }
            | UnitPlan::OrWrite { unit, range, .. } => (unit, range),
            _ => (UnitIndex(0), NOTHING),
        };
        if let UnitPlan::Parameter { len } = plan {
            let Some(task) = self.tasks.get_mut(key) else { return Begun::Busy };
            task.work = Work::Parameter;
            return self.collect(key, u64::from(len), write_len);
        }
        let Some((task, range, block)) = self.place(key, unit, range) else { return Begun::Busy };
        let data = Pass::Write(WriteKind::Data);
        let (work, pass, wanted) = match plan {
            UnitPlan::Write { fua, verify, .. } => (Work::Write { fua, verify }, data, range.bytes().0),
            UnitPlan::Verify { compare, one_block, .. } => {
                let wanted = match (compare, one_block) {
                    (false, _) => 0,
                    (true, true) => block,
                    (true, false) => range.bytes().0,
                };
                (Work::Verify { compare, one_block }, Pass::Read, wanted)
            }
            UnitPlan::WriteSame { zero: true, fua, .. } => {
                (Work::WriteSame { fua }, Pass::Write(WriteKind::Zero), 0)
            }
            UnitPlan::WriteSame { fua, .. } => (Work::WriteSame { fua }, data, block),
            UnitPlan::CompareAndWrite { fua, .. } => {
                (Work::CompareAndWrite { fua }, Pass::Read, 2 * range.bytes().0)
            }
            UnitPlan::WriteAtomic { .. } => (Work::WriteAtomic(AtomicStep::Journal), data, range.bytes().0),
            UnitPlan::OrWrite { fua, .. } => (Work::OrWrite { fua }, Pass::Read, range.bytes().0),
            _ => return self.reply(key, UnitReply::good(), 0),
        };
        let takes_none =
            matches!(plan, UnitPlan::Verify { compare: false, .. } | UnitPlan::WriteSame { zero: true, .. });
        task.work = work;
        task.start_pass(pass, range);
        if takes_none {
            self.execute(key);
            return Begun::Running(key);
        }
        self.collect(key, wanted, write_len)
    }

    /// Sets the unit of a task: its range in sectors, and the bytes of one block. `scsi` has checked the range
    /// against the capacity, which fits.
    fn place(
        &mut self,
        key: TaskKey,
        unit: UnitIndex,
        range: BlockRange,
    ) -> Option<(&mut Task, SectorRange, u64)> {
        let task = self.tasks.get_mut(key)?;
        task.lun = self.targets[task.target as usize].lun(unit);
        task.home = task.lun;
        self.arrive(key);
        let task = self.tasks.get_mut(key)?;
        let size = self.luns[task.lun as usize].block_size;
        let range = range.sectors(size).unwrap_or(task.range);
        Some((task, range, u64::from(size.bytes())))
    }

    /// The command is decided.
    pub(super) fn reply(&mut self, key: TaskKey, reply: UnitReply, read_len: u32) -> Begun {
        if let Some(task) = self.tasks.get_mut(key) {
            task.status = reply.status;
            task.sense = reply.sense;
            task.work = Work::Reply;
            self.attach_reply_data(key, &reply.data, read_len);
            self.finish(key);
        }
        Begun::Running(key)
    }

    /// Takes buffers for `wanted` bytes of data-out. `begin` has made sure that they are there.
    fn collect(&mut self, key: TaskKey, wanted: u64, write_len: u32) -> Begun {
        let Some(task) = self.tasks.get_mut(key) else { return Begun::Busy };
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX).min(2 * limits::TRANSFER_BYTES_MAX as u32);
        if task.work.needs_exact_data() && wanted != write_len {
            self.fail_io(key, UnitFault::DataOutLength);
            return Begun::Running(key);
        }
        let coming = wanted.min(write_len);
        task.out_wanted = coming;
        task.stage = Stage::Collect;
        let whole_chunk = matches!(task.work, Work::WriteSame { .. } | Work::Verify { one_block: true, .. });
        if coming as usize <= limits::SMALL_BYTES && !whole_chunk {
            task.out_filling.extend(self.pool.take_small());
        } else {
            let chunks = if whole_chunk { 1 } else { (coming as usize).div_ceil(limits::CHUNK_BYTES) };
            for _ in 0..chunks {
                task.out_filling.extend(self.pool.take_chunk());
            }
        }
        if wanted == 0 {
            self.data_complete(key, 0);
            return Begun::Running(key);
        }
        Begun::NeedsData { task: key, wanted }
    }

    /// All data-out the initiator can give has arrived.
    pub(super) fn data_complete(&mut self, key: TaskKey, received: u32) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        if task.stage != Stage::Collect {
            return;
        }
        task.out_received = received.min(task.out_wanted);
        if matches!(task.work, Work::Parameter) {
            self.parameter(key);
            return;
        }
        task.stage = Stage::Resolve;
        let block = self.luns[task.lun as usize].block_size;
        match task.work {
            Work::WriteSame { .. } | Work::Verify { compare: true, one_block: true } => {
                if task.out_received < block.bytes() {
                    self.short_data(key);
                    return;
                }
                repeat_block(task, block.bytes() as usize);
            }
            Work::Write { .. } => {
                // What did not come is not written, and the residual says so. It cannot say that a block came in part.
                if !task.out_received.is_multiple_of(block.bytes()) {
                    self.fail_io(key, UnitFault::PartialBlock);
                    return;
                }
                let blocks = u64::from(task.out_received / block.bytes());
                let range = task.range.take(SectorCount(blocks * block.sectors()));
                task.start_pass(Pass::Write(WriteKind::Data), range);
            }
            Work::CompareAndWrite { .. }
            | Work::OrWrite { .. }
            | Work::WriteAtomic(_)
            | Work::Verify { .. } => {
                let halves = if matches!(task.work, Work::CompareAndWrite { .. }) { 2 } else { 1 };
                let needed = halves * task.range.bytes().0;
                if u64::from(task.out_received) < needed {
                    self.short_data(key);
                    return;
                }
            }
            _ => {}
        }
        if let Some(task) = self.tasks.get_mut(key)
            && !matches!(task.work, Work::OrWrite { .. })
        {
            task.seal_out();
        }
        self.execute(key);
    }

    fn parameter(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let list = task.out_filling.first().map_or(&[][..], |buf| buf.as_slice());
        let list = &list[..(task.out_received as usize).min(list.len())];
        let device = &mut self.targets[task.target as usize].device;
        let plan = device.parameter(task.nexus, task.lun_field, &task.cdb, list);
        task.out_filling.clear();
        self.start(key, plan, 0, 0);
    }

    /// Fewer bytes than the command needs to mean anything.
    fn short_data(&mut self, key: TaskKey) {
        self.fail_io(key, UnitFault::DataOutLength);
    }

    /// Copies the data of a `Done` reply into a buffer of the task.
    fn attach_reply_data(&mut self, key: TaskKey, data: &[u8], read_len: u32) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        task.in_total = data.len() as u32;
        let data = &data[..data.len().min(read_len as usize).min(limits::REPLY_BYTES_MAX)];
        if data.is_empty() {
            return;
        }
        if let Some(mut buf) = self.pool.take_chunk() {
            buf.as_mut_slice()[..data.len()].copy_from_slice(data);
            task.push_segment(0, data.len() as u32, Some(buf.share()));
        }
    }
}

/// Fills the whole first buffer with its first block.
fn repeat_block(task: &mut Task, block: usize) {
    if let Some(buf) = task.out_filling.first_mut() {
        let bytes = buf.as_mut_slice();
        let mut filled = block;
        while filled < bytes.len() {
            let step = filled.min(bytes.len() - filled);
            bytes.copy_within(..step, filled);
            filled += step;
        }
    }
}
