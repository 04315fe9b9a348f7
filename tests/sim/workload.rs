//! Commands and misbehaviour of a logged-in initiator.
//!
//! Knows CDBs and the model. Does not know the wire beyond PDUs, nor how a session began, nor how answers are judged.

use crate::board::Board;
use crate::checks::before;
use crate::initiator::Initiator;
use crate::model::{self, SECTOR, ZERO};
use crate::task::{Task, Write};
use crate::wire::{NO_TAG, Pdu, cdb_rw};
use crate::world::World;

impl Initiator {
    /// One step of a worker: true when something was sent.
    pub(crate) fn work(&mut self, world: &mut World, board: &mut Board) -> Result<bool, String> {
        let leaving = board.stopping || self.line.since <= board.gone_until[self.target];
        if self.line.excused && world.now >= self.line.stalled_until && leaving {
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

    fn command(&mut self, world: &World, board: &mut Board) {
        if self.learnt.waits() && self.rng.chance(500) {
            return self.offload(world, board);
        }
        match self.rng.below(100) {
            0..31 => self.read(world, board),
            31..58 => self.write(world, board),
            58..72 => self.offload(world, board),
            72..80 => self.synchronize(world, board),
            80..85 => self.unmap(world, board),
            85..89 => self.write_same(world, board),
            89..92 => self.compare_and_write(world, board),
            92..94 => self.ping(world),
            94..97 if board.reserving => self.reserve(world, board),
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
    pub(crate) fn free_range(&mut self, board: &Board, longest: u64) -> Option<(u64, u64)> {
        (0..5).find_map(|_| {
            let (at, len) = self.range(board, longest);
            let used = |task: &Task| task.overlaps_write(at, len) || task.reads(at, len);
            let free = !self.tasks.values().any(used) && !self.group.in_doubt(at, len);
            free.then_some((at, len))
        })
    }

    pub(crate) fn new_tags(&mut self, count: u64) -> Vec<u64> {
        self.next_write += 1;
        let base = (self.index as u64 + 1) << 48 | self.next_write << 16;
        (0..count).map(|index| base | index & 0xFFFF).collect()
    }

    pub(crate) fn bytes_of(tags: &[u64]) -> Vec<u8> {
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
        let name = if cdb[0] == 0x1A { "MODE SENSE" } else { "inquiry or the like" };
        let task = Task { name, expected, ..Task::default() };
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

    pub(crate) fn send_command(&mut self, world: &World, cdb: [u8; 16], flags: u8, mut task: Task) {
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
    pub(crate) fn send_write(&mut self, world: &World, board: &mut Board, cdb: [u8; 16], mut task: Task) {
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

    pub(crate) fn send_data(
        &mut self,
        tag: u32,
        transfer: u32,
        data: &[u8],
        start: u32,
        end: u32,
        lun: [u8; 8],
    ) {
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
}
