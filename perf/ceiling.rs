//! The ceiling: the fastest responder of the same byte shape as an iSCSI target that this machine allows.
//!
//! Knows one ring, one send per connection per turn, and a static memory instead of a disk. Does not know
//! images, caches or durability: what it leaves out is what a real target is measured for.

mod connection;
mod logins;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::fail::{Result, failure};
use crate::pattern;
use crate::ring::{Event, Memory, Ring, Sizes};

pub(crate) use connection::Connection;

pub(crate) const TARGET: &str = "iqn.2026-11.io.goldrush:ceiling";
/// The seed of the stamps in the ceiling's memory: `perf load --verify stamp` expects them.
pub(crate) const SEED: u64 = 0;
/// Connections that may wait to be accepted (net.core.somaxconn bounds it too).
const BACKLOG: i32 = 4096;

#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) listen: SocketAddr,
    pub(crate) memory: usize,
    pub(crate) send_bytes: usize,
    pub(crate) spin: Duration,
}

/// A responder that listens and does not answer yet.
pub(crate) struct Ceiling {
    listener: TcpListener,
    setup: Setup,
    memory: Arc<Memory>,
}

impl Ceiling {
    pub(crate) fn bind(setup: Setup) -> Result<Ceiling> {
        let at = setup.listen;
        let listener = TcpListener::bind(at)
            .map_err(|e| failure!("cannot listen on {at}: {e}; choose a free port, or port 0 for any"))?;
        // A storm connects hundreds of nodes at once; a SYN that finds the queue full is sent again a second later.
        rustix::net::listen(&listener, BACKLOG)
            .map_err(|e| failure!("cannot listen on {at} for {BACKLOG} connections: {e}; try again"))?;
        let memory = Memory::filled(setup.memory, |bytes| pattern::stamp_bytes(SEED, 0, bytes))?;
        Ok(Ceiling { listener, setup, memory: Arc::new(memory) })
    }

    pub(crate) fn address(&self) -> Result<SocketAddr> {
        self.listener
            .local_addr()
            .map_err(|e| failure!("the listening socket has no address: {e}; try again"))
    }

    /// Answers until `stop` is set or `until` has come.
    pub(crate) fn run(self, until: Instant, stop: &AtomicBool) -> Result<()> {
        let address = self.address()?;
        let sizes = Sizes { receive: 256 << 10, arena: 64 << 10, send: self.setup.send_bytes };
        let mut ring = Ring::new(sizes, Arc::clone(&self.memory), self.setup.spin)?;
        ring.listen(self.listener);
        let mut connections: Vec<Option<Connection>> = Vec::new();
        let mut touched: Vec<usize> = Vec::new();
        while !stop.load(Ordering::Relaxed) && Instant::now() < until {
            ring.wait(Duration::from_millis(100))?;
            while let Some(event) = ring.next() {
                match event {
                    Event::Accepted { port } => {
                        if connections.len() <= port {
                            connections.resize_with(port + 1, || None);
                        }
                        connections[port] = Some(Connection::new(self.memory.len() as u64, address));
                        touched.push(port);
                    }
                    Event::Received { port } | Event::Sent { port } => touched.push(port),
                    Event::Discarded { .. } | Event::Connected { .. } => {}
                    Event::Lost { port, .. } => {
                        connections[port] = None;
                        ring.close(port);
                    }
                }
            }
            for port in touched.drain(..) {
                serve(&mut ring, &mut connections[port], port);
            }
        }
        Ok(())
    }
}

/// Answers what has come, sends it, and asks for more once nothing is left to answer.
fn serve(ring: &mut Ring, slot: &mut Option<Connection>, port: usize) {
    let Some(connection) = slot else { return };
    let buffers = ring.port(port);
    if !buffers.rx.is_busy() && connection.advance(buffers).is_err() {
        *slot = None;
        ring.close(port);
        return;
    }
    let (finished, waits) = (connection.is_finished(), connection.waits_for_room());
    ring.send(port);
    let buffers = ring.port(port);
    if finished && !buffers.tx.is_busy() {
        *slot = None;
        ring.close(port);
    } else if !waits && !finished && !buffers.rx.is_busy() {
        ring.receive(port, usize::MAX);
    }
}
