//! Many loaded sessions on one ring, driven for a bounded time.
//!
//! Knows how sessions are opened, driven, drained and opened again. Does not know PDUs, nor what the
//! numbers are for.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connection::{Connection, Pace, Trouble, Turn, Want};
use super::stats::Stats;
use super::verify::{Base, Model};
use super::workload::{Addresses, Workload};
use crate::ceiling;
use crate::fail::{Result, failure};
use crate::initiator::{self, Endpoint, Options};
use crate::pattern::Random;
use crate::ring::{Event, Memory, Ring, Sizes};
use crate::scsi::SECTOR;
use crate::url::Url;

/// No answer for this long while one is due ends the run.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Sessions are dealt out over these in turn; none is a pattern.
    pub(crate) urls: Vec<Url>,
    pub(crate) workload: Workload,
    /// A second kind of sessions, which rests unless asked for.
    pub(crate) beside: Option<Workload>,
    /// Requests a second that all sessions together are to send, whatever comes back; `None` is a closed loop.
    pub(crate) rate: Option<f64>,
    /// Only so many bytes from the start of the disk.
    pub(crate) span: Option<u64>,
    pub(crate) verify: Option<Base>,
    pub(crate) options: Options,
    pub(crate) spin: Duration,
    /// Counting replies instead of parsing them is allowed.
    pub(crate) may_count: bool,
    /// Stop after so many requests of this engine, even before the time is up.
    pub(crate) requests: Option<u64>,
}

struct Loaded {
    connection: Connection,
    /// 1 for the second kind.
    group: usize,
    index: usize,
    url: usize,
    model: Option<usize>,
    port: usize,
}

pub(crate) struct Engine {
    plan: Plan,
    ring: Ring,
    sessions: Vec<Loaded>,
    /// Port to session.
    owners: Vec<usize>,
    models: Vec<Model>,
    models_of: HashMap<String, usize>,
    /// Requests that may still be started.
    budget: u64,
    /// Whether the second kind is loaded.
    both: bool,
    /// When sessions of an open loop have to be looked at, and whether they wait for that.
    timers: BinaryHeap<Reverse<(Instant, usize)>>,
    armed: Vec<bool>,
}

/// What the two kinds of sessions did.
pub(crate) type Both = [Stats; 2];

impl Engine {
    /// Opens the sessions `first`, `first + step`, ... of the plan's workload.
    pub(crate) fn open(plan: Plan, first: usize, step: usize) -> Result<Engine> {
        let of = plan.workload.sessions + plan.beside.map_or(0, |beside| beside.sessions);
        let largest = plan.workload.size.max(plan.beside.map_or(0, |beside| beside.size));
        let verified = if plan.verify.is_some() { 2 << 20 } else { 0 };
        let sizes = Sizes { receive: 256 << 10, arena: (64 << 10) + verified, send: 1 << 20 };
        let payload = Memory::filled((largest as usize).max(4096), |bytes| {
            let mut random = Random::new(1);
            bytes
                .chunks_mut(8)
                .for_each(|word| word.copy_from_slice(&random.next().to_le_bytes()[..word.len()]));
        })?;
        let ring = Ring::new(sizes, Arc::new(payload), plan.spin)?;
        let (models, models_of) = (Vec::new(), HashMap::new());
        let mut engine = Engine {
            plan,
            ring,
            sessions: Vec::new(),
            owners: Vec::new(),
            models,
            models_of,
            budget: 0,
            both: false,
            timers: BinaryHeap::new(),
            armed: Vec::new(),
        };
        for index in (first..of).step_by(step) {
            let session = engine.log_in(index, true)?;
            engine.own(session.port, engine.sessions.len());
            engine.sessions.push(session);
        }
        Ok(engine)
    }

    fn own(&mut self, port: usize, session: usize) {
        if self.owners.len() <= port {
            self.owners.resize(port + 1, usize::MAX);
        }
        self.owners[port] = session;
    }

    fn log_in(&mut self, index: usize, may_count: bool) -> Result<Loaded> {
        let first = self.plan.workload.sessions;
        let (group, workload, within) = match self.plan.beside {
            Some(beside) if index >= first => (1, beside, index - first),
            _ => (0, self.plan.workload, index),
        };
        let url_index = index % self.plan.urls.len();
        let url = &self.plan.urls[url_index];
        let endpoint = Endpoint { address: url.address()?, target: url.target.clone(), lun: url.lun };
        let mut options = self.plan.options.clone();
        options.chap = url.chap.clone();
        options.isid = isid(index);
        let mut session = initiator::open(&endpoint, &options)?;
        session.ready()?;
        let capacity = session.capacity()?;
        let disk = capacity.sectors * SECTOR;
        let span = self.plan.span.unwrap_or(disk).min(disk);
        if u64::from(capacity.sector_len) != SECTOR || span < u64::from(workload.size) {
            return Err(failure!(
                "{url} has {} sectors of {} bytes: this load needs sectors of 512 bytes and room for one request",
                capacity.sectors,
                capacity.sector_len
            ));
        }
        let model = self.plan.verify.clone().map(|base| {
            let models = &mut self.models;
            *self.models_of.entry(url.to_string()).or_insert_with(|| {
                models.push(Model::new(base, span / SECTOR));
                models.len() - 1
            })
        });
        let (tcp, agreed, numbers) = session.into_parts();
        if self.plan.options.data_digest && !agreed.data_digest && url.target != ceiling::TARGET {
            return Err(failure!("{url} refuses data digests: measure it without --data-digest"));
        }
        let addresses = Addresses::new(&workload, span, within, workload.sessions);
        let may_count = may_count && self.plan.may_count;
        let connection =
            Connection::new((agreed, numbers), url.lun, workload, addresses, model.is_some(), may_count);
        let port = self.ring.add(tcp);
        Ok(Loaded { connection, group, index, url: url_index, model, port })
    }

    /// Drives the load for `time`, then waits for what is still in flight.
    pub(crate) fn run(&mut self, time: Duration) -> Result<Stats> {
        let [stats, _] = self.run_both(time, false)?;
        Ok(stats)
    }

    /// The same, with or without the second kind of sessions.
    pub(crate) fn run_both(&mut self, time: Duration, both: bool) -> Result<Both> {
        let mut stats = [Stats::new(), Stats::new()];
        let started = Instant::now();
        let deadline = started + time;
        self.budget = self.plan.requests.unwrap_or(u64::MAX);
        self.both = both;
        self.set_paces(started);
        for session in 0..self.sessions.len() {
            self.step(session, &mut stats, None, deadline)?;
        }
        let mut progress = Instant::now();
        loop {
            let now = Instant::now();
            if (now >= deadline || self.budget == 0)
                && self.sessions.iter().all(|s| s.connection.in_flight() == 0)
            {
                break;
            }
            let due = self.timers.peek().map_or(deadline, |Reverse((due, _))| (*due).min(deadline));
            let least = if due < deadline { Duration::from_micros(10) } else { Duration::from_millis(1) };
            self.ring.wait(due.saturating_duration_since(now).clamp(least, PATIENCE / 100))?;
            if progress.elapsed() > PATIENCE {
                self.stalled(&mut stats, deadline)?;
                progress = Instant::now();
            }
            while let Some(event) = self.ring.next() {
                progress = now;
                let (Event::Received { port }
                | Event::Sent { port }
                | Event::Discarded { port, .. }
                | Event::Lost { port, .. }
                | Event::Accepted { port }
                | Event::Connected { port }) = event;
                if let Some(&session) = self.owners.get(port).filter(|&&session| session != usize::MAX) {
                    self.step(session, &mut stats, Some(event), deadline)?;
                }
            }
            self.look_at_the_clock(&mut stats, deadline, &mut progress)?;
        }
        for session in &mut self.sessions {
            session.connection.end_pace(deadline, &mut stats[session.group]);
            session.connection.rest();
        }
        let elapsed = time.min(started.elapsed());
        stats.iter_mut().for_each(|stats| stats.elapsed = elapsed);
        Ok(stats)
    }

    /// Spreads the requests of an open loop evenly over time, and over the sessions in turn.
    fn set_paces(&mut self, started: Instant) {
        self.timers.clear();
        self.armed = vec![false; self.sessions.len()];
        let Some(rate) = self.plan.rate else { return };
        let sessions = self.plan.workload.sessions as f64;
        for session in self.sessions.iter_mut().filter(|session| session.group == 0) {
            let due = started + Duration::from_secs_f64(session.index as f64 / rate);
            let interval = Duration::from_secs_f64(sessions / rate).max(Duration::from_nanos(1));
            session.connection.set_pace(Some(Pace { due, interval }));
        }
    }

    /// Steps the sessions that have a request due.
    fn look_at_the_clock(
        &mut self,
        stats: &mut Both,
        deadline: Instant,
        progress: &mut Instant,
    ) -> Result<()> {
        let now = Instant::now();
        while let Some(&Reverse((due, session))) = self.timers.peek() {
            if due > now {
                break;
            }
            self.timers.pop();
            self.armed[session] = false;
            // A pause of the load is none of the target.
            if self.sessions.iter().all(|s| s.connection.in_flight() == 0) {
                *progress = now;
            }
            self.step(session, stats, None, deadline)?;
        }
        Ok(())
    }

    /// Has a session looked at when its next request is due. One that cannot send is looked at when an answer comes.
    fn arm(&mut self, index: usize, now: Instant) {
        if let Some(pace) = self.sessions[index].connection.pace
            && pace.due > now
            && !self.armed[index]
        {
            self.armed[index] = true;
            self.timers.push(Reverse((pace.due, index)));
        }
    }

    /// Handles one event of a session, or its start when there is none.
    fn step(
        &mut self,
        index: usize,
        stats: &mut Both,
        event: Option<Event>,
        deadline: Instant,
    ) -> Result<()> {
        let session = &mut self.sessions[index];
        let now = Instant::now();
        let recording = now < deadline;
        let model = session.model.map(|model| &mut self.models[model]);
        let mut turn = Turn { now, recording, stats: &mut stats[session.group], model };
        let port = self.ring.port(session.port);
        let outcome = match event {
            Some(Event::Received { .. }) => session.connection.received(port, &mut turn),
            Some(Event::Discarded { bytes, .. }) => session.connection.discarded(bytes, &mut turn),
            Some(Event::Lost { errno, .. }) => {
                let url = &self.plan.urls[session.url];
                let reason = std::io::Error::from_raw_os_error(errno);
                return Err(if errno == 0 {
                    failure!("{url} closed the connection: look at the target's log")
                } else {
                    failure!("the connection to {url} broke: {reason}; look at the target's log")
                });
            }
            _ => Ok(()),
        };
        match outcome {
            Ok(()) => {}
            Err(Trouble::Deviation) => return self.fall_back(index, stats, deadline),
            Err(Trouble::Fatal(failure)) => {
                return Err(failure!("{}: {failure}", self.plan.urls[session.url]));
            }
        }
        if !port.tx.is_busy() {
            let active = recording && (session.group == 0 || self.both);
            let budget = if active { self.budget } else { 0 };
            self.budget -= session.connection.issue(port, &mut turn, budget).min(self.budget);
        }
        self.ring.send(session.port);
        let port = self.ring.port(session.port);
        if !port.rx.is_busy() {
            match session.connection.want(port) {
                Want::Receive(bytes) => self.ring.receive(session.port, bytes),
                Want::Discard(bytes) => self.ring.discard(session.port, bytes),
            }
        }
        if recording {
            self.arm(index, now);
        }
        Ok(())
    }

    /// Opens a session again whose replies are not of the learned shape; from here on it parses.
    fn fall_back(&mut self, index: usize, stats: &mut Both, deadline: Instant) -> Result<()> {
        let old = &self.sessions[index];
        stats[old.group].fallbacks += 1;
        self.owners[old.port] = usize::MAX;
        self.ring.close(old.port);
        let session = self.log_in(old.index, false)?;
        self.own(session.port, index);
        self.sessions[index] = session;
        self.step(index, stats, None, deadline)
    }

    fn stalled(&mut self, stats: &mut Both, deadline: Instant) -> Result<()> {
        let waits = |s: &Loaded| s.connection.in_flight() > 0;
        let counting = self.sessions.iter().position(|s| waits(s) && s.connection.is_counting());
        match counting {
            Some(index) => self.fall_back(index, stats, deadline),
            None => {
                let waiting = self.sessions.iter().find(|s| waits(s));
                let url = &self.plan.urls[waiting.map_or(0, |s| s.url)];
                Err(failure!("{url} answered nothing for {} s: look at the target's log", PATIENCE.as_secs()))
            }
        }
    }
}

/// A random-format ISID that differs for every session and for every process on this machine.
fn isid(index: usize) -> [u8; 6] {
    let process = std::process::id().to_be_bytes();
    let index = (index as u16).to_be_bytes();
    [0x80, process[1], process[2], process[3], index[0], index[1]]
}
