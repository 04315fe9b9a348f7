//! Which targets there are, who owns them and who may log in: the same immutable list on every shard.
//!
//! Knows names and policies. Does not know units or images.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::iscsi::chap::AuthPolicy;

use super::ShardId;

#[derive(Clone, Debug)]
pub struct DirectoryEntry {
    pub owner: ShardId,
    /// Place among the owner's targets.
    pub index: u32,
    /// Initiators that may log in, normalized (`iscsi::name`); `None`: any.
    pub initiators: Option<Vec<String>>,
    pub auth: AuthPolicy,
}

impl DirectoryEntry {
    /// `initiator` is normalized, and so is the list.
    pub fn admits(&self, initiator: &str) -> bool {
        match &self.initiators {
            None => true,
            Some(names) => names.iter().any(|name| name == initiator),
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// By normalized target name.
    pub targets: BTreeMap<String, DirectoryEntry>,
    pub portals: Vec<SocketAddr>,
}

impl Directory {
    /// The portals as an initiator that came in at `local` can use them: one that listens on every address is
    /// named by the address it was reached at, and left out for the other address family.
    pub fn portals_at(&self, local: Option<SocketAddr>) -> impl Iterator<Item = SocketAddr> {
        self.portals.iter().filter_map(move |portal| {
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

    #[test]
    fn a_portal_on_every_address_is_named_by_the_one_it_was_reached_at() {
        let portals =
            ["0.0.0.0:3260", "[::]:3261", "192.0.2.1:3260"].map(|text| text.parse().unwrap()).to_vec();
        let directory = Directory { portals, ..Directory::default() };
        let at = |local: &str| {
            directory.portals_at(local.parse().ok()).map(|portal| portal.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(at("10.0.0.9:3260"), ["10.0.0.9:3260", "192.0.2.1:3260"]);
        assert_eq!(at("[2001:db8::9]:3261"), ["[2001:db8::9]:3261", "192.0.2.1:3260"]);
        assert_eq!(at("unknown"), ["192.0.2.1:3260"]);
    }
}
