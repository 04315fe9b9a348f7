//! Who knows the answers: asks the shards by message and puts together what they say.
//!
//! Knows requests and shards. Does not know clients (`service`).

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crossbeam::channel::{Sender, bounded};
use serde::Serialize;
use serde_json::Value;

use super::{About, Answer, Request, ShardStatus, Status, program};
use crate::shard::{Message, Peer, Sent, ShardReport};

/// A shard that has not answered by then is stuck, or gone.
const SHARD_TIME: Duration = Duration::from_secs(2);

/// What a server knows of itself once it serves.
#[derive(Debug)]
pub(in crate::control) struct Desk {
    pub(in crate::control) shards: Vec<Peer<OwnedFd>>,
    pub(in crate::control) listening: Vec<SocketAddr>,
    pub(in crate::control) cores: Vec<usize>,
    pub(in crate::control) targets: usize,
    pub(in crate::control) since: Instant,
}

impl Desk {
    pub(super) fn answer(&mut self, request: Request) -> Answer {
        match request {
            Request::About => value(&self.about()),
            Request::Status => self.status().and_then(|status| value(&status)),
        }
    }

    fn about(&self) -> About {
        About {
            program: program(),
            pid: std::process::id(),
            uptime_s: self.since.elapsed().as_secs(),
            listening: self.listening.clone(),
            cores: self.cores.clone(),
            targets: self.targets,
        }
    }

    fn status(&self) -> Result<Status, String> {
        let mut reports: Vec<ShardReport> = self.ask_all(|reply| Message::Report { reply })?;
        reports.sort_by_key(|report| report.shard);
        let shards = reports.iter().map(shard_status).collect();
        Ok(Status { about: self.about(), shards })
    }

    /// Asks every shard and waits for all of them; the error is a sentence. The answers come in any order.
    fn ask_all<T>(&self, message: impl Fn(Sender<T>) -> Message<OwnedFd>) -> Result<Vec<T>, String> {
        let until = Instant::now() + SHARD_TIME;
        let (reply, replies) = bounded(self.shards.len());
        for shard in &self.shards {
            let mut message = message(reply.clone());
            while let Sent::Full(back) = shard.send(message) {
                if Instant::now() >= until {
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

fn value(answer: &impl Serialize) -> Result<Value, String> {
    serde_json::to_value(answer).map_err(|error| format!("the answer cannot be written: {error}"))
}

fn shard_status(report: &ShardReport) -> ShardStatus {
    let load = report.load;
    ShardStatus {
        connections: load.connections,
        sessions: load.sessions,
        tasks: load.tasks,
        chunks_free: load.chunks_free,
        smalls_free: load.smalls_free,
    }
}
