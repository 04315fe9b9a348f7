//! Login and SendTargets discovery (RFC 7143, sections 6, 13 and appendix C).
//!
//! Knows the order of the stages and how answers become parameters. Does not know SCSI commands.

use std::net::SocketAddr;

use super::session::Session;
use super::stream::Stream;
use super::{Endpoint, Negotiated, Numbers, Options, chap};
use crate::fail::{Result, failure};
use crate::keys::Keys;
use crate::wire::{Login, LoginResponse, NO_TAG, Reply, Text};

const SECURITY: u8 = 0;
const OPERATIONAL: u8 = 1;
const FULL_FEATURE: u8 = 3;
/// No honest target needs more exchanges than this to log a session in.
const ROUNDS_MAX: usize = 12;

/// Opens a normal session with one LUN.
pub(crate) fn open(endpoint: &Endpoint, options: &Options) -> Result<Session> {
    let (stream, negotiated, numbers) = log_in(endpoint.address, Some(&endpoint.target), options)?;
    Ok(Session::new(stream, negotiated, numbers, endpoint.lun))
}

/// The names of all targets of a portal.
pub(crate) fn discover(address: SocketAddr, options: &Options) -> Result<Vec<String>> {
    let (mut stream, _, mut numbers) = log_in(address, None, options)?;
    let mut keys = Keys::default();
    keys.push("SendTargets", "All");
    let mut question = keys.encode();
    let mut transfer_tag = NO_TAG;
    let mut answer = Vec::new();
    loop {
        let request = Text {
            data_len: question.len() as u32,
            tag: 1,
            transfer_tag,
            cmd_sn: numbers.cmd_sn,
            exp_stat_sn: numbers.exp_stat_sn,
        };
        stream.send(&request.encode(), &question)?;
        numbers.cmd_sn = numbers.cmd_sn.wrapping_add(1);
        let pdu = stream.receive()?;
        let Reply::Text(reply) = Reply::decode(&pdu.header) else {
            return Err(failure!(
                "{address} answered SendTargets with opcode {:#04x}: look at its log",
                pdu.header[0]
            ));
        };
        numbers.exp_stat_sn = reply.stat_sn.wrapping_add(1);
        answer.extend(pdu.data);
        if !reply.more && reply.transfer_tag == NO_TAG {
            break;
        }
        transfer_tag = reply.transfer_tag;
        question.clear();
    }
    let listed = Keys::decode(&answer)?;
    let mut session = Session::new(stream, Negotiated::minimal(), numbers, 0);
    session.logout()?;
    Ok(listed.iter().filter(|(key, _)| *key == "TargetName").map(|(_, name)| name.to_string()).collect())
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

/// One login in progress.
struct Attempt<'a> {
    stream: Stream,
    options: &'a Options,
    exp_stat_sn: u32,
    tsih: u16,
    max_cmd_sn: u32,
    answers: Keys,
}

fn log_in(
    address: SocketAddr,
    target: Option<&str>,
    options: &Options,
) -> Result<(Stream, Negotiated, Numbers)> {
    let stream = Stream::connect(address, options.timeout)?;
    let answers = Keys::default();
    let mut attempt = Attempt { stream, options, exp_stat_sn: 0, tsih: 0, max_cmd_sn: 1, answers };
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
    attempt.security(keys)?;
    attempt.operational(operational_keys(options, target.is_none()))?;
    let agreed = agree(options, &attempt.answers)?;
    attempt.stream.header_digest = agreed.header_digest;
    attempt.stream.data_digest = agreed.data_digest;
    let numbers = Numbers { cmd_sn: 1, exp_stat_sn: attempt.exp_stat_sn, max_cmd_sn: attempt.max_cmd_sn };
    Ok((attempt.stream, agreed, numbers))
}

impl Attempt<'_> {
    fn security(&mut self, first: Keys) -> Result<()> {
        let mut next = first;
        let mut transit = self.options.chap.is_none();
        let mut chosen = false;
        for _ in 0..ROUNDS_MAX {
            let (reply, keys) = self.exchange(SECURITY, OPERATIONAL, transit, &next)?;
            if reply.transit {
                return Ok(());
            }
            next = Keys::default();
            let Some((user, secret)) = &self.options.chap else { continue };
            if keys.get("AuthMethod") == Some("None") {
                transit = true;
                continue;
            }
            if keys.get("CHAP_C").is_some() {
                next = chap::answer(&keys, user, secret)?;
                transit = true;
            } else if !chosen {
                next.push("CHAP_A", 5);
                chosen = true;
            }
        }
        Err(failure!("{} never ended the security stage of login: look at its log", self.stream.peer()))
    }

    fn operational(&mut self, first: Keys) -> Result<()> {
        let mut next = first;
        for _ in 0..ROUNDS_MAX {
            let (reply, keys) = self.exchange(OPERATIONAL, FULL_FEATURE, true, &next)?;
            for (key, value) in keys.iter() {
                self.answers.push(key, value);
            }
            if reply.transit {
                return Ok(());
            }
            next = Keys::default();
        }
        Err(failure!("{} never ended the operational stage of login: look at its log", self.stream.peer()))
    }

    /// One login request and the whole answer to it, which may come in several PDUs.
    fn exchange(
        &mut self,
        current: u8,
        next: u8,
        transit: bool,
        keys: &Keys,
    ) -> Result<(LoginResponse, Keys)> {
        let mut data = keys.encode();
        let mut transit_now = transit;
        let mut text = Vec::new();
        for _ in 0..ROUNDS_MAX {
            let request = Login {
                transit: transit_now,
                current,
                next: if transit_now { next } else { 0 },
                data_len: data.len() as u32,
                isid: self.options.isid,
                tsih: self.tsih,
                tag: 0,
                cmd_sn: 1,
                exp_stat_sn: self.exp_stat_sn,
            };
            self.stream.send(&request.encode(), &data)?;
            let pdu = self.stream.receive()?;
            let peer = self.stream.peer();
            let Reply::Login(reply) = Reply::decode(&pdu.header) else {
                return Err(failure!(
                    "{peer} answered login with opcode {:#04x}: is it an iSCSI target?",
                    pdu.header[0]
                ));
            };
            if reply.class != 0 {
                return Err(failure!(
                    "{peer} refused the login with status {:02x}{:02x} ({}): check name and secret",
                    reply.class,
                    reply.detail,
                    status_text(reply.class, reply.detail)
                ));
            }
            self.exp_stat_sn = reply.stat_sn.wrapping_add(1);
            self.max_cmd_sn = reply.window.max_cmd_sn;
            self.tsih = reply.tsih;
            text.extend(pdu.data);
            if !reply.more {
                return Ok((reply, Keys::decode(&text)?));
            }
            data = Vec::new();
            transit_now = false;
        }
        Err(failure!("{} never ends its login text: look at its log", self.stream.peer()))
    }
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
}
