//! The corpus through the program: files of other writers converted, and hostile ones refused in one sentence.

use crate::cli::{Desk, Said, said};
use crate::vhd_corpus::{rows, unpack_into};
use goldrush::control::file::{Access, Locking};
use goldrush::control::open_image::{OpenError, Opener};
use sha2::{Digest, Sha256};

/// Disks larger than this have no hash over all of them.
const HASHED_BYTES_MAX: u64 = 1 << 33;

#[test]
fn what_opens_is_converted_and_what_does_not_is_refused_in_one_sentence() {
    let desk = Desk::new();
    unpack_into(&desk.path("corpus"));
    let (mut wrong, mut converted, mut refused) = (Vec::new(), 0, 0);
    let all = rows("vhd").into_iter().chain(rows("vhdx"));
    for row in all.filter(|row| row.size.is_none_or(|size| size < HASHED_BYTES_MAX)) {
        let source = format!("corpus/{}", row.file);
        let arguments = ["image", "convert", &source, "out.raw", "--force", "--log-level", "error"];
        let said = said(desk.command(&arguments).output().unwrap());
        let verdict = row.verdict.split(':').next().unwrap_or_default();
        if said.code == 0 {
            converted += 1;
            let bytes = Sha256::digest(std::fs::read(desk.path("out.raw")).unwrap());
            let sha: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            if verdict == "reject" || (!row.sha.is_empty() && sha != row.sha && sha != row.alt_sha) {
                wrong.push(format!("{} ({}) was converted to {sha}", row.file, row.verdict));
            }
        } else {
            refused += 1;
            let one_sentence =
                said.code == 1 && said.err.lines().count() == 1 && said.err.starts_with("goldrush: ");
            if !matches!(verdict, "reject" | "either") || !one_sentence || !says_where_and_what(&said.err) {
                wrong.push(format!("{} ({}) was refused: {said:?}", row.file, row.verdict));
            }
        }
    }
    println!("{converted} converted, {refused} refused");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(converted >= 85 && refused >= 60, "{converted} converted, {refused} refused");
}

/// Address space for a command, in KiB, beyond what the program takes by itself.
const MEMORY_KIB: u64 = 64 << 10;

/// Runs the program with so much address space.
fn within(desk: &Desk, kib: u64, arguments: &[&str]) -> Said {
    let whole = desk.command(arguments);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &format!("ulimit -v {kib} && exec \"$@\""), "sh"]).arg(whole.get_program());
    shell.args(whole.get_args()).current_dir(desk.path(""));
    shell.envs(whole.get_envs().filter_map(|(name, value)| Some((name, value?))));
    said(shell.output().unwrap())
}

#[test]
fn no_file_takes_more_than_64_mib_of_memory_to_be_looked_at_and_refused() {
    let desk = Desk::new();
    unpack_into(&desk.path("corpus"));
    desk.goldrush_ok("image create small.vhd --size 1M");
    let small = ["image", "check", "small.vhd"];
    let own = (1..4096).map(|step| step * 4096).find(|kib| within(&desk, *kib, &small).code == 0).unwrap();
    assert!(within(&desk, own / 2, &small).code != 0, "the bound binds nobody");
    let all = rows("vhd").into_iter().chain(rows("vhdx"));
    let mut seen = 0;
    for row in all.filter(|row| row.verdict.starts_with("reject")) {
        let file = format!("corpus/{}", row.file);
        for words in
            [&["image", "info"][..], &["image", "check"], &["image", "check", "--repair", "--dry-run"]]
        {
            let said = within(&desk, own + MEMORY_KIB, &[words, &[&file]].concat());
            let told =
                said.err.is_empty() || said.err.lines().all(|line| !line.contains("memory allocation"));
            assert!((0..=3).contains(&said.code) && told, "{words:?} {file}: {said:?}");
        }
        seen += 1;
    }
    assert!(seen > 50, "{seen}");
}

/// A damaged file's sentence names a structure with its place (or the parent that is the matter), and what to do.
fn says_where_and_what(sentence: &str) -> bool {
    let place = ["(byte ", "parent", "no whole number of 512-byte sectors", "its own ancestor"];
    let advice = [
        "restore",
        "repair",
        "convert",
        "fetch",
        "put it there",
        "merge",
        "rename",
        "open it once",
        "leave strict",
        "another image",
        "roots",
        "circle",
        "cut off or no disk image",
        "not its child",
        "regular file",
    ];
    let says = |words: &[&str]| words.iter().any(|word| sentence.contains(word));
    sentence.contains("corpus/") && says(&place) && says(&advice)
}

#[test]
fn a_server_follows_no_locator_out_of_its_roots() {
    let desk = Desk::new();
    unpack_into(&desk.path("corpus"));
    let open = |root: &str, file: &str| {
        let mut opener = Opener::confined(&[desk.path(root)], false).unwrap();
        opener.open_chain(&desk.path(file), Access::ReadOnly)
    };
    assert!(open("corpus", "corpus/dirs/clients/a/child.vhd").is_ok());
    let out = open("corpus/dirs/clients", "corpus/dirs/clients/a/child.vhd");
    assert!(matches!(out, Err(OpenError::ParentOutside { .. })), "{out:?}");
    let escape = open("corpus", "corpus/bad/diff-loc-escape.vhd");
    assert!(
        matches!(escape, Err(OpenError::ParentOutside { .. } | OpenError::ParentNotFound { .. })),
        "{escape:?}"
    );
    // What is wrong with a chain is found here, before a server binds anything.
    let bad = |file: &str| open("corpus", &format!("corpus/bad/{file}.vhd"));
    assert!(matches!(bad("diff-parent-uuid"), Err(OpenError::ParentId { .. })));
    assert!(matches!(bad("diff-self"), Err(OpenError::Cycle { .. })));
    assert!(matches!(bad("diff-cycle-a"), Err(OpenError::Cycle { .. })));
    assert!(matches!(bad("diff-size-mismatch"), Err(OpenError::ParentLarger { .. })));
    assert!(matches!(bad("diff-loc-missing-parent"), Err(OpenError::ParentNotFound { .. })));
    // A link inside the roots that leads out of them is followed before it is judged.
    std::fs::create_dir(desk.path("corpus/linked")).unwrap();
    std::fs::copy(desk.path("corpus/bad/diff-ok.vhd"), desk.path("corpus/linked/child.vhd")).unwrap();
    std::os::unix::fs::symlink(desk.path("corpus/bad/gold-dyn.vhd"), desk.path("corpus/linked/gold-dyn.vhd"))
        .unwrap();
    assert!(open("corpus", "corpus/linked/child.vhd").is_ok());
    assert!(matches!(open("corpus/linked", "corpus/linked/child.vhd"), Err(OpenError::ParentOutside { .. })));
}

#[test]
fn a_fifo_in_the_place_of_a_parent_hangs_nobody() {
    let desk = Desk::new();
    unpack_into(&desk.path("corpus"));
    std::fs::remove_file(desk.path("corpus/bad/gold-dyn.vhd")).unwrap();
    let made =
        std::process::Command::new("mkfifo").arg(desk.path("corpus/bad/gold-dyn.vhd")).status().unwrap();
    assert!(made.success());
    let opened =
        Opener::anywhere(Locking::Hold).open_chain(&desk.path("corpus/bad/diff-ok.vhd"), Access::ReadOnly);
    assert!(matches!(opened, Err(OpenError::ParentKind { .. })), "{opened:?}");
}

#[test]
fn a_vhdx_is_described_checked_and_served_only_as_it_may_be() {
    let desk = Desk::new();
    unpack_into(&desk.path("corpus"));
    let run = |arguments: &[&str]| said(desk.command(arguments).output().unwrap());
    let info = run(&["image", "info", "--json", "corpus/vhdx/chain/d2.vhdx"]);
    let report: serde_json::Value = serde_json::from_str(&info.out).unwrap();
    assert_eq!(report["chain"].as_array().unwrap().len(), 3);
    assert_eq!(report["chain"][0]["type"], "differencing");
    assert_eq!(
        report["chain"][0]["parent"]["data_write_guid"], report["chain"][1]["data_write_guid"],
        "{}",
        info.out
    );
    let text = run(&["image", "info", "corpus/vhdx/o-dyn-4k.vhdx"]);
    assert!(text.out.contains("4096 bytes") && text.out.contains("log           empty"), "{text:?}");
    for (file, code, word) in [
        ("vhdx/o-dyn", 0, "clean"),
        ("bad/vhdx/reg1-bad", 1, "region table 1"),
        ("bad/vhdx/hdr-current-bad", 1, "header"),
        ("bad/vhdx/log-dirty", 1, "the log"),
        ("bad/vhdx/bat-dup", 1, "block"),
    ] {
        let check = run(&["image", "check", &format!("corpus/{file}.vhdx")]);
        assert!(check.code == code && check.out.contains(word), "{file}: {check:?}");
    }
    let mut opener = Opener::anywhere(Locking::Hold);
    let four_k = opener.open_chain(&desk.path("corpus/vhdx/o-dyn-4k.vhdx"), Access::ReadOnly).unwrap();
    assert_eq!(four_k.leaf().logical_sector().bytes(), 4096);
    let wrong = opener.open_chain(&desk.path("corpus/bad/vhdx/diff-linkage.vhdx"), Access::ReadOnly);
    assert!(matches!(wrong, Err(OpenError::ParentId { .. })), "{wrong:?}");
}
