//! Commands, task management and misbehaviour of a logged-in initiator, and the judgement of their answers.
//!
//! Knows CDBs and the model. Does not know the wire beyond PDUs, nor how a session began.

use crate::board::Board;
use crate::checks::{self, Transfer, before};
use crate::initiator::{Initiator, Line};
use crate::model::{self, Allowed, FlushMark, SECTOR, ZERO};
use crate::wire::{NO_TAG, Pdu, cdb_rw};
use crate::world::World;

/// Sectors and the tags they get.
type Write = (u64, Vec<u64>);

/// One command on its way.
#[derive(Clone, Debug, Default)]
pub(crate) struct Task {
    pub(crate) sent: u64,
    /// The connection it was sent on, and its number unless it was immediate.
    pub(crate) cid: u16,
    pub(crate) cmd_sn: Option<u32>,
    pub(crate) name: &'static str,
    /// The length the CDB asks for; `None`: whatever the target has.
    wanted: Option<u32>,
    expected: u32,
    /// Its data ends within a block: it must fail.
    partial: bool,
    transfer: Transfer,
    data_in: Vec<u8>,
    data_out: Vec<u8>,
    /// A read's sectors.
    read: Option<(u64, Allowed)>,
    writes: Vec<Write>,
    fua: bool,
    flush: Option<FlushMark>,
    /// MISCOMPARE is the right answer.
    differs: bool,
    pub(crate) ping: Vec<u8>,
    is_text: bool,
}

impl Task {
    pub(crate) fn text() -> Self {
        Self { is_text: true, sent: u64::MAX / 2, name: "text", ..Self::default() }
    }

    pub(crate) fn overlaps_write(&self, start: u64, count: u64) -> bool {
        self.writes.iter().any(|(at, tags)| *at < start + count && start < at + tags.len() as u64)
    }
}

/// A task management function on its way.
#[derive(Clone, Debug)]
pub(crate) struct Management {
    pub(crate) sent: u64,
    tag: u32,
    function: u8,
    /// Ours, sent before it, that it ends.
    victims: Vec<u32>,
    /// The connection that waits for the answer.
    pub(crate) cid: u16,
}

impl Management {
    pub(crate) fn concerns_others(&self) -> bool {
        self.function >= 4
    }
}

const ABORT_TASK: u8 = 1;
const ABORT_TASK_SET: u8 = 2;
const CLEAR_TASK_SET: u8 = 4;
const LOGICAL_UNIT_RESET: u8 = 5;
const TARGET_WARM_RESET: u8 = 6;
const TARGET_COLD_RESET: u8 = 7;

impl Initiator {
    /// One step of a worker: true when something was sent.
    pub(crate) fn work(&mut self, world: &mut World, board: &mut Board) -> Result<bool, String> {
        if self.line.excused && world.now >= self.line.stalled_until && board.stopping {
            self.log_out();
            return Ok(true);
        }
        if self.rng.chance(board.misbehaviour) {
            self.misbehave(world);
            return Ok(true);
        }
        if self.management.is_none() && self.rng.chance(board.management) {
            self.manage(world, board);
            return Ok(true);
        }
        if self.quota == 0 || board.stopping {
            if self.is_idle() && !board.stopping {
                self.log_out();
                return Ok(true);
            }
            return Ok(false);
        }
        let open = !before(self.line.numbers.max_cmd_sn(), self.cmd_sn);
        if !open || self.tasks.len() >= self.depth {
            return Ok(false);
        }
        self.quota -= 1;
        self.command(world, board);
        Ok(true)
    }

    fn misbehave(&mut self, world: &mut World) {
        let alone = self.parked.is_empty();
        match self.rng.below(10) {
            // The fault of one connection; those of sessions come to all of them.
            0..3 => self.reset(world),
            3..5 => self.half_close(world),
            5..7 => self.wait_a_while(world),
            7..9 => self.abandon(world),
            _ if alone => {
                self.line.excused = true;
                self.log_out();
            }
            _ => {}
        }
    }

    pub(crate) fn tag(&mut self) -> u32 {
        let tag = self.next_tag;
        self.next_tag = self.next_tag.wrapping_add(1);
        if self.next_tag == NO_TAG {
            self.next_tag = 0;
        }
        tag
    }

    // ---- commands

    fn command(&mut self, world: &World, board: &mut Board) {
        match self.rng.below(100) {
            0..38 => self.read(world, board),
            38..72 => self.write(world, board),
            72..80 => self.synchronize(world, board),
            80..85 => self.unmap(world, board),
            85..89 => self.write_same(world, board),
            89..92 => self.compare_and_write(world, board),
            92..95 => self.ping(world),
            _ => self.ask(world, board),
        }
    }

    /// A range of whole blocks in our part of the disk.
    fn range(&mut self, board: &Board, longest: u64) -> (u64, u64) {
        let block = board.targets[self.target].block;
        let (start, count) = self.region;
        let longest = longest.min(count);
        let len = match self.rng.below(10) {
            0..4 => self.rng.between(1, 16),
            4..8 => self.rng.between(1, 160),
            _ => self.rng.between(1, longest),
        };
        let len = len.next_multiple_of(block).min(longest / block * block);
        let at = start + self.rng.below((count - len) / block + 1) * block;
        (at, len)
    }

    /// As `range`, beside every write that is on its way.
    fn free_range(&mut self, board: &Board, longest: u64) -> Option<(u64, u64)> {
        (0..5).find_map(|_| {
            let (at, len) = self.range(board, longest);
            let free = !self.tasks.values().any(|task| task.overlaps_write(at, len))
                && !self.group.in_doubt(at, len);
            free.then_some((at, len))
        })
    }

    fn new_tags(&mut self, count: u64) -> Vec<u64> {
        self.next_write += 1;
        let base = (self.index as u64 + 1) << 48 | self.next_write << 16;
        (0..count).map(|index| base | index & 0xFFFF).collect()
    }

    fn bytes_of(tags: &[u64]) -> Vec<u8> {
        let mut data = vec![0; tags.len() * SECTOR];
        for (tag, sector) in tags.iter().zip(data.chunks_exact_mut(SECTOR)) {
            model::fill(*tag, sector);
        }
        data
    }

    fn read(&mut self, world: &World, board: &mut Board) {
        board.counts.reads += 1;
        let (at, len) = self.range(board, 2048);
        let block = board.targets[self.target].block;
        let fua = if self.rng.chance(50) { 8 } else { 0 };
        let cdb = cdb_rw(0x28, 0x88, fua, at / block, (len / block) as u32, &mut self.rng);
        let wanted = (len * SECTOR as u64) as u32;
        let expected = self.length(wanted);
        let allowed = board.models[self.target].visible(at, len);
        let task = Task {
            name: "READ",
            wanted: Some(wanted),
            expected,
            read: Some((at, allowed)),
            ..Task::default()
        };
        self.send_command(world, cdb, 0xC0, task);
    }

    /// Mostly what the CDB says; sometimes more or less (residuals).
    fn length(&mut self, wanted: u32) -> u32 {
        match self.rng.below(40) {
            0 => wanted + self.rng.between(1, 5000) as u32,
            1 => self.rng.below(u64::from(wanted)) as u32,
            _ => wanted,
        }
    }

    fn write(&mut self, world: &World, board: &mut Board) {
        let Some((at, len)) = self.free_range(board, 1024) else { return };
        board.counts.writes += 1;
        let block = board.targets[self.target].block;
        let fua = self.rng.chance(80);
        let cdb =
            cdb_rw(0x2A, 0x8A, if fua { 8 } else { 0 }, at / block, (len / block) as u32, &mut self.rng);
        let tags = self.new_tags(len);
        let mut data = Self::bytes_of(&tags);
        let wanted = data.len() as u32;
        let expected = self.length(wanted).max(1);
        data.resize(expected as usize, 0xEE);
        // Whole blocks only: what did not come is not written, and a block that comes in part is refused.
        let (coming, block_bytes) = (u64::from(expected.min(wanted)), block * SECTOR as u64);
        let partial = !coming.is_multiple_of(block_bytes);
        let whole = if partial { 0 } else { (coming / SECTOR as u64) as usize };
        let task = Task {
            name: "WRITE",
            wanted: Some(wanted),
            expected,
            data_out: data,
            writes: vec![(at, tags[..whole].to_vec())],
            fua,
            partial,
            ..Task::default()
        };
        self.send_write(world, board, cdb, task);
    }

    fn synchronize(&mut self, world: &World, board: &mut Board) {
        board.counts.flushes += 1;
        let cdb = cdb_rw(0x35, 0x91, 0, 0, 0, &mut self.rng);
        let flush = Some(board.models[self.target].flush_sent(self.region.0, self.region.1));
        let task = Task { name: "SYNCHRONIZE CACHE", wanted: Some(0), flush, ..Task::default() };
        self.send_command(world, cdb, 0x80, task);
    }

    fn unmap(&mut self, world: &World, board: &mut Board) {
        board.counts.others += 1;
        let block = board.targets[self.target].block;
        let mut writes: Vec<Write> = Vec::new();
        for _ in 0..self.rng.between(1, 3) {
            if let Some((at, len)) = self.free_range(board, 2048)
                && !writes.iter().any(|(start, tags)| *start < at + len && at < start + tags.len() as u64)
            {
                writes.push((at, vec![ZERO; len as usize]));
            }
        }
        let ranges = writes.len() * 16;
        let mut list = ((ranges + 6) as u16).to_be_bytes().to_vec();
        list.extend((ranges as u16).to_be_bytes());
        list.extend([0; 4]);
        for (at, tags) in &writes {
            list.extend((at / block).to_be_bytes());
            list.extend((tags.len() as u32 / block as u32).to_be_bytes());
            list.extend([0; 4]);
        }
        let mut cdb = [0; 16];
        cdb[0] = 0x42;
        cdb[7..9].copy_from_slice(&(list.len() as u16).to_be_bytes());
        let len = list.len() as u32;
        let task = Task {
            name: "UNMAP",
            wanted: Some(len),
            expected: len,
            data_out: list,
            writes,
            ..Task::default()
        };
        self.send_write(world, board, cdb, task);
    }

    fn write_same(&mut self, world: &World, board: &mut Board) {
        let Some((at, len)) = self.free_range(board, 1024) else { return };
        board.counts.others += 1;
        let block = board.targets[self.target].block;
        let zero = self.rng.chance(500);
        let one = if zero { vec![ZERO; block as usize] } else { self.new_tags(block) };
        let mut cdb = [0; 16];
        cdb[0] = 0x93;
        cdb[1] = if zero && self.rng.chance(500) { 8 } else { 0 };
        cdb[2..10].copy_from_slice(&(at / block).to_be_bytes());
        cdb[10..14].copy_from_slice(&((len / block) as u32).to_be_bytes());
        let data = Self::bytes_of(&one);
        let tags = (0..len).map(|index| one[(index % block) as usize]).collect();
        let expected = data.len() as u32;
        let task = Task {
            name: "WRITE SAME",
            wanted: Some(expected),
            expected,
            data_out: data,
            writes: vec![(at, tags)],
            ..Task::default()
        };
        self.send_write(world, board, cdb, task);
    }

    fn compare_and_write(&mut self, world: &World, board: &mut Board) {
        let Some((at, len)) = self.free_range(board, 64) else { return };
        let visible = board.models[self.target].visible(at, len);
        if visible.iter().any(|tags| tags.len() != 1) {
            return;
        }
        board.counts.others += 1;
        let block = board.targets[self.target].block;
        let mut old: Vec<u64> = visible.iter().map(|tags| tags[0]).collect();
        let differs = self.rng.chance(200);
        if differs {
            let wrong = self.rng.below(len) as usize;
            old[wrong] = 0xBAD;
        }
        let new = self.new_tags(len);
        let mut data = Self::bytes_of(&old);
        data.extend(Self::bytes_of(&new));
        let mut cdb = [0; 16];
        cdb[0] = 0x89;
        cdb[2..10].copy_from_slice(&(at / block).to_be_bytes());
        cdb[13] = (len / block) as u8;
        let expected = data.len() as u32;
        let task = Task {
            name: "COMPARE AND WRITE",
            wanted: Some(expected),
            expected,
            data_out: data,
            writes: if differs { Vec::new() } else { vec![(at, new)] },
            differs,
            ..Task::default()
        };
        self.send_write(world, board, cdb, task);
    }

    /// What a driver asks while it works.
    fn ask(&mut self, world: &World, board: &mut Board) {
        board.counts.others += 1;
        let length = self.rng.pick(&[0, 5, 36, 96, 255]);
        let mut cdb = [0; 16];
        match self.rng.below(5) {
            0 => {}
            1 => (cdb[0], cdb[4]) = (0x12, length as u8),
            2 => cdb[0] = 0x25,
            3 => (cdb[0], cdb[2], cdb[4]) = (0x1A, 0x3F, length as u8),
            _ => (cdb[0], cdb[9]) = (0xA0, length.max(16) as u8),
        }
        let expected = if cdb[0] == 0 { 0 } else { 255 };
        let flags = if expected > 0 { 0xC0 } else { 0x80 };
        let task = Task { name: "inquiry or the like", expected, ..Task::default() };
        self.send_command(world, cdb, flags, task);
    }

    fn ping(&mut self, world: &World) {
        let tag = self.tag();
        let len = self.rng.below(self.line.link.limits.segment.min(2000).into());
        let data: Vec<u8> = (0..len).map(|_| self.rng.next() as u8).collect();
        let immediate = self.rng.chance(500);
        let pdu = Pdu::new(if immediate { 0x40 } else { 0 }, 0x80)
            .put32(16, tag)
            .put32(20, NO_TAG)
            .put32(24, self.cmd_sn)
            .put32(28, self.line.numbers.exp_stat_sn())
            .with_data(&data);
        if !immediate {
            self.cmd_sn = self.cmd_sn.wrapping_add(1);
        }
        self.queue(tag, &pdu);
        let cmd_sn = (!immediate).then_some(pdu.u32_at(24));
        let cid = self.line.cid;
        let task = Task { sent: world.now, cid, cmd_sn, name: "NOP-Out", ping: data, ..Task::default() };
        self.tasks.insert(tag, task);
    }

    fn send_command(&mut self, world: &World, cdb: [u8; 16], flags: u8, mut task: Task) {
        let tag = self.tag();
        (task.sent, task.cid, task.cmd_sn) = (world.now, self.line.cid, Some(self.cmd_sn));
        let pdu = self.command_pdu(tag, cdb, flags | 1, &task);
        self.queue(tag, &pdu);
        self.tasks.insert(tag, task);
    }

    fn command_pdu(&mut self, tag: u32, cdb: [u8; 16], flags: u8, task: &Task) -> Pdu {
        // SIMPLE mostly; untagged, ORDERED and HEAD OF QUEUE now and then.
        let attribute = if self.rng.chance(100) { self.rng.pick(&[0, 2, 3]) } else { 1 };
        let pdu = Pdu::new(0x01, flags & !7 | attribute)
            .put32(16, tag)
            .put32(20, task.expected)
            .put32(24, self.cmd_sn)
            .put32(28, self.line.numbers.exp_stat_sn())
            .put(32, &cdb);
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        pdu
    }

    /// A command with data-out: immediate, unsolicited, or on request.
    fn send_write(&mut self, world: &World, board: &mut Board, cdb: [u8; 16], mut task: Task) {
        let tag = self.tag();
        (task.sent, task.cid, task.cmd_sn) = (world.now, self.line.cid, Some(self.cmd_sn));
        for (at, tags) in &task.writes {
            board.models[self.target].sent(*at, tags);
        }
        // A read that is on its way may see the new data already.
        for (at, tags) in &task.writes {
            for (start, allowed) in self.tasks.values_mut().filter_map(|task| task.read.as_mut()) {
                for (index, tag) in tags.iter().enumerate() {
                    let sector = (at + index as u64).wrapping_sub(*start) as usize;
                    if let Some(allowed) = allowed.get_mut(sector) {
                        allowed.push(*tag);
                    }
                }
            }
        }
        let burst = task.expected.min(self.line.link.first_burst);
        let immediate = match self.rng.below(3) {
            _ if !self.line.link.immediate_data => 0,
            0 => 0,
            1 => self.rng.below(u64::from(burst.min(self.line.link.send_segment)) + 1) as u32,
            _ => burst.min(self.line.link.send_segment),
        };
        let more = !self.line.link.initial_r2t && immediate < burst && self.rng.chance(700);
        let flags = 0x21 | if more { 0 } else { 0x80 };
        let data = task.data_out[..immediate as usize].to_vec();
        let pdu = self.command_pdu(tag, cdb, flags, &task).with_data(&data);
        self.queue(tag, &pdu);
        let end = if more { burst } else { immediate };
        task.transfer.solicited = end;
        if more {
            self.send_data(tag, NO_TAG, &task.data_out, immediate, end, [0; 8]);
        }
        self.tasks.insert(tag, task);
    }

    fn send_data(&mut self, tag: u32, transfer: u32, data: &[u8], start: u32, end: u32, lun: [u8; 8]) {
        let (mut at, mut sn) = (start, 0);
        while at < end {
            let most = (end - at).min(self.line.link.send_segment);
            let len = if self.rng.chance(700) { most } else { self.rng.between(1, u64::from(most)) as u32 };
            let flags = if at + len == end { 0x80 } else { 0 };
            let pdu = Pdu::new(0x05, flags)
                .put(8, &lun)
                .put32(16, tag)
                .put32(20, transfer)
                .put32(28, self.line.numbers.exp_stat_sn())
                .put32(36, sn)
                .put32(40, at)
                .with_data(&data[at as usize..(at + len) as usize]);
            self.queue(tag, &pdu);
            at += len;
            sn += 1;
        }
    }

    // ---- task management

    fn manage(&mut self, world: &World, board: &mut Board) {
        let function = match self.rng.below(20) {
            0..10 => ABORT_TASK,
            10..14 => ABORT_TASK_SET,
            14..16 => CLEAR_TASK_SET,
            16..18 => LOGICAL_UNIT_RESET,
            18 => TARGET_WARM_RESET,
            _ => TARGET_COLD_RESET,
        };
        // Pings are no tasks of a unit: nothing aborts them.
        let mut victims: Vec<u32> =
            self.tasks.iter().filter(|(_, task)| task.name != "NOP-Out").map(|(tag, _)| *tag).collect();
        let (mut referenced, mut ref_cmd_sn) = (NO_TAG, 0);
        if function == ABORT_TASK {
            // On the connection of the task (RFC 7143, 11.5.1).
            victims.retain(|tag| self.tasks[tag].cid == self.line.cid);
            let Some(tag) = victims.get(self.rng.below(victims.len() as u64) as usize).copied() else {
                return;
            };
            referenced = tag;
            ref_cmd_sn = self.tasks[&tag].cmd_sn.unwrap_or(self.cmd_sn);
            victims = vec![tag];
        }
        board.counts.management += 1;
        let tag = self.tag();
        for victim in &victims {
            self.unqueue_data(*victim);
        }
        let pdu = Pdu::new(0x42, 0x80 | function)
            .put32(16, tag)
            .put32(20, referenced)
            .put32(24, self.cmd_sn)
            .put32(28, self.line.numbers.exp_stat_sn())
            .put32(32, ref_cmd_sn);
        self.queue(NO_TAG, &pdu);
        let management = Management { sent: world.now, tag, function, victims, cid: self.line.cid };
        if management.concerns_others() {
            board.reset_until[self.target] = u64::MAX;
        }
        if function == TARGET_COLD_RESET {
            board.cold_until[self.target] = u64::MAX;
            self.line.excused = true;
        }
        self.management = Some(management);
    }

    fn management_response(&mut self, pdu: &Pdu, world: &World, board: &mut Board) -> Result<(), String> {
        let Some(management) = self.management.take_if(|management| management.tag == pdu.tag()) else {
            return Err("the response to a function that was not asked for".to_owned());
        };
        if management.concerns_others() {
            board.reset_until[self.target] = world.now;
        }
        if management.function == TARGET_COLD_RESET {
            board.cold_until[self.target] = world.now + 1_000_000_000;
        }
        match (pdu.bhs[2], management.function) {
            (0, _) => {
                // Nothing waits for a connection that this end has closed, nor longer than a while: what was said on
                // it before may come after.
                let late = world.now > management.sent + 7_000_000_000;
                for victim in &management.victims {
                    let Some(task) = self.tasks.remove(victim) else { continue };
                    let leaving = |line: &Line| line.cid == task.cid && line.excused;
                    if late || self.lines().any(leaving) {
                        self.group.ended.insert(*victim);
                    }
                }
                Ok(())
            }
            (1, ABORT_TASK) => match management.victims.iter().find(|tag| self.tasks.contains_key(tag)) {
                Some(tag) if board.reset_until[self.target] < self.tasks[tag].sent => {
                    Err(format!("task {tag:#x} does not exist, and was never answered"))
                }
                _ => Ok(()),
            },
            (code, function) => Err(format!("function {function} was answered with {code}")),
        }
    }

    // ---- answers

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
        for target in &board.targets {
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
        let name = task.name;
        let wrong = |error: String| format!("{name}: {error}");
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
        Ok(())
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
                let (key, code) = match sense.first().map(|byte| byte & 0x7F) {
                    Some(0x70) if sense.len() >= 14 => (sense[2] & 15, sense[12]),
                    Some(0x72) if sense.len() >= 4 => (sense[1] & 15, sense[2]),
                    _ => return Err(format!("CHECK CONDITION with sense data {sense:02x?}")),
                };
                match key {
                    6 => Ok(()),
                    0xE if task.differs => Ok(()),
                    5 if task.partial && code == 0x0E => Ok(()),
                    3 | 4 | 7 | 0xB if board.disk_faults => Ok(()),
                    _ => Err(format!("{} failed: sense key {key:x}, code {code:02x}: {task:.0?}", task.name)),
                }
            }
            // TASK SET FULL: the pool of a simulated server is small. BUSY: its data came long before its turn.
            0x28 | 0x08 => {
                self.tasks.remove(&pdu.tag()).ok_or("an answer for no task")?;
                self.unqueue_data(pdu.tag());
                board.counts.refused_commands += 1;
                Ok(())
            }
            status => Err(format!("SCSI status {status:#x}")),
        }
    }
}
