//! What a running server holds: which core has which target, and who uses which open file.
//!
//! Knows names of layers and counts users. Does not know what is done with an image, nor when it changes (`reload`).
//!
//! A file is closed when the last core that has it says so. A parent is told to go when its last unit is gone.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::file::{FileIdentity, OpenedFile};
use super::open_image::{Format, LayerTable, OpenedChain};
use crate::shard::{LayerName, ShardId};
use crate::units::SectorCount;

/// A unit as it was opened.
#[derive(Clone, Debug)]
pub(super) struct ServedUnit {
    /// Leaf first.
    pub(super) files: Vec<Arc<OpenedFile>>,
    pub(super) writable: bool,
    pub(super) format: Format,
    pub(super) sectors: SectorCount,
}

impl ServedUnit {
    pub(super) fn of(chain: &OpenedChain, writable: bool) -> Self {
        Self {
            files: chain.layers().iter().map(|layer| layer.file().clone()).collect(),
            writable,
            format: chain.leaf().format(),
            sectors: chain.sectors(),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct ServedTarget {
    pub(super) owner: usize,
    pub(super) units: BTreeMap<u16, ServedUnit>,
}

/// A read-only layer of one core.
#[derive(Debug)]
struct Parent {
    name: LayerName,
    /// Units that read it.
    users: u32,
    /// Slots of the ring it takes.
    slots: u32,
}

#[derive(Debug, Default)]
struct CoreRoster {
    next_layer: u32,
    /// Slots of the ring that are taken.
    slots: u32,
    targets: u32,
    parents: HashMap<FileIdentity, Parent>,
    /// Parents that were told to go.
    leaving: HashMap<LayerName, (FileIdentity, u32)>,
}

/// A unit that was told to go.
#[derive(Debug)]
struct LeavingUnit {
    core: usize,
    target: String,
    lun: u16,
    unit: ServedUnit,
}

#[derive(Debug, Default)]
pub(super) struct Roster {
    cores: Vec<CoreRoster>,
    pub(super) targets: HashMap<String, ServedTarget>,
    leaving: Vec<LeavingUnit>,
    /// Every open file, and how many layers of all cores it is.
    open: HashMap<FileIdentity, (Arc<OpenedFile>, u32)>,
}

impl Roster {
    pub(super) fn new(cores: usize) -> Self {
        Self { cores: (0..cores).map(|_| CoreRoster::default()).collect(), ..Self::default() }
    }

    /// A core for each new target: the one that has the fewest by then.
    pub(super) fn owners_for(&self, targets: &[String]) -> HashMap<String, usize> {
        let mut counts: Vec<u32> = self.cores.iter().map(|core| core.targets).collect();
        let mut freest = || {
            let (core, count) = counts.iter_mut().enumerate().min_by_key(|(_, count)| **count)?;
            *count += 1;
            Some(core)
        };
        targets.iter().filter_map(|name| Some((name.clone(), freest()?))).collect()
    }

    pub(super) fn add_target(&mut self, name: &str, owner: usize) {
        self.cores[owner].targets += 1;
        self.targets.insert(name.to_owned(), ServedTarget { owner, units: BTreeMap::new() });
    }

    /// Whose a target is.
    pub(super) fn owner(&self, target: &str) -> ShardId {
        ShardId(self.targets.get(target).map_or(0, |served| served.owner) as u16)
    }

    /// What a shard is started with: its layers have the numbers of its table.
    pub(super) fn began(&mut self, core: usize, table: &LayerTable, slots: u32) {
        let roster = &mut self.cores[core];
        roster.next_layer = table.files.len() as u32;
        roster.slots = slots;
        for (layer, file) in (0..).zip(&table.files) {
            let open = self.open.entry(file.identity()).or_insert_with(|| (Arc::clone(file), 0));
            open.1 += 1;
            if !file.is_writable() {
                // A second slot to read whole pages from, at most.
                let parent = Parent { name: LayerName(layer), users: 0, slots: 2 };
                roster.parents.insert(file.identity(), parent);
            }
        }
    }

    /// Notes a unit whose layers the core has.
    pub(super) fn add_unit(&mut self, target: &str, lun: u16, unit: ServedUnit) {
        let Some(served) = self.targets.get_mut(target) else { return };
        let parents = &mut self.cores[served.owner].parents;
        for file in unit.files.iter().filter(|file| !file.is_writable()) {
            if let Some(parent) = parents.get_mut(&file.identity()) {
                parent.users += 1;
            }
        }
        served.units.insert(lun, unit);
    }

    /// The layer a core has of a file nobody writes.
    pub(super) fn parent(&self, core: usize, file: &OpenedFile) -> Option<LayerName> {
        self.cores[core].parents.get(&file.identity()).map(|parent| parent.name)
    }

    /// Names one more layer of a core, which takes so many slots of its ring.
    pub(super) fn add_layer(&mut self, core: usize, file: &Arc<OpenedFile>, slots: u32) -> LayerName {
        let roster = &mut self.cores[core];
        let name = LayerName(roster.next_layer);
        roster.next_layer += 1;
        roster.slots += slots;
        if !file.is_writable() {
            roster.parents.insert(file.identity(), Parent { name, users: 0, slots });
        }
        self.open.entry(file.identity()).or_insert_with(|| (Arc::clone(file), 0)).1 += 1;
        name
    }

    /// Another name for a file that a core has let go of and gets back: `unit`'s own, as it is now.
    pub(super) fn leaf_again(
        &mut self,
        target: &str,
        lun: u16,
        leaf: Arc<OpenedFile>,
        sectors: SectorCount,
    ) -> Option<LayerName> {
        let served = self.targets.get_mut(target)?;
        let unit = served.units.get_mut(&lun)?;
        unit.sectors = sectors;
        *unit.files.first_mut()? = leaf;
        let roster = &mut self.cores[served.owner];
        let name = LayerName(roster.next_layer);
        roster.next_layer += 1;
        Some(name)
    }

    /// Slots of a core's ring that are taken.
    pub(super) fn slots(&self, core: usize) -> u32 {
        self.cores[core].slots
    }

    /// The unit is told to go.
    pub(super) fn end_unit(&mut self, target: &str, lun: u16) {
        let Some(served) = self.targets.get_mut(target) else { return };
        let Some(unit) = served.units.remove(&lun) else { return };
        self.leaving.push(LeavingUnit { core: served.owner, target: target.to_owned(), lun, unit });
    }

    /// The target and its units are told to go.
    pub(super) fn end_target(&mut self, target: &str) {
        let Some(served) = self.targets.get(target) else { return };
        let luns: Vec<u16> = served.units.keys().copied().collect();
        self.cores[served.owner].targets -= 1;
        luns.into_iter().for_each(|lun| self.end_unit(target, lun));
        self.targets.remove(target);
    }

    /// The unit that still has this file open although it is told to go.
    pub(super) fn leaver_of(&self, file: FileIdentity) -> Option<(&str, u16)> {
        let has = |unit: &ServedUnit| unit.files.iter().any(|it| it.identity() == file);
        let leaver = self.leaving.iter().find(|leaver| has(&leaver.unit))?;
        Some((&leaver.target, leaver.lun))
    }

    /// Some core still reads this file although nobody needs it any more.
    pub(super) fn is_parent_leaving(&self, file: FileIdentity) -> bool {
        self.cores.iter().any(|core| core.leaving.values().any(|(leaving, _)| *leaving == file))
    }

    /// The core has closed the unit: files that are free now, and the parents nobody on that core needs any more.
    pub(super) fn unit_gone(
        &mut self,
        core: usize,
        target: &str,
        lun: u16,
    ) -> (Vec<FileIdentity>, Vec<LayerName>) {
        let is_it = |it: &LeavingUnit| (it.core, it.target.as_str(), it.lun) == (core, target, lun);
        let Some(at) = self.leaving.iter().position(is_it) else { return Default::default() };
        let LeavingUnit { unit, .. } = self.leaving.remove(at);
        let (mut free, mut unneeded) = (Vec::new(), Vec::new());
        for file in &unit.files {
            let identity = file.identity();
            if file.is_writable() {
                self.cores[core].slots -= 1;
                free.extend(self.close(identity));
                continue;
            }
            let roster = &mut self.cores[core];
            let Some(parent) = roster.parents.get_mut(&identity) else { continue };
            parent.users = parent.users.saturating_sub(1);
            if parent.users == 0
                && let Some(parent) = roster.parents.remove(&identity)
            {
                roster.leaving.insert(parent.name, (identity, parent.slots));
                unneeded.push(parent.name);
            }
        }
        (free, unneeded)
    }

    /// The core has let go of a parent: its file, when nobody else has it.
    pub(super) fn layer_gone(&mut self, core: usize, name: LayerName) -> Option<FileIdentity> {
        let (identity, slots) = self.cores[core].leaving.remove(&name)?;
        self.cores[core].slots -= slots;
        self.close(identity)
    }

    fn close(&mut self, identity: FileIdentity) -> Option<FileIdentity> {
        let (file, layers) = self.open.get_mut(&identity)?;
        *layers -= 1;
        if *layers > 0 {
            return None;
        }
        // The kernel closes descriptors of a ring in its own time; the next user need not wait for that.
        file.unlock();
        self.open.remove(&identity);
        Some(identity)
    }

    /// Every lock is given up: all shards have ended.
    pub(super) fn unlock_all(&self) {
        self.open.values().for_each(|(file, _)| file.unlock());
    }
}
