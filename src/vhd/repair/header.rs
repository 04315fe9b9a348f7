//! The dynamic disk header and its parent locators.
//!
//! Knows which bytes of a damaged header can be restored for certain, and asks the parent where only it can tell.

use super::footers::Ruler;
use super::{Read, RepairPlan, Step, fill};
use crate::units::SECTOR_BYTES;
use crate::vhd::bat::{Bat, ENTRY_BYTES, FileRange};
use crate::vhd::dynamic_header::{self, DynamicHeader};
use crate::vhd::edit::Write;
use crate::vhd::error::Structure;
use crate::vhd::footer::{NO_OFFSET, VERSION, checksum};
use crate::vhd::image::ParentInfo;
use crate::vhd::layout::Layout;
use crate::vhd::open::{header_place, locator_place, table_place};
use crate::vhd::parent_locator::{self, ParentCandidate, ParentOrigin};
use crate::vhd::{DiskType, FOOTER_BYTES, HEADER_BYTES};

const TABLE_OFFSET: core::ops::Range<usize> = 16..24;
const MAX_ENTRIES: core::ops::Range<usize> = 28..32;
const BLOCK_SIZE: core::ops::Range<usize> = 32..36;
const CHECKSUM: core::ops::Range<usize> = 36..40;
const LOCATORS_AT: usize = 576;
const LOCATOR_BYTES: usize = 24;
/// Tables are looked for below this byte.
const TABLE_SEARCH_END: u64 = 64 << 10;

/// What the header says, whole or restored.
pub(super) struct Header {
    pub(super) layout: Layout,
    pub(super) table: FileRange,
}

/// The header of a sparse disk, and in `plan` what of it must be written again. Fills `metadata` with everything the
/// file refers to but its blocks. `None` when it cannot be restored.
pub(super) fn mend<E>(
    len: u64,
    ruler: &Ruler,
    read: &mut Read<'_, E>,
    parent_is: &mut dyn FnMut(&ParentInfo) -> bool,
    plan: &mut RepairPlan,
    metadata: &mut Vec<FileRange>,
) -> Result<Option<Header>, E> {
    let Ok(place) = header_place(&ruler.footer, ruler.data_end) else { return Ok(None) };
    let mut bytes = [0; HEADER_BYTES];
    fill(read, len, place.start, &mut bytes)?;
    let head = FileRange { start: 0, end: FOOTER_BYTES as u64 };
    let shape =
        |header: &DynamicHeader| table_place(&ruler.footer, header, &[head, place], ruler.data_end).ok();
    let mut changed = false;
    let mut found = DynamicHeader::parse(&bytes, place.start).ok().and_then(|header| {
        let (layout, table) = shape(&header)?;
        Some((header, layout, table))
    });
    if found.is_none() {
        let candidate = restore(len, &bytes, ruler, read, parent_is, &shape)?;
        if let Some((restored, header, found_to_be)) = candidate {
            let Some((layout, table)) = shape(&header) else { return Ok(None) };
            bytes = restored;
            changed = true;
            found = Some((header, layout, table));
            plan.step(Step {
                structure: Structure::DynamicHeader,
                offset: place.start,
                found: found_to_be.to_owned(),
                action: "it is written again".to_owned(),
                loss: None,
            });
        }
    }
    let Some((header, layout, table)) = found else { return Ok(None) };
    metadata.extend([head, place, table]);
    if ruler.footer.disk_type == DiskType::Differencing {
        changed |= mend_locators(len, ruler, &header, &mut bytes, read, plan, metadata)?;
    }
    if changed {
        set_checksum(&mut bytes);
        plan.stages.push(vec![Write { offset: place.start, bytes: bytes.to_vec() }]);
    }
    Ok(Some(Header { layout, table }))
}

fn set_checksum(bytes: &mut [u8; HEADER_BYTES]) {
    let sum = checksum(bytes, CHECKSUM.start);
    bytes[CHECKSUM].copy_from_slice(&sum.to_be_bytes());
}

/// The bytes, what they say, and how that is known.
type Restored = ([u8; HEADER_BYTES], DynamicHeader, &'static str);
type Shape<'a> = &'a dyn Fn(&DynamicHeader) -> Option<(Layout, FileRange)>;

/// The one header that the damaged bytes can have been, and how that is known.
fn restore<E>(
    len: u64,
    bytes: &[u8; HEADER_BYTES],
    ruler: &Ruler,
    read: &mut Read<'_, E>,
    parent_is: &mut dyn FnMut(&ParentInfo) -> bool,
    shape: Shape<'_>,
) -> Result<Option<Restored>, E> {
    if bytes[CHECKSUM] == checksum(bytes, CHECKSUM.start).to_be_bytes() {
        // No accident: what it says is meant, and refused.
        return Ok(None);
    }
    for candidate in candidates(bytes, ruler) {
        let Ok(header) = DynamicHeader::parse(&candidate, 0) else { continue };
        // The sum of bytes does not see them change places: the size of the table must agree with that of the blocks.
        let blocks = ruler.footer.sectors.bytes().0.div_ceil(u64::from(header.block_size));
        let derived = candidate[BLOCK_SIZE] != bytes[BLOCK_SIZE];
        if derived && u64::from(header.max_table_entries) != blocks {
            continue;
        }
        if fits(len, &header, ruler, read, shape)? {
            let found = "is damaged, and its checksum tells what was there";
            return Ok(Some((candidate, header, found)));
        }
    }
    // Nothing agrees with the checksum, so it may be the checksum itself: every field must be confirmed by the file.
    let mut candidate = constants(bytes);
    set_checksum(&mut candidate);
    let Ok(header) = DynamicHeader::parse(&candidate, 0) else { return Ok(None) };
    if !fits(len, &header, ruler, read, shape)? {
        return Ok(None);
    }
    let child = ruler.footer.disk_type == DiskType::Differencing;
    if child && !parent_is(&claims(len, ruler, &header, read)?) {
        return Ok(None);
    }
    let found = "has a wrong checksum, but the rest of the file confirms every field that leads to data";
    Ok(Some((candidate, header, found)))
}

/// What is the same in every header.
fn constants(bytes: &[u8; HEADER_BYTES]) -> [u8; HEADER_BYTES] {
    let mut constant = *bytes;
    constant[..8].copy_from_slice(&dynamic_header::COOKIE);
    constant[8..16].copy_from_slice(&NO_OFFSET.to_be_bytes());
    constant[24..28].copy_from_slice(&VERSION.to_be_bytes());
    constant[60..64].fill(0);
    constant[768..].fill(0);
    constant
}

/// The bytes with one field derived; the checksum says which is right.
fn candidates(bytes: &[u8; HEADER_BYTES], ruler: &Ruler) -> Vec<[u8; HEADER_BYTES]> {
    let constant = constants(bytes);
    let with = |range: core::ops::Range<usize>, value: &[u8]| {
        let mut bytes = constant;
        bytes[range].copy_from_slice(value);
        bytes
    };
    let mut all = vec![constant];
    if ruler.footer.disk_type == DiskType::Dynamic {
        // Nothing but zeros is written where a child would name its parent.
        let mut without_parent = constant;
        without_parent[CHECKSUM.end..].fill(0);
        all.push(without_parent);
    }
    let sizes = (9..=25).map(|shift| 1_u32 << shift);
    all.extend(sizes.map(|size| with(BLOCK_SIZE, &size.to_be_bytes())));
    let block = u32::from_be_bytes([constant[32], constant[33], constant[34], constant[35]]);
    let blocks = ruler.footer.sectors.bytes().0.div_ceil(u64::from(block.max(512)));
    if let Ok(blocks) = u32::try_from(blocks) {
        all.push(with(MAX_ENTRIES, &blocks.to_be_bytes()));
    }
    let places = (1..TABLE_SEARCH_END / SECTOR_BYTES).map(|sector| sector * SECTOR_BYTES);
    all.extend(places.map(|place| with(TABLE_OFFSET, &place.to_be_bytes())));
    all
}

/// True when the table a header leads to is one: nearly all entries lead to places of their own. A wrong block size
/// or a wrong place makes most of them meet.
fn fits<E>(
    len: u64,
    header: &DynamicHeader,
    ruler: &Ruler,
    read: &mut Read<'_, E>,
    shape: Shape<'_>,
) -> Result<bool, E> {
    let Some((layout, table)) = shape(header) else { return Ok(false) };
    let mut bytes = vec![0; (u64::from(layout.blocks) * ENTRY_BYTES) as usize];
    fill(read, len, table.start, &mut bytes)?;
    let bat = Bat::from_bytes(&bytes);
    let mut entries: Vec<u64> = bat.allocated().map(|(_, entry)| u64::from(entry)).collect();
    entries.sort_unstable();
    let end = ruler.data_end / SECTOR_BYTES;
    let stored = layout.stored_sectors();
    let over = |entry: u64| {
        let start = entry * SECTOR_BYTES;
        table.overlaps(FileRange { start, end: start + stored * SECTOR_BYTES })
    };
    let outside = entries.iter().filter(|entry| over(**entry) || **entry + stored > end).count();
    let meeting = entries.windows(2).filter(|pair| pair[0] + stored > pair[1]).count();
    Ok((outside + meeting) * 4 <= entries.len())
}

/// What a header says about its parent, as `open` would.
fn claims<E>(
    len: u64,
    ruler: &Ruler,
    header: &DynamicHeader,
    read: &mut Read<'_, E>,
) -> Result<ParentInfo, E> {
    let mut candidates = Vec::new();
    for entry in header.locators.iter().filter(|entry| parent_locator::is_known(entry.code)) {
        let Some(range) = locator_place(entry, ruler.data_end) else { continue };
        let mut bytes = vec![0; (range.end - range.start) as usize];
        fill(read, len, range.start, &mut bytes)?;
        candidates.extend(parent_locator::decode(entry, &bytes));
    }
    candidates.sort_by_key(|candidate: &ParentCandidate| candidate.origin);
    let name = header.parent_name.as_deref();
    candidates.extend(name.and_then(|name| ParentCandidate::new(ParentOrigin::Name, name)));
    Ok(ParentInfo { unique_id: header.parent_unique_id, timestamp: header.parent_timestamp, candidates })
}

/// Takes damaged locators out of the header, as long as something else says where the parent is. True when it did.
fn mend_locators<E>(
    len: u64,
    ruler: &Ruler,
    header: &DynamicHeader,
    bytes: &mut [u8; HEADER_BYTES],
    read: &mut Read<'_, E>,
    plan: &mut RepairPlan,
    metadata: &mut Vec<FileRange>,
) -> Result<bool, E> {
    let mut damaged = Vec::new();
    for (index, entry) in header.locators.iter().enumerate() {
        if !parent_locator::is_known(entry.code) {
            continue;
        }
        let range = locator_place(entry, ruler.data_end);
        metadata.extend(range);
        let mut text = vec![0; range.map_or(0, |range| (range.end - range.start) as usize)];
        fill(read, len, entry.data_offset.min(len), &mut text)?;
        if range.is_none() || parent_locator::decode(entry, &text).is_none() {
            damaged.push((index, entry.data_offset));
        }
    }
    if damaged.is_empty() || claims(len, ruler, header, read)?.candidates.is_empty() {
        return Ok(false);
    }
    for (index, offset) in &damaged {
        let at = LOCATORS_AT + index * LOCATOR_BYTES;
        bytes[at..at + LOCATOR_BYTES].fill(0);
        plan.step(Step {
            structure: Structure::ParentLocator(*index as u8),
            offset: *offset,
            found: "cannot be read".to_owned(),
            action: "it is removed: the header names the parent in another way, too".to_owned(),
            loss: None,
        });
    }
    Ok(true)
}
