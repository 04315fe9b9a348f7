//! Opcodes (RFC 7143, 11.2.1.2): the lower six bits of the first byte.
//!
//! Knows the numbers. Does not know layouts.

/// What an initiator may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RequestOpcode {
    NopOut = 0x00,
    ScsiCommand = 0x01,
    TaskManagement = 0x02,
    Login = 0x03,
    Text = 0x04,
    DataOut = 0x05,
    Logout = 0x06,
    Snack = 0x10,
}

impl RequestOpcode {
    /// `None` for reserved, vendor-specific and target opcodes.
    pub const fn from_byte(opcode: u8) -> Option<Self> {
        Some(match opcode {
            0x00 => Self::NopOut,
            0x01 => Self::ScsiCommand,
            0x02 => Self::TaskManagement,
            0x03 => Self::Login,
            0x04 => Self::Text,
            0x05 => Self::DataOut,
            0x06 => Self::Logout,
            0x10 => Self::Snack,
            _ => return None,
        })
    }
}

/// What a target may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ResponseOpcode {
    NopIn = 0x20,
    ScsiResponse = 0x21,
    TaskManagement = 0x22,
    Login = 0x23,
    Text = 0x24,
    DataIn = 0x25,
    Logout = 0x26,
    R2t = 0x31,
    AsyncMessage = 0x32,
    Reject = 0x3F,
}

impl ResponseOpcode {
    /// `None` for reserved, vendor-specific and initiator opcodes.
    pub const fn from_byte(opcode: u8) -> Option<Self> {
        Some(match opcode {
            0x20 => Self::NopIn,
            0x21 => Self::ScsiResponse,
            0x22 => Self::TaskManagement,
            0x23 => Self::Login,
            0x24 => Self::Text,
            0x25 => Self::DataIn,
            0x26 => Self::Logout,
            0x31 => Self::R2t,
            0x32 => Self::AsyncMessage,
            0x3F => Self::Reject,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_byte_maps_to_itself() {
        for byte in 0..=0x3F {
            if let Some(opcode) = RequestOpcode::from_byte(byte) {
                assert_eq!(opcode as u8, byte);
                assert_eq!(ResponseOpcode::from_byte(byte), None);
            }
            if let Some(opcode) = ResponseOpcode::from_byte(byte) {
                assert_eq!(opcode as u8, byte);
            }
        }
    }
}
