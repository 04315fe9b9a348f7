//! iSCSI PDUs as plain values (RFC 7143, section 11): opcodes, sizes and byte access shared by both directions.
//!
//! Knows the parts of the 48-byte header that every PDU has. Does not know sockets, sessions or SCSI.

mod reply;
mod request;

pub(crate) use reply::{
    DataIn, LoginResponse, LogoutResponse, NopIn, R2t, Reply, ScsiResponse, TextResponse, Window,
};
pub(crate) use request::{DataOut, Login, Logout, NopOut, Request, ScsiCommand, Text};

/// Bytes of the basic header segment.
pub(crate) const BHS: usize = 48;
/// The tag that stands for "no task".
pub(crate) const NO_TAG: u32 = 0xffff_ffff;

pub(crate) type Header = [u8; BHS];

pub(crate) mod opcode {
    pub(crate) const NOP_OUT: u8 = 0x00;
    pub(crate) const SCSI_COMMAND: u8 = 0x01;
    pub(crate) const LOGIN: u8 = 0x03;
    pub(crate) const TEXT: u8 = 0x04;
    pub(crate) const DATA_OUT: u8 = 0x05;
    pub(crate) const LOGOUT: u8 = 0x06;
    pub(crate) const NOP_IN: u8 = 0x20;
    pub(crate) const SCSI_RESPONSE: u8 = 0x21;
    pub(crate) const LOGIN_RESPONSE: u8 = 0x23;
    pub(crate) const TEXT_RESPONSE: u8 = 0x24;
    pub(crate) const DATA_IN: u8 = 0x25;
    pub(crate) const LOGOUT_RESPONSE: u8 = 0x26;
    pub(crate) const R2T: u8 = 0x31;
    pub(crate) const ASYNC: u8 = 0x32;
    pub(crate) const REJECT: u8 = 0x3f;
}

/// Length of the data segment as the header states it.
pub(crate) fn data_length(header: &Header) -> usize {
    usize::from(header[5]) << 16 | usize::from(header[6]) << 8 | usize::from(header[7])
}

/// Length of the additional header segments as the header states it.
pub(crate) fn ahs_length(header: &Header) -> usize {
    usize::from(header[4]) * 4
}

/// A data segment of `len` bytes is padded to this many on the wire.
pub(crate) fn padded(len: usize) -> usize {
    len.next_multiple_of(4)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn put32(header: &mut Header, at: usize, value: u32) {
    header[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn put64(header: &mut Header, at: usize, value: u64) {
    header[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

fn put16(header: &mut Header, at: usize, value: u16) {
    header[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn put_length(header: &mut Header, len: u32) {
    debug_assert!(len < 1 << 24);
    header[5..8].copy_from_slice(&len.to_be_bytes()[1..]);
}

/// `a` is at or before `b` in the serial number arithmetic of RFC 1982.
pub(crate) fn serial_le(a: u32, b: u32) -> bool {
    b.wrapping_sub(a) < 1 << 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_order_survives_the_wrap() {
        assert!(serial_le(5, 5));
        assert!(serial_le(0xffff_fff0, 3));
        assert!(!serial_le(3, 0xffff_fff0));
    }

    #[test]
    fn lengths_are_read_from_their_bytes() {
        let mut header = [0; BHS];
        put_length(&mut header, 0x01_02_03);
        header[4] = 2;
        assert_eq!(data_length(&header), 0x010203);
        assert_eq!(ahs_length(&header), 8);
        assert_eq!(padded(5), 8);
        assert_eq!(padded(8), 8);
    }
}
