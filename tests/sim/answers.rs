//! The judgement of what a target answers.
//!
//! Knows what each answer must be, and what excuses another one. Does not know how commands are made.

use crate::board::Board;
use crate::checks;
use crate::initiator::Initiator;
use crate::model;
use crate::offload::Lesson;
use crate::task::Task;
use crate::wire::Pdu;
use crate::world::World;

impl Initiator {
    pub(crate) fn answer(&mut self, pdu: &Pdu, world: &mut World, board: &mut Board) -> Result<(), String> {
        if self.group.ended.contains(&pdu.tag()) {
            return Ok(());
        }
        if let Some(task) = self.tasks.get(&pdu.tag())
            && task.cid != self.line.cid
        {
            return Err(format!("an answer on connection {}, its task came on {}", self.line.cid, task.cid));
        }
        match pdu.opcode() {
            0x21 => self.scsi_response(pdu, board),
            0x22 => self.management_response(pdu, world, board),
            0x24 => self.text_response(pdu, board),
            0x25 => self.data_in(pdu, board),
            0x31 => self.ready_to_transfer(pdu),
            opcode => Err(format!("an unexpected PDU, {opcode:#x} {:02x?}", pdu.bhs)),
        }
    }

    fn text_response(&mut self, pdu: &Pdu, board: &Board) -> Result<(), String> {
        if !self.tasks.remove(&pdu.tag()).is_some_and(|task| task.is_text) {
            return Err("a text nobody asked for".to_owned());
        }
        let text = String::from_utf8_lossy(&pdu.data).into_owned();
        for (target, gone_until) in board.targets.iter().zip(&board.gone_until) {
            if self.line.since <= *gone_until {
                continue;
            }
            let admitted = target.allowed.as_ref().is_none_or(|names| names.contains(&self.name));
            if text.contains(&target.name) != admitted {
                return Err(format!("SendTargets says {text:?}; {} is listed: {admitted}", target.name));
            }
        }
        self.quota = 0;
        self.log_out();
        Ok(())
    }

    fn data_in(&mut self, pdu: &Pdu, board: &mut Board) -> Result<(), String> {
        let limits = self.line.link.limits;
        let task = self.tasks.get_mut(&pdu.tag()).ok_or("Data-In for no task")?;
        task.transfer.data_in(pdu, task.expected, limits)?;
        task.data_in.extend(&pdu.data);
        if pdu.flags() & 1 != 0 {
            if pdu.bhs[3] != 0 {
                return Err("Data-In with a status that is not GOOD".to_owned());
            }
            return self.good(pdu, board);
        }
        Ok(())
    }

    fn ready_to_transfer(&mut self, pdu: &Pdu) -> Result<(), String> {
        let limits = self.line.link.limits;
        let tag = pdu.tag();
        let task = self.tasks.get_mut(&tag).ok_or("R2T for no task")?;
        let start = task.transfer.solicited;
        task.transfer.r2t(pdu, task.expected, limits)?;
        let (end, data) = (task.transfer.solicited, task.data_out.clone());
        let aborting = self.management.as_ref().is_some_and(|management| management.victims.contains(&tag));
        if !aborting {
            let mut lun = [0; 8];
            lun.copy_from_slice(&pdu.bhs[8..16]);
            self.send_data(tag, pdu.u32_at(20), &data, start, end, lun);
        }
        Ok(())
    }

    fn good(&mut self, pdu: &Pdu, board: &mut Board) -> Result<(), String> {
        let task = self.tasks.remove(&pdu.tag()).ok_or("an answer for no task")?;
        self.judge_reservation(&task, false, board)?;
        let name = task.name;
        let wrong = |error: String| format!("{name}: {error}");
        if task.read.is_some() || !task.writes.is_empty() {
            // What is sent from now on finds it ready as well.
            board.unready_until[self.target] = board.unready_until[self.target].min(board.now);
        }
        match task.wanted {
            Some(wanted) => checks::residual(pdu, wanted, task.expected).map_err(wrong)?,
            // The length is the target's to choose: all that was expected either came or is the residual.
            None if pdu.flags() & 4 == 0 => {
                checks::residual(pdu, task.transfer.received, task.expected).map_err(wrong)?;
            }
            None => {}
        }
        if task.differs {
            return Err(wrong("GOOD, and the data differs".to_owned()));
        }
        if task.partial {
            return Err(wrong("GOOD, and a block came in part".to_owned()));
        }
        if let Some((start, allowed)) = &task.read {
            let moved = task.wanted.unwrap_or(0).min(task.expected);
            if task.data_in.len() != moved as usize {
                return Err(wrong(format!("{} bytes came, expected {moved}", task.data_in.len())));
            }
            model::judge(*start, &task.data_in, allowed).map_err(wrong)?;
        }
        for (at, tags) in &task.writes {
            board.models[self.target].done(*at, tags, task.fua);
        }
        if let Some(flush) = &task.flush {
            board.models[self.target].flush_done(flush);
        }
        self.learn(&task, board).map_err(wrong)
    }

    fn scsi_response(&mut self, pdu: &Pdu, board: &mut Board) -> Result<(), String> {
        if pdu.bhs[2] != 0 {
            return Err(format!("iSCSI response {}", pdu.bhs[2]));
        }
        match pdu.bhs[3] {
            0 => self.good(pdu, board),
            2 => {
                let task = self.tasks.remove(&pdu.tag()).ok_or("an answer for no task")?;
                self.unqueue_data(pdu.tag());
                board.counts.failed += 1;
                let sense = pdu.data.get(2..).unwrap_or_default();
                match sense.first().map(|byte| byte & 0x7F) {
                    Some(0x70) if sense.len() >= 14 => self.failed(&task, sense[2] & 15, sense[12], board),
                    Some(0x72) if sense.len() >= 4 => self.failed(&task, sense[1] & 15, sense[2], board),
                    _ => Err(format!("CHECK CONDITION with sense data {sense:02x?}")),
                }
            }
            // TASK SET FULL: the pool of a simulated server is small. BUSY: its data came long before its turn.
            0x28 | 0x08 => {
                self.tasks.remove(&pdu.tag()).ok_or("an answer for no task")?;
                self.unqueue_data(pdu.tag());
                board.counts.refused_commands += 1;
                Ok(())
            }
            0x18 => {
                let task = self.tasks.remove(&pdu.tag()).ok_or("an answer for no task")?;
                self.unqueue_data(pdu.tag());
                board.counts.conflicts += 1;
                self.judge_reservation(&task, true, board)
            }
            status => Err(format!("SCSI status {status:#x}")),
        }
    }

    /// CHECK CONDITION: is there a reason?
    fn failed(&mut self, task: &Task, key: u8, code: u8, board: &mut Board) -> Result<(), String> {
        match key {
            6 => Ok(()),
            // LOGICAL UNIT NOT SUPPORTED, or given up half-way.
            5 if code == 0x25 && task.sent <= board.away_until[self.target] => Ok(()),
            // Of a unit that is not there only page 00h is.
            5 if code == 0x24
                && task.lesson == Lesson::Name
                && task.sent <= board.away_until[self.target] =>
            {
                Ok(())
            }
            0xA | 0xB if task.sent <= board.away_until[self.target] => Ok(()),
            // What a unit knew of copies went with it.
            5 if code == 0x24 && board.away_until[self.target] > 0 && task.is_about_copies() => Ok(()),
            2 if task.sent <= board.unready_until[self.target] => Ok(()),
            5 if code == 0x23 && task.name == "WRITE USING TOKEN" => {
                self.token_failed();
                Ok(())
            }
            5 if task.reservation.is_some() => self.reservation_refused(task, code, board),
            0xA if board.disk_faults => Ok(()),
            0xE if task.differs => Ok(()),
            5 if task.partial && code == 0x0E => Ok(()),
            3 | 4 | 7 | 0xB if board.disk_faults => Ok(()),
            _ => Err(format!("{} failed: sense key {key:x}, code {code:02x}: {task:.0?}", task.name)),
        }
    }
}
