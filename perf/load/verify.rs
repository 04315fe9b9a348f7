//! What every sector of a disk must hold: its first content, or the stamp that this run wrote over it.
//!
//! Knows expected bytes. Does not know how they came here.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::str::FromStr;
use std::sync::Arc;

use crate::fail::{Failure, Result, failure};
use crate::pattern;
use crate::scsi::SECTOR;

/// The content before anything is written.
#[derive(Debug, Clone)]
pub(crate) enum Base {
    Zero,
    Stamp(u64),
    File(Arc<File>),
}

impl FromStr for Base {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Base> {
        let bad = || failure!("{text:?} is no content to verify: write zero, stamp, stamp:SEED or file:PATH");
        match text.split_once(':') {
            None if text == "zero" => Ok(Base::Zero),
            None if text == "stamp" => Ok(Base::Stamp(0)),
            Some(("stamp", seed)) => Ok(Base::Stamp(seed.parse().map_err(|_| bad())?)),
            Some(("file", path)) => {
                let told =
                    |e| failure!("cannot open {path} to verify against it: {e}; give a readable raw image");
                Ok(Base::File(Arc::new(File::open(path).map_err(told)?)))
            }
            _ => Err(bad()),
        }
    }
}

impl Base {
    /// Writes what the disk holds from the byte address `at` on; false where that is not known.
    pub(crate) fn expected(&self, at: u64, bytes: &mut [u8]) -> bool {
        match self {
            Base::Zero => bytes.fill(0),
            Base::Stamp(seed) => pattern::stamp_bytes(*seed, at, bytes),
            Base::File(file) => return file.read_exact_at(bytes, at).is_ok(),
        }
        true
    }

    /// The seed of what this run writes. A stamped disk stays the same whatever is written to it.
    fn write_seed(&self) -> u64 {
        match self {
            Base::Stamp(seed) => *seed,
            _ => 0x676f_6c64,
        }
    }
}

const UNTOUCHED: u32 = 0;
/// Larger than any time: nothing that started yet may rely on the write.
const UNDER_WAY: u32 = u32::MAX;

/// One disk, shared by all sessions that use it.
#[derive(Debug)]
pub(crate) struct Model {
    base: Base,
    /// Untouched, or when the first write of the sector ended.
    sectors: Vec<u32>,
    /// Counts the writes that ended.
    now: u32,
}

impl Model {
    pub(crate) fn new(base: Base, sectors: u64) -> Model {
        Model { base, sectors: vec![UNTOUCHED; sectors as usize], now: 0 }
    }

    pub(crate) fn write_started(&mut self, lba: u64, sectors: u64) {
        for state in &mut self.sectors[lba as usize..(lba + sectors) as usize] {
            if *state == UNTOUCHED {
                *state = UNDER_WAY;
            }
        }
    }

    pub(crate) fn write_ended(&mut self, lba: u64, sectors: u64) {
        self.now = (self.now + 1).min(UNDER_WAY - 1);
        for state in &mut self.sectors[lba as usize..(lba + sectors) as usize] {
            *state = (*state).min(self.now);
        }
    }

    /// To be remembered when a read starts: what ended before, that read must see.
    pub(crate) fn now(&self) -> u32 {
        self.now
    }

    /// The bytes that a write puts at the byte address `at`.
    pub(crate) fn written_bytes(&self, at: u64, bytes: &mut [u8]) {
        pattern::stamp_bytes(self.base.write_seed(), at, bytes);
    }

    /// The first sector of which `got`, read at the byte address `at` since the time `since`, is not what it may be.
    pub(crate) fn first_difference(&self, at: u64, got: &[u8], since: u32) -> Option<u64> {
        let mut wrong = None;
        pattern::each_sector(at, got.len(), |lba, _, range| {
            if wrong.is_some() {
                return;
            }
            let state = self.sectors.get(lba as usize).copied().unwrap_or(UNTOUCHED);
            let mut room = [0; SECTOR as usize];
            let expected = &mut room[..range.len()];
            let address = at + range.start as u64;
            let got = &got[range];
            let may_be_base = state == UNTOUCHED || state > since;
            let is_base = may_be_base && self.base.expected(address, expected) && got == &*expected;
            if !is_base {
                self.written_bytes(address, expected);
                if state == UNTOUCHED || got != &*expected {
                    wrong = Some(lba);
                }
            }
        });
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_is_its_base_until_written_and_either_in_between() {
        let mut model = Model::new(Base::Zero, 16);
        let mut stamped = vec![0; 1024];
        model.written_bytes(4 * SECTOR, &mut stamped);
        let zeros = vec![0; 1024];
        assert_eq!(model.first_difference(4 * SECTOR, &zeros, model.now()), None);
        assert_eq!(model.first_difference(4 * SECTOR, &stamped, model.now()), Some(4));
        model.write_started(4, 2);
        assert_eq!(model.first_difference(4 * SECTOR, &zeros, model.now()), None);
        assert_eq!(model.first_difference(4 * SECTOR, &stamped, model.now()), None);
        let before = model.now();
        model.write_ended(4, 2);
        assert_eq!(model.first_difference(4 * SECTOR, &zeros, before), None, "the read started before");
        assert_eq!(model.first_difference(4 * SECTOR, &zeros, model.now()), Some(4));
        assert_eq!(model.first_difference(4 * SECTOR + 100, &stamped[100..700], model.now()), None);
        stamped[700] ^= 1;
        assert_eq!(model.first_difference(4 * SECTOR, &stamped, model.now()), Some(5));
    }

    #[test]
    fn contents_are_named() {
        assert!(matches!("stamp:7".parse(), Ok(Base::Stamp(7))));
        assert!(matches!("zero".parse(), Ok(Base::Zero)));
        assert!("file:/no/such/file".parse::<Base>().is_err());
        assert!("stamp:x".parse::<Base>().is_err());
    }
}
