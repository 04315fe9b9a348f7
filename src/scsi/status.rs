//! SCSI status codes (SAM-5, 5.3.1): the one byte that ends every command.
//!
//! Knows the codes. Does not know why a command got one (`sense`).

/// The status of a completed command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScsiStatus {
    Good,
    CheckCondition,
    ConditionMet,
    Busy,
    ReservationConflict,
    TaskSetFull,
    TaskAborted,
}

impl ScsiStatus {
    /// The byte on the wire.
    pub const fn code(self) -> u8 {
        match self {
            Self::Good => 0x00,
            Self::CheckCondition => 0x02,
            Self::ConditionMet => 0x04,
            Self::Busy => 0x08,
            Self::ReservationConflict => 0x18,
            Self::TaskSetFull => 0x28,
            Self::TaskAborted => 0x40,
        }
    }
}
