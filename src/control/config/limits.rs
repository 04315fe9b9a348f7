//! How fast a target may be used, and by how much: the keys `max_iops`, `max_rate` and `max_connections`.
//!
//! Knows what may be written there. Does not know how a bound is kept (`shard::rate`).

use core::num::NonZeroU64;

use toml::Spanned;

use super::Reader;
use crate::control::size::Size;
use crate::limits::SESSION_CONNECTIONS_MAX;
use crate::shard::RateLimits;

impl Reader {
    pub(super) fn max_connections(&mut self, raw: &Spanned<u32>) -> Option<u32> {
        let most = *raw.get_ref();
        if (1..=SESSION_CONNECTIONS_MAX as u32).contains(&most) {
            return Some(most);
        }
        self.refuse(raw, format!("max_connections {most} is out of range: 1 to {SESSION_CONNECTIONS_MAX}"));
        None
    }

    pub(super) fn limits(&mut self, iops: Option<Spanned<u64>>, rate: Option<Spanned<String>>) -> RateLimits {
        RateLimits {
            commands: iops.and_then(|most| self.max_iops(&most)),
            bytes: rate.and_then(|most| self.max_rate(&most)),
        }
    }

    fn max_iops(&mut self, raw: &Spanned<u64>) -> Option<NonZeroU64> {
        let most = NonZeroU64::new(*raw.get_ref());
        if most.is_none() {
            self.refuse(
                raw,
                "max_iops is 0, which would stop the target: write commands per second, or remove it".into(),
            );
        }
        most
    }

    fn max_rate(&mut self, raw: &Spanned<String>) -> Option<NonZeroU64> {
        let most = raw.get_ref().parse::<Size>().ok().and_then(|size| NonZeroU64::new(size.0));
        if most.is_none() {
            let reason = format!(
                "max_rate \"{}\" is no rate: write bytes per second, such as \"100M\"",
                raw.get_ref()
            );
            self.refuse(raw, reason);
        }
        most
    }
}
