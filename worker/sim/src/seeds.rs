//! Seeds one after the other, and the story of one.

use crate::serving::{self, Scenario};
use crate::training::{self, Kinds};

/// Lines of a story that stand before its end.
const BEFORE: usize = 60;
/// Faults that a story begins with, at most.
const FAULTS: usize = 40;

/// What a seed is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A swarm that serves, with all kinds of faults.
    Serving,
    /// A swarm that trains, with all kinds of faults.
    Training,
    /// One whose peers leave with notice only.
    Notice,
    /// One whose peers compute or remember wrongly.
    Wrong,
}

/// A run of one seed.
#[derive(Clone, Debug)]
pub struct Told {
    /// What of, in a word.
    pub what: &'static str,
    /// What shows all of it, without the seed.
    pub command: &'static str,
    /// The seed.
    pub seed: u64,
    /// What was simulated, in a line.
    pub scenario: String,
    /// What came of it, in a line.
    pub outcome: String,
    /// What does not hold.
    pub violations: Vec<String>,
    /// What happened, if that was kept.
    pub trace: Vec<String>,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Serving, Self::Training, Self::Notice, Self::Wrong];

    /// What it is called on a command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Training => "training",
            Self::Notice => "notice",
            Self::Wrong => "wrong",
        }
    }

    fn command(self) -> &'static str {
        match self {
            Self::Serving => "dunlin-sim serving",
            Self::Training => "dunlin-sim training",
            Self::Notice => "dunlin-sim notice",
            Self::Wrong => "dunlin-sim wrong",
        }
    }

    /// Runs a seed; `trace` keeps what happened.
    #[must_use]
    pub fn run(self, seed: u64, trace: bool) -> Told {
        match self {
            Self::Serving => serve(seed, trace),
            Self::Training => train(self, seed, training::Scenario::from_seed(seed), trace),
            Self::Notice => {
                let scenario =
                    training::Scenario { kinds: Kinds::Notice, ..training::Scenario::from_seed(seed) };
                train(self, seed, scenario, trace)
            }
            Self::Wrong => train(self, seed, training::Scenario::wrong(seed), trace),
        }
    }

    /// Runs seeds until one fails, which is told with its trace.
    #[must_use]
    pub fn first_failure(self, seeds: impl IntoIterator<Item = u64>) -> Option<Told> {
        let failing = |seed: &u64| !self.run(*seed, false).violations.is_empty();
        seeds.into_iter().find(failing).map(|seed| self.run(seed, true))
    }
}

impl Told {
    /// What people read of it: what was simulated, the faults, what happened before the end, and what does not hold.
    #[must_use]
    pub fn story(&self) -> Vec<String> {
        let mut lines = vec![format!("{} seed {}: {}", self.what, self.seed, self.scenario)];
        let faults: Vec<&String> = self.trace.iter().filter(|line| line.contains("fault: ")).collect();
        if !faults.is_empty() {
            lines.push("the faults, from the last one back:".to_owned());
            lines.extend(faults.into_iter().rev().take(FAULTS).cloned());
        }
        let from = self.trace.len().saturating_sub(BEFORE);
        lines.push(format!("the last {} of {} lines:", self.trace.len() - from, self.trace.len()));
        lines.extend_from_slice(&self.trace[from..]);
        lines.push("what does not hold:".to_owned());
        lines.extend(self.violations.iter().map(|what| format!("  {what}")));
        lines.push(format!("all of it: {} {}", self.command, self.seed));
        lines
    }
}

fn serve(seed: u64, trace: bool) -> Told {
    let scenario = Scenario { trace, ..Scenario::from_seed(seed) };
    let what = format!(
        "{} peers, {} gateways, {} sessions, {} faults",
        scenario.peers, scenario.gateways, scenario.sessions, scenario.faults
    );
    let outcome = serving::run(&scenario);
    Told {
        what: Kind::Serving.name(),
        command: Kind::Serving.command(),
        seed,
        scenario: what,
        outcome: format!(
            "{} ({} faults, {} recoveries)",
            outcome.verdict(),
            outcome.faults,
            outcome.recovered()
        ),
        violations: outcome.violations,
        trace: outcome.trace,
    }
}

fn train(kind: Kind, seed: u64, scenario: training::Scenario, trace: bool) -> Told {
    let scenario = training::Scenario { trace, ..scenario };
    let what = format!(
        "{} stages, {} peers, {} trainers, {} microbatches, {} steps, {} faults{}",
        scenario.shape.stages,
        scenario.peers,
        scenario.trainers,
        scenario.shape.microbatches,
        scenario.steps,
        scenario.faults,
        if scenario.shape.delayed_updates { ", delayed updates" } else { "" }
    );
    let outcome = training::run(&scenario);
    Told {
        what: kind.name(),
        command: kind.command(),
        seed,
        scenario: what,
        outcome: format!(
            "{} ({:?}, {} commits, {} redone, {} moves ({} with sums), {} times back, {} deliveries, {} lost, {} ms, {} ms after the last fault)",
            outcome.verdict(),
            outcome.faults,
            outcome.commits,
            outcome.redone,
            outcome.moves,
            outcome.handed_over,
            outcome.went_back,
            outcome.deliveries,
            outcome.lost,
            outcome.ms,
            outcome.settled_ms
        ),
        violations: outcome.violations,
        trace: outcome.trace,
    }
}

#[cfg(test)]
mod tests {
    use super::{BEFORE, FAULTS, Kind};

    #[test]
    fn a_story_is_short_and_ends_with_what_does_not_hold() {
        assert!(Kind::Training.first_failure(0..3).is_none());
        let mut told = Kind::Training.run(17, true);
        assert!(told.violations.is_empty() && told.trace.len() > BEFORE + FAULTS, "{}", told.outcome);
        told.violations = vec!["a weight is wrong".to_owned()];
        let story = told.story();
        assert!(story[0].starts_with("training seed 17: "), "{}", story[0]);
        assert!(story.len() <= BEFORE + FAULTS + 6, "{}", story.len());
        let end = &story[story.len() - 3..];
        assert_eq!(end, ["what does not hold:", "  a weight is wrong", "all of it: dunlin-sim training 17"]);
        let last = told.trace.last().unwrap();
        assert!(story.contains(last));
    }
}
