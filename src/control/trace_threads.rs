//! The threads of a server that follow and record boot traces, from their start to their end.
//!
//! Knows when they run. Does not know what they do (`prefetch`, `boot_traces`).

use crate::uring::UringIo;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use super::boot_traces::{Recorder, Traced};
use super::prefetch::{PrefetchPlan, Prefetched, Prefetcher};
use super::trace_store::TraceStore;
use crate::cache::Golden;
use crate::shard::Peer;

#[derive(Debug)]
pub(super) struct TraceThreads {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl TraceThreads {
    /// One that reads ahead of booting nodes where there is a trace, and one that records them where that is wanted.
    pub(super) fn start(
        golden: &Arc<Golden>,
        store: &TraceStore,
        traced: &[Traced],
        shards: &[Peer<UringIo>],
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        if golden.frames().count() == 0 || traced.is_empty() {
            golden.touches().close();
            return Ok(Self { stop, threads });
        }
        if let Some(plan) = PrefetchPlan::of(traced) {
            let (golden, shards, stop) = (Arc::clone(golden), shards.to_vec(), Arc::clone(&stop));
            threads.push(named("prefetch", move || Prefetcher::new(golden, plan, shards).follow(&stop))?);
        }
        let recorder = Recorder::new(Arc::clone(golden), store.clone(), traced);
        let stopped = Arc::clone(&stop);
        threads.push(named("boot-trace", move || recorder.run(&stopped))?);
        Ok(Self { stop, threads })
    }

    /// Ends them, and writes what is recorded so far.
    pub(super) fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the boot traces failed: what it recorded is lost");
            }
        }
    }
}

fn named(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work)
}

/// Reads all that the traces name, before anybody is let in.
pub(super) fn warm(golden: &Arc<Golden>, traced: &[Traced]) {
    let Some(plan) = PrefetchPlan::of(traced) else {
        tracing::warn!("--warm: there is no boot trace yet; the next boots are recorded");
        return;
    };
    let begun = Instant::now();
    let Prefetched { bytes, reads, full } =
        Prefetcher::new(Arc::clone(golden), plan, Vec::new()).warm(&AtomicBool::new(false));
    let ms = begun.elapsed().as_millis() as u64;
    if full {
        tracing::warn!(
            bytes,
            "the golden cache is too small for the boot trace: it holds its beginning (--golden-cache)"
        );
    }
    tracing::info!(bytes, reads, ms, "the golden cache is warm");
}
