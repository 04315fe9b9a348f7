//! Claims that follow each other in their file: read by one operation.
//!
//! Knows when two claims are neighbours, and how much one operation reads. Does not know who reads.

use super::golden_cache::Claim;
use crate::buf::Fill;
use crate::limits::{FILL_BYTES_MAX, FILL_PARTS_MAX};
use crate::plan::FileSlot;
use crate::units::ByteOffset;

/// One read of a golden file, into the pages of `fills`, one behind the other.
#[derive(Debug)]
pub struct ReadRun {
    pub file: FileSlot,
    pub offset: ByteOffset,
    len: u32,
    ahead: bool,
    pub fills: Vec<Fill>,
}

impl ReadRun {
    /// `fills`: an empty vector, for its memory.
    pub fn of(claim: Claim, mut fills: Vec<Fill>) -> Self {
        let Claim { file, offset, fill } = claim;
        let (len, ahead) = (fill.left(), fill.is_ahead());
        fills.push(fill);
        Self { file, offset, len, ahead, fills }
    }

    /// Also whether somebody waits must be the same: nobody waits for more than he asked for.
    pub fn takes(&self, claim: &Claim) -> bool {
        claim.file == self.file
            && claim.offset.0 == self.offset.0 + u64::from(self.len)
            && claim.fill.is_ahead() == self.ahead
            && self.fills.len() < FILL_PARTS_MAX
            && self.len + claim.fill.left() <= FILL_BYTES_MAX
    }

    pub fn push(&mut self, claim: Claim) {
        self.len += claim.fill.left();
        self.fills.push(claim.fill);
    }
}
