//! The iovec lists of sends in flight: `msghdr` and `iovec`s the kernel reads while it sends.
//!
//! Knows addresses and lengths. Does not know sockets, nor who keeps the bytes (`inflight` does).
//!
//! Lists live in one lazily touched mapping, one list per socket at most; the list freed last is used first, so a
//! few busy lists stay in the CPU's cache and idle ones cost no memory.

use core::ptr::NonNull;
use std::io;

use crate::buf::Mapping;
use crate::io::{Errno, Part};
use crate::limits::SEND_PARTS_MAX;

#[repr(C)]
struct List {
    header: libc::msghdr,
    parts: [libc::iovec; SEND_PARTS_MAX],
}

/// A bounded set of lists. All memory is taken at construction.
#[derive(Debug)]
pub(super) struct SendLists {
    memory: Mapping,
    free: Vec<u32>,
}

impl SendLists {
    pub(super) fn new(count: u32) -> io::Result<Self> {
        let bytes = (count as usize).checked_mul(size_of::<List>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { memory: Mapping::new(bytes, false)?, free: (0..count).rev().collect() })
    }

    /// A list that names the bytes of `parts`, in order; `None` when all lists are in flight. A list names at most
    /// `SEND_PARTS_MAX` parts: the rest is a short send. The caller keeps `parts` until the send's completion.
    pub(super) fn fill(&mut self, parts: &[Part]) -> Option<Result<(u32, *const libc::msghdr), Errno>> {
        let list = *self.free.last()?;
        let address = self.list(list);
        // SAFETY: the list is free, so the kernel does not use it, and `&mut self` makes this the only reference.
        // Mapped memory is zero at first, which is a valid `List`, and later holds an earlier one.
        let slots = unsafe { &mut *address.as_ptr() };
        let mut count = 0;
        for part in parts.iter().take(SEND_PARTS_MAX) {
            let Some(range) = part.buf.raw(part.start, part.len) else {
                return Some(Err(Errno(libc::EINVAL)));
            };
            // The kernel only reads from it; iovec has no const form.
            slots.parts[count] =
                libc::iovec { iov_base: range.address.as_ptr().cast(), iov_len: range.len as usize };
            count += 1;
        }
        // The rest of the header is zero: no address, no control data.
        slots.header.msg_iov = slots.parts.as_mut_ptr();
        slots.header.msg_iovlen = count as _;
        self.free.pop();
        Some(Ok((list, address.as_ptr().cast::<libc::msghdr>().cast_const())))
    }

    /// The send completed: its list may be filled anew.
    pub(super) fn release(&mut self, list: u32) {
        self.free.push(list);
    }

    fn list(&self, list: u32) -> NonNull<List> {
        // SAFETY: `list` comes from `free`, which names only lists the mapping was sized for.
        unsafe { self.memory.base().cast::<List>().add(list as usize) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::{Pool, PoolConfig};

    fn part(pool: &Pool, start: u32, len: u32) -> Part {
        Part { buf: pool.zero_chunk(), start, len }
    }

    #[test]
    fn lists_are_bounded_and_come_back() {
        let pool = Pool::new(PoolConfig { chunks: 0, smalls: 0, huge_pages: false }).unwrap();
        let mut lists = SendLists::new(2).unwrap();
        let parts = [part(&pool, 0, 10)];
        let (first, _) = lists.fill(&parts).unwrap().unwrap();
        let (second, _) = lists.fill(&parts).unwrap().unwrap();
        assert_ne!(first, second);
        assert!(lists.fill(&parts).is_none());
        lists.release(second);
        assert_eq!(lists.fill(&parts).unwrap().unwrap().0, second);
    }

    #[test]
    fn a_part_beyond_its_buffer_is_refused_and_costs_no_list() {
        let pool = Pool::new(PoolConfig { chunks: 0, smalls: 0, huge_pages: false }).unwrap();
        let mut lists = SendLists::new(1).unwrap();
        let parts = [part(&pool, 0, 10), part(&pool, 1, crate::limits::CHUNK_BYTES as u32)];
        assert_eq!(lists.fill(&parts), Some(Err(Errno(libc::EINVAL))));
        assert!(lists.fill(&parts[..1]).is_some());
    }
}
