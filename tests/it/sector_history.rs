//! What each sector may read after a crash: the oracle, slow and obvious.

use std::collections::{BTreeMap, BTreeSet};

/// One write of one sector. Times are a count of steps.
struct Record {
    write: u64,
    value: u64,
    began: u64,
    /// When it was answered or given up.
    ended: Option<u64>,
    acknowledged: bool,
    flushed: bool,
}

/// What a crash promises to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Every answered write (killed process; also what a read sees).
    Acknowledged,
    /// Every write that was answered before a flush that ended.
    Flushed,
}

/// The content of a disk, sector by sector: a base, and writes in the order of their beginnings.
#[derive(Default)]
pub struct History {
    base: BTreeMap<u64, u64>,
    records: BTreeMap<u64, Vec<Record>>,
}

impl History {
    pub fn began(&mut self, write: u64, sectors: core::ops::Range<u64>, value: u64, now: u64) {
        for sector in sectors {
            self.records.entry(sector).or_default().push(Record {
                write,
                value,
                began: now,
                ended: None,
                acknowledged: false,
                flushed: false,
            });
        }
    }

    pub fn ended(&mut self, write: u64, sectors: core::ops::Range<u64>, acknowledged: bool, now: u64) {
        for (_, records) in self.records.range_mut(sectors) {
            for record in records.iter_mut().filter(|record| record.write == write) {
                record.ended = Some(now);
                record.acknowledged = acknowledged;
            }
        }
    }

    /// A flush that began at `began` has ended.
    pub fn flushed(&mut self, began: u64) {
        for record in self.records.values_mut().flatten() {
            record.flushed |= record.acknowledged && record.ended.is_some_and(|ended| ended < began);
        }
    }

    /// A write that was answered when it was stable (FUA).
    pub fn stable(&mut self, write: u64, sectors: core::ops::Range<u64>) {
        for (_, records) in self.records.range_mut(sectors) {
            for record in records.iter_mut().filter(|record| record.write == write) {
                record.flushed |= record.acknowledged;
            }
        }
    }

    /// The process was killed: what was in flight may have happened, and will not happen any more.
    pub fn killed(&mut self, now: u64) {
        for record in self.records.values_mut().flatten() {
            record.ended.get_or_insert(now);
        }
    }

    /// The disk reads `content` and all of it is stable.
    pub fn restart(&mut self, content: BTreeMap<u64, u64>) {
        self.base = content;
        self.records.clear();
    }

    /// The first sector that reads something it must not, in words.
    pub fn complaint(&self, content: &BTreeMap<u64, u64>, promise: Promise) -> Option<String> {
        let touched = self.records.keys();
        let sectors: BTreeSet<u64> = content.keys().chain(self.base.keys()).chain(touched).copied().collect();
        sectors
            .into_iter()
            .find_map(|sector| self.complaint_at(sector, content.get(&sector).copied().unwrap_or(0), promise))
    }

    /// What is wrong with one sector that reads `found`.
    pub fn complaint_at(&self, sector: u64, found: u64, promise: Promise) -> Option<String> {
        let allowed = self.allowed(sector, promise);
        let wrong = !allowed.contains(&found);
        wrong.then(|| format!("sector {sector} reads {found:#x}, allowed are {allowed:#x?}"))
    }

    /// A value counts unless a promised write began after its own had ended.
    fn allowed(&self, sector: u64, promise: Promise) -> Vec<u64> {
        let records = self.records.get(&sector).map(Vec::as_slice).unwrap_or_default();
        let promised = |record: &&Record| match promise {
            Promise::Acknowledged => record.acknowledged,
            Promise::Flushed => record.flushed,
        };
        let last_promised = records.iter().filter(promised).map(|record| record.began).max();
        let mut allowed = Vec::new();
        if last_promised.is_none() {
            allowed.push(self.base.get(&sector).copied().unwrap_or(0));
        }
        let overtaken = |record: &&Record| matches!((record.ended, last_promised), (Some(ended), Some(began)) if ended < began);
        allowed.extend(records.iter().filter(|record| !overtaken(record)).map(|record| record.value));
        allowed
    }
}

#[test]
fn a_flushed_write_overtakes_what_ended_before_it_began() {
    let mut history = History::default();
    history.began(1, 0..1, 11, 1);
    history.ended(1, 0..1, true, 2);
    history.began(2, 0..1, 12, 3);
    assert_eq!(history.allowed(0, Promise::Acknowledged), [11, 12]);
    assert_eq!(history.allowed(0, Promise::Flushed), [0, 11, 12]);
    history.ended(2, 0..1, true, 4);
    history.flushed(5);
    assert_eq!(history.allowed(0, Promise::Flushed), [12]);
    assert!(history.complaint(&[(0, 11)].into(), Promise::Flushed).is_some());
}
