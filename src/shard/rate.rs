//! How fast one target may be used, where somebody has said so: commands and bytes per second.
//!
//! Knows the time at which what was granted so far is paid for. Does not know sessions: who is refused asks again.
//!
//! A target that was idle may run ahead by [`BURST`]. What is granted is granted whole, however long: the debt keeps the
//! next command waiting.

use core::num::NonZeroU64;

use crate::clock::{Duration, Instant};

/// What an idle target may use at once, as time at its rate.
const BURST: Duration = Duration::from_millis(100);

/// The most a target is granted; `None`: no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Commands per second.
    pub commands: Option<NonZeroU64>,
    /// Bytes per second, read and written together.
    pub bytes: Option<NonZeroU64>,
}

#[derive(Debug, Default)]
pub(super) struct Rate {
    limits: RateLimits,
    /// When the commands and the bytes granted so far are paid for.
    commands_paid: Instant,
    bytes_paid: Instant,
}

impl Rate {
    /// Other limits from now on; what was granted stays paid for as it was.
    pub(super) fn set_limits(&mut self, limits: RateLimits) {
        self.limits = limits;
    }

    /// One more command may begin; or when it may.
    pub(super) fn ready(&self, now: Instant) -> Result<(), Instant> {
        let paid = match (self.limits.commands, self.limits.bytes) {
            (None, None) => return Ok(()),
            (Some(_), None) => self.commands_paid,
            (None, Some(_)) => self.bytes_paid,
            (Some(_), Some(_)) => self.commands_paid.max(self.bytes_paid),
        };
        let ahead = paid.since(now);
        if ahead <= BURST { Ok(()) } else { Err(now.after(ahead - BURST)) }
    }

    /// A command that moves `bytes` has begun.
    pub(super) fn charge(&mut self, now: Instant, bytes: u64) {
        if let Some(rate) = self.limits.commands {
            self.commands_paid = self.commands_paid.max(now).after(cost(1, rate));
        }
        if let Some(rate) = self.limits.bytes {
            self.bytes_paid = self.bytes_paid.max(now).after(cost(bytes, rate));
        }
    }
}

/// The time `amount` takes at `rate` per second, rounded up.
fn cost(amount: u64, rate: NonZeroU64) -> Duration {
    let nanos = (u128::from(amount) * 1_000_000_000).div_ceil(u128::from(rate.get()));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits(commands: u64, bytes: u64) -> RateLimits {
        RateLimits { commands: NonZeroU64::new(commands), bytes: NonZeroU64::new(bytes) }
    }

    fn limited(commands: u64, bytes: u64) -> Rate {
        Rate { limits: limits(commands, bytes), ..Rate::default() }
    }

    #[test]
    fn without_limits_nobody_waits() {
        let mut rate = Rate::default();
        for _ in 0..1000 {
            assert_eq!(rate.ready(Instant(5)), Ok(()));
            rate.charge(Instant(5), u64::MAX);
        }
    }

    #[test]
    fn a_command_longer_than_the_burst_is_granted_and_paid_for() {
        let mut rate = limited(0, 1000);
        rate.charge(Instant(0), 5000);
        let due = rate.ready(Instant(0)).unwrap_err();
        assert_eq!(due, Instant(0).after(Duration::from_millis(4900)));
        assert_eq!(rate.ready(due), Ok(()));
    }

    #[test]
    fn other_limits_hold_from_now_on() {
        let mut rate = limited(10, 0);
        (0..100).for_each(|_| rate.charge(Instant(0), 0));
        assert!(rate.ready(Instant(0)).is_err());
        rate.set_limits(RateLimits::default());
        assert_eq!(rate.ready(Instant(0)), Ok(()));
    }

    proptest! {
        /// Whoever asks as soon as it may, with pauses in between, gets its rate while it asks and never more than that
        /// and one burst (and the command that goes beyond it).
        #[test]
        fn the_rate_is_kept(
            per_second in 1_u64..100_000,
            pauses in proptest::collection::vec(0_u64..3_000_000_000, 1..20),
            bytes in 1_u64..10_000,
            by_bytes in any::<bool>(),
        ) {
            let unit = if by_bytes { bytes } else { 1 };
            let asked = if by_bytes { limits(0, per_second * bytes) } else { limits(per_second, 0) };
            let mut rate = Rate { limits: asked, ..Rate::default() };
            let (mut now, mut granted) = (Instant(0), 0_u64);
            for pause in pauses {
                now = now.after(Duration::from_nanos(pause));
                let busy_from = now;
                let mut while_busy = 0_u64;
                for _ in 0..200 {
                    if let Err(due) = rate.ready(now) {
                        prop_assert!(due > now);
                        now = due;
                        prop_assert_eq!(rate.ready(now), Ok(()), "no earlier, and no later");
                    }
                    rate.charge(now, bytes);
                    (granted, while_busy) = (granted + 1, while_busy + 1);
                }
                let most = |time: Duration| (time + BURST).as_secs_f64() * per_second as f64 + 2.0;
                prop_assert!(granted as f64 <= most(now.since(Instant(0))) + 1.0, "{granted} of {unit}");
                let least = now.since(busy_from).as_secs_f64() * per_second as f64 * 0.99 - 1.0;
                prop_assert!(while_busy as f64 >= least, "{while_busy} < {least}");
            }
        }
    }
}
