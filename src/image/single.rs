//! One layer alone: which sectors it holds itself, whatever its parents hold.
//!
//! Knows no chain: tools that move data between layers ask here. The server asks for whole chains (`images`).

use super::Images;
use super::images::bitmap_read;
use crate::plan::{BitmapRead, LayerId, Run};
use crate::units::ByteOffset;

/// What a layer has at a sector, and for how many sectors from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerRun {
    /// In the layer's file.
    Present { offset: ByteOffset, sectors: u64 },
    /// Zeros, whatever its parents hold (VHDX only).
    Zero { sectors: u64 },
    /// Not in this layer: its parent's, and zeros where there is none. Never answered beyond the layer's end.
    Absent { sectors: u64 },
    /// Beyond the end of the layer, where everything below it is hidden: zeros.
    Beyond { sectors: u64 },
    /// Read this, hand it to [`Images::bitmap_loaded`], and ask again.
    NeedBitmap(BitmapRead),
}

impl Images {
    /// The run of `layer` that begins at `sector`: at most `max` sectors, at least one. A layer that is not there
    /// holds nothing.
    pub fn layer_run(&mut self, id: LayerId, sector: u64, max: u64) -> LayerRun {
        let Some(layer) = self.layer_mut(id) else { return LayerRun::Beyond { sectors: max } };
        let inside = layer.sectors().0.saturating_sub(sector).min(max);
        if inside == 0 {
            return LayerRun::Beyond { sectors: max };
        }
        match layer.run_at(sector, inside) {
            Run::Present { offset, sectors } => LayerRun::Present { offset, sectors },
            Run::Absent { sectors } => LayerRun::Absent { sectors },
            Run::Zero { sectors } => LayerRun::Zero { sectors },
            Run::NeedBitmap(request) => LayerRun::NeedBitmap(bitmap_read(id, layer.file(), request)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Layer;
    use crate::plan::FileSlot;
    use crate::units::SectorCount;

    #[test]
    fn a_raw_layer_holds_everything_up_to_its_end() {
        let mut images = Images::new();
        let layer = images.add(Layer::raw(FileSlot(0), SectorCount(8), false));
        let present = LayerRun::Present { offset: ByteOffset(3 * 512), sectors: 5 };
        assert_eq!(images.layer_run(layer, 3, 100), present);
        assert_eq!(images.layer_run(layer, 8, 100), LayerRun::Beyond { sectors: 100 });
        assert_eq!(images.layer_run(LayerId(7), 0, 1), LayerRun::Beyond { sectors: 1 });
    }
}
