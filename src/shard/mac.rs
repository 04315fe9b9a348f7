//! Ethernet addresses, and which IP address is known to have which.
//!
//! Knows their text form. Does not know where the knowledge comes from.

use core::fmt;
use core::str::FromStr;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac([u8; 6]);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write six pairs of hexadecimal digits, such as 52:54:00:12:34:56")]
pub struct MacError;

impl FromStr for Mac {
    type Err = MacError;

    /// Pairs between `:` or `-`.
    fn from_str(text: &str) -> Result<Self, MacError> {
        let mut mac = [0; 6];
        let mut pairs = text.split([':', '-']);
        for byte in &mut mac {
            let pair = pairs.next().ok_or(MacError)?;
            if pair.len() != 2 || !pair.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(MacError);
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| MacError)?;
        }
        if pairs.next().is_some() { Err(MacError) } else { Ok(Self(mac)) }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Which MAC an address is known to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MacTable(BTreeMap<IpAddr, Mac>);

impl MacTable {
    /// What was known of the address before is forgotten.
    pub fn insert(&mut self, address: IpAddr, mac: Mac) -> Option<Mac> {
        self.0.insert(address.to_canonical(), mac)
    }

    pub fn remove(&mut self, address: IpAddr) {
        self.0.remove(&address.to_canonical());
    }

    pub fn get(&self, address: IpAddr) -> Option<Mac> {
        self.0.get(&address.to_canonical()).copied()
    }

    /// What `other` knows is believed before what this knows.
    pub fn overlay(&mut self, other: &Self) {
        self.0.extend(other.0.iter().map(|(address, mac)| (*address, *mac)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_are_six_pairs() {
        assert_eq!("52:54:00:AB:cd:ef".parse::<Mac>().unwrap().to_string(), "52:54:00:ab:cd:ef");
        assert!("52-54-00-ab-cd-ef".parse::<Mac>().is_ok());
        for text in ["", "52:54:00:ab:cd", "52:54:00:ab:cd:ef:00", "5:54:00:ab:cd:ef", "+2:54:00:ab:cd:ef"] {
            assert_eq!(text.parse::<Mac>(), Err(MacError), "{text}");
        }
    }

    #[test]
    fn what_is_laid_over_a_table_is_believed_first() {
        let (one, two): (Mac, Mac) =
            ("52:54:00:00:00:01".parse().unwrap(), "52:54:00:00:00:02".parse().unwrap());
        let [a, b]: [IpAddr; 2] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap());
        let (mut leases, mut hosts) = (MacTable::default(), MacTable::default());
        leases.insert(a, one);
        leases.insert(b, one);
        hosts.insert(a, two);
        leases.overlay(&hosts);
        assert_eq!((leases.get(a), leases.get(b)), (Some(two), Some(one)));
        assert_eq!(leases.get("::ffff:192.0.2.1".parse().unwrap()), Some(two), "the same address");
        leases.remove(a);
        assert_eq!(leases.get(a), None);
    }
}
