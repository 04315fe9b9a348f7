//! The golden cache: chunks of immutable files kept in memory, found by (file, chunk).
//!
//! Knows which chunk lies in which slot, who waits for it, and which slot goes next. Does not know formats,
//! sockets or the ring: the shard reads a missing chunk and hands it in.
//!
//! A chunk is [`CHUNK_BYTES`] of a *file*, so that one cache serves raw, dynamic and differencing parents alike:
//! translation happens before the lookup. A filled chunk is never changed; a send that still reads it holds a
//! reference, and a referenced chunk is never evicted.
//!
//! | state of a slot | meaning                                              | leaves by                       |
//! |-----------------|------------------------------------------------------|---------------------------------|
//! | empty           | its buffer is in the slot, nothing cached            | `claim`                         |
//! | filling         | the buffer is with the ring; tasks wait (one read)   | `filled`, `fill_failed`         |
//! | ready           | cached; lookups share it                             | eviction in `claim`             |

mod index;

pub use index::{ChunkKey, GoldenCache, Lookup, SlotId, Waiter};

pub use crate::limits::CHUNK_BYTES;
