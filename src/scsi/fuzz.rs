//! Fuzz entry point: arbitrary CDBs and parameter lists against a small device.
//!
//! Knows which promises must hold whatever the bytes. Does not know what a good answer to a given command is.

use super::{
    Device, DeviceConfig, InitiatorPort, KeptUnit, Lun, Nexus, ScsiStatus, UnitConfig, UnitIdentity,
    UnitPlan, UnitReply,
};
use crate::limits;
use crate::units::{BlockRange, BlockSize};

const BLOCKS: u64 = 100_000;

/// Runs a sequence of commands read from `input` and asserts what every answer promises: ranges within the unit,
/// bounded data, sense exactly with CHECK CONDITION, parameter lists no longer than allowed.
///
/// Each step takes one selector byte (nexus, LUN, event), one length byte, then a CDB of up to sixteen bytes; what
/// a planned parameter list needs is taken from the bytes that follow.
///
/// # Panics
/// When a promise is broken.
pub fn fuzz_cdb(input: &[u8]) {
    let Some(mut device) = small_device() else { return };
    let mut rest = input;
    while let [selector, len, tail @ ..] = rest {
        let (cdb, after) = tail.split_at(usize::from(len % 17).min(tail.len()));
        rest = after;
        let nexus = Nexus(u32::from(selector & 1));
        let lun = [0, selector >> 1 & 3, 0, 0, 0, 0, 0, selector >> 7];
        event(&mut device, *selector, nexus);
        let plan = device.plan(nexus, lun, cdb);
        check(&plan);
        if let UnitPlan::Parameter { len } = plan {
            let (list, after) = rest.split_at((len as usize).min(rest.len()));
            rest = after;
            let plan = device.parameter(nexus, lun, cdb, list);
            assert!(!matches!(plan, UnitPlan::Parameter { .. }), "asked twice for a parameter list");
            check(&plan);
        }
    }
}

/// Now and then something other than a command happens.
fn event(device: &mut Device, selector: u8, nexus: Nexus) {
    match selector >> 3 & 0x0F {
        13 => device.reset(),
        14 => device.detach(nexus),
        15 => attach(device, nexus),
        _ => {}
    }
}

fn attach(device: &mut Device, nexus: Nexus) {
    let name = format!("iqn.2026-11.example:{}", nexus.0);
    let attached = device.attach(nexus, InitiatorPort { name, isid: [0, 2, 0x3D, 0, 0, 1] });
    assert!(attached.is_ok(), "the slot is small");
}

/// LUN 0: thin, 512e; LUN 1: removable, 4096-byte blocks; LUN 2: read-only and thick.
fn small_device() -> Option<Device> {
    let target_name = "iqn.2026-11.io.goldrush:fuzz".to_owned();
    let unit = |lun, block_size| {
        Some(UnitConfig {
            identity: UnitIdentity { target_name: target_name.clone(), lun: Lun::new(lun)?, serial: None },
            block_size,
            blocks: BLOCKS,
            physical_exponent: 3,
            read_only: lun == 2,
            thin: lun < 2,
            removable: lun == 1,
            write_same_to_end: lun == 1,
            kept: (lun == 0).then(KeptUnit::default),
        })
    };
    let units = vec![unit(0, BlockSize::B512)?, unit(1, BlockSize::B4096)?, unit(2, BlockSize::B512)?];
    let config = DeviceConfig { target_name: target_name.clone(), portal_group: 1, units };
    let mut device = Device::new(config).ok()?;
    attach(&mut device, Nexus(0));
    attach(&mut device, Nexus(1));
    Some(device)
}

fn check(plan: &UnitPlan) {
    let inside = |range: &BlockRange| {
        assert!(range.start.0.checked_add(range.count.0).is_some_and(|end| end <= BLOCKS), "{range:?}");
    };
    let within = |range: &BlockRange| {
        assert!(range.count.0 > 0, "an empty range has no plan");
        inside(range);
    };
    match plan {
        UnitPlan::Done(reply) | UnitPlan::AbortThenDone { reply, .. } => check_reply(reply),
        UnitPlan::Read { range, .. }
        | UnitPlan::Write { range, .. }
        | UnitPlan::Verify { range, .. }
        | UnitPlan::OrWrite { range, .. }
        | UnitPlan::PreFetch { range, .. } => {
            within(range);
            assert!(range.count.0 <= limits::TRANSFER_BYTES_MAX as u64 / 512);
        }
        UnitPlan::CompareAndWrite { range, .. } => {
            inside(range);
            assert!(range.count.0 <= limits::COMPARE_AND_WRITE_BYTES_MAX as u64 / 512);
        }
        UnitPlan::WriteSame { range, .. } | UnitPlan::WriteAtomic { range, .. } => within(range),
        UnitPlan::Zero { ranges, .. } => {
            assert!(ranges.len() <= limits::UNMAP_DESCRIPTORS_MAX as usize);
            ranges.iter().for_each(within);
        }
        UnitPlan::LbaStatus { start, .. } => assert!(start.0 < BLOCKS),
        UnitPlan::Parameter { len } => assert!(*len as usize <= limits::PARAMETER_BYTES_MAX && *len > 0),
        UnitPlan::Keep { then, .. } => check(then),
        UnitPlan::Copy { copy, .. } => assert!(copy.segments.len() <= limits::COPY_SEGMENTS_MAX),
        UnitPlan::PopulateToken { populate, .. } => check_token_ranges(&populate.ranges, &inside),
        UnitPlan::WriteUsingToken { write, .. } => check_token_ranges(&write.ranges, &inside),
        UnitPlan::Sanitize { .. } => {}
        UnitPlan::Flush { .. } => {}
    }
}

fn check_token_ranges(ranges: &[BlockRange], inside: &dyn Fn(&BlockRange)) {
    assert!(ranges.len() <= limits::ROD_RANGES_MAX);
    ranges.iter().for_each(inside);
    assert!(ranges.iter().map(|range| range.count.0).sum::<u64>() <= limits::ROD_BYTES_MAX as u64 / 512);
}

fn check_reply(reply: &UnitReply) {
    assert_eq!(reply.sense.is_some(), reply.status == ScsiStatus::CheckCondition);
    assert!(reply.data.len() <= limits::REPLY_BYTES_MAX);
    if let Some(sense) = reply.sense {
        assert!(sense.encode().as_slice().len() >= 8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::UnitFault;

    /// A small generator of its own: the same inputs in every run.
    struct Sequence(u64);

    impl Sequence {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }
    }

    #[test]
    fn arbitrary_bytes_break_no_promise() {
        let mut sequence = Sequence(0x9E37_79B9_7F4A_7C15);
        for _ in 0..4000 {
            let len = (sequence.next() % 600) as usize;
            let input: Vec<u8> = (0..len).map(|_| sequence.next() as u8).collect();
            fuzz_cdb(&input);
        }
    }

    /// Random bytes rarely hit a supported opcode with sane fields: start from those, and disturb them.
    #[test]
    fn disturbed_commands_break_no_promise() {
        let mut sequence = Sequence(42);
        for _ in 0..4000 {
            let mut input = Vec::new();
            for _ in 0..20 {
                let row = &crate::scsi::opcodes::OPCODES
                    [sequence.next() as usize % crate::scsi::opcodes::OPCODES.len()];
                let mut cdb = [0; 16];
                cdb[0] = row.code;
                cdb[1] = row.service_action.unwrap_or(0);
                for _ in 0..sequence.next() % 4 {
                    let byte = 1 + sequence.next() as usize % 15;
                    cdb[byte] ^= 1 << (sequence.next() % 8);
                }
                input.extend([sequence.next() as u8 & 0x67, 16]);
                input.extend(cdb);
                let list = sequence.next() % 40;
                input.extend((0..list).map(|_| sequence.next() as u8 & 0x1F));
            }
            fuzz_cdb(&input);
        }
    }

    #[test]
    fn every_fault_has_sense_data() {
        let device = small_device().unwrap();
        for fault in [
            UnitFault::Read,
            UnitFault::Write,
            UnitFault::NoSpace,
            UnitFault::ReadOnly,
            UnitFault::Miscompare { offset: 3 },
            UnitFault::DataOutLength,
            UnitFault::PartialBlock,
            UnitFault::Internal,
        ] {
            for unit in device.units() {
                check_reply(&device.io_failed(unit, fault, None));
            }
        }
    }
}
