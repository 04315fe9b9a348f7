//! iSNS (RFC 4171), as far as a target registers itself: messages, attributes, and what is to be said when.
//!
//! Knows bytes, the order of requests and what their answers mean. Does not know sockets or clocks (`control::isns` has
//! them), nor where targets and portals come from.

pub mod attribute;
pub mod fuzz;
pub mod pdu;
pub mod registrar;
pub mod request;

#[cfg(test)]
mod registrar_tests;
