//! One thing that is wrong.

use serde::Serialize;

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Severity {
    /// Somebody must mend it.
    Problem,
    /// The swarm serves or trains in spite of it.
    Warning,
    /// It passes by itself.
    Note,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What is wrong, in one line.
    pub line: String,
    /// What to do; empty when nothing is to be done.
    pub remedy: String,
    /// What shows it.
    pub evidence: Vec<String>,
}

impl Finding {
    /// A finding without evidence.
    #[must_use]
    pub fn new(severity: Severity, line: impl Into<String>, remedy: impl Into<String>) -> Self {
        // Messages of Kubernetes may have several lines.
        let line: String = line.into().split_whitespace().collect::<Vec<_>>().join(" ");
        Self { severity, line, remedy: remedy.into(), evidence: Vec::new() }
    }

    /// The same with what shows it.
    #[must_use]
    pub fn shown_by(mut self, evidence: impl IntoIterator<Item = String>) -> Self {
        self.evidence.extend(evidence);
        self
    }
}
