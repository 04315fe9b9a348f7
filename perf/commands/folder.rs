//! A working folder that goes away by itself.
//!
//! Knows folders. Does not know what is put in.

use std::fs;
use std::path::{Path, PathBuf};

use crate::fail::{Result, failure};

/// A folder that goes away with this value, unless it was asked for by name.
pub(super) struct Folder {
    pub(super) path: PathBuf,
    keep: bool,
}

impl Folder {
    pub(super) fn create(asked: Option<&Path>, purpose: &str) -> Result<Folder> {
        let temporary = || std::env::temp_dir().join(format!("goldrush-{purpose}-{}", std::process::id()));
        let path = asked.map_or_else(temporary, Path::to_path_buf);
        fs::create_dir(&path).map_err(|e| {
            failure!("cannot create the folder {}: {e}; choose another --dir", path.display())
        })?;
        Ok(Folder { path, keep: asked.is_some() })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep
            && let Err(e) = fs::remove_dir_all(&self.path)
        {
            eprintln!("perf: cannot remove {}: {e}; remove it by hand", self.path.display());
        }
    }
}
