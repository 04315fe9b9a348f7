//! One connection of the ceiling: requests in, reply headers and ranges of the memory out.
//!
//! Knows sequence numbers and how reads split and writes are asked for. Does not know sockets or rings, and
//! stores nothing: the bytes of a write leave the kernel and are dropped.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::logins::Terms;
use crate::fail::{Result, failure};
use crate::keys::Keys;
use crate::ring::Port;
use crate::scsi::{self, Cdb, SECTOR, op};
use crate::wire::{
    BHS, DataIn, DataOut, Header, LoginResponse, LogoutResponse, NO_TAG, NopIn, R2t, Request, ScsiCommand,
    ScsiResponse, TextResponse, Window, ahs_length, data_length, padded,
};

/// Commands an initiator may have under way.
const QUEUE: u32 = 256;
/// Text that a login or text request may carry.
const TEXT_MAX: usize = 64 << 10;

#[derive(Debug)]
pub(crate) struct Connection {
    memory: u64,
    terms: Terms,
    exp_cmd_sn: u32,
    stat_sn: u32,
    /// Bytes of a data segment that are still to be dropped.
    drop_bytes: usize,
    /// The write that goes on once those bytes are dropped.
    after_drop: Option<u32>,
    reading: Option<Reading>,
    writes: HashMap<u32, Writing>,
    blocked: bool,
    finished: bool,
}

/// A read of which some PDUs did not fit into the last send.
#[derive(Debug, Clone, Copy)]
struct Reading {
    tag: u32,
    at: u64,
    len: u32,
    sent: u32,
    data_sn: u32,
}

#[derive(Debug, Clone, Copy)]
struct Writing {
    lun: u64,
    len: u32,
    /// All bytes up to here came or were asked for.
    asked: u32,
    received: u32,
    r2t_sn: u32,
}

impl Connection {
    pub(crate) fn new(memory: u64, address: SocketAddr) -> Connection {
        Connection {
            memory,
            terms: Terms::new(address),
            exp_cmd_sn: 1,
            stat_sn: 1,
            drop_bytes: 0,
            after_drop: None,
            reading: None,
            writes: HashMap::new(),
            blocked: false,
            finished: false,
        }
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Nothing more is wanted from the peer until the send is done.
    pub(crate) fn waits_for_room(&self) -> bool {
        self.blocked
    }

    /// Answers as many requests as are whole and as find room.
    pub(crate) fn advance(&mut self, port: &mut Port) -> Result<()> {
        self.blocked = false;
        while !self.finished {
            if !self.continue_read(port) {
                self.blocked = true;
                break;
            }
            let unread = port.rx.unread();
            if self.drop_bytes > 0 && !unread.is_empty() {
                let bytes = self.drop_bytes.min(unread.len());
                port.rx.consume(bytes);
                self.drop_bytes -= bytes;
                continue;
            }
            if self.drop_bytes > 0 {
                break;
            }
            let header = unread.first_chunk::<BHS>().copied();
            if !port.tx.has_room(2048, 0) && (header.is_some() || self.after_drop.is_some()) {
                self.blocked = true;
                break;
            }
            if let Some(tag) = self.after_drop.take() {
                self.continue_write(port, tag);
                continue;
            }
            let Some(header) = header else { break };
            let takes_text = matches!(Request::decode(&header), Request::Login(_) | Request::Text(_));
            if takes_text {
                let whole = BHS + padded(data_length(&header));
                if whole > TEXT_MAX {
                    return Err(failure!("a login or text request carries too much text: send less"));
                }
                if unread.len() < whole {
                    break;
                }
                let keys = Keys::decode(&unread[BHS..BHS + data_length(&header)])?;
                port.rx.consume(whole);
                self.text(port, &header, &keys)?;
            } else {
                port.rx.consume(BHS);
                self.drop_bytes = ahs_length(&header) + padded(data_length(&header));
                self.request(port, &header)?;
            }
        }
        Ok(())
    }

    fn window(&self) -> Window {
        Window { exp_cmd_sn: self.exp_cmd_sn, max_cmd_sn: self.exp_cmd_sn.wrapping_add(QUEUE - 1) }
    }

    /// An immediate request takes no number of its own.
    fn count(&mut self, cmd_sn: u32, immediate: bool) {
        if !immediate {
            self.exp_cmd_sn = cmd_sn.wrapping_add(1);
        }
    }

    fn next_stat_sn(&mut self) -> u32 {
        let stat_sn = self.stat_sn;
        self.stat_sn = stat_sn.wrapping_add(1);
        stat_sn
    }

    fn text(&mut self, port: &mut Port, header: &Header, keys: &Keys) -> Result<()> {
        let (answer, text) = match Request::decode(header) {
            Request::Login(login) => {
                self.exp_cmd_sn = login.cmd_sn;
                let text = self.terms.answer(keys)?.encode();
                let reply = LoginResponse {
                    transit: login.transit,
                    more: false,
                    current: login.current,
                    next: if login.transit { login.next } else { 0 },
                    data_len: text.len() as u32,
                    isid: login.isid,
                    tsih: 1,
                    tag: login.tag,
                    stat_sn: self.next_stat_sn(),
                    window: self.window(),
                    class: 0,
                    detail: 0,
                };
                (reply.encode(), text)
            }
            Request::Text(request) => {
                self.count(request.cmd_sn, is_immediate(header));
                let text = self.terms.send_targets().encode();
                let reply = TextResponse {
                    more: false,
                    data_len: text.len() as u32,
                    tag: request.tag,
                    transfer_tag: NO_TAG,
                    stat_sn: self.next_stat_sn(),
                    window: self.window(),
                };
                (reply.encode(), text)
            }
            _ => return Ok(()),
        };
        port.tx.push(&answer);
        port.tx.push(&text);
        port.tx.push(&[0; 3][..padded(text.len()) - text.len()]);
        Ok(())
    }

    fn request(&mut self, port: &mut Port, header: &Header) -> Result<()> {
        match Request::decode(header) {
            Request::Command(command) => {
                self.count(command.cmd_sn, is_immediate(header));
                self.command(port, &command);
            }
            Request::DataOut(data) => self.data_out(&data)?,
            Request::NopOut(nop) if nop.tag != NO_TAG => {
                let (stat_sn, window) = (self.next_stat_sn(), self.window());
                let (lun, tag) = (nop.lun, nop.tag);
                port.tx
                    .push(&NopIn { data_len: 0, lun, tag, transfer_tag: NO_TAG, stat_sn, window }.encode());
            }
            Request::NopOut(_) => {}
            Request::Logout(logout) => {
                let (stat_sn, window) = (self.next_stat_sn(), self.window());
                port.tx.push(&LogoutResponse { response: 0, tag: logout.tag, stat_sn, window }.encode());
                self.finished = true;
            }
            _ => return Err(failure!("opcode {:#04x} is beyond the ceiling: use a real target", header[0])),
        }
        Ok(())
    }

    fn command(&mut self, port: &mut Port, command: &ScsiCommand) {
        match scsi::transfer_range(&command.cdb) {
            Some((lba, sectors)) => {
                let (at, len) = (lba.saturating_mul(SECTOR), u64::from(sectors) * SECTOR);
                if at.saturating_add(len) > self.memory || len != u64::from(command.expected_len) {
                    self.check_condition(port, command, [5, 0x21]);
                } else if command.read {
                    let len = command.expected_len;
                    self.reading = Some(Reading { tag: command.tag, at, len, sent: 0, data_sn: 0 });
                } else {
                    self.start_write(command);
                }
            }
            None => match small_answer(&command.cdb, self.memory / SECTOR) {
                Some(data) => self.small(port, command, &data),
                None => self.check_condition(port, command, [5, 0x20]),
            },
        }
    }

    /// Adds PDUs of the read under way; false when there was no room for all of them.
    fn continue_read(&mut self, port: &mut Port) -> bool {
        let Some(mut read) = self.reading else { return true };
        while read.sent < read.len {
            let burst_left = self.terms.max_burst - read.sent % self.terms.max_burst;
            let len = (read.len - read.sent).min(self.terms.segment).min(burst_left);
            if !port.tx.has_room(BHS, len as usize) {
                self.reading = Some(read);
                return false;
            }
            let ends = read.sent + len == read.len;
            let pdu = DataIn {
                last: ends || len == burst_left,
                status: ends.then(|| (scsi::GOOD, self.next_stat_sn())),
                data_len: len,
                tag: read.tag,
                window: self.window(),
                data_sn: read.data_sn,
                offset: read.sent,
                residual: 0,
            };
            port.tx.push(&pdu.encode());
            port.tx.push_shared((read.at + u64::from(read.sent)) as usize, len as usize);
            read.sent += len;
            read.data_sn += 1;
        }
        self.reading = None;
        true
    }

    fn start_write(&mut self, command: &ScsiCommand) {
        let unsolicited =
            if command.last { command.data_len } else { command.expected_len.min(self.terms.first_burst) };
        let write = Writing {
            lun: command.lun,
            len: command.expected_len,
            asked: unsolicited,
            received: command.data_len,
            r2t_sn: 0,
        };
        self.writes.insert(command.tag, write);
        self.after_drop = Some(command.tag);
    }

    fn data_out(&mut self, data: &DataOut) -> Result<()> {
        let write = self.writes.get_mut(&data.tag);
        let write = write
            .ok_or_else(|| failure!("data came for the unknown task {}: look at the client", data.tag))?;
        write.received += data.data_len;
        self.after_drop = Some(data.tag);
        Ok(())
    }

    /// Ends the write, or asks for its next burst once all that was asked for has come.
    fn continue_write(&mut self, port: &mut Port, tag: u32) {
        let Some(mut write) = self.writes.get(&tag).copied() else { return };
        if write.received >= write.len {
            self.writes.remove(&tag);
            let pdu = ScsiResponse {
                response: 0,
                status: scsi::GOOD,
                data_len: 0,
                tag,
                stat_sn: self.next_stat_sn(),
                window: self.window(),
                residual: 0,
            };
            port.tx.push(&pdu.encode());
        } else if write.received >= write.asked {
            let len = (write.len - write.asked).min(self.terms.max_burst);
            let pdu = R2t {
                lun: write.lun,
                tag,
                transfer_tag: tag,
                stat_sn: self.stat_sn,
                window: self.window(),
                r2t_sn: write.r2t_sn,
                offset: write.asked,
                len,
            };
            write.asked += len;
            write.r2t_sn += 1;
            self.writes.insert(tag, write);
            port.tx.push(&pdu.encode());
        }
    }

    fn small(&mut self, port: &mut Port, command: &ScsiCommand, data: &[u8]) {
        let len = data.len().min(command.expected_len as usize);
        let residual = i64::from(command.expected_len) - len as i64;
        let (stat_sn, window) = (self.next_stat_sn(), self.window());
        let (tag, data_len) = (command.tag, len as u32);
        if len == 0 {
            let pdu =
                ScsiResponse { response: 0, status: scsi::GOOD, data_len: 0, tag, stat_sn, window, residual };
            return port.tx.push(&pdu.encode());
        }
        let status = Some((scsi::GOOD, stat_sn));
        let pdu = DataIn { last: true, status, data_len, tag, window, data_sn: 0, offset: 0, residual };
        port.tx.push(&pdu.encode());
        port.tx.push(&data[..len]);
        port.tx.push(&[0; 3][..padded(len) - len]);
    }

    fn check_condition(&mut self, port: &mut Port, command: &ScsiCommand, [key, code]: [u8; 2]) {
        let mut sense = [0; 20];
        sense[1] = 18;
        (sense[2], sense[4], sense[9], sense[14]) = (0x70, key, 10, code);
        let pdu = ScsiResponse {
            response: 0,
            status: scsi::CHECK_CONDITION,
            data_len: sense.len() as u32,
            tag: command.tag,
            stat_sn: self.next_stat_sn(),
            window: self.window(),
            residual: i64::from(command.expected_len),
        };
        port.tx.push(&pdu.encode());
        port.tx.push(&sense);
    }
}

fn is_immediate(header: &Header) -> bool {
    header[0] & 0x40 != 0
}

/// The data of the commands that a load client needs besides reads and writes.
fn small_answer(cdb: &Cdb, sectors: u64) -> Option<Vec<u8>> {
    let last = sectors - 1;
    match cdb[0] {
        op::TEST_UNIT_READY | op::SYNCHRONIZE_CACHE_10 => Some(Vec::new()),
        op::INQUIRY if cdb[1] & 1 == 0 => {
            let mut data = vec![0, 0, 5, 2, 31, 0, 0, 2];
            data.extend(b"GOLDRUSHCEILING         0001");
            Some(data)
        }
        op::INQUIRY if cdb[2] == 0 => Some(vec![0, 0, 0, 1, 0]),
        op::READ_CAPACITY_10 => {
            let short = u32::try_from(last).unwrap_or(u32::MAX);
            Some([short.to_be_bytes(), (SECTOR as u32).to_be_bytes()].concat())
        }
        op::SERVICE_ACTION_IN_16 => {
            let mut data = last.to_be_bytes().to_vec();
            data.extend((SECTOR as u32).to_be_bytes());
            data.resize(32, 0);
            Some(data)
        }
        op::REPORT_LUNS => Some([&[0, 0, 0, 8][..], &[0; 12]].concat()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_lun_is_zero_and_the_capacity_is_the_memory() {
        assert_eq!(scsi::parse_luns(&small_answer(&scsi::report_luns(64), 8).unwrap()), Ok(vec![0]));
        let capacity = small_answer(&scsi::read_capacity_16(32), 2048).unwrap();
        assert_eq!(scsi::parse_capacity_16(&capacity).unwrap().sectors, 2048);
        assert!(small_answer(&[0xff; 16], 8).is_none());
        let inquiry = scsi::parse_inquiry(&small_answer(&scsi::inquiry(None, 96), 8).unwrap()).unwrap();
        assert_eq!((inquiry.vendor.as_str(), inquiry.revision.as_str()), ("GOLDRUSH", "0001"));
    }
}
