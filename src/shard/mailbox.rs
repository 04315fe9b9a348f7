//! Messages between threads: a bounded queue and a way to wake its reader.
//!
//! Knows how to hand a connection over. Does not know what either side does with it.

use std::net::SocketAddr;
use std::sync::Arc;

use crossbeam::channel::Sender;
use crossbeam::queue::ArrayQueue;

use crate::cache::AheadBatch;
use crate::io::{Io, Waker};
use crate::iscsi::framer::Framer;
use crate::iscsi::login::LoginMachine;
use crate::iscsi::params::{Cid, Isid, Tsih};

use super::errands::ErrandMail;
use super::report::{ReportAsked, ShardReport};
use super::reset::ResetAnswer;
use super::{Change, MacTable};

/// Whom a login names.
#[derive(Clone, Debug)]
pub struct Named {
    pub(super) initiator: String,
    /// `None`: discovery.
    pub(super) target: Option<String>,
    pub(super) isid: Isid,
    /// Not zero: the session to be joined.
    pub(super) tsih: Tsih,
    pub(super) cid: Cid,
}

/// A connection on its way to the shard that owns its target. Nothing is in flight on it.
#[derive(Debug)]
pub struct Handoff<S> {
    pub(super) socket: S,
    pub(super) peer: SocketAddr,
    pub(super) login: Box<LoginMachine>,
    pub(super) framer: Framer,
    pub(super) named: Named,
    /// Received, not yet processed.
    pub(super) unread: Vec<u8>,
    /// Login responses there was no buffer for.
    pub(super) unsent: Vec<u8>,
}

#[derive(Debug)]
pub enum Message<I: Io> {
    Handoff(Box<Handoff<I::Socket>>),
    /// Pages of this frame of the golden cache were read (or could not be), and the reader waits for some.
    Golden {
        frame: u32,
    },
    /// Golden data that booting nodes will want, for one of the shards to read.
    Ahead(Arc<AheadBatch>),
    /// A [`super::KeepRequest`] has ended; `stable`: it is safe. Not `settled`: it ended an atomic write, which a power failure
    /// may bring back, and the same follows once more when it cannot.
    Kept {
        ticket: u64,
        stable: bool,
        settled: bool,
    },
    /// Tell what you are doing. A reply that finds no room is dropped: nobody waits for it any more.
    Report {
        asked: ReportAsked,
        reply: Sender<ShardReport>,
    },
    /// A copy has to do with units of two shards.
    Errand(Box<ErrandMail>),
    /// Empty the children of this target that are until-reset; `force`: also while somebody is logged in.
    Reset {
        target: String,
        force: bool,
        reply: Sender<ResetAnswer>,
    },
    /// What a reload of the configuration changes here.
    Change(Box<Change<I>>),
    /// Which address has which MAC now.
    Macs(Arc<MacTable>),
    /// Finish what is in flight, flush, close, end.
    Stop,
}

/// What became of a message.
#[derive(Debug)]
pub enum Sent<I: Io> {
    Yes,
    /// The queue is full; try again.
    Full(Message<I>),
}

pub struct Mailbox<I: Io> {
    queue: ArrayQueue<Message<I>>,
}

impl<I: Io> core::fmt::Debug for Mailbox<I> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Mailbox").field("messages", &self.queue.len()).finish()
    }
}

impl<I: Io> Mailbox<I> {
    pub fn new(capacity: usize) -> Self {
        Self { queue: ArrayQueue::new(capacity) }
    }

    pub(super) fn take(&self) -> Option<Message<I>> {
        self.queue.pop()
    }
}

/// Another shard, as seen from here (or from the control thread).
pub struct Peer<I: Io> {
    mailbox: Arc<Mailbox<I>>,
    waker: Arc<dyn Waker>,
}

impl<I: Io> Peer<I> {
    pub fn new(mailbox: Arc<Mailbox<I>>, waker: Arc<dyn Waker>) -> Self {
        Self { mailbox, waker }
    }

    pub fn send(&self, message: Message<I>) -> Sent<I> {
        match self.mailbox.queue.push(message) {
            Ok(()) => {
                self.waker.wake();
                Sent::Yes
            }
            Err(message) => Sent::Full(message),
        }
    }
}

impl<I: Io> Clone for Peer<I> {
    fn clone(&self) -> Self {
        Self { mailbox: Arc::clone(&self.mailbox), waker: Arc::clone(&self.waker) }
    }
}

impl<I: Io> core::fmt::Debug for Peer<I> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Peer").finish_non_exhaustive()
    }
}
