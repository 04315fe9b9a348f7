//! What other programs make of an image, where they are installed: `qemu-img` and `7zz`.
//!
//! Knows their command lines. Does not know what an image should read.

use std::path::Path;
use std::process::Command;

pub fn installed(program: &str) -> bool {
    let there = Command::new(program).arg("--help").output().is_ok();
    if !there {
        eprintln!("SKIPPED: {program} is not installed, so nobody else read the images made here");
    }
    there
}

/// The disk of an image whose format is `kind`, through its parents.
#[track_caller]
pub fn seven_zip_reads(image: &Path, kind: &str) -> Vec<u8> {
    let output = Command::new("7zz").args(["x", "-so", &format!("-t{kind}")]).arg(image).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "7zz, {}: {told}", image.display());
    output.stdout
}

/// The disk of a VHD by its current size, whoever made it.
#[track_caller]
pub fn qemu_reads_vhd(image: &Path) -> Vec<u8> {
    let options = format!("driver=vpc,force_size_calc=current_size,file.filename={}", image.display());
    qemu_converts(&["--image-opts", &options], image)
}

#[track_caller]
pub fn qemu_reads_vhdx(image: &Path) -> Vec<u8> {
    qemu_converts(&["-f", "vhdx", image.to_str().unwrap()], image)
}

#[track_caller]
fn qemu_converts(source: &[&str], image: &Path) -> Vec<u8> {
    let raw = image.with_extension("qemu-raw");
    let output =
        Command::new("qemu-img").args(["convert", "-O", "raw"]).args(source).arg(&raw).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-img, {}: {told}", image.display());
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(raw).unwrap();
    bytes
}

/// Its check of a VHDX finds nothing; `more` options, such as those that replay a log.
#[track_caller]
pub fn qemu_finds_no_errors(image: &Path, more: &[&str]) {
    let output =
        Command::new("qemu-img").args(["check", "-f", "vhdx"]).args(more).arg(image).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains("No errors"), "{}: {told} {output:?}", image.display());
}
