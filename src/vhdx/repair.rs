//! Repair: what makes a VHDX that opens whole again. Everything that matters is there twice, or in the log.
//!
//! Knows which copy is written again from which, and that the log comes first. What does not open it does not guess.
//! Does not write.

use super::check::{Finding, check};
use super::error::Structure;
use super::header::Header;
use super::image::{VhdxImage, Warning};
use super::open::{OpenError, open_with, replay_with};
use super::{HEADER_OFFSETS, REGION_TABLE_BYTES, REGION_TABLE_OFFSETS};
use crate::plan::{MetaBatch, MetaOp, OpenMode};
use crate::units::ByteOffset;

/// One damage and its answer, for people. Nothing is ever lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub structure: Structure,
    /// In the file, in bytes.
    pub offset: u64,
    pub found: &'static str,
    pub action: &'static str,
}

/// What to do, in an order that a crash may interrupt anywhere.
#[derive(Debug, Default)]
pub struct RepairPlan {
    pub steps: Vec<Step>,
    /// Each is stable before the next begins, where a flush ends it.
    pub batches: Vec<MetaBatch>,
    /// Damage that has no answer; nothing is planned then.
    pub hopeless: Vec<Finding>,
}

/// The repair of a VHDX of `len` bytes; empty when it is clean. `read` is as for [`super::open_with`].
///
/// # Errors
/// The error of `read`.
pub fn plan<E>(len: u64, mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>) -> Result<RepairPlan, E> {
    let report = check(len, &mut read)?;
    if report.is_clean() {
        return Ok(RepairPlan::default());
    }
    let opened = open_with(len, OpenMode::ReadOnly, &mut read);
    let replayed = replay_with(len, &mut read);
    let (image, replay) = match (opened, replayed) {
        (Ok(image), Ok(replay)) => (image, replay),
        (Err(OpenError::Read { source, .. }), _) | (_, Err(OpenError::Read { source, .. })) => {
            return Err(source);
        }
        _ => return Ok(RepairPlan { hopeless: report.findings.into_vec(), ..RepairPlan::default() }),
    };
    let mut plan = RepairPlan::default();
    let log_was_empty = replay.is_empty();
    if !log_was_empty {
        plan.steps.push(Step {
            structure: Structure::Log,
            offset: image.header.log_offset,
            found: "holds changes that a crash left",
            action: "they are written where they belong, then the log is emptied, which writes both headers",
        });
        plan.batches.extend(replay);
    }
    mend_tables(&image, &mut read, &mut plan)?;
    if log_was_empty {
        mend_headers(&image, &mut plan);
    }
    Ok(plan)
}

/// Writes a region table again that is damaged, or other than the one that is used.
fn mend_tables<E>(
    image: &VhdxImage,
    read: &mut impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    plan: &mut RepairPlan,
) -> Result<(), E> {
    let first_is_damaged =
        image.warnings().iter().any(|warning| matches!(warning, Warning::RegionTableDamaged(1)));
    let mut table = |offset| {
        let mut bytes = vec![0; REGION_TABLE_BYTES];
        read(offset, &mut bytes)?;
        if let Some(replay) = &image.replay {
            replay.overlay.patch(offset, &mut bytes);
        }
        Ok(bytes)
    };
    let tables = [table(REGION_TABLE_OFFSETS[0])?, table(REGION_TABLE_OFFSETS[1])?];
    if tables[0] == tables[1] {
        return Ok(());
    }
    let (from, to) = if first_is_damaged { (1, 0) } else { (0, 1) };
    plan.steps.push(Step {
        structure: Structure::RegionTable(to as u8 + 1),
        offset: REGION_TABLE_OFFSETS[to],
        found: "is not the copy it should be",
        action: "it is written again from the other one",
    });
    push(plan, REGION_TABLE_OFFSETS[to], &tables[from]);
    Ok(())
}

/// Writes a header again that is damaged, or cannot be told from the other.
fn mend_headers(image: &VhdxImage, plan: &mut RepairPlan) {
    let (header, _) = image.header();
    for warning in image.warnings() {
        let (index, found) = match warning {
            Warning::HeaderDamaged(copy) => (usize::from(*copy == 2), "is damaged"),
            Warning::HeadersAlike => (1, "has the number of the other one"),
            Warning::RegionTableDamaged(_) | Warning::LogReplayed(_) => continue,
        };
        plan.steps.push(Step {
            structure: Structure::Header(index as u8 + 1),
            offset: HEADER_OFFSETS[index],
            found,
            action: "it is written again from the other one, with the next number",
        });
        let next = Header { sequence: header.sequence.saturating_add(1), ..*header };
        push(plan, HEADER_OFFSETS[index], &next.encode());
    }
}

fn push(plan: &mut RepairPlan, offset: u64, bytes: &[u8]) {
    let mut batch = MetaBatch::default();
    batch.push_write(ByteOffset(offset), bytes);
    batch.ops.push(MetaOp::Sync);
    plan.batches.push(batch);
}
