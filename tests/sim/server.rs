//! Shards over the simulated world, wired as `control::launch` wires real ones.
//!
//! Knows how a server is put together. Does not know what its initiators do.

use std::sync::Arc;

use goldrush::buf::{Pool, PoolConfig};
use goldrush::cache::{Golden, GoldenFile};
use goldrush::image::{Chain, Images, Layer};
use goldrush::io::ListenerSlot;
use goldrush::iscsi::chap::{AuthPolicy, Credentials, Secret};
use goldrush::limits;
use goldrush::pending::LeafIndex;
use goldrush::plan::{FileSlot, LayerId};
use goldrush::scsi::{Device, DeviceConfig, KeptUnit, Lun, UnitConfig, UnitIdentity};
use goldrush::shard::{
    Admission, Directory, DirectoryEntry, Durability, Keeper, Mailbox, Message, NamePattern, Peer, Sent,
    Shard, ShardConfig, ShardId, ShardLoad, ShardSeed, TargetSeed, UnitSeed,
};
use goldrush::units::BlockSize;
use goldrush::vhd::OpenMode;

use crate::board::{ChapPlan, TargetPlan};
use crate::images;
use crate::keeper::SimKeeper;
use crate::random::Rng;
use crate::sim_io::SimIo;
use crate::world::{Port, Shared};

/// Shards of a simulated server.
pub(crate) const SHARDS: usize = 2;

pub(crate) struct Server {
    pub(crate) shards: Vec<Shard<SimIo>>,
    pub(crate) peers: Vec<Peer<SimIo>>,
    pub(crate) keeper: SimKeeper,
    /// What a reload goes on from: the rules, and each shard's disks in the order of their layers.
    pub(crate) directory: Arc<Directory>,
    pub(crate) layers: Vec<Vec<usize>>,
    pub(crate) golden: Arc<Golden>,
    /// What each shard had before it served.
    pub(crate) at_start: Vec<ShardLoad>,
}

/// The layers of one shard: each disk once.
#[derive(Default)]
struct Table {
    images: Images,
    layers: Vec<(usize, LayerId)>,
    files: Vec<usize>,
    /// Those nobody writes.
    golden: Vec<(FileSlot, usize)>,
}

impl Table {
    fn layer(&mut self, world: &Shared, disk: usize, leaf: bool) -> Result<LayerId, String> {
        if let Some((_, layer)) = self.layers.iter().find(|(known, _)| *known == disk) {
            return Ok(*layer);
        }
        let mode = if leaf { OpenMode::Writable } else { OpenMode::ReadOnly };
        let image = images::open(&world.borrow().disks[disk].visible, mode)
            .map_err(|error| format!("disk {disk} does not open: {error}"))?;
        let file = FileSlot(self.files.len() as u32);
        self.files.push(disk);
        if !leaf {
            self.golden.push((file, disk));
        }
        let layer = self.images.add(Layer::vhd(file, image));
        self.layers.push((disk, layer));
        Ok(layer)
    }

    fn chain(&mut self, world: &Shared, disks: &[usize]) -> Result<Chain, String> {
        let layers = disks.iter().enumerate().map(|(place, disk)| self.layer(world, *disk, place == 0));
        let layers = layers.collect::<Result<_, _>>()?;
        Chain::new(&self.images, layers).map_err(|error| error.to_string())
    }
}

fn auth(chap: Option<&ChapPlan>) -> AuthPolicy {
    let credentials = |user: &str, secret: &str| Credentials {
        user: user.to_owned(),
        secret: Secret::new(secret.as_bytes()),
    };
    match chap {
        None => AuthPolicy::None,
        Some(chap) => AuthPolicy::Chap {
            initiator: credentials(&chap.user, &chap.secret),
            mutual: chap.mutual.as_ref().map(|(user, secret)| credentials(user, secret)),
        },
    }
}

pub(crate) fn entry(plan: &TargetPlan) -> DirectoryEntry {
    let patterns = |names: &Vec<String>| names.iter().cloned().map(NamePattern::new).collect();
    DirectoryEntry {
        owner: ShardId(plan.owner as u16),
        access: Admission { initiators: plan.allowed.as_ref().map(patterns), ..Admission::default() },
        auth: auth(plan.chap.as_ref()),
        redirect: None,
        limits: plan.limits,
        portals: None,
        units: Vec::new(),
    }
}

pub(crate) fn block_size(plan: &TargetPlan) -> BlockSize {
    if plan.block == 8 { BlockSize::B4096 } else { BlockSize::B512 }
}

pub(crate) fn unit_config(plan: &TargetPlan, sectors: u64, kept: KeptUnit) -> Option<UnitConfig> {
    Some(UnitConfig {
        identity: UnitIdentity { target_name: plan.name.clone(), lun: Lun::new(0)?, serial: None },
        block_size: block_size(plan),
        blocks: sectors / plan.block,
        physical_exponent: 0,
        read_only: false,
        thin: true,
        removable: false,
        write_same_to_end: false,
        kept: Some(kept),
    })
}

fn target(plan: &TargetPlan, world: &Shared, table: &mut Table) -> Result<TargetSeed, String> {
    let chain = table.chain(world, &plan.chain)?;
    let block_size = block_size(plan);
    let kept = world.borrow().kept.get(&plan.name).cloned().unwrap_or_default();
    let unit = unit_config(plan, chain.sectors().0, kept).ok_or("LUN 0 exists")?;
    let config = DeviceConfig { target_name: plan.name.clone(), portal_group: 1, units: vec![unit] };
    let device = Device::new(config).map_err(|error| error.to_string())?;
    let leaf = chain.leaf();
    let leaf_file = table.images.layer(leaf).map_or(FileSlot(0), Layer::file);
    let units = vec![UnitSeed {
        chain,
        block_size,
        leaf,
        leaf_file,
        writable: true,
        durability: Durability::GroupCommit,
    }];
    Ok(TargetSeed { name: plan.name.clone(), device, units })
}

impl Server {
    /// Opens the images and starts every shard.
    pub(crate) fn boot(world: &Shared, plans: &[TargetPlan], rng: &mut Rng) -> Result<Self, String> {
        let mut directory = Directory { portals: vec![([10, 0, 0, 1], 3260).into()], ..Directory::default() };
        let mut tables: Vec<Table> = (0..SHARDS).map(|_| Table::default()).collect();
        let mut targets: Vec<Vec<TargetSeed>> = (0..SHARDS).map(|_| Vec::new()).collect();
        for plan in plans {
            directory.targets.insert(plan.name.clone(), entry(plan));
            targets[plan.owner].push(target(plan, world, &mut tables[plan.owner])?);
        }
        let directory = Arc::new(directory);
        let mailboxes: Vec<_> = (0..SHARDS).map(|_| Arc::new(Mailbox::new(rng.pick(&[1, 2, 64])))).collect();
        let layers = tables.iter().map(|table| table.files.clone()).collect();
        let mut peers = Vec::new();
        for (table, mailbox) in tables.iter().zip(&mailboxes) {
            let port = Port::new(table.files.clone(), rng.pick(&[2, 5, 40, 200]));
            peers.push(Peer::new(Arc::clone(mailbox), port.waker.clone()));
            world.borrow_mut().ports.push(port);
        }
        // Few frames: evictions, and reads around the cache.
        let golden = Golden::new(rng.pick(&[0, 1, 3, 64]), false).map_err(|error| error.to_string())?;
        let golden = Arc::new(golden);
        let numbers: Vec<_> =
            world.borrow().disks.iter().map(|disk| golden.register(disk.visible.len())).collect();
        let keeper = SimKeeper::default();
        let mut shards = Vec::new();
        for (shard, (table, targets)) in tables.into_iter().zip(targets).enumerate() {
            shards.push(Self::shard(
                world,
                shard,
                table,
                targets,
                &directory,
                &mailboxes[shard],
                &peers,
                (&golden, &numbers),
                keeper.end(),
                rng,
            )?);
        }
        let at_start = shards.iter().map(Shard::load).collect();
        for shard in &mut shards {
            shard.start();
        }
        Ok(Self { shards, peers, keeper, directory, layers, golden, at_start })
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of a seed, each made once")]
    fn shard(
        world: &Shared,
        shard: usize,
        table: Table,
        mut targets: Vec<TargetSeed>,
        directory: &Arc<Directory>,
        mailbox: &Arc<Mailbox<SimIo>>,
        peers: &[Peer<SimIo>],
        (golden, numbers): (&Arc<Golden>, &[Option<GoldenFile>]),
        keeper: Box<dyn Keeper>,
        rng: &mut Rng,
    ) -> Result<Shard<SimIo>, String> {
        // The fewest with which a shard begins a command, and little more: waiting for buffers is the rule.
        let chunks = limits::ADMIT_CHUNKS + rng.pick(&[0, 3, 100]);
        let smalls = limits::ADMIT_SMALLS + rng.pick(&[20, 40, 300]);
        let config = PoolConfig { chunks, smalls, huge_pages: false };
        let pool = Pool::new(config).map_err(|error| error.to_string())?;
        let mut config = ShardConfig::new(ShardId(shard as u16), [shard as u8; 32]);
        config.send_batch_bytes = rng.pick(&[1, 10_000, 1 << 20]);
        let layer_files = table.images.files().collect();
        let golden_files =
            table.golden.iter().filter_map(|(slot, disk)| Some((*slot, numbers[*disk]?, *slot))).collect();
        let leaves: Vec<usize> =
            targets.iter().map(|target| table.files[target.units[0].leaf_file.0 as usize]).collect();
        // Dice of its own: what else a seed means stays as it is.
        let mut dice = Rng::new(world.borrow().now ^ u64::from(chunks) << 40 ^ u64::from(smalls) << 50);
        let journal = dice.chance(700).then(|| crate::journal::new(shard, &leaves, &mut dice)).flatten();
        let journal = journal.map(|(area, left)| {
            world.borrow_mut().journals.push(left);
            area
        });
        for (index, unit) in targets.iter_mut().flat_map(|target| &mut target.units).enumerate() {
            if journal.is_some() {
                unit.durability = Durability::Journal(LeafIndex(index as u32));
            }
        }
        Ok(Shard::new(ShardSeed {
            config,
            io: SimIo::new(world.clone(), shard),
            pool,
            golden: Arc::clone(golden),
            golden_files,
            images: table.images,
            layer_files,
            targets,
            directory: Arc::clone(directory),
            macs: Arc::default(),
            listeners: if shard == 0 { vec![ListenerSlot(0)] } else { Vec::new() },
            mailbox: Arc::clone(mailbox),
            peers: peers.to_vec(),
            keeper,
            journal,
        }))
    }

    /// Tells every shard to stop; false when a mailbox is full and it must be told again.
    pub(crate) fn tell_to_stop(&self) -> bool {
        self.peers.iter().all(|peer| matches!(peer.send(Message::Stop), Sent::Yes))
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.shards.iter().all(Shard::is_stopped)
    }
}
