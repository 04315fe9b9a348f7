//! Who knows the answers: asks the shards by message and puts together what they say.
//!
//! Knows requests and shards. Does not know clients (`service`).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use crossbeam::channel::bounded;
use serde::Serialize;
use serde_json::Value;

use super::super::isns::{self, Line};
use super::super::reload::Summary;
use super::status::{
    About, Counts, Gauges, Latency, SessionStatus, ShardStatus, Status, StatusAsked, TargetList, TargetStatus,
};
use super::{Answer, Emptied, Reloaded, Request, Resized, program};
use crate::cache::Golden;
use crate::clock::Instant;
use crate::shard::{
    BootPhase, Message, PHASES, Peer, ReportAsked, ResetAnswer, Sent, SessionReport, ShardReport,
    TargetReport, TargetsAsked,
};
use crate::uring::UringIo;

/// A shard that has not answered by then is stuck, or gone.
const SHARD_TIME: Duration = Duration::from_secs(2);
/// Commands that have begun, and a disk that writes a table, take longer.
const RESET_TIME: Duration = Duration::from_secs(30);

/// What a server knows of itself once it serves.
#[derive(Debug)]
pub(in crate::control) struct Desk {
    shards: Vec<Peer<UringIo>>,
    cores: Vec<usize>,
    golden: Arc<Golden>,
    golden_cache_bytes: u64,
    since: std::time::Instant,
    /// What changes with the configuration; the latest word counts.
    facts: Receiver<Facts>,
    known: Facts,
    orders: Sender<Order>,
}

/// What a reload may change of what is told.
#[derive(Clone, Debug, Default)]
pub(in crate::control) struct Facts {
    pub(in crate::control) listening: Vec<SocketAddr>,
    pub(in crate::control) targets: usize,
    /// Ways to the threads that register targets.
    pub(in crate::control) isns: Vec<Line>,
}

/// What the thread that looks after the server is to do.
#[derive(Debug)]
pub(in crate::control) enum Order {
    /// Read the configuration again; what is wrong with it, sentence by sentence.
    Reload { reply: Sender<Result<Summary, Vec<String>>> },
    /// Make a served disk larger; the error is a sentence.
    Resize { target: String, lun: u16, size: u64, reply: Sender<Result<Resized, String>> },
}

impl Desk {
    pub(in crate::control) fn new(
        shards: Vec<Peer<UringIo>>,
        cores: Vec<usize>,
        (golden, golden_cache_bytes): (Arc<Golden>, u64),
        facts: Receiver<Facts>,
        orders: Sender<Order>,
    ) -> Self {
        let (since, known) = (std::time::Instant::now(), Facts::default());
        Self { shards, cores, golden, golden_cache_bytes, since, facts, known, orders }
    }

    pub(super) fn answer(&mut self, request: Request) -> Answer {
        if let Some(latest) = self.facts.try_iter().last() {
            self.known = latest;
        }
        match request {
            Request::Reload => self.reload(),
            Request::Resize { target, lun, size } => self.resize(target, lun, size),
            Request::Reset { target, force } => self.reset(&target, force),
            Request::About => value(&self.about()),
            Request::Status(asked) => self.status(asked).and_then(|status| value(&status)),
        }
    }

    fn reload(&self) -> Answer {
        let gone = || "the server is ending".to_owned();
        let (reply, is_done) = std::sync::mpsc::channel();
        self.orders.send(Order::Reload { reply }).map_err(|_| gone())?;
        match is_done.recv().map_err(|_| gone())? {
            Ok(summary) => value(&Reloaded { summary: summary.to_string() }),
            Err(lines) => Err(lines.join("\n")),
        }
    }

    fn resize(&self, target: String, lun: u16, size: u64) -> Answer {
        let gone = || "the server is ending".to_owned();
        let (reply, is_done) = std::sync::mpsc::channel();
        self.orders.send(Order::Resize { target, lun, size, reply }).map_err(|_| gone())?;
        value(&is_done.recv().map_err(|_| gone())??)
    }

    fn reset(&self, target: &str, force: bool) -> Answer {
        let ask = |reply| Message::Reset { target: target.to_owned(), force, reply };
        let answers = self.ask_all_within(RESET_TIME, ask)?;
        match answers.into_iter().find(|answer| *answer != ResetAnswer::NotHere) {
            None => Err(format!("there is no target {target}: goldrush status --targets shows all")),
            Some(ResetAnswer::Done(luns)) => value(&Emptied { luns }),
            Some(answer) => Err(format!("{target}: {}", refusal(answer))),
        }
    }

    fn about(&self) -> About {
        let golden = self.golden.counts();
        About {
            program: program(),
            pid: std::process::id(),
            uptime_ms: self.since.elapsed().as_millis() as u64,
            listening: self.known.listening.clone(),
            cores: self.cores.clone(),
            targets: self.known.targets,
            golden_cache_bytes: self.golden_cache_bytes,
            golden_asked_bytes: golden.asked_bytes,
            golden_ahead_used_bytes: golden.ahead_used_bytes,
        }
    }

    fn status(&self, asked: StatusAsked) -> Result<Status, String> {
        let asked = ReportAsked {
            targets: match asked.targets {
                TargetList::None => TargetsAsked::None,
                TargetList::Seen => TargetsAsked::Seen,
                TargetList::All => TargetsAsked::All,
            },
            sessions: asked.sessions,
        };
        let mut reports: Vec<ShardReport> = self.ask_all(|reply| Message::Report { asked, reply })?;
        reports.sort_by_key(|report| report.shard);
        let mut status = Status {
            about: self.about(),
            phases: PHASES.iter().map(|phase| (phase_name(*phase).to_owned(), 0)).collect(),
            shards: reports.iter().map(shard_status).collect(),
            isns: isns::ask(&self.known.isns),
            targets: Vec::new(),
            sessions: Vec::new(),
        };
        for report in reports {
            for (phase, count) in PHASES.iter().zip(report.phases) {
                *status.phases.entry(phase_name(*phase).to_owned()).or_default() += count;
            }
            let now = report.now;
            status.targets.extend(report.targets.into_iter().map(|target| target_status(target, now)));
            status.sessions.extend(report.sessions.into_iter().map(session_status));
        }
        status.targets.sort_by(|one, other| one.name.cmp(&other.name));
        status
            .sessions
            .sort_by(|one, other| (&one.target, &one.initiator).cmp(&(&other.target, &other.initiator)));
        Ok(status)
    }

    /// Asks every shard and waits for all of them; the error is a sentence. The answers come in any order.
    fn ask_all<T>(
        &self,
        message: impl Fn(crossbeam::channel::Sender<T>) -> Message<UringIo>,
    ) -> Result<Vec<T>, String> {
        self.ask_all_within(SHARD_TIME, message)
    }

    fn ask_all_within<T>(
        &self,
        time: Duration,
        message: impl Fn(crossbeam::channel::Sender<T>) -> Message<UringIo>,
    ) -> Result<Vec<T>, String> {
        let until = std::time::Instant::now() + time;
        let (reply, replies) = bounded(self.shards.len());
        for shard in &self.shards {
            let mut message = message(reply.clone());
            while let Sent::Full(back) = shard.send(message) {
                if std::time::Instant::now() >= until {
                    return Err("a core takes no messages: see the server's log".to_owned());
                }
                std::thread::sleep(Duration::from_millis(1));
                message = back;
            }
        }
        drop(reply);
        let mut answers = Vec::new();
        while answers.len() < self.shards.len() {
            let answer = replies.recv_deadline(until);
            answers
                .push(answer.map_err(|_| "a core does not answer: it is stuck, or it has ended".to_owned())?);
        }
        Ok(answers)
    }
}

/// Why nothing was emptied.
fn refusal(answer: ResetAnswer) -> String {
    match answer {
        ResetAnswer::InUse(0) => "its images are being emptied already".to_owned(),
        ResetAnswer::InUse(sessions) => format!(
            "{sessions} logged in, and a running system would lose its disk: shut it down first, or throw it out with --force"
        ),
        ResetAnswer::Persistent => {
            "no LUN of it has durability until-reset, and others are never emptied".to_owned()
        }
        ResetAnswer::Failed => {
            "an image could not be emptied and takes no writes: see the server's log".to_owned()
        }
        ResetAnswer::Ending | ResetAnswer::NotHere | ResetAnswer::Done(_) => {
            "it is being taken away".to_owned()
        }
    }
}

fn value(answer: &impl Serialize) -> Result<Value, String> {
    serde_json::to_value(answer).map_err(|error| format!("the answer cannot be written: {error}"))
}

fn shard_status(report: &ShardReport) -> ShardStatus {
    let (load, counts, golden) = (report.load, report.counts, report.golden);
    ShardStatus {
        gauges: Gauges {
            connections: load.connections as u64,
            sessions: load.sessions as u64,
            tasks: load.tasks as u64,
            tasks_parked: report.tasks_parked as u64,
            sessions_stalled: report.sessions_stalled as u64,
            operations: report.io.operations as u64,
            chunks_free: u64::from(load.chunks_free),
            smalls_free: u64::from(load.smalls_free),
        },
        counts: Counts {
            connections_accepted: counts.connections_accepted,
            logins_accepted: counts.logins_accepted,
            logins_refused: counts.logins_refused,
            reads: counts.reads,
            writes: counts.writes,
            flushes: counts.flushes,
            unmaps: counts.unmaps,
            others: counts.others,
            failed: counts.failed,
            read_bytes: counts.read_bytes,
            written_bytes: counts.written_bytes,
            received_bytes: counts.received_bytes,
            sent_bytes: counts.sent_bytes,
            sends: counts.sends,
            system_calls: report.io.system_calls,
            file_reads: counts.file_reads,
            file_writes: counts.file_writes,
            golden_reads: golden.reads,
            golden_reads_failed: golden.failed_reads,
            golden_hits: golden.hits,
            golden_misses: golden.misses,
            golden_joins: golden.joins,
            golden_around: golden.around,
            golden_bytes: golden.filled_bytes,
            golden_ahead_bytes: golden.ahead_bytes,
            golden_evictions: golden.evictions,
        },
        read_latency: Latency::of(report.reads.sum_us, &report.reads.histogram),
        write_latency: Latency::of(report.writes.sum_us, &report.writes.histogram),
    }
}

fn phase_name(phase: BootPhase) -> &'static str {
    match phase {
        BootPhase::Offline => "offline",
        BootPhase::Loader => "loader",
        BootPhase::Gap => "gap",
        BootPhase::System => "system",
        BootPhase::Settled => "settled",
    }
}

fn target_status(target: TargetReport, now: Instant) -> TargetStatus {
    let times = target.boot.times;
    let ms = |from: Option<Instant>, to: Option<Instant>| Some(to?.since(from?).as_millis() as u64);
    TargetStatus {
        name: target.name,
        sessions: target.sessions,
        phase: phase_name(target.boot.phase).to_owned(),
        phase_ms: ms(target.boot.since, Some(now)),
        loader_ms: ms(times.first_login, times.loader_ended),
        gap_ms: ms(times.loader_ended, times.system_login),
        system_ms: ms(times.system_login, times.settled),
        boot_ms: ms(times.first_login, times.settled),
        first_login_ms: ms(times.first_login, Some(now)),
        resets: target.reset.count,
        reset_ms: ms(target.reset.last, Some(now)),
    }
}

fn session_status(session: SessionReport) -> SessionStatus {
    SessionStatus {
        target: session.target,
        initiator: session.initiator,
        peer: session.peer,
        connections: session.connections,
        age_ms: session.age.as_millis() as u64,
        tasks: session.commands,
        commands: session.counts.commands,
        read_bytes: session.counts.read_bytes,
        written_bytes: session.counts.written_bytes,
    }
}
