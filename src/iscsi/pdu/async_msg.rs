//! Asynchronous Message (RFC 7143, 11.9): the target speaks unasked.
//!
//! Knows the 48 header bytes. Does not know why.
//!
//! | bytes | field                   | bytes | field            |
//! |-------|-------------------------|-------|------------------|
//! | 0     | opcode 0x32             | 32    | MaxCmdSN         |
//! | 1     | 1                       | 36    | AsyncEvent       |
//! | 16    | ffff ffff               | 37    | AsyncVCode       |
//! | 24    | StatSN                  | 38    | Parameter1 (CID) |
//! | 28    | ExpCmdSN                | 40    | Parameter2       |
//! |       |                         | 42    | Parameter3       |

use super::bhs::Bhs;
use super::opcode::ResponseOpcode;
use super::{Cid, InitiatorTaskTag, WindowSnapshot};
use crate::iscsi::serial::StatSn;

/// What happened, with the parameters each event has (11.9.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsyncEvent {
    /// 1: the initiator shall log out within `within_s` seconds.
    LogoutRequested { within_s: u16 },
    /// 2: the target will drop connection `cid`.
    ConnectionDrop { cid: Cid, time2wait_s: u16, time2retain_s: u16 },
    /// 3: the target will drop all connections of the session.
    SessionDrop { time2wait_s: u16, time2retain_s: u16 },
    /// 4: the initiator shall begin to negotiate parameters of this connection within `within_s` seconds.
    NegotiationRequested { within_s: u16 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncMessage {
    pub event: AsyncEvent,
    pub stat_sn: StatSn,
    pub window: WindowSnapshot,
}

impl AsyncMessage {
    pub fn encode(&self) -> Bhs {
        let mut bhs = Bhs::default();
        bhs.0[0] = ResponseOpcode::AsyncMessage as u8;
        bhs.0[1] = 0x80;
        bhs.put_u32(16, InitiatorTaskTag::RESERVED.0);
        bhs.put_u32(24, self.stat_sn.0);
        self.window.encode(&mut bhs);
        match self.event {
            AsyncEvent::LogoutRequested { within_s } => {
                bhs.0[36] = 1;
                bhs.put_u16(42, within_s);
            }
            AsyncEvent::ConnectionDrop { cid, time2wait_s, time2retain_s } => {
                bhs.0[36] = 2;
                bhs.put_u16(38, cid.0);
                bhs.put_u16(40, time2wait_s);
                bhs.put_u16(42, time2retain_s);
            }
            AsyncEvent::SessionDrop { time2wait_s, time2retain_s } => {
                bhs.0[36] = 3;
                bhs.put_u16(40, time2wait_s);
                bhs.put_u16(42, time2retain_s);
            }
            AsyncEvent::NegotiationRequested { within_s } => {
                bhs.0[36] = 4;
                bhs.put_u16(42, within_s);
            }
        }
        bhs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iscsi::serial::CmdSn;

    #[test]
    fn each_event_has_its_parameters() {
        let window = WindowSnapshot { exp_cmd_sn: CmdSn(1), max_cmd_sn: CmdSn(2) };
        let encode = |event| AsyncMessage { event, stat_sn: StatSn(7), window }.encode();
        let logout = encode(AsyncEvent::LogoutRequested { within_s: 30 });
        assert_eq!((logout.0[36], logout.u16_at(38), logout.u16_at(42)), (1, 0, 30));
        let negotiate = encode(AsyncEvent::NegotiationRequested { within_s: 9 });
        assert_eq!((negotiate.0[36], negotiate.u16_at(38), negotiate.u16_at(42)), (4, 0, 9));
        let drop = encode(AsyncEvent::ConnectionDrop { cid: Cid(4), time2wait_s: 2, time2retain_s: 0 });
        assert_eq!((drop.0[36], drop.u16_at(38), drop.u16_at(40), drop.u16_at(42)), (2, 4, 2, 0));
        assert_eq!(drop.task_tag(), InitiatorTaskTag::RESERVED);
    }
}
