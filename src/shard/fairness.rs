//! Who may do how much in one turn of the shard, so that nobody waits long for a busy neighbour.
//!
//! Knows what a turn has given to whom. Does not know what a connection does with its share, nor how long a turn takes.
//!
//! A connection begins [`limits::TURN_COMMANDS`] commands a turn; long transfers count for several. What it sent beyond
//! that stays where it is until the next turn, which begins at once. Logins have a share of their own, all together: when
//! a room is switched on, those who boot already are not made to wait for those who come.

use crate::iscsi::pdu::bhs::Bhs;
use crate::iscsi::pdu::opcode::RequestOpcode;
use crate::limits;

use super::ConnKey;

/// What one connection has of the turns.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Share {
    /// The turn it was last counted in, and what it may still spend in that one.
    turn: u64,
    left: u32,
    /// Stands among those whose input waits.
    behind: bool,
}

/// One turn.
#[derive(Debug)]
pub(super) struct Turn {
    number: u64,
    logins_left: u32,
    /// Connections with input that waits for the next turn, in order.
    behind: Vec<ConnKey>,
    /// Kept for its memory.
    spare: Vec<ConnKey>,
}

impl Default for Turn {
    fn default() -> Self {
        // Number one: a share that was never counted is full.
        Self { number: 1, logins_left: limits::TURN_LOGIN_PDUS, behind: Vec::new(), spare: Vec::new() }
    }
}

impl Turn {
    /// The next turn: everybody has a full share. Returned are those who waited for it; give the vector back by `keep`.
    pub(super) fn begin(&mut self) -> Vec<ConnKey> {
        self.number += 1;
        self.logins_left = limits::TURN_LOGIN_PDUS;
        core::mem::replace(&mut self.behind, core::mem::take(&mut self.spare))
    }

    pub(super) fn keep(&mut self, spare: Vec<ConnKey>) {
        debug_assert!(spare.is_empty());
        self.spare = spare;
    }

    /// Somebody waits for the next turn.
    pub(super) fn is_behind(&self) -> bool {
        !self.behind.is_empty()
    }

    fn refresh(&self, share: &mut Share) {
        if share.turn != self.number {
            *share = Share { turn: self.number, left: limits::TURN_COMMANDS, behind: false };
        }
    }

    /// One more PDU may be begun.
    pub(super) fn has_left(&self, share: &mut Share, logs_in: bool) -> bool {
        self.refresh(share);
        if logs_in { self.logins_left > 0 } else { share.left > 0 }
    }

    /// A PDU begins.
    pub(super) fn spend(&mut self, share: &mut Share, logs_in: bool, bhs: &Bhs) {
        self.refresh(share);
        if logs_in {
            self.logins_left = self.logins_left.saturating_sub(1);
        } else {
            share.left = share.left.saturating_sub(cost(bhs));
        }
    }

    /// The input of a connection waits for the next turn.
    pub(super) fn postpone(&mut self, key: ConnKey, share: &mut Share) {
        self.refresh(share);
        if !share.behind {
            share.behind = true;
            self.behind.push(key);
        }
    }
}

/// What a PDU counts for: one, and one more for each [`limits::TURN_COMMAND_BYTES`] that a command wants moved, or that
/// came with it.
fn cost(bhs: &Bhs) -> u32 {
    let bytes = if bhs.opcode() == RequestOpcode::ScsiCommand as u8 {
        // Expected Data Transfer Length (RFC 7143, 11.3.4): the answer's bytes, or those of Data-Out still to come.
        u32::from_be_bytes([bhs.0[20], bhs.0[21], bhs.0[22], bhs.0[23]])
    } else {
        bhs.data_len()
    };
    1 + (bytes / limits::TURN_COMMAND_BYTES).min(limits::TURN_COMMANDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(bytes: u32) -> Bhs {
        let mut bhs = Bhs::default();
        bhs.0[0] = RequestOpcode::ScsiCommand as u8;
        bhs.0[20..24].copy_from_slice(&bytes.to_be_bytes());
        bhs
    }

    /// Commands of `bytes` one connection begins in one turn.
    fn begun(turn: &mut Turn, share: &mut Share, bytes: u32) -> u32 {
        let mut begun = 0;
        while turn.has_left(share, false) {
            turn.spend(share, false, &command(bytes));
            begun += 1;
        }
        begun
    }

    #[test]
    fn a_turn_gives_everybody_the_same() {
        let mut turn = Turn::default();
        let mut shares = [Share::default(); 3];
        for _ in 0..3 {
            for share in &mut shares {
                assert_eq!(begun(&mut turn, share, 4096), limits::TURN_COMMANDS);
                assert_eq!(begun(&mut turn, share, 4096), 0);
            }
            turn.begin();
        }
    }

    #[test]
    fn long_transfers_count_for_several_and_one_is_always_taken() {
        let mut turn = Turn::default();
        let four = 3 * limits::TURN_COMMAND_BYTES;
        assert_eq!(begun(&mut turn, &mut Share::default(), four), limits::TURN_COMMANDS / 4);
        assert_eq!(begun(&mut turn, &mut Share::default(), u32::MAX), 1);
    }

    #[test]
    fn logins_share_what_a_turn_has_for_them_and_leave_the_rest_alone() {
        let mut turn = Turn::default();
        for _ in 0..limits::TURN_LOGIN_PDUS {
            let mut share = Share::default();
            assert!(turn.has_left(&mut share, true));
            turn.spend(&mut share, true, &Bhs::default());
        }
        let mut share = Share::default();
        assert!(!turn.has_left(&mut share, true));
        assert!(turn.has_left(&mut share, false));
        turn.begin();
        assert!(turn.has_left(&mut share, true));
    }

    #[test]
    fn who_is_behind_stands_there_once_and_is_named_in_the_next_turn() {
        let mut turn = Turn::default();
        let keys = [ConnKey::from_parts(1, 0), ConnKey::from_parts(2, 0)];
        let mut shares = [Share::default(); 2];
        for (key, share) in keys.into_iter().zip(&mut shares) {
            turn.postpone(key, share);
            turn.postpone(key, share);
        }
        assert!(turn.is_behind());
        let mut behind = turn.begin();
        assert_eq!(behind, keys);
        behind.clear();
        turn.keep(behind);
        assert!(!turn.is_behind());
    }
}
