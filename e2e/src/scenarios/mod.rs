//! The promises of the product, one function each, run one after another on one cluster.
//!
//! Every scenario starts from a whole swarm (the runner heals the cluster in between) and compares exact token
//! sequences with an undisturbed run. Nothing waits a fixed time.

mod adapters;
mod another_model;
mod bench;
mod capacity;
mod clients;
mod control_plane;
mod edits;
mod examples;
mod gitops;
mod gpu;
mod loss;
mod manifests;
mod manners;
mod outage;
mod tool;
mod training;

pub use bench::{Bench, PEERS, PROMPT, Scenario, TOKENS, bench, heal};

/// All scenarios in the order they run.
#[must_use]
pub fn all() -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    scenarios.extend(loss::scenarios());
    scenarios.extend(outage::scenarios());
    scenarios.extend(clients::scenarios());
    scenarios.extend(capacity::scenarios());
    scenarios.extend(edits::scenarios());
    scenarios.extend(another_model::scenarios());
    scenarios.extend(manifests::scenarios());
    scenarios.extend(manners::scenarios());
    scenarios.extend(tool::scenarios());
    scenarios.extend(control_plane::scenarios());
    scenarios.extend(gitops::scenarios());
    scenarios.extend(training::scenarios());
    scenarios.extend(adapters::scenarios());
    scenarios.extend(gpu::scenarios());
    scenarios
}

/// Those that take long, in targets of their own.
#[must_use]
pub fn long() -> Vec<Scenario> {
    let mut scenarios = training::long();
    scenarios.extend(examples::long());
    scenarios.extend(gpu::long());
    scenarios
}
