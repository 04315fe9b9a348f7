//! The executor: a SCSI command becomes passes over ranges, passes become file operations, and those a reply.
//!
//! Knows tasks, units, images and the cache. Does not know sessions or PDUs: what is finished goes into a list.
//!
//! Nothing here blocks or recurses through completions: a task that can go on is put into `ready`.

use std::collections::VecDeque;

use crate::buf::Pool;
use crate::cache::GoldenCache;
use crate::clock::Instant;
use crate::image::{Chain, Images};
use crate::io::{Op, OpToken};
use crate::iscsi::session::TaskId;
use crate::limits;
use crate::plan::{FileSlot, LayerId, ReadPlan, WriteKind, WritePlan};
use crate::scsi::{Nexus, ScsiStatus, Sense, UnitFault, UnitIndex, UnitPlan, UnitReply};
use crate::slab::{Key, Slab};
use crate::units::{BlockCount, BlockRange, BlockSize, Lba, SECTOR_BYTES, SectorCount};

use super::ConnKey;
use super::bitmaps::BitmapLoad;
use super::commit::LayerWork;
use super::target::Target;
use super::task::{Pass, Stage, Task, Work};
use super::token::{Kind, Token};
use super::turns::Turns;

pub(super) type TaskKey = Key<Box<Task>>;

/// A unit as the executor sees it.
#[derive(Debug)]
pub(super) struct LunState {
    pub(super) chain: Chain,
    pub(super) block_size: BlockSize,
    pub(super) leaf: LayerId,
    pub(super) leaf_file: FileSlot,
    pub(super) writable: bool,
    pub(super) turns: Turns,
}

/// A task whose reply is ready.
#[derive(Clone, Copy, Debug)]
pub(super) struct Finished {
    pub(super) task: TaskKey,
    pub(super) conn: ConnKey,
    pub(super) id: TaskId,
}

/// A PREEMPT AND ABORT that is decided, and answered when the commands of its victims on this unit have ended.
#[derive(Debug)]
pub(super) struct Preempting {
    pub(super) task: TaskKey,
    pub(super) target: u32,
    pub(super) unit: UnitIndex,
    /// Emptied once their commands are told to end.
    pub(super) victims: Vec<Nexus>,
}

/// A command as it comes from a session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) conn: ConnKey,
    pub(super) id: TaskId,
    pub(super) target: u32,
    pub(super) nexus: Nexus,
    pub(super) lun_field: [u8; 8],
    pub(super) cdb: [u8; 16],
    pub(super) read_len: u32,
    pub(super) write_len: u32,
}

/// What became of a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Begun {
    /// It runs, or is in `finished` already.
    Running(TaskKey),
    /// It runs once `wanted` bytes of data-out have come.
    NeedsData { task: TaskKey, wanted: u32 },
    /// Buffers or tasks are short: nothing has happened, offer it again.
    Busy,
}

/// Everything of a shard but its connections and its ring.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) now: Instant,
    /// Operations of this turn, on their way to the ring.
    pub(super) ops: Vec<(OpToken, Op)>,
    pub(super) pool: Pool,
    pub(super) images: Images,
    pub(super) cache: GoldenCache,
    pub(super) targets: Vec<Target>,
    pub(super) luns: Vec<LunState>,
    pub(super) tasks: Slab<Box<Task>>,
    spare: Vec<Box<Task>>,
    pub(super) finished: Vec<Finished>,
    /// PREEMPT AND ABORT commands that wait for the end of others.
    pub(super) preempting: Vec<Preempting>,
    /// Tasks that can go on.
    pub(super) ready: VecDeque<TaskKey>,
    /// Tasks that wait for buffers, first come first served.
    pub(super) parked: VecDeque<TaskKey>,
    /// The task that may use what all leave to one of them.
    favoured: Option<TaskKey>,
    pub(super) bitmaps: Slab<BitmapLoad>,
    pub(super) layers: Vec<LayerWork>,
    /// Layers whose batch lacks a buffer.
    pub(super) short_layers: Vec<LayerId>,
    pub(super) read_plan: ReadPlan,
    pub(super) write_plan: WritePlan,
    /// Buffers or tasks came free since stalled connections were last offered a retry.
    pub(super) freed: bool,
    /// PUNCH_HOLE was refused once by some file system: zeros are written from then on.
    pub(super) punch_refused: bool,
}

impl Core {
    pub(super) fn new(pool: Pool, cache: GoldenCache, images: Images) -> Self {
        Self {
            now: Instant::default(),
            ops: Vec::with_capacity(4096),
            pool,
            images,
            cache,
            targets: Vec::new(),
            luns: Vec::new(),
            tasks: Slab::with_capacity(limits::SHARD_TASKS_MAX),
            spare: Vec::new(),
            finished: Vec::with_capacity(1024),
            preempting: Vec::new(),
            ready: VecDeque::with_capacity(1024),
            parked: VecDeque::with_capacity(1024),
            favoured: None,
            bitmaps: Slab::with_capacity(limits::SHARD_TASKS_MAX),
            layers: Vec::new(),
            short_layers: Vec::new(),
            read_plan: ReadPlan::with_capacity(limits::PLAN_EXTENTS_MAX),
            write_plan: WritePlan::with_capacity(limits::PLAN_EXTENTS_MAX),
            freed: false,
            punch_refused: false,
        }
    }

    pub(super) fn submit(&mut self, token: Token, op: Op) {
        self.ops.push((token.encode(), op));
    }

    /// Decides and starts a command.
    pub(super) fn begin(&mut self, request: &Request) -> Begun {
        if self.pool.chunks_free() < limits::ADMIT_CHUNKS || self.pool.smalls_free() < limits::ADMIT_SMALLS {
            return Begun::Busy;
        }
        let mut task = self.spare.pop().unwrap_or_else(|| Box::new(Task::idle()));
        task.conn = request.conn;
        task.id = request.id;
        task.target = request.target;
        task.nexus = request.nexus;
        task.lun_field = request.lun_field;
        task.cdb = request.cdb;
        let key = match self.tasks.insert(task) {
            Ok(key) => key,
            Err(task) => {
                self.spare.push(task);
                return Begun::Busy;
            }
        };
        let device = &mut self.targets[request.target as usize].device;
        let plan = device.plan(request.nexus, request.lun_field, &request.cdb);
        self.start(key, plan, request.read_len, request.write_len)
    }

    /// Turns a plan into work. Only `begin` and a completed parameter list come here.
    fn start(&mut self, key: TaskKey, plan: UnitPlan, read_len: u32, write_len: u32) -> Begun {
        let Some(task) = self.tasks.get_mut(key) else { return Begun::Busy };
        let first_lun = self.targets[task.target as usize].first_lun;
        let place = |task: &mut Task, unit: UnitIndex, range: BlockRange| {
            task.lun = first_lun + unit.0;
            let size = self.luns[task.lun as usize].block_size;
            // `scsi` has checked the range against the capacity, which fits.
            range.sectors(size).unwrap_or(task.range)
        };
        match plan {
            UnitPlan::Done(reply) => self.reply(key, reply, read_len),
            UnitPlan::Read { unit, range, .. } => {
                let range = place(task, unit, range);
                task.work = Work::Read;
                task.in_total = range.bytes().0 as u32;
                // Only what the initiator expects is fetched; the rest is a residual.
                let fetch = SectorCount(u64::from(read_len).div_ceil(SECTOR_BYTES));
                task.start_pass(Pass::Read, range.take(fetch));
                self.advance(key);
                Begun::Running(key)
            }
            UnitPlan::Write { unit, range, fua, verify } => {
                let range = place(task, unit, range);
                task.work = Work::Write { fua, verify };
                task.start_pass(Pass::Write(WriteKind::Data), range);
                self.collect(key, range.bytes().0, write_len)
            }
            UnitPlan::Verify { unit, range, compare, one_block } => {
                let range = place(task, unit, range);
                task.work = Work::Verify { compare, one_block };
                task.start_pass(Pass::Read, range);
                if !compare {
                    self.advance(key);
                    return Begun::Running(key);
                }
                let block = u64::from(self.luns[task.lun as usize].block_size.bytes());
                self.collect(key, if one_block { block } else { range.bytes().0 }, write_len)
            }
            UnitPlan::WriteSame { unit, range, zero, fua, .. } => {
                let range = place(task, unit, range);
                task.work = Work::WriteSame { fua };
                let kind = if zero { WriteKind::Zero } else { WriteKind::Data };
                task.start_pass(Pass::Write(kind), range);
                if zero {
                    self.execute(key);
                    return Begun::Running(key);
                }
                let block = u64::from(self.luns[task.lun as usize].block_size.bytes());
                self.collect(key, block, write_len)
            }
            UnitPlan::CompareAndWrite { unit, range, fua } => {
                let range = place(task, unit, range);
                task.work = Work::CompareAndWrite { fua };
                task.start_pass(Pass::Read, range);
                self.collect(key, range.bytes().0 * 2, write_len)
            }
            UnitPlan::OrWrite { unit, range, fua } => {
                let range = place(task, unit, range);
                task.work = Work::OrWrite { fua };
                task.start_pass(Pass::Read, range);
                self.collect(key, range.bytes().0, write_len)
            }
            UnitPlan::Zero { unit, mut ranges } => {
                ranges.reverse();
                let first = ranges.pop();
                task.work = Work::Zero { ranges };
                let empty = BlockRange { start: Lba(0), count: BlockCount(0) };
                let range = place(task, unit, first.unwrap_or(empty));
                task.start_pass(Pass::Write(WriteKind::Zero), range);
                self.execute(key);
                Begun::Running(key)
            }
            // A hint, and the golden cache reads whole chunks anyway: GOOD is a full answer (SBC-3, 5.10).
            UnitPlan::PreFetch { .. } => self.reply(key, UnitReply::good(), read_len),
            UnitPlan::LbaStatus { unit, start, allocation } => {
                self.begin_lba_status(key, unit, start, allocation, read_len)
            }
            UnitPlan::AbortThenDone { unit, victims, reply } => {
                task.status = reply.status;
                task.sense = reply.sense;
                task.work = Work::Reply;
                task.stage = Stage::Preempt;
                self.preempting.push(Preempting { task: key, target: task.target, unit, victims });
                Begun::Running(key)
            }
            UnitPlan::Flush { unit, .. } => {
                let nothing = BlockRange { start: Lba(0), count: BlockCount(0) };
                place(task, unit, nothing);
                task.work = Work::Flush;
                self.sync(key);
                Begun::Running(key)
            }
            UnitPlan::Parameter { len } => {
                task.work = Work::Parameter;
                self.collect(key, u64::from(len), write_len)
            }
        }
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
        if task.work == Work::Parameter {
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
                // What did not come is not written: whole blocks only (the residual tells the initiator).
                let blocks = u64::from(task.out_received / block.bytes());
                let range = task.range.take(SectorCount(blocks * block.sectors()));
                task.start_pass(Pass::Write(WriteKind::Data), range);
            }
            Work::CompareAndWrite { .. } | Work::OrWrite { .. } | Work::Verify { .. } => {
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

    /// Drives a task as far as it goes without waiting.
    pub(super) fn advance(&mut self, key: TaskKey) {
        loop {
            let Some(task) = self.tasks.get_mut(key) else { return };
            if task.aborted {
                self.end_aborted(key);
                return;
            }
            let more = match task.stage {
                Stage::Collect | Stage::Turn | Stage::Preempt | Stage::Finished => false,
                Stage::Transfer => {
                    if task.pending > 0 {
                        return;
                    }
                    self.portion_done(key)
                }
                Stage::Resolve if task.left.is_empty() => self.pass_done(key),
                Stage::Resolve => match task.pass {
                    Pass::Read => self.read_portion(key),
                    Pass::Write(kind) => self.write_portion(key, kind),
                    Pass::Status => self.status_portion(key),
                },
                Stage::Commit => self.commit_done(key),
                Stage::Sync => {
                    if task.pending > 0 {
                        return;
                    }
                    self.finish(key);
                    false
                }
            };
            if !more {
                return;
            }
        }
    }

    fn portion_done(&mut self, key: TaskKey) -> bool {
        let Some(task) = self.tasks.get_mut(key) else { return false };
        match task.pass {
            Pass::Read => self.read_portion_done(key),
            Pass::Write(_) => self.write_portion_done(key),
            Pass::Status => false,
        }
    }

    /// A traversal is complete: what does the command want next?
    fn pass_done(&mut self, key: TaskKey) -> bool {
        let Some(task) = self.tasks.get_mut(key) else { return false };
        if let Pass::Write(_) = task.pass
            && let Some(seq) = task.commit
        {
            return self.await_commit(key, seq);
        }
        match (task.pass, &mut task.work) {
            (Pass::Read, _) => {
                super::read_path::seal_assembly(task);
                self.read_pass_done(key)
            }
            (Pass::Status, _) => {
                self.status_done(key);
                false
            }
            (Pass::Write(_), Work::Zero { ranges }) => {
                let block_size = self.luns[task.lun as usize].block_size;
                if let Some(range) = ranges.pop().and_then(|range| range.sectors(block_size)) {
                    task.start_pass(Pass::Write(WriteKind::Zero), range);
                    return true;
                }
                self.finish(key);
                false
            }
            (Pass::Write(_), Work::Write { fua: _, verify: true }) => {
                let range = task.range;
                task.segments.clear();
                task.start_pass(Pass::Read, range);
                true
            }
            (
                Pass::Write(_),
                Work::Write { fua: true, .. }
                | Work::CompareAndWrite { fua: true }
                | Work::OrWrite { fua: true }
                | Work::WriteSame { fua: true },
            ) => {
                self.sync(key);
                false
            }
            (Pass::Write(_), _) => {
                self.finish(key);
                false
            }
        }
    }

    fn read_pass_done(&mut self, key: TaskKey) -> bool {
        let Some(task) = self.tasks.get_mut(key) else { return false };
        let compare_with = match task.work {
            Work::Verify { compare: true, one_block } => Some(one_block),
            Work::Write { verify: true, .. } | Work::CompareAndWrite { .. } => Some(false),
            _ => None,
        };
        if let Some(one_block) = compare_with
            && let Some(at) = super::read_path::first_difference(task, one_block)
        {
            self.fail_io(key, UnitFault::Miscompare { offset: u64::from(at) });
            return false;
        }
        match task.work {
            Work::CompareAndWrite { .. } => {
                let range = task.range;
                task.segments.clear();
                task.start_pass(Pass::Write(WriteKind::Data), range);
                true
            }
            Work::OrWrite { .. } => {
                let range = task.range;
                task.or_into_out();
                task.seal_out();
                task.segments.clear();
                task.start_pass(Pass::Write(WriteKind::Data), range);
                true
            }
            Work::Write { fua: true, .. } => {
                task.segments.clear();
                self.sync(key);
                false
            }
            Work::Read => {
                self.finish(key);
                false
            }
            _ => {
                task.segments.clear();
                self.finish(key);
                false
            }
        }
    }

    /// fdatasync of the unit's own file; its completion finishes the task.
    fn sync(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        task.stage = Stage::Sync;
        let lun = &self.luns[task.lun as usize];
        let (writable, leaf, file) = (lun.writable, lun.leaf, lun.leaf_file);
        if !writable {
            self.finish(key);
            return;
        }
        if self.images.is_failed(leaf) {
            // The kernel would call a second flush a success: the pages it lost count as clean.
            self.fail_io(key, UnitFault::Write);
            return;
        }
        task.pending = 1;
        self.submit(Token::of(Kind::Task, key, 0), Op::Sync { file });
    }

    /// The fault of a file operation, as sense data.
    pub(super) fn fail_io(&mut self, key: TaskKey, fault: UnitFault) {
        let sense = self.sense_of(key, fault);
        self.fail(key, sense);
    }

    /// The fault in the sense format the unit is set to.
    pub(super) fn sense_of(&self, key: TaskKey, fault: UnitFault) -> Sense {
        let Some(task) = self.tasks.get(key) else { return Sense::INTERNAL_TARGET_FAILURE };
        let target = &self.targets[task.target as usize];
        let unit = UnitIndex(task.lun.saturating_sub(target.first_lun));
        target.device.io_failed(unit, fault, None).sense.unwrap_or(Sense::INTERNAL_TARGET_FAILURE)
    }

    pub(super) fn fail(&mut self, key: TaskKey, sense: Sense) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        task.status = ScsiStatus::CheckCondition;
        task.sense = Some(sense);
        self.finish(key);
    }

    pub(super) fn finish(&mut self, key: TaskKey) {
        self.leave_turn(key);
        let Some(task) = self.tasks.get_mut(key) else { return };
        debug_assert_eq!(task.pending, 0);
        task.stage = Stage::Finished;
        if task.sense.is_some() {
            task.segments.clear();
            task.in_total = 0;
        }
        task.out.clear();
        task.out_filling.clear();
        task.assembly = None;
        task.spare.clear();
        self.finished.push(Finished { task: key, conn: task.conn, id: task.id });
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

    /// The session needs the task no more.
    pub(super) fn release(&mut self, key: TaskKey) {
        self.leave_turn(key);
        if let Some(mut task) = self.tasks.remove(key) {
            task.recycle();
            self.spare.push(task);
            self.freed = true;
        }
    }

    /// Forgets a task: its reply will never be sent. What the ring still does for it ends by itself.
    /// True when it is gone at once.
    pub(super) fn abort(&mut self, key: TaskKey) -> bool {
        let Some(task) = self.tasks.get_mut(key) else { return true };
        if task.aborted {
            return false;
        }
        match task.stage {
            Stage::Turn => {
                self.give_up_turn(key);
                self.release(key);
                true
            }
            Stage::Collect | Stage::Preempt | Stage::Finished => {
                self.release(key);
                true
            }
            Stage::Resolve | Stage::Transfer | Stage::Commit | Stage::Sync => {
                task.aborted = true;
                let target = task.target as usize;
                self.targets[target].aborted_in_flight += 1;
                // Parked tasks and tasks in a waiting list are woken by nobody else.
                self.ready.push_back(key);
                false
            }
        }
    }

    /// Forgets an aborted task as soon as nothing of it can reach the disk any more: neither its own writes nor the
    /// commit that makes them visible.
    fn end_aborted(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        if task.pending > 0 {
            return;
        }
        let (lun, portion) = (task.lun as usize, task.portion);
        if task.stage == Stage::Transfer && matches!(task.pass, Pass::Write(_)) && task.portion_commits {
            task.portion_commits = false;
            self.images.write_abandoned(&self.luns[lun].chain, portion);
        }
        if let Some(seq) = task.commit {
            let leaf = self.luns[lun].leaf;
            let to_come = self.images.committed(leaf) < seq && !self.images.is_failed(leaf);
            let waits = task.stage == Stage::Commit;
            if to_come && !waits {
                task.stage = Stage::Commit;
                self.await_batch(leaf, seq, key);
                return;
            }
            if to_come && self.layers[leaf.0 as usize].is_running() {
                return;
            }
        }
        let target = task.target as usize;
        self.targets[target].aborted_in_flight -= 1;
        self.release(key);
    }

    /// Runs everything that can go on; returns when all tasks wait.
    pub(super) fn run_ready(&mut self) {
        while let Some(key) = self.ready.pop_front() {
            self.advance(key);
        }
        // In order: the first that finds no room keeps the others waiting, so that nobody overtakes it for ever.
        let mut left = self.parked.len();
        while left > 0
            && let Some(key) = self.parked.pop_front()
        {
            left -= 1;
            self.advance(key);
            if self.parked.len() > left {
                self.parked.rotate_right(1);
                break;
            }
        }
        while let Some(key) = self.ready.pop_front() {
            self.advance(key);
        }
    }

    /// True when `chunks` and `smalls` may be taken for the task now.
    pub(super) fn affords(&mut self, key: TaskKey, chunks: u32, smalls: u32) -> bool {
        use limits::{SEND_RESERVE_CHUNKS, SEND_RESERVE_SMALLS, TASK_RESERVE_CHUNKS, TASK_RESERVE_SMALLS};
        let leaves = |free: u32, taken: u32, reserve: u32| taken == 0 || free >= taken + reserve;
        let (free, free_smalls) = (self.pool.chunks_free(), self.pool.smalls_free());
        if leaves(free, chunks, TASK_RESERVE_CHUNKS + SEND_RESERVE_CHUNKS)
            && leaves(free_smalls, smalls, TASK_RESERVE_SMALLS + SEND_RESERVE_SMALLS)
        {
            return true;
        }
        let lives = |key| self.tasks.get(key).is_some_and(|task| task.stage != Stage::Finished);
        let favoured = *self.favoured.get_or_insert(key);
        if favoured != key && lives(favoured) {
            return false;
        }
        self.favoured = Some(key);
        leaves(free, chunks, SEND_RESERVE_CHUNKS) && leaves(free_smalls, smalls, SEND_RESERVE_SMALLS)
    }

    /// True when something waits for buffers: nobody tells when one comes free outside of a task.
    pub(super) fn is_waiting(&self) -> bool {
        !self.ready.is_empty() || !self.parked.is_empty() || !self.short_layers.is_empty()
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
