//! `goldrush status`, `goldrush top` and the Prometheus endpoint, with initiators logged in.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use prometheus_parse::{Scrape, Value};

use crate::cli::Desk;
use crate::raw_initiator::RawInitiator;
use crate::running::{Running, refused, serve_line, start_nodes, status, sum};

const NODE: &str = "iqn.2026-11.io.goldrush:node-001";

/// Logged in to the first node, with a write and some reads done.
fn at_work(server: &Running) -> RawInitiator {
    let mut initiator = RawInitiator::connect(server.port);
    assert_eq!(initiator.login(NODE, 1).unwrap(), (0, 0));
    initiator.read(0, 8);
    initiator.command(100, 4, &[7; 2048]).unwrap();
    assert_eq!(initiator.answer().unwrap().1, 0);
    for _ in 0..9 {
        initiator.read(100, 8);
    }
    initiator
}

fn phase_of_node(status: &serde_json::Value) -> String {
    let targets = status["targets"].as_array().unwrap();
    let node = targets.iter().find(|target| target["name"] == NODE).unwrap();
    node["phase"].as_str().unwrap().to_owned()
}

#[test]
fn status_counts_what_was_done_and_by_whom() {
    let desk = Desk::new();
    let Some(server) = start_nodes(&desk, 3, "") else { return };
    let mut initiator = at_work(&server);
    let mut refused_login = RawInitiator::connect(server.port);
    assert_eq!(refused_login.login("iqn.2026-11.io.goldrush:nobody", 1).unwrap().0, 2);

    let now = status(&desk, "--targets --sessions");
    assert_eq!(
        (sum(&now, "counts/reads"), sum(&now, "counts/writes")),
        (11, 1),
        "one was a unit attention: {now}"
    );
    assert_eq!((sum(&now, "counts/read_bytes"), sum(&now, "counts/written_bytes")), (10 * 4096, 2048));
    assert_eq!((sum(&now, "counts/logins_accepted"), sum(&now, "counts/logins_refused")), (1, 1));
    assert_eq!((sum(&now, "counts/failed"), sum(&now, "tasks")), (1, 0));
    assert!(sum(&now, "counts/sent_bytes") > 10 * 4096 && sum(&now, "counts/received_bytes") > 2048);
    assert!(sum(&now, "counts/system_calls") > 0 && sum(&now, "counts/sends") > 0);
    // The golden image is empty: reads of it are zeros, those of the child's own sectors are not.
    assert!(sum(&now, "counts/file_reads") > 0 && sum(&now, "counts/file_writes") > 0);
    let counted: u64 =
        now["shards"].as_array().unwrap().iter().map(|shard| latencies(&shard["read_latency"])).sum();
    assert_eq!(counted, 11);
    let session = &now["sessions"][0];
    assert_eq!(
        (session["initiator"].as_str(), session["target"].as_str()),
        (Some("iqn.2026-11.io.goldrush:raw"), Some(NODE))
    );
    assert_eq!((session["read_bytes"].as_u64(), session["connections"].as_u64()), (Some(10 * 4096), Some(1)));

    // It takes segments of 64 KiB and has asked one thing after another: a loader. Two at once, and it is a system's.
    assert_eq!((phase_of_node(&now).as_str(), now["phases"]["offline"].as_u64()), ("loader", Some(2)));
    initiator.command(0, 8, &[]).unwrap();
    initiator.command(8, 8, &[]).unwrap();
    for _ in 0..2 {
        initiator.answer().unwrap();
    }
    let both = (0..50).any(|_| {
        initiator.command(0, 2048, &[]).unwrap();
        initiator.command(8, 2048, &[]).unwrap();
        (0..2).for_each(|_| drop(initiator.answer().unwrap()));
        phase_of_node(&status(&desk, "--targets")) == "system"
    });
    assert!(both, "two commands were never there at once");
    drop(initiator);
    let gone = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        phase_of_node(&status(&desk, "--targets")) == "offline"
    });
    assert!(gone);
}

#[test]
fn a_loader_leaves_a_gap_until_a_system_comes() {
    let desk = Desk::new();
    let Some(server) = start_nodes(&desk, 1, "") else { return };
    let log_in = |isid: u32, segment: u32| {
        let mut initiator = RawInitiator::connect(server.port);
        let keys = format!(
            "InitiatorName=iqn.2026-11.io.goldrush:raw\0SessionType=Normal\0TargetName={NODE}\0\
             MaxRecvDataSegmentLength={segment}\0"
        );
        assert_eq!(initiator.login_with(isid, &keys).unwrap(), (0, 0));
        initiator
    };
    let becomes = |phase: &str| {
        (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            phase_of_node(&status(&desk, "--targets")) == phase
        })
    };
    let mut loader = log_in(1, 8192);
    loader.read(0, 8);
    assert!(becomes("loader"));
    drop(loader);
    assert!(becomes("gap"));
    let _system = log_in(2, 262_144);
    assert!(becomes("system"));
    let node = status(&desk, "--targets")["targets"][0].clone();
    assert!(node["loader_ms"].is_u64() && node["gap_ms"].is_u64() && node["system_ms"].is_null(), "{node}");
}

fn latencies(latency: &serde_json::Value) -> u64 {
    latency["counts"].as_array().unwrap().iter().map(|pair| pair[1].as_u64().unwrap()).sum()
}

#[test]
fn status_and_top_show_a_page_and_top_ends_with_its_server() {
    let desk = Desk::new();
    let Some(server) = start_nodes(&desk, 3, "") else { return };
    let mut initiator = at_work(&server);
    let text = desk.goldrush_ok("status --interval 0 --targets --sessions");
    for part in [
        "targets   3: 2 offline, 1 in a loader",
        "sessions  1 on 1 connections; logins since the start: 1 accepted, 0 refused",
        "since the start",
        "read p50 ",
        "buffers free",
        "iqn.2026-11.io.goldrush:node-003         0  offline",
        "iqn.2026-11.io.goldrush:raw from 127.0.0.1:",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let asked = Instant::now();
    let text = desk.goldrush_ok("top --once --interval 0.3");
    assert!(asked.elapsed() >= Duration::from_millis(300));
    assert!(
        text.contains("in the last 0.") && text.contains("node-001") && !text.contains("node-002"),
        "{text}"
    );
    refused(&desk, "top --interval 0", 2, "0.1 to 3600");

    let mut top = desk.command(&["top", "--interval", "0.1"]);
    let mut top = top.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(top.stdout.take().unwrap()).lines().map_while(Result::ok);
    for _ in 0..3 {
        initiator.read(0, 8);
        assert!(lines.any(|line| line.starts_with("goldrush ")), "page after page");
    }
    server.stop();
    lines.for_each(drop);
    let mut said = String::new();
    top.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(top.wait().unwrap().code() == Some(1) && said.contains("server"), "{said}");
}

fn metrics_port(server: &Running) -> u16 {
    let line = server.lines.iter().find(|line| line.starts_with("metrics at ")).unwrap();
    let port = line.trim_end_matches("/metrics").rsplit(':').next().unwrap();
    port.parse().unwrap()
}

/// Head and body of an answer, as far as there is one.
fn http(port: u16, request: &[u8]) -> (String, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    (head.to_owned(), body.to_owned())
}

const GET: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n";

#[test]
fn metrics_are_what_prometheus_reads() {
    let desk = Desk::new();
    let Some(server) = start_nodes(&desk, 2, "--metrics 127.0.0.1:0") else { return };
    let _initiator = at_work(&server);
    let (head, body) = http(metrics_port(&server), GET);
    assert!(
        head.starts_with("HTTP/1.1 200 ") && head.contains("text/plain; version=0.0.4; charset=utf-8"),
        "{head}"
    );
    let scrape = Scrape::parse(body.lines().map(|line| Ok(line.to_owned()))).unwrap();
    let sum = |name: &str| {
        let named = scrape.samples.iter().filter(|sample| sample.metric == name);
        named.fold(0.0, |sum, sample| match &sample.value {
            Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value) => sum + value,
            Value::Histogram(buckets) => sum + buckets.last().map_or(0.0, |bucket| bucket.count),
            other => panic!("{name}: {other:?}"),
        })
    };
    assert_eq!((sum("goldrush_reads_total"), sum("goldrush_writes_total")), (11.0, 1.0));
    assert_eq!((sum("goldrush_sessions"), sum("goldrush_targets")), (1.0, 2.0));
    assert_eq!((sum("goldrush_read_latency_seconds"), sum("goldrush_write_latency_seconds")), (11.0, 1.0));
    assert_eq!(sum("goldrush_read_latency_seconds_count"), 11.0);
    let tool =
        std::process::Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).spawn();
    match tool {
        Ok(mut tool) => {
            tool.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
            assert!(tool.wait().unwrap().success(), "{body}");
        }
        Err(_) => eprintln!("SKIPPED: promtool of Prometheus is not installed"),
    }
}

#[test]
fn bad_http_clients_are_bounded_and_the_server_serves_on() {
    let desk = Desk::new();
    let Some(server) = start_nodes(&desk, 1, "--metrics 127.0.0.1:0") else { return };
    let port = metrics_port(&server);
    let status_of = |request: &[u8]| http(port, request).0.split(' ').nth(1).unwrap_or_default().to_owned();
    assert_eq!(status_of(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"), "404");
    assert_eq!(status_of(b"POST /metrics HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n"), "405");
    assert_eq!(status_of(b"\x16\x03\x01garbage\r\n\r\n"), "400");
    let long = [b"GET /metrics HTTP/1.1\r\nX: ".as_slice(), &[b'x'; 100_000], b"\r\n\r\n"].concat();
    assert!(["431", ""].contains(&status_of(&long).as_str()));
    // More clients than are served, and none of them says anything.
    let silent: Vec<_> = (0..20).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    let asked = Instant::now();
    let mut initiator = at_work(&server);
    status(&desk, "");
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    drop(silent);
    assert_eq!(status_of(GET), "200");
    initiator.read(0, 8);

    let taken = serve_line("others", 1, &format!("--metrics 127.0.0.1:{port}"));
    refused(&desk, &taken, 1, "cannot listen on 127.0.0.1:");
    desk.write("c.toml", "metrics = \"9100\"\n[[target]]\nname = \"iqn.2026-11.io.goldrush:a\"\n");
    refused(&desk, "serve --config c.toml", 2, "c.toml:1: \"9100\" is no listen address");
}
