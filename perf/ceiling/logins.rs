//! The ceiling's side of login and SendTargets: it takes whoever comes.
//!
//! Knows which answer each key gets. Does not know stages beyond echoing them, nor secrets.

use std::net::SocketAddr;

use super::TARGET;
use crate::fail::Result;
use crate::keys::Keys;

/// What the responder must remember of a login.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// The initiator's MaxRecvDataSegmentLength.
    pub(crate) segment: u32,
    pub(crate) max_burst: u32,
    pub(crate) first_burst: u32,
    pub(crate) initial_r2t: bool,
    pub(crate) address: SocketAddr,
}

const MAX_BURST: u32 = 1 << 20;
const FIRST_BURST: u32 = 65_536;
const SEGMENT: u32 = 262_144;

impl Terms {
    pub(crate) fn new(address: SocketAddr) -> Terms {
        Terms { segment: 8192, max_burst: 262_144, first_burst: FIRST_BURST, initial_r2t: true, address }
    }

    /// The answers to the keys of one login request.
    pub(crate) fn answer(&mut self, offered: &Keys) -> Result<Keys> {
        let mut answers = Keys::default();
        for (key, value) in offered.iter() {
            let number = || offered.number(key).map(Option::unwrap_or_default);
            match key {
                "InitiatorName" | "InitiatorAlias" | "SessionType" => {}
                "TargetName" => answers.push("TargetPortalGroupTag", 1),
                "AuthMethod" | "HeaderDigest" | "DataDigest" => answers.push(key, "None"),
                "MaxRecvDataSegmentLength" => {
                    self.segment = number()?.clamp(512, (1 << 24) - 1);
                    answers.push(key, SEGMENT);
                }
                "MaxBurstLength" => {
                    self.max_burst = number()?.clamp(512, MAX_BURST);
                    answers.push(key, self.max_burst);
                }
                "FirstBurstLength" => {
                    self.first_burst = number()?.clamp(512, FIRST_BURST);
                    answers.push(key, self.first_burst);
                }
                "InitialR2T" => {
                    self.initial_r2t = value != "No";
                    answers.push(key, value);
                }
                "ImmediateData" | "DefaultTime2Wait" => answers.push(key, value),
                "DataPDUInOrder" | "DataSequenceInOrder" => answers.push(key, "Yes"),
                "MaxOutstandingR2T" | "MaxConnections" => answers.push(key, 1),
                "DefaultTime2Retain" | "ErrorRecoveryLevel" => answers.push(key, 0),
                _ => answers.push(key, "NotUnderstood"),
            }
        }
        Ok(answers)
    }

    pub(crate) fn send_targets(&self) -> Keys {
        let mut keys = Keys::default();
        keys.push("TargetName", TARGET);
        keys.push("TargetAddress", format!("{},1", self.address));
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_above_the_limits_are_cut() {
        let mut terms = Terms::new("127.0.0.1:1".parse().unwrap());
        let mut offered = Keys::default();
        offered.push("MaxBurstLength", 1 << 23);
        offered.push("InitialR2T", "No");
        offered.push("X-strange", "1");
        let answers = terms.answer(&offered).unwrap();
        assert_eq!(answers.get("MaxBurstLength"), Some("1048576"));
        assert_eq!(answers.get("X-strange"), Some("NotUnderstood"));
        assert!(!terms.initial_r2t);
    }
}
