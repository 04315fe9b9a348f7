//! Boot traces: which pages of a golden file its nodes read while they boot, in the order of their first reads.
//!
//! Knows the format of a trace file, and how the boots of several nodes become one trace. Does not know files, clocks,
//! caches or who reads.
//!
//! A trace belongs to one version of one file ([`GoldenVersion`]). Its ranges are pages of [`PAGE_BYTES`] of that *file*,
//! not blocks of the disk in it: whoever follows a trace needs no format.
//!
//! Several boots are joined simply: the pages of the trace keep their order; a page that a further boot read as well is
//! counted; one that is new comes behind the page which that boot read before it. A boot much smaller than the trace
//! was none (somebody looked at a disk), and one much larger shows that the trace was none: it takes its place.

mod file;
pub mod fuzz;
mod recording;

pub use file::{TRACE_FILE_BYTES_MAX, TraceError};
pub use recording::{Joined, Recording};

/// The unit of a trace.
pub const PAGE_BYTES: u64 = 4096;
/// Ranges of one trace.
pub const RANGES_MAX: usize = 128 * 1024;
/// Pages of one trace: 2 GiB.
pub const PAGES_MAX: u64 = 512 * 1024;
/// Boots after which a trace is settled: no more are recorded.
pub const BOOTS_MAX: u32 = 8;

/// Which bytes a golden file had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoldenVersion {
    /// Of the image, zero where its format has none.
    pub unique_id: [u8; 16],
    /// Of the file, in bytes.
    pub len: u64,
    /// Nanoseconds since 1970.
    pub modified_ns: i64,
    /// The fingerprint of its seal: says more than times do.
    pub seal: Option<[u8; 32]>,
}

impl GoldenVersion {
    /// True when both are the same bytes, as far as can be told without reading them. A copy of a sealed file is.
    pub fn is(&self, other: &Self) -> bool {
        let same_bytes = match (self.seal, other.seal) {
            (Some(one), Some(other)) => one == other,
            _ => self.modified_ns == other.modified_ns,
        };
        self.unique_id == other.unique_id && self.len == other.len && same_bytes
    }
}

/// Pages that follow each other in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceRange {
    /// The number of the first page of the file.
    pub page: u64,
    pub pages: u32,
    /// Of the trace's boots, those that read them.
    pub boots: u32,
}

impl TraceRange {
    /// The page after the last one.
    pub fn end(&self) -> u64 {
        self.page.saturating_add(u64::from(self.pages))
    }

    /// Where in the file it begins, in bytes.
    pub fn offset(&self) -> u64 {
        self.page.saturating_mul(PAGE_BYTES)
    }

    pub fn bytes(&self) -> u64 {
        u64::from(self.pages) * PAGE_BYTES
    }
}

/// A trace, ordered by first reads. No page is in two ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootTrace {
    pub golden: GoldenVersion,
    /// Recorded boots in it, at least one.
    pub boots: u32,
    pub ranges: Vec<TraceRange>,
}

impl BootTrace {
    pub fn pages(&self) -> u64 {
        self.ranges.iter().map(|range| u64::from(range.pages)).sum()
    }

    pub fn bytes(&self) -> u64 {
        self.pages() * PAGE_BYTES
    }

    pub fn is_settled(&self) -> bool {
        self.boots >= BOOTS_MAX
    }

    /// The ranges that at least half of the boots read: what is worth reading before anybody asks.
    pub fn usual(&self) -> impl Iterator<Item = TraceRange> + '_ {
        self.ranges.iter().copied().filter(|range| u64::from(range.boots) * 2 >= u64::from(self.boots))
    }
}
