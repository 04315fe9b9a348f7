//! The thread of one iSNS server: does what its registrar says, and tells the log.
//!
//! Knows the socket and the clock. Does not know why something is said (`isns::registrar`).

use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::admin::status::IsnsStatus;
use super::super::config::isns::IsnsServer;
use super::{Order, addresses};
use crate::clock::Instant;
use crate::isns::registrar::{Next, Notice, Registrar, State};
use crate::isns::request::Entity;
use crate::shard::Directory;

/// A connection that is not made by then is not made.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// A server that takes no bytes for so long is as good as gone.
const WRITE_TIME: Duration = Duration::from_secs(10);
/// How often the addresses of this machine are looked at.
const LOOK_TIME: Duration = Duration::from_secs(60);

pub(super) struct Registering {
    server: IsnsServer,
    entity: String,
    registrar: Registrar,
    directory: Option<Arc<Directory>>,
    stream: Option<TcpStream>,
    /// Our end of the latest connection.
    local: Option<IpAddr>,
    began: std::time::Instant,
    looked: Instant,
    /// Why there is no registration; `None` once there is.
    problem: Option<String>,
    /// The log has been told of that.
    warned: bool,
}

impl Registering {
    pub(super) fn new(server: IsnsServer, entity: &str, period_s: u32) -> Self {
        let registrar = Registrar::new(Entity { name: entity.to_owned(), period_s }, Instant::default());
        Self {
            server,
            entity: entity.to_owned(),
            registrar,
            directory: None,
            stream: None,
            local: None,
            began: std::time::Instant::now(),
            looked: Instant::default(),
            problem: None,
            warned: false,
        }
    }

    fn now(&self) -> Instant {
        Instant::default().after(self.began.elapsed())
    }

    /// Until it is told to end and has deregistered what it can.
    pub(super) fn run(&mut self, orders: &Receiver<Order>, wake: &OwnedFd) {
        loop {
            self.obey(orders);
            if self.now().since(self.looked) >= LOOK_TIME {
                self.look();
            }
            let next = self.registrar.next(self.now());
            self.tell_log();
            if !self.registrar.is_connected() {
                self.stream = None;
            }
            match next {
                Next::Connect => self.connect(),
                Next::Send(bytes) => self.send(&bytes),
                Next::Wait(until) => self.wait(until, wake),
                Next::End => return,
            }
        }
    }

    fn obey(&mut self, orders: &Receiver<Order>) {
        loop {
            match orders.try_recv() {
                Ok(Order::Serve(directory)) => {
                    self.directory = Some(directory);
                    self.look();
                }
                // Who asked may have gone.
                Ok(Order::Tell(reply)) => drop(reply.send(self.status())),
                Ok(Order::End) | Err(TryRecvError::Disconnected) => return self.registrar.end(),
                Err(TryRecvError::Empty) => return,
            }
        }
    }

    /// What is to be registered, as the addresses of this machine are now.
    fn look(&mut self) {
        self.looked = self.now();
        let Some(directory) = &self.directory else { return };
        let locals = addresses::of_machine(self.local);
        let loopback = self.local.is_some_and(|local| local.is_loopback());
        self.registrar.want(addresses::inventory(directory, &locals, loopback));
    }

    fn connect(&mut self) {
        match self.open() {
            Ok((stream, local)) => {
                (self.stream, self.local) = (Some(stream), Some(local));
                // Our end of the connection says which of our addresses are of use to whoever asks there.
                self.look();
                self.registrar.connected();
            }
            Err(error) => self.lose(&format!("cannot be reached: {error}")),
        }
    }

    fn open(&self) -> io::Result<(TcpStream, IpAddr)> {
        let mut result = Err(io::Error::other("its name has no address"));
        for address in (self.server.host.as_str(), self.server.port).to_socket_addrs()? {
            result = TcpStream::connect_timeout(&address, CONNECT_TIME);
            if result.is_ok() {
                break;
            }
        }
        let stream = result?;
        stream.set_write_timeout(Some(WRITE_TIME))?;
        stream.set_nodelay(true)?;
        let local = stream.local_addr()?.ip().to_canonical();
        Ok((stream, local))
    }

    fn send(&mut self, bytes: &[u8]) {
        let Some(stream) = &mut self.stream else { return };
        if let Err(error) = stream.write_all(bytes) {
            self.lose(&format!("takes no bytes: {error}"));
        }
    }

    /// Until the server says something, an order comes, or it is time.
    fn wait(&mut self, until: Option<Instant>, wake: &OwnedFd) {
        let most = until.map_or(LOOK_TIME, |until| until.since(self.now()).min(LOOK_TIME));
        // Rounded up: a wait that ends too early would be begun again at once.
        let most = Timespec { tv_sec: most.as_secs() as i64, tv_nsec: i64::from(most.subsec_nanos()) + 1 };
        let mut fds = vec![PollFd::new(wake, PollFlags::IN)];
        fds.extend(self.stream.as_ref().map(|stream| PollFd::new(stream, PollFlags::IN)));
        let _ = poll(&mut fds, Some(&most));
        let readable = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        let mut number = [0; 8];
        let _ = rustix::io::read(wake, &mut number);
        if readable {
            self.read();
        }
    }

    fn read(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        let mut bytes = [0; 16 * 1024];
        match stream.read(&mut bytes) {
            Ok(0) => self.lose("closes the connection"),
            Ok(read) => {
                let now = self.now();
                if let Err(error) = self.registrar.received(&bytes[..read], now) {
                    self.note(&format!("does not say what an iSNS server says: {error}"));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => self.lose(&format!("ends the connection: {error}")),
        }
    }

    fn lose(&mut self, why: &str) {
        let was_good = self.registrar.report().state == State::Registered;
        self.registrar.lost(self.now());
        self.stream = None;
        // Some close idle connections: nothing is lost unless the next one fails.
        if was_good {
            tracing::debug!(server = %self.server, why, "the connection to an iSNS server has ended");
        } else {
            self.note(why);
        }
    }

    /// A warning, once until all is registered again.
    fn note(&mut self, why: &str) {
        if !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(
                "the iSNS server {} {why}; it is tried again until all is registered",
                self.server
            );
        }
        self.problem = Some(why.to_owned());
    }

    fn tell_log(&mut self) {
        let server = &self.server;
        for notice in self.registrar.take_notices() {
            match notice {
                Notice::Registered { portals, targets } => {
                    tracing::info!(%server, portals, targets, "registered with an iSNS server");
                    (self.problem, self.warned) = (None, false);
                }
                Notice::TargetRefused { target, status } => {
                    tracing::warn!(
                        %server, target, %status,
                        "the iSNS server does not register this target: is it registered by another machine?"
                    );
                }
                Notice::Refused { status } => {
                    tracing::warn!(
                        %server, %status,
                        "the iSNS server refuses all registrations; it is asked again from time to time"
                    );
                    self.problem = Some(format!("refuses registrations: {status}"));
                }
                Notice::Forgotten => {
                    tracing::info!(%server, "the iSNS server has forgotten what was registered: it is told again");
                }
                Notice::NoGroups => tracing::warn!(
                    %server,
                    "the iSNS server takes no portal groups: it will say that every target is reached at every portal"
                ),
                Notice::Silent => {
                    if !std::mem::replace(&mut self.warned, true) {
                        tracing::warn!(%server, "the iSNS server does not answer; it is tried again until all is registered");
                    }
                    self.problem = Some("does not answer".to_owned());
                }
            }
        }
    }

    fn status(&self) -> IsnsStatus {
        let report = self.registrar.report();
        let state = match report.state {
            State::Down if self.problem.is_some() => "unreachable",
            State::Down => "connecting",
            State::Registering => "registering",
            State::Registered => "registered",
            State::Refused(_) => "refused",
        };
        IsnsStatus {
            server: self.server.to_string(),
            entity: self.entity.clone(),
            state: state.to_owned(),
            portals: report.portals as u64,
            targets: report.targets as u64,
            targets_refused: report.refused as u64,
            problem: self.problem.clone(),
        }
    }
}
