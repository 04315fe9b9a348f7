//! Repair of lost footers: the damage a crash of other writers leaves.
//!
//! Knows which footer to write again, and where. Does not touch anything else: a damaged table or header is not
//! guessed.

use super::image::{VhdImage, Warning};
use crate::plan::{MetaBatch, MetaOp};
use crate::units::{ByteOffset, SECTOR_BYTES};

impl VhdImage {
    /// The operations that make both footers whole again, in order; none when [`Self::needs_repair`] is false.
    ///
    /// `len` is the length of the file. The footer at the end is written first, behind everything, and is stable
    /// before the copy at the start is touched. Open the image again afterwards.
    pub fn repair(&self, len: u64) -> Vec<MetaBatch> {
        let mut batches = Vec::new();
        let mut write = |offset| {
            let mut batch = MetaBatch::default();
            batch.push_write(ByteOffset(offset), &self.footer_bytes);
            batches.push(batch);
            batches.push(MetaBatch { ops: vec![MetaOp::Sync], bytes: Vec::new() });
        };
        for warning in &self.warnings {
            match warning {
                Warning::TailFooterLost(_) => write(len.next_multiple_of(SECTOR_BYTES)),
                Warning::HeadFooterDamaged | Warning::FootersDiffer => write(0),
                Warning::LocatorDamaged(_) | Warning::UnreferencedBytes(_) => {}
            }
        }
        batches
    }
}
