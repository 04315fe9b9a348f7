//! Which sends leave without being copied, and which sockets are not worth it.
//!
//! Knows sizes, sockets and what the kernel said of earlier sends. Does not know what is sent.
//!
//! A zero-copy send (SENDMSG_ZC) lets the network card read from our memory. It completes twice: once when the bytes are
//! queued, and once, as a notification, when nobody needs the memory any more, which is after the peer has acknowledged
//! them. Only then is it over for the shard: what it holds stays held. It pays where the card gathers by itself and the
//! payload is long. Elsewhere (loopback, virtual cards without scatter-gather) the kernel copies after all, and says so
//! in the notification: that socket goes back to ordinary sends.

use core::fmt;

use crate::io::Errno;

/// When sends leave without being copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroCopy {
    /// Never.
    Off,
    /// Long sends to other machines, as long as the kernel does not say that it copies them all the same.
    #[default]
    Auto,
    /// Every long send, whatever the kernel says of it: for measurements.
    On,
}

impl fmt::Display for ZeroCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Auto => "auto",
            Self::On => "on",
        })
    }
}

/// What became of zero-copy sends so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroCopyCounts {
    pub sends: u64,
    /// Of these, sends that the kernel copied all the same.
    pub copied: u64,
    /// Of these, sends that the kernel refused: no memory may be pinned, or the socket cannot.
    pub refused: u64,
}

/// SEND_ZC_REPORT_USAGE of `ioprio`: the notification says whether the bytes were copied (Linux 6.2).
pub(super) const REPORT_USAGE: u16 = 1 << 3;
/// Of a notification's result.
const COPIED: u32 = 1 << 31;
/// The shortest send that is tried. Below, pinning pages and a second completion cost more than a copy.
pub(super) const BYTES_MIN: usize = 32 * 1024;

/// The sockets of one ring.
#[derive(Debug)]
pub(super) struct Policy {
    mode: ZeroCopy,
    /// By slot: ordinary sends from now on.
    ordinary: Vec<bool>,
    pub(super) counts: ZeroCopyCounts,
}

impl Policy {
    /// `supported`: the kernel has the operation and reports usage.
    pub(super) fn new(mode: ZeroCopy, supported: bool) -> Self {
        let mode = if supported { mode } else { ZeroCopy::Off };
        Self { mode, ordinary: Vec::new(), counts: ZeroCopyCounts::default() }
    }

    /// A socket came into this slot; `is_local`: its peer is on this machine.
    pub(super) fn opened(&mut self, slot: u32, is_local: bool) {
        let slot = slot as usize;
        if self.ordinary.len() <= slot {
            self.ordinary.resize(slot + 1, true);
        }
        self.ordinary[slot] = match self.mode {
            ZeroCopy::Off => true,
            ZeroCopy::Auto => is_local,
            ZeroCopy::On => false,
        };
    }

    /// This send of `bytes` is to go without a copy.
    pub(super) fn takes(&self, slot: u32, bytes: usize) -> bool {
        bytes >= BYTES_MIN && self.is_in_use(slot)
    }

    /// A send without a copy may be under way on this socket.
    pub(super) fn is_in_use(&self, slot: u32) -> bool {
        self.ordinary.get(slot as usize) == Some(&false)
    }

    /// The kernel took a send, or refused it. True: it was refused as such, and is to be made again as an ordinary one.
    pub(super) fn queued(&mut self, slot: u32, result: Result<u32, Errno>) -> bool {
        self.counts.sends += 1;
        let Err(Errno(libc::ENOMEM | libc::ENOBUFS | libc::EOPNOTSUPP | libc::EINVAL | libc::EPERM)) = result
        else {
            return false;
        };
        self.counts.refused += 1;
        self.give_up(slot);
        true
    }

    /// A notification came.
    pub(super) fn notified(&mut self, slot: u32, result: i32) {
        if result as u32 & COPIED != 0 {
            self.counts.copied += 1;
            if self.mode == ZeroCopy::Auto {
                self.give_up(slot);
            }
        }
    }

    fn give_up(&mut self, slot: u32) {
        if let Some(ordinary) = self.ordinary.get_mut(slot as usize) {
            *ordinary = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: usize = BYTES_MIN;

    #[test]
    fn only_long_sends_to_other_machines_are_tried_by_themselves() {
        let mut policy = Policy::new(ZeroCopy::Auto, true);
        policy.opened(0, false);
        policy.opened(1, true);
        assert!(policy.takes(0, LONG) && !policy.takes(0, LONG - 1));
        assert!(!policy.takes(1, LONG) && !policy.takes(2, LONG));
    }

    #[test]
    fn a_socket_whose_sends_are_copied_or_refused_is_left_alone_until_another_takes_its_slot() {
        for refused in [false, true] {
            let mut policy = Policy::new(ZeroCopy::Auto, true);
            policy.opened(0, false);
            if refused {
                assert!(policy.queued(0, Err(Errno(libc::ENOMEM))));
            } else {
                assert!(!policy.queued(0, Ok(100)));
                policy.notified(0, COPIED as i32);
            }
            assert!(!policy.takes(0, LONG));
            policy.opened(0, false);
            assert!(policy.takes(0, LONG));
        }
    }

    #[test]
    fn a_lost_connection_is_no_refusal() {
        let mut policy = Policy::new(ZeroCopy::On, true);
        policy.opened(0, true);
        assert!(!policy.queued(0, Err(Errno(libc::EPIPE))));
        policy.notified(0, 0);
        assert!(policy.takes(0, LONG));
        assert_eq!(policy.counts, ZeroCopyCounts { sends: 1, copied: 0, refused: 0 });
    }

    #[test]
    fn where_the_kernel_cannot_nothing_is_tried() {
        let mut policy = Policy::new(ZeroCopy::On, false);
        policy.opened(0, false);
        assert!(!policy.takes(0, LONG));
    }
}
