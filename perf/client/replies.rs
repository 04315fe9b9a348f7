//! What a session receives: login answers, data, status, requests for data, pings.
//!
//! Knows numbering and the order of data. Does not know when something is sent.

use super::{Content, Done, Incoming, Outgoing, Session, State, Told};
use crate::fail::{Result, failure};
use crate::initiator::Step;
use crate::ring::Port;
use crate::scsi::Sense;
use crate::wire::{BHS, DataIn, Header, NO_TAG, R2t, Reply, ahs_length, data_length, opcode, padded};

/// No answer to login and no sense data is longer.
const TEXT_MAX: usize = 64 << 10;

impl Session {
    /// Understands what came, as far as it is whole.
    pub(crate) fn received(
        &mut self,
        port: &mut Port,
        content: &mut impl Content,
        told: &mut Vec<Told>,
    ) -> Result<()> {
        loop {
            if let Some(mut incoming) = self.incoming {
                let unread = port.rx.unread();
                if unread.is_empty() {
                    return Ok(());
                }
                let bytes = incoming.left.min(unread.len());
                if bytes > 0 && incoming.wanted {
                    self.show(&incoming, &unread[..bytes], content);
                }
                let padding = incoming.padding.min(unread.len() - bytes);
                port.rx.consume(bytes + padding);
                incoming.offset += bytes as u32;
                incoming.left -= bytes;
                incoming.padding -= padding;
                self.incoming = Some(incoming);
                if incoming.left + incoming.padding > 0 {
                    return Ok(());
                }
                self.end_payload(incoming, told);
            }
            let Some(header) = port.rx.unread().first_chunk::<BHS>().copied() else { return Ok(()) };
            if ahs_length(&header) != 0 {
                let peer = &self.peer;
                return Err(failure!(
                    "{peer} sent additional header segments, which no reply has: look at its log"
                ));
            }
            let len = data_length(&header);
            if header[0] & 0x3f == opcode::DATA_IN && matches!(self.state, State::Full) {
                port.rx.consume(BHS);
                self.wire_bytes += (BHS + padded(len)) as u64;
                self.start_payload(&DataIn::decode(&header), content, told)?;
                continue;
            }
            if len > TEXT_MAX {
                return Err(failure!("{} sent {len} bytes of text: look at its log", self.peer));
            }
            if port.rx.unread().len() < BHS + padded(len) {
                return Ok(());
            }
            self.wire_bytes += (BHS + padded(len)) as u64;
            let step = match &mut self.state {
                State::LoggingIn(handshake) => {
                    Some(handshake.answer(&self.peer, &header, &port.rx.unread()[BHS..BHS + len])?)
                }
                _ => None,
            };
            let sense = Sense::parse(&port.rx.unread()[BHS..BHS + len]);
            port.rx.consume(BHS + padded(len));
            match step {
                Some(step) => self.login_goes_on(step, told),
                None => self.other(&header, sense, told)?,
            }
        }
    }

    /// The kernel dropped bytes of the payload that is coming.
    pub(crate) fn discarded(&mut self, bytes: usize, told: &mut Vec<Told>) {
        if let Some(mut incoming) = self.incoming {
            incoming.left -= bytes;
            incoming.offset += bytes as u32;
            self.incoming = Some(incoming);
            if incoming.left + incoming.padding == 0 {
                self.end_payload(incoming, told);
            }
        }
    }

    fn login_goes_on(&mut self, step: Step, told: &mut Vec<Told>) {
        match step {
            Step::Send(header, text) => self.texts.push_back((header, text)),
            Step::Done(agreed, numbers) => {
                (self.agreed, self.numbers, self.state) = (agreed, numbers, State::Full);
                told.push(Told::LoggedIn);
            }
            Step::Later(why) => told.push(Told::Later(why)),
        }
    }

    fn show(&self, incoming: &Incoming, bytes: &[u8], content: &mut impl Content) {
        if let Some(task) = &self.tasks[incoming.slot] {
            content.came(task.command.id, incoming.offset, bytes);
        }
    }

    fn count(&mut self, stat_sn: u32) -> Result<()> {
        let peer = &self.peer;
        self.numbers.count(stat_sn).map_err(|wrong| failure!("{peer} sent {wrong}: look at its log"))
    }

    fn start_payload(
        &mut self,
        data: &DataIn,
        content: &mut impl Content,
        told: &mut Vec<Told>,
    ) -> Result<()> {
        self.numbers.widen(data.window);
        let slot = self.slot(data.tag)?;
        let Some(task) = &mut self.tasks[slot] else { return Ok(()) };
        let end = u64::from(data.offset) + u64::from(data.data_len);
        if data.offset != task.received || end > u64::from(task.command.len) {
            return Err(failure!(
                "{} sent Data-In at {} with {} bytes, which does not follow the {} of {} bytes that came before: look at its log",
                self.peer,
                data.offset,
                data.data_len,
                task.received,
                task.command.len
            ));
        }
        task.received += data.data_len;
        let wanted = content.wants(task.command.id);
        if let Some((_, stat_sn)) = data.status {
            self.count(stat_sn)?;
        }
        let left = data.data_len as usize;
        let status = data.status.map(|(status, _)| status);
        let incoming =
            Incoming { slot, offset: data.offset, left, padding: padded(left) - left, status, wanted };
        if left == 0 {
            self.end_payload(incoming, told);
        } else {
            self.incoming = Some(incoming);
        }
        Ok(())
    }

    fn end_payload(&mut self, incoming: Incoming, told: &mut Vec<Told>) {
        self.incoming = None;
        if let Some(status) = incoming.status {
            self.end(incoming.slot, status, Sense::default(), told);
        }
    }

    fn end(&mut self, slot: usize, status: u8, sense: Sense, told: &mut Vec<Told>) {
        if let Some(task) = self.tasks[slot].take() {
            self.free.push(slot);
            let (id, received, started) = (task.command.id, task.received, task.started);
            told.push(Told::Done(Done { id, status, sense, received, started }));
        }
    }

    fn other(&mut self, header: &Header, sense: Sense, told: &mut Vec<Told>) -> Result<()> {
        let peer = &self.peer;
        match Reply::decode(header) {
            Reply::Scsi(reply) if reply.response != 0 => Err(failure!(
                "{peer} could not carry out a command, response {}: look at its log",
                reply.response
            )),
            Reply::Scsi(reply) => {
                self.numbers.widen(reply.window);
                self.count(reply.stat_sn)?;
                let slot = self.slot(reply.tag)?;
                self.end(slot, reply.status, sense, told);
                Ok(())
            }
            Reply::R2t(r2t) => self.r2t(&r2t),
            Reply::NopIn(nop) => {
                self.numbers.widen(nop.window);
                if nop.transfer_tag != NO_TAG {
                    self.outgoing.push_back(Outgoing::Pong { lun: nop.lun, transfer_tag: nop.transfer_tag });
                }
                Ok(())
            }
            Reply::Logout(reply) if reply.response == 0 => {
                self.state = State::LoggedOut;
                told.push(Told::LoggedOut);
                Ok(())
            }
            Reply::Async(message) => Err(failure!(
                "{peer} announced event {} and ends the session: look at its log",
                message.event
            )),
            Reply::Reject(reject) => {
                Err(failure!("{peer} rejected a PDU for reason {:#04x}: look at its log", reject.reason))
            }
            _ => Err(failure!(
                "{peer} sent opcode {:#04x}, which nothing asked for: look at its log",
                header[0]
            )),
        }
    }

    fn r2t(&mut self, r2t: &R2t) -> Result<()> {
        self.numbers.widen(r2t.window);
        let slot = self.slot(r2t.tag)?;
        let len =
            self.tasks[slot].filter(|task| task.command.way == super::Way::Out).map_or(0, |t| t.command.len);
        let end = u64::from(r2t.offset) + u64::from(r2t.len);
        if end > u64::from(len) || r2t.len == 0 || r2t.len > self.agreed.max_burst {
            return Err(failure!(
                "{} asks for {} bytes at {} of a write of {len}: it breaks the agreed sizes",
                self.peer,
                r2t.len,
                r2t.offset
            ));
        }
        let (tag, transfer_tag, offset, end) = (r2t.tag, r2t.transfer_tag, r2t.offset, r2t.offset + r2t.len);
        self.outgoing.push_back(Outgoing::Data { slot, tag, transfer_tag, offset, end, data_sn: 0 });
        Ok(())
    }
}
