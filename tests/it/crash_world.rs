//! A chain under load in a simulated world: guest writes, metadata batches and flushes complete in random order.
//!
//! One life lasts from an open to a crash. Every operation is in flight for a while; nothing waits for anything that
//! the image code does not wait for.

use crate::blocking::{Disk, Store, range, write_new};
use crate::crash_oracle::seven_zip_agrees;
use crate::crash_recovery::{Recovered, effect_of, recover, unrecorded};
use crate::sector_history::{Content, History, Promise};
use crate::sim_disk::{Effect, Rng, Sector, SimDisk, SimFile, sector_of};
use crate::sim_journal::{self, Memory, SimJournal};
use crate::vhdx_files::new_vhdx_chain;
use goldrush::plan::{
    BatchEnd, CommitSeq, IoFault, MetaBatch, MetaOp, NoRecords, Source, WriteExtent, WriteKind, WritePlan,
    WriteRefused, WriteStep,
};
use goldrush::units::{SectorCount, SectorRange};
use goldrush::vhd::OpenMode;
use goldrush::vhd::check::check;
use goldrush::vhd::create::{NewDisk, NewKind, ParentRef, create};
use goldrush::vhdx::check::Severity;
use goldrush::vhdx::{self, Structure};
use std::collections::BTreeMap;
use uuid::Uuid;

/// What a world's images are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Vhd,
    Vhdx,
}

/// Deliberate mistakes, to see that the tests notice them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    None,
    /// Flushes between data and metadata do nothing.
    NoMetaSync,
    /// Zeroing of new blocks does nothing.
    NoZero,
    /// Writes are answered without waiting for their commit.
    EarlyAnswer,
    /// Records are stored after the answer.
    LateRecord,
    /// Records are retired when their commit begins.
    EarlyRetire,
    /// Records of before a power cut are replayed after it.
    StaleBoot,
    /// A replay writes bits before the data is stable.
    NoReplaySync,
    /// A flush is answered without the commit of what is only recorded.
    NoFlushCommit,
    /// VHDX: a log that a crash left is emptied, and not replayed.
    NoReplay,
    /// A failed flush is forgotten: the image goes on as if it had been a good one.
    ForgottenFlush,
}

/// Whether independent readers look at states too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampling {
    None,
    /// At a few: a process each is dear.
    Some,
}

/// What a sector counts as that no test wrote: a footer or a bitmap, say.
pub const NOBODYS: u64 = u64::MAX;

#[derive(Clone, Debug)]
enum Purpose {
    Guest(u64),
    Meta,
    MetaSync(usize),
    GuestSync { covers: usize, began: u64 },
}

struct Flight {
    effect: Option<Effect>,
    purpose: Purpose,
}

struct GuestWrite {
    range: SectorRange,
    commit: bool,
    extents_left: usize,
    failed: bool,
}

pub struct World {
    pub rng: Rng,
    pub disk: Disk<SimFile>,
    pub leaf: SimDisk,
    pub history: History,
    pub format: Format,
    pub mistake: Mistake,
    flights: Vec<Flight>,
    writes: BTreeMap<u64, GuestWrite>,
    waiting: Vec<(CommitSeq, u64)>,
    /// Flushes that wait for a commit: it, and when they were asked for.
    flushes: Vec<(CommitSeq, u64)>,
    /// `None`: every first write waits for a commit.
    journal: Option<SimJournal>,
    boot: u8,
    batch_left: usize,
    batch_result: Result<(), IoFault>,
    /// A batch that found no space and is to be run once more.
    stalled: Option<MetaBatch>,
    batch: MetaBatch,
    now: u64,
    next_write: u64,
    closing: bool,
    /// Reads and writes are whole numbers of so many sectors.
    unit: u64,
    /// A metadata operation of this life has failed; a flush has.
    meta_fault: bool,
    flush_failed: bool,
    /// The state that was found sound last: an unchanged copy of it is.
    sound: SimFile,
    pub states: u64,
    pub sampling: Sampling,
    pub read_by_others: u64,
}

/// The size of a disk in sectors, and a block size.
fn random_layout(rng: &mut Rng) -> (u64, u32) {
    let sectors = 1 + rng.below(3000) + rng.below(2) * 1200;
    (sectors, 512 << (10 + rng.below(3)))
}

pub fn new_image(kind: NewKind, sectors: u64, id: u128) -> SimFile {
    let disk = NewDisk { kind, sectors: SectorCount(sectors), unique_id: Uuid::from_u128(id), timestamp: 1 };
    let mut file = SimFile::default();
    write_new(&mut file, &create(&disk).unwrap());
    file
}

/// How a child names the image that [`new_image`] made under this number.
pub fn parent_ref(id: u128) -> ParentRef {
    let (unique_id, relative) = (Uuid::from_u128(id), "parent.vhd".to_owned());
    ParentRef { unique_id, timestamp: 1, relative, absolute: None }
}

/// Parents (nearest first) with some content, and an empty leaf in front.
fn new_vhd_chain(rng: &mut Rng) -> Vec<SimFile> {
    let (sectors, _) = random_layout(rng);
    let mut files: Vec<SimFile> = Vec::new();
    let depth = rng.below(3);
    for level in 0..=depth {
        let (_, block_size) = random_layout(rng);
        let kind = match level {
            0 if depth > 0 && rng.chance(30) => NewKind::Fixed,
            0 => NewKind::Dynamic { block_size },
            _ => {
                let parent = parent_ref(u128::from(level));
                NewKind::Differencing { block_size, parent }
            }
        };
        files.insert(0, new_image(kind, sectors, u128::from(level) + 1));
        if level < depth {
            files = fill_parent(files, rng, level, 1);
        }
    }
    files
}

/// Writes something here and there, in whole numbers of `unit` sectors.
pub fn fill_parent(files: Vec<SimFile>, rng: &mut Rng, level: u64, unit: u64) -> Vec<SimFile> {
    let mut disk = Disk::open(files, OpenMode::Writable).unwrap();
    let sectors = disk.sectors();
    for _ in 0..rng.below(6) {
        let start = rng.below(sectors / unit) * unit;
        let count = (1 + rng.below(((sectors - start) / unit).min(200))) * unit;
        let bytes: Vec<u8> =
            (start..start + count).flat_map(|sector| sector_of((level + 1) << 60 | sector)).collect();
        disk.write(start, &bytes).unwrap();
    }
    disk.close()
}

/// Everything a chain reads that is not zero.
pub fn content(disk: &mut Disk<SimFile>) -> Content {
    let mut content = Content::default();
    let mut at = 0;
    disk.each_extent(range(0, disk.sectors()), |disk, len, source| {
        let sectors = u64::from(len) / 512;
        if let Source::File { file, offset, .. } = source {
            let first = offset.0 / 512;
            for (sector, found) in disk.files[file.0 as usize].sectors(first..first + sectors) {
                let value = match found {
                    Sector::Value(value) => *value,
                    Sector::Bytes(_) => NOBODYS,
                };
                content.push(at + sector - first, value);
            }
        }
        at += sectors;
    });
    content
}

impl World {
    pub fn new(seed: u64, format: Format, mistake: Mistake) -> Self {
        let mut rng = Rng(seed);
        let (files, unit) = match format {
            Format::Vhd => (new_vhd_chain(&mut rng), 1),
            Format::Vhdx => new_vhdx_chain(&mut rng),
        };
        let mut disk = Disk::open(files, OpenMode::Writable).unwrap();
        let mut history = History::default();
        history.restart(content(&mut disk));
        let leaf = SimDisk::new(disk.files[0].clone());
        let journal = rng.chance(70).then(|| SimJournal::new(0, 1, mistake));
        Self {
            journal,
            boot: 0,
            flushes: Vec::new(),
            rng,
            disk,
            leaf,
            history,
            format,
            mistake,
            flights: Vec::new(),
            writes: BTreeMap::new(),
            waiting: Vec::new(),
            batch_left: 0,
            batch_result: Ok(()),
            stalled: None,
            batch: MetaBatch::default(),
            now: 0,
            next_write: 1,
            closing: false,
            unit,
            meta_fault: false,
            flush_failed: false,
            sound: SimFile::default(),
            states: 0,
            sampling: Sampling::None,
            read_by_others: 0,
        }
    }

    /// One random event.
    pub fn step(&mut self) -> Result<(), String> {
        self.now += 1;
        match self.rng.below(10) {
            0..=2 if !self.closing && self.flights.len() < 40 => self.begin_write(),
            3 => self.pump(),
            4 if self.rng.chance(30) => self.ask_flush(),
            4 => self.commit_now_and_then(),
            5 if self.rng.chance(20) => return self.check_read(),
            6 if self.rng.chance(3) && self.writes.is_empty() => {
                self.disk.images.begin_close(self.disk.chain.leaf());
                self.closing = true;
            }
            _ => self.finish_one(),
        }
        Ok(())
    }

    fn begin_write(&mut self) {
        let units = self.disk.sectors() / self.unit;
        let start = self.rng.below(units);
        let most = if self.rng.chance(10) { 2000 } else { 12 };
        let count = 1 + self.rng.below((units - start).min(most));
        let (start, count) = (start * self.unit, count * self.unit);
        let kind = if self.rng.chance(25) { WriteKind::Zero } else { WriteKind::Data };
        let mut left = range(start, count);
        let mut plan = WritePlan::default();
        while !left.is_empty() {
            match self.disk.images.resolve_write(&self.disk.chain, left, kind, &mut plan) {
                Ok(WriteStep::NeedBitmap(read)) => self.load_bitmap(read),
                Ok(WriteStep::NeedSpace(layer)) => {
                    // The guest's command waits; here it is dropped, and another one comes later.
                    assert_eq!(layer, self.disk.chain.leaf());
                    return self.pump();
                }
                Ok(WriteStep::Ready { covered, commit }) => {
                    assert!(covered.0 > 0);
                    self.submit(left.take(covered), commit, kind, &plan);
                    left = left.skip(covered);
                }
                Err(WriteRefused::NoSpace | WriteRefused::Failed) => return,
                Err(refused) => panic!("{refused}"),
            }
        }
    }

    fn load_bitmap(&mut self, read: goldrush::plan::BitmapRead) {
        if read.file.0 == 0 {
            self.disk.files[0] = self.leaf.volatile.clone();
        }
        self.disk.load_bitmap(read);
    }

    fn submit(&mut self, range: SectorRange, commit: bool, kind: WriteKind, plan: &WritePlan) {
        let write = self.next_write;
        self.next_write += 1;
        let value = if kind == WriteKind::Zero { 0 } else { write };
        self.history.began(write, range.start().0..range.end().0, value, self.now);
        let mut extents_left = 0;
        for extent in &plan.extents {
            let WriteExtent::File { len, file, offset } = *extent else {
                assert!(kind == WriteKind::Zero && !commit);
                continue;
            };
            assert_eq!(file.0, 0, "only the leaf is written");
            let effect = match kind {
                WriteKind::Data => Effect::Fill { offset: offset.0, len: u64::from(len), value },
                WriteKind::Zero => Effect::Zero { offset: offset.0, len: u64::from(len) },
            };
            self.flights.push(Flight { effect: Some(effect), purpose: Purpose::Guest(write) });
            extents_left += 1;
        }
        self.writes.insert(write, GuestWrite { range, commit, extents_left, failed: false });
        if extents_left == 0 {
            self.data_done(write);
        }
    }

    /// Begins the next metadata batch, when there is one, or once more the one that found no space.
    fn pump(&mut self) {
        let leaf = self.disk.chain.leaf();
        if self.batch_left > 0 {
            return;
        }
        let begun = match self.stalled.take() {
            Some(batch) => {
                self.batch = batch;
                true
            }
            None => self.disk.images.next_meta_batch(leaf, &mut self.batch),
        };
        sim_journal::follow(&mut self.journal, &self.disk, leaf);
        if !begun {
            return;
        }
        self.batch_left = self.batch.ops.len();
        self.batch_result = Ok(());
        for op in &self.batch.ops {
            let (effect, purpose) = match op {
                MetaOp::Zero { .. } if self.mistake == Mistake::NoZero => (None, Purpose::Meta),
                MetaOp::Write { .. } | MetaOp::Zero { .. } | MetaOp::SetLen { .. } => {
                    (effect_of(op, &self.batch), Purpose::Meta)
                }
                MetaOp::Sync if self.mistake == Mistake::NoMetaSync => (None, Purpose::MetaSync(0)),
                MetaOp::Sync => (None, Purpose::MetaSync(self.leaf.sync_begins())),
            };
            self.flights.push(Flight { effect, purpose });
        }
    }

    /// SYNCHRONIZE CACHE: a commit of all that is only recorded, then a flush.
    fn ask_flush(&mut self) {
        let leaf = self.disk.chain.leaf();
        let seq = match self.mistake {
            Mistake::NoFlushCommit => CommitSeq(0),
            _ => self.disk.images.request_commit(leaf),
        };
        self.flushes.push((seq, self.now));
        self.begin_flushes();
    }

    fn begin_flushes(&mut self) {
        let leaf = self.disk.chain.leaf();
        let (committed, failed) = (self.disk.images.committed(leaf), self.disk.images.is_failed(leaf));
        for (seq, began) in std::mem::take(&mut self.flushes) {
            if failed || seq > committed && self.stalled.is_some() {
                continue;
            }
            if seq > committed {
                self.flushes.push((seq, began));
                continue;
            }
            let purpose = Purpose::GuestSync { covers: self.leaf.sync_begins(), began };
            self.flights.push(Flight { effect: None, purpose });
        }
    }

    /// As after some time, and when the journal is half full.
    fn commit_now_and_then(&mut self) {
        let crowded = self.journal.as_ref().is_some_and(SimJournal::is_crowded);
        if crowded || self.rng.chance(10) {
            self.disk.images.request_commit(self.disk.chain.leaf());
            self.pump();
        }
        if let Some(journal) = &mut self.journal {
            journal.catch_up();
        }
    }

    fn finish_one(&mut self) {
        if self.flights.is_empty() {
            return self.pump();
        }
        let index = self.rng.below(self.flights.len() as u64) as usize;
        let Flight { effect, purpose } = self.flights.swap_remove(index);
        let fault = self.rng.below(1000);
        let fails = fault < 8;
        if let Some(effect) = effect {
            if fails {
                self.leaf.complete_part(&effect, &mut self.rng);
            } else {
                self.leaf.complete(effect);
            }
        }
        match purpose {
            Purpose::Guest(write) => {
                if let Some(guest) = self.writes.get_mut(&write) {
                    guest.extents_left -= 1;
                    guest.failed |= fails;
                    if guest.extents_left == 0 {
                        self.data_done(write);
                    }
                }
            }
            Purpose::Meta if fails => {
                self.meta_done(Err(if fault < 7 { IoFault::NoSpace } else { IoFault::Failed }))
            }
            Purpose::Meta => self.meta_done(Ok(())),
            Purpose::MetaSync(covers) => {
                let result = self.sync_ends(covers, fault < 3);
                self.meta_done(result);
            }
            Purpose::GuestSync { covers, began } => {
                // A flush that ends after another one has failed is no flush, whatever the kernel says.
                let result = self.sync_ends(covers, fault < 3);
                if result.is_ok() && !self.disk.images.is_failed(self.disk.chain.leaf()) {
                    self.history.flushed(began);
                }
                self.answer_committed();
            }
        }
    }

    fn sync_ends(&mut self, covers: usize, fails: bool) -> Result<(), IoFault> {
        if !fails {
            self.leaf.sync_ends(covers);
            return Ok(());
        }
        self.leaf.sync_fails(covers, &mut self.rng);
        self.flush_failed = true;
        if self.mistake == Mistake::ForgottenFlush {
            return Ok(());
        }
        self.meta_fault = true;
        self.disk.images.fail(self.disk.chain.leaf());
        Err(IoFault::Failed)
    }

    fn data_done(&mut self, write: u64) {
        let Some(GuestWrite { range, commit, failed, .. }) = self.writes.get(&write) else { return };
        let (range, commit, failed) = (*range, *commit, *failed);
        let chain = &self.disk.chain;
        if failed {
            if commit {
                self.disk.images.write_abandoned(chain, range);
            }
            self.answer(write, false);
        } else if commit {
            let seq = match &mut self.journal {
                Some(journal) => self.disk.images.data_written(chain, range, journal),
                None => self.disk.images.data_written(chain, range, &mut NoRecords),
            };
            self.waiting.push((seq, write));
            self.answer_committed();
        } else {
            self.answer(write, true);
        }
    }

    fn meta_done(&mut self, result: Result<(), IoFault>) {
        self.batch_left -= 1;
        self.batch_result = self.batch_result.and(result);
        self.meta_fault |= result.is_err();
        if self.batch_left == 0 {
            let leaf = self.disk.chain.leaf();
            if self.disk.images.meta_batch_done(leaf, self.batch_result) == BatchEnd::Again {
                self.stalled = Some(core::mem::take(&mut self.batch));
            }
            sim_journal::follow(&mut self.journal, &self.disk, leaf);
            self.answer_committed();
            self.begin_flushes();
        }
    }

    fn answer_committed(&mut self) {
        let leaf = self.disk.chain.leaf();
        let committed = self.disk.images.committed(leaf);
        let failed = self.disk.images.is_failed(leaf);
        assert!(!failed || self.meta_fault, "an image failed without a fault");
        let early = self.mistake == Mistake::EarlyAnswer;
        let (done, waiting): (Vec<_>, Vec<_>) = core::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|(seq, _)| *seq <= committed || failed || early || self.stalled.is_some());
        self.waiting = waiting;
        for (seq, write) in done {
            self.answer(write, seq <= committed || early);
        }
    }

    fn answer(&mut self, write: u64, good: bool) {
        if let Some(guest) = self.writes.remove(&write) {
            self.history.ended(write, guest.range.start().0..guest.range.end().0, good, self.now);
        }
    }

    /// What the living disk reads is what was answered, or is in flight.
    fn check_read(&mut self) -> Result<(), String> {
        self.disk.files[0] = self.leaf.volatile.clone();
        let content = content(&mut self.disk);
        self.history.complaint(&content, Promise::Acknowledged).map_or(Ok(()), Err)
    }

    fn effects_in_flight(&self) -> Vec<Effect> {
        self.flights.iter().filter_map(|flight| flight.effect.clone()).collect()
    }

    /// Looks at one possible state after a crash now; the world lives on.
    pub fn look_at_a_crash(&mut self) -> Result<(), String> {
        let in_flight = self.effects_in_flight();
        if self.rng.chance(30) && !self.flush_failed {
            let state = self.leaf.killed(&in_flight, &mut self.rng);
            self.recovered(state, self.boot, Promise::Acknowledged).map(drop)
        } else {
            let state = self.leaf.power_cut(&in_flight, &mut self.rng);
            self.recovered(state, self.boot.wrapping_add(1), Promise::Flushed).map(drop)
        }
    }

    /// What the next process makes of `state`, and the one after it where the first did not live long enough. Every
    /// state on the way keeps the promise; what is promised after the power went meanwhile is less.
    fn recovered(
        &mut self,
        mut state: SimDisk,
        mut boot: u8,
        mut promise: Promise,
    ) -> Result<(SimDisk, Promise), String> {
        let memory: Option<Memory> = self.journal.as_ref().map(|journal| sim_journal::copy(&journal.memory));
        let memory = memory.as_ref();
        // Who only reads sees it too, unless there are records to be taken over first.
        let as_it_is = match unrecorded(memory, boot, self.mistake)? {
            true => Some(self.verify(&state, promise, OpenMode::ReadOnly)?.1),
            false => None,
        };
        let killed = promise;
        loop {
            self.sound(&state)?;
            match recover(&state, memory, boot, self.mistake, &mut self.rng)? {
                Recovered::Done(done) => {
                    state = done;
                    break;
                }
                Recovered::Killed(left) => state = left,
                Recovered::PowerCut(left) => {
                    (state, promise) = (left, Promise::Flushed);
                    boot = boot.wrapping_add(1);
                }
            }
        }
        let (_, content) = self.verify(&state, promise, OpenMode::Writable)?;
        if self.sampling == Sampling::Some && self.rng.chance(5) {
            self.read_by_others += seven_zip_agrees(&self.disk, &state, &content, self.format)?;
        }
        if killed == promise && as_it_is.is_some_and(|as_it_is| as_it_is != content) {
            return Err(format!("{promise:?}: a log reads otherwise once it is replayed"));
        }
        if self.rng.chance(20) {
            let later = state.power_cut(&[], &mut self.rng);
            self.verify(&later, Promise::Flushed, OpenMode::ReadOnly)?;
        }
        Ok((state, promise))
    }

    /// A crash may leave a log, or one header half written; of a VHD nothing.
    fn sound(&mut self, state: &SimDisk) -> Result<(), String> {
        if !state.volatile.is_same(&self.sound) {
            self.look_for_damage(&state.volatile)?;
            self.sound = state.volatile.clone();
        }
        Ok(())
    }

    fn look_for_damage(&self, file: &SimFile) -> Result<(), String> {
        let read = |offset, bytes: &mut [u8]| file.read_at(offset, bytes);
        match self.format {
            Format::Vhd => {
                let report = check(file.len, read).unwrap();
                if report.is_clean() { Ok(()) } else { Err(format!("{:?}", report.findings)) }
            }
            Format::Vhdx => {
                let report = vhdx::check::check(file.len, read).unwrap();
                let expected = [Structure::Header(1), Structure::Header(2), Structure::Log];
                let bad = report.findings.iter().find(|finding| {
                    let harmless = expected.contains(&finding.structure);
                    finding.severity == Severity::Error || finding.severity == Severity::Warning && !harmless
                });
                bad.map_or(Ok(()), |finding| Err(finding.sentence.clone()))
            }
        }
    }

    fn verify(
        &mut self,
        state: &SimDisk,
        promise: Promise,
        mode: OpenMode,
    ) -> Result<(Disk<SimFile>, Content), String> {
        self.states += 1;
        self.sound(state).map_err(|error| format!("{promise:?}: {error}"))?;
        let mut files = self.disk.files.clone();
        files[0] = state.volatile.clone();
        let mut disk = Disk::open(files, mode)?;
        let content = content(&mut disk);
        match self.history.complaint(&content, promise) {
            Some(complaint) => Err(format!("{promise:?}: {complaint}")),
            None => Ok((disk, content)),
        }
    }

    /// Crashes, checks, and opens the image again.
    pub fn crash(&mut self) -> Result<(), String> {
        let in_flight = self.effects_in_flight();
        // After a failed flush nobody writes before a check, which is no part of this: the power goes.
        let killed = self.rng.chance(40) && !self.flush_failed;
        let (state, boot, promise) = if killed {
            (self.leaf.killed(&in_flight, &mut self.rng), self.boot, Promise::Acknowledged)
        } else {
            let state = self.leaf.power_cut(&in_flight, &mut self.rng);
            (state, self.boot.wrapping_add(1), Promise::Flushed)
        };
        let (state, promise) = self.recovered(state, boot, promise)?;
        self.disk = self.verify(&state, promise, OpenMode::Writable)?.0;
        if promise == Promise::Acknowledged {
            self.history.killed(self.now);
        } else {
            let content = content(&mut self.disk);
            self.history.restart(content);
            self.boot = self.boot.wrapping_add(2);
        }
        self.leaf = state;
        let nonce = self.rng.next();
        self.journal = self.rng.chance(70).then(|| SimJournal::new(self.boot, nonce, self.mistake));
        self.flushes.clear();
        self.flights.clear();
        self.writes.clear();
        self.waiting.clear();
        self.batch_left = 0;
        self.stalled = None;
        self.closing = false;
        self.meta_fault = false;
        self.flush_failed = false;
        Ok(())
    }
}
