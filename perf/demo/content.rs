//! What a node's disk must hold: the golden image's content, or what this node wrote over it.
//!
//! Knows every byte without storing any. Does not know images, sessions or files other than the raw one it makes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use crate::fail::{Result, failure};
use crate::pattern::{self, Random};
use crate::scsi::SECTOR;

const CHUNK: u64 = 64 << 10;
const CHUNK_SECTORS: u64 = CHUNK / SECTOR;
/// The longest range read back in one command.
const RANGE_SECTORS: u64 = 256;

/// A golden image: chunks of stamped sectors among holes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Golden {
    pub(crate) seed: u64,
    pub(crate) sectors: u64,
    /// How many of a hundred chunks hold data.
    pub(crate) filled_percent: u64,
}

impl Golden {
    fn is_hole(&self, lba: u64) -> bool {
        let chunk = lba / CHUNK_SECTORS;
        Random::new(self.seed ^ chunk.wrapping_mul(0x2545_f491_4f6c_dd1d)).below(100) >= self.filled_percent
    }

    fn sector(&self, lba: u64, bytes: &mut [u8]) {
        if self.is_hole(lba) { bytes.fill(0) } else { pattern::stamp(self.seed, lba, bytes) }
    }

    /// Writes the image as a raw file in which the holes are holes.
    pub(crate) fn write_raw(&self, path: &Path) -> Result<()> {
        let told =
            |e| failure!("cannot write {}: {e}; free some space or choose another --dir", path.display());
        let mut file = File::create(path).map_err(told)?;
        let mut chunk = vec![0; CHUNK as usize];
        for lba in (0..self.sectors).step_by(CHUNK_SECTORS as usize) {
            if self.is_hole(lba) {
                continue;
            }
            let len = (CHUNK_SECTORS.min(self.sectors - lba) * SECTOR) as usize;
            pattern::stamp_bytes(self.seed, lba * SECTOR, &mut chunk[..len]);
            file.seek(SeekFrom::Start(lba * SECTOR)).map_err(told)?;
            file.write_all(&chunk[..len]).map_err(told)?;
        }
        file.set_len(self.sectors * SECTOR).map_err(told)
    }
}

/// One node's view of its disk.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    golden: Golden,
    node: u64,
    writes: u64,
    /// Sector to the seed of the stamp it holds.
    written: BTreeMap<u64, u64>,
}

impl Disk {
    pub(crate) fn new(golden: Golden, node: usize) -> Disk {
        Disk { golden, node: node as u64 + 1, writes: 0, written: BTreeMap::new() }
    }

    /// New bytes for a range: no two writes, and no two nodes, write the same.
    pub(crate) fn compose(&mut self, lba: u64, sectors: u64) -> (u64, Vec<u8>) {
        self.writes += 1;
        let seed = self.node << 40 | self.writes;
        let mut bytes = vec![0; (sectors * SECTOR) as usize];
        pattern::stamp_bytes(seed, lba * SECTOR, &mut bytes);
        (seed, bytes)
    }

    /// The target said that the range was written under `seed`.
    pub(crate) fn written(&mut self, lba: u64, sectors: u64, seed: u64) {
        self.written.extend((lba..lba + sectors).map(|lba| (lba, seed)));
    }

    /// The sectors of `data`, read from `lba` on, that are not what they must be.
    pub(crate) fn differences(&self, lba: u64, data: &[u8]) -> u64 {
        let mut expected = [0; SECTOR as usize];
        let mut wrong = 0;
        for (lba, got) in (lba..).zip(data.chunks(SECTOR as usize)) {
            match self.written.get(&lba) {
                Some(seed) => pattern::stamp(*seed, lba, &mut expected),
                None => self.golden.sector(lba, &mut expected),
            }
            wrong += u64::from(got != expected);
        }
        wrong
    }

    /// Everything this node wrote, as ranges of first sector and number of sectors.
    pub(crate) fn ranges(&self) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for &lba in self.written.keys() {
            match ranges.last_mut() {
                Some((first, count)) if *first + *count == lba && *count < RANGE_SECTORS => *count += 1,
                _ => ranges.push((lba, 1)),
            }
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: Golden = Golden { seed: 1, sectors: 4096, filled_percent: 50 };

    #[test]
    fn a_disk_is_golden_until_its_own_writes() {
        let mut disk = Disk::new(GOLDEN, 0);
        let mut bytes = vec![0; 4096];
        for (lba, sector) in (100..).zip(bytes.chunks_mut(512)) {
            GOLDEN.sector(lba, sector);
        }
        assert_eq!(disk.differences(100, &bytes), 0);
        let (seed, own) = disk.compose(102, 3);
        disk.written(102, 3, seed);
        assert_eq!(disk.differences(100, &bytes), 3);
        bytes[1024..2560].copy_from_slice(&own);
        assert_eq!(disk.differences(100, &bytes), 0);
        assert_eq!(disk.ranges(), [(102, 3)]);
        assert_ne!(Disk::new(GOLDEN, 1).compose(102, 3).1, own);
    }

    #[test]
    fn some_chunks_are_holes_and_some_are_not() {
        let holes = (0..4096).step_by(128).filter(|&lba| GOLDEN.is_hole(lba)).count();
        assert!((4..28).contains(&holes), "{holes} of 32");
    }
}
