//! `goldrush resize`: a running server makes a disk larger.
//!
//! Knows how the answer is shown. Does not know how a disk grows (`server::resize`).

use super::admin::{Request, Resized, client};
use super::cli::ServedResizeArgs;
use super::error::{Error, print};
use super::size::human;

/// Runs the command. It returns when initiators have been told.
pub(super) fn run(args: &ServedResizeArgs) -> Result<(), Error> {
    let (target, lun) = args.lun.clone();
    let request = Request::Resize { target: target.clone(), lun, size: args.size.0 };
    let Resized { before, now } = client::ask(args.control.control.as_deref(), &request)?;
    print(|out| writeln!(out, "{target}/{lun}: {}, was {}", human(now), human(before)))
}
