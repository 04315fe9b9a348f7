//! One connection: its stream in, its phase, its queue out.
//!
//! Knows the framer, the login machine and its place in a session, and feeds them. Does not know the ring (operations
//! go through `Core::ops`) nor other connections: what concerns those goes into `Core`'s and its own requests.
//!
use std::collections::VecDeque;
use std::net::SocketAddr;

use crate::clock::Instant;
use crate::io::{Op, RxBuf, SocketSlot};
use crate::iscsi::framer::{Framer, Step};
use crate::iscsi::login::LoginMachine;
use crate::iscsi::session::{OutData, PayloadSink, SessionEvent};
use crate::limits;

use super::executor::Core;
use super::fairness::{Share, Turn};
use super::mailbox::Named;
use super::metrics::Timing;
use super::session::{Member, SessionKey, Sessions};
use super::token::{Kind, Token};
use super::tx_queue::TxQueue;
use super::{ConnKey, ShardId};

/// What a connection is at. Which phase may follow which, and what for:
///
/// | from \ to | Login | HandingOff | Full | Draining | Closing | Closed |
/// |------------|-------|------------|------|----------|---------|--------|
/// | Login      |       | yes        | yes  | yes      | yes     |        |
/// | HandingOff |       |            |      |          | yes     |        |
/// | Full       |       |            |      | yes      | yes     |        |
/// | Draining   |       |            |      | yes      | yes     |        |
/// | Closing    |       |            |      |          |         | yes    |
/// | Closed     |       |            |      |          |         |        |
///
/// Login and Full take what comes; the others do not. HandingOff leaves with its socket to another shard, once its
/// receive has ended. Draining sends what is queued. Closing waits until nothing is pending on the socket, Closed
/// until the ring has closed it.
#[derive(Debug)]
pub(super) enum Phase {
    Login(Box<LoginMachine>),
    HandingOff {
        login: Box<LoginMachine>,
        to: ShardId,
        named: Named,
    },
    Full(Member),
    /// Takes no more; once everything queued is sent, it closes. `None`: its login was refused.
    Draining(Option<Member>),
    Closing,
    Closed,
}

/// A phase without what belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PhaseName {
    Login,
    HandingOff,
    Full,
    Draining,
    Closing,
    Closed,
}

impl PhaseName {
    /// The table of [`Phase`].
    const fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Login, Self::HandingOff | Self::Full | Self::Draining | Self::Closing)
                | (Self::HandingOff, Self::Closing)
                | (Self::Full | Self::Draining, Self::Draining | Self::Closing)
                | (Self::Closing, Self::Closed)
        )
    }
}

impl Phase {
    const fn name(&self) -> PhaseName {
        match self {
            Self::Login(_) => PhaseName::Login,
            Self::HandingOff { .. } => PhaseName::HandingOff,
            Self::Full(_) => PhaseName::Full,
            Self::Draining(_) => PhaseName::Draining,
            Self::Closing => PhaseName::Closing,
            Self::Closed => PhaseName::Closed,
        }
    }
}

/// What a connection wants of its shard after it was fed.
#[derive(Debug)]
pub(super) enum Want {
    /// The login machine has an event.
    LoginEvent,
    /// Its session has decided what concerns more than tasks.
    SessionEvent(SessionKey, SessionEvent),
    Close(&'static str),
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) key: ConnKey,
    pub(super) socket: SocketSlot,
    pub(super) peer: SocketAddr,
    pub(super) phase: Phase,
    pub(super) framer: Framer,
    sink: PayloadSink,
    /// The data segment of a PDU that is no data of a command.
    control: Vec<u8>,
    pub(super) tx: TxQueue,
    /// Login responses that are not staged yet.
    pub(super) login_out: Vec<u8>,
    /// Received and not yet processed; the number is how much of the first is done.
    pub(super) unread: VecDeque<RxBuf>,
    pub(super) unread_done: u32,
    /// Bytes that came with a hand-off.
    pub(super) carried: Vec<u8>,
    pub(super) recv_armed: bool,
    /// The initiator sends no more than what is here.
    pub(super) stream_ended: bool,
    pub(super) since: Instant,
    /// When a PDU or a send last ended, and when a send last began or went on.
    pub(super) last_progress: Instant,
    pub(super) last_sent: Instant,
    /// When nothing was left to send.
    pub(super) all_sent: Instant,
    pub(super) dirty: bool,
    /// How much it may still do in this turn of the shard.
    pub(super) share: Share,
    /// A PDU has begun and not ended.
    pub(super) within_pdu: bool,
    /// Answers that are not sent yet, for how long they took.
    pub(super) timing: Timing,
}

impl Connection {
    pub(super) fn new(
        key: ConnKey,
        socket: SocketSlot,
        peer: SocketAddr,
        login: Box<LoginMachine>,
        now: Instant,
    ) -> Self {
        Self {
            key,
            socket,
            peer,
            phase: Phase::Login(login),
            framer: Framer::new(limits::LOGIN_SEGMENT_BYTES_MAX),
            sink: PayloadSink::Discard,
            control: Vec::new(),
            tx: TxQueue::new(),
            login_out: Vec::new(),
            unread: VecDeque::new(),
            unread_done: 0,
            carried: Vec::new(),
            recv_armed: false,
            stream_ended: false,
            since: now,
            last_progress: now,
            last_sent: now,
            all_sent: now,
            dirty: false,
            share: Share::default(),
            within_pdu: false,
            timing: Timing::default(),
        }
    }

    /// Goes on to another phase.
    pub(super) fn enter(&mut self, next: Phase) {
        debug_assert!(self.phase.name().may_become(next.name()), "{:?} to {next:?}", self.phase.name());
        self.phase = next;
    }

    /// Feeds received bytes; returns how many were used. Less than all: the connection is blocked, has had its share of
    /// this turn, or wants something first.
    pub(super) fn feed(
        &mut self,
        core: &mut Core,
        sessions: &mut Sessions,
        turn: &mut Turn,
        bytes: &[u8],
        wants: &mut Vec<Want>,
    ) -> usize {
        let mut input = bytes;
        while !self.is_blocked() && wants.is_empty() && self.may_go_on(turn) {
            self.express(core, sessions, turn, &mut input);
            match self.framer.next(&mut input) {
                Step::NeedMore => break,
                Step::Header => {
                    self.within_pdu = true;
                    let logs_in = matches!(self.phase, Phase::Login(_));
                    turn.spend(&mut self.share, logs_in, self.framer.bhs());
                    self.header(core, sessions, wants);
                }
                Step::Payload { offset, bytes } => self.payload(core, sessions, offset, bytes),
                Step::End => self.end(core, sessions, wants),
                Step::HeaderDigestError => wants.push(Want::Close("a header digest is wrong")),
                Step::DataDigestError => {
                    self.sink = PayloadSink::Discard;
                    if let Phase::Full(Member { session: key, on }) = self.phase
                        && let Some(session) = sessions.get_mut(key)
                    {
                        session.machine.handle_data_digest_error(on, core.now);
                        session.drain(key, core, wants);
                    }
                }
                Step::TooLong { .. } => wants.push(Want::Close("a data segment is longer than declared")),
            }
        }
        bytes.len() - input.len()
    }

    /// A PDU that has begun is always taken to its end.
    pub(super) fn may_go_on(&mut self, turn: &Turn) -> bool {
        self.within_pdu || turn.has_left(&mut self.share, matches!(self.phase, Phase::Login(_)))
    }

    /// True while nothing more may be processed. A stalled command alone does not block: only its data does.
    pub(super) fn is_blocked(&self) -> bool {
        let takes = matches!(self.phase, Phase::Login(_) | Phase::Full(_));
        !takes || matches!(self.sink, PayloadSink::Wait { .. } | PayloadSink::Turn)
    }

    /// Its place in a session, as long as it has one.
    pub(super) fn member(&self) -> Option<Member> {
        match self.phase {
            Phase::Full(member) | Phase::Draining(Some(member)) => Some(member),
            _ => None,
        }
    }

    fn header(&mut self, core: &mut Core, sessions: &mut Sessions, wants: &mut Vec<Want>) {
        self.control.clear();
        let Phase::Full(Member { session: key, on }) = self.phase else {
            self.sink = PayloadSink::Control { keep: limits::LOGIN_SEGMENT_BYTES_MAX };
            return;
        };
        let Some(session) = sessions.get_mut(key) else { return };
        session.machine.handle_header(on, self.framer.bhs(), self.framer.ahs(), core.now);
        session.drain(key, core, wants);
        self.sink = session.next_sink(on, core);
    }

    fn payload(&mut self, core: &mut Core, sessions: &Sessions, offset: u32, bytes: &[u8]) {
        match self.sink {
            PayloadSink::Discard | PayloadSink::Wait { .. } | PayloadSink::Turn => {}
            PayloadSink::Control { keep } => {
                let room = (keep as usize).saturating_sub(offset as usize);
                self.control.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            PayloadSink::Task { task, offset: base, len } => {
                let room = len.saturating_sub(offset) as usize;
                let bytes = &bytes[..bytes.len().min(room)];
                if let Phase::Full(member) = self.phase
                    && let Some(session) = sessions.get(member.session)
                    && let Some(key) = session.task_key(task)
                    && let Some(task) = core.tasks.get_mut(key)
                {
                    task.fill_out(base.saturating_add(offset), bytes);
                }
            }
        }
    }

    fn end(&mut self, core: &mut Core, sessions: &mut Sessions, wants: &mut Vec<Want>) {
        self.last_progress = core.now;
        self.within_pdu = false;
        self.sink = PayloadSink::Discard;
        match &mut self.phase {
            Phase::Login(login) => {
                login.handle_pdu(self.framer.bhs(), &self.control);
                wants.push(Want::LoginEvent);
            }
            Phase::Full(Member { session: key, on }) => {
                if let Some(session) = sessions.get_mut(*key) {
                    session.machine.handle_end(*on, &self.control, core.now);
                    // A text may have told the initiator that longer segments are taken.
                    self.framer.set_max_data_len(session.machine.params(*on).max_recv_segment);
                    session.drain(*key, core, wants);
                }
            }
            _ => {}
        }
    }

    /// Asks again where the payload goes. True when it waited and waits no more.
    pub(super) fn renew_sink(&mut self, core: &Core, sessions: &mut Sessions) -> bool {
        let waited = matches!(self.sink, PayloadSink::Wait { .. } | PayloadSink::Turn);
        if let Phase::Full(Member { session, on }) = self.phase
            && let Some(session) = sessions.get_mut(session)
        {
            self.sink = session.next_sink(on, core);
        }
        waited && !matches!(self.sink, PayloadSink::Wait { .. } | PayloadSink::Turn)
    }

    /// Moves every PDU the session has ready into the send queue. True when there was no buffer for one.
    pub(super) fn pump(&mut self, core: &mut Core, sessions: &mut Sessions) -> bool {
        self.dirty = false;
        if !self.login_out.is_empty() {
            let staged = self.tx.stage_raw(&core.pool, &self.login_out);
            self.login_out.drain(..staged);
            if !self.login_out.is_empty() {
                return true;
            }
        }
        let Some(Member { session, on }) = self.member() else { return false };
        let Some(session) = sessions.get_mut(session) else { return false };
        while self.tx.queued_bytes() < limits::CONNECTION_SEND_BYTES_MAX {
            if !self.tx.can_stage(&core.pool) {
                return session.machine.has_output(on);
            }
            let Some(out) = session.machine.poll_output(on, core.now) else { break };
            match out.data {
                OutData::None => self.tx.stage_inline(&core.pool, &out.header, &[]),
                OutData::Inline(bytes) => self.tx.stage_inline(&core.pool, &out.header, &bytes),
                OutData::Task { task, offset, len } => {
                    let key = session.task_key(task);
                    if let Some(task) = key.and_then(|key| core.tasks.get(key)) {
                        self.tx.stage_parts(&out.header, task.in_parts(offset, len), len);
                    }
                }
            }
            if let Some(task) = out.finished {
                session.count(core, task, &mut self.timing, self.tx.queued_bytes());
                session.forget(core, task);
            }
        }
        false
    }

    /// Starts receiving unless that is under way or not wanted: never on a socket that is closing or moving.
    pub(super) fn arm_recv(&mut self, core: &mut Core) {
        let open = matches!(self.phase, Phase::Login(_) | Phase::Full(_));
        if open
            && !self.recv_armed
            && !self.stream_ended
            && self.unread.len() < limits::CONNECTION_UNREAD_BUFFERS_MAX
            && self.carried.len() < limits::CONNECTION_CARRIED_BYTES_MAX
        {
            self.recv_armed = true;
            core.submit(Token::of(Kind::Recv, self.key, 0), Op::Recv { socket: self.socket });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iscsi::doc_table::{assert_doc_table, table};

    #[test]
    fn phases_follow_each_other_as_the_table_in_the_docs_says() {
        use PhaseName::*;
        let names = [Login, HandingOff, Full, Draining, Closing, Closed];
        let made = table(
            "from \\ to",
            (&names, |from| format!("{from:?}")),
            (&names, |to| format!("{to:?}")),
            |from, to| if from.may_become(to) { "yes" } else { "" }.to_owned(),
        );
        assert_doc_table(include_str!("connection.rs"), "from \\ to", &made);
    }
}
