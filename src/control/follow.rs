//! Following boot traces: what nodes that boot will want next is offered to the shards, ahead of the fastest node.
//!
//! Knows traces, how far ahead of the fastest node it may be, and how much may be under way. Does not know how a trace is
//! recorded, and reads nothing itself.
//!
//! It owns no page of the cache: a thread that is kept from running, however long, keeps no command waiting. What it
//! offers is read by whichever shard sees it first, beside what its own commands miss. One batch is under way at a time,
//! and the tail of the one before it, so that a node that waits for something else meets a short queue at the disk.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::boot_traces::Traced;
use crate::boot_trace::TraceRange;
use crate::cache::{AheadBatch, AheadState, Golden, GoldenFile, Place};
use crate::units::ByteOffset;

/// How far ahead of the fastest node.
const WINDOW_BYTES: u64 = 16 << 20;
/// What is offered at once: put into the order of the file, and read as one queue of the disk.
pub(super) const BATCH_BYTES: u64 = 2 << 20;
pub(super) const BATCH_PIECES: usize = 32;
/// A range is followed in pieces of this size.
const PIECE_PAGES: u32 = 64;
/// How often it looks whether a batch has come in; whether the nodes have come nearer; and whether the first one boots.
const SOON: Duration = Duration::from_millis(1);
const NEAR: Duration = Duration::from_millis(2);
const IDLE: Duration = Duration::from_millis(50);
/// Runs of pages of one file that may fail before it is left to the nodes.
const FAILURES_MAX: u32 = 3;

/// A piece of a trace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) place: Place,
    /// Bytes of the trace before it.
    before: u64,
}

/// What sets the pace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Along {
    /// The fastest node.
    Nodes,
    /// Nothing but the disk.
    Trace,
}

/// One trace, and how far it is followed.
#[derive(Debug)]
pub(super) struct Followed {
    number: GoldenFile,
    along: Along,
    pieces: Vec<Piece>,
    /// The piece to offer next.
    next: usize,
    /// The piece behind the last one that a node has asked for.
    nodes: usize,
    given_up: bool,
}

/// What the one who follows is told meanwhile.
#[derive(Debug)]
pub(super) enum FollowNews {
    Add(Vec<Followed>),
    Forget(GoldenFile),
}

/// Offers a batch to the shards; false: none of them can be told now.
pub(super) type Offer = Box<dyn FnMut(&Arc<AheadBatch>) -> bool + Send>;

pub(super) struct Follower {
    golden: Arc<Golden>,
    offer: Offer,
    followed: Vec<Followed>,
    /// Whose turn it is.
    turn: usize,
    under_way: Option<Arc<AheadBatch>>,
    bytes: u64,
    batches: u64,
    /// Few frames are left: nothing more is offered, ever.
    full: bool,
}

pub(super) fn pieces(ranges: impl Iterator<Item = TraceRange>) -> Vec<Piece> {
    let mut before = 0;
    let mut pieces = Vec::new();
    for mut range in ranges {
        while range.pages > 0 {
            let pages = range.pages.min(PIECE_PAGES);
            let piece = TraceRange { pages, ..range };
            let place = Place { offset: ByteOffset(piece.offset()), len: piece.bytes() as u32 };
            pieces.push(Piece { place, before });
            before += piece.bytes();
            (range.page, range.pages) = (range.page + u64::from(pages), range.pages - pages);
        }
    }
    pieces
}

impl Followed {
    /// `None`: there is no trace to follow.
    pub(super) fn of(traced: &Traced, along: Along) -> Option<Self> {
        let pieces = pieces(traced.image.trace.as_ref()?.usual());
        Some(Self::along(traced.number, pieces, along))
    }

    fn along(number: GoldenFile, pieces: Vec<Piece>, along: Along) -> Self {
        Self { number, along, pieces, next: 0, nodes: 0, given_up: false }
    }

    fn is_done(&self) -> bool {
        self.next >= self.pieces.len() || self.given_up
    }

    /// Looks how far the fastest node has come.
    fn look(&mut self, golden: &Golden) {
        // Before anything is read, any node that is in the first window has begun to boot.
        let known = self.next.max(self.pieces.partition_point(|piece| piece.before < WINDOW_BYTES));
        let asked =
            |Piece { place, .. }: &Piece| golden.was_asked(self.number, place.offset, place.len.into());
        if let Some(last) =
            self.pieces.get(self.nodes..known).and_then(|pieces| pieces.iter().rposition(asked))
        {
            self.nodes += last + 1;
        }
    }

    /// The pieces that may be read now.
    fn may_read(&self) -> std::ops::Range<usize> {
        let Some(first) = self.pieces.get(self.next) else { return self.next..self.next };
        let batch = first.before + BATCH_BYTES;
        let end = match (self.along, self.nodes.checked_sub(1)) {
            (Along::Trace, _) => batch,
            (Along::Nodes, None) => return self.next..self.next,
            (Along::Nodes, Some(last)) => batch.min(self.pieces[last].before + WINDOW_BYTES),
        };
        let count = self.pieces[self.next..].partition_point(|piece| piece.before < end);
        self.next..self.next + count.min(BATCH_PIECES)
    }

    fn is_active(&self) -> bool {
        self.nodes > 0 || self.along == Along::Trace
    }
}

impl Follower {
    pub(super) fn new(golden: Arc<Golden>, followed: Vec<Followed>, offer: Offer) -> Self {
        Self { golden, offer, followed, turn: 0, under_way: None, bytes: 0, batches: 0, full: false }
    }

    /// Keeps ahead of the nodes until few frames are left, or until nobody can send news any more.
    pub(super) fn run(mut self, news: &Receiver<FollowNews>) {
        let mut began = None;
        loop {
            let pause = self.step();
            let active = self.followed.iter().any(Followed::is_active);
            if active {
                began.get_or_insert_with(Instant::now);
            }
            let Some(pause) = pause else {
                self.tell(began.take());
                if self.full {
                    return;
                }
                let Ok(told) = news.recv() else { return };
                self.hear(told);
                continue;
            };
            match news.recv_timeout(pause) {
                Ok(told) => self.hear(told),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.tell(began),
            }
        }
    }

    fn hear(&mut self, news: FollowNews) {
        match news {
            FollowNews::Add(more) => self.followed.extend(more),
            FollowNews::Forget(number) => self.followed.retain(|followed| followed.number != number),
        }
    }

    /// What came of it, when all traces that nodes boot along have been followed to their end.
    fn tell(&mut self, began: Option<Instant>) {
        self.settle();
        if let Some(began) = began {
            let (bytes, batches, full) = (self.bytes, self.batches, self.full);
            let ms = began.elapsed().as_millis() as u64;
            tracing::info!(bytes, batches, ms, full, "golden data was read ahead along boot traces");
        }
        (self.bytes, self.batches) = (0, 0);
    }

    /// One look at everything: how long to wait until the next. `None`: there is nothing to follow.
    fn step(&mut self) -> Option<Duration> {
        if !self.may_offer() {
            return Some(SOON);
        }
        self.settle();
        let golden = &self.golden;
        for followed in &mut self.followed {
            followed.given_up |= golden.ahead_failures(followed.number) >= FAILURES_MAX;
            followed.look(golden);
        }
        self.followed.retain(|followed| !followed.is_done());
        if self.full || self.followed.is_empty() {
            return None;
        }
        let count = self.followed.len();
        let next = (0..count).map(|step| (self.turn + step) % count);
        let Some(chosen) = next.into_iter().find(|at| !self.followed[*at].may_read().is_empty()) else {
            let active = self.followed.iter().any(Followed::is_active);
            return Some(if active { NEAR } else { IDLE });
        };
        self.turn = chosen + 1;
        let followed = &mut self.followed[chosen];
        let range = followed.may_read();
        let places = followed.pieces[range.clone()].iter().map(|piece| piece.place);
        let batch = Arc::new(AheadBatch::new(followed.number, places));
        if (self.offer)(&batch) {
            followed.next = range.end;
            self.batches += 1;
            self.under_way = Some(batch);
        }
        Some(SOON)
    }

    /// The last batch was taken, and little of it is still to come.
    fn may_offer(&self) -> bool {
        let Some(batch) = &self.under_way else { return true };
        match batch.state() {
            // No shard has it any more: none of them has the file.
            AheadState::Offered => Arc::strong_count(batch) == 1,
            AheadState::Begun(claimed) | AheadState::Full(claimed) => {
                self.golden.ahead_in_flight() <= claimed / 2
            }
        }
    }

    /// Counts the last batch as far as it has come.
    fn settle(&mut self) {
        match self.under_way.take().map(|batch| batch.state()) {
            None | Some(AheadState::Offered) => {}
            Some(AheadState::Begun(claimed)) => self.bytes += claimed,
            Some(AheadState::Full(claimed)) => {
                self.bytes += claimed;
                self.full = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::channel;

    use super::*;
    use crate::cache::{Claim, GoldenCache, Lookup, Waiter};
    use crate::plan::FileSlot;

    const PIECE_BYTES: u64 = PIECE_PAGES as u64 * 4096;
    const FILE: FileSlot = FileSlot(0);
    const NOBODY: Waiter = Waiter { task: 0, segment: 0 };

    fn range(page: u64, pages: u32) -> TraceRange {
        TraceRange { page, pages, boots: 1 }
    }

    /// One shard's cache, what it is offered, and a disk that answers when it is told to.
    struct World {
        golden: Arc<Golden>,
        cache: GoldenCache,
        number: GoldenFile,
        offered: Arc<Mutex<Vec<Arc<AheadBatch>>>>,
        disk: Vec<Claim>,
        bytes_read: u64,
    }

    impl World {
        fn new(frames: u32) -> Self {
            let golden = Arc::new(Golden::new(frames, false).unwrap());
            let number = golden.register(1 << 30).unwrap();
            let mut cache = GoldenCache::new(Arc::clone(&golden), 0);
            cache.set_file(FILE, number, FILE);
            Self { golden, cache, number, offered: Arc::default(), disk: Vec::new(), bytes_read: 0 }
        }

        fn follower(&self, ranges: &[TraceRange], along: Along) -> Follower {
            let pieces = pieces(ranges.iter().copied());
            let offered = Arc::clone(&self.offered);
            let offer = move |batch: &Arc<AheadBatch>| {
                offered.lock().unwrap().push(Arc::clone(batch));
                true
            };
            let followed = vec![Followed::along(self.number, pieces, along)];
            Follower::new(Arc::clone(&self.golden), followed, Box::new(offer))
        }

        /// The shard looks into its mailbox and begins to read.
        fn mail(&mut self) {
            for batch in self.offered.lock().unwrap().drain(..) {
                self.cache.read_along(&batch);
            }
            self.cache.take_claims(&mut self.disk);
        }

        /// All reads that were begun end.
        fn disk(&mut self, read: bool) {
            for Claim { mut fill, .. } in self.disk.drain(..) {
                if read {
                    self.bytes_read += u64::from(fill.left());
                    fill.advance(fill.left());
                }
                self.cache.fill_ended(fill, read, &mut Vec::new());
            }
        }

        /// A node reads a page; true for a hit.
        fn asks(&mut self, page: u64) -> bool {
            let hit = |cache: &mut GoldenCache| {
                matches!(cache.lookup(FILE, ByteOffset(page * 4096), 4096, NOBODY), Lookup::Hit(_))
            };
            let was_there = hit(&mut self.cache);
            self.cache.take_claims(&mut self.disk);
            self.disk(true);
            assert!(hit(&mut self.cache), "page {page} is there now");
            was_there
        }
    }

    #[test]
    fn long_ranges_are_followed_in_pieces() {
        let pieces = pieces([range(5, 2), range(100, PIECE_PAGES + 1)].into_iter());
        let found: Vec<_> =
            pieces.iter().map(|Piece { place, before }| (place.offset.0, place.len, *before)).collect();
        let second = 100 * 4096;
        let expected = [
            (5 * 4096, 2 * 4096, 0),
            (second, PIECE_BYTES as u32, 2 * 4096),
            (second + PIECE_BYTES, 4096, 2 * 4096 + PIECE_BYTES),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn it_is_never_further_ahead_of_the_nodes_than_the_window() {
        let mut world = World::new(2000);
        let mut follower = world.follower(&[range(0, 64 * 256)], Along::Nodes);
        let run = |world: &mut World, follower: &mut Follower| {
            for _ in 0..200 {
                follower.step();
                world.mail();
                world.disk(true);
            }
        };
        run(&mut world, &mut follower);
        assert_eq!(world.bytes_read, 0, "nobody boots");
        assert!(!world.asks(0));
        run(&mut world, &mut follower);
        assert_eq!(world.bytes_read, WINDOW_BYTES);
        assert!(world.asks(5 * u64::from(PIECE_PAGES) - 1));
        run(&mut world, &mut follower);
        assert_eq!(world.bytes_read, WINDOW_BYTES + 4 * PIECE_BYTES);
        assert!(!world.asks(64 * 256 - 1), "a node that reads somewhere else entirely is not followed");
        run(&mut world, &mut follower);
        assert_eq!(world.bytes_read, WINDOW_BYTES + 4 * PIECE_BYTES + 4096);
    }

    #[test]
    fn a_batch_goes_out_when_little_of_the_one_before_is_still_to_come() {
        let mut world = World::new(2000);
        let mut follower = world.follower(&[range(0, 64 * 256)], Along::Trace);
        for _ in 0..5 {
            follower.step();
        }
        assert_eq!(world.offered.lock().unwrap().len(), 1, "nobody has looked at it");
        world.mail();
        follower.step();
        assert_eq!(world.golden.ahead_in_flight(), BATCH_BYTES);
        assert!(world.offered.lock().unwrap().is_empty(), "the disk is busy with it");
        world.disk(true);
        follower.step();
        assert_eq!(world.offered.lock().unwrap().len(), 1);
    }

    #[test]
    fn whoever_follows_keeps_nobody_waiting_however_long_it_does_not_run() {
        let mut world = World::new(200);
        assert!(!world.asks(0), "a node boots");
        let mut follower = world.follower(&[range(0, 512)], Along::Nodes);
        follower.step();
        assert_eq!(world.offered.lock().unwrap().len(), 1);
        // From here on it never runs again. What it offered is nobody's yet.
        for page in 1..20 {
            assert!(!world.asks(page), "page {page} is read for who asks");
        }
        let before = world.bytes_read;
        world.mail();
        world.disk(true);
        assert_eq!(world.bytes_read, before + (512 - 20) * 4096, "the rest, and nothing twice");
        assert!((20..512).all(|page| world.asks(page)));
        assert_eq!(world.golden.counts().read_bytes, 512 * 4096);
        drop(follower);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_left_alone_and_one_that_no_shard_has_is_passed_over() {
        let mut world = World::new(2000);
        let mut follower = world.follower(&[range(0, 64 * 256)], Along::Trace);
        let mut offers = 0;
        while follower.step().is_some() {
            offers += world.offered.lock().unwrap().len();
            world.mail();
            world.disk(false);
        }
        assert!((1..=2).contains(&offers), "{offers} batches failed");
        world.cache.forget_file(FILE);
        let mut follower = world.follower(&[range(0, 64 * 256)], Along::Trace);
        follower.golden = Arc::new(Golden::new(1, false).unwrap());
        let mut looks = 0;
        while follower.step().is_some() {
            world.mail();
            looks += 1;
        }
        assert!(looks < 100 && world.golden.ahead_in_flight() == 0);
    }

    #[test]
    fn few_frames_end_it_for_good_and_news_reach_it_before() {
        let mut world = World::new(20);
        let mut follower = world.follower(&[], Along::Trace);
        assert_eq!(follower.step(), None, "an empty trace");
        let more = Followed::along(world.number, pieces([range(0, 4096)].into_iter()), Along::Trace);
        follower.hear(FollowNews::Add(vec![more]));
        while follower.step().is_some() {
            world.mail();
            world.disk(true);
        }
        assert!(follower.full && follower.bytes == world.bytes_read && world.bytes_read >= 12 * 65_536);
        assert!(world.golden.frames().unused() >= 1);
        let (_keep, news) = channel();
        follower.run(&news);
    }

    #[test]
    fn a_golden_image_that_goes_is_not_followed_any_more() {
        let world = World::new(200);
        let mut follower = world.follower(&[range(0, 4096)], Along::Trace);
        follower.hear(FollowNews::Forget(world.number));
        assert_eq!(follower.step(), None);
        assert!(world.offered.lock().unwrap().is_empty());
    }
}
