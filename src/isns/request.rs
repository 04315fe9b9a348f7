//! Requests of a registering target and their answers (RFC 4171, 5.6 and 5.7).
//!
//! Knows which attributes a message has, and in which order. Does not know when it is sent (`registrar`).

use core::fmt;
use core::net::SocketAddr;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::attribute::{AttributeError, AttributeList, Attributes, Tag};

/// The protocol of an entity is iSCSI (6.2.2), and its nodes are targets (6.4.2).
const ISCSI: u32 = 2;
const TARGET: u32 = 1;

const PORTAL: (Tag, Tag) = (Tag::PORTAL_ADDRESS, Tag::PORTAL_PORT);
const GROUP: (Tag, Tag) = (Tag::GROUP_ADDRESS, Tag::GROUP_PORT);

/// Who registers: all its targets and portals belong to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entity {
    /// 1 to `ISNS_ENTITY_BYTES_MAX` bytes.
    pub name: String,
    /// Seconds after which the server forgets one that says nothing.
    pub period_s: u32,
}

/// How a target is reached at each portal of its entity: the portal group tag, or `None` when it is not.
pub type Groups = BTreeMap<SocketAddr, Option<u16>>;

/// A target and how it is reached.
pub type Target = (String, Arc<Groups>);

/// What a server says of a request (5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u32);

impl Status {
    pub const SUCCESSFUL: Self = Self(0);
    pub const NOT_SUPPORTED: Self = Self(15);
    pub const NO_SUCH_FEATURE: Self = Self(23);

    /// The server cannot do it now: an internal error, or busy.
    pub fn is_passing(self) -> bool {
        matches!(self.0, 11 | 12)
    }
}

impl fmt::Display for Status {
    /// The standard's name and number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            0 => "successful",
            1 => "unknown error",
            2 => "message format error",
            3 => "invalid registration",
            5 => "invalid query",
            6 => "source unknown",
            7 => "source absent",
            8 => "source unauthorized",
            9 => "no such entry",
            10 => "version not supported",
            11 => "internal error",
            12 => "busy",
            13 => "option not understood",
            14 => "invalid update",
            15 => "message not supported",
            18 => "attribute not implemented",
            22 => "invalid deregistration",
            23 => "registration feature not supported",
            _ => "another status",
        };
        write!(f, "{name} ({})", self.0)
    }
}

fn begin(source: &str) -> AttributeList {
    let mut list = AttributeList::default();
    list.text(Tag::ISCSI_NAME, source);
    list
}

/// DevAttrReg (5.6.5.1): the entity, and these of its portals and targets. `groups`: say how each target is reached; a
/// server that is not told takes tag 1 for every portal.
pub fn register(
    source: &str,
    entity: &Entity,
    portals: &[SocketAddr],
    targets: &[Target],
    groups: bool,
) -> Vec<u8> {
    let mut list = begin(source);
    list.text(Tag::ENTITY, &entity.name);
    list.empty(Tag::DELIMITER);
    list.text(Tag::ENTITY, &entity.name);
    list.number(Tag::PROTOCOL, ISCSI);
    list.number(Tag::REGISTRATION_PERIOD, entity.period_s);
    for portal in portals {
        list.portal(PORTAL, *portal);
    }
    for (name, reached) in targets {
        list.text(Tag::ISCSI_NAME, name);
        list.number(Tag::NODE_TYPE, TARGET);
        if groups {
            write_groups(reached, &mut list);
        }
    }
    list.0
}

/// Each tag once, and after it the portals it stands for. No tag: not reached there.
fn write_groups(reached: &Groups, list: &mut AttributeList) {
    let mut by_tag: BTreeMap<Option<u16>, Vec<SocketAddr>> = BTreeMap::new();
    for (portal, tag) in reached {
        by_tag.entry(*tag).or_default().push(*portal);
    }
    for (tag, portals) in by_tag {
        match tag {
            Some(tag) => list.number(Tag::GROUP_TAG, u32::from(tag)),
            None => list.empty(Tag::GROUP_TAG),
        }
        for portal in portals {
            list.portal(GROUP, portal);
        }
    }
}

/// Bytes a target takes in a registration.
pub fn target_bytes((name, reached): &Target) -> usize {
    let tags: BTreeSet<_> = reached.values().collect();
    let tags: usize = tags.into_iter().map(|tag| if tag.is_some() { 12 } else { 8 }).sum();
    8 + (name.len() + 1).next_multiple_of(4) + 12 + tags + reached.len() * 36
}

/// DevDereg (5.6.5.4) of targets.
pub fn deregister_targets<'a>(source: &str, names: impl IntoIterator<Item = &'a String>) -> Vec<u8> {
    let mut list = begin(source);
    list.empty(Tag::DELIMITER);
    names.into_iter().for_each(|name| list.text(Tag::ISCSI_NAME, name));
    list.0
}

/// DevDereg of portals.
pub fn deregister_portals(source: &str, portals: &[SocketAddr]) -> Vec<u8> {
    let mut list = begin(source);
    list.empty(Tag::DELIMITER);
    portals.iter().for_each(|portal| list.portal(PORTAL, *portal));
    list.0
}

/// DevDereg of the entity, and so of all it has.
pub fn deregister_entity(source: &str, entity: &Entity) -> Vec<u8> {
    let mut list = begin(source);
    list.empty(Tag::DELIMITER);
    list.text(Tag::ENTITY, &entity.name);
    list.0
}

/// DevAttrQry (5.6.5.2): is `source` still known?
pub fn query(source: &str) -> Vec<u8> {
    let mut list = begin(source);
    list.text(Tag::ISCSI_NAME, source);
    list.empty(Tag::DELIMITER);
    list.empty(Tag::ISCSI_NAME);
    list.0
}

/// An answer: its status, and what comes after the delimiter.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    pub status: Status,
    operating: &'a [u8],
}

impl<'a> Answer<'a> {
    /// # Errors
    /// There is no status, or what follows are no attributes.
    pub fn parse(payload: &'a [u8]) -> Result<Self, AttributeError> {
        let (status, rest) = payload.split_first_chunk::<4>().ok_or(AttributeError)?;
        let status = Status(u32::from_be_bytes(*status));
        let (mut attributes, mut operating) = (Attributes(rest), &rest[rest.len()..]);
        let mut found = false;
        while let Some(attribute) = attributes.next() {
            if attribute?.tag == Tag::DELIMITER && !found {
                (found, operating) = (true, attributes.0);
            }
        }
        Ok(Self { status, operating })
    }

    /// The operating attributes.
    fn attributes(&self) -> impl Iterator<Item = super::attribute::Attribute<'a>> {
        Attributes(self.operating).map_while(Result::ok)
    }

    /// The registration period in seconds, where the server says one.
    pub fn period_s(&self) -> Option<u32> {
        let period = self.attributes().find(|attribute| attribute.tag == Tag::REGISTRATION_PERIOD);
        period.and_then(|attribute| attribute.number()).filter(|period| *period > 0)
    }

    /// True when the node is among what was found.
    pub fn names(&self, node: &str) -> bool {
        self.attributes().any(|attribute| {
            attribute.tag == Tag::ISCSI_NAME
                && attribute.text().is_some_and(|name| name.eq_ignore_ascii_case(node))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(payload: &[u8]) -> Vec<u32> {
        Attributes(payload).map(|attribute| attribute.unwrap().tag.0).collect()
    }

    fn entity() -> Entity {
        Entity { name: "store".to_owned(), period_s: 300 }
    }

    fn portal(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_registration_lists_entity_portals_and_targets_with_their_groups() {
        let (one, two, three) =
            (portal("192.0.2.1:3260"), portal("192.0.2.2:3260"), portal("[2001:db8::1]:3260"));
        let groups = Arc::new(Groups::from([(one, Some(1)), (two, None), (three, Some(1))]));
        let target = ("iqn.2026-11.a:b".to_owned(), groups);
        let payload = register("iqn.2026-11.a:b", &entity(), &[one], std::slice::from_ref(&target), true);
        let node = [32, 33, 51, 49, 50, 51, 49, 50, 49, 50];
        assert_eq!(tags(&payload), [&[32, 1, 0, 1, 2, 6, 16, 17][..], &node].concat());
        let of_groups: Vec<_> = Attributes(&payload)
            .map(Result::unwrap)
            .filter(|attribute| attribute.tag == Tag::GROUP_TAG)
            .map(|attribute| attribute.number())
            .collect();
        assert_eq!(of_groups, [None, Some(1)]);
        let without = register("iqn.2026-11.a:b", &entity(), &[one], &[], true);
        assert_eq!(payload.len() - without.len(), target_bytes(&target));
        let bare = register("iqn.2026-11.a:b", &entity(), &[], &[target], false);
        assert_eq!(tags(&bare), [32, 1, 0, 1, 2, 6, 32, 33]);
    }

    #[test]
    fn a_deregistration_has_no_key() {
        let names = ["iqn.a:b".to_owned(), "iqn.a:c".to_owned()];
        assert_eq!(tags(&deregister_targets("iqn.a:a", &names)), [32, 0, 32, 32]);
        assert_eq!(tags(&deregister_portals("iqn.a:a", &[portal("192.0.2.1:1")])), [32, 0, 16, 17]);
        assert_eq!(tags(&deregister_entity("iqn.a:a", &entity())), [32, 0, 1]);
        assert_eq!(tags(&query("iqn.a:a")), [32, 32, 0, 32]);
    }

    #[test]
    fn an_answer_has_a_status_and_what_follows_the_delimiter() {
        let mut list = AttributeList(vec![0, 0, 0, 0]);
        list.text(Tag::ISCSI_NAME, "iqn.a:key");
        list.empty(Tag::DELIMITER);
        list.text(Tag::ISCSI_NAME, "iqn.a:found");
        list.number(Tag::REGISTRATION_PERIOD, 60);
        let answer = Answer::parse(&list.0).unwrap();
        assert_eq!((answer.status, answer.period_s()), (Status::SUCCESSFUL, Some(60)));
        assert!(answer.names("iqn.a:Found") && !answer.names("iqn.a:key"));
        let refused = Answer::parse(&[0, 0, 0, 9]).unwrap();
        assert_eq!((refused.status.to_string(), refused.period_s()), ("no such entry (9)".to_owned(), None));
        assert_eq!(Answer::parse(&[0, 0, 0]).map(|_| ()), Err(AttributeError));
        assert_eq!(Answer::parse(&list.0[..list.0.len() - 4]).map(|_| ()), Err(AttributeError));
    }
}
