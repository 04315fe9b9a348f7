//! Memory mapped from a file, word by word: it is still there when this process is not.
//!
//! Knows a mapping and the wall clock. Does not know what is written there.

use core::ffi::c_void;
use core::ptr::NonNull;
use core::sync::atomic::AtomicU64;
use std::fs::File;
use std::io;

use rustix::fs::FallocateFlags;
use rustix::mm::{self, MapFlags, ProtFlags};
use rustix::time::{ClockId, clock_gettime};

use crate::pending::Words;

const WORD_BYTES: usize = size_of::<u64>();

/// The first words of a file, shared with everybody who maps or reads it.
#[derive(Debug)]
pub struct SharedMap {
    base: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the mapping belongs to this value alone and is reached through atomics only, from any thread.
unsafe impl Send for SharedMap {}

impl SharedMap {
    /// Makes the file `words` long, takes the memory for all of it now (a tmpfs that is full would otherwise end the
    /// process at the first store), and maps it.
    ///
    /// # Errors
    /// No space, no memory, or a file that cannot be mapped.
    pub fn new(file: &File, words: usize) -> io::Result<Self> {
        let too_long = || io::Error::from(io::ErrorKind::OutOfMemory);
        let len = words.max(1).checked_mul(WORD_BYTES).ok_or_else(too_long)?;
        file.set_len(len as u64)?;
        rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len as u64)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let address = unsafe {
            mm::mmap(
                core::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::POPULATE,
                file,
                0,
            )
        }?;
        let base = NonNull::new(address.cast::<AtomicU64>())
            .ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))?;
        Ok(Self { base, words: words.max(1) })
    }
}

impl Words for SharedMap {
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is `words` long, page-aligned, and lives as long as `self`; its bytes are those of a file,
        // so any of them is a valid word, and other processes change them by whole words, if at all (`pending`). The
        // file is owned by this user and is never shortened (`control::runtime`).
        unsafe { core::slice::from_raw_parts(self.base.as_ptr(), self.words) }
    }

    fn wall_seconds(&self) -> u64 {
        // The clock that stamps files, read without entering the kernel.
        u64::try_from(clock_gettime(ClockId::RealtimeCoarse).tv_sec).unwrap_or(0)
    }
}

impl Drop for SharedMap {
    fn drop(&mut self) {
        // SAFETY: base and length are what mmap gave, and references into it cannot outlive `self`.
        let unmapped = unsafe { mm::munmap(self.base.as_ptr().cast::<c_void>(), self.words * WORD_BYTES) };
        debug_assert!(unmapped.is_ok(), "munmap of an own mapping cannot fail");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::Ordering;
    use std::os::unix::fs::FileExt;

    #[test]
    fn what_is_stored_is_in_the_file_without_any_call() {
        let file = tempfile::tempfile().unwrap();
        let map = SharedMap::new(&file, 1000).unwrap();
        map.words()[999].store(0x0102_0304_0506_0708, Ordering::Release);
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, 999 * 8).unwrap();
        assert_eq!(u64::from_ne_bytes(bytes), 0x0102_0304_0506_0708);
        assert_eq!(map.words().len(), 1000);
        assert!(map.wall_seconds() > 1_600_000_000);
    }

    #[test]
    fn an_impossible_size_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        assert!(SharedMap::new(&file, usize::MAX).is_err());
    }
}
