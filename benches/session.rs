//! One READ of 4 KiB through a session, without its device (`scsi`); a long read cut into Data-In PDUs.
//!
//! Knows the order in which a shard calls the machines. Does not know sockets, buffers or images.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use goldrush::clock::Instant;
use goldrush::iscsi::data_in_sequence::DataInSequence;
use goldrush::iscsi::params::{Cid, NegotiatedParams};
use goldrush::iscsi::pdu::bhs::Bhs;
use goldrush::iscsi::pdu::scsi_command::{Cdb, ScsiCommand, TaskAttribute, Transfer};
use goldrush::iscsi::pdu::{InitiatorTaskTag, LunField};
use goldrush::iscsi::serial::{CmdSn, StatSn};
use goldrush::iscsi::session::{
    ConnectionId, ConnectionStart, OutData, Session, SessionEvent, SessionKind, SessionStart, TaskReply,
};
use std::hint::black_box;

const NOW: Instant = Instant(0);
const ON: ConnectionId = ConnectionId::LEADING;
const READ_BYTES: u32 = 4096;

fn session() -> Session {
    Session::new(SessionStart {
        kind: SessionKind::Normal,
        exp_cmd_sn: CmdSn(1),
        queue_depth: goldrush::limits::COMMAND_WINDOW_DEFAULT,
        connection: ConnectionStart {
            cid: Cid(0),
            params: NegotiatedParams::default(),
            next_stat_sn: StatSn(1),
            keepalive: None,
            now: NOW,
        },
    })
}

/// READ(10) of eight blocks, with the next command number.
fn read_command(cmd_sn: CmdSn) -> Bhs {
    let mut bytes = [0; 16];
    bytes[..10].copy_from_slice(&[0x28, 0, 0, 1, 0x23, 0x45, 0, 0, 8, 0]);
    ScsiCommand {
        immediate: false,
        transfer: Transfer::Read { expected: READ_BYTES },
        attribute: TaskAttribute::Simple,
        lun: LunField([0; 8]),
        task_tag: InitiatorTaskTag(cmd_sn.0),
        cmd_sn,
        exp_stat_sn: StatSn(cmd_sn.0),
        cdb: Cdb { bytes, len: 16 },
        data_len: 0,
    }
    .encode()
}

/// What a shard does for a read, without the read: bytes of data the answer announces.
fn round(session: &mut Session, bhs: &Bhs) -> u32 {
    session.handle_header(ON, bhs, &[], NOW);
    session.handle_end(ON, &[], NOW);
    if let Some(SessionEvent::Command { task, read_len, .. }) = session.poll_event() {
        session.complete(task, TaskReply::good(read_len));
    }
    let mut sent = 0;
    while let Some(pdu) = session.poll_output(ON, NOW) {
        if let OutData::Task { len, .. } = black_box(pdu).data {
            sent += len;
        }
    }
    sent
}

fn read_4k(c: &mut Criterion) {
    let mut session = session();
    let mut cmd_sn = CmdSn(1);
    let mut next = move || read_command(cmd_sn.take());
    assert_eq!(round(&mut session, &next()), READ_BYTES, "the read is not answered with its data");
    c.bench_function("session_read_4k", |b| {
        b.iter(|| {
            let bhs = next();
            round(&mut session, black_box(&bhs))
        });
    });
}

/// The command alone, to take from `session_read_4k`: encoding it is the initiator's work.
fn command(c: &mut Criterion) {
    let mut cmd_sn = CmdSn(1);
    c.bench_function("scsi_command_encode", |b| b.iter(|| read_command(cmd_sn.take())));
    let bhs = read_command(CmdSn(1));
    c.bench_function("scsi_command_decode", |b| b.iter(|| ScsiCommand::decode(black_box(&bhs), &[])));
}

fn data_in(c: &mut Criterion) {
    const BYTES: u32 = 1 << 20;
    let mut group = c.benchmark_group("data_in_1m");
    for (name, segment_max, pdus) in [("segments_8k", 8 << 10, 128), ("segments_256k", 256 << 10, 4)] {
        let split = |segment_max: u32| {
            let mut sequence = DataInSequence::new(BYTES);
            let mut count = 0;
            while let Some(slice) = sequence.next_slice(segment_max, BYTES) {
                black_box(slice);
                count += 1;
            }
            count
        };
        assert_eq!(split(segment_max), pdus, "{name} is not what it says");
        group.throughput(Throughput::Elements(pdus));
        group.bench_function(name, |b| b.iter(|| split(black_box(segment_max))));
    }
    group.finish();
}

criterion_group!(benches, read_4k, command, data_in);
criterion_main!(benches);
