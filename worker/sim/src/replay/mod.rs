//! A training swarm on a recorded spot trace, in virtual time: which share of what the machines could have done is done.
//!
//! Optimal is what `floor(n / stages)` complete pipelines would do at every moment, joiners counted from their first millisecond. There are
//! two models:
//!
//! * `protocol`: the conductor, peers, trainers and ledger of `dunlin_protocol::training`, microbatch by microbatch, in the world of
//!   [`crate::training`], which checks that every key counts once and all weights are right. What pipelines do is measured with undisturbed
//!   swarms of the same model, so filling and draining them is in both. A peer has one state; moves are cold. Fetched states are followed
//!   for longer than processes keep updates. A return to a checkpoint costs what it costs.
//! * `capacity`: a fluid, for what the planner can do beyond that. Peers are equal, each does one unit of work per second for the stage it serves,
//!   and samples flow at the rate of the stage with fewest peers. Not simulated: microbatches, queues, averaging, filling and draining.
//!
//! What a peer can do in the fluid, and what the system does for it:
//!
//! * A joiner is of no use until it has fetched a stage's state, which takes [`Options::download_ms`]. Those that are there from the start have
//!   theirs. [`Report::share_reachable`] is what nobody can exceed under these two: every peer useful from its fetch to its end, always in the right stage.
//! * A peer serves while it fetches another stage's state behind that, in the same time; it has memory for [`Options::room`] states beside its own.
//!   A fetched state is kept current by the broadcast half of that stage's averaging: the peer receives every step's averaged gradients and
//!   applies them, as a joiner does that catches up. (`room` 0: nothing of this; moves are cold.)
//! * With the state at hand a peer changes its stage at the edge of a step, every [`Options::step_ms`], and keeps the old state current instead.
//!   Long steps cost little with a notice and much without: the switch and the redoing are both within one step.
//! * A notice comes [`Options::notice_ms`] before a loss. The peer serves on, and stops [`HANDOVER_MS`] before its end to hand its gradient sums to a mate, so that
//!   nothing is redone. Without notice what it did since the last edge is redone, and holds up the whole pipeline for as long as the stage with most to redo.
//! * A fetch goes on although a mate that sends is lost: others send. [`Report::states_lost`] counts when nobody has a stage's state any more, which
//!   in truth costs a return to the last checkpoint; the fluid does not charge for that.

mod capacity;
mod options;
mod protocol;
mod report;
pub mod trace;

use thiserror::Error;

pub use options::{HANDOVER_MS, Options, Policy};
pub use report::Report;
pub use trace::{Event, TraceError, parse};

/// Why nothing was replayed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ReplayError {
    /// The trace is none.
    #[error("the trace cannot be read")]
    Trace(#[from] TraceError),
    /// The protocol is wrong.
    #[error("seed {seed}: {what}")]
    Broken {
        /// Of the run.
        seed: u64,
        /// What does not hold.
        what: String,
    },
    /// Options that mean nothing.
    #[error("{0} has to be at least 1")]
    Zero(&'static str),
}

/// Replays the trace in `csv`.
///
/// # Errors
///
/// If it is no trace, or an option is 0 that may not be.
pub fn run(options: &Options, csv: &str) -> Result<Report, ReplayError> {
    run_telling(options, csv, &mut |_| {})
}

/// The same; `told` hears before each seed how many are done.
///
/// # Errors
///
/// As [`run`].
pub fn run_telling(options: &Options, csv: &str, told: &mut dyn FnMut(u64)) -> Result<Report, ReplayError> {
    let positive =
        [("stages", options.stages as u64), ("step_ms", options.step_ms), ("seeds", options.seeds)];
    if let Some((name, _)) = positive.into_iter().find(|(_, value)| *value == 0) {
        return Err(ReplayError::Zero(name));
    }
    let lives = trace::lives(&parse(csv)?);
    let mut mean = Report { share_of_optimal_min: f64::INFINITY, ..Report::default() };
    let protocol = (!options.fluid).then(|| protocol::Replay::new(options, &lives));
    for seed in 0..options.seeds {
        told(seed);
        let one = match &protocol {
            None => capacity::run(options, &lives, seed),
            Some(replay) => replay.run(seed).map_err(|what| ReplayError::Broken { seed, what })?,
        };
        mean.share_of_optimal += one.share_of_optimal;
        mean.share_of_optimal_min = mean.share_of_optimal_min.min(one.share_of_optimal);
        mean.share_of_undisturbed += one.share_of_undisturbed;
        mean.share_reachable += one.share_reachable;
        mean.redone += one.redone;
        mean.downtime_s += one.downtime_s;
        mean.states_lost += one.states_lost;
        mean.joins += one.joins;
        mean.switches += one.switches;
        mean.fetches += one.fetches;
    }
    let n = options.seeds as f64;
    for sum in [
        &mut mean.share_of_optimal,
        &mut mean.share_of_undisturbed,
        &mut mean.share_reachable,
        &mut mean.redone,
        &mut mean.downtime_s,
        &mut mean.states_lost,
        &mut mean.joins,
        &mut mean.switches,
        &mut mean.fetches,
    ] {
        *sum /= n;
    }
    Ok(mean)
}
