//! `goldrush image snapshot`: a leaf is frozen, and goes on in a new child.
//!
//! Knows two ways. With `--child NEW` the image keeps its name and NEW goes on. With `--name FROZEN` the frozen state
//! gets the name FROZEN, and the image itself goes on under its own name, so that no configuration changes:
//!
//! ```text
//! 1  FROZEN becomes a second name of the image's file
//! 2  the child, complete and stable, takes the image's name in one step
//! 3  the frozen file loses write permission (and is sealed, with --seal)
//! ```
//!
//! A kill between 1 and 2 leaves the image as it was, with a second name; one between 2 and 3 leaves a frozen image that
//! could still be written. Run again, the command goes on from there. The image must not be in use: its server could not
//! follow.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use serde::Serialize;

use super::children::{children_near, some_of};
use super::cli_chain::SnapshotArgs;
use super::error::{Error, print};
use super::file::{Access, FileIdentity, Locking, folder_of, identity_of};
use super::image_seal::seal_layer;
use super::new_image::NewDisk;
use super::open_image::{OpenedChain, Opener};
use super::progress::Progress;
use super::staged::{StagedFile, exists, sync_folder_of};
use super::watch::Watch;

#[derive(Debug, Serialize)]
struct SnapshotReport {
    frozen: String,
    child: String,
    sealed: bool,
}

/// Runs the command.
pub(super) fn run(args: &SnapshotArgs) -> Result<(), Error> {
    let progress = Progress::new("snapshot", &args.path, 1);
    let (frozen, child) = match (&args.child, &args.name) {
        (Some(child), None) => (args.path.clone(), child.clone()),
        (None, Some(name)) => (name.clone(), args.path.clone()),
        _ => return Err(Error::Usage("either --child or --name is needed".to_owned())),
    };
    let chain = if args.name.is_some() {
        freeze_as(&args.path, &frozen, &progress)?
    } else {
        continue_in(&args.path, &child, &progress)?
    };
    if args.seal {
        seal_layer(chain.leaf())?;
    }
    progress.finish();
    let (frozen, child) = (frozen.display().to_string(), child.display().to_string());
    let report = SnapshotReport { frozen, child, sealed: args.seal };
    print(|out| {
        if args.json {
            serde_json::to_writer_pretty(&mut *out, &report)?;
            return writeln!(out);
        }
        writeln!(out, "{}: frozen; {} goes on", report.frozen, report.child)
    })
}

/// `path` is frozen and `child` goes on. The chain of the frozen image, which nobody else has open.
pub(super) fn continue_in(path: &Path, child: &Path, watch: &dyn Watch) -> Result<OpenedChain, Error> {
    let made = child.exists() && is_left_to_freeze(child, path)?;
    let chain = Opener::anywhere(Locking::Hold).open_chain(path, Access::Writable)?;
    if made {
        freeze(&chain, watch)?;
        return Ok(chain);
    }
    let staged = StagedFile::create(child)?;
    NewDisk::child_of(child, chain.leaf(), None)?.create()?.write(&staged)?;
    watch.before_change()?;
    staged.publish(false)?;
    freeze(&chain, watch)?;
    Ok(chain)
}

/// The state of `path` is frozen under the name `frozen`, and `path` goes on.
pub(super) fn freeze_as(path: &Path, frozen: &Path, watch: &dyn Watch) -> Result<OpenedChain, Error> {
    let path = &path.canonicalize().map_err(Error::io(path, "resolving the path"))?;
    let folder =
        |path: &Path| folder_of(path).canonicalize().map_err(Error::io(path, "resolving the folder"));
    if folder(path)? != folder(frozen)? {
        return Err(Error::Usage(format!(
            "{} must lie in the folder of {}: the frozen image names its own parent from there",
            frozen.display(),
            path.display()
        )));
    }
    if frozen.exists() && is_left_to_freeze(path, frozen)? {
        let chain = Opener::anywhere(Locking::Hold).open_chain(frozen, Access::Writable)?;
        freeze(&chain, watch)?;
        return Ok(chain);
    }
    let chain = Opener::anywhere(Locking::Hold).open_chain(path, Access::Writable)?;
    let identity = chain.leaf().file().identity();
    let children = chain.leaf().id().map(|id| children_near(id, &[path], &[identity]));
    if let Some(children) = children.filter(|children| !children.is_empty()) {
        return Err(Error::Failed(format!(
            "{} has children ({}), which know it by its name: use --child",
            path.display(),
            some_of(&children)
        )));
    }
    match identity_of(frozen) {
        // What a snapshot that was killed left.
        Ok(known) if known == identity => {}
        Ok(_) => return Err(exists(frozen)),
        Err(_) => {
            watch.before_change()?;
            std::fs::hard_link(path, frozen).map_err(Error::io(frozen, "giving the image a second name"))?;
            sync_folder_of(frozen)?;
        }
    }
    drop(chain);
    // By its new name, by which its child will know it.
    let chain = Opener::anywhere(Locking::Hold).open_chain(frozen, Access::Writable)?;
    let staged = StagedFile::create(path)?;
    NewDisk::child_of(path, chain.leaf(), None)?.create()?.write(&staged)?;
    watch.before_change()?;
    staged.publish(true)?;
    freeze(&chain, watch)?;
    Ok(chain)
}

/// True where a snapshot was killed before its last step: `child` is the child of `frozen`, which may still be written.
fn is_left_to_freeze(child: &Path, frozen: &Path) -> Result<bool, Error> {
    let chain = Opener::anywhere(Locking::Hold).open_chain(child, Access::ReadOnly)?;
    let Some(parent) = chain.layers().get(1).map(|parent| parent.file()) else { return Ok(false) };
    let looking = Error::io(frozen, "looking at it");
    let metadata = std::fs::metadata(frozen).map_err(looking)?;
    if (FileIdentity { device: metadata.dev(), inode: metadata.ino() }) != parent.identity() {
        return Ok(false);
    }
    if metadata.permissions().mode() & 0o222 == 0 {
        return Err(Error::Failed(format!(
            "{} exists already, as the frozen parent of {}: choose another name",
            frozen.display(),
            child.display()
        )));
    }
    Ok(true)
}

/// Takes write permission away.
fn freeze(chain: &OpenedChain, watch: &dyn Watch) -> Result<(), Error> {
    let file = chain.leaf().file();
    let failed = |error| Error::io(file.path(), "taking write permission away")(error);
    let mode = file.file().metadata().map_err(failed)?.permissions().mode();
    watch.before_change()?;
    file.file().set_permissions(Permissions::from_mode(mode & 0o7555)).map_err(failed)
}
