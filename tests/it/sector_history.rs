//! What each sector may read after a crash: the oracle, slow and obvious.

use std::collections::BTreeMap;

/// What a disk reads: the sectors that are not zero, in order, with their values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content(Vec<(u64, u64)>);

impl Content {
    /// The next sector in order.
    pub fn push(&mut self, sector: u64, value: u64) {
        assert!(self.0.last().is_none_or(|(last, _)| *last < sector), "sectors come in order, once");
        if value != 0 {
            self.0.push((sector, value));
        }
    }

    pub fn at(&self, sector: u64) -> u64 {
        self.0.binary_search_by_key(&sector, |(at, _)| *at).map_or(0, |index| self.0[index].1)
    }
}

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
    base: Content,
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
    pub fn restart(&mut self, content: Content) {
        self.base = content;
        self.records.clear();
    }

    /// The first sector that reads something it must not, in words.
    pub fn complaint(&self, content: &Content, promise: Promise) -> Option<String> {
        let (mut found, mut base) = (content.0.iter().peekable(), self.base.0.iter().peekable());
        let mut records = self.records.iter().peekable();
        loop {
            let heads = [
                found.peek().map(|(sector, _)| *sector),
                base.peek().map(|(sector, _)| *sector),
                records.peek().map(|(sector, _)| **sector),
            ];
            let sector = heads.into_iter().flatten().min()?;
            let here = found.next_if(|(at, _)| *at == sector).map_or(0, |(_, value)| *value);
            let before = base.next_if(|(at, _)| *at == sector).map_or(0, |(_, value)| *value);
            let wrong = match records.next_if(|(at, _)| **at == sector) {
                Some((_, records)) => !is_allowed(records, before, here, promise),
                None => here != before,
            };
            if wrong {
                return self.complaint_at(sector, here, promise);
            }
        }
    }

    /// What is wrong with one sector that reads `found`.
    pub fn complaint_at(&self, sector: u64, found: u64, promise: Promise) -> Option<String> {
        let records = self.records.get(&sector).map(Vec::as_slice).unwrap_or_default();
        let base = self.base.at(sector);
        let wrong = !is_allowed(records, base, found, promise);
        wrong.then(|| {
            let allowed = allowed(records, base, promise).collect::<Vec<_>>();
            format!("sector {sector} reads {found:#x}, allowed are {allowed:#x?}")
        })
    }
}

fn is_allowed(records: &[Record], base: u64, found: u64, promise: Promise) -> bool {
    allowed(records, base, promise).any(|value| value == found)
}

/// A value counts unless a promised write began after its own had ended.
fn allowed(records: &[Record], base: u64, promise: Promise) -> impl Iterator<Item = u64> {
    let promised = move |record: &&Record| match promise {
        Promise::Acknowledged => record.acknowledged,
        Promise::Flushed => record.flushed,
    };
    let last_promised = records.iter().filter(promised).map(|record| record.began).max();
    let overtaken = move |record: &&Record| matches!((record.ended, last_promised), (Some(ended), Some(began)) if ended < began);
    let base = last_promised.is_none().then_some(base);
    let written = records.iter().filter(move |record| !overtaken(record)).map(|record| record.value);
    base.into_iter().chain(written)
}

#[test]
fn a_flushed_write_overtakes_what_ended_before_it_began() {
    let mut history = History::default();
    history.began(1, 0..1, 11, 1);
    history.ended(1, 0..1, true, 2);
    history.began(2, 0..1, 12, 3);
    let values = |history: &History, promise| allowed(&history.records[&0], 0, promise).collect::<Vec<_>>();
    assert_eq!(values(&history, Promise::Acknowledged), [11, 12]);
    assert_eq!(values(&history, Promise::Flushed), [0, 11, 12]);
    history.ended(2, 0..1, true, 4);
    history.flushed(5);
    assert_eq!(values(&history, Promise::Flushed), [12]);
    assert!(history.complaint(&Content(vec![(0, 11)]), Promise::Flushed).is_some());
    assert!(history.complaint(&Content(vec![(0, 12)]), Promise::Flushed).is_none());
    assert!(history.complaint(&Content(Vec::new()), Promise::Flushed).is_some());
    // A sector that nobody wrote reads what it did.
    assert!(history.complaint(&Content(vec![(0, 12), (3, 1)]), Promise::Flushed).is_some());
    history.restart(Content(vec![(0, 12), (3, 1)]));
    assert!(history.complaint(&Content(vec![(0, 12), (3, 1)]), Promise::Flushed).is_none());
    assert!(history.complaint(&Content(vec![(0, 12), (4, 1)]), Promise::Flushed).is_some());
}
