//! Crash tests: thousands of states that a killed process or a power cut may leave, each opened, checked and read.
//!
//! Promises (models K and P): after a kill every answered write is there; after a power cut every write answered
//! before a flush that ended is there; always each sector reads a value somebody wrote there and did not overwrite,
//! and the structure check is clean. A world goes through several lives, so what one crash left behind is written over
//! by the next life.

use crate::journal_world::{Mistake, World};

/// Runs one world; the number of crash states seen.
fn run(seed: u64, mistake: Mistake) -> Result<u64, String> {
    let mut world = World::new(seed, mistake);
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

#[test]
fn no_crash_loses_or_invents_a_sector() {
    let mut states = 0;
    for seed in 0..seeds(50) {
        states += run(seed, Mistake::None).unwrap();
    }
    println!("{states} crash states");
    assert!(states > 2500, "{states}");
}

/// More seeds for a long run: `GOLDRUSH_CRASH_SEEDS=100000`.
fn seeds(default: u64) -> u64 {
    std::env::var("GOLDRUSH_CRASH_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(default)
}

#[test]
fn a_missing_flush_is_noticed() {
    assert!(caught(Mistake::NoMetaSync));
}

#[test]
fn space_that_is_not_zeroed_is_noticed() {
    assert!(caught(Mistake::NoZero));
}

#[test]
fn an_answer_before_the_commit_is_noticed() {
    assert!(caught(Mistake::EarlyAnswer));
}

#[test]
fn a_record_after_the_answer_is_noticed() {
    assert!(caught(Mistake::LateRecord));
}

#[test]
fn a_record_retired_before_its_metadata_is_in_the_file_is_noticed() {
    assert!(caught(Mistake::EarlyRetire));
}

#[test]
fn records_of_another_boot_that_are_replayed_are_noticed() {
    assert!(caught(Mistake::StaleBoot));
}

#[test]
fn a_replay_that_does_not_flush_first_is_noticed() {
    assert!(caught(Mistake::NoReplaySync));
}

#[test]
fn a_flush_without_a_commit_is_noticed() {
    assert!(caught(Mistake::NoFlushCommit));
}

fn caught(mistake: Mistake) -> bool {
    (0..100).any(|seed| run(seed, mistake).is_err())
}
