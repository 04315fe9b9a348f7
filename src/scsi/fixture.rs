//! For the tests of this area: a device with one unit and two initiators, spoken to in bytes.
//!
//! Knows how to send commands and pick answers apart. Does not know what a right answer is.

use super::{
    Device, DeviceConfig, InitiatorPort, Lun, Nexus, ScsiStatus, UnitConfig, UnitIdentity, UnitPlan,
    UnitReply,
};
use crate::units::BlockSize;

pub(super) const LUN_0: [u8; 8] = [0; 8];
pub(super) const BLOCKS: u64 = 0x10_0000;
pub(super) const A: Nexus = Nexus(0);
pub(super) const B: Nexus = Nexus(1);
pub(super) const C: Nexus = Nexus(2);

pub(super) const TEST_UNIT_READY: [u8; 6] = [0; 6];
pub(super) const READ_10: [u8; 10] = [0x28, 0, 0, 0, 0, 1, 0, 0, 1, 0];
pub(super) const WRITE_10: [u8; 10] = [0x2A, 0, 0, 0, 0, 1, 0, 0, 1, 0];
pub(super) const RESERVE_6: [u8; 6] = [0x16, 0, 0, 0, 0, 0];
pub(super) const RELEASE_6: [u8; 6] = [0x17, 0, 0, 0, 0, 0];

pub(super) fn port(nexus: Nexus) -> InitiatorPort {
    InitiatorPort { name: format!("iqn.2026-11.example:{}", nexus.0), isid: [0, 2, 0x3D, 0, 0, 1] }
}

pub(super) fn unit_config(lun: u16) -> UnitConfig {
    let target_name = "iqn.2026-11.io.goldrush:node-001".to_owned();
    UnitConfig {
        identity: UnitIdentity { target_name, lun: Lun::new(lun).unwrap(), serial: None },
        block_size: BlockSize::B512,
        blocks: BLOCKS,
        physical_exponent: 3,
        read_only: false,
        thin: true,
        removable: false,
        write_same_to_end: false,
        kept: None,
    }
}

/// A device whose initiators have heard of its power-on already.
#[derive(Debug)]
pub(super) struct Bench {
    pub(super) device: Device,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with(|_| {})
    }

    /// One unit, changed by `change`, and nexuses A and B.
    pub(super) fn with(change: impl FnOnce(&mut UnitConfig)) -> Self {
        let mut unit = unit_config(0);
        change(&mut unit);
        let mut bench = Self::of(vec![unit]);
        bench.attach(A);
        bench.attach(B);
        bench
    }

    pub(super) fn of(units: Vec<UnitConfig>) -> Self {
        let target_name = "iqn.2026-11.io.goldrush:node-001".to_owned();
        Self { device: Device::new(DeviceConfig { target_name, portal_group: 1, units }).unwrap() }
    }

    /// Attaches and takes the power-on unit attentions.
    pub(super) fn attach(&mut self, nexus: Nexus) {
        self.device.attach(nexus, port(nexus)).unwrap();
        for unit in self.device.units() {
            let field = self.device.lun(unit).unwrap().to_field();
            let first = self.device.plan(nexus, field, &TEST_UNIT_READY);
            assert_eq!(codes(first), (6, 0x29, 0x00));
        }
    }

    pub(super) fn plan(&mut self, nexus: Nexus, cdb: &[u8]) -> UnitPlan {
        self.device.plan(nexus, LUN_0, cdb)
    }

    /// Sends a command with its parameter list.
    pub(super) fn send(&mut self, nexus: Nexus, cdb: &[u8], list: &[u8]) -> UnitPlan {
        match self.plan(nexus, cdb) {
            UnitPlan::Parameter { len } => {
                assert_eq!(len as usize, list.len());
                self.device.parameter(nexus, LUN_0, cdb, list)
            }
            other => other,
        }
    }

    pub(super) fn reply(&mut self, nexus: Nexus, cdb: &[u8]) -> UnitReply {
        done(self.plan(nexus, cdb))
    }

    pub(super) fn status(&mut self, nexus: Nexus, cdb: &[u8]) -> ScsiStatus {
        self.reply(nexus, cdb).status
    }

    /// The data of a command that must be GOOD.
    pub(super) fn data(&mut self, nexus: Nexus, cdb: &[u8]) -> Vec<u8> {
        let reply = self.reply(nexus, cdb);
        assert_eq!(reply.status, ScsiStatus::Good, "{reply:?}");
        reply.data
    }

    /// Sense key, ASC and ASCQ of a command that must be CHECK CONDITION.
    pub(super) fn codes(&mut self, nexus: Nexus, cdb: &[u8]) -> (u8, u8, u8) {
        codes(self.plan(nexus, cdb))
    }
}

pub(super) fn done(plan: UnitPlan) -> UnitReply {
    match plan {
        UnitPlan::Done(reply) => reply,
        other => panic!("not done: {other:?}"),
    }
}

pub(super) fn codes(plan: UnitPlan) -> (u8, u8, u8) {
    let reply = done(plan);
    assert_eq!(reply.status, ScsiStatus::CheckCondition, "{reply:?}");
    let sense = reply.sense.unwrap();
    (sense.key as u8, sense.asc, sense.ascq)
}
