//! Commands that need no parameter list, and the planning of those that do.
//!
//! Knows what each command means for this unit's state. Does not know parameter lists (`parameter`).

use super::{Command, LogicalUnit, Nexus, Refusal, Surroundings, UnitAttention, UnitPlan, UnitReply};
use crate::limits;
use crate::scsi::cdb::{ByteCheck, CopyResults, Extent, PersistentIn, PersistentOut, StartStop};
use crate::scsi::copy;
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
            Command::ReceiveCopyResults { what, list, allocation } => {
                self.copy_results(nexus, what, list, allocation).map_err(Refusal::Check)
            }
            Command::ReceiveTokenInformation { list, allocation } => self
                .rods
                .information(nexus, list)
                .map(|answer| data(answer, allocation))
                .map_err(Refusal::Check),
            Command::Sanitize { action, immediate, may_exit, len } => {
                match self.plan_sanitize(action, len)? {
                    UnitPlan::Parameter { len: 0 } => {
                        self.sanitize(action, immediate, may_exit, &[]).map_err(Refusal::Check)
                    }
                    plan => Ok(plan),
                }
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
            Command::OrWrite { extent, fua } => self.or_write(extent, fua),
            Command::WriteAtomic { extent } => self.write_atomic(extent),
            Command::WriteSame { extent, unmap, no_data } => self.write_same(extent, unmap, no_data),
            Command::SynchronizeCache { extent, immediate } => self.synchronize_cache(extent, immediate),
            Command::PreFetch { extent, immediate } => self.pre_fetch(extent, immediate),
            Command::GetLbaStatus { start, allocation } if start <= self.geometry.last_lba() => {
                Ok(UnitPlan::LbaStatus { unit: self.index, start, allocation })
            }
            Command::GetLbaStatus { .. } => Err(out_of_range(2)),
            Command::Unmap { len } => plan_list(len, 8),
            Command::ModeSelect { save: true, .. } if !self.can_keep => Err(Sense::cdb_field(1, 0)),
            Command::ModeSelect { short, len, .. } => plan_list(len, if short { 4 } else { 8 }),
            Command::ExtendedCopy { len } | Command::PopulateToken { len, .. } => plan_list(len, 16),
            Command::WriteUsingToken { len, .. } => plan_list(len, 16),
            Command::PersistentReserveOut { action, len, .. } => plan_reserve_out(action, len),
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
                let saved = self.can_keep.then_some(self.saved.unwrap_or_default());
                let subject = ModeSubject { geometry: self.geometry, read_only: self.read_only, saved };
                data(mode::sense(query, self.modes, subject)?, allocation)
            }
            Command::ReadDefectData { short, lists, allocation } => {
                data(no_defects(short, lists), allocation)
            }
            Command::PersistentReserveIn { action, allocation } => {
                data(self.persistent_in(action, around), allocation)
            }
            Command::ReportTargetPortGroups { extended, allocation } => {
                data(vpd::target_port_groups(around.target_port, extended), allocation)
            }
            Command::ReportSupportedOpcodes { query, timeouts, allocation } => {
                data(opcodes::report(query, timeouts, self.has())?, allocation)
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
        Ok(UnitPlan::CompareAndWrite { unit, range: self.range(extent)?, fua })
    }

    fn or_write(&self, extent: Extent, fua: bool) -> Result<UnitPlan, Sense> {
        let unit = self.index;
        let fua = fua || !self.modes.write_cache;
        Ok(self.transfer(extent)?.map_or(GOOD, |range| UnitPlan::OrWrite { unit, range, fua }))
    }

    /// It is stable before it is answered, so FUA asks for nothing more.
    fn write_atomic(&self, extent: Extent) -> Result<UnitPlan, Sense> {
        let range = self.range(extent)?;
        if range.count.0 > u64::from(self.geometry.blocks_in(limits::ATOMIC_BYTES_MAX)) {
            return Err(Sense::cdb_field(u16::from(extent.count_byte), 7));
        }
        Ok(if range.count.0 == 0 { GOOD } else { UnitPlan::WriteAtomic { unit: self.index, range } })
    }

    /// No length means up to the last block where the unit is told to do so (SBC-4, 5.50; WSNZ is zero), which MAXIMUM
    /// WRITE SAME LENGTH bounds as well. Elsewhere it is refused: a length that a driver cut to 16 bits would wipe what follows.
    fn write_same(&self, extent: Extent, unmap: bool, no_data: bool) -> Result<UnitPlan, Sense> {
        if unmap && !self.geometry.thin {
            return Err(Sense::cdb_field(1, 3));
        }
        let mut range = self.range(extent)?;
        if range.count.0 == 0 {
            if !self.write_same_to_end {
                return Err(Sense::cdb_field(u16::from(extent.count_byte), 7));
            }
            range.count = BlockCount(self.geometry.blocks - range.start.0);
        }
        let most = u64::from(self.geometry.blocks_in(limits::WRITE_SAME_BYTES_MAX));
        if range.count.0 > most {
            return Err(Sense::cdb_field(u16::from(extent.count_byte), 7));
        }
        if range.count.0 == 0 {
            return Err(out_of_range(extent.lba_byte));
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
        let mut range = self.range(extent)?;
        if range.count.0 == 0 {
            range.count = BlockCount(self.geometry.blocks - range.start.0);
        }
        // A hint, so a longer one is not an error: the first part of it is fetched.
        let most = u64::from(self.geometry.blocks_in(limits::TRANSFER_BYTES_MAX));
        let whole = range.count.0 <= most;
        range.count.0 = range.count.0.min(most);
        if range.count.0 == 0 {
            return Ok(GOOD);
        }
        Ok(UnitPlan::PreFetch { unit: self.index, range, immediate, whole })
    }

    fn inquiry(&self, page: Option<u8>, around: Surroundings<'_>) -> Result<Vec<u8>, Sense> {
        match page {
            None => Ok(inquiry::standard(Peripheral::Disk { removable: self.removable })),
            Some(code) => {
                let port = around.target_port;
                let (geometry, atomic, write_same_to_end) =
                    (self.geometry, self.can_keep, self.write_same_to_end);
                VpdSource { names: &self.names, port, geometry, atomic, write_same_to_end }.page(code)
            }
        }
    }

    /// The sense data is the data; a pending unit attention is used up (SPC-4, 6.39).
    fn request_sense(&mut self, nexus: Nexus, descriptor: bool, allocation: u32) -> UnitPlan {
        let sense = match self.attentions(nexus).take() {
            Some(attention) => attention.sense(),
            None if self.ejected => Sense::MEDIUM_NOT_PRESENT,
            None => self.sanitize.sense().unwrap_or(Sense::NONE),
        };
        let format = if descriptor { SenseFormat::Descriptor } else { SenseFormat::Fixed };
        data(sense.in_format(format).encode().as_slice().to_vec(), allocation)
    }

    fn copy_results(
        &self,
        nexus: Nexus,
        what: CopyResults,
        list: u8,
        allocation: u32,
    ) -> Result<UnitPlan, Sense> {
        let answer = match what {
            CopyResults::Status => self.copies.status(nexus, list)?,
            CopyResults::OperatingParameters => copy::operating_parameters(),
            CopyResults::FailedSegment => self.copies.failure(nexus, list)?,
        };
        Ok(data(answer, allocation))
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

    fn persistent_in(&self, action: PersistentIn, around: Surroundings<'_>) -> Vec<u8> {
        reservation_data::read(action, &self.reservations, around.target_port, self.can_keep)
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

/// Only REGISTER and REGISTER AND MOVE have lists longer than the basic one: they may name initiator ports.
fn plan_reserve_out(action: PersistentOut, len: u32) -> Result<UnitPlan, Sense> {
    let names_ports = matches!(action, PersistentOut::Register | PersistentOut::RegisterAndMove);
    let basic = reservation_data::LIST_BYTES as u32;
    if len < basic || (len > basic && !names_ports) || len as usize > limits::PARAMETER_BYTES_MAX {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    Ok(UnitPlan::Parameter { len })
}

/// READ DEFECT DATA: the lists asked for exist and are empty (SBC-3, 5.17 and 5.18).
fn no_defects(short: bool, lists: u8) -> Vec<u8> {
    let mut data = vec![0; if short { 4 } else { 8 }];
    data[1] = lists;
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::fixture::{A, B, BLOCKS, Bench, READ_10, TEST_UNIT_READY, WRITE_10, codes};
    use crate::scsi::reply::UnitIndex;
    use crate::scsi::status::ScsiStatus;
    use crate::units::Lba;

    const UNIT: UnitIndex = UnitIndex(0);

    fn range(start: u64, count: u64) -> BlockRange {
        BlockRange { start: Lba(start), count: BlockCount(count) }
    }

    fn cdb10(code: u8, flags: u8, lba: u32, count: u16) -> [u8; 10] {
        let ([a, b, c, d], [e, f]) = (lba.to_be_bytes(), count.to_be_bytes());
        [code, flags, a, b, c, d, 0, e, f, 0]
    }

    fn cdb16(code: u8, flags: u8, lba: u64, count: u32) -> [u8; 16] {
        let mut cdb = [0; 16];
        cdb[..2].copy_from_slice(&[code, flags]);
        cdb[2..10].copy_from_slice(&lba.to_be_bytes());
        cdb[10..14].copy_from_slice(&count.to_be_bytes());
        cdb
    }

    const OUT_OF_RANGE: (u8, u8, u8) = (5, 0x21, 0);
    const INVALID_FIELD: (u8, u8, u8) = (5, 0x24, 0);
    const NO_MEDIUM: (u8, u8, u8) = (2, 0x3A, 0);

    #[test]
    fn read10_and_write10_become_ranges() {
        let mut bench = Bench::new();
        let read = UnitPlan::Read { unit: UNIT, range: range(7, 9), fua: false };
        assert_eq!(bench.plan(A, &cdb10(0x28, 0, 7, 9)), read);
        let read = UnitPlan::Read { unit: UNIT, range: range(7, 9), fua: true };
        assert_eq!(bench.plan(A, &cdb10(0x28, 0x18, 7, 9)), read);
        let write = UnitPlan::Write { unit: UNIT, range: range(7, 9), fua: false, verify: false };
        assert_eq!(bench.plan(A, &cdb10(0x2A, 0x10, 7, 9)), write);
        let checked = UnitPlan::Write { unit: UNIT, range: range(7, 9), fua: true, verify: true };
        assert_eq!(bench.plan(A, &cdb10(0x2E, 0x02, 7, 9)), checked);
    }

    #[test]
    fn read10_beyond_capacity_is_illegal_request() {
        let mut bench = Bench::new();
        let end = BLOCKS as u32;
        for (lba, count) in [(end, 1), (end - 1, 2), (end + 1, 0), (u32::MAX, 0), (u32::MAX, 256)] {
            for code in [0x28, 0x2A, 0x2E, 0x2F, 0x34, 0x35, 0x41] {
                assert_eq!(
                    bench.codes(A, &cdb10(code, 0, lba, count)),
                    OUT_OF_RANGE,
                    "{code:02x} {lba} {count}"
                );
            }
        }
        for code in [0x88, 0x8A, 0x8E, 0x8F, 0x90, 0x91, 0x93] {
            assert_eq!(bench.codes(A, &cdb16(code, 0, u64::MAX, 1)), OUT_OF_RANGE);
        }
        let sense = bench.reply(A, &cdb10(0x28, 0, end, 1)).sense.unwrap();
        assert_eq!(sense.field.unwrap().byte, 2);
    }

    #[test]
    fn no_blocks_are_good_without_a_plan() {
        let mut bench = Bench::new();
        for code in [0x28, 0x2A, 0x2E, 0x2F] {
            assert_eq!(bench.status(A, &cdb10(code, 0, 0, 0)), ScsiStatus::Good);
            assert_eq!(bench.status(A, &cdb10(code, 0, BLOCKS as u32, 0)), ScsiStatus::Good);
        }
    }

    #[test]
    fn a_transfer_beyond_the_limit_is_an_invalid_field() {
        let mut bench = Bench::new();
        let most = (limits::TRANSFER_BYTES_MAX / 512) as u32;
        for code in [0x88, 0x8A, 0x8E, 0x8F] {
            assert!(matches!(
                bench.plan(A, &cdb16(code, 0, 0, most)),
                UnitPlan::Read { .. } | UnitPlan::Write { .. } | UnitPlan::Verify { .. }
            ));
            let sense = bench.reply(A, &cdb16(code, 0, 0, most + 1)).sense.unwrap();
            assert_eq!(sense, Sense::cdb_field(10, 7));
        }
    }

    #[test]
    fn verify_compares_only_when_asked() {
        let mut bench = Bench::new();
        let verify =
            |compare, one_block| UnitPlan::Verify { unit: UNIT, range: range(0, 4), compare, one_block };
        assert_eq!(bench.plan(A, &cdb10(0x2F, 0x00, 0, 4)), verify(false, false));
        assert_eq!(bench.plan(A, &cdb10(0x2F, 0x02, 0, 4)), verify(true, false));
        assert_eq!(bench.plan(A, &cdb10(0x2F, 0x06, 0, 4)), verify(true, true));
        assert_eq!(bench.codes(A, &cdb10(0x2F, 0x04, 0, 4)), INVALID_FIELD);
    }

    #[test]
    fn write_same_without_a_length_is_refused_unless_it_means_up_to_the_end() {
        let mut bench = Bench::new();
        assert_eq!(bench.reply(A, &cdb10(0x41, 0x08, 0, 0)).sense, Some(Sense::cdb_field(7, 7)));
        assert_eq!(bench.reply(A, &cdb16(0x93, 0x01, 0, 0)).sense, Some(Sense::cdb_field(10, 7)));
        assert_eq!(bench.codes(A, &cdb16(0x93, 0, BLOCKS + 1, 0)), OUT_OF_RANGE);
    }

    #[test]
    fn write_same_goes_as_far_as_its_limit_and_to_the_end_where_told_to() {
        let mut bench = Bench::with(|unit| unit.write_same_to_end = true);
        let most = (limits::WRITE_SAME_BYTES_MAX / 512) as u32;
        let end = BLOCKS as u32;
        let range = range(u64::from(end - 9), 9);
        let plan = UnitPlan::WriteSame { unit: UNIT, range, zero: false, unmap: true, fua: false };
        assert_eq!(bench.plan(A, &cdb10(0x41, 0x08, end - 9, 9)), plan);
        assert_eq!(bench.plan(A, &cdb10(0x41, 0x08, end - 9, 0)), plan);
        assert_eq!(bench.codes(A, &cdb10(0x41, 0x08, end, 0)), OUT_OF_RANGE);
        assert_eq!(bench.codes(A, &cdb16(0x93, 0, BLOCKS, 0)), OUT_OF_RANGE);
        assert_eq!(bench.reply(A, &cdb16(0x93, 0, 0, 0)).sense, Some(Sense::cdb_field(10, 7)));
        assert_eq!(bench.codes(A, &cdb16(0x93, 0, 0, most + 1)), INVALID_FIELD);
        assert!(matches!(
            bench.plan(A, &cdb16(0x93, 0x01, 0, most)),
            UnitPlan::WriteSame { zero: true, unmap: false, .. }
        ));
    }

    #[test]
    fn write_same_unmap_needs_a_thin_unit() {
        let mut thick = Bench::with(|unit| unit.thin = false);
        assert_eq!(thick.codes(A, &cdb10(0x41, 0x08, 0, 1)), INVALID_FIELD);
        assert!(matches!(thick.plan(A, &cdb10(0x41, 0, 0, 1)), UnitPlan::WriteSame { unmap: false, .. }));
        let unmap = [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0];
        assert_eq!(thick.codes(A, &unmap), (5, 0x20, 0));
    }

    #[test]
    fn compare_and_write_is_bounded_by_its_own_limit() {
        let mut bench = Bench::new();
        let mut cdb = cdb16(0x89, 0x08, 5, 0);
        cdb[13] = 2;
        let plan = UnitPlan::CompareAndWrite { unit: UNIT, range: range(5, 2), fua: true };
        assert_eq!(bench.plan(A, &cdb), plan);
        cdb[13] = 129;
        assert_eq!(bench.reply(A, &cdb).sense, Some(Sense::cdb_field(13, 7)));
        cdb[13] = 0;
        let empty = UnitPlan::CompareAndWrite { unit: UNIT, range: range(5, 0), fua: true };
        assert_eq!(bench.plan(A, &cdb), empty, "its data-out must fit all the same");
    }

    #[test]
    fn or_write_is_a_range_and_a_forced_unit_access_bit() {
        let mut bench = Bench::new();
        let plan = UnitPlan::OrWrite { unit: UNIT, range: range(5, 300), fua: true };
        assert_eq!(bench.plan(A, &cdb16(0x8B, 0x08, 5, 300)), plan);
        assert_eq!(bench.status(A, &cdb16(0x8B, 0, 5, 0)), ScsiStatus::Good);
        assert_eq!(bench.codes(A, &cdb16(0x8B, 0x20, 5, 1)), INVALID_FIELD);
        assert_eq!(bench.codes(A, &cdb16(0x8B, 0, BLOCKS, 1)), OUT_OF_RANGE);
    }

    #[test]
    fn synchronize_cache_flushes_all_or_nothing_on_a_read_only_unit() {
        let mut bench = Bench::new();
        let flush = |immediate| UnitPlan::Flush { unit: UNIT, immediate };
        assert_eq!(bench.plan(A, &cdb10(0x35, 0, 0, 0)), flush(false));
        assert_eq!(bench.plan(A, &cdb16(0x91, 2, 0, 0)), flush(true));
        let mut fixed = Bench::with(|unit| unit.read_only = true);
        assert_eq!(fixed.status(A, &cdb10(0x35, 0, 0, 0)), ScsiStatus::Good);
    }

    #[test]
    fn read_only_units_refuse_every_write() {
        let mut bench = Bench::with(|unit| unit.read_only = true);
        for code in [0x2A, 0x2E, 0x41] {
            assert_eq!(bench.codes(A, &cdb10(code, 0, 0, 1)), (7, 0x27, 0));
        }
        for code in [0x8A, 0x8B, 0x8E, 0x93, 0x89] {
            assert_eq!(bench.codes(A, &cdb16(code, 0, 0, 1)), (7, 0x27, 0));
        }
        assert_eq!(bench.codes(A, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0]), (7, 0x27, 0));
        assert!(matches!(bench.plan(A, &READ_10), UnitPlan::Read { .. }));
    }

    #[test]
    fn allocation_lengths_cut_data_but_not_the_lengths_in_it() {
        let mut bench = Bench::new();
        let whole = bench.data(A, &[0x12, 0, 0, 1, 0, 0]);
        assert_eq!(whole.len(), 96);
        for len in 0..96u8 {
            assert_eq!(bench.data(A, &[0x12, 0, 0, 0, len, 0]), whole[..usize::from(len)]);
        }
        let mut capacity = cdb16(0x9E, 0x10, 0, 0);
        for len in 0..40 {
            capacity[13] = len;
            assert_eq!(bench.data(A, &capacity).len(), usize::from(len.min(32)));
        }
        assert_eq!(bench.data(A, &[0x1A, 0, 0x3F, 0, 4, 0]).len(), 4);
    }

    #[test]
    fn get_lba_status_starts_within_the_unit() {
        let mut bench = Bench::new();
        let plan = UnitPlan::LbaStatus { unit: UNIT, start: Lba(BLOCKS - 1), allocation: 24 };
        assert_eq!(bench.plan(A, &cdb16(0x9E, 0x12, BLOCKS - 1, 24)), plan);
        for lba in [BLOCKS, BLOCKS + 1, 1 << 63, u64::MAX] {
            assert_eq!(bench.codes(A, &cdb16(0x9E, 0x12, lba, 24)), OUT_OF_RANGE);
        }
    }

    const EJECT: [u8; 6] = [0x1B, 0, 0, 0, 0x02, 0];
    const LOAD: [u8; 6] = [0x1B, 0, 0, 0, 0x03, 0];
    const STOP: [u8; 6] = [0x1B, 0, 0, 0, 0x00, 0];
    const PREVENT: [u8; 6] = [0x1E, 0, 0, 0, 1, 0];
    const ALLOW: [u8; 6] = [0x1E, 0, 0, 0, 0, 0];

    #[test]
    fn an_ejected_medium_is_not_present_until_it_is_loaded() {
        let mut bench = Bench::with(|unit| unit.removable = true);
        assert_eq!(bench.data(A, &[0x12, 0, 0, 0, 8, 0])[1], 0x80);
        assert_eq!(bench.plan(A, &EJECT), UnitPlan::Flush { unit: UNIT, immediate: false });
        assert_eq!(bench.codes(A, &TEST_UNIT_READY), NO_MEDIUM);
        assert_eq!(bench.codes(A, &WRITE_10), NO_MEDIUM);
        assert_eq!(bench.codes(B, &cdb10(0x25, 0, 0, 0)), NO_MEDIUM);
        assert_eq!(bench.status(B, &[0x1A, 0, 0x3F, 0, 255, 0]), ScsiStatus::Good);
        assert_eq!(bench.status(A, &LOAD), ScsiStatus::Good);
        assert_eq!(bench.status(A, &TEST_UNIT_READY), ScsiStatus::Good);
        assert_eq!(bench.codes(B, &TEST_UNIT_READY), (6, 0x28, 0), "the others hear of it");
        assert_eq!(bench.status(B, &TEST_UNIT_READY), ScsiStatus::Good);
    }

    #[test]
    fn prevent_keeps_the_medium_until_every_nexus_allows_or_goes() {
        let prevented = (5, 0x53, 0x02);
        let mut bench = Bench::with(|unit| unit.removable = true);
        assert_eq!(bench.status(A, &PREVENT), ScsiStatus::Good);
        assert_eq!(bench.codes(A, &EJECT), prevented);
        assert_eq!(bench.codes(B, &EJECT), prevented);
        assert_eq!(bench.status(A, &ALLOW), ScsiStatus::Good);
        bench.plan(B, &PREVENT);
        assert_eq!(bench.codes(A, &EJECT), prevented);
        bench.device.detach(B);
        assert!(matches!(bench.plan(A, &EJECT), UnitPlan::Flush { .. }));
        bench.plan(A, &PREVENT);
        assert_eq!(bench.codes(A, &LOAD), prevented);
        bench.device.reset_unit(UNIT);
        assert_eq!(bench.codes(A, &LOAD), (6, 0x29, 3));
        assert_eq!(bench.status(A, &LOAD), ScsiStatus::Good);
    }

    #[test]
    fn stopping_without_ejecting_leaves_the_unit_ready() {
        let mut bench = Bench::with(|unit| unit.removable = true);
        assert!(matches!(bench.plan(A, &STOP), UnitPlan::Flush { .. }));
        assert_eq!(bench.status(A, &[0x1B, 0, 0, 0, 0x04, 0]), ScsiStatus::Good);
        for condition in 1..16u8 {
            assert_eq!(bench.status(A, &[0x1B, 1, 0, 0, condition << 4 | 2, 0]), ScsiStatus::Good);
        }
        assert_eq!(bench.status(A, &TEST_UNIT_READY), ScsiStatus::Good);
        let mut fixed = Bench::new();
        assert!(matches!(fixed.plan(A, &EJECT), UnitPlan::Flush { .. }));
        assert_eq!(fixed.status(A, &TEST_UNIT_READY), ScsiStatus::Good);
    }

    #[test]
    fn request_sense_returns_and_uses_up_a_unit_attention() {
        let mut bench = Bench::new();
        bench.device.reset_unit(UNIT);
        let fixed = bench.data(A, &[0x03, 0, 0, 0, 18, 0]);
        assert_eq!((fixed[0], fixed[2], fixed[12], fixed[13]), (0x70, 6, 0x29, 3));
        let none = bench.data(A, &[0x03, 1, 0, 0, 255, 0]);
        assert_eq!(none, [0x72, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bench.status(A, &TEST_UNIT_READY), ScsiStatus::Good);
    }

    #[test]
    fn defect_lists_are_empty() {
        let mut bench = Bench::new();
        assert_eq!(bench.data(A, &[0x37, 0, 0x1D, 0, 0, 0, 0, 0, 32, 0]), [0, 0x1D, 0, 0]);
        assert_eq!(bench.data(A, &[0xB7, 0x18, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0]), [0, 0x18, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn lists_of_impossible_lengths_are_refused_before_they_come() {
        let mut bench = Bench::new();
        assert_eq!(bench.status(A, &cdb10(0x42, 0, 0, 0)), ScsiStatus::Good);
        assert_eq!(bench.codes(A, &cdb10(0x42, 0, 0, 7)), (5, 0x1A, 0));
        assert_eq!(bench.codes(A, &cdb10(0x42, 0, 0, u16::MAX)), (5, 0x1A, 0));
        assert_eq!(codes(bench.plan(A, &cdb10(0x5F, 0, 0, 23))), (5, 0x1A, 0));
        assert_eq!(bench.plan(A, &cdb10(0x42, 0, 0, 24)), UnitPlan::Parameter { len: 24 });
    }
}
