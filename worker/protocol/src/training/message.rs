//! What conductor, peers and trainers say to each other. Tensors travel elsewhere.

use std::collections::BTreeMap;

use dunlin_planner::PeerName;
use serde::{Deserialize, Serialize};

use super::mates::Mates;

/// Number of optimizer updates applied so far; the step that is under way.
pub type Step = u64;
/// Index of a microbatch within its step. From [`super::ConductorConfig::microbatches`] on they are for validation.
pub type Microbatch = u32;
/// Index of a stage in the pipeline.
pub type StageId = u32;
/// A set of tensors that one group of peers averages: the stage of that index; one past the last stage, the embedding that both ends hold.
pub type ShardId = u32;

/// Somebody to talk to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mate {
    /// Its name; one life of a process.
    pub name: PeerName,
    /// Where it listens.
    pub addr: String,
    /// The machine it runs on, which takes all that it runs with it; empty when nobody said.
    #[serde(default)]
    pub host: String,
}

/// The first words of every stream to the conductor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Who it is and where others reach it.
    pub me: Mate,
    /// What it does.
    pub role: Role,
}

/// What a process does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Role {
    /// Computes a stage.
    Peer {
        /// What it has; `None` for a newcomer.
        held: Option<Held>,
    },
    /// Drives microbatches.
    Trainer {
        /// Digest of the tokens that it draws them from.
        data: String,
    },
}

/// What a peer has of its stage: enough for a conductor without memory to go on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// Which stage.
    pub stage: StageId,
    /// Updates applied.
    pub step: Step,
    /// What its gradient sums contain, of this step and those that it has begun behind it.
    pub sums: Vec<HeldSums>,
    /// Averages of this step that it holds, with the sums of squares per tensor.
    pub averaged: BTreeMap<ShardId, Vec<f64>>,
    /// The scale of the last update.
    pub scale: Option<f32>,
}

/// The gradient sums of one step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HeldSums {
    /// What they contain.
    pub done: Vec<Contribution>,
    /// What is being added to them, and cannot be stopped.
    pub adding: Vec<Microbatch>,
}

impl HeldSums {
    /// Is there nothing in them?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.done.is_empty() && self.adding.is_empty()
    }
}

impl Held {
    /// What was being added to the sums of a step is in them.
    pub fn add(&mut self, step: Step, contribution: Contribution) {
        let index = step.checked_sub(self.step).and_then(|ahead| usize::try_from(ahead).ok());
        if let Some(sums) = index.and_then(|index| self.sums.get_mut(index)) {
            sums.adding.retain(|m| *m != contribution.microbatch);
            sums.done.push(contribution);
        }
    }

    /// An update was made.
    pub fn applied(&mut self, step: Step, scale: f32) {
        let made = usize::try_from(step.saturating_sub(self.step)).unwrap_or(usize::MAX);
        self.sums.drain(..made.min(self.sums.len()));
        (self.step, self.scale) = (step, Some(scale));
        self.averaged.clear();
    }
}

/// A microbatch that was added to the gradient sums.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Contribution {
    /// Which.
    pub microbatch: Microbatch,
    /// Its loss, summed over tokens, at the last stage.
    pub loss: Option<f64>,
}

/// A peer to the conductor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum PeerReport {
    /// May I add this microbatch?
    Claim {
        /// Of which step.
        step: Step,
        /// Which.
        microbatch: Microbatch,
    },
    /// I will not, after all.
    Released {
        /// Of which step.
        step: Step,
        /// Which.
        microbatch: Microbatch,
    },
    /// I have added it.
    Done {
        /// To the sums of this step.
        step: Step,
        /// Which, and its loss.
        contribution: Contribution,
        /// Time that the backward pass took by itself, in microseconds.
        took_us: u64,
    },
    /// It cannot be computed: a value is not finite, or too large.
    Failed {
        /// Of which step.
        step: Step,
        /// Which.
        microbatch: Microbatch,
        /// Layer and operation.
        what: String,
    },
    /// I hold the average.
    Averaged {
        /// Of which step.
        step: Step,
        /// Which tensors.
        shard: ShardId,
        /// Which attempt.
        round: u64,
        /// Sum of squares of every tensor of the shard, in canonical order.
        squares: Vec<f64>,
    },
    /// The average could not be formed.
    AverageFailed {
        /// Of which step.
        step: Step,
        /// Which tensors.
        shard: ShardId,
        /// Which attempt.
        round: u64,
        /// What happened.
        why: String,
    },
    /// The update is done.
    Applied {
        /// Updates applied now.
        step: Step,
        /// The scale of the last.
        scale: f32,
        /// Hash of the stage's parameters.
        hash: u64,
    },
    /// I have the state of a stage.
    Ready {
        /// Which.
        stage: StageId,
        /// Updates applied.
        step: Step,
    },
    /// I cannot get it.
    FetchFailed {
        /// Which.
        stage: StageId,
        /// Whose fault it is.
        failure: FetchFailure,
        /// What happened.
        why: String,
    },
    /// I have added the sums of a mate that leaves.
    Taken {
        /// Of which step.
        step: Step,
        /// Whose.
        from: PeerName,
    },
    /// I could not get them.
    TakeFailed {
        /// Of which step.
        step: Step,
        /// Whose.
        from: PeerName,
    },
    /// I will be gone.
    Leaving {
        /// In so many milliseconds at the latest.
        within_ms: u64,
    },
    /// The stage's files of a checkpoint are written.
    Saved {
        /// Of which step.
        step: Step,
        /// What was written, for the manifest.
        record: String,
    },
    /// They could not be written.
    SaveFailed {
        /// Of which step.
        step: Step,
        /// Whose fault it is.
        failure: SaveFailure,
        /// What happened.
        why: String,
    },
}

/// Why a peer cannot get a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FetchFailure {
    /// Mates, the network or a destination that does not answer: it may work another time.
    Passing,
    /// The checkpoint of this step is damaged or not there, as far as this peer can see.
    Damaged(Step),
}

/// Why a peer did not write its files of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SaveFailure {
    /// The destination did not take them.
    Destination,
    /// It has no longer, or not yet, the state of that step.
    OtherStep,
}

/// A trainer to the conductor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum TrainerReport {
    /// A microbatch went all the way.
    Finished {
        /// Of which step.
        step: Step,
        /// Which.
        microbatch: Microbatch,
        /// Loss summed over tokens, for validation.
        loss: Option<f64>,
    },
}

/// The conductor to a peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToPeer {
    /// The answer to a claim.
    Grant {
        /// Of which step.
        step: Step,
        /// Which.
        microbatch: Microbatch,
        /// Add it, or compute the input gradient only.
        granted: bool,
    },
    /// Begin with a stage: from a checkpoint, or from its initial values.
    Load {
        /// Which.
        stage: StageId,
        /// The checkpoint's step; 0 without one means initial values.
        step: Step,
        /// Is there a checkpoint?
        checkpoint: bool,
    },
    /// Get a stage's state from those that have it.
    Fetch {
        /// Which.
        stage: StageId,
        /// At least this current.
        step: Step,
        /// Who has it.
        mates: Vec<Mate>,
    },
    /// Form the average of a shard.
    Average {
        /// Of which step.
        step: Step,
        /// Which tensors.
        shard: ShardId,
        /// Which attempt.
        round: u64,
        /// Everybody who contributes, in order.
        group: Vec<Mate>,
    },
    /// Update with the averages of this step.
    Apply {
        /// Which step.
        step: Step,
        /// Factor of the gradient, from clipping.
        scale: f32,
    },
    /// Add the sums of a mate that leaves.
    Take {
        /// Of which step.
        step: Step,
        /// Whose.
        from: Mate,
        /// What they contain.
        contributions: Vec<Contribution>,
    },
    /// Write the stage's files of a checkpoint.
    Save {
        /// The state after this many updates.
        step: Step,
    },
    /// Empty the gradient sums of this step: their keys went to others. Answered by [`PeerReport::Ready`], and what was said before that
    /// counts no longer.
    Clear {
        /// Which step.
        step: Step,
    },
    /// To whom you give values from now on.
    Mates(Mates),
    /// Nobody needs you any longer.
    Retire,
}

/// The conductor to a trainer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToTrainer {
    /// Who computes what.
    Roster {
        /// The peers of every stage.
        stages: Vec<Vec<Mate>>,
        /// Peers that end what they have begun, and take nothing new.
        closing: Vec<PeerName>,
    },
    /// Drive a microbatch.
    Work {
        /// Of which step.
        step: Step,
        /// Which.
        microbatch: Microbatch,
        /// Forward only, for the loss.
        validation: bool,
    },
    /// The step is complete: what is left of it is of no use.
    Committed {
        /// Which.
        step: Step,
    },
    /// You cannot take part, for this reason, which a user must do something about.
    Refused {
        /// What is wrong.
        why: String,
    },
    /// Nobody needs you any longer.
    Retire,
}
