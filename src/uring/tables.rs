//! Slots of sockets, listeners and files, and how many operations use each.
//!
//! Knows file descriptors and pending counts. Does not know operations.
//!
//! A descriptor with pending operations is never closed nor given away here: a submission names it by number until
//! the kernel has taken it, and the number could by then mean another file.

use std::fs::File;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use super::file_writes::WrittenBy;

#[derive(Debug)]
enum Place<T> {
    Free,
    Open(T),
    /// The kernel is closing it; the slot is not free yet.
    Closing,
}

#[derive(Debug)]
struct Row<T> {
    place: Place<T>,
    pending: u32,
}

/// A bounded table; all memory is taken at construction. Low slots are used first.
#[derive(Debug)]
pub(super) struct Table<T> {
    rows: Vec<Row<T>>,
    free: Vec<u32>,
    max: u32,
}

pub(super) type Sockets = Table<OwnedFd>;
pub(super) type Files = Table<OpenFile>;
pub(super) type Listeners = Table<TcpListener>;

/// Shared with whoever opened it: tens of thousands of images are one descriptor each.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) file: Arc<File>,
    pub(super) written_by: WrittenBy,
}

impl AsRawFd for OpenFile {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl<T: AsRawFd> Table<T> {
    pub(super) fn with_capacity(max: u32) -> Self {
        Self { rows: Vec::with_capacity(max as usize), free: Vec::with_capacity(max as usize), max }
    }

    /// Gives it back when the table is full.
    pub(super) fn insert(&mut self, value: T) -> Result<u32, T> {
        if let Some(slot) = self.free.pop() {
            self.rows[slot as usize] = Row { place: Place::Open(value), pending: 0 };
            return Ok(slot);
        }
        if self.rows.len() >= self.max as usize {
            return Err(value);
        }
        self.rows.push(Row { place: Place::Open(value), pending: 0 });
        Ok(self.rows.len() as u32 - 1)
    }

    /// The descriptor of an open slot.
    pub(super) fn fd(&self, slot: u32) -> Option<RawFd> {
        self.get(slot).map(AsRawFd::as_raw_fd)
    }

    pub(super) fn get(&self, slot: u32) -> Option<&T> {
        match &self.rows.get(slot as usize)?.place {
            Place::Open(value) => Some(value),
            Place::Free | Place::Closing => None,
        }
    }

    /// One more operation uses the slot.
    pub(super) fn begin(&mut self, slot: u32) {
        if let Some(row) = self.rows.get_mut(slot as usize) {
            row.pending += 1;
        }
    }

    /// One operation less.
    pub(super) fn end(&mut self, slot: u32) {
        if let Some(row) = self.rows.get_mut(slot as usize) {
            debug_assert!(row.pending > 0);
            row.pending = row.pending.saturating_sub(1);
        }
    }

    pub(super) fn is_pending(&self, slot: u32) -> bool {
        self.rows.get(slot as usize).is_some_and(|row| row.pending > 0)
    }

    /// Takes it out; `None` when the slot is empty or in use.
    pub(super) fn remove(&mut self, slot: u32) -> Option<T> {
        let value = self.begin_close(slot)?;
        self.end_close(slot);
        Some(value)
    }

    /// Takes it out to be closed by the kernel; the slot stays taken until [`Table::end_close`].
    pub(super) fn begin_close(&mut self, slot: u32) -> Option<T> {
        let row = self.rows.get_mut(slot as usize)?;
        if row.pending > 0 {
            return None;
        }
        match core::mem::replace(&mut row.place, Place::Closing) {
            Place::Open(value) => Some(value),
            other => {
                row.place = other;
                None
            }
        }
    }

    pub(super) fn end_close(&mut self, slot: u32) {
        if let Some(row) = self.rows.get_mut(slot as usize)
            && matches!(row.place, Place::Closing)
        {
            row.place = Place::Free;
            self.free.push(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> OpenFile {
        OpenFile { file: Arc::new(tempfile::tempfile().unwrap()), written_by: WrittenBy::Ring }
    }

    #[test]
    fn a_full_table_gives_the_file_back() {
        let mut table = Files::with_capacity(1);
        assert_eq!(table.insert(file()).unwrap(), 0);
        assert!(table.insert(file()).is_err());
        assert!(table.remove(0).is_some());
        assert_eq!(table.insert(file()).unwrap(), 0);
    }

    #[test]
    fn a_slot_in_use_is_not_given_away() {
        let mut table = Files::with_capacity(1);
        let slot = table.insert(file()).unwrap();
        table.begin(slot);
        assert!(table.remove(slot).is_none());
        assert!(table.fd(slot).is_some());
        table.end(slot);
        assert!(table.remove(slot).is_some());
        assert!(table.remove(slot).is_none());
    }

    #[test]
    fn a_closing_slot_is_neither_open_nor_free() {
        let mut table = Files::with_capacity(1);
        let slot = table.insert(file()).unwrap();
        let closing = table.begin_close(slot).unwrap();
        assert!(table.fd(slot).is_none());
        assert!(table.insert(file()).is_err());
        assert!(table.begin_close(slot).is_none());
        table.end_close(slot);
        table.end_close(slot);
        drop(closing);
        assert_eq!(table.insert(file()).unwrap(), slot);
        assert!(table.insert(file()).is_err());
    }
}
