//! Several connections in one session: order, allegiance, joining, leaving.

use super::*;
use crate::iscsi::pdu::logout::{LogoutReason, LogoutRequest};

const IMMEDIATE: Transfer = Transfer::Write { expected: 512, unsolicited: false };
const UNSOLICITED: Transfer = Transfer::Write { expected: 512, unsolicited: true };

fn params(max_connections: u32) -> NegotiatedParams {
    NegotiatedParams { max_connections, initial_r2t: false, ..NegotiatedParams::default() }
}

/// A session of two connections; CIDs 3 and 4.
fn pair() -> (Initiator, ConnectionId) {
    let mut initiator = Initiator::with(params(2));
    let second = initiator.session.join(connection(4, params(2))).expect("room for a second");
    (initiator, second)
}

impl Initiator {
    fn on(&mut self, on: ConnectionId) -> &mut Self {
        self.on = on;
        self
    }
}

#[test]
fn a_session_takes_as_many_connections_as_were_negotiated() {
    let (mut initiator, second) = pair();
    assert_ne!(second, ON);
    assert!(!initiator.session.has_room());
    assert_eq!(initiator.session.join(connection(5, params(2))), None);
    assert_eq!(initiator.session.connection_of(Cid(4)), Some(second));
    initiator.session.drop_connection(ON, Instant(0));
    assert_eq!(initiator.session.connection_of(Cid(3)), None);
    assert!(initiator.session.join(connection(5, params(2))).is_some(), "the place is free again");
    let mut many = Initiator::with(params(65_535));
    let joined = (1..3000).filter(|cid| many.session.join(connection(*cid, params(65_535))).is_some());
    assert_eq!(joined.count(), limits::SESSION_CONNECTIONS_MAX - 1);
}

#[test]
fn commands_begin_in_order_over_all_connections_and_are_answered_where_they_came() {
    let (mut initiator, second) = pair();
    let first = initiator.command(1, Transfer::Read { expected: 512 });
    let next = initiator.command(2, Transfer::Read { expected: 512 });
    initiator.on(second).send(&next.encode());
    assert!(initiator.session.poll_event().is_none(), "command 1 is still to come");
    initiator.on(ON).send(&first.encode());
    let mut offered = Vec::new();
    while let Some(SessionEvent::Command { connection, task, .. }) = initiator.session.poll_event() {
        offered.push((connection, task));
    }
    let [(a, one), (b, two)] = offered[..] else { panic!("{offered:?}") };
    assert_eq!((a, b), (ON, second));
    initiator.session.complete(two, TaskReply::good(512));
    assert!(initiator.on(ON).output().is_none());
    let answer = initiator.on(second).output().unwrap();
    let window = DataIn::decode(&answer.header).unwrap().window;
    assert_eq!((answer.header.task_tag(), answer.header.u32_at(24)), (InitiatorTaskTag(2), 100));
    assert_eq!(window.exp_cmd_sn, CmdSn(1), "one window for the session");
    initiator.session.complete(one, TaskReply::good(512));
    let answer = initiator.on(ON).output().unwrap();
    assert_eq!(answer.header.u32_at(24), 100, "each connection numbers its own responses");
    assert!(initiator.session.is_idle());
}

#[test]
fn a_response_frees_the_window_for_every_connection() {
    let (mut initiator, second) = pair();
    let tasks: Vec<TaskId> = (0..limits::COMMAND_WINDOW_DEFAULT).map(|tag| initiator.read(tag, 0)).collect();
    let beyond = initiator.command(1000, Transfer::None);
    initiator.on(second).send(&beyond.encode());
    initiator.silent();
    initiator.session.complete(tasks[5], TaskReply::good(0));
    initiator.on(ON).response();
    initiator.on(second).offer(&beyond);
}

#[test]
fn immediate_data_of_a_command_ahead_waits_for_its_turn() {
    let (mut initiator, second) = pair();
    let missing = initiator.command(1, Transfer::None);
    let write = ScsiCommand { data_len: 512, ..initiator.command(2, IMMEDIATE) };
    initiator.on(second).header(&write.encode());
    assert_eq!(initiator.session.sink(second), PayloadSink::Turn);
    initiator.on(ON).offer(&missing);
    assert_eq!(initiator.event(), SessionEvent::Resumed { connection: second });
    let task = initiator.offered();
    assert_eq!(initiator.session.sink(second), PayloadSink::Wait { task });
    initiator.session.accept_data_out(task, 512);
    assert_eq!(initiator.session.sink(second), PayloadSink::Task { task, offset: 0, len: 512 });
    initiator.on(second).end();
    assert_eq!(initiator.event(), SessionEvent::DataComplete { task, received: 512 });
}

#[test]
fn unsolicited_data_of_a_command_ahead_waits_for_its_turn() {
    let (mut initiator, second) = pair();
    let missing = initiator.command(1, Transfer::None);
    let write = initiator.command(2, UNSOLICITED);
    initiator.on(second).send(&write.encode());
    initiator.header(&data_out(2, Solicitation::Unsolicited, 0, 0, 512, true));
    assert_eq!(initiator.session.sink(second), PayloadSink::Turn);
    initiator.on(ON).offer(&missing);
    assert_eq!(initiator.event(), SessionEvent::Resumed { connection: second });
    let task = initiator.offered();
    initiator.session.accept_data_out(task, 512);
    assert_eq!(initiator.session.sink(second), PayloadSink::Task { task, offset: 0, len: 512 });
    initiator.on(second).end();
    assert_eq!(initiator.event(), SessionEvent::DataComplete { task, received: 512 });
}

#[test]
fn data_that_waits_too_long_is_thrown_away_and_its_command_is_busy() {
    let (mut initiator, second) = pair();
    let missing = initiator.command(1, Transfer::None);
    let write = ScsiCommand { data_len: 512, ..initiator.command(2, IMMEDIATE) };
    initiator.on(second).header(&write.encode());
    initiator.session.postpone_timeouts(second, Instant(1_000_000_000));
    assert_eq!(initiator.session.sink(second), PayloadSink::Turn);
    initiator.session.postpone_timeouts(second, Instant(2_000_000_000));
    assert_eq!(initiator.event(), SessionEvent::Resumed { connection: second });
    assert_eq!(initiator.session.sink(second), PayloadSink::Discard);
    initiator.end();
    initiator.on(ON).offer(&missing);
    assert_eq!(initiator.on(second).response().0, 0x08);
}

#[test]
fn nobody_waits_for_a_connection_that_is_gone() {
    let (mut initiator, second) = pair();
    initiator.command(1, Transfer::None);
    let write = ScsiCommand { data_len: 512, ..initiator.command(2, IMMEDIATE) };
    initiator.on(second).header(&write.encode());
    initiator.session.drop_connection(ON, Instant(0));
    assert_eq!(initiator.event(), SessionEvent::Resumed { connection: second });
    assert_eq!(initiator.session.sink(second), PayloadSink::Discard);
}

#[test]
fn data_on_another_connection_than_its_command_is_rejected() {
    let (mut initiator, second) = pair();
    let write = initiator.command(7, UNSOLICITED);
    let task = initiator.offer(&write);
    initiator.session.accept_data_out(task, 512);
    let stray = data_out(7, Solicitation::Unsolicited, 0, 0, 512, true);
    initiator.on(second).send(&stray);
    assert_eq!(initiator.rejected(&stray), RejectReason::InvalidPduField);
    initiator.on(ON).send(&stray);
    assert_eq!(initiator.event(), SessionEvent::DataComplete { task, received: 512 });
}

#[test]
fn a_tag_is_taken_on_every_connection() {
    let (mut initiator, second) = pair();
    initiator.read(7, 512);
    let again = initiator.command(7, Transfer::None).encode();
    initiator.on(second).send(&again);
    assert_eq!(initiator.rejected(&again), RejectReason::TaskInProgress);
}

#[test]
fn a_lost_connection_takes_its_tasks_along_and_no_others() {
    let (mut initiator, second) = pair();
    let kept = initiator.read(1, 512);
    let command = initiator.command(2, Transfer::Read { expected: 512 });
    let lost = initiator.on(second).offer(&command);
    let replied = initiator.command(3, Transfer::Read { expected: 512 });
    let replied = initiator.offer(&replied);
    initiator.session.complete(replied, TaskReply::good(512));
    let window = initiator.session.window();
    let dropped = initiator.session.drop_connection(second, Instant(0));
    assert_eq!(dropped.iter().map(|it| it.task).collect::<Vec<_>>(), [lost, replied]);
    assert!(dropped.iter().all(|it| it.lun == LUN));
    let after = initiator.session.window();
    assert_eq!(after.exp_cmd_sn, window.exp_cmd_sn);
    assert_eq!(after.max_cmd_sn, window.max_cmd_sn.plus(2), "their places are free");
    initiator.session.complete(lost, TaskReply::good(512));
    initiator.session.complete(kept, TaskReply::good(512));
    assert!(initiator.on(ON).output().is_some());
    assert!(initiator.session.is_idle());
}

#[test]
fn what_a_lost_connection_brought_ahead_counts_as_received() {
    let (mut initiator, second) = pair();
    let missing = initiator.command(1, Transfer::None);
    let lost = initiator.command(2, Transfer::None);
    let last = initiator.command(3, Transfer::None);
    initiator.on(second).send(&lost.encode());
    initiator.on(ON).send(&last.encode());
    assert!(initiator.session.drop_connection(second, Instant(0)).is_empty());
    initiator.silent();
    initiator.offer(&missing);
    initiator.offered();
    let tags: Vec<u32> = initiator.session.tasks().map(|(_, _, tag, _)| tag.0).collect();
    assert_eq!(tags, [1, 3]);
}

#[test]
fn a_connection_that_takes_a_place_again_begins_afresh() {
    let (mut initiator, second) = pair();
    let done = initiator.command(1, Transfer::None);
    let task = initiator.on(second).offer(&done);
    initiator.session.complete(task, TaskReply::good(0));
    initiator.response();
    initiator.session.ping(second, Instant(0));
    initiator.session.drop_connection(second, Instant(0));
    let again = initiator.session.join(connection(4, params(2))).unwrap();
    assert_eq!(again, second);
    assert_eq!(initiator.session.ping_outstanding_since(again), None);
    assert!(initiator.on(again).output().is_none());
    let ask = initiator.command(2, Transfer::None);
    let task = initiator.offer(&ask);
    initiator.session.complete(task, TaskReply::good(0));
    assert_eq!(initiator.output().unwrap().header.u32_at(24), 100);
}

fn logout(initiator: &Initiator, reason: LogoutReason, cid: u16) -> Bhs {
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

#[test]
fn one_connection_may_be_logged_out_from_another() {
    let (mut initiator, second) = pair();
    let bhs = logout(&initiator, LogoutReason::CloseConnection, 4);
    initiator.send(&bhs);
    let ends = LogoutScope::Connection(second);
    assert_eq!(initiator.event(), SessionEvent::Logout { connection: ON, ends });
    initiator.session.drop_connection(second, Instant(0));
    assert_eq!(initiator.output().unwrap().header.0[2], 0);
    assert!(!initiator.session.is_closed(ON));
    initiator.read(1, 0);
}

#[test]
fn a_logout_of_its_own_connection_leaves_the_others() {
    let (mut initiator, second) = pair();
    let bhs = logout(&initiator, LogoutReason::CloseConnection, 4);
    initiator.on(second).send(&bhs);
    let ends = LogoutScope::Connection(second);
    assert_eq!(initiator.event(), SessionEvent::Logout { connection: second, ends });
    assert_eq!(initiator.output().unwrap().header.0[2], 0);
    assert!(initiator.session.is_closed(second) && !initiator.session.is_closed(ON));
}

#[test]
fn a_session_logout_names_the_session() {
    let (mut initiator, second) = pair();
    let bhs = logout(&initiator, LogoutReason::CloseSession, 0);
    initiator.on(second).send(&bhs);
    let expected = SessionEvent::Logout { connection: second, ends: LogoutScope::Session };
    assert_eq!(initiator.event(), expected);
}

#[test]
fn a_dropped_connection_is_told_of_on_another() {
    let (mut initiator, second) = pair();
    initiator.session.drop_connection(second, Instant(0));
    initiator.session.async_connection_dropped(Cid(4));
    let pdu = initiator.on(ON).output().unwrap();
    assert_eq!((pdu.header.0[0], pdu.header.0[36], pdu.header.u16_at(38)), (0x32, 2, 4));
}

#[test]
fn text_of_one_connection_is_not_that_of_another() {
    use crate::iscsi::pdu::text::TextRequest;
    let (mut initiator, second) = pair();
    for on in [ON, second] {
        let request = TextRequest {
            immediate: false,
            is_final: true,
            text_continues: false,
            lun: LunField::default(),
            task_tag: InitiatorTaskTag(77),
            transfer_tag: TargetTransferTag::RESERVED,
            cmd_sn: initiator.cmd_sn.take(),
            exp_stat_sn: StatSn(100),
        };
        let size = if on == ON { "512" } else { "1024" };
        let text = format!("MaxRecvDataSegmentLength={size}\0");
        initiator.on(on).send_with(&request.encode(0), text.as_bytes());
        assert!(initiator.output().is_some());
    }
    assert_eq!(initiator.session.params(ON).max_send_segment, 512);
    assert_eq!(initiator.session.params(second).max_send_segment, 1024);
}

#[test]
fn an_abort_waits_for_data_it_was_asked_for() {
    let (mut initiator, second) = pair();
    let command = initiator.command(7, Transfer::Write { expected: 512, unsolicited: false });
    let task = initiator.on(second).offer(&command);
    initiator.session.accept_data_out(task, 512);
    let r2t = R2t::decode(&initiator.output().unwrap().header).unwrap();
    let request = TaskManagementRequest {
        immediate: true,
        function: Function::AbortTask,
        lun: LUN,
        task_tag: InitiatorTaskTag(900),
        referenced_tag: InitiatorTaskTag(7),
        cmd_sn: initiator.cmd_sn,
        exp_stat_sn: StatSn(100),
        ref_cmd_sn: command.cmd_sn,
    };
    initiator.send(&request.encode());
    assert!(matches!(initiator.event(), SessionEvent::Management { .. }));
    assert_eq!(initiator.session.abort_task(task), Aborted::Executing);
    initiator.session.complete_management(InitiatorTaskTag(900), ManagementResponse::FunctionComplete);
    initiator.silent();
    initiator.header(&data_out(7, answering(&r2t), 0, 0, 512, true));
    assert_eq!(initiator.session.sink(second), PayloadSink::Discard);
    initiator.end();
    assert_eq!(initiator.output().unwrap().header.opcode(), ResponseOpcode::TaskManagement as u8);
    assert!(initiator.session.is_idle());
}

#[test]
fn an_abort_does_not_wait_for_data_that_never_comes() {
    let mut initiator = Initiator::new();
    let command = initiator.command(7, Transfer::Write { expected: 512, unsolicited: false });
    let task = initiator.offer(&command);
    initiator.session.accept_data_out(task, 512);
    assert!(initiator.output().is_some(), "its R2T");
    let mut request = Bhs::default();
    (request.0[0], request.0[1]) = (0x42, 0x85);
    request.put_u32(16, 900);
    initiator.send(&request);
    initiator.event();
    initiator.session.abort_task(task);
    initiator.session.complete_management(InitiatorTaskTag(900), ManagementResponse::FunctionComplete);
    initiator.session.handle_timeout(ON, Instant(1_000_000_000));
    initiator.silent();
    initiator.session.handle_timeout(ON, Instant(2_000_000_000));
    assert_eq!(initiator.output().unwrap().header.opcode(), ResponseOpcode::TaskManagement as u8);
}

fn multi(initiator: &mut Initiator, function: Function, tag: u32) -> Bhs {
    TaskManagementRequest {
        immediate: true,
        function,
        lun: LUN,
        task_tag: InitiatorTaskTag(tag),
        referenced_tag: InitiatorTaskTag::RESERVED,
        cmd_sn: initiator.cmd_sn,
        exp_stat_sn: StatSn(100),
        ref_cmd_sn: CmdSn(0),
    }
    .encode()
}

#[test]
fn a_function_waits_for_commands_before_it_on_other_connections() {
    let (mut initiator, second) = pair();
    let before = initiator.command(1, Transfer::None);
    let request = multi(&mut initiator, Function::AbortTaskSet, 900);
    let behind = initiator.command(2, Transfer::None);
    initiator.on(second).send(&request);
    initiator.silent();
    initiator.on(second).send(&behind.encode());
    let earlier = initiator.on(ON).offer(&before);
    let SessionEvent::Management { cmd_sn, .. } = initiator.event() else {
        panic!("the function comes next")
    };
    let later = initiator.offered();
    assert!(initiator.session.precedes(earlier, cmd_sn) && !initiator.session.precedes(later, cmd_sn));
}

#[test]
fn a_function_does_not_wait_for_ever() {
    let (mut initiator, second) = pair();
    initiator.command(1, Transfer::None);
    let request = multi(&mut initiator, Function::LunReset, 900);
    initiator.on(second).send(&request);
    initiator.session.handle_timeout(second, Instant(4_000_000_000));
    initiator.silent();
    initiator.session.handle_timeout(second, Instant(5_000_000_000));
    assert!(matches!(initiator.event(), SessionEvent::Management { .. }));
}

#[test]
fn a_target_reset_plugs_the_numbers_before_it() {
    let (mut initiator, second) = pair();
    let missing = initiator.command(1, Transfer::None);
    let held = initiator.command(2, Transfer::None);
    let request = multi(&mut initiator, Function::TargetWarmReset, 900);
    let behind = initiator.command(3, Transfer::None);
    initiator.on(second).send(&held.encode());
    initiator.send(&request);
    assert!(matches!(initiator.event(), SessionEvent::Management { .. }));
    assert_eq!(initiator.session.window().exp_cmd_sn, behind.cmd_sn);
    initiator.on(ON).send(&missing.encode());
    initiator.silent();
    initiator.offer(&behind);
}

#[test]
fn an_immediate_command_precedes_a_function_with_its_number() {
    let mut initiator = Initiator::new();
    let at = initiator.cmd_sn;
    let command = initiator.command(1, Transfer::None);
    let task = initiator.offer(&ScsiCommand { immediate: true, ..command });
    assert!(initiator.session.precedes(task, at));
}

/// The answer to a ping.
fn confirm(initiator: &mut Initiator, on: ConnectionId, ping: &OutPdu, exp_stat_sn: u32) {
    let mut bhs = Bhs::default();
    (bhs.0[0], bhs.0[1]) = (0x40, 0x80);
    bhs.put_u32(16, u32::MAX);
    bhs.put_u32(20, ping.header.u32_at(20));
    bhs.put_u32(28, exp_stat_sn);
    initiator.on(on).send(&bhs);
}

#[test]
fn the_answer_of_a_function_comes_behind_a_fence() {
    let (mut initiator, second) = pair();
    let done = initiator.command(1, Transfer::None);
    let done = initiator.on(second).offer(&done);
    let later = initiator.command(2, Transfer::None);
    let later = initiator.on(second).offer(&later);
    initiator.session.complete(done, TaskReply::good(0));
    let request = multi(&mut initiator, Function::AbortTaskSet, 900);
    initiator.on(ON).send(&request);
    initiator.event();
    initiator.session.complete_management(InitiatorTaskTag(900), ManagementResponse::FunctionComplete);
    initiator.on(ON).silent();
    // What was said before it goes out, and a ping asks to confirm that.
    let said = initiator.on(second).output().unwrap();
    assert_eq!(said.header.task_tag(), InitiatorTaskTag(1));
    let ping = initiator.output().unwrap();
    assert_eq!((ping.header.opcode(), ping.header.u32_at(24)), (ResponseOpcode::NopIn as u8, 101));
    initiator.session.complete(later, TaskReply::good(0));
    initiator.silent();
    initiator.on(ON).silent();
    confirm(&mut initiator, second, &ping, 101);
    let answer = initiator.on(ON).output().unwrap();
    assert_eq!(answer.header.opcode(), ResponseOpcode::TaskManagement as u8);
    let ping = initiator.output().unwrap();
    assert_eq!(ping.header.opcode(), ResponseOpcode::NopIn as u8);
    initiator.on(second).silent();
    // What was said after it waits until the answer is confirmed.
    confirm(&mut initiator, ON, &ping, 101);
    assert_eq!(initiator.on(second).output().unwrap().header.task_tag(), InitiatorTaskTag(2));
}

#[test]
fn a_fence_falls_with_time_or_with_the_connection_it_waits_for() {
    for drop in [false, true] {
        let (mut initiator, second) = pair();
        let done = initiator.command(1, Transfer::None);
        let done = initiator.on(second).offer(&done);
        initiator.session.complete(done, TaskReply::good(0));
        initiator.output().unwrap();
        let request = multi(&mut initiator, Function::ClearTaskSet, 900);
        initiator.on(ON).send(&request);
        initiator.event();
        initiator.session.complete_management(InitiatorTaskTag(900), ManagementResponse::FunctionComplete);
        assert!(initiator.on(second).output().is_some(), "a ping");
        initiator.on(ON).silent();
        if drop {
            initiator.session.drop_connection(second, Instant(0));
        } else {
            initiator.session.handle_timeout(ON, Instant(1_000_000_000));
            initiator.silent();
            initiator.session.handle_timeout(ON, Instant(9_000_000_000));
        }
        assert_eq!(initiator.output().unwrap().header.opcode(), ResponseOpcode::TaskManagement as u8);
    }
}

#[test]
fn the_asker_of_a_cold_reset_is_answered_and_then_closed() {
    let (mut initiator, second) = pair();
    let request = multi(&mut initiator, Function::TargetColdReset, 900);
    initiator.on(second).send(&request);
    initiator.event();
    initiator.session.complete_management(InitiatorTaskTag(900), ManagementResponse::FunctionComplete);
    let ping = initiator.on(ON).output().expect("the fence asks the other connection");
    confirm(&mut initiator, ON, &ping, 100);
    initiator.on(second);
    assert_eq!(initiator.event(), SessionEvent::Reset { connection: second });
    assert_eq!(initiator.output().unwrap().header.opcode(), ResponseOpcode::TaskManagement as u8);
    assert!(initiator.session.is_closed(second));
}

#[test]
fn an_initiator_may_be_asked_to_negotiate() {
    let mut initiator = Initiator::new();
    initiator.session.async_negotiate(ON, 30);
    let pdu = initiator.output().unwrap();
    assert_eq!((pdu.header.0[0], pdu.header.0[36], pdu.header.u16_at(42)), (0x32, 4, 30));
}
