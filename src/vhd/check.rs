//! The structure check: everything a reader relies on, looked at without a parent.
//!
//! Knows what is wrong with a file and how bad it is. Does not repair (`repair`), and does not judge guest data.

use super::bat::FileRange;
use super::block_bitmap::BlockBitmap;
use super::error::Structure;
use super::gaps::{gaps, slots};
use super::image::{Body, OpenMode, Sparse, VhdImage, Warning};
use super::layout::Layout;
use super::open::{OpenError, open_with};
use crate::findings::Findings;
pub use crate::findings::Severity;
use crate::units::{BlockIndex, SECTOR_BYTES};

/// Bytes read at once where data must be zero.
const PIECE_BYTES: u64 = 64 * 1024;

/// One sentence about one place.
pub type Finding = crate::findings::Finding<Structure>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub findings: Findings<Structure>,
    pub allocated_blocks: u64,
    /// Bytes before the footer that belong to nothing and are no padding.
    pub unreferenced_bytes: u64,
    /// Whole blocks that fit there: prepared, lost by a crash, or freed.
    pub orphaned_blocks: u64,
}

impl Report {
    /// No warning and no error.
    pub fn is_clean(&self) -> bool {
        self.findings.are_clean()
    }
}

/// Checks a VHD of `len` bytes: footers, header, table, overlaps, bitmaps, and in a dynamic disk that what its bitmaps
/// call unwritten is zero. `read` is as for [`open_with`].
///
/// # Errors
/// The error of `read`. What is wrong with the image is in the report.
pub fn check<E>(len: u64, mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>) -> Result<Report, E> {
    let mut report = Report::default();
    let image = match open_with(len, OpenMode::ReadOnly, &mut read) {
        Ok(image) => image,
        Err(OpenError::Read { source, .. }) => return Err(source),
        Err(OpenError::Vhd(error)) => {
            report.findings.add(Severity::Error, error.structure, error.offset, error.to_string());
            return Ok(report);
        }
    };
    add_warnings(&image, &mut report);
    if len % SECTOR_BYTES == SECTOR_BYTES - 1 {
        let sentence = "the footer has 511 bytes, as creators before Virtual PC 2004 wrote it".to_owned();
        report.findings.add(Severity::Info, Structure::TailFooter, image.footer_offset, sentence);
    }
    if image.geometry().sectors() > image.sectors().0 {
        let sentence =
            "the geometry has more sectors than the disk; other tools may show a wrong size".to_owned();
        report.findings.add(Severity::Info, Structure::TailFooter, image.footer_offset, sentence);
    }
    if let Body::Sparse(sparse) = &image.body {
        report.allocated_blocks = sparse.allocated;
        for (block, entry) in sparse.bat.allocated() {
            check_block(sparse, block, entry, &mut read, &mut report)?;
        }
        add_gaps(sparse, image.footer_offset, &mut report);
    }
    Ok(report)
}

fn add_warnings(image: &VhdImage, report: &mut Report) {
    for warning in image.warnings() {
        let (severity, structure, offset) = match warning {
            Warning::TailFooterLost(offset) => (Severity::Warning, Structure::TailFooter, *offset),
            Warning::HeadFooterDamaged | Warning::FootersDiffer => {
                (Severity::Warning, Structure::HeadFooter, 0)
            }
            Warning::LocatorDamaged(index) => {
                (Severity::Warning, Structure::ParentLocator(*index), image.footer.data_offset)
            }
            Warning::UnreferencedBytes(_) => (Severity::Info, Structure::File, image.footer_offset),
        };
        report.findings.add(severity, structure, offset, warning.to_string());
    }
}

fn check_block<E>(
    sparse: &Sparse,
    block: BlockIndex,
    entry: u32,
    read: &mut impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    report: &mut Report,
) -> Result<(), E> {
    let layout = &sparse.layout;
    let fault = bitmap_fault(layout, sparse.differencing, block, entry, read)?;
    if let Some(fault) = fault {
        let (structure, offset) = match fault {
            BitmapFault::BeyondTheDisk => (Structure::BlockBitmap(block), Layout::bitmap_offset(entry).0),
            BitmapFault::DataUnderClearBits { offset } => (Structure::Block(block), offset),
        };
        report.findings.add(
            Severity::Warning,
            structure,
            offset,
            format!("{structure} {}", fault.sentence()),
        );
    }
    Ok(())
}

/// What a block's bitmap cannot rightly say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BitmapFault {
    BeyondTheDisk,
    DataUnderClearBits { offset: u64 },
}

impl BitmapFault {
    pub(super) fn sentence(self) -> String {
        match self {
            Self::BeyondTheDisk => "has bits beyond the end of the disk".to_owned(),
            Self::DataUnderClearBits { offset } => {
                format!("has data at byte {offset} of the file, in sectors its bitmap calls unwritten")
            }
        }
    }
}

/// The fault of the bitmap of `block`, whose table entry is `entry`.
pub(super) fn bitmap_fault<E>(
    layout: &Layout,
    differencing: bool,
    block: BlockIndex,
    entry: u32,
    read: &mut impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<Option<BitmapFault>, E> {
    let mut bytes = vec![0; layout.bitmap_bytes() as usize];
    read(Layout::bitmap_offset(entry).0, &mut bytes)?;
    let bitmap = BlockBitmap::from_bytes(layout.block_sectors, &bytes);
    let valid = layout.valid_sectors(block);
    if differencing {
        let beyond = layout.block_sectors - valid;
        let clear = beyond == 0 || bitmap.run_at(valid, beyond) == (false, beyond);
        return Ok((!clear).then_some(BitmapFault::BeyondTheDisk));
    }
    let mut at = 0;
    while at < valid {
        let (present, sectors) = bitmap.run_at(at, valid - at);
        let offset = layout.data_offset(entry, at).0;
        if !present && !reads_zero(offset, u64::from(sectors) * SECTOR_BYTES, read)? {
            return Ok(Some(BitmapFault::DataUnderClearBits { offset }));
        }
        at += sectors;
    }
    Ok(None)
}

fn reads_zero<E>(
    offset: u64,
    len: u64,
    read: &mut impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<bool, E> {
    let mut bytes = vec![0; PIECE_BYTES.min(len) as usize];
    let mut done = 0;
    while done < len {
        let piece = &mut bytes[..PIECE_BYTES.min(len - done) as usize];
        read(offset + done, piece)?;
        if piece.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        done += piece.len() as u64;
    }
    Ok(true)
}

fn add_gaps(sparse: &Sparse, data_end: u64, report: &mut Report) {
    let mut parts = sparse.metadata.clone();
    let stored = sparse.layout.stored_sectors() * SECTOR_BYTES;
    parts.extend(sparse.bat.allocated().map(|(_, entry)| {
        let start = u64::from(entry) * SECTOR_BYTES;
        FileRange { start, end: start + stored }
    }));
    for gap in gaps(parts, data_end) {
        let bytes = gap.end - gap.start;
        let blocks = slots(gap, &sparse.layout).len() as u64;
        report.unreferenced_bytes += bytes;
        report.orphaned_blocks += blocks;
        let room = if blocks == 0 { String::new() } else { format!(", room for {blocks} blocks") };
        let sentence =
            format!("nothing refers to {bytes} bytes of the file{room}; compacting takes our own back");
        report.findings.add(Severity::Info, Structure::File, gap.start, sentence);
    }
}
