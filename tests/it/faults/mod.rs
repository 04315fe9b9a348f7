//! Faults at every file operation of a workload: the real shard and the real executor, a disk that fails on purpose.
//!
//! Knows what each fault must look like to the initiator, to its neighbour, and to whoever opens the image afterwards.
//! The workload runs once to count the operations on the victim, then once for each of them and each kind of fault.

mod disk_io;
mod node;

use std::collections::BTreeSet;

use goldrush::pending::Journal;
use goldrush::plan::OpenMode;
use goldrush::vhd::check::check;
use goldrush::vhdx;

use crate::blocking::{Disk, Store};
use crate::crash_recovery::{Recovered, recover};
use crate::crash_world::{Format, Mistake, content, fill_parent, new_image, parent_ref};
use crate::sector_history::{History, Promise};
use crate::sim_disk::{Rng, SimDisk, SimFile, sector_of};
use crate::vhdx_files::{New, data_write_guid, write_new_vhdx};
use disk_io::{Fault, IO_ERROR, Kind, World};
use goldrush::units::BlockSize;
use goldrush::vhd::create::NewKind;
use node::{Ended, Node};

const SECTORS: u64 = 12_288;
const VICTIM: usize = 0;
const NEIGHBOUR: usize = 1;
const ENOSPC: i32 = 28;
const EFBIG: i32 = 27;
const EDQUOT: i32 = 122;

type Sense = (u8, u8, u8);
const SPACE_ALLOCATION_FAILED: Sense = (7, 0x27, 7);
const WRITE_PROTECTED: Sense = (7, 0x27, 0);
const WRITE_ERROR: Sense = (3, 0x0C, 0);
const READ_ERROR: Sense = (3, 0x11, 0);

/// One case.
#[derive(Clone, Copy, Debug)]
struct Case {
    format: Format,
    journal: bool,
    /// Which file: the victim's leaf or, for reads, the parent of all.
    file: usize,
    fault: Option<(usize, Fault)>,
}

#[derive(Clone, Copy)]
enum Step {
    Write { at: u64, count: u64, fua: bool },
    Unmap { at: u64, count: u64 },
    Flush,
    Read { at: u64, count: u64 },
}

fn write(at: u64, count: u64) -> Step {
    Step::Write { at, count, fua: false }
}

/// First writes, second writes, writes across blocks, zeros, flushes: several of them on their way at any time.
fn workload() -> Vec<Step> {
    let flush = Step::Flush;
    let mut steps =
        vec![write(16, 8), write(24, 8), write(2000, 16), Step::Write { at: 3000, count: 8, fua: true }];
    steps.extend([
        write(16, 8),
        flush,
        Step::Unmap { at: 0, count: 20 },
        Step::Unmap { at: 2040, count: 24 },
    ]);
    steps.extend([
        write(4072, 48),
        write(5000, 8),
        Step::Read { at: 4064, count: 64 },
        write(9000, 8),
        flush,
    ]);
    steps.extend([
        write(11_000, 8),
        write(9008, 8),
        Step::Write { at: 4104, count: 8, fua: true },
        write(7000, 8),
    ]);
    steps.extend([Step::Read { at: 0, count: 64 }, write(16, 8), flush]);
    steps
}

/// The victim's leaf, the neighbour's, and the parent of both.
fn files(format: Format) -> Vec<SimDisk> {
    let rng = &mut Rng(3);
    let leaves = match format {
        Format::Vhd => {
            let parent = new_image(NewKind::Dynamic { block_size: 512 << 10 }, SECTORS, 1);
            let parent = fill_parent(vec![parent], rng, 0, 1).remove(0);
            let leaf = |id| {
                new_image(NewKind::Differencing { block_size: 512 << 10, parent: parent_ref(1) }, SECTORS, id)
            };
            vec![leaf(2), leaf(3), parent]
        }
        Format::Vhdx => {
            let new = |parent, id| {
                let mut file = SimFile::default();
                let new = New {
                    sectors: SECTORS,
                    block_size: 1 << 20,
                    logical_sector: BlockSize::B512,
                    parent,
                    id,
                };
                write_new_vhdx(&mut file, &new);
                file
            };
            let parent = fill_parent(vec![new(None, 1)], rng, 0, 1).remove(0);
            let link = Some((data_write_guid(&parent), "parent.vhdx".to_owned()));
            vec![new(link.clone(), 2), new(link, 3), parent]
        }
    };
    leaves.into_iter().map(SimDisk::new).collect()
}

/// One initiator's view of its disk.
struct Client {
    session: usize,
    history: History,
    next: u64,
    /// Commands on their way: tag, step, value, when begun.
    on_their_way: Vec<(u32, Step, u64, u64)>,
    senses: BTreeSet<Sense>,
}

impl Client {
    fn new(session: usize, files: &[SimDisk]) -> Self {
        let chain = vec![files[session].volatile.clone(), files[2].volatile.clone()];
        let mut history = History::default();
        history.restart(content(&mut Disk::open(chain, OpenMode::ReadOnly).unwrap()));
        Self { session, history, next: 1, on_their_way: Vec::new(), senses: BTreeSet::new() }
    }

    fn begin(&mut self, node: &mut Node, step: Step, now: u64) {
        let value = self.next;
        self.next += 1;
        let rw = |opcode: u8, fua: bool, at: u64, count: u64| {
            let mut cdb = [opcode, u8::from(fua) << 3, 0, 0, 0, 0, 0, 0, 0, 0];
            cdb[2..6].copy_from_slice(&(at as u32).to_be_bytes());
            cdb[7..9].copy_from_slice(&(count as u16).to_be_bytes());
            cdb
        };
        let tag = match step {
            Step::Write { at, count, fua } => {
                self.history.began(value, at..at + count, value, now);
                let bytes = sector_of(value).repeat(count as usize);
                node.command(self.session, &rw(0x2A, fua, at, count), &bytes, 0)
            }
            Step::Unmap { at, count } => {
                self.history.began(value, at..at + count, 0, now);
                let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
                list.extend(at.to_be_bytes());
                list.extend((count as u32).to_be_bytes());
                list.extend([0; 4]);
                node.command(self.session, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &list, 0)
            }
            Step::Flush => node.command(self.session, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0),
            Step::Read { at, count } => {
                node.command(self.session, &rw(0x28, false, at, count), &[], count as u32 * 512)
            }
        };
        self.on_their_way.push((tag, step, value, now));
    }

    fn collect(&mut self, node: &mut Node, now: u64) -> Result<(), String> {
        let mut left = Vec::new();
        for (tag, step, value, began) in core::mem::take(&mut self.on_their_way) {
            match node.ended(self.session, tag) {
                None => left.push((tag, step, value, began)),
                Some(ended) => self.answered(step, value, began, &ended, now)?,
            }
        }
        self.on_their_way = left;
        Ok(())
    }

    fn answered(
        &mut self,
        step: Step,
        value: u64,
        began: u64,
        ended: &Ended,
        now: u64,
    ) -> Result<(), String> {
        let good = ended.status == 0;
        match (good, ended.sense) {
            (true, _) => {}
            (false, Some(sense)) if ended.status == 2 => _ = self.senses.insert(sense),
            _ => return Err(format!("a command ended with {ended:?}")),
        }
        match step {
            Step::Write { at, count, fua } => {
                self.history.ended(value, at..at + count, good, now);
                if good && fua {
                    self.history.stable(value, at..at + count);
                }
            }
            Step::Unmap { at, count } => self.history.ended(value, at..at + count, good, now),
            Step::Flush if good => self.history.flushed(began),
            Step::Read { at, count } if good => {
                let read = ended.data.chunks_exact(512).zip(at..at + count);
                let complaint = read
                    .filter_map(|(bytes, sector)| {
                        let found = u64::from_le_bytes(bytes[..8].try_into().ok()?);
                        self.history.complaint_at(sector, found, Promise::Acknowledged)
                    })
                    .next();
                return complaint.map_or(Ok(()), Err);
            }
            Step::Flush | Step::Read { .. } => {}
        }
        Ok(())
    }

    /// One command alone; the sense it ended with.
    fn one(&mut self, node: &mut Node, step: Step, now: &mut u64) -> Result<Option<Sense>, String> {
        *now += 1;
        let began = *now;
        self.begin(node, step, began);
        let Some((tag, step, value, _)) = self.on_their_way.pop() else { return Ok(None) };
        let ended = node.wait(self.session, tag);
        *now += 1;
        self.answered(step, value, began, &ended, *now)?;
        Ok(ended.sense.filter(|_| ended.status != 0))
    }
}

/// What a run was like.
struct Report {
    operations: Vec<Kind>,
    /// The initiator was told something.
    told: bool,
    states: u64,
}

/// Runs the workload with one fault in it.
fn run(case: Case) -> Result<Report, String> {
    let files = files(case.format);
    let (mut victim, mut neighbour) = (Client::new(VICTIM, &files), Client::new(NEIGHBOUR, &files));
    let world = World::new(files, case.file, case.fault);
    let mut node = Node::new(&world, case.journal);
    let mut now = 1;
    for (index, step) in workload().into_iter().enumerate() {
        now += 1;
        victim.begin(&mut node, step, now);
        while victim.on_their_way.len() > 2 {
            now += 1;
            node.turn();
            victim.collect(&mut node, now)?;
        }
        if index % 3 == 0 {
            let at = index as u64 * 300;
            for step in [write(at, 8), Step::Flush, Step::Read { at, count: 16 }] {
                // The parent is the neighbour's, too.
                let fair = |sense: &Sense| case.file > NEIGHBOUR && *sense == READ_ERROR;
                let sense = neighbour.one(&mut node, step, &mut now)?;
                if let Some(sense) = sense.filter(|sense| !fair(sense)) {
                    return Err(format!("the neighbour is told {sense:x?}"));
                }
            }
        }
    }
    while !victim.on_their_way.is_empty() {
        now += 1;
        node.turn();
        victim.collect(&mut node, now)?;
    }
    node.pass(3);
    let hit = world.borrow().hit;
    let told = !victim.senses.is_empty() || !neighbour.senses.is_empty();
    let nature = nature(case, hit);
    judge_senses(nature, &victim.senses)?;
    let operations = world.borrow().seen.clone();
    let failed = afterwards(nature, &mut node, &world, &mut victim, &mut now)?;
    let mut states = judge_crashes(case, &world.borrow().files, &node, &victim)?;
    let memory = node.stop();
    if let Some(memory) = memory {
        let journal = journal_of(&memory);
        let spent = journal.is_spent();
        let marked = journal.is_failed(goldrush::pending::LeafIndex(VICTIM as u32));
        if !failed && !spent || nature == Nature::Flush && !marked {
            return Err(format!(
                "after a stop the journal is spent: {spent}, marks a failed flush: {marked}"
            ));
        }
    }
    if !failed {
        let file = world.borrow().files[VICTIM].clone();
        states += 1;
        judge_content(case, &file, &world.borrow().files, &victim.history, Promise::Acknowledged)?;
    }
    let files = &world.borrow().files;
    judge_content(case, &files[NEIGHBOUR], files, &neighbour.history, Promise::Acknowledged)?;
    Ok(Report { operations, told, states })
}

/// What a fault comes to, once it is known which operation it met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nature {
    /// Nobody may notice.
    Harmless,
    Space,
    Flush,
    Read,
    /// A write, a hole or a length: data may be written again, metadata may not.
    Medium,
    Lie,
}

fn nature(case: Case, hit: Option<Kind>) -> Nature {
    match (case.fault.map(|(_, fault)| fault), hit) {
        (None | Some(Fault::Short), _) | (_, None) => Nature::Harmless,
        (Some(Fault::Lie), _) => Nature::Lie,
        (Some(Fault::FullFrom(_)), _) => Nature::Space,
        (_, Some(Kind::Sync)) => Nature::Flush,
        (_, Some(Kind::Read)) => Nature::Read,
        (Some(Fault::Once(ENOSPC | EFBIG | EDQUOT)), _) => Nature::Space,
        (Some(Fault::Once(_)), _) => Nature::Medium,
    }
}

/// Each fault has its sense, and no other.
fn judge_senses(nature: Nature, senses: &BTreeSet<Sense>) -> Result<(), String> {
    let expected: &[Sense] = match nature {
        Nature::Harmless => &[],
        Nature::Space => &[SPACE_ALLOCATION_FAILED],
        Nature::Read => &[READ_ERROR],
        Nature::Flush | Nature::Medium => &[WRITE_ERROR, WRITE_PROTECTED],
        // What the canary does to an initiator is its own affair.
        Nature::Lie => return Ok(()),
    };
    let strange: Vec<_> = senses.iter().filter(|sense| !expected.contains(sense)).collect();
    if strange.is_empty() { Ok(()) } else { Err(format!("told {strange:x?} where {expected:x?} is right")) }
}

/// The disk after the fault: writes go on, or are refused for good. True: for good.
fn afterwards(
    nature: Nature,
    node: &mut Node,
    world: &disk_io::Shared,
    victim: &mut Client,
    now: &mut u64,
) -> Result<bool, String> {
    if nature == Nature::Space {
        // While it is full (where it stays full) a write finds its place or is told so.
        for step in [write(6000, 8), write(8200, 8)] {
            if let Some(sense) =
                victim.one(node, step, now)?.filter(|sense| *sense != SPACE_ALLOCATION_FAILED)
            {
                return Err(format!("a full disk makes a write end with {sense:x?}"));
            }
        }
    }
    world.borrow_mut().free_space();
    let read = victim.one(node, Step::Read { at: 4064, count: 64 }, now)?;
    if let Some(sense) = read {
        return Err(format!("a read after the fault ends with {sense:x?}"));
    }
    // Whoever meets the last of a fault is told; the next one finds that it is over.
    let mut sense = None;
    for at in [500, 6100, 500] {
        sense = victim.one(node, write(at, 8), now)?;
    }
    let flush = victim.one(node, Step::Flush, now)?;
    match (sense, flush, nature) {
        (None, None, nature) if nature != Nature::Flush => Ok(false),
        (Some(WRITE_PROTECTED), Some(WRITE_ERROR), Nature::Flush | Nature::Medium) => Ok(true),
        other => Err(format!("afterwards write and flush end with {other:x?}")),
    }
}

fn journal_of(memory: &crate::sim_journal::Memory) -> Journal {
    use std::sync::atomic::Ordering;
    let words = memory.iter().flat_map(|word| word.load(Ordering::Acquire).to_ne_bytes());
    Journal::parse(&words.collect::<Vec<u8>>()).unwrap()
}

/// What a kill and power cuts would leave now.
fn judge_crashes(case: Case, files: &[SimDisk], node: &Node, victim: &Client) -> Result<u64, String> {
    let rng = &mut Rng(9);
    let flush_failed = node
        .memory
        .as_ref()
        .map(journal_of)
        .is_some_and(|journal| journal.is_failed(goldrush::pending::LeafIndex(VICTIM as u32)));
    let mut states = 0;
    // After a failed flush the image is opened for reading only, its records are given up.
    if !flush_failed {
        let memory = node.memory.as_ref();
        let recovered = loop {
            if let Recovered::Done(disk) = recover(&files[VICTIM], memory, 0, Mistake::None, rng)? {
                break disk;
            }
        };
        judge_content(case, &recovered, files, &victim.history, Promise::Acknowledged)?;
        states += 1;
    }
    for _ in 0..2 {
        let cut = files[VICTIM].power_cut(&[], rng);
        judge_content(case, &cut, files, &victim.history, Promise::Flushed)?;
        states += 1;
    }
    Ok(states)
}

fn judge_content(
    case: Case,
    leaf: &SimDisk,
    files: &[SimDisk],
    history: &History,
    promise: Promise,
) -> Result<(), String> {
    let file = &leaf.volatile;
    let read = |offset, bytes: &mut [u8]| file.read_at(offset, bytes);
    match case.format {
        Format::Vhd => {
            let report = check(file.len, read).unwrap();
            if !report.is_clean() {
                return Err(format!("{promise:?}: {:?}", report.findings));
            }
        }
        Format::Vhdx => {
            let report = vhdx::check::check(file.len, read).unwrap();
            let bad = report.findings.iter().find(|finding| finding.severity == vhdx::check::Severity::Error);
            if let Some(finding) = bad {
                return Err(format!("{promise:?}: {}", finding.sentence));
            }
        }
    }
    let mut disk = Disk::open(vec![file.clone(), files[2].volatile.clone()], OpenMode::ReadOnly)?;
    history
        .complaint(&content(&mut disk), promise)
        .map_or(Ok(()), |complaint| Err(format!("{promise:?}: {complaint}")))
}

/// Every operation of the workload, with each of these faults.
fn run_all(format: Format, journal: bool, file: usize, faults: &[Fault]) {
    let quiet = Case { format, journal, file, fault: None };
    let operations = run(quiet).unwrap().operations;
    let (mut runs, mut told, mut states) = (0, 0, 0);
    let mut failures = Vec::new();
    for at in 0..operations.len() {
        for fault in faults {
            // A full disk has three names.
            let fault = match fault {
                Fault::Once(ENOSPC) => Fault::Once([ENOSPC, EFBIG, EDQUOT][at % 3]),
                other => *other,
            };
            let case = Case { fault: Some((at, fault)), ..quiet };
            match run(case) {
                Ok(report) => {
                    (runs, told, states) = (runs + 1, told + u64::from(report.told), states + report.states)
                }
                Err(error) => failures.push(format!("{:?} at {at} ({:?}): {error}", fault, operations[at])),
            }
        }
    }
    println!(
        "{format:?}, journal {journal}: {} operations, {runs} faults, {told} told the initiator, {states} states",
        operations.len()
    );
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), runs + failures.len(), failures.join("\n"));
    // What is read ahead of a parent fails in silence: whoever wants it reads for itself.
    assert!(told > 0 || file > NEIGHBOUR);
}

const OF_A_LEAF: [Fault; 4] = [Fault::Once(ENOSPC), Fault::FullFrom(ENOSPC), IO_ERROR, Fault::Short];

#[test]
fn no_fault_of_a_vhd_leaf_is_hidden_or_spreads() {
    run_all(Format::Vhd, false, VICTIM, &OF_A_LEAF);
}

#[test]
fn no_fault_of_a_vhd_leaf_with_a_journal_is_hidden_or_spreads() {
    run_all(Format::Vhd, true, VICTIM, &OF_A_LEAF);
}

#[test]
fn no_fault_of_a_vhdx_leaf_is_hidden_or_spreads() {
    run_all(Format::Vhdx, false, VICTIM, &OF_A_LEAF);
}

#[test]
fn no_fault_of_a_vhdx_leaf_with_a_journal_is_hidden_or_spreads() {
    run_all(Format::Vhdx, true, VICTIM, &OF_A_LEAF);
}

/// The canary: a disk that lies is found out.
#[test]
fn a_disk_that_lies_is_noticed() {
    for format in [Format::Vhd, Format::Vhdx] {
        let quiet = Case { format, journal: false, file: VICTIM, fault: None };
        let operations = run(quiet).unwrap().operations;
        let lies = |kind| {
            let places = operations.iter().enumerate().filter(move |(_, found)| **found == kind);
            places.map(|(at, _)| Case { fault: Some((at, Fault::Lie)), ..quiet })
        };
        let noticed = |kind| lies(kind).filter(|case| run(*case).is_err()).count();
        let (writes, syncs) = (noticed(Kind::Write), noticed(Kind::Sync));
        assert!(writes > 5 && syncs > 0, "{format:?}: {writes} lost writes and {syncs} lost flushes noticed");
    }
}

/// The parent is read through the golden cache: a read that fails is told, and the next one reads anew.
#[test]
fn no_fault_of_a_parent_is_hidden_or_spreads() {
    for format in [Format::Vhd, Format::Vhdx] {
        run_all(format, true, 2, &[IO_ERROR, Fault::Short]);
    }
}
