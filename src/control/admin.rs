//! The control socket of a running server: what may be asked of it, and what the answers look like.
//!
//! Knows requests, answers and their one-line form. Does not know how a socket is taken (`socket`), who is served when
//! (`service`), who knows the answers (`desk`) or how a server is found (`client`).
//!
//! One connection is one question: a line of JSON, a line of JSON back, then the server closes.
//!
//! ```text
//! {"version":1,"request":"about"}
//! {"version":1,"ok":{"program":"goldrush 0.1.0","pid":4711,...}}
//! {"version":1,"error":"the request is not understood: unknown variant `abuot`, ..."}
//! ```
//!
//! A request with fields is an object of one member, `{"version":1,"request":{"status":{"targets":"seen"}}}`. To add one:
//! a variant of [`Request`], an arm of `desk::Desk::answer`, and a type for the answer.

pub(super) mod client;
pub(super) mod desk;
pub(super) mod service;
pub(super) mod socket;
pub(super) mod status;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use status::StatusAsked;

/// Of requests and answers. Members may be added to answers; whatever else changes is another version.
const VERSION: u32 = 1;
/// The longest request, its line end included.
const REQUEST_BYTES_MAX: usize = 64 << 10;
/// The longest answer: every target and session a server may have.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// What may be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Request {
    /// Who answers here: [`status::About`].
    About,
    /// What it is doing: [`status::Status`].
    Status(StatusAsked),
    /// Read the configuration again: [`Reloaded`], or why nothing has changed, a line for each reason.
    Reload,
    /// Make a disk larger, to so many bytes: [`Resized`], or why not.
    Resize { target: String, lun: u16, size: u64 },
    /// Empty the overlays of a target: [`Emptied`], or why not.
    Reset { target: String, force: bool },
}

/// What a reload has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reloaded {
    /// One line.
    pub(super) summary: String,
}

/// What became of a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Resized {
    pub(super) before: u64,
    pub(super) now: u64,
}

/// What a reset has emptied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Emptied {
    pub(super) luns: usize,
}

/// A request as it travels.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked<R> {
    version: u32,
    request: R,
}

/// An answer as it travels: one of the two.
#[derive(Serialize, Deserialize)]
struct Answered {
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ok: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// A sentence for the one who asked.
type Answer = Result<Value, String>;

/// Reads a request line; the error is the answer to it.
fn parse_request(line: &[u8]) -> Result<Request, String> {
    let wrong = |error: serde_json::Error| format!("the request is not understood: {error}");
    // The version decides what the rest means.
    let asked: Asked<Value> = serde_json::from_slice(line).map_err(wrong)?;
    if asked.version != VERSION {
        return Err(format!(
            "the request has version {}, this server ({}) answers version {VERSION}",
            asked.version,
            program()
        ));
    }
    serde_json::from_value(asked.request).map_err(wrong)
}

/// The line of a request.
fn request_line(request: &Request) -> Vec<u8> {
    line(&Asked { version: VERSION, request })
}

/// The line of an answer.
fn answer_line(answer: Answer) -> Vec<u8> {
    let (ok, error) = match answer {
        Ok(value) => (Some(value), None),
        Err(sentence) => (None, Some(sentence)),
    };
    line(&Answered { version: VERSION, ok, error })
}

fn line(value: &impl Serialize) -> Vec<u8> {
    // Strings, numbers and lists only: nothing that could fail.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Reads the line of an answer, as the client does.
fn parse_answer(line: &[u8]) -> Answer {
    let strange =
        |what: String| format!("its answer is not understood: {what}; is it another version of goldrush?");
    let answered: Answered = serde_json::from_slice(line).map_err(|error| strange(error.to_string()))?;
    match answered {
        Answered { error: Some(sentence), .. } => Err(sentence),
        Answered { version, .. } if version != VERSION => Err(strange(format!("it has version {version}"))),
        Answered { ok: Some(value), .. } => Ok(value),
        Answered { .. } => Err(strange("it says neither ok nor error".to_owned())),
    }
}

fn program() -> String {
    concat!("goldrush ", env!("CARGO_PKG_VERSION")).to_owned()
}

/// Any bytes as a request and as an answer: understood or refused with a sentence.
pub fn fuzz_control(bytes: &[u8]) {
    if let Ok(request) = parse_request(bytes) {
        assert_eq!(parse_request(&request_line(&request)), Ok(request));
    }
    if let Err(sentence) = parse_answer(bytes) {
        assert_eq!(parse_answer(&answer_line(Err(sentence.clone()))), Err(sentence));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_line_and_is_read_back() {
        let asked = StatusAsked { targets: status::TargetList::Seen, sessions: true };
        for request in [Request::About, Request::Status(asked), Request::Reload] {
            let line = request_line(&request);
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            assert_eq!(parse_request(&line), Ok(request));
        }
    }

    #[test]
    fn what_is_no_request_is_told_why() {
        for (line, why) in [
            ("", "EOF"),
            ("{\"version\":1}", "request"),
            ("{\"version\":2,\"request\":{\"new\":[1]}}", "version 2"),
            ("{\"version\":1,\"request\":\"abuot\"}", "abuot"),
            ("{\"version\":1,\"request\":\"about\",\"more\":0}", "more"),
            ("\u{0}\u{1}garbage", "expected value"),
        ] {
            let error = parse_request(line.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{line}: {error}");
        }
        let deep = format!("{{\"version\":1,\"request\":{}", "[".repeat(REQUEST_BYTES_MAX));
        assert!(parse_request(deep.as_bytes()).unwrap_err().contains("recursion"));
    }

    #[test]
    fn an_answer_is_a_value_or_a_sentence() {
        let value = serde_json::json!({"a": 1});
        assert_eq!(parse_answer(&answer_line(Ok(value.clone()))), Ok(value));
        assert_eq!(parse_answer(&answer_line(Err("no".to_owned()))), Err("no".to_owned()));
        assert!(parse_answer(b"{\"version\":1}\n").unwrap_err().contains("neither"));
        assert!(parse_answer(b"{\"version\":7,\"ok\":1}\n").unwrap_err().contains("version 7"));
    }

    #[test]
    fn fuzz_corpus_does_no_harm() {
        let mut corpus = vec![
            request_line(&Request::Status(StatusAsked::default())),
            answer_line(Err("no".to_owned())),
            Vec::new(),
        ];
        for at in 0..corpus[0].len() {
            let mut damaged = corpus[0].clone();
            damaged[at] ^= 0x11;
            corpus.push(damaged);
            corpus.push(corpus[0][..at].to_vec());
        }
        corpus.iter().for_each(|bytes| fuzz_control(bytes));
    }
}
