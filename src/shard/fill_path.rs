//! Reads of golden files into the cache: claims become few large reads, and what came of them goes to those who wait.
//!
//! Knows claims, runs of them and failed reads. Does not know why a page is wanted.
//!
//! Claims are read at the end of a turn, so that neighbours of one command, or of several, share one operation. A read
//! that fails is made again page by page: an error reaches only those who asked for the page that has it, and nothing of
//! it is kept.

use crate::buf::Fill;
use crate::cache::{Claim, ReadRun, Told};
use crate::io::{Errno, Op};
use crate::limits::FILL_PARTS_MAX;

use super::executor::Core;
use super::token::{Kind, Token};

/// Which attempt a read is, in its token.
const FIRST: u16 = 0;
const AGAIN: u16 = 1;

/// Vectors kept for later reads.
const SPARE_RUNS_MAX: usize = 256;

/// Vectors for the reads a busy shard has in flight, so that none is made while it works.
pub(super) fn spare_runs() -> Vec<Vec<Fill>> {
    let mut spare = Vec::with_capacity(SPARE_RUNS_MAX);
    spare.resize_with(SPARE_RUNS_MAX / 4, || Vec::with_capacity(FILL_PARTS_MAX));
    spare
}

impl Core {
    /// Reads what this shard has claimed of golden files.
    pub(super) fn read_claims(&mut self) {
        let mut claims = core::mem::take(&mut self.claims);
        self.cache.take_claims(&mut claims);
        let mut run: Option<ReadRun> = None;
        for claim in claims.drain(..) {
            if let Some(open) = &mut run
                && open.takes(&claim)
            {
                open.push(claim);
            } else {
                let fills = self.spare_run();
                if let Some(full) = run.replace(ReadRun::of(claim, fills)) {
                    self.read_run(full, FIRST);
                }
            }
        }
        if let Some(last) = run {
            self.read_run(last, FIRST);
        }
        self.claims = claims;
    }

    fn spare_run(&mut self) -> Vec<Fill> {
        self.spare_runs.pop().unwrap_or_else(|| Vec::with_capacity(FILL_PARTS_MAX))
    }

    fn read_run(&mut self, ReadRun { file, offset, fills, .. }: ReadRun, attempt: u16) {
        self.fills += 1;
        self.cache.counts.reads += 1;
        self.submit(Token::new(Kind::Fill, file.0, attempt), Op::Fill { file, offset, fills });
    }

    /// Pages of a golden file came in (or did not).
    pub(super) fn fills_done(&mut self, token: Token, result: Result<u32, Errno>, mut fills: Vec<Fill>) {
        self.fills -= 1;
        let mut told = core::mem::take(&mut self.told);
        // Nothing, where the file has more: it was cut under us.
        let came = result.ok().filter(|moved| *moved > 0);
        if came.is_none() {
            self.cache.counts.failed_reads += 1;
        }
        let mut left = came.unwrap_or(0);
        let mut rest: Option<ReadRun> = None;
        for mut fill in fills.drain(..) {
            let moved = left.min(fill.left());
            fill.advance(moved);
            left -= moved;
            match self.cache.go_on(fill) {
                Err(ended) => {
                    let whole = self.cache.is_whole(&ended);
                    self.fill_ended(ended, whole, &mut told);
                }
                Ok(claim) if came.is_none() => self.fill_failed(claim, token.part, result, &mut told),
                Ok(claim) => match &mut rest {
                    Some(rest) => rest.push(claim),
                    None => {
                        let fills = self.spare_run();
                        rest = Some(ReadRun::of(claim, fills));
                    }
                },
            }
        }
        if self.spare_runs.len() < SPARE_RUNS_MAX {
            self.spare_runs.push(fills);
        }
        if let Some(rest) = rest {
            self.read_run(rest, token.part);
        }
        self.tell(&mut told);
    }

    /// The first time each page is read by itself; the second time it is given up.
    fn fill_failed(
        &mut self,
        mut claim: Claim,
        attempt: u16,
        result: Result<u32, Errno>,
        told: &mut Vec<Told>,
    ) {
        if attempt == FIRST {
            // Direct reads begin at pages.
            claim.offset.0 -= u64::from(claim.fill.step_back());
            while let Some(page) = claim.fill.take_page() {
                let (offset, left) = (claim.offset, page.left());
                claim.offset.0 += u64::from(left);
                if left == 0 {
                    self.fill_ended(page, true, told);
                } else {
                    let fills = self.spare_run();
                    self.read_run(ReadRun::of(Claim { file: claim.file, offset, fill: page }, fills), AGAIN);
                }
            }
            let fills = self.spare_run();
            self.read_run(ReadRun::of(claim, fills), AGAIN);
            return;
        }
        let (file, offset) = (claim.file.0, claim.offset.0);
        match result {
            Ok(_) => tracing::warn!(file, offset, "a parent is shorter than it was when it was opened"),
            Err(error) => tracing::warn!(file, offset, %error, "a read of a parent failed twice"),
        }
        self.fill_ended(claim.fill, false, told);
    }

    fn fill_ended(&mut self, fill: Fill, read: bool, told: &mut Vec<Told>) {
        let frame = fill.frame();
        let shards = self.cache.fill_ended(fill, read, told);
        if shards != 0 {
            self.golden_news.push((frame, shards));
        }
    }

    /// Another shard has read pages of a frame.
    pub(super) fn golden_filled(&mut self, frame: u32) {
        let mut told = core::mem::take(&mut self.told);
        self.cache.look_again(frame, &mut told);
        self.tell(&mut told);
    }

    /// Wakes the tasks; what they lack still is claimed by now.
    fn tell(&mut self, told: &mut Vec<Told>) {
        for Told { waiter, bytes } in told.drain(..) {
            let Some(token) = Token::decode(crate::io::OpToken(waiter.task)) else { continue };
            let Some(key) = token.key(&self.tasks) else { continue };
            let Some(task) = self.tasks.get_mut(key) else { continue };
            if let Some(segment) = task.segments.get_mut(waiter.segment as usize) {
                segment.buf = bytes;
            }
            task.pending -= 1;
            if task.pending == 0 {
                self.ready.push_back(key);
            }
        }
        self.told = core::mem::take(told);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::buf::{PAGE_BYTES, Pool, PoolConfig};
    use crate::cache::{CHUNK_BYTES, Golden, GoldenCache, Lookup, Waiter};
    use crate::image::Images;
    use crate::plan::FileSlot;
    use crate::units::ByteOffset;

    const FILE: FileSlot = FileSlot(0);
    const EIO: Errno = Errno(5);

    fn core() -> Core {
        let golden = Arc::new(Golden::new(4, false).unwrap());
        let number = golden.register(1 << 20).unwrap();
        let mut cache = GoldenCache::new(golden, 0);
        cache.set_file(FILE, number, FILE);
        let pool = Pool::new(PoolConfig { chunks: 1, smalls: 1, huge_pages: false }).unwrap();
        Core::new(pool, cache, Images::default())
    }

    fn is_there(core: &mut Core, offset: usize, len: usize) -> bool {
        let nobody = Waiter { task: 0, segment: 0 };
        matches!(core.cache.lookup(FILE, ByteOffset(offset as u64), len as u32, nobody), Lookup::Hit(_))
    }

    /// The reads that were begun: token, offset, fills.
    fn reads(core: &mut Core) -> Vec<(Token, u64, Vec<Fill>)> {
        core.read_claims();
        let read = |(token, op)| match op {
            Op::Fill { offset, fills, .. } => Some((Token::decode(token)?, offset.0, fills)),
            _ => None,
        };
        core.ops.drain(..).filter_map(read).collect()
    }

    /// Two neighbouring chunks are asked for, and share one read.
    fn one_read(core: &mut Core) -> (Token, Vec<Fill>) {
        assert!(!is_there(core, CHUNK_BYTES, CHUNK_BYTES) && !is_there(core, 0, CHUNK_BYTES));
        let mut begun = reads(core);
        let (token, offset, fills) = begun.remove(0);
        assert_eq!((begun.len(), offset, fills.len()), (0, 0, 2));
        (token, fills)
    }

    #[test]
    fn a_failed_read_is_made_again_page_by_page_and_only_the_bad_page_stays_missing() {
        let mut core = core();
        let (token, fills) = one_read(&mut core);
        core.fills_done(token, Err(EIO), fills);
        let again = reads(&mut core);
        assert_eq!(again.len(), 2 * CHUNK_BYTES / PAGE_BYTES);
        let bad = 5 * PAGE_BYTES;
        for (token, offset, fills) in again {
            assert_eq!(fills.len(), 1);
            let result = if offset == bad as u64 { Err(EIO) } else { Ok(PAGE_BYTES as u32) };
            core.fills_done(token, result, fills);
        }
        assert_eq!((core.fills, core.cache.counts.failed_reads), (0, 2));
        assert!(is_there(&mut core, 0, bad) && is_there(&mut core, CHUNK_BYTES, CHUNK_BYTES));
        assert!(!is_there(&mut core, bad, PAGE_BYTES), "nothing of it is kept");
        let (token, offset, fills) = reads(&mut core).remove(0);
        assert_eq!(offset, bad as u64, "whoever asks again has it read again");
        core.fills_done(token, Ok(PAGE_BYTES as u32), fills);
        assert!(is_there(&mut core, 0, CHUNK_BYTES));
    }

    #[test]
    fn a_read_that_ends_early_goes_on_where_it_ended() {
        let mut core = core();
        let (token, fills) = one_read(&mut core);
        let came = CHUNK_BYTES + 3 * PAGE_BYTES;
        core.fills_done(token, Ok(came as u32), fills);
        let (token, offset, fills) = reads(&mut core).remove(0);
        assert_eq!((offset, fills.len()), (came as u64, 1));
        assert!(is_there(&mut core, 0, CHUNK_BYTES) && !is_there(&mut core, CHUNK_BYTES, PAGE_BYTES));
        let left = (2 * CHUNK_BYTES - came) as u32;
        core.fills_done(token, Ok(left), fills);
        assert!(is_there(&mut core, CHUNK_BYTES, CHUNK_BYTES));
        assert_eq!(core.cache.counts.failed_reads, 0);
    }

    #[test]
    fn a_file_that_was_cut_fails_the_read_in_the_end() {
        let mut core = core();
        let (token, fills) = one_read(&mut core);
        core.fills_done(token, Ok(0), fills);
        for (token, _, fills) in reads(&mut core) {
            core.fills_done(token, Ok(0), fills);
        }
        assert_eq!(core.fills, 0);
        assert!(!is_there(&mut core, 0, PAGE_BYTES));
    }
}
