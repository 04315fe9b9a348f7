//! The VHD format: fixed, dynamic and differencing disks.
//!
//! Knows every byte of a VHD file, what a hostile one may hold, and in which order a file may be changed. Does not
//! know files, rings, SCSI or chains: it is fed bytes and answers with offsets.
#![doc = include_str!("FORMAT.md")]

pub mod allocate;
pub mod bat;
mod bitmap_table;
pub mod block_bitmap;
pub mod build;
pub mod check;
mod commit;
pub mod compact;
pub mod create;
pub mod dynamic_header;
pub mod edit;
pub mod error;
pub mod footer;
pub mod fuzz;
mod gaps;
pub mod geometry;
pub mod image;
pub mod layout;
pub mod open;
pub mod parent_locator;
pub mod relink;
pub mod repair;
pub mod replay;
pub mod reset;
pub mod resize;
mod space;

pub use allocate::WriteRun;
pub use error::{Structure, VhdError, VhdErrorKind};
pub use image::{BitmapRequest, OpenMode, ParentInfo, Run, Statistics, VhdImage, Warning};
pub use open::{OpenError, open_with};

/// What kind of disk a VHD file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskType {
    /// The data lies in the file as it lies on the disk.
    Fixed,
    /// Blocks are there once written; the others are zeros.
    Dynamic,
    /// Sectors are there once written; the others are the parent's.
    Differencing,
}

/// Bytes of a footer, and of its copy at the start of dynamic and differencing files.
pub const FOOTER_BYTES: usize = 512;
/// Bytes of the dynamic disk header.
pub const HEADER_BYTES: usize = 1024;
