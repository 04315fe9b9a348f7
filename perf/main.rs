//! The load and measurement tool of goldrush: subcommands and where they lead.
//!
//! Knows the command line. Does not know how any measurement is made.

#![deny(unsafe_code)]

mod ceiling;
mod client;
mod commands;
mod compare;
mod demo;
mod fail;
mod histogram;
mod initiator;
mod keys;
mod load;
mod pattern;
mod peers;
mod proc;
// UNSAFETY: io_uring buffers, one memory map, affinity and signals have no safe interface.
#[allow(unsafe_code)]
mod ring;
mod scsi;
mod storm;
mod trace;
mod url;
mod wire;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "perf", version, about = "Loads, measures and cross-checks iSCSI targets", long_about = None)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load disks in a closed or open loop and report throughput and latency
    Load(commands::load::LoadArgs),
    /// Answer as fast as this machine can: the yardstick for a real target
    Ceiling(commands::ceiling::CeilingArgs),
    /// Visit several servers in turn and put them beside the ceiling
    Compare(commands::compare::CompareArgs),
    /// Boot simulated diskless machines from one golden image and check every byte
    Demo(commands::demo::DemoArgs),
    /// Let many diskless machines boot at once from recorded boots, and say how long it took
    Storm(commands::storm::StormArgs),
    /// Print what a histogram log holds
    Histogram(commands::histogram::HistogramArgs),
    /// Say what one greedy client does to the latencies of the modest ones beside it
    Fair(commands::fair::FairArgs),
    /// Say how fast a server of many children listens, and what many idle sessions cost it in memory
    Sessions(commands::sessions::SessionsArgs),
    /// Ask a portal and a disk what they are
    Probe(commands::probe::ProbeArgs),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Load(args) => commands::load::run(&args),
        Command::Ceiling(args) => commands::ceiling::run(&args),
        Command::Compare(args) => commands::compare::run(&args),
        Command::Demo(args) => commands::demo::run(&args),
        Command::Storm(args) => commands::storm::run(&args),
        Command::Histogram(args) => commands::histogram::run(&args),
        Command::Fair(args) => commands::fair::run(&args),
        Command::Sessions(args) => commands::sessions::run(&args),
        Command::Probe(args) => commands::probe::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("perf: {failure}");
            ExitCode::FAILURE
        }
    }
}
