//! Fuzzing of what comes before full feature: any bytes become a stream, a text or a login; invariants are checked.
//!
//! Knows what must hold whatever an initiator sends. Does not know what is right for a well-formed exchange (the
//! tests of each module). The full-feature phase has its own (`session::fuzz`).

use super::chap::{AuthPolicy, ChapAlgorithm, Credentials, Secret};
use super::framer::{Framer, Step};
use super::login::{LoginEvent, LoginMachine, TargetAnswer};
use super::negotiate::{SessionKind, negotiate_text};
use super::params::{Cid, DigestKind, Isid, NegotiatedParams, Tsih};
use super::pdu::InitiatorTaskTag;
use super::pdu::bhs::{BHS_BYTES, Bhs, pad_len};
use super::pdu::login::{LoginRequest, LoginResponse, LoginStatus, Stage};
use super::serial::{CmdSn, StatSn};
use super::text_keys::{
    TextCollector, TextKeys, TextWriter, format_binary, parse_binary, parse_number, write_pair,
};
use crate::limits;

/// Everything a framer tells, joined over pieces.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Header(Bhs, Vec<u8>),
    Payload(Vec<u8>),
    End,
    DataDamaged,
    HeaderDamaged,
    TooLong(u32),
}

/// Frames `input` in one piece and in pieces of another size: both must tell the same. The first byte chooses
/// digests and the longest segment, the second the size of the pieces. Panics when an invariant does not hold.
pub fn fuzz_framer(input: &[u8]) {
    let [choice, size, stream @ ..] = input else { return };
    let whole = frame(*choice, stream, stream.len().max(1));
    let cut = frame(*choice, stream, usize::from(*size) + 1);
    assert_eq!(whole, cut);
}

fn frame(choice: u8, stream: &[u8], size: usize) -> Vec<Told> {
    let kind = |bit: u8| if choice & bit != 0 { DigestKind::Crc32c } else { DigestKind::None };
    let max_data_len = u32::from(choice >> 2) * 512;
    let mut framer = Framer::new(max_data_len);
    framer.set_digests(kind(1), kind(2));
    let mut told = Vec::new();
    for mut piece in stream.chunks(size) {
        loop {
            match framer.next(&mut piece) {
                Step::NeedMore => break,
                Step::Header => {
                    assert!(framer.bhs().data_len() <= max_data_len);
                    assert_eq!(framer.ahs().len(), framer.bhs().ahs_len());
                    told.push(Told::Header(*framer.bhs(), framer.ahs().to_vec()));
                }
                Step::Payload { offset, bytes } => {
                    if offset == 0 {
                        told.push(Told::Payload(Vec::new()));
                    }
                    let Some(Told::Payload(payload)) = told.last_mut() else {
                        panic!("payload without a header")
                    };
                    assert!(!bytes.is_empty() && payload.len() == offset as usize);
                    payload.extend_from_slice(bytes);
                    assert!(payload.len() <= framer.bhs().data_len() as usize);
                }
                Step::End => told.push(Told::End),
                Step::DataDigestError => told.push(Told::DataDamaged),
                Step::HeaderDigestError => {
                    told.push(Told::HeaderDamaged);
                    return told;
                }
                Step::TooLong { data_len } => {
                    assert!(data_len > max_data_len);
                    told.push(Told::TooLong(data_len));
                    return told;
                }
            }
        }
        assert!(piece.is_empty());
    }
    told
}

/// Divides `input` as a text, whole and over segments of the size its first byte gives, writes the pairs again,
/// reads every value in every way, and negotiates the text. Panics when an invariant does not hold.
pub fn fuzz_text_keys(input: &[u8]) {
    let Some((&size, text)) = input.split_first() else { return };
    let whole = TextKeys::parse(text.to_vec());
    let mut collector = TextCollector::default();
    let pushed = text.chunks(usize::from(size) + 1).try_for_each(|segment| collector.push(segment));
    assert_eq!(whole, pushed.and_then(|()| collector.finish()));
    let Ok(keys) = whole else { return };
    assert!(keys.len() <= limits::TEXT_KEYS_MAX);
    let mut writer = TextWriter::default();
    for (key, value) in keys.iter() {
        writer.push(key, value);
        read_value(value);
    }
    let again = TextKeys::parse(writer.into_bytes()).unwrap_or_default();
    assert!(keys.iter().eq(again.iter()));
    for kind in [SessionKind::Normal, SessionKind::Discovery] {
        let mut params = NegotiatedParams::default();
        if let Ok(outcome) = negotiate_text(&keys, kind, &mut params) {
            assert!(TextKeys::parse(outcome.answers.into_bytes()).is_ok());
        }
        check_params(&params);
    }
}

fn read_value(value: &str) {
    if let Some(number) = parse_number(value) {
        assert_eq!(parse_number(&number.to_string()), Some(number));
        assert_eq!(parse_number(&format!("{number:#x}")), Some(number));
    }
    if let Some(bytes) = parse_binary(value, limits::CHAP_BINARY_BYTES_MAX) {
        assert!(!bytes.is_empty() && bytes.len() <= limits::CHAP_BINARY_BYTES_MAX);
        assert_eq!(parse_binary(&format_binary(&bytes), bytes.len()), Some(bytes));
    }
}

fn check_params(params: &NegotiatedParams) {
    assert!((512..=limits::SEND_SEGMENT_BYTES_MAX).contains(&params.max_send_segment));
    assert!(params.max_recv_segment <= limits::RECV_SEGMENT_BYTES_MAX);
    assert!((512..=limits::BURST_BYTES_MAX).contains(&params.max_burst));
    assert!((512..=limits::FIRST_BURST_BYTES_MAX.min(params.max_burst)).contains(&params.first_burst));
    assert!((1..=limits::OUTSTANDING_R2T_MAX).contains(&params.max_outstanding_r2t));
    assert!((1..=4).contains(&params.max_connections));
    assert_eq!(params.error_recovery_level, 0);
    assert!(params.data_pdu_in_order && params.data_sequence_in_order);
}

/// Pieces of text a login script may call by number; any other byte of a script stands for itself.
const PHRASES: [&str; 40] = [
    "InitiatorName=iqn.a\0",
    "TargetName=iqn.b\0",
    "SessionType=Normal\0",
    "SessionType=Discovery\0",
    "InitiatorName=iqn.a\0TargetName=iqn.b\0",
    "AuthMethod=None\0",
    "AuthMethod=CHAP,None\0",
    "AuthMethod=CHAP\0",
    "CHAP_A=5\0",
    "CHAP_A=7,5\0",
    "CHAP_N=user\0",
    "CHAP_R=0x00112233445566778899aabbccddeeff\0",
    "CHAP_I=7\0CHAP_C=0x0102\0",
    "CHAP_C=0b",
    "InitiatorAlias=x\0",
    "HeaderDigest=CRC32C,None\0",
    "DataDigest=None\0",
    "MaxRecvDataSegmentLength=8192\0",
    "MaxRecvDataSegmentLength=1\0",
    "InitialR2T=No\0",
    "ImmediateData=Yes\0",
    "MaxBurstLength=512\0",
    "MaxBurstLength=16777215\0",
    "FirstBurstLength=65536\0",
    "ErrorRecoveryLevel=2\0",
    "DefaultTime2Wait=3600\0",
    "DefaultTime2Retain=9\0",
    "MaxConnections=4\0",
    "MaxOutstandingR2T=65535\0",
    "DataPDUInOrder=No\0",
    "TaskReporting=FastAbort\0",
    "iSCSIProtocolLevel=2\0",
    "IFMarker=No\0",
    "OFMarkInt=1~2\0",
    "TargetAlias=Reject\0",
    "SendTargets=All\0",
    "X-long.key.that.nobody.knows.and.that.fills.the.answer.quickly=\0",
    "=\0",
    "\0\0",
    "Max",
];
/// In a script: `CHAP_N` and `CHAP_R` as they are right for the last challenge.
const RIGHT_RESPONSE: u8 = PHRASES.len() as u8;
/// In a script: 256 bytes of keys that nobody knows.
const LONG_TEXT: u8 = RIGHT_RESPONSE + 1;

const USER: &str = "user";
const SECRET: &str = "a secret of the fuzzer";

/// How a fuzzed login ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Open,
    Failed,
    Established { chap: bool },
}

/// Runs a login. The first byte chooses what the shard answers; then each request is a byte of flags (as in the
/// header), one of quirks, one of length, and a script of that length. Panics when an invariant does not hold; one
/// of them is that nobody is let in without the right response where CHAP is required.
pub fn fuzz_login(input: &[u8]) {
    run_login(input);
}

fn run_login(input: &[u8]) -> Ended {
    let Some((&choice, mut steps)) = input.split_first() else { return Ended::Open };
    let mut login = Login::new(choice);
    while let [flags, quirks, len, rest @ ..] = steps {
        let (script, rest) = rest.split_at(usize::from(*len).min(rest.len()));
        steps = rest;
        login.send(*flags, *quirks, script);
        if login.ended != Ended::Open {
            // What comes after the end is nothing to the machine.
            login.machine.handle_pdu(&login.request.encode(0), &[]);
            assert!(!login.machine.poll_output(&mut Vec::new()) && login.machine.poll_event().is_none());
            break;
        }
    }
    login.ended
}

struct Login {
    machine: LoginMachine,
    request: LoginRequest,
    chap: bool,
    answer: Option<TargetAnswer>,
    challenge: Option<(ChapAlgorithm, u8, Vec<u8>)>,
    right_response_sent: bool,
    next_stat_sn: StatSn,
    asked: bool,
    ended: Ended,
}

impl Login {
    fn new(choice: u8) -> Self {
        let chap = choice & 0x10 != 0;
        let credentials =
            |user: &str, secret: &str| Credentials { user: user.into(), secret: Secret::new(secret) };
        let auth = if chap {
            let mutual = (choice & 0x20 != 0).then(|| credentials("target", "another secret"));
            AuthPolicy::Chap { initiator: credentials(USER, SECRET), mutual }
        } else {
            AuthPolicy::None
        };
        let answer = match choice & 0x0F {
            1 => TargetAnswer::NotFound,
            2 => TargetAnswer::Moved { address: "192.0.2.1:3260".into(), permanent: choice & 0x20 != 0 },
            3 => TargetAnswer::OutOfResources,
            _ => TargetAnswer::Accept {
                auth,
                portal_group: 1,
                target_alias: (choice & 0x40 != 0).then(|| "alias".into()),
                tsih_for_new_session: Tsih(9),
                max_connections: 4,
            },
        };
        Self {
            machine: LoginMachine::new([choice; 32], 1 + u32::from(choice)),
            request: LoginRequest {
                immediate: true,
                transit: false,
                text_continues: false,
                current_stage: None,
                next_stage: None,
                version_max: 0,
                version_min: 0,
                isid: Isid([choice; 6]),
                tsih: Tsih(0),
                task_tag: InitiatorTaskTag(1),
                cid: Cid(0),
                cmd_sn: CmdSn(u32::MAX),
                exp_stat_sn: StatSn(u32::MAX),
            },
            chap,
            answer: Some(answer),
            challenge: None,
            right_response_sent: false,
            next_stat_sn: StatSn(u32::MAX),
            asked: false,
            ended: Ended::Open,
        }
    }

    fn send(&mut self, flags: u8, quirks: u8, script: &[u8]) {
        let text = self.text(script);
        let mut bhs = self.request.encode(text.len() as u32);
        bhs.0[1] = flags;
        match quirks {
            0xF0 => bhs.0[0] = 0x01,
            0xF1 => bhs.0[3] = 1,
            0xF2 => bhs.0[8] ^= 1,
            0xF3 => bhs.0[15] ^= 1,
            0xF4 => bhs.0[0] &= 0x3F,
            _ => {}
        }
        self.request = LoginRequest { isid: self.request.isid, ..LoginRequest::decode(&bhs) };
        let mut out = Vec::new();
        self.machine.handle_pdu(&bhs, &text);
        self.machine.poll_output(&mut out);
        self.poll_events(&out);
        if self.asked
            && let Some(answer) = self.answer.take()
        {
            assert!(out.is_empty(), "a response came before the target was known");
            self.machine.target_answer(answer);
            self.machine.poll_output(&mut out);
            self.poll_events(&out);
        }
        self.check_replies(&out);
        // Identifiers that were flipped for one PDU are right again in the next.
        self.request.tsih = Tsih(0);
        self.request.immediate = true;
        self.request.version_min = 0;
    }

    fn text(&mut self, script: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        for &byte in script {
            match byte {
                RIGHT_RESPONSE => {
                    if let Some((algorithm, identifier, challenge)) = &self.challenge {
                        let response = algorithm.respond(*identifier, &Secret::new(SECRET), challenge);
                        write_pair(&mut text, "CHAP_N", USER);
                        write_pair(&mut text, "CHAP_R", &format_binary(&response));
                        self.right_response_sent = true;
                    }
                }
                LONG_TEXT => text.extend(b"X-0123456789.0123456789=1234567\0".repeat(8)),
                _ => match PHRASES.get(usize::from(byte)) {
                    Some(phrase) => text.extend_from_slice(phrase.as_bytes()),
                    None => text.push(byte),
                },
            }
        }
        text
    }

    fn poll_events(&mut self, out: &[u8]) {
        while let Some(event) = self.machine.poll_event() {
            assert_eq!(self.ended, Ended::Open, "{event:?} after the end");
            match event {
                LoginEvent::TargetNamed { .. } => {
                    assert!(!self.asked, "the target was named twice");
                    self.asked = true;
                }
                LoginEvent::Established(established) => {
                    assert!(self.asked && !out.is_empty());
                    assert!(!self.chap || self.right_response_sent, "CHAP was evaded");
                    assert_eq!(established.tsih, Tsih(9));
                    check_params(&established.params);
                    self.ended = Ended::Established { chap: self.chap };
                }
                LoginEvent::Failed(failure) => {
                    assert_eq!(failure.status().is_some(), !out.is_empty());
                    self.ended = Ended::Failed;
                }
            }
        }
    }

    /// There is at most one reply, it is well-formed, and it says what the events said.
    fn check_replies(&mut self, out: &[u8]) {
        let Some((bhs, data)) = out.split_first_chunk::<BHS_BYTES>() else {
            assert!(out.is_empty());
            return;
        };
        let bhs = Bhs(*bhs);
        let len = bhs.data_len();
        assert!(len <= limits::LOGIN_SEGMENT_BYTES_MAX);
        assert_eq!(data.len(), (len + pad_len(len)) as usize);
        assert_eq!((bhs.0[0], bhs.0[1] & 0x30), (0x23, 0));
        let reply = LoginResponse::decode(&bhs);
        assert_eq!(reply.stat_sn, self.next_stat_sn.take());
        assert_eq!(reply.window.exp_cmd_sn, self.request.cmd_sn);
        assert!(!(reply.transit && reply.text_continues));
        assert_eq!(reply.status == LoginStatus::SUCCESS, self.ended != Ended::Failed);
        if reply.transit {
            assert!(self.request.transit);
            assert_eq!(reply.next_stage, self.request.next_stage);
        }
        let full_feature = reply.next_stage == Some(Stage::FullFeature);
        assert_eq!(full_feature, matches!(self.ended, Ended::Established { .. }));
        if !reply.text_continues
            && let Ok(keys) = TextKeys::parse(data[..len as usize].to_vec())
        {
            self.note_challenge(&keys);
        }
    }

    fn note_challenge(&mut self, keys: &TextKeys) {
        let number = |key| keys.get(key).and_then(parse_number);
        let challenge = keys.get("CHAP_C").and_then(|value| parse_binary(value, 64));
        let algorithm = number("CHAP_A").and_then(ChapAlgorithm::from_number);
        if let (Some(algorithm), Some(identifier), Some(challenge)) = (algorithm, number("CHAP_I"), challenge)
        {
            self.challenge = Some((algorithm, identifier as u8, challenge));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One request of a login script.
    fn step(flags: u8, script: &[u8]) -> Vec<u8> {
        [&[flags, 0, script.len() as u8], script].concat()
    }

    #[test]
    fn the_login_fuzzer_reaches_full_feature_both_ways() {
        let plain = [vec![0], step(0x87, &[4, 15, 17, 22])].concat();
        assert_eq!(run_login(&plain), Ended::Established { chap: false });
        let chap = [
            vec![0x30],
            step(0x81, &[4, 6]),
            step(0x81, &[8]),
            step(0x81, &[RIGHT_RESPONSE, 12]),
            step(0x87, &[]),
        ];
        assert_eq!(run_login(&chap.concat()), Ended::Established { chap: true });
        let evaded = [vec![0x30], step(0x81, &[4, 6]), step(0x81, &[8]), step(0x81, &[10, 11])];
        assert_eq!(run_login(&evaded.concat()), Ended::Failed);
    }

    #[test]
    #[should_panic = "CHAP was evaded"]
    fn the_login_fuzzer_would_notice_an_open_door() {
        let mut login = Login::new(0);
        login.chap = true;
        login.send(0x87, 0, &[4]);
    }

    /// Whole PDUs, so that the framer gets beyond the first header.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let pdu =
            (any::<u8>(), 0usize..3, prop_oneof![Just(0usize), 1usize..70, 500usize..600], any::<[u8; 4]>());
        let flip = (any::<prop::sample::Index>(), any::<u8>(), any::<bool>());
        (prop::collection::vec(pdu, 0..6), any::<[u8; 2]>(), flip).prop_map(
            |(pdus, head, (at, mask, damage))| {
                let mut stream = vec![head[0] | 0x08, head[1]];
                for (fill, ahs, data, digests) in pdus {
                    let mut bhs = Bhs([fill; BHS_BYTES]);
                    bhs.0[4] = ahs as u8;
                    bhs.set_data_len(data as u32);
                    let ahs = vec![fill; ahs * 4];
                    stream.extend_from_slice(&bhs.0);
                    stream.extend_from_slice(&ahs);
                    if head[0] & 1 != 0 {
                        stream.extend_from_slice(&crate::iscsi::digest::digest_of(&[&bhs.0, &ahs]));
                    }
                    stream.extend(vec![fill; data + pad_len(data as u32) as usize]);
                    if head[0] & 2 != 0 && data > 0 {
                        stream.extend_from_slice(&digests);
                    }
                }
                if damage {
                    let at = at.index(stream.len());
                    stream[at] ^= mask;
                }
                stream
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_bytes_break_the_framer(input in prop::collection::vec(any::<u8>(), 0..600)) {
            fuzz_framer(&input);
        }

        #[test]
        fn no_stream_breaks_the_framer(input in stream()) {
            fuzz_framer(&input);
        }

        #[test]
        fn no_bytes_break_text(input in prop::collection::vec(any::<u8>(), 0..300)) {
            fuzz_text_keys(&input);
        }

        #[test]
        fn no_plausible_text_breaks_text(
            size: u8,
            parts in prop::collection::vec(
                prop_oneof![
                    4 => prop::sample::select(&PHRASES[..]).prop_map(str::to_owned),
                    1 => "[A-Za-z0-9=,~\0 -]{0,12}",
                ],
                0..40,
            ),
        ) {
            let mut input = vec![size];
            parts.iter().for_each(|part| input.extend_from_slice(part.as_bytes()));
            fuzz_text_keys(&input);
        }

        #[test]
        fn no_bytes_break_a_login(input in prop::collection::vec(any::<u8>(), 0..300)) {
            fuzz_login(&input);
        }

        /// Flags and keys that mean something, so that the later stages are reached.
        #[test]
        fn no_plausible_requests_break_a_login(
            choice: u8,
            steps in prop::collection::vec(
                (
                    prop::sample::select(vec![0x00u8, 0x40, 0x81, 0x81, 0x83, 0x04, 0x44, 0x87, 0x87, 0x85]),
                    prop_oneof![30 => 0u8..=0xEF, 1 => 0xF0u8..=0xFF],
                    prop::collection::vec(
                        prop_oneof![12 => 0u8..=LONG_TEXT, 4 => Just(RIGHT_RESPONSE), 1 => any::<u8>()],
                        0..12,
                    ),
                ),
                0..12,
            ),
            opening: bool,
        ) {
            let mut input = vec![choice];
            if opening {
                input.extend(step(0, &[4, 6]));
                input.extend(step(0x81, &[8]));
            }
            for (flags, quirks, script) in steps {
                input.extend([flags, quirks, script.len() as u8]);
                input.extend(script);
            }
            fuzz_login(&input);
        }
    }
}
