//! Recorded boots: which blocks a machine asked for, in which session and when.
//!
//! Knows the text form, packed or not, and the recordings that come with this tool. Does not know how they are replayed.

use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;

use crate::fail::{Result, failure};

/// Recordings that `--trace NAME` finds without a file.
const BUILT_IN: [(&str, &[u8]); 2] = [
    ("bios", include_bytes!("traces/boot-bios.csv.gz")),
    ("uefi", include_bytes!("traces/boot-uefi.csv.gz")),
];
/// No recording of a boot is larger, unpacked: a packed one must not fill the memory.
const TEXT_MAX: u64 = 64 << 20;
const OUTSTANDING_MAX: usize = 256;
const SYSTEM_OUTSTANDING: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Read { lba: u64, sectors: u32 },
    Write { lba: u64, sectors: u32 },
    Flush,
}

impl Op {
    /// First sector and the one behind the last; a flush has none.
    pub(crate) fn range(self) -> Option<(u64, u64)> {
        match self {
            Op::Read { lba, sectors } | Op::Write { lba, sectors } => Some((lba, lba + u64::from(sectors))),
            Op::Flush => None,
        }
    }

    pub(crate) fn is_write(self) -> bool {
        matches!(self, Op::Write { .. })
    }

    /// Two commands whose order would decide what is read or kept.
    pub(crate) fn conflicts(self, other: Op) -> bool {
        match (self.range(), other.range()) {
            (Some((from, to)), Some((other_from, other_to))) => {
                (self.is_write() || other.is_write()) && from < other_to && other_from < to
            }
            _ => false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The network card's ROM: one command at a time, small segments, gone without a word.
    Loader,
    /// The operating system: several commands at once.
    System,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) time_us: u64,
    pub(crate) op: Op,
}

/// One session of a recorded boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recorded {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// Commands that were under way at once, at most.
    pub(crate) outstanding: usize,
    pub(crate) rows: Vec<Row>,
}

/// A boot; its sessions follow each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trace {
    pub(crate) sessions: Vec<Recorded>,
}

impl Trace {
    /// The recording of that name, or else of that file.
    pub(crate) fn load(name: &str) -> Result<Trace> {
        let built_in = BUILT_IN.iter().find(|(known, _)| *known == name);
        let bytes = match built_in {
            Some((_, bytes)) => bytes.to_vec(),
            None => std::fs::read(Path::new(name))
                .map_err(|e| failure!("cannot read the trace {name}: {e}; give bios, uefi or a CSV file"))?,
        };
        Trace::parse(&unpacked(&bytes).map_err(|e| failure!("{name}: {e}"))?)
    }

    /// Lines of `time_us,op,lba,blocks,session` behind a header line.
    pub(crate) fn parse(text: &str) -> Result<Trace> {
        let mut sessions: Vec<Recorded> = Vec::new();
        let mut outstanding: Vec<(&str, usize)> = Vec::new();
        let mut header = true;
        for (number, line) in text.lines().enumerate() {
            let bad = || {
                failure!(
                    "line {} of the trace, {line:?}, is not time_us,op,lba,blocks,session: correct it",
                    number + 1
                )
            };
            if let Some(remark) = line.strip_prefix('#') {
                outstanding.extend(remark_pairs(remark).ok_or_else(bad)?);
                continue;
            }
            if std::mem::take(&mut header) {
                continue;
            }
            let (row, name) = row(line).ok_or_else(bad)?;
            match sessions.iter_mut().find(|session| session.name == name) {
                Some(session) => session.rows.push(row),
                None => {
                    let kind = if name.starts_with("loader") { Kind::Loader } else { Kind::System };
                    let outstanding = if kind == Kind::Loader { 1 } else { SYSTEM_OUTSTANDING };
                    sessions.push(Recorded { name: name.to_string(), kind, outstanding, rows: vec![row] });
                }
            }
        }
        if sessions.is_empty() {
            return Err(failure!("the trace holds no command: give a file with a header line and rows"));
        }
        for session in &mut sessions {
            let told = outstanding.iter().find(|(name, _)| *name == session.name);
            session.outstanding = told.map_or(session.outstanding, |(_, count)| *count);
        }
        Ok(Trace { sessions })
    }

    /// The sectors that a disk must have for this boot.
    pub(crate) fn sectors_needed(&self) -> u64 {
        let rows = self.sessions.iter().flat_map(|session| &session.rows);
        rows.filter_map(|row| row.op.range()).map(|(_, end)| end).max().unwrap_or(0)
    }
}

/// The text, also of a file packed with gzip.
fn unpacked(bytes: &[u8]) -> Result<String> {
    let mut text = String::new();
    let read = if bytes.starts_with(&[0x1f, 0x8b]) {
        GzDecoder::new(bytes).take(TEXT_MAX + 1).read_to_string(&mut text)
    } else {
        bytes.take(TEXT_MAX + 1).read_to_string(&mut text)
    };
    read.map_err(|e| failure!("this is neither text nor text packed with gzip: {e}; give a CSV file"))?;
    if text.len() as u64 > TEXT_MAX {
        return Err(failure!("a trace of more than {} MiB is none of one boot: cut it", TEXT_MAX >> 20));
    }
    Ok(text)
}

fn row(line: &str) -> Option<(Row, &str)> {
    let mut fields = line.split(',');
    let time_us = fields.next()?.parse().ok()?;
    let op = fields.next()?;
    let lba: u64 = fields.next()?.parse().ok()?;
    let sectors: u32 = fields.next()?.parse().ok()?;
    let name = fields.next().filter(|name| !name.is_empty())?;
    // A command carries its length in a 32-bit number of bytes, and 8 MiB is more than any initiator asks for.
    let fits = (1..=16384).contains(&sectors) && lba < 1 << 48;
    let op = match op {
        "R" if fits => Op::Read { lba, sectors },
        "W" if fits => Op::Write { lba, sectors },
        "F" => Op::Flush,
        _ => return None,
    };
    fields.next().is_none().then_some((Row { time_us, op }, name))
}

/// The pairs of `outstanding: os1=7 os2=9`; other remarks have none.
fn remark_pairs(remark: &str) -> Option<Vec<(&str, usize)>> {
    let Some(pairs) = remark.trim().strip_prefix("outstanding:") else { return Some(Vec::new()) };
    let pair = |text: &'_ str| -> Option<usize> {
        text.parse().ok().filter(|count| (1..=OUTSTANDING_MAX).contains(count))
    };
    pairs.split_whitespace().map(|text| text.split_once('=').and_then(|(n, c)| Some((n, pair(c)?)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorded_boot_keeps_its_sessions_apart() {
        let text = "# outstanding: os1=3\ntime_us,op,lba,blocks,session\n1,R,0,1,loader1\n2,W,8,8,os1\n3,F,0,0,os1\n";
        let trace = Trace::parse(text).unwrap();
        let [loader, system] = &trace.sessions[..] else { panic!("two sessions") };
        assert_eq!((loader.kind, loader.outstanding), (Kind::Loader, 1));
        assert_eq!(loader.rows, [Row { time_us: 1, op: Op::Read { lba: 0, sectors: 1 } }]);
        assert_eq!((system.kind, system.outstanding, system.rows.len()), (Kind::System, 3, 2));
        assert_eq!(trace.sectors_needed(), 16);
    }

    #[test]
    fn what_is_no_trace_is_refused_with_its_line() {
        for bad in [
            "1,X,0,1,os1",
            "1,R,0,0,os1",
            "1,R,0,1",
            "1,R,0,1,",
            "1,R,0,1,os1,more",
            "-1,R,0,1,os1",
            "1,R,18446744073709551615,1,os1",
            "# outstanding: os1=0",
        ] {
            let told = Trace::parse(&format!("time_us\n{bad}\n")).unwrap_err().to_string();
            assert!(told.contains("line 2"), "{bad}: {told}");
        }
        assert!(Trace::parse("time_us\n").is_err());
        assert!(unpacked(&[0x1f, 0x8b, 8, 0]).is_err());
        assert!(unpacked(&[0xff, 0xfe]).is_err());
    }

    #[test]
    fn the_recordings_that_come_along_are_whole() {
        let bios = Trace::load("bios").unwrap();
        let told: Vec<(&str, usize, usize)> =
            bios.sessions.iter().map(|s| (s.name.as_str(), s.outstanding, s.rows.len())).collect();
        assert_eq!(told, [("loader1", 1, 7), ("loader2", 1, 1244), ("os1", 7, 1030), ("os2", 9, 284)]);
        assert_eq!(bios.sectors_needed(), 2_097_152);
        assert_eq!(Trace::load("uefi").unwrap().sessions.len(), 3);
        assert!(Trace::load("/no/such/trace").unwrap_err().to_string().contains("bios, uefi"));
    }

    #[test]
    fn only_overlaps_with_a_write_conflict() {
        let read = |lba| Op::Read { lba, sectors: 8 };
        let write = |lba| Op::Write { lba, sectors: 8 };
        assert!(read(0).conflicts(write(7)));
        assert!(write(0).conflicts(write(7)));
        assert!(!read(0).conflicts(read(0)));
        assert!(!write(0).conflicts(write(8)));
        assert!(!write(0).conflicts(Op::Flush));
    }
}
