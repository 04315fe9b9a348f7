//! What the kernel still owns: one entry per operation from its submission to its terminal completion.
//!
//! Knows tokens, user data and the handles an operation holds. Does not know what the operation does.
//!
//! # The keyspace contract: who owns `user_data`
//!
//! The 64 bits the kernel echoes are the generation (high half) and index (low half) of an entry in this slab. The
//! shard's [`OpToken`] is never shown to the kernel. A slot's generation changes when its operation ends, so a late
//! cancel finds nothing rather than a newer operation. Index `u32::MAX` is not an entry: those values
//! ([`WAKE_POLL`], [`CANCEL`]) are the ring's own.
//!
//! # The cancellation contract: memory lives until the terminal completion
//!
//! An operation owns its buffers, its iovec list and its file descriptor from before its submission is visible to
//! the kernel until its last completion (for a multishot: the one without the "more" flag). A cancel, a shutdown, a
//! timeout or an error of `io_uring_enter` releases nothing: they only hasten that completion. When a ring is
//! dropped and some completion does not come in time, its entry, with all the memory, is leaked, not freed.

use std::os::fd::OwnedFd;

use crate::buf::{Buf, Fill};
use crate::io::{Errno, ListenerSlot, OpToken, Part, SocketSlot};
use crate::plan::FileSlot;
use crate::slab::{Key, Slab};

/// `user_data` of the poll on the waker's eventfd.
pub(super) const WAKE_POLL: u64 = u64::MAX;
/// `user_data` of the cancel of everything when the ring is dropped.
pub(super) const CANCEL: u64 = u64::MAX - (1 << 32);

const NONE: u32 = u32::MAX;

/// What an operation holds until its terminal completion.
#[derive(Debug)]
pub(super) enum Held {
    Accept {
        listener: ListenerSlot,
    },
    Recv {
        socket: SocketSlot,
    },
    /// `list` is the iovec list in `SendLists`; `parts` keeps the bytes it points to.
    Send {
        socket: SocketSlot,
        list: u32,
        parts: Vec<Part>,
        zero_copy: Option<ZeroCopySend>,
    },
    Shutdown {
        socket: SocketSlot,
    },
    /// The descriptor is forgotten once the kernel has closed it, and closed here should the kernel not get to it.
    Close {
        socket: SocketSlot,
        fd: OwnedFd,
    },
    Read {
        file: FileSlot,
        buf: Buf,
    },
    /// `list` is the iovec list in `FillLists`, where there is one; `fills` keeps the bytes it points to.
    Fill {
        file: FileSlot,
        list: Option<u32>,
        fills: Vec<Fill>,
    },
    Write {
        file: FileSlot,
        part: Part,
    },
    /// Sync, hole, length.
    File {
        file: FileSlot,
    },
    Cancel,
}

/// How far a zero-copy send has come: what its first completion said, while its notification is still to come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ZeroCopySend {
    pub(super) queued: Option<Result<u32, Errno>>,
}

#[derive(Debug)]
struct Entry {
    token: OpToken,
    held: Held,
    /// The next entry whose token falls into the same bucket.
    next: u32,
}

/// The slab, and an index from tokens to entries for cancels. All memory is taken at construction.
#[derive(Debug)]
pub(super) struct InFlight {
    slab: Slab<Entry>,
    /// First entry of each bucket; a power of two of them.
    buckets: Box<[u32]>,
}

impl InFlight {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        let buckets = capacity.max(1).next_power_of_two();
        Self { slab: Slab::with_capacity(capacity), buckets: vec![NONE; buckets].into_boxed_slice() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.slab.is_full()
    }

    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    /// The `user_data` of the operation; gives `held` back when the slab is full.
    pub(super) fn insert(&mut self, token: OpToken, held: Held) -> Result<u64, Held> {
        let bucket = self.bucket(token);
        let next = self.buckets[bucket];
        let key = self.slab.insert(Entry { token, held, next }).map_err(|entry| entry.held)?;
        self.buckets[bucket] = key.index;
        Ok(user_data(key))
    }

    /// What the operation holds; `None` for user data that is not (or no longer) an entry.
    pub(super) fn get(&self, user_data: u64) -> Option<(OpToken, &Held)> {
        let entry = self.slab.get(key(user_data))?;
        Some((entry.token, &entry.held))
    }

    /// The same, to be changed.
    pub(super) fn held_mut(&mut self, user_data: u64) -> Option<&mut Held> {
        Some(&mut self.slab.get_mut(key(user_data))?.held)
    }

    /// The terminal completion came: the operation gives back what it held.
    pub(super) fn remove(&mut self, user_data: u64) -> Option<(OpToken, Held)> {
        let key = key(user_data);
        let entry = self.slab.remove(key)?;
        self.unlink(entry.token, key.index, entry.next);
        Some((entry.token, entry.held))
    }

    /// The `user_data` of the operation the shard calls `token`.
    pub(super) fn find(&self, token: OpToken) -> Option<u64> {
        let mut index = self.buckets[self.bucket(token)];
        while let Some(key) = self.slab.key_at(index) {
            let entry = self.slab.get(key)?;
            if entry.token == token {
                return Some(user_data(key));
            }
            index = entry.next;
        }
        None
    }

    fn unlink(&mut self, token: OpToken, index: u32, next: u32) {
        let bucket = self.bucket(token);
        if self.buckets[bucket] == index {
            self.buckets[bucket] = next;
            return;
        }
        let mut at = self.buckets[bucket];
        while let Some(key) = self.slab.key_at(at) {
            let Some(entry) = self.slab.get_mut(key) else { return };
            if entry.next == index {
                entry.next = next;
                return;
            }
            at = entry.next;
        }
    }

    fn bucket(&self, token: OpToken) -> usize {
        // Fibonacci hashing: tokens are often counters or (generation, index) pairs.
        let hash = token.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        hash as usize & (self.buckets.len() - 1)
    }
}

fn user_data<T>(key: Key<T>) -> u64 {
    u64::from(key.generation) << 32 | u64::from(key.index)
}

fn key<T>(user_data: u64) -> Key<T> {
    Key::from_parts(user_data as u32, (user_data >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_rings_own_user_data_is_no_entry() {
        let mut inflight = InFlight::with_capacity(4);
        inflight.insert(OpToken(1), Held::Cancel).unwrap();
        assert!(inflight.get(WAKE_POLL).is_none());
        assert!(inflight.remove(CANCEL).is_none());
    }

    #[test]
    fn a_completion_of_an_earlier_occupant_finds_nothing() {
        let mut inflight = InFlight::with_capacity(1);
        let first = inflight.insert(OpToken(1), Held::Cancel).unwrap();
        assert!(inflight.insert(OpToken(2), Held::Cancel).is_err());
        assert!(inflight.remove(first).is_some());
        let second = inflight.insert(OpToken(2), Held::Cancel).unwrap();
        assert_ne!(first, second);
        assert!(inflight.remove(first).is_none());
        assert_eq!(inflight.find(OpToken(2)), Some(second));
        assert_eq!(inflight.find(OpToken(1)), None);
    }

    proptest! {
        /// The token index against a map, with many collisions (few buckets, few tokens).
        #[test]
        fn tokens_are_found_as_in_a_map(steps in proptest::collection::vec((any::<bool>(), 0u64..24), 0..300)) {
            let mut inflight = InFlight::with_capacity(16);
            let mut model: BTreeMap<u64, u64> = BTreeMap::new();
            for (insert, token) in steps {
                if insert && !model.contains_key(&token) {
                    match inflight.insert(OpToken(token), Held::Cancel) {
                        Ok(user_data) => { model.insert(token, user_data); }
                        Err(_) => prop_assert_eq!(model.len(), 16),
                    }
                } else if let Some(user_data) = model.remove(&token) {
                    let (removed, _) = inflight.remove(user_data).unwrap();
                    prop_assert_eq!(removed, OpToken(token));
                }
                for token in 0..24 {
                    prop_assert_eq!(inflight.find(OpToken(token)), model.get(&token).copied());
                }
                prop_assert_eq!(inflight.len(), model.len());
            }
        }
    }
}
