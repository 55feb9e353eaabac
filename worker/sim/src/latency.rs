//! What latency costs a training run: the share of their time that peers compute, with the real conductor, peers, trainers and ledger in virtual time.
//! Nothing else is slow: no bandwidth is limited, nobody comes or goes.

use dunlin_protocol::training::wiring::BACKWARD_ROWS;

use crate::training::numbers::Shape;
use crate::training::{Kinds, Scenario, Script, run};

/// Updates that are measured, behind the first.
const STEPS: usize = 6;

/// A pipeline whose peers all need the same time.
#[derive(Clone, Copy, Debug)]
pub struct Pipeline {
    /// Stages.
    pub stages: u32,
    /// Peers of each stage.
    pub peers: u32,
    /// Microbatches of a step.
    pub microbatches: u32,
    /// Time of a forward pass of a microbatch at one stage; backward takes two and a half times as long.
    pub forward_ms: u64,
    /// Averages are formed behind the microbatches of the next step.
    pub delayed_updates: bool,
}

impl Pipeline {
    /// The share of their time that peers compute when every message takes half of `round_trip_ms`. The pauses between steps are part of it: the
    /// pipeline is filled and emptied, averages are formed, the step is decided.
    #[must_use]
    pub fn busy(&self, round_trip_ms: u64) -> Option<f64> {
        let whole_ms = self.forward_ms as f64 * (1.0 + BACKWARD_ROWS);
        let ideal_ms = whole_ms * f64::from(self.microbatches) / f64::from(self.peers);
        let end_ms = 20_000 + ((ideal_ms * 4.0) as u64 + 40 * round_trip_ms) * (STEPS as u64 + 2);
        let outcome = run(&Scenario {
            shape: Shape {
                stages: self.stages,
                tied: false,
                microbatches: self.microbatches,
                validation_batches: 1,
                clip: 25.0,
                seed: 1,
                delayed_updates: self.delayed_updates,
            },
            peers: 0,
            trainers: self.peers,
            steps: STEPS as u64 + 100,
            checkpoint_every: 0,
            validate_every: 0,
            faults: 0,
            kinds: Kinds::All,
            forward_ms_max: 60_000,
            cooldown_ms: 600_000,
            script: Some(Script {
                lives: vec![(0, None); (self.stages * self.peers) as usize],
                notice_ms: 0,
                fetch_ms: 1000,
                forward_ms: self.forward_ms,
                average_ms: 0,
                one_way_ms: Some(round_trip_ms / 2),
                end_ms,
            }),
            ..Scenario::small(1)
        });
        let step_ms = match outcome.decided_ms.as_slice() {
            [first, rest @ ..] => (rest.get(STEPS - 1)? - first) as f64 / STEPS as f64,
            [] => return None,
        };
        outcome.violations.is_empty().then_some(ideal_ms / step_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::Pipeline;

    fn busy(microbatches: u32, round_trip_ms: u64, delayed_updates: bool) -> f64 {
        let pipeline = Pipeline { stages: 4, peers: 1, microbatches, forward_ms: 100, delayed_updates };
        pipeline.busy(round_trip_ms).expect("the run is sound")
    }

    #[test]
    fn with_delayed_updates_there_are_no_pauses_between_steps() {
        let (usual, delayed) = (busy(8, 100, false), busy(8, 100, true));
        assert!(usual < 0.7 && delayed > 0.9 && delayed <= 1.0, "{usual} {delayed}");
    }

    #[test]
    fn more_microbatches_hide_more_of_the_latency() {
        let busy = |microbatches, round_trip_ms| busy(microbatches, round_trip_ms, false);
        assert!(busy(32, 0) > busy(32, 100) && busy(32, 100) > busy(32, 400));
        assert!(busy(32, 100) > busy(8, 100));
        // Nobody computes more than all the time, and without latency few pauses are left.
        assert!((0.75..=1.0).contains(&busy(32, 0)), "{}", busy(32, 0));
    }
}
