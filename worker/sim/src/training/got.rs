//! What a peer has got of a stage.
//!
//! A state has [`CHUNKS`] chunks of a word each, so that one that is put together of two is noticed.

use std::collections::BTreeMap;
use std::ops::Range;

use dunlin_protocol::training::{ShardId, Step};

use super::numbers::{State, Weights};

/// Of a state.
pub(super) const CHUNKS: usize = 4;

/// What is got, until the engine takes it.
#[derive(Clone)]
pub(super) enum Got {
    /// First values or a checkpoint.
    Read(Step, State),
    Part(Part),
    Update(Update),
}

/// Chunks of a state.
#[derive(Clone)]
pub(super) struct Part {
    pub(super) step: Step,
    /// What its giver says that the state is.
    pub(super) says: State,
    pub(super) range: Range<usize>,
    pub(super) words: Vec<u64>,
}

impl Part {
    /// What a peer has there.
    pub(super) fn of(step: Step, state: State, chunks: &Range<u64>) -> Self {
        let range = chunks.start as usize..chunks.end as usize;
        let words = words(&state).get(range.clone()).unwrap_or_default().to_vec();
        Self { step, says: state, range, words }
    }

    /// Is it what its giver says?
    pub(super) fn fits(&self) -> bool {
        words(&self.says).get(self.range.clone()) == Some(&self.words)
    }
}

/// What led from `step` to the next.
#[derive(Clone)]
pub(super) struct Update {
    pub(super) step: Step,
    pub(super) averages: BTreeMap<ShardId, i64>,
    pub(super) scale: f32,
}

/// A state of what was read, or of parts that have each chunk once, in order, as they are at one step.
pub(super) fn put_together(got: Vec<Got>) -> Option<(Step, State)> {
    let (mut all, mut steps) = (Vec::new(), Vec::new());
    for got in got {
        match got {
            Got::Read(step, state) => return Some((step, state)),
            Got::Part(part) if part.range.start == all.len() => {
                steps.push(part.step);
                all.extend(part.words);
            }
            Got::Part(_) | Got::Update(_) => return None,
        }
    }
    let step = *steps.first()?;
    let [own, shared, own_before, shared_before] = all[..] else { return None };
    let state =
        State { now: Weights { own, shared }, before: Weights { own: own_before, shared: shared_before } };
    steps.iter().all(|other| *other == step).then_some((step, state))
}

fn words(state: &State) -> [u64; CHUNKS] {
    [state.now.own, state.now.shared, state.before.own, state.before.shared]
}
