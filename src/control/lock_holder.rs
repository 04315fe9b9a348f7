//! Who holds the lock of a file: what the kernel tells, and no more.
//!
//! Knows `/proc/locks`. Does not lock.

use std::fmt;
use std::path::Path;

use super::file::FileIdentity;

/// A process, by number and name.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LockHolder {
    pub pid: u32,
    /// As the kernel knows it; empty when the process has gone, or is not ours to look at.
    pub command: String,
}

impl fmt::Display for LockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.command.as_str() {
            "" => write!(f, "pid {}", self.pid),
            command => write!(f, "{command}, pid {}", self.pid),
        }
    }
}

impl LockHolder {
    /// True when the process has ended, or is about to: the kernel still takes its ring apart, and then lets the files
    /// go.
    pub(super) fn has_ended(&self) -> bool {
        let process = Path::new("/proc").join(self.pid.to_string());
        let gone = |error: std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
        match std::fs::read_to_string(process.join("stat")) {
            Ok(stat) if is_dead(&stat) => true,
            Ok(_) => std::fs::read_to_string(process.join("status"))
                .map_or_else(gone, |status| is_being_killed(&status)),
            Err(error) => gone(error),
        }
    }
}

/// The state stands behind the name, which is in brackets and may have some itself: Z is a zombie, X is dead.
fn is_dead(stat: &str) -> bool {
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().next());
    matches!(state, Some("Z" | "X"))
}

/// SIGKILL is on its way: `SigPnd` and `ShdPnd` are masks in hexadecimal.
fn is_being_killed(status: &str) -> bool {
    const KILL: u64 = 1 << 8;
    let pending = |line: &str| {
        let mask = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    };
    status.lines().filter_map(pending).any(|mask| mask & KILL != 0)
}

/// The process that holds a lock on the file. `None` where the kernel does not say, or says two things.
pub(super) fn holder_of(identity: FileIdentity) -> Option<LockHolder> {
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let pid = find(&locks, identity)?;
    let command = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("comm"));
    let command = command.unwrap_or_default().trim().chars().filter(|c| !c.is_control()).collect();
    Some(LockHolder { pid, command })
}

/// A line is `1: FLOCK  ADVISORY  WRITE 4711 fe:00:123456 0 EOF`: device in hexadecimal, inode in decimal. A process
/// that waits for a lock has a line with `->`.
fn find(locks: &str, identity: FileIdentity) -> Option<u32> {
    let mut found = None;
    for line in locks.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, kind, _, _, pid, place, ..] = words.as_slice() else { continue };
        if *kind != "FLOCK" || place_of(place) != Some(identity) {
            continue;
        }
        // Locks of another process namespace have no number here.
        let Some(pid) = pid.parse().ok().filter(|pid| *pid > 0) else { continue };
        if found.is_some_and(|known| known != pid) {
            return None;
        }
        found = Some(pid);
    }
    found
}

fn place_of(text: &str) -> Option<FileIdentity> {
    let mut parts = text.split(':');
    let major = u32::from_str_radix(parts.next()?, 16).ok()?;
    let minor = u32::from_str_radix(parts.next()?, 16).ok()?;
    let inode = parts.next()?.parse().ok()?;
    Some(FileIdentity { device: rustix::fs::makedev(major, minor), inode })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zombie_has_ended_and_we_have_not() {
        assert!(is_dead("17 (gold) rush)) Z 1 17") && !is_dead("17 (Z) S 1 17") && !is_dead(""));
        let holder = |pid| LockHolder { pid, command: String::new() };
        assert!(!holder(std::process::id()).has_ended());
        assert!(holder(u32::MAX).has_ended());
        assert!(is_being_killed("Name:\tgoldrush\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n"));
        assert!(!is_being_killed(
            "SigPnd:\t0000000000000001\nShdPnd:\t0000000000004000\nSigBlk:\t0000000000000100\n"
        ));
    }

    #[test]
    fn the_holder_is_the_one_process_named() {
        let locks = "1: POSIX  ADVISORY  WRITE 17 fe:00:99 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 4711 fe:00:123456 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 4712 fe:00:123456 0 EOF\n\
                     3: FLOCK  ADVISORY  READ  5 fe:00:7 0 EOF\n\
                     4: FLOCK  ADVISORY  READ  6 fe:00:7 0 EOF\nnonsense\n";
        let at = |inode| FileIdentity { device: rustix::fs::makedev(0xfe, 0), inode };
        assert_eq!(find(locks, at(123_456)), Some(4711));
        assert_eq!((find(locks, at(7)), find(locks, at(99))), (None, None));
    }

    #[test]
    fn our_own_lock_is_found() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().lock().unwrap();
        let identity = super::super::file::identity_of(file.path()).unwrap();
        // Where the file system has other numbers than `stat` tells, nobody is named; nobody else must be.
        if let Some(holder) = holder_of(identity) {
            assert_eq!(holder.pid, std::process::id());
        }
    }
}
