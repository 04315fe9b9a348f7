//! A status in Prometheus' text format, version 0.0.4.
//!
//! Knows names, types and buckets. Does not know who fetches it.

use std::fmt::Write as _;

use super::super::admin::status::{Latency, ShardStatus, Status};

/// Upper bounds of the buckets in microseconds.
const BOUNDS_US: [u64; 18] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000, 30_000_000,
];

/// Every figure, each core's by the label `core`.
pub(super) fn text(status: &Status) -> String {
    let mut text = String::new();
    let about = &status.about;
    family(&mut text, "build_info", "gauge", "Always 1: the program that answers");
    line(&mut text, "build_info", &[("program", &about.program)], 1);
    family(&mut text, "uptime_seconds", "gauge", "Since the server began to serve");
    line(&mut text, "uptime_seconds", &[], seconds(about.uptime_ms * 1000));
    family(&mut text, "golden_cache_capacity_bytes", "gauge", "Memory the golden cache may take");
    line(&mut text, "golden_cache_capacity_bytes", &[], about.golden_cache_bytes);
    family(
        &mut text,
        "golden_asked_bytes",
        "gauge",
        "Bytes of golden files somebody has asked for, each page once",
    );
    line(&mut text, "golden_asked_bytes", &[], about.golden_asked_bytes);
    family(
        &mut text,
        "golden_ahead_used_bytes",
        "gauge",
        "Bytes of golden files that were read ahead and asked for later",
    );
    line(&mut text, "golden_ahead_used_bytes", &[], about.golden_ahead_used_bytes);
    family(&mut text, "targets", "gauge", "Targets by how far their machines have booted");
    for (phase, count) in &status.phases {
        line(&mut text, "targets", &[("phase", phase)], count);
    }
    registrations(status, &mut text);
    let shards: Vec<(String, &ShardStatus)> =
        about.cores.iter().zip(&status.shards).map(|(core, shard)| (core.to_string(), shard)).collect();
    let figures = |one: &ShardStatus| (one.gauges.each(), one.counts.each());
    // Every shard has the same figures in the same order.
    let (gauges, counts) = figures(&ShardStatus::default());
    for (place, (name, help, _)) in gauges.iter().enumerate() {
        family(&mut text, name, "gauge", help);
        for (core, shard) in &shards {
            line(&mut text, name, &[("core", core)], figures(shard).0[place].2);
        }
    }
    for (place, (name, help, _)) in counts.iter().enumerate() {
        let name = format!("{name}_total");
        family(&mut text, &name, "counter", help);
        for (core, shard) in &shards {
            line(&mut text, &name, &[("core", core)], figures(shard).1[place].2);
        }
    }
    family(&mut text, "read_latency_seconds", "histogram", "How long READ commands took");
    for (core, shard) in &shards {
        histogram(&mut text, "read_latency_seconds", core, &shard.read_latency);
    }
    family(&mut text, "write_latency_seconds", "histogram", "How long WRITE commands took");
    for (core, shard) in &shards {
        histogram(&mut text, "write_latency_seconds", core, &shard.write_latency);
    }
    text
}

fn registrations(status: &Status, text: &mut String) {
    if status.isns.is_empty() {
        return;
    }
    family(text, "isns_registered", "gauge", "1 where an iSNS server has all targets that it wants");
    for isns in &status.isns {
        let registered = u8::from(isns.state == "registered");
        line(text, "isns_registered", &[("server", &isns.server)], registered);
    }
    family(text, "isns_targets", "gauge", "Targets that are registered with an iSNS server");
    for isns in &status.isns {
        line(text, "isns_targets", &[("server", &isns.server)], isns.targets);
    }
    family(text, "isns_targets_refused", "gauge", "Targets that an iSNS server does not want");
    for isns in &status.isns {
        line(text, "isns_targets_refused", &[("server", &isns.server)], isns.targets_refused);
    }
}

fn histogram(text: &mut String, name: &str, core: &str, latency: &Latency) {
    let bucket = format!("{name}_bucket");
    for us in BOUNDS_US {
        let bound = seconds(us);
        line(text, &bucket, &[("core", core), ("le", &bound)], latency.within(us));
    }
    let count = latency.count();
    line(text, &bucket, &[("core", core), ("le", "+Inf")], count);
    line(text, &format!("{name}_sum"), &[("core", core)], seconds(latency.sum_us));
    line(text, &format!("{name}_count"), &[("core", core)], count);
}

fn seconds(us: u64) -> String {
    (us as f64 / 1e6).to_string()
}

// Writing to a string cannot fail.

fn family(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP goldrush_{name} {help}\n# TYPE goldrush_{name} {kind}");
}

fn line(text: &mut String, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
    let _ = write!(text, "goldrush_{name}");
    for (place, (label, value)) in labels.iter().enumerate() {
        let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(text, "{}{label}=\"{escaped}\"", if place == 0 { '{' } else { ',' });
    }
    let _ = writeln!(text, "{} {value}", if labels.is_empty() { "" } else { "}" });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::admin::status::IsnsStatus;
    use prometheus_parse::{Scrape, Value};

    fn scrape(status: &Status) -> Scrape {
        Scrape::parse(text(status).lines().map(|line| Ok(line.to_owned()))).unwrap()
    }

    #[test]
    fn a_parser_reads_every_figure_of_every_core() {
        let mut status = crate::control::status::tests::status(2_500, 40);
        status.shards[1].counts.reads = 2;
        let (server, state) = ("isns:3205".to_owned(), "registered".to_owned());
        status.isns.push(IsnsStatus { server, state, targets: 7, ..IsnsStatus::default() });
        status.about.program = "a \"quoted\\ name\"\n".to_owned();
        let scrape = scrape(&status);
        let find = |name: &str, label: &str, value: &str| {
            let named = |sample: &&prometheus_parse::Sample| {
                sample.metric == name && (label.is_empty() || sample.labels.get(label) == Some(value))
            };
            scrape.samples.iter().find(named).unwrap_or_else(|| panic!("{name} {value}")).value.clone()
        };
        assert_eq!(find("goldrush_reads_total", "core", "0"), Value::Counter(40.0));
        assert_eq!(find("goldrush_reads_total", "core", "2"), Value::Counter(2.0));
        assert_eq!(find("goldrush_uptime_seconds", "", ""), Value::Gauge(2.5));
        assert_eq!(find("goldrush_targets", "phase", "system"), Value::Gauge(1.0));
        assert_eq!(find("goldrush_isns_registered", "server", "isns:3205"), Value::Gauge(1.0));
        assert_eq!(find("goldrush_isns_targets", "server", "isns:3205"), Value::Gauge(7.0));
        let Value::Histogram(buckets) = find("goldrush_read_latency_seconds", "core", "0") else { panic!() };
        assert_eq!(buckets.len(), BOUNDS_US.len() + 1);
        assert!(buckets.windows(2).all(|pair| pair[0].count <= pair[1].count), "{buckets:?}");
        let counts: Vec<f64> = buckets.iter().map(|bucket| bucket.count).collect();
        assert_eq!((counts[1], counts[2], counts[counts.len() - 1]), (0.0, 40.0, 40.0), "all took 200 us");
    }

    #[test]
    fn every_family_is_told_once_and_before_its_lines() {
        let text = text(&crate::control::status::tests::status(1, 1));
        let mut known = std::collections::BTreeSet::new();
        let mut current = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                current = rest.split(' ').next().unwrap().to_owned();
                assert!(known.insert(current.clone()), "{line}");
            } else if !line.starts_with('#') {
                assert!(line.starts_with(&current), "{line} below {current}");
            }
        }
    }
}
