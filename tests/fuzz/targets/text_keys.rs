//! Text segments: keys, values, numbers, continuation.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| goldrush::iscsi::fuzz::fuzz_text_keys(bytes));
