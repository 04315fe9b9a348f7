//! Bad configurations: each is refused as a whole, with its file, line and reason, before anything is bound.

use crate::cli::Desk;
use std::os::unix::fs::PermissionsExt;

const GOOD: &str = r#"listen = ["127.0.0.1:0"]

[[target]]
name = "iqn.2026-11.io.goldrush:node-001"
initiators = ["iqn.2010-04.org.ipxe:node-001"]
chap = { user = "node-001", secret_file = "secret" }

  [[target.lun]]
  lun = 0
  path = "disk.raw"
  readonly = false
"#;

fn desk() -> Desk {
    let desk = Desk::new();
    desk.write("disk.raw", vec![0; 1 << 20]);
    desk.write("odd.raw", vec![0; 1000]);
    desk.write("seven.raw", vec![0; 7 * 512]);
    for (name, content) in [
        ("secret", "a secret of 22 bytes.."),
        ("other", "another secret of ours"),
        ("short", "only eleven"),
        ("lines", "a secret of\ntwo lines"),
    ] {
        desk.write(name, content);
        std::fs::set_permissions(desk.path(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    desk.write("open", "a secret of 22 bytes..");
    std::fs::set_permissions(desk.path("open"), std::fs::Permissions::from_mode(0o644)).unwrap();
    desk.goldrush_ok("image create golden.vhd --size 8M");
    desk.goldrush_ok("image create child.vhd --parent golden.vhd");
    std::fs::create_dir(desk.path("away")).unwrap();
    desk.goldrush_ok("image create away/golden.vhd --size 8M");
    desk.goldrush_ok("image create stray.vhd --parent away/golden.vhd");
    desk
}

/// Each row: what is replaced in `GOOD`, by what, and what is said.
const BAD: &[(&str, &str, &str)] = &[
    ("listen =", "listen", "goldrush: c.toml:1: key with no value, expected `=`"),
    ("[[target]]", "[[target]", "goldrush: c.toml:3: unclosed array table, expected `]`"),
    ("listen =", "lisen =", "goldrush: c.toml:1: unknown field `lisen`, expected one of …"),
    ("lun = 0", "lun = \"zero\"", "goldrush: c.toml:9: invalid type: string \"zero\", expected i64"),
    ("  path = \"disk.raw\"\n", "", "goldrush: c.toml:8: missing field `path`"),
    (
        "readonly = false",
        "format = \"qcow2\"",
        "goldrush: c.toml:11: unknown variant `qcow2`, expected one of `raw`, `vhd`, `vhdx`",
    ),
    (
        "127.0.0.1:0",
        "localhost:3260",
        "goldrush: c.toml:1: \"localhost:3260\" is no listen address: write ADDRESS:PORT with a numeric address, such as 0.0.0.0:3260 or [::]:3260",
    ),
    (
        "\"127.0.0.1:0\"",
        "\"127.0.0.1:4000\", \"127.0.0.1:4000\"",
        "goldrush: c.toml:1: listen address 127.0.0.1:4000 stands twice",
    ),
    (
        "[\"127.0.0.1:0\"]",
        "[]",
        "goldrush: c.toml:1: listen is empty: name an address, or remove the key to listen on 0.0.0.0:3260",
    ),
    (
        "iqn.2026-11.io.goldrush:node-001",
        "node-001",
        "goldrush: c.toml:4: \"node-001\" is no target name: it must begin with iqn., eui. or naa.",
    ),
    (
        "iqn.2026-11.io.goldrush:node-001",
        "iqn.2026-13.io.goldrush",
        "goldrush: c.toml:4: \"iqn.2026-13.io.goldrush\" is no target name: iqn. must be followed by a year and month and a reversed domain name, such as iqn.2026-11.io.goldrush:node-001",
    ),
    (
        "iqn.2010-04.org.ipxe:node-001",
        "eui.123",
        "goldrush: c.toml:5: \"eui.123\" is no initiator name: eui. must be followed by 16 hexadecimal digits",
    ),
    (
        "[\"iqn.2010-04.org.ipxe:node-001\"]",
        "[]",
        "goldrush: c.toml:5: initiators is empty and would admit nobody: remove the key to admit all",
    ),
    (
        "\"secret\"",
        "\"none\"",
        "goldrush: c.toml:6: none: the secret cannot be read: No such file or directory (os error 2)",
    ),
    ("\"secret\"", "\"short\"", "goldrush: c.toml:6: short: the secret has 11 bytes: it must have 12 to 255"),
    (
        "\"secret\"",
        "\"lines\"",
        "goldrush: c.toml:6: lines: the secret holds a line break or a NUL: it must be one line",
    ),
    ("\"secret\"", "\".\"", "goldrush: c.toml:6: .: the secret is not a regular file"),
    (
        "\"secret\" }",
        "\"secret\", mutual = { user = \"room\", secret_file = \"secret\" } }",
        "goldrush: c.toml:6: the mutual secret must differ from the initiator's (RFC 7143, 9.2.1)",
    ),
    (
        "user = \"node-001\"",
        "user = \"\"",
        "goldrush: c.toml:6: the CHAP user must be one line of 1 to 255 bytes",
    ),
    ("lun = 0", "lun = 256", "goldrush: c.toml:9: LUN 256 is out of range: 0 to 255"),
    ("lun = 0", "lun = -1", "goldrush: c.toml:9: LUN -1 is out of range: 0 to 255"),
    ("readonly = false", "block_size = 520", "goldrush: c.toml:11: block_size 520 is neither 512 nor 4096"),
    (
        "  readonly = false\n",
        "[[target.lun]]\nlun = 0\npath = \"child.vhd\"\n",
        "goldrush: c.toml:12: LUN 0 stands twice in this target; it is on line 9 already",
    ),
    (
        "  readonly = false\n",
        "[[target.lun]]\nlun = 1\npath = \"./disk.raw\"\n",
        "goldrush: c.toml:13: ./disk.raw is used by c.toml:10 already: an image that is written has one user",
    ),
    (
        "  readonly = false\n",
        "[[target]]\nname = \"iqn.2026-11.io.goldrush:NODE-001\"\n[[target.lun]]\nlun = 0\npath = \"child.vhd\"\n",
        "goldrush: c.toml:12: target iqn.2026-11.io.goldrush:node-001 stands a second time; it is on line 4 already",
    ),
    (
        "  readonly = false\n",
        "[[target]]\nname = \"iqn.2026-11.io.goldrush:empty\"\n",
        "goldrush: c.toml:12: target iqn.2026-11.io.goldrush:empty has no [[target.lun]]",
    ),
    (
        "disk.raw",
        "none.raw",
        "goldrush: c.toml:10: image none.raw cannot be opened: No such file or directory (os error 2)",
    ),
    (
        "disk.raw",
        "away",
        "goldrush: c.toml:10: away is a folder: an image is a regular file or a block device",
    ),
    (
        "disk.raw",
        "odd.raw",
        "goldrush: c.toml:10: odd.raw: 1000 bytes are no whole number of 512-byte sectors and no VHD footer ends them: the file is cut off or no disk image",
    ),
    (
        "\"disk.raw\"",
        "\"seven.raw\"\nblock_size = 4096",
        "goldrush: c.toml:10: seven.raw: the disk has 7 sectors of 512 bytes, no whole number of 4096-byte blocks: use block_size 512",
    ),
];

#[test]
fn every_bad_configuration_is_refused_with_file_line_and_reason() {
    let desk = desk();
    let mut wrong = Vec::new();
    for (from, to, expected) in BAD {
        assert!(GOOD.contains(from), "{from}");
        desk.write("c.toml", GOOD.replacen(from, to, 1));
        let said = desk.goldrush("serve --config c.toml");
        // The keys there are, all of them, are nobody's business here.
        let told = match expected.strip_suffix('…') {
            Some(beginning) => said.err.starts_with(beginning) && said.err.lines().count() == 1,
            None => said.err.trim_end() == *expected,
        };
        if (said.code, said.out.as_str(), told) != (2, "", true) {
            wrong.push(format!("{to}\n  expected {expected}\n  but {said:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn all_errors_are_told_at_once() {
    let desk = desk();
    desk.write("c.toml", GOOD.replace("lun = 0", "lun = 999").replace("127.0.0.1:0", "nowhere"));
    let said = desk.goldrush("serve --config c.toml");
    assert_eq!((said.code, said.err.lines().count()), (2, 2), "{said:?}");
    assert!(said.err.lines().all(|line| line.starts_with("goldrush: c.toml:")), "{said:?}");
}

#[test]
fn a_parent_outside_the_roots_or_written_elsewhere_is_refused() {
    let desk = desk();
    std::fs::create_dir(desk.path("roots")).unwrap();
    desk.write(
        "out.toml",
        GOOD.replace("disk.raw", "stray.vhd").replace("listen", "image_roots = [\"roots\"]\nlisten"),
    );
    let said = desk.goldrush("serve --config out.toml");
    assert_eq!(said.code, 2);
    assert!(
        said.err.contains("out.toml:11: stray.vhd: its parent")
            && said.err.contains("outside the image roots"),
        "{said:?}"
    );

    let both = "[[target.lun]]\nlun = 1\npath = \"golden.vhd\"\n";
    desk.write("both.toml", GOOD.replace("disk.raw", "child.vhd").replace("  readonly = false\n", both));
    let said = desk.goldrush("serve --config both.toml");
    assert_eq!(said.code, 2);
    assert!(said.err.contains("both.toml:13: golden.vhd is used by both.toml:10 already"), "{said:?}");
}

#[test]
fn strict_mode_refuses_what_is_otherwise_a_warning() {
    let desk = desk();
    let strict = |text: &str| format!("strict = true\n{text}");
    desk.write("secret.toml", strict(&GOOD.replace("\"secret\"", "\"open\"")));
    let said = desk.goldrush("serve --config secret.toml");
    let expected = "goldrush: secret.toml:7: open: the secret may be read by every user (mode 644): run chmod 600 on it\n";
    assert_eq!((said.code, said.err.as_str()), (2, expected));

    let golden = std::fs::File::options().write(true).open(desk.path("golden.vhd")).unwrap();
    golden.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(1000)).unwrap();
    // The footer's own time stamp is the child's as well, in the second both were made.
    std::thread::sleep(std::time::Duration::from_millis(3100));
    desk.goldrush_ok("image create late.vhd --parent golden.vhd");
    golden.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(5000)).unwrap();
    drop(golden);
    desk.write("parent.toml", strict(&GOOD.replace("disk.raw", "late.vhd")));
    let said = desk.goldrush("serve --config parent.toml");
    assert_eq!(said.code, 2);
    assert!(
        said.err.contains("parent.toml:11: late.vhd: its parent")
            && said.err.contains("golden.vhd was changed"),
        "{said:?}"
    );
}

#[test]
fn a_configuration_that_is_no_text_or_no_file_is_refused() {
    let desk = desk();
    desk.write("bytes.toml", b"listen = [\n\xFF\xFE");
    let said = desk.goldrush("serve --config bytes.toml");
    assert_eq!((said.code, said.err.as_str()), (2, "goldrush: bytes.toml:2: is not UTF-8 text\n"));
    assert_eq!(desk.goldrush("serve --config away").code, 2);
    assert_eq!(desk.goldrush("serve --config none.toml").code, 2);
    assert_eq!(desk.goldrush("serve").code, 2);
}
