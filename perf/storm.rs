//! The boot storm: many diskless machines that replay one recorded boot at once, on one ring of one thread.
//!
//! Knows what a storm is made of and how long it may take. Does not know who serves it, nor how its figures are shown.

pub(crate) mod chart;
mod engine;
pub(crate) mod golden;
mod node;
pub(crate) mod record;
pub(crate) mod rounds;
mod script;
#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::load::Base;
use crate::url::Url;

pub(crate) use engine::run;
pub(crate) use record::{Class, Record};
pub(crate) use script::Script;

/// What is compared with what it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checks {
    Off,
    /// What the boot does not write anywhere: right on a disk that many nodes share, too.
    Golden,
    /// Every byte read, and after the boot everything written is read back.
    All,
}

#[derive(Debug, Clone)]
pub(crate) struct Storm {
    /// The nodes' disks, dealt out in turn; none is a pattern.
    pub(crate) urls: Vec<Url>,
    pub(crate) nodes: usize,
    pub(crate) script: Script,
    /// What part of the recorded pauses between commands is kept.
    pub(crate) think: f64,
    pub(crate) checks: Checks,
    /// What the disk holds where nothing was written.
    pub(crate) content: Base,
    /// The nodes' names; a `*` stands for the number.
    pub(crate) initiator: String,
    /// Nodes that have not booted by then have failed.
    pub(crate) limit: Duration,
}

impl Storm {
    fn pause(&self, recorded_us: u64) -> Duration {
        Duration::from_secs_f64(recorded_us as f64 * self.think / 1e6)
    }
}

/// What a storm tells while it goes on.
pub(crate) trait Watch {
    fn goes_on(&self, commands: u64, booted: usize, record: &Record);
}
