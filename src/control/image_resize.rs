//! `goldrush image resize`: a larger disk, or a smaller one where nothing is lost.
//!
//! Also the part of it that a running server does (`server::resize`), which only makes disks larger.
//!
//! Knows who may be resized and that what is given up is zero. Does not know the order of the steps (`vhd::resize`,
//! `vhdx::resize`).

use serde::Serialize;

use super::children::refuse_with_children;
use super::cli::ResizeArgs;
use super::edit_file::{is_zero, run_stages};
use super::error::{Error, print};
use super::file::{Access, Locking, OpenedFile};
use super::image_format::replay_log;
use super::new_image::write_ids;
use super::open_image::{Format, OpenError, detect};
use super::size::{Size, human};
use crate::plan::Stage;
use crate::units::{BlockIndex, ByteOffset, SECTOR_BYTES, SectorCount};
use crate::vhd::{self, HEADER_BYTES, OpenMode, VhdImage};
use crate::vhdx;

#[derive(Debug, Serialize)]
struct ResizeReport {
    path: String,
    virtual_size_before: u64,
    virtual_size: u64,
    file_size: u64,
}

/// Runs the command.
pub(super) fn run(args: &ResizeArgs) -> Result<(), Error> {
    let size = args.size.0;
    if size == 0 || !size.is_multiple_of(SECTOR_BYTES) {
        return Err(Error::Usage(format!("size {size} is no multiple of 512 bytes, or 0")));
    }
    let file = OpenedFile::open(&args.path, Access::Writable, Locking::Hold).map_err(OpenError::from)?;
    if file.is_block_device() {
        return refuse(args, "is a block device: resize the device instead");
    }
    let before = match detect(&file)? {
        Format::Raw => resize_raw(args, &file)?,
        Format::Vhd => resize_vhd(args, &file)?,
        Format::Vhdx => resize_vhdx(args, &file)?,
    };
    let file_size = file.file().metadata().map_err(Error::io(&args.path, "looking at it"))?.len();
    let path = args.path.display().to_string();
    let report = ResizeReport { path, virtual_size_before: before, virtual_size: size, file_size };
    print(|out| {
        if args.json {
            serde_json::to_writer_pretty(&mut *out, &report)?;
            return writeln!(out);
        }
        writeln!(out, "{}: {}, was {}", report.path, human(size), human(before))
    })
}

/// Whether a VHD or VHDX that is being served may grow, as far as can be told before it is closed.
pub(super) fn may_grow(file: &OpenedFile, format: Format, size: u64) -> Result<(), Error> {
    let args = to_grow(file, size);
    match format {
        Format::Vhd => plan_vhd(&args, file).map(drop),
        Format::Raw | Format::Vhdx => Ok(()),
    }
}

/// Makes an image larger that nobody works with; it is locked by this process. The disk had less.
pub(super) fn grow(file: &OpenedFile, format: Format, size: u64) -> Result<(), Error> {
    let args = to_grow(file, size);
    match format {
        Format::Raw => resize_raw(&args, file),
        Format::Vhd => resize_vhd(&args, file),
        Format::Vhdx => resize_vhdx(&args, file),
    }
    .map(drop)
}

fn to_grow(file: &OpenedFile, size: u64) -> ResizeArgs {
    ResizeArgs { path: file.path().to_owned(), size: Size(size), shrink: false, json: false }
}

fn refuse<T>(args: &ResizeArgs, why: &str) -> Result<T, Error> {
    Err(Error::Failed(format!("{} {why}", args.path.display())))
}

/// Refuses to make a disk smaller unasked.
fn consent(args: &ResizeArgs, before: u64) -> Result<(), Error> {
    if args.size.0 >= before || args.shrink {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "{} has {} already: --shrink makes it smaller, if all that it gives up is zero",
        args.path.display(),
        human(before)
    )))
}

/// Refuses to give up anything but zeros.
fn all_zero(args: &ResizeArgs, file: &OpenedFile, ranges: &[(u64, u64)]) -> Result<(), Error> {
    for (start, end) in ranges {
        if !is_zero(file, *start, *end).map_err(Error::io(&args.path, "reading"))? {
            return refuse(
                args,
                &format!(
                    "has data between bytes {start} and {end} of the file, which the smaller disk would not have: \
                     shrink its partitions first, and let the guest discard what it does not use"
                ),
            );
        }
    }
    Ok(())
}

fn resize_raw(args: &ResizeArgs, file: &OpenedFile) -> Result<u64, Error> {
    let before = file.len();
    consent(args, before)?;
    if args.size.0 < before {
        all_zero(args, file, &[(args.size.0, before)])?;
    }
    run_stages(file.file(), &[Stage { set_len: Some(args.size.0), ..Stage::default() }], &|_| {})
        .map_err(Error::io(&args.path, "resizing"))?;
    Ok(before)
}

fn resize_vhd(args: &ResizeArgs, file: &OpenedFile) -> Result<u64, Error> {
    let (image, stages) = plan_vhd(args, file)?;
    let before = image.sectors().bytes().0;
    if args.size.0 < before {
        let ranges = match image.block_size().map(u64::from) {
            None => vec![(args.size.0, before)],
            Some(block_size) => given_up(&image.allocated_blocks(), block_size, args.size.0, before),
        };
        all_zero(args, file, &ranges)?;
    }
    run_stages(file.file(), &stages, &|_| {}).map_err(Error::io(&args.path, "resizing"))?;
    Ok(before)
}

/// The image as it is, and what makes it as large as it should be: nothing where it is.
fn plan_vhd(args: &ResizeArgs, file: &OpenedFile) -> Result<(VhdImage, Vec<Stage>), Error> {
    let image = vhd::open_with(file.len(), OpenMode::ReadOnly, |offset, bytes| file.read_at(offset, bytes));
    let image = image.map_err(|error| Error::Failed(format!("{}: {error}", args.path.display())))?;
    let before = image.sectors().bytes().0;
    if image.needs_repair() {
        return refuse(args, "needs repair first: run goldrush image check --repair");
    }
    consent(args, before)?;
    refuse_with_children(&args.path, image.unique_id())?;
    if args.size.0 == before {
        return Ok((image, Vec::new()));
    }
    let (header, behind) = header_and_behind(args, file, &image)?;
    let refused = |why: vhd::resize::ResizeRefused| Error::Failed(format!("{} {why}", args.path.display()));
    let stages = image.resize(SectorCount(args.size.0 / SECTOR_BYTES), &header, behind).map_err(refused)?;
    Ok((image, stages))
}

fn resize_vhdx(args: &ResizeArgs, file: &OpenedFile) -> Result<u64, Error> {
    let sentence = |error: &dyn std::fmt::Display| Error::Failed(format!("{} {error}", args.path.display()));
    let len = replay_log(file)?;
    let read = |offset, bytes: &mut [u8]| file.read_at(offset, bytes);
    let image = vhdx::open_with(len, OpenMode::Writable, read)
        .map_err(|error| Error::Failed(format!("{}: {error}", args.path.display())))?;
    let before = image.sectors().bytes().0;
    consent(args, before)?;
    refuse_with_children(&args.path, image.data_write_guid())?;
    if args.size.0 == before {
        return Ok(before);
    }
    let sectors = SectorCount(args.size.0 / SECTOR_BYTES);
    let stages = image.resize(sectors, len, write_ids(), read).map_err(|error| sentence(&error))?;
    let (blocks, block_size) = (image.allocated_blocks(), u64::from(image.block_size()));
    all_zero(args, file, &given_up(&blocks, block_size, args.size.0, before))?;
    run_stages(file.file(), &stages, &|_| {}).map_err(Error::io(&args.path, "resizing"))?;
    Ok(before)
}

/// The dynamic disk header, and what begins behind the table.
fn header_and_behind(
    args: &ResizeArgs,
    file: &OpenedFile,
    image: &VhdImage,
) -> Result<([u8; HEADER_BYTES], [u8; 8]), Error> {
    let (mut header, mut behind) = ([0; HEADER_BYTES], [0; 8]);
    if let Some((at, table_end)) = image.header_and_table_end() {
        let read = file.read_at(at, &mut header).and_then(|()| file.read_at(table_end, &mut behind));
        read.map_err(Error::io(&args.path, "reading"))?;
    }
    Ok((header, behind))
}

/// The ranges of the file that hold what a disk of `size` bytes instead of `before` no longer has, of these blocks.
fn given_up(blocks: &[(BlockIndex, ByteOffset)], block_size: u64, size: u64, before: u64) -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    for (block, data) in blocks {
        let start = u64::from(block.0) * block_size;
        let end = (start + block_size).min(before);
        if end > size {
            ranges.push((data.0 + size.saturating_sub(start), data.0 + (end - start)));
        }
    }
    ranges
}
