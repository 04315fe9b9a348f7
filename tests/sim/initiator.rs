//! A scripted initiator: one session after another, each answer checked.
//!
//! Knows its connection, from the first login PDU to the logout. Does not know how commands are made (`workload`) nor
//! keys (`login`).

use std::collections::{BTreeMap, VecDeque};

use crate::board::Board;
use crate::checks::{DataLimits, Numbers};
use crate::group::Group;
use crate::login::Login;
use crate::offload::Learnt;
use crate::random::Rng;
use crate::task::{Management, Task};
use crate::wire::{self, Digests, NO_TAG, Pdu};
use crate::world::{Event, MICRO, MILLI, SECOND, Sabotage, World};

/// An answer that takes longer is no answer.
const PATIENCE: u64 = 200 * SECOND;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Reads and writes.
    Worker,
    /// Lists the targets.
    Discoverer,
    /// Sends half a login and nothing more.
    Silent,
    /// Names a target that does not exist.
    Lost,
    /// Does not know the secret.
    Impostor,
    /// Is not on the list.
    Stranger,
    /// Begins with a command.
    Hasty,
    /// Sends random bytes.
    Babbler,
}

#[derive(Debug)]
pub(crate) enum Phase {
    Idle,
    Login(Login),
    Full,
    LoggingOut,
    /// Another connection of the session logs the session out.
    Leaving,
    /// The login was refused, or never could be: the target must close.
    Ending,
}

/// What was negotiated.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) digests: Digests,
    pub(crate) limits: DataLimits,
    /// What the target takes in one PDU.
    pub(crate) send_segment: u32,
    pub(crate) first_burst: u32,
    pub(crate) initial_r2t: bool,
    pub(crate) immediate_data: bool,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) cid: u16,
    pub(crate) phase: Phase,
    pub(crate) link: Link,
    pub(crate) numbers: Numbers,
    pub(crate) stream: Option<usize>,
    pub(crate) since: u64,
    pub(crate) rx: Vec<u8>,
    /// PDUs to send, each with its task, and how much of the first is sent.
    pub(crate) out: VecDeque<(u32, Vec<u8>)>,
    pub(crate) out_done: usize,
    /// The connection may end: we did something, or were told.
    pub(crate) excused: bool,
    pub(crate) stalled_until: u64,
}

impl Line {
    pub(crate) fn new(cid: u16) -> Self {
        Self {
            cid,
            phase: Phase::Idle,
            link: Link {
                digests: Digests::default(),
                limits: DataLimits { segment: 8192, burst: 262_144 },
                send_segment: 8192,
                first_burst: 65_536,
                initial_r2t: true,
                immediate_data: true,
            },
            numbers: Numbers::default(),
            stream: None,
            since: 0,
            rx: Vec::new(),
            out: VecDeque::new(),
            out_done: 0,
            excused: false,
            stalled_until: 0,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Initiator {
    pub(crate) index: usize,
    pub(crate) role: Role,
    pub(crate) name: String,
    pub(crate) isid: [u8; 6],
    pub(crate) target: usize,
    pub(crate) needs_chap: bool,
    /// The sectors only this initiator writes: start, count.
    pub(crate) region: (u64, u64),
    pub(crate) rng: Rng,
    /// The connection that is looked at, and the others of the session.
    pub(crate) line: Line,
    pub(crate) parked: Vec<Line>,
    pub(crate) group: Group,
    pub(crate) cmd_sn: u32,
    pub(crate) tasks: BTreeMap<u32, Task>,
    pub(crate) management: Option<Management>,
    pub(crate) next_tag: u32,
    pub(crate) next_write: u64,
    /// Commands still to send.
    pub(crate) quota: u32,
    pub(crate) depth: usize,
    pub(crate) finished: bool,
    pub(crate) learnt: Learnt,
    idle: u32,
    ticking: bool,
}

impl Initiator {
    pub(crate) fn new(index: usize, role: Role, target: usize, region: (u64, u64), mut rng: Rng) -> Self {
        Self {
            index,
            role,
            name: format!("iqn.2026-11.sim:initiator-{index}"),
            isid: [0x80, 0, 0, 0, 0, index as u8],
            target,
            needs_chap: target == crate::plan::CHAP_TARGET && role == Role::Worker,
            region,
            line: Line::new(0),
            parked: Vec::new(),
            group: Group::new(&mut rng, role),
            cmd_sn: rng.next() as u32,
            tasks: BTreeMap::new(),
            management: None,
            next_tag: rng.next() as u32,
            next_write: 0,
            quota: 0,
            depth: rng.between(1, 12) as usize,
            rng,
            finished: false,
            learnt: Learnt::default(),
            idle: 0,
            ticking: false,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        let sent = self.parked.iter().all(|line| line.out.is_empty()) && self.line.out.is_empty();
        self.tasks.is_empty() && sent && self.management.is_none()
    }

    /// The power of the server went: everything on its way is in doubt.
    pub(crate) fn server_gone(&mut self) {
        self.forget_session();
        self.finished = false;
        self.ticking = false;
    }

    /// One event.
    ///
    /// # Errors
    /// The rule the target broke.
    pub(crate) fn step(&mut self, world: &mut World, board: &mut Board) -> Result<(), String> {
        if self.finished {
            return Ok(());
        }
        board.now = world.now;
        self.watch_reservation(board);
        let mut busy = false;
        for _ in 0..=self.parked.len() {
            busy |= self.step_line(world, board)?;
            if self.finished {
                return Ok(());
            }
            self.next_line();
        }
        busy |= self.steer_group(world, board)?;
        self.idle = if busy { 0 } else { (self.idle + 1).min(14) };
        self.tick(world);
        Ok(())
    }

    fn step_line(&mut self, world: &mut World, board: &mut Board) -> Result<bool, String> {
        let busy = self.receive(world);
        while let Some(pdu) = wire::decode(&mut self.line.rx, self.line.link.digests)? {
            if world.faults.sabotage == Sabotage::RepeatedAnswer && world.rng.chance(30) {
                self.handle(pdu.clone(), world, board)?;
            }
            self.handle(pdu, world, board)?;
        }
        self.look_for_end(world, board)?;
        if self.finished {
            return Ok(busy);
        }
        let acted = self.act(world, board)?;
        Ok(self.send(world) || busy || acted)
    }

    /// Asks to be called again.
    pub(crate) fn tick(&mut self, world: &mut World) {
        if !self.finished && !self.ticking {
            self.ticking = true;
            let delay = self.rng.between(20 * MICRO, 200 * MICRO) << self.idle;
            world.at(delay.min(SECOND), Event::Tick { index: self.index });
        }
    }

    /// The call asked for by `tick`.
    pub(crate) fn ticked(&mut self) {
        self.ticking = false;
    }

    fn receive(&mut self, world: &mut World) -> bool {
        let Some(stream) = self.line.stream else { return false };
        if world.now < self.line.stalled_until {
            return false;
        }
        let waiting = &mut world.streams[stream].to_initiator;
        if waiting.is_empty() {
            return false;
        }
        let len = if self.rng.chance(700) {
            waiting.len()
        } else {
            self.rng.between(1, waiting.len() as u64) as usize
        };
        self.line.rx.extend(waiting.drain(..len));
        world.stir_send(stream);
        true
    }

    /// Queues a PDU.
    pub(crate) fn queue(&mut self, tag: u32, pdu: &Pdu) {
        self.line.out.push_back((tag, pdu.encode(self.line.link.digests)));
    }

    pub(crate) fn queue_raw(&mut self, bytes: Vec<u8>) {
        self.line.out.push_back((NO_TAG, bytes));
    }

    /// Takes back the data-out that was not sent for a task; never its command, whose CmdSN the target must see.
    pub(crate) fn unqueue_data(&mut self, tag: u32) {
        let first = usize::from(self.line.out_done > 0);
        let mut index = 0;
        self.line.out.retain(|(owner, bytes)| {
            index += 1;
            index <= first || *owner != tag || bytes[0] & 0x3F != 5
        });
    }

    fn send(&mut self, world: &mut World) -> bool {
        let Some(stream) = self.line.stream else { return false };
        if world.streams[stream].initiator_done {
            // After the FIN nothing can follow, the rest of a PDU least of all.
            self.line.out.clear();
            self.line.out_done = 0;
        }
        if self.line.out.is_empty() {
            return false;
        }
        let mut budget = if self.rng.chance(500) { 1 << 20 } else { self.rng.between(1, 20_000) as usize };
        budget = budget.min((1_usize << 20).saturating_sub(world.streams[stream].to_target.len()));
        while budget > 0
            && let Some((_, bytes)) = self.line.out.front()
        {
            let take = budget.min(bytes.len() - self.line.out_done);
            world.streams[stream].to_target.extend(&bytes[self.line.out_done..self.line.out_done + take]);
            self.line.out_done += take;
            budget -= take;
            if self.line.out_done == bytes.len() {
                self.line.out.pop_front();
                self.line.out_done = 0;
            }
        }
        if let Some((shard, slot)) = world.streams[stream].at {
            world.stir_recv(shard, slot);
        }
        true
    }

    fn handle(&mut self, pdu: Pdu, world: &mut World, board: &mut Board) -> Result<(), String> {
        let context = |error| format!("opcode {:#x}, tag {:#x}: {error}", pdu.opcode(), pdu.tag());
        if pdu.opcode() != 0x23 || pdu.bhs[36] == 0 {
            self.line.numbers.observe(&pdu, self.cmd_sn).map_err(context)?;
        }
        let result = match (pdu.opcode(), &self.line.phase) {
            (0x23, Phase::Login(_)) => self.login_response(&pdu, world, board),
            // Nothing may be left of a session that is left: what it still says counts for nothing.
            (_, Phase::Leaving) => Ok(()),
            (0x23, Phase::Ending) => {
                board.counts.refused_logins += 1;
                Ok(())
            }
            // Asked before the session's own logout.
            (0x26, Phase::LoggingOut) if self.group.logs_out_by(pdu.tag()) => {
                self.connection_logged_out(&pdu)
            }
            (0x26, Phase::LoggingOut) if pdu.bhs[2] == 0 => {
                self.line.excused = true;
                Ok(())
            }
            (0x26, Phase::Full) => self.connection_logged_out(&pdu),
            (0x32, Phase::Full | Phase::LoggingOut) if pdu.bhs[36] == 2 => self.told_of_drop(&pdu),
            (0x32, Phase::Full | Phase::LoggingOut) if pdu.bhs[36] == 3 => {
                if !self.was_reset_cold(board) {
                    return Err(context("told that the session is dropped, which nobody wanted".to_owned()));
                }
                self.line.excused = true;
                Ok(())
            }
            (0x20, Phase::Full) if self.group.fillers.remove(&pdu.tag()).is_some() => Ok(()),
            (0x20, Phase::Full | Phase::LoggingOut) => self.nop_in(&pdu),
            (0x32, Phase::Full | Phase::LoggingOut) if pdu.bhs[36] == 1 => {
                self.line.excused = true;
                if !board.stopping && self.line.since > board.gone_until[self.target] {
                    return Err(context("asked to log out by a server that is not stopping".to_owned()));
                }
                Ok(())
            }
            (_, Phase::Full | Phase::LoggingOut) => self.answer(&pdu, world, board),
            _ => Err(format!("in phase {:?}", self.line.phase)),
        };
        result.map_err(context)
    }

    fn nop_in(&mut self, pdu: &Pdu) -> Result<(), String> {
        if pdu.tag() == NO_TAG {
            if pdu.u32_at(20) == NO_TAG {
                return Err("a NOP-In that is neither ping nor answer".to_owned());
            }
            let answer = Pdu::new(0x40, 0x80)
                .put(8, &pdu.bhs[8..16])
                .put32(16, NO_TAG)
                .put32(20, pdu.u32_at(20))
                .put32(24, self.cmd_sn)
                .put32(28, self.line.numbers.exp_stat_sn());
            self.queue(NO_TAG, &answer);
            return Ok(());
        }
        match self.tasks.remove(&pdu.tag()) {
            Some(task) if task.ping == pdu.data => Ok(()),
            Some(_) => Err("the echo of a ping is wrong".to_owned()),
            None => Err("the answer of a ping that was not sent".to_owned()),
        }
    }

    pub(crate) fn connect(&mut self, world: &mut World) {
        let window = if self.rng.chance(200) { 3_000 } else { 400_000 };
        self.line.stream = Some(world.connect(self.index, window));
        self.line.since = world.now;
        self.line.numbers = Numbers::default();
        self.line.link.digests = Digests::default();
        self.line.excused = false;
        self.line.stalled_until = 0;
    }

    /// Pulls the cables of what is left of a session.
    fn cut_parked(&mut self, world: &mut World) {
        for stream in self.parked.iter().filter_map(|line| line.stream) {
            world.cut(stream);
        }
    }

    /// The session is over, and so are all its connections.
    fn forget_session(&mut self) {
        self.line = Line::new(0);
        self.parked.clear();
        self.tasks.clear();
        self.management = None;
        self.group.over();
        self.learnt.session_over();
    }

    fn look_for_end(&mut self, world: &mut World, board: &mut Board) -> Result<(), String> {
        let Some(stream) = self.line.stream else { return Ok(()) };
        let state = &world.streams[stream];
        let stalled = world.now < self.line.stalled_until;
        if !(state.reset || state.target_done && state.to_initiator.is_empty() && !stalled) {
            return self.lose_patience(world, board);
        }
        if !self.line.rx.is_empty()
            && !state.reset
            && !self.line.excused
            && !board.stopping
            && !self.was_reset_cold(board)
        {
            return Err(format!("the stream ended inside a PDU, after {} bytes", self.line.rx.len()));
        }
        let cold = self.was_reset_cold(board);
        let right = match self.line.phase {
            Phase::Idle => true,
            Phase::Login(_) if self.join_may_fail() => true,
            Phase::Login(_) | Phase::Full => self.line.excused || board.stopping || cold,
            Phase::LoggingOut => self.line.excused || board.stopping || cold,
            Phase::Ending | Phase::Leaving => true,
        };
        if !right {
            return Err(format!(
                "the target closed the connection without a reason, in phase {:?}",
                self.line.phase
            ));
        }
        let over = match self.line.phase {
            Phase::LoggingOut | Phase::Ending => self.quota == 0 || self.role != Role::Worker,
            _ => board.stopping || self.quota == 0,
        };
        if self.management.as_ref().is_some_and(Management::concerns_others) {
            board.reset_until[self.target] = world.now + 20 * SECOND;
        }
        board.counts.lost_connections += 1;
        if self.lose_line(board) {
            return Ok(());
        }
        self.cut_parked(world);
        self.forget_session();
        self.finished = over;
        Ok(())
    }

    fn was_reset_cold(&self, board: &Board) -> bool {
        self.line.since <= board.cold_until[self.target].max(board.gone_until[self.target])
    }

    /// An answer that does not come is a fault, unless somebody's reset has eaten it.
    fn lose_patience(&mut self, world: &mut World, board: &Board) -> Result<(), String> {
        let since = self.line.since.max(self.line.stalled_until);
        match self.line.phase {
            Phase::Login(_) | Phase::Ending | Phase::LoggingOut if world.now > since + PATIENCE => {
                return Err(format!("nothing happens since {PATIENCE} ns in phase {:?}", self.line.phase));
            }
            _ => {}
        }
        let late = |sent: u64| world.now > sent.max(self.line.stalled_until) + PATIENCE;
        let eaten = |sent: u64| {
            sent <= board.reset_until[self.target].max(board.away_until[self.target])
                && world.now > sent.max(self.line.stalled_until) + 30 * SECOND
        };
        if let Some(management) = &self.management
            && late(management.sent)
        {
            return Err(format!("no answer to {management:?}"));
        }
        let cid = self.line.cid;
        let ours = self.tasks.iter().filter(|(_, task)| task.cid == cid);
        let lost = ours.clone().any(|(_, task)| eaten(task.sent));
        if !lost && let Some((tag, task)) = ours.clone().find(|(_, task)| late(task.sent)) {
            return Err(format!("no answer to task {tag:#x}, {task:.0?}"));
        }
        if lost && !self.line.excused {
            self.reset(world);
        }
        Ok(())
    }

    /// Pulls the cable.
    pub(crate) fn reset(&mut self, world: &mut World) {
        let Some(stream) = self.line.stream else { return };
        self.line.excused = true;
        world.cut(stream);
    }

    /// Sends no more, and still listens.
    pub(crate) fn half_close(&mut self, world: &mut World) {
        let Some(stream) = self.line.stream else { return };
        self.line.excused = true;
        self.line.out.clear();
        self.line.out_done = 0;
        world.streams[stream].initiator_done = true;
        if let Some((shard, slot)) = world.streams[stream].at {
            world.stir_recv(shard, slot);
        }
    }

    /// Leaves the connection as it is and logs in again: session reinstatement.
    pub(crate) fn abandon(&mut self, world: &mut World) {
        let streams: Vec<_> = self.parked.iter().filter_map(|line| line.stream).collect();
        for stream in streams.into_iter().chain(self.line.stream) {
            let delay = self.rng.between(60 * SECOND, 200 * SECOND);
            world.at(delay, Event::Cut { stream });
        }
        self.forget_session();
        self.login(world);
    }

    fn act(&mut self, world: &mut World, board: &mut Board) -> Result<bool, String> {
        match self.line.phase {
            Phase::Idle if board.stopping => {
                self.finished = true;
                Ok(false)
            }
            Phase::Idle => {
                self.begin(world, board);
                Ok(true)
            }
            Phase::Full if self.role == Role::Discoverer => Ok(self.discover()),
            Phase::Full => self.work(world, board),
            _ => Ok(false),
        }
    }

    /// Ends the session, with all its connections.
    pub(crate) fn log_out(&mut self) {
        for line in &mut self.parked {
            line.phase = Phase::Leaving;
            line.excused = true;
        }
        let pdu = Pdu::new(0x46, 0x80)
            .put32(16, self.next_tag)
            .put32(24, self.cmd_sn)
            .put32(28, self.line.numbers.exp_stat_sn());
        self.next_tag = self.next_tag.wrapping_add(1);
        self.queue(NO_TAG, &pdu);
        self.line.phase = Phase::LoggingOut;
    }

    /// The first bytes of a connection, by role.
    fn begin(&mut self, world: &mut World, board: &Board) {
        match self.role {
            Role::Worker | Role::Discoverer | Role::Lost | Role::Impostor | Role::Stranger => {
                self.login(world)
            }
            Role::Silent => {
                self.login(world);
                let half = self.line.out.pop_front().map(|(_, bytes)| bytes[..bytes.len() / 2].to_vec());
                self.queue_raw(half.unwrap_or_default());
                self.line.phase = Phase::Ending;
            }
            Role::Hasty => {
                self.connect(world);
                let pdu =
                    Pdu::new(0x01, 0xC1).put32(16, 7).put32(20, 512).put(32, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1]);
                self.queue(NO_TAG, &pdu);
                self.line.phase = Phase::Ending;
            }
            Role::Babbler => {
                self.connect(world);
                let bytes = (0..self.rng.between(1, 5000)).map(|_| self.rng.next() as u8).collect();
                self.queue_raw(bytes);
                self.line.phase = Phase::Ending;
            }
        }
        let _ = board;
    }

    pub(crate) fn wait_a_while(&mut self, world: &World) {
        self.line.stalled_until = world.now + self.rng.between(10 * MILLI, 130 * SECOND);
        if self.line.stalled_until > world.now + 25 * SECOND {
            // Long enough for the target's patience to end.
            self.line.excused = true;
        }
    }
}
