//! The shard: one thread's share of the server, generic over its `Io`.
//!
//! Knows connections, targets and tasks of one core. Does not know the ring (`uring`), files by name, wall
//! clocks or other shards' state; it speaks to its peers by message only.
//!
//! | file         | job                                                                 |
//! |--------------|---------------------------------------------------------------------|
//! | `reactor`    | the loop: wait, complete, work, send                                |
//! | `connection` | one stream: framer, login machine or session, queue out             |
//! | `session`    | the connections of a session, its commands in their order           |
//! | `logins`     | what a login asks of the shard: targets, hand-off, reinstatement    |
//! | `admission`  | who may use a target; `mac` which address has which MAC             |
//! | `management` | task management functions and closing                               |
//! | `begin`      | what `scsi` decides becomes work; buffers for data-out              |
//! | `lun_state`  | a unit as the executor sees it                                      |
//! | `executor`   | drives a task to its reply; `read_path`, `write_path` its halves    |
//! | `express`    | a READ whose data is at hand, answered where its header is read      |
//! | `pre_fetch`  | PRE-FETCH, into the golden cache                                    |
//! | `fill_path`  | reads of golden files into the cache; `read_ahead` before they are asked for |
//! | `order`      | task attributes                                                     |
//! | `turns`      | which writes wait for which                                         |
//! | `copy`       | EXTENDED COPY, portion by portion                                   |
//! | `copy_plan`  | which units a copy reaches, and what its segments are there          |
//! | `errands`    | copies between units of two shards; `errand_desk` the other side's part |
//! | `atomic`     | WRITE ATOMIC, by a journal                                          |
//! | `sanitize`   | SANITIZE, in the background                                         |
//! | `lba_status` | GET LBA STATUS from the images                                      |
//! | `flush`      | one fdatasync of a file at a time                                   |
//! | `keep`       | what a unit must remember across restarts                           |
//! | `change`     | what a reload adds; `end` what it takes away                         |
//! | `suspend`    | a unit whose image somebody else works on for a moment               |
//! | `records`    | what a restart must know of writes that are not committed           |
//! | `commit`     | metadata batches of writable layers; `bitmaps` their reads          |
//! | `tx_queue`   | PDUs to vectored sends                                              |
//! | `mailbox`    | messages between shards                                             |
//! | `metrics`    | what it counts, and how long answers took                           |
//! | `boot`       | how far a target's machine has booted                               |
//! | `life`       | whether a login is that of a machine that was started again         |
//! | `reset`      | emptying the children of a target                                   |
//! | `report`     | what a shard tells of itself                                        |
//! | `solo`       | the executor without a network, for measurements                    |

mod admission;
mod atomic;
mod begin;
#[cfg(test)]
mod bench;
mod bitmaps;
mod boot;
mod change;
mod commit;
mod connection;
mod copy;
mod copy_plan;
mod directory;
mod end;
mod errand_desk;
mod errands;
mod executor;
mod express;
mod fairness;
mod fill_path;
mod flush;
mod keep;
mod lba_status;
mod life;
mod logins;
mod lun_state;
mod mac;
mod mailbox;
mod management;
mod metrics;
mod order;
mod pre_fetch;
mod rate;
mod reactor;
mod read_ahead;
mod read_path;
mod records;
mod report;
mod reset;
mod rods;
mod sanitize;
mod session;
mod solo;
mod stop;
mod suspend;
mod target;
mod task;
mod token;
mod turns;
mod tx_queue;
mod write_path;

use std::sync::Arc;

use crate::buf::Pool;
use crate::cache::{Golden, GoldenCache, GoldenFile};
use crate::clock::Duration;
use crate::image::{Chain, Images};
use crate::io::{Completion, Io, ListenerSlot, Part};
use crate::limits;
use crate::pending::Area;
use crate::plan::{FileSlot, LayerId};
use crate::scsi::{Device, UnitIndex};
use crate::slab::{Key, Slab};
use crate::units::BlockSize;

pub use admission::{Admission, NamePattern};
pub use boot::{BootPhase, BootReport, BootTimes};
pub use change::{Change, ChangeNews, LayerName, NewDurability, NewLayer, NewUnit, News};
pub use directory::{Directory, DirectoryEntry, Redirect};
pub use errands::ErrandMail;
pub use keep::{KeepRequest, Keeper, NoKeeper};
pub use mac::{Mac, MacError, MacTable};
pub use mailbox::{Handoff, Mailbox, Message, Named, Peer, Sent};
pub use metrics::{CommandKind, Counts, Latencies, Metrics, SessionCounts, Timing};
pub use rate::RateLimits;
pub use records::{Durability, ResetAt};
pub use report::{PHASES, ReportAsked, SessionReport, ShardReport, TargetReport, TargetsAsked};
pub use reset::{ResetAnswer, ResetReport};
pub use solo::{Solo, SoloFault, SoloSeed};
pub use suspend::ResumedUnit;

/// The one portal group there is (RFC 7143, 13.9): every portal leads to every target.
pub const PORTAL_GROUP: u16 = 1;

/// Names a shard of this server: its place among the cores given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ShardId(pub u16);

type ConnKey = Key<connection::Connection>;

/// What can be tuned from outside.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    pub id: ShardId,
    /// The most bytes one send carries.
    pub send_batch_bytes: usize,
    /// A connection that has not logged in by then is closed.
    pub login_timeout: Duration,
    /// A connection whose send makes no progress for so long is closed.
    pub send_timeout: Duration,
    /// An idle session is pinged after so long, and closed when it does not answer for as long again.
    pub ping_interval: Duration,
    /// Commands an initiator may have under way in a session (MaxCmdSN): 1 to `COMMAND_WINDOW_MAX`. The same for all shards
    /// of a server.
    pub queue_depth: u32,
    /// The most connections a session is granted (RFC 7143, 13.2): 1 to `SESSION_CONNECTIONS_MAX`.
    pub max_connections: u32,
    /// The most a unit that is read in order may be ahead of its reads, in bytes; 0: not at all.
    pub read_ahead_bytes: u64,
    /// Reads whose data is at hand are answered where their header is read. Nobody can tell but by the time it takes:
    /// only a comparison of the two ways turns it off.
    pub express: bool,
    /// How long a stopping shard waits for what is in flight.
    pub stop_grace: Duration,
    /// Where challenges and tags come from.
    pub seed: [u8; 32],
}

impl ShardConfig {
    pub fn new(id: ShardId, seed: [u8; 32]) -> Self {
        Self {
            id,
            send_batch_bytes: 1024 * 1024,
            login_timeout: Duration::from_secs(15),
            send_timeout: Duration::from_secs(60),
            ping_interval: Duration::from_secs(30),
            queue_depth: limits::COMMAND_WINDOW_DEFAULT,
            max_connections: limits::SESSION_CONNECTIONS_DEFAULT,
            read_ahead_bytes: limits::READ_AHEAD_BYTES_DEFAULT,
            express: true,
            stop_grace: Duration::from_secs(5),
            seed,
        }
    }
}

/// One unit of a target, with its files opened and registered.
#[derive(Debug)]
pub struct UnitSeed {
    pub chain: Chain,
    pub block_size: BlockSize,
    pub leaf: LayerId,
    pub leaf_file: FileSlot,
    pub writable: bool,
    pub durability: Durability,
}

/// One target this shard owns. `units` are in the order of the device's units.
#[derive(Debug)]
pub struct TargetSeed {
    pub name: String,
    pub device: Device,
    pub units: Vec<UnitSeed>,
}

/// Everything a shard is made of. `layer_files` has one entry for each layer of `images`. Layers are called by their
/// numbers ([`LayerName`]) when something is changed later.
#[derive(Debug)]
pub struct ShardSeed<I: Io> {
    pub config: ShardConfig,
    pub io: I,
    pub pool: Pool,
    pub golden: Arc<Golden>,
    /// Files nobody writes, their names in the golden cache, and the slots whole pages of them are read from.
    pub golden_files: Vec<(FileSlot, GoldenFile, FileSlot)>,
    pub images: Images,
    pub layer_files: Vec<FileSlot>,
    pub targets: Vec<TargetSeed>,
    pub directory: Arc<Directory>,
    /// Which address has which MAC, for rules that ask.
    pub macs: Arc<MacTable>,
    pub listeners: Vec<ListenerSlot>,
    pub mailbox: Arc<Mailbox<I>>,
    pub peers: Vec<Peer<I>>,
    pub keeper: Box<dyn Keeper>,
    /// Where leaves with `Durability::Journal` have their records.
    pub journal: Option<Area>,
}

/// One core's server.
#[derive(Debug)]
pub struct Shard<I: Io> {
    config: ShardConfig,
    io: I,
    core: executor::Core,
    connections: Slab<connection::Connection>,
    sessions: session::Sessions,
    directory: Arc<Directory>,
    macs: Arc<MacTable>,
    /// Never shorter: an accept is known by its place here.
    listeners: Vec<end::Listening>,
    /// What a reload takes away, until it is gone; and who is told.
    endings: end::Endings,
    news: Option<Box<dyn ChangeNews>>,
    /// Targets whose images are being emptied.
    resets: Vec<reset::Resetting>,
    mailbox: Arc<Mailbox<I>>,
    peers: Vec<Peer<I>>,
    outbox: Vec<(ShardId, Message<I>)>,
    keeper: Box<dyn Keeper>,
    keep_tickets: u64,
    completions: Vec<Completion>,
    dirty: Vec<ConnKey>,
    /// Sessions whose command found no room, in order.
    stalled: Vec<session::SessionKey>,
    /// Sessions that wait until aborted tasks of their target have ended.
    awaiting_drain: Vec<(u32, session::SessionKey)>,
    /// Connections whose payload waited for the turn of its command.
    resumed: Vec<ConnKey>,
    /// Receives that ended for want of buffers: in this turn, and in the one before.
    short_of_rx: Vec<ConnKey>,
    rearm: Vec<ConnKey>,
    /// Receive buffers came free in this turn.
    rx_freed: bool,
    /// Connections with something to say and no buffer to say it in.
    starved: Vec<ConnKey>,
    /// Listeners whose accept failed for want of something; tried again at the next tick.
    accept_again: Vec<u32>,
    /// Whose input waits for the next turn.
    turn: fairness::Turn,
    wants: Vec<connection::Want>,
    spare_parts: Vec<Vec<Part>>,
    login_count: u64,
    next_tick: crate::clock::Instant,
    stop: stop::Stop,
}

impl<I: Io> Shard<I> {
    pub fn new(seed: ShardSeed<I>) -> Self {
        let mut cache = GoldenCache::new(seed.golden, u32::from(seed.config.id.0));
        for (slot, golden, source) in seed.golden_files {
            cache.set_file(slot, golden, source);
        }
        let mut core = executor::Core::new(seed.pool, cache, seed.images);
        core.layers = seed.layer_files.iter().map(|file| commit::LayerWork::new(*file)).collect();
        core.journal = seed.journal;
        core.express = seed.config.express;
        core.read_ahead_bytes = seed.config.read_ahead_bytes;
        core.rod_seed = seed.config.seed;
        core.errands.shard = seed.config.id;
        core.errands.shards = seed.peers.len() as u16;
        core.layer_names = (0..core.layers.len() as u32).map(|n| (LayerName(n), LayerId(n))).collect();
        for (index, target) in (0..).zip(seed.targets) {
            let first = core.luns.len() as u32;
            let luns = (first..).take(target.units.len()).collect();
            core.target_names.insert(target.name.clone(), index);
            core.targets.push(target::Target::new(target.name, target.device, luns));
            for unit in &target.units {
                core.layers[unit.leaf.0 as usize].records.durability = unit.durability;
            }
            let units = (0..).map(UnitIndex).zip(target.units);
            for (place, unit) in units {
                core.add_lun(unit, index, place);
            }
        }
        for target in &mut core.targets {
            let entry = seed.directory.find(&target.name);
            target.rate.set_limits(entry.map_or_else(RateLimits::default, |entry| entry.limits));
        }
        Self {
            config: seed.config,
            io: seed.io,
            core,
            connections: Slab::with_capacity(limits::CONNECTIONS_MAX),
            sessions: Slab::with_capacity(limits::CONNECTIONS_MAX),
            directory: seed.directory,
            macs: seed.macs,
            listeners: seed.listeners.into_iter().map(end::Listening::Open).collect(),
            endings: end::Endings::default(),
            news: None,
            resets: Vec::new(),
            mailbox: seed.mailbox,
            peers: seed.peers,
            outbox: Vec::new(),
            keeper: seed.keeper,
            keep_tickets: 0,
            completions: Vec::with_capacity(4096),
            dirty: Vec::with_capacity(1024),
            stalled: Vec::new(),
            awaiting_drain: Vec::new(),
            resumed: Vec::new(),
            short_of_rx: Vec::new(),
            rearm: Vec::new(),
            rx_freed: false,
            starved: Vec::new(),
            accept_again: Vec::new(),
            turn: fairness::Turn::default(),
            wants: Vec::new(),
            spare_parts: Vec::new(),
            login_count: 0,
            next_tick: crate::clock::Instant::default(),
            stop: stop::Stop::Serving,
        }
    }

    /// What the shard holds at this moment; equal to what it was after `new` once nobody is connected.
    pub fn load(&self) -> ShardLoad {
        ShardLoad {
            connections: self.connections.len(),
            tasks: self.core.tasks.len(),
            aborted_in_flight: self.core.targets.iter().map(|target| target.aborted_in_flight).sum(),
            sessions: self.core.targets.iter().map(|target| target.sessions.len()).sum(),
            bitmap_reads: self.core.bitmaps.len(),
            batches: self.core.layers.iter().filter(|layer| layer.is_running()).count(),
            chunks_free: self.core.pool.chunks_free(),
            smalls_free: self.core.pool.smalls_free(),
        }
    }
}

/// What a shard holds: see [`Shard::load`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardLoad {
    pub connections: usize,
    /// Commands that are executed or whose answer is not yet queued.
    pub tasks: usize,
    /// Of these, forgotten ones whose file operations have not ended.
    pub aborted_in_flight: u32,
    /// Sessions of targets; discovery sessions are connections only.
    pub sessions: usize,
    pub bitmap_reads: usize,
    /// Layers whose metadata is being written.
    pub batches: usize,
    /// Buffers nobody holds, of `CHUNK_BYTES` and of `SMALL_BYTES`.
    pub chunks_free: u32,
    pub smalls_free: u32,
}
