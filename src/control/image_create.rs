//! `goldrush image create`: a new VHD, or the child of a parent.
//!
//! Knows what an administrator may ask for. Does not know the bytes (`vhd::create`).

use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use uuid::Uuid;

use super::cli::{CreateArgs, DiskKind};
use super::error::{Error, print};
use super::file::{Access, Locking, folder_of};
use super::image_seal::seal_layer;
use super::open_image::{Format, OpenedChain, OpenedLayer, Opener};
use super::seal;
use super::size::{Size, human};
use super::staged::StagedFile;
use crate::units::{SECTOR_BYTES, SectorCount};
use crate::vhd::VhdImage;
use crate::vhd::create::{
    BLOCK_BYTES_DEFAULT, NewDisk, NewImage, NewKind, ParentRef, create, timestamp_from_unix,
};

/// Runs the command.
pub(super) fn run(args: &CreateArgs) -> Result<(), Error> {
    if let Some(parent) = &args.parent {
        let block_size = args.block_size.map(block_bytes).transpose()?;
        let chain = Opener::anywhere(Locking::Hold).open_chain(parent, Access::ReadOnly)?;
        if args.seal && !seal::is_sealed(parent) {
            seal_layer(chain.leaf())?;
        }
        let sectors = create_child_of(&args.path, &chain, block_size)?;
        seal::suggest(parent);
        let (child, parent) = (args.path.display(), parent.display());
        return print(|out| writeln!(out, "{child}: child of {parent}, {}", human(sectors.bytes().0)));
    }
    let Some(size) = args.size else { return Err(Error::Usage("--size or --parent is needed".to_owned())) };
    let disk = new_disk(size, args.kind, args.block_size)?;
    let image = create(&disk).map_err(|error| Error::Usage(error.to_string()))?;
    write_new(&args.path, &image)?;
    print(|out| writeln!(out, "{}: {}", args.path.display(), human(size.0)))
}

/// A new parentless disk of `size` bytes.
pub(super) fn new_disk(
    size: Size,
    kind: Option<DiskKind>,
    block_size: Option<Size>,
) -> Result<NewDisk, Error> {
    if !size.0.is_multiple_of(SECTOR_BYTES) {
        return Err(Error::Usage(format!("size {} is no multiple of 512 bytes", size.0)));
    }
    let kind = match (kind.unwrap_or(DiskKind::Dynamic), block_size) {
        (DiskKind::Fixed, None) => NewKind::Fixed,
        (DiskKind::Fixed, Some(_)) => {
            return Err(Error::Usage(
                "--block-size is for dynamic disks: a fixed one has no blocks".to_owned(),
            ));
        }
        (DiskKind::Dynamic, block_size) => {
            let block_size = block_size.map(block_bytes).transpose()?.unwrap_or(BLOCK_BYTES_DEFAULT);
            NewKind::Dynamic { block_size }
        }
    };
    let sectors = SectorCount(size.0 / SECTOR_BYTES);
    Ok(NewDisk { kind, sectors, unique_id: Uuid::new_v4(), timestamp: now() })
}

fn block_bytes(size: Size) -> Result<u32, Error> {
    u32::try_from(size.0).map_err(|_| Error::Usage(format!("block size {size} is above 32M")))
}

/// The present as a VHD time stamp.
pub(super) fn now() -> u32 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    timestamp_from_unix(since.map_or(0, |since| since.as_secs()))
}

/// Creates an empty child of `parent` at `path` and returns the size of its disk.
pub(super) fn create_child_of(
    path: &Path,
    parent: &OpenedChain,
    block_size: Option<u32>,
) -> Result<SectorCount, Error> {
    let leaf = parent.leaf();
    let reference = parent_ref(path, leaf)?;
    let own = leaf.image().and_then(VhdImage::block_size);
    let block_size = block_size.or(own).unwrap_or(BLOCK_BYTES_DEFAULT);
    let disk = NewDisk {
        kind: NewKind::Differencing { block_size, parent: reference },
        sectors: leaf.sectors(),
        unique_id: Uuid::new_v4(),
        timestamp: now(),
    };
    let image = create(&disk).map_err(|error| Error::Usage(error.to_string()))?;
    write_new(path, &image)?;
    Ok(disk.sectors)
}

/// What a child at `path` says of its parent.
pub(super) fn parent_ref(path: &Path, parent: &OpenedLayer) -> Result<ParentRef, Error> {
    let (Format::Vhd, Some(image)) = (parent.format(), parent.image()) else {
        let path = parent.file().path().display();
        return Err(Error::Failed(format!(
            "{path} is a {}, and only a VHD can be a parent: run goldrush image convert {path} golden.vhd",
            parent.format().title()
        )));
    };
    Ok(ParentRef {
        unique_id: image.unique_id(),
        timestamp: timestamp_from_unix(parent.file().modified()),
        relative: relative_path(path, parent.file().path())?,
        absolute: None,
    })
}

/// From the folder of `child`, which need not exist itself, to `parent`, over real folders.
fn relative_path(child: &Path, parent: &Path) -> Result<String, Error> {
    let folder =
        folder_of(child).canonicalize().map_err(Error::io(folder_of(child), "resolving the folder"))?;
    let parent = parent.canonicalize().map_err(Error::io(parent, "resolving the path"))?;
    let common = folder.components().zip(parent.components()).take_while(|(a, b)| a == b).count();
    let mut relative: PathBuf = folder.components().skip(common).map(|_| Component::ParentDir).collect();
    relative.extend(parent.components().skip(common));
    match relative.to_str() {
        Some(text) if !text.contains('\\') => Ok(text.to_owned()),
        _ => Err(Error::Failed(format!(
            "{}: the way to this parent holds a backslash or is not UTF-8, which a VHD cannot name: rename it",
            parent.display()
        ))),
    }
}

/// Writes a new image under a name that must be free.
fn write_new(path: &Path, image: &NewImage) -> Result<(), Error> {
    let staged = StagedFile::create(path)?;
    write_image(&staged, image)?;
    staged.publish(false)
}

/// The parts of a new image, into an empty file.
pub(super) fn write_image(staged: &StagedFile, image: &NewImage) -> Result<(), Error> {
    let path = staged.destination();
    staged.file.set_len(image.len).map_err(Error::io(path, "setting the length"))?;
    for (offset, bytes) in &image.writes {
        staged.file.write_all_at(bytes, *offset).map_err(Error::io(path, "writing"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_a_parent_is_relative_over_real_folders() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        std::fs::create_dir_all(at("a/b")).unwrap();
        std::fs::write(at("a/golden.vhd"), "").unwrap();
        std::os::unix::fs::symlink(at("a/b"), at("link")).unwrap();
        let way = |child: &str| relative_path(&at(child), &at("a/golden.vhd")).unwrap();
        assert_eq!(way("a/child.vhd"), "golden.vhd");
        assert_eq!(way("child.vhd"), "a/golden.vhd");
        assert_eq!(way("a/b/child.vhd"), "../golden.vhd");
        assert_eq!(way("link/child.vhd"), "../golden.vhd");
        assert!(relative_path(&at("none/child.vhd"), &at("a/golden.vhd")).is_err());
    }
}
