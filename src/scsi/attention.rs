//! Unit attention conditions (SAM-5, 5.14): one-time notices, one set per I_T_L nexus.
//!
//! Knows which conditions there are, their codes and their precedence. Does not know what caused one.
//!
//! A set and not a queue: a condition that is pending twice is still one condition, so the memory is one word.

use super::sense::{Sense, SenseKey};

/// In order of precedence: what a reset wiped out makes the later ones moot (SAM-5, 5.14.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum UnitAttention {
    /// A new I_T nexus, or a target reset without an author.
    PowerOnOrReset,
    TargetReset,
    UnitReset,
    NexusLoss,
    MediumMayHaveChanged,
    ModeParametersChanged,
    CapacityChanged,
    RegistrationsPreempted,
    ReservationsPreempted,
    ReservationsReleased,
    CommandsCleared,
    CommandsClearedByTransport,
    ReportedLunsChanged,
}

const ALL: [UnitAttention; 13] = [
    UnitAttention::PowerOnOrReset,
    UnitAttention::TargetReset,
    UnitAttention::UnitReset,
    UnitAttention::NexusLoss,
    UnitAttention::MediumMayHaveChanged,
    UnitAttention::ModeParametersChanged,
    UnitAttention::CapacityChanged,
    UnitAttention::RegistrationsPreempted,
    UnitAttention::ReservationsPreempted,
    UnitAttention::ReservationsReleased,
    UnitAttention::CommandsCleared,
    UnitAttention::CommandsClearedByTransport,
    UnitAttention::ReportedLunsChanged,
];

/// The conditions that take precedence over RESERVATION CONFLICT (SAM-5, 5.3.3).
const RESETS: u16 = 0b1111;

impl UnitAttention {
    pub(super) const fn sense(self) -> Sense {
        let (asc, ascq) = match self {
            Self::PowerOnOrReset => (0x29, 0x00),
            Self::TargetReset => (0x29, 0x02),
            Self::UnitReset => (0x29, 0x03),
            Self::NexusLoss => (0x29, 0x07),
            Self::MediumMayHaveChanged => (0x28, 0x00),
            Self::ModeParametersChanged => (0x2A, 0x01),
            Self::CapacityChanged => (0x2A, 0x09),
            Self::RegistrationsPreempted => (0x2A, 0x05),
            Self::ReservationsPreempted => (0x2A, 0x03),
            Self::ReservationsReleased => (0x2A, 0x04),
            Self::CommandsCleared => (0x2F, 0x00),
            Self::CommandsClearedByTransport => (0x47, 0x7F),
            Self::ReportedLunsChanged => (0x3F, 0x0E),
        };
        Sense::new(SenseKey::UnitAttention, asc, ascq)
    }

    const fn bit(self) -> u16 {
        1 << self as u16
    }
}

/// The pending conditions of one I_T_L nexus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Attentions(u16);

impl Attentions {
    pub(super) const NONE: Self = Self(0);

    pub(super) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// A reset makes everything before it moot.
    pub(super) const fn raise(&mut self, attention: UnitAttention) {
        if attention.bit() & RESETS != 0 {
            self.0 &= RESETS;
        }
        self.0 |= attention.bit();
    }

    pub(super) const fn clear(&mut self, attention: UnitAttention) {
        self.0 &= !attention.bit();
    }

    /// Takes the condition that is reported next.
    pub(super) fn take(&mut self) -> Option<UnitAttention> {
        self.take_of(u16::MAX)
    }

    /// Takes a condition that is reported even before RESERVATION CONFLICT.
    pub(super) fn take_reset(&mut self) -> Option<UnitAttention> {
        self.take_of(RESETS)
    }

    fn take_of(&mut self, mask: u16) -> Option<UnitAttention> {
        let pending = self.0 & mask;
        if pending == 0 {
            return None;
        }
        let next = ALL.get(pending.trailing_zeros() as usize).copied()?;
        self.clear(next);
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_condition_has_its_own_bit_and_place() {
        for (place, attention) in ALL.into_iter().enumerate() {
            let mut set = Attentions::NONE;
            set.raise(attention);
            assert_eq!(set.0, 1 << place);
            assert_eq!(set.take(), Some(attention));
            assert!(set.is_empty());
        }
    }

    #[test]
    fn resets_come_first_and_wipe_out_what_was_before() {
        let mut set = Attentions::NONE;
        set.raise(UnitAttention::ModeParametersChanged);
        set.raise(UnitAttention::UnitReset);
        set.raise(UnitAttention::CapacityChanged);
        assert_eq!(set.take_reset(), Some(UnitAttention::UnitReset));
        assert_eq!(set.take_reset(), None);
        assert_eq!(set.take(), Some(UnitAttention::CapacityChanged));
        assert_eq!(set.take(), None);
    }

    #[test]
    fn news_that_is_no_reset_wipes_out_nothing_and_waits_for_its_turn() {
        for attention in ALL.into_iter().skip(4) {
            let mut set = Attentions::NONE;
            set.raise(UnitAttention::ReportedLunsChanged);
            set.raise(UnitAttention::ModeParametersChanged);
            set.raise(attention);
            assert_eq!(set.take_reset(), None, "{attention:?}");
            let told = core::iter::from_fn(|| set.take()).count();
            let both = [UnitAttention::ReportedLunsChanged, UnitAttention::ModeParametersChanged];
            assert_eq!(told, if both.contains(&attention) { 2 } else { 3 });
        }
    }
}
