//! The boot traces of a running server: loaded at the start, recorded while nodes boot, written by a thread of their own.
//!
//! Knows the golden files of a catalog, and when a boot begins and ends. Does not know the format (`boot_trace`), nor
//! how a trace is followed (`follow`).
//!
//! A boot begins when the first sector of a unit is read (`shard`), and has ended when it has read no new page for half a
//! minute, which is longer than a loader takes to hand over to its system; or after ten minutes, whatever it does.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::catalog::TargetSpec;
use super::file::{FileIdentity, OpenedFile};
use super::golden::GoldenFiles;
use super::open_image::OpenedLayer;
use super::trace_store::{self, TraceStore};
use crate::boot_trace::{BootTrace, GoldenVersion, Joined, Recording};
use crate::cache::{Boot, Golden, GoldenFile, Touch};

/// How often the queue of reads is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// A boot that reads nothing new for so long is over.
const QUIET: Duration = Duration::from_secs(30);
/// No boot takes longer.
const LONGEST: Duration = Duration::from_secs(600);

/// A file that is read and never written, and its trace.
#[derive(Debug)]
pub(super) struct GoldenImage {
    identity: FileIdentity,
    file: Arc<OpenedFile>,
    version: GoldenVersion,
    pub(super) trace: Option<BootTrace>,
}

impl GoldenImage {
    pub(super) fn of(layer: &OpenedLayer, trace: Option<BootTrace>) -> std::io::Result<Self> {
        let file = layer.file();
        let version = trace_store::version_of(layer)?;
        Ok(Self { identity: file.identity(), file: Arc::clone(file), version, trace })
    }

    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }
}

/// The golden files of some targets, each once, with the traces that are there. What is wrong with a trace is told once,
/// and the server serves without. Those of `known` are left out: they have been loaded before.
pub(super) fn load(
    targets: &[TargetSpec],
    known: impl Fn(FileIdentity) -> bool,
    store: &TraceStore,
) -> Vec<GoldenImage> {
    let mut images = Vec::new();
    if !store.is_on() {
        return images;
    }
    let mut seen = HashSet::new();
    let units = targets.iter().flat_map(|target| &target.units);
    for layer in units.flat_map(|unit| unit.chain.layers()).filter(|layer| !layer.file().is_writable()) {
        let identity = layer.file().identity();
        if known(identity) || !seen.insert(identity) {
            continue;
        }
        let path = layer.file().path();
        let mut image = match GoldenImage::of(layer, None) {
            Ok(image) => image,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "no boot trace of this image: it cannot be looked at");
                continue;
            }
        };
        image.trace = match store.load(path, &image.version) {
            Ok(found) => found.map(|(_, trace)| trace),
            Err(fault) => {
                tracing::warn!("{fault}: serving without a boot trace until the next boots are recorded");
                None
            }
        };
        if let Some(trace) = &image.trace {
            let (boots, bytes) = (trace.boots, trace.bytes());
            tracing::info!(image = %path.display(), boots, bytes, "boot trace found");
        }
        images.push(image);
    }
    images
}

/// Golden files by their numbers in the cache, with what pages are read from.
#[derive(Debug)]
pub(super) struct Traced {
    pub(super) image: GoldenImage,
    pub(super) number: GoldenFile,
    pub(super) source: Arc<File>,
}

/// Those of the images that the cache knows.
pub(super) fn traced(images: Vec<GoldenImage>, files: &GoldenFiles) -> Vec<Traced> {
    let known = images.into_iter().filter_map(|image| {
        let (number, direct) = files.number_of(image.identity)?;
        let source = direct.unwrap_or_else(|| image.file.shared());
        Some(Traced { image, number, source })
    });
    known.collect()
}

/// One boot that is recorded.
#[derive(Debug)]
struct Recorded {
    begun: Instant,
    /// When it last read a page that it had not read before.
    new: Instant,
    files: HashMap<GoldenFile, Recording>,
}

/// What the recorder is told meanwhile.
#[derive(Debug)]
pub(super) enum RecordNews {
    Add(Vec<(GoldenFile, Kept)>),
    Forget(GoldenFile),
}

impl RecordNews {
    pub(super) fn add(traced: &[Traced]) -> Self {
        Self::Add(traced.iter().map(kept).collect())
    }
}

fn kept(traced: &Traced) -> (GoldenFile, Kept) {
    let GoldenImage { file, version, trace, .. } = &traced.image;
    (traced.number, Kept { path: file.path().to_owned(), version: *version, trace: trace.clone() })
}

/// The image of a trace as the recorder keeps it.
#[derive(Debug)]
pub(super) struct Kept {
    path: PathBuf,
    version: GoldenVersion,
    trace: Option<BootTrace>,
}

/// Turns the reads of booting nodes into traces.
#[derive(Debug)]
pub(super) struct Recorder {
    golden: Arc<Golden>,
    store: TraceStore,
    kept: HashMap<GoldenFile, Kept>,
    boots: HashMap<Boot, Recorded>,
}

impl Recorder {
    pub(super) fn new(golden: Arc<Golden>, store: TraceStore, traced: &[Traced]) -> Self {
        Self { golden, store, kept: traced.iter().map(kept).collect(), boots: HashMap::new() }
    }

    /// Records until nobody can send news any more; while all traces are settled it sleeps, and the shards begin no
    /// recording.
    pub(super) fn run(mut self, news: &Receiver<RecordNews>) {
        loop {
            let told = if self.is_wanted() {
                news.recv_timeout(LOOK)
            } else {
                self.pause();
                news.recv().map_err(RecvTimeoutError::from)
            };
            match told {
                Ok(told) => self.hear(told),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let now = Instant::now();
            self.look(now);
            self.end_those_over(now);
        }
        self.look(Instant::now());
        self.end_all();
        let lost = self.golden.touches().lost();
        if lost > 0 {
            tracing::info!(lost, "boot traces: some reads came faster than they were recorded");
        }
    }

    fn hear(&mut self, news: RecordNews) {
        match news {
            RecordNews::Add(more) => self.kept.extend(more),
            RecordNews::Forget(golden) => drop(self.kept.remove(&golden)),
        }
        if self.is_wanted() {
            self.golden.touches().reopen();
        }
    }

    /// No more boots are wanted; those under way are not recorded to their end.
    fn pause(&mut self) {
        self.golden.touches().close();
        self.look(Instant::now());
        self.end_all();
    }

    fn end_all(&mut self) {
        for boot in self.boots.keys().copied().collect::<Vec<_>>() {
            self.end(boot);
        }
    }

    fn is_wanted(&self) -> bool {
        self.kept.values().any(|kept| kept.trace.as_ref().is_none_or(|trace| !trace.is_settled()))
    }

    fn look(&mut self, now: Instant) {
        while let Some(Touch { boot, file, offset, len }) = self.golden.touches().take() {
            let new = || Recorded { begun: now, new: now, files: HashMap::new() };
            let recorded = self.boots.entry(boot).or_insert_with(new);
            if recorded.files.entry(file).or_default().read(offset.0, len.into()) {
                recorded.new = now;
            }
        }
    }

    fn end_those_over(&mut self, now: Instant) {
        let over = |recorded: &Recorded| now - recorded.new >= QUIET || now - recorded.begun >= LONGEST;
        let over: Vec<_> =
            self.boots.iter().filter(|(_, recorded)| over(recorded)).map(|(boot, _)| *boot).collect();
        over.into_iter().for_each(|boot| self.end(boot));
    }

    fn end(&mut self, boot: Boot) {
        self.golden.touches().end(boot);
        let Some(recorded) = self.boots.remove(&boot) else { return };
        for (file, recording) in recorded.files {
            let Some(kept) = self.kept.get_mut(&file) else { continue };
            if recording.join(&mut kept.trace, kept.version) == Joined::Ignored {
                continue;
            }
            let Some(trace) = &kept.trace else { continue };
            match self.store.save(&kept.path, trace) {
                Ok(path) => {
                    let (boots, bytes) = (trace.boots, trace.bytes());
                    tracing::info!(trace = %path.display(), boots, bytes, "a boot was recorded");
                }
                Err(error) => tracing::warn!(
                    "the boot trace of {} cannot be written: {error}; name a folder for it (--boot-trace FOLDER, or \
                     --state-dir), or switch it off (--boot-trace off)",
                    kept.path.display()
                ),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::cache::GoldenCache;
    use crate::control::trace_store::TracePlace;
    use crate::plan::FileSlot;
    use crate::units::ByteOffset;

    const SLOT: FileSlot = FileSlot(0);

    fn recorder(folder: &Path) -> (Recorder, GoldenCache) {
        let golden = Arc::new(Golden::new(1, false).unwrap().recording());
        let number = golden.register(1 << 30).unwrap();
        let version = GoldenVersion { unique_id: [3; 16], len: 1 << 30, modified_ns: 1, seal: None };
        let kept = Kept { path: folder.join("golden.vhd"), version, trace: None };
        let store = TraceStore::new(TracePlace::Beside, None);
        let mut cache = GoldenCache::new(Arc::clone(&golden), 0);
        cache.set_file(SLOT, number, SLOT);
        (Recorder { golden, store, kept: HashMap::from([(number, kept)]), boots: HashMap::new() }, cache)
    }

    fn trace_of(recorder: &Recorder) -> Option<BootTrace> {
        let kept = recorder.kept.values().next().unwrap();
        recorder.store.load(&kept.path, &kept.version).unwrap().map(|(_, trace)| trace)
    }

    #[test]
    fn a_boot_ends_when_it_has_read_nothing_new_for_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let (mut recorder, cache) = recorder(folder.path());
        let start = Instant::now();
        let boot = cache.begin_boot(SLOT, ByteOffset(0), 100_000).unwrap();
        recorder.look(start);
        let seconds = |seconds| start + Duration::from_secs(seconds);
        for (at, offset) in [(20, 1 << 20), (45, 2 << 20)] {
            assert!(cache.note_boot(boot, SLOT, ByteOffset(offset), 4096));
            recorder.look(seconds(at));
            recorder.end_those_over(seconds(at));
        }
        // The same again is nothing new.
        cache.note_boot(boot, SLOT, ByteOffset(0), 8192);
        recorder.look(seconds(70));
        recorder.end_those_over(seconds(74));
        assert!(trace_of(&recorder).is_none() && recorder.boots.len() == 1);
        recorder.end_those_over(seconds(76));
        assert_eq!(trace_of(&recorder).unwrap().pages(), 25 + 2);
        assert!(!cache.note_boot(boot, SLOT, ByteOffset(0), 4096), "its unit hears of it");
    }

    #[test]
    fn who_never_stops_reading_is_cut_off_and_a_settled_trace_wants_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let (mut recorder, cache) = recorder(folder.path());
        for round in 0..8 {
            assert!(recorder.is_wanted());
            let start = Instant::now();
            let boot = cache.begin_boot(SLOT, ByteOffset(0), 200_000).unwrap();
            for second in 0..=LONGEST.as_secs() {
                cache.note_boot(boot, SLOT, ByteOffset(second << 16), 4096);
                recorder.look(start + Duration::from_secs(second));
                recorder.end_those_over(start + Duration::from_secs(second));
            }
            assert_eq!((trace_of(&recorder).unwrap().boots, recorder.boots.len()), (round + 1, 0));
        }
        assert!(!recorder.is_wanted());
        // Its thread sleeps, and the shards begin no more.
        let first = *recorder.kept.keys().next().unwrap();
        let golden = Arc::clone(&recorder.golden);
        let (tell, news) = channel();
        let thread = std::thread::spawn(move || recorder.run(&news));
        until(|| cache.begin_boot(SLOT, ByteOffset(0), 1).is_none());
        assert!(golden.touches().take().is_none());
        // Another golden image is served meanwhile: its boots are wanted.
        let number = golden.register(1 << 30).unwrap();
        let version = GoldenVersion { unique_id: [4; 16], len: 1 << 30, modified_ns: 1, seal: None };
        let new = Kept { path: folder.path().join("new.vhd"), version, trace: None };
        tell.send(RecordNews::Add(vec![(number, new)])).unwrap();
        let mut cache = GoldenCache::new(Arc::clone(&golden), 0);
        cache.set_file(SLOT, number, SLOT);
        let mut boot = None;
        until(|| {
            boot = boot.or_else(|| cache.begin_boot(SLOT, ByteOffset(0), 65_536));
            boot.is_some()
        });
        tell.send(RecordNews::Forget(first)).unwrap();
        drop(tell);
        thread.join().unwrap();
        let store = TraceStore::new(TracePlace::Beside, None);
        let (_, trace) = store.load(&folder.path().join("new.vhd"), &version).unwrap().unwrap();
        assert_eq!((trace.boots, trace.pages()), (1, 16));
    }

    fn until(mut happens: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !happens() {
            assert!(begun.elapsed() < Duration::from_secs(20), "it did not happen");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
