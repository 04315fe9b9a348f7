//! One anonymous mapping in huge pages, filled once and read by the kernel ever after.
//!
//! Knows mmap and madvise. Does not know what the bytes mean.

use std::ops::Deref;
use std::ptr::NonNull;

use crate::fail::{Result, failure};

/// Read-only bytes at an address that never changes.
#[derive(Debug)]
pub(crate) struct Memory {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is never written after `filled` returned, so any thread may read it.
unsafe impl Send for Memory {}
// SAFETY: as above; `&Memory` gives only `&[u8]`.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps `len` bytes and lets `fill` write them.
    pub(crate) fn filled(len: usize, fill: impl FnOnce(&mut [u8])) -> Result<Memory> {
        let len = len.max(1);
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches nothing of ours.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        let told = || failure!("cannot map {len} bytes of memory: ask for less");
        if start == libc::MAP_FAILED {
            return Err(told());
        }
        // SAFETY: the range is the mapping above. The advice may be refused; nothing depends on it.
        unsafe { libc::madvise(start, len, libc::MADV_HUGEPAGE) };
        let start = NonNull::new(start.cast::<u8>()).ok_or_else(told)?;
        let memory = Memory { start, len };
        // SAFETY: the mapping is `len` zeroed bytes, owned by `memory`, and nobody else knows its address yet.
        fill(unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), len) });
        Ok(memory)
    }
}

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping lives as long as `self` and is no longer written.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `filled` mapped; slices of it borrow `self`, and rings that send from it
        // hold it in an `Arc` until the kernel is done.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_keeps_what_was_filled_in() {
        let memory = Memory::filled(8192, |bytes| bytes[8191] = 7).unwrap();
        assert_eq!((memory.len(), memory[0], memory[8191]), (8192, 0, 7));
    }
}
