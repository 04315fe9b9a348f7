//! Writes of a killed process whose metadata never got into the log: taken over from their records.
//!
//! Knows when a record cannot be about this file. Does not know where records were kept, nor whether they are of this
//! boot: who asks for a replay has made sure of that, and nothing is written before all records were believed.
//!
//! The log comes first (`open::replay_with`): what it says is older than any record.

use super::allocate::{Change, Marked};
use super::bat::{BlockState, Entry};
use super::image::VhdxImage;
use super::sector_bitmap::BitmapPage;
use super::space::{Extension, Space};
use super::{MIB, PAGE_BYTES, Structure, VhdxError, open};
use crate::commits::Wait;
use crate::limits::VHDX_FILE_BYTES_MAX;
use crate::plan::{self, PendingRecord};
use crate::units::{Sector, SectorRange};
use uuid::Uuid;

/// Why records were not replayed. The file is as it was.
pub type ReplayError<E> = plan::ReplayError<VhdxError, E>;

impl VhdxImage {
    /// What the headers call the data once somebody has written: all records of this opening are of that data.
    pub fn data_when_written(&self) -> Option<Uuid> {
        self.writer.as_ref().map(|writer| writer.ids.data_write)
    }

    /// Takes the writes of `records` over, as if they had just ended. Call it after [`Self::begin_writing`], with the
    /// identifier the data has already; run batches until there are none. An image that has no space for them is dropped, and
    /// tried again later.
    ///
    /// # Errors
    /// A record that does not fit; drop the image then, nothing has been written.
    pub fn replay<E>(
        &mut self,
        records: &[PendingRecord],
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), ReplayError<E>> {
        if self.writer.is_none() || self.replay.is_some() {
            return Err(ReplayError::NotWritable);
        }
        for record in records {
            self.replay_one(record, &mut read)?;
        }
        self.place_bitmaps();
        self.check_places().map_err(ReplayError::Table)?;
        if let Some(writer) = &mut self.writer {
            writer.marked = Marked::Wanted;
        }
        self.request_commit();
        Ok(())
    }

    fn replay_one<E>(
        &mut self,
        record: &PendingRecord,
        read: &mut impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), ReplayError<E>> {
        let PendingRecord { block, first, sectors, place } = *record;
        let impossible = Err(ReplayError::Impossible(*record));
        let end = first.checked_add(sectors).filter(|end| *end <= self.layout.valid_sectors(block.0));
        let fits = place
            .0
            .checked_add(self.layout.block_bytes())
            .is_some_and(|end| place.0.is_multiple_of(MIB) && end <= self.file_len.min(VHDX_FILE_BYTES_MAX));
        if block.0 >= self.layout.blocks || sectors == 0 || end.is_none() || !fits {
            return impossible;
        }
        match self.bat.get(block.0).offset() {
            Some(known) if known != place.0 => return Err(ReplayError::Moved(*record)),
            Some(_) => {}
            // Files end below 2^27 MiB.
            None => self.replay_block(block.0, (place.0 / MIB) as u32, read)?,
        }
        if self.bat.get(block.0).state != BlockState::Partial {
            return Ok(());
        }
        let start = u64::from(block.0) * u64::from(self.layout.block_sectors) + u64::from(first);
        if !self.is_aligned(start, u64::from(sectors)) {
            return impossible;
        }
        let mut pages = Vec::new();
        let range = SectorRange::between(Sector(start), Sector(start + u64::from(sectors)));
        self.each_page(range, |_, page, bits| pages.push((page, bits)));
        for (page, bits) in pages {
            self.load_page(page, read)?;
            self.bits_pending(page, bits, true);
        }
        Ok(())
    }

    /// A block the table does not have. Of its bits only those of these records mean anything.
    fn replay_block<E>(
        &mut self,
        block: u32,
        mib: u32,
        read: &mut impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), ReplayError<E>> {
        let entry = Entry { state: self.becomes(block), mib };
        if entry.state == BlockState::Partial {
            for page in self.layout.pages_of(block) {
                self.load_page(page, read)?;
            }
            self.clear_bits(block);
        }
        let chunk = self.layout.chunk_of(block);
        let bitmap = entry.state == BlockState::Partial && !self.bat.bitmap(chunk).state.has_place();
        let Some(writer) = &mut self.writer else { return Ok(()) };
        let recorded_over = Some(self.bat.get(block));
        writer.changes.insert(block, Change { entry, wait: Wait::Commit, fresh: true, recorded_over });
        writer.pending_blocks.push(block);
        if bitmap {
            // Its place is found once the places of all records are known.
            writer.new_bitmaps.insert(chunk, 0);
        }
        self.bat.set(block, entry);
        Ok(())
    }

    /// Brings a page of sector bitmaps into memory, as the file has it.
    fn load_page<E>(
        &mut self,
        page: u32,
        read: &mut impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), ReplayError<E>> {
        if self.bitmaps.peek(page).is_some() {
            return Ok(());
        }
        let mut bytes = [0; PAGE_BYTES];
        if let Some(offset) = self.page_offset(page) {
            read(offset, &mut bytes).map_err(|source| ReplayError::Read {
                offset,
                len: PAGE_BYTES,
                source,
            })?;
        }
        self.bitmaps.get_or_insert(page, BitmapPage::from_bytes(&bytes));
        Ok(())
    }

    /// New sector bitmaps lie behind all blocks, those of the records included, and so does whatever is written next.
    fn place_bitmaps(&mut self) {
        let block_bytes = self.layout.block_bytes();
        let Some(writer) = &mut self.writer else { return };
        let places = writer.changes.values().filter_map(|change| change.entry.offset());
        let start = places.map(|start| start + block_bytes).fold(writer.used_end, u64::max);
        let mut end = start;
        for mib in writer.new_bitmaps.values_mut() {
            *mib = (end / MIB) as u32;
            end += MIB;
        }
        writer.space = Space::new(self.file_len, end);
        if end > start {
            let (old, longer) = (self.file_len.clamp(start, end), end > self.file_len);
            writer.extension = Some(Extension { start, end, old, longer });
        }
    }

    /// No block lies over another, nor over anything else.
    fn check_places(&self) -> Result<(), VhdxError> {
        let Some(writer) = &self.writer else { return Ok(()) };
        let end = writer.extension.map_or(0, |extension| extension.end);
        let len = self.file_len.max(end);
        let mut validator = open::validator(&self.layout, len, &self.regions, self.header.log());
        for (structure, entry) in self.bat.placed() {
            match structure {
                Structure::SectorBitmap(chunk) => validator.bitmap(chunk, entry.encode())?,
                Structure::Block(block) => validator.block(block, entry.encode())?,
                _ => continue,
            };
        }
        for (chunk, mib) in &writer.new_bitmaps {
            validator.bitmap(*chunk, Entry { state: BlockState::Present, mib: *mib }.encode())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory_file::MemoryFile;
    use crate::plan::{MetaBatch, OpenMode, RecordSink, Run, WriteRun};
    use crate::units::{BlockIndex, BlockSize, ByteOffset, SectorCount};
    use crate::vhdx::create::{NewDisk, NewKind, ParentRef, create};
    use crate::vhdx::parent_locator::ParentPaths;
    use crate::vhdx::{WriteIds, check, open_with, replay_with};

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
            data_write_guid: Uuid::from_u128(9),
            disk_id: Uuid::from_u128(4),
            paths: ParentPaths { relative: "p.vhdx".to_owned(), ..ParentPaths::default() },
        };
        let disk = NewDisk {
            kind: if differencing { NewKind::Differencing(parent) } else { NewKind::Dynamic },
            sectors: SectorCount(16 << 11),
            block_size: 1 << 20,
            logical_sector: BlockSize::B512,
            physical_sector: BlockSize::B4096,
            file_write_guid: Uuid::from_u128(1),
            data_write_guid: Uuid::from_u128(2),
            disk_id: Uuid::from_u128(3),
        };
        MemoryFile::created(&create(&disk).unwrap())
    }

    /// As after a kill: the log first.
    fn open(file: &mut MemoryFile) -> VhdxImage {
        let batches = replay_with(file.len(), |offset, bytes| file.read(offset, bytes)).unwrap();
        batches.iter().for_each(|batch| file.run(batch));
        let image = open_with(file.len(), OpenMode::Writable, |offset, bytes| file.read(offset, bytes));
        let mut image = image.unwrap();
        let data_write = image.data_write_guid();
        image.begin_writing(WriteIds { file_write: Uuid::from_u128(7), data_write, log: Uuid::from_u128(8) });
        image
    }

    fn pump(image: &mut VhdxImage, file: &mut MemoryFile) {
        let mut batch = MetaBatch::default();
        while image.next_meta_batch(&mut batch) {
            file.run(&batch);
            image.meta_batch_done(Ok(()));
        }
    }

    fn write(image: &mut VhdxImage, file: &mut MemoryFile, sector: u64, sink: &mut dyn RecordSink) -> bool {
        let range = SectorRange::between(Sector(sector), Sector(sector + 4));
        loop {
            match image.write_run_at(sector, 4).unwrap() {
                WriteRun::Unallocated { .. } => {
                    if !image.reserve(sector).unwrap() {
                        pump(image, file);
                    }
                }
                WriteRun::NeedMetadata => pump(image, file),
                WriteRun::InPlace { offset, commit, .. } => {
                    image.write_resolved(range);
                    file.write(offset.0, &[7; 2048]);
                    return commit && image.data_written(range, sink) > image.committed();
                }
                other => panic!("{other:?}"),
            }
        }
    }

    const WRITTEN: [u64; 4] = [5, 4100, 4107, 9000];

    fn present(image: &mut VhdxImage, file: &MemoryFile, sector: u64) -> bool {
        if let Run::NeedBitmap(request) = image.run_at(sector, 4) {
            let mut bitmap = [0; PAGE_BYTES];
            file.read(request.offset.0, &mut bitmap).unwrap();
            image.bitmap_loaded(request.block, request.ticket, &bitmap);
        }
        matches!(image.run_at(sector, 4), Run::Present { sectors: 4, .. })
    }

    #[test]
    fn a_replay_brings_back_what_the_file_does_not_say() {
        for differencing in [true, false] {
            let mut file = new_file(differencing);
            let mut image = open(&mut file);
            let mut kept = Kept::default();
            for sector in WRITTEN {
                assert!(!write(&mut image, &mut file, sector, &mut kept), "complete without a commit");
                assert!(present(&mut image, &file, sector));
            }
            drop(image);
            let mut image = open(&mut file);
            assert_eq!(image.statistics().allocated_blocks, 0);
            for _ in 0..2 {
                // Twice does no harm: a kill may come between the metadata and the end of the records.
                let before = file.clone();
                image.replay(&kept.0, |offset, bytes| before.read(offset, bytes)).unwrap();
                pump(&mut image, &mut file);
                drop(image);
                image = open(&mut file);
            }
            assert_eq!(image.statistics().allocated_blocks, 3);
            assert!(WRITTEN.into_iter().all(|sector| present(&mut image, &file, sector)));
            assert_eq!(present(&mut image, &file, 20), !differencing);
            let report = check::check(file.len(), |offset, bytes| file.read(offset, bytes)).unwrap();
            assert!(report.findings.iter().all(|finding| finding.severity != check::Severity::Error));
        }
    }

    #[test]
    fn recorded_bits_stay_out_of_the_commit_that_runs() {
        let mut file = new_file(true);
        let mut image = open(&mut file);
        let mut kept = Kept::default();
        write(&mut image, &mut file, 5, &mut kept);
        image.request_commit();
        let mut batch = MetaBatch::default();
        // The flush of the commit is handed out; another write is recorded behind it.
        while image.commit_begun() <= image.committed() {
            assert!(image.next_meta_batch(&mut batch));
            file.run(&batch);
            image.meta_batch_done(Ok(()));
        }
        write(&mut image, &mut file, 50, &mut kept);
        write(&mut image, &mut file, 5000, &mut kept);
        pump(&mut image, &mut file);
        assert_eq!((image.committed().0, image.pending_blocks()), (1, 2));
        drop(image);
        let mut image = open(&mut file);
        let seen = |image: &mut VhdxImage, file: &MemoryFile| {
            [5, 50, 5000].map(|sector| present(image, file, sector))
        };
        assert_eq!(seen(&mut image, &file), [true, false, false]);
        let before = file.clone();
        image.replay(&kept.0[1..], |offset, bytes| before.read(offset, bytes)).unwrap();
        pump(&mut image, &mut file);
        assert_eq!(seen(&mut open(&mut file), &file.clone()), [true; 3]);
    }

    #[test]
    fn records_of_another_file_are_refused_and_nothing_is_written() {
        let mut file = new_file(true);
        let mut image = open(&mut file);
        let mut kept = Kept::default();
        write(&mut image, &mut file, 5, &mut kept);
        image.request_commit();
        pump(&mut image, &mut file);
        let good = kept.0[0];
        let mut refused = |record: PendingRecord| {
            let mut image = open(&mut file);
            image.replay(&[record], |offset, bytes| file.read(offset, bytes)).unwrap_err()
        };
        let moved = PendingRecord { place: ByteOffset(good.place.0 + MIB), ..good };
        assert!(matches!(refused(moved), ReplayError::Moved(_)));
        for bad in [
            PendingRecord { block: BlockIndex(16), ..good },
            PendingRecord { first: 2046, ..good },
            PendingRecord { first: u32::MAX, ..good },
            PendingRecord { place: ByteOffset(u64::MAX), ..good },
            PendingRecord { place: ByteOffset(good.place.0 + 512), ..good },
            PendingRecord { sectors: 0, ..good },
        ] {
            assert!(matches!(refused(bad), ReplayError::Impossible(_)), "{bad:?}");
        }
        // Over another block, over the head of the file, over its metadata.
        for place in [good.place.0, 0, 2 * MIB] {
            let record = PendingRecord { block: BlockIndex(3), place: ByteOffset(place), ..good };
            assert!(matches!(refused(record), ReplayError::Table(_)), "{record:?}");
        }
    }
}
