//! Crash tests: thousands of states that a killed process or a power cut may leave, each opened, checked and read.
//!
//! Promises (models K and P): after a kill every answered write is there; after a power cut every write answered
//! before a flush that ended is there; always each sector reads a value somebody wrote there and did not overwrite,
//! and the structure check is clean. A world goes through several lives, so what one crash left behind is written over
//! by the next life.

use std::time::Instant;

use crate::crash_world::{Format, Mistake, Sampling, World};
use crate::oracles::installed;

/// Runs one world; the number of crash states seen.
fn run(seed: u64, format: Format, mistake: Mistake) -> Result<u64, String> {
    run_sampled(seed, format, mistake, Sampling::None).map(|(states, _)| states)
}

/// The same; and how many of the states were read by 7-Zip.
fn run_sampled(
    seed: u64,
    format: Format,
    mistake: Mistake,
    sampling: Sampling,
) -> Result<(u64, u64), String> {
    let mut world = World::new(seed, format, mistake);
    world.sampling = sampling;
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
    Ok((world.states, world.read_by_others))
}

fn run_all(format: Format, usual: u64) {
    let mut states = 0;
    for seed in 0..seeds(usual) {
        states += run(seed, format, Mistake::None).unwrap();
    }
    println!("{format:?}: {states} crash states");
    assert!(states > 1000, "{states}");
}

#[test]
fn no_crash_loses_or_invents_a_sector_of_a_vhd() {
    run_all(Format::Vhd, 24);
}

#[test]
fn no_crash_loses_or_invents_a_sector_of_a_vhdx() {
    run_all(Format::Vhdx, 12);
}

/// `scripts/crash-run`: worlds without end, for so many seconds (`GOLDRUSH_CRASH_SECONDS`), beginning with a seed
/// (`GOLDRUSH_CRASH_FIRST`). A sample of the states is read by 7-Zip as well.
#[test]
#[ignore = "runs for as long as it is told to"]
fn long_run() {
    let number =
        |name: &str, usual| std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(usual);
    let seconds = number("GOLDRUSH_CRASH_SECONDS", 60);
    let first = number("GOLDRUSH_CRASH_FIRST", 1_000_000);
    let begun = Instant::now();
    let mut tally = Tally::default();
    let mut told = 0;
    let mut seed = first;
    while begun.elapsed().as_secs() < seconds {
        for format in [Format::Vhd, Format::Vhdx] {
            let samples = tally.sampler(seed);
            match run_sampled(seed, format, Mistake::None, samples) {
                Ok((states, read)) => tally.add(format, states, read),
                Err(error) => {
                    panic!("{format:?}: {error}\nagain: scripts/crash-run --first {seed} --seconds 1")
                }
            }
        }
        seed += 1;
        let elapsed = begun.elapsed().as_secs();
        if elapsed / 60 > told {
            told = elapsed / 60;
            println!("{elapsed} s, {} seeds: {tally}", seed - first);
        }
    }
    println!("{} s, {} seeds from {first}: {tally}", begun.elapsed().as_secs(), seed - first);
    assert!(tally.vhd > 0 && tally.vhdx > 0);
}

/// What a long run has seen.
#[derive(Default)]
struct Tally {
    vhd: u64,
    vhdx: u64,
    read_by_others: u64,
}

impl Tally {
    /// Each hundredth world is sampled.
    fn sampler(&self, seed: u64) -> Sampling {
        if seed.is_multiple_of(100) && installed("7zz") { Sampling::Some } else { Sampling::None }
    }

    fn add(&mut self, format: Format, states: u64, read: u64) {
        match format {
            Format::Vhd => self.vhd += states,
            Format::Vhdx => self.vhdx += states,
        }
        self.read_by_others += read;
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { vhd, vhdx, read_by_others } = self;
        write!(f, "{vhd} states of VHDs, {vhdx} of VHDXs, {read_by_others} read by 7-Zip, none wrong")
    }
}

/// More seeds for a long run: `GOLDRUSH_CRASH_SEEDS=100000`.
fn seeds(default: u64) -> u64 {
    std::env::var("GOLDRUSH_CRASH_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(default)
}

fn assert_caught(format: Format, mistakes: &[Mistake]) {
    for mistake in mistakes {
        let caught = (0..150).any(|seed| run(seed, format, *mistake).is_err());
        assert!(caught, "{mistake:?} went unnoticed in 150 worlds of {format:?}");
    }
}

/// A mistake that nobody notices is a dead test.
#[test]
fn mistakes_in_the_order_of_a_vhd_are_noticed() {
    assert_caught(
        Format::Vhd,
        &[Mistake::NoMetaSync, Mistake::NoZero, Mistake::EarlyAnswer, Mistake::ForgottenFlush],
    );
}

#[test]
fn mistakes_in_the_order_of_a_vhdx_are_noticed() {
    assert_caught(
        Format::Vhdx,
        &[
            Mistake::NoMetaSync,
            Mistake::NoZero,
            Mistake::EarlyAnswer,
            Mistake::NoReplay,
            Mistake::ForgottenFlush,
        ],
    );
}

const OF_RECORDS: [Mistake; 5] = [
    Mistake::LateRecord,
    Mistake::EarlyRetire,
    Mistake::StaleBoot,
    Mistake::NoReplaySync,
    Mistake::NoFlushCommit,
];

#[test]
fn mistakes_with_the_records_of_a_vhd_are_noticed() {
    assert_caught(Format::Vhd, &OF_RECORDS);
}

#[test]
fn mistakes_with_the_records_of_a_vhdx_are_noticed() {
    assert_caught(Format::Vhdx, &OF_RECORDS);
}
