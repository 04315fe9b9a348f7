//! The seam between the shard and the world: operations go out, completions come back.
//!
//! Knows sockets, files and buffers as slots and handles. Does not know the ring (`uring`) nor the simulator.
//!
//! A failed operation is a completion; `submit` cannot fail. Buffers move into an operation and come back with
//! its completion, so no one can touch what the kernel may write.

use std::net::SocketAddr;

use crate::buf::{Buf, BufRef, Fill};
use crate::clock::Instant;
use crate::plan::FileSlot;
use crate::units::ByteOffset;

/// Names an operation in its completions. The shard chooses it freely; the ring never interprets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OpToken(pub u64);

/// A connected socket of this `Io`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketSlot(pub u32);

/// A listening socket of this `Io`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerSlot(pub u32);

/// A received piece of stream; the memory belongs to the `Io` until `rx_release`.
#[derive(Debug, PartialEq, Eq)]
pub struct RxBuf {
    pub id: u16,
    pub len: u32,
}

/// A piece of a buffer that is to be sent or written.
#[derive(Debug, Clone)]
pub struct Part {
    pub buf: BufRef,
    pub start: u32,
    pub len: u32,
}

impl Part {
    /// All bytes of a buffer.
    pub fn all(buf: BufRef) -> Self {
        let len = buf.capacity() as u32;
        Self { buf, start: 0, len }
    }
}

/// An operating-system error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", std::io::Error::from_raw_os_error(*.0))]
pub struct Errno(pub i32);

#[derive(Debug)]
pub enum Op {
    /// Multishot: one completion a connection until one comes with `more: false`.
    Accept { listener: ListenerSlot },
    /// Multishot: one completion a piece of stream until one comes with `more: false`.
    Recv { socket: SocketSlot },
    /// All parts in order, at most `SEND_PARTS_MAX`. May complete short. `parts` comes back for re-use.
    Send { socket: SocketSlot, parts: Vec<Part> },
    /// Both directions are shut down; pending operations on the socket complete.
    Shutdown { socket: SocketSlot },
    /// The slot is free after the completion. No other operation on it may be pending.
    Close { socket: SocketSlot },
    /// Fills `buf[start..start + len]`. May complete short (end of file).
    Read { file: FileSlot, offset: ByteOffset, buf: Buf, start: u32, len: u32 },
    /// Reads into pages of shared frames: as many bytes as all fills lack together, at most `FILL_PARTS_MAX` of them, one
    /// behind the other. May complete short (end of file). `fills` comes back for re-use.
    Fill { file: FileSlot, offset: ByteOffset, fills: Vec<Fill> },
    /// Writes one part. May complete short.
    Write { file: FileSlot, offset: ByteOffset, part: Part },
    /// fdatasync.
    Sync { file: FileSlot },
    /// fallocate(PUNCH_HOLE | KEEP_SIZE).
    PunchHole { file: FileSlot, offset: ByteOffset, len: u64 },
    /// ftruncate.
    SetLen { file: FileSlot, len: u64 },
    /// Completes once another thread woke this `Io`. One shot.
    AwaitWake,
    /// Asks the pending operation `token` to end; it completes by itself (with ECANCELED or what it had).
    Cancel { token: OpToken },
}

impl Op {
    /// The file it works on.
    pub const fn file(&self) -> Option<FileSlot> {
        match self {
            Self::Read { file, .. }
            | Self::Fill { file, .. }
            | Self::Write { file, .. }
            | Self::Sync { file }
            | Self::PunchHole { file, .. }
            | Self::SetLen { file, .. } => Some(*file),
            _ => None,
        }
    }
}

#[derive(Debug)]
pub enum Outcome {
    Accepted {
        socket: SocketSlot,
        peer: SocketAddr,
        more: bool,
    },
    AcceptEnded {
        error: Errno,
    },
    Received {
        buf: RxBuf,
        more: bool,
    },
    /// The stream ended (`None`), failed, or the receive was cancelled or starved of buffers (ENOBUFS):
    /// no more completions of this operation.
    RecvEnded {
        error: Option<Errno>,
    },
    Sent {
        result: Result<u32, Errno>,
        parts: Vec<Part>,
    },
    Read {
        result: Result<u32, Errno>,
        buf: Buf,
    },
    /// As `Read`; the fills do not know yet how many bytes came.
    Filled {
        result: Result<u32, Errno>,
        fills: Vec<Fill>,
    },
    Wrote {
        result: Result<u32, Errno>,
        part: Part,
    },
    /// Shutdown, Close, Sync, PunchHole, SetLen, Cancel.
    Done {
        result: Result<(), Errno>,
    },
    Woken,
}

#[derive(Debug)]
pub struct Completion {
    pub token: OpToken,
    pub outcome: Outcome,
}

/// Wakes the `Io` of another thread out of `wait`.
pub trait Waker: Send + Sync + 'static {
    fn wake(&self);
}

/// What an `Io` has done, and what it is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoCounts {
    /// Calls of the kernel that submit and wait.
    pub system_calls: u64,
    /// Operations that have not ended.
    pub operations: usize,
}

pub trait Io {
    /// An owned socket outside of any `Io`, on its way between shards.
    type Socket: Send + core::fmt::Debug;
    /// An open file outside of any `Io`.
    type File: Send + core::fmt::Debug;
    /// A listening socket outside of any `Io`.
    type Listener: Send + core::fmt::Debug;

    fn now(&self) -> Instant;

    /// Queues the operation; it reaches the kernel in `wait`. Never blocks.
    fn submit(&mut self, token: OpToken, op: Op);

    /// Submits everything queued, then waits for at least one completion or `deadline` (`None`: for ever; a
    /// deadline already past: only reaps). Appends what completed. One system call.
    fn wait(&mut self, deadline: Option<Instant>, done: &mut Vec<Completion>);

    fn rx_bytes(&self, buf: &RxBuf) -> &[u8];
    fn rx_release(&mut self, buf: RxBuf);

    /// The address a connection came in at; `None` where that is not known.
    fn local_address(&self, _socket: SocketSlot) -> Option<SocketAddr> {
        None
    }

    fn counts(&self) -> IoCounts {
        IoCounts::default()
    }

    /// Takes a socket in; gives it back when the table is full.
    fn adopt_socket(&mut self, socket: Self::Socket) -> Result<SocketSlot, Self::Socket>;
    /// Takes a socket out. No operation on it may be pending. `None` for an empty slot.
    fn release_socket(&mut self, socket: SocketSlot) -> Option<Self::Socket>;

    /// Takes a file in; gives it back when the table is full.
    fn adopt_file(&mut self, file: Self::File) -> Result<FileSlot, Self::File>;
    /// Takes a file out. `None` for an empty slot, and while an operation on it is pending.
    fn release_file(&mut self, file: FileSlot) -> Option<Self::File>;
    /// Takes a listener in; gives it back when the table is full.
    fn adopt_listener(&mut self, listener: Self::Listener) -> Result<ListenerSlot, Self::Listener>;
    /// Takes a listener out. `None` for an empty slot, and while an accept on it is pending.
    fn release_listener(&mut self, listener: ListenerSlot) -> Option<Self::Listener>;
}
