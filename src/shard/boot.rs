//! How far a target's machine has booted, as far as its sessions tell.
//!
//! Knows logins, ends, depths of queues and bytes read. Does not know the machine: what is said here is what a target sees,
//! no more. A machine that boots from elsewhere and mounts its target later looks like one whose system has just come.
//!
//! | phase     | means                                                                                          |
//! |-----------|------------------------------------------------------------------------------------------------|
//! | `Offline` | no session, and either there never was one or the last was a system's                          |
//! | `Loader`  | a loader's session: firmware, an option ROM, iPXE, a boot loader through one of them           |
//! | `Gap`     | the loader has gone and no system has come: a kernel starts, or the machine is stuck           |
//! | `System`  | an operating system's session, and it reads as systems do that start                           |
//! | `Settled` | an operating system's session that has been quiet once: less than 1 MiB a second for 10 s      |
//!
//! A session is a loader's as long as it declares segments of 64 KiB at most and has never had two commands at once; it is
//! a system's from the moment either fails (iPXE declares 8 KiB, Linux 256 KiB; loaders read one piece after another).
//!
//! A boot begins with a loader's login where no session was, after a system's session or a minute after a loader's;
//! without a loader, with the first login of a system. A system that logs in again, after a loss of the network, goes on
//! with the boot it had.

use crate::clock::{Duration, Instant};

/// Loaders take no longer segments.
const LOADER_SEGMENT_BYTES_MAX: u32 = 64 * 1024;
/// A loader that comes back within this time tries again; later, the machine was started again.
const RETRY: Duration = Duration::from_secs(60);
/// A session that shows itself as a system's so soon is the return of one whose boot is known.
const RETURN: Duration = Duration::from_secs(2);
/// A second in which a system reads as much is busy.
const BUSY_BYTES: u64 = 1 << 20;
const WINDOW: Duration = Duration::from_secs(1);
/// A system is settled after so long without a busy second.
const QUIET: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootPhase {
    Offline,
    Loader,
    Gap,
    System,
    Settled,
}

/// When a boot came to what. A boot without a loader has no `loader_ended`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BootTimes {
    pub first_login: Option<Instant>,
    pub loader_ended: Option<Instant>,
    pub system_login: Option<Instant>,
    /// The end of its last busy second before it was quiet.
    pub settled: Option<Instant>,
}

/// A boot at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootReport {
    pub phase: BootPhase,
    /// When the phase began; `None`: there never was a session.
    pub since: Option<Instant>,
    pub times: BootTimes,
}

/// What a session remembers of its part in the boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Visit {
    pub(super) since: Instant,
    pub(super) system: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Boot {
    times: BootTimes,
    /// The boot of the system that was here before the loader of `times`.
    former: Option<BootTimes>,
    loaders: u32,
    systems: u32,
    last_end: Option<Instant>,
    /// The second that is being counted, and the end of the last busy one.
    window: Instant,
    window_bytes: u64,
    last_busy: Instant,
}

impl Boot {
    /// A session begins; its initiator takes segments of `segment` bytes.
    pub(super) fn login(&mut self, now: Instant, segment: u32) -> Visit {
        let visit = Visit { since: now, system: segment > LOADER_SEGMENT_BYTES_MAX };
        if visit.system {
            self.systems += 1;
            self.system_came(now, now);
            return visit;
        }
        if self.loaders + self.systems == 0 && self.is_over(now) {
            self.former = self.times.system_login.map(|_| self.times);
            self.times = BootTimes { first_login: Some(now), ..BootTimes::default() };
        }
        self.loaders += 1;
        visit
    }

    fn is_over(&self, now: Instant) -> bool {
        let late = self.last_end.is_none_or(|end| now.since(end) > RETRY);
        late || self.times.system_login.is_some()
    }

    /// A session has two commands at once: no loader's.
    pub(super) fn is_system(&mut self, now: Instant, visit: &mut Visit) {
        if visit.system {
            return;
        }
        visit.system = true;
        self.loaders = self.loaders.saturating_sub(1);
        self.systems += 1;
        let began = self.times.first_login == Some(visit.since);
        match self.former.take() {
            Some(former) if began && now.since(visit.since) <= RETURN => self.times = former,
            _ => {
                if !began {
                    self.times.loader_ended.get_or_insert(visit.since);
                }
                self.system_came(visit.since, now);
            }
        }
    }

    fn system_came(&mut self, since: Instant, now: Instant) {
        self.former = None;
        self.times.first_login.get_or_insert(since);
        if self.times.system_login.is_none() {
            self.times.system_login = Some(since);
            if self.loaders > 0 {
                // Also where an earlier one has ended: this one has taken over from it.
                self.times.loader_ended = Some(since);
            }
            (self.window, self.window_bytes, self.last_busy) = (now, 0, now);
        }
    }

    pub(super) fn ended(&mut self, now: Instant, visit: Visit) {
        self.look(now);
        self.last_end = Some(now);
        if visit.system {
            self.systems = self.systems.saturating_sub(1);
        } else {
            self.loaders = self.loaders.saturating_sub(1);
            if self.times.system_login.is_none() {
                self.times.loader_ended = Some(now);
            }
        }
    }

    /// A command has read so much.
    pub(super) fn read(&mut self, now: Instant, bytes: u64) {
        if now.since(self.window) >= WINDOW {
            self.look(now);
            (self.window, self.window_bytes) = (now, 0);
        }
        self.window_bytes += bytes;
    }

    fn look(&mut self, now: Instant) {
        if self.window_bytes >= BUSY_BYTES {
            self.last_busy = self.last_busy.max(self.window.after(WINDOW).min(now));
        }
        let starting = self.systems > 0 && self.times.settled.is_none();
        if starting && self.times.system_login.is_some() && now.since(self.last_busy) >= QUIET {
            self.times.settled = Some(self.last_busy);
        }
    }

    pub(super) fn report(&self, now: Instant) -> BootReport {
        let mut seen = *self;
        seen.look(now);
        let mut times = seen.times;
        let (phase, since) = match times {
            BootTimes { settled: Some(at), .. } if seen.systems > 0 => (BootPhase::Settled, Some(at)),
            _ if seen.systems > 0 => (BootPhase::System, times.system_login),
            _ if seen.loaders > 0 => (BootPhase::Loader, times.first_login),
            BootTimes { system_login: None, first_login: Some(_), .. } => (BootPhase::Gap, seen.last_end),
            _ => (BootPhase::Offline, seen.last_end),
        };
        if phase == BootPhase::Loader {
            // An earlier one of the same boot may have ended.
            times.loader_ended = None;
        }
        BootReport { phase, since, times }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IPXE: u32 = 8192;
    const LINUX: u32 = 262_144;
    const WINDOWS: u32 = 65_536;

    fn at(ms: u64) -> Instant {
        Instant(ms * 1_000_000)
    }

    fn phase(boot: &Boot, ms: u64) -> BootPhase {
        boot.report(at(ms)).phase
    }

    #[test]
    fn a_boot_goes_from_loader_over_a_gap_to_a_system_that_settles() {
        let mut boot = Boot::default();
        assert_eq!(boot.report(at(0)).since, None);
        assert_eq!(phase(&boot, 0), BootPhase::Offline);
        let loader = boot.login(at(1_000), IPXE);
        assert_eq!(phase(&boot, 1_500), BootPhase::Loader);
        boot.ended(at(4_000), loader);
        assert_eq!((phase(&boot, 5_000), boot.report(at(5_000)).since), (BootPhase::Gap, Some(at(4_000))));
        let system = boot.login(at(12_000), LINUX);
        for second in 12..20 {
            boot.read(at(second * 1_000 + 100), 2 << 20);
        }
        assert_eq!(phase(&boot, 20_500), BootPhase::System);
        for second in 20..60 {
            boot.read(at(second * 1_000 + 150), 64 << 10);
        }
        let report = boot.report(at(60_000));
        assert_eq!(report.phase, BootPhase::Settled);
        let times = report.times;
        assert_eq!((times.first_login, times.loader_ended), (Some(at(1_000)), Some(at(4_000))));
        assert_eq!(times.system_login, Some(at(12_000)));
        assert!(times.settled.is_some_and(|when| when > at(19_900) && when < at(20_500)), "{times:?}");
        // Work of its user later does not make it a boot.
        boot.read(at(70_000), 500 << 20);
        assert_eq!(phase(&boot, 70_500), BootPhase::Settled);
        boot.ended(at(80_000), system);
        assert_eq!(phase(&boot, 81_000), BootPhase::Offline);
    }

    #[test]
    fn a_loader_that_tries_again_is_one_boot_and_after_a_minute_another() {
        let mut boot = Boot::default();
        let first = boot.login(at(0), IPXE);
        boot.ended(at(1_000), first);
        let second = boot.login(at(30_000), IPXE);
        assert_eq!(boot.report(at(30_000)).times.first_login, Some(at(0)));
        boot.ended(at(31_000), second);
        boot.login(at(100_000), IPXE);
        assert_eq!(boot.report(at(100_000)).times.first_login, Some(at(100_000)));
    }

    #[test]
    fn of_several_loaders_the_last_one_ends_the_loaders_part() {
        let mut boot = Boot::default();
        let look = boot.login(at(0), IPXE);
        boot.ended(at(10), look);
        boot.login(at(20), IPXE);
        assert_eq!(boot.report(at(1_000)).times.loader_ended, None);
        boot.login(at(4_000), LINUX);
        let times = boot.report(at(5_000)).times;
        assert_eq!((times.first_login, times.loader_ended), (Some(at(0)), Some(at(4_000))));
    }

    #[test]
    fn short_segments_and_two_commands_at_once_are_a_systems() {
        let mut boot = Boot::default();
        let mut system = boot.login(at(0), WINDOWS);
        assert_eq!(phase(&boot, 0), BootPhase::Loader);
        boot.is_system(at(10), &mut system);
        assert_eq!(phase(&boot, 20), BootPhase::System);
        let times = boot.report(at(20)).times;
        assert_eq!((times.system_login, times.loader_ended), (Some(at(0)), None));
    }

    #[test]
    fn a_system_that_returns_goes_on_with_its_boot_and_a_loader_begins_another() {
        let mut boot = Boot::default();
        let system = boot.login(at(0), LINUX);
        let before = boot.report(at(50_000)).times;
        assert_eq!(before.settled, Some(at(0)), "it never was busy");
        boot.ended(at(50_000), system);
        let mut back = boot.login(at(55_000), WINDOWS);
        boot.is_system(at(55_100), &mut back);
        assert_eq!(boot.report(at(56_000)).times.first_login, Some(at(0)));
        assert_eq!(phase(&boot, 56_000), BootPhase::Settled);
        boot.ended(at(60_000), back);
        let loader = boot.login(at(61_000), IPXE);
        assert_eq!(
            boot.report(at(70_000)).times,
            BootTimes { first_login: Some(at(61_000)), ..BootTimes::default() }
        );
        boot.ended(at(71_000), loader);
        boot.login(at(75_000), LINUX);
        let times = boot.report(at(75_000)).times;
        assert_eq!((times.loader_ended, times.system_login), (Some(at(71_000)), Some(at(75_000))));
    }

    #[test]
    fn a_loader_that_never_logs_out_ends_when_the_system_comes() {
        let mut boot = Boot::default();
        let loader = boot.login(at(0), IPXE);
        let system = boot.login(at(9_000), LINUX);
        boot.ended(at(40_000), loader);
        assert_eq!(boot.report(at(41_000)).times.loader_ended, Some(at(9_000)));
        boot.ended(at(50_000), system);
        assert_eq!(phase(&boot, 51_000), BootPhase::Offline);
    }
}
