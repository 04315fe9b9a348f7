//! SANITIZE (SBC-4, 5.33): what is asked for, and the state a unit is in meanwhile and after.
//!
//! Knows the parameter list of OVERWRITE and which commands a unit still obeys. Does not know how blocks are written.

use serde::{Deserialize, Serialize};

use super::opcodes::Operation;
use super::sense::Sense;
use crate::limits;

/// What is done to every block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum SanitizeMethod {
    /// Each block becomes the pattern, repeated and cut to its length, `passes` times; with `invert` every pass writes
    /// the complement of the one before.
    Overwrite { pattern: Vec<u8>, passes: u8, invert: bool },
    /// Every block is deallocated and reads as zeros.
    BlockErase,
}

/// A sanitize operation: kept until it has ended, so that a restart does not undo it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sanitizing {
    pub method: SanitizeMethod,
    /// AUSE: EXIT FAILURE MODE may end the state after a failure.
    pub may_exit: bool,
}

/// Where a unit is with it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) enum SanitizeState {
    #[default]
    None,
    /// `progress` of 65536 parts.
    Running {
        what: Sanitizing,
        progress: u16,
    },
    Failed {
        may_exit: bool,
    },
}

impl SanitizeState {
    /// Why a command cannot be done now.
    pub(super) fn refusal(&self, operation: Operation) -> Option<Sense> {
        match self {
            Self::None => None,
            Self::Running { progress, .. } if !informs(operation) => {
                Some(Sense::SANITIZE_IN_PROGRESS.with_progress(*progress))
            }
            Self::Failed { .. } if !informs(operation) && operation != Operation::Sanitize => {
                Some(Sense::SANITIZE_FAILED)
            }
            _ => None,
        }
    }

    /// What REQUEST SENSE tells.
    pub(super) fn sense(&self) -> Option<Sense> {
        match self {
            Self::None => None,
            Self::Running { progress, .. } => Some(Sense::SANITIZE_IN_PROGRESS.with_progress(*progress)),
            Self::Failed { .. } => Some(Sense::SANITIZE_FAILED),
        }
    }
}

/// Commands that a unit obeys whatever its medium goes through (SBC-4, 4.11.2).
fn informs(operation: Operation) -> bool {
    matches!(
        operation,
        Operation::Inquiry
            | Operation::ReportLuns
            | Operation::RequestSense
            | Operation::PersistentReserveIn
            | Operation::ReportTargetPortGroups
            | Operation::ReportSupportedOpcodes
            | Operation::ReportTaskManagement
    )
}

/// | bytes | field                                | bytes | field                         |
/// |-------|--------------------------------------|-------|-------------------------------|
/// | 0     | INVERT (bit 7), OVERWRITE COUNT      | 4..   | INITIALIZATION PATTERN        |
/// | 2..4  | INITIALIZATION PATTERN LENGTH        |       |                               |
///
/// # Errors
/// INVALID FIELD IN PARAMETER LIST for no pass, a TEST, or a pattern that is none or longer than a block.
pub(super) fn parse_overwrite(list: &[u8], block_bytes: u32) -> Result<SanitizeMethod, Sense> {
    let &[flags, _, high, low, ref rest @ ..] = list else { return Err(Sense::PARAMETER_LIST_LENGTH) };
    let (passes, len) = (flags & 0x1F, usize::from(u16::from_be_bytes([high, low])));
    if flags & 0x60 != 0 {
        return Err(Sense::parameter_field(0, 6));
    }
    if passes == 0 {
        return Err(Sense::parameter_field(0, 4));
    }
    if len == 0 || len > block_bytes as usize {
        return Err(Sense::parameter_field(2, 7));
    }
    let pattern = rest.get(..len).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    Ok(SanitizeMethod::Overwrite { pattern: pattern.to_vec(), passes, invert: flags & 0x80 != 0 })
}

/// The parameter list of OVERWRITE has a header and a pattern of at most one block.
pub(super) fn overwrite_list_fits(len: u32, block_bytes: u32) -> bool {
    (5..=4 + block_bytes).contains(&len) && len as usize <= limits::PARAMETER_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_one_byte_to_one_block() {
        let list = |len: usize| [&[0x82, 0, (len >> 8) as u8, len as u8][..], &vec![7; len]].concat();
        let method = |len| SanitizeMethod::Overwrite { pattern: vec![7; len], passes: 2, invert: true };
        assert_eq!(parse_overwrite(&list(1), 512), Ok(method(1)));
        assert_eq!(parse_overwrite(&list(512), 512), Ok(method(512)));
        for wrong in [0, 513] {
            assert_eq!(parse_overwrite(&list(wrong), 512), Err(Sense::parameter_field(2, 7)));
        }
        assert_eq!(parse_overwrite(&list(8)[..11], 512), Err(Sense::PARAMETER_LIST_LENGTH));
        assert_eq!(parse_overwrite(&[0, 0, 0, 1, 7], 512), Err(Sense::parameter_field(0, 4)));
        assert_eq!(parse_overwrite(&[0x21, 0, 0, 1, 7], 512), Err(Sense::parameter_field(0, 6)));
    }

    #[test]
    fn lists_are_longer_than_their_header_and_hold_a_block_at_most() {
        assert!(!overwrite_list_fits(4, 512) && overwrite_list_fits(5, 512));
        assert!(overwrite_list_fits(516, 512) && !overwrite_list_fits(517, 512));
        assert!(overwrite_list_fits(4100, 4096));
    }

    #[test]
    fn a_unit_only_informs_while_its_medium_is_wiped() {
        let what = Sanitizing { method: SanitizeMethod::BlockErase, may_exit: false };
        let running = SanitizeState::Running { what, progress: 9 };
        assert_eq!(running.refusal(Operation::Inquiry), None);
        let sense = running.refusal(Operation::Sanitize).unwrap();
        assert_eq!(sense.encode().as_slice()[15..18], [0x80, 0, 9]);
        let failed = SanitizeState::Failed { may_exit: true };
        assert_eq!(failed.refusal(Operation::Sanitize), None);
        assert_eq!(failed.refusal(Operation::Read), Some(Sense::SANITIZE_FAILED));
    }
}
