//! Reads and writes of a child and its parent, against a model.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| goldrush::image::fuzz::fuzz_chain_ops(bytes));
