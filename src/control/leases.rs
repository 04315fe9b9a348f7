//! DHCP leases: which address a DHCP server has given to which MAC.
//!
//! Knows the lease files of dnsmasq and of ISC dhcpd. Does not know whether a machine still uses its lease.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::Path;

use crate::shard::{Mac, MacTable};

/// The longest lease file: some hundred thousand leases.
const LEASES_BYTES_MAX: u64 = 64 << 20;

/// Why leases cannot be used. The caller adds the file's name.
#[derive(Debug, thiserror::Error)]
pub enum LeasesError {
    #[error("the file cannot be read: {0}")]
    Unreadable(#[from] std::io::Error),
    #[error("it is not a regular file")]
    NotAFile,
    #[error("it is longer than {LEASES_BYTES_MAX} bytes")]
    TooLong,
}

pub(super) fn load(path: &Path) -> Result<MacTable, LeasesError> {
    // Before it is opened: opening a pipe would wait for somebody to write.
    if !std::fs::metadata(path)?.is_file() {
        return Err(LeasesError::NotAFile);
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(LEASES_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LEASES_BYTES_MAX {
        return Err(LeasesError::TooLong);
    }
    Ok(parse(&String::from_utf8_lossy(&bytes)))
}

/// What the text says; the latest word about an address counts, and what is no lease is passed over. dnsmasq writes
/// `EXPIRY MAC ADDRESS NAME ID` on a line, ISC dhcpd a block `lease ADDRESS { ... }`.
fn parse(text: &str) -> MacTable {
    let mut table = MacTable::default();
    let mut block: Option<Lease> = None;
    for line in text.lines().map(str::trim) {
        if let Some(lease) = &mut block {
            if line.starts_with('}') {
                lease.note(&mut table);
                block = None;
            } else {
                lease.line(line);
            }
            continue;
        }
        let mut words = line.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some("lease"), Some(address), Some("{")) => {
                block = address.parse().ok().map(|address| Lease { address, mac: None, active: true });
            }
            (Some(expiry), Some(mac), Some(address)) if expiry.parse::<u64>().is_ok() => {
                if let (Ok(mac), Ok(address)) = (mac.parse(), address.parse::<IpAddr>()) {
                    table.insert(address, mac);
                }
            }
            _ => {}
        }
    }
    table
}

/// A block of dhcpd's file. One that is free or has no hardware address takes back what was said before.
struct Lease {
    address: IpAddr,
    mac: Option<Mac>,
    active: bool,
}

impl Lease {
    fn line(&mut self, line: &str) {
        let line = line.trim_end_matches(';');
        if let Some(state) = line.strip_prefix("binding state ") {
            self.active = state.trim() == "active";
        } else if let Some(mac) = line.strip_prefix("hardware ethernet ") {
            self.mac = mac.trim().parse().ok();
        }
    }

    fn note(&self, table: &mut MacTable) {
        match self.mac.filter(|_| self.active) {
            Some(mac) => {
                table.insert(self.address, mac);
            }
            None => table.remove(self.address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn known(text: &str, address: &str) -> Option<String> {
        parse(text).get(address.parse().unwrap()).map(|mac| mac.to_string())
    }

    #[test]
    fn leases_of_dnsmasq_are_lines() {
        let text = "1795500000 52:54:00:00:00:01 192.0.2.1 node-001 01:52:54:00:00:00:01\nduid 00:01\n\
                    0 52:54:00:00:00:02 192.0.2.2 * *\n1795500000 77 2001:db8::1 a 00:01\n";
        assert_eq!(known(text, "192.0.2.1").as_deref(), Some("52:54:00:00:00:01"));
        assert_eq!(known(text, "192.0.2.2").as_deref(), Some("52:54:00:00:00:02"));
        assert_eq!(known(text, "2001:db8::1"), None, "an IPv6 lease has an IAID where the MAC would be");
    }

    #[test]
    fn leases_of_dhcpd_are_blocks_and_the_latest_counts() {
        let text = "# a comment\nlease 192.0.2.1 {\n  starts 2 2026/11/24 09:00:00;\n  binding state active;\n  \
                    hardware ethernet 52:54:00:00:00:01;\n}\nlease 192.0.2.2 {\n  binding state active;\n  \
                    hardware ethernet 52:54:00:00:00:02;\n}\nlease 192.0.2.1 {\n  binding state free;\n  \
                    hardware ethernet 52:54:00:00:00:01;\n}\n";
        assert_eq!(known(text, "192.0.2.1"), None);
        assert_eq!(known(text, "192.0.2.2").as_deref(), Some("52:54:00:00:00:02"));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "([0-9a-f.:]{0,20}|lease |[{};\\n ]|binding state |hardware ethernet ){0,60}") {
            let _ = parse(&text);
        }
    }
}
