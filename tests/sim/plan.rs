//! What a seed makes: the disks, the targets, who works on them and what goes wrong.
//!
//! Knows how much of everything there is. Does not know what happens to it (`run`).

use core::num::NonZeroU64;

use goldrush::shard::RateLimits;

use crate::board::{Board, ChapPlan, TargetPlan};
use crate::disk::SimFile;
use crate::images::{self, Golden};
use crate::initiator::{Initiator, Role};
use crate::model::Model;
use crate::random::Rng;
use crate::world::{Faults, Sabotage, World};

/// The target that wants CHAP.
pub(crate) const CHAP_TARGET: usize = 1;

pub(crate) fn target_name(index: usize) -> String {
    format!("iqn.2026-11.sim:target-{index}")
}

pub(crate) fn faults(rng: &mut Rng, sabotage: Sabotage) -> Faults {
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
pub(crate) fn limits(rng: &mut Rng) -> RateLimits {
    let bound = |least: u64| NonZeroU64::new(least);
    match rng.below(8) {
        0 => RateLimits { commands: bound(400), bytes: None },
        1 => RateLimits { commands: None, bytes: bound(20_000_000) },
        2 => RateLimits { commands: bound(2000), bytes: bound(50_000_000) },
        _ => RateLimits::default(),
    }
}

/// The disks and the targets.
pub(crate) fn targets(rng: &mut Rng, world: &mut World, golden: &Golden, sectors: u64) -> Vec<TargetPlan> {
    for file in &golden.files {
        world.disks.push(SimFile::durable(file.clone(), true));
    }
    let parents: Vec<usize> = (0..golden.files.len()).collect();
    let mut targets = Vec::new();
    for index in 0..rng.between(2, 3) as usize {
        let block_size = rng.pick(&[512 << 10, 512 << 10, 1 << 20, 2 << 20]);
        let child = images::child(golden, 100 + index as u128, sectors, block_size);
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
            limits: limits(rng),
        });
    }
    targets
}

/// Whoever works, and now and then those that do wrong.
pub(crate) fn initiators(rng: &mut Rng, targets: &mut [TargetPlan], sectors: u64) -> Vec<Initiator> {
    let mut initiators = workers(rng, targets, sectors);
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
    initiators
}

pub(crate) fn board(rng: &mut Rng, targets: Vec<TargetPlan>, golden: &Golden, disk_faults: bool) -> Board {
    let models = targets.iter().map(|_| Model::new(golden.tags.iter().copied())).collect();
    Board {
        reserving: rng.chance(500),
        management: if rng.chance(500) { rng.pick(&[3, 20]) } else { 0 },
        misbehaviour: if rng.chance(400) { rng.pick(&[1, 8]) } else { 0 },
        disk_faults,
        ..Board::new(targets, models)
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
