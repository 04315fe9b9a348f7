//! The golden cache: pages of immutable files kept in memory, one cache for all shards.
//!
//! Knows which frame stands for which chunk of a file, who waits for a page, and which frame goes next. Does not know
//! formats, sockets or the ring: the shard reads missing pages and hands them in.
//!
//! A chunk is [`CHUNK_BYTES`] of a *file*, so that one cache serves raw, dynamic and differencing parents alike:
//! translation happens before the lookup. Memory is given out by chunks and filled by pages of 4 KiB: a boot touches
//! small places all over an image, and what nobody asked for is not read.
//!
//! * A lookup of what is there takes no lock, and no atomic write while this shard sends from the frame already.
//! * Whoever finds pages missing claims them; a page is claimed by one shard at a time, so it is read once, whoever
//!   asks. Others mark the frame and are told by message.
//! * A failed read tells the waiters of the shard that read; other shards find the pages missing and read themselves.
//!   Nothing of it is kept.
//! * A frame held by any shard (a send, a waiter, a fill) is never taken. Of the others the new ones go first; who was
//!   used again meanwhile, or comes back soon, is kept longer. One pass over an image, in however small steps, is no
//!   second use: it pushes out its own frames only (`buf::eviction`).
//! * Whoever wants to know what booting nodes read gets it from a queue (`touches`).
//! * What is read before anybody asks for it never takes the frame of something kept. Who wants it along a boot trace offers
//!   places to the shards (`ahead`) and claims nothing.

mod ahead;
mod golden_cache;
mod read_run;
mod shared;
mod touches;

pub use ahead::{AheadBatch, AheadState, Place};
pub use golden_cache::{CacheCounts, Claim, GoldenCache, Lookup, Told, Waiter};
pub use read_run::ReadRun;
pub use shared::{Chunk, Golden, GoldenCounts, GoldenFile};

pub use touches::{Boot, Touch, TouchLog};

pub use crate::limits::CHUNK_BYTES;
