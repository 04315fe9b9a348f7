//! `goldrush image check --repair`: tells a plan, keeps what it will change, changes it.
//!
//! Knows the order: plan, consent, backup, changes, each stable before the next. Does not know what is damaged or what
//! the answer is (`vhd::repair`, `vhdx::repair`).

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::block_io::run_batch;
use super::cli::CheckArgs;
use super::edit_file::{is_zero, run_stages};
use super::error::Error;
use super::file::{Access, FileError, Locking, OpenedFile};
use super::leftover;
use super::open_image::{Format, OpenError, Opener, detect, places};
use super::staged::sync_folder_of;
use crate::plan::{FileCopy as Copy, Stage};
use crate::plan::{MetaBatch, MetaOp};
use crate::units::ByteOffset;
use crate::vhd::repair::RepairPlan;
use crate::vhd::{self, ParentInfo};
use crate::vhdx;

/// The most bytes of one zeroed range that a backup holds.
const ZEROS_KEPT_MAX: u64 = 64 << 20;
/// The first member of a backup, so that nothing else is taken for one.
const BACKUP_FORMAT: &str = "goldrush repair backup 1";

#[derive(Debug, Serialize)]
pub(super) struct RepairReport {
    steps: Vec<StepReport>,
    unrepairable: Vec<String>,
    loses_data: bool,
    done: bool,
    backup: Option<String>,
    #[serde(skip)]
    image: String,
    #[serde(skip)]
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct StepReport {
    structure: String,
    offset: u64,
    found: String,
    action: String,
    loss: Option<String>,
}

/// What a repair changed: enough to undo it, and to see whether it may still be undone.
#[derive(Debug, Serialize, Deserialize)]
struct Backup {
    format: String,
    image: String,
    len_before: u64,
    len_after: u64,
    ranges: Vec<Range>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Range {
    offset: u64,
    /// Hexadecimal, like `after`.
    before: String,
    after: String,
}

/// A plan, whatever the format: what to tell, and what to do in which order.
struct Work {
    steps: Vec<StepReport>,
    unrepairable: Vec<String>,
    /// Into the space behind everything, before all else.
    copies: Vec<Copy>,
    batches: Vec<MetaBatch>,
}

/// Plans, and does what was consented to.
pub(super) fn run(args: &CheckArgs) -> Result<RepairReport, Error> {
    let path = &args.path;
    let access = if args.dry_run { Access::ReadOnly } else { Access::Writable };
    let mut file = OpenedFile::open_as_it_is(path, access, Locking::Hold).map_err(OpenError::from)?;
    // After a failed flush nothing is replayed: a repair and a clean check come first.
    if !leftover::is_failed(&file) {
        leftover::settle(&mut file).map_err(|error| OpenError::from(FileError::from(error)))?;
    }
    let read = |offset, bytes: &mut [u8]| {
        let len = bytes.len();
        let failed = |source| OpenError::Read { path: path.clone(), offset, len, source };
        file.read_at(offset, bytes).map_err(failed)
    };
    let work = match detect(&file)? {
        Format::Raw => of_vhd(RepairPlan::default()),
        Format::Vhd => of_vhd(vhd::repair::plan(file.len(), read, |parent| is_there(path, parent))?),
        Format::Vhdx => of_vhdx(vhdx::repair::plan(file.len(), read)?),
    };
    let mut report = report(path, work.steps, work.unrepairable, args.dry_run);
    if report.steps.is_empty() || args.dry_run || (report.loses_data && !args.accept_loss) {
        return Ok(report);
    }
    // Told before it is done: a repair that is cut off can be understood from the log.
    for StepReport { structure, offset, found, action, .. } in &report.steps {
        tracing::info!(image = %path.display(), offset, "{structure}: {found}; {action}");
    }
    report.backup = Some(keep(&file, &work.batches)?.display().to_string());
    apply(file.file(), &work.copies, &work.batches).map_err(Error::io(path, "repairing"))?;
    report.done = true;
    Ok(report)
}

fn of_vhd(plan: RepairPlan) -> Work {
    let steps = plan.steps.into_iter().map(|step| StepReport {
        structure: step.structure.to_string(),
        offset: step.offset,
        found: step.found,
        action: step.action,
        loss: step.loss,
    });
    let batches = plan.stages.iter().map(|stage| {
        let mut batch = MetaBatch::default();
        for write in stage {
            batch.push_write(ByteOffset(write.offset), &write.bytes);
        }
        batch.ops.push(MetaOp::Sync);
        batch
    });
    Work {
        steps: steps.collect(),
        unrepairable: plan.hopeless.into_iter().map(|finding| finding.sentence).collect(),
        batches: batches.collect(),
        copies: plan.copies,
    }
}

fn of_vhdx(plan: vhdx::repair::RepairPlan) -> Work {
    let steps = plan.steps.into_iter().map(|step| StepReport {
        structure: step.structure.to_string(),
        offset: step.offset,
        found: step.found.to_owned(),
        action: step.action.to_owned(),
        loss: None,
    });
    Work {
        steps: steps.collect(),
        unrepairable: plan.hopeless.into_iter().map(|finding| finding.sentence).collect(),
        batches: plan.batches,
        copies: Vec::new(),
    }
}

fn report(path: &Path, steps: Vec<StepReport>, unrepairable: Vec<String>, dry_run: bool) -> RepairReport {
    RepairReport {
        loses_data: steps.iter().any(|step| step.loss.is_some()),
        steps,
        unrepairable,
        done: false,
        backup: None,
        image: path.display().to_string(),
        dry_run,
    }
}

/// True when the image these claims lead to has the id they tell.
fn is_there(child: &Path, parent: &ParentInfo) -> bool {
    places(child, &parent.candidates).iter().any(|place| {
        let opened = Opener::anywhere(Locking::Ignore).open_leaf(place, Access::ReadOnly);
        opened.is_ok_and(|layer| layer.image().is_some_and(|image| image.unique_id() == parent.unique_id))
    })
}

/// Keeps what the batches overwrite in a file of its own, stable before anything is changed.
fn keep(file: &OpenedFile, batches: &[MetaBatch]) -> Result<PathBuf, Error> {
    let mut ranges = Vec::new();
    let mut len_after = file.len();
    for batch in batches {
        for op in &batch.ops {
            let (offset, after) = match op {
                MetaOp::Write { offset, bytes } => (offset.0, batch.bytes[bytes.clone()].to_vec()),
                MetaOp::Zero { offset, len } => {
                    let end = offset.0.saturating_add(*len).min(file.len());
                    if is_zero(file, offset.0, end).map_err(Error::io(file.path(), "reading"))? {
                        continue;
                    }
                    (offset.0, vec![0; kept_zeros(file, offset.0, end)?])
                }
                MetaOp::SetLen { len } => {
                    len_after = len_after.max(*len);
                    continue;
                }
                MetaOp::Sync => continue,
            };
            len_after = len_after.max(offset + after.len() as u64);
            let there = file.len().saturating_sub(offset).min(after.len() as u64) as usize;
            let mut before = vec![0; there];
            file.read_at(offset, &mut before).map_err(Error::io(file.path(), "reading"))?;
            ranges.push(Range { offset, before: hex(&before), after: hex(&after) });
        }
    }
    let backup = Backup {
        format: BACKUP_FORMAT.to_owned(),
        image: file.path().display().to_string(),
        len_before: file.len(),
        len_after,
        ranges,
    };
    let (path, mut out) = new_backup(file.path())?;
    let failed = Error::io(&path, "keeping what the repair changes");
    let bytes = serde_json::to_vec(&backup).map_err(io::Error::from);
    bytes.and_then(|bytes| out.write_all(&bytes)).and_then(|()| out.sync_all()).map_err(failed)?;
    sync_folder_of(&path)?;
    Ok(path)
}

/// How many bytes a log makes zero in one place; not more than a backup should hold.
fn kept_zeros(file: &OpenedFile, start: u64, end: u64) -> Result<usize, Error> {
    let len = end.saturating_sub(start);
    if len > ZEROS_KEPT_MAX {
        return Err(Error::Failed(format!(
            "{}: its log makes {len} bytes at byte {start} zero, more than a repair keeps: open it once with the tool \
             that made it",
            file.path().display()
        )));
    }
    Ok(len as usize)
}

/// `NAME.repair-backup-1`, or the first number that is free.
fn new_backup(image: &Path) -> Result<(PathBuf, File), Error> {
    for number in 1..u32::MAX {
        let mut name = image.as_os_str().to_owned();
        name.push(format!(".repair-backup-{number}"));
        let path = PathBuf::from(name);
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io(&path, "keeping what the repair changes")(error)),
        }
    }
    Err(Error::Failed(format!("{}: too many repair backups lie beside it: remove some", image.display())))
}

/// Copies first, then each batch; every one stable before the next begins.
fn apply(file: &File, copies: &[Copy], batches: &[MetaBatch]) -> io::Result<()> {
    let copies = Stage { copies: copies.to_vec(), ..Stage::default() };
    run_stages(file, &[copies], &|_| {})?;
    batches.iter().try_for_each(|batch| run_batch(file, batch))
}

/// Undoes a repair, from the backup it kept. Refused when the image has changed since.
pub(super) fn restore(path: &Path, backup_path: &Path) -> Result<(), Error> {
    let bytes = std::fs::read(backup_path).map_err(Error::io(backup_path, "reading"))?;
    let backup =
        serde_json::from_slice::<Backup>(&bytes).ok().filter(|backup| backup.format == BACKUP_FORMAT);
    let ranges =
        backup.as_ref().and_then(|backup| backup.ranges.iter().map(decoded).collect::<Option<Vec<_>>>());
    let (Some(backup), Some(ranges)) = (backup, ranges) else {
        return Err(Error::Failed(format!(
            "{} is not a whole repair backup: the repair that began it changed nothing; remove it",
            backup_path.display()
        )));
    };
    let file = OpenedFile::open(path, Access::Writable, Locking::Hold).map_err(OpenError::from)?;
    let changed = |offset| {
        Error::Failed(format!(
            "{}: byte {offset} is neither as before nor as after the repair that {} belongs to: restoring would \
             damage what was written since",
            path.display(),
            backup_path.display()
        ))
    };
    if file.len() != backup.len_before && file.len() != backup.len_after {
        return Err(changed(file.len()));
    }
    for (offset, before, after) in &ranges {
        let there = |bytes: &[u8]| {
            let mut now = vec![0; bytes.len()];
            file.read_at(*offset, &mut now).is_ok_and(|()| now == bytes)
        };
        if !there(before) && !there(after) {
            return Err(changed(*offset));
        }
    }
    let failed = Error::io(path, "restoring");
    let restored =
        ranges.iter().rev().try_for_each(|(offset, before, _)| file.file().write_all_at(before, *offset));
    restored
        .and_then(|()| file.file().sync_all())
        .and_then(|()| file.file().set_len(backup.len_before))
        .and_then(|()| file.file().sync_all())
        .map_err(failed)
}

fn decoded(range: &Range) -> Option<(u64, Vec<u8>, Vec<u8>)> {
    Some((range.offset, unhex(&range.before)?, unhex(&range.after)?))
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| char::from(DIGITS[usize::from(value & 15)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some((digit(pair[0])? << 4 | digit(*pair.get(1)?)?) as u8)).collect()
}

impl RepairReport {
    /// The plan, and what became of it.
    pub(super) fn write(&self, out: &mut dyn io::Write) -> io::Result<()> {
        let image = &self.image;
        for sentence in &self.unrepairable {
            writeln!(out, "{image}: no repair: {sentence}")?;
        }
        for (index, step) in self.steps.iter().enumerate() {
            let StepReport { structure, offset, found, action, loss } = step;
            writeln!(out, "{image}: step {}: {structure} (byte {offset}) {found}; {action}", index + 1)?;
            loss.iter()
                .try_for_each(|loss| writeln!(out, "{image}: step {} loses data: {loss}", index + 1))?;
        }
        match &self.backup {
            Some(backup) if self.done => writeln!(
                out,
                "{image}: repaired; goldrush image check {image} --restore-backup {backup} undoes it"
            ),
            _ if self.steps.is_empty() && self.unrepairable.is_empty() => {
                writeln!(out, "{image}: nothing to repair")
            }
            _ if self.dry_run => writeln!(out, "{image}: nothing was changed"),
            _ if self.loses_data => writeln!(
                out,
                "{image}: nothing was changed: copy the file if you can, then say --accept-loss to go on"
            ),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_survives() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(unhex(&hex(&bytes)), Some(bytes));
        assert_eq!((unhex("0"), unhex("0g"), unhex("")), (None, None, Some(Vec::new())));
    }
}
