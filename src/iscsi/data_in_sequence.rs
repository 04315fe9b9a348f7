//! A read on its way out (RFC 7143, 11.7): splits it into Data-In slices.
//!
//! Knows offsets, segment and burst lengths and DataSN. Does not know headers, status or buffers.

use super::serial::DataSn;

/// One Data-In PDU's share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    pub data_sn: DataSn,
    pub offset: u32,
    pub len: u32,
    /// F: MaxBurstLength is reached, or the data ends.
    pub end_of_burst: bool,
    /// Nothing follows.
    pub is_last: bool,
}

/// The part of a read that is still to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct DataInSequence {
    next: u32,
    end: u32,
    burst_used: u32,
    data_sn: DataSn,
}

impl DataInSequence {
    pub fn new(len: u32) -> Self {
        Self { end: len, ..Self::default() }
    }

    /// `segment_max` is the initiator's MaxRecvDataSegmentLength, `burst_max` the agreed MaxBurstLength.
    pub fn next_slice(&mut self, segment_max: u32, burst_max: u32) -> Option<Slice> {
        let left = self.end - self.next;
        if left == 0 {
            return None;
        }
        // Both limits are at least 512; `max(1)` only keeps a zero from looping for ever.
        let len = left.min(segment_max.max(1)).min(burst_max.saturating_sub(self.burst_used).max(1));
        let slice = Slice {
            data_sn: self.data_sn.take(),
            offset: self.next,
            len,
            end_of_burst: len == left || self.burst_used + len >= burst_max,
            is_last: len == left,
        };
        self.next += len;
        self.burst_used = if slice.end_of_burst { 0 } else { self.burst_used + len };
        Some(slice)
    }

    pub fn is_done(&self) -> bool {
        self.next == self.end
    }

    /// How many Data-In PDUs there have been (ExpDataSN, 11.4.8).
    pub fn exp_data_sn(&self) -> DataSn {
        self.data_sn
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slices(len: u32, segment: u32, burst: u32) -> Vec<Slice> {
        let mut sequence = DataInSequence::new(len);
        core::iter::from_fn(|| sequence.next_slice(segment, burst)).collect()
    }

    #[test]
    fn a_burst_ends_where_max_burst_says() {
        let got = slices(20_000, 8192, 12_288);
        let ends: Vec<(u32, u32, bool)> = got.iter().map(|s| (s.offset, s.len, s.end_of_burst)).collect();
        assert_eq!(ends, [(0, 8192, false), (8192, 4096, true), (12_288, 7712, true)]);
        assert!(got[2].is_last);
    }

    #[test]
    fn nothing_makes_no_slice() {
        assert!(slices(0, 512, 512).is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn slices_are_contiguous_and_within_the_limits(
            len in 0u32..300_000, segment in 512u32..70_000, burst in 512u32..200_000
        ) {
            let got = slices(len, segment, burst);
            let mut at = 0;
            let mut in_burst = 0;
            for (index, slice) in got.iter().enumerate() {
                prop_assert_eq!(slice.data_sn, DataSn(index as u32));
                prop_assert_eq!(slice.offset, at);
                prop_assert!(slice.len > 0 && slice.len <= segment);
                at += slice.len;
                in_burst += slice.len;
                prop_assert!(in_burst <= burst);
                prop_assert_eq!(slice.end_of_burst, in_burst == burst || at == len);
                prop_assert_eq!(slice.is_last, at == len);
                if slice.end_of_burst { in_burst = 0; }
            }
            prop_assert_eq!(at, len);
        }
    }
}
