//! A disk written in one go, as a converter does: blocks are placed when they are first written.
//!
//! Knows where each block of the new file goes and what remains to be written at the end. Does not write, and keeps no
//! order for a crash: the file is given its name only when it is complete.

use super::MIB;
use super::bat::{Bat, BlockState, Entry};
use super::create::{CreateError, Frame, NewDisk, NewKind, Piece, place_all};
use crate::plan::WriteRefused;
use crate::units::{ByteOffset, SECTOR_BYTES};

/// The file under construction: its table in memory, and its end.
#[derive(Debug)]
pub struct Builder {
    frame: Frame,
    bat: Bat,
    end: u64,
}

impl Builder {
    /// # Errors
    /// As [`super::create::create`].
    pub fn new(disk: &NewDisk) -> Result<Self, CreateError> {
        let frame = Frame::new(disk)?;
        let mut bat = Bat::empty(&frame.layout);
        let mut end = frame.data_start;
        if disk.kind == NewKind::Fixed {
            end = place_all(&frame.layout, &mut bat, end);
        }
        Ok(Self { frame, bat, end })
    }

    /// Where the run of the disk that begins at byte `at` goes. A run must not cross the end of a block.
    ///
    /// # Errors
    /// `OutOfRange` beyond the disk.
    pub fn place(&mut self, at: u64) -> Result<ByteOffset, WriteRefused> {
        let layout = &self.frame.layout;
        if at / SECTOR_BYTES >= layout.sectors.0 {
            return Err(WriteRefused::OutOfRange);
        }
        let block = (at / layout.block_bytes()) as u32;
        if self.bat.get(block).offset().is_none() {
            // A disk of 64 TiB with its tables ends far below 2^32 MiB.
            let mib = (self.end / MIB) as u32;
            self.bat.set(block, Entry { state: BlockState::Present, mib });
            self.end += layout.block_bytes();
        }
        let start = self.bat.get(block).offset().ok_or(WriteRefused::OutOfRange)?;
        Ok(ByteOffset(start + at % layout.block_bytes()))
    }

    /// The length of the file, and what must still be written: headers and tables.
    pub fn finish(self) -> (u64, Vec<Piece>) {
        let pieces = self.frame.finish(&self.bat);
        (self.end, pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory_file::MemoryFile;
    use crate::plan::NewImage;
    use crate::plan::{OpenMode, Run};
    use crate::units::{BlockSize, SectorCount};
    use crate::vhdx::open_with;
    use uuid::Uuid;

    fn disk(kind: NewKind, block_size: u32) -> NewDisk {
        NewDisk {
            kind,
            sectors: SectorCount((5 << 30) / 512),
            block_size,
            logical_sector: BlockSize::B512,
            physical_sector: BlockSize::B4096,
            file_write_guid: Uuid::from_u128(1),
            data_write_guid: Uuid::from_u128(2),
            disk_id: Uuid::from_u128(3),
        }
    }

    #[test]
    fn what_is_built_opens_and_is_where_it_was_placed() {
        for (kind, block_size) in
            [(NewKind::Dynamic, 1 << 20), (NewKind::Dynamic, 32 << 20), (NewKind::Fixed, 2 << 20)]
        {
            let mut builder = Builder::new(&disk(kind.clone(), block_size)).unwrap();
            let late = (4 << 30) + 4096;
            let places = [late, 512, late + 512].map(|at| builder.place(at).unwrap());
            assert_eq!(places[2].0, places[0].0 + 512);
            assert_eq!(builder.place(5 << 30), Err(WriteRefused::OutOfRange));
            let (len, writes) = builder.finish();
            let file = MemoryFile::created(&NewImage { len, writes });
            let read = |offset, bytes: &mut [u8]| file.read(offset, bytes);
            let mut image = open_with(file.len(), OpenMode::ReadOnly, read).unwrap();
            assert_eq!(image.run_at(late / 512, 8), Run::Present { offset: places[0], sectors: 8 });
            let other = image.run_at((1 << 30) / 512, 8);
            assert_eq!(matches!(other, Run::Present { .. }), kind == NewKind::Fixed);
        }
    }
}
