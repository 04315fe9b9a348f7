//! Command descriptor blocks: bytes become a [`Command`] once (SPC-4, 4.2; SBC-3, 5).
//!
//! Knows field offsets of every supported CDB and refuses field values that no unit could accept. Does not know
//! capacities, reservations or modes (`unit`).

use super::opcodes::{Opcode, OpcodeQuery, Operation};
use super::sense::Sense;
use crate::units::{BlockCount, BlockRange, Lba};

/// The longest CDB here; a shorter one is padded with zeros for reading.
pub(super) const CDB_BYTES_MAX: usize = 16;

/// A CDB, padded to sixteen bytes; bytes beyond are of no supported command.
pub(super) fn padded(bytes: &[u8]) -> [u8; CDB_BYTES_MAX] {
    let mut cdb = [0; CDB_BYTES_MAX];
    let len = bytes.len().min(CDB_BYTES_MAX);
    cdb[..len].copy_from_slice(&bytes[..len]);
    cdb
}

/// The operation codes of a command with CDBs of ten and of sixteen bytes.
pub(super) const READS: [u8; 2] = [0x28, 0x88];
pub(super) const WRITES: [u8; 2] = [0x2A, 0x8A];

/// The blocks of a READ or WRITE of ten or sixteen bytes that asks for nothing else: byte 1 and CONTROL are zero.
pub(super) fn plain_transfer(cdb: &[u8; CDB_BYTES_MAX], codes: [u8; 2]) -> Option<BlockRange> {
    let [code, 0, rest @ ..] = cdb else { return None };
    let (lba, count) = match (codes.iter().position(|known| known == code)?, rest) {
        (0, [a, b, c, d, _, e, f, 0, ..]) => {
            (u64::from(u32::from_be_bytes([*a, *b, *c, *d])), u64::from(u16::from_be_bytes([*e, *f])))
        }
        (1, [a, b, c, d, e, f, g, h, i, j, k, l, _, 0]) => (
            u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]),
            u64::from(u32::from_be_bytes([*i, *j, *k, *l])),
        ),
        _ => return None,
    };
    Some(BlockRange { start: Lba(lba), count: BlockCount(count) })
}

/// Blocks a command addresses, and where in the CDB it says so (for field pointers).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) lba: Lba,
    pub(super) count: BlockCount,
    pub(super) lba_byte: u8,
    pub(super) count_byte: u8,
}

impl Extent {
    pub(super) fn range(self) -> BlockRange {
        BlockRange { start: self.lba, count: self.count }
    }
}

/// BYTCHK of VERIFY and WRITE AND VERIFY (SBC-3, 5.30).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ByteCheck {
    /// Medium verification only: no data-out.
    Medium,
    /// Compare every block with its data-out.
    Compare,
    /// Compare every block with one block of data-out.
    CompareOne,
}

/// PC of MODE SENSE (SPC-4, table 190).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PageControl {
    Current,
    Changeable,
    Default,
    Saved,
}

/// PERSISTENT RESERVE IN service actions (SPC-4, table 212).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PersistentIn {
    ReadKeys,
    ReadReservation,
    ReportCapabilities,
    ReadFullStatus,
}

/// PERSISTENT RESERVE OUT service actions (SPC-4, table 223).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PersistentOut {
    Register,
    Reserve,
    Release,
    Clear,
    Preempt,
    PreemptAndAbort,
    RegisterAndIgnore,
    RegisterAndMove,
}

/// SANITIZE service actions (SBC-4, table 111). Nothing here is encrypted, so there are no keys to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SanitizeAction {
    Overwrite,
    BlockErase,
    ExitFailureMode,
}

/// RECEIVE COPY RESULTS service actions (SPC-4, table 252).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CopyResults {
    Status,
    OperatingParameters,
    FailedSegment,
}

/// START STOP UNIT, as far as a disk without moving parts cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StartStop {
    pub(super) start: bool,
    /// LOEJ: with `start` load the medium, without it eject.
    pub(super) load_eject: bool,
    pub(super) no_flush: bool,
    pub(super) immediate: bool,
    /// POWER CONDITION; when not zero, START and LOEJ are ignored.
    pub(super) power_condition: u8,
}

/// A command whose fields are in range by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    TestUnitReady,
    RequestSense {
        descriptor: bool,
        allocation: u32,
    },
    Inquiry {
        page: Option<u8>,
        allocation: u32,
    },
    ReportLuns {
        select: u8,
        allocation: u32,
    },
    ReadCapacity10,
    ReadCapacity16 {
        allocation: u32,
    },
    Read {
        extent: Extent,
        fua: bool,
    },
    Write {
        extent: Extent,
        fua: bool,
        verify: bool,
    },
    Verify {
        extent: Extent,
        check: ByteCheck,
    },
    CompareAndWrite {
        extent: Extent,
        fua: bool,
    },
    OrWrite {
        extent: Extent,
        fua: bool,
    },
    WriteAtomic {
        extent: Extent,
    },
    WriteSame {
        extent: Extent,
        unmap: bool,
        no_data: bool,
    },
    Unmap {
        len: u32,
    },
    SynchronizeCache {
        extent: Extent,
        immediate: bool,
    },
    PreFetch {
        extent: Extent,
        immediate: bool,
    },
    Sanitize {
        action: SanitizeAction,
        immediate: bool,
        may_exit: bool,
        len: u32,
    },
    ExtendedCopy {
        len: u32,
    },
    ReceiveCopyResults {
        what: CopyResults,
        list: u8,
        allocation: u32,
    },
    PopulateToken {
        list: u32,
        len: u32,
    },
    WriteUsingToken {
        list: u32,
        len: u32,
    },
    ReceiveTokenInformation {
        list: u32,
        allocation: u32,
    },
    GetLbaStatus {
        start: Lba,
        allocation: u32,
    },
    ReadDefectData {
        short: bool,
        lists: u8,
        allocation: u32,
    },
    ModeSense {
        short: bool,
        dbd: bool,
        long_lba: bool,
        control: PageControl,
        page: u8,
        subpage: u8,
        allocation: u32,
    },
    ModeSelect {
        short: bool,
        /// SP: the values outlive the process.
        save: bool,
        len: u32,
    },
    StartStopUnit(StartStop),
    PreventAllow {
        prevent: bool,
    },
    Reserve,
    Release,
    PersistentReserveIn {
        action: PersistentIn,
        allocation: u32,
    },
    PersistentReserveOut {
        action: PersistentOut,
        scope: u8,
        kind: u8,
        len: u32,
    },
    ReportTargetPortGroups {
        extended: bool,
        allocation: u32,
    },
    ReportSupportedOpcodes {
        query: OpcodeQuery,
        timeouts: bool,
        allocation: u32,
    },
    ReportTaskManagement {
        extended: bool,
        allocation: u32,
    },
}

/// Fields of a CDB whose length is known to cover them (it is padded).
struct Fields<'a> {
    bytes: &'a [u8; CDB_BYTES_MAX],
    group: u8,
}

impl Fields<'_> {
    fn bit(&self, byte: usize, mask: u8) -> bool {
        self.bytes.get(byte).copied().unwrap_or(0) & mask != 0
    }

    fn be16(&self, at: usize) -> u32 {
        self.number(at, 2) as u32
    }

    fn be32(&self, at: usize) -> u32 {
        self.number(at, 4) as u32
    }

    fn be64(&self, at: usize) -> u64 {
        self.number(at, 8)
    }

    fn number(&self, at: usize, len: usize) -> u64 {
        let field = self.bytes.get(at..at + len).unwrap_or(&[]);
        field.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// LBA and length, where every read-like and write-like CDB of that length has them.
    fn extent(&self) -> Extent {
        let (lba, count, lba_byte, count_byte) = match self.group {
            0 => {
                // Zero means 256 (SBC-3, 5.8).
                let count = match self.bytes[4] {
                    0 => 256,
                    count => u64::from(count),
                };
                (self.number(1, 3) & 0x1F_FFFF, count, 1, 4)
            }
            1 | 2 => (u64::from(self.be32(2)), u64::from(self.be16(7)), 2, 7),
            5 => (u64::from(self.be32(2)), u64::from(self.be32(6)), 2, 6),
            _ => (self.be64(2), u64::from(self.be32(10)), 2, 10),
        };
        Extent { lba: Lba(lba), count: BlockCount(count), lba_byte, count_byte }
    }

    /// FUA of the long forms; the six-byte forms have none.
    fn fua(&self) -> bool {
        self.group != 0 && self.bit(1, 0x08)
    }

    fn byte_check(&self) -> Result<ByteCheck, Sense> {
        match self.bytes[1] >> 1 & 0b11 {
            0b00 => Ok(ByteCheck::Medium),
            0b01 => Ok(ByteCheck::Compare),
            0b11 => Ok(ByteCheck::CompareOne),
            _ => Err(Sense::cdb_field(1, 2)),
        }
    }
}

/// Reads the fields of a command whose row has been found and checked.
///
/// # Errors
/// INVALID FIELD IN CDB with a field pointer.
pub(super) fn decode(row: &Opcode, bytes: &[u8; CDB_BYTES_MAX]) -> Result<Command, Sense> {
    let fields = Fields { bytes, group: row.code >> 5 };
    let extent = || fields.extent();
    Ok(match row.operation {
        Operation::Read => Command::Read { extent: extent(), fua: fields.fua() },
        Operation::Write => Command::Write { extent: extent(), fua: fields.fua(), verify: false },
        Operation::WriteAndVerify => {
            // BYTCHK 11b is for VERIFY alone.
            if fields.byte_check()? == ByteCheck::CompareOne {
                return Err(Sense::cdb_field(1, 2));
            }
            Command::Write { extent: extent(), fua: true, verify: true }
        }
        Operation::Verify => Command::Verify { extent: extent(), check: fields.byte_check()? },
        Operation::SynchronizeCache => {
            Command::SynchronizeCache { extent: extent(), immediate: fields.bit(1, 0x02) }
        }
        Operation::PreFetch => Command::PreFetch { extent: extent(), immediate: fields.bit(1, 0x02) },
        Operation::CompareAndWrite => compare_and_write(&fields),
        Operation::OrWrite => Command::OrWrite { extent: extent(), fua: fields.fua() },
        Operation::WriteAtomic => write_atomic(&fields),
        Operation::WriteSame => return write_same(&fields),
        Operation::Unmap => return unmap(&fields),
        Operation::Sanitize => return sanitize(&fields),
        Operation::ExtendedCopy => Command::ExtendedCopy { len: fields.be32(10) },
        Operation::ReceiveCopyResults => return receive_copy_results(&fields),
        Operation::PopulateToken => Command::PopulateToken { list: fields.be32(6), len: fields.be32(10) },
        Operation::WriteUsingToken => Command::WriteUsingToken { list: fields.be32(6), len: fields.be32(10) },
        Operation::ReceiveTokenInformation => {
            Command::ReceiveTokenInformation { list: fields.be32(2), allocation: fields.be32(10) }
        }
        Operation::TestUnitReady => Command::TestUnitReady,
        Operation::Reserve => Command::Reserve,
        Operation::Release => Command::Release,
        Operation::ReadCapacity10 => Command::ReadCapacity10,
        Operation::ReadCapacity16 => Command::ReadCapacity16 { allocation: fields.be32(10) },
        Operation::GetLbaStatus => {
            Command::GetLbaStatus { start: Lba(fields.be64(2)), allocation: fields.be32(10) }
        }
        Operation::RequestSense => {
            Command::RequestSense { descriptor: fields.bit(1, 0x01), allocation: u32::from(bytes[4]) }
        }
        Operation::Inquiry => return inquiry(&fields),
        Operation::ReportLuns => return report_luns(&fields),
        Operation::ReadDefectData10 => {
            Command::ReadDefectData { short: true, lists: bytes[2] & 0x1F, allocation: fields.be16(7) }
        }
        Operation::ReadDefectData12 => {
            Command::ReadDefectData { short: false, lists: bytes[1] & 0x1F, allocation: fields.be32(6) }
        }
        Operation::ModeSense6 => mode_sense(&fields, true, u32::from(bytes[4])),
        Operation::ModeSense10 => mode_sense(&fields, false, fields.be16(7)),
        Operation::ModeSelect6 => return mode_select(&fields, true, u32::from(bytes[4])),
        Operation::ModeSelect10 => return mode_select(&fields, false, fields.be16(7)),
        Operation::StartStopUnit => Command::StartStopUnit(start_stop(&fields)),
        Operation::PreventAllow => return prevent_allow(&fields),
        Operation::PersistentReserveIn => return persistent_in(&fields),
        Operation::PersistentReserveOut => return persistent_out(&fields),
        Operation::ReportTargetPortGroups => return report_target_port_groups(&fields),
        Operation::ReportSupportedOpcodes => return report_supported_opcodes(&fields),
        Operation::ReportTaskManagement => return report_task_management(&fields),
    })
}

fn compare_and_write(fields: &Fields<'_>) -> Command {
    let extent = Extent {
        lba: Lba(fields.be64(2)),
        count: BlockCount(u64::from(fields.bytes[13])),
        lba_byte: 2,
        count_byte: 13,
    };
    Command::CompareAndWrite { extent, fua: fields.fua() }
}

fn write_atomic(fields: &Fields<'_>) -> Command {
    let (lba, count) = (Lba(fields.be64(2)), BlockCount(u64::from(fields.be16(12))));
    Command::WriteAtomic { extent: Extent { lba, count, lba_byte: 2, count_byte: 12 } }
}

fn write_same(fields: &Fields<'_>) -> Result<Command, Sense> {
    // ANCHOR: no unit can anchor blocks (ANC_SUP is zero).
    if fields.bit(1, 0x10) {
        return Err(Sense::cdb_field(1, 4));
    }
    let no_data = fields.group == 4 && fields.bit(1, 0x01);
    Ok(Command::WriteSame { extent: fields.extent(), unmap: fields.bit(1, 0x08), no_data })
}

fn unmap(fields: &Fields<'_>) -> Result<Command, Sense> {
    if fields.bit(1, 0x01) {
        return Err(Sense::cdb_field(1, 0));
    }
    Ok(Command::Unmap { len: fields.be16(7) })
}

fn sanitize(fields: &Fields<'_>) -> Result<Command, Sense> {
    let action = match fields.bytes[1] & 0x1F {
        0x01 => SanitizeAction::Overwrite,
        0x02 => SanitizeAction::BlockErase,
        0x1F => SanitizeAction::ExitFailureMode,
        _ => return Err(Sense::cdb_field(1, 4)),
    };
    let (immediate, may_exit) = (fields.bit(1, 0x80), fields.bit(1, 0x20));
    Ok(Command::Sanitize { action, immediate, may_exit, len: fields.be16(7) })
}

fn receive_copy_results(fields: &Fields<'_>) -> Result<Command, Sense> {
    let what = match fields.bytes[1] & 0x1F {
        0 => CopyResults::Status,
        3 => CopyResults::OperatingParameters,
        4 => CopyResults::FailedSegment,
        _ => return Err(Sense::cdb_field(1, 4)),
    };
    Ok(Command::ReceiveCopyResults { what, list: fields.bytes[2], allocation: fields.be32(10) })
}

fn inquiry(fields: &Fields<'_>) -> Result<Command, Sense> {
    let page = fields.bytes[2];
    let vital = fields.bit(1, 0x01);
    if !vital && page != 0 {
        return Err(Sense::cdb_field(2, 7));
    }
    Ok(Command::Inquiry { page: vital.then_some(page), allocation: fields.be16(3) })
}

fn report_luns(fields: &Fields<'_>) -> Result<Command, Sense> {
    let select = fields.bytes[2];
    if select > 2 {
        return Err(Sense::cdb_field(2, 7));
    }
    let allocation = fields.be32(6);
    if allocation < 16 {
        return Err(Sense::cdb_field(6, 7));
    }
    Ok(Command::ReportLuns { select, allocation })
}

fn mode_sense(fields: &Fields<'_>, short: bool, allocation: u32) -> Command {
    let control = match fields.bytes[2] >> 6 {
        0b00 => PageControl::Current,
        0b01 => PageControl::Changeable,
        0b10 => PageControl::Default,
        _ => PageControl::Saved,
    };
    Command::ModeSense {
        short,
        dbd: fields.bit(1, 0x08),
        long_lba: !short && fields.bit(1, 0x10),
        control,
        page: fields.bytes[2] & 0x3F,
        subpage: fields.bytes[3],
        allocation,
    }
}

fn mode_select(fields: &Fields<'_>, short: bool, len: u32) -> Result<Command, Sense> {
    // PF zero announces vendor-specific pages: there are none.
    if !fields.bit(1, 0x10) {
        return Err(Sense::cdb_field(1, 4));
    }
    Ok(Command::ModeSelect { short, save: fields.bit(1, 0x01), len })
}

fn start_stop(fields: &Fields<'_>) -> StartStop {
    StartStop {
        start: fields.bit(4, 0x01),
        load_eject: fields.bit(4, 0x02),
        no_flush: fields.bit(4, 0x04),
        immediate: fields.bit(1, 0x01),
        power_condition: fields.bytes[4] >> 4,
    }
}

fn prevent_allow(fields: &Fields<'_>) -> Result<Command, Sense> {
    match fields.bytes[4] & 0x03 {
        0 => Ok(Command::PreventAllow { prevent: false }),
        1 => Ok(Command::PreventAllow { prevent: true }),
        _ => Err(Sense::cdb_field(4, 1)),
    }
}

fn persistent_in(fields: &Fields<'_>) -> Result<Command, Sense> {
    let action = match fields.bytes[1] & 0x1F {
        0 => PersistentIn::ReadKeys,
        1 => PersistentIn::ReadReservation,
        2 => PersistentIn::ReportCapabilities,
        3 => PersistentIn::ReadFullStatus,
        _ => return Err(Sense::cdb_field(1, 4)),
    };
    Ok(Command::PersistentReserveIn { action, allocation: fields.be16(7) })
}

fn persistent_out(fields: &Fields<'_>) -> Result<Command, Sense> {
    let action = match fields.bytes[1] & 0x1F {
        0 => PersistentOut::Register,
        1 => PersistentOut::Reserve,
        2 => PersistentOut::Release,
        3 => PersistentOut::Clear,
        4 => PersistentOut::Preempt,
        5 => PersistentOut::PreemptAndAbort,
        6 => PersistentOut::RegisterAndIgnore,
        7 => PersistentOut::RegisterAndMove,
        _ => return Err(Sense::cdb_field(1, 4)),
    };
    Ok(Command::PersistentReserveOut {
        action,
        scope: fields.bytes[2] >> 4,
        kind: fields.bytes[2] & 0x0F,
        len: fields.be32(5),
    })
}

fn report_target_port_groups(fields: &Fields<'_>) -> Result<Command, Sense> {
    let extended = match fields.bytes[1] >> 5 {
        0 => false,
        1 => true,
        _ => return Err(Sense::cdb_field(1, 7)),
    };
    Ok(Command::ReportTargetPortGroups { extended, allocation: fields.be32(6) })
}

fn report_supported_opcodes(fields: &Fields<'_>) -> Result<Command, Sense> {
    let code = fields.bytes[3];
    let action = fields.be16(4) as u16;
    let query = match fields.bytes[2] & 0x07 {
        0 => OpcodeQuery::All,
        1 => OpcodeQuery::Opcode(code),
        2 => OpcodeQuery::ServiceAction(code, action),
        3 => OpcodeQuery::Either(code, action),
        _ => return Err(Sense::cdb_field(2, 2)),
    };
    Ok(Command::ReportSupportedOpcodes { query, timeouts: fields.bit(2, 0x80), allocation: fields.be32(6) })
}

fn report_task_management(fields: &Fields<'_>) -> Result<Command, Sense> {
    let allocation = fields.be32(6);
    if allocation < 4 {
        return Err(Sense::cdb_field(6, 7));
    }
    Ok(Command::ReportTaskManagement { extended: fields.bit(2, 0x80), allocation })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::opcodes::find;

    fn command(bytes: &[u8]) -> Result<Command, Sense> {
        let cdb = padded(bytes);
        let row = find(&cdb, crate::scsi::opcodes::Has::ALL)?;
        row.check(&cdb)?;
        decode(row, &cdb)
    }

    fn extent(bytes: &[u8]) -> (u64, u64) {
        match command(bytes).unwrap() {
            Command::Read { extent, .. } | Command::Write { extent, .. } => (extent.lba.0, extent.count.0),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn read_lengths_and_addresses_of_all_sizes() {
        assert_eq!(extent(&[0x08, 0xFF, 0xFF, 0xFF, 0, 0]), (0x1F_FFFF, 256));
        assert_eq!(extent(&[0x0A, 0, 0, 5, 1, 0]), (5, 1));
        assert_eq!(extent(&[0x28, 0, 1, 2, 3, 4, 0, 5, 6, 0]), (0x0102_0304, 0x0506));
        assert_eq!(extent(&[0xA8, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0]), (0x0102_0304, 0x0506_0708));
        assert_eq!(
            extent(&[0x88, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0]),
            (0x0102_0304_0506_0708, 0x090A_0B0C)
        );
    }

    #[test]
    fn byte_check_two_is_reserved() {
        for code in [0x2F, 0x8F, 0xAF, 0x2E, 0x8E, 0xAE] {
            assert_eq!(command(&[code, 0x04]), Err(Sense::cdb_field(1, 2)));
        }
        assert_eq!(command(&[0x2E, 0x06]), Err(Sense::cdb_field(1, 2)));
        assert!(matches!(command(&[0x2F, 0x06]), Ok(Command::Verify { check: ByteCheck::CompareOne, .. })));
    }

    #[test]
    fn inquiry_with_a_page_but_without_evpd_is_an_invalid_field() {
        assert_eq!(command(&[0x12, 0, 0x80, 0, 255, 0]), Err(Sense::cdb_field(2, 7)));
        assert_eq!(command(&[0x12, 2, 0, 0, 255, 0]), Err(Sense::cdb_field(1, 1)));
        let good = Command::Inquiry { page: Some(0x80), allocation: 0x1FF };
        assert_eq!(command(&[0x12, 1, 0x80, 1, 255, 0]), Ok(good));
    }

    #[test]
    fn report_luns_wants_sixteen_bytes() {
        assert_eq!(command(&[0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 15, 0, 0]), Err(Sense::cdb_field(6, 7)));
        assert_eq!(command(&[0xA0, 0, 3, 0, 0, 0, 0, 0, 0, 16, 0, 0]), Err(Sense::cdb_field(2, 7)));
        assert!(command(&[0xA0, 0, 2, 0, 0, 0, 0, 0, 0, 16, 0, 0]).is_ok());
    }

    #[test]
    fn anchor_needs_support() {
        assert_eq!(command(&[0x42, 1]), Err(Sense::cdb_field(1, 0)));
        assert_eq!(command(&[0x93, 0x18]), Err(Sense::cdb_field(1, 4)));
        assert_eq!(command(&[0x41, 0x10]), Err(Sense::cdb_field(1, 4)));
    }

    #[test]
    fn ndob_is_a_bit_of_write_same_16_only() {
        assert!(matches!(command(&[0x93, 0x01]), Ok(Command::WriteSame { no_data: true, .. })));
        assert_eq!(command(&[0x41, 0x01]), Err(Sense::cdb_field(1, 0)));
    }
}
