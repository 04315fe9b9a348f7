//! Errands: what a copy has another shard do with units that live there, by message, and who waits for which answer.
//!
//! Knows letters, tickets, and how many portions of copies may be abroad at once. Does not know what is copied (`copy`),
//! nor how an errand is done where it arrives (`errand_desk`).
//!
//! | letter   | goes                        | and means                                                        |
//! |----------|-----------------------------|------------------------------------------------------------------|
//! | `Ask`    | from the shard of the copy  | do this; every one but `Close` is answered, once                  |
//! | `Answer` | back to it                  | it is done, or why not; nothing of it reaches the disk any more   |
//! | `Recall` | from the shard of the copy  | nobody wants it any more: end it as soon as it can be ended       |
//!
//! Buffers belong to the pool of one shard, so data travels as bytes on the heap: a portion each way, and no more than
//! `COPY_PORTIONS_ABROAD` of them for all copies of a shard. Whoever waits for an answer holds no buffer, and no turn: two
//! shards never wait for each other's buffers.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::limits;
use crate::scsi::{CopyDevice, ROD_TOKEN_BYTES, Sense};
use crate::units::SectorRange;

use super::ShardId;
use super::copy::News;
use super::copy_plan::Reached;
use super::executor::{Core, TaskKey};
use super::task::{Stage, Task, Work};

/// A unit of another shard: which one, whatever becomes of its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Abroad {
    pub(super) shard: ShardId,
    pub(super) lun: u32,
    /// No other unit of that shard has this number, ever.
    pub(super) born: u64,
}

/// Where a unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// By its place among the shard's.
    Here(u32),
    Abroad(Abroad),
}

/// By what right a unit is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// Of a session of this initiator.
    Initiator(Arc<str>),
    /// Of a token of the unit.
    Token(u16),
}

/// What is to be done. Parcels are bytes of a portion, or memory for them.
#[derive(Debug)]
pub(super) enum Errand {
    /// Which of these units does this initiator use there?
    Find {
        initiator: Arc<str>,
        devices: Vec<CopyDevice>,
    },
    /// What does this token stand for, without its first sectors? It stays what it is until `Close`.
    Open {
        token: Box<[u8; ROD_TOKEN_BYTES]>,
        skip: u64,
    },
    Close {
        unit: Abroad,
        serial: u16,
        delete: bool,
    },
    Read {
        unit: Abroad,
        by: By,
        range: SectorRange,
        parcel: Vec<u8>,
    },
    Write {
        unit: Abroad,
        by: By,
        range: SectorRange,
        zeros: bool,
        parcel: Vec<u8>,
    },
    Flush {
        unit: Abroad,
    },
}

#[derive(Debug)]
pub(super) enum Answer {
    /// In the order of the designators.
    Found(Vec<Option<Reached>>),
    Opened {
        unit: Abroad,
        serial: u16,
        ranges: Vec<SectorRange>,
    },
    /// `zeros`: what was read is zeros, and not in the parcel.
    Done {
        zeros: bool,
        parcel: Vec<u8>,
    },
    Failed(Sense),
}

#[derive(Debug)]
pub(super) enum Letter {
    Ask(Errand),
    Answer(Answer),
    Recall,
}

/// A letter of one shard to another.
#[derive(Debug)]
pub struct ErrandMail {
    pub(super) from: ShardId,
    /// Of the shard that asks.
    pub(super) ticket: u64,
    pub(super) letter: Letter,
}

/// An answer somebody waits for.
#[derive(Debug)]
struct Asked {
    ticket: u64,
    to: ShardId,
    task: TaskKey,
    /// The task must not be forgotten before the answer: it may write.
    holds: bool,
}

/// An errand that is being done here.
#[derive(Debug)]
pub(super) struct Doing {
    pub(super) from: ShardId,
    pub(super) ticket: u64,
    pub(super) task: TaskKey,
}

/// All errands of a shard, its own and those of others.
#[derive(Debug, Default)]
pub(super) struct Errands {
    pub(super) shard: ShardId,
    /// Shards of this server; 0 counts as 1.
    pub(super) shards: u16,
    tickets: u64,
    asked: Vec<Asked>,
    /// Portions that are under way, and copies that wait to begin one.
    portions: usize,
    waiting: VecDeque<TaskKey>,
    pub(super) doing: Vec<Doing>,
    pub(super) out: Vec<(ShardId, ErrandMail)>,
    /// The images are being closed: no errand is begun any more.
    pub(super) closed: bool,
}

impl Errands {
    pub(super) fn is_alone(&self) -> bool {
        self.shards < 2
    }

    pub(super) fn is_other(&self, shard: ShardId) -> bool {
        shard != self.shard && shard.0 < self.shards
    }

    fn send(&mut self, to: ShardId, ticket: u64, letter: Letter) {
        self.out.push((to, ErrandMail { from: self.shard, ticket, letter }));
    }

    pub(super) fn answer(&mut self, to: ShardId, ticket: u64, answer: Answer) {
        self.send(to, ticket, Letter::Answer(answer));
    }

    fn next_ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    /// Nobody uses the token for this copy any more.
    pub(super) fn close_token(&mut self, unit: Abroad, serial: u16, delete: bool) {
        let ticket = self.next_ticket();
        self.send(unit.shard, ticket, Letter::Ask(Errand::Close { unit, serial, delete }));
    }
}

impl Core {
    /// The task waits until `to` has done this. `holds`: also when it is aborted.
    pub(super) fn ask(&mut self, key: TaskKey, to: ShardId, errand: Errand, holds: bool) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        task.stage = Stage::Errand;
        task.pending = u32::from(holds);
        let ticket = self.errands.next_ticket();
        self.errands.asked.push(Asked { ticket, to, task: key, holds });
        self.errands.send(to, ticket, Letter::Ask(errand));
    }

    /// The same of every other shard; it goes on when all have answered.
    pub(super) fn ask_all(&mut self, key: TaskKey, errand: impl Fn() -> Errand) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        task.stage = Stage::Errand;
        let ticket = self.errands.next_ticket();
        for to in (0..self.errands.shards).map(ShardId) {
            if to == self.errands.shard {
                continue;
            }
            self.errands.asked.push(Asked { ticket, to, task: key, holds: false });
            self.errands.send(to, ticket, Letter::Ask(errand()));
        }
    }

    pub(super) fn errand_mail(&mut self, mail: ErrandMail) {
        let ErrandMail { from, ticket, letter } = mail;
        match letter {
            Letter::Ask(errand) => self.errand_asked(from, ticket, errand),
            Letter::Answer(answer) => self.errand_answered(from, ticket, answer),
            Letter::Recall => {
                let same = |doing: &Doing| doing.from == from && doing.ticket == ticket;
                if let Some(task) = self.errands.doing.iter().find(|it| same(it)).map(|it| it.task) {
                    self.abort(task);
                }
            }
        }
    }

    fn errand_answered(&mut self, from: ShardId, ticket: u64, answer: Answer) {
        let same = |asked: &Asked| asked.ticket == ticket && asked.to == from;
        let Some(at) = self.errands.asked.iter().position(same) else {
            if let Answer::Opened { unit, serial, .. } = answer {
                self.errands.close_token(unit, serial, false);
            }
            return;
        };
        let asked = self.errands.asked.swap_remove(at);
        self.hear(&asked, answer);
    }

    fn hear(&mut self, asked: &Asked, answer: Answer) {
        let all_heard = !self.errands.asked.iter().any(|other| other.ticket == asked.ticket);
        let Some(task) = self.tasks.get_mut(asked.task) else { return };
        task.pending -= u32::from(asked.holds);
        let Work::Copy(copy) = &mut task.work else { return };
        match answer {
            Answer::Found(units) => copy.found(units),
            Answer::Failed(_) if copy.seeks() => {}
            answer => copy.news = Some(News::Answer(answer)),
        }
        if all_heard {
            if copy.seeks() {
                copy.news = Some(News::AllFound);
            }
            self.ready.push_back(asked.task);
        }
    }

    /// A copy needs no answer any more. Those that may write are still waited for.
    pub(super) fn recall(&mut self, key: TaskKey) {
        let errands = &mut self.errands;
        for asked in errands.asked.iter().filter(|asked| asked.task == key) {
            let letter = ErrandMail { from: errands.shard, ticket: asked.ticket, letter: Letter::Recall };
            errands.out.push((asked.to, letter));
        }
        errands.asked.retain(|asked| asked.task != key || asked.holds);
    }

    /// False: as many portions as there may be are abroad, and the copy goes on when it is its turn.
    pub(super) fn may_go_abroad(&mut self, key: TaskKey) -> bool {
        let Some(Task { work: Work::Copy(copy), stage, .. }) =
            self.tasks.get_mut(key).map(|task| &mut **task)
        else {
            return false;
        };
        if copy.is_abroad {
            return true;
        }
        if self.errands.portions < limits::COPY_PORTIONS_ABROAD {
            self.errands.portions += 1;
            copy.is_abroad = true;
            return true;
        }
        *stage = Stage::Errand;
        if !self.errands.waiting.contains(&key) {
            self.errands.waiting.push_back(key);
        }
        false
    }

    /// The portion is over, or will not be: the next copy may begin one.
    pub(super) fn back_from_abroad(&mut self, key: TaskKey) {
        let Some(Task { work: Work::Copy(copy), .. }) = self.tasks.get_mut(key).map(|task| &mut **task)
        else {
            return;
        };
        if !core::mem::take(&mut copy.is_abroad) {
            self.errands.waiting.retain(|waiting| *waiting != key);
            return;
        }
        self.errands.portions -= 1;
        while let Some(next) = self.errands.waiting.pop_front() {
            if let Some(Task { work: Work::Copy(copy), .. }) =
                self.tasks.get_mut(next).map(|task| &mut **task)
            {
                copy.is_abroad = true;
                copy.news = Some(News::MayGo);
                self.errands.portions += 1;
                self.ready.push_back(next);
                return;
            }
        }
    }

    /// The shard has waited for long enough to stop: what others were asked for counts as failed.
    pub(super) fn give_up_errands(&mut self) {
        while let Some(asked) = self.errands.asked.pop() {
            self.hear(&asked, Answer::Failed(Sense::COPY_UNREACHABLE));
        }
    }
}

#[cfg(test)]
mod tests;
