//! Image files on disk: opened, identified, locked.
//!
//! Knows which kinds of file may hold an image and who else has one open. Does not know formats.

use std::fs::{File, FileType, OpenOptions, TryLockError};
use std::io::{self, Seek};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

use super::leftover::{self, LeftoverError};
use super::lingering::{Holder, wait_for};
use super::lock_holder::{LockHolder, holder_of};
use super::seal;
use crate::uring::host;

/// What a file is, whatever its name: two paths with one identity are one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileIdentity {
    pub device: u64,
    pub inode: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    ReadOnly,
    Writable,
}

/// Whether an open image keeps others away while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locking {
    /// Exclusive for a writer, shared for readers, until the file is closed.
    Hold,
    /// None: for a look at an image that may be in use.
    Ignore,
}

/// Why a file cannot be used as an image.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{path} cannot be opened: {source}", path = .path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("{path} is a {what}: an image is a regular file or a block device", path = .path.display())]
    Kind { path: PathBuf, what: &'static str },
    #[error(
        "{path} is in use by another process{by}: stop it first, or use a copy of the image",
        path = .path.display(), by = .holder.as_ref().map_or(String::new(), |holder| format!(" ({holder})"))
    )]
    InUse { path: PathBuf, holder: Option<LockHolder> },
    #[error(
        "{path} is sealed, which makes it read-only: write to a child of it, or run goldrush image unseal {path}",
        path = .path.display()
    )]
    Sealed { path: PathBuf },
    #[error(transparent)]
    Leftover(#[from] LeftoverError),
    #[error("{path} cannot be locked: {source}", path = .path.display())]
    Lock { path: PathBuf, source: io::Error },
}

/// An image file, open until this is dropped; so is its lock.
#[derive(Debug)]
pub struct OpenedFile {
    file: Arc<File>,
    path: PathBuf,
    identity: FileIdentity,
    len: u64,
    access: Access,
    block_device: bool,
    /// Seconds since 1970.
    modified: i64,
}

impl OpenedFile {
    /// Opens `path`, following symbolic links, and locks it. A sealed image is never opened for writing. A FIFO is refused
    /// without waiting for its other end.
    ///
    /// With a lock, what killed servers left behind for the image is settled: a writer brings it up to date, a reader
    /// who would miss acknowledged writes is refused.
    pub fn open(path: &Path, access: Access, locking: Locking) -> Result<Self, FileError> {
        let mut opened = Self::open_as_it_is(path, access, locking)?;
        if locking == Locking::Hold {
            leftover::settle(&mut opened)?;
        }
        Ok(opened)
    }

    /// Its length, once more: this process has changed the file. A block device has the one it had.
    pub(super) fn look_at_length(&mut self) -> io::Result<()> {
        if !self.block_device {
            self.len = self.file.metadata()?.len();
        }
        Ok(())
    }

    /// As [`Self::open`], for those who look after what was left behind themselves, or will replace the content.
    pub(super) fn open_as_it_is(path: &Path, access: Access, locking: Locking) -> Result<Self, FileError> {
        let failed = |source| FileError::Open { path: path.to_owned(), source };
        refuse_kind(path, std::fs::metadata(path).map_err(failed)?.file_type())?;
        if access == Access::Writable && seal::is_sealed(path) {
            return Err(FileError::Sealed { path: path.to_owned() });
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(access == Access::Writable)
            .custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed())
            .open(path)
            .map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        // Again: between the two looks the name may have been given to something else.
        refuse_kind(path, metadata.file_type())?;
        let block_device = metadata.file_type().is_block_device();
        let len =
            if block_device { file.seek(io::SeekFrom::End(0)).map_err(failed)? } else { metadata.len() };
        let identity = FileIdentity { device: metadata.dev(), inode: metadata.ino() };
        let opened = Self {
            file: Arc::new(file),
            path: path.to_owned(),
            identity,
            len,
            access,
            block_device,
            modified: metadata.mtime(),
        };
        if locking == Locking::Hold {
            opened.lock()?;
        }
        Ok(opened)
    }

    /// Waits for a lock that an ended process holds (`lingering`), and no longer than a moment for a living one's.
    fn lock(&self) -> Result<(), FileError> {
        loop {
            if self.try_lock()? {
                return Ok(());
            }
            // To be told takes as long as the kernel needs to stop all who lock: by then it may be free.
            let holder = self.lock_holder();
            if self.try_lock()? {
                return Ok(());
            }
            let kind = match Holder::of(holder.as_ref()) {
                Holder::Unknown if leftover::is_served(self) => Holder::Living,
                kind => kind,
            };
            if !wait_for(kind, &self.path.display()) {
                return Err(FileError::InUse { path: self.path.clone(), holder });
            }
        }
    }

    /// The same open file and lock, as long as it is now: this process has changed it, and nobody else may.
    pub(super) fn looked_at_again(&self) -> io::Result<Self> {
        let Self { file, path, identity, access, block_device, modified, .. } = self;
        let (file, path) = (Arc::clone(file), path.clone());
        let (identity, access, block_device, modified) = (*identity, *access, *block_device, *modified);
        Ok(Self { file, path, identity, len: self.len_now()?, access, block_device, modified })
    }

    /// False: somebody holds it.
    fn try_lock(&self) -> Result<bool, FileError> {
        host::try_lock(&self.file, self.access == Access::Writable)
            .map_err(|source| FileError::Lock { path: self.path.clone(), source })
    }

    /// Gives the lock up although the file stays open, here or in a ring that is being taken apart.
    pub fn unlock(&self) {
        let _ = self.file.unlock();
    }

    /// True when another process holds the file so that we could not read it undisturbed.
    pub fn is_in_use(&self) -> bool {
        let in_use = matches!(self.file.try_lock_shared(), Err(TryLockError::WouldBlock));
        // A lock that was got is given back; closing the file would do so as well.
        let _ = self.file.unlock();
        in_use
    }

    /// The process that holds a lock on the file, as far as the kernel tells.
    pub fn lock_holder(&self) -> Option<LockHolder> {
        holder_of(self.identity)
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// The same open file, for a ring: one descriptor, one lock.
    pub fn shared(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// The path by which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn identity(&self) -> FileIdentity {
        self.identity
    }

    /// Bytes when it was opened.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Bytes at this moment.
    pub fn len_now(&self) -> io::Result<u64> {
        if self.block_device {
            (&*self.file).seek(io::SeekFrom::End(0))
        } else {
            Ok(self.file.metadata()?.len())
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn is_writable(&self) -> bool {
        self.access == Access::Writable
    }

    pub fn is_block_device(&self) -> bool {
        self.block_device
    }

    /// The modification time in seconds since 1970; 0 for all before.
    pub fn modified(&self) -> u64 {
        u64::try_from(self.modified).unwrap_or(0)
    }

    /// Bytes the file occupies on its file system.
    pub fn allocated(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks().saturating_mul(512))
    }

    /// Fills `bytes`, all of them.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }
}

/// The identity of what `path` names, links followed.
pub(super) fn identity_of(path: &Path) -> io::Result<FileIdentity> {
    let metadata = std::fs::metadata(path)?;
    Ok(FileIdentity { device: metadata.dev(), inode: metadata.ino() })
}

/// The folder a path lies in; `.` for a bare name.
pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

fn refuse_kind(path: &Path, kind: FileType) -> Result<(), FileError> {
    let what = if kind.is_file() || kind.is_block_device() {
        return Ok(());
    } else if kind.is_dir() {
        "folder"
    } else if kind.is_fifo() {
        "FIFO"
    } else if kind.is_socket() {
        "socket"
    } else {
        "character device"
    };
    Err(FileError::Kind { path: path.to_owned(), what })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        file
    }

    #[test]
    fn a_writer_keeps_everybody_away_and_readers_keep_writers_away() {
        let image = image();
        let open = |access| OpenedFile::open(image.path(), access, Locking::Hold);
        let writer = open(Access::Writable).unwrap();
        assert!(matches!(open(Access::ReadOnly), Err(FileError::InUse { .. })));
        assert!(matches!(open(Access::Writable), Err(FileError::InUse { .. })));
        let look = OpenedFile::open(image.path(), Access::ReadOnly, Locking::Ignore).unwrap();
        assert!(look.is_in_use());
        drop(writer);
        assert!(!look.is_in_use());
        let _readers = (open(Access::ReadOnly).unwrap(), open(Access::ReadOnly).unwrap());
        assert!(matches!(open(Access::Writable), Err(FileError::InUse { .. })));
    }

    #[test]
    fn what_is_no_image_file_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let open = |path: &Path| OpenedFile::open(path, Access::ReadOnly, Locking::Hold);
        assert!(matches!(open(folder.path()), Err(FileError::Kind { what: "folder", .. })));
        assert!(matches!(open(Path::new("/dev/null")), Err(FileError::Kind { .. })));
        assert!(matches!(open(&folder.path().join("none")), Err(FileError::Open { .. })));
        let fifo = folder.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .unwrap();
        assert!(matches!(open(&fifo), Err(FileError::Kind { what: "FIFO", .. })));
    }

    #[test]
    fn two_names_of_one_file_have_one_identity() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        std::fs::write(&one, [0; 512]).unwrap();
        std::os::unix::fs::symlink(&one, &two).unwrap();
        let opened = OpenedFile::open(&one, Access::ReadOnly, Locking::Ignore).unwrap();
        assert_eq!(identity_of(&two).unwrap(), opened.identity());
        assert_eq!((opened.len(), opened.is_block_device()), (512, false));
    }
}
