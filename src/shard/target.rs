//! A target as its owning shard keeps it: its device, who is logged in, and what reinstatement waits for.
//!
//! Knows sessions by initiator and ISID. Does not know connections beyond their key, nor PDUs.

use crate::clock::Instant;
use crate::iscsi::params::{Isid, Tsih};
use crate::iscsi::pdu::InitiatorTaskTag;
use crate::iscsi::pdu::task_mgmt::ManagementResponse;
use crate::limits;
use crate::scsi::{Device, InitiatorPort, Nexus, UnitIndex};

use super::boot::{Boot, Visit};
use super::life::Life;
use super::rate::Rate;
use super::reset::ResetReport;
use super::session::SessionKey;

/// One logged-in session of a target.
#[derive(Debug, Clone)]
pub(super) struct SessionEntry {
    pub(super) session: SessionKey,
    pub(super) initiator: String,
    pub(super) isid: Isid,
    pub(super) tsih: Tsih,
    pub(super) nexus: Nexus,
}

/// A task management function whose aborted tasks have not all ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct PendingManagement {
    pub(super) session: SessionKey,
    pub(super) task_tag: InitiatorTaskTag,
    pub(super) response: ManagementResponse,
}

#[derive(Debug)]
pub(super) struct Target {
    pub(super) name: String,
    pub(super) device: Device,
    /// Its units among the shard's, by `UnitIndex`.
    luns: Vec<u32>,
    pub(super) sessions: Vec<SessionEntry>,
    free_nexuses: Vec<Nexus>,
    next_tsih: u16,
    /// Tasks that are forgotten but whose file operations still run. While there are any, no new session of
    /// this target executes a command: a late write must not land on top of a newer one.
    pub(super) aborted_in_flight: u32,
    pub(super) management: Vec<PendingManagement>,
    pub(super) boot: Boot,
    pub(super) life: Life,
    pub(super) rate: Rate,
    /// Reasons why no command begins.
    pub(super) holds: u32,
    pub(super) reset: ResetReport,
}

impl Target {
    pub(super) fn new(name: String, device: Device, luns: Vec<u32>) -> Self {
        let free_nexuses = (0..limits::NEXUSES_PER_TARGET_MAX as u32).rev().map(Nexus).collect();
        Self {
            name,
            device,
            luns,
            sessions: Vec::new(),
            free_nexuses,
            next_tsih: 1,
            aborted_in_flight: 0,
            management: Vec::new(),
            boot: Boot::default(),
            life: Life::default(),
            rate: Rate::default(),
            holds: 0,
            reset: ResetReport::default(),
        }
    }

    /// The place of a unit among the shard's.
    pub(super) fn lun(&self, unit: UnitIndex) -> u32 {
        self.luns[unit.0 as usize]
    }

    pub(super) fn set_lun(&mut self, unit: UnitIndex, lun: u32) {
        let place = unit.0 as usize;
        if self.luns.len() <= place {
            self.luns.resize(place + 1, u32::MAX);
        }
        self.luns[place] = lun;
    }

    /// A TSIH no session of this target has; never zero.
    pub(super) fn fresh_tsih(&mut self) -> Tsih {
        loop {
            let tsih = Tsih(self.next_tsih);
            self.next_tsih = self.next_tsih.checked_add(1).unwrap_or(1);
            if !self.sessions.iter().any(|session| session.tsih == tsih) {
                return tsih;
            }
        }
    }

    pub(super) fn has_room(&self) -> bool {
        !self.free_nexuses.is_empty()
    }

    /// The session a login with this name and ISID reinstates (RFC 7143, 6.3.5).
    pub(super) fn session_of(&self, initiator: &str, isid: Isid) -> Option<&SessionEntry> {
        self.sessions.iter().find(|session| session.isid == isid && session.initiator == initiator)
    }

    /// The session a login with this TSIH joins: one of the same initiator port (6.3.1).
    pub(super) fn session_to_join(&self, initiator: &str, isid: Isid, tsih: Tsih) -> Option<SessionKey> {
        self.session_of(initiator, isid).filter(|entry| entry.tsih == tsih).map(|entry| entry.session)
    }

    /// `None` when every nexus is taken. The session itself follows with `enter`.
    pub(super) fn attach(&mut self, initiator: &str, isid: Isid) -> Option<Nexus> {
        let nexus = self.free_nexuses.pop()?;
        let port = InitiatorPort { name: initiator.to_owned(), isid: isid.0 };
        if self.device.attach(nexus, port).is_err() {
            self.free_nexuses.push(nexus);
            return None;
        }
        Some(nexus)
    }

    /// No command begins: those that come wait in their sessions.
    pub(super) fn is_held(&self) -> bool {
        self.holds > 0
    }

    /// A session, of an initiator that takes segments of `segment` bytes, has shown itself as a system's.
    pub(super) fn is_system(&mut self, now: Instant, nexus: Nexus, segment: u32, visit: &mut Visit) {
        self.boot.is_system(now, visit);
        if let Some(entry) = self.sessions.iter().find(|entry| entry.nexus == nexus) {
            self.life.is_system(&entry.initiator, entry.isid, segment);
        }
    }

    pub(super) fn enter(&mut self, entry: SessionEntry) {
        self.sessions.push(entry);
    }

    pub(super) fn detach(&mut self, nexus: Nexus) {
        if let Some(at) = self.sessions.iter().position(|session| session.nexus == nexus) {
            self.sessions.swap_remove(at);
            self.release(nexus);
        }
    }

    /// Takes back an `attach` nobody entered with.
    pub(super) fn release(&mut self, nexus: Nexus) {
        self.device.detach(nexus);
        self.free_nexuses.push(nexus);
    }
}
