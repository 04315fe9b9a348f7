//! Which targets there are, who owns them and who may log in: the same immutable list on every shard.
//!
//! Knows names and policies. Does not know units or images.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::iscsi::login::AuthPolicy;

use super::ShardId;

#[derive(Clone, Debug)]
pub struct DirectoryEntry {
    pub owner: ShardId,
    /// Place among the owner's targets.
    pub index: u32,
    /// Initiators that may log in; `None`: any.
    pub initiators: Option<Vec<String>>,
    pub auth: AuthPolicy,
}

impl DirectoryEntry {
    /// iSCSI names are compared without regard to case (RFC 3722 prepares them to lower case).
    pub fn admits(&self, initiator: &str) -> bool {
        match &self.initiators {
            None => true,
            Some(names) => names.iter().any(|name| name.eq_ignore_ascii_case(initiator)),
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// By lower-case target name.
    pub targets: BTreeMap<String, DirectoryEntry>,
    pub portals: Vec<SocketAddr>,
}

impl Directory {
    pub fn find(&self, target: &str) -> Option<&DirectoryEntry> {
        self.targets.get(&target.to_ascii_lowercase())
    }
}
