//! `goldrush image convert`: the content of one image in another format.
//!
//! Knows formats by name and when a destination may be replaced. Does not know how bytes are moved (`copy`).

use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use serde::Serialize;

use super::block_io::{ChainReader, Pieces};
use super::cli::{ConvertArgs, DiskKind, ImageFormat, SourceFormat};
use super::copy::{self, Sink};
use super::error::{Error, print};
use super::file::{Access, Locking, OpenedFile, identity_of};
use super::foreign::read_into;
use super::image_format::{ForeignFormat, Format};
use super::new_image::{NewDisk, Wanted, format_of_name};
use super::open_image::{OpenError, OpenedChain, Opener};
use super::progress::Progress;
use super::size::{Size, human};
use super::staged::{StagedFile, exists};
use crate::units::BlockSize;
use crate::vhd::build::Builder;
use crate::vhd::create::NewKind;
use crate::vhdx;

/// Runs the command.
pub(super) fn run(args: &ConvertArgs) -> Result<(), Error> {
    let format = format(args)?;
    if let Some(foreign) = foreign(args) {
        return run_foreign(args, format, foreign);
    }
    let known = args.source_format.and_then(SourceFormat::known);
    let chain = Opener::anywhere(Locking::Hold).open_chain_as(&args.source, Access::ReadOnly, known)?;
    check_destination(&args.destination, args.force, &chain)?;
    let staged = StagedFile::create(&args.destination)?;
    copy_chain(args, format, chain, staged)
}

/// Copies the disk of `chain` into the staged file, and gives it its name.
fn copy_chain(
    args: &ConvertArgs,
    format: ImageFormat,
    chain: OpenedChain,
    staged: StagedFile,
) -> Result<(), Error> {
    let size = chain.sectors().bytes().0;
    let leaf = chain.leaf();
    let sector = (leaf.format() == Format::Vhdx).then_some(leaf.logical_sector());
    let mut sink = sink(&staged, args, format, size, sector)?;
    let progress = Progress::new("converting", &args.source, size);
    let mut pieces = Pieces::new(ChainReader::new(chain)?);
    copy::run(&mut pieces, &mut sink, &staged.file, &args.destination, &|at| progress.set(at))?;
    finish(&staged, sink, &args.destination)?;
    staged.publish(args.force)?;
    progress.finish();
    say_done(args, format, size)
}

#[derive(Debug, Serialize)]
struct ConvertReport {
    path: String,
    format: &'static str,
    virtual_size: u64,
    file_size: u64,
    /// Bytes on the file system.
    disk_usage: u64,
}

fn say_done(args: &ConvertArgs, format: ImageFormat, size: u64) -> Result<(), Error> {
    let path = &args.destination;
    let metadata = std::fs::metadata(path).map_err(Error::io(path, "looking at it"))?;
    let report = ConvertReport {
        path: path.display().to_string(),
        format: format.name(),
        virtual_size: size,
        file_size: metadata.len(),
        disk_usage: metadata.blocks() * 512,
    };
    print(|out| {
        if args.json {
            serde_json::to_writer_pretty(&mut *out, &report)?;
            return writeln!(out);
        }
        writeln!(out, "{}: {}, {}", report.path, report.format, human(size))
    })
}

/// The format of another program's image: as told, or by the name.
fn foreign(args: &ConvertArgs) -> Option<ForeignFormat> {
    match args.source_format {
        Some(format) => format.foreign(),
        None => ForeignFormat::of_name(&args.source),
    }
}

/// Through a raw file beside the destination, which has no name when it has served.
fn run_foreign(args: &ConvertArgs, format: ImageFormat, foreign: ForeignFormat) -> Result<(), Error> {
    let path = &args.destination;
    if path.try_exists().map_err(Error::io(path, "looking at the destination"))? {
        if !args.force {
            return Err(exists(path));
        }
        refuse_what_is_used(path)?;
    }
    let raw = StagedFile::create(path)?;
    let size = read_into(&raw, &args.source, foreign)?;
    if format == ImageFormat::Raw {
        raw.publish(args.force)?;
        return say_done(args, format, size);
    }
    // The lock is our own: it tells others that the file is being written.
    let chain = Opener::anywhere(Locking::Ignore).open_chain_as(
        raw.temporary(),
        Access::ReadOnly,
        Some(Format::Raw),
    )?;
    let staged = StagedFile::create(path)?;
    copy_chain(args, format, chain, staged)
}

/// The format asked for, else the one the name asks for.
fn format(args: &ConvertArgs) -> Result<ImageFormat, Error> {
    let by_name = format_of_name(&args.destination);
    let format = args.format.unwrap_or(by_name);
    let unwritten = ForeignFormat::of_name(&args.destination).map(ForeignFormat::name);
    if let Some(name) = unwritten {
        return Err(Error::Usage(format!(
            "{} would be taken for a {name} file by its name, and those are not written: end the name in .vhd, .vhdx or .raw",
            args.destination.display()
        )));
    }
    if format == ImageFormat::Raw && (args.kind.is_some() || args.block_size.is_some()) {
        return Err(Error::Usage(
            "--type and --block-size are for VHDs: add --format vhd or vhdx".to_owned(),
        ));
    }
    if format != ImageFormat::Vhdx && args.logical_sector_size.is_some() {
        return Err(Error::Usage("--logical-sector-size is for VHDX images: add --format vhdx".to_owned()));
    }
    let path = args.destination.display();
    match (format, by_name) {
        (ImageFormat::Vhdx, ImageFormat::Raw) => {
            Err(Error::Usage(format!("{path}: a VHDX is told by its name: let it end in .vhdx")))
        }
        (_, ImageFormat::Raw) => Ok(format),
        (ImageFormat::Raw, taken) => Err(Error::Usage(format!(
            "{path} would be taken for a {} by its name: give a raw image another ending",
            if taken == ImageFormat::Vhdx { "VHDX" } else { "VHD" }
        ))),
        _ if format != by_name => Err(Error::Usage(format!(
            "{path} would be taken for another format by its name: give it another ending"
        ))),
        _ => Ok(format),
    }
}

/// A destination is new, or a regular file that nobody uses and that the source does not need.
fn check_destination(path: &Path, force: bool, source: &OpenedChain) -> Result<(), Error> {
    let identity = match identity_of(path) {
        Ok(identity) => identity,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(path, "looking at the destination")(error)),
    };
    if !force {
        return Err(exists(path));
    }
    if source.layers().iter().any(|layer| layer.file().identity() == identity) {
        return Err(Error::Failed(format!(
            "{} belongs to the source and cannot be its destination: choose another name",
            path.display()
        )));
    }
    refuse_what_is_used(path)
}

/// A file that is to be replaced is a regular one that nobody uses.
fn refuse_what_is_used(path: &Path) -> Result<(), Error> {
    let old = OpenedFile::open_as_it_is(path, Access::Writable, Locking::Hold).map_err(OpenError::from)?;
    if old.is_block_device() {
        return Err(Error::Failed(format!(
            "{} is a block device: choose the name of a file",
            path.display()
        )));
    }
    Ok(())
}

/// An empty destination of the right kind, and its writer.
///
/// `sector` is the source's, where it knows one: tables of partitions count in it.
fn sink(
    staged: &StagedFile,
    args: &ConvertArgs,
    format: ImageFormat,
    size: u64,
    sector: Option<BlockSize>,
) -> Result<Sink, Error> {
    if format == ImageFormat::Raw {
        staged.file.set_len(size).map_err(Error::io(&args.destination, "setting the length"))?;
        return Ok(Sink::Flat);
    }
    let mut wanted = Wanted {
        size: Size(size),
        kind: args.kind.unwrap_or(DiskKind::Dynamic),
        block_size: args.block_size,
        logical_sector: args.logical_sector_size.map(|sector| sector.0),
    };
    let disk = if format == ImageFormat::Vhdx {
        wanted.logical_sector = wanted.logical_sector.or(sector);
        NewDisk::vhdx(&wanted)?
    } else {
        NewDisk::vhd(&wanted)?
    };
    match &disk {
        NewDisk::Vhd(fixed) if fixed.kind == NewKind::Fixed => {
            disk.create()?.write(staged)?;
            Ok(Sink::Flat)
        }
        NewDisk::Vhd(dynamic) => {
            let builder = Builder::new(dynamic).map_err(|error| Error::Usage(error.to_string()))?;
            Ok(Sink::Blocks(builder))
        }
        NewDisk::Vhdx(disk) => {
            let builder = vhdx::build::Builder::new(disk).map_err(|error| Error::Usage(error.to_string()))?;
            Ok(Sink::VhdxBlocks(builder))
        }
    }
}

/// What a disk in blocks still lacks when all its blocks are there.
pub(super) fn finish(staged: &StagedFile, sink: Sink, path: &Path) -> Result<(), Error> {
    let (len, pieces) = match sink {
        Sink::Flat => return Ok(()),
        Sink::Blocks(builder) => builder.finish(),
        Sink::VhdxBlocks(builder) => builder.finish(),
    };
    staged.file.set_len(len).map_err(Error::io(path, "setting the length"))?;
    for (offset, bytes) in pieces {
        staged.file.write_all_at(&bytes, offset).map_err(Error::io(path, "writing"))?;
    }
    Ok(())
}
