//! Golden files of a server: their numbers in the golden cache, and where whole pages of them are read from.
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
use crate::buf::PAGE_BYTES;
use crate::cache::{Golden, GoldenFile};
use crate::plan::FileSlot;

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
