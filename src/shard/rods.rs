//! Tokens (POPULATE TOKEN, WRITE USING TOKEN): which there are, what they stand for, and what ends them.
//!
//! Knows a unit's tokens and the copy that one begins. Does not know lists and layouts (`scsi::rod`), nor how portions
//! move (`copy`).
//!
//! A token never gives other data than was there when it was made. It is made while no write of its unit is under way;
//! a write revokes it when its turn comes, before any of it is with the ring; and a portion that was read for it is
//! only written on if it is still good after the read. A token says which shard knows it: others ask that one (`errands`),
//! which looks at it with every portion.
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

use super::ShardId;
use super::copy::{Asks, CopyEnding, CopyMove, CopyWork};
use super::errands::{Abroad, Errand, Place};
use super::executor::{Core, TaskKey};
use super::lun_state::LunState;
use super::task::{Pass, Task, Work};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Good,
    Revoked,
    Deleted,
}

#[derive(Debug)]
struct Rod {
    serial: u16,
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
    serials: u16,
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

    /// All of them are unknown from now on. Their serials are not used again: a copy may still name one.
    pub(super) fn forget(&mut self) {
        self.rods.clear();
    }

    fn next_serial(&mut self) -> u16 {
        loop {
            self.serials = self.serials.wrapping_add(1);
            if self.rods.iter().all(|rod| rod.serial != self.serials) {
                return self.serials;
            }
        }
    }

    fn find(&mut self, serial: u16) -> Option<&mut Rod> {
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

/// The token a copy reads from, by its unit and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RodPlace {
    unit: Place,
    serial: u16,
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
    fn new(write: &TokenWrite, from: Option<RodPlace>, block_size: BlockSize) -> Self {
        let (operation, delete) = (write.operation, write.delete);
        Self { from, operation, delete, residual: false, block_size, terminated: false }
    }

    pub(super) fn writes_zeros(&self) -> bool {
        self.from.is_none()
    }

    /// The number of the token at its unit.
    pub(super) fn serial(&self) -> Option<u16> {
        self.from.map(|place| place.serial)
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
        let serial = state.rods.next_serial();
        let bytes = ranges.iter().map(|range| range.bytes().0).sum();
        let mut identifier = [0; 8];
        identifier[..2].copy_from_slice(&self.errands.shard.0.to_be_bytes());
        identifier[2..4].copy_from_slice(&serial.to_be_bytes());
        identifier[4..].copy_from_slice(&lun.to_be_bytes());
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
    pub(super) fn begin_token_write(&mut self, key: TaskKey, unit: UnitIndex, write: Box<TokenWrite>) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let state = &self.luns[task.lun as usize];
        let (writable, size) = (state.writable, state.block_size);
        // Until it is known what it copies, it is a copy that has not begun.
        let mut work = CopyWork::new(unit, CopyEnding::Token(TokenUse::new(&write, None, size)));
        let skip = write.offset.saturating_mul(size.sectors());
        let source = write.source.clone();
        work.asks = Some(Asks::Token(write));
        task.work = Work::Copy(Box::new(work));
        if !writable {
            self.fail(key, Sense::WRITE_PROTECTED);
            return;
        }
        let RodSource::Token(token) = source else {
            self.token_known(key, None, &[]);
            return;
        };
        let shard = token_shard(&token);
        if self.errands.is_other(shard) {
            self.ask(key, shard, Errand::Open { token, skip }, false);
            return;
        }
        let found = self.find_token(&token).and_then(|(lun, serial)| {
            let ranges = self.ranges_from(lun, serial, skip)?;
            Ok((RodPlace { unit: Place::Here(lun), serial }, ranges))
        });
        match found {
            Ok((place, ranges)) => self.token_known(key, Some(place), &ranges),
            Err(sense) => self.fail(key, sense),
        }
    }

    /// Another shard knows the token, and keeps it for this copy.
    pub(super) fn token_opened(&mut self, key: TaskKey, unit: Abroad, serial: u16, ranges: &[SectorRange]) {
        self.token_known(key, Some(RodPlace { unit: Place::Abroad(unit), serial }), ranges);
    }

    /// What is copied is known: zeros, or what a token stands for behind its offset.
    fn token_known(&mut self, key: TaskKey, from: Option<RodPlace>, sources: &[SectorRange]) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let (lun, target, nexus) = (task.lun, task.target, task.nexus);
        let Work::Copy(asking) = &mut task.work else { return };
        let unit = asking.unit();
        let Some(Asks::Token(write)) = asking.asks.take() else { return };
        let work = self.plan_token_write(lun, unit, &write, from, sources);
        if let Some(RodPlace { unit: Place::Here(lun), serial }) = from {
            self.begin_token_use(lun, serial);
        }
        // There may be no task left for the background: then the command does it itself.
        let worker = if write.immediate { self.spawn(target, lun, nexus) } else { None };
        match worker {
            Some(worker) => {
                self.reply(key, UnitReply::good(), 0);
                self.run_copy(worker, work);
            }
            None => self.run_copy(key, work),
        }
    }

    /// A task of the shard's own.
    pub(super) fn spawn(&mut self, target: u32, lun: u32, nexus: Nexus) -> Option<TaskKey> {
        let mut task = self.spare.pop().unwrap_or_else(|| Box::new(Task::idle()));
        task.target = target;
        task.lun = lun;
        task.home = lun;
        task.nexus = nexus;
        task.background = true;
        self.tasks.insert(task).ok()
    }

    fn run_copy(&mut self, key: TaskKey, work: CopyWork) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        task.work = Work::Copy(Box::new(work));
        self.execute(key);
    }

    /// A copy begins to read from a token.
    pub(super) fn begin_token_use(&mut self, lun: u32, serial: u16) {
        if let Some(rod) = self.luns[lun as usize].rods.find(serial) {
            rod.users += 1;
            rod.used = self.now;
        }
    }

    /// It has ended; `delete`: the token was used for the last time.
    pub(super) fn end_token_use(&mut self, lun: u32, serial: u16, delete: bool) {
        let now = self.now;
        if let Some(rod) = self.luns[lun as usize].rods.find(serial) {
            rod.users = rod.users.saturating_sub(1);
            rod.used = now;
            if delete && rod.state == State::Good {
                rod.state = State::Deleted;
            }
        }
    }

    fn plan_token_write(
        &self,
        lun: u32,
        unit: UnitIndex,
        write: &TokenWrite,
        from: Option<RodPlace>,
        sources: &[SectorRange],
    ) -> CopyWork {
        let size = self.luns[lun as usize].block_size;
        let wanted = sectors_of(&write.ranges, size);
        let targets: Vec<_> = write.ranges.iter().filter_map(|range| range.sectors(size)).collect();
        let sources = if from.is_none() { &targets } else { sources };
        let available: u64 = sources.iter().map(|range| range.count().0).sum();
        let moved = wanted.min(available) / size.sectors() * size.sectors();
        let here = Place::Here(lun);
        let moves = pair(from.map_or(here, |place| place.unit), sources, here, &targets, moved);
        let token = TokenUse { residual: moved < wanted, ..TokenUse::new(write, from, size) };
        let mut work = CopyWork::new(unit, CopyEnding::Token(token));
        work.add(moves);
        let target = self.target_of(lun);
        if self.targets[target].device.writes_through(unit) {
            work.flush_at_the_end(here);
        }
        work
    }

    /// The token these bytes are, of this shard: its unit, and its number there.
    pub(super) fn find_token(&mut self, token: &[u8; ROD_TOKEN_BYTES]) -> Result<(u32, u16), Sense> {
        let now = self.now;
        let [_, _, c, d, e, f, g, h] = rod_identifier(token);
        let (lun, serial) = (u32::from_be_bytes([e, f, g, h]), u16::from_be_bytes([c, d]));
        if token_shard(token) != self.errands.shard {
            return Err(Sense::TOKEN_UNKNOWN);
        }
        let state = self.luns.get_mut(lun as usize).ok_or(Sense::TOKEN_UNKNOWN)?;
        let rod = state.rods.find(serial).ok_or(Sense::TOKEN_UNKNOWN)?;
        // Every byte is looked at, so that the time it takes says nothing of the secret.
        let differs = rod.token.iter().zip(token).fold(0, |differs, (one, other)| differs | one ^ other);
        if differs != 0 {
            return Err(Sense::TOKEN_CORRUPT);
        }
        rod.check(now)?;
        let target = self.target_of(lun);
        let unit = self.luns[lun as usize].unit;
        self.targets[target].device.may_read_rod(unit)?;
        Ok((lun, serial))
    }

    /// Whether a token is still what it was.
    pub(super) fn check_token(&mut self, lun: u32, serial: u16) -> Result<(), Sense> {
        let now = self.now;
        self.luns[lun as usize].rods.find(serial).ok_or(Sense::TOKEN_UNKNOWN)?.check(now)
    }

    fn target_of(&self, lun: u32) -> usize {
        self.luns[lun as usize].target as usize
    }

    /// What a token stands for, without its first sectors.
    pub(super) fn ranges_from(
        &mut self,
        lun: u32,
        serial: u16,
        mut skip: u64,
    ) -> Result<Vec<SectorRange>, Sense> {
        let rod = self.luns[lun as usize].rods.find(serial).ok_or(Sense::TOKEN_UNKNOWN)?;
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

    /// A portion was read here for a token: whether that is still what the token stands for.
    pub(super) fn token_still_good(&mut self, token: &TokenUse) -> Result<(), Sense> {
        match token.from {
            Some(RodPlace { unit: Place::Here(lun), serial }) => self.check_token(lun, serial),
            // Whoever read it has looked.
            _ => Ok(()),
        }
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
        let delete = token.delete && sense.is_none();
        match token.from {
            Some(RodPlace { unit: Place::Here(lun), serial }) => self.end_token_use(lun, serial, delete),
            Some(RodPlace { unit: Place::Abroad(unit), serial }) => {
                self.errands.close_token(unit, serial, delete);
            }
            None => {}
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
        self.end_errands_at(target, unit);
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

/// The shard a token is of, by what it says itself.
fn token_shard(token: &[u8; ROD_TOKEN_BYTES]) -> ShardId {
    let [a, b, ..] = rod_identifier(token);
    ShardId(u16::from_be_bytes([a, b]))
}

fn sectors_of(ranges: &[BlockRange], size: BlockSize) -> u64 {
    ranges.iter().map(|range| range.count.0.saturating_mul(size.sectors())).sum()
}

/// `total` sectors of the sources, in order, to as many of the destinations, in order.
fn pair(
    from: Place,
    sources: &[SectorRange],
    to: Place,
    targets: &[SectorRange],
    total: u64,
) -> Vec<CopyMove> {
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
