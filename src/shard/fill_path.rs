//! Reads of golden files into the cache: claims become few large reads, and what came of them goes to those who wait.
//!
//! Knows claims, runs of them and failed reads. Does not know why a page is wanted.
//!
//! Claims are read at the end of a turn, so that neighbours of one command, or of several, share one operation. A read
//! that fails is made again page by page: an error reaches only those who asked for the page that has it, and nothing of
//! it is kept.

use crate::buf::Fill;
use crate::cache::{Claim, Told};
use crate::io::{Errno, Op};
use crate::limits::{FILL_BYTES_MAX, FILL_PARTS_MAX};
use crate::plan::FileSlot;
use crate::units::ByteOffset;

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
        let mut run: Option<Run> = None;
        for claim in claims.drain(..) {
            if let Some(open) = &mut run
                && open.takes(&claim)
            {
                open.push(claim);
            } else {
                let fills = self.spare_run();
                if let Some(full) = run.replace(Run::of(claim, fills)) {
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

    fn read_run(&mut self, Run { file, offset, fills, .. }: Run, attempt: u16) {
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
        let mut rest: Option<Run> = None;
        for mut fill in fills.drain(..) {
            let moved = left.min(fill.left());
            fill.advance(moved);
            left -= moved;
            match self.cache.go_on(fill) {
                Err(complete) => self.fill_ended(complete, true, &mut told),
                Ok(claim) if came.is_none() => self.fill_failed(claim, token.part, result, &mut told),
                Ok(claim) => match &mut rest {
                    Some(rest) => rest.push(claim),
                    None => {
                        let fills = self.spare_run();
                        rest = Some(Run::of(claim, fills));
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
                    self.read_run(Run::of(Claim { file: claim.file, offset, fill: page }, fills), AGAIN);
                }
            }
            let fills = self.spare_run();
            self.read_run(Run::of(claim, fills), AGAIN);
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

    /// Another shard, or the prefetcher, has read pages of a frame.
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

/// Claims that follow each other in one file.
struct Run {
    file: FileSlot,
    offset: ByteOffset,
    len: u32,
    ahead: bool,
    fills: Vec<Fill>,
}

impl Run {
    fn of(claim: Claim, mut fills: Vec<Fill>) -> Self {
        let Claim { file, offset, fill } = claim;
        let (len, ahead) = (fill.left(), fill.is_ahead());
        fills.push(fill);
        Self { file, offset, len, ahead, fills }
    }

    /// Also whether somebody waits must be the same: nobody waits for more than he asked for.
    fn takes(&self, claim: &Claim) -> bool {
        claim.file == self.file
            && claim.offset.0 == self.offset.0 + u64::from(self.len)
            && claim.fill.is_ahead() == self.ahead
            && self.fills.len() < FILL_PARTS_MAX
            && self.len + claim.fill.left() <= FILL_BYTES_MAX
    }

    fn push(&mut self, claim: Claim) {
        self.len += claim.fill.left();
        self.fills.push(claim.fill);
    }
}
