//! Changes of a file that nobody uses, as values: what a tool will do, told before it does it.
//!
//! Knows bytes and places. Does not know why (`repair`, `compact`, `resize`) nor how files are written.

use super::bat::{Bat, ENTRIES_PER_SECTOR, ENTRY_BYTES};
use crate::units::SECTOR_BYTES;
use std::collections::BTreeSet;

pub use crate::plan::{FileCopy as Copy, FileWrite as Write, Stage};

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
