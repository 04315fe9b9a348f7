//! The response fence (RFC 7143, 4.2.2.3): the answer to a function that ends many tasks comes after everything that was
//! said before it, and before everything that is said after it, on all connections of the session.
//!
//! Knows which responses the initiator has confirmed. Does not know why a function was asked for.
//!
//! | stage    | waits for                                            | then                                   |
//! |----------|------------------------------------------------------|----------------------------------------|
//! | Before   | every other connection to confirm what it was sent   | the response is sent, `After`          |
//! | After    | the initiator to confirm the response                | replies that were held back go on      |
//!
//! One connection needs no fence: its StatSNs are in order. A fence is lifted after a while by itself (`FENCE_WAIT`).

use super::connection::{Happening, State};
use super::management::Asked;
use super::output::{Answer, Queued};
use super::{ConnectionId, ManagementFunction, ManagementResponse, Session, SessionEvent, TaskId};
use crate::clock::{Duration, Instant};
use crate::iscsi::command_window::Place;
use crate::iscsi::pdu::{InitiatorTaskTag, TargetTransferTag};
use crate::iscsi::serial::StatSn;

/// An initiator that confirms nothing for so long may wait for us.
const FENCE_WAIT: Duration = Duration::from_secs(8);

/// A fence that is up.
#[derive(Debug)]
pub(super) struct Fence {
    /// The answer, until it is queued.
    answer: Option<(InitiatorTaskTag, ManagementResponse, Place)>,
    /// The session ends with the answer (TARGET COLD RESET).
    closes: bool,
    /// Where the answer goes.
    on: ConnectionId,
    /// Connections whose confirmation is awaited: once all before it is sent, up to this number, and the answer of this
    /// ping, because Data-In without status has no number.
    awaited: Vec<(ConnectionId, Option<(StatSn, TargetTransferTag)>)>,
    /// Tasks whose reply came meanwhile.
    held: Vec<TaskId>,
    since: Option<Instant>,
}

impl Session {
    /// Answers a function, behind a fence where the session has more than one connection.
    pub(super) fn pass_fence(&mut self, asked: Asked, response: ManagementResponse) {
        let Asked { task_tag, connection: on, place, function, .. } = asked;
        let closes_this = function == ManagementFunction::TargetColdReset;
        let others: Vec<_> = self.connections.open().filter(|other| *other != on).collect();
        let single = matches!(function, ManagementFunction::AbortTask(_));
        if single || others.is_empty() {
            self.answer(on, Answer::Management { task_tag, response, closes_this }, Some(place));
            return self.end_with_answer(on, closes_this);
        }
        for other in &others {
            self.connections[*other].output.push_back(Queued::Mark);
        }
        self.fence = Some(Box::new(Fence {
            answer: Some((task_tag, response, place)),
            closes: closes_this,
            on,
            awaited: others.into_iter().map(|other| (other, None)).collect(),
            held: Vec::new(),
            since: None,
        }));
    }

    /// After a TARGET COLD RESET the session ends as soon as the answer is sent.
    fn end_with_answer(&mut self, on: ConnectionId, closes_this: bool) {
        if closes_this && self.connections[on].state == State::Open {
            self.connections[on].go(Happening::Ends);
            self.events.push_back(SessionEvent::Reset { connection: on });
        }
    }

    /// Everything that was queued on this connection before the fence is sent.
    pub(super) fn mark_reached(&mut self, on: ConnectionId, now: Instant) {
        if self.fence.is_none() {
            return;
        }
        // An earlier ping may be answered by what was sent before it.
        self.connections[on].ping = None;
        self.ping(on, now);
        let connection = &self.connections[on];
        let sent = connection.ping.map(|(tag, _)| (connection.next_stat_sn, tag));
        let Some(fence) = &mut self.fence else { return };
        for (of, awaited) in &mut fence.awaited {
            if *of == on {
                *awaited = sent;
            }
        }
        self.check_fence();
    }

    /// Goes on when nothing is awaited any more.
    pub(super) fn check_fence(&mut self) {
        let Some(fence) = &mut self.fence else { return };
        let connections = &self.connections;
        fence.awaited.retain(|(on, awaited)| {
            let connection = &connections[*on];
            connection.state == State::Open
                && awaited.is_none_or(|(stat_sn, ping)| {
                    let unanswered = connection.ping.is_some_and(|(tag, _)| tag == ping);
                    unanswered || connection.exp_stat_sn.before(stat_sn)
                })
        });
        if !fence.awaited.is_empty() {
            return;
        }
        let (on, closes_this) = (fence.on, fence.closes);
        if let Some((task_tag, response, place)) = fence.answer.take() {
            fence.awaited.push((on, None));
            fence.since = None;
            self.answer(on, Answer::Management { task_tag, response, closes_this }, Some(place));
            self.connections[on].output.push_back(Queued::Mark);
            return self.end_with_answer(on, closes_this);
        }
        let held = core::mem::take(&mut fence.held);
        self.fence = None;
        for id in held {
            if let Some(task) = self.tasks.get_mut(id) {
                task.is_queued = false;
            }
            self.enqueue_task(id);
        }
        self.aborted_task_gone();
    }

    /// Holds a reply back while the fence is up. True when it did.
    pub(super) fn hold_behind_fence(&mut self, id: TaskId) -> bool {
        match &mut self.fence {
            Some(fence) => {
                fence.held.push(id);
                true
            }
            None => false,
        }
    }

    pub(super) fn forget_behind_fence(&mut self, id: TaskId) {
        if let Some(fence) = &mut self.fence {
            fence.held.retain(|held| *held != id);
        }
    }

    /// A connection is gone: it confirms nothing, and takes no answer.
    pub(super) fn leave_fence(&mut self, gone: ConnectionId) {
        let Some(fence) = &mut self.fence else { return };
        fence.awaited.retain(|(on, _)| *on != gone);
        if fence.on == gone
            && let Some((_, _, place)) = fence.answer.take()
        {
            self.window.finish(place);
        }
        self.check_fence();
    }

    pub(super) fn lift_late_fence(&mut self, now: Instant) {
        let Some(fence) = &mut self.fence else { return };
        let since = *fence.since.get_or_insert(now);
        if now.since(since) >= FENCE_WAIT {
            fence.awaited.clear();
            self.check_fence();
        }
    }
}
