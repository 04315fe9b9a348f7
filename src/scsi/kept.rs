//! What a unit remembers across restarts: reservations whose initiators asked for it (APTPL), saved mode parameters, a
//! sanitize operation and an atomic write that have not ended.
//!
//! Knows the shape of that memory and which values it may have. Does not know where it is kept, nor in which
//! encoding: whoever keeps it gets plain values, and gives back values that are checked like any other input.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::device::InitiatorPort;
use super::mode::ModeValues;
use super::reservation::ReservationType;
use super::sanitize::Sanitizing;
use crate::limits;
use crate::units::Lba;

/// A unit's memory. Empty: nothing to keep, and nothing kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptUnit {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reservations: Option<KeptReservations>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modes: Option<ModeValues>,
    /// A sanitize operation that has not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sanitizing: Option<Sanitizing>,
    /// An atomic write that has begun and is not known to have ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub atomic: Option<KeptAtomic>,
}

/// What an atomic write writes, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptAtomic {
    lba: u64,
    #[serde(with = "hexadecimal")]
    data: Arc<[u8]>,
}

impl KeptAtomic {
    pub fn new(lba: Lba, data: &[u8]) -> Self {
        Self { lba: lba.0, data: data.into() }
    }

    pub fn lba(&self) -> Lba {
        Lba(self.lba)
    }

    pub fn data(&self) -> &[u8] {
        &self.data
    }
}

/// The data of an atomic write, two digits a byte: written down by who keeps it, not by the shard.
mod hexadecimal {
    use std::sync::Arc;

    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    use crate::limits;

    const DIGITS: &[u8; 16] = b"0123456789abcdef";

    pub(super) fn serialize<S: Serializer>(data: &Arc<[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(2 * data.len());
        for byte in data.iter() {
            text.push(char::from(DIGITS[usize::from(byte >> 4)]));
            text.push(char::from(DIGITS[usize::from(byte & 0x0F)]));
        }
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<[u8]>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digit = |byte: u8| char::from(byte).to_digit(16).map(|value| value as u8);
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let data: Option<Arc<[u8]>> =
            pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect();
        match data {
            Some(data) if rest.is_empty() && data.len() <= limits::ATOMIC_BYTES_MAX => Ok(data),
            _ => Err(D::Error::custom(format!(
                "the data of an atomic write is at most {} bytes of two digits each",
                limits::ATOMIC_BYTES_MAX
            ))),
        }
    }
}

impl KeptUnit {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Registrations and the reservation (SPC-4, 5.12.5: preserved through a power cycle).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawReservations", into = "RawReservations")]
pub struct KeptReservations {
    pub(super) registrants: Vec<KeptRegistrant>,
    pub(super) held: Option<KeptHeld>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeptRegistrant {
    pub(super) port: InitiatorPort,
    pub(super) key: u64,
    pub(super) all_ports: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeptHeld {
    pub(super) kind: ReservationType,
    /// Place of the registrant that reserved.
    pub(super) by: usize,
}

/// The same as it is written down: before it is believed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReservations {
    registrants: Vec<RawRegistrant>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    held: Option<RawHeld>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRegistrant {
    initiator: String,
    isid: [u8; 6],
    key: u64,
    #[serde(default)]
    all_ports: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHeld {
    /// The type code of SPC-4, table 214.
    r#type: u8,
    by: usize,
}

/// Why a written memory is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Unlikely {
    #[error("{0} registrants are more than the {max} a unit can have", max = limits::REGISTRANTS_PER_UNIT_MAX)]
    TooMany(usize),
    #[error("the registrant {0} stands there twice")]
    Twice(InitiatorPort),
    #[error("the registrant {0} has the key zero, which is none")]
    NoKey(InitiatorPort),
    #[error("an initiator name of {0} bytes is longer than the {max} iSCSI allows", max = limits::ISCSI_NAME_BYTES_MAX)]
    Name(usize),
    #[error("{0} is no reservation type")]
    Kind(u8),
    #[error("the reservation is held by registrant {0}, which is not there")]
    Holder(usize),
}

impl TryFrom<RawReservations> for KeptReservations {
    type Error = Unlikely;

    fn try_from(raw: RawReservations) -> Result<Self, Unlikely> {
        if raw.registrants.len() > limits::REGISTRANTS_PER_UNIT_MAX {
            return Err(Unlikely::TooMany(raw.registrants.len()));
        }
        let mut registrants: Vec<KeptRegistrant> = Vec::new();
        for RawRegistrant { initiator, isid, key, all_ports } in raw.registrants {
            if initiator.len() > limits::ISCSI_NAME_BYTES_MAX {
                return Err(Unlikely::Name(initiator.len()));
            }
            let port = InitiatorPort { name: initiator, isid };
            if key == 0 {
                return Err(Unlikely::NoKey(port));
            }
            if registrants.iter().any(|other| other.port == port) {
                return Err(Unlikely::Twice(port));
            }
            registrants.push(KeptRegistrant { port, key, all_ports });
        }
        let held = match raw.held {
            None => None,
            Some(RawHeld { r#type, by }) => {
                let kind = ReservationType::from_code(r#type).ok_or(Unlikely::Kind(r#type))?;
                if by >= registrants.len() {
                    return Err(Unlikely::Holder(by));
                }
                Some(KeptHeld { kind, by })
            }
        };
        Ok(Self { registrants, held })
    }
}

impl From<KeptReservations> for RawReservations {
    fn from(kept: KeptReservations) -> Self {
        let raw = |KeptRegistrant { port, key, all_ports }| RawRegistrant {
            initiator: port.name,
            isid: port.isid,
            key,
            all_ports,
        };
        Self {
            registrants: kept.registrants.into_iter().map(raw).collect(),
            held: kept.held.map(|held| RawHeld { r#type: held.kind as u8, by: held.by }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::sanitize::SanitizeMethod;

    fn read(text: &str) -> Result<KeptUnit, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    fn one(key: u64, held: &str) -> String {
        format!(
            r#"{{"reservations":{{"registrants":[{{"initiator":"iqn.a:b","isid":[0,2,61,0,0,1],"key":{key}}}]{held}}}}}"#
        )
    }

    #[test]
    fn what_is_written_is_read_back() {
        let port = InitiatorPort { name: "iqn.a:b".into(), isid: [0, 2, 0x3D, 0, 0, 1] };
        let kept = KeptUnit {
            atomic: Some(KeptAtomic::new(Lba(7), &[0xA5, 0x0F])),
            sanitizing: Some(Sanitizing { method: SanitizeMethod::BlockErase, may_exit: true }),
            modes: Some(ModeValues { write_cache: false, ..ModeValues::default() }),
            reservations: Some(KeptReservations {
                registrants: vec![KeptRegistrant { port, key: u64::MAX, all_ports: true }],
                held: Some(KeptHeld { kind: ReservationType::ExclusiveAccess, by: 0 }),
            }),
        };
        let text = serde_json::to_string(&kept).unwrap();
        assert_eq!(read(&text), Ok(kept));
        assert_eq!(read("{}"), Ok(KeptUnit::default()));
        assert_eq!(KeptAtomic::new(Lba(7), &[0xA5, 0x0F]).data(), [0xA5, 0x0F]);
        for data in ["a5g0", "a5f", &"0".repeat(2 * limits::ATOMIC_BYTES_MAX + 2)] {
            let error = read(&format!(r#"{{"atomic":{{"lba":7,"data":"{data}"}}}}"#)).unwrap_err();
            assert!(error.contains("two digits each"), "{error}");
        }
    }

    #[test]
    fn impossible_reservations_are_not_believed() {
        assert!(read(&one(7, r#","held":{"type":5,"by":0}"#)).is_ok());
        for (text, why) in [
            (one(0, ""), "key zero"),
            (one(7, r#","held":{"type":5,"by":1}"#), "not there"),
            (one(7, r#","held":{"type":2,"by":0}"#), "no reservation type"),
            (one(7, r#","what":1"#), "unknown field"),
            (one(7, "").replace("iqn.a:b", &"n".repeat(300)), "longer than"),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let twice = one(7, "").replace("[{", r#"[{"initiator":"iqn.a:b","isid":[0,2,61,0,0,1],"key":1},{"#);
        assert!(read(&twice).unwrap_err().contains("twice"));
    }
}
