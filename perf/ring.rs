//! The fenced room: everything that asks the kernel without a safe wrapper in between.
//!
//! Knows io_uring, memory maps, affinity, signals and counters of the kernel. Does not know iSCSI.

mod calls;
mod memory;
mod port;
mod process;
mod uring;

pub(crate) use calls::SystemCalls;
pub(crate) use memory::Memory;
pub(crate) use port::Port;
pub(crate) use process::{allow_files, die_with_parent, interrupt, pin, terminate};
pub(crate) use uring::{Event, Ring, Sizes};
