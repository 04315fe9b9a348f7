//! Commands to a device: from CDB bytes to what is to be done.
//!
//! Knows the commands of a busy disk. Does not know who sends them, nor the data.

use criterion::{Criterion, criterion_group, criterion_main};
use goldrush::scsi::{Device, DeviceConfig, InitiatorPort, Lun, Nexus, UnitConfig, UnitIdentity, UnitPlan};
use goldrush::units::BlockSize;
use std::hint::black_box;

const NEXUS: Nexus = Nexus(0);
const LUN_0: [u8; 8] = [0; 8];
const TEST_UNIT_READY: [u8; 16] = [0; 16];

/// A device of one unit, whose initiator has heard of its power-on already.
fn device() -> Device {
    let target_name = "iqn.2026-11.example:node".to_owned();
    let unit = UnitConfig {
        identity: UnitIdentity { target_name: target_name.clone(), lun: Lun::ZERO, serial: None },
        block_size: BlockSize::B512,
        blocks: 1 << 27,
        physical_exponent: 3,
        read_only: false,
        thin: true,
        removable: false,
        write_same_to_end: false,
        kept: None,
    };
    let config = DeviceConfig { target_name, portal_group: 1, units: vec![unit] };
    let mut device = Device::new(config).expect("one unit");
    let port = InitiatorPort { name: "iqn.2026-11.example:initiator".to_owned(), isid: [0; 6] };
    device.attach(NEXUS, port).expect("the first slot");
    device.plan(NEXUS, LUN_0, &TEST_UNIT_READY);
    device
}

/// Eight blocks at LBA 0x12345, as an initiator sends it: sixteen bytes.
fn ten(opcode: u8) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[..10].copy_from_slice(&[opcode, 0, 0, 1, 0x23, 0x45, 0, 0, 8, 0]);
    cdb
}

fn plan(c: &mut Criterion) {
    let mut device = device();
    let mut group = c.benchmark_group("plan");
    for (name, cdb) in [("read10", ten(0x28)), ("write10", ten(0x2A))] {
        let plan = device.plan(NEXUS, LUN_0, &cdb);
        assert!(matches!(plan, UnitPlan::Read { .. } | UnitPlan::Write { .. }), "{name}: {plan:?}");
        group.bench_function(name, |b| b.iter(|| device.plan(NEXUS, LUN_0, black_box(&cdb))));
    }
    group.bench_function("test_unit_ready", |b| {
        b.iter(|| device.plan(NEXUS, LUN_0, black_box(&TEST_UNIT_READY)));
    });
    group.finish();
}

criterion_group!(benches, plan);
criterion_main!(benches);
