//! A chain: the leaf, its parents, and the base, seen as one disk.
//!
//! Knows which layers may follow each other. Does not know where their files are: who opens them finds them.

use super::{Images, Layer};
use crate::limits::CHAIN_DEPTH_MAX;
use crate::plan::LayerId;
use crate::units::SectorCount;
use uuid::Uuid;

/// Layers, leaf first. At least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    layers: Vec<LayerId>,
    leaf: LayerId,
    sectors: SectorCount,
}

/// Why layers are not a chain. Positions count from the leaf, 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    #[error("a chain needs at least one image")]
    Empty,
    #[error("the chain is {0} images deep, more than {CHAIN_DEPTH_MAX}: merge some of them")]
    TooDeep(usize),
    #[error("layer {0:?} is not open")]
    NoSuchLayer(LayerId),
    #[error("image {0} of the chain is its own ancestor: the parent links form a circle")]
    Cycle(usize),
    #[error("image {0} of the chain is a differencing disk and its parent is missing: open the parent too")]
    ParentMissing(usize),
    #[error("image {0} of the chain is no differencing disk and cannot have a parent")]
    NotDifferencing(usize),
    #[error(
        "image {position} of the chain is a {child} and its parent a {parent}: a parent has the format of its child; \
         convert one of the two"
    )]
    ParentFormat { position: usize, child: &'static str, parent: &'static str },
    #[error(
        "image {position} of the chain wants parent {wanted}, found {found}: this is another image, or it was replaced"
    )]
    ParentId { position: usize, wanted: Uuid, found: Uuid },
    #[error(
        "image {position} of the chain has {child} sectors, fewer than its parent's {parent}: not its child"
    )]
    Size { position: usize, child: u64, parent: u64 },
    #[error(
        "image {position} of the chain has sectors of {child} bytes and its parent of {parent}: not its child"
    )]
    SectorSize { position: usize, child: u32, parent: u32 },
    #[error("the parent of image {0} of the chain is open for writing: parents are opened read-only")]
    ParentWritable(usize),
}

impl Chain {
    /// Checks that each layer is the parent of the one before it.
    ///
    /// Block sizes may differ. A child may be larger than its parent (the rest reads as zeros), never smaller.
    pub fn new(images: &Images, layers: Vec<LayerId>) -> Result<Self, ChainError> {
        let leaf = *layers.first().ok_or(ChainError::Empty)?;
        if layers.len() > CHAIN_DEPTH_MAX {
            return Err(ChainError::TooDeep(layers.len()));
        }
        for (position, layer) in layers.iter().enumerate() {
            if layers.iter().skip(position + 1).any(|other| other == layer) {
                return Err(ChainError::Cycle(position));
            }
            check_link(images, position, *layer, layers.get(position + 1).copied())?;
        }
        let sectors = images.layer(leaf).ok_or(ChainError::NoSuchLayer(leaf))?.sectors();
        Ok(Self { layers, leaf, sectors })
    }

    /// The size of the disk: the leaf's.
    pub fn sectors(&self) -> SectorCount {
        self.sectors
    }

    pub fn leaf(&self) -> LayerId {
        self.leaf
    }

    /// Leaf first.
    pub fn layers(&self) -> &[LayerId] {
        &self.layers
    }
}

fn check_link(
    images: &Images,
    position: usize,
    layer: LayerId,
    parent: Option<LayerId>,
) -> Result<(), ChainError> {
    let child = images.layer(layer).ok_or(ChainError::NoSuchLayer(layer))?;
    let parent = match (child.needs_parent(), parent) {
        (false, None) => return Ok(()),
        (false, Some(_)) => return Err(ChainError::NotDifferencing(position)),
        (true, None) => return Err(ChainError::ParentMissing(position)),
        (true, Some(parent)) => images.layer(parent).ok_or(ChainError::NoSuchLayer(parent))?,
    };
    check_identity(position, child, parent)?;
    let (sector, parent_sector) = (child.logical_sector().bytes(), parent.logical_sector().bytes());
    if sector != parent_sector {
        return Err(ChainError::SectorSize { position, child: sector, parent: parent_sector });
    }
    if child.sectors() < parent.sectors() {
        return Err(ChainError::Size { position, child: child.sectors().0, parent: parent.sectors().0 });
    }
    if parent.is_writable() {
        return Err(ChainError::ParentWritable(position));
    }
    Ok(())
}

/// The parent must be the image the child was made from: by its id (VHD), by the identifier of its data (VHDX).
fn check_identity(position: usize, child: &Layer, parent: &Layer) -> Result<(), ChainError> {
    let (wanted, found) = match (child, parent) {
        (Layer::Vhd(child), Layer::Vhd(parent)) => {
            let wanted = child.image.parent().map(|link| link.unique_id).unwrap_or_default();
            (wanted, parent.image.unique_id())
        }
        (Layer::Vhdx(child), Layer::Vhdx(parent)) => {
            let found = parent.image.data_write_guid();
            let Some(link) = child.image.parent() else { return Err(ChainError::NotDifferencing(position)) };
            (if link.accepts(found) { found } else { link.linkage }, found)
        }
        (child, parent) => {
            let (child, parent) = (child.format_name(), parent.format_name());
            return Err(ChainError::ParentFormat { position, child, parent });
        }
    };
    if wanted == found { Ok(()) } else { Err(ChainError::ParentId { position, wanted, found }) }
}
