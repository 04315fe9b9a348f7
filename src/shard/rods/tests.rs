//! Tokens on the executor's bench: what they give, what ends them, and that they never give anything else.
//!
//! Knows commands and a disk in memory. Does not know sessions.

use super::*;
use crate::io::{Op, OpToken};
use crate::shard::bench::{Bench, Ended};
use proptest::prelude::*;

const CHECK_CONDITION: u8 = 2;

fn list(header: usize, ranges: &[(u64, u32)]) -> Vec<u8> {
    let mut list = vec![0; header];
    let bytes = ranges.len() * 16;
    list[header - 2..].copy_from_slice(&(bytes as u16).to_be_bytes());
    for (start, count) in ranges {
        list.extend(start.to_be_bytes());
        list.extend(count.to_be_bytes());
        list.extend([0; 4]);
    }
    let len = list.len() as u16 - 2;
    list[..2].copy_from_slice(&len.to_be_bytes());
    list
}

fn begin(bench: &mut Bench, action: u8, identifier: u8, list: &[u8]) -> TaskKey {
    let len = (list.len() as u32).to_be_bytes();
    let cdb = [0x83, action, 0, 0, 0, 0, 0, 0, 0, identifier, len[0], len[1], len[2], len[3], 0, 0];
    bench.begin(&cdb, list, 0)
}

fn information(bench: &mut Bench, identifier: u8) -> Ended {
    let cdb = [0x84, 7, 0, 0, 0, identifier, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0];
    let asked = bench.begin(&cdb, &[], 1024);
    let ended = bench.reply(asked).unwrap();
    bench.core.release(asked);
    ended
}

fn populate(bench: &mut Bench, ranges: &[(u64, u32)]) -> Vec<u8> {
    let made = begin(bench, 0x10, 1, &list(16, ranges));
    bench.settle();
    assert_eq!(bench.reply(made).unwrap().status, 0);
    information(bench, 1).data[38..].to_vec()
}

fn write_list(token: &[u8], offset: u64, flags: u8, ranges: &[(u64, u32)]) -> Vec<u8> {
    let mut list = list(536, ranges);
    list[2] = flags;
    list[8..16].copy_from_slice(&offset.to_be_bytes());
    list[16..528].copy_from_slice(token);
    list
}

fn write(bench: &mut Bench, token: &[u8], offset: u64, ranges: &[(u64, u32)]) -> Option<(u8, u8)> {
    let written = begin(bench, 0x11, 2, &write_list(token, offset, 0, ranges));
    bench.settle();
    let ended = bench.reply(written).unwrap();
    assert_eq!(ended.status == CHECK_CONDITION, ended.sense.is_some());
    ended.sense
}

fn plain_write(bench: &mut Bench, sector: u8) -> TaskKey {
    bench.begin(&[0x2A, 0, 0, 0, 0, sector, 0, 0, 1, 0], &[0xEE; 512], 0)
}

fn numbered(bench: &mut Bench) -> Vec<u8> {
    for (index, sector) in bench.disk.chunks_exact_mut(512).enumerate() {
        sector.fill(index as u8 | 1);
    }
    bench.disk.clone()
}

fn zero_token() -> Vec<u8> {
    let mut token = vec![0; ROD_TOKEN_BYTES];
    token[..8].copy_from_slice(&[0xFF, 0xFF, 0, 1, 0, 0, 0x01, 0xF8]);
    token
}

#[test]
fn a_token_gives_its_blocks_from_any_offset_to_any_ranges() {
    let mut bench = Bench::new();
    let before = numbered(&mut bench);
    let token = populate(&mut bench, &[(10, 4), (20, 6)]);
    assert_eq!(write(&mut bench, &token, 3, &[(500, 2), (600, 3)]), None);
    let sector = |disk: &[u8], at: usize| disk[at * 512..][..512].to_vec();
    for (source, destination) in [(13, 500), (20, 501), (21, 600), (22, 601), (23, 602)] {
        assert_eq!(sector(&bench.disk, destination), sector(&before, source), "{destination}");
    }
    assert_eq!(sector(&bench.disk, 502), sector(&before, 502));
    let told = information(&mut bench, 2).data;
    assert_eq!((told[4], told[5], &told[16..24]), (0x11, 0x01, &5u64.to_be_bytes()[..]));
}

#[test]
fn what_a_token_lacks_is_residual_and_an_offset_beyond_it_an_error() {
    let mut bench = Bench::new();
    let before = numbered(&mut bench);
    let token = populate(&mut bench, &[(10, 4)]);
    assert_eq!(write(&mut bench, &token, 1, &[(500, 100)]), None);
    let told = information(&mut bench, 2).data;
    assert_eq!((told[5], &told[16..24]), (0x04, &3u64.to_be_bytes()[..]));
    assert_eq!(bench.disk[500 * 512..503 * 512], before[11 * 512..14 * 512]);
    assert_eq!(bench.disk[503 * 512..], before[503 * 512..]);
    assert_eq!(write(&mut bench, &token, 5, &[(500, 1)]), Some((0x26, 0)));
}

#[test]
fn a_write_to_the_source_revokes_a_token_and_one_beside_it_does_not() {
    let mut bench = Bench::new();
    numbered(&mut bench);
    let token = populate(&mut bench, &[(10, 4)]);
    for beside in [9, 14] {
        plain_write(&mut bench, beside);
        bench.settle();
    }
    assert_eq!(write(&mut bench, &token, 0, &[(500, 4)]), None);
    plain_write(&mut bench, 13);
    bench.settle();
    assert_eq!(write(&mut bench, &token, 0, &[(500, 4)]), Some((0x23, 6)));
    assert_eq!(information(&mut bench, 2).data[5], 0x02);
    // UNMAP: its second range counts as well.
    let token = populate(&mut bench, &[(10, 4)]);
    let mut unmap = vec![0, 38, 0, 32, 0, 0, 0, 0];
    for start in [300u64, 12] {
        unmap.extend(start.to_be_bytes());
        unmap.extend([0, 0, 0, 1, 0, 0, 0, 0]);
    }
    bench.begin(&[0x42, 0, 0, 0, 0, 0, 0, 0, 40, 0], &unmap, 0);
    bench.settle();
    assert_eq!(write(&mut bench, &token, 0, &[(500, 4)]), Some((0x23, 6)));
}

#[test]
fn a_token_waits_for_writes_that_are_under_way() {
    let mut bench = Bench::new();
    plain_write(&mut bench, 10);
    let made = begin(&mut bench, 0x10, 1, &list(16, &[(10, 1)]));
    assert!(bench.reply(made).is_none());
    assert_eq!(information(&mut bench, 1).data[5], 0x11);
    bench.settle();
    assert_eq!(bench.reply(made).unwrap().status, 0);
    let token = information(&mut bench, 1).data[38..].to_vec();
    assert_eq!(write(&mut bench, &token, 0, &[(500, 1)]), None);
    assert_eq!(bench.disk[500 * 512], 0xEE);
}

#[test]
fn an_aborted_populate_leaves_no_operation_behind() {
    let mut bench = Bench::new();
    plain_write(&mut bench, 10);
    let made = begin(&mut bench, 0x10, 1, &list(16, &[(10, 1)]));
    assert!(bench.core.abort(made));
    assert_eq!(information(&mut bench, 1).data[5], 0x60);
    bench.settle();
    populate(&mut bench, &[(10, 1)]);
}

#[test]
fn a_read_for_a_token_that_a_write_overtakes_is_thrown_away() {
    let mut bench = Bench::new();
    let before = numbered(&mut bench);
    let token = populate(&mut bench, &[(10, 4)]);
    let copy = begin(&mut bench, 0x11, 2, &write_list(&token, 0, 0, &[(500, 4)]));
    let mut reads = bench.ops();
    assert!(matches!(reads[..], [(_, Op::Read { .. })]), "{reads:?}");
    plain_write(&mut bench, 12);
    let mut writes = bench.ops();
    bench.complete(writes.remove(0));
    bench.complete(reads.remove(0));
    bench.settle();
    assert_eq!(bench.reply(copy).unwrap().sense, Some((0x23, 6)));
    assert_eq!(bench.disk[500 * 512..504 * 512], before[500 * 512..504 * 512]);
}

#[test]
fn tokens_are_neither_guessed_nor_bent() {
    let mut bench = Bench::new();
    let token = populate(&mut bench, &[(10, 4)]);
    for at in [48, 63, 480, 511] {
        let mut bent = token.clone();
        bent[at] ^= 1;
        assert_eq!(write(&mut bench, &bent, 0, &[(500, 4)]), Some((0x23, 5)), "{at}");
    }
    for at in 8..16 {
        let mut other = token.clone();
        other[at] ^= 0x40;
        assert_eq!(write(&mut bench, &other, 0, &[(500, 4)]), Some((0x23, 4)), "{at}");
    }
    let next = populate(&mut bench, &[(10, 4)]);
    let same = next[480..].iter().zip(&token[480..]).filter(|(one, other)| one == other).count();
    assert!(same < 16, "secrets have nothing in common");
}

#[test]
fn a_token_expires_unused_and_lives_as_long_as_it_is_used() {
    let mut bench = Bench::new();
    let token = populate(&mut bench, &[(10, 4)]);
    for _ in 0..3 {
        bench.core.now = bench.core.now.after(Duration::from_secs(50));
        assert_eq!(write(&mut bench, &token, 0, &[(500, 4)]), None);
    }
    bench.core.now = bench.core.now.after(Duration::from_secs(61));
    assert_eq!(write(&mut bench, &token, 0, &[(500, 4)]), Some((0x23, 7)));
}

#[test]
fn the_last_use_deletes_a_token_where_asked() {
    let mut bench = Bench::new();
    let token = populate(&mut bench, &[(10, 4)]);
    begin(&mut bench, 0x11, 3, &write_list(&token, 0, 0x02, &[(500, 4)]));
    bench.settle();
    assert_eq!(write(&mut bench, &token, 0, &[(500, 4)]), Some((0x23, 9)));
}

#[test]
fn the_oldest_of_too_many_tokens_is_forgotten() {
    let mut bench = Bench::new();
    let first = populate(&mut bench, &[(10, 4)]);
    bench.core.now = bench.core.now.after(Duration::from_secs(1));
    let second = populate(&mut bench, &[(10, 4)]);
    bench.core.now = bench.core.now.after(Duration::from_secs(1));
    for _ in 1..limits::RODS_PER_UNIT_MAX {
        populate(&mut bench, &[(10, 4)]);
    }
    assert_eq!(write(&mut bench, &first, 0, &[(500, 4)]), Some((0x23, 4)));
    assert_eq!(write(&mut bench, &second, 0, &[(500, 4)]), None);
}

#[test]
fn the_zero_token_writes_zeros() {
    let mut bench = Bench::new();
    let before = numbered(&mut bench);
    assert_eq!(write(&mut bench, &zero_token(), 0, &[(500, 4), (700, 1)]), None);
    assert!(bench.disk[500 * 512..504 * 512].iter().all(|byte| *byte == 0));
    assert!(bench.disk[700 * 512..701 * 512].iter().all(|byte| *byte == 0));
    assert_eq!(bench.disk[504 * 512..700 * 512], before[504 * 512..700 * 512]);
    assert_eq!(information(&mut bench, 2).data[16..24], 5u64.to_be_bytes());
}

#[test]
fn an_immediate_write_is_answered_first_and_goes_on() {
    let mut bench = Bench::new();
    let before = numbered(&mut bench);
    let token = populate(&mut bench, &[(10, 4)]);
    let written = begin(&mut bench, 0x11, 2, &write_list(&token, 0, 0x01, &[(500, 4)]));
    assert_eq!(bench.reply(written).unwrap().status, 0);
    assert_eq!(information(&mut bench, 2).data[5], 0x12);
    bench.core.release(written);
    bench.settle();
    assert_eq!(information(&mut bench, 2).data[5], 0x01);
    assert_eq!(bench.disk[500 * 512..504 * 512], before[10 * 512..14 * 512]);
}

#[test]
fn a_reset_ends_a_copy_in_the_background() {
    let mut bench = Bench::new();
    let token = populate(&mut bench, &[(10, 4)]);
    begin(&mut bench, 0x11, 2, &write_list(&token, 0, 0x01, &[(500, 2), (600, 2)]));
    bench.core.end_background_copies(0, Some(UnitIndex(0)));
    bench.settle();
    let told = information(&mut bench, 2).data;
    assert_eq!((told[5], &told[16..24]), (0x60, &2u64.to_be_bytes()[..]));
    assert!(bench.core.targets[0].aborted_in_flight == 0);
}

/// One step of a run in which tokens, writes and copies meet: `source` and `count` within the first 64 sectors,
/// copies to a place of their own.
#[derive(Clone, Debug)]
enum Step {
    Populate {
        source: u64,
        count: u32,
    },
    Copy {
        token: usize,
    },
    Write {
        sector: u8,
    },
    /// Completes one of the operations with the ring.
    Complete {
        which: usize,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..56u64, 1..8u32).prop_map(|(source, count)| Step::Populate { source, count }),
        any::<usize>().prop_map(|token| Step::Copy { token }),
        (0..64u8).prop_map(|sector| Step::Write { sector }),
        any::<usize>().prop_map(|which| Step::Complete { which }),
        any::<usize>().prop_map(|which| Step::Complete { which }),
    ];
    prop::collection::vec(step, 1..60)
}

struct Made {
    task: TaskKey,
    identifier: u8,
    source: u64,
    count: u32,
    /// The token, and the data it stands for.
    token: Option<(Vec<u8>, Vec<u8>)>,
}

fn look(bench: &mut Bench, made: &mut [Made]) {
    for made in made.iter_mut().filter(|made| made.token.is_none()) {
        if bench.reply(made.task).is_some() {
            let token = information(bench, made.identifier).data[38..].to_vec();
            let start = made.source as usize * 512;
            made.token = Some((token, bench.disk[start..start + made.count as usize * 512].to_vec()));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the order in which operations complete, a copy from a token brings what was there when the token
    /// was made, or nothing it claims.
    #[test]
    fn a_token_never_gives_other_data(steps in steps()) {
        let mut bench = Bench::new();
        numbered(&mut bench);
        let mut made: Vec<Made> = Vec::new();
        let mut copies: Vec<(TaskKey, u64, Vec<u8>)> = Vec::new();
        let mut ops: Vec<(OpToken, Op)> = Vec::new();
        for step in steps {
            let room = bench.core.has_room();
            match step {
                Step::Populate { .. } | Step::Copy { .. } | Step::Write { .. } if !room => {}
                Step::Populate { source, count } if made.len() < 30 => {
                    let identifier = 100 + made.len() as u8;
                    let task = begin(&mut bench, 0x10, identifier, &list(16, &[(source, count)]));
                    made.push(Made { task, identifier, source, count, token: None });
                }
                Step::Copy { token } => {
                    let tokens: Vec<_> = made.iter().filter(|made| made.token.is_some()).collect();
                    if let Some(from) = tokens.get(token % tokens.len().max(1)) {
                        let (token, data) = from.token.clone().unwrap();
                        let to = 100 + copies.len() as u64 * 8;
                        let list = write_list(&token, 0, 0, &[(to, from.count)]);
                        let task = begin(&mut bench, 0x11, copies.len() as u8, &list);
                        copies.push((task, to, data));
                    }
                }
                Step::Write { sector } => {
                    plain_write(&mut bench, sector);
                }
                Step::Complete { which } if !ops.is_empty() => {
                    let op = ops.swap_remove(which % ops.len());
                    bench.complete(op);
                }
                _ => {}
            }
            ops.extend(bench.ops());
            look(&mut bench, &mut made);
        }
        while !ops.is_empty() {
            bench.complete(ops.remove(0));
            ops.extend(bench.ops());
            look(&mut bench, &mut made);
        }
        for (task, to, data) in copies {
            let ended = bench.reply(task).unwrap();
            prop_assert!(ended.status == 0 || ended.sense == Some((0x23, 6)), "{ended:?}");
            if ended.status == 0 {
                let start = to as usize * 512;
                prop_assert_eq!(&bench.disk[start..start + data.len()], &data[..]);
            }
        }
    }
}
