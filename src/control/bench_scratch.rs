//! A folder for files that nobody shall find afterwards.
//!
//! Knows its name and its lock. Does not know what lies in it.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::error::Error;

const PREFIX: &str = ".goldrush-bench-";
/// Held as long as its process lives.
const LOCK: &str = "lock";

/// A hidden folder, removed when this is dropped. A process that is killed loses its lock; the next scratch folder in the
/// same place removes what it left.
#[derive(Debug)]
pub(super) struct Scratch {
    folder: PathBuf,
    _lock: File,
}

impl Scratch {
    pub(super) fn new(inside: &Path) -> Result<Self, Error> {
        sweep(inside);
        let folder = inside.join(format!("{PREFIX}{}", Uuid::new_v4().simple()));
        fs::create_dir(&folder).map_err(Error::io(&folder, "creating the scratch folder"))?;
        let made = File::create(folder.join(LOCK)).and_then(|lock| match lock.try_lock() {
            Ok(()) => Ok(lock),
            Err(TryLockError::Error(error)) => Err(error),
            Err(TryLockError::WouldBlock) => Err(std::io::ErrorKind::WouldBlock.into()),
        });
        match made {
            Ok(lock) => Ok(Self { folder, _lock: lock }),
            Err(source) => {
                let _ = fs::remove_dir_all(&folder);
                Err(Error::io(&folder, "locking the scratch folder")(source))
            }
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            tracing::warn!(folder = %self.folder.display(), %error, "the scratch folder cannot be removed: remove it");
        }
    }
}

/// Removes the folders of processes that are gone.
fn sweep(inside: &Path) {
    let Ok(entries) = fs::read_dir(inside) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let random = name.as_encoded_bytes().strip_prefix(PREFIX.as_bytes());
        let ours = random.is_some_and(|rest| rest.len() == 32 && rest.iter().all(u8::is_ascii_hexdigit));
        let folder = entry.path();
        // Without a lock file it is being made, or is not ours.
        if ours && File::open(folder.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok()) {
            tracing::info!(folder = %folder.display(), "removing what a killed bench left");
            let _ = fs::remove_dir_all(&folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_folder_goes_with_its_owner_and_a_killed_one_with_the_next() {
        let inside = tempfile::tempdir().unwrap();
        let left = inside.path().join(format!("{PREFIX}{}", Uuid::new_v4().simple()));
        fs::create_dir(&left).unwrap();
        fs::write(left.join(LOCK), "").unwrap();
        let first = Scratch::new(inside.path()).unwrap();
        assert!(!left.exists());
        let second = Scratch::new(inside.path()).unwrap();
        fs::write(second.path("x"), "y").unwrap();
        assert_eq!(fs::read_dir(inside.path()).unwrap().count(), 2);
        drop((first, second));
        assert_eq!(fs::read_dir(inside.path()).unwrap().count(), 0);
    }
}
