//! New images of one core on their way to it: opened layers get the names by which the shard will know them.
//!
//! Knows which layers the core has already. Does not know why images come (`reload`).

use std::collections::HashMap;

use uuid::Uuid;

use super::catalog::UnitSpec;
use super::cli::{DurabilityPolicy, ResetPolicy};
use super::golden::GoldenFiles;
use super::launch::unit_config;
use super::open_image::LayerTable;
use super::roster::{Roster, ServedUnit};
use crate::image::Chain;
use crate::pending::LeafIdentity;
use crate::plan::LayerId;
use crate::scsi::KeptUnit;
use crate::shard::{LayerName, NewDurability, NewLayer, NewUnit};
use crate::uring::UringIo;

#[derive(Debug)]
struct MovingUnit {
    target: String,
    lun: u16,
    served: ServedUnit,
    unit: NewUnit,
    chain: Chain,
}

#[derive(Debug, Default)]
pub(super) struct Moving {
    /// Of these units alone: parents that the core has are parsed once more, and left behind.
    table: LayerTable,
    units: Vec<MovingUnit>,
}

impl Moving {
    /// # Errors
    /// Why the image cannot be served after all.
    pub(super) fn add(
        &mut self,
        target: &str,
        unit: UnitSpec,
        kept: Option<KeptUnit>,
        journaled: bool,
    ) -> Result<(), String> {
        let (lun, block_size, policy) = (unit.lun, unit.block_size, (unit.durability, unit.reset));
        let config = unit_config(target, &unit, kept)?;
        let writable = unit.is_writable();
        let served = ServedUnit::of(&unit.chain, writable);
        let chain = self.table.add(unit.chain).map_err(|error| error.to_string())?;
        let durability = self.table.durability(policy, chain.leaf(), journaled && writable);
        let unit = NewUnit { config, chain: Vec::new(), block_size, writable, durability };
        self.units.push(MovingUnit { target: target.to_owned(), lun, served, unit, chain });
        Ok(())
    }

    /// Everything has its name; what the core lacks goes there.
    pub(super) fn arrive(
        mut self,
        core: usize,
        roster: &mut Roster,
        golden: &mut GoldenFiles,
    ) -> (Vec<NewLayer<UringIo>>, Vec<(String, NewUnit)>) {
        let mut names: HashMap<LayerId, LayerName> = HashMap::new();
        let mut layers = Vec::new();
        // Nothing was removed from the table: layers have the numbers of their files.
        for (id, file) in (0..).map(LayerId).zip(&self.table.files) {
            let shared = !file.is_writable();
            if let Some(known) = roster.parent(core, file).filter(|_| shared) {
                names.insert(id, known);
                continue;
            }
            let Some(layer) = self.table.images.remove(id) else { continue };
            let golden = if shared { golden.of_file(file) } else { None };
            let slots = 1 + u32::from(golden.as_ref().is_some_and(|(_, direct)| direct.is_some()));
            let name = roster.add_layer(core, file, slots);
            names.insert(id, name);
            layers.push(NewLayer { name, layer, file: file.shared(), golden });
        }
        let mut units = Vec::new();
        for MovingUnit { target, lun, served, mut unit, chain } in self.units {
            unit.chain = chain.layers().iter().filter_map(|layer| names.get(layer).copied()).collect();
            roster.add_unit(&target, lun, served);
            units.push((target, unit));
        }
        (layers, units)
    }
}

impl LayerTable {
    /// What answered writes to a leaf outlive.
    pub(super) fn durability(
        &self,
        policy: (DurabilityPolicy, ResetPolicy),
        leaf: LayerId,
        journaled: bool,
    ) -> NewDurability {
        match policy {
            (DurabilityPolicy::UntilReset, reset) => NewDurability::UntilReset(reset.at()),
            (DurabilityPolicy::Persistent, _) if journaled => {
                self.leaf_identity(leaf).map_or(NewDurability::GroupCommit, NewDurability::Journal)
            }
            (DurabilityPolicy::Persistent, _) => NewDurability::GroupCommit,
        }
    }

    /// As a journal of pending writes names a leaf.
    pub(super) fn leaf_identity(&self, leaf: LayerId) -> Option<LeafIdentity> {
        let layer = self.images.layer(leaf)?;
        let file = self.files.get(layer.file().0 as usize)?.identity();
        let unique_id = layer.unique_id_when_written().map_or([0; 16], Uuid::into_bytes);
        Some(LeafIdentity { device: file.device, inode: file.inode, unique_id })
    }
}
