//! A byte stream, framed whole and in pieces.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| goldrush::iscsi::fuzz::fuzz_framer(bytes));
