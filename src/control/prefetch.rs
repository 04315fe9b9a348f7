//! Reading golden data along a boot trace: ahead of the nodes that boot, or before any of them is let in.
//!
//! Knows traces, and how far ahead of the fastest node it may be. Does not know how a trace is recorded.
//!
//! One thread, one read at a time: what nodes wait for meets an idle disk or one such read. It claims pages as a shard
//! does, so a page is read once, whoever is faster, and those who wait for a page of a read are told. It takes frames that
//! were never used only, and stops when few of those are left: what is in the cache stays there.

use crate::uring::UringIo;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::boot_traces::Traced;
use crate::boot_trace::TraceRange;
use crate::buf::{Fill, PAGES};
use crate::cache::{Claim, Golden, GoldenCache, GoldenFile, ReadRun};
use crate::plan::FileSlot;
use crate::shard::{Message, Peer, Sent};
use crate::units::ByteOffset;

/// How far ahead of the fastest node.
const WINDOW_BYTES: u64 = 16 << 20;
/// What is looked up, put into the order of the file, and read before the next look at the nodes.
const BATCH_BYTES: u64 = 2 << 20;
/// A range is followed in pieces of this size.
const PIECE_PAGES: u32 = 64;
/// The most frames a piece lies in.
const PIECE_FRAMES: u32 = PIECE_PAGES / PAGES + 1;
/// How often it looks whether the nodes have come nearer; and whether the first one boots.
const NEAR: Duration = Duration::from_millis(2);
const IDLE: Duration = Duration::from_millis(50);
/// How often a shard with a full mailbox is told: one that lives has read some of it long before.
const TELL_TRIES: u32 = 10_000;
/// Of all frames, the share that is left to what nodes ask for, as a divisor.
const SPARE_SHARE: u32 = 16;
/// Reads of one file that may fail before it is left to the nodes.
const FAILURES_MAX: u32 = 3;

/// A piece of a trace.
#[derive(Clone, Copy, Debug)]
struct Piece {
    offset: u64,
    len: u32,
    /// Bytes of the trace before it.
    before: u64,
}

/// One trace, and how far it is followed.
#[derive(Debug)]
struct Followed {
    name: String,
    number: GoldenFile,
    source: Arc<File>,
    pieces: Vec<Piece>,
    /// The piece to read next.
    next: usize,
    /// The piece behind the last one that a node has asked for.
    nodes: usize,
    failures: u32,
}

/// What was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Prefetched {
    pub(super) bytes: u64,
    pub(super) reads: u64,
    /// Few frames were left before the end of a trace.
    pub(super) full: bool,
}

/// Reads along the traces of one server. Lives on one thread.
#[derive(Debug)]
pub(super) struct Prefetcher {
    golden: Arc<Golden>,
    cache: GoldenCache,
    followed: Vec<Followed>,
    shards: Vec<Peer<UringIo>>,
    claims: Vec<Claim>,
    done: Prefetched,
}

/// What can be sent to the thread of a prefetcher.
#[derive(Debug)]
pub(super) struct PrefetchPlan(Vec<Followed>);

impl PrefetchPlan {
    /// `None`: there is no trace to follow.
    pub(super) fn of(traced: &[Traced]) -> Option<Self> {
        let followed = |traced: &Traced| {
            let pieces = pieces(traced.image.trace.as_ref()?.usual());
            Some(Followed {
                name: traced.image.path().display().to_string(),
                number: traced.number,
                source: Arc::clone(&traced.source),
                pieces,
                next: 0,
                nodes: 0,
                failures: 0,
            })
        };
        let all: Vec<_> = traced.iter().filter_map(followed).collect();
        (!all.is_empty()).then_some(Self(all))
    }
}

fn pieces(ranges: impl Iterator<Item = TraceRange>) -> Vec<Piece> {
    let mut before = 0;
    let mut pieces = Vec::new();
    for mut range in ranges {
        while range.pages > 0 {
            let pages = range.pages.min(PIECE_PAGES);
            let piece = TraceRange { pages, ..range };
            pieces.push(Piece { offset: piece.offset(), len: piece.bytes() as u32, before });
            before += piece.bytes();
            (range.page, range.pages) = (range.page + u64::from(pages), range.pages - pages);
        }
    }
    pieces
}

impl Followed {
    fn is_done(&self) -> bool {
        self.next >= self.pieces.len() || self.failures >= FAILURES_MAX
    }

    /// Looks how far the fastest node has come.
    fn look(&mut self, golden: &Golden) {
        // Before anything is read, any node that is in the first window has begun to boot.
        let known = self.next.max(self.pieces.partition_point(|piece| piece.before < WINDOW_BYTES));
        let asked = |piece: &Piece| golden.was_asked(self.number, ByteOffset(piece.offset), piece.len.into());
        if let Some(last) =
            self.pieces.get(self.nodes..known).and_then(|pieces| pieces.iter().rposition(asked))
        {
            self.nodes += last + 1;
        }
    }

    /// The pieces that may be read now.
    fn may_read(&self, along: Along) -> std::ops::Range<usize> {
        let Some(first) = self.pieces.get(self.next) else { return self.next..self.next };
        let nodes = match self.nodes.checked_sub(1) {
            Some(last) => self.pieces[last].before,
            None if along == Along::Nodes => return self.next..self.next,
            None => 0,
        };
        let end = match along {
            Along::Nodes => (nodes + WINDOW_BYTES).min(first.before + BATCH_BYTES),
            Along::Trace => first.before + BATCH_BYTES,
        };
        let count = self.pieces[self.next..].partition_point(|piece| piece.before < end);
        self.next..self.next + count
    }
}

/// What sets the pace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Along {
    /// The fastest node.
    Nodes,
    /// Nothing but the disk.
    Trace,
}

impl Prefetcher {
    pub(super) fn new(golden: Arc<Golden>, plan: PrefetchPlan, shards: Vec<Peer<UringIo>>) -> Self {
        let mut cache = GoldenCache::outside(Arc::clone(&golden));
        for (index, followed) in plan.0.iter().enumerate() {
            let slot = FileSlot(index as u32);
            cache.set_file(slot, followed.number, slot);
        }
        Self { golden, cache, followed: plan.0, shards, claims: Vec::new(), done: Prefetched::default() }
    }

    /// Reads everything, as fast as the disk gives it.
    pub(super) fn warm(mut self, stop: &AtomicBool) -> Prefetched {
        for index in 0..self.followed.len() {
            while !self.followed[index].is_done() && !self.done.full && !stop.load(Ordering::Relaxed) {
                self.read_batch(index, Along::Trace);
            }
        }
        self.done
    }

    /// Keeps ahead of the nodes until the traces end, few frames are left, or `stop`.
    pub(super) fn follow(mut self, stop: &AtomicBool) {
        let mut began = None;
        while !stop.load(Ordering::Relaxed) && !self.done.full {
            let (mut read, turn) = (false, Instant::now());
            for index in 0..self.followed.len() {
                self.followed[index].look(&self.golden);
                read |= self.read_batch(index, Along::Nodes);
            }
            let booting = self.followed.iter().any(|followed| followed.nodes > 0);
            if booting {
                began.get_or_insert(turn);
            }
            if self.followed.iter().all(Followed::is_done) {
                break;
            }
            if !read {
                std::thread::sleep(if booting { NEAR } else { IDLE });
            }
        }
        if let Some(began) = began {
            let Prefetched { bytes, reads, full } = self.done;
            let ms = began.elapsed().as_millis() as u64;
            tracing::info!(bytes, reads, ms, full, "golden data was read ahead along boot traces");
        }
    }

    /// Reads the next pieces of one trace; false when there are none for now.
    fn read_batch(&mut self, index: usize, along: Along) -> bool {
        let Some(followed) = self.followed.get_mut(index).filter(|followed| !followed.is_done()) else {
            return false;
        };
        let slot = FileSlot(index as u32);
        let batch = followed.may_read(along);
        if batch.is_empty() {
            return false;
        }
        followed.next = batch.end;
        let frames = self.golden.frames();
        for piece in &followed.pieces[batch] {
            let few = frames.unused() < frames.count() / SPARE_SHARE + PIECE_FRAMES;
            if few || !self.cache.prefetch(slot, ByteOffset(piece.offset), piece.len) {
                self.done.full = true;
                break;
            }
        }
        self.read_claims();
        true
    }

    fn read_claims(&mut self) {
        let mut claims = core::mem::take(&mut self.claims);
        self.cache.take_claims(&mut claims);
        let mut run: Option<ReadRun> = None;
        for claim in claims.drain(..) {
            match &mut run {
                Some(open) if open.takes(&claim) => open.push(claim),
                _ => {
                    if let Some(full) = run.replace(ReadRun::of(claim, Vec::new())) {
                        self.read_run(full);
                    }
                }
            }
        }
        if let Some(last) = run {
            self.read_run(last);
        }
        self.claims = claims;
    }

    /// What is not read is as it was: nobody has it, and whoever asks for it reads it.
    fn read_run(&mut self, ReadRun { file, offset, mut fills, .. }: ReadRun) {
        let Some(followed) = self.followed.get_mut(file.0 as usize) else { return };
        self.done.reads += 1;
        if let Err(error) = read_fills(&followed.source, offset.0, &mut fills) {
            followed.failures += 1;
            let (image, offset) = (&followed.name, offset.0);
            tracing::warn!(image, offset, %error, "a read along the boot trace failed: it is left to those who ask for it");
        }
        for fill in fills {
            self.done.bytes += u64::from(fill.done());
            // What the end of the file cut short is complete as well.
            let (fill, read) = match self.cache.go_on(fill) {
                Ok(Claim { fill, .. }) => (fill, false),
                Err(fill) => (fill, true),
            };
            let frame = fill.frame();
            let mut told = Vec::new();
            let waiting = self.cache.fill_ended(fill, read, &mut told);
            self.tell(frame, waiting);
        }
    }

    /// Tells the shards that wait for pages of a frame.
    fn tell(&self, frame: u32, waiting: u64) {
        for (number, peer) in self.shards.iter().enumerate().filter(|(at, _)| waiting & 1 << (at % 64) != 0) {
            let mut message = Message::Golden { frame };
            for _ in 0..TELL_TRIES {
                let Sent::Full(back) = peer.send(message) else { break };
                tracing::trace!(shard = number, "its mailbox is full");
                std::thread::sleep(NEAR);
                message = back;
            }
        }
    }
}

/// Fills all of them, as far as the file goes.
fn read_fills(file: &File, mut offset: u64, fills: &mut [Fill]) -> io::Result<()> {
    loop {
        let mut open: Vec<_> = fills
            .iter_mut()
            .filter(|fill| fill.left() > 0)
            .map(|fill| IoSliceMut::new(fill.rest_mut()))
            .collect();
        if open.is_empty() {
            return Ok(());
        }
        let mut moved = match rustix::io::preadv(file, &mut open, offset) {
            Ok(0) => return Ok(()),
            Ok(moved) => moved as u32,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        offset += u64::from(moved);
        for fill in &mut *fills {
            let take = moved.min(fill.left());
            fill.advance(take);
            moved -= take;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Lookup, Waiter};

    const PIECE_BYTES: u64 = PIECE_PAGES as u64 * 4096;

    fn range(page: u64, pages: u32) -> TraceRange {
        TraceRange { page, pages, boots: 1 }
    }

    /// A file whose bytes are their page's number, and a trace of all of it from the last range to the first.
    fn world(ranges: &[TraceRange], frames: u32) -> (Arc<Golden>, Followed) {
        let golden = Arc::new(Golden::new(frames, false).unwrap());
        let file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..64 * 256).flat_map(|page: u32| [page as u8; 4096]).collect();
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
        let number = golden.register(bytes.len() as u64).unwrap();
        let pieces = pieces(ranges.iter().copied());
        let source = Arc::new(file);
        (golden, Followed { name: "g".into(), number, source, pieces, next: 0, nodes: 0, failures: 0 })
    }

    fn prefetcher(golden: &Arc<Golden>, followed: Followed) -> Prefetcher {
        Prefetcher::new(Arc::clone(golden), PrefetchPlan(vec![followed]), Vec::new())
    }

    #[test]
    fn long_ranges_are_followed_in_pieces() {
        let pieces = pieces([range(5, 2), range(100, PIECE_PAGES + 1)].into_iter());
        let found: Vec<_> = pieces.iter().map(|piece| (piece.offset, piece.len, piece.before)).collect();
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
        let (golden, mut followed) = world(&[range(0, 64 * 256)], 0);
        assert!(followed.may_read(Along::Nodes).is_empty(), "nobody boots");
        assert_eq!(followed.may_read(Along::Trace), 0..(BATCH_BYTES / PIECE_BYTES) as usize);
        followed.look(&golden);
        assert_eq!(followed.nodes, 0);
        followed.nodes = 1;
        loop {
            let batch = followed.may_read(Along::Nodes);
            if batch.is_empty() {
                break;
            }
            followed.next = batch.end;
        }
        assert_eq!(followed.pieces[followed.next].before, WINDOW_BYTES);
        followed.nodes = 5;
        assert_eq!(followed.may_read(Along::Nodes).len(), 4);
    }

    #[test]
    fn a_warm_cache_has_every_page_of_the_trace_and_no_other() {
        let (golden, followed) = world(&[range(900, 40), range(3, 1), range(200, 100), range(301, 7)], 64);
        let number = followed.number;
        let done = prefetcher(&golden, followed).warm(&AtomicBool::new(false));
        assert_eq!((done.bytes, done.full), (148 * 4096, false));
        assert!(done.reads <= 5, "{done:?}");
        let mut cache = GoldenCache::new(golden, 0);
        cache.set_file(FileSlot(0), number, FileSlot(0));
        let mut page_is = |page: u64| {
            let waiter = Waiter { task: 0, segment: 0 };
            match cache.lookup(FileSlot(0), ByteOffset(page * 4096), 4096, waiter) {
                Lookup::Hit(bytes) => Some(bytes.as_slice().iter().all(|byte| *byte == page as u8)),
                _ => None,
            }
        };
        assert!([900, 939, 3, 200, 299, 301, 307].into_iter().all(|page| page_is(page) == Some(true)));
        assert!([899, 940, 2, 4, 300, 308].into_iter().all(|page| page_is(page).is_none()));
    }

    #[test]
    fn few_frames_end_it_and_a_file_that_cannot_be_read_is_left_alone() {
        let (golden, followed) = world(&[range(0, 64 * 256)], 20);
        let done = prefetcher(&golden, followed).warm(&AtomicBool::new(false));
        assert!(done.full && golden.frames().unused() >= 1 && done.bytes >= 12 * 65_536, "{done:?}");

        let (golden, mut followed) = world(&[range(0, 64 * 256)], 1200);
        let closed = tempfile::NamedTempFile::new().unwrap();
        followed.source = Arc::new(File::options().write(true).open(closed.path()).unwrap());
        let done = prefetcher(&golden, followed).warm(&AtomicBool::new(false));
        assert_eq!(done.bytes, 0);
        assert!(done.reads >= u64::from(FAILURES_MAX) && done.reads < 10, "{done:?}");
    }
}
