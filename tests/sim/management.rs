//! Task management: who aborts what, and what its response allows.
//!
//! Knows the functions of RFC 7143, 11.5. Does not know the commands they end.

use crate::board::Board;
use crate::initiator::{Initiator, Line};
use crate::task::Management;
use crate::wire::{NO_TAG, Pdu};
use crate::world::World;

const ABORT_TASK: u8 = 1;
const ABORT_TASK_SET: u8 = 2;
const CLEAR_TASK_SET: u8 = 4;
const LOGICAL_UNIT_RESET: u8 = 5;
const TARGET_WARM_RESET: u8 = 6;
const TARGET_COLD_RESET: u8 = 7;

impl Initiator {
    pub(crate) fn manage(&mut self, world: &World, board: &mut Board) {
        let function = match self.rng.below(20) {
            0..10 => ABORT_TASK,
            10..14 => ABORT_TASK_SET,
            14..16 => CLEAR_TASK_SET,
            16..18 => LOGICAL_UNIT_RESET,
            18 => TARGET_WARM_RESET,
            _ => TARGET_COLD_RESET,
        };
        // Pings are no tasks of a unit: nothing aborts them.
        let mut victims: Vec<u32> =
            self.tasks.iter().filter(|(_, task)| task.name != "NOP-Out").map(|(tag, _)| *tag).collect();
        let (mut referenced, mut ref_cmd_sn) = (NO_TAG, 0);
        if function == ABORT_TASK {
            // On the connection of the task (RFC 7143, 11.5.1).
            victims.retain(|tag| self.tasks[tag].cid == self.line.cid);
            let Some(tag) = victims.get(self.rng.below(victims.len() as u64) as usize).copied() else {
                return;
            };
            referenced = tag;
            ref_cmd_sn = self.tasks[&tag].cmd_sn.unwrap_or(self.cmd_sn);
            victims = vec![tag];
        }
        board.counts.management += 1;
        let tag = self.tag();
        for victim in &victims {
            self.unqueue_data(*victim);
        }
        let pdu = Pdu::new(0x42, 0x80 | function)
            .put32(16, tag)
            .put32(20, referenced)
            .put32(24, self.cmd_sn)
            .put32(28, self.line.numbers.exp_stat_sn())
            .put32(32, ref_cmd_sn);
        self.queue(NO_TAG, &pdu);
        let management = Management { sent: world.now, tag, function, victims, cid: self.line.cid };
        if management.concerns_others() {
            board.reset_until[self.target] = u64::MAX;
        }
        if function == TARGET_COLD_RESET {
            board.cold_until[self.target] = u64::MAX;
            self.line.excused = true;
        }
        self.management = Some(management);
    }

    pub(crate) fn management_response(
        &mut self,
        pdu: &Pdu,
        world: &World,
        board: &mut Board,
    ) -> Result<(), String> {
        let Some(management) = self.management.take_if(|management| management.tag == pdu.tag()) else {
            return Err("the response to a function that was not asked for".to_owned());
        };
        if management.concerns_others() {
            board.reset_until[self.target] = world.now;
        }
        if management.function == TARGET_COLD_RESET {
            board.cold_until[self.target] = world.now + 1_000_000_000;
        }
        let ended_until = board.reset_until[self.target].max(board.away_until[self.target]);
        match (pdu.bhs[2], management.function) {
            // LUN DOES NOT EXIST.
            (2, _) if management.sent <= board.away_until[self.target] => Ok(()),
            (0, _) => {
                // Nothing waits for a connection that this end has closed, nor longer than a while: what was said on
                // it before may come after.
                let late = world.now > management.sent + 7_000_000_000;
                for victim in &management.victims {
                    let Some(task) = self.tasks.remove(victim) else { continue };
                    let leaving = |line: &Line| line.cid == task.cid && line.excused;
                    if late || self.lines().any(leaving) {
                        self.group.ended.insert(*victim);
                    }
                }
                Ok(())
            }
            (1, ABORT_TASK) => match management.victims.iter().find(|tag| self.tasks.contains_key(tag)) {
                Some(tag) if ended_until < self.tasks[tag].sent => {
                    Err(format!("task {tag:#x} does not exist, and was never answered"))
                }
                _ => Ok(()),
            },
            (code, function) => Err(format!("function {function} was answered with {code}")),
        }
    }
}
