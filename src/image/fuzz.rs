//! Fuzz entry point of the chain: operations on a child and its parent, against a model of sectors.
//!
//! Knows a file in memory and runs every plan at once. Does not know crashes (the crash tests do).

use super::{Chain, Images, Layer};
use crate::plan::{
    BitmapRead, FileSlot, IoFault, MetaBatch, MetaOp, NoRecords, ReadPlan, ReadStep, Source, WriteExtent,
    WriteKind, WritePlan, WriteStep,
};
use crate::units::{SECTOR_BYTES, Sector, SectorCount, SectorRange};
use crate::vhd::create::{NewDisk, NewKind, ParentRef, create};
use crate::vhd::{OpenMode, open_with};
use std::collections::BTreeMap;
use uuid::Uuid;

/// A file of 512-byte sectors; those not there are zero.
#[derive(Debug, Default)]
struct File {
    sectors: BTreeMap<u64, [u8; SECTOR_BYTES as usize]>,
    len: u64,
}

impl File {
    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), ()> {
        if offset + bytes.len() as u64 > self.len {
            return Err(());
        }
        for (index, byte) in bytes.iter_mut().enumerate() {
            let place = offset + index as u64;
            let sector = self.sectors.get(&(place / SECTOR_BYTES));
            *byte = sector.map_or(0, |sector| sector[(place % SECTOR_BYTES) as usize]);
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (index, chunk) in bytes.chunks_exact(SECTOR_BYTES as usize).enumerate() {
            let mut sector = [0; SECTOR_BYTES as usize];
            sector.copy_from_slice(chunk);
            self.sectors.insert(offset / SECTOR_BYTES + index as u64, sector);
        }
        self.len = self.len.max(offset + bytes.len() as u64);
    }

    fn zero(&mut self, offset: u64, len: u64) {
        let range = offset / SECTOR_BYTES..(offset + len) / SECTOR_BYTES;
        self.sectors.retain(|sector, _| !range.contains(sector));
    }

    fn run(&mut self, op: &MetaOp, bytes: &[u8]) {
        match op {
            MetaOp::Write { offset, bytes: range } => self.write(offset.0, &bytes[range.clone()]),
            MetaOp::Sync => {}
            MetaOp::Zero { offset, len } => self.zero(offset.0, *len),
            MetaOp::SetLen { len } => self.len = *len,
        }
    }
}

/// A two-layer chain and what each of its sectors should read.
#[derive(Debug)]
struct World {
    images: Images,
    chain: Chain,
    files: [File; 2],
    model: Vec<u8>,
}

const SECTORS: u64 = 3000;

/// Runs operations on a child of a dynamic parent, seven bytes each: kind, place, count, value, fault.
///
/// # Panics
/// When a sector reads something else than was written last.
pub fn fuzz_chain_ops(data: &[u8]) {
    let Some((shape, ops)) = data.split_first() else { return };
    let Some(mut world) = World::new(*shape) else { return };
    for op in ops.chunks_exact(7).take(100) {
        let start = u64::from(u16::from_be_bytes([op[1], op[2]])) % SECTORS;
        let count = u64::from(u16::from_be_bytes([op[3], op[4]]) % 1500).clamp(1, SECTORS - start);
        let range = SectorRange::between(Sector(start), Sector(start + count));
        match op[0] % 8 {
            0..=3 => world.write(range, WriteKind::Data, op[5].max(1), op[6]),
            4 | 5 => world.write(range, WriteKind::Zero, 0, op[6]),
            6 => world.compare(range),
            _ => world.pump(op[6] % 64 == 1),
        }
    }
    let all = SectorRange::between(Sector(0), Sector(SECTORS));
    world.compare(all);
    world.images.begin_close(world.chain.leaf());
    world.pump(false);
    world.compare(all);
}

impl World {
    fn new(shape: u8) -> Option<Self> {
        let block_size = |shift: u8| (512 << 10) << (shift % 4);
        let parent = ParentRef {
            unique_id: Uuid::from_u128(1),
            timestamp: 0,
            relative: "parent.vhd".to_owned(),
            absolute: None,
        };
        let kinds = [
            NewKind::Differencing { block_size: block_size(shape / 4), parent },
            NewKind::Dynamic { block_size: block_size(shape) },
        ];
        let mut images = Images::new();
        let mut layers = Vec::new();
        let mut files = [File::default(), File::default()];
        for (slot, (kind, file)) in kinds.into_iter().zip(&mut files).enumerate() {
            let unique_id = Uuid::from_u128(2 - slot as u128);
            let new =
                create(&NewDisk { kind, sectors: SectorCount(SECTORS), unique_id, timestamp: 0 }).ok()?;
            for (offset, bytes) in &new.writes {
                file.write(*offset, bytes);
            }
            let mode = if slot == 0 { OpenMode::Writable } else { OpenMode::ReadOnly };
            let image = open_with(file.len, mode, |offset, bytes| file.read(offset, bytes)).ok()?;
            layers.push(images.add(Layer::vhd(FileSlot(slot as u32), image)));
        }
        let chain = Chain::new(&images, layers).ok()?;
        Some(Self { images, chain, files, model: vec![0; SECTORS as usize] })
    }

    fn load(&mut self, read: BitmapRead) {
        let mut bytes = vec![0; read.len as usize];
        let file = &self.files[read.file.0 as usize];
        let result = file.read(read.offset.0, &mut bytes).map(|()| &bytes[..]);
        self.images.bitmap_loaded(read, result.map_err(|()| IoFault::Failed));
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
                    self.files[0].run(op, &batch.bytes);
                }
            }
            let result = if fault { Err(IoFault::NoSpace) } else { Ok(()) };
            self.images.meta_batch_done(self.chain.leaf(), result);
        }
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
                        let place = offset.0 / SECTOR_BYTES + index;
                        self.files[file.0 as usize].sectors.get(&place).map_or(0, |bytes| bytes[0])
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
