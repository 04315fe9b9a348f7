//! The simulated world: virtual time, the network, the disks, and what each shard has asked of them.
//!
//! Knows when what happens. Does not know iSCSI, SCSI or images.
//!
//! Nothing happens but through an event with a time; events of one time are ordered by the seed.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use goldrush::io::{Completion, Op, OpToken, Outcome, Waker};
use goldrush::plan::FileSlot;
use goldrush::scsi::KeptUnit;

use crate::disk::SimFile;
use crate::random::Rng;

pub(crate) const MICRO: u64 = 1_000;
pub(crate) const MILLI: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1_000_000_000;

pub(crate) type Shared = Rc<RefCell<World>>;

/// How often what goes wrong, in thousandths; set by the seed of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) short_send: u32,
    pub(crate) short_file_op: u32,
    pub(crate) starved_recv: u32,
    pub(crate) recv_rearm: u32,
    pub(crate) slow_op: u32,
    pub(crate) disk_error: u32,
    pub(crate) disk_full: u32,
    pub(crate) sync_error: u32,
    pub(crate) no_punch: bool,
    pub(crate) sabotage: Sabotage,
}

/// A wrong that the checkers must find out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Sabotage {
    #[default]
    None,
    /// The disk says that it has written, and has not.
    LostWrite,
    /// The disk says that it has synced, and has not.
    LyingSync,
    /// An answer arrives twice.
    RepeatedAnswer,
    /// A byte changes on its way to the initiator.
    ChangedByte,
    /// A disk operation never completes.
    SwallowedCompletion,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    /// The operation takes effect.
    Apply {
        shard: usize,
        op: u64,
    },
    /// Its completion is there.
    Complete {
        shard: usize,
        op: u64,
    },
    /// Bytes have arrived for a receive.
    Deliver {
        shard: usize,
        op: u64,
    },
    Connect {
        stream: usize,
    },
    /// TCP finds out that nobody is at the other end.
    Cut {
        stream: usize,
    },
    /// What a unit is to remember is stable.
    Keep,
    /// Somebody looks at what is to be reloaded.
    Reload,
    /// Something has changed for an initiator.
    Initiator {
        index: usize,
    },
    /// An initiator looks by itself.
    Tick {
        index: usize,
    },
}

/// An operation that has not completed.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) token: OpToken,
    /// The socket it keeps busy.
    pub(crate) socket: Option<u32>,
    /// Until it takes effect.
    pub(crate) op: Option<Op>,
    /// Once it has taken effect.
    pub(crate) outcome: Option<Outcome>,
    /// The file it works on.
    file: Option<FileSlot>,
    /// What a sync must make durable; the connection that is shut down.
    mark: u64,
    /// A receive: its delivery is on its way. A send: it waits for room.
    pub(crate) scheduled: bool,
}

impl Pending {
    pub(crate) fn file(&self) -> Option<FileSlot> {
        self.file
    }

    pub(crate) fn mark(&self) -> u64 {
        self.mark
    }

    pub(crate) fn is_recv(&self) -> bool {
        matches!(self.op, Some(Op::Recv { .. }))
    }
}

#[derive(Debug)]
pub(crate) struct SimWaker(AtomicBool);

impl Waker for SimWaker {
    fn wake(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// One shard's side of the world.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) ops: BTreeMap<u64, Pending>,
    next_op: u64,
    pub(crate) inbox: Vec<Completion>,
    /// Streams by socket slot.
    pub(crate) sockets: Vec<Option<usize>>,
    /// Received pieces the shard holds.
    pub(crate) rx: Vec<Option<Vec<u8>>>,
    /// Connections nobody has accepted yet.
    pub(crate) backlog: VecDeque<usize>,
    /// Disks by file slot.
    pub(crate) files: Vec<Option<usize>>,
    pub(crate) waker: Arc<SimWaker>,
}

impl Port {
    pub(crate) fn new(files: Vec<usize>, rx_buffers: usize) -> Self {
        Self {
            ops: BTreeMap::new(),
            next_op: 0,
            inbox: Vec::new(),
            sockets: Vec::new(),
            rx: vec![None; rx_buffers],
            backlog: VecDeque::new(),
            files: files.into_iter().map(Some).collect(),
            waker: Arc::new(SimWaker(AtomicBool::new(false))),
        }
    }

    pub(crate) fn on_socket(&self, slot: u32) -> impl Iterator<Item = (u64, &Pending)> {
        self.ops
            .iter()
            .filter(move |(_, pending)| pending.socket == Some(slot))
            .map(|(id, pending)| (*id, pending))
    }
}

/// One TCP connection.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) to_target: VecDeque<u8>,
    pub(crate) to_initiator: VecDeque<u8>,
    /// The most unread bytes the network and the initiator's socket hold.
    pub(crate) window: usize,
    pub(crate) initiator: usize,
    /// The initiator sends no more.
    pub(crate) initiator_done: bool,
    pub(crate) reset: bool,
    /// The target sends no more.
    pub(crate) target_done: bool,
    /// Where it is now: shard and slot.
    pub(crate) at: Option<(usize, u32)>,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) rng: Rng,
    pub(crate) faults: Faults,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    pub(crate) ports: Vec<Port>,
    pub(crate) streams: Vec<Stream>,
    pub(crate) disks: Vec<SimFile>,
    /// What units remember, by the names of their targets: stable.
    pub(crate) kept: BTreeMap<String, KeptUnit>,
    /// Of the server that runs, or has just ended.
    pub(crate) journals: Vec<crate::journal::Left>,
    pub(crate) violations: Vec<String>,
    pub(crate) events_seen: u64,
}

impl World {
    pub(crate) fn new(rng: Rng, faults: Faults) -> Self {
        Self {
            now: SECOND,
            rng,
            faults,
            events: BinaryHeap::new(),
            ports: Vec::new(),
            streams: Vec::new(),
            disks: Vec::new(),
            kept: BTreeMap::new(),
            journals: Vec::new(),
            violations: Vec::new(),
            events_seen: 0,
        }
    }

    pub(crate) fn violation(&mut self, text: String) {
        if self.violations.len() < 20 {
            self.violations.push(format!("{:.6} s: {text}", self.now as f64 / SECOND as f64));
        }
    }

    pub(crate) fn at(&mut self, delay: u64, event: Event) {
        let order = self.rng.next();
        self.events.push(Reverse((self.now + delay, order, event)));
    }

    /// Mostly microseconds, sometimes much longer.
    pub(crate) fn delay(&mut self) -> u64 {
        if self.rng.chance(self.faults.slow_op) {
            return self.rng.between(MILLI, 800 * MILLI);
        }
        match self.rng.below(10) {
            0..6 => self.rng.below(60 * MICRO),
            6..9 => self.rng.below(600 * MICRO),
            _ => self.rng.below(8 * MILLI),
        }
    }

    pub(crate) fn next_event_at(&self) -> Option<u64> {
        self.events.peek().map(|Reverse((time, ..))| *time)
    }

    pub(crate) fn next_event(&mut self) -> Option<Event> {
        let Reverse((time, _, event)) = self.events.pop()?;
        self.now = self.now.max(time);
        self.events_seen += 1;
        Some(event)
    }

    /// The servers are gone: their operations never complete.
    pub(crate) fn forget_servers(&mut self) {
        let events = std::mem::take(&mut self.events);
        let keep = |event: &Reverse<(u64, u64, Event)>| matches!(event.0.2, Event::Tick { .. });
        self.events = events.into_iter().filter(keep).collect();
        self.ports.clear();
        for stream in &mut self.streams {
            stream.reset = true;
            stream.at = None;
        }
    }

    pub(crate) fn submit(&mut self, shard: usize, token: OpToken, op: Op) {
        let id = self.ports[shard].next_op;
        self.ports[shard].next_op += 1;
        let (mut mark, mut delay, mut busy) = (0, self.delay(), None);
        match &op {
            Op::Sync { file } => mark = self.disks[self.disk(shard, *file)].mark(),
            Op::Recv { socket } | Op::Send { socket, .. } => busy = Some(socket.0),
            Op::Close { socket } => {
                if self.ports[shard].on_socket(socket.0).next().is_some() {
                    self.violation(format!("shard {shard} closes {socket:?} with operations pending on it"));
                }
                busy = Some(socket.0);
            }
            // The kernel takes its hold on the connection now, whatever becomes of the slot.
            Op::Shutdown { socket } => {
                let stream = self.ports[shard].sockets.get(socket.0 as usize).copied().flatten();
                mark = stream.map_or(u64::MAX, |stream| stream as u64);
            }
            Op::Cancel { .. } => delay /= 4,
            _ => {}
        }
        if let Some(slot) = busy
            && !self.ports[shard].sockets.get(slot as usize).is_some_and(Option::is_some)
        {
            self.violation(format!("shard {shard} uses socket {slot}, which it does not have"));
        }
        let (recv, accept) = (matches!(op, Op::Recv { .. }), matches!(op, Op::Accept { .. }));
        let waits = recv || accept || matches!(op, Op::AwaitWake);
        let file = op.file();
        let pending =
            Pending { token, socket: busy, op: Some(op), outcome: None, file, mark, scheduled: false };
        self.ports[shard].ops.insert(id, pending);
        if let Some(slot) = busy.filter(|_| recv) {
            self.stir_recv(shard, slot);
        } else if accept {
            self.stir_accept(shard);
        } else if !waits {
            self.at(delay, Event::Apply { shard, op: id });
        }
    }

    /// Something changed for the receive of a socket.
    pub(crate) fn stir_recv(&mut self, shard: usize, slot: u32) {
        let found = self.ports[shard].on_socket(slot).find(|(_, pending)| pending.is_recv());
        let Some((id, pending)) = found else { return };
        if pending.scheduled || !self.recv_has_news(shard, slot) {
            return;
        }
        if let Some(pending) = self.ports[shard].ops.get_mut(&id) {
            pending.scheduled = true;
        }
        let delay = self.delay();
        self.at(delay, Event::Deliver { shard, op: id });
    }

    fn recv_has_news(&self, shard: usize, slot: u32) -> bool {
        let Some(stream) = self.ports[shard].sockets.get(slot as usize).copied().flatten() else {
            return true;
        };
        let stream = &self.streams[stream];
        !stream.to_target.is_empty() || stream.initiator_done || stream.reset || stream.target_done
    }

    /// A send waits for room: the initiator has read.
    pub(crate) fn stir_send(&mut self, stream: usize) {
        let Some((shard, slot)) = self.streams[stream].at else { return };
        let found = self.ports[shard]
            .on_socket(slot)
            .find(|(_, pending)| matches!(pending.op, Some(Op::Send { .. })) && pending.scheduled);
        if let Some((op, _)) = found {
            let delay = self.delay();
            if let Some(pending) = self.ports[shard].ops.get_mut(&op) {
                pending.scheduled = false;
            }
            self.at(delay, Event::Apply { shard, op });
        }
    }

    pub(crate) fn stir_accept(&mut self, shard: usize) {
        for stream in std::mem::take(&mut self.ports[shard].backlog) {
            self.at(1, Event::Connect { stream });
        }
    }

    pub(crate) fn cut(&mut self, stream: usize) {
        self.streams[stream].reset = true;
        if let Some((shard, slot)) = self.streams[stream].at {
            self.stir_recv(shard, slot);
            self.stir_send(stream);
        }
    }

    pub(crate) fn tell_initiator(&mut self, stream: usize) {
        let (index, delay) = (self.streams[stream].initiator, self.delay());
        self.at(delay, Event::Initiator { index });
    }

    /// A new connection to the shard that listens (0).
    pub(crate) fn connect(&mut self, initiator: usize, window: usize) -> usize {
        self.streams.push(Stream {
            to_target: VecDeque::new(),
            to_initiator: VecDeque::new(),
            window,
            initiator,
            initiator_done: false,
            reset: false,
            target_done: false,
            at: None,
        });
        let stream = self.streams.len() - 1;
        let delay = self.delay();
        self.at(delay, Event::Connect { stream });
        stream
    }

    /// Wakes shards whose wakers were pulled.
    pub(crate) fn check_wakers(&mut self) {
        for shard in 0..self.ports.len() {
            let port = &mut self.ports[shard];
            let waiting = port.ops.iter().find(|(_, pending)| matches!(pending.op, Some(Op::AwaitWake)));
            let Some(id) = waiting.map(|(id, _)| *id) else { continue };
            if port.waker.0.swap(false, Ordering::SeqCst) {
                self.finish(shard, id, Outcome::Woken);
            }
        }
    }

    /// The operation ends with `outcome`.
    pub(crate) fn finish(&mut self, shard: usize, op: u64, outcome: Outcome) {
        if let Some(pending) = self.ports[shard].ops.remove(&op) {
            self.ports[shard].inbox.push(Completion { token: pending.token, outcome });
        }
    }

    pub(crate) fn peer(stream: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, (stream >> 8) as u8, stream as u8], 40_000))
    }
}
