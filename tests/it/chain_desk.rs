//! Chains of images on a desk, with what their disks should read.
//!
//! Knows how to write into a leaf as a server would. Does not know the commands under test.

use crate::blocking::Disk;
use crate::cli::Desk;
use goldrush::vhd::OpenMode;
use std::fs::File;

/// The length of the disks.
pub const BYTES: usize = (6 << 20) + 512;

impl Desk {
    /// Writes `sectors` sectors of `value` at `sector` into the first of `files` (leaf first, its parents behind it).
    pub fn put(&self, files: &[&str], sector: u64, sectors: usize, value: u8) {
        let open = |(depth, name): (usize, &&str)| {
            File::options().read(true).write(depth == 0).open(self.path(name)).unwrap()
        };
        let files = files.iter().enumerate().map(open).collect();
        let mut disk = Disk::open(files, OpenMode::Writable).unwrap();
        match value {
            0 => disk.write_zeros(sector, sectors as u64).unwrap(),
            _ => disk.write(sector, &vec![value; sectors * 512]).unwrap(),
        }
        drop(disk.close());
    }

    /// What the disk of `image` reads, through `image convert`.
    #[track_caller]
    pub fn content(&self, image: &str) -> Vec<u8> {
        self.goldrush_ok(&format!("image convert {image} content.raw --force"));
        let content = std::fs::read(self.path("content.raw")).unwrap();
        std::fs::remove_file(self.path("content.raw")).unwrap();
        content
    }

    #[track_caller]
    pub fn json(&self, line: &str) -> serde_json::Value {
        let said = self.goldrush(line);
        serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{line}: {error}: {said:?}"))
    }

    #[track_caller]
    pub fn expect_clean(&self, image: &str) {
        let said = self.goldrush(&format!("image check {image}"));
        assert!(said.code == 0, "{image}: {said:?}");
    }
}

/// golden.vhd, mid.vhd, leaf.vhd (blocks of 2M, 2M, 512K), each with data of its own over some of its parent's, and
/// what the three disks read.
pub fn three_layers() -> (Desk, [Vec<u8>; 3]) {
    let desk = Desk::new();
    let mut golden = vec![0; BYTES];
    golden[..1 << 20].fill(1);
    golden[(3 << 20)..(3 << 20) + 4096].fill(1);
    desk.write("disk.raw", &golden);
    desk.goldrush_ok("image convert disk.raw golden.vhd");
    std::fs::remove_file(desk.path("disk.raw")).unwrap();
    desk.goldrush_ok("image create mid.vhd --parent golden.vhd");
    let mut mid = golden.clone();
    desk.put(&["mid.vhd", "golden.vhd"], 8, 100, 2);
    mid[8 * 512..108 * 512].fill(2);
    desk.put(&["mid.vhd", "golden.vhd"], 12288, 1, 2);
    mid[12288 * 512..].fill(2);
    desk.goldrush_ok("image create leaf.vhd --parent mid.vhd --block-size 512K");
    let mut leaf = mid.clone();
    for (sector, sectors, value) in [(50, 20, 3), (90, 30, 0), (4096, 8, 3)] {
        desk.put(&["leaf.vhd", "mid.vhd", "golden.vhd"], sector, sectors, value);
        leaf[sector as usize * 512..(sector as usize + sectors) * 512].fill(value);
    }
    (desk, [golden, mid, leaf])
}

#[test]
fn the_desk_is_as_it_says() {
    let (desk, [golden, mid, leaf]) = three_layers();
    for (image, expected) in [("golden.vhd", golden), ("mid.vhd", mid), ("leaf.vhd", leaf)] {
        assert!(desk.content(image) == expected, "{image}");
        desk.expect_clean(image);
    }
}
