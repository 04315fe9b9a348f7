//! Commands that need no parameter list, and the planning of those that do.
//!
//! Knows what each command means for this unit's state. Does not know parameter lists (`parameter`).

use super::{Command, LogicalUnit, Nexus, Refusal, Surroundings, UnitAttention, UnitPlan, UnitReply};
use crate::limits;
use crate::scsi::cdb::{ByteCheck, Extent, StartStop};
use crate::scsi::inquiry::{self, Peripheral};
use crate::scsi::mode::{self, ModeQuery, ModeSubject};
use crate::scsi::opcodes;
use crate::scsi::reservation::Role;
use crate::scsi::reservation_data;
use crate::scsi::sense::{Sense, SenseFormat};
use crate::scsi::vpd::{self, VpdSource};
use crate::units::{BlockCount, BlockRange};

const GOOD: UnitPlan = UnitPlan::Done(UnitReply::good());

fn data(data: Vec<u8>, allocation: u32) -> UnitPlan {
    UnitPlan::Done(UnitReply::data(data, allocation))
}

impl LogicalUnit {
    pub(super) fn execute(
        &mut self,
        nexus: Nexus,
        command: Command,
        around: Surroundings<'_>,
    ) -> Result<UnitPlan, Refusal> {
        match command {
            Command::Reserve => self.reserve(nexus),
            Command::Release => self.release(nexus),
            Command::StartStopUnit(start_stop) => self.start_stop(nexus, start_stop).map_err(Refusal::Check),
            Command::PreventAllow { prevent } => {
                self.state(nexus).prevents = prevent;
                Ok(GOOD)
            }
            Command::RequestSense { descriptor, allocation } => {
                Ok(self.request_sense(nexus, descriptor, allocation))
            }
            other => self.execute_shared(other, around).map_err(Refusal::Check),
        }
    }

    /// Commands that change nothing and mean the same from every nexus.
    fn execute_shared(&self, command: Command, around: Surroundings<'_>) -> Result<UnitPlan, Sense> {
        match command {
            Command::Read { extent, fua } => self.read(extent, fua),
            Command::Write { extent, fua, verify } => self.write(extent, fua, verify),
            Command::Verify { extent, check } => self.verify(extent, check),
            Command::CompareAndWrite { extent, fua } => self.compare_and_write(extent, fua),
            Command::WriteSame { extent, unmap, no_data } => self.write_same(extent, unmap, no_data),
            Command::SynchronizeCache { extent, immediate } => self.synchronize_cache(extent, immediate),
            Command::PreFetch { extent, immediate } => self.pre_fetch(extent, immediate),
            Command::GetLbaStatus { start, allocation } if start <= self.geometry.last_lba() => {
                Ok(UnitPlan::LbaStatus { unit: self.index, start, allocation })
            }
            Command::GetLbaStatus { .. } => Err(out_of_range(2)),
            Command::Unmap { len } => plan_list(len, 8),
            Command::ModeSelect { short, len } => plan_list(len, if short { 4 } else { 8 }),
            Command::PersistentReserveOut { len: 24, .. } => Ok(UnitPlan::Parameter { len: 24 }),
            Command::PersistentReserveOut { .. } => Err(Sense::PARAMETER_LIST_LENGTH),
            other => self.inform(other, around),
        }
    }

    /// Commands that only return parameter data.
    fn inform(&self, command: Command, around: Surroundings<'_>) -> Result<UnitPlan, Sense> {
        Ok(match command {
            Command::Inquiry { page, allocation } => data(self.inquiry(page, around)?, allocation),
            Command::ReadCapacity10 => data(self.geometry.capacity10(), 8),
            Command::ReadCapacity16 { allocation } => data(self.geometry.capacity16(), allocation),
            Command::ModeSense { short, dbd, long_lba, control, page, subpage, allocation } => {
                let query = ModeQuery { short, dbd, long_lba, control, page, subpage };
                let subject = ModeSubject { geometry: self.geometry, read_only: self.read_only };
                data(mode::sense(query, self.modes, subject)?, allocation)
            }
            Command::ReadDefectData { short, lists, allocation } => {
                data(no_defects(short, lists), allocation)
            }
            Command::PersistentReserveIn { action, allocation } => {
                data(reservation_data::read(action, &self.reservations, around.target_port), allocation)
            }
            Command::ReportTargetPortGroups { extended, allocation } => {
                data(vpd::target_port_groups(around.target_port, extended), allocation)
            }
            Command::ReportSupportedOpcodes { query, timeouts, allocation } => {
                data(opcodes::report(query, timeouts, self.geometry.thin)?, allocation)
            }
            Command::ReportTaskManagement { extended, allocation } => {
                data(opcodes::report_task_management(extended), allocation)
            }
            _ => GOOD,
        })
    }

    /// The range of an extent, within the unit.
    fn range(&self, extent: Extent) -> Result<BlockRange, Sense> {
        let range = extent.range();
        if self.geometry.contains(range) { Ok(range) } else { Err(out_of_range(extent.lba_byte)) }
    }

    /// The same, no longer than a transfer; `None` when there is nothing to do.
    fn transfer(&self, extent: Extent) -> Result<Option<BlockRange>, Sense> {
        let range = self.range(extent)?;
        if range.count.0 > u64::from(self.geometry.blocks_in(limits::TRANSFER_BYTES_MAX)) {
            return Err(Sense::cdb_field(u16::from(extent.count_byte), 7));
        }
        Ok(Some(range).filter(|range| range.count.0 > 0))
    }

    fn read(&self, extent: Extent, fua: bool) -> Result<UnitPlan, Sense> {
        let unit = self.index;
        Ok(self.transfer(extent)?.map_or(GOOD, |range| UnitPlan::Read { unit, range, fua }))
    }

    fn write(&self, extent: Extent, fua: bool, verify: bool) -> Result<UnitPlan, Sense> {
        let unit = self.index;
        let fua = fua || !self.modes.write_cache;
        Ok(self.transfer(extent)?.map_or(GOOD, |range| UnitPlan::Write { unit, range, fua, verify }))
    }

    fn verify(&self, extent: Extent, check: ByteCheck) -> Result<UnitPlan, Sense> {
        let unit = self.index;
        let compare = check != ByteCheck::Medium;
        let one_block = check == ByteCheck::CompareOne;
        let plan = |range| UnitPlan::Verify { unit, range, compare, one_block };
        Ok(self.transfer(extent)?.map_or(GOOD, plan))
    }

    fn compare_and_write(&self, extent: Extent, fua: bool) -> Result<UnitPlan, Sense> {
        let unit = self.index;
        let fua = fua || !self.modes.write_cache;
        if extent.count.0 > u64::from(vpd::compare_and_write_blocks(self.geometry)) {
            return Err(Sense::cdb_field(u16::from(extent.count_byte), 7));
        }
        Ok(self.transfer(extent)?.map_or(GOOD, |range| UnitPlan::CompareAndWrite { unit, range, fua }))
    }

    /// Without a length: up to the end of the unit, if that is not longer than allowed (WSNZ is zero).
    fn write_same(&self, extent: Extent, unmap: bool, no_data: bool) -> Result<UnitPlan, Sense> {
        if unmap && !self.geometry.thin {
            return Err(Sense::cdb_field(1, 3));
        }
        let range = self.to_the_end_without_length(extent)?;
        if range.count.0 > u64::from(self.geometry.blocks_in(limits::WRITE_SAME_BYTES_MAX)) {
            return Err(Sense::cdb_field(u16::from(extent.count_byte), 7));
        }
        if range.count.0 == 0 {
            return Ok(GOOD);
        }
        let fua = !self.modes.write_cache;
        Ok(UnitPlan::WriteSame { unit: self.index, range, zero: no_data, unmap, fua })
    }

    /// All of the unit is flushed, whatever the range: the file behind it knows no smaller flush.
    fn synchronize_cache(&self, extent: Extent, immediate: bool) -> Result<UnitPlan, Sense> {
        self.range(extent)?;
        Ok(if self.read_only { GOOD } else { UnitPlan::Flush { unit: self.index, immediate } })
    }

    fn pre_fetch(&self, extent: Extent, immediate: bool) -> Result<UnitPlan, Sense> {
        let mut range = self.to_the_end_without_length(extent)?;
        // A hint, so a longer one is not an error: the first part of it is fetched.
        range.count.0 = range.count.0.min(u64::from(self.geometry.blocks_in(limits::TRANSFER_BYTES_MAX)));
        if range.count.0 == 0 {
            return Ok(GOOD);
        }
        Ok(UnitPlan::PreFetch { unit: self.index, range, immediate })
    }

    fn to_the_end_without_length(&self, extent: Extent) -> Result<BlockRange, Sense> {
        let mut range = self.range(extent)?;
        if range.count.0 == 0 {
            range.count = BlockCount(self.geometry.blocks - range.start.0);
        }
        Ok(range)
    }

    fn inquiry(&self, page: Option<u8>, around: Surroundings<'_>) -> Result<Vec<u8>, Sense> {
        match page {
            None => Ok(inquiry::standard(Peripheral::Disk { removable: self.removable })),
            Some(code) => {
                let port = around.target_port;
                VpdSource { names: &self.names, port, geometry: self.geometry }.page(code)
            }
        }
    }

    /// The sense data is the data; a pending unit attention is used up (SPC-4, 6.39).
    fn request_sense(&mut self, nexus: Nexus, descriptor: bool, allocation: u32) -> UnitPlan {
        let sense = match self.attentions(nexus).take() {
            Some(attention) => attention.sense(),
            None if self.ejected => Sense::MEDIUM_NOT_PRESENT,
            None => Sense::NONE,
        };
        let format = if descriptor { SenseFormat::Descriptor } else { SenseFormat::Fixed };
        data(sense.in_format(format).encode().as_slice().to_vec(), allocation)
    }

    /// There is no motor: without LOEJ, stopping only flushes and the unit stays ready (libiscsi's suite and Windows
    /// expect a read after it to work). Ejecting a removable unit's medium is real.
    fn start_stop(&mut self, nexus: Nexus, request: StartStop) -> Result<UnitPlan, Sense> {
        let flush = if self.read_only || request.no_flush && !request.load_eject {
            GOOD
        } else {
            UnitPlan::Flush { unit: self.index, immediate: request.immediate }
        };
        if request.power_condition != 0 {
            return Ok(GOOD);
        }
        if !request.load_eject || !self.removable {
            return Ok(if request.start { GOOD } else { flush });
        }
        if self.nexuses.iter().any(|state| state.prevents) {
            return Err(Sense::REMOVAL_PREVENTED);
        }
        if request.start {
            if core::mem::take(&mut self.ejected) {
                self.raise_except(Some(nexus), UnitAttention::MediumMayHaveChanged);
            }
            return Ok(GOOD);
        }
        self.ejected = true;
        Ok(flush)
    }

    /// RESERVE: nothing beside registrations, which reserve in their own way (SPC-4, 5.12.3: CRH).
    fn reserve(&mut self, nexus: Nexus) -> Result<UnitPlan, Refusal> {
        if !self.reservations.registrants().is_empty() {
            return self.compatible(nexus);
        }
        match self.legacy {
            Some(owner) if owner != nexus => Err(Refusal::Conflict),
            _ => {
                self.legacy = Some(nexus);
                Ok(GOOD)
            }
        }
    }

    /// RELEASE of what another holds does nothing, and is no error (SPC-2, 7.15).
    fn release(&mut self, nexus: Nexus) -> Result<UnitPlan, Refusal> {
        if !self.reservations.registrants().is_empty() {
            return self.compatible(nexus);
        }
        if self.legacy == Some(nexus) {
            self.legacy = None;
        }
        Ok(GOOD)
    }

    /// Holders, and registrants where these share the access, may send RESERVE and RELEASE without effect.
    fn compatible(&self, nexus: Nexus) -> Result<UnitPlan, Refusal> {
        let shared = self.reservations.kind().is_some_and(|kind| kind.shared());
        match self.role(nexus) {
            Role::Holder => Ok(GOOD),
            Role::Registrant if shared => Ok(GOOD),
            _ => Err(Refusal::Conflict),
        }
    }
}

fn out_of_range(lba_byte: u8) -> Sense {
    Sense { field: Sense::cdb_field(u16::from(lba_byte), 7).field, ..Sense::LBA_OUT_OF_RANGE }
}

/// A parameter list of `len` bytes whose header alone has `header`; no list at all is no error.
fn plan_list(len: u32, header: u32) -> Result<UnitPlan, Sense> {
    match len {
        0 => Ok(GOOD),
        len if len < header || len as usize > limits::PARAMETER_BYTES_MAX => {
            Err(Sense::PARAMETER_LIST_LENGTH)
        }
        len => Ok(UnitPlan::Parameter { len }),
    }
}

/// READ DEFECT DATA: the lists asked for exist and are empty (SBC-3, 5.17 and 5.18).
fn no_defects(short: bool, lists: u8) -> Vec<u8> {
    let mut data = vec![0; if short { 4 } else { 8 }];
    data[1] = lists;
    data
}
