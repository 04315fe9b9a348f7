//! Logout Request and Logout Response (RFC 7143, 11.14, 11.15).
//!
//! Knows both layouts in both directions. Does not know what a logout ends (`session`).
//!
//! | bytes | Logout Request         | Logout Response           |
//! |-------|------------------------|---------------------------|
//! | 0     | . I opcode 0x06        | opcode 0x26               |
//! | 1     | 1, reason (7 bits)     | 0x80                      |
//! | 2     | reserved               | response                  |
//! | 4..8  | AHS length, data length| the same (no data)        |
//! | 16    | Initiator Task Tag     | the same                  |
//! | 20    | CID (2), reserved      | reserved                  |
//! | 24    | CmdSN                  | StatSN                    |
//! | 28    | ExpStatSN              | ExpCmdSN                  |
//! | 32    | reserved               | MaxCmdSN                  |
//! | 40    | reserved               | Time2Wait, Time2Retain (s)|

use super::bhs::Bhs;
use super::opcode::{RequestOpcode, ResponseOpcode};
use super::{Cid, InitiatorTaskTag, WindowSnapshot};
use crate::iscsi::serial::{CmdSn, StatSn};

/// Why the initiator leaves (11.14.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum LogoutReason {
    CloseSession = 0,
    CloseConnection = 1,
    RemoveConnectionForRecovery = 2,
}

/// A Logout Request; the reason is `None` where the code is reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogoutRequest {
    pub immediate: bool,
    pub reason: Option<LogoutReason>,
    pub task_tag: InitiatorTaskTag,
    /// Meaningless with `CloseSession`.
    pub cid: Cid,
    pub cmd_sn: CmdSn,
    pub exp_stat_sn: StatSn,
}

impl LogoutRequest {
    pub fn decode(bhs: &Bhs) -> Self {
        let reason = match bhs.0[1] & 0x7F {
            0 => Some(LogoutReason::CloseSession),
            1 => Some(LogoutReason::CloseConnection),
            2 => Some(LogoutReason::RemoveConnectionForRecovery),
            _ => None,
        };
        Self {
            immediate: bhs.immediate(),
            reason,
            task_tag: bhs.task_tag(),
            cid: Cid(bhs.u16_at(20)),
            cmd_sn: CmdSn(bhs.u32_at(24)),
            exp_stat_sn: StatSn(bhs.u32_at(28)),
        }
    }

    pub fn encode(&self) -> Bhs {
        let mut bhs = Bhs::default();
        bhs.0[0] = RequestOpcode::Logout as u8 | if self.immediate { 0x40 } else { 0 };
        bhs.0[1] = 0x80 | self.reason.map_or(0x7F, |reason| reason as u8);
        bhs.put_u32(16, self.task_tag.0);
        bhs.put_u16(20, self.cid.0);
        bhs.put_u32(24, self.cmd_sn.0);
        bhs.put_u32(28, self.exp_stat_sn.0);
        bhs
    }
}

/// How the logout went (11.15.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum LogoutOutcome {
    Closed = 0,
    CidNotFound = 1,
    RecoveryNotSupported = 2,
    CleanupFailed = 3,
}

/// A Logout Response; times in seconds (11.15.3, 11.15.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogoutResponse {
    pub outcome: LogoutOutcome,
    pub task_tag: InitiatorTaskTag,
    pub stat_sn: StatSn,
    pub window: WindowSnapshot,
    pub time2wait_s: u16,
    pub time2retain_s: u16,
}

impl LogoutResponse {
    pub fn encode(&self) -> Bhs {
        let mut bhs = Bhs::default();
        bhs.0[0] = ResponseOpcode::Logout as u8;
        bhs.0[1] = 0x80;
        bhs.0[2] = self.outcome as u8;
        bhs.put_u32(16, self.task_tag.0);
        bhs.put_u32(24, self.stat_sn.0);
        bhs.put_u32(28, self.window.exp_cmd_sn.0);
        bhs.put_u32(32, self.window.max_cmd_sn.0);
        bhs.put_u16(40, self.time2wait_s);
        bhs.put_u16(42, self.time2retain_s);
        bhs
    }

    /// What an initiator reads; `None` for a reserved response code.
    pub fn decode(bhs: &Bhs) -> Option<Self> {
        let outcome = match bhs.0[2] {
            0 => LogoutOutcome::Closed,
            1 => LogoutOutcome::CidNotFound,
            2 => LogoutOutcome::RecoveryNotSupported,
            3 => LogoutOutcome::CleanupFailed,
            _ => return None,
        };
        Some(Self {
            outcome,
            task_tag: bhs.task_tag(),
            stat_sn: StatSn(bhs.u32_at(24)),
            window: WindowSnapshot { exp_cmd_sn: CmdSn(bhs.u32_at(28)), max_cmd_sn: CmdSn(bhs.u32_at(32)) },
            time2wait_s: bhs.u16_at(40),
            time2retain_s: bhs.u16_at(42),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_lies_where_the_rfc_puts_it() {
        let request = LogoutRequest {
            immediate: true,
            reason: Some(LogoutReason::CloseConnection),
            task_tag: InitiatorTaskTag(0x11),
            cid: Cid(0x22),
            cmd_sn: CmdSn(0x33),
            exp_stat_sn: StatSn(0x44),
        };
        let bhs = request.encode();
        assert_eq!(bhs.0[..2], [0x46, 0x81]);
        assert_eq!(
            (bhs.u32_at(16), bhs.u16_at(20), bhs.u32_at(24), bhs.u32_at(28)),
            (0x11, 0x22, 0x33, 0x44)
        );
        assert_eq!(LogoutRequest::decode(&bhs), request);
    }

    #[test]
    fn a_reserved_reason_is_none() {
        let mut bhs = Bhs::default();
        bhs.0[1] = 0x83;
        assert_eq!(LogoutRequest::decode(&bhs).reason, None);
    }

    #[test]
    fn a_response_lies_where_the_rfc_puts_it() {
        let response = LogoutResponse {
            outcome: LogoutOutcome::CidNotFound,
            task_tag: InitiatorTaskTag(0x11),
            stat_sn: StatSn(0x22),
            window: WindowSnapshot { exp_cmd_sn: CmdSn(0x33), max_cmd_sn: CmdSn(0x44) },
            time2wait_s: 2,
            time2retain_s: 20,
        };
        let bhs = response.encode();
        assert_eq!(bhs.0[..3], [0x26, 0x80, 1]);
        assert_eq!(bhs.0[40..44], [0, 2, 0, 20]);
        assert_eq!(LogoutResponse::decode(&bhs), Some(response));
    }
}
