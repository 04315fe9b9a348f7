//! `goldrush image check --repair`: tells a plan, keeps what it will change, changes it.
//!
//! Knows the order: plan, consent, backup, changes, each stable before the next. Does not know what is damaged or what
//! the answer is (`vhd::repair`).

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::block_io::run_batch;
use super::cli::CheckArgs;
use super::error::Error;
use super::file::{Access, Locking, OpenedFile};
use super::open_image::{Format, OpenError, Opener, detect, places};
use super::staged::sync_folder_of;
use crate::plan::{MetaBatch, MetaOp};
use crate::units::ByteOffset;
use crate::vhd::ParentInfo;
use crate::vhd::repair::{RepairPlan, plan};

/// Bytes copied at once.
const PIECE_BYTES: u64 = 1 << 20;
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

/// Plans, and does what was consented to.
pub(super) fn run(args: &CheckArgs) -> Result<RepairReport, Error> {
    let path = &args.path;
    let access = if args.dry_run { Access::ReadOnly } else { Access::Writable };
    let file = OpenedFile::open(path, access, Locking::Hold).map_err(OpenError::from)?;
    let plan = match detect(&file)? {
        Format::Raw | Format::Vhdx => RepairPlan { len: file.len(), ..RepairPlan::default() },
        Format::Vhd => plan(
            file.len(),
            |offset, bytes| {
                let len = bytes.len();
                let failed = |source| OpenError::Read { path: path.clone(), offset, len, source };
                file.read_at(offset, bytes).map_err(failed)
            },
            |parent| is_there(path, parent),
        )?,
    };
    let mut report = report(path, &plan, args.dry_run);
    if plan.is_empty() || args.dry_run || (plan.loses_data() && !args.accept_loss) {
        return Ok(report);
    }
    // Told before it is done: a repair that is cut off can be understood from the log.
    for step in &plan.steps {
        tracing::info!(image = %path.display(), offset = step.offset, "{}: {}; {}", step.structure, step.found, step.action);
    }
    report.backup = Some(keep(&file, &plan)?.display().to_string());
    apply(file.file(), &plan).map_err(Error::io(path, "repairing"))?;
    report.done = true;
    Ok(report)
}

fn report(path: &Path, plan: &RepairPlan, dry_run: bool) -> RepairReport {
    let steps = plan.steps.iter().map(|step| StepReport {
        structure: step.structure.to_string(),
        offset: step.offset,
        found: step.found.clone(),
        action: step.action.clone(),
        loss: step.loss.clone(),
    });
    RepairReport {
        steps: steps.collect(),
        unrepairable: plan.hopeless.iter().map(|finding| finding.sentence.clone()).collect(),
        loses_data: plan.loses_data(),
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

/// Keeps what the plan overwrites in a file of its own, stable before anything is changed.
fn keep(file: &OpenedFile, plan: &RepairPlan) -> Result<PathBuf, Error> {
    let mut ranges = Vec::new();
    for write in plan.stages.iter().flatten() {
        let there = file.len().saturating_sub(write.offset).min(write.bytes.len() as u64) as usize;
        let mut before = vec![0; there];
        file.read_at(write.offset, &mut before).map_err(Error::io(file.path(), "reading"))?;
        ranges.push(Range { offset: write.offset, before: hex(&before), after: hex(&write.bytes) });
    }
    let backup = Backup {
        format: BACKUP_FORMAT.to_owned(),
        image: file.path().display().to_string(),
        len_before: file.len(),
        len_after: plan.len.max(file.len()),
        ranges,
    };
    let (path, mut out) = new_backup(file.path())?;
    let failed = Error::io(&path, "keeping what the repair changes");
    let bytes = serde_json::to_vec(&backup).map_err(io::Error::from);
    bytes.and_then(|bytes| out.write_all(&bytes)).and_then(|()| out.sync_all()).map_err(failed)?;
    sync_folder_of(&path)?;
    Ok(path)
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

/// Copies first, then each stage; every one stable before the next begins.
fn apply(file: &File, plan: &RepairPlan) -> io::Result<()> {
    for copy in &plan.copies {
        let mut bytes = vec![0; PIECE_BYTES.min(copy.len) as usize];
        let mut done = 0;
        while done < copy.len {
            let piece = &mut bytes[..PIECE_BYTES.min(copy.len - done) as usize];
            file.read_exact_at(piece, copy.from + done)?;
            file.write_all_at(piece, copy.to + done)?;
            done += piece.len() as u64;
        }
    }
    for stage in &plan.stages {
        let mut batch = MetaBatch::default();
        for write in stage {
            batch.push_write(ByteOffset(write.offset), &write.bytes);
        }
        batch.ops.push(MetaOp::Sync);
        run_batch(file, &batch)?;
    }
    Ok(())
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
