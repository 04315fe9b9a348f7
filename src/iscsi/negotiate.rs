//! Negotiation of keys (RFC 7143, 6.2, 13): one table row a key, and the rule that turns an offer into an answer.
//!
//! Knows every key, who may send it when, its bounds and what we want. Does not know PDUs, stages of a login
//! (`login`), credentials (`chap`) nor targets (`discovery`).

use super::discovery::SendTargets;
use super::params::{DigestKind, NegotiatedParams};
use super::text_keys::{TextKeys, TextWriter, list_items, parse_number};
use crate::limits;

/// What a session is for (RFC 7143, 13.21).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum SessionKind {
    #[default]
    Normal,
    /// Only lists targets.
    Discovery,
}

/// Where a negotiation stands; says which keys are in their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    LoginSecurity,
    LoginOperational,
    FullFeature,
}

/// A breach of protocol: the negotiation is over (in login: the connection).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NegotiationError {
    #[error("the initiator sent {0} twice in one negotiation")]
    Repeated(&'static str),
    #[error("the initiator sent {0} where that key is out of place")]
    OutOfPlace(&'static str),
    #[error("the initiator declared {0} with an illegal value")]
    BadDeclaration(&'static str),
}

/// The value of a key that is settled by one rule: the lower or the higher number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pick {
    Min,
    Max,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Logic {
    And,
    Or,
}

/// What we want, seen what is settled already.
pub(super) type OurNumber = fn(&Negotiator) -> u32;
pub(super) type StoreNumber = fn(&mut NegotiatedParams, u32);
pub(super) type StoreBoolean = fn(&mut NegotiatedParams, bool);

/// How a key is settled.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// Both sides' numbers give one; an offer outside of `bounds` is answered with Reject.
    Number {
        bounds: (u32, u32),
        pick: Pick,
        ours: OurNumber,
        store: StoreNumber,
    },
    /// Both sides' Yes or No give one.
    Boolean {
        logic: Logic,
        ours: bool,
        store: StoreBoolean,
    },
    /// The first digest of the initiator's list that we know; we know both.
    Digest {
        store: fn(&mut NegotiatedParams, DigestKind),
    },
    /// A list from which we take this value, or none of it.
    Choice {
        ours: &'static str,
    },
    /// Markers are obsolete: No (13.25).
    Marker,
    /// So are their intervals: Reject.
    MarkerInterval,
    /// MaxRecvDataSegmentLength: each side declares its own (13.12).
    SegmentLength,
    /// A text that the initiator declares and nobody answers.
    Declaration(Declaration),
    /// Belongs to the security stage's conversation.
    Security(SecurityKey),
    /// Only a target may send it.
    TargetOnly,
    SendTargets,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Declaration {
    InitiatorName,
    InitiatorAlias,
    TargetName,
    SessionType,
    /// X#NodeArchitecture (13.26): noted by nobody.
    NodeArchitecture,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SecurityKey {
    AuthMethod,
    ChapA,
    ChapI,
    ChapC,
    ChapN,
    ChapR,
}

/// When a key may come from the initiator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Security,
    Operational,
    /// Either stage of login. The first text must have it, where it is needed.
    Login,
    OperationalAndFullFeature,
    FullFeature,
    Anywhere,
}

impl Place {
    fn allows(self, phase: Phase) -> bool {
        match self {
            Self::Security => phase == Phase::LoginSecurity,
            Self::Operational => phase == Phase::LoginOperational,
            Self::Login => phase != Phase::FullFeature,
            Self::OperationalAndFullFeature => phase != Phase::LoginSecurity,
            Self::FullFeature => phase == Phase::FullFeature,
            Self::Anywhere => true,
        }
    }
}

/// One key of RFC 7143, 12 and 13.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyRule {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    place: Place,
    /// "Irrelevant when: SessionType=Discovery".
    normal_only: bool,
    /// "Use: LO": settled by the leading login for all connections.
    leading_only: bool,
}

const SEGMENT_MIN: u32 = 512;
const SEGMENT_MAX: u32 = (1 << 24) - 1;

const fn number(
    name: &'static str,
    bounds: (u32, u32),
    pick: Pick,
    ours: OurNumber,
    store: StoreNumber,
) -> KeyRule {
    other(name, Place::Operational, Kind::Number { bounds, pick, ours, store }).leading_only()
}

const fn boolean(name: &'static str, logic: Logic, ours: bool, store: StoreBoolean) -> KeyRule {
    other(name, Place::Operational, Kind::Boolean { logic, ours, store }).normal_only().leading_only()
}

const fn other(name: &'static str, place: Place, kind: Kind) -> KeyRule {
    KeyRule { name, kind, place, normal_only: false, leading_only: false }
}

const fn declaration(name: &'static str, place: Place, what: Declaration) -> KeyRule {
    other(name, place, Kind::Declaration(what))
}

const fn security(name: &'static str, key: SecurityKey) -> KeyRule {
    other(name, Place::Security, Kind::Security(key))
}

impl KeyRule {
    const fn normal_only(mut self) -> Self {
        self.normal_only = true;
        self
    }

    const fn leading_only(mut self) -> Self {
        self.leading_only = true;
        self
    }
}

/// Every key there is. Defaults are those of [`NegotiatedParams::default`].
#[rustfmt::skip]
pub(super) const KEYS: [KeyRule; 35] = [
    // The security stage (RFC 7143, 12).
    security("AuthMethod", SecurityKey::AuthMethod),
    security("CHAP_A", SecurityKey::ChapA),
    security("CHAP_I", SecurityKey::ChapI),
    security("CHAP_C", SecurityKey::ChapC),
    security("CHAP_N", SecurityKey::ChapN),
    security("CHAP_R", SecurityKey::ChapR),
    // Who speaks, and to whom (13.4 to 13.9, 13.21, 13.26).
    declaration("InitiatorName", Place::Login, Declaration::InitiatorName),
    declaration("TargetName", Place::Login, Declaration::TargetName),
    declaration("SessionType", Place::Login, Declaration::SessionType),
    declaration("InitiatorAlias", Place::Anywhere, Declaration::InitiatorAlias),
    declaration("X#NodeArchitecture", Place::Anywhere, Declaration::NodeArchitecture),
    other("TargetAlias", Place::Anywhere, Kind::TargetOnly),
    other("TargetAddress", Place::Anywhere, Kind::TargetOnly),
    other("TargetPortalGroupTag", Place::Anywhere, Kind::TargetOnly),
    other("SendTargets", Place::FullFeature, Kind::SendTargets),
    // The connection (13.1, 13.12).
    other("HeaderDigest", Place::Operational, Kind::Digest { store: |params, kind| params.header_digest = kind }),
    other("DataDigest", Place::Operational, Kind::Digest { store: |params, kind| params.data_digest = kind }),
    other("MaxRecvDataSegmentLength", Place::OperationalAndFullFeature, Kind::SegmentLength),
    // The session (13.2, 13.10 to 13.20).
    number("MaxConnections", (1, 65_535), Pick::Min, |it| it.max_connections,
        |params, n| params.max_connections = n).normal_only(),
    boolean("InitialR2T", Logic::Or, false, |params, yes| params.initial_r2t = yes),
    boolean("ImmediateData", Logic::And, true, |params, yes| params.immediate_data = yes),
    number("MaxBurstLength", (SEGMENT_MIN, SEGMENT_MAX), Pick::Min, |_| limits::BURST_BYTES_MAX,
        |params, n| params.max_burst = n).normal_only(),
    number("FirstBurstLength", (SEGMENT_MIN, SEGMENT_MAX), Pick::Min,
        |it| limits::FIRST_BURST_BYTES_MAX.min(it.params.max_burst),
        |params, n| params.first_burst = n).normal_only(),
    number("DefaultTime2Wait", (0, 3600), Pick::Max, |_| 0, |params, n| params.time2wait_s = n),
    number("DefaultTime2Retain", (0, 3600), Pick::Min, |_| 0, |params, n| params.time2retain_s = n),
    number("MaxOutstandingR2T", (1, 65_535), Pick::Min, |_| limits::OUTSTANDING_R2T_MAX,
        |params, n| params.max_outstanding_r2t = n).normal_only(),
    boolean("DataPDUInOrder", Logic::Or, true, |params, yes| params.data_pdu_in_order = yes),
    boolean("DataSequenceInOrder", Logic::Or, true, |params, yes| params.data_sequence_in_order = yes),
    number("ErrorRecoveryLevel", (0, 2), Pick::Min, |_| 0, |params, n| params.error_recovery_level = n),
    // Which features (13.23, 13.24): what RFC 7143 asks for, nothing of RFC 7144.
    other("TaskReporting", Place::Operational, Kind::Choice { ours: "RFC3720" }).normal_only().leading_only(),
    number("iSCSIProtocolLevel", (0, 31), Pick::Min, |_| 1, |_, _| {}).normal_only(),
    // Obsolete (13.25).
    other("IFMarker", Place::Operational, Kind::Marker),
    other("OFMarker", Place::Operational, Kind::Marker),
    other("IFMarkInt", Place::Operational, Kind::MarkerInterval),
    other("OFMarkInt", Place::Operational, Kind::MarkerInterval),
];

const SEEN_WIDTH: usize = u64::BITS as usize;
const _: () = assert!(KEYS.len() <= SEEN_WIDTH);

/// The rule of a key and its place in the table. Names are case-sensitive (6.1).
pub(super) fn rule_of(key: &str) -> Option<(usize, &'static KeyRule)> {
    KEYS.iter().enumerate().find(|(_, rule)| rule.name == key)
}

const NOT_UNDERSTOOD: &str = "NotUnderstood";
const IRRELEVANT: &str = "Irrelevant";
const REJECT: &str = "Reject";

/// Settles offers one by one and remembers which keys were settled.
#[derive(Debug)]
pub struct Negotiator {
    kind: SessionKind,
    params: NegotiatedParams,
    /// What we grant as MaxConnections.
    max_connections: u32,
    /// The first connection of its session: it settles what holds for all of them.
    leading: bool,
    /// One bit a row of `KEYS`.
    seen: u64,
    segment_declared: bool,
}

impl Negotiator {
    /// The start of a leading login: the RFC's defaults hold on both sides, also for the segments that we take.
    pub fn new(kind: SessionKind, max_connections: u32) -> Self {
        let params =
            NegotiatedParams { max_recv_segment: DEFAULT_SEGMENT_BYTES, ..NegotiatedParams::default() };
        Self { kind, params, max_connections, leading: true, seen: 0, segment_declared: false }
    }

    /// The start of a login that joins a session: what is the session's holds, what is a connection's begins at the
    /// defaults.
    pub fn joining(session: NegotiatedParams) -> Self {
        let fresh = NegotiatedParams::default();
        let params = NegotiatedParams {
            header_digest: fresh.header_digest,
            data_digest: fresh.data_digest,
            max_send_segment: fresh.max_send_segment,
            max_recv_segment: DEFAULT_SEGMENT_BYTES,
            ..session
        };
        let max_connections = params.max_connections;
        let kind = SessionKind::Normal;
        Self { kind, params, max_connections, leading: false, seen: 0, segment_declared: false }
    }

    /// Answers one offer that is neither a declaration of names nor part of the security conversation; those
    /// are the caller's, and only checked for their place here.
    pub(super) fn settle(
        &mut self,
        phase: Phase,
        key: &str,
        value: &str,
        answers: &mut TextWriter,
    ) -> Result<(), NegotiationError> {
        let Some((index, rule)) = rule_of(key) else {
            answers.push(key, NOT_UNDERSTOOD);
            return Ok(());
        };
        if !rule.place.allows(phase) {
            if phase == Phase::FullFeature {
                answers.push(key, REJECT);
                return Ok(());
            }
            return Err(NegotiationError::OutOfPlace(rule.name));
        }
        if rule.may_repeat() {
            if matches!(rule.kind, Kind::TargetOnly) && ![NOT_UNDERSTOOD, IRRELEVANT, REJECT].contains(&value)
            {
                answers.push(key, REJECT);
            }
            return Ok(());
        }
        let bit = 1 << index;
        if self.seen & bit != 0 {
            return Err(NegotiationError::Repeated(rule.name));
        }
        self.seen |= bit;
        let is_settled = rule.leading_only && !self.leading;
        if is_settled || rule.normal_only && self.kind == SessionKind::Discovery {
            answers.push(key, IRRELEVANT);
            return Ok(());
        }
        self.apply(rule, value, answers)
    }

    fn apply(
        &mut self,
        rule: &'static KeyRule,
        value: &str,
        answers: &mut TextWriter,
    ) -> Result<(), NegotiationError> {
        match rule.kind {
            Kind::Number { bounds, pick, ours, store } => match number_within(value, bounds) {
                Some(offer) => {
                    let ours = ours(self);
                    let result = if pick == Pick::Min { offer.min(ours) } else { offer.max(ours) };
                    store(&mut self.params, result);
                    answers.push(rule.name, &result.to_string());
                }
                None => answers.push(rule.name, REJECT),
            },
            Kind::Boolean { logic, ours, store } => match yes_or_no(value) {
                Some(offer) => {
                    let result = if logic == Logic::And { offer && ours } else { offer || ours };
                    store(&mut self.params, result);
                    answers.push(rule.name, if result { "Yes" } else { "No" });
                }
                None => answers.push(rule.name, REJECT),
            },
            Kind::Digest { store } => match list_items(value).find_map(digest_named) {
                Some((name, digest)) => {
                    store(&mut self.params, digest);
                    answers.push(rule.name, name);
                }
                None => answers.push(rule.name, REJECT),
            },
            Kind::Choice { ours } => {
                let offered = list_items(value).any(|item| item == ours);
                answers.push(rule.name, if offered { ours } else { REJECT });
            }
            Kind::Marker => answers.push(rule.name, if yes_or_no(value).is_some() { "No" } else { REJECT }),
            Kind::MarkerInterval => answers.push(rule.name, REJECT),
            Kind::SegmentLength => {
                let declared = number_within(value, (SEGMENT_MIN, SEGMENT_MAX))
                    .ok_or(NegotiationError::BadDeclaration(rule.name))?;
                self.params.max_send_segment = declared.min(limits::SEND_SEGMENT_BYTES_MAX);
            }
            Kind::Declaration(_) | Kind::Security(_) | Kind::TargetOnly | Kind::SendTargets => {}
        }
        Ok(())
    }

    /// Looks ahead for MaxBurstLength, because FirstBurstLength must not exceed it (13.14) and may stand first.
    pub(super) fn look_ahead(&mut self, keys: &TextKeys) {
        if !self.leading {
            return;
        }
        let offer =
            keys.get("MaxBurstLength").and_then(|value| number_within(value, (SEGMENT_MIN, SEGMENT_MAX)));
        if let Some(offer) = offer {
            self.params.max_burst = offer.min(limits::BURST_BYTES_MAX);
        }
    }

    /// Declares, once, the longest segment we take (13.12).
    pub(super) fn declare_segment(&mut self, answers: &mut TextWriter) {
        if !self.segment_declared {
            self.segment_declared = true;
            self.params.max_recv_segment = limits::RECV_SEGMENT_BYTES_MAX;
            answers.push("MaxRecvDataSegmentLength", &limits::RECV_SEGMENT_BYTES_MAX.to_string());
        }
    }

    /// What was settled. FirstBurstLength may have been settled before a lower MaxBurstLength: the lower holds.
    pub fn finish(self) -> NegotiatedParams {
        let first_burst = self.params.first_burst.min(self.params.max_burst);
        NegotiatedParams { first_burst, ..self.params }
    }
}

impl KeyRule {
    /// Declarations and security keys keep their own account; the target's keys may only be commented upon.
    fn may_repeat(&self) -> bool {
        matches!(self.kind, Kind::Declaration(_) | Kind::Security(_) | Kind::TargetOnly)
    }
}

/// What a text negotiation in full-feature phase comes to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct TextOutcome {
    pub answers: TextWriter,
    /// Asked for; its answer (`discovery::send_targets`) follows the others.
    pub send_targets: Option<SendTargets>,
}

/// Answers one complete text of the full-feature phase (RFC 7143, 6.2). `params` changes only when all went
/// well; a breach of protocol deserves a Reject.
pub fn negotiate_text(
    keys: &TextKeys,
    kind: SessionKind,
    params: &mut NegotiatedParams,
) -> Result<TextOutcome, NegotiationError> {
    let mut negotiator = Negotiator {
        kind,
        params: params.clone(),
        max_connections: params.max_connections,
        leading: true,
        seen: 0,
        segment_declared: params.is_segment_declared(),
    };
    let mut outcome = TextOutcome::default();
    for (key, value) in keys.iter() {
        negotiator.settle(Phase::FullFeature, key, value, &mut outcome.answers)?;
        if key == "SendTargets" {
            outcome.send_targets = Some(SendTargets::parse(value));
        }
    }
    negotiator.declare_segment(&mut outcome.answers);
    *params = negotiator.finish();
    Ok(outcome)
}

/// MaxRecvDataSegmentLength until it is declared (13.12).
const DEFAULT_SEGMENT_BYTES: u32 = 8192;

fn number_within(value: &str, bounds: (u32, u32)) -> Option<u32> {
    let number = u32::try_from(parse_number(value)?).ok()?;
    (bounds.0..=bounds.1).contains(&number).then_some(number)
}

fn yes_or_no(value: &str) -> Option<bool> {
    match value {
        "Yes" => Some(true),
        "No" => Some(false),
        _ => None,
    }
}

fn digest_named(name: &str) -> Option<(&'static str, DigestKind)> {
    match name {
        "None" => Some(("None", DigestKind::None)),
        "CRC32C" => Some(("CRC32C", DigestKind::Crc32c)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Offers pairs as one operational text; returns the answers and what was settled.
    fn negotiate(
        kind: SessionKind,
        offers: &[(&str, &str)],
    ) -> Result<(Vec<(String, String)>, NegotiatedParams), NegotiationError> {
        let mut offer = TextWriter::default();
        for (key, value) in offers {
            offer.push(key, value);
        }
        let keys = TextKeys::parse(offer.into_bytes()).unwrap();
        let mut negotiator = Negotiator::new(kind, 4);
        let mut answers = TextWriter::default();
        negotiator.look_ahead(&keys);
        for (key, value) in keys.iter() {
            negotiator.settle(Phase::LoginOperational, key, value, &mut answers)?;
        }
        Ok((pairs(answers), negotiator.finish()))
    }

    fn pairs(text: TextWriter) -> Vec<(String, String)> {
        let keys = TextKeys::parse(text.into_bytes()).unwrap();
        keys.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    fn answer(key: &str, value: &str) -> String {
        let (answers, _) = negotiate(SessionKind::Normal, &[(key, value)]).unwrap();
        let [(name, answer)] = &answers[..] else { panic!("{key}={value} was answered with {answers:?}") };
        assert_eq!(name, key);
        answer.clone()
    }

    #[test]
    fn every_key_is_settled_by_its_rule() {
        for (key, offer, expected) in [
            ("HeaderDigest", "CRC32C,None", "CRC32C"),
            ("HeaderDigest", "None,CRC32C", "None"),
            ("DataDigest", "X-md9,CRC32C", "CRC32C"),
            ("DataDigest", "X-md9", "Reject"),
            ("MaxConnections", "8", "4"),
            ("MaxConnections", "2", "2"),
            ("MaxConnections", "0", "Reject"),
            ("MaxConnections", "65536", "Reject"),
            ("InitialR2T", "No", "No"),
            ("InitialR2T", "Yes", "Yes"),
            ("InitialR2T", "yes", "Reject"),
            ("ImmediateData", "No", "No"),
            ("ImmediateData", "Yes", "Yes"),
            ("MaxBurstLength", "16776192", "1048576"),
            ("MaxBurstLength", "512", "512"),
            ("MaxBurstLength", "0x400", "1024"),
            ("MaxBurstLength", "511", "Reject"),
            ("MaxBurstLength", "16777216", "Reject"),
            ("MaxBurstLength", "-1", "Reject"),
            ("FirstBurstLength", "65536", "65536"),
            ("FirstBurstLength", "16777215", "262144"),
            ("DefaultTime2Wait", "2", "2"),
            ("DefaultTime2Wait", "3601", "Reject"),
            ("DefaultTime2Retain", "20", "0"),
            ("MaxOutstandingR2T", "16", "1"),
            ("DataPDUInOrder", "No", "Yes"),
            ("DataSequenceInOrder", "No", "Yes"),
            ("ErrorRecoveryLevel", "2", "0"),
            ("ErrorRecoveryLevel", "3", "Reject"),
            ("TaskReporting", "FastAbort,RFC3720", "RFC3720"),
            ("TaskReporting", "FastAbort", "Reject"),
            ("iSCSIProtocolLevel", "2", "1"),
            ("iSCSIProtocolLevel", "0", "0"),
            ("IFMarker", "No", "No"),
            ("OFMarker", "Yes", "No"),
            ("IFMarkInt", "2048~8192", "Reject"),
            ("OFMarkInt", "Irrelevant", "Reject"),
            ("X-com.example.fast", "Yes", "NotUnderstood"),
            ("RDMAExtensions", "Yes", "NotUnderstood"),
            ("initialr2t", "No", "NotUnderstood"),
            ("TargetAlias", "mine", "Reject"),
        ] {
            assert_eq!(answer(key, offer), expected, "{key}={offer}");
        }
    }

    #[test]
    fn a_key_that_is_never_offered_keeps_its_default() {
        let (answers, params) = negotiate(SessionKind::Normal, &[]).unwrap();
        assert!(answers.is_empty());
        // Nothing was declared by us either, so that the initiator sends at most 8192 bytes.
        assert_eq!(params, NegotiatedParams { max_recv_segment: 8192, ..NegotiatedParams::default() });
    }

    #[test]
    fn a_rejected_offer_leaves_the_default() {
        let (_, params) =
            negotiate(SessionKind::Normal, &[("MaxBurstLength", "1"), ("ErrorRecoveryLevel", "9")]).unwrap();
        assert_eq!((params.max_burst, params.error_recovery_level), (262_144, 0));
    }

    #[test]
    fn first_burst_never_exceeds_max_burst_in_either_order() {
        let (first, max) = (("FirstBurstLength", "65536"), ("MaxBurstLength", "4096"));
        for offers in [[first, max], [max, first]] {
            let (answers, params) = negotiate(SessionKind::Normal, &offers).unwrap();
            assert!(answers.iter().all(|(_, value)| value == "4096"), "{answers:?}");
            assert_eq!((params.first_burst, params.max_burst), (4096, 4096));
        }
    }

    #[test]
    fn declarations_are_noted_and_not_answered() {
        let (answers, params) = negotiate(
            SessionKind::Normal,
            &[
                ("MaxRecvDataSegmentLength", "16777215"),
                ("X#NodeArchitecture", "x"),
                ("TargetAlias", "NotUnderstood"),
            ],
        )
        .unwrap();
        assert!(answers.is_empty(), "{answers:?}");
        assert_eq!(params.max_send_segment, limits::SEND_SEGMENT_BYTES_MAX);
    }

    #[test]
    fn an_illegal_segment_length_ends_the_negotiation() {
        for value in ["511", "16777216", "Reject", ""] {
            let error = negotiate(SessionKind::Normal, &[("MaxRecvDataSegmentLength", value)]).unwrap_err();
            assert_eq!(error, NegotiationError::BadDeclaration("MaxRecvDataSegmentLength"));
        }
    }

    #[test]
    fn repeated_and_misplaced_keys_end_the_negotiation() {
        let twice = [("InitialR2T", "No"), ("InitialR2T", "No")];
        assert_eq!(
            negotiate(SessionKind::Normal, &twice).unwrap_err(),
            NegotiationError::Repeated("InitialR2T")
        );
        for key in ["AuthMethod", "CHAP_A", "CHAP_R", "SendTargets"] {
            let error = negotiate(SessionKind::Normal, &[(key, "None")]).unwrap_err();
            assert_eq!(error, NegotiationError::OutOfPlace(key));
        }
        let mut negotiator = Negotiator::new(SessionKind::Normal, 4);
        let mut answers = TextWriter::default();
        let early = negotiator.settle(Phase::LoginSecurity, "InitialR2T", "No", &mut answers);
        assert_eq!(early, Err(NegotiationError::OutOfPlace("InitialR2T")));
    }

    #[test]
    fn unknown_keys_may_repeat() {
        let (answers, _) = negotiate(SessionKind::Normal, &[("X-a", "1"), ("X-a", "1")]).unwrap();
        assert_eq!(answers.len(), 2);
    }

    #[test]
    fn a_discovery_session_finds_most_keys_irrelevant() {
        let offers = [
            ("InitialR2T", "No"),
            ("MaxBurstLength", "512"),
            ("ErrorRecoveryLevel", "0"),
            ("HeaderDigest", "CRC32C"),
        ];
        let (answers, params) = negotiate(SessionKind::Discovery, &offers).unwrap();
        let values: Vec<_> = answers.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(values, ["Irrelevant", "Irrelevant", "0", "CRC32C"]);
        assert_eq!(params.header_digest, DigestKind::Crc32c);
    }

    #[test]
    fn our_segment_length_is_declared_once() {
        let mut negotiator = Negotiator::new(SessionKind::Normal, 4);
        let mut answers = TextWriter::default();
        negotiator.declare_segment(&mut answers);
        negotiator.declare_segment(&mut answers);
        assert_eq!(answers.as_bytes(), b"MaxRecvDataSegmentLength=262144\0");
        assert_eq!(negotiator.finish().max_recv_segment, limits::RECV_SEGMENT_BYTES_MAX);
    }

    #[test]
    fn a_joining_login_settles_its_connection_only() {
        let session = NegotiatedParams {
            max_burst: 4096,
            first_burst: 2048,
            max_connections: 3,
            header_digest: DigestKind::Crc32c,
            max_send_segment: 512,
            ..NegotiatedParams::default()
        };
        let mut negotiator = Negotiator::joining(session.clone());
        let offers = "HeaderDigest=None\0DataDigest=CRC32C\0MaxBurstLength=512\0InitialR2T=No\0\
                      MaxConnections=8\0MaxRecvDataSegmentLength=65536\0ErrorRecoveryLevel=0\0";
        let keys = text(offers.as_bytes());
        let mut answers = TextWriter::default();
        negotiator.look_ahead(&keys);
        for (key, value) in keys.iter() {
            negotiator.settle(Phase::LoginOperational, key, value, &mut answers).unwrap();
        }
        let answers = pairs(answers);
        let values: Vec<_> = answers.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(values, ["None", "CRC32C", "Irrelevant", "Irrelevant", "Irrelevant", "Irrelevant"]);
        let expected = NegotiatedParams {
            header_digest: DigestKind::None,
            data_digest: DigestKind::Crc32c,
            max_send_segment: 65_536,
            max_recv_segment: DEFAULT_SEGMENT_BYTES,
            ..session
        };
        assert_eq!(negotiator.finish(), expected);
    }

    fn text(text: &[u8]) -> TextKeys {
        TextKeys::parse(text.to_vec()).unwrap()
    }

    #[test]
    fn full_feature_text_may_declare_a_segment_length_and_ask_for_targets() {
        let mut params = NegotiatedParams::default();
        let keys =
            text(b"MaxRecvDataSegmentLength=4096\0SendTargets=All\0X-a=1\0InitialR2T=No\0InitiatorName=a\0");
        let outcome = negotiate_text(&keys, SessionKind::Discovery, &mut params).unwrap();
        assert_eq!(params, NegotiatedParams { max_send_segment: 4096, ..NegotiatedParams::default() });
        assert_eq!(outcome.send_targets, Some(SendTargets::All));
        let answers = pairs(outcome.answers);
        let answers: Vec<_> = answers.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(
            answers,
            [("X-a", "NotUnderstood"), ("InitialR2T", "Reject"), ("InitiatorName", "Reject")]
        );
    }

    #[test]
    fn what_login_did_not_declare_is_declared_by_the_first_text() {
        let mut params = NegotiatedParams { max_recv_segment: DEFAULT_SEGMENT_BYTES, ..Default::default() };
        for expected in [&b"MaxRecvDataSegmentLength=262144\0"[..], b""] {
            let outcome = negotiate_text(&text(b""), SessionKind::Normal, &mut params).unwrap();
            assert_eq!(outcome.answers.as_bytes(), expected);
            assert!(params.is_segment_declared());
        }
    }

    #[test]
    fn a_failed_text_negotiation_changes_nothing() {
        let mut params = NegotiatedParams::default();
        let keys = text(b"MaxRecvDataSegmentLength=4096\0SendTargets=All\0SendTargets=All\0");
        let error = negotiate_text(&keys, SessionKind::Discovery, &mut params).unwrap_err();
        assert_eq!(error, NegotiationError::Repeated("SendTargets"));
        assert_eq!(params, NegotiatedParams::default());
    }

    #[test]
    fn names_in_the_table_are_distinct() {
        for (at, rule) in KEYS.iter().enumerate() {
            assert_eq!(rule_of(rule.name).map(|(index, _)| index), Some(at));
        }
    }

    proptest! {
        #[test]
        fn whatever_is_offered_the_result_is_within_bounds(
            offers in prop::collection::vec(
                (prop::sample::select(KEYS.iter().map(|rule| rule.name).collect::<Vec<_>>()), "Yes|No|None|CRC32C|[0-9]{1,9}|0x[0-9a-f]{1,7}|[ -~]{0,12}"),
                0..24,
            ),
        ) {
            let offers: Vec<_> = offers.iter().map(|(key, value)| (*key, value.as_str())).collect();
            if let Ok((_, params)) = negotiate(SessionKind::Normal, &offers) {
                prop_assert!((512..=limits::SEND_SEGMENT_BYTES_MAX).contains(&params.max_send_segment));
                prop_assert!((512..=limits::BURST_BYTES_MAX).contains(&params.max_burst));
                prop_assert!((512..=params.max_burst).contains(&params.first_burst));
                prop_assert!(params.first_burst <= limits::FIRST_BURST_BYTES_MAX);
                prop_assert!((1..=4).contains(&params.max_connections));
                prop_assert_eq!(params.error_recovery_level, 0);
                prop_assert_eq!(params.max_outstanding_r2t, 1);
                prop_assert!(params.time2wait_s <= 3600 && params.time2retain_s <= 3600);
                prop_assert!(params.data_pdu_in_order && params.data_sequence_in_order);
            }
        }
    }
}
