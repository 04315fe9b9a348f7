//! The file of a control socket: taken by one server, left by none.
//!
//! Knows names, modes and how a dead server's socket is told from a living one's. Does not know what is said over it.
//!
//! A server holds a lock beside its socket, `.NAME.lock`, as long as it lives: who gets the lock may replace what a dead
//! server left under the name. The first server of a runtime folder takes `control.sock`; the next ones, while it
//! lives, `control-PID.sock`.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::super::error::Error;
use super::super::file::folder_of;
use super::super::lingering::outlast;

/// What the names of sockets in a runtime folder begin and end with.
const NAME_START: &str = "control";
const NAME_END: &str = ".sock";
/// Clients that may wait to be accepted.
const BACKLOG: i32 = 64;

/// A socket that listens, its lock, and its file, which goes with it.
#[derive(Debug)]
pub(in crate::control) struct ControlSocket {
    path: PathBuf,
    lock_path: PathBuf,
    listener: UnixListener,
    _lock: File,
}

/// Why a name cannot be had.
#[derive(Debug)]
enum Refused {
    /// A living server has it.
    InUse,
    Io(&'static str, io::Error),
}

impl ControlSocket {
    /// Listens at the path an administrator has named.
    ///
    /// # Errors
    /// Another server has it, something else lies there, or it cannot be made.
    pub(in crate::control) fn named(path: &Path) -> Result<Self, Error> {
        Self::take(path).map_err(|refused| match refused {
            Refused::InUse => Error::Failed(format!(
                "the control socket {} is another server's: give each its own (--control)",
                path.display()
            )),
            Refused::Io(doing, source) => Error::io(path, doing)(source),
        })
    }

    /// Listens in a runtime folder.
    ///
    /// # Errors
    /// It cannot be made.
    pub(in crate::control) fn in_folder(folder: &Path) -> Result<Self, Error> {
        let common = folder.join(format!("{NAME_START}{NAME_END}"));
        match Self::take(&common) {
            Ok(socket) => Ok(socket),
            Err(Refused::InUse) => {
                Self::named(&folder.join(format!("{NAME_START}-{}{NAME_END}", std::process::id())))
            }
            Err(Refused::Io(doing, source)) => Err(Error::io(&common, doing)(source)),
        }
    }

    fn take(path: &Path) -> Result<Self, Refused> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let lock_path = path.with_file_name(format!(".{name}.lock"));
        let lock = locked(&lock_path)?;
        match fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => {
                fs::remove_file(path)
                    .map_err(|error| Refused::Io("removing a dead server's socket", error))?;
            }
            Ok(_) => {
                let error = io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket");
                return Err(Refused::Io("making the control socket", error));
            }
            Err(_) => {}
        }
        let listener = listen(path).map_err(|error| Refused::Io("making the control socket", error))?;
        Ok(Self { path: path.to_owned(), lock_path, listener, _lock: lock })
    }

    pub(in crate::control) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for ControlSocket {
    /// While the lock is held, both are ours.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(&self.lock_path);
    }
}

/// The lock file, made if need be and locked. One that was removed before it was locked is nobody's: again.
fn locked(path: &Path) -> Result<File, Refused> {
    let failed = |error| Refused::Io("making the lock of the control socket", error);
    loop {
        let mut options = File::options();
        options
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
        let file = options.open(path).map_err(failed)?;
        let locked = || match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => None,
            result => Some(result),
        };
        let locked = outlast(&file, &path.display(), locked).ok_or(Refused::InUse)?;
        locked.map_err(|error| failed(error.into()))?;
        let held = file.metadata().map_err(failed)?;
        if fs::symlink_metadata(path)
            .is_ok_and(|found| found.ino() == held.ino() && found.dev() == held.dev())
        {
            return Ok(file);
        }
    }
}

/// A listening socket that nobody but its owner could open at any moment: the mode is set before it has a name.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(0o600))?;
    with_address(path, |address| rustix::net::bind(&socket, address))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

/// Connects to a server's socket.
pub(super) fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    with_address(path, |address| rustix::net::connect(&socket, address))?;
    Ok(UnixStream::from(socket))
}

/// The kernel takes 107 bytes of path: a longer one is named through its folder.
fn with_address(path: &Path, act: impl Fn(&SocketAddrUnix) -> rustix::io::Result<()>) -> io::Result<()> {
    if let Ok(address) = SocketAddrUnix::new(path) {
        return Ok(act(&address)?);
    }
    let folder = File::options()
        .read(true)
        .custom_flags((OFlags::PATH | OFlags::DIRECTORY).bits().cast_signed())
        .open(folder_of(path))?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
    let short = short.join(path.file_name().unwrap_or_default());
    Ok(act(&SocketAddrUnix::new(&short)?)?)
}

/// The control sockets of a runtime folder, of living servers and of dead ones, in order of their names.
pub(in crate::control) fn in_folder(folder: &Path) -> Vec<PathBuf> {
    let is_socket = |name: &str| name.starts_with(NAME_START) && name.ends_with(NAME_END);
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_socket));
    let mut paths: Vec<PathBuf> = named.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owner_may_open_it_and_it_goes_with_its_server() {
        let folder = tempfile::tempdir().unwrap();
        let socket = ControlSocket::in_folder(folder.path()).unwrap();
        let path = folder.path().join("control.sock");
        assert_eq!(socket.path(), path);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        connect(&path).unwrap();
        drop(socket);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_second_server_takes_another_name_and_a_dead_ones_name_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let first = ControlSocket::in_folder(folder.path()).unwrap();
        let second = ControlSocket::in_folder(folder.path()).unwrap();
        assert_ne!(first.path(), second.path());
        assert_eq!(in_folder(folder.path()).len(), 2);
        assert!(ControlSocket::named(first.path()).unwrap_err().to_string().contains("--control"));
        drop(first);
        // As a kill leaves it: the name is there, nobody listens.
        let path = folder.path().join("control.sock");
        drop(listen(&path).unwrap());
        assert!(connect(&path).is_err());
        let third = ControlSocket::in_folder(folder.path()).unwrap();
        assert_eq!(third.path(), path);
        connect(&path).unwrap();
    }

    #[test]
    fn a_file_that_is_no_socket_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes");
        fs::write(&path, "mine").unwrap();
        assert!(ControlSocket::named(&path).unwrap_err().to_string().contains("no socket"));
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }

    #[test]
    fn a_long_path_is_no_hindrance() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("x".repeat(100)).join("y".repeat(100));
        fs::create_dir_all(&deep).unwrap();
        let socket = ControlSocket::in_folder(&deep).unwrap();
        connect(socket.path()).unwrap();
    }
}
