//! Mode parameters (SPC-4, 7.5; SBC-3, 6.4): MODE SENSE data and MODE SELECT lists.
//!
//! Knows pages, headers and block descriptors, and which bits an initiator may change. Does not know who asked,
//! nor what else a change causes (`unit`).
//!
//! All I_T nexuses share one set of values (VPD page 87h says so). They are saved where the unit has a place for that.

use serde::{Deserialize, Serialize};

use super::capacity::Geometry;
use super::cdb::PageControl;
use super::sense::{Sense, SenseFormat};

const ALL_PAGES: u8 = 0x3F;
const ALL_SUBPAGES: u8 = 0xFF;

const CACHING: u8 = 0x08;
const CONTROL: u8 = 0x0A;

/// Write cache enable, in byte 2 of the Caching page.
const WCE: u8 = 0x04;
/// D_SENSE, in byte 2 of the Control page.
const D_SENSE: u8 = 0x04;
/// Software write protect, in byte 4 of the Control page.
const SWP: u8 = 0x08;

/// The values an initiator can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModeValues {
    /// True: a write may sit in volatile memory until SYNCHRONIZE CACHE or FUA.
    pub(super) write_cache: bool,
    pub(super) descriptor_sense: bool,
    pub(super) write_protect: bool,
}

impl Default for ModeValues {
    fn default() -> Self {
        Self { write_cache: true, descriptor_sense: false, write_protect: false }
    }
}

impl ModeValues {
    /// All bits that exist here, set: the changeable mask.
    const CHANGEABLE: Self = Self { write_cache: true, descriptor_sense: true, write_protect: true };

    pub(super) const fn sense_format(self) -> SenseFormat {
        if self.descriptor_sense { SenseFormat::Descriptor } else { SenseFormat::Fixed }
    }
}

/// A page's place and its fixed bytes; the changeable bits are added.
struct Page {
    code: u8,
    subpage: u8,
    /// The parameters behind the page header, with every changeable bit clear.
    fixed: &'static [u8],
}

/// Sorted by page, then by subpage, as MODE SENSE returns them.
static PAGES: &[Page] = &[
    // Read-Write Error Recovery: no error is ever hidden, nothing is reallocated.
    Page { code: 0x01, subpage: 0, fixed: &[0; 10] },
    // Disconnect-Reconnect: no limits of the transport are set here.
    Page { code: 0x02, subpage: 0, fixed: &[0; 14] },
    Page { code: CACHING, subpage: 0, fixed: &[0; 18] },
    // Control: GLTSD; unrestricted reordering; TAS and QERR zero; busy timeout unlimited.
    Page { code: CONTROL, subpage: 0, fixed: &[0x02, 0x10, 0, 0, 0, 0, 0xFF, 0xFF, 0, 0] },
    // Control Extension.
    Page { code: CONTROL, subpage: 1, fixed: &[0; 28] },
    // Informational Exceptions: none are reported (DEXCPT).
    Page { code: 0x1C, subpage: 0, fixed: &[0x08, 0, 0, 0, 0, 0, 0, 0, 0, 0] },
];

impl Page {
    fn header_len(&self) -> usize {
        if self.subpage == 0 { 2 } else { 4 }
    }

    /// Header and parameters for these values.
    fn encode(&self, values: ModeValues, fixed: bool) -> Vec<u8> {
        let len = self.fixed.len();
        let mut bytes = if self.subpage == 0 {
            vec![self.code, len as u8]
        } else {
            let [high, low] = (len as u16).to_be_bytes();
            vec![0x40 | self.code, self.subpage, high, low]
        };
        match fixed {
            true => bytes.extend(self.fixed),
            false => bytes.resize(bytes.len() + len, 0),
        }
        match (self.code, self.subpage) {
            (CACHING, 0) if values.write_cache => bytes[2] |= WCE,
            (CONTROL, 0) => {
                if values.descriptor_sense {
                    bytes[2] |= D_SENSE;
                }
                if values.write_protect {
                    bytes[4] |= SWP;
                }
            }
            _ => {}
        }
        bytes
    }
}

/// What MODE SENSE asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct ModeQuery {
    pub(super) short: bool,
    pub(super) dbd: bool,
    pub(super) long_lba: bool,
    pub(super) control: PageControl,
    pub(super) page: u8,
    pub(super) subpage: u8,
}

/// What the header and block descriptor tell of the unit.
#[derive(Clone, Copy, Debug)]
pub(super) struct ModeSubject {
    pub(super) geometry: Geometry,
    /// The image takes no writes; SWP adds to this.
    pub(super) read_only: bool,
    /// The saved values; `None`: there is no place to save any.
    pub(super) saved: Option<ModeValues>,
}

/// MODE SENSE(6) and (10) parameter data, uncut.
///
/// # Errors
/// SAVING PARAMETERS NOT SUPPORTED; INVALID FIELD IN CDB for a page or subpage that does not exist.
pub(super) fn sense(query: ModeQuery, values: ModeValues, subject: ModeSubject) -> Result<Vec<u8>, Sense> {
    let (shown, fixed) = match query.control {
        PageControl::Current => (values, true),
        PageControl::Changeable => (ModeValues::CHANGEABLE, false),
        PageControl::Default => (ModeValues::default(), true),
        PageControl::Saved => (subject.saved.ok_or(Sense::SAVING_NOT_SUPPORTED)?, true),
    };
    let mut pages = Vec::new();
    for page in PAGES.iter().filter(|page| query.wants(page)) {
        let at = pages.len();
        pages.extend(page.encode(shown, fixed));
        // PS: the page can be saved.
        pages[at] |= if subject.saved.is_some() { 0x80 } else { 0 };
    }
    if pages.is_empty() {
        let page_exists = query.page == ALL_PAGES || PAGES.iter().any(|page| page.code == query.page);
        return Err(if page_exists { Sense::cdb_field(3, 7) } else { Sense::cdb_field(2, 5) });
    }
    let descriptor = if query.dbd { Vec::new() } else { block_descriptor(subject.geometry, query.long_lba) };
    // DPOFUA always; WP when either the image or SWP forbids writes.
    let device_specific = 0x10 | if subject.read_only || values.write_protect { 0x80 } else { 0 };
    let mut data = header(&query, device_specific, descriptor.len(), pages.len());
    data.extend(descriptor);
    data.extend(pages);
    Ok(data)
}

impl ModeQuery {
    fn wants(&self, page: &Page) -> bool {
        let page_fits = self.page == ALL_PAGES || self.page == page.code;
        // Page 3Fh with subpage 00h means all pages without their subpages.
        let subpage_fits = self.subpage == ALL_SUBPAGES || self.subpage == page.subpage;
        // All pages go only with subpage 00h or FFh.
        let allowed = self.page != ALL_PAGES || matches!(self.subpage, 0 | ALL_SUBPAGES);
        page_fits && subpage_fits && allowed
    }
}

/// The mode parameter header; MODE DATA LENGTH does not count itself.
fn header(query: &ModeQuery, device_specific: u8, descriptor: usize, pages: usize) -> Vec<u8> {
    if query.short {
        let len = u8::try_from(3 + descriptor + pages).unwrap_or(u8::MAX);
        return vec![len, 0, device_specific, descriptor as u8];
    }
    let [len_high, len_low] = ((6 + descriptor + pages) as u16).to_be_bytes();
    let long = u8::from(query.long_lba && descriptor > 0);
    vec![len_high, len_low, 0, device_specific, long, 0, 0, descriptor as u8]
}

/// The short (8 bytes) or long (16 bytes) LBA mode parameter block descriptor (SBC-3, 6.4.2).
fn block_descriptor(geometry: Geometry, long: bool) -> Vec<u8> {
    let size = geometry.block_size.bytes().to_be_bytes();
    let mut bytes = Vec::with_capacity(16);
    if long {
        bytes.extend(geometry.blocks.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(size);
    } else {
        bytes.extend(u32::try_from(geometry.blocks).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend([0, size[1], size[2], size[3]]);
    }
    bytes
}

/// The values after a MODE SELECT list; nothing changes unless all of the list is good.
///
/// # Errors
/// PARAMETER LIST LENGTH ERROR for a list that ends within a structure, INVALID FIELD IN PARAMETER LIST for what
/// cannot be changed to the value asked for.
pub(super) fn select(
    list: &[u8],
    short: bool,
    values: ModeValues,
    geometry: Geometry,
) -> Result<ModeValues, Sense> {
    let header_len = if short { 4 } else { 8 };
    let header = list.get(..header_len).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    let (descriptor_len, long) = if short {
        (usize::from(header[3]), false)
    } else {
        (usize::from(u16::from_be_bytes([header[6], header[7]])), header[4] & 1 != 0)
    };
    let expected = if long { 16 } else { 8 };
    if descriptor_len != 0 && descriptor_len != expected {
        return Err(Sense::parameter_field(if short { 3 } else { 6 }, 7));
    }
    let pages_at = header_len + descriptor_len;
    let descriptor = list.get(header_len..pages_at).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    check_block_descriptor(descriptor, header_len, geometry)?;
    select_pages(list, pages_at, values)
}

/// Only the present size is accepted: zeros mean "as it is" (SBC-3, 6.4.2.2).
fn check_block_descriptor(descriptor: &[u8], at: usize, geometry: Geometry) -> Result<(), Sense> {
    let number = |bytes: &[u8]| bytes.iter().fold(0, |value: u64, byte| value << 8 | u64::from(*byte));
    let (blocks, size, none, size_at) = match descriptor.len() {
        0 => return Ok(()),
        8 => (number(&descriptor[..4]), number(&descriptor[5..8]), u64::from(u32::MAX), 5),
        _ => (number(&descriptor[..8]), number(&descriptor[12..16]), u64::MAX, 12),
    };
    if blocks != 0 && blocks != none && blocks != geometry.blocks {
        return Err(Sense::parameter_field(at as u16, 7));
    }
    if size != 0 && size != u64::from(geometry.block_size.bytes()) {
        return Err(Sense::parameter_field((at + size_at) as u16, 7));
    }
    Ok(())
}

fn select_pages(list: &[u8], mut at: usize, mut values: ModeValues) -> Result<ModeValues, Sense> {
    while at < list.len() {
        let rest = list.get(at..).unwrap_or(&[]);
        let page = find_page(rest, at)?;
        let len = page.header_len() + page.fixed.len();
        let given = rest.get(..len).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        values = select_page(page, given, at, values)?;
        at += len;
    }
    Ok(values)
}

/// The page a list names next, its length checked.
fn find_page(rest: &[u8], at: usize) -> Result<&'static Page, Sense> {
    let field = |offset: usize, bit: u8| Sense::parameter_field((at + offset) as u16, bit);
    let &[first, second, ..] = rest else { return Err(Sense::PARAMETER_LIST_LENGTH) };
    let has_subpage = first & 0x40 != 0;
    let subpage = if has_subpage { second } else { 0 };
    let page = PAGES
        .iter()
        .find(|page| {
            page.code == first & 0x3F && page.subpage == subpage && has_subpage == (page.subpage != 0)
        })
        .ok_or(field(0, 5))?;
    let (len, len_at) = if has_subpage {
        let &[_, _, high, low, ..] = rest else { return Err(Sense::PARAMETER_LIST_LENGTH) };
        (usize::from(u16::from_be_bytes([high, low])), 2)
    } else {
        (usize::from(second), 1)
    };
    if len == page.fixed.len() { Ok(page) } else { Err(field(len_at, 7)) }
}

/// Refuses a page that differs from the present one in a bit that is not changeable.
fn select_page(page: &Page, given: &[u8], at: usize, values: ModeValues) -> Result<ModeValues, Sense> {
    let current = page.encode(values, true);
    let changeable = page.encode(ModeValues::CHANGEABLE, false);
    let header_len = page.header_len();
    for (offset, byte) in given.iter().enumerate().skip(header_len) {
        let wrong = (byte ^ current[offset]) & !changeable[offset];
        if wrong != 0 {
            return Err(Sense::parameter_field((at + offset) as u16, 7 - wrong.leading_zeros() as u8));
        }
    }
    let mut values = values;
    match (page.code, page.subpage) {
        (CACHING, 0) => values.write_cache = given[2] & WCE != 0,
        (CONTROL, 0) => {
            values.descriptor_sense = given[2] & D_SENSE != 0;
            values.write_protect = given[4] & SWP != 0;
        }
        _ => {}
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::BlockSize;

    const GEOMETRY: Geometry =
        Geometry { blocks: 0x12_3456, block_size: BlockSize::B512, physical_exponent: 3, thin: true };
    const SUBJECT: ModeSubject = ModeSubject { geometry: GEOMETRY, read_only: false, saved: None };

    fn query(page: u8, subpage: u8) -> ModeQuery {
        let control = PageControl::Current;
        ModeQuery { short: true, dbd: false, long_lba: false, control, page, subpage }
    }

    fn current(page: u8, subpage: u8) -> Result<Vec<u8>, Sense> {
        sense(query(page, subpage), ModeValues::default(), SUBJECT)
    }

    #[test]
    fn caching_page_says_that_writes_are_cached() {
        let data = current(CACHING, 0).unwrap();
        assert_eq!(data[..4], [data.len() as u8 - 1, 0, 0x10, 8]);
        assert_eq!(data[4..12], [0, 0x12, 0x34, 0x56, 0, 0, 2, 0]);
        assert_eq!(data[12..15], [0x08, 0x12, WCE]);
    }

    #[test]
    fn page_sets_with_and_without_subpages() {
        let codes = |data: Vec<u8>| {
            let mut rest = &data[12..];
            let mut codes = Vec::new();
            while let &[code, second, ..] = rest {
                let (subpage, len) = match code & 0x40 {
                    0 => (0, 2 + usize::from(second)),
                    _ => (second, 4 + usize::from(rest[3])),
                };
                codes.push((code & 0x3F, subpage));
                rest = &rest[len..];
            }
            codes
        };
        let plain = [(1, 0), (2, 0), (8, 0), (0x0A, 0), (0x1C, 0)];
        assert_eq!(codes(current(ALL_PAGES, 0).unwrap()), plain);
        let all = [(1, 0), (2, 0), (8, 0), (0x0A, 0), (0x0A, 1), (0x1C, 0)];
        assert_eq!(codes(current(ALL_PAGES, ALL_SUBPAGES).unwrap()), all);
        assert_eq!(codes(current(CONTROL, ALL_SUBPAGES).unwrap()), [(0x0A, 0), (0x0A, 1)]);
        assert_eq!(codes(current(CONTROL, 1).unwrap()), [(0x0A, 1)]);
    }

    #[test]
    fn unknown_pages_and_subpages_are_invalid_fields() {
        assert_eq!(current(0x05, 0), Err(Sense::cdb_field(2, 5)));
        assert_eq!(current(CONTROL, 9), Err(Sense::cdb_field(3, 7)));
        assert_eq!(current(ALL_PAGES, 1), Err(Sense::cdb_field(3, 7)));
        let saved = ModeQuery { control: PageControl::Saved, ..query(CACHING, 0) };
        assert_eq!(sense(saved, ModeValues::default(), SUBJECT), Err(Sense::SAVING_NOT_SUPPORTED));
        let values = ModeValues { write_cache: false, ..ModeValues::default() };
        let subject = ModeSubject { saved: Some(values), ..SUBJECT };
        let page = sense(saved, ModeValues::default(), subject).unwrap()[12..].to_vec();
        assert_eq!((page[0], page[2] & WCE), (0x80 | CACHING, 0), "PS, and what was saved");
    }

    #[test]
    fn changeable_masks_show_only_what_can_change() {
        let masks = |page| {
            let query = ModeQuery { control: PageControl::Changeable, dbd: true, ..query(page, 0) };
            sense(query, ModeValues::default(), SUBJECT).unwrap()[6..].to_vec()
        };
        assert_eq!(masks(CONTROL), [D_SENSE, 0, SWP, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(masks(CACHING)[0], WCE);
        assert!(masks(0x1C).iter().all(|byte| *byte == 0));
    }

    #[test]
    fn the_long_form_has_a_long_descriptor() {
        let query = ModeQuery { short: false, long_lba: true, ..query(CACHING, 0) };
        let data = sense(query, ModeValues::default(), SUBJECT).unwrap();
        assert_eq!(data[..8], [0, data.len() as u8 - 2, 0, 0x10, 1, 0, 0, 16]);
        assert_eq!(data[8..24], [0, 0, 0, 0, 0, 0x12, 0x34, 0x56, 0, 0, 0, 0, 0, 0, 2, 0]);
    }

    #[test]
    fn write_protection_shows_in_the_header() {
        let read_only = ModeSubject { read_only: true, ..SUBJECT };
        assert_eq!(sense(query(8, 0), ModeValues::default(), read_only).unwrap()[2], 0x90);
        let swp = ModeValues { write_protect: true, ..ModeValues::default() };
        assert_eq!(sense(query(8, 0), swp, SUBJECT).unwrap()[2], 0x90);
    }

    #[test]
    fn what_mode_sense_returns_mode_select_accepts() {
        for short in [false, true] {
            let query = ModeQuery { short, ..query(ALL_PAGES, ALL_SUBPAGES) };
            let data = sense(query, ModeValues::default(), SUBJECT).unwrap();
            let values = select(&data, short, ModeValues::default(), GEOMETRY);
            assert_eq!(values, Ok(ModeValues::default()));
        }
    }

    #[test]
    fn select_changes_the_changeable_bits() {
        let mut list = current(CONTROL, 0).unwrap();
        list[12 + 2] |= D_SENSE;
        list[12 + 4] |= SWP;
        let values = select(&list, true, ModeValues::default(), GEOMETRY).unwrap();
        assert!(values.descriptor_sense && values.write_protect && values.write_cache);
        assert_eq!(values.sense_format(), SenseFormat::Descriptor);
    }

    #[test]
    fn select_refuses_what_cannot_change_and_points_at_it() {
        let refused = |change: fn(&mut Vec<u8>)| {
            let mut list = current(CONTROL, 0).unwrap();
            change(&mut list);
            select(&list, true, ModeValues::default(), GEOMETRY).unwrap_err()
        };
        assert_eq!(refused(|list| list[12 + 3] ^= 0x20), Sense::parameter_field(15, 5));
        assert_eq!(refused(|list| list[13] = 9), Sense::parameter_field(13, 7));
        assert_eq!(refused(|list| list[12] = 0x05), Sense::parameter_field(12, 5));
        assert_eq!(refused(|list| list[3] = 7), Sense::parameter_field(3, 7));
        assert_eq!(refused(|list| list[4] = 1), Sense::parameter_field(4, 7));
        assert_eq!(refused(|list| list[10] = 4), Sense::parameter_field(9, 7));
        assert_eq!(refused(|list| list.truncate(20)), Sense::PARAMETER_LIST_LENGTH);
        assert_eq!(refused(|list| list.truncate(3)), Sense::PARAMETER_LIST_LENGTH);
    }
}
