//! Writing into a leaf with blocking calls, in the order its format asks for: for tools.
//!
//! Knows how to run write plans and commits. Data is made visible in groups, so that a commit's flush serves many
//! writes; a kill in between loses what was not yet visible, and never leaves a sector that is neither old nor new.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::block_io::run_op;
use super::chain_runs::{DiskRun, Place};
use super::edit_file::zero;
use super::error::Error;
use super::open_image::{LayerTable, OpenError, OpenedChain};
use super::watch::Watch;
use crate::image::Chain;
use crate::limits::BITMAP_BYTES_MAX;
use crate::plan::{BatchEnd, IoFault, MetaBatch, NoRecords, WriteExtent, WriteKind, WritePlan, WriteStep};
use crate::units::{SECTOR_BYTES, Sector, SectorCount, SectorRange};

/// Bytes moved at once.
const PIECE_BYTES: u64 = 512 * 1024;
/// Bytes written before what they need is made visible.
const COMMIT_BYTES: u64 = 64 << 20;

/// An open chain whose leaf is written.
pub(super) struct ChainWriter<'a> {
    table: LayerTable,
    chain: Chain,
    path: PathBuf,
    watch: &'a dyn Watch,
    plan: WritePlan,
    batch: MetaBatch,
    bitmap: Vec<u8>,
    buffer: Vec<u8>,
    uncommitted: u64,
}

impl<'a> ChainWriter<'a> {
    /// The leaf of `chain` must be open for writing.
    pub(super) fn new(chain: OpenedChain, watch: &'a dyn Watch) -> Result<Self, OpenError> {
        let path = chain.leaf().file().path().to_owned();
        let mut table = LayerTable::default();
        let chain = table.add(chain)?;
        let (plan, batch) = (WritePlan::default(), MetaBatch::default());
        let (bitmap, buffer) = (vec![0; BITMAP_BYTES_MAX], vec![0; PIECE_BYTES as usize]);
        Ok(Self { table, chain, path, watch, plan, batch, bitmap, buffer, uncommitted: 0 })
    }

    /// Writes what `run` holds to the same place of this disk. Zeros need no place where the disk reads zeros anyway.
    pub(super) fn copy(&mut self, run: &DiskRun) -> Result<(), Error> {
        if matches!(run.place, Place::Data { .. }) {
            return self.store(run);
        }
        self.write(run.start, run.len, None)
    }

    /// As [`Self::copy`], and zeros are stored in any case: this disk's parents are about to be others.
    pub(super) fn store(&mut self, run: &DiskRun) -> Result<(), Error> {
        let mut done = 0;
        while done < run.len {
            let piece = (run.len - done).min(PIECE_BYTES);
            let mut bytes = core::mem::take(&mut self.buffer);
            let read = run.read(done, &mut bytes[..piece as usize]);
            let written = match read {
                Ok(()) => self.write(run.start + done, piece, Some(&bytes[..piece as usize])),
                Err(error) => Err(error.into()),
            };
            self.buffer = bytes;
            written?;
            done += piece;
        }
        Ok(())
    }

    /// Writes `bytes`, or zeros, at byte `at`; whole sectors.
    pub(super) fn write(&mut self, at: u64, len: u64, bytes: Option<&[u8]>) -> Result<(), Error> {
        let (start, end) = (at / SECTOR_BYTES, (at + len) / SECTOR_BYTES);
        let mut left = SectorRange::between(Sector(start), Sector(end));
        let kind = if bytes.is_some() { WriteKind::Data } else { WriteKind::Zero };
        while !left.is_empty() {
            match self.table.images.resolve_write(&self.chain, left, kind, &mut self.plan) {
                Ok(WriteStep::NeedBitmap(wanted)) => self.table.load_bitmap(wanted, &mut self.bitmap)?,
                Ok(WriteStep::NeedSpace(_)) => self.commit()?,
                Ok(WriteStep::Ready { covered, commit }) => {
                    let skip = (left.start().0 * SECTOR_BYTES - at) as usize;
                    self.put(bytes.map(|bytes| &bytes[skip..]))?;
                    if commit {
                        self.table.images.data_written(&self.chain, left.take(covered), &mut NoRecords);
                        self.wrote(covered)?;
                    }
                    left = left.skip(covered);
                }
                Err(refused) => {
                    return Err(Error::Failed(format!("{}: {refused}", self.path.display())));
                }
            }
        }
        Ok(())
    }

    fn wrote(&mut self, sectors: SectorCount) -> Result<(), Error> {
        self.uncommitted += sectors.bytes().0;
        if self.uncommitted >= COMMIT_BYTES { self.commit() } else { Ok(()) }
    }

    /// Runs the extents of the plan.
    fn put(&mut self, bytes: Option<&[u8]>) -> Result<(), Error> {
        let mut done = 0;
        for extent in &self.plan.extents {
            let len = extent.len() as usize;
            if let WriteExtent::File { file, offset, .. } = *extent {
                self.watch.before_change()?;
                let file = &self.table.files[file.0 as usize];
                let written = match bytes {
                    Some(bytes) => file.file().write_all_at(&bytes[done..done + len], offset.0),
                    None => zero(file.file(), offset.0, offset.0 + len as u64),
                };
                written.map_err(Error::io(file.path(), "writing"))?;
            }
            done += len;
        }
        Ok(())
    }

    /// Makes everything written so far visible, and room for more.
    fn commit(&mut self) -> Result<(), Error> {
        self.uncommitted = 0;
        let leaf = self.chain.leaf();
        let slot = self.table.images.layer(leaf).map_or(0, |layer| layer.file().0 as usize);
        while self.table.images.next_meta_batch(leaf, &mut self.batch) {
            let file = &self.table.files[slot];
            for op in &self.batch.ops {
                self.watch.before_change()?;
                match run_op(file.file(), op, &self.batch.bytes) {
                    Ok(()) => {}
                    // The next write is told so, in the words for it; nothing waits here for space to come back.
                    Err(error)
                        if error.kind() == std::io::ErrorKind::StorageFull
                            && self.table.images.meta_batch_done(leaf, Err(IoFault::NoSpace))
                                == BatchEnd::Done =>
                    {
                        return Ok(());
                    }
                    Err(error) => return Err(Error::io(file.path(), "writing metadata")(error)),
                }
            }
            self.table.images.meta_batch_done(leaf, Ok(()));
        }
        Ok(())
    }

    /// Everything is visible and stable, and the file ends behind its last block.
    pub(super) fn close(mut self) -> Result<(), Error> {
        self.commit()?;
        let leaf = self.chain.leaf();
        self.table.images.begin_close(leaf);
        self.commit()?;
        if self.table.images.is_failed(leaf) {
            return Err(Error::Failed(format!("{}: its metadata could not be written", self.path.display())));
        }
        let file = self.table.images.layer(leaf).map_or(0, |layer| layer.file().0 as usize);
        self.table.files[file].file().sync_all().map_err(Error::io(&self.path, "flushing"))
    }
}
