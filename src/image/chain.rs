//! A chain: the leaf, its parents, and the base, seen as one disk.
//!
//! Knows which layers may follow each other. Does not know where their files are: who opens them finds them.

use super::Images;
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
    #[error("the parent of image {0} of the chain is not a VHD, so it has no id to compare")]
    ParentNotVhd(usize),
    #[error(
        "image {position} of the chain wants parent {wanted}, found {found}: this is another image, or it was replaced"
    )]
    ParentId { position: usize, wanted: Uuid, found: Uuid },
    #[error(
        "image {position} of the chain has {child} sectors, fewer than its parent's {parent}: not its child"
    )]
    Size { position: usize, child: u64, parent: u64 },
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
    let link = child.as_vhd().and_then(|vhd| vhd.parent());
    let (link, parent) = match (link, parent) {
        (None, None) => return Ok(()),
        (None, Some(_)) => return Err(ChainError::NotDifferencing(position)),
        (Some(_), None) => return Err(ChainError::ParentMissing(position)),
        (Some(link), Some(parent)) => (link, images.layer(parent).ok_or(ChainError::NoSuchLayer(parent))?),
    };
    let found = parent.as_vhd().ok_or(ChainError::ParentNotVhd(position))?.unique_id();
    if link.unique_id != found {
        return Err(ChainError::ParentId { position, wanted: link.unique_id, found });
    }
    if child.sectors() < parent.sectors() {
        return Err(ChainError::Size { position, child: child.sectors().0, parent: parent.sectors().0 });
    }
    if parent.is_writable() {
        return Err(ChainError::ParentWritable(position));
    }
    Ok(())
}
