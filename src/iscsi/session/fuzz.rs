//! Fuzzing of a session: any bytes become requests, a trivial executor answers, invariants are checked.
//!
//! Knows what must hold whatever an initiator sends. Does not know what is right for a well-formed exchange
//! (`tests`).

use super::{
    ConnectionId, ConnectionStart, Keepalive, OutData, OutPdu, PayloadSink, Session, SessionEvent,
    SessionKind, SessionStart, TaskId, TaskReply,
};
use crate::clock::{Duration, Instant};
use crate::iscsi::params::{Cid, NegotiatedParams};
use crate::iscsi::pdu::bhs::Bhs;
use crate::iscsi::pdu::opcode::ResponseOpcode;
use crate::iscsi::pdu::task_mgmt::ManagementResponse;
use crate::iscsi::serial::{CmdSn, StatSn};
use crate::limits;

/// Bytes of input one request takes.
const STEP_BYTES: usize = 16;
/// Tags repeat often enough to collide.
const TAGS: u32 = 8;

/// What the checks remember of one connection between PDUs.
struct Checker {
    on: ConnectionId,
    next_stat_sn: StatSn,
    max_cmd_sn: Option<CmdSn>,
    exp_cmd_sn: Option<CmdSn>,
    transfer_tag: u32,
    /// The header of a PDU whose data waits for its turn.
    waits: Option<Bhs>,
}

impl Checker {
    fn new(on: ConnectionId) -> Self {
        let (max_cmd_sn, exp_cmd_sn) = (None, None);
        Self { on, next_stat_sn: StatSn(1), max_cmd_sn, exp_cmd_sn, transfer_tag: u32::MAX, waits: None }
    }
}

/// Feeds `input` to a session in full-feature phase. The first byte chooses its parameters, then each 16 bytes
/// are one request: opcode and flags, tag, command number, lengths, and how the executor and the sender behave.
/// Panics when an invariant does not hold.
pub fn fuzz_session(input: &[u8]) {
    if let Some((&choice, steps)) = input.split_first() {
        drive(choice, steps);
    }
}

/// Gives how often each opcode was sent.
fn drive(choice: u8, steps: &[u8]) -> [u32; 64] {
    let mut session = Session::new(start(choice));
    let mut sent = [0; 64];
    let mut checkers = vec![Checker::new(ConnectionId::LEADING)];
    let mut open: Vec<TaskId> = Vec::new();
    let mut now = Instant(0);
    for step in steps.chunks_exact(STEP_BYTES) {
        now = now.after(Duration::from_millis(u64::from(step[15]) * 8));
        connect(&mut session, step[12], choice, &mut checkers, &mut open, now);
        let count = checkers.len();
        let checker = &mut checkers[usize::from(step[11] & 0x0F) % count];
        receive(&mut session, step, checker, &mut open, now);
        let on = checker.on;
        if step[14] & 0x80 == 0 {
            for checker in &mut checkers {
                drain(&mut session, checker, &mut sent, &mut open, now);
            }
        }
        session.handle_timeout(on, now);
        execute(&mut session, step[14], &mut open);
        assert!(session.tasks().count() <= limits::SESSION_TASKS_MAX);
    }
    for task in open.clone() {
        session.complete(task, TaskReply::good(0));
    }
    for checker in &mut checkers {
        drain(&mut session, checker, &mut sent, &mut open, now);
    }
    sent
}

/// One request, or what is left of one that waited.
fn receive(session: &mut Session, step: &[u8], checker: &mut Checker, open: &mut Vec<TaskId>, now: Instant) {
    let on = checker.on;
    let bhs = match checker.waits.take() {
        Some(bhs) => bhs,
        None => {
            let bhs = request(step, checker);
            session.handle_header(on, &bhs, additional(step), now);
            execute(session, step[14], open);
            bhs
        }
    };
    let Some(control) = sink(session, on, &bhs, open) else {
        checker.waits = Some(bhs);
        session.postpone_timeouts(on, now);
        return execute(session, step[14], open);
    };
    if step[13] & 0x1F == 0x1F {
        session.handle_data_digest_error(on, now);
    } else {
        session.handle_end(on, &control, now);
    }
    execute(session, step[14], open);
}

/// Connections come and go, and the last one stays.
fn connect(
    session: &mut Session,
    how: u8,
    choice: u8,
    checkers: &mut Vec<Checker>,
    open: &mut Vec<TaskId>,
    now: Instant,
) {
    match how >> 4 {
        0xF => {
            let start = ConnectionStart { now, ..start(choice).connection };
            if let Some(on) = session.join(start) {
                assert!(checkers.iter().all(|checker| checker.on != on), "one place for two connections");
                checkers.push(Checker::new(on));
            }
            assert!(checkers.len() <= limits::SESSION_CONNECTIONS_MAX);
        }
        0xE if checkers.len() > 1 => {
            let gone = checkers.swap_remove(usize::from(how & 0x0F) % checkers.len());
            for dropped in session.drop_connection(gone.on, now) {
                open.retain(|task| *task != dropped.task);
            }
            execute(session, how, open);
        }
        _ => {}
    }
}

fn start(choice: u8) -> SessionStart {
    SessionStart {
        kind: if choice & 0x0F == 0x0F { SessionKind::Discovery } else { SessionKind::Normal },
        exp_cmd_sn: CmdSn(1),
        queue_depth: limits::COMMAND_WINDOW_DEFAULT,
        connection: ConnectionStart {
            cid: Cid(0),
            params: NegotiatedParams {
                initial_r2t: choice & 0x10 != 0,
                immediate_data: choice & 0x20 == 0,
                max_send_segment: 512 << (choice >> 6),
                max_burst: 2048,
                first_burst: 1024,
                max_connections: 3,
                ..NegotiatedParams::default()
            },
            next_stat_sn: StatSn(1),
            keepalive: Some(Keepalive { idle: Duration::from_secs(5), answer: Duration::from_secs(5) }),
            now: Instant(0),
        },
    }
}

/// A request that is often plausible: small tags, numbers near the expected ones, the last transfer tag.
fn request(step: &[u8], checker: &Checker) -> Bhs {
    let mut bhs = Bhs::default();
    bhs.0[0] = step[0];
    bhs.0[1] = step[1];
    bhs.0[4] = if step[13] & 0x60 == 0x60 { 4 } else { 0 };
    bhs.set_data_len(u32::from(step[2]) * 8);
    bhs.put_u32(16, if step[3] == 0xFF { u32::MAX } else { u32::from(step[3]) % TAGS });
    let transfer_tag = match step[4] {
        0..=0x7F => checker.transfer_tag,
        0x80..=0xEF => u32::MAX,
        other => u32::from(other),
    };
    match bhs.opcode() {
        0x01 => bhs.put_u32(20, u32::from(step[5]) * 64),
        0x02 => bhs.put_u32(20, u32::from(step[5]) % TAGS),
        0x06 => bhs.put_u32(20, u32::from(step[5] & 1)),
        _ => bhs.put_u32(20, transfer_tag),
    }
    let expected = checker.exp_cmd_sn.unwrap_or(CmdSn(1));
    bhs.put_u32(24, expected.0.wrapping_add(u32::from(step[6] >> 5)));
    bhs.put_u32(28, checker.next_stat_sn.0);
    bhs.put_u32(32, expected.0.wrapping_add(u32::from(step[7] & 3)).wrapping_sub(1));
    bhs.put_u32(36, u32::from(step[8] & 3));
    bhs.put_u32(40, u32::from(step[9]) * 64);
    bhs
}

fn additional(step: &[u8]) -> &[u8] {
    if step[13] & 0x60 == 0x60 { step } else { &[] }
}

/// Answers every event somehow; `how` decides.
fn execute(session: &mut Session, how: u8, open: &mut Vec<TaskId>) {
    while let Some(event) = session.poll_event() {
        match event {
            SessionEvent::Command { task, write_len, .. } => {
                open.push(task);
                assert!(open.len() <= limits::SESSION_TASKS_MAX);
                match how & 7 {
                    0 => {}
                    1 => finish(session, task, how, open),
                    _ if write_len > 0 => session.accept_data_out(task, u32::from(how) * 64),
                    _ => finish(session, task, how, open),
                }
            }
            SessionEvent::DataComplete { task, .. } => {
                assert!(open.contains(&task), "data of a task that is gone");
                if how & 8 == 0 {
                    finish(session, task, how, open);
                }
            }
            SessionEvent::DataFailed { task } => {
                assert!(open.contains(&task), "failure of a task that is gone");
                open.retain(|other| *other != task);
            }
            SessionEvent::Management { task_tag, lun, .. } => {
                let affected: Vec<TaskId> =
                    session.tasks().filter(|(_, of, ..)| *of == lun).map(|(id, ..)| id).collect();
                for task in affected {
                    session.abort_task(task);
                    open.retain(|other| *other != task);
                }
                session.complete_management(task_tag, ManagementResponse::FunctionComplete);
            }
            SessionEvent::SendTargets { connection, .. } => {
                session.send_targets_reply(connection, &[b'x'; 1500]);
            }
            SessionEvent::Logout { .. }
            | SessionEvent::Reset { .. }
            | SessionEvent::Resumed { .. }
            | SessionEvent::Close { .. } => {}
        }
    }
}

fn finish(session: &mut Session, task: TaskId, how: u8, open: &[TaskId]) {
    assert!(open.contains(&task));
    let sense = [0x70; 18];
    let sense = if how & 0x10 == 0 { &sense[..0] } else { &sense[..] };
    session.complete(task, TaskReply { status: how & 0x12, sense, data_in: u32::from(how) * 128 });
}

/// Plays the shard's part between header and end; gives what it collected. `None`: the data waits for its turn.
fn sink(session: &mut Session, on: ConnectionId, bhs: &Bhs, open: &[TaskId]) -> Option<Vec<u8>> {
    for _ in 0..2 {
        match session.sink(on) {
            PayloadSink::Discard => return Some(Vec::new()),
            PayloadSink::Control { keep } => {
                assert!(keep <= bhs.data_len());
                return Some(vec![b'a'; keep as usize]);
            }
            PayloadSink::Task { task, offset, len } => {
                assert!(open.contains(&task) && len > 0 && len <= bhs.data_len());
                assert!(offset.checked_add(len).is_some_and(|end| end <= 255 * 64), "beyond the write");
                return Some(Vec::new());
            }
            PayloadSink::Wait { task } => session.accept_data_out(task, 1024),
            PayloadSink::Turn => return None,
        }
    }
    panic!("the session waits for a shard that has decided");
}

fn drain(
    session: &mut Session,
    checker: &mut Checker,
    sent: &mut [u32; 64],
    open: &mut Vec<TaskId>,
    now: Instant,
) {
    while let Some(pdu) = session.poll_output(checker.on, now) {
        sent[usize::from(pdu.header.opcode())] += 1;
        checker.check(&pdu);
        if let OutData::Task { task, .. } = pdu.data {
            assert!(open.contains(&task), "data-in of a task that is gone");
        }
        if let Some(task) = pdu.finished {
            assert!(open.contains(&task), "finished twice");
            open.retain(|other| *other != task);
        }
    }
}

impl Checker {
    /// StatSN has no gaps; ExpCmdSN and MaxCmdSN never go back.
    fn check(&mut self, pdu: &OutPdu) {
        let bhs = &pdu.header;
        let opcode = ResponseOpcode::from_byte(bhs.opcode()).expect("a target's opcode");
        let takes_stat_sn = match opcode {
            ResponseOpcode::DataIn => bhs.0[1] & 1 != 0,
            ResponseOpcode::R2t => false,
            ResponseOpcode::NopIn => bhs.u32_at(16) != u32::MAX,
            _ => true,
        };
        if takes_stat_sn {
            assert_eq!(StatSn(bhs.u32_at(24)), self.next_stat_sn.take());
        }
        if matches!(opcode, ResponseOpcode::R2t | ResponseOpcode::Text | ResponseOpcode::NopIn) {
            self.transfer_tag = bhs.u32_at(20);
        }
        let (exp, max) = (CmdSn(bhs.u32_at(28)), CmdSn(bhs.u32_at(32)));
        assert!(self.exp_cmd_sn.is_none_or(|earlier| !exp.before(earlier)), "ExpCmdSN went back");
        assert!(self.max_cmd_sn.is_none_or(|earlier| !max.before(earlier)), "MaxCmdSN went back");
        (self.exp_cmd_sn, self.max_cmd_sn) = (Some(exp), Some(max));
        let len = match &pdu.data {
            OutData::None => 0,
            OutData::Task { len, .. } => *len,
            OutData::Inline(bytes) => bytes.len() as u32,
        };
        assert_eq!(bhs.data_len(), len);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_bytes_break_a_session(input in proptest::collection::vec(any::<u8>(), 0..800)) {
            fuzz_session(&input);
        }
    }

    /// Requests that mean something, mostly in order and in place, from a seeded generator: the interesting
    /// states are reached, which the last lines check.
    #[test]
    fn plausible_requests_reach_every_answer() {
        let mut runner = TestRunner::deterministic();
        let opcodes = proptest::sample::select(vec![1u8, 1, 1, 5, 5, 5, 0, 2, 4, 4, 0x41, 0x42, 6, 0x10]);
        let flags = proptest::sample::select(vec![0xA0u8, 0x20, 0xC0, 0x80, 0x81, 0x85, 0x40, 0x00]);
        let steps = proptest::collection::vec((opcodes, flags, any::<[u8; 14]>()), 0..80);
        let mut sent = [0; 64];
        for case in 0..4000 {
            let tree = steps.new_tree(&mut runner).unwrap();
            let bytes: Vec<u8> = tree.current().into_iter().flat_map(plausible).collect();
            for (sum, more) in sent.iter_mut().zip(drive(case as u8, &bytes)) {
                *sum += more;
            }
        }
        for opcode in (0..64).filter_map(ResponseOpcode::from_byte) {
            let is_unasked = matches!(opcode, ResponseOpcode::Login | ResponseOpcode::AsyncMessage);
            assert_eq!(sent[opcode as usize] < 100, is_unasked, "{opcode:?}: {}", sent[opcode as usize]);
        }
    }

    fn plausible((opcode, flags, mut rest): (u8, u8, [u8; 14])) -> [u8; STEP_BYTES] {
        if rest[13] & 7 != 0 {
            // The last transfer tag, and no number ahead of its turn.
            (rest[2], rest[4], rest[5]) = (0, 0, 0);
        }
        if rest[13] & 0x30 != 0 {
            (rest[6], rest[7]) = (0, 0);
        }
        // Additional segments and damaged data are rare, logouts too.
        rest[11] &= 0x3F;
        if rest[12] & 3 != 0 {
            rest[10] &= 0x3F;
        }
        let opcode = if opcode == 6 && rest[13] & 7 != 7 { 1 } else { opcode };
        let mut step = [0; STEP_BYTES];
        (step[0], step[1]) = (opcode, flags);
        step[2..].copy_from_slice(&rest);
        step
    }
}
