//! What login has settled: the operational parameters of a session and who its ends are.
//!
//! Knows values within their bounds. Does not know how they were negotiated (`negotiate`).

pub use super::pdu::{Cid, Isid, Tsih};
use crate::limits;

/// `None` or `CRC32C` (RFC 7143, 13.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DigestKind {
    #[default]
    None,
    Crc32c,
}

/// The result of operational negotiation; every value is within RFC 7143, 13 and within our limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NegotiatedParams {
    pub header_digest: DigestKind,
    pub data_digest: DigestKind,
    /// The longest segment the initiator takes; already cut to `SEND_SEGMENT_BYTES_MAX`.
    pub max_send_segment: u32,
    /// The longest segment we declared that we take.
    pub max_recv_segment: u32,
    pub max_burst: u32,
    pub first_burst: u32,
    pub initial_r2t: bool,
    pub immediate_data: bool,
    pub max_outstanding_r2t: u32,
    pub max_connections: u32,
    pub error_recovery_level: u32,
    pub time2wait_s: u32,
    pub time2retain_s: u32,
    pub data_pdu_in_order: bool,
    pub data_sequence_in_order: bool,
}

impl NegotiatedParams {
    /// The initiator was told how long a segment we take; without that it keeps to 8192 bytes (13.12).
    pub fn is_segment_declared(&self) -> bool {
        self.max_recv_segment == limits::RECV_SEGMENT_BYTES_MAX
    }
}

impl Default for NegotiatedParams {
    /// The defaults of RFC 7143, 13: what holds when a key is never mentioned.
    fn default() -> Self {
        Self {
            header_digest: DigestKind::None,
            data_digest: DigestKind::None,
            max_send_segment: 8192,
            max_recv_segment: limits::RECV_SEGMENT_BYTES_MAX,
            max_burst: 262_144,
            first_burst: 65_536,
            initial_r2t: true,
            immediate_data: true,
            max_outstanding_r2t: 1,
            max_connections: 1,
            error_recovery_level: 0,
            time2wait_s: 2,
            time2retain_s: 20,
            data_pdu_in_order: true,
            data_sequence_in_order: true,
        }
    }
}
