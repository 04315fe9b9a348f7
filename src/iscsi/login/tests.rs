//! The login machine against scripted initiators.
//!
//! Knows what real initiators send. Does not know the machine's inside, but for the table of stages.

use super::*;
use crate::iscsi::chap::{ChapAlgorithm, Credentials, Secret};
use crate::iscsi::params::DigestKind;
use crate::iscsi::pdu::InitiatorTaskTag;
use crate::iscsi::text_keys::{format_binary, parse_binary};

const SECURITY: Stage = Stage::SecurityNegotiation;
const OPERATIONAL: Stage = Stage::OperationalNegotiation;
const FULL: Stage = Stage::FullFeature;

const INITIATOR: &str = "iqn.2010-04.org.ipxe:pc-1";
const TARGET: &str = "iqn.2026-01.lab:pc-1";
const NAMES: [(&str, &str); 3] =
    [("InitiatorName", INITIATOR), ("TargetName", TARGET), ("SessionType", "Normal")];

/// A reply as the initiator sees it.
#[derive(Debug)]
struct Reply {
    header: LoginResponse,
    text: Vec<u8>,
}

impl Reply {
    fn get(&self, key: &str) -> Option<String> {
        TextKeys::parse(self.text.clone()).unwrap().get(key).map(str::to_owned)
    }

    /// T, and the stage it leads to.
    fn next(&self) -> Option<Stage> {
        assert_eq!(self.header.status, LoginStatus::SUCCESS);
        self.header.next_stage
    }
}

/// An initiator that sends what it is told to.
struct Initiator {
    machine: LoginMachine,
    request: LoginRequest,
    expected_stat_sn: Option<StatSn>,
    /// That of the session which is joined.
    window: Option<WindowSnapshot>,
}

impl Initiator {
    fn new() -> Self {
        let request = LoginRequest {
            immediate: true,
            transit: false,
            text_continues: false,
            current_stage: Some(SECURITY),
            next_stage: Some(SECURITY),
            version_max: 0,
            version_min: 0,
            isid: Isid([0, 2, 0x3D, 0, 0, 1]),
            tsih: Tsih(0),
            task_tag: InitiatorTaskTag(0x1234_5678),
            cid: Cid(1),
            cmd_sn: CmdSn(0xFFFF_FFFE),
            exp_stat_sn: StatSn(5),
        };
        Self {
            machine: LoginMachine::new([0x5A; 32], limits::COMMAND_WINDOW_DEFAULT),
            request,
            expected_stat_sn: None,
            window: None,
        }
    }

    fn put(&mut self, from: Stage, to: Option<Stage>, text: &[u8]) {
        self.request.current_stage = Some(from);
        self.request.transit = to.is_some();
        self.request.next_stage = to.or(Some(SECURITY));
        let bhs = self.request.encode(text.len() as u32);
        self.machine.handle_pdu(&bhs, text);
    }

    /// Every reply that is queued; headers are checked against what was asked.
    fn replies(&mut self) -> Vec<Reply> {
        let mut bytes = Vec::new();
        assert_eq!(self.machine.poll_output(&mut bytes), !bytes.is_empty());
        let mut bytes = &bytes[..];
        let mut replies = Vec::new();
        while let Some((bhs, rest)) = bytes.split_first_chunk::<48>() {
            let bhs = Bhs(*bhs);
            let len = bhs.data_len();
            let (text, rest) = rest.split_at(len as usize);
            let (pad, rest) = rest.split_at(pad_len(len) as usize);
            assert!(pad.iter().all(|&byte| byte == 0));
            bytes = rest;
            assert_eq!((bhs.0[0], bhs.0[4]), (0x23, 0));
            let header = LoginResponse::decode(&bhs);
            assert_eq!((header.isid, header.task_tag), (self.request.isid, self.request.task_tag));
            let own = WindowSnapshot {
                exp_cmd_sn: self.request.cmd_sn,
                max_cmd_sn: self.request.cmd_sn.plus(limits::COMMAND_WINDOW_DEFAULT - 1),
            };
            assert_eq!(header.window, self.window.unwrap_or(own));
            assert!(self.expected_stat_sn.is_none_or(|expected| expected == header.stat_sn));
            self.expected_stat_sn = Some(header.stat_sn.plus(1));
            replies.push(Reply { header, text: text.to_vec() });
        }
        assert!(bytes.is_empty());
        replies
    }

    fn send_text(&mut self, from: Stage, to: Option<Stage>, text: &[u8]) -> Reply {
        self.put(from, to, text);
        let mut replies = self.replies();
        assert_eq!(replies.len(), 1, "{:?}", self.machine.poll_event());
        replies.remove(0)
    }

    fn send(&mut self, from: Stage, to: Option<Stage>, pairs: &[(&str, &str)]) -> Reply {
        self.send_text(from, to, &text(pairs))
    }

    /// Sends the first text and lets the shard accept the target under `auth`.
    fn open(&mut self, from: Stage, to: Option<Stage>, pairs: &[(&str, &str)], auth: AuthPolicy) -> Reply {
        self.put(from, to, &text(pairs));
        assert!(self.replies().is_empty());
        match self.machine.poll_event() {
            Some(LoginEvent::TargetNamed { initiator, .. }) => assert_eq!(initiator, INITIATOR),
            other => panic!("{other:?}"),
        }
        self.machine.target_answer(accept(auth));
        let mut replies = self.replies();
        assert_eq!(replies.len(), 1);
        replies.remove(0)
    }

    fn established(&mut self) -> Established {
        match self.machine.poll_event() {
            Some(LoginEvent::Established(established)) => *established,
            other => panic!("{other:?}"),
        }
    }

    /// The login is over with this failure, its last reply said so, and nothing more is answered.
    fn failed(&mut self, reply: &Reply) -> LoginFailure {
        let failure = match self.machine.poll_event() {
            Some(LoginEvent::Failed(failure)) => failure,
            other => panic!("{other:?}"),
        };
        assert_eq!(Some(reply.header.status), failure.status());
        assert_eq!((reply.header.transit, reply.header.tsih), (false, self.request.tsih));
        self.put(OPERATIONAL, Some(FULL), &text(&NAMES));
        assert!(self.replies().is_empty() && self.machine.poll_event().is_none());
        failure
    }
}

fn text(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut text = Vec::new();
    for (key, value) in pairs {
        write_pair(&mut text, key, value);
    }
    text
}

fn accept(auth: AuthPolicy) -> TargetAnswer {
    TargetAnswer::Accept {
        auth,
        portal_group: 3,
        target_alias: Some("PC 1".into()),
        tsih_for_new_session: Tsih(77),
        max_connections: 4,
    }
}

fn credentials(user: &str, secret: &str) -> Credentials {
    Credentials { user: user.into(), secret: Secret::new(secret) }
}

fn chap(mutual: bool) -> AuthPolicy {
    AuthPolicy::Chap {
        initiator: credentials("pc-1", "initiator secret"),
        mutual: mutual.then(|| credentials("server", "target secret")),
    }
}

/// The answer to the challenge in `reply`.
fn chap_response(reply: &Reply, secret: &str) -> String {
    let identifier = reply.get("CHAP_I").unwrap().parse().unwrap();
    let challenge = parse_binary(&reply.get("CHAP_C").unwrap(), 64).unwrap();
    format_binary(&ChapAlgorithm::Md5.respond(identifier, &Secret::new(secret), &challenge))
}

const IPXE_OPERATIONAL: [(&str, &str); 14] = [
    ("HeaderDigest", "None"),
    ("DataDigest", "None"),
    ("MaxConnections", "1"),
    ("InitialR2T", "Yes"),
    ("ImmediateData", "No"),
    ("MaxRecvDataSegmentLength", "8192"),
    ("MaxBurstLength", "262144"),
    ("FirstBurstLength", "65536"),
    ("DefaultTime2Wait", "0"),
    ("DefaultTime2Retain", "0"),
    ("MaxOutstandingR2T", "1"),
    ("DataPDUInOrder", "Yes"),
    ("DataSequenceInOrder", "Yes"),
    ("ErrorRecoveryLevel", "0"),
];

#[test]
fn ipxe_without_chap_logs_in_through_the_security_stage() {
    let mut ipxe = Initiator::new();
    let names = [&NAMES[..], &[("AuthMethod", "None")]].concat();
    let first = ipxe.open(SECURITY, Some(OPERATIONAL), &names, AuthPolicy::None);
    assert_eq!(first.next(), Some(OPERATIONAL));
    assert_eq!(first.text, b"TargetPortalGroupTag=3\0TargetAlias=PC 1\0AuthMethod=None\0");
    assert_eq!(first.header.tsih, Tsih(0));
    let last = ipxe.send(OPERATIONAL, Some(FULL), &IPXE_OPERATIONAL);
    assert_eq!((last.next(), last.header.tsih), (Some(FULL), Tsih(77)));
    assert_eq!(last.get("MaxRecvDataSegmentLength").as_deref(), Some("262144"));
    let established = ipxe.established();
    let expected = NegotiatedParams {
        immediate_data: false,
        time2wait_s: 0,
        time2retain_s: 0,
        ..NegotiatedParams::default()
    };
    assert_eq!(established.params, expected);
    assert_eq!(established.next_stat_sn, StatSn(7));
    assert_eq!(established.exp_cmd_sn, CmdSn(0xFFFF_FFFE));
    assert_eq!((established.tsih, established.cid), (Tsih(77), Cid(1)));
    assert_eq!(established.target_name.as_deref(), Some(TARGET));
}

#[test]
fn ipxe_with_chap_asks_for_the_next_stage_all_the_time() {
    let mut ipxe = Initiator::new();
    let names = [&NAMES[..], &[("AuthMethod", "CHAP,None")]].concat();
    let to = Some(OPERATIONAL);
    let method = ipxe.open(SECURITY, to, &names, chap(false));
    assert_eq!((method.next(), method.get("AuthMethod").as_deref()), (None, Some("CHAP")));
    let challenge = ipxe.send(SECURITY, to, &[("CHAP_A", "5")]);
    assert_eq!((challenge.next(), challenge.get("CHAP_A").as_deref()), (None, Some("5")));
    let response = chap_response(&challenge, "initiator secret");
    let passed = ipxe.send(SECURITY, to, &[("CHAP_N", "pc-1"), ("CHAP_R", &response)]);
    assert_eq!(passed.next(), Some(OPERATIONAL));
    assert_eq!(ipxe.send(OPERATIONAL, Some(FULL), &IPXE_OPERATIONAL).next(), Some(FULL));
    assert_eq!(ipxe.established().initiator_name, INITIATOR);
}

#[test]
fn linux_goes_straight_to_the_operational_stage() {
    let mut linux = Initiator::new();
    let pairs = [
        &NAMES[..],
        &[
            ("InitiatorAlias", "golden"),
            ("HeaderDigest", "None,CRC32C"),
            ("DataDigest", "CRC32C,None"),
            ("DefaultTime2Wait", "2"),
            ("DefaultTime2Retain", "0"),
            ("IFMarker", "No"),
            ("OFMarker", "No"),
            ("ErrorRecoveryLevel", "0"),
            ("InitialR2T", "No"),
            ("ImmediateData", "Yes"),
            ("MaxBurstLength", "16776192"),
            ("FirstBurstLength", "262144"),
            ("MaxOutstandingR2T", "1"),
            ("MaxConnections", "1"),
            ("DataPDUInOrder", "Yes"),
            ("DataSequenceInOrder", "Yes"),
            ("MaxRecvDataSegmentLength", "262144"),
        ],
    ]
    .concat();
    let only = linux.open(OPERATIONAL, Some(FULL), &pairs, AuthPolicy::None);
    assert_eq!((only.next(), only.header.tsih), (Some(FULL), Tsih(77)));
    for (key, value) in [
        ("TargetPortalGroupTag", "3"),
        ("IFMarker", "No"),
        ("OFMarker", "No"),
        ("InitialR2T", "No"),
        ("MaxBurstLength", "1048576"),
        ("MaxRecvDataSegmentLength", "262144"),
    ] {
        assert_eq!(only.get(key).as_deref(), Some(value), "{key}");
    }
    let established = linux.established();
    let expected = NegotiatedParams {
        data_digest: DigestKind::Crc32c,
        max_send_segment: 262_144,
        max_burst: 1_048_576,
        first_burst: 262_144,
        initial_r2t: false,
        time2retain_s: 0,
        ..NegotiatedParams::default()
    };
    assert_eq!(established.params, expected);
    assert_eq!(established.initiator_alias.as_deref(), Some("golden"));
}

#[test]
fn libiscsi_with_mutual_chap_repeats_its_names_in_the_second_stage() {
    let mut libiscsi = Initiator::new();
    let names = [&NAMES[..], &[("AuthMethod", "CHAP,None")]].concat();
    libiscsi.open(SECURITY, Some(OPERATIONAL), &names, chap(true));
    let challenge = libiscsi.send(SECURITY, None, &[("CHAP_A", "5")]);
    let response = chap_response(&challenge, "initiator secret");
    let proof = libiscsi.send(
        SECURITY,
        Some(OPERATIONAL),
        &[("CHAP_N", "pc-1"), ("CHAP_R", &response), ("CHAP_I", "9"), ("CHAP_C", "0x0A0B0C")],
    );
    assert_eq!(proof.next(), Some(OPERATIONAL));
    let expected = ChapAlgorithm::Md5.respond(9, &Secret::new("target secret"), &[10, 11, 12]);
    assert_eq!(proof.get("CHAP_N").as_deref(), Some("server"));
    assert_eq!(proof.get("CHAP_R"), Some(format_binary(&expected)));
    let pairs = [&NAMES[..], &[("HeaderDigest", "CRC32C,None"), ("DataDigest", "None")]].concat();
    assert_eq!(libiscsi.send(OPERATIONAL, Some(FULL), &pairs).next(), Some(FULL));
    assert_eq!(libiscsi.established().params.header_digest, DigestKind::Crc32c);
}

/// Windows settles its parameters in one exchange and leaves the stage in the next.
#[test]
fn microsoft_settles_first_and_leaves_then() {
    let mut windows = Initiator::new();
    let names = [&NAMES[..], &[("InitiatorAlias", "PC-1"), ("AuthMethod", "None,CHAP")]].concat();
    let first = windows.open(SECURITY, Some(OPERATIONAL), &names, AuthPolicy::None);
    assert_eq!(first.get("AuthMethod").as_deref(), Some("None"));
    let keys = [
        ("HeaderDigest", "None,CRC32C"),
        ("DataDigest", "None,CRC32C"),
        ("ErrorRecoveryLevel", "2"),
        ("InitialR2T", "No"),
        ("ImmediateData", "Yes"),
        ("MaxRecvDataSegmentLength", "65536"),
        ("MaxBurstLength", "262144"),
        ("FirstBurstLength", "65536"),
        ("MaxConnections", "1"),
        ("DataPDUInOrder", "Yes"),
        ("DataSequenceInOrder", "Yes"),
        ("DefaultTime2Wait", "0"),
        ("DefaultTime2Retain", "60"),
        ("MaxOutstandingR2T", "16"),
    ];
    let settled = windows.send(OPERATIONAL, None, &keys);
    assert_eq!((settled.next(), settled.get("ErrorRecoveryLevel").as_deref()), (None, Some("0")));
    let last = windows.send(OPERATIONAL, Some(FULL), &[]);
    assert_eq!((last.next(), last.text.len()), (Some(FULL), 0));
    let params = windows.established().params;
    assert_eq!((params.max_send_segment, params.time2retain_s), (65_536, 0));
}

#[test]
fn a_discovery_session_needs_no_target() {
    let mut initiator = Initiator::new();
    let pairs = [("InitiatorName", INITIATOR), ("SessionType", "Discovery"), ("MaxBurstLength", "4096")];
    let reply = initiator.open(OPERATIONAL, Some(FULL), &pairs, AuthPolicy::None);
    assert_eq!(reply.text, b"MaxBurstLength=Irrelevant\0MaxRecvDataSegmentLength=262144\0");
    let established = initiator.established();
    assert_eq!((established.session_kind, established.target_name), (SessionKind::Discovery, None));
}

#[test]
fn full_feature_may_follow_security_directly() {
    let mut initiator = Initiator::new();
    let reply = initiator.open(SECURITY, Some(FULL), &NAMES, AuthPolicy::None);
    assert_eq!((reply.next(), reply.header.tsih), (Some(FULL), Tsih(77)));
    // Nothing was negotiated: the defaults hold, and we never declared more than 8192 bytes.
    let expected = NegotiatedParams { max_recv_segment: 8192, ..NegotiatedParams::default() };
    assert_eq!(initiator.established().params, expected);
}

#[test]
fn a_wrong_secret_is_an_authentication_failure() {
    let mut ipxe = Initiator::new();
    let names = [&NAMES[..], &[("AuthMethod", "CHAP"), ("CHAP_A", "5")]].concat();
    let challenge = ipxe.open(SECURITY, Some(OPERATIONAL), &names, chap(false));
    let response = chap_response(&challenge, "another secret");
    let reply = ipxe.send(SECURITY, Some(OPERATIONAL), &[("CHAP_N", "pc-1"), ("CHAP_R", &response)]);
    assert_eq!(reply.header.status.0, 0x0201);
    assert!(reply.text.is_empty());
    assert_eq!(ipxe.failed(&reply), LoginFailure::Chap(crate::iscsi::chap::ChapFailure::Wrong));
}

#[test]
fn who_evades_chap_is_refused() {
    for (from, to, pairs) in [
        (OPERATIONAL, Some(FULL), &[][..]),
        (OPERATIONAL, None, &[]),
        (SECURITY, Some(FULL), &[]),
        (SECURITY, Some(OPERATIONAL), &[("AuthMethod", "None")]),
        (SECURITY, None, &[("AuthMethod", "KRB5,None")]),
    ] {
        let mut initiator = Initiator::new();
        let pairs = [&NAMES[..], pairs].concat();
        let reply = initiator.open(from, to, &pairs, chap(false));
        assert_eq!(initiator.failed(&reply), LoginFailure::AuthenticationRequired);
        assert_eq!(reply.header.status.0, 0x0201);
    }
}

#[test]
fn chap_is_not_passed_by_leaving_it_half_way() {
    for to in [OPERATIONAL, FULL] {
        let mut initiator = Initiator::new();
        let names = [&NAMES[..], &[("AuthMethod", "CHAP"), ("CHAP_A", "5")]].concat();
        initiator.open(SECURITY, None, &names, chap(false));
        assert_eq!(initiator.send(SECURITY, Some(to), &[]).next(), None);
        let reply = initiator.send(OPERATIONAL, Some(FULL), &[]);
        assert_eq!(initiator.failed(&reply), LoginFailure::WrongStage);
    }
}

#[test]
fn an_open_target_cannot_check_a_secret() {
    let mut initiator = Initiator::new();
    let names = [&NAMES[..], &[("AuthMethod", "CHAP")]].concat();
    let reply = initiator.open(SECURITY, Some(OPERATIONAL), &names, AuthPolicy::None);
    assert_eq!(initiator.failed(&reply), LoginFailure::NoCredentials);
}

#[test]
fn the_target_decides_who_comes_in() {
    for (answer, status) in [
        (TargetAnswer::NotFound, 0x0203),
        (TargetAnswer::Forbidden, 0x0202),
        (TargetAnswer::Unavailable, 0x0301),
        (TargetAnswer::TooManyConnections, 0x0206),
        (TargetAnswer::SessionDoesNotExist, 0x020A),
        (TargetAnswer::OutOfResources, 0x0302),
    ] {
        let mut initiator = Initiator::new();
        initiator.put(OPERATIONAL, Some(FULL), &text(&NAMES));
        assert!(matches!(initiator.machine.poll_event(), Some(LoginEvent::TargetNamed { .. })));
        initiator.machine.target_answer(answer);
        let reply = initiator.replies().remove(0);
        assert_eq!(reply.header.status.0, status);
        initiator.failed(&reply);
    }
}

#[test]
fn a_moved_target_tells_its_address() {
    for (permanent, status) in [(false, 0x0101), (true, 0x0102)] {
        let mut initiator = Initiator::new();
        initiator.put(SECURITY, Some(OPERATIONAL), &text(&NAMES));
        initiator.machine.poll_event();
        initiator.machine.target_answer(TargetAnswer::Moved { address: "192.0.2.7:3260".into(), permanent });
        let reply = initiator.replies().remove(0);
        assert_eq!(
            (reply.header.status.0, &reply.text[..]),
            (status, &b"TargetAddress=192.0.2.7:3260\0"[..])
        );
        initiator.failed(&reply);
    }
}

#[test]
fn joining_a_session_is_refused_even_when_the_target_is_accepted() {
    let mut initiator = Initiator::new();
    initiator.request.tsih = Tsih(5);
    let reply = initiator.open(OPERATIONAL, Some(FULL), &NAMES, AuthPolicy::None);
    assert_eq!(initiator.failed(&reply), LoginFailure::SessionDoesNotExist);
    assert!(reply.text.is_empty());
}

fn join(auth: AuthPolicy) -> TargetAnswer {
    let params =
        NegotiatedParams { max_burst: 8192, first_burst: 4096, max_connections: 2, ..Default::default() };
    TargetAnswer::Join { auth, portal_group: 3, params, window: JOINED }
}

const JOINED: WindowSnapshot = WindowSnapshot { exp_cmd_sn: CmdSn(900), max_cmd_sn: CmdSn(950) };

/// A login that asks to join session 5, up to the answer about its target.
fn joining(from: Stage, pairs: &[(&str, &str)], auth: AuthPolicy) -> (Initiator, Reply) {
    let mut initiator = Initiator::new();
    initiator.request.tsih = Tsih(5);
    initiator.put(from, Some(FULL), &text(pairs));
    match initiator.machine.poll_event() {
        Some(LoginEvent::TargetNamed { tsih, cid, .. }) => assert_eq!((tsih, cid), (Tsih(5), Cid(1))),
        other => panic!("{other:?}"),
    }
    initiator.window = Some(JOINED);
    initiator.machine.target_answer(join(auth));
    let reply = initiator.replies().remove(0);
    (initiator, reply)
}

#[test]
fn a_login_that_joins_keeps_the_sessions_handle_window_and_parameters() {
    let offers = [&NAMES[..], &[("MaxBurstLength", "512"), ("HeaderDigest", "CRC32C")]].concat();
    let (mut initiator, reply) = joining(OPERATIONAL, &offers, AuthPolicy::None);
    assert_eq!((reply.next(), reply.header.tsih), (Some(FULL), Tsih(5)));
    assert_eq!(reply.get("TargetPortalGroupTag").as_deref(), Some("3"));
    assert_eq!(reply.get("MaxBurstLength").as_deref(), Some("Irrelevant"));
    assert_eq!(reply.get("HeaderDigest").as_deref(), Some("CRC32C"));
    let established = initiator.established();
    assert!(established.joins);
    assert_eq!((established.tsih, established.params.max_burst), (Tsih(5), 8192));
    assert_eq!(established.params.first_burst, 4096);
}

#[test]
fn a_login_that_joins_must_prove_itself_like_any_other() {
    let (mut initiator, reply) = joining(OPERATIONAL, &NAMES, chap(false));
    assert_eq!(initiator.failed(&reply), LoginFailure::AuthenticationRequired);
}

#[test]
fn the_first_text_must_say_who_and_whom() {
    for (pairs, status) in [
        (&[("TargetName", TARGET)][..], 0x0207),
        (&[("InitiatorName", INITIATOR)], 0x0207),
        (&[], 0x0207),
        (&[("InitiatorName", INITIATOR), ("TargetName", "a b")], 0x0200),
        (&[("InitiatorName", ""), ("TargetName", TARGET)], 0x0200),
        (&[("InitiatorName", INITIATOR), ("SessionType", "Other")], 0x0209),
    ] {
        let mut initiator = Initiator::new();
        let reply = initiator.send(OPERATIONAL, Some(FULL), pairs);
        assert_eq!(reply.header.status.0, status, "{pairs:?}");
        initiator.failed(&reply);
    }
}

#[test]
fn a_text_may_be_cut_anywhere() {
    let whole = text(&[&NAMES[..], &IPXE_OPERATIONAL].concat());
    for cut in [1, 14, 60, whole.len()] {
        let mut initiator = Initiator::new();
        initiator.request.text_continues = true;
        let more = initiator.send_text(OPERATIONAL, None, &whole[..cut]);
        assert_eq!((more.next(), more.text.len(), more.header.text_continues), (None, 0, false));
        initiator.request.text_continues = false;
        initiator.put(OPERATIONAL, Some(FULL), &whole[cut..]);
        assert!(matches!(initiator.machine.poll_event(), Some(LoginEvent::TargetNamed { .. })));
        initiator.machine.target_answer(accept(AuthPolicy::None));
        let reply = initiator.replies().remove(0);
        assert_eq!((reply.next(), reply.header.tsih), (Some(FULL), Tsih(77)));
    }
}

#[test]
fn a_long_answer_goes_on_over_pdus() {
    let mut initiator = Initiator::new();
    initiator.open(SECURITY, Some(OPERATIONAL), &NAMES, AuthPolicy::None);
    let keys: Vec<String> = (1..limits::TEXT_KEYS_MAX).map(|at| format!("X-{at:0>60}")).collect();
    let pairs: Vec<(&str, &str)> = keys.iter().map(|key| (key.as_str(), "")).collect();
    let offer = text(&pairs);
    initiator.request.text_continues = true;
    initiator.send_text(OPERATIONAL, None, &offer[..5000]);
    initiator.request.text_continues = false;
    let first = initiator.send_text(OPERATIONAL, Some(FULL), &offer[5000..]);
    assert_eq!((first.next(), first.header.text_continues, first.text.len()), (None, true, 8192));
    let last = initiator.send(OPERATIONAL, Some(FULL), &[]);
    assert_eq!((last.next(), last.header.text_continues), (Some(FULL), false));
    let answers = TextKeys::parse([first.text, last.text].concat()).unwrap();
    assert_eq!(answers.len(), keys.len() + 1);
    assert!(answers.iter().take(keys.len()).all(|(_, value)| value == "NotUnderstood"));
    initiator.established();
}

#[test]
fn text_inside_our_long_answer_is_refused() {
    let mut initiator = Initiator::new();
    initiator.open(SECURITY, Some(OPERATIONAL), &NAMES, AuthPolicy::None);
    let keys: Vec<String> = (0..limits::TEXT_KEYS_MAX).map(|at| format!("X-{at:0>58}")).collect();
    let pairs: Vec<(&str, &str)> = keys.iter().map(|key| (key.as_str(), "")).collect();
    assert!(initiator.send(OPERATIONAL, None, &pairs).header.text_continues);
    let reply = initiator.send(OPERATIONAL, None, &[("X-a", "1")]);
    assert_eq!(initiator.failed(&reply), LoginFailure::TextInsideAnswer);
}

#[test]
fn breaches_of_protocol_end_the_login() {
    type Breach = fn(&mut Initiator) -> Reply;
    let breaches: [(LoginFailure, Breach); 9] = [
        (LoginFailure::UnsupportedVersion(1), |it| {
            (it.request.version_max, it.request.version_min) = (2, 1);
            it.send(SECURITY, None, &NAMES)
        }),
        (LoginFailure::NotImmediate, |it| {
            it.request.immediate = false;
            it.send(SECURITY, None, &NAMES)
        }),
        (LoginFailure::TransitionInsideText, |it| {
            it.request.text_continues = true;
            it.send(SECURITY, Some(FULL), &NAMES)
        }),
        (LoginFailure::WrongTransition, |it| it.send(OPERATIONAL, Some(OPERATIONAL), &NAMES)),
        (LoginFailure::WrongStage, |it| it.send(FULL, Some(FULL), &NAMES)),
        (LoginFailure::SegmentTooLong, |it| it.send_text(SECURITY, None, &[0; 8193])),
        (LoginFailure::Text(crate::iscsi::text_keys::TextError::NoEquals), |it| {
            it.send_text(SECURITY, None, b"Initiator\0")
        }),
        (LoginFailure::Negotiation(NegotiationError::Repeated("InitiatorName")), |it| {
            let pairs = [&NAMES[..], &[("InitiatorName", "iqn.other")]].concat();
            it.open(SECURITY, None, &pairs, AuthPolicy::None)
        }),
        (LoginFailure::Negotiation(NegotiationError::OutOfPlace("MaxBurstLength")), |it| {
            let pairs = [&NAMES[..], &[("MaxBurstLength", "512")]].concat();
            it.open(SECURITY, None, &pairs, AuthPolicy::None)
        }),
    ];
    for (failure, breach) in breaches {
        let mut initiator = Initiator::new();
        let reply = breach(&mut initiator);
        assert_eq!(initiator.failed(&reply), failure);
    }
}

#[test]
fn keys_do_not_repeat_from_pdu_to_pdu() {
    let mut initiator = Initiator::new();
    initiator.open(OPERATIONAL, None, &[&NAMES[..], &[("InitialR2T", "No")]].concat(), AuthPolicy::None);
    let reply = initiator.send(OPERATIONAL, Some(FULL), &[("InitialR2T", "No")]);
    let repeated = LoginFailure::Negotiation(NegotiationError::Repeated("InitialR2T"));
    assert_eq!(initiator.failed(&reply), repeated);
}

#[test]
fn identifiers_may_not_change_during_login() {
    type Change = fn(&mut LoginRequest);
    let changes: [(&str, Change); 5] = [
        ("ISID", |request| request.isid.0[5] ^= 1),
        ("TSIH", |request| request.tsih.0 ^= 1),
        ("CID", |request| request.cid.0 ^= 1),
        ("Initiator Task Tag", |request| request.task_tag.0 ^= 1),
        ("version", |request| request.version_max ^= 1),
    ];
    for (what, change) in changes {
        let mut initiator = Initiator::new();
        initiator.open(SECURITY, None, &NAMES, AuthPolicy::None);
        let before = initiator.request;
        change(&mut initiator.request);
        initiator.put(SECURITY, None, &[]);
        initiator.request = before;
        let reply = initiator.replies().remove(0);
        assert_eq!(initiator.failed(&reply), LoginFailure::Changed(what));
    }
}

#[test]
fn a_first_pdu_that_is_no_login_gets_no_answer() {
    let mut machine = LoginMachine::new([0; 32], limits::COMMAND_WINDOW_DEFAULT);
    machine.handle_pdu(&Bhs::default(), &[]);
    assert!(!machine.poll_output(&mut Vec::new()));
    assert!(matches!(machine.poll_event(), Some(LoginEvent::Failed(LoginFailure::NotLogin(0)))));
}

#[test]
fn another_pdu_during_login_is_invalid() {
    let mut initiator = Initiator::new();
    initiator.open(SECURITY, None, &NAMES, AuthPolicy::None);
    let mut bhs = Bhs::default();
    bhs.0[0] = 0x41;
    initiator.machine.handle_pdu(&bhs, &[]);
    let reply = initiator.replies().remove(0);
    assert_eq!(reply.header.status.0, 0x020B);
    assert_eq!(initiator.failed(&reply), LoginFailure::InvalidDuringLogin(1));
}

#[test]
fn an_initiator_waits_for_the_answer() {
    let mut initiator = Initiator::new();
    initiator.put(SECURITY, None, &text(&NAMES));
    initiator.machine.poll_event();
    let reply = initiator.send(SECURITY, None, &[]);
    initiator.machine.target_answer(accept(AuthPolicy::None));
    assert!(initiator.replies().is_empty());
    assert_eq!(initiator.failed(&reply), LoginFailure::Impatient);
}

#[test]
fn a_login_without_end_is_cut_off() {
    let mut initiator = Initiator::new();
    initiator.open(SECURITY, None, &NAMES, AuthPolicy::None);
    for _ in 1..limits::LOGIN_PDUS_MAX {
        assert_eq!(initiator.send(SECURITY, None, &[]).next(), None);
    }
    let reply = initiator.send(SECURITY, None, &[]);
    assert_eq!(initiator.failed(&reply), LoginFailure::TooManyPdus);
}

#[test]
fn an_endless_text_is_cut_off() {
    let mut initiator = Initiator::new();
    initiator.request.text_continues = true;
    for _ in 0..limits::TEXT_BYTES_MAX / 8192 {
        initiator.send_text(SECURITY, None, &[b'a'; 8192]);
    }
    let reply = initiator.send_text(SECURITY, None, b"a");
    assert_eq!(reply.header.status.0, 0x0302);
    initiator.failed(&reply);
}

#[test]
fn names_are_folded_to_lower_case() {
    let mut initiator = Initiator::new();
    let (who, whom) = (INITIATOR.to_uppercase(), TARGET.to_uppercase());
    initiator.put(OPERATIONAL, Some(FULL), &text(&[("InitiatorName", &who), ("TargetName", &whom)]));
    let Some(LoginEvent::TargetNamed { initiator, target, .. }) = initiator.machine.poll_event() else {
        panic!("no target was named");
    };
    assert_eq!((initiator.as_str(), target.as_deref()), (INITIATOR, Some(TARGET)));
}

/// The table in the documentation of `LoginMachine` is what `check_stages` does.
#[test]
fn the_table_of_stages_is_the_documented_one() {
    let columns = [
        (SECURITY, None),
        (SECURITY, Some(OPERATIONAL)),
        (SECURITY, Some(FULL)),
        (OPERATIONAL, None),
        (OPERATIONAL, Some(FULL)),
    ];
    let stages = [SECURITY, OPERATIONAL, FULL].map(Some);
    let documented = include_str!("../login.rs");
    for (title, stage) in
        [("start", None), ("security (0)", Some(SECURITY)), ("operational (1)", Some(OPERATIONAL))]
    {
        let result = |current, next: Option<Option<Stage>>| {
            let mut request = Initiator::new().request;
            (request.current_stage, request.transit) = (current, next.is_some());
            request.next_stage = next.flatten();
            match check_stages(stage, &request) {
                Ok(stage) => (stage as u8).to_string(),
                Err(failure) => format!("{:#06x}", failure.status().unwrap().0),
            }
        };
        let cells = columns.map(|(current, next)| result(Some(current), next.map(Some)));
        let others: std::collections::BTreeSet<String> = stages
            .into_iter()
            .chain([None])
            .flat_map(|current| {
                stages.into_iter().chain([None]).map(Some).chain([None]).map(move |next| (current, next))
            })
            .filter(|(current, next)| {
                !columns.iter().any(|column| (Some(column.0), column.1.map(Some)) == (*current, *next))
            })
            .map(|(current, next)| result(current, next))
            .collect();
        assert_eq!(others.len(), 1, "{others:?}");
        let mut line = format!("/// | {title:<15} |");
        for cell in cells.iter().chain(&others) {
            line.push_str(&format!(" {cell:<6} |"));
        }
        assert!(documented.contains(&line), "the table lacks this line:\n{line}");
    }
}

#[test]
fn a_login_may_move_between_threads() {
    fn is_send<T: Send>() {}
    is_send::<LoginMachine>();
    is_send::<LoginEvent>();
    is_send::<TargetAnswer>();
}
