//! Another parent for a differencing disk: a new header and a new locator, in an order that a crash cannot break.
//!
//! Knows what a header says of its parent, and where in the file the new one may lie meanwhile. Does not know whether
//! the new parent has the right content: who asks for this has compared.
//!
//! A header is two sectors under one checksum, so it cannot be written over: half of it would be no header. A footer is
//! one sector, and says where the header is. So:
//!
//! ```text
//! 1  the old footer again, behind room for a header and a locator     the file is longer, and means the same
//! 2  the new header and locator in that room
//! 3  the footer at the end: it names the new header                   from here on the parent is the new one
//! 4  the copy at the start
//! 5  the new header (and, where it fits, the locator) at the old place, which nothing refers to now
//! 6  the footer at the end: it names the old place again
//! 7  the copy at the start
//! 8  where the locator fitted: the file is cut behind the footer it had before
//! ```
//!
//! Each step is stable before the next. Between 3 and 4, and between 6 and 7, the footers name different headers; the one
//! at the end rules, and a writer asks for a repair, which is to write the copy ([`interrupted`] does just that).
//!
//! A time stamp and the checksum lie in one sector: that alone is changed in place ([`restamp`]).

use super::bat::FileRange;
use super::create::{CREATOR, ParentRef, base_name, relative_locator};
use super::dynamic_header::{self, DynamicHeader, LocatorEntry};
use super::error::Structure;
use super::footer::{CHECKSUM_AT, DATA_OFFSET_AT, Footer, checksum};
use super::image::{Body, OpenMode, VhdImage};
use super::open::{OpenError, open_with, tail_place};
use super::parent_locator::{self, LOCATOR_BYTES_MAX, LOCATORS, W2RU};
use super::{DiskType, FOOTER_BYTES, HEADER_BYTES};
use crate::plan::{MetaBatch, MetaOp};
use crate::units::{ByteOffset, SECTOR_BYTES};

/// The new header lies in pages without blocks.
const ALIGN: u64 = 4096;

/// Why an image gets no other parent.
#[derive(Debug, thiserror::Error)]
pub enum RelinkError<E> {
    #[error(transparent)]
    Open(#[from] OpenError<E>),
    #[error("it is no differencing disk and has no parent")]
    NoChild,
    #[error(
        "the path of the parent has {0} bytes as UTF-16, more than 4096: move the images closer together"
    )]
    ParentPath(usize),
}

/// The batches that make `parent` the parent of the differencing disk of `len` bytes. `read` is as for [`open_with`].
///
/// Nothing else of the file changes. All former locators go: they name the former parent.
///
/// # Errors
/// When the image cannot be opened for writing, which includes that it needs a repair, or has no parent.
pub fn relink<E>(
    len: u64,
    parent: &ParentRef,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<Vec<MetaBatch>, RelinkError<E>> {
    let image = open_with(len, OpenMode::Writable, &mut read)?;
    let at = image.footer.data_offset;
    let mut bytes = [0; HEADER_BYTES];
    read(at, &mut bytes).map_err(|source| OpenError::Read { offset: at, len: HEADER_BYTES, source })?;
    let old = DynamicHeader::parse(&bytes, at).map_err(OpenError::Vhd)?;
    if image.parent.is_none() {
        return Err(RelinkError::NoChild);
    }
    let text = parent_locator::encode(&relative_locator(&parent.relative));
    if text.len() > LOCATOR_BYTES_MAX {
        return Err(RelinkError::ParentPath(text.len()));
    }
    Ok(Relink { image, old, parent, text }.batches())
}

/// The batches that tell a differencing disk its parent's time stamp: one sector, old or new.
///
/// # Errors
/// As [`relink`].
pub fn restamp<E>(
    len: u64,
    timestamp: u32,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<Vec<MetaBatch>, RelinkError<E>> {
    let image = open_with(len, OpenMode::Writable, &mut read)?;
    if image.parent.is_none() {
        return Err(RelinkError::NoChild);
    }
    let at = image.footer.data_offset;
    let mut bytes = [0; HEADER_BYTES];
    read(at, &mut bytes).map_err(|source| OpenError::Read { offset: at, len: HEADER_BYTES, source })?;
    dynamic_header::set_parent_timestamp(&mut bytes, timestamp);
    Ok(step(vec![(at, bytes[..SECTOR_BYTES as usize].to_vec())]).into())
}

/// The batches that finish a [`relink`] which was stopped between its two footers; none where nothing is to be finished,
/// or where the footers differ in anything else.
///
/// # Errors
/// Those of `read`.
pub fn interrupted<E>(
    len: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<Vec<MetaBatch>, E> {
    let Some((at, FOOTER_BYTES)) = tail_place(len) else { return Ok(Vec::new()) };
    let (mut head, mut tail) = ([0; FOOTER_BYTES], [0; FOOTER_BYTES]);
    read(0, &mut head)?;
    read(at, &mut tail)?;
    let footers =
        (Footer::parse(&head, Structure::HeadFooter, 0), Footer::parse(&tail, Structure::TailFooter, at));
    let (Ok(old), Ok(new)) = footers else { return Ok(Vec::new()) };
    let elsewhere =
        Footer { data_offset: new.data_offset, ..old } == new && old.data_offset != new.data_offset;
    let finished = elsewhere && new.disk_type == DiskType::Differencing;
    Ok(if finished { step(vec![(0, tail.to_vec())]).into() } else { Vec::new() })
}

/// Everything the batches are made of.
struct Relink<'a> {
    image: VhdImage,
    old: DynamicHeader,
    parent: &'a ParentRef,
    text: Vec<u8>,
}

impl Relink<'_> {
    fn batches(&self) -> Vec<MetaBatch> {
        let tail = self.image.footer_offset;
        let header_at = (tail + FOOTER_BYTES as u64).next_multiple_of(ALIGN);
        let text_at = header_at + HEADER_BYTES as u64;
        let end = text_at + self.space();
        let home = self.image.footer.data_offset;
        let slot = self.slot(home);
        let away = footer_naming(&self.image.footer_bytes, header_at);
        let back = footer_naming(&self.image.footer_bytes, home);
        let mut steps = vec![
            vec![(end, self.image.footer_bytes.to_vec())],
            vec![(header_at, self.header(text_at)), (text_at, self.padded())],
            vec![(end, away.to_vec())],
            vec![(0, away.to_vec())],
        ];
        steps.push(match slot {
            Some(slot) => vec![(home, self.header(slot)), (slot, self.padded())],
            None => vec![(home, self.header(text_at))],
        });
        steps.push(vec![(end, back.to_vec())]);
        steps.push(vec![(0, back.to_vec())]);
        let mut batches: Vec<MetaBatch> = steps.into_iter().flat_map(step).collect();
        if slot.is_some() {
            // The footer that was at the end before is there still; of an old writer's 511 bytes, with a zero behind.
            let len = tail + FOOTER_BYTES as u64;
            batches.push(MetaBatch { ops: vec![MetaOp::SetLen { len }], bytes: Vec::new() });
            batches.push(sync());
        }
        batches
    }

    fn space(&self) -> u64 {
        (self.text.len() as u64).next_multiple_of(SECTOR_BYTES)
    }

    fn padded(&self) -> Vec<u8> {
        let mut bytes = self.text.clone();
        bytes.resize(self.space() as usize, 0);
        bytes
    }

    /// The new header, its locator at `text_at`.
    fn header(&self, text_at: u64) -> Vec<u8> {
        let mut locators = [LocatorEntry::default(); LOCATORS];
        locators[0] = LocatorEntry {
            code: W2RU,
            // At most 4096 each.
            data_space: self.space() as u32,
            data_len: self.text.len() as u32,
            data_offset: text_at,
        };
        let header = DynamicHeader {
            parent_unique_id: self.parent.unique_id,
            parent_timestamp: self.parent.timestamp,
            parent_name: Some(base_name(&self.parent.relative).to_owned()),
            locators,
            ..self.old.clone()
        };
        header.encode().to_vec()
    }

    /// A place before the blocks for the locator: in our own files between header and table, in others where a
    /// locator was that we understand.
    fn slot(&self, home: u64) -> Option<u64> {
        let need = self.space();
        let behind_header = home + HEADER_BYTES as u64;
        let ours = self.image.footer.creator_app == CREATOR;
        let gap = ours.then_some((behind_header, self.old.table_offset.saturating_sub(behind_header)));
        let known = self.old.locators.iter().filter(|entry| parent_locator::is_known(entry.code));
        let former = known
            .filter(|entry| entry.data_offset.is_multiple_of(SECTOR_BYTES))
            .map(|entry| (entry.data_offset, u64::from(entry.data_len).next_multiple_of(SECTOR_BYTES)));
        let fits = |&(start, space): &(u64, u64)| space >= need && self.is_free(start, start + need, home);
        gap.into_iter().chain(former).find(fits).map(|(start, _)| start)
    }

    /// True when nothing but former locators lies there. A damaged file may have put anything anywhere.
    fn is_free(&self, start: u64, end: u64, home: u64) -> bool {
        let Body::Sparse(sparse) = &self.image.body else { return false };
        let place = FileRange { start, end };
        let table_end = self.old.table_offset + u64::from(self.old.max_table_entries) * 4;
        let fixed = [
            FileRange { start: 0, end: FOOTER_BYTES as u64 },
            FileRange { start: home, end: home + HEADER_BYTES as u64 },
            FileRange { start: self.old.table_offset, end: table_end.next_multiple_of(SECTOR_BYTES) },
        ];
        let stored = sparse.layout.stored_sectors() * SECTOR_BYTES;
        let blocks = sparse.bat.allocated().map(|(_, entry)| u64::from(entry) * SECTOR_BYTES);
        let mut blocks = blocks.map(|start| FileRange { start, end: start + stored });
        end <= self.image.footer_offset
            && !fixed.iter().any(|range| range.overlaps(place))
            && !blocks.any(|block| block.overlaps(place))
    }
}

/// `footer` with another place of the header.
fn footer_naming(footer: &[u8; FOOTER_BYTES], header_at: u64) -> [u8; FOOTER_BYTES] {
    let mut bytes = *footer;
    bytes[DATA_OFFSET_AT..DATA_OFFSET_AT + 8].copy_from_slice(&header_at.to_be_bytes());
    let sum = checksum(&bytes, CHECKSUM_AT);
    bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn step(writes: Vec<(u64, Vec<u8>)>) -> [MetaBatch; 2] {
    let mut batch = MetaBatch::default();
    for (offset, bytes) in writes {
        batch.push_write(ByteOffset(offset), &bytes);
    }
    [batch, sync()]
}

fn sync() -> MetaBatch {
    MetaBatch { ops: vec![MetaOp::Sync], bytes: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::SectorCount;
    use crate::vhd::check::check;
    use crate::vhd::create::{NewDisk, NewKind, create};
    use crate::vhd::{OpenError, Warning};
    use uuid::Uuid;

    fn parent(id: u128, relative: &str) -> ParentRef {
        ParentRef {
            unique_id: Uuid::from_u128(id),
            timestamp: id as u32,
            relative: relative.into(),
            absolute: None,
        }
    }

    /// A child of parent 1 with an allocated block.
    fn child(creator: Option<[u8; 4]>) -> Vec<u8> {
        let kind = NewKind::Differencing { block_size: 512 << 10, parent: parent(1, "old.vhd") };
        let disk = NewDisk { kind, sectors: SectorCount(3000), unique_id: Uuid::from_u128(9), timestamp: 3 };
        let new = create(&disk).unwrap();
        let mut file = vec![0; new.len as usize];
        for (at, bytes) in &new.writes {
            file[*at as usize..][..bytes.len()].copy_from_slice(bytes);
        }
        let mut footer: [u8; 512] = file[..512].try_into().unwrap();
        if let Some(creator) = creator {
            footer[28..32].copy_from_slice(&creator);
            footer = footer_naming(&footer, 512);
            file[..512].copy_from_slice(&footer);
        }
        let block = file.len() - 512;
        file[4096..4100].copy_from_slice(&((block / 512) as u32).to_be_bytes());
        file.truncate(block);
        file.extend([0xF0; 512]);
        file.extend(vec![7; 512 << 10]);
        file.extend(footer);
        file
    }

    fn reader(file: &[u8]) -> impl FnMut(u64, &mut [u8]) -> Result<(), ()> {
        move |at, bytes| {
            bytes.copy_from_slice(file.get(at as usize..at as usize + bytes.len()).ok_or(())?);
            Ok(())
        }
    }

    fn run(file: &mut Vec<u8>, op: &MetaOp, bytes: &[u8]) {
        match op {
            MetaOp::Write { offset, bytes: range } => {
                let end = offset.0 as usize + range.len();
                file.resize(file.len().max(end), 0);
                file[offset.0 as usize..end].copy_from_slice(&bytes[range.clone()]);
            }
            MetaOp::SetLen { len } => file.resize(*len as usize, 0),
            MetaOp::Sync => {}
            MetaOp::Zero { .. } => panic!("nothing is zeroed"),
        }
    }

    /// Opens and says whose child it is; the block must be where it was.
    fn parent_of(file: &[u8]) -> u128 {
        let mut image = open_with(file.len() as u64, OpenMode::ReadOnly, reader(file)).unwrap();
        let repairable = |warning: &Warning| matches!(warning, Warning::FootersDiffer);
        assert!(image.warnings().iter().all(repairable), "{:?}", image.warnings());
        assert!(image.statistics().allocated_blocks == 1 && image.sectors().0 == 3000);
        assert!(matches!(image.run_at(0, 4), crate::plan::Run::NeedBitmap(_)));
        let parent = image.parent().unwrap();
        let name = if parent.unique_id.as_u128() == 1 { "old.vhd" } else { "new.vhd" };
        assert!(parent.candidates[0].path.ends_with(name), "{parent:?}");
        parent.unique_id.as_u128()
    }

    /// All sectors of a batch's writes, each of which reaches the disk or does not.
    fn sectors(batch: &MetaBatch) -> Vec<(u64, Vec<u8>)> {
        let mut sectors = Vec::new();
        for op in &batch.ops {
            if let MetaOp::Write { offset, bytes } = op {
                let all = batch.bytes[bytes.clone()].chunks(512).enumerate();
                sectors.extend(all.map(|(index, bytes)| (offset.0 + 512 * index as u64, bytes.to_vec())));
            }
        }
        sectors
    }

    fn every_cut_is_the_old_or_the_new_child(mut file: Vec<u8>, relative: &str) -> Vec<u8> {
        let batches = relink(file.len() as u64, &parent(2, relative), reader(&file)).unwrap();
        let mut seen = 1;
        for batch in &batches {
            let parts = sectors(batch);
            for subset in 0..1_u32 << parts.len() {
                let mut cut = file.clone();
                for (index, (at, bytes)) in parts.iter().enumerate() {
                    if subset & 1 << index != 0 {
                        let end = *at as usize + 512;
                        cut.resize(cut.len().max(end), 0);
                        cut[*at as usize..end].copy_from_slice(bytes);
                    }
                }
                let found = parent_of(&cut);
                assert!(found >= seen, "the old parent came back");
            }
            for op in &batch.ops {
                run(&mut file, op, &batch.bytes);
            }
            seen = parent_of(&file);
        }
        assert_eq!(seen, 2);
        let report = check(file.len() as u64, reader(&file)).unwrap();
        assert!(report.is_clean(), "{report:?}");
        file
    }

    #[test]
    fn a_cut_at_any_sector_leaves_the_old_child_or_the_new_one() {
        let old = child(None);
        let len = old.len();
        assert_eq!(every_cut_is_the_old_or_the_new_child(old, "dir/new.vhd").len(), len);
    }

    #[test]
    fn a_path_too_long_for_the_old_place_stays_behind_the_blocks_and_is_replaced_again() {
        let long = format!("{}/new.vhd", "x".repeat(400));
        let file = every_cut_is_the_old_or_the_new_child(child(Some(*b"qem2")), &long);
        assert!(file.len() > child(None).len());
        let batches = relink(file.len() as u64, &parent(2, "new.vhd"), reader(&file)).unwrap();
        let mut again = file;
        for batch in &batches {
            batch.ops.iter().for_each(|op| run(&mut again, op, &batch.bytes));
        }
        assert_eq!(parent_of(&again), 2);
    }

    #[test]
    fn a_relink_that_was_stopped_between_its_footers_is_finished_by_one_write() {
        let mut file = child(None);
        assert!(interrupted(file.len() as u64, reader(&file)).unwrap().is_empty());
        let batches = relink(file.len() as u64, &parent(2, "new.vhd"), reader(&file)).unwrap();
        // The footer at the end names the new header.
        for batch in &batches[..6] {
            batch.ops.iter().for_each(|op| run(&mut file, op, &batch.bytes));
        }
        assert!(open_with(file.len() as u64, OpenMode::Writable, reader(&file)).is_err());
        for batch in interrupted(file.len() as u64, reader(&file)).unwrap() {
            batch.ops.iter().for_each(|op| run(&mut file, op, &batch.bytes));
        }
        assert!(open_with(file.len() as u64, OpenMode::Writable, reader(&file)).is_ok());
        assert_eq!(parent_of(&file), 2);
    }

    #[test]
    fn a_time_stamp_is_one_sector() {
        let mut file = child(None);
        let before = file.clone();
        let batches = restamp(file.len() as u64, 77, reader(&file)).unwrap();
        let written: Vec<usize> = batches.iter().map(|batch| sectors(batch).len()).collect();
        assert_eq!(written, [1, 0]);
        batches.iter().for_each(|batch| batch.ops.iter().for_each(|op| run(&mut file, op, &batch.bytes)));
        let image = open_with(file.len() as u64, OpenMode::Writable, reader(&file)).unwrap();
        assert_eq!(image.parent().unwrap().timestamp, 77);
        assert_eq!((file.len(), parent_of(&file)), (before.len(), 1));
    }

    #[test]
    fn what_has_no_parent_gets_none() {
        let kind = NewKind::Dynamic { block_size: 2 << 20 };
        let disk = NewDisk { kind, sectors: SectorCount(8), unique_id: Uuid::from_u128(9), timestamp: 3 };
        let new = create(&disk).unwrap();
        let mut file = vec![0; new.len as usize];
        for (at, bytes) in &new.writes {
            file[*at as usize..][..bytes.len()].copy_from_slice(bytes);
        }
        let refused = relink(new.len, &parent(2, "new.vhd"), reader(&file));
        assert!(matches!(refused, Err(RelinkError::NoChild)));
        let long = parent(2, &"y".repeat(3000));
        let file = child(None);
        let refused = relink(file.len() as u64, &long, reader(&file));
        assert!(matches!(refused, Err(RelinkError::ParentPath(_))));
        let cut: Result<_, RelinkError<()>> = relink(file.len() as u64 - 512, &long, reader(&file));
        assert!(matches!(cut, Err(RelinkError::Open(OpenError::Vhd(_)))));
    }
}
