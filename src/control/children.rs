//! The children of an image, as far as they lie in its folder.
//!
//! Knows where children usually are, and which formats have them. A child elsewhere cannot be known: nothing in a parent names its children.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::error::Error;
use super::file::{FileIdentity, folder_of, identity_of};
use crate::vhd::dynamic_header::DynamicHeader;
use crate::vhd::footer::Footer;
use crate::vhd::{DiskType, FOOTER_BYTES, HEADER_BYTES, Structure};
use crate::vhdx;

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

/// The children of the image with this id that lie in the folders of `near`, but for `except`.
pub(super) fn children_near(id: Uuid, near: &[&Path], except: &[FileIdentity]) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = Vec::new();
    for path in near {
        let real = path.canonicalize().unwrap_or_else(|_| (*path).to_owned());
        let folder = folder_of(&real).to_owned();
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    let entries = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
    let mut children: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| may_be_child(path) && identity_of(path).is_ok_and(|own| !except.contains(&own)))
        .filter(|path| is_child_of(path, id))
        .collect();
    children.sort();
    children
}

/// A list for a sentence: the first, and how many more.
pub(super) fn some_of(paths: &[PathBuf]) -> String {
    let first = paths.first().map_or_else(String::new, |path| path.display().to_string());
    match paths.len() {
        0 | 1 => first,
        2 => format!("{first} and another one"),
        more => format!("{first} and {} more", more - 1),
    }
}

/// The first image in the folder of `path` whose parent has this id.
fn child_beside(path: &Path, id: Uuid) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder_of(path)).ok()?;
    let files = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    files.map(|entry| entry.path()).find(|other| may_be_child(other) && is_child_of(other, id))
}

fn ends_in(path: &Path, endings: &[&str]) -> bool {
    path.extension().is_some_and(|ending| endings.iter().any(|known| ending.eq_ignore_ascii_case(known)))
}

fn may_be_child(path: &Path) -> bool {
    ends_in(path, &["vhd", "avhd", "vhdx", "avhdx"])
}

fn is_child_of(path: &Path, id: Uuid) -> bool {
    if ends_in(path, &["vhdx", "avhdx"]) {
        return vhdx_parent_of(path).is_some_and(|parent| parent.accepts(id));
    }
    parent_of(path) == Some(id)
}

/// The parent a VHDX names, without a look at its table.
fn vhdx_parent_of(path: &Path) -> Option<vhdx::ParentInfo> {
    let file = File::open(path).ok()?;
    let len = file.metadata().ok()?.len();
    vhdx::parent_with(len, |offset, bytes| file.read_exact_at(bytes, offset)).ok()?
}

/// The parent's id in a VHD: from its first two structures, without reading more.
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
