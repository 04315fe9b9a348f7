//! `src/iscsi/CONFORMANCE.md` names tests: each of them must exist.
//!
//! Knows how tests are written down there. Does not know what they hold.

use std::collections::BTreeSet;
use std::path::Path;

/// `file::function` of every test under `folder`; a `main.rs` or `mod.rs` counts as its folder.
fn collect(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
            continue;
        }
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let name = if matches!(stem, "main" | "mod") {
            path.parent().unwrap().file_name().unwrap().to_str().unwrap()
        } else {
            stem
        };
        let text = std::fs::read_to_string(&path).unwrap();
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            match line.strip_prefix("fn ") {
                Some(rest) if is_test => {
                    let function = rest.split(['(', '<']).next().unwrap();
                    found.insert(format!("{name}::{function}"));
                    is_test = false;
                }
                _ => is_test = line == "#[test]" || is_test && line.starts_with("#["),
            }
        }
    }
}

#[test]
fn every_test_named_in_the_conformance_list_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = BTreeSet::new();
    collect(&root.join("src"), &mut tests);
    collect(&root.join("tests"), &mut tests);
    let list = std::fs::read_to_string(root.join("src/iscsi/CONFORMANCE.md")).unwrap();
    let rows = list.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| clause"));
    let (mut named, mut missing) = (0, Vec::new());
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        let Some(held) = cells.get(2) else {
            assert_eq!(cells.len(), 2, "a row with neither test nor reason: {row}");
            continue;
        };
        let names: Vec<&str> = held.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "a rule without a test: {row}");
        named += names.len();
        missing.extend(names.into_iter().filter(|name| !tests.contains(*name)));
    }
    assert!(missing.is_empty(), "tests that do not exist: {missing:#?}");
    assert!(named > 100, "{named} tests are named");
}
