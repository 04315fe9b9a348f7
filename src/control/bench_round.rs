//! One round of `image bench`: fresh files for first writes, one ring over all of them, slices in turn.
//!
//! Knows which child each case writes, and its counterpart among plain files. Does not know the report (`image_bench`).

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use super::bench_cases::{Case, Driver, PAGE, Places, RUN, Sample, Shape, Side};
use super::bench_scratch::Scratch;
use super::error::Error;
use super::file::{Access, Locking};
use super::image_create::create_child_of;
use super::open_image::{LayerTable, OpenedChain, Opener};
use super::progress::Progress;
use super::runtime::{JournalFile, RuntimeFolder};
use crate::buf::{BufRef, Pool, PoolConfig};
use crate::pending::{Area, LeafIndex};
use crate::plan::FileSlot;
use crate::shard::{Durability, Solo, SoloFault, SoloSeed, UnitSeed};
use crate::uring::{UringConfig, UringIo};

/// Children, each with a plain file beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disk {
    /// Everything in the measured part is there.
    Full,
    /// One page of every block is there.
    Wide,
    /// Nothing is there, and bit by bit comes.
    First,
    Blocks,
    Row,
}

impl Disk {
    const ALL: [Self; 5] = [Self::Full, Self::Wide, Self::First, Self::Blocks, Self::Row];

    fn of(case: Case) -> Self {
        match case {
            Case::Allocated | Case::Row | Case::Flush => Self::Full,
            Case::BitmapOnDisk => Self::Wide,
            Case::FirstWrite | Case::FlushFirst => Self::First,
            Case::NewBlock => Self::Blocks,
            Case::RowFirst => Self::Row,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Wide => "wide",
            Self::First => "first",
            Self::Blocks => "blocks",
            Self::Row => "row",
        }
    }

    /// Made once, and used in every round.
    fn is_kept(self) -> bool {
        matches!(self, Self::Full | Self::Wide)
    }
}

/// Bitmaps kept in memory of the child that has more blocks than that.
const WIDE_BITMAPS: usize = 64;

/// A pair of slices.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    pub(super) case: Case,
    pub(super) child: Sample,
    pub(super) plain: Sample,
}

/// What stays the same in every round.
pub(super) struct Bench<'a> {
    pub(super) scratch: &'a Scratch,
    pub(super) parent: &'a Path,
    pub(super) ending: &'static str,
    pub(super) shape: Shape,
    pub(super) depth: u32,
    pub(super) pool: Pool,
    pub(super) data: BufRef,
    runtime: Option<RuntimeFolder>,
}

impl<'a> Bench<'a> {
    pub(super) fn new(
        scratch: &'a Scratch,
        parent: &'a Path,
        ending: &'static str,
        shape: Shape,
        depth: u32,
    ) -> Result<Self, Error> {
        let pool = Pool::new(PoolConfig { chunks: 768, smalls: 1024, huge_pages: true });
        let pool = pool.map_err(|error| Error::Failed(format!("no memory for buffers: {error}")))?;
        let mut data = pool.take_chunk().ok_or_else(|| Error::Failed("no memory for the data".to_owned()))?;
        for (index, byte) in data.as_mut_slice().iter_mut().enumerate() {
            // No sector of zeros, and no two alike.
            *byte = (index % 251) as u8 ^ (index / 512) as u8 | 1;
        }
        let runtime = RuntimeFolder::for_server();
        Ok(Self { scratch, parent, ending, shape, depth, pool, data: data.share(), runtime })
    }

    /// True when first writes are remembered in a journal.
    pub(super) fn has_journal(&self) -> bool {
        self.runtime.is_some()
    }

    /// One round, or less of it: `is_over` is asked before each turn of all cases but a round's first. `found` gets every
    /// pair of slices.
    pub(super) fn round(
        &self,
        progress: &Progress,
        found: &mut dyn FnMut(Pair),
        is_over: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        let fresh = self.files()?;
        let mut table = LayerTable::default();
        let mut units = Vec::new();
        for disk in Disk::ALL {
            let mut chain = self.open(disk)?;
            if disk == Disk::Wide {
                chain.limit_bitmaps(WIDE_BITMAPS);
            }
            units.push(unit(&mut table, chain)?);
        }
        let (area, journal) = self.journal(&table, &mut units)?;
        let plain_at = table.files.len() as u32;
        let mut files: Vec<Arc<File>> = table.files.iter().map(|file| file.shared()).collect();
        for disk in Disk::ALL {
            let path = self.scratch.path(&format!("{}.plain", disk.name()));
            let file = File::options().read(true).write(true).open(&path);
            files.push(Arc::new(file.map_err(Error::io(&path, "opening"))?));
        }
        let config = UringConfig { files_max: 64, sockets_max: 8, rx_buffers: 8, ..UringConfig::default() };
        let ring = UringIo::new(&config, &self.pool, files, Vec::new());
        let (io, _waker) = ring.map_err(|error| Error::Failed(error.to_string()))?;
        let blocks: Vec<u32> = units.iter().map(|unit| unit.block_size.bytes()).collect();
        let layer_files = table.images.files().collect();
        let LayerTable { images, files: held, .. } = table;
        let seed = SoloSeed { io, pool: self.pool.clone(), images, layer_files, units, journal: area };
        let mut solo = Solo::new(seed).map_err(|error| Error::Failed(error.to_string()))?;
        let sides = |disk: Disk| {
            let index = Disk::ALL.iter().position(|other| *other == disk).unwrap_or(0);
            (Side::Unit(index as u8, blocks[index]), Side::Plain(FileSlot(plain_at + index as u32)))
        };
        let mut driver = Driver { solo: &mut solo, data: &self.data, depth: self.depth };
        let ran = self
            .prepare(&mut driver, &sides, fresh)
            .and_then(|()| self.turns(&mut driver, &sides, progress, found, is_over));
        drop(solo);
        if let Some(journal) = journal {
            journal.discard();
        }
        held.iter().for_each(|file| file.unlock());
        ran.map_err(|fault| Error::Failed(format!("{}: {fault}", self.scratch.path("").display())))
    }

    /// Writes what is to be there; brings every bitmap of the first disk into memory.
    fn prepare(
        &self,
        driver: &mut Driver<'_>,
        sides: &dyn Fn(Disk) -> (Side, Side),
        fresh: bool,
    ) -> Result<(), SoloFault> {
        let shape = self.shape;
        for side in [sides(Disk::Full).0, sides(Disk::Full).1] {
            if fresh {
                driver.writes(
                    side,
                    &mut Places::in_a_row(shape.size / RUN, RUN),
                    (shape.size / RUN) as u32,
                    RUN,
                )?;
                driver.flush(side)?;
            }
            let count = (shape.size / shape.block_bytes).max(1);
            driver.writes(side, &mut Places::in_a_row(count, shape.block_bytes), count as u32, PAGE)?;
        }
        for side in [sides(Disk::Wide).0, sides(Disk::Wide).1] {
            if fresh {
                let mut places = Places::in_a_row(shape.blocks, shape.block_bytes);
                driver.writes(side, &mut places, shape.blocks as u32, PAGE)?;
                driver.flush(side)?;
            }
        }
        Ok(())
    }

    /// All cases in turn, until there is nothing left that was never written.
    fn turns(
        &self,
        driver: &mut Driver<'_>,
        sides: &dyn Fn(Disk) -> (Side, Side),
        progress: &Progress,
        found: &mut dyn FnMut(Pair),
        is_over: &dyn Fn() -> bool,
    ) -> Result<(), SoloFault> {
        let shape = self.shape;
        let mut places = Case::ALL.map(|case| shape.places(case));
        for rotation in 0..shape.rotations() {
            if is_over() && rotation > 0 {
                break;
            }
            for (index, case) in Case::ALL.into_iter().enumerate() {
                // The flushes of first writes go on where the first writes are.
                let at = if case == Case::FlushFirst { Case::FirstWrite as usize } else { index };
                let (unit, plain) = sides(Disk::of(case));
                let (mut theirs, operations) = (places[at], shape.slice(case));
                let plain_first = rotation % 2 == 1;
                let mut plain_sample = None;
                if plain_first {
                    plain_sample = Some(driver.sample(case, plain, &mut theirs, operations)?);
                }
                let child = driver.sample(case, unit, &mut places[at], operations)?;
                let plain = match plain_sample {
                    Some(sample) => sample,
                    None => driver.sample(case, plain, &mut theirs, operations)?,
                };
                found(Pair { case, child, plain });
            }
            progress.set(u64::from(rotation + 1));
        }
        driver.flush(sides(Disk::Full).0)?;
        driver.flush(sides(Disk::Wide).0)
    }

    /// Makes the files that are not there, and those of first writes anew. True when there were none.
    fn files(&self) -> Result<bool, Error> {
        let parent = Opener::anywhere(Locking::Hold).open_chain(self.parent, Access::ReadOnly)?;
        let first = !self.child(Disk::Full).exists();
        for disk in Disk::ALL.into_iter().filter(|disk| first || !disk.is_kept()) {
            let (child, plain) = (self.child(disk), self.scratch.path(&format!("{}.plain", disk.name())));
            if child.exists() {
                std::fs::remove_file(&child).map_err(Error::io(&child, "removing"))?;
            }
            create_child_of(&child, &parent, None)?;
            let file = File::create(&plain).map_err(Error::io(&plain, "creating"))?;
            let len = self.shape.size.max(self.shape.blocks * self.shape.block_bytes);
            file.set_len(len).map_err(Error::io(&plain, "setting the length"))?;
        }
        Ok(first)
    }

    fn child(&self, disk: Disk) -> std::path::PathBuf {
        self.scratch.path(&format!("{}.{}", disk.name(), self.ending))
    }

    fn open(&self, disk: Disk) -> Result<OpenedChain, Error> {
        Ok(Opener::anywhere(Locking::Hold).open_chain(&self.child(disk), Access::Writable)?)
    }

    /// The journal of a server, for these units.
    fn journal(
        &self,
        table: &LayerTable,
        units: &mut [UnitSeed],
    ) -> Result<(Option<Area>, Option<JournalFile>), Error> {
        let Some(runtime) = &self.runtime else { return Ok((None, None)) };
        let leaves: Vec<_> = units.iter().filter_map(|unit| table.leaf_identity(unit.leaf)).collect();
        let (area, file) = runtime.journal(0, &leaves)?.split();
        for (index, unit) in (0..).zip(units) {
            unit.durability = Durability::Journal(LeafIndex(index));
        }
        Ok((area, Some(file)))
    }
}

fn unit(table: &mut LayerTable, chain: OpenedChain) -> Result<UnitSeed, Error> {
    let block_size = chain.leaf().logical_sector();
    let chain = table.add(chain)?;
    let leaf = chain.leaf();
    let leaf_file = table.images.layer(leaf).map_or(FileSlot(0), |layer| layer.file());
    Ok(UnitSeed { chain, block_size, leaf, leaf_file, writable: true, durability: Durability::GroupCommit })
}
