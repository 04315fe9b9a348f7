//! All nodes of a storm on one ring: connections, timers, and who is told what.
//!
//! Knows events and time. Does not know PDUs, nor what a boot consists of.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::node::{Node, Stage, Turn};
use super::record::{Record, Span};
use super::{Checks, Storm, Watch};
use crate::client::{ARENA_BYTES, Told, Want};
use crate::fail::{Failure, Result, failure};
use crate::ring::{self, Event, Memory, Ring, Sizes};
use crate::trace::Kind;

const TELL_EVERY: Duration = Duration::from_millis(100);
/// A login that was put off, or lost its connection, is tried again after this.
const LOGIN_PAUSE: Duration = Duration::from_millis(100);
const LOGIN_ATTEMPTS: u32 = 100;

/// Who a port belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Nobody,
    Node(usize),
    /// The session before the node's present one: nobody listens there any more.
    Former(usize),
}

struct Engine<'a> {
    storm: &'a Storm,
    ring: Ring,
    nodes: Vec<Node>,
    owners: Vec<Owner>,
    timers: BinaryHeap<Reverse<(Instant, usize)>>,
    record: Record,
    started: Instant,
    told: Vec<Told>,
    /// Nodes that are not up yet, and those that are not gone yet.
    booting: usize,
    left: usize,
}

/// Lets all nodes boot at once, and, with [`Checks::All`], read back what they wrote once all are up.
pub(crate) fn run(storm: &Storm, watch: &dyn Watch) -> Result<Record> {
    ring::allow_files(2 * storm.nodes as u64 + 64);
    let sizes = Sizes { receive: 256 << 10, arena: ARENA_BYTES, send: 1 << 20 };
    let ring = Ring::new(sizes, Arc::new(Memory::filled(4096, |_| {})?), Duration::ZERO)?;
    let started = Instant::now();
    let nodes: Vec<Node> =
        (0..storm.nodes).map(|number| Node::new(number, number % storm.urls.len(), started)).collect();
    let count = nodes.len();
    let mut engine = Engine {
        storm,
        ring,
        nodes,
        owners: Vec::new(),
        timers: BinaryHeap::new(),
        record: Record::new(count),
        started,
        told: Vec::new(),
        booting: count,
        left: count,
    };
    for node in 0..count {
        engine.step(node, None);
    }
    engine.drive(watch)?;
    Ok(engine.record)
}

impl Engine<'_> {
    fn drive(&mut self, watch: &dyn Watch) -> Result<()> {
        let deadline = self.started + self.storm.limit;
        let mut tell = self.started;
        let mut all_up = false;
        while self.left > 0 {
            let now = Instant::now();
            if now >= tell {
                tell = now + TELL_EVERY;
                watch.goes_on(self.record.commands, self.record.booted(), &self.record);
            }
            if now >= deadline {
                self.give_up();
                break;
            }
            let due = self.timers.peek().map_or(tell, |Reverse((at, _))| *at).min(tell).min(deadline);
            self.ring.wait(due.saturating_duration_since(now).max(Duration::from_micros(20)))?;
            while let Some(event) = self.ring.next() {
                self.event(event);
            }
            let now = Instant::now();
            while let Some(Reverse((_, node))) = self.timers.pop_if_due(now) {
                self.step(node, None);
            }
            if self.booting == 0 && !all_up {
                all_up = true;
                self.after_the_boot();
            }
        }
        watch.goes_on(self.record.commands, self.record.booted(), &self.record);
        Ok(())
    }

    fn event(&mut self, event: Event) {
        let (Event::Received { port }
        | Event::Sent { port }
        | Event::Discarded { port, .. }
        | Event::Lost { port, .. }
        | Event::Connected { port }
        | Event::Accepted { port }) = event;
        match self.owners.get(port).copied() {
            Some(Owner::Node(node)) => self.step(node, Some(event)),
            Some(Owner::Former(node)) if matches!(event, Event::Lost { .. }) => {
                self.nodes[node].former = None;
                self.close(port);
            }
            _ => {}
        }
    }

    fn own(&mut self, port: usize, owner: Owner) {
        if self.owners.len() <= port {
            self.owners.resize(port + 1, Owner::Nobody);
        }
        self.owners[port] = owner;
    }

    fn close(&mut self, port: usize) {
        self.own(port, Owner::Nobody);
        self.ring.close(port);
    }

    /// Goes on with one node: after an event of its connection, or because its time has come.
    fn step(&mut self, node: usize, event: Option<Event>) {
        if self.nodes[node].stage == Stage::Gone {
            return;
        }
        if let Err(failure) = self.try_step(node, event) {
            self.fail(node, failure);
        }
    }

    fn try_step(&mut self, index: usize, event: Option<Event>) -> Result<()> {
        let now = Instant::now();
        let node = &mut self.nodes[index];
        let Some(port) = node.port else { return self.connect(index, now) };
        if let Some(Event::Lost { errno, .. }) = event {
            return self.lost(index, errno, now);
        }
        let mut turn = Turn { storm: self.storm, record: &mut self.record, started: self.started, now };
        let buffers = self.ring.port(port);
        match event {
            Some(Event::Received { .. }) => node.received(buffers, &mut turn, &mut self.told)?,
            Some(Event::Discarded { bytes, .. }) => {
                if let Some(session) = &mut node.session {
                    session.discarded(bytes, &mut self.told);
                }
            }
            _ => {}
        }
        let mut told = std::mem::take(&mut self.told);
        let mut outcome = Ok(());
        for word in told.drain(..) {
            outcome = outcome.and_then(|()| self.told(index, word, now));
        }
        self.told = told;
        outcome?;
        if self.nodes[index].is_through(self.storm) {
            self.phase_ended(index, now);
        }
        // It may have left the connection meanwhile.
        if self.nodes[index].port == Some(port) { self.pump(index, port, now) } else { Ok(()) }
    }

    /// Sends and receives on the node's connection.
    fn pump(&mut self, index: usize, port: usize, now: Instant) -> Result<()> {
        let node = &mut self.nodes[index];
        let mut turn = Turn { storm: self.storm, record: &mut self.record, started: self.started, now };
        let buffers = self.ring.port(port);
        // A connection that is not there yet is busy receiving.
        let connecting = node.stage == Stage::LoggingIn && buffers.rx.is_busy() && buffers.tx.is_empty();
        if !connecting && !buffers.tx.is_busy() {
            if let Some(at) = node.issue(buffers, &mut turn) {
                self.timers.push(Reverse((at, index)));
            }
            self.ring.send(port);
        }
        let buffers = self.ring.port(port);
        if !buffers.rx.is_busy()
            && let Some(session) = &self.nodes[index].session
        {
            match session.want(buffers) {
                Want::Receive(bytes) => self.ring.receive(port, bytes),
                Want::Discard(bytes) => self.ring.discard(port, bytes),
            }
        }
        Ok(())
    }

    fn connect(&mut self, index: usize, now: Instant) -> Result<()> {
        let node = &mut self.nodes[index];
        if node.not_before > now {
            self.timers.push(Reverse((node.not_before, index)));
            return Ok(());
        }
        let port = self.ring.connect(self.storm.urls[node.url].address()?)?;
        node.connect(self.storm, port, now);
        if node.attempts == 0 {
            let connected = now.saturating_duration_since(self.started);
            let kind = node.phase(self.storm).kind;
            self.record.nodes[index].spans.push(Span { kind, connected, logged_in: None, ended: None });
        }
        self.own(port, Owner::Node(index));
        Ok(())
    }

    fn told(&mut self, index: usize, word: Told, now: Instant) -> Result<()> {
        let node = &mut self.nodes[index];
        let mut turn = Turn { storm: self.storm, record: &mut self.record, started: self.started, now };
        match word {
            Told::Done(done) => node.done(&done, &mut turn)?,
            Told::LoggedIn => {
                node.logged_in(&mut turn);
                if let Some(span) = self.record.nodes[index].spans.last_mut() {
                    span.logged_in = Some(now.saturating_duration_since(self.started));
                }
                if let Some(former) = node.former.take() {
                    self.own(former, Owner::Nobody);
                    self.ring.vanish(former);
                }
            }
            Told::Later(why) => self.try_again(index, why, now)?,
            Told::LoggedOut => {
                if let Some(port) = node.port.take() {
                    self.close(port);
                }
                self.gone(index);
            }
        }
        Ok(())
    }

    fn lost(&mut self, index: usize, errno: i32, now: Instant) -> Result<()> {
        let node = &self.nodes[index];
        let url = &self.storm.urls[node.url];
        let told = match errno {
            0 => format!("{url} closed the connection: look at the target's log"),
            _ => {
                let reason = std::io::Error::from_raw_os_error(errno);
                format!("the connection to {url} broke: {reason}; look at the target's log")
            }
        };
        if node.stage == Stage::LoggingIn && errno != libc::ECONNREFUSED {
            return self.try_again(index, told, now);
        }
        Err(Failure(told))
    }

    fn try_again(&mut self, index: usize, why: String, now: Instant) -> Result<()> {
        let node = &mut self.nodes[index];
        node.attempts += 1;
        if node.attempts > LOGIN_ATTEMPTS {
            return Err(failure!("{why} (after {LOGIN_ATTEMPTS} attempts)"));
        }
        self.record.retries += 1;
        (node.stage, node.not_before, node.session) = (Stage::Away, now + LOGIN_PAUSE, None);
        self.timers.push(Reverse((node.not_before, index)));
        if let Some(port) = node.port.take() {
            self.close(port);
        }
        Ok(())
    }

    /// All commands of the node's session ended: the next session, or the end of the boot.
    fn phase_ended(&mut self, index: usize, now: Instant) {
        let at = now.saturating_duration_since(self.started);
        let node = &mut self.nodes[index];
        if node.stage == Stage::ReadingBack {
            return self.leave(index);
        }
        if let Some(span) = self.record.nodes[index].spans.last_mut() {
            span.ended = Some(at);
        }
        let Some(next) = self.storm.script.phases.get(node.phase + 1) else {
            node.stage = Stage::Up;
            self.record.nodes[index].booted = Some(at);
            self.booting -= 1;
            return;
        };
        let hands_over = node.phase(self.storm).kind == Kind::Loader && next.kind == Kind::System;
        node.phase += 1;
        (node.stage, node.session) = (Stage::Away, None);
        node.not_before =
            now + next.steps.first().map_or(Duration::ZERO, |step| self.storm.pause(step.gap_us));
        self.timers.push(Reverse((node.not_before, index)));
        let port = node.port.take();
        if hands_over {
            node.former = port;
            if let Some(port) = port {
                self.own(port, Owner::Former(index));
            }
        } else if let Some(port) = port {
            // Without a logout, as recorded.
            self.close(port);
        }
    }

    /// All nodes are up or have failed.
    fn after_the_boot(&mut self) {
        for index in 0..self.nodes.len() {
            if self.nodes[index].stage != Stage::Up {
                continue;
            }
            if self.storm.checks == Checks::All {
                self.nodes[index].stage = Stage::ReadingBack;
                self.step(index, None);
            } else {
                self.leave(index);
                self.step(index, None);
            }
        }
    }

    fn leave(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.stage = Stage::LoggingOut;
        if let Some(session) = &mut node.session {
            session.log_out();
        }
    }

    fn fail(&mut self, index: usize, failure: Failure) {
        let node = &mut self.nodes[index];
        let ports = [node.port.take(), node.former.take()];
        let number = node.number + 1;
        self.record.error(|| format!("node {number}: {failure}"));
        self.record.nodes[index].failure = Some(failure.to_string());
        ports.into_iter().flatten().for_each(|port| self.close(port));
        if self.record.nodes[index].booted.is_none() {
            self.booting -= 1;
        }
        self.gone(index);
    }

    fn gone(&mut self, index: usize) {
        self.nodes[index].stage = Stage::Gone;
        self.left -= 1;
    }

    fn give_up(&mut self) {
        for index in 0..self.nodes.len() {
            if self.nodes[index].stage != Stage::Gone {
                let (stage, limit) = (self.nodes[index].stage, self.storm.limit.as_secs());
                self.fail(
                    index,
                    failure!(
                        "it was still {stage:?} after {limit} s: give more time, or look at the target's log"
                    ),
                );
            }
        }
    }
}

trait PopIfDue {
    fn pop_if_due(&mut self, now: Instant) -> Option<Reverse<(Instant, usize)>>;
}

impl PopIfDue for BinaryHeap<Reverse<(Instant, usize)>> {
    fn pop_if_due(&mut self, now: Instant) -> Option<Reverse<(Instant, usize)>> {
        if self.peek()?.0.0 <= now { self.pop() } else { None }
    }
}
