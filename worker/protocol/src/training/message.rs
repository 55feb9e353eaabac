//! What conductor, peers and trainers say to each other. Tensors travel elsewhere.

use std::collections::BTreeMap;

use dunlin_swarm::{NumericsClass, PeerName};

use super::ids::{LIFE_BITS, Microbatch, ShardId, StageId, Step, StepAttempt};
use super::mates::Mates;

/// Somebody to talk to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mate {
    /// Its name; one life of a process.
    pub name: PeerName,
    /// `host:port` of its gRPC server.
    pub addr: String,
    /// The machine it runs on: its failure domain. Empty if unknown.
    pub host: String,
}

/// The first words of every stream to the conductor.
#[derive(Clone, Debug, PartialEq)]
pub struct Hello {
    /// Who it is and where others reach it.
    pub me: Mate,
    /// Which bits it computes, if it says so.
    pub arithmetic: Option<NumericsClass>,
    /// What it does.
    pub role: TrainingRole,
}

/// What a process does.
#[derive(Clone, Debug, PartialEq)]
pub enum TrainingRole {
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
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Held {
    /// The stage that it holds.
    pub stage: StageId,
    /// Updates applied.
    pub step: Step,
    /// What its gradient sums contain, of this step and those that it has begun behind it.
    pub sums: Vec<HeldSums>,
    /// Averages of this step that it holds, with the sums of squares per tensor.
    pub averaged: BTreeMap<ShardId, Vec<f64>>,
    /// The scale of the last update.
    pub scale: Option<f32>,
    /// What its state is.
    pub state: StateDigest,
    /// It has that from others, and has made no update since: it is no witness of what the state should be.
    pub copied: bool,
    /// The attempt that its sums are of.
    pub attempt: StepAttempt,
}

/// What the state of a stage is, as far as its peer can tell: parameters, and all that is kept beside them. Peers of a stage at one step have the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateDigest {
    /// In 64 bits, which cost nothing: bits that are wrong by accident change it.
    pub fingerprint: u64,
    /// SHA-256 over all of it, hexadecimal, when it was asked for or the state has just come: nobody can make another state for it.
    pub root: Option<String>,
}

impl StateDigest {
    /// Can both be of one state?
    #[must_use]
    pub fn agrees(&self, other: &Self) -> bool {
        let roots = self.root.as_ref().zip(other.root.as_ref());
        self.fingerprint == other.fingerprint && roots.is_none_or(|(a, b)| a == b)
    }
}

/// The gradient sums of one step.
#[derive(Clone, Debug, Default, PartialEq)]
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
    /// Are its sums of an attempt that was given up when `other` was told to begin anew? What they contain may have been computed with wrong values.
    #[must_use]
    pub fn is_behind(&self, other: &Self) -> bool {
        let life = |attempt: StepAttempt| attempt >> LIFE_BITS;
        let sums = self.sums.iter().any(|sums| !sums.is_empty());
        sums && self.attempt < other.attempt && life(self.attempt) == life(other.attempt)
    }

    /// What was being added to the sums of a step is in them.
    pub fn add(&mut self, step: Step, contribution: Contribution) {
        let index = step.checked_sub(self.step).and_then(|ahead| usize::try_from(ahead).ok());
        if let Some(sums) = index.and_then(|index| self.sums.get_mut(index)) {
            sums.adding.retain(|m| *m != contribution.microbatch);
            sums.done.push(contribution);
        }
    }

    /// An update was made.
    pub fn applied(&mut self, step: Step, scale: f32, state: StateDigest) {
        let made = usize::try_from(step.saturating_sub(self.step)).unwrap_or(usize::MAX);
        self.sums.drain(..made.min(self.sums.len()));
        (self.step, self.scale, self.state, self.copied) = (step, Some(scale), state, false);
        self.averaged.clear();
    }
}

/// A microbatch that was added to the gradient sums.
#[derive(Clone, Debug, PartialEq)]
pub struct Contribution {
    /// Its index within the step.
    pub microbatch: Microbatch,
    /// Its loss, summed over tokens, at the last stage.
    pub loss: Option<f64>,
}

/// A peer to the conductor.
#[derive(Clone, Debug, PartialEq)]
pub enum PeerReport {
    /// May I add this microbatch?
    Claim {
        /// The step whose sums it would be added to.
        step: Step,
        /// Its index within the step.
        microbatch: Microbatch,
        /// In which attempt it is driven.
        attempt: StepAttempt,
    },
    /// I will not, after all.
    Released {
        /// The step of the claim.
        step: Step,
        /// The microbatch of the claim.
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
    /// My memory has changed by itself: nothing that I have is to be trusted.
    Corrupt {
        /// What has, and how that was noticed.
        what: String,
    },
    /// I hold the average.
    Averaged {
        /// The step whose gradients are averaged.
        step: Step,
        /// The tensors that are averaged.
        shard: ShardId,
        /// Number of this average: an answer to an earlier one counts nothing.
        round: u64,
        /// Sum of squares of every tensor of the shard, in canonical order.
        squares: Vec<f64>,
    },
    /// The average could not be formed.
    AverageFailed {
        /// The step whose gradients were to be averaged.
        step: Step,
        /// The tensors that are averaged.
        shard: ShardId,
        /// Number of this average: an answer to an earlier one counts nothing.
        round: u64,
        /// What happened.
        why: String,
        /// The mate that did not give what it should, if it was one.
        mate: Option<PeerName>,
    },
    /// The update is done.
    Applied {
        /// Updates applied now.
        step: Step,
        /// The scale of the last.
        scale: f32,
        /// What the state is now.
        state: StateDigest,
    },
    /// I have the state of a stage.
    Ready {
        /// The stage that it has now.
        stage: StageId,
        /// Updates applied.
        step: Step,
        /// What it is.
        state: StateDigest,
    },
    /// I cannot get it.
    FetchFailed {
        /// The stage that it was to get.
        stage: StageId,
        /// Whether another try may help, or the checkpoint is damaged.
        failure: FetchFailure,
        /// What happened.
        why: String,
    },
    /// What a mate gave is not right; I got it from others.
    Wrong {
        /// The peer that gave it.
        mate: PeerName,
        /// What is not right.
        what: String,
    },
    /// I have added the sums of a mate that leaves.
    Taken {
        /// The step that the sums are of.
        step: Step,
        /// The peer that leaves.
        from: PeerName,
    },
    /// I could not get them.
    TakeFailed {
        /// The step that the sums are of.
        step: Step,
        /// The peer that leaves.
        from: PeerName,
    },
    /// I will be gone.
    Leaving {
        /// In so many milliseconds at the latest.
        within_ms: u64,
    },
    /// The stage's files of a checkpoint are written.
    Saved {
        /// Updates in the state that was written.
        step: Step,
        /// What was written, for the manifest.
        record: String,
    },
    /// They could not be written.
    SaveFailed {
        /// Updates in the state that was to be written.
        step: Step,
        /// Whether the destination refused, or the peer has another state.
        failure: SaveFailure,
        /// What happened.
        why: String,
    },
}

/// Why a peer cannot get a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchFailure {
    /// Mates, the network or a destination that does not answer: it may work another time.
    Passing,
    /// The checkpoint of this step is damaged or not there, as far as this peer can see.
    Damaged(Step),
}

/// Why a peer did not write its files of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveFailure {
    /// The destination did not take them.
    Destination,
    /// It has no longer, or not yet, the state of that step.
    OtherStep,
}

/// A trainer to the conductor.
#[derive(Clone, Debug, PartialEq)]
pub enum TrainerReport {
    /// A microbatch went all the way.
    Finished {
        /// The step that the microbatch belongs to.
        step: Step,
        /// Its index within the step.
        microbatch: Microbatch,
        /// The attempt that it was driven in; one of an earlier attempt counts nothing.
        attempt: StepAttempt,
        /// Loss summed over tokens, for validation.
        loss: Option<f64>,
    },
    /// A peer cannot compute what another peer of its stage has computed, of the same values.
    Contradicted {
        /// The step that the microbatch belongs to.
        step: Step,
        /// Its index within the step.
        microbatch: Microbatch,
        /// The attempt that it was driven in; one of an earlier attempt counts nothing.
        attempt: StepAttempt,
        /// The peer that could not compute it.
        peer: PeerName,
        /// The peer that could.
        by: PeerName,
        /// What the first said.
        what: String,
    },
    /// Nobody can compute a microbatch: driven twice, over other peers where there are others, it was refused by all that were asked.
    Failed {
        /// The step that the microbatch belongs to.
        step: Step,
        /// Its index within the step.
        microbatch: Microbatch,
        /// The attempt that it was driven in; one of an earlier attempt counts nothing.
        attempt: StepAttempt,
        /// The peers that were asked.
        peers: Vec<PeerName>,
        /// What the last of them said: layer and operation.
        what: String,
    },
}

/// A stage to begin with: from a checkpoint, or from its initial values.
#[derive(Clone, Debug, PartialEq)]
pub struct StageStart {
    /// The stage to begin with.
    pub stage: StageId,
    /// The checkpoint's step; 0 without one means initial values.
    pub step: Step,
    /// Is there a checkpoint?
    pub checkpoint: bool,
}

/// A stage's state, from those that have it.
#[derive(Clone, Debug, PartialEq)]
pub struct Fetch {
    /// The stage whose state it is to get.
    pub stage: StageId,
    /// At least this current.
    pub step: Step,
    /// The peers that have it.
    pub mates: Vec<Mate>,
    /// What is here already is not right: get all of it.
    pub whole: bool,
}

/// The conductor to a peer.
#[derive(Clone, Debug, PartialEq)]
pub enum ToPeer {
    /// The answer to a claim.
    Grant {
        /// The step of the claim.
        step: Step,
        /// The microbatch of the claim.
        microbatch: Microbatch,
        /// Add it, or compute the input gradient only.
        granted: bool,
    },
    /// Begin with a stage.
    Load(StageStart),
    /// Get a stage's state from those that have it.
    Fetch(Fetch),
    /// Form the average of a shard.
    Average {
        /// The step whose gradients are averaged.
        step: Step,
        /// The tensors that are averaged.
        shard: ShardId,
        /// Number of this average: an answer to an earlier one counts nothing.
        round: u64,
        /// Everybody who contributes, in order.
        group: Vec<Mate>,
    },
    /// Update with the averages of this step.
    Apply {
        /// The step whose averages these are: the state has had so many updates before.
        step: Step,
        /// Factor of the gradient, from clipping.
        scale: f32,
        /// Say the root of the state behind it.
        prove: bool,
    },
    /// Add the sums of a mate that leaves.
    Take {
        /// The step that the sums are of.
        step: Step,
        /// The peer that leaves.
        from: Mate,
        /// What they contain.
        contributions: Vec<Contribution>,
    },
    /// Write the stage's files of a checkpoint.
    Save {
        /// The state after this many updates.
        step: Step,
        /// Write nothing, and say what should be in them: somebody else writes them.
        check: bool,
    },
    /// Empty the gradient sums of this step: their keys went to others. Answered by [`PeerReport::Ready`], and what was said before that
    /// counts no longer. Calls of earlier attempts are not answered any more.
    Clear {
        /// The step whose sums are emptied.
        step: Step,
        /// The attempt that counts now.
        attempt: StepAttempt,
    },
    /// What you compute or hold is not right: end, and begin anew as somebody else.
    Expelled {
        /// What was found, for people.
        why: String,
    },
    /// The peers that you give values to from now on.
    Mates(Mates),
    /// Nobody needs you any longer.
    Retire,
}

/// The conductor to a trainer.
#[derive(Clone, Debug, PartialEq)]
pub enum ToTrainer {
    /// The peers of every stage, after each change.
    Roster {
        /// The peers of every stage.
        stages: Vec<Vec<Mate>>,
        /// Peers that end what they have begun, and take nothing new.
        closing: Vec<PeerName>,
    },
    /// Drive a microbatch.
    Work {
        /// The step that the microbatch belongs to.
        step: Step,
        /// Its index within the step; from the number of microbatches on it is for validation.
        microbatch: Microbatch,
        /// Forward only, for the loss.
        validation: bool,
        /// The attempt to drive it in. It comes back in the report and in claims.
        attempt: StepAttempt,
    },
    /// The step is complete: what is left of it is of no use.
    Committed {
        /// The step that is decided.
        step: Step,
    },
    /// You cannot take part, for this reason, which a user must do something about.
    Refused {
        /// What is wrong.
        why: String,
    },
    /// All that is on its way is of no use: it may have gone through a peer that computes with wrong values, or everybody goes back.
    Anew,
    /// Nobody needs you any longer.
    Retire,
}
