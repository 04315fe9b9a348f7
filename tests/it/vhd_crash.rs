//! Crash tests: thousands of states that a killed process or a power cut may leave, each opened, checked and read.
//!
//! Promises (models K and P): after a kill every answered write is there; after a power cut every write answered
//! before a flush that ended is there; always each sector reads a value somebody wrote there and did not overwrite,
//! and the structure check is clean. A world goes through several lives, so what one crash left behind is written over
//! by the next life.

use crate::vhd_world::{Format, Mistake, World};

/// Runs one world; the number of crash states seen.
fn run(seed: u64, format: Format, mistake: Mistake) -> Result<u64, String> {
    let mut world = World::new(seed, format, mistake);
    let told = |error: String| format!("seed {seed}: {error}");
    for _ in 0..4 {
        let steps = 20 + world.rng.below(250);
        for _ in 0..steps {
            world.step().map_err(told)?;
            if world.rng.chance(12) {
                world.look_at_a_crash().map_err(told)?;
            }
        }
        world.crash().map_err(told)?;
    }
    Ok(world.states)
}

fn run_all(format: Format, usual: u64) {
    let mut states = 0;
    for seed in 0..seeds(usual) {
        states += run(seed, format, Mistake::None).unwrap();
    }
    println!("{format:?}: {states} crash states");
    assert!(states > 2500, "{states}");
}

#[test]
fn no_crash_loses_or_invents_a_sector() {
    run_all(Format::Vhd, 50);
}

#[test]
fn no_crash_loses_or_invents_a_sector_of_a_vhdx() {
    run_all(Format::Vhdx, 40);
}

/// More seeds for a long run: `GOLDRUSH_CRASH_SEEDS=100000`.
fn seeds(default: u64) -> u64 {
    std::env::var("GOLDRUSH_CRASH_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(default)
}

#[test]
fn a_missing_flush_is_noticed() {
    assert!(caught(Format::Vhd, Mistake::NoMetaSync));
    assert!(caught(Format::Vhdx, Mistake::NoMetaSync));
}

#[test]
fn space_that_is_not_zeroed_is_noticed() {
    assert!(caught(Format::Vhd, Mistake::NoZero));
    assert!(caught(Format::Vhdx, Mistake::NoZero));
}

#[test]
fn an_answer_before_the_commit_is_noticed() {
    assert!(caught(Format::Vhd, Mistake::EarlyAnswer));
    assert!(caught(Format::Vhdx, Mistake::EarlyAnswer));
}

#[test]
fn a_log_that_is_not_replayed_is_noticed() {
    assert!(caught(Format::Vhdx, Mistake::NoReplay));
}

fn caught(format: Format, mistake: Mistake) -> bool {
    (0..150).any(|seed| run(seed, format, mistake).is_err())
}
