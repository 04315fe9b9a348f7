//! Writes of a killed process whose metadata never got into the file: taken over from their records.
//!
//! Knows when a record cannot be about this file. Does not know where records were kept, nor whether they are of this
//! boot: who asks for a replay has made sure of that, and nothing is written before all records were believed.

use super::allocate::Reserved;
use super::bat::FileRange;
use super::bitmap_table::PendingBits;
use super::block_bitmap::BlockBitmap;
use super::image::{Body, Sparse, VhdImage};
use super::layout::Layout;
use super::{FOOTER_BYTES, VhdError};
use crate::commits::Wait;
use crate::plan::{self, PendingRecord};
use crate::units::{BlockIndex, SECTOR_BYTES};

/// Why records were not replayed. The file is as it was.
pub type ReplayError<E> = plan::ReplayError<VhdError, E>;

impl VhdImage {
    /// Takes the writes of `records` over, as if they had just ended. Run batches until there are none: a flush, then
    /// the bits and entries.
    ///
    /// # Errors
    /// A record that does not fit; drop the image then, nothing has been written.
    pub fn replay<E>(
        &mut self,
        records: &[PendingRecord],
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), ReplayError<E>> {
        let footer_offset = self.footer_offset;
        let Body::Sparse(sparse) = &mut self.body else { return Err(ReplayError::NotWritable) };
        if sparse.writer.is_none() {
            return Err(ReplayError::NotWritable);
        }
        for record in records {
            sparse.replay_one(record, &mut read)?;
        }
        let area = FileRange { start: FOOTER_BYTES as u64, end: footer_offset };
        sparse.bat.validate(&sparse.layout, area, &sparse.metadata).map_err(ReplayError::Table)?;
        self.request_commit();
        Ok(())
    }
}

impl Sparse {
    fn replay_one<E>(
        &mut self,
        record: &PendingRecord,
        read: &mut impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), ReplayError<E>> {
        let PendingRecord { block, first, sectors, place } = *record;
        let end = first.checked_add(sectors).filter(|end| *end <= self.layout.block_sectors);
        let entry = u32::try_from(place.0 / SECTOR_BYTES).ok().filter(|entry| *entry != u32::MAX);
        let sound = block.0 < self.layout.blocks && sectors > 0 && place.0.is_multiple_of(SECTOR_BYTES);
        let (Some(entry), true, true) = (entry, end.is_some(), sound) else {
            return Err(ReplayError::Impossible(*record));
        };
        match self.bat.get(block) {
            Some(known) if known != entry => return Err(ReplayError::Moved(*record)),
            Some(_) => {}
            None => self.replay_block(block, entry),
        }
        if self.differencing && !self.full.contains(block) {
            self.replay_bits(record, entry, read)?;
        }
        Ok(())
    }

    /// A block the table does not have. Its bitmap is clear but for bits of these records: no commit has completed
    /// since it was prepared.
    fn replay_block(&mut self, block: BlockIndex, entry: u32) {
        let Some(writer) = &mut self.writer else { return };
        writer.reserved.insert(block.0, Reserved { entry, wait: Wait::Commit, recorded: true });
        self.bat.set(block, entry);
        if self.differencing {
            self.bitmaps.insert(block, BlockBitmap::empty(self.layout.block_sectors)).reserved = true;
        } else {
            writer.pending.push(block);
        }
    }

    fn replay_bits<E>(
        &mut self,
        record: &PendingRecord,
        entry: u32,
        read: &mut impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), ReplayError<E>> {
        let (block, block_sectors) = (record.block, self.layout.block_sectors);
        if self.bitmaps.get(block).is_none() {
            let (offset, len) = (Layout::bitmap_offset(entry).0, self.layout.bitmap_bytes() as usize);
            let mut bytes = vec![0; len];
            read(offset, &mut bytes).map_err(|source| ReplayError::Read { offset, len, source })?;
            self.bitmaps.insert(block, BlockBitmap::from_bytes(block_sectors, &bytes));
        }
        let (Some(bitmap), Some(writer)) = (self.bitmaps.get(block), &mut self.writer) else { return Ok(()) };
        if bitmap.set.all_set(record.first, record.sectors) {
            return Ok(());
        }
        let pending = &mut bitmap.writes.get_or_insert_with(|| PendingBits::none(block_sectors)).pending;
        if pending.is_clear() {
            writer.pending.push(block);
        }
        pending.set_missing(record.first, record.sectors, &bitmap.set);
        bitmap.set.set(record.first, record.sectors);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory_file::MemoryFile;
    use crate::plan::{MetaBatch, NoRecords, RecordSink, WriteKind};
    use crate::units::{ByteOffset, Sector, SectorCount, SectorRange};
    use crate::vhd::create::{NewDisk, NewKind, ParentRef, create};
    use crate::vhd::{OpenMode, WriteRun, open_with};
    use uuid::Uuid;

    /// Keeps what it is given.
    #[derive(Default)]
    struct Kept(Vec<PendingRecord>);

    impl RecordSink for Kept {
        fn record(&mut self, record: PendingRecord) -> bool {
            self.0.push(record);
            true
        }
    }

    fn new_file(differencing: bool) -> MemoryFile {
        let parent = ParentRef {
            unique_id: Uuid::from_u128(9),
            timestamp: 0,
            relative: "p.vhd".to_owned(),
            absolute: None,
        };
        let block_size = 512 << 10;
        let kind = if differencing {
            NewKind::Differencing { block_size, parent }
        } else {
            NewKind::Dynamic { block_size }
        };
        let disk = NewDisk { kind, sectors: SectorCount(8192), unique_id: Uuid::from_u128(1), timestamp: 0 };
        MemoryFile::created(&create(&disk).unwrap())
    }

    fn open(file: &MemoryFile) -> VhdImage {
        open_with(file.len(), OpenMode::Writable, |offset, bytes| file.read(offset, bytes)).unwrap()
    }

    fn pump(image: &mut VhdImage, file: &mut MemoryFile) {
        let mut batch = MetaBatch::default();
        while image.next_meta_batch(&mut batch) {
            file.run(&batch);
            image.meta_batch_done(Ok(()));
        }
    }

    fn write(image: &mut VhdImage, file: &mut MemoryFile, sector: u64, sink: &mut dyn RecordSink) -> bool {
        let range = SectorRange::between(Sector(sector), Sector(sector + 4));
        loop {
            match image.write_run_at(sector, 4).unwrap() {
                WriteRun::Unallocated { .. } => {
                    if !image.reserve(sector).unwrap() {
                        pump(image, file);
                    }
                }
                WriteRun::InPlace { offset, commit, .. } => {
                    image.write_resolved(range);
                    file.write(offset.0, &[7; 2048]);
                    return commit && image.data_written(range, sink) > image.committed();
                }
                other => panic!("{other:?} for {:?}", WriteKind::Data),
            }
        }
    }

    #[test]
    fn recorded_writes_are_complete_at_once_seen_and_not_in_the_file() {
        for differencing in [true, false] {
            let mut file = new_file(differencing);
            let mut image = open(&file);
            let mut kept = Kept::default();
            assert!(!write(&mut image, &mut file, 5, &mut kept), "complete without a commit");
            assert!(!write(&mut image, &mut file, 5, &mut NoRecords), "known sectors need no second record");
            assert!(matches!(image.run_at(5, 4), crate::vhd::Run::Present { sectors: 4, .. }));
            assert_eq!((kept.0.len(), image.pending_blocks()), (1, 1));
            assert_eq!(open(&file).statistics().allocated_blocks, 0);
        }
    }

    #[test]
    fn a_replay_brings_back_what_the_file_does_not_say() {
        for differencing in [true, false] {
            let mut file = new_file(differencing);
            let mut image = open(&file);
            let mut kept = Kept::default();
            for sector in [5, 2000, 2007, 5000] {
                write(&mut image, &mut file, sector, &mut kept);
            }
            drop(image);
            let mut image = open(&file);
            let before = file.clone();
            image.replay(&kept.0, |offset, bytes| before.read(offset, bytes)).unwrap();
            pump(&mut image, &mut file);
            // Twice does no harm: a kill may come between the metadata and the end of the records.
            let mut image = open(&file);
            let before = file.clone();
            image.replay(&kept.0, |offset, bytes| before.read(offset, bytes)).unwrap();
            pump(&mut image, &mut file);
            assert!(file == before);
            for sector in [5, 2000, 2007, 5000] {
                if let crate::vhd::Run::NeedBitmap(request) = image.run_at(sector, 4) {
                    let mut bitmap = [0; 512];
                    file.read(request.offset.0, &mut bitmap).unwrap();
                    image.bitmap_loaded(request.block, request.ticket, &bitmap);
                }
                assert!(matches!(image.run_at(sector, 4), crate::vhd::Run::Present { sectors: 4, .. }));
            }
        }
    }

    #[test]
    fn records_of_another_file_are_refused_and_nothing_is_written() {
        let mut file = new_file(true);
        let mut image = open(&file);
        let mut kept = Kept::default();
        write(&mut image, &mut file, 5, &mut kept);
        image.request_commit();
        pump(&mut image, &mut file);
        let good = kept.0[0];
        let refused = |record: PendingRecord| {
            let mut image = open(&file);
            image.replay(&[record], |offset, bytes| file.read(offset, bytes)).unwrap_err()
        };
        let moved = PendingRecord { place: ByteOffset(good.place.0 + 512), ..good };
        assert!(matches!(refused(moved), ReplayError::Moved(_)));
        for bad in [
            PendingRecord { block: BlockIndex(16), ..good },
            PendingRecord { first: 1021, ..good },
            PendingRecord { first: u32::MAX, ..good },
            PendingRecord { place: ByteOffset(u64::MAX), ..good },
            PendingRecord { place: ByteOffset(good.place.0 + 1), ..good },
            PendingRecord { sectors: 0, ..good },
        ] {
            assert!(matches!(refused(bad), ReplayError::Impossible(_)), "{bad:?}");
        }
        // Over another block, over the header, behind the footer.
        for place in [good.place.0 + 4096, 512, file.len() - 512] {
            let record = PendingRecord { block: BlockIndex(3), place: ByteOffset(place), ..good };
            assert!(matches!(refused(record), ReplayError::Table(_)), "{record:?}");
        }
    }
}
