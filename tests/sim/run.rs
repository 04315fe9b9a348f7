//! One run: a server, its initiators and their disks, from a seed to a verdict.
//!
//! Knows the order of things. Does not know what is checked on the way (`checks`, `model`, `world`).

use core::num::NonZeroU64;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use goldrush::shard::RateLimits;

use crate::board::{Board, ChapPlan, Counts, TargetPlan};
use crate::disk::{SimFile, Survival};
use crate::images;
use crate::initiator::{Initiator, Role};
use crate::model::Model;
use crate::random::Rng;
use crate::server::Server;
use crate::world::{Event, Faults, MICRO, SECOND, Sabotage, Shared, World};

/// More events than any run needs.
const EVENTS_MAX: u64 = 3_000_000;
/// Virtual seconds, likewise.
const SECONDS_MAX: u64 = 20_000;

/// The target that wants CHAP.
pub(crate) const CHAP_TARGET: usize = 1;

pub(crate) fn target_name(index: usize) -> String {
    format!("iqn.2026-11.sim:target-{index}")
}

/// How a server ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// Everybody logs out, nothing may be left over, then it is told to stop.
    Quiet,
    /// It is told to stop while they work.
    Stop,
    /// Its process is killed: what it wrote is there.
    Kill,
    /// The power goes: what it synced is there.
    PowerCut,
}

struct Run {
    world: Shared,
    board: Board,
    initiators: Vec<Initiator>,
    server: Option<Server>,
    busy_until: Vec<u64>,
    rng: Rng,
    golden_disks: Vec<(usize, u64)>,
}

/// Runs a seed.
///
/// # Errors
/// Every rule that was broken, one a line.
pub(crate) fn run(seed: u64, sabotage: Sabotage) -> Result<Counts, String> {
    let mut run = Run::new(seed, sabotage);
    let epochs = run.rng.between(1, 3);
    let mut result = Ok(());
    for epoch in 0..epochs {
        result = run.epoch(epoch + 1 == epochs, sabotage);
        if result.is_err() || !run.world.borrow().violations.is_empty() {
            break;
        }
    }
    let world = run.world.borrow();
    if let Err(error) = &mut result {
        *error = format!("{error}\n{:?}", world.faults);
    }
    let mut errors = world.violations.clone();
    if errors.is_empty() {
        errors.extend(result.err());
    }
    let mut counts = run.board.counts;
    counts.events = world.events_seen;
    counts.seconds = world.now / SECOND;
    if errors.is_empty() { Ok(counts) } else { Err(errors.join("\n")) }
}

fn faults(rng: &mut Rng, sabotage: Sabotage) -> Faults {
    let mut some = |often: &[u32]| if rng.chance(500) { rng.pick(often) } else { 0 };
    let mut faults = Faults {
        short_send: some(&[20, 300, 900]),
        short_file_op: some(&[10, 200, 700]),
        starved_recv: some(&[10, 200]),
        recv_rearm: some(&[10, 300]),
        slow_op: some(&[1, 5]),
        no_punch: false,
        sabotage,
        ..Faults::default()
    };
    faults.no_punch = rng.chance(200);
    if rng.chance(200) && sabotage == Sabotage::None {
        match rng.below(3) {
            0 => faults.disk_error = rng.pick(&[2, 20]),
            1 => faults.disk_full = rng.pick(&[5, 50]),
            _ => faults.sync_error = rng.pick(&[20, 200]),
        }
    }
    faults
}

/// Some targets are slowed down; what they answer is the same.
fn limits(rng: &mut Rng) -> RateLimits {
    let bound = |least: u64| NonZeroU64::new(least);
    match rng.below(8) {
        0 => RateLimits { commands: bound(400), bytes: None },
        1 => RateLimits { commands: None, bytes: bound(20_000_000) },
        2 => RateLimits { commands: bound(2000), bytes: bound(50_000_000) },
        _ => RateLimits::default(),
    }
}

impl Run {
    fn new(seed: u64, sabotage: Sabotage) -> Self {
        let mut rng = Rng::new(seed);
        let faults = faults(&mut rng, sabotage);
        let disk_faults = faults.disk_error + faults.disk_full + faults.sync_error > 0;
        let mut world = World::new(rng.fork(), faults);
        let sectors = rng.between(300, 1300) * 8;
        let golden = images::golden(&mut rng, sectors);
        for file in &golden.files {
            world.disks.push(SimFile::durable(file.clone(), true));
        }
        let golden_disks = world.disks.iter().map(|disk| disk.visible.digest()).enumerate().collect();
        let parents: Vec<usize> = (0..golden.files.len()).collect();
        let mut targets = Vec::new();
        for index in 0..rng.between(2, 3) as usize {
            let block_size = rng.pick(&[512 << 10, 512 << 10, 1 << 20, 2 << 20]);
            let child = images::child(&golden, 100 + index as u128, sectors, block_size);
            world.disks.push(SimFile::durable(child, false));
            let mut chain = vec![world.disks.len() - 1];
            chain.extend(&parents);
            let mutual = rng.chance(500).then(|| ("the target".to_owned(), "a secret of its own".to_owned()));
            let chap = (index == CHAP_TARGET).then(|| ChapPlan {
                user: "machine".to_owned(),
                secret: "a secret, not short".to_owned(),
                mutual,
            });
            targets.push(TargetPlan {
                name: target_name(index),
                owner: index.min(1),
                chap,
                allowed: None,
                block: if index == 2 { 8 } else { 1 },
                chain,
                limits: limits(&mut rng),
            });
        }
        let models = targets.iter().map(|_| Model::new(golden.tags.iter().copied())).collect();
        let mut initiators = workers(&mut rng, &targets, sectors);
        targets[0].allowed = Some(initiators.iter().map(|initiator| initiator.name.clone()).collect());
        for (role, target) in [
            (Role::Discoverer, 0),
            (Role::Silent, 0),
            (Role::Lost, 1),
            (Role::Impostor, CHAP_TARGET),
            (Role::Stranger, 0),
            (Role::Hasty, 0),
            (Role::Babbler, 0),
        ] {
            if rng.chance(250) {
                let fork = rng.fork();
                initiators.push(Initiator::new(initiators.len(), role, target, (0, 8), fork));
            }
        }
        let count = targets.len();
        let board = Board {
            targets,
            models,
            reset_until: vec![0; count],
            cold_until: vec![0; count],
            stopping: false,
            disk_faults,
            management: if rng.chance(500) { rng.pick(&[3, 20]) } else { 0 },
            misbehaviour: if rng.chance(400) { rng.pick(&[1, 8]) } else { 0 },
            counts: Counts::default(),
        };
        let world = Rc::new(RefCell::new(world));
        Self { world, board, initiators, server: None, busy_until: Vec::new(), rng, golden_disks }
    }

    /// One life of the server.
    fn epoch(&mut self, last: bool, sabotage: Sabotage) -> Result<(), String> {
        let unsafe_sync = self.world.borrow().faults.sync_error > 0;
        let ending = match self.rng.below(10) {
            // What a failed sync lost stays visible until the power goes; the next process is not told of it.
            _ if unsafe_sync && !last => Ending::PowerCut,
            _ if sabotage == Sabotage::LyingSync => Ending::PowerCut,
            _ if last && self.rng.chance(500) => Ending::Quiet,
            0..2 => Ending::Quiet,
            2..4 => Ending::Stop,
            4..6 => Ending::Kill,
            _ => Ending::PowerCut,
        };
        self.board.counts.restarts += 1;
        self.board.stopping = false;
        self.server = Some(Server::boot(&self.world, &self.board.targets, &mut self.rng)?);
        self.busy_until = vec![0; self.world.borrow().ports.len()];
        for initiator in &mut self.initiators {
            initiator.server_gone();
            initiator.quota = self.rng.between(6, 30) as u32;
            initiator.tick(&mut self.world.borrow_mut());
        }
        match ending {
            Ending::Quiet => {
                self.drive(u64::MAX, |run| run.initiators.iter().all(|initiator| initiator.finished))?;
                self.drive(u64::MAX, Self::is_quiet)?;
                self.nothing_is_left()?;
                self.stop()?;
            }
            Ending::Stop => {
                let events = self.rng.between(50, 4000);
                self.drive(events, |run| run.initiators.iter().all(|initiator| initiator.finished))?;
                self.stop()?;
            }
            Ending::Kill | Ending::PowerCut => {
                let events = self.rng.between(50, 6000);
                self.drive(events, |run| run.initiators.iter().all(|initiator| initiator.finished))?;
            }
        }
        self.server = None;
        self.world.borrow_mut().forget_servers();
        for initiator in &mut self.initiators {
            initiator.server_gone();
        }
        self.verify(ending)
    }

    fn is_quiet(&self) -> bool {
        let world = self.world.borrow();
        let Some(server) = &self.server else { return true };
        let no_work = server.shards.iter().all(|shard| {
            let load = shard.load();
            load.connections + load.tasks + load.bitmap_reads + load.batches == 0
        });
        no_work && world.ports.iter().all(|port| port.inbox.is_empty() && port.ops.len() <= 2)
    }

    /// Everybody is gone: so is everything they used.
    fn nothing_is_left(&self) -> Result<(), String> {
        let Some(server) = &self.server else { return Ok(()) };
        for (shard, start) in server.shards.iter().zip(&server.at_start) {
            let load = shard.load();
            if load != *start {
                return Err(format!("a shard that nobody uses has {load:?}, at its start it had {start:?}"));
            }
        }
        let world = self.world.borrow();
        for (shard, port) in world.ports.iter().enumerate() {
            let held = port.rx.iter().filter(|piece| piece.is_some()).count();
            if held > 0 || port.sockets.iter().any(Option::is_some) {
                return Err(format!("shard {shard} still holds {held} received pieces, or sockets"));
            }
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<(), String> {
        self.board.stopping = true;
        // Telling a shard twice does no harm.
        while !self.server.as_ref().is_none_or(Server::tell_to_stop) {
            self.drive(10, Self::is_stopped)?;
        }
        self.drive(u64::MAX, Self::is_stopped)
    }

    fn is_stopped(&self) -> bool {
        self.server.as_ref().is_none_or(Server::is_stopped)
    }

    /// Until `done`, or for so many events.
    fn drive(&mut self, mut events: u64, done: impl Fn(&Self) -> bool) -> Result<(), String> {
        while events > 0 && !done(self) {
            events -= 1;
            self.world.borrow_mut().check_wakers();
            let Some((time, shard)) = self.next() else {
                return Err("nothing will ever happen any more, and the run is not over".to_owned());
            };
            let mut world = self.world.borrow_mut();
            world.now = world.now.max(time);
            if world.now > SECONDS_MAX * SECOND || world.events_seen > EVENTS_MAX {
                let waiting: Vec<_> = self.initiators.iter().filter(|one| !one.finished).collect();
                return Err(format!(
                    "no end after {} events and {} s; {waiting:.0?}; {:.0?}",
                    world.events_seen,
                    world.now / SECOND,
                    world.ports
                ));
            }
            if !world.violations.is_empty() {
                return Err("a rule was broken".to_owned());
            }
            match shard {
                Some(shard) => {
                    world.events_seen += 1;
                    self.busy_until[shard] = world.now + self.rng.below(150 * MICRO);
                    drop(world);
                    if let Some(server) = &mut self.server {
                        server.shards[shard].turn();
                    }
                }
                None => match world.next_event() {
                    Some(event @ (Event::Initiator { index } | Event::Tick { index })) => {
                        let initiator = &mut self.initiators[index];
                        if matches!(event, Event::Tick { .. }) {
                            initiator.ticked();
                        }
                        if let Err(error) = initiator.step(&mut world, &mut self.board) {
                            let role = initiator.role;
                            world.violation(format!("initiator {index} ({role:?}): {error}"));
                        }
                    }
                    Some(event) => world.happen(event),
                    None => {}
                },
            }
        }
        Ok(())
    }

    /// When something happens next, and to which shard (`None`: an event of the world).
    fn next(&mut self) -> Option<(u64, Option<usize>)> {
        let world = self.world.borrow();
        let mut best = world.next_event_at().map(|time| (time, None));
        for (index, shard) in self.server.iter().flat_map(|server| server.shards.iter().enumerate()) {
            if shard.is_stopped() {
                continue;
            }
            let due = if world.ports[index].inbox.is_empty() {
                shard.next_turn_due().map(|due| due.0)
            } else {
                Some(0)
            };
            let Some(due) = due else { continue };
            let due = due.max(self.busy_until[index]).max(world.now);
            let earlier = best.is_none_or(|(time, _)| due < time || due == time && self.rng.chance(500));
            if earlier {
                best = Some((due, Some(index)));
            }
        }
        best
    }

    /// The images after the end: whole, holding what they must, their parents untouched.
    fn verify(&mut self, ending: Ending) -> Result<(), String> {
        let mut world = self.world.borrow_mut();
        let power_cut = ending == Ending::PowerCut;
        if power_cut {
            let survival = match self.rng.below(4) {
                0 => Survival::Nothing,
                1 => Survival::Everything,
                _ => Survival::Some(self.rng.between(1, 999) as u32),
            };
            for disk in &mut world.disks {
                disk.power_cut(survival, &mut self.rng);
            }
        }
        let failed = self.replay(&mut world, ending)?;
        for (disk, digest) in &self.golden_disks {
            if world.disks[*disk].visible.digest() != *digest {
                return Err(format!("the golden file on disk {disk} has changed"));
            }
        }
        for (index, target) in self.board.targets.iter().enumerate() {
            let chain: Vec<_> = target.chain.iter().map(|disk| &world.disks[*disk].visible).collect();
            let findings = images::findings(chain[0]);
            if !findings.is_empty() {
                return Err(format!(
                    "after {ending:?}, the image of target {index}: {}; {:?}",
                    findings.join("; "),
                    world.faults
                ));
            }
            let found = images::tags(&chain, self.board.models[index].len());
            self.board.models[index]
                .restarted(found.into_iter(), power_cut || failed.contains(&target.chain[0]))
                .map_err(|error| format!("after {ending:?}, the image of target {index}: {error}"))?;
        }
        Ok(())
    }
}

impl Run {
    /// What the next server does first: the leaves that it must not write to.
    fn replay(&self, world: &mut World, ending: Ending) -> Result<BTreeSet<usize>, String> {
        let mut failed = BTreeSet::new();
        for journal in std::mem::take(&mut world.journals) {
            match ending {
                Ending::PowerCut => {}
                Ending::Kill => failed.append(&mut journal.replay(&mut world.disks)?),
                Ending::Quiet | Ending::Stop if self.board.disk_faults => {
                    failed.append(&mut journal.replay(&mut world.disks)?);
                }
                Ending::Quiet | Ending::Stop if journal.is_spent() => {}
                Ending::Quiet | Ending::Stop => {
                    return Err("a server that stopped in good order left records behind".to_owned());
                }
            }
        }
        Ok(failed)
    }
}

/// The workers of every target, each with a part of the disk for itself.
fn workers(rng: &mut Rng, targets: &[TargetPlan], sectors: u64) -> Vec<Initiator> {
    let mut initiators: Vec<Initiator> = Vec::new();
    for target in 0..targets.len() {
        let count = rng.between(1, 2);
        let part = sectors / count / 8 * 8;
        for place in 0..count {
            let region = (place * part, part);
            let fork = rng.fork();
            initiators.push(Initiator::new(initiators.len(), Role::Worker, target, region, fork));
        }
    }
    initiators
}
