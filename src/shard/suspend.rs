//! A unit whose image somebody else works on for a moment: its commands wait, its image is closed as when the server stops, and
//! comes back, larger.
//!
//! Knows how a unit lets go of its file and takes another. Does not know what is done to it meanwhile (`control`).
//!
//! The unit stays in its device, so that its initiators notice nothing but a pause and, behind it, another capacity.

use crate::image::Chain;
use crate::io::Io;
use crate::plan::LayerId;
use crate::scsi::Lun;

use super::Shard;
use super::change::{LayerName, NewDurability, News};

/// The image of a suspended unit, open again. Its layers are there already, or come with the same change.
#[derive(Debug)]
pub struct ResumedUnit {
    pub target: String,
    pub lun: Lun,
    /// Leaf first; `None`: it cannot be served any more, and the unit goes.
    pub chain: Option<Vec<LayerName>>,
    pub durability: NewDurability,
}

impl<I: Io> Shard<I> {
    /// Commands of the target wait until [`Self::resume`]. [`News::UnitSuspended`] says when the file is free, or that
    /// commands which had begun did not end in time.
    pub(super) fn suspend(&mut self, target: &str, lun: Lun) {
        let index = self.core.target_index(target);
        let unit = index.and_then(|index| {
            let unit = self.core.targets[index as usize].device.unit(lun.to_field())?;
            Some((index, unit))
        });
        let Some((index, unit)) = unit else {
            self.tell(News::UnitSuspended { target: target.to_owned(), lun, closed: false });
            return;
        };
        let place = self.core.lun_of(index, unit);
        self.core.targets[index as usize].holds += 1;
        self.core.end_background_copies(index, Some(unit));
        // What a token stands for is read through the image that goes.
        self.core.luns[place as usize].rods.forget();
        self.end_unit_for_a_while(index, unit, lun, place);
    }

    /// A unit that was suspended goes on.
    pub(super) fn resume(&mut self, resumed: ResumedUnit) {
        let ResumedUnit { target, lun, chain, durability } = resumed;
        let Some(index) = self.core.target_index(&target) else { return };
        let Some(unit) = self.core.targets[index as usize].device.unit(lun.to_field()) else { return };
        let place = self.core.lun_of(index, unit);
        let layers: Option<Vec<LayerId>> = chain
            .and_then(|names| names.iter().map(|name| self.core.layer_names.get(name).copied()).collect());
        let chain = layers.and_then(|layers| Chain::new(&self.core.images, layers).ok());
        match chain {
            Some(chain) => {
                let leaf = chain.leaf();
                self.core.layers[leaf.0 as usize].records.durability = self.core.durability(&durability);
                let state = &mut self.core.luns[place as usize];
                let before = state.chain.sectors();
                (state.leaf, state.leaf_file) = (leaf, self.core.layers[leaf.0 as usize].file());
                (state.chain, state.writable) = (chain, true);
                let sectors = state.chain.sectors();
                if sectors != before {
                    let blocks = sectors.0 / state.block_size.sectors();
                    self.core.targets[index as usize].device.capacity_changed(unit, blocks);
                    tracing::info!(target, lun = lun.number(), sectors = sectors.0, "the LUN has grown");
                }
            }
            None => {
                let device = &mut self.core.targets[index as usize].device;
                if device.end_unit(lun).is_some() {
                    device.vacate(unit);
                    self.core.free_luns.push(place);
                }
                tracing::error!(
                    target,
                    lun = lun.number(),
                    "the LUN is gone: its image could not be opened again"
                );
            }
        }
        self.release_target(index);
    }
}
