//! The address of a logical unit: `iscsi://[USER%SECRET@]HOST:PORT/TARGET/LUN`.
//!
//! Knows the text form. Does not know how to reach what it names.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use crate::fail::{Failure, Result, failure};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) chap: Option<(String, String)>,
    pub(crate) portal: String,
    /// The target's name; a `*` in it stands for any text, to be matched against SendTargets.
    pub(crate) target: String,
    pub(crate) lun: u16,
}

impl FromStr for Url {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Url> {
        let bad = || failure!("{text:?} is no LUN address: write iscsi://[USER%SECRET@]HOST:PORT/TARGET/LUN");
        let rest = text.strip_prefix("iscsi://").ok_or_else(bad)?;
        let (authority, path) = rest.split_once('/').ok_or_else(bad)?;
        let (target, lun) = path.rsplit_once('/').ok_or_else(bad)?;
        let (chap, portal) = match authority.rsplit_once('@') {
            Some((login, portal)) => {
                let (user, secret) = login.split_once('%').ok_or_else(bad)?;
                (Some((user.to_string(), secret.to_string())), portal)
            }
            None => (None, authority),
        };
        let has_port = portal.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        if portal.is_empty() || target.is_empty() {
            return Err(bad());
        }
        let portal = if has_port { portal.to_string() } else { format!("{portal}:3260") };
        Ok(Url { chap, portal, target: target.to_string(), lun: lun.parse().map_err(|_| bad())? })
    }
}

/// Without the secret, so that a report can be published.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "iscsi://{}/{}/{}", self.portal, self.target, self.lun)
    }
}

impl Url {
    pub(crate) fn address(&self) -> Result<SocketAddr> {
        let found = self.portal.to_socket_addrs().ok().and_then(|mut list| list.next());
        found.ok_or_else(|| failure!("the portal {} has no address: check its name", self.portal))
    }

    pub(crate) fn is_pattern(&self) -> bool {
        self.target.contains('*')
    }

    pub(crate) fn matches(&self, name: &str) -> bool {
        glob(&self.target, name)
    }
}

fn glob(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, tail)) => name.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len()).any(|skip| rest.is_char_boundary(skip) && glob(tail, &rest[skip..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let url: Url = "iscsi://me%se%cret@[::1]:3261/iqn.2026-11.x:a/7".parse().unwrap();
        assert_eq!(url.chap, Some(("me".into(), "se%cret".into())));
        assert_eq!((url.portal.as_str(), url.target.as_str(), url.lun), ("[::1]:3261", "iqn.2026-11.x:a", 7));
        assert_eq!(url.to_string(), "iscsi://[::1]:3261/iqn.2026-11.x:a/7");
        let url: Url = "iscsi://127.0.0.1/t/0".parse().unwrap();
        assert_eq!(url.portal, "127.0.0.1:3260");
        for bad in ["http://a/b/0", "iscsi://a/b", "iscsi:///b/0", "iscsi://a//0", "iscsi://a/b/x"] {
            assert!(bad.parse::<Url>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_star_stands_for_any_text() {
        assert!(glob("iqn:node-*", "iqn:node-001"));
        assert!(glob("*-0*1", "iqn:node-001"));
        assert!(!glob("iqn:node-*", "iqn:golden"));
        assert!(!glob("iqn", "iqn:a"));
    }
}
