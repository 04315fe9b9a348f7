//! Representations of data (SPC-5, POPULATE TOKEN's model; SBC-4, 5.16 and 5.53): what Windows calls offloaded transfers.
//!
//! Knows the lists of POPULATE TOKEN and WRITE USING TOKEN, the 512 bytes of a token, and what RECEIVE ROD TOKEN
//! INFORMATION tells. Does not know which tokens there are nor whether one is still good (`shard`).
//!
//! A token stands for blocks as they were when it was made. Nothing is copied for it: a write to any of them revokes
//! it. The standard calls that a point in time copy that is vulnerable to changes.

use super::capacity::Geometry;
use super::device::Nexus;
use super::sense::{Sense, SenseFormat};
use crate::limits;
use crate::units::{BlockCount, BlockRange, Lba};

/// Bytes of a token, ours and the well known one.
pub const ROD_TOKEN_BYTES: usize = 512;

const CHANGE_VULNERABLE: u32 = 0x0080_0001;
/// Whichever point in time copy the copy manager has.
const POINT_IN_TIME_ANY: u32 = 0x0080_FFFF;
const BLOCK_ZERO: u32 = 0xFFFF_0001;
/// ROD TOKEN LENGTH counts from byte 8 on.
const LENGTH_FIELD: u16 = ROD_TOKEN_BYTES as u16 - 8;

const POPULATE_HEADER: usize = 16;
const WRITE_HEADER: usize = 536;
const RANGE_BYTES: usize = 16;

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn at(offset: usize, bit: u8) -> Sense {
    Sense::parameter_field(u16::try_from(offset).unwrap_or(u16::MAX), bit)
}

/// POPULATE TOKEN, as it is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Populate {
    /// LIST IDENTIFIER.
    pub list: u32,
    /// Not empty, in the order the token has them; they do not overlap.
    pub ranges: Vec<BlockRange>,
    /// Seconds without use after which the token expires.
    pub inactivity_s: u32,
    /// To be given back to `Device::rod_ended`.
    pub operation: RodOperation,
}

/// WRITE USING TOKEN, as it is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenWrite {
    pub list: u32,
    pub ranges: Vec<BlockRange>,
    pub source: RodSource,
    /// Blocks of the unit that is written, from the start of what the token stands for.
    pub offset: u64,
    /// DEL_TKN: nobody needs the token after this.
    pub delete: bool,
    /// The status is to come before the data is copied.
    pub immediate: bool,
    pub operation: RodOperation,
}

/// What is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RodSource {
    Zeros,
    Token(Box<[u8; ROD_TOKEN_BYTES]>),
}

impl RodSource {
    fn of(token: &[u8; ROD_TOKEN_BYTES]) -> Result<Self, Sense> {
        let kind = number(&token[..4]) as u32;
        if kind != BLOCK_ZERO && kind != CHANGE_VULNERABLE {
            return Err(Sense::TOKEN_TYPE_UNSUPPORTED);
        }
        if token[6..8] != LENGTH_FIELD.to_be_bytes() {
            return Err(Sense::TOKEN_LENGTH);
        }
        Ok(if kind == BLOCK_ZERO { Self::Zeros } else { Self::Token(Box::new(*token)) })
    }
}

/// | bytes  | field                                | bytes  | field                              |
/// |--------|--------------------------------------|--------|------------------------------------|
/// | 0..2   | POPULATE TOKEN DATA LENGTH           | 8..12  | ROD TYPE                           |
/// | 2      | RTV (bit 1), IMMED (bit 0)           | 14..16 | BLOCK DEVICE RANGE DESCRIPTOR LENGTH |
/// | 4..8   | INACTIVITY TIMEOUT                   | 16..   | range descriptors                  |
///
/// IMMED asks for nothing: a token is made as soon as no write is under way.
pub(super) fn parse_populate(
    bytes: &[u8],
    geometry: Geometry,
    list: u32,
    operation: RodOperation,
) -> Result<Populate, Sense> {
    let header = bytes.get(..POPULATE_HEADER).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    let kind = number(&header[8..12]) as u32;
    if header[2] & 0x02 != 0 && kind != CHANGE_VULNERABLE && kind != POINT_IN_TIME_ANY {
        return Err(Sense::TOKEN_TYPE_UNSUPPORTED);
    }
    let inactivity_s = match number(&header[4..8]) as u32 {
        0 => limits::ROD_INACTIVITY_S,
        wanted if wanted > limits::ROD_INACTIVITY_MAX_S => return Err(at(4, 7)),
        wanted => wanted,
    };
    let ranges = parse_ranges(bytes, POPULATE_HEADER, geometry)?;
    Ok(Populate { list, ranges, inactivity_s, operation })
}

/// | bytes  | field                                | bytes    | field                                |
/// |--------|--------------------------------------|----------|--------------------------------------|
/// | 0..2   | WRITE USING TOKEN DATA LENGTH        | 16..528  | ROD TOKEN                            |
/// | 2      | DEL_TKN (bit 1), IMMED (bit 0)       | 534..536 | BLOCK DEVICE RANGE DESCRIPTOR LENGTH |
/// | 8..16  | OFFSET INTO ROD                      | 536..    | range descriptors                    |
pub(super) fn parse_write(
    bytes: &[u8],
    geometry: Geometry,
    list: u32,
    operation: RodOperation,
) -> Result<TokenWrite, Sense> {
    let header = bytes.get(..WRITE_HEADER).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    let ranges = parse_ranges(bytes, WRITE_HEADER, geometry)?;
    let token = header[16..].first_chunk().ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    Ok(TokenWrite {
        list,
        ranges,
        source: RodSource::of(token)?,
        offset: number(&header[8..16]),
        delete: header[2] & 0x02 != 0,
        immediate: header[2] & 0x01 != 0,
        operation,
    })
}

/// The descriptors behind a header whose last two bytes are their length; those without blocks are left out.
///
/// | bytes of a descriptor | field                 | bytes | field                    |
/// |-----------------------|-----------------------|-------|--------------------------|
/// | 0..8                  | LOGICAL BLOCK ADDRESS | 8..12 | NUMBER OF LOGICAL BLOCKS |
fn parse_ranges(bytes: &[u8], header: usize, geometry: Geometry) -> Result<Vec<BlockRange>, Sense> {
    let announced = number(&bytes[..2]) as usize + 2;
    let len = number(&bytes[header - 2..header]) as usize;
    if announced > bytes.len() {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    if len < RANGE_BYTES || !len.is_multiple_of(RANGE_BYTES) || header + len > announced {
        return Err(at(header - 2, 7));
    }
    let descriptors = bytes[header..header + len].chunks_exact(RANGE_BYTES);
    if descriptors.len() > limits::ROD_RANGES_MAX {
        return Err(Sense::TOO_MANY_SEGMENT_DESCRIPTORS);
    }
    let most = u64::from(geometry.blocks_in(limits::ROD_BYTES_MAX));
    let mut ranges: Vec<BlockRange> = Vec::with_capacity(descriptors.len());
    let mut total = 0;
    for (index, descriptor) in descriptors.enumerate() {
        let place = header + index * RANGE_BYTES;
        let (start, count) = (number(&descriptor[..8]), number(&descriptor[8..12]));
        let range = BlockRange { start: Lba(start), count: BlockCount(count) };
        if !geometry.contains(range) {
            return Err(Sense { field: at(place, 7).field, ..Sense::LBA_OUT_OF_RANGE });
        }
        total += count;
        let meets = |other: &BlockRange| {
            start < other.start.0 + other.count.0 && other.start.0 < start + count && count > 0
        };
        if total > most || ranges.iter().any(meets) {
            return Err(at(place, 7));
        }
        if count > 0 {
            ranges.push(range);
        }
    }
    Ok(ranges)
}

/// A token, before it becomes bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenFields<'a> {
    /// By which its maker finds it.
    pub(super) identifier: [u8; 8],
    pub(super) bytes: u64,
    /// What nobody can guess.
    pub(super) secret: [u8; 32],
    pub(super) naa: &'a [u8; 8],
    /// READ CAPACITY (16) of the unit.
    pub(super) capacity: &'a [u8],
    pub(super) target_name: &'a str,
}

impl TokenFields<'_> {
    /// | bytes  | field                                | bytes    | field                            |
    /// |--------|--------------------------------------|----------|----------------------------------|
    /// | 0..4   | ROD TYPE                             | 48..64   | NUMBER OF BYTES REPRESENTED      |
    /// | 6..8   | ROD TOKEN LENGTH: 504                | 96..128  | block length, as READ CAPACITY   |
    /// | 8..16  | COPY MANAGER ROD TOKEN IDENTIFIER    | 128..    | TARGET DEVICE DESCRIPTOR         |
    /// | 16..48 | CREATOR LOGICAL UNIT DESCRIPTOR      | 480..512 | the secret                       |
    pub(super) fn encode(&self) -> Box<[u8; ROD_TOKEN_BYTES]> {
        let mut token = Box::new([0; ROD_TOKEN_BYTES]);
        let mut put = |start: usize, bytes: &[u8]| token[start..start + bytes.len()].copy_from_slice(bytes);
        put(0, &CHANGE_VULNERABLE.to_be_bytes());
        put(6, &LENGTH_FIELD.to_be_bytes());
        put(8, &self.identifier);
        put(16, &[0xE4, 0, 0, 0, 1, 3, 0, 8]);
        put(24, self.naa);
        put(56, &self.bytes.to_be_bytes());
        // Block length, protection, exponent and provisioning lie together there.
        put(96, self.capacity.get(8..16).unwrap_or(&[]));
        put(45, self.capacity.get(9..12).unwrap_or(&[]));
        let name = &self.target_name.as_bytes()[..self.target_name.len().min(limits::ISCSI_NAME_BYTES_MAX)];
        let padded = (name.len() + 4) & !3;
        put(128, &[0x53, 0xA8, 0, padded as u8]);
        put(132, name);
        put(ROD_TOKEN_BYTES - 32, &self.secret);
        token
    }
}

/// The identifier in a token.
pub fn rod_identifier(token: &[u8; ROD_TOKEN_BYTES]) -> [u8; 8] {
    let mut identifier = [0; 8];
    identifier.copy_from_slice(&token[8..16]);
    identifier
}

/// One operation of one unit; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RodOperation(pub(super) u64);

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RodEnd {
    /// Blocks of the unit that was asked: represented, or written.
    pub blocks: u64,
    /// Fewer than asked for, and all there are.
    pub residual: bool,
    /// Stopped from outside.
    pub terminated: bool,
    pub sense: Option<Sense>,
    pub token: Option<Box<[u8; ROD_TOKEN_BYTES]>>,
}

/// Service actions, as RECEIVE ROD TOKEN INFORMATION repeats them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RodAction {
    Populate = 0x10,
    Write = 0x11,
}

#[derive(Clone, Debug)]
struct Record {
    nexus: Nexus,
    list: u32,
    operation: RodOperation,
    action: RodAction,
    immediate: bool,
    /// `None` while it runs.
    end: Option<RodEnd>,
}

/// The operations of one unit: those that run, and the last that have ended.
#[derive(Debug, Default)]
pub(super) struct RodOperations {
    records: Vec<Record>,
    count: u64,
}

impl RodOperations {
    pub(super) fn next(&mut self) -> RodOperation {
        self.count += 1;
        RodOperation(self.count)
    }

    /// # Errors
    /// One of the nexus with this list identifier runs, or too many do.
    pub(super) fn begin(
        &mut self,
        nexus: Nexus,
        list: u32,
        operation: RodOperation,
        action: RodAction,
        immediate: bool,
    ) -> Result<(), Sense> {
        let same = |record: &Record| record.nexus == nexus && record.list == list;
        if self.records.iter().any(|record| same(record) && record.end.is_none()) {
            return Err(Sense::OPERATION_IN_PROGRESS);
        }
        self.records.retain(|record| !same(record));
        if self.records.len() == limits::COPY_RECORDS_MAX {
            let oldest = self.records.iter().position(|record| record.end.is_some());
            self.records.remove(oldest.ok_or(Sense::OPERATION_IN_PROGRESS)?);
        }
        self.records.push(Record { nexus, list, operation, action, immediate, end: None });
        Ok(())
    }

    pub(super) fn end(&mut self, operation: RodOperation, end: RodEnd) {
        if let Some(record) = self.records.iter_mut().find(|record| record.operation == operation) {
            record.end = Some(end);
        }
    }

    /// The nexus is gone, and with it everybody who could ask.
    pub(super) fn forget(&mut self, nexus: Nexus) {
        self.records.retain(|record| record.nexus != nexus);
    }

    /// | bytes  | field                               | bytes  | field                               |
    /// |--------|-------------------------------------|--------|-------------------------------------|
    /// | 0..4   | AVAILABLE DATA                      | 13, 14 | lengths of the SENSE DATA           |
    /// | 4      | RESPONSE TO SERVICE ACTION          | 15     | TRANSFER COUNT UNITS: blocks        |
    /// | 5      | COPY OPERATION STATUS               | 16..24 | TRANSFER COUNT                      |
    /// | 8..12  | ESTIMATED STATUS UPDATE DELAY, ms   | 32..   | SENSE DATA, then length and tokens  |
    /// | 12     | EXTENDED COPY COMPLETION STATUS     |        |                                     |
    ///
    /// # Errors
    /// The nexus has given no operation this identifier.
    pub(super) fn information(&self, nexus: Nexus, list: u32) -> Result<Vec<u8>, Sense> {
        const BLOCKS: u8 = 0xF1;
        const SOON_MS: u32 = 100;
        const ENDED: u32 = 0xFFFF_FFFE;
        let mine = |record: &&Record| record.nexus == nexus && record.list == list;
        let record = self.records.iter().find(mine).ok_or(Sense::cdb_field(2, 7))?;
        let mut data = vec![0; 32];
        data[4] = record.action as u8;
        data[5] = record.status();
        let delay = if record.end.is_some() { ENDED } else { SOON_MS };
        data[8..12].copy_from_slice(&delay.to_be_bytes());
        data[15] = BLOCKS;
        let mut token = None;
        if let Some(end) = &record.end {
            data[16..24].copy_from_slice(&end.blocks.to_be_bytes());
            if let Some(sense) = end.sense {
                let encoded = sense.in_format(SenseFormat::Descriptor).encode();
                data[12] = super::status::ScsiStatus::CheckCondition.code();
                data[13] = encoded.as_slice().len() as u8;
                data[14] = data[13];
                data.extend(encoded.as_slice());
            }
            token = end.token.as_deref();
        }
        let descriptor = token.map_or(0, |token| token.len() as u32 + 2);
        data.extend(descriptor.to_be_bytes());
        if let Some(token) = token {
            data.extend([0, 0]);
            data.extend(token);
        }
        let available = (data.len() - 4) as u32;
        data[..4].copy_from_slice(&available.to_be_bytes());
        Ok(data)
    }
}

impl Record {
    fn status(&self) -> u8 {
        match &self.end {
            None if self.immediate => 0x12,
            None => 0x11,
            Some(end) if end.terminated => 0x60,
            Some(end) if end.sense.is_some() => 0x02,
            Some(end) if end.residual => 0x04,
            Some(_) => 0x01,
        }
    }
}

/// Descriptors of VPD page 8Fh: block device ROD token limits (0000h), ROD token features (0106h) and supported ROD types
/// (0108h), each as code and body.
pub(super) fn vital_descriptors(geometry: Geometry) -> [(u16, Vec<u8>); 3] {
    let most = geometry.blocks_in(limits::ROD_BYTES_MAX);
    let best = geometry.blocks_in(limits::ROD_OPTIMAL_BYTES);
    let mut token_limits = vec![0; 32];
    token_limits[6..8].copy_from_slice(&(limits::ROD_RANGES_MAX as u16).to_be_bytes());
    token_limits[8..12].copy_from_slice(&limits::ROD_INACTIVITY_MAX_S.to_be_bytes());
    token_limits[12..16].copy_from_slice(&limits::ROD_INACTIVITY_S.to_be_bytes());
    token_limits[16..24].copy_from_slice(&u64::from(most).to_be_bytes());
    token_limits[24..32].copy_from_slice(&u64::from(best).to_be_bytes());

    // REMOTE TOKENS: none. A token may live as long as it is used.
    let mut features = vec![0; 44];
    features[12..16].copy_from_slice(&0u32.to_be_bytes());
    features[16..20].copy_from_slice(&limits::ROD_LIFETIME_MAX_S.to_be_bytes());
    features[20..24].copy_from_slice(&limits::ROD_INACTIVITY_MAX_S.to_be_bytes());
    features[42..44].copy_from_slice(&48u16.to_be_bytes());
    let mut block = vec![0; 48];
    block[2..4].copy_from_slice(&44u16.to_be_bytes());
    block[8..16].copy_from_slice(&(limits::ROD_BYTES_MAX as u64).to_be_bytes());
    for start in [16, 24, 32] {
        block[start..start + 8].copy_from_slice(&(limits::ROD_OPTIMAL_BYTES as u64).to_be_bytes());
    }
    features.extend(block);

    const TOKEN_IN: u8 = 0x02;
    const TOKEN_OUT: u8 = 0x01;
    let mut types = vec![0, 0, 0, 128];
    for (kind, flags, preference) in
        [(CHANGE_VULNERABLE, TOKEN_IN | TOKEN_OUT, 1_u16), (BLOCK_ZERO, TOKEN_IN, 0)]
    {
        let mut descriptor = vec![0; 64];
        descriptor[..4].copy_from_slice(&kind.to_be_bytes());
        descriptor[4] = flags;
        descriptor[6..8].copy_from_slice(&preference.to_be_bytes());
        types.extend(descriptor);
    }
    [(0x0000, token_limits), (0x0106, features), (0x0108, types)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::fixture::{A, B, BLOCKS, Bench, codes};
    use crate::scsi::reply::{UnitIndex, UnitPlan};
    use crate::units::BlockSize;

    const UNIT: Geometry =
        Geometry { blocks: BLOCKS, block_size: BlockSize::B512, physical_exponent: 3, thin: true };
    const OPERATION: RodOperation = RodOperation(1);

    fn ranges(list: &mut Vec<u8>, header: usize, ranges: &[(u64, u32)]) {
        list.resize(header, 0);
        list[header - 2..header].copy_from_slice(&((ranges.len() * RANGE_BYTES) as u16).to_be_bytes());
        for (start, count) in ranges {
            list.extend(start.to_be_bytes());
            list.extend(count.to_be_bytes());
            list.extend([0; 4]);
        }
        let len = list.len() as u16 - 2;
        list[..2].copy_from_slice(&len.to_be_bytes());
    }

    fn populate_list(wanted: &[(u64, u32)]) -> Vec<u8> {
        let mut list = Vec::new();
        ranges(&mut list, POPULATE_HEADER, wanted);
        list
    }

    fn populate(list: &[u8]) -> Result<Populate, Sense> {
        parse_populate(list, UNIT, 7, OPERATION)
    }

    fn token(kind: u32) -> [u8; ROD_TOKEN_BYTES] {
        let mut token = [0; ROD_TOKEN_BYTES];
        token[..4].copy_from_slice(&kind.to_be_bytes());
        token[6..8].copy_from_slice(&LENGTH_FIELD.to_be_bytes());
        token
    }

    fn write_list(token: &[u8], wanted: &[(u64, u32)]) -> Vec<u8> {
        let mut list = vec![0; 16];
        list.extend(token);
        ranges(&mut list, WRITE_HEADER, wanted);
        list
    }

    #[test]
    fn a_populate_list_names_ranges_and_a_timeout() {
        let mut list = populate_list(&[(5, 9), (100, 0), (200, 1)]);
        let parsed = populate(&list).unwrap();
        let range = |start, count| BlockRange { start: Lba(start), count: BlockCount(count) };
        assert_eq!(parsed.ranges, [range(5, 9), range(200, 1)]);
        assert_eq!(parsed.inactivity_s, limits::ROD_INACTIVITY_S);
        list[7] = 9;
        assert_eq!(populate(&list).unwrap().inactivity_s, 9);
        list[4..8].copy_from_slice(&(limits::ROD_INACTIVITY_MAX_S + 1).to_be_bytes());
        assert_eq!(populate(&list), Err(at(4, 7)));
    }

    #[test]
    fn ranges_are_few_apart_and_within_the_unit() {
        let refused = |wanted: &[(u64, u32)]| populate(&populate_list(wanted)).unwrap_err();
        assert_eq!(refused(&[]), at(14, 7));
        assert_eq!((refused(&[(BLOCKS, 1)]).asc, refused(&[(0, 1), (u64::MAX, 2)]).asc), (0x21, 0x21));
        assert_eq!(refused(&[(0, 10), (20, 1), (9, 5)]), at(48, 7));
        let many: Vec<_> = (0..=limits::ROD_RANGES_MAX as u64).map(|at| (at, 1)).collect();
        assert_eq!(refused(&many), Sense::TOO_MANY_SEGMENT_DESCRIPTORS);
        let most = (limits::ROD_BYTES_MAX / 512) as u32;
        assert!(populate(&populate_list(&[(0, most)])).is_ok());
        assert_eq!(refused(&[(0, most), (u64::from(most), 1)]), at(32, 7));
    }

    #[test]
    fn lists_that_end_early_are_refused_wherever_they_end() {
        let list = write_list(&token(BLOCK_ZERO), &[(0, 1), (9, 1)]);
        assert!(parse_write(&list, UNIT, 1, OPERATION).is_ok());
        for len in 0..list.len() {
            let refused = parse_write(&list[..len], UNIT, 1, OPERATION);
            assert_eq!(refused, Err(Sense::PARAMETER_LIST_LENGTH), "{len}");
        }
        let mut odd = list;
        odd[535] = 17;
        assert_eq!(parse_write(&odd, UNIT, 1, OPERATION), Err(at(534, 7)));
    }

    #[test]
    fn only_our_kind_and_zeros_are_tokens() {
        let source = |token: &[u8; ROD_TOKEN_BYTES]| RodSource::of(token);
        assert_eq!(source(&token(BLOCK_ZERO)), Ok(RodSource::Zeros));
        assert!(matches!(source(&token(CHANGE_VULNERABLE)), Ok(RodSource::Token(_))));
        assert_eq!(source(&token(0x0001_0000)), Err(Sense::TOKEN_TYPE_UNSUPPORTED));
        let mut short = token(CHANGE_VULNERABLE);
        short[7] = 0;
        assert_eq!(source(&short), Err(Sense::TOKEN_LENGTH));
        let mut wanted = populate_list(&[(0, 1)]);
        wanted[2] = 0x02;
        assert_eq!(populate(&wanted), Err(Sense::TOKEN_TYPE_UNSUPPORTED), "type 0 is internal to a copy");
        wanted[8..12].copy_from_slice(&POINT_IN_TIME_ANY.to_be_bytes());
        assert!(populate(&wanted).is_ok());
    }

    #[test]
    fn a_token_says_what_it_is() {
        let capacity = UNIT.capacity16();
        let fields = TokenFields {
            identifier: [1, 2, 3, 4, 5, 6, 7, 8],
            bytes: 0x1_0000_0200,
            secret: [0xAB; 32],
            naa: &[0x31; 8],
            capacity: &capacity,
            target_name: &"x".repeat(limits::ISCSI_NAME_BYTES_MAX),
        };
        let token = fields.encode();
        assert_eq!(token[..8], [0, 0x80, 0, 1, 0, 0, 0x01, 0xF8]);
        assert_eq!(rod_identifier(&token), fields.identifier);
        assert_eq!(token[16..24], [0xE4, 0, 0, 0, 1, 3, 0, 8]);
        assert_eq!(token[45..48], [0, 2, 0], "the length of its blocks");
        assert_eq!(token[48..64], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 2, 0]);
        assert_eq!(token[96..104], [0, 0, 2, 0, 0, 3, 0xC0, 0]);
        assert_eq!(token[128..132], [0x53, 0xA8, 0, 224]);
        assert_eq!(token[480..], [0xAB; 32]);
    }

    #[test]
    fn information_is_for_who_gave_the_list_identifier() {
        let mut bench = Bench::new();
        let list = populate_list(&[(0, 8)]);
        let cdb = [0x83, 0x10, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, list.len() as u8, 0, 0];
        let UnitPlan::PopulateToken { populate, .. } = bench.send(A, &cdb, &list) else { panic!("no plan") };
        let ask = [0x84, 0x07, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0];
        assert_eq!(bench.codes(B, &ask), (5, 0x24, 0));
        assert_eq!(bench.data(A, &ask)[4..6], [0x10, 0x11], "in progress");
        assert_eq!(codes(bench.send(A, &cdb, &list)), (5, 0x00, 0x16), "one of this name runs");
        let token = Some(Box::new([7; ROD_TOKEN_BYTES]));
        let end = RodEnd { blocks: 8, residual: false, terminated: false, sense: None, token };
        bench.device.rod_ended(UnitIndex(0), populate.operation, end);
        let data = bench.data(A, &ask);
        assert_eq!(data.len(), 32 + 4 + 2 + ROD_TOKEN_BYTES);
        assert_eq!(data[..6], [0, 0, 2, 0x22, 0x10, 0x01]);
        assert_eq!((data[15], &data[16..24]), (0xF1, &8u64.to_be_bytes()[..]));
        assert_eq!(data[32..38], [0, 0, 2, 2, 0, 0]);
        bench.device.detach(A);
        bench.attach(A);
        assert_eq!(bench.codes(A, &ask), (5, 0x24, 0), "a new session is somebody else");
    }

    #[test]
    fn a_failed_operation_shows_its_sense() {
        let mut operations = RodOperations::default();
        let operation = operations.next();
        operations.begin(A, 3, operation, RodAction::Write, true).unwrap();
        assert_eq!(operations.information(A, 3).unwrap()[5], 0x12);
        let sense = Some(Sense::TOKEN_REVOKED);
        let end = RodEnd { blocks: 2, residual: false, terminated: false, sense, token: None };
        operations.end(operation, end);
        let data = operations.information(A, 3).unwrap();
        assert_eq!(data[4..6], [0x11, 0x02]);
        assert_eq!(data[12..15], [0x02, 8, 8]);
        assert_eq!(data[32..36], [0x72, 5, 0x23, 6]);
        assert_eq!(data[40..], [0; 4], "no tokens");
    }

    #[test]
    fn records_are_bounded_and_those_that_run_are_kept() {
        let mut operations = RodOperations::default();
        for list in 0..limits::COPY_RECORDS_MAX as u32 {
            let operation = operations.next();
            operations.begin(A, list, operation, RodAction::Write, true).unwrap();
        }
        let next = operations.next();
        let refused = operations.begin(A, 999, next, RodAction::Write, true);
        assert_eq!(refused, Err(Sense::OPERATION_IN_PROGRESS));
        let end = RodEnd { blocks: 0, residual: false, terminated: true, sense: None, token: None };
        operations.end(RodOperation(5), end);
        operations.begin(A, 999, next, RodAction::Write, true).unwrap();
        assert!(operations.information(A, 4).is_err() && operations.information(A, 5).is_ok());
    }
}
