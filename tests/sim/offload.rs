//! Commands that move or guard more than they carry: copies, tokens, WRITE ATOMIC, ORWRITE.
//!
//! Knows their CDBs and lists, and what sectors hold afterwards. Does not know how answers are judged (`workload`).
//!
//! What is copied must be known: sectors that may hold one thing only, and that nothing overwrites before the copy, or the
//! token, is there.

use std::collections::VecDeque;

use crate::board::Board;
use crate::initiator::Initiator;
use crate::model::{SECTOR, ZERO};
use crate::task::Task;
use crate::world::World;

const TOKEN_BYTES: usize = 512;
/// A token is kept for later: not many.
const TOKENS_MAX: usize = 3;

/// What an answer means beyond its data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Lesson {
    #[default]
    None,
    /// VPD page 83h: by which name the unit can be copied.
    Name,
    /// A token for this was made, under this list identifier.
    Populated { list: u32, tags: Vec<u64> },
    /// Here is the token.
    Told { tags: Vec<u64> },
}

#[derive(Clone, Debug)]
struct RodToken {
    bytes: Vec<u8>,
    /// What it stands for, sector by sector.
    tags: Vec<u64>,
}

/// What an initiator has learnt.
#[derive(Debug, Default)]
pub(crate) struct Learnt {
    naa: Option<[u8; 8]>,
    tokens: VecDeque<RodToken>,
    /// Tokens to ask for, each with what it stands for.
    asks: VecDeque<(u32, Vec<u64>)>,
    lists: u32,
    /// A token has just come: now its data is likely to be what it was.
    fresh: bool,
}

impl Learnt {
    /// A token is to be asked for before its operation is forgotten.
    pub(crate) fn waits(&self) -> bool {
        !self.asks.is_empty() || self.fresh
    }

    /// A new session knows no operation of the former one.
    pub(crate) fn session_over(&mut self) {
        self.asks.clear();
    }
}

fn range_list(header: usize, ranges: &[(u64, u64)]) -> Vec<u8> {
    let mut list = vec![0; header];
    list[header - 2..].copy_from_slice(&(ranges.len() as u16 * 16).to_be_bytes());
    for (start, count) in ranges {
        list.extend(start.to_be_bytes());
        list.extend((*count as u32).to_be_bytes());
        list.extend([0; 4]);
    }
    let len = list.len() as u16 - 2;
    list[..2].copy_from_slice(&len.to_be_bytes());
    list
}

fn third_party(opcode: u8, action: u8, identifier: u32, len: usize) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (opcode, action);
    let at = if opcode == 0x84 { 2 } else { 6 };
    cdb[at..at + 4].copy_from_slice(&identifier.to_be_bytes());
    cdb[10..14].copy_from_slice(&(len as u32).to_be_bytes());
    cdb
}

fn long_cdb(opcode: u8, lba: u64, blocks: u64) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&(blocks as u32).to_be_bytes());
    cdb
}

impl Initiator {
    /// One of them.
    pub(crate) fn offload(&mut self, world: &World, board: &mut Board) {
        board.counts.others += 1;
        if let Some((list, tags)) = self.learnt.asks.pop_front() {
            return self.ask_for_token(world, list, tags);
        }
        if core::mem::take(&mut self.learnt.fresh) {
            return self.write_using_token(world, board);
        }
        match self.rng.below(12) {
            0..3 => self.write_atomic(world, board),
            3 => self.or_write(world, board),
            4..7 => self.extended_copy(world, board),
            7..10 if !self.learnt.tokens.is_empty() => self.write_using_token(world, board),
            _ => self.populate(world, board),
        }
    }

    /// Sectors of ours that hold what we know, and that nothing is about to change.
    fn known_range(&mut self, board: &Board, longest: u64) -> Option<(u64, Vec<u64>)> {
        let (at, len) = self.free_range(board, longest)?;
        let visible = board.models[self.target].visible(at, len);
        visible.iter().all(|tags| tags.len() == 1).then(|| (at, visible.iter().map(|tags| tags[0]).collect()))
    }

    fn write_atomic(&mut self, world: &World, board: &mut Board) {
        let Some((at, len)) = self.free_range(board, 200) else { return };
        let block = board.targets[self.target].block;
        let mut cdb = long_cdb(0x9C, at / block, 0);
        cdb[12..14].copy_from_slice(&((len / block) as u16).to_be_bytes());
        let tags = self.new_tags(len);
        board.models[self.target].sent_atomic(at, &tags);
        let data = Self::bytes_of(&tags);
        let mut task = Task::writing("WRITE ATOMIC", data, vec![(at, tags)]);
        task.fua = true;
        self.send_write(world, board, cdb, task);
    }

    /// Zeros become something, everything else stays what it is.
    fn or_write(&mut self, world: &World, board: &mut Board) {
        let Some((at, old)) = self.known_range(board, 300) else { return };
        let block = board.targets[self.target].block;
        let fresh = self.new_tags(old.len() as u64);
        let data: Vec<u64> =
            old.iter().zip(&fresh).map(|(old, new)| if *old == ZERO { *new } else { ZERO }).collect();
        let after = old.iter().zip(&data).map(|(old, new)| if *old == ZERO { *new } else { *old }).collect();
        let cdb = long_cdb(0x8B, at / block, old.len() as u64 / block);
        let task = Task::writing("ORWRITE", Self::bytes_of(&data), vec![(at, after)]);
        self.send_write(world, board, cdb, task);
    }

    /// Within the unit; source and destination may overlap.
    fn extended_copy(&mut self, world: &World, board: &mut Board) {
        let Some(naa) = self.learnt.naa else { return self.ask_for_name(world) };
        let Some((from, tags)) = self.known_range(board, 600) else { return };
        let len = tags.len() as u64;
        let Some((to, room)) = self.free_range(board, len) else { return };
        let block = board.targets[self.target].block;
        let len = len.min(room) / block * block;
        if len == 0 {
            return;
        }
        let mut list = vec![0; 16];
        (list[1], list[3], list[11]) = (0x18, 32, 28);
        let mut device = [0; 32];
        (device[0], device[4], device[5], device[7]) = (0xE4, 1, 3, 8);
        device[8..16].copy_from_slice(&naa);
        device[28..32].copy_from_slice(&((block * SECTOR as u64) as u32).to_be_bytes());
        let mut segment = [0; 28];
        (segment[0], segment[3]) = (0x02, 24);
        segment[10..12].copy_from_slice(&((len / block) as u16).to_be_bytes());
        segment[12..20].copy_from_slice(&(from / block).to_be_bytes());
        segment[20..28].copy_from_slice(&(to / block).to_be_bytes());
        list.extend(device);
        list.extend(segment);
        let cdb = third_party(0x83, 0, 0, list.len());
        let moved = tags[..len as usize].to_vec();
        let mut task = Task::writing("EXTENDED COPY", list, vec![(to, moved)]);
        task.sources = vec![(from, len)];
        self.send_write(world, board, cdb, task);
    }

    fn ask_for_name(&mut self, world: &World) {
        let mut cdb = [0; 16];
        cdb[..5].copy_from_slice(&[0x12, 1, 0x83, 0, 255]);
        let task = Task::asking("VPD page 83h", 255, Lesson::Name);
        self.send_command(world, cdb, 0xC0, task);
    }

    fn populate(&mut self, world: &World, board: &mut Board) {
        let Some((at, tags)) = self.known_range(board, 400) else { return };
        let block = board.targets[self.target].block;
        self.learnt.lists += 1;
        let list = self.learnt.lists;
        let data = range_list(16, &[(at / block, tags.len() as u64 / block)]);
        let cdb = third_party(0x83, 0x10, list, data.len());
        let mut task = Task::writing("POPULATE TOKEN", data, Vec::new());
        task.sources = vec![(at, tags.len() as u64)];
        task.lesson = Lesson::Populated { list, tags };
        self.send_write(world, board, cdb, task);
    }

    fn ask_for_token(&mut self, world: &World, list: u32, tags: Vec<u64>) {
        let cdb = third_party(0x84, 0x07, list, 1024);
        let task = Task::asking("RECEIVE ROD TOKEN INFORMATION", 1024, Lesson::Told { tags });
        self.send_command(world, cdb, 0xC0, task);
    }

    /// A part of what a token stands for, to two places.
    fn write_using_token(&mut self, world: &World, board: &mut Board) {
        let Some(token) = self.learnt.tokens.back().cloned() else { return };
        let block = board.targets[self.target].block;
        let skip = self.rng.below(token.tags.len() as u64 / block) * block;
        let rest = &token.tags[skip as usize..];
        let Some((at, room)) = self.free_range(board, rest.len() as u64) else { return };
        let len = (rest.len() as u64).min(room);
        let half = (len / 2).next_multiple_of(block).min(len);
        let mut ranges = vec![(at / block, half / block)];
        if len > half {
            ranges.push(((at + half) / block, (len - half) / block));
        }
        let mut list = range_list(536, &ranges);
        list[8..16].copy_from_slice(&(skip / block).to_be_bytes());
        list[16..16 + TOKEN_BYTES].copy_from_slice(&token.bytes);
        if self.rng.chance(300) {
            // DEL_TKN: nobody needs it after this.
            list[2] = 2;
            self.learnt.tokens.pop_back();
        }
        self.learnt.lists += 1;
        let cdb = third_party(0x83, 0x11, self.learnt.lists, list.len());
        let tags = rest[..len as usize].to_vec();
        let task = Task::writing("WRITE USING TOKEN", list, vec![(at, tags)]);
        self.send_write(world, board, cdb, task);
    }

    /// A token is no good any more: it was overwritten, or is too old, or its server has gone.
    pub(crate) fn token_failed(&mut self) {
        self.learnt.tokens.pop_front();
    }

    /// GOOD: what it teaches.
    pub(crate) fn learn(&mut self, task: &Task, board: &mut Board) -> Result<(), String> {
        match task.name {
            "WRITE ATOMIC" => board.counts.atomic_writes += 1,
            "EXTENDED COPY" => board.counts.copies += 1,
            "WRITE USING TOKEN" => board.counts.token_writes += 1,
            "ORWRITE" => board.counts.or_writes += 1,
            "PERSISTENT RESERVE OUT" => board.counts.reservations += 1,
            _ => {}
        }
        match &task.lesson {
            Lesson::None => {}
            Lesson::Name => {
                let mut rest = task.data_in.get(4..).unwrap_or_default();
                while rest.len() >= 4 && rest.len() >= 4 + usize::from(rest[3]) {
                    let (designator, next) = rest.split_at(4 + usize::from(rest[3]));
                    if designator[1] & 0x3F == 3
                        && let Some(naa) = designator[4..].first_chunk()
                    {
                        self.learnt.naa = Some(*naa);
                    }
                    rest = next;
                }
                self.learnt.naa.ok_or("VPD page 83h has no NAA designator of the unit")?;
            }
            Lesson::Populated { list, tags } => self.learnt.asks.push_back((*list, tags.clone())),
            Lesson::Told { tags } => {
                let data = &task.data_in;
                let sense = data.get(13).copied().map_or(0, usize::from);
                let bytes = data.get(38 + sense..38 + sense + TOKEN_BYTES);
                let bytes = bytes.ok_or_else(|| format!("there is no token in {data:02x?}"))?.to_vec();
                if data[5] != 1 {
                    return Err(format!("a token was made, and its status is {:#x}", data[5]));
                }
                board.counts.tokens += 1;
                self.learnt.fresh = true;
                self.learnt.tokens.push_back(RodToken { bytes, tags: tags.clone() });
                if self.learnt.tokens.len() > TOKENS_MAX {
                    self.learnt.tokens.pop_front();
                }
            }
        }
        Ok(())
    }
}
