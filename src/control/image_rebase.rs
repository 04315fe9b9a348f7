//! `goldrush image rebase`: a child gets another parent, and its disk stays what it is.
//!
//! Knows when that is so: over all that the child does not hold itself, the old and the new parent must read the same.
//! The order:
//!
//! ```text
//! 1  compare; with --copy, what differs is written into the child first     its disk does not change by that
//! 2  the child is flushed and closed
//! 3  the child names the new parent (`vhd::relink`, `vhdx::relink`: the old one or the new one at every moment)
//! ```
//!
//! A rebase that was stopped may be run again; one that was stopped in two short moments of 3 leaves an image that
//! reads right and asks for a repair before it is written, which the second run, too, does first.
//!
//! Where the old parent is not found, or another image has taken its place, the new one must have the id that the child
//! wants: then the parent has moved, and only its path changes.

use std::path::Path;

use serde::Serialize;

use super::chain_runs::ChainRuns;
use super::chain_writer::ChainWriter;
use super::cli_chain::RebaseArgs;
use super::compare::{Comparison, Cursor, Joined};
use super::error::{Error, print};
use super::file::{Access, Locking};
use super::open_image::{Format, OpenError, OpenedChain, OpenedLayer, Opener};
use super::progress::Progress;
use super::relink::{finish_interrupted, other_format, set_parent};
use super::size::human;
use super::watch::Watch;

/// Differences remembered at once, 16 bytes each; a child that differs in more is copied in several rounds.
const ROUND_RANGES: usize = 1 << 18;

/// Ranges (start, length) in bytes; and where to go on, when they are not all.
type Round = (Vec<(u64, u64)>, Option<u64>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum How {
    /// The parent is the same file: path and time stamp were renewed.
    Renewed,
    /// The old parent was not there; the new one has its id.
    Moved,
    /// Both were compared.
    Compared,
}

#[derive(Debug, Serialize)]
struct RebaseReport {
    child: String,
    parent: String,
    how: How,
    copied_bytes: u64,
}

/// Runs the command.
pub(super) fn run(args: &RebaseArgs) -> Result<(), Error> {
    let (child, parent) = (&args.path, &args.parent);
    let size = Opener::anywhere(Locking::Hold).open_leaf(child, Access::ReadOnly)?.sectors().bytes().0;
    let progress = Progress::new("comparing", child, size);
    let (how, copied_bytes) = rebase(child, parent, args.copy, &progress)?;
    progress.finish();
    let (child, parent) = (child.display().to_string(), parent.display().to_string());
    let report = RebaseReport { child, parent, how, copied_bytes };
    print(|out| {
        if args.json {
            serde_json::to_writer_pretty(&mut *out, &report)?;
            return writeln!(out);
        }
        let RebaseReport { child, parent, .. } = &report;
        let said = match how {
            How::Renewed => "the same image, path and time stamp renewed".to_owned(),
            How::Moved => "the parent it had, at another place".to_owned(),
            How::Compared if copied_bytes == 0 => "which reads the same".to_owned(),
            How::Compared => format!("{} copied into the child", human(copied_bytes)),
        };
        writeln!(out, "{child}: its parent is {parent}: {said}")
    })
}

/// Makes `parent` the parent of `child`. How, and how many bytes were copied.
pub(super) fn rebase(
    child: &Path,
    parent: &Path,
    copy: bool,
    watch: &dyn Watch,
) -> Result<(How, u64), Error> {
    finish_interrupted(child, watch)?;
    let mut opener = Opener::anywhere(Locking::Hold);
    let new = opener.open_chain(parent, Access::ReadOnly)?;
    let leaf = opener.open_leaf(child, Access::ReadOnly)?;
    let identity = leaf.file().identity();
    if new.layers().iter().any(|layer| layer.file().identity() == identity) {
        let (child, parent) = (child.display(), parent.display());
        return Err(Error::Failed(format!("{parent} is {child} or a child of it: it cannot be its parent")));
    }
    refuse_unfit(&leaf, new.leaf())?;
    let Some(wanted) = leaf.parent_link() else {
        return Err(Error::Failed(format!("{} is no differencing image and has no parent", child.display())));
    };
    let moved = new.leaf().id().is_some_and(|id| wanted.accepts(id));
    // Its lock, and that of the child, must go before the child is written.
    drop((opener, leaf, new));
    let (how, copied) = match old_parent(child) {
        Ok(old) if super::file::identity_of(&old).ok() == super::file::identity_of(parent).ok() => {
            (How::Renewed, 0)
        }
        Ok(old) => (How::Compared, compare(child, &old, parent, copy, watch)?),
        Err(error) if moved && is_elsewhere(&error) => (How::Moved, 0),
        Err(error) => return Err(error.into()),
    };
    let new = Opener::anywhere(Locking::Hold).open_chain(parent, Access::ReadOnly)?;
    set_parent(child, new.leaf(), watch)?;
    Ok((how, copied))
}

/// Refuses a parent of another format, another size or another logical sector. A VHDX may be larger than its parent.
fn refuse_unfit(child: &OpenedLayer, parent: &OpenedLayer) -> Result<(), Error> {
    let (path, parent_path) = (child.file().path(), parent.file().path());
    if child.format() != parent.format() {
        return Err(other_format(path, child.format(), parent));
    }
    let (has, wants) = (parent.sectors().bytes().0, child.sectors().bytes().0);
    let fits = has == wants || child.format() == Format::Vhdx && has < wants;
    let (path, parent_path) = (path.display(), parent_path.display());
    if !fits {
        return Err(Error::Failed(format!(
            "{parent_path} has a disk of {has} bytes and {path} one of {wants}: a parent has the size of its child"
        )));
    }
    let (has, wants) = (parent.logical_sector().bytes(), child.logical_sector().bytes());
    if has != wants {
        return Err(Error::Failed(format!(
            "{parent_path} has sectors of {has} bytes and {path} of {wants}: a parent has the sectors of its child"
        )));
    }
    Ok(())
}

/// The path of the parent that the child has now, opened with all its parents and found right.
fn old_parent(child: &Path) -> Result<std::path::PathBuf, OpenError> {
    let chain = Opener::anywhere(Locking::Hold).open_chain(child, Access::ReadOnly)?;
    let parent = chain.layers().get(1).unwrap_or(chain.leaf());
    Ok(parent.file().path().to_owned())
}

/// True when the old parent cannot be there: nothing has its place, or another image has.
fn is_elsewhere(error: &OpenError) -> bool {
    matches!(
        error,
        OpenError::ParentNotFound { .. } | OpenError::ParentId { .. } | OpenError::ParentKind { .. }
    )
}

/// Compares two parents over what the child does not hold; copies what differs into the child, or refuses.
fn compare(child: &Path, old: &Path, new: &Path, copy: bool, watch: &dyn Watch) -> Result<u64, Error> {
    let (mut at, mut copied) = (0, 0);
    loop {
        let most = if copy { ROUND_RANGES } else { 1 };
        let (ranges, next) = differences(child, [old, new], at, most, watch)?;
        if let (Some((start, _)), false) = (ranges.first(), copy) {
            let (child, old, new) = (child.display(), old.display(), new.display());
            return Err(Error::Failed(format!(
                "{old} and {new} differ at byte {start}, which {child} takes from its parent: with --copy what differs \
                 is copied into the child first"
            )));
        }
        copied += store(child, old, &ranges, watch)?;
        match next {
            Some(next) => at = next,
            None => return Ok(copied),
        }
    }
}

/// The ranges, from byte `from` on, that the child does not hold and in which the two parents differ; and where to go on,
/// when they are more than `most`.
fn differences(
    child: &Path,
    [old, new]: [&Path; 2],
    from: u64,
    most: usize,
    watch: &dyn Watch,
) -> Result<Round, Error> {
    let mut opener = Opener::anywhere(Locking::Hold);
    let leaf = opener.open_leaf(child, Access::ReadOnly)?;
    let old = ChainRuns::new(opener.open_chain(old, Access::ReadOnly)?)?;
    let new = ChainRuns::new(opener.open_chain(new, Access::ReadOnly)?)?;
    let mut comparison = Comparison::new(old, new);
    let mut runs = ChainRuns::alone(leaf)?;
    runs.skip_to(from);
    let (mut ranges, mut joined, mut next) = (Vec::new(), Joined::default(), None);
    while let Some(run) = runs.next()?.filter(|_| next.is_none()) {
        if run.depth().is_none() {
            comparison.each_difference(run.start, run.end(), &|at| watch.at(at), &mut |start, len| {
                ranges.extend(joined.push(start, len));
                let full = ranges.len() + 1 >= most;
                if full {
                    next = Some(start + len);
                }
                Ok(!full)
            })?;
        }
        watch.at(run.end());
    }
    ranges.extend(joined.finish());
    Ok((ranges, next))
}

/// Writes what the old parent reads in these ranges into the child, which relies on it there.
fn store(child: &Path, old: &Path, ranges: &[(u64, u64)], watch: &dyn Watch) -> Result<u64, Error> {
    if ranges.is_empty() {
        return Ok(0);
    }
    let mut opener = Opener::anywhere(Locking::Hold);
    let mut chain: OpenedChain = opener.open_chain(child, Access::Writable)?;
    // What is stored reads as it did: children of the child know it still.
    chain.keep_content_id();
    let mut source = Cursor::new(ChainRuns::new(opener.open_chain(old, Access::ReadOnly)?)?);
    let mut writer = ChainWriter::new(chain, watch)?;
    let mut bytes = 0;
    for (start, len) in ranges {
        let (mut at, end) = (*start, start + len);
        while at < end {
            let run = source.run_at(at, end)?;
            writer.store(&run)?;
            at = run.end();
        }
        bytes += len;
        watch.at(end);
    }
    writer.close()?;
    Ok(bytes)
}
