//! Logs: `tracing` events to standard error, as text or as JSON lines.
//!
//! Knows formats and levels. Does not know who logs; nothing on the path of a READ or WRITE does.

use std::io::IsTerminal;

use tracing_subscriber::filter::LevelFilter;

use super::cli::{LogArgs, LogFormat, LogLevel};

/// Installs the process's subscriber. A second call changes nothing.
pub(super) fn init(args: &LogArgs) {
    let level = match args.log_level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // The only error is "already set", by a test or by an embedding program: its choice stands.
    let _ = match args.log_format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}
