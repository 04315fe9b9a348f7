//! Journals of simulated servers: what a killed one leaves, and what the next one does with it.
//!
//! Knows how records are replayed onto a disk. Does not know shards.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use goldrush::pending::{Area, AreaHeader, Journal, LeafIdentity, Words, words_needed};
use goldrush::plan::{MetaBatch, MetaOp, PendingRecord};
use goldrush::vhd::OpenMode;

use crate::disk::{Change, SimFile};
use crate::images;
use crate::random::Rng;

/// Memory that outlives a server, and the disks whose leaves it tells of.
#[derive(Debug)]
pub(crate) struct Left {
    /// Whose it is.
    pub(crate) shard: usize,
    memory: Arc<[AtomicU64]>,
    leaves: Vec<usize>,
    /// Leaves come and go: of one that is not in it nothing is pending.
    changes: bool,
}

/// Leaves that reloads may add.
const LATER: usize = 2;

/// A journal for these leaves; small, so that it is often full.
pub(crate) fn new(shard: usize, leaves: &[usize], rng: &mut Rng) -> Option<(Area, Left)> {
    let records = rng.pick(&[4, 30, 1000]);
    let memory: Arc<[AtomicU64]> =
        (0..words_needed(leaves.len() + LATER, records)).map(|_| AtomicU64::new(0)).collect();
    let header = AreaHeader { boot_id: [1; 16], nonce: rng.next(), records };
    let identity = |disk: &usize| LeafIdentity { device: 0, inode: *disk as u64, unique_id: [0; 16] };
    let identities: Vec<_> = leaves.iter().map(identity).collect();
    let area = Area::with_room(Box::new(memory.clone()), &header, &identities, LATER as u32)?;
    Some((area, Left { shard, memory, leaves: leaves.to_vec(), changes: false }))
}

impl Left {
    /// A reload brings this leaf, or it was here and has gone.
    pub(crate) fn may_have(&mut self, disk: usize) {
        self.changes = true;
        if !self.leaves.contains(&disk) {
            self.leaves.push(disk);
        }
    }

    /// A leaf of it may go.
    pub(crate) fn may_lose(&mut self) {
        self.changes = true;
    }

    fn journal(&self) -> Result<Journal, String> {
        let words = self.memory.words().iter();
        let bytes: Vec<u8> = words.flat_map(|word| word.load(Ordering::Acquire).to_ne_bytes()).collect();
        Journal::parse(&bytes).map_err(|error| error.to_string())
    }

    /// Replays what is left onto the disks. The disks whose leaves are marked as failed: these are not written.
    pub(crate) fn replay(&self, disks: &mut [SimFile]) -> Result<BTreeSet<usize>, String> {
        let journal = self.journal()?;
        let mut failed = BTreeSet::new();
        for disk in &self.leaves {
            let Some((leaf, _)) = journal.leaf(0, *disk as u64).map_err(|error| error.to_string())? else {
                if self.changes {
                    continue;
                }
                return Err(format!("the journal has forgotten disk {disk}"));
            };
            if journal.is_failed(leaf) {
                failed.insert(*disk);
                continue;
            }
            let mut records = Vec::new();
            for found in journal.records() {
                let (_, whose, record) = found.map_err(|error| error.to_string())?;
                records.extend((whose == leaf).then_some(record));
            }
            replay_disk(&mut disks[*disk], &records).map_err(|error| format!("disk {disk}: {error}"))?;
        }
        Ok(failed)
    }

    /// After a stop in good order.
    pub(crate) fn is_spent(&self) -> bool {
        self.journal().is_ok_and(|journal| journal.is_spent())
    }
}

fn replay_disk(disk: &mut SimFile, records: &[PendingRecord]) -> Result<(), String> {
    if records.is_empty() {
        return Ok(());
    }
    let file = disk.visible.clone();
    let mut image = images::open(&file, OpenMode::Writable).map_err(|error| error.to_string())?;
    let read = |offset: u64, bytes: &mut [u8]| {
        file.read(offset, bytes);
        Ok::<(), std::convert::Infallible>(())
    };
    image.replay(records, read).map_err(|error| error.to_string())?;
    let mut batch = MetaBatch::default();
    while image.next_meta_batch(&mut batch) {
        for op in &batch.ops {
            match op {
                MetaOp::Write { offset, bytes } => {
                    disk.change(Change::Write {
                        offset: offset.0,
                        bytes: batch.bytes[bytes.clone()].to_vec(),
                    });
                }
                MetaOp::Zero { offset, len } => disk.change(Change::Zero { offset: offset.0, len: *len }),
                MetaOp::SetLen { len } => disk.change(Change::Len(*len)),
                MetaOp::Sync => disk.sync(disk.mark()),
            }
        }
        image.meta_batch_done(Ok(()));
    }
    Ok(())
}
