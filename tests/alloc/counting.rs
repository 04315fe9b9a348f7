//! The system's allocator, counting what watched threads ask of it, and the most a measured one holds.
//!
//! Knows which threads are watched and when. Does not know what they do.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

struct Counting;

thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
    static MEASURED: Cell<bool> = const { Cell::new(false) };
    /// Bytes this thread holds of what it took since `measure`, and the most it held.
    static HELD: Cell<i64> = const { Cell::new(0) };
    static PEAK: Cell<i64> = const { Cell::new(0) };
}
static ARMED: AtomicBool = AtomicBool::new(false);
static TRACE: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

pub(crate) fn watch_this_thread(watched: bool) {
    WATCHED.with(|cell| cell.set(watched));
}

/// Print where the first allocations come from.
pub(crate) fn trace(wanted: bool) {
    TRACE.store(wanted, Ordering::SeqCst);
}

pub(crate) fn start() {
    ALLOCATIONS.store(0, Ordering::SeqCst);
    ARMED.store(true, Ordering::SeqCst);
}

/// Allocations of watched threads since `start`.
pub(crate) fn stop() -> u64 {
    ARMED.store(false, Ordering::SeqCst);
    ALLOCATIONS.load(Ordering::SeqCst)
}

/// The most bytes `work` held at one time, on this thread.
pub(crate) fn measure<T>(work: impl FnOnce() -> T) -> (T, u64) {
    HELD.with(|cell| cell.set(0));
    PEAK.with(|cell| cell.set(0));
    MEASURED.with(|cell| cell.set(true));
    let done = work();
    MEASURED.with(|cell| cell.set(false));
    (done, PEAK.with(Cell::get).max(0) as u64)
}

fn hold(bytes: i64) {
    if MEASURED.with(Cell::get) {
        let held = HELD.with(|cell| {
            cell.set(cell.get() + bytes);
            cell.get()
        });
        PEAK.with(|cell| cell.set(cell.get().max(held)));
    }
}

fn count(bytes: usize) {
    if ARMED.load(Ordering::Relaxed) && WATCHED.with(Cell::get) {
        let before = ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        if before < 5 && TRACE.load(Ordering::Relaxed) {
            watch_this_thread(false);
            eprintln!("{bytes} bytes at\n{}", std::backtrace::Backtrace::force_capture());
            watch_this_thread(true);
        }
    }
}

// SAFETY: every call goes to the system's allocator unchanged; counting does not touch the memory.
unsafe impl GlobalAlloc for Counting {
    /// # Safety
    /// As the trait says: nothing is added.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        hold(layout.size() as i64);
        // SAFETY: the caller's promise about `layout` is handed on.
        unsafe { System.alloc(layout) }
    }

    /// # Safety
    /// As the trait says: nothing is added.
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        hold(-(layout.size() as i64));
        // SAFETY: the caller's promise that `pointer` came from here, and so from `System`, is handed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    /// # Safety
    /// As the trait says: nothing is added.
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // The old place may have to live until the bytes have moved.
        hold(size as i64);
        hold(-(layout.size() as i64));
        // SAFETY: as in `dealloc`, and the caller's promise about `size` is handed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
