//! What a unit answers for copies, tokens, sanitize operations and atomic writes: their beginning, their end, and whether it takes part.
//!
//! Knows the unit's own state. Does not know other units: the shard asks each for itself.

use super::{LogicalUnit, Nexus, Refusal, UnitPlan, UnitReply};
use crate::scsi::cdb::SanitizeAction;
use crate::scsi::copy::{self, CopyDevice, CopyEnd};
use crate::scsi::kept::{KeptAtomic, KeptUnit};
use crate::scsi::opcodes::{Access, Operation};
use crate::scsi::reservation::conflicts;
use crate::scsi::rod::{self, ROD_TOKEN_BYTES, RodAction, RodEnd, RodOperation, TokenFields};
use crate::scsi::sanitize::{self, SanitizeMethod, SanitizeState, Sanitizing};
use crate::scsi::sense::Sense;
use crate::units::BlockRange;

const GOOD: UnitPlan = UnitPlan::Done(UnitReply::good());

impl LogicalUnit {
    pub(super) fn extended_copy(&mut self, nexus: Nexus, list: &[u8]) -> Result<UnitPlan, Sense> {
        let copy = copy::parse(list)?;
        if let Some(list) = copy.list {
            self.copies.begin(nexus, list)?;
        }
        Ok(UnitPlan::Copy { unit: self.index, copy: Box::new(copy) })
    }

    pub(in crate::scsi) fn copy_ended(&mut self, nexus: Nexus, list: u8, end: CopyEnd) {
        self.copies.end(nexus, list, end);
    }

    pub(super) fn populate_token(
        &mut self,
        nexus: Nexus,
        identifier: u32,
        list: &[u8],
    ) -> Result<UnitPlan, Sense> {
        let populate = rod::parse_populate(list, self.geometry, identifier, self.rods.next())?;
        self.rods.begin(nexus, identifier, populate.operation, RodAction::Populate, false)?;
        Ok(UnitPlan::PopulateToken { unit: self.index, populate: Box::new(populate) })
    }

    pub(super) fn write_using_token(
        &mut self,
        nexus: Nexus,
        identifier: u32,
        list: &[u8],
    ) -> Result<UnitPlan, Sense> {
        self.check_writable()?;
        let write = rod::parse_write(list, self.geometry, identifier, self.rods.next())?;
        self.rods.begin(nexus, identifier, write.operation, RodAction::Write, write.immediate)?;
        Ok(UnitPlan::WriteUsingToken { unit: self.index, write: Box::new(write) })
    }

    pub(in crate::scsi) fn rod_ended(&mut self, operation: RodOperation, end: RodEnd) {
        self.rods.end(operation, end);
    }

    /// A token for so many bytes of this unit.
    pub(in crate::scsi) fn token(
        &self,
        target_name: &str,
        identifier: [u8; 8],
        bytes: u64,
        secret: [u8; 32],
    ) -> Box<[u8; ROD_TOKEN_BYTES]> {
        let capacity = self.geometry.capacity16();
        TokenFields { identifier, bytes, secret, naa: &self.names.naa, capacity: &capacity, target_name }
            .encode()
    }

    /// Whether blocks a token stands for can be read now.
    pub(in crate::scsi) fn may_read_rod(&self) -> Result<(), Sense> {
        let busy = self.ejected || self.recovering || self.sanitize.refusal(Operation::Read).is_some();
        if busy { Err(Sense::COPY_UNREACHABLE) } else { Ok(()) }
    }

    /// True when `device` names this unit and has its block length right.
    pub(in crate::scsi) fn is_copy_device(&self, device: &CopyDevice) -> bool {
        device.names(&self.names) && device.block_bytes() == self.geometry.block_size.bytes()
    }

    /// Whether the nexus may read, or write, these blocks now: a copy obeys what a READ or WRITE of its own would.
    pub(in crate::scsi) fn may_copy(
        &self,
        nexus: Nexus,
        range: BlockRange,
        writes: bool,
    ) -> Result<(), Sense> {
        let (access, operation) =
            if writes { (Access::Write, Operation::Write) } else { (Access::Read, Operation::Read) };
        let reserved = match (self.legacy, self.reservations.kind()) {
            (Some(owner), _) => owner != nexus,
            (None, Some(kind)) => conflicts(kind, self.role(nexus), access),
            (None, None) => false,
        };
        if reserved || self.ejected || self.recovering || self.sanitize.refusal(operation).is_some() {
            return Err(Sense::COPY_UNREACHABLE);
        }
        if !self.geometry.contains(range) {
            return Err(Sense::COPY_ABORTED);
        }
        if writes && self.check_writable().is_err() {
            return Err(Sense::COPY_ABORTED);
        }
        Ok(())
    }

    /// Writes are stable before they are answered.
    pub(in crate::scsi) const fn writes_through(&self) -> bool {
        !self.modes.write_cache
    }

    pub(super) fn plan_sanitize(&self, action: SanitizeAction, len: u32) -> Result<UnitPlan, Refusal> {
        let fits = match action {
            SanitizeAction::Overwrite => sanitize::overwrite_list_fits(len, self.geometry.block_size.bytes()),
            SanitizeAction::BlockErase | SanitizeAction::ExitFailureMode => len == 0,
        };
        if !fits {
            return Err(Refusal::Check(Sense::cdb_field(7, 7)));
        }
        Ok(UnitPlan::Parameter { len })
    }

    /// SANITIZE without a parameter list begins at once.
    pub(super) fn sanitize(
        &mut self,
        action: SanitizeAction,
        immediate: bool,
        may_exit: bool,
        list: &[u8],
    ) -> Result<UnitPlan, Sense> {
        let method = match action {
            SanitizeAction::ExitFailureMode => return self.exit_failure_mode(),
            SanitizeAction::BlockErase => SanitizeMethod::BlockErase,
            SanitizeAction::Overwrite => sanitize::parse_overwrite(list, self.geometry.block_size.bytes())?,
        };
        self.check_writable()?;
        let before = self.kept();
        let what = Sanitizing { method, may_exit };
        self.sanitize = SanitizeState::Running { what: what.clone(), progress: 0 };
        let plan = UnitPlan::Sanitize { unit: self.index, method: what.method, immediate };
        Ok(self.keeping(&before, plan))
    }

    fn exit_failure_mode(&mut self) -> Result<UnitPlan, Sense> {
        match self.sanitize {
            SanitizeState::Failed { may_exit: false } => Err(Sense::SANITIZE_FAILED),
            _ => {
                self.sanitize = SanitizeState::None;
                Ok(GOOD)
            }
        }
    }

    /// What a restart has interrupted.
    pub(in crate::scsi) fn interrupted_sanitize(&self) -> Option<SanitizeMethod> {
        match &self.sanitize {
            SanitizeState::Running { what, .. } => Some(what.method.clone()),
            _ => None,
        }
    }

    pub(in crate::scsi) fn sanitize_progress(&mut self, parts: u16) {
        if let SanitizeState::Running { progress, .. } = &mut self.sanitize {
            *progress = parts;
        }
    }

    pub(in crate::scsi) fn atomic_begun(&mut self, atomic: &KeptAtomic) -> KeptUnit {
        self.atomic = Some(atomic.clone());
        self.kept()
    }

    pub(in crate::scsi) fn atomic_ended(&mut self) -> KeptUnit {
        self.atomic = None;
        self.recovering = false;
        self.kept()
    }

    pub(in crate::scsi) fn interrupted_atomic(&self) -> Option<&KeptAtomic> {
        self.atomic.as_ref().filter(|_| self.recovering)
    }

    /// It has ended. The memory to write down, where it changed and there is a place for it.
    pub(in crate::scsi) fn sanitize_ended(&mut self, well: bool) -> Option<KeptUnit> {
        let before = self.kept();
        let may_exit = matches!(&self.sanitize, SanitizeState::Running { what, .. } if what.may_exit);
        self.sanitize = if well { SanitizeState::None } else { SanitizeState::Failed { may_exit } };
        let kept = self.kept();
        (self.can_keep && kept != before).then_some(kept)
    }
}
