//! `goldrush reset`: a running server empties the overlays of a target.
//!
//! Knows how the answer is shown. Does not know how a child is emptied (`shard::reset`).

use super::admin::{Emptied, Request, client};
use super::cli::ResetArgs;
use super::error::{Error, print};

/// Runs the command. It returns when the overlays are empty.
pub(super) fn run(args: &ResetArgs) -> Result<(), Error> {
    let request = Request::Reset { target: args.target.to_lowercase(), force: args.force };
    let done: Emptied = client::ask(args.control.control.as_deref(), &request)?;
    let luns = if done.luns == 1 { "1 LUN is".to_owned() } else { format!("{} LUNs are", done.luns) };
    print(|out| writeln!(out, "{}: {luns} empty", args.target))
}
