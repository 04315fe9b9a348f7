//! What the metadata machines of both formats count alike: which commit takes what, and whether anything may still go on.
//!
//! Knows numbers and states. Does not know what a commit writes, in which order (`vhd::commit`, `vhdx::commit`), nor why
//! something failed.

use crate::plan::{BatchEnd, CommitSeq, WriteRefused};

/// What a block that was given its place, or another state, waits for before the file says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Its first data.
    Data,
    /// The next commit.
    Commit,
    /// The commit that runs.
    Committing,
}

/// The commits of an open image, one at a time, and what ends them for good.
#[derive(Clone, Copy, Debug, Default)]
pub struct Commits {
    /// Somebody waits for a commit of what is pending. Recorded writes alone can wait for company.
    pub wanted: bool,
    /// No further writes: what is pending is committed, and that is all.
    pub closing: bool,
    /// A metadata write or a flush has failed: the file is never changed again.
    pub failed: bool,
    finished: u64,
    running: bool,
    /// A batch was handed out and is not done.
    outstanding: bool,
    /// The last attempt found no space: the next write that needs some is told, then it is tried again.
    no_space: bool,
}

impl Commits {
    /// Those of an image that is emptied: the count goes on, and nothing that was pending matters any more.
    #[must_use]
    pub fn afresh(&self) -> Self {
        Self { finished: self.finished, ..Self::default() }
    }

    /// The last finished commit.
    pub fn finished(&self) -> CommitSeq {
        CommitSeq(self.finished)
    }

    /// The last commit whose flush was handed out: nothing that is written from now on goes with it.
    pub fn begun(&self) -> CommitSeq {
        CommitSeq(self.finished + u64::from(self.running))
    }

    /// The commit that takes what becomes pending now.
    pub fn next(&self) -> CommitSeq {
        CommitSeq(self.begun().0 + 1)
    }

    pub fn is_running(&self) -> bool {
        self.running
    }

    /// Asks for a commit of what is pending, if anything is: it is finished when [`Self::finished`] reaches the answer.
    pub fn request(&mut self, pending: bool) -> CommitSeq {
        if !pending {
            return self.begun();
        }
        self.wanted = true;
        self.next()
    }

    /// Something is pending, and somebody waits for it.
    pub fn is_due(&self, pending: bool) -> bool {
        pending && (self.wanted || self.closing)
    }

    /// What is pending goes with the commit that begins now. False when one runs already.
    #[must_use]
    pub fn begin(&mut self) -> bool {
        if self.running {
            return false;
        }
        self.running = true;
        self.wanted = false;
        true
    }

    /// The commit that runs has ended well. False when none runs.
    pub fn finish(&mut self) -> bool {
        let ran = core::mem::take(&mut self.running);
        if ran {
            self.finished += 1;
            self.no_space = false;
        }
        ran
    }

    /// No batch can be handed out: one is being run, or none ever will be.
    pub fn is_halted(&self) -> bool {
        self.failed || self.outstanding
    }

    pub fn batch_handed_out(&mut self) {
        self.outstanding = true;
    }

    /// False when none was being run.
    #[must_use]
    pub fn batch_ended(&mut self) -> bool {
        core::mem::take(&mut self.outstanding)
    }

    /// The batch found no space, and is run once more as it is.
    pub fn batch_again(&mut self) -> BatchEnd {
        self.found_no_space();
        self.outstanding = true;
        BatchEnd::Again
    }

    pub fn found_no_space(&mut self) {
        self.no_space = true;
    }

    pub fn found_space(&mut self) {
        self.no_space = false;
    }

    /// # Errors
    /// [`WriteRefused::NoSpace`] once after an attempt that found none.
    pub fn tell_no_space(&mut self) -> Result<(), WriteRefused> {
        if core::mem::take(&mut self.no_space) { Err(WriteRefused::NoSpace) } else { Ok(()) }
    }

    /// # Errors
    /// No write is taken any more.
    pub fn admit_write(&self) -> Result<(), WriteRefused> {
        match (self.failed, self.closing) {
            (true, _) => Err(WriteRefused::Failed),
            (false, true) => Err(WriteRefused::ReadOnly),
            (false, false) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_while_a_commit_runs_goes_with_the_next() {
        let mut commits = Commits::default();
        assert_eq!((commits.request(false), commits.next()), (CommitSeq(0), CommitSeq(1)));
        assert_eq!(commits.request(true), CommitSeq(1));
        assert!(commits.is_due(true) && !commits.is_due(false));
        assert!(commits.begin() && !commits.begin() && !commits.is_due(true));
        assert_eq!(
            (commits.finished(), commits.begun(), commits.next()),
            (CommitSeq(0), CommitSeq(1), CommitSeq(2))
        );
        // Nothing new is pending: whoever asks waits for the one that runs.
        assert_eq!(commits.request(false), CommitSeq(1));
        assert!(commits.finish() && !commits.finish());
        assert_eq!((commits.finished(), commits.begun()), (CommitSeq(1), CommitSeq(1)));
    }

    #[test]
    fn want_of_space_is_told_once_and_forgotten_after_a_commit() {
        let mut commits = Commits::default();
        commits.batch_handed_out();
        assert!(commits.is_halted() && commits.batch_ended() && !commits.batch_ended());
        assert_eq!(commits.batch_again(), BatchEnd::Again);
        assert!(commits.is_halted());
        assert_eq!(commits.tell_no_space(), Err(WriteRefused::NoSpace));
        assert_eq!(commits.tell_no_space(), Ok(()));
        commits.found_no_space();
        assert!(commits.begin() && commits.finish());
        assert_eq!(commits.tell_no_space(), Ok(()));
    }

    #[test]
    fn failure_comes_before_the_end() {
        let mut commits = Commits::default();
        assert_eq!(commits.admit_write(), Ok(()));
        commits.closing = true;
        assert_eq!(commits.admit_write(), Err(WriteRefused::ReadOnly));
        assert!(commits.is_due(true));
        commits.failed = true;
        assert_eq!(commits.admit_write(), Err(WriteRefused::Failed));
        assert!(commits.is_halted());
    }
}
