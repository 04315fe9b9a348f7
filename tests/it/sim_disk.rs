//! A file in memory, sector by sector, and effects on it that can be applied in part, as a crash does.

use crate::blocking::Store;
use goldrush::units::SECTOR_BYTES;
use std::collections::BTreeMap;
use std::io;

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

/// Sectors that were never written, or zeroed, are not there.
#[derive(Clone, Default)]
pub struct SimFile {
    pub sectors: BTreeMap<u64, SectorBytes>,
    pub len: u64,
}

/// One change of a file, by whole sectors.
#[derive(Clone, Debug)]
pub enum Effect {
    Write { offset: u64, bytes: Vec<u8> },
    Zero { offset: u64, len: u64 },
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
                for (index, chunk) in bytes.chunks_exact(512).enumerate() {
                    let sector = offset / SECTOR_BYTES + index as u64;
                    if survives(sector) {
                        let mut content = [0; 512];
                        content.copy_from_slice(chunk);
                        if content == [0; 512] {
                            self.sectors.remove(&sector);
                        } else {
                            self.sectors.insert(sector, content);
                        }
                        self.len = self.len.max((sector + 1) * SECTOR_BYTES);
                    }
                }
            }
            Effect::Zero { offset, len } => {
                let range = offset / SECTOR_BYTES..(offset + len) / SECTOR_BYTES;
                let there: Vec<u64> = self.sectors.range(range).map(|(sector, _)| *sector).collect();
                for sector in there.into_iter().filter(|sector| survives(*sector)) {
                    self.sectors.remove(&sector);
                }
            }
            Effect::SetLen(len) => {
                if survives(0) {
                    self.len = *len;
                    self.sectors.split_off(&len.div_ceil(SECTOR_BYTES));
                }
            }
        }
    }
}

impl Store for SimFile {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        assert!(offset + bytes.len() as u64 <= self.len, "a read beyond the end of the file");
        bytes.fill(0);
        let end = offset + bytes.len() as u64;
        for (sector, content) in self.sectors.range(offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES)) {
            let start = sector * SECTOR_BYTES;
            let (from, to) = (start.max(offset), (start + SECTOR_BYTES).min(end));
            bytes[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&content[(from - start) as usize..(to - start) as usize]);
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.apply(&Effect::Write { offset, bytes: bytes.to_vec() });
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
                    bytes: chunk.to_vec(),
                })
                .collect()
        }
        Effect::Zero { offset, len } => {
            let cut = rng.below(len / 512 + 1) * 512;
            vec![Effect::Zero { offset: offset + cut, len: len - cut }]
        }
        Effect::SetLen(_) => Vec::new(),
    }
}
