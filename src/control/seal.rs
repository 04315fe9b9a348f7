//! Seals: a golden image is read-only for good, and a file beside it says what its bytes were.
//!
//! Knows the file `NAME.seal` (TOML, versioned), when a look at the inode is enough and when the bytes must be read. Does
//! not know chains or formats.
//!
//! The fingerprint is BLAKE3 over the *bytes of the file*, not over the disk in it. A child relies on its parent's bytes:
//! a parent whose disk is the same but whose file is another (compacted, converted) is no longer the file it was sealed as,
//! and its administrator knows. And `b3sum NAME` of any other program gives the same number, whatever the format.
//!
//! Every open compares length, modification and change time, and inode: equal means unchanged, at the price of one
//! small read. Otherwise (a copy, a restored backup, a touched file) the fingerprint decides; when it is the same, the
//! seal takes the new facts. No change can hide in the resolution of a time stamp: a fingerprint is begun only when the
//! recorded times have passed (`settle`).

use std::fs::{File, Metadata, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::block_io::data_runs;
use super::error::Error;
use super::file::OpenedFile;
use super::progress::Progress;
use super::staged::{StagedFile, sync_folder_of};

/// The version of the seal's text that this program writes, and the only one it reads.
const VERSION: u32 = 1;
/// A longer seal is none.
const SEAL_BYTES_MAX: u64 = 64 << 10;
/// Bytes read at once.
const PIECE_BYTES: usize = 1 << 20;
/// File systems give one time stamp to all that happens within a tick of the kernel, 10 ms at most.
const TICK: Duration = Duration::from_millis(30);
/// Write permissions of everybody.
const WRITE_BITS: u32 = 0o222;
const OWNER_WRITES: u32 = 0o200;

const HEAD: &str = "\
# The seal of the image beside this file (goldrush image seal). While it is here the image is never written, and an image
# that does not have this fingerprint any more is refused. To change the image: goldrush image unseal.
";

/// Why a sealed image is not used.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error(
        "{path} was changed after it was sealed: restore it from a copy; where the change is meant, run goldrush \
         image unseal {path} and make new children of it", path = .path.display()
    )]
    Broken { path: PathBuf },
    #[error(
        "{seal} is no seal that this version reads ({reason}): restore it from a copy, or run goldrush image unseal",
        seal = .seal.display()
    )]
    Damaged { seal: PathBuf, reason: String },
    #[error("{path}: reading it to compare it with its seal failed: {source}", path = .path.display())]
    Read { path: PathBuf, source: io::Error },
}

/// What tells a changed file without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Facts {
    length: u64,
    /// Nanoseconds since 1970.
    modified_ns: i64,
    changed_ns: i64,
    /// As a signed number, the only kind TOML has.
    inode: i64,
}

/// The text of a seal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Seal {
    version: u32,
    /// Of the file's bytes, in hexadecimal.
    pub(super) blake3: String,
    format: String,
    unique_id: Option<String>,
    /// The permissions before it was sealed.
    mode: u32,
    facts: Facts,
}

/// What the sealed image is, for whoever reads the seal.
#[derive(Clone, Debug)]
pub(super) struct Sealed {
    pub(super) format: &'static str,
    pub(super) unique_id: Option<String>,
}

impl Facts {
    fn of(metadata: &Metadata) -> Self {
        let ns = |seconds: i64, ns: i64| seconds.saturating_mul(1_000_000_000).saturating_add(ns);
        Self {
            length: metadata.len(),
            modified_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino().cast_signed(),
        }
    }

    /// Waits until nothing that happens from now on can have these times.
    fn settle(self) {
        let newest = u64::try_from(self.modified_ns.max(self.changed_ns)).unwrap_or(0);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // Times in the future are left to the comparison of the bytes: they never look settled.
        if now.saturating_sub(Duration::from_nanos(newest)) < TICK {
            std::thread::sleep(TICK);
        }
    }
}

/// Where the seal of `path` lies: beside the file itself, not beside a link to it.
pub(super) fn seal_path(path: &Path) -> PathBuf {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut name = real.file_name().unwrap_or_default().to_owned();
    name.push(".seal");
    real.with_file_name(name)
}

/// True when a seal lies beside `path`, whatever it says.
pub(super) fn is_sealed(path: &Path) -> bool {
    // A seal that cannot be looked at is a seal: better refused than written.
    seal_path(path).try_exists().unwrap_or(true)
}

/// The seal of `path`, if it has one.
pub(super) fn read(path: &Path) -> Result<Option<Seal>, SealError> {
    let seal = seal_path(path);
    let damaged = |reason: String| SealError::Damaged { seal: seal.clone(), reason };
    let mut text = String::new();
    let file = match File::open(&seal) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(damaged(error.to_string())),
    };
    file.take(SEAL_BYTES_MAX).read_to_string(&mut text).map_err(|error| damaged(error.to_string()))?;
    parse(&text).map(Some).map_err(damaged)
}

fn parse(text: &str) -> Result<Seal, String> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let short = |error: toml::de::Error| error.message().to_owned();
    let Version { version } = toml::from_str(text).map_err(short)?;
    if version != VERSION {
        return Err(format!("it has version {version}, not {VERSION}"));
    }
    let seal: Seal = toml::from_str(text).map_err(short)?;
    if blake3::Hash::from_hex(&seal.blake3).is_err() {
        return Err("blake3 is no fingerprint".to_owned());
    }
    Ok(seal)
}

/// Compares an open image with its seal, if it has one. `thorough` reads its bytes in any case.
pub(super) fn verify(file: &OpenedFile, thorough: bool) -> Result<Option<Seal>, SealError> {
    let Some(seal) = read(file.path())? else { return Ok(None) };
    let failed = |source| SealError::Read { path: file.path().to_owned(), source };
    let broken = || SealError::Broken { path: file.path().to_owned() };
    let facts = Facts::of(&file.file().metadata().map_err(failed)?);
    if facts == seal.facts && !thorough {
        return Ok(Some(seal));
    }
    if facts.length != seal.facts.length {
        return Err(broken());
    }
    if facts != seal.facts {
        tracing::info!(
            image = %file.path().display(),
            "times or inode are not those of its seal: comparing its content"
        );
    }
    facts.settle();
    let hash = fingerprint(file, "comparing with the seal").map_err(failed)?;
    let after = Facts::of(&file.file().metadata().map_err(failed)?);
    if hash != seal.blake3 || after != facts {
        return Err(broken());
    }
    let renewed = Seal { facts, ..seal };
    // In a folder that is read-only the content is compared again next time: that is all.
    if let Err(error) = write(file.path(), &renewed, true) {
        tracing::warn!(image = %file.path().display(), "its seal cannot be renewed: {error}");
    }
    Ok(Some(renewed))
}

/// Seals an open image: takes write permission away, makes the content stable, and writes what it is.
///
/// The seal is written last: a kill before leaves an image that is read-only and not sealed, and sealing it again
/// does the rest.
pub(super) fn make(file: &OpenedFile, what: Sealed) -> Result<Seal, Error> {
    let path = file.path();
    if file.is_block_device() {
        let path = path.display();
        return Err(Error::Failed(format!(
            "{path} is a block device, and only a file can be sealed: convert it"
        )));
    }
    file.file().sync_all().map_err(Error::io(path, "flushing"))?;
    let metadata = file.file().metadata().map_err(Error::io(path, "looking at the file"))?;
    let mode = metadata.permissions().mode();
    set_mode(file, mode & !WRITE_BITS)?;
    let facts = || file.file().metadata().map(|metadata| Facts::of(&metadata));
    let before = facts().map_err(Error::io(path, "looking at the file"))?;
    before.settle();
    let blake3 = fingerprint(file, "sealing").map_err(Error::io(path, "reading"))?;
    if facts().map_err(Error::io(path, "looking at the file"))? != before {
        return Err(Error::Failed(format!(
            "{} was changed while it was being sealed: stop whoever writes it, then seal it again",
            path.display()
        )));
    }
    let Sealed { format, unique_id } = what;
    let seal = Seal { version: VERSION, blake3, format: format.to_owned(), unique_id, mode, facts: before };
    write(path, &seal, false)?;
    Ok(seal)
}

/// Takes the seal away, and gives write permission back before: a kill between leaves a sealed image.
pub(super) fn remove(file: &OpenedFile) -> Result<(), Error> {
    let path = file.path();
    let old = match read(path) {
        Ok(seal) => seal.map(|seal| seal.mode),
        // What cannot be read can still be taken away.
        Err(SealError::Damaged { .. }) => None,
        Err(error) => return Err(Error::Failed(error.to_string())),
    };
    let metadata = file.file().metadata().map_err(Error::io(path, "looking at the file"))?;
    set_mode(file, old.unwrap_or_else(|| metadata.permissions().mode()) | OWNER_WRITES)?;
    let seal = seal_path(path);
    std::fs::remove_file(&seal).map_err(Error::io(&seal, "removing"))?;
    sync_folder_of(&seal)
}

/// Says, once for a command, that nobody would notice a change of an unsealed parent.
pub(super) fn suggest(parent: &Path) {
    if !is_sealed(parent) {
        let parent = parent.display();
        tracing::warn!(
            "{parent} is not sealed: a change of it, which would damage its children, could go unnoticed; run \
             goldrush image seal {parent}"
        );
    }
}

fn set_mode(file: &OpenedFile, mode: u32) -> Result<(), Error> {
    let set = file.file().set_permissions(Permissions::from_mode(mode & 0o7777));
    set.map_err(Error::io(file.path(), "changing the permissions"))
}

fn write(image: &Path, seal: &Seal, replace: bool) -> Result<(), Error> {
    let path = seal_path(image);
    let text =
        toml::to_string(seal).map_err(|error| Error::Failed(format!("{}: {error}", path.display())))?;
    let mut staged = StagedFile::create(&path)?;
    let written =
        staged.file.write_all(HEAD.as_bytes()).and_then(|()| staged.file.write_all(text.as_bytes()));
    written.map_err(Error::io(&path, "writing"))?;
    staged.publish(replace)
}

/// BLAKE3 of all bytes, holes as the zeros they read as, in hexadecimal.
fn fingerprint(file: &OpenedFile, doing: &'static str) -> io::Result<String> {
    let len = file.file().metadata()?.len();
    let progress = Progress::new(doing, file.path(), len);
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; PIECE_BYTES];
    let zeros = vec![0; PIECE_BYTES];
    let mut at = 0;
    for (start, end) in data_runs(file, 0, len).into_iter().chain([(len, len)]) {
        while at < start {
            let piece = (start - at).min(PIECE_BYTES as u64);
            hasher.update(&zeros[..piece as usize]);
            at += piece;
            progress.set(at);
        }
        while at < end {
            let piece = (end - at).min(PIECE_BYTES as u64) as usize;
            file.read_at(at, &mut buffer[..piece])?;
            hasher.update(&buffer[..piece]);
            at += piece as u64;
            progress.set(at);
        }
    }
    progress.finish();
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::file::{Access, FileError, Locking};
    use std::os::unix::fs::FileExt;

    fn image() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("golden.raw");
        let file = File::create(&path).unwrap();
        file.set_len(3 << 20).unwrap();
        file.write_all_at(&[5; 4096], 2 << 20).unwrap();
        (folder, path)
    }

    fn open(path: &Path) -> OpenedFile {
        OpenedFile::open(path, Access::ReadOnly, Locking::Hold).unwrap()
    }

    fn sealed(path: &Path) -> Seal {
        make(&open(path), Sealed { format: "raw", unique_id: None }).unwrap()
    }

    #[test]
    fn the_fingerprint_is_that_of_the_bytes_holes_included() {
        let (_folder, path) = image();
        let seal = sealed(&path);
        let all = std::fs::read(&path).unwrap();
        assert_eq!(seal.blake3, blake3::hash(&all).to_hex().to_string());
        assert_eq!(read(&path).unwrap(), Some(seal));
    }

    #[test]
    fn a_touched_image_is_compared_and_its_seal_renewed() {
        let (_folder, path) = image();
        let seal = sealed(&path);
        let file = File::open(&path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(5)).unwrap();
        let renewed = verify(&open(&path), false).unwrap().unwrap();
        assert_eq!(renewed.facts.modified_ns, 5_000_000_000);
        assert_eq!((renewed.blake3, read(&path).unwrap().unwrap().facts), (seal.blake3, renewed.facts));
    }

    #[test]
    fn a_change_of_one_byte_is_found_also_when_its_time_was_put_back() {
        let (_folder, path) = image();
        let before = std::fs::metadata(&path).unwrap().modified().unwrap();
        sealed(&path);
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[6], 2 << 20).unwrap();
        file.set_modified(before).unwrap();
        assert!(matches!(verify(&open(&path), false), Err(SealError::Broken { .. })));
        file.write_all_at(&[5], 2 << 20).unwrap();
        assert!(verify(&open(&path), true).unwrap().is_some());
        file.set_len((3 << 20) + 512).unwrap();
        assert!(matches!(verify(&open(&path), false), Err(SealError::Broken { .. })));
    }

    #[test]
    fn a_sealed_image_is_not_opened_for_writing_and_an_unsealed_one_is() {
        let (folder, path) = image();
        sealed(&path);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & WRITE_BITS, 0);
        let link = folder.path().join("link.raw");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        for name in [&path, &link] {
            let refused = OpenedFile::open(name, Access::Writable, Locking::Hold);
            assert!(matches!(refused, Err(FileError::Sealed { .. })), "{refused:?}");
        }
        remove(&open(&path)).unwrap();
        assert!(OpenedFile::open(&path, Access::Writable, Locking::Hold).is_ok());
        assert!(verify(&open(&path), false).unwrap().is_none());
    }

    #[test]
    fn a_seal_that_is_none_is_said_to_be_none_and_may_be_removed() {
        let (_folder, path) = image();
        sealed(&path);
        for text in ["", "version = 2\n", "version = 1\n", "version = 1\nblake3 = \"x\"", "\u{0}"] {
            std::fs::write(seal_path(&path), text).unwrap();
            let found = verify(&open(&path), false);
            assert!(matches!(found, Err(SealError::Damaged { .. })), "{text:?}: {found:?}");
        }
        remove(&open(&path)).unwrap();
        assert!(!is_sealed(&path));
    }
}
