//! What LUNs remember across restarts, one small file each.
//!
//! Knows the folder, the names of its files and how a file is replaced without a moment in which it is neither the
//! old nor the new one. Does not know what is remembered (`scsi::KeptUnit`).

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::lingering::outlast;
use crate::io::Io;
use crate::scsi::{KeptUnit, Lun};
use crate::shard::{KeepRequest, Keeper, Message, Peer, Sent};

/// Requests that may wait for the disk: a unit's initiators send few, and wait for each.
const REQUESTS_MAX: usize = 1024;
/// The longest file: an atomic write in hexadecimal, and all registrants a unit can have, as JSON.
const FILE_BYTES_MAX: u64 = 4 << 20;
const VERSION: u32 = 1;

/// One file. It names its LUN, so that a renamed file is noticed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StateFile {
    version: u32,
    target: String,
    lun: u16,
    unit: KeptUnit,
}

/// The folder, locked: two servers would overwrite each other's files.
#[derive(Clone, Debug)]
pub(super) struct StateFolder {
    path: PathBuf,
    _lock: Arc<File>,
}

impl StateFolder {
    /// Makes the folder if need be.
    ///
    /// # Errors
    /// It cannot be made or locked.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        fs::create_dir_all(path).map_err(Error::io(path, "making the state folder"))?;
        let lock = path.join(".lock");
        let file = File::options().create(true).truncate(false).write(true).open(&lock);
        let file = file.map_err(Error::io(&lock, "opening the lock of the state folder"))?;
        let locked = || flock(&file, FlockOperation::NonBlockingLockExclusive).ok();
        outlast(&file, &path.display(), locked).ok_or_else(|| {
            Error::Failed(format!(
                "the state folder {} is used by another server: give each its own (--state-dir)",
                path.display()
            ))
        })?;
        Ok(Self { path: path.to_owned(), _lock: Arc::new(file) })
    }

    fn file(&self, target: &str, lun: u16) -> PathBuf {
        self.path.join(format!("{target},{lun}.json"))
    }

    /// What a LUN remembers; nothing when there is no file.
    ///
    /// # Errors
    /// The file cannot be read or believed: reservations that protect data are not dropped in silence.
    pub(super) fn load(&self, target: &str, lun: u16) -> Result<KeptUnit, Error> {
        let path = self.file(target, lun);
        let bytes = match read_bounded(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(KeptUnit::default()),
            Err(error) => return Err(Error::io(&path, "reading the state of a LUN")(error)),
        };
        let unlikely = |what: String| {
            Error::Failed(format!(
                "{}: {what}; put the right file back, or delete it to give up the LUN's reservations and saved modes",
                path.display()
            ))
        };
        let state: StateFile = serde_json::from_slice(&bytes).map_err(|error| unlikely(error.to_string()))?;
        if state.version != VERSION {
            return Err(unlikely(format!("version {} is not known here ({VERSION} is)", state.version)));
        }
        if state.target != target || state.lun != lun {
            return Err(unlikely(format!("it is the state of LUN {} of {}", state.lun, state.target)));
        }
        Ok(state.unit)
    }

    /// Replaces what a LUN remembers; stable when this returns.
    fn store(&self, target: &str, lun: u16, unit: KeptUnit) -> io::Result<()> {
        let path = self.file(target, lun);
        if unit.is_empty() {
            match fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                result => result?,
            }
            return File::open(&self.path)?.sync_all();
        }
        let state = StateFile { version: VERSION, target: target.to_owned(), lun, unit };
        let part = path.with_extension("json.part");
        let mut file = File::create(&part)?;
        file.write_all(&serde_json::to_vec_pretty(&state)?)?;
        file.sync_all()?;
        fs::rename(&part, &path)?;
        File::open(&self.path)?.sync_all()
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A shard's end of the queue to the thread that writes.
#[derive(Clone, Debug)]
pub(super) struct QueueKeeper(Sender<KeepRequest>);

impl Keeper for QueueKeeper {
    fn keep(&mut self, request: KeepRequest) -> bool {
        self.0.try_send(request).is_ok()
    }
}

/// The queue, before and after there are shards to answer.
pub(super) fn queue() -> (QueueKeeper, Receiver<KeepRequest>) {
    let (sender, receiver) = bounded(REQUESTS_MAX);
    (QueueKeeper(sender), receiver)
}

/// Starts the thread that writes. It ends when the last `QueueKeeper` is gone.
pub(super) fn start<I: Io>(
    folder: StateFolder,
    requests: Receiver<KeepRequest>,
    shards: Vec<Peer<I>>,
) -> io::Result<JoinHandle<()>>
where
    Peer<I>: Send + 'static,
{
    std::thread::Builder::new().name("keeper".to_owned()).spawn(move || {
        for KeepRequest { shard, ticket, target, lun, kept } in requests {
            let stored = store_logged(&folder, &target, lun, kept);
            let Some(peer) = shards.get(usize::from(shard.0)) else { continue };
            let mut message = Message::Kept { ticket, stable: stored };
            while let Sent::Full(back) = peer.send(message) {
                std::thread::sleep(Duration::from_millis(1));
                message = back;
            }
        }
    })
}

fn store_logged(folder: &StateFolder, target: &str, lun: Lun, kept: KeptUnit) -> bool {
    let result = folder.store(target, lun.number(), kept);
    if let Err(error) = &result {
        tracing::error!(target, lun = lun.number(), folder = %folder.path.display(), %error, "the state of a LUN could not be written");
    }
    result.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: &str = "iqn.2026-11.io.goldrush:node-001";

    fn kept() -> KeptUnit {
        let text =
            r#"{"reservations":{"registrants":[{"initiator":"iqn.a:b","isid":[0,2,61,0,0,1],"key":7}]}}"#;
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_state_is_read_back_until_it_is_empty() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(&folder.path().join("new")).unwrap();
        assert_eq!(state.load(TARGET, 0).unwrap(), KeptUnit::default());
        state.store(TARGET, 0, kept()).unwrap();
        assert_eq!(state.load(TARGET, 0).unwrap(), kept());
        assert_eq!(state.load(TARGET, 1).unwrap(), KeptUnit::default());
        state.store(TARGET, 0, KeptUnit::default()).unwrap();
        state.store(TARGET, 0, KeptUnit::default()).unwrap();
        assert!(!state.file(TARGET, 0).exists());
    }

    #[test]
    fn a_damaged_or_misplaced_state_is_refused_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        state.store(TARGET, 0, kept()).unwrap();
        fs::copy(state.file(TARGET, 0), state.file(TARGET, 3)).unwrap();
        let error = state.load(TARGET, 3).unwrap_err().to_string();
        assert!(error.contains("it is the state of LUN 0") && error.contains("delete it"), "{error}");
        for damage in ["", "{", r#"{"version":2,"target":"t","lun":0,"unit":{}}"#] {
            fs::write(state.file(TARGET, 0), damage).unwrap();
            let error = state.load(TARGET, 0).unwrap_err().to_string();
            assert!(error.contains("node-001,0.json") && error.contains("delete it"), "{error}");
        }
    }

    #[test]
    fn two_servers_do_not_share_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let _first = StateFolder::open(folder.path()).unwrap();
        let error = StateFolder::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("--state-dir"), "{error}");
    }

    #[test]
    fn a_full_queue_refuses_instead_of_waiting() {
        let (mut keeper, requests) = queue();
        let request = || KeepRequest {
            shard: crate::shard::ShardId(0),
            ticket: 0,
            target: TARGET.to_owned(),
            lun: Lun::ZERO,
            kept: kept(),
        };
        assert!((0..REQUESTS_MAX).all(|_| keeper.keep(request())));
        assert!(!keeper.keep(request()));
        drop(requests);
    }
}
