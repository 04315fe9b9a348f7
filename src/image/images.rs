//! All layers of one shard (or of one run of a tool), and the resolution of ranges through chains of them.
//!
//! Knows which layer answers for a sector. Does not know how a layer knows (`vhd`), nor who runs a plan.

use super::{Chain, Layer};
use crate::plan::{
    BitmapRead, BitmapRequest, FileSlot, IoFault, LayerId, ReadExtent, ReadPlan, ReadStep, Run, Source,
};
use crate::units::{SECTOR_BYTES, SectorCount, SectorRange};

/// The longest extent: its bytes are a `u32`.
pub(super) const EXTENT_SECTORS_MAX: u64 = 1 << 22;

/// The layers of one owner.
#[derive(Debug, Default)]
pub struct Images {
    layers: Vec<Option<Layer>>,
}

/// One run of a chain.
pub(super) enum ChainRun {
    Extent { source: Source, sectors: u64 },
    NeedBitmap(BitmapRead),
}

impl Images {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an open layer. The parents of several chains need to be added only once.
    pub fn add(&mut self, layer: Layer) -> LayerId {
        let free = self.layers.iter().position(Option::is_none);
        let index = free.unwrap_or_else(|| {
            self.layers.push(None);
            self.layers.len() - 1
        });
        if let Some(slot) = self.layers.get_mut(index) {
            *slot = Some(layer);
        }
        LayerId(index as u32)
    }

    /// Takes a layer out; chains that name it must not be used any more.
    pub fn remove(&mut self, layer: LayerId) -> Option<Layer> {
        self.layers.get_mut(layer.0 as usize)?.take()
    }

    /// A raw file has grown. False where the layer is something else, or the file has not.
    pub fn grow_raw(&mut self, layer: LayerId, sectors: SectorCount) -> bool {
        match self.layer_mut(layer) {
            Some(Layer::Raw(raw)) if raw.sectors < sectors => {
                raw.sectors = sectors;
                true
            }
            _ => false,
        }
    }

    /// The file of every layer, by `LayerId`; of a removed one, any.
    pub fn files(&self) -> impl Iterator<Item = FileSlot> {
        self.layers.iter().map(|layer| layer.as_ref().map_or(FileSlot(0), Layer::file))
    }

    pub fn layer(&self, layer: LayerId) -> Option<&Layer> {
        self.layers.get(layer.0 as usize)?.as_ref()
    }

    pub(super) fn layer_mut(&mut self, layer: LayerId) -> Option<&mut Layer> {
        self.layers.get_mut(layer.0 as usize)?.as_mut()
    }

    /// Says where the bytes of `range` are. Beyond the end of the disk they are zeros; the caller checks the range.
    ///
    /// `plan` is cleared first. No memory is taken when `plan` has its capacity.
    pub fn resolve_read(&mut self, chain: &Chain, range: SectorRange, plan: &mut ReadPlan) -> ReadStep {
        plan.clear();
        let mut at = range.start().0;
        let end = range.end().0;
        while at < end {
            match self.run(chain.layers(), at, (end - at).min(EXTENT_SECTORS_MAX)) {
                ChainRun::NeedBitmap(read) if plan.extents.is_empty() => return ReadStep::NeedBitmap(read),
                ChainRun::NeedBitmap(_) => break,
                ChainRun::Extent { source, sectors } => {
                    let len = (sectors * SECTOR_BYTES) as u32;
                    if !plan.push(ReadExtent { len, source }) {
                        break;
                    }
                    at += sectors;
                }
            }
        }
        ReadStep::Ready { covered: SectorCount(at - range.start().0) }
    }

    /// Where the bytes of `range` are, when they are in one place that is known now.
    pub fn one_run(&mut self, chain: &Chain, range: SectorRange) -> Option<Source> {
        let sectors = range.count().0;
        if sectors == 0 || sectors > EXTENT_SECTORS_MAX {
            return None;
        }
        match self.run(chain.layers(), range.start().0, sectors) {
            ChainRun::Extent { source, sectors: run } if run == sectors => Some(source),
            _ => None,
        }
    }

    /// Walks from the first of `layers` towards the base until one has the sector. At most `max` sectors, at least 1.
    pub(super) fn run(&mut self, layers: &[LayerId], sector: u64, max: u64) -> ChainRun {
        let mut sectors = max;
        for id in layers {
            let Some(layer) = self.layer_mut(*id) else { break };
            match layer.run_at(sector, sectors) {
                Run::Present { offset, sectors } => {
                    let source = Source::File { file: layer.file(), offset, immutable: !layer.is_writable() };
                    return ChainRun::Extent { source, sectors };
                }
                Run::NeedBitmap(request) => {
                    return ChainRun::NeedBitmap(bitmap_read(*id, layer.file(), request));
                }
                Run::Zero { sectors } => return ChainRun::Extent { source: Source::Zero, sectors },
                Run::Absent { sectors: absent } => {
                    sectors = absent;
                    // Sectors beyond a parent's end are zeros, whatever lies below it.
                    if sector >= layer.sectors().0 {
                        break;
                    }
                }
            }
        }
        ChainRun::Extent { source: Source::Zero, sectors }
    }

    /// A bitmap that `resolve_read` or `resolve_write` asked for: all its bytes, or how the read failed.
    ///
    /// After a failure nothing is known; asking again asks for the bitmap again.
    pub fn bitmap_loaded(&mut self, read: BitmapRead, bytes: Result<&[u8], IoFault>) {
        if let (Some(layer), Ok(bytes)) = (self.layer_mut(read.layer), bytes) {
            layer.bitmap_loaded(read.block, read.ticket, bytes);
        }
    }
}

pub(super) fn bitmap_read(layer: LayerId, file: FileSlot, request: BitmapRequest) -> BitmapRead {
    let BitmapRequest { block, offset, len, ticket } = request;
    BitmapRead { layer, block, file, offset, len, ticket }
}
