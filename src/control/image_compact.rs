//! `goldrush image compact`: the same content in a smaller file.
//!
//! Knows which blocks nobody needs. Does not know how a file is made smaller (`vhd::compact`,
//! `vhdx::compact`).

use std::io;
use std::path::Path;

use serde::Serialize;

use super::block_io::ChainReader;
use super::children::refuse_with_children;
use super::cli::CompactArgs;
use super::edit_file::{dig_holes, is_zero, run_stages};
use super::error::{Error, print};
use super::file::{Access, Locking, OpenedFile};
use super::new_image::write_ids;
use super::open_image::{OpenedChain, OpenedLayer, Opener};
use super::progress::Progress;
use super::size::human;
use super::watch::Watch;
use crate::plan::CompactPlan;
use crate::units::{BlockIndex, ByteOffset, SECTOR_BYTES};
use crate::vhd::{DiskType, VhdImage};
use crate::vhdx::{self, VhdxImage};

/// Bytes compared at once.
const PIECE_BYTES: u64 = 256 << 10;

#[derive(Debug, Serialize)]
struct CompactReport {
    path: String,
    done: bool,
    freed_blocks: u64,
    moved_blocks: u64,
    file_size_before: u64,
    file_size_after: u64,
    disk_usage_before: Option<u64>,
    disk_usage_after: Option<u64>,
}

/// Runs the command.
pub(super) fn run(args: &CompactArgs) -> Result<(), Error> {
    let path = &args.path;
    let access = if args.dry_run { Access::ReadOnly } else { Access::Writable };
    let (chain, plan) = planned(path, access)?;
    let file = chain.leaf().file().clone();
    let before = file.allocated().ok();
    if !args.dry_run {
        let copies = plan.stages.iter().flat_map(|stage| &stage.copies).map(|copy| copy.len).sum();
        let progress = Progress::new("moving blocks", path, copies);
        apply(path, &file, &plan, &progress)?;
        progress.finish();
    }
    let report = CompactReport {
        path: path.display().to_string(),
        done: !args.dry_run,
        freed_blocks: plan.freed_blocks,
        moved_blocks: plan.moved_blocks,
        file_size_before: file.len(),
        file_size_after: plan.len,
        disk_usage_before: before,
        disk_usage_after: file.allocated().ok().filter(|_| !args.dry_run),
    };
    print(|out| write(out, &report, args.json))
}

/// Compacts the image at `path`.
pub(super) fn compact(path: &Path, watch: &dyn Watch) -> Result<(), Error> {
    let (chain, plan) = planned(path, Access::Writable)?;
    apply(path, chain.leaf().file(), &plan, watch)
}

/// The image with its parents, open and locked, and what there is to do.
fn planned(path: &Path, access: Access) -> Result<(OpenedChain, CompactPlan), Error> {
    let mut opener = Opener::anywhere(Locking::Hold);
    let chain = opener.open_chain(path, access)?;
    let file = chain.leaf().file();
    if file.is_block_device() {
        return Err(Error::Failed(format!(
            "{} is a block device: only files become smaller",
            path.display()
        )));
    }
    let plan = match (chain.leaf().image(), chain.leaf().vhdx()) {
        (Some(image), _) => plan(path, &chain, image, &mut opener)?,
        (None, Some(image)) => plan_vhdx(path, &chain, image, &mut opener)?,
        (None, None) => CompactPlan { len: file.len(), ..CompactPlan::default() },
    };
    Ok((chain, plan))
}

fn plan(
    path: &Path,
    chain: &OpenedChain,
    image: &VhdImage,
    opener: &mut Opener,
) -> Result<CompactPlan, Error> {
    if image.needs_repair() {
        return Err(Error::Failed(format!(
            "{} needs repair first: run goldrush image check --repair",
            path.display()
        )));
    }
    if image.saved_state() {
        return Err(Error::Failed(format!(
            "{} holds a saved state, which forbids compacting: start and shut down the machine that saved it first",
            path.display()
        )));
    }
    refuse_with_children(path, image.unique_id())?;
    let unneeded = match image.disk_type() {
        DiskType::Fixed => Vec::new(),
        DiskType::Dynamic => zero_blocks(path, chain.leaf(), &image.allocated_blocks())?,
        DiskType::Differencing => same_as_parent(path, chain, &image.allocated_blocks(), opener)?,
    };
    Ok(image.compact(chain.leaf().file().len(), &unneeded))
}

fn plan_vhdx(
    path: &Path,
    chain: &OpenedChain,
    image: &VhdxImage,
    opener: &mut Opener,
) -> Result<CompactPlan, Error> {
    if image.needs_replay() {
        return Err(Error::Failed(format!(
            "{} has changes in its log that a crash left: leave --dry-run out, or run goldrush image check --repair first",
            path.display()
        )));
    }
    refuse_with_children(path, image.data_write_guid())?;
    let unneeded = match image.disk_type() {
        vhdx::DiskType::Fixed => Vec::new(),
        vhdx::DiskType::Dynamic => zero_blocks(path, chain.leaf(), &image.allocated_blocks())?,
        vhdx::DiskType::Differencing => same_as_parent(path, chain, &image.allocated_blocks(), opener)?,
    };
    Ok(image.compact(file_len(chain.leaf().file())?, &unneeded, write_ids()))
}

/// The length by now: what was in a log may have made the file longer.
fn file_len(file: &OpenedFile) -> Result<u64, Error> {
    let metadata = file.file().metadata();
    Ok(metadata.map_err(Error::io(file.path(), "looking at the file"))?.len())
}

/// A block, and where its data lies in the file.
type Block = (BlockIndex, ByteOffset);

/// Blocks of a dynamic disk that hold nothing but zeros.
fn zero_blocks(path: &Path, leaf: &OpenedLayer, blocks: &[Block]) -> Result<Vec<BlockIndex>, Error> {
    let file = leaf.file();
    let block_size = u64::from(leaf.block_size().unwrap_or(0));
    let progress = Progress::new("looking for zeros", path, blocks.len() as u64 * block_size);
    let mut zero = Vec::new();
    for (index, (block, data)) in blocks.iter().enumerate() {
        let start = u64::from(block.0) * block_size;
        let used = block_size.min(leaf.sectors().bytes().0.saturating_sub(start));
        if is_zero(file, data.0, data.0 + used).map_err(Error::io(path, "reading"))? {
            zero.push(*block);
        }
        progress.set((index as u64 + 1) * block_size);
    }
    progress.finish();
    Ok(zero)
}

/// Blocks of a child that read as the parent does: only these may go, whatever is in them. Zeros over something else
/// must stay.
fn same_as_parent(
    path: &Path,
    chain: &OpenedChain,
    blocks: &[Block],
    opener: &mut Opener,
) -> Result<Vec<BlockIndex>, Error> {
    let Some(parent) = chain.layers().get(1) else { return Ok(Vec::new()) };
    let parent = opener.open_chain(parent.file().path(), Access::ReadOnly)?;
    // The child a second time, for reading: the lock is held by the first.
    let child = Opener::anywhere(Locking::Ignore).open_chain(path, Access::ReadOnly)?;
    let (mut child, mut parent) = (ChainReader::new(child)?, ChainReader::new(parent)?);
    let block_size = u64::from(chain.leaf().block_size().unwrap_or(0));
    let disk = chain.sectors().bytes().0;
    let progress = Progress::new("comparing with the parent", path, blocks.len() as u64 * block_size);
    let mut same = Vec::new();
    for (index, (block, _)) in blocks.iter().enumerate() {
        let start = u64::from(block.0) * block_size;
        if reads_alike(&mut child, &mut parent, start, (start + block_size).min(disk))? {
            same.push(*block);
        }
        progress.set((index as u64 + 1) * block_size);
    }
    progress.finish();
    Ok(same)
}

fn reads_alike(a: &mut ChainReader, b: &mut ChainReader, start: u64, end: u64) -> Result<bool, Error> {
    let (mut left, mut right) = (vec![0; PIECE_BYTES as usize], vec![0; PIECE_BYTES as usize]);
    let mut at = start;
    while at < end {
        let len = PIECE_BYTES.min(end - at);
        let (left, right) = (&mut left[..len as usize], &mut right[..len as usize]);
        a.read(at / SECTOR_BYTES, left)?;
        b.read(at / SECTOR_BYTES, right)?;
        if left != right {
            return Ok(false);
        }
        at += len;
    }
    Ok(true)
}

fn apply(path: &Path, file: &OpenedFile, plan: &CompactPlan, watch: &dyn Watch) -> Result<(), Error> {
    let mut copied = 0;
    for stage in &plan.stages {
        watch.before_change()?;
        let progress = |at| watch.at(copied + at);
        run_stages(file.file(), core::slice::from_ref(stage), &progress)
            .map_err(Error::io(path, "compacting"))?;
        copied += stage.copies.iter().map(|copy| copy.len).sum::<u64>();
    }
    let progress = Progress::new("looking for zeros", path, plan.len);
    dig_holes(file, plan.len, &|at| progress.set(at)).map_err(Error::io(path, "making holes"))?;
    progress.finish();
    file.file().sync_all().map_err(Error::io(path, "flushing"))
}

fn write(out: &mut dyn io::Write, report: &CompactReport, json: bool) -> io::Result<()> {
    if json {
        serde_json::to_writer_pretty(&mut *out, report)?;
        return writeln!(out);
    }
    let CompactReport { path, freed_blocks, moved_blocks, file_size_before, file_size_after, .. } = report;
    let would = if report.done { "" } else { "would be " };
    let (before, after) = (human(*file_size_before), human(*file_size_after));
    writeln!(
        out,
        "{path}: {would}{after} instead of {before}; {freed_blocks} blocks {would}freed, {moved_blocks} moved"
    )?;
    match (report.disk_usage_before, report.disk_usage_after) {
        (Some(before), Some(after)) => {
            writeln!(out, "{path}: {} on the file system, was {}", human(after), human(before))
        }
        _ => Ok(()),
    }
}
