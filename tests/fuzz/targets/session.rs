//! Requests and answers to a session in full-feature phase.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| goldrush::iscsi::session::fuzz::fuzz_session(bytes));
