//! The `goldrush` program.
//!
//! Knows that there is a command line. Does not know what is on it.

fn main() -> std::process::ExitCode {
    goldrush::control::main(std::env::args_os())
}
