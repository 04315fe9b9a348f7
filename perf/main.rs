//! The load and measurement tool of goldrush: subcommands and where they lead.
//!
//! Knows the command line. Does not know how any measurement is made.

#![deny(unsafe_code)]

mod ceiling;
mod commands;
mod compare;
mod demo;
mod fail;
mod initiator;
mod keys;
mod load;
mod pattern;
mod proc;
// UNSAFETY: io_uring buffers, one memory map, affinity and signals have no safe interface.
#[allow(unsafe_code)]
mod ring;
mod scsi;
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
    /// Load disks in a closed loop and report throughput and latency
    Load(commands::load::LoadArgs),
    /// Answer as fast as this machine can: the yardstick for a real target
    Ceiling(commands::ceiling::CeilingArgs),
    /// Visit several servers in turn and put them beside the ceiling
    Compare(commands::compare::CompareArgs),
    /// Boot simulated diskless machines from one golden image and check every byte
    Demo(commands::demo::DemoArgs),
    /// Ask a portal and a disk what they are
    Probe(commands::probe::ProbeArgs),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Load(args) => commands::load::run(&args),
        Command::Ceiling(args) => commands::ceiling::run(&args),
        Command::Compare(args) => commands::compare::run(&args),
        Command::Demo(args) => commands::demo::run(&args),
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
