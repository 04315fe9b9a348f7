//! From a configuration to the directory of targets that every core asks at a login.
//!
//! Knows how rules, secrets and portals are told to shards. Does not know images.

use std::net::SocketAddr;

use super::config::{ChapConfig, Config, Credential};
use crate::iscsi::chap::{AuthPolicy, Credentials, Secret};
use crate::scsi::Lun;
use crate::shard::{Directory, DirectoryEntry, ShardId};

/// `owner_of` says which core has a target; `portals` are the addresses as they are bound.
pub(super) fn directory(
    config: &Config,
    portals: &[SocketAddr],
    owner_of: impl Fn(&str) -> ShardId,
) -> Directory {
    let targets = config.targets.iter().map(|target| {
        let rule = |unit: &super::config::UnitConfig| Some((Lun::new(unit.lun)?, unit.access.clone()));
        let entry = DirectoryEntry {
            owner: owner_of(&target.name),
            access: target.access.clone(),
            auth: auth(target.chap.as_ref()),
            redirect: target.redirect.clone(),
            limits: target.limits,
            portals: target.portals.clone(),
            units: target.units.iter().filter_map(rule).collect(),
        };
        (target.name.clone(), entry)
    });
    Directory {
        targets: targets.collect(),
        portals: portals.to_vec(),
        discovery_auth: auth(config.discovery.chap.as_ref()),
        discovery_access: config.discovery.access.clone(),
    }
}

fn auth(chap: Option<&ChapConfig>) -> AuthPolicy {
    let credentials = |credential: &Credential| Credentials {
        user: credential.user.clone(),
        secret: Secret::new(credential.secret.bytes()),
    };
    match chap {
        None => AuthPolicy::None,
        Some(chap) => AuthPolicy::Chap {
            initiator: credentials(&chap.inward),
            mutual: chap.mutual.as_ref().map(credentials),
        },
    }
}
