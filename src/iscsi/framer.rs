//! A byte stream to PDUs (RFC 7143, 11.2), in whatever pieces it arrives; payload is handed out where it lies.
//!
//! Knows lengths, padding and digests. Does not know opcodes, sessions or where payload belongs.

use super::digest::{Crc32c, DIGEST_BYTES, digest_of};
use super::params::DigestKind;
use super::pdu::bhs::{BHS_BYTES, Bhs, pad_len};

/// What the next bytes of the stream turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// The input is used up.
    NeedMore,
    /// A header is complete and its digest is good; `bhs()` and `ahs()` hold it until the next `Header`.
    Header,
    /// The next run of the data segment, without padding, `offset` bytes into the segment. Never empty.
    Payload { offset: u32, bytes: &'a [u8] },
    /// The PDU is complete and its data digest is good. Comes for every PDU, also without data.
    End,
    /// Instead of `Header`: the header is damaged, and with it the place where the next PDU starts. Fatal at
    /// error recovery level 0 (7.8); every later step is the same.
    HeaderDigestError,
    /// Instead of `End`: the payload handed out for this PDU is damaged (7.8).
    DataDigestError,
    /// Instead of `Header`: the segment is longer than was declared. Fatal; every later step is the same.
    TooLong { data_len: u32 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// `have` bytes of the BHS.
    Bhs {
        have: usize,
    },
    /// The AHS is not yet as long as the BHS says.
    Ahs,
    HeaderDigest {
        have: usize,
    },
    Data {
        offset: u32,
    },
    Pad {
        left: u32,
    },
    DataDigest {
        have: usize,
    },
    /// All bytes are in, `End` is not yet told.
    Complete {
        data_good: bool,
    },
    HeaderDamaged,
    SegmentTooLong,
}

/// A PDU that lies in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whole<'a> {
    pub header: &'a [u8; BHS_BYTES],
    /// Without padding.
    pub data: &'a [u8],
    /// What follows it.
    rest: &'a [u8],
}

/// The receiving half of a connection's framing. Holds one header; payload passes through.
pub struct Framer {
    state: State,
    bhs: Bhs,
    /// Grows to what the initiator uses (usually nothing, at most 1020 bytes) and keeps its memory.
    ahs: Vec<u8>,
    digest: [u8; DIGEST_BYTES],
    data_sum: Crc32c,
    max_data_len: u32,
    header_digest: DigestKind,
    data_digest: DigestKind,
    /// What holds from the next PDU on.
    next_digests: (DigestKind, DigestKind),
}

impl core::fmt::Debug for Framer {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Framer")
            .field("state", &self.state)
            .field("max_data_len", &self.max_data_len)
            .field("header_digest", &self.header_digest)
            .field("data_digest", &self.data_digest)
            .finish_non_exhaustive()
    }
}

impl Framer {
    /// A framer without digests, as every connection starts (RFC 7143, 13.1), that takes data segments of at
    /// most `max_data_len` bytes.
    pub fn new(max_data_len: u32) -> Self {
        Self {
            state: State::Bhs { have: 0 },
            bhs: Bhs::default(),
            ahs: Vec::new(),
            digest: [0; DIGEST_BYTES],
            data_sum: Crc32c::new(),
            max_data_len,
            header_digest: DigestKind::None,
            data_digest: DigestKind::None,
            next_digests: (DigestKind::None, DigestKind::None),
        }
    }

    /// Takes effect with the next PDU that starts.
    pub fn set_digests(&mut self, header: DigestKind, data: DigestKind) {
        self.next_digests = (header, data);
    }

    /// Takes effect with the next header that completes.
    pub fn set_max_data_len(&mut self, max_data_len: u32) {
        self.max_data_len = max_data_len;
    }

    /// The header of the PDU since the last `Step::Header`.
    pub fn bhs(&self) -> &Bhs {
        &self.bhs
    }

    /// Its additional header segments, undivided.
    pub fn ahs(&self) -> &[u8] {
        &self.ahs
    }

    /// True when no byte of a further PDU has been taken: a good moment to end or to move the connection.
    pub fn at_boundary(&self) -> bool {
        self.state == State::Bhs { have: 0 }
    }

    /// The PDU at the front of `input` where all of it is there, without digests and additional segments. It is not taken.
    pub fn whole<'a>(&self, input: &'a [u8]) -> Option<Whole<'a>> {
        let (header, rest) = input.split_first_chunk::<BHS_BYTES>()?;
        if !self.at_boundary() || self.next_digests.0 != DigestKind::None || header[4] != 0 {
            return None;
        }
        let len = u32::from_be_bytes([0, header[5], header[6], header[7]]);
        if len > 0 && (self.next_digests.1 != DigestKind::None || len > self.max_data_len) {
            return None;
        }
        let rest = rest.get((len + pad_len(len)) as usize..)?;
        let data = &input[BHS_BYTES..BHS_BYTES + len as usize];
        Some(Whole { header, data, rest })
    }

    /// Takes what [`Self::whole`] has found: no step tells of it.
    pub fn pass<'a>(&mut self, input: &mut &'a [u8], whole: &Whole<'a>) {
        debug_assert_eq!(self.whole(input).as_ref(), Some(whole));
        *input = whole.rest;
    }

    /// Takes bytes from the front of `input` up to the next thing worth telling.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Step<'a> {
        loop {
            let step = match self.state {
                State::Bhs { have } => self.take_bhs(have, input),
                State::Ahs => self.take_ahs(input),
                State::HeaderDigest { have } => self.take_header_digest(have, input),
                State::Data { offset } => Some(self.take_data(offset, input)),
                State::Pad { left } => self.take_pad(left, input),
                State::DataDigest { have } => self.take_data_digest(have, input),
                State::Complete { data_good } => {
                    self.state = State::Bhs { have: 0 };
                    Some(if data_good { Step::End } else { Step::DataDigestError })
                }
                State::HeaderDamaged => Some(Step::HeaderDigestError),
                State::SegmentTooLong => Some(Step::TooLong { data_len: self.bhs.data_len() }),
            };
            if let Some(step) = step {
                return step;
            }
        }
    }

    fn take_bhs(&mut self, have: usize, input: &mut &[u8]) -> Option<Step<'static>> {
        if have == 0 {
            if input.is_empty() {
                return Some(Step::NeedMore);
            }
            (self.header_digest, self.data_digest) = self.next_digests;
            self.ahs.clear();
        }
        let have = have + fill(&mut self.bhs.0[have..], input);
        if have < BHS_BYTES {
            self.state = State::Bhs { have };
            return Some(Step::NeedMore);
        }
        if self.bhs.ahs_len() == 0 {
            return self.ahs_complete();
        }
        self.state = State::Ahs;
        None
    }

    fn take_ahs(&mut self, input: &mut &[u8]) -> Option<Step<'static>> {
        let missing = self.bhs.ahs_len().saturating_sub(self.ahs.len());
        self.ahs.extend_from_slice(take(input, missing));
        if self.ahs.len() < self.bhs.ahs_len() { Some(Step::NeedMore) } else { self.ahs_complete() }
    }

    fn ahs_complete(&mut self) -> Option<Step<'static>> {
        if self.header_digest == DigestKind::None {
            return Some(self.header_complete());
        }
        self.state = State::HeaderDigest { have: 0 };
        None
    }

    fn take_header_digest(&mut self, have: usize, input: &mut &[u8]) -> Option<Step<'static>> {
        let have = have + fill(&mut self.digest[have..], input);
        if have < DIGEST_BYTES {
            self.state = State::HeaderDigest { have };
            return Some(Step::NeedMore);
        }
        if digest_of(&[&self.bhs.0, &self.ahs]) == self.digest {
            return Some(self.header_complete());
        }
        self.state = State::HeaderDamaged;
        None
    }

    fn header_complete(&mut self) -> Step<'static> {
        let data_len = self.bhs.data_len();
        if data_len > self.max_data_len {
            self.state = State::SegmentTooLong;
            return Step::TooLong { data_len };
        }
        self.state = if data_len == 0 {
            // A data digest follows data only (11.2.3).
            State::Complete { data_good: true }
        } else {
            self.data_sum = Crc32c::new();
            State::Data { offset: 0 }
        };
        Step::Header
    }

    fn take_data<'a>(&mut self, offset: u32, input: &mut &'a [u8]) -> Step<'a> {
        let data_len = self.bhs.data_len();
        let bytes = take(input, (data_len - offset) as usize);
        if bytes.is_empty() {
            return Step::NeedMore;
        }
        if self.data_digest == DigestKind::Crc32c {
            self.data_sum.update(bytes);
        }
        let end = offset + bytes.len() as u32;
        self.state = if end < data_len {
            State::Data { offset: end }
        } else if pad_len(data_len) > 0 {
            State::Pad { left: pad_len(data_len) }
        } else {
            self.after_padding()
        };
        Step::Payload { offset, bytes }
    }

    fn take_pad(&mut self, left: u32, input: &mut &[u8]) -> Option<Step<'static>> {
        let pad = take(input, left as usize);
        if self.data_digest == DigestKind::Crc32c {
            self.data_sum.update(pad);
        }
        let left = left - pad.len() as u32;
        if left > 0 {
            self.state = State::Pad { left };
            return Some(Step::NeedMore);
        }
        self.state = self.after_padding();
        None
    }

    fn take_data_digest(&mut self, have: usize, input: &mut &[u8]) -> Option<Step<'static>> {
        let have = have + fill(&mut self.digest[have..], input);
        if have < DIGEST_BYTES {
            self.state = State::DataDigest { have };
            return Some(Step::NeedMore);
        }
        self.state = State::Complete { data_good: self.data_sum.wire() == self.digest };
        None
    }

    fn after_padding(&self) -> State {
        match self.data_digest {
            DigestKind::None => State::Complete { data_good: true },
            DigestKind::Crc32c => State::DataDigest { have: 0 },
        }
    }
}

/// Moves bytes from the front of `input` into `place` until one of them is used up; returns how many.
fn fill(place: &mut [u8], input: &mut &[u8]) -> usize {
    let bytes = take(input, place.len());
    place[..bytes.len()].copy_from_slice(bytes);
    bytes.len()
}

/// Takes at most `want` bytes from the front of `input`.
fn take<'a>(input: &mut &'a [u8], want: usize) -> &'a [u8] {
    let (front, back) = input.split_at(want.min(input.len()));
    *input = back;
    front
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    struct Pdu {
        ahs: Vec<u8>,
        data: Vec<u8>,
    }

    impl Pdu {
        fn wire(&self, header: DigestKind, data: DigestKind) -> Vec<u8> {
            let mut bhs = Bhs::default();
            bhs.0[0] = 0x05;
            bhs.0[4] = (self.ahs.len() / 4) as u8;
            bhs.set_data_len(self.data.len() as u32);
            let mut wire = bhs.0.to_vec();
            wire.extend_from_slice(&self.ahs);
            if header == DigestKind::Crc32c {
                wire.extend_from_slice(&digest_of(&[&bhs.0, &self.ahs]));
            }
            if !self.data.is_empty() {
                let pad = vec![0x5A; pad_len(self.data.len() as u32) as usize];
                wire.extend_from_slice(&self.data);
                wire.extend_from_slice(&pad);
                if data == DigestKind::Crc32c {
                    wire.extend_from_slice(&digest_of(&[&self.data, &pad]));
                }
            }
            wire
        }
    }

    /// What a framer tells of a stream that arrives in the given pieces.
    #[derive(Debug, PartialEq, Eq)]
    enum Told {
        Pdu { ahs: Vec<u8>, data: Vec<u8>, good: bool },
        HeaderDamaged,
        TooLong(u32),
    }

    fn frame(framer: &mut Framer, pieces: &[&[u8]]) -> Vec<Told> {
        let mut told = Vec::new();
        let mut data = Vec::new();
        for piece in pieces {
            let mut input = *piece;
            loop {
                match framer.next(&mut input) {
                    Step::NeedMore => break,
                    Step::Header => data.clear(),
                    Step::Payload { offset, bytes } => {
                        assert_eq!(offset as usize, data.len());
                        assert!(!bytes.is_empty());
                        data.extend_from_slice(bytes);
                    }
                    step @ (Step::End | Step::DataDigestError) => {
                        assert!(framer.at_boundary());
                        assert_eq!(data.len(), framer.bhs().data_len() as usize);
                        let good = step == Step::End;
                        told.push(Told::Pdu { ahs: framer.ahs().to_vec(), data: data.clone(), good });
                    }
                    Step::HeaderDigestError => {
                        told.push(Told::HeaderDamaged);
                        return told;
                    }
                    Step::TooLong { data_len } => {
                        told.push(Told::TooLong(data_len));
                        return told;
                    }
                }
            }
            assert!(input.is_empty());
        }
        told
    }

    fn framer(header: DigestKind, data: DigestKind) -> Framer {
        let mut framer = Framer::new(8192);
        framer.set_digests(header, data);
        framer
    }

    fn digest_kind() -> impl Strategy<Value = DigestKind> {
        prop_oneof![Just(DigestKind::None), Just(DigestKind::Crc32c)]
    }

    fn pdu() -> impl Strategy<Value = Pdu> {
        let ahs = prop_oneof![4 => Just(0usize), 1 => 1usize..=8, 1 => Just(255)];
        let data = prop_oneof![2 => Just(0usize), 4 => 1usize..40, 1 => 40usize..8192];
        (ahs, data, any::<u8>()).prop_map(|(ahs, data, seed)| Pdu {
            ahs: (0..ahs * 4).map(|at| at as u8 ^ seed).collect(),
            data: (0..data).map(|at| (at as u8).wrapping_mul(7) ^ seed).collect(),
        })
    }

    proptest! {
        #[test]
        fn any_split_of_the_stream_frames_equally(
            pdus in prop::collection::vec(pdu(), 0..6),
            header in digest_kind(),
            data in digest_kind(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
        ) {
            let wire: Vec<u8> = pdus.iter().flat_map(|pdu| pdu.wire(header, data)).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len() + 1)).collect();
            cuts.extend([0, wire.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &wire[cut[0]..cut[1]]).collect();
            let expected: Vec<Told> = pdus
                .into_iter()
                .map(|pdu| Told::Pdu { ahs: pdu.ahs, data: pdu.data, good: true })
                .collect();
            prop_assert_eq!(&frame(&mut framer(header, data), &pieces), &expected);
            let bytes: Vec<&[u8]> = wire.chunks(1).collect();
            prop_assert_eq!(&frame(&mut framer(header, data), &bytes), &expected);
        }

        #[test]
        fn a_flipped_bit_is_noticed_where_a_digest_covers_it(pdu in pdu(), at: prop::sample::Index, bit in 0u8..8) {
            let mut wire = pdu.wire(DigestKind::Crc32c, DigestKind::Crc32c);
            let at = at.index(wire.len());
            wire[at] ^= 1 << bit;
            let told = frame(&mut framer(DigestKind::Crc32c, DigestKind::Crc32c), &[&wire]);
            let header_len = BHS_BYTES + pdu.ahs.len() + DIGEST_BYTES;
            if at < header_len {
                // A damaged length may leave the framer waiting for more: then nothing was told, and that is safe.
                prop_assert!(told.is_empty() || told == [Told::HeaderDamaged]);
            } else {
                let expected = Told::Pdu {
                    ahs: pdu.ahs,
                    data: told.first().map_or(Vec::new(), |told| match told {
                        Told::Pdu { data, .. } => data.clone(),
                        _ => Vec::new(),
                    }),
                    good: false,
                };
                prop_assert_eq!(told, vec![expected]);
            }
        }
    }

    #[test]
    fn a_segment_beyond_the_limit_is_fatal() {
        let wire = Pdu { ahs: vec![], data: vec![1; 600] }.wire(DigestKind::None, DigestKind::None);
        let mut framer = Framer::new(599);
        let mut input = &wire[..];
        assert_eq!(framer.next(&mut input), Step::TooLong { data_len: 600 });
        assert_eq!(framer.next(&mut input), Step::TooLong { data_len: 600 });
        framer.set_max_data_len(600);
        assert_eq!(framer.next(&mut input), Step::TooLong { data_len: 600 });
        assert!(!framer.at_boundary());
    }

    #[test]
    fn a_segment_may_be_as_long_as_the_limit() {
        let wire = Pdu { ahs: vec![], data: vec![1; 600] }.wire(DigestKind::None, DigestKind::None);
        let told = frame(&mut Framer::new(600), &[&wire]);
        assert_eq!(told, [Told::Pdu { ahs: vec![], data: vec![1; 600], good: true }]);
    }

    #[test]
    fn a_length_is_believed_only_with_a_good_digest() {
        let mut wire = Pdu { ahs: vec![], data: vec![1; 8] }.wire(DigestKind::Crc32c, DigestKind::None);
        wire[5] = 0xFF;
        let told = frame(&mut framer(DigestKind::Crc32c, DigestKind::None), &[&wire]);
        assert_eq!(told, [Told::HeaderDamaged]);
    }

    #[test]
    fn damaged_data_leaves_the_next_pdu_intact() {
        let pdu = Pdu { ahs: vec![], data: vec![1; 5] };
        let mut wire = pdu.wire(DigestKind::None, DigestKind::Crc32c);
        wire[50] ^= 1;
        wire.extend_from_slice(&pdu.wire(DigestKind::None, DigestKind::Crc32c));
        let told = frame(&mut framer(DigestKind::None, DigestKind::Crc32c), &[&wire]);
        assert!(matches!(told[..], [Told::Pdu { good: false, .. }, Told::Pdu { good: true, .. }]));
    }

    #[test]
    fn digests_change_with_the_next_pdu_not_within_one() {
        let pdu = Pdu { ahs: vec![], data: vec![9; 6] };
        let plain = pdu.wire(DigestKind::None, DigestKind::None);
        let summed = pdu.wire(DigestKind::Crc32c, DigestKind::Crc32c);
        let mut framer = Framer::new(64);
        let mut told = frame(&mut framer, &[&plain[..20]]);
        framer.set_digests(DigestKind::Crc32c, DigestKind::Crc32c);
        told.extend(frame(&mut framer, &[&plain[20..48]]));
        // The helper forgets payload between calls; what counts is where the PDUs end.
        let mut input = &plain[48..];
        assert!(matches!(framer.next(&mut input), Step::Payload { offset: 0, .. }));
        assert_eq!(framer.next(&mut input), Step::End);
        told.extend(frame(&mut framer, &[&summed]));
        assert_eq!(told, [Told::Pdu { ahs: vec![], data: vec![9; 6], good: true }]);
    }

    #[test]
    fn what_lies_in_one_piece_without_digests_and_further_segments_can_be_passed() {
        let wire = |len: usize, ahs: usize| {
            Pdu { ahs: vec![0; ahs], data: vec![1; len] }.wire(DigestKind::None, DigestKind::None)
        };
        let three = [wire(0, 0), wire(5, 0), wire(0, 0)].concat();
        let mut framer = Framer::new(64);
        let mut input = &three[..];
        assert_eq!(framer.whole(&input[..47]), None);
        assert_eq!(framer.whole(&wire(0, 4)), None);
        assert_eq!(framer.whole(&wire(65, 0)), None, "longer than was declared");
        let first = framer.whole(input).unwrap();
        assert_eq!((&first.header[..], first.data), (&three[..48], &[][..]));
        framer.pass(&mut input, &first);
        assert_eq!(framer.whole(&input[..48 + 7]), None, "the padding is to come");
        let second = framer.whole(input).unwrap();
        assert_eq!((&second.header[..], second.data), (&three[48..96], &[1; 5][..]));
        framer.pass(&mut input, &second);
        assert_eq!((framer.next(&mut input), framer.whole(&three)), (Step::Header, None), "a PDU has begun");
        assert_eq!((framer.next(&mut input), framer.next(&mut input)), (Step::End, Step::NeedMore));
        framer.set_digests(DigestKind::None, DigestKind::Crc32c);
        assert!(framer.whole(&three).is_some(), "a digest follows data only");
        assert_eq!(framer.whole(&three[48..]), None, "a digest follows");
        framer.set_digests(DigestKind::Crc32c, DigestKind::None);
        assert_eq!(framer.whole(&three), None, "a digest follows");
    }
}
