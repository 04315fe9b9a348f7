//! Whether a login is that of a machine that was started again, or of one that runs and comes back.
//!
//! Knows initiator ports (RFC 7143, 4.4: name and ISID) and how long a segment each of them takes. Does not know sessions,
//! overlays, or the time. Whoever throws away what a running system has written ruins it, so a doubt is a return.
//!
//! A machine's life has a loader's part, then a system's. These begin another life, once a system has been there:
//!
//! * the port of this life's loader: firmware (UEFI, option ROMs) derives its ISID from the adapter and keeps it;
//! * another port, of a name that this life knows, that takes no more than 8 KiB a segment, while the system takes more:
//!   iPXE draws a part of its ISID anew for each connection.
//!
//! And these do not: a port that the system has used, whatever it declares (it is back after a loss of the network, or of
//! this server); a port with longer segments than a loader's (another path of the system, a kernel that writes its crash
//! dump); an initiator that this life does not know (somebody looks at the disk).

use crate::iscsi::params::Isid;

/// The segments of iPXE, and of whoever declares nothing (RFC 7143, 13.12).
const SHORT_SEGMENT_BYTES: u32 = 8192;
/// Loaders take no longer segments.
const LOADER_SEGMENT_BYTES_MAX: u32 = 64 * 1024;
/// Ports of each part. A life with more of them is never told from the next.
const PORTS_MAX: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Port {
    name: String,
    isid: Isid,
}

impl Port {
    fn is(&self, name: &str, isid: Isid) -> bool {
        self.isid == isid && self.name == name
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Life {
    loaders: Vec<Port>,
    systems: Vec<Port>,
    /// A system declares segments that are as short as a loader's.
    short_system: bool,
    crowded: bool,
}

impl Life {
    /// A session begins; its initiator takes segments of `segment` bytes. True when the machine has been started again,
    /// unless a session of its system lives: [`Self::began`] says that it has.
    pub(super) fn login(&mut self, name: &str, isid: Isid, segment: u32) -> bool {
        if segment > LOADER_SEGMENT_BYTES_MAX {
            self.is_system(name, isid, segment);
            return false;
        }
        if self.systems.is_empty() {
            self.note_loader(name, isid);
            return false;
        }
        let is_system = self.systems.iter().any(|port| port.is(name, isid));
        if is_system || self.crowded {
            return false;
        }
        let known = self.loaders.iter().chain(&self.systems).any(|port| port.name == name);
        let drawn_anew = known && segment <= SHORT_SEGMENT_BYTES && !self.short_system;
        drawn_anew || self.loaders.iter().any(|port| port.is(name, isid))
    }

    /// A session has shown itself as a system's.
    pub(super) fn is_system(&mut self, name: &str, isid: Isid, segment: u32) {
        self.loaders.retain(|port| !port.is(name, isid));
        self.short_system |= segment <= SHORT_SEGMENT_BYTES;
        note(&mut self.systems, name, isid, &mut self.crowded);
    }

    /// The machine was started, and this is its loader.
    pub(super) fn began(&mut self, name: &str, isid: Isid) {
        *self = Self::default();
        self.note_loader(name, isid);
    }

    fn note_loader(&mut self, name: &str, isid: Isid) {
        // iPXE has a port for each connection: that of a life's last one is as good as those of all.
        if self.loaders.len() == PORTS_MAX {
            self.loaders.remove(0);
        }
        note(&mut self.loaders, name, isid, &mut self.crowded);
    }
}

fn note(ports: &mut Vec<Port>, name: &str, isid: Isid, crowded: &mut bool) {
    if ports.iter().any(|port| port.is(name, isid)) {
        return;
    }
    if ports.len() == PORTS_MAX {
        *crowded = true;
        return;
    }
    ports.push(Port { name: name.to_owned(), isid });
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "iqn.2010-04.org.ipxe:node";
    const SYSTEM: &str = "iqn.2004-10.com.example:node";
    const IPXE: u32 = 8192;
    const UEFI: u32 = 65_536;
    const WINDOWS: u32 = 65_536;
    const LINUX: u32 = 262_144;

    fn isid(n: u8) -> Isid {
        Isid([0x40, 0, 0, 0, 0, n])
    }

    #[test]
    fn a_new_port_of_ipxe_after_a_system_is_another_life() {
        let mut life = Life::default();
        assert!(!life.login(NODE, isid(1), IPXE) && !life.login(NODE, isid(2), IPXE), "it only tries again");
        assert!(!life.login(SYSTEM, isid(9), LINUX));
        assert!(life.login(NODE, isid(3), IPXE));
        assert!(life.login(NODE, isid(3), IPXE), "nobody has said that it began");
        life.began(NODE, isid(3));
        assert!(!life.login(NODE, isid(4), IPXE), "no system has come yet");
    }

    #[test]
    fn firmware_that_keeps_its_port_is_known_again() {
        let mut life = Life::default();
        assert!(!life.login(SYSTEM, isid(1), UEFI));
        assert!(!life.login(SYSTEM, isid(9), LINUX));
        assert!(life.login(SYSTEM, isid(1), UEFI));
        assert!(!life.login(SYSTEM, isid(5), UEFI), "another port with segments a system might have");
    }

    #[test]
    fn a_system_that_comes_back_is_no_loader_whatever_it_declares() {
        let mut life = Life::default();
        life.login(NODE, isid(1), IPXE);
        life.login(NODE, isid(2), WINDOWS);
        life.is_system(NODE, isid(2), WINDOWS);
        assert!(!life.login(NODE, isid(2), WINDOWS) && !life.login(NODE, isid(2), IPXE));
        // Another path, a crash kernel, another session of the same system.
        assert!(!life.login(NODE, isid(3), LINUX) && !life.login(NODE, isid(4), WINDOWS));
        assert!(life.login(NODE, isid(7), IPXE));
    }

    #[test]
    fn firmware_and_system_with_one_port_are_not_told_apart() {
        let mut life = Life::default();
        assert!(!life.login(NODE, isid(1), UEFI));
        life.login(NODE, isid(1), LINUX);
        assert!(!life.login(NODE, isid(1), UEFI) && !life.login(NODE, isid(1), IPXE));
    }

    #[test]
    fn a_stranger_and_a_system_of_short_segments_empty_nothing() {
        let mut life = Life::default();
        life.login(NODE, isid(1), IPXE);
        life.login(NODE, isid(2), LINUX);
        assert!(!life.login("iqn.2004-10.com.example:curious", isid(8), IPXE));
        let mut life = Life::default();
        life.login(NODE, isid(1), IPXE);
        life.is_system(NODE, isid(1), IPXE);
        assert!(!life.login(NODE, isid(2), IPXE), "its system reconnects with new ports, for all we know");
    }

    #[test]
    fn a_life_of_too_many_ports_is_never_over() {
        let mut life = Life::default();
        life.login(NODE, isid(200), IPXE);
        for n in 0..=PORTS_MAX as u8 {
            life.login(NODE, isid(n), LINUX);
        }
        assert!(!life.login(NODE, isid(201), IPXE) && life.systems.len() == PORTS_MAX);
        life.began(NODE, isid(1));
        life.login(NODE, isid(2), LINUX);
        assert!(life.login(NODE, isid(3), IPXE));
    }

    #[test]
    fn of_many_ports_of_a_loader_the_last_are_remembered() {
        let mut life = Life::default();
        (0..40).for_each(|n| assert!(!life.login(NODE, isid(n), IPXE)));
        life.login(SYSTEM, isid(99), LINUX);
        assert!(life.loaders.len() == PORTS_MAX && !life.crowded && life.login(NODE, isid(100), IPXE));
    }
}
