//! A blocking executor: runs plans against anything that can be read and written at offsets.
//!
//! The shard does the same with a ring. Here every operation ends before the next begins.

use goldrush::image::{Chain, Images, Layer};
use goldrush::plan::{
    BitmapRead, FileSlot, LayerId, MetaBatch, MetaOp, NoRecords, ReadPlan, ReadStep, Source, WriteExtent,
    WriteKind, WritePlan, WriteRefused, WriteStep,
};
use goldrush::units::{Sector, SectorCount, SectorRange};
use goldrush::vhd::create::NewImage;
use goldrush::vhd::{OpenError, OpenMode, VhdImage, open_with};
use goldrush::vhdx::header::IDENTIFIER;
use goldrush::vhdx::{self, WriteIds};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use uuid::Uuid;

/// What an executor needs of a file.
pub trait Store {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    fn zero(&mut self, offset: u64, len: u64) -> io::Result<()>;
    fn sync(&mut self) -> io::Result<()>;
    fn set_len(&mut self, len: u64) -> io::Result<()>;
    fn len(&self) -> u64;
}

impl Store for File {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(bytes, offset)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn zero(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let end = (offset + len).min(self.metadata()?.len());
        let zeros = vec![0; 1 << 20];
        let mut at = offset;
        while at < end {
            let piece = (end - at).min(zeros.len() as u64);
            self.write_all_at(&zeros[..piece as usize], at)?;
            at += piece;
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }

    fn len(&self) -> u64 {
        self.metadata().unwrap().len()
    }
}

pub fn open<S: Store>(store: &S, mode: OpenMode) -> Result<VhdImage, OpenError<io::Error>> {
    open_with(store.len(), mode, |offset, bytes| store.read_at(offset, bytes))
}

pub fn is_vhdx<S: Store>(store: &S) -> bool {
    let mut head = [0; IDENTIFIER.len()];
    store.len() >= 512 && store.read_at(0, &mut head).is_ok() && head == IDENTIFIER
}

/// Identifiers no image of this run has.
pub fn write_ids() -> WriteIds {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let next = || Uuid::from_u64_pair(0x601D, NEXT.fetch_add(1, Ordering::Relaxed));
    WriteIds { file_write: next(), data_write: next(), log: next() }
}

/// What must be done to a file before it can be opened for writing, in order: nothing for a VHD.
pub fn replay_batches<S: Store>(store: &S) -> Result<Vec<MetaBatch>, String> {
    if !is_vhdx(store) {
        return Ok(Vec::new());
    }
    let batches = vhdx::replay_with(store.len(), |offset, bytes| store.read_at(offset, bytes));
    batches.map_err(|error| error.to_string())
}

/// Opens a file as what it is. A VHDX that is to be written has its log replayed before.
pub fn open_layer<S: Store>(file: &mut S, slot: FileSlot, mode: OpenMode) -> Result<Layer, String> {
    // So few bitmaps that they are forgotten all the time.
    if !is_vhdx(file) {
        let mut image = open(file, mode).map_err(|error| error.to_string())?;
        image.limit_bitmaps(2);
        return Ok(Layer::vhd(slot, image));
    }
    if mode == OpenMode::Writable {
        for batch in replay_batches(file)? {
            for op in &batch.ops {
                run_meta_op(file, op, &batch.bytes);
            }
        }
    }
    let image = vhdx::open_with(file.len(), mode, |offset, bytes| file.read_at(offset, bytes));
    let mut image = image.map_err(|error| error.to_string())?;
    image.limit_bitmaps(2);
    image.begin_writing(write_ids());
    Ok(Layer::vhdx(slot, image))
}

pub fn write_new<S: Store>(store: &mut S, image: &NewImage) {
    for (offset, bytes) in &image.writes {
        store.write_at(*offset, bytes).unwrap();
    }
    store.set_len(image.len).unwrap();
}

pub fn run_meta_op<S: Store>(store: &mut S, op: &MetaOp, bytes: &[u8]) {
    match op {
        MetaOp::Write { offset, bytes: range } => store.write_at(offset.0, &bytes[range.clone()]).unwrap(),
        MetaOp::Sync => store.sync().unwrap(),
        MetaOp::Zero { offset, len } => store.zero(offset.0, *len).unwrap(),
        MetaOp::SetLen { len } => store.set_len(*len).unwrap(),
    }
}

pub fn range(start: u64, count: u64) -> SectorRange {
    SectorRange::new(Sector(start), SectorCount(count)).unwrap()
}

/// A chain with its files, leaf first.
pub struct Disk<S> {
    pub images: Images,
    pub chain: Chain,
    pub files: Vec<S>,
}

impl<S: Store> Disk<S> {
    /// Opens `files` (leaf first) as a chain, the leaf in `mode`.
    pub fn open(mut files: Vec<S>, mode: OpenMode) -> Result<Self, String> {
        let mut images = Images::new();
        let mut layers = Vec::new();
        for (index, file) in files.iter_mut().enumerate() {
            let mode = if index == 0 { mode } else { OpenMode::ReadOnly };
            layers.push(images.add(open_layer(file, FileSlot(index as u32), mode)?));
        }
        let chain = Chain::new(&images, layers).map_err(|error| error.to_string())?;
        Ok(Self { images, chain, files })
    }

    pub fn sectors(&self) -> u64 {
        self.chain.sectors().0
    }

    pub fn load_bitmap(&mut self, read: BitmapRead) {
        let mut bytes = vec![0; read.len as usize];
        self.files[read.file.0 as usize].read_at(read.offset.0, &mut bytes).unwrap();
        self.images.bitmap_loaded(read, Ok(&bytes));
    }

    /// Resolves all of `range` and calls `f` with (bytes, source) in order.
    pub fn each_extent(&mut self, range: SectorRange, mut f: impl FnMut(&Self, u32, Source)) {
        let mut plan = ReadPlan::default();
        let mut left = range;
        while !left.is_empty() {
            match self.images.resolve_read(&self.chain, left, &mut plan) {
                ReadStep::NeedBitmap(read) => self.load_bitmap(read),
                ReadStep::Ready { covered } => {
                    assert!(covered.0 > 0, "no progress at {left:?}");
                    assert_eq!(plan.bytes(), covered.0 * 512);
                    for extent in &plan.extents {
                        f(self, extent.len, extent.source);
                    }
                    left = left.skip(covered);
                }
            }
        }
    }

    pub fn read(&mut self, range: SectorRange) -> Vec<u8> {
        let mut all = Vec::new();
        self.each_extent(range, |disk, len, source| {
            let at = all.len();
            all.resize(at + len as usize, 0);
            if let Source::File { file, offset, .. } = source {
                disk.files[file.0 as usize].read_at(offset.0, &mut all[at..]).unwrap();
            }
        });
        all
    }

    /// Writes and waits for the commit.
    pub fn write(&mut self, start: u64, bytes: &[u8]) -> Result<(), WriteRefused> {
        self.write_kind(range(start, bytes.len() as u64 / 512), WriteKind::Data, bytes)
    }

    pub fn write_zeros(&mut self, start: u64, count: u64) -> Result<(), WriteRefused> {
        self.write_kind(range(start, count), WriteKind::Zero, &[])
    }

    fn write_kind(&mut self, range: SectorRange, kind: WriteKind, bytes: &[u8]) -> Result<(), WriteRefused> {
        let mut plan = WritePlan::default();
        let mut left = range;
        while !left.is_empty() {
            let (covered, commit) = match self.images.resolve_write(&self.chain, left, kind, &mut plan)? {
                WriteStep::NeedBitmap(read) => {
                    self.load_bitmap(read);
                    continue;
                }
                WriteStep::NeedSpace(layer) => {
                    self.run_batches(layer);
                    continue;
                }
                WriteStep::Ready { covered, commit } => (covered, commit),
            };
            let mut done = (left.start().0 - range.start().0) as usize * 512;
            for extent in &plan.extents {
                let len = extent.len() as usize;
                if let WriteExtent::File { file, offset, .. } = *extent {
                    let file = &mut self.files[file.0 as usize];
                    match kind {
                        WriteKind::Data => file.write_at(offset.0, &bytes[done..done + len]).unwrap(),
                        WriteKind::Zero => file.zero(offset.0, len as u64).unwrap(),
                    }
                }
                done += len;
            }
            if commit {
                let seq = self.images.data_written(&self.chain, left.take(covered), &mut NoRecords);
                self.run_batches(self.chain.leaf());
                assert!(self.images.committed(self.chain.leaf()) >= seq);
            }
            left = left.skip(covered);
        }
        Ok(())
    }

    pub fn run_batches(&mut self, layer: LayerId) {
        let mut batch = MetaBatch::default();
        let file = self.images.layer(layer).unwrap().file().0 as usize;
        while self.images.next_meta_batch(layer, &mut batch) {
            for op in &batch.ops {
                run_meta_op(&mut self.files[file], op, &batch.bytes);
            }
            self.images.meta_batch_done(layer, Ok(()));
        }
    }

    pub fn close(mut self) -> Vec<S> {
        self.images.begin_close(self.chain.leaf());
        self.run_batches(self.chain.leaf());
        self.files
    }
}
