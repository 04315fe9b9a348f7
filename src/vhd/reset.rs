//! Emptying a differencing image: its blocks are given up, its parent shows through everywhere. As it lies in a file, or
//! while it is open for writing.
//!
//! Knows what of an image is fixed when it is made and never touched while it is in use: head footer, header, locators.
//! Believes nothing else, so that what was written without any barrier can be emptied whatever became of it.

use super::allocate::Writer;
use super::bat::{Bat, ENTRY_BYTES, UNALLOCATED};
use super::bitmap_table::{BitmapTable, BlockSet};
use super::commit::Phase;
use super::dynamic_header::DynamicHeader;
use super::error::{Structure, VhdError, VhdErrorKind};
use super::footer::Footer;
use super::image::{Body, Sparse, VhdImage};
use super::open::{File, OpenError, header_place, metadata_end, table_place};
use super::space::Space;
use super::{DiskType, FOOTER_BYTES, HEADER_BYTES};
use crate::limits::{CHUNK_BYTES, LAYER_BITMAPS_MAX};
use crate::plan::{MetaBatch, MetaOp};
use crate::units::{ByteOffset, SECTOR_BYTES};

/// What must be done to a file of `len` bytes to empty the image in it; `None` when it is empty.
///
/// Without flushes: who wants the emptiness to be stable flushes after it. Killed half-way, it can be done again.
///
/// # Errors
/// The bytes at the start are not those of a differencing VHD.
pub fn emptied<E>(
    len: u64,
    read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<Option<MetaBatch>, OpenError<E>> {
    let mut file = File::new(len, read);
    if len < FOOTER_BYTES as u64 {
        return Err(VhdError::new(VhdErrorKind::Truncated, Structure::File, len).into());
    }
    let mut footer_bytes = [0; FOOTER_BYTES];
    file.fill(0, &mut footer_bytes)?;
    let footer = Footer::parse(&footer_bytes, Structure::HeadFooter, 0)?;
    if footer.disk_type != DiskType::Differencing {
        return Err(VhdError::new(VhdErrorKind::NotDifferencing, Structure::HeadFooter, 0).into());
    }
    let data_end = len / SECTOR_BYTES * SECTOR_BYTES;
    let header_range = header_place(&footer, data_end)?;
    let mut header_bytes = [0; HEADER_BYTES];
    file.fill(header_range.start, &mut header_bytes)?;
    let header = DynamicHeader::parse(&header_bytes, header_range.start)?;
    let (layout, table) = table_place(&footer, &header, &[header_range], data_end)?;
    let end = metadata_end(&header, &[header_range, table], data_end);
    let mut entries = vec![0; layout.blocks as usize * ENTRY_BYTES as usize];
    file.fill(table.start, &mut entries)?;
    let mut tail = [0; FOOTER_BYTES];
    if let Some(at) = len.checked_sub(FOOTER_BYTES as u64).filter(|at| *at >= end) {
        file.fill(at, &mut tail)?;
    }
    if tail == footer_bytes && entries.iter().all(|byte| *byte == 0xFF) {
        return Ok(None);
    }
    entries.fill(0xFF);
    let mut batch = MetaBatch::default();
    batch.push_write(ByteOffset(table.start), &entries);
    batch.push_write(ByteOffset(end), &footer_bytes);
    batch.ops.push(MetaOp::SetLen { len: end + FOOTER_BYTES as u64 });
    Ok(Some(batch))
}

impl VhdImage {
    /// Gives up every block of a child that is open for writing. Nothing may be under way for it: no write, no read of a
    /// bitmap, no operation of a batch. When the batches that follow have ended the file says so and reads see the
    /// parent. An image that had failed takes writes again: nothing is left of what it was.
    ///
    /// False, and nothing happens, where it is no child, or is not written.
    pub fn begin_reset(&mut self) -> bool {
        let Body::Sparse(sparse) = &mut self.body else { return false };
        let Some(writer) = &mut sparse.writer else { return false };
        if !sparse.differencing || writer.commits.closing {
            return false;
        }
        let (end, commits) = (sparse.metadata_end, writer.commits.afresh());
        let space = Space::new(end, end, end + FOOTER_BYTES as u64);
        *writer = Writer { commits, phase: Phase::Reset, ..Writer::new(space) };
        self.footer_offset = end;
        true
    }
}

impl Sparse {
    /// Entries that say nothing, as far as the table has others, the footer behind the metadata, and no more.
    pub(super) fn reset_batch(&self, footer: &[u8; FOOTER_BYTES], batch: &mut MetaBatch) {
        const PIECE_ENTRIES: u32 = (CHUNK_BYTES as u64 / ENTRY_BYTES) as u32;
        let (table, blocks) = (self.layout.table_offset, self.layout.blocks);
        let bytes = batch.bytes.len();
        batch.bytes.resize(bytes + CHUNK_BYTES, 0xFF);
        for first in (0..blocks).step_by(PIECE_ENTRIES as usize) {
            let count = PIECE_ENTRIES.min(blocks - first);
            if (first..first + count).any(|entry| self.bat.raw(entry) != UNALLOCATED) {
                let offset = ByteOffset(table + u64::from(first) * ENTRY_BYTES);
                let len = (u64::from(count) * ENTRY_BYTES) as usize;
                batch.ops.push(MetaOp::Write { offset, bytes: bytes..bytes + len });
            }
        }
        batch.push_write(ByteOffset(self.metadata_end), footer);
        batch.ops.push(MetaOp::SetLen { len: self.metadata_end + FOOTER_BYTES as u64 });
    }

    pub(super) fn reset_done(&mut self) {
        let blocks = self.layout.blocks;
        self.bat = Bat::from_bytes(&vec![0xFF; blocks as usize * ENTRY_BYTES as usize]);
        self.allocated = 0;
        self.bitmaps = BitmapTable::new(LAYER_BITMAPS_MAX);
        self.full = BlockSet::new(blocks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory_file::{BeyondEnd, MemoryFile};
    use crate::units::SectorCount;
    use crate::vhd::create::{NewDisk, NewKind, ParentRef, create};
    use crate::vhd::{OpenMode, open_with};
    use uuid::Uuid;

    fn new_file(kind: NewKind) -> MemoryFile {
        let disk = NewDisk { kind, sectors: SectorCount(8192), unique_id: Uuid::from_u128(1), timestamp: 0 };
        MemoryFile::created(&create(&disk).unwrap())
    }

    fn emptied_file(file: &MemoryFile) -> Result<Option<MetaBatch>, OpenError<BeyondEnd>> {
        emptied(file.len(), |at, bytes| file.read(at, bytes))
    }

    fn child() -> MemoryFile {
        let parent = ParentRef {
            unique_id: Uuid::from_u128(9),
            timestamp: 0,
            relative: "p.vhd".to_owned(),
            absolute: None,
        };
        new_file(NewKind::Differencing { block_size: 512 << 10, parent })
    }

    #[test]
    fn whatever_became_of_it_an_image_is_empty_again() {
        let fresh = child();
        assert!(matches!(emptied_file(&fresh), Ok(None)));
        // The table, of eight blocks, is the last before the footer.
        let table = fresh.len() - 1024;
        let mut entries = [0; 512];
        fresh.read(table, &mut entries).unwrap();
        assert_eq!(entries, [0xFF; 512]);
        // A table full of nonsense, no footer at the end, any length.
        for len in [fresh.len() - 512, fresh.len() + 100_000, fresh.len() + 777] {
            let mut file = fresh.clone();
            file.set_len(len);
            let end = fresh.len();
            file.write(end.min(len), &vec![0xAB; len.saturating_sub(end) as usize]);
            file.write(table, &[0x11; 32]);
            file.run(&emptied_file(&file).unwrap().unwrap());
            let image = open_with(file.len(), OpenMode::Writable, |at, bytes| file.read(at, bytes));
            assert_eq!(image.unwrap().statistics().allocated_blocks, 0, "{len}");
            assert!(file.len() <= fresh.len() && emptied_file(&file).unwrap().is_none());
        }
    }

    #[test]
    fn an_open_child_is_emptied_whatever_was_written_to_it_and_is_written_again() {
        use crate::plan::{NoRecords, WriteRun};
        use crate::units::{Sector, SectorRange};
        let fresh = child();
        let mut file = fresh.clone();
        let mut image = open_with(file.len(), OpenMode::Writable, |at, bytes| file.read(at, bytes)).unwrap();
        for round in 0..3 {
            // Committed, recorded in memory only, and reserved for a write that never came.
            for (sector, commits) in [(0, true), (3000, true), (5000, false), (7000, false)] {
                while !image.reserve(sector).unwrap() {
                    run_all(&mut image, &mut file);
                }
                if sector == 7000 {
                    continue;
                }
                let run = image.write_run_at(sector, 8).unwrap();
                assert!(matches!(run, WriteRun::InPlace { commit: true, .. }), "round {round}: {run:?}");
                let range = SectorRange::between(Sector(sector), Sector(sector + 8));
                image.write_resolved(range);
                if commits {
                    image.data_written(range, &mut NoRecords);
                } else {
                    image.data_written(range, &mut crate::plan::Forgetful);
                }
                if commits {
                    run_all(&mut image, &mut file);
                }
            }
            assert!(image.statistics().allocated_blocks > 0);
            if round == 2 {
                image.fail();
            }
            assert!(image.begin_reset());
            run_all(&mut image, &mut file);
            assert!(!image.is_failed());
            assert_eq!(image.run_at(0, 8192), crate::plan::Run::Absent { sectors: 8192 });
            assert!(matches!(emptied_file(&file), Ok(None)) && file.len() <= fresh.len(), "round {round}");
        }
        image.begin_close();
        run_all(&mut image, &mut file);
        assert!(matches!(emptied_file(&file), Ok(None)) && !image.begin_reset(), "closed");
    }

    fn run_all(image: &mut VhdImage, file: &mut MemoryFile) {
        let mut batch = MetaBatch::default();
        while image.next_meta_batch(&mut batch) {
            file.run(&batch);
            image.meta_batch_done(Ok(()));
        }
    }

    #[test]
    fn nothing_but_a_child_is_emptied() {
        for kind in [NewKind::Fixed, NewKind::Dynamic { block_size: 512 << 10 }] {
            assert!(emptied_file(&new_file(kind)).is_err());
        }
    }
}
