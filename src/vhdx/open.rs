//! Opening a VHDX from bytes: which copies rule, what the log adds, and whether everything points where it may.
//!
//! Knows the order of the checks and bounds every allocation. Does not know files: the caller reads.

use super::bat::{Bat, Validator};
use super::error::{Structure, VhdxError, VhdxErrorKind};
use super::header::{Current, Header, IDENTIFIER, IDENTIFIER_BYTES, creator};
use super::image::{ParentInfo, VhdxImage, Warning};
use super::layout::{ENTRY_BYTES, Layout};
use super::log::{self, Replay};
use super::metadata::{self, Item, Metadata, Places};
use super::overlay::Content;
use super::page_table::PageTable;
use super::region::{self, Regions};
use super::{
    FileRange, HEADER_BYTES, HEADER_OFFSETS, MIB, REGION_TABLE_BYTES, REGION_TABLE_OFFSETS, parent_locator,
};
use crate::limits::{LAYER_BITMAP_PAGES_MAX, VHDX_FILE_BYTES_MAX, VHDX_LOG_BYTES_MAX};
use crate::plan::{MetaBatch, MetaOp, OpenMode};
use crate::units::ByteOffset;
use uuid::Uuid;

/// Bytes of the table read at once.
const PIECE_BYTES: u64 = 64 * 1024;
/// Entries up to which the table is looked at and kept in one reading. A longer one is looked at first, so that a file
/// that is refused has not taken the memory of one that is kept.
const ONE_READING_ENTRIES: u64 = 1 << 20;

/// Why an image did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError<E> {
    #[error(transparent)]
    Vhdx(#[from] VhdxError),
    #[error("reading {len} bytes at byte {offset} failed; check the file system and the device")]
    Read { offset: u64, len: usize, source: E },
}

/// Opens a VHDX of `len` bytes. `read` fills its buffer from the offset; it is never asked for bytes beyond `len`.
///
/// The file is asked for its headers, region table, metadata, block table and, where it is not empty, its log; not
/// for bitmaps. What a crash left in the log is replayed in memory when the image is only read, and is an error when
/// it is to be written: [`replay_with`] comes first then. A file that is refused takes less than 64 MiB of memory.
///
/// # Errors
/// [`OpenError::Vhdx`] when the bytes are not a VHDX that may be opened in this mode, [`OpenError::Read`] when `read`
/// failed.
pub fn open_with<E>(
    len: u64,
    mode: OpenMode,
    read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<VhdxImage, OpenError<E>> {
    let mut file = File { len, read, replay: None };
    let head = read_head(&mut file)?;
    if file.replay.is_some() && mode == OpenMode::Writable {
        return Err(VhdxError::new(VhdxErrorKind::LogPending, Structure::Log, head.header.log_offset).into());
    }
    open_body(&mut file, head, mode)
}

/// The operations that write what the log holds into place and empty it, in order; none when it is empty.
///
/// `read` is as for [`open_with`]. Each batch must be stable before the next: they end in a flush. A crash between
/// two of them leaves a file that can be replayed again.
///
/// # Errors
/// As [`open_with`].
pub fn replay_with<E>(
    len: u64,
    read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<Vec<MetaBatch>, OpenError<E>> {
    let mut file = File { len, read, replay: None };
    let head = read_head(&mut file)?;
    let Some(replay) = file.replay.take() else { return Ok(Vec::new()) };
    let sync = || MetaBatch { ops: vec![MetaOp::Sync], bytes: Vec::new() };
    // A process that was killed has left entries in the page cache. Were they lost after their changes had begun to
    // reach their places, those would be left in part.
    let mut batches = vec![sync()];
    if replay.len > len {
        batches.push(MetaBatch { ops: vec![MetaOp::SetLen { len: replay.len }], bytes: Vec::new() });
    }
    let mut changes = MetaBatch::default();
    for (start, end, content) in replay.overlay.parts() {
        match content {
            Content::Zero => changes.ops.push(MetaOp::Zero { offset: ByteOffset(start), len: end - start }),
            Content::Page(page) => changes.push_write(ByteOffset(start), page.as_slice()),
        }
    }
    batches.extend([changes, sync()]);
    let mut header = Header { log_guid: Uuid::nil(), ..head.header };
    for index in [1 - head.index, head.index] {
        header.sequence = header.sequence.saturating_add(1);
        let mut batch = MetaBatch::default();
        batch.push_write(ByteOffset(HEADER_OFFSETS[index]), &header.encode());
        batches.extend([batch, sync()]);
    }
    Ok(batches)
}

/// What a file says of its parent; `None` when it has none. As [`open_with`], without a look at the block table.
///
/// # Errors
/// As [`open_with`].
pub fn parent_with<E>(
    len: u64,
    read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<Option<ParentInfo>, OpenError<E>> {
    let mut file = File { len, read, replay: None };
    let head = read_head(&mut file)?;
    let regions = read_regions(&mut file, head.header.log(), &mut Vec::new())?;
    let (places, metadata) = read_metadata(&mut file, regions.metadata)?;
    if metadata.has_parent { read_parent(&mut file, &places, regions.metadata).map(Some) } else { Ok(None) }
}

pub(super) struct File<R> {
    pub(super) len: u64,
    read: R,
    replay: Option<Box<Replay>>,
}

impl<E, R: FnMut(u64, &mut [u8]) -> Result<(), E>> File<R> {
    pub(super) fn with_empty_log(len: u64, read: R) -> Self {
        Self { len, read, replay: None }
    }

    /// Bytes of the file as it is.
    fn fill_stored(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), OpenError<E>> {
        (self.read)(offset, bytes).map_err(|source| OpenError::Read { offset, len: bytes.len(), source })
    }

    /// Bytes of the file as it will be once its log is replayed.
    pub(super) fn fill(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), OpenError<E>> {
        let stored = self.len.saturating_sub(offset).min(bytes.len() as u64) as usize;
        let (inside, beyond) = bytes.split_at_mut(stored);
        beyond.fill(0);
        if !inside.is_empty() {
            self.fill_stored(offset, inside)?;
        }
        if let Some(replay) = &self.replay {
            replay.overlay.patch(offset, bytes);
        }
        Ok(())
    }

    /// Bytes the file has, or will have.
    fn full_len(&self) -> u64 {
        self.replay.as_ref().map_or(self.len, |replay| replay.len)
    }
}

/// What is known before the regions are.
pub(super) struct Head {
    creator: String,
    pub(super) header: Header,
    pub(super) index: usize,
    warnings: Vec<Warning>,
}

/// Identifier, headers, log.
fn read_head<E, R: FnMut(u64, &mut [u8]) -> Result<(), E>>(file: &mut File<R>) -> Result<Head, OpenError<E>> {
    let mut head = read_headers(file)?;
    if head.header.has_log() {
        let replay = read_log(file, &head.header)?;
        head.warnings.push(Warning::LogReplayed(replay.entries));
        file.replay = Some(Box::new(replay));
    }
    Ok(head)
}

/// Identifier and headers; the log is not looked at.
pub(super) fn read_headers<E, R: FnMut(u64, &mut [u8]) -> Result<(), E>>(
    file: &mut File<R>,
) -> Result<Head, OpenError<E>> {
    let fail = |kind| VhdxError::new(kind, Structure::File, file.len);
    if file.len < IDENTIFIER_BYTES as u64 {
        return Err(fail(VhdxErrorKind::Truncated).into());
    }
    if file.len > VHDX_FILE_BYTES_MAX {
        return Err(fail(VhdxErrorKind::FileTooLarge).into());
    }
    let truncated = fail(VhdxErrorKind::Truncated);
    let mut identifier = [0; IDENTIFIER_BYTES];
    file.fill_stored(0, &mut identifier)?;
    if identifier[..8] != IDENTIFIER {
        return Err(VhdxError::new(VhdxErrorKind::Identifier, Structure::FileIdentifier, 0).into());
    }
    if file.len < MIB {
        return Err(truncated.into());
    }
    let mut headers = [None; 2];
    for (slot, offset) in headers.iter_mut().zip(HEADER_OFFSETS) {
        let mut bytes = [0; HEADER_BYTES];
        file.fill_stored(offset, &mut bytes)?;
        *slot = Header::parse(&bytes);
    }
    let current = Current::choose(headers, file.len)?;
    let mut warnings = Vec::new();
    warnings.extend(current.damaged.map(|index| Warning::HeaderDamaged(index as u8 + 1)));
    warnings.extend(current.twins.then_some(Warning::HeadersAlike));
    Ok(Head { creator: creator(&identifier), header: current.header, index: current.index, warnings })
}

fn read_log<E, R: FnMut(u64, &mut [u8]) -> Result<(), E>>(
    file: &mut File<R>,
    header: &Header,
) -> Result<Replay, OpenError<E>> {
    let place = header.log();
    let fail = |kind| VhdxError::new(kind, Structure::Log, place.start);
    if place.len() > VHDX_LOG_BYTES_MAX {
        return Err(fail(VhdxErrorKind::LogTooLong(header.log_length)).into());
    }
    let mut bytes = vec![0; place.len() as usize];
    file.fill_stored(place.start, &mut bytes)?;
    Ok(log::replay(&bytes, header.log_guid, place, file.len).map_err(fail)?)
}

fn open_body<E, R: FnMut(u64, &mut [u8]) -> Result<(), E>>(
    file: &mut File<R>,
    head: Head,
    mode: OpenMode,
) -> Result<VhdxImage, OpenError<E>> {
    let Head { creator, header, index: header_index, mut warnings } = head;
    let regions = read_regions(file, header.log(), &mut warnings)?;
    let (places, metadata) = read_metadata(file, regions.metadata)?;
    let parent = if metadata.has_parent { Some(read_parent(file, &places, regions.metadata)?) } else { None };
    let layout = Layout::new(&metadata, regions.bat.start);
    let bat = read_table(file, &layout, &regions, header.log())?;
    if let Some(replay) = &file.replay {
        refuse_changed_data(replay, &layout, &bat)?;
    }
    Ok(VhdxImage {
        creator,
        header,
        header_index,
        regions,
        metadata,
        layout,
        bat,
        bitmaps: PageTable::new(LAYER_BITMAP_PAGES_MAX),
        mode,
        parent,
        warnings,
        file_len: file.len,
        replay: file.replay.take(),
        writer: None,
    })
}

/// The first of both region tables that is whole.
pub(super) fn read_regions<E, R: FnMut(u64, &mut [u8]) -> Result<(), E>>(
    file: &mut File<R>,
    log: FileRange,
    warnings: &mut Vec<Warning>,
) -> Result<Regions, OpenError<E>> {
    let mut table = vec![0; REGION_TABLE_BYTES];
    for (index, offset) in REGION_TABLE_OFFSETS.into_iter().enumerate() {
        file.fill(offset, &mut table)?;
        if region::is_valid(&table) {
            return Ok(Regions::parse(&table, index, file.full_len(), log)?);
        }
        warnings.push(Warning::RegionTableDamaged(index as u8 + 1));
    }
    let offset = REGION_TABLE_OFFSETS[0];
    Err(VhdxError::new(VhdxErrorKind::NoRegionTable, Structure::RegionTable(1), offset).into())
}

/// The metadata table: its header and as many entries as that says.
pub(super) fn read_metadata_table<E, R: FnMut(u64, &mut [u8]) -> Result<(), E>>(
    file: &mut File<R>,
    region: FileRange,
) -> Result<Vec<u8>, OpenError<E>> {
    let mut header = [0; metadata::ENTRY_BYTES];
    file.fill(region.start, &mut header)?;
    let mut table = vec![0; (1 + metadata::entries(&header, region.start)?) * metadata::ENTRY_BYTES];
    file.fill(region.start, &mut table)?;
    Ok(table)
}

pub(super) fn read_metadata<E, R: FnMut(u64, &mut [u8]) -> Result<(), E>>(
    file: &mut File<R>,
    region: FileRange,
) -> Result<(Places, Metadata), OpenError<E>> {
    let table = read_metadata_table(file, region)?;
    let entries = table.get(metadata::ENTRY_BYTES..).unwrap_or_default();
    let places = Places::parse(entries, region.start, region.len())?;
    let metadata = Metadata::parse(&places, region.start, |place, bytes| {
        file.fill(region.start + u64::from(place.offset), bytes)
    })?;
    Ok((places, metadata))
}

fn read_parent<E, R: FnMut(u64, &mut [u8]) -> Result<(), E>>(
    file: &mut File<R>,
    places: &Places,
    region: FileRange,
) -> Result<ParentInfo, OpenError<E>> {
    let place = places.get(Item::ParentLocator, region.start)?;
    let offset = region.start + u64::from(place.offset);
    // At most `VHDX_LOCATOR_BYTES_MAX`, as the place was checked.
    let mut bytes = vec![0; place.len as usize];
    file.fill(offset, &mut bytes)?;
    let parent = parent_locator::parse(&bytes);
    Ok(parent.map_err(|kind| VhdxError::new(kind, Item::ParentLocator.structure(), offset))?)
}

fn read_table<E, R: FnMut(u64, &mut [u8]) -> Result<(), E>>(
    file: &mut File<R>,
    layout: &Layout,
    regions: &Regions,
    log: FileRange,
) -> Result<Bat, OpenError<E>> {
    let (needed, room) = (layout.entries(), regions.bat.len() / ENTRY_BYTES);
    if needed > room {
        let kind = VhdxErrorKind::BatTooSmall { room, needed };
        return Err(VhdxError::new(kind, Structure::Bat, regions.bat.start).into());
    }
    let mut bat = Bat::empty(layout);
    if needed > ONE_READING_ENTRIES {
        walk_table(file, layout, validator(layout, file.full_len(), regions, log), &mut None)?;
    }
    let validator = validator(layout, file.full_len(), regions, log);
    walk_table(file, layout, validator, &mut Some(&mut bat))?;
    Ok(bat)
}

/// A validator that knows what is in the file beside blocks.
pub(super) fn validator(layout: &Layout, len: u64, regions: &Regions, log: FileRange) -> Validator {
    let head = FileRange { start: 0, end: MIB };
    Validator::new(*layout, len, regions.all().chain([head, log]))
}

/// Looks at every entry, and keeps it where there is a table to keep it in.
fn walk_table<E, R: FnMut(u64, &mut [u8]) -> Result<(), E>>(
    file: &mut File<R>,
    layout: &Layout,
    mut validator: Validator,
    bat: &mut Option<&mut Bat>,
) -> Result<(), OpenError<E>> {
    let stride = u64::from(layout.chunk_blocks) + 1;
    let end = layout.entries();
    // The first block of the chunk that is there in part: its chunk's bitmap must be there too.
    let mut partial = None;
    let mut piece = vec![0; (end * ENTRY_BYTES).min(PIECE_BYTES) as usize];
    let mut index = 0;
    while index < end {
        let bytes = piece.len().min(((end - index) * ENTRY_BYTES) as usize);
        let bytes = &mut piece[..bytes];
        file.fill(layout.entry_offset(index), bytes)?;
        for eight in bytes.chunks_exact(8) {
            let bits = eight.first_chunk().map_or(0, |eight| u64::from_le_bytes(*eight));
            let (chunk, within) = ((index / stride) as u32, index % stride);
            index += 1;
            if within == u64::from(layout.chunk_blocks) {
                let partial = core::mem::take(&mut partial);
                look_at_bitmap(layout, &mut validator, chunk, bits, partial, bat)?;
            } else if bits != 0 {
                let block = (index - 1 - u64::from(chunk)) as u32;
                if block < layout.blocks {
                    let entry = validator.block(block, bits)?;
                    if entry.state == super::bat::BlockState::Partial {
                        partial.get_or_insert(block);
                    }
                    if let Some(bat) = bat {
                        bat.set(block, entry);
                    }
                }
            }
        }
    }
    Ok(())
}

fn look_at_bitmap(
    layout: &Layout,
    validator: &mut Validator,
    chunk: u32,
    bits: u64,
    partial: Option<u32>,
    bat: &mut Option<&mut Bat>,
) -> Result<(), VhdxError> {
    // Without a parent the entry is there and means nothing.
    if !layout.differencing {
        return Ok(());
    }
    let entry = validator.bitmap(chunk, bits)?;
    if let (None, Some(block)) = (entry.offset(), partial) {
        let place = layout.entry_offset(layout.block_entry(block));
        return Err(VhdxError::new(VhdxErrorKind::NoSectorBitmap, Structure::Block(block), place));
    }
    if let Some(bat) = bat {
        bat.set_bitmap(chunk, entry);
    }
    Ok(())
}

/// A log changes metadata. Pages of guest data in it could be shown only by reading them from memory, block by block.
fn refuse_changed_data(replay: &Replay, layout: &Layout, bat: &Bat) -> Result<(), VhdxError> {
    for (structure, entry) in bat.placed() {
        let (Structure::Block(_), Some(start)) = (structure, entry.offset()) else { continue };
        if replay.overlay.has_page_in(start, start + layout.block_bytes()) {
            return Err(VhdxError::new(VhdxErrorKind::LogData, structure, start));
        }
    }
    Ok(())
}
