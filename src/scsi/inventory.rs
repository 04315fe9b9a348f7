//! The units of a device come and go while it is used (SPC-4, 5.1: a changed inventory of logical units).
//!
//! Knows which places are taken and who is told (3Fh/0Eh). Does not know why, nor what becomes of commands that have begun.

use super::attention::UnitAttention;
use super::device::{Device, DeviceError, InitiatorPort, Nexus, UnitConfig, check_unit};
use super::lun::Lun;
use super::reply::UnitIndex;
use super::unit::LogicalUnit;
use crate::limits;

impl Device {
    /// One more unit, which every nexus sees until it is told otherwise ([`Device::show`]). All hear of it.
    ///
    /// # Errors
    /// The LUN is taken, there is no place for it, or the unit cannot be.
    pub fn add_unit(&mut self, config: &UnitConfig) -> Result<UnitIndex, DeviceError> {
        let (name, lun) = (self.target_name().to_owned(), config.identity.lun);
        check_unit(&name, config)?;
        let present = self.units.iter().filter(|unit| unit.is_present());
        if present.clone().any(|unit| unit.lun() == lun) {
            return Err(DeviceError::DuplicateLun { target: name, lun });
        }
        let count = present.count();
        let room = self.units.len() < 2 * limits::UNITS_PER_TARGET_MAX;
        if count >= limits::UNITS_PER_TARGET_MAX || (self.vacant.is_empty() && !room) {
            return Err(DeviceError::TooManyUnits { target: name, count: count + 1 });
        }
        let index = self.vacant.pop().unwrap_or(UnitIndex(self.units.len() as u32));
        let mut unit = LogicalUnit::new(index, config);
        for (nexus, port) in self.attached() {
            unit.attach(nexus, port);
        }
        match self.units.get_mut(index.0 as usize) {
            Some(place) => *place = unit,
            None => self.units.push(unit),
        }
        self.inventory_changed();
        Ok(index)
    }

    /// Takes a unit away: from now on its LUN is one without a unit. Its place stays taken until [`Device::vacate`].
    pub fn end_unit(&mut self, lun: Lun) -> Option<UnitIndex> {
        let place = self.units.iter().position(|unit| unit.is_present() && unit.lun() == lun)?;
        self.units[place].take_away();
        self.inventory_changed();
        Some(UnitIndex(place as u32))
    }

    /// Nobody works for the unit any more: another one may have its place.
    pub fn vacate(&mut self, unit: UnitIndex) {
        let gone = self.units.get(unit.0 as usize).is_some_and(|unit| !unit.is_present());
        if gone && !self.vacant.contains(&unit) {
            self.vacant.push(unit);
        }
    }

    fn attached(&self) -> impl Iterator<Item = (Nexus, &InitiatorPort)> {
        let slots = self.ports.iter().enumerate();
        slots.filter_map(|(slot, port)| Some((Nexus::from_slot(slot)?, port.as_ref()?)))
    }

    fn inventory_changed(&mut self) {
        let changed = UnitAttention::ReportedLunsChanged;
        self.units.iter_mut().for_each(|unit| unit.raise_except(None, changed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::fixture::{A, Bench, READ_10, TEST_UNIT_READY, codes, done, port, unit_config};
    use crate::scsi::{ScsiStatus, UnitPlan};

    const LUN_5: [u8; 8] = [0, 5, 0, 0, 0, 0, 0, 0];
    const REPORT_LUNS: [u8; 12] = [0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];

    fn lun(number: u16) -> Lun {
        Lun::new(number).unwrap()
    }

    #[test]
    fn a_new_unit_is_told_of_and_listed_in_order() {
        let mut bench = Bench::of(vec![unit_config(0), unit_config(7)]);
        bench.attach(A);
        assert_eq!(bench.device.add_unit(&unit_config(5)).unwrap(), UnitIndex(2));
        assert_eq!(codes(bench.device.plan(A, [0; 8], &TEST_UNIT_READY)), (6, 0x3F, 0x0E));
        assert_eq!(codes(bench.device.plan(A, LUN_5, &TEST_UNIT_READY)), (6, 0x29, 0), "it is new");
        let list = done(bench.device.plan(A, [0; 8], &REPORT_LUNS)).data;
        assert_eq!(list[8..].chunks(8).map(|field| field[1]).collect::<Vec<_>>(), [0, 5, 7]);
        assert!(matches!(bench.device.plan(A, LUN_5, &READ_10), UnitPlan::Read { unit: UnitIndex(2), .. }));
        assert!(matches!(bench.device.add_unit(&unit_config(5)), Err(DeviceError::DuplicateLun { .. })));
    }

    #[test]
    fn a_unit_that_is_taken_away_is_not_there_and_its_place_is_free_when_its_work_is_done() {
        let mut bench = Bench::of(vec![unit_config(0), unit_config(5)]);
        bench.attach(A);
        assert_eq!(bench.device.end_unit(lun(5)), Some(UnitIndex(1)));
        assert_eq!(bench.device.end_unit(lun(5)), None);
        assert_eq!(codes(bench.device.plan(A, LUN_5, &READ_10)), (5, 0x25, 0));
        assert_eq!(codes(bench.device.plan(A, [0; 8], &TEST_UNIT_READY)), (6, 0x3F, 0x0E));
        assert_eq!(done(bench.device.plan(A, [0; 8], &REPORT_LUNS)).data.len(), 16);
        // Exchanged: the LUN is another unit before the former one is done.
        assert_eq!(bench.device.add_unit(&unit_config(5)).unwrap(), UnitIndex(2));
        bench.device.vacate(UnitIndex(1));
        bench.device.vacate(UnitIndex(1));
        bench.device.vacate(UnitIndex(2));
        assert_eq!(bench.device.add_unit(&unit_config(6)).unwrap(), UnitIndex(1));
        assert_eq!(bench.device.add_unit(&unit_config(7)).unwrap(), UnitIndex(3));
    }

    #[test]
    fn places_are_bounded() {
        let mut bench = Bench::of((0..256).map(unit_config).collect());
        assert!(matches!(bench.device.add_unit(&unit_config(256)), Err(DeviceError::TooManyUnits { .. })));
        for number in 0..256 {
            bench.device.end_unit(lun(number));
            bench.device.add_unit(&unit_config(number)).unwrap();
        }
        bench.device.end_unit(lun(0));
        assert!(matches!(bench.device.add_unit(&unit_config(0)), Err(DeviceError::TooManyUnits { .. })));
        bench.device.vacate(UnitIndex(0));
        bench.device.add_unit(&unit_config(0)).unwrap();
        bench.device.attach(A, port(A)).unwrap();
        assert_eq!(codes(bench.device.plan(A, [0; 8], &TEST_UNIT_READY)), (6, 0x29, 0));
        assert_eq!(done(bench.device.plan(A, [0; 8], &TEST_UNIT_READY)).status, ScsiStatus::Good);
    }
}
