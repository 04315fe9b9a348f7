//! The beginning of an EXTENDED COPY: its designators become units, here or on other shards, and its segments moves.
//!
//! Knows which units a copy may reach: those of the target that was asked, and of other targets in which the same
//! initiator has a session, whichever shard owns them. Does not know lists and designators (`scsi`), nor how portions
//! move (`copy`).
//!
//! What a unit is for the copy is asked once, before anything is copied; that it still is so, with every portion of it on
//! another shard (`errand_desk`).

use std::sync::Arc;

use crate::scsi::{Copy, CopyDevice, CopyLen, CopySegment, Nexus, Sense, UnitIndex};
use crate::units::{BlockCount, BlockRange, BlockSize, Lba, Sector, SectorCount};

use super::copy::{Asks, CopyEnding, CopyMove, CopyWork};
use super::errands::{Abroad, Errand, Place};
use super::executor::{Core, TaskKey};
use super::task::Work;

/// A unit a copy may reach, and what it may do there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reached {
    place: Place,
    block_size: BlockSize,
    blocks: u64,
    may_read: Result<(), Sense>,
    may_write: Result<(), Sense>,
    writes_through: bool,
}

impl Reached {
    fn sectors(&self, blocks: BlockCount) -> u64 {
        blocks.0.saturating_mul(self.block_size.sectors())
    }

    /// The blocks that `sectors` from this place touch.
    fn range(&self, start: Lba, offset: SectorCount, sectors: u64) -> Result<BlockRange, Sense> {
        let per_block = self.block_size.sectors();
        let start = Lba(start.0.saturating_add(offset.0 / per_block));
        let count = if sectors == 0 { 0 } else { (offset.0 % per_block + sectors).div_ceil(per_block) };
        let fits = start.0.checked_add(count).is_some_and(|end| end <= self.blocks);
        if fits { Ok(BlockRange { start, count: BlockCount(count) }) } else { Err(Sense::COPY_ABORTED) }
    }

    fn first(&self, range: BlockRange, offset: SectorCount) -> Sector {
        let per_block = self.block_size.sectors();
        Sector(range.start.0.saturating_mul(per_block).saturating_add(offset.0 % per_block))
    }
}

/// A segment of these units, in sectors.
fn plan_move(segment: &CopySegment, reached: &[Option<Reached>]) -> Result<CopyMove, Sense> {
    let unit = |place: usize| reached.get(place).copied().flatten().ok_or(Sense::COPY_UNREACHABLE);
    let (from, to) = (unit(segment.from)?, unit(segment.to)?);
    let (sectors, in_blocks) = match segment.len {
        CopyLen::SourceBlocks(blocks) => (from.sectors(blocks), true),
        CopyLen::DestinationBlocks(blocks) => (to.sectors(blocks), true),
        CopyLen::Sectors(sectors) => (sectors.0, false),
    };
    let splits = |end: &Reached| !sectors.is_multiple_of(end.block_size.sectors());
    if in_blocks && (splits(&from) || splits(&to)) {
        return Err(Sense::COPY_INEXACT);
    }
    from.may_read?;
    let source = from.range(segment.source, segment.source_offset, sectors)?;
    to.may_write?;
    let destination = to.range(segment.destination, segment.destination_offset, sectors)?;
    Ok(CopyMove {
        from: from.place,
        source: from.first(source, segment.source_offset),
        to: to.place,
        destination: to.first(destination, segment.destination_offset),
        count: SectorCount(sectors),
    })
}

impl Core {
    /// Begins a copy, or ends it at once when a segment cannot be done: then nothing is copied.
    pub(super) fn begin_copy(&mut self, key: TaskKey, unit: UnitIndex, copy: Copy) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let (target, nexus) = (task.target as usize, task.nexus);
        let mut work = CopyWork::new(unit, CopyEnding::List(copy.list));
        let initiator = self.targets[target].sessions.iter().find(|entry| entry.nexus == nexus);
        let initiator: Arc<str> = initiator.map_or("", |entry| entry.initiator.as_str()).into();
        let reached: Vec<_> =
            copy.devices.iter().map(|device| self.reach(target, nexus, &initiator, device)).collect();
        work.initiator = Some(Arc::clone(&initiator));
        let devices = copy.devices.clone();
        let all_here = reached.iter().all(Option::is_some);
        work.asks = Some(Asks::Units { copy, reached });
        let Some(task) = self.tasks.get_mut(key) else { return };
        task.work = Work::Copy(Box::new(work));
        if all_here || initiator.is_empty() || self.errands.is_alone() {
            self.units_found(key);
        } else {
            self.ask_all(key, || Errand::Find {
                initiator: Arc::clone(&initiator),
                devices: devices.clone(),
            });
        }
    }

    /// Every unit that can be reached is known.
    pub(super) fn units_found(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let Work::Copy(work) = &mut task.work else { return };
        let Some(Asks::Units { copy, reached }) = work.asks.take() else { return };
        let moves: Result<Vec<_>, _> =
            copy.segments.iter().map(|segment| plan_move(segment, &reached)).collect();
        match moves {
            Ok(moves) => {
                for (unit, planned) in copy.segments.iter().map(|it| reached.get(it.to)).zip(&moves) {
                    if unit.copied().flatten().is_some_and(|unit| unit.writes_through) {
                        work.flush_at_the_end(planned.to);
                    }
                }
                work.add(moves);
                self.execute(key);
            }
            Err(sense) => {
                // It is not done.
                work.asks = Some(Asks::Units { copy, reached });
                self.fail(key, sense);
            }
        }
    }

    /// The unit a designator names, where this initiator may use it.
    fn reach(&self, target: usize, nexus: Nexus, initiator: &str, device: &CopyDevice) -> Option<Reached> {
        if let Some(unit) = self.targets[target].device.copy_device(nexus, device) {
            return Some(self.reached(target, unit, nexus));
        }
        self.reach_by_name(initiator, device)
    }

    pub(super) fn reach_by_name(&self, initiator: &str, device: &CopyDevice) -> Option<Reached> {
        // What is being emptied or changed is not there for the moment.
        let mut others = self.targets.iter().enumerate().filter(|(_, other)| !other.is_held());
        others.find_map(|(target, other)| {
            let mut entries = other.sessions.iter().filter(|entry| entry.initiator == initiator);
            entries.find_map(|entry| {
                let unit = other.device.copy_device(entry.nexus, device)?;
                Some(self.reached(target, unit, entry.nexus))
            })
        })
    }

    fn reached(&self, target: usize, unit: UnitIndex, nexus: Nexus) -> Reached {
        let device = &self.targets[target].device;
        let lun = self.targets[target].lun(unit);
        let nothing = BlockRange { start: Lba(0), count: BlockCount(0) };
        Reached {
            place: Place::Here(lun),
            block_size: self.luns[lun as usize].block_size,
            blocks: device.blocks(unit),
            may_read: device.may_copy(nexus, unit, nothing, false),
            may_write: device.may_copy(nexus, unit, nothing, true),
            writes_through: device.writes_through(unit),
        }
    }

    /// The same, as another shard has to name it.
    pub(super) fn reached_from_abroad(&self, reached: Reached) -> Reached {
        let Place::Here(lun) = reached.place else { return reached };
        let born = self.luns[lun as usize].born;
        Reached { place: Place::Abroad(Abroad { shard: self.errands.shard, lun, born }), ..reached }
    }
}
