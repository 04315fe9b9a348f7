//! The usual SCSI commands as calls on a session.
//!
//! Knows which CDB goes with which reply form. Does not know how either travels.

use super::session::{Command, Session};
use crate::fail::Result;
use crate::scsi::{self, Capacity, Inquiry};

impl Session {
    /// TEST UNIT READY until the unit has told its unit attentions.
    pub(crate) fn ready(&mut self) -> Result<()> {
        self.run(&Command::Plain { cdb: scsi::test_unit_ready() }).map(|_| ())
    }

    pub(crate) fn inquiry(&mut self) -> Result<Inquiry> {
        scsi::parse_inquiry(&self.run(&Command::Read { cdb: scsi::inquiry(None, 255), len: 255 })?)
    }

    pub(crate) fn inquiry_page(&mut self, page: u8) -> Result<Vec<u8>> {
        self.run(&Command::Read { cdb: scsi::inquiry(Some(page), 255), len: 255 })
    }

    pub(crate) fn luns(&mut self) -> Result<Vec<u16>> {
        scsi::parse_luns(&self.run(&Command::Read { cdb: scsi::report_luns(4096), len: 4096 })?)
    }

    /// By READ CAPACITY(10), and by (16) when the unit is too big for the short form.
    pub(crate) fn capacity(&mut self) -> Result<Capacity> {
        let short =
            scsi::parse_capacity_10(&self.run(&Command::Read { cdb: scsi::read_capacity_10(), len: 8 })?)?;
        if short.sectors <= u64::from(u32::MAX) { Ok(short) } else { self.capacity_16() }
    }

    pub(crate) fn capacity_16(&mut self) -> Result<Capacity> {
        scsi::parse_capacity_16(&self.run(&Command::Read { cdb: scsi::read_capacity_16(32), len: 32 })?)
    }

    pub(crate) fn read(&mut self, lba: u64, sectors: u32) -> Result<Vec<u8>> {
        self.run(&Command::Read {
            cdb: scsi::transfer(false, lba, sectors),
            len: sectors * scsi::SECTOR as u32,
        })
    }

    pub(crate) fn write(&mut self, lba: u64, data: Vec<u8>) -> Result<()> {
        let sectors = (data.len() as u64 / scsi::SECTOR) as u32;
        self.run(&Command::Write { cdb: scsi::transfer(true, lba, sectors), data }).map(|_| ())
    }

    pub(crate) fn flush(&mut self) -> Result<()> {
        self.run(&Command::Plain { cdb: scsi::synchronize_cache() }).map(|_| ())
    }
}
