//! Reading golden data along boot traces before anybody is let in: as fast as the disk gives it.
//!
//! Knows batches of a trace and a few readers. Does not know nodes: while any boots, `follow` does this, through the shards.
//!
//! The readers are threads that end before the first shard serves, so that no command ever waits for one of them.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use super::boot_traces::Traced;
use super::follow::{BATCH_BYTES, BATCH_PIECES, Piece, pieces};
use crate::buf::Fill;
use crate::cache::{Claim, Golden, GoldenCache, ReadRun};
use crate::plan::FileSlot;

/// Reads under way at a time: enough for a disk that is fast with many, and for one that answers late.
const READERS: usize = 8;
/// Reads of one file that may fail before it is left to the nodes.
const FAILURES_MAX: u32 = 3;

/// What was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Warmed {
    pub(super) bytes: u64,
    pub(super) reads: u64,
    /// Few frames were left before the end of a trace.
    pub(super) full: bool,
}

/// One trace, in the batches it is read in.
struct Trail<'a> {
    traced: &'a Traced,
    batches: Vec<Vec<Piece>>,
    failures: AtomicU32,
}

/// Reads all that the traces name; `None`: there is no trace.
pub(super) fn warm(golden: &Arc<Golden>, traced: &[Traced]) -> Option<Warmed> {
    let trails: Vec<_> = traced.iter().filter_map(Trail::of).collect();
    if trails.is_empty() {
        return None;
    }
    let work: Vec<_> = trails
        .iter()
        .enumerate()
        .flat_map(|(at, trail)| trail.batches.iter().map(move |it| (at, it)))
        .collect();
    let (next, full) = (AtomicUsize::new(0), AtomicBool::new(false));
    let read = || {
        let mut reader = Reader::new(golden, &trails);
        while let Some((trail, batch)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
            if full.load(Ordering::Relaxed) {
                break;
            }
            reader.read(*trail, batch);
            full.fetch_or(reader.done.full, Ordering::Relaxed);
        }
        reader.done
    };
    let done = std::thread::scope(|scope| {
        let readers: Vec<_> = (1..READERS.min(work.len())).map(|_| scope.spawn(read)).collect();
        let own = read();
        readers.into_iter().fold(own, |all, reader| all.and(reader.join().unwrap_or_default()))
    });
    Some(done)
}

impl Warmed {
    fn and(self, other: Self) -> Self {
        Self {
            bytes: self.bytes + other.bytes,
            reads: self.reads + other.reads,
            full: self.full | other.full,
        }
    }
}

impl<'a> Trail<'a> {
    fn of(traced: &'a Traced) -> Option<Self> {
        let mut batches: Vec<Vec<Piece>> = Vec::new();
        let mut bytes = 0;
        for piece in pieces(traced.image.trace.as_ref()?.usual()) {
            match batches.last_mut().filter(|batch| batch.len() < BATCH_PIECES && bytes < BATCH_BYTES) {
                Some(batch) => batch.push(piece),
                None => {
                    batches.push(vec![piece]);
                    bytes = 0;
                }
            }
            bytes += u64::from(piece.place.len);
        }
        Some(Self { traced, batches, failures: AtomicU32::new(0) })
    }
}

/// One thread's way into the cache.
struct Reader<'a> {
    trails: &'a [Trail<'a>],
    cache: GoldenCache,
    claims: Vec<Claim>,
    done: Warmed,
}

impl<'a> Reader<'a> {
    fn new(golden: &Arc<Golden>, trails: &'a [Trail<'a>]) -> Self {
        let mut cache = GoldenCache::outside(Arc::clone(golden));
        for (slot, trail) in (0..).map(FileSlot).zip(trails) {
            cache.set_file(slot, trail.traced.number, slot);
        }
        Self { trails, cache, claims: Vec::new(), done: Warmed::default() }
    }

    fn read(&mut self, trail: usize, batch: &[Piece]) {
        let Trail { traced, failures, .. } = &self.trails[trail];
        if failures.load(Ordering::Relaxed) >= FAILURES_MAX {
            return;
        }
        let number = traced.number;
        self.done.full |= !batch.iter().all(|piece| self.cache.prefetch_unused(number, piece.place));
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
        let Some(Trail { traced, failures, .. }) = self.trails.get(file.0 as usize) else { return };
        self.done.reads += 1;
        if let Err(error) = read_fills(&traced.source, offset.0, &mut fills) {
            failures.fetch_add(1, Ordering::Relaxed);
            let (image, offset) = (traced.image.path().display(), offset.0);
            tracing::warn!(%image, offset, %error, "a read along the boot trace failed: it is left to those who ask for it");
        }
        for fill in fills {
            self.done.bytes += u64::from(fill.done());
            let whole = self.cache.is_whole(&fill);
            self.cache.fill_ended(fill, whole, &mut Vec::new());
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
    use crate::boot_trace::{BootTrace, GoldenVersion, TraceRange};
    use crate::cache::{Lookup, Waiter};
    use crate::control::file::{Access, Locking};
    use crate::control::golden::GoldenFiles;
    use crate::control::open_image::{Format, LayerTable, Opener};
    use crate::control::{boot_traces, trace_store};
    use crate::units::ByteOffset;

    const PAGES: u32 = 64 * 256;

    fn range(page: u64, pages: u32) -> TraceRange {
        TraceRange { page, pages, boots: 1 }
    }

    /// A file whose bytes are their page's number, in a cache, with a trace.
    fn world(ranges: Vec<TraceRange>, frames: u32) -> (Arc<Golden>, Traced) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut bytes = Vec::new();
        (0..PAGES as usize).for_each(|page| bytes.resize((page + 1) * 4096, page as u8));
        std::fs::write(file.path(), bytes).unwrap();
        let mut opener = Opener::anywhere(Locking::Ignore);
        let chain = opener.open_chain_as(file.path(), Access::ReadOnly, Some(Format::Raw)).unwrap();
        let golden = Arc::new(Golden::new(frames, false).unwrap());
        let mut files = GoldenFiles::new(Arc::clone(&golden), false);
        let layer = &chain.layers()[0];
        let golden_version: GoldenVersion = trace_store::version_of(layer).unwrap();
        let trace = BootTrace { golden: golden_version, boots: 1, ranges };
        let image = boot_traces::GoldenImage::of(layer, Some(trace)).unwrap();
        let mut table = LayerTable::default();
        table.add(chain).unwrap();
        files.of_shard(&table);
        (golden, boot_traces::traced(vec![image], &files).remove(0))
    }

    #[test]
    fn a_warm_cache_has_every_page_of_the_trace_and_no_other() {
        let (golden, traced) = world(vec![range(900, 40), range(3, 1), range(200, 100), range(301, 7)], 64);
        let number = traced.number;
        let done = warm(&golden, &[traced]).unwrap();
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
    fn many_readers_read_a_long_trace_once() {
        let (golden, traced) = world(vec![range(0, PAGES)], 1200);
        let done = warm(&golden, &[traced]).unwrap();
        assert_eq!((done.bytes, done.full), (u64::from(PAGES) * 4096, false));
        assert_eq!((golden.counts().read_bytes, golden.ahead_in_flight()), (done.bytes, 0));
    }

    #[test]
    fn few_frames_end_it_and_a_file_that_cannot_be_read_is_left_alone() {
        // Readers that look at once may each take the last place; a sixteenth of these frames is more than all of them.
        let (golden, traced) = world(vec![range(0, PAGES)], 800);
        let done = warm(&golden, &[traced]).unwrap();
        assert!(done.full && golden.frames().unused() >= 1 && done.bytes >= 700 * 65_536, "{done:?}");

        let (golden, mut traced) = world(vec![range(0, PAGES)], 1200);
        let closed = tempfile::NamedTempFile::new().unwrap();
        traced.source = Arc::new(File::options().write(true).open(closed.path()).unwrap());
        let done = warm(&golden, &[traced]).unwrap();
        assert_eq!(done.bytes, 0);
        assert!(done.reads >= u64::from(FAILURES_MAX) && done.reads < 100, "{done:?}");
    }
}
