//! The login phase of one connection (RFC 7143, 6.3, 11.12, 11.13): from the first byte to full feature.
//!
//! Knows stages, the order of PDUs and who may pass. Does not know which targets exist (the shard answers
//! [`LoginEvent::TargetNamed`]), sockets, time or randomness. How long a login may take is the shard's to limit.

mod failure;
mod security;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

pub use self::failure::LoginFailure;
use self::security::{Security, SecurityKeys};
use super::chap::AuthPolicy;
use super::name;
use super::negotiate::{Declaration, Kind, NegotiationError, Negotiator, Phase, SessionKind, rule_of};
use super::params::{Cid, Isid, NegotiatedParams, Tsih};
use super::pdu::WindowSnapshot;
use super::pdu::bhs::{Bhs, pad_len};
use super::pdu::login::{LoginRequest, LoginResponse, LoginStatus, Stage};
use super::pdu::opcode::RequestOpcode;
use super::serial::{CmdSn, StatSn};
use super::text_keys::{TextCollector, TextKeys, TextWriter, write_pair};
use crate::limits;

/// The only version of iSCSI there is (11.12.4).
const VERSION: u8 = 0;

/// What the shard has to know, in this order.
#[derive(Debug)]
pub enum LoginEvent {
    /// The first text names the target, or asks for discovery. Comes once, before any response that depends on
    /// it; the login waits for [`LoginMachine::target_answer`], perhaps on another core. Names are normalized
    /// (`name::normalize`). A TSIH that is not zero asks to join or to mend a session.
    TargetNamed {
        initiator: String,
        /// `None`: a discovery session.
        target: Option<String>,
        isid: Isid,
        tsih: Tsih,
        cid: Cid,
    },
    /// The final response is queued; what comes next belongs to the session.
    Established(Box<Established>),
    /// The response that says so, if any, is queued: send it, then close.
    Failed(LoginFailure),
}

/// What a successful login has settled.
#[derive(Debug)]
pub struct Established {
    pub initiator_name: String,
    pub initiator_alias: Option<String>,
    pub target_name: Option<String>,
    pub session_kind: SessionKind,
    pub isid: Isid,
    /// Never zero: as given with [`TargetAnswer::Accept`], or that of the session which is joined.
    pub tsih: Tsih,
    /// It is one more connection of an existing session.
    pub joins: bool,
    pub cid: Cid,
    pub params: NegotiatedParams,
    /// Of the first response after login.
    pub next_stat_sn: StatSn,
    /// Of the first command after login that is not immediate.
    pub exp_cmd_sn: CmdSn,
    /// Of the window the initiator was told, where the session begins here.
    pub queue_depth: u32,
}

/// What the shard says about the target that was named.
#[derive(Debug)]
pub enum TargetAnswer {
    Accept {
        auth: AuthPolicy,
        /// TargetPortalGroupTag (13.9); unused in a discovery session.
        portal_group: u16,
        target_alias: Option<String>,
        /// The session's handle; must not be zero.
        tsih_for_new_session: Tsih,
        /// The most connections the session may have (13.2).
        max_connections: u32,
    },
    /// The TSIH names a session of this initiator, and the connection may join it.
    Join {
        auth: AuthPolicy,
        portal_group: u16,
        /// What the leading login of the session has settled.
        params: NegotiatedParams,
        /// The session's, as it is now.
        window: WindowSnapshot,
    },
    NotFound,
    /// The initiator may not use this target.
    Forbidden,
    Unavailable,
    /// `address` as it stands in TargetAddress: `192.0.2.1:3260` or `[2001:db8::1]:3260`, with `,tag` or without.
    Moved {
        address: String,
        permanent: bool,
    },
    TooManyConnections,
    SessionDoesNotExist,
    OutOfResources,
}

/// The target's half of one login. The stage of the connection and CSG, T, NSG of a request decide:
///
/// | stage \ request | 0 stay | 0 to 1 | 0 to 3 | 1 stay | 1 to 3 | other  |
/// |-----------------|--------|--------|--------|--------|--------|--------|
/// | start           | 0      | 1      | 3      | 1      | 3      | 0x0200 |
/// | security (0)    | 0      | 1      | 3      | 0x0200 | 0x0200 | 0x0200 |
/// | operational (1) | 0x0200 | 0x0200 | 0x0200 | 1      | 3      | 0x0200 |
///
/// A number is the stage after the answer, when the initiator may pass; while it may not (CHAP goes on, or a text
/// does) the stage stays and the answer has T=0. A target that wants CHAP refuses a start in stage 1, or leaving
/// stage 0 without having offered AuthMethod, with 0x0201.
#[derive(Debug)]
pub struct LoginMachine {
    state: State,
    random: [u8; 32],
    /// Commands the window of a new session holds.
    queue_depth: u32,
    pdus: u32,
    stat_sn: StatSn,
    /// Text of the initiator that goes on (C bit).
    text: TextCollector,
    /// Our text that does not fit into one PDU.
    answers: TextWriter,
    events: VecDeque<LoginEvent>,
    out: Vec<u8>,
}

#[derive(Debug)]
enum State {
    /// No Login Request came.
    Silent,
    /// The first text is not complete.
    Opening {
        first: LoginRequest,
    },
    /// The shard is asked about the target.
    Asking {
        first: LoginRequest,
        last: LoginRequest,
        names: Names,
        keys: TextKeys,
    },
    Negotiating(Box<Conversation>),
    /// Established or failed.
    Over,
}

/// What the first text says about the two ends (13.4, 13.5, 13.21).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Names {
    initiator: String,
    target: Option<String>,
    kind: SessionKind,
}

/// How an initiator may be here: as a new session, or as a connection of `session`.
struct Grant {
    auth: AuthPolicy,
    portal_group: u16,
    alias: Option<String>,
    tsih: Tsih,
    window: WindowSnapshot,
    max_connections: u32,
    session: Option<NegotiatedParams>,
}

/// A login whose target is known.
#[derive(Debug)]
struct Conversation {
    first: LoginRequest,
    names: Names,
    alias: Option<String>,
    tsih: Tsih,
    joins: bool,
    window: WindowSnapshot,
    stage: Stage,
    security: Security,
    negotiator: Negotiator,
}

impl LoginMachine {
    /// `random`: fresh and unpredictable for every connection; CHAP challenges are made of it.
    /// A session that begins here has a window of `queue_depth` commands, one at least.
    pub fn new(random: [u8; 32], queue_depth: u32) -> Self {
        Self {
            state: State::Silent,
            random,
            queue_depth: queue_depth.clamp(1, limits::COMMAND_WINDOW_MAX),
            pdus: 0,
            stat_sn: StatSn(0),
            text: TextCollector::default(),
            answers: TextWriter::default(),
            events: VecDeque::new(),
            out: Vec::new(),
        }
    }

    /// The window of a new session. Login Requests are immediate: none of them moves it (4.2.2.1). It is told from the first
    /// response on, because a MaxCmdSN that went back would be ignored.
    fn window_from(&self, cmd_sn: CmdSn) -> WindowSnapshot {
        WindowSnapshot { exp_cmd_sn: cmd_sn, max_cmd_sn: cmd_sn.plus(self.queue_depth - 1) }
    }

    /// Takes one complete PDU, its data segment without padding. After the end of the login it does nothing.
    pub fn handle_pdu(&mut self, bhs: &Bhs, data: &[u8]) {
        if matches!(self.state, State::Over) {
            return;
        }
        if bhs.opcode() != RequestOpcode::Login as u8 {
            let failure = match self.state {
                State::Silent => LoginFailure::NotLogin(bhs.opcode()),
                _ => LoginFailure::InvalidDuringLogin(bhs.opcode()),
            };
            return self.fail(failure);
        }
        let request = LoginRequest::decode(bhs);
        if matches!(self.state, State::Silent) {
            // The initiator's ExpStatSN means nothing yet (11.12.9); starting there pleases those that expect it.
            self.stat_sn = request.exp_stat_sn;
            self.state = State::Opening { first: request };
        }
        if let Err(failure) = self.handle_request(&request, data) {
            self.fail(failure);
        }
    }

    /// The answer to [`LoginEvent::TargetNamed`]; at any other time it does nothing.
    pub fn target_answer(&mut self, answer: TargetAnswer) {
        if !matches!(self.state, State::Asking { .. }) {
            return;
        }
        if let Err(failure) = self.handle_answer(answer) {
            self.fail(failure);
        }
    }

    pub fn poll_event(&mut self) -> Option<LoginEvent> {
        self.events.pop_front()
    }

    /// Appends all queued response PDUs, padded; true if there were any. Login has no digests (6.3).
    pub fn poll_output(&mut self, out: &mut Vec<u8>) -> bool {
        let any = !self.out.is_empty();
        out.append(&mut self.out);
        any
    }

    fn handle_request(&mut self, request: &LoginRequest, data: &[u8]) -> Result<(), LoginFailure> {
        self.pdus += 1;
        if self.pdus > limits::LOGIN_PDUS_MAX {
            return Err(LoginFailure::TooManyPdus);
        }
        let (first, stage) = match &self.state {
            State::Opening { first } => (*first, None),
            State::Negotiating(conversation) => (conversation.first, Some(conversation.stage)),
            State::Silent | State::Asking { .. } | State::Over => return Err(LoginFailure::Impatient),
        };
        check_constants(&first, request)?;
        // A first text that is continued has a stage already: that of its first PDU.
        let stage = stage.or(if self.pdus > 1 { first.current_stage } else { None });
        check_stages(stage, request)?;
        if data.len() > limits::LOGIN_SEGMENT_BYTES_MAX as usize {
            return Err(LoginFailure::SegmentTooLong);
        }
        if !self.answers.is_empty() {
            // Our text goes on: the initiator only says that it got the last piece.
            if !data.is_empty() || request.text_continues {
                return Err(LoginFailure::TextInsideAnswer);
            }
            return self.answer(request);
        }
        self.text.push(data)?;
        if request.text_continues {
            self.respond(request, None, false, LoginStatus::SUCCESS, &[]);
            return Ok(());
        }
        let keys = self.text.finish()?;
        match core::mem::replace(&mut self.state, State::Over) {
            State::Opening { first } => self.ask(first, *request, keys),
            State::Negotiating(mut conversation) => {
                let settled = conversation.handle_text(&keys, &mut self.answers);
                self.state = State::Negotiating(conversation);
                settled?;
                self.answer(request)
            }
            State::Silent | State::Asking { .. } | State::Over => Err(LoginFailure::Impatient),
        }
    }

    /// The first text is complete: who wants to talk to whom?
    fn ask(&mut self, first: LoginRequest, last: LoginRequest, keys: TextKeys) -> Result<(), LoginFailure> {
        // The response to a failure needs the header fields.
        self.state = State::Opening { first };
        let names = Names::of(&keys)?;
        self.events.push_back(LoginEvent::TargetNamed {
            initiator: names.initiator.clone(),
            target: names.target.clone(),
            isid: first.isid,
            tsih: first.tsih,
            cid: first.cid,
        });
        self.state = State::Asking { first, last, names, keys };
        Ok(())
    }

    fn handle_answer(&mut self, answer: TargetAnswer) -> Result<(), LoginFailure> {
        let State::Asking { first, .. } = &self.state else { return Ok(()) };
        let first = *first;
        let grant = match answer {
            // A session that was to be joined is not there.
            TargetAnswer::Accept { .. } if first.tsih != Tsih(0) => {
                return Err(LoginFailure::SessionDoesNotExist);
            }
            TargetAnswer::Accept {
                auth,
                portal_group,
                target_alias,
                tsih_for_new_session: tsih,
                max_connections,
            } => Grant {
                auth,
                portal_group,
                alias: target_alias,
                tsih,
                window: self.window_from(first.cmd_sn),
                max_connections,
                session: None,
            },
            TargetAnswer::Join { auth, portal_group, params, window } => Grant {
                auth,
                portal_group,
                alias: None,
                tsih: first.tsih,
                window,
                max_connections: params.max_connections,
                session: Some(params),
            },
            TargetAnswer::NotFound => return Err(LoginFailure::NotFound),
            TargetAnswer::Forbidden => return Err(LoginFailure::Forbidden),
            TargetAnswer::Unavailable => return Err(LoginFailure::Unavailable),
            TargetAnswer::Moved { address, permanent } => {
                return Err(LoginFailure::Moved { address, permanent });
            }
            TargetAnswer::TooManyConnections => return Err(LoginFailure::TooManyConnections),
            TargetAnswer::SessionDoesNotExist => return Err(LoginFailure::SessionDoesNotExist),
            TargetAnswer::OutOfResources => return Err(LoginFailure::OutOfResources),
        };
        debug_assert!(grant.tsih != Tsih(0));
        self.converse(grant)
    }

    /// Begins to negotiate with an initiator that may be here.
    fn converse(&mut self, grant: Grant) -> Result<(), LoginFailure> {
        let State::Asking { first, last, names, keys } = core::mem::replace(&mut self.state, State::Over)
        else {
            return Ok(());
        };
        if names.kind == SessionKind::Normal {
            self.answers.push("TargetPortalGroupTag", &grant.portal_group.to_string());
            if let Some(alias) = grant.alias {
                self.answers.push("TargetAlias", &alias);
            }
        }
        let joins = grant.session.is_some();
        let negotiator = match grant.session {
            Some(params) => Negotiator::joining(params),
            None => Negotiator::new(names.kind, grant.max_connections),
        };
        let mut conversation = Box::new(Conversation {
            first,
            alias: None,
            tsih: grant.tsih,
            joins,
            window: grant.window,
            stage: first.current_stage.unwrap_or(Stage::SecurityNegotiation),
            security: Security::new(grant.auth, self.random),
            negotiator,
            names,
        });
        let settled = conversation.handle_text(&keys, &mut self.answers);
        self.state = State::Negotiating(conversation);
        settled?;
        self.answer(&last)
    }

    /// Sends the next piece of our text, and takes the step the initiator asks for once all of it is out.
    fn answer(&mut self, request: &LoginRequest) -> Result<(), LoginFailure> {
        let State::Negotiating(conversation) = &mut self.state else { return Ok(()) };
        let text = self.answers.take_front(limits::LOGIN_SEGMENT_BYTES_MAX as usize);
        if !self.answers.is_empty() {
            self.respond(request, None, true, LoginStatus::SUCCESS, &text);
            return Ok(());
        }
        let next = conversation.step(request)?;
        self.respond(request, next, false, LoginStatus::SUCCESS, &text);
        if next == Some(Stage::FullFeature) {
            self.establish();
        }
        Ok(())
    }

    fn establish(&mut self) {
        let State::Negotiating(conversation) = core::mem::replace(&mut self.state, State::Over) else {
            return;
        };
        let Conversation { first, names, alias, tsih, joins, negotiator, .. } = *conversation;
        self.events.push_back(LoginEvent::Established(Box::new(Established {
            initiator_name: names.initiator,
            initiator_alias: alias,
            target_name: names.target,
            session_kind: names.kind,
            isid: first.isid,
            tsih,
            joins,
            cid: first.cid,
            params: negotiator.finish(),
            next_stat_sn: self.stat_sn,
            exp_cmd_sn: first.cmd_sn,
            queue_depth: self.queue_depth,
        })));
    }

    fn fail(&mut self, failure: LoginFailure) {
        let first = match &self.state {
            State::Opening { first } | State::Asking { first, .. } => Some(*first),
            State::Negotiating(conversation) => {
                Some(LoginRequest { current_stage: Some(conversation.stage), ..conversation.first })
            }
            State::Silent | State::Over => None,
        };
        if let (Some(first), Some(status)) = (first, failure.status()) {
            let mut text = Vec::new();
            if let LoginFailure::Moved { address, .. } = &failure {
                write_pair(&mut text, "TargetAddress", address);
            }
            self.respond(&first, None, false, status, &text);
        }
        self.state = State::Over;
        self.events.push_back(LoginEvent::Failed(failure));
    }

    /// Queues one response. The TSIH of a new session is told with the last one only (11.13.3).
    fn respond(
        &mut self,
        request: &LoginRequest,
        next: Option<Stage>,
        text_continues: bool,
        status: LoginStatus,
        text: &[u8],
    ) {
        let (tsih, window) = match &self.state {
            State::Negotiating(it) if next == Some(Stage::FullFeature) => (it.tsih, it.window),
            State::Negotiating(it) => (it.first.tsih, it.window),
            State::Opening { first } | State::Asking { first, .. } => {
                (first.tsih, self.window_from(first.cmd_sn))
            }
            State::Silent | State::Over => (request.tsih, self.window_from(request.cmd_sn)),
        };
        let data_len = text.len() as u32;
        let response = LoginResponse {
            transit: next.is_some(),
            text_continues,
            // A reserved stage is not sent back.
            current_stage: Some(request.current_stage.unwrap_or(Stage::SecurityNegotiation)),
            next_stage: next,
            version_max: VERSION,
            version_active: VERSION,
            isid: request.isid,
            tsih,
            task_tag: request.task_tag,
            stat_sn: self.stat_sn.take(),
            window,
            status,
        };
        self.out.extend_from_slice(&response.encode(data_len).0);
        self.out.extend_from_slice(text);
        self.out.extend_from_slice(&[0; 3][..pad_len(data_len) as usize]);
    }
}

impl Names {
    fn of(keys: &TextKeys) -> Result<Self, LoginFailure> {
        let kind = match keys.get("SessionType") {
            None | Some("Normal") => SessionKind::Normal,
            Some("Discovery") => SessionKind::Discovery,
            Some(_) => return Err(LoginFailure::SessionType),
        };
        let named = |key: &'static str| {
            let name = keys.get(key).map(name::normalize).transpose();
            name.map_err(|error| LoginFailure::BadName { key, error })
        };
        let initiator = named("InitiatorName")?.ok_or(LoginFailure::Missing("InitiatorName"))?;
        // A discovery session may name a target, but it is not one with that target.
        let target = match kind {
            SessionKind::Normal => Some(named("TargetName")?.ok_or(LoginFailure::Missing("TargetName"))?),
            SessionKind::Discovery => None,
        };
        Ok(Self { initiator, target, kind })
    }

    /// libiscsi declares names once more when it enters the operational stage: the same again is no change.
    fn check_repeated(&self, declaration: Declaration, value: &str) -> Result<(), NegotiationError> {
        let (same, key) = match declaration {
            Declaration::InitiatorName => {
                (name::normalize(value).as_ref() == Ok(&self.initiator), "InitiatorName")
            }
            Declaration::TargetName => {
                let same = match &self.target {
                    Some(target) => name::normalize(value).as_ref() == Ok(target),
                    None => true,
                };
                (same, "TargetName")
            }
            Declaration::SessionType => {
                let discovery = value == "Discovery";
                let known = discovery || value == "Normal";
                (known && discovery == (self.kind == SessionKind::Discovery), "SessionType")
            }
            Declaration::InitiatorAlias | Declaration::NodeArchitecture => (true, ""),
        };
        if same { Ok(()) } else { Err(NegotiationError::Repeated(key)) }
    }
}

impl Conversation {
    /// Settles every key of one complete text and appends the answers.
    fn handle_text(&mut self, keys: &TextKeys, answers: &mut TextWriter) -> Result<(), LoginFailure> {
        let phase = match self.stage {
            Stage::SecurityNegotiation => Phase::LoginSecurity,
            Stage::OperationalNegotiation | Stage::FullFeature => Phase::LoginOperational,
        };
        let mut security = SecurityKeys::default();
        if phase == Phase::LoginOperational {
            self.negotiator.look_ahead(keys);
        }
        for (key, value) in keys.iter() {
            self.negotiator.settle(phase, key, value, answers)?;
            match rule_of(key).map(|(_, rule)| rule.kind) {
                Some(Kind::Security(key)) => security.note(key, value)?,
                Some(Kind::Declaration(Declaration::InitiatorAlias)) => self.alias = Some(value.to_owned()),
                Some(Kind::Declaration(declaration)) => self.names.check_repeated(declaration, value)?,
                _ => {}
            }
        }
        self.security.handle(&security, answers)?;
        if phase == Phase::LoginOperational {
            if !self.security.satisfied() {
                return Err(LoginFailure::AuthenticationRequired);
            }
            self.negotiator.declare_segment(answers);
        }
        Ok(())
    }

    /// Takes the transition that a request asks for, if the initiator may; returns where it led.
    fn step(&mut self, request: &LoginRequest) -> Result<Option<Stage>, LoginFailure> {
        if !request.transit {
            return Ok(None);
        }
        if !self.security.satisfied() {
            // iPXE asks with every PDU of the security stage: not yet. Who never offered a method never will.
            let evades = self.security.untouched();
            return if evades { Err(LoginFailure::AuthenticationRequired) } else { Ok(None) };
        }
        if let Some(next) = request.next_stage {
            self.stage = next;
        }
        Ok(request.next_stage)
    }
}

/// What must be the same in all Login Requests of a connection (11.12).
fn check_constants(first: &LoginRequest, request: &LoginRequest) -> Result<(), LoginFailure> {
    if request.version_min > VERSION {
        return Err(LoginFailure::UnsupportedVersion(request.version_min));
    }
    if !request.immediate {
        return Err(LoginFailure::NotImmediate);
    }
    let versions = |request: &LoginRequest| (request.version_max, request.version_min);
    for (same, what) in [
        (request.isid == first.isid, "ISID"),
        (request.tsih == first.tsih, "TSIH"),
        (request.cid == first.cid, "CID"),
        (request.task_tag == first.task_tag, "Initiator Task Tag"),
        (versions(request) == versions(first), "version"),
    ] {
        if !same {
            return Err(LoginFailure::Changed(what));
        }
    }
    Ok(())
}

/// The table of [`LoginMachine`]; `stage` is `None` at the start. Returns the stage a granted request leads to.
fn check_stages(stage: Option<Stage>, request: &LoginRequest) -> Result<Stage, LoginFailure> {
    let current = match request.current_stage {
        Some(current @ (Stage::SecurityNegotiation | Stage::OperationalNegotiation)) => current,
        Some(Stage::FullFeature) | None => return Err(LoginFailure::WrongStage),
    };
    if stage.is_some_and(|stage| stage != current) {
        return Err(LoginFailure::WrongStage);
    }
    if !request.transit {
        return Ok(current);
    }
    if request.text_continues {
        return Err(LoginFailure::TransitionInsideText);
    }
    match request.next_stage {
        Some(next) if next > current => Ok(next),
        _ => Err(LoginFailure::WrongTransition),
    }
}
