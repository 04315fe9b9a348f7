//! One connection of a session: what RFC 7143 keeps per connection, how one joins and how one goes.
//!
//! Knows StatSN, the output queue, the text exchange, the PDU being received, pings and silence. Does not know
//! sockets, nor commands beyond whose connection they belong to (4.2.5.1, connection allegiance).

use std::collections::VecDeque;

use super::output::Queued;
use super::text::TextExchange;
use super::{CloseReason, Current, HeldRequest, Keepalive, PayloadSink, Session, SessionEvent, TICK, TaskId};
use crate::clock::{Duration, Instant};
use crate::iscsi::params::{Cid, NegotiatedParams};
use crate::iscsi::pdu::bhs::Bhs;
use crate::iscsi::pdu::{LunField, TargetTransferTag};
use crate::iscsi::serial::StatSn;
use crate::iscsi::task::Phase;
use crate::limits;

/// How long the data of a command may wait for commands that other connections bring. After that it is thrown
/// away, and the command ends with BUSY when its turn comes.
const TURN_WAIT: Duration = Duration::from_secs(2);
/// How long an aborted write may still be sent data it was asked for; then its R2T counts as void.
const ABORTED_DATA_WAIT: Duration = Duration::from_secs(2);

/// Names a connection of a session. The place of a dropped one is used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionId(u8);

impl ConnectionId {
    /// The connection the session began with.
    pub const LEADING: Self = Self(0);

    /// Below `SESSION_CONNECTIONS_MAX`.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// What the login of one connection leaves behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionStart {
    pub cid: Cid,
    pub params: NegotiatedParams,
    /// The StatSN after that of the last Login Response.
    pub next_stat_sn: StatSn,
    /// `None`: the initiator is never pinged.
    pub keepalive: Option<Keepalive>,
    pub now: Instant,
}

/// A task that ended with its connection; nobody is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    pub task: TaskId,
    pub lun: LunField,
}

/// What a connection of a session is good for. Only Open takes requests; Closed sends nothing more.
///
/// | state   | Joined | Ends    | Fails   | LastSent | AllSent | Dropped |
/// |---------|--------|---------|---------|----------|---------|---------|
/// | Open    |        | Leaving | Closing | Closed   |         | Vacant  |
/// | Leaving |        |         |         | Closed   | Closed  | Vacant  |
/// | Closing |        |         |         | Closed   | Closed  | Vacant  |
/// | Closed  |        |         |         |          |         | Vacant  |
/// | Vacant  | Open   |         |         |          |         |         |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Open,
    Leaving,
    Closing,
    Closed,
    /// No connection is in this place.
    Vacant,
}

/// What moves a connection on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Happening {
    /// A login has taken the place.
    Joined,
    /// The answer that ends it is queued: of a logout, or of TARGET COLD RESET.
    Ends,
    /// It is beyond repair, or the target drops it.
    Fails,
    /// The answer that ends it is sent.
    LastSent,
    /// Nothing is left to be sent.
    AllSent,
    /// The shard has taken it out of the session.
    Dropped,
}

impl State {
    /// The table.
    pub(super) const fn after(self, happening: Happening) -> Self {
        match (self, happening) {
            (Self::Vacant, Happening::Joined) => Self::Open,
            (Self::Open, Happening::Ends) => Self::Leaving,
            (Self::Open, Happening::Fails) => Self::Closing,
            (Self::Open | Self::Leaving | Self::Closing, Happening::LastSent) => Self::Closed,
            (Self::Leaving | Self::Closing, Happening::AllSent) => Self::Closed,
            (_, Happening::Dropped) => Self::Vacant,
            (same, _) => same,
        }
    }
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) cid: Cid,
    pub(super) params: NegotiatedParams,
    keepalive: Option<Keepalive>,
    pub(super) state: State,
    pub(super) text: TextExchange,
    pub(super) current: Current,
    pub(super) current_bhs: Bhs,
    pub(super) output: VecDeque<Queued>,
    pub(super) next_stat_sn: StatSn,
    pub(super) exp_stat_sn: StatSn,
    pub(super) last_activity: Instant,
    last_tick: Instant,
    pub(super) ping: Option<(TargetTransferTag, Instant)>,
}

impl Connection {
    pub(super) fn new(start: ConnectionStart, output_capacity: usize) -> Self {
        Self {
            cid: start.cid,
            params: start.params,
            keepalive: start.keepalive,
            state: State::Vacant.after(Happening::Joined),
            text: TextExchange::default(),
            current: Current::Ignored,
            current_bhs: Bhs::default(),
            output: VecDeque::with_capacity(output_capacity),
            next_stat_sn: start.next_stat_sn,
            exp_stat_sn: start.next_stat_sn,
            last_activity: start.now,
            last_tick: start.now,
            ping: None,
        }
    }

    pub(super) fn go(&mut self, happening: Happening) {
        self.state = self.state.after(happening);
    }

    fn note_exp_stat_sn(&mut self, exp_stat_sn: StatSn) {
        // A number beyond what was sent is nonsense and changes nothing.
        let is_sent = !self.next_stat_sn.before(exp_stat_sn);
        if is_sent && self.exp_stat_sn.before(exp_stat_sn) {
            self.exp_stat_sn = exp_stat_sn;
        }
    }
}

/// The places of a session's connections; an id always names one.
#[derive(Debug)]
pub(super) struct Connections(Vec<Connection>);

impl Connections {
    pub(super) fn new(leading: Connection) -> Self {
        Self(vec![leading])
    }

    /// The connections there are.
    pub(super) fn iter(&self) -> impl Iterator<Item = (ConnectionId, &Connection)> {
        let places = self.0.iter().enumerate().map(|(at, connection)| (ConnectionId(at as u8), connection));
        places.filter(|(_, connection)| connection.state != State::Vacant)
    }

    /// Those that take requests.
    pub(super) fn open(&self) -> impl Iterator<Item = ConnectionId> {
        self.iter().filter(|(_, connection)| connection.state == State::Open).map(|(id, _)| id)
    }

    fn insert(&mut self, connection: Connection) -> Option<ConnectionId> {
        if let Some(at) = self.0.iter().position(|connection| connection.state == State::Vacant) {
            self.0[at] = connection;
            return Some(ConnectionId(at as u8));
        }
        if self.0.len() >= limits::SESSION_CONNECTIONS_MAX {
            return None;
        }
        self.0.push(connection);
        Some(ConnectionId((self.0.len() - 1) as u8))
    }
}

impl core::ops::Index<ConnectionId> for Connections {
    type Output = Connection;

    fn index(&self, id: ConnectionId) -> &Connection {
        &self.0[id.index()]
    }
}

impl core::ops::IndexMut<ConnectionId> for Connections {
    fn index_mut(&mut self, id: ConnectionId) -> &mut Connection {
        &mut self.0[id.index()]
    }
}

impl Session {
    pub(super) fn note_exp_stat_sn(&mut self, on: ConnectionId, exp_stat_sn: StatSn) {
        self.connections[on].note_exp_stat_sn(exp_stat_sn);
        if self.fence.is_some() {
            self.check_fence();
        }
    }

    /// One more connection, logged in to this session. `None` when it has as many as it may (MaxConnections of the
    /// leading login). Whoever had the same CID must be dropped before (RFC 7143, 6.3.4).
    pub fn join(&mut self, start: ConnectionStart) -> Option<ConnectionId> {
        if !self.has_room() {
            return None;
        }
        let capacity = self.tasks_max() + 8;
        self.connections.insert(Connection::new(start, capacity))
    }

    /// True when one more connection may join.
    pub fn has_room(&self) -> bool {
        let most = self.session_params().max_connections as usize;
        self.connections.iter().count() < most.min(limits::SESSION_CONNECTIONS_MAX)
    }

    /// The connection with this CID.
    pub fn connection_of(&self, cid: Cid) -> Option<ConnectionId> {
        self.connections.iter().find(|(_, connection)| connection.cid == cid).map(|(id, _)| id)
    }

    /// The connection is gone. Its tasks end without an answer (11.14.5); what it had brought ahead of its turn counts
    /// as received. The others go on.
    pub fn drop_connection(&mut self, gone: ConnectionId, now: Instant) -> Vec<Dropped> {
        let connection = &mut self.connections[gone];
        connection.go(Happening::Dropped);
        connection.current = Current::Ignored;
        connection.ping = None;
        let text = core::mem::take(&mut connection.text);
        for queued in core::mem::take(&mut connection.output) {
            if let Queued::Answer(_, Some(place)) = queued {
                self.window.finish(place);
            }
        }
        if let TextExchange::Asked { place, .. } = text {
            self.window.finish(place);
        }
        self.forget_management(gone);
        let held = self.window.plug_where(|held| held.connection == gone);
        self.held_bytes -= held.iter().map(super::Held::data_len).sum::<usize>();
        let theirs: Vec<_> = self.tasks.iter().filter(|(_, task)| task.connection == gone).collect();
        let theirs: Vec<_> = theirs.into_iter().map(|(task, it)| Dropped { task, lun: it.lun }).collect();
        let dropped = theirs.into_iter().filter(|dropped| {
            let task = self.tasks.remove(dropped.task);
            task.is_some_and(|task| {
                self.window.finish(task.place);
                task.phase != Phase::Aborting
            })
        });
        let dropped = dropped.collect();
        self.leave_fence(gone);
        self.aborted_task_gone();
        self.release_held(now);
        for on in self.connections.open().collect::<Vec<_>>() {
            self.give_up_turn(on, None);
        }
        dropped
    }

    /// True while another connection can bring what this one waits for.
    pub(super) fn may_wait_for_others(&self, on: ConnectionId) -> bool {
        self.connections.open().any(|other| other != on)
    }

    /// Data that waits for the turn of its command is thrown away: at `now` when it has waited long enough, at
    /// `None` when nobody is left who could bring the missing command.
    fn give_up_turn(&mut self, on: ConnectionId, now: Option<Instant>) {
        let Current::Deferred { since } = self.connections[on].current else { return };
        let over = match now {
            Some(now) => now.since(since) >= TURN_WAIT,
            None => !self.may_wait_for_others(on),
        };
        if !over {
            return;
        }
        self.connections[on].current = Current::Ignored;
        let bhs = self.connections[on].current_bhs;
        self.lose_held_data(on, &bhs);
        self.events.push_back(SessionEvent::Resumed { connection: on });
    }

    /// Data of a held command passes by.
    pub(super) fn lose_held_data(&mut self, on: ConnectionId, bhs: &Bhs) {
        let is_last_data_out = bhs.opcode() == 0x05 && bhs.0[1] & 0x80 != 0;
        for held in self.window.held_mut() {
            if held.connection == on
                && let HeldRequest::Command { command, unsolicited, data_lost } = &mut held.request
                && command.task_tag == bhs.task_tag()
            {
                *data_lost = true;
                *unsolicited &= !is_last_data_out;
            }
        }
    }

    /// What the leading login has settled for every connection.
    pub fn session_params(&self) -> &NegotiatedParams {
        &self.connections[ConnectionId::LEADING].params
    }

    /// The connection a task came on, and answers go to.
    pub fn allegiance(&self, task: TaskId) -> Option<ConnectionId> {
        self.tasks.get(task).map(|task| task.connection)
    }

    pub fn cid(&self, on: ConnectionId) -> Cid {
        self.connections[on].cid
    }

    /// The operational parameters; MaxRecvDataSegmentLength may change in full-feature phase.
    pub fn params(&self, on: ConnectionId) -> &NegotiatedParams {
        &self.connections[on].params
    }

    /// When the initiator last sent something.
    pub fn last_activity(&self, on: ConnectionId) -> Instant {
        self.connections[on].last_activity
    }

    /// The first StatSN the initiator has not confirmed.
    pub fn exp_stat_sn(&self, on: ConnectionId) -> StatSn {
        self.connections[on].exp_stat_sn
    }

    /// True once nothing more will be sent: after Logout or Close, when the queue is empty.
    pub fn is_closed(&self, on: ConnectionId) -> bool {
        matches!(self.connections[on].state, State::Closed | State::Vacant)
    }

    /// Something waits to be sent.
    pub fn has_output(&self, on: ConnectionId) -> bool {
        !self.is_closed(on) && !self.connections[on].output.is_empty()
    }

    /// When `handle_timeout` is due.
    pub fn poll_timeout(&self, on: ConnectionId) -> Option<Instant> {
        let connection = &self.connections[on];
        (connection.state == State::Open).then(|| connection.last_tick.after(TICK))
    }

    /// Pings a silent initiator, closes on a dead one and on a write that gets no more data.
    pub fn handle_timeout(&mut self, on: ConnectionId, now: Instant) {
        let connection = &mut self.connections[on];
        if connection.state != State::Open || now.since(connection.last_tick) < TICK {
            return;
        }
        connection.last_tick = now;
        self.give_up_turn(on, Some(now));
        self.give_up_aborted(on, now);
        self.begin_due_management(Some(now));
        self.lift_late_fence(now);
        let fenced = self.fence.is_some();
        let connection = &mut self.connections[on];
        if let Some(keepalive) = connection.keepalive {
            match connection.ping {
                // A fence waits for the answer itself.
                Some((_, sent)) if connection.last_activity >= sent && !fenced => connection.ping = None,
                Some((_, sent)) if now.since(sent) >= keepalive.answer => {
                    self.close(on, CloseReason::PeerSilent);
                    return;
                }
                Some(_) => {}
                None if now.since(connection.last_activity) >= keepalive.idle => self.ping(on, now),
                None => {}
            }
        }
        if self.is_stalled(on, now) {
            self.close(on, CloseReason::DataOutStalled);
        }
    }

    /// In place of [`Self::handle_timeout`] while our side does not read, or the initiator does not take what we send: its
    /// silence says nothing then.
    pub fn postpone_timeouts(&mut self, on: ConnectionId, now: Instant) {
        let connection = &mut self.connections[on];
        connection.last_tick = now;
        connection.last_activity = now;
        self.tasks.touch_of(on, now);
        self.give_up_aborted(on, now);
        self.give_up_turn(on, Some(now));
        self.begin_due_management(Some(now));
        self.lift_late_fence(now);
    }

    /// Aborted writes whose R2T the initiator does not answer: some stop sending as they ask for an abort.
    fn give_up_aborted(&mut self, on: ConnectionId, now: Instant) {
        let is_over = |touched: Instant| now.since(touched) >= ABORTED_DATA_WAIT;
        let over = self.tasks.iter().filter(|(_, task)| {
            task.connection == on && task.phase == Phase::Aborting && is_over(task.touched)
        });
        for id in over.map(|(id, _)| id).collect::<Vec<_>>() {
            self.remove_aborted(id);
        }
    }

    /// A burst is open and does not go on, though we take what comes.
    fn is_stalled(&self, on: ConnectionId, now: Instant) -> bool {
        let late = |since: Instant| now.since(since).as_secs() >= limits::DATA_OUT_STALL_S;
        !matches!(self.sink(on), PayloadSink::Wait { .. } | PayloadSink::Turn)
            && self.tasks.iter().any(|(_, task)| {
                task.connection == on
                    && !matches!(task.phase, Phase::Offered | Phase::Aborting)
                    && !task.data_out.is_quiet()
                    && late(task.touched)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iscsi::doc_table::{assert_doc_table, table};

    #[test]
    fn states_move_as_the_table_in_the_docs_says() {
        use Happening::*;
        let states = [State::Open, State::Leaving, State::Closing, State::Closed, State::Vacant];
        let made = table(
            "state",
            (&states, |state| format!("{state:?}")),
            (&[Joined, Ends, Fails, LastSent, AllSent, Dropped], |happening| format!("{happening:?}")),
            |state, happening| match state.after(happening) {
                next if next == state => String::new(),
                next => format!("{next:?}"),
            },
        );
        assert_doc_table(include_str!("connection.rs"), "state", &made);
    }
}
