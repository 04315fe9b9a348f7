//! What the initiators of a run share: the targets, the models of their disks, and who may blame whom.
//!
//! Knows plans and excuses. Does not know connections.

use goldrush::shard::RateLimits;

use crate::model::Model;

#[derive(Clone, Debug)]
pub(crate) struct ChapPlan {
    pub(crate) user: String,
    pub(crate) secret: String,
    /// The target proves itself with this secret.
    pub(crate) mutual: Option<(String, String)>,
}

#[derive(Clone, Debug)]
pub(crate) struct TargetPlan {
    pub(crate) name: String,
    pub(crate) owner: usize,
    pub(crate) chap: Option<ChapPlan>,
    pub(crate) allowed: Option<Vec<String>>,
    /// Sectors of one logical block.
    pub(crate) block: u64,
    /// Disks of the chain, leaf first.
    pub(crate) chain: Vec<usize>,
    pub(crate) limits: RateLimits,
}

#[derive(Debug)]
pub(crate) struct Board {
    pub(crate) targets: Vec<TargetPlan>,
    pub(crate) models: Vec<Model>,
    /// Tasks of a target sent before this moment may end without an answer: somebody resets it.
    pub(crate) reset_until: Vec<u64>,
    /// Sessions of a target may end without being asked: somebody resets it cold.
    pub(crate) cold_until: Vec<u64>,
    /// The server is stopping.
    pub(crate) stopping: bool,
    /// Commands may fail: the disks do.
    pub(crate) disk_faults: bool,
    /// Thousandths a step.
    pub(crate) management: u32,
    pub(crate) misbehaviour: u32,
    pub(crate) counts: Counts,
}

/// What a run has done, for the summary: a simulator that does nothing finds nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) logins: u64,
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) flushes: u64,
    pub(crate) others: u64,
    pub(crate) failed: u64,
    pub(crate) management: u64,
    pub(crate) refused_commands: u64,
    pub(crate) lost_connections: u64,
    /// Connections that joined a session, that were lost while others went on, and that came back.
    pub(crate) joined: u64,
    pub(crate) lines_lost: u64,
    pub(crate) lines_reinstated: u64,
    pub(crate) refused_logins: u64,
    pub(crate) restarts: u64,
    pub(crate) events: u64,
    pub(crate) seconds: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Self) {
        self.logins += other.logins;
        self.reads += other.reads;
        self.writes += other.writes;
        self.flushes += other.flushes;
        self.others += other.others;
        self.failed += other.failed;
        self.management += other.management;
        self.refused_commands += other.refused_commands;
        self.lost_connections += other.lost_connections;
        self.joined += other.joined;
        self.lines_lost += other.lines_lost;
        self.lines_reinstated += other.lines_reinstated;
        self.refused_logins += other.refused_logins;
        self.restarts += other.restarts;
        self.events += other.events;
        self.seconds += other.seconds;
    }
}
