//! `goldrush image check`: is the structure of an image, and of its parents, sound?
//!
//! Knows whom to ask and what the exit code says. Does not know what is wrong with one (`vhd::check`, `vhdx::check`) nor how it
//! is repaired (`image_repair`).

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use serde::Serialize;

use super::cli::CheckArgs;
use super::error::{EXIT_FAILED, Error, print};
use super::file::{Access, FileError, Locking, OpenedFile};
use super::image_repair::{self, RepairReport};
use super::leftover;
use super::open_image::{Format, OpenError, Opener, detect};
use crate::findings::Findings;
use crate::vhd::check::{Report, check};
use crate::vhdx;

/// What was found in one file of the chain.
#[derive(Debug, Serialize)]
struct FileReport {
    path: String,
    format: &'static str,
    allocated_blocks: u64,
    unreferenced_bytes: u64,
    orphaned_blocks: u64,
    findings: Vec<FindingReport>,
}

#[derive(Debug, Serialize)]
struct FindingReport {
    severity: &'static str,
    structure: String,
    offset: u64,
    message: String,
}

#[derive(Debug, Serialize)]
struct CheckReport {
    clean: bool,
    /// Leaf first.
    chain: Vec<FileReport>,
    /// Why the parents could not be opened, when they could not.
    chain_error: Option<String>,
    /// With `--repair`: what was planned, and whether it was done.
    repair: Option<RepairReport>,
}

/// Runs the command: 0 clean, 1 findings; what could not be checked is an error.
pub(super) fn run(args: &CheckArgs) -> Result<ExitCode, Error> {
    if let Some(backup) = &args.restore_backup {
        image_repair::restore(&args.path, backup)?;
    }
    if args.forget_pending {
        forget_pending(&args.path)?;
    }
    let repair = args.repair.then(|| image_repair::run(args)).transpose().map_err(unchecked)?;
    let report = CheckReport { repair, ..report(&args.path).map_err(unchecked)? };
    print(|out| write(out, &report, args.json)).map_err(unchecked)?;
    Ok(if report.clean { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILED) })
}

fn unchecked(error: Error) -> Error {
    if error.is_in_use() { error } else { Error::Unchecked(error.to_string()) }
}

fn report(path: &Path) -> Result<CheckReport, Error> {
    let leaf = OpenedFile::open(path, Access::ReadOnly, Locking::Hold).map_err(OpenError::from)?;
    let (files, chain_error) = match Opener::anywhere(Locking::Hold).open_chain(path, Access::ReadOnly) {
        Ok(chain) => (chain.layers().iter().map(|layer| layer.file().clone()).collect(), None),
        Err(error @ (OpenError::File(FileError::InUse { .. }) | OpenError::Read { .. })) => {
            return Err(error.into());
        }
        Err(error) => (vec![Arc::new(leaf)], Some(error)),
    };
    let chain: Vec<FileReport> = files.iter().map(|file| check_file(file)).collect::<Result<_, _>>()?;
    // What the leaf's own report says already needs no second sentence.
    let chain_error = match chain_error {
        Some(OpenError::Vhd { path: of, .. } | OpenError::Vhdx { path: of, .. }) if of == path => None,
        other => other.map(|error| error.to_string()),
    };
    let finding = |file: &FileReport| file.findings.iter().any(|finding| finding.severity != "info");
    let clean = chain_error.is_none() && !chain.iter().any(finding);
    if clean {
        files.iter().try_for_each(|file| readmit(file))?;
    }
    Ok(CheckReport { clean, chain, chain_error, repair: None })
}

/// A flush of the image had failed, and its structure is sound: what was not stable then is given up, and the image may be
/// written again.
fn readmit(file: &OpenedFile) -> Result<(), Error> {
    if leftover::is_failed(file) {
        file.file().sync_all().map_err(Error::io(file.path(), "flushing"))?;
        let writes = leftover::forget(file).map_err(|error| OpenError::from(FileError::from(error)))?;
        tracing::warn!(
            image = %file.path().display(),
            writes,
            "a flush had failed and the image is sound: it may be written again; writes that were never flushed are given up"
        );
    }
    Ok(())
}

fn forget_pending(path: &Path) -> Result<(), Error> {
    let file = OpenedFile::open_as_it_is(path, Access::Writable, Locking::Hold).map_err(OpenError::from)?;
    let writes = leftover::forget(&file).map_err(|error| OpenError::from(FileError::from(error)))?;
    tracing::warn!(image = %path.display(), writes, "acknowledged writes that were pending are given up");
    Ok(())
}

fn check_file(file: &OpenedFile) -> Result<FileReport, Error> {
    let path = file.path().display().to_string();
    let format = detect(file)?;
    let read = |offset, bytes: &mut [u8]| {
        let len = bytes.len();
        let failed = |source| OpenError::Read { path: file.path().to_owned(), offset, len, source };
        file.read_at(offset, bytes).map_err(failed)
    };
    let mut checked = FileReport {
        path,
        format: format.name(),
        allocated_blocks: 0,
        unreferenced_bytes: 0,
        orphaned_blocks: 0,
        findings: Vec::new(),
    };
    match format {
        Format::Raw => {}
        Format::Vhd => add_vhd(&mut checked, check(file.len(), read)?),
        Format::Vhdx => add_vhdx(&mut checked, vhdx::check::check(file.len(), read)?),
    }
    Ok(checked)
}

fn add_vhd(checked: &mut FileReport, report: Report) {
    checked.findings = found(report.findings);
    checked.allocated_blocks = report.allocated_blocks;
    checked.unreferenced_bytes = report.unreferenced_bytes;
    checked.orphaned_blocks = report.orphaned_blocks;
}

fn add_vhdx(checked: &mut FileReport, report: vhdx::check::Report) {
    checked.findings = found(report.findings);
    checked.allocated_blocks = report.allocated_blocks;
    checked.unreferenced_bytes = report.unreferenced_bytes;
}

fn found<S: std::fmt::Display>(findings: Findings<S>) -> Vec<FindingReport> {
    let findings = findings.into_vec().into_iter().map(|finding| FindingReport {
        severity: finding.severity.word(),
        structure: finding.structure.to_string(),
        offset: finding.offset,
        message: finding.sentence,
    });
    findings.collect()
}

fn write(out: &mut dyn Write, report: &CheckReport, json: bool) -> std::io::Result<()> {
    if json {
        serde_json::to_writer_pretty(&mut *out, report)?;
        return writeln!(out);
    }
    report.repair.iter().try_for_each(|repair| repair.write(out))?;
    for file in &report.chain {
        for finding in &file.findings {
            writeln!(out, "{}: {}: {}", file.path, finding.severity, finding.message)?;
        }
        let clean = file.findings.iter().all(|finding| finding.severity == "info");
        match (clean, file.format) {
            (true, "raw") => writeln!(out, "{}: raw, nothing to check", file.path)?,
            (true, _) => writeln!(out, "{}: clean, {} blocks allocated", file.path, file.allocated_blocks)?,
            (false, _) => {}
        }
    }
    report.chain_error.iter().try_for_each(|error| writeln!(out, "error: {error}"))
}
