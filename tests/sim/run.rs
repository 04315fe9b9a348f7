//! One run: a server, its initiators and their disks, from a seed to a verdict.
//!
//! Knows the order of things. Does not know what is checked on the way (`checks`, `model`, `world`).

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use crate::board::{Board, Counts, TargetPlan};
use crate::disk::Survival;
use crate::images;
use crate::initiator::Initiator;
use crate::journal::Left;
use crate::model::{SECTOR, tag_of};
use crate::plan;
use crate::random::Rng;
use crate::reload::Reloads;
use crate::server::Server;
use crate::world::{Event, MICRO, SECOND, Sabotage, Shared, World};

/// More events than any run needs.
const EVENTS_MAX: u64 = 3_000_000;
/// Virtual seconds, likewise.
const SECONDS_MAX: u64 = 20_000;

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
    /// Of the server that runs, in some of the runs; and whether more is to change.
    reloads: Option<Reloads>,
    reloading: bool,
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

impl Run {
    fn new(seed: u64, sabotage: Sabotage) -> Self {
        let mut rng = Rng::new(seed);
        let faults = plan::faults(&mut rng, sabotage);
        let disk_faults = faults.disk_error + faults.disk_full + faults.sync_error > 0;
        let mut world = World::new(rng.fork(), faults);
        let sectors = rng.between(300, 1300) * 8;
        let golden = images::golden(&mut rng, sectors);
        let mut targets = plan::targets(&mut rng, &mut world, &golden, sectors);
        let golden_disks = world.disks.iter().map(|disk| disk.visible.digest()).enumerate();
        let golden_disks = golden_disks.take(golden.files.len()).collect();
        let initiators = plan::initiators(&mut rng, &mut targets, sectors);
        let board = plan::board(&mut rng, targets, &golden, disk_faults);
        Self {
            world: Rc::new(RefCell::new(world)),
            board,
            initiators,
            server: None,
            busy_until: Vec::new(),
            rng,
            golden_disks,
            reloads: None,
            reloading: false,
        }
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
        self.board.restarts();
        let kept = |target: &TargetPlan| {
            let world = self.world.borrow();
            world
                .kept
                .get(&target.name)
                .is_some_and(|kept| kept.atomic.is_some() || kept.sanitizing.is_some())
        };
        self.board.unready_until =
            self.board.targets.iter().map(|it| if kept(it) { u64::MAX } else { 0 }).collect();
        self.server = Some(Server::boot(&self.world, &self.board.targets, &mut self.rng)?);
        self.begin_reloads();
        self.busy_until = vec![0; self.world.borrow().ports.len()];
        for initiator in &mut self.initiators {
            initiator.server_gone();
            initiator.quota = self.rng.between(6, 30) as u32;
            initiator.tick(&mut self.world.borrow_mut());
        }
        match ending {
            Ending::Quiet => {
                self.drive(u64::MAX, |run| run.initiators.iter().all(|initiator| initiator.finished))?;
                self.reloading = false;
                self.drive(u64::MAX, |run| run.reloads.as_ref().is_none_or(|reloads| !reloads.is_away()))?;
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
        if let Some(mut server) = self.server.take() {
            server.keeper.killed(&mut self.world.borrow_mut(), matches!(ending, Ending::PowerCut));
        }
        self.world.borrow_mut().forget_servers();
        for initiator in &mut self.initiators {
            initiator.server_gone();
        }
        self.verify(ending)
    }

    /// In some lives of a server its configuration changes. Not where disks fail: an image that was not closed as a whole
    /// one does not come back before somebody has looked at it.
    fn begin_reloads(&mut self) {
        let Some(server) = &self.server else { return };
        self.reloading = !self.board.disk_faults && self.rng.chance(350);
        self.reloads = None;
        if self.reloading {
            let mut world = self.world.borrow_mut();
            world.journals.iter_mut().for_each(Left::may_lose);
            let (layers, rng) = (server.layers.clone(), self.rng.fork());
            let mut reloads = Reloads::new(&server.directory, layers, &server.golden, &self.board, rng);
            reloads.wait(&mut world);
            self.reloads = Some(reloads);
        }
    }

    fn reload(&mut self) -> Result<(), String> {
        let (Some(server), Some(reloads)) = (&self.server, &mut self.reloads) else { return Ok(()) };
        if self.board.stopping {
            return Ok(());
        }
        self.board.now = self.world.borrow().now;
        reloads.step(&self.world, &server.peers, &mut self.board, self.reloading)?;
        if self.reloading || reloads.is_away() {
            reloads.wait(&mut self.world.borrow_mut());
        }
        Ok(())
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
                        server.keeper.hear(&mut self.world.borrow_mut());
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
                    Some(Event::Reload) => {
                        drop(world);
                        self.reload()?;
                    }
                    Some(Event::Keep) => {
                        if let Some(server) = &mut self.server {
                            server.keeper.write(&mut world, &server.peers);
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
            let mut found = images::tags(&chain, self.board.models[index].len());
            complete_atomic(&world, target, &mut found);
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

/// The next server completes an atomic write that was written down: the image is what it is with it.
fn complete_atomic(world: &World, target: &TargetPlan, found: &mut [Option<u64>]) {
    let Some(atomic) = world.kept.get(&target.name).and_then(|kept| kept.atomic.as_ref()) else { return };
    let (start, data) = (atomic.lba().0 * target.block, atomic.data());
    for (sector, bytes) in found[start as usize..].iter_mut().zip(data.chunks_exact(SECTOR)) {
        *sector = tag_of(bytes);
    }
}
