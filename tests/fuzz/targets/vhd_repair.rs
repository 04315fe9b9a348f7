//! A damaged VHD, and its repair cut off wherever it may be.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| goldrush::vhd::fuzz::fuzz_vhd_repair(bytes));
