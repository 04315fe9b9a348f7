//! `goldrush image info`: what an image is, and whose child.
//!
//! Knows what to show. Takes no lock: a look at an image in use is allowed, and says so.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use super::cli::InfoArgs;
use super::error::{EXIT_FAILED, Error, print};
use super::file::{Access, Locking};
use super::lock_holder::LockHolder;
use super::open_image::{OpenedLayer, Opener, type_name};
use super::seal;
use super::size::human;
use crate::vhd::create::EPOCH_UNIX_SECONDS;
use crate::vhd::{ParentInfo, VhdImage};
use crate::vhdx::{self, VhdxImage};

#[derive(Debug, Serialize)]
struct InfoReport {
    /// Leaf first.
    chain: Vec<LayerReport>,
    /// Why a parent could not be opened, when one could not.
    chain_error: Option<String>,
}

#[derive(Debug, Serialize)]
struct LayerReport {
    path: String,
    format: &'static str,
    virtual_size: u64,
    file_size: u64,
    /// Bytes on the file system; less than `file_size` in a sparse file.
    disk_usage: Option<u64>,
    /// A seal lies beside it; whether it still holds is told when the image is used.
    sealed: bool,
    in_use: bool,
    in_use_by: Option<LockHolder>,
    #[serde(flatten)]
    vhd: Option<VhdReport>,
    #[serde(flatten)]
    vhdx: Option<VhdxReport>,
}

#[derive(Debug, Serialize)]
struct VhdReport {
    #[serde(rename = "type")]
    kind: &'static str,
    block_size: Option<u32>,
    blocks: u64,
    allocated_blocks: u64,
    unique_id: String,
    creator: String,
    creator_host: String,
    /// RFC 3339, UTC.
    created: String,
    parent: Option<ParentReport>,
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct VhdxReport {
    #[serde(rename = "type")]
    kind: &'static str,
    block_size: u32,
    blocks: u64,
    allocated_blocks: u64,
    logical_sector_size: u32,
    physical_sector_size: u32,
    /// Shared by parents and children.
    disk_id: String,
    /// What children know their parent by.
    data_write_guid: String,
    creator: String,
    /// The log holds changes that a crash left.
    log: bool,
    parent: Option<VhdxParentReport>,
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct VhdxParentReport {
    data_write_guid: String,
    /// Where the image says its parent is, best first.
    candidates: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ParentReport {
    unique_id: String,
    modified: String,
    /// Where the image says its parent is, best first.
    candidates: Vec<String>,
}

/// Runs the command. A missing or wrong parent is told, and makes the exit code 1.
pub(super) fn run(args: &InfoArgs) -> Result<ExitCode, Error> {
    let report = report(&args.path)?;
    print(|out| if args.json { print_json(out, &report) } else { print_text(out, &report) })?;
    Ok(if report.chain_error.is_none() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILED) })
}

fn report(path: &Path) -> Result<InfoReport, Error> {
    match Opener::anywhere(Locking::Ignore).open_chain(path, Access::ReadOnly) {
        Ok(chain) => Ok(InfoReport { chain: chain.layers().iter().map(layer).collect(), chain_error: None }),
        Err(error) => {
            let leaf = Opener::anywhere(Locking::Ignore).open_leaf(path, Access::ReadOnly)?;
            Ok(InfoReport { chain: vec![layer(&leaf)], chain_error: Some(error.to_string()) })
        }
    }
}

fn layer(layer: &OpenedLayer) -> LayerReport {
    let file = layer.file();
    let in_use = file.is_in_use();
    LayerReport {
        path: file.path().display().to_string(),
        format: layer.format().name(),
        virtual_size: layer.sectors().bytes().0,
        file_size: file.len(),
        disk_usage: file.allocated().ok().filter(|_| !file.is_block_device()),
        sealed: seal::is_sealed(file.path()),
        in_use,
        in_use_by: if in_use { file.lock_holder() } else { None },
        vhd: layer.image().map(vhd),
        vhdx: layer.vhdx().map(vhdx),
    }
}

fn vhd(image: &VhdImage) -> VhdReport {
    let statistics = image.statistics();
    let (app, version, host) = image.creator();
    VhdReport {
        kind: type_name(image.disk_type()),
        block_size: image.block_size(),
        blocks: statistics.blocks,
        allocated_blocks: statistics.allocated_blocks,
        unique_id: image.unique_id().to_string(),
        creator: format!("{} {}.{}", code(app), version >> 16, version & 0xFFFF),
        creator_host: code(host),
        created: utc(image.timestamp()),
        parent: image.parent().map(parent),
        warnings: image.warnings().iter().map(ToString::to_string).collect(),
    }
}

fn vhdx(image: &VhdxImage) -> VhdxReport {
    let statistics = image.statistics();
    VhdxReport {
        kind: match image.disk_type() {
            vhdx::DiskType::Fixed => "fixed",
            vhdx::DiskType::Dynamic => "dynamic",
            vhdx::DiskType::Differencing => "differencing",
        },
        block_size: image.block_size(),
        blocks: statistics.blocks,
        allocated_blocks: statistics.allocated_blocks,
        logical_sector_size: image.logical_sector().bytes(),
        physical_sector_size: image.physical_sector().bytes(),
        disk_id: image.disk_id().to_string(),
        data_write_guid: image.data_write_guid().to_string(),
        creator: image.creator().to_owned(),
        log: image.needs_replay(),
        parent: image.parent().map(|parent| VhdxParentReport {
            data_write_guid: parent.linkage.to_string(),
            candidates: parent.candidates.iter().map(|candidate| candidate.path.clone()).collect(),
        }),
        warnings: image.warnings().iter().map(ToString::to_string).collect(),
    }
}

fn parent(parent: &ParentInfo) -> ParentReport {
    ParentReport {
        unique_id: parent.unique_id.to_string(),
        modified: utc(parent.timestamp),
        candidates: parent.candidates.iter().map(|candidate| candidate.path.clone()).collect(),
    }
}

/// Four bytes of a foreign file as text that a terminal can take.
fn code(bytes: [u8; 4]) -> String {
    bytes
        .iter()
        .map(|byte| if byte.is_ascii_graphic() { char::from(*byte) } else { ' ' })
        .collect::<String>()
        .trim()
        .to_owned()
}

/// A VHD time stamp in RFC 3339.
fn utc(timestamp: u32) -> String {
    let seconds = u64::from(timestamp) + EPOCH_UNIX_SECONDS;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01, so that the leap day ends a year (Hinnant, "chrono-compatible low-level date algorithms").
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

fn print_json(out: &mut dyn Write, report: &InfoReport) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, report)?;
    writeln!(out)
}

fn print_text(out: &mut dyn Write, report: &InfoReport) -> io::Result<()> {
    for (depth, layer) in report.chain.iter().enumerate() {
        if depth > 0 {
            writeln!(out, "\nparent {depth}:")?;
        }
        print_layer(out, layer)?;
    }
    report.chain_error.iter().try_for_each(|error| writeln!(out, "\nerror: {error}"))
}

fn print_layer(out: &mut dyn Write, layer: &LayerReport) -> io::Result<()> {
    let mut line = |name: &str, value: String| writeln!(out, "{name:<14}{value}");
    line("path", layer.path.clone())?;
    let kind = layer.vhd.as_ref().map(|vhd| vhd.kind).or(layer.vhdx.as_ref().map(|vhdx| vhdx.kind));
    let kind = kind.map_or(String::new(), |kind| format!(", {kind}"));
    line("format", format!("{}{kind}", layer.format))?;
    line("disk size", format!("{} ({} bytes)", human(layer.virtual_size), layer.virtual_size))?;
    let usage =
        layer.disk_usage.map_or(String::new(), |usage| format!(", {} on the file system", human(usage)));
    line("file size", format!("{}{usage}", human(layer.file_size)))?;
    if layer.sealed {
        line("sealed", "yes: it is never written".to_owned())?;
    }
    let by = layer.in_use_by.as_ref().map_or(String::new(), |holder| format!(" ({holder})"));
    line(
        "in use",
        if layer.in_use { format!("by another process, for writing{by}") } else { "no".to_owned() },
    )?;
    if let Some(vhdx) = &layer.vhdx {
        print_vhdx(&mut line, vhdx)?;
    }
    let Some(vhd) = &layer.vhd else { return Ok(()) };
    if let Some(size) = vhd.block_size {
        let size = human(u64::from(size));
        line("blocks", format!("{} of {} allocated, {size} each", vhd.allocated_blocks, vhd.blocks))?;
    }
    line("unique id", vhd.unique_id.clone())?;
    line("created", format!("{} by {} ({})", vhd.created, vhd.creator, vhd.creator_host))?;
    if let Some(parent) = &vhd.parent {
        line("parent id", parent.unique_id.clone())?;
        line("parent time", parent.modified.clone())?;
        for candidate in &parent.candidates {
            line("parent path", candidate.clone())?;
        }
    }
    vhd.warnings.iter().try_for_each(|warning| line("warning", warning.clone()))
}

fn print_vhdx(line: &mut dyn FnMut(&str, String) -> io::Result<()>, vhdx: &VhdxReport) -> io::Result<()> {
    let size = human(u64::from(vhdx.block_size));
    line("blocks", format!("{} of {} allocated, {size} each", vhdx.allocated_blocks, vhdx.blocks))?;
    let (logical, physical) = (vhdx.logical_sector_size, vhdx.physical_sector_size);
    line("sectors", format!("{logical} bytes, {physical} of the device"))?;
    line("disk id", vhdx.disk_id.clone())?;
    line("data id", vhdx.data_write_guid.clone())?;
    line("created by", vhdx.creator.clone())?;
    line("log", if vhdx.log { "holds changes that a crash left" } else { "empty" }.to_owned())?;
    if let Some(parent) = &vhdx.parent {
        line("parent id", parent.data_write_guid.clone())?;
        parent.candidates.iter().try_for_each(|candidate| line("parent path", candidate.clone()))?;
    }
    vhdx.warnings.iter().try_for_each(|warning| line("warning", warning.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_stamps_print_as_utc() {
        assert_eq!(utc(0), "2000-01-01T00:00:00Z");
        assert_eq!(utc(59 * 86_400 + 3661), "2000-02-29T01:01:01Z");
        assert_eq!(utc(366 * 86_400), "2001-01-01T00:00:00Z");
        assert_eq!(utc(u32::MAX), "2136-02-07T06:28:15Z");
    }

    #[test]
    fn creator_codes_cannot_drive_a_terminal() {
        assert_eq!(code(*b"vpc "), "vpc");
        assert_eq!(code([0x1B, b'[', 0, b'm']), "[ m");
    }
}
