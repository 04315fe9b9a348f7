//! Which footer to believe, and what of both must be written again.
//!
//! Knows the two copies, and which bytes of a damaged one can be restored for certain: those that are the same in every
//! file, and any single field that can be derived, when the checksum then agrees.

use super::{Read, RepairPlan, Step, fill};
use crate::units::SECTOR_BYTES;
use crate::vhd::edit::Write;
use crate::vhd::error::Structure;
use crate::vhd::footer::{self, Footer, NO_OFFSET};
use crate::vhd::geometry::Geometry;
use crate::vhd::open::tail_place;
use crate::vhd::{DiskType, FOOTER_BYTES};

/// How far before the end of the file the footer of a fixed disk is looked for.
const SEARCH_BYTES: u64 = 1 << 20;
const CHECKSUM: core::ops::Range<usize> = 64..68;
const DATA_OFFSET: core::ops::Range<usize> = 16..24;
const CURRENT_SIZE: core::ops::Range<usize> = 48..56;

/// A footer that is believed, and what remains to be done about the copies.
#[derive(Clone, Debug)]
pub(super) struct Ruler {
    pub(super) footer: Footer,
    bytes: [u8; FOOTER_BYTES],
    /// Where the data ends: at the tail footer, or, when that is lost, at the end of the file.
    pub(super) data_end: u64,
    tail: Tail,
    head: Option<Step>,
}

#[derive(Clone, Debug)]
enum Tail {
    /// It is whole, and stays where it is unless the file grows.
    Whole,
    /// It is to be written where it was.
    InPlace(Step),
    /// It is to be written behind everything: what is at the end of the file may be data.
    Behind(Step),
}

impl Ruler {
    pub(super) fn is_sparse(&self) -> bool {
        self.footer.disk_type != DiskType::Fixed
    }

    /// True when the end of the file is not marked by a footer: blocks may have been cut off.
    pub(super) fn tail_is_lost(&self) -> bool {
        matches!(self.tail, Tail::Behind(_))
    }

    /// The first byte behind all that the file holds now.
    pub(super) fn free_from(&self) -> u64 {
        let tail = if self.tail_is_lost() { 0 } else { FOOTER_BYTES as u64 };
        self.data_end + tail
    }

    /// Adds the footers: the one at the end first, behind `end`, and stable before the copy at the start.
    pub(super) fn finish(self, end: u64, plan: &mut RepairPlan) {
        let write = |offset| Write { offset, bytes: self.bytes.to_vec() };
        let mut first = Vec::new();
        match self.tail {
            Tail::Behind(step) => {
                plan.step(step);
                first.push(write(end));
            }
            Tail::InPlace(step) => {
                plan.step(step);
                first.push(write(if plan.copies.is_empty() { self.data_end } else { end }));
            }
            Tail::Whole if !plan.copies.is_empty() => first.push(write(end)),
            Tail::Whole => {}
        }
        if let Some(last) = first.last() {
            plan.len = last.offset + FOOTER_BYTES as u64;
            plan.stages.insert(0, first);
        }
        if let Some(step) = self.head {
            plan.step(step);
            plan.stages.push(vec![write(0)]);
        }
    }
}

fn step(structure: Structure, offset: u64, found: &str, action: &str) -> Step {
    Step { structure, offset, found: found.to_owned(), action: action.to_owned(), loss: None }
}

/// Every footer that may be believed, best first.
pub(super) fn rulers<E>(len: u64, read: &mut Read<'_, E>) -> Result<Vec<Ruler>, E> {
    let mut head_bytes = [0; FOOTER_BYTES];
    fill(read, len, 0, &mut head_bytes)?;
    let head = Footer::parse(&head_bytes, Structure::HeadFooter, 0).ok();
    let head = head.filter(|head| head.disk_type != DiskType::Fixed);
    let mut rulers = Vec::new();
    let place = tail_place(len);
    let mut tail_bytes = [0; FOOTER_BYTES];
    let mut tail = None;
    if let Some((at, count)) = place {
        fill(read, len, at, &mut tail_bytes[..count])?;
        tail = Footer::parse(&tail_bytes, Structure::TailFooter, at).ok();
        if tail.is_none() && is_meant(&tail_bytes) {
            return Ok(rulers);
        }
        if let Some(footer) = tail {
            let head_step = head_step(&footer, head.as_ref());
            rulers.push(Ruler {
                footer,
                bytes: tail_bytes,
                data_end: at,
                tail: Tail::Whole,
                head: head_step,
            });
        }
    }
    if let Some(footer) = head {
        rulers.extend(under_head(footer, head_bytes, place, tail.as_ref(), len));
    }
    if rulers.is_empty() {
        if let Some((at, _)) = place {
            rulers.extend(mended_tail(&tail_bytes, at, head.as_ref()));
        }
        rulers.extend(mended_head(&head_bytes, len));
        rulers.extend(searched(len, read)?);
    }
    Ok(rulers)
}

/// True for bytes that no accident made: a footer with a good checksum that says something we refuse is not damaged.
fn is_meant(bytes: &[u8; FOOTER_BYTES]) -> bool {
    let sum = footer::checksum(bytes, CHECKSUM.start);
    bytes[..8] == footer::COOKIE && bytes[CHECKSUM] == sum.to_be_bytes()
}

/// What the copy at the start needs when `tail` rules.
fn head_step(tail: &Footer, head: Option<&Footer>) -> Option<Step> {
    if tail.disk_type == DiskType::Fixed {
        return None;
    }
    let found = match head {
        Some(head) if head.agrees_with(tail) => return None,
        Some(_) => "differs from the footer at the end",
        None => "is damaged",
    };
    Some(step(Structure::HeadFooter, 0, found, "it is written again from the footer at the end"))
}

fn under_head(
    footer: Footer,
    bytes: [u8; FOOTER_BYTES],
    place: Option<(u64, usize)>,
    tail: Option<&Footer>,
    len: u64,
) -> Option<Ruler> {
    let action = "it is written again from the copy at the start";
    let (data_end, tail) = match (place, tail) {
        (Some(_), Some(tail)) if tail.agrees_with(&footer) => return None,
        (Some((at, _)), Some(_)) => {
            let found = "differs from the copy at the start, which fits the rest of the file";
            (at, Tail::InPlace(step(Structure::TailFooter, at, found, action)))
        }
        _ => {
            let at = len.next_multiple_of(SECTOR_BYTES);
            let place = place.map_or(at, |(at, _)| at);
            (at, Tail::Behind(step(Structure::TailFooter, place, "is lost", action)))
        }
    };
    Some(Ruler { footer, bytes, data_end, tail, head: None })
}

fn mended_tail(bytes: &[u8; FOOTER_BYTES], at: u64, head: Option<&Footer>) -> Option<Ruler> {
    let (bytes, footer) = mend(bytes, Some(at))?;
    let found = "is damaged, and what is damaged can be restored for certain";
    let tail = Tail::InPlace(step(Structure::TailFooter, at, found, "it is written again"));
    let head = head_step(&footer, head);
    Some(Ruler { footer, bytes, data_end: at, tail, head })
}

fn mended_head(bytes: &[u8; FOOTER_BYTES], len: u64) -> Option<Ruler> {
    let (bytes, footer) = mend(bytes, None)?;
    if footer.disk_type == DiskType::Fixed {
        return None;
    }
    let found = "is damaged, and what is damaged can be restored for certain";
    let head = Some(step(Structure::HeadFooter, 0, found, "it is written again"));
    let at = len.next_multiple_of(SECTOR_BYTES);
    let tail = step(Structure::TailFooter, at, "is lost", "it is written again from the copy at the start");
    Some(Ruler { footer, bytes, data_end: at, tail: Tail::Behind(tail), head })
}

/// The footer of a fixed disk whose file was made longer: it lies where the disk it describes ends.
fn searched<E>(len: u64, read: &mut Read<'_, E>) -> Result<Option<Ruler>, E> {
    let mut at = len / SECTOR_BYTES * SECTOR_BYTES;
    let stop = at.saturating_sub(SEARCH_BYTES);
    while at > stop {
        at -= SECTOR_BYTES;
        let mut bytes = [0; FOOTER_BYTES];
        fill(read, len, at, &mut bytes)?;
        let Ok(footer) = Footer::parse(&bytes, Structure::TailFooter, at) else { continue };
        if footer.disk_type != DiskType::Fixed || footer.sectors.bytes().0 != at {
            continue;
        }
        let end = len.next_multiple_of(SECTOR_BYTES);
        let found = "is followed by other bytes: the file was made longer";
        let tail = step(Structure::TailFooter, at, found, "it is written again at the end of the file");
        return Ok(Some(Ruler { footer, bytes, data_end: end, tail: Tail::Behind(tail), head: None }));
    }
    Ok(None)
}

/// Restores a damaged footer: first what is the same in every footer, then one field that can be derived, then the
/// checksum itself where everything else is confirmed. `data_end` is known for a footer at the end.
fn mend(bytes: &[u8; FOOTER_BYTES], data_end: Option<u64>) -> Option<([u8; FOOTER_BYTES], Footer)> {
    if bytes[CHECKSUM] == footer::checksum(bytes, CHECKSUM.start).to_be_bytes() {
        return None;
    }
    let mut constant = *bytes;
    constant[..8].copy_from_slice(&footer::COOKIE);
    constant[12..16].copy_from_slice(&footer::VERSION.to_be_bytes());
    constant[85..].fill(0);
    let parsed = |bytes: [u8; FOOTER_BYTES]| {
        Footer::parse(&bytes, Structure::TailFooter, 0).ok().map(|footer| (bytes, footer))
    };
    if let Some(found) = parsed(constant) {
        return Some(found);
    }
    let with = |range: core::ops::Range<usize>, value: &[u8]| {
        let mut bytes = constant;
        bytes[range].copy_from_slice(value);
        bytes
    };
    let mut guesses = vec![with(8..12, &2_u32.to_be_bytes()), with(8..12, &[0; 4])];
    guesses.extend([NO_OFFSET, FOOTER_BYTES as u64].map(|at| with(DATA_OFFSET, &at.to_be_bytes())));
    guesses.push(with(40..48, &constant[CURRENT_SIZE]));
    guesses.push(with(CURRENT_SIZE, &constant[40..48]));
    guesses.extend(data_end.map(|end| with(CURRENT_SIZE, &end.to_be_bytes())));
    guesses.push(with(84..85, &[0]));
    // The sum of bytes does not see them change places: what else says the size must agree.
    let agrees =
        |(_, footer): &([u8; FOOTER_BYTES], Footer)| footer.geometry == Geometry::of(footer.sectors.0);
    if let Some(found) = guesses.into_iter().find_map(|guess| parsed(guess).filter(agrees)) {
        return Some(found);
    }
    let sum = footer::checksum(&constant, CHECKSUM.start);
    let (bytes, footer) = parsed(with(CHECKSUM, &sum.to_be_bytes()))?;
    let size = footer.sectors.bytes().0;
    let confirmed = footer.geometry == Geometry::of(footer.sectors.0)
        && (footer.disk_type != DiskType::Fixed
            || (footer.data_offset == NO_OFFSET && Some(size) == data_end));
    confirmed.then_some((bytes, footer))
}
