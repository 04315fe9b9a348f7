//! Giving a child another parent, on disk.
//!
//! Knows what a child must say of its parent. Does not know which bytes say it, and in which order (`vhd::relink`,
//! `vhdx::relink`), nor whether the new parent is the right one (`image_rebase`).

use std::path::Path;
use std::time::SystemTime;

use uuid::Uuid;

use super::block_io::run_op;
use super::edit_file::batches_of;
use super::error::Error;
use super::file::{Access, Locking, OpenedFile};
use super::image_format::replay_log;
use super::new_image::{relative_path, vhd_parent, write_ids};
use super::open_image::{Format, OpenError, OpenedLayer, detect};
use super::watch::Watch;
use crate::plan::MetaBatch;
use crate::vhd;
use crate::vhd::create::timestamp_from_unix;
use crate::vhdx;
use crate::vhdx::parent_locator::ParentPaths;
use crate::vhdx::relink::Link;

/// A child that is open for a change of what it says of its parent.
struct Child {
    file: OpenedFile,
    format: Format,
    /// Of the file by now: a VHDX's log may have made it longer.
    len: u64,
    modified: SystemTime,
}

/// Makes the open image `parent` the parent of the child at `path`, which must not be in use.
pub(super) fn set_parent(path: &Path, parent: &OpenedLayer, watch: &dyn Watch) -> Result<(), Error> {
    let child = Child::open(path)?;
    match (child.format, parent.image(), parent.vhdx()) {
        (Format::Vhd, Some(image), _) => {
            let reference = vhd_parent(path, parent, image)?;
            let batches =
                vhd::relink::relink(child.len, &reference, |at, bytes| child.file.read_at(at, bytes));
            child.run(&batches.map_err(|error| sentence(path, &error))?, watch)
        }
        (Format::Vhdx, _, Some(image)) => {
            let relative = relative_path(path, parent.file().path())?;
            let paths = ParentPaths { relative, volume: None, absolute: None };
            child.link(&Link::Parent(image.data_write_guid(), &paths), watch)
        }
        _ => Err(other_format(path, child.format, parent)),
    }
}

/// A parent has the format of its child.
pub(super) fn other_format(child: &Path, format: Format, parent: &OpenedLayer) -> Error {
    OpenError::ParentFormat {
        path: child.to_owned(),
        parent: parent.file().path().to_owned(),
        child: format.title(),
        found: parent.format().title(),
    }
    .into()
}

/// Tells the VHD at `path` the time stamp its parent has now, the VHDX the identifier that its parent's data has now.
pub(super) fn renew_link(path: &Path, parent: &OpenedLayer, watch: &dyn Watch) -> Result<(), Error> {
    let child = Child::open(path)?;
    if let Some(image) = parent.vhdx() {
        return child.link(&Link::Same(image.data_write_guid()), watch);
    }
    let timestamp = timestamp_from_unix(parent.file().modified());
    let batches = vhd::relink::restamp(child.len, timestamp, |at, bytes| child.file.read_at(at, bytes));
    child.run(&batches.map_err(|error| sentence(path, &error))?, watch)
}

/// Tells the VHDX at `path` that its parent's data has the identifier `now`, and will have `soon` instead.
pub(super) fn expect_change(path: &Path, now: Uuid, soon: Uuid, watch: &dyn Watch) -> Result<(), Error> {
    Child::open(path)?.link(&Link::Both(now, soon), watch)
}

/// Finishes a change of the parent of `path` that was killed, if it was. A VHDX's is in its log, and finished when it is
/// opened.
pub(super) fn finish_interrupted(path: &Path, watch: &dyn Watch) -> Result<(), Error> {
    let child = Child::open(path)?;
    if child.format != Format::Vhd {
        return Ok(());
    }
    let batches = vhd::relink::interrupted(child.len, |at, bytes| child.file.read_at(at, bytes));
    let batches = batches.map_err(Error::io(path, "reading the footers"))?;
    if batches.is_empty() {
        return Ok(());
    }
    tracing::info!(image = %path.display(), "finishing a change of its parent that was interrupted");
    child.run(&batches, watch)
}

fn sentence(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::Failed(format!("{}: {error}", path.display()))
}

impl Child {
    fn open(path: &Path) -> Result<Self, Error> {
        let file = OpenedFile::open(path, Access::Writable, Locking::Hold).map_err(OpenError::from)?;
        let format = detect(&file)?;
        if format == Format::Raw {
            let path = path.display();
            return Err(Error::Failed(format!("{path} is a raw image and has no parent")));
        }
        let modified = file.file().metadata().and_then(|metadata| metadata.modified());
        let modified = modified.map_err(Error::io(path, "looking at the file"))?;
        let len = if format == Format::Vhdx { replay_log(&file)? } else { file.len() };
        Ok(Self { file, format, len, modified })
    }

    fn link(&self, link: &Link<'_>, watch: &dyn Watch) -> Result<(), Error> {
        let read = |at, bytes: &mut [u8]| self.file.read_at(at, bytes);
        let stages = vhdx::relink::relink(self.len, link, write_ids(), read);
        let stages = stages.map_err(|error| sentence(self.file.path(), &error))?;
        self.run(&batches_of(&stages), watch)
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
