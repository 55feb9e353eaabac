//! A swarm whose preemptible nodes come and go as in a recorded trace.

use dunlin_sim::replay::TraceError;
use dunlin_sim::replay::trace::{Verb, parse};

use crate::scenario::Scenario;

/// `peers` peers on the nodes of the trace in `csv`, which are told `notice_ms` before they go; 0: never.
///
/// # Errors
/// If it is no trace.
pub fn scenario(csv: &str, peers: u32, notice_ms: u64, seed: u64) -> Result<Scenario, TraceError> {
    let events = parse(csv)?;
    let start_ms = events.first().map_or(0, |event| event.at_ms);
    let nodes = events.into_iter().map(|event| (event.at_ms - start_ms, event.node, event.verb == Verb::Add));
    let nodes = Some(nodes.collect());
    Ok(Scenario { peers, nodes, notice_ms, free_nodes: 0, ..Scenario::quiet(seed) })
}
