//! Task Management Function Request and Response (RFC 7143, 11.5 and 11.6).
//!
//! Knows the 48 header bytes of both. Does not know tasks.
//!
//! | bytes | request 0x02           | response 0x22                 |
//! |-------|------------------------|-------------------------------|
//! | 0     | . I opcode             | opcode                        |
//! | 1     | 1 function(7)          | 1                             |
//! | 2     |                        | response                      |
//! | 8     | LUN                    |                               |
//! | 16    | Initiator Task Tag     | Initiator Task Tag            |
//! | 20    | Referenced Task Tag    |                               |
//! | 24    | CmdSN                  | StatSN                        |
//! | 28    | ExpStatSN              | ExpCmdSN                      |
//! | 32    | RefCmdSN               | MaxCmdSN                      |
//! | 36    | ExpDataSN              |                               |

use super::bhs::Bhs;
use super::opcode::{RequestOpcode, ResponseOpcode};
use super::{InitiatorTaskTag, LunField, WindowSnapshot};
use crate::iscsi::serial::{CmdSn, StatSn};

/// 11.5.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    AbortTask,
    AbortTaskSet,
    ClearAca,
    ClearTaskSet,
    LunReset,
    TargetWarmReset,
    TargetColdReset,
    TaskReassign,
    /// A function of a later standard (RFC 7144), or none at all.
    Unknown(u8),
}

impl Function {
    fn decode(code: u8) -> Self {
        match code {
            1 => Self::AbortTask,
            2 => Self::AbortTaskSet,
            3 => Self::ClearAca,
            4 => Self::ClearTaskSet,
            5 => Self::LunReset,
            6 => Self::TargetWarmReset,
            7 => Self::TargetColdReset,
            8 => Self::TaskReassign,
            other => Self::Unknown(other),
        }
    }

    fn encode(self) -> u8 {
        match self {
            Self::AbortTask => 1,
            Self::AbortTaskSet => 2,
            Self::ClearAca => 3,
            Self::ClearTaskSet => 4,
            Self::LunReset => 5,
            Self::TargetWarmReset => 6,
            Self::TargetColdReset => 7,
            Self::TaskReassign => 8,
            Self::Unknown(code) => code & 0x7F,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskManagementRequest {
    pub immediate: bool,
    pub function: Function,
    pub lun: LunField,
    pub task_tag: InitiatorTaskTag,
    /// Meaningful for ABORT TASK and TASK REASSIGN.
    pub referenced_tag: InitiatorTaskTag,
    pub cmd_sn: CmdSn,
    pub exp_stat_sn: StatSn,
    /// The referenced task's number; meaningful for ABORT TASK.
    pub ref_cmd_sn: CmdSn,
}

impl TaskManagementRequest {
    pub fn decode(bhs: &Bhs) -> Self {
        Self {
            immediate: bhs.immediate(),
            function: Function::decode(bhs.0[1] & 0x7F),
            lun: bhs.lun(),
            task_tag: bhs.task_tag(),
            referenced_tag: InitiatorTaskTag(bhs.u32_at(20)),
            cmd_sn: CmdSn(bhs.u32_at(24)),
            exp_stat_sn: StatSn(bhs.u32_at(28)),
            ref_cmd_sn: CmdSn(bhs.u32_at(32)),
        }
    }

    pub fn encode(&self) -> Bhs {
        let mut bhs = Bhs::default();
        bhs.0[0] = RequestOpcode::TaskManagement as u8 | if self.immediate { 0x40 } else { 0 };
        bhs.0[1] = 0x80 | self.function.encode();
        bhs.0[8..16].copy_from_slice(&self.lun.0);
        bhs.put_u32(16, self.task_tag.0);
        bhs.put_u32(20, self.referenced_tag.0);
        bhs.put_u32(24, self.cmd_sn.0);
        bhs.put_u32(28, self.exp_stat_sn.0);
        bhs.put_u32(32, self.ref_cmd_sn.0);
        bhs
    }
}

/// 11.6.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManagementResponse {
    FunctionComplete = 0,
    TaskDoesNotExist = 1,
    LunDoesNotExist = 2,
    TaskStillAllegiant = 3,
    ReassignmentNotSupported = 4,
    FunctionNotSupported = 5,
    AuthorizationFailed = 6,
    FunctionRejected = 255,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskManagementResponse {
    pub response: ManagementResponse,
    pub task_tag: InitiatorTaskTag,
    pub stat_sn: StatSn,
    pub window: WindowSnapshot,
}

impl TaskManagementResponse {
    pub fn encode(&self) -> Bhs {
        let mut bhs = Bhs::default();
        bhs.0[0] = ResponseOpcode::TaskManagement as u8;
        bhs.0[1] = 0x80;
        bhs.0[2] = self.response as u8;
        bhs.put_u32(16, self.task_tag.0);
        bhs.put_u32(24, self.stat_sn.0);
        self.window.encode(&mut bhs);
        bhs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_inverts_encode_for_every_function_code() {
        for code in 0..=0x7F {
            let function = Function::decode(code);
            let request = TaskManagementRequest {
                immediate: code % 2 == 0,
                function,
                lun: LunField([0, 1, 0, 0, 0, 0, 0, 0]),
                task_tag: InitiatorTaskTag(1),
                referenced_tag: InitiatorTaskTag(2),
                cmd_sn: CmdSn(3),
                exp_stat_sn: StatSn(4),
                ref_cmd_sn: CmdSn(5),
            };
            assert_eq!(TaskManagementRequest::decode(&request.encode()), request);
        }
    }

    #[test]
    fn rejected_is_255() {
        let response = TaskManagementResponse {
            response: ManagementResponse::FunctionRejected,
            task_tag: InitiatorTaskTag(1),
            stat_sn: StatSn(2),
            window: WindowSnapshot { exp_cmd_sn: CmdSn(3), max_cmd_sn: CmdSn(4) },
        };
        assert_eq!(response.encode().0[2], 255);
    }
}
