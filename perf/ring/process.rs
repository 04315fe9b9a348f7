//! Affinity of this thread, and signals to processes that this tool started.
//!
//! Knows three calls. Does not know whom they are for.

use crate::fail::{Result, failure};

/// Binds the calling thread, and those it starts later, to one core.
pub(crate) fn pin(core: usize) -> Result<()> {
    let bits = libc::c_ulong::BITS as usize;
    let mut mask = [0 as libc::c_ulong; 16];
    let told = || failure!("cannot run on core {core}: choose one that `nproc --all` counts");
    *mask.get_mut(core / bits).ok_or_else(told)? |= 1 << (core % bits);
    // SAFETY: the mask is a live array of the size given; the call only reads it.
    let rc = unsafe { libc::sched_setaffinity(0, size_of_val(&mask), mask.as_ptr().cast()) };
    if rc == 0 { Ok(()) } else { Err(told()) }
}

/// Asks a child to end itself. The caller still holds its handle, so that the id cannot be someone else's.
pub(crate) fn terminate(child: &std::process::Child) {
    if let Ok(id) = i32::try_from(child.id()) {
        // SAFETY: no memory is involved.
        unsafe { libc::kill(id, libc::SIGTERM) };
    }
}

/// Lets the kernel end this process when the one that started it is gone.
pub(crate) fn die_with_parent() {
    // SAFETY: no memory is involved.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) };
}
