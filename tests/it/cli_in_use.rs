//! Every `image` command on an image that a running server holds: it is left alone, and the command says who holds it.

use crate::cli::Desk;
use crate::running::start_config;

const CONFIG: &str = r#"
listen = ["127.0.0.1:0"]
[[target]]
name = "iqn.2026-11.example:in-use"
  [[target.lun]]
  lun = 0
  path = "leaf.EXT"
"#;

/// What writes, or relies on nobody writing, and the image it names. What each would need lies ready.
const LEAF: &[&str] = &[
    "check leaf.EXT",
    "check leaf.EXT --repair",
    "convert leaf.EXT out.raw",
    "convert golden.raw leaf.EXT --force",
    "map leaf.EXT",
    "diff leaf.EXT golden.raw",
    "compact leaf.EXT",
    "compact leaf.EXT --dry-run",
    "resize leaf.EXT --size 2G",
    "merge leaf.EXT",
    "merge leaf.EXT --into new.EXT",
    "flatten leaf.EXT",
    "flatten leaf.EXT --output new.EXT",
    "rebase leaf.EXT --parent other.EXT",
    "rebase idle.EXT --parent leaf.EXT",
    "snapshot leaf.EXT --name frozen.EXT",
    "snapshot leaf.EXT --child next.EXT",
    "seal leaf.EXT",
    "create child.EXT --parent leaf.EXT",
    "bench leaf.EXT --seconds 0 --size 16M",
];

/// What changes a parent that the server reads.
const GOLDEN: &[&str] = &[
    "check golden.EXT --repair",
    "compact golden.EXT",
    "resize golden.EXT --size 2G",
    "merge idle.EXT --break-other-children",
    "convert golden.raw golden.EXT --force",
    "snapshot golden.EXT --child next.EXT",
    "snapshot golden.EXT --name frozen.EXT",
];

fn refuses(desk: &Desk, line: &str) {
    let said = desk.goldrush(line);
    let sentence = said.err.lines().last().unwrap_or_default();
    assert!(said.code == 3 && sentence.contains("is in use by another process"), "{line}: {said:?}");
}

#[test]
fn an_image_that_a_server_holds_is_said_to_be_in_use_by_every_command_and_left_alone() {
    for extension in ["vhd", "vhdx"] {
        let desk = Desk::new();
        desk.write("golden.raw", vec![3; 4 << 20]);
        std::fs::File::options().write(true).open(desk.path("golden.raw")).unwrap().set_len(1 << 30).unwrap();
        for line in [
            "convert golden.raw golden.EXT",
            "convert golden.raw other.EXT",
            "create leaf.EXT --parent golden.EXT",
            "create idle.EXT --parent golden.EXT",
        ] {
            desk.goldrush_ok(&format!("image {line}").replace("EXT", extension));
        }
        desk.write("c.toml", CONFIG.replace("EXT", extension));
        let Some(server) = start_config(&desk, "") else { return };
        let files = || {
            let mut names: Vec<_> =
                std::fs::read_dir(desk.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let leaf = std::fs::read(desk.path(&format!("leaf.{extension}"))).unwrap();
        let before = files();
        let lines: Vec<&str> = LEAF.iter().chain(GOLDEN).copied().collect();
        // Each waits a little for the lock: side by side.
        for some in lines.chunks(9) {
            std::thread::scope(|scope| {
                for line in some {
                    let (desk, line) = (&desk, format!("image {line}").replace("EXT", extension));
                    scope.spawn(move || refuses(desk, &line));
                }
            });
        }
        assert_eq!(files(), before, "something was made or left");
        assert!(std::fs::read(desk.path(&format!("leaf.{extension}"))).unwrap() == leaf);
        // A look, and what only reads the parent, need not wait.
        for line in ["info leaf.EXT", "check golden.EXT", "diff golden.EXT golden.raw", "seal golden.EXT"] {
            desk.goldrush_ok(&format!("image {line}").replace("EXT", extension));
        }
        drop(server);
    }
}

/// The lock belongs to the open file, which outlives who locked it: as in the ring of a killed server.
#[test]
fn an_image_that_a_dead_process_still_holds_is_waited_for_and_one_of_the_living_is_not() {
    let desk = Desk::new();
    desk.goldrush_ok("image create disk.vhd --size 8M");
    let file = std::fs::File::options().read(true).write(true).open(desk.path("disk.vhd")).unwrap();
    let mut flock = std::process::Command::new("flock");
    let locked = flock.args(["-x", "0"]).stdin(file.try_clone().unwrap()).status();
    if !locked.is_ok_and(|status| status.success()) {
        return eprintln!("SKIPPED: no flock here");
    }
    drop(flock);
    let until = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_secs(3));
        drop(file);
    });
    let said = desk.goldrush("image check disk.vhd");
    until.join().unwrap();
    assert!(said.code == 0 && said.err.contains("waiting for disk.vhd"), "{said:?}");
    let file = std::fs::File::open(desk.path("disk.vhd")).unwrap();
    file.lock().unwrap();
    let said = desk.goldrush("image check disk.vhd");
    assert!(said.code == 3 && !said.err.contains("waiting for"), "{said:?}");
}
