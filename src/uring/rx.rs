//! The buffers that multishot receives fill: the kernel picks one per piece of stream, we give it back.
//!
//! Knows which buffers the kernel has and which are out. Does not know sockets or the bytes' meaning.
//!
//! Buffers given back reach the kernel in [`RxBuffers::publish`], once per turn.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, Ordering};
use std::io;

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

use crate::buf::Mapping;
use crate::io::RxBuf;

/// The only buffer group of a ring.
pub(super) const GROUP: u16 = 0;

#[derive(Debug)]
pub(super) struct RxBuffers {
    /// The entries the kernel takes buffers from. The kernel reads them; only this type writes them.
    entries: Mapping,
    memory: Mapping,
    buffer_bytes: u32,
    mask: u16,
    /// Where the next entry goes; entries up to the published tail are the kernel's.
    tail: u16,
    /// Bytes in each buffer that is out; 0: the kernel may write it.
    lens: Box<[u32]>,
}

impl RxBuffers {
    /// `count` (rounded up to a power of two) buffers of `buffer_bytes`, all ready for the kernel.
    pub(super) fn new(count: u16, buffer_bytes: u32) -> io::Result<Self> {
        let count = usize::from(count).next_power_of_two();
        let memory = Mapping::new(count * buffer_bytes as usize, false)?;
        let entries = Mapping::new(count * size_of::<BufRingEntry>(), false)?;
        let mut buffers = Self {
            entries,
            memory,
            buffer_bytes,
            mask: (count - 1) as u16,
            tail: 0,
            lens: vec![0; count].into_boxed_slice(),
        };
        for id in 0..count {
            buffers.push_entry(id as u16);
        }
        Ok(buffers)
    }

    /// Tells the ring. Must be undone (`unregister`, or the end of the ring) before `self` is dropped.
    pub(super) fn register(&self, submitter: &Submitter<'_>) -> io::Result<()> {
        let address = self.entries.base().as_ptr() as u64;
        let count = self.mask + 1;
        // SAFETY: the entries are page-aligned and live in `self.entries`, which `UringIo` keeps until the ring is
        // closed, or leaks (`UringIo::drop`).
        unsafe { submitter.register_buf_ring_with_flags(address, count, GROUP, 0) }?;
        self.publish();
        Ok(())
    }

    /// Hands everything given back since the last call to the kernel.
    pub(super) fn publish(&self) {
        let first = self.entries.base().cast::<BufRingEntry>();
        // SAFETY: `first` is the first entry of the ring, initialised by `new`; the tail lies in its spare field.
        let tail = unsafe { BufRingEntry::tail(first.as_ptr()) };
        // SAFETY: the field is aligned, lives as long as `self`, and is accessed only as an atomic after `new`
        // (entries are written field by field and leave it alone).
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        // Release: the kernel that sees the tail sees the entries before it.
        tail.store(self.tail, Ordering::Release);
    }

    fn push_entry(&mut self, id: u16) {
        let at = usize::from(self.tail & self.mask);
        // SAFETY: `at` is at most `mask`, and the mapping holds `mask + 1` entries.
        let entry = unsafe { self.entries.base().cast::<BufRingEntry>().add(at) };
        let address = self.buffer(id).as_ptr() as u64;
        // SAFETY: the entry lies behind the published tail (no more entries exist than buffers), so the kernel does
        // not read it now; the memory is mapped and zeroed, which is a valid entry.
        let entry = unsafe { &mut *entry.as_ptr() };
        entry.set_addr(address);
        entry.set_len(self.buffer_bytes);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
    }

    fn buffer(&self, id: u16) -> NonNull<u8> {
        let offset = usize::from(id & self.mask) * self.buffer_bytes as usize;
        // SAFETY: the masked id is below the number of buffers the mapping was sized for.
        unsafe { self.memory.base().add(offset) }
    }

    /// The kernel filled buffer `id` with `len` bytes: it is out until it is released.
    pub(super) fn received(&mut self, id: u16, len: u32) -> RxBuf {
        let len = len.min(self.buffer_bytes);
        if let Some(out) = self.lens.get_mut(usize::from(id)) {
            *out = len;
        }
        RxBuf { id, len }
    }

    /// The kernel took buffer `id` but put nothing in.
    pub(super) fn unused(&mut self, id: u16) {
        if id <= self.mask {
            self.push_entry(id);
        }
    }

    /// The received bytes; empty for a buffer that is not out (a forged or twice used `RxBuf`).
    pub(super) fn bytes(&self, buf: &RxBuf) -> &[u8] {
        let out = self.lens.get(usize::from(buf.id)).copied().unwrap_or(0);
        let len = buf.len.min(out);
        // SAFETY: `len` is at most what the kernel wrote into this buffer, which is out (not in the entries) until
        // `release`, which takes `&mut self`: nobody writes it while the slice lives.
        unsafe { core::slice::from_raw_parts(self.buffer(buf.id).as_ptr(), len as usize) }
    }

    /// Gives the buffer back. A buffer that is not out is ignored.
    pub(super) fn release(&mut self, buf: RxBuf) {
        match self.lens.get_mut(usize::from(buf.id)) {
            Some(out) if *out > 0 => *out = 0,
            _ => return,
        }
        self.push_entry(buf.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_buffer_that_is_out_has_bytes() {
        let mut buffers = RxBuffers::new(3, 64).unwrap();
        assert_eq!(buffers.lens.len(), 4);
        assert!(buffers.bytes(&RxBuf { id: 2, len: 9 }).is_empty());
        assert!(buffers.bytes(&RxBuf { id: 999, len: 9 }).is_empty());
        let buf = buffers.received(2, 9);
        assert_eq!(buffers.bytes(&buf).len(), 9);
        assert_eq!(buffers.bytes(&RxBuf { id: 2, len: 60 }).len(), 9);
        buffers.release(buf);
        assert!(buffers.bytes(&RxBuf { id: 2, len: 9 }).is_empty());
    }

    #[test]
    fn a_buffer_is_given_back_once() {
        let mut buffers = RxBuffers::new(4, 64).unwrap();
        let tail = buffers.tail;
        let buf = buffers.received(1, 5);
        buffers.release(buf);
        buffers.release(RxBuf { id: 1, len: 5 });
        buffers.release(RxBuf { id: 77, len: 5 });
        assert_eq!(buffers.tail, tail + 1);
    }
}
