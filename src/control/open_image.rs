//! From a path to a chain: detects the format, finds parents, refuses what does not fit.
//!
//! Knows where a parent may lie and how a child proves whose child it is. Does not know how a format is parsed
//! (`vhd`) nor who will run the plans.

use std::collections::HashMap;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::file::{Access, FileError, FileIdentity, Locking, OpenedFile, identity_of};
pub use super::image_format::Format;
use super::image_format::{Content, ForeignFormat, KnownLink, LinkOf, parse};
pub(super) use super::image_format::{detect, type_name};
use super::seal::{self, SealError};
use crate::image::{Chain, ChainError, Images, Layer};
use crate::limits::CHAIN_DEPTH_MAX;
use crate::parent_path::{ParentCandidate, PathShape};
use crate::plan::{FileSlot, LayerId};
use crate::units::{BlockSize, SectorCount};
use crate::vhd::create::timestamp_from_unix;
use crate::vhd::{VhdError, VhdImage};
use crate::vhdx::{VhdxError, VhdxImage};

/// Seconds two time stamps may differ and still be the same moment: file systems round to two.
const TIMESTAMP_SLACK_S: u32 = 2;

/// Why an image or one of its parents did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path}: emptying it failed: {source}", path = .path.display())]
    Empty { path: PathBuf, source: io::Error },
    #[error("{path}: {source}", path = .path.display())]
    Vhd { path: PathBuf, source: VhdError },
    #[error("{path}: {source}", path = .path.display())]
    Vhdx { path: PathBuf, source: VhdxError },
    #[error("{path}: reading {len} bytes at byte {offset} failed: {source}", path = .path.display())]
    Read { path: PathBuf, offset: u64, len: usize, source: io::Error },
    #[error(
        "{path}: {len} bytes are no whole number of 512-byte sectors and no VHD footer ends them: the file is cut \
         off or no disk image", path = .path.display()
    )]
    RawSize { path: PathBuf, len: u64 },
    #[error("{path}: its parent was not found at {tried}: put it there", path = .path.display())]
    ParentNotFound { path: PathBuf, tried: String },
    #[error("{path}: its parent {parent} lies outside the image roots, the folders parents may lie in", path = .path.display(), parent = .parent.display())]
    ParentOutside { path: PathBuf, parent: PathBuf },
    #[error("{path}: its parent {parent} is no regular file", path = .path.display(), parent = .parent.display())]
    ParentKind { path: PathBuf, parent: PathBuf },
    #[error(
        "{path}: its parent should have the id {wanted}, {parent} has {found}: this is another image, or it was changed",
        path = .path.display(), parent = .parent.display()
    )]
    ParentId { path: PathBuf, parent: PathBuf, wanted: Uuid, found: Uuid },
    #[error(
        "{path}: the disk has {child} sectors, fewer than the {sectors} of its parent {parent}: not its child",
        path = .path.display(), parent = .parent.display()
    )]
    ParentLarger { path: PathBuf, parent: PathBuf, child: u64, sectors: u64 },
    #[error(
        "{path} is a {child} and its parent {parent} a {found}: a parent has the format of its child, so convert one \
         of the two", path = .path.display(), parent = .parent.display()
    )]
    ParentFormat { path: PathBuf, parent: PathBuf, child: &'static str, found: &'static str },
    #[error(
        "{path}: its parent {parent} was changed after the child was made (time stamps differ): restore the parent, \
         or leave strict mode", path = .path.display(), parent = .parent.display()
    )]
    ParentChanged { path: PathBuf, parent: PathBuf },
    #[error("{path}: it is its own ancestor through {parent}: the parent links form a circle", path = .path.display(), parent = .parent.display())]
    Cycle { path: PathBuf, parent: PathBuf },
    #[error("{path}: the chain of parents is longer than {CHAIN_DEPTH_MAX} images: merge some of them", path = .path.display())]
    TooDeep { path: PathBuf },
    #[error("{path} is written by one unit and used by another: a writable image has one user", path = .path.display())]
    Shared { path: PathBuf },
    #[error("{path} is used in two formats: one of the two is wrong", path = .path.display())]
    TwoFormats { path: PathBuf },
    #[error(
        "{path}: writing the changes its log holds into place failed: {source}; check the file system and the device",
        path = .path.display()
    )]
    Replay { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(
        "{path}: its parent {parent} was changed after it was sealed, so that what the child relies on is gone: \
         restore the parent from a copy; where the change is meant, run goldrush image unseal {parent} and make \
         new children", path = .path.display(), parent = .parent.display()
    )]
    ParentSeal { path: PathBuf, parent: PathBuf },
    #[error(
        "{path} is a {name} file by its name, which only convert reads: run goldrush image convert {path} NEW.vhd",
        path = .path.display(), name = .format.name()
    )]
    Foreign { path: PathBuf, format: ForeignFormat },
    #[error("{path}: {source}", path = .path.display())]
    Chain { path: PathBuf, source: ChainError },
    #[error("image root {path} cannot be resolved: {source}", path = .path.display())]
    Root { path: PathBuf, source: io::Error },
}

/// One file of a chain with what is known of its content.
#[derive(Debug)]
pub struct OpenedLayer {
    pub(super) file: Arc<OpenedFile>,
    pub(super) format: Format,
    pub(super) sectors: SectorCount,
    pub(super) logical_sector: BlockSize,
    /// The parse made when it was opened. Parents are parsed again for each owner: every shard keeps its own bitmaps.
    pub(super) content: Option<Content>,
}

impl OpenedLayer {
    pub fn file(&self) -> &Arc<OpenedFile> {
        &self.file
    }

    pub fn format(&self) -> Format {
        self.format
    }

    pub fn sectors(&self) -> SectorCount {
        self.sectors
    }

    /// The sector the disk was made for.
    pub fn logical_sector(&self) -> BlockSize {
        self.logical_sector
    }

    /// The VHD; `None` for another format and for a parent that was opened for another child already.
    pub fn image(&self) -> Option<&VhdImage> {
        self.content.as_ref().and_then(Content::as_vhd)
    }

    /// The VHDX, as [`OpenedLayer::image`].
    pub fn vhdx(&self) -> Option<&VhdxImage> {
        self.content.as_ref().and_then(Content::as_vhdx)
    }

    /// What children know this image by, where its format has children: the unique id of a VHD, the identifier of a VHDX's
    /// data.
    pub(super) fn id(&self) -> Option<Uuid> {
        self.content.as_ref()?.link().id
    }

    /// Who it says its parent is.
    pub(super) fn parent_link(&self) -> Option<LinkOf> {
        self.content.as_ref()?.link().parent
    }

    /// The bytes of a block, where the disk is stored in blocks.
    pub(super) fn block_size(&self) -> Option<u32> {
        self.vhdx().map(VhdxImage::block_size).or(self.image().and_then(VhdImage::block_size))
    }

    fn into_layer(self, slot: FileSlot) -> Result<Layer, OpenError> {
        let writable = self.file.is_writable();
        let content = match self.content {
            Some(content) => content,
            None => parse(self.file, Some(self.format))?.content.unwrap_or(Content::Raw),
        };
        Ok(match content {
            Content::Raw => Layer::raw(slot, self.sectors, writable),
            Content::Vhd(image) => Layer::vhd(slot, *image),
            Content::Vhdx(image) => Layer::vhdx(slot, *image),
        })
    }
}

/// An image and its parents, leaf first, checked to be a chain.
#[derive(Debug)]
pub struct OpenedChain {
    layers: Vec<OpenedLayer>,
}

/// Who owns the layers of some chains: one shard, or a tool.
#[derive(Debug, Default)]
pub struct LayerTable {
    pub images: Images,
    /// By `FileSlot`.
    pub files: Vec<Arc<OpenedFile>>,
    parents: HashMap<FileIdentity, LayerId>,
}

impl LayerTable {
    /// Takes a chain in. Parents that another chain brought already are used again.
    pub fn add(&mut self, chain: OpenedChain) -> Result<Chain, OpenError> {
        let path = chain.leaf().file.path().to_owned();
        let mut ids = Vec::with_capacity(chain.layers.len());
        for layer in chain.layers {
            let known = self.parents.get(&layer.file.identity()).copied();
            ids.push(known.map_or_else(|| self.add_alone(layer), Ok)?);
        }
        Chain::new(&self.images, ids).map_err(|source| OpenError::Chain { path, source })
    }

    /// Takes one layer in, whatever it belongs to.
    pub(super) fn add_alone(&mut self, layer: OpenedLayer) -> Result<LayerId, OpenError> {
        let file = layer.file.clone();
        let slot = FileSlot(u32::try_from(self.files.len()).unwrap_or(u32::MAX));
        let id = self.images.add(layer.into_layer(slot)?);
        if !file.is_writable() {
            self.parents.insert(file.identity(), id);
        }
        self.files.push(file);
        Ok(id)
    }
}

impl OpenedChain {
    /// Leaf first.
    pub fn layers(&self) -> &[OpenedLayer] {
        &self.layers
    }

    pub fn leaf(&self) -> &OpenedLayer {
        &self.layers[0]
    }

    /// The writes to come leave the disk of the leaf as it reads.
    pub(super) fn keep_content_id(&mut self) {
        if let Some(image) = self.layers[0].content.as_mut().and_then(Content::as_vhdx_mut) {
            image.keep_data_write_guid();
        }
    }

    /// Keeps at most so many bitmaps of the leaf in memory.
    pub(super) fn limit_bitmaps(&mut self, bitmaps: usize) {
        match self.layers[0].content.as_mut() {
            Some(Content::Vhd(image)) => image.limit_bitmaps(bitmaps),
            Some(Content::Vhdx(image)) => image.limit_bitmaps(bitmaps),
            Some(Content::Raw) | None => {}
        }
    }

    pub fn sectors(&self) -> SectorCount {
        self.leaf().sectors
    }
}

/// What all images of one program have in common: where parents may lie, and which files are open already.
#[derive(Clone, Debug)]
pub struct Opener {
    /// Resolved; `None` lets parents lie anywhere.
    roots: Option<Vec<PathBuf>>,
    strict: bool,
    locking: Locking,
    open: HashMap<FileIdentity, Known>,
}

/// An open file, and what children must know of it.
#[derive(Clone, Debug)]
struct Known {
    file: Arc<OpenedFile>,
    format: Format,
    sectors: SectorCount,
    logical_sector: BlockSize,
    link: KnownLink,
}

impl Opener {
    /// For a server: parents must lie below `roots` once all links are resolved.
    pub fn confined(roots: &[PathBuf], strict: bool) -> Result<Self, OpenError> {
        let resolve = |root: &PathBuf| {
            root.canonicalize().map_err(|source| OpenError::Root { path: root.clone(), source })
        };
        let roots = roots.iter().map(resolve).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { roots: Some(roots), strict, ..Self::anywhere(Locking::Hold) })
    }

    /// The same files are open, and what is opened from now on keeps to these rules.
    pub(super) fn confine(&mut self, roots: &[PathBuf], strict: bool) -> Result<(), OpenError> {
        let Self { roots, strict, .. } = Self::confined(roots, strict)?;
        (self.roots, self.strict) = (roots, strict);
        Ok(())
    }

    /// The file is closed: whoever names it next opens it anew.
    pub(super) fn forget(&mut self, file: FileIdentity) {
        self.open.remove(&file);
    }

    /// For a tool an administrator runs on images of his own: parents may lie where they say.
    pub fn anywhere(locking: Locking) -> Self {
        Self { roots: None, strict: false, locking, open: HashMap::new() }
    }

    /// Opens `path` and all its parents, each of them once however many chains it belongs to.
    pub fn open_chain(&mut self, path: &Path, access: Access) -> Result<OpenedChain, OpenError> {
        self.open_chain_as(path, access, None)
    }

    /// As [`Opener::open_chain`], with a format that is known: nothing is detected, so that what a guest wrote to the
    /// end of a raw disk cannot make it a VHD.
    pub fn open_chain_as(
        &mut self,
        path: &Path,
        access: Access,
        format: Option<Format>,
    ) -> Result<OpenedChain, OpenError> {
        let leaf = self.open_leaf_as(path, access, format)?;
        let mut link = self.link(&leaf);
        let mut layers = vec![leaf];
        while let Some(wanted) = link {
            if layers.len() >= CHAIN_DEPTH_MAX {
                return Err(OpenError::TooDeep { path: path.to_owned() });
            }
            let parent = self.open_parent(&layers, &wanted)?;
            link = self.link(&parent);
            layers.push(parent);
        }
        Ok(OpenedChain { layers })
    }

    /// Opens `path` alone: a differencing image without its parents.
    pub fn open_leaf(&mut self, path: &Path, access: Access) -> Result<OpenedLayer, OpenError> {
        self.open_leaf_as(path, access, None)
    }

    fn open_leaf_as(
        &mut self,
        path: &Path,
        access: Access,
        format: Option<Format>,
    ) -> Result<OpenedLayer, OpenError> {
        let known = identity_of(path).ok().and_then(|identity| self.open.get(&identity));
        match known {
            Some(known) if access == Access::Writable || known.file.is_writable() => {
                Err(OpenError::Shared { path: path.to_owned() })
            }
            Some(known) if format.is_some_and(|format| format != known.format) => {
                Err(OpenError::TwoFormats { path: path.to_owned() })
            }
            Some(known) => Ok(known.layer()),
            None => self.open_file(path, access, format),
        }
    }

    fn open_file(
        &mut self,
        path: &Path,
        access: Access,
        format: Option<Format>,
    ) -> Result<OpenedLayer, OpenError> {
        let file = Arc::new(OpenedFile::open(path, access, self.locking)?);
        // Without a lock it may be changing under our eyes, and is only looked at.
        if self.locking == Locking::Hold {
            seal::verify(&file, false)?;
        }
        let layer = parse(file, format)?;
        let link = layer.content.as_ref().map_or_else(KnownLink::default, Content::link);
        for warning in layer.content.iter().flat_map(Content::warnings) {
            tracing::warn!(image = %path.display(), "{warning}");
        }
        let OpenedLayer { format, sectors, logical_sector, .. } = layer;
        let known = Known { file: layer.file.clone(), format, sectors, logical_sector, link };
        self.open.insert(layer.file.identity(), known);
        Ok(layer)
    }

    fn link(&self, layer: &OpenedLayer) -> Option<LinkOf> {
        self.open.get(&layer.file.identity())?.link.parent.clone()
    }

    /// The parent of the last of `layers`: the first candidate that exists, may be used and is the right image.
    fn open_parent(&mut self, layers: &[OpenedLayer], wanted: &LinkOf) -> Result<OpenedLayer, OpenError> {
        let child = layers[layers.len() - 1].file.path().to_owned();
        let mut tried: Vec<String> = Vec::new();
        let mut first_error = None;
        for place in places(&child, wanted.candidates()) {
            let text = place.display().to_string();
            if tried.contains(&text) {
                continue;
            }
            tried.push(text);
            match self.try_parent(layers, wanted, &child, &place) {
                Ok(Some(parent)) => return Ok(parent),
                Ok(None) => {}
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        let tried = if tried.is_empty() { "any usable path".to_owned() } else { tried.join(", ") };
        Err(first_error.unwrap_or(OpenError::ParentNotFound { path: child, tried }))
    }

    /// `None` when nothing lies at `place`.
    fn try_parent(
        &mut self,
        layers: &[OpenedLayer],
        wanted: &LinkOf,
        child: &Path,
        place: &Path,
    ) -> Result<Option<OpenedLayer>, OpenError> {
        let (path, parent) = (|| child.to_owned(), place.to_owned());
        let Ok(resolved) = place.canonicalize() else { return Ok(None) };
        let inside = |roots: &Vec<PathBuf>| roots.iter().any(|root| resolved.starts_with(root));
        if !self.roots.as_ref().is_none_or(inside) {
            return Err(OpenError::ParentOutside { path: path(), parent: resolved });
        }
        match std::fs::symlink_metadata(&resolved) {
            Ok(metadata) if metadata.is_file() => {}
            _ => return Err(OpenError::ParentKind { path: path(), parent }),
        }
        let identity =
            identity_of(&resolved).map_err(|source| FileError::Open { path: parent.clone(), source })?;
        if layers.iter().any(|layer| layer.file.identity() == identity) {
            return Err(OpenError::Cycle { path: layers[0].file.path().to_owned(), parent });
        }
        let layer = self.open_leaf(&resolved, Access::ReadOnly).map_err(|error| match error {
            OpenError::Seal(SealError::Broken { .. }) => {
                OpenError::ParentSeal { path: path(), parent: parent.clone() }
            }
            OpenError::RawSize { .. } => OpenError::ParentFormat {
                path: path(),
                parent: parent.clone(),
                child: layers[layers.len() - 1].format.title(),
                found: "file of another kind",
            },
            other => other,
        })?;
        let format = layers[layers.len() - 1].format;
        let found = self.open.get(&layer.file.identity());
        let id = found.and_then(|known| known.link.id).filter(|_| layer.format == format);
        let Some(id) = id else {
            let (child, found) = (format.title(), layer.format.title());
            return Err(OpenError::ParentFormat { path: path(), parent, child, found });
        };
        if !wanted.accepts(id) {
            return Err(OpenError::ParentId { path: path(), parent, wanted: wanted.id(), found: id });
        }
        let timestamp = found.and_then(|known| known.link.timestamp);
        let (child_sectors, sectors) = (layers[layers.len() - 1].sectors.0, layer.sectors.0);
        if child_sectors < sectors {
            return Err(OpenError::ParentLarger { path: path(), parent, child: child_sectors, sectors });
        }
        if wanted.timestamp().is_some_and(|wanted| !is_time_of(&layer, timestamp, wanted)) {
            if self.strict {
                return Err(OpenError::ParentChanged { path: path(), parent });
            }
            tracing::warn!(
                child = %child.display(),
                parent = %parent.display(),
                "the parent's time stamp is not the one the child knows: was the parent changed?"
            );
        }
        Ok(Some(layer))
    }
}

impl Known {
    fn layer(&self) -> OpenedLayer {
        let Self { format, sectors, logical_sector, .. } = *self;
        OpenedLayer { file: self.file.clone(), format, sectors, logical_sector, content: None }
    }
}

/// True when a parent's file or footer has the time stamp its child remembers.
fn is_time_of(parent: &OpenedLayer, footer: Option<u32>, wanted: u32) -> bool {
    let same = |stamp: u32| stamp.abs_diff(wanted) <= TIMESTAMP_SLACK_S;
    same(timestamp_from_unix(parent.file.modified())) || footer.is_some_and(same)
}

/// Where the parent may be, best first: each candidate relative to the child's folder (or as it stands, when it
/// begins at the root), at last their base names in the child's folder. Windows drives and UNC paths lead nowhere.
pub(super) fn places(child: &Path, candidates: &[ParentCandidate]) -> Vec<PathBuf> {
    // Relative to where the child really lies, not to a link that led to it.
    let real = child.canonicalize().unwrap_or_else(|_| child.to_owned());
    let folder = real.parent().unwrap_or(Path::new(""));
    let as_told = candidates.iter().filter_map(|candidate| match candidate.shape() {
        PathShape::Relative => Some(folder.join(plain(&candidate.path))),
        PathShape::Absolute if candidate.path.starts_with('/') => Some(PathBuf::from(&candidate.path)),
        PathShape::Absolute | PathShape::Unc => None,
    });
    let beside = candidates.iter().filter(|candidate| candidate.shape() != PathShape::Unc);
    let beside = beside.filter_map(ParentCandidate::base_name).map(|name| folder.join(name));
    as_told.chain(beside).collect()
}

/// Without the `.` a relative locator customarily starts with.
fn plain(path: &str) -> PathBuf {
    Path::new(path).components().filter(|part| *part != Component::CurDir).collect()
}
