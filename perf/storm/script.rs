//! What every node of a storm does: the sessions of a recorded boot, and what each of its reads must bring.
//!
//! Knows which sector holds golden data and which a write of the boot itself, at every step. Does not know nodes,
//! sessions or time.

use std::collections::{BTreeMap, BTreeSet};

use crate::scsi::SECTOR;
use crate::trace::{Kind, Op, Trace};

/// The server reads golden data in pages of this many sectors.
const PAGE_SECTORS: u64 = 8;
/// The longest range read back in one command.
const READ_BACK_SECTORS: u32 = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Golden,
    /// Golden data of a sector that the boot writes later: on a disk of its own only.
    GoldenUntilWritten,
    /// The write of the boot with this number.
    Write(u32),
}

/// Neighbouring sectors of one read with one origin; `end` counts sectors from the start of the read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) end: u32,
    pub(crate) origin: Origin,
}

#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) op: Op,
    /// Recorded time since the step before, in microseconds.
    pub(crate) gap_us: u64,
    /// The number of a write.
    pub(crate) write: u32,
    /// What a read brings.
    pub(crate) pieces: Vec<Piece>,
}

#[derive(Debug, Clone)]
pub(crate) struct Phase {
    pub(crate) kind: Kind,
    pub(crate) depth: usize,
    pub(crate) steps: Vec<Step>,
}

#[derive(Debug, Clone)]
pub(crate) struct Script {
    pub(crate) phases: Vec<Phase>,
    /// Reads of everything that the boot wrote, for after it.
    pub(crate) read_back: Vec<Step>,
    pub(crate) sectors: u64,
    pub(crate) read_bytes: u64,
    pub(crate) write_bytes: u64,
    /// Golden bytes that the boot reads, each page counted once.
    pub(crate) unique_bytes: u64,
    /// First sectors of the pages that are read.
    pages: BTreeSet<u64>,
}

impl Script {
    pub(crate) fn of(trace: &Trace) -> Script {
        let all = || trace.sessions.iter().flat_map(|session| &session.rows);
        let written_ever: BTreeSet<u64> = all()
            .filter(|row| row.op.is_write())
            .filter_map(|row| row.op.range())
            .flat_map(|(a, b)| a..b)
            .collect();
        let mut written: BTreeMap<u64, u32> = BTreeMap::new();
        let mut script = Script {
            phases: Vec::new(),
            read_back: Vec::new(),
            sectors: trace.sectors_needed(),
            read_bytes: 0,
            write_bytes: 0,
            unique_bytes: 0,
            pages: BTreeSet::new(),
        };
        let (mut last_us, mut writes) = (0, 0);
        for session in &trace.sessions {
            let mut steps = Vec::new();
            for row in &session.rows {
                let mut step = Step {
                    op: row.op,
                    gap_us: row.time_us.saturating_sub(last_us),
                    write: writes,
                    pieces: pieces(row.op, &written, &written_ever),
                };
                last_us = row.time_us;
                script.count(&mut step, &mut writes, &mut written);
                steps.push(step);
            }
            script.phases.push(Phase { kind: session.kind, depth: session.outstanding, steps });
        }
        script.unique_bytes = script.pages.len() as u64 * PAGE_SECTORS * SECTOR;
        script.read_back = ranges(&written)
            .map(|(lba, sectors)| Op::Read { lba, sectors })
            .map(|op| Step { op, gap_us: 0, write: 0, pieces: pieces(op, &written, &written_ever) })
            .collect();
        script
    }

    fn count(&mut self, step: &mut Step, writes: &mut u32, written: &mut BTreeMap<u64, u32>) {
        let bytes = step.op.range().map_or(0, |(from, to)| (to - from) * SECTOR);
        match step.op {
            Op::Read { lba, .. } => {
                self.read_bytes += bytes;
                let mut from = 0;
                for piece in &step.pieces {
                    if !matches!(piece.origin, Origin::Write(_)) {
                        let (first, last) = (lba + u64::from(from), lba + u64::from(piece.end) - 1);
                        self.pages.extend(first / PAGE_SECTORS..=last / PAGE_SECTORS);
                    }
                    from = piece.end;
                }
            }
            Op::Write { lba, sectors } => {
                self.write_bytes += bytes;
                written.extend((lba..lba + u64::from(sectors)).map(|lba| (lba, *writes)));
                *writes += 1;
            }
            Op::Flush => {}
        }
    }

    /// Commands of one node's boot.
    pub(crate) fn commands(&self) -> u64 {
        self.phases.iter().map(|phase| phase.steps.len() as u64).sum()
    }

    /// The step `id` of a phase; behind those of the last phase come the reads of what was written.
    pub(crate) fn step(&self, phase: usize, id: u32) -> Option<&Step> {
        let steps = &self.phases.get(phase)?.steps;
        let id = id as usize;
        steps.get(id).or_else(|| self.read_back.get(id.checked_sub(steps.len())?))
    }

    /// Numbers of the runs of `run` sectors that hold anything this boot reads.
    pub(crate) fn runs_read(&self, run: u64) -> BTreeSet<u64> {
        self.pages.iter().map(|page| page * PAGE_SECTORS / run).collect()
    }
}

fn pieces(op: Op, written: &BTreeMap<u64, u32>, written_ever: &BTreeSet<u64>) -> Vec<Piece> {
    let Op::Read { lba, sectors } = op else { return Vec::new() };
    let mut pieces: Vec<Piece> = Vec::new();
    for (sector, end) in (lba..).zip(1..=sectors) {
        let origin = match written.get(&sector) {
            Some(&write) => Origin::Write(write),
            None if written_ever.contains(&sector) => Origin::GoldenUntilWritten,
            None => Origin::Golden,
        };
        match pieces.last_mut() {
            Some(last) if last.origin == origin => last.end = end,
            _ => pieces.push(Piece { end, origin }),
        }
    }
    pieces
}

/// Written sectors as ranges of first sector and number of sectors.
fn ranges(written: &BTreeMap<u64, u32>) -> impl Iterator<Item = (u64, u32)> {
    let mut ranges: Vec<(u64, u32)> = Vec::new();
    for &lba in written.keys() {
        match ranges.last_mut() {
            Some((first, count)) if *first + u64::from(*count) == lba && *count < READ_BACK_SECTORS => {
                *count += 1;
            }
            _ => ranges.push((lba, 1)),
        }
    }
    ranges.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(rows: &str) -> Script {
        Script::of(&Trace::parse(&format!("time_us,op,lba,blocks,session\n{rows}")).unwrap())
    }

    #[test]
    fn a_read_knows_which_of_its_sectors_the_boot_wrote_before_it() {
        let script = script("5,R,0,16,os1\n9,W,4,2,os1\n10,W,5,1,os1\n12,R,0,8,os1\n");
        let pieces = |id: u32| script.step(0, id).unwrap().pieces.clone();
        let piece = |end, origin| Piece { end, origin };
        let before =
            [piece(4, Origin::Golden), piece(6, Origin::GoldenUntilWritten), piece(16, Origin::Golden)];
        assert_eq!(pieces(0), before);
        let after = [
            piece(4, Origin::Golden),
            piece(5, Origin::Write(0)),
            piece(6, Origin::Write(1)),
            piece(8, Origin::Golden),
        ];
        assert_eq!(pieces(3), after);
        assert_eq!(script.read_back.len(), 1);
        assert_eq!(script.step(0, 4).unwrap().op, Op::Read { lba: 4, sectors: 2 });
        assert!(script.step(0, 5).is_none());
    }

    #[test]
    fn golden_pages_are_counted_once_and_gaps_between_all_rows() {
        let script = script("5,R,0,1,loader1\n9,R,7,2,os1\n20,W,16,8,os1\n20,R,16,8,os1\n");
        assert_eq!((script.read_bytes, script.write_bytes, script.unique_bytes), (11 * 512, 4096, 8192));
        assert_eq!(script.step(1, 0).unwrap().gap_us, 4);
        assert_eq!(script.commands(), 4);
        assert_eq!(script.runs_read(8).into_iter().collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn the_recorded_boot_reads_what_its_description_says() {
        let script = Script::of(&Trace::load("bios").unwrap());
        assert_eq!((script.read_bytes, script.write_bytes), (65_629_184, 3_473_408));
        // 62 685 184 bytes are distinct; pages that the boot wrote itself before it read them are not golden.
        assert!((62_600_000..=62_685_184).contains(&script.unique_bytes), "{}", script.unique_bytes);
        assert_eq!(
            script.read_back.iter().filter_map(|s| s.op.range()).map(|(a, b)| b - a).sum::<u64>() * 512,
            1_798_144
        );
    }
}
