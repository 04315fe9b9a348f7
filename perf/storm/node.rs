//! One simulated diskless machine: which session it is in, which command comes next, and what it may hold.
//!
//! Knows the order of a boot and checks what is read. Does not know rings or clocks: it is told the time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::record::{Class, Record};
use super::script::{Origin, Phase, Step};
use super::{Checks, Storm};
use crate::client::{Command, Content, DEPTH_MAX, Done, Session, Way};
use crate::fail::{Result, failure};
use crate::initiator::Options;
use crate::pattern;
use crate::ring::Port;
use crate::scsi::{self, SECTOR};
use crate::trace::{Kind, Op};

/// Names of commands that are no step.
const READY: u32 = u32::MAX;
const CAPACITY: u32 = u32::MAX - 1;
/// Bytes compared at once: small enough for the processor's first caches.
const COMPARE_BYTES: usize = 16 << 10;
/// A busy target is asked again after this.
const BUSY_PAUSE: Duration = Duration::from_millis(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Connects when the time has come.
    Away,
    LoggingIn,
    /// Asks whether the unit is ready, and how large it is.
    Settling,
    Booting,
    /// Booted; the session stays, as that of a running system does.
    Up,
    ReadingBack,
    LoggingOut,
    Gone,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) number: usize,
    pub(super) url: usize,
    pub(super) stage: Stage,
    pub(super) phase: usize,
    /// The connection of the session before, which nobody closes until the next one has logged in.
    pub(super) former: Option<usize>,
    pub(super) port: Option<usize>,
    pub(super) session: Option<Session>,
    pub(super) not_before: Instant,
    pub(super) attempts: u32,
    connected: Instant,
    cursor: usize,
    under_way: Vec<u32>,
    again: VecDeque<u32>,
    settled: [bool; 2],
    capacity: Vec<u8>,
}

/// What a node needs of the storm while it handles something.
pub(super) struct Turn<'a> {
    pub(super) storm: &'a Storm,
    pub(super) record: &'a mut Record,
    pub(super) started: Instant,
    pub(super) now: Instant,
}

/// The bytes of one node's commands.
struct Bytes<'a> {
    storm: &'a Storm,
    record: &'a mut Record,
    number: usize,
    phase: usize,
    capacity: &'a mut Vec<u8>,
}

impl Node {
    pub(super) fn new(number: usize, url: usize, start: Instant) -> Node {
        Node {
            number,
            url,
            stage: Stage::Away,
            phase: 0,
            former: None,
            port: None,
            session: None,
            not_before: start,
            attempts: 0,
            connected: start,
            cursor: 0,
            under_way: Vec::new(),
            again: VecDeque::new(),
            settled: [false; 2],
            capacity: Vec::new(),
        }
    }

    /// What this node asks for at login: the parameters of a loader or of a system.
    fn options(&self, storm: &Storm, kind: Kind) -> Options {
        let number = (self.number as u32 + 1).to_be_bytes();
        let initiator_name = storm.initiator.replacen('*', &format!("{:03}", self.number + 1), 1);
        let chap = storm.urls[self.url].chap.clone();
        match kind {
            Kind::Loader => Options {
                initiator_name,
                // A loader chooses another ISID each time.
                isid: [0x40, self.phase as u8, 0x27, number[1], number[2], number[3]],
                max_recv_segment: 8192,
                max_burst: 262_144,
                chap,
                ..Options::default()
            },
            Kind::System => Options {
                initiator_name,
                isid: [0x00, 0x02, 0x3d, 0, 0, 1],
                max_burst: 16_776_192,
                first_burst: 262_144,
                chap,
                ..Options::default()
            },
        }
    }

    pub(super) fn phase<'s>(&self, storm: &'s Storm) -> &'s Phase {
        &storm.script.phases[self.phase]
    }

    /// Takes a connection that was begun, and logs in on it once it is there.
    pub(super) fn connect(&mut self, storm: &Storm, port: usize, now: Instant) {
        let phase = self.phase(storm);
        let url = &storm.urls[self.url];
        let options = self.options(storm, phase.kind);
        self.session = Some(Session::new(&options, &url.target, url.lun, phase.depth.min(DEPTH_MAX)));
        (self.stage, self.port, self.connected) = (Stage::LoggingIn, Some(port), now);
        (self.settled, self.cursor) = ([false; 2], 0);
        self.capacity.clear();
    }

    /// The session is there.
    pub(super) fn logged_in(&mut self, turn: &mut Turn<'_>) {
        self.stage = Stage::Settling;
        self.attempts = 0;
        turn.record.latency(Class::Login, turn.now.saturating_duration_since(self.connected));
        self.again.extend([READY, CAPACITY]);
    }

    fn bytes<'a>(
        &'a mut self,
        storm: &'a Storm,
        record: &'a mut Record,
    ) -> (Option<&'a mut Session>, Bytes<'a>) {
        let Node { number, phase, capacity, session, .. } = self;
        (session.as_mut(), Bytes { storm, record, number: *number, phase: *phase, capacity })
    }

    pub(super) fn received(
        &mut self,
        port: &mut Port,
        turn: &mut Turn<'_>,
        told: &mut Vec<crate::client::Told>,
    ) -> Result<()> {
        let (session, mut bytes) = self.bytes(turn.storm, turn.record);
        let Some(session) = session else { return Ok(()) };
        let before = session.wire_bytes;
        let outcome = session.received(port, &mut bytes, told);
        let came = session.wire_bytes - before;
        if self.stage != Stage::ReadingBack {
            turn.record.wire_bytes += came;
        }
        outcome
    }

    /// A command ended. Errors end the node.
    pub(super) fn done(&mut self, done: &Done, turn: &mut Turn<'_>) -> Result<()> {
        let Some(place) = self.under_way.iter().position(|id| *id == done.id) else { return Ok(()) };
        self.under_way.swap_remove(place);
        let attention = done.status == scsi::CHECK_CONDITION && done.sense.is_unit_attention();
        if attention || matches!(done.status, scsi::BUSY | scsi::TASK_SET_FULL) {
            turn.record.retries += 1;
            self.again.push_front(done.id);
            if !attention {
                self.not_before = turn.now + BUSY_PAUSE;
            }
            return Ok(());
        }
        let step = turn.storm.script.step(self.phase, done.id);
        let length = step.and_then(|step| step.op.range()).map_or(0, |(from, to)| (to - from) * SECTOR);
        let due = if step.is_some_and(|step| step.op.is_write()) { 0 } else { length };
        let short = step.is_some() && u64::from(done.received) != due;
        if done.status != scsi::GOOD || short {
            return Err(failure!(
                "{} ended {} with status {:#04x}, {}, after {} bytes: look at the target's log",
                turn.storm.urls[self.url],
                step.map_or("a command that asks for its state".to_string(), |step| format!("{:?}", step.op)),
                done.status,
                done.sense,
                done.received
            ));
        }
        match (done.id, step) {
            (READY, _) => self.settled[0] = true,
            (CAPACITY, _) => {
                self.check_capacity(turn.storm)?;
                self.settled[1] = true;
            }
            (_, Some(step)) if self.stage == Stage::Booting => {
                let class = Class::of(self.phase(turn.storm).kind, step.op);
                let latency = turn.now.saturating_duration_since(done.started);
                let at = turn.now.saturating_duration_since(turn.started);
                turn.record.ended(self.number, class, length, at, latency);
            }
            _ => turn.record.read_back_bytes += length,
        }
        if self.stage == Stage::Settling && self.settled == [true; 2] {
            self.stage = Stage::Booting;
        }
        Ok(())
    }

    fn check_capacity(&self, storm: &Storm) -> Result<()> {
        let capacity = scsi::parse_capacity_10(&self.capacity)?;
        // A disk beyond 2 TiB says that the short form cannot tell.
        if u64::from(capacity.sector_len) == SECTOR && capacity.sectors >= storm.script.sectors {
            return Ok(());
        }
        Err(failure!(
            "{} has {} sectors of {} bytes, but the boot needs {} of 512: give a larger disk or another trace",
            storm.urls[self.url],
            capacity.sectors,
            capacity.sector_len,
            storm.script.sectors
        ))
    }

    /// All steps of this phase, or all reads after the boot, have ended.
    pub(super) fn is_through(&self, storm: &Storm) -> bool {
        let end = self.end(storm);
        matches!(self.stage, Stage::Booting | Stage::ReadingBack)
            && self.cursor >= end
            && self.under_way.is_empty()
            && self.again.is_empty()
    }

    fn end(&self, storm: &Storm) -> usize {
        let steps = self.phase(storm).steps.len();
        if self.stage == Stage::ReadingBack { steps + storm.script.read_back.len() } else { steps }
    }

    /// Sends what may be sent now. The time to come back at, when the next step has to wait for one.
    pub(super) fn issue(&mut self, port: &mut Port, turn: &mut Turn<'_>) -> Option<Instant> {
        let storm = turn.storm;
        loop {
            let (session, mut bytes) = self.bytes(storm, turn.record);
            if !session?.pay(port, &mut bytes) {
                return None;
            }
            let (id, repeated) = match self.again.front() {
                Some(id) => (*id, true),
                None if matches!(self.stage, Stage::Booting | Stage::ReadingBack)
                    && self.cursor < self.end(storm) =>
                {
                    (self.cursor as u32, false)
                }
                None => return None,
            };
            if self.not_before > turn.now {
                return Some(self.not_before);
            }
            let step = storm.script.step(self.phase, id);
            if step.is_some_and(|step| self.must_wait(step.op, storm)) {
                return None;
            }
            let command = command(id, step);
            let (session, mut bytes) = self.bytes(storm, turn.record);
            let session = session?;
            if !session.can_start(port, command.way, command.len) {
                return None;
            }
            session.start(port, command, turn.now, &mut bytes);
            self.under_way.push(id);
            if repeated {
                self.again.pop_front();
            } else {
                self.cursor += 1;
                let next = storm.script.step(self.phase, self.cursor as u32);
                let gap = next.map_or(Duration::ZERO, |next| storm.pause(next.gap_us));
                self.not_before = turn.now + gap;
            }
        }
    }

    /// A command does not overtake one that it depends on; a flush waits for the writes before it.
    fn must_wait(&self, op: Op, storm: &Storm) -> bool {
        self.under_way.iter().filter_map(|id| storm.script.step(self.phase, *id)).any(|other| match op {
            Op::Flush => other.op.is_write(),
            _ => op.conflicts(other.op),
        })
    }
}

fn command(id: u32, step: Option<&Step>) -> Command {
    let bytes = |sectors: u32| sectors * SECTOR as u32;
    match (id, step.map(|step| step.op)) {
        (_, Some(Op::Read { lba, sectors })) => {
            Command { id, cdb: scsi::transfer(false, lba, sectors), way: Way::In, len: bytes(sectors) }
        }
        (_, Some(Op::Write { lba, sectors })) => {
            Command { id, cdb: scsi::transfer(true, lba, sectors), way: Way::Out, len: bytes(sectors) }
        }
        (_, Some(Op::Flush)) => Command { id, cdb: scsi::synchronize_cache(), way: Way::In, len: 0 },
        (CAPACITY, None) => Command { id, cdb: scsi::read_capacity_10(), way: Way::In, len: 8 },
        (_, None) => Command { id, cdb: scsi::test_unit_ready(), way: Way::In, len: 0 },
    }
}

impl Bytes<'_> {
    /// No two writes, and no two nodes, write the same.
    fn seed(&self, write: u32) -> u64 {
        (self.number as u64 + 1) << 32 | u64::from(write)
    }

    fn compare(&mut self, step: &Step, lba: u64, offset: u32, bytes: &[u8]) {
        let mut expected = [0; COMPARE_BYTES];
        let (mut done, mut at) = (0, u64::from(offset));
        for piece in &step.pieces {
            let end = u64::from(piece.end) * SECTOR;
            while at < end && done < bytes.len() {
                let take = ((end - at) as usize).min(bytes.len() - done).min(COMPARE_BYTES);
                let (address, expected) = (lba * SECTOR + at, &mut expected[..take]);
                let known = match (piece.origin, self.storm.checks) {
                    (Origin::Golden, _) | (Origin::GoldenUntilWritten, Checks::All) => {
                        self.storm.content.expected(address, expected)
                    }
                    (Origin::Write(write), Checks::All) => {
                        pattern::stamp_bytes(self.seed(write), address, expected);
                        true
                    }
                    _ => {
                        (at, done) = (at + take as u64, done + take);
                        continue;
                    }
                };
                self.record.verified_bytes += take as u64;
                if !known || bytes[done..done + take] != *expected {
                    self.wrong(address, &bytes[done..done + take], expected);
                }
                (at, done) = (at + take as u64, done + take);
            }
        }
    }

    fn wrong(&mut self, address: u64, got: &[u8], expected: &[u8]) {
        let mut first = None;
        pattern::each_sector(address, got.len(), |lba, _, range| {
            if got[range.clone()] != expected[range] {
                self.record.wrong_sectors += 1;
                first = first.or(Some(lba));
            }
        });
        let (lba, number) = (first.unwrap_or(address / SECTOR), self.number + 1);
        self.record.error(|| {
            format!(
                "node {number}: sector {lba} does not hold what it must: compare the image with the answer"
            )
        });
    }
}

impl Content for Bytes<'_> {
    fn wants(&self, id: u32) -> bool {
        id == CAPACITY || self.storm.checks != Checks::Off
    }

    fn came(&mut self, id: u32, offset: u32, bytes: &[u8]) {
        if id == CAPACITY {
            self.capacity.extend_from_slice(bytes);
            return;
        }
        let storm = self.storm;
        let Some(step) = storm.script.step(self.phase, id) else { return };
        if let (Op::Read { lba, .. }, true) = (step.op, storm.checks != Checks::Off) {
            self.compare(step, lba, offset, bytes);
        }
    }

    fn compose(&mut self, id: u32, offset: u32, bytes: &mut [u8]) {
        if let Some(Step { op: Op::Write { lba, .. }, write, .. }) = self.storm.script.step(self.phase, id) {
            pattern::stamp_bytes(self.seed(*write), lba * SECTOR + u64::from(offset), bytes);
        }
    }
}
