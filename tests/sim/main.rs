//! The simulator: the shipped `Shard` over a simulated network, disk and clock, with everything decided by a seed.
//!
//! Knows how many seeds to run and how to name the one that failed. `run` is what happens in one.
//!
//! `GOLDRUSH_SIM_SEEDS=N` runs N seeds, `GOLDRUSH_SIM_SEED=S` this one (with its counts).
#![forbid(unsafe_code)]

mod answers;
mod board;
mod checks;
mod disk;
mod group;
mod images;
mod initiator;
mod journal;
mod keeper;
mod login;
mod management;
mod model;
mod offload;
mod plan;
mod random;
mod reload;
mod reserve;
mod run;
mod server;
mod sim_io;
mod task;
mod wire;
mod workload;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use board::Counts;
use world::Sabotage;

/// Seeds of a normal run.
const SEEDS: u64 = 200;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|value| value.parse().ok())
}

/// One seed; a panic of the server is a verdict like any other.
fn judge(seed: u64, sabotage: Sabotage) -> Result<Counts, String> {
    let result = catch_unwind(AssertUnwindSafe(|| run::run(seed, sabotage)));
    result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(format!("panicked: {}", text.unwrap_or("(no text)")))
    })
}

#[test]
fn every_seed_keeps_every_rule() {
    let (first, count) = match number("GOLDRUSH_SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (0, number("GOLDRUSH_SIM_SEEDS").unwrap_or(SEEDS)),
    };
    if count == 1 {
        let _ = tracing_subscriber::fmt()
            .with_env_filter("goldrush=debug")
            .without_time()
            .with_test_writer()
            .try_init();
    }
    let (mut counts, mut failures) = (Counts::default(), Vec::new());
    for seed in first..first + count {
        match judge(seed, Sabotage::None) {
            Ok(one) => counts.add(&one),
            Err(error) => {
                eprintln!(
                    "seed {seed} failed:\n{error}\nreplay: GOLDRUSH_SIM_SEED={seed} cargo test --test sim \
                     every_seed -- --nocapture\n"
                );
                failures.push(seed);
            }
        }
    }
    eprintln!("{count} seeds: {counts:?}");
    assert!(failures.is_empty(), "{} of {count} seeds failed: {failures:?}", failures.len());
    if count >= SEEDS {
        // A simulator that does nothing finds nothing.
        assert!(counts.reads > 1000 && counts.writes > 1000 && counts.flushes > 100, "{counts:?}");
        assert!(counts.joined > 100 && counts.lines_lost > 10 && counts.lines_reinstated > 5, "{counts:?}");
        assert!(counts.atomic_writes > 100 && counts.copies > 50 && counts.tokens > 50, "{counts:?}");
        assert!(counts.token_writes > 30 && counts.reservations > 50 && counts.conflicts > 20, "{counts:?}");
        assert!(counts.reloads > 50, "{counts:?}");
        assert!(
            counts.management > 20 && counts.refused_logins > 20 && counts.restarts > count,
            "{counts:?}"
        );
    }
}

#[test]
fn a_seed_decides_everything() {
    for seed in 0..3 {
        let (one, two) = (judge(seed, Sabotage::None), judge(seed, Sabotage::None));
        assert_eq!(format!("{one:?}"), format!("{two:?}"), "seed {seed}");
    }
}

/// The canary: a server (or world) that does wrong must be found out, or the checkers are dead.
fn is_found_out(sabotage: Sabotage, word: &str) {
    // What it breaks first depends on the seed.
    let errors: Vec<String> = (0..40).filter_map(|seed| judge(seed, sabotage).err()).take(12).collect();
    assert!(!errors.is_empty(), "{sabotage:?} went unnoticed in 40 seeds");
    assert!(errors.iter().any(|error| error.contains(word)), "{sabotage:?} was noticed as: {errors:?}");
}

#[test]
fn a_lost_write_is_found_out() {
    is_found_out(Sabotage::LostWrite, "sector");
}

#[test]
fn a_sync_that_lies_is_found_out() {
    is_found_out(Sabotage::LyingSync, "PowerCut");
}

#[test]
fn an_answer_sent_twice_is_found_out() {
    is_found_out(Sabotage::RepeatedAnswer, "expected");
}

#[test]
fn a_changed_byte_is_found_out() {
    is_found_out(Sabotage::ChangedByte, "");
}

#[test]
fn a_swallowed_completion_is_found_out() {
    is_found_out(Sabotage::SwallowedCompletion, "");
}
