//! Overlays: one child of the golden image for each node, made when it is missing.
//!
//! Knows how nodes, their files and their targets are named. Does not know what is served how.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::block_io::run_batch;
use super::cli::{DurabilityPolicy, ResetPolicy};
use super::config::isns::IsnsConfig;
use super::config::{Config, DiscoveryConfig, Origin, Places, TargetConfig, UnitConfig};
use super::error::Error;
use super::file::{Access, FileError, Locking, OpenedFile, folder_of};
use super::image_create::create_child_of;
use super::image_format::{Format, detect};
use super::leftover;
use super::open_image::{OpenError, Opener};
use super::trace_store::TracePlace;
use crate::shard::{Admission, MacTable};
use crate::{vhd, vhdx};

/// What target names begin with when the command line makes them.
const TARGET_PREFIX: &str = "iqn.2026-11.io.goldrush:";

/// `node-001`; more digits when there are more nodes.
fn node_name(number: u32) -> String {
    format!("node-{number:03}")
}

/// What becomes of children that are not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    Create,
    /// Nothing: the configuration is only looked at.
    Leave,
}

/// The configuration of `nodes` targets, one child of `golden` each. Missing children are created in `overlays`,
/// which is created as well, where that is wanted.
pub(super) fn prepare(
    (golden, overlays, missing): (&Path, &Path, Missing),
    nodes: u32,
    listen: Vec<SocketAddr>,
    (durability, reset): (DurabilityPolicy, ResetPolicy),
) -> Result<Config, Error> {
    // Held to the end of this function: nobody writes the golden image while children of it are made.
    let locking = if missing == Missing::Create { Locking::Hold } else { Locking::Ignore };
    if missing == Missing::Create {
        std::fs::create_dir_all(overlays).map_err(Error::io(overlays, "creating the folder"))?;
    }
    let parent = Opener::anywhere(locking).open_chain(golden, Access::ReadOnly)?;
    let leaf = parent.leaf();
    // A child has its parent's format.
    let format = leaf.format();
    let mut targets = Vec::new();
    let mut created = 0;
    for number in 1..=nodes {
        let node = node_name(number);
        let path = overlays.join(format!("{node}.{}", format.name()));
        if missing == Missing::Create
            && !path.try_exists().map_err(Error::io(&path, "looking for the file"))?
        {
            create_child_of(&path, &parent, None)?;
            created += 1;
        }
        let origin = Origin::CommandLine;
        let unit = UnitConfig {
            lun: 0,
            path,
            origin,
            format: Some(format),
            readonly: false,
            removable: false,
            write_same_to_end: false,
            block_size: None,
            physical_block_size: None,
            access: Admission::default(),
            durability,
            reset,
        };
        let name = format!("{TARGET_PREFIX}{node}");
        let origin = Origin::CommandLine;
        targets.push(TargetConfig::open(name, origin, vec![unit]));
    }
    if created > 0 {
        tracing::info!(created, folder = %overlays.display(), "created children of the golden image");
    }
    let image_roots = vec![folder_of_real(golden)?, overlays.to_owned()];
    Ok(Config {
        listen,
        image_roots,
        strict: false,
        state_dir: None,
        boot_trace: TracePlace::Beside,
        warm: false,
        runtime_dir: None,
        control: None,
        metrics: None,
        discovery: DiscoveryConfig::default(),
        isns: IsnsConfig::default(),
        leases: Vec::new(),
        hosts: MacTable::default(),
        max_connections: None,
        targets,
        places: Places::default(),
    })
}

/// Empties the child at `path`, of a format that is told from the file where it is not known: what was written to it is
/// gone, whatever state it was in.
pub(super) fn empty(path: &Path, format: Option<Format>) -> Result<(), OpenError> {
    let file = OpenedFile::open_as_it_is(path, Access::Writable, Locking::Hold)?;
    let failed = |source| OpenError::Empty { path: path.to_owned(), source };
    let format = format.map_or_else(|| detect(&file), Ok)?;
    let read = |offset, bytes: &mut [u8]| file.read_at(offset, bytes);
    let unread = |(offset, len, source)| OpenError::Read { path: path.to_owned(), offset, len, source };
    let batch = match format {
        Format::Vhdx => vhdx::reset::emptied(file.len(), read).map_err(|error| match error {
            vhdx::OpenError::Vhdx(source) => OpenError::Vhdx { path: path.to_owned(), source },
            vhdx::OpenError::Read { offset, len, source } => unread((offset, len, source)),
        }),
        // A raw file is told that it is no child.
        Format::Vhd | Format::Raw => vhd::reset::emptied(file.len(), read).map_err(|error| match error {
            vhd::OpenError::Vhd(source) => OpenError::Vhd { path: path.to_owned(), source },
            vhd::OpenError::Read { offset, len, source } => unread((offset, len, source)),
        }),
    }?;
    // Of a life with another policy: nobody will miss it.
    leftover::forget(&file).map_err(FileError::from)?;
    if let Some(batch) = batch {
        run_batch(file.file(), &batch).map_err(failed)?;
        tracing::info!(image = %path.display(), "emptied: its durability is until-reset");
    }
    file.unlock();
    Ok(())
}

/// The folder the golden image really lies in: children name it by that.
fn folder_of_real(golden: &Path) -> Result<PathBuf, Error> {
    let real = golden.canonicalize().map_err(Error::io(golden, "resolving the path"))?;
    Ok(folder_of(&real).to_owned())
}
