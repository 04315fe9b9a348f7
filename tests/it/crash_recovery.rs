//! What whoever opens a leaf after a crash does first: a VHDX has its log replayed, then records are taken over.
//!
//! Knows that this may be cut short anywhere, too. Does not know what a crash promises (`crash_world`).

use crate::blocking::{Store, is_vhdx, replay_batches, write_ids};
use crate::crash_world::Mistake;
use crate::sim_disk::{Effect, Rng, SimDisk};
use crate::sim_journal::{Memory, records};
use goldrush::plan::{MetaBatch, MetaOp, OpenMode, PendingRecord};
use goldrush::vhd;
use goldrush::vhdx::{self, WriteIds};

/// How a recovery ended.
pub enum Recovered {
    Done(SimDisk),
    /// The next process was killed as well; another one may try.
    Killed(SimDisk),
    /// The power went meanwhile.
    PowerCut(SimDisk),
}

/// True when no record waits to be taken over.
pub fn unrecorded(memory: Option<&Memory>, boot: u8, mistake: Mistake) -> Result<bool, String> {
    memory.map_or(Ok(true), |memory| records(memory, boot, mistake).map(|records| records.is_empty()))
}

/// What whoever opens the image for writing does first. It may not live to the end of it.
pub fn recover(
    disk: &SimDisk,
    memory: Option<&Memory>,
    boot: u8,
    mistake: Mistake,
    rng: &mut Rng,
) -> Result<Recovered, String> {
    let mut disk = disk.clone();
    if let Some(cut) = replay_log(&mut disk, mistake, rng)? {
        return Ok(cut);
    }
    let records = memory.map_or(Ok(Vec::new()), |memory| records(memory, boot, mistake))?;
    if !records.is_empty()
        && let Some(cut) = replay(&mut disk, &records, mistake, rng)?
    {
        return Ok(cut);
    }
    // Only now are the records retired. What they became stands in the log of a VHDX.
    Ok(replay_log(&mut disk, mistake, rng)?.unwrap_or(Recovered::Done(disk)))
}

fn replay_log(disk: &mut SimDisk, mistake: Mistake, rng: &mut Rng) -> Result<Option<Recovered>, String> {
    let mut batches = replay_batches(&disk.volatile)?;
    if mistake == Mistake::NoReplay {
        batches.iter_mut().for_each(drop_pages);
    }
    Ok(batches.iter().find_map(|batch| run(disk, batch, mistake, rng)))
}

fn replay(
    disk: &mut SimDisk,
    records: &[PendingRecord],
    mistake: Mistake,
    rng: &mut Rng,
) -> Result<Option<Recovered>, String> {
    let file = disk.volatile.clone();
    let read = |offset, bytes: &mut [u8]| file.read_at(offset, bytes);
    let mut batch = MetaBatch::default();
    if is_vhdx(&file) {
        let image = vhdx::open_with(file.len, OpenMode::Writable, read);
        let mut image = image.map_err(|error| error.to_string())?;
        // The data keeps its name: the next one who tries must know it.
        image.begin_writing(WriteIds { data_write: image.data_write_guid(), ..write_ids() });
        image.replay(records, read).map_err(|error| error.to_string())?;
        while image.next_meta_batch(&mut batch) {
            if let Some(cut) = run(disk, &batch, mistake, rng) {
                return Ok(Some(cut));
            }
            image.meta_batch_done(Ok(()));
        }
        return Ok(None);
    }
    let mut image = vhd::open_with(file.len, OpenMode::Writable, read).map_err(|error| error.to_string())?;
    image.replay(records, read).map_err(|error| error.to_string())?;
    while image.next_meta_batch(&mut batch) {
        if let Some(cut) = run(disk, &batch, mistake, rng) {
            return Ok(Some(cut));
        }
        image.meta_batch_done(Ok(()));
    }
    Ok(None)
}

/// Runs a batch of a recovery, or a part of it: then how it was cut short.
fn run(disk: &mut SimDisk, batch: &MetaBatch, mistake: Mistake, rng: &mut Rng) -> Option<Recovered> {
    let mut in_flight: Vec<Effect> = Vec::new();
    for op in &batch.ops {
        match op {
            MetaOp::Sync if mistake == Mistake::NoReplaySync => {}
            MetaOp::Sync => disk.sync_ends(disk.sync_begins()),
            op => in_flight.extend(effect_of(op, batch)),
        }
    }
    match rng.below(16) {
        0 => return Some(Recovered::Killed(disk.killed(&in_flight, rng))),
        1 => return Some(Recovered::PowerCut(disk.power_cut(&in_flight, rng))),
        _ => in_flight.into_iter().for_each(|effect| disk.complete(effect)),
    }
    None
}

/// What an operation does to the file; `None` for a flush.
pub fn effect_of(op: &MetaOp, batch: &MetaBatch) -> Option<Effect> {
    match op {
        MetaOp::Write { offset, bytes } => {
            Some(Effect::Write { offset: offset.0, bytes: batch.bytes[bytes.clone()].into() })
        }
        MetaOp::Zero { offset, len } => Some(Effect::Zero { offset: offset.0, len: *len }),
        MetaOp::SetLen { len } => Some(Effect::SetLen(*len)),
        MetaOp::Sync => None,
    }
}

/// All writes but those of headers.
fn drop_pages(batch: &mut MetaBatch) {
    batch.ops.retain(|op| !matches!(op, MetaOp::Write { offset, .. } if offset.0 >= 1 << 20));
}
