//! Images of other formats, read through `qemu-img` where it is installed.
//!
//! Knows how it is called, and believes it only as far as its exit code and the size it gives. Does not know formats.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::error::Error;
use super::image_format::ForeignFormat;
use super::progress::Progress;
use super::staged::StagedFile;
use crate::units::SECTOR_BYTES;

const PROGRAM: &str = "qemu-img";
/// How often its progress is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// What `qemu-img info` tells.
#[derive(Debug, serde::Deserialize)]
struct Info {
    #[serde(rename = "virtual-size")]
    virtual_size: u64,
    #[serde(rename = "actual-size", default)]
    actual_size: u64,
}

/// Fills an empty staged file with the disk that `source` holds, and returns its size.
pub(super) fn read_into(staged: &StagedFile, source: &Path, format: ForeignFormat) -> Result<u64, Error> {
    // Told about a missing file by the name the user gave, not by another program.
    std::fs::metadata(source).map_err(Error::io(source, "opening"))?;
    let info = info(source, format)?;
    let size = info.virtual_size;
    if size == 0 || !size.is_multiple_of(SECTOR_BYTES) {
        return Err(failed(source, &format!("it tells a size of {size} bytes, which is no disk's")));
    }
    // A file of zeros of the right length: what qemu-img leaves out is a hole.
    staged.file.set_len(size).map_err(Error::io(staged.destination(), "setting the length"))?;
    let mut child = Command::new(PROGRAM)
        .args(["convert", "-f", format.name(), "-O", "raw", "-n", "--target-is-zero", "-W", "--"])
        .args([absolute(source)?, absolute(staged.temporary())?])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| not_run(source, format, &error))?;
    let progress = Progress::new("reading through qemu-img", source, info.actual_size.max(1));
    let code = loop {
        match child.try_wait().map_err(Error::io(source, "waiting for qemu-img"))? {
            Some(status) => break status,
            None => std::thread::sleep(LOOK),
        }
        progress.set(allocated(staged));
    };
    progress.finish();
    if !code.success() {
        let mut said = String::new();
        if let Some(mut stderr) = child.stderr.take() {
            let _ = io::Read::read_to_string(&mut stderr, &mut said);
        }
        return Err(failed(source, first_line(&said)));
    }
    let len = staged.file.metadata().map_err(Error::io(staged.destination(), "looking at it"))?.len();
    if len != size {
        return Err(failed(source, &format!("it told a size of {size} bytes and wrote {len}")));
    }
    Ok(size)
}

fn info(source: &Path, format: ForeignFormat) -> Result<Info, Error> {
    let output = Command::new(PROGRAM)
        .args(["info", "--output=json", "-f", format.name(), "--"])
        .arg(absolute(source)?)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| not_run(source, format, &error))?;
    if !output.status.success() {
        return Err(failed(source, first_line(&String::from_utf8_lossy(&output.stderr))));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|_| failed(source, "it does not tell the size of the disk"))
}

/// With a root: a relative name with a colon would be taken for a protocol.
fn absolute(path: &Path) -> Result<std::path::PathBuf, Error> {
    std::path::absolute(path).map_err(Error::io(path, "resolving the path"))
}

fn allocated(staged: &StagedFile) -> u64 {
    use std::os::unix::fs::MetadataExt;
    staged.file.metadata().map_or(0, |metadata| metadata.blocks() * 512)
}

fn not_run(source: &Path, format: ForeignFormat, error: &io::Error) -> Error {
    let (path, name) = (source.display(), format.name());
    if error.kind() == io::ErrorKind::NotFound {
        return Error::Failed(format!(
            "{path} is a {name} file, which goldrush reads through qemu-img, and that is not installed: install it \
             (qemu-utils), or convert the file to raw where it is"
        ));
    }
    Error::Failed(format!("{path}: qemu-img, which reads {name} files, cannot be run: {error}"))
}

fn failed(source: &Path, why: &str) -> Error {
    Error::Failed(format!("{}: qemu-img could not read it: {why}", source.display()))
}

/// The first line, without the program's name, as text that a terminal can take.
fn first_line(text: &str) -> &str {
    let line = text.lines().next().unwrap_or("it does not say why");
    let line = line.strip_prefix("qemu-img: ").unwrap_or(line);
    if line.chars().any(char::is_control) { "it does not say why" } else { line }
}
