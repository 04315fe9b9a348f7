//! `image seal`: a golden image that changed under its children is refused, by every command and by the server.

use crate::chain_desk::three_layers;
use crate::cli::Desk;
use std::fs::{File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::time::SystemTime;

fn sealed() -> Desk {
    let (desk, _) = three_layers();
    let said = desk.goldrush_ok("image seal golden.vhd");
    let hash = said.split_whitespace().last().unwrap();
    assert_eq!(hash, blake3::hash(&std::fs::read(desk.path("golden.vhd")).unwrap()).to_hex().as_str());
    desk
}

/// Changes a byte of guest data, as a program would that knows no seal.
fn damage(desk: &Desk, value: u8) {
    let path = desk.path("golden.vhd");
    let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    let end = file.metadata().unwrap().len();
    file.write_all_at(&[value], end - 512 - 4096).unwrap();
    file.set_modified(modified).unwrap();
}

#[test]
fn a_parent_that_changed_after_it_was_sealed_is_refused_in_the_name_of_its_child() {
    let desk = sealed();
    let original = {
        let bytes = std::fs::read(desk.path("golden.vhd")).unwrap();
        bytes[bytes.len() - 512 - 4096]
    };
    damage(&desk, original ^ 1);
    for line in
        ["image convert leaf.vhd x.raw", "image map leaf.vhd", "image create new.vhd --parent mid.vhd"]
    {
        let said = desk.goldrush(line);
        assert_eq!(said.code, 1, "{line}: {said:?}");
        assert!(
            said.err
                .lines()
                .last()
                .unwrap()
                .starts_with("goldrush: mid.vhd: its parent golden.vhd was changed after it was sealed")
                || said.err.contains("mid.vhd: its parent ")
                    && said.err.contains("golden.vhd was changed after it was sealed"),
            "{said:?}"
        );
    }
    desk.write("room.toml", "listen = [\"127.0.0.1:0\"]\n[[target]]\nname = \"iqn.2026-11.io.goldrush:a\"\n[[target.lun]]\nlun = 0\npath = \"leaf.vhd\"\n");
    let said = desk.goldrush("serve --config room.toml");
    assert!(said.code != 0 && said.err.contains("was changed after it was sealed"), "{said:?}");
    assert_eq!(desk.goldrush("image check leaf.vhd").code, 1);
    assert_eq!(desk.goldrush("image seal golden.vhd").code, 1);
    // Restored, with other times: the bytes decide, and the seal takes the new times.
    damage(&desk, original);
    let before = std::fs::read(desk.path("golden.vhd.seal")).unwrap();
    let said = desk.goldrush("image convert leaf.vhd x.raw");
    assert!(said.code == 0 && said.err.contains("comparing its content"), "{said:?}");
    assert_ne!(std::fs::read(desk.path("golden.vhd.seal")).unwrap(), before);
    let said = desk.goldrush("image convert leaf.vhd x.raw --force");
    assert!(said.code == 0 && said.err.is_empty(), "{said:?}");
}

#[test]
fn a_copied_golden_image_proves_itself_by_its_content() {
    let desk = sealed();
    std::fs::create_dir(desk.path("copy")).unwrap();
    for name in ["golden.vhd", "golden.vhd.seal", "mid.vhd"] {
        std::fs::copy(desk.path(name), desk.path(&format!("copy/{name}"))).unwrap();
    }
    let golden = File::open(desk.path("copy/golden.vhd")).unwrap();
    golden.set_modified(SystemTime::now()).unwrap();
    let said = desk.goldrush("image map copy/mid.vhd");
    assert!(said.code == 0 && said.err.contains("comparing its content"), "{said:?}");
    assert!(!desk.goldrush("image map copy/mid.vhd").err.contains("comparing its content"));
}

#[test]
fn nothing_writes_a_sealed_image_before_it_is_unsealed() {
    let desk = sealed();
    let mode = |name: &str| std::fs::metadata(desk.path(name)).unwrap().mode() & 0o222;
    assert_eq!(mode("golden.vhd"), 0);
    desk.write("disk.raw", vec![1; 1 << 20]);
    for line in ["image convert disk.raw golden.vhd --force", "image check golden.vhd --repair"] {
        let said = desk.goldrush(line);
        assert!(said.code != 0 && said.err.contains("golden.vhd is sealed"), "{line}: {said:?}");
    }
    desk.write("room.toml", "listen = [\"127.0.0.1:0\"]\n[[target]]\nname = \"iqn.2026-11.io.goldrush:a\"\n[[target.lun]]\nlun = 0\npath = \"golden.vhd\"\n");
    let said = desk.goldrush("serve --config room.toml");
    assert!(said.code != 0 && said.err.contains("golden.vhd is sealed"), "{said:?}");

    let info = desk.json("image info mid.vhd --json");
    assert_eq!((&info["chain"][0]["sealed"], &info["chain"][1]["sealed"]), (&false.into(), &true.into()));
    let again = desk.goldrush_ok("image seal golden.vhd --verify");
    assert!(again.contains("all bytes are as they were sealed"), "{again}");
    assert_eq!(desk.json("image unseal golden.vhd --json")["sealed"], false);
    assert_ne!(mode("golden.vhd"), 0);
    assert!(!desk.path("golden.vhd.seal").exists());
    assert_eq!(desk.goldrush_ok("image unseal golden.vhd"), "golden.vhd: is not sealed\n");
    desk.goldrush_ok("image convert disk.raw golden.vhd --force");
}

#[test]
fn an_image_in_use_for_writing_is_not_sealed() {
    let (desk, _) = three_layers();
    let held = File::options().write(true).open(desk.path("golden.vhd")).unwrap();
    held.lock().unwrap();
    assert_eq!(desk.goldrush("image seal golden.vhd").code, 3);
    assert!(!desk.path("golden.vhd.seal").exists());
}

#[test]
fn a_parent_without_a_seal_is_pointed_out_and_may_be_sealed_on_the_way() {
    let (desk, _) = three_layers();
    let said = desk.goldrush("image create one.vhd --parent golden.vhd");
    assert!(said.code == 0 && said.err.contains("run goldrush image seal golden.vhd"), "{said:?}");
    let said = desk.goldrush("image create two.vhd --parent golden.vhd --seal");
    assert!(said.code == 0 && said.err.is_empty(), "{said:?}");
    assert!(desk.json("image seal golden.vhd --json")["sealed"] == true);
    desk.goldrush_ok("image map one.vhd");
}
