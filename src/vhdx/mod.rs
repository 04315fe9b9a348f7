//! The VHDX format: fixed, dynamic and differencing disks.
//!
//! Knows every byte of a VHDX file, what a hostile one may hold, what its log adds to it, and in which order a file may
//! be changed. Does not know files, rings, SCSI or chains: it is fed bytes and answers with offsets.
#![doc = include_str!("FORMAT.md")]

pub mod allocate;
pub mod bat;
pub mod build;
pub mod check;
mod commit;
pub mod compact;
pub mod create;
mod edit;
pub mod error;
pub mod fuzz;
pub mod header;
pub mod image;
pub mod layout;
pub mod log;
mod log_write;
pub mod metadata;
pub mod open;
mod overlay;
mod page_table;
pub mod parent_locator;
pub mod region;
pub mod relink;
pub mod repair;
pub mod replay;
pub mod reset;
pub mod resize;
pub mod sector_bitmap;
mod space;

pub use allocate::WriteIds;
pub use error::{Structure, VhdxError, VhdxErrorKind};
pub use image::{ParentInfo, Statistics, VhdxImage, Warning};
pub use open::{OpenError, open_with, parent_with, replay_with};
pub use replay::ReplayError;

/// What kind of disk a VHDX file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskType {
    /// Every block is there, and the file says so.
    Fixed,
    /// Blocks are there once written; the others are zeros.
    Dynamic,
    /// Sectors are there once written; the others are the parent's.
    Differencing,
}

/// Everything behind the header section begins and ends at multiples of this.
pub const MIB: u64 = 1 << 20;
/// The unit of the log, and so of every change of metadata.
pub const PAGE_BYTES: usize = 4096;
/// Bytes of a header, of a region table and of the metadata table.
pub const HEADER_BYTES: usize = 4096;
pub const REGION_TABLE_BYTES: usize = 64 * 1024;
pub const METADATA_TABLE_BYTES: u64 = 64 * 1024;
pub use crate::plan::FileRange;

/// Where both headers and both region tables are.
pub const HEADER_OFFSETS: [u64; 2] = [64 << 10, 128 << 10];
pub const REGION_TABLE_OFFSETS: [u64; 2] = [192 << 10, 256 << 10];

/// The CRC-32C of a structure whose four bytes at `hole` count as zero.
fn checksum(bytes: &[u8], hole: usize) -> u32 {
    let (before, rest) = bytes.split_at(hole.min(bytes.len()));
    let after = rest.get(4..).unwrap_or_default();
    let sum = crc32c::crc32c_append(crc32c::crc32c(before), &[0; 4]);
    crc32c::crc32c_append(sum, after)
}
