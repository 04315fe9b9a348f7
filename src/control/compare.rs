//! Where two disks differ, and where no byte of them need be read to know.
//!
//! Knows runs and bytes. Does not know whose they are.

use super::chain_runs::{ChainRuns, DiskRun};
use super::error::Error;
use crate::units::SECTOR_BYTES;

/// Bytes of each disk read at once.
const PIECE_BYTES: u64 = 256 * 1024;
const SECTOR: usize = SECTOR_BYTES as usize;

/// A disk that is read from its beginning to its end.
#[derive(Debug)]
pub(super) struct Cursor {
    runs: ChainRuns,
    current: Option<DiskRun>,
}

impl Cursor {
    pub(super) fn new(runs: ChainRuns) -> Self {
        Self { runs, current: None }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.runs.bytes()
    }

    /// The run that begins at byte `at`, which is never before the one asked for last, up to `end` at most. Beyond the
    /// end of the disk there is nothing.
    pub(super) fn run_at(&mut self, at: u64, end: u64) -> Result<DiskRun, Error> {
        if self.current.as_ref().is_none_or(|run| run.end() <= at) {
            self.runs.skip_to(at);
            self.current = self.runs.next()?;
        }
        Ok(match &self.current {
            Some(run) => run.part(at, end),
            None => DiskRun { start: at, len: end - at, place: super::chain_runs::Place::Nothing },
        })
    }
}

/// Two disks side by side.
#[derive(Debug)]
pub(super) struct Comparison {
    a: Cursor,
    b: Cursor,
    buffers: [Vec<u8>; 2],
}

impl Comparison {
    pub(super) fn new(a: ChainRuns, b: ChainRuns) -> Self {
        let buffers = [vec![0; PIECE_BYTES as usize], vec![0; PIECE_BYTES as usize]];
        Self { a: Cursor::new(a), b: Cursor::new(b), buffers }
    }

    /// The lengths of both.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.a.bytes(), self.b.bytes())
    }

    /// Tells `differs` every range between `at` and `end` (whole sectors) where they are not equal, in order, as long as
    /// it answers true, and `passed` how far it is. What a disk is too short for counts as zeros.
    pub(super) fn each_difference(
        &mut self,
        mut at: u64,
        end: u64,
        passed: &dyn Fn(u64),
        differs: &mut dyn FnMut(u64, u64) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        while at < end {
            let a = self.a.run_at(at, end)?;
            let b = self.b.run_at(at, end)?;
            let len = a.len.min(b.len);
            if !a.is_same_as(&b) && !self.compare(&a, &b, len, differs)? {
                return Ok(());
            }
            at += len;
            passed(at);
        }
        Ok(())
    }

    /// Reads and compares the first `len` bytes of two runs. False: nobody wants to know more.
    fn compare(
        &mut self,
        a: &DiskRun,
        b: &DiskRun,
        len: u64,
        differs: &mut dyn FnMut(u64, u64) -> Result<bool, Error>,
    ) -> Result<bool, Error> {
        let [left, right] = &mut self.buffers;
        let mut done = 0;
        while done < len {
            let piece = (len - done).min(PIECE_BYTES);
            let (left, right) = (&mut left[..piece as usize], &mut right[..piece as usize]);
            a.read(done, left)?;
            b.read(done, right)?;
            for (start, end) in unequal_runs(left, right) {
                if !differs(a.start + done + start as u64, (end - start) as u64)? {
                    return Ok(false);
                }
            }
            done += piece;
        }
        Ok(true)
    }
}

/// The runs of sectors in which two buffers of one length differ: (start, end).
fn unequal_runs(a: &[u8], b: &[u8]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    if a == b {
        return runs;
    }
    for (index, (left, right)) in a.chunks(SECTOR).zip(b.chunks(SECTOR)).enumerate() {
        if left == right {
            continue;
        }
        let (start, end) = (index * SECTOR, index * SECTOR + left.len());
        match runs.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => runs.push((start, end)),
        }
    }
    runs
}

/// Joins ranges that touch, so that what is told does not depend on how it was read.
#[derive(Debug, Default)]
pub(super) struct Joined {
    last: Option<(u64, u64)>,
}

impl Joined {
    /// Takes a range in, behind the last one; gives one out that is complete.
    pub(super) fn push(&mut self, start: u64, len: u64) -> Option<(u64, u64)> {
        match &mut self.last {
            Some((first, so_far)) if *first + *so_far == start => {
                *so_far += len;
                None
            }
            last => last.replace((start, len)),
        }
    }

    pub(super) fn finish(&mut self) -> Option<(u64, u64)> {
        self.last.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::file::{Access, Locking};
    use crate::control::open_image::Opener;

    fn disk(bytes: &[u8]) -> (tempfile::NamedTempFile, ChainRuns) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let chain = Opener::anywhere(Locking::Ignore).open_chain(file.path(), Access::ReadOnly).unwrap();
        let runs = ChainRuns::new(chain).unwrap();
        (file, runs)
    }

    #[test]
    fn differences_are_told_once_in_order_and_joined() {
        let mut bytes = vec![3; 600 << 10];
        let (_a, a) = disk(&bytes);
        // Across the end of what is read at once, and a sector at the end.
        bytes[(256 << 10) - 1] = 4;
        bytes[256 << 10] = 4;
        *bytes.last_mut().unwrap() = 4;
        let (_b, b) = disk(&bytes);
        let mut comparison = Comparison::new(a, b);
        let (mut joined, mut found) = (Joined::default(), Vec::new());
        comparison
            .each_difference(0, 600 << 10, &|_| {}, &mut |start, len| {
                found.extend(joined.push(start, len));
                Ok(true)
            })
            .unwrap();
        found.extend(joined.finish());
        assert_eq!(found, [((256 << 10) - 512, 1024), ((600 << 10) - 512, 512)]);
    }

    #[test]
    fn a_shorter_disk_ends_in_zeros() {
        let mut bytes = vec![3; 4096];
        let (_a, a) = disk(&bytes);
        bytes.extend([0; 1024]);
        bytes.extend([1; 512]);
        let (_b, b) = disk(&bytes);
        let mut found = Vec::new();
        let mut note = |start, len| {
            found.push((start, len));
            Ok(true)
        };
        Comparison::new(a, b).each_difference(0, 4096 + 1536, &|_| {}, &mut note).unwrap();
        assert_eq!(found, [(4096 + 1024, 512)]);
    }
}
