//! What a login asks of its shard: which target, whose core, whose former session.
//!
//! Knows the directory, hand-off and reinstatement. Does not know keys, stages or secrets (`iscsi::login`).

use crate::io::{Io, Op};
use crate::iscsi::chap::AuthPolicy;
use crate::iscsi::login::{Established, LoginEvent, LoginMachine, TargetAnswer};
use crate::iscsi::negotiate;
use crate::iscsi::params::Tsih;
use crate::iscsi::session::{ConnectionId, ConnectionStart, Keepalive, Session, SessionKind, SessionStart};

use super::boot::Visit;
use super::connection::{Connection, Phase};
use super::mailbox::{Handoff, Message, Named, Sent};
use super::session::{Member, ServedSession, SessionKey};
use super::target::SessionEntry;
use super::token::{Kind, Token};
use super::{ConnKey, DirectoryEntry, PORTAL_GROUP, Redirect, Shard, ShardConfig, ShardId};
use crate::scsi::Nexus;

/// Segments up to this length are what firmware takes: it cannot answer a ping.
const FIRMWARE_SEGMENT_BYTES: u32 = 8192;
/// Seconds an initiator has to begin a negotiation it is asked for.
const NEGOTIATE_SECONDS: u16 = 30;

/// A login machine with a challenge nobody else gets: the shard's seed and a running number, hashed.
pub(super) fn new_login(config: &ShardConfig, count: &mut u64) -> Box<LoginMachine> {
    use md5::{Digest, Md5};
    *count += 1;
    let mut challenge = [0; 32];
    for (half, out) in challenge.chunks_mut(16).enumerate() {
        let mut hash = Md5::new();
        hash.update(config.seed);
        hash.update(count.to_be_bytes());
        hash.update([half as u8]);
        out.copy_from_slice(&hash.finalize());
    }
    Box::new(LoginMachine::new(challenge, config.queue_depth))
}

impl<I: Io> Shard<I> {
    /// Runs the login machine of a connection until it wants more from its initiator.
    pub(super) fn login_event(&mut self, key: ConnKey) {
        loop {
            let Some(connection) = self.connections.get_mut(key) else { return };
            let Phase::Login(login) = &mut connection.phase else { return };
            match login.poll_event() {
                None => break,
                Some(LoginEvent::TargetNamed { initiator, target, isid, tsih, cid }) => {
                    if !self.target_named(key, Named { initiator, target, isid, tsih, cid }) {
                        return;
                    }
                }
                Some(LoginEvent::Established(established)) => {
                    if established.joins && !self.can_join(&established) {
                        self.close(key, "the session it was to join is gone or full");
                        return;
                    }
                    self.stage_login(key);
                    self.core.metrics.counts.logins_accepted += 1;
                    self.established(key, *established);
                    return;
                }
                Some(LoginEvent::Failed(failure)) => {
                    self.core.metrics.counts.logins_refused += 1;
                    self.stage_login(key);
                    if let Some(connection) = self.connections.get_mut(key) {
                        tracing::info!(peer = %connection.peer, %failure, "login refused");
                        connection.enter(Phase::Draining(None));
                    }
                    return;
                }
            }
        }
        self.stage_login(key);
    }

    fn stage_login(&mut self, key: ConnKey) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let Phase::Login(login) = &mut connection.phase else { return };
        login.poll_output(&mut connection.login_out);
        self.mark_dirty(key);
    }

    /// Answers the machine, or starts to move the connection. False when it moves.
    fn target_named(&mut self, key: ConnKey, named: Named) -> bool {
        let Named { initiator, target, isid, tsih, cid } = named;
        let Some(connection) = self.connections.get(key) else { return true };
        let (local, peer) = (self.io.local_address(connection.socket), connection.peer.ip());
        let Some(name) = target else {
            let answer = self.answer_to_discovery(&initiator, peer);
            self.answer(key, answer);
            return true;
        };
        let answer = match self.directory.find(&name) {
            None => {
                tracing::info!(%initiator, target = %name, "login refused: no such target");
                TargetAnswer::NotFound
            }
            // First: where a target does not exist, nobody learns whom it would admit.
            Some(entry) if !entry.is_reached_at(local) => {
                tracing::info!(%initiator, target = %name, "login refused: no such target at this portal");
                TargetAnswer::NotFound
            }
            Some(entry) if !entry.access.admits(&initiator, peer, &self.macs) => {
                tracing::info!(%initiator, %peer, target = %name, "login refused: the target's rules do not admit it");
                TargetAnswer::Forbidden
            }
            Some(DirectoryEntry { redirect: Some(Redirect { address, permanent }), .. }) => {
                tracing::info!(%initiator, target = %name, to = %address, permanent, "login sent elsewhere");
                TargetAnswer::Moved { address: address.clone(), permanent: *permanent }
            }
            Some(entry) if entry.owner != self.config.id => {
                let to = entry.owner;
                self.begin_hand_off(key, to, Named { initiator, target: Some(name), isid, tsih, cid });
                return false;
            }
            Some(entry) => {
                let auth = entry.auth.clone();
                let Some(index) = self.core.target_index(&name) else {
                    tracing::error!(target = %name, "login refused: the target is not where the directory says");
                    self.answer(key, TargetAnswer::NotFound);
                    return true;
                };
                if tsih != Tsih(0) {
                    let named = Named { initiator, target: Some(name), isid, tsih, cid };
                    self.answer_to_join(&named, index, auth)
                } else if self.core.targets[index as usize].has_room() {
                    let tsih_for_new_session = self.core.targets[index as usize].fresh_tsih();
                    TargetAnswer::Accept {
                        auth,
                        portal_group: PORTAL_GROUP,
                        target_alias: None,
                        tsih_for_new_session,
                        max_connections: self.config.max_connections,
                    }
                } else {
                    tracing::warn!(%initiator, target = %name, "login refused: the target has all the sessions it takes");
                    TargetAnswer::OutOfResources
                }
            }
        };
        self.answer(key, answer);
        true
    }

    /// Discovery stays where it landed; its TSIH only has to be non-zero.
    fn answer_to_discovery(&self, initiator: &str, peer: std::net::IpAddr) -> TargetAnswer {
        if !self.directory.discovery_access.admits(initiator, peer, &self.macs) {
            tracing::info!(%initiator, %peer, "discovery refused: the rules do not admit it");
            return TargetAnswer::Forbidden;
        }
        TargetAnswer::Accept {
            auth: self.directory.discovery_auth.clone(),
            portal_group: PORTAL_GROUP,
            target_alias: None,
            tsih_for_new_session: Tsih((self.login_count as u16).max(1)),
            max_connections: 1,
        }
    }

    fn answer(&mut self, key: ConnKey, answer: TargetAnswer) {
        if let Some(connection) = self.connections.get_mut(key)
            && let Phase::Login(login) = &mut connection.phase
        {
            login.target_answer(answer);
        }
    }

    /// May this login become one more connection of the session it names (RFC 7143, 6.3.1 and 6.3.4)?
    fn answer_to_join(&self, named: &Named, index: u32, auth: AuthPolicy) -> TargetAnswer {
        let target = &self.core.targets[index as usize];
        let key = target.session_to_join(&named.initiator, named.isid, named.tsih);
        let Some(session) = key.and_then(|key| self.sessions.get(key)) else {
            tracing::info!(initiator = %named.initiator, "login refused: the session to be joined does not exist");
            return TargetAnswer::SessionDoesNotExist;
        };
        let machine = &session.machine;
        if machine.connection_of(named.cid).is_none() && !machine.has_room() {
            tracing::info!(initiator = %named.initiator, "login refused: the session has all its connections");
            return TargetAnswer::TooManyConnections;
        }
        TargetAnswer::Join {
            auth,
            portal_group: PORTAL_GROUP,
            params: machine.session_params().clone(),
            window: machine.window(),
        }
    }

    /// The session that a login was allowed to join may have ended meanwhile, or have been joined by others.
    fn can_join(&self, established: &Established) -> bool {
        self.session_joined_by(established).and_then(|key| self.sessions.get(key)).is_some_and(|session| {
            session.machine.connection_of(established.cid).is_some() || session.machine.has_room()
        })
    }

    fn session_joined_by(&self, established: &Established) -> Option<SessionKey> {
        let index = self.core.target_index(established.target_name.as_deref()?)?;
        let target = &self.core.targets[index as usize];
        target.session_to_join(&established.initiator_name, established.isid, established.tsih)
    }

    fn established(&mut self, key: ConnKey, established: Established) {
        let discovery = established.session_kind == negotiate::SessionKind::Discovery;
        let Some(connection) = self.connections.get_mut(key) else { return };
        let params = &established.params;
        connection.tx.set_digests(params.header_digest, params.data_digest);
        connection.framer.set_digests(params.header_digest, params.data_digest);
        connection.framer.set_max_data_len(params.max_recv_segment);
        // Firmware that takes 8 KiB segments cannot answer a ping (iPXE gives up its session): TCP keepalives find
        // out whether it lives.
        let answers_pings = !discovery && params.max_send_segment > FIRMWARE_SEGMENT_BYTES;
        let interval = self.config.ping_interval;
        let start = ConnectionStart {
            cid: established.cid,
            params: params.clone(),
            next_stat_sn: established.next_stat_sn,
            keepalive: answers_pings.then_some(Keepalive { idle: interval, answer: interval }),
            now: self.core.now,
        };
        if established.joins {
            self.join(key, &established, start);
        } else {
            self.begin_session(key, established, start);
        }
    }

    /// One more connection of a session. One with the same CID is reinstated by it (RFC 7143, 6.3.4): what the former
    /// had begun ends, and the session goes on.
    fn join(&mut self, key: ConnKey, established: &Established, start: ConnectionStart) {
        let Some(session_key) = self.session_joined_by(established) else { return };
        let Some(session) = self.sessions.get_mut(session_key) else { return };
        let former = session.machine.connection_of(start.cid).and_then(|on| session.connection(on));
        if let Some(former) = former {
            self.leave_session(former);
        }
        let Some(session) = self.sessions.get_mut(session_key) else { return };
        let Some(on) = session.machine.join(start) else { return };
        session.set_connection(on, Some(key));
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.enter(Phase::Full(Member { session: session_key, on }));
        tracing::info!(initiator = %session.initiator, peer = %connection.peer, cid = established.cid.0, "connection joined its session");
        if let Some(former) = former {
            self.close(former, "its initiator has reinstated the connection");
        }
        self.ask_to_negotiate(session_key, on);
        self.after_session(session_key);
    }

    /// An initiator that came without the operational stage was never told how long a segment we take.
    fn ask_to_negotiate(&mut self, key: SessionKey, on: ConnectionId) {
        if let Some(session) = self.sessions.get_mut(key)
            && !session.machine.params(on).is_segment_declared()
        {
            session.machine.async_negotiate(on, NEGOTIATE_SECONDS);
        }
    }

    fn begin_session(&mut self, key: ConnKey, established: Established, start: ConnectionStart) {
        let Some(connection) = self.connections.get(key) else { return };
        let peer = connection.peer;
        let discovery = established.session_kind == negotiate::SessionKind::Discovery;
        let name = established.target_name.as_deref().filter(|_| !discovery);
        let index = name.and_then(|name| self.core.target_index(name));
        let initiator = established.initiator_name.clone();
        if !discovery && index.is_none() {
            self.close(key, "its target was removed while it logged in");
            return;
        }
        let mut nexus = Nexus(0);
        if let Some(index) = index {
            // RFC 7143, 6.3.5: the same name and ISID again end the former session.
            let former = self.core.targets[index as usize].session_of(&initiator, established.isid);
            if let Some(former) = former.map(|entry| entry.session) {
                self.close_session(former, "its initiator has logged in again");
            }
            let target = &mut self.core.targets[index as usize];
            let Some(granted) = target.attach(&initiator, established.isid) else {
                self.close(key, "the target has all the sessions it takes");
                return;
            };
            nexus = granted;
            self.mask_units(index, nexus, &initiator, peer.ip());
            let target = &self.core.targets[index as usize];
            tracing::info!(%initiator, target = %target.name, %peer, "logged in");
        } else {
            tracing::debug!(%initiator, %peer, "discovery session");
        }
        let segment = start.params.max_send_segment;
        let machine = Session::new(SessionStart {
            kind: if discovery { SessionKind::Discovery } else { SessionKind::Normal },
            exp_cmd_sn: established.exp_cmd_sn,
            queue_depth: established.queue_depth,
            connection: start,
        });
        let now = self.core.now;
        let visit = match index {
            Some(index) => self.core.targets[index as usize].boot.login(now, segment),
            None => Visit { since: now, system: true },
        };
        let session = ServedSession::new(machine, key, index, nexus, initiator.clone(), peer, visit);
        let session = Box::new(session);
        let Ok(session_key) = self.sessions.insert(session) else {
            // Cannot be: there is room for as many sessions as connections.
            if let Some(index) = index {
                let target = &mut self.core.targets[index as usize];
                target.release(nexus);
                target.boot.ended(now, visit);
            }
            self.close(key, "too many sessions on this shard");
            return;
        };
        if let Some(connection) = self.connections.get_mut(key) {
            connection.enter(Phase::Full(Member { session: session_key, on: ConnectionId::LEADING }));
        }
        if let Some(index) = index {
            let (isid, tsih) = (established.isid, established.tsih);
            let target = &mut self.core.targets[index as usize];
            let started = target.life.login(&initiator, isid, segment);
            let entry = SessionEntry { session: session_key, initiator, isid, tsih, nexus };
            target.enter(entry.clone());
            self.await_drain(session_key);
            if started {
                self.machine_started(index, &entry);
            }
            self.ask_to_negotiate(session_key, ConnectionId::LEADING);
        }
    }

    /// LUN masking: hides the units that the initiator may not see. True when that was otherwise before.
    pub(super) fn mask_units(
        &mut self,
        index: u32,
        nexus: Nexus,
        initiator: &str,
        peer: std::net::IpAddr,
    ) -> bool {
        let device = &mut self.core.targets[index as usize].device;
        let Some(entry) = self.directory.find(device.target_name()) else { return false };
        let macs = &self.macs;
        let sees = |lun| {
            let rule = entry.units.iter().find(|(of, _)| Some(*of) == lun);
            rule.is_none_or(|(_, access)| access.admits(initiator, peer, macs))
        };
        let visible: Vec<bool> = device.units().map(|unit| sees(device.lun(unit))).collect();
        device.show(nexus, &visible)
    }

    /// Stops receiving; the socket moves when that has ended.
    fn begin_hand_off(&mut self, key: ConnKey, to: ShardId, named: Named) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let former = core::mem::replace(&mut connection.phase, Phase::Closing);
        let Phase::Login(login) = former else {
            connection.phase = former;
            return;
        };
        connection.phase = Phase::HandingOff { login, to, named };
        if connection.recv_armed {
            let token = Token::of(Kind::Recv, key, 0).encode();
            self.core.submit(Token::new(Kind::Cancel, 0, 0), Op::Cancel { token });
        } else {
            self.hand_off(key);
        }
    }

    /// Moves the connection, once nothing is in flight on it.
    pub(super) fn hand_off(&mut self, key: ConnKey) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if connection.recv_armed || connection.tx.in_flight() {
            return;
        }
        if !connection.tx.is_empty() {
            self.send_one(key);
            return;
        }
        let Some(mut connection) = self.connections.remove(key) else { return };
        let mut unread = core::mem::take(&mut connection.carried);
        let mut skip = connection.unread_done as usize;
        while let Some(buf) = connection.unread.pop_front() {
            unread.extend_from_slice(&self.io.rx_bytes(&buf)[skip..]);
            skip = 0;
            self.io.rx_release(buf);
        }
        let Some(socket) = self.io.release_socket(connection.socket) else { return };
        let Phase::HandingOff { login, to, named } = connection.phase else { return };
        let handoff = Handoff {
            socket,
            peer: connection.peer,
            login,
            framer: connection.framer,
            named,
            unread,
            unsent: connection.login_out,
        };
        self.outbox.push((to, Message::Handoff(Box::new(handoff))));
        self.post();
    }

    /// Gives messages to their shards; what finds no room stays for the next turn.
    fn post(&mut self) {
        let outbox = core::mem::take(&mut self.outbox);
        for (to, message) in outbox {
            match self.peers.get(to.0 as usize) {
                Some(peer) => {
                    if let Sent::Full(message) = peer.send(message) {
                        self.outbox.push((to, message));
                    }
                }
                None => {
                    tracing::error!(shard = to.0, "a message was for a shard that does not exist")
                }
            }
        }
    }

    /// Takes everything out of the mailbox.
    pub(super) fn mail(&mut self) {
        self.post();
        while let Some(message) = self.mailbox.take() {
            match message {
                Message::Handoff(handoff) => self.take_over(*handoff),
                Message::Golden { frame } => self.core.golden_filled(frame),
                Message::Ahead(batch) => self.core.cache.read_along(&batch),
                Message::Errand(mail) => self.core.errand_mail(*mail),
                Message::Kept { ticket, stable, settled } => self.kept(ticket, stable, settled),
                Message::Report { asked, reply } => {
                    let _ = reply.try_send(self.report(asked));
                }
                Message::Reset { target, force, reply } => self.reset_asked(&target, force, reply),
                Message::Change(change) => self.change(*change),
                Message::Macs(macs) => self.macs = macs,
                Message::Stop => self.begin_stop(),
            }
        }
    }

    /// Tells other shards of golden pages they wait for.
    pub(super) fn pass_golden_news(&mut self) {
        if self.core.golden_news.is_empty() {
            return;
        }
        for (frame, shards) in self.core.golden_news.drain(..) {
            for to in 0..self.peers.len() as u16 {
                if to != self.config.id.0 && shards & 1 << (to % 64) != 0 {
                    self.outbox.push((ShardId(to), Message::Golden { frame }));
                }
            }
        }
        self.post();
    }

    /// Hands letters to the shards they are for.
    pub(super) fn pass_errands(&mut self) {
        if self.core.errands.out.is_empty() {
            return;
        }
        for (to, mail) in self.core.errands.out.drain(..) {
            self.outbox.push((to, Message::Errand(Box::new(mail))));
        }
        self.post();
    }

    fn take_over(&mut self, handoff: Handoff<I::Socket>) {
        let Ok(socket) = self.io.adopt_socket(handoff.socket) else {
            tracing::warn!(peer = %handoff.peer, "connection dropped: too many sockets on this shard");
            return;
        };
        let nobody = ConnKey::from_parts(u32::MAX, 0);
        let now = self.core.now;
        let connection = Connection::new(nobody, socket, handoff.peer, handoff.login, now);
        let Ok(key) = self.connections.insert(connection) else {
            tracing::warn!(peer = %handoff.peer, "connection dropped: too many connections on this shard");
            self.core.submit(Token::new(Kind::Cancel, 0, 0), Op::Close { socket });
            return;
        };
        if let Some(connection) = self.connections.get_mut(key) {
            connection.key = key;
            connection.framer = handoff.framer;
            connection.carried = handoff.unread;
            connection.login_out = handoff.unsent;
            connection.arm_recv(&mut self.core);
        }
        self.next_tick = now;
        if self.target_named(key, handoff.named) {
            self.login_event(key);
            self.process(key);
        }
    }
}
