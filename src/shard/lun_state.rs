//! A unit as the executor sees it: its chain, who waits for whom at it, and what was given out of it.
//!
//! Knows what each part keeps here. Does not know what any of them does with it.

use crate::cache::Boot;
use crate::image::Chain;
use crate::plan::{FileSlot, LayerId};
use crate::scsi::UnitIndex;
use crate::units::{BlockSize, SectorRange};

use super::UnitSeed;
use super::order::Order;
use super::read_ahead::Streams;
use super::rods::Rods;
use super::turns::Turns;

/// A unit as the executor sees it.
#[derive(Debug)]
pub(super) struct LunState {
    pub(super) target: u32,
    pub(super) unit: UnitIndex,
    /// It is being taken away: background work ends with its portion.
    pub(super) ends: bool,
    /// No other unit of the shard had or will have this number.
    pub(super) born: u64,
    pub(super) chain: Chain,
    pub(super) block_size: BlockSize,
    pub(super) leaf: LayerId,
    pub(super) leaf_file: FileSlot,
    pub(super) writable: bool,
    /// SANITIZE has erased all of it, and nothing was written since.
    pub(super) erased: bool,
    pub(super) order: Order,
    pub(super) turns: Turns,
    pub(super) streams: Streams,
    pub(super) rods: Rods,
    pub(super) boot: BootWatch,
}

/// Whether what a unit reads goes into a boot trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum BootWatch {
    #[default]
    Idle,
    /// Its first sector was read: so begins every boot.
    Began,
    Recorded(Boot),
}

impl BootWatch {
    /// A read begins.
    pub(super) fn began(&mut self, range: SectorRange) {
        if range.start().0 == 0 && *self == Self::Idle {
            *self = Self::Began;
        }
    }
}

impl LunState {
    pub(super) fn new(unit: UnitSeed, target: u32, place: UnitIndex) -> Self {
        Self {
            target,
            unit: place,
            ends: false,
            born: 0,
            chain: unit.chain,
            block_size: unit.block_size,
            leaf: unit.leaf,
            leaf_file: unit.leaf_file,
            writable: unit.writable,
            erased: false,
            order: Order::default(),
            turns: Turns::default(),
            streams: Streams::default(),
            rods: Rods::default(),
            boot: BootWatch::default(),
        }
    }
}
