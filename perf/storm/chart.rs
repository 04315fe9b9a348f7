//! Pictures of a storm as SVG: the nodes in time, throughput, latency.
//!
//! Knows axes and colours. Does not know where the pictures go.

use hdrhistogram::Histogram;
use plotters::coord::Shift;
use plotters::prelude::*;

use super::record::{Class, Record};
use crate::fail::{Result, failure};
use crate::trace::Kind;

const WIDTH: u32 = 1000;
const HEIGHT: u32 = 320;
/// Of a node's line in the timeline.
const LINE: u32 = 3;
const LOADER: RGBColor = RGBColor(0x1f, 0x77, 0xb4);
const SYSTEM: RGBColor = RGBColor(0x2c, 0xa0, 0x2c);
const WRITES: RGBColor = RGBColor(0xd6, 0x27, 0x28);
const LOGIN: RGBColor = RGBColor(0xff, 0xb3, 0x47);
const GREY: RGBColor = RGBColor(0x88, 0x88, 0x88);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A picture and what it shows.
#[derive(Debug, Clone)]
pub(crate) struct Picture {
    pub(crate) title: &'static str,
    pub(crate) about: &'static str,
    pub(crate) svg: String,
}

pub(crate) fn all(record: &Record) -> Result<Vec<Picture>> {
    let height = 90 + (record.nodes.len() as u32 * LINE).max(60);
    Ok(vec![
        Picture {
            title: "Nodes",
            about: "One line for each node, in time: orange until its session has logged in, blue the loader, green the operating system.",
            svg: draw(height, |area| timeline(area, record))?,
        },
        Picture {
            title: "Throughput",
            about: "Bytes read (blue) and written (red) by all nodes together.",
            svg: draw(HEIGHT, |area| throughput(area, record))?,
        },
        Picture {
            title: "Latency over time",
            about: "Of all commands that ended within a stretch of time: median (green), 99th percentile (blue), largest (grey).",
            svg: draw(HEIGHT, |area| latency(area, record))?,
        },
        Picture {
            title: "Latency by percentile",
            about: "Loader reads (blue), operating system reads (green), writes (red), flushes (grey); the axis counts nines.",
            svg: draw(HEIGHT, |area| percentiles(area, record))?,
        },
    ])
}

fn draw(height: u32, paint: impl FnOnce(&Area<'_>) -> std::result::Result<(), String>) -> Result<String> {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
    let painted = area.fill(&WHITE).map_err(|e| e.to_string());
    let painted =
        painted.and_then(|()| paint(&area)).and_then(|()| area.present().map_err(|e| e.to_string()));
    drop(area);
    painted.map_err(|e| failure!("cannot draw a picture of the storm: {e}; report this"))?;
    Ok(svg)
}

fn end_of(record: &Record) -> f64 {
    let spans = record.nodes.iter().flat_map(|node| &node.spans);
    let last = spans.filter_map(|span| span.ended.or(span.logged_in)).map(|at| at.as_secs_f64());
    last.fold(0.001, f64::max)
}

fn timeline(area: &Area<'_>, record: &Record) -> std::result::Result<(), String> {
    let (end, nodes) = (end_of(record), record.nodes.len().max(1) as f64);
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .x_label_area_size(35)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..end * 1.01, nodes..0.0)
        .map_err(|e| e.to_string())?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .x_desc("seconds")
        .y_desc("node")
        .y_labels(9)
        .y_label_formatter(&|node| format!("{node:.0}"))
        .draw()
        .map_err(|e| e.to_string())?;
    let mut bars = Vec::new();
    for (number, node) in record.nodes.iter().enumerate() {
        let (top, bottom) = (number as f64 + 0.1, number as f64 + 0.9);
        let mut bar = |from: f64, to: f64, colour: RGBColor| {
            bars.push(Rectangle::new([(from, top), (to, bottom)], colour.filled()));
        };
        for span in &node.spans {
            let connected = span.connected.as_secs_f64();
            let logged_in = span.logged_in.map_or(end, |at| at.as_secs_f64());
            bar(connected, logged_in, LOGIN);
            if span.logged_in.is_some() {
                let ended = span.ended.map_or(end, |at| at.as_secs_f64());
                bar(logged_in, ended, if span.kind == Kind::Loader { LOADER } else { SYSTEM });
            }
        }
    }
    chart.draw_series(bars).map_err(|e| e.to_string())?;
    Ok(())
}

fn throughput(area: &Area<'_>, record: &Record) -> std::result::Result<(), String> {
    let width = record.bins.width.as_secs_f64();
    let rate = |bytes: u64| bytes as f64 / 1e6 / width;
    let points = |of: fn(&super::record::Bin) -> u64| -> Vec<(f64, f64)> {
        let bins = record.bins.all.iter().enumerate();
        bins.map(|(place, bin)| ((place as f64 + 0.5) * width, rate(of(bin)))).collect()
    };
    let (reads, writes) = (points(|bin| bin.read_bytes), points(|bin| bin.write_bytes));
    let most = reads.iter().chain(&writes).map(|(_, y)| *y).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .x_label_area_size(35)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..end_of(record) * 1.01, 0.0..most * 1.05)
        .map_err(|e| e.to_string())?;
    chart.configure_mesh().x_desc("seconds").y_desc("MB/s").draw().map_err(|e| e.to_string())?;
    chart
        .draw_series(AreaSeries::new(reads, 0.0, LOADER.mix(0.3)).border_style(LOADER))
        .map_err(|e| e.to_string())?;
    chart.draw_series(LineSeries::new(writes, WRITES.stroke_width(2))).map_err(|e| e.to_string())?;
    Ok(())
}

fn latency(area: &Area<'_>, record: &Record) -> std::result::Result<(), String> {
    let width = record.bins.width.as_secs_f64();
    let line = |quantile: f64| -> Vec<(f64, f64)> {
        let bins = record.bins.all.iter().enumerate().filter(|(_, bin)| !bin.latencies.is_empty());
        let value = |h: &Histogram<u32>| h.value_at_quantile(quantile) as f64 / 1e6;
        bins.map(|(place, bin)| ((place as f64 + 0.5) * width, value(&bin.latencies))).collect()
    };
    let lines = [(line(1.0), GREY), (line(0.99), LOADER), (line(0.5), SYSTEM)];
    let end = end_of(record) * 1.01;
    log_lines(area, 0.0..end, "seconds", &lines, |x| format!("{x:.1}"))
}

/// The percentiles 0, 90, 99, 99.9 and so on at equal distances.
fn percentiles(area: &Area<'_>, record: &Record) -> std::result::Result<(), String> {
    let line = |class: Class| -> Vec<(f64, f64)> {
        let latencies = record.class(class);
        let nines = (latencies.len().max(1) as f64).log10().min(6.0);
        let at = |nines: f64| latencies.value_at_quantile(1.0 - 10f64.powf(-nines)) as f64 / 1e6;
        if latencies.is_empty() {
            return Vec::new();
        }
        (0..=60).map(|step| f64::from(step) / 10.0).filter(|n| *n <= nines).map(|n| (n, at(n))).collect()
    };
    let lines = [
        (line(Class::LoaderRead), LOADER),
        (line(Class::SystemRead), SYSTEM),
        (line(Class::Write), WRITES),
        (line(Class::Flush), GREY),
    ];
    log_lines(area, 0.0..6.0, "percentile", &lines, |nines| {
        let digits = (nines.round() as usize).saturating_sub(2);
        format!("{:.digits$}", 100.0 * (1.0 - 10f64.powf(-nines)))
    })
}

/// Lines over a logarithmic axis of milliseconds.
fn log_lines(
    area: &Area<'_>,
    across: std::ops::Range<f64>,
    what: &str,
    lines: &[(Vec<(f64, f64)>, RGBColor)],
    label: impl Fn(&f64) -> String,
) -> std::result::Result<(), String> {
    let values = || lines.iter().flat_map(|(points, _)| points).map(|(_, y)| *y);
    let most = values().fold(0.01, f64::max) * 1.5;
    let least = values().fold(most, f64::min).max(0.001) / 1.5;
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .x_label_area_size(35)
        .y_label_area_size(60)
        .build_cartesian_2d(across, (least..most).log_scale())
        .map_err(|e| e.to_string())?;
    let mut mesh = chart.configure_mesh();
    mesh.x_desc(what).y_desc("ms").x_labels(7).x_label_formatter(&label).draw().map_err(|e| e.to_string())?;
    for (points, colour) in lines {
        let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2));
        chart.draw_series(line).map_err(|e| e.to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::record::Span;
    use super::*;

    #[test]
    fn every_picture_is_an_svg_that_needs_nothing_else() {
        let mut record = Record::new(3);
        for node in 0..3 {
            let at = |ms: u64| Duration::from_millis(ms + node as u64);
            let span =
                Span { kind: Kind::Loader, connected: at(0), logged_in: Some(at(5)), ended: Some(at(50)) };
            record.nodes[node].spans.push(span);
            record.ended(node, Class::LoaderRead, 4096, at(20), Duration::from_micros(300));
            record.ended(node, Class::Write, 4096, at(40), Duration::from_micros(900));
        }
        for picture in all(&record).unwrap() {
            assert!(picture.svg.starts_with("<svg"), "{}", picture.title);
            assert!(picture.svg.trim_end().ends_with("</svg>"), "{}", picture.title);
            assert!(!picture.svg.contains("href"), "{}", picture.title);
        }
        // A storm in which nothing happened has pictures too.
        assert_eq!(all(&Record::new(1)).unwrap().len(), 4);
    }
}
