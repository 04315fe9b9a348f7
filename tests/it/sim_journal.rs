//! The third medium: memory that a killed process leaves behind and a power cut takes along.
//!
//! Knows when records are retired, as the server does it. Does not know the guest, nor how the next process replays them
//! (`crash_recovery`).

use crate::blocking::Disk;
use crate::crash_world::Mistake;
use crate::sim_disk::SimFile;
use goldrush::pending::{Area, AreaHeader, Journal, LeafIdentity, LeafIndex, Slot, Words, words_needed};
use goldrush::plan::{CommitSeq, LayerId, PendingRecord, RecordSink};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// So few that there is often no room.
const RECORDS: u32 = 24;
const LEAF: LeafIdentity = LeafIdentity { device: 1, inode: 2, unique_id: [3; 16] };

/// What is in memory, word by word.
pub type Memory = Arc<[AtomicU64]>;

/// The journal of one life.
pub struct SimJournal {
    area: Area,
    pub memory: Memory,
    pending: Vec<Slot>,
    committing: Vec<Slot>,
    last: Option<PendingRecord>,
    begun: CommitSeq,
    mistake: Mistake,
    /// Records that a mistake stores too late.
    late: Vec<PendingRecord>,
}

impl SimJournal {
    pub fn new(boot: u8, nonce: u64, mistake: Mistake) -> Self {
        let memory: Memory = (0..words_needed(1, RECORDS)).map(|_| AtomicU64::new(0)).collect();
        let header = AreaHeader { boot_id: [boot; 16], nonce, records: RECORDS };
        let area = Area::new(Box::new(memory.clone()), &header, &[LEAF]).unwrap();
        Self {
            area,
            memory,
            pending: Vec::new(),
            committing: Vec::new(),
            last: None,
            begun: CommitSeq(0),
            mistake,
            late: Vec::new(),
        }
    }

    pub fn is_crowded(&self) -> bool {
        self.area.is_crowded()
    }

    fn store(&mut self, record: PendingRecord) -> bool {
        let longer = self.last.and_then(|last| last.followed_by(record));
        if let (Some(longer), Some(newest)) = (longer, self.pending.last_mut()) {
            let Some(slot) = self.area.store(LeafIndex(0), longer) else { return false };
            self.area.retire(std::mem::replace(newest, slot));
            self.last = Some(longer);
            return true;
        }
        let Some(slot) = self.area.store(LeafIndex(0), record) else { return false };
        self.pending.push(slot);
        self.last = Some(record);
        true
    }

    /// The mistake's late records, some time after the answer.
    pub fn catch_up(&mut self) {
        for record in std::mem::take(&mut self.late) {
            self.store(record);
        }
    }

    pub fn follow(&mut self, begun: CommitSeq, committed: CommitSeq) {
        if committed >= self.begun {
            self.committing.drain(..).for_each(|slot| self.area.retire(slot));
        }
        if begun > self.begun {
            self.begun = begun;
            self.last = None;
            std::mem::swap(&mut self.pending, &mut self.committing);
            if committed >= begun || self.mistake == Mistake::EarlyRetire {
                self.committing.drain(..).for_each(|slot| self.area.retire(slot));
            }
        }
    }
}

impl RecordSink for SimJournal {
    fn record(&mut self, record: PendingRecord) -> bool {
        if self.mistake == Mistake::LateRecord {
            self.late.push(record);
            return true;
        }
        self.store(record)
    }
}

/// A copy: what the next process finds.
pub fn copy(memory: &Memory) -> Memory {
    memory.words().iter().map(|word| AtomicU64::new(word.load(Ordering::Acquire))).collect()
}

/// The records of this boot.
pub fn records(memory: &Memory, boot: u8, mistake: Mistake) -> Result<Vec<PendingRecord>, String> {
    let bytes: Vec<u8> =
        memory.words().iter().flat_map(|word| word.load(Ordering::Acquire).to_ne_bytes()).collect();
    let journal = Journal::parse(&bytes).map_err(|error| error.to_string())?;
    if journal.boot_id() != [boot; 16] && mistake != Mistake::StaleBoot {
        return Ok(Vec::new());
    }
    let records = journal.records().map(|found| found.map(|(_, _, record)| record));
    records.collect::<Result<_, _>>().map_err(|error| error.to_string())
}

/// Moves the journal on with the image's commits.
pub fn follow(journal: &mut Option<SimJournal>, disk: &Disk<SimFile>, leaf: LayerId) {
    if let Some(journal) = journal {
        journal.follow(disk.images.commit_begun(leaf), disk.images.committed(leaf));
    }
}
