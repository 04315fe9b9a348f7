//! Changes of a file that nobody uses, as values: what a tool will do, told before it does it.
//!
//! Knows bytes and places. Does not know why (`repair`, `compact`, `resize`) nor how files are written.

use super::bat::{Bat, ENTRIES_PER_SECTOR, ENTRY_BYTES, FileRange};
use crate::units::SECTOR_BYTES;
use std::collections::BTreeSet;

/// Bytes for a place in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub offset: u64,
    pub bytes: Vec<u8>,
}

/// A part of the file that is wanted in a second place. The places never overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copy {
    pub from: u64,
    pub to: u64,
    pub len: u64,
}

/// Changes that may reach the disk in any order; all of them are stable before the next stage begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stage {
    pub copies: Vec<Copy>,
    /// To be zero afterwards; within the file.
    pub zeros: Vec<FileRange>,
    pub writes: Vec<Write>,
    /// The length of the file, when the stage is the one that cuts it; nothing else is in that stage.
    pub set_len: Option<u64>,
}

impl Stage {
    pub(super) fn of(writes: Vec<Write>) -> Self {
        Self { writes, ..Self::default() }
    }

    pub(super) fn write(offset: u64, bytes: &[u8]) -> Self {
        Self::of(vec![Write { offset, bytes: bytes.to_vec() }])
    }

    pub(super) fn cut(len: u64) -> Self {
        Self { set_len: Some(len), ..Self::default() }
    }
}

/// The sectors of the table at `table` that hold the entries of `blocks`, as `bat` has them. Entries beyond the
/// disk are written as unallocated.
pub(super) fn table_sectors(bat: &Bat, table: u64, blocks: impl Iterator<Item = u32>) -> Vec<Write> {
    let sectors: BTreeSet<u32> = blocks.map(|block| block / ENTRIES_PER_SECTOR).collect();
    let mut writes: Vec<Write> = Vec::new();
    for sector in sectors {
        let first = sector * ENTRIES_PER_SECTOR;
        let entries = (first..first + ENTRIES_PER_SECTOR).flat_map(|index| bat.raw(index).to_be_bytes());
        let offset = table + u64::from(first) * ENTRY_BYTES;
        match writes.last_mut() {
            Some(last) if last.offset + last.bytes.len() as u64 == offset => last.bytes.extend(entries),
            _ => writes.push(Write { offset, bytes: entries.collect() }),
        }
    }
    debug_assert!(writes.iter().all(|write| write.bytes.len().is_multiple_of(SECTOR_BYTES as usize)));
    writes
}
