//! A VHDX's log replayed in memory, on the disk, and after a cut.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| goldrush::vhdx::fuzz::fuzz_vhdx_replay(bytes));
