//! Opening a VHD from bytes: which footer rules, and whether everything it points at makes sense.
//!
//! Knows the order of the checks and bounds every allocation by the file. Does not know files: the caller reads.

use super::allocate::Writer;
use super::bat::{Bat, ENTRY_BYTES, FileRange};
use super::bitmap_table::{BitmapTable, BlockSet};
use super::create::CREATOR;
use super::dynamic_header::{DynamicHeader, LocatorEntry};
use super::error::{Structure, VhdError, VhdErrorKind};
use super::footer::Footer;
use super::image::{Body, OpenMode, ParentInfo, Sparse, VhdImage, Warning};
use super::layout::Layout;
use super::parent_locator::{self, LOCATOR_BYTES_MAX, ParentCandidate, ParentOrigin};
use super::space::Space;
use super::{DiskType, FOOTER_BYTES, HEADER_BYTES};
use crate::limits::{LAYER_BITMAPS_MAX, VHD_BLOCKS_MAX};
use crate::units::SECTOR_BYTES;

/// Why an image did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError<E> {
    #[error(transparent)]
    Vhd(#[from] VhdError),
    #[error("reading {len} bytes at byte {offset} failed; check the file system and the device")]
    Read { offset: u64, len: usize, source: E },
}

/// Opens a VHD of `len` bytes. `read` fills its buffer from the offset; it is never asked for bytes beyond `len`.
///
/// The file is asked for its footers, header, locators and table, not for bitmaps. Memory is at most four bytes per
/// block and 16 MiB.
///
/// # Errors
/// [`OpenError::Vhd`] when the bytes are not a VHD that may be opened in this mode, [`OpenError::Read`] when `read`
/// failed.
pub fn open_with<E>(
    len: u64,
    mode: OpenMode,
    read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<VhdImage, OpenError<E>> {
    let mut file = File { len, read };
    let found = find_footer(&mut file)?;
    let image = if found.footer.disk_type == DiskType::Fixed {
        open_fixed(found, mode)?
    } else {
        open_sparse(&mut file, found, mode)?
    };
    if mode == OpenMode::Writable {
        refuse_what_needs_repair(&image)?;
    }
    Ok(image)
}

pub(super) struct File<R> {
    pub(super) len: u64,
    read: R,
}

impl<R> File<R> {
    pub(super) fn new(len: u64, read: R) -> Self {
        Self { len, read }
    }
}

impl<E, R: FnMut(u64, &mut [u8]) -> Result<(), E>> File<R> {
    pub(super) fn fill(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), OpenError<E>> {
        (self.read)(offset, bytes).map_err(|source| OpenError::Read { offset, len: bytes.len(), source })
    }

    fn footer_at(&mut self, offset: u64, len: usize) -> Result<[u8; FOOTER_BYTES], OpenError<E>> {
        let mut bytes = [0; FOOTER_BYTES];
        self.fill(offset, &mut bytes[..len.min(FOOTER_BYTES)])?;
        Ok(bytes)
    }
}

/// The footer that rules, and where the data must end.
struct Found {
    footer: Footer,
    bytes: [u8; FOOTER_BYTES],
    /// Where the tail footer is, or would have been: the end of the file.
    data_end: u64,
    warnings: Vec<Warning>,
}

/// Where the tail footer of a file of `len` bytes begins: creators before Virtual PC 2004 wrote 511 bytes.
pub(super) fn tail_place(len: u64) -> Option<(u64, usize)> {
    let bytes = if len % SECTOR_BYTES == SECTOR_BYTES - 1 { FOOTER_BYTES - 1 } else { FOOTER_BYTES };
    let aligned = matches!(len % SECTOR_BYTES, 0 | 511);
    len.checked_sub(bytes as u64).filter(|_| aligned).map(|offset| (offset, bytes))
}

/// The tail footer; its copy at the start only where the tail is damaged or missing.
///
/// A tail that is intact but says something we refuse (another version, a dead disk type) is final. A fixed disk has
/// no copy: its first sector is guest data, so what a lost tail leaves to the head is a guess, reported as such.
fn find_footer<E, R: FnMut(u64, &mut [u8]) -> Result<(), E>>(
    file: &mut File<R>,
) -> Result<Found, OpenError<E>> {
    let truncated = VhdError::new(VhdErrorKind::Truncated, Structure::File, file.len);
    if file.len < FOOTER_BYTES as u64 - 1 {
        return Err(truncated.into());
    }
    let lost = match tail_place(file.len) {
        None => truncated,
        Some((offset, len)) => {
            let bytes = file.footer_at(offset, len)?;
            match Footer::parse(&bytes, Structure::TailFooter, offset) {
                Ok(footer) => {
                    let mut found = Found { footer, bytes, data_end: offset, warnings: Vec::new() };
                    compare_with_head(file, &mut found)?;
                    return Ok(found);
                }
                Err(error) => error,
            }
        }
    };
    let recoverable = matches!(
        lost.kind,
        VhdErrorKind::Truncated | VhdErrorKind::FooterCookie | VhdErrorKind::FooterChecksum
    );
    if !recoverable || file.len < FOOTER_BYTES as u64 {
        return Err(lost.into());
    }
    let bytes = file.footer_at(0, FOOTER_BYTES)?;
    match Footer::parse(&bytes, Structure::HeadFooter, 0) {
        Ok(footer) if footer.disk_type != DiskType::Fixed => {
            let warnings = vec![Warning::TailFooterLost(lost.offset)];
            Ok(Found { footer, bytes, data_end: file.len / SECTOR_BYTES * SECTOR_BYTES, warnings })
        }
        _ => Err(lost.into()),
    }
}

fn compare_with_head<E, R: FnMut(u64, &mut [u8]) -> Result<(), E>>(
    file: &mut File<R>,
    found: &mut Found,
) -> Result<(), OpenError<E>> {
    if found.footer.disk_type == DiskType::Fixed || found.data_end < FOOTER_BYTES as u64 {
        return Ok(());
    }
    let bytes = file.footer_at(0, FOOTER_BYTES)?;
    match Footer::parse(&bytes, Structure::HeadFooter, 0) {
        Ok(head) if head.agrees_with(&found.footer) => {}
        Ok(_) => found.warnings.push(Warning::FootersDiffer),
        Err(_) => found.warnings.push(Warning::HeadFooterDamaged),
    }
    Ok(())
}

fn open_fixed(found: Found, mode: OpenMode) -> Result<VhdImage, VhdError> {
    let Found { footer, bytes, data_end, mut warnings } = found;
    let size = footer.sectors.bytes().0;
    if size > data_end {
        let kind = VhdErrorKind::FixedTooShort { size, present: data_end };
        return Err(VhdError::new(kind, Structure::TailFooter, data_end));
    }
    if size < data_end {
        warnings.push(Warning::UnreferencedBytes(data_end - size));
    }
    Ok(VhdImage {
        footer,
        footer_bytes: bytes,
        footer_offset: data_end,
        mode,
        parent: None,
        warnings,
        body: Body::Fixed,
    })
}

fn open_sparse<E, R: FnMut(u64, &mut [u8]) -> Result<(), E>>(
    file: &mut File<R>,
    found: Found,
    mode: OpenMode,
) -> Result<VhdImage, OpenError<E>> {
    let Found { footer, bytes, data_end, mut warnings } = found;
    let header_range = header_place(&footer, data_end)?;
    let mut header_bytes = [0; HEADER_BYTES];
    file.fill(header_range.start, &mut header_bytes)?;
    let header = DynamicHeader::parse(&header_bytes, header_range.start)?;
    let head = FileRange { start: 0, end: FOOTER_BYTES as u64 };
    let (layout, table) = table_place(&footer, &header, &[head, header_range], data_end)?;
    let mut metadata = vec![head, header_range, table];
    let parent = if footer.disk_type == DiskType::Differencing {
        Some(read_parent(file, &header, data_end, &mut metadata, &mut warnings)?)
    } else {
        None
    };
    let mut entries = vec![0; layout.blocks as usize * ENTRY_BYTES as usize];
    file.fill(table.start, &mut entries)?;
    let bat = Bat::from_bytes(&entries);
    drop(entries);
    bat.validate(&layout, FileRange { start: FOOTER_BYTES as u64, end: data_end }, &metadata)?;
    let differencing = parent.is_some();
    let metadata_end = metadata_end(&header, &metadata, data_end);
    let writer = (mode == OpenMode::Writable)
        .then(|| floor(&footer, &layout, &bat, metadata_end, data_end))
        .map(|floor| Writer::new(Space::new(data_end, floor, file.len)));
    let sparse = Sparse {
        layout,
        full: BlockSet::new(layout.blocks),
        bitmaps: BitmapTable::new(LAYER_BITMAPS_MAX),
        allocated: bat.allocated().count() as u64,
        bat,
        differencing,
        metadata,
        metadata_end,
        writer,
    };
    Ok(VhdImage {
        footer,
        footer_bytes: bytes,
        footer_offset: data_end,
        mode,
        parent,
        warnings,
        body: Body::Sparse(Box::new(sparse)),
    })
}

/// The end of everything that may belong to somebody: blocks, metadata, locators we do not understand.
///
/// In a file of another creator that has no block yet, all that lies before the footer: vhd-util keeps a map there
/// that nothing refers to.
fn floor(footer: &Footer, layout: &Layout, bat: &Bat, metadata_end: u64, data_end: u64) -> u64 {
    let blocks = bat.end(layout) * SECTOR_BYTES;
    if blocks == 0 && footer.creator_app != CREATOR {
        return data_end;
    }
    metadata_end.max(blocks)
}

/// The end of `metadata` and of all locators, whether we understand them or not.
pub(super) fn metadata_end(header: &DynamicHeader, metadata: &[FileRange], data_end: u64) -> u64 {
    let locators = header.locators.iter().filter(|entry| entry.code != [0; 4]);
    let locator_ends = locators.map(|entry| {
        let space = u64::from(entry.data_len.max(entry.data_space));
        entry.data_offset.saturating_add(space).min(data_end)
    });
    let ends = metadata.iter().map(|range| range.end).chain(locator_ends);
    ends.max().unwrap_or(0).next_multiple_of(SECTOR_BYTES)
}

pub(super) fn header_place(footer: &Footer, data_end: u64) -> Result<FileRange, VhdError> {
    let start = footer.data_offset;
    let fail = |kind| VhdError::new(kind, Structure::DynamicHeader, start);
    if start < FOOTER_BYTES as u64 || !start.is_multiple_of(SECTOR_BYTES) {
        return Err(fail(VhdErrorKind::DataOffset));
    }
    match start.checked_add(HEADER_BYTES as u64) {
        Some(end) if end <= data_end => Ok(FileRange { start, end }),
        _ => Err(fail(VhdErrorKind::DataOffset)),
    }
}

/// Bounds the table by the disk and by the file, before any memory is taken for it.
pub(super) fn table_place(
    footer: &Footer,
    header: &DynamicHeader,
    others: &[FileRange],
    data_end: u64,
) -> Result<(Layout, FileRange), VhdError> {
    let start = header.table_offset;
    let fail = |kind| VhdError::new(kind, Structure::Bat, start);
    let blocks = footer.sectors.bytes().0.div_ceil(u64::from(header.block_size));
    if u64::from(header.max_table_entries) < blocks {
        return Err(fail(VhdErrorKind::BatTooSmall { entries: header.max_table_entries, blocks }));
    }
    if blocks > VHD_BLOCKS_MAX {
        return Err(fail(VhdErrorKind::TooManyBlocks(blocks)));
    }
    let bytes = (u64::from(header.max_table_entries) * ENTRY_BYTES).next_multiple_of(SECTOR_BYTES);
    let end = start.checked_add(bytes).filter(|end| *end <= data_end && start.is_multiple_of(SECTOR_BYTES));
    let range = FileRange { start, end: end.ok_or(fail(VhdErrorKind::BatPlace))? };
    if others.iter().any(|other| range.overlaps(*other)) {
        return Err(fail(VhdErrorKind::BatPlace));
    }
    let layout = Layout::new(footer.sectors, header.block_size, start);
    Ok((layout.ok_or(fail(VhdErrorKind::TooManyBlocks(blocks)))?, range))
}

/// Reads every locator we understand. A damaged one is a warning, unless no other says where the parent is.
fn read_parent<E, R: FnMut(u64, &mut [u8]) -> Result<(), E>>(
    file: &mut File<R>,
    header: &DynamicHeader,
    data_end: u64,
    metadata: &mut Vec<FileRange>,
    warnings: &mut Vec<Warning>,
) -> Result<ParentInfo, OpenError<E>> {
    let mut candidates = Vec::new();
    let mut damaged = None;
    for (index, entry) in header.locators.iter().enumerate() {
        let index = index as u8;
        if !parent_locator::is_known(entry.code) {
            continue;
        }
        let range = locator_place(entry, data_end);
        let candidate = match range {
            Some(range) => read_locator(file, entry, range)?,
            None => None,
        };
        metadata.extend(range);
        if let Some(candidate) = candidate {
            candidates.push(candidate);
        } else {
            warnings.push(Warning::LocatorDamaged(index));
            damaged = Some(VhdError::new(
                VhdErrorKind::Locator,
                Structure::ParentLocator(index),
                entry.data_offset,
            ));
        }
    }
    if let (Some(error), true) = (damaged, candidates.is_empty()) {
        return Err(error.into());
    }
    candidates.sort_by_key(|candidate| candidate.origin);
    let name = header.parent_name.as_deref().and_then(|name| ParentCandidate::new(ParentOrigin::Name, name));
    candidates.extend(name);
    Ok(ParentInfo { unique_id: header.parent_unique_id, timestamp: header.parent_timestamp, candidates })
}

pub(super) fn locator_place(entry: &LocatorEntry, data_end: u64) -> Option<FileRange> {
    let len = u64::from(entry.data_len);
    let end = entry.data_offset.checked_add(len)?;
    let fits = len > 0 && len <= LOCATOR_BYTES_MAX as u64 && end <= data_end;
    fits.then_some(FileRange { start: entry.data_offset, end })
}

fn read_locator<E, R: FnMut(u64, &mut [u8]) -> Result<(), E>>(
    file: &mut File<R>,
    entry: &LocatorEntry,
    range: FileRange,
) -> Result<Option<ParentCandidate>, OpenError<E>> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    file.fill(range.start, &mut bytes)?;
    Ok(parent_locator::decode(entry, &bytes))
}

/// A write must find both footers whole: the write order relies on each of them.
fn refuse_what_needs_repair(image: &VhdImage) -> Result<(), VhdError> {
    for warning in &image.warnings {
        let (kind, structure, offset) = match warning {
            Warning::TailFooterLost(offset) => (VhdErrorKind::NeedsRepair, Structure::TailFooter, *offset),
            Warning::HeadFooterDamaged => (VhdErrorKind::NeedsRepair, Structure::HeadFooter, 0),
            Warning::FootersDiffer => (VhdErrorKind::FootersDiffer, Structure::HeadFooter, 0),
            Warning::LocatorDamaged(_) | Warning::UnreferencedBytes(_) => continue,
        };
        return Err(VhdError::new(kind, structure, offset));
    }
    if let Some(block_size) = image.block_size().filter(|block_size| *block_size < 512 << 10) {
        let kind = VhdErrorKind::BlockSizeReadOnly(block_size);
        return Err(VhdError::new(kind, Structure::DynamicHeader, image.footer.data_offset));
    }
    Ok(())
}
