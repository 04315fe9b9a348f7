//! What a load asks for: sizes, mix, order, depth.
//!
//! Knows the text form `4k-randread-32x16` and which address comes next. Does not know sessions.

use std::fmt;
use std::str::FromStr;

use crate::fail::{Failure, Result, failure};
use crate::pattern::Random;
use crate::scsi::SECTOR;

/// In which order, or how often, the places of a disk are visited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Locality {
    /// All alike.
    Random,
    Sequential,
    /// Few places often, most of them rarely (Zipf's law); the exponent in hundredths, below 100.
    Zipf(u8),
    /// So many hundredths of the requests go to so many hundredths of the disk.
    Hot {
        requests: u8,
        places: u8,
    },
}

impl Locality {
    const ZIPF: Locality = Locality::Zipf(99);
    const HOT: Locality = Locality::Hot { requests: 90, places: 10 };
}

impl FromStr for Locality {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Locality> {
        let bad = || {
            failure!(
                "{text:?} is no locality: write random, sequential, zipf, zipf:0.80, hot, or hot:90:10 (90 % of the requests to 10 % of the disk)"
            )
        };
        let percent = |text: &str| text.parse().ok().filter(|n: &u8| (1..=99).contains(n)).ok_or_else(bad);
        let mut parts = text.split(':');
        let (kind, first, second) = (parts.next(), parts.next(), parts.next());
        if parts.next().is_some() {
            return Err(bad());
        }
        match (kind, first, second) {
            (Some("random"), None, None) => Ok(Locality::Random),
            (Some("sequential"), None, None) => Ok(Locality::Sequential),
            (Some("zipf"), None, None) => Ok(Locality::ZIPF),
            (Some("zipf"), Some(exponent), None) => {
                let exponent: f64 = exponent.parse().map_err(|_| bad())?;
                let hundredths = (exponent * 100.0).round();
                if (1.0..=99.0).contains(&hundredths) {
                    Ok(Locality::Zipf(hundredths as u8))
                } else {
                    Err(bad())
                }
            }
            (Some("hot"), None, None) => Ok(Locality::HOT),
            (Some("hot"), Some(requests), Some(places)) => {
                Ok(Locality::Hot { requests: percent(requests)?, places: percent(places)? })
            }
            _ => Err(bad()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Workload {
    pub(crate) size: u32,
    pub(crate) read_percent: u8,
    pub(crate) locality: Locality,
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
                "{text:?} is no workload: write SIZE-KIND-DEPTHxSESSIONS, KIND being rand, seq, zipf or hot and then read, write or NN for NN % reads"
            )
        };
        let mut parts = text.split('-');
        let (Some(size), Some(kind), Some(shape), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(bad());
        };
        let (depth, sessions) = shape.split_once('x').ok_or_else(bad)?;
        let kinds = [
            ("rand", Locality::Random),
            ("seq", Locality::Sequential),
            ("zipf", Locality::ZIPF),
            ("hot", Locality::HOT),
        ];
        let known = kinds.into_iter().find_map(|(name, locality)| Some((locality, kind.strip_prefix(name)?)));
        let (locality, mix) = known.ok_or_else(bad)?;
        let read_percent = match mix {
            "read" => 100,
            "write" => 0,
            percent => percent.parse().map_err(|_| bad())?,
        };
        Workload {
            size: u32::try_from(parse_bytes(size)?).map_err(|_| bad())?,
            read_percent,
            locality,
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
        let order = match self.locality {
            Locality::Random => "rand",
            Locality::Sequential => "seq",
            Locality::Zipf(_) => "zipf",
            Locality::Hot { .. } => "hot",
        };
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
    locality: Locality,
    zipf: Option<Zipf>,
    next: u64,
    pieces: u64,
    sectors_each: u64,
    read_percent: u64,
}

impl Addresses {
    /// For the session `index` of `of`, within the first `span` bytes, which hold at least one piece.
    pub(crate) fn new(workload: &Workload, span: u64, index: usize, of: usize) -> Addresses {
        let pieces = (span / u64::from(workload.size)).max(1);
        let zipf = match workload.locality {
            Locality::Zipf(hundredths) => Some(Zipf::new(pieces, f64::from(hundredths) / 100.0)),
            _ => None,
        };
        Addresses {
            random: Random::new(0x706f_7274 + index as u64),
            locality: workload.locality,
            zipf,
            next: pieces * index as u64 / of.max(1) as u64,
            pieces,
            sectors_each: u64::from(workload.size) / SECTOR,
            read_percent: u64::from(workload.read_percent),
        }
    }

    /// Whether to write, and where.
    pub(crate) fn next(&mut self) -> (bool, u64) {
        let write = self.read_percent < 100 && self.random.below(100) >= self.read_percent;
        let piece = match (self.locality, &self.zipf) {
            (Locality::Sequential, _) => {
                let piece = self.next % self.pieces;
                self.next = piece + 1;
                piece
            }
            (Locality::Zipf(_), Some(zipf)) => scattered(zipf.rank(&mut self.random), self.pieces),
            (Locality::Hot { requests, places }, _) => {
                let hot = (self.pieces * u64::from(places) / 100).max(1);
                let rank = if self.random.below(100) < u64::from(requests) || hot == self.pieces {
                    self.random.below(hot)
                } else {
                    hot + self.random.below(self.pieces - hot)
                };
                scattered(rank, self.pieces)
            }
            _ => self.random.below(self.pieces),
        };
        (write, piece * self.sectors_each)
    }
}

/// Another place for each rank, so that what is visited often does not lie together.
fn scattered(rank: u64, pieces: u64) -> u64 {
    // A prime that no number of pieces is a multiple of, as long as a disk has less than two thousand million.
    const PRIME: u64 = 2_654_435_761;
    (u128::from(rank) * u128::from(PRIME) % u128::from(pieces)) as u64
}

/// Ranks by Zipf's law, drawn with the approximation of Gray et al., "Quickly generating billion-record synthetic
/// databases" (1994).
#[derive(Debug)]
struct Zipf {
    count: f64,
    exponent: f64,
    sum: f64,
    eta: f64,
}

/// So many terms of a sum are added; the rest is an integral.
const TERMS: u64 = 10_000;

impl Zipf {
    /// Ranks below `count`; `exponent` lies between 0 and 1.
    fn new(count: u64, exponent: f64) -> Zipf {
        let exact: f64 = (1..=count.min(TERMS)).map(|rank| (rank as f64).powf(-exponent)).sum();
        let integral = |to: f64| to.powf(1.0 - exponent) / (1.0 - exponent);
        let rest =
            if count > TERMS { integral(count as f64 + 0.5) - integral(TERMS as f64 + 0.5) } else { 0.0 };
        let (count, sum) = (count as f64, exact + rest);
        let two = 1.0 + 0.5f64.powf(exponent);
        let eta = (1.0 - (2.0 / count).powf(1.0 - exponent)) / (1.0 - two / sum);
        Zipf { count, exponent, sum, eta }
    }

    fn rank(&self, random: &mut Random) -> u64 {
        let u = random.below(1 << 53) as f64 / (1u64 << 53) as f64;
        let place = u * self.sum;
        if place < 1.0 || self.count <= 1.0 {
            return 0;
        }
        if place < 1.0 + 0.5f64.powf(self.exponent) {
            return 1;
        }
        let rank = self.count * (self.eta * u - self.eta + 1.0).powf(1.0 / (1.0 - self.exponent));
        (rank as u64).min(self.count as u64 - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_have_a_short_name() {
        let workload: Workload = "4k-randread-32x16".parse().unwrap();
        let locality = Locality::Random;
        let expected = Workload { size: 4096, read_percent: 100, locality, depth: 32, sessions: 16 };
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

    #[test]
    fn localities_have_a_short_form() {
        assert_eq!("zipf:0.8".parse(), Ok(Locality::Zipf(80)));
        assert_eq!("hot:80:20".parse(), Ok(Locality::Hot { requests: 80, places: 20 }));
        assert_eq!("4k-zipf70-1x1".parse::<Workload>().unwrap().to_string(), "4k-zipf70-1x1");
        for bad in ["zipf:1", "zipf:0", "hot:0:5", "hot:90", "hot:90:10:1", "near"] {
            assert!(bad.parse::<Locality>().is_err(), "{bad}");
        }
    }

    /// How many of `draws` requests went to the `top` places visited most.
    fn at_the_top(kind: &str, places: u64, draws: usize, top: usize) -> usize {
        let workload: Workload = format!("4k-{kind}read-1x1").parse().unwrap();
        let mut addresses = Addresses::new(&workload, places * 4096, 0, 1);
        let mut counts = vec![0usize; places as usize];
        for _ in 0..draws {
            counts[(addresses.next().1 / 8) as usize] += 1;
        }
        counts.sort_unstable_by(|a, b| b.cmp(a));
        counts[..top].iter().sum()
    }

    #[test]
    fn hot_places_get_their_part_and_a_law_of_zipf_its_head() {
        let hot = at_the_top("hot", 1000, 100_000, 100);
        assert!((88_000..92_500).contains(&hot), "{hot}");
        // By the law, 1 % of 20000 places with the exponent 0.99 gets the sum of 200 terms of that of all.
        let sum = |terms: u64| (1..=terms).map(|rank| (rank as f64).powf(-0.99)).sum::<f64>();
        let due = 100_000.0 * sum(200) / sum(20_000);
        let zipf = at_the_top("zipf", 20_000, 100_000, 200) as f64;
        assert!((zipf / due - 1.0).abs() < 0.08, "{zipf} instead of {due}");
        assert!(at_the_top("rand", 1000, 100_000, 100) < 13_000);
    }

    #[test]
    fn scattering_leaves_no_place_out() {
        let mut places: Vec<u64> = (0..1000).map(|rank| scattered(rank, 1000)).collect();
        places.sort_unstable();
        assert!(places.into_iter().eq(0..1000));
    }
}
