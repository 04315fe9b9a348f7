//! Keeps a server's registrations equal to what is wanted: what to say next, and what the answer changes.
//!
//! Knows what is wanted, what one server has agreed to, and when to say something again. Does not know sockets or clocks:
//! whoever drives it passes `now` and does what [`Registrar::next`] says.
//!
//! One request is under way at a time. What a server has agreed to is only what it has answered, so that a lost answer
//! leads to the same request again; all of them may be repeated. Targets go in batches. A batch that is refused is
//! halved until the target is found that the server does not want; the others are registered without it.

use core::net::SocketAddr;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::attribute::AttributeError;
use super::pdu::{Assembler, Function, Message, PduError, Sender};
use super::request::{self, Answer, Entity, Groups, Status, Target};
use crate::clock::{Duration, Instant};
use crate::limits::{ISNS_BATCH_BYTES, ISNS_PORTALS_MAX};

/// An answer that has not come by then will not come.
pub const ANSWER_TIME: Duration = Duration::from_secs(30);
/// The pause after a failure, doubled with each further one.
pub const RETRY_MIN: Duration = Duration::from_secs(1);
pub const RETRY_MAX: Duration = Duration::from_secs(60);
/// Of the registration period, the part after which a server hears of us again.
const REFRESH_SHARE: u32 = 3;
const REFRESH_MIN: Duration = Duration::from_secs(1);
const REFRESH_MAX: Duration = Duration::from_secs(300);
/// Targets that are refused one after the other before it is taken to be the registration that is refused.
const REFUSED_IN_A_ROW: u32 = 8;

/// At which portals a target is reached, and by which portal group tag.
pub type Tags = Arc<BTreeMap<SocketAddr, u16>>;

/// What is to be registered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    portals: BTreeSet<SocketAddr>,
    targets: BTreeMap<String, Arc<Groups>>,
}

impl Inventory {
    /// `targets` by name, each with the tags of the portals it is reached at; what it does not name of `portals` does not
    /// lead to it. Portals above `ISNS_PORTALS_MAX`, and targets without any portal, are left out.
    pub fn new(
        portals: impl IntoIterator<Item = SocketAddr>,
        targets: impl IntoIterator<Item = (String, Tags)>,
    ) -> Self {
        let portals: BTreeSet<SocketAddr> = portals.into_iter().take(ISNS_PORTALS_MAX).collect();
        // Most targets are reached in the same way: they share what says so.
        let mut shared: Vec<(Tags, Arc<Groups>)> = Vec::new();
        let mut of = |tags: Tags| {
            if let Some((_, groups)) = shared.iter().find(|(one, _)| Arc::ptr_eq(one, &tags)) {
                return Arc::clone(groups);
            }
            let groups: Groups = portals.iter().map(|portal| (*portal, tags.get(portal).copied())).collect();
            shared.push((tags, Arc::new(groups)));
            shared.last().map(|(_, groups)| Arc::clone(groups)).unwrap_or_default()
        };
        let targets = targets.into_iter().map(|(name, tags)| (name, of(tags)));
        let targets = targets.filter(|(_, groups)| groups.values().any(Option::is_some)).collect();
        Self { portals, targets }
    }

    pub fn portals(&self) -> usize {
        self.portals.len()
    }

    pub fn targets(&self) -> usize {
        self.targets.len()
    }
}

/// What whoever drives a registrar is to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Connect, then say `connected` or `lost`.
    Connect,
    /// Send these bytes.
    Send(Vec<u8>),
    /// Hand in what is received, or come back at this time (`None`: whenever something changes).
    Wait(Option<Instant>),
    /// There is nothing left to do, ever.
    End,
}

/// What people are told, once each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// All that is wanted is registered.
    Registered { portals: usize, targets: usize },
    /// The server does not want this target.
    TargetRefused { target: String, status: Status },
    /// The server wants nothing of us; tried again later.
    Refused { status: Status },
    /// The server has forgotten us: all is registered again.
    Forgotten,
    /// The server takes no portal groups: it will say that every target is reached at every portal.
    NoGroups,
    /// The server does not answer.
    Silent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No connection.
    Down,
    /// Connected; not all that is wanted is registered yet.
    Registering,
    Registered,
    /// Connected, and refused for now.
    Refused(Status),
}

/// How it stands, for whoever asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    pub state: State,
    pub portals: usize,
    pub targets: usize,
    /// Targets the server does not want.
    pub refused: usize,
}

/// What the server has agreed to.
#[derive(Debug, Default)]
struct Known {
    entity: bool,
    /// Asked about since this connection was made.
    verified: bool,
    portals: BTreeSet<SocketAddr>,
    targets: BTreeMap<String, Arc<Groups>>,
}

#[derive(Debug)]
enum Request {
    Register {
        replace: bool,
        portals: Vec<SocketAddr>,
        targets: Vec<Target>,
    },
    RemoveTargets(Vec<String>),
    RemovePortals(Vec<SocketAddr>),
    RemoveAll,
    Query {
        node: String,
    },
    /// One target once more, for a server that finds nothing by queries.
    Refresh {
        target: Target,
    },
}

#[derive(Debug)]
struct Asked {
    transaction: u16,
    until: Instant,
    request: Request,
}

#[derive(Debug)]
enum Link {
    Down { retry_at: Instant },
    Up { assembler: Box<Assembler>, asked: Option<Asked> },
}

/// Whether the server finds us when it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queries {
    Untried,
    Work,
    Fail,
}

#[derive(Debug)]
pub struct Registrar {
    entity: Entity,
    /// As long as the server keeps what is not refreshed.
    period_s: u32,
    /// Nobody has said yet what is wanted.
    idle: bool,
    wanted: Inventory,
    known: Known,
    /// In whose name the server may be asked to forget what it may still have, though it is not known any more.
    leftover: Option<String>,
    /// Wanted targets the server has not agreed to, or to something else.
    stale: BTreeSet<String>,
    refused: BTreeMap<String, Status>,
    refused_in_a_row: u32,
    /// Targets in a batch at most; `None`: as many as fit.
    batch_max: Option<usize>,
    /// Tell portal groups.
    groups: bool,
    queries: Queries,
    link: Link,
    pause: Duration,
    /// The server has refused everything: not before then.
    hold: Option<(Instant, Status)>,
    refresh_at: Instant,
    told_registered: bool,
    told_refused: bool,
    ending: bool,
    /// To deregister, a connection was asked for that was not there.
    last_try: bool,
    transaction: u16,
    /// Answers to what the server asks.
    replies: Vec<u8>,
    notices: Vec<Notice>,
}

/// Bytes that are no answer: the connection is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StrangeBytes {
    #[error(transparent)]
    Pdu(#[from] PduError),
    #[error(transparent)]
    Attribute(#[from] AttributeError),
}

impl Registrar {
    /// Registers nothing until it is told what.
    pub fn new(entity: Entity, now: Instant) -> Self {
        Self {
            period_s: entity.period_s,
            entity,
            idle: true,
            wanted: Inventory::default(),
            known: Known::default(),
            leftover: None,
            stale: BTreeSet::new(),
            refused: BTreeMap::new(),
            refused_in_a_row: 0,
            batch_max: None,
            groups: true,
            queries: Queries::Untried,
            link: Link::Down { retry_at: now },
            pause: RETRY_MIN,
            hold: None,
            refresh_at: now,
            told_registered: false,
            told_refused: false,
            ending: false,
            last_try: false,
            transaction: 0,
            replies: Vec::new(),
            notices: Vec::new(),
        }
    }

    /// From now on this is to be registered, and nothing else.
    pub fn want(&mut self, wanted: Inventory) {
        let first = core::mem::replace(&mut self.idle, false);
        if wanted == self.wanted && !first {
            return;
        }
        self.wanted = wanted;
        self.refused.retain(|name, _| self.wanted.targets.contains_key(name));
        self.told_registered = false;
        self.compare();
    }

    /// Deregisters everything; then `next` says [`Next::End`]. A server that cannot be reached is left alone: it forgets us
    /// when the registration period is over.
    pub fn end(&mut self) {
        self.ending = true;
        self.hold = None;
    }

    pub fn connected(&mut self) {
        self.known.verified = false;
        if self.queries != Queries::Work && !self.ending {
            // It cannot be asked what it still knows.
            self.reset();
        }
        self.link = Link::Up { assembler: Box::default(), asked: None };
    }

    /// The connection is gone, or there is none.
    pub fn lost(&mut self, now: Instant) {
        self.link = Link::Down { retry_at: now.after(self.pause) };
        self.pause = (self.pause * 2).min(RETRY_MAX);
        self.replies.clear();
    }

    pub fn is_connected(&self) -> bool {
        matches!(self.link, Link::Up { .. })
    }

    /// Something to be told, oldest first.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        core::mem::take(&mut self.notices)
    }

    pub fn report(&self) -> Report {
        let state = match (&self.link, self.hold) {
            (Link::Down { .. }, _) => State::Down,
            (_, Some((_, status))) => State::Refused(status),
            _ if self.is_settled() => State::Registered,
            _ => State::Registering,
        };
        let (portals, targets) = (self.known.portals.len(), self.known.targets.len());
        Report { state, portals, targets, refused: self.refused.len() }
    }

    /// All that can be registered is, and nothing else.
    fn is_settled(&self) -> bool {
        let nothing = self.wanted.targets.is_empty() && !self.has_something();
        nothing && self.is_connected()
            || self.known.entity
                && self.known.verified
                && self.stale.is_empty()
                && self.known.portals == self.wanted.portals
                && self.known.targets.keys().all(|name| self.wanted.targets.contains_key(name))
    }

    pub fn next(&mut self, now: Instant) -> Next {
        if let Link::Up { asked: Some(asked), .. } = &self.link
            && now >= asked.until
        {
            self.notices.push(Notice::Silent);
            self.lost(now);
        }
        if self.ending && !self.is_waiting() {
            let connected = self.is_connected();
            let tried = self.last_try;
            self.last_try |= !connected;
            match connected {
                _ if !self.has_something() => return Next::End,
                false if tried => return Next::End,
                false => return Next::Connect,
                true => {}
            }
        }
        if let Link::Down { retry_at } = self.link {
            return match now >= retry_at {
                _ if self.idle => Next::Wait(None),
                true => Next::Connect,
                false => Next::Wait(Some(retry_at)),
            };
        }
        if !self.replies.is_empty() {
            return Next::Send(core::mem::take(&mut self.replies));
        }
        if let Link::Up { asked: Some(asked), .. } = &self.link {
            return Next::Wait(Some(asked.until));
        }
        if let Some((until, _)) = self.hold {
            if now < until {
                return Next::Wait(Some(until));
            }
            self.hold = None;
        }
        match self.choose(now) {
            Some(request) => Next::Send(self.ask(request, now)),
            None => {
                self.tell_when_settled();
                Next::Wait(self.known.entity.then_some(self.refresh_at))
            }
        }
    }

    fn is_waiting(&self) -> bool {
        matches!(&self.link, Link::Up { asked: Some(_), .. })
    }

    fn tell_when_settled(&mut self) {
        if self.is_settled() && !core::mem::replace(&mut self.told_registered, true) {
            let (portals, targets) = (self.known.portals.len(), self.known.targets.len());
            self.notices.push(Notice::Registered { portals, targets });
        }
    }

    /// What is to be asked for now.
    fn choose(&self, now: Instant) -> Option<Request> {
        let known = &self.known;
        if self.ending || self.wanted.targets.is_empty() {
            return self.has_something().then_some(Request::RemoveAll);
        }
        if known.entity && !known.verified && self.queries != Queries::Untried {
            return Some(self.look());
        }
        let portals: Vec<SocketAddr> = self.wanted.portals.difference(&known.portals).copied().collect();
        if !self.stale.is_empty() || known.entity && !portals.is_empty() {
            let (replace, targets) = (!known.entity, self.batch());
            return Some(Request::Register { replace, portals, targets });
        }
        let gone: Vec<String> = self.gone();
        if !gone.is_empty() {
            return Some(Request::RemoveTargets(gone));
        }
        let gone: Vec<SocketAddr> = known.portals.difference(&self.wanted.portals).copied().collect();
        if !gone.is_empty() {
            return Some(Request::RemovePortals(gone));
        }
        (known.entity && (!known.verified || now >= self.refresh_at)).then(|| self.look())
    }

    fn look(&self) -> Request {
        match self.queries {
            Queries::Fail => {
                let node = self.source();
                let groups = self.wanted.targets.get(&node).or_else(|| self.known.targets.get(&node));
                let groups = groups.cloned().unwrap_or_default();
                Request::Refresh { target: (node, groups) }
            }
            Queries::Untried | Queries::Work => Request::Query { node: self.source() },
        }
    }

    /// The next targets, as many as one message may have.
    fn batch(&self) -> Vec<Target> {
        let mut room = ISNS_BATCH_BYTES;
        let mut targets = Vec::new();
        let wanted = self.stale.iter().filter_map(|name| self.wanted.targets.get_key_value(name));
        for (name, groups) in wanted.take(self.batch_max.unwrap_or(usize::MAX)) {
            let target = (name.clone(), Arc::clone(groups));
            let bytes = request::target_bytes(&target);
            if bytes > room && !targets.is_empty() {
                break;
            }
            room = room.saturating_sub(bytes);
            targets.push(target);
        }
        targets
    }

    /// Registered targets that are not wanted any more, as many as one message may have.
    fn gone(&self) -> Vec<String> {
        let names = self.known.targets.keys().filter(|name| !self.wanted.targets.contains_key(*name));
        names.take(ISNS_BATCH_BYTES / (8 + 224)).cloned().collect()
    }

    /// In whose name we speak: of a target that is registered, and stays so if there is one.
    fn source(&self) -> String {
        let mut known = self.known.targets.keys();
        let stays = known.find(|name| self.wanted.targets.contains_key(*name));
        let any = stays.or_else(|| self.known.targets.keys().next()).or(self.leftover.as_ref());
        any.cloned().unwrap_or_default()
    }

    /// The bytes of a request, whose answer is waited for from now on.
    fn ask(&mut self, request: Request, now: Instant) -> Vec<u8> {
        let entity = &self.entity;
        let (function, replace, payload) = match &request {
            Request::Register { replace, portals, targets } => {
                let own = *replace || self.known.targets.is_empty();
                let first = targets.first().filter(|_| own).map(|(name, _)| name.clone());
                let source = first.unwrap_or_else(|| self.source());
                let payload = request::register(&source, entity, portals, targets, self.groups);
                (Function::REGISTER, *replace, payload)
            }
            Request::Refresh { target } => {
                let targets = core::slice::from_ref(target);
                let payload = request::register(&target.0, entity, &[], targets, self.groups);
                (Function::REGISTER, false, payload)
            }
            Request::Query { node } => (Function::QUERY, false, request::query(node)),
            Request::RemoveTargets(names) => {
                (Function::DEREGISTER, false, request::deregister_targets(&self.source(), names))
            }
            Request::RemovePortals(portals) => {
                (Function::DEREGISTER, false, request::deregister_portals(&self.source(), portals))
            }
            Request::RemoveAll => {
                (Function::DEREGISTER, false, request::deregister_entity(&self.source(), entity))
            }
        };
        self.transaction = self.transaction.wrapping_add(1);
        let transaction = self.transaction;
        if let Link::Up { asked, .. } = &mut self.link {
            *asked = Some(Asked { transaction, until: now.after(ANSWER_TIME), request });
        }
        let mut bytes = Vec::new();
        Message { function, sender: Sender::Client, replace, transaction, payload }.encode(&mut bytes);
        bytes
    }

    /// Takes what came from the server.
    ///
    /// # Errors
    /// It is no iSNS: the connection is lost already, as far as this machine knows.
    pub fn received(&mut self, mut bytes: &[u8], now: Instant) -> Result<(), StrangeBytes> {
        while let Link::Up { assembler, .. } = &mut self.link {
            let taken = match assembler.next(&mut bytes) {
                Ok(None) => return Ok(()),
                Ok(Some(message)) => self.take(&message, now),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = taken {
                self.lost(now);
                return Err(error);
            }
        }
        Ok(())
    }

    fn take(&mut self, message: &Message, now: Instant) -> Result<(), StrangeBytes> {
        if !message.function.is_answer() {
            self.reply(message);
            return Ok(());
        }
        let Link::Up { asked, .. } = &mut self.link else { return Ok(()) };
        // An answer nobody waits for is of no interest.
        let Some(Asked { request, .. }) = asked.take_if(|asked| asked.transaction == message.transaction)
        else {
            return Ok(());
        };
        let answer = Answer::parse(&message.payload)?;
        if answer.status == Status::SUCCESSFUL {
            self.pause = RETRY_MIN;
        }
        // Whatever is said keeps the registration (6.2.6).
        let share = Duration::from_secs(u64::from(answer.period_s().unwrap_or(self.period_s)));
        self.period_s = answer.period_s().unwrap_or(self.period_s);
        self.refresh_at = now.after((share / REFRESH_SHARE).clamp(REFRESH_MIN, REFRESH_MAX));
        self.answered(request, &answer, now);
        Ok(())
    }

    /// A server may ask whether we live (5.6.5.13); of everything else we know nothing.
    fn reply(&mut self, message: &Message) {
        if message.function == Function::HEARTBEAT {
            return;
        }
        let mut payload = Vec::new();
        if message.function == Function::STATUS_INQUIRY {
            payload.extend_from_slice(&Status::SUCCESSFUL.0.to_be_bytes());
            let most = crate::limits::ISNS_PDU_BYTES_MAX - payload.len();
            payload.extend_from_slice(&message.payload[..message.payload.len().min(most)]);
        } else {
            payload.extend_from_slice(&Status::NOT_SUPPORTED.0.to_be_bytes());
        }
        // Who asks faster than answers can be sent is not answered.
        if self.replies.len() < crate::limits::ISNS_PDU_BYTES_MAX {
            let (function, transaction) = (message.function.answer(), message.transaction);
            Message { function, sender: Sender::Client, replace: false, transaction, payload }
                .encode(&mut self.replies);
        }
    }

    fn answered(&mut self, request: Request, answer: &Answer<'_>, now: Instant) {
        let good = answer.status == Status::SUCCESSFUL;
        if answer.status.is_passing() {
            return self.hold(answer.status, now);
        }
        match request {
            Request::Register { replace, portals, targets } if good => {
                if replace {
                    self.known = Known { entity: true, ..Known::default() };
                    self.leftover = None;
                }
                self.known.portals.extend(portals);
                for (name, groups) in targets {
                    self.refused.remove(&name);
                    // What is wanted may have changed while this was under way.
                    if self.wanted.targets.get(&name).is_some_and(|wanted| covers(&groups, wanted)) {
                        self.stale.remove(&name);
                    }
                    self.known.targets.insert(name, groups);
                }
                (self.refused_in_a_row, self.told_refused) = (0, false);
                self.batch_max = self.batch_max.map(|most| most.saturating_mul(2));
            }
            Request::Register { targets, .. } => self.refused_registration(targets, answer.status, now),
            Request::RemoveTargets(names) => {
                self.known.targets.retain(|name, _| !names.contains(name));
                self.lost_source(good, answer.status);
                self.compare();
            }
            Request::RemovePortals(portals) => {
                self.known.portals.retain(|portal| !portals.contains(portal));
                self.lost_source(good, answer.status);
            }
            Request::RemoveAll => {
                self.reset();
                self.leftover = None;
            }
            Request::Query { node } => self.looked(good && answer.names(&node)),
            Request::Refresh { .. } if good => self.verified(),
            Request::Refresh { .. } => {
                self.forget();
                self.hold = Some((now.after(RETRY_MAX), answer.status));
            }
        }
    }

    fn refused_registration(&mut self, targets: Vec<Target>, status: Status, now: Instant) {
        if self.groups && status == Status::NO_SUCH_FEATURE {
            self.groups = false;
            self.notices.push(Notice::NoGroups);
            return;
        }
        if targets.len() > 1 {
            // Nothing of it was taken.
            self.batch_max = Some(targets.len() / 2);
            return;
        }
        self.refused_in_a_row += 1;
        let Some((target, _)) = targets.into_iter().next() else { return self.give_up(status, now) };
        self.stale.remove(&target);
        // With something registered, it is the targets that are refused, however many.
        if !self.known.entity && (self.stale.is_empty() || self.refused_in_a_row >= REFUSED_IN_A_ROW) {
            return self.give_up(status, now);
        }
        if self.refused.insert(target.clone(), status).is_none() {
            self.notices.push(Notice::TargetRefused { target, status });
        }
    }

    /// Not this target but all of it is refused. Tried again from the beginning, later.
    fn give_up(&mut self, status: Status, now: Instant) {
        if !core::mem::replace(&mut self.told_refused, true) {
            self.notices.push(Notice::Refused { status });
        }
        self.hold(status, now);
        self.refused_in_a_row = 0;
        self.refused.clear();
        self.batch_max = None;
        self.reset();
    }

    /// Asks nothing for a while.
    fn hold(&mut self, status: Status, now: Instant) {
        if self.ending {
            // There is no later.
            self.reset();
            self.leftover = None;
        } else {
            self.hold = Some((now.after(self.pause), status));
        }
        self.pause = (self.pause * 2).min(RETRY_MAX);
    }

    /// A removal that fails because the server does not know who asks: it has forgotten us.
    fn lost_source(&mut self, good: bool, status: Status) {
        if !good && matches!(status.0, 6..=9) {
            self.forget();
        }
    }

    fn looked(&mut self, found: bool) {
        match (self.queries, found) {
            (_, true) => {
                self.queries = Queries::Work;
                self.verified();
            }
            // It was registered a moment ago: this server does not tell us of ourselves.
            (Queries::Untried, false) => self.queries = Queries::Fail,
            (_, false) => self.forget(),
        }
    }

    /// The server still knows us. What it did not want before, it may want now.
    fn verified(&mut self) {
        self.known.verified = true;
        self.stale.extend(self.refused.keys().cloned());
    }

    fn forget(&mut self) {
        self.notices.push(Notice::Forgotten);
        self.queries = Queries::Untried;
        self.told_registered = false;
        self.reset();
    }

    /// Nothing is known to be registered.
    fn reset(&mut self) {
        if self.known.entity {
            self.leftover = Some(self.source());
        }
        self.known = Known::default();
        self.compare();
    }

    /// The server has something of ours, or may have.
    fn has_something(&self) -> bool {
        self.known.entity || self.leftover.is_some()
    }

    /// Finds what is to be registered.
    fn compare(&mut self) {
        let known = &self.known.targets;
        let is_stale =
            |(name, wanted): &(&String, &Arc<Groups>)| !known.get(*name).is_some_and(|it| covers(it, wanted));
        self.stale = self.wanted.targets.iter().filter(is_stale).map(|(name, _)| name.clone()).collect();
        self.stale.retain(|name| !self.refused.contains_key(name));
    }
}

/// What was said of a target says all that is wanted, and perhaps something of portals that have gone.
fn covers(known: &Arc<Groups>, wanted: &Arc<Groups>) -> bool {
    Arc::ptr_eq(known, wanted) || wanted.iter().all(|(portal, tag)| known.get(portal) == Some(tag))
}
