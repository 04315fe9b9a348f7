//! What a reload takes away ends as it does when the server stops: commands first, then the image, then the file.
//!
//! Knows when nothing works for a unit, a target or a layer any more. Does not know why it ends, nor what a clean image is.
//!
//! | a unit is  | it waits for                                                              |
//! |------------|---------------------------------------------------------------------------|
//! | `Busy`     | its commands; at the deadline those that wait for their data are forgotten |
//! | `Settling` | the commit of what is only recorded                                       |
//! | `Flushing` | the flush of its file                                                     |
//! | `Closing`  | the last metadata                                                         |
//! | `Closed`   | the ring to let go of the file                                            |
//!
//! New commands find no unit from the first moment. A unit that is only read goes from `Busy` to its end: its file may be
//! another unit's too, and `control` counts who uses it.

use crate::clock::Instant;
use crate::io::{Io, ListenerSlot, Op};
use crate::plan::{FileSlot, LayerId};
use crate::scsi::{Lun, UnitIndex};

use super::change::{LayerName, News};
use super::executor::{Core, TaskKey};
use super::records::Durability;
use super::session::{Member, SessionKey};
use super::stop::{LOGOUT_SECONDS, Stop};
use super::task::{Task, Work};
use super::token::{Kind, Token};
use super::{ConnKey, Shard, connection::Phase};

/// A listener by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listening {
    Open(ListenerSlot),
    /// Its accept is being cancelled.
    Closing(ListenerSlot),
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UnitStep {
    Busy,
    Settling,
    Flushing,
    Closing,
    Closed,
}

#[derive(Debug)]
pub(super) struct UnitEnding {
    target: u32,
    unit: UnitIndex,
    lun: Lun,
    /// Among the shard's units.
    place: u32,
    step: UnitStep,
    deadline: Instant,
    /// It is only suspended.
    comes_back: bool,
}

/// A layer nobody writes.
#[derive(Debug)]
pub(super) struct LayerEnding {
    name: LayerName,
    /// Its pages are read from nowhere any more.
    forgotten: bool,
}

impl LayerEnding {
    pub(super) const fn new(name: LayerName) -> Self {
        Self { name, forgotten: false }
    }
}

#[derive(Debug)]
struct SessionEnding {
    session: SessionKey,
    reason: &'static str,
    deadline: Instant,
}

/// All that ends.
#[derive(Debug, Default)]
pub(super) struct Endings {
    units: Vec<UnitEnding>,
    targets: Vec<u32>,
    sessions: Vec<SessionEnding>,
    pub(super) layers: Vec<LayerEnding>,
    files: Vec<FileSlot>,
}

impl Endings {
    /// True while somebody must look from time to time.
    pub(super) fn is_waiting(&self) -> bool {
        let (units, targets) = (!self.units.is_empty(), !self.targets.is_empty());
        units || targets || !(self.sessions.is_empty() && self.layers.is_empty() && self.files.is_empty())
    }
}

impl Endings {
    pub(super) fn ends_target(&self, target: u32) -> bool {
        self.targets.contains(&target)
    }
}

impl Task {
    /// It works for this unit, or will.
    fn touches(&self, lun: u32) -> bool {
        let copies = match &self.work {
            Work::Copy(copy) => copy.touches(lun),
            _ => false,
        };
        self.lun == lun || self.home == lun || copies
    }
}

impl Core {
    /// True while anything works for the unit, or remembers it.
    fn is_unit_busy(&self, ending: &UnitEnding) -> bool {
        let of_lun =
            |task: &Task| task.target == ending.target && Lun::from_field(task.lun_field) == Ok(ending.lun);
        self.tasks.iter().any(|(_, task)| of_lun(task)) || self.is_place_busy(ending.target, ending.place)
    }

    /// The same of a unit that stays: its commands are known by its place.
    pub(super) fn is_place_busy(&self, target: u32, place: u32) -> bool {
        let leaf = self.luns[place as usize].leaf;
        self.tasks.iter().any(|(_, task)| task.touches(place))
            || self.is_keeping_for(target)
            || self.preempting.iter().any(|it| it.target == target)
            || self.bitmaps.iter().any(|(_, load)| load.layer() == leaf)
    }

    /// The next step of a unit; `None`: it stays where it is.
    fn unit_step(&mut self, ending: &UnitEnding) -> Option<UnitStep> {
        let lun = &self.luns[ending.place as usize];
        let (leaf, writable) = (lun.leaf, lun.writable);
        let runs = self.layers[leaf.0 as usize].is_running();
        match ending.step {
            UnitStep::Busy if self.is_unit_busy(ending) => None,
            UnitStep::Busy if !writable => Some(UnitStep::Closed),
            UnitStep::Busy => {
                if self.images.pending_blocks(leaf) > 0 {
                    self.images.request_commit(leaf);
                    self.kick(leaf);
                }
                Some(UnitStep::Settling)
            }
            UnitStep::Settling if runs => None,
            UnitStep::Settling => {
                self.flush(leaf, Token::new(Kind::LastFlush, leaf.0, 0));
                Some(UnitStep::Flushing)
            }
            UnitStep::Flushing => {
                let at = self.last_flushes.iter().position(|layer| *layer == leaf)?;
                self.last_flushes.swap_remove(at);
                self.images.begin_close(leaf);
                self.kick(leaf);
                Some(UnitStep::Closing)
            }
            UnitStep::Closing if runs => None,
            UnitStep::Closing => Some(UnitStep::Closed),
            UnitStep::Closed => None,
        }
    }

    /// Forgets a closed leaf. True when it was not closed as a whole image.
    fn forget_leaf(&mut self, leaf: LayerId) -> bool {
        let failed = self.images.is_failed(leaf);
        let durability = self.layers[leaf.0 as usize].records.durability;
        if let (Durability::Journal(index), Some(area), false) = (durability, &mut self.journal, failed) {
            area.forget_leaf(index);
        }
        self.forget_layer(leaf);
        failed
    }

    fn forget_layer(&mut self, layer: LayerId) {
        self.images.remove(layer);
        self.recorded.retain(|other| *other != layer);
        self.short_layers.retain(|other| *other != layer);
        self.layer_names.retain(|_, other| *other != layer);
    }
}

impl<I: Io> Shard<I> {
    pub(super) fn end_unit(&mut self, target: &str, lun: Lun) {
        let Some(index) = self.core.target_index(target) else { return };
        self.end_unit_of(index, lun);
    }

    fn end_unit_of(&mut self, index: u32, lun: Lun) {
        let Some(unit) = self.core.targets[index as usize].device.end_unit(lun) else { return };
        let place = self.core.lun_of(index, unit);
        self.core.luns[place as usize].ends = true;
        // Tokens that stand for its blocks are unknown from now on.
        self.core.luns[place as usize].rods.forget();
        let deadline = self.core.now.after(self.config.stop_grace);
        let step = UnitStep::Busy;
        let comes_back = false;
        self.endings.units.push(UnitEnding { target: index, unit, lun, place, step, deadline, comes_back });
    }

    /// The unit lets go of its file and stays where it is: see `suspend`.
    pub(super) fn end_unit_for_a_while(&mut self, target: u32, unit: UnitIndex, lun: Lun, place: u32) {
        let deadline = self.core.now.after(self.config.stop_grace);
        let (step, comes_back) = (UnitStep::Busy, true);
        self.endings.units.push(UnitEnding { target, unit, lun, place, step, deadline, comes_back });
    }

    /// The name is free at once; the sessions are asked to go.
    pub(super) fn end_target(&mut self, name: &str) {
        let Some(index) = self.core.target_names.remove(name) else { return };
        for entry in self.core.targets[index as usize].sessions.clone() {
            self.end_session(entry.session, "its target was removed");
        }
        self.endings.targets.push(index);
    }

    /// Asks for a logout (RFC 7143, 11.9.1, event 1), and closes what has not gone by the deadline.
    pub(super) fn end_session(&mut self, session: SessionKey, reason: &'static str) {
        let Some(served) = self.sessions.get_mut(session) else { return };
        let conns: Vec<ConnKey> = served.connections_now().collect();
        for conn in conns {
            if let Some(Phase::Full(Member { on, .. })) = self.connections.get(conn).map(|it| &it.phase) {
                served.machine.async_logout(*on, LOGOUT_SECONDS);
            }
        }
        self.mark_session_dirty(session);
        let deadline = self.core.now.after(self.config.stop_grace);
        self.endings.sessions.push(SessionEnding { session, reason, deadline });
    }

    pub(super) fn end_listener(&mut self, index: u32) {
        let Some(Listening::Open(slot)) = self.listeners.get(index as usize).copied() else { return };
        self.listeners[index as usize] = Listening::Closing(slot);
        let waits = self.accept_again.len();
        self.accept_again.retain(|other| *other != index);
        if self.accept_again.len() < waits {
            self.closes_listener(index);
            return;
        }
        let token = Token::new(Kind::Accept, index, 0).encode();
        self.core.submit(Token::new(Kind::Cancel, 0, 0), Op::Cancel { token });
    }

    /// An accept has ended. True when its listener is being closed, which happens now.
    pub(super) fn closes_listener(&mut self, index: u32) -> bool {
        let Some(Listening::Closing(slot)) = self.listeners.get(index as usize).copied() else {
            return false;
        };
        self.listeners[index as usize] = Listening::Closed;
        if self.io.release_listener(slot).is_none() {
            tracing::warn!("a listening address could not be closed: it stays open until the server stops");
        }
        self.tell(News::ListenerGone { index });
        true
    }

    pub(super) fn accept_again_or_close(&mut self, index: u32) {
        if self.stop == Stop::Serving && !self.closes_listener(index) {
            self.accept(index);
        }
    }

    /// Called in every turn.
    pub(super) fn end_step(&mut self) {
        if !self.endings.is_waiting() {
            return;
        }
        self.end_sessions();
        self.end_units();
        self.end_targets();
    }

    fn end_sessions(&mut self) {
        let now = self.core.now;
        for ending in core::mem::take(&mut self.endings.sessions) {
            let conns = self.sessions.get(ending.session).map(|it| it.connections_now().collect());
            let conns: Vec<ConnKey> = conns.unwrap_or_default();
            for conn in &conns {
                if now >= ending.deadline || self.has_fallen_quiet(*conn) {
                    self.close(*conn, ending.reason);
                }
            }
            if !conns.is_empty() {
                self.endings.sessions.push(ending);
            }
        }
    }

    fn end_units(&mut self) {
        let mut units = core::mem::take(&mut self.endings.units);
        let late = |ending: &UnitEnding| ending.step == UnitStep::Busy && self.core.now >= ending.deadline;
        let given_up: Vec<UnitEnding> = units.extract_if(.., |it| it.comes_back && late(it)).collect();
        for UnitEnding { target, lun, .. } in given_up {
            let name = self.core.targets[target as usize].name.clone();
            self.tell(News::UnitSuspended { target: name, lun, closed: false });
            self.release_target(target);
        }
        for ending in &mut units {
            if ending.step == UnitStep::Busy && self.core.now >= ending.deadline {
                self.forget_commands(ending.target, ending.place);
            }
            while let Some(step) = self.core.unit_step(ending) {
                ending.step = step;
            }
        }
        self.endings.units = units;
    }

    /// Commands whose data never comes are not waited for.
    fn forget_commands(&mut self, target: u32, place: u32) {
        for entry in self.core.targets[target as usize].sessions.clone() {
            let Some(session) = self.sessions.get_mut(entry.session) else { continue };
            let tasks = &self.core.tasks;
            let touches = |key: Option<TaskKey>| {
                key.and_then(|key| tasks.get(key)).is_some_and(|task| task.touches(place))
            };
            let ended: Vec<_> = session.machine.tasks().map(|(task, ..)| task).collect();
            for task in ended.into_iter().filter(|task| touches(session.task_key(*task))).collect::<Vec<_>>()
            {
                session.machine.abort_task(task);
                session.forget(&mut self.core, task);
            }
        }
    }

    /// A target whose sessions have gone gives up its units, and when these have ended its place.
    fn end_targets(&mut self) {
        for index in core::mem::take(&mut self.endings.targets) {
            if !self.core.targets[index as usize].sessions.is_empty() {
                self.endings.targets.push(index);
                continue;
            }
            let device = &self.core.targets[index as usize].device;
            let luns: Vec<Lun> = device.units().filter_map(|unit| device.lun(unit)).collect();
            luns.into_iter().for_each(|lun| self.end_unit_of(index, lun));
            let units = self.endings.units.iter().any(|unit| unit.target == index);
            let tasks = self.core.tasks.iter().any(|(_, task)| task.target == index);
            if units || tasks || self.core.is_keeping_for(index) {
                self.endings.targets.push(index);
                continue;
            }
            self.awaiting_drain.retain(|(target, _)| *target != index);
            self.core.free_targets.push(index);
            let target = core::mem::take(&mut self.core.targets[index as usize].name);
            self.tell(News::TargetGone { target });
        }
    }

    /// Called when every operation of this turn is with the ring: lets go of files that nothing works on.
    pub(super) fn release_ended(&mut self) {
        if !self.endings.is_waiting() {
            return;
        }
        for ending in core::mem::take(&mut self.endings.units) {
            if ending.step == UnitStep::Closed && self.release_unit(&ending) {
                continue;
            }
            self.endings.units.push(ending);
        }
        for mut ending in core::mem::take(&mut self.endings.layers) {
            if !self.release_layer(&mut ending) {
                self.endings.layers.push(ending);
            }
        }
        for file in core::mem::take(&mut self.endings.files) {
            if self.io.release_file(file).is_none() {
                self.endings.files.push(file);
            }
        }
    }

    fn release_unit(&mut self, ending: &UnitEnding) -> bool {
        let lun = &self.core.luns[ending.place as usize];
        let (leaf, file, writable) = (lun.leaf, lun.leaf_file, lun.writable);
        if writable && self.io.release_file(file).is_none() {
            return false;
        }
        let failed = writable && self.core.forget_leaf(leaf);
        self.core.luns[ending.place as usize].writable = false;
        if ending.comes_back {
            let target = self.core.targets[ending.target as usize].name.clone();
            // What it is now is found out by whoever opens it.
            self.tell(News::UnitSuspended { target, lun: ending.lun, closed: true });
            return true;
        }
        self.core.free_luns.push(ending.place);
        let target = &mut self.core.targets[ending.target as usize];
        target.device.vacate(ending.unit);
        let target = target.name.clone();
        tracing::info!(target, lun = ending.lun.number(), "the LUN is closed");
        self.tell(News::UnitGone { target, lun: ending.lun, failed });
        true
    }

    fn release_layer(&mut self, ending: &mut LayerEnding) -> bool {
        let Some(layer) = self.core.layer_names.get(&ending.name).copied() else {
            self.tell(News::LayerGone { name: ending.name });
            return true;
        };
        let file = self.core.layers[layer.0 as usize].file();
        let loads = self.core.bitmaps.iter().any(|(_, load)| load.layer() == layer);
        let source = self.core.cache.source(file);
        let reads = |op: &Op| matches!(op, Op::Fill { file, .. } if Some(*file) == source);
        // What this turn reads ahead has not reached the ring yet.
        let begins = self.core.ops.iter().any(|(_, op)| reads(op));
        if loads || begins || !ending.forgotten && self.core.cache.is_awaited(file) {
            return false;
        }
        if !ending.forgotten {
            // A read under way goes on from its source when it comes back short: first that must be over.
            match source.filter(|source| *source != file) {
                Some(source) if self.io.release_file(source).is_none() => return false,
                Some(_) => self.core.cache.forget_file(file),
                None => {}
            }
            ending.forgotten = true;
        }
        if self.io.release_file(file).is_none() {
            return false;
        }
        self.core.cache.forget_file(file);
        self.core.forget_layer(layer);
        self.tell(News::LayerGone { name: ending.name });
        true
    }
}
