//! New images of either format that writes blocks: what was asked for, in the words of the format.
//!
//! Knows which format a name asks for, and what goes with which. Does not know the bytes (`vhd::create`,
//! `vhdx::create`).

use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use uuid::Uuid;

use super::cli::{DiskKind, ImageFormat};
use super::error::Error;
use super::file::folder_of;
use super::open_image::OpenedLayer;
use super::size::Size;
use super::staged::StagedFile;
use crate::units::{BlockSize, SECTOR_BYTES, SectorCount};
use crate::vhd::VhdImage;
use crate::vhd::create as vhd;
use crate::vhdx::WriteIds;
use crate::vhdx::create as vhdx;
use crate::vhdx::parent_locator::ParentPaths;

/// What a name asks for: `.vhd`, `.vhdx` (or `.avhdx`), else raw.
pub(super) fn format_of_name(path: &Path) -> ImageFormat {
    let named = |name: &str| path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case(name));
    if named("vhdx") || named("avhdx") {
        ImageFormat::Vhdx
    } else if named("vhd") {
        ImageFormat::Vhd
    } else {
        ImageFormat::Raw
    }
}

/// What was asked for of a new disk without a parent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) size: Size,
    pub(super) kind: DiskKind,
    pub(super) block_size: Option<Size>,
    /// VHDX only.
    pub(super) logical_sector: Option<BlockSize>,
}

/// A new disk in its format.
#[derive(Clone, Debug)]
pub(super) enum NewDisk {
    Vhd(vhd::NewDisk),
    Vhdx(vhdx::NewDisk),
}

/// Bytes and where in the file they belong, and the length of that file.
pub(super) struct NewImage {
    pub(super) len: u64,
    pub(super) writes: Vec<(u64, Vec<u8>)>,
}

impl NewDisk {
    pub(super) fn vhd(wanted: &Wanted) -> Result<Self, Error> {
        if !wanted.size.0.is_multiple_of(SECTOR_BYTES) {
            return Err(Error::Usage(format!("size {} is no multiple of 512 bytes", wanted.size)));
        }
        if wanted.logical_sector.is_some_and(|sector| sector != BlockSize::B512) {
            return Err(Error::Usage(
                "--logical-sector-size is for VHDX images: a VHD has sectors of 512 bytes".to_owned(),
            ));
        }
        let kind = match (wanted.kind, wanted.block_size) {
            (DiskKind::Fixed, None) => vhd::NewKind::Fixed,
            (DiskKind::Fixed, Some(_)) => {
                return Err(Error::Usage(
                    "--block-size is for dynamic disks: a fixed one has no blocks".to_owned(),
                ));
            }
            (DiskKind::Dynamic, size) => vhd::NewKind::Dynamic {
                block_size: size.map(block_bytes).transpose()?.unwrap_or(vhd::BLOCK_BYTES_DEFAULT),
            },
        };
        let sectors = SectorCount(wanted.size.0 / SECTOR_BYTES);
        Ok(Self::Vhd(vhd::NewDisk { kind, sectors, unique_id: Uuid::new_v4(), timestamp: now() }))
    }

    pub(super) fn vhdx(wanted: &Wanted) -> Result<Self, Error> {
        let logical_sector = wanted.logical_sector.unwrap_or_default();
        if !wanted.size.0.is_multiple_of(u64::from(logical_sector.bytes())) {
            return Err(Error::Usage(format!(
                "size {} is no multiple of the logical sector, {} bytes",
                wanted.size,
                logical_sector.bytes()
            )));
        }
        let kind = match wanted.kind {
            DiskKind::Fixed => vhdx::NewKind::Fixed,
            DiskKind::Dynamic => vhdx::NewKind::Dynamic,
        };
        let block_size = wanted.block_size.map(block_bytes).transpose()?;
        Ok(Self::Vhdx(vhdx::NewDisk {
            kind,
            sectors: SectorCount(wanted.size.0 / SECTOR_BYTES),
            block_size: block_size.unwrap_or(vhdx::BLOCK_BYTES_DEFAULT),
            logical_sector,
            // What a device of today has; partitions are aligned to it.
            physical_sector: BlockSize::B4096,
            file_write_guid: Uuid::new_v4(),
            data_write_guid: Uuid::new_v4(),
            disk_id: Uuid::new_v4(),
        }))
    }

    /// An empty child of `leaf`, to lie at `path`, in the format of its parent.
    pub(super) fn child_of(path: &Path, leaf: &OpenedLayer, block_size: Option<u32>) -> Result<Self, Error> {
        let parent_path = leaf.file().path();
        if let Some(image) = leaf.image() {
            let reference = vhd_parent(path, leaf, image)?;
            let block_size = block_size.or(image.block_size()).unwrap_or(vhd::BLOCK_BYTES_DEFAULT);
            return Ok(Self::Vhd(vhd::NewDisk {
                kind: vhd::NewKind::Differencing { block_size, parent: reference },
                sectors: leaf.sectors(),
                unique_id: Uuid::new_v4(),
                timestamp: now(),
            }));
        }
        if let Some(image) = leaf.vhdx() {
            let relative = relative_path(path, parent_path)?;
            let reference = vhdx::ParentRef {
                data_write_guid: image.data_write_guid(),
                disk_id: image.disk_id(),
                paths: ParentPaths { relative, volume: None, absolute: None },
            };
            return Ok(Self::Vhdx(vhdx::NewDisk {
                kind: vhdx::NewKind::Differencing(reference),
                sectors: leaf.sectors(),
                block_size: block_size.unwrap_or(vhdx::CHILD_BLOCK_BYTES_DEFAULT),
                logical_sector: image.logical_sector(),
                physical_sector: image.physical_sector(),
                file_write_guid: Uuid::new_v4(),
                data_write_guid: Uuid::new_v4(),
                disk_id: image.disk_id(),
            }));
        }
        let path = parent_path.display();
        Err(Error::Failed(format!(
            "{path} is a {}, and only a VHD or VHDX can be a parent: run goldrush image convert {path} golden.vhd",
            leaf.format().title()
        )))
    }

    /// With a disk of another size: a VHDX's may be larger than its parent's.
    pub(super) fn with_sectors(mut self, wanted: SectorCount) -> Self {
        match &mut self {
            Self::Vhd(disk) => disk.sectors = wanted,
            Self::Vhdx(disk) => disk.sectors = wanted,
        }
        self
    }

    pub(super) fn sectors(&self) -> SectorCount {
        match self {
            Self::Vhd(disk) => disk.sectors,
            Self::Vhdx(disk) => disk.sectors,
        }
    }

    /// The bytes of the file.
    pub(super) fn create(&self) -> Result<NewImage, Error> {
        match self {
            Self::Vhd(disk) => {
                let image = vhd::create(disk).map_err(|error| Error::Usage(error.to_string()))?;
                Ok(NewImage { len: image.len, writes: image.writes })
            }
            Self::Vhdx(disk) => {
                let image = vhdx::create(disk).map_err(|error| Error::Usage(error.to_string()))?;
                Ok(NewImage { len: image.len, writes: image.writes })
            }
        }
    }
}

impl NewImage {
    /// Its parts, into an empty file.
    pub(super) fn write(&self, staged: &StagedFile) -> Result<(), Error> {
        let path = staged.destination();
        staged.file.set_len(self.len).map_err(Error::io(path, "setting the length"))?;
        for (offset, bytes) in &self.writes {
            staged.file.write_all_at(bytes, *offset).map_err(Error::io(path, "writing"))?;
        }
        Ok(())
    }
}

/// What a VHD at `path` says of its parent.
pub(super) fn vhd_parent(
    path: &Path,
    parent: &OpenedLayer,
    image: &VhdImage,
) -> Result<vhd::ParentRef, Error> {
    Ok(vhd::ParentRef {
        unique_id: image.unique_id(),
        timestamp: vhd::timestamp_from_unix(parent.file().modified()),
        relative: relative_path(path, parent.file().path())?,
        absolute: None,
    })
}

/// Identifiers nobody has used.
pub(super) fn write_ids() -> WriteIds {
    WriteIds { file_write: Uuid::new_v4(), data_write: Uuid::new_v4(), log: Uuid::new_v4() }
}

/// The size of a block as the formats store it.
pub(super) fn block_bytes(size: Size) -> Result<u32, Error> {
    u32::try_from(size.0).map_err(|_| Error::Usage(format!("block size {size} is above 256M")))
}

/// The present as a VHD time stamp.
pub(super) fn now() -> u32 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    vhd::timestamp_from_unix(since.map_or(0, |since| since.as_secs()))
}

/// From the folder of `child`, which need not exist itself, to `parent`, over real folders.
pub(super) fn relative_path(child: &Path, parent: &Path) -> Result<String, Error> {
    let folder =
        folder_of(child).canonicalize().map_err(Error::io(folder_of(child), "resolving the folder"))?;
    let parent = parent.canonicalize().map_err(Error::io(parent, "resolving the path"))?;
    let common = folder.components().zip(parent.components()).take_while(|(a, b)| a == b).count();
    let mut relative: PathBuf = folder.components().skip(common).map(|_| Component::ParentDir).collect();
    relative.extend(parent.components().skip(common));
    match relative.to_str() {
        Some(text) if !text.contains('\\') => Ok(text.to_owned()),
        _ => Err(Error::Failed(format!(
            "{}: the way to this parent holds a backslash or is not UTF-8, which no image can name: rename it",
            parent.display()
        ))),
    }
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

    #[test]
    fn a_name_asks_for_a_format() {
        let format = |name: &str| format_of_name(Path::new(name));
        assert_eq!(
            (format("a.VHD"), format("a.vhdx"), format("a.avhdx")),
            (ImageFormat::Vhd, ImageFormat::Vhdx, ImageFormat::Vhdx)
        );
        assert_eq!((format("a.img"), format("vhdx")), (ImageFormat::Raw, ImageFormat::Raw));
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let wanted = |size, kind, logical_sector| Wanted {
            size: Size(size),
            kind,
            block_size: Some(Size(2 << 20)),
            logical_sector,
        };
        assert!(NewDisk::vhd(&wanted(1 << 30, DiskKind::Dynamic, None)).is_ok());
        assert!(NewDisk::vhd(&wanted(1 << 30, DiskKind::Fixed, None)).is_err());
        assert!(NewDisk::vhd(&wanted(1 << 30, DiskKind::Dynamic, Some(BlockSize::B4096))).is_err());
        assert!(NewDisk::vhdx(&wanted(1 << 30, DiskKind::Fixed, Some(BlockSize::B4096))).is_ok());
        assert!(NewDisk::vhdx(&wanted(512, DiskKind::Dynamic, Some(BlockSize::B4096))).is_err());
    }
}
