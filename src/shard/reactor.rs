//! The loop of a shard: wait for completions, apply them, run what can run, send what is ready.
//!
//! Knows which completion belongs to whom. Does not know what the owners do with it.

use crate::clock::{Duration, Instant};
use crate::io::{Completion, Errno, Io, Op, Outcome, RxBuf, SocketSlot};
use crate::iscsi::session::TaskReply;
use crate::limits;

use super::connection::{Connection, Phase};
use super::end::Listening;
use super::logins::new_login;
use super::session::Member;
use super::stop::Stop;
use super::token::{Kind, Token};
use super::{ConnKey, Shard};

pub(super) const TICK: Duration = Duration::from_secs(1);
/// Error numbers of Linux; only `uring` may name `libc`.
const ECONNABORTED: i32 = 103;
const ENOBUFS: i32 = 105;
const ECANCELED: i32 = 125;

impl<I: Io> Shard<I> {
    /// Serves until it is told to stop and everything is flushed.
    pub fn run(&mut self) {
        self.start();
        while !self.is_stopped() {
            self.turn();
        }
    }

    /// Begins to accept. `run` does this; a simulator calls it before its first `turn`.
    pub fn start(&mut self) {
        self.core.now = self.io.now();
        for index in 0..self.listeners.len() {
            self.accept(index as u32);
        }
        self.await_wake();
        for target in 0..self.core.targets.len() as u32 {
            for unit in self.core.targets[target as usize].device.units() {
                self.core.resume_atomic(target, unit);
                self.core.resume_sanitize(target, unit);
            }
        }
        self.work();
    }

    /// One turn: at most one wait, and everything that follows from it.
    pub fn turn(&mut self) {
        let deadline = self.next_turn_due();
        let mut completions = core::mem::take(&mut self.completions);
        self.io.wait(deadline, &mut completions);
        self.core.now = self.io.now();
        let mut behind = self.turn.begin();
        for completion in completions.drain(..) {
            self.complete(completion);
        }
        self.completions = completions;
        // After those of whom something new came: they had their share in the turn before.
        for key in behind.drain(..) {
            self.process(key);
            self.stage_replies(key);
        }
        self.turn.keep(behind);
        self.work();
    }

    pub fn io(&mut self) -> &mut I {
        &mut self.io
    }

    pub fn is_stopped(&self) -> bool {
        self.stop == Stop::Stopped
    }

    /// When the next `turn` has work to do even if nothing completes; `None`: never. `turn` waits no longer than this,
    /// and whoever drives turns without waiting (a simulator) keeps to it.
    pub fn next_turn_due(&self) -> Option<Instant> {
        if self.turn.is_behind() {
            return Some(self.core.now);
        }
        let waits = self.rearm.len() + self.starved.len() + self.outbox.len();
        if waits > 0 || self.core.is_waiting() {
            return Some(self.core.now.after(Duration::from_millis(1)));
        }
        if self.is_stopping() || self.endings.is_waiting() || !self.resets.is_empty() {
            return Some(self.core.now.after(Duration::from_millis(20)));
        }
        let idle = self.connections.is_empty() && self.accept_again.is_empty() && !self.core.has_records();
        let tick = (!idle).then_some(self.next_tick);
        let paced = self.core.paced.iter().map(|(due, _)| *due).min();
        tick.into_iter().chain(paced).chain(self.core.rate_due).min()
    }

    fn await_wake(&mut self) {
        self.core.submit(Token::new(Kind::Wake, 0, 0), Op::AwaitWake);
    }

    pub(super) fn accept(&mut self, index: u32) {
        if let Some(Listening::Open(listener)) = self.listeners.get(index as usize) {
            self.core.submit(Token::new(Kind::Accept, index, 0), Op::Accept { listener: *listener });
        }
    }

    fn complete(&mut self, completion: Completion) {
        let Some(token) = Token::decode(completion.token) else { return };
        self.core.metrics.completed(&completion.outcome);
        match (token.kind, completion.outcome) {
            (Kind::Accept, Outcome::Accepted { socket, peer, more }) => {
                self.accepted(socket, peer);
                if !more {
                    self.accept_again_or_close(token.index);
                }
            }
            (Kind::Accept, Outcome::AcceptEnded { error }) => self.accept_ended(token.index, error),
            (Kind::Recv, Outcome::Received { buf, more }) => self.received(token, buf, more),
            (Kind::Recv, Outcome::RecvEnded { error }) => self.recv_ended(token, error),
            (Kind::Send, Outcome::Sent { result, mut parts }) => {
                self.sent(token, result, &mut parts);
                parts.clear();
                if self.spare_parts.len() < 256 {
                    self.spare_parts.push(parts);
                }
            }
            (Kind::Socket, Outcome::Done { .. }) => self.socket_closed(token),
            (Kind::Task | Kind::Fill | Kind::Bitmap | Kind::Meta | Kind::Flush, outcome) => {
                self.core.file_op_done(token, outcome);
            }
            (Kind::LastFlush, Outcome::Done { result }) => self.image_flushed(token, result),
            (Kind::Wake, _) => self.await_wake(),
            // Cancellations and shutdowns: what they were for completes by itself.
            _ => {}
        }
    }

    fn accepted(&mut self, socket: SocketSlot, peer: std::net::SocketAddr) {
        self.core.metrics.counts.connections_accepted += 1;
        let login = new_login(&self.config, &mut self.login_count);
        let now = self.core.now;
        let nobody = ConnKey::from_parts(u32::MAX, 0);
        match self.connections.insert(Connection::new(nobody, socket, peer, login, now)) {
            Ok(key) => {
                if let Some(connection) = self.connections.get_mut(key) {
                    connection.key = key;
                    connection.arm_recv(&mut self.core);
                }
                tracing::debug!(%peer, "connection accepted");
            }
            Err(_) => {
                tracing::warn!(%peer, limit = limits::CONNECTIONS_MAX, "connection refused: too many connections");
                self.core.submit(Token::new(Kind::Cancel, 0, 0), Op::Close { socket });
            }
        }
        self.next_tick = self.next_tick.min(now.after(TICK));
    }

    fn accept_ended(&mut self, index: u32, error: Errno) {
        if self.stop != Stop::Serving || self.closes_listener(index) {
            return;
        }
        if matches!(error.0, ECANCELED | ECONNABORTED) {
            self.accept(index);
            return;
        }
        // Files or memory are short: at once it would only fail again.
        tracing::warn!(%error, "accepting a connection failed");
        self.accept_again.push(index);
        self.next_tick = self.core.now.after(TICK);
    }

    fn received(&mut self, token: Token, buf: RxBuf, more: bool) {
        self.core.metrics.counts.received_bytes += self.io.rx_bytes(&buf).len() as u64;
        let Some(key) = token.key(&self.connections) else {
            self.io.rx_release(buf);
            return;
        };
        let Some(connection) = self.connections.get_mut(key) else { return };
        if !more {
            connection.recv_armed = false;
        }
        if matches!(connection.phase, Phase::Closing | Phase::Closed) {
            self.io.rx_release(buf);
            self.finish_close(key);
            return;
        }
        connection.unread.push_back(buf);
        if matches!(connection.phase, Phase::HandingOff { .. }) {
            // Goes along. The cancellation may have found the receive ended by this very piece.
            self.hand_off(key);
            return;
        }
        connection.arm_recv(&mut self.core);
        if connection.recv_armed && connection.unread.len() == limits::CONNECTION_UNREAD_BUFFERS_MAX {
            // The connection cannot keep up: the rest stays in the socket until `after_processing`.
            let token = Token::of(Kind::Recv, key, 0).encode();
            self.core.submit(Token::new(Kind::Cancel, 0, 0), Op::Cancel { token });
        }
        self.process(key);
        self.stage_replies(key);
    }

    /// Stages what a connection's commands have been answered with already, such as reads that the golden cache had:
    /// the tasks it frees are the next connection's, and still in the processor's cache.
    fn stage_replies(&mut self, key: ConnKey) {
        if !self.deliver() {
            return;
        }
        if let Some(connection) = self.connections.get_mut(key)
            && connection.dirty
            && connection.pump(&mut self.core, &mut self.sessions)
        {
            self.starved.push(key);
        }
        // It stays in `dirty`: everything of this turn leaves in one send.
        if let Some(connection) = self.connections.get_mut(key) {
            connection.dirty = true;
        }
    }

    fn recv_ended(&mut self, token: Token, error: Option<Errno>) {
        let Some(key) = token.key(&self.connections) else { return };
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.recv_armed = false;
        match connection.phase {
            Phase::Closing | Phase::Closed => {
                self.finish_close(key);
                return;
            }
            // An end of the stream is found again by the shard it moves to.
            Phase::HandingOff { .. } if error.is_none_or(|error| matches!(error.0, ECANCELED | ENOBUFS)) => {
                self.hand_off(key);
                return;
            }
            _ => {}
        }
        match error {
            Some(Errno(ENOBUFS)) => self.short_of_rx.push(key),
            Some(Errno(ECANCELED)) => connection.arm_recv(&mut self.core),
            None => {
                connection.stream_ended = true;
                if connection.unread.is_empty() && connection.carried.is_empty() {
                    self.close(key, "the initiator closed the connection");
                }
            }
            Some(error) => {
                connection.stream_ended = true;
                tracing::debug!(peer = %connection.peer, %error, "receive failed");
                self.close(key, "the connection was lost");
            }
        }
    }

    fn sent(&mut self, token: Token, result: Result<u32, Errno>, parts: &mut Vec<crate::io::Part>) {
        let Some(key) = token.key(&self.connections) else { return };
        let now = self.core.now;
        let Some(connection) = self.connections.get_mut(key) else { return };
        match result {
            Ok(sent) => {
                connection.tx.sent(sent as usize, parts);
                connection.timing.sent(now, sent, &mut self.core.metrics);
                connection.last_progress = now;
                connection.last_sent = now;
            }
            Err(_) => connection.tx.sent(0, parts),
        }
        if matches!(connection.phase, Phase::Closing | Phase::Closed) {
            connection.tx.clear();
            self.finish_close(key);
            return;
        }
        if let Err(error) = result {
            tracing::debug!(peer = %connection.peer, %error, "send failed");
            self.close(key, "the connection was lost");
            return;
        }
        if matches!(connection.phase, Phase::HandingOff { .. }) {
            self.hand_off(key);
            return;
        }
        // Buffers came back, and the queue has room again.
        self.core.freed = true;
        self.mark_dirty(key);
    }

    /// Feeds everything received until the connection is blocked or empty, or has had its share of this turn.
    pub(super) fn process(&mut self, key: ConnKey) {
        loop {
            let Some(connection) = self.connections.get_mut(key) else { return };
            if connection.is_blocked() {
                break;
            }
            let (core, turn) = (&mut self.core, &mut self.turn);
            if !connection.may_go_on(turn) {
                turn.postpone(key, &mut connection.share);
                break;
            }
            let mut wants = core::mem::take(&mut self.wants);
            if !connection.carried.is_empty() {
                let mut carried = core::mem::take(&mut connection.carried);
                let used = connection.feed(core, &mut self.sessions, turn, &carried, &mut wants);
                carried.drain(..used);
                connection.carried = carried;
            } else if let Some(buf) = connection.unread.pop_front() {
                let bytes = &self.io.rx_bytes(&buf)[connection.unread_done as usize..];
                let len = bytes.len();
                let used = connection.feed(core, &mut self.sessions, turn, bytes, &mut wants);
                if used == len {
                    connection.unread_done = 0;
                    self.io.rx_release(buf);
                    self.rx_freed = true;
                } else {
                    connection.unread_done += used as u32;
                    connection.unread.push_front(buf);
                }
            } else {
                // A PDU whose command had to wait may have ended with the last byte there was: its end is still due.
                connection.feed(core, &mut self.sessions, turn, &[], &mut wants);
                if wants.is_empty() {
                    self.wants = wants;
                    break;
                }
            }
            for want in wants.drain(..) {
                self.want(key, want);
            }
            self.wants = wants;
        }
        self.after_processing(key);
    }

    fn after_processing(&mut self, key: ConnKey) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let empty = connection.unread.is_empty() && connection.carried.is_empty();
        let member = connection.member();
        if connection.stream_ended && empty && !matches!(connection.phase, Phase::Closing | Phase::Closed) {
            self.close(key, "the initiator closed the connection");
            return;
        }
        connection.arm_recv(&mut self.core);
        self.mark_dirty(key);
        let Some(member) = member else { return };
        let Some(session) = self.sessions.get(member.session) else { return };
        if session.has_stalled() && !self.stalled.contains(&member.session) {
            self.stalled.push(member.session);
        }
        if session.connections().nth(1).is_some() {
            // What came here may have been the turn of what came elsewhere.
            self.mark_session_dirty(member.session);
        }
    }

    /// Receives that lacked a buffer begin again: at once when some came free, else after the next wait.
    fn rearm(&mut self) {
        let mut due = core::mem::take(&mut self.rearm);
        if !self.short_of_rx.is_empty() {
            self.spill_blocked();
            if self.rx_freed {
                due.append(&mut self.short_of_rx);
            } else {
                core::mem::swap(&mut self.rearm, &mut self.short_of_rx);
            }
        }
        self.rx_freed = false;
        for key in due {
            if let Some(connection) = self.connections.get_mut(key) {
                connection.arm_recv(&mut self.core);
            }
        }
    }

    /// Blocked connections give their receive buffers back: those that wait for data need them to end.
    fn spill_blocked(&mut self) {
        for index in 0..self.connections.slot_count() {
            let Some(key) = self.connections.key_at(index) else { continue };
            let Some(connection) = self.connections.get_mut(key) else { continue };
            if !connection.is_blocked() || matches!(connection.phase, Phase::HandingOff { .. }) {
                continue;
            }
            while let Some(buf) = connection.unread.pop_front() {
                let done = core::mem::take(&mut connection.unread_done) as usize;
                connection.carried.extend_from_slice(&self.io.rx_bytes(&buf)[done..]);
                self.io.rx_release(buf);
                self.rx_freed = true;
            }
        }
    }

    pub(super) fn mark_dirty(&mut self, key: ConnKey) {
        if let Some(connection) = self.connections.get_mut(key)
            && !connection.dirty
        {
            connection.dirty = true;
            self.dirty.push(key);
        }
    }

    /// Everything that can be done without waiting.
    fn work(&mut self) {
        self.mail();
        self.reset_step();
        for key in core::mem::take(&mut self.starved) {
            self.mark_dirty(key);
        }
        self.core.wake_paced();
        if self.core.rate_due.is_some_and(|due| due <= self.core.now) {
            self.core.rate_due = None;
            self.core.freed = true;
        }
        loop {
            self.core.run_ready();
            self.end_preempted();
            self.hand_to_keeper();
            self.pass_golden_news();
            self.pass_errands();
            let progressed =
                self.deliver() | self.resume_drained() | self.resume_turns() | self.retry_stalled();
            if !progressed && self.core.ready.is_empty() {
                break;
            }
        }
        self.send_now();
        self.core.commit_when_crowded();
        self.core.retry_batches();
        self.core.read_claims();
        self.rearm();
        if self.core.now >= self.next_tick {
            self.tick();
            self.next_tick = self.core.now.after(TICK);
        }
        self.end_step();
        self.stop_step();
        self.pass_errands();
        for (token, op) in self.core.ops.drain(..) {
            self.io.submit(token, op);
        }
        self.release_ended();
    }

    /// Gives finished tasks back to their sessions.
    fn deliver(&mut self) -> bool {
        let progressed = !self.core.finished.is_empty();
        let mut finished = core::mem::take(&mut self.core.finished);
        for done in finished.drain(..) {
            let Some(task) = self.core.tasks.get(done.task) else { continue };
            let sense = task.sense.map(|sense| sense.encode());
            let sense = sense.as_ref().map_or(&[][..], |sense| sense.as_slice());
            let reply = TaskReply { status: task.status.code(), sense, data_in: task.in_total };
            let member = self.connections.get(done.conn).and_then(Connection::member);
            match member.and_then(|member| self.sessions.get_mut(member.session)) {
                Some(session) if session.task_key(done.id) == Some(done.task) => {
                    session.machine.complete(done.id, reply);
                }
                _ => {
                    self.core.abort(done.task);
                    continue;
                }
            }
            self.mark_dirty(done.conn);
        }
        self.core.finished = finished;
        progressed
    }

    /// Offers commands that found no room again, in order, once something came free.
    fn retry_stalled(&mut self) -> bool {
        let has_room = self.core.refused && self.core.has_room();
        if !core::mem::take(&mut self.core.freed) && !has_room {
            return false;
        }
        self.core.refused = false;
        if self.stalled.is_empty() {
            return false;
        }
        let mut progressed = false;
        for key in core::mem::take(&mut self.stalled) {
            let Some(session) = self.sessions.get_mut(key) else { continue };
            progressed |= session.retry(&mut self.core);
            // What began may have had all its data already.
            self.after_session(key);
            let Some(session) = self.sessions.get(key) else { continue };
            for conn in session.connections_now() {
                let Some(connection) = self.connections.get_mut(conn) else { continue };
                progressed |= connection.renew_sink(&self.core, &mut self.sessions);
                self.process(conn);
            }
        }
        progressed
    }

    /// Pumps and sends for every connection that changed in this turn.
    pub(super) fn send_now(&mut self) {
        // A connection that ends on the way gives others something to say.
        while !self.dirty.is_empty() {
            let mut dirty = core::mem::take(&mut self.dirty);
            for key in dirty.drain(..) {
                let Some(connection) = self.connections.get_mut(key) else { continue };
                if connection.pump(&mut self.core, &mut self.sessions) {
                    self.starved.push(key);
                }
                self.send_one(key);
            }
            if self.dirty.is_empty() {
                self.dirty = dirty;
                return;
            }
        }
    }

    pub(super) fn send_one(&mut self, key: ConnKey) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if connection.tx.in_flight() {
            return;
        }
        let mut parts = self.spare_parts.pop().unwrap_or_default();
        if connection.tx.next_send(self.config.send_batch_bytes, &mut parts) {
            let op = Op::Send { socket: connection.socket, parts };
            connection.last_sent = self.core.now;
            self.core.submit(Token::of(Kind::Send, key, 0), op);
            return;
        }
        self.spare_parts.push(parts);
        let waits =
            connection.member().and_then(|member| self.sessions.get(member.session).map(|it| (it, member)));
        let waits = waits.is_some_and(|(session, member)| session.machine.has_output(member.on));
        let waits = waits || !connection.login_out.is_empty();
        if matches!(connection.phase, Phase::Draining(_)) && connection.tx.is_empty() && !waits {
            self.close(key, "logged out or refused");
        }
    }

    /// Once a second: who takes too long?
    fn tick(&mut self) {
        let now = self.core.now;
        for index in core::mem::take(&mut self.accept_again) {
            if self.stop == Stop::Serving {
                self.accept(index);
            }
        }
        for index in 0..self.connections.slot_count() {
            let Some(key) = self.connections.key_at(index) else { continue };
            let Some(connection) = self.connections.get_mut(key) else { continue };
            let (stuck, blocked) = (now.since(connection.last_sent), connection.is_blocked());
            if connection.tx.in_flight() && stuck > self.config.send_timeout {
                self.close(key, "the initiator takes no data");
                continue;
            }
            match &mut connection.phase {
                Phase::Login(_) | Phase::HandingOff { .. } => {
                    if now.since(connection.since) > self.config.login_timeout {
                        self.close(key, "login took too long");
                    }
                }
                Phase::Full(Member { session: key, on }) => {
                    let (key, on) = (*key, *on);
                    // What it does not answer (an R2T, a ping) may lie behind what it has not taken yet.
                    let untaken = !connection.tx.is_empty() && now.since(connection.all_sent) >= TICK;
                    let Some(session) = self.sessions.get_mut(key) else { continue };
                    if blocked || untaken {
                        session.machine.postpone_timeouts(on, now);
                        self.after_session(key);
                    } else if session.machine.poll_timeout(on).is_some_and(|due| due <= now) {
                        session.machine.handle_timeout(on, now);
                        self.after_session(key);
                    }
                }
                Phase::Draining(_) | Phase::Closing | Phase::Closed => {}
            }
        }
        self.core.commit_old_records();
        // Pings go out now, not with whatever happens next.
        self.send_now();
    }
}
