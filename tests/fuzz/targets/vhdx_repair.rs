//! A damaged VHDX, and its repair cut off wherever it may be.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| goldrush::vhdx::fuzz::fuzz_vhdx_repair(bytes));
