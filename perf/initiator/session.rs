//! A normal session in full-feature phase over one blocking connection, with any number of tasks at once.
//!
//! Knows command numbering, Data-In assembly, R2T answers, pings and logout.
//! Does not know what the commands do.

use std::collections::HashMap;
use std::net::TcpStream;
use std::time::Duration;

use super::stream::{Pdu, Stream};
use super::{Negotiated, Numbers};
use crate::fail::{Result, failure};
use crate::scsi::{self, Cdb, Sense};
use crate::wire::{DataIn, DataOut, Logout, NO_TAG, NopIn, NopOut, R2t, Reply, ScsiCommand, Window};

/// A command and the direction of its data.
#[derive(Debug, Clone)]
pub(crate) enum Command {
    Read { cdb: Cdb, len: u32 },
    Write { cdb: Cdb, data: Vec<u8> },
    Plain { cdb: Cdb },
}

/// How a task ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) tag: u32,
    pub(crate) status: u8,
    pub(crate) sense: Sense,
    /// What a read brought, without the part that the target said is missing.
    pub(crate) data: Vec<u8>,
}

#[derive(Debug)]
struct Task {
    read: Vec<u8>,
    received: u32,
    next_data_sn: u32,
    write: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Session {
    stream: Stream,
    agreed: Negotiated,
    numbers: Numbers,
    lun: u64,
    next_tag: u32,
    tasks: HashMap<u32, Task>,
    finished: Vec<Done>,
}

impl Session {
    pub(crate) fn new(stream: Stream, agreed: Negotiated, numbers: Numbers, lun: u16) -> Session {
        Session {
            stream,
            agreed,
            numbers,
            lun: scsi::lun_field(lun),
            next_tag: 1,
            tasks: HashMap::new(),
            finished: Vec::new(),
        }
    }

    pub(crate) fn agreed(&self) -> Negotiated {
        self.agreed
    }

    /// Gives the idle session to an engine that speaks for itself from here on.
    pub(crate) fn into_parts(self) -> (TcpStream, Negotiated, Numbers) {
        (self.stream.into_tcp(), self.agreed, self.numbers)
    }

    /// Sends a command with its unsolicited data; returns the tag that its end will carry.
    pub(crate) fn start(&mut self, command: Command) -> Result<u32> {
        while !self.numbers.window_is_open() {
            if self.tasks.is_empty() {
                return Err(failure!(
                    "{} keeps its command window closed: look at its log",
                    self.stream.peer()
                ));
            }
            self.receive()?;
        }
        let tag = self.next_tag;
        self.next_tag = if tag == NO_TAG - 1 { 1 } else { tag + 1 };
        let (cdb, read_len, write) = match command {
            Command::Read { cdb, len } => (cdb, len, Vec::new()),
            Command::Write { cdb, data } => (cdb, 0, data),
            Command::Plain { cdb } => (cdb, 0, Vec::new()),
        };
        let write_len = write.len() as u32;
        let immediate = self.agreed.immediate(write_len);
        let unsolicited = self.agreed.unsolicited(write_len);
        let request = ScsiCommand {
            last: unsolicited == immediate,
            read: read_len > 0,
            write: write_len > 0,
            data_len: immediate,
            lun: self.lun,
            tag,
            expected_len: read_len.max(write_len),
            cmd_sn: self.numbers.cmd_sn,
            exp_stat_sn: self.numbers.exp_stat_sn,
            cdb,
        };
        self.numbers.cmd_sn = self.numbers.cmd_sn.wrapping_add(1);
        self.stream.send(&request.encode(), &write[..immediate as usize])?;
        if unsolicited > immediate {
            self.send_data(tag, NO_TAG, &write, immediate, unsolicited)?;
        }
        self.tasks
            .insert(tag, Task { read: vec![0; read_len as usize], received: 0, next_data_sn: 0, write });
        Ok(tag)
    }

    /// Waits for any started command to end.
    pub(crate) fn finish(&mut self) -> Result<Done> {
        loop {
            if let Some(done) = self.finished.pop() {
                return Ok(done);
            }
            if self.tasks.is_empty() {
                return Err(failure!("no command is under way at {}: start one first", self.stream.peer()));
            }
            self.receive()?;
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.tasks.len() + self.finished.len()
    }

    /// Runs one command to its end; a unit attention or a busy answer is retried a few times.
    pub(crate) fn run(&mut self, command: &Command) -> Result<Vec<u8>> {
        let mut last = String::new();
        for _ in 0..8 {
            let tag = self.start(command.clone())?;
            let done = self.finish()?;
            if done.tag != tag {
                return Err(failure!(
                    "{} ended task {} while task {tag} was alone: look at its log",
                    self.stream.peer(),
                    done.tag
                ));
            }
            match done.status {
                scsi::GOOD => return Ok(done.data),
                scsi::CHECK_CONDITION if done.sense.is_unit_attention() => last = done.sense.to_string(),
                scsi::BUSY | scsi::TASK_SET_FULL => {
                    last = format!("status {:#04x}", done.status);
                    std::thread::sleep(Duration::from_millis(20));
                }
                status => {
                    return Err(failure!(
                        "{} ended {} with status {status:#04x}, {}: look at its log",
                        self.stream.peer(),
                        name(command),
                        done.sense
                    ));
                }
            }
        }
        Err(failure!("{} kept answering {} with {last}: look at its log", self.stream.peer(), name(command)))
    }

    pub(crate) fn logout(&mut self) -> Result<()> {
        let tag = self.next_tag;
        let Numbers { cmd_sn, exp_stat_sn, .. } = self.numbers;
        self.stream.send(&Logout { tag, cmd_sn, exp_stat_sn }.encode(), &[])?;
        loop {
            let pdu = self.stream.receive()?;
            match Reply::decode(&pdu.header) {
                Reply::Logout(reply) if reply.response == 0 => return Ok(()),
                Reply::Logout(reply) => {
                    return Err(failure!(
                        "{} refused the logout with code {}: look at its log",
                        self.stream.peer(),
                        reply.response
                    ));
                }
                _ => self.handle(pdu)?,
            }
        }
    }

    fn receive(&mut self) -> Result<()> {
        let pdu = self.stream.receive()?;
        self.handle(pdu)
    }

    fn handle(&mut self, pdu: Pdu) -> Result<()> {
        let peer = self.stream.peer();
        match Reply::decode(&pdu.header) {
            Reply::DataIn(data_in) => self.data_in(&data_in, &pdu.data),
            Reply::Scsi(reply) => {
                self.count(reply.stat_sn, reply.window)?;
                if reply.response != 0 {
                    return Err(failure!(
                        "{peer} could not carry out task {}, response {}: look at its log",
                        reply.tag,
                        reply.response
                    ));
                }
                self.end(reply.tag, reply.status, Sense::parse(&pdu.data), reply.residual)
            }
            Reply::R2t(r2t) => self.r2t(&r2t),
            Reply::NopIn(nop) => self.ping(&nop, &pdu.data),
            Reply::Async(message) => Err(failure!(
                "{peer} sent the asynchronous event {}: it is ending the session",
                message.event
            )),
            Reply::Reject(reject) => {
                Err(failure!("{peer} rejected a PDU for reason {:#04x}: look at its log", reject.reason))
            }
            _ => Err(failure!(
                "{peer} sent the opcode {:#04x}, which nothing asked for: look at its log",
                pdu.header[0]
            )),
        }
    }

    fn count(&mut self, stat_sn: u32, window: Window) -> Result<()> {
        self.numbers.widen(window);
        let peer = self.stream.peer();
        self.numbers.count(stat_sn).map_err(|wrong| failure!("{peer} sent {wrong}: its numbering is wrong"))
    }

    fn data_in(&mut self, pdu: &DataIn, data: &[u8]) -> Result<()> {
        self.numbers.widen(pdu.window);
        let peer = self.stream.peer();
        let limit = self.agreed.max_recv_segment as usize;
        let task = self.tasks.get_mut(&pdu.tag);
        let task = task
            .ok_or_else(|| failure!("{peer} sent data for the unknown task {}: look at its log", pdu.tag))?;
        let end = u64::from(pdu.offset) + data.len() as u64;
        let in_order = pdu.data_sn == task.next_data_sn && pdu.offset == task.received;
        if data.len() > limit || end > task.read.len() as u64 || !in_order {
            return Err(failure!(
                "{peer} sent Data-In {} of {} bytes at offset {} where {} bytes had come of {}: it breaks the agreed order or size",
                pdu.data_sn,
                data.len(),
                pdu.offset,
                task.received,
                task.read.len()
            ));
        }
        task.read[pdu.offset as usize..end as usize].copy_from_slice(data);
        task.received += data.len() as u32;
        task.next_data_sn += 1;
        match pdu.status {
            Some((status, stat_sn)) => {
                self.count(stat_sn, pdu.window)?;
                self.end(pdu.tag, status, Sense::default(), pdu.residual)
            }
            None => Ok(()),
        }
    }

    fn end(&mut self, tag: u32, status: u8, sense: Sense, residual: i64) -> Result<()> {
        let peer = self.stream.peer();
        let task = self.tasks.remove(&tag);
        let mut task =
            task.ok_or_else(|| failure!("{peer} ended the unknown task {tag}: look at its log"))?;
        let missing = task.read.len() as i64 - i64::from(task.received);
        if status == scsi::GOOD && !task.read.is_empty() && missing != residual.max(0) {
            return Err(failure!(
                "{peer} sent {} of {} bytes but a residual of {residual}: its count is wrong",
                task.received,
                task.read.len()
            ));
        }
        task.read.truncate(task.received as usize);
        self.finished.push(Done { tag, status, sense, data: task.read });
        Ok(())
    }

    fn r2t(&mut self, r2t: &R2t) -> Result<()> {
        self.numbers.widen(r2t.window);
        let peer = self.stream.peer();
        let task = self.tasks.get_mut(&r2t.tag);
        let task = task.ok_or_else(|| {
            failure!("{peer} asks for data of the unknown task {}: look at its log", r2t.tag)
        })?;
        let end = u64::from(r2t.offset) + u64::from(r2t.len);
        if r2t.len == 0 || r2t.len > self.agreed.max_burst || end > task.write.len() as u64 {
            return Err(failure!(
                "{peer} asks for {} bytes at {} of a write of {}: it breaks the agreed size",
                r2t.len,
                r2t.offset,
                task.write.len()
            ));
        }
        let write = std::mem::take(&mut task.write);
        let sent = self.send_data(r2t.tag, r2t.transfer_tag, &write, r2t.offset, r2t.offset + r2t.len);
        if let Some(task) = self.tasks.get_mut(&r2t.tag) {
            task.write = write;
        }
        sent
    }

    /// One sequence of Data-Out PDUs with the bytes `from..to` of a write.
    fn send_data(&mut self, tag: u32, transfer_tag: u32, data: &[u8], from: u32, to: u32) -> Result<()> {
        let (mut offset, mut data_sn) = (from, 0);
        while offset < to {
            let len = (to - offset).min(self.agreed.max_send_segment);
            let pdu = DataOut {
                last: offset + len == to,
                data_len: len,
                lun: self.lun,
                tag,
                transfer_tag,
                exp_stat_sn: self.numbers.exp_stat_sn,
                data_sn,
                offset,
            };
            self.stream.send(&pdu.encode(), &data[offset as usize..(offset + len) as usize])?;
            offset += len;
            data_sn += 1;
        }
        Ok(())
    }

    /// A target's ping wants its own bytes back.
    fn ping(&mut self, nop: &NopIn, data: &[u8]) -> Result<()> {
        self.numbers.widen(nop.window);
        if nop.transfer_tag == NO_TAG {
            return Ok(());
        }
        let answer = NopOut {
            data_len: data.len() as u32,
            lun: nop.lun,
            tag: NO_TAG,
            transfer_tag: nop.transfer_tag,
            cmd_sn: self.numbers.cmd_sn,
            exp_stat_sn: self.numbers.exp_stat_sn,
        };
        self.stream.send(&answer.encode(), data)
    }
}

fn name(command: &Command) -> String {
    let (Command::Read { cdb, .. } | Command::Write { cdb, .. } | Command::Plain { cdb }) = command;
    format!("the command {:#04x}", cdb[0])
}
