//! Fuzz entry points of the format: any bytes, no panic, no large allocation, no endless loop.
//!
//! Knows how to turn bytes into files worth opening. Does not know a fuzzer.

use super::create::{NewDisk, NewKind, ParentRef, create};
use super::footer::checksum;
use super::{FOOTER_BYTES, OpenMode, Run, check, open_with, repair};
use crate::units::SectorCount;
use uuid::Uuid;

/// Opens, walks and checks a file made of `data`: the bytes as they are, or, when the first byte is odd, as patches
/// (two bytes of place, one of value) of a good image whose checksums are made right again.
pub fn fuzz_vhd_open(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    if first % 2 == 0 {
        return look(rest);
    }
    let mut file = good_image(*first);
    for patch in rest.chunks_exact(3).take(64) {
        let place = usize::from(u16::from_be_bytes([patch[0], patch[1]])) % file.len().max(1);
        if let Some(byte) = file.get_mut(place) {
            *byte = patch[2];
        }
    }
    mend(&mut file);
    look(&file);
}

fn good_image(variant: u8) -> Vec<u8> {
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
    let Ok(image) = create(&disk) else { return Vec::new() };
    let mut file = vec![0; image.len as usize];
    for (offset, bytes) in &image.writes {
        let start = *offset as usize;
        if let Some(place) = file.get_mut(start..start + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
    file
}

/// Makes the checksums of both footers and the header right.
fn mend(file: &mut [u8]) {
    let tail = file.len().saturating_sub(FOOTER_BYTES);
    for (start, len, hole) in [(0, 512, 64), (512, 1024, 36), (tail, 512, 64)] {
        if let Some(structure) = file.get_mut(start..start + len) {
            let sum = checksum(structure, hole).to_be_bytes();
            structure[hole..hole + 4].copy_from_slice(&sum);
        }
    }
}

fn look(file: &[u8]) {
    let read = |offset: u64, bytes: &mut [u8]| -> Result<(), ()> {
        let start = usize::try_from(offset).map_err(drop)?;
        let end = start.checked_add(bytes.len()).ok_or(())?;
        bytes.copy_from_slice(file.get(start..end).ok_or(())?);
        Ok(())
    };
    let len = file.len() as u64;
    let report = check::check(len, read);
    assert!(report.is_ok(), "the check read beyond the end of the file");
    let plan = repair::plan(len, read, |_| true);
    assert!(plan.is_ok(), "the repair read beyond the end of the file");
    if let (Ok(report), Ok(plan)) = (report, plan) {
        let answered = report.is_clean() || !plan.is_empty() || !plan.hopeless.is_empty();
        assert!(answered, "damage without a plan and without a word");
    }
    let writable = open_with(len, OpenMode::Writable, read).is_ok();
    let Ok(mut image) = open_with(len, OpenMode::ReadOnly, read) else {
        assert!(!writable, "an image that opens for writing opens for reading");
        return;
    };
    let mut bitmap = Vec::new();
    for step in 0..64 {
        let sector = image.sectors().0 / 64 * step;
        for _ in 0..2 {
            match image.run_at(sector, 1 << 16) {
                Run::Present { offset, sectors } => {
                    assert!(
                        sectors > 0 && offset.0 + sectors * 512 <= len,
                        "a run beyond the end of the file"
                    );
                }
                Run::Absent { sectors } | Run::Zero { sectors } => assert!(sectors > 0, "an empty run"),
                Run::NeedBitmap(request) => {
                    bitmap.resize(request.len as usize, 0);
                    assert!(
                        read(request.offset.0, &mut bitmap).is_ok(),
                        "a bitmap beyond the end of the file"
                    );
                    image.bitmap_loaded(request.block, request.ticket, &bitmap);
                    continue;
                }
            }
            break;
        }
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
    fn the_good_images_behind_the_patches_open() {
        for variant in [1, 3, 5] {
            let file = good_image(variant);
            assert!(
                open_with(file.len() as u64, OpenMode::Writable, |offset, bytes| -> Result<(), ()> {
                    bytes.copy_from_slice(&file[offset as usize..][..bytes.len()]);
                    Ok(())
                })
                .is_ok()
            );
        }
    }
}
