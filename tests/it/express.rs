//! The short way of a READ says the same as the long one: the same commands, with and without it, on the wire.
//!
//! Knows command streams of all kinds, cut into pieces anywhere. Does not know how either way works.
//!
//! Where several commands come at once the short way answers each as if it had come alone. The long way counts all of them
//! as received before it answers the first, and may answer a ping that came behind a read before it: what differs is the
//! order of answers, and with it StatSN, ExpCmdSN and MaxCmdSN.

#[path = "../../benches/fixture/memory_io.rs"]
mod memory_io;
#[path = "../../benches/fixture/served.rs"]
mod served;

use goldrush::io::SocketSlot;
use goldrush::shard::ShardReport;
use proptest::prelude::*;
use served::{SECTORS, Served, read_10, with_data};

/// Fewer frames than the golden image has chunks: hits, misses and evictions.
const FRAMES: u32 = 24;

/// A request that may come at any time.
#[derive(Clone, Debug)]
enum Request {
    Read {
        lba: u32,
        blocks: u16,
        long_cdb: bool,
        /// Beside SIMPLE and without any flag.
        odd: Odd,
    },
    Write {
        lba: u32,
        blocks: u16,
    },
    Inquiry,
    TestUnitReady,
    Reserve,
    Release,
    Ping,
    ResetUnit,
    AbortUnknown,
    /// Nothing is asked for a while.
    Pause,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Odd {
    No,
    Untagged,
    Ordered,
    HeadOfQueue,
    Immediate,
    Fua,
    Control,
    Protect,
    Short,
    Longer,
    WrongLun,
    /// A number that was there before.
    Stale,
}

fn lba() -> impl Strategy<Value = u32> {
    // Few places, so that much is read twice; some lie across blocks, in zeros, or beyond the end.
    prop_oneof![
        6 => (0_u32..12).prop_map(|place| place * 48),
        3 => (0_u32..600).prop_map(|place| place * 8 + 3500),
        1 => Just(SECTORS as u32 - 4),
        1 => 0..SECTORS as u32,
    ]
}

fn odd() -> impl Strategy<Value = Odd> {
    prop_oneof![
        20 => Just(Odd::No),
        1 => Just(Odd::Untagged),
        1 => Just(Odd::Ordered),
        1 => Just(Odd::HeadOfQueue),
        1 => Just(Odd::Immediate),
        1 => Just(Odd::Fua),
        1 => Just(Odd::Control),
        1 => Just(Odd::Protect),
        1 => Just(Odd::Short),
        1 => Just(Odd::Longer),
        1 => Just(Odd::WrongLun),
        1 => Just(Odd::Stale),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    let blocks = prop_oneof![8 => Just(8_u16), 2 => Just(128), 1 => Just(0), 1 => 1_u16..300];
    let read = (lba(), blocks, any::<bool>(), odd());
    prop_oneof![
        24 => read.prop_map(|(lba, blocks, long_cdb, odd)| Request::Read { lba, blocks, long_cdb, odd }),
        3 => (lba(), 1_u16..16).prop_map(|(lba, blocks)| Request::Write { lba, blocks }),
        1 => Just(Request::Inquiry),
        1 => Just(Request::TestUnitReady),
        1 => Just(Request::Reserve),
        1 => Just(Request::Release),
        1 => Just(Request::Ping),
        1 => Just(Request::ResetUnit),
        1 => Just(Request::AbortUnknown),
        2 => Just(Request::Pause),
    ]
}

/// One session's numbers.
struct Script {
    cmd_sn: u32,
    next_tag: u32,
    exp_stat_sn: u32,
}

impl Script {
    fn pdu(&mut self, request: &Request) -> Vec<u8> {
        self.next_tag += 1;
        let mut bhs = [0; 48];
        let mut data = Vec::new();
        let mut immediate = false;
        match request {
            Request::Read { lba, blocks, long_cdb, odd } => {
                bhs = read_10(0, 0, *lba, *blocks);
                if *long_cdb {
                    bhs[32..48].fill(0);
                    bhs[32] = 0x88;
                    bhs[38..42].copy_from_slice(&lba.to_be_bytes());
                    bhs[44..46].copy_from_slice(&blocks.to_be_bytes());
                }
                immediate = *odd == Odd::Immediate;
                make_odd(&mut bhs, *odd, *blocks, *long_cdb);
            }
            Request::Write { lba, blocks } => {
                bhs = read_10(0, 0, *lba, *blocks);
                (bhs[1], bhs[32]) = (0xA1, 0x2A);
                data = vec![self.next_tag as u8; usize::from(*blocks) * 512];
            }
            Request::Inquiry => {
                (bhs[0], bhs[1], bhs[32], bhs[36], bhs[23]) = (0x01, 0xC1, 0x12, 96, 96);
            }
            Request::TestUnitReady => (bhs[0], bhs[1]) = (0x01, 0x81),
            Request::Reserve => (bhs[0], bhs[1], bhs[32]) = (0x01, 0x81, 0x16),
            Request::Release => (bhs[0], bhs[1], bhs[32]) = (0x01, 0x81, 0x17),
            Request::Ping | Request::Pause => {
                (bhs[0], bhs[1]) = (0x00, 0x80);
                bhs[20..24].fill(0xFF);
                data = vec![7; 5];
            }
            Request::ResetUnit => (bhs[0], bhs[1]) = (0x02, 0x85),
            Request::AbortUnknown => {
                (bhs[0], bhs[1]) = (0x02, 0x81);
                bhs[20..24].copy_from_slice(&0x7000_0000_u32.to_be_bytes());
            }
        }
        bhs[0] |= if immediate { 0x40 } else { 0 };
        let stale = matches!(request, Request::Read { odd: Odd::Stale, .. });
        let cmd_sn = self.cmd_sn.wrapping_sub(if stale { 3 } else { 0 });
        bhs[16..20].copy_from_slice(&self.next_tag.to_be_bytes());
        bhs[24..28].copy_from_slice(&cmd_sn.to_be_bytes());
        bhs[28..32].copy_from_slice(&self.exp_stat_sn.to_be_bytes());
        self.cmd_sn += u32::from(!immediate && !stale);
        with_data(bhs, &data)
    }
}

fn make_odd(bhs: &mut [u8; 48], odd: Odd, blocks: u16, long_cdb: bool) {
    let expected = u32::from(blocks) * 512;
    match odd {
        Odd::No | Odd::Immediate | Odd::Stale => {}
        Odd::Untagged => bhs[1] = 0xC0,
        Odd::Ordered => bhs[1] = 0xC2,
        Odd::HeadOfQueue => bhs[1] = 0xC3,
        Odd::Fua => bhs[33] = 0x08,
        Odd::Control => bhs[if long_cdb { 47 } else { 41 }] = 0x04,
        Odd::Protect => bhs[33] = 0x20,
        Odd::Short => bhs[20..24].copy_from_slice(&(expected / 2).to_be_bytes()),
        Odd::Longer => bhs[20..24].copy_from_slice(&(expected + 512).to_be_bytes()),
        Odd::WrongLun => bhs[9] = 5,
    }
}

/// Everything one shard says to a script, the times when it says it, and what it has counted.
#[derive(Debug, PartialEq)]
struct Said {
    pdus: Vec<Vec<u8>>,
    counted: String,
}

fn say(express: bool, segment: u32, requests: &[Request], pieces: &[usize], numbers: bool) -> Said {
    let mut served = Served::new(express, FRAMES);
    let socket = served.log_in("script", segment);
    let mut script = Script { cmd_sn: 1, next_tag: 0, exp_stat_sn: 1 };
    let mut said = Vec::new();
    let mut pieces = pieces.iter().copied().cycle();
    let mut waiting: Vec<u8> = Vec::new();
    for request in requests {
        if let Request::ResetUnit = request {
            // It ends what has begun: what came with it is gone on the long way, and answered on the short one.
            give(&mut served, socket, &core::mem::take(&mut waiting), &mut script, &mut said);
        }
        let pdu = script.pdu(request);
        waiting.extend(pdu);
        if let Request::Pause = request {
            served.shard.io().now.0 += 3_000_000;
        }
        let enough = pieces.next().unwrap_or(0);
        while waiting.len() > enough {
            // Nobody sends beyond what the receive buffers take, nor commands beyond the window.
            let piece = waiting.drain(..waiting.len().min(enough.max(48))).collect::<Vec<_>>();
            give(&mut served, socket, &piece, &mut script, &mut said);
        }
    }
    give(&mut served, socket, &waiting, &mut script, &mut said);
    if !numbers {
        forget_order(&mut said);
    }
    Said { pdus: said, counted: counted(&served.report()) }
}

/// Answers by the tags of their commands, without their numbers, after a look at those.
fn forget_order(said: &mut [Vec<u8>]) {
    let has_status = |pdu: &[u8]| pdu[0] & 0x3F != 0x25 || pdu[1] & 1 != 0;
    let numbers = said.iter().filter(|pdu| has_status(pdu)).map(|pdu| pdu[24..28].to_vec());
    let numbers: Vec<u32> = numbers.map(|it| u32::from_be_bytes([it[0], it[1], it[2], it[3]])).collect();
    assert!(
        numbers.windows(2).all(|pair| pair[1] == pair[0].wrapping_add(1)),
        "StatSN in order: {numbers:?}"
    );
    said.iter_mut().for_each(|pdu| pdu[24..36].fill(0));
    said.sort_by_key(|pdu| pdu[16..20].to_vec());
}

fn give(served: &mut Served, socket: SocketSlot, piece: &[u8], script: &mut Script, said: &mut Vec<Vec<u8>>) {
    if !piece.is_empty() {
        served.shard.io().feed(socket, piece);
    }
    served.settle();
    served.shard.io().now.0 += 1000;
    let sent = served.shard.io().take_sent(socket);
    let mut rest = &sent[..];
    while !rest.is_empty() {
        let len = 48 + u32::from_be_bytes([0, rest[5], rest[6], rest[7]]).next_multiple_of(4) as usize;
        let (pdu, next) = rest.split_at(len);
        if pdu[0] & 0x3F != 0x25 || pdu[1] & 1 != 0 {
            script.exp_stat_sn = u32::from_be_bytes([pdu[24], pdu[25], pdu[26], pdu[27]]).wrapping_add(1);
        }
        said.push(pdu.to_vec());
        rest = next;
    }
}

/// What must not depend on the way.
fn counted(report: &ShardReport) -> String {
    format!(
        "{:?} {:?} {:?} {} reads in {} us {:?} {:?}",
        report.load,
        report.counts,
        report.golden,
        report.reads.histogram.len(),
        report.reads.sum_us,
        report.targets,
        report.sessions,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// One command a turn: not a byte differs.
    #[test]
    fn commands_one_by_one_are_answered_with_the_same_bytes(
        requests in proptest::collection::vec(request(), 1..80),
        segment in prop_oneof![Just(512_u32), Just(8192), Just(256 * 1024)],
    ) {
        let long = say(false, segment, &requests, &[0], true);
        let short = say(true, segment, &requests, &[0], true);
        prop_assert_eq!(short, long);
    }

    /// Many commands a turn, cut anywhere: the same, but for the window.
    #[test]
    fn commands_in_batches_are_answered_alike(
        requests in proptest::collection::vec(request(), 1..120),
        pieces in proptest::collection::vec(1_usize..4000, 1..20),
    ) {
        let long = say(false, 256 * 1024, &requests, &pieces, false);
        let short = say(true, 256 * 1024, &requests, &pieces, false);
        prop_assert_eq!(short, long);
    }
}

/// A TASK MANAGEMENT function that follows a read in the same piece finds it answered.
#[test]
fn a_function_finds_a_read_that_was_answered_at_once_complete() {
    let mut served = Served::new(true, FRAMES);
    let socket = served.log_in("script", 8192);
    let mut script = Script { cmd_sn: 1, next_tag: 0, exp_stat_sn: 1 };
    let mut said = Vec::new();
    let read = Request::Read { lba: 8, blocks: 8, long_cdb: false, odd: Odd::No };
    for _ in 0..2 {
        // The unit attention, then the data comes into the cache.
        let pdu = script.pdu(&read);
        give(&mut served, socket, &pdu, &mut script, &mut said);
    }
    said.clear();
    let mut both = script.pdu(&read);
    let mut abort = script.pdu(&Request::AbortUnknown);
    abort[20..24].copy_from_slice(&(script.next_tag - 1).to_be_bytes());
    abort[32..36].copy_from_slice(&(script.cmd_sn - 2).to_be_bytes());
    both.extend(abort);
    give(&mut served, socket, &both, &mut script, &mut said);
    let kinds: Vec<_> = said.iter().map(|pdu| pdu[0] & 0x3F).collect();
    assert_eq!(kinds, [0x25, 0x22], "the data with its status, then the answer of the function");
    assert_eq!(said[1][2], 1, "the task does not exist any more");
}
