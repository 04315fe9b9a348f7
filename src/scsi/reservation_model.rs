//! Persistent reservations against slow, obvious models: the standard's table spelled out, and a state machine over
//! plain maps that is written from the standard's sentences and shares no code with the real one.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::attention::UnitAttention;
use super::device::InitiatorPort;
use super::opcodes::{Access, OPCODES, Operation};
use super::reservation::{Move, Refusal, Registration, ReservationType, Reservations, Role, conflicts};
use super::sense::Sense;

fn port(number: u8) -> InitiatorPort {
    InitiatorPort { name: format!("iqn.2026-11.example:{number}"), isid: [number; 6] }
}

/// SPC-4, table 66 and SBC-3, table 12, by columns: from any nexus with Write Exclusive and with Exclusive Access;
/// from a registrant with any shared type; from a stranger with Write Exclusive and Exclusive Access of a shared type.
const TABLE: &[(Operation, &str)] = &[
    (Operation::Inquiry, "AAAAA"),
    (Operation::ReportLuns, "AAAAA"),
    (Operation::RequestSense, "AAAAA"),
    (Operation::TestUnitReady, "AAAAA"),
    (Operation::ReadCapacity10, "AAAAA"),
    (Operation::ReadCapacity16, "AAAAA"),
    (Operation::ReportTargetPortGroups, "AAAAA"),
    (Operation::ModeSelect6, "CCACC"),
    (Operation::ModeSelect10, "CCACC"),
    (Operation::ModeSense6, "ACAAC"),
    (Operation::ModeSense10, "ACAAC"),
    (Operation::ReportSupportedOpcodes, "ACAAC"),
    (Operation::ReportTaskManagement, "ACAAC"),
    (Operation::Read, "ACAAC"),
    (Operation::Verify, "ACAAC"),
    (Operation::PreFetch, "ACAAC"),
    (Operation::GetLbaStatus, "ACAAC"),
    (Operation::ReadDefectData10, "ACAAC"),
    (Operation::ReadDefectData12, "ACAAC"),
    (Operation::Write, "CCACC"),
    (Operation::WriteAndVerify, "CCACC"),
    (Operation::WriteSame, "CCACC"),
    (Operation::CompareAndWrite, "CCACC"),
    (Operation::OrWrite, "CCACC"),
    (Operation::Unmap, "CCACC"),
    (Operation::WriteAtomic, "CCACC"),
    (Operation::Sanitize, "CCACC"),
    (Operation::ExtendedCopy, "CCACC"),
    (Operation::ReceiveCopyResults, "CCACC"),
    (Operation::PopulateToken, "ACAAC"),
    (Operation::WriteUsingToken, "CCACC"),
    (Operation::ReceiveTokenInformation, "CCACC"),
    (Operation::SynchronizeCache, "CCACC"),
];

fn expected(row: &str, kind: ReservationType, role: Role) -> bool {
    use ReservationType as Type;
    let column = match (kind, role) {
        (_, Role::Holder) => return false,
        (Type::WriteExclusive, _) => 0,
        (Type::ExclusiveAccess, _) => 1,
        (_, Role::Registrant) => 2,
        (Type::WriteExclusiveRegistrantsOnly | Type::WriteExclusiveAllRegistrants, _) => 3,
        (Type::ExclusiveAccessRegistrantsOnly | Type::ExclusiveAccessAllRegistrants, _) => 4,
    };
    row.as_bytes()[column] == b'C'
}

#[test]
fn every_command_follows_the_conflict_table() {
    for row in OPCODES {
        // These depend on more than the opcode, and have tests of their own.
        if matches!(row.access, Access::Persistent | Access::Legacy | Access::StartStop | Access::Prevent) {
            continue;
        }
        let (_, letters) = TABLE.iter().find(|(operation, _)| *operation == row.operation).unwrap();
        for kind in ReservationType::ALL {
            for role in [Role::Stranger, Role::Registrant, Role::Holder] {
                let got = conflicts(kind, role, row.access);
                assert_eq!(got, expected(letters, kind, role), "{:?} {kind:?} {role:?}", row.operation);
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Register { by: u8, key: u64, new: u64 },
    Ignore { by: u8, new: u64 },
    Reserve { by: u8, key: u64, kind: ReservationType },
    Release { by: u8, key: u64, kind: ReservationType },
    Clear { by: u8, key: u64 },
    Preempt { by: u8, key: u64, victim: u64, kind: ReservationType },
    Together { by: u8, new: u64, others: Vec<u8> },
    Move { by: u8, key: u64, new: u64, to: u8, unregister: bool },
}

/// Keys are few, so that they often match and are often shared.
fn step() -> impl Strategy<Value = Step> {
    let by = || 0u8..4;
    let key = || 0u64..4;
    let kind = || proptest::sample::select(&ReservationType::ALL[..]);
    prop_oneof![
        2 => (by(), key(), key()).prop_map(|(by, key, new)| Step::Register { by, key, new }),
        3 => (by(), key()).prop_map(|(by, new)| Step::Ignore { by, new }),
        3 => (by(), key(), kind()).prop_map(|(by, key, kind)| Step::Reserve { by, key, kind }),
        2 => (by(), key(), kind()).prop_map(|(by, key, kind)| Step::Release { by, key, kind }),
        1 => (by(), key()).prop_map(|(by, key)| Step::Clear { by, key }),
        3 => (by(), key(), key(), kind())
            .prop_map(|(by, key, victim, kind)| Step::Preempt { by, key, victim, kind }),
        1 => (by(), key(), proptest::collection::vec(by(), 0..3))
            .prop_map(|(by, new, others)| Step::Together { by, new, others }),
        2 => (by(), key(), key(), by(), proptest::bool::ANY)
            .prop_map(|(by, key, new, to, unregister)| Step::Move { by, key, new, to, unregister }),
    ]
}

/// What a step ends with.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Conflict,
    /// ASC and ASCQ.
    Check(u8, u8),
    /// Who hears what, sorted; and whose registrations were preempted, sorted.
    Good {
        told: Vec<(u8, (u8, u8))>,
        preempted: Vec<u8>,
    },
}

fn good() -> Verdict {
    Verdict::Good { told: vec![], preempted: vec![] }
}

#[derive(Clone, Debug, Default)]
struct Model {
    generation: u32,
    keys: BTreeMap<u8, u64>,
    reservation: Option<(ReservationType, u8)>,
}

const RELEASED: (u8, u8) = (0x2A, 0x04);
const RESERVATIONS_PREEMPTED: (u8, u8) = (0x2A, 0x03);
const REGISTRATIONS_PREEMPTED: (u8, u8) = (0x2A, 0x05);

impl Model {
    fn holders(&self) -> Vec<u8> {
        match self.reservation {
            None => vec![],
            Some((kind, _)) if kind as u8 >= 7 => self.keys.keys().copied().collect(),
            Some((_, holder)) => vec![holder],
        }
    }

    fn others(&self, by: u8, what: (u8, u8)) -> Vec<(u8, (u8, u8))> {
        self.keys.keys().filter(|other| **other != by).map(|other| (*other, what)).collect()
    }

    fn run(&mut self, step: &Step) -> Verdict {
        match *step {
            Step::Register { by, key, new } => {
                if self.keys.get(&by).copied().unwrap_or(0) != key {
                    return Verdict::Conflict;
                }
                self.set_key(by, new)
            }
            Step::Ignore { by, new } => self.set_key(by, new),
            Step::Reserve { by, key, kind } => {
                if self.keys.get(&by) != Some(&key) {
                    return Verdict::Conflict;
                }
                match self.reservation {
                    None => self.reservation = Some((kind, by)),
                    Some((held, _)) if held == kind && self.holders().contains(&by) => {}
                    Some(_) => return Verdict::Conflict,
                }
                good()
            }
            Step::Release { by, key, kind } => self.release(by, key, kind),
            Step::Clear { by, key } => {
                if self.keys.get(&by) != Some(&key) {
                    return Verdict::Conflict;
                }
                let told = self.others(by, RESERVATIONS_PREEMPTED);
                *self = Self { generation: self.generation + 1, ..Self::default() };
                Verdict::Good { told, preempted: vec![] }
            }
            Step::Preempt { by, key, victim, kind } => self.preempt(by, key, victim, kind),
            Step::Together { by, new, ref others } => {
                match self.keys.get(&by) {
                    // Registered already: the key shown is 0, and then SPEC_I_PT is an error.
                    Some(0) => unreachable!("no key is zero"),
                    Some(_) => return Verdict::Conflict,
                    None if new == 0 => return good(),
                    None => {}
                }
                if others.iter().any(|other| self.keys.contains_key(other)) {
                    return Verdict::Check(0x26, 0);
                }
                self.generation += 1;
                self.keys.insert(by, new);
                self.keys.extend(others.iter().map(|other| (*other, new)));
                good()
            }
            Step::Move { by, key, new, to, unregister } => self.move_to(by, key, new, to, unregister),
        }
    }

    fn move_to(&mut self, by: u8, key: u64, new: u64, to: u8, unregister: bool) -> Verdict {
        if self.keys.get(&by) != Some(&key) {
            return Verdict::Conflict;
        }
        let Some((kind, holder)) = self.reservation else { return Verdict::Check(0x24, 0) };
        if kind as u8 >= 7 || holder != by {
            return Verdict::Conflict;
        }
        if new == 0 || to == by {
            return Verdict::Check(0x26, 0);
        }
        self.generation += 1;
        self.keys.insert(to, new);
        self.reservation = Some((kind, to));
        if unregister {
            self.keys.remove(&by);
        }
        good()
    }

    fn set_key(&mut self, by: u8, new: u64) -> Verdict {
        if new == 0 && !self.keys.contains_key(&by) {
            return good();
        }
        self.generation += 1;
        if new != 0 {
            self.keys.insert(by, new);
            return good();
        }
        let held_before = self.holders().contains(&by);
        self.keys.remove(&by);
        let mut told = vec![];
        if let Some((kind, _)) = self.reservation
            && held_before
        {
            let all_registrants = kind as u8 >= 7;
            if !all_registrants || self.keys.is_empty() {
                self.reservation = None;
                if kind as u8 >= 5 {
                    told = self.others(by, RELEASED);
                }
            }
        }
        Verdict::Good { told, preempted: vec![] }
    }

    fn release(&mut self, by: u8, key: u64, kind: ReservationType) -> Verdict {
        if self.keys.get(&by) != Some(&key) {
            return Verdict::Conflict;
        }
        let Some((held, _)) = self.reservation else { return good() };
        if !self.holders().contains(&by) {
            return good();
        }
        if held != kind {
            return Verdict::Check(0x26, 0x04);
        }
        self.reservation = None;
        let told = if held as u8 >= 5 { self.others(by, RELEASED) } else { vec![] };
        Verdict::Good { told, preempted: vec![] }
    }

    fn preempt(&mut self, by: u8, key: u64, victim: u64, kind: ReservationType) -> Verdict {
        if self.keys.get(&by) != Some(&key) {
            return Verdict::Conflict;
        }
        let all_registrants = self.reservation.is_some_and(|(held, _)| held as u8 >= 7);
        if victim == 0 && !all_registrants {
            return Verdict::Check(0x26, 0x00);
        }
        let holder_key = match self.reservation {
            Some((_, holder)) if !all_registrants => self.keys.get(&holder).copied(),
            _ => None,
        };
        let replaces = all_registrants && victim == 0 || holder_key == Some(victim);
        let named: Vec<u8> = self
            .keys
            .iter()
            .filter(|(_, other)| victim == 0 || **other == victim)
            .map(|(number, _)| *number)
            .filter(|number| !replaces || *number != by)
            .collect();
        if !replaces && named.is_empty() {
            return Verdict::Conflict;
        }
        self.generation += 1;
        self.keys.retain(|number, _| !named.contains(number));
        let preempted: Vec<u8> = named.into_iter().filter(|number| *number != by).collect();
        let mut told: Vec<_> = preempted.iter().map(|number| (*number, REGISTRATIONS_PREEMPTED)).collect();
        if replaces {
            let before = self.reservation.map(|(held, _)| held);
            self.reservation = Some((kind, by));
            if before != Some(kind) {
                told.extend(self.others(by, RELEASED));
            }
        } else if all_registrants && self.keys.is_empty() {
            self.reservation = None;
        }
        told.sort();
        Verdict::Good { told, preempted }
    }
}

fn run(real: &mut Reservations, step: &Step) -> Verdict {
    let outcome = match *step {
        Step::Register { by, key, new } => real.register(&port(by), Some(key), new, Registration::default()),
        Step::Ignore { by, new } => real.register(&port(by), None, new, Registration::default()),
        Step::Reserve { by, key, kind } => real.reserve(&port(by), key, kind),
        Step::Release { by, key, kind } => real.release(&port(by), key, kind as u8),
        Step::Clear { by, key } => real.clear(&port(by), key),
        Step::Preempt { by, key, victim, kind } => real.preempt(&port(by), key, victim, kind as u8),
        Step::Together { by, new, ref others } => {
            let others: Vec<_> = others.iter().map(|other| port(*other)).collect();
            let registration = Registration { others: Some(&others), ..Registration::default() };
            real.register(&port(by), Some(0), new, registration)
        }
        Step::Move { by, key, new, to, unregister } => {
            let to = port(to);
            let request = Move { key, new_key: new, to: &to, unregister, aptpl: false };
            real.register_and_move(&port(by), request)
        }
    };
    let number = |port: &InitiatorPort| port.isid[0];
    let code = |attention: &UnitAttention| {
        let Sense { asc, ascq, .. } = attention.sense();
        (asc, ascq)
    };
    match outcome {
        Err(Refusal::Conflict) => Verdict::Conflict,
        Err(Refusal::Check(sense)) => Verdict::Check(sense.asc, sense.ascq),
        Ok(changes) => {
            let mut told: Vec<_> =
                changes.notices.iter().map(|(port, attention)| (number(port), code(attention))).collect();
            let mut preempted: Vec<_> = changes.preempted.iter().map(number).collect();
            told.sort();
            preempted.sort();
            Verdict::Good { told, preempted }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn reservations_behave_like_the_model(steps in proptest::collection::vec(step(), 1..40)) {
        let mut real = Reservations::default();
        let mut model = Model::default();
        for step in &steps {
            prop_assert_eq!(run(&mut real, step), model.run(step), "{:?}", step);
            prop_assert_eq!(real.generation(), model.generation);
            prop_assert_eq!(real.kind(), model.reservation.map(|(kind, _)| kind));
            let mut keys: Vec<_> =
                real.registrants().iter().map(|registrant| (registrant.port.isid[0], registrant.key)).collect();
            keys.sort();
            prop_assert_eq!(keys, model.keys.iter().map(|(number, key)| (*number, *key)).collect::<Vec<_>>());
            for number in 0..4 {
                let role = match (model.holders().contains(&number), model.keys.contains_key(&number)) {
                    (true, _) => Role::Holder,
                    (false, true) => Role::Registrant,
                    (false, false) => Role::Stranger,
                };
                prop_assert_eq!(real.role(&port(number)), role);
            }
        }
    }
}

#[test]
fn a_full_registration_table_says_so() {
    let mut real = Reservations::default();
    let numbered = |number: usize| InitiatorPort { name: format!("iqn.{number}"), isid: [0; 6] };
    for number in 0..crate::limits::REGISTRANTS_PER_UNIT_MAX {
        real.register(&numbered(number), Some(0), 1, Registration::default()).unwrap();
    }
    let refused = real.register(&numbered(9999), Some(0), 1, Registration::default());
    assert_eq!(refused, Err(Refusal::Check(Sense::INSUFFICIENT_REGISTRATIONS)));
    assert!(
        real.register(&numbered(0), Some(1), 2, Registration::default()).is_ok(),
        "a known one may still change its key"
    );
}
