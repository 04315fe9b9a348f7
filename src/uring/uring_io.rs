//! [`UringIo`]: the seam, kept by a ring.
//!
//! Knows turns: what is queued goes out in one call, what completed comes back. Does not know what operations mean.

use core::fmt;
use core::time::Duration;
use std::collections::VecDeque;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use io_uring::opcode;
use io_uring::types::{CancelBuilder, Fd};

use super::complete::configure;
use super::config::{RingReport, UringConfig, UringError};
use super::file_writes::{FileWrites, WrittenBy};
use super::fill::FillLists;
use super::host;
use super::inflight::{self, InFlight};
use super::ring::{Entered, Ring};
use super::rx::RxBuffers;
use super::send::SendLists;
use super::start::{Started, refuse};
use super::tables::{Files, Listeners, OpenFile, Sockets};
use super::waker::{Awaited, UringWaker, WakeReceiver};
use super::writers::Writers;
use super::zero_copy::{Policy, ZeroCopyCounts};
use crate::buf::Pool;
use crate::clock::Instant;
use crate::io::{Completion, Errno, Io, IoCounts, ListenerSlot, Op, OpToken, Outcome, RxBuf, SocketSlot};
use crate::plan::FileSlot;

/// How long a dropped ring waits for what the kernel still owns before it leaks it.
const DRAIN: Duration = Duration::from_secs(10);
/// Listeners of one ring.
const LISTENERS_MAX: u32 = 64;
/// How often a spin looks at the clock.
const SPINS_PER_LOOK: u32 = 32;

/// All but the ring itself.
#[derive(Debug)]
pub(super) struct State {
    pub(super) inflight: InFlight,
    pub(super) sockets: Sockets,
    pub(super) listeners: Listeners,
    pub(super) files: Files,
    pub(super) sends: SendLists,
    pub(super) fills: FillLists,
    pub(super) writers: Writers,
    pub(super) rx: RxBuffers,
    /// `AwaitWake` operations; they end together.
    pub(super) wake_tokens: Vec<OpToken>,
    /// The poll on the waker's eventfd is in the kernel.
    pub(super) wake_polled: bool,
    /// What ended without the kernel.
    pub(super) ended: VecDeque<Completion>,
    /// Connections closed at once because the socket table was full.
    pub(super) refused_connections: u64,
    pub(super) zero_copy: Policy,
}

/// The operating system as a shard sees it: one ring, used by the thread that built it.
///
/// In-flight operations are bounded: one receive and one send per socket, `file_ops_max` others. What exceeds the
/// bounds (or the submission queue) waits in order and reaches the kernel as completions make room.
pub struct UringIo {
    ring: Ring,
    state: State,
    /// Operations that found no room, in order.
    backlog: VecDeque<(OpToken, Op)>,
    wake: WakeReceiver,
    spin: Duration,
    /// Keeps the registered arena.
    _pool: Pool,
}

impl UringIo {
    /// Builds the ring on the calling thread, which must be the one that uses it. `files` and `listeners` get
    /// slots 0, 1, 2 ... in order.
    pub fn new(
        config: &UringConfig,
        pool: &Pool,
        files: Vec<Arc<File>>,
        listeners: Vec<TcpListener>,
    ) -> Result<(Self, UringWaker), UringError> {
        config.check()?;
        let ring = Ring::new(config, pool)?;
        let resource = |what| move |source| UringError::Resource { what, source };
        let rx =
            RxBuffers::new(config.rx_buffers, config.rx_buffer_bytes).map_err(resource("receive buffers"))?;
        let (wake, waker) = WakeReceiver::new().map_err(resource("eventfd"))?;
        let operations =
            config.sockets_max as usize * 2 + LISTENERS_MAX as usize + config.file_ops_max as usize;
        let state = State {
            inflight: InFlight::with_capacity(operations),
            sockets: Sockets::with_capacity(config.sockets_max),
            listeners: Listeners::with_capacity(LISTENERS_MAX),
            files: Files::with_capacity(config.files_max),
            sends: SendLists::new(config.sockets_max).map_err(resource("send lists"))?,
            fills: FillLists::new(config.file_ops_max).map_err(resource("read lists"))?,
            writers: Writers::new(config.writers_max, waker.clone()),
            rx,
            wake_tokens: Vec::with_capacity(4),
            wake_polled: false,
            ended: VecDeque::with_capacity(256),
            refused_connections: 0,
            zero_copy: Policy::new(config.zero_copy, ring.has_zero_copy()),
        };
        let backlog = VecDeque::with_capacity(config.sq_entries as usize);
        let mut io = Self { ring, state, backlog, wake, spin: config.spin, _pool: pool.clone() };
        io.state.rx.register(&io.ring.submitter()).map_err(UringError::ReceiveBuffers)?;
        for (given, file) in files.into_iter().enumerate() {
            io.adopt_file(file).map_err(|_| UringError::TooMany {
                what: "files",
                max: config.files_max,
                given: given + 1,
            })?;
        }
        for (given, listener) in listeners.into_iter().enumerate() {
            io.adopt_listener(listener).map_err(|_| UringError::TooMany {
                what: "listeners",
                max: LISTENERS_MAX,
                given: given + 1,
            })?;
        }
        Ok((io, waker))
    }

    /// What the ring became: flags, registrations and why not, missing operations.
    pub fn report(&self) -> &RingReport {
        self.ring.report()
    }

    /// Operations the kernel owns or that wait for room.
    pub fn operations_pending(&self) -> usize {
        self.state.inflight.len() + self.backlog.len() + self.state.wake_tokens.len()
    }

    /// Connections that were closed at once because there was no slot left.
    pub fn refused_connections(&self) -> u64 {
        self.state.refused_connections
    }

    /// What became of zero-copy sends.
    pub fn zero_copy_counts(&self) -> ZeroCopyCounts {
        self.state.zero_copy.counts
    }

    /// Moves the backlog into the ring as far as there is room. True when the submission queue stopped it.
    fn admit(&mut self) -> bool {
        if !self.state.wake_polled && self.awaited().is_any() {
            if self.ring.is_submission_full() {
                return true;
            }
            self.poll_wake();
        }
        while let Some((token, op)) = self.backlog.pop_front() {
            if let Some(op) = self.start(token, op) {
                self.backlog.push_front((token, op));
                return self.ring.is_submission_full();
            }
        }
        false
    }

    /// What another thread may have to say.
    fn awaited(&self) -> Awaited {
        Awaited { wake: !self.state.wake_tokens.is_empty(), written: self.state.writers.is_busy() }
    }

    /// Gives the operation back when there is no room.
    fn start(&mut self, token: OpToken, op: Op) -> Option<Op> {
        match self.state.start(&mut self.ring, token, op) {
            Started::Queued => None,
            Started::Ended(outcome) => {
                self.state.ended.push_back(Completion { token, outcome });
                None
            }
            Started::NoRoom(op) => Some(op),
        }
    }

    /// Multishot: stays in the kernel until it says otherwise.
    fn poll_wake(&mut self) {
        let entry = opcode::PollAdd::new(Fd(self.wake.event()), libc::POLLIN as u32)
            .multi(true)
            .build()
            .user_data(inflight::WAKE_POLL);
        // SAFETY: a poll names no memory, and the eventfd lives in `self.wake` until after the ring is drained.
        self.state.wake_polled = unsafe { self.ring.push(&entry) };
    }

    /// Ends the operation when it waits in the backlog.
    fn cancel_in_backlog(&mut self, target: OpToken) -> bool {
        let Some(at) = self.backlog.iter().position(|(token, _)| *token == target) else { return false };
        if let Some((token, op)) = self.backlog.remove(at) {
            let outcome = refuse(op, Errno(libc::ECANCELED));
            self.state.ended.push_back(Completion { token, outcome });
        }
        true
    }

    /// Everything that is complete, without a system call.
    fn reap(&mut self, done: &mut Vec<Completion>) {
        for entry in self.ring.completions() {
            self.state.complete(&entry, done);
        }
        self.reap_writes(done);
        done.extend(self.state.ended.drain(..));
        if !self.state.wake_tokens.is_empty() && self.wake.take() {
            let woken = self.state.wake_tokens.drain(..);
            done.extend(woken.map(|token| Completion { token, outcome: Outcome::Woken }));
        }
    }

    fn reap_writes(&mut self, done: &mut Vec<Completion>) {
        if !self.state.writers.is_busy() {
            return;
        }
        self.wake.take_written();
        while let Some((user_data, result)) = self.state.writers.next_back() {
            self.state.wrote(user_data, result, done);
        }
    }

    /// Wakes a thread for the writes that were submitted, and another one when the first does not get on.
    fn kick_writers(&mut self) {
        self.state.writers.kick();
        if self.state.writers.look_due().is_some() {
            self.state.writers.look(host::now());
        }
    }

    /// One `io_uring_enter`; sleeps only when `want`, nothing is to be told, and no wake came first.
    fn enter(&mut self, want: bool, deadline: Option<Instant>) {
        self.kick_writers();
        let look = self.state.writers.look_due();
        let deadline = deadline.into_iter().chain(look).min();
        let timeout = deadline.map(|deadline| deadline.since(host::now()));
        let want = want && timeout != Some(Duration::ZERO);
        let awaited = self.awaited();
        let armed = want && awaited.is_any();
        let sleep = want && (!armed || (self.state.wake_polled && self.wake.try_sleep(awaited)));
        let entered = self.ring.enter(sleep, timeout);
        if armed {
            self.wake.awake();
        }
        match entered {
            Ok(Entered::Back) => {}
            // Nothing was lost: submissions are still queued, their memory still owned. Completions make room.
            Ok(Entered::Busy) => std::thread::sleep(Duration::from_micros(100)),
            Err(error) => panic!("io_uring_enter failed ({error}): the ring of this shard is unusable"),
        }
    }

    /// Looks for news for up to `spin`.
    fn spin(&mut self, deadline: Option<Instant>) {
        let mut end = host::now().after(self.spin);
        if let Some(deadline) = deadline {
            end = end.min(deadline);
        }
        loop {
            for _ in 0..SPINS_PER_LOOK {
                if self.ring.has_news() || self.wake.is_notified() {
                    return;
                }
                core::hint::spin_loop();
            }
            if host::now() >= end {
                return;
            }
        }
    }
}

impl Io for UringIo {
    type Socket = OwnedFd;
    type File = Arc<File>;
    type Listener = TcpListener;

    fn now(&self) -> Instant {
        host::now()
    }

    fn submit(&mut self, token: OpToken, op: Op) {
        if let Op::Cancel { token: target } = op
            && self.cancel_in_backlog(target)
        {
            self.state.ended.push_back(Completion { token, outcome: Outcome::Done { result: Ok(()) } });
            return;
        }
        if !self.backlog.is_empty() {
            self.backlog.push_back((token, op));
        } else if let Some(op) = self.start(token, op) {
            self.backlog.push_back((token, op));
        }
    }

    fn wait(&mut self, deadline: Option<Instant>, done: &mut Vec<Completion>) {
        let before = done.len();
        self.state.rx.publish();
        while self.admit() {
            // More is queued than one call takes: hand over a full queue, without waiting.
            self.enter(false, None);
            self.reap(done);
        }
        self.reap(done);
        // Threads that write may need this very core.
        if !self.spin.is_zero() && done.len() == before && !self.state.writers.is_busy() {
            if self.ring.has_submissions() {
                self.enter(false, None);
                self.reap(done);
            }
            if done.len() == before {
                self.spin(deadline);
            }
        }
        loop {
            // With completions or task work at hand the kernel does not sleep, so this never waits in vain. To enter
            // without waiting because a flag promises news is to spin for as long as the promise is not kept, and
            // with real-time priority to keep the very worker from running that would keep it.
            self.enter(done.len() == before, deadline);
            self.reap(done);
            self.admit();
            if done.len() > before || deadline.is_some_and(|deadline| host::now() >= deadline) {
                return;
            }
        }
    }

    fn rx_bytes(&self, buf: &RxBuf) -> &[u8] {
        self.state.rx.bytes(buf)
    }

    fn rx_release(&mut self, buf: RxBuf) {
        self.state.rx.release(buf);
    }

    fn counts(&self) -> IoCounts {
        IoCounts { system_calls: self.ring.entered(), operations: self.operations_pending() }
    }

    fn adopt_socket(&mut self, socket: OwnedFd) -> Result<SocketSlot, OwnedFd> {
        // Sockets that come from a ring have these options; one that is not TCP works without.
        let _ = configure(socket.as_fd());
        let peer = rustix::net::getpeername(&socket).ok().flatten().map(SocketAddr::try_from);
        let slot = self.state.sockets.insert(socket)?;
        let is_local = peer.is_none_or(|peer| peer.is_ok_and(|peer| peer.ip().to_canonical().is_loopback()));
        self.state.zero_copy.opened(slot, is_local);
        Ok(SocketSlot(slot))
    }

    fn local_address(&self, socket: SocketSlot) -> Option<SocketAddr> {
        let socket = self.state.sockets.get(socket.0)?;
        SocketAddr::try_from(rustix::net::getsockname(socket).ok()?).ok()
    }

    fn release_socket(&mut self, socket: SocketSlot) -> Option<OwnedFd> {
        self.state.sockets.remove(socket.0)
    }

    fn adopt_file(&mut self, file: Arc<File>) -> Result<FileSlot, Arc<File>> {
        let fd = file.as_raw_fd();
        let by_threads = FileWrites::of(&file).by == WrittenBy::Threads && self.state.writers.begin();
        let written_by = if by_threads { WrittenBy::Threads } else { WrittenBy::Ring };
        let slot = self.state.files.insert(OpenFile { file, written_by }).map_err(|open| open.file)?;
        self.ring.set_fixed_file(slot, fd);
        Ok(FileSlot(slot))
    }

    fn release_file(&mut self, file: FileSlot) -> Option<Arc<File>> {
        if self.backlog.iter().any(|(_, op)| op.file() == Some(file)) {
            return None;
        }
        let released = self.state.files.remove(file.0)?;
        self.ring.set_fixed_file(file.0, -1);
        Some(released.file)
    }

    fn adopt_listener(&mut self, listener: TcpListener) -> Result<ListenerSlot, TcpListener> {
        self.state.listeners.insert(listener).map(ListenerSlot)
    }

    fn release_listener(&mut self, listener: ListenerSlot) -> Option<TcpListener> {
        let waits = |op: &Op| matches!(op, Op::Accept { listener: waiting } if *waiting == listener);
        if self.backlog.iter().any(|(_, op)| waits(op)) {
            return None;
        }
        self.state.listeners.remove(listener.0)
    }
}

impl UringIo {
    /// Cancels everything and waits for every terminal completion; false when some did not come in time.
    fn drain(&mut self) -> bool {
        let deadline = host::now().after(DRAIN);
        let mut ended = Vec::new();
        let mut quiet = true;
        let State { writers, .. } = &mut self.state;
        let mut cancelled = Vec::new();
        writers.cancel_waiting(&mut |user_data, result| cancelled.push((user_data, result)));
        for (user_data, result) in cancelled {
            self.state.wrote(user_data, result, &mut ended);
        }
        loop {
            if quiet {
                let entry = opcode::AsyncCancel2::new(CancelBuilder::any().all()).build();
                // SAFETY: a cancel names no memory. When the queue is full, a later round pushes it.
                let _ = unsafe { self.ring.push(&entry.user_data(inflight::CANCEL)) };
            }
            // Threads that write do not end this sleep.
            let look = if self.state.writers.is_busy() { 1 } else { 100 };
            let entered = self.ring.enter(true, Some(Duration::from_millis(look)));
            quiet = true;
            self.reap_writes(&mut ended);
            for entry in self.ring.completions() {
                quiet = false;
                self.state.complete(&entry, &mut ended);
            }
            ended.clear();
            if self.state.inflight.is_empty() {
                return true;
            }
            if entered.is_err() || host::now() >= deadline {
                return false;
            }
        }
    }

    /// Gives up the memory the kernel may still use: neither freed nor reused.
    pub(super) fn leak(&mut self) {
        let inflight = core::mem::replace(&mut self.state.inflight, InFlight::with_capacity(0));
        core::mem::forget(inflight);
        if let (Ok(sends), Ok(fills)) = (SendLists::new(0), FillLists::new(0)) {
            core::mem::forget(core::mem::replace(&mut self.state.fills, fills));
            core::mem::forget(core::mem::replace(&mut self.state.sends, sends));
        }
        if let Ok(empty) = RxBuffers::new(1, 64) {
            core::mem::forget(core::mem::replace(&mut self.state.rx, empty));
        }
    }
}

impl Drop for UringIo {
    fn drop(&mut self) {
        if !self.drain() {
            self.leak();
        }
        // Receives are over, or their memory is leaked: the kernel may forget the buffers before they are unmapped.
        let _ = self.ring.submitter().unregister_buf_ring(super::rx::GROUP);
    }
}

impl fmt::Debug for UringIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UringIo")
            .field("report", self.report())
            .field("in_flight", &self.state.inflight.len())
            .field("backlog", &self.backlog.len())
            .finish_non_exhaustive()
    }
}
