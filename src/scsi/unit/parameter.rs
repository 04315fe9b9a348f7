//! Commands whose parameter list has come: UNMAP, MODE SELECT, PERSISTENT RESERVE OUT.
//!
//! Knows what the lists mean for this unit. Does not know how they were received.

use super::{Command, LogicalUnit, Nexus, Refusal, Surroundings, UnitAttention, UnitPlan, UnitReply};
use crate::limits;
use crate::scsi::cdb::PersistentOut;
use crate::scsi::mode;
use crate::scsi::reservation::{Changes, Refusal as PersistentRefusal};
use crate::scsi::reservation_data;
use crate::scsi::sense::Sense;
use crate::scsi::unmap;

const GOOD: UnitPlan = UnitPlan::Done(UnitReply::good());

impl LogicalUnit {
    pub(super) fn execute_list(
        &mut self,
        nexus: Nexus,
        command: Command,
        list: &[u8],
        around: Surroundings<'_>,
    ) -> Result<UnitPlan, Refusal> {
        match command {
            Command::Unmap { len } => {
                let list = cut(list, len)?;
                self.check_writable().map_err(Refusal::Check)?;
                let ranges = unmap::parse(list, self.geometry).map_err(Refusal::Check)?;
                Ok(if ranges.is_empty() { GOOD } else { UnitPlan::Zero { unit: self.index, ranges } })
            }
            Command::ModeSelect { short, len } => {
                self.mode_select(nexus, cut(list, len)?, short).map_err(Refusal::Check)
            }
            Command::PersistentReserveOut { action, scope, kind, len } => {
                let list = cut(list, len)?;
                let request = PersistentRequest { action, scope, kind };
                self.persistent_out(nexus, request, list, around)
            }
            // Nothing else asks for a list.
            _ => Err(Refusal::Check(Sense::INVALID_DATA_OUT_LENGTH)),
        }
    }

    /// Modes are shared: everyone else hears of a change. Turning the write cache off empties it first.
    fn mode_select(&mut self, nexus: Nexus, list: &[u8], short: bool) -> Result<UnitPlan, Sense> {
        let before = self.modes;
        let after = mode::select(list, short, before, self.geometry)?;
        if after == before {
            return Ok(GOOD);
        }
        self.modes = after;
        self.raise_except(Some(nexus), UnitAttention::ModeParametersChanged);
        let must_flush = before.write_cache && !after.write_cache && !self.read_only;
        Ok(if must_flush { UnitPlan::Flush { unit: self.index, immediate: false } } else { GOOD })
    }

    fn persistent_out(
        &mut self,
        nexus: Nexus,
        request: PersistentRequest,
        list: &[u8],
        around: Surroundings<'_>,
    ) -> Result<UnitPlan, Refusal> {
        let port = around.ports.get(nexus.slot()).and_then(Option::as_ref).ok_or(Refusal::Conflict)?;
        let keys = reservation_data::parse_out(list).map_err(Refusal::Check)?;
        let state = &mut self.reservations;
        let changes = match request.action {
            PersistentOut::Register => state.register(port, Some(keys.key), keys.action_key),
            PersistentOut::RegisterAndIgnore => state.register(port, None, keys.action_key),
            PersistentOut::Reserve => reservation_data::reservation_type(request.scope, request.kind)
                .map_err(Refusal::Check)
                .and_then(|kind| state.reserve(port, keys.key, kind)),
            PersistentOut::Release => reservation_data::check_scope(request.scope)
                .map_err(Refusal::Check)
                .and_then(|()| state.release(port, keys.key, request.kind)),
            PersistentOut::Clear => state.clear(port, keys.key),
            PersistentOut::Preempt | PersistentOut::PreemptAndAbort => {
                state.preempt(port, keys.key, keys.action_key, request.kind)
            }
        }?;
        self.refresh_roles(around.ports);
        let victims = self.deliver(&changes, around);
        if request.action == PersistentOut::PreemptAndAbort && !victims.is_empty() {
            return Ok(UnitPlan::AbortThenDone { unit: self.index, victims, reply: UnitReply::good() });
        }
        Ok(GOOD)
    }

    /// Raises what the change brings others; returns the nexuses of preempted registrants.
    fn deliver(&mut self, changes: &Changes, around: Surroundings<'_>) -> Vec<Nexus> {
        let mut victims = Vec::new();
        for (slot, port) in around.ports.iter().enumerate() {
            let (Some(port), Some(nexus)) = (port, Nexus::from_slot(slot)) else { continue };
            for (_, attention) in changes.notices.iter().filter(|(other, _)| other == port) {
                self.raise(nexus, *attention);
            }
            if changes.preempted.contains(port) {
                victims.push(nexus);
            }
        }
        victims
    }
}

#[derive(Clone, Copy, Debug)]
struct PersistentRequest {
    action: PersistentOut,
    scope: u8,
    kind: u8,
}

/// The list as long as the CDB says; more is ignored, less is an error.
fn cut(list: &[u8], len: u32) -> Result<&[u8], PersistentRefusal> {
    usize::try_from(len)
        .ok()
        .and_then(|len| list.get(..len))
        .filter(|list| list.len() <= limits::PARAMETER_BYTES_MAX)
        .ok_or(Refusal::Check(Sense::PARAMETER_LIST_LENGTH))
}
