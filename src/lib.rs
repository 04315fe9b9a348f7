//! goldrush: an iSCSI block server that boots a room of diskless machines from one golden VHD.
//!
//! The architecture, its layers and its invariants are described below; module files say what they know and
//! what they do not know.
#![doc = include_str!("ARCHITECTURE.md")]

#[forbid(unsafe_code)]
pub mod clock;
#[forbid(unsafe_code)]
pub mod commits;
#[forbid(unsafe_code)]
pub mod findings;
#[forbid(unsafe_code)]
pub mod growth;
#[forbid(unsafe_code)]
pub mod io;
#[forbid(unsafe_code)]
pub mod limits;
#[forbid(unsafe_code)]
pub mod memory_file;
#[forbid(unsafe_code)]
pub mod parent_path;
#[forbid(unsafe_code)]
pub mod plan;
#[forbid(unsafe_code)]
pub mod slab;
#[forbid(unsafe_code)]
pub mod units;

#[forbid(unsafe_code)]
pub mod iscsi;
#[forbid(unsafe_code)]
pub mod isns;
#[forbid(unsafe_code)]
pub mod scsi;
#[forbid(unsafe_code)]
pub mod vhd;
#[forbid(unsafe_code)]
pub mod vhdx;

#[forbid(unsafe_code)]
pub mod boot_trace;
#[forbid(unsafe_code)]
pub mod image;
#[forbid(unsafe_code)]
pub mod pending;

#[allow(unsafe_code)] // UNSAFETY: one mapping per shard, shared with the kernel.
pub mod buf;
#[forbid(unsafe_code)]
pub mod cache;
#[allow(unsafe_code)] // UNSAFETY: system calls, ring memory and kernel-owned buffers.
pub mod uring;

#[forbid(unsafe_code)]
pub mod shard;

#[forbid(unsafe_code)]
pub mod control;
