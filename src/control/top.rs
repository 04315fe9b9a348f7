//! `goldrush top`: the same page again and again.
//!
//! Knows when to ask and how a page replaces the one before. Does not know what stands on it (`status`).

use std::io::{IsTerminal, Write};
use std::time::Duration;

use super::admin::status::{Status, StatusAsked, TargetList, TargetStatus};
use super::admin::{Request, client};
use super::cli::TopArgs;
use super::error::{Error, print};
use super::status::{overview, targets};

/// To the upper left corner, and away with what is below: a page is drawn over the one before, without a flicker.
const HOME: &str = "\x1b[H";
const REST: &str = "\x1b[J";
const LINE_END: &str = "\x1b[K\n";
/// Lines where the terminal does not tell.
const LINES: usize = 50;

/// Runs the command until it is interrupted, nobody reads, or the server ends.
pub(super) fn run(args: &TopArgs) -> Result<(), Error> {
    let named = args.control.control.as_deref();
    let asked = StatusAsked { targets: TargetList::Seen, sessions: false };
    let mut before: Status = client::ask(named, &Request::Status(asked))?;
    let screen = !args.once && std::io::stdout().is_terminal();
    loop {
        std::thread::sleep(Duration::from_secs_f64(args.interval));
        let now: Status = client::ask(named, &Request::Status(asked))?;
        let text = page(&before, &now, if screen { lines() } else { usize::MAX });
        if args.once {
            return print(|out| out.write_all(text.as_bytes()));
        }
        let mut out = std::io::stdout().lock();
        let page = if screen { over(&text) } else { format!("{text}\n") };
        match out.write_all(page.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            result => result.map_err(Error::output)?,
        }
        before = now;
    }
}

/// The overview, and below it as many targets as fit: those that boot before those that have.
fn page(before: &Status, now: &Status, lines: usize) -> String {
    let mut text = overview(Some(before), now);
    let mut booting = now.targets.clone();
    booting.sort_by_key(rank);
    // An empty line, the heading, and the line that says what is not shown.
    let room = lines.saturating_sub(text.lines().count() + 3);
    let left = booting.len().saturating_sub(room);
    booting.truncate(room);
    targets(&booting, &mut text);
    if left > 0 {
        text.push_str(&format!("and {left} more: goldrush status --targets\n"));
    }
    text
}

/// First who starts now, the latest first; then who has started; then who has gone.
fn rank(target: &TargetStatus) -> (u8, u64) {
    let phase = match target.phase.as_str() {
        "loader" | "gap" | "system" => 0,
        "settled" => 1,
        _ => 2,
    };
    (phase, target.phase_ms.unwrap_or(u64::MAX))
}

fn over(text: &str) -> String {
    let mut page = HOME.to_owned();
    for line in text.lines() {
        page.push_str(line);
        page.push_str(LINE_END);
    }
    page.push_str(REST);
    page
}

fn lines() -> usize {
    rustix::termios::tcgetwinsize(std::io::stdout()).map_or(LINES, |size| usize::from(size.ws_row).max(10))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::status::tests::status;

    fn target(name: &str, phase: &str, phase_ms: u64) -> TargetStatus {
        TargetStatus {
            name: name.to_owned(),
            sessions: 1,
            phase: phase.to_owned(),
            phase_ms: Some(phase_ms),
            loader_ms: None,
            gap_ms: None,
            system_ms: None,
            boot_ms: None,
            first_login_ms: None,
            resets: 0,
            reset_ms: None,
        }
    }

    #[test]
    fn who_boots_is_shown_first_and_a_small_screen_says_what_it_hides() {
        let (before, mut now) = (status(1, 0), status(1_001, 10));
        now.targets =
            vec![target("gone", "offline", 1), target("up", "settled", 9), target("boots", "loader", 5)];
        let text = page(&before, &now, usize::MAX);
        let at = |name: &str| text.find(name).unwrap();
        assert!(at("boots") < at("up ") && at("up ") < at("gone"), "{text}");
        let lines = text.lines().count();
        let small = page(&before, &now, lines - 1);
        assert!(small.lines().count() < lines && small.contains("and 2 more: goldrush status"), "{small}");
    }

    #[test]
    fn a_page_is_drawn_over_the_one_before() {
        assert_eq!(over("a\nb\n"), "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J");
    }
}
