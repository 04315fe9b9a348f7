//! What an initiator sends: header bytes to values and back (RFC 7143, 11.3 and on).
//!
//! Knows every field that `perf` sets or answers. Does not know when to send which, nor data segments.

use super::{BHS, Header, opcode, put_length, put16, put32, put64, u16_at, u32_at, u64_at};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    Command(ScsiCommand),
    DataOut(DataOut),
    Login(Login),
    Text(Text),
    Logout(Logout),
    NopOut(NopOut),
    /// Something this tool never sends.
    Other(u8),
}

/// SCSI Command, 11.3. `last` means that no unsolicited Data-Out follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ScsiCommand {
    pub(crate) last: bool,
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) data_len: u32,
    pub(crate) lun: u64,
    pub(crate) tag: u32,
    pub(crate) expected_len: u32,
    pub(crate) cmd_sn: u32,
    pub(crate) exp_stat_sn: u32,
    pub(crate) cdb: [u8; 16],
}

/// SCSI Data-Out, 11.7.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DataOut {
    pub(crate) last: bool,
    pub(crate) data_len: u32,
    pub(crate) lun: u64,
    pub(crate) tag: u32,
    pub(crate) transfer_tag: u32,
    pub(crate) exp_stat_sn: u32,
    pub(crate) data_sn: u32,
    pub(crate) offset: u32,
}

/// Login Request, 11.12. `current` and `next` are the stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) transit: bool,
    pub(crate) current: u8,
    pub(crate) next: u8,
    pub(crate) data_len: u32,
    pub(crate) isid: [u8; 6],
    pub(crate) tsih: u16,
    pub(crate) tag: u32,
    pub(crate) cmd_sn: u32,
    pub(crate) exp_stat_sn: u32,
}

/// Text Request, 11.10.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Text {
    pub(crate) data_len: u32,
    pub(crate) tag: u32,
    pub(crate) transfer_tag: u32,
    pub(crate) cmd_sn: u32,
    pub(crate) exp_stat_sn: u32,
}

/// Logout Request, 11.14, for the whole session, immediate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Logout {
    pub(crate) tag: u32,
    pub(crate) cmd_sn: u32,
    pub(crate) exp_stat_sn: u32,
}

/// NOP-Out, 11.18, immediate, the answer to a target's ping when `transfer_tag` is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NopOut {
    pub(crate) data_len: u32,
    pub(crate) lun: u64,
    pub(crate) tag: u32,
    pub(crate) transfer_tag: u32,
    pub(crate) cmd_sn: u32,
    pub(crate) exp_stat_sn: u32,
}

const IMMEDIATE: u8 = 0x40;
const FINAL: u8 = 0x80;

impl ScsiCommand {
    pub(crate) fn encode(&self) -> Header {
        let mut h = [0; BHS];
        h[0] = opcode::SCSI_COMMAND;
        // Bit 0 of the attribute field: SIMPLE.
        h[1] = u8::from(self.last) << 7 | u8::from(self.read) << 6 | u8::from(self.write) << 5 | 1;
        put_length(&mut h, self.data_len);
        put64(&mut h, 8, self.lun);
        put32(&mut h, 16, self.tag);
        put32(&mut h, 20, self.expected_len);
        put32(&mut h, 24, self.cmd_sn);
        put32(&mut h, 28, self.exp_stat_sn);
        h[32..48].copy_from_slice(&self.cdb);
        h
    }

    fn decode(h: &Header) -> ScsiCommand {
        let mut cdb = [0; 16];
        cdb.copy_from_slice(&h[32..48]);
        ScsiCommand {
            last: h[1] & FINAL != 0,
            read: h[1] & 0x40 != 0,
            write: h[1] & 0x20 != 0,
            data_len: super::data_length(h) as u32,
            lun: u64_at(h, 8),
            tag: u32_at(h, 16),
            expected_len: u32_at(h, 20),
            cmd_sn: u32_at(h, 24),
            exp_stat_sn: u32_at(h, 28),
            cdb,
        }
    }
}

impl DataOut {
    pub(crate) fn encode(&self) -> Header {
        let mut h = [0; BHS];
        h[0] = opcode::DATA_OUT;
        h[1] = u8::from(self.last) << 7;
        put_length(&mut h, self.data_len);
        put64(&mut h, 8, self.lun);
        put32(&mut h, 16, self.tag);
        put32(&mut h, 20, self.transfer_tag);
        put32(&mut h, 28, self.exp_stat_sn);
        put32(&mut h, 36, self.data_sn);
        put32(&mut h, 40, self.offset);
        h
    }

    fn decode(h: &Header) -> DataOut {
        DataOut {
            last: h[1] & FINAL != 0,
            data_len: super::data_length(h) as u32,
            lun: u64_at(h, 8),
            tag: u32_at(h, 16),
            transfer_tag: u32_at(h, 20),
            exp_stat_sn: u32_at(h, 28),
            data_sn: u32_at(h, 36),
            offset: u32_at(h, 40),
        }
    }
}

impl Login {
    pub(crate) fn encode(&self) -> Header {
        let mut h = [0; BHS];
        h[0] = opcode::LOGIN | IMMEDIATE;
        h[1] = u8::from(self.transit) << 7 | self.current << 2 | self.next;
        put_length(&mut h, self.data_len);
        h[8..14].copy_from_slice(&self.isid);
        put16(&mut h, 14, self.tsih);
        put32(&mut h, 16, self.tag);
        put32(&mut h, 24, self.cmd_sn);
        put32(&mut h, 28, self.exp_stat_sn);
        h
    }

    fn decode(h: &Header) -> Login {
        let mut isid = [0; 6];
        isid.copy_from_slice(&h[8..14]);
        Login {
            transit: h[1] & FINAL != 0,
            current: h[1] >> 2 & 3,
            next: h[1] & 3,
            data_len: super::data_length(h) as u32,
            isid,
            tsih: u16_at(h, 14),
            tag: u32_at(h, 16),
            cmd_sn: u32_at(h, 24),
            exp_stat_sn: u32_at(h, 28),
        }
    }
}

impl Text {
    pub(crate) fn encode(&self) -> Header {
        let mut h = [0; BHS];
        h[0] = opcode::TEXT;
        h[1] = FINAL;
        put_length(&mut h, self.data_len);
        put32(&mut h, 16, self.tag);
        put32(&mut h, 20, self.transfer_tag);
        put32(&mut h, 24, self.cmd_sn);
        put32(&mut h, 28, self.exp_stat_sn);
        h
    }

    fn decode(h: &Header) -> Text {
        Text {
            data_len: super::data_length(h) as u32,
            tag: u32_at(h, 16),
            transfer_tag: u32_at(h, 20),
            cmd_sn: u32_at(h, 24),
            exp_stat_sn: u32_at(h, 28),
        }
    }
}

impl Logout {
    pub(crate) fn encode(&self) -> Header {
        let mut h = [0; BHS];
        h[0] = opcode::LOGOUT | IMMEDIATE;
        h[1] = FINAL;
        put32(&mut h, 16, self.tag);
        put32(&mut h, 24, self.cmd_sn);
        put32(&mut h, 28, self.exp_stat_sn);
        h
    }

    fn decode(h: &Header) -> Logout {
        Logout { tag: u32_at(h, 16), cmd_sn: u32_at(h, 24), exp_stat_sn: u32_at(h, 28) }
    }
}

impl NopOut {
    pub(crate) fn encode(&self) -> Header {
        let mut h = [0; BHS];
        h[0] = opcode::NOP_OUT | IMMEDIATE;
        h[1] = FINAL;
        put_length(&mut h, self.data_len);
        put64(&mut h, 8, self.lun);
        put32(&mut h, 16, self.tag);
        put32(&mut h, 20, self.transfer_tag);
        put32(&mut h, 24, self.cmd_sn);
        put32(&mut h, 28, self.exp_stat_sn);
        h
    }

    fn decode(h: &Header) -> NopOut {
        NopOut {
            data_len: super::data_length(h) as u32,
            lun: u64_at(h, 8),
            tag: u32_at(h, 16),
            transfer_tag: u32_at(h, 20),
            cmd_sn: u32_at(h, 24),
            exp_stat_sn: u32_at(h, 28),
        }
    }
}

impl Request {
    pub(crate) fn decode(h: &Header) -> Request {
        match h[0] & 0x3f {
            opcode::SCSI_COMMAND => Request::Command(ScsiCommand::decode(h)),
            opcode::DATA_OUT => Request::DataOut(DataOut::decode(h)),
            opcode::LOGIN => Request::Login(Login::decode(h)),
            opcode::TEXT => Request::Text(Text::decode(h)),
            opcode::LOGOUT => Request::Logout(Logout::decode(h)),
            opcode::NOP_OUT => Request::NopOut(NopOut::decode(h)),
            other => Request::Other(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_command_has_the_bytes_of_the_standard() {
        let command = ScsiCommand {
            last: true,
            read: true,
            write: false,
            data_len: 0,
            lun: 0x0001_0000_0000_0000,
            tag: 0x11223344,
            expected_len: 4096,
            cmd_sn: 7,
            exp_stat_sn: 9,
            cdb: [0x28, 0, 0, 0, 0, 16, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0],
        };
        let h = command.encode();
        assert_eq!(&h[..12], &[0x01, 0xc1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(&h[16..32], &[0x11, 0x22, 0x33, 0x44, 0, 0, 0x10, 0, 0, 0, 0, 7, 0, 0, 0, 9]);
        assert_eq!(h[32], 0x28);
        assert_eq!(Request::decode(&h), Request::Command(command));
    }

    #[test]
    fn every_request_decodes_to_what_was_encoded() {
        let data_out = DataOut {
            last: true,
            data_len: 8192,
            lun: 0,
            tag: 3,
            transfer_tag: 4,
            exp_stat_sn: 5,
            data_sn: 6,
            offset: 65536,
        };
        assert_eq!(Request::decode(&data_out.encode()), Request::DataOut(data_out));
        let login = Login {
            transit: true,
            current: 1,
            next: 3,
            data_len: 300,
            isid: [0x80, 1, 2, 3, 4, 5],
            tsih: 0,
            tag: 1,
            cmd_sn: 1,
            exp_stat_sn: 0,
        };
        assert_eq!(login.encode()[1], 0x87);
        assert_eq!(Request::decode(&login.encode()), Request::Login(login));
        let text =
            Text { data_len: 16, tag: 2, transfer_tag: super::super::NO_TAG, cmd_sn: 3, exp_stat_sn: 4 };
        assert_eq!(Request::decode(&text.encode()), Request::Text(text));
        let logout = Logout { tag: 1, cmd_sn: 2, exp_stat_sn: 3 };
        assert_eq!(Request::decode(&logout.encode()), Request::Logout(logout));
        let nop = NopOut { data_len: 4, lun: 1, tag: 2, transfer_tag: 3, cmd_sn: 4, exp_stat_sn: 5 };
        assert_eq!(Request::decode(&nop.encode()), Request::NopOut(nop));
    }
}
