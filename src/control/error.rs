//! What a command ends with when it does not succeed, and the exit code for it.
//!
//! Knows kinds of failure. Does not know who fails.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::config::ConfigError;
use super::file::FileError;
use super::open_image::OpenError;

/// The operation failed, or a check found something.
pub(super) const EXIT_FAILED: u8 = 1;
/// The command line or the configuration is wrong; for `image check`: no verdict could be reached.
pub(super) const EXIT_USAGE: u8 = 2;

/// Another process holds the image.
pub(super) const EXIT_IN_USE: u8 = 3;

/// Why a command did not do what it was asked. Each line of it is one sentence.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}", first(.0))]
    Config(Vec<ConfigError>),
    #[error("{0}")]
    Usage(String),
    /// A check that reached no verdict.
    #[error("{0}")]
    Unchecked(String),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("{path}: {doing} failed: {source}", path = .path.display())]
    Io { path: PathBuf, doing: &'static str, source: std::io::Error },
    #[error("{0}")]
    Failed(String),
    /// Standard output takes no more.
    #[error("standard output failed: {0}")]
    Output(io::Error),
}

fn first(errors: &[ConfigError]) -> String {
    errors.first().map(ToString::to_string).unwrap_or_default()
}

/// Writes to standard output, flushed. A reader that has gone away (`| head`) has what it wanted.
pub(super) fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::Failed(format!("standard output failed: {error}")))
        }
        _ => Ok(()),
    }
}

impl Error {
    /// For `map_err`: what was being done to `path`.
    pub(super) fn io(path: &Path, doing: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, doing, source }
    }

    /// For `map_err`, while a result is being written.
    pub(super) fn output(source: io::Error) -> Self {
        Self::Output(source)
    }

    /// For `map_err` of a command whose exit code 1 is a verdict: this is none. In use stays in use.
    pub(super) fn without_verdict(self) -> Self {
        if self.is_in_use() { self } else { Self::Unchecked(self.to_string()) }
    }

    /// One sentence for each thing that is wrong.
    pub(super) fn lines(&self) -> Vec<String> {
        match self {
            Self::Config(errors) => errors.iter().map(ToString::to_string).collect(),
            other => vec![other.to_string()],
        }
    }

    /// True when nothing is wrong but that another process holds an image.
    pub(super) fn is_in_use(&self) -> bool {
        matches!(self, Self::Open(OpenError::File(FileError::InUse { .. })))
    }

    pub(super) fn exit_code(&self) -> u8 {
        match self {
            _ if self.is_in_use() => EXIT_IN_USE,
            Self::Config(_) | Self::Usage(_) | Self::Unchecked(_) => EXIT_USAGE,
            Self::Open(_) | Self::Io { .. } | Self::Failed(_) | Self::Output(_) => EXIT_FAILED,
        }
    }
}
