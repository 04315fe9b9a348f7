//! Contents that tell where they belong, and cheap random numbers.
//!
//! Knows how to make and check the bytes of any sector. Does not know who wrote them or why.

use crate::scsi::SECTOR;

const SECTOR_LEN: usize = SECTOR as usize;

/// A stream of well-mixed numbers from a seed (the splitmix64 recurrence).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `limit`, which is not zero.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Writes the stamp of sector `lba` under `seed` into 512 bytes.
pub(crate) fn stamp(seed: u64, lba: u64, sector: &mut [u8]) {
    let mut words = Random::new(mix(seed ^ 0x5bd1_e995) ^ mix(lba));
    for word in sector.chunks_exact_mut(8) {
        word.copy_from_slice(&words.next().to_le_bytes());
    }
}

/// Writes stamps into `bytes`, whose first byte is at the byte address `at` of the disk; any cut is allowed.
pub(crate) fn stamp_bytes(seed: u64, at: u64, bytes: &mut [u8]) {
    each_sector(at, bytes.len(), |lba, within, range| {
        let mut sector = [0; SECTOR_LEN];
        stamp(seed, lba, &mut sector);
        bytes[range].copy_from_slice(&sector[within]);
    });
}

/// Splits a byte range of the disk at sector borders: sector, range within it, range within the buffer.
pub(crate) fn each_sector(
    at: u64,
    len: usize,
    mut visit: impl FnMut(u64, std::ops::Range<usize>, std::ops::Range<usize>),
) {
    let mut done = 0;
    while done < len {
        let position = at + done as u64;
        let from = (position % SECTOR) as usize;
        let take = (SECTOR_LEN - from).min(len - done);
        visit(position / SECTOR, from..from + take, done..done + take);
        done += take;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_do_not_depend_on_how_the_range_is_cut() {
        let mut whole = vec![0; 4 * SECTOR_LEN];
        stamp_bytes(9, 3 * SECTOR, &mut whole);
        let mut cut = vec![0; 1000];
        stamp_bytes(9, 3 * SECTOR + 300, &mut cut);
        assert_eq!(cut, whole[300..1300]);
        assert_ne!(whole[..512], whole[512..1024]);
        let mut other = vec![0; SECTOR_LEN];
        stamp(8, 3, &mut other);
        assert_ne!(other, whole[..512]);
    }

    #[test]
    fn numbers_stay_below_their_limit() {
        let mut random = Random::new(1);
        assert!((0..1000).all(|_| random.below(7) < 7));
    }
}
