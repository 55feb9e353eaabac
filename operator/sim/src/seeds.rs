//! Seeds one after the other, and the story of one.

use dunlin_sim::seeds::Told;

use crate::scenario::Scenario;
use crate::world::run;

/// Runs a seed; `trace` keeps what happened.
#[must_use]
pub fn tell(seed: u64, trace: bool) -> Told {
    told(&Scenario { trace, ..Scenario::from_seed(seed) })
}

/// Runs a scenario.
#[must_use]
pub fn told(scenario: &Scenario) -> Told {
    let Scenario { peers, steady, shadows, gateways, plan, .. } = scenario;
    let steady = steady.map_or_else(String::new, |peers| format!(" and {peers} on steady nodes"));
    let outcome = run(scenario);
    Told {
        what: "swarm",
        command: "dunlin-operator-sim",
        seed: scenario.seed,
        scenario: format!(
            "{peers} peers{steady}, {shadows} shadows of each layer, {gateways} gateways, {} incidents: {plan:?}",
            plan.len()
        ),
        outcome: format!(
            "{} ({} incidents, {} pods made, epoch {}, {} sessions, {} went on elsewhere, settled after {} ms, over after {} ms)",
            outcome.violations.first().map_or("ok", String::as_str),
            outcome.incidents,
            outcome.pods,
            outcome.epoch,
            outcome.sessions,
            outcome.recovered,
            outcome.settled_ms,
            outcome.ended_ms,
        ),
        violations: outcome.violations,
        trace: outcome.trace,
    }
}

/// Runs seeds until one fails, which is told with its trace.
#[must_use]
pub fn first_failure(seeds: impl IntoIterator<Item = u64>) -> Option<Told> {
    let failing = |seed: &u64| !tell(*seed, false).violations.is_empty();
    seeds.into_iter().find(failing).map(|seed| tell(seed, true))
}
