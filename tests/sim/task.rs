//! What an initiator remembers of a command, or of a task management function, until it is answered.
//!
//! Knows what the answer is held to. Does not know how commands are made (`workload`) nor how they are judged (`answers`).

use crate::checks::Transfer;
use crate::model::{Allowed, FlushMark};
use crate::offload::Lesson;
use crate::reserve::PrOut;

/// Sectors and the tags they get.
pub(crate) type Write = (u64, Vec<u64>);

/// One command on its way.
#[derive(Clone, Debug, Default)]
pub(crate) struct Task {
    pub(crate) sent: u64,
    /// The connection it was sent on, and its number unless it was immediate.
    pub(crate) cid: u16,
    pub(crate) cmd_sn: Option<u32>,
    pub(crate) name: &'static str,
    /// The length the CDB asks for; `None`: whatever the target has.
    pub(crate) wanted: Option<u32>,
    pub(crate) expected: u32,
    /// Its data ends within a block: it must fail.
    pub(crate) partial: bool,
    pub(crate) transfer: Transfer,
    pub(crate) data_in: Vec<u8>,
    pub(crate) data_out: Vec<u8>,
    /// A read's sectors.
    pub(crate) read: Option<(u64, Allowed)>,
    pub(crate) writes: Vec<Write>,
    /// Sectors it reads that must stay as they are until it is done.
    pub(crate) sources: Vec<(u64, u64)>,
    pub(crate) lesson: Lesson,
    pub(crate) reservation: Option<PrOut>,
    pub(crate) fua: bool,
    pub(crate) flush: Option<FlushMark>,
    /// MISCOMPARE is the right answer.
    pub(crate) differs: bool,
    pub(crate) ping: Vec<u8>,
    pub(crate) is_text: bool,
}

impl Task {
    pub(crate) fn text() -> Self {
        Self { is_text: true, sent: u64::MAX / 2, name: "text", ..Self::default() }
    }

    /// A command whose parameter list or data is all of `data_out`.
    pub(crate) fn writing(name: &'static str, data_out: Vec<u8>, writes: Vec<Write>) -> Self {
        let expected = data_out.len() as u32;
        Self { name, wanted: Some(expected), expected, data_out, writes, ..Self::default() }
    }

    pub(crate) fn asking(name: &'static str, expected: u32, lesson: Lesson) -> Self {
        Self { name, expected, lesson, ..Self::default() }
    }

    pub(crate) fn reads(&self, start: u64, count: u64) -> bool {
        self.sources.iter().any(|(at, len)| *at < start + count && start < at + len)
    }

    pub(crate) fn is_about_copies(&self) -> bool {
        matches!(self.lesson, Lesson::Told { .. })
    }

    /// Whether reservations treat it as a write, or a read; `None`: as neither.
    pub(crate) fn is_write(&self) -> Option<bool> {
        match self.name {
            "READ" | "POPULATE TOKEN" | "MODE SENSE" => Some(false),
            "UNMAP" | "COMPARE AND WRITE" | "RECEIVE ROD TOKEN INFORMATION" => Some(true),
            _ if !self.writes.is_empty() || self.flush.is_some() => Some(true),
            _ => None,
        }
    }

    pub(crate) fn overlaps_write(&self, start: u64, count: u64) -> bool {
        self.writes.iter().any(|(at, tags)| *at < start + count && start < at + tags.len() as u64)
    }
}

/// A task management function on its way.
#[derive(Clone, Debug)]
pub(crate) struct Management {
    pub(crate) sent: u64,
    pub(crate) tag: u32,
    pub(crate) function: u8,
    /// Ours, sent before it, that it ends.
    pub(crate) victims: Vec<u32>,
    /// The connection that waits for the answer.
    pub(crate) cid: u16,
}

impl Management {
    pub(crate) fn concerns_others(&self) -> bool {
        self.function >= 4
    }
}
