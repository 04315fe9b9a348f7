//! What a shard tells of itself to whoever asks by message.
//!
//! Knows the shard's own state. Does not know who asks, or what is made of it.

use std::net::SocketAddr;

use crate::cache::CacheCounts;
use crate::clock::{Duration, Instant};
use crate::io::{Io, IoCounts};

use super::boot::{BootPhase, BootReport};
use super::metrics::{Counts, Latencies, SessionCounts};
use super::reset::ResetReport;
use super::{Shard, ShardId, ShardLoad};

/// Of which targets a report tells one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetsAsked {
    None,
    /// Those that had a session since the server began.
    Seen,
    All,
}

/// What is asked beside sums. A list of many targets costs the shard time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReportAsked {
    pub targets: TargetsAsked,
    pub sessions: bool,
}

/// The answer to `Message::Report`.
#[derive(Clone, Debug)]
pub struct ShardReport {
    pub shard: ShardId,
    /// The shard's time: what it says when is relative to it.
    pub now: Instant,
    pub load: ShardLoad,
    /// Tasks that wait for buffers, and sessions whose next command does.
    pub tasks_parked: usize,
    pub sessions_stalled: usize,
    pub counts: Counts,
    pub reads: Latencies,
    pub writes: Latencies,
    pub golden: CacheCounts,
    pub io: IoCounts,
    /// How many targets are in each phase, in the order of [`PHASES`].
    pub phases: [u64; PHASES.len()],
    pub targets: Vec<TargetReport>,
    pub sessions: Vec<SessionReport>,
}

pub const PHASES: [BootPhase; 5] =
    [BootPhase::Offline, BootPhase::Loader, BootPhase::Gap, BootPhase::System, BootPhase::Settled];

#[derive(Clone, Debug)]
pub struct TargetReport {
    pub name: String,
    pub sessions: usize,
    pub boot: BootReport,
    pub reset: ResetReport,
}

#[derive(Clone, Debug)]
pub struct SessionReport {
    /// `None`: a discovery session.
    pub target: Option<String>,
    pub initiator: String,
    pub peer: SocketAddr,
    pub connections: usize,
    pub age: Duration,
    /// Commands in progress.
    pub commands: u32,
    pub counts: SessionCounts,
}

impl<I: Io> Shard<I> {
    pub(super) fn report(&self, asked: ReportAsked) -> ShardReport {
        let core = &self.core;
        let mut report = ShardReport {
            shard: self.config.id,
            now: core.now,
            load: self.load(),
            tasks_parked: core.parked.len(),
            sessions_stalled: self.stalled.len(),
            counts: core.metrics.counts,
            reads: core.metrics.reads.clone(),
            writes: core.metrics.writes.clone(),
            golden: core.cache.counts,
            io: self.io.counts(),
            phases: [0; PHASES.len()],
            targets: Vec::new(),
            sessions: Vec::new(),
        };
        // A place whose target was removed has no name.
        for target in core.targets.iter().filter(|target| !target.name.is_empty()) {
            let boot = target.boot.report(core.now);
            let place = PHASES.iter().position(|phase| *phase == boot.phase);
            report.phases[place.unwrap_or_default()] += 1;
            let wanted = match asked.targets {
                TargetsAsked::None => false,
                TargetsAsked::Seen => boot.since.is_some(),
                TargetsAsked::All => true,
            };
            if wanted {
                let (name, sessions) = (target.name.clone(), target.sessions.len());
                report.targets.push(TargetReport { name, sessions, boot, reset: target.reset });
            }
        }
        if asked.sessions {
            report.sessions = self.session_reports();
        }
        report
    }

    fn session_reports(&self) -> Vec<SessionReport> {
        let keys = (0..self.sessions.slot_count()).filter_map(|index| self.sessions.key_at(index));
        let sessions = keys.filter_map(|key| self.sessions.get(key));
        let reports = sessions.map(|session| SessionReport {
            target: session.target.map(|index| self.core.targets[index as usize].name.clone()),
            initiator: session.initiator.clone(),
            peer: session.peer,
            connections: session.connections().count(),
            age: self.core.now.since(session.visit.since),
            commands: session.running(),
            counts: session.counts,
        });
        reports.collect()
    }
}
