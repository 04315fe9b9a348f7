//! The children of an image, as far as they lie in its folder.
//!
//! Knows where children usually are. A child elsewhere cannot be known: nothing in a parent names its children.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::error::Error;
use super::file::folder_of;
use crate::vhd::dynamic_header::DynamicHeader;
use crate::vhd::footer::Footer;
use crate::vhd::{DiskType, FOOTER_BYTES, HEADER_BYTES, Structure};

/// Refuses what would change an image that has a child beside it.
pub(super) fn refuse_with_children(path: &Path, id: Uuid) -> Result<(), Error> {
    match child_beside(path, id) {
        None => Ok(()),
        Some(child) => Err(Error::Failed(format!(
            "{} is the parent of {}, and a parent must not change: merge or flatten its children first, or work on a copy",
            path.display(),
            child.display()
        ))),
    }
}

/// The first VHD in the folder of `path` whose parent has this id.
fn child_beside(path: &Path, id: Uuid) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder_of(path)).ok()?;
    let files = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    files.map(|entry| entry.path()).find(|other| is_vhd(other) && parent_of(other) == Some(id))
}

fn is_vhd(path: &Path) -> bool {
    path.extension()
        .is_some_and(|ending| ending.eq_ignore_ascii_case("vhd") || ending.eq_ignore_ascii_case("avhd"))
}

/// The parent's id in a child: from its first two structures, without reading more.
fn parent_of(path: &Path) -> Option<Uuid> {
    let file = File::open(path).ok()?;
    let mut footer = [0; FOOTER_BYTES];
    file.read_exact_at(&mut footer, 0).ok()?;
    let footer = Footer::parse(&footer, Structure::HeadFooter, 0).ok()?;
    if footer.disk_type != DiskType::Differencing {
        return None;
    }
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, footer.data_offset).ok()?;
    Some(DynamicHeader::parse(&header, footer.data_offset).ok()?.parent_unique_id)
}
