//! `image merge`, `flatten`, `rebase` and `snapshot`: disks read what they read before, and what cannot be done safely is
//! refused in one sentence.

use crate::chain_desk::three_layers;
use crate::cli::Desk;
use crate::other_programs::{installed, seven_zip_reads};
use std::os::unix::fs::MetadataExt;

const LEAF: &[&str] = &["leaf.vhd", "mid.vhd", "golden.vhd"];

#[track_caller]
fn refused(desk: &Desk, line: &str, code: i32, sentence: &str) {
    let said = desk.goldrush(line);
    assert_eq!(said.code, code, "{line}: {said:?}");
    let last = said.err.lines().last().unwrap_or_default();
    assert!(last.starts_with("goldrush: ") && last.contains(sentence), "{line}: {said:?}");
}

#[test]
fn a_merged_parent_reads_what_its_child_read_and_the_child_stays_right() {
    let (desk, [golden, _, leaf]) = three_layers();
    let report = desk.json("image merge leaf.vhd --json");
    assert!(
        report["into"].as_str().unwrap().ends_with("/mid.vhd") && report["bytes"] == 58 * 512,
        "{report}"
    );
    for (image, content) in [("leaf.vhd", &leaf), ("mid.vhd", &leaf), ("golden.vhd", &golden)] {
        assert!(desk.content(image) == *content, "{image}");
        desk.expect_clean(image);
    }
    // The child knows its parent's new time stamp.
    assert!(!desk.goldrush("image map leaf.vhd").err.contains("time stamp"));
    let said = desk.goldrush_ok("image merge leaf.vhd --remove-child");
    assert!(said.contains("leaf.vhd removed") && !desk.path("leaf.vhd").exists(), "{said}");
    assert!(desk.content("mid.vhd") == leaf);
}

#[test]
fn a_merge_that_would_destroy_another_disk_is_refused() {
    let (desk, [golden, mid, leaf]) = three_layers();
    refused(&desk, "image merge golden.vhd", 1, "golden.vhd has no parent to be merged into");
    refused(
        &desk,
        "image merge mid.vhd --remove-child",
        1,
        "/leaf.vhd): run goldrush image rebase on them first",
    );
    desk.goldrush_ok("image create other.vhd --parent mid.vhd");
    refused(&desk, "image merge leaf.vhd", 1, "/other.vhd), whose disks would change");
    desk.goldrush_ok("image seal mid.vhd");
    refused(&desk, "image merge leaf.vhd --break-other-children", 1, "mid.vhd is sealed");
    desk.goldrush_ok("image unseal mid.vhd");
    let held = std::fs::File::open(desk.path("mid.vhd")).unwrap();
    held.lock_shared().unwrap();
    refused(&desk, "image merge leaf.vhd --break-other-children", 3, "mid.vhd is in use");
    for (image, content) in [("leaf.vhd", &leaf), ("mid.vhd", &mid), ("golden.vhd", &golden)] {
        assert!(desk.content(image) == *content, "{image}");
    }
    drop(held);
    desk.goldrush_ok("image merge leaf.vhd --break-other-children");
    assert!(desk.content("mid.vhd") == leaf);
}

#[test]
fn a_merge_into_a_new_image_leaves_the_old_ones_as_they_are() {
    let (desk, [golden, mid, leaf]) = three_layers();
    let before: Vec<Vec<u8>> = LEAF.iter().map(|name| std::fs::read(desk.path(name)).unwrap()).collect();
    desk.goldrush_ok("image merge leaf.vhd --into both.vhd");
    desk.goldrush_ok("image merge mid.vhd --into base.vhd");
    let after: Vec<Vec<u8>> = LEAF.iter().map(|name| std::fs::read(desk.path(name)).unwrap()).collect();
    assert!(before == after);
    for (image, content) in [("both.vhd", &leaf), ("base.vhd", &mid), ("golden.vhd", &golden)] {
        assert!(desk.content(image) == *content, "{image}");
        desk.expect_clean(image);
    }
    let info = desk.json("image info both.vhd --json");
    assert_eq!(
        (&info["chain"][0]["parent"]["candidates"][0], info["chain"].as_array().unwrap().len()),
        (&"./golden.vhd".into(), 2)
    );
    assert_eq!(desk.json("image info base.vhd --json")["chain"][0]["type"], "dynamic");
    refused(&desk, "image merge leaf.vhd --into both.vhd", 1, "both.vhd exists already");
    refused(&desk, "image merge leaf.vhd --into x.vhd --remove-child", 2, "leave the other flags out");
}

#[test]
fn a_flattened_child_is_the_same_disk_for_its_own_children() {
    let (desk, [_, mid, leaf]) = three_layers();
    let modified = std::fs::metadata(desk.path("mid.vhd")).unwrap().mtime_nsec();
    desk.goldrush_ok("image flatten leaf.vhd --output alone.vhd");
    desk.goldrush_ok("image flatten mid.vhd");
    std::fs::remove_file(desk.path("golden.vhd")).unwrap();
    for (image, content) in [("alone.vhd", &leaf), ("mid.vhd", &mid), ("leaf.vhd", &leaf)] {
        assert!(desk.content(image) == *content, "{image}");
        desk.expect_clean(image);
    }
    assert_eq!(std::fs::metadata(desk.path("mid.vhd")).unwrap().mtime_nsec(), modified);
    let said = desk.goldrush("image map leaf.vhd");
    assert!(said.err.is_empty(), "{said:?}");
    assert!(desk.goldrush_ok("image flatten mid.vhd").contains("nothing to do"));
    let held = std::fs::File::open(desk.path("leaf.vhd")).unwrap();
    held.lock_shared().unwrap();
    refused(&desk, "image flatten leaf.vhd", 3, "leaf.vhd is in use");
}

#[test]
fn a_rebase_onto_the_same_content_needs_no_copy_and_onto_another_is_refused_without_one() {
    let (desk, [golden, mid, leaf]) = three_layers();
    desk.goldrush_ok("image convert mid.vhd flat.vhd --block-size 1M");
    let size = || std::fs::metadata(desk.path("leaf.vhd")).unwrap().len();
    let before = size();
    let report = desk.json("image rebase leaf.vhd --parent flat.vhd --json");
    assert_eq!((&report["how"], &report["copied_bytes"]), (&"compared".into(), &0.into()));
    assert_eq!(size(), before);
    assert!(desk.content("leaf.vhd") == leaf);
    desk.expect_clean("leaf.vhd");
    refused(
        &desk,
        "image rebase leaf.vhd --parent golden.vhd",
        1,
        "differ at byte 4096, which leaf.vhd takes from its parent",
    );
    assert!(desk.content("leaf.vhd") == leaf);
    let report = desk.json("image rebase leaf.vhd --parent golden.vhd --copy --json");
    let differing = golden.chunks(512).zip(mid.chunks(512)).zip(leaf.chunks(512).enumerate());
    let held = |sector: usize| {
        (50..70).contains(&sector) || (90..120).contains(&sector) || (4096..4104).contains(&sector)
    };
    let copied = differing.filter(|((golden, mid), (sector, _))| golden != mid && !held(*sector)).count();
    assert_eq!(report["copied_bytes"], copied * 512);
    assert!(desk.content("leaf.vhd") == leaf && desk.content("golden.vhd") == golden);
    desk.expect_clean("leaf.vhd");
    std::fs::remove_file(desk.path("mid.vhd")).unwrap();
    assert!(desk.content("leaf.vhd") == leaf);
}

#[test]
fn a_parent_that_moved_is_known_by_its_id_and_no_other_image_is_taken_for_it() {
    let (desk, [golden, mid, _]) = three_layers();
    std::fs::create_dir(desk.path("gold")).unwrap();
    desk.goldrush_ok("image convert mid.vhd other.vhd");
    std::fs::rename(desk.path("golden.vhd"), desk.path("gold/moved.vhd")).unwrap();
    refused(&desk, "image map mid.vhd", 1, "its parent was not found");
    refused(&desk, "image rebase mid.vhd --parent other.vhd", 1, "its parent was not found");
    assert_eq!(desk.json("image rebase mid.vhd --parent gold/moved.vhd --json")["how"], "moved");
    assert!(desk.content("mid.vhd") == mid && desk.content("gold/moved.vhd") == golden);
    let info = desk.json("image info mid.vhd --json");
    assert_eq!(info["chain"][0]["parent"]["candidates"][0], "./gold/moved.vhd");
    assert_eq!(desk.json("image rebase mid.vhd --parent gold/moved.vhd --json")["how"], "renewed");
    refused(&desk, "image rebase mid.vhd --parent leaf.vhd", 1, "is mid.vhd or a child of it");
    refused(&desk, "image rebase other.vhd --parent mid.vhd", 1, "is no differencing image");
    desk.goldrush_ok("image create small.vhd --size 1M");
    refused(&desk, "image rebase mid.vhd --parent small.vhd", 1, "a parent has the size of its child");
}

#[test]
fn other_programs_find_the_parent_after_a_rebase() {
    let (desk, [_, _, leaf]) = three_layers();
    desk.goldrush_ok("image rebase leaf.vhd --parent golden.vhd --copy");
    if installed("7zz") {
        assert!(seven_zip_reads(&desk.path("leaf.vhd"), "vhd") == leaf);
    }
}

#[test]
fn a_snapshot_freezes_the_state_and_the_leaf_goes_on() {
    let (desk, [.., leaf]) = three_layers();
    let report = desk.json("image snapshot leaf.vhd --name monday.vhd --json");
    assert_eq!((&report["frozen"], &report["child"]), (&"monday.vhd".into(), &"leaf.vhd".into()));
    assert_eq!(std::fs::metadata(desk.path("monday.vhd")).unwrap().mode() & 0o222, 0);
    desk.put(&["leaf.vhd", "monday.vhd", "mid.vhd", "golden.vhd"], 0, 5, 9);
    let mut written = leaf.clone();
    written[..5 * 512].fill(9);
    assert!(desk.content("leaf.vhd") == written && desk.content("monday.vhd") == leaf);
    refused(&desk, "image snapshot leaf.vhd --name monday.vhd", 1, "monday.vhd exists already");
    refused(&desk, "image snapshot monday.vhd --name x.vhd", 1, "monday.vhd has children (");
    assert_eq!(desk.goldrush("image snapshot leaf.vhd").code, 2);
    desk.goldrush_ok("image snapshot leaf.vhd --child tuesday.vhd --seal");
    refused(&desk, "image snapshot leaf.vhd --child x.vhd", 1, "leaf.vhd is sealed");
    assert!(desk.content("tuesday.vhd") == written);
    std::fs::create_dir(desk.path("far")).unwrap();
    refused(&desk, "image snapshot tuesday.vhd --name far/x.vhd", 2, "must lie in the folder of");
    let held = std::fs::File::open(desk.path("tuesday.vhd")).unwrap();
    held.lock_shared().unwrap();
    refused(&desk, "image snapshot tuesday.vhd --name x.vhd", 3, "is in use");
    for image in ["leaf.vhd", "monday.vhd"] {
        desk.expect_clean(image);
    }
}
