//! `goldrush image flatten`: a child becomes independent of its parents.
//!
//! Knows that the new image is complete and stable before it takes a name. In place it then replaces the child in one
//! step, so that a kill leaves the child or the independent image, and nothing between. Does not know how bytes are moved
//! (`copy`).

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;
use std::time::SystemTime;

use serde::Serialize;
use uuid::Uuid;

use super::block_io::{ChainReader, Pieces};
use super::cli_chain::FlattenArgs;
use super::copy::{self, Sink};
use super::error::{Error, print};
use super::file::{Access, Locking, OpenedFile};
use super::image_convert::finish;
use super::new_image::now;
use super::open_image::{OpenedChain, OpenedLayer, Opener};
use super::progress::Progress;
use super::size::human;
use super::staged::{StagedFile, exists};
use super::watch::Watch;
use crate::{vhd, vhdx};

/// What the independent image keeps of the child it replaces: its children know it by its id and its time.
#[derive(Debug, Default)]
pub(super) struct Flat {
    id: Option<Uuid>,
    modified: Option<SystemTime>,
    replace: bool,
}

#[derive(Debug, Serialize)]
struct FlattenReport {
    path: String,
    virtual_size: u64,
    /// False when the image had no parent and nothing was done.
    changed: bool,
}

/// Runs the command.
pub(super) fn run(args: &FlattenArgs) -> Result<(), Error> {
    let destination = args.output.as_ref().unwrap_or(&args.path);
    if args.output.is_some() && destination.symlink_metadata().is_ok() {
        return Err(exists(destination));
    }
    // In place nobody else may have it open.
    let access = if args.output.is_some() { Access::ReadOnly } else { Access::Writable };
    let chain = Opener::anywhere(Locking::Hold).open_chain(&args.path, access)?;
    let size = chain.sectors().bytes().0;
    let changed = args.output.is_some() || chain.layers().len() > 1;
    if changed {
        let progress = Progress::new("flattening", &args.path, size);
        if args.output.is_some() {
            flatten_into(chain, destination, &Flat::default(), &progress)?;
        } else {
            flatten(chain, &progress)?;
        }
        progress.finish();
    }
    let path = destination.display().to_string();
    let report = FlattenReport { path, virtual_size: size, changed };
    print(|out| {
        if args.json {
            serde_json::to_writer_pretty(&mut *out, &report)?;
            return writeln!(out);
        }
        let said = if changed { "has no parent any more" } else { "has no parent: nothing to do" };
        writeln!(out, "{}: {}, {said}", report.path, human(size))
    })
}

/// Replaces the leaf of `chain`, which is open for writing so that nobody else uses it.
pub(super) fn flatten(chain: OpenedChain, watch: &dyn Watch) -> Result<(), Error> {
    let leaf = chain.leaf().file().clone();
    let modified = leaf.file().metadata().and_then(|metadata| metadata.modified());
    let modified = modified.map_err(Error::io(leaf.path(), "looking at the file"))?;
    let flat = Flat { id: chain.leaf().id(), modified: Some(modified), replace: true };
    // Behind a link it is the file that is replaced.
    let path = leaf.path().canonicalize().map_err(Error::io(leaf.path(), "resolving the path"))?;
    flatten_into(chain, &path, &flat, watch)
}

/// Writes the disk of `chain` as a dynamic image of its format that has no parent.
pub(super) fn flatten_into(
    chain: OpenedChain,
    destination: &Path,
    flat: &Flat,
    watch: &dyn Watch,
) -> Result<(), Error> {
    let leaf = chain.leaf();
    let mut sink = sink(leaf, flat)?;
    let old = leaf.file().clone();
    let staged = StagedFile::create(destination)?;
    let mut pieces = Pieces::new(ChainReader::new(chain)?);
    watch.before_change()?;
    copy::run(&mut pieces, &mut sink, &staged.file, destination, &|at| watch.at(at))?;
    finish(&staged, sink, destination)?;
    if flat.replace {
        inherit(&staged, &old)?;
    }
    if let Some(modified) = flat.modified {
        staged
            .file
            .set_modified(modified)
            .map_err(Error::io(destination, "keeping the modification time"))?;
    }
    watch.before_change()?;
    staged.publish(flat.replace)
}

/// What builds an image like `leaf`, without a parent.
fn sink(leaf: &OpenedLayer, flat: &Flat) -> Result<Sink, Error> {
    let id = flat.id.unwrap_or_else(Uuid::new_v4);
    let failed = |error: &dyn std::fmt::Display| Error::Failed(error.to_string());
    if let Some(image) = leaf.image() {
        let disk = vhd::create::NewDisk {
            kind: vhd::create::NewKind::Dynamic {
                block_size: image.block_size().unwrap_or(vhd::create::BLOCK_BYTES_DEFAULT),
            },
            sectors: leaf.sectors(),
            unique_id: id,
            timestamp: now(),
        };
        let builder = vhd::build::Builder::new(&disk).map_err(|error| failed(&error))?;
        return Ok(Sink::Blocks(builder));
    }
    let Some(image) = leaf.vhdx() else {
        let path = leaf.file().path().display();
        return Err(Error::Failed(format!("{path} is a {}: use image convert", leaf.format().title())));
    };
    let disk = vhdx::create::NewDisk {
        kind: vhdx::create::NewKind::Dynamic,
        sectors: leaf.sectors(),
        block_size: image.block_size(),
        logical_sector: image.logical_sector(),
        physical_sector: image.physical_sector(),
        file_write_guid: Uuid::new_v4(),
        data_write_guid: id,
        disk_id: image.disk_id(),
    };
    let builder = vhdx::build::Builder::new(&disk).map_err(|error| failed(&error))?;
    Ok(Sink::VhdxBlocks(builder))
}

/// Permissions of the file that is replaced, and its owner where we may give files away.
fn inherit(staged: &StagedFile, old: &OpenedFile) -> Result<(), Error> {
    let path = staged.destination();
    let metadata = old.file().metadata().map_err(Error::io(path, "looking at the file"))?;
    if let Err(error) = fchown(&staged.file, Some(metadata.uid()), Some(metadata.gid())) {
        tracing::warn!(image = %path.display(), %error, "its owner cannot be kept");
    }
    let mode = Permissions::from_mode(metadata.mode() & 0o7777);
    staged.file.set_permissions(mode).map_err(Error::io(path, "keeping the permissions"))
}
