//! Fuzz entry points of the format: any bytes, no panic, no large allocation, no endless loop.
//!
//! Knows how to turn bytes into files worth opening. Does not know a fuzzer.

use super::create::{NewDisk, NewKind, ParentRef, create};
use super::footer::checksum;
use super::{FOOTER_BYTES, OpenMode, VhdImage, WriteRun, check, open_with, repair};
use crate::memory_file::{BeyondEnd, MemoryFile};
use crate::plan::{MetaBatch, NoRecords};
use crate::units::{Sector, SectorCount, SectorRange};
use uuid::Uuid;

/// Opens, walks and checks a file made of `data`: the bytes as they are, or, when the first byte is odd, as patches
/// (two bytes of place, one of value) of a good image whose checksums are made right again.
pub fn fuzz_vhd_open(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    if first % 2 == 0 {
        return look(&MemoryFile::of(rest));
    }
    let mut file = good_image(*first);
    for patch in rest.chunks_exact(3).take(64) {
        let place = u64::from(u16::from_be_bytes([patch[0], patch[1]])) % file.len().max(1);
        file.write(place, &patch[2..]);
    }
    mend(&mut file);
    look(&file);
}

/// Damages a good image with data, without making anything right again, and repairs it; the repair is cut off in each
/// place that it may be.
///
/// The first byte says the kind of image, and whether its last footer is lost. Three bytes a patch: two of place, from the
/// start of the file or (an odd value) from its end, and one of value.
///
/// # Panics
/// When a repair that is offered leaves damage, changes a disk that could be read and was to lose nothing, or when one that
/// was cut off cannot be gone on with.
pub fn fuzz_vhd_repair(data: &[u8]) {
    let Some((first, patches)) = data.split_first() else { return };
    let mut file = good_image(*first);
    fill_blocks(&mut file);
    for patch in patches.chunks_exact(3).take(16) {
        let place = u64::from(u16::from_be_bytes([patch[0], patch[1]])) % file.len().max(1);
        let place = if patch[2] % 2 == 1 { file.len() - 1 - place % 1024 } else { place };
        file.write(place, &patch[2..]);
    }
    if first & 0x40 != 0 {
        file.set_len(file.len() - FOOTER_BYTES as u64);
    }
    mend_and_look(&file);
}

fn good_image(variant: u8) -> MemoryFile {
    let block_size = 512 << 10;
    let kind = match variant / 2 % 3 {
        0 => NewKind::Fixed,
        1 => NewKind::Dynamic { block_size },
        _ => NewKind::Differencing {
            block_size,
            parent: ParentRef {
                unique_id: Uuid::from_u128(1),
                timestamp: 1,
                relative: "gold.vhd".to_owned(),
                absolute: Some("/gold.vhd".to_owned()),
            },
        },
    };
    let sectors = if kind == NewKind::Fixed { SectorCount(16) } else { SectorCount(5000) };
    let disk = NewDisk { kind, sectors, unique_id: Uuid::from_u128(2), timestamp: 2 };
    create(&disk).map_or_else(|_| MemoryFile::default(), |image| MemoryFile::created(&image))
}

/// Writes here and there, through the image, as its program does.
fn fill_blocks(file: &mut MemoryFile) {
    let opened = open_with(file.len(), OpenMode::Writable, |offset, bytes| file.read(offset, bytes));
    let Ok(mut image) = opened else { return };
    let mut batch = MetaBatch::default();
    // Places that are sampled.
    for sector in [0_u64, 77, 4056, 1092] {
        let range = SectorRange::between(Sector(sector), Sector(sector + 3));
        for _ in 0..8 {
            match image.write_run_at(sector, 3) {
                Ok(WriteRun::InPlace { offset, .. }) => {
                    image.write_resolved(range);
                    file.write(offset.0, &[sector as u8 | 1; 3 * 512]);
                    image.data_written(range, &mut NoRecords);
                    break;
                }
                Ok(WriteRun::Unallocated { .. }) if image.reserve(sector) == Ok(true) => continue,
                Ok(_) => {}
                Err(_) => return,
            }
            run_batches(&mut image, file, &mut batch);
        }
    }
    image.begin_close();
    run_batches(&mut image, file, &mut batch);
}

fn run_batches(image: &mut VhdImage, file: &mut MemoryFile, batch: &mut MetaBatch) {
    while image.next_meta_batch(batch) {
        file.run(batch);
        image.meta_batch_done(Ok(()));
    }
}

/// Makes the checksums of both footers and the header right.
fn mend(file: &mut MemoryFile) {
    let tail = file.len().saturating_sub(FOOTER_BYTES as u64);
    for (start, len, hole) in [(0, 512, 64), (512, 1024, 36), (tail, 512, 64)] {
        let mut structure = vec![0; len];
        if file.read(start, &mut structure).is_ok() {
            let sum = checksum(&structure, hole);
            file.write(start + hole as u64, &sum.to_be_bytes());
        }
    }
}

fn look(file: &MemoryFile) {
    let read = |offset, bytes: &mut [u8]| file.read(offset, bytes);
    let report = check::check(file.len(), read);
    assert!(report.is_ok(), "the check read beyond the end of the file");
    mend_and_look(file);
    let writable = open_with(file.len(), OpenMode::Writable, read).is_ok();
    assert!(sample(file).is_some() || !writable, "an image that opens for writing opens for reading");
}

/// What the disk reads here and there; `None` where the image does not open.
fn sample(file: &MemoryFile) -> Option<Vec<Option<[u8; 8]>>> {
    let opened = open_with(file.len(), OpenMode::ReadOnly, |offset, bytes| file.read(offset, bytes));
    let mut image = opened.ok()?;
    Some(file.sample(image.sectors().0, |sector, bitmap| {
        if let Some((request, bytes)) = bitmap {
            image.bitmap_loaded(request.block, request.ticket, bytes);
        }
        image.run_at(sector, 1 << 16)
    }))
}

fn plan(file: &MemoryFile) -> repair::RepairPlan {
    let plan = repair::plan(file.len(), |offset, bytes| file.read(offset, bytes), |_| true);
    plan.unwrap_or_else(|BeyondEnd| panic!("the repair read beyond the end of the file"))
}

fn is_clean(file: &MemoryFile) -> bool {
    let report = check::check(file.len(), |offset, bytes| file.read(offset, bytes));
    report.is_ok_and(|report| report.is_clean())
}

/// A repair that is planned leaves a clean image of the same disk; one that is cut off can be planned again.
fn mend_and_look(file: &MemoryFile) {
    let mending = plan(file);
    if mending.is_empty() {
        assert!(is_clean(file) || !mending.hopeless.is_empty(), "damage without a plan and without a word");
        return;
    }
    let mut after = file.clone();
    for copy in &mending.copies {
        let mut bytes = vec![0; copy.len as usize];
        let there = file.len().saturating_sub(copy.from).min(copy.len) as usize;
        assert!(file.read(copy.from, &mut bytes[..there]).is_ok(), "a copy from beyond the end of the file");
        after.write(copy.to, &bytes);
    }
    for stage in &mending.stages {
        let again = plan(&after);
        assert!(again.hopeless.is_empty(), "a repair that was cut off cannot be gone on with");
        stage.iter().for_each(|write| after.write(write.offset, &write.bytes));
    }
    assert!(after.len() == mending.len && is_clean(&after), "a repair left damage");
    if let (Some(before), false) = (sample(file), mending.loses_data()) {
        assert_eq!(Some(before), sample(&after), "a repair changed the disk");
    }
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
        for _ in 0..4000 {
            fuzz_vhd_open(&bytes(&mut rng, 200));
        }
        // Places that matter: header, table and footers.
        for _ in 0..4000 {
            let mut data = bytes(&mut rng, 40);
            if let Some(first) = data.first_mut() {
                *first |= 1;
            }
            for patch in data.get_mut(1..).unwrap_or_default().chunks_exact_mut(3) {
                patch[0] %= 6;
            }
            fuzz_vhd_open(&data);
        }
    }

    #[test]
    fn thousands_of_damaged_images_are_repaired_or_refused_and_never_worse() {
        let mut rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let mut repaired = 0;
        for round in 0..1500 {
            let mut data = bytes(&mut rng, 14);
            // Mostly the head: footer, header, table, the first bitmap.
            for patch in data.get_mut(1..).unwrap_or_default().chunks_exact_mut(3) {
                patch[0] %= if round % 2 == 0 { 20 } else { 3 };
            }
            fuzz_vhd_repair(&data);
            repaired += u32::from(data.len() > 3 && data[0] & 0x40 != 0);
        }
        assert!(repaired > 250, "{repaired} had lost their footers");
    }

    #[test]
    fn the_good_images_behind_the_patches_open() {
        for variant in [1, 3, 5] {
            let mut file = good_image(variant);
            let disk = sample(&file);
            fill_blocks(&mut file);
            let opened = open_with(file.len(), OpenMode::Writable, |offset, bytes| file.read(offset, bytes));
            assert_eq!(
                (opened.unwrap().statistics().allocated_blocks, is_clean(&file)),
                (if variant == 1 { 0 } else { 3 }, true)
            );
            assert!(disk.is_some() && disk != sample(&file), "the writes are seen");
        }
    }
}
