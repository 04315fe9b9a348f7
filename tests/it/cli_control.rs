//! The control socket of a running server: who finds it, who may use it, and what it makes of bad clients.

use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use crate::cli::{Desk, names, said};
use crate::raw_initiator::RawInitiator;
use crate::running::{refused, say, serve_line, socket, start, start_nodes, status, sum};

#[test]
fn a_running_server_is_found_and_tells_of_its_sessions() {
    let desk = Desk::new();
    refused(&desk, "status", 1, "no server answers in");
    let Some(server) = start_nodes(&desk, 2, "") else { return };
    let sessions = |status: &serde_json::Value| sum(status, "sessions");
    let before = status(&desk, "");
    assert_eq!(before["about"]["pid"], server.pid());
    assert_eq!((before["about"]["targets"].as_u64(), sessions(&before)), (Some(2), 0));
    let mut initiator = RawInitiator::connect(server.port);
    assert_eq!(initiator.login("iqn.2026-11.io.goldrush:node-002", 1).unwrap(), (0, 0));
    initiator.read(0, 8);
    assert_eq!(sessions(&status(&desk, "")), 1);
    let text = desk.goldrush_ok("status");
    assert!(text.contains(&format!("process {}", server.pid())) && text.contains("127.0.0.1:"), "{text}");

    assert_eq!(std::fs::metadata(socket(&desk)).unwrap().mode() & 0o777, 0o600);
    server.stop();
    assert_eq!(names(&desk.path("runtime")), [""; 0]);
    refused(&desk, "status", 1, "no server answers in");
}

#[test]
fn of_several_servers_one_is_named_and_a_dead_one_is_passed_over() {
    let desk = Desk::new();
    let Some(first) = start_nodes(&desk, 1, "") else { return };
    let second = start(&desk, &serve_line("others", 1, "")).unwrap();
    let its = format!("runtime/control-{}.sock", second.pid());
    let said = refused(&desk, "status", 2, "several servers answer: name one with --control");
    assert!(said.err.contains(&its), "{said:?}");
    assert_eq!(status(&desk, &format!("--control {its}"))["about"]["pid"], second.pid());
    assert_eq!(status(&desk, "--control runtime/control.sock")["about"]["pid"], first.pid());

    first.kill();
    assert!(socket(&desk).exists(), "a kill leaves the name");
    assert_eq!(status(&desk, "")["about"]["pid"], second.pid());
    refused(&desk, "status --control runtime/control.sock", 1, "the one it belonged to has ended");
    let third = start_nodes(&desk, 1, "").unwrap();
    assert_eq!(status(&desk, "--control runtime/control.sock")["about"]["pid"], third.pid());
}

#[test]
fn a_socket_may_be_named_on_the_command_line_or_in_the_file() {
    let desk = Desk::new();
    let Some(server) = start_nodes(&desk, 1, "--control here.sock") else { return };
    assert!(!socket(&desk).exists());
    assert_eq!(status(&desk, "--control here.sock")["about"]["pid"], server.pid());
    refused(&desk, &serve_line("others", 1, "--control here.sock"), 1, "is another server's");
    refused(&desk, &serve_line("others", 1, "--control golden.vhd"), 1, "no socket");
    desk.goldrush_ok("image create disk.vhd --size 8M");
    desk.write(
        "c.toml",
        "listen = [\"127.0.0.1:0\"]\ncontrol = \"run.sock\"\n[[target]]\nname = \"iqn.2026-11.io.goldrush:a\"\n\
         [[target.lun]]\nlun = 0\npath = \"disk.vhd\"\n",
    );
    let other = start(&desk, "serve --config c.toml --golden-cache 1M --register-buffers false").unwrap();
    assert_eq!(status(&desk, "--control run.sock")["about"]["pid"], other.pid());
}

#[test]
fn garbage_is_answered_with_a_sentence_and_silence_with_patience_for_others() {
    let desk = Desk::new();
    let Some(server) = start_nodes(&desk, 1, "") else { return };
    let socket = socket(&desk);
    for (bytes, why) in [
        (&b"\n"[..], "is not understood"),
        (b"GET / HTTP/1.1\r\n\r\n", "is not understood"),
        (b"{\"version\":1,\"request\":\"abuot\"}\n", "abuot"),
        (b"{\"version\":9,\"request\":\"about\"}\n", "answers version 1"),
        (b"\xff\xfe\x00\x01\n", "is not understood"),
        (&[b'['; 70_000], "is longer than"),
    ] {
        let answer = say(&socket, bytes);
        assert!(answer.starts_with("{\"version\":1,\"error\":\"") && answer.ends_with("\"}\n"), "{answer:?}");
        assert!(answer.contains(why), "{answer:?}");
    }
    assert!(say(&socket, b"{\"version\":1,\"request\":\"about\"}\n").starts_with("{\"version\":1,\"ok\":{"));

    // Fifteen say nothing; there is a place left.
    let silent: Vec<_> = (0..15).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    let asked = Instant::now();
    status(&desk, "");
    let mut initiator = RawInitiator::connect(server.port);
    assert_eq!(initiator.login("iqn.2026-11.io.goldrush:node-001", 1).unwrap(), (0, 0));
    initiator.read(0, 8);
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    // With one more, there is none: the next is told so at once.
    let full: Vec<_> = (0..4).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    let mut answer = String::new();
    (&full[3]).read_to_string(&mut answer).unwrap();
    assert!(answer.contains("too many ask at once"), "{answer}");
    initiator.read(0, 8);
    // They are not waited for longer than some seconds.
    let mut bytes = [0; 1];
    silent[0].set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!((&silent[0]).read(&mut bytes).unwrap_or(0), 0);
    drop((silent, full));
    status(&desk, "");
}

#[test]
fn another_user_is_turned_away() {
    if !is_root() {
        eprintln!("SKIPPED: only root can be another user");
        return;
    }
    let desk = Desk::new();
    let Some(_server) = start_nodes(&desk, 1, "") else { return };
    let open = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(&desk.path(""), 0o755);
    let ask = || {
        let mut command = desk.command(&["status"]);
        command.uid(65_534);
        command.output().ok().map(said)
    };
    let Some(stranger) = ask() else {
        eprintln!("SKIPPED: another user cannot run the program");
        return;
    };
    assert!(stranger.code == 1 && stranger.err.contains("is another user's"), "{stranger:?}");
    // Also where somebody has opened it to all.
    open(&socket(&desk), 0o666);
    let stranger = ask().unwrap();
    assert!(stranger.code == 1 && stranger.err.contains("or root, may ask"), "{stranger:?}");
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|found| found.uid() == 0)
}
