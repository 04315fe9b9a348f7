//! The send queue of one connection: headers, digests and payload gathered into few vectored sends.
//!
//! Knows staged PDUs and parts. Does not know sessions or what a PDU means.
//!
//! Header bytes are written into a small pool buffer while a turn lasts ("staging"). Sealing shares that buffer
//! and appends everything to the queue, so that what the kernel reads is never written again. One send is in
//! flight at a time; what it did not take goes out first with the next.

use std::collections::VecDeque;

use crate::buf::{Buf, BufRef, Pool};
use crate::io::Part;
use crate::iscsi::digest;
use crate::iscsi::params::DigestKind;
use crate::iscsi::pdu::bhs::{BHS_BYTES, Bhs, pad_len};
use crate::limits;

/// Control bytes one PDU needs at most beside its inline data: header, header digest, padding, data digest.
const OVERHEAD_BYTES: usize = BHS_BYTES + 4 + 3 + 4;
/// Chunks the longest copied data segment takes.
const INLINE_CHUNKS_MAX: usize = limits::SEND_SEGMENT_BYTES_MAX as usize / limits::CHUNK_BYTES;
const _: () = assert!(limits::SMALL_BYTES > 16 * OVERHEAD_BYTES);
const _: () = assert!(INLINE_CHUNKS_MAX <= limits::SEND_RESERVE_CHUNKS as usize);

#[derive(Debug)]
enum Staged {
    Control { start: u32, len: u32 },
    Data(Part),
}

impl Staged {
    /// As a part, with the buffer of what was staged beside it.
    fn sealed(self, control: &BufRef) -> Part {
        match self {
            Self::Control { start, len } => Part { buf: control.clone(), start, len },
            Self::Data(part) => part,
        }
    }
}

#[derive(Debug)]
pub(super) struct TxQueue {
    queue: VecDeque<Part>,
    staged: Vec<Staged>,
    staging: Option<(Buf, usize)>,
    queued_bytes: usize,
    in_flight: bool,
    header_digest: DigestKind,
    data_digest: DigestKind,
}

impl TxQueue {
    pub(super) fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            staged: Vec::new(),
            staging: None,
            queued_bytes: 0,
            in_flight: false,
            header_digest: DigestKind::None,
            data_digest: DigestKind::None,
        }
    }

    /// From the next PDU on.
    pub(super) fn set_digests(&mut self, header: DigestKind, data: DigestKind) {
        self.header_digest = header;
        self.data_digest = data;
    }

    /// Bytes queued or in flight.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    pub(super) fn in_flight(&self) -> bool {
        self.in_flight
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queued_bytes == 0
    }

    /// True when one more PDU, whatever its data, can be staged now.
    pub(super) fn can_stage(&mut self, pool: &Pool) -> bool {
        if self.queue.len() + self.staged.len() >= limits::CONNECTION_SEND_PDUS_MAX {
            return false;
        }
        self.reserve(pool, OVERHEAD_BYTES) && pool.chunks_free() >= INLINE_CHUNKS_MAX as u32
    }

    /// Stages a PDU whose data segment is `data` (shared parts, `len` bytes in all).
    pub(super) fn stage_parts(&mut self, bhs: &Bhs, data: impl Iterator<Item = Part>, len: u32) {
        self.stage_header(bhs);
        let mut crc = digest::Crc32c::new();
        let before = self.queued_bytes;
        for part in data {
            if self.data_digest == DigestKind::Crc32c {
                crc.update(slice_of(&part));
            }
            self.queued_bytes += part.len as usize;
            self.staged.push(Staged::Data(part));
        }
        debug_assert_eq!(
            self.queued_bytes - before,
            len as usize,
            "a data segment as long as its header says"
        );
        if len > 0 {
            self.stage_trailer(len, crc);
        }
    }

    /// Stages a PDU whose data segment is copied: `can_stage` must have said yes.
    pub(super) fn stage_inline(&mut self, pool: &Pool, bhs: &Bhs, data: &[u8]) {
        let len = data.len() as u32;
        if data.len() <= limits::SMALL_BYTES / 4 && self.reserve(pool, OVERHEAD_BYTES + data.len()) {
            self.stage_header(bhs);
            self.put_control(data);
            if len > 0 {
                let mut crc = digest::Crc32c::new();
                if self.data_digest == DigestKind::Crc32c {
                    crc.update(data);
                }
                self.stage_trailer(len, crc);
            }
            return;
        }
        let mut parts: [Option<Part>; INLINE_CHUNKS_MAX] = [const { None }; INLINE_CHUNKS_MAX];
        for (slot, piece) in parts.iter_mut().zip(data.chunks(limits::CHUNK_BYTES)) {
            let Some(mut buf) = pool.take_chunk() else { break };
            buf.as_mut_slice()[..piece.len()].copy_from_slice(piece);
            *slot = Some(Part { buf: buf.share(), start: 0, len: piece.len() as u32 });
        }
        debug_assert_eq!(parts.iter().flatten().map(|part| part.len).sum::<u32>(), len);
        self.stage_parts(bhs, parts.into_iter().flatten(), len);
    }

    /// Stages bytes that are complete PDUs already (login responses: never digested). Returns how many found room.
    pub(super) fn stage_raw(&mut self, pool: &Pool, bytes: &[u8]) -> usize {
        let mut staged = 0;
        while staged < bytes.len() {
            let take = (bytes.len() - staged).min(limits::SMALL_BYTES / 2);
            if !self.reserve(pool, take) {
                break;
            }
            self.put_control(&bytes[staged..staged + take]);
            staged += take;
        }
        staged
    }

    /// As [`Self::stage_parts`], of one part or two.
    pub(super) fn stage_whole(&mut self, bhs: &Bhs, first: Part, more: Option<Part>) {
        let len = first.len + more.as_ref().map_or(0, |part| part.len);
        let plain = self.header_digest == DigestKind::None && self.data_digest == DigestKind::None;
        let place = self.staging.as_mut().filter(|_| plain && pad_len(len) == 0);
        let Some((buf, used)) = place else {
            return self.stage_parts(bhs, core::iter::once(first).chain(more), len);
        };
        let Some(header) = buf.as_mut_slice().get_mut(*used..).and_then(|rest| rest.first_chunk_mut()) else {
            return;
        };
        *header = bhs.0;
        // Nearly always data lies between this header and what was staged before: no use to look.
        self.staged.push(Staged::Control { start: *used as u32, len: BHS_BYTES as u32 });
        *used += BHS_BYTES;
        self.queued_bytes += BHS_BYTES + len as usize;
        self.staged.push(Staged::Data(first));
        if let Some(part) = more {
            self.staged.push(Staged::Data(part));
        }
    }

    fn stage_header(&mut self, bhs: &Bhs) {
        self.put_control(&bhs.0);
        if self.header_digest == DigestKind::Crc32c {
            let mut crc = digest::Crc32c::new();
            crc.update(&bhs.0);
            self.put_control(&crc.wire());
        }
    }

    fn stage_trailer(&mut self, len: u32, mut crc: digest::Crc32c) {
        let pad = [0; 3];
        let pad = &pad[..pad_len(len) as usize];
        self.put_control(pad);
        if self.data_digest == DigestKind::Crc32c {
            crc.update(pad);
            self.put_control(&crc.wire());
        }
    }

    /// Room for `bytes` control bytes in the staging buffer; seals and takes another when it is full.
    fn reserve(&mut self, pool: &Pool, bytes: usize) -> bool {
        if let Some((_, used)) = &self.staging
            && used + bytes <= limits::SMALL_BYTES
        {
            return true;
        }
        // What is reserved already must stay there when there is no other.
        let Some(buf) = pool.take_small() else { return false };
        self.seal();
        self.staging = Some((buf, 0));
        true
    }

    /// The caller has reserved the room.
    fn put_control(&mut self, bytes: &[u8]) {
        debug_assert!(self.staging.is_some(), "room was not reserved");
        let Some((buf, used)) = &mut self.staging else { return };
        let start = *used;
        buf.as_mut_slice()[start..start + bytes.len()].copy_from_slice(bytes);
        *used += bytes.len();
        self.queued_bytes += bytes.len();
        match self.staged.last_mut() {
            Some(Staged::Control { start: first, len }) if (*first + *len) as usize == start => {
                *len += bytes.len() as u32;
            }
            _ if bytes.is_empty() => {}
            _ => self.staged.push(Staged::Control { start: start as u32, len: bytes.len() as u32 }),
        }
    }

    fn seal(&mut self) {
        let Some((buf, _)) = self.staging.take() else { return };
        let shared: BufRef = buf.share();
        self.queue.extend(self.staged.drain(..).map(|staged| staged.sealed(&shared)));
    }

    /// Seals into `parts` what goes out with them, and the rest into the queue, which is empty. `bytes` are in `parts`.
    fn seal_into(&mut self, parts: &mut Vec<Part>, mut bytes: usize, max_bytes: usize) {
        let Some((buf, _)) = self.staging.take() else { return };
        let shared: BufRef = buf.share();
        let mut fits = true;
        for staged in self.staged.drain(..) {
            let part = staged.sealed(&shared);
            bytes += part.len as usize;
            fits &= parts.len() < limits::SEND_PARTS_MAX && (parts.is_empty() || bytes <= max_bytes);
            if fits {
                parts.push(part);
            } else {
                self.queue.push_back(part);
            }
        }
    }

    /// Moves the next send into `parts` (empty before). False when there is nothing to send or one is in flight.
    pub(super) fn next_send(&mut self, max_bytes: usize, parts: &mut Vec<Part>) -> bool {
        if self.in_flight {
            return false;
        }
        let mut bytes = 0;
        while parts.len() < limits::SEND_PARTS_MAX
            && let Some(part) = self.queue.front()
        {
            if bytes > 0 && bytes + part.len as usize > max_bytes {
                break;
            }
            bytes += part.len as usize;
            parts.extend(self.queue.pop_front());
        }
        if self.queue.is_empty() {
            self.seal_into(parts, bytes, max_bytes);
        }
        self.in_flight = !parts.is_empty();
        self.in_flight
    }

    /// A send ended after `sent` bytes: what is left of its parts goes out first. `parts` is empty afterwards.
    pub(super) fn sent(&mut self, sent: usize, parts: &mut Vec<Part>) {
        self.in_flight = false;
        self.queued_bytes = self.queued_bytes.saturating_sub(sent);
        let total: usize = parts.iter().map(|part| part.len as usize).sum();
        if sent >= total {
            parts.clear();
            return;
        }
        let mut left = total - sent;
        while left > 0
            && let Some(mut part) = parts.pop()
        {
            let keep = left.min(part.len as usize) as u32;
            part.start += part.len - keep;
            part.len = keep;
            left -= keep as usize;
            self.queue.push_front(part);
        }
        parts.clear();
    }

    /// Forgets everything queued; what is in flight stays with the ring.
    pub(super) fn clear(&mut self) {
        self.queue.clear();
        self.staged.clear();
        self.staging = None;
        self.queued_bytes = 0;
    }
}

fn slice_of(part: &Part) -> &[u8] {
    &part.buf.as_slice()[part.start as usize..(part.start + part.len) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::PoolConfig;

    fn pool() -> Pool {
        Pool::new(PoolConfig { chunks: 8, smalls: 8, huge_pages: false }).unwrap()
    }

    fn drain(queue: &mut TxQueue, step: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut parts = Vec::new();
        while queue.next_send(1 << 20, &mut parts) {
            let bytes: Vec<u8> = parts.iter().flat_map(|part| slice_of(part).to_vec()).collect();
            let sent = bytes.len().min(step);
            out.extend_from_slice(&bytes[..sent]);
            queue.sent(sent, &mut parts);
        }
        out
    }

    fn stage_three(queue: &mut TxQueue, pool: &Pool) -> usize {
        let mut chunk = pool.take_chunk().unwrap();
        chunk.as_mut_slice()[..10].copy_from_slice(b"0123456789");
        let part = Part { buf: chunk.share(), start: 1, len: 7 };
        let mut bhs = Bhs::default();
        bhs.set_data_len(7);
        assert!(queue.can_stage(pool));
        queue.stage_parts(&bhs, core::iter::once(part), 7);
        assert!(queue.can_stage(pool));
        queue.stage_inline(pool, &bhs, b"abcdefg");
        assert!(queue.can_stage(pool));
        queue.stage_inline(pool, &Bhs::default(), b"");
        queue.queued_bytes()
    }

    #[test]
    fn whatever_the_kernel_takes_the_stream_is_the_same() {
        let pool = pool();
        let mut whole = TxQueue::new();
        let total = stage_three(&mut whole, &pool);
        let expected = drain(&mut whole, usize::MAX);
        assert_eq!(total, expected.len());
        assert_eq!(expected.len(), 3 * 48 + 2 * 8);
        assert_eq!(&expected[48..56], b"1234567\0");
        for step in 1..expected.len() {
            let mut queue = TxQueue::new();
            stage_three(&mut queue, &pool);
            assert_eq!(drain(&mut queue, step), expected, "{step} bytes a send");
            assert!(queue.is_empty());
        }
    }

    #[test]
    fn digests_cover_header_data_and_padding() {
        let pool = pool();
        let mut queue = TxQueue::new();
        queue.set_digests(DigestKind::Crc32c, DigestKind::Crc32c);
        stage_three(&mut queue, &pool);
        let bytes = drain(&mut queue, usize::MAX);
        assert_eq!(bytes.len(), 3 * 52 + 2 * 12);
        assert_eq!(bytes[48..52], crc32c::crc32c(&bytes[..48]).to_le_bytes());
        assert_eq!(bytes[60..64], crc32c::crc32c(b"1234567\0").to_le_bytes());
    }

    #[test]
    fn a_header_is_never_lost_for_want_of_small_buffers() {
        let pool = Pool::new(PoolConfig { chunks: 8, smalls: 1, huge_pages: false }).unwrap();
        let mut queue = TxQueue::new();
        let mut total = 0;
        let mut bhs = Bhs::default();
        bhs.set_data_len(1000);
        while queue.can_stage(&pool) {
            queue.stage_inline(&pool, &bhs, &[7; 1000]);
            total += BHS_BYTES + 1000;
        }
        assert!(total > limits::SMALL_BYTES, "some data went into chunks");
        assert_eq!(drain(&mut queue, usize::MAX).len(), total);
    }

    #[test]
    fn long_inline_data_is_copied_into_chunks() {
        let pool = pool();
        let mut queue = TxQueue::new();
        let data: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
        let mut bhs = Bhs::default();
        bhs.set_data_len(data.len() as u32);
        assert!(queue.can_stage(&pool));
        queue.stage_inline(&pool, &bhs, &data);
        assert_eq!(drain(&mut queue, 1000)[48..], data);
        assert_eq!(pool.chunks_free(), 8, "every buffer is back");
    }

    /// `len` bytes of a chunk that all are `byte`.
    fn part(pool: &Pool, byte: u8, len: u32) -> Part {
        let mut chunk = pool.take_chunk().unwrap();
        chunk.as_mut_slice().fill(byte);
        Part { buf: chunk.share(), start: 3, len }
    }

    #[test]
    fn one_part_or_two_are_staged_as_any_number_is() {
        use DigestKind::{Crc32c, None as Plain};
        let pool = Pool::new(PoolConfig { chunks: 16, smalls: 8, huge_pages: false }).unwrap();
        for (header, data) in [(Plain, Plain), (Crc32c, Plain), (Plain, Crc32c), (Crc32c, Crc32c)] {
            for (len, more) in [(512, None), (7, None), (500, Some(12)), (500, Some(13))] {
                let stage = |whole: bool| {
                    let mut queue = TxQueue::new();
                    queue.set_digests(header, data);
                    for tag in 0..3 {
                        assert!(queue.can_stage(&pool));
                        let bhs = Bhs([tag; BHS_BYTES]);
                        let (first, more) = (part(&pool, 1, len), more.map(|len| part(&pool, 2, len)));
                        let total = first.len + more.as_ref().map_or(0, |part| part.len);
                        if whole {
                            queue.stage_whole(&bhs, first, more);
                        } else {
                            queue.stage_parts(&bhs, core::iter::once(first).chain(more), total);
                        }
                        assert!(queue.can_stage(&pool));
                        queue.stage_inline(&pool, &bhs, b"");
                    }
                    (queue.queued_bytes(), drain(&mut queue, usize::MAX))
                };
                assert_eq!(stage(true), stage(false));
            }
        }
    }

    #[test]
    fn what_is_staged_while_a_send_is_under_way_goes_out_behind_it() {
        let pool = pool();
        for max_bytes in [1, 47, 48, 100, 560, 2000, 1 << 20] {
            let mut queue = TxQueue::new();
            let (mut expected, mut out, mut parts) = (Vec::new(), Vec::new(), Vec::new());
            for tag in 0..20 {
                assert!(queue.can_stage(&pool));
                queue.stage_whole(&Bhs([tag; BHS_BYTES]), part(&pool, tag + 100, 512), None);
                expected.extend([tag; BHS_BYTES]);
                expected.extend([tag + 100; 512]);
                if queue.next_send(max_bytes, &mut parts) {
                    let bytes: Vec<u8> = parts.iter().flat_map(|part| slice_of(part).to_vec()).collect();
                    let taken = bytes.len() - usize::from(tag) % 3 * (bytes.len() / 4);
                    out.extend_from_slice(&bytes[..taken]);
                    queue.sent(taken, &mut parts);
                }
                if queue.queued_bytes() > 1024 {
                    out.extend(drain(&mut queue, usize::MAX));
                }
            }
            out.extend(drain(&mut queue, usize::MAX));
            assert!(out == expected, "at most {max_bytes} in a send");
            assert!(queue.is_empty());
        }
    }
}
