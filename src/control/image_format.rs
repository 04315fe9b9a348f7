//! Formats: which one a file has, and what is read of it when it is opened.
//!
//! Knows how a format is told, and what a child must know of its parent in each. Does not know chains (`open_image`)
//! nor how a format is parsed (`vhd`, `vhdx`).

use std::io;
use std::sync::Arc;

use uuid::Uuid;

use super::block_io::run_batch;
use super::file::OpenedFile;
use super::new_image::write_ids;
use super::open_image::{OpenError, OpenedLayer};
use crate::parent_path::ParentCandidate;
use crate::units::{BlockSize, SECTOR_BYTES, SectorCount};
use crate::vhd::{self, DiskType, FOOTER_BYTES, OpenMode, VhdImage};
use crate::vhdx::{self, VhdxImage, WriteIds};

/// How the bytes of a file are to be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Raw,
    Vhd,
    Vhdx,
}

impl Format {
    /// As it is written on command lines and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
        }
    }

    /// For sentences.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Raw => "raw image",
            Self::Vhd => "VHD",
            Self::Vhdx => "VHDX",
        }
    }
}

/// A format that only `image convert` reads, through another program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForeignFormat {
    Qcow2,
    Vmdk,
    Vdi,
}

impl ForeignFormat {
    /// As it is written on command lines, ours and the other program's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vdi => "vdi",
        }
    }

    /// By the ending of a name. What is in the file proves nothing: a raw disk's guest writes what it likes.
    pub fn of_name(path: &std::path::Path) -> Option<Self> {
        let ending = path.extension()?;
        let all = [Self::Qcow2, Self::Vmdk, Self::Vdi];
        all.into_iter().find(|format| ending.eq_ignore_ascii_case(format.name()))
    }
}

/// What was read of a file.
#[derive(Debug)]
pub(super) enum Content {
    Raw,
    Vhd(Box<VhdImage>),
    Vhdx(Box<VhdxImage>),
}

impl Content {
    pub(super) fn as_vhd(&self) -> Option<&VhdImage> {
        match self {
            Self::Vhd(image) => Some(image),
            Self::Raw | Self::Vhdx(_) => None,
        }
    }

    pub(super) fn as_vhdx(&self) -> Option<&VhdxImage> {
        match self {
            Self::Vhdx(image) => Some(image),
            Self::Raw | Self::Vhd(_) => None,
        }
    }

    pub(super) fn as_vhdx_mut(&mut self) -> Option<&mut VhdxImage> {
        match self {
            Self::Vhdx(image) => Some(image),
            Self::Raw | Self::Vhd(_) => None,
        }
    }

    /// What was not as it should be.
    pub(super) fn warnings(&self) -> Vec<String> {
        match self {
            Self::Raw => Vec::new(),
            Self::Vhd(image) => image.warnings().iter().map(ToString::to_string).collect(),
            Self::Vhdx(image) => image.warnings().iter().map(ToString::to_string).collect(),
        }
    }

    pub(super) fn link(&self) -> KnownLink {
        match self {
            Self::Raw => KnownLink::default(),
            Self::Vhd(image) => KnownLink {
                id: Some(image.unique_id()),
                timestamp: Some(image.timestamp()),
                parent: image.parent().cloned().map(LinkOf::Vhd),
            },
            Self::Vhdx(image) => KnownLink {
                id: Some(image.data_write_guid()),
                timestamp: None,
                parent: image.parent().cloned().map(LinkOf::Vhdx),
            },
        }
    }
}

/// What a child must know of this image, and this image of its parent.
#[derive(Clone, Debug, Default)]
pub(super) struct KnownLink {
    /// What children name: the unique id of a VHD, the identifier of a VHDX's data. A raw image has none.
    pub(super) id: Option<Uuid>,
    /// In a VHD's footer.
    pub(super) timestamp: Option<u32>,
    pub(super) parent: Option<LinkOf>,
}

/// Who a child says its parent is.
#[derive(Clone, Debug)]
pub(super) enum LinkOf {
    Vhd(vhd::ParentInfo),
    Vhdx(vhdx::ParentInfo),
}

impl LinkOf {
    /// Where the parent may be, best first.
    pub(super) fn candidates(&self) -> &[ParentCandidate] {
        match self {
            Self::Vhd(parent) => &parent.candidates,
            Self::Vhdx(parent) => &parent.candidates,
        }
    }

    /// The id the parent should have.
    pub(super) fn id(&self) -> Uuid {
        match self {
            Self::Vhd(parent) => parent.unique_id,
            Self::Vhdx(parent) => parent.linkage,
        }
    }

    pub(super) fn accepts(&self, id: Uuid) -> bool {
        match self {
            Self::Vhd(parent) => parent.unique_id == id,
            Self::Vhdx(parent) => parent.accepts(id),
        }
    }

    /// When the parent was changed last, as a VHD's child knows it. A VHDX says it by its id.
    pub(super) fn timestamp(&self) -> Option<u32> {
        match self {
            Self::Vhd(parent) => Some(parent.timestamp),
            Self::Vhdx(_) => None,
        }
    }
}

/// A VHD by the footer that ends it, a VHDX by its name, otherwise raw. The head of a disk is its guest's to write and
/// proves nothing; a name that ends in `.vhd` or `.vhdx` is its administrator's, and makes a lost footer an error (or
/// a matter of the copy).
pub(super) fn detect(file: &OpenedFile) -> Result<Format, OpenError> {
    let named = |name: &str| file.path().extension().is_some_and(|ending| ending.eq_ignore_ascii_case(name));
    if file.is_block_device() {
        return Ok(Format::Raw);
    }
    if named("vhdx") || named("avhdx") {
        return Ok(Format::Vhdx);
    }
    if let Some(format) = ForeignFormat::of_name(file.path()) {
        return Err(OpenError::Foreign { path: file.path().to_owned(), format });
    }
    let is_vhd = named("vhd") || ends_in_footer(file)?;
    if !is_vhd && begins_like_vhdx(file) {
        tracing::warn!(
            image = %file.path().display(),
            "begins like a VHDX and is taken for a raw disk by its name: rename it to .vhdx if it is one"
        );
    }
    Ok(if is_vhd { Format::Vhd } else { Format::Raw })
}

fn begins_like_vhdx(file: &OpenedFile) -> bool {
    let mut start = [0; 8];
    file.read_at(0, &mut start).is_ok() && start == vhdx::header::IDENTIFIER
}

/// Reads a file in its format, or the format it is found to have.
pub(super) fn parse(file: Arc<OpenedFile>, format: Option<Format>) -> Result<OpenedLayer, OpenError> {
    let format = format.map_or_else(|| detect(&file), Ok)?;
    let (sectors, logical_sector, content) = match format {
        Format::Vhd => {
            let image = parse_vhd(&file)?;
            (image.sectors(), BlockSize::B512, Content::Vhd(Box::new(image)))
        }
        Format::Vhdx => {
            let image = parse_vhdx(&file)?;
            (image.sectors(), image.logical_sector(), Content::Vhdx(Box::new(image)))
        }
        Format::Raw if file.is_empty() || !file.len().is_multiple_of(SECTOR_BYTES) => {
            return Err(OpenError::RawSize { path: file.path().to_owned(), len: file.len() });
        }
        Format::Raw => (SectorCount(file.len() / SECTOR_BYTES), BlockSize::B512, Content::Raw),
    };
    Ok(OpenedLayer { file, format, sectors, logical_sector, content: Some(content) })
}

/// True when the file's last 512 bytes (511 with some old writers) begin with the footer's cookie.
fn ends_in_footer(file: &OpenedFile) -> Result<bool, OpenError> {
    let footer = if file.len() % SECTOR_BYTES == SECTOR_BYTES - 1 { FOOTER_BYTES - 1 } else { FOOTER_BYTES };
    let Some(offset) = file.len().checked_sub(footer as u64) else { return Ok(false) };
    let mut cookie = vhd::footer::COOKIE;
    let len = cookie.len();
    cookie.fill(0);
    let failed = |source| OpenError::Read { path: file.path().to_owned(), offset, len, source };
    file.read_at(offset, &mut cookie).map_err(failed)?;
    Ok(cookie == vhd::footer::COOKIE)
}

pub(super) fn parse_vhd(file: &OpenedFile) -> Result<VhdImage, OpenError> {
    let mode = if file.is_writable() { OpenMode::Writable } else { OpenMode::ReadOnly };
    let image = vhd::open_with(file.len(), mode, |offset, bytes| file.read_at(offset, bytes));
    image.map_err(|error| match error {
        vhd::OpenError::Vhd(source) => OpenError::Vhd { path: file.path().to_owned(), source },
        vhd::OpenError::Read { offset, len, source } => {
            OpenError::Read { path: file.path().to_owned(), offset, len, source }
        }
    })
}

fn parse_vhdx(file: &OpenedFile) -> Result<VhdxImage, OpenError> {
    if !file.is_writable() {
        return open_vhdx(file, file.len(), OpenMode::ReadOnly);
    }
    let len = replay_log(file)?;
    let mut image = open_vhdx(file, len, OpenMode::Writable)?;
    image.begin_writing(write_ids());
    Ok(image)
}

/// Opens a VHDX to go on with what a killed process has written: its log is replayed, its data keeps its name.
pub(super) fn continue_vhdx(file: &OpenedFile) -> Result<VhdxImage, OpenError> {
    let len = replay_log(file)?;
    let mut image = open_vhdx(file, len, OpenMode::Writable)?;
    image.begin_writing(WriteIds { data_write: image.data_write_guid(), ..write_ids() });
    Ok(image)
}

fn open_vhdx(file: &OpenedFile, len: u64, mode: OpenMode) -> Result<VhdxImage, OpenError> {
    let image = vhdx::open_with(len, mode, |offset, bytes| file.read_at(offset, bytes));
    image.map_err(|error| vhdx_error(file, error))
}

/// Writes into place what a crash left in the log, and empties it. The bytes the file has then.
pub(super) fn replay_log(file: &OpenedFile) -> Result<u64, OpenError> {
    let path = || file.path().to_owned();
    let batches = vhdx::replay_with(file.len(), |offset, bytes| file.read_at(offset, bytes))
        .map_err(|error| vhdx_error(file, error))?;
    if batches.is_empty() {
        return Ok(file.len());
    }
    tracing::warn!(image = %file.path().display(), "a crash left changes in the log: writing them into place");
    for batch in &batches {
        run_batch(file.file(), batch).map_err(|source| OpenError::Replay { path: path(), source })?;
    }
    let metadata = file.file().metadata().map_err(|source| OpenError::Replay { path: path(), source })?;
    // A block device has the length it had.
    Ok(metadata.len().max(file.len()))
}

fn vhdx_error(file: &OpenedFile, error: vhdx::OpenError<io::Error>) -> OpenError {
    match error {
        vhdx::OpenError::Vhdx(source) => OpenError::Vhdx { path: file.path().to_owned(), source },
        vhdx::OpenError::Read { offset, len, source } => {
            OpenError::Read { path: file.path().to_owned(), offset, len, source }
        }
    }
}

/// The words for a disk type.
pub(super) fn type_name(kind: DiskType) -> &'static str {
    match kind {
        DiskType::Fixed => "fixed",
        DiskType::Dynamic => "dynamic",
        DiskType::Differencing => "differencing",
    }
}
