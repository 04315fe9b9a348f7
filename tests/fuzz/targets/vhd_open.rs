//! A file opened as a VHD, and its sectors resolved.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| goldrush::vhd::fuzz::fuzz_vhd_open(bytes));
