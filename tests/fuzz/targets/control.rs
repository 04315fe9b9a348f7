//! Requests to and answers of the control socket.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| goldrush::control::admin::fuzz_control(bytes));
