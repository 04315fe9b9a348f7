//! The pages of sector bitmaps an open image keeps in memory: bounded, loaded on demand, clean ones forgotten.
//!
//! Knows which bits reads see, which wait for a commit, and which pages may be forgotten. Does not know offsets or the
//! order of file operations (`commit`).

use super::sector_bitmap::BitmapPage;
use std::collections::BTreeMap;

/// Bits of a page on their way into the file, and why the page must stay.
#[derive(Clone, Debug, Default)]
pub(super) struct Writes {
    /// The data is in the file; the bits go with the next commit. Those of recorded writes are in `set` already.
    pub(super) pending: BitmapPage,
    /// The bits go with the commit that runs.
    pub(super) committing: BitmapPage,
    /// Sectors of resolved writes that have neither been written nor abandoned.
    pub(super) in_flight: u64,
    /// Blocks with bits here whose entry is not in the log yet: the file's bits of them mean nothing.
    pub(super) reserved: u32,
    /// The log has it newer than its place in the file.
    pub(super) logged: bool,
}

impl Writes {
    fn is_idle(&self) -> bool {
        let counts = self.in_flight == 0 && self.reserved == 0 && !self.logged;
        counts && self.pending.is_clear() && self.committing.is_clear()
    }
}

#[derive(Clone, Debug)]
pub(super) struct Kept {
    /// What reads see: what the file holds, and the bits of recorded writes that it does not hold yet.
    pub(super) set: BitmapPage,
    writes: Option<Box<Writes>>,
    /// The file's page was changed since it was loaded: older bytes of it must not come back.
    modified: bool,
    /// Second chance of the clock hand.
    used: bool,
}

impl Kept {
    /// What is on its way; made when there is nothing yet.
    pub(super) fn writes(&mut self) -> &mut Writes {
        self.writes.get_or_insert_default()
    }

    pub(super) fn has_writes(&self) -> Option<&Writes> {
        self.writes.as_deref()
    }

    pub(super) fn has_writes_mut(&mut self) -> Option<&mut Writes> {
        self.writes.as_deref_mut()
    }

    /// Bits whose data is in the file go with the next commit; of a recorded write reads see them at once. True when
    /// nothing of the page waited for that commit before.
    pub(super) fn add_pending(&mut self, first: u32, count: u32, recorded: bool) -> bool {
        let writes = self.writes.get_or_insert_default();
        let was_clear = writes.pending.is_clear();
        writes.pending.set_missing(first, count, &self.set);
        if recorded {
            self.set.set(first, count);
        }
        was_clear && !writes.pending.is_clear()
    }

    /// The page as the entry that is written now has it.
    pub(super) fn encode_committing(&self, bytes: &mut Vec<u8>) {
        match self.has_writes() {
            None => self.set.encode(bytes),
            Some(writes) => {
                let mut page = self.set.clone();
                page.subtract(&writes.pending);
                page.merge(&writes.committing);
                page.encode(bytes);
            }
        }
    }

    /// The page as the last entry has it: without what is only recorded.
    pub(super) fn encode_committed(&self, bytes: &mut Vec<u8>) {
        match self.has_writes() {
            None => self.set.encode(bytes),
            Some(writes) => {
                let mut page = self.set.clone();
                page.subtract(&writes.pending);
                page.subtract(&writes.committing);
                page.encode(bytes);
            }
        }
    }

    /// The bits of the entry are in the log: reads see them.
    pub(super) fn commit(&mut self) {
        self.modified = true;
        let writes = self.writes.get_or_insert_default();
        self.set.merge(&writes.committing);
        // Written again meanwhile: the log has these by now, and nothing may take them back.
        writes.pending.subtract(&writes.committing);
        writes.committing.clear();
        writes.logged = true;
    }

    /// Nothing of it would be lost by forgetting it.
    fn is_idle(&self) -> bool {
        self.has_writes().is_none_or(Writes::is_idle)
    }

    /// Gives back the memory of writes that have all ended.
    pub(super) fn settle(&mut self) {
        if self.is_idle() {
            self.writes = None;
        }
    }
}

/// At most `capacity` idle pages, and those with writes on their way.
#[derive(Debug)]
pub(super) struct PageTable {
    pages: BTreeMap<u32, Kept>,
    capacity: usize,
    hand: u32,
    /// Handed out with every request to read a page.
    ticket: u64,
    /// Reads with a ticket up to this one may have seen a page older than one we forgot.
    fence: u64,
}

impl PageTable {
    pub(super) fn new(capacity: usize) -> Self {
        Self { pages: BTreeMap::new(), capacity: capacity.max(1), hand: 0, ticket: 0, fence: 0 }
    }

    pub(super) fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity.max(1);
        while self.pages.len() > self.capacity && self.forget_one() {}
    }

    pub(super) fn next_ticket(&mut self) -> u64 {
        self.ticket += 1;
        self.ticket
    }

    pub(super) fn get(&mut self, page: u32) -> Option<&mut Kept> {
        let kept = self.pages.get_mut(&page)?;
        kept.used = true;
        Some(kept)
    }

    /// The page, for a look that is no use of it.
    pub(super) fn peek(&self, page: u32) -> Option<&Kept> {
        self.pages.get(&page)
    }

    /// A page read under `ticket`. A known page is never replaced: the one in memory is newer.
    pub(super) fn load(&mut self, page: u32, ticket: u64, bits: BitmapPage) {
        if ticket > self.fence && !self.pages.contains_key(&page) {
            self.get_or_insert(page, bits);
        }
    }

    /// The page, or these bits of it when it is not here.
    pub(super) fn get_or_insert(&mut self, page: u32, bits: BitmapPage) -> &mut Kept {
        if !self.pages.contains_key(&page) {
            while self.pages.len() >= self.capacity && self.forget_one() {}
        }
        self.pages.entry(page).or_insert(Kept { set: bits, writes: None, modified: false, used: true })
    }

    /// Clock: the hand passes used pages once. Without an idle one (false) the table grows: writes in flight are
    /// bounded.
    fn forget_one(&mut self) -> bool {
        for _ in 0..2 * self.pages.len() {
            let next = self.pages.range(self.hand..).next().or_else(|| self.pages.iter().next());
            let Some(page) = next.map(|(page, _)| *page) else { return false };
            self.hand = page.wrapping_add(1);
            let Some(kept) = self.pages.get_mut(&page) else { return false };
            if kept.is_idle() && !core::mem::take(&mut kept.used) {
                if self.pages.remove(&page).is_some_and(|kept| kept.modified) {
                    self.fence = self.ticket;
                }
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(bits: u32) -> BitmapPage {
        let mut page = BitmapPage::empty();
        page.set(0, bits);
        page
    }

    #[test]
    fn pages_not_used_lately_are_forgotten() {
        let mut table = PageTable::new(2);
        for number in 5..8 {
            table.get_or_insert(number, page(1));
        }
        assert_eq!(table.pages.len(), 2);
        assert!(table.get(7).is_some());
        table.set_capacity(1);
        assert_eq!(table.pages.len(), 1);
    }

    #[test]
    fn pages_with_something_on_its_way_are_kept() {
        let busy: [fn(&mut Writes); 5] = [
            |writes| writes.in_flight = 1,
            |writes| writes.reserved = 1,
            |writes| writes.logged = true,
            |writes| writes.pending.set(9, 1),
            |writes| writes.committing.set(9, 1),
        ];
        let mut table = PageTable::new(1);
        for (number, make_busy) in busy.into_iter().enumerate() {
            make_busy(table.get_or_insert(number as u32, page(0)).writes());
        }
        table.get_or_insert(99, page(0));
        assert_eq!(table.pages.len(), 6);
        for number in 0..5 {
            let kept = table.get(number).unwrap();
            *kept.writes() = Writes::default();
            kept.settle();
        }
        table.set_capacity(1);
        assert_eq!(table.pages.len(), 1);
    }

    #[test]
    fn a_page_read_before_a_newer_one_was_forgotten_is_not_taken() {
        let mut table = PageTable::new(1);
        let early = table.next_ticket();
        let kept = table.get_or_insert(7, page(0));
        kept.writes().committing.set(3, 1);
        kept.commit();
        kept.writes().logged = false;
        table.get_or_insert(8, page(0));
        assert!(table.get(7).is_none());
        table.load(7, early, page(0));
        assert!(table.get(7).is_none());
        let late = table.next_ticket();
        table.load(7, late, page(4));
        assert_eq!(table.get(7).unwrap().set.count(), 4);
    }

    #[test]
    fn a_loaded_page_never_replaces_one_in_memory() {
        let mut table = PageTable::new(1);
        let ticket = table.next_ticket();
        table.get_or_insert(7, page(9));
        table.load(7, ticket, page(0));
        assert_eq!(table.get(7).unwrap().set.count(), 9);
    }
}
