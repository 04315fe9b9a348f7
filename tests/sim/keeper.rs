//! Where simulated units remember things: a file a unit, written one after another, some time after it was asked for.
//!
//! Knows what is stable when a server dies. Does not know what is remembered.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

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

/// The thread that writes them.
#[derive(Debug, Default)]
pub(crate) struct SimKeeper {
    asked: Queue,
    waiting: VecDeque<KeepRequest>,
    /// Written, and its shard has no room for the message.
    written: bool,
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
        if !self.busy && !self.waiting.is_empty() {
            self.busy = true;
            let delay = if world.rng.chance(100) { 20 * MILLI } else { world.rng.between(MICRO, MILLI) };
            world.at(delay, Event::Keep);
        }
    }

    /// The first one is stable.
    pub(crate) fn write(&mut self, world: &mut World, peers: &[Peer<SimIo>]) {
        self.busy = false;
        let Some(request) = self.waiting.front() else { return };
        if !self.written {
            world.kept.insert(request.target.clone(), request.kept.clone());
            self.written = true;
        }
        let message = Message::Kept { ticket: request.ticket, stable: true };
        if matches!(peers[usize::from(request.shard.0)].send(message), Sent::Yes) {
            self.waiting.pop_front();
            self.written = false;
        }
        self.go_on(world);
    }

    /// The server is killed: what was being written may be there.
    pub(crate) fn killed(&mut self, world: &mut World) {
        if let Some(request) = self.waiting.front()
            && world.rng.chance(500)
        {
            world.kept.insert(request.target.clone(), request.kept.clone());
        }
    }
}
