//! The runtime folder: where journals of pending writes outlive a server, and the journals a server makes there.
//!
//! Knows which folders will do, and that a journal is locked as long as its server lives. Does not know what is done with
//! a journal that was left behind (`leftover`).

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{FlockOperation, flock};

use super::error::Error;
use crate::limits::JOURNAL_RECORDS;
use crate::pending::{Area, AreaHeader, Journal, LeafIdentity, words_needed};
use crate::uring::SharedMap;

/// Where root keeps journals; others use `USER_FOLDER` with their user's number.
const SYSTEM_FOLDER: &str = "/run/goldrush";
const USER_FOLDER: &str = "/dev/shm/goldrush-";
/// Leaves that a reload may add to a journal; what comes beyond waits for commits.
const LATER_LEAVES: u32 = 4096;
/// What the names of journals end with.
pub(super) const JOURNAL_ENDING: &str = "pending";
const TMPFS_MAGIC: u64 = 0x0102_1994;
const RAMFS_MAGIC: u64 = 0x8584_58F6;

/// The folder named on the command line or in the configuration, once for the whole program.
static GIVEN: OnceLock<PathBuf> = OnceLock::new();

/// Names the runtime folder. The first one named stays.
pub(super) fn give(folder: &Path) {
    let _ = GIVEN.set(folder.to_owned());
}

/// True when a folder was named.
pub(super) fn is_given() -> bool {
    GIVEN.get().is_some()
}

fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The folders in which journals that concern a file of `owner` may lie. Only folders of root, of us and of the file's
/// owner are believed: a journal says what is written into an image.
pub(super) fn folders(owner: u32) -> Vec<PathBuf> {
    if let Some(given) = GIVEN.get() {
        return vec![given.clone()];
    }
    let mut users = vec![own_user(), owner];
    users.dedup();
    let mut folders = vec![PathBuf::from(SYSTEM_FOLDER)];
    folders.extend(users.iter().map(|user| PathBuf::from(format!("{USER_FOLDER}{user}"))));
    folders.retain(|folder| fs::symlink_metadata(folder).is_ok_and(|found| is_private(&found, &users)));
    folders
}

/// The folders in which a server's control socket may lie.
pub(super) fn folders_to_search() -> Vec<PathBuf> {
    match GIVEN.get() {
        Some(given) => vec![given.clone()],
        None => usual(),
    }
}

/// Where servers of this user make their runtime folder, the preferred one first.
fn usual() -> Vec<PathBuf> {
    vec![PathBuf::from(SYSTEM_FOLDER), PathBuf::from(format!("{USER_FOLDER}{}", own_user()))]
}

/// A folder, and nobody but `users` and root can put files into it.
fn is_private(found: &fs::Metadata, users: &[u32]) -> bool {
    let owner = found.uid();
    found.is_dir() && found.mode() & 0o022 == 0 && (owner == 0 || users.contains(&owner))
}

/// The boot this is: after the next one no page cache is what it was. `None` where the kernel does not tell.
pub(super) fn boot_id() -> Option<[u8; 16]> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    uuid::Uuid::parse_str(text.trim()).ok().map(uuid::Uuid::into_bytes)
}

/// A folder a server may make its journals in.
#[derive(Debug)]
pub(super) struct RuntimeFolder {
    path: PathBuf,
    boot_id: [u8; 16],
}

impl RuntimeFolder {
    /// The folder that was named, or the first of the usual ones that will do. Where none does, says so once; every
    /// first write then waits for the disk, which is correct and slower.
    pub(super) fn for_server() -> Option<Self> {
        let given = GIVEN.get();
        let candidates = folders_to_search();
        let mut reasons = Vec::new();
        let Some(boot_id) = boot_id() else {
            warn_slow("the kernel does not tell its boot id");
            return None;
        };
        for path in candidates {
            match usable(&path, given.is_some()) {
                Ok(()) => return Some(Self { path, boot_id }),
                Err(error) => reasons.push(format!("{}: {error}", path.display())),
            }
        }
        warn_slow(&reasons.join("; "));
        None
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A new journal for one core's leaves. `number` tells the journals of one server apart.
    pub(super) fn journal(&self, number: usize, leaves: &[LeafIdentity]) -> Result<ServerJournal, Error> {
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce)
            .map_err(|error| Error::Failed(format!("asking the kernel for random bytes failed: {error}")))?;
        let nonce = u64::from_ne_bytes(nonce);
        let name = format!("{}-{number}-{nonce:016x}.{JOURNAL_ENDING}", std::process::id());
        let path = self.path.join(name);
        // Under this name nobody looks at it: it has its lock and its content before it has its name.
        let part = path.with_extension("part");
        let failed = |source| Error::io(&part, "making a journal of pending writes")(source);
        let file = File::options().read(true).write(true).create_new(true).mode(0o644).open(&part);
        let file = file.map_err(failed)?;
        let made = (|| {
            flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            let map =
                SharedMap::new(&file, words_needed(leaves.len() + LATER_LEAVES as usize, JOURNAL_RECORDS))?;
            let header = AreaHeader { boot_id: self.boot_id, nonce, records: JOURNAL_RECORDS };
            let area = Area::with_room(Box::new(map), &header, leaves, LATER_LEAVES)
                .ok_or(io::ErrorKind::OutOfMemory)?;
            fs::rename(&part, &path)?;
            Ok(area)
        })();
        match made {
            Ok(area) => Ok(ServerJournal { area: Some(area), left: JournalFile { path, file } }),
            Err(source) => {
                let _ = fs::remove_file(&part);
                Err(failed(source))
            }
        }
    }
}

fn warn_slow(reason: &str) {
    tracing::warn!(
        "no runtime folder for pending writes ({reason}): each first write to a sector waits for the disk, and a failed \
         flush is forgotten by a restart; name a folder on a tmpfs with --runtime-dir"
    );
}

/// Makes the folder if need be.
fn usable(path: &Path, given: bool) -> Result<(), String> {
    let mut builder = fs::DirBuilder::new();
    match builder.recursive(given).mode(0o755).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.to_string()),
        _ => {}
    }
    let found = fs::symlink_metadata(path).map_err(|error| error.to_string())?;
    if !is_private(&found, &[own_user()]) {
        return Err("it is no folder that only this user and root may write to".to_owned());
    }
    let kind = rustix::fs::statfs(path).map_err(|error| error.to_string())?.f_type as u64;
    if kind != TMPFS_MAGIC && kind != RAMFS_MAGIC {
        if !given {
            return Err("it is not on a tmpfs".to_owned());
        }
        tracing::warn!(folder = %path.display(), "the runtime folder is not on a tmpfs: pending writes cost disk writes there");
    }
    let probe = path.join(format!(".{}", std::process::id()));
    File::create(&probe).and_then(|_| fs::remove_file(&probe)).map_err(|error| error.to_string())
}

/// A journal of this server: its memory goes to a shard, its lock stays here.
#[derive(Debug)]
pub(super) struct ServerJournal {
    area: Option<Area>,
    left: JournalFile,
}

/// The file of a journal, locked while it is held.
#[derive(Debug)]
pub(super) struct JournalFile {
    path: PathBuf,
    file: File,
}

impl ServerJournal {
    /// The memory, once, and the file.
    pub(super) fn split(self) -> (Option<Area>, JournalFile) {
        (self.area, self.left)
    }
}

impl JournalFile {
    /// The images are gone too: nobody will ask for what is in it.
    pub(super) fn discard(self) {
        let _ = fs::remove_file(&self.path);
    }

    /// The server has ended: a journal in which nothing is left is deleted. What is left is for whoever opens the images
    /// next.
    pub(super) fn finish(self) {
        let bytes = read_all(&self.file);
        match bytes.map(|bytes| Journal::parse(&bytes).is_ok_and(|journal| journal.is_spent())) {
            Ok(true) => {
                let _ = fs::remove_file(&self.path);
            }
            Ok(false) => tracing::warn!(
                journal = %self.path.display(),
                "writes are pending or a flush has failed: this is settled when the images are opened next"
            ),
            Err(error) => {
                tracing::warn!(journal = %self.path.display(), %error, "the journal cannot be read")
            }
        }
    }
}

/// All bytes of a journal.
pub(super) fn read_all(file: &File) -> io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let len = file.metadata()?.len().min(JOURNAL_BYTES_MAX);
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// The longest journal there can be: every leaf a server may have, and all records.
const JOURNAL_BYTES_MAX: u64 = 64 << 20;
const _: () = assert!(
    JOURNAL_BYTES_MAX
        > 64 * (1 + LATER_LEAVES as u64 + crate::limits::SHARD_FILES_MAX as u64)
            + 32 * JOURNAL_RECORDS as u64
            + 512
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::PendingRecord;
    use crate::units::{BlockIndex, ByteOffset};

    fn leaf() -> LeafIdentity {
        LeafIdentity { device: 1, inode: 2, unique_id: [3; 16] }
    }

    #[test]
    fn a_spent_journal_is_deleted_and_one_with_records_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = RuntimeFolder { path: folder.path().to_owned(), boot_id: [1; 16] };
        let (area, file) = runtime.journal(0, &[leaf()]).unwrap().split();
        let (other, other_file) = runtime.journal(1, &[leaf()]).unwrap().split();
        let record = PendingRecord { block: BlockIndex(4), first: 0, sectors: 8, place: ByteOffset(4096) };
        area.unwrap().store(crate::pending::LeafIndex(0), record).unwrap();
        drop(other);
        file.finish();
        other_file.finish();
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left.len(), 1);
        let journal = Journal::parse(&fs::read(&left[0]).unwrap()).unwrap();
        assert_eq!(journal.records().next().unwrap().unwrap().2, record);
    }

    #[test]
    fn a_folder_others_may_write_to_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(usable(folder.path(), true), Ok(()));
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(usable(folder.path(), true).is_err());
        let link = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(link.path(), link.path().join("link")).unwrap();
        assert!(usable(&link.path().join("link"), true).is_err());
    }

    #[test]
    fn the_kernel_tells_its_boot_id() {
        assert!(boot_id().is_some() && boot_id() == boot_id());
    }
}
