//! The pending journal: what a killed process must not lose and a power cut may.
//!
//! Knows the layout of a journal in memory, how a record becomes valid in one store, and how to read what a dead process
//! left. Does not know where the memory comes from (`uring` maps it), what a record does to an image (`vhd::replay`),
//! nor when records are no longer needed (`shard`).
//!
//! A first write is answered when its data is in the page cache and its record here: both outlive the process. Neither
//! outlives the power, so nothing is promised for then. A commit puts what the records say into the image, data first;
//! then they are retired. Memory that is mapped from a file on a tmpfs makes a record a few plain stores.
//!
//! ```text
//! word 0    header     magic, version, boot id, nonce, counts, checksum | time of the last sign of life
//! word 64   leaves     8 words each: device, inode, unique id, checksum | failed
//! then      records    4 words each: leaf and block, place, sectors, checksum
//! ```
//!
//! A record is valid when its checksum is right, and the checksum is stored last: a process that is killed half-way
//! leaves none. It is retired by storing zero there. Records are a set: no order among them matters.

mod area;
mod layout;
mod reader;

pub use area::{Area, Slot};
pub use layout::{AreaHeader, LeafIdentity, LeafIndex, Words, words_needed};
pub use reader::{Journal, JournalError, RecordPlace};
