//! `image map` and `image diff`: what they show is what the disks hold.

use crate::chain_desk::{BYTES, three_layers};

#[test]
fn a_map_covers_the_disk_and_names_the_layer_of_every_sector() {
    let (desk, [golden, mid, leaf]) = three_layers();
    let map = desk.json("image map leaf.vhd --json");
    let paths: Vec<&str> =
        map["layers"].as_array().unwrap().iter().map(|layer| layer["path"].as_str().unwrap()).collect();
    assert!(paths[0] == "leaf.vhd" && paths[1].ends_with("mid.vhd") && paths[2].ends_with("golden.vhd"));
    assert_eq!(map["virtual_size"], BYTES);
    let files: Vec<Vec<u8>> = ["leaf.vhd", "mid.vhd", "golden.vhd"]
        .iter()
        .map(|name| std::fs::read(desk.path(name)).unwrap())
        .collect();
    let mut at = 0;
    let mut layers = vec![9; BYTES / 512];
    for run in map["map"].as_array().unwrap() {
        let number = |key: &str| run[key].as_u64().unwrap() as usize;
        let (offset, length) = (number("offset"), number("length"));
        assert_eq!(offset, at);
        at += length;
        let expected = &leaf[offset..at];
        if run["kind"] == "zero" {
            assert!(run["layer"].is_null() && expected.iter().all(|byte| *byte == 0));
            continue;
        }
        let layer = number("layer");
        layers[offset / 512..at / 512].fill(layer);
        let place = number("file_offset");
        assert!(files[layer][place..place + length] == *expected, "{run}");
        assert!(run["kind"] == "data" || expected.iter().all(|byte| *byte == 0), "{run}");
    }
    assert_eq!(at, BYTES);
    for (sector, layer) in [(0, 2), (8, 1), (49, 1), (50, 0), (69, 0), (70, 1), (90, 0), (119, 0), (120, 2)] {
        assert_eq!(layers[sector], layer, "sector {sector}");
    }
    assert_eq!((layers[4096], layers[12288], layers[6 << 11]), (0, 1, 1));
    drop((golden, mid));

    let text = desk.goldrush_ok("image map leaf.vhd");
    assert!(text.contains("layer 0: leaf.vhd (vhd): ") && text.contains("no layer: "), "{text}");
    assert_eq!(desk.goldrush("image map none.vhd").code, 1);
}

#[test]
fn differences_are_what_the_disks_differ_in() {
    let (desk, [golden, _, leaf]) = three_layers();
    let said = desk.goldrush("image diff golden.vhd leaf.vhd --json");
    assert_eq!(said.code, 1, "{said:?}");
    let report: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    let mut differs = vec![false; BYTES];
    for range in report["differences"].as_array().unwrap() {
        let number = |key: &str| range[key].as_u64().unwrap() as usize;
        differs[number("offset")..number("offset") + number("length")].fill(true);
    }
    for (sector, differs) in differs.chunks(512).enumerate() {
        let range = sector * 512..(sector + 1) * 512;
        assert_eq!(differs[0], golden[range.clone()] != leaf[range], "sector {sector}");
    }
    assert_eq!((&report["same"], &report["size_a"]), (&false.into(), &BYTES.into()));
}

#[test]
fn the_exit_code_of_diff_tells_same_from_different_from_unknown() {
    let (desk, [_, mid, _]) = three_layers();
    desk.write("mid.raw", &mid);
    desk.write("longer.raw", [mid, vec![0; 512]].concat());
    let text = desk.goldrush_ok("image diff mid.vhd mid.raw");
    assert_eq!(text, "mid.vhd and mid.raw have the same content\n");
    for (line, code) in [
        ("image diff -q mid.vhd mid.raw", 0),
        ("image diff -q mid.vhd leaf.vhd", 1),
        ("image diff mid.raw longer.raw", 1),
        ("image diff -q mid.raw longer.raw", 1),
        ("image diff mid.vhd none.vhd", 2),
    ] {
        assert_eq!(desk.goldrush(line).code, code, "{line}");
    }
    let held = std::fs::File::options().write(true).open(desk.path("mid.vhd")).unwrap();
    held.lock().unwrap();
    assert_eq!(desk.goldrush("image diff mid.vhd mid.raw").code, 3);
    assert_eq!(desk.goldrush("image map leaf.vhd").code, 3);
}
