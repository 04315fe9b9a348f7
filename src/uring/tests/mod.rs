//! Tests of a real ring on the running kernel. Without io_uring they say so, loudly, and pass.
//!
//! Knows one ring and its pool under test. Does not know shards.

mod files;
mod lifecycle;
mod sockets;

use core::time::Duration;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use super::{UringConfig, UringError, UringIo, UringWaker, host};
use crate::buf::{Pool, PoolConfig};
use crate::io::{Completion, Io, Op, OpToken, Outcome, SocketSlot};

/// Longer than any test needs; a wait that comes here has failed.
const PATIENCE: Duration = Duration::from_secs(20);

struct Bench {
    io: UringIo,
    waker: UringWaker,
    pool: Pool,
    done: Vec<Completion>,
    next_token: u64,
}

fn small_config() -> UringConfig {
    UringConfig {
        sq_entries: 64,
        cq_entries: 256,
        rx_buffers: 16,
        rx_buffer_bytes: 4096,
        sockets_max: 16,
        files_max: 8,
        file_ops_max: 64,
        ..UringConfig::default()
    }
}

fn small_pool() -> Pool {
    Pool::new(PoolConfig { chunks: 8, smalls: 32, huge_pages: false }).unwrap()
}

/// `None` where the kernel has no ring for us.
fn bench(config: &UringConfig, files: Vec<File>, listeners: Vec<TcpListener>) -> Option<Bench> {
    let pool = small_pool();
    let files = files.into_iter().map(std::sync::Arc::new).collect();
    match UringIo::new(config, &pool, files, listeners) {
        Ok((io, waker)) => Some(Bench { io, waker, pool, done: Vec::new(), next_token: 0 }),
        // Rings and their receive buffers count against a tiny RLIMIT_MEMLOCK.
        Err(error @ (UringError::Probe(_) | UringError::ReceiveBuffers(_))) => {
            println!("SKIPPED, no ring here: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

impl Bench {
    fn submit(&mut self, op: Op) -> OpToken {
        self.next_token += 1;
        let token = OpToken(self.next_token);
        self.io.submit(token, op);
        token
    }

    /// The next completion of `token`; others stay for later.
    fn next(&mut self, token: OpToken) -> Outcome {
        let deadline = self.io.now().after(PATIENCE);
        loop {
            if let Some(at) = self.done.iter().position(|completion| completion.token == token) {
                return self.done.remove(at).outcome;
            }
            assert!(self.io.now() < deadline, "no completion of {token:?} in {PATIENCE:?}: {:?}", self.io);
            self.io.wait(Some(deadline), &mut self.done);
        }
    }

    fn run(&mut self, op: Op) -> Outcome {
        let token = self.submit(op);
        self.next(token)
    }

    /// One turn that does not sleep.
    fn turn(&mut self) {
        let now = self.io.now();
        self.io.wait(Some(now), &mut self.done);
    }

    /// A connected pair: our end in the ring, the other a plain blocking socket.
    fn connect(&mut self) -> (SocketSlot, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        let (ours, _) = listener.accept().unwrap();
        (self.io.adopt_socket(ours.into()).unwrap(), peer)
    }

    /// Receives until `count` bytes came, re-arming when buffers ran out. `recv` is the armed receive.
    fn receive(&mut self, socket: SocketSlot, recv: &mut OpToken, count: usize) -> Vec<u8> {
        let deadline = self.io.now().after(PATIENCE);
        let mut bytes = Vec::new();
        while bytes.len() < count {
            assert!(self.io.now() < deadline, "{} of {count} bytes in {PATIENCE:?}", bytes.len());
            match self.next(*recv) {
                Outcome::Received { buf, more } => {
                    bytes.extend_from_slice(self.io.rx_bytes(&buf));
                    self.io.rx_release(buf);
                    if !more {
                        *recv = self.submit(Op::Recv { socket });
                    }
                }
                Outcome::RecvEnded { error: Some(error) } if error.0 == libc::ENOBUFS => {
                    *recv = self.submit(Op::Recv { socket });
                }
                other => panic!("{other:?} after {} of {count} bytes", bytes.len()),
            }
        }
        bytes
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(31) ^ (at >> 8)) as u8).collect()
}
