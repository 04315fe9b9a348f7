//! One initiator session on a ring: login, commands of any size, replies, logout; many of them share a thread.
//!
//! Knows the protocol's side of a session and never waits. Does not know rings, disks, or what the commands are for:
//! whoever owns it says what to send and is told what ended.

mod replies;
mod requests;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Instant;

use crate::fail::{Result, failure};
use crate::initiator::{Handshake, Negotiated, Numbers, Options};
use crate::ring::Port;
use crate::scsi::{self, Cdb, Sense};
use crate::wire::{BHS, Header, data_length, padded};

/// A payload of at least this is discarded by the kernel instead of being copied, where nobody wants it.
const DISCARD_LEAST: usize = 16 << 10;
/// Data goes out in pieces of this, so that a connection needs no more memory than that.
const PIECE_BYTES: u32 = 64 << 10;
/// What is copied into one send at most: a piece, its header, and a few commands beside it.
pub(crate) const ARENA_BYTES: usize = PIECE_BYTES as usize + (16 << 10);
const SLOT_BITS: u32 = 10;
pub(crate) const DEPTH_MAX: usize = 1 << SLOT_BITS;

/// A command to send. `id` is the owner's name for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Command {
    pub(crate) id: u32,
    pub(crate) cdb: Cdb,
    pub(crate) way: Way,
    pub(crate) len: u32,
}

/// Where the data of a command goes; of no data, `In`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    In,
    Out,
}

/// How a command ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Done {
    pub(crate) id: u32,
    pub(crate) status: u8,
    pub(crate) sense: Sense,
    pub(crate) received: u32,
    pub(crate) started: Instant,
}

#[derive(Debug)]
pub(crate) enum Told {
    LoggedIn,
    /// The target wants the login to be tried again later, on a new connection.
    Later(String),
    Done(Done),
    LoggedOut,
}

/// The bytes of commands, as their owner knows them.
pub(crate) trait Content {
    /// Whether the owner looks at what the read `id` brings.
    fn wants(&self, id: u32) -> bool;
    /// Bytes of the read `id` came, to be found at `offset` in its data.
    fn came(&mut self, id: u32, offset: u32, bytes: &[u8]);
    /// The bytes at `offset` of what the command `id` writes.
    fn compose(&mut self, id: u32, offset: u32, bytes: &mut [u8]);
}

/// What to ask the kernel for next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Want {
    Receive(usize),
    Discard(usize),
}

#[derive(Debug, Clone, Copy)]
struct Task {
    command: Command,
    tag: u32,
    started: Instant,
    received: u32,
}

/// The payload of a Data-In that is still coming.
#[derive(Debug, Clone, Copy)]
struct Incoming {
    slot: usize,
    offset: u32,
    left: usize,
    padding: usize,
    status: Option<u8>,
    wanted: bool,
}

#[derive(Debug, Clone, Copy)]
enum Outgoing {
    Data { slot: usize, tag: u32, transfer_tag: u32, offset: u32, end: u32, data_sn: u32 },
    Pong { lun: u64, transfer_tag: u32 },
    Logout,
}

#[derive(Debug)]
enum State {
    LoggingIn(Box<Handshake>),
    Full,
    LoggedOut,
}

#[derive(Debug)]
pub(crate) struct Session {
    state: State,
    /// Login requests that wait to be sent.
    texts: VecDeque<(Header, Vec<u8>)>,
    peer: String,
    agreed: Negotiated,
    numbers: Numbers,
    lun: u64,
    tasks: Vec<Option<Task>>,
    free: Vec<usize>,
    generation: u32,
    outgoing: VecDeque<Outgoing>,
    incoming: Option<Incoming>,
    /// Bytes of PDUs that came, headers and padding included.
    pub(crate) wire_bytes: u64,
}

impl Session {
    /// A session that logs in once its connection is there, and has at most `depth` commands under way.
    pub(crate) fn new(options: &Options, target: &str, lun: u16, depth: usize) -> Session {
        let (handshake, header, text) = Handshake::begin(options, Some(target));
        let depth = depth.clamp(1, DEPTH_MAX);
        Session {
            state: State::LoggingIn(Box::new(handshake)),
            texts: VecDeque::from([(header, text)]),
            peer: target.to_string(),
            agreed: Negotiated::minimal(),
            numbers: Numbers { cmd_sn: 1, exp_stat_sn: 0, max_cmd_sn: 1 },
            lun: scsi::lun_field(lun),
            tasks: vec![None; depth],
            free: (0..depth).rev().collect(),
            generation: 0,
            outgoing: VecDeque::new(),
            incoming: None,
            wire_bytes: 0,
        }
    }

    #[cfg(test)]
    pub(crate) fn in_flight(&self) -> usize {
        self.tasks.len() - self.free.len()
    }

    pub(crate) fn log_out(&mut self) {
        self.outgoing.push_back(Outgoing::Logout);
    }

    /// What the next receive should be. Asks only when none is under way.
    pub(crate) fn want(&self, port: &Port) -> Want {
        let unread = port.rx.unread();
        match self.incoming {
            Some(incoming) if incoming.wanted => Want::Receive(usize::MAX),
            // Only the payload: what follows it must be read.
            Some(incoming) if incoming.left >= DISCARD_LEAST && unread.is_empty() => {
                Want::Discard(incoming.left)
            }
            Some(incoming) if incoming.left >= DISCARD_LEAST => {
                Want::Receive(incoming.left + incoming.padding)
            }
            _ if self.skips_payloads() => Want::Receive(self.missing(unread)),
            _ => Want::Receive(usize::MAX),
        }
    }

    /// A long payload that nobody wants may come next: then no byte of it should be received by accident.
    fn skips_payloads(&self) -> bool {
        let long = |task: &Task| task.command.way == Way::In && task.command.len as usize >= DISCARD_LEAST;
        self.agreed.max_recv_segment as usize >= DISCARD_LEAST && self.tasks.iter().flatten().any(long)
    }

    /// Bytes up to the next point at which something can be understood.
    fn missing(&self, unread: &[u8]) -> usize {
        match (self.incoming, unread.first_chunk::<BHS>()) {
            (Some(incoming), _) => incoming.left + incoming.padding,
            (None, None) => BHS - unread.len(),
            (None, Some(header)) => BHS + padded(data_length(header)) - unread.len(),
        }
    }

    fn slot(&self, tag: u32) -> Result<usize> {
        let slot = (tag & ((1 << SLOT_BITS) - 1)) as usize;
        let known = self.tasks.get(slot).copied().flatten().is_some_and(|task| task.tag == tag);
        known.then_some(slot).ok_or_else(|| {
            failure!("{} names task {tag:#x}, which is not under way: look at its log", self.peer)
        })
    }
}
