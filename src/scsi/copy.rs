//! Third-party copy (SPC-4, 5.17 and 6.4): EXTENDED COPY(LID1) lists, and what RECEIVE COPY RESULTS tells of them.
//!
//! Knows CSCD descriptors of type E4h, segment descriptors of types 02h and 0Ah and the answers' layouts. Does not know which
//! unit a designator names, nor how blocks move (`shard`).

use super::capacity::Geometry;
use super::device::Nexus;
use super::identity::UnitNames;
use super::rod;
use super::sense::{Sense, SenseFormat};
use crate::limits;
use crate::units::{BlockCount, Lba, SECTOR_BYTES, SectorCount};

const HEADER_BYTES: usize = 16;
/// Identification descriptor CSCD descriptor.
const IDENTIFICATION: u8 = 0xE4;
const CSCD_BYTES: usize = 32;
/// Copy from block device to block device.
const BLOCK_TO_BLOCK: u8 = 0x02;
const BLOCK_TO_BLOCK_BYTES: usize = 28;
/// The same with a number of bytes, and offsets within the first blocks.
const BLOCK_TO_BLOCK_OFFSET: u8 = 0x0A;
const BLOCK_TO_BLOCK_OFFSET_BYTES: usize = 32;

/// A unit, as a CSCD descriptor names it: designator of VPD page 83h and the size of its blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyDevice {
    kind: u8,
    designator: Vec<u8>,
    block_bytes: u32,
}

impl CopyDevice {
    /// True when this names a unit with these names.
    pub(super) fn names(&self, names: &UnitNames) -> bool {
        const EUI64: u8 = 2;
        const NAA: u8 = 3;
        match self.kind {
            NAA => self.designator == names.naa,
            EUI64 => self.designator == names.eui64,
            _ => false,
        }
    }

    pub(super) fn block_bytes(&self) -> u32 {
        self.block_bytes
    }
}

/// One segment: blocks from one device to another. Places are those of [`Copy::devices`], and may be none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopySegment {
    pub from: usize,
    pub to: usize,
    pub len: CopyLen,
    pub source: Lba,
    pub destination: Lba,
    /// Where in these blocks it begins.
    pub source_offset: SectorCount,
    pub destination_offset: SectorCount,
}

/// How much a segment copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyLen {
    SourceBlocks(BlockCount),
    DestinationBlocks(BlockCount),
    /// In any blocks: it may begin and end within one.
    Sectors(SectorCount),
}

/// An EXTENDED COPY whose list is well-formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// By what RECEIVE COPY RESULTS may ask for it.
    pub list: Option<u8>,
    pub devices: Vec<CopyDevice>,
    pub segments: Vec<CopySegment>,
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn at(offset: usize) -> Sense {
    Sense::parameter_field(u16::try_from(offset).unwrap_or(u16::MAX), 7)
}

/// | bytes  | field                               | bytes   | field                          |
/// |--------|-------------------------------------|---------|--------------------------------|
/// | 0      | LIST IDENTIFIER                     | 8..12   | SEGMENT DESCRIPTOR LIST LENGTH |
/// | 1      | STR, LIST ID USAGE (bits 4, 3)      | 12..16  | INLINE DATA LENGTH             |
/// | 2..4   | CSCD DESCRIPTOR LIST LENGTH         | 16..    | CSCD, then segment descriptors |
///
/// # Errors
/// What the list has too much of, ends within, or asks for and is not here.
pub(super) fn parse(list: &[u8]) -> Result<Copy, Sense> {
    const NO_IDENTIFIER: u8 = 0b11;
    let header = list.get(..HEADER_BYTES).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    let usage = header[1] >> 3 & 0b11;
    if usage == 0b01 {
        return Err(Sense::parameter_field(1, 4));
    }
    if usage == NO_IDENTIFIER && header[0] != 0 {
        return Err(at(0));
    }
    let (devices, segments) = (number(&header[2..4]), number(&header[8..12]));
    if devices + segments > limits::COPY_DESCRIPTOR_BYTES_MAX as u64 {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    if number(&header[12..16]) != 0 {
        // MAXIMUM INLINE DATA LENGTH is zero.
        return Err(Sense::INLINE_DATA_LENGTH);
    }
    let segments_at = HEADER_BYTES + devices as usize;
    let device_list = list.get(HEADER_BYTES..segments_at).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    let segment_list =
        list.get(segments_at..segments_at + segments as usize).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    Ok(Copy {
        list: (usage == 0b00).then_some(header[0]),
        devices: parse_devices(device_list)?,
        segments: parse_segments(segment_list, segments_at)?,
    })
}

/// | bytes of a descriptor | field                        | bytes  | field                       |
/// |-----------------------|------------------------------|--------|-----------------------------|
/// | 0                     | E4h                          | 7      | DESIGNATOR LENGTH           |
/// | 1                     | PERIPHERAL DEVICE TYPE       | 8..28  | DESIGNATOR                  |
/// | 5                     | association, DESIGNATOR TYPE | 29..32 | DISK BLOCK LENGTH           |
fn parse_devices(list: &[u8]) -> Result<Vec<CopyDevice>, Sense> {
    if list.len() / CSCD_BYTES > limits::COPY_DEVICES_MAX {
        return Err(Sense::TOO_MANY_CSCD_DESCRIPTORS);
    }
    if !list.len().is_multiple_of(CSCD_BYTES) {
        return Err(at(2));
    }
    let mut devices = Vec::with_capacity(list.len() / CSCD_BYTES);
    for (index, descriptor) in list.chunks_exact(CSCD_BYTES).enumerate() {
        let start = HEADER_BYTES + index * CSCD_BYTES;
        if descriptor[0] != IDENTIFICATION || descriptor[1] & 0x1F != 0 {
            return Err(Sense { field: at(start).field, ..Sense::UNSUPPORTED_CSCD_DESCRIPTOR });
        }
        let len = usize::from(descriptor[7]);
        let designator = descriptor[8..28].get(..len).ok_or(at(start + 7))?;
        // Only what names the unit itself can name a unit.
        let kind = if descriptor[5] >> 4 & 0b11 == 0 { descriptor[5] & 0x0F } else { 0xFF };
        let block_bytes = number(&descriptor[29..32]) as u32;
        devices.push(CopyDevice { kind, designator: designator.to_vec(), block_bytes });
    }
    Ok(devices)
}

fn parse_segments(mut list: &[u8], mut start: usize) -> Result<Vec<CopySegment>, Sense> {
    let mut segments = Vec::new();
    while !list.is_empty() {
        let bytes = match list[0] {
            BLOCK_TO_BLOCK => BLOCK_TO_BLOCK_BYTES,
            BLOCK_TO_BLOCK_OFFSET => BLOCK_TO_BLOCK_OFFSET_BYTES,
            _ => return Err(Sense { field: at(start).field, ..Sense::UNSUPPORTED_SEGMENT_DESCRIPTOR }),
        };
        if segments.len() == limits::COPY_SEGMENTS_MAX {
            return Err(Sense::TOO_MANY_SEGMENT_DESCRIPTORS);
        }
        let Some((segment, rest)) = list.split_at_checked(bytes) else { return Err(at(8)) };
        if number(&segment[2..4]) as usize != bytes - 4 {
            return Err(at(start + 2));
        }
        segments.push(parse_segment(segment, start)?);
        list = rest;
        start += bytes;
    }
    Ok(segments)
}

/// | bytes of a descriptor | field                         | bytes  | field                                |
/// |-----------------------|-------------------------------|--------|--------------------------------------|
/// | 0                     | 02h, 0Ah                      | 8..12  | 0Ah: NUMBER OF BYTES                 |
/// | 1                     | DC (bit 1), CAT (bit 0)       | 12..20 | source LBA                           |
/// | 2..4                  | DESCRIPTOR LENGTH: 24, 28     | 20..28 | destination LBA                      |
/// | 4..6, 6..8            | source, destination index     | 28..30 | 0Ah: byte offset in the source block |
/// | 10..12                | 02h: NUMBER OF BLOCKS         | 30..32 | 0Ah: in the destination block        |
fn parse_segment(segment: &[u8], start: usize) -> Result<CopySegment, Sense> {
    let sectors = |from: usize, to: usize| {
        let bytes = number(&segment[from..to]);
        // Data segments are whole sectors (DATA SEGMENT GRANULARITY).
        let whole = bytes.is_multiple_of(SECTOR_BYTES) && bytes <= u64::from(limits::COPY_SEGMENT_BYTES_MAX);
        if whole { Ok(SectorCount(bytes / SECTOR_BYTES)) } else { Err(at(start + from)) }
    };
    let blocks = BlockCount(number(&segment[10..12]));
    let none = SectorCount(0);
    let (len, source_offset, destination_offset) = if segment[0] == BLOCK_TO_BLOCK_OFFSET {
        (CopyLen::Sectors(sectors(8, 12)?), sectors(28, 30)?, sectors(30, 32)?)
    } else if segment[1] & 0x02 != 0 {
        (CopyLen::DestinationBlocks(blocks), none, none)
    } else {
        (CopyLen::SourceBlocks(blocks), none, none)
    };
    Ok(CopySegment {
        from: number(&segment[4..6]) as usize,
        to: number(&segment[6..8]) as usize,
        len,
        source: Lba(number(&segment[12..20])),
        destination: Lba(number(&segment[20..28])),
        source_offset,
        destination_offset,
    })
}

/// How a copy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyEnd {
    pub segments: u16,
    pub bytes: u64,
    /// `None`: all of it is copied.
    pub sense: Option<Sense>,
}

/// A copy somebody may ask about.
#[derive(Clone, Copy, Debug)]
struct Record {
    nexus: Nexus,
    list: u8,
    /// `None` while it runs.
    end: Option<CopyEnd>,
}

/// The copies of one unit: those that run, and the last that have ended.
#[derive(Debug, Default)]
pub(super) struct Copies(Vec<Record>);

impl Copies {
    /// # Errors
    /// A copy of the nexus with this identifier runs, or too many copies do.
    pub(super) fn begin(&mut self, nexus: Nexus, list: u8) -> Result<(), Sense> {
        let same = |record: &Record| record.nexus == nexus && record.list == list;
        if self.0.iter().any(|record| same(record) && record.end.is_none()) {
            return Err(Sense::OPERATION_IN_PROGRESS);
        }
        self.0.retain(|record| !same(record));
        if self.0.len() == limits::COPY_RECORDS_MAX {
            let oldest = self.0.iter().position(|record| record.end.is_some());
            self.0.remove(oldest.ok_or(Sense::OPERATION_IN_PROGRESS)?);
        }
        self.0.push(Record { nexus, list, end: None });
        Ok(())
    }

    pub(super) fn end(&mut self, nexus: Nexus, list: u8, end: CopyEnd) {
        let same = |record: &&mut Record| record.nexus == nexus && record.list == list;
        if let Some(record) = self.0.iter_mut().find(same) {
            record.end = Some(end);
        }
    }

    /// The nexus is gone, and with it everybody who could ask.
    pub(super) fn forget(&mut self, nexus: Nexus) {
        self.0.retain(|record| record.nexus != nexus);
    }

    fn find(&self, nexus: Nexus, list: u8) -> Result<&Record, Sense> {
        let record = self.0.iter().find(|record| record.nexus == nexus && record.list == list);
        record.ok_or(Sense::cdb_field(2, 7))
    }

    /// COPY STATUS (SPC-4, 6.20).
    pub(super) fn status(&self, nexus: Nexus, list: u8) -> Result<Vec<u8>, Sense> {
        const KIB: u8 = 0x01;
        let record = self.find(nexus, list)?;
        let (status, segments, bytes) = match record.end {
            None => (0, 0, 0),
            Some(end) => (1 + u8::from(end.sense.is_some()), end.segments, end.bytes),
        };
        let mut data = vec![0, 0, 0, 8, status];
        data.extend(segments.to_be_bytes());
        data.push(KIB);
        data.extend(u32::try_from(bytes / 1024).unwrap_or(u32::MAX).to_be_bytes());
        Ok(data)
    }

    /// FAILED SEGMENT DETAILS: nothing is available unless the copy failed.
    pub(super) fn failure(&self, nexus: Nexus, list: u8) -> Result<Vec<u8>, Sense> {
        let Some(sense) = self.find(nexus, list)?.end.and_then(|end| end.sense) else {
            return Ok(vec![0; 4]);
        };
        let encoded = sense.in_format(SenseFormat::Fixed).encode();
        let mut data = vec![0; 60];
        data[56] = 0x02;
        data[58..60].copy_from_slice(&(encoded.as_slice().len() as u16).to_be_bytes());
        data.extend(encoded.as_slice());
        let available = (data.len() - 4) as u32;
        data[..4].copy_from_slice(&available.to_be_bytes());
        Ok(data)
    }
}

/// OPERATING PARAMETERS (SPC-4, 6.21).
pub(super) fn operating_parameters() -> Vec<u8> {
    let mut data = vec![0; 44];
    // SNLID: a list may go without an identifier.
    data[4] = 0x01;
    data[8..10].copy_from_slice(&(limits::COPY_DEVICES_MAX as u16).to_be_bytes());
    data[10..12].copy_from_slice(&(limits::COPY_SEGMENTS_MAX as u16).to_be_bytes());
    data[12..16].copy_from_slice(&(limits::COPY_DESCRIPTOR_BYTES_MAX as u32).to_be_bytes());
    data[16..20].copy_from_slice(&limits::COPY_SEGMENT_BYTES_MAX.to_be_bytes());
    data[34..36].copy_from_slice(&(limits::COPY_RECORDS_MAX as u16).to_be_bytes());
    data[36] = limits::COPY_RECORDS_MAX as u8;
    // Data segments are whole sectors.
    data[37] = 9;
    data[43] = 3;
    data.extend([BLOCK_TO_BLOCK, BLOCK_TO_BLOCK_OFFSET, IDENTIFICATION]);
    let available = (data.len() - 4) as u32;
    data[..4].copy_from_slice(&available.to_be_bytes());
    data
}

/// VPD page 8Fh, without its header (SPC-4, 7.8.17): commands, parameters, descriptors, general operations.
pub(super) fn vital_page(geometry: Geometry) -> Vec<u8> {
    let mut page = Vec::new();
    let [(limits_code, token_limits), (features_code, features), (types_code, types)] =
        rod::vital_descriptors(geometry);
    let mut push = |code: u16, mut body: Vec<u8>| {
        // Descriptors are whole words.
        body.resize((body.len() + 3) & !3, 0);
        page.extend(code.to_be_bytes());
        page.extend((body.len() as u16).to_be_bytes());
        page.extend(body);
    };
    push(limits_code, token_limits);
    push(0x0001, vec![11, 0x83, 3, 0x00, 0x10, 0x11, 0x84, 4, 0x00, 0x03, 0x04, 0x07]);
    let mut parameters = vec![0; 0x1C];
    parameters[4..6].copy_from_slice(&(limits::COPY_DEVICES_MAX as u16).to_be_bytes());
    parameters[6..8].copy_from_slice(&(limits::COPY_SEGMENTS_MAX as u16).to_be_bytes());
    parameters[8..12].copy_from_slice(&(limits::COPY_DESCRIPTOR_BYTES_MAX as u32).to_be_bytes());
    push(0x0004, parameters);
    push(0x0008, vec![3, BLOCK_TO_BLOCK, BLOCK_TO_BLOCK_OFFSET, IDENTIFICATION]);
    push(features_code, features);
    push(types_code, types);
    let mut general = vec![0; 0x20];
    general[..4].copy_from_slice(&(limits::COPY_RECORDS_MAX as u32).to_be_bytes());
    general[4..8].copy_from_slice(&(limits::COPY_RECORDS_MAX as u32).to_be_bytes());
    general[8..12].copy_from_slice(&limits::COPY_SEGMENT_BYTES_MAX.to_be_bytes());
    general[12] = 9;
    push(0x8001, general);
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::BlockSize;

    fn device(kind: u8) -> Vec<u8> {
        let mut descriptor = vec![0; CSCD_BYTES];
        descriptor[..8].copy_from_slice(&[IDENTIFICATION, 0xC0, 0, 0, 1, kind, 0, 8]);
        descriptor[8..16].copy_from_slice(&[7; 8]);
        descriptor[30] = 2;
        descriptor
    }

    fn segment() -> Vec<u8> {
        let mut descriptor = vec![BLOCK_TO_BLOCK, 2, 0, 24, 0, 0, 0, 1, 0, 0, 1, 0];
        descriptor.extend(5u64.to_be_bytes());
        descriptor.extend(9u64.to_be_bytes());
        descriptor
    }

    fn list(devices: usize, segments: usize) -> Vec<u8> {
        let mut list = vec![0; HEADER_BYTES];
        list[0] = 3;
        list[2..4].copy_from_slice(&((devices * CSCD_BYTES) as u16).to_be_bytes());
        list[8..12].copy_from_slice(&((segments * BLOCK_TO_BLOCK_BYTES) as u32).to_be_bytes());
        (0..devices).for_each(|_| list.extend(device(3)));
        (0..segments).for_each(|_| list.extend(segment()));
        list
    }

    #[test]
    fn a_list_names_devices_and_segments() {
        let copy = parse(&list(1, 1)).unwrap();
        assert_eq!(copy.list, Some(3));
        assert_eq!(copy.devices[0], CopyDevice { kind: 3, designator: vec![7; 8], block_bytes: 512 });
        let expected = CopySegment {
            from: 0,
            to: 1,
            len: CopyLen::DestinationBlocks(BlockCount(256)),
            source: Lba(5),
            destination: Lba(9),
            source_offset: SectorCount(0),
            destination_offset: SectorCount(0),
        };
        assert_eq!(copy.segments, [expected]);
    }

    #[test]
    fn a_segment_may_count_bytes_in_whole_sectors() {
        let mut bytes = list(1, 0);
        bytes[11] = BLOCK_TO_BLOCK_OFFSET_BYTES as u8;
        let start = bytes.len();
        bytes.extend([BLOCK_TO_BLOCK_OFFSET, 0, 0, 28, 0, 0, 0, 0, 0, 0, 6, 0]);
        bytes.extend(5u64.to_be_bytes());
        bytes.extend(9u64.to_be_bytes());
        bytes.extend([2, 0, 4, 0]);
        let segment = parse(&bytes).unwrap().segments[0];
        assert_eq!(segment.len, CopyLen::Sectors(SectorCount(3)));
        assert_eq!((segment.source_offset, segment.destination_offset), (SectorCount(1), SectorCount(2)));
        for (place, field) in [(11, 8), (29, 28), (31, 30)] {
            let mut odd = bytes.clone();
            odd[start + place] = 1;
            assert_eq!(parse(&odd), Err(at(start + field)), "no whole sectors");
        }
    }

    #[test]
    fn what_is_too_much_or_cut_or_unknown_is_refused() {
        assert_eq!(parse(&list(limits::COPY_DEVICES_MAX + 1, 1)), Err(Sense::TOO_MANY_CSCD_DESCRIPTORS));
        assert_eq!(parse(&list(1, limits::COPY_SEGMENTS_MAX + 1)), Err(Sense::TOO_MANY_SEGMENT_DESCRIPTORS));
        let whole = list(2, 2);
        for len in 0..whole.len() {
            assert_eq!(parse(&whole[..len]), Err(Sense::PARAMETER_LIST_LENGTH), "{len}");
        }
        let mut other = list(1, 1);
        other[16] = 0xE0;
        assert_eq!(parse(&other).unwrap_err().ascq, 0x07);
        let mut other = list(1, 1);
        other[16 + CSCD_BYTES] = 0x03;
        assert_eq!(parse(&other).unwrap_err().ascq, 0x09);
        let mut inline = list(1, 1);
        inline[15] = 1;
        assert_eq!(parse(&inline), Err(Sense::INLINE_DATA_LENGTH));
    }

    #[test]
    fn a_copy_is_told_of_until_its_nexus_goes() {
        let (nexus, end) = (Nexus(1), CopyEnd { segments: 2, bytes: 4096, sense: None });
        let mut copies = Copies::default();
        assert!(copies.status(nexus, 7).is_err());
        copies.begin(nexus, 7).unwrap();
        assert_eq!(copies.begin(nexus, 7), Err(Sense::OPERATION_IN_PROGRESS));
        assert_eq!(copies.status(nexus, 7).unwrap()[4], 0);
        copies.end(nexus, 7, end);
        assert_eq!(copies.status(nexus, 7).unwrap(), [0, 0, 0, 8, 1, 0, 2, 1, 0, 0, 0, 4]);
        assert_eq!(copies.failure(nexus, 7).unwrap(), [0; 4]);
        copies.begin(nexus, 7).unwrap();
        copies.end(nexus, 7, CopyEnd { sense: Some(Sense::COPY_ABORTED), ..end });
        assert_eq!(copies.status(nexus, 7).unwrap()[4], 2);
        assert_eq!(copies.failure(nexus, 7).unwrap()[62], 0x0A);
        copies.forget(nexus);
        assert!(copies.status(nexus, 7).is_err());
    }

    #[test]
    fn records_are_bounded_and_running_ones_are_never_forgotten() {
        let mut copies = Copies::default();
        for list in 0..limits::COPY_RECORDS_MAX as u8 {
            copies.begin(Nexus(0), list).unwrap();
        }
        assert!(copies.begin(Nexus(1), 0).is_err());
        copies.end(Nexus(0), 5, CopyEnd { segments: 0, bytes: 0, sense: None });
        copies.begin(Nexus(1), 0).unwrap();
        assert!(copies.status(Nexus(0), 5).is_err());
    }

    #[test]
    fn the_vital_page_is_made_of_whole_descriptors() {
        let geometry =
            Geometry { blocks: 1 << 20, block_size: BlockSize::B512, physical_exponent: 3, thin: true };
        let page = vital_page(geometry);
        let (mut rest, mut codes) = (&page[..], Vec::new());
        while let [a, b, c, d, tail @ ..] = rest {
            codes.push(u16::from_be_bytes([*a, *b]));
            rest = &tail[usize::from(u16::from_be_bytes([*c, *d]))..];
        }
        assert!(rest.is_empty());
        assert_eq!(codes, [0, 0x0001, 0x0004, 0x0008, 0x0106, 0x0108, 0x8001]);
    }
}
