//! A login as initiators make it: one text with names, one that negotiates. And the negotiation alone.
//!
//! Knows the keys that Linux offers. Does not know who may log in where.

use criterion::{Criterion, criterion_group, criterion_main};
use goldrush::iscsi::chap::AuthPolicy;
use goldrush::iscsi::login::{LoginEvent, LoginMachine, TargetAnswer};
use goldrush::iscsi::negotiate::{SessionKind, negotiate_text};
use goldrush::iscsi::params::{Cid, NegotiatedParams};
use goldrush::iscsi::pdu::InitiatorTaskTag;
use goldrush::iscsi::pdu::login::{LoginRequest, Stage};
use goldrush::iscsi::pdu::{Isid, Tsih};
use goldrush::iscsi::serial::{CmdSn, StatSn};
use goldrush::iscsi::text_keys::TextKeys;
use std::hint::black_box;

const NAMES: &[u8] = b"InitiatorName=iqn.2026-11.io.goldrush:node-001\0InitiatorAlias=node-001\0\
    TargetName=iqn.2026-11.io.goldrush:node-001\0SessionType=Normal\0AuthMethod=None\0";
const OFFERS: &[u8] = b"HeaderDigest=None\0DataDigest=None\0DefaultTime2Wait=2\0DefaultTime2Retain=0\0IFMarker=No\0\
    OFMarker=No\0ErrorRecoveryLevel=0\0InitialR2T=No\0ImmediateData=Yes\0MaxBurstLength=16776192\0\
    FirstBurstLength=262144\0MaxOutstandingR2T=1\0MaxConnections=1\0DataPDUInOrder=Yes\0DataSequenceInOrder=Yes\0\
    MaxRecvDataSegmentLength=262144\0";

fn request(current: Stage, next: Stage) -> LoginRequest {
    LoginRequest {
        immediate: true,
        transit: true,
        text_continues: false,
        current_stage: Some(current),
        next_stage: Some(next),
        version_max: 0,
        version_min: 0,
        isid: Isid([0, 2, 0x3d, 0, 0, 1]),
        tsih: Tsih(0),
        task_tag: InitiatorTaskTag(1),
        cid: Cid(0),
        cmd_sn: CmdSn(1),
        exp_stat_sn: StatSn(0),
    }
}

/// The whole of a login; what it settled.
fn log_in(out: &mut Vec<u8>) -> Option<NegotiatedParams> {
    let mut machine = LoginMachine::new([7; 32], goldrush::limits::COMMAND_WINDOW_DEFAULT);
    machine.handle_pdu(
        &request(Stage::SecurityNegotiation, Stage::OperationalNegotiation).encode(NAMES.len() as u32),
        NAMES,
    );
    if let Some(LoginEvent::TargetNamed { .. }) = machine.poll_event() {
        machine.target_answer(TargetAnswer::Accept {
            auth: AuthPolicy::None,
            portal_group: 1,
            target_alias: None,
            tsih_for_new_session: Tsih(1),
            max_connections: 1,
        });
    }
    machine.handle_pdu(
        &request(Stage::OperationalNegotiation, Stage::FullFeature).encode(OFFERS.len() as u32),
        OFFERS,
    );
    out.clear();
    machine.poll_output(out);
    match machine.poll_event() {
        Some(LoginEvent::Established(established)) => Some(established.params),
        _ => None,
    }
}

fn login(c: &mut Criterion) {
    let mut out = Vec::new();
    let params = log_in(&mut out).expect("a login that Linux makes succeeds");
    assert_eq!(params.max_send_segment, 262_144, "the offers were not heard");
    c.bench_function("login", |b| b.iter(|| log_in(black_box(&mut out))));
}

/// Parsing sixteen keys and answering them, without PDUs and stages.
fn negotiate(c: &mut Criterion) {
    let answer = |text: &[u8]| {
        let keys = TextKeys::parse(text.to_vec()).expect("keys as Linux sends them");
        let mut params = NegotiatedParams::default();
        negotiate_text(&keys, SessionKind::Normal, &mut params).map(|outcome| outcome.answers.len())
    };
    assert!(answer(OFFERS).is_ok_and(|bytes| bytes > 0), "the offers are not answered");
    c.bench_function("negotiate_16_keys", |b| b.iter(|| answer(black_box(OFFERS))));
}

criterion_group!(benches, login, negotiate);
criterion_main!(benches);
