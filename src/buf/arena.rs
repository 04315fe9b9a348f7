//! One anonymous memory mapping, page-aligned and zeroed, unmapped on drop.
//!
//! Knows an address and a length. Does not know how the memory is divided nor who uses it.

use core::ffi::c_void;
use core::ptr::NonNull;
use std::io;

use rustix::mm::{self, Advice, MapFlags, ProtFlags};

/// Huge pages of x86-64 and (with 4 KiB base pages) aarch64.
const HUGE_PAGE_BYTES: usize = 2 * 1024 * 1024;

/// Private memory of this process that starts as zeros and takes real pages only when touched.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// What the kernel gave, slack for the alignment included.
    mapped: NonNull<u8>,
    mapped_len: usize,
    /// The aligned part that is used.
    base: NonNull<u8>,
    len: usize,
    huge_pages: bool,
}

impl Mapping {
    /// `len` bytes (at least one page is mapped). With `huge_pages` the base is aligned to 2 MiB and the kernel is
    /// asked for transparent huge pages; where it has none, ordinary pages serve.
    pub(crate) fn new(len: usize, huge_pages: bool) -> io::Result<Self> {
        let len = len.max(1);
        let slack = if huge_pages { HUGE_PAGE_BYTES } else { 0 };
        let mapped_len = len.checked_add(slack).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no existing memory.
        let address = unsafe {
            mm::mmap_anonymous(
                core::ptr::null_mut(),
                mapped_len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        let mapped = NonNull::new(address.cast::<u8>())
            .ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))?;
        let skip = if huge_pages { mapped.as_ptr().align_offset(HUGE_PAGE_BYTES) } else { 0 };
        // SAFETY: `skip` is less than HUGE_PAGE_BYTES, which `mapped_len` exceeds by `len`: still inside.
        let base = unsafe { mapped.add(skip) };
        let mut mapping = Self { mapped, mapped_len, base, len, huge_pages: true };
        if huge_pages {
            mapping.huge_pages = mapping.advise_huge_pages();
        }
        Ok(mapping)
    }

    fn advise_huge_pages(&self) -> bool {
        // SAFETY: the range is this mapping's own; LinuxHugepage changes no byte of it.
        let advised =
            unsafe { mm::madvise(self.base.as_ptr().cast::<c_void>(), self.len, Advice::LinuxHugepage) };
        // A kernel built without transparent huge pages says EINVAL: ordinary pages serve as well.
        advised.is_ok()
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// False when the kernel was asked for huge pages and refused.
    pub(crate) fn has_huge_pages(&self) -> bool {
        self.huge_pages
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `mapped` and `mapped_len` are what mmap gave, and the owner of a Mapping keeps it until no
        // reference into it and no kernel operation on it is left (module docs of `buf` and `uring::inflight`).
        let unmapped = unsafe { mm::munmap(self.mapped.as_ptr().cast::<c_void>(), self.mapped_len) };
        debug_assert!(unmapped.is_ok(), "munmap of an own mapping cannot fail");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_page_mappings_are_aligned_to_two_mebibytes() {
        let mapping = Mapping::new(3 * 1024 * 1024, true).unwrap();
        assert_eq!(mapping.base().as_ptr().align_offset(HUGE_PAGE_BYTES), 0);
        assert_eq!(mapping.len(), 3 * 1024 * 1024);
    }

    #[test]
    fn an_impossible_size_is_an_error() {
        assert!(Mapping::new(usize::MAX, true).is_err());
        assert!(Mapping::new(usize::MAX / 4, false).is_err());
    }
}
