//! One seed with the real conductor, peers, trainers and ledger, microbatch by microbatch.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_protocol::training::wiring::BACKWARD_ROWS;

use super::options::Options;
use super::report::Report;
use super::trace::Life;
use crate::training::numbers::Shape;
use crate::training::{Kinds, Outcome, Scenario, Script, run as simulate};

/// Time of a forward pass of a microbatch at one stage.
const FORWARD_MS: u64 = 200;
/// The same, forward and back.
const WHOLE_MS: f64 = FORWARD_MS as f64 * (1.0 + BACKWARD_ROWS);
/// Updates without disturbance over which the speed of a swarm is measured.
const STEPS: usize = 8;

/// From when on a peer is there, and until when.
type Span = (u64, Option<u64>);

/// Everything that all seeds share.
pub(super) struct Replay<'a> {
    options: &'a Options,
    lives: Vec<Span>,
    end_ms: u64,
    microbatches: u32,
    /// Microbatches in a millisecond of undisturbed swarms, by their number of peers.
    undisturbed: BTreeMap<usize, f64>,
}

impl<'a> Replay<'a> {
    /// Measures what undisturbed swarms do.
    pub(super) fn new(options: &'a Options, lives: &[Life]) -> Self {
        let start_ms = lives.first().map_or(0, |l| l.from_ms);
        let lives: Vec<Span> =
            lives.iter().map(|l| (l.from_ms - start_ms, l.until_ms.map(|u| u - start_ms))).collect();
        let end_ms = lives.iter().flat_map(|l| [Some(l.0), l.1]).flatten().max().unwrap_or(0);
        let mut replay = Self { options, lives, end_ms, microbatches: 1, undisturbed: BTreeMap::new() };
        let spans = replay.spans(|l| l.0);
        let peer_ms: u64 = spans.iter().map(|(peers, ms)| *peers as u64 * ms).sum();
        let pipelines = peer_ms as f64 / end_ms.max(1) as f64 / options.stages as f64;
        let per_step = options.step_ms as f64 * pipelines / WHOLE_MS;
        replay.microbatches = (per_step.round() as u32).max(1);
        let useful = replay.spans(|l| replay.useful_ms(l));
        let all = spans.iter().chain(&useful).map(|(peers, _)| *peers);
        let counts: BTreeSet<usize> = all.flat_map(|n| [n, n - n % options.stages]).collect();
        for peers in counts.into_iter().filter(|peers| *peers >= options.stages) {
            let rate = replay.undisturbed_rate(peers);
            replay.undisturbed.insert(peers, rate);
        }
        replay
    }

    /// How many peers there are that are useful from `from` on, and for how long.
    fn spans(&self, from: impl Fn(&Span) -> u64) -> Vec<(usize, u64)> {
        let mut times: Vec<u64> = vec![0, self.end_ms];
        times.extend(self.lives.iter().flat_map(|l| [Some(from(l)), l.1]).flatten());
        times.retain(|t| *t <= self.end_ms);
        times.sort_unstable();
        let spans = times.windows(2).filter(|pair| pair[0] < pair[1]).map(|pair| {
            let there = |l: &&Span| from(l) <= pair[0] && l.1.is_none_or(|u| pair[0] < u);
            (self.lives.iter().filter(there).count(), pair[1] - pair[0])
        });
        spans.collect()
    }

    fn scenario(&self, seed: u64, lives: Vec<Span>, end_ms: u64) -> Scenario {
        // No step is faster than if all that ever come were there at once.
        let pipelines = lives.len() as f64 / self.options.stages as f64;
        let fastest_ms = f64::from(self.microbatches) * WHOLE_MS / pipelines.max(1.0);
        Scenario {
            shape: Shape {
                stages: self.options.stages as u32,
                tied: false,
                microbatches: self.microbatches,
                validation_batches: 1,
                clip: 25.0,
                seed,
                delayed_updates: false,
            },
            peers: 0,
            trainers: 2,
            steps: (end_ms as f64 / fastest_ms) as u64 + 2,
            checkpoint_every: 10,
            validate_every: 0,
            faults: 0,
            kinds: Kinds::All,
            forward_ms_max: 60_000,
            cooldown_ms: 60_000,
            script: Some(Script {
                lives,
                notice_ms: self.options.notice_ms,
                fetch_ms: self.options.download_ms,
                forward_ms: FORWARD_MS,
                average_ms: 0,
                one_way_ms: None,
                end_ms,
            }),
            ..Scenario::small(seed)
        }
    }

    /// Microbatches in a millisecond of a swarm that nobody joins or leaves.
    fn undisturbed_rate(&self, peers: usize) -> f64 {
        let lives = vec![(0, None); peers];
        let pipelines = (peers / self.options.stages) as f64;
        // Three times as long as if nobody waited for anybody.
        let step_ms = 3.0 * f64::from(self.microbatches) * WHOLE_MS / pipelines;
        let end_ms = 10_000 + step_ms as u64 * (STEPS as u64 + 1);
        let outcome = simulate(&self.scenario(0, lives, end_ms));
        let decided = &outcome.decided_ms;
        match (decided.first(), decided.get(STEPS)) {
            (Some(first), Some(last)) => {
                STEPS as f64 * f64::from(self.microbatches) / (last - first).max(1) as f64
            }
            _ => 0.0,
        }
    }

    /// Microbatches of undisturbed swarms.
    fn undisturbed(&self, spans: &[(usize, u64)]) -> f64 {
        spans.iter().map(|(peers, ms)| self.undisturbed.get(peers).copied().unwrap_or(0.0) * *ms as f64).sum()
    }

    /// When a peer can first be of use.
    fn useful_ms(&self, life: &Span) -> u64 {
        if life.0 == 0 { 0 } else { life.0 + self.options.download_ms }
    }

    /// One seed.
    ///
    /// # Errors
    /// What does not hold in it.
    pub(super) fn run(&self, seed: u64) -> Result<Report, String> {
        let outcome: Outcome = simulate(&self.scenario(seed, self.lives.clone(), self.end_ms));
        if let Some(violation) = outcome.violations.first() {
            return Err(violation.clone());
        }
        let done = outcome.steps as f64 * f64::from(self.microbatches);
        let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        let spans = self.spans(|l| l.0);
        let complete: Vec<(usize, u64)> =
            spans.iter().map(|(n, ms)| (n - n % self.options.stages, *ms)).collect();
        let undisturbed = self.undisturbed(&spans);
        let reachable = self.undisturbed(&self.spans(|l| self.useful_ms(l)));
        let joins = self.lives.iter().filter(|l| l.0 > 0).count();
        Ok(Report {
            share_of_optimal: share(done, self.undisturbed(&complete)),
            share_of_undisturbed: share(done, undisturbed),
            share_reachable: share(reachable, undisturbed),
            redone: f64::from(outcome.redone) * WHOLE_MS / 1000.0,
            downtime_s: outcome.downtime_ms as f64 / 1000.0,
            states_lost: f64::from(outcome.went_back),
            joins: joins as f64,
            switches: f64::from(outcome.moves),
            ..Report::default()
        })
    }
}
