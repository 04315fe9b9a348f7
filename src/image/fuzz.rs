//! Fuzz entry point of the chain: operations on a child and its parent, against a model of sectors.
//!
//! Both images are VHDs, or VHDXs with sectors of 512 or of 4096 bytes. Knows a file in memory and runs every plan at once;
//! looks at the file anew now and then, as whoever opens it after a kill does. Does not know power cuts (the crash tests do).

use super::{Chain, Images, Layer};
use crate::memory_file::MemoryFile;
use crate::plan::{
    BatchEnd, BitmapRead, FileSlot, IoFault, MetaBatch, NoRecords, ReadPlan, ReadStep, Source, WriteExtent,
    WriteKind, WritePlan, WriteStep,
};
use crate::units::{BlockSize, SECTOR_BYTES, Sector, SectorCount, SectorRange};
use crate::vhd::OpenMode;
use crate::vhdx::WriteIds;
use crate::vhdx::parent_locator::ParentPaths;
use crate::{vhd, vhdx};
use uuid::Uuid;

/// A two-layer chain and what each of its sectors should read.
#[derive(Debug)]
struct World {
    images: Images,
    chain: Chain,
    files: [MemoryFile; 2],
    format: Format,
    model: Vec<u8>,
}

/// What both images are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Vhd,
    Vhdx(BlockSize),
}

const SECTORS: u64 = 3000;

/// Runs operations on a child of a dynamic parent, seven bytes each: kind, place, count, value, fault. The first byte says
/// the blocks of both, and above them the format.
///
/// # Panics
/// When a sector reads something else than was written last.
pub fn fuzz_chain_ops(data: &[u8]) {
    let Some((shape, ops)) = data.split_first() else { return };
    let Some(mut world) = World::new(*shape) else { return };
    for op in ops.chunks_exact(7).take(100) {
        let grain = world.format.grain();
        let start = u64::from(u16::from_be_bytes([op[1], op[2]])) % SECTORS / grain * grain;
        let count = u64::from(u16::from_be_bytes([op[3], op[4]]) % 1500).clamp(1, SECTORS - start);
        let range = SectorRange::between(Sector(start), Sector(start + count.next_multiple_of(grain)));
        match op[0] % 8 {
            0..=3 => world.write(range, WriteKind::Data, op[5].max(1), op[6]),
            4 | 5 => world.write(range, WriteKind::Zero, 0, op[6]),
            6 if op[6] % 4 == 1 => world.compare_anew(),
            6 => world.compare(range),
            7 if op[6] % 8 == 5 => world.empty(),
            _ => world.pump(op[6] % 64 == 1),
        }
    }
    let all = SectorRange::between(Sector(0), Sector(SECTORS));
    world.compare(all);
    world.images.begin_close(world.chain.leaf());
    world.pump(false);
    world.compare(all);
    world.compare_anew();
}

impl Format {
    /// Sectors that can only be written together.
    fn grain(self) -> u64 {
        match self {
            Self::Vhd => 1,
            Self::Vhdx(sector) => sector.sectors(),
        }
    }

    /// The bytes of a new image, the child's in place 0 or its parent's in place 1.
    fn create(self, place: u32, shift: u8) -> Option<MemoryFile> {
        let own = Uuid::from_u128(2 - u128::from(place));
        let image = match self {
            Self::Vhd => {
                let block_size = (512 << 10) << (shift % 4);
                let parent = vhd::create::ParentRef {
                    unique_id: Uuid::from_u128(1),
                    timestamp: 0,
                    relative: "parent.vhd".to_owned(),
                    absolute: None,
                };
                let kind = match place {
                    0 => vhd::create::NewKind::Differencing { block_size, parent },
                    _ => vhd::create::NewKind::Dynamic { block_size },
                };
                let disk = vhd::create::NewDisk {
                    kind,
                    sectors: SectorCount(SECTORS),
                    unique_id: own,
                    timestamp: 0,
                };
                vhd::create::create(&disk).ok()?
            }
            Self::Vhdx(logical_sector) => {
                let parent = vhdx::create::ParentRef {
                    data_write_guid: Uuid::from_u128(1),
                    disk_id: Uuid::from_u128(9),
                    paths: ParentPaths { relative: "parent.vhdx".to_owned(), ..ParentPaths::default() },
                };
                let kind = match place {
                    0 => vhdx::create::NewKind::Differencing(parent),
                    _ => vhdx::create::NewKind::Dynamic,
                };
                let disk = vhdx::create::NewDisk {
                    kind,
                    sectors: SectorCount(SECTORS),
                    block_size: (1 << 20) << (shift % 2),
                    logical_sector,
                    physical_sector: BlockSize::B4096,
                    file_write_guid: own,
                    data_write_guid: own,
                    disk_id: Uuid::from_u128(9),
                };
                vhdx::create::create(&disk).ok()?
            }
        };
        Some(MemoryFile::created(&image))
    }

    /// What empties a file that nobody has open finds nothing to do.
    fn is_empty(self, file: &MemoryFile) -> bool {
        let read = |offset, bytes: &mut [u8]| file.read(offset, bytes);
        match self {
            Self::Vhd => matches!(vhd::reset::emptied(file.len(), read), Ok(None)),
            Self::Vhdx(_) => matches!(vhdx::reset::emptied(file.len(), read), Ok(None)),
        }
    }

    /// The chain of both files.
    fn open(self, files: &[MemoryFile; 2], leaf: OpenMode) -> Option<(Images, Chain)> {
        let mut images = Images::new();
        let mut layers = Vec::new();
        for ((slot, file), mode) in (0..).map(FileSlot).zip(files).zip([leaf, OpenMode::ReadOnly]) {
            let read = |offset, bytes: &mut [u8]| file.read(offset, bytes);
            layers.push(images.add(match self {
                Self::Vhd => Layer::vhd(slot, vhd::open_with(file.len(), mode, read).ok()?),
                Self::Vhdx(_) => {
                    let mut image = vhdx::open_with(file.len(), mode, read).ok()?;
                    let [file_write, data_write, log] = [11, 12, 13].map(Uuid::from_u128);
                    image.begin_writing(WriteIds { file_write, data_write, log });
                    Layer::vhdx(slot, image)
                }
            }));
        }
        let chain = Chain::new(&images, layers).ok()?;
        Some((images, chain))
    }
}

impl World {
    fn new(shape: u8) -> Option<Self> {
        let format = match shape / 16 % 3 {
            0 => Format::Vhd,
            1 => Format::Vhdx(BlockSize::B512),
            _ => Format::Vhdx(BlockSize::B4096),
        };
        let files = [format.create(0, shape / 4)?, format.create(1, shape)?];
        let (images, chain) = format.open(&files, OpenMode::Writable)?;
        Some(Self { images, chain, files, format, model: vec![0; SECTORS as usize] })
    }

    /// What the files say to who opens them now, a log replayed in memory.
    fn compare_anew(&mut self) {
        if self.images.is_failed(self.chain.leaf()) {
            return;
        }
        let anew = self.format.open(&self.files, OpenMode::ReadOnly);
        let (mut images, mut chain) = anew.expect("an image that is written opens at any moment");
        core::mem::swap(&mut self.images, &mut images);
        core::mem::swap(&mut self.chain, &mut chain);
        self.compare(SectorRange::between(Sector(0), Sector(SECTORS)));
        core::mem::swap(&mut self.images, &mut images);
        core::mem::swap(&mut self.chain, &mut chain);
    }

    fn load(&mut self, read: BitmapRead) {
        let mut bytes = vec![0; read.len as usize];
        let file = &self.files[read.file.0 as usize];
        let result = file.read(read.offset.0, &mut bytes).map(|()| &bytes[..]);
        self.images.bitmap_loaded(read, result.map_err(|_| IoFault::Failed));
    }

    fn write(&mut self, range: SectorRange, kind: WriteKind, value: u8, fault: u8) {
        let mut plan = WritePlan::default();
        let mut left = range;
        while !left.is_empty() {
            let step = self.images.resolve_write(&self.chain, left, kind, &mut plan);
            let (covered, commit) = match step {
                Ok(WriteStep::NeedBitmap(read)) => {
                    self.load(read);
                    continue;
                }
                Ok(WriteStep::NeedSpace(_)) => {
                    self.pump(false);
                    continue;
                }
                Ok(WriteStep::Ready { covered, commit }) => (covered, commit),
                Err(_) => return,
            };
            let part = left.take(covered);
            if commit && fault % 32 == 1 {
                self.images.write_abandoned(&self.chain, part);
                return;
            }
            self.put(&plan, value);
            self.model[part.start().0 as usize..part.end().0 as usize].fill(value);
            if commit {
                let seq = self.images.data_written(&self.chain, part, &mut NoRecords);
                self.pump(false);
                let leaf = self.chain.leaf();
                assert!(
                    self.images.committed(leaf) >= seq || self.images.is_failed(leaf),
                    "a commit is missing"
                );
                if self.images.is_failed(leaf) {
                    return;
                }
            }
            left = left.skip(covered);
        }
    }

    fn put(&mut self, plan: &WritePlan, value: u8) {
        for extent in &plan.extents {
            if let WriteExtent::File { len, file, offset } = *extent {
                assert!(file == FileSlot(0), "only the leaf is written");
                self.files[0].write(offset.0, &vec![value; len as usize]);
            }
        }
    }

    /// Runs all batches; with `no_space` the first one fails.
    fn pump(&mut self, no_space: bool) {
        let mut batch = MetaBatch::default();
        let mut fails = no_space;
        while self.images.next_meta_batch(self.chain.leaf(), &mut batch) {
            let fault = core::mem::take(&mut fails);
            for op in &batch.ops {
                if !fault {
                    self.files[0].run_op(op, &batch.bytes);
                }
            }
            let leaf = self.chain.leaf();
            if fault && self.images.meta_batch_done(leaf, Err(IoFault::NoSpace)) == BatchEnd::Done {
                continue;
            }
            // Well, or the second time.
            if fault {
                batch.ops.iter().for_each(|op| self.files[0].run_op(op, &batch.bytes));
            }
            self.images.meta_batch_done(leaf, Ok(()));
        }
    }

    /// Gives up all that was written, whatever state it is in; nothing is under way.
    fn empty(&mut self) {
        let leaf = self.chain.leaf();
        assert!(self.images.begin_reset(leaf));
        self.pump(false);
        assert!(!self.images.is_failed(leaf));
        self.model.fill(0);
        assert!(self.format.is_empty(&self.files[0]), "the file is emptied, and not empty");
        self.compare_anew();
    }

    fn compare(&mut self, range: SectorRange) {
        let mut plan = ReadPlan::default();
        let mut left = range;
        while !left.is_empty() {
            match self.images.resolve_read(&self.chain, left, &mut plan) {
                ReadStep::NeedBitmap(read) => self.load(read),
                ReadStep::Ready { covered } => {
                    assert!(covered.0 > 0, "a read makes no progress");
                    self.compare_plan(&plan, left.start().0);
                    left = left.skip(covered);
                }
            }
        }
    }

    fn compare_plan(&self, plan: &ReadPlan, start: u64) {
        let mut sector = start;
        for extent in &plan.extents {
            for index in 0..u64::from(extent.len) / SECTOR_BYTES {
                let found = match extent.source {
                    Source::Zero => 0,
                    Source::File { file, offset, .. } => {
                        let mut byte = [0];
                        let read =
                            self.files[file.0 as usize].read(offset.0 + index * SECTOR_BYTES, &mut byte);
                        assert!(read.is_ok(), "sector {sector} lies beyond the end of its file");
                        byte[0]
                    }
                };
                assert!(found == self.model[sector as usize], "sector {sector} reads {found}");
                sector += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::Rng;
    use proptest::test_runner::{RngAlgorithm, TestRng};

    #[test]
    fn random_operations_agree_with_the_model() {
        let mut rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        for _ in 0..300 {
            let mut data = vec![0; 1 + 7 * (rng.next_u32() % 40) as usize];
            rng.fill_bytes(&mut data);
            fuzz_chain_ops(&data);
        }
    }
}
