//! `goldrush status`: what a running server says of itself.
//!
//! Knows how the answer is shown. Does not know how it came (`admin`).

use super::admin::{Request, Status, client};
use super::cli::StatusArgs;
use super::error::{Error, print};

/// Runs the command.
pub(super) fn run(args: &StatusArgs) -> Result<(), Error> {
    let status: Status = client::ask(args.control.control.as_deref(), &Request::Status)?;
    if args.json {
        return print(|out| writeln!(out, "{}", serde_json::to_string(&status)?));
    }
    print(|out| {
        let about = &status.about;
        writeln!(out, "{}, process {}, serving for {} s", about.program, about.pid, about.uptime_s)?;
        for address in &about.listening {
            writeln!(out, "listening on {address}")?;
        }
        writeln!(out, "{} targets", about.targets)?;
        for (core, shard) in about.cores.iter().zip(&status.shards) {
            writeln!(
                out,
                "core {core}: {} connections, {} sessions, {} commands in progress",
                shard.connections, shard.sessions, shard.tasks
            )?;
        }
        Ok(())
    })
}
