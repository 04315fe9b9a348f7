//! What a shard tells of itself to whoever asks by message.
//!
//! Knows the shard's own state. Does not know who asks, or what is made of it.

use crate::io::Io;

use super::{Shard, ShardId, ShardLoad};

/// The answer to `Message::Report`.
#[derive(Clone, Debug)]
pub struct ShardReport {
    pub shard: ShardId,
    pub load: ShardLoad,
}

impl<I: Io> Shard<I> {
    pub(super) fn report(&self) -> ShardReport {
        ShardReport { shard: self.config.id, load: self.load() }
    }
}
