//! Stopping: no new connections, what is in flight is finished, every image is closed, then the end.
//!
//! Knows the order of these steps. Does not know what a clean image is (`image` gives the batches).

use crate::cache::CacheCounts;
use crate::clock::Instant;
use crate::io::{Errno, Io, Op};

use super::connection::Phase;
use super::session::Member;
use super::task::{Stage, Task};
use super::token::{Kind, Token};
use super::{ConnKey, Shard};
use crate::plan::LayerId;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    Serving,
    /// Sessions end as their commands do; at the deadline they are cut.
    Draining {
        deadline: Instant,
    },
    /// No connections any more: what is only recorded goes into the images.
    Settling,
    /// Everything that was written becomes stable, raw images included.
    Flushing {
        pending: u32,
    },
    /// Metadata is written and images are closed.
    Closing,
    Stopped,
}

/// Seconds we give an initiator to log out by itself (RFC 7143, 11.9.1).
pub(super) const LOGOUT_SECONDS: u16 = 1;

impl<I: Io> Shard<I> {
    pub(super) fn begin_stop(&mut self) {
        if self.stop != Stop::Serving {
            return;
        }
        self.stop = Stop::Draining { deadline: self.core.now.after(self.config.stop_grace) };
        self.next_tick = self.core.now;
        self.core.stopping = true;
        for index in 0..self.listeners.len() {
            let token = Token::new(Kind::Accept, index as u32, 0).encode();
            self.core.submit(Token::new(Kind::Cancel, 0, 0), Op::Cancel { token });
        }
        for index in 0..self.connections.slot_count() {
            let Some(key) = self.connections.key_at(index) else { continue };
            let Some(connection) = self.connections.get_mut(key) else { continue };
            let Phase::Full(Member { session, on }) = connection.phase else {
                self.close(key, "the server stops");
                continue;
            };
            if let Some(session) = self.sessions.get_mut(session) {
                session.machine.async_logout(on, LOGOUT_SECONDS);
                self.mark_dirty(key);
            }
        }
        self.send_now();
    }

    /// Called at the end of every turn.
    pub(super) fn stop_step(&mut self) {
        match self.stop {
            Stop::Serving | Stop::Stopped => {}
            Stop::Draining { deadline } => {
                let late = self.core.now >= deadline;
                for index in 0..self.connections.slot_count() {
                    let Some(key) = self.connections.key_at(index) else { continue };
                    if late || self.has_fallen_quiet(key) {
                        self.close(key, "the server stops");
                    }
                }
                let ended = self.connections.is_empty() && !self.endings.is_waiting();
                if late {
                    self.core.give_up_errands();
                }
                // Other shards may wait for what this one reads.
                if ended
                    && self.core.tasks.is_empty()
                    && self.core.fills == 0
                    && self.core.unsettled.is_empty()
                {
                    self.settle_images();
                }
            }
            Stop::Settling => {
                if !self.core.layers.iter().any(|layer| layer.is_running()) {
                    self.flush_images();
                }
            }
            Stop::Flushing { pending: 0 } => {
                self.stop = Stop::Closing;
                for index in 0..self.core.layers.len() {
                    let layer = LayerId(index as u32);
                    self.core.images.begin_close(layer);
                    self.core.kick(layer);
                }
            }
            Stop::Flushing { .. } => {}
            Stop::Closing => {
                if !self.core.layers.iter().any(|layer| layer.is_running()) {
                    self.tell_cache_counts();
                    self.stop = Stop::Stopped;
                }
            }
        }
    }

    fn tell_cache_counts(&self) {
        let CacheCounts {
            hits,
            misses,
            joins,
            around,
            filled_bytes,
            ahead_bytes,
            reads,
            failed_reads,
            evictions,
        } = self.core.cache.counts;
        tracing::info!(
            hits,
            misses,
            joins,
            around,
            filled_bytes,
            ahead_bytes,
            reads,
            failed_reads,
            evictions,
            "golden cache: lookups of this core"
        );
    }

    /// A connection that was asked to log out has nothing left to do.
    pub(super) fn has_fallen_quiet(&self, key: ConnKey) -> bool {
        let Some(connection) = self.connections.get(key) else { return false };
        let member = connection.member();
        let session = member.and_then(|member| self.sessions.get(member.session));
        let works = |task: &Task| !matches!(task.stage, Stage::Collect | Stage::Finished);
        let busy = session.is_some_and(|session| {
            session.task_keys().filter_map(|task| self.core.tasks.get(task)).any(|task| works(task))
        });
        let quiet = !busy && connection.tx.is_empty() && !connection.dirty;
        quiet && self.core.now.since(connection.last_progress) >= super::reactor::TICK
    }

    fn settle_images(&mut self) {
        self.stop = Stop::Settling;
        self.core.errands.closed = true;
        for index in 0..self.core.layers.len() {
            let layer = LayerId(index as u32);
            if self.core.images.pending_blocks(layer) > 0 {
                self.core.images.request_commit(layer);
                self.core.kick(layer);
            }
        }
    }

    fn flush_images(&mut self) {
        let files = self.core.luns.iter().filter(|lun| lun.writable).map(|lun| (lun.leaf, lun.leaf_file));
        let files: std::collections::BTreeMap<_, _> = files.collect();
        self.stop = Stop::Flushing { pending: files.len() as u32 };
        for (leaf, file) in files {
            self.core.submit(Token::new(Kind::LastFlush, leaf.0, 0), Op::Sync { file });
        }
    }

    pub(super) fn image_flushed(&mut self, token: Token, result: Result<(), Errno>) {
        if let Err(error) = result {
            // Not closed as a whole image: its metadata stays as it is.
            self.core.fail_layer(LayerId(token.index));
            tracing::error!(%error, "fdatasync failed while stopping: what was written last may be lost");
        }
        if let Stop::Flushing { pending } = &mut self.stop {
            *pending -= 1;
        }
    }

    /// True while a turn should not sleep long: something is being wound up.
    pub(super) fn is_stopping(&self) -> bool {
        !matches!(self.stop, Stop::Serving)
    }
}
