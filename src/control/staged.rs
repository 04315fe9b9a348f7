//! A file that is whole under its name or not there at all: written beside it, flushed, renamed.
//!
//! Knows temporary names and who still writes under one. Does not know what is written.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::error::Error;
use super::file::{FileIdentity, folder_of, identity_of};

/// Hexadecimal digits of the random part of a temporary name.
const RANDOM_LEN: usize = 32;
/// How often a new temporary file may be swept away by another process before its lock is seen.
const ATTEMPTS: usize = 16;

/// A file under a temporary name beside its destination: published whole, or removed.
///
/// Its lock tells other processes that somebody still writes it. A process that is killed loses the lock; whoever
/// next writes the same destination removes the file.
#[derive(Debug)]
pub(super) struct StagedFile {
    pub(super) file: File,
    temporary: PathBuf,
    destination: PathBuf,
    published: bool,
}

impl StagedFile {
    pub(super) fn create(destination: &Path) -> Result<Self, Error> {
        if destination.file_name().is_none() {
            return Err(Error::Usage(format!("{} does not name a file", destination.display())));
        }
        sweep(destination);
        for _ in 0..ATTEMPTS {
            let temporary = temporary_name(destination);
            let file = OpenOptions::new().read(true).write(true).create_new(true).open(&temporary);
            let file = file.map_err(Error::io(destination, "creating a file beside it"))?;
            let ours = file.try_lock().is_ok() && is_still(&temporary, &file);
            if ours {
                return Ok(Self { file, temporary, destination: destination.to_owned(), published: false });
            }
        }
        Err(Error::Failed(format!(
            "{}: files created beside it disappear at once: is another program cleaning the folder?",
            destination.display()
        )))
    }

    /// What it is called until it is published.
    pub(super) fn temporary(&self) -> &Path {
        &self.temporary
    }

    pub(super) fn destination(&self) -> &Path {
        &self.destination
    }

    /// Flushes the file, gives it its name, and flushes the folder. Only `replace` takes a name that is in use.
    pub(super) fn publish(mut self, replace: bool) -> Result<(), Error> {
        let path = self.destination.clone();
        self.file.sync_all().map_err(Error::io(&path, "flushing"))?;
        let flags =
            if replace { rustix::fs::RenameFlags::empty() } else { rustix::fs::RenameFlags::NOREPLACE };
        let here = rustix::fs::CWD;
        match rustix::fs::renameat_with(here, &self.temporary, here, &path, flags) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => return Err(exists(&path)),
            // Some network file systems know no such flag: a hard link refuses a name in use as well.
            Err(rustix::io::Errno::INVAL) if !replace => {
                let linked = std::fs::hard_link(&self.temporary, &path);
                linked.map_err(Error::io(&path, "giving the file its name"))?;
                let _ = std::fs::remove_file(&self.temporary);
            }
            Err(error) => return Err(Error::io(&path, "giving the file its name")(error.into())),
        }
        self.published = true;
        // A copy of the descriptor in a ring that is being taken apart must not keep the image in use.
        let _ = self.file.unlock();
        sync_folder_of(&path)
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if !self.published {
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// Makes names given and taken in the folder of `path` stable.
pub(super) fn sync_folder_of(path: &Path) -> Result<(), Error> {
    let folder = folder_of(path);
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io(folder, "flushing the folder"))
}

/// A destination that must not exist does.
pub(super) fn exists(path: &Path) -> Error {
    Error::Failed(format!("{} exists already: choose another name, or remove it first", path.display()))
}

/// `.NAME.RANDOM.part` beside the destination.
fn temporary_name(destination: &Path) -> PathBuf {
    let mut name = prefix(destination);
    name.push(format!("{}.part", Uuid::new_v4().simple()));
    folder_of(destination).join(name)
}

fn prefix(destination: &Path) -> std::ffi::OsString {
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(destination.file_name().unwrap_or_default());
    prefix.push(".");
    prefix
}

/// True while `path` still names the open file.
fn is_still(path: &Path, file: &File) -> bool {
    let own = file.metadata().map(|metadata| FileIdentity { device: metadata.dev(), inode: metadata.ino() });
    matches!((own, identity_of(path)), (Ok(own), Ok(named)) if own == named)
}

/// Removes what killed processes left beside this destination. What cannot be looked at stays.
fn sweep(destination: &Path) {
    let prefix = prefix(destination);
    let Ok(entries) = std::fs::read_dir(folder_of(destination)) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let random = name.as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes());
        let random = random.and_then(|rest| rest.strip_suffix(b".part"));
        let is_ours = random
            .is_some_and(|random| random.len() == RANDOM_LEN && random.iter().all(u8::is_ascii_hexdigit));
        if is_ours && entry.file_type().is_ok_and(|kind| kind.is_file()) && remove_if_left(&entry.path()) {
            tracing::info!(file = %entry.path().display(), "removed what a killed command left");
        }
    }
}

fn remove_if_left(path: &Path) -> bool {
    let Ok(file) = OpenOptions::new().read(true).write(true).open(path) else { return false };
    file.try_lock().is_ok() && is_still(path, &file) && std::fs::remove_file(path).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> usize {
        std::fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn an_unpublished_file_leaves_nothing_and_a_published_one_does_not_replace() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.vhd");
        drop(StagedFile::create(&path).unwrap());
        assert_eq!(names(folder.path()), 0);
        StagedFile::create(&path).unwrap().publish(false).unwrap();
        assert!(StagedFile::create(&path).unwrap().publish(false).is_err());
        StagedFile::create(&path).unwrap().publish(true).unwrap();
        assert_eq!(names(folder.path()), 1);
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_another_writes_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.vhd");
        let left = temporary_name(&path);
        std::fs::write(&left, "half").unwrap();
        for other in [".x.vhd.part", ".x.vhd.0123.part", ".y.vhd.0123456789abcdef0123456789abcdef.part"] {
            std::fs::write(folder.path().join(other), "").unwrap();
        }
        let writing = StagedFile::create(&path).unwrap();
        assert!(!left.exists());
        let second = StagedFile::create(&path).unwrap();
        assert!(writing.temporary().exists() && second.temporary().exists());
        assert_eq!(names(folder.path()), 5);
    }
}
