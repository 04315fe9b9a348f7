//! At which addresses initiators reach this machine, and so which portals are registered.
//!
//! Knows interfaces, and the rule by which discovery tells portals (`shard::Directory::portals_at`). Does not know servers.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use nix::net::if_::InterfaceFlags;

use crate::isns::registrar::{Inventory, Tags};
use crate::shard::{Directory, PORTAL_GROUP};

/// The addresses of this machine that others may use: of interfaces that are up, neither loopback nor link-local. `also` is
/// one that was used. What the kernel does not tell is not known.
pub(super) fn of_machine(also: Option<IpAddr>) -> BTreeSet<IpAddr> {
    let mut found = BTreeSet::new();
    if let Ok(interfaces) = nix::ifaddrs::getifaddrs() {
        for interface in interfaces.filter(|one| one.flags.contains(InterfaceFlags::IFF_UP)) {
            let Some(address) = interface.address else { continue };
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            let v6 = address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip()));
            found.extend(v4.or(v6).filter(|address| !address.is_loopback() && !is_link_local(address)));
        }
    }
    found.extend(also.map(|address| address.to_canonical()));
    found
}

/// Means nothing without the interface it belongs to.
fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// What is to be registered of `directory` where initiators come in at `locals`: each target at the portals that discovery
/// would tell them. `loopback`: whoever asks is on this machine, and can use its loopback addresses.
pub(super) fn inventory(directory: &Directory, locals: &BTreeSet<IpAddr>, loopback: bool) -> Inventory {
    let mut by_rule: HashMap<Option<&[SocketAddr]>, Tags> = HashMap::new();
    let mut targets = Vec::new();
    for (name, entry) in &directory.targets {
        let reached = by_rule.entry(entry.portals.as_deref()).or_insert_with(|| {
            let at = locals.iter().map(|local| Some(SocketAddr::new(*local, 0))).chain([None]);
            let portals = at.flat_map(|local| directory.portals_at(entry, local));
            let portals = portals.map(|portal| SocketAddr::new(portal.ip().to_canonical(), portal.port()));
            let of_use = |portal: &SocketAddr| {
                !is_link_local(&portal.ip()) && (loopback || !portal.ip().is_loopback())
            };
            Arc::new(portals.filter(of_use).map(|portal| (portal, PORTAL_GROUP)).collect())
        });
        targets.push((name.clone(), Arc::clone(reached)));
    }
    let portals: BTreeSet<SocketAddr> =
        by_rule.values().flat_map(|portals| portals.keys().copied()).collect();
    Inventory::new(portals, targets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iscsi::chap::AuthPolicy;
    use crate::shard::{Admission, DirectoryEntry, RateLimits, ShardId};

    fn directory(portals: &[&str], targets: &[(&str, Option<&[&str]>)]) -> Directory {
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        let entry = |own: Option<&[&str]>| DirectoryEntry {
            owner: ShardId(0),
            access: Admission::default(),
            auth: AuthPolicy::None,
            redirect: None,
            limits: RateLimits::default(),
            portals: own.map(parse),
            units: Vec::new(),
        };
        let targets = targets.iter().map(|(name, own)| ((*name).to_owned(), entry(*own))).collect();
        Directory { targets, portals: parse(portals), ..Directory::default() }
    }

    fn told(directory: &Directory, locals: &[&str], loopback: bool) -> Inventory {
        inventory(directory, &locals.iter().map(|text| text.parse().unwrap()).collect(), loopback)
    }

    fn expected(portals: &[&str], targets: &[(&str, &[&str])]) -> Inventory {
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        let tags = |texts: &[&str]| Arc::new(parse(texts).into_iter().map(|portal| (portal, 1)).collect());
        let targets = targets.iter().map(|(name, reached)| ((*name).to_owned(), tags(reached)));
        Inventory::new(parse(portals), targets)
    }

    #[test]
    fn a_listener_on_every_address_is_each_address_of_its_family() {
        let directory = directory(&["0.0.0.0:3260", "[::]:3261"], &[("iqn.a:a", None)]);
        let portals = ["192.0.2.1:3260", "198.51.100.1:3260", "[2001:db8::1]:3261"];
        assert_eq!(
            told(&directory, &["192.0.2.1", "198.51.100.1", "2001:db8::1"], false),
            expected(&portals, &[("iqn.a:a", &portals)])
        );
    }

    #[test]
    fn a_target_with_portals_of_its_own_is_registered_at_these() {
        let directory = directory(
            &["0.0.0.0:3260", "192.0.2.1:3261"],
            &[
                ("iqn.a:a", None),
                ("iqn.a:b", Some(&["192.0.2.1:3261"])),
                ("iqn.a:c", Some(&["0.0.0.0:3260"])),
            ],
        );
        let (all, wild, own) = (["192.0.2.1:3260", "192.0.2.1:3261"], ["192.0.2.1:3260"], ["192.0.2.1:3261"]);
        assert_eq!(
            told(&directory, &["192.0.2.1"], false),
            expected(&all, &[("iqn.a:a", &all), ("iqn.a:b", &own), ("iqn.a:c", &wild)])
        );
    }

    #[test]
    fn loopback_is_told_on_this_machine_only() {
        let directory =
            directory(&["127.0.0.1:3260", "192.0.2.1:3260", "[fe80::1]:3260"], &[("iqn.a:a", None)]);
        let far = ["192.0.2.1:3260"];
        assert_eq!(told(&directory, &[], false), expected(&far, &[("iqn.a:a", &far)]));
        let near = ["127.0.0.1:3260", "192.0.2.1:3260"];
        assert_eq!(told(&directory, &[], true), expected(&near, &[("iqn.a:a", &near)]));
    }

    #[test]
    fn addresses_of_this_machine_are_those_others_can_use() {
        let found = of_machine("127.0.0.1".parse().ok());
        assert!(found.contains(&"127.0.0.1".parse::<IpAddr>().unwrap()), "it was used");
        let strange = of_machine(None).into_iter().find(|it| it.is_loopback() || it.is_unspecified());
        assert_eq!(strange, None);
    }
}
