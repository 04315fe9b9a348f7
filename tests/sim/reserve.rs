//! Persistent reservations among the initiators of a target: what each PERSISTENT RESERVE OUT does, and whom it keeps away.
//!
//! Knows SPC-4, 5.12, in the slowest words. Does not know how commands travel.
//!
//! The state of a unit is known as long as every PERSISTENT RESERVE OUT was answered, one at a time. While it is known and
//! does not change, each answer of each command is held to it: GOOD where there is no conflict, RESERVATION CONFLICT where
//! there is one.

use std::collections::BTreeMap;

use crate::board::Board;
use crate::initiator::Initiator;
use crate::task::Task;
use crate::world::World;

const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const RELEASE: u8 = 2;
const CLEAR: u8 = 3;
const PREEMPT: u8 = 4;
const REGISTER_AND_IGNORE: u8 = 6;
/// Write exclusive, exclusive access; the same for registrants only; the same for all registrants.
const KINDS: [u8; 6] = [1, 3, 5, 6, 7, 8];

/// One PERSISTENT RESERVE OUT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PrOut {
    action: u8,
    kind: u8,
    key: u64,
    new: u64,
}

/// Who is registered with which key, and who holds the reservation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    keys: BTreeMap<usize, u64>,
    held: Option<(usize, u8)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Good,
    Conflict,
    /// INVALID RELEASE OF PERSISTENT RESERVATION.
    InvalidRelease,
}

/// What is known of one unit.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reservations {
    state: State,
    /// Since when it is what it is.
    since: u64,
    /// Whose command is on its way, and its tag.
    busy: Option<(usize, u32)>,
    /// A command was lost: nothing is known any more.
    lost: bool,
}

impl Reservations {
    /// Nothing is known any more.
    pub(crate) fn lose(&mut self) {
        self.lost = true;
    }
}

impl State {
    fn holds(&self, who: usize) -> bool {
        match self.held {
            None => false,
            Some((_, 7 | 8)) => self.keys.contains_key(&who),
            Some((holder, _)) => holder == who,
        }
    }

    /// True when a read or write of this initiator meets RESERVATION CONFLICT.
    fn keeps_away(&self, who: usize, writes: bool) -> bool {
        let Some((_, kind)) = self.held else { return false };
        let friend = self.holds(who) || kind >= 5 && self.keys.contains_key(&who);
        !friend && (writes || matches!(kind, 3 | 6 | 8))
    }

    fn unregister(&mut self, who: usize) {
        let held_alone = self.held.is_some_and(|(holder, kind)| kind < 7 && holder == who);
        self.keys.remove(&who);
        if held_alone || self.keys.is_empty() {
            self.held = None;
        }
    }

    fn apply(&mut self, who: usize, out: PrOut) -> Outcome {
        let registered = self.keys.get(&who).copied();
        match out.action {
            REGISTER if registered.unwrap_or(0) != out.key => return Outcome::Conflict,
            REGISTER | REGISTER_AND_IGNORE => {
                if out.new != 0 {
                    self.keys.insert(who, out.new);
                } else if registered.is_some() {
                    self.unregister(who);
                }
                return Outcome::Good;
            }
            _ if registered != Some(out.key) => return Outcome::Conflict,
            _ => {}
        }
        match (out.action, self.held) {
            (RESERVE, None) => self.held = Some((who, out.kind)),
            (RESERVE, Some((_, kind))) if !self.holds(who) || kind != out.kind => return Outcome::Conflict,
            (RELEASE, Some((_, kind))) if self.holds(who) && kind != out.kind => {
                return Outcome::InvalidRelease;
            }
            (RELEASE, Some(_)) if self.holds(who) => self.held = None,
            (CLEAR, _) => *self = Self::default(),
            (PREEMPT, Some((holder, _))) => {
                if holder != who {
                    self.keys.remove(&holder);
                }
                self.held = Some((who, out.kind));
            }
            _ => {}
        }
        Outcome::Good
    }
}

impl Initiator {
    /// The next PERSISTENT RESERVE OUT, unless one is on its way.
    pub(crate) fn reserve(&mut self, world: &World, board: &mut Board) {
        let known = &board.reservations[self.target];
        if known.lost || known.busy.is_some() {
            return;
        }
        board.counts.others += 1;
        let state = &known.state;
        let (own, kind) = (state.keys.get(&self.index).copied(), self.rng.pick(&KINDS));
        let fresh = (self.index as u64 + 1) << 32 | self.rng.below(1 << 20);
        // Now and then with a key that is not ours.
        let key = if self.rng.chance(100) { fresh ^ 1 << 60 } else { own.unwrap_or(0) };
        let holder = state.held.filter(|(_, kind)| *kind < 7).and_then(|(holder, _)| state.keys.get(&holder));
        let out = |action, new| PrOut { action, kind, key, new };
        let out = match (own, self.rng.below(12)) {
            (None, 0..=3) => out(REGISTER, fresh),
            (None, 4..=7) => out(REGISTER_AND_IGNORE, fresh),
            (_, 0) => out(REGISTER, 0),
            (_, 1) => out(REGISTER_AND_IGNORE, if key == 0 { 0 } else { fresh }),
            (_, 2) => out(CLEAR, 0),
            (_, 3 | 4) if holder.is_some() => out(PREEMPT, holder.copied().unwrap_or(0)),
            (_, 5..=7) => {
                let kind = state.held.filter(|_| key & 1 == 0).map_or(kind, |(_, kind)| kind);
                PrOut { kind, ..out(RELEASE, 0) }
            }
            _ => out(RESERVE, 0),
        };
        let mut list = vec![0; 24];
        list[..8].copy_from_slice(&out.key.to_be_bytes());
        list[8..16].copy_from_slice(&out.new.to_be_bytes());
        let mut cdb = [0; 16];
        (cdb[0], cdb[1], cdb[2], cdb[8]) = (0x5F, out.action, out.kind, 24);
        let tag = self.next_tag;
        let mut task = Task::writing("PERSISTENT RESERVE OUT", list, Vec::new());
        task.reservation = Some(out);
        self.send_write(world, board, cdb, task);
        board.reservations[self.target].busy = Some((self.index, tag));
    }

    /// One whose answer will never come leaves nothing known.
    pub(crate) fn watch_reservation(&self, board: &mut Board) {
        let known = &mut board.reservations[self.target];
        if let Some((who, tag)) = known.busy
            && who == self.index
            && !self.tasks.contains_key(&tag)
        {
            (known.busy, known.lost) = (None, true);
        }
    }

    /// An answer came: is it what the reservation makes of the command?
    pub(crate) fn judge_reservation(
        &self,
        task: &Task,
        conflict: bool,
        board: &mut Board,
    ) -> Result<(), String> {
        let known = &mut board.reservations[self.target];
        if let Some(out) = task.reservation {
            let outcome = if conflict { Outcome::Conflict } else { Outcome::Good };
            return self.reservation_changed(out, outcome, board);
        }
        let Some(writes) = task.is_write() else {
            return if conflict {
                Err(format!("{} meets a reservation conflict", task.name))
            } else {
                Ok(())
            };
        };
        if known.lost || known.busy.is_some() || task.sent <= known.since {
            return Ok(());
        }
        match (known.state.keeps_away(self.index, writes), conflict) {
            (true, false) => Err(format!("{} is GOOD in spite of {:?}", task.name, known.state)),
            (false, true) => Err(format!("{} meets a conflict, and there is {:?}", task.name, known.state)),
            _ => Ok(()),
        }
    }

    /// ILLEGAL REQUEST for a PERSISTENT RESERVE OUT.
    pub(crate) fn reservation_refused(&self, task: &Task, code: u8, board: &mut Board) -> Result<(), String> {
        match task.reservation {
            Some(out) if code == 0x26 => self.reservation_changed(out, Outcome::InvalidRelease, board),
            _ => Err(format!("a PERSISTENT RESERVE OUT is refused, code {code:02x}: {task:.0?}")),
        }
    }

    fn reservation_changed(&self, out: PrOut, outcome: Outcome, board: &mut Board) -> Result<(), String> {
        let now = board.now;
        let known = &mut board.reservations[self.target];
        (known.busy, known.since) = (None, now);
        if known.lost {
            return Ok(());
        }
        let before = known.state.clone();
        let expected = known.state.apply(self.index, out);
        if outcome == expected {
            return Ok(());
        }
        Err(format!(
            "{out:?} of initiator {} ends {outcome:?}, {expected:?} is right with {before:?}",
            self.index
        ))
    }
}

#[test]
fn a_holder_that_goes_takes_the_reservation_along_and_all_registrants_are_holders() {
    let mut state = State::default();
    let out = |action, kind, key, new| PrOut { action, kind, key, new };
    assert_eq!(state.apply(1, out(RESERVE, 1, 5, 0)), Outcome::Conflict);
    assert_eq!(state.apply(1, out(REGISTER, 0, 0, 5)), Outcome::Good);
    assert_eq!(state.apply(2, out(REGISTER, 0, 0, 6)), Outcome::Good);
    assert_eq!(state.apply(1, out(RESERVE, 5, 5, 0)), Outcome::Good);
    assert!(!state.keeps_away(2, true) && state.keeps_away(3, true) && !state.keeps_away(3, false));
    assert_eq!(state.apply(1, out(RELEASE, 1, 5, 0)), Outcome::InvalidRelease);
    assert_eq!(state.apply(2, out(PREEMPT, 3, 6, 5)), Outcome::Good);
    assert!(state.keeps_away(1, false) && !state.holds(1) && state.holds(2));
    assert_eq!(state.apply(2, out(REGISTER, 0, 6, 0)), Outcome::Good);
    assert_eq!(state, State::default());
}
