//! `Io` for one shard over files in memory: every file operation of the victim is counted, and one of them goes wrong.
//!
//! Knows what each kind of fault does to a file. Does not know who asked for the operation, nor what it was for.
//!
//! Operations end in an order that depends on nothing but their number, so that the one with a given number is the same
//! in every run until the fault.

use std::cell::RefCell;
use std::rc::Rc;

use goldrush::clock::Instant;
use goldrush::io::{Completion, Errno, Io, Op, OpToken, Outcome, RxBuf, SocketSlot};
use goldrush::plan::FileSlot;

use crate::blocking::Store;
use crate::sim_disk::{Effect, Rng, SimDisk};

const EIO: i32 = 5;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The operation fails with this error number, half done.
    Once(i32),
    /// It and all that follow that may need space, until [`Shared`]'s `free_space`.
    FullFrom(i32),
    /// It does a part of its work, and says so.
    Short,
    /// The canary: it does nothing, and says that all is well.
    Lie,
}

/// What an operation of the victim was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    Sync,
    Punch,
    SetLen,
}

struct Flight {
    token: OpToken,
    op: Op,
    /// A flush: how much it covers.
    covers: usize,
}

#[derive(Default)]
struct Socket {
    recv: Option<OpToken>,
    from_target: Vec<u8>,
    closed: bool,
}

pub struct World {
    pub now: u64,
    /// By `FileSlot`.
    pub files: Vec<SimDisk>,
    pub victim: usize,
    pub fault: Option<(usize, Fault)>,
    /// The victim's operations so far.
    pub seen: Vec<Kind>,
    /// What the fault met.
    pub hit: Option<Kind>,
    full: Option<i32>,
    rng: Rng,
    flights: Vec<Flight>,
    sockets: Vec<Socket>,
    accept: Option<OpToken>,
    wake: Option<OpToken>,
    done: Vec<Completion>,
    received: Vec<Vec<u8>>,
}

pub type Shared = Rc<RefCell<World>>;

impl World {
    pub fn new(files: Vec<SimDisk>, victim: usize, fault: Option<(usize, Fault)>) -> Shared {
        Rc::new(RefCell::new(Self {
            now: 1_000_000_000,
            files,
            victim,
            fault,
            seen: Vec::new(),
            hit: None,
            full: None,
            rng: Rng(5),
            flights: Vec::new(),
            sockets: Vec::new(),
            accept: None,
            wake: None,
            done: Vec::new(),
            received: Vec::new(),
        }))
    }

    /// Somebody has made room.
    pub fn free_space(&mut self) {
        self.full = None;
    }

    pub fn is_quiet(&self) -> bool {
        self.flights.is_empty() && self.done.is_empty()
    }

    pub fn connect(&mut self) -> usize {
        self.sockets.push(Socket::default());
        let socket = SocketSlot(self.sockets.len() as u32 - 1);
        let peer = ([10, 0, 0, 2], 40_000).into();
        let token = self.accept.expect("the shard accepts");
        self.done.push(Completion { token, outcome: Outcome::Accepted { socket, peer, more: true } });
        self.sockets.len() - 1
    }

    pub fn send(&mut self, socket: usize, bytes: Vec<u8>) {
        let Some(token) = self.sockets[socket].recv else { return };
        let buf = RxBuf { id: self.received.len() as u16, len: bytes.len() as u32 };
        self.received.push(bytes);
        self.done.push(Completion { token, outcome: Outcome::Received { buf, more: true } });
    }

    pub fn take_answers(&mut self, socket: usize) -> Vec<u8> {
        core::mem::take(&mut self.sockets[socket].from_target)
    }

    pub fn wake(&mut self) {
        if let Some(token) = self.wake.take() {
            self.done.push(Completion { token, outcome: Outcome::Woken });
        }
    }

    fn submit(&mut self, token: OpToken, op: Op) {
        let done = |world: &mut Self, outcome| world.done.push(Completion { token, outcome });
        match op {
            Op::Accept { .. } => self.accept = Some(token),
            Op::AwaitWake => self.wake = Some(token),
            Op::Recv { socket } => self.sockets[socket.0 as usize].recv = Some(token),
            Op::Send { socket, parts } => {
                let mut sent = 0;
                for part in &parts {
                    let bytes = &part.buf.as_slice()[part.start as usize..(part.start + part.len) as usize];
                    self.sockets[socket.0 as usize].from_target.extend(bytes);
                    sent += part.len;
                }
                done(self, Outcome::Sent { result: Ok(sent), parts });
            }
            Op::Shutdown { socket } | Op::Close { socket } => {
                let socket = &mut self.sockets[socket.0 as usize];
                socket.closed = true;
                if let Some(recv) = socket.recv.take() {
                    let outcome = Outcome::RecvEnded { error: None };
                    self.done.push(Completion { token: recv, outcome });
                }
                done(self, Outcome::Done { result: Ok(()) });
            }
            Op::Cancel { token: wanted } => {
                let error = Errno(125);
                if self.accept == Some(wanted) {
                    self.accept = None;
                    let outcome = Outcome::AcceptEnded { error };
                    self.done.push(Completion { token: wanted, outcome });
                }
                let socket = self.sockets.iter_mut().find(|socket| socket.recv == Some(wanted));
                if let Some(socket) = socket {
                    socket.recv = None;
                    let outcome = Outcome::RecvEnded { error: Some(error) };
                    self.done.push(Completion { token: wanted, outcome });
                }
                done(self, Outcome::Done { result: Ok(()) });
            }
            op => {
                let covers = match &op {
                    Op::Sync { file } => self.files[file.0 as usize].sync_begins(),
                    _ => 0,
                };
                self.flights.push(Flight { token, op, covers });
            }
        }
    }

    /// A few operations end, in no order anybody could rely on.
    fn progress(&mut self) {
        for _ in 0..3 {
            if self.flights.is_empty() {
                return;
            }
            let index = self.rng.below(self.flights.len() as u64) as usize;
            let Flight { token, op, covers } = self.flights.swap_remove(index);
            let outcome = self.run(op, covers);
            self.done.push(Completion { token, outcome });
        }
    }

    /// What is to go wrong with the next operation on this file.
    fn fault_of(&mut self, file: FileSlot, kind: Kind, grows: bool) -> Option<Fault> {
        if file.0 as usize != self.victim {
            return None;
        }
        self.seen.push(kind);
        if let Some(errno) = self.full.filter(|_| grows) {
            return Some(Fault::Once(errno));
        }
        let (at, fault) = self.fault?;
        if at + 1 != self.seen.len() {
            return None;
        }
        self.hit = Some(kind);
        if let Fault::FullFrom(errno) = fault {
            self.full = Some(errno);
            return grows.then_some(Fault::Once(errno));
        }
        Some(fault)
    }

    fn run(&mut self, op: Op, covers: usize) -> Outcome {
        match op {
            Op::Read { file, offset, mut buf, start, len } => {
                let bytes = &mut buf.as_mut_slice()[start as usize..(start + len) as usize];
                let result = self.read(file, offset.0, bytes);
                Outcome::Read { result, buf }
            }
            Op::Fill { file, offset, mut fills } => {
                let mut bytes = vec![0; fills.iter().map(|fill| fill.left() as usize).sum()];
                let result = self.read(file, offset.0, &mut bytes);
                let mut rest = &bytes[..];
                for fill in &mut fills {
                    let piece = fill.rest_mut();
                    let (mine, more) = rest.split_at(piece.len());
                    piece.copy_from_slice(mine);
                    rest = more;
                }
                Outcome::Filled { result, fills }
            }
            Op::Write { file, offset, part } => {
                let bytes =
                    part.buf.as_slice()[part.start as usize..(part.start + part.len) as usize].to_vec();
                let result = self.write(file, offset.0, bytes);
                Outcome::Wrote { result, part }
            }
            Op::PunchHole { file, offset, len } => Outcome::Done {
                result: self.change(file, Kind::Punch, Effect::Zero { offset: offset.0, len }),
            },
            Op::SetLen { file, len } => {
                Outcome::Done { result: self.change(file, Kind::SetLen, Effect::SetLen(len)) }
            }
            Op::Sync { file } => Outcome::Done { result: self.sync(file, covers) },
            other => panic!("no operation of a file: {other:?}"),
        }
    }

    fn read(&mut self, file: FileSlot, offset: u64, bytes: &mut [u8]) -> Result<u32, Errno> {
        let fault = self.fault_of(file, Kind::Read, false);
        if let Some(Fault::Once(errno)) = fault {
            return Err(Errno(errno));
        }
        let disk = &self.files[file.0 as usize].volatile;
        let there = disk.len().saturating_sub(offset).min(bytes.len() as u64);
        let there = if fault == Some(Fault::Short) && there > 512 { there / 1024 * 512 } else { there };
        disk.read_at(offset, &mut bytes[..there as usize]).expect("it is there");
        Ok(there as u32)
    }

    fn write(&mut self, file: FileSlot, offset: u64, bytes: Vec<u8>) -> Result<u32, Errno> {
        let len = bytes.len();
        if self.fault_is_next(file, Fault::Short) && len > 512 {
            self.fault_of(file, Kind::Write, true);
            let part = bytes[..len / 1024 * 512].to_vec();
            let done = part.len() as u32;
            self.files[file.0 as usize].complete(Effect::Write { offset, bytes: part.into() });
            return Ok(done);
        }
        self.change(file, Kind::Write, Effect::Write { offset, bytes: bytes.into() }).map(|()| len as u32)
    }

    fn fault_is_next(&self, file: FileSlot, fault: Fault) -> bool {
        file.0 as usize == self.victim && self.fault == Some((self.seen.len(), fault))
    }

    fn change(&mut self, file: FileSlot, kind: Kind, effect: Effect) -> Result<(), Errno> {
        let disk = &mut self.files[file.0 as usize];
        let cuts = matches!(effect, Effect::SetLen(len) if len <= disk.volatile.len);
        match self.fault_of(file, kind, !cuts) {
            Some(Fault::Once(errno)) => {
                self.files[file.0 as usize].complete_part(&effect, &mut self.rng);
                Err(Errno(errno))
            }
            Some(Fault::Lie) => Ok(()),
            _ => {
                self.files[file.0 as usize].complete(effect);
                Ok(())
            }
        }
    }

    fn sync(&mut self, file: FileSlot, covers: usize) -> Result<(), Errno> {
        match self.fault_of(file, Kind::Sync, false) {
            Some(Fault::Once(errno)) => {
                self.files[file.0 as usize].sync_fails(covers, &mut self.rng);
                Err(Errno(errno))
            }
            Some(Fault::Lie) => {
                self.files[file.0 as usize].sync_fails(covers, &mut self.rng);
                Ok(())
            }
            _ => {
                self.files[file.0 as usize].sync_ends(covers);
                Ok(())
            }
        }
    }
}

/// EIO, for who asks for a fault by name.
pub const IO_ERROR: Fault = Fault::Once(EIO);

pub struct DiskIo {
    world: Shared,
    /// Received pieces, here so that they can be lent.
    held: Vec<Vec<u8>>,
}

impl DiskIo {
    pub fn new(world: Shared) -> Self {
        Self { world, held: Vec::new() }
    }
}

impl Io for DiskIo {
    type Socket = ();
    type File = ();
    type Listener = ();

    fn adopt_file(&mut self, (): ()) -> Result<FileSlot, ()> {
        Err(())
    }

    fn release_file(&mut self, _: FileSlot) -> Option<()> {
        None
    }

    fn adopt_listener(&mut self, (): ()) -> Result<goldrush::io::ListenerSlot, ()> {
        Err(())
    }

    fn release_listener(&mut self, _: goldrush::io::ListenerSlot) -> Option<()> {
        None
    }

    fn now(&self) -> Instant {
        Instant(self.world.borrow().now)
    }

    fn submit(&mut self, token: OpToken, op: Op) {
        self.world.borrow_mut().submit(token, op);
    }

    fn wait(&mut self, _deadline: Option<Instant>, done: &mut Vec<Completion>) {
        let mut world = self.world.borrow_mut();
        world.progress();
        done.append(&mut world.done);
        let pieces = world.received.len();
        self.held.extend(world.received[self.held.len()..pieces].iter().cloned());
    }

    fn rx_bytes(&self, buf: &RxBuf) -> &[u8] {
        &self.held[usize::from(buf.id)]
    }

    fn rx_release(&mut self, _buf: RxBuf) {}

    fn adopt_socket(&mut self, (): ()) -> Result<SocketSlot, ()> {
        Err(())
    }

    fn release_socket(&mut self, _socket: SocketSlot) -> Option<()> {
        None
    }
}
