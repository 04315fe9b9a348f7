//! The security stage's conversation (RFC 7143, 12.1): AuthMethod, then CHAP where the target wants it.
//!
//! Knows policy and progress. Does not know stages or PDUs (`login`), nor how CHAP works (`chap`).

use super::failure::LoginFailure;
use crate::iscsi::chap::{AuthPolicy, ChapExchange, ChapFailure, ChapKeys};
use crate::iscsi::negotiate::{NegotiationError, SecurityKey};
use crate::iscsi::text_keys::{TextWriter, list_items};

/// The security keys of one text.
#[derive(Debug, Default)]
pub(super) struct SecurityKeys<'a> {
    auth_method: Option<&'a str>,
    chap: ChapKeys<'a>,
}

impl<'a> SecurityKeys<'a> {
    /// Notes a key; each may come once a text.
    pub(super) fn note(&mut self, key: SecurityKey, value: &'a str) -> Result<(), NegotiationError> {
        let (place, name) = match key {
            SecurityKey::AuthMethod => (&mut self.auth_method, "AuthMethod"),
            SecurityKey::ChapA => (&mut self.chap.algorithms, "CHAP_A"),
            SecurityKey::ChapI => (&mut self.chap.identifier, "CHAP_I"),
            SecurityKey::ChapC => (&mut self.chap.challenge, "CHAP_C"),
            SecurityKey::ChapN => (&mut self.chap.name, "CHAP_N"),
            SecurityKey::ChapR => (&mut self.chap.response, "CHAP_R"),
        };
        if place.replace(value).is_some() { Err(NegotiationError::Repeated(name)) } else { Ok(()) }
    }
}

#[derive(Debug)]
enum Progress {
    /// AuthMethod was not offered yet.
    Open(AuthPolicy),
    Chap(ChapExchange),
    /// AuthMethod=None was agreed.
    Unauthenticated,
}

/// How far an initiator has come in proving who it is.
#[derive(Debug)]
pub(super) struct Security {
    progress: Progress,
    random: [u8; 32],
}

impl Security {
    pub(super) fn new(policy: AuthPolicy, random: [u8; 32]) -> Self {
        Self { progress: Progress::Open(policy), random }
    }

    /// True when the security stage may end, or be left out.
    pub(super) fn satisfied(&self) -> bool {
        match &self.progress {
            Progress::Open(policy) => matches!(policy, AuthPolicy::None),
            Progress::Chap(exchange) => exchange.passed(),
            Progress::Unauthenticated => true,
        }
    }

    /// True when the initiator was not even asked yet.
    pub(super) fn untouched(&self) -> bool {
        matches!(self.progress, Progress::Open(_))
    }

    /// Takes the security keys of one text and appends the answers.
    pub(super) fn handle(
        &mut self,
        keys: &SecurityKeys<'_>,
        answers: &mut TextWriter,
    ) -> Result<(), LoginFailure> {
        if let Some(methods) = keys.auth_method {
            self.choose_method(methods, answers)?;
        }
        match &mut self.progress {
            Progress::Chap(exchange) => exchange.handle(&keys.chap, answers)?,
            _ if keys.chap.is_empty() => {}
            _ => return Err(ChapFailure::OutOfTurn("AuthMethod").into()),
        }
        Ok(())
    }

    fn choose_method(&mut self, methods: &str, answers: &mut TextWriter) -> Result<(), LoginFailure> {
        let Progress::Open(policy) = &mut self.progress else {
            return Err(NegotiationError::Repeated("AuthMethod").into());
        };
        let offers = |method| list_items(methods).any(|item| item == method);
        match core::mem::take(policy) {
            AuthPolicy::None if offers("None") => {
                answers.push("AuthMethod", "None");
                self.progress = Progress::Unauthenticated;
                Ok(())
            }
            AuthPolicy::None => Err(LoginFailure::NoCredentials),
            AuthPolicy::Chap { initiator, mutual } if offers("CHAP") => {
                answers.push("AuthMethod", "CHAP");
                self.progress = Progress::Chap(ChapExchange::new(initiator, mutual, self.random));
                Ok(())
            }
            AuthPolicy::Chap { .. } => Err(LoginFailure::AuthenticationRequired),
        }
    }
}
