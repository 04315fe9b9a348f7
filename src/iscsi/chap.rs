//! CHAP as iSCSI speaks it (RFC 1994; RFC 7143, 12.1.3): the target's half, one way or mutual.
//!
//! Knows algorithms, secrets and the order of the five keys. Does not know PDUs, stages, nor where secrets and
//! randomness come from.

use md5::Digest;

use super::text_keys::{TextWriter, format_binary, list_items, parse_binary, parse_number};
use crate::limits::CHAP_BINARY_BYTES_MAX;

/// Hash algorithms by their CHAP_A number (IANA registry "PPP Authentication Algorithms").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ChapAlgorithm {
    Md5 = 5,
    Sha1 = 6,
    Sha256 = 7,
    Sha3_256 = 8,
}

impl ChapAlgorithm {
    pub const fn from_number(number: u64) -> Option<Self> {
        match number {
            5 => Some(Self::Md5),
            6 => Some(Self::Sha1),
            7 => Some(Self::Sha256),
            8 => Some(Self::Sha3_256),
            _ => None,
        }
    }

    /// Bytes of a response, and of the challenges we send.
    pub const fn digest_len(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 | Self::Sha3_256 => 32,
        }
    }

    /// The response to a challenge: hash(identifier, secret, challenge) (RFC 1994, 4.1).
    pub fn respond(self, identifier: u8, secret: &Secret, challenge: &[u8]) -> Vec<u8> {
        match self {
            Self::Md5 => hash::<md5::Md5>(identifier, secret, challenge),
            Self::Sha1 => hash::<sha1::Sha1>(identifier, secret, challenge),
            Self::Sha256 => hash::<sha2::Sha256>(identifier, secret, challenge),
            Self::Sha3_256 => hash::<sha3::Sha3_256>(identifier, secret, challenge),
        }
    }
}

fn hash<D: Digest>(identifier: u8, secret: &Secret, challenge: &[u8]) -> Vec<u8> {
    let mut hash = D::new();
    hash.update([identifier]);
    hash.update(&secret.0);
    hash.update(challenge);
    hash.finalize().to_vec()
}

/// A shared secret. Never shown.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

impl Secret {
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }
}

impl core::fmt::Debug for Secret {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A name and its secret.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub user: String,
    pub secret: Secret,
}

/// What a target asks of an initiator before it lets it in.
#[derive(Clone, Debug, Default)]
pub enum AuthPolicy {
    #[default]
    None,
    /// CHAP: the initiator proves `initiator`; when it asks back, we prove `mutual`.
    Chap { initiator: Credentials, mutual: Option<Credentials> },
}

/// Why CHAP failed. The initiator learns only that it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChapFailure {
    #[error("CHAP_A offers no algorithm that is known here (5, 6, 7 or 8)")]
    NoCommonAlgorithm,
    #[error("{0} is missing or came out of turn")]
    OutOfTurn(&'static str),
    #[error("{0} has a malformed value")]
    Malformed(&'static str),
    #[error("the CHAP name or secret of the initiator is wrong")]
    Wrong,
    #[error("the initiator sent our own challenge back (a reflection attack)")]
    Reflected,
    #[error("the initiator wants to authenticate the target, but no secret is configured for that")]
    NoMutualSecret,
    #[error("both directions are configured with the same CHAP secret, which RFC 7143 forbids; change one")]
    SameSecret,
}

/// The CHAP keys of one text.
#[derive(Clone, Copy, Debug, Default)]
pub struct ChapKeys<'a> {
    pub algorithms: Option<&'a str>,
    pub identifier: Option<&'a str>,
    pub challenge: Option<&'a str>,
    pub name: Option<&'a str>,
    pub response: Option<&'a str>,
}

impl ChapKeys<'_> {
    pub fn is_empty(&self) -> bool {
        self.first_present().is_none()
    }

    fn first_present(&self) -> Option<&'static str> {
        let keys = [
            (self.algorithms, "CHAP_A"),
            (self.name, "CHAP_N"),
            (self.response, "CHAP_R"),
            (self.identifier, "CHAP_I"),
            (self.challenge, "CHAP_C"),
        ];
        keys.iter().find(|(value, _)| value.is_some()).map(|(_, key)| *key)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Algorithm,
    Response(ChapAlgorithm),
    Passed,
}

/// The target's side of one exchange:
///
/// | from the initiator                  | answer                                        |
/// |-------------------------------------|-----------------------------------------------|
/// | CHAP_A, a list                      | CHAP_A, the first known; CHAP_I, CHAP_C       |
/// | CHAP_N, CHAP_R                      | nothing; passed                               |
/// | CHAP_N, CHAP_R, CHAP_I, CHAP_C      | CHAP_N, CHAP_R of the target; passed          |
#[derive(Debug)]
pub struct ChapExchange {
    initiator: Credentials,
    mutual: Option<Credentials>,
    random: [u8; 32],
    turn: Turn,
}

impl ChapExchange {
    /// `random`: fresh and unpredictable for every exchange; the challenge is made of it.
    pub fn new(initiator: Credentials, mutual: Option<Credentials>, random: [u8; 32]) -> Self {
        Self { initiator, mutual, random, turn: Turn::Algorithm }
    }

    pub fn passed(&self) -> bool {
        self.turn == Turn::Passed
    }

    /// Takes the CHAP keys of one text and appends the answer. After a failure the exchange is over.
    pub fn handle(&mut self, keys: &ChapKeys<'_>, answers: &mut TextWriter) -> Result<(), ChapFailure> {
        let Some(present) = keys.first_present() else { return Ok(()) };
        match self.turn {
            Turn::Algorithm => self.choose(keys, answers),
            Turn::Response(algorithm) => self.verify(algorithm, keys, answers),
            Turn::Passed => Err(ChapFailure::OutOfTurn(present)),
        }
    }

    fn identifier(&self) -> u8 {
        self.random[31]
    }

    fn challenge(&self, algorithm: ChapAlgorithm) -> &[u8] {
        &self.random[..algorithm.digest_len()]
    }

    fn choose(&mut self, keys: &ChapKeys<'_>, answers: &mut TextWriter) -> Result<(), ChapFailure> {
        let Some(offer) = keys.algorithms else { return Err(ChapFailure::OutOfTurn("CHAP_A")) };
        if let Some(early) = (ChapKeys { algorithms: None, ..*keys }).first_present() {
            return Err(ChapFailure::OutOfTurn(early));
        }
        let algorithm = list_items(offer)
            .filter_map(parse_number)
            .find_map(ChapAlgorithm::from_number)
            .ok_or(ChapFailure::NoCommonAlgorithm)?;
        answers.push("CHAP_A", &(algorithm as u8).to_string());
        answers.push("CHAP_I", &self.identifier().to_string());
        answers.push("CHAP_C", &format_binary(self.challenge(algorithm)));
        self.turn = Turn::Response(algorithm);
        Ok(())
    }

    fn verify(
        &mut self,
        algorithm: ChapAlgorithm,
        keys: &ChapKeys<'_>,
        answers: &mut TextWriter,
    ) -> Result<(), ChapFailure> {
        if keys.algorithms.is_some() {
            return Err(ChapFailure::OutOfTurn("CHAP_A"));
        }
        let name = keys.name.ok_or(ChapFailure::OutOfTurn("CHAP_N"))?;
        let response = keys.response.ok_or(ChapFailure::OutOfTurn("CHAP_R"))?;
        let response =
            parse_binary(response, CHAP_BINARY_BYTES_MAX).ok_or(ChapFailure::Malformed("CHAP_R"))?;
        let expected =
            algorithm.respond(self.identifier(), &self.initiator.secret, self.challenge(algorithm));
        // Both are always compared, so that the time tells nothing about either.
        let name_good = same_bytes(name.as_bytes(), self.initiator.user.as_bytes());
        let response_good = same_bytes(&response, &expected);
        if !(name_good & response_good) {
            return Err(ChapFailure::Wrong);
        }
        match (keys.identifier, keys.challenge) {
            (None, None) => {}
            (Some(identifier), Some(challenge)) => {
                self.prove(algorithm, identifier, challenge, &response, answers)?;
            }
            (None, Some(_)) => return Err(ChapFailure::OutOfTurn("CHAP_I")),
            (Some(_), None) => return Err(ChapFailure::OutOfTurn("CHAP_C")),
        }
        self.turn = Turn::Passed;
        Ok(())
    }

    /// Mutual CHAP: we answer the initiator's challenge.
    fn prove(
        &self,
        algorithm: ChapAlgorithm,
        identifier: &str,
        challenge: &str,
        their_response: &[u8],
        answers: &mut TextWriter,
    ) -> Result<(), ChapFailure> {
        let ours = self.mutual.as_ref().ok_or(ChapFailure::NoMutualSecret)?;
        let identifier = parse_number(identifier)
            .and_then(|number| u8::try_from(number).ok())
            .ok_or(ChapFailure::Malformed("CHAP_I"))?;
        let challenge =
            parse_binary(challenge, CHAP_BINARY_BYTES_MAX).ok_or(ChapFailure::Malformed("CHAP_C"))?;
        if same_bytes(&challenge, self.challenge(algorithm)) {
            return Err(ChapFailure::Reflected);
        }
        if same_bytes(&ours.secret.0, &self.initiator.secret.0) {
            return Err(ChapFailure::SameSecret);
        }
        let response = algorithm.respond(identifier, &ours.secret, &challenge);
        if same_bytes(&response, their_response) {
            return Err(ChapFailure::Reflected);
        }
        answers.push("CHAP_N", &ours.user);
        answers.push("CHAP_R", &format_binary(&response));
        Ok(())
    }
}

/// Equality whose time depends on the lengths only.
fn same_bytes(one: &[u8], other: &[u8]) -> bool {
    if one.len() != other.len() {
        return false;
    }
    let difference = one.iter().zip(other).fold(0, |sum, (a, b)| sum | (a ^ b));
    core::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iscsi::text_keys::TextKeys;

    const ALL: [ChapAlgorithm; 4] =
        [ChapAlgorithm::Md5, ChapAlgorithm::Sha1, ChapAlgorithm::Sha256, ChapAlgorithm::Sha3_256];

    fn random() -> [u8; 32] {
        core::array::from_fn(|at| at as u8 ^ 0xA5)
    }

    fn exchange(mutual: Option<&str>) -> ChapExchange {
        let credentials =
            |user: &str, secret: &str| Credentials { user: user.to_owned(), secret: Secret::new(secret) };
        ChapExchange::new(
            credentials("pc-1", "initiator secret"),
            mutual.map(|secret| credentials("target", secret)),
            random(),
        )
    }

    /// Runs the first turn; returns the identifier and the challenge.
    fn challenged(exchange: &mut ChapExchange, algorithms: &str) -> (u8, Vec<u8>) {
        let mut answers = TextWriter::default();
        let keys = ChapKeys { algorithms: Some(algorithms), ..ChapKeys::default() };
        exchange.handle(&keys, &mut answers).unwrap();
        let answers = TextKeys::parse(answers.into_bytes()).unwrap();
        let identifier = answers.get("CHAP_I").unwrap().parse().unwrap();
        (identifier, parse_binary(answers.get("CHAP_C").unwrap(), 64).unwrap())
    }

    fn respond(exchange: &mut ChapExchange, name: &str, response: &str) -> Result<(), ChapFailure> {
        let keys = ChapKeys { name: Some(name), response: Some(response), ..ChapKeys::default() };
        exchange.handle(&keys, &mut TextWriter::default())
    }

    fn response(algorithm: ChapAlgorithm, identifier: u8, challenge: &[u8]) -> String {
        format_binary(&algorithm.respond(identifier, &Secret::new("initiator secret"), challenge))
    }

    /// Values from another implementation (Python's hashlib) over 0x01, "secret", 0x00 0x01 0x02 0x03.
    #[test]
    fn responses_agree_with_another_implementation() {
        for (algorithm, expected) in [
            (ChapAlgorithm::Md5, "0xe82cb2ed1efe04893c9cf73d4dd12e2d"),
            (ChapAlgorithm::Sha1, "0x4ba9b914438b0a2231ce08d06e1814afdbbd02c9"),
            (ChapAlgorithm::Sha256, "0x60ad105214396c736e4569759380672905396143713449e104a2be1e885b5d06"),
            (ChapAlgorithm::Sha3_256, "0x5a8cab9a6c0245b91a7d0d2966f24cb7328b2a59616809840e7a77c9c4fb94d8"),
        ] {
            let response = algorithm.respond(1, &Secret::new("secret"), &[0, 1, 2, 3]);
            assert_eq!(format_binary(&response), expected);
            assert_eq!(response.len(), algorithm.digest_len());
        }
    }

    #[test]
    fn the_right_secret_passes_under_every_algorithm() {
        for algorithm in ALL {
            let mut exchange = exchange(None);
            let (identifier, challenge) = challenged(&mut exchange, &(algorithm as u8).to_string());
            assert_eq!(challenge.len(), algorithm.digest_len());
            respond(&mut exchange, "pc-1", &response(algorithm, identifier, &challenge)).unwrap();
            assert!(exchange.passed());
        }
    }

    #[test]
    fn a_base64_response_passes_too() {
        let mut exchange = exchange(None);
        let (identifier, challenge) = challenged(&mut exchange, "5");
        let digest = ChapAlgorithm::Md5.respond(identifier, &Secret::new("initiator secret"), &challenge);
        respond(&mut exchange, "pc-1", &format!("0b{}", base64(&digest))).unwrap();
    }

    fn base64(bytes: &[u8]) -> String {
        const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let bits: String = bytes.iter().map(|byte| format!("{byte:08b}")).collect();
        let mut text = String::new();
        for start in (0..bits.len()).step_by(6) {
            let group = format!("{:0<6}", &bits[start..bits.len().min(start + 6)]);
            text.push(DIGITS[usize::from_str_radix(&group, 2).unwrap()] as char);
        }
        while !text.len().is_multiple_of(4) {
            text.push('=');
        }
        text
    }

    #[test]
    fn a_wrong_name_or_response_fails() {
        for (name, flip) in [("pc-2", 0), ("pc-1", 1), ("", 0)] {
            let mut exchange = exchange(None);
            let (identifier, challenge) = challenged(&mut exchange, "5");
            let answer = response(ChapAlgorithm::Md5, identifier ^ flip, &challenge);
            assert_eq!(respond(&mut exchange, name, &answer), Err(ChapFailure::Wrong));
            assert!(!exchange.passed());
        }
        let mut exchange = exchange(None);
        challenged(&mut exchange, "5");
        assert_eq!(respond(&mut exchange, "pc-1", "0x00"), Err(ChapFailure::Wrong));
    }

    #[test]
    fn the_first_known_algorithm_of_the_list_is_taken() {
        let mut answers = TextWriter::default();
        let keys = ChapKeys { algorithms: Some("99,x,7,5"), ..ChapKeys::default() };
        exchange(None).handle(&keys, &mut answers).unwrap();
        assert_eq!(TextKeys::parse(answers.into_bytes()).unwrap().get("CHAP_A"), Some("7"));
        let keys = ChapKeys { algorithms: Some("4,99"), ..ChapKeys::default() };
        let result = exchange(None).handle(&keys, &mut TextWriter::default());
        assert_eq!(result, Err(ChapFailure::NoCommonAlgorithm));
    }

    #[test]
    fn keys_out_of_turn_fail() {
        let response_first = respond(&mut exchange(None), "pc-1", "0x00");
        assert_eq!(response_first, Err(ChapFailure::OutOfTurn("CHAP_A")));
        let mut repeated = exchange(None);
        challenged(&mut repeated, "5");
        let keys = ChapKeys { algorithms: Some("5"), ..ChapKeys::default() };
        assert_eq!(repeated.handle(&keys, &mut TextWriter::default()), Err(ChapFailure::OutOfTurn("CHAP_A")));
        let mut half = exchange(None);
        challenged(&mut half, "5");
        let keys = ChapKeys { name: Some("pc-1"), ..ChapKeys::default() };
        assert_eq!(half.handle(&keys, &mut TextWriter::default()), Err(ChapFailure::OutOfTurn("CHAP_R")));
    }

    fn mutual(
        exchange: &mut ChapExchange,
        identifier: &str,
        challenge: impl Fn(&[u8]) -> String,
    ) -> Result<TextKeys, ChapFailure> {
        let (our_identifier, our_challenge) = challenged(exchange, "5");
        let mut answers = TextWriter::default();
        let keys = ChapKeys {
            algorithms: None,
            identifier: Some(identifier),
            challenge: Some(&challenge(&our_challenge)),
            name: Some("pc-1"),
            response: Some(&response(ChapAlgorithm::Md5, our_identifier, &our_challenge)),
        };
        exchange.handle(&keys, &mut answers)?;
        Ok(TextKeys::parse(answers.into_bytes()).unwrap())
    }

    #[test]
    fn the_target_proves_itself_when_asked() {
        let answers = mutual(&mut exchange(Some("target secret")), "0x7", |_| "0x010203".into()).unwrap();
        let expected = ChapAlgorithm::Md5.respond(7, &Secret::new("target secret"), &[1, 2, 3]);
        assert_eq!(answers.get("CHAP_N"), Some("target"));
        assert_eq!(answers.get("CHAP_R"), Some(format_binary(&expected).as_str()));
    }

    #[test]
    fn a_reflected_challenge_is_refused() {
        let reflected = mutual(&mut exchange(Some("target secret")), "7", format_binary);
        assert_eq!(reflected, Err(ChapFailure::Reflected));
    }

    #[test]
    fn mutual_chap_needs_a_secret_of_its_own() {
        let none = mutual(&mut exchange(None), "7", |_| "0x01".into());
        assert_eq!(none, Err(ChapFailure::NoMutualSecret));
        let same = mutual(&mut exchange(Some("initiator secret")), "7", |_| "0x01".into());
        assert_eq!(same, Err(ChapFailure::SameSecret));
    }

    #[test]
    fn malformed_mutual_keys_fail() {
        let big = format!("0x{}", "00".repeat(CHAP_BINARY_BYTES_MAX + 1));
        for (identifier, challenge, key) in
            [("256", "0x01", "CHAP_I"), ("7", "01", "CHAP_C"), ("7", &big, "CHAP_C")]
        {
            let result = mutual(&mut exchange(Some("target secret")), identifier, |_| challenge.to_owned());
            assert_eq!(result, Err(ChapFailure::Malformed(key)));
        }
    }

    #[test]
    fn secrets_are_never_shown() {
        let shown = format!("{:?}", exchange(Some("target secret")));
        assert!(shown.contains("pc-1") && !shown.contains("secret\""), "{shown}");
        let bytes = format!("{:?}", b"initiator secret");
        assert!(
            !shown.contains("initiator secret") && !shown.contains(bytes.trim_matches(['[', ']'])),
            "{shown}"
        );
    }
}
