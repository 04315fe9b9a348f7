//! Commands, data and status.

use super::*;

const WRITE: Transfer = Transfer::Write { expected: 1024, unsolicited: false };
const WRITE_UNSOLICITED: Transfer = Transfer::Write { expected: 1024, unsolicited: true };

#[test]
fn a_read_ends_with_status_on_its_last_data_in() {
    let mut initiator = Initiator::new();
    let task = initiator.read(7, 4096);
    initiator.session.complete(task, TaskReply::good(4096));
    let pdu = initiator.output().unwrap();
    let data_in = DataIn::decode(&pdu.header).unwrap();
    assert_eq!(
        data_in.end,
        SequenceEnd::EndOfTask { stat_sn: StatSn(100), status: 0, residual: Residual::None }
    );
    assert_eq!(pdu.data, OutData::Task { task, offset: 0, len: 4096 });
    assert_eq!(pdu.finished, Some(task));
    assert_eq!(data_in.window.exp_cmd_sn, CmdSn(0));
    assert_eq!(
        data_in.window.max_cmd_sn,
        CmdSn(limits::COMMAND_WINDOW_DEFAULT - 1),
        "its place is free again"
    );
    initiator.silent();
    assert!(initiator.session.is_idle());
}

#[test]
fn check_condition_comes_in_a_response_after_the_data() {
    let mut initiator = Initiator::new();
    let task = initiator.read(7, 4096);
    let reply = TaskReply { status: CHECK_CONDITION, sense: &[0x70, 0, 3], data_in: 512 };
    initiator.session.complete(task, reply);
    let pdu = initiator.output().unwrap();
    assert_eq!(DataIn::decode(&pdu.header).unwrap().end, SequenceEnd::EndOfBurst);
    assert_eq!(pdu.finished, None);
    let pdu = initiator.output().unwrap();
    let response = ScsiResponse::decode(&pdu.header).unwrap();
    assert_eq!(
        response.outcome,
        Outcome::Completed {
            status: CHECK_CONDITION,
            residual: Residual::Underflow(3584),
            exp_data_sn: DataSn(1)
        }
    );
    assert_eq!(pdu.data, OutData::Inline(Box::from([0, 3, 0x70, 0, 3])));
    assert_eq!(pdu.finished, Some(task));
}

#[test]
fn long_sense_is_cut() {
    let mut initiator = Initiator::new();
    let task = initiator.read(7, 0);
    initiator.session.complete(task, TaskReply { status: 2, sense: &[1; 300], data_in: 0 });
    let (_, _, sense) = initiator.response();
    assert_eq!((sense.len(), &sense[..2]), (254, &[0, 252][..]));
}

#[test]
fn residuals_of_reads_and_writes() {
    for (expected, moved, residual) in [
        (0, 512, Residual::Overflow(512)),
        (10_000, 512, Residual::Underflow(9488)),
        (200, 512, Residual::Overflow(312)),
        (512, 1024, Residual::Overflow(512)),
        (512, 512, Residual::None),
    ] {
        let mut initiator = Initiator::with(NegotiatedParams::default());
        let task = initiator.read(1, expected);
        initiator.session.complete(task, TaskReply { status: 8, sense: &[], data_in: moved });
        let last = core::iter::from_fn(|| initiator.output()).last().unwrap();
        let response = ScsiResponse::decode(&last.header).unwrap();
        assert!(matches!(response.outcome, Outcome::Completed { residual: got, .. } if got == residual));

        let mut initiator = Initiator::with(NegotiatedParams::default());
        let command = initiator.command(1, Transfer::Write { expected, unsolicited: false });
        let task = initiator.offer(&command);
        initiator.session.accept_data_out(task, moved);
        if let Some(pdu) = initiator.output() {
            let r2t = R2t::decode(&pdu.header).unwrap();
            assert_eq!(r2t.desired_len, expected.min(moved), "only what the command takes is asked for");
            initiator.send(&data_out(1, answering(&r2t), 0, 0, r2t.desired_len, true));
        }
        assert_eq!(initiator.event(), SessionEvent::DataComplete { task, received: expected.min(moved) });
        initiator.session.complete(task, TaskReply::good(0));
        assert_eq!(initiator.response(), (0, residual, vec![]));
    }
}

#[test]
fn a_read_flagged_as_write_is_answered_and_its_data_thrown_away() {
    let mut initiator = Initiator::new();
    let command = ScsiCommand { data_len: 512, ..initiator.command(5, WRITE) };
    initiator.header(&command.encode());
    let task = initiator.offered();
    assert_eq!(initiator.session.sink(ON), PayloadSink::Wait { task });
    initiator.session.complete(task, TaskReply::good(512));
    assert_eq!(initiator.session.sink(ON), PayloadSink::Discard);
    assert!(initiator.output().is_none(), "not before the data has come");
    initiator.end();
    assert_eq!(initiator.response(), (0, Residual::Overflow(512), vec![]));
}

#[test]
fn immediate_data_waits_for_the_shard_and_is_cut_to_what_the_command_takes() {
    let mut initiator = Initiator::new();
    let command = ScsiCommand { data_len: 1024, ..initiator.command(5, WRITE) };
    initiator.header(&command.encode());
    let task = initiator.offered();
    assert_eq!(initiator.session.sink(ON), PayloadSink::Wait { task });
    initiator.session.accept_data_out(task, 512);
    assert_eq!(initiator.session.sink(ON), PayloadSink::Task { task, offset: 0, len: 512 });
    assert!(initiator.session.poll_event().is_none());
    initiator.end();
    assert_eq!(initiator.event(), SessionEvent::DataComplete { task, received: 512 });
    initiator.session.complete(task, TaskReply::good(0));
    assert_eq!(initiator.response(), (0, Residual::Underflow(512), vec![]));
}

#[test]
fn a_late_decision_about_a_write_is_fine() {
    let mut initiator = Initiator::new();
    let command = initiator.command(5, WRITE);
    let task = initiator.offer(&command);
    initiator.silent();
    initiator.session.accept_data_out(task, 1024);
    assert_eq!(R2t::decode(&initiator.output().unwrap().header).unwrap().desired_len, 1024);
}

#[test]
fn invalid_data_sn_ends_the_write_after_its_last_data_out() {
    for data_sns in [[0, 0], [27, 1], [u32::MAX, 1], [1, 0]] {
        let mut initiator = Initiator::new();
        let command = initiator.command(5, WRITE_UNSOLICITED);
        let task = initiator.offer(&command);
        initiator.session.accept_data_out(task, 1024);
        initiator.send(&data_out(5, Solicitation::Unsolicited, data_sns[0], 0, 512, false));
        assert!(initiator.output().is_none());
        initiator.send(&data_out(5, Solicitation::Unsolicited, data_sns[1], 512, 512, true));
        assert_eq!(initiator.event(), SessionEvent::DataFailed { task });
        let (status, _, sense) = initiator.response();
        assert_eq!((status, sense_codes(&sense)), (CHECK_CONDITION, (0x0B, 0x47, 0x05)));
        initiator.session.complete(task, TaskReply::good(0));
        initiator.silent();
        assert!(initiator.session.is_idle());
    }
}

#[test]
fn an_early_end_waits_for_the_last_expected_data_out() {
    let mut initiator = Initiator::new();
    let command = initiator.command(5, WRITE_UNSOLICITED);
    let task = initiator.offer(&command);
    initiator.session.complete(task, TaskReply { status: CHECK_CONDITION, sense: &[1], data_in: 0 });
    assert!(initiator.output().is_none());
    let last = data_out(5, Solicitation::Unsolicited, 0, 0, 1024, true);
    initiator.header(&last);
    assert_eq!(initiator.session.sink(ON), PayloadSink::Discard);
    initiator.end();
    let pdu = initiator.output().unwrap();
    assert_eq!(pdu.finished, Some(task));
    assert_eq!(pdu.header.0[3], CHECK_CONDITION);
}

#[test]
fn an_r2t_not_yet_sent_is_dropped_when_the_task_ends() {
    let mut initiator = Initiator::new();
    let command = initiator.command(5, WRITE);
    let task = initiator.offer(&command);
    initiator.session.accept_data_out(task, 1024);
    initiator.session.complete(task, TaskReply { status: CHECK_CONDITION, sense: &[], data_in: 0 });
    let (status, residual, _) = initiator.response();
    assert_eq!((status, residual), (CHECK_CONDITION, Residual::None));
}

#[test]
fn unnegotiated_data_is_unexpected() {
    let strict = NegotiatedParams { immediate_data: false, ..NegotiatedParams::default() };
    let mut initiator = Initiator::with(strict);
    let command = ScsiCommand { data_len: 512, ..initiator.command(5, WRITE) };
    initiator.send(&command.encode());
    let (status, residual, sense) = initiator.response();
    assert_eq!((status, sense_codes(&sense)), (CHECK_CONDITION, (0x0B, 0x0C, 0x0C)));
    assert_eq!(residual, Residual::Underflow(1024));
    let command = initiator.command(6, WRITE_UNSOLICITED);
    initiator.send(&command.encode());
    initiator.silent();
    initiator.send(&data_out(6, Solicitation::Unsolicited, 0, 0, 512, true));
    assert_eq!(sense_codes(&initiator.response().2), (0x0B, 0x0C, 0x0C));
}

#[test]
fn a_foreign_data_out_is_rejected_and_the_write_goes_on() {
    let mut initiator = Initiator::new();
    let command = initiator.command(5, WRITE);
    let task = initiator.offer(&command);
    initiator.session.accept_data_out(task, 1024);
    let r2t = R2t::decode(&initiator.output().unwrap().header).unwrap();
    let foreign = data_out(5, Solicitation::Unsolicited, 0, 0, 512, false);
    initiator.header(&foreign);
    assert_eq!(initiator.session.sink(ON), PayloadSink::Discard);
    initiator.end();
    assert_eq!(initiator.rejected(&foreign), RejectReason::InvalidPduField);
    initiator.send(&data_out(5, answering(&r2t), 0, 0, 1024, true));
    assert_eq!(initiator.event(), SessionEvent::DataComplete { task, received: 1024 });
}

#[test]
fn data_of_an_unknown_task_is_thrown_away() {
    let mut initiator = Initiator::new();
    initiator.send(&data_out(99, Solicitation::Unsolicited, 0, 0, 512, true));
    initiator.silent();
}

#[test]
fn a_damaged_data_segment_is_rejected_and_ends_its_task() {
    let mut initiator = Initiator::new();
    let command = ScsiCommand { data_len: 512, ..initiator.command(5, WRITE) };
    initiator.header(&command.encode());
    let task = initiator.offered();
    initiator.session.accept_data_out(task, 1024);
    initiator.session.handle_data_digest_error(ON, initiator.now);
    assert_eq!(initiator.event(), SessionEvent::DataFailed { task });
    let reject = Reject::decode(&initiator.output().unwrap().header).unwrap();
    assert_eq!(reject.reason, RejectReason::DataDigestError);
    let (status, _, sense) = initiator.response();
    assert_eq!((status, sense_codes(&sense)), (CHECK_CONDITION, (0x0B, 0x47, 0x05)));

    let command = initiator.command(6, WRITE);
    let task = initiator.offer(&command);
    initiator.session.accept_data_out(task, 1024);
    let r2t = R2t::decode(&initiator.output().unwrap().header).unwrap();
    initiator.header(&data_out(6, answering(&r2t), 0, 0, 512, false));
    initiator.session.handle_data_digest_error(ON, initiator.now);
    assert_eq!(initiator.event(), SessionEvent::DataFailed { task });
    assert_eq!(initiator.output().unwrap().header.opcode(), ResponseOpcode::Reject as u8);
    initiator.silent();
    initiator.send(&data_out(6, answering(&r2t), 1, 512, 512, true));
    assert_eq!(initiator.response().0, CHECK_CONDITION, "after the last Data-Out");
}

#[test]
fn a_damaged_last_data_out_still_ends_its_burst() {
    let mut initiator = Initiator::new();
    let command = initiator.command(5, WRITE_UNSOLICITED);
    let task = initiator.offer(&command);
    initiator.session.accept_data_out(task, 1024);
    initiator.header(&data_out(5, Solicitation::Unsolicited, 0, 0, 1024, true));
    initiator.session.handle_data_digest_error(ON, initiator.now);
    assert_eq!(initiator.output().unwrap().header.opcode(), ResponseOpcode::Reject as u8);
    assert_eq!(initiator.response().0, CHECK_CONDITION);
}

#[test]
fn reads_and_writes_allocate_nothing_once_the_session_stands() {
    let mut initiator = Initiator::new();
    let queues = |session: &Session| (session.events.capacity(), session.connections[ON].output.capacity());
    let before = queues(&initiator.session);
    for round in 0..3 {
        let reads: Vec<TaskId> = (0..100).map(|tag| initiator.read(1000 * round + tag, 512)).collect();
        let writes: Vec<TaskId> = (200..228)
            .map(|tag| {
                let command = initiator.command(1000 * round + tag, WRITE);
                initiator.offer(&command)
            })
            .collect();
        writes.iter().for_each(|task| initiator.session.accept_data_out(*task, 1024));
        reads.iter().for_each(|task| initiator.session.complete(*task, TaskReply::good(512)));
        while let Some(pdu) = initiator.output() {
            if pdu.header.opcode() == ResponseOpcode::R2t as u8 {
                let r2t = R2t::decode(&pdu.header).unwrap();
                initiator.send(&data_out(r2t.task_tag.0, answering(&r2t), 0, 0, 1024, true));
                initiator.event();
            }
        }
        writes.iter().for_each(|task| initiator.session.complete(*task, TaskReply::good(0)));
        assert_eq!(core::iter::from_fn(|| initiator.output()).count(), 28);
        assert!(initiator.session.is_idle());
    }
    assert_eq!(queues(&initiator.session), before);
}

#[test]
fn long_cdbs_and_both_directions_are_refused_by_sense() {
    let mut initiator = Initiator::new();
    let command = initiator.command(5, Transfer::None);
    let ahs = [0, 17, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    initiator.session.handle_header(ON, &command.encode(), &ahs, initiator.now);
    initiator.end();
    assert_eq!(sense_codes(&initiator.response().2), (5, 0x20, 0));
    let both = Transfer::Bidirectional { expected_write: 512, expected_read: 512, unsolicited: false };
    let command = initiator.command(6, both);
    initiator.send(&command.encode());
    assert_eq!(sense_codes(&initiator.response().2), (5, 0x0E, 3));
}

#[test]
fn a_tag_in_use_is_rejected_and_its_number_stays_missing() {
    let mut initiator = Initiator::new();
    let task = initiator.read(5, 512);
    let duplicate = initiator.command(5, Transfer::None).encode();
    initiator.send(&duplicate);
    assert_eq!(initiator.rejected(&duplicate), RejectReason::TaskInProgress);
    initiator.session.complete(task, TaskReply::good(512));
    let data_in = DataIn::decode(&initiator.output().unwrap().header).unwrap();
    assert_eq!(data_in.window.exp_cmd_sn.0, duplicate.u32_at(24));
}

#[test]
fn an_impossible_header_is_rejected() {
    let mut initiator = Initiator::new();
    let mut bhs = initiator.command(5, Transfer::Read { expected: 512 }).encode();
    bhs.0[1] &= 0x7F;
    initiator.send(&bhs);
    assert_eq!(initiator.rejected(&bhs), RejectReason::InvalidPduField);
    let mut bhs = initiator.command(u32::MAX, Transfer::None).encode();
    bhs.put_u32(16, u32::MAX);
    initiator.send(&bhs);
    assert_eq!(initiator.rejected(&bhs), RejectReason::InvalidPduField);
}

/// Every phase of the table in `task`, against everything that can happen to a write.
#[test]
fn phases_move_as_the_table_says() {
    let mut table = String::new();
    for phase in ["Offered", "Receiving", "Executing", "Settling", "Replying", "Aborting"] {
        let moves: Vec<String> = ["accept", "complete", "data", "abort"]
            .iter()
            .map(|stimulus| {
                let (mut initiator, task) = task_in(phase);
                apply(&mut initiator, task, stimulus)
            })
            .collect();
        table += &format!("{phase:<10}{}\n", moves.join(" "));
    }
    // A Data-Out is foreign to a write that has none due: it is rejected and changes nothing.
    let expected = "\
Offered   Receiving Settling Offered Aborting
Receiving Receiving Settling Executing Aborting
Executing Executing Replying Executing gone
Settling  Settling Settling Replying Aborting
Replying  Replying Replying Replying gone
Aborting  Aborting Aborting gone Aborting
";
    assert_eq!(table, expected);
}

/// A write of one unsolicited burst, taken to `phase`.
fn task_in(phase: &str) -> (Initiator, TaskId) {
    let mut initiator = Initiator::new();
    let command = initiator.command(5, WRITE_UNSOLICITED);
    let task = initiator.offer(&command);
    match phase {
        "Receiving" => initiator.session.accept_data_out(task, 1024),
        "Executing" => {
            initiator.session.accept_data_out(task, 1024);
            apply(&mut initiator, task, "data");
        }
        "Settling" => initiator.session.complete(task, TaskReply::good(0)),
        "Replying" => {
            initiator.session.complete(task, TaskReply::good(0));
            apply(&mut initiator, task, "data");
        }
        "Aborting" => {
            initiator.session.abort_task(task);
        }
        _ => {}
    }
    (initiator, task)
}

fn apply(initiator: &mut Initiator, task: TaskId, stimulus: &str) -> String {
    match stimulus {
        "accept" => initiator.session.accept_data_out(task, 1024),
        "complete" => initiator.session.complete(task, TaskReply::good(0)),
        "data" => {
            initiator.header(&data_out(5, Solicitation::Unsolicited, 0, 0, 1024, true));
            // A shard that is asked to wait sends no end.
            if initiator.session.sink(ON) != (PayloadSink::Wait { task }) {
                initiator.end();
            }
        }
        _ => {
            initiator.session.abort_task(task);
        }
    }
    initiator.session.tasks.get(task).map_or("gone".into(), |task| format!("{:?}", task.phase))
}
