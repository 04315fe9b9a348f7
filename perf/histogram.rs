//! Latency histograms: their bounds, quantiles, and their form on disk.
//!
//! Knows HdrHistogram's interval log (version 1.3, entries in its V2 form), one tagged entry for each phase. Does not
//! know what was measured.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::{
    IntervalLogIterator, IntervalLogWriterBuilder, LogEntry, Tag,
};
use hdrhistogram::serialization::{Deserializer, V2DeflateSerializer};

use crate::fail::{Result, failure};
use crate::keys;

/// Nanoseconds from 1 us to 1000 s with three digits.
pub(crate) fn fine() -> Histogram<u64> {
    // The bounds are constants that the crate accepts.
    Histogram::new_with_bounds(1_000, 1_000_000_000_000, 3).expect("valid bounds")
}

/// The same with two digits, for where there are many.
pub(crate) fn coarse() -> Histogram<u32> {
    Histogram::new_with_bounds(1_000, 1_000_000_000_000, 2).expect("valid bounds")
}

pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Microseconds at a quantile; 0 of nothing.
pub(crate) fn micros_at<C: hdrhistogram::Counter>(histogram: &Histogram<C>, quantile: f64) -> f64 {
    if histogram.is_empty() { 0.0 } else { histogram.value_at_quantile(quantile) as f64 / 1e3 }
}

/// A phase of a run: its name, when it began within the run, how long it took, and its latencies in nanoseconds.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) name: String,
    pub(crate) start: Duration,
    pub(crate) length: Duration,
    pub(crate) latencies: Histogram<u64>,
}

/// Writes all phases whole: any quantile can be asked for later.
pub(crate) fn write(path: &Path, remark: &str, phases: &[Kept]) -> Result<()> {
    let told = |e: &dyn std::fmt::Display| {
        failure!("cannot write {}: {e}; give another --histogram", path.display())
    };
    let mut file = BufWriter::new(File::create(path).map_err(|e| told(&e))?);
    let mut serializer = V2DeflateSerializer::new();
    let mut builder = IntervalLogWriterBuilder::new();
    for line in remark.lines() {
        builder.add_comment(line);
    }
    // Values are nanoseconds; the log's own column of the largest one is told in milliseconds.
    builder.with_max_value_divisor(1e6);
    builder.with_start_time(SystemTime::now());
    let mut writer = builder.begin_log_with(&mut file, &mut serializer).map_err(|e| told(&e))?;
    for phase in phases {
        let tag = Tag::new(&phase.name).ok_or_else(|| {
            failure!("the phase {:?} has a name that a log cannot hold: report this", phase.name)
        })?;
        writer
            .write_histogram(&phase.latencies, phase.start, phase.length, Some(tag))
            .map_err(|e| told(&format!("{e:?}")))?;
    }
    drop(writer);
    file.flush().map_err(|e| told(&e))
}

/// The phases of a log, entries of the same tag added up, in the order in which they first came.
pub(crate) fn read(path: &Path) -> Result<Vec<(String, Histogram<u64>)>> {
    let told = |e: &dyn std::fmt::Display| {
        failure!("cannot read {}: {e}; give a file that --histogram wrote", path.display())
    };
    let bytes = std::fs::read(path).map_err(|e| told(&e))?;
    let mut deserializer = Deserializer::new();
    let mut order: Vec<String> = Vec::new();
    let mut phases: BTreeMap<String, Histogram<u64>> = BTreeMap::new();
    for entry in IntervalLogIterator::new(&bytes) {
        let entry = entry.map_err(|e| told(&format!("{e:?}")))?;
        let LogEntry::Interval(entry) = entry else { continue };
        let name = entry.tag().map_or("all".to_string(), |tag| tag.as_str().to_string());
        let packed = keys::binary(&format!("0b{}", entry.encoded_histogram())).map_err(|e| told(&e))?;
        let latencies: Histogram<u64> =
            deserializer.deserialize(&mut packed.as_slice()).map_err(|e| told(&format!("{e:?}")))?;
        match phases.get_mut(&name) {
            Some(sum) => sum.add(&latencies).map_err(|e| told(&format!("{e:?}")))?,
            None => {
                order.push(name.clone());
                phases.insert(name, latencies);
            }
        }
    }
    if order.is_empty() {
        return Err(told(&"it holds no histogram"));
    }
    Ok(order.into_iter().filter_map(|name| phases.remove_entry(&name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_gives_back_every_value_of_every_phase() {
        let place = std::env::temp_dir().join(format!("perf-histogram-{}", std::process::id()));
        let mut reads = fine();
        (1..=1000).for_each(|n| reads.record(n * 10_000).unwrap());
        let mut writes = fine();
        writes.record(5_000_000).unwrap();
        let phase = |name: &str, latencies: &Histogram<u64>| Kept {
            name: name.to_string(),
            start: Duration::from_millis(1500),
            length: Duration::from_secs(2),
            latencies: latencies.clone(),
        };
        let phases = [phase("reads", &reads), phase("writes", &writes), phase("reads", &reads)];
        write(&place, "one line\nanother", &phases).unwrap();
        let back = read(&place).unwrap();
        std::fs::remove_file(&place).unwrap();
        assert_eq!(
            back.iter().map(|(name, h)| (name.as_str(), h.len())).collect::<Vec<_>>(),
            [("reads", 2000), ("writes", 1)]
        );
        for quantile in [0.5, 0.9, 0.999] {
            assert_eq!(micros_at(&back[0].1, quantile), micros_at(&reads, quantile));
        }
    }

    #[test]
    fn what_is_no_log_is_refused() {
        let place = std::env::temp_dir().join(format!("perf-no-histogram-{}", std::process::id()));
        for text in ["", "nothing", "Tag=x,0.0,1.0,2.0,####\n", "0.0,1.0,2.0,HISTFAAAA\n"] {
            std::fs::write(&place, text).unwrap();
            assert!(read(&place).is_err(), "{text:?}");
        }
        std::fs::remove_file(&place).unwrap();
    }
}
