//! NOP, Text, Logout, rejects, discovery and dead peers.

use super::*;
use crate::iscsi::pdu::logout::{LogoutReason, LogoutRequest};
use crate::iscsi::pdu::nop::{NopOut, NopOutPurpose};
use crate::iscsi::pdu::text::{TextRequest, TextResponse};

fn ping(initiator: &mut Initiator, tag: u32) -> Bhs {
    let purpose = NopOutPurpose::Ping { task_tag: InitiatorTaskTag(tag) };
    let cmd_sn = initiator.cmd_sn.take();
    NopOut { immediate: false, purpose, cmd_sn, exp_stat_sn: StatSn(100), data_len: 0 }.encode()
}

fn text(initiator: &mut Initiator, transfer_tag: TargetTransferTag, is_final: bool, more: bool) -> Bhs {
    TextRequest {
        immediate: false,
        is_final,
        text_continues: more,
        lun: LunField::default(),
        task_tag: InitiatorTaskTag(77),
        transfer_tag,
        cmd_sn: initiator.cmd_sn.take(),
        exp_stat_sn: StatSn(100),
    }
    .encode(0)
}

fn text_response(initiator: &mut Initiator) -> (TextResponse, Vec<u8>) {
    let pdu = initiator.output().expect("a Text Response");
    assert_eq!(pdu.header.opcode(), ResponseOpcode::Text as u8);
    let data = match pdu.data {
        OutData::Inline(bytes) => bytes.into_vec(),
        _ => Vec::new(),
    };
    (TextResponse::decode(&pdu.header), data)
}

fn logout(initiator: &mut Initiator, reason: LogoutReason, cid: u16) -> Bhs {
    LogoutRequest {
        immediate: true,
        reason: Some(reason),
        task_tag: InitiatorTaskTag(88),
        cid: Cid(cid),
        cmd_sn: initiator.cmd_sn,
        exp_stat_sn: StatSn(100),
    }
    .encode()
}

fn with_keepalive(keepalive: Keepalive) -> SessionStart {
    let start = start(NegotiatedParams::default());
    let connection = ConnectionStart { keepalive: Some(keepalive), ..start.connection };
    SessionStart { connection, ..start }
}

#[test]
fn a_ping_is_echoed_and_cut_to_the_initiators_segment() {
    let mut initiator =
        Initiator::with(NegotiatedParams { max_send_segment: 512, ..NegotiatedParams::default() });
    for (sent, echoed) in [(0, 0), (9, 9), (600, 512)] {
        let bhs = ping(&mut initiator, 3);
        let data: Vec<u8> = (0..sent).map(|n| n as u8).collect();
        initiator.send_with(&bhs, &data);
        let pdu = initiator.output().unwrap();
        assert_eq!((pdu.header.opcode(), pdu.header.task_tag().0), (ResponseOpcode::NopIn as u8, 3));
        assert_eq!(pdu.header.u32_at(20), u32::MAX);
        match pdu.data {
            OutData::Inline(bytes) => assert_eq!(&bytes[..], &data[..echoed]),
            other => assert_eq!((other, echoed), (OutData::None, 0)),
        }
    }
}

#[test]
fn a_nop_without_tag_is_no_ping() {
    let mut initiator = Initiator::new();
    let confirm = NopOut {
        immediate: true,
        purpose: NopOutPurpose::Confirm,
        cmd_sn: initiator.cmd_sn,
        exp_stat_sn: StatSn(100),
        data_len: 0,
    };
    initiator.send(&confirm.encode());
    initiator.silent();
    let late = NopOut { immediate: false, ..confirm }.encode();
    initiator.send(&late);
    assert_eq!(initiator.rejected(&late), RejectReason::InvalidPduField);
}

#[test]
fn a_damaged_ping_counts_as_not_received() {
    let mut initiator = Initiator::new();
    let bhs = ping(&mut initiator, 3);
    initiator.header(&bhs);
    initiator.session.handle_data_digest_error(ON, initiator.now);
    assert_eq!(initiator.rejected(&bhs), RejectReason::DataDigestError);
    initiator.send(&bhs);
    assert_eq!(initiator.output().unwrap().header.opcode(), ResponseOpcode::NopIn as u8);
}

#[test]
fn rejects_carry_the_header_and_take_a_stat_sn() {
    let mut initiator = Initiator::new();
    for (opcode, reason) in [
        (0x10, RejectReason::CommandNotSupported),
        (0x3E, RejectReason::CommandNotSupported),
        (0x1C, RejectReason::CommandNotSupported),
        (0x43, RejectReason::ProtocolError),
    ] {
        let mut bhs = Bhs::default();
        bhs.0[0] = opcode;
        bhs.0[47] = 0xEE;
        let before = initiator.session.connections[ON].next_stat_sn;
        initiator.send(&bhs);
        assert_eq!(initiator.rejected(&bhs), reason);
        assert_eq!(initiator.session.connections[ON].next_stat_sn, before.plus(1));
    }
}

#[test]
fn a_discovery_session_lists_targets_and_nothing_else() {
    let mut initiator = Initiator::started(SessionStart {
        kind: SessionKind::Discovery,
        ..start(NegotiatedParams::default())
    });
    for opcode in [0x01, 0x02, 0x05] {
        let mut bhs = Bhs::default();
        bhs.0[0] = opcode;
        initiator.send(&bhs);
        assert_eq!(initiator.rejected(&bhs), RejectReason::CommandNotSupported);
    }
    let bhs = text(&mut initiator, TargetTransferTag::RESERVED, true, false);
    initiator.send_with(&bhs, b"SendTargets=All\0");
    assert_eq!(initiator.event(), SessionEvent::SendTargets { connection: ON, request: SendTargets::All });
    initiator.silent();
    initiator.session.send_targets_reply(ON, b"TargetName=iqn.a\0");
    let (response, data) = text_response(&mut initiator);
    assert!(response.is_final && !response.text_continues);
    assert_eq!(response.transfer_tag, TargetTransferTag::RESERVED);
    assert_eq!(data, b"TargetName=iqn.a\0");
}

#[test]
fn a_long_list_is_sent_in_pieces_the_initiator_asks_for() {
    let mut initiator =
        Initiator::with(NegotiatedParams { max_send_segment: 512, ..NegotiatedParams::default() });
    let list: Vec<u8> = (0..1300u32).map(|n| b'a' + (n % 26) as u8).collect();
    let bhs = text(&mut initiator, TargetTransferTag::RESERVED, true, false);
    initiator.send_with(&bhs, b"SendTargets=\0");
    initiator.event();
    initiator.session.send_targets_reply(ON, &list);
    let mut got = Vec::new();
    loop {
        let (response, data) = text_response(&mut initiator);
        got.extend_from_slice(&data);
        if response.is_final {
            break;
        }
        assert!(response.text_continues && response.transfer_tag != TargetTransferTag::RESERVED);
        initiator.silent();
        let bhs = text(&mut initiator, response.transfer_tag, true, false);
        initiator.send(&bhs);
    }
    assert_eq!(got, list);
    assert!(initiator.session.is_idle());
}

#[test]
fn text_in_pieces_is_put_together() {
    let mut initiator = Initiator::new();
    let bhs = text(&mut initiator, TargetTransferTag::RESERVED, false, true);
    initiator.send_with(&bhs, b"SendTar");
    let (response, data) = text_response(&mut initiator);
    assert!(!response.is_final && data.is_empty());
    let wrong = text(&mut initiator, TargetTransferTag(999), true, false);
    initiator.send(&wrong);
    assert_eq!(initiator.rejected(&wrong), RejectReason::InvalidPduField);
    initiator.cmd_sn = CmdSn(wrong.u32_at(24));
    let bhs = text(&mut initiator, response.transfer_tag, true, false);
    initiator.send_with(&bhs, b"gets=\0");
    assert_eq!(
        initiator.event(),
        SessionEvent::SendTargets { connection: ON, request: SendTargets::Session }
    );
}

#[test]
fn a_response_is_not_final_before_the_request_is() {
    let mut initiator = Initiator::new();
    let bhs = text(&mut initiator, TargetTransferTag::RESERVED, false, false);
    initiator.send_with(&bhs, b"X-new=1\0MaxBurstLength=512\0");
    let (response, data) = text_response(&mut initiator);
    assert!(!response.is_final && !response.text_continues);
    assert_eq!(data, b"X-new=NotUnderstood\0MaxBurstLength=Reject\0");
    let bhs = text(&mut initiator, response.transfer_tag, true, false);
    initiator.send(&bhs);
    let (response, data) = text_response(&mut initiator);
    assert!(response.is_final && data.is_empty());
}

#[test]
fn the_segment_length_may_change_after_login() {
    let mut initiator = Initiator::new();
    let bhs = text(&mut initiator, TargetTransferTag::RESERVED, true, false);
    initiator.send_with(&bhs, b"MaxRecvDataSegmentLength=1024\0");
    assert!(text_response(&mut initiator).1.is_empty());
    assert_eq!(initiator.session.params(ON).max_send_segment, 1024);
    let bhs = text(&mut initiator, TargetTransferTag::RESERVED, true, false);
    let illegal = b"MaxRecvDataSegmentLength=5\0";
    initiator.send_with(&bhs, illegal);
    let mut sent = bhs;
    sent.set_data_len(illegal.len() as u32);
    assert_eq!(initiator.rejected(&sent), RejectReason::ProtocolError);
    assert_eq!(initiator.session.params(ON).max_send_segment, 1024);
}

#[test]
fn a_key_declared_twice_is_a_protocol_error() {
    let mut initiator = Initiator::new();
    let before = initiator.session.params(ON).max_send_segment;
    let bhs = text(&mut initiator, TargetTransferTag::RESERVED, true, false);
    let twice = b"MaxRecvDataSegmentLength=1024\0MaxRecvDataSegmentLength=2048\0";
    initiator.send_with(&bhs, twice);
    let mut sent = bhs;
    sent.set_data_len(twice.len() as u32);
    assert_eq!(initiator.rejected(&sent), RejectReason::ProtocolError);
    assert_eq!(initiator.session.params(ON).max_send_segment, before);
}

#[test]
fn after_logout_nothing_is_executed_or_answered() {
    let mut initiator = Initiator::new();
    let early = initiator.read(1, 0);
    let late = initiator.read(2, 0);
    initiator.session.complete(early, TaskReply::good(0));
    let bhs = logout(&mut initiator, LogoutReason::CloseSession, 0);
    initiator.send(&bhs);
    assert_eq!(initiator.event(), SessionEvent::Logout { connection: ON, ends: LogoutScope::Session });
    let command = initiator.command(3, Transfer::None);
    initiator.send(&command.encode());
    initiator.session.complete(late, TaskReply::good(0));
    assert_eq!(initiator.output().unwrap().header.task_tag(), InitiatorTaskTag(1));
    let pdu = initiator.output().unwrap();
    assert_eq!((pdu.header.opcode(), pdu.header.0[2]), (ResponseOpcode::Logout as u8, 0));
    initiator.silent();
    assert!(initiator.session.is_closed(ON));
    assert_eq!(initiator.session.tasks().count(), 1, "for the shard to abort");
}

#[test]
fn logout_of_another_connection_or_for_recovery_changes_nothing() {
    let mut initiator = Initiator::new();
    for (reason, cid, response) in
        [(LogoutReason::CloseConnection, 4, 1), (LogoutReason::RemoveConnectionForRecovery, 3, 2)]
    {
        let bhs = logout(&mut initiator, reason, cid);
        initiator.send(&bhs);
        assert_eq!(initiator.output().unwrap().header.0[2], response);
        initiator.silent();
    }
    initiator.read(1, 0);
}

#[test]
fn a_silent_initiator_is_pinged_then_let_go() {
    let keepalive = Keepalive { idle: Duration::from_secs(10), answer: Duration::from_secs(5) };
    let mut initiator = Initiator::started(with_keepalive(keepalive));
    let second = |n: u64| Instant(n * 1_000_000_000);
    initiator.session.handle_timeout(ON, second(9));
    initiator.silent();
    initiator.session.handle_timeout(ON, second(10));
    let pdu = initiator.output().unwrap();
    let before = initiator.session.connections[ON].next_stat_sn;
    assert_eq!((pdu.header.task_tag().0, pdu.header.u32_at(24)), (u32::MAX, before.0));
    let transfer_tag = TargetTransferTag(pdu.header.u32_at(20));
    assert_ne!(transfer_tag, TargetTransferTag::RESERVED);
    initiator.now = second(12);
    let purpose = NopOutPurpose::Answer { transfer_tag, lun: LunField::default() };
    let answer =
        NopOut { immediate: true, purpose, cmd_sn: initiator.cmd_sn, exp_stat_sn: before, data_len: 0 };
    initiator.send(&answer.encode());
    assert_eq!(initiator.session.ping_outstanding_since(ON), None);
    initiator.session.handle_timeout(ON, second(22));
    assert!(initiator.output().is_some());
    initiator.session.handle_timeout(ON, second(26));
    initiator.silent();
    initiator.session.handle_timeout(ON, second(27));
    assert_eq!(initiator.event(), SessionEvent::Close { connection: ON, reason: CloseReason::PeerSilent });
    initiator.silent();
    assert!(initiator.session.is_closed(ON));
}

#[test]
fn any_request_answers_a_ping() {
    let keepalive = Keepalive { idle: Duration::from_secs(10), answer: Duration::from_secs(5) };
    let mut initiator = Initiator::started(with_keepalive(keepalive));
    let second = |n: u64| Instant(n * 1_000_000_000);
    initiator.session.handle_timeout(ON, second(10));
    assert!(initiator.session.ping_outstanding_since(ON).is_some());
    initiator.now = second(12);
    initiator.read(1, 0);
    initiator.session.handle_timeout(ON, second(16));
    assert!(initiator.session.poll_event().is_none());
    assert!(initiator.session.ping_outstanding_since(ON).is_none());
}

#[test]
fn a_write_the_shard_has_not_decided_on_is_not_given_up() {
    let mut initiator = Initiator::new();
    let command = initiator.command(1, Transfer::Write { expected: 512, unsolicited: true });
    initiator.offer(&command);
    initiator.session.handle_timeout(ON, Instant(limits::DATA_OUT_STALL_S * 1_000_000_000));
    initiator.silent();
}

#[test]
fn a_write_without_data_is_given_up_unless_the_shard_keeps_it_waiting() {
    let late = Instant(limits::DATA_OUT_STALL_S * 1_000_000_000);
    let write = Transfer::Write { expected: 512, unsolicited: true };
    let mut waiting = Initiator::new();
    let command = ScsiCommand { data_len: 100, ..waiting.command(1, write) };
    waiting.header(&command.encode());
    waiting.offered();
    waiting.session.handle_timeout(ON, late);
    waiting.silent();

    let mut stalled = Initiator::new();
    let command = stalled.command(1, write);
    let task = stalled.offer(&command);
    stalled.session.accept_data_out(task, 512);
    stalled.session.handle_timeout(ON, late);
    assert_eq!(stalled.event(), SessionEvent::Close { connection: ON, reason: CloseReason::DataOutStalled });
}

#[test]
fn unasked_messages_are_numbered() {
    let mut initiator = Initiator::new();
    initiator.session.async_logout(ON, 30);
    initiator.session.async_drop(ON);
    for event in [1, 3] {
        let before = initiator.session.connections[ON].next_stat_sn;
        let pdu = initiator.output().unwrap();
        assert_eq!((pdu.header.0[0], pdu.header.0[36], pdu.header.u32_at(24)), (0x32, event, before.0));
    }
    initiator.silent();
    assert!(initiator.session.is_closed(ON));
}

#[test]
fn a_peer_that_only_makes_rejects_is_let_go() {
    let mut initiator = Initiator::new();
    let mut bhs = Bhs::default();
    bhs.0[0] = 0x3E;
    for _ in 0..=limits::SESSION_ANSWERS_MAX {
        initiator.send(&bhs);
    }
    assert_eq!(
        initiator.event(),
        SessionEvent::Close { connection: ON, reason: CloseReason::TooManyAnswers }
    );
    assert_eq!(core::iter::from_fn(|| initiator.output()).count(), limits::SESSION_ANSWERS_MAX);
    assert!(initiator.session.is_closed(ON));
}

#[test]
fn stat_sns_are_confirmed_only_as_far_as_they_were_sent() {
    let mut initiator = Initiator::new();
    let task = initiator.read(1, 0);
    initiator.session.complete(task, TaskReply::good(0));
    initiator.response();
    for (told, held) in [(500, 100), (101, 101), (100, 101)] {
        let command = initiator.command(told, Transfer::None);
        initiator.offer(&ScsiCommand { exp_stat_sn: StatSn(told), ..command });
        assert_eq!(initiator.session.exp_stat_sn(ON), StatSn(held));
    }
}
