//! `goldrush reload`: a running server reads its configuration again.
//!
//! Knows how the answer is shown. Does not know what is changed (`reload`).

use super::admin::{Reloaded, Request, client};
use super::cli::ReloadArgs;
use super::error::{Error, print};

/// Runs the command. It returns when the server has changed what it will.
pub(super) fn run(args: &ReloadArgs) -> Result<(), Error> {
    let done: Reloaded = client::ask(args.control.control.as_deref(), &Request::Reload)?;
    print(|out| writeln!(out, "{}", done.summary))
}
