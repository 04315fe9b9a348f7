//! What killed servers left behind for an image: writes to replay, or the mark of a failed flush.
//!
//! Knows when a journal is true of a file: same boot, same file, not changed by anybody since. Does not know how a record
//! gets into an image (`vhd::replay`, `vhdx::replay`), nor how journals are laid out (`pending`).
//!
//! Whoever opens an image for writing comes by here, with the image locked. A reader is told to let somebody write first:
//! what it would read is older than what was acknowledged.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

use super::block_io::run_batch;
use super::file::{FileIdentity, OpenedFile};
use super::image_format::{Format, continue_vhdx, detect, parse_vhd};
use super::open_image::OpenError;
use super::runtime::{self, JOURNAL_ENDING};
use crate::pending::{Journal, LeafIdentity, LeafIndex};
use crate::plan::{MetaBatch, PendingRecord};
use crate::vhd::VhdImage;
use crate::vhdx::VhdxImage;

/// Seconds after its server's last sign of life in which a change of the image may still be the server's own.
const SILENCE_S: u64 = 10;

/// Why an image with something left behind was not opened.
#[derive(Debug, thiserror::Error)]
pub enum LeftoverError {
    #[error(
        "{path}: {writes} acknowledged writes of a killed server are not in the file yet: open it for writing first \
         (serve it, or run goldrush image check --repair)", path = .path.display()
    )]
    Pending { path: PathBuf, writes: usize },
    #[error(
        "{path}: a flush of it failed, so what was written last may be lost: it is read-only until goldrush image check \
         finds it clean", path = .path.display()
    )]
    FlushFailed { path: PathBuf },
    #[error(
        "{path}: {writes} acknowledged writes of a killed server do not fit the file: {reason}; bring the file back as it \
         was, or give the writes up with goldrush image check --forget-pending", path = .path.display()
    )]
    DoesNotFit { path: PathBuf, writes: usize, reason: String },
    #[error("{path}: replaying the acknowledged writes of a killed server failed: {source}", path = .path.display())]
    Replay { path: PathBuf, source: io::Error },
    #[error("{journal}, with acknowledged writes to {path}, cannot be used: {source}", path = .path.display(), journal = .journal.display())]
    Journal { path: PathBuf, journal: PathBuf, source: io::Error },
}

/// What one journal says of one image.
#[derive(Debug)]
struct Found {
    journal: PathBuf,
    leaf: LeafIndex,
    unique_id: [u8; 16],
    /// Each with the byte at which it is retired.
    records: Vec<(u64, PendingRecord)>,
    failed: bool,
    alive: u64,
}

/// The journals that were left behind, read once, and anew where that may have become old.
#[derive(Debug)]
struct Leftovers {
    loaded: BTreeMap<PathBuf, Folder>,
}

#[derive(Debug)]
struct Folder {
    /// Changes whenever a journal comes or goes.
    stamp: Option<(i64, i64)>,
    found: HashMap<FileIdentity, Vec<Found>>,
    /// Images of servers that lived: their journals may say more by now.
    living: HashSet<FileIdentity>,
}

/// What this program knows of them: a server opens thousands of images.
static KNOWN: Mutex<Leftovers> = Mutex::new(Leftovers { loaded: BTreeMap::new() });

/// What was left for the image is dealt with by whoever opens and locks it: a writer brings it up to date.
///
/// # Errors
/// A reader would miss acknowledged writes; the image may not be written; or what was left does not fit.
pub(super) fn settle(file: &mut OpenedFile) -> Result<(), LeftoverError> {
    let changed = with_leftovers(|known| settle_known(known, file))?;
    if changed {
        file.look_at_length()
            .map_err(|source| LeftoverError::Replay { path: file.path().to_owned(), source })?;
    }
    Ok(())
}

/// True when the file was changed.
fn settle_known(known: &mut Leftovers, file: &OpenedFile) -> Result<bool, LeftoverError> {
    {
        let found = known.of(file);
        if !file.is_writable() {
            let writes = found.iter().filter(|found| !found.failed).map(|found| found.records.len()).sum();
            let path = || file.path().to_owned();
            return if writes > 0 { Err(LeftoverError::Pending { path: path(), writes }) } else { Ok(false) };
        }
        if found.iter().any(|found| found.failed) {
            return Err(LeftoverError::FlushFailed { path: file.path().to_owned() });
        }
        let mut any = false;
        for found in found {
            found.settle(file)?;
            any = true;
        }
        if any {
            known.loaded.clear();
        }
        Ok(any)
    }
}

/// True when a living server has the image as a leaf, as its journal says.
pub(super) fn is_served(file: &OpenedFile) -> bool {
    with_leftovers(|known| {
        known.of(file);
        known.loaded.values().any(|folder| folder.living.contains(&file.identity()))
    })
}

/// True when a flush of the image failed and nobody has checked it since.
pub(super) fn is_failed(file: &OpenedFile) -> bool {
    with_leftovers(|known| known.of(file).iter().any(|found| found.failed))
}

/// Gives up what was left for the image, marks and writes alike. How many writes were given up.
pub(super) fn forget(file: &OpenedFile) -> Result<usize, LeftoverError> {
    with_leftovers(|known| {
        let mut writes = 0;
        for found in known.of(file) {
            writes += found.records.len();
            found.retire(file)?;
        }
        if writes > 0 {
            known.loaded.clear();
        }
        Ok(writes)
    })
}

fn with_leftovers<T>(act: impl FnOnce(&mut Leftovers) -> T) -> T {
    // After a panic elsewhere what is known is read anew.
    let mut known = KNOWN.lock().unwrap_or_else(|poisoned| {
        let mut known = poisoned.into_inner();
        known.loaded.clear();
        known
    });
    act(&mut known)
}

impl Leftovers {
    fn of(&mut self, file: &OpenedFile) -> Vec<&Found> {
        let owner = file.file().metadata().map_or(u32::MAX, |metadata| metadata.uid());
        let folders = runtime::folders(owner);
        for folder in &folders {
            let stamp = stamp(folder);
            let fresh = self
                .loaded
                .get(folder)
                .is_some_and(|known| known.stamp == stamp && !known.living.contains(&file.identity()));
            if !fresh {
                self.loaded.insert(folder.clone(), Folder::load(folder, stamp));
            }
        }
        let loaded = folders.iter().filter_map(|folder| self.loaded.get(folder));
        loaded.filter_map(|folder| folder.found.get(&file.identity())).flatten().collect()
    }
}

fn stamp(folder: &Path) -> Option<(i64, i64)> {
    let metadata = fs::metadata(folder).ok()?;
    Some((metadata.mtime(), metadata.mtime_nsec()))
}

impl Folder {
    fn load(path: &Path, stamp: Option<(i64, i64)>) -> Self {
        let mut folder = Self { stamp, found: HashMap::new(), living: HashSet::new() };
        let Some(boot_id) = runtime::boot_id() else { return folder };
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            let journal = entry.path();
            if journal.extension().is_some_and(|ending| ending == JOURNAL_ENDING)
                && let Err(error) = folder.load_journal(&journal, boot_id)
            {
                tracing::warn!(journal = %journal.display(), "a journal of pending writes is not believed: {error}");
            }
        }
        folder
    }

    fn load_journal(&mut self, path: &Path, boot_id: [u8; 16]) -> Result<(), String> {
        let file = File::open(path).map_err(|error| error.to_string())?;
        let lives = flock(&file, FlockOperation::NonBlockingLockShared).is_err();
        let bytes = runtime::read_all(&file).map_err(|error| error.to_string())?;
        let journal = Journal::parse(&bytes).map_err(|error| error.to_string())?;
        if journal.boot_id() != boot_id || (!lives && journal.is_spent()) {
            // Of another boot nothing is true; of a server that has ended and left nothing, nothing is needed.
            if !lives {
                let _ = fs::remove_file(path);
            }
            return Ok(());
        }
        if lives {
            let leaves = journal.leaves().map_err(|error| error.to_string())?;
            let identity = |leaf: LeafIdentity| FileIdentity { device: leaf.device, inode: leaf.inode };
            self.living.extend(leaves.into_iter().map(|(_, leaf)| identity(leaf)));
        }
        for (identity, found) in read_journal(path, &journal)? {
            self.found.entry(identity).or_default().push(found);
        }
        Ok(())
    }
}

/// The images a journal says something of.
fn read_journal(path: &Path, journal: &Journal) -> Result<HashMap<FileIdentity, Found>, String> {
    let mut by_leaf: HashMap<LeafIndex, Vec<(u64, PendingRecord)>> = HashMap::new();
    for record in journal.records() {
        let (place, leaf, record) = record.map_err(|error| error.to_string())?;
        by_leaf.entry(leaf).or_default().push((place.0, record));
    }
    let mut all = HashMap::new();
    for (leaf, identity) in journal.leaves().map_err(|error| error.to_string())? {
        let (records, failed) = (by_leaf.remove(&leaf).unwrap_or_default(), journal.is_failed(leaf));
        if records.is_empty() && !failed {
            continue;
        }
        let (unique_id, alive) = (identity.unique_id, journal.alive());
        let found = Found { journal: path.to_owned(), leaf, unique_id, records, failed, alive };
        all.insert(FileIdentity { device: identity.device, inode: identity.inode }, found);
    }
    Ok(all)
}

impl Found {
    fn settle(&self, file: &OpenedFile) -> Result<(), LeftoverError> {
        if self.records.is_empty() {
            return Ok(());
        }
        let does_not_fit = |reason: &dyn std::fmt::Display| LeftoverError::DoesNotFit {
            path: file.path().to_owned(),
            writes: self.records.len(),
            reason: reason.to_string(),
        };
        let mut image = Image::open(file).map_err(|error| does_not_fit(&error))?;
        if image.unique_id().into_bytes() != self.unique_id {
            tracing::warn!(
                image = %file.path().display(),
                writes = self.records.len(),
                "another image has taken the file: what was pending for the former one is dropped"
            );
            return self.retire(file);
        }
        if file.modified() > self.alive.saturating_add(SILENCE_S) {
            return Err(does_not_fit(&"it was changed after the server had ended"));
        }
        let records: Vec<PendingRecord> = self.records.iter().map(|(_, record)| *record).collect();
        image.replay(&records, file).map_err(|reason| does_not_fit(&reason))?;
        self.write(file, &mut image)
            .map_err(|source| LeftoverError::Replay { path: file.path().to_owned(), source })?;
        self.retire(file)?;
        tracing::info!(
            image = %file.path().display(),
            writes = self.records.len(),
            "acknowledged writes of a killed server were brought into the image"
        );
        Ok(())
    }

    fn write(&self, file: &OpenedFile, image: &mut Image) -> io::Result<()> {
        let mut batch = MetaBatch::default();
        while image.next_meta_batch(&mut batch) {
            if let Err(error) = run_batch(file.file(), &batch) {
                if batch.ops.contains(&crate::plan::MetaOp::Sync) {
                    // The kernel tells of a lost page once: the next who tries would find all well.
                    let journal = File::options().write(true).open(&self.journal)?;
                    journal.write_all_at(&1_u64.to_ne_bytes(), Journal::failed_place(self.leaf))?;
                }
                return Err(error);
            }
            image.meta_batch_done();
        }
        file.file().sync_data()
    }

    /// Takes the records and the mark out of the journal, and the journal away when nothing is left in it.
    fn retire(&self, image: &OpenedFile) -> Result<(), LeftoverError> {
        let failed = |source| LeftoverError::Journal {
            path: image.path().to_owned(),
            journal: self.journal.clone(),
            source,
        };
        let file = File::options().read(true).write(true).open(&self.journal).map_err(failed)?;
        let clear = |at: u64| file.write_all_at(&[0; 8], at);
        self.records.iter().try_for_each(|(at, _)| clear(*at)).map_err(failed)?;
        clear(Journal::failed_place(self.leaf)).map_err(failed)?;
        let bytes = runtime::read_all(&file).map_err(failed)?;
        let spent = Journal::parse(&bytes).is_ok_and(|journal| journal.is_spent());
        if spent && flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = fs::remove_file(&self.journal);
        }
        Ok(())
    }
}

/// An image that can have records, as its format opens it.
enum Image {
    Vhd(Box<VhdImage>),
    Vhdx(Box<VhdxImage>),
}

impl Image {
    fn open(file: &OpenedFile) -> Result<Self, OpenError> {
        match detect(file)? {
            Format::Vhdx => Ok(Self::Vhdx(Box::new(continue_vhdx(file)?))),
            Format::Vhd | Format::Raw => Ok(Self::Vhd(Box::new(parse_vhd(file)?))),
        }
    }

    /// What its records are bound to: a VHD's own identifier, that of a VHDX's data.
    fn unique_id(&self) -> Uuid {
        match self {
            Self::Vhd(image) => image.unique_id(),
            Self::Vhdx(image) => image.data_write_guid(),
        }
    }

    fn replay(&mut self, records: &[PendingRecord], file: &OpenedFile) -> Result<(), String> {
        let read = |at: u64, bytes: &mut [u8]| file.read_at(at, bytes);
        match self {
            Self::Vhd(image) => image.replay(records, read).map_err(|error| error.to_string()),
            Self::Vhdx(image) => image.replay(records, read).map_err(|error| error.to_string()),
        }
    }

    fn next_meta_batch(&mut self, batch: &mut MetaBatch) -> bool {
        match self {
            Self::Vhd(image) => image.next_meta_batch(batch),
            Self::Vhdx(image) => image.next_meta_batch(batch),
        }
    }

    fn meta_batch_done(&mut self) {
        match self {
            Self::Vhd(image) => image.meta_batch_done(Ok(())),
            Self::Vhdx(image) => image.meta_batch_done(Ok(())),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pending::{Area, AreaHeader, Words, words_needed};
    use crate::units::{BlockIndex, ByteOffset};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn journal(boot_id: [u8; 16]) -> Vec<u8> {
        let memory: Arc<[AtomicU64]> = (0..words_needed(1, 8)).map(|_| AtomicU64::new(0)).collect();
        let header = AreaHeader { boot_id, nonce: 5, records: 8 };
        let leaf = LeafIdentity { device: 1, inode: 2, unique_id: [3; 16] };
        let mut area = Area::new(Box::new(memory.clone()), &header, &[leaf]).unwrap();
        let record = PendingRecord { block: BlockIndex(0), first: 0, sectors: 8, place: ByteOffset(4096) };
        area.store(LeafIndex(0), record).unwrap();
        memory.words().iter().flat_map(|word| word.load(Ordering::Acquire).to_ne_bytes()).collect()
    }

    #[test]
    fn a_journal_of_another_boot_is_deleted_and_a_damaged_one_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let ours = runtime::boot_id().unwrap();
        let mut other = ours;
        other[3] ^= 1;
        let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
        write("a.pending", &journal(other));
        write("b.pending", &journal(ours));
        write("c.pending", b"no journal");
        write("d.part", &journal(ours));
        let loaded = Folder::load(folder.path(), None);
        let found: Vec<_> = loaded.found.values().flatten().collect();
        assert!(found.len() == 1 && found[0].journal.ends_with("b.pending") && found[0].records.len() == 1);
        let left = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut left: Vec<_> = left.map(|name| name.into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, ["b.pending", "c.pending", "d.part"]);
    }
}
