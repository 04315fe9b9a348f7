//! Bytes of a boot trace.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| goldrush::boot_trace::fuzz::fuzz_boot_trace(bytes));
