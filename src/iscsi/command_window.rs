//! The command window (RFC 7143, 4.2.2.1): which commands may come, and in which order they go on.
//!
//! Knows ExpCmdSN, MaxCmdSN, immediate commands and what waits for a gap to close. Does not know what a command
//! is: whatever waits is a `T`.
//!
//! ExpCmdSN steps when a command is begun. MaxCmdSN is ExpCmdSN - 1 plus the free places, so it stands still
//! while commands come and moves on when they finish: it never goes back.

use super::pdu::WindowSnapshot;
use super::serial::CmdSn;
use crate::limits;

/// What to do with a command that has just arrived, by its number:
///
/// | number              | ordered | immediate        |
/// |---------------------|---------|------------------|
/// | before ExpCmdSN     | Ignore  | Now              |
/// | ExpCmdSN            | Now     | Now              |
/// | ahead, not yet here | Ahead   | Now              |
/// | ahead, held         | Ignore  | Now              |
/// | MaxCmdSN            | Ahead   | Now              |
/// | beyond MaxCmdSN     | Ignore  | Now              |
/// | any, places taken   | Ignore  | TooManyImmediate |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It is its turn: [`CommandWindow::begin`] it.
    Now,
    /// Inside the window, but an earlier one is missing: [`CommandWindow::hold`] it.
    Ahead,
    /// Outside the window or seen before: the RFC wants silence.
    Ignore,
    /// More immediate commands than we have places for: Reject.
    TooManyImmediate,
}

/// A place in the window; given back when the answer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Ordered,
    Immediate,
}

#[derive(Debug)]
pub struct CommandWindow<T> {
    exp_cmd_sn: CmdSn,
    /// Commands it holds.
    depth: u32,
    ordered: u32,
    immediate: usize,
    /// Ahead of ExpCmdSN; `None` for a number that only counts as received. Allocated at the first gap.
    held: Vec<(CmdSn, Option<T>)>,
}

impl<T> CommandWindow<T> {
    /// Of `depth` commands, one at least.
    pub fn new(exp_cmd_sn: CmdSn, depth: u32) -> Self {
        let depth = depth.clamp(1, limits::COMMAND_WINDOW_MAX);
        Self { exp_cmd_sn, depth, ordered: 0, immediate: 0, held: Vec::new() }
    }

    pub fn snapshot(&self) -> WindowSnapshot {
        let free = self.depth.saturating_sub(self.ordered);
        WindowSnapshot {
            exp_cmd_sn: self.exp_cmd_sn,
            max_cmd_sn: CmdSn(self.exp_cmd_sn.0.wrapping_add(free).wrapping_sub(1)),
        }
    }

    /// True between ExpCmdSN and MaxCmdSN, both included.
    pub fn contains(&self, cmd_sn: CmdSn) -> bool {
        let free = self.depth.saturating_sub(self.ordered);
        cmd_sn.distance_from(self.exp_cmd_sn) < free
    }

    pub fn arrival(&self, immediate: bool, cmd_sn: CmdSn) -> Arrival {
        if immediate {
            return if self.immediate < limits::IMMEDIATE_TASKS_MAX {
                Arrival::Now
            } else {
                Arrival::TooManyImmediate
            };
        }
        if !self.contains(cmd_sn) || self.held.iter().any(|(held, _)| *held == cmd_sn) {
            Arrival::Ignore
        } else if cmd_sn == self.exp_cmd_sn {
            Arrival::Now
        } else {
            Arrival::Ahead
        }
    }

    /// Takes a place; an ordered command must be the expected one.
    pub fn begin(&mut self, immediate: bool) -> Place {
        if immediate {
            self.immediate += 1;
            Place::Immediate
        } else {
            self.ordered += 1;
            self.exp_cmd_sn.take();
            Place::Ordered
        }
    }

    pub fn finish(&mut self, place: Place) {
        match place {
            Place::Ordered => self.ordered = self.ordered.saturating_sub(1),
            Place::Immediate => self.immediate = self.immediate.saturating_sub(1),
        }
    }

    /// Takes back a `begin` of this very moment: the command is rejected and its number counts as not received
    /// (7.3).
    pub fn revoke(&mut self, place: Place) {
        self.finish(place);
        if place == Place::Ordered {
            self.exp_cmd_sn = CmdSn(self.exp_cmd_sn.0.wrapping_sub(1));
        }
    }

    /// Keeps a command for which [`Arrival::Ahead`] was said.
    pub fn hold(&mut self, cmd_sn: CmdSn, command: T) {
        debug_assert!(self.contains(cmd_sn));
        self.held.push((cmd_sn, Some(command)));
    }

    /// From now on `cmd_sn` counts as received (11.6.1): what was held under it is given back, and the gap it
    /// left, if any, is closed. `None` also where the number was never missing.
    pub fn plug(&mut self, cmd_sn: CmdSn) -> Option<T> {
        if !self.contains(cmd_sn) {
            return None;
        }
        match self.held.iter_mut().find(|(held, _)| *held == cmd_sn) {
            Some((_, command)) => command.take(),
            None => {
                self.held.push((cmd_sn, None));
                None
            }
        }
    }

    /// The held command whose turn it is; the caller begins it at once. Passes plugged numbers.
    pub fn release(&mut self) -> Option<T> {
        loop {
            let at = self.held.iter().position(|(held, _)| *held == self.exp_cmd_sn)?;
            match self.held.swap_remove(at).1 {
                Some(command) => return Some(command),
                None => self.skip(),
            }
        }
    }

    /// The expected number counts as received; nothing is begun under it.
    pub fn skip(&mut self) {
        self.exp_cmd_sn.take();
    }

    /// Numbers of held commands that `gone` names count as received; gives the commands.
    pub fn plug_where(&mut self, gone: impl Fn(&T) -> bool) -> Vec<T> {
        let theirs = self.held.iter_mut().filter(|(_, held)| held.as_ref().is_some_and(&gone));
        theirs.filter_map(|(_, held)| held.take()).collect()
    }

    /// Every number before `cmd_sn` counts as received (4.2.3.3): gaps close, and what was held there is given back.
    pub fn plug_before(&mut self, cmd_sn: CmdSn) -> Vec<T> {
        let mut given = Vec::new();
        let mut at = self.exp_cmd_sn;
        while at.before(cmd_sn) && self.contains(at) {
            given.extend(self.plug(at));
            at.take();
        }
        given
    }

    /// True when every number before `cmd_sn` was received. Nonsense outside of the window is not waited for.
    pub fn has_all_before(&self, cmd_sn: CmdSn) -> bool {
        !self.exp_cmd_sn.before(cmd_sn) || !self.contains(CmdSn(cmd_sn.0.wrapping_sub(1)))
    }

    pub fn held_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.held.iter_mut().filter_map(|(_, command)| command.as_mut())
    }

    /// Nothing waits for a gap to close.
    pub fn is_in_step(&self) -> bool {
        self.held.is_empty()
    }

    pub fn is_idle(&self) -> bool {
        self.ordered == 0 && self.immediate == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPTH: u32 = limits::COMMAND_WINDOW_DEFAULT;

    fn window(at: u32) -> CommandWindow<&'static str> {
        CommandWindow::new(CmdSn(at), DEPTH)
    }

    #[test]
    fn max_cmd_sn_stands_while_commands_come_and_moves_when_they_finish() {
        let mut window = window(u32::MAX - 1);
        let max = window.snapshot().max_cmd_sn;
        assert_eq!(max.distance_from(CmdSn(u32::MAX - 1)), DEPTH - 1);
        let places: Vec<Place> = (0..DEPTH).map(|_| window.begin(false)).collect();
        assert_eq!(window.snapshot().max_cmd_sn, max);
        assert_eq!(
            window.arrival(false, window.snapshot().exp_cmd_sn),
            Arrival::Ignore,
            "the window is shut"
        );
        for (step, place) in places.into_iter().enumerate() {
            window.finish(place);
            assert_eq!(window.snapshot().max_cmd_sn, max.plus(step as u32 + 1));
        }
    }

    #[test]
    fn arrivals_are_what_the_table_in_the_docs_says() {
        use crate::iscsi::doc_table::{assert_doc_table, table};
        const AT: u32 = 100;
        let numbers = [
            ("before ExpCmdSN", AT - 1),
            ("ExpCmdSN", AT),
            ("ahead, not yet here", AT + 2),
            ("ahead, held", AT + 1),
            ("MaxCmdSN", AT + DEPTH - 1),
            ("beyond MaxCmdSN", AT + DEPTH),
            ("any, places taken", AT),
        ];
        let made = table(
            "number",
            (&numbers, |(name, _)| name.to_owned()),
            (&[false, true], |immediate| if immediate { "immediate" } else { "ordered" }.to_owned()),
            |(name, number), immediate| {
                let mut window = window(AT);
                if name.ends_with("taken") {
                    (0..DEPTH).for_each(|_| {
                        window.begin(false);
                    });
                    (0..limits::IMMEDIATE_TASKS_MAX).for_each(|_| {
                        window.begin(true);
                    });
                }
                if window.contains(CmdSn(AT + 1)) {
                    window.hold(CmdSn(AT + 1), "held");
                }
                format!("{:?}", window.arrival(immediate, CmdSn(number)))
            },
        );
        assert_doc_table(include_str!("command_window.rs"), "number", &made);
    }

    #[test]
    fn outside_the_window_is_silence() {
        let window = window(10);
        assert_eq!(window.arrival(false, CmdSn(9)), Arrival::Ignore);
        assert_eq!(window.arrival(false, CmdSn(10)), Arrival::Now);
        assert_eq!(window.arrival(false, CmdSn(10 + DEPTH - 1)), Arrival::Ahead);
        assert_eq!(window.arrival(false, CmdSn(10 + DEPTH)), Arrival::Ignore);
    }

    #[test]
    fn held_commands_go_on_in_order_once_the_gap_closes() {
        let mut window = window(u32::MAX);
        window.hold(CmdSn(1), "third");
        window.hold(CmdSn(0), "second");
        assert_eq!(window.arrival(false, CmdSn(0)), Arrival::Ignore, "a duplicate");
        assert_eq!(window.release(), None);
        window.begin(false);
        assert_eq!(window.release(), Some("second"));
        window.begin(false);
        assert_eq!(window.release(), Some("third"));
        window.begin(false);
        assert_eq!(window.release(), None);
    }

    #[test]
    fn a_plugged_number_counts_as_received() {
        let mut window = window(5);
        window.hold(CmdSn(6), "next");
        assert_eq!(window.plug(CmdSn(5)), None);
        assert_eq!(window.release(), Some("next"));
        window.begin(false);
        assert_eq!(window.snapshot().exp_cmd_sn, CmdSn(7));
        assert_eq!(window.plug(CmdSn(4)), None);
        assert_eq!(window.release(), None);
    }

    #[test]
    fn numbers_before_a_reset_are_plugged_at_once() {
        let mut window = window(5);
        window.hold(CmdSn(6), "held");
        window.hold(CmdSn(9), "later");
        assert!(!window.has_all_before(CmdSn(8)));
        assert_eq!(window.plug_before(CmdSn(8)), ["held"]);
        assert_eq!(window.release(), None);
        assert_eq!(window.snapshot().exp_cmd_sn, CmdSn(8));
        assert!(window.has_all_before(CmdSn(8)) && !window.has_all_before(CmdSn(9)));
        assert!(window.has_all_before(CmdSn(5000)), "nonsense");
    }

    #[test]
    fn immediate_commands_have_places_of_their_own() {
        let mut window = window(5);
        for _ in 0..limits::IMMEDIATE_TASKS_MAX {
            assert_eq!(window.arrival(true, CmdSn(99)), Arrival::Now);
            window.begin(true);
        }
        assert_eq!(window.arrival(true, CmdSn(5)), Arrival::TooManyImmediate);
        assert_eq!(window.arrival(false, CmdSn(5)), Arrival::Now);
        assert_eq!(window.snapshot().exp_cmd_sn, CmdSn(5));
    }

    #[test]
    fn the_window_is_as_deep_as_it_was_made_and_one_at_least() {
        for (asked, depth) in [(0, 1), (1, 1), (5, 5), (u32::MAX, limits::COMMAND_WINDOW_MAX)] {
            let mut window = CommandWindow::<()>::new(CmdSn(7), asked);
            assert_eq!(window.snapshot().max_cmd_sn, CmdSn(7 + depth - 1));
            (0..depth).for_each(|_| assert_eq!(window.begin(false), Place::Ordered));
            assert_eq!(window.arrival(false, CmdSn(7 + depth)), Arrival::Ignore);
            window.finish(Place::Ordered);
            assert_eq!(window.arrival(false, CmdSn(7 + depth)), Arrival::Now);
        }
    }
}
