//! What an iSNS server may say.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| goldrush::isns::fuzz::fuzz_isns(bytes));
