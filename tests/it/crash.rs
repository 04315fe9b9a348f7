//! Crash tests: thousands of states that a killed process or a power cut may leave, each opened, checked and read.
//!
//! Promises (models K and P): after a kill every answered write is there; after a power cut every write answered
//! before a flush that ended is there; always each sector reads a value somebody wrote there and did not overwrite,
//! and the structure check is clean. A world goes through several lives, so what one crash left behind is written over
//! by the next life.

use std::panic::catch_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::crash_world::{Format, Mistake, Sampling, World};
use crate::other_programs::installed;

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
/// (`GOLDRUSH_CRASH_FIRST`), on every core. A sample of the states is read by 7-Zip as well.
#[test]
#[ignore = "runs for as long as it is told to"]
fn long_run() {
    let number =
        |name: &str, usual| std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(usual);
    let seconds = number("GOLDRUSH_CRASH_SECONDS", 60);
    let first = number("GOLDRUSH_CRASH_FIRST", 1_000_000);
    let run =
        LongRun { begun: Instant::now(), seconds, next: AtomicU64::new(first), tally: Mutex::default() };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        (0..threads).for_each(|_| drop(scope.spawn(|| run.worlds())));
        let mut told = 0;
        while run.goes_on() {
            std::thread::sleep(Duration::from_millis(200));
            let minutes = run.begun.elapsed().as_secs() / 60;
            if minutes > told {
                told = minutes;
                println!("{}", run.summary(first));
            }
        }
    });
    println!("{}", run.summary(first));
    let tally = run.tally.lock().unwrap();
    if let Some(wrong) = &tally.wrong {
        panic!("{wrong}");
    }
    assert!(tally.vhd > 0 && tally.vhdx > 0);
}

/// What the threads of a long run share.
struct LongRun {
    begun: Instant,
    seconds: u64,
    /// The seed that nobody has taken yet.
    next: AtomicU64,
    tally: Mutex<Tally>,
}

impl LongRun {
    fn goes_on(&self) -> bool {
        self.begun.elapsed().as_secs() < self.seconds && self.tally.lock().unwrap().wrong.is_none()
    }

    /// Seeds of two worlds each, one after another.
    fn worlds(&self) {
        while self.goes_on() {
            let seed = self.next.fetch_add(1, Ordering::Relaxed);
            let samples = if Tally::is_sampled(seed) { Sampling::Some } else { Sampling::None };
            for format in [Format::Vhd, Format::Vhdx] {
                // A panic of the code under test is a wrong state as well.
                let result = catch_unwind(|| run_sampled(seed, format, Mistake::None, samples));
                let result = result.unwrap_or_else(|_| Err(format!("seed {seed}: it panics")));
                let mut tally = self.tally.lock().unwrap();
                match result {
                    Ok((states, read)) => tally.add(format, states, read),
                    Err(error) => {
                        let again = format!("again: scripts/crash-run --first {seed} --seconds 1");
                        tally.wrong.get_or_insert(format!("{format:?}: {error}\n{again}"));
                        return;
                    }
                }
            }
        }
    }

    fn summary(&self, first: u64) -> String {
        let seeds = self.next.load(Ordering::Relaxed) - first;
        let (tally, seconds) = (self.tally.lock().unwrap(), self.begun.elapsed().as_secs());
        format!("{seconds} s, {seeds} seeds from {first}: {tally}")
    }
}

/// What a long run has seen.
#[derive(Default)]
struct Tally {
    vhd: u64,
    vhdx: u64,
    read_by_others: u64,
    /// The first state that was wrong, and how to see it again.
    wrong: Option<String>,
}

impl Tally {
    /// Each four-hundredth world: a process for a state is dear.
    fn is_sampled(seed: u64) -> bool {
        seed.is_multiple_of(400) && installed("7zz")
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
        let Self { vhd, vhdx, read_by_others, wrong } = self;
        let verdict = if wrong.is_some() { "the last one wrong" } else { "none wrong" };
        write!(f, "{vhd} states of VHDs, {vhdx} of VHDXs, {read_by_others} read by 7-Zip, {verdict}")
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
