//! What the executor remembers of one SCSI command.
//!
//! Knows data-out buffers, data-in segments and how far the command has come. Does not know PDUs.
//!
//! | stage      | the task waits for                               | goes to                                   |
//! |------------|--------------------------------------------------|-------------------------------------------|
//! | `Collect`  | data-out from the initiator                      | `Order`, `Turn`, `Resolve`                |
//! | `Order`    | commands its attribute puts before it            | `Turn`, `Resolve`, `Sync`                 |
//! | `Turn`     | other writes of its unit                         | `Resolve`                                 |
//! | `Resolve`  | nothing, or a bitmap, prepared space, a buffer   | `Transfer`, `Commit`, `Sync`, `Finished`  |
//! | `Transfer` | file operations of one portion                   | `Resolve`, `Finished` (fault)             |
//! | `Commit`   | the metadata commit that covers its data         | `Resolve`, `Sync`, `Finished`             |
//! | `Settle`   | a commit of what is only recorded, before `Sync` | `Sync`, `Finished`                        |
//! | `Sync`     | fdatasync                                        | `Resolve`, `Finished`                     |
//! | `Keep`     | a change of its unit to be stable                | any of the others                         |
//! | `Pace`     | the time of its next portion                     | `Resolve`                                 |
//! | `Preempt`  | the end of commands it aborts                    | `Finished`                                |
//! | `Errand`   | what another shard does for its copy             | `Resolve`, `Turn`, `Sync`, `Finished`     |
//! | `Finished` | its reply to be queued for sending               | dropped                                   |

use crate::buf::{Buf, BufRef};
use crate::clock::Instant;
use crate::io::Part;
use crate::iscsi::pdu::scsi_command::TaskAttribute;
use crate::iscsi::session::TaskId;
use crate::limits;
use crate::plan::{CommitSeq, FileSlot, WriteKind};
use crate::scsi::Nexus;
use crate::scsi::{ScsiStatus, Sense};
use crate::units::{BlockRange, ByteOffset, Lba, SectorRange};

use super::ConnKey;
use super::atomic::AtomicStep;
use super::copy::CopyWork;
use super::errand_desk::ErrandWork;
use super::lba_status::HeldRun;
use super::rods::PopulateWork;
use super::sanitize::SanitizeWork;
use super::turns::Turn;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Collect,
    Order,
    Turn,
    Resolve,
    Transfer,
    Commit,
    Settle,
    Sync,
    Keep,
    Pace,
    Preempt,
    Errand,
    Finished,
}

/// One traversal of the range; a command is one or two of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    Read,
    Write(WriteKind),
    /// Only looks at where the blocks are.
    Status,
    /// Begins to read what lies in golden files; nobody waits for it.
    Prefetch,
}

/// The command, once `scsi` has decided what it means.
#[derive(Debug)]
pub(super) enum Work {
    /// The reply is known; segments hold its data, if any.
    Reply,
    Read,
    Write {
        fua: bool,
        verify: bool,
    },
    /// Reads the range and, with `compare`, matches it with the data-out (`one_block`: repeated).
    Verify {
        compare: bool,
        one_block: bool,
    },
    /// One block of data-out (or none: zeros) all over the range.
    WriteSame {
        fua: bool,
    },
    CompareAndWrite {
        fua: bool,
    },
    /// Combines the data-out with what is there.
    OrWrite {
        fua: bool,
    },
    /// GET LBA STATUS, with what was found so far.
    LbaStatus {
        start: Lba,
        allocation: u32,
        runs: Vec<HeldRun>,
    },
    /// UNMAP: the ranges that are still to be zeroed, last first.
    Zero {
        ranges: Vec<BlockRange>,
    },
    Flush,
    /// The blocks will be read soon (SBC-3, 5.10). CONDITION MET says that the golden cache has all of them, or is reading
    /// them; GOOD that some are not its affair, or find no place in it.
    PreFetch {
        held: bool,
        missed: bool,
    },
    WriteAtomic(AtomicStep),
    Copy(Box<CopyWork>),
    Populate(Box<PopulateWork>),
    Sanitize(Box<SanitizeWork>),
    /// A portion of a copy of another shard.
    Errand(Box<ErrandWork>),
    /// A parameter list, given back to `scsi` when it has arrived.
    Parameter,
}

impl Work {
    /// Data-out of another length means nothing. A plain write writes what came, and its residual tells the rest
    /// (RFC 7143, 11.4.5).
    pub(super) fn needs_exact_data(&self) -> bool {
        matches!(
            self,
            Self::CompareAndWrite { .. }
                | Self::OrWrite { .. }
                | Self::WriteSame { .. }
                | Self::WriteAtomic(_)
        )
    }
}

/// A run of data-in. `buf` is missing while its bytes are on their way.
#[derive(Debug)]
pub(super) struct Segment {
    /// Where in the data of the command it begins.
    pub(super) at: u32,
    pub(super) len: u32,
    pub(super) start: u32,
    pub(super) buf: Option<BufRef>,
}

/// A file operation that may come back short.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transfer {
    pub(super) file: FileSlot,
    pub(super) offset: ByteOffset,
    pub(super) len: u64,
    /// Bytes that an earlier, short completion has moved already.
    pub(super) done: u32,
}

#[derive(Debug)]
pub(super) struct Task {
    pub(super) conn: ConnKey,
    pub(super) id: TaskId,
    pub(super) target: u32,
    pub(super) nexus: Nexus,
    pub(super) lun_field: [u8; 8],
    pub(super) cdb: [u8; 16],
    pub(super) attribute: TaskAttribute,
    /// When its command came.
    pub(super) since: Instant,
    /// Its place among the commands of its unit, while it is unfinished.
    pub(super) arrival: Option<u64>,
    /// What the initiator expects to read: counted against its connection.
    pub(super) read_len: u32,
    /// Index into the shard's units; meaningless for `Reply` and `Parameter`.
    pub(super) lun: u32,
    /// The unit it was sent to, whose task set it is in; a copy works on others.
    pub(super) home: u32,
    /// No session knows it.
    pub(super) background: bool,
    pub(super) work: Work,
    pub(super) stage: Stage,
    /// Its share in the writes of its unit.
    pub(super) turn: Turn,
    pub(super) pass: Pass,
    /// The range of the command, the part not yet resolved, and the part being transferred.
    pub(super) range: SectorRange,
    pub(super) left: SectorRange,
    pub(super) portion: SectorRange,
    pub(super) portion_commits: bool,
    /// Data-out: what the command takes, what the initiator can give, and where it lies.
    pub(super) out_wanted: u32,
    pub(super) out_received: u32,
    pub(super) out_filling: Vec<Buf>,
    pub(super) out: Vec<BufRef>,
    /// Data-in.
    pub(super) segments: Vec<Segment>,
    pub(super) portion_first_segment: usize,
    pub(super) assembly: Option<(Buf, u32)>,
    /// Chunks the assembly of this portion will fill: taken before its reads begin, so that it cannot fail.
    pub(super) spare: Vec<Buf>,
    /// All data-in the command has, also beyond what is fetched (EDTL).
    pub(super) in_total: u32,
    /// Bytes on their way between two shards (`errands`); `parcel_waits`: they have come, and have no buffers yet.
    pub(super) parcel: Vec<u8>,
    pub(super) parcel_waits: bool,
    pub(super) transfers: Vec<Transfer>,
    pub(super) pending: u32,
    pub(super) commit: Option<CommitSeq>,
    pub(super) status: ScsiStatus,
    pub(super) sense: Option<Sense>,
    pub(super) aborted: bool,
}

impl Task {
    /// An idle task for the free list; its vectors keep their memory for ever.
    pub(super) fn idle() -> Self {
        let nowhere = SectorRange::between(crate::units::Sector(0), crate::units::Sector(0));
        Self {
            conn: ConnKey::from_parts(u32::MAX, 0),
            id: TaskId { index: 0, generation: 0 },
            target: 0,
            nexus: Nexus(0),
            lun_field: [0; 8],
            cdb: [0; 16],
            attribute: TaskAttribute::Simple,
            since: Instant::default(),
            arrival: None,
            read_len: 0,
            lun: 0,
            home: 0,
            background: false,
            work: Work::Reply,
            stage: Stage::Resolve,
            turn: Turn::None,
            pass: Pass::Read,
            range: nowhere,
            left: nowhere,
            portion: nowhere,
            portion_commits: false,
            out_wanted: 0,
            out_received: 0,
            out_filling: Vec::new(),
            out: Vec::new(),
            segments: Vec::new(),
            portion_first_segment: 0,
            assembly: None,
            spare: Vec::new(),
            in_total: 0,
            parcel: Vec::new(),
            parcel_waits: false,
            transfers: Vec::new(),
            pending: 0,
            commit: None,
            status: ScsiStatus::Good,
            sense: None,
            aborted: false,
        }
    }

    /// Back to idle: every buffer returns to the pool, vectors keep their capacity.
    pub(super) fn recycle(&mut self) {
        debug_assert_eq!(self.pending, 0, "the ring still works for this task");
        debug_assert!(self.arrival.is_none(), "its unit still counts it");
        self.work = Work::Reply;
        self.background = false;
        self.stage = Stage::Resolve;
        self.pass = Pass::Read;
        self.out_wanted = 0;
        self.out_received = 0;
        self.out_filling.clear();
        self.out.clear();
        self.segments.clear();
        self.portion_first_segment = 0;
        self.assembly = None;
        self.spare.clear();
        self.in_total = 0;
        self.parcel = Vec::new();
        self.parcel_waits = false;
        self.transfers.clear();
        self.commit = None;
        self.status = ScsiStatus::Good;
        self.sense = None;
        self.aborted = false;
    }

    /// Starts a traversal of `range`.
    pub(super) fn start_pass(&mut self, pass: Pass, range: SectorRange) {
        self.pass = pass;
        self.range = range;
        self.left = range;
        self.stage = Stage::Resolve;
    }

    pub(super) fn push_segment(&mut self, start: u32, len: u32, buf: Option<BufRef>) -> u16 {
        let at = self.segments.last().map_or(0, |last| last.at + last.len);
        self.segments.push(Segment { at, len, start, buf });
        (self.segments.len() - 1) as u16
    }

    /// Bytes of data-in present in segments.
    pub(super) fn in_len(&self) -> u32 {
        self.segments.last().map_or(0, |last| last.at + last.len)
    }

    /// Copies data-out into its buffers; what lies beyond `out_wanted` is dropped.
    pub(super) fn fill_out(&mut self, offset: u32, mut bytes: &[u8]) {
        let mut at = offset as usize;
        let end = self.out_wanted as usize;
        while !bytes.is_empty() && at < end {
            let Some(buf) = self.out_filling.get_mut(at / limits::CHUNK_BYTES) else { return };
            let start = at % limits::CHUNK_BYTES;
            let room = buf.as_slice().len().saturating_sub(start).min(end - at);
            let take = room.min(bytes.len());
            if take == 0 {
                return;
            }
            buf.as_mut_slice()[start..start + take].copy_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            at += take;
        }
    }

    /// The data-out is complete: from here on it is only read.
    pub(super) fn seal_out(&mut self) {
        for buf in self.out_filling.drain(..) {
            self.out.push(buf.share());
        }
    }

    /// ORWRITE: what was read goes into the data-out, bit by bit.
    pub(super) fn or_into_out(&mut self) {
        for segment in &self.segments {
            let Some(source) = &segment.buf else { continue };
            let mut bytes =
                &source.as_slice()[segment.start as usize..(segment.start + segment.len) as usize];
            let mut at = segment.at as usize;
            while let Some(buf) = self.out_filling.get_mut(at / limits::CHUNK_BYTES) {
                let target = buf.as_mut_slice().get_mut(at % limits::CHUNK_BYTES..).unwrap_or_default();
                let (here, rest) = bytes.split_at(bytes.len().min(target.len()));
                target.iter_mut().zip(here).for_each(|(target, byte)| *target |= byte);
                if here.is_empty() {
                    break;
                }
                (bytes, at) = (rest, at + here.len());
            }
        }
    }

    /// What was read is zeros, and nothing else.
    pub(super) fn is_all_zero(&self, zeros: &BufRef) -> bool {
        self.segments.iter().all(|segment| {
            let Some(buf) = &segment.buf else { return false };
            let (start, len) = (segment.start as usize, segment.len as usize);
            buf.as_slice().as_ptr() == zeros.as_slice().as_ptr()
                || buf.as_slice()[start..start + len].iter().all(|byte| *byte == 0)
        })
    }

    /// SANITIZE with INVERT: the next pass writes the complement.
    pub(super) fn invert_out(&mut self) {
        for buf in core::mem::take(&mut self.out) {
            match buf.try_unique() {
                Ok(mut buf) => {
                    buf.as_mut_slice().iter_mut().for_each(|byte| *byte = !*byte);
                    self.out.push(buf.share());
                }
                Err(shared) => self.out.push(shared),
            }
        }
    }

    /// The parts of data-in `offset..offset + len`, in order.
    pub(super) fn in_parts(&self, offset: u32, len: u32) -> impl Iterator<Item = Part> {
        let first = self.segments.partition_point(|segment| segment.at + segment.len <= offset);
        let end = offset + len;
        self.segments[first..].iter().take_while(move |segment| segment.at < end).filter_map(move |segment| {
            let from = offset.max(segment.at);
            let to = end.min(segment.at + segment.len);
            let buf = segment.buf.clone()?;
            Some(Part { buf, start: segment.start + (from - segment.at), len: to - from })
        })
    }

    /// The data-out piece at `position` of at most `len` bytes that lies in one buffer.
    pub(super) fn out_part(&self, position: u64, len: u32) -> Option<Part> {
        if let Work::Copy(_) | Work::Errand(_) = self.work {
            return self.in_parts(u32::try_from(position).ok()?, len).next();
        }
        let chunk = limits::CHUNK_BYTES as u64;
        let (buf, start) = if self.repeats() {
            (self.out.first()?, position % chunk)
        } else {
            (self.out.get(usize::try_from(position / chunk).ok()?)?, position % chunk)
        };
        let room = (buf.as_slice().len() as u64).saturating_sub(start);
        Some(Part { buf: buf.clone(), start: start as u32, len: u64::from(len).min(room) as u32 })
    }

    /// WRITE SAME and SANITIZE: the first buffer is a whole chunk of the repeated block.
    fn repeats(&self) -> bool {
        matches!(self.work, Work::WriteSame { .. } | Work::Sanitize(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::{Pool, PoolConfig};

    #[test]
    fn data_out_lands_across_buffers_and_stops_at_its_length() {
        let pool = Pool::new(PoolConfig { chunks: 4, smalls: 1, huge_pages: false }).unwrap();
        let mut task = Task::idle();
        task.out_wanted = limits::CHUNK_BYTES as u32 + 10;
        task.out_filling.extend([pool.take_chunk().unwrap(), pool.take_chunk().unwrap()]);
        task.fill_out(limits::CHUNK_BYTES as u32 - 2, &[7; 100]);
        task.seal_out();
        assert_eq!(task.out[0].as_slice()[limits::CHUNK_BYTES - 2..], [7, 7]);
        assert_eq!(task.out[1].as_slice()[..10], [7; 10]);
        assert_eq!(task.out_part(limits::CHUNK_BYTES as u64 - 2, 100).unwrap().len, 2);
    }

    #[test]
    fn data_in_parts_cut_segments_at_any_offset() {
        let pool = Pool::new(PoolConfig { chunks: 4, smalls: 4, huge_pages: false }).unwrap();
        let mut task = Task::idle();
        task.push_segment(100, 512, Some(pool.zero_chunk()));
        task.push_segment(0, 1024, Some(pool.zero_chunk()));
        let parts: Vec<_> = task.in_parts(500, 100).map(|part| (part.start, part.len)).collect();
        assert_eq!(parts, [(600, 12), (0, 88)]);
        assert_eq!(task.in_parts(512, 0).count(), 0);
        assert_eq!(task.in_len(), 1536);
    }
}
