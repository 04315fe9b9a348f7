//! What it costs to refuse a file: memory, and bytes read of it.
//!
//! A file that is no image, or a damaged one, must not hurt whoever looks at it: less than 64 MiB of memory, and so few
//! reads that a second is enough. Reads and bytes are counted here, not time.

use crate::counting::measure;
use goldrush::plan::OpenMode;
use goldrush::units::{BlockSize, SectorCount};
use goldrush::{vhd, vhdx};
use std::fs::File;
use std::os::unix::fs::FileExt;
use uuid::Uuid;

const MEMORY_MAX: u64 = 64 << 20;
/// A table of 32 MiB is the largest that is made here; nothing is read much more than once.
const READ_MAX: u64 = 100 << 20;
const READS_MAX: u64 = 4096;

/// What an attempt to open a file cost.
#[derive(Debug)]
struct Cost {
    look: Look,
    memory: u64,
    bytes: u64,
    reads: u64,
}

impl Cost {
    fn check(&self, what: &str) {
        // A repair is tried under several footers, and each plan is proved.
        let times = if self.look == Look::Repair { 8 } else { 1 };
        let fair =
            self.memory < MEMORY_MAX && self.bytes < times * READ_MAX && self.reads < times * READS_MAX;
        assert!(fair, "{what}: {self:?}");
    }
}

/// Who looks at a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Open,
    Check,
    /// Plans it, which checks the file as it is and as it would be.
    Repair,
}

const LOOKS: [Look; 3] = [Look::Open, Look::Check, Look::Repair];

/// Looks at `len` bytes as at a VHD or a VHDX. False: it is not opened, or not clean.
fn cost(is_vhdx: bool, look: Look, len: u64, fill: impl Fn(u64, &mut [u8])) -> (bool, Cost) {
    let (mut bytes, mut reads) = (0, 0);
    let read = |offset: u64, buffer: &mut [u8]| -> Result<(), ()> {
        assert!(offset + buffer.len() as u64 <= len, "a read beyond the end");
        bytes += buffer.len() as u64;
        reads += 1;
        fill(offset, buffer);
        Ok(())
    };
    let (good, memory) = measure(|| match (look, is_vhdx) {
        (Look::Open, true) => vhdx::open_with(len, OpenMode::ReadOnly, read).is_ok(),
        (Look::Open, false) => vhd::open_with(len, OpenMode::ReadOnly, read).is_ok(),
        (Look::Check, true) => vhdx::check::check(len, read).is_ok_and(|report| report.is_clean()),
        (Look::Check, false) => vhd::check::check(len, read).is_ok_and(|report| report.is_clean()),
        (Look::Repair, true) => {
            vhdx::repair::plan(len, read).is_ok_and(|plan| plan.steps.is_empty() && plan.hopeless.is_empty())
        }
        (Look::Repair, false) => vhd::repair::plan(len, read, |_| true)
            .is_ok_and(|plan| plan.is_empty() && plan.hopeless.is_empty()),
    });
    (good, Cost { look, memory, bytes, reads })
}

/// Fills a buffer from pieces; what none holds is zero.
fn from_pieces(pieces: &[(u64, Vec<u8>)], offset: u64, buffer: &mut [u8]) {
    buffer.fill(0);
    for (at, data) in pieces {
        let (start, end) = (offset.max(*at), (offset + buffer.len() as u64).min(at + data.len() as u64));
        if start < end {
            buffer[(start - offset) as usize..(end - offset) as usize]
                .copy_from_slice(&data[(start - at) as usize..(end - at) as usize]);
        }
    }
}

#[test]
fn no_file_of_the_corpus_is_dear_to_open_or_to_refuse() {
    let packed = include_bytes!("../corpus/vhd-corpus.tar.zst");
    let mut archive = tar::Archive::new(zstd::stream::read::Decoder::new(&packed[..]).unwrap());
    let mut seen = 0;
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let Some(ending) = path.extension().and_then(|ending| ending.to_str()) else { continue };
        // Larger ones are all holes at their ends and cost the same.
        if !matches!(ending, "vhd" | "vhdx") || entry.size() > 128 << 20 {
            continue;
        }
        let file: File = tempfile::tempfile().unwrap();
        std::io::copy(&mut entry, &mut &file).unwrap();
        let len = file.metadata().unwrap().len();
        let fill = |offset: u64, buffer: &mut [u8]| file.read_exact_at(buffer, offset).unwrap();
        // As what it is, and as what it is not.
        for is_vhdx in [false, true] {
            for look in LOOKS {
                // Where it opens, a check looks at the data that its bitmaps call unwritten, however much that is.
                let (good, cost) = cost(is_vhdx, look, len, fill);
                if !good || look == Look::Open {
                    cost.check(&path.display().to_string());
                }
            }
        }
        seen += 1;
    }
    assert!(seen > 150, "{seen}");
}

#[test]
fn a_vhdx_that_claims_the_largest_disk_costs_little_to_refuse() {
    let disk = vhdx::create::NewDisk {
        kind: vhdx::create::NewKind::Dynamic,
        sectors: SectorCount((64 << 40) / 512),
        block_size: 16 << 20,
        logical_sector: BlockSize::B512,
        physical_sector: BlockSize::B4096,
        file_write_guid: Uuid::from_u128(1),
        data_write_guid: Uuid::from_u128(2),
        disk_id: Uuid::from_u128(3),
    };
    let image = vhdx::create::create(&disk).unwrap();
    let table = 3 << 20;
    // Every block is there, and the last of four million lies over the one before it.
    let (blocks, ratio) = ((64_u64 << 40) / (16 << 20), 256);
    let start = image.len >> 20;
    let last = blocks - 1;
    let entry = |index: u64| {
        if index % (ratio + 1) == ratio {
            return 0;
        }
        let block = index - index / (ratio + 1);
        let place = if block == last { last - 1 } else { block };
        if block > last { 0 } else { (start + place * 16) << 20 | 6 }
    };
    let fill = |offset: u64, buffer: &mut [u8]| {
        from_pieces(&image.writes, offset, buffer);
        if (table..image.len).contains(&offset) {
            for (index, eight) in buffer.chunks_exact_mut(8).enumerate() {
                eight.copy_from_slice(&entry((offset - table) / 8 + index as u64).to_le_bytes());
            }
        }
    };
    for look in LOOKS {
        let (good, cost) = cost(true, look, image.len + (64 << 40), fill);
        assert!(!good);
        cost.check("four million blocks");
        assert!(cost.bytes > 32 << 20, "it was looked at: {cost:?}");
    }
}

#[test]
fn a_vhd_that_claims_the_largest_disk_costs_little_to_refuse() {
    let kind = vhd::create::NewKind::Dynamic { block_size: 512 << 10 };
    // So large that the file of all its blocks is just below what a table entry can say.
    let sectors = SectorCount(4_000_000 * 1024);
    let disk = vhd::create::NewDisk { kind, sectors, unique_id: Uuid::from_u128(1), timestamp: 1 };
    let image = vhd::create::create(&disk).unwrap();
    let table = image.writes[2].0;
    let blocks = sectors.0 / 1024;
    let (start, len) = (image.len / 512, image.len + blocks * 1025 * 512 - 512);
    let footer = image.writes[0].1.clone();
    let entry =
        |block: u64| if block >= blocks { u32::MAX } else { (start + block.min(blocks - 2) * 1025) as u32 };
    let fill = |offset: u64, buffer: &mut [u8]| {
        from_pieces(&image.writes[..2], offset, buffer);
        if offset == len - 512 {
            buffer.copy_from_slice(&footer);
        } else if (table..image.len - 512).contains(&offset) {
            for (index, four) in buffer.chunks_exact_mut(4).enumerate() {
                four.copy_from_slice(&entry((offset - table) / 4 + index as u64).to_be_bytes());
            }
        }
    };
    // Repairing it looks at the bitmaps of all its blocks, which is no refusal.
    for look in [Look::Open, Look::Check] {
        let (good, cost) = cost(false, look, len, fill);
        assert!(!good);
        cost.check("four million blocks");
        assert!(cost.bytes > 15 << 20, "it was looked at: {cost:?}");
    }
}

#[test]
fn a_log_full_of_entries_that_claim_it_all_costs_one_look() {
    let disk = vhdx::create::NewDisk {
        kind: vhdx::create::NewKind::Dynamic,
        sectors: SectorCount(1 << 20),
        block_size: 1 << 20,
        logical_sector: BlockSize::B512,
        physical_sector: BlockSize::B4096,
        file_write_guid: Uuid::from_u128(1),
        data_write_guid: Uuid::from_u128(2),
        disk_id: Uuid::from_u128(3),
    };
    let mut image = vhdx::create::create(&disk).unwrap();
    let log_at = image.len.next_multiple_of(1 << 20);
    for (at, bytes) in &mut image.writes {
        let whole: Result<[u8; 4096], _> = bytes.as_slice().try_into();
        if let (true, Ok(whole)) = (vhdx::HEADER_OFFSETS.contains(at), whole) {
            let header = vhdx::header::Header::parse(&whole).unwrap();
            let log_guid = Uuid::from_u128(9);
            *bytes = vhdx::header::Header { log_guid, log_offset: log_at, log_length: 16 << 20, ..header }
                .encode()
                .to_vec();
        }
    }
    let fill = |offset: u64, buffer: &mut [u8]| {
        from_pieces(&image.writes, offset, buffer);
        if offset == log_at {
            for (index, sector) in buffer.chunks_exact_mut(4096).enumerate() {
                // Each says that it is the whole log.
                sector[..4].copy_from_slice(b"loge");
                sector[8..12].copy_from_slice(&(16_u32 << 20).to_le_bytes());
                sector[16..24].copy_from_slice(&(index as u64 + 1).to_le_bytes());
                sector[32..48].copy_from_slice(&Uuid::from_u128(9).to_bytes_le());
            }
        }
    };
    for look in LOOKS {
        let (good, cost) = cost(true, look, log_at + (16 << 20), fill);
        assert!(!good);
        cost.check("a log of 16 MiB");
        assert!(cost.bytes > 16 << 20, "it was looked at: {cost:?}");
    }
}

#[test]
fn a_child_vhdx_is_opened_by_its_head() {
    let parent = vhdx::create::ParentRef {
        data_write_guid: Uuid::from_u128(1),
        disk_id: Uuid::from_u128(2),
        paths: vhdx::parent_locator::ParentPaths { relative: "golden.vhdx".to_owned(), ..Default::default() },
    };
    let disk = vhdx::create::NewDisk {
        kind: vhdx::create::NewKind::Differencing(parent),
        sectors: SectorCount((40 << 30) / 512),
        block_size: vhdx::create::CHILD_BLOCK_BYTES_DEFAULT,
        logical_sector: BlockSize::B512,
        physical_sector: BlockSize::B4096,
        file_write_guid: Uuid::from_u128(3),
        data_write_guid: Uuid::from_u128(4),
        disk_id: Uuid::from_u128(2),
    };
    let image = vhdx::create::create(&disk).unwrap();
    // As long as a child that was written to: its blocks are not looked at.
    let fill = |offset: u64, buffer: &mut [u8]| from_pieces(&image.writes, offset, buffer);
    let (opened, cost) = cost(true, Look::Open, image.len + (8 << 30), fill);
    // Both headers, a region table, the metadata, and eight bytes for each of 20,480 blocks.
    assert!(opened && cost.bytes < 256 << 10 && cost.reads < 24 && cost.memory < 256 << 10, "{cost:?}");
}

#[test]
fn a_child_vhd_is_opened_by_its_head() {
    let parent = vhd::create::ParentRef {
        unique_id: Uuid::from_u128(1),
        timestamp: 1,
        relative: "golden.vhd".to_owned(),
        absolute: Some("/srv/golden.vhd".to_owned()),
    };
    let kind = vhd::create::NewKind::Differencing { block_size: 2 << 20, parent };
    let sectors = SectorCount((40 << 30) / 512);
    let disk = vhd::create::NewDisk { kind, sectors, unique_id: Uuid::from_u128(2), timestamp: 1 };
    let image = vhd::create::create(&disk).unwrap();
    // Its first block is there, and the footer lies behind eight GiB.
    let table = image.len - 512 - 20_480 * 4;
    let (len, footer) = (image.len + (8 << 30), image.writes[0].1.clone());
    let fill = |offset: u64, buffer: &mut [u8]| {
        from_pieces(&image.writes, offset, buffer);
        if offset == len - 512 {
            buffer.copy_from_slice(&footer);
        } else if offset == table {
            buffer[..4].copy_from_slice(&((image.len / 512) as u32).to_be_bytes());
        }
    };
    let (opened, cost) = cost(false, Look::Open, len, fill);
    // Both footers, the header, the locators, and four bytes for each of 20,480 blocks.
    assert!(opened && cost.bytes < 128 << 10 && cost.reads < 24 && cost.memory < 512 << 10, "{cost:?}");
}
