//! A completion of the kernel becomes a completion of the seam.
//!
//! Knows results, flags and what the operation held. Does not know submissions.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd};

use io_uring::cqueue;
use rustix::net::sockopt;

use super::count_or_errno;
use super::inflight::{self, Held, ZeroCopySend};
use super::uring_io::State;
use crate::io::{Completion, Errno, OpToken, Outcome, SocketSlot};

/// What one completion says.
#[derive(Clone, Copy)]
struct Answer {
    result: Result<u32, Errno>,
    flags: u32,
    /// As the kernel gave it: a notification's result is no error.
    raw: i32,
}

impl Answer {
    fn done(self) -> Outcome {
        Outcome::Done { result: self.result.map(drop) }
    }

    /// More completions of this operation follow.
    fn more(self) -> bool {
        cqueue::more(self.flags)
    }
}

impl State {
    /// Appends at most one completion: some are the ring's own, some say nothing the shard could use.
    pub(super) fn complete(&mut self, entry: &cqueue::Entry, done: &mut Vec<Completion>) {
        let user_data = entry.user_data();
        let raw = entry.result();
        let answer = Answer { result: count_or_errno(raw), flags: entry.flags(), raw };
        if user_data == inflight::WAKE_POLL {
            // The word of the waker says whether anything happened; this only ended the sleep.
            self.wake_polled &= answer.more();
            return;
        }
        let completion = if answer.more() {
            self.complete_multishot(user_data, answer)
        } else {
            self.complete_last(user_data, answer)
        };
        if let Some((token, outcome)) = completion {
            done.push(Completion { token, outcome });
        }
    }

    /// A write ended in a thread; `raw` is what the kernel would have said.
    pub(super) fn wrote(&mut self, user_data: u64, raw: i32, done: &mut Vec<Completion>) {
        let answer = Answer { result: count_or_errno(raw), flags: 0, raw };
        if let Some((token, outcome)) = self.complete_last(user_data, answer) {
            done.push(Completion { token, outcome });
        }
    }

    fn complete_multishot(&mut self, user_data: u64, answer: Answer) -> Option<(OpToken, Outcome)> {
        if let Some(Held::Send { zero_copy: Some(send), .. }) = self.inflight.held_mut(user_data) {
            // Queued; its memory is still needed.
            send.queued = Some(answer.result);
            return None;
        }
        let (token, held) = self.inflight.get(user_data)?;
        match *held {
            Held::Accept { .. } => Some((token, self.accepted(answer)?)),
            Held::Recv { .. } => Some((token, self.received(answer))),
            _ => {
                debug_assert!(false, "only multishots have more than one completion");
                None
            }
        }
    }

    fn complete_last(&mut self, user_data: u64, answer: Answer) -> Option<(OpToken, Outcome)> {
        let (token, held) = self.inflight.remove(user_data)?;
        let outcome = match held {
            Held::Accept { listener } => {
                self.listeners.end(listener.0);
                // The shard must hear of the end, also where there is no connection to tell of.
                self.accepted(answer).unwrap_or(Outcome::AcceptEnded { error: Errno(libc::ECONNABORTED) })
            }
            Held::Recv { socket } => {
                self.sockets.end(socket.0);
                self.received(answer)
            }
            Held::Send { socket, list, parts, zero_copy } => {
                self.sockets.end(socket.0);
                self.sends.release(list);
                let result =
                    zero_copy.map_or(answer.result, |send| self.sent_without_copy(socket, send, answer));
                Outcome::Sent { result, parts }
            }
            Held::Shutdown { socket } => {
                self.sockets.end(socket.0);
                answer.done()
            }
            Held::Close { socket, fd } => self.closed(socket, fd, answer),
            Held::Read { file, buf } => {
                self.files.end(file.0);
                Outcome::Read { result: answer.result, buf }
            }
            Held::Fill { file, list, fills } => {
                self.files.end(file.0);
                if let Some(list) = list {
                    self.fills.release(list);
                }
                Outcome::Filled { result: answer.result, fills }
            }
            Held::Write { file, part } => {
                self.files.end(file.0);
                Outcome::Wrote { result: answer.result, part }
            }
            Held::File { file } => {
                self.files.end(file.0);
                answer.done()
            }
            Held::Cancel => answer.done(),
        };
        Some((token, outcome))
    }

    /// The last word on a zero-copy send: its notification, or its only completion where there is nothing to wait for.
    fn sent_without_copy(
        &mut self,
        socket: SocketSlot,
        send: ZeroCopySend,
        answer: Answer,
    ) -> Result<u32, Errno> {
        if cqueue::notif(answer.flags) {
            self.zero_copy.notified(socket.0, answer.raw);
        }
        let result = send.queued.unwrap_or(answer.result);
        // A send of nothing: the shard sends the same bytes again, and this time they are copied.
        if self.zero_copy.queued(socket.0, result) { Ok(0) } else { result }
    }

    fn received(&mut self, answer: Answer) -> Outcome {
        let buffer = cqueue::buffer_select(answer.flags);
        match (answer.result, buffer) {
            (Ok(len), Some(id)) if len > 0 => {
                Outcome::Received { buf: self.rx.received(id, len), more: answer.more() }
            }
            (result, unused) => {
                if let Some(id) = unused {
                    self.rx.unused(id);
                }
                Outcome::RecvEnded { error: result.err() }
            }
        }
    }

    /// `None`: the connection is gone already, or there is no slot for it and it was closed.
    fn accepted(&mut self, answer: Answer) -> Option<Outcome> {
        let fd = match answer.result {
            Ok(fd) => fd,
            Err(error) => return Some(Outcome::AcceptEnded { error }),
        };
        // SAFETY: a successful accept gives a new descriptor that nobody else knows of.
        let socket = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let (socket, peer) = prepare(socket).ok()?;
        match self.sockets.insert(socket) {
            Ok(slot) => {
                self.zero_copy.opened(slot, peer.ip().to_canonical().is_loopback());
                Some(Outcome::Accepted { socket: SocketSlot(slot), peer, more: answer.more() })
            }
            Err(_closed) => {
                self.refused_connections += 1;
                None
            }
        }
    }

    fn closed(&mut self, socket: SocketSlot, fd: OwnedFd, answer: Answer) -> Outcome {
        if answer.result == Err(Errno(libc::ECANCELED)) {
            drop(fd);
        } else {
            // The kernel has let go of the number, with or without an error: it may name another file by now.
            let _ = fd.into_raw_fd();
        }
        self.sockets.end_close(socket.0);
        answer.done()
    }
}

/// Options of every connection: no delay for small replies, and dead peers are noticed.
fn prepare(socket: OwnedFd) -> std::io::Result<(OwnedFd, SocketAddr)> {
    let stream = TcpStream::from(socket);
    let peer = stream.peer_addr()?;
    configure(stream.as_fd())?;
    Ok((stream.into(), peer))
}

pub(super) fn configure(socket: std::os::fd::BorrowedFd<'_>) -> std::io::Result<()> {
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    // The ring waits for a socket itself; a non-blocking one would fail with EAGAIN instead.
    rustix::io::ioctl_fionbio(socket, false)?;
    Ok(())
}
