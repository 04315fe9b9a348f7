//! Chain commands killed at any moment: no disk changes, and the same command once more completes.

use crate::cli::Desk;
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

const BYTES: u64 = 24 << 20;

/// golden.vhd, without children, beside what it reads.
fn desk_of_one() -> Desk {
    let desk = desk();
    for name in ["other.vhd", "other.raw", "child.vhd", "child.raw"] {
        std::fs::remove_file(desk.path(name)).unwrap();
    }
    desk
}

/// golden.vhd, other.vhd (another disk of the same size) and child.vhd of golden.vhd; beside them what they read.
fn desk() -> Desk {
    let desk = Desk::new();
    let disk = |name: &str, seed: u8, every: u64| {
        let file = std::fs::File::create(desk.path(name)).unwrap();
        file.set_len(BYTES).unwrap();
        for at in (0..BYTES).step_by(every as usize) {
            file.write_all_at(&[seed ^ (at >> 16) as u8 | 1; 12_288], at).unwrap();
        }
    };
    disk("golden.raw", 0x10, 128 << 10);
    disk("other.raw", 0x80, 192 << 10);
    for name in ["golden", "other"] {
        desk.goldrush_ok(&format!("image convert {name}.raw {name}.vhd"));
    }
    desk.goldrush_ok("image create child.vhd --parent golden.vhd --block-size 512K");
    std::fs::copy(desk.path("golden.raw"), desk.path("child.raw")).unwrap();
    let content = std::fs::File::options().write(true).open(desk.path("child.raw")).unwrap();
    for at in (0..BYTES).step_by(320 << 10) {
        content.write_all_at(&[9; 65_536], at).unwrap();
        desk.put(&["child.vhd", "golden.vhd"], at / 512, 128, 9);
    }
    desk
}

#[track_caller]
fn expect_same(desk: &Desk, image: &str, raw: &str) {
    let said = desk.goldrush(&format!("image diff {image} {raw}"));
    assert!(said.code == 0, "{image}: {said:?}");
}

/// Runs `line` again and again from the same beginning, killed a little later each time; `check` looks after each kill.
fn kill_often(desk: &Desk, line: &str, images: &[&str], check: impl Fn(&Desk)) {
    let keep = desk.path("keep");
    std::fs::create_dir(&keep).unwrap();
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        let modified = std::fs::metadata(from).unwrap().modified().unwrap();
        // A snapshot may have frozen it.
        let _ = std::fs::remove_file(to);
        std::fs::copy(from, to).unwrap();
        std::fs::File::options().write(true).open(to).unwrap().set_modified(modified).unwrap();
    };
    for name in images {
        copy(&desk.path(name), &keep.join(name));
    }
    let arguments: Vec<&str> = line.split_whitespace().collect();
    let begun = Instant::now();
    assert!(desk.command(&arguments).output().unwrap().status.success(), "{line}");
    // How long it takes at its best: on a busy machine the first run may have waited for others.
    let mut whole = begun.elapsed();
    let (mut killed, rounds) = (0, 10);
    for round in 0..4 * rounds {
        if round >= rounds && killed > 2 {
            break;
        }
        for name in images {
            copy(&keep.join(name), &desk.path(name));
        }
        let _ = std::fs::remove_file(desk.path("new.vhd"));
        let mut child = desk.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let begun = Instant::now();
        let delay = whole * (round % rounds) / rounds + Duration::from_millis(1);
        while begun.elapsed() < delay && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let took = begun.elapsed();
        child.kill().unwrap();
        if child.wait().unwrap().success() {
            whole = whole.min(took);
        } else {
            killed += 1;
        }
        check(desk);
    }
    assert!(killed > 2, "{line}: only {killed} were killed in time");
    let left: Vec<String> = desk.names().into_iter().filter(|name| name.ends_with(".part")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_killed_merge_is_completed_by_the_next_one() {
    let desk = desk();
    kill_often(&desk, "image merge child.vhd", &["child.vhd", "golden.vhd"], |desk| {
        expect_same(desk, "child.vhd", "child.raw");
        desk.expect_clean("child.vhd");
        desk.goldrush_ok("image merge child.vhd");
        expect_same(desk, "child.vhd", "child.raw");
        expect_same(desk, "golden.vhd", "child.raw");
        desk.expect_clean("child.vhd");
    });
}

#[test]
fn a_killed_rebase_leaves_the_old_parent_or_the_new_one() {
    let desk = desk();
    kill_often(&desk, "image rebase child.vhd --parent other.vhd --copy", &["child.vhd"], |desk| {
        expect_same(desk, "child.vhd", "child.raw");
        desk.goldrush_ok("image rebase child.vhd --parent other.vhd --copy");
        expect_same(desk, "child.vhd", "child.raw");
        expect_same(desk, "golden.vhd", "golden.raw");
        expect_same(desk, "other.vhd", "other.raw");
        desk.expect_clean("child.vhd");
        let info = desk.json("image info child.vhd --json");
        assert_eq!(info["chain"][0]["parent"]["candidates"][0], "./other.vhd");
    });
}

#[test]
fn a_killed_flatten_leaves_the_child_or_the_independent_image() {
    let desk = desk();
    kill_often(&desk, "image flatten child.vhd", &["child.vhd"], |desk| {
        expect_same(desk, "child.vhd", "child.raw");
        desk.goldrush_ok("image flatten child.vhd");
        expect_same(desk, "child.vhd", "child.raw");
        // The killed one's temporary file went with the next command, or there is nothing left to do.
        for name in desk.names().iter().filter(|name| name.ends_with(".part")) {
            std::fs::remove_file(desk.path(name)).unwrap();
        }
    });
}

#[test]
fn a_killed_merge_into_a_new_image_leaves_none_or_all_of_it() {
    let desk = desk();
    desk.goldrush_ok("image create leaf.vhd --parent child.vhd");
    kill_often(&desk, "image merge leaf.vhd --into new.vhd", &[], |desk| {
        if desk.path("new.vhd").exists() {
            expect_same(desk, "new.vhd", "child.raw");
        } else {
            desk.goldrush_ok("image merge leaf.vhd --into new.vhd");
        }
        expect_same(desk, "child.vhd", "child.raw");
    });
}

#[test]
fn a_killed_snapshot_leaves_the_old_chain_or_the_new_one() {
    for (line, frozen, goes_on) in [
        ("image snapshot child.vhd --name new.vhd", "new.vhd", "child.vhd"),
        ("image snapshot child.vhd --child new.vhd", "child.vhd", "new.vhd"),
    ] {
        let desk = desk();
        kill_often(&desk, line, &["child.vhd"], |desk| {
            expect_same(desk, "child.vhd", "child.raw");
            desk.expect_clean("child.vhd");
            if desk.path("new.vhd").exists() {
                expect_same(desk, "new.vhd", "child.raw");
            }
            // Killed after its last step it has nothing left to do, and says so.
            let again = desk.goldrush(line);
            let done = again.code == 1 && again.err.contains("as the frozen parent of");
            assert!(again.code == 0 || done, "{again:?}");
            for name in ["child.vhd", "new.vhd"] {
                expect_same(desk, name, "child.raw");
                desk.expect_clean(name);
            }
            let info = desk.json(&format!("image info {goes_on} --json"));
            assert!(info["chain"][1]["path"].as_str().unwrap().ends_with(frozen), "{info}");
            let mode = std::fs::metadata(desk.path(frozen)).unwrap().permissions();
            assert!(mode.readonly(), "the frozen image could be written");
        });
    }
}

#[test]
fn a_killed_compact_or_resize_leaves_the_disk_as_it_was_or_as_it_was_asked_for() {
    let desk = desk();
    kill_often(&desk, "image compact child.vhd", &["child.vhd"], |desk| {
        expect_same(desk, "child.vhd", "child.raw");
        desk.goldrush_ok("image compact child.vhd");
        expect_same(desk, "child.vhd", "child.raw");
        desk.expect_clean("child.vhd");
    });
    let desk = desk_of_one();
    kill_often(&desk, "image resize golden.vhd --size 3G", &["golden.vhd"], |desk| {
        // Where its two footers differ the one at the end rules, and a repair writes the other.
        desk.goldrush_ok("image check --repair golden.vhd");
        let size = desk.json("image info golden.vhd --json")["chain"][0]["virtual_size"].as_u64();
        assert!(matches!(size, Some(BYTES | 0xC000_0000)), "{size:?}");
        desk.goldrush_ok("image resize golden.vhd --size 3G");
        desk.expect_clean("golden.vhd");
        let parts = desk.json("image diff golden.vhd golden.raw --json");
        assert_eq!(parts["differences"].as_array().map(Vec::len), Some(0), "{parts}");
    });
}
