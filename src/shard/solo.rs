//! A shard without a network: its units take commands from whoever calls, on the same thread.
//!
//! Knows the executor and its ring, and plain operations on files beside it. Does not know sessions, targets by name or
//! what is measured with it: this is how `image bench` drives the code that serves, without what is around it.

use std::sync::Arc;

use crate::buf::{BufRef, Pool};
use crate::cache::{Golden, GoldenCache};
use crate::clock::Instant;
use crate::image::Images;
use crate::io::{Completion, Errno, Io, Op, OpToken, Outcome, Part};
use crate::iscsi::pdu::scsi_command::TaskAttribute;
use crate::iscsi::session::TaskId;
use crate::pending::Area;
use crate::plan::FileSlot;
use crate::scsi::{
    Device, DeviceConfig, DeviceError, InitiatorPort, Lun, Nexus, UnitConfig, UnitIdentity, UnitIndex,
};
use crate::units::{ByteOffset, Lba};

use super::executor::{Begun, Core, Request};
use super::reactor::TICK;
use super::target::Target;
use super::token::Token;
use super::{ConnKey, PORTAL_GROUP, UnitSeed};

const NAME: &str = "iqn.2026-11.io.goldrush:solo";
const NEXUS: Nexus = Nexus(0);
/// Additional sense of a write for which the file system has no room: SPC-6, space allocation failed write protect.
const SPACE_ALLOCATION_FAILED: (u8, u8) = (0x27, 0x07);

/// What it is made of. Units are LUNs 0, 1, 2 ...; `layer_files` has one entry for each layer of `images`.
#[derive(Debug)]
pub struct SoloSeed<I: Io> {
    pub io: I,
    pub pool: Pool,
    pub images: Images,
    pub layer_files: Vec<FileSlot>,
    pub units: Vec<UnitSeed>,
    pub journal: Option<Area>,
}

/// Why a command or a plain operation did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SoloFault {
    #[error("no space is left on the file system")]
    NoSpace,
    #[error("a command ended with the additional sense {0:02X}h/{1:02X}h")]
    Sense(u8, u8),
    #[error("a file operation failed: {0}")]
    File(Errno),
    #[error("a file took only a part of a write")]
    Short,
}

/// Units without a network.
#[derive(Debug)]
pub struct Solo<I: Io> {
    core: Core,
    io: I,
    completions: Vec<Completion>,
    next_tick: Instant,
    next_id: u16,
    running: u32,
    ended: u32,
    fault: Option<SoloFault>,
}

impl<I: Io> Solo<I> {
    /// # Errors
    /// When there are more units than a target has.
    pub fn new(seed: SoloSeed<I>) -> Result<Self, DeviceError> {
        // Of no frames: nothing is cached, and an empty mapping always fits.
        let golden = Golden::new(0, false).unwrap_or_else(|error| unreachable!("{error}"));
        let cache = GoldenCache::new(Arc::new(golden), 0);
        let mut core = Core::new(seed.pool, cache, seed.images);
        core.layers = seed.layer_files.iter().map(|file| super::commit::LayerWork::new(*file)).collect();
        core.journal = seed.journal;
        let luns = (0..seed.units.len() as u32).collect();
        core.targets.push(Target::new(NAME.to_owned(), device(&seed.units)?, luns));
        for unit in &seed.units {
            core.layers[unit.leaf.0 as usize].records.durability = unit.durability;
        }
        let units = (0..).map(UnitIndex).zip(seed.units);
        for (place, unit) in units {
            core.add_lun(unit, 0, place);
        }
        let now = seed.io.now();
        core.now = now;
        Ok(Self {
            core,
            io: seed.io,
            completions: Vec::with_capacity(1024),
            next_tick: now.after(TICK),
            next_id: 0,
            running: 0,
            ended: 0,
            fault: None,
        })
    }

    /// Begins a write of `data`, whole blocks, to unit `lun`. False: there is no room for it now, take a turn.
    pub fn write(&mut self, lun: u8, at: Lba, data: &[u8]) -> bool {
        let block = self.core.luns.get(usize::from(lun)).map_or(512, |unit| unit.block_size.bytes());
        let mut cdb = [0; 16];
        cdb[0] = 0x8A;
        cdb[2..10].copy_from_slice(&at.0.to_be_bytes());
        cdb[10..14].copy_from_slice(&(data.len() as u32 / block).to_be_bytes());
        self.begin(lun, cdb, data)
    }

    /// Begins a SYNCHRONIZE CACHE of all of unit `lun`, as [`Self::write`].
    pub fn flush(&mut self, lun: u8) -> bool {
        let mut cdb = [0; 16];
        cdb[0] = 0x35;
        self.begin(lun, cdb, &[])
    }

    fn begin(&mut self, lun: u8, cdb: [u8; 16], data: &[u8]) -> bool {
        self.next_id = self.next_id.wrapping_add(1);
        let request = Request {
            conn: ConnKey::from_parts(0, 0),
            id: TaskId { index: self.next_id, generation: 0 },
            target: 0,
            nexus: NEXUS,
            lun_field: lun_field(lun),
            cdb,
            attribute: TaskAttribute::Simple,
            read_len: 0,
            write_len: data.len() as u32,
            since: self.core.now,
        };
        match self.core.begin(&request) {
            Begun::Busy => return false,
            Begun::Running(_) => {}
            Begun::NeedsData { task, .. } => {
                if let Some(task) = self.core.tasks.get_mut(task) {
                    task.fill_out(0, data);
                }
                self.core.data_complete(task, data.len() as u32);
            }
        }
        self.running += 1;
        true
    }

    /// Begins a write of the first `len` bytes of `buf` to a file of the ring that belongs to no unit.
    pub fn plain_write(&mut self, file: FileSlot, offset: ByteOffset, buf: &BufRef, len: u32) {
        let part = Part { buf: buf.clone(), start: 0, len };
        self.core.ops.push((PLAIN, Op::Write { file, offset, part }));
        self.running += 1;
    }

    /// Begins an fdatasync of a file, as [`Self::plain_write`].
    pub fn plain_flush(&mut self, file: FileSlot) {
        self.core.ops.push((PLAIN, Op::Sync { file }));
        self.running += 1;
    }

    /// Commands and plain operations that have begun and not ended.
    pub fn running(&self) -> u32 {
        self.running
    }

    /// Hands everything begun to the ring, waits for at least one completion when something runs, and goes on with what
    /// that allows. How many commands and operations have ended.
    ///
    /// # Errors
    /// The first that failed, once.
    pub fn turn(&mut self) -> Result<u32, SoloFault> {
        self.work();
        if self.running > 0 {
            let mut completions = core::mem::take(&mut self.completions);
            self.io.wait(Some(self.next_tick), &mut completions);
            self.core.now = self.io.now();
            for completion in completions.drain(..) {
                self.complete(completion);
            }
            self.completions = completions;
            self.work();
        }
        match self.fault.take() {
            Some(fault) => Err(fault),
            None => Ok(core::mem::take(&mut self.ended)),
        }
    }

    /// Turns until nothing runs.
    ///
    /// # Errors
    /// As [`Self::turn`].
    pub fn settle(&mut self) -> Result<(), SoloFault> {
        while self.running > 0 {
            self.turn()?;
        }
        Ok(())
    }

    fn complete(&mut self, completion: Completion) {
        match Token::decode(completion.token) {
            Some(token) => self.core.file_op_done(token, completion.outcome),
            None => self.plain_done(completion.outcome),
        }
    }

    fn plain_done(&mut self, outcome: Outcome) {
        let result = match outcome {
            Outcome::Wrote { result: Ok(moved), part } if moved == part.len => Ok(()),
            Outcome::Wrote { result: Ok(_), .. } => Err(SoloFault::Short),
            Outcome::Wrote { result: Err(error), .. } | Outcome::Done { result: Err(error) } => {
                Err(SoloFault::File(error))
            }
            _ => Ok(()),
        };
        self.note_end(result);
    }

    fn note_end(&mut self, result: Result<(), SoloFault>) {
        self.running -= 1;
        self.ended += 1;
        if let Err(fault) = result {
            self.fault.get_or_insert(fault);
        }
    }

    /// What a shard does in a turn, but for connections.
    fn work(&mut self) {
        self.core.run_ready();
        let mut finished = core::mem::take(&mut self.core.finished);
        for done in finished.drain(..) {
            let sense = self.core.tasks.get(done.task).and_then(|task| task.sense);
            self.core.release(done.task);
            self.note_end(match sense.map(|sense| (sense.asc, sense.ascq)) {
                None => Ok(()),
                Some(SPACE_ALLOCATION_FAILED) => Err(SoloFault::NoSpace),
                Some((asc, ascq)) => Err(SoloFault::Sense(asc, ascq)),
            });
        }
        self.core.finished = finished;
        self.core.commit_when_crowded();
        self.core.retry_batches();
        if self.core.now >= self.next_tick {
            self.core.commit_old_records();
            self.next_tick = self.core.now.after(TICK);
        }
        for (token, op) in self.core.ops.drain(..) {
            self.io.submit(token, op);
        }
    }
}

/// No token of the executor.
const PLAIN: OpToken = OpToken(0);

/// Peripheral device addressing (SAM-6, 4.7.7.2).
fn lun_field(lun: u8) -> [u8; 8] {
    [0, lun, 0, 0, 0, 0, 0, 0]
}

fn device(units: &[UnitSeed]) -> Result<Device, DeviceError> {
    let target_name = NAME.to_owned();
    let config = |(lun, unit): (u16, &UnitSeed)| UnitConfig {
        identity: UnitIdentity {
            target_name: target_name.clone(),
            lun: Lun::new(lun).unwrap_or(Lun::ZERO),
            serial: None,
        },
        block_size: unit.block_size,
        blocks: unit.chain.sectors().0 / unit.block_size.sectors(),
        physical_exponent: 0,
        read_only: !unit.writable,
        thin: true,
        removable: false,
        write_same_to_end: false,
        kept: None,
    };
    let configs = (0..).zip(units).map(config).collect();
    let mut device = Device::new(DeviceConfig {
        target_name: target_name.clone(),
        portal_group: PORTAL_GROUP,
        units: configs,
    })?;
    device.attach(NEXUS, InitiatorPort { name: NAME.to_owned(), isid: [0; 6] })?;
    for lun in 0..units.len() as u8 {
        // Takes the unit attention of power-on.
        device.plan(NEXUS, lun_field(lun), &[0; 6]);
    }
    Ok(device)
}
