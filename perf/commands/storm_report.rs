//! What a storm's figures look like: tables on the screen, Markdown, JSON, and a page of HTML that needs nothing else.
//!
//! Knows ratios and layout. Does not know how anything was measured.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::table::{number, table};
use crate::fail::{Result, failure};
use crate::histogram::micros_at;
use crate::storm::rounds::{Run, median};
use crate::storm::{Checks, Class, Storm, chart};

/// Of every 1538 bytes of Ethernet (1500, and preamble, header, check sum and gap), 1448 carry TCP's payload.
const FRAMING: f64 = 1538.0 / 1448.0;
const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:1040px;margin:2em auto;padding:0 1em;color:#222}\
    h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}table{border-collapse:collapse;margin:1em 0}\
    td,th{border:1px solid #ccc;padding:.25em .7em;text-align:right}td:first-child,th:first-child{text-align:left}\
    pre{background:#f4f4f4;padding:.7em;white-space:pre-wrap}svg{width:100%;height:auto}p.about{color:#666}";

pub(super) struct Report<'a> {
    pub(super) machine: Value,
    pub(super) command: String,
    pub(super) note: String,
    pub(super) trace: String,
    /// Bits a second.
    pub(super) wire: f64,
    pub(super) names: Vec<String>,
    pub(super) storm: &'a Storm,
    pub(super) runs: &'a [Run],
}

/// A table: columns, rows.
type Rows = (Vec<&'static str>, Vec<Vec<String>>);

pub(super) fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)
        .map_err(|e| failure!("cannot write {}: {e}; give a path that can be written", path.display()))
}

fn or_dash(value: Option<f64>) -> String {
    value.map_or("-".to_string(), number)
}

impl Report<'_> {
    fn of<'r>(&'r self, name: &'r str) -> impl Iterator<Item = &'r Run> {
        self.runs.iter().filter(move |run| run.name == name)
    }

    fn middle(&self, name: &str, of: impl Fn(&Run) -> Option<f64>) -> Option<f64> {
        median(self.of(name).filter_map(of).collect())
    }

    fn seconds(&self, name: &str) -> Option<f64> {
        // A round in which a node did not boot has no time, and the rest would flatter.
        if self.of(name).any(|run| run.seconds().is_none()) { None } else { self.middle(name, Run::seconds) }
    }

    /// The least time in which the wire could carry what came.
    fn floor(&self, run: &Run) -> f64 {
        run.record.wire_bytes as f64 * FRAMING * 8.0 / self.wire
    }

    fn unique_ratio(&self, bytes: Option<u64>) -> Option<f64> {
        let unique = self.storm.script.unique_bytes;
        bytes.filter(|_| unique > 0).map(|bytes| bytes as f64 / unique as f64)
    }

    fn servers(&self) -> Rows {
        let columns = vec![
            "server",
            "all booted s",
            "node p50 s",
            "node p99 s",
            "MB/s",
            "golden read / unique",
            "disk read / unique",
            "above the wire s",
            "of ceiling's time",
            "server busy",
            "client busy",
        ];
        let ceiling = self.names.iter().find(|name| *name == "ceiling").and_then(|name| self.seconds(name));
        let row = |name: &String| {
            let middle = |of: &dyn Fn(&Run) -> Option<f64>| self.middle(name, of);
            let node =
                |quantile: f64| middle(&|run| Some(micros_at(&run.record.boot_times(), quantile) / 1e6));
            let busy =
                |part: Option<Duration>, run: &Run| Some(part?.as_secs_f64() / run.elapsed.as_secs_f64());
            let percent =
                |part: Option<f64>| part.map_or("-".to_string(), |part| format!("{:.0} %", part * 100.0));
            let ratio = |value: Option<f64>| value.map_or("-".to_string(), |value| format!("{value:.3}"));
            let seconds = self.seconds(name);
            vec![
                name.clone(),
                or_dash(seconds),
                or_dash(node(0.5)),
                or_dash(node(0.99)),
                or_dash(middle(&|run| Some(run.record.read_bytes as f64 / 1e6 / run.seconds()?))),
                ratio(middle(&|run| self.unique_ratio(run.golden_bytes))),
                ratio(middle(&|run| self.unique_ratio(run.disk_bytes))),
                or_dash(middle(&|run| Some(run.seconds()? - self.floor(run)))),
                ratio(seconds.zip(ceiling).map(|(own, ceiling)| own / ceiling)),
                percent(middle(&|run| busy(run.server_run, run))),
                percent(middle(&|run| busy(Some(run.client_run), run))),
            ]
        };
        (columns, self.names.iter().map(row).collect())
    }

    fn latencies(&self, run: &Run) -> Rows {
        let columns = vec!["ms", "count", "p50", "p90", "p99", "p99.9", "largest"];
        let row = |name: &str, h: &hdrhistogram::Histogram<u64>| {
            let at = |quantile: f64| number(micros_at(h, quantile) / 1e3);
            let count = number(h.len() as f64);
            vec![name.to_string(), count, at(0.5), at(0.9), at(0.99), at(0.999), at(1.0)]
        };
        let mut rows = vec![row("boot of a node", &run.record.boot_times())];
        rows.extend(Class::ALL.iter().map(|class| row(class.name(), run.record.class(*class))));
        (columns, rows)
    }

    fn facts(&self, run: &Run) -> Vec<String> {
        let (record, script) = (&run.record, &self.storm.script);
        let mb = |bytes: u64| format!("{} MB", number(bytes as f64 / 1e6));
        let mut facts = vec![format!(
            "{} of {} nodes booted{}; {} commands, {} read, {} written, {} retries.",
            record.booted(),
            record.nodes.len(),
            run.seconds().map_or(String::new(), |s| format!(", all within {} s", number(s))),
            number(record.commands as f64),
            mb(record.read_bytes),
            mb(record.write_bytes),
            record.retries
        )];
        facts.push(format!(
            "Unique golden bytes (pages of 4 KiB): {}; the server read {} into its cache, its process {} from disks.",
            mb(script.unique_bytes),
            run.golden_bytes.map_or("an unknown amount".to_string(), mb),
            run.disk_bytes.map_or("an unknown amount".to_string(), mb)
        ));
        facts.push(format!(
            "The wire's floor at {} Gbit/s: {} s for {} with headers and framing.",
            number(self.wire / 1e9),
            number(self.floor(run)),
            mb(record.wire_bytes)
        ));
        facts.push(match (record.verified_bytes, record.wrong_sectors) {
            (0, _) => "Nothing was verified.".to_string(),
            (bytes, 0) => format!(
                "{} verified, {} of them written by the nodes and read back after the boot: all right.",
                mb(bytes),
                mb(record.read_back_bytes)
            ),
            (bytes, wrong) => format!("{} verified, {wrong} SECTORS WERE WRONG.", mb(bytes)),
        });
        facts.extend(record.first_error.iter().map(|error| format!("First fault: {error}.")));
        facts
    }

    /// What the figures say of the bars that a storm has, as far as they were measured.
    fn bars(&self) -> Vec<String> {
        let said = |holds: bool| if holds { "reached" } else { "NOT REACHED" };
        let mut bars = Vec::new();
        let worst =
            self.of("goldrush").filter_map(|run| self.unique_ratio(run.golden_bytes)).reduce(f64::max);
        if let Some(worst) = worst {
            bars.push(format!(
                "Golden bytes read from disk, of the unique ones: {worst:.3} in the worst round; at most 1.02: {}.",
                said(worst <= 1.02)
            ));
        }
        let own = self.seconds("goldrush");
        if let Some((own, ceiling)) = own.zip(self.seconds("ceiling")) {
            let ratio = own / ceiling;
            bars.push(format!(
                "Time, of what the ceiling takes for the same bytes: {ratio:.2}; at most 1.25: {}.",
                said(ratio <= 1.25)
            ));
        }
        if let Some((own, tgt)) = own.zip(self.seconds("tgt")) {
            let ratio = tgt / own;
            bars.push(format!("Times faster than tgt: {ratio:.1}; at least 8: {}.", said(ratio >= 8.0)));
        }
        bars
    }

    /// The last round of each server.
    fn last(&self) -> impl Iterator<Item = (&String, &Run)> {
        self.names.iter().filter_map(|name| Some((name, self.of(name).last()?)))
    }

    fn setting(&self) -> String {
        let fact = |key: &str| self.machine[key].as_str().unwrap_or("?").to_string();
        let think = match self.storm.think {
            0.0 => "without its pauses".to_string(),
            part => format!("with {part} of its pauses"),
        };
        let checks = match self.storm.checks {
            Checks::Off => "nothing verified",
            Checks::Golden => "golden data verified",
            Checks::All => "every byte verified where each node has its own disk, golden data elsewhere",
        };
        format!(
            "{} nodes replay the recorded boot `{}` {think}; {checks}; {} round(s), servers in rotation, each started cold.\n\
             Machine: {}{}, {} cores, {} memory, Linux {}, load average {} at the start.",
            self.storm.nodes,
            self.trace,
            self.of(self.names.first().map_or("", String::as_str)).count(),
            fact("processor"),
            if self.machine["virtual"] == true { " (virtual machine)" } else { "" },
            self.machine["cores"],
            fact("memory"),
            fact("kernel"),
            fact("load_average_at_start"),
        )
    }

    /// All tables, for the screen and for Markdown.
    pub(super) fn text(&self) -> String {
        let plain = |(columns, rows): Rows| {
            let mut table = table(&columns);
            rows.into_iter().for_each(|row| {
                table.add_row(row);
            });
            table.to_string()
        };
        let mut text = format!("{}\n", plain(self.servers()));
        self.bars().iter().for_each(|bar| {
            // Writing to a string cannot fail.
            let _ = write!(text, "\n- {bar}");
        });
        text.push('\n');
        for (name, run) in self.last() {
            // Writing to a string cannot fail.
            let _ = write!(text, "\n**{name}**, last round\n\n{}\n\n", plain(self.latencies(run)));
            self.facts(run).iter().for_each(|fact| {
                let _ = writeln!(text, "- {fact}");
            });
        }
        text
    }

    pub(super) fn markdown(&self) -> String {
        let note = if self.note.is_empty() { String::new() } else { format!("{}\n", self.note) };
        format!(
            "# perf storm\n\n{}\n{note}\nMade by\n\n    {}\n\n{}",
            self.setting(),
            self.command,
            self.text()
        )
    }

    pub(super) fn json(&self) -> Value {
        let micros = |h: &hdrhistogram::Histogram<u64>| json!({ "count": h.len(), "p50_us": micros_at(h, 0.5), "p90_us": micros_at(h, 0.9), "p99_us": micros_at(h, 0.99), "p99_9_us": micros_at(h, 0.999), "max_us": micros_at(h, 1.0) });
        let run = |run: &Run| {
            let classes: serde_json::Map<String, Value> =
                Class::ALL.iter().map(|c| (c.name().to_string(), micros(run.record.class(*c)))).collect();
            json!({
                "server": run.name,
                "nodes": run.record.nodes.len(),
                "booted": run.record.booted(),
                "all_booted_seconds": run.seconds(),
                "node_boot": micros(&run.record.boot_times()),
                "commands": run.record.commands,
                "read_bytes": run.record.read_bytes,
                "write_bytes": run.record.write_bytes,
                "wire_bytes": run.record.wire_bytes,
                "unique_golden_bytes": self.storm.script.unique_bytes,
                "golden_bytes_read": run.golden_bytes,
                "disk_bytes_read": run.disk_bytes,
                "wire_floor_seconds": self.floor(run),
                "server_run_seconds": run.server_run.map(|time| time.as_secs_f64()),
                "client_run_seconds": run.client_run.as_secs_f64(),
                "verified_bytes": run.record.verified_bytes,
                "wrong_sectors": run.record.wrong_sectors,
                "read_back_bytes": run.record.read_back_bytes,
                "retries": run.record.retries,
                "first_error": run.record.first_error,
                "latencies": classes,
            })
        };
        json!({
            "machine": self.machine,
            "command": self.command,
            "note": self.note,
            "trace": self.trace,
            "think": self.storm.think,
            "wire_bits_per_second": self.wire,
            "runs": self.runs.iter().map(run).collect::<Vec<_>>(),
        })
    }

    pub(super) fn html(&self) -> Result<String> {
        let mut page = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>goldrush: boot storm</title>\
             <style>{STYLE}</style></head><body>\n<h1>Boot storm</h1>\n<p>{}</p>\n<p>{}</p>\n<pre>{}</pre>\n{}",
            escape(&self.setting()),
            escape(&self.note),
            escape(&self.command),
            html_table(&self.servers())
        );
        let bars: Vec<String> = self.bars().iter().map(|bar| format!("<li>{}</li>", escape(bar))).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(page, "<ul>{}</ul>", bars.concat());
        for (name, run) in self.last() {
            let facts: Vec<String> =
                self.facts(run).iter().map(|fact| format!("<li>{}</li>", escape(fact))).collect();
            let _ = write!(
                page,
                "<h2>{}, last round</h2>\n{}<ul>{}</ul>\n",
                escape(name),
                html_table(&self.latencies(run)),
                facts.concat()
            );
            for picture in chart::all(&run.record)? {
                let (title, about, svg) = (picture.title, picture.about, picture.svg);
                let _ = write!(page, "<h3>{title}</h3>\n<p class=\"about\">{about}</p>\n{svg}\n");
            }
        }
        page.push_str("</body></html>\n");
        Ok(page)
    }

    /// The pictures of each server's last round as files of their own.
    pub(super) fn pictures(&self, prefix: &str) -> Result<()> {
        for (name, run) in self.last() {
            let of = if self.names.len() > 1 { format!("{name}-") } else { String::new() };
            for picture in chart::all(&run.record)? {
                let title = picture.title.to_lowercase().replace(' ', "-");
                write(&PathBuf::from(format!("{prefix}{of}{title}.svg")), &picture.svg)?;
            }
        }
        Ok(())
    }
}

fn html_table((columns, rows): &Rows) -> String {
    let cells = |tag: &str, row: &mut dyn Iterator<Item = &str>| -> String {
        row.map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect()
    };
    let head = cells("th", &mut columns.iter().copied());
    let body: String = rows
        .iter()
        .map(|row| format!("<tr>{}</tr>\n", cells("td", &mut row.iter().map(String::as_str))))
        .collect();
    format!("<table><tr>{head}</tr>\n{body}</table>\n")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Base;
    use crate::storm::{Record, Script};
    use crate::trace::{Kind, Trace};

    fn run(name: &str, seconds: u64) -> Run {
        let mut record = Record::new(1);
        let time = Duration::from_secs(seconds);
        record.nodes[0].booted = Some(time);
        record.ended(0, Class::of(Kind::Loader, crate::trace::Op::Flush), 0, time, time);
        record.wire_bytes = 1_448_000_000;
        Run {
            name: name.to_string(),
            record,
            golden_bytes: Some(4096),
            disk_bytes: None,
            server_run: None,
            client_run: Duration::ZERO,
            elapsed: time,
        }
    }

    fn with_report(runs: &[Run], test: impl FnOnce(&Report<'_>)) {
        let trace = Trace::parse("h\n0,R,0,8,loader1\n").unwrap();
        let storm = Storm {
            urls: Vec::new(),
            nodes: 1,
            script: Script::of(&trace),
            think: 0.0,
            checks: Checks::Off,
            content: Base::Zero,
            initiator: String::new(),
            limit: Duration::ZERO,
        };
        let names = vec!["goldrush".to_string(), "ceiling".to_string()];
        let (command, note, trace) = ("perf storm <&>".to_string(), String::new(), "t".to_string());
        test(&Report { machine: json!({}), command, note, trace, wire: 1e10, names, storm: &storm, runs });
    }

    #[test]
    fn medians_ratios_and_the_floor_are_told() {
        let runs = [
            run("goldrush", 5),
            run("ceiling", 4),
            run("goldrush", 7),
            run("ceiling", 4),
            run("goldrush", 6),
        ];
        with_report(&runs, |report| {
            let (_, rows) = report.servers();
            assert_eq!((rows[0][1].as_str(), rows[1][1].as_str()), ("6.00", "4.00"));
            assert_eq!((rows[0][5].as_str(), rows[0][6].as_str()), ("1.000", "-"));
            // 1538 MB at 10 Gbit/s.
            assert!((report.floor(&runs[0]) - 1.2304).abs() < 1e-9);
            assert_eq!((rows[0][7].as_str(), rows[0][8].as_str()), ("4.77", "1.500"));
            let [disk, time] = &report.bars()[..] else { panic!("two bars can be judged") };
            assert!(disk.contains("1.000") && disk.ends_with("1.02: reached."), "{disk}");
            assert!(time.contains("1.50") && time.ends_with("1.25: NOT REACHED."), "{time}");
        });
    }

    #[test]
    fn a_round_in_which_a_node_failed_has_no_time() {
        let mut failed = run("goldrush", 1);
        failed.record.nodes[0].booted = None;
        with_report(&[run("goldrush", 5), failed], |report| {
            assert_eq!(report.servers().1[0][1], "-");
        });
    }

    #[test]
    fn the_page_needs_nothing_else_and_escapes_what_it_quotes() {
        with_report(&[run("goldrush", 5)], |report| {
            let page = report.html().unwrap();
            assert!(page.contains("perf storm &lt;&amp;&gt;") && page.matches("<svg").count() == 4);
            assert!(!page.contains("<script") && !page.contains("<link") && !page.contains("src="));
            assert!(report.markdown().contains("    perf storm <&>\n"));
        });
    }
}
