//! A logical unit: its state, and which commands get as far as being carried out.
//!
//! Knows one unit's modes, reservations, medium and what each I_T nexus has pending. Does not know other units, how
//! a nexus came to be (`device`), nor how data moves: it answers with plans.
//!
//! A command passes, in this order (SAM-5, 5.3.3): resets not yet reported, RESERVATION CONFLICT, other unit
//! attentions, fields nobody supports, a sanitize operation, the medium, write protection; then [`execute`] or [`parameter`].

mod execute;
mod parameter;
mod third_party;

use super::attention::{Attentions, UnitAttention};
use super::capacity::Geometry;
use super::cdb::{self, CDB_BYTES_MAX, Command};
use super::copy::Copies;
use super::device::{InitiatorPort, Nexus, TargetPort, UnitConfig};
use super::identity::UnitNames;
use super::kept::{KeptAtomic, KeptUnit};
use super::lun::Lun;
use super::mode::ModeValues;
use super::opcodes::{self, Access, Has, Opcode, Operation};
use super::reply::{UnitIndex, UnitPlan, UnitReply};
use super::reservation::{Refusal, Reservations, Role, conflicts};
use super::rod::RodOperations;
use super::sanitize::SanitizeState;
use super::sense::Sense;
use super::status::ScsiStatus;
use crate::limits;
use crate::units::BlockRange;

/// What one I_T nexus has at this unit.
#[derive(Clone, Copy, Debug, Default)]
struct NexusState {
    attached: bool,
    attentions: Attentions,
    /// It sent PREVENT: the medium stays.
    prevents: bool,
    /// A copy of what `Reservations::role` says, so that READ and WRITE compare no names.
    role: Role,
}

/// What a unit sees of its device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Surroundings<'a> {
    pub(super) target_port: &'a TargetPort,
    /// Initiator ports by nexus slot.
    pub(super) ports: &'a [Option<InitiatorPort>],
}

#[derive(Debug)]
pub(super) struct LogicalUnit {
    index: UnitIndex,
    lun: Lun,
    /// False once it was taken away.
    present: bool,
    names: UnitNames,
    geometry: Geometry,
    read_only: bool,
    removable: bool,
    write_same_to_end: bool,
    ejected: bool,
    modes: ModeValues,
    /// What MODE SELECT saved: the values after a reset or a restart.
    saved: Option<ModeValues>,
    sanitize: SanitizeState,
    copies: Copies,
    rods: RodOperations,
    /// The atomic write that is under way; one that a restart has interrupted keeps the unit from being ready.
    atomic: Option<KeptAtomic>,
    recovering: bool,
    reservations: Reservations,
    /// There is a place for what must outlive the process.
    can_keep: bool,
    /// The holder of a legacy RESERVE.
    legacy: Option<Nexus>,
    nexuses: Vec<NexusState>,
}

impl LogicalUnit {
    pub(super) fn new(index: UnitIndex, config: &UnitConfig) -> Self {
        let saved = config.kept.as_ref().and_then(|kept| kept.modes);
        Self {
            index,
            lun: config.identity.lun,
            present: true,
            names: UnitNames::new(&config.identity),
            geometry: Geometry {
                blocks: config.blocks,
                block_size: config.block_size,
                physical_exponent: config.physical_exponent,
                thin: config.thin,
            },
            read_only: config.read_only,
            removable: config.removable,
            write_same_to_end: config.write_same_to_end,
            ejected: false,
            modes: saved.unwrap_or_default(),
            saved,
            sanitize: config
                .kept
                .as_ref()
                .and_then(|kept| kept.sanitizing.clone())
                .map_or(SanitizeState::None, |what| SanitizeState::Running { what, progress: 0 }),
            copies: Copies::default(),
            rods: RodOperations::default(),
            atomic: config.kept.as_ref().and_then(|kept| kept.atomic.clone()),
            recovering: config.kept.as_ref().is_some_and(|kept| kept.atomic.is_some()),
            reservations: config
                .kept
                .as_ref()
                .and_then(|kept| kept.reservations.as_ref())
                .map_or_else(Reservations::default, Reservations::restored),
            can_keep: config.kept.is_some(),
            legacy: None,
            nexuses: Vec::new(),
        }
    }

    /// What must outlive the process.
    fn kept(&self) -> KeptUnit {
        let sanitizing = match &self.sanitize {
            SanitizeState::Running { what, .. } if self.can_keep => Some(what.clone()),
            _ => None,
        };
        KeptUnit {
            reservations: self.reservations.kept(),
            modes: self.saved,
            sanitizing,
            atomic: self.atomic.clone(),
        }
    }

    pub(super) const fn lun(&self) -> Lun {
        self.lun
    }

    pub(super) const fn is_present(&self) -> bool {
        self.present
    }

    pub(super) const fn take_away(&mut self) {
        self.present = false;
    }

    pub(super) const fn geometry(&self) -> Geometry {
        self.geometry
    }

    pub(super) fn set_blocks(&mut self, blocks: u64) {
        if self.geometry.blocks != blocks {
            self.geometry.blocks = blocks;
            self.raise_except(None, UnitAttention::CapacityChanged);
        }
    }

    /// Decides about a command. Nothing is allocated for commands that move blocks.
    pub(super) fn plan(&mut self, nexus: Nexus, bytes: &[u8], around: Surroundings<'_>) -> UnitPlan {
        let cdb = cdb::padded(bytes);
        let result = match self.admit(nexus, bytes.len(), &cdb) {
            Ok(row) => cdb::decode(row, &cdb)
                .map_err(Refusal::Check)
                .and_then(|command| self.execute(nexus, command, around)),
            Err(refusal) => Err(refusal),
        };
        result.unwrap_or_else(|refusal| UnitPlan::Done(self.refuse(refusal)))
    }

    /// As [`super::Device::plain_read`].
    pub(super) fn plain_read(&self, nexus: Nexus, cdb: &[u8; CDB_BYTES_MAX]) -> Option<BlockRange> {
        self.plain_transfer(nexus, cdb::plain_transfer(cdb, cdb::READS)?)
    }

    /// As [`super::Device::plain_write`].
    pub(super) fn plain_write(&self, nexus: Nexus, cdb: &[u8; CDB_BYTES_MAX]) -> Option<BlockRange> {
        let range = self.plain_transfer(nexus, cdb::plain_transfer(cdb, cdb::WRITES)?)?;
        (self.modes.write_cache && self.check_writable().is_ok()).then_some(range)
    }

    fn plain_transfer(&self, nexus: Nexus, range: BlockRange) -> Option<BlockRange> {
        let state = self.nexuses.get(nexus.slot())?;
        let is_free = state.attentions.is_empty()
            && self.legacy.is_none()
            && self.reservations.kind().is_none()
            && matches!(self.sanitize, SanitizeState::None)
            && !self.recovering
            && !self.ejected;
        let bytes = range.count.0.saturating_mul(u64::from(self.geometry.block_size.bytes()));
        let fits = (1..=limits::TRANSFER_BYTES_MAX as u64).contains(&bytes) && self.geometry.contains(range);
        (is_free && fits).then_some(range)
    }

    /// Goes on with a command whose parameter list has come. It was admitted when it was planned.
    pub(super) fn parameter(
        &mut self,
        nexus: Nexus,
        bytes: &[u8],
        list: &[u8],
        around: Surroundings<'_>,
    ) -> UnitPlan {
        let cdb = cdb::padded(bytes);
        opcodes::find(&cdb, self.has())
            .and_then(|row| cdb::decode(row, &cdb))
            .map_err(Refusal::Check)
            .and_then(|command| self.execute_list(nexus, command, list, around))
            .unwrap_or_else(|refusal| UnitPlan::Done(self.refuse(refusal)))
    }

    /// CHECK CONDITION in the sense format the initiator chose.
    pub(super) fn check(&self, sense: Sense) -> UnitReply {
        UnitReply::check(sense.in_format(self.modes.sense_format()))
    }

    fn refuse(&self, refusal: Refusal) -> UnitReply {
        match refusal {
            Refusal::Conflict => UnitReply::status(ScsiStatus::ReservationConflict),
            Refusal::Check(sense) => self.check(sense),
        }
    }

    fn admit(
        &mut self,
        nexus: Nexus,
        len: usize,
        cdb: &[u8; CDB_BYTES_MAX],
    ) -> Result<&'static Opcode, Refusal> {
        let found = opcodes::find(cdb, self.has());
        // These three answer in spite of a pending unit attention (SAM-5, 5.14.2).
        let exempt = matches!(
            found.map(|row| row.operation),
            Ok(Operation::Inquiry | Operation::ReportLuns | Operation::RequestSense)
        );
        let attentions = self.attentions(nexus);
        if !exempt
            && !attentions.is_empty()
            && let Some(attention) = attentions.take_reset()
        {
            return Err(Refusal::Check(attention.sense()));
        }
        let row = if len == 0 { Err(Sense::INVALID_OPCODE) } else { found }.map_err(Refusal::Check)?;
        if len < row.cdb_len() {
            return Err(Refusal::Check(Sense::cdb_field(len as u16, 7)));
        }
        if self.conflict(nexus, row, cdb) {
            return Err(Refusal::Conflict);
        }
        if !exempt && let Some(attention) = self.attentions(nexus).take() {
            return Err(Refusal::Check(attention.sense()));
        }
        row.check(cdb).map_err(Refusal::Check)?;
        if let Some(sense) = self.sanitize.refusal(row.operation) {
            return Err(Refusal::Check(sense));
        }
        if row.needs_medium && self.recovering {
            return Err(Refusal::Check(Sense::BECOMING_READY));
        }
        if row.needs_medium && self.ejected {
            return Err(Refusal::Check(Sense::MEDIUM_NOT_PRESENT));
        }
        if row.writes {
            self.check_writable().map_err(Refusal::Check)?;
        }
        Ok(row)
    }

    const fn has(&self) -> Has {
        Has { thin: self.geometry.thin, memory: self.can_keep }
    }

    fn check_writable(&self) -> Result<(), Sense> {
        if self.read_only {
            Err(Sense::WRITE_PROTECTED)
        } else if self.modes.write_protect {
            Err(Sense::SOFTWARE_WRITE_PROTECTED)
        } else {
            Ok(())
        }
    }

    fn conflict(&self, nexus: Nexus, row: &Opcode, cdb: &[u8; CDB_BYTES_MAX]) -> bool {
        let access = match row.access {
            // START set and POWER CONDITION zero.
            Access::StartStop if cdb[4] & 0xF1 == 0x01 => Access::Any,
            Access::Prevent if cdb[4] & 0x03 == 0 => Access::Any,
            Access::StartStop | Access::Prevent => Access::Write,
            other => other,
        };
        if let Some(owner) = self.legacy {
            return match access {
                Access::Persistent => true,
                Access::Any | Access::Legacy => false,
                _ => owner != nexus,
            };
        }
        match self.reservations.kind() {
            Some(kind) => conflicts(kind, self.role(nexus), access),
            None => false,
        }
    }

    fn role(&self, nexus: Nexus) -> Role {
        self.nexuses.get(nexus.slot()).map_or(Role::Stranger, |state| state.role)
    }

    /// The pending conditions of an attached nexus; the device lets no other in.
    fn attentions(&mut self, nexus: Nexus) -> &mut Attentions {
        &mut self.state(nexus).attentions
    }

    fn state(&mut self, nexus: Nexus) -> &mut NexusState {
        let slot = nexus.slot();
        if slot >= self.nexuses.len() {
            self.nexuses.resize(slot + 1, NexusState::default());
        }
        &mut self.nexuses[slot]
    }

    pub(super) fn attach(&mut self, nexus: Nexus, port: &InitiatorPort) {
        let role = self.reservations.role(port);
        let mut attentions = Attentions::NONE;
        attentions.raise(UnitAttention::PowerOnOrReset);
        *self.state(nexus) = NexusState { attached: true, attentions, prevents: false, role };
    }

    /// I_T nexus loss (SAM-5, 6.3.4): what was the nexus's alone goes, registrations stay.
    pub(super) fn detach(&mut self, nexus: Nexus) {
        *self.state(nexus) = NexusState::default();
        self.copies.forget(nexus);
        self.rods.forget(nexus);
        if self.legacy == Some(nexus) {
            self.legacy = None;
        }
    }

    /// Logical unit or target reset (SAM-5, 6.3.2 and 6.3.3): modes go back to what was saved, legacy reservations
    /// and PREVENT end, persistent reservations stay.
    pub(super) fn reset(&mut self, attention: UnitAttention) {
        self.legacy = None;
        self.modes = self.saved.unwrap_or_default();
        self.nexuses.iter_mut().for_each(|state| state.prevents = false);
        self.raise_except(None, attention);
    }

    pub(super) fn raise(&mut self, nexus: Nexus, attention: UnitAttention) {
        if let Some(state) = self.nexuses.get_mut(nexus.slot()).filter(|state| state.attached) {
            state.attentions.raise(attention);
        }
    }

    pub(super) fn raise_except(&mut self, except: Option<Nexus>, attention: UnitAttention) {
        for (slot, state) in self.nexuses.iter_mut().enumerate().filter(|(_, state)| state.attached) {
            if except.is_none_or(|nexus| nexus.slot() != slot) {
                state.attentions.raise(attention);
            }
        }
    }

    pub(super) fn clear_attention(&mut self, nexus: Nexus, attention: UnitAttention) {
        self.attentions(nexus).clear(attention);
    }

    /// Registrations changed: the copies in the nexus states follow.
    fn refresh_roles(&mut self, ports: &[Option<InitiatorPort>]) {
        for (state, port) in self.nexuses.iter_mut().zip(ports) {
            state.role = port.as_ref().map_or(Role::Stranger, |port| self.reservations.role(port));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::scsi::fixture::{
        A, B, BLOCKS, Bench, LUN_0, READ_10, RELEASE_6, RESERVE_6, TEST_UNIT_READY, port,
    };
    use crate::units::{BlockCount, Lba};

    #[test]
    fn a_new_nexus_hears_of_power_on_once() {
        let mut bench = Bench::new();
        bench.device.attach(A, port(A)).unwrap();
        assert_eq!(bench.status(A, &[0x12, 0, 0, 0, 96, 0]), ScsiStatus::Good, "INQUIRY answers before");
        assert_eq!(bench.codes(A, &READ_10), (6, 0x29, 0));
        assert!(matches!(bench.plan(A, &READ_10), UnitPlan::Read { .. }));
        assert_eq!(bench.status(B, &TEST_UNIT_READY), ScsiStatus::Good, "it is A's alone");
    }

    #[test]
    fn a_reset_is_told_before_an_unknown_opcode_other_attentions_are_not() {
        let mut bench = Bench::new();
        bench.device.reset_unit(UnitIndex(0));
        assert_eq!(bench.codes(A, &[0xFF; 16]), (6, 0x29, 3));
        assert_eq!(bench.codes(A, &[0xFF; 16]), (5, 0x20, 0));
        bench.device.capacity_changed(UnitIndex(0), BLOCKS + 1);
        assert_eq!(bench.codes(A, &[0xFF; 16]), (5, 0x20, 0));
        assert_eq!(bench.codes(A, &TEST_UNIT_READY), (6, 0x2A, 9));
    }

    #[test]
    fn a_capacity_that_stays_the_same_is_no_news() {
        let mut bench = Bench::new();
        bench.device.capacity_changed(UnitIndex(0), BLOCKS);
        bench.device.capacity_changed(UnitIndex(0), 0);
        assert_eq!(bench.status(A, &TEST_UNIT_READY), ScsiStatus::Good);
        bench.device.capacity_changed(UnitIndex(0), 8);
        assert_eq!(bench.codes(A, &READ_10), (6, 0x2A, 9));
        assert_eq!(bench.data(A, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0])[..4], [0, 0, 0, 7]);
    }

    #[test]
    fn a_cdb_shorter_than_its_opcode_wants_is_an_invalid_field() {
        let mut bench = Bench::new();
        for len in 1..10 {
            let reply = bench.reply(A, &READ_10[..len]);
            assert_eq!(reply.sense, Some(Sense::cdb_field(len as u16, 7)));
        }
        assert_eq!(bench.codes(A, &[]), (5, 0x20, 0));
        let mut long = [0; 32];
        long[..10].copy_from_slice(&READ_10);
        assert!(
            matches!(bench.plan(A, &long), UnitPlan::Read { .. }),
            "iSCSI pads to sixteen bytes and more"
        );
    }

    #[test]
    fn aborted_commands_are_told_to_the_victim_alone() {
        let mut bench = Bench::new();
        bench.device.aborted_by_other(B, UnitIndex(0));
        assert_eq!(bench.status(A, &TEST_UNIT_READY), ScsiStatus::Good);
        assert_eq!(bench.codes(B, &TEST_UNIT_READY), (6, 0x2F, 0));
    }

    #[test]
    fn a_detached_slot_keeps_nothing_for_the_next_nexus() {
        let mut bench = Bench::new();
        bench.device.aborted_by_other(B, UnitIndex(0));
        bench.device.detach(B);
        assert_eq!(bench.status(B, &TEST_UNIT_READY), ScsiStatus::Busy);
        bench.device.reset();
        bench.attach(B);
        assert_eq!(bench.status(B, &TEST_UNIT_READY), ScsiStatus::Good);
    }

    /// Something happens to the unit, by its number.
    fn happen(bench: &mut Bench, what: u8, by: Nexus) {
        let register = |service_action: u8, old: u8, new: u8| {
            let mut list = [0; 24];
            (list[7], list[15]) = (old, new);
            ([0x5F, service_action, 0x01, 0, 0, 0, 0, 0, 24, 0], list)
        };
        let plan = match what {
            0 => bench.plan(by, &RESERVE_6),
            1 | 2 => bench.plan(by, &RELEASE_6),
            // REGISTER, RESERVE, CLEAR, and two more that end what is reserved.
            3..=5 => {
                let (cdb, list) = register([0, 1, 3][usize::from(what - 3)], u8::from(what != 3) * 9, 9);
                bench.send(by, &cdb, &list)
            }
            // Eject, and load.
            6 => bench.plan(by, &[0x1B, 0, 0, 0, 2, 0]),
            7 | 8 => bench.plan(by, &[0x1B, 0, 0, 0, 3, 0]),
            9 => bench.plan(by, &[0x48, 0x82, 0, 0, 0, 0, 0, 0, 0, 0]),
            10 | 11 => {
                bench.device.sanitize_ended(UnitIndex(0), true);
                return;
            }
            12 => return bench.device.reset_unit(UnitIndex(0)),
            13 => return bench.device.detach(by),
            14 | 15 => return bench.device.attach(by, port(by)).unwrap(),
            16 => {
                bench.device.show(by, &[false]);
                return;
            }
            17 | 18 => {
                bench.device.show(by, &[true]);
                return;
            }
            _ => bench.plan(by, &TEST_UNIT_READY),
        };
        drop(plan);
    }

    fn read_cdb(long: bool, lba: u64, count: u32, odd: Option<(usize, u8)>) -> [u8; 16] {
        let mut cdb = [0; 16];
        if long {
            cdb[0] = 0x88;
            cdb[2..10].copy_from_slice(&lba.to_be_bytes());
            cdb[10..14].copy_from_slice(&count.to_be_bytes());
        } else {
            cdb[0] = 0x28;
            cdb[2..6].copy_from_slice(&(lba as u32).to_be_bytes());
            cdb[7..9].copy_from_slice(&(count as u16).to_be_bytes());
        }
        if let Some((byte, value)) = odd {
            cdb[byte] = value;
        }
        cdb
    }

    proptest! {
        /// Whatever a unit went through: what `plain_read` says, `plan` says, and where nothing went on it says something.
        #[test]
        fn a_plain_read_is_what_a_plan_would_be(
            happenings in proptest::collection::vec((0_u8..24, any::<bool>()), 0..20),
            reads in proptest::collection::vec(
                (any::<bool>(), 0..BLOCKS + 8, 0_u32..20_000, proptest::option::of((0_usize..16, any::<u8>()))),
                1..8,
            ),
        ) {
            let mut bench = Bench::with(|unit| {
                unit.removable = true;
                unit.kept = Some(KeptUnit::default());
            });
            let quiet = bench.device.plain_read(A, LUN_0, &read_cdb(true, 0, 1, None));
            prop_assert_eq!(quiet, Some((UnitIndex(0), BlockRange { start: Lba(0), count: BlockCount(1) })));
            for (what, first) in happenings {
                happen(&mut bench, what, if first { A } else { B });
                for (long, lba, count, odd) in &reads {
                    let cdb = read_cdb(*long, *lba, *count, *odd);
                    let plain = bench.device.plain_read(A, LUN_0, &cdb);
                    let plan = |bench: &mut Bench| bench.device.plan(A, LUN_0, &cdb);
                    if let Some((unit, range)) = plain {
                        prop_assert_eq!(plan(&mut bench), UnitPlan::Read { unit, range, fua: false });
                        prop_assert_eq!(bench.device.plain_read(A, LUN_0, &cdb), plain, "nothing has changed");
                    }
                }
            }
        }
    }
}
