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
    pub fn find(&self, target: &str) -> Option<&DirectoryEntry> {
        self.targets.get(target)
    }
}
