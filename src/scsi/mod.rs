//! SCSI (SPC-4, SBC-3, SAM-5), sans-IO: command descriptor blocks in, plans and answers out.
//!
//! Knows devices, units, nexuses, reservations, modes and sense data. Does not know iSCSI, images or files: a
//! [`UnitPlan`] names blocks of a unit, and whoever owns the data carries it out.

mod attention;
mod capacity;
mod cdb;
mod copy;
mod device;
mod identity;
mod inquiry;
mod inventory;
mod kept;
mod lun;
mod mode;
mod opcodes;
mod reply;
mod report_luns;
mod reservation;
mod reservation_data;
mod rod;
mod sanitize;
mod sense;
mod status;
mod unit;
mod unmap;
mod vpd;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod reservation_model;

pub mod fuzz;

pub use copy::{Copy, CopyDevice, CopyEnd, CopyLen, CopySegment};
pub use device::{Device, DeviceConfig, DeviceError, InitiatorPort, Nexus, UnitConfig};
pub use identity::{SERIAL_BYTES_MAX, UnitIdentity};
pub use kept::{KeptAtomic, KeptReservations, KeptUnit};
pub use lun::{Lun, LunError, REPORT_LUNS_WELL_KNOWN};
pub use reply::{LbaRun, UnitFault, UnitIndex, UnitPlan, UnitReply, lba_runs_max, lba_status};
pub use rod::{Populate, ROD_TOKEN_BYTES, RodEnd, RodOperation, RodSource, TokenWrite, rod_identifier};
pub use sanitize::{SanitizeMethod, Sanitizing};
pub use sense::{FieldPointer, SENSE_BYTES_MAX, Sense, SenseBytes, SenseFormat, SenseKey};
pub use status::ScsiStatus;
