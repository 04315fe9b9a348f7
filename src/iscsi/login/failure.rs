//! Why a login failed, and what the initiator is told about it (RFC 7143, 11.13.5).
//!
//! Knows reasons and statuses. Does not know how they come about.

use crate::iscsi::chap::ChapFailure;
use crate::iscsi::name::NameError;
use crate::iscsi::negotiate::NegotiationError;
use crate::iscsi::pdu::login::LoginStatus;
use crate::iscsi::text_keys::TextError;
use crate::limits;

/// The reason, for the log of the target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoginFailure {
    #[error("the first PDU is no Login Request (opcode {0:#04x})")]
    NotLogin(u8),
    #[error("a PDU other than a Login Request came during login (opcode {0:#04x})")]
    InvalidDuringLogin(u8),
    #[error("the initiator speaks iSCSI version {0:#04x} and above, this target version 0x00")]
    UnsupportedVersion(u8),
    #[error("a Login Request is not marked for immediate delivery")]
    NotImmediate,
    #[error("the {0} changed between two Login Requests")]
    Changed(&'static str),
    #[error("a Login Request came before the last one was answered")]
    Impatient,
    #[error("the current stage of a Login Request is not the stage of the connection")]
    WrongStage,
    #[error("a Login Request asks for a transition that does not exist")]
    WrongTransition,
    #[error("a Login Request asks for a transition although its text goes on")]
    TransitionInsideText,
    #[error("a Login Request carries text while the target's own text goes on")]
    TextInsideAnswer,
    #[error("a Login Request carries more than {max} bytes", max = limits::LOGIN_SEGMENT_BYTES_MAX)]
    SegmentTooLong,
    #[error("the login took more than {max} PDUs", max = limits::LOGIN_PDUS_MAX)]
    TooManyPdus,
    #[error("the text is refused: {0}")]
    Text(#[from] TextError),
    #[error(transparent)]
    Negotiation(#[from] NegotiationError),
    #[error("the first text lacks {0}")]
    Missing(&'static str),
    #[error("{key} is no iSCSI name: {error}")]
    BadName { key: &'static str, error: NameError },
    #[error("the initiator asks for a session that is neither Normal nor Discovery")]
    SessionType,
    #[error(
        "the target requires CHAP, and the initiator wants to pass without it; give it a name and secret"
    )]
    AuthenticationRequired,
    #[error("the initiator insists on authentication, but the target has no credentials for it")]
    NoCredentials,
    #[error(transparent)]
    Chap(#[from] ChapFailure),
    #[error("the target does not exist")]
    NotFound,
    #[error("the initiator may not use the target")]
    Forbidden,
    #[error("the target is not available at present")]
    Unavailable,
    #[error("the target is served elsewhere, at {address}")]
    Moved { address: String, permanent: bool },
    #[error("the session takes no further connection")]
    TooManyConnections,
    #[error("the session to be joined does not exist")]
    SessionDoesNotExist,
    #[error("the server has no room for another session")]
    OutOfResources,
}

impl LoginFailure {
    /// What the response says; `None` when there is none to send, because nothing that came was a login.
    pub fn status(&self) -> Option<LoginStatus> {
        Some(match self {
            Self::NotLogin(_) => return None,
            Self::InvalidDuringLogin(_) => LoginStatus::INVALID_DURING_LOGIN,
            Self::UnsupportedVersion(_) => LoginStatus::UNSUPPORTED_VERSION,
            Self::NotImmediate
            | Self::Changed(_)
            | Self::Impatient
            | Self::WrongStage
            | Self::WrongTransition
            | Self::TransitionInsideText
            | Self::TextInsideAnswer
            | Self::SegmentTooLong
            | Self::TooManyPdus
            | Self::Negotiation(_)
            | Self::BadName { .. } => LoginStatus::INITIATOR_ERROR,
            Self::Text(TextError::TooLong | TextError::TooManyKeys) => LoginStatus::OUT_OF_RESOURCES,
            Self::Text(_) => LoginStatus::INITIATOR_ERROR,
            Self::Missing(_) => LoginStatus::MISSING_PARAMETER,
            Self::SessionType => LoginStatus::SESSION_TYPE_NOT_SUPPORTED,
            Self::AuthenticationRequired | Self::NoCredentials | Self::Chap(_) => {
                LoginStatus::AUTHENTICATION_FAILURE
            }
            Self::NotFound => LoginStatus::NOT_FOUND,
            Self::Forbidden => LoginStatus::AUTHORIZATION_FAILURE,
            Self::Unavailable => LoginStatus::SERVICE_UNAVAILABLE,
            Self::Moved { permanent: false, .. } => LoginStatus::MOVED_TEMPORARILY,
            Self::Moved { permanent: true, .. } => LoginStatus::MOVED_PERMANENTLY,
            Self::TooManyConnections => LoginStatus::TOO_MANY_CONNECTIONS,
            Self::SessionDoesNotExist => LoginStatus::SESSION_DOES_NOT_EXIST,
            Self::OutOfResources => LoginStatus::OUT_OF_RESOURCES,
        })
    }
}
