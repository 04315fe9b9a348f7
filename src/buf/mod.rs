//! Buffers: one mapping per shard, cut into chunks and small buffers that the kernel reads and writes in place; and one
//! mapping of frames that all shards share.
//!
//! Knows memory, who holds which piece of it, and when a piece is free. Does not know operations, rings or files.
//!
//! # Why this is sound
//!
//! All `unsafe` of this module rests on four invariants:
//!
//! 1. **The mapping outlives every handle.** A [`Buf`] or [`BufRef`] holds the pool, the pool holds the mapping.
//! 2. **Pieces do not overlap**, and a piece never moves: its place follows from its index alone.
//! 3. **A piece has either one [`Buf`] or any number of [`BufRef`]s**, counted in the pool. `Buf` is the only way
//!    to write; [`BufRef::try_unique`] gives one back only to the last holder.
//! 4. **The kernel is a holder like any other.** It writes only into a `Buf` that was moved into an operation, and
//!    reads only from `BufRef`s (or a `Buf`) that an operation holds; the ring keeps the handle until the terminal
//!    completion (`uring::inflight`). So no Rust reference to a piece exists while the kernel writes it.
//!
//! 5. **A page of a shared frame has either one [`Fill`] or readers** ([`frames`]): a fill is claimed only for pages that are
//!    neither valid nor being filled, and a valid page loses its validity only when no shard holds its frame.
//!
//! Handles are `!Send`, but for a `Fill`: counts are plain cells. Anonymous memory starts as zeros, so every byte is initialised.

mod arena;
mod eviction;
mod fill;
mod frames;
mod page_set;
mod pool;

pub(crate) use arena::Mapping;
pub use eviction::Need;
pub use fill::Fill;
pub use frames::{FRAME_BYTES, FrameHold, FrameView, Frames, PAGE_BYTES, PAGES, Victim};
pub use page_set::PageSet;
pub(crate) use pool::RawRange;
pub use pool::{Buf, BufRef, Pool, PoolConfig};
