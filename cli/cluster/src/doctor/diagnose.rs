//! All that is wrong, the cause of the others first.

use super::finding::{Finding, Severity};
use super::{containers, manifest, operator, reach, refused, unplaced};
use crate::evidence::ClusterEvidence;

/// Most findings that are told.
pub const FINDINGS_MAX: usize = 32;

/// What is wrong with a swarm: problems first, then warnings, then notes; of each, causes before what follows from them.
#[must_use]
pub fn diagnose(evidence: &ClusterEvidence) -> Vec<Finding> {
    let mut found = operator::rules(evidence);
    found.extend(manifest::names(evidence));
    let told = manifest::stalled(evidence);
    let of_pods: Vec<Finding> = [refused::rules, unplaced::rules, containers::rules, reach::rules]
        .iter()
        .flat_map(|rule| rule(evidence))
        .collect();
    // Of pods the rules say more than the operator, which tells of one.
    let is_told =
        manifest::is_about_pods(evidence) && of_pods.iter().any(|f| f.severity == Severity::Problem);
    found.extend(told.filter(|_| !is_told));
    found.extend(of_pods);
    if !found.iter().any(|f| f.severity == Severity::Problem) {
        found.extend(manifest::waiting(evidence));
    }
    found.extend(operator::schema(evidence));
    found.sort_by_key(|finding| finding.severity);
    found.dedup_by(|a, b| a.line == b.line);
    found.truncate(FINDINGS_MAX);
    found
}
