//! Reloads while load runs: targets and units that go and come back, here or on another shard, and rules that change.
//!
//! Knows what `control` sends shards for that, in its order, and what it counts. Does not know what initiators do meanwhile.
//!
//! A place is away from the moment its end is sent until every shard has heard that it is back: so long initiators may be
//! refused. In between its image is closed, and must be whole.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use goldrush::cache::Golden;
use goldrush::image::Layer;
use goldrush::limits::SESSION_CONNECTIONS_DEFAULT;
use goldrush::pending::LeafIdentity;
use goldrush::plan::FileSlot;
use goldrush::scsi::Lun;
use goldrush::shard::{
    Change, ChangeNews, Directory, LayerName, Message, NewDurability, NewLayer, NewUnit, News, Peer, Sent,
    ShardId,
};
use goldrush::vhd::OpenMode;

use crate::board::Board;
use crate::images;
use crate::random::Rng;
use crate::server::{SHARDS, block_size, entry, unit_config};
use crate::sim_io::SimIo;
use crate::world::{Event, MICRO, MILLI, Shared, World};

/// What shards have told, and nobody has heard.
#[derive(Clone, Debug, Default)]
struct Heard(Arc<Mutex<Vec<(ShardId, News)>>>);

impl ChangeNews for Heard {
    fn tell(&mut self, shard: ShardId, news: News) {
        if let Ok(mut heard) = self.0.lock() {
            heard.push((shard, news));
        }
    }
}

/// Where a target is with its going and coming.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Here,
    /// `whole`: the target itself goes; else its unit only.
    Going {
        whole: bool,
        unit_gone: bool,
        target_gone: bool,
    },
    Gone {
        whole: bool,
    },
    /// What brings it back is on its way to the shards.
    Coming,
}

/// The parents a shard has open.
#[derive(Debug, Default)]
struct Parents {
    /// By disk: the name of the layer, and how many chains use it.
    open: BTreeMap<usize, (LayerName, u32)>,
    next: u32,
}

#[derive(Debug)]
pub(crate) struct Reloads {
    heard: Heard,
    places: Vec<Place>,
    directory: Arc<Directory>,
    /// What is still to be sent, in order, each when the one before is applied.
    outbox: VecDeque<(usize, Change<SimIo>)>,
    unapplied: bool,
    parents: Vec<Parents>,
    golden: Arc<Golden>,
    rng: Rng,
}

impl Reloads {
    /// Of a server that has just been started: layers have the numbers they were given then.
    pub(crate) fn new(
        directory: &Arc<Directory>,
        layers: Vec<Vec<usize>>,
        golden: &Arc<Golden>,
        board: &Board,
        rng: Rng,
    ) -> Self {
        let mut parents: Vec<Parents> = Vec::new();
        for disks in layers {
            let open = (0..).zip(&disks).map(|(name, disk)| (*disk, (LayerName(name), 0))).collect();
            parents.push(Parents { open, next: disks.len() as u32 });
        }
        for target in &board.targets {
            for (place, disk) in target.chain.iter().enumerate() {
                let open = &mut parents[target.owner].open;
                if place == 0 {
                    open.remove(disk);
                } else if let Some((_, users)) = open.get_mut(disk) {
                    *users += 1;
                }
            }
        }
        Self {
            heard: Heard::default(),
            places: vec![Place::Here; board.targets.len()],
            directory: Arc::clone(directory),
            outbox: VecDeque::new(),
            unapplied: false,
            parents,
            golden: Arc::clone(golden),
            rng,
        }
    }

    /// When to look again.
    pub(crate) fn wait(&mut self, world: &mut World) {
        let delay = if self.rng.chance(800) {
            self.rng.between(50 * MICRO, 5 * MILLI)
        } else {
            self.rng.between(MILLI, 900 * MILLI)
        };
        world.at(delay, Event::Reload);
    }

    /// True while something is away.
    pub(crate) fn is_away(&self) -> bool {
        self.unapplied || !self.outbox.is_empty() || self.places.iter().any(|place| *place != Place::Here)
    }

    /// One step. Without `more` what is away comes back, and nothing goes.
    ///
    /// # Errors
    /// The rule a shard broke.
    pub(crate) fn step(
        &mut self,
        shared: &Shared,
        peers: &[Peer<SimIo>],
        board: &mut Board,
        more: bool,
    ) -> Result<(), String> {
        self.hear(board)?;
        self.send(peers);
        if self.unapplied || !self.outbox.is_empty() {
            return Ok(());
        }
        for index in 0..self.places.len() {
            match self.places[index] {
                Place::Coming => self.is_back(index, board),
                Place::Going { whole, unit_gone: true, target_gone } if target_gone || !whole => {
                    look_at_closed(&shared.borrow(), board, index)?;
                    self.places[index] = Place::Gone { whole };
                }
                Place::Gone { whole } if !more || self.rng.chance(300) => {
                    self.come(index, whole, shared, board)?;
                    break;
                }
                Place::Here if more && self.rng.chance(60) => {
                    self.go(index, board);
                    break;
                }
                Place::Here if more && self.rng.chance(60) => {
                    self.change_limits(index, board);
                    break;
                }
                _ => {}
            }
        }
        self.send(peers);
        Ok(())
    }

    fn hear(&mut self, board: &Board) -> Result<(), String> {
        let news = self.heard.0.lock().map(|mut heard| std::mem::take(&mut *heard)).unwrap_or_default();
        for (shard, news) in news {
            let named = |target: &String| board.targets.iter().position(|plan| plan.name == *target);
            match news {
                News::Applied => self.unapplied = false,
                News::UnitGone { target, failed, .. } => {
                    let Some(index) = named(&target) else { continue };
                    let Place::Going { unit_gone, .. } = &mut self.places[index] else {
                        return Err(format!("the unit of {target} is gone, and nobody ended it"));
                    };
                    *unit_gone = true;
                    if failed {
                        return Err(format!("the image of {target} was not closed as a whole one"));
                    }
                    self.drop_parents(usize::from(shard.0), &board.targets[index].chain[1..]);
                }
                News::TargetGone { target } => {
                    let place = named(&target).map(|index| &mut self.places[index]);
                    let Some(Place::Going { target_gone, .. }) = place else {
                        return Err(format!("{target} is gone, and nobody ended it"));
                    };
                    *target_gone = true;
                }
                News::LayerGone { .. } | News::ListenerGone { .. } | News::UnitSuspended { .. } => {}
            }
        }
        Ok(())
    }

    fn drop_parents(&mut self, shard: usize, disks: &[usize]) {
        let mut unneeded = Vec::new();
        for disk in disks {
            let open = &mut self.parents[shard].open;
            if let Some((name, users)) = open.get_mut(disk) {
                *users -= 1;
                if *users == 0 {
                    unneeded.push(*name);
                    open.remove(disk);
                }
            }
        }
        if !unneeded.is_empty() {
            let mut change = self.nothing();
            change.end_layers = unneeded;
            self.outbox.push_back((shard, change));
        }
    }

    fn send(&mut self, peers: &[Peer<SimIo>]) {
        if self.unapplied {
            return;
        }
        let Some((shard, change)) = self.outbox.pop_front() else { return };
        match peers[shard].send(Message::Change(Box::new(change))) {
            Sent::Full(Message::Change(change)) => self.outbox.push_front((shard, *change)),
            _ => self.unapplied = true,
        }
    }

    fn nothing(&self) -> Change<SimIo> {
        Change {
            directory: Arc::clone(&self.directory),
            max_connections: SESSION_CONNECTIONS_DEFAULT,
            end_targets: Vec::new(),
            end_units: Vec::new(),
            end_layers: Vec::new(),
            end_listeners: Vec::new(),
            layers: Vec::new(),
            targets: Vec::new(),
            units: Vec::new(),
            suspend: Vec::new(),
            resume: Vec::new(),
            grown: Vec::new(),
            listeners: Vec::new(),
            news: Box::new(self.heard.clone()),
        }
    }

    /// To every shard, the first one last; `fill` says what is new where.
    fn tell_all(&mut self, fill: impl FnOnce(&mut [Change<SimIo>])) {
        let mut changes: Vec<_> = (0..SHARDS).map(|_| self.nothing()).collect();
        fill(&mut changes);
        self.outbox.extend(changes.into_iter().enumerate().rev());
    }

    fn go(&mut self, index: usize, board: &mut Board) {
        let whole = self.rng.chance(600);
        let plan = board.targets[index].clone();
        board.counts.reloads += 1;
        board.leaves(index, whole);
        self.places[index] = Place::Going { whole, unit_gone: false, target_gone: false };
        if whole {
            let mut directory = Directory::clone(&self.directory);
            directory.targets.remove(&plan.name);
            self.directory = Arc::new(directory);
        }
        self.tell_all(|changes| {
            let change = &mut changes[plan.owner];
            if whole {
                // Its unit ends with its sessions.
                change.end_targets.push(plan.name);
            } else {
                change.end_units.extend(Lun::new(0).map(|lun| (plan.name, lun)));
            }
        });
    }

    fn come(&mut self, index: usize, whole: bool, shared: &Shared, board: &mut Board) -> Result<(), String> {
        if whole && self.rng.chance(400) {
            board.targets[index].owner = (board.targets[index].owner + 1) % SHARDS;
        }
        let plan = board.targets[index].clone();
        if whole {
            let mut directory = Directory::clone(&self.directory);
            directory.targets.insert(plan.name.clone(), entry(&plan));
            self.directory = Arc::new(directory);
        }
        let mut world = shared.borrow_mut();
        let (mut layers, mut chain) = (Vec::new(), Vec::new());
        for (place, disk) in plan.chain.iter().copied().enumerate() {
            let leaf = place == 0;
            let parents = &mut self.parents[plan.owner];
            if let Some((name, users)) = parents.open.get_mut(&disk).filter(|_| !leaf) {
                *users += 1;
                chain.push(*name);
                continue;
            }
            let mode = if leaf { OpenMode::Writable } else { OpenMode::ReadOnly };
            let image = images::open(&world.disks[disk].visible, mode)
                .map_err(|error| format!("disk {disk} does not open again: {error}"))?;
            let name = LayerName(parents.next);
            parents.next += 1;
            let mut golden = None;
            if !leaf {
                parents.open.insert(disk, (name, 1));
                golden = self.golden.register(world.disks[disk].visible.len()).map(|number| (number, None));
            }
            chain.push(name);
            layers.push(NewLayer { name, layer: Layer::vhd(FileSlot(0), image), file: disk, golden });
        }
        let leaf = plan.chain[0];
        let journal = world.journals.iter_mut().find(|journal| journal.shard == plan.owner);
        let durability = match journal {
            Some(journal) => {
                journal.may_have(leaf);
                let inode = leaf as u64;
                NewDurability::Journal(LeafIdentity { device: 0, inode, unique_id: [0; 16] })
            }
            None => NewDurability::GroupCommit,
        };
        let kept = world.kept.get(&plan.name).cloned().unwrap_or_default();
        let sectors = board.models[index].len();
        let config = unit_config(&plan, sectors, kept).ok_or("LUN 0 exists")?;
        let unit = NewUnit { config, chain, block_size: block_size(&plan), writable: true, durability };
        self.places[index] = Place::Coming;
        self.tell_all(|changes| {
            let change = &mut changes[plan.owner];
            change.layers = layers;
            change.units.push((plan.name.clone(), unit));
            if whole {
                change.targets.push(plan.name);
            }
        });
        Ok(())
    }

    fn is_back(&mut self, index: usize, board: &mut Board) {
        self.places[index] = Place::Here;
        board.is_back(index);
    }

    fn change_limits(&mut self, index: usize, board: &mut Board) {
        board.targets[index].limits = crate::plan::limits(&mut self.rng);
        let mut directory = Directory::clone(&self.directory);
        if let Some(entry) = directory.targets.get_mut(&board.targets[index].name) {
            entry.limits = board.targets[index].limits;
        }
        self.directory = Arc::new(directory);
        self.tell_all(|_| {});
    }
}

/// A unit that is gone has left a whole image with all that was answered.
fn look_at_closed(world: &World, board: &Board, index: usize) -> Result<(), String> {
    let plan = &board.targets[index];
    let chain: Vec<_> = plan.chain.iter().map(|disk| &world.disks[*disk].visible).collect();
    let findings = images::findings(chain[0]);
    if !findings.is_empty() {
        return Err(format!("the image of {}, whose unit was removed: {}", plan.name, findings.join("; ")));
    }
    let found = images::tags(&chain, board.models[index].len());
    let mut model = board.models[index].clone();
    model
        .restarted(found.into_iter(), false)
        .map_err(|error| format!("the image of {}, whose unit was removed: {error}", plan.name))
}
