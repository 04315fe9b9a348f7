//! Giving a child another parent, on disk.
//!
//! Knows what a child must say of its parent. Does not know which bytes say it, and in which order (`vhd::relink`), nor
//! whether the new parent is the right one (`image_rebase`).

use std::path::Path;
use std::time::SystemTime;

use super::block_io::run_op;
use super::error::Error;
use super::file::{Access, Locking, OpenedFile};
use super::new_image::vhd_parent;
use super::open_image::{Format, OpenError, OpenedLayer, detect};
use super::watch::Watch;
use crate::plan::MetaBatch;
use crate::vhd::create::timestamp_from_unix;
use crate::vhd::relink::{RelinkError, interrupted, relink, restamp};

/// A child that is open for a change of what it says of its parent.
struct Child {
    file: OpenedFile,
    modified: SystemTime,
}

/// Makes the open image `parent` the parent of the child at `path`, which must not be in use.
pub(super) fn set_parent(path: &Path, parent: &OpenedLayer, watch: &dyn Watch) -> Result<(), Error> {
    let child = Child::open(path)?;
    let Some(image) = parent.image() else {
        let (path, parent_path) = (path.display(), parent.file().path().display());
        let found = parent.format().title();
        return Err(Error::Failed(format!(
            "{path} is a VHD and {parent_path} a {found}, which cannot be its parent: convert one of the two"
        )));
    };
    let reference = vhd_parent(path, parent, image)?;
    let batches = relink(child.file.len(), &reference, |offset, bytes| child.file.read_at(offset, bytes));
    child.run(&batches.map_err(|error| sentence(path, &error))?, watch)
}

/// Tells the child at `path` the time stamp its parent has now.
pub(super) fn set_timestamp(path: &Path, parent: &OpenedLayer, watch: &dyn Watch) -> Result<(), Error> {
    let child = Child::open(path)?;
    let timestamp = timestamp_from_unix(parent.file().modified());
    let batches = restamp(child.file.len(), timestamp, |offset, bytes| child.file.read_at(offset, bytes));
    child.run(&batches.map_err(|error| sentence(path, &error))?, watch)
}

/// Finishes a change of the parent of `path` that was killed, if it was.
pub(super) fn finish_interrupted(path: &Path, watch: &dyn Watch) -> Result<(), Error> {
    let child = Child::open(path)?;
    let batches = interrupted(child.file.len(), |offset, bytes| child.file.read_at(offset, bytes));
    let batches = batches.map_err(Error::io(path, "reading the footers"))?;
    if batches.is_empty() {
        return Ok(());
    }
    tracing::info!(image = %path.display(), "finishing a change of its parent that was interrupted");
    child.run(&batches, watch)
}

fn sentence(path: &Path, error: &RelinkError<std::io::Error>) -> Error {
    Error::Failed(format!("{}: {error}", path.display()))
}

impl Child {
    fn open(path: &Path) -> Result<Self, Error> {
        let file = OpenedFile::open(path, Access::Writable, Locking::Hold).map_err(OpenError::from)?;
        if detect(&file)? != Format::Vhd {
            let path = path.display();
            return Err(Error::Failed(format!(
                "{path}: only the parent of a VHD can be changed: convert the image to a VHD"
            )));
        }
        let modified = file.file().metadata().and_then(|metadata| metadata.modified());
        let modified = modified.map_err(Error::io(path, "looking at the file"))?;
        Ok(Self { file, modified })
    }

    /// The modification time stays: the disk does not change, and children of it know it by that.
    fn run(&self, batches: &[MetaBatch], watch: &dyn Watch) -> Result<(), Error> {
        let path = self.file.path();
        for batch in batches {
            for op in &batch.ops {
                watch.before_change()?;
                let run = run_op(self.file.file(), op, &batch.bytes);
                run.map_err(Error::io(path, "changing the parent"))?;
            }
        }
        let kept = self.file.file().set_modified(self.modified);
        kept.map_err(Error::io(path, "keeping the modification time"))?;
        self.file.file().sync_all().map_err(Error::io(path, "flushing"))
    }
}
