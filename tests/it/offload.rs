//! Copies that an initiator asks for and the server makes: through the real program.
//!
//! Knows the commands Windows sends for an offloaded copy, in its order, and EXTENDED COPY lists. What a token stands
//! for while others write is the executor's affair, and tested there.

use crate::cli::Desk;
use crate::cli_masking::serve;
use crate::raw_initiator::RawInitiator;

const RAW: &str = "iqn.2026-11.io.goldrush:raw";
pub const GOOD: u8 = 0;
pub const CHECK_CONDITION: u8 = 2;
pub const UNREACHABLE: (u8, u8) = (0x0D, 0x02);

pub fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// A disk in which every sector tells its number and that of the disk.
pub fn disk(desk: &Desk, number: u8) -> Vec<u8> {
    let sectors = (0..2048_u16).flat_map(|at| [&at.to_be_bytes()[..], &[number; 510]].concat());
    let bytes: Vec<u8> = sectors.collect();
    desk.write(&format!("disk-{number}.raw"), &bytes);
    bytes
}

pub fn lun(lun: u8, disk: u8, keys: &str) -> String {
    format!("[[target.lun]]\nlun = {lun}\npath = \"disk-{disk}.raw\"\n{keys}\n")
}

pub fn log_in(port: u16, target: &str) -> RawInitiator {
    let mut initiator = RawInitiator::connect(port);
    assert_eq!(initiator.login(&format!("iqn.2026-11.io.goldrush:{target}"), 1).unwrap(), (0, 0));
    initiator
}

fn vital_page(initiator: &mut RawInitiator, page: u8) -> Vec<u8> {
    let (status, data) = initiator.scsi(&[0x12, 1, page, 4, 0, 0], &[], 1024);
    assert_eq!(status, GOOD);
    data
}

pub fn ranges(header: usize, ranges: &[(u64, u32)]) -> Vec<u8> {
    let mut list = vec![0; header];
    list[header - 2..].copy_from_slice(&(ranges.len() as u16 * 16).to_be_bytes());
    for (start, count) in ranges {
        list.extend(start.to_be_bytes());
        list.extend(count.to_be_bytes());
        list.extend([0; 4]);
    }
    let len = list.len() as u16 - 2;
    list[..2].copy_from_slice(&len.to_be_bytes());
    list
}

pub fn third_party(initiator: &mut RawInitiator, action: u8, identifier: u32, list: &[u8]) -> u8 {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (0x83, action);
    cdb[6..10].copy_from_slice(&identifier.to_be_bytes());
    cdb[10..14].copy_from_slice(&(list.len() as u32).to_be_bytes());
    initiator.scsi(&cdb, list, 0).0
}

/// Asks until the operation is over.
pub fn outcome(initiator: &mut RawInitiator, identifier: u32) -> Vec<u8> {
    let mut cdb = [0x84, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0];
    cdb[2..6].copy_from_slice(&identifier.to_be_bytes());
    for _ in 0..1000 {
        let (status, data) = initiator.scsi(&cdb, &[], 1024);
        assert_eq!(status, GOOD);
        if !(0x10..=0x12).contains(&data[5]) {
            return data;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("it never ends")
}

pub fn write_list(token: &[u8], flags: u8, offset: u64, to: &[(u64, u32)]) -> Vec<u8> {
    let mut list = ranges(536, to);
    list[2] = flags;
    list[8..16].copy_from_slice(&offset.to_be_bytes());
    list[16..528].copy_from_slice(token);
    list
}

fn read(initiator: &mut RawInitiator, lba: u32, blocks: u16) -> Vec<u8> {
    let ([a, b, c, d], [e, f]) = (lba.to_be_bytes(), blocks.to_be_bytes());
    let (status, data) = initiator.scsi(&[0x28, 0, a, b, c, d, 0, e, f, 0], &[], u32::from(blocks) * 512);
    assert_eq!(status, GOOD);
    data
}

#[test]
fn windows_copies_a_file_from_one_disk_to_another() {
    let desk = Desk::new();
    let source = disk(&desk, 0);
    let destination = disk(&desk, 1);
    let config = format!(
        "listen = [\"127.0.0.1:0\"]\n[[target]]\nname = \"iqn.2026-11.io.goldrush:node\"\n{}{}",
        lun(0, 0, ""),
        lun(1, 1, "")
    );
    let Some(server) = serve(&desk, &config, 1) else { return };
    let mut initiator = log_in(server.ports[0], "node");
    // The class driver looks for page 8Fh, and in it for the limits of block device tokens.
    assert!(vital_page(&mut initiator, 0x00)[4..].contains(&0x8F));
    let page = vital_page(&mut initiator, 0x8F);
    let mut rest = &page[4..];
    let limits = loop {
        let len = number(&rest[2..4]) as usize + 4;
        if number(&rest[..2]) == 0 {
            break &rest[..len];
        }
        rest = &rest[len..];
    };
    assert_eq!(limits.len(), 36);
    let (ranges_max, default_s) = (number(&limits[10..12]), number(&limits[16..20]));
    let (most, best) = (number(&limits[20..28]), number(&limits[28..36]));
    assert!(ranges_max >= 8 && default_s >= 30 && best <= most && best >= 1 << 10);
    // Offload read: a token for two extents of the file.
    let list = ranges(16, &[(100, 64), (1000, 36)]);
    assert_eq!(third_party(&mut initiator, 0x10, 0xAB01, &list), GOOD);
    let told = outcome(&mut initiator, 0xAB01);
    assert_eq!((told[4], told[5], told[15], number(&told[16..24])), (0x10, 0x01, 0xF1, 100));
    let sense = usize::from(told[13]);
    assert_eq!(number(&told[32 + sense..][..4]), 514);
    let token = told[38 + sense..][..512].to_vec();
    // Offload write, to the other disk, answered at once and asked about.
    initiator.lun = 1;
    let list = write_list(&token, 0x01, 0, &[(200, 50), (300, 50)]);
    assert_eq!(third_party(&mut initiator, 0x11, 0xAB02, &list), GOOD);
    let told = outcome(&mut initiator, 0xAB02);
    assert_eq!((told[4], told[5], number(&told[16..24])), (0x11, 0x01, 100));
    let sectors = |disk: &[u8], at: usize, count: usize| disk[at * 512..(at + count) * 512].to_vec();
    assert_eq!(read(&mut initiator, 200, 50), sectors(&source, 100, 50));
    let second = [sectors(&source, 150, 14), sectors(&source, 1000, 36)].concat();
    assert_eq!(read(&mut initiator, 300, 50), second);
    assert_eq!(read(&mut initiator, 250, 50), sectors(&destination, 250, 50));
    // Zeros, which need no offload read.
    let mut zeros = vec![0; 512];
    zeros[..8].copy_from_slice(&[0xFF, 0xFF, 0, 1, 0, 0, 0x01, 0xF8]);
    assert_eq!(third_party(&mut initiator, 0x11, 0xAB03, &write_list(&zeros, 0, 0, &[(400, 8)])), GOOD);
    assert_eq!(read(&mut initiator, 400, 8), [0; 4096]);
    // The file changes: the token is worth nothing, and Windows copies by reading and writing.
    initiator.lun = 0;
    assert_eq!(initiator.scsi(&[0x2A, 0, 0, 0, 0, 110, 0, 0, 1, 0], &[9; 512], 0).0, GOOD);
    initiator.lun = 1;
    let list = write_list(&token, 0, 0, &[(500, 8)]);
    assert_eq!(third_party(&mut initiator, 0x11, 0xAB04, &list), CHECK_CONDITION);
    assert_eq!((initiator.sense[2] & 0x0F, initiator.sense[12], initiator.sense[13]), (5, 0x23, 0x06));
    assert_eq!(outcome(&mut initiator, 0xAB04)[5], 0x02);
    assert_eq!(read(&mut initiator, 500, 8), sectors(&destination, 500, 8));
}

/// NAA designator of a unit, as an EXTENDED COPY list names it.
pub fn designator(initiator: &mut RawInitiator) -> [u8; 8] {
    let page = vital_page(initiator, 0x83);
    assert_eq!(page[4..8], [1, 3, 0, 8]);
    page[8..16].try_into().unwrap()
}

/// EXTENDED COPY of eight blocks to block 64; the status.
fn extended_copy(initiator: &mut RawInitiator, from: [u8; 8], to: [u8; 8]) -> u8 {
    let mut list = vec![0; 16];
    (list[0], list[3], list[11]) = (1, 64, 28);
    for unit in [from, to] {
        list.extend([0xE4, 0, 0, 0, 1, 3, 0, 8]);
        list.extend(unit);
        list.extend([0; 14]);
        list.extend([2, 0]);
    }
    list.extend([2, 0, 0, 24, 0, 0, 0, 1, 0, 0, 0, 8]);
    list.extend(0_u64.to_be_bytes());
    list.extend(64_u64.to_be_bytes());
    third_party(initiator, 0, 0, &list)
}

pub fn code(initiator: &RawInitiator) -> (u8, u8) {
    assert_eq!(initiator.sense[2] & 0x0F, 0x0A, "COPY ABORTED");
    (initiator.sense[12], initiator.sense[13])
}

#[test]
fn a_copy_does_not_reach_a_masked_lun() {
    let desk = Desk::new();
    let bytes = disk(&desk, 0);
    let hidden = disk(&desk, 1);
    let boss = "iqn.2026-11.io.goldrush:boss";
    let config = format!(
        "listen = [\"127.0.0.1:0\"]\n[[target]]\nname = \"iqn.2026-11.io.goldrush:node\"\n{}{}",
        lun(0, 0, ""),
        lun(1, 1, &format!("initiators = [\"{boss}\"]"))
    );
    let Some(server) = serve(&desk, &config, 1) else { return };
    let mut admitted = RawInitiator::connect(server.ports[0]);
    let keys = format!("InitiatorName={boss}\0SessionType=Normal\0TargetName=iqn.2026-11.io.goldrush:node\0");
    assert_eq!(admitted.login_with(1, &keys).unwrap(), (0, 0));
    let open = designator(&mut admitted);
    admitted.lun = 1;
    let masked = designator(&mut admitted);
    let mut other = log_in(server.ports[0], "node");
    for (from, to) in [(masked, open), (open, masked)] {
        assert_eq!(extended_copy(&mut other, from, to), CHECK_CONDITION, "as {RAW}");
        assert_eq!(code(&other), UNREACHABLE);
    }
    assert_eq!(read(&mut other, 64, 8), bytes[64 * 512..72 * 512]);
    assert_eq!(read(&mut admitted, 64, 8), hidden[64 * 512..72 * 512]);
    admitted.lun = 0;
    assert_eq!(extended_copy(&mut admitted, masked, open), GOOD);
    assert_eq!(read(&mut other, 64, 8), hidden[..8 * 512]);
}
