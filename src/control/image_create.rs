//! `goldrush image create`: a new VHD or VHDX, or the child of a parent.
//!
//! Knows what an administrator may ask for. Does not know what goes into the file (`new_image`).

use std::path::Path;

use serde::Serialize;

use super::cli::{CreateArgs, DiskKind, ImageFormat};
use super::error::{Error, print};
use super::file::{Access, Locking};
use super::image_seal::seal_layer;
use super::new_image::{NewDisk, Wanted, block_bytes, format_of_name};
use super::open_image::{Format, OpenedChain, Opener};
use super::seal;
use super::size::human;
use super::staged::StagedFile;
use crate::units::SectorCount;

/// Runs the command.
pub(super) fn run(args: &CreateArgs) -> Result<(), Error> {
    let format = format(args)?;
    if let Some(parent) = &args.parent {
        let block_size = args.block_size.map(block_bytes).transpose()?;
        let chain = Opener::anywhere(Locking::Hold).open_chain(parent, Access::ReadOnly)?;
        refuse_other_format(args, format, &chain)?;
        if args.seal && !seal::is_sealed(parent) {
            seal_layer(chain.leaf())?;
        }
        let sectors = create_child_of(&args.path, &chain, block_size)?;
        seal::suggest(parent);
        return say_done(args, chain.leaf().format().name(), sectors.bytes().0);
    }
    let Some(size) = args.size else { return Err(Error::Usage("--size or --parent is needed".to_owned())) };
    let wanted = Wanted {
        size,
        kind: args.kind.unwrap_or(DiskKind::Dynamic),
        block_size: args.block_size,
        logical_sector: args.logical_sector_size.map(|sector| sector.0),
    };
    let disk = match format {
        ImageFormat::Vhdx => NewDisk::vhdx(&wanted)?,
        ImageFormat::Vhd | ImageFormat::Raw => NewDisk::vhd(&wanted)?,
    };
    write_new(&args.path, &disk)?;
    say_done(args, format.name(), size.0)
}

#[derive(Debug, Serialize)]
struct CreateReport {
    path: String,
    format: &'static str,
    virtual_size: u64,
    parent: Option<String>,
}

fn say_done(args: &CreateArgs, format: &'static str, size: u64) -> Result<(), Error> {
    let parent = args.parent.as_ref().map(|parent| parent.display().to_string());
    let path = args.path.display().to_string();
    let report = CreateReport { path, format, virtual_size: size, parent };
    print(|out| {
        if args.json {
            serde_json::to_writer_pretty(&mut *out, &report)?;
            return writeln!(out);
        }
        match &report.parent {
            Some(parent) => writeln!(out, "{}: child of {parent}, {}", report.path, human(size)),
            None => writeln!(out, "{}: {}", report.path, human(size)),
        }
    })
}

/// The format asked for, else the one of the name; a name that asks for none gets a VHD.
fn format(args: &CreateArgs) -> Result<ImageFormat, Error> {
    let by_name = format_of_name(&args.path);
    match args.format {
        Some(ImageFormat::Raw) => Err(Error::Usage(
            "a raw image is nothing but its data: create it with truncate, such as truncate -s 40G disk.raw"
                .to_owned(),
        )),
        Some(format) if by_name != ImageFormat::Raw && by_name != format => Err(Error::Usage(format!(
            "{} is called otherwise than the format asked for, and would be taken for what it is called",
            args.path.display()
        ))),
        Some(ImageFormat::Vhdx) if by_name != ImageFormat::Vhdx => Err(Error::Usage(format!(
            "{}: a VHDX is told by its name: let it end in .vhdx",
            args.path.display()
        ))),
        Some(format) => Ok(format),
        None if by_name == ImageFormat::Vhdx => Ok(ImageFormat::Vhdx),
        None => Ok(ImageFormat::Vhd),
    }
}

/// A child has the format of its parent.
fn refuse_other_format(args: &CreateArgs, format: ImageFormat, parent: &OpenedChain) -> Result<(), Error> {
    let leaf = parent.leaf();
    let asked = args.format.is_some() || format_of_name(&args.path) != ImageFormat::Raw;
    let fits = match leaf.format() {
        Format::Raw => true,
        Format::Vhd => format == ImageFormat::Vhd,
        // A VHDX is told by its name.
        Format::Vhdx => format == ImageFormat::Vhdx,
    };
    let told = asked || leaf.format() == Format::Vhdx;
    if told && !fits {
        return Err(Error::Usage(format!(
            "{}: the parent {} is a {}, and so must its child be: let its name end in .{}",
            args.path.display(),
            leaf.file().path().display(),
            leaf.format().title(),
            leaf.format().name()
        )));
    }
    let sector = args.logical_sector_size.map(|sector| sector.0);
    if sector.is_some_and(|sector| sector != leaf.logical_sector()) {
        return Err(Error::Usage("a child has the logical sector of its parent".to_owned()));
    }
    Ok(())
}

/// Creates an empty child of `parent` at `path` and returns the size of its disk.
pub(super) fn create_child_of(
    path: &Path,
    parent: &OpenedChain,
    block_size: Option<u32>,
) -> Result<SectorCount, Error> {
    let disk = NewDisk::child_of(path, parent.leaf(), block_size)?;
    write_new(path, &disk)?;
    Ok(disk.sectors())
}

/// Writes a new image under a name that must be free.
pub(super) fn write_new(path: &Path, disk: &NewDisk) -> Result<(), Error> {
    let image = disk.create()?;
    let staged = StagedFile::create(path)?;
    image.write(&staged)?;
    staged.publish(false)
}
