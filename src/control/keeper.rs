//! What LUNs remember across restarts, one small file each, and a journal for those that write atomically.
//!
//! Knows the folder, the names of its files and how a file is replaced without a moment in which it is neither the
//! old nor the new one. Does not know what is remembered (`scsi::KeptUnit`), nor the layout of a journal
//! (`atomic_journal`).
//!
//! An atomic write comes and goes with the rest of the memory, but is kept apart: the small file is written only when
//! the rest has changed. That an atomic write is over is first written and then, when there is nothing else to do, made
//! stable: `Message::Kept` tells of each.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::atomic_journal::{self, AtomicJournal};
use super::error::Error;
use super::lingering::outlast;
use crate::io::Io;
use crate::scsi::{KeptAtomic, KeptUnit};
use crate::shard::{KeepRequest, Keeper, Message, Peer, Sent};

/// Requests that may wait for the disk: a unit's initiators send few, and wait for each.
const REQUESTS_MAX: usize = 1024;
/// LUNs whose journals are open; beyond it they are all closed.
const JOURNALS_MAX: usize = 64;
/// The longest file: an atomic write in hexadecimal, as former versions kept it, and all registrants a unit can have, as
/// JSON.
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

    fn journal(&self, target: &str, lun: u16) -> PathBuf {
        self.path.join(format!("{target},{lun}.atomic"))
    }

    /// What a LUN remembers; nothing when there is no file.
    ///
    /// # Errors
    /// The file cannot be read or believed: reservations that protect data are not dropped in silence.
    pub(super) fn load(&self, target: &str, lun: u16) -> Result<KeptUnit, Error> {
        let mut unit = self.load_file(target, lun)?;
        let path = self.journal(target, lun);
        let atomic = atomic_journal::load(&path);
        if let Some(atomic) =
            atomic.map_err(Error::io(&path, "reading the journal of atomic writes of a LUN"))?
        {
            unit.atomic = Some(atomic);
        }
        Ok(unit)
    }

    fn load_file(&self, target: &str, lun: u16) -> Result<KeptUnit, Error> {
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

/// One LUN, as it was kept last.
#[derive(Debug, Default)]
struct Held {
    /// What is in its small file; `None`: not known.
    rest: Option<KeptUnit>,
    journal: Option<AtomicJournal>,
    /// The atomic write that is written down.
    atomic: Option<KeptAtomic>,
}

/// Somebody who is told when a cleared journal is stable.
#[derive(Debug)]
struct Unsettled {
    shard: usize,
    ticket: u64,
    place: (String, u16),
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stored {
    /// What was asked for is stable; of a journal that was cleared before that says nothing.
    Stable,
    /// An atomic write is written down, and with it whatever was cleared before is stable.
    Written,
    /// An atomic write is written down no more; that is still to be made stable.
    Cleared,
}

/// What the thread knows of all LUNs that have kept something since it was started.
#[derive(Debug)]
struct Desk {
    folder: StateFolder,
    held: HashMap<(String, u16), Held>,
}

impl Desk {
    fn new(folder: StateFolder) -> Self {
        Self { folder, held: HashMap::new() }
    }

    /// Writes down what has changed.
    fn store(&mut self, target: &str, lun: u16, mut unit: KeptUnit) -> io::Result<Stored> {
        let atomic = unit.atomic.take();
        let place = (target.to_owned(), lun);
        let held = self.held.entry(place).or_insert_with(|| Held {
            rest: self.folder.load_file(target, lun).ok(),
            atomic: atomic_journal::load(&self.folder.journal(target, lun)).ok().flatten(),
            journal: None,
        });
        if held.rest.as_ref() != Some(&unit) {
            held.rest = None;
            self.folder.store(target, lun, unit.clone())?;
            held.rest = Some(unit);
        }
        if held.atomic == atomic {
            return Ok(Stored::Stable);
        }
        let journal = match held.journal.take() {
            Some(journal) => journal,
            None => AtomicJournal::open(&self.folder.journal(target, lun))?,
        };
        let journal = held.journal.insert(journal);
        match &atomic {
            Some(atomic) => journal.store(atomic)?,
            None => journal.clear()?,
        }
        held.atomic = atomic;
        Ok(if held.atomic.is_some() { Stored::Written } else { Stored::Cleared })
    }

    fn settle(&self, place: &(String, u16)) -> io::Result<()> {
        self.held.get(place).and_then(|held| held.journal.as_ref()).map_or(Ok(()), AtomicJournal::settle)
    }

    /// Files that wait for nothing are closed when there are many.
    fn close_some(&mut self) {
        if self.held.len() > JOURNALS_MAX {
            self.held.clear();
        }
    }
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
    std::thread::Builder::new()
        .name("keeper".to_owned())
        .spawn(move || keep_all(&mut Desk::new(folder), &requests, &shards))
}

fn keep_all<I: Io>(desk: &mut Desk, requests: &Receiver<KeepRequest>, shards: &[Peer<I>]) {
    let mut unsettled: Vec<Unsettled> = Vec::new();
    loop {
        let next = match unsettled.is_empty() {
            true => requests.recv().ok(),
            false => requests.try_recv().ok(),
        };
        let Some(KeepRequest { shard, ticket, target, lun, kept }) = next else {
            if unsettled.is_empty() {
                return;
            }
            settle(desk, &mut unsettled, shards);
            continue;
        };
        let (shard, place) = (usize::from(shard.0), (target, lun.number()));
        let stored = desk.store(&place.0, place.1, kept);
        if stored.as_ref().ok() == Some(&Stored::Written) {
            let same = |it: &mut Unsettled| it.place == place;
            for before in unsettled.extract_if(.., same) {
                tell(
                    shards,
                    before.shard,
                    Message::Kept { ticket: before.ticket, stable: true, settled: true },
                );
            }
        }
        let stored = logged(&desk.folder, &place, stored);
        let settled = stored != Some(Stored::Cleared);
        tell(shards, shard, Message::Kept { ticket, stable: stored.is_some(), settled });
        if !settled {
            unsettled.push(Unsettled { shard, ticket, place });
        } else if unsettled.is_empty() {
            desk.close_some();
        }
    }
}

/// There is nothing else to do: what was cleared becomes stable.
fn settle<I: Io>(desk: &Desk, unsettled: &mut Vec<Unsettled>, shards: &[Peer<I>]) {
    for Unsettled { shard, ticket, place } in unsettled.drain(..) {
        let stable = logged(&desk.folder, &place, desk.settle(&place)).is_some();
        tell(shards, shard, Message::Kept { ticket, stable, settled: true });
    }
}

fn tell<I: Io>(shards: &[Peer<I>], shard: usize, mut message: Message<I>) {
    let Some(peer) = shards.get(shard) else { return };
    while let Sent::Full(back) = peer.send(message) {
        std::thread::sleep(Duration::from_millis(1));
        message = back;
    }
}

fn logged<T>(folder: &StateFolder, (target, lun): &(String, u16), result: io::Result<T>) -> Option<T> {
    if let Err(error) = &result {
        tracing::error!(target, lun, folder = %folder.path.display(), %error, "the state of a LUN could not be written");
    }
    result.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::Lun;

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
    fn an_atomic_write_is_kept_beside_the_rest_and_leaves_it_alone() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let mut desk = Desk::new(state.clone());
        let with = |atomic: Option<&KeptAtomic>| KeptUnit { atomic: atomic.cloned(), ..kept() };
        let atomic = KeptAtomic::new(crate::units::Lba(9), &[7; 512]);
        assert_eq!(desk.store(TARGET, 0, with(None)).unwrap(), Stored::Stable);
        let made = state.file(TARGET, 0).metadata().unwrap().modified().unwrap();
        for _ in 0..3 {
            assert_eq!(desk.store(TARGET, 0, with(Some(&atomic))).unwrap(), Stored::Written);
            assert_eq!(state.load(TARGET, 0).unwrap(), with(Some(&atomic)));
            assert_eq!(desk.store(TARGET, 0, with(None)).unwrap(), Stored::Cleared);
            assert_eq!(state.load(TARGET, 0).unwrap(), kept());
            assert_eq!(
                desk.store(TARGET, 0, with(None)).unwrap(),
                Stored::Stable,
                "nothing is written, so nothing settled"
            );
        }
        assert_eq!(state.file(TARGET, 0).metadata().unwrap().modified().unwrap(), made, "not written again");
        // The next run knows of it from the file, and clears it.
        desk.store(TARGET, 0, with(Some(&atomic))).unwrap();
        let mut next = Desk::new(state.clone());
        assert_eq!(next.store(TARGET, 0, with(None)).unwrap(), Stored::Cleared);
        assert_eq!(state.load(TARGET, 0).unwrap(), kept());
    }

    #[test]
    fn an_atomic_write_in_the_file_of_a_former_version_is_completed_and_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let former = KeptUnit { atomic: Some(KeptAtomic::new(crate::units::Lba(9), &[7; 512])), ..kept() };
        state.store(TARGET, 0, former.clone()).unwrap();
        assert_eq!(state.load(TARGET, 0).unwrap(), former);
        assert_eq!(Desk::new(state.clone()).store(TARGET, 0, kept()).unwrap(), Stored::Stable);
        assert_eq!(state.load(TARGET, 0).unwrap(), kept());
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
