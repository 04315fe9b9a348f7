//! Where boot traces lie, and to which bytes of a golden file each belongs.
//!
//! Knows names, folders and versions of files. Does not know the format (`boot_trace`), nor who records or reads.
//!
//! A trace lies beside its golden file, as `NAME.boot-trace`; where that folder cannot be written, in the server's state
//! folder; or all traces in a folder of their own (`--boot-trace FOLDER`). It is only ever replaced whole.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::file::OpenedFile;
use super::open_image::OpenedLayer;
use super::seal;
use super::staged::StagedFile;
use crate::boot_trace::{BootTrace, GoldenVersion, TRACE_FILE_BYTES_MAX};

/// The ending of a trace's name.
pub(super) const ENDING: &str = ".boot-trace";

/// What is done with boot traces: `on`, `off`, or a folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TracePlace {
    #[default]
    Beside,
    Off,
    Folder(PathBuf),
}

impl From<&str> for TracePlace {
    fn from(text: &str) -> Self {
        match text {
            "on" => Self::Beside,
            "off" => Self::Off,
            folder => Self::Folder(PathBuf::from(folder)),
        }
    }
}

impl TracePlace {
    /// As a configuration file in `folder` says it.
    pub(super) fn from_key(text: &str, folder: &Path) -> Self {
        match Self::from(text) {
            Self::Folder(path) => Self::Folder(folder.join(path)),
            known => known,
        }
    }
}

/// The traces of one server, or of a command.
#[derive(Clone, Debug)]
pub(super) struct TraceStore {
    place: TracePlace,
    state_dir: Option<PathBuf>,
}

/// Why there is no trace where one should be: one sentence, but for what happens now.
#[derive(Debug, thiserror::Error)]
pub(super) enum TraceFault {
    #[error("{path} cannot be read: {source}", path = .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is damaged ({reason})", path = .path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("{path} belongs to another version of {golden}", path = .path.display(), golden = .golden.display())]
    Foreign { path: PathBuf, golden: PathBuf },
}

impl TraceStore {
    pub(super) fn new(place: TracePlace, state_dir: Option<PathBuf>) -> Self {
        Self { place, state_dir }
    }

    pub(super) fn is_on(&self) -> bool {
        self.place != TracePlace::Off
    }

    /// Where the trace of a golden file may lie, the best place first. None: traces are off.
    fn places(&self, golden: &Path) -> Vec<PathBuf> {
        let real = golden.canonicalize().unwrap_or_else(|_| golden.to_owned());
        let mut name = real.file_name().unwrap_or_default().to_owned();
        let mut apart = name.clone();
        name.push(ENDING);
        // In a folder for all, files of one name from several folders are told apart.
        apart.push(format!("-{:08x}{ENDING}", crc32c::crc32c(real.as_os_str().as_bytes())));
        match &self.place {
            TracePlace::Off => Vec::new(),
            TracePlace::Folder(folder) => vec![folder.join(apart)],
            // A folder may be the state of a server or the place of its traces: the names are the same.
            TracePlace::Beside => {
                let state = self.state_dir.iter().map(|folder| folder.join(&apart));
                std::iter::once(real.with_file_name(&name)).chain(state).collect()
            }
        }
    }

    /// The trace of this version of a golden file, and where it lies; `None` where there is none.
    pub(super) fn load(
        &self,
        golden: &Path,
        version: &GoldenVersion,
    ) -> Result<Option<(PathBuf, BootTrace)>, TraceFault> {
        let mut fault = None;
        for path in self.places(golden) {
            match read(&path) {
                Ok(Some(trace)) if trace.golden.is(version) => return Ok(Some((path, trace))),
                Ok(Some(_)) => {
                    fault.get_or_insert(TraceFault::Foreign { path, golden: golden.to_owned() });
                }
                Ok(None) => {}
                Err(error) => {
                    fault.get_or_insert(error);
                }
            }
        }
        fault.map_or(Ok(None), Err)
    }

    /// Replaces the trace of a golden file, at the first place that can be written.
    pub(super) fn save(&self, golden: &Path, trace: &BootTrace) -> Result<PathBuf, Error> {
        let mut refused = Error::Failed("boot traces are off".to_owned());
        for path in self.places(golden) {
            match write(&path, trace) {
                Ok(()) => return Ok(path),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    /// Removes all traces of a golden file, whatever is in them; where they were.
    pub(super) fn forget(&self, golden: &Path) -> Result<Vec<PathBuf>, Error> {
        let mut gone = Vec::new();
        for path in self.places(golden) {
            match fs::remove_file(&path) {
                Ok(()) => gone.push(path),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io(&path, "removing the boot trace")(error)),
            }
        }
        Ok(gone)
    }
}

/// The trace in a file; `None`: there is no file.
pub(super) fn read(path: &Path) -> Result<Option<BootTrace>, TraceFault> {
    let failed = |source| TraceFault::Read { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(TRACE_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    let damaged = |error: crate::boot_trace::TraceError| TraceFault::Damaged {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    BootTrace::parse(&bytes).map(Some).map_err(damaged)
}

fn write(path: &Path, trace: &BootTrace) -> Result<(), Error> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(Error::io(folder, "making the folder of boot traces"))?;
    }
    let mut staged = StagedFile::create(path)?;
    staged.file.write_all(&trace.encode()).map_err(Error::io(path, "writing the boot trace"))?;
    staged.publish(true)
}

/// Which bytes an open golden file has, as far as can be told without reading them.
pub(super) fn version_of(layer: &OpenedLayer) -> io::Result<GoldenVersion> {
    let file: &OpenedFile = layer.file();
    let metadata = file.file().metadata()?;
    let id = layer.id();
    let fingerprint = seal::read(file.path()).ok().flatten();
    let fingerprint = fingerprint.and_then(|seal| blake3::Hash::from_hex(&seal.blake3).ok());
    Ok(GoldenVersion {
        unique_id: id.map_or([0; 16], uuid::Uuid::into_bytes),
        len: file.len(),
        modified_ns: metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec()),
        seal: fingerprint.map(Into::into),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot_trace::TraceRange;

    const VERSION: GoldenVersion =
        GoldenVersion { unique_id: [1; 16], len: 1 << 20, modified_ns: 5, seal: None };

    fn trace() -> BootTrace {
        BootTrace { golden: VERSION, boots: 1, ranges: vec![TraceRange { page: 3, pages: 20, boots: 1 }] }
    }

    #[test]
    fn a_trace_lies_beside_its_golden_file_and_a_link_leads_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let (golden, link) = (folder.path().join("golden.vhd"), folder.path().join("link.vhd"));
        fs::write(&golden, "").unwrap();
        std::os::unix::fs::symlink(&golden, &link).unwrap();
        let store = TraceStore::new(TracePlace::Beside, None);
        assert!(store.load(&golden, &VERSION).unwrap().is_none());
        let path = store.save(&link, &trace()).unwrap();
        assert_eq!(path, golden.canonicalize().unwrap().with_file_name("golden.vhd.boot-trace"));
        assert_eq!(store.load(&golden, &VERSION).unwrap(), Some((path.clone(), trace())));
        assert_eq!(store.forget(&golden).unwrap(), [path]);
        assert!(store.load(&golden, &VERSION).unwrap().is_none());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing else is left");
    }

    #[test]
    fn damaged_and_foreign_traces_are_told_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let golden = folder.path().join("golden.vhd");
        let store = TraceStore::new(TracePlace::Beside, None);
        let path = store.save(&golden, &trace()).unwrap();
        let other = GoldenVersion { modified_ns: 6, ..VERSION };
        let said = store.load(&golden, &other).unwrap_err().to_string();
        assert!(said.contains("golden.vhd.boot-trace belongs to another version of"), "{said}");
        let mut bytes = fs::read(&path).unwrap();
        bytes[20] ^= 1;
        fs::write(&path, bytes).unwrap();
        let said = store.load(&golden, &VERSION).unwrap_err().to_string();
        assert!(said.contains("golden.vhd.boot-trace is damaged (its checksum is wrong)"), "{said}");
        store.save(&golden, &trace()).unwrap();
        assert!(store.load(&golden, &VERSION).unwrap().is_some());
    }

    #[test]
    fn where_the_images_cannot_be_written_the_state_folder_serves() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        // No folder at all is one that even root cannot write.
        let golden = folder.path().join("file/golden.vhd");
        fs::write(folder.path().join("file"), "").unwrap();
        let store = TraceStore::new(TracePlace::Beside, Some(state.clone()));
        let path = store.save(&golden, &trace()).unwrap();
        assert_eq!(path.parent().unwrap(), state);
        assert!(path.to_str().unwrap().ends_with(ENDING));
        let apart = TraceStore::new(TracePlace::Folder(folder.path().join("new")), None);
        let (one, two) = (Path::new("/a/golden.vhd"), Path::new("/b/golden.vhd"));
        assert_ne!(apart.save(one, &trace()).unwrap(), apart.save(two, &trace()).unwrap());
        assert!(TraceStore::new(TracePlace::Off, None).save(one, &trace()).is_err());
    }
}
