//! Who may use a target or one of its LUNs: rules over initiator names, addresses and MACs.
//!
//! Knows how a rule matches. Does not know where rules are written, nor secrets (`iscsi::chap`).

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Mac, MacTable};

/// An initiator name, or a pattern of names: `*` stands for any text, `?` for one character. Both sides are normalized
/// (`iscsi::name`), so letters are compared as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern(String);

impl NamePattern {
    pub fn new(pattern: String) -> Self {
        Self(pattern)
    }

    /// Goes back to the last star only, so it takes at most pattern times name steps.
    fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut p, mut n) = (0, 0);
        let mut star: Option<(usize, usize)> = None;
        while n < name.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    star = Some((p, n));
                    p += 1;
                }
                Some(byte) if *byte == b'?' || *byte == name[n] => {
                    p += 1;
                    n += 1;
                }
                _ => match star {
                    Some((at, from)) => {
                        star = Some((at, from + 1));
                        p = at + 1;
                        n = from + 1;
                    }
                    None => return false,
                },
            }
        }
        pattern[p..].iter().all(|byte| *byte == b'*')
    }
}

/// A rule admits whom every list it has admits; a missing list admits everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    pub initiators: Option<Vec<NamePattern>>,
    pub addresses: Option<Vec<IpNet>>,
    pub macs: Option<Vec<Mac>>,
}

impl Admission {
    /// `initiator` is normalized. A peer whose MAC is not among the `known` has none. An IPv4 peer of an IPv6 socket is an IPv4 peer.
    pub fn admits(&self, initiator: &str, peer: IpAddr, known: &MacTable) -> bool {
        let peer = peer.to_canonical();
        let named =
            self.initiators.as_ref().is_none_or(|names| names.iter().any(|name| name.matches(initiator)));
        let near = self.addresses.as_ref().is_none_or(|nets| nets.iter().any(|net| net.contains(&peer)));
        let mac = || known.get(peer);
        let carded = self.macs.as_ref().is_none_or(|macs| mac().is_some_and(|mac| macs.contains(&mac)));
        named && near && carded
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn admits(names: Option<&[&str]>, nets: Option<&[&str]>, initiator: &str, peer: &str) -> bool {
        let access = Admission {
            initiators: names.map(|names| names.iter().map(|name| NamePattern((*name).to_owned())).collect()),
            addresses: nets.map(|nets| nets.iter().map(|net| net.parse().unwrap()).collect()),
            macs: None,
        };
        access.admits(initiator, peer.parse().unwrap(), &MacTable::default())
    }

    #[test]
    fn every_list_that_is_there_must_admit() {
        let (names, nets) = (Some(&["iqn.a:*"][..]), Some(&["192.0.2.0/24", "2001:db8::/32"][..]));
        assert!(admits(names, nets, "iqn.a:b", "192.0.2.7"));
        assert!(admits(names, nets, "iqn.a:b", "2001:db8::7"));
        assert!(!admits(names, nets, "iqn.b:b", "192.0.2.7"));
        assert!(!admits(names, nets, "iqn.a:b", "192.0.3.7"));
        assert!(admits(None, nets, "iqn.b:b", "192.0.2.7"));
        assert!(admits(names, None, "iqn.a:b", "203.0.113.1"));
        assert!(admits(None, None, "iqn.x:y", "::1"));
    }

    #[test]
    fn an_ipv4_peer_of_an_ipv6_socket_is_an_ipv4_peer() {
        assert!(admits(None, Some(&["192.0.2.0/24"]), "iqn.a:b", "::ffff:192.0.2.7"));
        assert!(!admits(None, Some(&["::/0"]), "iqn.a:b", "::ffff:192.0.2.7"));
    }

    #[test]
    fn a_mac_counts_only_where_it_is_known() {
        let [card, other]: [Mac; 2] =
            ["52:54:00:00:00:01", "52:54:00:00:00:02"].map(|mac| mac.parse().unwrap());
        let [here, there]: [IpAddr; 2] = ["192.0.2.1", "192.0.2.2"].map(|address| address.parse().unwrap());
        let mut known = MacTable::default();
        known.insert(here, card);
        let rule = |macs: &[Mac]| Admission { macs: Some(macs.to_vec()), ..Admission::default() };
        assert!(rule(&[other, card]).admits("iqn.a:b", here, &known));
        assert!(!rule(&[other]).admits("iqn.a:b", here, &known));
        assert!(!rule(&[card]).admits("iqn.a:b", there, &known));
        assert!(!rule(&[card]).admits("iqn.a:b", here, &MacTable::default()));
    }

    /// Every way to take the stars apart.
    fn slow(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => (0..=name.len()).any(|skip| slow(rest, &name[skip..])),
            (Some((b'?', rest)), Some((_, name))) => slow(rest, name),
            (Some((byte, rest)), Some((first, name))) => byte == first && slow(rest, name),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn patterns_match_like_the_obvious_way(pattern in "[ab*?]{0,8}", name in "[ab]{0,10}") {
            let expected = slow(pattern.as_bytes(), name.as_bytes());
            prop_assert_eq!(NamePattern(pattern).matches(&name), expected);
        }
    }
}
