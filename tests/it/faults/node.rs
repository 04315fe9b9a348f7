//! A server of two targets in one shard, and the initiator of each: commands in, statuses out.
//!
//! Knows how a shard is put together and the PDUs of a few commands. Does not know what goes wrong (`disk_io`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use goldrush::buf::{Pool, PoolConfig};
use goldrush::cache::Golden;
use goldrush::image::{Chain, Images};
use goldrush::io::{ListenerSlot, Waker};
use goldrush::iscsi::chap::AuthPolicy;
use goldrush::limits;
use goldrush::pending::{Area, AreaHeader, LeafIdentity, LeafIndex, words_needed};
use goldrush::plan::{FileSlot, OpenMode};
use goldrush::scsi::{Device, DeviceConfig, Lun, UnitConfig, UnitIdentity};
use goldrush::shard::{
    Admission, Directory, DirectoryEntry, Durability, Mailbox, Message, NoKeeper, Peer, RateLimits, Shard,
    ShardConfig, ShardId, ShardSeed, TargetSeed, UnitSeed,
};
use goldrush::units::BlockSize;

use super::disk_io::{DiskIo, Shared};
use crate::blocking::open_layer;
use crate::sim_journal::Memory;

/// Records of the journal: so few that it is full at times.
const RECORDS: u32 = 12;

struct NobodysWaker;

impl Waker for NobodysWaker {
    fn wake(&self) {}
}

/// How a command ended: its status, the sense key with both codes, and its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub status: u8,
    pub sense: Option<(u8, u8, u8)>,
    pub data: Vec<u8>,
}

/// One session.
struct Session {
    socket: usize,
    cmd_sn: u32,
    exp_stat_sn: u32,
    rx: Vec<u8>,
    data: BTreeMap<u32, Vec<u8>>,
    ended: BTreeMap<u32, Ended>,
}

pub struct Node {
    world: Shared,
    shard: Shard<DiskIo>,
    peer: Peer<DiskIo>,
    /// What the journal leaves to the next process; `None`: there is none.
    pub memory: Option<Memory>,
    sessions: Vec<Session>,
}

fn name(index: usize) -> String {
    format!("iqn.2026-11.faults:{index}")
}

fn directory(targets: usize) -> Arc<Directory> {
    let mut directory = Directory { portals: vec![([10, 0, 0, 1], 3260).into()], ..Directory::default() };
    for index in 0..targets {
        let entry = DirectoryEntry {
            owner: ShardId(0),
            access: Admission::default(),
            auth: AuthPolicy::None,
            redirect: None,
            limits: RateLimits::default(),
            portals: None,
            units: Vec::new(),
        };
        directory.targets.insert(name(index), entry);
    }
    Arc::new(directory)
}

fn device(index: usize, block_size: BlockSize, sectors: u64) -> Device {
    let unit = UnitConfig {
        identity: UnitIdentity { target_name: name(index), lun: Lun::ZERO, serial: None },
        block_size,
        blocks: sectors / block_size.sectors(),
        physical_exponent: 0,
        read_only: false,
        thin: true,
        removable: false,
        write_same_to_end: false,
        kept: None,
    };
    Device::new(DeviceConfig { target_name: name(index), portal_group: 1, units: vec![unit] }).unwrap()
}

impl Node {
    /// The last file is the parent of all others, each of which is the leaf of a target.
    pub fn new(world: &Shared, journal: bool) -> Self {
        let mut images = Images::new();
        let count = world.borrow().files.len();
        let layers: Vec<_> = (0..count)
            .map(|slot| {
                let mode = if slot + 1 == count { OpenMode::ReadOnly } else { OpenMode::Writable };
                let mut file = world.borrow().files[slot].volatile.clone();
                images.add(open_layer(&mut file, FileSlot(slot as u32), mode).unwrap())
            })
            .collect();
        let golden = Arc::new(Golden::new(64, false).unwrap());
        let parent = FileSlot(count as u32 - 1);
        let number = golden.register(world.borrow().files[count - 1].volatile.len).unwrap();
        let leaves = count - 1;
        let area = journal.then(|| {
            let memory: Memory = (0..words_needed(leaves, RECORDS)).map(|_| AtomicU64::new(0)).collect();
            let leaf = |inode| LeafIdentity { device: 1, inode, unique_id: [3; 16] };
            let identities: Vec<_> = (0..leaves as u64).map(leaf).collect();
            let header = AreaHeader { boot_id: [0; 16], nonce: 7, records: RECORDS };
            (Area::new(Box::new(memory.clone()), &header, &identities).unwrap(), memory)
        });
        let (area, memory) = area.unzip();
        let targets = (0..leaves)
            .map(|index| {
                let chain = Chain::new(&images, vec![layers[index], layers[leaves]]).unwrap();
                let sectors = chain.sectors().0;
                let unit = UnitSeed {
                    chain,
                    block_size: BlockSize::B512,
                    leaf: layers[index],
                    leaf_file: FileSlot(index as u32),
                    writable: true,
                    durability: match journal {
                        true => Durability::Journal(LeafIndex(index as u32)),
                        false => Durability::GroupCommit,
                    },
                };
                let device = device(index, BlockSize::B512, sectors);
                TargetSeed { name: name(index), device, units: vec![unit] }
            })
            .collect();
        let mailbox = Arc::new(Mailbox::new(4));
        let peer = Peer::new(Arc::clone(&mailbox), Arc::new(NobodysWaker));
        let (chunks, smalls) = (limits::ADMIT_CHUNKS + 40, limits::ADMIT_SMALLS + 40);
        let config = PoolConfig { chunks, smalls, huge_pages: false };
        let mut shard = Shard::new(ShardSeed {
            config: ShardConfig::new(ShardId(0), [0; 32]),
            io: DiskIo::new(world.clone()),
            pool: Pool::new(config).unwrap(),
            golden,
            golden_files: vec![(parent, number, parent)],
            layer_files: images.files().collect(),
            images,
            targets,
            directory: directory(leaves),
            macs: Arc::default(),
            listeners: vec![ListenerSlot(0)],
            mailbox,
            peers: vec![peer.clone()],
            keeper: Box::new(NoKeeper),
            journal: area,
        });
        shard.start();
        let mut node = Self { world: world.clone(), shard, peer, memory, sessions: Vec::new() };
        node.turn();
        (0..leaves).for_each(|target| node.log_in(target));
        node
    }

    fn log_in(&mut self, target: usize) {
        let socket = self.world.borrow_mut().connect();
        self.turn();
        let (rx, data, ended) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        self.sessions.push(Session { socket, cmd_sn: 1, exp_stat_sn: 0, rx, data, ended });
        let keys = format!(
            "InitiatorName=iqn.2026-11.faults:initiator\0SessionType=Normal\0TargetName={}\0InitialR2T=No\0\
             ImmediateData=Yes\0MaxRecvDataSegmentLength=262144\0",
            name(target)
        );
        let mut bhs = [0; 48];
        (bhs[0], bhs[1], bhs[8], bhs[13]) = (0x43, 0x87, 0x80, target as u8);
        bhs[24..28].copy_from_slice(&1_u32.to_be_bytes());
        self.send(target, bhs, keys.as_bytes());
        while self.sessions[target].exp_stat_sn == 0 {
            self.turn();
        }
        // Takes the unit attention of power-on.
        let tag = self.command(target, &[0; 6], &[], 0);
        self.wait(target, tag);
    }

    fn send(&mut self, session: usize, mut bhs: [u8; 48], data: &[u8]) {
        let session = &mut self.sessions[session];
        bhs[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
        bhs[28..32].copy_from_slice(&session.exp_stat_sn.to_be_bytes());
        let mut bytes = bhs.to_vec();
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        self.world.borrow_mut().send(session.socket, bytes);
    }

    /// Sends a command with its data-out as immediate data; its tag.
    pub fn command(&mut self, session: usize, cdb: &[u8], data: &[u8], read_len: u32) -> u32 {
        let cmd_sn = self.sessions[session].cmd_sn;
        self.sessions[session].cmd_sn += 1;
        let mut bhs = [0; 48];
        let direction = if data.is_empty() { u8::from(read_len > 0) << 6 } else { 0x20 };
        (bhs[0], bhs[1]) = (1, 0x81 | direction);
        bhs[16..20].copy_from_slice(&cmd_sn.to_be_bytes());
        bhs[20..24].copy_from_slice(&read_len.max(data.len() as u32).to_be_bytes());
        bhs[24..28].copy_from_slice(&cmd_sn.to_be_bytes());
        bhs[32..32 + cdb.len()].copy_from_slice(cdb);
        self.send(session, bhs, data);
        cmd_sn
    }

    /// One turn of the shard, and what it has sent.
    pub fn turn(&mut self) {
        {
            let mut world = self.world.borrow_mut();
            world.now += 20_000;
            if world.is_quiet()
                && let Some(due) = self.shard.next_turn_due()
            {
                world.now = world.now.max(due.0);
            }
        }
        self.shard.turn();
        for session in &mut self.sessions {
            session.rx.extend(self.world.borrow_mut().take_answers(session.socket));
            session.receive();
        }
    }

    /// So much time goes by.
    pub fn pass(&mut self, seconds: u64) {
        let until = self.world.borrow().now + seconds * 1_000_000_000;
        while self.world.borrow().now < until || !self.world.borrow().is_quiet() {
            if self.world.borrow().is_quiet() {
                self.world.borrow_mut().now += 100_000_000;
            }
            self.turn();
        }
    }

    pub fn ended(&mut self, session: usize, tag: u32) -> Option<Ended> {
        self.sessions[session].ended.remove(&tag)
    }

    pub fn wait(&mut self, session: usize, tag: u32) -> Ended {
        for _ in 0..20_000 {
            if let Some(ended) = self.ended(session, tag) {
                return ended;
            }
            self.turn();
        }
        panic!("command {tag} of session {session} is never answered: {:?}", self.shard.load());
    }

    /// A stop in good order.
    pub fn stop(mut self) -> Option<Memory> {
        self.peer.send(Message::Stop);
        self.world.borrow_mut().wake();
        for _ in 0..20_000 {
            if self.shard.is_stopped() {
                return self.memory;
            }
            self.turn();
        }
        panic!("the shard does not stop: {:?}", self.shard.load());
    }
}

impl Session {
    fn receive(&mut self) {
        while let Some(bhs) = self.rx.first_chunk::<48>().copied() {
            let len = u32::from_be_bytes([0, bhs[5], bhs[6], bhs[7]]) as usize;
            let whole = 48 + len.next_multiple_of(4);
            if self.rx.len() < whole {
                return;
            }
            let pdu: Vec<u8> = self.rx.drain(..whole).collect();
            self.handle(&bhs, &pdu[48..48 + len]);
        }
    }

    fn handle(&mut self, bhs: &[u8; 48], data: &[u8]) {
        let word = |at: usize| u32::from_be_bytes(bhs[at..at + 4].try_into().unwrap());
        let (opcode, tag, has_status) = (bhs[0] & 0x3F, word(16), bhs[1] & 1 != 0);
        if opcode != 0x25 || has_status {
            self.exp_stat_sn = word(24).wrapping_add(1);
        }
        match opcode {
            0x25 => {
                self.data.entry(tag).or_default().extend(data);
                if has_status {
                    self.end(tag, bhs[3], None);
                }
            }
            0x21 => {
                let sense = data.get(2..).filter(|sense| sense.len() >= 14);
                self.end(tag, bhs[3], sense.map(|sense| (sense[2] & 0x0F, sense[12], sense[13])));
            }
            // Logins, pings and messages need no answer here.
            0x23 | 0x20 | 0x32 => {}
            other => panic!("nobody expects opcode {other:#x}"),
        }
    }

    fn end(&mut self, tag: u32, status: u8, sense: Option<(u8, u8, u8)>) {
        let data = self.data.remove(&tag).unwrap_or_default();
        self.ended.insert(tag, Ended { status, sense, data });
    }
}
