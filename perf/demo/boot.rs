//! What a diskless machine asks for while it boots: sessions of reads, writes and flushes.
//!
//! Knows a made-up boot of a loader and an operating system, and what is left of a recorded one. Does not know
//! targets or contents.

use crate::pattern::Random;
use crate::trace::{Kind, Op, Trace};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stage {
    pub(crate) kind: Kind,
    pub(crate) ops: Vec<Op>,
}

/// Sectors of a loader's reads: runs of up to 32 KiB cut where a file system's files end.
const LOADER_SECTORS: [u64; 8] = [63, 63, 64, 33, 31, 15, 4, 1];
/// Sectors of a system's reads: half of them pages, a quarter read-ahead.
const SYSTEM_READS: [u64; 12] = [8, 8, 8, 8, 8, 8, 16, 32, 136, 256, 256, 256];
const SYSTEM_WRITES: [u64; 10] = [8, 8, 8, 8, 8, 8, 16, 24, 40, 128];

/// A boot that differs for each node in order and place, on a disk of `sectors`.
pub(crate) fn made_up(node: usize, sectors: u64) -> Vec<Stage> {
    let mut random = Random::new(0x626f_6f74 + node as u64);
    let mut pick = |from: &[u64]| from[random.below(from.len() as u64) as usize];
    let mut loader = vec![Op::Read { lba: 0, sectors: 1 }];
    let mut next = 2048;
    let end = sectors / 4;
    while next < end {
        let count = pick(&LOADER_SECTORS).min(end - next);
        loader.push(Op::Read { lba: next, sectors: count as u32 });
        next += count;
    }
    let mut random = Random::new(0x7379_7374 + node as u64);
    let mut system = Vec::new();
    for step in 0..1000 {
        let write = step > 200 && random.below(5) == 0;
        let sizes: &[u64] = if write { &SYSTEM_WRITES } else { &SYSTEM_READS };
        let count = sizes[random.below(sizes.len() as u64) as usize];
        // Writes gather in an eighth of the disk, so that later reads meet them and later writes overlap.
        let room = (if write { sectors / 8 } else { sectors }) - count;
        let lba = random.below(room / 8) * 8;
        let count = count as u32;
        system.push(if write { Op::Write { lba, sectors: count } } else { Op::Read { lba, sectors: count } });
        if step % 50 == 49 {
            system.push(Op::Flush);
        }
    }
    vec![Stage { kind: Kind::Loader, ops: loader }, Stage { kind: Kind::System, ops: system }]
}

/// A recorded boot: its sessions follow each other; the gaps between commands are left out.
pub(crate) fn recorded(trace: &Trace) -> Vec<Stage> {
    let stage = |session: &crate::trace::Recorded| {
        let ops = session.rows.iter().map(|row| row.op).collect();
        Stage { kind: session.kind, ops }
    };
    trace.sessions.iter().map(stage).collect()
}

/// The sectors that a disk must have for a boot.
pub(crate) fn sectors_needed(stages: &[Stage]) -> u64 {
    stages
        .iter()
        .flat_map(|stage| &stage.ops)
        .filter_map(|op| op.range())
        .map(|(_, end)| end)
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_up_boot_stays_on_its_disk_and_writes() {
        let boot = made_up(3, 128 << 11);
        assert!(sectors_needed(&boot) <= 128 << 11);
        assert!(boot[0].ops.iter().all(|op| matches!(op, Op::Read { .. })));
        let writes = boot[1].ops.iter().filter(|op| matches!(op, Op::Write { .. })).count();
        assert!(writes > 100, "{writes}");
        assert_ne!(boot, made_up(4, 128 << 11));
    }

    #[test]
    fn a_recorded_boot_keeps_its_order_and_drops_its_times() {
        let text = "time_us,op,lba,blocks,session\n1,R,0,1,loader1\n2,W,8,8,os1\n3,F,0,0,os1\n";
        let boot = recorded(&Trace::parse(text).unwrap());
        assert_eq!(boot[0], Stage { kind: Kind::Loader, ops: vec![Op::Read { lba: 0, sectors: 1 }] });
        assert_eq!(boot[1].ops, [Op::Write { lba: 8, sectors: 8 }, Op::Flush]);
        assert_eq!(sectors_needed(&boot), 16);
    }
}
