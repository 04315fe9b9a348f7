//! Who looks on while a long command works: hears how far it is, and is asked before each change to a file.
//!
//! Knows nothing of the work. In the program it is the progress bar; in tests it also stops the work before any one of
//! its changes, as a kill would.

use super::error::Error;
use super::progress::Progress;

pub(super) trait Watch {
    /// `at` bytes are done.
    fn at(&self, at: u64);

    /// A file or a name is about to change. An error ends the command here, and nothing may be changed any more.
    fn before_change(&self) -> Result<(), Error>;
}

impl Watch for Progress {
    fn at(&self, at: u64) {
        self.set(at);
    }

    fn before_change(&self) -> Result<(), Error> {
        Ok(())
    }
}
