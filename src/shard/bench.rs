//! A bench for the executor's tests: one unit on a raw file in memory, commands in, replies out.
//!
//! Knows the operations of files. Does not know sessions or sockets: data-out is filled in at once.

use std::sync::Arc;

use crate::buf::{Pool, PoolConfig};
use crate::cache::{Golden, GoldenCache};
use crate::image::{Chain, Images, Layer};
use crate::io::{Op, OpToken};
use crate::iscsi::params::{Isid, Tsih};
use crate::iscsi::pdu::scsi_command::TaskAttribute;
use crate::iscsi::session::TaskId;
use crate::plan::{FileSlot, LayerId};
use crate::scsi::{
    Device, DeviceConfig, InitiatorPort, KeptUnit, Lun, Nexus, UnitConfig, UnitIdentity, UnitIndex,
};
use crate::slab::Key;
use crate::units::{BlockSize, SECTOR_BYTES, SectorCount};
use crate::vhd::create::{BLOCK_BYTES_MIN, NewDisk, NewKind, create};
use crate::vhd::{OpenMode, open_with};

use super::ConnKey;
use super::executor::{Begun, Core, Request, TaskKey};
use super::lun_state::{BootWatch, LunState};
use super::target::{SessionEntry, Target};
use super::token::{Kind, Token};

const SECTORS: u64 = 1024;
const NAME: &str = "iqn.2026-11.io.goldrush:bench";

pub(super) struct Bench {
    pub(super) core: Core,
    pub(super) disk: Vec<u8>,
    next_id: u16,
    /// Of the commands that are begun.
    pub(super) attribute: TaskAttribute,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with_kept(KeptUnit::default())
    }

    /// One of two shards, each with a target of its own, in which the same initiator has a session.
    pub(super) fn shard(number: u16) -> Self {
        let layer = Layer::raw(FileSlot(0), SectorCount(SECTORS), true);
        let disk = vec![0; (SECTORS * SECTOR_BYTES) as usize];
        let mut bench = Self::on(&format!("{NAME}-{number}"), layer, disk, KeptUnit::default());
        bench.core.errands.shard = super::ShardId(number);
        bench.core.errands.shards = 2;
        bench.core.luns[0].born = 1;
        bench.core.targets[0].sessions.push(SessionEntry {
            session: Key::from_parts(0, 0),
            initiator: "iqn.2026-11.example:a".into(),
            isid: Isid([0; 6]),
            tsih: Tsih(1),
            nexus: Nexus(0),
        });
        bench
    }

    /// With what its unit remembers.
    pub(super) fn with_kept(kept: KeptUnit) -> Self {
        let layer = Layer::raw(FileSlot(0), SectorCount(SECTORS), true);
        Self::on(NAME, layer, vec![0; (SECTORS * SECTOR_BYTES) as usize], kept)
    }

    /// Its unit is an empty dynamic VHD without a journal: a first write waits for a commit.
    pub(super) fn on_vhd() -> Self {
        let kind = NewKind::Dynamic { block_size: BLOCK_BYTES_MIN };
        let unique_id = uuid::Uuid::from_u128(1);
        let new = NewDisk { kind, sectors: SectorCount(SECTORS), unique_id, timestamp: 1 };
        let image = create(&new).unwrap();
        let mut disk = vec![0; image.len as usize];
        for (offset, bytes) in &image.writes {
            disk[*offset as usize..*offset as usize + bytes.len()].copy_from_slice(bytes);
        }
        let read = |offset: u64, bytes: &mut [u8]| {
            bytes.copy_from_slice(&disk[offset as usize..offset as usize + bytes.len()]);
            Ok::<(), core::convert::Infallible>(())
        };
        let image = open_with(disk.len() as u64, OpenMode::Writable, read).unwrap();
        Self::on(NAME, Layer::vhd(FileSlot(0), image), disk, KeptUnit::default())
    }

    fn on(name: &str, layer: Layer, disk: Vec<u8>, kept: KeptUnit) -> Self {
        let pool = Pool::new(PoolConfig { chunks: 300, smalls: 64, huge_pages: false }).unwrap();
        let cache = GoldenCache::new(Arc::new(Golden::new(1, false).unwrap()), 0);
        let mut images = Images::new();
        let leaf = images.add(layer);
        let chain = Chain::new(&images, vec![leaf]).unwrap();
        let mut core = Core::new(pool, cache, images);
        core.layers.push(super::commit::LayerWork::new(FileSlot(0)));
        core.targets.push(Target::new(name.into(), device(name, kept), vec![0]));
        core.luns.push(LunState {
            target: 0,
            unit: UnitIndex(0),
            ends: false,
            born: 0,
            chain,
            block_size: BlockSize::B512,
            leaf,
            leaf_file: FileSlot(0),
            writable: true,
            erased: false,
            order: super::order::Order::default(),
            turns: super::turns::Turns::default(),
            streams: super::read_ahead::Streams::default(),
            rods: super::rods::Rods::default(),
            boot: BootWatch::default(),
        });
        Self { core, disk, next_id: 0, attribute: TaskAttribute::Simple }
    }

    /// Begins a command; its data-out, all of it, is there at once.
    pub(super) fn begin(&mut self, cdb: &[u8], data_out: &[u8], read_len: u32) -> TaskKey {
        let mut padded = [0; 16];
        padded[..cdb.len()].copy_from_slice(cdb);
        self.next_id += 1;
        let request = Request {
            since: self.core.now,
            conn: ConnKey::from_parts(0, 0),
            id: TaskId { index: self.next_id, generation: 0 },
            target: 0,
            nexus: Nexus(0),
            lun_field: [0; 8],
            cdb: padded,
            attribute: self.attribute,
            read_len,
            write_len: data_out.len() as u32,
        };
        match self.core.begin(&request) {
            Begun::Busy => panic!("the bench has no room"),
            Begun::Running(key) => key,
            Begun::NeedsData { task, .. } => {
                self.core.tasks.get_mut(task).unwrap().fill_out(0, data_out);
                self.core.data_complete(task, data_out.len() as u32);
                task
            }
        }
    }

    /// The operations given to the ring since the last call.
    pub(super) fn ops(&mut self) -> Vec<(OpToken, Op)> {
        self.core.run_ready();
        core::mem::take(&mut self.core.ops)
    }

    /// Does an operation and lets the executor go on.
    pub(super) fn complete(&mut self, (token, op): (OpToken, Op)) {
        let token = Token::decode(token).unwrap();
        if token.kind == Kind::Flush {
            self.core.flushed(LayerId(token.index), Ok(()));
            self.core.run_ready();
            return;
        }
        if token.kind == Kind::Meta {
            self.complete_meta(token, op);
            self.core.run_ready();
            return;
        }
        let key = token.key(&self.core.tasks).unwrap();
        match op {
            Op::Read { offset, mut buf, start, len, .. } => {
                let (at, start, len) = (offset.0 as usize, start as usize, len as usize);
                buf.as_mut_slice()[start..start + len].copy_from_slice(&self.disk[at..at + len]);
                self.core.read_done(key, token.part, Ok(len as u32), buf);
            }
            Op::Write { offset, part, .. } => {
                let bytes = &part.buf.as_slice()[part.start as usize..(part.start + part.len) as usize];
                self.disk[offset.0 as usize..offset.0 as usize + bytes.len()].copy_from_slice(bytes);
                self.core.write_done(key, token.part, Ok(part.len), part);
            }
            Op::PunchHole { offset, len, .. } => {
                self.disk[offset.0 as usize..(offset.0 + len) as usize].fill(0);
                self.core.control_done(key, token.part, Ok(()));
            }
            other => panic!("no operation of a file: {other:?}"),
        }
        self.core.run_ready();
    }

    fn complete_meta(&mut self, token: Token, op: Op) {
        match op {
            Op::Write { offset, part, .. } => {
                let bytes = &part.buf.as_slice()[part.start as usize..(part.start + part.len) as usize];
                let end = offset.0 as usize + bytes.len();
                self.disk.resize(self.disk.len().max(end), 0);
                self.disk[offset.0 as usize..end].copy_from_slice(bytes);
                self.core.meta_written(token, Ok(part.len), part);
            }
            Op::SetLen { len, .. } => {
                self.disk.resize(len as usize, 0);
                self.core.meta_done(token, Ok(()));
            }
            Op::PunchHole { offset, len, .. } => {
                let end = self.disk.len().min((offset.0 + len) as usize);
                self.disk[offset.0 as usize..end].fill(0);
                self.core.meta_done(token, Ok(()));
            }
            other => panic!("no operation of metadata: {other:?}"),
        }
    }

    /// Does everything there is to do.
    pub(super) fn settle(&mut self) {
        loop {
            let ops = self.ops();
            if ops.is_empty() {
                return;
            }
            ops.into_iter().for_each(|op| self.complete(op));
        }
    }

    /// The same, and whatever is to be remembered is.
    pub(super) fn settle_keeping(&mut self) {
        self.settle();
        self.core.now = self.core.now.after(crate::clock::Duration::from_secs(3600));
        self.core.wake_paced();
        self.core.run_ready();
        self.settle();
        self.core.keep_all();
        self.core.run_ready();
        self.settle();
        if !self.core.unkept.is_empty() || !self.core.paced.is_empty() {
            self.settle_keeping();
        }
    }

    /// How a finished command ended.
    pub(super) fn reply(&self, key: TaskKey) -> Option<Ended> {
        self.core.finished.iter().find(|done| done.task == key)?;
        let task = self.core.tasks.get(key)?;
        let data = task.in_parts(0, task.in_len());
        let bytes = data.flat_map(|part| {
            part.buf.as_slice()[part.start as usize..(part.start + part.len) as usize].to_vec()
        });
        let sense = task.sense.map(|sense| (sense.asc, sense.ascq));
        Some(Ended { status: task.status.code(), sense, data: bytes.collect() })
    }
}

/// Status, additional sense code with its qualifier, and data-in of a finished command.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) status: u8,
    pub(super) sense: Option<(u8, u8)>,
    pub(super) data: Vec<u8>,
}

fn device(name: &str, kept: KeptUnit) -> Device {
    let target_name = name.to_owned();
    let unit = UnitConfig {
        identity: UnitIdentity { target_name: target_name.clone(), lun: Lun::ZERO, serial: None },
        block_size: BlockSize::B512,
        blocks: SECTORS,
        physical_exponent: 0,
        read_only: false,
        thin: true,
        removable: false,
        write_same_to_end: false,
        kept: Some(kept),
    };
    let mut device = Device::new(DeviceConfig { target_name, portal_group: 1, units: vec![unit] }).unwrap();
    device.attach(Nexus(0), InitiatorPort { name: "iqn.2026-11.example:a".into(), isid: [0; 6] }).unwrap();
    // Takes the unit attention of power-on.
    device.plan(Nexus(0), [0; 8], &[0; 6]);
    device
}
