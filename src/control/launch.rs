//! From open images to running shards.
//!
//! Knows threads and the ring. Does not know where the images came from, nor what happens to shards that run (`server`).

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::catalog::{TargetSpec, UnitSpec};
use super::cli::DurabilityPolicy;
use super::config::Config;
use super::config::isns::IsnsServer;
use super::error::Error;
use super::golden::{GoldenFiles, ShardGolden};
use super::keeper::{QueueKeeper, StateFolder};
use super::open_image::LayerTable;
use super::roster::{Roster, ServedUnit};
use super::rules;
use super::runtime::{JournalFile, RuntimeFolder};
use super::trace_store::TracePlace;
use crate::buf::{Pool, PoolConfig};
use crate::cache::Golden;
use crate::image::Layer;
use crate::io::{ListenerSlot, Waker};
use crate::limits::{SESSION_CONNECTIONS_DEFAULT, SHARD_FILES_MAX};
use crate::pending::{Area, LeafIndex};
use crate::plan::FileSlot;
use crate::scsi::{Device, DeviceConfig, KeptUnit, Lun, UnitConfig, UnitIdentity};
use crate::shard::{
    Directory, Durability, Keeper, MacTable, Mailbox, NoKeeper, PORTAL_GROUP, Peer, Shard, ShardConfig,
    ShardId, ShardSeed, TargetSeed, UnitSeed,
};
use crate::uring::host;
use crate::uring::{UringConfig, UringIo, ZeroCopy};

/// Buffers of one shard beside the golden cache: data on its way in and out, and headers.
pub(super) const POOL: PoolConfig = PoolConfig { chunks: 2048, smalls: 8192, huge_pages: true };
/// Messages one shard may have waiting.
const MAILBOX_MESSAGES: usize = 1024;

/// What the data plane is asked to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataPlane {
    /// Cores to run on; `None`: all this process may use.
    pub cores: Option<Vec<usize>>,
    /// How long a thread looks for work before it sleeps.
    pub spin_us: u32,
    /// The most bytes one send gathers.
    pub send_batch_bytes: usize,
    /// Commands of a session that may be under way.
    pub queue_depth: u32,
    /// What the command line says of connections of a session.
    pub max_connections: Option<u32>,
    /// Golden data kept in memory, over all cores.
    pub golden_cache_bytes: u64,
    /// Read golden data past the page cache, where the file system takes it.
    pub direct_reads: bool,
    pub boot_trace: TracePlace,
    /// Fill the cache along the boot traces before anybody is let in.
    pub warm: bool,
    /// How far ahead of a node that reads in order golden data is read, at most.
    pub read_ahead_bytes: u64,
    /// Register the buffers with the kernel.
    pub register_buffers: bool,
    pub zero_copy: ZeroCopy,
    /// Where LUNs keep what outlives the server.
    pub state_dir: Option<PathBuf>,
    /// Where the server may be asked; `None`: in the runtime folder.
    pub control: Option<PathBuf>,
    /// Where Prometheus may fetch metrics; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// iSNS servers, where the command line names any.
    pub isns: Vec<IsnsServer>,
    /// As what everything is registered; `None`: the host name.
    pub isns_entity: Option<String>,
}

/// What one shard's thread is started with.
pub(super) struct Seed {
    config: ShardConfig,
    core: usize,
    pub(super) ring: UringConfig,
    pool: PoolConfig,
    golden: Arc<Golden>,
    shard_golden: ShardGolden,
    table: LayerTable,
    targets: Vec<TargetSeed>,
    listeners: Vec<TcpListener>,
    directory: Arc<Directory>,
    macs: Arc<MacTable>,
    mailbox: Arc<Mailbox<UringIo>>,
    pub(super) keeper: Option<QueueKeeper>,
    journal: Option<Area>,
}

type Wakers = Vec<Peer<UringIo>>;

pub(super) fn failed(what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::Failed(format!("{what} failed: {error}"))
}

/// The cores to run on, each allowed.
pub(super) fn cores(plane: &DataPlane) -> Result<Vec<usize>, Error> {
    let allowed = host::allowed_cores().map_err(|error| failed("asking for the allowed cores", &error))?;
    let Some(wanted) = &plane.cores else { return Ok(allowed) };
    match wanted.iter().find(|core| !allowed.contains(core)) {
        Some(core) => Err(Error::Usage(format!(
            "core {core} is not one this process may run on ({allowed:?}): change --cores or the CPU affinity"
        ))),
        None => Ok(wanted.clone()),
    }
}

/// The ring of a shard with so many files.
pub(super) fn ring_config(plane: &DataPlane, files: usize) -> UringConfig {
    UringConfig {
        spin: Duration::from_micros(u64::from(plane.spin_us)),
        register_buffers: plane.register_buffers,
        zero_copy: plane.zero_copy,
        files_max: files_max(files as u32),
        ..UringConfig::default()
    }
}

/// What the shards begin with, and what is remembered of it.
pub(super) struct Seeds {
    pub(super) seeds: Vec<Seed>,
    pub(super) roster: Roster,
}

/// Divides the targets among the cores, and with them everything else.
pub(super) fn seeds(
    specs: Vec<TargetSpec>,
    config: &Config,
    plane: &DataPlane,
    cores: &[usize],
    listeners: Vec<TcpListener>,
    (golden_files, state): (&mut GoldenFiles, Option<&StateFolder>),
) -> Result<Seeds, Error> {
    let mut roster = Roster::new(cores.len());
    let mut tables: Vec<LayerTable> = cores.iter().map(|_| LayerTable::default()).collect();
    let mut targets: Vec<Vec<TargetSeed>> = cores.iter().map(|_| Vec::new()).collect();
    let mut served = Vec::new();
    for (place, spec) in specs.into_iter().enumerate() {
        let owner = place % cores.len();
        roster.add_target(&spec.name, owner);
        let units = spec.units.iter().map(|unit| (unit.lun, ServedUnit::of(&unit.chain, unit.is_writable())));
        served.push((spec.name.clone(), units.collect::<Vec<_>>()));
        targets[owner].push(target(spec, &mut tables[owner], state)?);
    }
    let portals: Vec<SocketAddr> =
        listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
    let directory = Arc::new(rules::directory(config, &portals, |name| roster.owner(name)));
    let macs = Arc::new(known_macs(config));
    let mut listeners = Some(listeners);
    let mut seeds = Vec::new();
    for (index, ((core, table), targets)) in cores.iter().zip(tables).zip(targets).enumerate() {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| failed("asking the kernel for random bytes", &error))?;
        let mut shard_config = ShardConfig::new(ShardId(index as u16), seed);
        let shard_golden = golden_files.of_shard(&table);
        shard_config.queue_depth = plane.queue_depth;
        shard_config.send_batch_bytes = plane.send_batch_bytes;
        shard_config.read_ahead_bytes = plane.read_ahead_bytes;
        shard_config.max_connections = max_connections(plane.max_connections, config);
        let slots = (table.files.len() + shard_golden.sources.len()) as u32;
        roster.began(index, &table, slots);
        let ring = ring_config(plane, slots as usize);
        seeds.push(Seed {
            config: shard_config,
            core: *core,
            ring,
            pool: POOL,
            golden: Arc::clone(golden_files.golden()),
            shard_golden,
            table,
            targets,
            // The first core accepts; a connection moves to its target's core at login.
            listeners: listeners.take().unwrap_or_default(),
            directory: Arc::clone(&directory),
            macs: Arc::clone(&macs),
            mailbox: Arc::new(Mailbox::new(MAILBOX_MESSAGES)),
            keeper: None,
            journal: None,
        });
    }
    for (name, units) in served {
        units.into_iter().for_each(|(lun, unit)| roster.add_unit(&name, lun, unit));
    }
    Ok(Seeds { seeds, roster })
}

/// Connections a session is granted: the command line's word, else the configuration's.
pub(super) fn max_connections(given: Option<u32>, config: &Config) -> u32 {
    given.or(config.max_connections).unwrap_or(SESSION_CONNECTIONS_DEFAULT)
}

/// Slots of one ring: room for what a reload may add, as far as this process may open files.
fn files_max(needed: u32) -> u32 {
    let allowed = host::raise_open_files().unwrap_or(0).min(SHARD_FILES_MAX as u64) as u32;
    allowed.max(needed).max(64)
}

/// Lease files were read when the configuration was checked; one that has gone since is read again soon.
fn known_macs(config: &Config) -> MacTable {
    config.macs().unwrap_or_else(|(path, error)| {
        tracing::warn!(leases = %path.display(), %error, "these leases are not known");
        config.hosts.clone()
    })
}

/// A unit as `scsi` is told of it.
///
/// # Errors
/// Its LUN is out of range.
pub(super) fn unit_config(
    target: &str,
    unit: &UnitSpec,
    kept: Option<KeptUnit>,
) -> Result<UnitConfig, String> {
    let block_size = unit.block_size;
    let lun = Lun::new(unit.lun).ok_or_else(|| format!("LUN {} of {target} is out of range", unit.lun))?;
    Ok(UnitConfig {
        identity: UnitIdentity { target_name: target.to_owned(), lun, serial: None },
        block_size,
        blocks: unit.chain.sectors().0 / block_size.sectors(),
        physical_exponent: (unit.physical_block_size.bytes() / block_size.bytes()).trailing_zeros() as u8,
        read_only: !unit.is_writable(),
        thin: true,
        removable: unit.removable,
        write_same_to_end: unit.write_same_to_end,
        kept,
    })
}

fn target(
    spec: TargetSpec,
    table: &mut LayerTable,
    state: Option<&StateFolder>,
) -> Result<TargetSeed, Error> {
    let mut units = Vec::new();
    let mut configs = Vec::new();
    for unit in spec.units {
        let (block_size, writable, reset) = (unit.block_size, unit.is_writable(), unit.reset.at());
        let policy = unit.durability;
        let kept = state.map(|folder| folder.load(&spec.name, unit.lun)).transpose()?;
        configs.push(unit_config(&spec.name, &unit, kept).map_err(Error::Failed)?);
        let chain = table.add(unit.chain).map_err(|error| Error::Failed(error.to_string()))?;
        let durability = match policy {
            DurabilityPolicy::Persistent => Durability::GroupCommit,
            DurabilityPolicy::UntilReset => Durability::UntilReset(reset),
        };
        let leaf = chain.leaf();
        let leaf_file = table.images.layer(leaf).map_or(FileSlot(0), Layer::file);
        units.push(UnitSeed { chain, block_size, leaf, leaf_file, writable, durability });
    }
    let config = DeviceConfig { target_name: spec.name.clone(), portal_group: PORTAL_GROUP, units: configs };
    let device = Device::new(config).map_err(|error| Error::Failed(error.to_string()))?;
    Ok(TargetSeed { name: spec.name, device, units })
}

/// Makes a journal for each core, and tells the leaves that are to be persistent. Where there can be none, they wait for
/// commits.
pub(super) fn journals(seeds: &mut [Seed], folder: Option<&RuntimeFolder>) -> Vec<JournalFile> {
    let mut files = Vec::new();
    let Some(folder) = folder else { return files };
    for (number, seed) in seeds.iter_mut().enumerate() {
        let table = &seed.table;
        let units = seed.targets.iter_mut().flat_map(|target| &mut target.units);
        let persistent = |unit: &&mut UnitSeed| unit.writable && unit.durability == Durability::GroupCommit;
        let units: Vec<_> = units.filter(persistent).collect();
        let leaves: Option<Vec<_>> = units.iter().map(|unit| table.leaf_identity(unit.leaf)).collect();
        let leaves = leaves.unwrap_or_default();
        match folder.journal(number, &leaves) {
            Ok(journal) => {
                let (area, file) = journal.split();
                seed.journal = area;
                files.push(file);
                for (leaf, unit) in units.into_iter().enumerate() {
                    unit.durability = Durability::Journal(LeafIndex(leaf as u32));
                }
            }
            Err(error) => tracing::warn!("{error}: first writes of this core wait for the disk"),
        }
    }
    files
}

/// A running shard.
pub(super) struct Running {
    pub(super) peer: Peer<UringIo>,
    pub(super) thread: JoinHandle<()>,
}

/// Starts every thread, waits until all have their ring, then lets them serve.
pub(super) fn start(seeds: Vec<Seed>) -> Result<Vec<Running>, Error> {
    let mut begun = Vec::new();
    for seed in seeds {
        let (ready, is_ready) = channel();
        let (go, may_go) = channel::<Wakers>();
        let mailbox = Arc::clone(&seed.mailbox);
        let name = format!("shard-{}", seed.config.id.0);
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || serve(seed, &ready, &may_go))
            .map_err(|error| failed("starting a thread", &error))?;
        begun.push((thread, is_ready, go, mailbox));
    }
    let mut peers = Vec::new();
    for (_, is_ready, _, mailbox) in &begun {
        let waker = is_ready
            .recv()
            .unwrap_or_else(|_| Err("a shard ended before it had its ring".to_owned()))
            .map_err(Error::Failed)?;
        peers.push(Peer::new(Arc::clone(mailbox), waker));
    }
    let mut running = Vec::new();
    for ((thread, _, go, _), peer) in begun.into_iter().zip(&peers) {
        // A thread that is gone already is noticed by `watch`.
        let _ = go.send(peers.clone());
        running.push(Running { peer: peer.clone(), thread });
    }
    Ok(running)
}

type Ready = Result<Arc<dyn Waker>, String>;

/// The life of a shard's thread.
fn serve(seed: Seed, ready: &Sender<Ready>, may_go: &Receiver<Wakers>) {
    let (io, pool) = match ring(&seed) {
        Ok((io, waker, pool)) => {
            let _ = ready.send(Ok(waker));
            (io, pool)
        }
        Err(reason) => {
            let _ = ready.send(Err(reason));
            return;
        }
    };
    // The control thread gave up: another shard has no ring.
    let Ok(peers) = may_go.recv() else { return };
    let listeners = (0..seed.listeners.len() as u32).map(ListenerSlot).collect();
    let layer_files = seed.table.images.files().collect();
    let mut shard = Shard::new(ShardSeed {
        config: seed.config,
        io,
        pool,
        golden: seed.golden,
        golden_files: seed.shard_golden.files,
        images: seed.table.images,
        layer_files,
        targets: seed.targets,
        directory: seed.directory,
        macs: seed.macs,
        listeners,
        mailbox: seed.mailbox,
        peers,
        keeper: match seed.keeper {
            Some(keeper) => Box::new(keeper) as Box<dyn Keeper>,
            None => Box::new(NoKeeper),
        },
        journal: seed.journal,
    });
    shard.run();
}

fn ring(seed: &Seed) -> Result<(UringIo, Arc<dyn Waker>, Pool), String> {
    host::pin_thread(seed.core).map_err(|error| format!("core {} cannot be used: {error}", seed.core))?;
    let pool = Pool::new(seed.pool).map_err(|error| {
        format!("no memory for the buffers of core {}: {error}; lower --golden-cache", seed.core)
    })?;
    let images = seed.table.files.iter().map(|file| file.shared());
    let files = images.chain(seed.shard_golden.sources.iter().cloned()).collect();
    let listeners = seed.listeners.iter().map(TcpListener::try_clone).collect::<Result<_, _>>();
    let listeners = listeners.map_err(|error| format!("a listening socket cannot be duplicated: {error}"))?;
    let (io, waker) = UringIo::new(&seed.ring, &pool, files, listeners).map_err(|error| error.to_string())?;
    tracing::info!(core = seed.core, "{}", io.report());
    Ok((io, Arc::new(waker), pool))
}
