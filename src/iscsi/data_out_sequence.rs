//! A write on its way in (RFC 7143, 4.2.5, 11.7, 11.8): immediate data, unsolicited bursts, R2Ts.
//!
//! Knows which Data-Out may come next and which part of the write to ask for. Does not know headers of other
//! PDUs, status or buffers.
//!
//! Data comes in order (DataPDUInOrder and DataSequenceInOrder are Yes) and one burst is open at a time
//! (MaxOutstandingR2T is 1), so the place of the next byte is the count of bytes received.
//!
//! | burst       | a fitting Data-Out | with F       | `step`              | `solicit`   |
//! |-------------|--------------------|--------------|---------------------|-------------|
//! | None        | foreign            | foreign      | Complete or Wanted  |             |
//! | Unsolicited | stays              | None         | Wait                |             |
//! | Wanted      | foreign            | foreign      | Wait                | Solicited   |
//! | Solicited   | stays              | None         | Wait                |             |

use super::params::NegotiatedParams;
use super::pdu::data_out::{DataOut, Solicitation};
use super::pdu::{LunField, TargetTransferTag};
use super::serial::{DataSn, R2tSn};

/// What ends a write with CHECK CONDITION; the names are those of RFC 7143, 11.4.7.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataOutFault {
    UnexpectedUnsolicitedData,
    IncorrectAmountOfData,
    /// A Data-Out is missing, as after a digest error: DataSN or Buffer Offset jumps.
    ProtocolServiceCrcError,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataOutError {
    /// No open burst has this PDU's transfer tag: it is rejected, the task goes on.
    Foreign,
    Fault(DataOutFault),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Burst {
    None,
    Unsolicited {
        data_sn: DataSn,
    },
    /// An R2T is to be sent.
    Wanted,
    Solicited {
        tag: TargetTransferTag,
        data_sn: DataSn,
        end: u32,
    },
}

/// What the write needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Wait,
    /// An R2T; `solicit` says which.
    Solicit,
    Complete,
}

/// The part of an R2T that the sequence decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub r2t_sn: R2tSn,
    pub offset: u32,
    pub len: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataOutSequence {
    expected: u32,
    /// Where unsolicited data must end.
    unsolicited_end: u32,
    /// Bytes the command takes: at most `expected`.
    taken: u32,
    received: u32,
    burst: Burst,
    next_r2t_sn: R2tSn,
    /// The task has ended already: what still comes is thrown away.
    draining: bool,
}

impl DataOutSequence {
    /// For a command without data-out.
    pub fn none() -> Self {
        Self {
            expected: 0,
            unsolicited_end: 0,
            taken: 0,
            received: 0,
            burst: Burst::None,
            next_r2t_sn: R2tSn(0),
            draining: false,
        }
    }

    /// For a write of `expected` bytes whose command PDU brings `immediate_len` of them and whose F bit is
    /// clear when `unsolicited`. The fault, if any, ends the task; the sequence then drains.
    pub fn new(
        expected: u32,
        immediate_len: u32,
        unsolicited: bool,
        params: &NegotiatedParams,
    ) -> (Self, Option<DataOutFault>) {
        let mut sequence =
            Self { expected, unsolicited_end: expected.min(params.first_burst), ..Self::none() };
        if unsolicited {
            sequence.burst = Burst::Unsolicited { data_sn: DataSn(0) };
        }
        let forbidden = (immediate_len > 0 && !params.immediate_data)
            || (unsolicited && params.initial_r2t)
            || immediate_len > params.first_burst;
        let fault = if forbidden {
            Some(DataOutFault::UnexpectedUnsolicitedData)
        } else if immediate_len > expected {
            Some(DataOutFault::IncorrectAmountOfData)
        } else {
            None
        };
        sequence.draining = fault.is_some();
        (sequence, fault)
    }

    /// For a write whose command PDU has brought all of it, and which takes it all.
    pub fn whole(expected: u32) -> Self {
        Self { expected, unsolicited_end: expected, taken: expected, received: expected, ..Self::none() }
    }

    /// The command takes `wanted` bytes.
    pub fn accept(&mut self, wanted: u32) {
        self.taken = wanted.min(self.expected);
    }

    /// Data is no longer of use: an R2T not yet sent is dropped, the rest is thrown away until its F bit.
    pub fn drain(&mut self) {
        self.draining = true;
        if self.burst == Burst::Wanted {
            self.burst = Burst::None;
        }
    }

    /// No Data-Out is expected (11.4.2: only then may the response go out).
    pub fn is_quiet(&self) -> bool {
        matches!(self.burst, Burst::None | Burst::Wanted)
    }

    pub fn received(&self) -> u32 {
        self.received.min(self.taken)
    }

    /// Of `len` bytes at `offset`, how many the command takes.
    pub fn taken_of(&self, offset: u32, len: u32) -> u32 {
        self.taken.saturating_sub(offset).min(len)
    }

    /// Where the data of the next PDU belongs.
    pub fn next_offset(&self) -> u32 {
        self.received
    }

    /// Whether this Data-Out may come now. `lun` is the task's.
    pub fn check(&self, pdu: &DataOut, lun: LunField) -> Result<(), DataOutError> {
        let (data_sn, end, beyond) = match (self.burst, pdu.answers) {
            (Burst::Unsolicited { data_sn }, Solicitation::Unsolicited) => {
                (data_sn, self.unsolicited_end, DataOutFault::UnexpectedUnsolicitedData)
            }
            (Burst::Solicited { tag, data_sn, end }, Solicitation::R2t { transfer_tag, lun: pdu_lun })
                if tag == transfer_tag && lun == pdu_lun =>
            {
                (data_sn, end, DataOutFault::IncorrectAmountOfData)
            }
            _ => return Err(DataOutError::Foreign),
        };
        if self.draining {
            return Ok(());
        }
        if pdu.data_sn != data_sn || pdu.buffer_offset != self.received {
            return Err(DataOutError::Fault(DataOutFault::ProtocolServiceCrcError));
        }
        if pdu.data_len > end.saturating_sub(self.received) {
            return Err(DataOutError::Fault(beyond));
        }
        Ok(())
    }

    /// The immediate data of the command has arrived.
    pub fn commit_immediate(&mut self, len: u32) {
        if !self.draining {
            self.received += len;
        }
    }

    /// A checked Data-Out has arrived whole.
    pub fn commit(&mut self, len: u32, is_final: bool) -> Result<(), DataOutFault> {
        if self.draining {
            if is_final {
                self.burst = Burst::None;
            }
            return Ok(());
        }
        self.received += len;
        let complete = match &mut self.burst {
            Burst::None | Burst::Wanted => true,
            Burst::Unsolicited { data_sn } => {
                data_sn.take();
                // A write that does not fit into the first burst must fill it (11.4.7.2).
                self.expected == self.unsolicited_end || self.received == self.unsolicited_end
            }
            Burst::Solicited { data_sn, end, .. } => {
                data_sn.take();
                self.received == *end
            }
        };
        if is_final {
            self.burst = Burst::None;
            if !complete {
                return Err(DataOutFault::IncorrectAmountOfData);
            }
        }
        Ok(())
    }

    pub fn step(&mut self) -> Step {
        match self.burst {
            Burst::None if self.received >= self.taken => Step::Complete,
            Burst::None => {
                self.burst = Burst::Wanted;
                Step::Solicit
            }
            _ => Step::Wait,
        }
    }

    /// The R2T that `step` asked for, now that it is being sent under `tag`. `None` when it was dropped.
    pub fn solicit(&mut self, tag: TargetTransferTag, burst_max: u32) -> Option<Request> {
        if self.burst != Burst::Wanted {
            return None;
        }
        let len = (self.taken - self.received).min(burst_max);
        let request = Request { r2t_sn: self.next_r2t_sn.take(), offset: self.received, len };
        self.burst = Burst::Solicited { tag, data_sn: DataSn(0), end: self.received + len };
        Some(request)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::iscsi::pdu::InitiatorTaskTag;
    use crate::iscsi::serial::StatSn;

    const TAG: TargetTransferTag = TargetTransferTag(7);

    fn params(first_burst: u32) -> NegotiatedParams {
        NegotiatedParams { first_burst, initial_r2t: false, ..NegotiatedParams::default() }
    }

    fn pdu(tag: Option<TargetTransferTag>, data_sn: u32, at: u32, len: u32, is_final: bool) -> DataOut {
        DataOut {
            is_final,
            task_tag: InitiatorTaskTag(1),
            answers: tag.map_or(Solicitation::Unsolicited, |transfer_tag| Solicitation::R2t {
                transfer_tag,
                lun: LunField::default(),
            }),
            exp_stat_sn: StatSn(0),
            data_sn: DataSn(data_sn),
            buffer_offset: at,
            data_len: len,
        }
    }

    fn receive(sequence: &mut DataOutSequence, pdu: &DataOut) -> Result<(), DataOutError> {
        sequence.check(pdu, LunField::default())?;
        sequence.commit(pdu.data_len, pdu.is_final).map_err(DataOutError::Fault)
    }

    #[test]
    fn immediate_then_unsolicited_then_solicited() {
        let (mut sequence, fault) = DataOutSequence::new(5000, 1000, true, &params(2000));
        assert_eq!(fault, None);
        sequence.accept(5000);
        sequence.commit_immediate(1000);
        assert_eq!(sequence.step(), Step::Wait);
        receive(&mut sequence, &pdu(None, 0, 1000, 600, false)).unwrap();
        receive(&mut sequence, &pdu(None, 1, 1600, 400, true)).unwrap();
        assert_eq!(sequence.step(), Step::Solicit);
        let request = sequence.solicit(TAG, 2048).unwrap();
        assert_eq!(request, Request { r2t_sn: R2tSn(0), offset: 2000, len: 2048 });
        receive(&mut sequence, &pdu(Some(TAG), 0, 2000, 2048, true)).unwrap();
        assert_eq!(sequence.step(), Step::Solicit);
        assert_eq!(sequence.solicit(TAG, 2048).unwrap().len, 952);
        receive(&mut sequence, &pdu(Some(TAG), 0, 4048, 952, true)).unwrap();
        assert_eq!(sequence.step(), Step::Complete);
        assert_eq!(sequence.received(), 5000);
    }

    #[test]
    fn a_wrong_data_sn_or_offset_is_a_lost_pdu() {
        let lost = Err(DataOutError::Fault(DataOutFault::ProtocolServiceCrcError));
        let (mut sequence, _) = DataOutSequence::new(1024, 0, true, &params(2048));
        sequence.accept(1024);
        for data_sn in [27, u32::MAX, 1] {
            assert_eq!(receive(&mut sequence, &pdu(None, data_sn, 0, 512, false)), lost);
        }
        assert_eq!(receive(&mut sequence, &pdu(None, 0, 512, 512, false)), lost);
    }

    #[test]
    fn a_foreign_tag_leaves_the_burst_alone() {
        let (mut sequence, _) = DataOutSequence::new(512, 0, false, &params(512));
        sequence.accept(512);
        assert_eq!(receive(&mut sequence, &pdu(None, 0, 0, 512, true)), Err(DataOutError::Foreign));
        assert_eq!(sequence.step(), Step::Solicit);
        sequence.solicit(TAG, 512).unwrap();
        let other = pdu(Some(TargetTransferTag(8)), 0, 0, 512, true);
        assert_eq!(receive(&mut sequence, &other), Err(DataOutError::Foreign));
        receive(&mut sequence, &pdu(Some(TAG), 0, 0, 512, true)).unwrap();
        assert_eq!(sequence.step(), Step::Complete);
    }

    #[test]
    fn a_tag_on_another_unit_is_foreign() {
        let (mut sequence, _) = DataOutSequence::new(512, 0, false, &params(512));
        sequence.accept(512);
        sequence.step();
        sequence.solicit(TAG, 512).unwrap();
        let fits = pdu(Some(TAG), 0, 0, 512, true);
        assert_eq!(sequence.check(&fits, LunField([9; 8])), Err(DataOutError::Foreign));
    }

    #[test]
    fn a_write_within_the_first_burst_need_not_fill_it() {
        let (mut sequence, _) = DataOutSequence::new(1024, 0, true, &params(2048));
        sequence.accept(1024);
        receive(&mut sequence, &pdu(None, 0, 0, 100, true)).unwrap();
        assert_eq!(sequence.step(), Step::Solicit);
        assert_eq!(
            sequence.solicit(TAG, 2048).map(|request| (request.offset, request.len)),
            Some((100, 924))
        );
    }

    #[test]
    fn too_much_and_too_little_are_faults() {
        let amount = Err(DataOutError::Fault(DataOutFault::IncorrectAmountOfData));
        let (mut sequence, _) = DataOutSequence::new(1024, 0, false, &params(512));
        sequence.accept(1024);
        sequence.step();
        sequence.solicit(TAG, 1024).unwrap();
        assert_eq!(receive(&mut sequence, &pdu(Some(TAG), 0, 0, 1025, true)), amount);
        assert_eq!(receive(&mut sequence, &pdu(Some(TAG), 0, 0, 1000, true)), amount);
        let (mut short, _) = DataOutSequence::new(1024, 0, true, &params(512));
        assert_eq!(receive(&mut short, &pdu(None, 0, 0, 100, true)), amount);
    }

    #[test]
    fn what_was_not_negotiated_is_unexpected() {
        let unexpected = Some(DataOutFault::UnexpectedUnsolicitedData);
        let strict = NegotiatedParams { immediate_data: false, ..NegotiatedParams::default() };
        assert_eq!(DataOutSequence::new(512, 512, false, &strict).1, unexpected);
        assert_eq!(DataOutSequence::new(512, 0, true, &strict).1, unexpected);
        assert_eq!(DataOutSequence::new(4096, 1025, false, &params(1024)).1, unexpected);
        assert_eq!(
            DataOutSequence::new(100, 200, false, &params(1024)).1,
            Some(DataOutFault::IncorrectAmountOfData)
        );
    }

    #[test]
    fn draining_waits_for_the_final_bit_only() {
        let (mut sequence, _) = DataOutSequence::new(1024, 0, true, &params(2048));
        sequence.drain();
        assert!(!sequence.is_quiet());
        receive(&mut sequence, &pdu(None, 9, 77, 512, false)).unwrap();
        assert!(!sequence.is_quiet());
        receive(&mut sequence, &pdu(None, 3, 0, 1, true)).unwrap();
        assert!(sequence.is_quiet());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// However a write is cut, every byte of it arrives once, in place, and nothing more is asked for.
        #[test]
        fn every_splitting_reassembles_equally(
            expected in 0u32..60_000, wanted in 0u32..70_000, immediate in 0u32..3000,
            segment in 512u32..9000, first_burst in 512u32..20_000, max_burst in 512u32..20_000,
            unsolicited: bool,
        ) {
            let params = params(first_burst);
            let immediate = immediate.min(expected).min(first_burst);
            let (mut sequence, fault) = DataOutSequence::new(expected, immediate, unsolicited, &params);
            prop_assert_eq!(fault, None);
            sequence.accept(wanted);
            let mut places = vec![0u8; expected as usize];
            let mut put = |at: u32, len: u32| places[at as usize..(at + len) as usize].iter_mut().for_each(|b| *b += 1);
            put(0, sequence.taken_of(0, immediate));
            sequence.commit_immediate(immediate);
            let mut send = |sequence: &mut DataOutSequence, tag, from: u32, to: u32| {
                let (mut at, mut data_sn) = (from, 0);
                loop {
                    let len = segment.min(to - at);
                    let is_final = at + len == to;
                    let pdu = pdu(tag, data_sn, at, len, is_final);
                    sequence.check(&pdu, LunField::default()).unwrap();
                    put(at, sequence.taken_of(at, len));
                    sequence.commit(len, is_final).unwrap();
                    at += len;
                    data_sn += 1;
                    if is_final { break; }
                }
            };
            if unsolicited {
                send(&mut sequence, None, immediate, expected.min(first_burst));
            }
            let mut r2ts = 0;
            loop {
                match sequence.step() {
                    Step::Complete => break,
                    Step::Wait => prop_assert!(false, "nothing is open"),
                    Step::Solicit => {
                        let request = sequence.solicit(TAG, max_burst).unwrap();
                        prop_assert_eq!(request.r2t_sn, R2tSn(r2ts));
                        prop_assert!(request.len > 0 && request.len <= max_burst);
                        r2ts += 1;
                        send(&mut sequence, Some(TAG), request.offset, request.offset + request.len);
                    }
                }
            }
            let taken = expected.min(wanted) as usize;
            prop_assert!(places[..taken].iter().all(|count| *count == 1));
            prop_assert!(places[taken..].iter().all(|count| *count == 0));
            prop_assert_eq!(sequence.received() as usize, taken);
        }
    }
}
