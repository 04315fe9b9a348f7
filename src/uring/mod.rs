//! The ring: [`io::Io`](crate::io::Io) over io_uring, one per shard thread, and the system calls around it.
//!
//! Knows the kernel: rings, file descriptors, limits, signals, cores. Does not know what the bytes mean, nor who
//! asked for them.
//!
//! | file        | holds                                                                     |
//! |-------------|---------------------------------------------------------------------------|
//! | `uring_io`  | [`UringIo`]: submit, wait, sockets in and out, and the way out (drop)     |
//! | `start`     | an [`Op`](crate::io::Op) becomes a submission                             |
//! | `complete`  | a completion of the kernel becomes a [`Completion`](crate::io::Completion)|
//! | `inflight`  | what the kernel still owns: the two contracts of this module              |
//! | `ring`      | setup, registration, `io_uring_enter`                                     |
//! | `rx`        | the provided buffers multishot receives fill                              |
//! | [`file_writes`](FileWrites) | which files are written by the ring, and which by threads  |
//! | `writers`   | threads that write, seen from the ring: whom to wake, when to start another |
//! | `writer`    | such a thread, and the queues it shares with the ring                     |
//! | `fill`      | the iovec lists of reads into several frames                              |
//! | `send`      | the iovec lists of sends in flight                                        |
//! | `tables`    | slots of sockets, listeners and files                                     |
//! | `shared_map`| memory that outlives this process, for the pending journal             |
//! | `waker`     | waking a ring from another thread                                         |
//! | `zero_copy` | which sends leave without being copied                                  |
//! | [`probe`]   | may we use io_uring here, and if not, why not, in one sentence            |
//! | [`host`]    | cores, limits, listeners, signals                                         |

mod complete;
mod config;
mod file_writes;
mod fill;
pub mod host;
mod inflight;
pub mod probe;
mod ring;
mod rx;
mod send;
mod shared_map;
mod start;
mod tables;
mod uring_io;
mod waker;
mod writer;
mod writers;
mod zero_copy;

#[cfg(test)]
mod tests;

pub use config::{Registered, RingReport, UringConfig, UringError};
pub use file_writes::{FileWrites, WrittenBy};
pub use shared_map::SharedMap;
pub use uring_io::UringIo;
pub use waker::UringWaker;
pub use zero_copy::{ZeroCopy, ZeroCopyCounts};

use crate::io::Errno;

/// `result` of a completion or of a raw call: negative is an error number.
fn count_or_errno(result: i32) -> Result<u32, Errno> {
    u32::try_from(result).map_err(|_| Errno(result.wrapping_neg()))
}
