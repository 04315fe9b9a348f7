//! Tokens (POPULATE TOKEN, WRITE USING TOKEN): which there are, what they stand for, and what ends them.
//!
//! Knows a unit's tokens and the copy that one begins. Does not know lists and layouts (`scsi::rod`), nor how portions
//! move (`copy`).
//!
//! A token never gives other data than was there when it was made. It is made while no write of its unit is under way;
//! a write revokes it when its turn comes, before any of it is with the ring; and a portion that was read for it is
//! only written on if it is still good after the read. Tokens are this shard's alone: elsewhere they are unknown.
//!
//! | a token is | until                                                  | and then the answer is     |
//! |------------|--------------------------------------------------------|----------------------------|
//! | good       | a write touches a block of it                          | TOKEN REVOKED              |
//! | good       | nobody uses it for its timeout, or it is a day old     | TOKEN EXPIRED              |
//! | good       | whoever used it said that it was for the last time     | TOKEN DELETED              |
//! | any of these | another one of the unit needs its place              | TOKEN UNKNOWN              |

use sha2::{Digest, Sha256};

use crate::clock::{Duration, Instant};
use crate::limits;
use crate::scsi::{
    Nexus, Populate, ROD_TOKEN_BYTES, RodEnd, RodOperation, RodSource, Sense, TokenWrite, UnitIndex,
    UnitReply, rod_identifier,
};
use crate::units::{BlockRange, BlockSize, SECTOR_BYTES, Sector, SectorCount, SectorRange};

use super::copy::{CopyEnding, CopyMove, CopyWork};
use super::executor::{Core, LunState, TaskKey};
use super::task::{Pass, Task, Work};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Good,
    Revoked,
    Deleted,
}

#[derive(Debug)]
struct Rod {
    serial: u32,
    ranges: Vec<SectorRange>,
    token: Box<[u8; ROD_TOKEN_BYTES]>,
    state: State,
    made: Instant,
    used: Instant,
    timeout: Duration,
    /// Copies that read from it now.
    users: u32,
}

impl Rod {
    fn is_expired(&self, now: Instant) -> bool {
        let lifetime = Duration::from_secs(u64::from(limits::ROD_LIFETIME_MAX_S));
        self.users == 0 && (self.used.after(self.timeout) < now || self.made.after(lifetime) < now)
    }

    fn check(&self, now: Instant) -> Result<(), Sense> {
        match self.state {
            State::Revoked => Err(Sense::TOKEN_REVOKED),
            State::Deleted => Err(Sense::TOKEN_DELETED),
            State::Good if self.is_expired(now) => Err(Sense::TOKEN_EXPIRED),
            State::Good => Ok(()),
        }
    }

    fn sectors(&self) -> u64 {
        self.ranges.iter().map(|range| range.count().0).sum()
    }
}

/// The tokens of one unit.
#[derive(Debug, Default)]
pub(super) struct Rods {
    rods: Vec<Rod>,
    serials: u32,
}

impl Rods {
    /// Blocks are about to change: whatever stands for any of them is good no more.
    pub(super) fn revoke(&mut self, range: SectorRange) {
        for rod in self.rods.iter_mut().filter(|rod| rod.state == State::Good) {
            if rod.ranges.iter().any(|held| held.overlaps(range)) {
                rod.state = State::Revoked;
            }
        }
    }

    fn find(&mut self, serial: u32) -> Option<&mut Rod> {
        self.rods.iter_mut().find(|rod| rod.serial == serial)
    }

    /// A place for one more: one that is good no more, or the one that was unused for longest, gives way. False: all
    /// are being read from.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.rods.len() < limits::RODS_PER_UNIT_MAX {
            return true;
        }
        let idle = self.rods.iter().enumerate().filter(|(_, rod)| rod.users == 0);
        let Some((place, _)) = idle.min_by_key(|(_, rod)| (rod.check(now).is_ok(), rod.used)) else {
            return false;
        };
        self.rods.swap_remove(place);
        true
    }
}

impl LunState {
    /// A command has its turn to write: tokens for what it writes end, and the unit is not erased any more.
    pub(super) fn writes_begin(&mut self, work: &Work, range: SectorRange) {
        if matches!(work, Work::Populate(_)) {
            return;
        }
        self.erased = false;
        if self.rods.rods.is_empty() {
            return;
        }
        match work {
            Work::Sanitize(_) => self.rods.revoke(SectorRange::between(Sector(0), Sector(u64::MAX))),
            Work::Zero { ranges } => {
                self.rods.revoke(range);
                for range in ranges.iter().filter_map(|range| range.sectors(self.block_size)) {
                    self.rods.revoke(range);
                }
            }
            _ => self.rods.revoke(range),
        }
    }
}

/// A POPULATE TOKEN that waits for writes to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PopulateWork {
    unit: UnitIndex,
    populate: Populate,
}

/// The token a copy reads from, by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RodPlace {
    lun: u32,
    serial: u32,
}

/// What a WRITE USING TOKEN has to tell at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TokenUse {
    /// `None`: zeros.
    from: Option<RodPlace>,
    operation: RodOperation,
    delete: bool,
    residual: bool,
    block_size: BlockSize,
    terminated: bool,
}

impl TokenUse {
    pub(super) fn writes_zeros(&self) -> bool {
        self.from.is_none()
    }

    pub(super) fn terminate(&mut self) {
        self.terminated = true;
    }

    pub(super) fn is_terminated(&self) -> bool {
        self.terminated
    }
}

impl Core {
    /// The turn of POPULATE TOKEN has come: no write is under way.
    pub(super) fn populate(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let Work::Populate(work) = core::mem::replace(&mut task.work, Work::Reply) else { return };
        let (lun, target) = (task.lun, task.target as usize);
        let PopulateWork { unit, populate } = *work;
        let made = self.make_token(target, lun, unit, &populate);
        let blocks = populate.ranges.iter().map(|range| range.count.0).sum();
        let (token, sense) = match made {
            Ok(token) => (Some(token), None),
            Err(sense) => (None, Some(sense)),
        };
        let blocks = if sense.is_none() { blocks } else { 0 };
        let end = RodEnd { blocks, residual: false, terminated: false, sense, token };
        self.targets[target].device.rod_ended(unit, populate.operation, end);
        match sense {
            Some(sense) => self.fail(key, sense),
            None => self.finish(key),
        }
    }

    fn make_token(
        &mut self,
        target: usize,
        lun: u32,
        unit: UnitIndex,
        populate: &Populate,
    ) -> Result<Box<[u8; ROD_TOKEN_BYTES]>, Sense> {
        self.rods_made += 1;
        let secret: [u8; 32] = Sha256::new()
            .chain_update(b"goldrush token\0")
            .chain_update(self.rod_seed)
            .chain_update(self.rods_made.to_be_bytes())
            .finalize()
            .into();
        let now = self.now;
        let state = &mut self.luns[lun as usize];
        if !state.rods.make_room(now) {
            return Err(Sense::TOKENS_EXHAUSTED);
        }
        let size = state.block_size;
        let ranges: Vec<_> = populate.ranges.iter().filter_map(|range| range.sectors(size)).collect();
        state.rods.serials = state.rods.serials.wrapping_add(1);
        let serial = state.rods.serials;
        let bytes = ranges.iter().map(|range| range.bytes().0).sum();
        let mut identifier = [0; 8];
        identifier[..4].copy_from_slice(&lun.to_be_bytes());
        identifier[4..].copy_from_slice(&serial.to_be_bytes());
        let device = &self.targets[target].device;
        let token = device.token(unit, identifier, bytes, secret).ok_or(Sense::INTERNAL_TARGET_FAILURE)?;
        let timeout = Duration::from_secs(u64::from(populate.inactivity_s));
        let rod = Rod {
            serial,
            ranges,
            token: token.clone(),
            state: State::Good,
            made: now,
            used: now,
            timeout,
            users: 0,
        };
        self.luns[lun as usize].rods.rods.push(rod);
        Ok(token)
    }

    pub(super) fn begin_populate(&mut self, key: TaskKey, unit: UnitIndex, populate: Populate) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        task.work = Work::Populate(Box::new(PopulateWork { unit, populate }));
        task.start_pass(Pass::Read, SectorRange::between(Sector(0), Sector(0)));
        self.execute(key);
    }

    /// Begins the copy from a token; with IMMED it goes on in the background.
    pub(super) fn begin_token_write(&mut self, key: TaskKey, unit: UnitIndex, write: &TokenWrite) {
        let Some(task) = self.tasks.get(key) else { return };
        let (lun, target, nexus) = (task.lun, task.target, task.nexus);
        let work = match self.plan_token_write(lun, unit, write) {
            Ok(work) => work,
            Err(sense) => {
                let end =
                    RodEnd { blocks: 0, residual: false, terminated: false, sense: Some(sense), token: None };
                self.targets[target as usize].device.rod_ended(unit, write.operation, end);
                self.fail(key, sense);
                return;
            }
        };
        if !write.immediate {
            self.run_copy(key, work);
            return;
        }
        match self.spawn_copy(target, lun, nexus) {
            Some(worker) => {
                self.reply(key, UnitReply::good(), 0);
                self.run_copy(worker, work);
            }
            // There is no task left for it: the command does it itself.
            None => self.run_copy(key, work),
        }
    }

    fn spawn_copy(&mut self, target: u32, lun: u32, nexus: Nexus) -> Option<TaskKey> {
        let mut task = self.spare.pop().unwrap_or_else(|| Box::new(Task::idle()));
        task.target = target;
        task.lun = lun;
        task.home = lun;
        task.nexus = nexus;
        task.background = true;
        self.tasks.insert(task).ok()
    }

    fn run_copy(&mut self, key: TaskKey, work: CopyWork) {
        if let Some(from) = work.token().and_then(|token| token.from)
            && let Some(rod) = self.luns[from.lun as usize].rods.find(from.serial)
        {
            rod.users += 1;
            rod.used = self.now;
        }
        let Some(task) = self.tasks.get_mut(key) else { return };
        task.work = Work::Copy(Box::new(work));
        self.execute(key);
    }

    fn plan_token_write(&mut self, lun: u32, unit: UnitIndex, write: &TokenWrite) -> Result<CopyWork, Sense> {
        let state = &self.luns[lun as usize];
        let size = state.block_size;
        let (writable, wanted) = (state.writable, sectors_of(&write.ranges, size));
        if !writable {
            return Err(Sense::WRITE_PROTECTED);
        }
        let (from, sources) = match &write.source {
            RodSource::Zeros => (None, write.ranges.iter().filter_map(|range| range.sectors(size)).collect()),
            RodSource::Token(token) => {
                let place = self.find_token(token)?;
                let sources = self.ranges_from(place, write.offset.saturating_mul(size.sectors()))?;
                (Some(place), sources)
            }
        };
        let available: u64 = sources.iter().map(|range: &SectorRange| range.count().0).sum();
        let moved = wanted.min(available) / size.sectors() * size.sectors();
        let targets: Vec<_> = write.ranges.iter().filter_map(|range| range.sectors(size)).collect();
        let moves = pair(from.map_or(lun, |place| place.lun), &sources, lun, &targets, moved);
        let token = TokenUse {
            from,
            operation: write.operation,
            delete: write.delete,
            residual: moved < wanted,
            block_size: size,
            terminated: false,
        };
        let mut work = CopyWork::new(unit, CopyEnding::Token(token));
        work.add(moves);
        let target = self.target_of(lun);
        if self.targets[target].device.writes_through(unit) {
            work.flush_at_the_end(lun);
        }
        Ok(work)
    }

    /// The token these bytes are.
    fn find_token(&mut self, token: &[u8; ROD_TOKEN_BYTES]) -> Result<RodPlace, Sense> {
        let now = self.now;
        let [a, b, c, d, e, f, g, h] = rod_identifier(token);
        let place =
            RodPlace { lun: u32::from_be_bytes([a, b, c, d]), serial: u32::from_be_bytes([e, f, g, h]) };
        let state = self.luns.get_mut(place.lun as usize).ok_or(Sense::TOKEN_UNKNOWN)?;
        let rod = state.rods.find(place.serial).ok_or(Sense::TOKEN_UNKNOWN)?;
        // Every byte is looked at, so that the time it takes says nothing of the secret.
        let differs = rod.token.iter().zip(token).fold(0, |differs, (one, other)| differs | one ^ other);
        if differs != 0 {
            return Err(Sense::TOKEN_CORRUPT);
        }
        rod.check(now)?;
        let target = self.target_of(place.lun);
        let unit = self.luns[place.lun as usize].unit;
        self.targets[target].device.may_read_rod(unit)?;
        Ok(place)
    }

    fn target_of(&self, lun: u32) -> usize {
        self.luns[lun as usize].target as usize
    }

    /// What a token stands for, without its first sectors.
    fn ranges_from(&mut self, place: RodPlace, mut skip: u64) -> Result<Vec<SectorRange>, Sense> {
        let rod = self.luns[place.lun as usize].rods.find(place.serial).ok_or(Sense::TOKEN_UNKNOWN)?;
        if skip > rod.sectors() {
            return Err(Sense::parameter_field(8, 7));
        }
        let mut ranges = Vec::with_capacity(rod.ranges.len());
        for range in &rod.ranges {
            let passed = skip.min(range.count().0);
            skip -= passed;
            if passed < range.count().0 {
                ranges.push(range.skip(SectorCount(passed)));
            }
        }
        Ok(ranges)
    }

    /// A portion was read for a token: whether that is still what the token stands for.
    pub(super) fn token_still_good(&mut self, token: &TokenUse) -> Result<(), Sense> {
        let (Some(from), now) = (token.from, self.now) else { return Ok(()) };
        let rod = self.luns[from.lun as usize].rods.find(from.serial).ok_or(Sense::TOKEN_UNKNOWN)?;
        rod.check(now)
    }

    /// The copy from a token is over, one way or the other.
    pub(super) fn token_left(
        &mut self,
        target: usize,
        unit: UnitIndex,
        token: &TokenUse,
        bytes: u64,
        sense: Option<Sense>,
    ) {
        let now = self.now;
        if let Some(from) = token.from
            && let Some(rod) = self.luns[from.lun as usize].rods.find(from.serial)
        {
            rod.users -= 1;
            rod.used = now;
            if token.delete && sense.is_none() && rod.state == State::Good {
                rod.state = State::Deleted;
            }
        }
        let end = RodEnd {
            blocks: bytes / u64::from(token.block_size.bytes()),
            residual: token.residual,
            terminated: token.terminated,
            sense,
            token: None,
        };
        self.targets[target].device.rod_ended(unit, token.operation, end);
    }

    /// A reset of a target, or of one unit of it: copies in its background end with the portion they are at.
    pub(super) fn end_background_copies(&mut self, target: u32, unit: Option<UnitIndex>) {
        let tasks = self.tasks.iter_mut().map(|(_, task)| task);
        for task in tasks.filter(|task| task.background && task.target == target) {
            if let Work::Copy(copy) = &mut task.work
                && unit.is_none_or(|unit| copy.unit() == unit)
            {
                copy.terminate();
            }
        }
    }

    /// A POPULATE TOKEN is aborted before its turn has come.
    pub(super) fn populate_left(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let Work::Populate(work) = &task.work else { return };
        let (unit, operation, target) = (work.unit, work.populate.operation, task.target as usize);
        task.work = Work::Reply;
        let end = RodEnd { blocks: 0, residual: false, terminated: true, sense: None, token: None };
        self.targets[target].device.rod_ended(unit, operation, end);
    }
}

fn sectors_of(ranges: &[BlockRange], size: BlockSize) -> u64 {
    ranges.iter().map(|range| range.count.0.saturating_mul(size.sectors())).sum()
}

/// `total` sectors of the sources, in order, to as many of the destinations, in order.
fn pair(from: u32, sources: &[SectorRange], to: u32, targets: &[SectorRange], total: u64) -> Vec<CopyMove> {
    let mut moves = Vec::with_capacity(sources.len() + targets.len());
    let (mut sources, mut targets) = (sources.iter().copied(), targets.iter().copied());
    let (mut source, mut destination) = (sources.next(), targets.next());
    let mut left = total;
    while left > 0
        && let (Some(from_range), Some(to_range)) = (source, destination)
    {
        let count = SectorCount(from_range.count().0.min(to_range.count().0).min(left));
        moves.push(CopyMove { from, source: from_range.start(), to, destination: to_range.start(), count });
        left -= count.0;
        let rest = |range: SectorRange| Some(range.skip(count)).filter(|rest| !rest.is_empty());
        source = rest(from_range).or_else(|| sources.next());
        destination = rest(to_range).or_else(|| targets.next());
    }
    debug_assert!(moves.iter().all(|step| step.count.0 * SECTOR_BYTES > 0));
    moves
}

#[cfg(test)]
mod tests;
