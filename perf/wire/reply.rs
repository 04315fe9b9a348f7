//! What a target sends: header bytes to values and back (RFC 7143, 11.4 and on).
//!
//! Knows the fields that an initiator acts on. Does not know tasks, nor what lies in data segments.

use super::{BHS, Header, opcode, put_length, put16, put32, put64, u16_at, u32_at, u64_at};

/// ExpCmdSN and MaxCmdSN, which every reply carries at bytes 28 and 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Window {
    pub(crate) exp_cmd_sn: u32,
    pub(crate) max_cmd_sn: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    Scsi(ScsiResponse),
    DataIn(DataIn),
    R2t(R2t),
    Login(LoginResponse),
    Text(TextResponse),
    Logout(LogoutResponse),
    NopIn(NopIn),
    Async(AsyncMessage),
    Reject(Reject),
    /// An opcode no target may send.
    Other(u8),
}

/// SCSI Response, 11.4. A residual is positive when bytes are missing, negative when there were too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ScsiResponse {
    pub(crate) response: u8,
    pub(crate) status: u8,
    pub(crate) data_len: u32,
    pub(crate) tag: u32,
    pub(crate) stat_sn: u32,
    pub(crate) window: Window,
    pub(crate) residual: i64,
}

/// SCSI Data-In, 11.7. `status` and `stat_sn` are there only in the PDU that ends the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DataIn {
    pub(crate) last: bool,
    pub(crate) status: Option<(u8, u32)>,
    pub(crate) data_len: u32,
    pub(crate) tag: u32,
    pub(crate) window: Window,
    pub(crate) data_sn: u32,
    pub(crate) offset: u32,
    pub(crate) residual: i64,
}

/// Ready To Transfer, 11.8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct R2t {
    pub(crate) lun: u64,
    pub(crate) tag: u32,
    pub(crate) transfer_tag: u32,
    pub(crate) stat_sn: u32,
    pub(crate) window: Window,
    pub(crate) r2t_sn: u32,
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

/// Login Response, 11.13.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LoginResponse {
    pub(crate) transit: bool,
    pub(crate) more: bool,
    pub(crate) current: u8,
    pub(crate) next: u8,
    pub(crate) data_len: u32,
    pub(crate) isid: [u8; 6],
    pub(crate) tsih: u16,
    pub(crate) tag: u32,
    pub(crate) stat_sn: u32,
    pub(crate) window: Window,
    pub(crate) class: u8,
    pub(crate) detail: u8,
}

/// Text Response, 11.11.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TextResponse {
    pub(crate) more: bool,
    pub(crate) data_len: u32,
    pub(crate) tag: u32,
    pub(crate) transfer_tag: u32,
    pub(crate) stat_sn: u32,
    pub(crate) window: Window,
}

/// Logout Response, 11.15.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogoutResponse {
    pub(crate) response: u8,
    pub(crate) tag: u32,
    pub(crate) stat_sn: u32,
    pub(crate) window: Window,
}

/// NOP-In, 11.19. With `transfer_tag` set it wants an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NopIn {
    pub(crate) data_len: u32,
    pub(crate) lun: u64,
    pub(crate) tag: u32,
    pub(crate) transfer_tag: u32,
    pub(crate) stat_sn: u32,
    pub(crate) window: Window,
}

/// Asynchronous Message, 11.9.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AsyncMessage {
    pub(crate) stat_sn: u32,
    pub(crate) window: Window,
    pub(crate) event: u8,
}

/// Reject, 11.17.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reject {
    pub(crate) reason: u8,
    pub(crate) stat_sn: u32,
    pub(crate) window: Window,
}

const FINAL: u8 = 0x80;
const UNDERFLOW: u8 = 0x02;
const OVERFLOW: u8 = 0x04;

fn residual_of(h: &Header) -> i64 {
    let count = i64::from(u32_at(h, 44));
    match h[1] & (UNDERFLOW | OVERFLOW) {
        UNDERFLOW => count,
        OVERFLOW => -count,
        _ => 0,
    }
}

fn put_residual(h: &mut Header, residual: i64) {
    if residual != 0 {
        h[1] |= if residual > 0 { UNDERFLOW } else { OVERFLOW };
        put32(h, 44, residual.unsigned_abs() as u32);
    }
}

fn put_window(h: &mut Header, window: Window) {
    put32(h, 28, window.exp_cmd_sn);
    put32(h, 32, window.max_cmd_sn);
}

impl Window {
    pub(crate) fn of(h: &Header) -> Window {
        Window { exp_cmd_sn: u32_at(h, 28), max_cmd_sn: u32_at(h, 32) }
    }
}

impl ScsiResponse {
    pub(crate) fn encode(&self) -> Header {
        let mut h = [0; BHS];
        h[0] = opcode::SCSI_RESPONSE;
        h[1] = FINAL;
        h[2] = self.response;
        h[3] = self.status;
        put_length(&mut h, self.data_len);
        put32(&mut h, 16, self.tag);
        put32(&mut h, 24, self.stat_sn);
        put_window(&mut h, self.window);
        put_residual(&mut h, self.residual);
        h
    }
}

impl DataIn {
    pub(crate) fn encode(&self) -> Header {
        let mut h = [0; BHS];
        h[0] = opcode::DATA_IN;
        h[1] = u8::from(self.last) << 7;
        put_length(&mut h, self.data_len);
        put32(&mut h, 16, self.tag);
        put32(&mut h, 20, super::NO_TAG);
        if let Some((status, stat_sn)) = self.status {
            h[1] |= 1;
            h[3] = status;
            put32(&mut h, 24, stat_sn);
            put_residual(&mut h, self.residual);
        }
        put_window(&mut h, self.window);
        put32(&mut h, 36, self.data_sn);
        put32(&mut h, 40, self.offset);
        h
    }

    pub(crate) fn decode(h: &Header) -> DataIn {
        let status = (h[1] & 1 != 0).then(|| (h[3], u32_at(h, 24)));
        DataIn {
            last: h[1] & FINAL != 0,
            status,
            data_len: super::data_length(h) as u32,
            tag: u32_at(h, 16),
            window: Window::of(h),
            data_sn: u32_at(h, 36),
            offset: u32_at(h, 40),
            residual: if status.is_some() { residual_of(h) } else { 0 },
        }
    }
}

impl R2t {
    pub(crate) fn encode(&self) -> Header {
        let mut h = [0; BHS];
        h[0] = opcode::R2T;
        h[1] = FINAL;
        put64(&mut h, 8, self.lun);
        put32(&mut h, 16, self.tag);
        put32(&mut h, 20, self.transfer_tag);
        put32(&mut h, 24, self.stat_sn);
        put_window(&mut h, self.window);
        put32(&mut h, 36, self.r2t_sn);
        put32(&mut h, 40, self.offset);
        put32(&mut h, 44, self.len);
        h
    }
}

impl LoginResponse {
    pub(crate) fn encode(&self) -> Header {
        let mut h = [0; BHS];
        h[0] = opcode::LOGIN_RESPONSE;
        h[1] = u8::from(self.transit) << 7 | u8::from(self.more) << 6 | self.current << 2 | self.next;
        put_length(&mut h, self.data_len);
        h[8..14].copy_from_slice(&self.isid);
        put16(&mut h, 14, self.tsih);
        put32(&mut h, 16, self.tag);
        put32(&mut h, 24, self.stat_sn);
        put_window(&mut h, self.window);
        h[36] = self.class;
        h[37] = self.detail;
        h
    }

    fn decode(h: &Header) -> LoginResponse {
        let mut isid = [0; 6];
        isid.copy_from_slice(&h[8..14]);
        LoginResponse {
            transit: h[1] & FINAL != 0,
            more: h[1] & 0x40 != 0,
            current: h[1] >> 2 & 3,
            next: h[1] & 3,
            data_len: super::data_length(h) as u32,
            isid,
            tsih: u16_at(h, 14),
            tag: u32_at(h, 16),
            stat_sn: u32_at(h, 24),
            window: Window::of(h),
            class: h[36],
            detail: h[37],
        }
    }
}

impl TextResponse {
    pub(crate) fn encode(&self) -> Header {
        let mut h = [0; BHS];
        h[0] = opcode::TEXT_RESPONSE;
        h[1] = if self.more { 0x40 } else { FINAL };
        put_length(&mut h, self.data_len);
        put32(&mut h, 16, self.tag);
        put32(&mut h, 20, self.transfer_tag);
        put32(&mut h, 24, self.stat_sn);
        put_window(&mut h, self.window);
        h
    }
}

impl LogoutResponse {
    pub(crate) fn encode(&self) -> Header {
        let mut h = [0; BHS];
        h[0] = opcode::LOGOUT_RESPONSE;
        h[1] = FINAL;
        h[2] = self.response;
        put32(&mut h, 16, self.tag);
        put32(&mut h, 24, self.stat_sn);
        put_window(&mut h, self.window);
        h
    }
}

impl NopIn {
    pub(crate) fn encode(&self) -> Header {
        let mut h = [0; BHS];
        h[0] = opcode::NOP_IN;
        h[1] = FINAL;
        put_length(&mut h, self.data_len);
        put64(&mut h, 8, self.lun);
        put32(&mut h, 16, self.tag);
        put32(&mut h, 20, self.transfer_tag);
        put32(&mut h, 24, self.stat_sn);
        put_window(&mut h, self.window);
        h
    }
}

impl Reply {
    pub(crate) fn decode(h: &Header) -> Reply {
        let data_len = super::data_length(h) as u32;
        let (tag, transfer_tag, stat_sn) = (u32_at(h, 16), u32_at(h, 20), u32_at(h, 24));
        let (lun, window) = (u64_at(h, 8), Window::of(h));
        match h[0] & 0x3f {
            opcode::DATA_IN => Reply::DataIn(DataIn::decode(h)),
            opcode::SCSI_RESPONSE => Reply::Scsi(ScsiResponse {
                response: h[2],
                status: h[3],
                data_len,
                tag,
                stat_sn,
                window,
                residual: residual_of(h),
            }),
            opcode::R2T => Reply::R2t(R2t {
                lun,
                tag,
                transfer_tag,
                stat_sn,
                window,
                r2t_sn: u32_at(h, 36),
                offset: u32_at(h, 40),
                len: u32_at(h, 44),
            }),
            opcode::LOGIN_RESPONSE => Reply::Login(LoginResponse::decode(h)),
            opcode::TEXT_RESPONSE => Reply::Text(TextResponse {
                more: h[1] & 0x40 != 0,
                data_len,
                tag,
                transfer_tag,
                stat_sn,
                window,
            }),
            opcode::LOGOUT_RESPONSE => Reply::Logout(LogoutResponse { response: h[2], tag, stat_sn, window }),
            opcode::NOP_IN => Reply::NopIn(NopIn { data_len, lun, tag, transfer_tag, stat_sn, window }),
            opcode::ASYNC => Reply::Async(AsyncMessage { stat_sn, window, event: h[36] }),
            opcode::REJECT => Reply::Reject(Reject { reason: h[2], stat_sn, window }),
            other => Reply::Other(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Window = Window { exp_cmd_sn: 10, max_cmd_sn: 137 };

    #[test]
    fn data_in_with_status_has_the_bytes_of_the_standard() {
        let pdu = DataIn {
            last: true,
            status: Some((0, 0x0a0b0c0d)),
            data_len: 4096,
            tag: 5,
            window: WINDOW,
            data_sn: 2,
            offset: 8192,
            residual: 0,
        };
        let h = pdu.encode();
        assert_eq!(&h[..8], &[0x25, 0x81, 0, 0, 0, 0, 0x10, 0]);
        assert_eq!(&h[16..28], &[0, 0, 0, 5, 0xff, 0xff, 0xff, 0xff, 0x0a, 0x0b, 0x0c, 0x0d]);
        assert_eq!(&h[36..44], &[0, 0, 0, 2, 0, 0, 0x20, 0]);
        assert_eq!(Reply::decode(&h), Reply::DataIn(pdu));
    }

    #[test]
    fn residuals_keep_their_sign() {
        for residual in [0, 512, -512] {
            let pdu = ScsiResponse {
                response: 0,
                status: 2,
                data_len: 20,
                tag: 1,
                stat_sn: 2,
                window: WINDOW,
                residual,
            };
            assert_eq!(Reply::decode(&pdu.encode()), Reply::Scsi(pdu));
        }
    }

    #[test]
    fn every_reply_decodes_to_what_was_encoded() {
        let r2t =
            R2t { lun: 1, tag: 2, transfer_tag: 3, stat_sn: 4, window: WINDOW, r2t_sn: 5, offset: 6, len: 7 };
        assert_eq!(Reply::decode(&r2t.encode()), Reply::R2t(r2t));
        let login = LoginResponse {
            transit: true,
            more: false,
            current: 0,
            next: 1,
            data_len: 9,
            isid: [1, 2, 3, 4, 5, 6],
            tsih: 7,
            tag: 8,
            stat_sn: 9,
            window: WINDOW,
            class: 2,
            detail: 1,
        };
        assert_eq!(Reply::decode(&login.encode()), Reply::Login(login));
        let text =
            TextResponse { more: true, data_len: 1, tag: 2, transfer_tag: 3, stat_sn: 4, window: WINDOW };
        assert_eq!(Reply::decode(&text.encode()), Reply::Text(text));
        let logout = LogoutResponse { response: 0, tag: 1, stat_sn: 2, window: WINDOW };
        assert_eq!(Reply::decode(&logout.encode()), Reply::Logout(logout));
        let nop = NopIn { data_len: 0, lun: 0, tag: 1, transfer_tag: 2, stat_sn: 3, window: WINDOW };
        assert_eq!(Reply::decode(&nop.encode()), Reply::NopIn(nop));
    }
}
