//! The UNMAP parameter list (SBC-3, 5.28).
//!
//! Knows descriptors and limits. Does not know what deallocating a block means.

use super::capacity::Geometry;
use super::sense::Sense;
use crate::limits;
use crate::units::{BlockCount, BlockRange, Lba};

const HEADER_BYTES: usize = 8;
const DESCRIPTOR_BYTES: usize = 16;

/// The ranges of a list, in its order, without the empty ones.
///
/// UNMAP BLOCK DESCRIPTOR DATA LENGTH may be zero; bytes behind the last whole descriptor are ignored.
///
/// # Errors
/// PARAMETER LIST LENGTH ERROR when the list ends within what its header announces; LOGICAL BLOCK ADDRESS OUT OF RANGE;
/// INVALID FIELD IN PARAMETER LIST beyond the limits of VPD page B0h. In all cases nothing is unmapped.
pub(super) fn parse(list: &[u8], geometry: Geometry) -> Result<Vec<BlockRange>, Sense> {
    let header = list.get(..HEADER_BYTES).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    let announced = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let descriptors = list
        .get(HEADER_BYTES..HEADER_BYTES + announced)
        .ok_or(Sense::PARAMETER_LIST_LENGTH)?
        .chunks_exact(DESCRIPTOR_BYTES);
    if descriptors.len() > limits::UNMAP_DESCRIPTORS_MAX as usize {
        return Err(Sense::parameter_field(2, 7));
    }
    let blocks_max = u64::from(geometry.blocks_in(limits::UNMAP_BYTES_MAX));
    let mut total: u64 = 0;
    let mut ranges = Vec::with_capacity(descriptors.len());
    for (index, descriptor) in descriptors.enumerate() {
        let number = |bytes: &[u8]| bytes.iter().fold(0, |value: u64, byte| value << 8 | u64::from(*byte));
        let start = Lba(number(&descriptor[..8]));
        let count = BlockCount(number(&descriptor[8..12]));
        let range = BlockRange { start, count };
        let at = (HEADER_BYTES + index * DESCRIPTOR_BYTES) as u16;
        if !geometry.contains(range) {
            let field = Sense::parameter_field(at, 7).field;
            return Err(Sense { field, ..Sense::LBA_OUT_OF_RANGE });
        }
        total += count.0;
        if total > blocks_max {
            return Err(Sense::parameter_field(at + 8, 7));
        }
        if count.0 > 0 {
            ranges.push(range);
        }
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::BlockSize;

    const GEOMETRY: Geometry =
        Geometry { blocks: 1 << 32, block_size: BlockSize::B512, physical_exponent: 3, thin: true };

    fn list(ranges: &[(u64, u32)]) -> Vec<u8> {
        let data = (ranges.len() * 16) as u16;
        let mut list = (data + 6).to_be_bytes().to_vec();
        list.extend(data.to_be_bytes());
        list.extend([0; 4]);
        for (lba, count) in ranges {
            list.extend(lba.to_be_bytes());
            list.extend(count.to_be_bytes());
            list.extend([0; 4]);
        }
        list
    }

    #[test]
    fn empty_descriptors_are_allowed_anywhere_up_to_the_end() {
        assert_eq!(parse(&list(&[]), GEOMETRY), Ok(vec![]));
        assert_eq!(parse(&list(&[(0, 0), (1 << 32, 0)]), GEOMETRY), Ok(vec![]));
        let range = BlockRange { start: Lba(5), count: BlockCount(3) };
        assert_eq!(parse(&list(&[(0, 0), (5, 3)]), GEOMETRY), Ok(vec![range]));
    }

    #[test]
    fn a_list_that_ends_early_is_a_length_error() {
        let whole = list(&[(0, 8), (8, 8)]);
        for len in 0..whole.len() {
            assert_eq!(parse(&whole[..len], GEOMETRY), Err(Sense::PARAMETER_LIST_LENGTH), "{len} bytes");
        }
    }

    #[test]
    fn limits_of_the_block_limits_page_hold() {
        let most = GEOMETRY.blocks_in(limits::UNMAP_BYTES_MAX);
        assert!(parse(&list(&[(0, most)]), GEOMETRY).is_ok());
        assert_eq!(parse(&list(&[(0, most), (0, 1)]), GEOMETRY), Err(Sense::parameter_field(32, 7)));
        let many = vec![(0, 1); limits::UNMAP_DESCRIPTORS_MAX as usize];
        assert_eq!(parse(&list(&many), GEOMETRY).unwrap().len(), many.len());
        let too_many = vec![(0, 1); limits::UNMAP_DESCRIPTORS_MAX as usize + 1];
        assert_eq!(parse(&list(&too_many), GEOMETRY), Err(Sense::parameter_field(2, 7)));
    }

    #[test]
    fn ranges_beyond_the_end_are_refused_as_a_whole() {
        let sense = parse(&list(&[(0, 1), (1 << 32, 1)]), GEOMETRY).unwrap_err();
        assert_eq!((sense.asc, sense.field.unwrap().byte), (0x21, 24));
        assert!(parse(&list(&[(u64::MAX, 1)]), GEOMETRY).is_err());
    }
}
