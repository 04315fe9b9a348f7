//! The fenced room: everything that asks the kernel without a safe wrapper in between.
//!
//! Knows io_uring, memory maps, affinity and signals. Does not know iSCSI.

mod memory;
mod port;
mod process;
mod uring;

pub(crate) use memory::Memory;
pub(crate) use port::Port;
pub(crate) use process::{allow_files, die_with_parent, pin, terminate};
pub(crate) use uring::{Event, Ring, Sizes};
