//! What a check of an image says: findings, each about one place in a file.
//!
//! Knows how bad a finding is and how many are kept. Does not know structures: each format has its own.

/// Findings kept; a file with more is beyond listing.
const FINDINGS_MAX: usize = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Allowed, and worth knowing.
    Info,
    /// The image opens, and readers may differ about its content, or it must be repaired before it is written.
    Warning,
    /// The image does not open.
    Error,
}

impl Severity {
    /// One word, as people and programs read it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One sentence about one place. `S` is a structure of the format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding<S> {
    pub severity: Severity,
    pub structure: S,
    /// In the file, in bytes.
    pub offset: u64,
    pub sentence: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Findings<S>(Vec<Finding<S>>);

impl<S> Default for Findings<S> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<S> Findings<S> {
    /// No warning and no error.
    pub fn are_clean(&self) -> bool {
        self.0.iter().all(|finding| finding.severity == Severity::Info)
    }

    /// Beyond the first thousand they are not kept.
    pub fn add(&mut self, severity: Severity, structure: S, offset: u64, sentence: String) {
        if self.0.len() < FINDINGS_MAX {
            self.0.push(Finding { severity, structure, offset, sentence });
        }
    }

    pub fn into_vec(self) -> Vec<Finding<S>> {
        self.0
    }
}

impl<S> core::ops::Deref for Findings<S> {
    type Target = [Finding<S>];

    fn deref(&self) -> &[Finding<S>] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_worth_knowing_leaves_a_file_clean_and_a_flood_is_cut() {
        let mut findings = Findings::default();
        findings.add(Severity::Info, 7, 512, "odd".to_owned());
        assert!(findings.are_clean() && findings[0].structure == 7);
        for offset in 0..2000 {
            findings.add(Severity::Warning, 8, offset, "bad".to_owned());
        }
        assert!(!findings.are_clean());
        assert_eq!(findings.into_vec().len(), FINDINGS_MAX);
    }
}
