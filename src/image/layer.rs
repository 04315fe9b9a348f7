//! A layer: one file of a chain.
//!
//! Knows which formats there are (a closed set: an enum, no trait object). Does not know its neighbours.

use crate::plan::{FileSlot, OpenMode, Run};
use crate::units::{BlockIndex, BlockSize, ByteOffset, SECTOR_BYTES, SectorCount};
use crate::vhd::{DiskType, VhdImage};
use crate::vhdx::VhdxImage;
use uuid::Uuid;

/// One file of a chain, in the format it has.
#[derive(Debug)]
pub enum Layer {
    Raw(RawLayer),
    Vhd(Box<VhdLayer>),
    Vhdx(Box<VhdxLayer>),
}

/// A file that is the disk, byte for byte.
#[derive(Debug)]
pub struct RawLayer {
    pub(super) file: FileSlot,
    pub(super) sectors: SectorCount,
    pub(super) writable: bool,
    /// A flush failed: no write is taken any more. The file still changes while earlier ones end.
    pub(super) failed: bool,
}

#[derive(Debug)]
pub struct VhdLayer {
    pub(super) file: FileSlot,
    pub(super) image: VhdImage,
    pub(super) writable: bool,
    /// As [`RawLayer::failed`].
    pub(super) failed: bool,
}

#[derive(Debug)]
pub struct VhdxLayer {
    pub(super) file: FileSlot,
    pub(super) image: VhdxImage,
    pub(super) writable: bool,
    /// As [`RawLayer::failed`].
    pub(super) failed: bool,
}

impl Layer {
    /// A raw file of `sectors`. A layer that is not `writable` promises that nobody changes the file meanwhile.
    pub fn raw(file: FileSlot, sectors: SectorCount, writable: bool) -> Self {
        Self::Raw(RawLayer { file, sectors, writable, failed: false })
    }

    /// An open VHD. It is writable when it was opened so; a read-only one promises that nobody changes the file.
    pub fn vhd(file: FileSlot, image: VhdImage) -> Self {
        let writable = image.mode() == OpenMode::Writable;
        Self::Vhd(Box::new(VhdLayer { file, image, writable, failed: false }))
    }

    /// An open VHDX, as [`Layer::vhd`]; it takes writes once it was told [`VhdxImage::begin_writing`].
    pub fn vhdx(file: FileSlot, image: VhdxImage) -> Self {
        let writable = image.mode() == OpenMode::Writable;
        Self::Vhdx(Box::new(VhdxLayer { file, image, writable, failed: false }))
    }

    pub fn sectors(&self) -> SectorCount {
        match self {
            Self::Raw(raw) => raw.sectors,
            Self::Vhd(vhd) => vhd.image.sectors(),
            Self::Vhdx(vhdx) => vhdx.image.sectors(),
        }
    }

    pub fn file(&self) -> FileSlot {
        match self {
            Self::Raw(raw) => raw.file,
            Self::Vhd(vhd) => vhd.file,
            Self::Vhdx(vhdx) => vhdx.file,
        }
    }

    /// It is another slot's file from now on.
    pub fn set_file(&mut self, slot: FileSlot) {
        match self {
            Self::Raw(raw) => raw.file = slot,
            Self::Vhd(vhd) => vhd.file = slot,
            Self::Vhdx(vhdx) => vhdx.file = slot,
        }
    }

    pub fn is_writable(&self) -> bool {
        match self {
            Self::Raw(raw) => raw.writable,
            Self::Vhd(vhd) => vhd.writable,
            Self::Vhdx(vhdx) => vhdx.writable,
        }
    }

    /// True after a failed flush or metadata write: see [`super::Images::fail`].
    pub(super) fn is_failed(&self) -> bool {
        match self {
            Self::Raw(raw) => raw.failed,
            Self::Vhd(vhd) => vhd.failed || vhd.image.is_failed(),
            Self::Vhdx(vhdx) => vhdx.failed || vhdx.image.is_failed(),
        }
    }

    /// True when absent sectors are the parent's.
    pub fn needs_parent(&self) -> bool {
        match self {
            Self::Raw(_) => false,
            Self::Vhd(vhd) => vhd.image.disk_type() == DiskType::Differencing,
            Self::Vhdx(vhdx) => vhdx.image.parent().is_some(),
        }
    }

    /// The VHD of this layer.
    pub fn as_vhd(&self) -> Option<&VhdImage> {
        match self {
            Self::Raw(_) | Self::Vhdx(_) => None,
            Self::Vhd(vhd) => Some(&vhd.image),
        }
    }

    /// The VHDX of this layer.
    pub fn as_vhdx(&self) -> Option<&VhdxImage> {
        match self {
            Self::Raw(_) | Self::Vhd(_) => None,
            Self::Vhdx(vhdx) => Some(&vhdx.image),
        }
    }

    /// The logical sector the disk was made for; a raw file and a VHD say nothing else than 512.
    pub fn logical_sector(&self) -> BlockSize {
        self.as_vhdx().map_or(BlockSize::B512, VhdxImage::logical_sector)
    }

    /// What records of writes to this layer are bound to: a VHD's identifier, that of the data of a VHDX.
    pub fn unique_id_when_written(&self) -> Option<Uuid> {
        match self {
            Self::Raw(_) => None,
            Self::Vhd(vhd) => Some(vhd.image.unique_id()),
            Self::Vhdx(vhdx) => vhdx.image.data_when_written(),
        }
    }

    /// What the format is called.
    pub fn format_name(&self) -> &'static str {
        match self {
            Self::Raw(_) => "raw image",
            Self::Vhd(_) => "VHD",
            Self::Vhdx(_) => "VHDX",
        }
    }

    pub(super) fn bitmap_loaded(&mut self, block: BlockIndex, ticket: u64, bytes: &[u8]) {
        match self {
            Self::Raw(_) => {}
            Self::Vhd(vhd) => vhd.image.bitmap_loaded(block, ticket, bytes),
            Self::Vhdx(vhdx) => vhdx.image.bitmap_loaded(block, ticket, bytes),
        }
    }

    /// As [`VhdImage::run_at`].
    pub(super) fn run_at(&mut self, sector: u64, max: u64) -> Run {
        match self {
            Self::Vhd(vhd) => vhd.image.run_at(sector, max),
            Self::Vhdx(vhdx) => vhdx.image.run_at(sector, max),
            Self::Raw(raw) => match raw.sectors.0.saturating_sub(sector).min(max) {
                0 => Run::Absent { sectors: max },
                sectors => Run::Present { offset: ByteOffset(sector.saturating_mul(SECTOR_BYTES)), sectors },
            },
        }
    }
}
