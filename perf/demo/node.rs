//! One simulated diskless machine: boots, checks every byte it reads, and later looks for what it wrote.
//!
//! Knows sessions and the order of commands. Does not know the server behind the address.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::boot::Stage;
use super::content::Disk;
use crate::fail::{Result, failure};
use crate::initiator::{self, Command, Endpoint, Options, Session};
use crate::scsi::{self, SECTOR};
use crate::trace::{Kind, Op};

/// Commands that an operating system keeps under way.
const SYSTEM_DEPTH: usize = 8;

#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    pub(crate) loader: Duration,
    pub(crate) system: Duration,
    pub(crate) reads: u64,
    pub(crate) read_bytes: u64,
    pub(crate) writes: u64,
    pub(crate) write_bytes: u64,
    pub(crate) flushes: u64,
    pub(crate) wrong_sectors: u64,
    /// Bytes that were read back after the server was started again.
    pub(crate) kept_bytes: u64,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) number: usize,
    pub(crate) target: String,
    pub(crate) lun: u16,
    pub(crate) disk: Disk,
    pub(crate) tally: Tally,
}

/// A command under way.
#[derive(Debug, Clone, Copy)]
struct Pending {
    op: Op,
    seed: u64,
}

impl Node {
    fn options(&self, kind: Kind) -> Options {
        let number = (self.number as u16).to_be_bytes();
        match kind {
            Kind::Loader => Options {
                initiator_name: format!("iqn.2026-11.io.goldrush:loader-{:03}", self.number),
                isid: [0x40, 0, 0x27, 0x23, number[0], number[1]],
                max_recv_segment: 8192,
                max_burst: 262_144,
                first_burst: 65_536,
                ..Options::default()
            },
            Kind::System => Options {
                initiator_name: format!("iqn.2026-11.io.goldrush:system-{:03}", self.number),
                isid: [0, 0x02, 0x3d, 0, 0, 1],
                header_digest: self.number.is_multiple_of(2),
                data_digest: self.number.is_multiple_of(3),
                // Every fourth machine has a driver that sends nothing unasked.
                initial_r2t: self.number.is_multiple_of(4),
                immediate_data: !self.number.is_multiple_of(4),
                ..Options::default()
            },
        }
    }

    fn open(&self, address: SocketAddr, kind: Kind) -> Result<Session> {
        let endpoint = Endpoint { address, target: self.target.clone(), lun: self.lun };
        let options = self.options(kind);
        let mut session = initiator::open(&endpoint, &options)?;
        let agreed = session.agreed();
        if options.header_digest && !agreed.header_digest || options.data_digest && !agreed.data_digest {
            return Err(failure!(
                "{} refuses the digests that node {} wants: look at its log",
                self.target,
                self.number
            ));
        }
        session.ready()?;
        Ok(session)
    }

    /// Boots through all stages. `done` is told after each command.
    pub(crate) fn boot(&mut self, address: SocketAddr, stages: &[Stage], done: impl Fn()) -> Result<()> {
        for stage in stages {
            let started = Instant::now();
            let mut session = self.open(address, stage.kind)?;
            let capacity = session.capacity()?;
            if u64::from(capacity.sector_len) != SECTOR {
                return Err(failure!(
                    "{} has sectors of {} bytes: 512 are due",
                    self.target,
                    capacity.sector_len
                ));
            }
            let depth = if stage.kind == Kind::Loader { 1 } else { SYSTEM_DEPTH };
            self.drive(&mut session, &stage.ops, depth, &done)?;
            match stage.kind {
                // A ROM hands over to what it loaded and never says goodbye.
                Kind::Loader => {
                    drop(session);
                    self.tally.loader += started.elapsed();
                }
                Kind::System => {
                    session.logout()?;
                    self.tally.system += started.elapsed();
                }
            }
        }
        Ok(())
    }

    fn drive(&mut self, session: &mut Session, ops: &[Op], depth: usize, done: &impl Fn()) -> Result<()> {
        let mut pending: HashMap<u32, Pending> = HashMap::new();
        for &op in ops {
            while session.in_flight() >= depth || pending.values().any(|other| op.conflicts(other.op)) {
                self.finish(session, &mut pending, done)?;
            }
            self.start(session, &mut pending, op)?;
        }
        while session.in_flight() > 0 {
            self.finish(session, &mut pending, done)?;
        }
        Ok(())
    }

    fn start(&mut self, session: &mut Session, pending: &mut HashMap<u32, Pending>, op: Op) -> Result<()> {
        let mut seed = 0;
        let command = match op {
            Op::Read { lba, sectors } => {
                Command::Read { cdb: scsi::transfer(false, lba, sectors), len: sectors * SECTOR as u32 }
            }
            Op::Write { lba, sectors } => {
                let (own, data) = self.disk.compose(lba, u64::from(sectors));
                seed = own;
                Command::Write { cdb: scsi::transfer(true, lba, sectors), data }
            }
            Op::Flush => Command::Plain { cdb: scsi::synchronize_cache() },
        };
        let tag = session.start(command)?;
        pending.insert(tag, Pending { op, seed });
        Ok(())
    }

    fn finish(
        &mut self,
        session: &mut Session,
        pending: &mut HashMap<u32, Pending>,
        done: &impl Fn(),
    ) -> Result<()> {
        let ended = session.finish()?;
        let Some(Pending { op, seed }) = pending.remove(&ended.tag) else { return Ok(()) };
        if ended.status == scsi::CHECK_CONDITION && ended.sense.is_unit_attention() {
            return self.start(session, pending, op);
        }
        if ended.status != scsi::GOOD {
            return Err(failure!(
                "{} ended {op:?} with status {:#04x}, {}: look at its log",
                self.target,
                ended.status,
                ended.sense
            ));
        }
        done();
        match op {
            Op::Read { lba, sectors } => {
                self.tally.reads += 1;
                self.tally.read_bytes += ended.data.len() as u64;
                self.tally.wrong_sectors += self.disk.differences(lba, &ended.data);
                if ended.data.len() as u64 != u64::from(sectors) * SECTOR {
                    return Err(failure!(
                        "{} cut {op:?} to {} bytes: look at its log",
                        self.target,
                        ended.data.len()
                    ));
                }
            }
            Op::Write { lba, sectors } => {
                self.tally.writes += 1;
                self.tally.write_bytes += u64::from(sectors) * SECTOR;
                self.disk.written(lba, u64::from(sectors), seed);
            }
            Op::Flush => self.tally.flushes += 1,
        }
        Ok(())
    }

    /// Reads back everything this node wrote, in a new session.
    pub(crate) fn look_again(&mut self, address: SocketAddr) -> Result<()> {
        let mut session = self.open(address, Kind::System)?;
        for (lba, sectors) in self.disk.ranges() {
            let data = session.read(lba, sectors as u32)?;
            self.tally.kept_bytes += data.len() as u64;
            self.tally.wrong_sectors += self.disk.differences(lba, &data);
        }
        session.logout()
    }
}
