//! How far a long command is: a bar on a terminal, percentages in the log elsewhere.
//!
//! Knows a total and a position. Does not know what is counted but that it is bytes.

use std::cell::Cell;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// A command that ends within this time says nothing in the log.
const SILENT: Duration = Duration::from_secs(2);
/// Percent between two lines of the log; a slow command speaks after `SLOW`, too.
const STEP: u64 = 10;
const SLOW: Duration = Duration::from_secs(60);

/// One command's progress, from 0 to a total.
#[derive(Debug)]
pub(super) struct Progress {
    to: To,
    total: u64,
}

#[derive(Debug)]
enum To {
    Bar(ProgressBar),
    Log { doing: &'static str, image: String, last: Cell<(Instant, u64)> },
}

impl Progress {
    /// `doing` is a word such as "converting"; `total` is in bytes.
    pub(super) fn new(doing: &'static str, image: &Path, total: u64) -> Self {
        let to = if io::stderr().is_terminal() {
            To::Bar(bar(doing, total))
        } else {
            To::Log { doing, image: image.display().to_string(), last: Cell::new((Instant::now(), 0)) }
        };
        Self { to, total }
    }

    /// `at` bytes of the total are done.
    pub(super) fn set(&self, at: u64) {
        match &self.to {
            To::Bar(bar) => bar.set_position(at),
            To::Log { doing, image, last } => {
                let percent = percent(at, self.total);
                let now = Instant::now();
                let (since, said) = last.get();
                if is_worth_a_line(percent, said, now - since) {
                    last.set((now, percent));
                    tracing::info!(image, "{doing}: {percent}%");
                }
            }
        }
    }

    /// The command is done: the bar goes away, a log that has begun is ended.
    pub(super) fn finish(&self) {
        match &self.to {
            To::Bar(bar) => bar.finish_and_clear(),
            To::Log { doing, image, last } => {
                if last.get().1 > 0 {
                    tracing::info!(image, "{doing}: 100%");
                }
            }
        }
    }
}

fn percent(at: u64, total: u64) -> u64 {
    // Up to 64 TiB, so that a hundred times it is no overflow.
    at.saturating_mul(100).checked_div(total).unwrap_or(100).min(100)
}

fn is_worth_a_line(percent: u64, said: u64, since: Duration) -> bool {
    let first = said == 0 && since >= SILENT && percent > 0;
    let more = percent >= said + if since >= SLOW { 1 } else { STEP };
    percent < 100 && (first || (said > 0 && more))
}

fn bar(doing: &'static str, total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    let template = "{msg} {bar:40} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(doing);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_hears_of_long_commands_in_steps() {
        let seconds = Duration::from_secs;
        assert!(!is_worth_a_line(50, 0, seconds(1)));
        assert!(is_worth_a_line(3, 0, seconds(2)));
        assert!(!is_worth_a_line(0, 0, seconds(9)));
        assert!(!is_worth_a_line(12, 3, seconds(9)));
        assert!(is_worth_a_line(13, 3, seconds(1)));
        assert!(is_worth_a_line(4, 3, seconds(60)));
        assert!(!is_worth_a_line(100, 93, seconds(60)));
    }

    #[test]
    fn percentages_end_at_a_hundred() {
        assert_eq!(
            (percent(0, 0), percent(5, 3), percent(1, 3), percent(1 << 46, 1 << 46)),
            (100, 100, 33, 100)
        );
    }
}
