//! Repair: what would make a damaged image whole, planned before anything is changed.
//!
//! Knows which damage has one right answer, which can only be answered with a loss, and which not at all. Every plan
//! is proved before it is offered: the file as it would be is checked, and must be clean. Does not write.
//!
//! What could hold data is never given up unsaid: a step that makes sectors read differently says so (`Step::loss`).

mod blocks;
mod footers;
mod header;

use super::bat::{ENTRY_BYTES, FileRange};
use super::check::{Finding, check};
use super::edit::{Copy, Write};
use super::error::Structure;
use super::image::ParentInfo;
use crate::units::SECTOR_BYTES;
use footers::Ruler;
use std::collections::BTreeMap;

/// Steps told one by one; what goes beyond is counted.
const STEPS_MAX: usize = 1000;

/// Fills a buffer from an offset of the file.
type Read<'a, E> = dyn FnMut(u64, &mut [u8]) -> Result<(), E> + 'a;

/// One damage and its answer, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub structure: Structure,
    /// In the file, in bytes.
    pub offset: u64,
    pub found: String,
    pub action: String,
    /// What the repaired disk no longer shows; `None` when every sector reads as it did, or can be read again.
    pub loss: Option<String>,
}

/// What to do, in an order that a crash may interrupt anywhere without making the image worse.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepairPlan {
    pub steps: Vec<Step>,
    /// First: into the space behind the file's present content.
    pub copies: Vec<Copy>,
    /// Then these, each stage stable before the next begins. The first one gives the file its length.
    pub stages: Vec<Vec<Write>>,
    /// The length of the file afterwards.
    pub len: u64,
    /// Damage that has no answer; nothing is planned then.
    pub hopeless: Vec<Finding>,
}

impl RepairPlan {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.stages.is_empty()
    }

    /// True when some sectors will read otherwise than they were written.
    pub fn loses_data(&self) -> bool {
        self.steps.iter().any(|step| step.loss.is_some())
    }

    fn step(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// Reads the file as it will be. `len` is its present length.
    fn read_after<E>(
        &self,
        offset: u64,
        bytes: &mut [u8],
        len: u64,
        read: &mut Read<'_, E>,
    ) -> Result<(), E> {
        fill(read, len, offset, bytes)?;
        for copy in &self.copies {
            if let Some((at, from, count)) = overlap(offset, bytes.len(), copy.to, copy.len) {
                fill(read, len, copy.from + from as u64, &mut bytes[at..at + count])?;
            }
        }
        for write in self.stages.iter().flatten() {
            if let Some((at, from, count)) =
                overlap(offset, bytes.len(), write.offset, write.bytes.len() as u64)
            {
                bytes[at..at + count].copy_from_slice(&write.bytes[from..from + count]);
            }
        }
        Ok(())
    }
}

/// Where `len` bytes from `offset` and `other_len` from `other` meet: the place in each, and how many bytes.
fn overlap(offset: u64, len: usize, other: u64, other_len: u64) -> Option<(usize, usize, usize)> {
    let start = offset.max(other);
    let end = (offset + len as u64).min(other.saturating_add(other_len));
    (start < end).then(|| ((start - offset) as usize, (start - other) as usize, (end - start) as usize))
}

/// Fills `bytes`; zeros where the file has ended.
fn fill<E>(read: &mut Read<'_, E>, len: u64, offset: u64, bytes: &mut [u8]) -> Result<(), E> {
    let there = len.saturating_sub(offset).min(bytes.len() as u64) as usize;
    bytes[there..].fill(0);
    if there > 0 { read(offset, &mut bytes[..there]) } else { Ok(()) }
}

/// The repair of a VHD of `len` bytes; empty when it is clean. `read` is as for [`super::open_with`].
///
/// `parent_is` is asked, where a child's header can only be believed if its parent confirms it, whether the image
/// that these claims lead to has the id they tell.
///
/// # Errors
/// The error of `read`.
pub fn plan<E>(
    len: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    mut parent_is: impl FnMut(&ParentInfo) -> bool,
) -> Result<RepairPlan, E> {
    let before = check(len, &mut read)?;
    if before.is_clean() {
        return Ok(RepairPlan { len, ..RepairPlan::default() });
    }
    let mut second_best = None;
    for ruler in footers::rulers(len, &mut read)? {
        let Some(plan) = plan_under(len, ruler, &mut read, &mut parent_is)? else { continue };
        let after = check(plan.len, |offset, bytes| plan.read_after(offset, bytes, len, &mut read))?;
        if !after.is_clean() {
            continue;
        }
        if !plan.loses_data() {
            return Ok(plan);
        }
        second_best.get_or_insert(plan);
    }
    let hopeless = || RepairPlan { hopeless: before.findings.into_vec(), len, ..RepairPlan::default() };
    Ok(second_best.unwrap_or_else(hopeless))
}

/// The plan that follows from believing one footer. `None`: there is none.
fn plan_under<E>(
    len: u64,
    ruler: Ruler,
    read: &mut Read<'_, E>,
    parent_is: &mut dyn FnMut(&ParentInfo) -> bool,
) -> Result<Option<RepairPlan>, E> {
    let mut plan = RepairPlan { len, ..RepairPlan::default() };
    let mut metadata = Vec::new();
    let mut end = ruler.data_end;
    if ruler.is_sparse() {
        let Some(header) = header::mend(len, &ruler, read, parent_is, &mut plan, &mut metadata)? else {
            return Ok(None);
        };
        let Some(to) = blocks::mend(len, &ruler, &header, &metadata, read, &mut plan)? else {
            return Ok(None);
        };
        end = to;
    }
    ruler.finish(end, &mut plan);
    shorten(&mut plan.steps);
    Ok(Some(plan))
}

/// Thousands of steps are told as one number.
fn shorten(steps: &mut Vec<Step>) {
    if steps.len() <= STEPS_MAX {
        return;
    }
    let lost = steps[STEPS_MAX..].iter().filter(|step| step.loss.is_some()).count();
    let more = steps.len() - STEPS_MAX;
    let place = steps[STEPS_MAX].offset;
    steps.truncate(STEPS_MAX);
    steps.push(Step {
        structure: Structure::Bat,
        offset: place,
        found: format!("{more} places more are damaged likewise"),
        action: "they are treated as those named".to_owned(),
        loss: (lost > 0).then(|| format!("{lost} of them lose data as those named do")),
    });
}

/// The parts of the table that hold `changed` entries, in whole sectors, as the file has them but for those.
fn table_writes<E>(
    len: u64,
    table: FileRange,
    changed: &BTreeMap<u32, u32>,
    read: &mut Read<'_, E>,
) -> Result<Vec<Write>, E> {
    let mut writes: Vec<Write> = Vec::new();
    for (block, entry) in changed {
        let place = table.start + u64::from(*block) * ENTRY_BYTES;
        let sector = place - place % SECTOR_BYTES;
        let end = |write: &Write| write.offset + write.bytes.len() as u64;
        if writes.last().is_none_or(|last| end(last) <= place) {
            let mut bytes = vec![0; SECTOR_BYTES as usize];
            fill(read, len, sector, &mut bytes)?;
            match writes.last_mut() {
                Some(last) if end(last) == sector => last.bytes.append(&mut bytes),
                _ => writes.push(Write { offset: sector, bytes }),
            }
        }
        if let Some(last) = writes.last_mut() {
            let at = (place - last.offset) as usize;
            last.bytes[at..at + ENTRY_BYTES as usize].copy_from_slice(&entry.to_be_bytes());
        }
    }
    Ok(writes)
}
