//! One loaded session: replies in, commands out, with as little work per request as the protocol allows.
//!
//! Knows tasks, numbering, and two ways to read replies: parsing every header, or (for small uniform reads)
//! counting bytes that the kernel discards and checking a sampled header. Does not know sockets or rings.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::stats::Stats;
use super::verify::Model;
use super::workload::{Addresses, Workload};
use crate::fail::{Failure, failure};
use crate::initiator::{Negotiated, Numbers};
use crate::ring::Port;
use crate::scsi::{self, SECTOR, Sense};
use crate::wire::{BHS, DataIn, Header, NO_TAG, R2t, Reply, ahs_length, data_length, opcode, padded};

/// A payload of at least this is discarded by the kernel instead of being copied.
const DISCARD_LEAST: usize = 16 << 10;
const DIGEST_BYTES: usize = 4;
/// One header is checked for every so many counted replies.
const SAMPLE_EVERY: usize = 64;
pub(super) const SLOT_BITS: u32 = 10;

/// What the caller lends for one turn.
pub(super) struct Turn<'a> {
    pub(super) now: Instant,
    /// The time is not up yet: completions count.
    pub(super) recording: bool,
    pub(super) stats: &'a mut Stats,
    pub(super) model: Option<&'a mut Model>,
}

/// Why a session cannot go on.
#[derive(Debug)]
pub(super) enum Trouble {
    /// A counted reply did not have the learned shape: open the session again and parse.
    Deviation,
    Fatal(Failure),
}

/// When requests of an open loop are due, whatever became of those before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    pub(super) due: Instant,
    pub(super) interval: Duration,
}

/// A request that was answered with a unit attention or BUSY; it keeps its start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Again {
    pub(super) write: bool,
    pub(super) lba: u64,
    pub(super) started: Instant,
}

/// What to ask the kernel for next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Want {
    Receive(usize),
    Discard(usize),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Task {
    pub(super) tag: u32,
    pub(super) started: Instant,
    pub(super) lba: u64,
    pub(super) write: bool,
    received: u32,
    /// The model's time when the command went out.
    since: u32,
}

/// The payload of a Data-In that is still coming.
#[derive(Debug, Clone, Copy)]
struct Incoming {
    slot: usize,
    at: u64,
    left: usize,
    padding: usize,
    end: Option<(u8, i64)>,
}

/// Bytes of the reply that is coming, and replies since the last sample.
#[derive(Debug, Clone, Copy)]
struct Counting {
    position: usize,
    since_sample: usize,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Outgoing {
    Data { slot: usize, transfer_tag: u32, offset: u32, end: u32, data_sn: u32 },
    Pong { lun: u64, transfer_tag: u32 },
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) agreed: Negotiated,
    pub(super) numbers: Numbers,
    pub(super) lun: u64,
    pub(super) workload: Workload,
    pub(super) addresses: Addresses,
    pub(super) tasks: Vec<Option<Task>>,
    pub(super) free: Vec<usize>,
    /// Slots in the order in which their commands went out.
    pub(super) order: VecDeque<usize>,
    pub(super) outgoing: VecDeque<Outgoing>,
    pub(super) again: VecDeque<Again>,
    pub(super) pace: Option<Pace>,
    pub(super) generation: u32,
    incoming: Option<Incoming>,
    counting: Option<Counting>,
    /// Replies of one and the same shape in a row; counting starts when they are enough.
    uniform: usize,
    may_count: bool,
    verifies: bool,
}

impl Connection {
    pub(super) fn new(
        (agreed, numbers): (Negotiated, Numbers),
        lun: u16,
        workload: Workload,
        addresses: Addresses,
        verifies: bool,
        may_count: bool,
    ) -> Connection {
        let small = (workload.size as usize) < DISCARD_LEAST && workload.size <= agreed.max_recv_segment;
        Connection {
            agreed,
            numbers,
            lun: scsi::lun_field(lun),
            workload,
            addresses,
            tasks: vec![None; workload.depth],
            free: (0..workload.depth).rev().collect(),
            order: VecDeque::with_capacity(workload.depth),
            outgoing: VecDeque::new(),
            again: VecDeque::new(),
            pace: None,
            generation: 0,
            incoming: None,
            counting: None,
            uniform: 0,
            may_count: may_count && !verifies && small && workload.only_reads() && workload.depth >= 8,
            verifies,
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.order.len()
    }

    pub(super) fn is_counting(&self) -> bool {
        self.counting.is_some()
    }

    /// Between two runs nothing is in flight, and what comes then (a ping) has no learned shape.
    pub(super) fn rest(&mut self) {
        self.counting = None;
        self.uniform = 0;
    }

    fn reply_len(&self) -> usize {
        BHS + self.workload.size as usize + self.trailer(self.workload.size as usize)
    }

    /// What follows a data segment of `len` bytes: padding, and the digest, which is received and not looked at.
    fn trailer(&self, len: usize) -> usize {
        padded(len) - len + if self.agreed.data_digest && len > 0 { DIGEST_BYTES } else { 0 }
    }

    /// What the next receive should be. Asks only when none is under way.
    pub(super) fn want(&mut self, port: &Port) -> Want {
        let unread = port.rx.unread();
        if self.counting.is_none() && self.may_count && self.uniform >= 2 * self.workload.depth {
            if unread.is_empty() && self.incoming.is_none() {
                self.counting = Some(Counting { position: 0, since_sample: 0 });
            } else {
                return Want::Receive(self.missing(unread));
            }
        }
        if let Some(counting) = self.counting {
            let due = counting.since_sample >= SAMPLE_EVERY || self.in_flight() == 0;
            return if !unread.is_empty() || (counting.position == 0 && due) {
                Want::Receive(BHS - unread.len())
            } else {
                Want::Discard(self.in_flight() * self.reply_len() - counting.position)
            };
        }
        if self.verifies || (self.workload.size as usize) < DISCARD_LEAST {
            return Want::Receive(usize::MAX);
        }
        match self.incoming {
            Some(incoming) if incoming.left >= DISCARD_LEAST => Want::Discard(incoming.left),
            _ => Want::Receive(self.missing(unread)),
        }
    }

    /// Bytes up to the next point at which something can be understood.
    fn missing(&self, unread: &[u8]) -> usize {
        match (self.incoming, unread.first_chunk::<BHS>()) {
            (Some(incoming), _) => incoming.left + incoming.padding,
            (None, None) => BHS - unread.len(),
            (None, Some(header)) => {
                let len = data_length(header);
                BHS + len + self.trailer(len) - unread.len()
            }
        }
    }

    pub(super) fn discarded(&mut self, bytes: usize, turn: &mut Turn<'_>) -> Result<(), Trouble> {
        if let Some(mut counting) = self.counting {
            counting.position += bytes;
            while counting.position >= self.reply_len() {
                counting.position -= self.reply_len();
                counting.since_sample += 1;
                let slot = self.order.front().copied().ok_or(Trouble::Deviation)?;
                self.numbers.exp_stat_sn = self.numbers.exp_stat_sn.wrapping_add(1);
                self.numbers.max_cmd_sn = self.numbers.max_cmd_sn.wrapping_add(1);
                self.end(slot, turn);
            }
            self.counting = Some(counting);
        } else if let Some(mut incoming) = self.incoming {
            incoming.left -= bytes;
            self.incoming = Some(incoming);
            if incoming.left + incoming.padding == 0 {
                self.end_payload(incoming, turn)?;
            }
        }
        Ok(())
    }

    pub(super) fn received(&mut self, port: &mut Port, turn: &mut Turn<'_>) -> Result<(), Trouble> {
        if self.counting.is_some() {
            return self.sample(port);
        }
        loop {
            if let Some(mut incoming) = self.incoming {
                let unread = port.rx.unread();
                if unread.is_empty() {
                    return Ok(());
                }
                let bytes = incoming.left.min(unread.len());
                if bytes > 0 {
                    self.check(&incoming, &unread[..bytes], turn);
                }
                let padding = incoming.padding.min(unread.len() - bytes);
                port.rx.consume(bytes + padding);
                incoming.at += bytes as u64;
                incoming.left -= bytes;
                incoming.padding -= padding;
                self.incoming = Some(incoming);
                if incoming.left + incoming.padding > 0 {
                    return Ok(());
                }
                self.end_payload(incoming, turn)?;
            }
            let Some(header) = port.rx.unread().first_chunk::<BHS>().copied() else { return Ok(()) };
            if ahs_length(&header) != 0 {
                return Err(fatal(failure!(
                    "a reply has additional header segments, which no reply may: look at the target"
                )));
            }
            if header[0] & 0x3f == opcode::DATA_IN {
                port.rx.consume(BHS);
                self.start_payload(&DataIn::decode(&header), turn)?;
                continue;
            }
            let len = data_length(&header);
            let whole = BHS + len + self.trailer(len);
            if port.rx.unread().len() < whole {
                return Ok(());
            }
            let sense = Sense::parse(&port.rx.unread()[BHS..BHS + len]);
            port.rx.consume(whole);
            self.uniform = 0;
            self.other(&header, sense, turn)?;
        }
    }

    /// In counting mode a header must be exactly the next reply's: StatSN proves the place, the tag the order.
    fn sample(&mut self, port: &mut Port) -> Result<(), Trouble> {
        let Some(header) = port.rx.unread().first_chunk::<BHS>().copied() else { return Ok(()) };
        let Reply::DataIn(data) = Reply::decode(&header) else { return Err(Trouble::Deviation) };
        let whole = data.data_len == self.workload.size && data.offset == 0 && data.residual == 0;
        if !whole || data.status != Some((scsi::GOOD, self.numbers.exp_stat_sn)) {
            return Err(Trouble::Deviation);
        }
        if self.slot(data.tag) != self.order.front().copied() {
            return Err(Trouble::Deviation);
        }
        self.numbers.max_cmd_sn = data.window.max_cmd_sn;
        port.rx.consume(BHS);
        self.counting = Some(Counting { position: BHS, since_sample: 0 });
        Ok(())
    }

    fn slot(&self, tag: u32) -> Option<usize> {
        let slot = (tag & ((1 << SLOT_BITS) - 1)) as usize;
        self.tasks.get(slot).copied().flatten().is_some_and(|task| task.tag == tag).then_some(slot)
    }

    fn known(&self, tag: u32) -> Result<usize, Trouble> {
        self.slot(tag).ok_or_else(|| {
            fatal(failure!("a reply names task {tag:#x}, which is not under way: look at the target"))
        })
    }

    fn count(&mut self, stat_sn: u32) -> Result<(), Trouble> {
        let counted = self.numbers.count(stat_sn);
        counted.map_err(|wrong| fatal(failure!("{wrong} came from the target: look at its log")))
    }

    fn start_payload(&mut self, data: &DataIn, turn: &mut Turn<'_>) -> Result<(), Trouble> {
        self.numbers.widen(data.window);
        let slot = self.known(data.tag)?;
        let size = self.workload.size;
        let Some(task) = &mut self.tasks[slot] else { return Ok(()) };
        let end = u64::from(data.offset) + u64::from(data.data_len);
        if task.write || data.offset != task.received || end > u64::from(size) {
            return Err(fatal(failure!(
                "Data-In at {} with {} bytes does not follow the {} bytes that came before: look at the target",
                data.offset,
                data.data_len,
                task.received
            )));
        }
        task.received += data.data_len;
        let left = data.data_len as usize;
        let at = task.lba * SECTOR + u64::from(data.offset);
        let shaped = data.data_len == size && data.status.is_some_and(|(status, _)| status == scsi::GOOD);
        self.uniform = if shaped && data.residual == 0 { self.uniform + 1 } else { 0 };
        let mut end = None;
        if let Some((status, stat_sn)) = data.status {
            self.count(stat_sn)?;
            end = Some((status, data.residual));
        }
        let incoming = Incoming { slot, at, left, padding: self.trailer(left), end };
        if left == 0 {
            return self.end_payload(incoming, turn);
        }
        self.incoming = Some(incoming);
        Ok(())
    }

    fn check(&self, incoming: &Incoming, bytes: &[u8], turn: &mut Turn<'_>) {
        let Some(model) = turn.model.as_deref() else { return };
        let since = self.tasks[incoming.slot].map_or(0, |task| task.since);
        if let Some(lba) = model.first_difference(incoming.at, bytes, since) {
            turn.stats.mismatch(|| {
                format!("sector {lba} does not hold what it must: compare the image with the target's answer")
            });
        }
    }

    fn end_payload(&mut self, incoming: Incoming, turn: &mut Turn<'_>) -> Result<(), Trouble> {
        self.incoming = None;
        match incoming.end {
            Some((status, _)) => self.finish(incoming.slot, status, Sense::default(), turn),
            None => Ok(()),
        }
    }

    fn other(&mut self, header: &Header, sense: Sense, turn: &mut Turn<'_>) -> Result<(), Trouble> {
        match Reply::decode(header) {
            Reply::Scsi(reply) => {
                self.numbers.widen(reply.window);
                self.count(reply.stat_sn)?;
                let slot = self.known(reply.tag)?;
                if reply.response != 0 {
                    turn.stats.error(|| {
                        format!("a command ended with response {}: look at the target", reply.response)
                    });
                }
                self.finish(slot, reply.status, sense, turn)
            }
            Reply::R2t(r2t) => self.r2t(&r2t),
            Reply::NopIn(nop) => {
                self.numbers.widen(nop.window);
                if nop.transfer_tag != NO_TAG {
                    self.outgoing.push_back(Outgoing::Pong { lun: nop.lun, transfer_tag: nop.transfer_tag });
                }
                Ok(())
            }
            Reply::Async(message) => Err(fatal(failure!(
                "the target announced event {} and ends the session: run again",
                message.event
            ))),
            Reply::Reject(reject) => Err(fatal(failure!(
                "the target rejected a PDU for reason {:#04x}: look at its log",
                reject.reason
            ))),
            _ => Err(fatal(failure!(
                "opcode {:#04x} came, which nothing asked for: look at the target",
                header[0]
            ))),
        }
    }

    fn r2t(&mut self, r2t: &R2t) -> Result<(), Trouble> {
        self.numbers.widen(r2t.window);
        let slot = self.known(r2t.tag)?;
        let end = u64::from(r2t.offset) + u64::from(r2t.len);
        if end > u64::from(self.workload.size) || r2t.len == 0 || r2t.len > self.agreed.max_burst {
            return Err(fatal(failure!(
                "an R2T asks for {} bytes at {}: it breaks the agreed sizes",
                r2t.len,
                r2t.offset
            )));
        }
        let (transfer_tag, offset) = (r2t.transfer_tag, r2t.offset);
        self.outgoing.push_back(Outgoing::Data {
            slot,
            transfer_tag,
            offset,
            end: offset + r2t.len,
            data_sn: 0,
        });
        Ok(())
    }

    fn finish(&mut self, slot: usize, status: u8, sense: Sense, turn: &mut Turn<'_>) -> Result<(), Trouble> {
        let Some(task) = self.tasks[slot] else { return Ok(()) };
        let attention = status == scsi::CHECK_CONDITION && sense.is_unit_attention();
        if attention || matches!(status, scsi::BUSY | scsi::TASK_SET_FULL) {
            turn.stats.retries += 1;
            let Task { write, lba, started, .. } = task;
            self.again.push_back(Again { write, lba, started });
            self.release(slot);
            return Ok(());
        }
        let short = !task.write && task.received != self.workload.size;
        if status != scsi::GOOD || short {
            turn.stats.error(|| {
                format!(
                    "a {} of {} bytes at sector {} ended with status {status:#04x}, {sense}, after {} bytes: look at the target",
                    if task.write { "write" } else { "read" },
                    self.workload.size,
                    task.lba,
                    task.received
                )
            });
            self.release(slot);
            return Ok(());
        }
        self.end(slot, turn);
        Ok(())
    }

    /// A task ended well.
    fn end(&mut self, slot: usize, turn: &mut Turn<'_>) {
        let Some(task) = self.tasks[slot] else { return };
        turn.stats.ended += 1;
        if turn.recording {
            turn.stats.record(
                task.write,
                turn.now.saturating_duration_since(task.started),
                self.workload.size,
            );
        }
        if let (true, Some(model)) = (task.write, turn.model.as_deref_mut()) {
            model.write_ended(task.lba, u64::from(self.workload.size) / SECTOR);
        }
        self.release(slot);
    }

    fn release(&mut self, slot: usize) {
        self.tasks[slot] = None;
        self.free.push(slot);
        if let Some(at) = self.order.iter().position(|&other| other == slot) {
            self.order.remove(at);
        }
    }

    pub(super) fn start(&mut self, slot: usize, tag: u32, turn: &Turn<'_>, request: Again) {
        let since = turn.model.as_deref().map_or(0, Model::now);
        let Again { write, lba, started } = request;
        self.tasks[slot] = Some(Task { tag, started, lba, write, received: 0, since });
        self.order.push_back(slot);
    }

    /// Begins to send at a pace, or as fast as answers come.
    pub(super) fn set_pace(&mut self, pace: Option<Pace>) {
        self.pace = pace;
        // Counting needs a stream of answers that does not pause.
        self.may_count &= pace.is_none();
    }

    /// Tells of the requests that were due and not sent before `deadline`, and forgets the pace.
    pub(super) fn end_pace(&mut self, deadline: Instant, stats: &mut Stats) {
        let Some(mut pace) = self.pace.take() else { return };
        while pace.due < deadline {
            let (write, _) = self.addresses.next();
            stats.record_late(write, deadline - pace.due);
            pace.due += pace.interval;
        }
    }
}

fn fatal(failure: Failure) -> Trouble {
    Trouble::Fatal(failure)
}
