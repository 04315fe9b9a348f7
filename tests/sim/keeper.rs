//! Where simulated units remember things: a file a unit, written one after another, some time after it was asked for. That
//! an atomic write is over is stable later still.
//!
//! Knows what is stable when a server dies. Does not know what is remembered.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use goldrush::scsi::KeptUnit;
use goldrush::shard::{KeepRequest, Keeper, Message, Peer, Sent};

use crate::sim_io::SimIo;
use crate::world::{Event, MICRO, MILLI, World};

/// What shards have asked for and nobody has written yet.
#[derive(Clone, Debug, Default)]
struct Queue(Arc<Mutex<Vec<KeepRequest>>>);

impl Keeper for Queue {
    fn keep(&mut self, request: KeepRequest) -> bool {
        self.0.lock().is_ok_and(|mut queue| {
            queue.push(request);
            true
        })
    }
}

/// A message to a shard.
#[derive(Clone, Copy, Debug)]
struct Told {
    shard: usize,
    ticket: u64,
    settled: bool,
}

/// An atomic write that is written down no more, but not stably so.
#[derive(Debug)]
struct Cleared {
    target: String,
    told: Told,
}

/// The thread that writes them.
#[derive(Debug, Default)]
pub(crate) struct SimKeeper {
    asked: Queue,
    waiting: VecDeque<KeepRequest>,
    cleared: VecDeque<Cleared>,
    /// Messages their shards have no room for yet.
    untold: VecDeque<Told>,
    /// An event is on its way.
    busy: bool,
}

impl SimKeeper {
    pub(crate) fn end(&self) -> Box<dyn Keeper> {
        Box::new(self.asked.clone())
    }

    /// Takes what was asked for since.
    pub(crate) fn hear(&mut self, world: &mut World) {
        if let Ok(mut asked) = self.asked.0.lock() {
            self.waiting.extend(asked.drain(..));
        }
        self.go_on(world);
    }

    fn go_on(&mut self, world: &mut World) {
        let idle = self.waiting.is_empty() && self.cleared.is_empty() && self.untold.is_empty();
        if !self.busy && !idle {
            self.busy = true;
            let delay = if world.rng.chance(100) { 20 * MILLI } else { world.rng.between(MICRO, MILLI) };
            world.at(delay, Event::Keep);
        }
    }

    /// The first one is written; when there is none, what was cleared becomes stable.
    pub(crate) fn write(&mut self, world: &mut World, peers: &[Peer<SimIo>]) {
        self.busy = false;
        if self.untold.is_empty() {
            if let Some(request) = self.waiting.pop_front() {
                self.store(world, request);
            } else if let Some(Cleared { target, told }) = self.cleared.pop_front() {
                forget(world, &target);
                self.untold.push_back(Told { settled: true, ..told });
            }
        }
        while let Some(Told { shard, ticket, settled }) = self.untold.front().copied() {
            if !matches!(peers[shard].send(Message::Kept { ticket, stable: true, settled }), Sent::Yes) {
                break;
            }
            self.untold.pop_front();
        }
        self.go_on(world);
    }

    fn store(&mut self, world: &mut World, request: KeepRequest) {
        let KeepRequest { shard, ticket, target, kept, .. } = request;
        let mut told = Told { shard: usize::from(shard.0), ticket, settled: true };
        let pending = self.cleared.iter().position(|cleared| cleared.target == target);
        let before = world.kept.get(&target).and_then(|kept| kept.atomic.clone());
        if before.is_some() && kept.atomic.is_none() {
            // The rest is stable at once.
            world.kept.insert(target.clone(), KeptUnit { atomic: before, ..kept });
            if pending.is_none() {
                told.settled = false;
                self.cleared.push_back(Cleared { target, told });
            }
        } else {
            if let Some(cleared) = pending.and_then(|at| self.cleared.remove(at)) {
                self.untold.push_back(Told { settled: true, ..cleared.told });
            }
            world.kept.insert(target, kept);
        }
        self.untold.push_back(told);
    }

    /// The server is killed: what was being written may be there. What was cleared stays so, unless the power fails too.
    pub(crate) fn killed(&mut self, world: &mut World, power_cut: bool) {
        for Cleared { target, .. } in self.cleared.drain(..) {
            if !power_cut || world.rng.chance(500) {
                forget(world, &target);
            }
        }
        if let Some(request) = self.waiting.front()
            && world.rng.chance(500)
        {
            world.kept.insert(request.target.clone(), request.kept.clone());
        }
    }
}

fn forget(world: &mut World, target: &str) {
    if let Some(kept) = world.kept.get_mut(target) {
        kept.atomic = None;
    }
}
