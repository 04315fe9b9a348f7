//! A login as a machine (RFC 7143, section 6 and 12): requests out, answers in, nothing else.
//!
//! Knows the order of the stages and how answers become parameters. Does not know sockets, nor SCSI commands.

use super::{Negotiated, Numbers, Options, chap};
use crate::fail::{Result, failure};
use crate::keys::Keys;
use crate::wire::{Header, Login, LoginResponse, Reply};

const SECURITY: u8 = 0;
const OPERATIONAL: u8 = 1;
const FULL_FEATURE: u8 = 3;
/// No honest target needs more exchanges than this to log a session in.
const ROUNDS_MAX: usize = 24;

/// What a login wants next.
#[derive(Debug)]
pub(crate) enum Step {
    /// Send this request with this text, and bring the answer.
    Send(Header, Vec<u8>),
    Done(Negotiated, Numbers),
    /// The target has no resources for it now, or another passing reason: try again later.
    Later(String),
}

/// One login in progress.
#[derive(Debug)]
pub(crate) struct Handshake {
    options: Options,
    stage: u8,
    discovery: bool,
    /// The last request that asked to leave its stage did so with this flag.
    transit: bool,
    chose_chap: bool,
    rounds: usize,
    exp_stat_sn: u32,
    tsih: u16,
    max_cmd_sn: u32,
    /// Text of an answer that came in several PDUs.
    text: Vec<u8>,
    answers: Keys,
}

impl Handshake {
    /// Begins a login at a target, or a discovery session without one.
    pub(crate) fn begin(options: &Options, target: Option<&str>) -> (Handshake, Header, Vec<u8>) {
        let mut keys = Keys::default();
        keys.push("InitiatorName", &options.initiator_name);
        keys.push("SessionType", if target.is_some() { "Normal" } else { "Discovery" });
        if let Some(target) = target {
            keys.push("TargetName", target);
        }
        // A portal may ask for no secret at discovery; a target that was given one to ask for must ask.
        keys.push(
            "AuthMethod",
            match (&options.chap, target) {
                (None, _) => "None",
                (Some(_), None) => "CHAP,None",
                (Some(_), Some(_)) => "CHAP",
            },
        );
        let mut this = Handshake {
            transit: options.chap.is_none(),
            options: options.clone(),
            stage: SECURITY,
            discovery: target.is_none(),
            chose_chap: false,
            rounds: 0,
            exp_stat_sn: 0,
            tsih: 0,
            max_cmd_sn: 1,
            text: Vec::new(),
            answers: Keys::default(),
        };
        let (header, text) = this.request(&keys);
        (this, header, text)
    }

    fn request(&mut self, keys: &Keys) -> (Header, Vec<u8>) {
        let text = keys.encode();
        let next = if self.stage == SECURITY { OPERATIONAL } else { FULL_FEATURE };
        let request = Login {
            transit: self.transit,
            current: self.stage,
            next: if self.transit { next } else { 0 },
            data_len: text.len() as u32,
            isid: self.options.isid,
            tsih: self.tsih,
            tag: 0,
            cmd_sn: 1,
            exp_stat_sn: self.exp_stat_sn,
        };
        (request.encode(), text)
    }

    fn send(&mut self, keys: &Keys) -> Step {
        let (header, text) = self.request(keys);
        Step::Send(header, text)
    }

    /// Takes the answer to the last request. `peer` is for the sentence of a failure.
    pub(crate) fn answer(&mut self, peer: &str, header: &Header, text: &[u8]) -> Result<Step> {
        let Reply::Login(reply) = Reply::decode(header) else {
            return Err(failure!(
                "{peer} answered login with opcode {:#04x}: is it an iSCSI target?",
                header[0]
            ));
        };
        if reply.class != 0 {
            let LoginResponse { class, detail, .. } = reply;
            let told = format!("status {class:02x}{detail:02x} ({})", status_text(class, detail));
            if class == 3 {
                return Ok(Step::Later(format!("{peer} refused the login with {told}: look at its log")));
            }
            return Err(failure!("{peer} refused the login with {told}: check name and secret"));
        }
        self.rounds += 1;
        if self.rounds > ROUNDS_MAX {
            return Err(failure!("{peer} never ends the login: look at its log"));
        }
        self.exp_stat_sn = reply.stat_sn.wrapping_add(1);
        self.max_cmd_sn = reply.window.max_cmd_sn;
        self.tsih = reply.tsih;
        self.text.extend(text);
        if reply.more {
            let wanted = std::mem::replace(&mut self.transit, false);
            let step = self.send(&Keys::default());
            self.transit = wanted;
            return Ok(step);
        }
        let keys = Keys::decode(&std::mem::take(&mut self.text))?;
        if self.stage == SECURITY { self.security(&reply, &keys) } else { self.operational(&reply, &keys) }
    }

    fn security(&mut self, reply: &LoginResponse, keys: &Keys) -> Result<Step> {
        if reply.transit {
            self.stage = OPERATIONAL;
            self.transit = true;
            return Ok(self.send(&operational_keys(&self.options, self.discovery)));
        }
        let mut next = Keys::default();
        if let Some((user, secret)) = &self.options.chap {
            if keys.get("AuthMethod") == Some("None") {
                self.transit = true;
            } else if keys.get("CHAP_C").is_some() {
                next = chap::answer(keys, user, secret)?;
                self.transit = true;
            } else if !self.chose_chap {
                next.push("CHAP_A", 5);
                self.chose_chap = true;
            }
        }
        Ok(self.send(&next))
    }

    fn operational(&mut self, reply: &LoginResponse, keys: &Keys) -> Result<Step> {
        for (key, value) in keys.iter() {
            self.answers.push(key, value);
        }
        if !reply.transit {
            return Ok(self.send(&Keys::default()));
        }
        let agreed = agree(&self.options, &self.answers)?;
        let numbers = Numbers { cmd_sn: 1, exp_stat_sn: self.exp_stat_sn, max_cmd_sn: self.max_cmd_sn };
        Ok(Step::Done(agreed, numbers))
    }
}

impl Negotiated {
    /// What holds when neither side said anything.
    pub(crate) fn minimal() -> Negotiated {
        Negotiated {
            max_send_segment: 8192,
            max_recv_segment: 8192,
            max_burst: 262_144,
            first_burst: 65_536,
            immediate_data: true,
            initial_r2t: true,
            header_digest: false,
            data_digest: false,
        }
    }
}

fn operational_keys(options: &Options, discovery: bool) -> Keys {
    let yes_no = |yes| if yes { "Yes" } else { "No" };
    let digest = |wanted| if wanted { "CRC32C,None" } else { "None" };
    let mut keys = Keys::default();
    keys.push("HeaderDigest", digest(options.header_digest));
    keys.push("DataDigest", digest(options.data_digest));
    keys.push("MaxRecvDataSegmentLength", options.max_recv_segment);
    keys.push("DefaultTime2Wait", 2);
    keys.push("DefaultTime2Retain", 0);
    keys.push("ErrorRecoveryLevel", 0);
    if !discovery {
        keys.push("InitialR2T", yes_no(options.initial_r2t));
        keys.push("ImmediateData", yes_no(options.immediate_data));
        keys.push("MaxBurstLength", options.max_burst);
        keys.push("FirstBurstLength", options.first_burst.min(options.max_burst));
        keys.push("MaxOutstandingR2T", 1);
        keys.push("MaxConnections", 1);
        keys.push("DataPDUInOrder", "Yes");
        keys.push("DataSequenceInOrder", "Yes");
    }
    keys
}

/// What the offers of `options` and the `answers` of the target make together.
fn agree(options: &Options, answers: &Keys) -> Result<Negotiated> {
    let mut agreed = Negotiated {
        max_recv_segment: options.max_recv_segment,
        max_burst: options.max_burst,
        first_burst: options.first_burst.min(options.max_burst),
        immediate_data: options.immediate_data,
        initial_r2t: options.initial_r2t,
        ..Negotiated::minimal()
    };
    if let Some(value) = answers.number("MaxRecvDataSegmentLength")? {
        agreed.max_send_segment = value;
    }
    if let Some(value) = answers.number("MaxBurstLength")? {
        agreed.max_burst = value.min(options.max_burst);
    }
    if let Some(value) = answers.number("FirstBurstLength")? {
        agreed.first_burst = value.min(options.first_burst);
    }
    agreed.first_burst = agreed.first_burst.min(agreed.max_burst);
    if let Some(value) = answers.get("ImmediateData") {
        agreed.immediate_data = options.immediate_data && value == "Yes";
    }
    if let Some(value) = answers.get("InitialR2T") {
        agreed.initial_r2t = options.initial_r2t || value == "Yes";
    }
    agreed.header_digest = options.header_digest && answers.get("HeaderDigest") == Some("CRC32C");
    agreed.data_digest = options.data_digest && answers.get("DataDigest") == Some("CRC32C");
    Ok(agreed)
}

fn status_text(class: u8, detail: u8) -> &'static str {
    match (class, detail) {
        (1, _) => "moved elsewhere",
        (2, 1) => "authentication failed",
        (2, 2) => "not allowed",
        (2, 3) => "no such target",
        (2, 5) => "wrong version",
        (2, 6) => "too many connections",
        (2, 7) => "a key is missing",
        (2, 9) => "wrong session type",
        (2, 10) => "no such session",
        (2, _) => "initiator error",
        (3, 1) => "out of service",
        (3, 2) => "out of resources",
        (3, _) => "target error",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_number_and_the_stricter_word_win() {
        let mut answers = Keys::default();
        answers.push("MaxBurstLength", 65536);
        answers.push("FirstBurstLength", 262144);
        answers.push("InitialR2T", "Yes");
        answers.push("ImmediateData", "Yes");
        answers.push("MaxRecvDataSegmentLength", 4096);
        answers.push("HeaderDigest", "CRC32C");
        let options = Options { header_digest: false, data_digest: true, ..Options::default() };
        let agreed = agree(&options, &answers).unwrap();
        assert_eq!((agreed.max_burst, agreed.first_burst, agreed.max_send_segment), (65536, 65536, 4096));
        assert!(agreed.initial_r2t && agreed.immediate_data);
        assert!(!agreed.header_digest && !agreed.data_digest);
        assert_eq!((agreed.immediate(8192), agreed.unsolicited(8192)), (4096, 4096));
    }

    fn answer(transit: bool, keys: &[(&str, &str)]) -> (Header, Vec<u8>) {
        let mut text = Keys::default();
        keys.iter().for_each(|(key, value)| text.push(key, value));
        let reply = LoginResponse {
            transit,
            more: false,
            current: 0,
            next: 1,
            data_len: 0,
            isid: [0; 6],
            tsih: 7,
            tag: 0,
            stat_sn: 41,
            window: crate::wire::Window { exp_cmd_sn: 1, max_cmd_sn: 9 },
            class: 0,
            detail: 0,
        };
        (reply.encode(), text.encode())
    }

    #[test]
    fn two_answers_make_a_session() {
        let (mut login, first, text) = Handshake::begin(&Options::default(), Some("iqn.2026-11.x:a"));
        assert_eq!(first[1], 0x81, "security, to operational at once");
        assert_eq!(Keys::decode(&text).unwrap().get("AuthMethod"), Some("None"));
        let (header, text) = answer(true, &[]);
        let Ok(Step::Send(second, offer)) = login.answer("x", &header, &text) else { panic!("no request") };
        assert_eq!((second[1], &second[14..16]), (0x87, &[0, 7][..]));
        assert!(Keys::decode(&offer).unwrap().get("MaxBurstLength").is_some());
        let (header, text) = answer(true, &[("MaxBurstLength", "65536")]);
        let Ok(Step::Done(agreed, numbers)) = login.answer("x", &header, &text) else { panic!("no session") };
        assert_eq!((agreed.max_burst, numbers.exp_stat_sn, numbers.max_cmd_sn), (65536, 42, 9));
    }

    #[test]
    fn a_target_without_resources_is_tried_again_and_one_that_refuses_is_not() {
        let (mut login, ..) = Handshake::begin(&Options::default(), Some("iqn.2026-11.x:a"));
        let (mut header, _) = answer(true, &[]);
        header[36..38].copy_from_slice(&[3, 2]);
        assert!(matches!(login.answer("x", &header, &[]), Ok(Step::Later(_))));
        header[36..38].copy_from_slice(&[2, 1]);
        assert!(login.answer("x", &header, &[]).unwrap_err().to_string().contains("authentication"));
    }

    #[test]
    fn a_target_that_never_ends_is_left() {
        let (mut login, ..) = Handshake::begin(&Options::default(), Some("iqn.2026-11.x:a"));
        let (header, text) = answer(false, &[]);
        let end = (0..100).find(|_| login.answer("x", &header, &text).is_err());
        assert_eq!(end, Some(ROUNDS_MAX));
    }
}
