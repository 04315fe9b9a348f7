//! The structure check: everything a reader relies on, looked at without a parent.
//!
//! Knows what is wrong with a file and how bad it is. Does not repair (`repair`), and does not judge guest data.

use super::bat::FileRange;
use super::block_bitmap::BlockBitmap;
use super::error::Structure;
use super::image::{Body, OpenMode, Sparse, VhdImage, Warning};
use super::layout::Layout;
use super::open::{OpenError, open_with};
use crate::units::{BlockIndex, SECTOR_BYTES};

/// Findings kept; a file with more is beyond listing.
const FINDINGS_MAX: usize = 1000;
/// Bytes read at once where data must be zero.
const PIECE_BYTES: u64 = 64 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Allowed, and worth knowing.
    Info,
    /// Readers may differ about the content, or it must be repaired before a write.
    Warning,
    /// The image does not open.
    Error,
}

/// One sentence about one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    pub structure: Structure,
    /// In the file, in bytes.
    pub offset: u64,
    pub sentence: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub findings: Vec<Finding>,
    pub allocated_blocks: u64,
    /// Bytes before the footer that belong to nothing.
    pub leaked_bytes: u64,
}

impl Report {
    /// No warning and no error.
    pub fn is_clean(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity == Severity::Info)
    }

    fn add(&mut self, severity: Severity, structure: Structure, offset: u64, sentence: String) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(Finding { severity, structure, offset, sentence });
        }
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
            report.add(Severity::Error, error.structure, error.offset, error.to_string());
            return Ok(report);
        }
    };
    add_warnings(&image, &mut report);
    if len % SECTOR_BYTES == SECTOR_BYTES - 1 {
        let sentence = "the footer has 511 bytes, as creators before Virtual PC 2004 wrote it".to_owned();
        report.add(Severity::Info, Structure::TailFooter, image.footer_offset, sentence);
    }
    if image.geometry().sectors() > image.sectors().0 {
        let sentence =
            "the geometry has more sectors than the disk; other tools may show a wrong size".to_owned();
        report.add(Severity::Info, Structure::TailFooter, image.footer_offset, sentence);
    }
    if let Body::Sparse(sparse) = &image.body {
        report.allocated_blocks = sparse.allocated;
        for (block, entry) in sparse.bat.allocated() {
            check_block(sparse, block, entry, &mut read, &mut report)?;
        }
        report.leaked_bytes = leaked_bytes(sparse, image.footer_offset);
        if report.leaked_bytes > 0 {
            let sentence = format!("{} bytes before the footer belong to nothing", report.leaked_bytes);
            report.add(Severity::Info, Structure::File, image.footer_offset, sentence);
        }
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
        report.add(severity, structure, offset, warning.to_string());
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
    let mut bytes = vec![0; layout.bitmap_bytes() as usize];
    let offset = Layout::bitmap_offset(entry).0;
    read(offset, &mut bytes)?;
    let bitmap = BlockBitmap::from_bytes(layout.block_sectors, &bytes);
    let valid = layout.valid_sectors(block);
    if sparse.differencing {
        let beyond = layout.block_sectors - valid;
        if beyond > 0 && bitmap.run_at(valid, beyond) != (false, beyond) {
            let sentence = format!("the bitmap of block {} has bits beyond the end of the disk", block.0);
            report.add(Severity::Warning, Structure::BlockBitmap(block), offset, sentence);
        }
        return Ok(());
    }
    let mut at = 0;
    while at < valid {
        let (present, sectors) = bitmap.run_at(at, valid - at);
        if !present && !reads_zero(layout.data_offset(entry, at).0, u64::from(sectors) * SECTOR_BYTES, read)?
        {
            let sentence = format!("block {} has data in sectors its bitmap calls unwritten", block.0);
            report.add(Severity::Warning, Structure::Block(block), layout.data_offset(entry, at).0, sentence);
            return Ok(());
        }
        at += sectors;
    }
    Ok(())
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

/// Blocks do not overlap each other or the metadata, so their sizes add up.
fn leaked_bytes(sparse: &Sparse, data_end: u64) -> u64 {
    let blocks = sparse.allocated * sparse.layout.stored_sectors() * SECTOR_BYTES;
    let metadata: u64 = sparse.metadata.iter().map(|range: &FileRange| range.end - range.start).sum();
    data_end.saturating_sub(blocks + metadata)
}
