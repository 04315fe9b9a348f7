//! A registrar against a scripted server that keeps objects as RFC 4171 says.
//!
//! Knows requests by reading them back. Does not know sockets.

use core::net::SocketAddr;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::attribute::{Attribute, AttributeList, Attributes, Tag};
use super::pdu::{Assembler, Function, Message, Sender};
use super::registrar::{ANSWER_TIME, Inventory, Next, Notice, RETRY_MAX, RETRY_MIN, Registrar, State};
use super::request::{Entity, Status};
use crate::clock::{Duration, Instant};
use crate::limits::ISNS_BATCH_BYTES;

/// What a server holds of one entity.
#[derive(Default)]
struct FakeServer {
    portals: BTreeSet<SocketAddr>,
    /// Tags by portal; a portal that is not there has none.
    nodes: BTreeMap<String, BTreeMap<SocketAddr, u16>>,
    period_s: u32,
    /// Names it does not want.
    unwanted: BTreeSet<String>,
    /// Answers every registration so.
    always: Option<Status>,
    no_groups: bool,
    /// Queries find nothing.
    blind: bool,
    /// Functions asked for.
    asked: Vec<u16>,
    longest: usize,
}

impl FakeServer {
    fn answer(&mut self, message: &Message) -> Message {
        assert_eq!(message.sender, Sender::Client);
        self.asked.push(message.function.0);
        self.longest = self.longest.max(message.payload.len());
        let attributes: Vec<Attribute<'_>> = Attributes(&message.payload).map(Result::unwrap).collect();
        let split = attributes.iter().position(|attribute| attribute.tag == Tag::DELIMITER).unwrap();
        let (key, operating) = (&attributes[..split], &attributes[split + 1..]);
        let source = key[0].text().unwrap();
        let mut list = AttributeList(vec![0; 4]);
        let status = match message.function {
            Function::REGISTER => self.register(message.replace, operating),
            Function::DEREGISTER => self.deregister(source, operating),
            Function::QUERY => {
                list.empty(Tag::DELIMITER);
                if self.nodes.contains_key(source) && !self.blind {
                    list.text(Tag::ISCSI_NAME, source);
                }
                0
            }
            other => panic!("{other:?}"),
        };
        if message.function == Function::REGISTER && status == 0 && self.period_s > 0 {
            list.empty(Tag::DELIMITER);
            list.number(Tag::REGISTRATION_PERIOD, self.period_s);
        }
        list.0[..4].copy_from_slice(&status.to_be_bytes());
        let (function, transaction) = (message.function.answer(), message.transaction);
        Message { function, sender: Sender::Server, replace: false, transaction, payload: list.0 }
    }

    fn register(&mut self, replace: bool, operating: &[Attribute<'_>]) -> u32 {
        let has = |tag| operating.iter().any(|attribute| attribute.tag == tag);
        let names = operating.iter().filter(|attribute| attribute.tag == Tag::ISCSI_NAME);
        let names: Vec<String> = names.map(|attribute| attribute.text().unwrap().to_owned()).collect();
        if let Some(status) = self.always {
            return status.0;
        }
        if self.no_groups && has(Tag::GROUP_TAG) {
            return 23;
        }
        let is_new = self.portals.is_empty() && self.nodes.is_empty();
        if names.iter().any(|name| self.unwanted.contains(name))
            || is_new && names.is_empty() && !has(Tag::PORTAL_PORT)
        {
            return 3;
        }
        if replace {
            (self.portals, self.nodes) = Default::default();
        }
        let (mut address, mut tag, mut node) = (None, None, None);
        for attribute in operating {
            match attribute.tag {
                Tag::PORTAL_ADDRESS | Tag::GROUP_ADDRESS => address = attribute.address(),
                Tag::PORTAL_PORT => {
                    let portal = SocketAddr::new(address.unwrap(), attribute.tcp_port().unwrap());
                    if self.portals.insert(portal) {
                        // Whoever says nothing is reached there.
                        for tags in self.nodes.values_mut() {
                            tags.insert(portal, 1);
                        }
                    }
                }
                Tag::ISCSI_NAME => {
                    let name = attribute.text().unwrap().to_owned();
                    let all = self.portals.iter().map(|portal| (*portal, 1)).collect();
                    self.nodes.entry(name.clone()).or_insert(all);
                    node = Some(name);
                }
                Tag::GROUP_TAG => tag = attribute.number(),
                Tag::GROUP_PORT => {
                    let portal = SocketAddr::new(address.unwrap(), attribute.tcp_port().unwrap());
                    let tags = self.nodes.get_mut(node.as_ref().unwrap()).unwrap();
                    match tag {
                        Some(tag) => tags.insert(portal, tag as u16),
                        None => tags.remove(&portal),
                    };
                }
                _ => {}
            }
        }
        0
    }

    fn deregister(&mut self, source: &str, operating: &[Attribute<'_>]) -> u32 {
        if !self.nodes.contains_key(source) {
            return 6;
        }
        let mut address = None;
        for attribute in operating {
            match attribute.tag {
                Tag::ENTITY => (self.portals, self.nodes) = Default::default(),
                Tag::ISCSI_NAME => drop(self.nodes.remove(attribute.text().unwrap())),
                Tag::PORTAL_ADDRESS => address = attribute.address(),
                Tag::PORTAL_PORT => {
                    let portal = SocketAddr::new(address.unwrap(), attribute.tcp_port().unwrap());
                    self.portals.remove(&portal);
                    for tags in self.nodes.values_mut() {
                        tags.remove(&portal);
                    }
                }
                _ => panic!("{attribute:?}"),
            }
        }
        0
    }
}

/// Both, and the time.
struct Pair {
    registrar: Registrar,
    server: FakeServer,
    now: Instant,
    reachable: bool,
    notices: Vec<Notice>,
}

impl Pair {
    fn new() -> Self {
        let entity = Entity { name: "store".to_owned(), period_s: 300 };
        let (registrar, server) = (Registrar::new(entity, Instant(0)), FakeServer::default());
        Self { registrar, server, now: Instant(0), reachable: true, notices: Vec::new() }
    }

    /// Until it waits for time to pass; says until when.
    fn settle(&mut self) -> Option<Next> {
        for _ in 0..100_000 {
            let next = self.registrar.next(self.now);
            self.notices.append(&mut self.registrar.take_notices());
            match next {
                Next::Connect if self.reachable => self.registrar.connected(),
                Next::Connect => self.registrar.lost(self.now),
                Next::Send(bytes) => {
                    let message = Assembler::default().next(&mut &*bytes).unwrap().unwrap();
                    let mut answer = Vec::new();
                    self.server.answer(&message).encode(&mut answer);
                    // In two pieces.
                    let (head, tail) = answer.split_at(answer.len() / 2);
                    self.registrar.received(head, self.now).unwrap();
                    self.registrar.received(tail, self.now).unwrap();
                }
                waits => return Some(waits),
            }
        }
        None
    }

    /// Lets time pass, and does what is due.
    fn pass(&mut self, time: Duration) {
        let end = self.now.after(time);
        while let Some(Next::Wait(Some(until))) = self.settle() {
            if until > end {
                break;
            }
            self.now = until;
        }
        self.now = end;
        self.settle();
    }

    fn state(&self) -> State {
        self.registrar.report().state
    }
}

fn portal(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 3260))
}

/// Targets by number, each reached at these portals.
fn inventory(portals: &[u8], targets: impl IntoIterator<Item = (u32, Vec<u8>)>) -> Inventory {
    let reached = |at: Vec<u8>| Arc::new(at.into_iter().map(|number| (portal(number), 1)).collect());
    let targets = targets.into_iter().map(|(number, at)| (name(number), reached(at)));
    Inventory::new(portals.iter().map(|number| portal(*number)), targets)
}

fn name(number: u32) -> String {
    format!("iqn.2026-11.io.goldrush:node-{number:05}")
}

fn simple(count: u32) -> Inventory {
    inventory(&[1, 2], (0..count).map(|number| (number, vec![1, 2])))
}

#[test]
fn everything_is_registered_asked_about_and_told_once() {
    let mut pair = Pair::new();
    assert_eq!(pair.settle(), Some(Next::Wait(None)), "there is nothing to say yet");
    pair.registrar.want(inventory(&[1, 2], [(1, vec![1, 2]), (2, vec![2])]));
    let next = pair.settle();
    assert_eq!(next, Some(Next::Wait(Some(pair.now.after(Duration::from_secs(100))))));
    assert_eq!(pair.server.portals, [portal(1), portal(2)].into());
    assert_eq!(pair.server.nodes[&name(1)], [(portal(1), 1), (portal(2), 1)].into());
    assert_eq!(pair.server.nodes[&name(2)], [(portal(2), 1)].into());
    assert_eq!((pair.server.asked.as_slice(), pair.state()), (&[1, 2][..], State::Registered));
    assert_eq!(pair.notices, [Notice::Registered { portals: 2, targets: 2 }]);
}

#[test]
fn ten_thousand_targets_go_in_messages_that_fit() {
    let mut pair = Pair::new();
    pair.registrar.want(simple(10_000));
    pair.settle();
    assert_eq!((pair.server.nodes.len(), pair.state()), (10_000, State::Registered));
    assert!(pair.server.longest <= ISNS_BATCH_BYTES + 1024, "{}", pair.server.longest);
    assert!((400..600).contains(&pair.server.asked.len()), "{}", pair.server.asked.len());
    pair.registrar.want(simple(1));
    pair.settle();
    assert_eq!((pair.server.nodes.len(), pair.state()), (1, State::Registered));
}

#[test]
fn a_reload_registers_what_came_and_deregisters_what_went() {
    let mut pair = Pair::new();
    pair.registrar.want(inventory(&[1, 2], [(1, vec![1]), (2, vec![1, 2])]));
    pair.settle();
    pair.server.asked.clear();
    pair.registrar.want(inventory(&[2, 3], [(2, vec![2, 3]), (3, vec![3])]));
    pair.settle();
    assert_eq!(pair.server.portals, [portal(2), portal(3)].into());
    assert_eq!(pair.server.nodes.keys().cloned().collect::<Vec<_>>(), [name(2), name(3)]);
    assert_eq!(pair.server.nodes[&name(3)], [(portal(3), 1)].into());
    assert_eq!((pair.server.asked.as_slice(), pair.state()), (&[1, 4, 4][..], State::Registered));
    pair.registrar.want(inventory(&[2, 3], [(2, vec![2, 3]), (3, vec![3])]));
    pair.settle();
    assert_eq!(pair.server.asked.len(), 3, "nothing has changed");
}

#[test]
fn a_clean_end_leaves_nothing() {
    let mut pair = Pair::new();
    pair.registrar.want(simple(3));
    pair.settle();
    pair.registrar.end();
    assert_eq!(pair.settle(), Some(Next::End));
    assert!(pair.server.nodes.is_empty() && pair.server.portals.is_empty());
    let mut never = Pair::new();
    never.registrar.want(simple(3));
    never.reachable = false;
    never.settle();
    never.registrar.end();
    assert_eq!(never.settle(), Some(Next::End));
}

#[test]
fn at_the_end_a_lost_connection_is_made_once_more() {
    let mut pair = Pair::new();
    pair.registrar.want(simple(3));
    pair.settle();
    pair.registrar.lost(pair.now);
    pair.registrar.end();
    assert_eq!(pair.settle(), Some(Next::End));
    assert!(pair.server.nodes.is_empty());
    let mut gone = Pair::new();
    gone.registrar.want(simple(3));
    gone.settle();
    (gone.reachable, _) = (false, gone.registrar.lost(gone.now));
    gone.registrar.end();
    assert_eq!(gone.settle(), Some(Next::End));
}

#[test]
fn the_server_hears_of_us_before_its_period_is_over() {
    let mut pair = Pair::new();
    pair.server.period_s = 30;
    pair.registrar.want(simple(2));
    pair.settle();
    pair.server.asked.clear();
    pair.pass(Duration::from_secs(35));
    assert_eq!(pair.server.asked, [2, 2, 2]);
}

#[test]
fn what_a_restarted_server_has_lost_is_registered_again() {
    let mut pair = Pair::new();
    pair.registrar.want(simple(200));
    pair.settle();
    pair.server = FakeServer::default();
    pair.registrar.lost(pair.now);
    pair.reachable = false;
    pair.pass(RETRY_MAX * 3);
    assert_eq!(pair.state(), State::Down);
    pair.reachable = true;
    pair.pass(RETRY_MAX);
    assert_eq!((pair.server.nodes.len(), pair.state()), (200, State::Registered));
    assert!(pair.notices.contains(&Notice::Forgotten));
}

#[test]
fn a_server_that_kept_everything_is_only_asked() {
    let mut pair = Pair::new();
    pair.registrar.want(simple(200));
    pair.settle();
    pair.server.asked.clear();
    pair.registrar.lost(pair.now);
    pair.pass(RETRY_MIN);
    assert_eq!((pair.server.asked.as_slice(), pair.state()), (&[2][..], State::Registered));
}

#[test]
fn what_somebody_removed_by_hand_is_registered_again() {
    let mut pair = Pair::new();
    pair.registrar.want(simple(2));
    pair.settle();
    (pair.server.nodes, pair.server.portals) = Default::default();
    pair.pass(Duration::from_secs(101));
    assert_eq!((pair.server.nodes.len(), pair.server.portals.len()), (2, 2));
}

#[test]
fn a_server_that_finds_nothing_is_told_again_instead_of_asked() {
    let mut pair = Pair::new();
    pair.server.blind = true;
    pair.registrar.want(simple(2));
    pair.settle();
    assert_eq!((pair.server.asked.as_slice(), pair.state()), (&[1, 2, 1][..], State::Registered));
    pair.pass(Duration::from_secs(101));
    assert_eq!(pair.server.asked, [1, 2, 1, 1]);
    pair.server = FakeServer { blind: true, ..FakeServer::default() };
    pair.registrar.lost(pair.now);
    pair.pass(RETRY_MIN);
    assert_eq!((pair.server.nodes.len(), pair.state()), (2, State::Registered));
}

#[test]
fn one_target_that_is_refused_does_not_keep_the_others_out() {
    let mut pair = Pair::new();
    pair.server.unwanted = [name(0), name(700)].into();
    pair.registrar.want(simple(1000));
    pair.settle();
    let report = pair.registrar.report();
    assert_eq!((pair.server.nodes.len(), report.targets, report.refused), (998, 998, 2));
    assert_eq!(report.state, State::Registered);
    let refused = pair.notices.iter().filter(|notice| matches!(notice, Notice::TargetRefused { .. }));
    assert_eq!(refused.count(), 2);
    // Tried again, and told only when it changes.
    pair.notices.clear();
    pair.pass(Duration::from_secs(101));
    assert_eq!(pair.notices, []);
    pair.server.unwanted.clear();
    pair.pass(Duration::from_secs(101));
    assert_eq!((pair.server.nodes.len(), pair.registrar.report().refused), (1000, 0));
}

#[test]
fn a_server_that_refuses_everything_is_asked_less_and_less() {
    let mut pair = Pair::new();
    pair.server.always = Some(Status(3));
    pair.registrar.want(simple(1000));
    pair.pass(Duration::from_secs(600));
    assert_eq!(pair.state(), State::Refused(Status(3)));
    let notice = Notice::Refused { status: Status(3) };
    assert_eq!(pair.notices.iter().filter(|it| **it == notice).count(), 1, "{:?}", pair.notices.len());
    assert!(pair.server.asked.len() < 500, "{}", pair.server.asked.len());
    pair.server.always = None;
    pair.pass(RETRY_MAX);
    assert_eq!((pair.server.nodes.len(), pair.state()), (1000, State::Registered));
}

#[test]
fn a_busy_server_is_asked_again_and_loses_nothing() {
    let mut pair = Pair::new();
    pair.registrar.want(simple(2));
    pair.settle();
    pair.server.always = Some(Status(12));
    pair.registrar.want(simple(3));
    pair.pass(Duration::from_secs(5));
    assert_eq!((pair.state(), pair.server.nodes.len()), (State::Refused(Status(12)), 2));
    pair.server.always = None;
    pair.pass(RETRY_MAX);
    assert_eq!((pair.state(), pair.server.nodes.len()), (State::Registered, 3));
}

#[test]
fn a_server_without_portal_groups_is_told_the_rest() {
    let mut pair = Pair::new();
    pair.server.no_groups = true;
    pair.registrar.want(simple(2));
    pair.settle();
    assert_eq!((pair.server.nodes.len(), pair.state()), (2, State::Registered));
    assert_eq!(pair.notices[0], Notice::NoGroups);
}

#[test]
fn a_server_that_does_not_answer_is_left_and_tried_again() {
    let mut pair = Pair::new();
    pair.registrar.want(simple(1));
    assert_eq!(pair.registrar.next(pair.now), Next::Connect);
    pair.registrar.connected();
    assert!(matches!(pair.registrar.next(pair.now), Next::Send(_)));
    let until = pair.now.after(ANSWER_TIME);
    assert_eq!(pair.registrar.next(pair.now), Next::Wait(Some(until)));
    assert_eq!(pair.registrar.next(until), Next::Wait(Some(until.after(RETRY_MIN))));
    assert_eq!((pair.state(), pair.registrar.take_notices()), (State::Down, vec![Notice::Silent]));
    pair.registrar.lost(until);
    assert_eq!(pair.registrar.next(until), Next::Wait(Some(until.after(RETRY_MIN * 2))));
}

#[test]
fn a_status_inquiry_is_answered_and_other_questions_are_declined() {
    let mut pair = Pair::new();
    pair.registrar.want(simple(1));
    pair.settle();
    let mut list = AttributeList::default();
    list.text(Tag::ENTITY, "store");
    let mut ask = |function, payload: &[u8]| {
        let mut bytes = Vec::new();
        let (sender, payload) = (Sender::Server, payload.to_vec());
        Message { function, sender, replace: false, transaction: 77, payload }.encode(&mut bytes);
        pair.registrar.received(&bytes, pair.now).unwrap();
        match pair.registrar.next(pair.now) {
            Next::Send(bytes) => Assembler::default().next(&mut &*bytes).unwrap(),
            _ => None,
        }
    };
    let answer = ask(Function::STATUS_INQUIRY, &list.0).unwrap();
    assert_eq!((answer.function, answer.transaction), (Function(0x800D), 77));
    assert_eq!(answer.payload, [&[0; 4][..], &list.0].concat());
    let declined = ask(Function(8), &list.0).unwrap();
    assert_eq!((declined.function, declined.payload), (Function(0x8008), vec![0, 0, 0, 15]));
    assert_eq!(ask(Function::HEARTBEAT, &[0; 4]), None);
}

#[test]
fn strange_bytes_end_the_connection() {
    let mut pair = Pair::new();
    pair.registrar.want(simple(1));
    pair.settle();
    assert!(pair.registrar.received(b"HTTP/1.1 400 Bad Request\r\n", pair.now).is_err());
    assert_eq!(pair.state(), State::Down);
    pair.pass(RETRY_MIN);
    assert_eq!(pair.state(), State::Registered);
}

/// What may happen between two quiet moments.
#[derive(Clone, Debug)]
enum Event {
    Want(BTreeMap<u32, Vec<u8>>, BTreeSet<u8>),
    Lose,
    Restart,
    Pass(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let targets = prop::collection::btree_map(0_u32..12, prop::collection::vec(0_u8..4, 1..4), 0..8);
    prop_oneof![
        4 => (targets, prop::collection::btree_set(0_u8..4, 1..4)).prop_map(|(t, p)| Event::Want(t, p)),
        1 => Just(Event::Lose),
        1 => Just(Event::Restart),
        2 => (0_u64..200).prop_map(Event::Pass),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_the_server_has_in_the_end_what_is_wanted(
        events in prop::collection::vec(event(), 1..20), blind: bool,
    ) {
        let mut pair = Pair::new();
        pair.server.blind = blind;
        let (mut targets, mut portals) = (BTreeMap::new(), BTreeSet::new());
        for event in events {
            match event {
                Event::Want(some, at) => {
                    (targets, portals) = (some, at);
                    let numbers: Vec<u8> = portals.iter().copied().collect();
                    pair.registrar.want(inventory(&numbers, targets.clone()));
                    pair.settle();
                }
                Event::Lose => pair.registrar.lost(pair.now),
                Event::Restart => {
                    pair.server = FakeServer { blind, ..FakeServer::default() };
                    pair.registrar.lost(pair.now);
                }
                Event::Pass(seconds) => pair.pass(Duration::from_secs(seconds)),
            }
        }
        pair.pass(Duration::from_secs(400));
        let at = |numbers: &Vec<u8>| -> BTreeMap<SocketAddr, u16> {
            numbers.iter().filter(|one| portals.contains(one)).map(|one| (portal(*one), 1)).collect()
        };
        let wanted: BTreeMap<String, _> = targets
            .iter()
            .map(|(number, numbers)| (name(*number), at(numbers)))
            .filter(|(_, tags)| !tags.is_empty())
            .collect();
        prop_assert_eq!(&pair.server.nodes, &wanted);
        if !wanted.is_empty() {
            prop_assert_eq!(&pair.server.portals, &portals.iter().map(|one| portal(*one)).collect());
        }
    }
}
