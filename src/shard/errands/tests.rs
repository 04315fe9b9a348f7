//! Copies between units of two shards, on two benches whose letters are carried by hand.
//!
//! Knows both shards and what lies between them. Does not know sessions or mailboxes.

use super::*;
use crate::io::{Errno, Op, OpToken};
use crate::shard::bench::{Bench, Ended};
use crate::shard::token::{Kind, Token};
use crate::units::SECTOR_BYTES;
use proptest::prelude::*;

const UNREACHABLE: (u8, u8) = (0x0D, 0x02);
const THIRD_PARTY: (u8, u8) = (0x0D, 0x01);

struct Pair {
    shards: [Bench; 2],
    free: [u32; 2],
}

impl Pair {
    /// Every sector tells its number, and which shard it is of.
    fn new() -> Self {
        let mut shards = [Bench::shard(0), Bench::shard(1)];
        for (number, shard) in shards.iter_mut().enumerate() {
            for (index, sector) in shard.disk.chunks_exact_mut(512).enumerate() {
                sector.fill((index as u8).wrapping_mul(2) | 1);
                sector[0] = number as u8;
            }
        }
        let free = [0, 1].map(|it: usize| shards[it].core.pool.chunks_free());
        Self { shards, free }
    }

    /// Carries the letters that were written. False: there was none.
    fn post(&mut self) -> bool {
        let mut any = false;
        for from in 0..2 {
            for (to, mail) in core::mem::take(&mut self.shards[from].core.errands.out) {
                any = true;
                assert_ne!(usize::from(to.0), from);
                self.shards[usize::from(to.0)].core.errand_mail(mail);
            }
        }
        self.shards.iter_mut().for_each(|shard| shard.core.run_ready());
        any
    }

    fn settle(&mut self) {
        loop {
            self.shards.iter_mut().for_each(Bench::settle);
            if !self.post() {
                return;
            }
        }
    }

    fn designator(&mut self, shard: usize) -> Vec<u8> {
        let asked = self.shards[shard].begin(&[0x12, 1, 0x83, 1, 0, 0], &[], 256);
        let page = self.shards[shard].reply(asked).unwrap().data;
        self.shards[shard].core.release(asked);
        page[8..16].to_vec()
    }

    /// Segments of (from shard, its sector, to shard, its sector, sectors).
    fn list(&mut self, segments: &[(u8, u64, u8, u64, u16)]) -> Vec<u8> {
        let mut list = vec![0; 16];
        (list[0], list[3]) = (9, 64);
        list[8..12].copy_from_slice(&(segments.len() as u32 * 28).to_be_bytes());
        for shard in 0..2 {
            list.extend([0xE4, 0, 0, 0, 1, 3, 0, 8]);
            list.extend(self.designator(shard));
            list.extend([0; 14]);
            list.extend([2, 0]);
        }
        for (from, source, to, destination, count) in segments {
            list.extend([2, 0, 0, 24, 0, *from, 0, *to, 0, 0]);
            list.extend(count.to_be_bytes());
            list.extend(source.to_be_bytes());
            list.extend(destination.to_be_bytes());
        }
        list
    }

    fn begin(&mut self, at: usize, segments: &[(u8, u64, u8, u64, u16)]) -> TaskKey {
        let list = self.list(segments);
        let mut cdb = [0; 16];
        cdb[0] = 0x83;
        cdb[10..14].copy_from_slice(&(list.len() as u32).to_be_bytes());
        self.shards[at].begin(&cdb, &list, 0)
    }

    fn ended(&mut self, at: usize, task: TaskKey) -> Ended {
        let ended = self.shards[at].reply(task).expect("it has ended");
        self.shards[at].core.release(task);
        ended
    }

    fn copy(&mut self, at: usize, segments: &[(u8, u64, u8, u64, u16)]) -> Option<(u8, u8)> {
        let task = self.begin(at, segments);
        self.settle();
        self.ended(at, task).sense
    }

    /// One round: what the disks were given, of both shards, and then the letters.
    fn ops(&mut self, shard: usize) -> Vec<(OpToken, Op)> {
        self.shards[shard].ops()
    }

    /// Nothing is held, awaited or counted any more.
    fn is_clean(&mut self) -> bool {
        (0..2).all(|number| {
            let core = &mut self.shards[number].core;
            core.finished.clear();
            let errands = &core.errands;
            core.tasks.is_empty()
                && core.pool.chunks_free() == self.free[number]
                && errands.asked.is_empty()
                && errands.doing.is_empty()
                && errands.portions == 0
                && errands.waiting.is_empty()
                && core.targets[0].aborted_in_flight == 0
        })
    }

    fn sectors(&self, shard: usize, at: usize, count: usize) -> &[u8] {
        &self.shards[shard].disk[at * 512..(at + count) * 512]
    }
}

#[test]
fn whichever_shard_is_asked_data_goes_from_either_to_either() {
    for at in [0, 1] {
        for (from, to) in [(0, 1), (1, 0), (0, 0), (1, 1)] {
            let mut pair = Pair::new();
            let source = pair.sectors(usize::from(from), 10, 9).to_vec();
            assert_eq!(pair.copy(at, &[(from, 10, to, 500, 9)]), None);
            assert_eq!(pair.sectors(usize::from(to), 500, 9), source, "{at}: {from} to {to}");
            assert!(pair.is_clean());
        }
    }
}

#[test]
fn the_status_of_a_copy_between_shards_is_asked_where_it_was_begun() {
    let mut pair = Pair::new();
    assert_eq!(pair.copy(0, &[(1, 0, 0, 100, 3), (0, 0, 1, 100, 2)]), None);
    let asked = pair.shards[0].begin(&[0x84, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0], &[], 64);
    assert_eq!(pair.ended(0, asked).data, [0, 0, 0, 8, 1, 0, 2, 1, 0, 0, 0, 2]);
}

#[test]
fn zeros_travel_as_a_word() {
    let mut pair = Pair::new();
    pair.shards[1].disk[..64 * 512].fill(0);
    let task = pair.begin(0, &[(1, 0, 0, 500, 64)]);
    pair.post();
    pair.post();
    pair.post();
    pair.shards[1].settle();
    let [(_, ErrandMail { letter: Letter::Answer(Answer::Done { zeros: true, parcel }), .. })] =
        &pair.shards[1].core.errands.out[..]
    else {
        panic!("{:?}", pair.shards[1].core.errands.out)
    };
    assert!(parcel.is_empty());
    pair.settle();
    assert_eq!(pair.ended(0, task).sense, None);
    assert_eq!(pair.sectors(0, 500, 64), [0; 64 * 512]);
}

#[test]
fn a_copy_that_is_aborted_while_another_shard_reads_for_it_is_gone_at_once() {
    let mut pair = Pair::new();
    let before = pair.shards[0].disk.clone();
    let task = pair.begin(0, &[(1, 0, 0, 500, 9)]);
    while pair.post() {}
    let mut reads = pair.ops(1);
    assert_eq!(reads.len(), 1);
    assert!(pair.shards[0].core.abort(task), "nothing of it can reach a disk");
    pair.post();
    assert_eq!(pair.shards[1].core.targets[0].aborted_in_flight, 1, "the ring has its read yet");
    pair.shards[1].complete(reads.remove(0));
    pair.settle();
    assert!(pair.is_clean() && pair.shards[0].disk == before);
}

#[test]
fn a_copy_that_is_aborted_while_another_shard_writes_for_it_ends_when_that_has_ended() {
    let mut pair = Pair::new();
    let source = pair.sectors(0, 0, 9).to_vec();
    let task = pair.begin(0, &[(0, 0, 1, 500, 9)]);
    while pair.post() {}
    pair.shards[0].settle();
    pair.post();
    let mut writes = pair.ops(1);
    assert!(matches!(writes[..], [(_, Op::Write { .. })]));
    assert!(!pair.shards[0].core.abort(task));
    pair.settle();
    assert_eq!(pair.shards[0].core.targets[0].aborted_in_flight, 1, "no answer, so no end");
    pair.shards[1].complete(writes.remove(0));
    pair.settle();
    assert!(pair.is_clean());
    assert_eq!(pair.sectors(1, 500, 9), source);
}

#[test]
fn a_write_that_waits_for_its_turn_elsewhere_is_recalled() {
    let mut pair = Pair::new();
    let before = pair.shards[1].disk.clone();
    // COMPARE AND WRITE has the unit for itself.
    let alone = pair.shards[1].begin(
        &[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0],
        &[&before[..512], &before[..512]].concat(),
        0,
    );
    let mut holds = pair.ops(1);
    let task = pair.begin(0, &[(0, 0, 1, 500, 9)]);
    while pair.post() {}
    pair.shards[0].settle();
    pair.post();
    assert!(pair.ops(1).is_empty(), "it waits");
    assert!(!pair.shards[0].core.abort(task));
    while pair.post() {}
    assert_eq!(pair.shards[0].core.targets[0].aborted_in_flight, 0, "it is over before its turn has come");
    pair.shards[1].complete(holds.remove(0));
    pair.settle();
    pair.ended(1, alone);
    assert!(pair.is_clean() && pair.shards[1].disk == before);
}

#[test]
fn a_unit_that_goes_ends_the_copy_with_its_next_portion() {
    for (from, to) in [(1, 0), (0, 1)] {
        let mut pair = Pair::new();
        let task = pair.begin(0, &[(from, 0, to, 0, 3), (from, 100, to, 100, 3)]);
        while pair.post() {}
        pair.shards[1].core.luns[0].ends = true;
        pair.settle();
        let ended = pair.ended(0, task);
        assert_eq!(ended.sense, Some(UNREACHABLE));
        assert!(pair.is_clean());
    }
}

#[test]
fn another_unit_in_its_place_is_not_the_unit() {
    let mut pair = Pair::new();
    let before = pair.shards[1].disk.clone();
    let task = pair.begin(0, &[(0, 0, 1, 0, 3)]);
    pair.post();
    pair.post();
    pair.shards[1].core.luns[0].born = 2;
    pair.settle();
    assert_eq!(pair.ended(0, task).sense, Some(UNREACHABLE));
    assert_eq!(pair.shards[1].disk, before);
}

#[test]
fn who_has_left_the_other_target_copies_no_more() {
    let mut pair = Pair::new();
    let task = pair.begin(0, &[(0, 0, 1, 0, 3)]);
    pair.post();
    pair.post();
    pair.shards[1].core.targets[0].sessions.clear();
    pair.settle();
    assert_eq!(pair.ended(0, task).sense, Some(UNREACHABLE));
    assert_eq!(pair.copy(0, &[(0, 0, 1, 0, 3)]), Some(UNREACHABLE));
}

#[test]
fn a_disk_that_fails_is_the_third_party() {
    for (from, to) in [(1, 0), (0, 1)] {
        let mut pair = Pair::new();
        let task = pair.begin(0, &[(from, 0, to, 500, 9)]);
        while pair.post() {}
        pair.shards[0].settle();
        pair.post();
        let (token, op) = pair.ops(1).remove(0);
        let token = Token::decode(token).unwrap();
        assert_eq!(token.kind, Kind::Task);
        let core = &mut pair.shards[1].core;
        let key = token.key(&core.tasks).unwrap();
        match op {
            Op::Read { buf, .. } => core.read_done(key, token.part, Err(Errno(5)), buf),
            Op::Write { part, .. } => core.write_done(key, token.part, Err(Errno(5)), part),
            other => panic!("{other:?}"),
        }
        pair.settle();
        assert_eq!(pair.ended(0, task).sense, Some(THIRD_PARTY));
        assert!(pair.is_clean());
    }
}

#[test]
fn a_reset_of_the_other_unit_ends_what_is_done_there() {
    let mut pair = Pair::new();
    let before = pair.shards[1].disk.clone();
    let task = pair.begin(0, &[(0, 0, 1, 500, 9), (0, 0, 1, 600, 9)]);
    while pair.post() {}
    pair.shards[0].settle();
    pair.post();
    let writes = pair.ops(1);
    pair.shards[1].core.end_background_copies(0, None);
    assert_eq!(pair.shards[1].core.targets[0].aborted_in_flight, 1);
    writes.into_iter().for_each(|op| pair.shards[1].complete(op));
    pair.settle();
    assert_eq!(pair.ended(0, task).sense, Some((0, 0)), "COPY ABORTED");
    assert!(pair.is_clean());
    assert_eq!(pair.sectors(1, 600, 9), &before[600 * 512..609 * 512]);
}

#[test]
fn no_more_portions_are_abroad_than_there_may_be() {
    let mut pair = Pair::new();
    let copies: Vec<TaskKey> = (0..40)
        .map(|number| {
            let list = pair.list(&[(1, number, 0, 500 + number, 1), (1, 100, 0, 600 + number, 1)]);
            let len = list.len() as u8;
            // Without an identifier: LIST ID USAGE 11b.
            let list = [&[0, 0b11 << 3][..], &list[2..]].concat();
            pair.shards[0].begin(&[0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, len, 0, 0], &list, 0)
        })
        .collect();
    while pair.post() {}
    assert_eq!(pair.shards[1].core.errands.doing.len(), limits::COPY_PORTIONS_ABROAD);
    assert!(pair.shards[0].core.abort(copies[39]) && pair.shards[0].core.abort(copies[0]));
    pair.settle();
    for copy in &copies[1..39] {
        assert_eq!(pair.ended(0, *copy).sense, None);
    }
    assert!(pair.is_clean());
    assert_eq!(pair.sectors(0, 501, 38), pair.sectors(1, 1, 38));
}

#[test]
fn who_stops_does_not_wait_for_others_for_ever() {
    let mut pair = Pair::new();
    let reads = pair.begin(0, &[(1, 0, 0, 500, 9)]);
    while pair.post() {}
    let lost = core::mem::take(&mut pair.shards[0].core.errands.out);
    pair.shards[0].core.give_up_errands();
    pair.shards[0].core.run_ready();
    assert_eq!(pair.ended(0, reads).sense, Some(UNREACHABLE), "{lost:?}");
    pair.shards[1].core.errands.closed = true;
    assert_eq!(pair.copy(0, &[(0, 0, 1, 500, 9)]), Some(UNREACHABLE));
    pair.settle();
    assert!(pair.is_clean());
}

fn ranges(header: usize, start: u64, count: u32) -> Vec<u8> {
    let mut list = vec![0; header];
    list[header - 1] = 16;
    list.extend(start.to_be_bytes());
    list.extend(count.to_be_bytes());
    list.extend([0; 4]);
    let len = list.len() as u16 - 2;
    list[..2].copy_from_slice(&len.to_be_bytes());
    list
}

impl Pair {
    fn third_party(&mut self, at: usize, action: u8, list: &[u8]) -> TaskKey {
        let [a, b] = (list.len() as u16).to_be_bytes();
        let cdb = [0x83, action, 0, 0, 0, 0, 0, 0, 0, action, 0, 0, a, b, 0, 0];
        self.shards[at].begin(&cdb, list, 0)
    }

    fn information(&mut self, at: usize, action: u8) -> Vec<u8> {
        let cdb = [0x84, 7, 0, 0, 0, action, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0];
        let asked = self.shards[at].begin(&cdb, &[], 1024);
        self.ended(at, asked).data
    }

    /// A token of shard 1 for eight sectors from `start`.
    fn token(&mut self, start: u64) -> Vec<u8> {
        let made = self.third_party(1, 0x10, &ranges(16, start, 8));
        self.settle();
        assert_eq!(self.ended(1, made).sense, None);
        self.information(1, 0x10)[38..].to_vec()
    }

    /// WRITE USING TOKEN to sector 500 of shard 0.
    fn use_token(&mut self, token: &[u8], flags: u8, offset: u8) -> TaskKey {
        let mut list = ranges(536, 500, 8);
        list[2] = flags;
        list[15] = offset;
        list[16..528].copy_from_slice(token);
        self.third_party(0, 0x11, &list)
    }
}

#[test]
fn a_token_of_another_shard_gives_its_blocks() {
    let mut pair = Pair::new();
    let source = pair.sectors(1, 40, 8).to_vec();
    let token = pair.token(40);
    // As it is, from an offset, answered at once, and for the last time.
    for (flags, offset) in [(0, 0), (0, 3), (1, 0), (2, 0)] {
        pair.shards[0].disk.fill(0xEE);
        let task = pair.use_token(&token, flags, offset);
        pair.settle();
        assert_eq!(pair.ended(0, task).sense, None);
        let count = 8 - usize::from(offset);
        assert_eq!(pair.sectors(0, 500, count), &source[usize::from(offset) * 512..]);
        assert_eq!(pair.sectors(0, 500 + count, 1), [0xEE; 512]);
        let told = pair.information(0, 0x11);
        assert_eq!((told[4], &told[16..24]), (0x11, &(count as u64).to_be_bytes()[..]));
        assert!(pair.is_clean());
    }
    let task = pair.use_token(&token, 0, 0);
    pair.settle();
    assert_eq!(pair.ended(0, task).sense, Some((0x23, 0x09)), "TOKEN DELETED");
}

#[test]
fn a_token_that_is_revoked_elsewhere_gives_nothing_more() {
    let mut pair = Pair::new();
    let token = pair.token(40);
    let before = pair.shards[0].disk.clone();
    let task = pair.use_token(&token, 0, 0);
    while pair.post() {}
    let reads = pair.ops(1);
    // What was read may be old or new: it is not written on.
    let write = pair.shards[1].begin(&[0x2A, 0, 0, 0, 0, 44, 0, 0, 1, 0], &[0xAA; 512], 0);
    pair.shards[1].settle();
    pair.ended(1, write);
    reads.into_iter().for_each(|op| pair.shards[1].complete(op));
    pair.settle();
    assert_eq!(pair.ended(0, task).sense, Some((0x23, 0x06)), "TOKEN REVOKED");
    assert!(pair.is_clean() && pair.shards[0].disk == before);
}

#[test]
fn tokens_that_others_do_not_know_are_told_apart() {
    let mut pair = Pair::new();
    let token = pair.token(40);
    let sense_of = |pair: &mut Pair, token: &[u8], offset| {
        let task = pair.use_token(token, 0, offset);
        pair.settle();
        pair.ended(0, task).sense
    };
    let with = |at: usize, byte: u8| {
        let mut token = token.clone();
        token[at] ^= byte;
        token
    };
    assert_eq!(sense_of(&mut pair, &with(9, 2), 0), Some((0x23, 0x04)), "no such shard");
    assert_eq!(sense_of(&mut pair, &with(9, 1), 0), Some((0x23, 0x04)), "not of this shard");
    assert_eq!(sense_of(&mut pair, &with(11, 9), 0), Some((0x23, 0x04)), "no such token");
    assert_eq!(sense_of(&mut pair, &with(500, 1), 0), Some((0x23, 0x05)), "corrupt");
    assert_eq!(sense_of(&mut pair, &token, 9), Some((0x26, 0)), "beyond its end");
    assert_eq!(sense_of(&mut pair, &token, 0), None);
    assert!(pair.is_clean());
}

#[test]
fn a_copy_that_is_aborted_while_it_asks_for_a_token_gives_it_back() {
    let mut pair = Pair::new();
    let token = pair.token(40);
    let task = pair.use_token(&token, 0, 0);
    assert!(pair.shards[0].core.abort(task));
    pair.settle();
    assert!(pair.is_clean());
    // Nobody uses it: it expires.
    pair.shards[1].core.now = pair.shards[1].core.now.after(crate::clock::Duration::from_secs(3600));
    let task = pair.use_token(&token, 0, 0);
    pair.settle();
    assert_eq!(pair.ended(0, task).sense, Some((0x23, 0x07)), "TOKEN EXPIRED");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Segment after segment, each as if its source were read whole before any of it is written, on whichever shards.
    #[test]
    fn a_copy_between_shards_is_what_its_segments_say(
        at in 0..2_usize,
        segments in prop::collection::vec((0..2_u8, 0..700_u64, 0..2_u8, 0..700_u64, 0..300_u16), 0..6)
    ) {
        let mut pair = Pair::new();
        pair.shards[1].disk[..20 * 512].fill(0);
        let mut expected = [0, 1].map(|shard: usize| pair.shards[shard].disk.clone());
        for (from, source, to, destination, count) in &segments {
            let (source, destination) = (*source as usize * 512, *destination as usize * 512);
            let len = usize::from(*count) * SECTOR_BYTES as usize;
            let bytes = expected[usize::from(*from)][source..source + len].to_vec();
            expected[usize::from(*to)][destination..destination + len].copy_from_slice(&bytes);
        }
        prop_assert_eq!(pair.copy(at, &segments), None);
        prop_assert!(pair.is_clean());
        prop_assert!((0..2).all(|shard| pair.shards[shard].disk == expected[shard]));
    }
}
