//! Task attributes: which commands of a unit wait for which (SAM-5, 8.6 to 8.9).
//!
//! Knows the order in which commands came to a unit. Does not know what they do, nor that some need the unit for
//! themselves (`turns`).
//!
//! | attribute      | begins when                                                                       |
//! |----------------|-----------------------------------------------------------------------------------|
//! | SIMPLE, none   | no ORDERED command that came earlier is unfinished                                  |
//! | ORDERED        | every command that came earlier has finished                                        |
//! | HEAD OF QUEUE  | at once                                                                             |
//! | ACA            | never: there is no ACA condition here (NORMACA is zero), and INVALID MESSAGE says so |
//!
//! It is the commands that touch blocks that are put in order. What a unit answers from its own state (INQUIRY, MODE
//! SENSE, reservations) it answers on arrival. A command holds its place from its arrival, before its data-out is
//! here, to its end.

use std::collections::VecDeque;

use crate::iscsi::pdu::scsi_command::TaskAttribute;

use super::executor::{Core, TaskKey};
use super::task::Stage;

#[derive(Debug)]
struct Ordered {
    arrival: u64,
    /// Commands that came earlier and have not finished.
    earlier: u32,
}

/// The commands of one unit, by arrival.
#[derive(Debug, Default)]
pub(super) struct Order {
    arrivals: u64,
    unfinished: u32,
    /// Those not finished, by arrival.
    ordered: VecDeque<Ordered>,
    waiting: Vec<TaskKey>,
}

impl Order {
    fn arrive(&mut self, attribute: TaskAttribute) -> u64 {
        let arrival = self.arrivals;
        self.arrivals += 1;
        if attribute == TaskAttribute::Ordered {
            self.ordered.push_back(Ordered { arrival, earlier: self.unfinished });
        }
        self.unfinished += 1;
        arrival
    }

    /// A SIMPLE command that comes now waits for nobody.
    pub(super) fn lets_pass(&self) -> bool {
        self.ordered.is_empty()
    }

    fn may_begin(&self, arrival: u64, attribute: TaskAttribute) -> bool {
        match (attribute, self.ordered.front()) {
            (TaskAttribute::HeadOfQueue, _) | (_, None) => true,
            (TaskAttribute::Ordered, _) => {
                self.ordered.iter().any(|ordered| ordered.arrival == arrival && ordered.earlier == 0)
            }
            (_, Some(first)) => arrival < first.arrival,
        }
    }

    fn leave(&mut self, arrival: u64) {
        self.unfinished -= 1;
        self.ordered.retain(|ordered| ordered.arrival != arrival);
        for ordered in self.ordered.iter_mut().filter(|ordered| ordered.arrival > arrival) {
            ordered.earlier -= 1;
        }
    }
}

impl Core {
    /// The command has come to its unit.
    pub(super) fn arrive(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        if task.arrival.is_none() {
            task.arrival = Some(self.luns[task.home as usize].order.arrive(task.attribute));
        }
    }

    /// False: it waits for others, and is executed again when one of them has ended.
    pub(super) fn is_in_order(&mut self, key: TaskKey) -> bool {
        let Some(task) = self.tasks.get_mut(key) else { return false };
        let order = &mut self.luns[task.home as usize].order;
        let in_order = task.arrival.is_none_or(|arrival| order.may_begin(arrival, task.attribute));
        if !in_order {
            task.stage = Stage::Order;
            order.waiting.push(key);
        }
        in_order
    }

    /// The command is finished or gone.
    pub(super) fn leave_order(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let Some(arrival) = task.arrival.take() else { return };
        let order = &mut self.luns[task.home as usize].order;
        order.leave(arrival);
        if !order.waiting.is_empty() {
            // Few ever wait, and each looks for itself whether it still has to.
            self.ready.extend(order.waiting.drain(..));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Op;
    use crate::shard::bench::Bench;

    const GOOD: u8 = 0;

    fn command(bench: &mut Bench, attribute: TaskAttribute, write: Option<u8>) -> TaskKey {
        bench.attribute = attribute;
        match write {
            Some(byte) => bench.begin(&[0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[byte; 512], 0),
            None => bench.begin(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[], 512),
        }
    }

    fn status(bench: &Bench, key: TaskKey) -> Option<u8> {
        bench.reply(key).map(|ended| ended.status)
    }

    fn read(bench: &Bench, key: TaskKey) -> u8 {
        bench.reply(key).unwrap().data[0]
    }

    #[test]
    fn an_ordered_write_parts_the_reads_before_it_from_those_behind_it() {
        let mut bench = Bench::new();
        let before = command(&mut bench, TaskAttribute::Simple, None);
        let write = command(&mut bench, TaskAttribute::Ordered, Some(7));
        let behind = command(&mut bench, TaskAttribute::Untagged, None);
        let mut ops = bench.ops();
        assert!(matches!(ops[..], [(_, Op::Read { .. })]), "the first read alone: {ops:?}");
        bench.complete(ops.remove(0));
        let mut ops = bench.ops();
        assert!(matches!(ops[..], [(_, Op::Write { .. })]), "then the write alone: {ops:?}");
        bench.complete(ops.remove(0));
        bench.settle();
        assert_eq!((read(&bench, before), status(&bench, write), read(&bench, behind)), (0, Some(GOOD), 7));
    }

    #[test]
    fn head_of_queue_overtakes_what_waits() {
        let mut bench = Bench::new();
        command(&mut bench, TaskAttribute::Simple, None);
        command(&mut bench, TaskAttribute::Ordered, Some(7));
        let urgent = command(&mut bench, TaskAttribute::HeadOfQueue, None);
        assert_eq!(bench.ops().len(), 2, "the first and the urgent one");
        assert!(bench.core.abort(urgent) || status(&bench, urgent).is_none());
    }

    #[test]
    fn two_ordered_commands_run_one_after_the_other() {
        let mut bench = Bench::new();
        let first = command(&mut bench, TaskAttribute::Ordered, Some(1));
        let second = command(&mut bench, TaskAttribute::Ordered, Some(2));
        let mut ops = bench.ops();
        assert_eq!(ops.len(), 1, "{ops:?}");
        bench.complete(ops.remove(0));
        assert_eq!((status(&bench, first), status(&bench, second)), (Some(GOOD), None));
        bench.settle();
        assert_eq!((status(&bench, second), bench.disk[0]), (Some(GOOD), 2));
    }

    #[test]
    fn an_aborted_ordered_command_lets_the_others_go() {
        let mut bench = Bench::new();
        let running = command(&mut bench, TaskAttribute::Simple, None);
        let ordered = command(&mut bench, TaskAttribute::Ordered, Some(7));
        let behind = command(&mut bench, TaskAttribute::Simple, None);
        let mut ops = bench.ops();
        assert!(bench.core.abort(ordered), "it only waits");
        assert_eq!(bench.ops().len(), 1, "the last read begins beside the first");
        bench.complete(ops.remove(0));
        assert_eq!((status(&bench, running), status(&bench, behind)), (Some(GOOD), None));
        assert_eq!(bench.disk[0], 0);
    }

    #[test]
    fn aca_without_an_aca_condition_is_an_invalid_message() {
        let mut bench = Bench::new();
        let refused = command(&mut bench, TaskAttribute::Aca, None);
        assert_eq!(bench.reply(refused).unwrap().sense, Some((0x49, 0)));
    }
}
