//! The structure check: everything a reader relies on, looked at without a parent.
//!
//! Knows what is wrong with a file and how bad it is. Does not repair (`repair`), and does not judge guest data.

use super::error::Structure;
use super::image::{VhdxImage, Warning};
use super::open::{OpenError, open_with};
use super::region;
use super::{FileRange, HEADER_OFFSETS, MIB, REGION_TABLE_BYTES, REGION_TABLE_OFFSETS};
use crate::findings::Findings;
pub use crate::findings::Severity;
use crate::plan::OpenMode;

/// One sentence about one place.
pub type Finding = crate::findings::Finding<Structure>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub findings: Findings<Structure>,
    pub allocated_blocks: u64,
    /// Bytes of the file that belong to nothing.
    pub unreferenced_bytes: u64,
}

impl Report {
    /// No warning and no error.
    pub fn is_clean(&self) -> bool {
        self.findings.are_clean()
    }
}

/// Checks a VHDX of `len` bytes: headers, log, region tables, metadata, and every entry of the block table for its
/// state, its place and overlaps. `read` is as for [`open_with`].
///
/// # Errors
/// The error of `read`. What is wrong with the image is in the report.
pub fn check<E>(len: u64, mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>) -> Result<Report, E> {
    let mut report = Report::default();
    let image = match open_with(len, OpenMode::ReadOnly, &mut read) {
        Ok(image) => image,
        Err(OpenError::Read { source, .. }) => return Err(source),
        Err(OpenError::Vhdx(error)) => {
            report.findings.add(Severity::Error, error.structure, error.offset, error.to_string());
            return Ok(report);
        }
    };
    for warning in image.warnings() {
        let (structure, offset) = place_of(*warning, &image);
        report.findings.add(
            Severity::Warning,
            structure,
            offset,
            format!("{structure} (byte {offset}): {warning}"),
        );
    }
    check_second_table(&image, &mut read, &mut report)?;
    report.allocated_blocks = image.bat.allocated();
    report.unreferenced_bytes = unreferenced(&image);
    if report.unreferenced_bytes > 0 {
        let sentence = format!("{} bytes of the file belong to nothing", report.unreferenced_bytes);
        report.findings.add(Severity::Info, Structure::File, len, sentence);
    }
    Ok(report)
}

fn place_of(warning: Warning, image: &VhdxImage) -> (Structure, u64) {
    let of = |offsets: [u64; 2], copy: u8| offsets[usize::from(copy == 2)];
    match warning {
        Warning::HeaderDamaged(copy) => (Structure::Header(copy), of(HEADER_OFFSETS, copy)),
        Warning::HeadersAlike => (Structure::Header(2), HEADER_OFFSETS[1]),
        Warning::RegionTableDamaged(copy) => (Structure::RegionTable(copy), of(REGION_TABLE_OFFSETS, copy)),
        Warning::LogReplayed(_) => (Structure::Log, image.header.log_offset),
    }
}

/// Opening looks at the second region table only where the first is damaged.
fn check_second_table<E>(
    image: &VhdxImage,
    read: &mut impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    report: &mut Report,
) -> Result<(), E> {
    if image.warnings().iter().any(|warning| matches!(warning, Warning::RegionTableDamaged(_))) {
        return Ok(());
    }
    let [first_at, second_at] = REGION_TABLE_OFFSETS;
    let (mut first, mut second) = (vec![0; REGION_TABLE_BYTES], vec![0; REGION_TABLE_BYTES]);
    read(first_at, &mut first)?;
    read(second_at, &mut second)?;
    if let Some(replay) = &image.replay {
        replay.overlay.patch(first_at, &mut first);
        replay.overlay.patch(second_at, &mut second);
    }
    let structure = Structure::RegionTable(2);
    if !region::is_valid(&second) {
        let sentence = format!("{structure} (byte {second_at}): {}", Warning::RegionTableDamaged(2));
        report.findings.add(Severity::Warning, structure, second_at, sentence);
    } else if first != second {
        let sentence = format!("{structure} (byte {second_at}) differs from the first one, which is used");
        report.findings.add(Severity::Warning, structure, second_at, sentence);
    }
    Ok(())
}

/// Parts of the file, in steps of its grid, that no structure refers to.
fn unreferenced(image: &VhdxImage) -> u64 {
    let mut ranges: Vec<FileRange> = image.regions.all().collect();
    ranges.extend([FileRange { start: 0, end: MIB }, image.header.log()]);
    ranges.extend(image.bat.placed().filter_map(|(structure, entry)| {
        let start = entry.offset()?;
        let len = if matches!(structure, Structure::Block(_)) { image.layout.block_bytes() } else { MIB };
        Some(FileRange { start, end: start + len })
    }));
    // They do not overlap: opening made sure.
    let used: u64 = ranges.into_iter().map(FileRange::len).sum();
    image.file_len.next_multiple_of(MIB).saturating_sub(used)
}
