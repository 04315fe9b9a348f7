//! Login Request and Login Response (RFC 7143, 11.12, 11.13).
//!
//! Knows both layouts in both directions. Does not know which order of stages is legal (`login`).
//!
//! | bytes | Login Request                | Login Response               |
//! |-------|------------------------------|------------------------------|
//! | 0     | . I=1 opcode 0x03            | opcode 0x23                  |
//! | 1     | T C . . CSG(2) NSG(2)        | the same                     |
//! | 2, 3  | Version-max, Version-min     | Version-max, Version-active  |
//! | 4..8  | AHS length, data length      | the same                     |
//! | 8     | ISID (6), TSIH (2)           | the same                     |
//! | 16    | Initiator Task Tag           | the same                     |
//! | 20    | CID (2), reserved            | reserved                     |
//! | 24    | CmdSN                        | StatSN                       |
//! | 28    | ExpStatSN                    | ExpCmdSN                     |
//! | 32    | reserved                     | MaxCmdSN                     |
//! | 36    | reserved                     | Status-Class, Status-Detail  |

use super::bhs::Bhs;
use super::opcode::{RequestOpcode, ResponseOpcode};
use super::{Cid, InitiatorTaskTag, Isid, Tsih, WindowSnapshot};
use crate::iscsi::serial::{CmdSn, StatSn};

/// A stage of a connection as CSG and NSG name it (11.12.3). Two is reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Stage {
    SecurityNegotiation = 0,
    OperationalNegotiation = 1,
    FullFeature = 3,
}

impl Stage {
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits & 3 {
            0 => Some(Self::SecurityNegotiation),
            1 => Some(Self::OperationalNegotiation),
            3 => Some(Self::FullFeature),
            _ => None,
        }
    }
}

const TRANSIT: u8 = 0x80;
const CONTINUE: u8 = 0x40;

/// A Login Request; stages are `None` where the bits are reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginRequest {
    pub immediate: bool,
    pub transit: bool,
    /// C: the text goes on in the next PDU.
    pub text_continues: bool,
    pub current_stage: Option<Stage>,
    /// Meaningless without `transit`.
    pub next_stage: Option<Stage>,
    pub version_max: u8,
    pub version_min: u8,
    pub isid: Isid,
    pub tsih: Tsih,
    pub task_tag: InitiatorTaskTag,
    pub cid: Cid,
    pub cmd_sn: CmdSn,
    pub exp_stat_sn: StatSn,
}

impl LoginRequest {
    /// Reads the fields; the opcode is the caller's to check.
    pub fn decode(bhs: &Bhs) -> Self {
        let mut isid = [0; 6];
        isid.copy_from_slice(&bhs.0[8..14]);
        Self {
            immediate: bhs.immediate(),
            transit: bhs.0[1] & TRANSIT != 0,
            text_continues: bhs.0[1] & CONTINUE != 0,
            current_stage: Stage::from_bits(bhs.0[1] >> 2),
            next_stage: Stage::from_bits(bhs.0[1]),
            version_max: bhs.0[2],
            version_min: bhs.0[3],
            isid: Isid(isid),
            tsih: Tsih(bhs.u16_at(14)),
            task_tag: bhs.task_tag(),
            cid: Cid(bhs.u16_at(20)),
            cmd_sn: CmdSn(bhs.u32_at(24)),
            exp_stat_sn: StatSn(bhs.u32_at(28)),
        }
    }

    /// The header an initiator sends, before a data segment of `data_len` bytes.
    pub fn encode(&self, data_len: u32) -> Bhs {
        let mut bhs = Bhs::default();
        bhs.0[0] = RequestOpcode::Login as u8 | if self.immediate { 0x40 } else { 0 };
        bhs.0[1] = flags(self.transit, self.text_continues, self.current_stage, self.next_stage);
        bhs.0[2] = self.version_max;
        bhs.0[3] = self.version_min;
        bhs.set_data_len(data_len);
        bhs.0[8..14].copy_from_slice(&self.isid.0);
        bhs.put_u16(14, self.tsih.0);
        bhs.put_u32(16, self.task_tag.0);
        bhs.put_u16(20, self.cid.0);
        bhs.put_u32(24, self.cmd_sn.0);
        bhs.put_u32(28, self.exp_stat_sn.0);
        bhs
    }
}

fn flags(transit: bool, text_continues: bool, current: Option<Stage>, next: Option<Stage>) -> u8 {
    let current = current.map_or(2, |stage| stage as u8);
    let next = next.map_or(2, |stage| stage as u8);
    let transit = if transit { TRANSIT } else { 0 };
    let text_continues = if text_continues { CONTINUE } else { 0 };
    transit | text_continues | current << 2 | next
}

/// Status-Class and Status-Detail (11.13.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LoginStatus(pub u16);

impl LoginStatus {
    pub const SUCCESS: Self = Self(0x0000);
    pub const MOVED_TEMPORARILY: Self = Self(0x0101);
    pub const MOVED_PERMANENTLY: Self = Self(0x0102);
    pub const INITIATOR_ERROR: Self = Self(0x0200);
    pub const AUTHENTICATION_FAILURE: Self = Self(0x0201);
    pub const AUTHORIZATION_FAILURE: Self = Self(0x0202);
    pub const NOT_FOUND: Self = Self(0x0203);
    pub const TARGET_REMOVED: Self = Self(0x0204);
    pub const UNSUPPORTED_VERSION: Self = Self(0x0205);
    pub const TOO_MANY_CONNECTIONS: Self = Self(0x0206);
    pub const MISSING_PARAMETER: Self = Self(0x0207);
    pub const CANNOT_INCLUDE_IN_SESSION: Self = Self(0x0208);
    pub const SESSION_TYPE_NOT_SUPPORTED: Self = Self(0x0209);
    pub const SESSION_DOES_NOT_EXIST: Self = Self(0x020A);
    pub const INVALID_DURING_LOGIN: Self = Self(0x020B);
    pub const TARGET_ERROR: Self = Self(0x0300);
    pub const SERVICE_UNAVAILABLE: Self = Self(0x0301);
    pub const OUT_OF_RESOURCES: Self = Self(0x0302);
}

/// A Login Response; `next_stage` is sent only with `transit`, else its bits are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginResponse {
    pub transit: bool,
    pub text_continues: bool,
    pub current_stage: Option<Stage>,
    pub next_stage: Option<Stage>,
    pub version_max: u8,
    pub version_active: u8,
    pub isid: Isid,
    pub tsih: Tsih,
    pub task_tag: InitiatorTaskTag,
    pub stat_sn: StatSn,
    pub window: WindowSnapshot,
    pub status: LoginStatus,
}

impl LoginResponse {
    pub fn encode(&self, data_len: u32) -> Bhs {
        let mut bhs = Bhs::default();
        bhs.0[0] = ResponseOpcode::Login as u8;
        let next = if self.transit { self.next_stage } else { Some(Stage::SecurityNegotiation) };
        bhs.0[1] = flags(self.transit, self.text_continues, self.current_stage, next);
        bhs.0[2] = self.version_max;
        bhs.0[3] = self.version_active;
        bhs.set_data_len(data_len);
        bhs.0[8..14].copy_from_slice(&self.isid.0);
        bhs.put_u16(14, self.tsih.0);
        bhs.put_u32(16, self.task_tag.0);
        bhs.put_u32(24, self.stat_sn.0);
        bhs.put_u32(28, self.window.exp_cmd_sn.0);
        bhs.put_u32(32, self.window.max_cmd_sn.0);
        bhs.put_u16(36, self.status.0);
        bhs
    }

    /// What an initiator reads; the opcode is the caller's to check.
    pub fn decode(bhs: &Bhs) -> Self {
        let request = LoginRequest::decode(bhs);
        Self {
            transit: request.transit,
            text_continues: request.text_continues,
            current_stage: request.current_stage,
            next_stage: if request.transit { request.next_stage } else { None },
            version_max: bhs.0[2],
            version_active: bhs.0[3],
            isid: request.isid,
            tsih: request.tsih,
            task_tag: request.task_tag,
            stat_sn: StatSn(bhs.u32_at(24)),
            window: WindowSnapshot { exp_cmd_sn: CmdSn(bhs.u32_at(28)), max_cmd_sn: CmdSn(bhs.u32_at(32)) },
            status: LoginStatus(bhs.u16_at(36)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> LoginRequest {
        LoginRequest {
            immediate: true,
            transit: true,
            text_continues: false,
            current_stage: Some(Stage::OperationalNegotiation),
            next_stage: Some(Stage::FullFeature),
            version_max: 0,
            version_min: 0,
            isid: Isid([0x40, 0, 0x27, 0x23, 0xAB, 0xCD]),
            tsih: Tsih(0x1234),
            task_tag: InitiatorTaskTag(0xA1B2_C3D4),
            cid: Cid(7),
            cmd_sn: CmdSn(0x0102_0304),
            exp_stat_sn: StatSn(0x0506_0708),
        }
    }

    #[test]
    fn a_request_lies_where_the_rfc_puts_it() {
        let bhs = request().encode(0x21);
        assert_eq!(bhs.0[..8], [0x43, 0x87, 0, 0, 0, 0, 0, 0x21]);
        assert_eq!(bhs.0[8..16], [0x40, 0, 0x27, 0x23, 0xAB, 0xCD, 0x12, 0x34]);
        assert_eq!(bhs.0[16..24], [0xA1, 0xB2, 0xC3, 0xD4, 0, 7, 0, 0]);
        assert_eq!(bhs.0[24..32], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(LoginRequest::decode(&bhs), request());
    }

    #[test]
    fn a_response_lies_where_the_rfc_puts_it() {
        let response = LoginResponse {
            transit: true,
            text_continues: false,
            current_stage: Some(Stage::SecurityNegotiation),
            next_stage: Some(Stage::OperationalNegotiation),
            version_max: 0,
            version_active: 0,
            isid: Isid([1, 2, 3, 4, 5, 6]),
            tsih: Tsih(9),
            task_tag: InitiatorTaskTag(0x11),
            stat_sn: StatSn(0x22),
            window: WindowSnapshot { exp_cmd_sn: CmdSn(0x33), max_cmd_sn: CmdSn(0x44) },
            status: LoginStatus::AUTHENTICATION_FAILURE,
        };
        let bhs = response.encode(0);
        assert_eq!(bhs.0[..2], [0x23, 0x81]);
        assert_eq!((bhs.u32_at(24), bhs.u32_at(28), bhs.u32_at(32)), (0x22, 0x33, 0x44));
        assert_eq!(bhs.0[36..38], [2, 1]);
        assert_eq!(LoginResponse::decode(&bhs), response);
    }

    #[test]
    fn stage_two_is_reserved() {
        let mut bhs = request().encode(0);
        bhs.0[1] = 0x80 | 2 << 2 | 2;
        let request = LoginRequest::decode(&bhs);
        assert_eq!((request.current_stage, request.next_stage), (None, None));
    }
}
