//! Runs the metadata work of writable layers: batch after batch, waking whoever waited.
//!
//! Knows when a batch is complete. Does not know what is in it (`vhd` decides) nor why the order matters.

use crate::clock::{Duration, Instant};
use crate::io::{Errno, Op, Part};
use crate::limits;
use crate::plan::{BatchEnd, CommitSeq, FileSlot, IoFault, LayerId, MetaBatch, MetaOp};
use crate::units::ByteOffset;

use super::executor::{Core, TaskKey};
use super::flush::Flushes;
use super::records::{Durability, Records};
use super::token::{Kind, Token};
use super::write_path::{io_fault, libc_eopnotsupp};

/// A disk that stays full is told of once in so long.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct LayerWork {
    file: FileSlot,
    batch: MetaBatch,
    /// Operations of the batch with the ring, and those not yet given to it for want of a buffer.
    pending: u32,
    unsent: usize,
    running: bool,
    /// The batch found no space: it is run once more when somebody asks for something.
    stalled: bool,
    /// When a full disk was last reported.
    reported: Option<Instant>,
    fault: Option<IoFault>,
    commit_waiters: Vec<(CommitSeq, TaskKey)>,
    space_waiters: Vec<TaskKey>,
    pub(super) flushes: Flushes,
    pub(super) records: Records,
}

impl LayerWork {
    pub(super) fn new(file: FileSlot) -> Self {
        Self {
            file,
            batch: MetaBatch::default(),
            pending: 0,
            unsent: 0,
            running: false,
            stalled: false,
            reported: None,
            fault: None,
            commit_waiters: Vec::new(),
            space_waiters: Vec::new(),
            flushes: Flushes::default(),
            records: Records::default(),
        }
    }

    /// Tells people of a fault; of a full disk not with each write that finds it.
    fn report(&mut self, layer: LayerId, fault: IoFault, now: Instant) {
        if fault == IoFault::Failed {
            tracing::error!(layer = layer.0, "writing image metadata failed; the image takes no more writes");
        } else if self.reported.is_none_or(|then| now.since(then) >= REPORT_INTERVAL) {
            self.reported = Some(now);
            tracing::error!(layer = layer.0, "no space for image metadata; writes go on once there is some");
        }
    }

    /// A full disk is a milder fault than a failed one, and never hides it.
    fn note(&mut self, fault: IoFault) {
        if self.fault != Some(IoFault::Failed) {
            self.fault = Some(fault);
        }
    }

    pub(super) fn file(&self) -> FileSlot {
        self.file
    }

    pub(super) fn is_running(&self) -> bool {
        self.running
    }
}

impl Core {
    /// Starts the metadata work of a layer unless it runs already.
    pub(super) fn kick(&mut self, layer: LayerId) {
        let work = &mut self.layers[layer.0 as usize];
        if work.running {
            return;
        }
        if core::mem::take(&mut work.stalled) && !self.images.is_failed(layer) {
            self.run_batch(layer);
        } else {
            self.next_batch(layer);
        }
    }

    /// The task's data is written; it goes on when the commit `seq` has ended, or never will.
    pub(super) fn await_batch(&mut self, layer: LayerId, seq: CommitSeq, task: TaskKey) {
        self.layers[layer.0 as usize].commit_waiters.push((seq, task));
        self.kick(layer);
        // Not even begun: the layer has failed, and nobody else would say so.
        let work = &mut self.layers[layer.0 as usize];
        if !work.running {
            self.ready.extend(work.commit_waiters.drain(..).map(|(_, task)| task));
        }
    }

    /// The task wants blocks that must be prepared first.
    pub(super) fn await_space(&mut self, layer: LayerId, task: TaskKey) {
        self.layers[layer.0 as usize].space_waiters.push(task);
        self.kick(layer);
        // Nothing to prepare and nothing running: the layer has failed, and resolving again says so.
        let work = &mut self.layers[layer.0 as usize];
        if !work.running {
            self.ready.extend(work.space_waiters.drain(..));
        }
    }

    fn next_batch(&mut self, layer: LayerId) {
        let work = &mut self.layers[layer.0 as usize];
        work.batch.clear();
        work.running = self.images.next_meta_batch(layer, &mut work.batch);
        self.follow_commits(layer);
        if self.layers[layer.0 as usize].running {
            self.run_batch(layer);
        }
    }

    /// Gives all of the batch to the ring.
    fn run_batch(&mut self, layer: LayerId) {
        let work = &mut self.layers[layer.0 as usize];
        work.running = true;
        work.fault = None;
        work.unsent = work.batch.ops.len();
        work.pending = 0;
        if work.unsent == 0 {
            self.batch_done(layer);
            return;
        }
        self.send_batch(layer);
    }

    /// Gives the ring what it has not yet got; an operation without a buffer waits for the next turn.
    fn send_batch(&mut self, layer: LayerId) {
        loop {
            let work = &mut self.layers[layer.0 as usize];
            let Some(index) = work.unsent.checked_sub(1) else { return };
            let file = work.file;
            let op = match &work.batch.ops[index] {
                MetaOp::Sync if matches!(work.records.durability, Durability::UntilReset(_)) => {
                    // Nobody reads the file after a crash. A flush is a batch of its own.
                    work.unsent = index;
                    work.pending += 1;
                    self.meta_op_ended(layer);
                    return;
                }
                MetaOp::Sync => {
                    work.unsent = index;
                    work.pending += 1;
                    self.flush(layer, Token::new(Kind::Meta, layer.0, index as u16));
                    continue;
                }
                MetaOp::Zero { offset, len } => Op::PunchHole { file, offset: *offset, len: *len },
                MetaOp::SetLen { len } => Op::SetLen { file, len: *len },
                MetaOp::Write { offset, bytes } => {
                    let bytes = &work.batch.bytes[bytes.clone()];
                    let small = bytes.len() <= limits::SMALL_BYTES;
                    let buf = if small { self.pool.take_small() } else { None };
                    let Some(mut buf) = buf.or_else(|| self.pool.take_chunk()) else {
                        self.short_layers.push(layer);
                        return;
                    };
                    buf.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
                    let part = Part { buf: buf.share(), start: 0, len: bytes.len() as u32 };
                    Op::Write { file, offset: *offset, part }
                }
            };
            work.unsent = index;
            work.pending += 1;
            self.submit(Token::new(Kind::Meta, layer.0, index as u16), op);
        }
    }

    /// Called once a turn: batches that lacked a buffer.
    pub(super) fn retry_batches(&mut self) {
        for layer in core::mem::take(&mut self.short_layers) {
            self.send_batch(layer);
        }
    }

    /// A metadata write came back.
    pub(super) fn meta_written(&mut self, token: Token, result: Result<u32, Errno>, mut part: Part) {
        let layer = LayerId(token.index);
        let work = &mut self.layers[layer.0 as usize];
        match result {
            Ok(moved) if moved == part.len => {}
            Ok(moved @ 1..) => {
                // Short: the rest goes out again. `start` tells how much is done already.
                if let Some(MetaOp::Write { offset, .. }) = work.batch.ops.get(token.part as usize) {
                    part.start += moved;
                    part.len -= moved;
                    let offset = ByteOffset(offset.0 + u64::from(part.start));
                    let file = work.file;
                    self.submit(token, Op::Write { file, offset, part });
                    return;
                }
                work.note(IoFault::Failed);
            }
            Ok(_) => work.note(IoFault::Failed),
            Err(error) => work.note(io_fault(error)),
        }
        self.meta_op_ended(layer);
    }

    /// A flush, a punched hole or a new length came back.
    pub(super) fn meta_done(&mut self, token: Token, result: Result<(), Errno>) {
        let layer = LayerId(token.index);
        let work = &mut self.layers[layer.0 as usize];
        if let Err(error) = result {
            let op = work.batch.ops.get(token.part as usize).cloned();
            match op {
                Some(MetaOp::Zero { offset, len }) if error.0 == libc_eopnotsupp() => {
                    self.zero_by_writing(token, offset, len);
                    return;
                }
                _ => work.note(io_fault(error)),
            }
        }
        self.meta_op_ended(layer);
    }

    /// The file system punches no holes: writes zeros instead, as many operations as it takes.
    fn zero_by_writing(&mut self, token: Token, mut offset: ByteOffset, mut len: u64) {
        let work = &mut self.layers[token.index as usize];
        let file = work.file;
        let zeros = self.pool.zero_chunk();
        let first = work.batch.ops.len();
        work.batch.ops.extend(core::iter::from_fn(|| {
            let take = len.min(limits::CHUNK_BYTES as u64);
            let op = (take > 0).then_some(MetaOp::Write { offset, bytes: 0..take as usize });
            offset.0 += take;
            len -= take;
            op
        }));
        let ops: Vec<_> = work.batch.ops[first..]
            .iter()
            .enumerate()
            .filter_map(|(n, op)| match op {
                MetaOp::Write { offset, bytes } => Some(((first + n) as u16, *offset, bytes.len() as u32)),
                _ => None,
            })
            .collect();
        work.pending += ops.len() as u32;
        for (part, offset, len) in ops {
            let op = Op::Write { file, offset, part: Part { buf: zeros.clone(), start: 0, len } };
            self.submit(Token { part, ..token }, op);
        }
        self.meta_op_ended(LayerId(token.index));
    }

    fn meta_op_ended(&mut self, layer: LayerId) {
        let work = &mut self.layers[layer.0 as usize];
        work.pending -= 1;
        if work.pending == 0 && work.unsent == 0 {
            self.batch_done(layer);
        }
    }

    fn batch_done(&mut self, layer: LayerId) {
        let work = &mut self.layers[layer.0 as usize];
        let result = match work.fault.take() {
            None => Ok(()),
            Some(fault) => {
                work.report(layer, fault, self.now);
                Err(fault)
            }
        };
        let again = self.images.meta_batch_done(layer, result) == BatchEnd::Again;
        self.layers[layer.0 as usize].stalled = again;
        self.follow_commits(layer);
        let committed = self.images.committed(layer);
        let failed = self.images.is_failed(layer);
        let ready = &mut self.ready;
        let work = &mut self.layers[layer.0 as usize];
        work.commit_waiters.retain(|(seq, task)| {
            let wake = failed || again || *seq <= committed;
            if wake {
                ready.push_back(*task);
            }
            !wake
        });
        ready.extend(work.space_waiters.drain(..));
        if again {
            work.running = false;
        } else {
            self.next_batch(layer);
        }
    }
}
