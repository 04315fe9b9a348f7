//! The other end of the control socket: finds the server that is meant and asks it.
//!
//! Knows runtime folders and time limits. Does not know what is asked.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::super::error::Error;
use super::super::runtime;
use super::{ANSWER_BYTES_MAX, Request, parse_answer, request_line, socket};

/// A server that lives answers long before.
const ANSWER_TIME: Duration = Duration::from_secs(60);

/// Asks the server at `named`, or else the one server of the runtime folder.
///
/// # Errors
/// No server answers, several do, or it says no.
pub(in crate::control) fn ask<T: DeserializeOwned>(
    named: Option<&Path>,
    request: &Request,
) -> Result<T, Error> {
    let (path, stream) = find(named)?;
    let failed = |what: String| Error::Failed(format!("the server at {}: {what}", path.display()));
    let line = exchange(stream, request).map_err(|error| {
        let late = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        failed(if late { "it does not answer".to_owned() } else { format!("asking it failed: {error}") })
    })?;
    if line.is_empty() {
        return Err(failed("it closed without an answer".to_owned()));
    }
    let value = parse_answer(&line).map_err(failed)?;
    serde_json::from_value(value).map_err(|error| failed(format!("its answer is not understood: {error}")))
}

fn exchange(mut stream: UnixStream, request: &Request) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(ANSWER_TIME))?;
    stream.set_write_timeout(Some(ANSWER_TIME))?;
    // A server that is full answers before it has read the request: what it says is what counts.
    let asked = stream.write_all(&request_line(request));
    let mut line = Vec::new();
    let read = stream.take(ANSWER_BYTES_MAX as u64).read_to_end(&mut line);
    // A reset behind a whole line says that the server has not read the rest of the request, no more.
    if line.ends_with(b"\n") { Ok(line) } else { read.and(asked).map(|()| line) }
}

/// A connection to the server that is meant.
fn find(named: Option<&Path>) -> Result<(PathBuf, UnixStream), Error> {
    if let Some(path) = named {
        let stream = socket::connect(path).map_err(|error| Error::Failed(unreachable(path, &error)))?;
        return Ok((path.to_owned(), stream));
    }
    let folders = runtime::folders_to_search();
    let mut living = Vec::new();
    let mut refused = Vec::new();
    for path in folders.iter().flat_map(|folder| socket::in_folder(folder)) {
        match socket::connect(&path) {
            Ok(stream) => living.push((path, stream)),
            // Left by a server that was killed; the next one takes the name over.
            Err(error) if is_dead(&error) => {}
            Err(error) => refused.push(unreachable(&path, &error)),
        }
    }
    if living.len() > 1 {
        let paths: Vec<_> = living.iter().map(|(path, _)| path.display().to_string()).collect();
        return Err(Error::Usage(format!(
            "several servers answer: name one with --control, {}",
            paths.join(" or ")
        )));
    }
    match (living.pop(), refused.into_iter().next()) {
        (Some(found), _) => Ok(found),
        (None, Some(sentence)) => Err(Error::Failed(sentence)),
        (None, None) => {
            let folders: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
            Err(Error::Failed(format!(
                "no server answers in {}: start \"goldrush serve\", or name its runtime folder (--runtime-dir) or its \
                 socket (--control)",
                folders.join(" or ")
            )))
        }
    }
}

fn is_dead(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}

fn unreachable(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            format!("no server answers at {path}: the one it belonged to has ended")
        }
        io::ErrorKind::PermissionDenied => {
            format!("the server at {path} is another user's: ask as the user it runs as, or as root")
        }
        _ => format!("no server answers at {path}: {error}"),
    }
}
