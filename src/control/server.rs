//! A running server: what it is asked while it serves, and its end.
//!
//! Knows signals, reloads and the order in which shards hear of a change. Does not know what a change is made of
//! (`reload`), nor how shards begin (`launch`).

mod resize;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::admin::desk::{Desk, Facts, Order};
use super::admin::service;
use super::admin::socket::ControlSocket;
use super::boot_traces;
use super::catalog::{Catalog, Opened};
use super::config::{self, Config};
use super::error::Error;
use super::file::FileIdentity;
use super::golden::{self, GoldenFiles};
use super::isns::Isns;
use super::keeper::{self, StateFolder};
use super::launch::{self, DataPlane, Running, failed};
use super::lease_watch::LeaseWatch;
use super::lingering;
use super::metrics;
use super::reload::{self, CoreChange, Prepared, Present, Summary};
use super::roster::Roster;
use super::rules;
use super::runtime::{JournalFile, RuntimeFolder};
use super::trace_store::TraceStore;
use super::trace_threads::{self, TraceThreads};
use crate::shard::{
    Change, ChangeNews, Directory, KeepRequest, LayerName, Message, News, Peer, Sent, ShardId,
};
use crate::uring::host::{Signal, Signals};
use crate::uring::{UringIo, probe};

/// How often the control thread looks whether a shard has ended by itself.
const WATCH: Duration = Duration::from_millis(200);

/// How long an image that goes from one LUN to another may take to be closed: commands end first.
const HAND_OVER: Duration = Duration::from_secs(30);

/// What shards say of changes, on its way to the control thread.
#[derive(Clone, Debug)]
struct NewsQueue(Sender<(ShardId, News)>);

impl ChangeNews for NewsQueue {
    fn tell(&mut self, shard: ShardId, news: News) {
        // Nobody listens any more: the server ends.
        let _ = self.0.send((shard, news));
    }
}

struct Server {
    shards: Vec<Running>,
    config: Config,
    /// The file the configuration comes from.
    source: Option<PathBuf>,
    /// What the command line says.
    max_connections: Option<u32>,
    roster: Roster,
    opened: Opened,
    golden: GoldenFiles,
    state: Option<StateFolder>,
    directory: Arc<Directory>,
    /// By the first shard's places: the address as it is written, and as it is bound.
    listening: Vec<Option<(SocketAddr, SocketAddr)>>,
    slots_max: Vec<u32>,
    journaled: bool,
    leases: LeaseWatch,
    traces: TraceThreads,
    news: (NewsQueue, Receiver<(ShardId, News)>),
    /// Changes each shard has not applied yet.
    unapplied: Vec<u32>,
    /// The last unit that was suspended, until it goes on; whether its image is closed.
    suspended: Option<(String, u16, bool)>,
    /// What is registered with iSNS servers.
    isns: Isns,
    /// What is asked for at the control socket, and what is told there of ourselves.
    orders: Receiver<Order>,
    facts: Sender<Facts>,
}

/// Serves until SIGINT or SIGTERM. `listening` is called once all addresses are bound, with the real ports, those of the
/// initiators and that of metrics.
pub(super) fn run(
    catalog: Catalog,
    config: Config,
    source: Option<&Path>,
    plane: &DataPlane,
    listening: &mut dyn FnMut(&[SocketAddr], Option<SocketAddr>),
) -> Result<(), Error> {
    let signals = Signals::block().map_err(|error| failed("blocking signals", &error))?;
    tracing::info!("{}", probe::probe().map_err(|error| Error::Failed(error.to_string()))?);
    let cores = launch::cores(plane)?;
    let runtime = RuntimeFolder::for_server();
    let control = control_socket(plane, runtime.as_ref())?;
    let (listeners, places) = listen(&config.listen)?;
    let metrics = plane.metrics.map(bind).transpose()?;
    let metrics_address = metrics.as_ref().and_then(|listener| listener.local_addr().ok());
    let addresses: Vec<SocketAddr> = places.iter().flatten().map(|(_, bound)| *bound).collect();
    let state = plane.state_dir.as_deref().map(StateFolder::open).transpose()?;
    let traces = TraceStore::new(plane.boot_trace.clone(), plane.state_dir.clone());
    let images = boot_traces::load(&catalog.targets, |_| false, &traces);
    let Catalog { targets, opened } = catalog;
    let cache = golden::cache(plane.golden_cache_bytes, traces.is_on());
    let mut golden = GoldenFiles::new(Arc::clone(&cache), plane.direct_reads);
    let launch::Seeds { mut seeds, roster } =
        launch::seeds(targets, &config, plane, &cores, listeners, (&mut golden, state.as_ref()))?;
    let traced = boot_traces::traced(images, &golden);
    if plane.warm {
        trace_threads::warm(&cache, &traced);
    }
    let requests = state.as_ref().map(|_| keep_in(&mut seeds));
    let journals = launch::journals(&mut seeds, runtime.as_ref());
    let slots_max = seeds.iter().map(|seed| seed.ring.files_max).collect();
    let shards = launch::start(seeds)?;
    let peers = peers_of(&shards);
    if let (Some(folder), Some(requests)) = (&state, requests) {
        keeper::start(folder.clone(), requests, peers.clone()).map_err(no_thread)?;
    }
    let directory = Arc::new(rules::directory(&config, &addresses, |name| roster.owner(name)));
    let traces = TraceThreads::start(&cache, (traces, plane.warm), &traced, &peers).map_err(no_thread)?;
    let leases = LeaseWatch::start(peers, config.leases.clone(), config.hosts.clone()).map_err(no_thread)?;
    let ((tell, news), (orders, ordered), (tell_facts, facts)) = (channel(), channel(), channel());
    let desk = Desk::new(peers_of(&shards), cores.clone(), (cache, plane.golden_cache_bytes), facts, orders);
    start_asking(control.as_ref(), metrics, desk).map_err(no_thread)?;
    let mut server = Server {
        unapplied: vec![0; shards.len()],
        shards,
        config,
        source: source.map(Path::to_owned),
        max_connections: plane.max_connections,
        roster,
        opened,
        golden,
        state,
        directory,
        listening: places,
        slots_max,
        journaled: !journals.is_empty(),
        leases,
        traces,
        news: (NewsQueue(tell), news),
        suspended: None,
        isns: Isns::new(plane, &addresses),
        orders: ordered,
        facts: tell_facts,
    };
    server.announce();
    tracing::info!(cores = ?cores, "serving");
    listening(&addresses, metrics_address);
    let watched = server.watch(&signals);
    server.end(watched, journals)
}

fn no_thread(error: std::io::Error) -> Error {
    failed("starting a thread", &error)
}

/// Gives every shard its end of the queue to the keeper.
fn keep_in(seeds: &mut [launch::Seed]) -> crossbeam::channel::Receiver<KeepRequest> {
    let (keeper, requests) = keeper::queue();
    seeds.iter_mut().for_each(|seed| seed.keeper = Some(keeper.clone()));
    requests
}

fn peers_of(shards: &[Running]) -> Vec<Peer<UringIo>> {
    shards.iter().map(|shard| shard.peer.clone()).collect()
}

type Listening = (Vec<TcpListener>, Vec<Option<(SocketAddr, SocketAddr)>>);

fn listen(addresses: &[SocketAddr]) -> Result<Listening, Error> {
    let (mut listeners, mut places) = (Vec::new(), Vec::new());
    for address in addresses {
        let bound = bind(*address)?;
        places.push(Some((*address, bound.local_addr().unwrap_or(*address))));
        listeners.push(bound);
    }
    Ok((listeners, places))
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
    lingering::listen(address).map_err(|error| {
        Error::Failed(format!("cannot listen on {address}: {error}; free it or name another"))
    })
}

impl Server {
    /// Waits for the signal to end. A shard that ends before is a bug: the server ends with it, loudly.
    fn watch(&mut self, signals: &Signals) -> Result<(), Error> {
        loop {
            match signals.wait_for(WATCH) {
                Ok(Some(Signal::Terminate)) => return Ok(()),
                Ok(Some(Signal::Reload)) => drop(self.reload_logged()),
                Ok(None) => {}
                Err(error) => return Err(failed("waiting for signals", &error)),
            }
            self.hear();
            self.obey();
            if let Some(ended) = self.shards.iter().position(|shard| shard.thread.is_finished()) {
                return Err(Error::Failed(format!(
                    "shard {ended} ended by itself; its log lines above say why"
                )));
            }
        }
    }

    /// Also when a shard has ended by itself: the others still close their images.
    fn end(&mut self, watched: Result<(), Error>, journals: Vec<JournalFile>) -> Result<(), Error> {
        self.isns.begin_end();
        self.traces.end();
        let stopped = stop(core::mem::take(&mut self.shards));
        self.isns.end();
        golden::tell_counts(self.golden.golden());
        watched.and(stopped)?;
        journals.into_iter().for_each(JournalFile::finish);
        // The kernel takes rings apart in its own time; whoever comes next need not wait for that.
        self.roster.unlock_all();
        Ok(())
    }

    /// Does what the control socket was asked for.
    fn obey(&mut self) {
        while let Ok(order) = self.orders.try_recv() {
            // Who asked may have gone.
            match order {
                Order::Reload { reply } => {
                    let result = self.reload_logged();
                    let _ = reply.send(result.map_err(|error| error.lines()));
                }
                Order::Resize { target, lun, size, reply } => {
                    let _ = reply.send(self.resize(&target, lun, size));
                }
            }
        }
    }

    /// Tells iSNS servers what is served now, and the desk what has changed.
    fn announce(&mut self) {
        self.isns.serve(&self.config, &self.directory);
        let listening = self.listening.iter().flatten().map(|(_, bound)| *bound).collect();
        let (targets, isns) = (self.config.targets.len(), self.isns.lines());
        let _ = self.facts.send(Facts { listening, targets, isns });
    }

    fn reload_logged(&mut self) -> Result<Summary, Error> {
        let mut begun = None;
        let result = self.reload(&mut begun);
        match &result {
            Ok(summary) => tracing::info!("configuration read again: {summary}"),
            Err(error) => {
                let so_far = begun.map_or_else(
                    || "changes nothing".to_owned(),
                    |done| format!("is in force in part ({done})"),
                );
                for line in error.lines() {
                    tracing::error!("the new configuration {so_far}: {line}");
                }
            }
        }
        result
    }

    /// Reads the configuration again and changes what it changes. An image that goes from one LUN to another is closed
    /// there before it is opened here; `begun` is what was changed by then.
    ///
    /// # Errors
    /// What is wrong with it; then nothing has changed but what `begun` says.
    fn reload(&mut self, begun: &mut Option<Summary>) -> Result<Summary, Error> {
        let Some(source) = self.source.clone() else {
            return Err(Error::Failed(
                "this server was started without a configuration file, so there is none to read again"
                    .to_owned(),
            ));
        };
        let new = config::load(&source).map_err(Error::Config)?;
        self.hear();
        let waiting = reload::handed_over(&self.present(&self.written()), &new);
        if waiting.is_empty() {
            return self.change_to(new);
        }
        let mut first = config::load(&source).map_err(Error::Config)?;
        for target in &mut first.targets {
            let waits = |lun| waiting.iter().any(|(name, number)| *name == target.name && *number == lun);
            target.units.retain(|unit| !waits(unit.lun));
        }
        let done = self.change_to(first)?;
        *begun = Some(done.clone());
        let until = Instant::now() + HAND_OVER;
        while !reload::handed_over(&self.present(&self.written()), &new).is_empty() && Instant::now() < until
        {
            if let Ok((shard, news)) = self.news.1.recv_timeout(WATCH) {
                self.note(shard, news);
            }
        }
        Ok(done + self.change_to(new)?)
    }

    fn change_to(&mut self, new: Config) -> Result<Summary, Error> {
        let prepared = reload::prepare(&self.present(&self.written()), &new).map_err(Error::Config)?;
        Ok(self.apply(prepared, new))
    }

    /// Addresses as they are written, by the first shard's places.
    fn written(&self) -> Vec<Option<SocketAddr>> {
        self.listening.iter().map(|place| place.map(|(written, _)| written)).collect()
    }

    fn present<'a>(&'a self, listening: &'a [Option<SocketAddr>]) -> Present<'a> {
        Present {
            config: &self.config,
            roster: &self.roster,
            opened: &self.opened,
            state: self.state.as_ref(),
            golden: &self.golden,
            traces: self.traces.store(),
            listening,
            slots_max: &self.slots_max,
            journaled: self.journaled,
        }
    }

    /// From here on nothing can fail.
    fn apply(&mut self, mut prepared: Prepared, new: Config) -> Summary {
        let summary = prepared.summary.clone();
        let mut listeners = core::mem::take(&mut prepared.listeners);
        for (written, listener) in &listeners {
            self.listening.push(Some((*written, listener.local_addr().unwrap_or(*written))));
        }
        let mut end_listeners = core::mem::take(&mut prepared.end_listeners);
        for index in &end_listeners {
            self.listening[*index as usize] = None;
        }
        let images = core::mem::take(&mut prepared.images);
        let (changes, opened) = prepared.apply(&mut self.roster, &mut self.golden);
        let traced = boot_traces::traced(images, &self.golden);
        self.opened = opened;
        self.config = new;
        let portals: Vec<SocketAddr> = self.listening.iter().flatten().map(|(_, bound)| *bound).collect();
        let roster = &self.roster;
        self.directory = Arc::new(rules::directory(&self.config, &portals, |name| roster.owner(name)));
        self.leases.configure(self.config.leases.clone(), self.config.hosts.clone());
        // The first shard takes logins, and is told last: whom it sends a connection knows its target by then.
        for (core, change) in changes.into_iter().enumerate().rev() {
            let mut change = self.change(change);
            if core == 0 {
                change.listeners = listeners.drain(..).map(|(_, listener)| listener).collect();
                change.end_listeners = core::mem::take(&mut end_listeners);
            }
            self.send(core, change);
            while self.unapplied[core] > 0 && !self.shards[core].thread.is_finished() {
                if let Ok((shard, news)) = self.news.1.recv_timeout(WATCH) {
                    self.note(shard, news);
                }
            }
        }
        self.traces.add(&traced);
        self.hear();
        self.announce();
        summary
    }

    fn change(&self, core: CoreChange) -> Change<UringIo> {
        let CoreChange { end_targets, end_units, layers, targets, units, grown } = core;
        Change {
            directory: Arc::clone(&self.directory),
            max_connections: launch::max_connections(self.max_connections, &self.config),
            end_targets,
            end_units,
            end_layers: Vec::new(),
            end_listeners: Vec::new(),
            layers,
            targets,
            units,
            suspend: Vec::new(),
            resume: Vec::new(),
            grown,
            listeners: Vec::new(),
            news: Box::new(self.news.0.clone()),
        }
    }

    fn send(&mut self, core: usize, change: Change<UringIo>) {
        self.unapplied[core] += 1;
        send(&self.shards[core], Message::Change(Box::new(change)));
    }

    /// Takes what shards have said meanwhile.
    fn hear(&mut self) {
        while let Ok((shard, news)) = self.news.1.try_recv() {
            self.note(shard, news);
        }
    }

    fn note(&mut self, shard: ShardId, news: News) {
        let core = usize::from(shard.0);
        match news {
            News::Applied => self.unapplied[core] = self.unapplied[core].saturating_sub(1),
            News::UnitGone { target, lun, failed } => {
                if failed {
                    tracing::error!(
                        target,
                        lun = lun.number(),
                        "a LUN that was removed could not be closed as a whole image: check it"
                    );
                }
                let (free, unneeded) = self.roster.unit_gone(core, &target, lun.number());
                self.forget(free);
                self.drop_layers(core, unneeded);
            }
            News::UnitSuspended { target, lun, closed } => {
                self.suspended = Some((target, lun.number(), closed));
            }
            News::LayerGone { name } => {
                let free = self.roster.layer_gone(core, name);
                self.forget(free);
            }
            News::TargetGone { target } => tracing::info!(target, "the target is gone"),
            News::ListenerGone { .. } => tracing::info!("an address is not listened on any more"),
        }
    }

    fn forget(&mut self, files: impl IntoIterator<Item = FileIdentity>) {
        for file in files {
            self.opened.forget(file);
            let number = self.golden.number_of(file).map(|(number, _)| number);
            self.golden.forget(file);
            if let Some(number) = number {
                self.traces.forget(number);
            }
        }
    }

    fn drop_layers(&mut self, core: usize, layers: Vec<LayerName>) {
        if !layers.is_empty() {
            let change = Change { end_layers: layers, ..self.change(CoreChange::default()) };
            self.send(core, change);
        }
    }
}

fn send(shard: &Running, mut message: Message<UringIo>) {
    while let Sent::Full(back) = shard.peer.send(message) {
        if shard.thread.is_finished() {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
        message = back;
    }
}

fn stop(shards: Vec<Running>) -> Result<(), Error> {
    tracing::info!("stopping");
    shards.iter().for_each(|shard| send(shard, Message::Stop));
    let mut result = Ok(());
    for (index, shard) in shards.into_iter().enumerate() {
        if shard.thread.join().is_err() {
            result = Err(Error::Failed(format!("shard {index} failed while it stopped; check its images")));
        }
    }
    tracing::info!("stopped");
    result
}
