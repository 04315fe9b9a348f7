//! What a session sends: login requests, commands while slots and window allow, the data that writes owe, answers to pings.
//!
//! Knows immediate, unsolicited and asked-for data. Does not know replies.

use std::time::Instant;

use super::{Command, Content, Outgoing, PIECE_BYTES, SLOT_BITS, Session, State, Task, Way};
use crate::ring::Port;
use crate::wire::{BHS, DataOut, Logout, NO_TAG, NopOut, ScsiCommand, padded};

impl Session {
    /// Puts everything that is owed into the port's send; false when some is left for want of room.
    pub(crate) fn pay(&mut self, port: &mut Port, content: &mut impl Content) -> bool {
        while let Some((header, text)) = self.texts.front() {
            if !port.tx.has_room(BHS + padded(text.len()), 0) {
                return false;
            }
            port.tx.push(header);
            port.tx.push(text);
            port.tx.push(&[0; 3][..padded(text.len()) - text.len()]);
            self.texts.pop_front();
        }
        while let Some(owed) = self.outgoing.front().copied() {
            let (cmd_sn, exp_stat_sn) = (self.numbers.cmd_sn, self.numbers.exp_stat_sn);
            match owed {
                Outgoing::Pong { .. } | Outgoing::Logout if !port.tx.has_room(BHS, 0) => return false,
                Outgoing::Pong { lun, transfer_tag } => {
                    self.outgoing.pop_front();
                    let pong = NopOut { data_len: 0, lun, tag: NO_TAG, transfer_tag, cmd_sn, exp_stat_sn };
                    port.tx.push(&pong.encode());
                }
                Outgoing::Logout => {
                    self.outgoing.pop_front();
                    port.tx.push(&Logout { tag: NO_TAG - 1, cmd_sn, exp_stat_sn }.encode());
                }
                Outgoing::Data { slot, tag, transfer_tag, offset, end, data_sn } => {
                    let len = (end - offset).min(self.agreed.max_send_segment).min(PIECE_BYTES);
                    if !port.tx.has_room(BHS + len as usize, 0) {
                        return false;
                    }
                    self.outgoing.pop_front();
                    // The target may have ended the command before it had all data.
                    let Some(task) = self.tasks[slot].filter(|task| task.tag == tag) else { continue };
                    let last = offset + len == end;
                    let data_len = len;
                    let lun = self.lun;
                    let pdu =
                        DataOut { last, data_len, lun, tag, transfer_tag, exp_stat_sn, data_sn, offset };
                    port.tx.push(&pdu.encode());
                    port.tx.push_with(len as usize, |bytes| content.compose(task.command.id, offset, bytes));
                    if !last {
                        let (offset, data_sn) = (offset + len, data_sn + 1);
                        let rest = Outgoing::Data { slot, tag, transfer_tag, offset, end, data_sn };
                        self.outgoing.push_front(rest);
                    }
                }
            }
        }
        true
    }

    /// Whether a command of this kind could be sent now.
    pub(crate) fn can_start(&self, port: &Port, way: Way, len: u32) -> bool {
        let immediate = if way == Way::Out { self.immediate(len) as usize } else { 0 };
        matches!(self.state, State::Full)
            && self.outgoing.is_empty()
            && !self.free.is_empty()
            && self.numbers.window_is_open()
            && port.tx.has_room(BHS + immediate, 0)
    }

    fn immediate(&self, len: u32) -> u32 {
        self.agreed.immediate(len).min(PIECE_BYTES)
    }

    /// Sends a command; the caller asked `can_start` first.
    pub(crate) fn start(
        &mut self,
        port: &mut Port,
        command: Command,
        now: Instant,
        content: &mut impl Content,
    ) {
        let Some(slot) = self.free.pop() else { return };
        // The largest generation is left out, so that no tag is the reserved one.
        self.generation = (self.generation + 1) % ((1 << (32 - SLOT_BITS)) - 1);
        let tag = self.generation << SLOT_BITS | slot as u32;
        let Command { id, cdb, way, len } = command;
        let write = way == Way::Out;
        let immediate = if write { self.immediate(len) } else { 0 };
        let unsolicited = if write { self.agreed.unsolicited(len).max(immediate) } else { 0 };
        let pdu = ScsiCommand {
            last: unsolicited == immediate,
            read: !write && len > 0,
            write,
            data_len: immediate,
            lun: self.lun,
            tag,
            expected_len: len,
            cmd_sn: self.numbers.cmd_sn,
            exp_stat_sn: self.numbers.exp_stat_sn,
            cdb,
        };
        self.numbers.cmd_sn = self.numbers.cmd_sn.wrapping_add(1);
        port.tx.push(&pdu.encode());
        if immediate > 0 {
            port.tx.push_with(immediate as usize, |bytes| content.compose(id, 0, bytes));
        }
        self.tasks[slot] = Some(Task { command, tag, started: now, received: 0 });
        if unsolicited > immediate {
            let (offset, end, transfer_tag) = (immediate, unsolicited, NO_TAG);
            self.outgoing.push_back(Outgoing::Data { slot, tag, transfer_tag, offset, end, data_sn: 0 });
        }
    }
}
