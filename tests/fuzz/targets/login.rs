//! Login requests to a login machine.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| goldrush::iscsi::fuzz::fuzz_login(bytes));
