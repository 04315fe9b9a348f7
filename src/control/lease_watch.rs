//! Lease files change all the time: a thread reads them again at once, and tells every core which address has which MAC.
//!
//! Knows when a file may have changed. Does not know what is in it (`leases`), nor who asks.
//!
//! A machine logs in a moment after its DHCP server has written its lease, so the thread is woken by the file system; it
//! also looks once a second, for file systems that wake nobody.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify;

use super::config;
use super::file::folder_of;
use crate::shard::{MacTable, Message, Peer, Sent};
use crate::uring::UringIo;

const LOOK_AGAIN: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// A server that rewrites its file in place has done so by then.
const WRITTEN_BY: Duration = Duration::from_millis(5);

/// What the thread is to watch from now on.
struct Watched {
    files: Vec<PathBuf>,
    hosts: MacTable,
    done: Sender<()>,
}

#[derive(Debug)]
pub(super) struct LeaseWatch {
    orders: Sender<Watched>,
    wake: Arc<OwnedFd>,
}

/// What tells a changed file from the same one.
type Signature = Vec<Option<(u64, u64, u64, i64, i64)>>;

fn signature(files: &[PathBuf]) -> Signature {
    let one = |path: &PathBuf| {
        let it = fs::metadata(path).ok()?;
        Some((it.dev(), it.ino(), it.len(), it.mtime(), it.mtime_nsec()))
    };
    files.iter().map(one).collect()
}

impl LeaseWatch {
    /// Starts the thread; it ends with the last order.
    pub(super) fn start(
        shards: Vec<Peer<UringIo>>,
        files: Vec<PathBuf>,
        hosts: MacTable,
    ) -> io::Result<Self> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (orders, received) = channel();
        let watch = Self { orders, wake: Arc::clone(&wake) };
        std::thread::Builder::new()
            .name("leases".to_owned())
            .spawn(move || run(&shards, &received, &wake))?;
        watch.configure(files, hosts);
        Ok(watch)
    }

    /// Other files from now on. When this returns, the shards are told what these say.
    pub(super) fn configure(&self, files: Vec<PathBuf>, hosts: MacTable) {
        let (done, is_done) = channel();
        if self.orders.send(Watched { files, hosts, done }).is_ok() {
            let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
            let _ = is_done.recv();
        }
    }
}

impl Drop for LeaseWatch {
    fn drop(&mut self) {
        // The thread looks whether there is anybody who could give an order.
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
    }
}

fn run(shards: &[Peer<UringIo>], orders: &Receiver<Watched>, wake: &OwnedFd) {
    let mut now = Watched { files: Vec::new(), hosts: MacTable::default(), done: channel().0 };
    let (mut seen, mut notices) = (Signature::new(), None);
    loop {
        match orders.try_recv() {
            Ok(order) => {
                notices = watch_folders(&order.files);
                now = order;
                // Before they are read: what changes meanwhile is read once more.
                seen = signature(&now.files);
                tell(shards, &now);
                let _ = now.done.send(());
                continue;
            }
            Err(std::sync::mpsc::TryRecvError::Disconnected) => return,
            Err(std::sync::mpsc::TryRecvError::Empty) => {}
        }
        wait(wake, notices.as_ref(), !now.files.is_empty());
        let found = signature(&now.files);
        if found != seen {
            std::thread::sleep(WRITTEN_BY);
            seen = signature(&now.files);
            tell(shards, &now);
        }
    }
}

/// A file may be replaced by another of its name, so its folder is watched.
fn watch_folders(files: &[PathBuf]) -> Option<OwnedFd> {
    if files.is_empty() {
        return None;
    }
    let notices = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).ok()?;
    let what = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CLOSE_WRITE | inotify::WatchFlags::MOVED_TO;
    for file in files {
        if let Err(error) = inotify::add_watch(&notices, folder_of(file), what) {
            tracing::warn!(leases = %file.display(), %error, "changes of these leases are noticed once a second only");
        }
    }
    Some(notices)
}

/// Until somebody has written, an order has come, or a second is over.
fn wait(wake: &OwnedFd, notices: Option<&OwnedFd>, files: bool) {
    let mut fds = vec![PollFd::new(wake, PollFlags::IN)];
    fds.extend(notices.map(|notices| PollFd::new(notices, PollFlags::IN)));
    let _ = poll(&mut fds, files.then_some(&LOOK_AGAIN));
    let mut bytes = [0; 4096];
    for fd in [Some(wake), notices].into_iter().flatten() {
        while rustix::io::read(fd.as_fd(), &mut bytes).is_ok_and(|read| read > 8) {}
    }
}

fn tell(shards: &[Peer<UringIo>], now: &Watched) {
    let macs = config::macs(&now.files, &now.hosts).unwrap_or_else(|(path, error)| {
        tracing::warn!(leases = %path.display(), %error, "these leases are not known until they can be read again");
        let others: Vec<_> = now.files.iter().filter(|file| **file != path).cloned().collect();
        config::macs(&others, &now.hosts).unwrap_or_else(|_| now.hosts.clone())
    });
    let macs = Arc::new(macs);
    for shard in shards {
        let mut message = Message::Macs(Arc::clone(&macs));
        while let Sent::Full(back) = shard.send(message) {
            std::thread::sleep(Duration::from_millis(1));
            message = back;
        }
    }
}
