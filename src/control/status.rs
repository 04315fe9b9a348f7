//! `goldrush status`: what a running server says of itself, in words.
//!
//! Knows how figures are shown. Does not know how they came (`admin`).

use std::fmt::Write as _;
use std::time::Duration;

use super::admin::status::{
    Gauges, IsnsStatus, Latency, SessionStatus, ShardStatus, Status, StatusAsked, TargetList, TargetStatus,
};
use super::admin::{Request, client};
use super::cli::StatusArgs;
use super::error::{Error, print};

/// Runs the command.
pub(super) fn run(args: &StatusArgs) -> Result<(), Error> {
    let asked = StatusAsked {
        targets: if args.targets { TargetList::All } else { TargetList::None },
        sessions: args.sessions,
    };
    let named = args.control.control.as_deref();
    if args.json {
        let status: Status = client::ask(named, &Request::Status(asked))?;
        return print(|out| writeln!(out, "{}", serde_json::to_string(&status)?));
    }
    let interval = Duration::from_secs_f64(args.interval);
    let before = if interval.is_zero() {
        None
    } else {
        let before: Status = client::ask(named, &Request::Status(StatusAsked::default()))?;
        std::thread::sleep(interval);
        Some(before)
    };
    let status: Status = client::ask(named, &Request::Status(asked))?;
    let mut text = overview(before.as_ref(), &status);
    if args.targets {
        targets(&status.targets, &mut text);
    }
    if args.sessions {
        sessions(&status.sessions, &mut text);
    }
    print(|out| out.write_all(text.as_bytes()))
}

/// What was done between two answers of one server, or since it began.
struct Span {
    done: ShardStatus,
    seconds: f64,
}

impl Span {
    fn of(before: Option<(&ShardStatus, u64)>, now: (&ShardStatus, u64)) -> Self {
        let (done, ms) = match before {
            Some((before, at)) => (now.0.since(before), now.1.saturating_sub(at)),
            None => (now.0.clone(), now.1),
        };
        Self { done, seconds: (ms.max(1) as f64) / 1000.0 }
    }

    fn rate(&self, count: u64) -> f64 {
        count as f64 / self.seconds
    }

    fn mb(&self, bytes: u64) -> f64 {
        self.rate(bytes) / 1e6
    }
}

/// A restarted server answers at the same place: what it says cannot be subtracted.
fn comparable<'a>(before: Option<&'a Status>, now: &Status) -> Option<&'a Status> {
    before.filter(|before| {
        before.about.pid == now.about.pid
            && before.about.uptime_ms < now.about.uptime_ms
            && before.shards.len() == now.shards.len()
    })
}

/// The page without its lists.
pub(super) fn overview(before: Option<&Status>, now: &Status) -> String {
    let before = comparable(before, now);
    let totals = (before.map(Status::total), now.total());
    let at = before.map(|before| before.about.uptime_ms);
    let span = Span::of(totals.0.as_ref().zip(at), (&totals.1, now.about.uptime_ms));
    let mut text = String::new();
    let about = &now.about;
    let listening: Vec<_> = about.listening.iter().map(ToString::to_string).collect();
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "{}, process {}, serving for {}, listening on {}",
        about.program,
        about.pid,
        span_text(about.uptime_ms),
        listening.join(", ")
    );
    let phase = |name: &str| now.phases.get(name).copied().unwrap_or_default();
    let _ = writeln!(
        text,
        "targets   {}: {} offline, {} in a loader, {} in the gap, {} starting a system, {} settled",
        about.targets,
        phase("offline"),
        phase("loader"),
        phase("gap"),
        phase("system"),
        phase("settled")
    );
    let (gauges, counts) = (totals.1.gauges, totals.1.counts);
    let _ = writeln!(
        text,
        "sessions  {} on {} connections; logins since the start: {} accepted, {} refused",
        gauges.sessions, gauges.connections, counts.logins_accepted, counts.logins_refused
    );
    for isns in &now.isns {
        registration(isns, &mut text);
    }
    match before {
        Some(_) => {
            let _ = writeln!(text, "\nin the last {:.1} s", span.seconds);
        }
        None => text.push_str("\nsince the start\n"),
    }
    work(&span, &mut text);
    queues(&gauges, &mut text);
    text.push_str(
        "\ncore  sessions  commands/s     MB/s  read p99 ms  write p99 ms  tasks  calls/command  answers/send\n",
    );
    for (index, (core, shard)) in about.cores.iter().zip(&now.shards).enumerate() {
        let earlier = before.and_then(|before| before.shards.get(index));
        let span = Span::of(earlier.zip(at), (shard, about.uptime_ms));
        core_line(*core, &span, &mut text);
    }
    text
}

fn registration(isns: &IsnsStatus, text: &mut String) {
    let _ = write!(
        text,
        "iSNS      {} as {}: {}, {} targets at {} portals",
        isns.server, isns.entity, isns.state, isns.targets, isns.portals
    );
    if isns.targets_refused > 0 {
        let _ = write!(text, ", {} targets refused", isns.targets_refused);
    }
    match &isns.problem {
        Some(problem) => drop(writeln!(text, "; it {problem}")),
        None => text.push('\n'),
    }
}

fn work(span: &Span, text: &mut String) {
    let counts = span.done.counts;
    let _ = writeln!(
        text,
        "commands  {:.0}/s: {:.0} reads, {:.0} writes, {:.0} flushes, {:.0} others; {} failed",
        span.rate(counts.commands()),
        span.rate(counts.reads),
        span.rate(counts.writes),
        span.rate(counts.flushes),
        span.rate(counts.others + counts.unmaps),
        counts.failed
    );
    let _ = writeln!(
        text,
        "data      {:.1} MB/s read, {:.1} MB/s written",
        span.mb(counts.read_bytes),
        span.mb(counts.written_bytes)
    );
    let _ = writeln!(
        text,
        "latency   read {}, write {}",
        quantiles(&span.done.read_latency),
        quantiles(&span.done.write_latency)
    );
    let share =
        counts.hit_share().map_or("nothing asked".to_owned(), |share| format!("{:.2} % hits", share * 100.0));
    let _ = writeln!(
        text,
        "golden    {share}, {:.0}/s misses, {:.0}/s joined, {:.0}/s around, {:.1} MB/s from disk, {:.0}/s evicted",
        span.rate(counts.golden_misses),
        span.rate(counts.golden_joins),
        span.rate(counts.golden_around),
        span.mb(counts.golden_bytes),
        span.rate(counts.golden_evictions)
    );
}

fn queues(gauges: &Gauges, text: &mut String) {
    let _ = writeln!(
        text,
        "queues    {} commands, {} of them waiting for buffers; {} sessions stalled; {} operations in the kernel; {} and {} \
         buffers free",
        gauges.tasks,
        gauges.tasks_parked,
        gauges.sessions_stalled,
        gauges.operations,
        gauges.chunks_free,
        gauges.smalls_free
    );
}

fn core_line(core: usize, span: &Span, text: &mut String) {
    let (gauges, counts) = (span.done.gauges, span.done.counts);
    let per = |count: u64, of: u64| {
        if of == 0 { "-".to_owned() } else { format!("{:.2}", count as f64 / of as f64) }
    };
    let p99 = |latency: &Latency| latency.quantile(0.99).map_or("-".to_owned(), ms);
    let _ = writeln!(
        text,
        "{core:>4}  {:>8}  {:>10.0}  {:>7.1}  {:>11}  {:>12}  {:>5}  {:>13}  {:>12}",
        gauges.sessions,
        span.rate(counts.commands()),
        span.mb(counts.read_bytes + counts.written_bytes),
        p99(&span.done.read_latency),
        p99(&span.done.write_latency),
        gauges.tasks,
        per(counts.system_calls, counts.commands()),
        per(counts.commands(), counts.sends)
    );
}

/// The list of targets.
pub(super) fn targets(targets: &[TargetStatus], text: &mut String) {
    let width = targets.iter().map(|target| target.name.chars().count()).max().unwrap_or(0).max(6);
    let _ = writeln!(
        text,
        "\n{:width$}  sessions  phase    {:>8}  {:>8}  {:>8}  {:>8}  {:>8}",
        "target", "for", "loader", "gap", "system", "boot"
    );
    let span = |ms: Option<u64>| ms.map_or("-".to_owned(), span_text);
    for target in targets {
        let _ = writeln!(
            text,
            "{:width$}  {:>8}  {:7}  {:>8}  {:>8}  {:>8}  {:>8}  {:>8}{}",
            target.name,
            target.sessions,
            target.phase,
            span(target.phase_ms),
            span(target.loader_ms),
            span(target.gap_ms),
            span(target.system_ms),
            span(target.boot_ms),
            match target.resets {
                0 => String::new(),
                count => format!("  emptied {count} times, {} ago", span(target.reset_ms)),
            }
        );
    }
}

fn sessions(sessions: &[SessionStatus], text: &mut String) {
    text.push_str("\nsessions: for, connections, commands in progress, commands, MB read, MB written\n");
    for session in sessions {
        let _ = writeln!(
            text,
            "{} from {} to {}: {}, {}, {}, {}, {:.1}, {:.1}",
            session.initiator,
            session.peer,
            session.target.as_deref().unwrap_or("discovery"),
            span_text(session.age_ms),
            session.connections,
            session.tasks,
            session.commands,
            session.read_bytes as f64 / 1e6,
            session.written_bytes as f64 / 1e6
        );
    }
}

fn quantiles(latency: &Latency) -> String {
    match (latency.quantile(0.5), latency.quantile(0.99)) {
        (Some(half), Some(most)) => format!("p50 {} ms, p99 {} ms", ms(half), ms(most)),
        _ => "nothing".to_owned(),
    }
}

fn ms(us: u64) -> String {
    format!("{:.3}", us as f64 / 1000.0)
}

/// A time of `ms` milliseconds, as precise as anybody wants to know it.
fn span_text(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..60 => format!("{}.{} s", s, ms % 1000 / 100),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{:02}h", s / 86_400, s % 86_400 / 3600),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::control::admin::status::{About, Counts};

    pub(in crate::control) fn status(uptime_ms: u64, reads: u64) -> Status {
        let counts = Counts { reads, read_bytes: reads * 4096, sends: reads, ..Counts::default() };
        let read_latency = Latency { sum_us: reads * 200, counts: vec![(200, reads)] };
        let shard = ShardStatus { counts, read_latency, ..ShardStatus::default() };
        Status {
            about: About {
                program: "goldrush 1".to_owned(),
                pid: 7,
                uptime_ms,
                listening: vec!["192.0.2.1:3260".parse().unwrap()],
                cores: vec![0, 2],
                targets: 3,
                golden_cache_bytes: 1 << 20,
                golden_asked_bytes: 0,
                golden_ahead_used_bytes: 0,
            },
            phases: [("offline".to_owned(), 2), ("system".to_owned(), 1)].into(),
            shards: vec![shard.clone(), shard],
            isns: Vec::new(),
            targets: Vec::new(),
            sessions: Vec::new(),
        }
    }

    #[test]
    fn rates_are_those_between_two_answers_of_one_server() {
        let (before, now) = (status(1_000, 100), status(3_000, 1_100));
        let text = overview(Some(&before), &now);
        assert!(
            text.contains("in the last 2.0 s") && text.contains("commands  1000/s: 1000 reads"),
            "{text}"
        );
        assert!(text.contains("data      4.1 MB/s read") && text.contains("p50 0.2"), "{text}");
        assert!(text.contains("3: 2 offline, 0 in a loader, 0 in the gap, 1 starting"), "{text}");
        let mut restarted = before.clone();
        restarted.about.pid = 8;
        for earlier in [None, Some(&restarted), Some(&now)] {
            assert!(overview(earlier, &now).contains("since the start"));
        }
    }

    #[test]
    fn how_it_stands_with_each_isns_server_is_a_line() {
        let mut now = status(1_000, 1);
        let (server, entity) = ("isns:3205".to_owned(), "store".to_owned());
        let good = IsnsStatus {
            server,
            entity,
            state: "registered".to_owned(),
            portals: 2,
            targets: 40,
            ..Default::default()
        };
        let problem = Some("cannot be reached: refused".to_owned());
        let bad = IsnsStatus { state: "unreachable".to_owned(), targets_refused: 1, problem, ..good.clone() };
        now.isns = vec![good, bad];
        let text = overview(None, &now);
        assert!(
            text.contains("\niSNS      isns:3205 as store: registered, 40 targets at 2 portals\n"),
            "{text}"
        );
        assert!(text.contains("portals, 1 targets refused; it cannot be reached: refused\n"), "{text}");
    }

    #[test]
    fn times_are_told_as_people_tell_them() {
        let told: Vec<_> = [0, 1_250, 59_999, 61_000, 3_700_000, 90_000_000].map(span_text).into();
        assert_eq!(told, ["0.0 s", "1.2 s", "59.9 s", "1m01s", "1h01m", "1d01h"]);
    }

    #[test]
    fn a_target_without_a_boot_has_dashes() {
        let mut text = String::new();
        let target = TargetStatus {
            name: "iqn.a:b".to_owned(),
            sessions: 0,
            phase: "offline".to_owned(),
            phase_ms: None,
            loader_ms: None,
            gap_ms: None,
            system_ms: None,
            boot_ms: None,
            first_login_ms: None,
            resets: 0,
            reset_ms: None,
        };
        targets(&[target], &mut text);
        assert_eq!(text.matches('-').count(), 5, "{text}");
    }
}
