//! Records of pending writes: stored before a write is answered, retired when a commit has said the same.
//!
//! Knows which records belong to which commit, and when commits are due. Does not know what a record means to an image
//! (`vhd`), nor how it is kept (`pending`).

use crate::clock::{Duration, Instant};
use crate::limits::{COMMIT_BLOCKS_MAX, COMMIT_DELAY_S, COMMITS_PER_TICK};
use crate::pending::{Area, LeafIndex, Slot};
use crate::plan::{CommitSeq, Forgetful, LayerId, NoRecords, PendingRecord, RecordSink};
use crate::units::SectorRange;

use super::executor::Core;

/// What an answered write to a leaf outlives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Durability {
    /// This process: each first write waits for a commit, shared with others.
    #[default]
    GroupCommit,
    /// This process: each first write has a record in the journal of the shard, or waits for a commit.
    Journal(LeafIndex),
    /// Nothing. A flush is answered at once, and the leaf is emptied before it is used again.
    UntilReset(ResetAt),
}

/// When a leaf with [`Durability::UntilReset`] is emptied while the server runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ResetAt {
    /// When its machine is started again, as far as its sessions show it, and when somebody asks.
    #[default]
    Boot,
    /// When somebody asks.
    Command,
}

/// The records of one layer.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) durability: Durability,
    /// Of writes that go with the next commit, and with the one that runs.
    pending: Vec<Slot>,
    committing: Vec<Slot>,
    /// The last one stored, while the next may continue it.
    last: Option<PendingRecord>,
    /// When the first of `pending` was stored.
    since: Instant,
    /// The last commit that was seen to begin.
    begun: CommitSeq,
    /// It is in the list of layers with something pending.
    listed: bool,
}

/// Stores records of one leaf. A write that continues the one before shares its record: the longer one is stored
/// first, so that there is one at every moment.
struct Recorder<'a> {
    area: &'a mut Area,
    leaf: LeafIndex,
    records: &'a mut Records,
}

impl RecordSink for Recorder<'_> {
    fn record(&mut self, record: PendingRecord) -> bool {
        let records = &mut *self.records;
        if let Some(longer) = records.last.and_then(|last| last.followed_by(record))
            && let Some(newest) = records.pending.last_mut()
        {
            let Some(slot) = self.area.store(self.leaf, longer) else { return false };
            self.area.retire(core::mem::replace(newest, slot));
            records.last = Some(longer);
            return true;
        }
        let Some(slot) = self.area.store(self.leaf, record) else { return false };
        records.pending.push(slot);
        records.last = Some(record);
        true
    }
}

impl Core {
    /// The data of `range`, a part of a write to the unit, is in the file: the commit that completes it.
    pub(super) fn data_written(&mut self, lun: usize, range: SectorRange) -> CommitSeq {
        let leaf = self.luns[lun].leaf;
        let records = &mut self.layers[leaf.0 as usize].records;
        let was_empty = records.pending.is_empty();
        let chain = &self.luns[lun].chain;
        let seq = match (records.durability, &mut self.journal) {
            (Durability::Journal(leaf), Some(area)) => {
                self.images.data_written(chain, range, &mut Recorder { area, leaf, records })
            }
            (Durability::UntilReset(_), _) => self.images.data_written(chain, range, &mut Forgetful),
            _ => self.images.data_written(chain, range, &mut NoRecords),
        };
        if was_empty && !records.pending.is_empty() {
            records.since = self.now;
            if !core::mem::replace(&mut records.listed, true) {
                self.recorded.push(leaf);
            }
        }
        // Bitmaps with pending bits stay in memory: not too many of them.
        if self.images.pending_blocks(leaf) >= COMMIT_BLOCKS_MAX {
            self.images.request_commit(leaf);
            self.kick(leaf);
        }
        seq
    }

    /// Called when a layer's commits may have moved on.
    pub(super) fn follow_commits(&mut self, layer: LayerId) {
        let (begun, committed) = (self.images.commit_begun(layer), self.images.committed(layer));
        let records = &mut self.layers[layer.0 as usize].records;
        let Some(area) = &mut self.journal else { return };
        if committed >= records.begun {
            records.committing.drain(..).for_each(|slot| area.retire(slot));
        }
        if begun > records.begun {
            records.begun = begun;
            records.last = None;
            core::mem::swap(&mut records.pending, &mut records.committing);
            if committed >= begun {
                records.committing.drain(..).for_each(|slot| area.retire(slot));
            }
        }
    }

    /// Once a turn: makes room while there is some.
    pub(super) fn commit_when_crowded(&mut self) {
        if self.journal.as_ref().is_some_and(Area::is_crowded) {
            self.commit_recorded(usize::MAX, |_| true);
        }
    }

    /// Once a second: what was recorded some time ago is committed, so that little is left to a restart.
    pub(super) fn commit_old_records(&mut self) {
        let (now, delay) = (self.now, Duration::from_secs(COMMIT_DELAY_S));
        self.commit_recorded(COMMITS_PER_TICK, |records| now.since(records.since) >= delay);
        if let Some(area) = self.journal.as_ref().filter(|area| !area.is_empty()) {
            area.stamp();
        }
    }

    fn commit_recorded(&mut self, mut at_most: usize, due: impl Fn(&Records) -> bool) {
        let mut listed = core::mem::take(&mut self.recorded);
        listed.retain(|layer| {
            let records = &mut self.layers[layer.0 as usize].records;
            records.listed = !records.pending.is_empty();
            if records.listed && at_most > 0 && due(records) && !self.images.is_failed(*layer) {
                at_most -= 1;
                self.images.request_commit(*layer);
                self.kick(*layer);
            }
            self.layers[layer.0 as usize].records.listed
        });
        // Nothing is recorded while commits begin.
        debug_assert!(self.recorded.is_empty());
        self.recorded = listed;
    }

    /// True while a restart would have something to replay.
    pub(super) fn has_records(&self) -> bool {
        self.journal.as_ref().is_some_and(|area| !area.is_empty())
    }

    /// A flush of the layer's file failed: whoever comes next must know as well.
    pub(super) fn fail_layer(&mut self, layer: LayerId) {
        self.images.fail(layer);
        let durability = self.layers[layer.0 as usize].records.durability;
        if let (Durability::Journal(leaf), Some(area)) = (durability, &self.journal) {
            area.mark_failed(leaf);
        }
    }
}
