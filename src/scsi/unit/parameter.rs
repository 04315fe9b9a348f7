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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::fixture::{
        A, B, Bench, C, READ_10, RELEASE_6, RESERVE_6, TEST_UNIT_READY, WRITE_10, codes, done,
    };
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
}
