//! A file in memory: what fuzz entry points and tests give a format to read, and let it change.
//!
//! Knows pages; one that is not there is zero, so a long file of few bytes is small. Knows no format, and nothing of power
//! cuts: what is written is there.

use crate::plan::{BitmapRequest, MetaBatch, MetaOp, NewImage, Run};
use std::collections::BTreeMap;

const PAGE: usize = 4096;
const PAGE_BYTES: u64 = PAGE as u64;

/// A read beyond the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BeyondEnd;

#[derive(Clone, Debug, Default)]
pub struct MemoryFile {
    len: u64,
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
}

impl MemoryFile {
    pub fn of(bytes: &[u8]) -> Self {
        let mut file = Self::default();
        file.write(0, bytes);
        file
    }

    pub fn created(image: &NewImage) -> Self {
        let mut file = Self { len: image.len, pages: BTreeMap::new() };
        for (offset, bytes) in &image.writes {
            file.write(*offset, bytes);
        }
        file
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills `bytes` from `offset` on.
    ///
    /// # Errors
    /// Some of them lie beyond the end.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), BeyondEnd> {
        let end = offset.checked_add(bytes.len() as u64).ok_or(BeyondEnd)?;
        if end > self.len {
            return Err(BeyondEnd);
        }
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let within = (at % PAGE_BYTES) as usize;
            let count = (PAGE - within).min(rest.len());
            let (now, later) = rest.split_at_mut(count);
            match self.pages.get(&(at / PAGE_BYTES)) {
                Some(page) => now.copy_from_slice(&page[within..within + count]),
                None => now.fill(0),
            }
            at += count as u64;
            rest = later;
        }
        Ok(())
    }

    /// Writes `bytes` at `offset`; the file becomes as long as that takes.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let within = (at % PAGE_BYTES) as usize;
            let (now, later) = rest.split_at((PAGE - within).min(rest.len()));
            let page = self.pages.entry(at / PAGE_BYTES).or_insert_with(|| Box::new([0; PAGE]));
            page[within..within + now.len()].copy_from_slice(now);
            at += now.len() as u64;
            rest = later;
        }
        self.len = self.len.max(at);
    }

    /// Makes `len` bytes from `offset` on zero, as far as the file goes.
    pub fn zero(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len).min(self.len);
        let mut at = offset;
        while at < end {
            let (page, within) = (at / PAGE_BYTES, (at % PAGE_BYTES) as usize);
            let count = (PAGE_BYTES - at % PAGE_BYTES).min(end - at);
            if count == PAGE_BYTES {
                // All whole pages at once: there may be many that are not there.
                let whole = page..end / PAGE_BYTES;
                let mut from = self.pages.split_off(&whole.start);
                self.pages.append(&mut from.split_off(&whole.end));
                at = whole.end * PAGE_BYTES;
                continue;
            }
            if let Some(bytes) = self.pages.get_mut(&page) {
                bytes[within..within + count as usize].fill(0);
            }
            at += count;
        }
    }

    pub fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.zero(len, self.len - len);
        }
        self.len = len;
    }

    /// Does what a batch says, operation by operation.
    pub fn run(&mut self, batch: &MetaBatch) {
        batch.ops.iter().for_each(|op| self.run_op(op, &batch.bytes));
    }

    /// One operation of a batch whose byte store is `bytes`.
    pub fn run_op(&mut self, op: &MetaOp, bytes: &[u8]) {
        match op {
            MetaOp::Write { offset, bytes: range } => self.write(offset.0, &bytes[range.clone()]),
            MetaOp::Zero { offset, len } => self.zero(offset.0, *len),
            MetaOp::SetLen { len } => self.set_len(*len),
            MetaOp::Sync => {}
        }
    }

    /// The first bytes of sectors all over a disk of `sectors` that lies in this file; `None` for a parent's.
    ///
    /// `step` asks the image for the run at a sector, after it has taken the bitmap that it asked for last, if it did.
    ///
    /// # Panics
    /// When a run is empty, or it or a bitmap lies beyond the end of the file.
    pub fn sample(
        &self,
        sectors: u64,
        mut step: impl FnMut(u64, Option<(BitmapRequest, &[u8])>) -> Run,
    ) -> Vec<Option<[u8; 8]>> {
        let look = |index: u64| {
            let sector = sectors / 64 * index;
            let mut run = step(sector, None);
            if let Run::NeedBitmap(request) = run {
                let mut bitmap = vec![0; request.len as usize];
                assert_eq!(
                    self.read(request.offset.0, &mut bitmap),
                    Ok(()),
                    "a bitmap beyond the end of the file"
                );
                run = step(sector, Some((request, &bitmap)));
            }
            let mut bytes = [0; 8];
            match run {
                Run::Present { offset, sectors } => {
                    let end = offset.0.saturating_add(sectors.saturating_mul(512));
                    assert!(sectors > 0 && end <= self.len, "a run beyond the end of the file");
                    assert_eq!(self.read(offset.0, &mut bytes), Ok(()));
                }
                Run::Zero { sectors } => assert!(sectors > 0, "an empty run"),
                Run::Absent { sectors } => {
                    assert!(sectors > 0, "an empty run");
                    return None;
                }
                // A bitmap that came is known.
                Run::NeedBitmap(_) => panic!("a bitmap that was given is asked for again"),
            }
            Some(bytes)
        };
        (0..64).map(look).collect()
    }
}

/// By content: a page of zeros is as good as none.
impl PartialEq for MemoryFile {
    fn eq(&self, other: &Self) -> bool {
        let page = |file: &Self, at: &u64| file.pages.get(at).map_or([0; PAGE], |page| **page);
        self.len == other.len
            && self.pages.keys().chain(other.pages.keys()).all(|at| page(self, at) == page(other, at))
    }
}

impl Eq for MemoryFile {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_holds_what_a_vector_holds(
            changes in prop::collection::vec((0..4_u8, 0..20_000_u64, 0..10_000_u64, any::<u8>()), 1..30),
        ) {
            let (mut file, mut model) = (MemoryFile::default(), Vec::new());
            for (kind, at, len, value) in changes {
                match kind {
                    0 | 1 => {
                        file.write(at, &vec![value; len as usize]);
                        if len > 0 {
                            model.resize(model.len().max((at + len) as usize), 0);
                            model[at as usize..(at + len) as usize].fill(value);
                        }
                    }
                    2 => {
                        file.zero(at, len);
                        let end = model.len().min((at + len) as usize);
                        model[end.min(at as usize)..end].fill(0);
                    }
                    _ => {
                        file.set_len(at);
                        model.resize(at as usize, 0);
                    }
                }
                let mut bytes = vec![1; model.len()];
                prop_assert_eq!(file.read(0, &mut bytes), Ok(()));
                prop_assert!(bytes == model && file.len() == model.len() as u64);
                prop_assert_eq!(file.read(file.len(), &mut [0]), Err(BeyondEnd));
                prop_assert!(file == MemoryFile::of(&model));
            }
        }
    }
}
