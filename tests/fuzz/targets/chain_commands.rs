//! Commands on random chains of images, stopped and run again, against a model.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| goldrush::control::chain_fuzz::fuzz_chain_commands(bytes));
