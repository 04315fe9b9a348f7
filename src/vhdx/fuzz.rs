//! Fuzz entry points of the format: any bytes, no panic, no large allocation, no endless loop.
//!
//! Knows how to turn bytes into files worth opening. Does not know a fuzzer.

use super::bat::{Bat, BlockState, Entry};
use super::create::{Frame, NewDisk, NewImage, NewKind, ParentRef};
use super::error::Structure;
use super::header::Header;
use super::log::{CHECKSUM_AT, DESCRIPTOR_BYTES, ENTRY_SIGNATURE, PAGE_SIGNATURE, RawEntry, ZERO_SIGNATURE};
use super::parent_locator::ParentPaths;
use super::{HEADER_BYTES, HEADER_OFFSETS, MIB, PAGE_BYTES, REGION_TABLE_BYTES, check, checksum};
use super::{open_with, repair, replay_with};
use crate::memory_file::{BeyondEnd, MemoryFile};
use crate::plan::{MetaOp, OpenMode};
use crate::units::{BlockSize, SectorCount};
use uuid::Uuid;

/// Blocks of the good images behind the patches.
const BLOCK_BYTES: u32 = 1 << 20;
const LOG_GUID: Uuid = Uuid::from_u128(9);

/// Opens, walks and checks a file made of `data`: the bytes as they are, or, when the first byte is odd, as patches of
/// a good image (one byte for the piece of it, two of place, one of value) whose checksums are made right again.
pub fn fuzz_vhdx_open(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    if first % 2 == 0 {
        return look(&MemoryFile::of(rest));
    }
    let mut image = good_image(*first, rest);
    patch(&mut image, rest);
    mend(&mut image);
    look(&MemoryFile::created(&image));
}

/// Damages a good image without making anything right again, and repairs it; the repair is cut off in each place that it
/// may be. Patches are those of [`fuzz_vhdx_open`].
///
/// # Panics
/// When a repair that is offered leaves damage or changes a disk that could be read, or when one that was cut off cannot be
/// gone on with.
pub fn fuzz_vhdx_repair(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let mut image = good_image(*first, rest);
    mend(&mut image);
    patch(&mut image, rest);
    mend_and_look(&MemoryFile::created(&image));
}

/// Replays the log of a good image whose log alone was changed (its checksum is right again): in memory, on the disk, and
/// on the disk after a replay that was cut off behind any of its operations.
///
/// # Panics
/// When the three do not give the same disk, when a replay writes beyond its file or leaves something to replay.
pub fn fuzz_vhdx_replay(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let mut image = good_image(first | 0x80, rest);
    let Some(log) = image.writes.iter().position(|(at, _)| *at == MIB) else { return };
    for patch in rest.chunks_exact(4).take(64) {
        let piece = &mut image.writes[log].1;
        let place = usize::from(u16::from_be_bytes([patch[1], patch[2]])) % piece.len().max(1);
        if let Some(byte) = piece.get_mut(place) {
            *byte = patch[3];
        }
    }
    mend(&mut image);
    replay_and_look(&MemoryFile::created(&image));
}

/// One byte for the piece, two of place, one of value.
fn patch(image: &mut NewImage, patches: &[u8]) {
    for patch in patches.chunks_exact(4).take(64) {
        let count = image.writes.len().max(1);
        let Some((_, piece)) = image.writes.get_mut(usize::from(patch[0]) % count) else { continue };
        // Everything that matters lies at the start of a piece, or at the start of its items.
        let items = if patch[0] & 0x80 != 0 && piece.len() > 64 << 10 { 64 << 10 } else { 0 };
        let place =
            items + usize::from(u16::from_be_bytes([patch[1], patch[2]])) % (piece.len() - items).max(1);
        if let Some(byte) = piece.get_mut(place) {
            *byte = patch[3];
        }
    }
}

/// Fixed, dynamic or differencing, some with a log.
fn good_image(variant: u8, seed: &[u8]) -> NewImage {
    let kind = match variant / 2 % 3 {
        0 => NewKind::Fixed,
        1 => NewKind::Dynamic,
        _ => NewKind::Differencing(ParentRef {
            data_write_guid: Uuid::from_u128(1),
            disk_id: Uuid::from_u128(2),
            paths: ParentPaths { relative: "gold.vhdx".to_owned(), ..ParentPaths::default() },
        }),
    };
    let logical_sector = if variant & 0x40 == 0 { BlockSize::B512 } else { BlockSize::B4096 };
    let disk = NewDisk {
        kind,
        sectors: SectorCount(5 * 2048 + 8),
        block_size: BLOCK_BYTES,
        logical_sector,
        physical_sector: BlockSize::B4096,
        file_write_guid: Uuid::from_u128(3),
        data_write_guid: Uuid::from_u128(4),
        disk_id: Uuid::from_u128(5),
    };
    let Ok(frame) = Frame::new(&disk) else { return NewImage { len: 0, writes: Vec::new() } };
    let (layout, first) = (frame.layout, (frame.data_start / MIB) as u32);
    let mut bat = Bat::empty(&layout);
    let full = if layout.differencing { BlockState::Partial } else { BlockState::Present };
    bat.set(1, Entry { state: BlockState::Present, mib: first });
    bat.set(3, Entry { state: full, mib: first + 2 });
    bat.set_bitmap(0, Entry { state: BlockState::Present, mib: first + 1 });
    let mut file = NewImage { len: frame.data_start + 3 * MIB, writes: frame.finish(&bat) };
    file.writes.push((u64::from(first + 1) * MIB, vec![0x5A; 2 * PAGE_BYTES]));
    if variant & 0x80 != 0 {
        add_log(&mut file, seed);
    }
    file
}

/// An entry with some descriptors, and headers that say so.
fn add_log(file: &mut NewImage, seed: &[u8]) {
    let mut log = vec![0; 3 * PAGE_BYTES];
    let pages = seed.first().map_or(0, |byte| usize::from(byte % 3));
    log[..4].copy_from_slice(&ENTRY_SIGNATURE);
    let mut put = |at: usize, bytes: &[u8]| log[at..at + bytes.len()].copy_from_slice(bytes);
    put(8, &(((1 + pages) * PAGE_BYTES) as u32).to_le_bytes());
    put(16, &7_u64.to_le_bytes());
    put(24, &(pages as u32 + 1).to_le_bytes());
    put(32, &LOG_GUID.to_bytes_le());
    put(48, &file.len.to_le_bytes());
    put(56, &(file.len + MIB).to_le_bytes());
    for index in 0..=pages {
        let at = size_of::<RawEntry>() + index * DESCRIPTOR_BYTES;
        put(at, if index < pages { &PAGE_SIGNATURE } else { &ZERO_SIGNATURE });
        put(at + 8, &(PAGE_BYTES as u64).to_le_bytes());
        // The table, the bitmap, the data, the end.
        let target = [3, 4, 5, 6][seed.get(1 + index).map_or(0, |byte| usize::from(byte % 4))] * MIB;
        put(at + 16, &target.to_le_bytes());
        put(at + 24, &7_u64.to_le_bytes());
    }
    for index in 0..pages {
        put((1 + index) * PAGE_BYTES, b"data");
        put((2 + index) * PAGE_BYTES - 4, &7_u32.to_le_bytes());
    }
    file.writes.push((MIB, log));
    for (at, piece) in &mut file.writes {
        let bytes: Option<[u8; HEADER_BYTES]> = piece.as_slice().try_into().ok();
        if HEADER_OFFSETS.contains(at)
            && let Some(header) = bytes.and_then(|bytes| Header::parse(&bytes))
        {
            *piece = Header { log_guid: LOG_GUID, ..header }.encode().to_vec();
        }
    }
}

/// Makes the checksums of headers, region tables and the log's entry right.
fn mend(file: &mut NewImage) {
    for (at, piece) in &mut file.writes {
        let len = match piece.len() {
            HEADER_BYTES | REGION_TABLE_BYTES => piece.len(),
            // The entry is as long as it says.
            _ if *at == MIB => piece.get(8..12).map_or(0, |four| {
                let length = u32::from_le_bytes([four[0], four[1], four[2], four[3]]) as usize;
                length.clamp(8, piece.len())
            }),
            _ => continue,
        };
        let Some(structure) = piece.get_mut(..len) else { continue };
        let sum = checksum(structure, CHECKSUM_AT).to_le_bytes();
        if let Some(place) = structure.get_mut(CHECKSUM_AT..CHECKSUM_AT + 4) {
            place.copy_from_slice(&sum);
        }
    }
}

fn look(file: &MemoryFile) {
    let read = |offset, bytes: &mut [u8]| file.read(offset, bytes);
    let report = check::check(file.len(), read);
    assert!(report.is_ok(), "the check read beyond the end of the file");
    let writable = open_with(file.len(), OpenMode::Writable, read).is_ok();
    mend_and_look(file);
    let Ok(image) = open_with(file.len(), OpenMode::ReadOnly, read) else {
        assert!(!writable, "an image that opens for writing opens for reading");
        return;
    };
    assert_eq!(writable, !image.needs_replay(), "what needs a replay is not opened for writing, all else is");
    let full = image.replay.as_ref().map_or(file.len(), |replay| replay.len);
    for (structure, entry) in image.bat.placed() {
        let len = if matches!(structure, Structure::Block(_)) { image.layout.block_bytes() } else { MIB };
        let end = entry.offset().unwrap_or(u64::MAX).saturating_add(len);
        assert!(end <= full, "{structure} lies beyond the end of the file");
    }
    replay_and_look(file);
}

/// The log in memory and the log in its places are the same disk, also when the writing was cut off.
fn replay_and_look(file: &MemoryFile) {
    let read = |offset, bytes: &mut [u8]| file.read(offset, bytes);
    let (Ok(image), Ok(batches)) =
        (open_with(file.len(), OpenMode::ReadOnly, read), replay_with(file.len(), read))
    else {
        return;
    };
    let full = image.replay.as_ref().map_or(file.len(), |replay| replay.len);
    let disk = sample(file);
    let mut after = file.clone();
    for batch in &batches {
        for op in &batch.ops {
            let end = match op {
                MetaOp::Write { offset, bytes } => offset.0 + bytes.len() as u64,
                MetaOp::Zero { offset, len } => offset.0 + len,
                MetaOp::SetLen { .. } | MetaOp::Sync => 0,
            };
            assert!(end <= full, "a replay beyond the file");
            after.run_op(op, &batch.bytes);
            assert_eq!(disk, sample(&after), "a replay that was cut off is another disk");
        }
    }
    let again = replay_with(after.len(), |offset, bytes| after.read(offset, bytes));
    assert!(again.is_ok_and(|left| left.is_empty()), "a replay left something to replay");
}

/// A repair that is planned leaves a clean image of the same disk; one that is cut off can be planned again.
fn mend_and_look(file: &MemoryFile) {
    let mending = plan(file);
    if !mending.hopeless.is_empty() {
        return;
    }
    let mut after = file.clone();
    for batch in &mending.batches {
        let again = plan(&after);
        assert!(again.hopeless.is_empty(), "a repair that was cut off cannot be gone on with");
        after.run(batch);
    }
    let report = check::check(after.len(), |offset, bytes| after.read(offset, bytes));
    assert!(report.is_ok_and(|report| report.is_clean()), "a repair left damage");
    assert_eq!(sample(file), sample(&after), "a repair changed the disk");
}

fn plan(file: &MemoryFile) -> repair::RepairPlan {
    let plan = repair::plan(file.len(), |offset, bytes| file.read(offset, bytes));
    plan.unwrap_or_else(|BeyondEnd| panic!("the repair read beyond the end of the file"))
}

/// What the disk reads here and there; empty where the image does not open. A log that makes the file longer is not run:
/// what lies behind its present end is no sample.
fn sample(file: &MemoryFile) -> Vec<Option<[u8; 8]>> {
    let opened = open_with(file.len(), OpenMode::ReadOnly, |offset, bytes| file.read(offset, bytes));
    let Ok(mut image) = opened else { return Vec::new() };
    let mut longer = file.clone();
    if let Some(replay) = &image.replay {
        longer.set_len(replay.len.max(file.len()));
    }
    longer.sample(image.sectors().0, |sector, bitmap| {
        if let Some((request, bytes)) = bitmap {
            image.bitmap_loaded(request.block, request.ticket, bytes);
        }
        image.run_at(sector, 1 << 16)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::Rng;
    use proptest::test_runner::{RngAlgorithm, TestRng};

    fn bytes(rng: &mut TestRng, most: u32) -> Vec<u8> {
        let mut data = vec![0; (rng.next_u32() % most) as usize];
        rng.fill_bytes(&mut data);
        data
    }

    #[test]
    fn thousands_of_patched_and_random_files_do_no_harm() {
        let mut rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        for _ in 0..500 {
            fuzz_vhdx_open(&bytes(&mut rng, 2000));
        }
        for _ in 0..1500 {
            let mut data = bytes(&mut rng, 24);
            if let Some(first) = data.first_mut() {
                *first |= 1;
            }
            for patch in data.get_mut(1..).unwrap_or_default().chunks_exact_mut(4) {
                // The first bytes of a piece matter most.
                patch[1] = 0;
            }
            fuzz_vhdx_open(&data);
        }
    }

    #[test]
    fn hundreds_of_damaged_images_are_repaired_or_refused_and_never_worse() {
        let mut rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        for _ in 0..400 {
            let mut data = bytes(&mut rng, 18);
            for patch in data.get_mut(1..).unwrap_or_default().chunks_exact_mut(4) {
                patch[1] = 0;
            }
            fuzz_vhdx_repair(&data);
        }
    }

    #[test]
    fn hundreds_of_logs_are_replayed_alike_in_memory_on_the_disk_and_after_a_cut() {
        let mut rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        for round in 0..400 {
            let mut data = bytes(&mut rng, 30);
            for patch in data.get_mut(1..).unwrap_or_default().chunks_exact_mut(4) {
                // The head of the entry and its descriptors, then anywhere.
                patch[1] %= if round % 2 == 0 { 1 } else { 64 };
            }
            fuzz_vhdx_replay(&data);
        }
    }

    #[test]
    fn the_good_images_behind_the_patches_open() {
        for variant in [1_u8, 3, 5] {
            for flags in [0, 0x40, 0x80, 0xC0] {
                let mut mended = good_image(variant | flags, &[1, 0]);
                mend(&mut mended);
                let file = MemoryFile::created(&mended);
                let image = open_with(file.len(), OpenMode::ReadOnly, |at, bytes| file.read(at, bytes));
                let image = image.map_err(|error| format!("{error:?}")).unwrap();
                assert_eq!(image.needs_replay(), flags & 0x80 != 0, "{variant} {flags:x}");
            }
        }
    }
}
