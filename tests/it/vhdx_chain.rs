//! The chain commands on VHDXs, through the program: what the disks read before and after, and what 7-Zip and qemu read.

use crate::cli::Desk;
use crate::other_programs::{installed, qemu_reads_vhdx, seven_zip_reads};

/// The length of the disks: ends inside a block, on a sector of 4096 bytes.
const BYTES: usize = (6 << 20) + 4096;

/// golden.vhdx, mid.vhdx and leaf.vhdx (blocks of 32M, 2M, 1M), and what their disks read.
fn three_layers(sector: &str) -> (Desk, [Vec<u8>; 3]) {
    let desk = Desk::new();
    let mut golden = vec![0; BYTES];
    golden[..1 << 20].fill(1);
    golden[(3 << 20)..(3 << 20) + 4096].fill(1);
    desk.write("disk.raw", &golden);
    desk.goldrush_ok(&format!("image convert disk.raw golden.vhdx --logical-sector-size {sector}"));
    desk.goldrush_ok("image create mid.vhdx --parent golden.vhdx");
    let mut mid = golden.clone();
    put(&desk, &["mid.vhdx", "golden.vhdx"], &mut mid, &[(8, 104, 2), (12288, 8, 2)]);
    desk.goldrush_ok("image create leaf.vhdx --parent mid.vhdx --block-size 1M");
    let mut leaf = mid.clone();
    let writes = [(48, 24, 3), (88, 32, 0), (4096, 8, 3)];
    put(&desk, &["leaf.vhdx", "mid.vhdx", "golden.vhdx"], &mut leaf, &writes);
    (desk, [golden, mid, leaf])
}

fn put(desk: &Desk, chain: &[&str], disk: &mut [u8], writes: &[(u64, usize, u8)]) {
    for (sector, sectors, value) in writes {
        desk.put(chain, *sector, *sectors, *value);
        let start = *sector as usize * 512;
        disk[start..start + sectors * 512].fill(*value);
    }
}

/// `image` is sound and reads `content`, to us and to 7-Zip, and to qemu where it can read it.
#[track_caller]
fn reads(desk: &Desk, image: &str, content: &[u8]) {
    assert!(desk.content(image) == content, "{image} reads something else");
    desk.expect_clean(image);
    let info = desk.json(&format!("image info {image} --json"));
    let layers = info["chain"].as_array().unwrap();
    let layer = &layers[0];
    // 7-Zip 26.02 opens no disk that is an odd number of logical sectors, and reads a child no further
    // than its parent.
    let known = layer["logical_sector_size"] == 512
        && layers.iter().all(|other| other["virtual_size"] == layer["virtual_size"]);
    if installed("7zz") && known {
        assert!(seven_zip_reads(&desk.path(image), "vhdx") == content, "7-Zip reads {image} differently");
    }
    if installed("qemu-img") && layer["parent"].is_null() && layer["logical_sector_size"] == 512 {
        assert!(qemu_reads_vhdx(&desk.path(image)) == content, "qemu reads {image} differently");
    }
}

#[track_caller]
fn refused(desk: &Desk, line: &str, code: i32, word: &str) {
    let said = desk.goldrush(line);
    assert!(
        said.code == code && said.err.contains(word) && said.err.lines().count() == 1,
        "{line}: {said:?}"
    );
}

#[test]
fn a_chain_is_merged_and_other_children_are_refused_afterwards() {
    for sector in ["512", "4096"] {
        let (desk, [golden, mid, leaf]) = three_layers(sector);
        desk.goldrush_ok("image merge leaf.vhdx --into both.vhdx");
        reads(&desk, "both.vhdx", &leaf);
        assert_eq!(desk.json("image info both.vhdx --json")["chain"].as_array().unwrap().len(), 2);
        desk.goldrush_ok("image create sibling.vhdx --parent mid.vhdx");
        refused(&desk, "image merge leaf.vhdx", 1, "has other children");
        desk.goldrush_ok("image merge leaf.vhdx --break-other-children");
        reads(&desk, "leaf.vhdx", &leaf);
        reads(&desk, "mid.vhdx", &leaf);
        refused(&desk, "image map sibling.vhdx", 1, "should have the id");
        std::fs::remove_file(desk.path("sibling.vhdx")).unwrap();
        // Once more: nothing is left to do, and nothing changes.
        desk.goldrush_ok("image merge leaf.vhdx");
        reads(&desk, "leaf.vhdx", &leaf);
        std::fs::remove_file(desk.path("both.vhdx")).unwrap();
        refused(&desk, "image merge mid.vhdx --remove-child", 1, "has children itself");
        desk.goldrush_ok("image merge leaf.vhdx --remove-child");
        assert!(!desk.path("leaf.vhdx").exists());
        desk.goldrush_ok("image merge mid.vhdx --remove-child");
        reads(&desk, "golden.vhdx", &leaf);
        assert!(golden != mid && mid != leaf);
    }
}

#[test]
fn a_child_gets_another_parent_and_goes_on_reading_the_same() {
    let (desk, [golden, mid, leaf]) = three_layers("512");
    refused(&desk, "image rebase leaf.vhdx --parent golden.vhdx", 1, "differ at byte");
    desk.goldrush_ok("image create grandchild.vhdx --parent leaf.vhdx");
    desk.goldrush_ok("image rebase leaf.vhdx --parent golden.vhdx --copy");
    std::fs::rename(desk.path("mid.vhdx"), desk.path("away.vhdx")).unwrap();
    reads(&desk, "leaf.vhdx", &leaf);
    // Its disk is what it was, so its child knows it still.
    reads(&desk, "grandchild.vhdx", &leaf);
    std::fs::create_dir(desk.path("gold")).unwrap();
    std::fs::rename(desk.path("golden.vhdx"), desk.path("gold/moved.vhdx")).unwrap();
    assert_eq!(desk.json("image rebase leaf.vhdx --parent gold/moved.vhdx --json")["how"], "moved");
    assert_eq!(desk.json("image rebase leaf.vhdx --parent gold/moved.vhdx --json")["how"], "renewed");
    assert_eq!(desk.json("image rebase away.vhdx --parent gold/moved.vhdx --json")["how"], "moved");
    assert!(desk.content("leaf.vhdx") == leaf && desk.content("away.vhdx") == mid);
    assert!(desk.content("gold/moved.vhdx") == golden);
    refused(&desk, "image rebase leaf.vhdx --parent grandchild.vhdx", 1, "or a child of it");
    desk.goldrush_ok("image convert gold/moved.vhdx four-k.vhdx --logical-sector-size 4096");
    refused(&desk, "image rebase leaf.vhdx --parent four-k.vhdx", 1, "a parent has the sectors of its child");
}

#[test]
fn a_child_of_the_other_format_is_refused_in_both_directions() {
    let (desk, _) = three_layers("512");
    desk.goldrush_ok("image convert golden.vhdx golden.vhd");
    desk.goldrush_ok("image create child.vhd --parent golden.vhd");
    let sentence = "a parent has the format of its child, so convert one of the two";
    for (child, parent) in [("leaf.vhdx", "golden.vhd"), ("child.vhd", "golden.vhdx")] {
        let before = std::fs::read(desk.path(child)).unwrap();
        refused(&desk, &format!("image rebase {child} --parent {parent} --copy"), 1, sentence);
        assert!(std::fs::read(desk.path(child)).unwrap() == before, "{child}");
    }
    refused(&desk, "image rebase leaf.vhdx --parent disk.raw", 1, sentence);
    refused(&desk, "image rebase golden.vhdx --parent mid.vhdx", 1, "it cannot be its parent");
}

#[test]
fn a_leaf_is_frozen_flattened_and_compacted() {
    for sector in ["512", "4096"] {
        let (desk, [golden, _, mut leaf]) = three_layers(sector);
        desk.goldrush_ok("image snapshot leaf.vhdx --name frozen.vhdx --seal");
        reads(&desk, "leaf.vhdx", &leaf);
        let frozen = leaf.clone();
        let chain = ["leaf.vhdx", "frozen.vhdx", "mid.vhdx", "golden.vhdx"];
        put(&desk, &chain, &mut leaf, &[(2048, 2048, 9), (8192, 64, 7)]);
        // Back to what the parent has: the first block says nothing of its own any more.
        put(&desk, &chain, &mut leaf, &[(2048, 2048, 0)]);
        desk.goldrush_ok("image snapshot leaf.vhdx --child next.vhdx");
        refused(&desk, "image compact leaf.vhdx", 1, "is the parent of");
        reads(&desk, "next.vhdx", &leaf);
        std::fs::remove_file(desk.path("next.vhdx")).unwrap();
        let plan = desk.json("image compact leaf.vhdx --dry-run --json");
        assert_eq!((plan["done"].as_bool(), plan["freed_blocks"].as_u64()), (Some(false), Some(1)), "{plan}");
        let report = desk.json("image compact leaf.vhdx --json");
        assert_eq!(report["file_size_after"], plan["file_size_after"]);
        let len = std::fs::metadata(desk.path("leaf.vhdx")).unwrap().len();
        assert_eq!(Some(len), report["file_size_after"].as_u64());
        reads(&desk, "leaf.vhdx", &leaf);
        reads(&desk, "frozen.vhdx", &frozen);
        desk.goldrush_ok("image create grandchild.vhdx --parent leaf.vhdx");
        desk.goldrush_ok("image flatten leaf.vhdx");
        reads(&desk, "leaf.vhdx", &leaf);
        // The flattened image is who it was to its child.
        reads(&desk, "grandchild.vhdx", &leaf);
        assert_eq!(desk.json("image info leaf.vhdx --json")["chain"].as_array().unwrap().len(), 1);
        reads(&desk, "golden.vhdx", &golden);
    }
}

#[test]
fn a_disk_grows_and_shrinks_and_a_parent_keeps_its_size() {
    let (desk, [golden, _, leaf]) = three_layers("512");
    refused(&desk, "image resize golden.vhdx --size 8M", 1, "is the parent of");
    refused(&desk, "image resize leaf.vhdx --size 1M --shrink", 1, "a child is no smaller than its parent");
    desk.goldrush_ok("image resize leaf.vhdx --size 9M");
    let mut larger = leaf;
    larger.resize(9 << 20, 0);
    reads(&desk, "leaf.vhdx", &larger);
    let chain = ["leaf.vhdx", "mid.vhdx", "golden.vhdx"];
    put(&desk, &chain, &mut larger, &[(18_000, 432, 5)]);
    reads(&desk, "leaf.vhdx", &larger);
    // The size of the child, not of its grandparent.
    desk.goldrush_ok("image merge leaf.vhdx --into both.vhdx");
    reads(&desk, "both.vhdx", &larger);
    for kind in ["dynamic", "fixed"] {
        desk.goldrush_ok(&format!(
            "image convert golden.vhdx own.vhdx --type {kind} --block-size 1M --force"
        ));
        desk.goldrush_ok("image resize own.vhdx --size 100M");
        let mut content = golden.clone();
        content.resize(100 << 20, 0);
        reads(&desk, "own.vhdx", &content);
        refused(&desk, "image resize own.vhdx --size 1M", 2, "--shrink");
        refused(&desk, "image resize own.vhdx --size 3M --shrink", 1, "has data between");
        desk.goldrush_ok("image resize own.vhdx --size 4M --shrink");
        content.truncate(4 << 20);
        reads(&desk, "own.vhdx", &content);
    }
}
