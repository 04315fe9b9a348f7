//! A SCSI target device: the units behind one iSCSI target name, and the I_T nexuses that may use them.
//!
//! Knows who is attached, which LUN is which unit, and what a wrong LUN gets. Does not know sessions (a nexus is a
//! slot that the shard gives) nor images.

use super::attention::UnitAttention;
use super::cdb::{self, Command};
use super::copy::{CopyDevice, CopyEnd};
use super::identity::{SERIAL_BYTES_MAX, UnitIdentity};
use super::inquiry::{self, Peripheral};
use super::kept::{KeptAtomic, KeptUnit};
use super::lun::{Lun, REPORT_LUNS_WELL_KNOWN};
use super::opcodes::{self, Operation};
use super::reply::{UnitFault, UnitIndex, UnitPlan, UnitReply};
use super::report_luns;
use super::rod::{ROD_TOKEN_BYTES, RodEnd, RodOperation};
use super::sanitize::SanitizeMethod;
use super::sense::{Sense, SenseFormat};
use super::status::ScsiStatus;
use super::unit::{LogicalUnit, Surroundings};
use crate::limits;
use crate::units::{BlockRange, BlockSize, Lba};

/// An I_T nexus of one device: a slot below `limits::NEXUSES_PER_TARGET_MAX`, re-used after it is detached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nexus(pub u32);

impl Nexus {
    pub(super) const fn slot(self) -> usize {
        self.0 as usize
    }

    pub(super) fn from_slot(slot: usize) -> Option<Self> {
        u32::try_from(slot).ok().map(Self)
    }
}

/// The initiator's end of a nexus: its iSCSI name and the ISID of the session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InitiatorPort {
    pub name: String,
    pub isid: [u8; 6],
}

impl core::fmt::Display for InitiatorPort {
    /// The name of a SCSI initiator port in iSCSI: `name,i,0x` and the ISID (RFC 7143, 4.4.1).
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{},i,0x", self.name)?;
        self.isid.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The target's end of every nexus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TargetPort {
    pub(super) target_name: String,
    /// `target,t,0x` and the portal group tag.
    pub(super) name: String,
    /// Relative target port and target port group identifier; never zero.
    pub(super) relative_id: u16,
}

impl TargetPort {
    pub(super) fn new(target_name: &str, portal_group: u16) -> Self {
        Self {
            target_name: target_name.to_owned(),
            name: format!("{target_name},t,0x{portal_group:04x}"),
            relative_id: portal_group.max(1),
        }
    }
}

/// One unit, as it is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitConfig {
    pub identity: UnitIdentity,
    pub block_size: BlockSize,
    /// Logical blocks; at least one.
    pub blocks: u64,
    /// Logical blocks in a physical block, as an exponent of two: 3 is 512e, at most 15.
    pub physical_exponent: u8,
    pub read_only: bool,
    /// Thin provisioned: UNMAP exists, and unmapped blocks read as zeros.
    pub thin: bool,
    /// The medium can be ejected.
    pub removable: bool,
    /// WRITE SAME without a length writes up to the last block (WSNZ is zero) instead of being refused.
    pub write_same_to_end: bool,
    /// What an earlier run kept for it; `None`: there is no place to keep anything in, and APTPL is refused.
    pub kept: Option<KeptUnit>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    pub target_name: String,
    /// Target portal group tag.
    pub portal_group: u16,
    pub units: Vec<UnitConfig>,
}

/// Why a device cannot be set up, or a nexus not attached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    #[error("target {target} has {count} LUNs; at most {} fit", limits::UNITS_PER_TARGET_MAX)]
    TooManyUnits { target: String, count: usize },
    #[error("target {target} has LUN {} twice; give each unit its own number", .lun.number())]
    DuplicateLun { target: String, lun: Lun },
    #[error("LUN {} of target {target} has no blocks; its image must hold at least one logical block", .lun.number())]
    NoBlocks { target: String, lun: Lun },
    #[error("LUN {} of target {target}: a physical block of 2^{exponent} logical blocks is too large; use 0 to 15", .lun.number())]
    PhysicalBlock { target: String, lun: Lun, exponent: u8 },
    #[error(
        "LUN {} of target {target}: a serial number is 1 to {} printable ASCII characters",
        .lun.number(), SERIAL_BYTES_MAX
    )]
    Serial { target: String, lun: Lun },
    #[error("nexus slot {slot} is beyond the {} of a target", limits::NEXUSES_PER_TARGET_MAX)]
    NexusSlot { slot: u32 },
}

/// One iSCSI target's units and nexuses.
#[derive(Debug)]
pub struct Device {
    target_port: TargetPort,
    /// A `UnitIndex` is a place here. At first they are sorted by LUN.
    pub(super) units: Vec<LogicalUnit>,
    /// Places of units that were taken away and are forgotten.
    pub(super) vacant: Vec<UnitIndex>,
    pub(super) ports: Vec<Option<InitiatorPort>>,
    /// The units that are hidden from a nexus, as bits; a slot beyond the end sees all.
    hidden: Vec<UnitSet>,
}

/// A bit for each place of a device. While units are exchanged there are two for each.
type UnitSet = [u64; (2 * limits::UNITS_PER_TARGET_MAX).div_ceil(64)];

impl Device {
    /// Units keep the order of their LUNs, whatever the order of `config.units`: see [`Device::unit`].
    ///
    /// # Errors
    /// One sentence about the first unit that cannot be.
    pub fn new(config: DeviceConfig) -> Result<Self, DeviceError> {
        let DeviceConfig { target_name, portal_group, mut units } = config;
        if units.len() > limits::UNITS_PER_TARGET_MAX {
            return Err(DeviceError::TooManyUnits { target: target_name, count: units.len() });
        }
        units.sort_by_key(|unit| unit.identity.lun);
        for (place, unit) in units.iter().enumerate() {
            check_unit(&target_name, unit)?;
            if place > 0 && units[place - 1].identity.lun == unit.identity.lun {
                return Err(DeviceError::DuplicateLun { target: target_name, lun: unit.identity.lun });
            }
        }
        let indexed = units.iter().zip(0..).map(|(unit, index)| LogicalUnit::new(UnitIndex(index), unit));
        Ok(Self {
            target_port: TargetPort::new(&target_name, portal_group),
            units: indexed.collect(),
            vacant: Vec::new(),
            ports: Vec::new(),
            hidden: Vec::new(),
        })
    }

    /// A new I_T nexus; what was in the slot before is detached. Every unit tells it of a reset first (29h/00h).
    ///
    /// # Errors
    /// The slot is beyond `limits::NEXUSES_PER_TARGET_MAX`.
    pub fn attach(&mut self, nexus: Nexus, port: InitiatorPort) -> Result<(), DeviceError> {
        if nexus.slot() >= limits::NEXUSES_PER_TARGET_MAX {
            return Err(DeviceError::NexusSlot { slot: nexus.0 });
        }
        self.detach(nexus);
        if self.ports.len() <= nexus.slot() {
            self.ports.resize(nexus.slot() + 1, None);
        }
        self.units.iter_mut().for_each(|unit| unit.attach(nexus, &port));
        self.ports[nexus.slot()] = Some(port);
        Ok(())
    }

    /// I_T nexus loss: legacy reservations, PREVENT and unit attentions of the nexus go; registrations stay.
    pub fn detach(&mut self, nexus: Nexus) {
        if let Some(port) = self.ports.get_mut(nexus.slot())
            && port.take().is_some()
        {
            self.units.iter_mut().for_each(|unit| unit.detach(nexus));
            self.show(nexus, &[]);
        }
    }

    /// LUN masking: the nexus sees the units whose place holds true, and those beyond the end. The others do not exist
    /// for it: REPORT LUNS leaves them out, and commands to them are answered as for a LUN without a unit. True when
    /// that was otherwise before.
    pub fn show(&mut self, nexus: Nexus, visible: &[bool]) -> bool {
        let mut hidden = UnitSet::default();
        for (place, _) in visible.iter().enumerate().take(self.units.len()).filter(|(_, seen)| !**seen) {
            hidden[place / 64] |= 1 << (place % 64);
        }
        if self.hidden.len() <= nexus.slot() {
            if hidden == UnitSet::default() || nexus.slot() >= limits::NEXUSES_PER_TARGET_MAX {
                return false;
            }
            self.hidden.resize(nexus.slot() + 1, UnitSet::default());
        }
        core::mem::replace(&mut self.hidden[nexus.slot()], hidden) != hidden
    }

    fn sees(&self, nexus: Nexus, unit: UnitIndex) -> bool {
        let place = unit.0 as usize;
        self.hidden.get(nexus.slot()).is_none_or(|hidden| hidden[place / 64] & 1 << (place % 64) == 0)
    }

    /// The unit a LUN field names, if the nexus may see it.
    pub fn unit_for(&self, nexus: Nexus, lun_field: [u8; 8]) -> Option<UnitIndex> {
        self.unit(lun_field).filter(|unit| self.sees(nexus, *unit))
    }

    /// The list of LUNs is another one for the nexus now (3Fh/0Eh).
    pub fn luns_changed(&mut self, nexus: Nexus) {
        self.units.iter_mut().for_each(|unit| unit.raise(nexus, UnitAttention::ReportedLunsChanged));
    }

    /// The unit a LUN field names.
    pub fn unit(&self, lun_field: [u8; 8]) -> Option<UnitIndex> {
        let lun = Lun::from_field(lun_field).ok()?;
        // Nearly every target has few units, and LUN 0 comes first.
        let place = self.units.iter().position(|unit| unit.is_present() && unit.lun() == lun)?;
        u32::try_from(place).ok().map(UnitIndex)
    }

    pub fn target_name(&self) -> &str {
        &self.target_port.target_name
    }

    /// The LUN of a unit, or of the one that was there last.
    pub fn lun(&self, unit: UnitIndex) -> Option<Lun> {
        self.units.get(unit.0 as usize).map(LogicalUnit::lun)
    }

    pub fn units(&self) -> impl Iterator<Item = UnitIndex> + use<> {
        (0..self.units.len() as u32).map(UnitIndex)
    }

    /// The size of a unit's logical blocks.
    pub fn block_size(&self, unit: UnitIndex) -> Option<BlockSize> {
        self.units.get(unit.0 as usize).map(|unit| unit.geometry().block_size)
    }

    /// How many of these blocks the unit has.
    pub fn blocks(&self, unit: UnitIndex) -> u64 {
        self.units.get(unit.0 as usize).map_or(0, |unit| unit.geometry().blocks)
    }

    /// Decides everything about a command that needs no data. A nexus that is not attached gets BUSY.
    pub fn plan(&mut self, nexus: Nexus, lun_field: [u8; 8], cdb: &[u8]) -> UnitPlan {
        if !self.is_attached(nexus) {
            return UnitPlan::Done(UnitReply::status(ScsiStatus::Busy));
        }
        // The list spans units, so it is not a unit's to give; it answers whatever unit attention is pending.
        if cdb.first() == Some(&0xA0)
            && let Some(plan) = self.report_luns(nexus, lun_field, cdb)
        {
            return plan;
        }
        let Some(index) = self.unit_for(nexus, lun_field) else {
            return UnitPlan::Done(absent(cdb));
        };
        let around = Surroundings { target_port: &self.target_port, ports: &self.ports };
        match self.units.get_mut(index.0 as usize) {
            Some(unit) => unit.plan(nexus, cdb, around),
            None => UnitPlan::Done(absent(cdb)),
        }
    }

    /// The blocks of a READ that nothing of its unit stands in the way of: [`Self::plan`] would answer
    /// [`UnitPlan::Read`] without FUA, and change nothing. `None` says nothing about the command.
    pub fn plain_read(
        &self,
        nexus: Nexus,
        lun_field: [u8; 8],
        cdb: &[u8; 16],
    ) -> Option<(UnitIndex, BlockRange)> {
        if !self.is_attached(nexus) {
            return None;
        }
        let unit = self.unit_for(nexus, lun_field)?;
        let range = self.units.get(unit.0 as usize)?.plain_read(nexus, cdb)?;
        Some((unit, range))
    }

    /// The blocks of a WRITE that nothing of its unit stands in the way of: [`Self::plan`] would answer
    /// [`UnitPlan::Write`] without FUA, and change nothing. `None` says nothing about the command.
    pub fn plain_write(
        &self,
        nexus: Nexus,
        lun_field: [u8; 8],
        cdb: &[u8; 16],
    ) -> Option<(UnitIndex, BlockRange)> {
        if !self.is_attached(nexus) {
            return None;
        }
        let unit = self.unit_for(nexus, lun_field)?;
        let range = self.units.get(unit.0 as usize)?.plain_write(nexus, cdb)?;
        Some((unit, range))
    }

    /// The parameter list of a [`UnitPlan::Parameter`] has come.
    pub fn parameter(&mut self, nexus: Nexus, lun_field: [u8; 8], cdb: &[u8], list: &[u8]) -> UnitPlan {
        if !self.is_attached(nexus) {
            return UnitPlan::Done(UnitReply::status(ScsiStatus::Busy));
        }
        let index = self.unit_for(nexus, lun_field);
        let around = Surroundings { target_port: &self.target_port, ports: &self.ports };
        match index.and_then(|index| self.units.get_mut(index.0 as usize)) {
            Some(unit) => unit.parameter(nexus, cdb, list, around),
            None => UnitPlan::Done(absent(cdb)),
        }
    }

    /// What a planned operation that failed answers. `lba`: the block in error, where known.
    pub fn io_failed(&self, unit: UnitIndex, fault: UnitFault, lba: Option<Lba>) -> UnitReply {
        let sense = match fault {
            UnitFault::Read => Sense::UNRECOVERED_READ_ERROR,
            UnitFault::Write => Sense::WRITE_ERROR,
            UnitFault::NoSpace => Sense::SPACE_ALLOCATION_FAILED,
            UnitFault::ReadOnly => Sense::WRITE_PROTECTED,
            UnitFault::Miscompare { offset } => Sense::MISCOMPARE.with_information(offset),
            // It is the CDB's length that does not fit what the initiator announced to send.
            UnitFault::DataOutLength => Sense::INVALID_FIELD_IN_CDB,
            UnitFault::PartialBlock => Sense::INVALID_DATA_OUT_LENGTH,
            UnitFault::Internal => Sense::INTERNAL_TARGET_FAILURE,
        };
        let with_lba = match (lba, sense.information) {
            (Some(lba), None) => sense.at(lba),
            _ => sense,
        };
        match self.units.get(unit.0 as usize) {
            Some(unit) => unit.check(with_lba),
            None => UnitReply::check(with_lba),
        }
    }

    /// The unit a copy names, if it is one of this device that the nexus may see.
    pub fn copy_device(&self, nexus: Nexus, device: &CopyDevice) -> Option<UnitIndex> {
        let place = self.units.iter().position(|unit| unit.is_present() && unit.is_copy_device(device))?;
        Some(UnitIndex(place as u32)).filter(|unit| self.sees(nexus, *unit))
    }

    /// Whether a copy of this nexus may read, or write, these blocks of the unit now.
    ///
    /// # Errors
    /// What the copy ends with.
    pub fn may_copy(
        &self,
        nexus: Nexus,
        unit: UnitIndex,
        range: BlockRange,
        writes: bool,
    ) -> Result<(), Sense> {
        let unit = self.units.get(unit.0 as usize).ok_or(Sense::COPY_UNREACHABLE)?;
        if !self.is_attached(nexus) {
            return Err(Sense::COPY_UNREACHABLE);
        }
        unit.may_copy(nexus, range, writes)
    }

    /// The copy with this list identifier has ended.
    pub fn copy_ended(&mut self, nexus: Nexus, unit: UnitIndex, list: u8, end: CopyEnd) {
        if let Some(unit) = self.units.get_mut(unit.0 as usize) {
            unit.copy_ended(nexus, list, end);
        }
    }

    /// The POPULATE TOKEN or WRITE USING TOKEN has ended.
    pub fn rod_ended(&mut self, unit: UnitIndex, operation: RodOperation, end: RodEnd) {
        if let Some(unit) = self.units.get_mut(unit.0 as usize) {
            unit.rod_ended(operation, end);
        }
    }

    /// A token for `bytes` bytes of the unit: its maker finds it by `identifier`, and nobody guesses `secret`.
    pub fn token(
        &self,
        unit: UnitIndex,
        identifier: [u8; 8],
        bytes: u64,
        secret: [u8; 32],
    ) -> Option<Box<[u8; ROD_TOKEN_BYTES]>> {
        let unit = self.units.get(unit.0 as usize)?;
        Some(unit.token(&self.target_port.target_name, identifier, bytes, secret))
    }

    /// Whether blocks of the unit that a token stands for can be read now.
    ///
    /// # Errors
    /// What the command ends with.
    pub fn may_read_rod(&self, unit: UnitIndex) -> Result<(), Sense> {
        self.units.get(unit.0 as usize).ok_or(Sense::COPY_UNREACHABLE)?.may_read_rod()
    }

    /// Writes of the unit are to be stable before they are answered.
    pub fn writes_through(&self, unit: UnitIndex) -> bool {
        self.units.get(unit.0 as usize).is_some_and(LogicalUnit::writes_through)
    }

    /// The sanitize operation that this unit's last run has begun and not ended.
    pub fn interrupted_sanitize(&self, unit: UnitIndex) -> Option<SanitizeMethod> {
        self.units.get(unit.0 as usize)?.interrupted_sanitize()
    }

    /// So many of 65536 parts are done.
    pub fn sanitize_progress(&mut self, unit: UnitIndex, parts: u16) {
        if let Some(unit) = self.units.get_mut(unit.0 as usize) {
            unit.sanitize_progress(parts);
        }
    }

    /// An atomic write is about to begin: what the unit must remember before it does.
    pub fn atomic_begun(&mut self, unit: UnitIndex, atomic: &KeptAtomic) -> KeptUnit {
        self.units.get_mut(unit.0 as usize).map(|unit| unit.atomic_begun(atomic)).unwrap_or_default()
    }

    /// It has ended, and is stable: what the unit must remember before it is answered.
    pub fn atomic_ended(&mut self, unit: UnitIndex) -> KeptUnit {
        self.units.get_mut(unit.0 as usize).map(LogicalUnit::atomic_ended).unwrap_or_default()
    }

    /// The atomic write that this unit's last run has begun and perhaps not ended: until it is done the unit is not
    /// ready.
    pub fn interrupted_atomic(&self, unit: UnitIndex) -> Option<&KeptAtomic> {
        self.units.get(unit.0 as usize)?.interrupted_atomic()
    }

    /// The sanitize operation has ended; what the unit remembers now is returned where it is to be written down.
    pub fn sanitize_ended(&mut self, unit: UnitIndex, well: bool) -> Option<KeptUnit> {
        self.units.get_mut(unit.0 as usize)?.sanitize_ended(well)
    }

    /// LOGICAL UNIT RESET. Every nexus hears of it (SAM-5, 6.3.3), also the one that asked for it.
    pub fn reset_unit(&mut self, unit: UnitIndex) {
        if let Some(unit) = self.units.get_mut(unit.0 as usize) {
            unit.reset(UnitAttention::UnitReset);
        }
    }

    /// Target reset, warm or cold: every unit.
    pub fn reset(&mut self) {
        self.units.iter_mut().for_each(|unit| unit.reset(UnitAttention::TargetReset));
    }

    /// Commands of `victim` ended because another initiator cleared the task set; with TAS zero they get no status,
    /// so it hears of it this way (2Fh/00h).
    pub fn aborted_by_other(&mut self, victim: Nexus, unit: UnitIndex) {
        if let Some(unit) = self.units.get_mut(unit.0 as usize) {
            unit.raise(victim, UnitAttention::CommandsCleared);
        }
    }

    /// Commands of `victim` ended because the transport lost the way to answer them (RFC 7143, 11.14.5: SOME COMMANDS
    /// CLEARED BY ISCSI PROTOCOL EVENT).
    pub fn cleared_by_transport(&mut self, victim: Nexus, unit: UnitIndex) {
        if let Some(unit) = self.units.get_mut(unit.0 as usize) {
            unit.raise(victim, UnitAttention::CommandsClearedByTransport);
        }
    }

    /// The image behind a unit has another size now; zero is ignored.
    pub fn capacity_changed(&mut self, unit: UnitIndex, blocks: u64) {
        if let Some(unit) = self.units.get_mut(unit.0 as usize)
            && blocks > 0
        {
            unit.set_blocks(blocks);
        }
    }

    fn is_attached(&self, nexus: Nexus) -> bool {
        matches!(self.ports.get(nexus.slot()), Some(Some(_)))
    }

    /// REPORT LUNS of LUN 0, which answers even when there is no unit 0, of the well known unit, and of every unit.
    /// `None`: the address or the CDB is wrong, and the usual way of refusing it applies.
    fn report_luns(&mut self, nexus: Nexus, lun_field: [u8; 8], cdb: &[u8]) -> Option<UnitPlan> {
        let answers = lun_field == REPORT_LUNS_WELL_KNOWN
            || Lun::from_field(lun_field) == Ok(Lun::ZERO)
            || self.unit_for(nexus, lun_field).is_some();
        let padded = cdb::padded(cdb);
        let row = opcodes::find(&padded, opcodes::Has::ALL).ok()?;
        if !answers || cdb.len() < row.cdb_len() {
            return None;
        }
        let command = row.check(&padded).and_then(|()| cdb::decode(row, &padded));
        let (select, allocation) = match command {
            Ok(Command::ReportLuns { select, allocation }) => (select, allocation),
            Ok(_) => return None,
            Err(_) if self.unit_for(nexus, lun_field).is_some() => return None,
            Err(sense) => return Some(UnitPlan::Done(UnitReply::check(sense))),
        };
        let changed = UnitAttention::ReportedLunsChanged;
        self.units.iter_mut().for_each(|unit| unit.clear_attention(nexus, changed));
        let seen = self
            .units
            .iter()
            .zip(0..)
            .filter(|(unit, place)| unit.is_present() && self.sees(nexus, UnitIndex(*place)));
        let mut luns: Vec<Lun> = seen.map(|(unit, _)| unit.lun()).collect();
        luns.sort();
        let data = report_luns::report(select, luns.into_iter());
        Some(UnitPlan::Done(UnitReply::data(data, allocation)))
    }
}

pub(super) fn check_unit(target_name: &str, unit: &UnitConfig) -> Result<(), DeviceError> {
    let (target, lun) = (target_name.to_owned(), unit.identity.lun);
    if unit.blocks == 0 {
        return Err(DeviceError::NoBlocks { target, lun });
    }
    if unit.physical_exponent > 15 {
        return Err(DeviceError::PhysicalBlock { target, lun, exponent: unit.physical_exponent });
    }
    let printable = |serial: &String| {
        (1..=SERIAL_BYTES_MAX).contains(&serial.len())
            && serial.bytes().all(|byte| (0x20..0x7F).contains(&byte))
    };
    if unit.identity.serial.as_ref().is_some_and(|serial| !printable(serial)) {
        return Err(DeviceError::Serial { target, lun });
    }
    Ok(())
}

/// What a LUN without a unit answers (SPC-4, 6.6.1 and 6.39): INQUIRY says so in its data, REQUEST SENSE in the sense
/// data it returns, everything else in its status.
fn absent(cdb: &[u8]) -> UnitReply {
    let padded = cdb::padded(cdb);
    let decoded = opcodes::find(&padded, opcodes::Has::ALL)
        .and_then(|row| row.check(&padded).map(|()| row))
        .and_then(|row| cdb::decode(row, &padded).map(|command| (row.operation, command)));
    match decoded {
        Ok((Operation::Inquiry, Command::Inquiry { page: None, allocation })) => {
            UnitReply::data(inquiry::standard(Peripheral::Absent), allocation)
        }
        Ok((Operation::Inquiry, Command::Inquiry { page: Some(0), allocation })) => {
            UnitReply::data(vec![0x7F, 0, 0, 1, 0], allocation)
        }
        Ok((Operation::Inquiry, _)) => UnitReply::check(Sense::cdb_field(2, 7)),
        Ok((Operation::RequestSense, Command::RequestSense { descriptor, allocation })) => {
            let format = if descriptor { SenseFormat::Descriptor } else { SenseFormat::Fixed };
            let sense = Sense::LOGICAL_UNIT_NOT_SUPPORTED.in_format(format);
            UnitReply::data(sense.encode().as_slice().to_vec(), allocation)
        }
        _ => UnitReply::check(Sense::LOGICAL_UNIT_NOT_SUPPORTED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::fixture::{A, B, Bench, READ_10, TEST_UNIT_READY, codes, done, port, unit_config};

    const LUN_5: [u8; 8] = [0, 5, 0, 0, 0, 0, 0, 0];
    const REPORT_LUNS: [u8; 12] = [0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];

    #[test]
    fn a_missing_lun_answers_inquiry_and_request_sense_only() {
        let mut bench = Bench::new();
        let mut plan = |cdb: &[u8]| bench.device.plan(A, LUN_5, cdb);
        assert_eq!(done(plan(&[0x12, 0, 0, 0, 96, 0])).data[0], 0x7F);
        assert_eq!(done(plan(&[0x12, 1, 0, 0, 96, 0])).data, [0x7F, 0, 0, 1, 0]);
        assert_eq!(codes(plan(&[0x12, 1, 0x83, 0, 96, 0])), (5, 0x24, 0));
        let sense = done(plan(&[0x03, 0, 0, 0, 18, 0]));
        assert_eq!(sense.status, ScsiStatus::Good);
        assert_eq!((sense.data[2], sense.data[12]), (5, 0x25));
        assert_eq!(codes(plan(&TEST_UNIT_READY)), (5, 0x25, 0));
        assert_eq!(codes(plan(&READ_10)), (5, 0x25, 0));
        assert_eq!(codes(plan(&REPORT_LUNS)), (5, 0x25, 0));
        assert_eq!(codes(plan(&[0xFF; 6])), (5, 0x25, 0));
        assert_eq!(codes(bench.device.parameter(A, LUN_5, &[0x42; 10], &[])), (5, 0x25, 0));
    }

    #[test]
    fn lun_zero_reports_luns_even_where_there_is_no_unit_zero() {
        let mut bench = Bench::of(vec![unit_config(5), unit_config(1)]);
        bench.attach(A);
        bench.device.reset();
        let expected = [0, 0, 0, 16, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0];
        for field in [[0; 8], LUN_5, REPORT_LUNS_WELL_KNOWN] {
            assert_eq!(done(bench.device.plan(A, field, &REPORT_LUNS)).data, expected);
        }
        let mut short = REPORT_LUNS;
        short[8..10].copy_from_slice(&[0, 15]);
        assert_eq!(codes(bench.device.plan(A, [0; 8], &short)), (5, 0x24, 0));
        assert_eq!(codes(bench.device.plan(A, [0; 8], &REPORT_LUNS[..6])), (5, 0x25, 0));
        assert_eq!(codes(bench.device.plan(A, [0; 8], &TEST_UNIT_READY)), (5, 0x25, 0));
    }

    #[test]
    fn every_addressing_form_reaches_the_unit() {
        let mut bench = Bench::of(vec![unit_config(5), unit_config(300)]);
        bench.attach(A);
        let five = bench.device.unit(LUN_5);
        assert_eq!(five, Some(UnitIndex(0)));
        assert_eq!(bench.device.unit([0x40, 5, 0, 0, 0, 0, 0, 0]), five);
        assert_eq!(bench.device.unit([0x41, 0x2C, 0, 0, 0, 0, 0, 0]), Some(UnitIndex(1)));
        assert_eq!(bench.device.unit([1, 5, 0, 0, 0, 0, 0, 0]), None);
        let plan = bench.device.plan(A, [0x41, 0x2C, 0, 0, 0, 0, 0, 0], &READ_10);
        assert!(matches!(plan, UnitPlan::Read { unit: UnitIndex(1), .. }));
    }

    #[test]
    fn a_hidden_unit_does_not_exist_for_its_nexus() {
        let mut bench = Bench::of(vec![unit_config(0), unit_config(5)]);
        bench.attach(A);
        bench.attach(B);
        assert!(bench.device.show(A, &[true, false]));
        assert!(!bench.device.show(A, &[true, false]), "nothing new");
        let listed = |bench: &mut Bench, nexus| done(bench.device.plan(nexus, [0; 8], &REPORT_LUNS)).data;
        assert_eq!(listed(&mut bench, A), [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(listed(&mut bench, B)[..4], [0, 0, 0, 16]);
        assert_eq!(done(bench.device.plan(A, LUN_5, &[0x12, 0, 0, 0, 96, 0])).data[0], 0x7F);
        for cdb in [&TEST_UNIT_READY[..], &READ_10, &REPORT_LUNS] {
            assert_eq!(codes(bench.device.plan(A, LUN_5, cdb)), (5, 0x25, 0));
        }
        assert_eq!(codes(bench.device.parameter(A, LUN_5, &[0x42; 10], &[])), (5, 0x25, 0));
        assert_eq!(
            (bench.device.unit_for(A, LUN_5), bench.device.unit_for(B, LUN_5)),
            (None, Some(UnitIndex(1)))
        );
        // Whoever comes into the slot next sees all until it is told otherwise.
        bench.device.detach(A);
        bench.attach(A);
        assert_eq!(listed(&mut bench, A)[..4], [0, 0, 0, 16]);
        bench.device.luns_changed(A);
        assert_eq!(codes(bench.device.plan(A, [0; 8], &TEST_UNIT_READY)), (6, 0x3F, 0x0E));
        assert!(!bench.device.show(Nexus(u32::MAX), &[false]));
    }

    #[test]
    fn each_unit_of_a_target_has_its_own_attentions_and_resets() {
        let mut bench = Bench::of(vec![unit_config(0), unit_config(5)]);
        bench.attach(A);
        bench.attach(B);
        bench.device.reset_unit(UnitIndex(1));
        assert_eq!(done(bench.device.plan(B, [0; 8], &TEST_UNIT_READY)).status, ScsiStatus::Good);
        for nexus in [A, B] {
            assert_eq!(codes(bench.device.plan(nexus, LUN_5, &TEST_UNIT_READY)), (6, 0x29, 3));
        }
        bench.device.reset();
        assert_eq!(codes(bench.device.plan(B, [0; 8], &TEST_UNIT_READY)), (6, 0x29, 2));
    }

    #[test]
    fn bad_configurations_are_refused_in_a_sentence() {
        let device = |units| {
            let target_name = "iqn.2026-11.io.goldrush:node-001".to_owned();
            Device::new(DeviceConfig { target_name, portal_group: 1, units }).map(|_| ()).unwrap_err()
        };
        let change = |change: fn(&mut UnitConfig)| {
            let mut unit = unit_config(0);
            change(&mut unit);
            device(vec![unit])
        };
        assert!(matches!(device(vec![unit_config(1), unit_config(1)]), DeviceError::DuplicateLun { .. }));
        assert!(matches!(device((0..257).map(unit_config).collect()), DeviceError::TooManyUnits { .. }));
        assert!(matches!(change(|unit| unit.blocks = 0), DeviceError::NoBlocks { .. }));
        assert!(matches!(change(|unit| unit.physical_exponent = 16), DeviceError::PhysicalBlock { .. }));
        let serial = change(|unit| unit.identity.serial = Some("käse".into()));
        assert_eq!(
            serial.to_string(),
            "LUN 0 of target iqn.2026-11.io.goldrush:node-001: a serial number is 1 to 36 printable ASCII characters"
        );
    }

    #[test]
    fn nexus_slots_are_bounded() {
        let mut bench = Bench::new();
        let beyond = Nexus(limits::NEXUSES_PER_TARGET_MAX as u32);
        assert_eq!(bench.device.attach(beyond, port(A)), Err(DeviceError::NexusSlot { slot: beyond.0 }));
        bench.device.detach(beyond);
        bench.device.detach(Nexus(u32::MAX));
        assert_eq!(done(bench.device.plan(beyond, [0; 8], &TEST_UNIT_READY)).status, ScsiStatus::Busy);
    }

    #[test]
    fn failed_operations_tell_where_and_why() {
        let bench = Bench::new();
        let sense = |fault, lba| bench.device.io_failed(UnitIndex(0), fault, lba).sense.unwrap();
        let read = sense(UnitFault::Read, Some(Lba(77)));
        assert_eq!((read.key as u8, read.asc, read.information), (3, 0x11, Some(77)));
        let full = sense(UnitFault::NoSpace, None);
        assert_eq!((full.key as u8, full.asc, full.ascq), (7, 0x27, 7));
        let differs = sense(UnitFault::Miscompare { offset: 513 }, Some(Lba(1)));
        assert_eq!((differs.key as u8, differs.asc, differs.information), (0xE, 0x1D, Some(513)));
        assert_eq!(sense(UnitFault::Write, None).asc, 0x0C);
    }
}
