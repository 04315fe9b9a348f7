//! Golden data that should be read before anybody asks for it: from whoever follows a boot trace to the shards.
//!
//! Knows places of one golden file. Does not know traces, nor who reads.
//!
//! Whoever follows a trace only names places and owns no page: however long its thread is kept from running, nobody waits
//! for it. The first shard that sees a batch takes all of it, and reads it as it reads what its commands miss.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::shared::GoldenFile;
use crate::units::ByteOffset;

/// A range of a golden file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub offset: ByteOffset,
    pub len: u32,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AheadState {
    /// No shard has seen it, or one is just looking.
    Offered,
    /// What nobody had or read, in bytes, is being read.
    Begun(u64),
    /// The same, but not all of it: few frames are left.
    Full(u64),
}

const OFFERED: u8 = 0;
const TAKEN: u8 = 1;
const BEGUN: u8 = 2;
const FULL: u8 = 3;

/// Places of one file, offered to all shards.
#[derive(Debug)]
pub struct AheadBatch {
    pub(super) file: GoldenFile,
    pub(super) places: Box<[Place]>,
    state: AtomicU8,
    claimed: AtomicU64,
}

impl AheadBatch {
    pub fn new(file: GoldenFile, places: impl Iterator<Item = Place>) -> Self {
        let places = places.collect();
        Self { file, places, state: AtomicU8::new(OFFERED), claimed: AtomicU64::new(0) }
    }

    pub fn state(&self) -> AheadState {
        // Acquire: with `begun`.
        let state = self.state.load(Ordering::Acquire);
        let claimed = self.claimed.load(Ordering::Relaxed);
        match state {
            BEGUN => AheadState::Begun(claimed),
            FULL => AheadState::Full(claimed),
            _ => AheadState::Offered,
        }
    }

    /// True for one shard.
    pub(super) fn take(&self) -> bool {
        self.state.compare_exchange(OFFERED, TAKEN, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Only for who took it.
    pub(super) fn begun(&self, claimed: u64, all: bool) {
        self.claimed.store(claimed, Ordering::Relaxed);
        self.state.store(if all { BEGUN } else { FULL }, Ordering::Release);
    }
}
