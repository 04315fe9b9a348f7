//! A chain as runs: which layer holds which range of the disk, and what lies there.
//!
//! Knows depths (0 is the leaf) and holes of files. Does not know what the runs are for, and reads no data unless it
//! is asked to. For tools; the server resolves ranges (`image`).

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::block_io::data_runs;
use super::file::OpenedFile;
use super::open_image::{LayerTable, OpenError, OpenedChain, OpenedLayer};
use crate::image::LayerRun;
use crate::limits::BITMAP_BYTES_MAX;
use crate::plan::LayerId;
use crate::units::SECTOR_BYTES;

/// Sectors looked at in one step: bounds the time between two signs of progress.
const STEP_SECTORS: u64 = 64 << 10;

/// What holds a run of the disk.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// Bytes of the file of the layer at `depth`.
    Data { depth: usize, file: Arc<OpenedFile>, offset: u64 },
    /// The layer at `depth` holds it, and its file has a hole there: zeros.
    Hole { depth: usize, file: Arc<OpenedFile>, offset: u64 },
    /// The layer at `depth` says zeros, and its file has nothing for it.
    Zeros { depth: usize },
    /// No layer that was asked holds it: zeros, where all layers were asked.
    Nothing,
}

/// A range of the disk, in bytes, with one place.
#[derive(Clone, Debug)]
pub(super) struct DiskRun {
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) place: Place,
}

impl DiskRun {
    pub(super) fn end(&self) -> u64 {
        self.start + self.len
    }

    /// The depth of the layer that holds it.
    pub(super) fn depth(&self) -> Option<usize> {
        match self.place {
            Place::Data { depth, .. } | Place::Hole { depth, .. } | Place::Zeros { depth } => Some(depth),
            Place::Nothing => None,
        }
    }

    /// The part of it that begins at `start`, which lies in it, and ends at `end` at most.
    pub(super) fn part(&self, start: u64, end: u64) -> Self {
        let skip = start - self.start;
        let mut place = self.place.clone();
        match &mut place {
            Place::Data { offset, .. } | Place::Hole { offset, .. } => *offset += skip,
            Place::Zeros { .. } | Place::Nothing => {}
        }
        Self { start, len: end.min(self.end()) - start, place }
    }

    /// True when both are the same bytes of the same file, or both are zeros: nothing need be read to know that they
    /// are equal. Both begin at the same byte of the disk.
    pub(super) fn is_same_as(&self, other: &Self) -> bool {
        match (&self.place, &other.place) {
            (Place::Data { file, offset, .. }, Place::Data { file: other, offset: at, .. }) => {
                file.identity() == other.identity() && offset == at
            }
            (Place::Data { .. }, _) | (_, Place::Data { .. }) => false,
            _ => true,
        }
    }

    /// Fills `bytes` with what lies `skip` bytes into the run.
    pub(super) fn read(&self, skip: u64, bytes: &mut [u8]) -> Result<(), OpenError> {
        let Place::Data { file, offset, .. } = &self.place else {
            bytes.fill(0);
            return Ok(());
        };
        let (offset, len) = (offset + skip, bytes.len());
        let failed = |source| OpenError::Read { path: file.path().to_owned(), offset, len, source };
        file.read_at(offset, bytes).map_err(failed)
    }

    fn continues(&self, next: &Self) -> bool {
        let follows = |file: &OpenedFile, offset: u64, other: &OpenedFile, at: u64| {
            file.identity() == other.identity() && offset + self.len == at
        };
        self.end() == next.start
            && match (&self.place, &next.place) {
                (Place::Nothing, Place::Nothing) => true,
                (Place::Zeros { depth }, Place::Zeros { depth: other }) => depth == other,
                (Place::Data { file, offset, .. }, Place::Data { file: other, offset: at, .. })
                | (Place::Hole { file, offset, .. }, Place::Hole { file: other, offset: at, .. }) => {
                    follows(file, *offset, other, *at)
                }
                _ => false,
            }
    }
}

/// The runs of some layers of a chain, in order of the disk.
#[derive(Debug)]
pub(super) struct ChainRuns {
    table: LayerTable,
    layers: Vec<LayerId>,
    files: Vec<Arc<OpenedFile>>,
    depths: Range<usize>,
    /// The next sector to ask about, and the first one not to.
    at: u64,
    end: u64,
    /// Runs found and not handed out; the last one may still grow.
    queue: VecDeque<DiskRun>,
    bitmap: Vec<u8>,
}

impl ChainRuns {
    /// All layers of a chain.
    pub(super) fn new(chain: OpenedChain) -> Result<Self, OpenError> {
        let depths = 0..chain.layers().len();
        Self::of_depths(chain, depths)
    }

    /// Only the layers of these depths; the disk is as long as that of the first of them.
    pub(super) fn of_depths(chain: OpenedChain, depths: Range<usize>) -> Result<Self, OpenError> {
        let end = chain.layers().get(depths.start).map_or(0, |layer| layer.sectors().0);
        let files = chain.layers().iter().map(|layer| layer.file().clone()).collect();
        let mut table = LayerTable::default();
        let layers = table.add(chain)?.layers().to_vec();
        let bitmap = vec![0; BITMAP_BYTES_MAX];
        Ok(Self { table, layers, files, depths, at: 0, end, queue: VecDeque::new(), bitmap })
    }

    /// One layer alone, whose parents need not be open.
    pub(super) fn alone(layer: OpenedLayer) -> Result<Self, OpenError> {
        let (end, files) = (layer.sectors().0, vec![layer.file().clone()]);
        let mut table = LayerTable::default();
        let layers = vec![table.add_alone(layer)?];
        let bitmap = vec![0; BITMAP_BYTES_MAX];
        Ok(Self { table, layers, files, depths: 0..1, at: 0, end, queue: VecDeque::new(), bitmap })
    }

    /// The length of the disk in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.end * SECTOR_BYTES
    }

    /// Goes on at byte `start`, a whole sector at or behind what was handed out last.
    pub(super) fn skip_to(&mut self, start: u64) {
        while self.queue.front().is_some_and(|run| run.end() <= start) {
            self.queue.pop_front();
        }
        if let Some(run) = self.queue.front_mut() {
            if run.start < start {
                *run = run.part(start, u64::MAX);
            }
        } else {
            self.at = self.at.max(start / SECTOR_BYTES);
        }
    }

    /// The next run; as long as it can be told in one step. `None` at the end of the disk.
    pub(super) fn next(&mut self) -> Result<Option<DiskRun>, OpenError> {
        while self.queue.len() < 2 && self.at < self.end {
            let sectors = (self.end - self.at).min(STEP_SECTORS);
            let (place, sectors) = self.look(self.at, sectors)?;
            let run = DiskRun { start: self.at * SECTOR_BYTES, len: sectors * SECTOR_BYTES, place };
            self.at += sectors;
            self.enqueue(run);
        }
        Ok(self.queue.pop_front())
    }

    /// What holds `sector`, and at most `max` sectors from there.
    fn look(&mut self, sector: u64, max: u64) -> Result<(Place, u64), OpenError> {
        let mut sectors = max;
        for depth in self.depths.clone() {
            let Some(id) = self.layers.get(depth).copied() else { break };
            match self.layer_run(id, sector, sectors)? {
                LayerRun::Present { offset, sectors } => {
                    let file = self.files[depth].clone();
                    return Ok((Place::Data { depth, file, offset: offset.0 }, sectors));
                }
                LayerRun::Zero { sectors } => return Ok((Place::Zeros { depth }, sectors)),
                LayerRun::Absent { sectors: absent } => sectors = absent,
                LayerRun::Beyond { sectors: beyond } => {
                    sectors = beyond;
                    break;
                }
                LayerRun::NeedBitmap(_) => {}
            }
        }
        Ok((Place::Nothing, sectors))
    }

    /// As `Images::layer_run`, with the bitmaps it needs.
    fn layer_run(&mut self, id: LayerId, sector: u64, max: u64) -> Result<LayerRun, OpenError> {
        loop {
            match self.table.images.layer_run(id, sector, max) {
                LayerRun::NeedBitmap(wanted) => self.table.load_bitmap(wanted, &mut self.bitmap)?,
                run => return Ok(run),
            }
        }
    }

    /// Takes a run in, what is a hole of its file apart from what is not.
    fn enqueue(&mut self, run: DiskRun) {
        let Place::Data { depth, ref file, offset } = run.place else { return self.push(run) };
        let end = offset + run.len;
        let mut at = offset;
        let place = |at: u64| run.start + (at - offset);
        let hole = |from: u64, to: u64| DiskRun {
            start: place(from),
            len: to - from,
            place: Place::Hole { depth, file: file.clone(), offset: from },
        };
        for (start, data_end) in data_runs(file, offset, end) {
            // Whole sectors: a file system may tell of holes in smaller steps.
            let start = (start / SECTOR_BYTES * SECTOR_BYTES).max(at);
            let data_end = data_end.next_multiple_of(SECTOR_BYTES).min(end);
            if start > at {
                self.push(hole(at, start));
            }
            if data_end > start {
                self.push(run.part(place(start), place(data_end)));
            }
            at = data_end.max(at);
        }
        if at < end {
            self.push(hole(at, end));
        }
    }

    fn push(&mut self, run: DiskRun) {
        match self.queue.back_mut() {
            Some(last) if last.continues(&run) => last.len += run.len,
            _ => self.queue.push_back(run),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::file::{Access, Locking};
    use crate::control::open_image::Opener;
    use std::os::unix::fs::FileExt;

    fn runs(path: &std::path::Path) -> ChainRuns {
        let chain = Opener::anywhere(Locking::Ignore).open_chain(path, Access::ReadOnly).unwrap();
        ChainRuns::new(chain).unwrap()
    }

    fn raw() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(64 << 20).unwrap();
        file.as_file().write_all_at(&[7; 8192], 3 << 20).unwrap();
        file
    }

    #[test]
    fn runs_cover_the_disk_and_holes_are_told_from_data() {
        let file = raw();
        let mut runs = runs(file.path());
        let mut at = 0;
        let mut data = 0;
        while let Some(run) = runs.next().unwrap() {
            assert_eq!(run.start, at);
            at = run.end();
            if matches!(run.place, Place::Data { .. }) {
                data += run.len;
                let mut bytes = [0; 1];
                run.read(0, &mut bytes).unwrap();
                assert_eq!((run.start, bytes), (3 << 20, [7]));
            }
        }
        assert_eq!((at, data), (64 << 20, 8192));
    }

    #[test]
    fn skipping_goes_on_in_the_middle_of_a_run() {
        let file = raw();
        let mut runs = runs(file.path());
        runs.next().unwrap();
        runs.skip_to((3 << 20) + 4096);
        let run = runs.next().unwrap().unwrap();
        assert_eq!((run.start, run.len), ((3 << 20) + 4096, 4096));
        runs.skip_to((64 << 20) - 512);
        assert_eq!(runs.next().unwrap().map(|run| run.len), Some(512));
        assert!(runs.next().unwrap().is_none());
    }
}
