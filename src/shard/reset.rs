//! Emptying the children of a target whose durability is `until-reset`: its machine was started again, or somebody asks.
//!
//! Knows when nothing works for a unit, and that nobody may lose what a running system has written. Does not know what an
//! empty image is (`image`), nor how a machine shows that it was started again (`life`).
//!
//! | a reset is | it waits for                                                                               |
//! |------------|--------------------------------------------------------------------------------------------|
//! | `Asking`   | the other sessions of the target: one that answers a ping is a running system's, and nothing is emptied |
//! | `Ending`   | sessions that are dropped, and commands that have begun                                     |
//! | `Emptying` | the batch of each image                                                                    |
//!
//! Until it is over no command of the target begins (`Target::is_held`).

use crossbeam::channel::Sender;

use crate::clock::{Duration, Instant};
use crate::io::Io;
use crate::iscsi::params::Isid;
use crate::plan::LayerId;
use crate::scsi::UnitIndex;

use super::Shard;
use super::commit::LayerWork;
use super::executor::Core;
use super::lun_state::BootWatch;
use super::read_ahead::Streams;
use super::records::{Durability, ResetAt};
use super::rods::Rods;
use super::session::{Member, SessionKey};
use super::target::SessionEntry;

/// A session that has said nothing for so long after it was asked, while its machine's loader is here, is a dead one's.
const ANSWER: Duration = Duration::from_secs(5);
/// Connections that are dropped are closed by then.
const DROP: Duration = Duration::from_secs(1);

/// What became of a wish to empty a target's children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetAnswer {
    /// This shard does not have the target.
    NotHere,
    /// No LUN of it is until-reset.
    Persistent,
    /// So many sessions are logged in.
    InUse(usize),
    /// So many LUNs are empty.
    Done(usize),
    /// An image could not be emptied, and takes no writes.
    Failed,
    /// The target is going, or the server.
    Ending,
}

/// Who shows that the machine was started.
#[derive(Debug)]
struct Loader {
    initiator: String,
    isid: Isid,
}

#[derive(Debug)]
enum Step {
    Asking { loader: Loader, since: Instant },
    Ending { dropped: Vec<SessionKey>, deadline: Instant },
    Emptying { places: Vec<u32> },
}

#[derive(Debug)]
pub(super) struct Resetting {
    target: u32,
    why: &'static str,
    /// Also those that are only emptied when somebody asks.
    all: bool,
    step: Step,
    reply: Option<Sender<ResetAnswer>>,
}

/// What a target's children have been through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResetReport {
    /// How often they were emptied since the server began, and when last.
    pub count: u64,
    pub last: Option<Instant>,
}

impl Core {
    /// Places of the target's units that are emptied when its machine is started, or (`all`) when somebody asks.
    fn emptied_units(&self, target: u32, all: bool) -> Vec<u32> {
        let place = |unit: UnitIndex| self.targets[target as usize].lun(unit);
        let places = self.targets[target as usize].device.units().map(place);
        let wanted = |place: &u32| {
            let lun = &self.luns[*place as usize];
            let durability = self.layers[lun.leaf.0 as usize].records.durability;
            let named = match durability {
                Durability::UntilReset(at) => all || at == ResetAt::Boot,
                _ => false,
            };
            lun.writable && !lun.ends && named
        };
        places.filter(wanted).collect()
    }

    /// Gives up what is known of the unit's disk, and begins to empty its image.
    fn begin_emptying(&mut self, place: u32) {
        let lun = &mut self.luns[place as usize];
        let leaf = lun.leaf;
        // Tokens stand for what is no more.
        (lun.rods, lun.streams, lun.boot, lun.erased) =
            (Rods::default(), Streams::default(), BootWatch::default(), false);
        let work = &mut self.layers[leaf.0 as usize];
        let durability = work.records.durability;
        // A batch that a full disk has stopped is not run again.
        *work = LayerWork::new(work.file());
        work.records.durability = durability;
        if self.images.begin_reset(leaf) {
            self.kick(leaf);
        }
    }

    fn is_emptying(&self, place: u32) -> bool {
        self.layers[self.luns[place as usize].leaf.0 as usize].is_running()
    }

    fn leaf_of(&self, place: u32) -> LayerId {
        self.luns[place as usize].leaf
    }
}

impl<I: Io> Shard<I> {
    /// A session of the target has begun, and looks like that of a machine that was started again.
    pub(super) fn machine_started(&mut self, target: u32, loader: &SessionEntry) {
        let port = Loader { initiator: loader.initiator.clone(), isid: loader.isid };
        let under_way = self.resets.iter_mut().find(|reset| reset.target == target);
        match under_way {
            // It tries again, or comes by another path as well.
            Some(Resetting { step: Step::Asking { loader, .. }, .. }) => *loader = port,
            Some(_) => {}
            None if self.core.emptied_units(target, false).is_empty() => {}
            None => {
                let since = self.core.now;
                self.others(target, since).iter().for_each(|entry| self.ask_for_life(entry));
                let (why, step) = ("its machine was started again", Step::Asking { loader: port, since });
                self.begin_reset(Resetting { target, why, all: false, step, reply: None });
            }
        }
    }

    /// Somebody asks for it by the name of the target; `force`: whoever is logged in is thrown out.
    pub(super) fn reset_asked(&mut self, name: &str, force: bool, reply: Sender<ResetAnswer>) {
        let say = |answer| {
            let _ = reply.try_send(answer);
        };
        let Some(target) = self.core.target_index(name) else { return say(ResetAnswer::NotHere) };
        let sessions = self.core.targets[target as usize].sessions.clone();
        if self.is_stopping() {
            return say(ResetAnswer::Ending);
        }
        if self.core.emptied_units(target, true).is_empty() {
            return say(ResetAnswer::Persistent);
        }
        if self.is_resetting(target) || !sessions.is_empty() && !force {
            return say(ResetAnswer::InUse(sessions.len()));
        }
        let dropped: Vec<SessionKey> = sessions.iter().map(|entry| entry.session).collect();
        dropped.iter().for_each(|session| self.drop_session(*session));
        let deadline = self.core.now.after(DROP);
        let (why, step) = ("it was asked for", Step::Ending { dropped, deadline });
        self.core.targets[target as usize].life = super::life::Life::default();
        self.begin_reset(Resetting { target, why, all: true, step, reply: Some(reply) });
    }

    fn is_resetting(&self, target: u32) -> bool {
        self.resets.iter().any(|reset| reset.target == target)
    }

    fn begin_reset(&mut self, reset: Resetting) {
        self.core.targets[reset.target as usize].holds += 1;
        self.core.end_background_copies(reset.target, None);
        self.resets.push(reset);
    }

    fn ask_for_life(&mut self, entry: &SessionEntry) {
        let now = self.core.now;
        let Some(session) = self.sessions.get_mut(entry.session) else { return };
        for conn in session.connections_now() {
            let member = self.connections.get(conn).and_then(super::connection::Connection::member);
            if let (Some(Member { on, .. }), Some(session)) = (member, self.sessions.get_mut(entry.session)) {
                session.machine.ping(on, now);
            }
        }
        self.mark_session_dirty(entry.session);
    }

    /// Called in every turn.
    pub(super) fn reset_step(&mut self) {
        for mut reset in core::mem::take(&mut self.resets) {
            let gone = self.is_stopping() || self.endings.ends_target(reset.target);
            let answer = if gone { Some(ResetAnswer::Ending) } else { self.step_of(&mut reset) };
            match answer {
                None => self.resets.push(reset),
                Some(answer) => self.end_reset(reset, answer),
            }
        }
    }

    fn step_of(&mut self, reset: &mut Resetting) -> Option<ResetAnswer> {
        let now = self.core.now;
        match &reset.step {
            Step::Asking { loader, since } => {
                let (others, since) = (self.others(reset.target, *since), *since);
                let gone = others.len() == self.core.targets[reset.target as usize].sessions.len();
                if gone || others.iter().any(|entry| self.has_spoken(entry, since)) {
                    return Some(ResetAnswer::InUse(others.len()));
                }
                let silent = others.iter().any(|entry| self.may_speak(loader, entry));
                if silent && now < since.after(ANSWER) {
                    return None;
                }
                self.core.targets[reset.target as usize].life.began(&loader.initiator, loader.isid);
                let dropped: Vec<SessionKey> = others.iter().map(|entry| entry.session).collect();
                for session in &dropped {
                    self.close_session(*session, "its machine was started again");
                }
                reset.step = Step::Ending { dropped, deadline: now.after(DROP) };
                self.step_of(reset)
            }
            Step::Ending { dropped, deadline } => {
                let left: Vec<SessionKey> =
                    dropped.iter().copied().filter(|key| self.sessions.get(*key).is_some()).collect();
                if !left.is_empty() && now >= *deadline {
                    left.iter().for_each(|key| self.close_session(*key, "the target's images are emptied"));
                }
                let places = self.core.emptied_units(reset.target, reset.all);
                let busy = |place: &u32| {
                    self.core.is_place_busy(reset.target, *place) || self.core.is_emptying(*place)
                };
                if !left.is_empty() || places.iter().any(busy) {
                    return None;
                }
                places.iter().for_each(|place| self.core.begin_emptying(*place));
                reset.step = Step::Emptying { places };
                self.step_of(reset)
            }
            Step::Emptying { places } => {
                if places.iter().any(|place| self.core.is_emptying(*place)) {
                    return None;
                }
                let failed = |place: &u32| self.core.images.is_failed(self.core.leaf_of(*place));
                if places.iter().any(failed) {
                    return Some(ResetAnswer::Failed);
                }
                Some(ResetAnswer::Done(places.len()))
            }
        }
    }

    /// Sessions of the target that were there before.
    fn others(&self, target: u32, since: Instant) -> Vec<SessionEntry> {
        let entries = self.core.targets[target as usize].sessions.iter();
        let before = |entry: &&SessionEntry| {
            self.sessions.get(entry.session).is_some_and(|session| session.visit.since < since)
        };
        entries.filter(before).cloned().collect()
    }

    /// The session has said something since then.
    fn has_spoken(&self, entry: &SessionEntry, since: Instant) -> bool {
        let Some(session) = self.sessions.get(entry.session) else { return false };
        session.connections().any(|conn| {
            let member = self.connections.get(conn).and_then(super::connection::Connection::member);
            member.is_some_and(|member| session.machine.last_activity(member.on) > since)
        })
    }

    /// A session that is to be waited for. An earlier one of the loader is not: it has no answer to pings, and its
    /// machine is in one place only.
    fn may_speak(&self, loader: &Loader, entry: &SessionEntry) -> bool {
        let system = self.sessions.get(entry.session).is_some_and(|session| session.visit.system);
        system || loader.initiator != entry.initiator
    }

    fn end_reset(&mut self, reset: Resetting, answer: ResetAnswer) {
        let place = &mut self.core.targets[reset.target as usize];
        let (target, now) = (place.name.as_str(), self.core.now);
        match answer {
            ResetAnswer::Done(luns) => {
                place.reset = ResetReport { count: place.reset.count + 1, last: Some(now) };
                tracing::info!(target, luns, why = reset.why, "emptied: its durability is until-reset");
            }
            ResetAnswer::Failed => tracing::error!(
                target,
                why = reset.why,
                "emptying an image failed, and it takes no writes: see to its file system, then goldrush reset"
            ),
            ResetAnswer::InUse(_) => tracing::info!(
                target,
                "a loader has logged in and nothing is emptied: a running system's session has answered, or the loader has gone"
            ),
            ResetAnswer::NotHere | ResetAnswer::Persistent | ResetAnswer::Ending => {}
        }
        if let Some(reply) = reset.reply {
            let _ = reply.try_send(answer);
        }
        self.release_target(reset.target);
    }

    /// Commands of the target begin again.
    pub(super) fn release_target(&mut self, target: u32) {
        let place = &mut self.core.targets[target as usize];
        place.holds = place.holds.saturating_sub(1);
        if place.holds > 0 {
            return;
        }
        for entry in &place.sessions {
            if !self.stalled.contains(&entry.session) {
                self.stalled.push(entry.session);
            }
        }
        self.core.freed = true;
    }
}
