//! What `image bench` measures: where operations go, and slices of them, timed.
//!
//! Knows patterns of offsets and both ways to write: as a command to a unit, and into a plain file. Does not know how the
//! files came to be (`bench_round`).

use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};

use crate::buf::BufRef;
use crate::plan::FileSlot;
use crate::shard::{Solo, SoloFault};
use crate::units::{ByteOffset, Lba};
use crate::uring::UringIo;

/// Bytes of a random write, and of one in a row.
pub(super) const PAGE: u64 = 4096;
pub(super) const RUN: u64 = 64 * 1024;
/// Writes before a flush.
const FLUSH_WRITES: u32 = 32;

/// The cases, in the order of the report. `Shape::of` says what each is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Case {
    Allocated,
    BitmapOnDisk,
    FirstWrite,
    NewBlock,
    Row,
    RowFirst,
    Flush,
    FlushFirst,
}

impl Case {
    pub(super) const ALL: [Self; 8] = [
        Self::Allocated,
        Self::BitmapOnDisk,
        Self::FirstWrite,
        Self::NewBlock,
        Self::Row,
        Self::RowFirst,
        Self::Flush,
        Self::FlushFirst,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Allocated => "random 4 KiB, allocated",
            Self::BitmapOnDisk => "random 4 KiB, bitmap on disk",
            Self::FirstWrite => "random 4 KiB, first write",
            Self::NewBlock => "random 4 KiB, new block",
            Self::Row => "64 KiB in a row, allocated",
            Self::RowFirst => "64 KiB in a row, first write",
            Self::Flush => "32 writes and a flush",
            Self::FlushFirst => "32 first writes and a flush",
        }
    }

    /// Bytes of one operation: of all writes before a flush.
    pub(super) fn bytes(self) -> u64 {
        match self {
            Self::Flush | Self::FlushFirst => u64::from(FLUSH_WRITES) * PAGE,
            _ => self.write_bytes(),
        }
    }

    fn write_bytes(self) -> u64 {
        if matches!(self, Self::Row | Self::RowFirst) { RUN } else { PAGE }
    }
}

/// How large everything is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Bytes written to, a power of two.
    pub(super) size: u64,
    pub(super) block_bytes: u64,
    /// Blocks that are there in part, for bitmaps on disk; and that are made anew. A power of two.
    pub(super) blocks: u64,
}

impl Shape {
    /// Operations of one slice: a flush counts as one, with the writes before it.
    pub(super) fn slice(self, case: Case) -> u32 {
        let pages = self.size / PAGE;
        (match case {
            Case::Allocated | Case::BitmapOnDisk => pages / 16,
            Case::FirstWrite => pages / 32,
            Case::NewBlock => (self.blocks / 16).min(256),
            Case::Row | Case::RowFirst => self.size / RUN / 16,
            Case::Flush | Case::FlushFirst => 4,
        }) as u32
    }

    /// Where a case writes. Cases that write one child share its places.
    pub(super) fn places(self, case: Case) -> Places {
        let pages = self.size / PAGE;
        match case {
            Case::Allocated | Case::Flush => Places::random(pages, PAGE),
            Case::BitmapOnDisk => Places::random(self.blocks, self.block_bytes),
            Case::FirstWrite | Case::FlushFirst => Places::each_once(pages, PAGE),
            Case::NewBlock => Places::each_once(self.blocks, self.block_bytes),
            Case::Row | Case::RowFirst => Places::in_a_row(self.size / RUN, RUN),
        }
    }

    /// Slices of all cases until some child has nothing left that was never written.
    pub(super) fn rotations(self) -> u32 {
        let pages = self.size / PAGE;
        let first = self.slice(Case::FirstWrite) + FLUSH_WRITES * self.slice(Case::FlushFirst);
        let of_pages = pages / u64::from(first);
        let of_blocks = self.blocks / u64::from(self.slice(Case::NewBlock));
        let of_runs = self.size / RUN / u64::from(self.slice(Case::RowFirst));
        of_pages.min(of_blocks).min(of_runs).min(8) as u32
    }
}

/// A sequence of offsets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    order: Order,
    next: u64,
    /// How many places there are, a power of two, and their distance.
    count: u64,
    step: u64,
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Random,
    EachOnce,
    InARow,
}

impl Places {
    fn random(count: u64, step: u64) -> Self {
        Self { order: Order::Random, next: 0, count, step }
    }

    fn each_once(count: u64, step: u64) -> Self {
        Self { order: Order::EachOnce, next: 0, count, step }
    }

    pub(super) fn in_a_row(count: u64, step: u64) -> Self {
        Self { order: Order::InARow, next: 0, count, step }
    }

    pub(super) fn here(&self) -> u64 {
        let index = match self.order {
            Order::Random => scrambled(self.next),
            // An odd factor and a power of two: every index once before any comes again.
            Order::EachOnce => self.next.wrapping_mul(0x9E37_79B9_7F4A_7C15 | 1),
            Order::InARow => self.next,
        };
        (index & (self.count - 1)) * self.step
    }

    fn advance(&mut self) {
        self.next += 1;
    }
}

/// The finalizer of SplitMix64.
fn scrambled(number: u64) -> u64 {
    let mut x = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 31
}

/// Whom operations go to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Side {
    /// A unit and the bytes of its blocks.
    Unit(u8, u32),
    Plain(FileSlot),
}

/// What one operation of a slice took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) wall_ns: f64,
    /// Of the whole process, workers of the ring included.
    pub(super) cpu_ns: f64,
}

/// A unit or file that is written to through `solo`.
pub(super) struct Driver<'a> {
    pub(super) solo: &'a mut Solo<UringIo>,
    /// What is written: at least `RUN` bytes.
    pub(super) data: &'a BufRef,
    pub(super) depth: u32,
}

impl Driver<'_> {
    /// One slice of a case.
    pub(super) fn sample(
        &mut self,
        case: Case,
        side: Side,
        places: &mut Places,
        operations: u32,
    ) -> Result<Sample, SoloFault> {
        let (wall, cpu) = (Instant::now(), process_time_ns());
        match case {
            Case::Flush | Case::FlushFirst => {
                for _ in 0..operations {
                    self.writes(side, places, FLUSH_WRITES, case.write_bytes())?;
                    self.flush(side)?;
                }
            }
            _ => self.writes(side, places, operations, case.write_bytes())?,
        }
        let each = f64::from(operations.max(1));
        Ok(Sample {
            wall_ns: wall.elapsed().as_nanos() as f64 / each,
            cpu_ns: (process_time_ns() - cpu) as f64 / each,
        })
    }

    /// So many writes of `len` bytes, all of them answered.
    pub(super) fn writes(
        &mut self,
        side: Side,
        places: &mut Places,
        count: u32,
        len: u64,
    ) -> Result<(), SoloFault> {
        let mut begun = 0;
        while begun < count || self.solo.running() > 0 {
            while begun < count && self.solo.running() < self.depth && self.write(side, places.here(), len) {
                places.advance();
                begun += 1;
            }
            self.solo.turn()?;
        }
        Ok(())
    }

    fn write(&mut self, side: Side, at: u64, len: u64) -> bool {
        match side {
            Side::Unit(lun, block) => {
                let data = &self.data.as_slice()[..len as usize];
                self.solo.write(lun, Lba(at / u64::from(block)), data)
            }
            Side::Plain(file) => {
                self.solo.plain_write(file, ByteOffset(at), self.data, len as u32);
                true
            }
        }
    }

    pub(super) fn flush(&mut self, side: Side) -> Result<(), SoloFault> {
        match side {
            Side::Unit(lun, _) => {
                while !self.solo.flush(lun) {
                    self.solo.turn()?;
                }
            }
            Side::Plain(file) => self.solo.plain_flush(file),
        }
        self.solo.settle()
    }
}

fn process_time_ns() -> i64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn shape() -> Shape {
        Shape { size: 16 << 20, block_bytes: 2 << 20, blocks: 512 }
    }

    #[test]
    fn first_writes_never_meet_a_place_twice() {
        let shape = shape();
        for case in [Case::FirstWrite, Case::NewBlock, Case::RowFirst] {
            let mut places = shape.places(case);
            let count = u64::from(shape.rotations() * shape.slice(case));
            let mut seen = BTreeSet::new();
            for _ in 0..count {
                assert!(seen.insert(places.here()), "{case:?}");
                places.advance();
            }
            assert_eq!(seen.len() as u64, count);
        }
    }

    #[test]
    fn every_place_is_inside_and_on_its_grid() {
        let shape = shape();
        for case in Case::ALL {
            let mut places = shape.places(case);
            let end = if matches!(case, Case::BitmapOnDisk | Case::NewBlock) {
                shape.blocks * shape.block_bytes
            } else {
                shape.size
            };
            assert!(shape.slice(case) > 0 && shape.rotations() > 1);
            for _ in 0..2000 {
                let at = places.here();
                assert!(at.is_multiple_of(PAGE) && at + case.write_bytes() <= end, "{case:?} at {at}");
                places.advance();
            }
        }
    }
}
