//! The threads of a server that follow and record boot traces, from their start to their end.
//!
//! Knows when they run, and tells them of golden images that come and go. Does not know what they do (`follow`,
//! `boot_traces`).

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use super::boot_traces::{RecordNews, Recorder, Traced};
use super::follow::{Along, FollowNews, Followed, Follower, Offer};
use super::trace_store::TraceStore;
use super::warm::{self, Warmed};
use crate::cache::{AheadBatch, Golden, GoldenFile};
use crate::shard::{Message, Peer, Sent};
use crate::uring::UringIo;

/// What is there while traces are on.
#[derive(Debug)]
struct Running {
    follow: Sender<FollowNews>,
    record: Sender<RecordNews>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
pub(super) struct TraceThreads {
    store: TraceStore,
    /// The server was told to warm its cache.
    warm: bool,
    running: Option<Running>,
}

impl TraceThreads {
    /// One that has what booting nodes will want read ahead of them, and one that records them.
    pub(super) fn start(
        golden: &Arc<Golden>,
        (store, warm): (TraceStore, bool),
        traced: &[Traced],
        shards: &[Peer<UringIo>],
    ) -> io::Result<Self> {
        if golden.frames().count() == 0 || !store.is_on() {
            golden.touches().close();
            return Ok(Self { store, warm, running: None });
        }
        let ((follow, to_follow), (record, to_record)) = (channel(), channel());
        let followed = traced.iter().filter_map(|traced| Followed::of(traced, Along::Nodes)).collect();
        let follower = Follower::new(Arc::clone(golden), followed, offer_to(shards.to_vec()));
        let recorder = Recorder::new(Arc::clone(golden), store.clone(), traced);
        let threads = vec![
            named("boot-follow", move || follower.run(&to_follow))?,
            named("boot-trace", move || recorder.run(&to_record))?,
        ];
        Ok(Self { store, warm, running: Some(Running { follow, record, threads }) })
    }

    pub(super) fn store(&self) -> &TraceStore {
        &self.store
    }

    /// Golden images that a running server is given. Who warms its cache has them read along their traces at once.
    pub(super) fn add(&self, traced: &[Traced]) {
        let Some(Running { follow, record, .. }) = self.running.as_ref().filter(|_| !traced.is_empty())
        else {
            return;
        };
        let along = if self.warm { Along::Trace } else { Along::Nodes };
        let followed = traced.iter().filter_map(|traced| Followed::of(traced, along)).collect();
        // Who follows has ended when the cache is full, and neither is missed when the server ends.
        let _ = follow.send(FollowNews::Add(followed));
        let _ = record.send(RecordNews::add(traced));
    }

    /// A golden image that no shard has any more.
    pub(super) fn forget(&self, golden: GoldenFile) {
        let Some(Running { follow, record, .. }) = &self.running else { return };
        let _ = follow.send(FollowNews::Forget(golden));
        let _ = record.send(RecordNews::Forget(golden));
    }

    /// Ends them, and writes what is recorded so far.
    pub(super) fn end(&mut self) {
        let Some(Running { follow, record, threads }) = self.running.take() else { return };
        drop((follow, record));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the boot traces failed: what it recorded is lost");
            }
        }
    }
}

/// To all shards: the first one with time for it takes it.
fn offer_to(shards: Vec<Peer<UringIo>>) -> Offer {
    Box::new(move |batch: &Arc<AheadBatch>| {
        let told = shards.iter().map(|shard| shard.send(Message::Ahead(Arc::clone(batch))));
        told.filter(|sent| matches!(sent, Sent::Yes)).count() > 0
    })
}

fn named(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work)
}

/// Reads all that the traces name, before anybody is let in.
pub(super) fn warm(golden: &Arc<Golden>, traced: &[Traced]) {
    let begun = Instant::now();
    let Some(Warmed { bytes, reads, full }) = warm::warm(golden, traced) else {
        tracing::warn!("--warm: there is no boot trace yet; the next boots are recorded");
        return;
    };
    let ms = begun.elapsed().as_millis() as u64;
    if full {
        tracing::warn!(
            bytes,
            "the golden cache is too small for the boot trace: it holds its beginning (--golden-cache)"
        );
    }
    tracing::info!(bytes, reads, ms, "the golden cache is warm");
}
