//! Commands whose parameter list has come: UNMAP, MODE SELECT, PERSISTENT RESERVE OUT, EXTENDED COPY, SANITIZE.
//!
//! Knows what the lists mean for this unit. Does not know how they were received.

use super::{Command, LogicalUnit, Nexus, Refusal, Surroundings, UnitAttention, UnitPlan, UnitReply};
use crate::limits;
use crate::scsi::cdb::PersistentOut;
use crate::scsi::device::InitiatorPort;
use crate::scsi::kept::KeptUnit;
use crate::scsi::mode;
use crate::scsi::reservation::{Changes, Move, Refusal as PersistentRefusal, Registration};
use crate::scsi::reservation_data::{self, TransportId};
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
            Command::ModeSelect { short, save, len } => {
                self.mode_select(nexus, cut(list, len)?, short, save).map_err(Refusal::Check)
            }
            Command::PersistentReserveOut { action, scope, kind, len } => {
                let list = cut(list, len)?;
                let request = PersistentRequest { action, scope, kind };
                self.persistent_out(nexus, request, list, around)
            }
            Command::ExtendedCopy { len } => {
                self.extended_copy(nexus, cut(list, len)?).map_err(Refusal::Check)
            }
            Command::PopulateToken { list: identifier, len } => {
                self.populate_token(nexus, identifier, cut(list, len)?).map_err(Refusal::Check)
            }
            Command::WriteUsingToken { list: identifier, len } => {
                self.write_using_token(nexus, identifier, cut(list, len)?).map_err(Refusal::Check)
            }
            Command::Sanitize { action, immediate, may_exit, len } => {
                let list = cut(list, len)?;
                self.sanitize(action, immediate, may_exit, list).map_err(Refusal::Check)
            }
            // Nothing else asks for a list.
            _ => Err(Refusal::Check(Sense::INVALID_DATA_OUT_LENGTH)),
        }
    }

    /// Modes are shared: everyone else hears of a change. Turning the write cache off empties it first.
    fn mode_select(&mut self, nexus: Nexus, list: &[u8], short: bool, save: bool) -> Result<UnitPlan, Sense> {
        let (before, kept) = (self.modes, self.kept());
        let after = mode::select(list, short, before, self.geometry)?;
        if save {
            // Values that are the defaults need no memory.
            self.saved = Some(after).filter(|values| *values != mode::ModeValues::default());
        }
        if after != before {
            self.modes = after;
            self.raise_except(Some(nexus), UnitAttention::ModeParametersChanged);
        }
        let must_flush = before.write_cache && !after.write_cache && !self.read_only;
        let plan = if must_flush { UnitPlan::Flush { unit: self.index, immediate: false } } else { GOOD };
        Ok(self.keeping(&kept, plan))
    }

    fn persistent_out(
        &mut self,
        nexus: Nexus,
        request: PersistentRequest,
        list: &[u8],
        around: Surroundings<'_>,
    ) -> Result<UnitPlan, Refusal> {
        let port = around.ports.get(nexus.slot()).and_then(Option::as_ref).ok_or(Refusal::Conflict)?;
        let before = self.kept();
        let changes = if request.action == PersistentOut::RegisterAndMove {
            self.register_and_move(port, list, around)
        } else {
            self.change_reservations(port, request, list, around)
        }?;
        self.refresh_roles(around.ports);
        let victims = self.deliver(&changes, around);
        let plan = if request.action == PersistentOut::PreemptAndAbort && !victims.is_empty() {
            UnitPlan::AbortThenDone { unit: self.index, victims, reply: UnitReply::good() }
        } else {
            GOOD
        };
        Ok(self.keeping(&before, plan))
    }

    fn change_reservations(
        &mut self,
        port: &InitiatorPort,
        request: PersistentRequest,
        list: &[u8],
        around: Surroundings<'_>,
    ) -> Result<Changes, Refusal> {
        let registers = request.action == PersistentOut::Register;
        let list = reservation_data::parse_out(list, registers).map_err(Refusal::Check)?;
        let (key, action_key) = (list.key, list.action_key);
        let state = &mut self.reservations;
        match request.action {
            PersistentOut::Register | PersistentOut::RegisterAndIgnore => {
                if list.aptpl && !self.can_keep {
                    return Err(Refusal::Check(Sense::parameter_field(20, 0)));
                }
                let others = list.initiators.map(|ids| named(&ids, around.ports)).transpose()?;
                let (all_ports, aptpl) = (list.all_ports, list.aptpl);
                let registration = Registration { others: others.as_deref(), all_ports, aptpl };
                state.register(port, registers.then_some(key), action_key, registration)
            }
            PersistentOut::Reserve => reservation_data::reservation_type(request.scope, request.kind)
                .map_err(Refusal::Check)
                .and_then(|kind| state.reserve(port, key, kind)),
            PersistentOut::Release => reservation_data::check_scope(request.scope)
                .map_err(Refusal::Check)
                .and_then(|()| state.release(port, key, request.kind)),
            PersistentOut::Clear => state.clear(port, key),
            PersistentOut::Preempt | PersistentOut::PreemptAndAbort => {
                state.preempt(port, key, action_key, request.kind)
            }
            // Its list has another shape.
            PersistentOut::RegisterAndMove => Err(Refusal::Conflict),
        }
    }

    fn register_and_move(
        &mut self,
        port: &InitiatorPort,
        list: &[u8],
        around: Surroundings<'_>,
    ) -> Result<Changes, Refusal> {
        let list = reservation_data::parse_move(list).map_err(Refusal::Check)?;
        if list.aptpl && !self.can_keep {
            return Err(Refusal::Check(Sense::parameter_field(17, 0)));
        }
        if list.relative_port != around.target_port.relative_id {
            return Err(Refusal::Check(Sense::parameter_field(18, 7)));
        }
        let (key, new_key) = (list.key, list.action_key);
        let unknown = Refusal::Check(Sense::parameter_field(24, 7));
        // One port, whichever way it is named.
        let to = match named(&[list.to], around.ports).map_err(|_| unknown)?.as_slice() {
            [to] => to.clone(),
            _ => return Err(unknown),
        };
        let request = Move { key, new_key, to: &to, unregister: list.unregister, aptpl: list.aptpl };
        self.reservations.register_and_move(port, request)
    }

    /// The plan, behind the write of what must outlive the process where that changed.
    pub(super) fn keeping(&self, before: &KeptUnit, plan: UnitPlan) -> UnitPlan {
        let kept = self.kept();
        if kept == *before {
            return plan;
        }
        UnitPlan::Keep { unit: self.index, kept: Box::new(kept), then: Box::new(plan) }
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

/// The initiator ports TransportIDs stand for. A name alone is every port of it that is logged in, at least one
/// (SPC-4, 7.6.4.6).
fn named(ids: &[TransportId], ports: &[Option<InitiatorPort>]) -> Result<Vec<InitiatorPort>, Refusal> {
    let mut named = Vec::new();
    for TransportId { name, isid } in ids {
        match isid {
            Some(isid) => named.push(InitiatorPort { name: name.clone(), isid: *isid }),
            None => {
                let before = named.len();
                named.extend(ports.iter().flatten().filter(|port| port.name == *name).cloned());
                if named.len() == before {
                    return Err(Refusal::Check(Sense::parameter_field(28, 7)));
                }
            }
        }
    }
    Ok(named)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::fixture::{
        A, B, Bench, C, READ_10, RELEASE_6, RESERVE_6, TEST_UNIT_READY, WRITE_10, codes, done, port,
    };
    use crate::scsi::kept::KeptUnit;
    use crate::scsi::reply::UnitIndex;
    use crate::scsi::status::ScsiStatus;
    use crate::units::{BlockCount, BlockRange, Lba};

    const CONFLICT: ScsiStatus = ScsiStatus::ReservationConflict;

    fn reserve_out(
        bench: &mut Bench,
        by: Nexus,
        action: u8,
        kind: u8,
        key: u64,
        action_key: u64,
    ) -> UnitPlan {
        let mut list = [0; 24];
        list[..8].copy_from_slice(&key.to_be_bytes());
        list[8..16].copy_from_slice(&action_key.to_be_bytes());
        bench.send(by, &[0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0], &list)
    }

    /// REGISTER with these flags in byte 20, and TransportIDs by name alone.
    fn register_with(bench: &mut Bench, by: Nexus, key: u64, flags: u8, names: &[&str]) -> UnitPlan {
        let mut list = vec![0; 24];
        list[8..16].copy_from_slice(&key.to_be_bytes());
        list[20] = flags;
        let ids: Vec<u8> = names.iter().flat_map(|name| transport_id(name)).collect();
        if flags & 0x08 != 0 {
            list.extend((ids.len() as u32).to_be_bytes());
            list.extend(ids);
        }
        let len = list.len() as u8;
        bench.send(by, &[0x5F, 0, 0, 0, 0, 0, 0, 0, len, 0], &list)
    }

    fn transport_id(name: &str) -> Vec<u8> {
        let mut id = vec![0x05, 0, 0, 32];
        id.extend(name.as_bytes());
        id.resize(36, 0);
        id
    }

    fn keys(bench: &mut Bench) -> Vec<u8> {
        bench.data(A, &[0x5E, 0, 0, 0, 0, 0, 0, 1, 0, 0])[8..].iter().skip(7).step_by(8).copied().collect()
    }

    fn register(bench: &mut Bench, by: Nexus, key: u64) {
        assert_eq!(done(reserve_out(bench, by, 6, 0, 0, key)).status, ScsiStatus::Good);
    }

    fn mode_select(bench: &mut Bench, by: Nexus, page: u8, change: impl FnOnce(&mut [u8])) -> UnitPlan {
        let mut list = bench.data(by, &[0x1A, 8, page, 0, 255, 0]);
        change(&mut list[4..]);
        let len = list.len() as u8;
        bench.send(by, &[0x15, 0x10, 0, 0, len, 0], &list)
    }

    #[test]
    fn unmap_becomes_ranges_of_zeros() {
        let mut bench = Bench::new();
        let mut list = [0; 24];
        list[1] = 22;
        list[3] = 16;
        list[15] = 9;
        list[19] = 8;
        let plan = bench.send(A, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &list);
        let ranges = vec![BlockRange { start: Lba(9), count: BlockCount(8) }];
        assert_eq!(plan, UnitPlan::Zero { unit: UnitIndex(0), ranges });
    }

    #[test]
    fn a_list_shorter_than_announced_is_a_length_error() {
        let mut bench = Bench::new();
        let cdb = [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0];
        let plan = bench.device.parameter(A, [0; 8], &cdb, &[0; 23]);
        assert_eq!(codes(plan), (5, 0x1A, 0));
    }

    #[test]
    fn a_list_nobody_asked_for_is_refused() {
        let mut bench = Bench::new();
        assert_eq!(codes(bench.device.parameter(A, [0; 8], &READ_10, &[0; 24])), (5, 0x0E, 3));
    }

    #[test]
    fn descriptor_sense_is_a_mode_and_others_hear_of_the_change() {
        let mut bench = Bench::new();
        let beyond = [0x28, 0, 0xFF, 0, 0, 0, 0, 0, 1, 0];
        assert_eq!(bench.reply(A, &beyond).sense.unwrap().encode().as_slice()[0], 0x70);
        let plan = mode_select(&mut bench, A, 0x0A, |page| page[2] |= 0x04);
        assert_eq!(done(plan).status, ScsiStatus::Good);
        assert_eq!(bench.reply(A, &beyond).sense.unwrap().encode().as_slice()[0], 0x72);
        assert_eq!(bench.codes(B, &TEST_UNIT_READY), (6, 0x2A, 1));
        assert_eq!(bench.status(A, &TEST_UNIT_READY), ScsiStatus::Good);
        bench.device.reset_unit(UnitIndex(0));
        assert_eq!(bench.codes(A, &TEST_UNIT_READY), (6, 0x29, 3));
        assert_eq!(bench.reply(A, &beyond).sense.unwrap().encode().as_slice()[0], 0x70);
    }

    #[test]
    fn saved_modes_are_kept_and_outlive_a_reset() {
        let mut bench = Bench::with(|unit| unit.kept = Some(KeptUnit::default()));
        let mut list = bench.data(A, &[0x1A, 8, 0x08, 0, 255, 0]);
        list[4 + 2] &= !0x04;
        let len = list.len() as u8;
        let plan = bench.send(A, &[0x15, 0x11, 0, 0, len, 0], &list);
        let UnitPlan::Keep { kept, then, .. } = plan else { panic!("{plan:?}") };
        assert!(matches!(*then, UnitPlan::Flush { .. }));
        bench.device.reset_unit(UnitIndex(0));
        assert_eq!(bench.codes(A, &TEST_UNIT_READY), (6, 0x29, 3));
        assert!(matches!(bench.plan(A, &WRITE_10), UnitPlan::Write { fua: true, .. }));
        let mut restarted = Bench::with(|unit| unit.kept = Some(*kept));
        assert!(matches!(restarted.plan(A, &WRITE_10), UnitPlan::Write { fua: true, .. }));
        let mut nowhere = Bench::new();
        assert_eq!(codes(nowhere.plan(A, &[0x15, 0x11, 0, 0, len, 0])), (5, 0x24, 0));
    }

    #[test]
    fn software_write_protect_refuses_writes_until_it_is_cleared() {
        let mut bench = Bench::new();
        mode_select(&mut bench, A, 0x0A, |page| page[4] |= 0x08);
        assert_eq!(bench.codes(A, &WRITE_10), (7, 0x27, 2));
        assert_eq!(bench.data(A, &[0x1A, 8, 0x0A, 0, 255, 0])[2], 0x90);
        mode_select(&mut bench, A, 0x0A, |page| page[4] &= !0x08);
        assert!(matches!(bench.plan(A, &WRITE_10), UnitPlan::Write { .. }));
    }

    #[test]
    fn without_write_cache_every_write_is_forced() {
        let mut bench = Bench::new();
        let plan = mode_select(&mut bench, A, 0x08, |page| page[2] &= !0x04);
        assert_eq!(plan, UnitPlan::Flush { unit: UnitIndex(0), immediate: false });
        assert!(matches!(bench.plan(A, &WRITE_10), UnitPlan::Write { fua: true, .. }));
        let again = mode_select(&mut bench, A, 0x08, |_| {});
        assert_eq!(done(again).status, ScsiStatus::Good);
        assert_eq!(bench.codes(B, &TEST_UNIT_READY), (6, 0x2A, 1));
        assert_eq!(bench.status(B, &TEST_UNIT_READY), ScsiStatus::Good, "no change, no second notice");
    }

    #[test]
    fn exclusive_access_keeps_others_out_and_survives_the_holders_session() {
        let mut bench = Bench::new();
        register(&mut bench, A, 7);
        assert_eq!(done(reserve_out(&mut bench, A, 1, 3, 7, 0)).status, ScsiStatus::Good);
        assert!(matches!(bench.plan(A, &READ_10), UnitPlan::Read { .. }));
        assert_eq!(bench.status(B, &READ_10), CONFLICT);
        assert_eq!(bench.status(B, &TEST_UNIT_READY), ScsiStatus::Good);
        bench.device.detach(A);
        assert_eq!(bench.status(B, &READ_10), CONFLICT);
        bench.device.reset();
        assert_eq!(bench.codes(B, &READ_10), (6, 0x29, 2), "a reset is told before the conflict");
        assert_eq!(bench.status(B, &READ_10), CONFLICT);
        bench.attach(A);
        assert!(matches!(bench.plan(A, &WRITE_10), UnitPlan::Write { .. }));
    }

    #[test]
    fn preempt_and_abort_names_the_victims() {
        let mut bench = Bench::new();
        bench.attach(C);
        register(&mut bench, A, 1);
        register(&mut bench, B, 2);
        register(&mut bench, C, 2);
        reserve_out(&mut bench, B, 1, 5, 2, 0);
        let plan = reserve_out(&mut bench, A, 5, 1, 1, 2);
        let reply = UnitReply::good();
        assert_eq!(plan, UnitPlan::AbortThenDone { unit: UnitIndex(0), victims: vec![B, C], reply });
        assert_eq!(bench.status(B, &WRITE_10), CONFLICT, "precedes unit attentions that are no resets");
        assert_eq!(bench.codes(B, &TEST_UNIT_READY), (6, 0x2A, 5));
        assert!(matches!(bench.plan(A, &WRITE_10), UnitPlan::Write { .. }));
    }

    #[test]
    fn a_registrants_only_reservation_ends_with_its_holder() {
        let mut bench = Bench::new();
        register(&mut bench, A, 1);
        register(&mut bench, B, 2);
        reserve_out(&mut bench, A, 1, 6, 1, 0);
        assert!(matches!(bench.plan(B, &WRITE_10), UnitPlan::Write { .. }));
        reserve_out(&mut bench, A, 0, 0, 1, 0);
        assert_eq!(bench.codes(B, &TEST_UNIT_READY), (6, 0x2A, 4));
        let held = bench.data(B, &[0x5E, 1, 0, 0, 0, 0, 0, 0, 255, 0]);
        assert_eq!(held, [0, 0, 0, 3, 0, 0, 0, 0]);
    }

    #[test]
    fn reserve_checks_scope_and_type_and_points_at_them() {
        let mut bench = Bench::new();
        register(&mut bench, A, 1);
        let sense = |plan| done(plan).sense.unwrap();
        assert_eq!(sense(reserve_out(&mut bench, A, 1, 0x11, 1, 0)), Sense::cdb_field(2, 7));
        assert_eq!(sense(reserve_out(&mut bench, A, 1, 0x02, 1, 0)), Sense::cdb_field(2, 3));
        reserve_out(&mut bench, A, 1, 0x01, 1, 0);
        assert_eq!(sense(reserve_out(&mut bench, A, 2, 0x03, 1, 0)), Sense::INVALID_RELEASE);
    }

    #[test]
    fn start_and_allow_pass_a_reservation_stop_and_prevent_do_not() {
        let mut bench = Bench::new();
        register(&mut bench, A, 1);
        reserve_out(&mut bench, A, 1, 1, 1, 0);
        assert_eq!(bench.status(B, &[0x1B, 0, 0, 0, 1, 0]), ScsiStatus::Good);
        assert_eq!(bench.status(B, &[0x1B, 0, 0, 0, 0, 0]), CONFLICT);
        assert_eq!(bench.status(B, &[0x1B, 0, 0, 0, 0x11, 0]), CONFLICT);
        assert_eq!(bench.status(B, &[0x1E, 0, 0, 0, 0, 0]), ScsiStatus::Good);
        assert_eq!(bench.status(B, &[0x1E, 0, 0, 0, 1, 0]), CONFLICT);
    }

    #[test]
    fn legacy_reservations_shut_out_others_and_end_with_session_or_reset() {
        let mut bench = Bench::new();
        assert_eq!(bench.status(A, &RESERVE_6), ScsiStatus::Good);
        assert_eq!(bench.status(A, &RESERVE_6), ScsiStatus::Good);
        for cdb in [&RESERVE_6[..], &TEST_UNIT_READY, &READ_10, &[0x1A, 0, 0x3F, 0, 255, 0]] {
            assert_eq!(bench.status(B, cdb), CONFLICT, "{cdb:02x?}");
        }
        assert_eq!(bench.status(B, &[0x12, 0, 0, 0, 96, 0]), ScsiStatus::Good);
        assert_eq!(bench.status(B, &RELEASE_6), ScsiStatus::Good);
        assert_eq!(bench.status(B, &READ_10), CONFLICT, "a release by another does nothing");
        assert_eq!(bench.status(A, &[0x5E, 0, 0, 0, 0, 0, 0, 0, 8, 0]), CONFLICT);
        bench.device.detach(A);
        assert_eq!(bench.status(B, &RESERVE_6), ScsiStatus::Good);
        bench.device.reset_unit(UnitIndex(0));
        bench.attach(A);
        assert!(matches!(bench.plan(A, &READ_10), UnitPlan::Read { .. }));
    }

    #[test]
    fn legacy_reservations_yield_to_registrations() {
        let mut bench = Bench::new();
        register(&mut bench, A, 1);
        assert_eq!(bench.status(A, &RESERVE_6), CONFLICT, "registered, but nothing is reserved");
        reserve_out(&mut bench, A, 1, 1, 1, 0);
        assert_eq!(bench.status(A, &RESERVE_6), ScsiStatus::Good);
        assert_eq!(bench.status(A, &RELEASE_6), ScsiStatus::Good);
        assert_eq!(bench.status(B, &RELEASE_6), CONFLICT);
        assert_eq!(bench.status(B, &WRITE_10), CONFLICT, "the persistent reservation is still there");
    }

    #[test]
    fn spec_i_pt_registers_all_or_none() {
        let mut bench = Bench::new();
        let name = port(B).name;
        let strangers = register_with(&mut bench, A, 1, 0x08, &[&name, "iqn.2026-11.example:nobody"]);
        assert_eq!(codes(strangers), (5, 0x26, 0), "a name nobody is logged in by");
        assert_eq!(keys(&mut bench), [0_u8; 0]);
        assert_eq!(done(register_with(&mut bench, A, 1, 0x08, &[&name])).status, ScsiStatus::Good);
        assert_eq!(keys(&mut bench), [1, 1]);
        assert_eq!(done(reserve_out(&mut bench, B, 1, 1, 1, 0)).status, ScsiStatus::Good);
        let long = bench.reply(A, &[0x5F, 1, 1, 0, 0, 0, 0, 0, 60, 0]);
        assert_eq!(long.sense, Some(Sense::PARAMETER_LIST_LENGTH), "only REGISTER names others");
    }

    #[test]
    fn aptpl_is_refused_without_a_place_and_kept_with_one() {
        let mut forgetful = Bench::new();
        let refused = done(register_with(&mut forgetful, A, 1, 0x01, &[]));
        assert_eq!(refused.sense, Some(Sense::parameter_field(20, 0)));
        assert_eq!(forgetful.data(A, &[0x5E, 2, 0, 0, 0, 0, 0, 0, 8, 0])[2..4], [0x1C, 0x80]);

        let mut bench = Bench::with(|unit| unit.kept = Some(KeptUnit::default()));
        let UnitPlan::Keep { kept, then, .. } = register_with(&mut bench, A, 1, 0x01, &[]) else {
            panic!("it must be kept first");
        };
        assert_eq!(*then, GOOD);
        assert_eq!(bench.data(A, &[0x5E, 2, 0, 0, 0, 0, 0, 0, 8, 0])[2..4], [0x1D, 0x81]);
        let UnitPlan::Keep { kept: held, .. } = reserve_out(&mut bench, A, 1, 5, 1, 0) else {
            panic!("the reservation too");
        };
        assert_ne!(kept, held);

        let mut restarted = Bench::with(|unit| unit.kept = Some(*held));
        assert_eq!(restarted.status(B, &WRITE_10), CONFLICT);
        assert!(matches!(restarted.plan(A, &WRITE_10), UnitPlan::Write { .. }));
        let UnitPlan::Keep { kept, .. } = reserve_out(&mut restarted, A, 3, 0, 1, 0) else {
            panic!("CLEAR forgets");
        };
        assert!(kept.is_empty());
    }

    #[test]
    fn a_reservation_moves_to_the_named_port() {
        let mut bench = Bench::new();
        register(&mut bench, A, 1);
        reserve_out(&mut bench, A, 1, 3, 1, 0);
        let mut list = vec![0; 24];
        (list[7], list[15], list[17], list[19], list[23]) = (1, 9, 0x02, 1, 36);
        list.extend(transport_id(&port(B).name));
        let cdb = [0x5F, 7, 0, 0, 0, 0, 0, 0, 60, 0];
        assert_eq!(done(bench.send(A, &cdb, &list)).status, ScsiStatus::Good);
        assert_eq!(keys(&mut bench), [9]);
        assert_eq!(bench.status(A, &WRITE_10), CONFLICT);
        assert!(matches!(bench.plan(B, &WRITE_10), UnitPlan::Write { .. }));
        list[19] = 2;
        (list[7], list[15]) = (9, 1);
        assert_eq!(done(bench.send(B, &cdb, &list)).sense, Some(Sense::parameter_field(18, 7)));
    }

    /// What Windows' failover cluster validation sends, two nodes on one disk, with Write Exclusive - Registrants Only.
    #[test]
    fn the_validation_of_a_windows_failover_cluster_passes() {
        let mut bench = Bench::new();
        let good = |plan| assert_eq!(done(plan).status, ScsiStatus::Good);
        let conflict = |plan| assert_eq!(done(plan).status, CONFLICT);
        // Each node registers by force, then with its key; a wrong key is refused.
        good(reserve_out(&mut bench, A, 6, 0, 0, 0xA));
        good(reserve_out(&mut bench, B, 6, 0, 0, 0xB));
        good(reserve_out(&mut bench, A, 0, 0, 0xA, 0xA));
        conflict(reserve_out(&mut bench, B, 0, 0, 0xA, 0xB));
        assert_eq!(keys(&mut bench), [0xA, 0xB]);
        // A owns the disk; B may neither take nor release it, and both read and write.
        good(reserve_out(&mut bench, A, 1, 5, 0xA, 0));
        conflict(reserve_out(&mut bench, B, 1, 5, 0xB, 0));
        good(reserve_out(&mut bench, B, 2, 5, 0xB, 0));
        let reservation = bench.data(B, &[0x5E, 1, 0, 0, 0, 0, 0, 0, 24, 0]);
        assert_eq!((reservation[15], reservation[21]), (0xA, 5));
        assert!(matches!(bench.plan(B, &WRITE_10), UnitPlan::Write { .. }));
        // A stranger sees the disk and cannot write to it.
        bench.attach(C);
        assert!(matches!(bench.plan(C, &READ_10), UnitPlan::Read { .. }));
        assert_eq!(bench.status(C, &WRITE_10), CONFLICT);
        // B defends the disk against a lost A: A hears of it, is shut out, and may come back.
        good(reserve_out(&mut bench, B, 4, 5, 0xB, 0xA));
        assert_eq!(codes(bench.plan(A, &TEST_UNIT_READY)), (6, 0x2A, 5));
        assert_eq!(bench.status(A, &WRITE_10), CONFLICT);
        conflict(reserve_out(&mut bench, A, 1, 5, 0xA, 0));
        good(reserve_out(&mut bench, A, 6, 0, 0, 0xA));
        assert!(matches!(bench.plan(A, &WRITE_10), UnitPlan::Write { .. }));
        // The owner unregisters: the disk is free, the other hears of it, and cleans up.
        good(reserve_out(&mut bench, B, 0, 0, 0xB, 0));
        assert_eq!(codes(bench.plan(A, &TEST_UNIT_READY)), (6, 0x2A, 4));
        good(reserve_out(&mut bench, A, 1, 5, 0xA, 0));
        good(reserve_out(&mut bench, A, 3, 0, 0xA, 0));
        assert_eq!(keys(&mut bench), [0_u8; 0]);
    }
}
