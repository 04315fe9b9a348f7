//! One node's boot, as its reads come in; and how it joins a trace.
//!
//! Knows pages and their order. Does not know when a boot begins or ends.

use std::collections::{HashMap, HashSet};

use super::{BOOTS_MAX, BootTrace, GoldenVersion, PAGE_BYTES, PAGES_MAX, RANGES_MAX, TraceRange};

/// Fewer pages are no boot.
const PAGES_MIN: u64 = 16;
/// A boot and a trace differ by this factor at most.
const ALIKE: u64 = 2;

/// The pages one boot has read, in the order of the first reads.
#[derive(Debug, Default)]
pub struct Recording {
    seen: HashSet<u64>,
    order: Vec<u64>,
}

/// What became of a recording that was to join a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    /// It is the trace now: there was none, or none that deserved the name.
    First,
    /// Its pages are counted and added.
    Counted,
    /// It was no boot, or no more are wanted: nothing has changed.
    Ignored,
}

impl Recording {
    /// A read of `len` bytes at `offset`. True when some page of it is new. Beyond the bounds of a trace nothing is.
    pub fn read(&mut self, offset: u64, len: u64) -> bool {
        let first = offset / PAGE_BYTES;
        let end = offset.saturating_add(len).div_ceil(PAGE_BYTES);
        let mut new = false;
        for page in first..end {
            if self.order.len() as u64 >= PAGES_MAX {
                break;
            }
            if self.seen.insert(page) {
                self.order.push(page);
                new = true;
            }
        }
        new
    }

    pub fn pages(&self) -> u64 {
        self.order.len() as u64
    }

    /// Joins the trace of its golden version, which may be the first there is.
    pub fn join(&self, trace: &mut Option<BootTrace>, golden: GoldenVersion) -> Joined {
        let pages = self.pages();
        let known = trace.as_ref().map_or(0, BootTrace::pages);
        if pages < PAGES_MIN || pages.saturating_mul(ALIKE) < known {
            return Joined::Ignored;
        }
        match trace {
            Some(trace) if known.saturating_mul(ALIKE) >= pages => {
                if trace.is_settled() {
                    return Joined::Ignored;
                }
                let pages = self.joined_with(trace);
                *trace = from_pages(golden, trace.boots + 1, &pages);
                Joined::Counted
            }
            _ => {
                let pages: Vec<_> = self.order.iter().map(|page| (*page, 1)).collect();
                *trace = Some(from_pages(golden, 1, &pages));
                Joined::First
            }
        }
    }

    /// All pages in order, with their boots: those of the trace where they were, new ones behind what this boot read
    /// before them.
    fn joined_with(&self, trace: &BootTrace) -> Vec<(u64, u32)> {
        let mut pages = Vec::new();
        for range in &trace.ranges {
            let seen = |page: &u64| u32::from(self.seen.contains(page));
            pages.extend((range.page..range.end()).map(|page| (page, range.boots + seen(&page))));
        }
        let places: HashMap<u64, usize> = pages.iter().map(|(page, _)| *page).zip(0..).collect();
        // By place in the trace, then by place in this boot; zero is the page of the trace itself.
        let mut keyed: Vec<_> = pages.into_iter().zip(0..).map(|(page, place)| ((place, 0), page)).collect();
        let mut behind = 0;
        for (number, page) in self.order.iter().enumerate() {
            match places.get(page) {
                Some(place) => behind = *place,
                None => keyed.push(((behind, number + 1), (*page, 1))),
            }
        }
        keyed.sort_unstable_by_key(|(key, _)| *key);
        keyed.into_iter().map(|(_, page)| page).collect()
    }
}

/// Neighbours of one count become one range; what exceeds the bounds of a trace is left out.
fn from_pages(golden: GoldenVersion, boots: u32, pages: &[(u64, u32)]) -> BootTrace {
    let mut ranges: Vec<TraceRange> = Vec::new();
    let file_pages = golden.len.div_ceil(PAGE_BYTES);
    let known = pages.iter().filter(|(page, _)| *page < file_pages).take(PAGES_MAX as usize);
    for (page, boots) in known {
        let full = ranges.len() == RANGES_MAX;
        match ranges.last_mut() {
            Some(last) if last.end() == *page && last.boots == *boots => last.pages += 1,
            _ if full => break,
            _ => ranges.push(TraceRange { page: *page, pages: 1, boots: *boots }),
        }
    }
    BootTrace { golden, boots: boots.min(BOOTS_MAX), ranges }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VERSION: GoldenVersion =
        GoldenVersion { unique_id: [1; 16], len: 1 << 30, modified_ns: 5, seal: None };

    /// Reads runs of pages.
    fn boot(runs: &[(u64, u64)]) -> Recording {
        let mut recording = Recording::default();
        for (page, pages) in runs {
            recording.read(page * PAGE_BYTES, pages * PAGE_BYTES);
        }
        recording
    }

    fn join(boots: &[&[(u64, u64)]]) -> (BootTrace, Vec<Joined>) {
        let mut trace = None;
        let joined = boots.iter().map(|runs| boot(runs).join(&mut trace, VERSION)).collect();
        (trace.unwrap(), joined)
    }

    fn range(page: u64, pages: u32, boots: u32) -> TraceRange {
        TraceRange { page, pages, boots }
    }

    #[test]
    fn a_recording_holds_each_page_once_in_the_order_of_first_reads() {
        let mut recording = Recording::default();
        assert!(recording.read(40 * PAGE_BYTES + 512, 4096));
        assert!(!recording.read(41 * PAGE_BYTES, 100), "a part of what was read");
        assert!(recording.read(0, 20 * PAGE_BYTES));
        let mut trace = None;
        assert_eq!(recording.join(&mut trace, VERSION), Joined::First);
        assert_eq!(trace.unwrap().ranges, [range(40, 2, 1), range(0, 20, 1)]);
    }

    #[test]
    fn a_further_boot_counts_what_is_known_and_puts_new_pages_behind_their_predecessors() {
        let (trace, joined) = join(&[&[(0, 10), (100, 10)], &[(0, 10), (50, 5), (100, 5), (7, 1)]]);
        assert_eq!(joined, [Joined::First, Joined::Counted]);
        assert_eq!(trace.boots, 2);
        assert_eq!(trace.ranges, [range(0, 10, 2), range(50, 5, 1), range(100, 5, 2), range(105, 5, 1)]);
    }

    #[test]
    fn what_few_boots_read_is_not_usual() {
        let usual: &[(u64, u64)] = &[(0, 40)];
        let (trace, _) = join(&[&[(0, 40), (90, 3)], usual, usual]);
        assert_eq!(trace.usual().collect::<Vec<_>>(), [range(0, 40, 3)]);
        assert_eq!(trace.bytes(), 43 * PAGE_BYTES);
    }

    #[test]
    fn a_look_at_a_disk_is_no_boot_and_a_boot_replaces_a_look() {
        let (trace, joined) = join(&[&[(0, 16)], &[(0, 2000)], &[(0, 20)], &[(0, 3)], &[(5, 1800)]]);
        let ignored = Joined::Ignored;
        assert_eq!(joined, [Joined::First, Joined::First, ignored, ignored, Joined::Counted]);
        assert_eq!((trace.boots, trace.pages()), (2, 2000));
    }

    #[test]
    fn a_settled_trace_takes_no_more() {
        let usual: &[(u64, u64)] = &[(0, 40)];
        let (trace, joined) = join(&[usual; 10]);
        assert!(trace.is_settled() && joined[7] == Joined::Counted && joined[8..] == [Joined::Ignored; 2]);
    }

    #[test]
    fn a_boot_that_never_ends_is_bounded() {
        let mut recording = Recording::default();
        for step in 0..3 {
            recording.read(step << 40, PAGES_MAX / 2 * PAGE_BYTES);
        }
        assert_eq!(recording.pages(), PAGES_MAX);
    }

    proptest! {
        #[test]
        fn joined_boots_make_a_trace_that_can_be_written_and_lose_no_page(
            boots in proptest::collection::vec(proptest::collection::vec((0_u64..400, 1_u64..30), 2..40), 1..6),
        ) {
            let (mut trace, mut all) = (None, HashSet::new());
            for runs in &boots {
                let recording = boot(runs);
                match recording.join(&mut trace, VERSION) {
                    Joined::First => all = recording.seen.clone(),
                    Joined::Counted => all.extend(&recording.seen),
                    Joined::Ignored => {}
                }
            }
            if let Some(trace) = trace {
                let pages: HashSet<u64> =
                    trace.ranges.iter().flat_map(|range| range.page..range.end()).collect();
                prop_assert_eq!(pages, all);
                prop_assert_eq!(BootTrace::parse(&trace.encode()), Ok(trace));
            }
        }
    }
}
