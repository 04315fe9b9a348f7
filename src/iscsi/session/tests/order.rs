//! Command order: the window, gaps, immediate commands, task management.

use super::*;

fn management(initiator: &mut Initiator, function: Function, referenced: u32, ref_cmd_sn: CmdSn) -> Bhs {
    TaskManagementRequest {
        immediate: true,
        function,
        lun: LUN,
        task_tag: InitiatorTaskTag(900),
        referenced_tag: InitiatorTaskTag(referenced),
        cmd_sn: initiator.cmd_sn,
        exp_stat_sn: StatSn(100),
        ref_cmd_sn,
    }
    .encode()
}

fn management_response(initiator: &mut Initiator) -> u8 {
    let pdu = initiator.output().expect("a management response");
    assert_eq!(pdu.header.opcode(), ResponseOpcode::TaskManagement as u8);
    assert_eq!(pdu.header.task_tag(), InitiatorTaskTag(900));
    assert!(initiator.output().is_none());
    pdu.header.0[2]
}

#[test]
fn commands_outside_the_window_are_ignored() {
    let mut initiator = Initiator::new();
    let first = initiator.cmd_sn;
    let task = initiator.read(1, 0);
    initiator.session.complete(task, TaskReply::good(0));
    initiator.response();
    let expected = initiator.cmd_sn;
    for wrong in [first, CmdSn(expected.0.wrapping_sub(1)), expected.plus(limits::COMMAND_WINDOW_DEFAULT)] {
        let command = ScsiCommand { cmd_sn: wrong, ..initiator.command(2, Transfer::None) };
        initiator.send(&command.encode());
        initiator.silent();
    }
    initiator.cmd_sn = expected;
    initiator.read(3, 0);
}

#[test]
fn the_window_shuts_when_all_places_are_taken() {
    let mut initiator = Initiator::new();
    let tasks: Vec<TaskId> = (0..limits::COMMAND_WINDOW_DEFAULT).map(|tag| initiator.read(tag, 0)).collect();
    let beyond = initiator.command(1000, Transfer::None);
    initiator.send(&beyond.encode());
    initiator.silent();
    initiator.session.complete(tasks[9], TaskReply::good(0));
    initiator.response();
    initiator.offer(&beyond);
}

#[test]
fn a_gap_holds_later_commands_until_it_closes() {
    let mut initiator = Initiator::new();
    let missing = initiator.command(1, Transfer::None);
    let second = initiator.command(2, Transfer::None);
    let third = initiator.command(3, Transfer::Read { expected: 0 });
    initiator.send(&third.encode());
    initiator.send(&second.encode());
    initiator.silent();
    initiator.offer(&missing);
    initiator.offered();
    initiator.offered();
    let tags: Vec<u32> = initiator.session.tasks().map(|(_, _, tag, _)| tag.0).collect();
    assert_eq!(tags, [1, 2, 3]);
}

#[test]
fn a_held_write_whose_data_was_not_kept_is_busy() {
    let mut initiator = Initiator::new();
    let missing = initiator.command(1, Transfer::None);
    let command = initiator.command(2, Transfer::Write { expected: 1024, unsolicited: true });
    let write = ScsiCommand { data_len: 512, ..command };
    initiator.header(&write.encode());
    assert_eq!(initiator.session.sink(ON), PayloadSink::Discard);
    initiator.end();
    let task = initiator.offer(&missing);
    initiator.silent();
    initiator.send(&data_out(2, Solicitation::Unsolicited, 0, 512, 512, true));
    assert_eq!(initiator.response().0, 0x08, "after its last Data-Out");
    initiator.session.complete(task, TaskReply::good(0));
    initiator.response();
    assert!(initiator.session.is_idle());
}

#[test]
fn a_held_write_whose_data_has_passed_is_busy_at_once() {
    let mut initiator = Initiator::new();
    let missing = initiator.command(1, Transfer::None);
    let write = initiator.command(2, Transfer::Write { expected: 1024, unsolicited: true });
    initiator.send(&write.encode());
    initiator.send(&data_out(2, Solicitation::Unsolicited, 0, 0, 1024, true));
    initiator.offer(&missing);
    assert_eq!(initiator.response().0, 0x08);
}

#[test]
fn immediate_commands_pass_a_gap_and_are_counted() {
    let mut initiator = Initiator::new();
    initiator.command(1, Transfer::None);
    for tag in 0..limits::IMMEDIATE_TASKS_MAX as u32 {
        let command = initiator.command(100 + tag, Transfer::None);
        initiator.offer(&ScsiCommand { immediate: true, ..command });
    }
    let command = ScsiCommand { immediate: true, ..initiator.command(200, Transfer::None) }.encode();
    initiator.send(&command);
    assert_eq!(initiator.rejected(&command), RejectReason::ImmediateCommandReject);
}

#[test]
fn abort_task_names_the_task_and_ends_without_response() {
    let mut initiator = Initiator::new();
    let ref_cmd_sn = initiator.cmd_sn;
    let task = initiator.read(4, 512);
    let request = management(&mut initiator, Function::AbortTask, 4, ref_cmd_sn);
    initiator.send(&request);
    match initiator.event() {
        SessionEvent::Management { function, task_tag, lun, .. } => {
            assert_eq!((function, task_tag.0, lun), (ManagementFunction::AbortTask(task), 900, LUN));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(initiator.session.abort_task(task), Aborted::Executing);
    assert_eq!(initiator.session.abort_task(task), Aborted::Unknown);
    initiator.session.complete(task, TaskReply::good(512));
    initiator.session.complete_management(InitiatorTaskTag(900), ManagementResponse::FunctionComplete);
    assert_eq!(management_response(&mut initiator), 0);
    assert!(initiator.session.is_idle());
}

#[test]
fn abort_drops_a_reply_that_is_queued() {
    let mut initiator = Initiator::with(NegotiatedParams::default());
    let task = initiator.read(4, 20_000);
    initiator.session.complete(task, TaskReply::good(20_000));
    assert!(initiator.output().is_some());
    assert_eq!(initiator.session.abort_task(task), Aborted::Replied);
    initiator.silent();
}

#[test]
fn abort_task_of_something_else_does_not_exist() {
    let mut initiator = Initiator::new();
    let done = initiator.cmd_sn;
    let task = initiator.read(4, 0);
    initiator.session.complete(task, TaskReply::good(0));
    initiator.response();
    let request = management(&mut initiator, Function::AbortTask, 4, done);
    initiator.send(&request);
    assert_eq!(management_response(&mut initiator), 1);
    // A task on another unit is another task.
    let ref_cmd_sn = initiator.cmd_sn;
    initiator.read(5, 0);
    let mut request = management(&mut initiator, Function::AbortTask, 5, ref_cmd_sn);
    request.0[9] = 2;
    initiator.send(&request);
    assert_eq!(management_response(&mut initiator), 1);
}

#[test]
fn abort_task_of_a_missing_command_closes_the_gap() {
    let mut initiator = Initiator::new();
    let missing = initiator.command(1, Transfer::None);
    let next = initiator.command(2, Transfer::None);
    initiator.send(&next.encode());
    initiator.silent();
    let request = management(&mut initiator, Function::AbortTask, 1, missing.cmd_sn);
    initiator.send(&request);
    assert_eq!(management_response(&mut initiator), 0);
    initiator.offered();
    initiator.send(&missing.encode());
    initiator.silent();
}

#[test]
fn abort_task_of_a_command_yet_to_be_sent_closes_no_gap() {
    let mut initiator = Initiator::new();
    let at = initiator.cmd_sn;
    let request = management(&mut initiator, Function::AbortTask, 1, at);
    initiator.send(&request);
    assert_eq!(management_response(&mut initiator), 1);
    initiator.read(1, 0);
}

#[test]
fn unsupported_functions_are_answered_here() {
    let mut initiator = Initiator::new();
    for (function, response) in
        [(Function::TaskReassign, 4), (Function::ClearAca, 5), (Function::Unknown(9), 5)]
    {
        let at = initiator.cmd_sn;
        let request = management(&mut initiator, function, 1, at);
        initiator.send(&request);
        assert!(initiator.session.poll_event().is_none());
        assert_eq!(management_response(&mut initiator), response);
    }
}

#[test]
fn a_reset_goes_to_the_shard_and_its_answer_follows_earlier_responses() {
    let mut initiator = Initiator::new();
    let done = initiator.read(1, 0);
    let running = initiator.read(2, 0);
    initiator.session.complete(done, TaskReply::good(0));
    let at = initiator.cmd_sn;
    let request = management(&mut initiator, Function::LunReset, u32::MAX, at);
    initiator.send(&request);
    assert!(matches!(
        initiator.event(),
        SessionEvent::Management { function: ManagementFunction::LunReset, .. }
    ));
    initiator.session.abort_task(running);
    initiator.session.complete_management(InitiatorTaskTag(900), ManagementResponse::FunctionComplete);
    assert_eq!(initiator.output().unwrap().header.task_tag(), InitiatorTaskTag(1));
    assert_eq!(management_response(&mut initiator), 0);
}

#[test]
fn abort_task_of_a_management_function_is_rejected() {
    let mut initiator = Initiator::new();
    let at = initiator.cmd_sn;
    let mut reset = management(&mut initiator, Function::LunReset, u32::MAX, at);
    reset.0[16..20].copy_from_slice(&901_u32.to_be_bytes());
    initiator.send(&reset);
    initiator.event();
    let abort = management(&mut initiator, Function::AbortTask, 901, at);
    initiator.send(&abort);
    assert!(initiator.session.poll_event().is_none());
    assert_eq!(management_response(&mut initiator), 255);
    initiator.session.complete_management(InitiatorTaskTag(901), ManagementResponse::FunctionComplete);
    let answer = initiator.output().expect("the reset goes on");
    assert_eq!((answer.header.task_tag(), answer.header.0[2]), (InitiatorTaskTag(901), 0));
}

#[test]
fn ordered_management_waits_for_its_turn() {
    let mut initiator = Initiator::new();
    let missing = initiator.command(1, Transfer::None);
    let at = initiator.cmd_sn;
    let mut request = management(&mut initiator, Function::AbortTaskSet, u32::MAX, at);
    request.0[0] = 0x02;
    initiator.send(&request);
    initiator.silent();
    initiator.offer(&missing);
    assert!(matches!(initiator.event(), SessionEvent::Management { .. }));
}
