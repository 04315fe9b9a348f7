//! The commands this device has, one table row each (SPC-4, SBC-3).
//!
//! Knows opcodes, service actions, which CDB bits matter, which must be zero, what a reservation does to a
//! command, and timeouts. Does not know what a command does (`unit`) nor its fields' meaning (`cdb`).
//!
//! Bits that are reserved, or that this device does not evaluate, are ignored (SPC-4, 4.2.5 lets a device server
//! choose): hosts set bits of later standards. Bits that ask for something the device does not have are refused.

use super::sense::Sense;

/// What a command is, apart from the length of its CDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Operation {
    TestUnitReady,
    RequestSense,
    Inquiry,
    ReportLuns,
    ReadCapacity10,
    ReadCapacity16,
    Read,
    Write,
    WriteAndVerify,
    Verify,
    CompareAndWrite,
    OrWrite,
    WriteAtomic,
    WriteSame,
    Unmap,
    Sanitize,
    ExtendedCopy,
    ReceiveCopyResults,
    PopulateToken,
    WriteUsingToken,
    ReceiveTokenInformation,
    SynchronizeCache,
    PreFetch,
    GetLbaStatus,
    ReadDefectData10,
    ReadDefectData12,
    ModeSense6,
    ModeSense10,
    ModeSelect6,
    ModeSelect10,
    StartStopUnit,
    PreventAllow,
    Reserve,
    Release,
    PersistentReserveIn,
    PersistentReserveOut,
    ReportTargetPortGroups,
    ReportSupportedOpcodes,
    ReportTaskManagement,
}

/// What a reservation held by another I_T nexus does to a command (SPC-4, table 66; SBC-3, table 12).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Access {
    /// Allowed always, under legacy reservations too.
    Any,
    /// Allowed under persistent reservations, refused under legacy ones.
    Status,
    /// Reads the medium or the unit's parameters: needs read access.
    Read,
    /// Changes the medium or the unit's parameters: needs write access.
    Write,
    /// PERSISTENT RESERVE IN and OUT judge for themselves; any legacy reservation refuses them.
    Persistent,
    /// START STOP UNIT: starting is `Any`, everything else is `Write`.
    StartStop,
    /// PREVENT ALLOW MEDIUM REMOVAL: allowing is `Any`, preventing is `Write`.
    Prevent,
    /// RESERVE and RELEASE judge for themselves.
    Legacy,
}

/// Nominal and recommended timeouts in seconds (SPC-4, 6.35.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timeouts {
    pub(super) nominal_s: u32,
    pub(super) recommended_s: u32,
}

const QUICK: Timeouts = Timeouts { nominal_s: 1, recommended_s: 10 };
const MEDIUM_IO: Timeouts = Timeouts { nominal_s: 5, recommended_s: 30 };
const HOURS: Timeouts = Timeouts { nominal_s: 600, recommended_s: 6 * 3600 };
const LONG_IO: Timeouts = Timeouts { nominal_s: 10, recommended_s: 60 };

/// CONTROL: NACA is evaluated and, like the obsolete LINK, refused.
const NACA: u8 = 0x04;
const CONTROL_REFUSED: u8 = 0x05;

/// RDPROTECT, WRPROTECT, VRPROTECT and ORPROTECT sit in the same place; there is no protection information.
const PROTECT: &[(u8, u8)] = &[(1, 0xE0)];

/// ZNR, and reserved bits a command that wipes a disk does not overlook.
const SANITIZE_RESERVED: &[(u8, u8)] = &[(1, 0x40), (2, 0xFF), (3, 0xFF), (4, 0xFF), (5, 0xFF), (6, 0xFF)];

/// What a unit has that not every unit has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Has {
    /// Thin provisioning.
    pub(super) thin: bool,
    /// A memory that outlives the process, and so atomic writes.
    pub(super) memory: bool,
}

impl Has {
    pub(super) const ALL: Self = Self { thin: true, memory: true };
}

/// One supported command.
#[derive(Debug)]
pub(super) struct Opcode {
    pub(super) code: u8,
    /// The low five bits of byte 1, for opcodes that have service actions.
    pub(super) service_action: Option<u8>,
    pub(super) operation: Operation,
    pub(super) access: Access,
    /// Fails with NOT READY while the medium of a removable unit is ejected.
    pub(super) needs_medium: bool,
    /// Fails with DATA PROTECT on a write-protected unit.
    pub(super) writes: bool,
    /// Only thin-provisioned units have it.
    pub(super) thin_only: bool,
    pub(super) timeouts: Timeouts,
    /// CDB usage data (SPC-4, 6.35.3): the opcode, then a mask of evaluated bits; its length is the CDB's.
    pub(super) usage: &'static [u8],
    /// (byte, mask) pairs that must be zero.
    refused: &'static [(u8, u8)],
}

impl Opcode {
    const fn new(operation: Operation, access: Access, usage: &'static [u8]) -> Self {
        Self {
            code: usage[0],
            service_action: None,
            operation,
            access,
            needs_medium: false,
            writes: false,
            thin_only: false,
            timeouts: QUICK,
            usage,
            refused: &[],
        }
    }

    /// A command that reads the medium.
    const fn read(operation: Operation, usage: &'static [u8]) -> Self {
        Self { needs_medium: true, timeouts: MEDIUM_IO, ..Self::new(operation, Access::Read, usage) }
    }

    /// A command that writes the medium.
    const fn write(operation: Operation, usage: &'static [u8]) -> Self {
        Self {
            needs_medium: true,
            writes: true,
            timeouts: MEDIUM_IO,
            ..Self::new(operation, Access::Write, usage)
        }
    }

    /// The service action is in the usage data already, in the low bits of byte 1.
    const fn service_action(mut self) -> Self {
        self.service_action = Some(self.usage[1] & 0x1F);
        self
    }

    const fn refusing(mut self, refused: &'static [(u8, u8)]) -> Self {
        self.refused = refused;
        self
    }

    const fn medium(mut self) -> Self {
        self.needs_medium = true;
        self
    }

    const fn long(mut self) -> Self {
        self.timeouts = LONG_IO;
        self
    }

    const fn hours(mut self) -> Self {
        self.timeouts = HOURS;
        self
    }

    const fn thin(mut self) -> Self {
        self.thin_only = true;
        self
    }

    fn exists(&self, has: Has) -> bool {
        (has.thin || !self.thin_only) && (has.memory || self.operation != Operation::WriteAtomic)
    }

    /// Bytes of the CDB.
    pub(super) const fn cdb_len(&self) -> usize {
        self.usage.len()
    }

    /// Refuses what no unit here can do, pointing at the first offending field.
    pub(super) fn check(&self, cdb: &[u8; 16]) -> Result<(), Sense> {
        let control = self.cdb_len() - 1;
        for (byte, mask) in self.refused.iter().copied().chain([(control as u8, CONTROL_REFUSED)]) {
            let wrong = cdb.get(usize::from(byte)).copied().unwrap_or(0) & mask;
            if wrong != 0 {
                return Err(Sense::cdb_field(u16::from(byte), 7 - wrong.leading_zeros() as u8));
            }
        }
        Ok(())
    }
}

use Access::{Any, Legacy, Persistent, Prevent, Read as ReadAccess, StartStop, Status, Write as WriteAccess};
use Operation as Op;

/// Sorted by opcode, then by service action.
#[rustfmt::skip]
pub(super) const OPCODES: &[Opcode] = &[
    Opcode::new(Op::TestUnitReady, Status, &[0x00, 0, 0, 0, 0, NACA]).medium(),
    Opcode::new(Op::RequestSense, Any, &[0x03, 0x01, 0, 0, 0xFF, NACA]),
    Opcode::read(Op::Read, &[0x08, 0x1F, 0xFF, 0xFF, 0xFF, NACA]),
    Opcode::write(Op::Write, &[0x0A, 0x1F, 0xFF, 0xFF, 0xFF, NACA]),
    // Bit 1 is the obsolete CMDDT.
    Opcode::new(Op::Inquiry, Any, &[0x12, 0x01, 0xFF, 0xFF, 0xFF, NACA]).refusing(&[(1, 0x02)]),
    Opcode::new(Op::ModeSelect6, WriteAccess, &[0x15, 0x11, 0, 0, 0xFF, NACA]),
    // Third-party and extent reservations are refused.
    Opcode::new(Op::Reserve, Legacy, &[0x16, 0, 0, 0, 0, NACA]).refusing(&[(1, 0x11)]),
    Opcode::new(Op::Release, Legacy, &[0x17, 0, 0, 0, 0, NACA]).refusing(&[(1, 0x11)]),
    Opcode::new(Op::ModeSense6, ReadAccess, &[0x1A, 0x08, 0xFF, 0xFF, 0xFF, NACA]),
    Opcode::new(Op::StartStopUnit, StartStop, &[0x1B, 0x01, 0, 0x0F, 0xF7, NACA]).long(),
    Opcode::new(Op::PreventAllow, Prevent, &[0x1E, 0, 0, 0, 0x03, NACA]),
    Opcode::new(Op::ReadCapacity10, Any, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, NACA]).medium(),
    Opcode::read(Op::Read, &[0x28, 0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, NACA]).refusing(PROTECT),
    Opcode::write(Op::Write, &[0x2A, 0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, NACA]).refusing(PROTECT),
    Opcode::write(Op::WriteAndVerify, &[0x2E, 0x16, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, NACA])
        .refusing(PROTECT),
    Opcode::read(Op::Verify, &[0x2F, 0x16, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, NACA]).refusing(PROTECT),
    Opcode::read(Op::PreFetch, &[0x34, 0x02, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, NACA]),
    Opcode::new(Op::SynchronizeCache, WriteAccess, &[0x35, 0x02, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, NACA])
        .medium().long(),
    Opcode::new(Op::ReadDefectData10, ReadAccess, &[0x37, 0, 0x1F, 0, 0, 0, 0, 0xFF, 0xFF, NACA]).medium(),
    // WRPROTECT, the obsolete PBDATA, LBDATA and RELADR.
    Opcode::write(Op::WriteSame, &[0x41, 0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, NACA])
        .refusing(&[(1, 0xE7)]).long(),
    Opcode::write(Op::Unmap, &[0x42, 0x01, 0, 0, 0, 0, 0, 0xFF, 0xFF, NACA]).thin().long(),
    Opcode::write(Op::Sanitize, &[0x48, 0xA1, 0, 0, 0, 0, 0, 0xFF, 0xFF, NACA])
        .service_action().refusing(SANITIZE_RESERVED).hours(),
    Opcode::write(Op::Sanitize, &[0x48, 0xA2, 0, 0, 0, 0, 0, 0xFF, 0xFF, NACA])
        .service_action().refusing(SANITIZE_RESERVED).hours(),
    Opcode::write(Op::Sanitize, &[0x48, 0xBF, 0, 0, 0, 0, 0, 0xFF, 0xFF, NACA])
        .service_action().refusing(SANITIZE_RESERVED),
    Opcode::new(Op::ModeSelect10, WriteAccess, &[0x55, 0x11, 0, 0, 0, 0, 0, 0xFF, 0xFF, NACA]),
    Opcode::new(Op::Reserve, Legacy, &[0x56, 0, 0, 0, 0, 0, 0, 0, 0, NACA]).refusing(&[(1, 0x13)]),
    Opcode::new(Op::Release, Legacy, &[0x57, 0, 0, 0, 0, 0, 0, 0, 0, NACA]).refusing(&[(1, 0x13)]),
    Opcode::new(Op::ModeSense10, ReadAccess, &[0x5A, 0x18, 0xFF, 0xFF, 0, 0, 0, 0xFF, 0xFF, NACA]),
    Opcode::new(Op::PersistentReserveIn, Persistent, &[0x5E, 0x00, 0, 0, 0, 0, 0, 0xFF, 0xFF, NACA])
        .service_action(),
    Opcode::new(Op::PersistentReserveIn, Persistent, &[0x5E, 0x01, 0, 0, 0, 0, 0, 0xFF, 0xFF, NACA])
        .service_action(),
    Opcode::new(Op::PersistentReserveIn, Persistent, &[0x5E, 0x02, 0, 0, 0, 0, 0, 0xFF, 0xFF, NACA])
        .service_action(),
    Opcode::new(Op::PersistentReserveIn, Persistent, &[0x5E, 0x03, 0, 0, 0, 0, 0, 0xFF, 0xFF, NACA])
        .service_action(),
    Opcode::new(Op::PersistentReserveOut, Persistent, &[0x5F, 0x00, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, NACA])
        .service_action(),
    Opcode::new(Op::PersistentReserveOut, Persistent, &[0x5F, 0x01, 0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, NACA])
        .service_action(),
    Opcode::new(Op::PersistentReserveOut, Persistent, &[0x5F, 0x02, 0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, NACA])
        .service_action(),
    Opcode::new(Op::PersistentReserveOut, Persistent, &[0x5F, 0x03, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, NACA])
        .service_action(),
    Opcode::new(Op::PersistentReserveOut, Persistent, &[0x5F, 0x04, 0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, NACA])
        .service_action(),
    Opcode::new(Op::PersistentReserveOut, Persistent, &[0x5F, 0x05, 0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, NACA])
        .service_action(),
    Opcode::new(Op::PersistentReserveOut, Persistent, &[0x5F, 0x06, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, NACA])
        .service_action(),
    Opcode::new(Op::PersistentReserveOut, Persistent, &[0x5F, 0x07, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, NACA])
        .service_action(),
    Opcode::new(Op::ExtendedCopy, WriteAccess, &[0x83, 0x00, 0, 0, 0, 0, 0, 0, 0, 0,
        0xFF, 0xFF, 0xFF, 0xFF, 0, NACA]).service_action().hours(),
    Opcode::read(Op::PopulateToken, &[0x83, 0x10, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF,
        0xFF, 0xFF, 0xFF, 0xFF, 0, NACA]).service_action().long(),
    Opcode::write(Op::WriteUsingToken, &[0x83, 0x11, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF,
        0xFF, 0xFF, 0xFF, 0xFF, 0, NACA]).service_action().hours(),
    Opcode::new(Op::ReceiveCopyResults, WriteAccess, &[0x84, 0x00, 0xFF, 0, 0, 0, 0, 0, 0, 0,
        0xFF, 0xFF, 0xFF, 0xFF, 0, NACA]).service_action(),
    Opcode::new(Op::ReceiveCopyResults, WriteAccess, &[0x84, 0x03, 0, 0, 0, 0, 0, 0, 0, 0,
        0xFF, 0xFF, 0xFF, 0xFF, 0, NACA]).service_action(),
    Opcode::new(Op::ReceiveCopyResults, WriteAccess, &[0x84, 0x04, 0xFF, 0, 0, 0, 0, 0, 0, 0,
        0xFF, 0xFF, 0xFF, 0xFF, 0, NACA]).service_action(),
    Opcode::new(Op::ReceiveTokenInformation, WriteAccess, &[0x84, 0x07, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0,
        0xFF, 0xFF, 0xFF, 0xFF, 0, NACA]).service_action(),
    Opcode::read(Op::Read, &[0x88, 0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
        0xFF, 0xFF, 0xFF, 0xFF, 0, NACA]).refusing(PROTECT),
    Opcode::write(Op::CompareAndWrite, &[0x89, 0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
        0, 0, 0, 0xFF, 0, NACA]).refusing(PROTECT),
    Opcode::write(Op::Write, &[0x8A, 0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
        0xFF, 0xFF, 0xFF, 0xFF, 0, NACA]).refusing(PROTECT),
    Opcode::write(Op::OrWrite, &[0x8B, 0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
        0xFF, 0xFF, 0xFF, 0xFF, 0, NACA]).refusing(PROTECT),
    Opcode::write(Op::WriteAndVerify, &[0x8E, 0x16, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
        0xFF, 0xFF, 0xFF, 0xFF, 0, NACA]).refusing(PROTECT),
    Opcode::read(Op::Verify, &[0x8F, 0x16, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
        0xFF, 0xFF, 0xFF, 0xFF, 0, NACA]).refusing(PROTECT),
    Opcode::read(Op::PreFetch, &[0x90, 0x02, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
        0xFF, 0xFF, 0xFF, 0xFF, 0, NACA]),
    Opcode::new(Op::SynchronizeCache, WriteAccess, &[0x91, 0x02, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
        0xFF, 0xFF, 0xFF, 0xFF, 0, NACA]).medium().long(),
    Opcode::write(Op::WriteSame, &[0x93, 0x19, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
        0xFF, 0xFF, 0xFF, 0xFF, 0, NACA]).refusing(&[(1, 0xE6)]).long(),
    // Reserved bits of the ATOMIC BOUNDARY are evaluated with it: there is none.
    Opcode::write(Op::WriteAtomic, &[0x9C, 0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
        0, 0, 0xFF, 0xFF, 0, NACA]).refusing(&[(1, 0xE0), (10, 0xFF), (11, 0xFF)]).long(),
    Opcode::new(Op::ReadCapacity16, Any, &[0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0,
        0xFF, 0xFF, 0xFF, 0xFF, 0, NACA]).medium().service_action(),
    Opcode::read(Op::GetLbaStatus, &[0x9E, 0x12, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
        0xFF, 0xFF, 0xFF, 0xFF, 0, NACA]).service_action(),
    Opcode::new(Op::ReportLuns, Any, &[0xA0, 0, 0xFF, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, NACA]),
    Opcode::new(Op::ReportTargetPortGroups, Any, &[0xA3, 0xEA, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, NACA])
        .service_action(),
    Opcode::new(Op::ReportSupportedOpcodes, ReadAccess,
        &[0xA3, 0x0C, 0x87, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, NACA]).service_action(),
    Opcode::new(Op::ReportTaskManagement, ReadAccess,
        &[0xA3, 0x0D, 0x80, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, NACA]).service_action(),
    Opcode::read(Op::Read, &[0xA8, 0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, NACA])
        .refusing(PROTECT),
    Opcode::write(Op::Write, &[0xAA, 0x18, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, NACA])
        .refusing(PROTECT),
    Opcode::write(Op::WriteAndVerify, &[0xAE, 0x16, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, NACA])
        .refusing(PROTECT),
    Opcode::read(Op::Verify, &[0xAF, 0x16, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, NACA])
        .refusing(PROTECT),
    Opcode::new(Op::ReadDefectData12, ReadAccess,
        &[0xB7, 0x1F, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, NACA]).medium(),
];

const NO_ROW: u8 = 0xFF;
const _: () = assert!(OPCODES.len() < NO_ROW as usize);

/// The first row of every opcode: one load finds a command without service actions.
static FIRST_ROW: [u8; 256] = first_rows();

const fn first_rows() -> [u8; 256] {
    let mut first = [NO_ROW; 256];
    let mut row = OPCODES.len();
    while row > 0 {
        row -= 1;
        first[OPCODES[row].code as usize] = row as u8;
    }
    first
}

/// The rows of one opcode: empty when there is no such command, several when it has service actions.
pub(super) fn rows_of(code: u8) -> &'static [Opcode] {
    let first = usize::from(FIRST_ROW[usize::from(code)]);
    let rest = OPCODES.get(first..).unwrap_or(&[]);
    let count = rest.iter().take_while(|row| row.code == code).count();
    rest.get(..count).unwrap_or(&[])
}

/// The row of a command on a unit that is thin or not.
///
/// # Errors
/// INVALID COMMAND OPERATION CODE; for an unknown service action INVALID FIELD IN CDB, pointing at it.
pub(super) fn find(cdb: &[u8; 16], has: Has) -> Result<&'static Opcode, Sense> {
    let row = OPCODES.get(usize::from(FIRST_ROW[usize::from(cdb[0])])).ok_or(Sense::INVALID_OPCODE)?;
    let row = match row.service_action {
        None => row,
        Some(_) => rows_of(cdb[0])
            .iter()
            .find(|row| row.service_action == Some(cdb[1] & 0x1F))
            .ok_or(Sense::cdb_field(1, 4))?,
    };
    if row.exists(has) { Ok(row) } else { Err(Sense::INVALID_OPCODE) }
}

/// Which commands REPORT SUPPORTED OPERATION CODES is asked about (SPC-4, table 231).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OpcodeQuery {
    All,
    /// 001b: an opcode without service actions.
    Opcode(u8),
    /// 010b: an opcode with a service action.
    ServiceAction(u8, u16),
    /// 011b: either.
    Either(u8, u16),
}

/// The parameter data of REPORT SUPPORTED OPERATION CODES (SPC-4, 6.35).
///
/// # Errors
/// INVALID FIELD IN CDB when the opcode has service actions and must not, or has none and must.
pub(super) fn report(query: OpcodeQuery, timeouts: bool, has: Has) -> Result<Vec<u8>, Sense> {
    const REPORTING_OPTIONS: Sense = Sense::cdb_field(2, 2);
    let (code, action) = match query {
        OpcodeQuery::All => return Ok(report_all(timeouts, has)),
        OpcodeQuery::Opcode(code) => (code, None),
        OpcodeQuery::ServiceAction(code, action) | OpcodeQuery::Either(code, action) => (code, Some(action)),
    };
    let rows = rows_of(code);
    let has_actions = rows.first().is_some_and(|row| row.service_action.is_some());
    match query {
        OpcodeQuery::Opcode(_) if has_actions => return Err(REPORTING_OPTIONS),
        OpcodeQuery::ServiceAction(..) if !rows.is_empty() && !has_actions => return Err(REPORTING_OPTIONS),
        _ => {}
    }
    let wanted = if has_actions { action } else { action.filter(|action| *action != 0) };
    let row =
        rows.iter().filter(|row| row.exists(has)).find(|row| row.service_action.map(u16::from) == wanted);
    Ok(report_one(row, timeouts))
}

fn report_all(timeouts: bool, has: Has) -> Vec<u8> {
    let mut data = vec![0; 4];
    for row in OPCODES.iter().filter(|row| row.exists(has)) {
        let flags = u8::from(row.service_action.is_some()) | if timeouts { 0x02 } else { 0 };
        let [size_high, size_low] = (row.cdb_len() as u16).to_be_bytes();
        data.extend([row.code, 0, 0, row.service_action.unwrap_or(0), 0, flags, size_high, size_low]);
        if timeouts {
            data.extend(row.timeouts.descriptor());
        }
    }
    let len = (data.len() - 4) as u32;
    data[..4].copy_from_slice(&len.to_be_bytes());
    data
}

fn report_one(row: Option<&Opcode>, timeouts: bool) -> Vec<u8> {
    const NOT_SUPPORTED: u8 = 0b001;
    const AS_THE_STANDARD_SAYS: u8 = 0b011;
    let Some(row) = row else {
        return vec![0, NOT_SUPPORTED, 0, 0];
    };
    let descriptor_follows = if timeouts { 0x80 } else { 0 };
    let mut data = vec![0, AS_THE_STANDARD_SAYS | descriptor_follows];
    data.extend((row.cdb_len() as u16).to_be_bytes());
    data.extend(row.usage);
    if timeouts {
        data.extend(row.timeouts.descriptor());
    }
    data
}

impl Timeouts {
    /// The command timeouts descriptor (SPC-4, table 236).
    fn descriptor(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[1] = 0x0A;
        bytes[4..8].copy_from_slice(&self.nominal_s.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.recommended_s.to_be_bytes());
        bytes
    }
}

/// The parameter data of REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-4, 6.36).
///
/// ABORT TASK, ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET and TARGET RESET: what iSCSI carries. CLEAR ACA
/// is left out, as NORMACA is zero.
pub(super) fn report_task_management(extended: bool) -> Vec<u8> {
    let mut data = vec![0; if extended { 16 } else { 4 }];
    data[0] = 0x80 | 0x40 | 0x10 | 0x08 | 0x02;
    if extended {
        data[3] = 0x0C;
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sorted_and_unique() {
        let keys: Vec<_> = OPCODES.iter().map(|row| (row.code, row.service_action)).collect();
        assert!(keys.windows(2).all(|pair| pair[0] < pair[1]), "{keys:02x?}");
    }

    #[test]
    fn cdb_lengths_follow_the_group_code() {
        for row in OPCODES {
            let expected = match row.code >> 5 {
                0 => 6,
                1 | 2 => 10,
                4 => 16,
                5 => 12,
                group => panic!("opcode {:02x} is in group {group}", row.code),
            };
            assert_eq!(row.cdb_len(), expected, "opcode {:02x}", row.code);
        }
    }

    #[test]
    fn refused_bits_are_not_reported_as_usable() {
        for row in OPCODES {
            for (byte, mask) in row.refused {
                let usable = row.usage[usize::from(*byte)];
                assert_eq!(usable & mask, 0, "opcode {:02x} byte {byte}", row.code);
            }
        }
    }

    #[test]
    fn an_unknown_service_action_is_an_invalid_field() {
        let mut cdb = [0; 16];
        cdb[0] = 0x5E;
        for action in 4..0x20 {
            cdb[1] = action;
            assert_eq!(find(&cdb, Has::ALL).unwrap_err(), Sense::cdb_field(1, 4));
        }
        cdb[0] = 0x7F;
        assert_eq!(find(&cdb, Has::ALL).unwrap_err(), Sense::INVALID_OPCODE);
    }

    #[test]
    fn unmap_exists_only_on_thin_units() {
        let mut cdb = [0; 16];
        cdb[0] = 0x42;
        assert!(find(&cdb, Has::ALL).is_ok());
        assert_eq!(find(&cdb, Has { thin: false, ..Has::ALL }).unwrap_err(), Sense::INVALID_OPCODE);
        assert_eq!(
            report(OpcodeQuery::Opcode(0x42), false, Has { thin: false, ..Has::ALL }).unwrap(),
            [0, 1, 0, 0]
        );
    }

    #[test]
    fn naca_and_protection_are_refused_with_a_field_pointer() {
        let mut cdb = [0; 16];
        cdb[0] = 0x28;
        cdb[9] = 0x04;
        let row = find(&cdb, Has::ALL).unwrap();
        assert_eq!(row.check(&cdb), Err(Sense::cdb_field(9, 2)));
        cdb[9] = 0;
        cdb[1] = 0x20;
        assert_eq!(row.check(&cdb), Err(Sense::cdb_field(1, 5)));
        cdb[1] = 0x02 | 0x18;
        assert_eq!(row.check(&cdb), Ok(()), "FUA_NV is obsolete and ignored");
    }

    #[test]
    fn every_listed_command_answers_the_right_one_command_form() {
        for row in OPCODES {
            let action = u16::from(row.service_action.unwrap_or(0));
            let alone = report(OpcodeQuery::Opcode(row.code), true, Has::ALL);
            let with = report(OpcodeQuery::ServiceAction(row.code, action), true, Has::ALL);
            let (good, bad) = if row.service_action.is_some() { (with, alone) } else { (alone, with) };
            assert!(bad.is_err(), "opcode {:02x}", row.code);
            let good = good.unwrap();
            assert_eq!(good[1], 0x83);
            assert_eq!(good.len(), 4 + row.cdb_len() + 12);
            assert_eq!(good[4..4 + row.cdb_len()], *row.usage);
            assert_eq!(report(OpcodeQuery::Either(row.code, action), true, Has::ALL).unwrap(), good);
        }
        assert_eq!(report(OpcodeQuery::Either(0x28, 1), false, Has::ALL).unwrap(), [0, 1, 0, 0]);
        assert_eq!(report(OpcodeQuery::Opcode(0xEE), false, Has::ALL).unwrap(), [0, 1, 0, 0]);
    }

    #[test]
    fn the_list_of_all_commands_has_a_descriptor_each() {
        let plain = report(OpcodeQuery::All, false, Has::ALL).unwrap();
        assert_eq!(plain.len(), 4 + 8 * OPCODES.len());
        let timed = report(OpcodeQuery::All, true, Has::ALL).unwrap();
        assert_eq!(timed.len(), 4 + 20 * OPCODES.len());
        assert_eq!(timed[..4], ((timed.len() - 4) as u32).to_be_bytes());
        assert!(timed[4..].chunks(20).all(|row| row[5] & 0x02 != 0 && row[9] == 0x0A));
        assert!(plain[4..].chunks(8).all(|row| row[5] & 0x01 != 0 || row[3] == 0));
    }
}
