//! The read half of the executor: ranges become cached chunks, file reads and zeros, in order.
//!
//! Knows segments, the cache and short reads. Does not know what the data is read for.
//!
//! A read of few extents is sent from where its bytes lie. A fragmented one is copied together portion by
//! portion ("assembly"), so that neither buffers nor iovecs grow with the number of fragments.

use crate::buf::Buf;
use crate::cache::{CHUNK_BYTES, Lookup, Waiter};
use crate::io::{Errno, Op};
use crate::limits;
use crate::plan::{FileSlot, ReadExtent, ReadPlan, ReadStep, Source};
use crate::scsi::UnitFault;
use crate::units::ByteOffset;

use super::executor::{Core, TaskKey};
use super::lun_state::BootWatch;
use super::task::{Stage, Task, Transfer, Work};
use super::token::{Kind, Token};

impl Core {
    /// Resolves the next portion and starts its reads. True when the task can go on at once.
    pub(super) fn read_portion(&mut self, key: TaskKey) -> bool {
        let Some(task) = self.tasks.get_mut(key) else { return false };
        let mut plan = core::mem::take(&mut self.read_plan);
        plan.clear();
        let chain = &self.luns[task.lun as usize].chain;
        let step = self.images.resolve_read(chain, task.left, &mut plan);
        let (mut begun, mut waited) = (None, false);
        let more = match step {
            ReadStep::NeedBitmap(read) => {
                self.load_bitmap(read, key);
                false
            }
            ReadStep::Ready { covered } => {
                let fragmented = task.assembly.is_some()
                    || plan.extents.len() > limits::IN_PLACE_EXTENTS_MAX
                    || covered < task.left.count();
                let covered = if fragmented { cut(&mut plan) } else { covered };
                let copied = if fragmented { chunks_to_copy(task, &plan) } else { 0 };
                let (chunks, smalls) = needs(&plan);
                if !self.affords(key, chunks + copied, smalls) {
                    self.park(key);
                    false
                } else if let Some(task) = self.tasks.get_mut(key) {
                    task.portion = task.left.take(covered);
                    task.left = task.left.skip(covered);
                    task.portion_first_segment = task.segments.len();
                    task.transfers.clear();
                    task.stage = Stage::Transfer;
                    for _ in 0..copied {
                        task.spare.extend(self.pool.take_chunk());
                    }
                    if fragmented && task.assembly.is_none() {
                        task.assembly = task.spare.pop().map(|buf| (buf, 0));
                    }
                    self.luns[task.lun as usize].boot.began(task.range);
                    begun = matches!(task.work, Work::Read).then_some((task.lun, task.portion));
                    let before = self.cache.counts.waits();
                    for extent in &plan.extents {
                        self.read_extent(key, *extent);
                    }
                    waited = self.cache.counts.waits() > before;
                    true
                } else {
                    false
                }
            }
        };
        self.read_plan = plan;
        if let Some((lun, range)) = begun {
            self.read_ahead(lun, range, waited);
        }
        more
    }

    fn read_extent(&mut self, key: TaskKey, extent: ReadExtent) {
        let mut left = extent.len;
        match extent.source {
            Source::Zero => {
                let Some(task) = self.tasks.get_mut(key) else { return };
                while left > 0 {
                    let len = left.min(CHUNK_BYTES as u32);
                    task.push_segment(0, len, Some(self.pool.zero_chunk()));
                    left -= len;
                }
            }
            Source::File { file, mut offset, immutable } => {
                if immutable {
                    let Some(task) = self.tasks.get(key) else { return };
                    self.watch_boot(task.lun, file, offset, left);
                }
                while left > 0 {
                    let start = (offset.0 % CHUNK_BYTES as u64) as u32;
                    let len = if immutable {
                        let len = left.min(CHUNK_BYTES as u32 - start);
                        self.read_cached(key, file, offset, len);
                        len
                    } else {
                        let len = left.min(CHUNK_BYTES as u32);
                        if let Some(task) = self.tasks.get_mut(key) {
                            task.work.note_cached(false);
                        }
                        self.read_file(key, file, offset, len);
                        len
                    };
                    left -= len;
                    offset.0 += u64::from(len);
                }
            }
        }
    }

    /// A unit that is not recorded pays a comparison or two.
    pub(super) fn watch_boot(&mut self, lun: u32, file: FileSlot, offset: ByteOffset, len: u32) {
        let boot = &mut self.luns[lun as usize].boot;
        *boot = match *boot {
            BootWatch::Idle => return,
            BootWatch::Began => match self.cache.begin_boot(file, offset, len) {
                Some(boot) => BootWatch::Recorded(boot),
                None => BootWatch::Idle,
            },
            BootWatch::Recorded(recorded) if self.cache.note_boot(recorded, file, offset, len) => return,
            BootWatch::Recorded(_) => BootWatch::Idle,
        };
    }

    fn read_cached(&mut self, key: TaskKey, file: FileSlot, offset: ByteOffset, len: u32) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let waiter =
            Waiter { task: Token::of(Kind::Task, key, 0).encode().0, segment: task.segments.len() as u32 };
        let found = self.cache.lookup(file, offset, len, waiter);
        task.work.note_cached(!matches!(found, Lookup::NoFrame));
        match found {
            Lookup::Hit(buf) => {
                task.push_segment(0, len, Some(buf));
            }
            Lookup::Waits => {
                task.push_segment(0, len, None);
                task.pending += 1;
            }
            Lookup::NoFrame => self.read_file(key, file, offset, len),
        }
    }

    fn read_file(&mut self, key: TaskKey, file: FileSlot, offset: ByteOffset, len: u32) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let small = len as usize <= limits::SMALL_BYTES;
        let buf = if small { self.pool.take_small() } else { None };
        let part = task.push_segment(0, len, None);
        // `needs` has counted, so the pool holds one of them. If not, the segment stays empty, and the read fails.
        let Some(buf) = buf.or_else(|| self.pool.take_chunk()) else { return };
        task.transfers.resize(
            part as usize + 1 - task.portion_first_segment,
            Transfer { file, offset: ByteOffset(0), len: 0, done: 0 },
        );
        if let Some(transfer) = task.transfers.last_mut() {
            *transfer = Transfer { file, offset, len: u64::from(len), done: 0 };
        }
        task.pending += 1;
        self.submit(Token::of(Kind::Task, key, part), Op::Read { file, offset, buf, start: 0, len });
    }

    /// A read of a task's own came back.
    pub(super) fn read_done(&mut self, key: TaskKey, part: u16, result: Result<u32, Errno>, buf: Buf) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let index = (part as usize).wrapping_sub(task.portion_first_segment);
        let Some(transfer) = task.transfers.get_mut(index) else { return };
        if let Ok(moved @ 1..) = result {
            transfer.done += moved;
            let left = (transfer.len as u32).saturating_sub(transfer.done);
            if left > 0 && !task.aborted {
                let op = Op::Read {
                    file: transfer.file,
                    offset: ByteOffset(transfer.offset.0 + u64::from(transfer.done)),
                    buf,
                    start: transfer.done,
                    len: left,
                };
                self.submit(Token::of(Kind::Task, key, part), op);
                return;
            }
            if let Some(segment) = task.segments.get_mut(part as usize) {
                segment.buf = Some(buf.share());
            }
        }
        // An error, or the end of the file where the image says that there is data: the segment stays empty.
        task.pending -= 1;
        if task.pending == 0 {
            self.ready.push_back(key);
        }
    }

    pub(super) fn read_portion_done(&mut self, key: TaskKey) -> bool {
        let Some(task) = self.tasks.get_mut(key) else { return false };
        let first = task.portion_first_segment;
        if task.segments[first..].iter().any(|segment| segment.buf.is_none()) {
            self.fail_io(key, UnitFault::Read);
            return false;
        }
        task.stage = Stage::Resolve;
        if task.assembly.is_some() && !assemble(task, first) {
            self.fail_io(key, UnitFault::Read);
            return false;
        }
        true
    }
}

/// Keeps the first extents of a fragmented plan; returns the sectors they cover.
fn cut(plan: &mut ReadPlan) -> crate::units::SectorCount {
    plan.extents.truncate(limits::IN_PLACE_EXTENTS_MAX);
    crate::units::SectorCount(plan.bytes() / crate::units::SECTOR_BYTES)
}

/// Chunks and small buffers the reads of a plan may take.
fn needs(plan: &ReadPlan) -> (u32, u32) {
    let mut chunks = 0;
    let mut smalls = 0;
    for extent in &plan.extents {
        if let Source::File { immutable, .. } = extent.source {
            let len = extent.len as usize;
            if !immutable && len <= limits::SMALL_BYTES {
                smalls += 1;
            } else {
                // Read around the cache, an unaligned extent touches one piece more.
                chunks += len.div_ceil(CHUNK_BYTES) + usize::from(immutable);
            }
        }
    }
    (chunks as u32, smalls)
}

/// Chunks to take for copying the plan behind what is assembled, beside those the task has spare.
fn chunks_to_copy(task: &Task, plan: &ReadPlan) -> u32 {
    let open = task.assembly.as_ref().map_or(0, |(_, used)| *used as usize);
    let filled = (open + plan.bytes() as usize).div_ceil(CHUNK_BYTES).max(1);
    (filled - usize::from(task.assembly.is_some())).saturating_sub(task.spare.len()) as u32
}

/// Copies the segments of this portion behind what is assembled, chunk by chunk.
fn assemble(task: &mut Task, first: usize) -> bool {
    let portion: Vec<_> = task.segments.drain(first..).collect();
    for segment in portion {
        let Some(source) = segment.buf else { return false };
        let mut bytes = &source.as_slice()[segment.start as usize..(segment.start + segment.len) as usize];
        while !bytes.is_empty() {
            let (mut buf, used) = match task.assembly.take() {
                Some(open) => open,
                None => match task.spare.pop() {
                    Some(buf) => (buf, 0),
                    None => return false,
                },
            };
            let take = bytes.len().min(CHUNK_BYTES - used as usize);
            buf.as_mut_slice()[used as usize..used as usize + take].copy_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            task.assembly = Some((buf, used + take as u32));
            if used as usize + take == CHUNK_BYTES {
                seal_assembly(task);
            }
        }
    }
    true
}

/// What is assembled so far becomes a segment.
pub(super) fn seal_assembly(task: &mut Task) {
    if let Some((buf, used)) = task.assembly.take()
        && used > 0
    {
        task.push_segment(0, used, Some(buf.share()));
    }
}

/// The offset of the first byte in which data-in differs from data-out (`one_block`: from the repeated block).
pub(super) fn first_difference(task: &Task, one_block: bool) -> Option<u32> {
    let total = task.in_len();
    let mut at = 0;
    while at < total {
        let read = task.in_parts(at, total - at).next()?;
        let position = if one_block { u64::from(at) % CHUNK_BYTES as u64 } else { u64::from(at) };
        let index = if one_block { 0 } else { position / CHUNK_BYTES as u64 };
        let buf = task.out.get(index as usize)?;
        let start = (position % CHUNK_BYTES as u64) as usize;
        let read_bytes = &read.buf.as_slice()[read.start as usize..(read.start + read.len) as usize];
        let len = read_bytes.len().min(buf.as_slice().len() - start);
        let written = &buf.as_slice()[start..start + len];
        if read_bytes[..len] != *written {
            let same = read_bytes.iter().zip(written).take_while(|(a, b)| a == b).count();
            return Some(at + same as u32);
        }
        at += len as u32;
    }
    None
}
