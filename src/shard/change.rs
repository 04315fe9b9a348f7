//! What a reload of the configuration adds to a running shard: layers, targets, units, listeners, rules.
//!
//! Knows in which order: files before what names them, rules last, so that no login finds a target before it is there.
//! Does not know configurations (`control` has opened and checked everything), nor how things end (`end`).

use core::fmt;
use std::sync::Arc;

use crate::cache::GoldenFile;
use crate::image::{Chain, Layer};
use crate::io::Io;
use crate::pending::LeafIdentity;
use crate::plan::{FileSlot, LayerId};
use crate::scsi::{Device, DeviceConfig, Lun, UnitConfig, UnitIndex};
use crate::units::{BlockSize, SectorCount};

use super::commit::LayerWork;
use super::end::Listening;
use super::records::{Durability, ResetAt};
use super::suspend::ResumedUnit;
use super::target::Target;
use super::{Directory, PORTAL_GROUP, Shard, ShardId, UnitSeed};

/// What `control` calls a layer of a shard: never used for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerName(pub u32);

/// One more open file of some chain.
#[derive(Debug)]
pub struct NewLayer<I: Io> {
    pub name: LayerName,
    pub layer: Layer,
    pub file: I::File,
    /// Nobody writes it: its name in the golden cache, and another open file to read whole pages from, if there is one.
    pub golden: Option<(GoldenFile, Option<I::File>)>,
}

/// What an answered write to a new leaf outlives: see [`Durability`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewDurability {
    GroupCommit,
    /// The journal, where it has room for one more leaf.
    Journal(LeafIdentity),
    UntilReset(ResetAt),
}

/// One more unit of a target.
#[derive(Debug)]
pub struct NewUnit {
    pub config: UnitConfig,
    /// Leaf first.
    pub chain: Vec<LayerName>,
    pub block_size: BlockSize,
    pub writable: bool,
    pub durability: NewDurability,
}

/// Who is told how a change goes on.
pub trait ChangeNews: fmt::Debug + Send {
    fn tell(&mut self, shard: ShardId, news: News);
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// What was to be added is there, and the new rules hold.
    Applied,
    /// No command works for the unit any more. One that was written is closed, and its file is free; `failed`: not as a
    /// whole image.
    UnitGone {
        target: String,
        lun: Lun,
        failed: bool,
    },
    /// No session is left, and no unit.
    TargetGone {
        target: String,
    },
    /// The image of a unit that was to be suspended is closed, and its file free. Not `closed`: its commands did not end in
    /// time, and it goes on.
    UnitSuspended {
        target: String,
        lun: Lun,
        closed: bool,
    },
    /// The file of the layer is free.
    LayerGone {
        name: LayerName,
    },
    ListenerGone {
        index: u32,
    },
}

/// All that changes on one shard. Targets are named as in the directory.
#[derive(Debug)]
pub struct Change<I: Io> {
    pub directory: Arc<Directory>,
    pub max_connections: u32,
    /// Their sessions are asked to log out; their units end.
    pub end_targets: Vec<String>,
    pub end_units: Vec<(String, Lun)>,
    /// Layers nobody writes that no unit uses any more.
    pub end_layers: Vec<LayerName>,
    /// By the place they were added at.
    pub end_listeners: Vec<u32>,
    pub layers: Vec<NewLayer<I>>,
    pub targets: Vec<String>,
    pub units: Vec<(String, NewUnit)>,
    /// Their images are wanted for a moment.
    pub suspend: Vec<(String, Lun)>,
    /// Those that were suspended and go on.
    pub resume: Vec<ResumedUnit>,
    /// Raw files that have grown, and to what.
    pub grown: Vec<(String, Lun, SectorCount)>,
    pub listeners: Vec<I::Listener>,
    pub news: Box<dyn ChangeNews>,
}

impl<I: Io> Shard<I> {
    pub(super) fn change(&mut self, change: Change<I>) {
        self.news = Some(change.news);
        if self.is_stopping() {
            self.tell(News::Applied);
            return;
        }
        for (target, lun) in change.end_units {
            self.end_unit(&target, lun);
        }
        for target in change.end_targets {
            self.end_target(&target);
        }
        self.endings.layers.extend(change.end_layers.into_iter().map(super::end::LayerEnding::new));
        for layer in change.layers {
            self.add_layer(layer);
        }
        for name in change.targets {
            self.add_target(name);
        }
        for (target, unit) in change.units {
            self.add_unit(&target, unit);
        }
        for resumed in change.resume {
            self.resume(resumed);
        }
        for (target, lun) in change.suspend {
            self.suspend(&target, lun);
        }
        for (target, lun, sectors) in change.grown {
            self.grow(&target, lun, sectors);
        }
        self.config.max_connections = change.max_connections;
        self.new_rules(change.directory);
        for listener in change.listeners {
            match self.io.adopt_listener(listener) {
                Ok(slot) => self.listeners.push(Listening::Open(slot)),
                Err(_) => {
                    tracing::error!(
                        "a new address is not listened on: the ring has all the listeners it takes"
                    );
                    self.listeners.push(Listening::Closed);
                }
            }
            self.accept(self.listeners.len() as u32 - 1);
        }
        for index in change.end_listeners {
            self.end_listener(index);
        }
        self.tell(News::Applied);
    }

    pub(super) fn tell(&mut self, news: News) {
        if let Some(to) = &mut self.news {
            to.tell(self.config.id, news);
        }
    }

    fn adopt(&mut self, file: I::File) -> Option<FileSlot> {
        let adopted = self.io.adopt_file(file);
        if adopted.is_err() {
            // `control` counts files before it sends any.
            tracing::error!("an image is not served: the ring of this core has all the files it takes");
        }
        adopted.ok()
    }

    fn add_layer(&mut self, new: NewLayer<I>) {
        let NewLayer { name, mut layer, file, golden } = new;
        let Some(slot) = self.adopt(file) else { return };
        layer.set_file(slot);
        if let Some((number, direct)) = golden {
            let source = direct.and_then(|file| self.adopt(file)).unwrap_or(slot);
            self.core.cache.set_file(slot, number, source);
        }
        let id = self.core.images.add(layer);
        let work = LayerWork::new(slot);
        match self.core.layers.get_mut(id.0 as usize) {
            Some(place) => *place = work,
            None => self.core.layers.push(work),
        }
        self.core.layer_names.insert(name, id);
    }

    fn add_target(&mut self, name: String) {
        let config =
            DeviceConfig { target_name: name.clone(), portal_group: PORTAL_GROUP, units: Vec::new() };
        let Ok(device) = Device::new(config) else { return };
        let target = Target::new(name.clone(), device, Vec::new());
        let index = match self.core.free_targets.pop() {
            Some(index) => {
                self.core.targets[index as usize] = target;
                index
            }
            None => {
                self.core.targets.push(target);
                self.core.targets.len() as u32 - 1
            }
        };
        self.core.target_names.insert(name, index);
    }

    fn add_unit(&mut self, target: &str, new: NewUnit) {
        let lun = new.config.identity.lun.number();
        if let Err(reason) = self.try_add_unit(target, new) {
            // Everything was checked before it came here.
            tracing::error!(target, lun, reason, "a new LUN is not served");
        }
    }

    fn try_add_unit(&mut self, target: &str, new: NewUnit) -> Result<(), String> {
        let index = self.core.target_index(target).ok_or("there is no such target")?;
        let layers: Option<Vec<LayerId>> =
            new.chain.iter().map(|name| self.core.layer_names.get(name).copied()).collect();
        let layers = layers.ok_or("its image is not open")?;
        let chain = Chain::new(&self.core.images, layers).map_err(|error| error.to_string())?;
        let leaf = chain.leaf();
        let leaf_file = self.core.layers[leaf.0 as usize].file();
        let place = &mut self.core.targets[index as usize];
        let unit = place.device.add_unit(&new.config).map_err(|error| error.to_string())?;
        if new.writable {
            self.core.layers[leaf.0 as usize].records.durability = self.core.durability(&new.durability);
        }
        let durability = self.core.layers[leaf.0 as usize].records.durability;
        let seed = UnitSeed {
            chain,
            block_size: new.block_size,
            leaf,
            leaf_file,
            writable: new.writable,
            durability,
        };
        let lun = self.core.add_lun(seed, index, unit);
        self.core.targets[index as usize].set_lun(unit, lun);
        self.core.resume_atomic(index, unit);
        self.core.resume_sanitize(index, unit);
        Ok(())
    }

    fn grow(&mut self, target: &str, lun: Lun, sectors: SectorCount) {
        let Some(index) = self.core.target_index(target) else { return };
        let place = &mut self.core.targets[index as usize];
        let Some(unit) = place.device.unit(lun.to_field()) else { return };
        let state = &mut self.core.luns[place.lun(unit) as usize];
        if !self.core.images.grow_raw(state.leaf, sectors) {
            return;
        }
        if let Ok(chain) = Chain::new(&self.core.images, state.chain.layers().to_vec()) {
            state.chain = chain;
            place.device.capacity_changed(unit, sectors.0 / state.block_size.sectors());
            tracing::info!(target, lun = lun.number(), sectors = sectors.0, "the LUN has grown");
        }
    }

    /// New rules hold for every new login. Of the sessions there are, those that a changed rule does not admit any more
    /// end, and those that a changed rule shows other LUNs hear of it.
    fn new_rules(&mut self, directory: Arc<Directory>) {
        let former = core::mem::replace(&mut self.directory, directory);
        if Arc::ptr_eq(&former, &self.directory) {
            return;
        }
        for index in 0..self.core.targets.len() as u32 {
            let Some(entry) = self.directory.find(&self.core.targets[index as usize].name) else { continue };
            self.core.targets[index as usize].rate.set_limits(entry.limits);
            // A target that came with this change had no rules before; nobody is logged in to it.
            let Some(before) = former.find(&self.core.targets[index as usize].name) else { continue };
            let (narrowed, shown) = (entry.access != before.access, entry.units != before.units);
            if narrowed || shown {
                self.apply_rules(index, narrowed);
            }
        }
    }

    fn apply_rules(&mut self, index: u32, narrowed: bool) {
        for entry in self.core.targets[index as usize].sessions.clone() {
            let conn = self.sessions.get(entry.session).and_then(|session| session.connections_now().next());
            let Some(connection) = conn.and_then(|conn| self.connections.get(conn)) else { continue };
            let peer = connection.peer.ip();
            let Some(rules) = self.directory.find(&self.core.targets[index as usize].name) else { continue };
            if narrowed && !rules.access.admits(&entry.initiator, peer, &self.macs) {
                self.end_session(entry.session, "the target's new rules do not admit it");
            } else if self.mask_units(index, entry.nexus, &entry.initiator, peer) {
                self.core.targets[index as usize].device.luns_changed(entry.nexus);
            }
        }
    }
}

impl super::executor::Core {
    pub(super) fn durability(&mut self, new: &NewDurability) -> Durability {
        match new {
            NewDurability::GroupCommit => Durability::GroupCommit,
            NewDurability::UntilReset(at) => Durability::UntilReset(*at),
            NewDurability::Journal(identity) => {
                let leaf = self.journal.as_mut().and_then(|area| area.add_leaf(identity));
                // Correct without: first writes wait for commits.
                leaf.map_or(Durability::GroupCommit, Durability::Journal)
            }
        }
    }

    /// The unit's place among the shard's.
    pub(super) fn lun_of(&self, target: u32, unit: UnitIndex) -> u32 {
        self.targets[target as usize].lun(unit)
    }
}
