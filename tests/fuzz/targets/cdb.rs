//! Commands and parameter lists to a device.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| goldrush::scsi::fuzz::fuzz_cdb(bytes));
