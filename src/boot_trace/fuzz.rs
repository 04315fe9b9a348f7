//! Fuzz entry point: arbitrary bytes as a trace file.
//!
//! Knows what every trace that is accepted promises. Does not know what a good one looks like.

use std::collections::HashSet;

use super::file::with_checksum;
use super::{BootTrace, PAGE_BYTES, PAGES_MAX, RANGES_MAX, Recording};

/// Parses `input` as it is, and with the right checksum behind it. What is accepted lies in its file, page by page once,
/// and is written as it was read.
///
/// # Panics
/// When a promise is broken.
pub fn fuzz_boot_trace(input: &[u8]) {
    for bytes in [input.to_vec(), with_checksum(input)] {
        let Ok(trace) = BootTrace::parse(&bytes) else { continue };
        assert!(trace.ranges.len() <= RANGES_MAX && trace.pages() <= PAGES_MAX);
        let mut pages = HashSet::new();
        for range in &trace.ranges {
            assert!(range.offset() < trace.golden.len && range.bytes() > 0);
            assert!(range.end() <= trace.golden.len.div_ceil(PAGE_BYTES));
            assert!((range.page..range.end()).all(|page| pages.insert(page)), "a page is there twice");
        }
        assert!(trace.usual().count() <= trace.ranges.len());
        assert_eq!(BootTrace::parse(&trace.encode()).as_ref(), Ok(&trace));
        let mut recording = Recording::default();
        trace.usual().for_each(|range| {
            recording.read(range.offset(), range.bytes());
        });
        let mut joined = Some(trace.clone());
        recording.join(&mut joined, trace.golden);
        let joined = joined.unwrap_or(trace);
        assert_eq!(BootTrace::parse(&joined.encode()), Ok(joined));
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::tests::traces;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn damaged_traces_do_no_harm(
            trace in traces(),
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in proptest::option::of(any::<prop::sample::Index>()),
        ) {
            let mut bytes = trace.encode();
            for (at, value) in damage {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            fuzz_boot_trace(&bytes);
        }

        #[test]
        fn any_bytes_do_no_harm(tail in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz_boot_trace(&tail);
            let head = [&b"GRBTRACE\x01\0\0\0"[..], &tail].concat();
            fuzz_boot_trace(&head);
        }
    }
}
