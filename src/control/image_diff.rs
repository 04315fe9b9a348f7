//! `goldrush image diff`: the ranges in which two disks differ.
//!
//! Knows what to show and what the exit code says. Does not know how disks are compared (`compare`); changes nothing.

use std::io::Write;
use std::process::ExitCode;

use serde::Serialize;

use super::chain_runs::ChainRuns;
use super::cli_chain::DiffArgs;
use super::compare::{Comparison, Joined};
use super::error::{EXIT_FAILED, Error};
use super::file::{Access, Locking};
use super::image_map::print_all;
use super::json_stream::JsonStream;
use super::open_image::Opener;
use super::progress::Progress;
use super::size::human;

#[derive(Debug, Serialize)]
struct Difference {
    offset: u64,
    length: u64,
}

/// Runs the command: 0 the same, 1 different; what could not be compared is an error.
pub(super) fn run(args: &DiffArgs) -> Result<ExitCode, Error> {
    let same = compare(args).map_err(Error::without_verdict)?;
    Ok(if same { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILED) })
}

fn compare(args: &DiffArgs) -> Result<bool, Error> {
    let mut opener = Opener::anywhere(Locking::Hold);
    let a = ChainRuns::new(opener.open_chain(&args.a, Access::ReadOnly)?)?;
    let b = ChainRuns::new(opener.open_chain(&args.b, Access::ReadOnly)?)?;
    let comparison = Comparison::new(a, b);
    let (size_a, size_b) = comparison.bytes();
    if args.quiet {
        if size_a != size_b {
            return Ok(false);
        }
        let mut same = true;
        each(args, comparison, &mut |_, _| {
            same = false;
            Ok(false)
        })?;
        return Ok(same);
    }
    let mut bytes = 0;
    print_all(|out| {
        bytes = if args.json { json(args, comparison, out)? } else { text(args, comparison, out)? };
        Ok(())
    })?;
    Ok(bytes == 0 && size_a == size_b)
}

/// Tells `differs` every difference, joined, as long as it answers true.
fn each(
    args: &DiffArgs,
    mut comparison: Comparison,
    differs: &mut dyn FnMut(u64, u64) -> Result<bool, Error>,
) -> Result<(), Error> {
    let (a, b) = comparison.bytes();
    let progress = Progress::new("comparing", &args.a, a.max(b));
    let mut joined = Joined::default();
    comparison.each_difference(0, a.max(b), &|at| progress.set(at), &mut |start, len| {
        joined.push(start, len).map_or(Ok(true), |(start, len)| differs(start, len))
    })?;
    if let Some((start, len)) = joined.finish() {
        differs(start, len)?;
    }
    progress.finish();
    Ok(())
}

/// The sum of all differences.
fn json(args: &DiffArgs, comparison: Comparison, out: &mut dyn Write) -> Result<u64, Error> {
    let mut stream = JsonStream::new(out).map_err(Error::output)?;
    let (size_a, size_b) = comparison.bytes();
    let mut head = || {
        stream.member("a", &args.a.display().to_string())?;
        stream.member("b", &args.b.display().to_string())?;
        stream.member("size_a", &size_a)?;
        stream.member("size_b", &size_b)?;
        stream.list("differences")
    };
    head().map_err(Error::output)?;
    let mut bytes = 0;
    each(args, comparison, &mut |offset, length| {
        bytes += length;
        stream.element(&Difference { offset, length }).map_err(Error::output)?;
        Ok(true)
    })?;
    stream.member("bytes", &bytes).map_err(Error::output)?;
    stream.member("same", &(bytes == 0 && size_a == size_b)).map_err(Error::output)?;
    stream.finish().map_err(Error::output)?;
    Ok(bytes)
}

fn text(args: &DiffArgs, comparison: Comparison, out: &mut dyn Write) -> Result<u64, Error> {
    let (size_a, size_b) = comparison.bytes();
    let mut bytes = 0;
    each(args, comparison, &mut |offset, length| {
        bytes += length;
        writeln!(out, "{offset:>16} {length:>16}").map_err(Error::output)?;
        Ok(true)
    })?;
    let (a, b) = (args.a.display(), args.b.display());
    if size_a != size_b {
        writeln!(out, "{a} has {}, {b} has {}", human(size_a), human(size_b)).map_err(Error::output)?;
    }
    match bytes {
        0 => writeln!(out, "{a} and {b} have the same content"),
        _ => writeln!(out, "{a} and {b} differ in {}", human(bytes)),
    }
    .map_err(Error::output)?;
    Ok(bytes)
}
