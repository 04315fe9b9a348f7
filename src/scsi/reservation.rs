//! Persistent and legacy reservations of one unit (SPC-4, 5.12; SPC-2, 5.5 for RESERVE and RELEASE).
//!
//! Knows registrations, the reservation, and what each may do to a command. Does not know nexuses' slots, bytes of
//! parameter lists (`reservation_data`) nor how a unit attention is delivered: it says who must get one.
//!
//! | held by another  | stranger reads | stranger writes | registrant reads | registrant writes |
//! |------------------|----------------|-----------------|------------------|-------------------|
//! | Write Exclusive  | yes            | no              | yes              | no                |
//! | Exclusive Access | no             | no              | no               | no                |
//! | WE, Registrants  | yes            | no              | yes              | yes               |
//! | EA, Registrants  | no             | no              | yes              | yes               |

use super::attention::UnitAttention;
use super::device::InitiatorPort;
use super::kept::{KeptHeld, KeptRegistrant, KeptReservations};
use super::opcodes::Access;
use super::sense::Sense;
use crate::limits;

/// The six types (SPC-4, table 214).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ReservationType {
    WriteExclusive = 0x1,
    ExclusiveAccess = 0x3,
    WriteExclusiveRegistrantsOnly = 0x5,
    ExclusiveAccessRegistrantsOnly = 0x6,
    WriteExclusiveAllRegistrants = 0x7,
    ExclusiveAccessAllRegistrants = 0x8,
}

impl ReservationType {
    pub(super) const ALL: [Self; 6] = [
        Self::WriteExclusive,
        Self::ExclusiveAccess,
        Self::WriteExclusiveRegistrantsOnly,
        Self::ExclusiveAccessRegistrantsOnly,
        Self::WriteExclusiveAllRegistrants,
        Self::ExclusiveAccessAllRegistrants,
    ];

    pub(super) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == code)
    }

    /// Every registrant holds the reservation.
    pub(super) const fn all_registrants(self) -> bool {
        matches!(self, Self::WriteExclusiveAllRegistrants | Self::ExclusiveAccessAllRegistrants)
    }

    /// Registrants have the access of the holder.
    pub(super) const fn shared(self) -> bool {
        !matches!(self, Self::WriteExclusive | Self::ExclusiveAccess)
    }

    const fn write_exclusive(self) -> bool {
        matches!(
            self,
            Self::WriteExclusive | Self::WriteExclusiveRegistrantsOnly | Self::WriteExclusiveAllRegistrants
        )
    }
}

/// What an I_T nexus is to the persistent reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(super) enum Role {
    #[default]
    Stranger,
    Registrant,
    Holder,
}

/// True when a command from a nexus of this role meets RESERVATION CONFLICT. `access` is `Any`, `Status`, `Read` or
/// `Write`; the other kinds are judged elsewhere, and allowed here.
pub(super) const fn conflicts(kind: ReservationType, role: Role, access: Access) -> bool {
    match role {
        Role::Holder => false,
        Role::Registrant if kind.shared() => false,
        Role::Registrant | Role::Stranger => match access {
            Access::Write => true,
            Access::Read => !kind.write_exclusive(),
            _ => false,
        },
    }
}

/// One registered I_T nexus: it outlives sessions. There is one target port, so the initiator port tells it all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Registrant {
    pub(super) port: InitiatorPort,
    pub(super) key: u64,
    /// Registered with ALL_TG_PT: READ FULL STATUS says so.
    pub(super) all_ports: bool,
}

/// What REGISTER asks for beside keys (SPC-4, 6.16.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Registration<'a> {
    /// Initiator ports that are registered along (SPEC_I_PT); `None` without that bit.
    pub(super) others: Option<&'a [InitiatorPort]>,
    pub(super) all_ports: bool,
    /// The unit's reservations survive a restart, from now on (or no longer).
    pub(super) aptpl: bool,
}

/// What REGISTER AND MOVE asks for (SPC-4, 6.16.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Move<'a> {
    pub(super) key: u64,
    pub(super) new_key: u64,
    pub(super) to: &'a InitiatorPort,
    /// UNREG: the former holder's registration ends.
    pub(super) unregister: bool,
    pub(super) aptpl: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    kind: ReservationType,
    /// The registrant that reserved; of no meaning for the all-registrants types.
    by: usize,
}

/// Everything persistent about a unit's reservations. They live as long as the process, and beyond it when the last
/// registration said so (APTPL): see [`Reservations::kept`].
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Reservations {
    generation: u32,
    aptpl: bool,
    registrants: Vec<Registrant>,
    held: Option<Held>,
}

/// Why a PERSISTENT RESERVE OUT changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Conflict,
    Check(Sense),
}

/// What a change means for others.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Nexuses that get a unit attention, by initiator port.
    pub(super) notices: Vec<(InitiatorPort, UnitAttention)>,
    /// Registrants that were preempted: PREEMPT AND ABORT ends their commands.
    pub(super) preempted: Vec<InitiatorPort>,
}

type Outcome = Result<Changes, Refusal>;

impl Reservations {
    /// What an earlier run of the server kept. The generation begins anew (SPC-4, 6.15.2).
    pub(super) fn restored(kept: &KeptReservations) -> Self {
        let registrant = |KeptRegistrant { port, key, all_ports }: &KeptRegistrant| Registrant {
            port: port.clone(),
            key: *key,
            all_ports: *all_ports,
        };
        Self {
            generation: 0,
            aptpl: true,
            registrants: kept.registrants.iter().map(registrant).collect(),
            held: kept.held.map(|KeptHeld { kind, by }| Held { kind, by }),
        }
    }

    /// What must outlive the process; `None` when nothing has to.
    pub(super) fn kept(&self) -> Option<KeptReservations> {
        let registrant = |Registrant { port, key, all_ports }: &Registrant| KeptRegistrant {
            port: port.clone(),
            key: *key,
            all_ports: *all_ports,
        };
        (self.aptpl && !self.registrants.is_empty()).then(|| KeptReservations {
            registrants: self.registrants.iter().map(registrant).collect(),
            held: self.held.map(|Held { kind, by }| KeptHeld { kind, by }),
        })
    }

    pub(super) const fn generation(&self) -> u32 {
        self.generation
    }

    /// APTPL of the last registration.
    pub(super) const fn aptpl(&self) -> bool {
        self.aptpl
    }

    pub(super) fn registrants(&self) -> &[Registrant] {
        &self.registrants
    }

    /// The type of the reservation, if there is one.
    pub(super) fn kind(&self) -> Option<ReservationType> {
        self.held.map(|held| held.kind)
    }

    /// The key READ RESERVATION shows: zero for the all-registrants types (SPC-4, 6.15.3.2).
    pub(super) fn holder_key(&self) -> u64 {
        match self.held {
            Some(held) if !held.kind.all_registrants() => {
                self.registrants.get(held.by).map_or(0, |registrant| registrant.key)
            }
            _ => 0,
        }
    }

    pub(super) fn role(&self, port: &InitiatorPort) -> Role {
        match self.find(port) {
            None => Role::Stranger,
            Some(index) if self.holds(index) => Role::Holder,
            Some(_) => Role::Registrant,
        }
    }

    pub(super) fn holds(&self, index: usize) -> bool {
        self.held.is_some_and(|held| held.kind.all_registrants() || held.by == index)
    }

    fn find(&self, port: &InitiatorPort) -> Option<usize> {
        self.registrants.iter().position(|registrant| registrant.port == *port)
    }

    /// The registrant of a nexus that shows the right key (SPC-4, 5.12.11.1).
    fn authorized(&self, port: &InitiatorPort, key: u64) -> Result<usize, Refusal> {
        let index = self.find(port).ok_or(Refusal::Conflict)?;
        if self.registrants[index].key == key { Ok(index) } else { Err(Refusal::Conflict) }
    }

    /// REGISTER; with `key` `None` REGISTER AND IGNORE EXISTING KEY (SPC-4, 5.12.7). Nothing is registered unless
    /// everybody is.
    pub(super) fn register(
        &mut self,
        port: &InitiatorPort,
        key: Option<u64>,
        new_key: u64,
        registration: Registration<'_>,
    ) -> Outcome {
        let found = self.find(port);
        let current = found.map_or(0, |index| self.registrants[index].key);
        if key.is_some_and(|key| key != current) {
            return Err(Refusal::Conflict);
        }
        let Registration { others, all_ports, aptpl } = registration;
        if found.is_some() && others.is_some() {
            return Err(Refusal::Check(Sense::parameter_field(20, 3)));
        }
        let changes = match (found, new_key) {
            (None, 0) => return Ok(Changes::default()),
            (Some(index), 0) => self.unregister(index),
            (Some(index), _) => {
                self.registrants[index].key = new_key;
                self.registrants[index].all_ports = all_ports;
                Changes::default()
            }
            (None, _) => {
                self.add(port, new_key, all_ports, others.unwrap_or_default())?;
                Changes::default()
            }
        };
        self.aptpl = aptpl;
        self.generation = self.generation.wrapping_add(1);
        Ok(changes)
    }

    /// Registers a nexus and those named with it. One that is registered already keeps its key from strangers: the
    /// list is refused.
    fn add(
        &mut self,
        port: &InitiatorPort,
        key: u64,
        all_ports: bool,
        others: &[InitiatorPort],
    ) -> Result<(), Refusal> {
        if others.iter().any(|other| self.find(other).is_some()) {
            return Err(Refusal::Check(Sense::parameter_field(28, 7)));
        }
        let before = self.registrants.len();
        for port in core::iter::once(port).chain(others) {
            if self.find(port).is_some() {
                continue;
            }
            if self.registrants.len() >= limits::REGISTRANTS_PER_UNIT_MAX {
                self.registrants.truncate(before);
                return Err(Refusal::Check(Sense::INSUFFICIENT_REGISTRATIONS));
            }
            self.registrants.push(Registrant { port: port.clone(), key, all_ports });
        }
        Ok(())
    }

    /// REGISTER AND MOVE (SPC-4, 5.12.8): the reservation changes hands without a moment in between.
    pub(super) fn register_and_move(&mut self, port: &InitiatorPort, request: Move<'_>) -> Outcome {
        let Move { key, new_key, to, unregister, aptpl } = request;
        let own = self.authorized(port, key)?;
        let Some(held) = self.held else { return Err(Refusal::Check(Sense::cdb_field(1, 4))) };
        if held.kind.all_registrants() || held.by != own {
            return Err(Refusal::Conflict);
        }
        if new_key == 0 {
            return Err(Refusal::Check(Sense::parameter_field(8, 7)));
        }
        if to == port {
            return Err(Refusal::Check(Sense::parameter_field(24, 7)));
        }
        match self.find(to) {
            Some(index) => self.registrants[index].key = new_key,
            None => self.add(to, new_key, false, &[])?,
        }
        if unregister {
            self.remove(own);
        }
        self.held = self.find(to).map(|by| Held { kind: held.kind, by });
        self.aptpl = aptpl;
        self.generation = self.generation.wrapping_add(1);
        Ok(Changes::default())
    }

    /// Unregistering (SPC-4, 5.12.11.3): the holder takes the reservation along, unless others hold it too.
    fn unregister(&mut self, index: usize) -> Changes {
        let mut changes = Changes::default();
        let held = self.held;
        self.remove(index);
        let Some(held) = held else { return changes };
        if held.kind.all_registrants() {
            if self.registrants.is_empty() {
                self.held = None;
            }
        } else if held.by == index {
            self.held = None;
            if held.kind.shared() {
                changes.notify_all(&self.registrants, UnitAttention::ReservationsReleased);
            }
        }
        changes
    }

    /// Takes a registrant out and keeps `held.by` right.
    fn remove(&mut self, index: usize) -> Registrant {
        let registrant = self.registrants.remove(index);
        if let Some(held) = &mut self.held
            && held.by > index
        {
            held.by -= 1;
        }
        registrant
    }

    /// RESERVE (SPC-4, 5.12.9).
    pub(super) fn reserve(&mut self, port: &InitiatorPort, key: u64, kind: ReservationType) -> Outcome {
        let index = self.authorized(port, key)?;
        match self.held {
            None => self.held = Some(Held { kind, by: index }),
            Some(held) if self.holds(index) && held.kind == kind => {}
            Some(_) => return Err(Refusal::Conflict),
        }
        Ok(Changes::default())
    }

    /// RELEASE (SPC-4, 5.12.11.2).
    pub(super) fn release(&mut self, port: &InitiatorPort, key: u64, kind: u8) -> Outcome {
        let index = self.authorized(port, key)?;
        let mut changes = Changes::default();
        let Some(held) = self.held.filter(|_| self.holds(index)) else {
            return Ok(changes);
        };
        if held.kind as u8 != kind {
            return Err(Refusal::Check(Sense::INVALID_RELEASE));
        }
        self.held = None;
        if held.kind.shared() {
            changes.notify_others(&self.registrants, port, UnitAttention::ReservationsReleased);
        }
        Ok(changes)
    }

    /// CLEAR (SPC-4, 5.12.11.6).
    pub(super) fn clear(&mut self, port: &InitiatorPort, key: u64) -> Outcome {
        self.authorized(port, key)?;
        let mut changes = Changes::default();
        changes.notify_others(&self.registrants, port, UnitAttention::ReservationsPreempted);
        self.registrants.clear();
        self.held = None;
        self.generation = self.generation.wrapping_add(1);
        Ok(changes)
    }

    /// PREEMPT (SPC-4, 5.12.11.4). `kind` is the type field: it matters only when the reservation is preempted.
    pub(super) fn preempt(&mut self, port: &InitiatorPort, key: u64, victim: u64, kind: u8) -> Outcome {
        const VICTIM_KEY: Sense = Sense::parameter_field(8, 7);
        let own = self.authorized(port, key)?;
        let takes_over = match self.held {
            None if victim == 0 => return Err(Refusal::Check(VICTIM_KEY)),
            None => false,
            Some(held) if held.kind.all_registrants() => victim == 0,
            Some(_) if victim == 0 => return Err(Refusal::Check(VICTIM_KEY)),
            Some(_) => victim == self.holder_key(),
        };
        let changes = if takes_over {
            let kind = ReservationType::from_code(kind).ok_or(Refusal::Check(Sense::cdb_field(2, 3)))?;
            self.take_over(own, victim, kind)
        } else {
            if !self.registrants.iter().any(|registrant| registrant.key == victim) {
                return Err(Refusal::Conflict);
            }
            self.remove_key(port, victim)
        };
        self.generation = self.generation.wrapping_add(1);
        Ok(changes)
    }

    /// Replaces the reservation; registrants with the victim's key, or all when it is zero, go, but never the
    /// preempting one.
    fn take_over(&mut self, own: usize, victim: u64, kind: ReservationType) -> Changes {
        let changed = self.kind() != Some(kind);
        let port = self.registrants[own].port.clone();
        let mut changes = Changes::default();
        self.registrants.retain(|registrant| {
            let goes = registrant.port != port && (victim == 0 || registrant.key == victim);
            if goes {
                changes.preempt(&registrant.port);
            }
            !goes
        });
        self.held = self.find(&port).map(|by| Held { kind, by });
        if changed {
            changes.notify_others(&self.registrants, &port, UnitAttention::ReservationsReleased);
        }
        changes
    }

    /// Removes registrations only. The preempting nexus may name its own key; it gets no unit attention for that.
    fn remove_key(&mut self, port: &InitiatorPort, victim: u64) -> Changes {
        let mut changes = Changes::default();
        while let Some(index) = self.registrants.iter().position(|registrant| registrant.key == victim) {
            let all_registrants = self.held.is_some_and(|held| held.kind.all_registrants());
            let gone = self.remove(index);
            if gone.port != *port {
                changes.preempt(&gone.port);
            }
            if all_registrants && self.registrants.is_empty() {
                self.held = None;
            }
        }
        changes
    }
}

impl Changes {
    fn preempt(&mut self, port: &InitiatorPort) {
        self.notices.push((port.clone(), UnitAttention::RegistrationsPreempted));
        self.preempted.push(port.clone());
    }

    fn notify_all(&mut self, registrants: &[Registrant], attention: UnitAttention) {
        self.notices.extend(registrants.iter().map(|registrant| (registrant.port.clone(), attention)));
    }

    fn notify_others(
        &mut self,
        registrants: &[Registrant],
        except: &InitiatorPort,
        attention: UnitAttention,
    ) {
        let others = registrants.iter().filter(|registrant| registrant.port != *except);
        self.notices.extend(others.map(|registrant| (registrant.port.clone(), attention)));
    }
}
