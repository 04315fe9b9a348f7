//! `goldrush image merge`: what a child holds goes into its parent, or into a new image that replaces both.
//!
//! Knows which images a merge changes, and in which order:
//!
//! ```text
//! 1  VHDX: the child learns under which identifier the parent's data will be known           it accepts both
//! 2  every sector the child holds is written into the parent, as a server would write it     the child is not touched
//! 3  the parent is flushed and closed
//! 4  the child learns the parent's new time stamp or identifier, or is removed with --remove-child
//! ```
//!
//! The child reads right the whole time: what it holds it reads from itself, and what it does not hold the merge does not
//! write. A merge that was stopped is complete after it was run again. Before 4 a server in strict mode refuses a VHD
//! child, since its parent changed.
//!
//! With `--into` no image changes but the new one, which gets its name when it is complete. Does not know formats.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::chain_runs::ChainRuns;
use super::chain_writer::ChainWriter;
use super::children::{children_near, some_of};
use super::cli_chain::MergeArgs;
use super::error::{Error, print};
use super::file::{Access, FileIdentity, Locking};
use super::image_flatten::{Flat, flatten_into};
use super::image_format::LinkOf;
use super::new_image::NewDisk;
use super::open_image::{Format, OpenedChain, Opener};
use super::progress::Progress;
use super::relink::{expect_change, renew_link};
use super::seal;
use super::size::human;
use super::staged::{StagedFile, exists, sync_folder_of};
use super::watch::Watch;

#[derive(Debug, Serialize)]
struct MergeReport {
    child: String,
    /// The image that has the child's content now.
    into: String,
    /// Bytes of the disk that were moved.
    bytes: u64,
    removed: bool,
}

/// Runs the command.
pub(super) fn run(args: &MergeArgs) -> Result<(), Error> {
    let report = match &args.into {
        Some(new) => into_new(args, new)?,
        None => into_parent(args)?,
    };
    print(|out| {
        if args.json {
            serde_json::to_writer_pretty(&mut *out, &report)?;
            return writeln!(out);
        }
        let MergeReport { child, into, bytes, removed } = &report;
        let then = if *removed { format!(", {child} removed") } else { String::new() };
        writeln!(out, "{into}: has {} of {child}{then}", human(*bytes))
    })
}

/// What a merge must know of the two images, found while both are open for reading.
struct Pair {
    parent: PathBuf,
    identities: [FileIdentity; 2],
    /// Of the child and the parent.
    ids: [uuid::Uuid; 2],
}

fn into_parent(args: &MergeArgs) -> Result<MergeReport, Error> {
    let path = &args.path;
    let chain = Opener::anywhere(Locking::Hold).open_chain(path, Access::ReadOnly)?;
    let size = chain.sectors().bytes().0;
    let pair = pair(&chain)?;
    // The parent is opened for writing next, which our own lock would forbid.
    drop(chain);
    if !args.break_other_children {
        let near: [&Path; 2] = [path, &pair.parent];
        let others = children_near(pair.ids[1], &near, &pair.identities);
        if !others.is_empty() {
            return Err(Error::Failed(format!(
                "{} has other children ({}), whose disks would change with it: use --into to make a new image",
                pair.parent.display(),
                some_of(&others)
            )));
        }
        let own =
            if args.remove_child { children_near(pair.ids[0], &near, &pair.identities) } else { vec![] };
        if !own.is_empty() {
            return Err(Error::Failed(format!(
                "{} has children itself ({}): run goldrush image rebase on them first, or leave --remove-child out",
                path.display(),
                some_of(&own)
            )));
        }
    }
    let progress = Progress::new("merging", path, size);
    let bytes = merge(path, &pair.parent, &progress)?;
    if args.remove_child {
        std::fs::remove_file(path).map_err(Error::io(path, "removing"))?;
        sync_folder_of(path)?;
    } else {
        renew(path, &pair.parent, &progress)?;
    }
    progress.finish();
    let (child, into) = (path.display().to_string(), pair.parent.display().to_string());
    Ok(MergeReport { child, into, bytes, removed: args.remove_child })
}

fn pair(chain: &OpenedChain) -> Result<Pair, Error> {
    let [child, parent, ..] = chain.layers() else {
        let path = chain.leaf().file().path().display();
        return Err(Error::Failed(format!("{path} has no parent to be merged into")));
    };
    let (path, parent_path) = (child.file().path(), parent.file().path());
    let refuse = |why: &str| {
        let (path, parent) = (path.display(), parent_path.display());
        Err(Error::Failed(format!("{path} is not merged into {parent}: {why}")))
    };
    if parent.format() == Format::Raw {
        return refuse("a raw image has no children");
    }
    if child.sectors() != parent.sectors() {
        return refuse("their disks have different sizes; use --into or image convert");
    }
    let (Some(child_id), Some(parent_id)) = (child.id(), parent.id()) else {
        return refuse("one of them has no unique id");
    };
    let identities = [child.file().identity(), parent.file().identity()];
    Ok(Pair { parent: parent_path.to_owned(), identities, ids: [child_id, parent_id] })
}

/// Writes what the image `child` holds itself into `parent`, and closes that. How many bytes of the disk it was.
pub(super) fn merge(child: &Path, parent: &Path, watch: &dyn Watch) -> Result<u64, Error> {
    let mut opener = Opener::anywhere(Locking::Hold);
    let target = opener.open_chain(parent, Access::Writable)?;
    let leaf = Opener::anywhere(Locking::Hold).open_leaf(child, Access::ReadOnly)?;
    let accepts = |link: LinkOf| target.leaf().id().is_some_and(|id| link.accepts(id));
    if !leaf.parent_link().is_some_and(accepts) || leaf.sectors() != target.sectors() {
        let (child, parent) = (child.display(), parent.display());
        return Err(Error::Failed(format!(
            "{parent} is not the parent of {child} any more: was it replaced?"
        )));
    }
    // Our own lock forbids what comes next.
    drop(leaf);
    if let Some(image) = target.leaf().vhdx()
        && let Some(soon) = image.next_data_write_guid()
    {
        expect_change(child, image.data_write_guid(), soon, watch)?;
    }
    let leaf = opener.open_leaf(child, Access::ReadOnly)?;
    let mut runs = ChainRuns::alone(leaf)?;
    let mut writer = ChainWriter::new(target, watch)?;
    let bytes = copy(&mut runs, &mut writer, watch)?;
    writer.close()?;
    Ok(bytes)
}

/// Writes what the runs hold; the bytes that were.
fn copy(runs: &mut ChainRuns, writer: &mut ChainWriter<'_>, watch: &dyn Watch) -> Result<u64, Error> {
    let mut bytes = 0;
    while let Some(run) = runs.next()? {
        if run.depth().is_some() {
            writer.copy(&run)?;
            bytes += run.len;
        }
        watch.at(run.end());
    }
    Ok(bytes)
}

/// Tells the child the time stamp, or the identifier, that its parent has now.
pub(super) fn renew(child: &Path, parent: &Path, watch: &dyn Watch) -> Result<(), Error> {
    if seal::is_sealed(child) {
        tracing::warn!(
            "{} is sealed and keeps the time stamp its parent had: it is reported when it is opened",
            child.display()
        );
        return Ok(());
    }
    let parent = Opener::anywhere(Locking::Hold).open_chain(parent, Access::ReadOnly)?;
    renew_link(child, parent.leaf(), watch)
}

/// Child and parent as one new image, which has the parent's parent.
fn into_new(args: &MergeArgs, new: &Path) -> Result<MergeReport, Error> {
    if args.remove_child || args.break_other_children {
        return Err(Error::Usage("with --into no other image changes: leave the other flags out".to_owned()));
    }
    if new.symlink_metadata().is_ok() {
        return Err(exists(new));
    }
    let chain = Opener::anywhere(Locking::Hold).open_chain(&args.path, Access::ReadOnly)?;
    let progress = Progress::new("merging", &args.path, chain.sectors().bytes().0);
    let bytes = merge_into_new(chain, new, &progress)?;
    progress.finish();
    let (child, into) = (args.path.display().to_string(), new.display().to_string());
    Ok(MergeReport { child, into, bytes, removed: false })
}

/// As above, on an open chain.
pub(super) fn merge_into_new(chain: OpenedChain, new: &Path, watch: &dyn Watch) -> Result<u64, Error> {
    if chain.layers().len() < 2 {
        let path = chain.leaf().file().path().display();
        return Err(Error::Failed(format!("{path} has no parent to be merged with: use image convert")));
    }
    let Some(grandparent) = chain.layers().get(2) else {
        let bytes = chain.sectors().bytes().0;
        return flatten_into(chain, new, &Flat::default(), watch).map(|()| bytes);
    };
    let staged = StagedFile::create(new)?;
    let disk = NewDisk::child_of(new, grandparent, chain.leaf().block_size())?;
    disk.with_sectors(chain.sectors()).create()?.write(&staged)?;
    // Under its temporary name, which our own lock holds and which tells no format.
    let mut opener = Opener::anywhere(Locking::Ignore);
    let format = Some(chain.leaf().format());
    let target = opener.open_chain_as(staged.temporary(), Access::Writable, format)?;
    let mut writer = ChainWriter::new(target, watch)?;
    let mut runs = ChainRuns::of_depths(chain, 0..2)?;
    let bytes = copy(&mut runs, &mut writer, watch)?;
    writer.close()?;
    watch.before_change()?;
    staged.publish(false)?;
    Ok(bytes)
}
