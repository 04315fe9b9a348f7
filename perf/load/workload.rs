//! What a load asks for: sizes, mix, order, depth.
//!
//! Knows the text form `4k-randread-32x16` and which address comes next. Does not know sessions.

use std::fmt;
use std::str::FromStr;

use crate::fail::{Failure, Result, failure};
use crate::pattern::Random;
use crate::scsi::SECTOR;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Workload {
    pub(crate) size: u32,
    pub(crate) read_percent: u8,
    pub(crate) sequential: bool,
    pub(crate) depth: usize,
    pub(crate) sessions: usize,
}

impl Workload {
    pub(crate) fn checked(self) -> Result<Workload> {
        let whole = self.size > 0 && u64::from(self.size).is_multiple_of(SECTOR) && self.size <= 8 << 20;
        if !whole || self.read_percent > 100 {
            return Err(failure!(
                "a load of {} bytes and {} % reads cannot be made: choose a multiple of 512 up to 8 MiB, and 0 to 100 %",
                self.size,
                self.read_percent
            ));
        }
        if self.depth == 0 || self.depth > 1024 || self.sessions == 0 || self.sessions > 4096 {
            return Err(failure!(
                "{} sessions of depth {} cannot be made: choose 1 to 4096 sessions and a depth of 1 to 1024",
                self.sessions,
                self.depth
            ));
        }
        Ok(self)
    }

    pub(crate) fn only_reads(&self) -> bool {
        self.read_percent == 100
    }
}

/// A byte count with an optional k, m or g (powers of 1024).
pub(crate) fn parse_bytes(text: &str) -> Result<u64> {
    let bad = || failure!("{text:?} is no size: write bytes, or a number with k, m or g");
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        _ => return Err(bad()),
    };
    digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).ok_or_else(bad)
}

impl FromStr for Workload {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Workload> {
        let bad = || {
            failure!(
                "{text:?} is no workload: write SIZE-KIND-DEPTHxSESSIONS, KIND being randread, randwrite, seqread, seqwrite, randNN or seqNN with NN % reads"
            )
        };
        let mut parts = text.split('-');
        let (Some(size), Some(kind), Some(shape), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(bad());
        };
        let (depth, sessions) = shape.split_once('x').ok_or_else(bad)?;
        let (sequential, mix) = match (kind.strip_prefix("rand"), kind.strip_prefix("seq")) {
            (Some(mix), _) => (false, mix),
            (_, Some(mix)) => (true, mix),
            _ => return Err(bad()),
        };
        let read_percent = match mix {
            "read" => 100,
            "write" => 0,
            percent => percent.parse().map_err(|_| bad())?,
        };
        Workload {
            size: u32::try_from(parse_bytes(size)?).map_err(|_| bad())?,
            read_percent,
            sequential,
            depth: depth.parse().map_err(|_| bad())?,
            sessions: sessions.parse().map_err(|_| bad())?,
        }
        .checked()
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = if self.size.is_multiple_of(1024) {
            format!("{}k", self.size / 1024)
        } else {
            self.size.to_string()
        };
        let order = if self.sequential { "seq" } else { "rand" };
        let mix = match self.read_percent {
            100 => "read".to_string(),
            0 => "write".to_string(),
            percent => percent.to_string(),
        };
        write!(f, "{size}-{order}{mix}-{}x{}", self.depth, self.sessions)
    }
}

/// The addresses of one session, one after the other.
#[derive(Debug)]
pub(crate) struct Addresses {
    random: Random,
    sequential: bool,
    next: u64,
    pieces: u64,
    sectors_each: u64,
    read_percent: u64,
}

impl Addresses {
    /// For the session `index` of `of`, within the first `span` bytes, which hold at least one piece.
    pub(crate) fn new(workload: &Workload, span: u64, index: usize, of: usize) -> Addresses {
        let pieces = (span / u64::from(workload.size)).max(1);
        Addresses {
            random: Random::new(0x706f_7274 + index as u64),
            sequential: workload.sequential,
            next: pieces * index as u64 / of.max(1) as u64,
            pieces,
            sectors_each: u64::from(workload.size) / SECTOR,
            read_percent: u64::from(workload.read_percent),
        }
    }

    /// Whether to write, and where.
    pub(crate) fn next(&mut self) -> (bool, u64) {
        let write = self.read_percent < 100 && self.random.below(100) >= self.read_percent;
        let piece = if self.sequential {
            let piece = self.next % self.pieces;
            self.next = piece + 1;
            piece
        } else {
            self.random.below(self.pieces)
        };
        (write, piece * self.sectors_each)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_have_a_short_name() {
        let workload: Workload = "4k-randread-32x16".parse().unwrap();
        let expected = Workload { size: 4096, read_percent: 100, sequential: false, depth: 32, sessions: 16 };
        assert_eq!(workload, expected);
        assert_eq!(workload.to_string(), "4k-randread-32x16");
        assert_eq!("64k-seq70-1x1".parse::<Workload>().unwrap().read_percent, 70);
        for bad in ["4k-randread-32", "4k-up-1x1", "513-randread-1x1", "4k-randread-0x1", "4k-rand101-1x1"] {
            assert!(bad.parse::<Workload>().is_err(), "{bad}");
        }
        assert_eq!(parse_bytes("2GiB"), Ok(2 << 30));
        assert!(parse_bytes("k").is_err());
    }

    #[test]
    fn sequential_sessions_start_apart_and_wrap() {
        let workload: Workload = "4k-seqread-1x2".parse().unwrap();
        let mut second = Addresses::new(&workload, 4 * 4096, 1, 2);
        let lbas: Vec<u64> = (0..4).map(|_| second.next().1).collect();
        assert_eq!(lbas, [16, 24, 0, 8]);
    }
}
