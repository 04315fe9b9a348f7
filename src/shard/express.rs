//! The short ways: a READ is answered where its header is read, when all it asks for is at hand; a WRITE that has come whole
//! begins there, with its data.
//!
//! Knows what must be true for that: nothing of its session or its unit is to be waited for, nor the data of a READ. Does
//! not know what a command does otherwise: whatever is not plain goes the long way (`session`, `begin`, `executor`),
//! unchanged.
//!
//! A READ that goes this way leaves no task: nothing can find it, abort it or wait for it, as if it had a turn of its
//! own. A WRITE becomes the task that it would be when all its data has come, and goes on as such. What is counted, limited
//! and hinted at on the long way is so here: shares of a turn, rates, metrics, boot traces, read-ahead.

use crate::cache::CHUNK_BYTES;
use crate::io::Part;
use crate::iscsi::framer::Whole;
use crate::iscsi::pdu::bhs::Bhs;
use crate::iscsi::pdu::scsi_command::TaskAttribute;
use crate::iscsi::session::{ConnectionId, Entering, Passing, TaskId};
use crate::limits;
use crate::plan::{Source, WriteKind};
use crate::scsi::Nexus;

use super::connection::{Connection, Phase};
use super::executor::{Core, TaskKey};
use super::fairness::Turn;
use super::lun_state::BootWatch;
use super::session::{Member, ServedSession, Sessions};
use super::task::{Pass, Task, Work};
use super::{ConnKey, turns};

/// All data of a read, in order.
type AtHand = (Part, Option<Part>);

impl Connection {
    /// Takes the commands at the front of `input` that can be answered, or begun with all their data, at once; stops before
    /// the first that cannot.
    pub(super) fn express(
        &mut self,
        core: &mut Core,
        sessions: &mut Sessions,
        turn: &mut Turn,
        input: &mut &[u8],
    ) {
        let Phase::Full(Member { session: key, on }) = self.phase else { return };
        if self.within_pdu || !core.express {
            return;
        }
        let Some(session) = sessions.get_mut(key) else { return };
        let Some(target) = session.target.filter(|_| session.machine.lets_enter(on)) else { return };
        // What has ended and is not told of yet comes first.
        while core.finished.is_empty()
            && turn.has_left(&mut self.share, false)
            && let Some(pdu) = self.framer.whole(input)
        {
            let bhs = Bhs(*pdu.header);
            let way = Way { core, session, target, on };
            let is_taken = match pdu.data.is_empty() {
                true => self.answer_read(way, &bhs),
                false => self.begin_write(way, &bhs, &pdu),
            };
            if !is_taken {
                return;
            }
            self.framer.pass(input, &pdu);
            turn.spend(&mut self.share, false, &bhs);
        }
    }

    /// False: nothing has happened.
    fn answer_read(&mut self, way: Way<'_>, bhs: &Bhs) -> bool {
        let Way { core, session, target, on } = way;
        if self.tx.queued_bytes() >= limits::CONNECTION_SEND_BYTES_MAX || !session.machine.lets_pass(on) {
            return false;
        }
        let Some(read) = session.machine.passing(on, bhs) else { return false };
        if !session.lets_pass(core, on, read.expected) || !self.tx.can_stage(&core.pool) {
            return false;
        }
        let Some((first, more)) = core.at_hand(target, session.nexus, &read) else { return false };
        let answer = session.machine.pass(on, &read, core.now);
        self.tx.stage_whole(&answer, first, more);
        session.passed(core, target, read.expected, &mut self.timing, self.tx.queued_bytes());
        self.last_progress = core.now;
        true
    }

    /// False: nothing has happened.
    fn begin_write(&mut self, way: Way<'_>, bhs: &Bhs, pdu: &Whole<'_>) -> bool {
        let Way { core, session, target, on } = way;
        let Some(write) = session.machine.entering(on, bhs) else { return false };
        if !session.lets_pass(core, on, 0) {
            return false;
        }
        let Some(key) = core.take_write(self.key, target, session.nexus, &write, pdu.data) else {
            return false;
        };
        let Some(id) = session.machine.enter(on, &write, core.now) else {
            core.release(key);
            return false;
        };
        session.entered(core, target, on, id, key);
        self.last_progress = core.now;
        true
    }
}

/// Whom a command is for.
struct Way<'a> {
    core: &'a mut Core,
    session: &'a mut ServedSession,
    target: u32,
    on: ConnectionId,
}

impl Core {
    /// The data of a read that nothing stands in the way of: from here on it counts as answered. `None`: nothing has
    /// happened.
    fn at_hand(&mut self, target: u32, nexus: Nexus, read: &Passing) -> Option<AtHand> {
        let owner = &self.targets[target as usize];
        if owner.is_held() {
            return None;
        }
        let (unit, blocks) = owner.device.plain_read(nexus, read.lun.0, &read.cdb)?;
        owner.rate.ready(self.now).ok()?;
        let index = owner.lun(unit);
        let lun = &self.luns[index as usize];
        let range = blocks.sectors(lun.block_size)?;
        let len = read.expected;
        if range.bytes().0 != u64::from(len)
            || len as usize > CHUNK_BYTES
            || !lun.order.lets_pass()
            || !lun.turns.lets_reads_pass()
        {
            return None;
        }
        let source = self.images.one_run(&lun.chain, range)?;
        let data = match source {
            Source::Zero => (Part { buf: self.pool.zero_chunk(), start: 0, len }, None),
            Source::File { file, offset, immutable: true } => {
                let (first, more) = self.cache.hit(file, offset, len)?;
                (Part::all(first), more.map(Part::all))
            }
            Source::File { .. } => return None,
        };
        let boot = &mut self.luns[index as usize].boot;
        boot.began(range);
        if *boot != BootWatch::Idle
            && let Source::File { file, offset, .. } = source
        {
            self.watch_boot(index, file, offset, len);
        }
        self.read_ahead(index, range, false);
        Some(data)
    }

    /// A task that has all the data of a write which nothing stands in the way of. `None`: nothing has happened.
    fn take_write(
        &mut self,
        conn: ConnKey,
        target: u32,
        nexus: Nexus,
        write: &Entering,
        data: &[u8],
    ) -> Option<TaskKey> {
        let owner = &self.targets[target as usize];
        if owner.is_held() || data.len() > CHUNK_BYTES || self.tasks.is_full() {
            return None;
        }
        let (unit, blocks) = owner.device.plain_write(nexus, write.lun.0, &write.cdb)?;
        owner.rate.ready(self.now).ok()?;
        let index = owner.lun(unit);
        let lun = &self.luns[index as usize];
        let range = blocks.sectors(lun.block_size)?;
        if range.bytes().0 != data.len() as u64 || !lun.order.lets_pass() || !lun.turns.lets_writes_pass() {
            return None;
        }
        let is_small = data.len() <= limits::SMALL_BYTES;
        let mut buf = if is_small { self.pool.take_small() } else { self.pool.take_chunk() }?;
        buf.as_mut_slice()[..data.len()].copy_from_slice(data);
        let mut task = self.spare.pop().unwrap_or_else(|| Box::new(Task::idle()));
        task.conn = conn;
        task.target = target;
        task.nexus = nexus;
        task.lun_field = write.lun.0;
        task.cdb = write.cdb;
        task.attribute = TaskAttribute::Simple;
        task.since = self.now;
        task.read_len = 0;
        (task.lun, task.home) = (index, index);
        task.work = Work::Write { fua: false, verify: false };
        (task.out_wanted, task.out_received) = (write.expected, write.expected);
        task.out.push(buf.share());
        task.start_pass(Pass::Write(WriteKind::Data), range);
        // There is room, as was seen before.
        self.tasks.insert(task).ok()
    }

    /// The session knows the task now.
    pub(super) fn begin_taken(&mut self, key: TaskKey, id: TaskId) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        task.id = id;
        self.arrive(key);
        if self.take_turn(key, turns::Turn::Shared) {
            self.advance(key);
        }
    }
}
