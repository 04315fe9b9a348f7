//! Who may see and use what: the keys `initiators`, `addresses`, `macs`, `leases`, `host`, `portals`, `redirect` and the table `discovery`.
//!
//! Knows their spelling and bounds. Does not know how a rule matches (`shard::Admission`).

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;
use toml::Spanned;

use super::{DiscoveryConfig, RawDiscovery, RawRedirect, RawTarget, Reader};
use crate::control::{leases, name};
use crate::limits::ISCSI_NAME_BYTES_MAX;
use crate::shard::{Admission, Mac, MacTable, NamePattern, Redirect};

/// Entries of one list.
const RULES_MAX: usize = 4096;
/// The longest DNS name.
const HOST_BYTES_MAX: usize = 253;

type Texts = Spanned<Vec<Spanned<String>>>;

/// A machine whose MAC is known without DHCP.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHost {
    mac: Spanned<String>,
    address: Spanned<String>,
}

impl Reader {
    /// Lease files, each of which can be read now.
    pub(super) fn leases(&mut self, files: &[Spanned<PathBuf>]) -> Vec<PathBuf> {
        let mut paths = Vec::with_capacity(files.len());
        for file in files {
            let path = self.folder.join(file.get_ref());
            if let Err(error) = leases::load(&path) {
                self.refuse(file, format!("leases {}: {error}", path.display()));
            }
            paths.push(path);
        }
        paths
    }

    /// What the hosts of the file say.
    pub(super) fn hosts(&mut self, hosts: &[RawHost]) -> MacTable {
        let mut stated = MacTable::default();
        for host in hosts {
            match (mac(host.mac.get_ref()), host.address.get_ref().parse::<IpAddr>()) {
                (Ok(mac), Ok(address)) => {
                    if stated.insert(address, mac).is_some_and(|former| former != mac) {
                        self.refuse(&host.address, format!("address {address} has another MAC above"));
                    }
                }
                (Err(reason), _) => self.refuse(&host.mac, reason),
                (_, Err(_)) => {
                    let reason = format!("\"{}\" is no address", host.address.get_ref());
                    self.refuse(&host.address, reason);
                }
            }
        }
        stated
    }

    pub(super) fn discovery(&mut self, raw: Option<RawDiscovery>) -> DiscoveryConfig {
        let Some(raw) = raw else { return DiscoveryConfig::default() };
        let access = self.access(raw.initiators, raw.addresses, raw.macs);
        DiscoveryConfig { access, chap: raw.chap.and_then(|chap| self.chap(chap)) }
    }

    pub(super) fn access(
        &mut self,
        initiators: Option<Texts>,
        addresses: Option<Texts>,
        macs: Option<Texts>,
    ) -> Admission {
        Admission {
            initiators: initiators.map(|list| self.rules(list, "initiators", initiator)),
            addresses: addresses.map(|list| self.rules(list, "addresses", address)),
            macs: macs.map(|list| self.rules(list, "macs", mac)),
        }
    }

    fn rules<T>(&mut self, raw: Texts, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        if raw.get_ref().is_empty() {
            self.refuse(&raw, format!("{key} is empty and would admit nobody: remove the key to admit all"));
        }
        if raw.get_ref().len() > RULES_MAX {
            self.refuse(&raw, format!("{key} has more than {RULES_MAX} entries: use patterns or subnets"));
            return Vec::new();
        }
        let mut rules = Vec::new();
        for text in raw.into_inner() {
            match parse(text.get_ref()) {
                Ok(rule) => rules.push(rule),
                Err(reason) => self.refuse(&text, reason),
            }
        }
        rules
    }

    /// Portals of one target: each must be an address the server listens on, as it is written there.
    pub(super) fn portals(&mut self, raw: Option<Texts>, listen: &[SocketAddr]) -> Option<Vec<SocketAddr>> {
        let raw = raw?;
        if raw.get_ref().is_empty() {
            self.refuse(
                &raw,
                "portals is empty and would lead nowhere: remove the key to use all".to_owned(),
            );
        }
        let mut portals = Vec::new();
        for text in raw.into_inner() {
            match text.get_ref().parse::<SocketAddr>() {
                Ok(portal) if listen.contains(&portal) && portal.port() != 0 => portals.push(portal),
                Ok(portal) if portal.port() == 0 => {
                    self.refuse(
                        &text,
                        "a portal of a target needs a port that is known before: not 0".to_owned(),
                    );
                }
                _ => {
                    let reason = format!(
                        "portal \"{}\" is none of the listen addresses: write it as there",
                        text.get_ref()
                    );
                    self.refuse(&text, reason);
                }
            }
        }
        Some(portals)
    }

    pub(super) fn redirect(&mut self, raw: Option<RawRedirect>) -> Option<Redirect> {
        let RawRedirect { to, permanent } = raw?;
        if is_portal(to.get_ref()) {
            return Some(Redirect { address: to.into_inner(), permanent });
        }
        let reason = format!(
            "redirect to \"{}\": write ADDRESS:PORT or NAME:PORT, such as 192.0.2.11:3260 or storage-2:3260",
            to.get_ref()
        );
        self.refuse(&to, reason);
        None
    }

    /// A target without LUNs is one that is served elsewhere.
    pub(super) fn check_luns(&mut self, name: &str, raw: &RawTarget) {
        match (&raw.redirect, raw.lun.is_empty()) {
            (None, true) => self.refuse(&raw.name, format!("target {name} has no [[target.lun]]")),
            (Some(_), false) => {
                let reason = format!(
                    "target {name} is redirected, so its LUNs are served elsewhere: remove them here"
                );
                self.refuse(&raw.name, reason);
            }
            _ => {}
        }
    }
}

/// A name, or a pattern with `*` and `?`.
fn initiator(text: &str) -> Result<NamePattern, String> {
    if text.contains(['*', '?']) {
        let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '*' | '?');
        if text.len() <= ISCSI_NAME_BYTES_MAX && text.chars().all(letters) {
            return Ok(NamePattern::new(text.to_ascii_lowercase()));
        }
        return Err(format!(
            "\"{text}\" is no pattern of initiator names: write letters, digits, \".-:\", * for any text, ? for one character"
        ));
    }
    let name =
        name::initiator_name(text).map_err(|error| format!("\"{text}\" is no initiator name: {error}"))?;
    Ok(NamePattern::new(name))
}

/// An address, or a subnet.
fn address(text: &str) -> Result<IpNet, String> {
    let net = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    match net {
        Some(net) if net.addr() == net.network() => Ok(net),
        Some(net) => Err(format!("\"{text}\" is not the first address of its subnet: write {}", net.trunc())),
        None => Err(format!(
            "\"{text}\" is no address or subnet: write 192.0.2.7, 192.0.2.0/24, 2001:db8::7 or 2001:db8::/64"
        )),
    }
}

fn is_portal(text: &str) -> bool {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return address.port() != 0 && !address.ip().is_unspecified();
    }
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
    (1..=HOST_BYTES_MAX).contains(&host.len())
        && host.chars().all(letters)
        && port.parse::<u16>().is_ok_and(|port| port != 0)
}

fn mac(text: &str) -> Result<Mac, String> {
    text.parse::<Mac>().map_err(|error| format!("\"{text}\" is no MAC: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_names_patterns_addresses_and_subnets() {
        for good in ["iqn.2010-04.org.ipxe:node-001", "iqn.2010-04.org.iPXE:*", "*:node-???"] {
            assert!(initiator(good).is_ok(), "{good}");
        }
        for bad in ["node-001", "iqn.2010-04.org.ipxe:node 1", "*%", ""] {
            assert!(initiator(bad).is_err(), "{bad}");
        }
        for good in ["192.0.2.7", "192.0.2.0/24", "2001:db8::/64", "::1", "0.0.0.0/0"] {
            assert!(address(good).is_ok(), "{good}");
        }
        assert_eq!(
            address("192.0.2.7/24").unwrap_err(),
            "\"192.0.2.7/24\" is not the first address of its subnet: write 192.0.2.0/24"
        );
        for bad in ["192.0.2", "192.0.2.0/33", "storage", ""] {
            assert!(address(bad).unwrap_err().contains("is no address or subnet"), "{bad}");
        }
    }

    #[test]
    fn redirects_lead_to_a_host_and_a_port() {
        for good in ["192.0.2.11:3260", "[2001:db8::1]:3260", "storage-2.example.com:860"] {
            assert!(is_portal(good), "{good}");
        }
        for bad in
            ["192.0.2.11", "192.0.2.11:0", "0.0.0.0:3260", "a b:1", ":1", "host:99999", "2001:db8::1:3260"]
        {
            assert!(!is_portal(bad), "{bad}");
        }
    }
}
