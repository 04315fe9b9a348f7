//! Whole transfers under random lengths: what one side sends is what the other gets.

use proptest::prelude::*;

use super::*;

fn params() -> impl Strategy<Value = NegotiatedParams> {
    (512u32..9000, 512u32..20_000, 512u32..20_000, any::<bool>(), any::<bool>()).prop_map(
        |(max_send_segment, max_burst, first_burst, initial_r2t, immediate_data)| NegotiatedParams {
            max_send_segment,
            max_burst,
            first_burst,
            initial_r2t,
            immediate_data,
            ..NegotiatedParams::default()
        },
    )
}

/// Bytes of a write that have arrived, and how often.
struct Received(Vec<u8>);

impl Received {
    fn take(&mut self, sink: PayloadSink) {
        if let PayloadSink::Task { offset, len, .. } = sink {
            let end = (offset + len) as usize;
            self.0[offset as usize..end].iter_mut().for_each(|count| *count += 1);
        }
    }
}

/// Sends one burst in PDUs of at most `segment` bytes.
fn burst(
    initiator: &mut Initiator,
    received: &mut Received,
    answers: Solicitation,
    (from, to): (u32, u32),
    segment: u32,
) {
    let (mut at, mut data_sn) = (from, 0);
    loop {
        let len = segment.min(to - at);
        let is_final = at + len == to;
        initiator.header(&data_out(1, answers, data_sn, at, len, is_final));
        received.take(initiator.session.sink(ON));
        initiator.end();
        (at, data_sn) = (at + len, data_sn + 1);
        if is_final {
            return;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn data_in_is_contiguous_flagged_and_its_residual_is_the_difference(
        params in params(), expected in 0u32..50_000, available in 0u32..60_000, is_good: bool,
    ) {
        let mut initiator = Initiator::with(params.clone());
        let task = initiator.read(1, expected);
        let status = if is_good { 0 } else { CHECK_CONDITION };
        initiator.session.complete(task, TaskReply { status, sense: &[], data_in: available });
        let moved = expected.min(available);
        let (mut at, mut in_burst, mut pdus) = (0, 0, 0);
        let (end, residual) = loop {
            let pdu = initiator.output().expect("the task is not finished");
            prop_assert_eq!(pdu.finished.is_some(), initiator.session.is_idle());
            if pdu.header.opcode() == ResponseOpcode::ScsiResponse as u8 {
                prop_assert_eq!(at, moved);
                match ScsiResponse::decode(&pdu.header).unwrap().outcome {
                    Outcome::Completed { status: got, residual, exp_data_sn } => {
                        prop_assert_eq!(exp_data_sn, DataSn(pdus));
                        break (got, residual);
                    }
                    Outcome::TargetFailure => prop_assert!(false),
                }
            }
            let data_in = DataIn::decode(&pdu.header).unwrap();
            prop_assert_eq!((data_in.data_sn, data_in.buffer_offset), (DataSn(pdus), at));
            prop_assert!(data_in.data_len > 0 && data_in.data_len <= params.max_send_segment);
            pdus += 1;
            at += data_in.data_len;
            in_burst += data_in.data_len;
            let is_last = at == moved;
            prop_assert!(in_burst <= params.max_burst);
            match data_in.end {
                SequenceEnd::More => prop_assert!(!is_last && in_burst < params.max_burst),
                SequenceEnd::EndOfBurst => prop_assert!(in_burst == params.max_burst || is_last),
                SequenceEnd::EndOfTask { status: got, residual, .. } => {
                    prop_assert!(is_last && is_good);
                    break (got, residual);
                }
            }
            if data_in.end != SequenceEnd::More { in_burst = 0; }
        };
        prop_assert_eq!(end, status);
        let by_hand = match available.cmp(&expected) {
            core::cmp::Ordering::Equal => Residual::None,
            core::cmp::Ordering::Less => Residual::Underflow(expected - available),
            core::cmp::Ordering::Greater => Residual::Overflow(available - expected),
        };
        prop_assert_eq!(residual, by_hand);
        prop_assert!(initiator.output().is_none());
    }

    #[test]
    fn a_write_arrives_whole_however_it_is_cut(
        params in params(), expected in 0u32..50_000, wanted in 0u32..60_000,
        segment in 512u32..9000, immediate in 0u32..9000, unsolicited: bool,
    ) {
        let mut initiator = Initiator::with(params.clone());
        let first = params.first_burst.min(expected);
        let immediate = if params.immediate_data { immediate.min(first) } else { 0 };
        let unsolicited = unsolicited && !params.initial_r2t && immediate < first;
        let command = initiator.command(1, Transfer::Write { expected, unsolicited });
        initiator.header(&ScsiCommand { data_len: immediate, ..command }.encode());
        let task = initiator.offered();
        initiator.session.accept_data_out(task, wanted);
        let mut received = Received(vec![0; expected as usize]);
        received.take(initiator.session.sink(ON));
        initiator.end();
        if unsolicited {
            burst(&mut initiator, &mut received, Solicitation::Unsolicited, (immediate, first), segment);
        }
        while let Some(pdu) = initiator.output() {
            let r2t = R2t::decode(&pdu.header).unwrap();
            prop_assert!(r2t.desired_len <= params.max_burst);
            let range = (r2t.buffer_offset, r2t.buffer_offset + r2t.desired_len);
            burst(&mut initiator, &mut received, answering(&r2t), range, segment);
        }
        let taken = expected.min(wanted);
        prop_assert_eq!(initiator.event(), SessionEvent::DataComplete { task, received: taken });
        let (inside, outside) = received.0.split_at(taken as usize);
        prop_assert!(inside.iter().all(|count| *count == 1));
        prop_assert!(outside.iter().all(|count| *count == 0));
        initiator.session.complete(task, TaskReply::good(0));
        let (status, residual, _) = initiator.response();
        prop_assert_eq!((status, residual), (0, Residual::of(expected, wanted)));
        prop_assert!(initiator.session.is_idle());
    }
}
