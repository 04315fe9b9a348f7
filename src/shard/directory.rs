//! Which targets there are, who owns them and who may log in: the same list on every shard, replaced as a whole.
//!
//! Knows names and policies. Does not know units or images.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::iscsi::chap::AuthPolicy;
use crate::scsi::Lun;

use super::{Admission, RateLimits, ShardId};

#[derive(Clone, Debug)]
pub struct DirectoryEntry {
    pub owner: ShardId,
    /// Who may log in, and see that there is such a target.
    pub access: Admission,
    pub auth: AuthPolicy,
    /// It is served elsewhere: whoever may log in is sent there.
    pub redirect: Option<Redirect>,
    /// How fast it may be used.
    pub limits: RateLimits,
    /// Portals that lead to it; `None`: all of the directory.
    pub portals: Option<Vec<SocketAddr>>,
    /// Who sees which unit; one that is not here is seen by all.
    pub units: Vec<(Lun, Admission)>,
}

impl DirectoryEntry {
    /// True when it is reached by this portal of the server.
    fn is_at(&self, portal: &SocketAddr) -> bool {
        self.portals.as_ref().is_none_or(|portals| portals.contains(portal))
    }

    /// True when a connection that came in at `local` came to one of its portals. One whose address nobody knows came to
    /// none: a target with portals of its own is not shown where it should not be.
    pub fn is_reached_at(&self, local: Option<SocketAddr>) -> bool {
        let Some(portals) = &self.portals else { return true };
        let Some(local) = local.map(canonical) else { return false };
        portals.iter().any(|portal| *portal == local || listens_everywhere(portal, local))
    }
}

/// An IPv4 peer of an IPv6 socket came by IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// True when `portal` stands for every address of its family, and `local` is one of these.
fn listens_everywhere(portal: &SocketAddr, local: SocketAddr) -> bool {
    portal.ip().is_unspecified() && portal.is_ipv4() == local.is_ipv4() && portal.port() == local.port()
}

/// Where a target has gone (RFC 7143, 11.13.5: status 0101h or 0102h, and TargetAddress).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// As it stands in TargetAddress: `192.0.2.1:3260`, `[2001:db8::1]:3260` or `storage-2:3260`.
    pub address: String,
    pub permanent: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// By normalized target name.
    pub targets: BTreeMap<String, DirectoryEntry>,
    pub portals: Vec<SocketAddr>,
    /// How initiators prove themselves before they are told of targets.
    pub discovery_auth: AuthPolicy,
    pub discovery_access: Admission,
}

impl Directory {
    /// The portals as an initiator that came in at `local` can use them: one that listens on every address is
    /// named by the address it was reached at, and left out for the other address family.
    pub fn portals_at<'a>(
        &'a self,
        entry: &'a DirectoryEntry,
        local: Option<SocketAddr>,
    ) -> impl Iterator<Item = SocketAddr> + 'a {
        let local = local.map(canonical);
        self.portals.iter().filter(|portal| entry.is_at(portal)).filter_map(move |portal| {
            if !portal.ip().is_unspecified() {
                return Some(*portal);
            }
            let local = local.filter(|local| local.is_ipv4() == portal.is_ipv4())?;
            Some(SocketAddr::new(local.ip(), portal.port()))
        })
    }

    pub fn find(&self, target: &str) -> Option<&DirectoryEntry> {
        self.targets.get(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(portals: Option<&[&str]>) -> DirectoryEntry {
        DirectoryEntry {
            owner: ShardId(0),
            access: Admission::default(),
            auth: AuthPolicy::None,
            redirect: None,
            limits: RateLimits::default(),
            portals: portals.map(|texts| texts.iter().map(|text| text.parse().unwrap()).collect()),
            units: Vec::new(),
        }
    }

    #[test]
    fn a_target_with_portals_of_its_own_is_reached_by_these_alone() {
        let portals = ["0.0.0.0:3260", "192.0.2.1:3261"].map(|text| text.parse().unwrap()).to_vec();
        let directory = Directory { portals, ..Directory::default() };
        let storage = entry(Some(&["192.0.2.1:3261"]));
        let local = "192.0.2.1:3260".parse().ok();
        let shown: Vec<_> = directory.portals_at(&storage, local).map(|portal| portal.to_string()).collect();
        assert_eq!(shown, ["192.0.2.1:3261"]);
        assert!(!storage.is_reached_at(local));
        assert!(storage.is_reached_at("[::ffff:192.0.2.1]:3261".parse().ok()));
        assert!(entry(Some(&["0.0.0.0:3260"])).is_reached_at(local));
        assert!(entry(None).is_reached_at(local));
    }

    #[test]
    fn a_portal_on_every_address_is_one_of_its_family_only() {
        let (four, six) = (entry(Some(&["0.0.0.0:3260"])), entry(Some(&["[::]:3260"])));
        let at = |text: &str| Some(text.parse().unwrap());
        assert!(four.is_reached_at(at("192.0.2.1:3260")) && !six.is_reached_at(at("192.0.2.1:3260")));
        assert!(six.is_reached_at(at("[2001:db8::9]:3260")) && !four.is_reached_at(at("[2001:db8::9]:3260")));
        assert!(four.is_reached_at(at("[::ffff:192.0.2.1]:3260")));
        assert!(!four.is_reached_at(at("192.0.2.1:3261")));
    }

    #[test]
    fn who_came_in_nobody_knows_where_reaches_no_target_with_portals_of_its_own() {
        assert!(!entry(Some(&["0.0.0.0:3260", "192.0.2.1:3260"])).is_reached_at(None));
        assert!(entry(None).is_reached_at(None));
    }

    #[test]
    fn a_portal_on_every_address_is_named_by_the_one_it_was_reached_at() {
        let portals =
            ["0.0.0.0:3260", "[::]:3261", "192.0.2.1:3260"].map(|text| text.parse().unwrap()).to_vec();
        let directory = Directory { portals, ..Directory::default() };
        let entry = entry(None);
        let at = |local: &str| {
            let portals = directory.portals_at(&entry, local.parse().ok());
            portals.map(|portal| portal.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(at("10.0.0.9:3260"), ["10.0.0.9:3260", "192.0.2.1:3260"]);
        assert_eq!(at("[2001:db8::9]:3261"), ["[2001:db8::9]:3261", "192.0.2.1:3260"]);
        assert_eq!(at("[::ffff:10.0.0.9]:3260"), ["10.0.0.9:3260", "192.0.2.1:3260"]);
        assert_eq!(at("unknown"), ["192.0.2.1:3260"]);
    }
}
