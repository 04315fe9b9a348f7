//! Golden files of a server: the memory for them, their numbers in the golden cache, and where whole pages of them are
//! read from.
//!
//! Knows which files nobody writes, and that a file system may refuse O_DIRECT. Does not know chunks or pages.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;

use rustix::fs::OFlags;

use super::file::{FileIdentity, OpenedFile};
use super::open_image::LayerTable;
use crate::buf::{FRAME_BYTES, PAGE_BYTES};
use crate::cache::{Golden, GoldenCounts, GoldenFile};
use crate::plan::FileSlot;

/// Where the kernel says whether it gives huge pages to those who ask.
pub(super) const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// The memory for golden data. Pages are taken as they are filled. With `record_boots`, what booting nodes read can be
/// asked of it.
pub(super) fn cache(bytes: u64, record_boots: bool) -> Arc<Golden> {
    let frames = u32::try_from(bytes / FRAME_BYTES as u64).unwrap_or(u32::MAX);
    let golden = Golden::new(frames, true).or_else(|error| {
        tracing::warn!(bytes, %error, "no memory for a golden cache of this size: serving without (--golden-cache)");
        Golden::new(0, false)
    });
    match golden {
        Ok(golden) => {
            let setting = std::fs::read_to_string(HUGE_PAGES).unwrap_or_default();
            let refused = !golden.frames().has_huge_pages() || huge_pages_are_off(&setting);
            if refused && golden.frames().count() > 0 {
                tracing::warn!(
                    "the kernel refuses huge pages: golden data is kept in ordinary ones, which costs some speed; write \
                     madvise to {HUGE_PAGES} before the start"
                );
            }
            Arc::new(if record_boots { golden.recording() } else { golden })
        }
        // Of no frames: an empty mapping, which always fits.
        Err(error) => unreachable!("{error}"),
    }
}

/// Golden data would be kept in ordinary pages.
pub(super) fn huge_pages_are_refused() -> bool {
    huge_pages_are_off(&std::fs::read_to_string(HUGE_PAGES).unwrap_or_default())
}

fn huge_pages_are_off(setting: &str) -> bool {
    setting.contains("[never]")
}

/// What the cache was worth, when the server stops.
pub(super) fn tell_counts(golden: &Golden) {
    let GoldenCounts { read_bytes, ahead_bytes, ahead_used_bytes, asked_bytes } = golden.counts();
    tracing::info!(
        read_bytes,
        asked_bytes,
        ahead_bytes,
        ahead_used_bytes,
        "golden cache: bytes read from disk, and asked for at least once"
    );
}

/// One file, as it was met first.
#[derive(Debug)]
struct Known {
    number: GoldenFile,
    /// Another description of the file, opened with O_DIRECT: the page cache keeps no second copy.
    direct: Option<Arc<File>>,
}

/// The golden files of all shards.
#[derive(Debug)]
pub(super) struct GoldenFiles {
    golden: Arc<Golden>,
    direct: bool,
    known: HashMap<FileIdentity, Option<Known>>,
}

/// What one shard is told about its golden files.
#[derive(Debug, Default)]
pub(super) struct ShardGolden {
    /// Opened files that follow those of the shard's table.
    pub(super) sources: Vec<Arc<File>>,
    /// Slots of the table, numbers in the cache, and the slots whole pages are read from.
    pub(super) files: Vec<(FileSlot, GoldenFile, FileSlot)>,
}

impl GoldenFiles {
    /// `direct`: read past the page cache where that can be done.
    pub(super) fn new(golden: Arc<Golden>, direct: bool) -> Self {
        Self { golden, direct, known: HashMap::new() }
    }

    pub(super) fn golden(&self) -> &Arc<Golden> {
        &self.golden
    }

    /// The number of a file that some shard has, and its description for direct reads.
    pub(super) fn number_of(&self, file: FileIdentity) -> Option<(GoldenFile, Option<Arc<File>>)> {
        let known = self.known.get(&file)?.as_ref()?;
        Some((known.number, known.direct.clone()))
    }

    /// Numbers the read-only files of a shard's table.
    pub(super) fn of_shard(&mut self, table: &LayerTable) -> ShardGolden {
        let mut shard = ShardGolden::default();
        for (index, file) in table.files.iter().enumerate().filter(|(_, file)| !file.is_writable()) {
            let slot = FileSlot(index as u32);
            let Some(Known { number, direct }) = self.know(file) else { continue };
            let source = match direct {
                None => slot,
                Some(direct) => {
                    shard.sources.push(Arc::clone(direct));
                    FileSlot((table.files.len() + shard.sources.len() - 1) as u32)
                }
            };
            shard.files.push((slot, *number, source));
        }
        shard
    }

    /// A file's number in the cache, and another open file to read whole pages from.
    pub(super) fn of_file(&mut self, file: &OpenedFile) -> Option<(GoldenFile, Option<Arc<File>>)> {
        self.know(file).map(|known| (known.number, known.direct.clone()))
    }

    /// The file is closed. It may change now: opened again, it gets another number.
    pub(super) fn forget(&mut self, file: FileIdentity) {
        self.known.remove(&file);
    }

    fn know(&mut self, file: &OpenedFile) -> Option<&Known> {
        let Self { golden, direct, known } = self;
        known
            .entry(file.identity())
            .or_insert_with(|| {
                let Some(number) = golden.register(file.len()) else {
                    tracing::warn!(path = %file.path().display(), "too many golden files: this one is not cached");
                    return None;
                };
                let direct = if *direct { open_direct(file) } else { None };
                Some(Known { number, direct })
            })
            .as_ref()
    }
}

/// `None`, with a word in the log, where the file system does not take direct reads of pages.
fn open_direct(file: &OpenedFile) -> Option<Arc<File>> {
    match try_direct(file) {
        Ok(direct) => Some(Arc::new(direct)),
        Err(error) => {
            tracing::info!(path = %file.path().display(), %error, "golden data is read through the page cache: no direct reads here");
            None
        }
    }
}

/// Whether the file system takes direct reads of this file.
pub(super) fn takes_direct_reads(file: &OpenedFile) -> io::Result<()> {
    try_direct(file).map(drop)
}

fn try_direct(file: &OpenedFile) -> io::Result<File> {
    // The very file that is open and locked, whatever its name means by now.
    let path = format!("/proc/self/fd/{}", file.file().as_raw_fd());
    let direct = File::options().read(true).custom_flags(OFlags::DIRECT.bits().cast_signed()).open(path)?;
    // Some file systems say no only now.
    let mut room = vec![0; 2 * PAGE_BYTES];
    let start = room.as_ptr().align_offset(PAGE_BYTES);
    let page = room
        .get_mut(start..)
        .and_then(|room| room.get_mut(..PAGE_BYTES))
        .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
    direct.read_at(page, 0)?;
    Ok(direct)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_beyond_the_address_space_is_none_and_the_server_goes_on() {
        assert_eq!(cache(u64::MAX, false).frames().count(), 0);
        assert_eq!(cache(FRAME_BYTES as u64 * 3, true).frames().count(), 3);
    }

    #[test]
    fn the_kernel_says_that_huge_pages_are_off() {
        assert!(huge_pages_are_off("always madvise [never]\n"));
        assert!(!huge_pages_are_off("always [madvise] never\n") && !huge_pages_are_off(""));
    }
}
