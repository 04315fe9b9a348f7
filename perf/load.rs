//! Load: many sessions at a target, closed loop by queue depth, for a bounded time.
//!
//! Knows threads and the report of one run. Does not know rings or PDUs.

mod connection;
mod engine;
mod issue;
mod stats;
#[cfg(test)]
mod tests;
mod verify;
mod workload;

use std::sync::Barrier;
use std::time::Duration;

use crate::fail::{Result, failure};
use crate::initiator::{Options, discover};
use crate::ring;
use crate::url::Url;

pub(crate) use engine::{Engine, Plan};
pub(crate) use stats::Stats;
pub(crate) use verify::Base;
pub(crate) use workload::{Locality, Workload, parse_bytes};

/// Replaces every address whose target has a `*` by those that the portal lists.
pub(crate) fn expand(urls: &[Url], options: &Options) -> Result<Vec<Url>> {
    let mut all = Vec::new();
    for url in urls {
        if !url.is_pattern() {
            all.push(url.clone());
            continue;
        }
        let options = Options { chap: url.chap.clone(), ..options.clone() };
        let mut names = discover(url.address()?, &options)?;
        names.retain(|name| url.matches(name));
        names.sort();
        if names.is_empty() {
            return Err(failure!("{} lists no target like {}: check the name", url.portal, url.target));
        }
        all.extend(names.into_iter().map(|target| Url { target, ..url.clone() }));
    }
    Ok(all)
}

/// What a run did: while it warmed up, and while it was measured.
#[derive(Debug)]
pub(crate) struct Phases {
    pub(crate) warmup: Stats,
    pub(crate) measured: Stats,
}

/// Runs a plan on `threads` threads, thread `i` on core `pin + i`.
pub(crate) fn run(
    plan: &Plan,
    threads: usize,
    pin: Option<usize>,
    warmup: Duration,
    time: Duration,
) -> Result<Phases> {
    let threads = threads.clamp(1, plan.workload.sessions);
    if threads > 1 && plan.verify.is_some() && plan.workload.read_percent < 100 {
        return Err(failure!("writes can be verified by one thread only: leave --threads at 1"));
    }
    let ready = Barrier::new(threads);
    let work = |thread: usize| -> Result<Phases> {
        let pinned = pin.map_or(Ok(()), |core| ring::pin(core + thread));
        let opened = pinned.and_then(|()| Engine::open(plan.clone(), thread, threads));
        ready.wait();
        let mut engine = opened?;
        let warmup = if warmup.is_zero() { Stats::new() } else { engine.run(warmup)? };
        // A load that fails while it warms up is told as such.
        let measured = if warmup.is_clean() { engine.run(time)? } else { warmup.clone() };
        Ok(Phases { warmup, measured })
    };
    let results: Vec<Result<Phases>> = std::thread::scope(|scope| {
        let work = &work;
        let handles: Vec<_> = (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
        handles
            .into_iter()
            .map(|h| h.join().unwrap_or_else(|_| Err(failure!("a load thread panicked"))))
            .collect()
    });
    let mut total = Phases { warmup: Stats::new(), measured: Stats::new() };
    for result in results {
        let phases = result?;
        total.warmup.merge(&phases.warmup);
        total.measured.merge(&phases.measured);
    }
    Ok(total)
}
