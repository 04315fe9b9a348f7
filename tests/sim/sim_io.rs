//! `Io` over the simulated world, and what each operation does when its time has come.
//!
//! Knows the contract of `goldrush::io` and watches that the shard keeps its side. Does not know what is carried.

use goldrush::buf::Fill;
use goldrush::clock::Instant;
use goldrush::io::{Completion, Errno, Io, ListenerSlot, Op, OpToken, Outcome, Part, RxBuf, SocketSlot};
use goldrush::plan::FileSlot;

use crate::disk::Change;
use crate::world::{Event, Sabotage, Shared, World};

const EIO: i32 = 5;
const ENOENT: i32 = 2;
const ENOSPC: i32 = 28;
const EPIPE: i32 = 32;
const EOPNOTSUPP: i32 = 95;
const ECONNRESET: i32 = 104;
const ENOBUFS: i32 = 105;
const ECANCELED: i32 = 125;

/// One piece of stream is at most this long.
pub(crate) const RX_BYTES: usize = 8192;

/// A socket between shards.
#[derive(Debug)]
pub(crate) struct SimSocket {
    stream: usize,
}

#[derive(Debug)]
pub(crate) struct SimIo {
    pub(crate) world: Shared,
    pub(crate) shard: usize,
    /// The bytes of held pieces, kept here so that `rx_bytes` can lend them.
    held: Vec<Vec<u8>>,
}

impl SimIo {
    pub(crate) fn new(world: Shared, shard: usize) -> Self {
        let buffers = world.borrow().ports[shard].rx.len();
        Self { world, shard, held: vec![Vec::new(); buffers] }
    }
}

impl Io for SimIo {
    type Socket = SimSocket;
    /// A disk by its number.
    type File = usize;
    type Listener = ();

    fn now(&self) -> Instant {
        Instant(self.world.borrow().now)
    }

    fn submit(&mut self, token: OpToken, op: Op) {
        self.world.borrow_mut().submit(self.shard, token, op);
    }

    fn wait(&mut self, _deadline: Option<Instant>, done: &mut Vec<Completion>) {
        let mut world = self.world.borrow_mut();
        let port = &mut world.ports[self.shard];
        for completion in port.inbox.drain(..) {
            if let Outcome::Received { buf, .. } = &completion.outcome
                && let Some(bytes) = &mut port.rx[buf.id as usize]
            {
                self.held[buf.id as usize] = std::mem::take(bytes);
            }
            done.push(completion);
        }
    }

    fn rx_bytes(&self, buf: &RxBuf) -> &[u8] {
        &self.held[buf.id as usize][..buf.len as usize]
    }

    fn rx_release(&mut self, buf: RxBuf) {
        let mut world = self.world.borrow_mut();
        if world.ports[self.shard].rx[buf.id as usize].take().is_none() {
            world.violation(format!("receive buffer {} was released twice", buf.id));
        }
    }

    fn adopt_socket(&mut self, socket: SimSocket) -> Result<SocketSlot, SimSocket> {
        Ok(SocketSlot(self.world.borrow_mut().place(self.shard, socket.stream)))
    }

    fn release_socket(&mut self, socket: SocketSlot) -> Option<SimSocket> {
        let mut world = self.world.borrow_mut();
        if world.ports[self.shard].on_socket(socket.0).next().is_some() {
            world.violation(format!("{socket:?} leaves shard {} with operations pending on it", self.shard));
        }
        let stream = world.ports[self.shard].sockets.get_mut(socket.0 as usize)?.take()?;
        world.streams[stream].at = None;
        Some(SimSocket { stream })
    }

    fn adopt_file(&mut self, disk: usize) -> Result<FileSlot, usize> {
        let files = &mut self.world.borrow_mut().ports[self.shard].files;
        let slot = files.iter().position(Option::is_none).unwrap_or_else(|| {
            files.push(None);
            files.len() - 1
        });
        files[slot] = Some(disk);
        Ok(FileSlot(slot as u32))
    }

    fn release_file(&mut self, file: FileSlot) -> Option<usize> {
        let mut world = self.world.borrow_mut();
        let port = &mut world.ports[self.shard];
        if port.ops.values().any(|pending| pending.file() == Some(file)) {
            return None;
        }
        port.files.get_mut(file.0 as usize)?.take()
    }

    fn adopt_listener(&mut self, (): ()) -> Result<ListenerSlot, ()> {
        Ok(ListenerSlot(0))
    }

    fn release_listener(&mut self, _: ListenerSlot) -> Option<()> {
        Some(())
    }
}

impl World {
    fn place(&mut self, shard: usize, stream: usize) -> u32 {
        let sockets = &mut self.ports[shard].sockets;
        let slot = sockets.iter().position(Option::is_none).unwrap_or_else(|| {
            sockets.push(None);
            sockets.len() - 1
        });
        sockets[slot] = Some(stream);
        self.streams[stream].at = Some((shard, slot as u32));
        slot as u32
    }

    /// Runs one event that is not an initiator's.
    pub(crate) fn happen(&mut self, event: Event) {
        match event {
            Event::Apply { shard, op } => self.apply(shard, op),
            Event::Complete { shard, op } => {
                let outcome = self.ports[shard].ops.get_mut(&op).and_then(|pending| pending.outcome.take());
                if let Some(outcome) = outcome {
                    self.finish(shard, op, outcome);
                }
            }
            Event::Deliver { shard, op } => self.deliver(shard, op),
            Event::Connect { stream } => self.accept(stream),
            Event::Cut { stream } => self.cut(stream),
            Event::Initiator { .. } | Event::Tick { .. } | Event::Keep | Event::Reload => {}
        }
    }

    fn accept(&mut self, stream: usize) {
        if self.ports.is_empty() {
            self.streams[stream].reset = true;
            return;
        }
        let found = self.ports[0].ops.iter().find(|(_, p)| matches!(p.op, Some(Op::Accept { .. })));
        let Some(id) = found.map(|(id, _)| *id) else {
            self.ports[0].backlog.push_back(stream);
            return;
        };
        let more = !self.rng.chance(self.faults.recv_rearm);
        let socket = SocketSlot(self.place(0, stream));
        let outcome = Outcome::Accepted { socket, peer: Self::peer(stream), more };
        if more {
            let token = self.ports[0].ops[&id].token;
            self.ports[0].inbox.push(Completion { token, outcome });
        } else {
            self.finish(0, id, outcome);
        }
    }

    fn deliver(&mut self, shard: usize, op: u64) {
        let Some(pending) = self.ports[shard].ops.get_mut(&op) else { return };
        pending.scheduled = false;
        let (token, Some(slot)) = (pending.token, pending.socket) else { return };
        let Some(stream) = self.ports[shard].sockets.get(slot as usize).copied().flatten() else { return };
        let end = |error: Option<i32>| Outcome::RecvEnded { error: error.map(Errno) };
        let state = &self.streams[stream];
        if state.reset {
            self.finish(shard, op, end(Some(ECONNRESET)));
            return;
        }
        if state.target_done || state.to_target.is_empty() {
            if state.target_done || state.initiator_done {
                self.finish(shard, op, end(None));
            }
            return;
        }
        let free = self.ports[shard].rx.iter().position(Option::is_none);
        let Some(id) = free.filter(|_| !self.rng.chance(self.faults.starved_recv)) else {
            self.finish(shard, op, end(Some(ENOBUFS)));
            return;
        };
        let max = self.streams[stream].to_target.len().min(RX_BYTES) as u64;
        let len = if self.rng.chance(600) { max } else { self.rng.between(1, max) };
        let bytes: Vec<u8> = self.streams[stream].to_target.drain(..len as usize).collect();
        self.ports[shard].rx[id] = Some(bytes);
        let more = !self.rng.chance(self.faults.recv_rearm);
        let outcome = Outcome::Received { buf: RxBuf { id: id as u16, len: len as u32 }, more };
        if more {
            self.ports[shard].inbox.push(Completion { token, outcome });
            self.stir_recv(shard, slot);
        } else {
            self.finish(shard, op, outcome);
        }
    }

    /// The operation takes effect; its completion comes later.
    fn apply(&mut self, shard: usize, id: u64) {
        let Some(pending) = self.ports[shard].ops.get_mut(&id) else { return };
        let Some(op) = pending.op.take() else { return };
        let mark = pending.mark();
        let is_file_op = matches!(op, Op::Read { .. } | Op::Fill { .. } | Op::Write { .. } | Op::Sync { .. });
        let done = |result| Outcome::Done { result };
        let outcome = match op {
            Op::Send { socket, parts } => match self.send(shard, socket, &parts) {
                Some(result) => Outcome::Sent { result, parts },
                None => {
                    // No room: the initiator's next read brings it here again.
                    if let Some(pending) = self.ports[shard].ops.get_mut(&id) {
                        pending.op = Some(Op::Send { socket, parts });
                        pending.scheduled = true;
                    }
                    return;
                }
            },
            Op::Shutdown { .. } => {
                self.end_target_side(mark as usize);
                done(Ok(()))
            }
            Op::Close { socket } => done(self.close(shard, id, socket)),
            Op::Read { file, offset, mut buf, start, len } => {
                let range = start as usize..(start + len) as usize;
                let result = self.read(shard, file, offset.0, &mut buf.as_mut_slice()[range]);
                Outcome::Read { result, buf }
            }
            Op::Fill { file, offset, mut fills } => {
                let result = self.fill(shard, file, offset.0, &mut fills);
                Outcome::Filled { result, fills }
            }
            Op::Write { file, offset, part } => {
                let bytes = &part.buf.as_slice()[part.start as usize..(part.start + part.len) as usize];
                let result = self.write(shard, file, offset.0, bytes);
                Outcome::Wrote { result, part }
            }
            Op::PunchHole { .. } if self.faults.no_punch => done(Err(Errno(EOPNOTSUPP))),
            Op::PunchHole { file, offset, len } => {
                done(self.change(shard, file, Change::Zero { offset: offset.0, len }))
            }
            Op::SetLen { file, len } => done(self.change(shard, file, Change::Len(len))),
            Op::Sync { file } => done(self.sync(shard, file, mark)),
            Op::Cancel { token } => done(self.cancel(shard, token)),
            Op::Accept { .. } | Op::Recv { .. } | Op::AwaitWake => return,
        };
        if let Some(pending) = self.ports[shard].ops.get_mut(&id) {
            pending.outcome = Some(outcome);
        }
        let delay = self.delay();
        if self.faults.sabotage != Sabotage::SwallowedCompletion || !is_file_op || !self.rng.chance(30) {
            self.at(delay, Event::Complete { shard, op: id });
        }
    }

    /// `None`: the initiator must read first.
    fn send(&mut self, shard: usize, socket: SocketSlot, parts: &[Part]) -> Option<Result<u32, Errno>> {
        if parts.is_empty() || parts.len() > goldrush::limits::SEND_PARTS_MAX {
            self.violation(format!("a send of {} parts", parts.len()));
        }
        let stream = self.ports[shard].sockets[socket.0 as usize]?;
        let state = &self.streams[stream];
        if state.reset {
            return Some(Err(Errno(ECONNRESET)));
        }
        if state.target_done {
            return Some(Err(Errno(EPIPE)));
        }
        let room = state.window.saturating_sub(state.to_initiator.len());
        if room == 0 {
            return None;
        }
        let total: usize = parts.iter().map(|part| part.len as usize).sum();
        let mut take = total.min(room);
        if self.rng.chance(self.faults.short_send) {
            take = self.rng.between(1, take as u64) as usize;
        }
        let mut left = take;
        for part in parts {
            let len = left.min(part.len as usize);
            let bytes = &part.buf.as_slice()[part.start as usize..part.start as usize + len];
            self.streams[stream].to_initiator.extend(bytes);
            left -= len;
        }
        if self.faults.sabotage == Sabotage::ChangedByte
            && self.rng.chance(30)
            && let Some(byte) = self.streams[stream].to_initiator.back_mut()
        {
            *byte ^= 0x10;
        }
        self.tell_initiator(stream);
        Some(Ok(take as u32))
    }

    fn end_target_side(&mut self, stream: usize) {
        let Some(state) = self.streams.get_mut(stream) else { return };
        state.target_done = true;
        if let Some((shard, slot)) = state.at {
            self.stir_recv(shard, slot);
        }
        self.stir_send(stream);
        self.tell_initiator(stream);
    }

    fn close(&mut self, shard: usize, op: u64, socket: SocketSlot) -> Result<(), Errno> {
        let slot = socket.0 as usize;
        let stream = self.ports[shard].sockets.get(slot).copied().flatten().ok_or(Errno(ENOENT))?;
        self.end_target_side(stream);
        self.ports[shard].sockets[slot] = None;
        self.streams[stream].at = None;
        // From here on a new connection may get the slot.
        if let Some(pending) = self.ports[shard].ops.get_mut(&op) {
            pending.socket = None;
        }
        Ok(())
    }

    fn cancel(&mut self, shard: usize, token: OpToken) -> Result<(), Errno> {
        let found = self.ports[shard].ops.iter().find(|(_, pending)| {
            pending.token == token && matches!(pending.op, Some(Op::Recv { .. } | Op::Accept { .. }))
        });
        let (id, pending) = found.ok_or(Errno(ENOENT))?;
        let (id, error) = (*id, Errno(ECANCELED));
        let outcome = if pending.is_recv() {
            Outcome::RecvEnded { error: Some(error) }
        } else {
            Outcome::AcceptEnded { error }
        };
        self.finish(shard, id, outcome);
        Ok(())
    }

    pub(crate) fn disk(&self, shard: usize, file: FileSlot) -> usize {
        self.ports[shard].files[file.0 as usize].expect("an operation on a file that was released")
    }

    /// One read into several places: it ends where one of them would end short or fail.
    fn fill(&mut self, shard: usize, file: FileSlot, offset: u64, fills: &mut [Fill]) -> Result<u32, Errno> {
        if fills.is_empty() || fills.len() > goldrush::limits::FILL_PARTS_MAX {
            self.violation(format!("a read into {} places", fills.len()));
        }
        let mut total = 0;
        for fill in fills {
            let wanted = fill.left();
            match self.read(shard, file, offset + u64::from(total), fill.rest_mut()) {
                Err(error) if total == 0 => return Err(error),
                Err(_) => break,
                Ok(moved) => {
                    total += moved;
                    if moved < wanted {
                        break;
                    }
                }
            }
        }
        Ok(total)
    }

    fn read(&mut self, shard: usize, file: FileSlot, offset: u64, out: &mut [u8]) -> Result<u32, Errno> {
        let disk = self.disk(shard, file);
        if self.rng.chance(self.faults.disk_error) {
            return Err(Errno(EIO));
        }
        let there = self.disks[disk].visible.len().saturating_sub(offset).min(out.len() as u64);
        let mut len = there;
        if there > 1 && self.rng.chance(self.faults.short_file_op) {
            len = self.shorter(there);
        }
        self.disks[disk].visible.read(offset, &mut out[..len as usize]);
        Ok(len as u32)
    }

    fn write(&mut self, shard: usize, file: FileSlot, offset: u64, bytes: &[u8]) -> Result<u32, Errno> {
        let mut len = bytes.len() as u64;
        if len > 1 && self.rng.chance(self.faults.short_file_op) {
            len = self.shorter(len);
        }
        let fails = self.rng.chance(self.faults.disk_error);
        if fails {
            // What failed may have been written in part.
            len = self.rng.below(len) / 512 * 512;
        }
        if len == 0 {
            return Err(Errno(EIO));
        }
        self.change(shard, file, Change::Write { offset, bytes: bytes[..len as usize].to_vec() })?;
        if fails { Err(Errno(EIO)) } else { Ok(len as u32) }
    }

    /// File systems come up short by whole sectors.
    fn shorter(&mut self, len: u64) -> u64 {
        let sectors = len / 512;
        if sectors > 1 { self.rng.between(1, sectors) * 512 } else { len }
    }

    fn change(&mut self, shard: usize, file: FileSlot, change: Change) -> Result<(), Errno> {
        let disk = self.disk(shard, file);
        if self.disks[disk].read_only {
            self.violation(format!("shard {shard} changes disk {disk}, a parent: {change:.0?}"));
            return Err(Errno(EIO));
        }
        let grows = match &change {
            Change::Write { offset, bytes } => offset + bytes.len() as u64 > self.disks[disk].visible.len(),
            Change::Len(len) => *len > self.disks[disk].visible.len(),
            Change::Zero { .. } => false,
        };
        if self.rng.chance(if grows { self.faults.disk_full * 4 } else { self.faults.disk_full }) {
            return Err(Errno(ENOSPC));
        }
        if self.faults.sabotage == Sabotage::LostWrite && self.rng.chance(30) {
            return Ok(());
        }
        self.disks[disk].change(change);
        Ok(())
    }

    fn sync(&mut self, shard: usize, file: FileSlot, mark: u64) -> Result<(), Errno> {
        let disk = self.disk(shard, file);
        if self.rng.chance(self.faults.sync_error) {
            self.disks[disk].sync_failed(mark, &mut self.rng);
            return Err(Errno(EIO));
        }
        if self.faults.sabotage != Sabotage::LyingSync {
            self.disks[disk].sync(mark);
        }
        Ok(())
    }
}
