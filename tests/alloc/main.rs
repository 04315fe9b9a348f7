//! Steady-state READ and WRITE allocate nothing: a real shard on a real ring, watched by a counting allocator.
//!
//! Knows the shard's thread and what it asks of the heap once everything has grown. Does not know why.
//!
//! `GOLDRUSH_ALLOC_TRACE=1` prints where the first allocations come from.

#[allow(unsafe_code)] // UNSAFETY: an allocator is an unsafe trait.
mod counting;
mod refusal;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use goldrush::buf::{Pool, PoolConfig};
use goldrush::image::{Chain, Images, Layer};
use goldrush::io::{ListenerSlot, Waker};
use goldrush::iscsi::chap::AuthPolicy;
use goldrush::plan::FileSlot;
use goldrush::scsi::{Device, DeviceConfig, Lun, UnitConfig, UnitIdentity};
use goldrush::shard::{
    Admission, Directory, DirectoryEntry, Durability, Mailbox, Message, NoKeeper, Peer, RateLimits, Shard,
    ShardConfig, ShardId, ShardSeed, TargetSeed, UnitSeed,
};
use goldrush::units::{BlockSize, SectorCount};
use goldrush::uring::{UringConfig, UringIo};
use goldrush::vhd::create::{NewDisk, NewKind, ParentRef, create};
use goldrush::vhd::{OpenMode, VhdImage, open_with};
use uuid::Uuid;

const TARGET: &str = "iqn.2026-11.io.goldrush:alloc";
const SECTORS: u64 = 64 * 1024;
const BLOCK: u32 = 2 << 20;

fn image(path: &std::path::Path, kind: NewKind, id: u128) -> File {
    let disk = NewDisk { kind, sectors: SectorCount(SECTORS), unique_id: Uuid::from_u128(id), timestamp: 1 };
    let new = create(&disk).unwrap();
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    file.set_len(new.len).unwrap();
    for (offset, bytes) in &new.writes {
        file.write_all_at(bytes, *offset).unwrap();
    }
    file
}

fn open(file: &File, mode: OpenMode) -> VhdImage {
    open_with(file.metadata().unwrap().len(), mode, |offset, bytes| file.read_exact_at(bytes, offset))
        .unwrap()
}

/// A child over a golden image whose every sector holds its number.
fn files(folder: &std::path::Path) -> Vec<File> {
    let golden = image(&folder.join("golden.vhd"), NewKind::Fixed, 1);
    let mut data = vec![0; SECTORS as usize * 512];
    for (number, sector) in data.chunks_exact_mut(512).enumerate() {
        sector[..8].copy_from_slice(&(number as u64).to_be_bytes());
    }
    golden.write_all_at(&data, 0).unwrap();
    let parent = ParentRef {
        unique_id: Uuid::from_u128(1),
        timestamp: 1,
        relative: "golden.vhd".to_owned(),
        absolute: None,
    };
    vec![image(&folder.join("child.vhd"), NewKind::Differencing { block_size: BLOCK, parent }, 2), golden]
}

type Control = (Peer<UringIo>, std::thread::JoinHandle<()>);

/// A shard on a thread of its own; `None` where the kernel gives no ring.
fn serve(files: Vec<File>, listener: TcpListener) -> Option<Control> {
    let (send, receive) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let pool = Pool::new(PoolConfig { chunks: 1024, smalls: 1024, huge_pages: false }).unwrap();
        let child = open(&files[0], OpenMode::Writable);
        let golden = open(&files[1], OpenMode::ReadOnly);
        let config = UringConfig { files_max: 64, sockets_max: 64, ..UringConfig::default() };
        let (io, waker) =
            match UringIo::new(&config, &pool, files.into_iter().map(Arc::new).collect(), vec![listener]) {
                Ok(made) => made,
                Err(error) => {
                    eprintln!("SKIPPED: no ring here: {error}");
                    return;
                }
            };
        let mailbox = Arc::new(Mailbox::new(8));
        let waker: Arc<dyn Waker> = Arc::new(waker);
        let peer = Peer::new(Arc::clone(&mailbox), waker);
        send.send(peer.clone()).unwrap();
        let mut shard = shard(io, pool, child, golden, mailbox, peer);
        counting::watch_this_thread(true);
        shard.run();
        counting::watch_this_thread(false);
    });
    receive.recv().ok().map(|peer| (peer, thread))
}

fn shard(
    io: UringIo,
    pool: Pool,
    child: VhdImage,
    golden: VhdImage,
    mailbox: Arc<Mailbox<UringIo>>,
    peer: Peer<UringIo>,
) -> Shard<UringIo> {
    let mut images = Images::new();
    let leaf = images.add(Layer::vhd(FileSlot(0), child));
    let base = images.add(Layer::vhd(FileSlot(1), golden));
    let chain = Chain::new(&images, vec![leaf, base]).unwrap();
    let lun = Lun::new(0).unwrap();
    let unit = UnitConfig {
        identity: UnitIdentity { target_name: TARGET.to_owned(), lun, serial: None },
        block_size: BlockSize::B512,
        blocks: SECTORS,
        physical_exponent: 3,
        read_only: false,
        thin: true,
        removable: false,
        write_same_to_end: false,
        kept: None,
    };
    let device =
        Device::new(DeviceConfig { target_name: TARGET.to_owned(), portal_group: 1, units: vec![unit] });
    let unit = UnitSeed {
        chain,
        block_size: BlockSize::B512,
        leaf,
        leaf_file: FileSlot(0),
        writable: true,
        durability: Durability::GroupCommit,
    };
    let mut directory = Directory::default();
    let entry = DirectoryEntry {
        owner: ShardId(0),
        access: Admission::default(),
        auth: AuthPolicy::None,
        redirect: None,
        limits: RateLimits::default(),
        portals: None,
        units: Vec::new(),
    };
    directory.targets.insert(TARGET.to_owned(), entry);
    // Fewer frames than the golden image has: hits, misses and evictions.
    let cache = Arc::new(goldrush::cache::Golden::new(64, false).unwrap());
    let number = cache.register(SECTORS * 512).unwrap();
    Shard::new(ShardSeed {
        config: ShardConfig::new(ShardId(0), [7; 32]),
        io,
        pool,
        golden: cache,
        golden_files: vec![(FileSlot(1), number, FileSlot(1))],
        layer_files: images.files().collect(),
        images,
        targets: vec![TargetSeed { name: TARGET.to_owned(), device: device.unwrap(), units: vec![unit] }],
        directory: Arc::new(directory),
        macs: Arc::default(),
        listeners: vec![ListenerSlot(0)],
        mailbox,
        peers: vec![peer],
        keeper: Box::new(NoKeeper),
        journal: None,
    })
}

/// The least of an initiator.
struct Initiator {
    stream: TcpStream,
    cmd_sn: u32,
    exp_stat_sn: u32,
}

impl Initiator {
    fn log_in(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut this = Self { stream, cmd_sn: 1, exp_stat_sn: 0 };
        let keys = format!(
            "InitiatorName=iqn.2026-11.io.goldrush:test\0SessionType=Normal\0TargetName={TARGET}\0\
             InitialR2T=No\0ImmediateData=Yes\0MaxRecvDataSegmentLength=65536\0"
        );
        let mut bhs = [0; 48];
        (bhs[0], bhs[1]) = (0x43, 0x87);
        bhs[8] = 0x80;
        bhs[24..28].copy_from_slice(&1_u32.to_be_bytes());
        this.send(bhs, keys.as_bytes());
        let answer = this.receive();
        assert_eq!((answer[0] & 0x3F, answer[36], answer[1] & 0x83), (0x23, 0, 0x83));
        this
    }

    fn send(&mut self, mut bhs: [u8; 48], data: &[u8]) {
        bhs[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
        bhs[28..32].copy_from_slice(&self.exp_stat_sn.to_be_bytes());
        let mut bytes = bhs.to_vec();
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        self.stream.write_all(&bytes).unwrap();
    }

    /// The header of the next PDU; its data is passed over.
    fn receive(&mut self) -> [u8; 48] {
        let mut bhs = [0; 48];
        self.stream.read_exact(&mut bhs).unwrap();
        let len = u32::from_be_bytes([0, bhs[5], bhs[6], bhs[7]]).next_multiple_of(4);
        let mut data = vec![0; len as usize];
        self.stream.read_exact(&mut data).unwrap();
        if bhs[0] & 0x3F != 0x25 || bhs[1] & 1 != 0 {
            self.exp_stat_sn = u32::from_be_bytes([bhs[24], bhs[25], bhs[26], bhs[27]]).wrapping_add(1);
        }
        bhs
    }

    fn command(&mut self, write: bool, lba: u32, blocks: u16) {
        let bytes = u32::from(blocks) * 512;
        let mut bhs = [0; 48];
        (bhs[0], bhs[1]) = (1, if write { 0xA1 } else { 0xC1 });
        bhs[16..20].copy_from_slice(&self.cmd_sn.to_be_bytes());
        bhs[20..24].copy_from_slice(&bytes.to_be_bytes());
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        bhs[32] = if write { 0x2A } else { 0x28 };
        bhs[34..38].copy_from_slice(&lba.to_be_bytes());
        bhs[39..41].copy_from_slice(&blocks.to_be_bytes());
        self.cmd_sn += 1;
        let data = vec![0xA5; if write { bytes as usize } else { 0 }];
        self.send(bhs, &data);
    }

    /// Waits until `count` commands are answered; true when all are GOOD.
    fn answers(&mut self, mut count: u32) -> bool {
        let mut good = true;
        while count > 0 {
            let bhs = self.receive();
            let ends = bhs[0] & 0x3F == 0x21 || (bhs[0] & 0x3F == 0x25 && bhs[1] & 1 != 0);
            if ends {
                good &= bhs[3] == 0;
                count -= 1;
            }
        }
        good
    }

    /// `rounds` of eight commands at once, over the sectors `from..to`.
    fn work(&mut self, write: bool, rounds: u32, from: u32, to: u32, blocks: u16) -> bool {
        let (mut at, mut good) = (from, true);
        for _ in 0..rounds {
            for _ in 0..8 {
                self.command(write, at, blocks);
                at += u32::from(blocks);
                if at + u32::from(blocks) > to {
                    at = from;
                }
            }
            good &= self.answers(8);
        }
        good
    }
}

/// Allocations of the shard's thread while `work` runs.
fn watch(work: impl FnOnce() -> bool) -> u64 {
    counting::start();
    let good = work();
    let count = counting::stop();
    assert!(good, "a command failed");
    count
}

#[test]
fn reads_and_writes_allocate_nothing() {
    counting::trace(std::env::var_os("GOLDRUSH_ALLOC_TRACE").is_some());
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let Some((peer, thread)) = serve(files(folder.path()), listener) else { return };
    let mut initiator = Initiator::log_in(port);
    // The unit attention of a new session.
    initiator.command(false, 0, 1);
    initiator.answers(1);
    let child = (8 * 4096, 10 * 4096);
    // Blocks of the child are made, every vector grows.
    assert!(initiator.work(true, 128, child.0, child.1, 8));
    let warm_up = |initiator: &mut Initiator| {
        initiator.work(false, 300, 0, 32 * 1024, 8)
            && initiator.work(false, 300, child.0, child.1, 8)
            && initiator.work(true, 300, child.0, child.1, 8)
            && initiator.work(false, 40, 0, 32 * 1024, 128)
    };
    assert!(warm_up(&mut initiator));
    let golden = watch(|| initiator.work(false, 250, 0, 32 * 1024, 8));
    let present = watch(|| initiator.work(false, 250, child.0, child.1, 8));
    let written = watch(|| initiator.work(true, 250, child.0, child.1, 8));
    let long = watch(|| initiator.work(false, 40, 0, 32 * 1024, 128));
    // The canary: a login allocates, and is seen.
    let login = watch(|| {
        Initiator::log_in(port);
        true
    });
    drop(initiator);
    let _ = peer.send(Message::Stop);
    thread.join().unwrap();
    assert!(login > 0, "the allocator counts nothing");
    assert_eq!(
        (golden, present, written, long),
        (0, 0, 0, 0),
        "allocations in 2000 reads of golden data, 2000 reads of child data, 2000 writes, 320 long reads"
    );
}
