//! iSCSI (RFC 7143), sans-IO: bytes in, events out; replies in, bytes out.
//!
//! Knows PDUs, negotiation, sessions and tasks. Does not know sockets, clocks, buffers, files or SCSI commands
//! beyond their CDB bytes.

pub mod chap;
pub mod command_window;
pub mod data_in_sequence;
pub mod data_out_sequence;
pub mod digest;
pub mod discovery;
#[cfg(test)]
pub(crate) mod doc_table;
pub mod framer;
pub mod fuzz;
pub mod login;
pub mod name;
pub mod negotiate;
pub mod params;
pub mod pdu;
pub mod serial;
pub mod session;
pub mod task;
pub mod text_keys;
