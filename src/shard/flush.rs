//! One fdatasync of a file at a time: whoever asks while one runs shares the next.
//!
//! Knows who asked. Does not know why (a SYNCHRONIZE CACHE, a FUA write, a commit).
//!
//! Linux tells one of several overlapping flushes of a file that a page was lost, and the others that all is well. In
//! a row, every flush after the failed one finds its layer failed, whatever the kernel answers. A flush covers what was
//! complete when it was given to the ring, so a request never joins one that runs already.

use crate::io::{Errno, Op};
use crate::plan::LayerId;

use super::executor::Core;
use super::token::{Kind, Token};

/// The flushes of one file.
#[derive(Debug, Default)]
pub(super) struct Flushes {
    /// Whom the running one answers; empty: none runs.
    running: Vec<Token>,
    /// Whom the next one answers.
    next: Vec<Token>,
    /// Memory of the last one.
    spare: Vec<Token>,
}

impl Core {
    /// Flushes the layer's file for `who`, an operation of a task or of a metadata batch.
    pub(super) fn flush(&mut self, layer: LayerId, who: Token) {
        self.layers[layer.0 as usize].flushes.next.push(who);
        self.start_flush(layer);
    }

    fn start_flush(&mut self, layer: LayerId) {
        let work = &mut self.layers[layer.0 as usize];
        let flushes = &mut work.flushes;
        if flushes.running.is_empty() && !flushes.next.is_empty() {
            core::mem::swap(&mut flushes.running, &mut flushes.next);
            let file = work.file();
            self.submit(Token::new(Kind::Flush, layer.0, 0), Op::Sync { file });
        }
    }

    /// A flush came back: answers everybody it was for, and begins the next.
    pub(super) fn flushed(&mut self, layer: LayerId, result: Result<(), Errno>) {
        if let Err(error) = result {
            // What the kernel had in its cache may be gone for good: nothing more is acknowledged.
            tracing::error!(%error, "fdatasync failed; the image takes no more writes until it is checked");
            self.fail_layer(layer);
        }
        let flushes = &mut self.layers[layer.0 as usize].flushes;
        let mut answered = core::mem::take(&mut flushes.spare);
        core::mem::swap(&mut answered, &mut flushes.running);
        self.start_flush(layer);
        for who in answered.drain(..) {
            match who.kind {
                Kind::Meta => self.meta_done(who, result),
                Kind::LastFlush => self.last_flushes.push(layer),
                _ => {
                    if let Some(key) = who.key(&self.tasks) {
                        self.control_done(key, who.part, result);
                    }
                }
            }
        }
        self.layers[layer.0 as usize].flushes.spare = answered;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::bench::Bench;

    fn syncs(bench: &mut Bench) -> usize {
        bench.ops().into_iter().filter(|(_, op)| matches!(op, Op::Sync { .. })).count()
    }

    #[test]
    fn flushes_of_one_file_never_overlap_and_those_that_wait_share_one() {
        let mut bench = Bench::new();
        let layer = LayerId(0);
        let who = |n: u32| Token::new(Kind::Task, 1000 + n, 0);
        bench.core.flush(layer, who(0));
        bench.core.flush(layer, who(1));
        bench.core.flush(layer, who(2));
        assert_eq!(syncs(&mut bench), 1, "one runs");
        bench.core.flushed(layer, Ok(()));
        assert_eq!(syncs(&mut bench), 1, "one for both that waited");
        bench.core.flushed(layer, Ok(()));
        assert_eq!(syncs(&mut bench), 0);
        assert!(!bench.core.images.is_failed(layer));
    }
}
