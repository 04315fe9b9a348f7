//! What makes several connections one session: who joins, who is lost, and what is in doubt then.
//!
//! Knows TSIH, CIDs and the gaps a lost connection leaves in the numbers. Does not know keys or commands.
//!
//! A lost connection leaves writes of which nobody knows whether the target still does them. What they would touch is
//! left alone until the target has said that the connection is gone: by reinstating it, or by its logout.

use std::collections::{BTreeMap, BTreeSet};

use crate::board::Board;
use crate::initiator::{Initiator, Line, Link, Phase, Role};
use crate::random::Rng;
use crate::task::Task;
use crate::wire::{NO_TAG, Pdu};
use crate::world::{Event, SECOND, World};

#[derive(Debug)]
pub(crate) struct Group {
    /// Connections we ask for, and those that were granted.
    pub(crate) wanted: u32,
    granted: u32,
    /// Zero until there is a session.
    pub(crate) tsih: u16,
    pub(crate) max_burst: u32,
    /// Tasks of lost connections.
    doubtful: Vec<Task>,
    /// Lost connections of which the target may not know yet.
    lost: BTreeSet<u16>,
    /// Connections this session has lost, also those that came back.
    ever_lost: BTreeSet<u16>,
    /// Pings that fill gaps: by tag, their connection and number. One that fills nothing is never answered.
    pub(crate) fillers: BTreeMap<u32, (u16, u32)>,
    /// Tasks that a function has ended which took so long that the target may have given up its fence.
    pub(crate) ended: BTreeSet<u32>,
    /// The logout of a connection, on its way: its tag, who asked, and who goes.
    logout: Option<(u32, u16, u16)>,
    /// What the leading login has settled for all connections.
    link: Option<Link>,
}

impl Group {
    pub(crate) fn new(rng: &mut Rng, role: Role) -> Self {
        let wanted = if role == Role::Worker { rng.pick(&[1, 1, 2, 3, 4, 8]) } else { 1 };
        Self {
            wanted,
            granted: 1,
            tsih: 0,
            max_burst: 0,
            doubtful: Vec::new(),
            lost: BTreeSet::new(),
            ever_lost: BTreeSet::new(),
            fillers: BTreeMap::new(),
            ended: BTreeSet::new(),
            logout: None,
            link: None,
        }
    }

    pub(crate) fn began(&mut self, tsih: u16, link: &Link, granted: u32) {
        (self.tsih, self.max_burst, self.granted) = (tsih, link.limits.burst, granted);
        self.link = Some(link.clone());
    }

    pub(crate) fn over(&mut self) {
        (self.tsih, self.granted, self.logout) = (0, 1, None);
        self.doubtful.clear();
        self.lost.clear();
        self.ever_lost.clear();
        self.fillers.clear();
        self.ended.clear();
    }

    /// A write that nobody knows the end of touches these sectors.
    pub(crate) fn in_doubt(&self, at: u64, len: u64) -> bool {
        self.doubtful.iter().any(|task| task.overlaps_write(at, len))
    }

    /// This is the tag of the logout of a connection that is on its way.
    pub(crate) fn logs_out_by(&self, tag: u32) -> bool {
        self.logout.is_some_and(|(asked, ..)| asked == tag)
    }

    /// The target knows that this connection is gone, and so are its tasks.
    fn settled(&mut self, cid: u16) {
        self.lost.remove(&cid);
        self.doubtful.retain(|task| task.cid != cid);
    }
}

impl Initiator {
    /// Goes round the connections of the session.
    pub(crate) fn next_line(&mut self) {
        if !self.parked.is_empty() {
            let next = self.parked.remove(0);
            self.parked.push(core::mem::replace(&mut self.line, next));
        }
    }

    pub(crate) fn lines(&self) -> impl Iterator<Item = &Line> {
        self.parked.iter().chain([&self.line])
    }

    /// Now and then a connection is added, or one leaves.
    pub(crate) fn steer_group(&mut self, world: &mut World, board: &mut Board) -> Result<bool, String> {
        let full = matches!(self.line.phase, Phase::Full);
        if !full || self.group.granted == 1 || board.stopping || self.quota == 0 {
            return Ok(false);
        }
        let count = self.lines().count() as u32;
        if count < self.group.granted && self.rng.chance(60) {
            self.add_line(world);
            return Ok(true);
        }
        if count > 1 && self.group.logout.is_none() && self.rng.chance(2) {
            self.log_out_line();
            return Ok(true);
        }
        if count > 1 && self.rng.chance(board.misbehaviour) {
            self.abandon_line(world, board);
            return Ok(true);
        }
        if self.rng.chance(300) {
            // Commands come on whatever connection it is the turn of.
            self.next_line();
        }
        Ok(false)
    }

    /// A new connection, or a lost one again (RFC 7143, 6.3.4).
    fn add_line(&mut self, world: &mut World) {
        let used: Vec<u16> = self.lines().map(|line| line.cid).collect();
        let leaving = self.group.logout.map(|(_, _, cid)| cid);
        let lost = self.group.lost.iter().copied().find(|cid| !used.contains(cid) && Some(*cid) != leaving);
        let fresh = (0..100).find(|cid| !used.contains(cid) && !self.group.lost.contains(cid));
        let Some(cid) = lost.filter(|_| self.rng.chance(800)).or(fresh) else { return };
        let former = core::mem::replace(&mut self.line, Line::new(cid));
        self.parked.push(former);
        self.login(world);
    }

    pub(crate) fn joined(&mut self, board: &mut Board) {
        board.counts.joined += 1;
        if self.group.lost.contains(&self.line.cid) {
            board.counts.lines_reinstated += 1;
        }
        self.group.settled(self.line.cid);
        if let Some(link) = &self.group.link {
            self.line.link.first_burst = link.first_burst;
            self.line.link.initial_r2t = link.initial_r2t;
            self.line.link.immediate_data = link.immediate_data;
        }
        self.line.phase = Phase::Full;
    }

    /// The session that a login wants to join may be gone or full by the time it has passed.
    pub(crate) fn join_may_fail(&self) -> bool {
        let others = self.parked.iter().any(|line| matches!(line.phase, Phase::Full) && !line.excused);
        self.group.tsih != 0 && (!others || !self.group.lost.is_empty())
    }

    /// A login that wanted to join was refused: only for a reason.
    pub(crate) fn join_refused(&mut self, status: (u8, u8), board: &Board) -> Result<(), String> {
        let others = self.parked.iter().any(|line| matches!(line.phase, Phase::Full) && !line.excused);
        let over = self.line.since <= board.cold_until[self.target].max(board.gone_until[self.target])
            || board.stopping
            || !others;
        let right = match status {
            (2, 6) => !self.group.lost.is_empty() || over,
            (2, 0xA) => over,
            _ => false,
        };
        self.line.phase = Phase::Ending;
        if right { Ok(()) } else { Err(format!("a joining login is refused with {status:02x?}")) }
    }

    /// The connection is gone while others are left: true. Its tasks are in doubt, its numbers may be missing.
    pub(crate) fn lose_line(&mut self, board: &mut Board) -> bool {
        let alive =
            |line: &Line| matches!(line.phase, Phase::Full | Phase::LoggingOut) && line.stream.is_some();
        if self.management.as_ref().is_some_and(|management| management.cid == self.line.cid) {
            // Nobody knows what it has ended: only a new session makes that clear.
            return false;
        }
        let Some(heir) = self.parked.iter().position(alive) else {
            // A login that still goes on cannot carry the session.
            return false;
        };
        let heir = self.parked.remove(heir);
        let gone = core::mem::replace(&mut self.line, heir);
        let cid = gone.cid;
        let was_in = matches!(gone.phase, Phase::Full | Phase::LoggingOut | Phase::Leaving);
        if !was_in {
            return true;
        }
        board.counts.lines_lost += 1;
        if self.group.logout.is_some_and(|(_, asker, _)| asker == cid) {
            self.group.logout = None;
        }
        let theirs: Vec<u32> =
            self.tasks.iter().filter(|(_, task)| task.cid == cid).map(|(tag, _)| *tag).collect();
        self.group.lost.insert(cid);
        self.group.ever_lost.insert(cid);
        let fillers = core::mem::take(&mut self.group.fillers);
        for (tag, (of, cmd_sn)) in fillers {
            if of == cid {
                self.fill(cmd_sn);
            } else {
                self.group.fillers.insert(tag, (of, cmd_sn));
            }
        }
        for tag in theirs {
            let Some(task) = self.tasks.remove(&tag) else { continue };
            if let Some(cmd_sn) = task.cmd_sn {
                self.fill(cmd_sn);
            }
            self.group.doubtful.push(task);
        }
        self.quota += 1;
        true
    }

    /// A ping in place of a command that may never have arrived: without it, all behind it would wait for ever.
    fn fill(&mut self, cmd_sn: u32) {
        let tag = self.tag();
        let pdu = Pdu::new(0, 0x80)
            .put32(16, tag)
            .put32(20, NO_TAG)
            .put32(24, cmd_sn)
            .put32(28, self.line.numbers.exp_stat_sn());
        self.group.fillers.insert(tag, (self.line.cid, cmd_sn));
        self.queue(tag, &pdu);
    }

    /// Asks that another connection, or a lost one, be closed.
    fn log_out_line(&mut self) {
        let coming_back = |cid: &u16| self.lines().any(|line| line.cid == *cid);
        let lost = self.group.lost.iter().copied().find(|cid| !coming_back(cid));
        let other = self.parked.iter().position(|line| matches!(line.phase, Phase::Full));
        let cid = match (lost, other) {
            (Some(cid), _) => cid,
            (None, Some(at)) => {
                let line = &mut self.parked[at];
                line.excused = true;
                line.cid
            }
            (None, None) => return,
        };
        let tag = self.tag();
        let pdu = Pdu::new(0x46, 0x81)
            .put32(16, tag)
            .put(20, &cid.to_be_bytes())
            .put32(24, self.cmd_sn)
            .put32(28, self.line.numbers.exp_stat_sn());
        self.queue(NO_TAG, &pdu);
        self.group.logout = Some((tag, self.line.cid, cid));
    }

    pub(crate) fn connection_logged_out(&mut self, pdu: &Pdu) -> Result<(), String> {
        let Some((tag, _, cid)) = self.group.logout.take() else {
            return Err("the response to a logout nobody sent".to_owned());
        };
        if tag != pdu.tag() || pdu.bhs[2] > 1 {
            return Err(format!("a logout was answered with {}", pdu.bhs[2]));
        }
        self.group.settled(cid);
        Ok(())
    }

    pub(crate) fn told_of_drop(&mut self, pdu: &Pdu) -> Result<(), String> {
        let cid = u16::from_be_bytes([pdu.bhs[38], pdu.bhs[39]]);
        let innocent = |line: &Line| line.cid == cid && matches!(line.phase, Phase::Full) && !line.excused;
        if self.lines().any(innocent) && !self.group.ever_lost.contains(&cid) {
            return Err(format!("told that connection {cid} was dropped, which had done nothing"));
        }
        Ok(())
    }

    /// Leaves a connection as it is and logs in with its CID: the target ends the former one.
    fn abandon_line(&mut self, world: &mut World, board: &mut Board) {
        let cid = self.line.cid;
        if let Some(stream) = self.line.stream {
            let delay = self.rng.between(60 * SECOND, 200 * SECOND);
            world.at(delay, Event::Cut { stream });
        }
        if !self.lose_line(board) {
            return;
        }
        let former = core::mem::replace(&mut self.line, Line::new(cid));
        self.parked.push(former);
        self.login(world);
    }
}
