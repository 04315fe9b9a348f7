//! What an administrator touches: commands, configuration, images as files.
//!
//! Knows everything below it; may block, and owns all opening of files. Nothing names it but `main`.

pub mod admin;
mod atomic_journal;
mod bench_cases;
mod bench_round;
mod bench_scratch;
mod block_io;
mod boot_traces;
pub mod catalog;
pub mod chain_fuzz;
mod chain_runs;
mod chain_writer;
mod children;
pub mod cli;
pub mod cli_bench;
pub mod cli_chain;
mod cli_help;
mod cli_help_chain;
pub mod cli_trace;
mod compare;
pub mod config;
mod copy;
mod edit_file;
mod error;
mod explain;
pub mod file;
mod follow;
mod foreign;
mod golden;
mod image_bench;
mod image_check;
mod image_compact;
mod image_convert;
mod image_create;
mod image_diff;
mod image_flatten;
mod image_format;
mod image_info;
mod image_map;
mod image_merge;
mod image_rebase;
mod image_repair;
mod image_resize;
mod image_seal;
mod image_snapshot;
mod isns;
mod json_stream;
mod keeper;
pub mod launch;
mod lease_watch;
mod leases;
mod leftover;
mod lingering;
mod lock_holder;
mod logging;
mod man;
mod metrics;
mod moving;
pub mod name;
mod new_image;
pub mod open_image;
mod overlay;
mod progress;
mod relink;
pub mod reload;
mod reload_command;
mod reset_command;
mod resize_command;
mod roster;
mod rules;
mod runtime;
mod seal;
pub mod secrets;
mod serve;
mod server;
pub mod size;
mod staged;
mod status;
mod top;
mod trace_command;
mod trace_store;
mod trace_threads;
mod warm;
mod watch;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

pub use error::Error;

use cli::{Cli, Command, ImageCommand};

/// Runs the command line `args` (the program's name first) and says how it went.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, not errors; clap knows the stream and the code for each.
            let code = u8::try_from(error.exit_code()).unwrap_or(error::EXIT_USAGE);
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    logging::init(&cli.log);
    if let Some(folder) = &cli.runtime_dir {
        runtime::give(folder);
    }
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            for line in error.lines() {
                eprintln!("goldrush: {line}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(command: Command) -> Result<ExitCode, Error> {
    match command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "goldrush", &mut script);
            error::print(|out| out.write_all(&script)).map(|()| ExitCode::SUCCESS)
        }
        Command::Man(args) => man::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Reload(args) => reload_command::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Resize(args) => resize_command::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Reset(args) => reset_command::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Status(args) => status::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Top(args) => top::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Trace(command) => trace_command::run(&command).map(|()| ExitCode::SUCCESS),
        Command::Serve(args) => serve::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Image(ImageCommand::Create(args)) => image_create::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Image(ImageCommand::Convert(args)) => image_convert::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Image(ImageCommand::Compact(args)) => image_compact::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Image(ImageCommand::Resize(args)) => image_resize::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Image(ImageCommand::Info(args)) => image_info::run(&args),
        Command::Image(ImageCommand::Check(args)) => image_check::run(&args),
        Command::Image(ImageCommand::Map(args)) => image_map::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Image(ImageCommand::Diff(args)) => image_diff::run(&args),
        Command::Image(ImageCommand::Merge(args)) => image_merge::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Image(ImageCommand::Flatten(args)) => image_flatten::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Image(ImageCommand::Rebase(args)) => image_rebase::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Image(ImageCommand::Snapshot(args)) => {
            image_snapshot::run(&args).map(|()| ExitCode::SUCCESS)
        }
        Command::Image(ImageCommand::Bench(args)) => image_bench::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Image(ImageCommand::Seal(args)) => image_seal::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Image(ImageCommand::Unseal(args)) => image_seal::unseal(&args).map(|()| ExitCode::SUCCESS),
    }
}
