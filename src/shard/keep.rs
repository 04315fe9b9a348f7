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

/// An atomic write of a unit is over, but a power failure may bring it back. Nothing newer of the unit is called stable
/// before that cannot be.
#[derive(Debug)]
pub(super) struct Unsettled {
    ticket: u64,
    target: u32,
    lun: u32,
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
        let keeps = self.keeping.iter().any(|it| it.target == target);
        let unsettled = self.unsettled.iter().any(|it| it.target == target);
        keeps || unsettled || self.unkept.iter().any(|it| it.target == target)
    }

    /// True: the command waits, and flushes when the unit's atomic writes are over for good.
    pub(super) fn await_settled(&mut self, key: TaskKey) -> bool {
        let Some(task) = self.tasks.get_mut(key) else { return false };
        let waits = self.unsettled.iter().any(|it| it.lun == task.lun);
        if waits {
            task.stage = Stage::Keep;
            self.settlers.push(key);
        }
        waits
    }

    /// What was cleared is stable, or nobody knows.
    fn journal_settled(&mut self, Unsettled { lun, .. }: Unsettled, stable: bool) {
        if !stable {
            tracing::error!(
                "the journal of an atomic write could not be cleared; its image takes no more writes until the server is started again"
            );
            self.images.fail(self.luns[lun as usize].leaf);
        }
        for key in core::mem::take(&mut self.settlers) {
            if self.tasks.get(key).is_some_and(|task| task.stage == Stage::Keep) {
                self.sync(key);
            }
        }
    }

    fn kept(&mut self, ticket: u64, stable: bool, settled: bool) {
        if let Some(at) = self.unsettled.iter().position(|it| it.ticket == ticket) {
            let unsettled = self.unsettled.swap_remove(at);
            self.journal_settled(unsettled, stable);
            return;
        }
        let Some(at) = self.keeping.iter().position(|keeping| keeping.ticket == ticket) else { return };
        let Keeping { task, target, then, .. } = self.keeping.swap_remove(at);
        if let Some(lun) = self.tasks.get(task).map(|task| task.home).filter(|_| !settled) {
            self.unsettled.push(Unsettled { ticket, target, lun });
        }
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
    pub(super) fn kept(&mut self, ticket: u64, stable: bool, settled: bool) {
        self.core.kept(ticket, stable, settled);
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
        bench.core.kept(0, true, true);
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
        bench.core.kept(0, false, true);
        assert_eq!(status(&bench, task), Some(CHECK_CONDITION));
    }

    #[test]
    fn a_flush_waits_until_an_atomic_write_cannot_come_back() {
        const WRITE_ATOMIC: [u8; 16] = [0x9C, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0];
        const SYNCHRONIZE: [u8; 10] = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for stable in [true, false] {
            let mut bench = Bench::new();
            let write = bench.begin(&WRITE_ATOMIC, &[7; 512], 0);
            hand_over(&mut bench);
            bench.core.kept(0, true, true);
            bench.settle();
            hand_over(&mut bench);
            bench.core.kept(0, true, false);
            assert_eq!(status(&bench, write), Some(GOOD));
            assert!(bench.core.is_keeping_for(0), "its target does not go before");
            let read = bench.begin(&[0x28, 0, 0, 0, 0, 5, 0, 0, 1, 0], &[], 512);
            bench.settle();
            assert_eq!(bench.reply(read).unwrap().data, [7; 512]);
            let (flush, aborted) = (bench.begin(&SYNCHRONIZE, &[], 0), bench.begin(&SYNCHRONIZE, &[], 0));
            assert!(bench.core.abort(aborted));
            assert!(bench.ops().is_empty() && status(&bench, flush).is_none());
            bench.core.kept(0, stable, true);
            bench.settle();
            assert_eq!(status(&bench, flush), Some(if stable { GOOD } else { CHECK_CONDITION }));
            assert!(!bench.core.is_keeping_for(0));
        }
    }

    #[test]
    fn an_aborted_command_is_not_missed_by_its_answer() {
        let mut bench = Bench::new();
        let task = bench.begin(&REGISTER, &list(), 0);
        hand_over(&mut bench);
        assert!(bench.core.abort(task));
        bench.core.kept(0, true, true);
        bench.core.kept(1, true, true);
        assert!(bench.core.keeping.is_empty() && bench.reply(task).is_none());
    }
}
