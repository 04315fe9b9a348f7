//! What units must remember across restarts goes to somebody who can write files, and the command that changed it
//! waits until it is stable.
//!
//! Knows which command waits for which request. Does not know where memories are kept (`Keeper`).

use crate::io::Io;
use crate::scsi::{KeptUnit, Lun, UnitFault, UnitIndex, UnitPlan};

use super::executor::{Core, TaskKey};
use super::task::{Stage, Work};
use super::{Shard, ShardId};

/// One unit's memory on its way to stable storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeepRequest {
    /// Who gets `Message::Kept` with this ticket.
    pub shard: ShardId,
    pub ticket: u64,
    pub target: String,
    pub lun: Lun,
    pub kept: KeptUnit,
}

/// Whoever writes them down, in the order they are given, without making the shard wait.
pub trait Keeper: core::fmt::Debug + Send {
    /// False: it cannot take the request, and no answer will come.
    fn keep(&mut self, request: KeepRequest) -> bool;
}

/// Keeps nothing: for servers without a place for it, whose units know (`UnitConfig::kept`).
#[derive(Clone, Copy, Debug)]
pub struct NoKeeper;

impl Keeper for NoKeeper {
    fn keep(&mut self, _: KeepRequest) -> bool {
        false
    }
}

/// A command that waits for its request.
#[derive(Debug)]
pub(super) struct Keeping {
    ticket: u64,
    task: TaskKey,
    target: u32,
    then: UnitPlan,
}

/// A request not yet handed to the keeper.
#[derive(Debug)]
pub(super) struct Unkept {
    pub(super) task: TaskKey,
    pub(super) target: u32,
    pub(super) unit: UnitIndex,
    pub(super) kept: KeptUnit,
    pub(super) then: UnitPlan,
}

impl Core {
    /// Begins a plan that is to be remembered first.
    pub(super) fn begin_keep(&mut self, key: TaskKey, unit: UnitIndex, kept: KeptUnit, then: UnitPlan) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        task.work = Work::Reply;
        task.stage = Stage::Keep;
        let target = task.target;
        self.unkept.push(Unkept { task: key, target, unit, kept, then });
    }

    /// For tests: everything is stable at once.
    #[cfg(test)]
    pub(super) fn keep_all(&mut self) {
        for Unkept { task, target, then, .. } in core::mem::take(&mut self.unkept) {
            self.after_keep(task, target, then, true);
        }
    }

    /// Something a unit of this target must remember is not stable yet.
    pub(super) fn is_keeping_for(&self, target: u32) -> bool {
        self.keeping.iter().any(|it| it.target == target) || self.unkept.iter().any(|it| it.target == target)
    }

    fn kept(&mut self, ticket: u64, stable: bool) {
        let Some(at) = self.keeping.iter().position(|keeping| keeping.ticket == ticket) else { return };
        let Keeping { task, target, then, .. } = self.keeping.swap_remove(at);
        self.after_keep(task, target, then, stable);
    }

    /// The command may be gone meanwhile: what it changed stays changed, and a sanitize operation begins all the same.
    fn after_keep(&mut self, task: TaskKey, target: u32, then: UnitPlan, stable: bool) {
        if self.tasks.get(task).is_some_and(|task| task.is_past_abort()) {
            self.atomic_kept(task, stable);
            return;
        }
        let gone = self.tasks.get(task).is_none();
        if let UnitPlan::Sanitize { unit, method, .. } = &then
            && (gone || !stable)
        {
            self.sanitize_unattended(target, *unit, method.clone(), stable);
        }
        if gone {
            return;
        }
        if stable {
            self.start(task, then, 0, 0);
        } else {
            self.fail_io(task, UnitFault::Internal);
        }
    }
}

impl<I: Io> Shard<I> {
    /// Hands new requests to the keeper.
    pub(super) fn hand_to_keeper(&mut self) {
        for Unkept { task, target: index, unit, kept, then } in core::mem::take(&mut self.core.unkept) {
            let target = &self.core.targets[index as usize];
            let Some(lun) = target.device.lun(unit) else { continue };
            let ticket = self.keep_tickets;
            self.keep_tickets += 1;
            let name = target.name.clone();
            let request = KeepRequest { shard: self.config.id, ticket, target: name, lun, kept };
            if self.keeper.keep(request) {
                self.core.keeping.push(Keeping { ticket, task, target: index, then });
            } else {
                tracing::error!(target = %target.name, lun = lun.number(), "the state of a LUN could not be handed over to be kept");
                self.core.after_keep(task, index, then, false);
            }
        }
    }

    /// The keeper's answer.
    pub(super) fn kept(&mut self, ticket: u64, stable: bool) {
        self.core.kept(ticket, stable);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::bench::Bench;

    const REGISTER: [u8; 10] = [0x5F, 0x06, 0, 0, 0, 0, 0, 0, 24, 0];
    const GOOD: u8 = 0;
    const CHECK_CONDITION: u8 = 2;

    /// Key 7, kept across restarts.
    fn list() -> [u8; 24] {
        let mut list = [0; 24];
        (list[15], list[20]) = (7, 1);
        list
    }

    fn status(bench: &Bench, key: TaskKey) -> Option<u8> {
        bench.reply(key).map(|ended| ended.status)
    }

    /// What `Shard::hand_to_keeper` does.
    fn hand_over(bench: &mut Bench) -> Vec<KeptUnit> {
        let unkept = core::mem::take(&mut bench.core.unkept);
        let mut requests = Vec::new();
        for (ticket, Unkept { task, kept, then, .. }) in unkept.into_iter().enumerate() {
            bench.core.keeping.push(Keeping { ticket: ticket as u64, task, target: 0, then });
            requests.push(kept);
        }
        requests
    }

    #[test]
    fn a_registration_is_answered_when_it_is_stable() {
        let mut bench = Bench::new();
        let task = bench.begin(&REGISTER, &list(), 0);
        let kept = hand_over(&mut bench);
        assert!(kept.len() == 1 && kept[0].reservations.is_some());
        bench.settle();
        assert_eq!(status(&bench, task), None);
        bench.core.kept(0, true);
        assert_eq!(status(&bench, task), Some(GOOD));
        let mut forgetful = list();
        forgetful[20] = 0;
        bench.begin(&REGISTER, &forgetful, 0);
        assert_eq!(hand_over(&mut bench), [KeptUnit::default()], "APTPL zero ends it");
    }

    #[test]
    fn what_could_not_be_kept_is_no_success() {
        let mut bench = Bench::new();
        let task = bench.begin(&REGISTER, &list(), 0);
        hand_over(&mut bench);
        bench.core.kept(0, false);
        assert_eq!(status(&bench, task), Some(CHECK_CONDITION));
    }

    #[test]
    fn an_aborted_command_is_not_missed_by_its_answer() {
        let mut bench = Bench::new();
        let task = bench.begin(&REGISTER, &list(), 0);
        hand_over(&mut bench);
        assert!(bench.core.abort(task));
        bench.core.kept(0, true);
        bench.core.kept(1, true);
        assert!(bench.core.keeping.is_empty() && bench.reply(task).is_none());
    }
}
