//! The initiator's half of a login.
//!
//! Knows keys and stages, and draws every value from the seed. Does not know commands.

use md5::{Digest, Md5};

use crate::board::{Board, ChapPlan};
use crate::checks::DataLimits;
use crate::initiator::{Initiator, Phase, Role};
use crate::wire::{Digests, NO_TAG, Pdu, keys, text};
use crate::world::World;

/// How far a login has come.
#[derive(Debug)]
pub(crate) struct Login {
    stage: u8,
    /// Our challenge to the target: identifier and bytes.
    challenge: Option<(u8, Vec<u8>)>,
    offer: Offer,
    security: bool,
}

/// What we ask for.
#[derive(Clone, Debug)]
struct Offer {
    header_digest: bool,
    data_digest: bool,
    initial_r2t: bool,
    immediate_data: bool,
    segment: u32,
    max_burst: u32,
    first_burst: u32,
}

fn yes(value: bool) -> String {
    if value { "Yes" } else { "No" }.to_owned()
}

fn digest(value: bool) -> String {
    if value { "CRC32C,None" } else { "None" }.to_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"))?;
    (0..digits.len() / 2).map(|at| u8::from_str_radix(&digits[at * 2..at * 2 + 2], 16).ok()).collect()
}

fn proof(id: u8, secret: &str, challenge: &[u8]) -> Vec<u8> {
    let mut hash = Md5::new();
    hash.update([id]);
    hash.update(secret.as_bytes());
    hash.update(challenge);
    hash.finalize().to_vec()
}

impl Initiator {
    /// Connects and sends the first login PDU.
    pub(crate) fn login(&mut self, world: &mut World) {
        self.connect(world);
        let rng = &mut self.rng;
        let max_burst = rng.pick(&[512, 4096, 65_536, 262_144, 1 << 20, (1 << 24) - 1]);
        let offer = Offer {
            header_digest: rng.chance(300),
            data_digest: rng.chance(300),
            initial_r2t: rng.chance(500),
            immediate_data: rng.chance(600),
            segment: rng.pick(&[512, 1024, 8192, 65_536, 262_144, 1000]),
            max_burst,
            first_burst: rng.pick(&[512, 8192, 65_536, 262_144]).min(max_burst),
        };
        let security = self.needs_chap || rng.chance(600);
        let stage = u8::from(!security);
        let mut pairs = vec![("InitiatorName", self.name.clone())];
        if self.role == Role::Discoverer {
            pairs.push(("SessionType", "Discovery".to_owned()));
        } else {
            pairs.push(("SessionType", "Normal".to_owned()));
            let target = match self.role {
                Role::Lost => "iqn.2026-11.sim:nowhere".to_owned(),
                _ => crate::plan::target_name(self.target),
            };
            pairs.push(("TargetName", target));
        }
        if security {
            pairs.push(("AuthMethod", "CHAP,None".to_owned()));
        } else {
            pairs.extend(self.operational(&offer));
        }
        self.line.phase = Phase::Login(Login { stage, challenge: None, offer, security });
        // In the security stage the target may want more before we may leave it.
        self.send_login(&text(&pairs), stage, !security);
    }

    fn send_login(&mut self, data: &[u8], stage: u8, transit: bool) {
        let next = if stage == 0 { 1 } else { 3 };
        let flags = stage << 2 | if transit { 0x80 | next } else { 0 };
        let pdu = Pdu::new(0x43, flags)
            .put(8, &self.isid)
            .put(14, &self.group.tsih.to_be_bytes())
            .put(20, &self.line.cid.to_be_bytes())
            .put32(16, 0x4C4F_4749)
            .put32(24, self.cmd_sn)
            .put32(28, self.line.numbers.exp_stat_sn())
            .with_data(data);
        self.queue(NO_TAG, &pdu);
    }

    pub(crate) fn login_response(
        &mut self,
        pdu: &Pdu,
        world: &mut World,
        board: &mut Board,
    ) -> Result<(), String> {
        let status = (pdu.bhs[36], pdu.bhs[37]);
        let expected = match self.role {
            Role::Lost => Some((2, 3)),
            Role::Impostor => Some((2, 1)),
            Role::Stranger => Some((2, 2)),
            _ => None,
        };
        if status != (0, 0) {
            if status == (2, 3) && self.line.since <= board.gone_until[self.target] {
                board.counts.refused_logins += 1;
                self.line.phase = Phase::Ending;
                return Ok(());
            }
            // A target that has just been left may still have all its sessions; nothing else is an excuse.
            if self.group.tsih != 0 {
                return self.join_refused(status, board);
            }
            if Some(status) != expected {
                return Err(format!("login status {status:02x?}, expected {expected:02x?}"));
            }
            board.counts.refused_logins += 1;
            self.line.phase = Phase::Ending;
            return Ok(());
        }
        let chap = board.targets[self.target].chap.clone().filter(|_| self.role != Role::Discoverer);
        if chap.is_some() && matches!(&self.line.phase, Phase::Login(login) if !login.security) {
            return Err("a login without security was let in where CHAP is wanted".to_owned());
        }
        let pairs = keys(&pdu.data);
        let get = |key: &str| pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone());
        let flags = pdu.flags();
        let transit = flags & 0x80 != 0;
        let Phase::Login(login) = &mut self.line.phase else { return Ok(()) };
        if flags >> 2 & 3 != login.stage {
            return Err(format!("a login response of stage {}, we are in {}", flags >> 2 & 3, login.stage));
        }
        if transit && flags & 3 == 3 {
            if self.role != Role::Worker && self.role != Role::Discoverer {
                return Err(format!("{:?} was let in", self.role));
            }
            return self.enter_full_feature(&get, pdu, world, board);
        }
        if transit && flags & 3 == 1 {
            if login.stage == 0 && chap.is_some() && login.challenge.is_some() {
                verify_target(login, chap.as_ref(), &get)?;
            }
            login.stage = 1;
            let offer = login.offer.clone();
            let pairs = self.operational(&offer);
            self.send_login(&text(&pairs), 1, true);
            return Ok(());
        }
        if login.stage == 1 {
            self.send_login(&[], 1, true);
            return Ok(());
        }
        self.security_step(&get, chap)
    }

    fn security_step(
        &mut self,
        get: &impl Fn(&str) -> Option<String>,
        chap: Option<ChapPlan>,
    ) -> Result<(), String> {
        match (get("AuthMethod"), get("CHAP_C")) {
            (Some(method), _) if method == "CHAP" => {
                self.send_login(&text(&[("CHAP_A", "5".to_owned())]), 0, false);
            }
            (Some(method), _) if method == "None" => {
                self.send_login(&[], 0, true);
            }
            (_, Some(challenge)) => {
                let chap = chap.ok_or("CHAP where none is wanted")?;
                let id = get("CHAP_I").and_then(|id| id.parse().ok()).ok_or("no CHAP_I")?;
                let bytes = unhex(&challenge).ok_or("CHAP_C is not hexadecimal")?;
                let secret = if self.role == Role::Impostor { "not the secret" } else { &chap.secret };
                let mut pairs =
                    vec![("CHAP_N", chap.user.clone()), ("CHAP_R", hex(&proof(id, secret, &bytes)))];
                if chap.mutual.is_some() {
                    let ours: Vec<u8> = (0..24).map(|_| self.rng.next() as u8).collect();
                    pairs.push(("CHAP_I", "77".to_owned()));
                    pairs.push(("CHAP_C", hex(&ours)));
                    if let Phase::Login(login) = &mut self.line.phase {
                        login.challenge = Some((77, ours));
                    }
                }
                self.send_login(&text(&pairs), 0, true);
            }
            (method, _) => return Err(format!("no step follows from AuthMethod {method:?}")),
        }
        Ok(())
    }

    fn enter_full_feature(
        &mut self,
        get: &impl Fn(&str) -> Option<String>,
        pdu: &Pdu,
        world: &mut World,
        board: &mut Board,
    ) -> Result<(), String> {
        let Phase::Login(login) = &self.line.phase else { return Ok(()) };
        let offer = &login.offer;
        if pdu.bhs[14..16] == [0, 0] {
            return Err("the final login response has TSIH 0".to_owned());
        }
        let number =
            |key: &str, default: u32| get(key).and_then(|value| value.parse().ok()).unwrap_or(default);
        let is = |key: &str, default: bool| get(key).map_or(default, |value| value == "Yes");
        let crc = |key: &str| get(key).is_some_and(|value| value == "CRC32C");
        let joins = self.group.tsih != 0;
        let tsih = u16::from_be_bytes([pdu.bhs[14], pdu.bhs[15]]);
        if joins && tsih != self.group.tsih {
            return Err("a connection joined another session than it asked for".to_owned());
        }
        let max_burst = number("MaxBurstLength", if joins { self.group.max_burst } else { 262_144 });
        self.line.link.digests = Digests { header: crc("HeaderDigest"), data: crc("DataDigest") };
        if self.line.link.digests.header && !offer.header_digest
            || self.line.link.digests.data && !offer.data_digest
        {
            return Err("a digest was chosen that we did not offer".to_owned());
        }
        self.line.link.limits = DataLimits { segment: offer.segment, burst: max_burst };
        self.line.link.send_segment = number("MaxRecvDataSegmentLength", 8192);
        if joins {
            self.joined(board);
            return Ok(());
        }
        self.line.link.first_burst = number("FirstBurstLength", 65_536).min(max_burst);
        self.line.link.initial_r2t = is("InitialR2T", true);
        self.line.link.immediate_data = is("ImmediateData", true);
        if self.role == Role::Worker
            && (max_burst > offer.max_burst || !self.line.link.initial_r2t && offer.initial_r2t)
        {
            return Err("the target chose what we did not offer".to_owned());
        }
        board.counts.logins += 1;
        let _ = world;
        self.group.began(tsih, &self.line.link, number("MaxConnections", 1).min(self.group.wanted));
        self.line.phase = Phase::Full;
        Ok(())
    }

    /// A connection that joins settles what is its own.
    fn operational(&self, offer: &Offer) -> Vec<(&'static str, String)> {
        let mut pairs = vec![
            ("HeaderDigest", digest(offer.header_digest)),
            ("DataDigest", digest(offer.data_digest)),
            ("MaxRecvDataSegmentLength", offer.segment.to_string()),
        ];
        if self.group.tsih != 0 {
            return pairs;
        }
        pairs.extend([
            ("DefaultTime2Wait", "0".to_owned()),
            ("DefaultTime2Retain", "0".to_owned()),
            ("ErrorRecoveryLevel", "0".to_owned()),
        ]);
        if self.role != Role::Discoverer {
            pairs.extend([
                ("InitialR2T", yes(offer.initial_r2t)),
                ("ImmediateData", yes(offer.immediate_data)),
                ("MaxBurstLength", offer.max_burst.to_string()),
                ("FirstBurstLength", offer.first_burst.to_string()),
                ("MaxConnections", self.group.wanted.to_string()),
                ("MaxOutstandingR2T", "1".to_owned()),
                ("DataPDUInOrder", "Yes".to_owned()),
                ("DataSequenceInOrder", "Yes".to_owned()),
            ]);
        }
        pairs
    }

    /// A discovery session: lists, then leaves.
    pub(crate) fn discover(&mut self) -> bool {
        if !self.tasks.is_empty() {
            return false;
        }
        let tag = self.next_tag;
        self.next_tag = tag.wrapping_add(1);
        let pdu = Pdu::new(0x44, 0x80)
            .put32(16, tag)
            .put32(20, NO_TAG)
            .put32(24, self.cmd_sn)
            .put32(28, self.line.numbers.exp_stat_sn())
            .with_data(b"SendTargets=All\0");
        self.tasks.insert(tag, crate::task::Task::text());
        self.queue(NO_TAG, &pdu);
        true
    }
}

fn verify_target(
    login: &Login,
    chap: Option<&ChapPlan>,
    get: &impl Fn(&str) -> Option<String>,
) -> Result<(), String> {
    let (Some((id, challenge)), Some((user, secret))) =
        (&login.challenge, chap.and_then(|chap| chap.mutual.as_ref()))
    else {
        return Ok(());
    };
    let response = get("CHAP_R").and_then(|text| unhex(&text));
    if get("CHAP_N").as_ref() != Some(user) || response != Some(proof(*id, secret, challenge)) {
        return Err("the target did not prove itself".to_owned());
    }
    Ok(())
}
