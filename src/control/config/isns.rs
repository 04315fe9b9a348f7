//! Where targets are registered: the table `isns`, and how a server is written.
//!
//! Knows spelling and bounds. Does not know what is registered (`control::isns`).

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::Deserialize;
use toml::Spanned;

use super::{Origin, Reader};
use crate::control::isns::ISNS_PORT;
use crate::limits::{ISNS_ENTITY_BYTES_MAX, ISNS_SERVERS_MAX};

/// The longest DNS name.
const HOST_BYTES_MAX: usize = 253;

/// With whom everything is registered, and as what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IsnsConfig {
    pub servers: Vec<IsnsServer>,
    /// Who registers; `None`: this machine by its host name.
    pub entity: Option<String>,
    /// Where the entity stands.
    pub entity_place: Option<Origin>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IsnsServer {
    /// A name or a numeric address.
    pub host: String,
    pub port: u16,
}

impl fmt::Display for IsnsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for IsnsServer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "\"{text}\" is no iSNS server: write HOST or HOST:PORT, such as isns.example.com, 192.0.2.5:3205 or [2001:db8::5]"
            )
        };
        if let Ok(address) = text.parse::<Ipv6Addr>() {
            return Ok(Self { host: address.to_string(), port: ISNS_PORT });
        }
        let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, rest)) => {
                let address: Ipv6Addr = host.parse().map_err(|_| wrong())?;
                let port =
                    if rest.is_empty() { None } else { Some(rest.strip_prefix(':').ok_or_else(wrong)?) };
                (address.to_string(), port)
            }
            None => {
                let (host, port) =
                    text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
                let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
                if host.is_empty() || host.len() > HOST_BYTES_MAX || !host.chars().all(fits) {
                    return Err(wrong());
                }
                (host.to_lowercase(), port)
            }
        };
        let port = port.map_or(Ok(ISNS_PORT), |port| port.parse().map_err(|_| wrong()))?;
        if port == 0 { Err(wrong()) } else { Ok(Self { host, port }) }
    }
}

/// An entity identifier (RFC 4171, 6.2.1), as it is registered: lower case.
///
/// # Errors
/// What is wrong with it.
pub fn entity(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > ISNS_ENTITY_BYTES_MAX || text.contains(char::is_control) {
        return Err(format!("the entity must be one line of 1 to {ISNS_ENTITY_BYTES_MAX} bytes"));
    }
    let name = text.to_lowercase();
    if name.len() > ISNS_ENTITY_BYTES_MAX {
        return Err(format!("the entity must be one line of 1 to {ISNS_ENTITY_BYTES_MAX} bytes"));
    }
    if name.starts_with("isns:") {
        return Err("names that begin with isns: are given by iSNS servers: choose another entity".to_owned());
    }
    Ok(name)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawIsns {
    servers: Spanned<Vec<Spanned<String>>>,
    entity: Option<Spanned<String>>,
}

impl Reader {
    pub(super) fn isns(&mut self, raw: Option<RawIsns>) -> IsnsConfig {
        let Some(raw) = raw else { return IsnsConfig::default() };
        let mut config = IsnsConfig::default();
        if raw.servers.get_ref().len() > ISNS_SERVERS_MAX {
            self.refuse(&raw.servers, format!("there are more than {ISNS_SERVERS_MAX} iSNS servers"));
            return config;
        }
        for text in raw.servers.into_inner() {
            match text.get_ref().parse::<IsnsServer>() {
                Ok(server) if config.servers.contains(&server) => {
                    self.refuse(&text, format!("the iSNS server {server} stands twice"));
                }
                Ok(server) => config.servers.push(server),
                Err(reason) => self.refuse(&text, reason),
            }
        }
        if let Some(text) = raw.entity {
            match entity(text.get_ref()) {
                Ok(name) => (config.entity, config.entity_place) = (Some(name), Some(self.origin(&text))),
                Err(reason) => self.refuse(&text, reason),
            }
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    #[test]
    fn a_server_is_a_host_and_perhaps_a_port() {
        for (text, shown) in [
            ("isns", "isns:3205"),
            ("ISNS.Example.com:4000", "isns.example.com:4000"),
            ("192.0.2.5", "192.0.2.5:3205"),
            ("2001:db8::5", "[2001:db8::5]:3205"),
            ("[2001:db8::5]", "[2001:db8::5]:3205"),
            ("[2001:db8::5]:77", "[2001:db8::5]:77"),
        ] {
            let server: IsnsServer = text.parse().unwrap();
            assert_eq!(server.to_string(), shown);
            assert_eq!(shown.parse(), Ok(server));
        }
        for text in
            ["", ":3205", "host:", "host:0", "host:65536", "a b", "http://isns", "[::1", "[::1]3205", "[x]:1"]
        {
            assert!(text.parse::<IsnsServer>().unwrap_err().contains("no iSNS server"), "{text}");
        }
    }

    #[test]
    fn the_table_is_checked_with_its_lines() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("image"), [0; 512]).unwrap();
        let target =
            "[[target]]\nname = \"iqn.2026-11.io.goldrush:a\"\n[[target.lun]]\nlun = 0\npath = \"image\"\n";
        let read = |table: &str| parse(&folder.path().join("c.toml"), &format!("{table}\n{target}"));
        let good =
            read("[isns]\nservers = [\"isns\", \"192.0.2.5\"]\nentity = \"Store-1.example.com\"").unwrap();
        assert_eq!((good.isns.servers.len(), good.isns.entity.as_deref()), (2, Some("store-1.example.com")));
        let lines = |table: &str| -> Vec<String> {
            let errors = read(table).map(|_| ()).unwrap_err();
            errors
                .iter()
                .map(|error| error.to_string().rsplit_once("c.toml:").unwrap().1.to_owned())
                .collect()
        };
        assert_eq!(
            lines("[isns]\nservers = [\"isns\", \"ISNS:3205\"]\nentity = \"isns:mine\""),
            [
                "2: the iSNS server isns:3205 stands twice",
                "3: names that begin with isns: are given by iSNS servers: choose another entity"
            ]
        );
        assert!(lines("[isns]\nservers = [\"a b\"]\nentity = \"\"")[1].contains("1 to 255 bytes"));
        assert!(lines("[isns]")[0].contains("servers"));
    }
}
