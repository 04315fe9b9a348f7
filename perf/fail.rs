//! The one error type of `perf`: a sentence that says what failed, where, and what to do.
//!
//! Knows how to carry a sentence. Does not know any protocol.

use std::fmt;

/// A failure told in one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure(pub(crate) String);

pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

/// Builds a [`Failure`] from a format string.
macro_rules! failure {
    ($($part:tt)*) => { $crate::fail::Failure(format!($($part)*)) };
}
pub(crate) use failure;
