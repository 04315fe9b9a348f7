//! The load tool's boot storm against the server: a recorded boot on a few nodes, every byte verified.
//!
//! Knows both programs as processes. Does not know how either works.

use std::process::Command;

#[test]
fn eight_nodes_replay_a_recorded_boot_and_the_golden_image_is_read_once() {
    let place = tempfile::tempdir().unwrap();
    let (json, html) = (place.path().join("storm.json"), place.path().join("storm.html"));
    let mut storm = Command::new(env!("CARGO_BIN_EXE_perf"));
    storm.args(["storm", "--nodes", "8", "--seconds", "120", "--goldrush", env!("CARGO_BIN_EXE_goldrush")]);
    storm.args(["--serve=--golden-cache=256M", "--serve=--register-buffers=false", "--json"]).arg(&json);
    let output = storm.arg("--html").arg(&html).output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if said.contains("io_uring") {
        eprintln!("SKIPPED: the kernel gives no ring: {said}");
        return;
    }
    assert!(output.status.success(), "{said}");
    let figures: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let run = &figures["runs"][0];
    assert_eq!((run["booted"].as_u64(), run["wrong_sectors"].as_u64()), (Some(8), Some(0)), "{said}");
    assert_eq!(run["read_bytes"].as_u64(), Some(8 * 65_629_184));
    assert_eq!(run["read_back_bytes"].as_u64(), Some(8 * 1_798_144));
    let (read, unique) =
        (run["golden_bytes_read"].as_u64().unwrap(), run["unique_golden_bytes"].as_u64().unwrap());
    assert!(read as f64 <= unique as f64 * 1.02, "{read} of {unique} unique bytes were read");
    assert!(std::fs::read_to_string(&html).unwrap().matches("<svg").count() == 4);
}
