//! The house rules a machine can check: which module may name which, where `unsafe` lives, sizes, headers, words.
//!
//! Knows the tree as text. Does not know what the code does. Each checker is a function over text that returns what
//! it found; the tests at the end show that each of them can fail.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 70;

/// Functions that are longer than `FUNCTION_LINES_MAX`, with their length: this list may only shrink.
const LONG_FUNCTIONS: &[(&str, &str, usize)] = &[];

/// What may lie at the top of the repository beside hidden files.
const TOP_LEVEL: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "src",
    "benches",
    "perf",
    "tests",
    "scripts",
    "README.md",
    "LICENSE",
    "target",
];

const BASE: &[&str] = &[
    "units",
    "limits",
    "clock",
    "slab",
    "plan",
    "parent_path",
    "commits",
    "findings",
    "growth",
    "memory_file",
];

/// The layers, lowest first: an area (module path) and the areas it may name beside itself. "base" is `BASE`.
const IMPORTS: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("iscsi::pdu", &["base", "iscsi::serial"]),
    ("iscsi::serial", &["base"]),
    ("iscsi", &["base", "iscsi::pdu", "iscsi::serial"]),
    ("isns", &["base"]),
    ("scsi", &["base"]),
    ("vhd", &["base"]),
    ("vhdx", &["base"]),
    ("image", &["base", "vhd", "vhdx"]),
    ("pending", &["base"]),
    ("boot_trace", &["base"]),
    ("buf", &["base"]),
    ("cache", &["base", "buf"]),
    ("io", &["base", "buf"]),
    ("uring", &["base", "buf", "io", "pending"]),
    (
        "shard",
        &[
            "base",
            "iscsi::pdu",
            "iscsi::serial",
            "iscsi",
            "scsi",
            "vhd",
            "vhdx",
            "image",
            "pending",
            "buf",
            "cache",
            "io",
        ],
    ),
    (
        "control",
        &[
            "base",
            "iscsi::pdu",
            "iscsi::serial",
            "iscsi",
            "isns",
            "scsi",
            "vhd",
            "vhdx",
            "image",
            "pending",
            "boot_trace",
            "buf",
            "cache",
            "io",
            "uring",
            "shard",
        ],
    ),
];

/// Paths outside the crate, and the only areas that may name them.
const OUTSIDE: &[(&str, &[&str])] = &[
    ("std::fs", &["uring", "control"]),
    ("std::thread", &["uring", "control"]),
    ("std::time", &["uring", "control"]),
    ("std::net::Tcp", &["uring", "control"]),
    ("std::net::Udp", &["uring", "control"]),
    ("std::process", &["control"]),
    ("std::env", &["control"]),
    ("io_uring::", &["uring"]),
    ("libc::", &["buf", "uring", "control"]),
    ("tokio_uring", &["control"]),
    ("parking_lot", &["control"]),
    ("crossbeam", &["buf", "cache", "uring", "shard", "control"]),
    ("clap", &["control"]),
    ("serde", &["control", "scsi"]),
];

/// Files in which `unsafe` may stand.
fn unsafe_is_fenced(path: &str) -> bool {
    // An allocator that counts is an unsafe trait: nothing but that test needs one.
    let counts = path == "tests/alloc/counting.rs";
    counts || path.starts_with("src/buf/") || path.starts_with("src/uring/") || path.starts_with("perf/ring")
}

/// A finding: where, and what.
type Findings = Vec<String>;

/// Blanks comments, strings and character literals; line breaks and everything else keep their places.
fn code_only(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let mut out: Vec<char> = chars.clone();
    let mut at = 0;
    while at < chars.len() {
        let end = match chars[at] {
            '/' if chars.get(at + 1) == Some(&'/') => find(&chars, at, |i| chars[i] == '\n'),
            '/' if chars.get(at + 1) == Some(&'*') => block_comment_end(&chars, at),
            '"' => string_end(&chars, at + 1),
            'r' if !ident_before(&chars, at) && raw_hashes(&chars, at + 1).is_some() => {
                raw_string_end(&chars, at + 1)
            }
            'b' if !ident_before(&chars, at)
                && chars.get(at + 1) == Some(&'r')
                && raw_hashes(&chars, at + 2).is_some() =>
            {
                raw_string_end(&chars, at + 2)
            }
            '\'' => char_literal_end(&chars, at),
            _ => at,
        };
        for place in &mut out[at..end] {
            if *place != '\n' {
                *place = ' ';
            }
        }
        at = end.max(at + 1);
    }
    out.into_iter().collect()
}

fn find(chars: &[char], from: usize, stop: impl Fn(usize) -> bool) -> usize {
    (from..chars.len()).find(|i| stop(*i)).unwrap_or(chars.len())
}

fn ident_before(chars: &[char], at: usize) -> bool {
    at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_')
}

fn block_comment_end(chars: &[char], at: usize) -> usize {
    let (mut depth, mut i) = (0, at);
    while i + 1 < chars.len() {
        match (chars[i], chars[i + 1]) {
            ('/', '*') => (depth, i) = (depth + 1, i + 2),
            ('*', '/') => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            return i;
        }
    }
    chars.len()
}

fn string_end(chars: &[char], mut i: usize) -> usize {
    while i < chars.len() {
        match chars[i] {
            '\\' => i += 2,
            '"' => return i + 1,
            _ => i += 1,
        }
    }
    chars.len()
}

/// How many `#` stand before the quote of a raw string that starts here; `None` when none does.
fn raw_hashes(chars: &[char], at: usize) -> Option<usize> {
    let hashes = chars[at..].iter().take_while(|c| **c == '#').count();
    (chars.get(at + hashes) == Some(&'"')).then_some(hashes)
}

fn raw_string_end(chars: &[char], at: usize) -> usize {
    let hashes = raw_hashes(chars, at).unwrap_or(0);
    let closes = |i: usize| {
        chars[i] == '"' && chars[i + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes
    };
    (find(chars, at + hashes + 1, closes) + hashes + 1).min(chars.len())
}

/// The end of a character literal; `at` for a lifetime.
fn char_literal_end(chars: &[char], at: usize) -> usize {
    match (chars.get(at + 1), chars.get(at + 2)) {
        (Some('\\'), _) => (find(chars, at + 3, |i| chars[i] == '\'') + 1).min(chars.len()),
        (Some(_), Some('\'')) => at + 3,
        _ => at,
    }
}

/// `src/iscsi/pdu/bhs.rs` is `iscsi::pdu::bhs`.
fn module_path(file: &str) -> Vec<String> {
    let inner = file.strip_prefix("src/").unwrap_or(file).trim_end_matches(".rs");
    let mut parts: Vec<String> = inner.split('/').map(str::to_owned).collect();
    if parts.last().is_some_and(|last| last == "mod" || last == "lib") {
        parts.pop();
    }
    parts
}

/// The area of a module path: the longest name of `IMPORTS` it starts with. `None` for the crate's root.
fn area_of(path: &[String]) -> Option<&'static str> {
    if path.first().is_some_and(|first| BASE.contains(&first.as_str())) {
        return Some("base");
    }
    let joined = path.join("::");
    let starts = |area: &str| joined == area || joined.starts_with(&format!("{area}::"));
    IMPORTS.iter().map(|(area, _)| *area).filter(|area| starts(area)).max_by_key(|area| area.len())
}

/// Module paths that `code` names through `crate::` and `super::`, `use` groups flattened. `here` is its own path.
fn named_paths(code: &str, here: &[String]) -> BTreeSet<Vec<String>> {
    let mut paths = BTreeSet::new();
    for (root, keep) in [("crate", 0), ("super", here.len().saturating_sub(1))] {
        let needle = format!("{root}::");
        for (at, _) in code.match_indices(&needle) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let mut rest = &code[at + needle.len()..];
            let mut prefix = here[..keep.min(here.len())].to_vec();
            while root == "super" && rest.starts_with("super::") {
                prefix.pop();
                rest = &rest["super::".len()..];
            }
            flatten(rest, &prefix, &mut paths);
        }
    }
    paths
}

/// Follows one path, and one level of braces as often as it is nested.
fn flatten(text: &str, prefix: &[String], paths: &mut BTreeSet<Vec<String>>) {
    let text = text.trim_start();
    if let Some(group) = text.strip_prefix('{') {
        let (mut depth, mut start) = (0, 0);
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                ',' | '}' if depth == 0 => {
                    flatten(&group[start..i], prefix, paths);
                    start = i + 1;
                    if c == '}' {
                        return;
                    }
                }
                '}' => depth -= 1,
                _ => {}
            }
        }
        return;
    }
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    if end == 0 {
        return;
    }
    let mut path = prefix.to_vec();
    path.push(text[..end].to_owned());
    match text[end..].strip_prefix("::") {
        Some(rest) => flatten(rest, &path, paths),
        None => {
            paths.insert(path);
        }
    }
}

fn check_imports(file: &str, source: &str) -> Findings {
    let here = module_path(file);
    let code = code_only(source);
    let Some(area) = area_of(&here) else { return check_root(file, &code, &here) };
    let allowed = IMPORTS.iter().find(|(name, _)| *name == area).map_or(&[][..], |(_, allowed)| *allowed);
    let mut findings = Vec::new();
    for path in named_paths(&code, &here) {
        let Some(other) = area_of(&path) else { continue };
        // `iscsi` itself is only a path on the way to `iscsi::pdu`.
        let on_the_way =
            IMPORTS.iter().any(|(name, _)| *name == area && name.starts_with(&format!("{other}::")));
        if other != area && !allowed.contains(&other) && !(on_the_way && path.len() == 1) {
            findings.push(format!("{file}: {area} must not name {} ({other})", path.join("::")));
        }
    }
    for (outside, areas) in OUTSIDE {
        let named = code.match_indices(outside).any(|(at, _)| !ident_ends(&code[..at]));
        if named && !areas.contains(&area) {
            findings.push(format!("{file}: {area} must not name {outside}"));
        }
    }
    findings
}

fn ident_ends(text: &str) -> bool {
    text.chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_')
}

/// `main.rs` and `lib.rs` wire modules: the program names `control` alone.
fn check_root(file: &str, code: &str, here: &[String]) -> Findings {
    if file != "src/main.rs" {
        return Vec::new();
    }
    let own = code.replace("goldrush::", "crate::");
    named_paths(&own, here)
        .into_iter()
        .filter(|path| path.first().is_some_and(|first| first != "control"))
        .map(|path| format!("{file}: the program must not name {}", path.join("::")))
        .collect()
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_')
}

/// `unsafe` stands inside the fence only, and each one says why it is sound.
fn check_unsafe(file: &str, source: &str) -> Findings {
    let code = code_only(source);
    let lines: Vec<&str> = source.lines().collect();
    let mut findings = Vec::new();
    for (index, line) in code.lines().enumerate() {
        if !words(line).any(|word| word == "unsafe") {
            continue;
        }
        if !unsafe_is_fenced(file) {
            findings.push(format!("{file}:{}: unsafe outside src/buf and src/uring", index + 1));
        }
        let above = &lines[index.saturating_sub(12)..=index];
        let reason = if line.contains("unsafe fn") { "# Safety" } else { "SAFETY:" };
        if !above.iter().any(|line| line.contains(reason)) {
            findings.push(format!("{file}:{}: unsafe without a reason ({reason})", index + 1));
        }
    }
    findings
}

/// Every module of the library forbids `unsafe`, but for the two fenced ones.
fn check_fences(lib: &str) -> Findings {
    let lines: Vec<&str> = lib.lines().collect();
    let mut findings = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some(module) = line.strip_prefix("pub mod ") else { continue };
        let before = index.checked_sub(1).map_or("", |previous| lines[previous]);
        let fence = match module.trim_end_matches(';') {
            "buf" | "uring" => "#[allow(unsafe_code)] // UNSAFETY: ",
            _ => "#[forbid(unsafe_code)]",
        };
        if !before.starts_with(fence) {
            findings.push(format!("src/lib.rs:{}: {line} needs {fence} before it", index + 1));
        }
    }
    findings
}

fn check_shape(file: &str, source: &str) -> Findings {
    let mut findings = Vec::new();
    let lines = source.lines().count();
    if lines > FILE_LINES_MAX {
        findings.push(format!("{file}: {lines} lines, {FILE_LINES_MAX} are allowed"));
    }
    if !source.starts_with("//!") {
        findings.push(format!("{file}: does not open with //! and what it knows"));
    }
    if file.ends_with("utils.rs") || file.ends_with("helpers.rs") {
        findings.push(format!("{file}: name the file after what it knows"));
    }
    findings
}

/// Words and paths that must not be committed. Assembled here, so that this file does not hold them.
fn banned() -> Vec<String> {
    let mut banned: Vec<String> =
        ["todo", "unimplemented", "dbg"].iter().map(|name| format!("{name}!(")).collect();
    banned.extend([["FIX", "ME"].concat(), ["XX", "X"].concat()]);
    banned.extend(["home", "root", "work", "Users"].iter().map(|folder| format!("/{folder}/")));
    banned
}

fn check_words(file: &str, source: &str) -> Findings {
    let banned = banned();
    let mut findings = Vec::new();
    for (index, line) in source.lines().enumerate() {
        for word in banned.iter().filter(|word| line.contains(word.as_str())) {
            findings.push(format!("{file}:{}: holds {word}", index + 1));
        }
        if line.contains(&["#[", "ignore]"].concat()) {
            findings.push(format!("{file}:{}: an ignored test needs its reason", index + 1));
        }
    }
    findings
}

/// The name and the number of lines of each function with a body.
fn function_lengths(source: &str) -> Vec<(String, usize)> {
    let code = code_only(source);
    let mut lengths = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        if ident_ends(&code[..at]) {
            continue;
        }
        let rest = &code[at + 3..];
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let body = rest.find(['{', ';']).filter(|open| rest.as_bytes()[*open] == b'{');
        let (false, Some(open)) = (name.is_empty(), body) else { continue };
        let mut depth = 0;
        let close = rest[open..].char_indices().find_map(|(i, c)| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            (depth == 0).then_some(open + i)
        });
        let text = &rest[..close.unwrap_or(rest.len())];
        lengths.push((name, text.matches('\n').count() + 1));
    }
    lengths
}

/// `long` is the ratchet: what it lists must be that long still, nothing else may be, nothing in it may grow.
fn check_functions(files: &[(String, String)], long: &[(&str, &str, usize)]) -> Findings {
    let mut findings = Vec::new();
    let mut met = BTreeSet::new();
    for (file, source) in files {
        for (name, lines) in
            function_lengths(source).into_iter().filter(|(_, lines)| *lines > FUNCTION_LINES_MAX)
        {
            let listed = long.iter().find(|(in_file, function, _)| in_file == file && *function == name);
            met.insert((file.clone(), name.clone()));
            let allowed = listed.map_or(FUNCTION_LINES_MAX, |(_, _, allowed)| *allowed);
            if lines > allowed {
                findings.push(format!("{file}: fn {name} has {lines} lines, {allowed} are allowed"));
            } else if lines < allowed {
                findings.push(format!(
                    "{file}: fn {name} has only {lines} lines now: lower it in LONG_FUNCTIONS"
                ));
            }
        }
    }
    for (file, function, _) in long {
        if !met.contains(&((*file).to_owned(), (*function).to_owned())) {
            findings
                .push(format!("{file}: fn {function} is not long any more: remove it from LONG_FUNCTIONS"));
        }
    }
    findings
}

fn check_top_level(entries: &[String]) -> Findings {
    let extra = entries.iter().filter(|name| !name.starts_with('.') && !TOP_LEVEL.contains(&name.as_str()));
    extra.map(|name| format!("{name}: does not belong at the top of the repository")).collect()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All files below `folder` that end in one of `endings`, as paths from the repository's root with their text.
fn files(folder: &str, endings: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            let hidden = path.file_name().is_some_and(|name| name == "target" || name == "artifacts");
            if path.is_dir() && !hidden {
                folders.push(path);
            } else if endings.iter().any(|ending| path.to_string_lossy().ends_with(ending)) {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((relative(&path), text));
            }
        }
    }
    found.sort();
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_string_lossy().into_owned()
}

fn rust_files() -> Vec<(String, String)> {
    ["src", "perf", "benches", "tests"].iter().flat_map(|folder| files(folder, &[".rs"])).collect()
}

/// Fails with one line for each finding.
fn expect_none(rule: &str, findings: Findings) {
    let mut text = String::new();
    for finding in &findings {
        let _ = writeln!(text, "  {finding}");
    }
    assert!(findings.is_empty(), "{rule}:\n{text}");
}

fn each(files: &[(String, String)], check: impl Fn(&str, &str) -> Findings) -> Findings {
    files.iter().flat_map(|(file, source)| check(file, source)).collect()
}

#[test]
fn arrows_point_down() {
    expect_none(
        "a module names what it must not (house rule 3.3)",
        each(&files("src", &[".rs"]), check_imports),
    );
}

#[test]
fn unsafe_stays_inside_its_fences() {
    expect_none("unsafe", each(&rust_files(), check_unsafe));
    let lib = std::fs::read_to_string(root().join("src/lib.rs")).unwrap();
    expect_none("fences", check_fences(&lib));
}

#[test]
fn files_are_short_and_say_what_they_know() {
    expect_none("files", each(&rust_files(), check_shape));
}

#[test]
fn functions_are_short() {
    expect_none("functions", check_functions(&rust_files(), LONG_FUNCTIONS));
}

#[test]
fn no_marker_and_no_path_of_a_machine_is_left() {
    let mut all = rust_files();
    all.extend(files("scripts", &[""]));
    all.extend(files("src", &[".md"]));
    expect_none("words", each(&all, check_words));
}

#[test]
fn the_top_level_is_what_the_house_says() {
    let entries = std::fs::read_dir(root()).unwrap();
    let names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    expect_none("top level", check_top_level(&names));
}

mod checkers_can_fail {
    use super::*;

    #[test]
    fn code_only_blanks_text_and_keeps_lines() {
        let source = "a /* x /* y */ z */ b // c\n\"s\\\"t\" r#\"u\"v\"# 'w' '\\'' &'a str br\"q\" bar\"k\"";
        let code = code_only(source);
        let left: Vec<&str> = code.split_whitespace().collect();
        assert_eq!(left, ["a", "b", "&'a", "str", "bar"]);
        assert_eq!(code.matches('\n').count(), 1);
    }

    #[test]
    fn imports_upward_and_sideways_are_found() {
        let found = |file: &str, source: &str| check_imports(file, source).len();
        assert_eq!(found("src/vhd/bat.rs", "use crate::image::Chain;"), 1);
        assert_eq!(found("src/vhd/bat.rs", "use crate::{units::{Sector, Lba}, scsi};"), 1);
        assert_eq!(found("src/vhd/bat.rs", "use super::super::io::Op;"), 1);
        assert_eq!(found("src/vhd/bat.rs", "let x = crate::uring::probe();"), 1);
        assert_eq!(found("src/shard/reactor.rs", "use crate::uring::Ring;"), 1);
        assert_eq!(found("src/iscsi/pdu/bhs.rs", "use super::super::session::Session;"), 1);
        assert_eq!(found("src/iscsi/login.rs", "use crate::scsi::sense::Sense;"), 1);
        assert_eq!(found("src/units.rs", "use crate::vhd::Footer;"), 1);
        assert_eq!(found("src/main.rs", "goldrush::uring::x()"), 1);
    }

    #[test]
    fn imports_downward_and_at_home_are_let_through() {
        let found = |file: &str, source: &str| check_imports(file, source).len();
        assert_eq!(
            found("src/image/chain.rs", "use crate::vhd::{VhdImage, OpenMode}; use crate::plan::ReadPlan;"),
            0
        );
        assert_eq!(
            found("src/iscsi/pdu/data_in.rs", "use crate::iscsi::serial::DataSn; use super::bhs::Bhs;"),
            0
        );
        assert_eq!(found("src/iscsi/session.rs", "use super::pdu::bhs::Bhs; use crate::limits;"), 0);
        assert_eq!(found("src/control/serve.rs", "use crate::uring::host; use std::fs::File;"), 0);
        assert_eq!(found("src/vhd/bat.rs", "// crate::image\nlet a = \"crate::image\";"), 0);
    }

    #[test]
    fn io_in_a_format_is_found() {
        assert_eq!(check_imports("src/vhd/open.rs", "use std::fs::File;").len(), 1);
        assert_eq!(check_imports("src/shard/reactor.rs", "std::time::Instant::now()").len(), 1);
        assert_eq!(check_imports("src/io.rs", "use std::net::SocketAddr;").len(), 0);
        assert_eq!(check_imports("src/shard/reactor.rs", "use crate::io_uring_like;").len(), 0);
    }

    #[test]
    fn unsafe_without_reason_or_fence_is_found() {
        let good = "// SAFETY: the mapping lives as long as the pool.\nlet x = unsafe { y() };";
        assert!(check_unsafe("src/buf/arena.rs", good).is_empty());
        assert_eq!(check_unsafe("src/vhd/bat.rs", good).len(), 1);
        assert_eq!(check_unsafe("src/buf/arena.rs", "let x = unsafe { y() };").len(), 1);
        assert_eq!(check_unsafe("src/uring/ring.rs", "// SAFETY: no\nunsafe fn x() {}").len(), 1);
        assert_eq!(check_fences("#[forbid(unsafe_code)]\npub mod vhd;\npub mod scsi;").len(), 1);
        assert_eq!(check_fences("#[allow(unsafe_code)] // UNSAFETY: x\npub mod vhd;").len(), 1);
    }

    #[test]
    fn shapes_and_words_are_found() {
        assert_eq!(check_shape("src/a.rs", "fn x() {}").len(), 1);
        assert_eq!(check_shape("src/a.rs", &format!("//! a\n{}", "\n".repeat(FILE_LINES_MAX))).len(), 1);
        assert_eq!(check_shape("src/utils.rs", "//! a").len(), 1);
        for word in banned() {
            assert_eq!(check_words("src/a.rs", &format!("//! a\n let x = {word}")).len(), 1, "{word}");
        }
        assert_eq!(check_words("src/a.rs", &["#[", "ignore]"].concat()).len(), 1);
        assert_eq!(check_top_level(&["src".into(), ".ci".into(), "notes".into()]).len(), 1);
    }

    #[test]
    fn the_function_ratchet_only_turns_one_way() {
        let body =
            |lines: usize| format!("//! a\nfn long() {{\n{}}}\nfn short() {{}}\n", "x;\n".repeat(lines - 2));
        let file = |lines| vec![("src/a.rs".to_owned(), body(lines))];
        assert_eq!(function_lengths(&body(80)), [("long".to_owned(), 80), ("short".to_owned(), 1)]);
        assert!(check_functions(&file(70), &[]).is_empty());
        assert_eq!(check_functions(&file(71), &[]).len(), 1);
        assert!(check_functions(&file(80), &[("src/a.rs", "long", 80)]).is_empty());
        assert_eq!(check_functions(&file(81), &[("src/a.rs", "long", 80)]).len(), 1);
        assert_eq!(check_functions(&file(79), &[("src/a.rs", "long", 80)]).len(), 1);
        assert_eq!(check_functions(&file(60), &[("src/a.rs", "long", 80)]).len(), 1);
    }
}
