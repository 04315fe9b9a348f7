//! Changes of a file that nobody uses, as stages, through its log: all pages of a step change together, or none does.
//!
//! Knows the order of the log and the headers. Does not know what is changed, and why (`relink`, `compact`, `resize`).
//!
//! ```text
//! a step:  an entry with all its pages, over the start of the log, which is empty -> the header that is not in use: it
//!          names the log, and is current from here on -> the pages in their places -> the other header, log empty
//!          -> the header again, log empty
//! ```
//!
//! Each arrow is a Sync. A crash before the header leaves the file as it was; after it, whoever opens the file replays.
//! Every step has a log identifier of its own, so that nothing an earlier one left in the log counts.

use std::collections::BTreeMap;

use super::allocate::WriteIds;
use super::bat::{Bat, encode_page};
use super::error::Structure;
use super::header::Header;
use super::image::VhdxImage;
use super::layout::{ENTRY_BYTES, Layout};
use super::log_write::{LogWriter, Pages};
use super::open::OpenError;
use super::{HEADER_OFFSETS, PAGE_BYTES};
use crate::limits::VHDX_ENTRY_PAGES_MAX;
use crate::plan::{FileWrite, MetaBatch, MetaOp, Stage};
use uuid::Uuid;

const PAGE: u64 = PAGE_BYTES as u64;

/// Pages of the file with bytes changed in them.
#[derive(Clone, Debug, Default)]
pub(super) struct ChangedPages {
    pages: BTreeMap<u64, Vec<u8>>,
}

impl ChangedPages {
    /// Puts `bytes` at byte `offset` of the file. Pages met for the first time are read.
    pub(super) fn put<E>(
        &mut self,
        mut offset: u64,
        mut bytes: &[u8],
        read: &mut impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), OpenError<E>> {
        while !bytes.is_empty() {
            let (place, within) = (offset - offset % PAGE, (offset % PAGE) as usize);
            let (now, later) = bytes.split_at(bytes.len().min(PAGE_BYTES - within));
            if let std::collections::btree_map::Entry::Vacant(page) = self.pages.entry(place) {
                let page = page.insert(vec![0; PAGE_BYTES]);
                read(place, page).map_err(|source| OpenError::Read {
                    offset: place,
                    len: PAGE_BYTES,
                    source,
                })?;
            }
            if let Some(part) =
                self.pages.get_mut(&place).and_then(|page| page.get_mut(within..within + now.len()))
            {
                part.copy_from_slice(now);
            }
            offset += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    fn set(&mut self, place: u64, bytes: Vec<u8>) {
        self.pages.insert(place, bytes);
    }
}

/// A change in the making.
#[derive(Debug)]
pub(super) struct Edit {
    header: Header,
    /// The current header's place in `HEADER_OFFSETS`.
    index: usize,
    ids: WriteIds,
    /// Steps so far.
    steps: u128,
    pub(super) stages: Vec<Stage>,
}

impl Edit {
    /// `image` has an empty log. `ids.data_write` is the image's own where its disk reads the same afterwards.
    pub(super) fn new(image: &VhdxImage, ids: WriteIds) -> Self {
        Self { header: image.header, index: image.header_index, ids, steps: 0, stages: Vec::new() }
    }

    /// One step. There are at most `VHDX_ENTRY_PAGES_MAX` pages; `file_len`: bytes the file has by then.
    pub(super) fn step(&mut self, changed: &ChangedPages, file_len: u64) {
        if changed.pages.is_empty() {
            return;
        }
        debug_assert!(changed.pages.len() <= VHDX_ENTRY_PAGES_MAX);
        let mut pages = Pages::default();
        for (place, bytes) in &changed.pages {
            pages.offsets.push(*place);
            pages.bytes.extend_from_slice(bytes);
        }
        let log = Uuid::from_u128(self.ids.log.as_u128().wrapping_add(self.steps));
        self.steps += 1;
        let mut entry = MetaBatch::default();
        LogWriter::new(self.header.log(), log).append(&pages, file_len, &mut entry);
        self.stages.push(Stage::of(writes_of(&entry)));
        self.write_header(log);
        let places = changed.pages.iter();
        let places = places.map(|(place, bytes)| FileWrite { offset: *place, bytes: bytes.clone() });
        self.stages.push(Stage::of(places.collect()));
        self.write_header(Uuid::nil());
        self.write_header(Uuid::nil());
    }

    fn write_header(&mut self, log_guid: Uuid) {
        self.header = Header {
            sequence: self.header.sequence.saturating_add(1),
            file_write_guid: self.ids.file_write,
            data_write_guid: self.ids.data_write,
            log_guid,
            log_version: 0,
            ..self.header
        };
        self.index = 1 - self.index.min(1);
        self.stages.push(Stage::write(HEADER_OFFSETS[self.index], &self.header.encode()));
    }

    /// The entries of `structures` as `bat` has them, in as many steps as it takes, which need not be taken together.
    pub(super) fn table(
        &mut self,
        layout: &Layout,
        bat: &Bat,
        structures: impl Iterator<Item = Structure>,
        file_len: u64,
    ) {
        let mut changed = ChangedPages::default();
        for place in table_places(layout, structures) {
            let mut bytes = Vec::with_capacity(PAGE_BYTES);
            encode_page(layout, place, |structure| bat.of(structure), &mut bytes);
            changed.set(place, bytes);
            if changed.pages.len() == VHDX_ENTRY_PAGES_MAX {
                self.step(&core::mem::take(&mut changed), file_len);
            }
        }
        self.step(&changed, file_len);
    }
}

/// The pages of the table that hold these entries, in order.
pub(super) fn table_places(layout: &Layout, structures: impl Iterator<Item = Structure>) -> Vec<u64> {
    let index = |structure| match structure {
        Structure::Block(block) => Some(layout.block_entry(block)),
        Structure::SectorBitmap(chunk) => Some(layout.bitmap_entry(chunk)),
        _ => None,
    };
    let places = structures.filter_map(index).map(|entry| layout.entry_offset(entry));
    let mut places: Vec<u64> = places.map(|offset| offset - offset % PAGE).collect();
    places.sort_unstable();
    places.dedup();
    places
}

fn writes_of(batch: &MetaBatch) -> Vec<FileWrite> {
    let write = |op: &MetaOp| match op {
        MetaOp::Write { offset, bytes } => {
            Some(FileWrite { offset: offset.0, bytes: batch.bytes[bytes.clone()].to_vec() })
        }
        MetaOp::Sync | MetaOp::Zero { .. } | MetaOp::SetLen { .. } => None,
    };
    batch.ops.iter().filter_map(write).collect()
}

const _: () = assert!(PAGE.is_multiple_of(ENTRY_BYTES));
