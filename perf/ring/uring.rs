//! One io_uring of one thread that moves the bytes of many TCP connections.
//!
//! Knows submission, completion, short sends and how to let go of memory that the kernel still uses.
//! Does not know PDUs. Contract: a port's buffers live in `ports` until both its operations have completed;
//! `user_data` is the port's index and the kind of operation, and an index is reused only after that.

use std::collections::VecDeque;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};

use super::memory::Memory;
use super::port::{Port, Rx, Tx};
use super::process;
use crate::fail::{Result, failure};

/// Buffer sizes of each connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Bytes that can wait to be parsed.
    pub(crate) receive: usize,
    /// Bytes copied into one send.
    pub(crate) arena: usize,
    /// Bytes in one send altogether.
    pub(crate) send: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    Accepted {
        port: usize,
    },
    Connected {
        port: usize,
    },
    Received {
        port: usize,
    },
    Discarded {
        port: usize,
        bytes: usize,
    },
    Sent {
        port: usize,
    },
    /// The peer is gone or an operation failed with this errno (0: end of stream). Close the port.
    Lost {
        port: usize,
        errno: i32,
    },
}

const RECEIVE: u64 = 0;
const DISCARD: u64 = 1;
const SEND: u64 = 2;
const ACCEPT: u64 = 3;
const CONNECT: u64 = 4;
const KIND_BITS: u32 = 3;
const ENTRIES: u32 = 1024;
/// The kernel takes this many parts in one message (UIO_MAXIOV).
const PARTS_MAX: usize = 1024;

pub(crate) struct Ring {
    ring: IoUring,
    ports: Vec<Option<Port>>,
    free: Vec<usize>,
    payload: Arc<Memory>,
    sizes: Sizes,
    listener: Option<TcpListener>,
    in_flight: usize,
    spin: Duration,
    completed: VecDeque<(u64, i32)>,
}

impl Ring {
    /// Builds a ring that belongs to the calling thread. It polls for `spin` before it sleeps.
    pub(crate) fn new(sizes: Sizes, payload: Arc<Memory>, spin: Duration) -> Result<Ring> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .setup_submit_all()
            .setup_cqsize(4 * ENTRIES)
            .build(ENTRIES)
            .map_err(|e| {
                failure!(
                    "cannot set up an io_uring: {e}; Linux 6.1 is needed, and kernel.io_uring_disabled=0"
                )
            })?;
        Ok(Ring {
            ring,
            ports: Vec::new(),
            free: Vec::new(),
            payload,
            sizes,
            listener: None,
            in_flight: 0,
            spin,
            completed: VecDeque::new(),
        })
    }

    /// Begins a connection; the event says when it is there, or that it is lost.
    pub(crate) fn connect(&mut self, address: SocketAddr) -> Result<usize> {
        let (stream, peer) = process::unconnected(address)?;
        let port = self.add(stream);
        let this = self.port(port);
        let fd = Fd(this.stream.as_raw_fd());
        let (at, len) = this.peer.insert(peer).parts();
        // It stands in for the receive: nothing is received before, and memory is let go of by the same rule.
        this.rx.busy = true;
        self.in_flight += 1;
        self.push(&opcode::Connect::new(fd, at, len).build().user_data(tag(port, CONNECT)));
        Ok(port)
    }

    pub(crate) fn add(&mut self, stream: TcpStream) -> usize {
        let Sizes { receive, arena, send } = self.sizes;
        let port = Port {
            stream,
            rx: Rx::new(receive),
            tx: Tx::new(arena, PARTS_MAX, send, Arc::clone(&self.payload)),
            peer: None,
            closing: false,
        };
        match self.free.pop() {
            Some(index) => {
                self.ports[index] = Some(port);
                index
            }
            None => {
                self.ports.push(Some(port));
                self.ports.len() - 1
            }
        }
    }

    pub(crate) fn port(&mut self, port: usize) -> &mut Port {
        self.ports[port].as_mut().expect("a port that is open")
    }

    pub(crate) fn listen(&mut self, listener: TcpListener) {
        self.listener = Some(listener);
        self.accept();
    }

    fn accept(&mut self) {
        if let Some(listener) = &self.listener {
            let fd = Fd(listener.as_raw_fd());
            let entry = opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut());
            let entry = entry.flags(libc::SOCK_CLOEXEC).build().user_data(ACCEPT);
            self.push(&entry);
        }
    }

    /// Receives up to `wanted` bytes behind the unread ones.
    pub(crate) fn receive(&mut self, port: usize, wanted: usize) {
        let this = self.port(port);
        assert!(!this.rx.is_full(), "a PDU header fits into any receive buffer");
        let fd = Fd(this.stream.as_raw_fd());
        let (at, len) = this.rx.tail(wanted);
        this.rx.busy = true;
        self.in_flight += 1;
        self.push(&opcode::Recv::new(fd, at, len).build().user_data(tag(port, RECEIVE)));
    }

    /// Lets the kernel throw away up to `bytes` of what comes next.
    pub(crate) fn discard(&mut self, port: usize, bytes: usize) {
        let this = self.port(port);
        assert!(this.rx.unread().is_empty(), "unread bytes come before discarded ones");
        let fd = Fd(this.stream.as_raw_fd());
        let (at, _) = this.rx.tail(0);
        this.rx.busy = true;
        self.in_flight += 1;
        // With MSG_TRUNC a TCP socket drops the bytes without writing to the address given.
        let entry =
            opcode::Recv::new(fd, at, u32::try_from(bytes).unwrap_or(u32::MAX)).flags(libc::MSG_TRUNC);
        self.push(&entry.build().user_data(tag(port, DISCARD)));
    }

    /// Sends what was pushed to the port's `tx`, unless a send is under way.
    pub(crate) fn send(&mut self, port: usize) {
        let this = self.port(port);
        if this.tx.busy || this.tx.is_empty() {
            return;
        }
        this.tx.busy = true;
        self.in_flight += 1;
        self.push_send(port);
    }

    fn push_send(&mut self, port: usize) {
        let this = self.port(port);
        let fd = Fd(this.stream.as_raw_fd());
        let flags = (libc::MSG_WAITALL | libc::MSG_NOSIGNAL) as u32;
        let entry = opcode::SendMsg::new(fd, this.tx.message()).flags(flags);
        self.push(&entry.build().user_data(tag(port, SEND)));
    }

    /// Ends a connection; its index is free again once the kernel has let go of its buffers.
    pub(crate) fn close(&mut self, port: usize) {
        if let Some(this) = self.ports[port].as_mut() {
            this.closing = true;
            // The peer may have gone first; either way the operations under way complete now.
            let _ = this.stream.shutdown(Shutdown::Both);
            self.reclaim(port);
        }
    }

    /// Ends a connection as a machine does that was switched off and forgot it: by a reset, without a word before.
    pub(crate) fn vanish(&mut self, port: usize) {
        if let Some(this) = self.ports[port].as_mut() {
            this.closing = true;
            process::reset_at_close(&this.stream);
            // Ends the receive under way without sending anything.
            let _ = this.stream.shutdown(Shutdown::Read);
            self.reclaim(port);
        }
    }

    fn reclaim(&mut self, port: usize) {
        let idle = |p: &Port| p.closing && !p.rx.busy && !p.tx.busy;
        if self.ports[port].as_ref().is_some_and(idle) {
            self.ports[port] = None;
            self.free.push(port);
        }
    }

    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: every entry names a descriptor and buffers owned by a port (or the listener), and both stay
            // in `self` until the completion was seen; `drop` waits for that or leaks them.
            let pushed = unsafe { self.ring.submission().push(entry) };
            if pushed.is_ok() {
                return;
            }
            // A full queue: EBUSY and EINTR leave it full, and the next turn tries again.
            let _ = self.ring.submit();
            self.collect();
        }
    }

    fn collect(&mut self) {
        self.completed.extend(self.ring.completion().map(|c| (c.user_data(), c.result())));
    }

    /// Submits everything and waits for at least one completion, `timeout` at most; `next` then tells them.
    pub(crate) fn wait(&mut self, timeout: Duration) -> Result<()> {
        let started = Instant::now();
        loop {
            let spinning = started.elapsed() < self.spin;
            let have = !self.completed.is_empty();
            let pause =
                if spinning || have { Duration::ZERO } else { timeout.saturating_sub(started.elapsed()) };
            let pause = Timespec::from(pause);
            let outcome = self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&pause));
            if let Err(e) = outcome {
                let expected = [libc::ETIME, libc::EINTR, libc::EBUSY, libc::EAGAIN];
                if !e.raw_os_error().is_some_and(|code| expected.contains(&code)) {
                    return Err(failure!("io_uring_enter failed: {e}; look at the kernel's log"));
                }
            }
            self.collect();
            if !self.completed.is_empty() || !spinning || started.elapsed() >= timeout {
                break;
            }
        }
        Ok(())
    }

    /// The next event. A port's half stays busy until its event was told, so that no event meets a newer operation.
    pub(crate) fn next(&mut self) -> Option<Event> {
        while let Some((user_data, result)) = self.completed.pop_front() {
            let event = self.complete(user_data, result);
            if event.is_some() {
                return event;
            }
        }
        None
    }

    fn complete(&mut self, user_data: u64, result: i32) -> Option<Event> {
        let (port, kind) = ((user_data >> KIND_BITS) as usize, user_data & ((1 << KIND_BITS) - 1));
        if kind == ACCEPT {
            let accepted = (result >= 0).then(|| {
                // SAFETY: the kernel just opened this descriptor for us and nobody else knows it.
                let stream = unsafe { TcpStream::from_raw_fd(result) };
                // Without it small replies are late; a socket that refuses is about to be lost anyway.
                let _ = stream.set_nodelay(true);
                Event::Accepted { port: self.add(stream) }
            });
            self.accept();
            return accepted;
        }
        self.in_flight -= 1;
        let this = self.port(port);
        if kind == SEND {
            if result > 0 && !this.closing && !this.tx.sent(result as usize) {
                self.in_flight += 1;
                self.push_send(port);
                return None;
            }
            this.tx.busy = false;
        } else {
            this.rx.busy = false;
        }
        if this.closing {
            self.reclaim(port);
            return None;
        }
        if kind == CONNECT && result == 0 {
            return Some(Event::Connected { port });
        }
        if result <= 0 {
            return Some(Event::Lost { port, errno: -result });
        }
        match kind {
            RECEIVE => {
                this.rx.filled(result as usize);
                Some(Event::Received { port })
            }
            DISCARD => Some(Event::Discarded { port, bytes: result as usize }),
            _ => Some(Event::Sent { port }),
        }
    }
}

fn tag(port: usize, kind: u64) -> u64 {
    (port as u64) << KIND_BITS | kind
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.listener = None;
        for port in 0..self.ports.len() {
            self.close(port);
        }
        let deadline = Instant::now() + Duration::from_secs(2);
        while self.in_flight > 0 && Instant::now() < deadline {
            if self.wait(Duration::from_millis(100)).is_err() {
                break;
            }
            while self.next().is_some() {}
        }
        if self.in_flight > 0 {
            // The kernel may still write to these buffers: leaking them is the only safe way out.
            std::mem::forget(std::mem::take(&mut self.ports));
            std::mem::forget(Arc::clone(&self.payload));
        }
    }
}
