//! Operation tokens of the shard: what a completion belongs to, in 64 bits.
//!
//! Knows the encoding. Does not know what is done with it.
//!
//! | bits  | field                                                   |
//! |-------|---------------------------------------------------------|
//! | 60..64| kind                                                    |
//! | 36..60| index (24 bits)                                         |
//! | 16..36| generation (the lower 20 bits): a late completion of a former occupant is noticed |
//! | 0..16 | which of the occupant's operations                      |

use crate::io::OpToken;
use crate::slab::{Key, Slab};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Accept = 1,
    Recv,
    Send,
    Socket,
    Task,
    Fill,
    Bitmap,
    Meta,
    Wake,
    Cancel,
    /// An fdatasync for those who asked (`flush`); the index is the layer.
    Flush,
    /// The last fdatasync of an image while the shard stops.
    LastFlush,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) index: u32,
    pub(super) generation: u32,
    pub(super) part: u16,
}

const INDEX_BITS: u32 = 24;
const GENERATION_BITS: u32 = 20;
const _: () = assert!(crate::limits::CONNECTIONS_MAX < 1 << INDEX_BITS);
const _: () = assert!(crate::limits::SHARD_TASKS_MAX < 1 << INDEX_BITS);

impl Token {
    pub(super) fn new(kind: Kind, index: u32, part: u16) -> Self {
        Self { kind, index, generation: 0, part }
    }

    pub(super) fn of<T>(kind: Kind, key: Key<T>, part: u16) -> Self {
        Self { kind, index: key.index, generation: key.generation, part }
    }

    pub(super) fn encode(self) -> OpToken {
        let index = u64::from(self.index) & ((1 << INDEX_BITS) - 1);
        let generation = u64::from(self.generation) & ((1 << GENERATION_BITS) - 1);
        OpToken((self.kind as u64) << 60 | index << 36 | generation << 16 | u64::from(self.part))
    }

    /// `None` for a number this shard never made.
    pub(super) fn decode(token: OpToken) -> Option<Self> {
        let kind = match token.0 >> 60 {
            1 => Kind::Accept,
            2 => Kind::Recv,
            3 => Kind::Send,
            4 => Kind::Socket,
            5 => Kind::Task,
            6 => Kind::Fill,
            7 => Kind::Bitmap,
            8 => Kind::Meta,
            9 => Kind::Wake,
            10 => Kind::Cancel,
            11 => Kind::Flush,
            12 => Kind::LastFlush,
            _ => return None,
        };
        Some(Self {
            kind,
            index: (token.0 >> 36 & ((1 << INDEX_BITS) - 1)) as u32,
            generation: (token.0 >> 16 & ((1 << GENERATION_BITS) - 1)) as u32,
            part: token.0 as u16,
        })
    }

    /// The occupant this token was made for, when it is still there.
    pub(super) fn key<T>(self, slab: &Slab<T>) -> Option<Key<T>> {
        let key = slab.key_at(self.index)?;
        (key.generation & ((1 << GENERATION_BITS) - 1) == self.generation).then_some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_encoding() {
        let token = Token { kind: Kind::Meta, index: 0xAB_CDEF, generation: 0xF_1234, part: 0xFEDC };
        assert_eq!(Token::decode(token.encode()), Some(token));
        assert_eq!(Token::decode(OpToken(0)), None);
    }

    #[test]
    fn a_token_of_a_former_occupant_finds_nobody() {
        let mut slab = Slab::with_capacity(1);
        let first = slab.insert(1).unwrap();
        let token = Token::of(Kind::Task, first, 0);
        slab.remove(first);
        slab.insert(2).unwrap();
        assert!(token.key(&slab).is_none());
    }
}
