//! The executor: a SCSI command becomes passes over ranges, passes become file operations, and those a reply.
//!
//! Knows tasks, units, images and the cache. Does not know sessions or PDUs: what is finished goes into a list.
//!
//! Nothing here blocks or recurses through completions: a task that can go on is put into `ready`.

use std::collections::{HashMap, VecDeque};

use crate::buf::{Fill, Pool};
use crate::cache::{Claim, GoldenCache, Told};
use crate::clock::Instant;
use crate::image::Images;
use crate::io::{Op, OpToken, Outcome};
use crate::iscsi::pdu::scsi_command::TaskAttribute;
use crate::iscsi::session::TaskId;
use crate::limits;
use crate::pending::Area;
use crate::plan::{LayerId, ReadPlan, WriteKind, WritePlan};
use crate::scsi::{Nexus, ScsiStatus, Sense, UnitFault, UnitIndex};
use crate::slab::{Key, Slab};

use super::atomic::AtomicStep;
use super::bitmaps::BitmapLoad;
use super::commit::LayerWork;
use super::errands::Errands;
use super::keep::{Keeping, Unkept, Unsettled};
use super::lun_state::LunState;
use super::metrics::Metrics;
use super::records::Durability;
use super::sanitize::SanitizeWaiter;
use super::target::Target;
use super::task::{Pass, Stage, Task, Work};
use super::token::{Kind, Token};
use super::{ConnKey, LayerName, UnitSeed};

pub(super) type TaskKey = Key<Box<Task>>;

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
    pub(super) attribute: TaskAttribute,
    pub(super) read_len: u32,
    pub(super) write_len: u32,
    /// When it came.
    pub(super) since: Instant,
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
    pub(super) metrics: Metrics,
    /// Operations of this turn, on their way to the ring.
    pub(super) ops: Vec<(OpToken, Op)>,
    pub(super) pool: Pool,
    pub(super) images: Images,
    pub(super) cache: GoldenCache,
    /// Reads of golden files to begin, and those whose end is told; kept for their memory.
    pub(super) claims: Vec<Claim>,
    pub(super) told: Vec<Told>,
    pub(super) spare_runs: Vec<Vec<Fill>>,
    /// Reads whose data is at hand are answered at once.
    pub(super) express: bool,
    /// The most a unit that is read in order may be ahead of its reads; 0: not at all.
    pub(super) read_ahead_bytes: u64,
    /// Reads of golden files with the ring.
    pub(super) fills: u32,
    /// Frames other shards wait for, and these shards as bits.
    pub(super) golden_news: Vec<(u32, u64)>,
    pub(super) targets: Vec<Target>,
    pub(super) target_names: HashMap<String, u32>,
    pub(super) luns: Vec<LunState>,
    /// Places of targets and units that have ended.
    pub(super) free_targets: Vec<u32>,
    pub(super) free_luns: Vec<u32>,
    pub(super) layer_names: HashMap<LayerName, LayerId>,
    /// Last flushes of images that end, and have come back.
    pub(super) last_flushes: Vec<LayerId>,
    pub(super) tasks: Slab<Box<Task>>,
    #[expect(clippy::vec_box, reason = "a task keeps its place when it is begun and when it is forgotten")]
    pub(super) spare: Vec<Box<Task>>,
    pub(super) finished: Vec<Finished>,
    /// PREEMPT AND ABORT commands that wait for the end of others.
    pub(super) preempting: Vec<Preempting>,
    /// Commands whose change of a unit must be stable first: not yet handed over, and handed over.
    pub(super) unkept: Vec<Unkept>,
    pub(super) keeping: Vec<Keeping>,
    /// Atomic writes that a power failure may bring back, and commands that flush when it cannot.
    pub(super) unsettled: Vec<Unsettled>,
    pub(super) settlers: Vec<TaskKey>,
    /// Commands that wait for a sanitize operation; and its portions whose time has not come.
    pub(super) sanitizing: Vec<SanitizeWaiter>,
    pub(super) paced: Vec<(Instant, TaskKey)>,
    /// The shard stops: background work ends with its portion.
    pub(super) stopping: bool,
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
    /// When the next command that its target's limits keep waiting may begin.
    pub(super) rate_due: Option<Instant>,
    /// A command was refused for want of buffers since then: they come free in more places than tell.
    pub(super) refused: bool,
    /// What outlives this process, and the layers with something pending in it.
    pub(super) journal: Option<Area>,
    pub(super) recorded: Vec<LayerId>,
    /// PUNCH_HOLE was refused once by some file system: zeros are written from then on.
    pub(super) punch_refused: bool,
    /// Where the secrets of tokens come from: nobody knows the seed, and no number is used twice.
    pub(super) rod_seed: [u8; 32],
    pub(super) rods_made: u64,
    /// Copies between units of different shards.
    pub(super) errands: Errands,
    luns_made: u64,
}

impl Core {
    pub(super) fn new(pool: Pool, cache: GoldenCache, images: Images) -> Self {
        Self {
            now: Instant::default(),
            metrics: Metrics::new(),
            ops: Vec::with_capacity(4096),
            pool,
            images,
            cache,
            claims: Vec::with_capacity(64),
            told: Vec::with_capacity(256),
            spare_runs: super::fill_path::spare_runs(),
            express: true,
            read_ahead_bytes: 0,
            golden_news: Vec::new(),
            fills: 0,
            targets: Vec::new(),
            target_names: HashMap::new(),
            luns: Vec::new(),
            free_targets: Vec::new(),
            free_luns: Vec::new(),
            layer_names: HashMap::new(),
            last_flushes: Vec::new(),
            tasks: Slab::with_capacity(limits::SHARD_TASKS_MAX),
            spare: Vec::new(),
            finished: Vec::with_capacity(1024),
            preempting: Vec::new(),
            unkept: Vec::new(),
            keeping: Vec::new(),
            unsettled: Vec::new(),
            settlers: Vec::new(),
            sanitizing: Vec::new(),
            paced: Vec::new(),
            stopping: false,
            ready: VecDeque::with_capacity(1024),
            parked: VecDeque::with_capacity(1024),
            favoured: None,
            bitmaps: Slab::with_capacity(limits::SHARD_TASKS_MAX),
            layers: Vec::new(),
            short_layers: Vec::new(),
            read_plan: ReadPlan::with_capacity(limits::PLAN_EXTENTS_MAX),
            write_plan: WritePlan::with_capacity(limits::PLAN_EXTENTS_MAX),
            freed: false,
            rate_due: None,
            refused: false,
            journal: None,
            recorded: Vec::new(),
            punch_refused: false,
            rod_seed: [0; 32],
            rods_made: 0,
            errands: Errands::default(),
            luns_made: 0,
        }
    }

    /// One more unit; its place among the shard's.
    pub(super) fn add_lun(&mut self, unit: UnitSeed, target: u32, place: UnitIndex) -> u32 {
        self.luns_made += 1;
        let state = LunState { born: self.luns_made, ..LunState::new(unit, target, place) };
        if let Some(lun) = self.free_luns.pop() {
            self.luns[lun as usize] = state;
            return lun;
        }
        self.luns.push(state);
        self.luns.len() as u32 - 1
    }

    /// The shard's place of a target.
    pub(super) fn target_index(&self, name: &str) -> Option<u32> {
        self.target_names.get(name).copied()
    }

    pub(super) fn submit(&mut self, token: Token, op: Op) {
        self.ops.push((token.encode(), op));
    }

    /// An operation on a file came back: whoever began it goes on.
    pub(super) fn file_op_done(&mut self, token: Token, outcome: Outcome) {
        match (token.kind, outcome) {
            (Kind::Task, Outcome::Read { result, buf }) => {
                if let Some(key) = token.key(&self.tasks) {
                    self.read_done(key, token.part, result, buf);
                }
            }
            (Kind::Task, Outcome::Wrote { result, part }) => {
                if let Some(key) = token.key(&self.tasks) {
                    self.write_done(key, token.part, result, part);
                }
            }
            (Kind::Task, Outcome::Done { result }) => {
                if let Some(key) = token.key(&self.tasks) {
                    self.control_done(key, token.part, result);
                }
            }
            (Kind::Fill, Outcome::Filled { result, fills }) => self.fills_done(token, result, fills),
            (Kind::Bitmap, Outcome::Read { result, buf }) => self.bitmap_read(token, result, buf),
            (Kind::Meta, Outcome::Wrote { result, part }) => self.meta_written(token, result, part),
            (Kind::Meta, Outcome::Done { result }) => self.meta_done(token, result),
            (Kind::Flush, Outcome::Done { result }) => self.flushed(LayerId(token.index), result),
            _ => {}
        }
    }

    /// Drives a task as far as it goes without waiting.
    pub(super) fn advance(&mut self, key: TaskKey) {
        loop {
            let Some(task) = self.tasks.get_mut(key) else { return };
            if task.aborted && !task.is_past_abort() {
                self.end_aborted(key);
                return;
            }
            let more = match task.stage {
                Stage::Order => {
                    self.execute(key);
                    return;
                }
                Stage::Collect
                | Stage::Turn
                | Stage::Keep
                | Stage::Pace
                | Stage::Preempt
                | Stage::Finished => false,
                Stage::Errand => self.copy_heard(key),
                Stage::Transfer => {
                    if task.pending > 0 {
                        return;
                    }
                    self.portion_done(key)
                }
                Stage::Resolve if task.parcel_waits => self.unpack(key),
                Stage::Resolve if matches!(task.work, Work::WriteAtomic(AtomicStep::Journal)) => {
                    self.atomic_journal(key);
                    false
                }
                Stage::Resolve if task.left.is_empty() => self.pass_done(key),
                Stage::Resolve => match task.pass {
                    Pass::Read => self.read_portion(key),
                    Pass::Write(kind) => self.write_portion(key, kind),
                    Pass::Status => self.status_portion(key),
                    Pass::Prefetch => self.prefetch_portion(key),
                },
                Stage::Commit => self.commit_done(key),
                Stage::Settle => {
                    self.settled(key);
                    false
                }
                Stage::Sync => {
                    if task.pending > 0 {
                        return;
                    }
                    self.sync_done(key)
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
            Pass::Status | Pass::Prefetch => false,
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
            (Pass::Prefetch, _) => {
                self.finish(key);
                false
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
            (Pass::Write(_), Work::WriteAtomic(_)) => {
                self.sync(key);
                false
            }
            (Pass::Write(_), Work::Copy(_)) => self.copy_written(key),
            (Pass::Write(_), Work::Sanitize(_)) => self.sanitize_portion_done(key),
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
            Work::Copy(_) => self.copy_read(key),
            Work::Errand(_) => {
                self.errand_read(key);
                false
            }
            Work::Populate(_) => {
                self.populate(key);
                false
            }
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

    /// What was written is stable. True when the task can go on at once.
    fn sync_done(&mut self, key: TaskKey) -> bool {
        let Some(task) = self.tasks.get(key) else { return false };
        match task.work {
            Work::Copy(_) if task.sense.is_none() => return self.copy_next(key),
            Work::WriteAtomic(_) if task.sense.is_none() => self.atomic_written(key),
            Work::Sanitize(_) if task.sense.is_none() => self.sanitize_synced(key),
            _ => self.finish(key),
        }
        false
    }

    /// A commit of what is only recorded, if need be, and fdatasync of the unit's own file; that finishes the task.
    pub(super) fn sync(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        task.stage = Stage::Sync;
        let lun = &self.luns[task.lun as usize];
        let (writable, leaf) = (lun.writable, lun.leaf);
        let durability = self.layers[leaf.0 as usize].records.durability;
        if matches!(durability, Durability::UntilReset(_)) {
            // As if it were flushed.
            self.ready.push_back(key);
            return;
        }
        if !writable {
            self.finish(key);
            return;
        }
        if self.await_settled(key) {
            return;
        }
        let Some(task) = self.tasks.get_mut(key) else { return };
        if self.images.is_failed(leaf) {
            // The kernel would call a second flush a success: the pages it lost count as clean.
            self.fail_io(key, UnitFault::Write);
            return;
        }
        let seq = self.images.request_commit(leaf);
        if self.images.committed(leaf) < seq {
            task.stage = Stage::Settle;
            task.commit = Some(seq);
            self.await_batch(leaf, seq, key);
            return;
        }
        task.pending = 1;
        self.flush(leaf, Token::of(Kind::Task, key, 0));
    }

    /// Woken from `Stage::Settle`: the metadata of all that was answered is in the file, or never will be.
    fn settled(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let leaf = self.luns[task.lun as usize].leaf;
        let committed = task.commit.take().is_some_and(|seq| self.images.committed(leaf) >= seq);
        if !committed || self.images.is_failed(leaf) {
            self.fail_io(key, self.commit_fault(leaf));
            return;
        }
        task.stage = Stage::Sync;
        task.pending = 1;
        self.flush(leaf, Token::of(Kind::Task, key, 0));
    }

    /// The fault of a file operation, as sense data.
    pub(super) fn fail_io(&mut self, key: TaskKey, fault: UnitFault) {
        let mut sense = self.sense_of(key, fault);
        if let Some(Work::Copy(copy)) = self.tasks.get(key).map(|task| &task.work) {
            sense = copy.sense_of_unit(sense, fault == UnitFault::Read);
        }
        self.fail(key, sense);
    }

    /// The fault in the sense format the unit is set to.
    pub(super) fn sense_of(&self, key: TaskKey, fault: UnitFault) -> Sense {
        let Some(task) = self.tasks.get(key) else { return Sense::INTERNAL_TARGET_FAILURE };
        let target = &self.targets[task.target as usize];
        let unit = self.luns.get(task.home as usize).map_or(UnitIndex(0), |lun| lun.unit);
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
        self.leave_order(key);
        if let Some(task) = self.tasks.get_mut(key)
            && task.background
        {
            if let Work::Errand(errand) = &mut task.work {
                errand.end();
            }
            if task.aborted {
                self.targets[task.target as usize].aborted_in_flight -= 1;
            }
            self.atomic_left(key);
            self.background_done(key);
            return;
        }
        self.copy_left(key);
        self.atomic_left(key);
        if let Some(task) = self.tasks.get(key)
            && task.aborted
        {
            let target = task.target as usize;
            self.targets[target].aborted_in_flight -= 1;
            self.release(key);
            return;
        }
        let Some(task) = self.tasks.get_mut(key) else { return };
        debug_assert_eq!(task.pending, 0);
        task.stage = Stage::Finished;
        task.note_pre_fetched();
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

    /// The session needs the task no more.
    pub(super) fn release(&mut self, key: TaskKey) {
        self.leave_turn(key);
        self.leave_order(key);
        self.copy_left(key);
        self.errand_left(key);
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
            // It goes on by itself. Waking it would tell it that what it waits for has failed.
            stage if task.is_past_abort() && stage != Stage::Finished => {
                task.aborted = true;
                let target = task.target as usize;
                self.targets[target].aborted_in_flight += 1;
                false
            }
            Stage::Turn => {
                self.give_up_turn(key);
                self.release(key);
                true
            }
            Stage::Collect | Stage::Order | Stage::Keep | Stage::Pace | Stage::Preempt | Stage::Finished => {
                self.release(key);
                true
            }
            Stage::Errand if task.pending == 0 => {
                self.release(key);
                true
            }
            Stage::Errand => {
                // Something of it may be written yet.
                task.aborted = true;
                let target = task.target as usize;
                self.targets[target].aborted_in_flight += 1;
                self.recall(key);
                false
            }
            Stage::Resolve | Stage::Transfer | Stage::Commit | Stage::Settle | Stage::Sync => {
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
        // A flush brings nothing to the disk that was not answered before.
        let own_commit = task.commit.filter(|_| task.stage != Stage::Settle);
        if let Some(seq) = own_commit {
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
                // Parked again: it keeps its place.
                if self.parked.back() == Some(&key) {
                    self.parked.rotate_right(1);
                }
                break;
            }
        }
        while let Some(key) = self.ready.pop_front() {
            self.advance(key);
        }
    }

    /// The task waits for buffers: behind the others, unless all leave theirs to it.
    pub(super) fn park(&mut self, key: TaskKey) {
        if self.favoured == Some(key) {
            self.parked.push_front(key);
        } else {
            self.parked.push_back(key);
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
        let short = !self.parked.is_empty() || !self.short_layers.is_empty();
        !self.ready.is_empty() || short || (self.refused && self.has_room())
    }
}
