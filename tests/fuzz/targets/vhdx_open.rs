//! A file opened as a VHDX, its log replayed, and its sectors resolved.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| goldrush::vhdx::fuzz::fuzz_vhdx_open(bytes));
