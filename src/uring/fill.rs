//! The iovec lists of reads in flight that fill several frames.
//!
//! Knows addresses and lengths. Does not know files, nor who keeps the frames (`inflight` does).
//!
//! Lists live in one lazily touched mapping; the list freed last is used first.

use core::ptr::NonNull;
use std::io;

use crate::buf::{Fill, Mapping, RawRange};
use crate::io::Errno;
use crate::limits::FILL_PARTS_MAX;

type List = [libc::iovec; FILL_PARTS_MAX];

/// Where a read's bytes go.
pub(super) enum Placed {
    /// All fills lie side by side.
    Range(RawRange),
    List {
        list: u32,
        parts: *const libc::iovec,
        count: u32,
    },
}

/// A bounded set of lists. All memory is taken at construction.
#[derive(Debug)]
pub(super) struct FillLists {
    memory: Mapping,
    free: Vec<u32>,
}

impl FillLists {
    pub(super) fn new(count: u32) -> io::Result<Self> {
        let bytes = (count as usize).checked_mul(size_of::<List>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { memory: Mapping::new(bytes, false)?, free: (0..count).rev().collect() })
    }

    /// The memory of `fills`, in order; `None` when all lists are in flight. The caller keeps `fills` until the read's
    /// completion.
    pub(super) fn place(&mut self, fills: &mut [Fill]) -> Option<Result<Placed, Errno>> {
        if fills.is_empty() || fills.len() > FILL_PARTS_MAX {
            return Some(Err(Errno(libc::EINVAL)));
        }
        if let Some(range) = one_range(fills) {
            return Some(Ok(Placed::Range(range)));
        }
        let list = *self.free.last()?;
        let address = self.list(list);
        // SAFETY: the list is free, so the kernel does not use it, and `&mut self` makes this the only reference.
        // Mapped memory is zero at first, which is a valid `List`, and later holds an earlier one.
        let slots = unsafe { &mut *address.as_ptr() };
        for (slot, fill) in slots.iter_mut().zip(&mut *fills) {
            let range = fill.raw_rest();
            *slot = libc::iovec { iov_base: range.address.as_ptr().cast(), iov_len: range.len as usize };
        }
        self.free.pop();
        let parts = address.as_ptr().cast::<libc::iovec>().cast_const();
        Some(Ok(Placed::List { list, parts, count: fills.len() as u32 }))
    }

    /// The read completed: its list may be filled anew.
    pub(super) fn release(&mut self, list: u32) {
        self.free.push(list);
    }

    fn list(&self, list: u32) -> NonNull<List> {
        // SAFETY: `list` comes from `free`, which names only lists the mapping was sized for.
        unsafe { self.memory.base().cast::<List>().add(list as usize) }
    }
}

fn one_range(fills: &mut [Fill]) -> Option<RawRange> {
    let (first, more) = fills.split_first_mut()?;
    let mut range = first.raw_rest();
    for fill in more {
        let next = fill.raw_rest();
        if next.arena_offset != range.arena_offset + range.len as usize {
            return None;
        }
        range.len += next.len;
    }
    Some(range)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::buf::{FRAME_BYTES, FrameView, Frames, Need, PageSet};

    fn fills(frames: &[u32]) -> Vec<Fill> {
        let view = FrameView::new(Arc::new(Frames::new(4, false).unwrap()));
        let all = PageSet::touched(0, FRAME_BYTES as u32);
        frames.iter().map(|frame| view.hold(*frame).unwrap().claim(all, Need::Demand).unwrap()).collect()
    }

    #[test]
    fn frames_side_by_side_need_no_list_and_others_take_one_until_it_is_released() {
        let mut lists = FillLists::new(1).unwrap();
        let Some(Ok(Placed::Range(range))) = lists.place(&mut fills(&[1, 2, 3])) else { panic!("one range") };
        assert_eq!((range.len as usize, range.arena_offset), (3 * FRAME_BYTES, FRAME_BYTES));
        let Some(Ok(Placed::List { list, count: 3, .. })) = lists.place(&mut fills(&[0, 2, 3])) else {
            panic!("a list of three")
        };
        assert!(lists.place(&mut fills(&[1, 0])).is_none());
        lists.release(list);
        assert!(matches!(lists.place(&mut fills(&[1, 0])), Some(Ok(Placed::List { count: 2, .. }))));
    }

    #[test]
    fn a_read_of_nothing_is_refused() {
        assert!(matches!(FillLists::new(1).unwrap().place(&mut []), Some(Err(Errno(libc::EINVAL)))));
    }
}
