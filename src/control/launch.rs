//! From an open catalog to running shards, and back to an empty process.
//!
//! Knows threads, signals and the ring; the only place that names both `shard` and `uring`. Does not know where the
//! catalog came from.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::admin::desk::Desk;
use super::admin::service;
use super::admin::socket::ControlSocket;
use super::boot_traces;
use super::catalog::{Catalog, TargetSpec};
use super::cli::DurabilityPolicy;
use super::config::{ChapConfig, Credential};
use super::error::Error;
use super::golden::{self, GoldenFiles, ShardGolden};
use super::keeper::{self, QueueKeeper, StateFolder};
use super::metrics;
use super::open_image::LayerTable;
use super::runtime::{JournalFile, RuntimeFolder};
use super::trace_store::{TracePlace, TraceStore};
use super::trace_threads::{self, TraceThreads};
use crate::buf::{Pool, PoolConfig};
use crate::cache::Golden;
use crate::image::Layer;
use crate::io::{ListenerSlot, Waker};
use crate::iscsi::chap::{AuthPolicy, Credentials, Secret};
use crate::pending::{Area, LeafIdentity, LeafIndex};
use crate::plan::FileSlot;
use crate::scsi::{Device, DeviceConfig, Lun, UnitConfig, UnitIdentity};
use crate::shard::{
    Directory, DirectoryEntry, Durability, Keeper, Mailbox, Message, NoKeeper, PORTAL_GROUP, Peer, Sent,
    Shard, ShardConfig, ShardId, ShardSeed, TargetSeed, UnitSeed,
};
use crate::uring::host::{self, Signal, Signals};
use crate::uring::{UringConfig, UringIo, ZeroCopy, probe};

/// Buffers of one shard beside the golden cache: data on its way in and out, and headers.
pub(super) const POOL: PoolConfig = PoolConfig { chunks: 2048, smalls: 8192, huge_pages: true };
/// Messages one shard may have waiting.
const MAILBOX_MESSAGES: usize = 1024;
/// How often the control thread looks whether a shard has ended by itself.
const WATCH: Duration = Duration::from_millis(200);

/// What the data plane is asked to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataPlane {
    /// Where to listen; port 0 asks for any free one.
    pub listen: Vec<SocketAddr>,
    /// Cores to run on; `None`: all this process may use.
    pub cores: Option<Vec<usize>>,
    /// How long a thread looks for work before it sleeps.
    pub spin_us: u32,
    /// The most bytes one send gathers.
    pub send_batch_bytes: usize,
    pub max_connections: u32,
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
}

/// What one shard's thread is started with.
struct Seed {
    config: ShardConfig,
    core: usize,
    ring: UringConfig,
    pool: PoolConfig,
    golden: Arc<Golden>,
    shard_golden: ShardGolden,
    table: LayerTable,
    targets: Vec<TargetSeed>,
    listeners: Vec<TcpListener>,
    directory: Arc<Directory>,
    mailbox: Arc<Mailbox<OwnedFd>>,
    keeper: Option<QueueKeeper>,
    journal: Option<Area>,
}

type Wakers = Vec<Peer<OwnedFd>>;

/// Serves until SIGINT or SIGTERM. `listening` is called once all addresses are bound, with the real
/// ports, those of the initiators and that of metrics.
pub(super) fn run(
    catalog: Catalog,
    plane: &DataPlane,
    listening: &mut dyn FnMut(&[SocketAddr], Option<SocketAddr>),
) -> Result<(), Error> {
    let signals = Signals::block().map_err(|error| failed("blocking signals", &error))?;
    let report = probe::probe().map_err(|error| Error::Failed(error.to_string()))?;
    tracing::info!("{report}");
    let cores = cores(plane)?;
    let runtime = RuntimeFolder::for_server();
    let control = control_socket(plane, runtime.as_ref())?;
    let listeners = plane.listen.iter().map(|address| bind(*address)).collect::<Result<Vec<_>, _>>()?;
    let metrics = plane.metrics.map(bind).transpose()?;
    let metrics_address = metrics.as_ref().and_then(|listener| listener.local_addr().ok());
    let addresses: Vec<SocketAddr> =
        listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
    let state = plane.state_dir.as_deref().map(StateFolder::open).transpose()?;
    let targets = catalog.targets.len();
    let traces = TraceStore::new(plane.boot_trace.clone(), plane.state_dir.clone());
    let golden_images = boot_traces::load(&catalog, &traces);
    let golden_data = golden::cache(plane.golden_cache_bytes, traces.is_on());
    let mut golden_files = GoldenFiles::new(Arc::clone(&golden_data), plane.direct_reads);
    let mut seeds =
        seeds(catalog, plane, &cores, listeners, (&addresses, &mut golden_files, state.as_ref()))?;
    let traced = boot_traces::traced(golden_images, &golden_files);
    if plane.warm {
        trace_threads::warm(&golden_data, &traced);
    }
    let files: Vec<_> = seeds.iter().flat_map(|seed| seed.table.files.iter().cloned()).collect();
    let requests = state.map(|folder| {
        let (keeper, requests) = keeper::queue();
        seeds.iter_mut().for_each(|seed| seed.keeper = Some(keeper.clone()));
        (folder, requests)
    });
    let journals = journals(&mut seeds, runtime.as_ref());
    let shards = start(seeds)?;
    if let Some((folder, requests)) = requests {
        let peers: Vec<_> = shards.iter().map(|shard| shard.peer.clone()).collect();
        keeper::start(folder, requests, peers).map_err(|error| failed("starting a thread", &error))?;
    }
    let peers: Vec<_> = shards.iter().map(|shard| shard.peer.clone()).collect();
    let trace_threads = TraceThreads::start(&golden_data, &traces, &traced, &peers)
        .map_err(|error| failed("starting a thread", &error))?;
    let desk = Desk {
        shards: peers,
        listening: addresses.clone(),
        cores: cores.clone(),
        targets,
        golden_cache_bytes: plane.golden_cache_bytes,
        golden: Some(Arc::clone(&golden_data)),
        since: Instant::now(),
    };
    start_asking(control.as_ref(), metrics, desk).map_err(|error| failed("starting a thread", &error))?;
    tracing::info!(cores = ?cores, "serving");
    listening(&addresses, metrics_address);
    let watched = watch(&signals, &shards);
    trace_threads.end();
    // Also when one has ended by itself: the others still close their images.
    let stopped = stop(shards);
    golden::tell_counts(&golden_data);
    watched.and(stopped)?;
    journals.into_iter().for_each(JournalFile::finish);
    // The kernel takes rings apart in its own time; whoever comes next need not wait for that.
    files.iter().for_each(|file| file.unlock());
    Ok(())
}

/// The socket at which the server may be asked. One that was named must be had; without the usual one it serves all the
/// same.
fn control_socket(
    plane: &DataPlane,
    runtime: Option<&RuntimeFolder>,
) -> Result<Option<ControlSocket>, Error> {
    match (&plane.control, runtime) {
        (Some(path), _) => ControlSocket::named(path).map(Some),
        (None, Some(folder)) => Ok(ControlSocket::in_folder(folder.path())
            .inspect_err(|error| {
                tracing::warn!("no control socket, so that nobody can ask this server: {error}")
            })
            .ok()),
        (None, None) => Ok(None),
    }
}

/// Lets people ask, and Prometheus.
fn start_asking(
    socket: Option<&ControlSocket>,
    metrics: Option<TcpListener>,
    desk: Desk,
) -> std::io::Result<()> {
    let questions = service::start_desk(desk)?;
    if let Some(listener) = metrics {
        metrics::start(listener, questions.clone())?;
    }
    if let Some(socket) = socket {
        service::start(socket, questions)?;
        tracing::info!(socket = %socket.path().display(), "may be asked with goldrush status");
    }
    Ok(())
}

fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    host::listen(address).map_err(|error| {
        Error::Failed(format!("cannot listen on {address}: {error}; free it or name another"))
    })
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> Error {
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
        files_max: (files as u32).max(64),
        ..UringConfig::default()
    }
}

/// Divides the targets among the cores, and with them everything else.
fn seeds(
    catalog: Catalog,
    plane: &DataPlane,
    cores: &[usize],
    listeners: Vec<TcpListener>,
    (portals, golden_files, state): (&[SocketAddr], &mut GoldenFiles, Option<&StateFolder>),
) -> Result<Vec<Seed>, Error> {
    let mut directory = Directory {
        portals: portals.to_vec(),
        discovery_auth: auth(catalog.discovery.chap.as_ref()),
        discovery_access: catalog.discovery.access.clone(),
        macs: catalog.macs.clone(),
        ..Directory::default()
    };
    let mut tables: Vec<LayerTable> = cores.iter().map(|_| LayerTable::default()).collect();
    let mut targets: Vec<Vec<TargetSeed>> = cores.iter().map(|_| Vec::new()).collect();
    for (place, spec) in catalog.targets.into_iter().enumerate() {
        let owner = place % cores.len();
        let entry = DirectoryEntry {
            owner: ShardId(owner as u16),
            index: targets[owner].len() as u32,
            access: spec.access.clone(),
            auth: auth(spec.chap.as_ref()),
            redirect: spec.redirect.clone(),
            portals: spec.portals.clone(),
            units: spec.units.iter().map(|unit| unit.access.clone()).collect(),
        };
        directory.targets.insert(spec.name.clone(), entry);
        targets[owner].push(target(spec, &mut tables[owner], state)?);
    }
    let directory = Arc::new(directory);
    let mut listeners = Some(listeners);
    let mut seeds = Vec::new();
    for (index, ((core, table), targets)) in cores.iter().zip(tables).zip(targets).enumerate() {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| failed("asking the kernel for random bytes", &error))?;
        let mut config = ShardConfig::new(ShardId(index as u16), seed);
        let shard_golden = golden_files.of_shard(&table);
        config.send_batch_bytes = plane.send_batch_bytes;
        config.read_ahead_bytes = plane.read_ahead_bytes;
        config.max_connections = plane.max_connections;
        let ring = ring_config(plane, table.files.len() + shard_golden.sources.len());
        seeds.push(Seed {
            config,
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
            mailbox: Arc::new(Mailbox::new(MAILBOX_MESSAGES)),
            keeper: None,
            journal: None,
        });
    }
    Ok(seeds)
}

fn auth(chap: Option<&ChapConfig>) -> AuthPolicy {
    let credentials = |credential: &Credential| Credentials {
        user: credential.user.clone(),
        secret: Secret::new(credential.secret.bytes()),
    };
    match chap {
        None => AuthPolicy::None,
        Some(chap) => AuthPolicy::Chap {
            initiator: credentials(&chap.inward),
            mutual: chap.mutual.as_ref().map(credentials),
        },
    }
}

fn target(
    spec: TargetSpec,
    table: &mut LayerTable,
    state: Option<&StateFolder>,
) -> Result<TargetSeed, Error> {
    let mut units = Vec::new();
    let mut configs = Vec::new();
    for unit in spec.units {
        let block_size = unit.block_size;
        let writable = !unit.readonly && unit.chain.leaf().file().is_writable();
        let chain = table.add(unit.chain).map_err(|error| Error::Failed(error.to_string()))?;
        let durability = match unit.durability {
            DurabilityPolicy::Persistent => Durability::GroupCommit,
            DurabilityPolicy::UntilReset => Durability::UntilReset,
        };
        let leaf = chain.leaf();
        let leaf_file = table.images.layer(leaf).map_or(FileSlot(0), |layer| layer.file());
        let lun = Lun::new(unit.lun)
            .ok_or_else(|| Error::Failed(format!("LUN {} of {} is out of range", unit.lun, spec.name)))?;
        configs.push(UnitConfig {
            identity: UnitIdentity { target_name: spec.name.clone(), lun, serial: None },
            block_size,
            blocks: chain.sectors().0 / block_size.sectors(),
            physical_exponent: (unit.physical_block_size.bytes() / block_size.bytes()).trailing_zeros() as u8,
            read_only: !writable,
            thin: true,
            removable: unit.removable,
            kept: state.map(|folder| folder.load(&spec.name, unit.lun)).transpose()?,
        });
        units.push(UnitSeed { chain, block_size, leaf, leaf_file, writable, durability });
    }
    let config = DeviceConfig { target_name: spec.name.clone(), portal_group: PORTAL_GROUP, units: configs };
    let device = Device::new(config).map_err(|error| Error::Failed(error.to_string()))?;
    Ok(TargetSeed { name: spec.name, device, units })
}

/// Makes a journal for each core, and tells the leaves that are to be persistent. Where there can be none, they wait for
/// commits.
fn journals(seeds: &mut [Seed], folder: Option<&RuntimeFolder>) -> Vec<JournalFile> {
    let mut files = Vec::new();
    let Some(folder) = folder else { return files };
    for (number, seed) in seeds.iter_mut().enumerate() {
        let table = &seed.table;
        let units = seed.targets.iter_mut().flat_map(|target| &mut target.units);
        let persistent = |unit: &&mut UnitSeed| unit.writable && unit.durability == Durability::GroupCommit;
        let units: Vec<_> = units.filter(persistent).collect();
        let leaves: Vec<_> = units.iter().map(|unit| leaf_identity(table, unit)).collect();
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

/// What records of pending writes name the leaf of a unit by.
pub(super) fn leaf_identity(table: &LayerTable, unit: &UnitSeed) -> LeafIdentity {
    let file = table.files[unit.leaf_file.0 as usize].identity();
    let layer = table.images.layer(unit.leaf);
    let unique_id = layer.and_then(Layer::unique_id_when_written).map_or([0; 16], Uuid::into_bytes);
    LeafIdentity { device: file.device, inode: file.inode, unique_id }
}

/// A running shard.
struct Running {
    peer: Peer<OwnedFd>,
    thread: JoinHandle<()>,
}

/// Starts every thread, waits until all have their ring, then lets them serve.
fn start(seeds: Vec<Seed>) -> Result<Vec<Running>, Error> {
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

/// Waits for the signal to end. A shard that ends before is a bug: the server ends with it, loudly.
fn watch(signals: &Signals, shards: &[Running]) -> Result<(), Error> {
    loop {
        match signals.wait_for(WATCH) {
            Ok(Some(Signal::Terminate)) => return Ok(()),
            Ok(Some(Signal::Reload)) => {
                tracing::warn!("SIGHUP: the configuration is read at start only; restart to apply a new one");
            }
            Ok(None) => {}
            Err(error) => return Err(failed("waiting for signals", &error)),
        }
        if let Some(ended) = shards.iter().position(|shard| shard.thread.is_finished()) {
            return Err(Error::Failed(format!("shard {ended} ended by itself; its log lines above say why")));
        }
    }
}

fn stop(shards: Vec<Running>) -> Result<(), Error> {
    tracing::info!("stopping");
    for shard in &shards {
        let mut message = Message::Stop;
        while let Sent::Full(back) = shard.peer.send(message) {
            if shard.thread.is_finished() {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
            message = back;
        }
    }
    let mut result = Ok(());
    for (index, shard) in shards.into_iter().enumerate() {
        if shard.thread.join().is_err() {
            result = Err(Error::Failed(format!("shard {index} failed while it stopped; check its images")));
        }
    }
    tracing::info!("stopped");
    result
}
