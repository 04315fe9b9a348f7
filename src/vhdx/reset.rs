//! Emptying a differencing image: its blocks are given up, its parent shows through everywhere. As it lies in a file, or
//! while it is open for writing.
//!
//! Knows what is fixed when an image is made (identifier, region tables, metadata) and which header counts. Believes neither
//! the table nor the log, so that what was written without any barrier can be emptied whatever became of it.

use super::allocate::Writer;
use super::bat::Bat;
use super::commit::{Copy, Phase, Update};
use super::error::{Structure, VhdxError, VhdxErrorKind};
use super::header::Header;
use super::image::VhdxImage;
use super::layout::Layout;
use super::open::{File, Head, OpenError, read_headers, read_metadata, read_regions};
use super::page_table::PageTable;
use super::space::Space;
use super::{HEADER_OFFSETS, MIB, PAGE_BYTES};
use crate::limits::LAYER_BITMAP_PAGES_MAX;
use crate::plan::{MetaBatch, MetaOp};
use crate::units::ByteOffset;
use uuid::Uuid;

/// Bytes of the table looked at in one reading.
const PIECE_BYTES: u64 = 64 * 1024;

/// What must be done to a file of `len` bytes to empty the image in it; `None` when it is empty.
///
/// Without flushes: who wants the emptiness to be stable flushes after it. Killed half-way, it can be done again. The
/// operations are to be done in their order.
///
/// # Errors
/// The bytes are not those of a differencing VHDX.
pub fn emptied<E>(
    len: u64,
    read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<Option<MetaBatch>, OpenError<E>> {
    let mut file = File::with_empty_log(len, read);
    let Head { header, index, .. } = read_headers(&mut file)?;
    let regions = read_regions(&mut file, header.log(), &mut Vec::new())?;
    let (_, metadata) = read_metadata(&mut file, regions.metadata)?;
    if !metadata.has_parent {
        return Err(VhdxError::new(VhdxErrorKind::NotDifferencing, Structure::File, 0).into());
    }
    let layout = Layout::new(&metadata, regions.bat.start);
    let table = table_range(&layout);
    if table.end > regions.bat.end {
        let (needed, room) = (layout.entries(), regions.bat.len() / super::layout::ENTRY_BYTES);
        let kind = VhdxErrorKind::BatTooSmall { room, needed };
        return Err(VhdxError::new(kind, Structure::Bat, regions.bat.start).into());
    }
    let ends = regions.all().chain([header.log()]).map(|range| range.end);
    let end = ends.max().unwrap_or(MIB).next_multiple_of(MIB);
    if len == end && !header.has_log() && is_zero(&mut file, &table)? {
        return Ok(None);
    }
    let mut batch = MetaBatch::default();
    let mut header = Header { log_guid: Uuid::nil(), ..header };
    for place in [1 - index.min(1), index.min(1)] {
        header.sequence = header.sequence.saturating_add(1);
        batch.push_write(ByteOffset(HEADER_OFFSETS[place]), &header.encode());
    }
    let (offset, bytes) = (ByteOffset(table.start), table.end - table.start);
    batch.ops.push(MetaOp::Zero { offset, len: bytes });
    batch.ops.push(MetaOp::SetLen { len: end });
    Ok(Some(batch))
}

/// The table in whole pages; its region is of whole MiB.
fn table_range(layout: &Layout) -> core::ops::Range<u64> {
    layout.table_offset..layout.entry_offset(layout.entries()).next_multiple_of(PAGE_BYTES as u64)
}

fn is_zero<E, R: FnMut(u64, &mut [u8]) -> Result<(), E>>(
    file: &mut File<R>,
    range: &core::ops::Range<u64>,
) -> Result<bool, OpenError<E>> {
    let mut piece = vec![0; (range.end - range.start).min(PIECE_BYTES) as usize];
    let mut at = range.start;
    while at < range.end {
        let bytes = piece.len().min((range.end - at) as usize);
        file.fill(at, &mut piece[..bytes])?;
        if piece[..bytes].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        at += bytes as u64;
    }
    Ok(true)
}

impl VhdxImage {
    /// As [`crate::vhd::VhdImage::begin_reset`].
    pub fn begin_reset(&mut self) -> bool {
        let end = self.end_of(&Bat::empty(&self.layout)).next_multiple_of(MIB);
        let Some(writer) = &mut self.writer else { return false };
        if !self.layout.differencing || writer.commits.closing {
            return false;
        }
        let mut ids = writer.ids;
        // Entries of the log that is given up must never count as those of the next.
        ids.log = Uuid::from_u128(ids.log.as_u128().wrapping_add(1));
        **writer = Writer {
            commits: writer.commits.afresh(),
            resetting: true,
            phase: Phase::Header(Update::Clear, Copy::First),
            ..Writer::new(ids, Space::new(end, end), end)
        };
        true
    }

    pub(super) fn reset_batch(&self, batch: &mut MetaBatch) {
        let Some(writer) = &self.writer else { return };
        let table = table_range(&self.layout);
        let (offset, len) = (ByteOffset(table.start), table.end - table.start);
        batch.ops.push(MetaOp::Zero { offset, len });
        batch.ops.push(MetaOp::SetLen { len: writer.used_end });
    }

    pub(super) fn reset_done(&mut self) {
        let Some(writer) = &mut self.writer else { return };
        writer.resetting = false;
        self.file_len = writer.used_end;
        self.bat = Bat::empty(&self.layout);
        self.bitmaps = PageTable::new(LAYER_BITMAP_PAGES_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::OpenMode;
    use crate::units::{BlockSize, SectorCount};
    use crate::vhdx::create::{NewDisk, NewKind, ParentRef, create};
    use crate::vhdx::open_with;
    use crate::vhdx::parent_locator::ParentPaths;

    fn new_file(kind: NewKind) -> Vec<u8> {
        let disk = NewDisk {
            kind,
            sectors: SectorCount(65536),
            block_size: 2 << 20,
            logical_sector: BlockSize::B512,
            physical_sector: BlockSize::B4096,
            file_write_guid: Uuid::from_u128(1),
            data_write_guid: Uuid::from_u128(2),
            disk_id: Uuid::from_u128(3),
        };
        let image = create(&disk).unwrap();
        let mut file = vec![0; image.len as usize];
        for (offset, bytes) in &image.writes {
            file[*offset as usize..*offset as usize + bytes.len()].copy_from_slice(bytes);
        }
        file
    }

    fn child() -> Vec<u8> {
        new_file(NewKind::Differencing(ParentRef {
            data_write_guid: Uuid::from_u128(9),
            disk_id: Uuid::from_u128(4),
            paths: ParentPaths { relative: "p.vhdx".to_owned(), ..ParentPaths::default() },
        }))
    }

    fn read(file: &[u8], offset: u64, bytes: &mut [u8]) -> Result<(), ()> {
        bytes.copy_from_slice(file.get(offset as usize..offset as usize + bytes.len()).ok_or(())?);
        Ok(())
    }

    #[test]
    fn whatever_became_of_table_log_and_end_an_image_is_empty_again() {
        let fresh = child();
        assert!(matches!(emptied(fresh.len() as u64, |at, bytes| read(&fresh, at, bytes)), Ok(None)));
        let image = open_with(fresh.len() as u64, OpenMode::ReadOnly, |at, bytes| read(&fresh, at, bytes));
        let image = image.unwrap();
        let (table, log) = (image.regions().bat.start as usize, image.header().0.log());
        for (len, names_a_log) in [(fresh.len(), false), (fresh.len() + (3 << 20) + 777, true)] {
            let mut file = fresh.clone();
            file.resize(len, 0xAB);
            file[table..table + 64].fill(0x11);
            file[log.start as usize..log.end as usize].fill(0x77);
            if names_a_log {
                let header = Header { log_guid: Uuid::from_u128(7), sequence: 99, ..*image.header().0 };
                file[HEADER_OFFSETS[0] as usize..][..4096].copy_from_slice(&header.encode());
            }
            let batch = emptied(len as u64, |at, bytes| read(&file, at, bytes)).unwrap().unwrap();
            for op in &batch.ops {
                match op {
                    MetaOp::Write { offset, bytes } => {
                        let bytes = &batch.bytes[bytes.clone()];
                        file[offset.0 as usize..offset.0 as usize + bytes.len()].copy_from_slice(bytes);
                    }
                    MetaOp::Zero { offset, len } => {
                        file[offset.0 as usize..(offset.0 + len) as usize].fill(0)
                    }
                    MetaOp::SetLen { len } => file.resize(*len as usize, 0),
                    MetaOp::Sync => {}
                }
            }
            let image =
                open_with(file.len() as u64, OpenMode::Writable, |at, bytes| read(&file, at, bytes)).unwrap();
            assert_eq!((image.statistics().allocated_blocks, file.len()), (0, fresh.len()));
            assert!(emptied(file.len() as u64, |at, bytes| read(&file, at, bytes)).unwrap().is_none());
        }
    }

    #[test]
    fn nothing_but_a_child_is_emptied() {
        for kind in [NewKind::Fixed, NewKind::Dynamic] {
            let file = new_file(kind);
            assert!(emptied(file.len() as u64, |at, bytes| read(&file, at, bytes)).is_err());
        }
    }
}
