//! The findings for people.

use dunlin_terminal::print::{BAD, FAINT, GOOD, WARN, painted};
use serde::Serialize;

use super::finding::{Finding, Severity};
use crate::evidence::ClusterEvidence;

/// Most lines of evidence of one finding.
const EVIDENCE_MAX: usize = 8;

/// What the doctor says about one swarm.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DoctorReport {
    /// `inferenceswarm/smollm2`.
    pub swarm: String,
    /// Its namespace.
    pub namespace: String,
    /// It is Ready.
    pub ready: bool,
    /// Nothing needs mending.
    pub well: bool,
    /// How it is and why, in one line.
    pub headline: String,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// What could not be read, and why.
    pub unread: Vec<String>,
}

/// What is said about a swarm with these findings.
#[must_use]
pub fn report(evidence: &ClusterEvidence, findings: Vec<Finding>) -> DoctorReport {
    let swarm = &evidence.swarm;
    let ready = swarm.is("Ready");
    let first = findings.first();
    let problem = first.filter(|f| f.severity == Severity::Problem);
    let said = |kind: &str| swarm.condition(kind).map_or(String::new(), |c| format!(": {}", c.message));
    let who = format!("{} in {}", swarm.id, swarm.namespace);
    let headline = match (ready, problem, first) {
        (true, Some(problem), _) => format!("{who} is Ready, but {}", problem.line),
        (true, None, Some(first)) if first.severity == Severity::Warning => {
            format!("{who} is Ready; {}", first.line)
        }
        (true, None, _) => format!("{who} is Ready{}", said("Ready")),
        (false, _, Some(first)) => format!("{who} is not Ready: {}", first.line),
        (false, _, None) => format!("{who} is not Ready{}", said("Ready")),
    };
    DoctorReport {
        swarm: swarm.id.clone(),
        namespace: swarm.namespace.clone(),
        ready,
        well: ready && problem.is_none(),
        headline,
        findings,
        unread: evidence.unread.clone(),
    }
}

impl DoctorReport {
    /// The headline, then each finding with what shows it and what to do.
    #[must_use]
    pub fn text(&self) -> String {
        let colour = match self.findings.first().map(|f| f.severity) {
            _ if !self.ready => BAD,
            Some(Severity::Problem) => BAD,
            Some(Severity::Warning) => WARN,
            _ => GOOD,
        };
        let mut lines = vec![painted(colour, &self.headline)];
        for finding in &self.findings {
            let (word, colour) = match finding.severity {
                Severity::Problem => ("problem", BAD),
                Severity::Warning => ("warning", WARN),
                Severity::Note => ("note", FAINT),
            };
            lines.push(String::new());
            lines.push(format!("{}: {}", painted(colour, word), finding.line));
            lines.extend(
                finding
                    .evidence
                    .iter()
                    .take(EVIDENCE_MAX)
                    .map(|shown| painted(FAINT, &format!("    {shown}"))),
            );
            if finding.evidence.len() > EVIDENCE_MAX {
                let more = format!("    and {} more", finding.evidence.len() - EVIDENCE_MAX);
                lines.push(painted(FAINT, &more));
            }
            if !finding.remedy.is_empty() {
                lines.push(format!("  → {}", finding.remedy));
            }
        }
        if !self.unread.is_empty() {
            lines.push(String::new());
            lines.push("not looked at:".to_owned());
            lines.extend(self.unread.iter().map(|why| format!("    {why}")));
        }
        lines.join("\n")
    }
}
