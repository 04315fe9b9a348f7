//! What the initiators of a run share: the targets, the models of their disks, and who may blame whom.
//!
//! Knows plans and excuses. Does not know connections.

use goldrush::shard::RateLimits;

use crate::model::Model;
use crate::reserve::Reservations;

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
    /// The virtual time, as whoever acts sees it.
    pub(crate) now: u64,
    /// What is known of the reservations of each target's unit.
    pub(crate) reservations: Vec<Reservations>,
    /// Somebody reserves.
    pub(crate) reserving: bool,
    /// Commands of a target sent before this moment may find its unit not ready: it has something to do first.
    pub(crate) unready_until: Vec<u64>,
    /// Commands of a target sent before this moment may be refused, or never answered: it, or its unit, is being removed.
    pub(crate) away_until: Vec<u64>,
    /// Sessions likewise may end, and logins fail: the target itself is.
    pub(crate) gone_until: Vec<u64>,
    /// The server is stopping.
    pub(crate) stopping: bool,
    /// Commands may fail: the disks do.
    pub(crate) disk_faults: bool,
    /// Thousandths a step.
    pub(crate) management: u32,
    pub(crate) misbehaviour: u32,
    pub(crate) counts: Counts,
}

impl Board {
    /// Nobody does wrong, and everything is there.
    pub(crate) fn new(targets: Vec<TargetPlan>, models: Vec<Model>) -> Self {
        let count = targets.len();
        Self {
            targets,
            models,
            reset_until: vec![0; count],
            cold_until: vec![0; count],
            now: 0,
            reservations: vec![Reservations::default(); count],
            reserving: false,
            unready_until: vec![0; count],
            away_until: vec![0; count],
            gone_until: vec![0; count],
            stopping: false,
            disk_faults: false,
            management: 0,
            misbehaviour: 0,
            counts: Counts::default(),
        }
    }

    /// A target's unit is being removed; `whole`: the target as well.
    pub(crate) fn leaves(&mut self, target: usize, whole: bool) {
        self.away_until[target] = u64::MAX;
        if whole {
            self.gone_until[target] = u64::MAX;
        }
        self.reservations[target].lose();
    }

    /// It is there again, and reserved by nobody.
    pub(crate) fn is_back(&mut self, target: usize) {
        self.away_until[target] = self.now;
        self.gone_until[target] = self.gone_until[target].min(self.now);
    }

    /// The server is started anew: everything is there.
    pub(crate) fn restarts(&mut self) {
        self.stopping = false;
        self.away_until.fill(0);
        self.gone_until.fill(0);
        // They do not outlive the server: nobody asks for that (APTPL).
        self.reservations.fill(Reservations::default());
    }
}

/// What a run has done, for the summary: a simulator that does nothing finds nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) logins: u64,
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) flushes: u64,
    pub(crate) others: u64,
    /// Those that were answered GOOD.
    pub(crate) atomic_writes: u64,
    pub(crate) or_writes: u64,
    pub(crate) copies: u64,
    /// Tokens that were made, and used.
    pub(crate) tokens: u64,
    pub(crate) token_writes: u64,
    pub(crate) reservations: u64,
    pub(crate) conflicts: u64,
    /// Targets and units that were removed.
    pub(crate) reloads: u64,
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
        self.atomic_writes += other.atomic_writes;
        self.or_writes += other.or_writes;
        self.copies += other.copies;
        self.tokens += other.tokens;
        self.token_writes += other.token_writes;
        self.reservations += other.reservations;
        self.conflicts += other.conflicts;
        self.reloads += other.reloads;
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
