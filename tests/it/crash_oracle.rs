//! States after crashes, read by 7-Zip: an independent reader that follows parents and replays no log.
//!
//! Knows how to put a chain into files and what came out. Does not know crashes.

use crate::blocking::Disk;
use crate::crash_world::{Format, NOBODYS};
use crate::sector_history::Content;
use crate::sim_disk::{SimDisk, SimFile, sector_of};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

/// Longer disks are not read out.
const BYTES_MAX: u64 = 64 << 20;

/// How many chains were read: none where there is no parent 7-Zip could find by its name.
pub fn seven_zip_agrees(
    disk: &Disk<SimFile>,
    leaf: &SimDisk,
    content: &Content,
    format: Format,
) -> Result<u64, String> {
    let sectors = disk.sectors();
    // All parents of a world have one name, so of longer chains the first parent would be its own.
    if disk.files.len() > 2 || sectors * 512 > BYTES_MAX {
        return Ok(0);
    }
    // 7-Zip opens no VHDX of an odd number of logical sectors, whoever made it.
    let logical =
        disk.images.layer(disk.chain.leaf()).map_or(512, |leaf| u64::from(leaf.logical_sector().bytes()));
    if format == Format::Vhdx && !(sectors * 512 / logical).is_multiple_of(2) {
        return Ok(0);
    }
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let kind = match format {
        Format::Vhd => "vhd",
        Format::Vhdx => "vhdx",
    };
    let path = folder.path().join(format!("leaf.{kind}"));
    put(&path, &leaf.volatile);
    if let Some(parent) = disk.files.get(1) {
        put(&folder.path().join(format!("parent.{kind}")), parent);
    }
    let output = Command::new("7zz").args(["x", "-so", &format!("-t{kind}")]).arg(&path).output();
    let output = output.map_err(|error| error.to_string())?;
    if !output.status.success() || output.stdout.len() as u64 != sectors * 512 {
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("7zz gives {} bytes of {}: {told}", output.stdout.len(), sectors * 512));
    }
    for (sector, bytes) in (0..).zip(output.stdout.chunks_exact(512)) {
        let expected = sector_of(content.at(sector));
        if bytes != expected && content.at(sector) != NOBODYS {
            return Err(format!("7zz reads another sector {sector}"));
        }
    }
    Ok(1)
}

fn put(path: &Path, file: &SimFile) {
    let out = File::create_new(path).unwrap();
    out.set_len(file.len).unwrap();
    for (sector, content) in file.sectors(0..u64::MAX) {
        out.write_all_at(&content.bytes(), sector * 512).unwrap();
    }
}
