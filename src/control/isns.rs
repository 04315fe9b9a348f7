//! Registers what is served with iSNS servers: one thread a server, with one connection.
//!
//! Knows sockets, time and which addresses this machine has. Does not know what is said (`isns::registrar`).
//!
//! No shard is asked or waits: a thread is given the directory of targets that logins use too. An iSNS server that is
//! missing, slow or strange costs its thread time, and one warning.

mod addresses;
mod thread;

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use super::admin::status::IsnsStatus;
use super::config::Config;
use super::config::isns::IsnsServer;
use super::launch::DataPlane;
use crate::shard::Directory;

/// The port IANA gave to iSNS.
pub(super) const ISNS_PORT: u16 = 3205;
/// Seconds a server is asked to keep registrations of which it hears nothing; it may keep them for another time.
const PERIOD_S: u32 = 300;
/// Deregistering may take this long beside the end of the shards; then the program ends all the same.
const END_TIME: Duration = Duration::from_secs(3);
/// A thread that does not say by then how it stands waits for a connection.
const TELL_TIME: Duration = Duration::from_millis(250);

/// What a thread is to do.
#[derive(Debug)]
enum Order {
    /// This is served from now on.
    Serve(Arc<Directory>),
    /// Say how it stands.
    Tell(Sender<IsnsStatus>),
    /// Deregister, and end.
    End,
}

/// A way to a thread, for whoever asks how it stands.
#[derive(Clone, Debug)]
pub(super) struct Line {
    server: IsnsServer,
    entity: Arc<str>,
    orders: Sender<Order>,
    wake: Arc<OwnedFd>,
}

impl Line {
    fn say(&self, order: Order) {
        // A thread that has ended needs no orders.
        let _ = self.orders.send(order);
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
    }
}

/// How it stands with each server, in their order.
pub(super) fn ask(lines: &[Line]) -> Vec<IsnsStatus> {
    let mut answers = Vec::new();
    for line in lines {
        let (tell, told) = channel();
        line.say(Order::Tell(tell));
        answers.push(told);
    }
    let until = Instant::now() + TELL_TIME;
    let wait =
        |told: &Receiver<IsnsStatus>| told.recv_timeout(until.saturating_duration_since(Instant::now())).ok();
    let busy = |line: &Line| IsnsStatus {
        server: line.server.to_string(),
        entity: line.entity.to_string(),
        state: "connecting".to_owned(),
        ..IsnsStatus::default()
    };
    lines.iter().zip(&answers).map(|(line, told)| wait(told).unwrap_or_else(|| busy(line))).collect()
}

#[derive(Debug)]
struct Running {
    line: Line,
    ended: Receiver<()>,
}

/// All registrations of a running server.
#[derive(Debug)]
pub(super) struct Isns {
    entity: Arc<str>,
    /// Servers the command line names.
    given: Vec<IsnsServer>,
    threads: Vec<Running>,
}

impl Isns {
    /// Registers nothing yet.
    pub(super) fn new(plane: &DataPlane, listening: &[SocketAddr]) -> Self {
        let entity = plane.isns_entity.clone().unwrap_or_else(|| entity_of(listening));
        Self { entity: Arc::from(entity), given: plane.isns.clone(), threads: Vec::new() }
    }

    /// With the servers of the command line or else of `config`, and no others, `directory` is registered from now on.
    pub(super) fn serve(&mut self, config: &Config, directory: &Arc<Directory>) {
        let given = core::mem::take(&mut self.given);
        self.register(servers(&given, config), directory);
        self.given = given;
    }

    /// Where there can be no thread, the log says so.
    fn register(&mut self, servers: &[IsnsServer], directory: &Arc<Directory>) {
        self.threads.retain(|thread| {
            let stays = servers.contains(&thread.line.server);
            if !stays {
                thread.line.say(Order::End);
            }
            stays
        });
        for server in servers {
            if self.threads.iter().any(|thread| thread.line.server == *server) {
                continue;
            }
            match self.start(server) {
                Ok(thread) => self.threads.push(thread),
                Err(error) => tracing::error!(%server, %error, "nothing is registered with this iSNS server"),
            }
        }
        self.threads.iter().for_each(|thread| thread.line.say(Order::Serve(Arc::clone(directory))));
    }

    fn start(&self, server: &IsnsServer) -> io::Result<Running> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (orders, received) = channel();
        let (end, ended) = channel();
        let (server, entity) = (server.clone(), Arc::clone(&self.entity));
        let line = Line { server, entity, orders, wake };
        let mut thread = thread::Registering::new(line.server.clone(), &self.entity, PERIOD_S);
        let wake = Arc::clone(&line.wake);
        std::thread::Builder::new().name("isns".to_owned()).spawn(move || {
            thread.run(&received, &wake);
            let _ = end.send(());
        })?;
        Ok(Running { line, ended })
    }

    pub(super) fn lines(&self) -> Vec<Line> {
        self.threads.iter().map(|thread| thread.line.clone()).collect()
    }

    /// Every thread begins to deregister.
    pub(super) fn begin_end(&self) {
        self.threads.iter().for_each(|thread| thread.line.say(Order::End));
    }

    /// Waits until they have, for a while.
    pub(super) fn end(&mut self) {
        let until = Instant::now() + END_TIME;
        for thread in self.threads.drain(..) {
            if thread.ended.recv_timeout(until.saturating_duration_since(Instant::now())).is_err() {
                tracing::warn!(
                    server = %thread.line.server,
                    "an iSNS server did not take the end of our registrations; it forgets them in some minutes"
                );
            }
        }
    }
}

/// The entity of this machine: its host name, and the port where it is not the usual one, so that two servers of one machine
/// are two entities.
pub(super) fn entity_of(listening: &[SocketAddr]) -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    let ports: Vec<u16> = listening.iter().map(SocketAddr::port).collect();
    match ports.first() {
        Some(port) if !ports.contains(&super::cli::ISCSI_PORT) => format!("{host}:{port}"),
        _ => host,
    }
}

/// The servers of a command line, or else of a configuration.
pub(super) fn servers<'a>(given: &'a [IsnsServer], config: &'a Config) -> &'a [IsnsServer] {
    if given.is_empty() { &config.isns.servers } else { given }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_one_machine_are_different_entities() {
        let at = |texts: &[&str]| {
            let addresses: Vec<_> = texts.iter().map(|text| text.parse().unwrap()).collect();
            entity_of(&addresses)
        };
        let host = at(&["0.0.0.0:3260"]);
        assert!(!host.is_empty() && host == host.to_lowercase());
        assert_eq!(at(&["127.0.0.1:4000", "[::]:3260"]), host);
        assert_eq!(at(&["127.0.0.1:4000"]), format!("{host}:4000"));
    }

    #[test]
    fn a_thread_that_has_nothing_to_say_ends_at_once() {
        let mut isns = Isns { entity: Arc::from("store"), given: Vec::new(), threads: Vec::new() };
        let server: IsnsServer = "127.0.0.1:1".parse().unwrap();
        isns.register(std::slice::from_ref(&server), &Arc::default());
        let told = ask(&isns.lines());
        assert_eq!((told.len(), told[0].server.as_str()), (1, "127.0.0.1:1"));
        isns.register(&[], &Arc::default());
        assert_eq!(isns.lines().len(), 0);
        isns.register(&[server], &Arc::default());
        isns.begin_end();
        let begun = Instant::now();
        isns.end();
        assert!(begun.elapsed() < END_TIME);
    }
}
