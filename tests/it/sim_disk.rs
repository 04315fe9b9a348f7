//! A file in memory, sector by sector, and effects on it that can be applied in part, as a crash does.
//!
//! Knows that most copies of a file are never changed: a copy costs nothing until then, and after it the sectors around
//! the change.

use crate::blocking::Store;
use goldrush::units::SECTOR_BYTES;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// A small seeded generator (splitmix64).
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `end`, which is above 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True in `percent` of all cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

pub type SectorBytes = [u8; SECTOR_BYTES as usize];

/// The content every test sector has: one number, repeated. 0 is a sector of zeros.
pub fn sector_of(value: u64) -> SectorBytes {
    let mut bytes = [0; SECTOR_BYTES as usize];
    bytes[..8].copy_from_slice(&value.to_le_bytes());
    for len in [8, 16, 32, 64, 128, 256] {
        bytes.copy_within(..len, len);
    }
    bytes
}

/// What one sector holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sector {
    /// One number, repeated; 0 also where nothing was ever written.
    Value(u64),
    Bytes(Arc<SectorBytes>),
}

impl Sector {
    fn of(bytes: &[u8]) -> Self {
        let (first, rest) = bytes.split_at(8);
        if *rest == bytes[..bytes.len() - 8] {
            return Self::Value(u64::from_le_bytes(first.try_into().unwrap()));
        }
        let mut content = [0; SECTOR_BYTES as usize];
        content.copy_from_slice(bytes);
        Self::Bytes(Arc::new(content))
    }

    pub fn bytes(&self) -> SectorBytes {
        match self {
            Self::Value(value) => sector_of(*value),
            Self::Bytes(bytes) => **bytes,
        }
    }

    fn copy(&self, from: usize, out: &mut [u8]) {
        match self {
            Self::Value(0) => out.fill(0),
            Self::Value(value) => out.copy_from_slice(&sector_of(*value)[from..from + out.len()]),
            Self::Bytes(bytes) => out.copy_from_slice(&bytes[from..from + out.len()]),
        }
    }
}

/// Sectors that are copied together.
const RUN: u64 = 64;
type Run = [Sector; RUN as usize];

#[derive(Clone, Default)]
pub struct SimFile {
    /// By the number of the run. Shared with copies, and so is each run.
    runs: Arc<BTreeMap<u64, Arc<Run>>>,
    pub len: u64,
}

/// One change of a file, by whole sectors.
#[derive(Clone, Debug)]
pub enum Effect {
    Write {
        offset: u64,
        bytes: Arc<[u8]>,
    },
    /// Sectors of this value.
    Fill {
        offset: u64,
        len: u64,
        value: u64,
    },
    Zero {
        offset: u64,
        len: u64,
    },
    SetLen(u64),
}

impl SimFile {
    pub fn apply(&mut self, effect: &Effect) {
        self.apply_where(effect, |_| true);
    }

    /// Applies the sectors of `effect` that `survives` picks; the length follows the sectors that do.
    pub fn apply_where(&mut self, effect: &Effect, mut survives: impl FnMut(u64) -> bool) {
        match effect {
            Effect::Write { offset, bytes } => {
                assert!(
                    offset.is_multiple_of(SECTOR_BYTES) && bytes.len().is_multiple_of(512),
                    "whole sectors"
                );
                for (sector, chunk) in (offset / SECTOR_BYTES..).zip(bytes.chunks_exact(512)) {
                    if survives(sector) {
                        self.put(sector, Sector::of(chunk));
                        self.len = self.len.max((sector + 1) * SECTOR_BYTES);
                    }
                }
            }
            Effect::Fill { offset, len, value } => {
                for sector in offset / SECTOR_BYTES..(offset + len) / SECTOR_BYTES {
                    if survives(sector) {
                        self.put(sector, Sector::Value(*value));
                        self.len = self.len.max((sector + 1) * SECTOR_BYTES);
                    }
                }
            }
            Effect::Zero { offset, len } => {
                self.clear(offset / SECTOR_BYTES..(offset + len) / SECTOR_BYTES, survives);
            }
            Effect::SetLen(len) => {
                if survives(0) {
                    self.len = *len;
                    self.clear(len.div_ceil(SECTOR_BYTES)..u64::MAX, |_| true);
                }
            }
        }
    }

    /// True when both are copies of one file and neither was changed since.
    pub fn is_same(&self, other: &Self) -> bool {
        self.len == other.len && Arc::ptr_eq(&self.runs, &other.runs)
    }

    /// The sectors of a range that are not zero, in order.
    pub fn sectors(&self, range: Range<u64>) -> impl Iterator<Item = (u64, &Sector)> {
        let runs = self.runs.range(range.start / RUN..range.end.div_ceil(RUN));
        runs.flat_map(move |(run, sectors)| {
            let first = run * RUN;
            let from = range.start.saturating_sub(first).min(RUN) as usize;
            let to = range.end.saturating_sub(first).min(RUN) as usize;
            (first + from as u64..).zip(&sectors[from..to])
        })
        .filter(|(_, sector)| **sector != Sector::Value(0))
    }

    fn put(&mut self, sector: u64, content: Sector) {
        let runs = Arc::make_mut(&mut self.runs);
        let new = || Arc::new([const { Sector::Value(0) }; RUN as usize]);
        Arc::make_mut(runs.entry(sector / RUN).or_insert_with(new))[(sector % RUN) as usize] = content;
    }

    fn clear(&mut self, range: Range<u64>, mut survives: impl FnMut(u64) -> bool) {
        let there: Vec<u64> = self.sectors(range).map(|(sector, _)| sector).collect();
        for sector in there.into_iter().filter(|sector| survives(*sector)) {
            self.put(sector, Sector::Value(0));
        }
    }
}

impl Store for SimFile {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        assert!(offset + bytes.len() as u64 <= self.len, "a read beyond the end of the file");
        bytes.fill(0);
        let end = offset + bytes.len() as u64;
        for (sector, content) in self.sectors(offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES)) {
            let start = sector * SECTOR_BYTES;
            let (from, to) = (start.max(offset), (start + SECTOR_BYTES).min(end));
            content
                .copy((from - start) as usize, &mut bytes[(from - offset) as usize..(to - offset) as usize]);
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.apply(&Effect::Write { offset, bytes: bytes.into() });
        Ok(())
    }

    fn zero(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.apply(&Effect::Zero { offset, len });
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.apply(&Effect::SetLen(len));
        Ok(())
    }

    fn len(&self) -> u64 {
        self.len
    }
}

#[test]
fn a_copy_keeps_what_it_had_and_a_read_sees_parts_of_sectors() {
    let mut file = SimFile::default();
    file.apply(&Effect::Write { offset: 512, bytes: (0..1024).map(|at| at as u8 ^ 5).collect() });
    file.apply(&Effect::Fill { offset: 512 * 70, len: 1024, value: 9 });
    let copy = file.clone();
    assert!(copy.is_same(&file));
    file.apply(&Effect::Zero { offset: 1024, len: 512 * 69 });
    assert!(!copy.is_same(&file));
    let sectors = |file: &SimFile| file.sectors(0..u64::MAX).map(|(sector, _)| sector).collect::<Vec<_>>();
    assert_eq!((sectors(&copy), sectors(&file)), (vec![1, 2, 70, 71], vec![1, 71]));
    let mut bytes = [7; 600];
    copy.read_at(1000, &mut bytes).unwrap();
    let expected: Vec<u8> = (1000..1600).map(|at| if at < 1536 { (at - 512) as u8 ^ 5 } else { 0 }).collect();
    assert!(bytes[..] == expected);
    file.apply(&Effect::SetLen(600));
    assert_eq!((sectors(&file), sectors(&copy).len(), file.len), (vec![1], 4, 600));
}

/// A file, what of it is stable, and the completed changes between the two.
#[derive(Clone)]
pub struct SimDisk {
    pub volatile: SimFile,
    pub durable: SimFile,
    log: Vec<Effect>,
    log_start: usize,
}

impl SimDisk {
    pub fn new(file: SimFile) -> Self {
        Self { durable: file.clone(), volatile: file, log: Vec::new(), log_start: 0 }
    }

    pub fn complete(&mut self, effect: Effect) {
        self.volatile.apply(&effect);
        self.log.push(effect);
    }

    /// A change that went wrong half-way.
    pub fn complete_part(&mut self, effect: &Effect, rng: &mut Rng) {
        for part in parts(effect, rng) {
            self.complete(part);
        }
    }

    /// How many changes a flush that begins now makes stable.
    pub fn sync_begins(&self) -> usize {
        self.log_start + self.log.len()
    }

    pub fn sync_ends(&mut self, covers: usize) {
        let count = covers.saturating_sub(self.log_start).min(self.log.len());
        for effect in self.log.drain(..count) {
            self.durable.apply(&effect);
        }
        self.log_start += count;
    }

    /// A flush that goes wrong: of what it was to make stable some is, and no later flush makes the rest so.
    pub fn sync_fails(&mut self, covers: usize, rng: &mut Rng) {
        let count = covers.saturating_sub(self.log_start).min(self.log.len());
        let percent = rng.below(101);
        for effect in self.log.drain(..count) {
            self.durable.apply_where(&effect, |_| rng.chance(percent));
        }
        self.log_start += count;
    }

    /// The process is gone: completed changes stay in the page cache, each one in flight may have happened.
    pub fn killed(&self, in_flight: &[Effect], rng: &mut Rng) -> Self {
        let mut next = self.clone();
        for effect in in_flight {
            match rng.below(3) {
                0 => {}
                1 => next.complete(effect.clone()),
                _ => next.complete_part(effect, rng),
            }
        }
        next
    }

    /// The power is gone: of all that was not flushed, any part may be there.
    pub fn power_cut(&self, in_flight: &[Effect], rng: &mut Rng) -> Self {
        let mut file = self.durable.clone();
        let unsynced: Vec<&Effect> = self.log.iter().chain(in_flight).collect();
        let mode = rng.below(5);
        let prefix = rng.below(unsynced.len() as u64 + 1) as usize;
        let single = rng.below(unsynced.len() as u64 + 1) as usize;
        for (index, effect) in unsynced.into_iter().enumerate() {
            match mode {
                0 if index < prefix => file.apply(effect),
                1 if index == single => file.apply(effect),
                2 if index != single => file.apply(effect),
                3 if rng.chance(50) => file.apply(effect),
                4 => {
                    let percent = rng.below(101);
                    file.apply_where(effect, |_| rng.chance(percent));
                }
                _ => {}
            }
        }
        Self::new(file)
    }
}

/// Some sectors of an effect, as effects of their own.
fn parts(effect: &Effect, rng: &mut Rng) -> Vec<Effect> {
    match effect {
        Effect::Write { offset, bytes } => {
            let sectors = bytes.chunks_exact(512).enumerate().filter(|_| rng.chance(50));
            sectors
                .map(|(index, chunk)| Effect::Write {
                    offset: offset + index as u64 * 512,
                    bytes: chunk.into(),
                })
                .collect()
        }
        Effect::Fill { offset, len, value } => {
            let sectors = (0..len / 512).filter(|_| rng.chance(50));
            sectors
                .map(|index| Effect::Fill { offset: offset + index * 512, len: 512, value: *value })
                .collect()
        }
        Effect::Zero { offset, len } => {
            let cut = rng.below(len / 512 + 1) * 512;
            vec![Effect::Zero { offset: offset + cut, len: len - cut }]
        }
        Effect::SetLen(_) => Vec::new(),
    }
}
