//! What a loaded session sends: commands while slots, window and room allow, and the data that writes owe.
//!
//! Knows immediate, unsolicited and asked-for data. Does not know replies.

use super::connection::{Again, Connection, Outgoing, SLOT_BITS, Turn};
use super::verify::Model;
use crate::ring::Port;
use crate::scsi::{self, SECTOR};
use crate::wire::{BHS, DataOut, NO_TAG, NopOut, ScsiCommand};

impl Connection {
    /// Fills the port's send with owed data first, then with at most `budget` new commands; returns how many.
    pub(super) fn issue(&mut self, port: &mut Port, turn: &mut Turn<'_>, budget: u64) -> u64 {
        let mut issued = 0;
        while self.pay(port, turn) {
            let retry = !self.again.is_empty();
            let open = self.numbers.window_is_open();
            let immediate = self.agreed.immediate(self.workload.size) as usize;
            if (issued == budget && !retry) || !open || self.free.is_empty() || !room(port, turn, immediate) {
                break;
            }
            let started = match &mut self.pace {
                _ if retry => turn.now,
                Some(pace) if pace.due > turn.now => break,
                Some(pace) => {
                    let due = pace.due;
                    pace.due += pace.interval;
                    due
                }
                None => turn.now,
            };
            let next = self.again.pop_front().unwrap_or_else(|| {
                issued += 1;
                let (write, lba) = self.addresses.next();
                Again { write, lba, started }
            });
            self.command(port, turn, next);
        }
        issued
    }

    fn command(&mut self, port: &mut Port, turn: &mut Turn<'_>, request: Again) {
        let Again { write, lba, .. } = request;
        let Some(slot) = self.free.pop() else { return };
        let size = self.workload.size;
        // The largest generation is left out, so that no tag is the reserved one.
        self.generation = (self.generation + 1) % ((1 << (32 - SLOT_BITS)) - 1);
        let tag = self.generation << SLOT_BITS | slot as u32;
        let immediate = if write { self.agreed.immediate(size) } else { 0 };
        let unsolicited = if write { self.agreed.unsolicited(size) } else { 0 };
        let command = ScsiCommand {
            last: unsolicited == immediate,
            read: !write,
            write,
            data_len: immediate,
            lun: self.lun,
            tag,
            expected_len: size,
            cmd_sn: self.numbers.cmd_sn,
            exp_stat_sn: self.numbers.exp_stat_sn,
            cdb: scsi::transfer(write, lba, (u64::from(size) / SECTOR) as u32),
        };
        self.numbers.cmd_sn = self.numbers.cmd_sn.wrapping_add(1);
        port.tx.push(&command.encode());
        if write {
            if let Some(model) = turn.model.as_deref_mut() {
                model.write_started(lba, u64::from(size) / SECTOR);
            }
            push_data(port, turn.model.as_deref(), lba, 0, immediate);
        }
        self.start(slot, tag, turn, request);
        if unsolicited > immediate {
            let (offset, end) = (immediate, unsolicited);
            self.outgoing.push_back(Outgoing::Data { slot, transfer_tag: NO_TAG, offset, end, data_sn: 0 });
        }
    }

    /// Sends owed data and pongs; false when some are left for want of room.
    fn pay(&mut self, port: &mut Port, turn: &mut Turn<'_>) -> bool {
        while let Some(owed) = self.outgoing.front().copied() {
            match owed {
                Outgoing::Pong { lun, transfer_tag } => {
                    if !room(port, turn, 0) {
                        return false;
                    }
                    let (cmd_sn, exp_stat_sn) = (self.numbers.cmd_sn, self.numbers.exp_stat_sn);
                    let pong = NopOut { data_len: 0, lun, tag: NO_TAG, transfer_tag, cmd_sn, exp_stat_sn };
                    port.tx.push(&pong.encode());
                    self.outgoing.pop_front();
                }
                Outgoing::Data { slot, transfer_tag, offset, end, data_sn } => {
                    let len = (end - offset).min(self.agreed.max_send_segment);
                    if !room(port, turn, len as usize) {
                        return false;
                    }
                    self.outgoing.pop_front();
                    let Some(task) = self.tasks[slot] else { continue };
                    let last = offset + len == end;
                    let pdu = DataOut {
                        last,
                        data_len: len,
                        lun: self.lun,
                        tag: task.tag,
                        transfer_tag,
                        exp_stat_sn: self.numbers.exp_stat_sn,
                        data_sn,
                        offset,
                    };
                    port.tx.push(&pdu.encode());
                    push_data(port, turn.model.as_deref(), task.lba, offset, len);
                    if !last {
                        let (offset, data_sn) = (offset + len, data_sn + 1);
                        self.outgoing.push_front(Outgoing::Data { slot, transfer_tag, offset, end, data_sn });
                    }
                }
            }
        }
        true
    }
}

fn room(port: &Port, turn: &Turn<'_>, data: usize) -> bool {
    if turn.model.is_some() { port.tx.has_room(BHS + data, 0) } else { port.tx.has_room(BHS, data) }
}

/// Verified data tells its address; other data is whatever lies in the payload.
fn push_data(port: &mut Port, model: Option<&Model>, lba: u64, offset: u32, len: u32) {
    match (model, len) {
        (_, 0) => {}
        (Some(model), _) => {
            let at = lba * SECTOR + u64::from(offset);
            port.tx.push_with(len as usize, |bytes| model.written_bytes(at, bytes));
        }
        (None, _) => port.tx.push_shared(offset as usize, len as usize),
    }
}
