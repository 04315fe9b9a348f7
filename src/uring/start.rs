//! An operation becomes a submission, or ends at once with a reason.
//!
//! Knows operations, slots and opcodes. Does not know completions.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use io_uring::opcode;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fd, FsyncFlags};

use super::file_writes::WrittenBy;
use super::fill::Placed;
use super::inflight::{Held, ZeroCopySend};
use super::ring::Ring;
use super::rx;
use super::uring_io::State;
use super::writer::Job;
use super::zero_copy::REPORT_USAGE;
use crate::buf::{Fill, RawRange};
use crate::io::{Completion, Errno, ListenerSlot, Op, OpToken, Outcome, Part, SocketSlot};
use crate::plan::FileSlot;
use crate::units::ByteOffset;

/// What became of an operation that was to be started.
#[derive(Debug)]
pub(super) enum Started {
    /// The kernel (or the waker, or a thread) has it; a completion follows.
    Queued,
    /// It is over already.
    Ended(Outcome),
    /// No room in the ring, the slab or the send lists: try again after completions.
    NoRoom(Op),
}

/// The outcome of an operation the kernel never saw.
pub(super) fn refuse(op: Op, error: Errno) -> Outcome {
    match op {
        Op::Accept { .. } => Outcome::AcceptEnded { error },
        Op::Recv { .. } => Outcome::RecvEnded { error: Some(error) },
        Op::Send { parts, .. } => Outcome::Sent { result: Err(error), parts },
        Op::Read { buf, .. } => Outcome::Read { result: Err(error), buf },
        Op::Fill { fills, .. } => Outcome::Filled { result: Err(error), fills },
        Op::Write { part, .. } => Outcome::Wrote { result: Err(error), part },
        Op::AwaitWake => Outcome::Woken,
        Op::Shutdown { .. }
        | Op::Close { .. }
        | Op::Sync { .. }
        | Op::PunchHole { .. }
        | Op::SetLen { .. }
        | Op::Cancel { .. } => Outcome::Done { result: Err(error) },
    }
}

const BAD_SLOT: Errno = Errno(libc::EBADF);
const BAD_RANGE: Errno = Errno(libc::EINVAL);

impl State {
    /// Starts one operation. Whatever the kernel will touch is in `inflight` before the submission is queued.
    pub(super) fn start(&mut self, ring: &mut Ring, token: OpToken, op: Op) -> Started {
        if let Op::AwaitWake = op {
            self.wake_tokens.push(token);
            return Started::Queued;
        }
        if ring.is_submission_full() || self.inflight.is_full() {
            return Started::NoRoom(op);
        }
        match op {
            Op::Accept { listener } => self.start_accept(ring, token, listener),
            Op::Recv { socket } => self.start_recv(ring, token, socket),
            Op::Send { socket, parts } => self.start_send(ring, token, socket, parts),
            Op::Shutdown { socket } => self.start_shutdown(ring, token, socket),
            Op::Close { socket } => self.start_close(ring, token, socket),
            Op::Cancel { token: target } => self.start_cancel(ring, token, target),
            Op::AwaitWake => Started::Queued,
            op @ (Op::Read { .. }
            | Op::Fill { .. }
            | Op::Write { .. }
            | Op::Sync { .. }
            | Op::PunchHole { .. }
            | Op::SetLen { .. }) => self.start_file(ring, token, op),
        }
    }

    /// The owner first, then the submission: the order the contract of `inflight` asks for.
    fn queue(&mut self, ring: &mut Ring, token: OpToken, held: Held, entry: Entry) -> Started {
        // `start` has checked that there is room in both, so neither refuses.
        let Ok(user_data) = self.inflight.insert(token, held) else {
            unreachable!("room in the slab was checked before")
        };
        // SAFETY: `held`, which owns everything `entry` names, is in `inflight` under this user data, and leaves it
        // only at the terminal completion.
        let pushed = unsafe { ring.push(&entry.user_data(user_data)) };
        assert!(pushed, "room in the submission queue was checked before");
        Started::Queued
    }

    fn start_accept(&mut self, ring: &mut Ring, token: OpToken, listener: ListenerSlot) -> Started {
        let Some(fd) = self.listeners.fd(listener.0) else {
            return Started::Ended(Outcome::AcceptEnded { error: BAD_SLOT });
        };
        self.listeners.begin(listener.0);
        let entry = opcode::AcceptMulti::new(Fd(fd)).flags(libc::SOCK_CLOEXEC).build();
        self.queue(ring, token, Held::Accept { listener }, entry)
    }

    fn start_recv(&mut self, ring: &mut Ring, token: OpToken, socket: SocketSlot) -> Started {
        let Some(fd) = self.sockets.fd(socket.0) else {
            return Started::Ended(Outcome::RecvEnded { error: Some(BAD_SLOT) });
        };
        self.sockets.begin(socket.0);
        let entry = opcode::RecvMulti::new(Fd(fd), rx::GROUP).build();
        self.queue(ring, token, Held::Recv { socket }, entry)
    }

    fn start_send(
        &mut self,
        ring: &mut Ring,
        token: OpToken,
        socket: SocketSlot,
        parts: Vec<Part>,
    ) -> Started {
        let Some(fd) = self.sockets.fd(socket.0) else {
            return Started::Ended(Outcome::Sent { result: Err(BAD_SLOT), parts });
        };
        let (list, header) = match self.sends.fill(&parts) {
            None => return Started::NoRoom(Op::Send { socket, parts }),
            Some(Err(error)) => return Started::Ended(Outcome::Sent { result: Err(error), parts }),
            Some(Ok(filled)) => filled,
        };
        self.sockets.begin(socket.0);
        let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
        let bytes = parts.iter().map(|part| part.len as usize).sum();
        let zero_copy = self.zero_copy.takes(socket.0, bytes).then(ZeroCopySend::default);
        let entry = match zero_copy {
            Some(_) => opcode::SendMsgZc::new(Fd(fd), header).ioprio(REPORT_USAGE).flags(flags).build(),
            None => opcode::SendMsg::new(Fd(fd), header).flags(flags).build(),
        };
        self.queue(ring, token, Held::Send { socket, list, parts, zero_copy }, entry)
    }

    fn start_shutdown(&mut self, ring: &mut Ring, token: OpToken, socket: SocketSlot) -> Started {
        let Some(fd) = self.sockets.fd(socket.0) else { return ended(Err(BAD_SLOT)) };
        self.drop_unacknowledged(socket);
        self.sockets.begin(socket.0);
        let entry = opcode::Shutdown::new(Fd(fd), libc::SHUT_RDWR).build();
        self.queue(ring, token, Held::Shutdown { socket }, entry)
    }

    /// A peer that has vanished acknowledges nothing, and the memory of a zero-copy send would stay pinned until TCP
    /// gives up, minutes later: what is still queued is dropped, and the peer, if there is one, gets a reset.
    fn drop_unacknowledged(&self, socket: SocketSlot) {
        if self.zero_copy.is_in_use(socket.0)
            && let Some(socket) = self.sockets.get(socket.0)
        {
            // Refused, it only takes longer.
            let _ = rustix::net::connect_unspec(socket);
        }
    }

    fn start_close(&mut self, ring: &mut Ring, token: OpToken, socket: SocketSlot) -> Started {
        if self.sockets.is_pending(socket.0) {
            return ended(Err(Errno(libc::EBUSY)));
        }
        let Some(fd) = self.sockets.begin_close(socket.0) else { return ended(Err(BAD_SLOT)) };
        let entry = opcode::Close::new(Fd(fd.as_raw_fd())).build();
        self.queue(ring, token, Held::Close { socket, fd }, entry)
    }

    fn start_cancel(&mut self, ring: &mut Ring, token: OpToken, target: OpToken) -> Started {
        if let Some(at) = self.wake_tokens.iter().position(|waiting| *waiting == target) {
            self.wake_tokens.swap_remove(at);
            self.ended.push_back(Completion { token: target, outcome: Outcome::Woken });
            return ended(Ok(()));
        }
        let Some(user_data) = self.inflight.find(target) else { return ended(Err(Errno(libc::ENOENT))) };
        if let Some((_, Held::Write { file, .. })) = self.inflight.get(user_data)
            && self.files.get(file.0).is_some_and(|open| open.written_by == WrittenBy::Threads)
        {
            // As of any write that is under way: it ends by itself.
            return ended(Err(Errno(libc::EALREADY)));
        }
        let entry = opcode::AsyncCancel::new(user_data).build();
        self.queue(ring, token, Held::Cancel, entry)
    }

    fn start_file(&mut self, ring: &mut Ring, token: OpToken, op: Op) -> Started {
        let Some(slot) = op.file() else { return Started::Ended(refuse(op, BAD_SLOT)) };
        let Some(fd) = self.files.fd(slot.0) else { return Started::Ended(refuse(op, BAD_SLOT)) };
        if let Op::SetLen { len, .. } = op
            && !ring.has_ftruncate()
        {
            return ended(self.set_len_now(slot, len));
        }
        let op = match op {
            Op::Fill { file, offset, fills } => {
                return self.start_fill(ring, token, (file, fd, offset.0), fills);
            }
            Op::Write { file, offset, part } => match self.start_in_thread(token, file, offset, part) {
                Ok(started) => return started,
                Err(part) => Op::Write { file, offset, part },
            },
            op => op,
        };
        let (held, entry) = match file_entry(ring, slot, fd, op) {
            Ok(submission) => submission,
            Err(outcome) => return Started::Ended(outcome),
        };
        self.files.begin(slot.0);
        self.queue(ring, token, held, entry)
    }

    /// A write by a thread; gives the bytes back where the ring is to write them.
    fn start_in_thread(
        &mut self,
        token: OpToken,
        slot: FileSlot,
        offset: ByteOffset,
        part: Part,
    ) -> Result<Started, Part> {
        let open = self.files.get(slot.0).filter(|open| open.written_by == WrittenBy::Threads);
        let Some(open) = open else { return Err(part) };
        if self.writers.leave_to_ring() {
            return Err(part);
        }
        let file = Arc::clone(&open.file);
        let Some(range) = part.buf.raw(part.start, part.len) else {
            return Ok(Started::Ended(Outcome::Wrote { result: Err(BAD_RANGE), part }));
        };
        let Ok(user_data) = self.inflight.insert(token, Held::Write { file: slot, part }) else {
            unreachable!("room in the slab was checked before")
        };
        self.files.begin(slot.0);
        // SAFETY: `part`, which owns the range and lets nobody change it, is in `inflight` under this user data, and leaves
        // it only when the job is back.
        self.writers.push(unsafe { Job::new(user_data, file, slot.0, offset.0, &range) });
        Ok(Started::Queued)
    }

    /// One read: into one range where the frames happen to lie side by side in memory, which they do while a cache fills,
    /// else into a list of ranges.
    fn start_fill(
        &mut self,
        ring: &mut Ring,
        token: OpToken,
        (file, fd, offset): (FileSlot, RawFd, u64),
        mut fills: Vec<Fill>,
    ) -> Started {
        let Target { fd, flags } = Target::new(ring, file, fd);
        let (list, entry) = match self.fills.place(&mut fills) {
            None => return Started::NoRoom(Op::Fill { file, offset: ByteOffset(offset), fills }),
            Some(Err(error)) => return Started::Ended(Outcome::Filled { result: Err(error), fills }),
            Some(Ok(Placed::Range(range))) => (None, read_entry(ring, fd, offset, &range)),
            Some(Ok(Placed::List { list, parts, count })) => {
                (Some(list), opcode::Readv::new(fd, parts, count).offset(offset).build())
            }
        };
        self.files.begin(file.0);
        self.queue(ring, token, Held::Fill { file, list, fills }, entry.flags(flags))
    }

    /// Before 6.9: a blocking call, for a rare operation on metadata.
    fn set_len_now(&self, file: FileSlot, len: u64) -> Result<(), Errno> {
        let open = self.files.get(file.0).ok_or(BAD_SLOT)?;
        open.file.set_len(len).map_err(|error| Errno(error.raw_os_error().unwrap_or(libc::EIO)))
    }
}

fn ended(result: Result<(), Errno>) -> Started {
    Started::Ended(Outcome::Done { result })
}

/// How a submission names a file: by its slot in the ring, or by its descriptor.
struct Target {
    fd: Fd,
    flags: Flags,
}

impl Target {
    fn new(ring: &Ring, file: FileSlot, fd: RawFd) -> Self {
        if ring.has_fixed_files() {
            // The kernel reads the same field as a slot when the flag says so.
            Self { fd: Fd(file.0 as RawFd), flags: Flags::FIXED_FILE }
        } else {
            Self { fd: Fd(fd), flags: Flags::empty() }
        }
    }
}

/// What a file operation holds and its submission; the outcome when it names bytes outside of its buffer.
fn file_entry(ring: &Ring, slot: FileSlot, fd: RawFd, op: Op) -> Result<(Held, Entry), Outcome> {
    let Target { fd, flags } = Target::new(ring, slot, fd);
    let (held, entry) = match op {
        Op::Read { file, offset, mut buf, start, len } => {
            let Some(range) = buf.raw_mut(start, len) else {
                return Err(Outcome::Read { result: Err(BAD_RANGE), buf });
            };
            (Held::Read { file, buf }, read_entry(ring, fd, offset.0, &range))
        }
        Op::Write { file, offset, part } => {
            let Some(range) = part.buf.raw(part.start, part.len) else {
                return Err(Outcome::Wrote { result: Err(BAD_RANGE), part });
            };
            (Held::Write { file, part }, write_entry(ring, fd, offset.0, &range))
        }
        Op::Sync { file } => {
            (Held::File { file }, opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build())
        }
        Op::PunchHole { file, offset, len } => {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            let entry = opcode::Fallocate::new(fd, len).offset(offset.0).mode(mode).build();
            (Held::File { file }, entry)
        }
        Op::SetLen { file, len } => (Held::File { file }, opcode::Ftruncate::new(fd, len).build()),
        other => return Err(refuse(other, BAD_SLOT)),
    };
    Ok((held, entry.flags(flags)))
}

fn read_entry(ring: &Ring, fd: Fd, offset: u64, range: &RawRange) -> Entry {
    let address = range.address.as_ptr();
    match ring.fixed_buffer(range) {
        Some(index) => opcode::ReadFixed::new(fd, address, range.len, index).offset(offset).build(),
        None => opcode::Read::new(fd, address, range.len).offset(offset).build(),
    }
}

fn write_entry(ring: &Ring, fd: Fd, offset: u64, range: &RawRange) -> Entry {
    let address = range.address.as_ptr().cast_const();
    match ring.fixed_buffer(range) {
        Some(index) => opcode::WriteFixed::new(fd, address, range.len, index).offset(offset).build(),
        None => opcode::Write::new(fd, address, range.len).offset(offset).build(),
    }
}
