//! A peer of a stage: which request is computed next, and whether its gradient counts here.
//!
//! The shell has one engine that executes jobs strictly in the order in which they are given. So emptying the sums is behind a
//! computation that was under way when the keys went to somebody else.
//!
//! * [`calls`] what trainers ask
//! * [`hear`] what the conductor says, averages, the sums of mates
//! * [`state`] updates, and the state of a stage as it comes and goes

mod calls;
mod hear;
mod state;

use std::collections::{BTreeMap, BTreeSet};

use dunlin_swarm::NumericsClass;

use super::ids::{Microbatch, ShardId, StageId, Step, StepAttempt};
use super::mates::Mates;
use super::message::{
    Contribution, Fetch, Held, HeldSums, Hello, Mate, PeerReport, StageStart, StateDigest, TrainingRole,
};

/// A trainer's call; its tensors are the shell's.
pub type RequestId = u64;

/// Bounds and shape of a run, as far as a peer has to know them.
#[derive(Clone, Copy, Debug)]
pub struct PeerConfig {
    /// Microbatches of a step. From there on they are for validation.
    pub microbatches: u32,
    /// A step is computed with the parameters before the last update, so the step behind it can be begun.
    pub delayed_updates: bool,
    /// Calls that may wait; more are refused.
    pub calls_max: usize,
    /// Which bits it computes.
    pub arithmetic: NumericsClass,
}

/// What a trainer asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// The stage that is to compute; another one is refused.
    pub stage: StageId,
    /// The step that the microbatch belongs to.
    pub step: Step,
    /// Its index within the step.
    pub microbatch: Microbatch,
    /// In which attempt at the open steps.
    pub attempt: StepAttempt,
    /// What to compute.
    pub kind: CallKind,
}

impl Call {
    /// What it contributes to.
    fn key(&self) -> (Step, Microbatch) {
        (self.step, self.microbatch)
    }
}

/// What to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CallKind {
    /// Outputs from inputs.
    Forward,
    /// Input gradients from inputs and output gradients (or targets, at the last stage); the parameters' gradients are added.
    Backward,
    /// The loss from inputs and targets, at the last stage.
    Loss,
}

/// Why a call gets no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// This peer does not serve that stage (now).
    NotServing,
    /// The step is over.
    Stale,
    /// Too many calls wait.
    Busy,
    /// It cannot be computed.
    Failed(String),
}

/// Work of the engine, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Job {
    /// Answer a call.
    Compute {
        /// The call that gets the answer.
        request: RequestId,
        /// What to compute, and for which microbatch.
        call: Call,
        /// Add the parameters' gradients to the sums.
        accumulate: bool,
        /// Compare memory before the answer goes out: sums of this step were given away, and what is wrong now would be noticed too late.
        check: bool,
    },
    /// Has memory changed? What was computed may have gone to others. If so, then [`PeerNode::corrupt`].
    Check,
    /// Empty the sums, of all steps.
    Clear,
    /// Add a mate's sums, which the shell has received. Then [`PeerNode::added`].
    Add(Take),
    /// Update with the averages, empty the sums of their step.
    Apply {
        /// The step whose averages these are.
        step: Step,
        /// Factor of the gradient.
        scale: f32,
        /// Compute the root of the state behind it.
        prove: bool,
    },
}

/// The sums of a mate that leaves.
#[derive(Clone, Debug, PartialEq)]
pub struct Take {
    /// The step that the sums are of.
    pub step: Step,
    /// The peer that leaves.
    pub from: Mate,
    /// What they contain.
    pub contributions: Vec<Contribution>,
    /// Sums that were emptied since do not want them.
    pub generation: u64,
    /// On which stream it was asked for: a conductor that has another one by now may not know of it.
    pub stream: u64,
}

/// What the shell must do, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum PeerEffect {
    /// Give the engine a job.
    Run(Job),
    /// Answer a call with what was computed for it.
    Reply(RequestId),
    /// End a call without an answer.
    Refuse(RequestId, Refused),
    /// Tell the conductor; lost while there is no stream, the next hello makes up for it.
    Tell(PeerReport),
    /// Get the state of a stage: initial values or a checkpoint. Then [`PeerNode::ready`].
    Load(StageStart),
    /// Get it from mates. Then [`PeerNode::ready`].
    Fetch {
        /// What the conductor wants.
        fetch: Fetch,
        /// The step of what is here already and is only brought up to date.
        from: Option<Step>,
    },
    /// Form an average. Then [`PeerNode::averaged`] or [`PeerNode::average_failed`].
    Average {
        /// The step whose gradients are averaged.
        step: Step,
        /// The tensors that are averaged.
        shard: ShardId,
        /// Number of this average: an answer to an earlier one counts nothing.
        round: u64,
        /// The peers that contribute, in the order in which their sums are added.
        group: Vec<Mate>,
    },
    /// The sums are about to change: nobody gets any of them for averages that have begun, and one that is not complete is given up. Then
    /// [`PeerNode::average_failed`] for that.
    Close,
    /// Receive a mate's sums. Then [`PeerNode::received`].
    Take(Take),
    /// Write a checkpoint of the state after `step` updates, which is the present one. Then tell.
    Save {
        /// Updates in the state that is written.
        step: Step,
        /// Write nothing, and tell what would be written.
        check: bool,
    },
    /// What has come of a mate's sums is not wanted any more.
    Discard(Take),
    /// Give values to these from now on, and to nobody else.
    GiveTo(Mates),
    /// End.
    Retire,
    /// End: what this process has or computes is not right.
    End(String),
}

/// May the gradient of a microbatch be added here?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    Asked,
    Granted,
    Refused,
}

/// One peer.
pub struct PeerNode {
    me: Mate,
    config: PeerConfig,
    stage: Option<StageId>,
    step: Step,
    /// What the state was after the last update.
    state: StateDigest,
    /// The state is what others had, and no update has been made here since.
    copied: bool,
    /// Calls of earlier ones are not answered any more.
    attempt: StepAttempt,
    /// The attempt that was the newest when something was first added to sums that were empty.
    sums_of: StepAttempt,
    /// It has the state; otherwise it is being fetched.
    serving: bool,
    rights: BTreeMap<(Step, Microbatch), Right>,
    done: BTreeMap<(Step, Microbatch), Contribution>,
    averaged: BTreeMap<ShardId, Vec<f64>>,
    /// The newest attempt at every average.
    rounds: BTreeMap<ShardId, u64>,
    /// An average has begun, and the sums have not changed since.
    open: bool,
    /// Counts how often the sums were emptied without an update.
    generation: u64,
    /// Counts streams to the conductor.
    stream: u64,
    /// Sums of mates that the engine is about to add.
    adding: Vec<Take>,
    scale: Option<f32>,
    queue: BTreeMap<RequestId, Call>,
    /// What the engine computes, and whether its gradient still counts.
    running: Option<Running>,
    /// An update is under way.
    applying: bool,
    /// The conductor waits to hear where this peer is, which is known when the update is done.
    told_to_clear: bool,
    /// It will be gone soon.
    leaving: bool,
    /// Its memory has changed by itself: what, and how that was noticed.
    corrupt: Option<String>,
}

struct Running {
    request: RequestId,
    call: Call,
    counts: bool,
}

impl PeerNode {
    /// A newcomer.
    #[must_use]
    pub fn new(me: Mate, config: PeerConfig) -> Self {
        Self {
            me,
            config,
            stage: None,
            step: 0,
            state: StateDigest::default(),
            copied: false,
            attempt: 0,
            sums_of: 0,
            serving: false,
            rights: BTreeMap::new(),
            done: BTreeMap::new(),
            averaged: BTreeMap::new(),
            rounds: BTreeMap::new(),
            open: false,
            generation: 0,
            stream: 0,
            adding: Vec::new(),
            scale: None,
            queue: BTreeMap::new(),
            running: None,
            applying: false,
            told_to_clear: false,
            leaving: false,
            corrupt: None,
        }
    }

    /// Its stage, and the updates applied.
    #[must_use]
    pub fn position(&self) -> (Option<StageId>, Step) {
        (self.stage, self.step)
    }

    /// Has it the state of its stage?
    #[must_use]
    pub fn serving(&self) -> bool {
        self.serving
    }

    /// The last step that can be computed here.
    fn last(&self) -> Step {
        self.step + Step::from(self.config.delayed_updates)
    }

    /// Are the parameters for a call here?
    fn can_compute(&self, call: &Call) -> bool {
        // A validation is of what all updates have made.
        let last = if call.microbatch < self.config.microbatches { self.last() } else { self.step };
        (self.step..=last).contains(&call.step)
    }

    /// Is anything in the sums, or about to be?
    fn has_sums(&self) -> bool {
        let comes = |take: &Take| take.generation == self.generation;
        !self.done.is_empty()
            || self.adding.iter().any(comes)
            || self.running.as_ref().is_some_and(|r| r.counts)
    }

    /// Something is about to be added to the sums.
    fn add_to_sums(&mut self) {
        if !self.has_sums() {
            self.sums_of = self.attempt;
        }
    }

    /// The engine is about to be given what changes the sums that averages are formed of.
    fn sums_change(&mut self, out: &mut Vec<PeerEffect>) {
        if std::mem::take(&mut self.open) {
            out.push(PeerEffect::Close);
        }
    }

    /// What the sums of a step contain, and what is being added to them.
    fn sums(&self, step: Step) -> HeldSums {
        let adds = |r: &&Running| r.counts && r.call.step == step;
        let done = self.done.range((step, 0)..(step + 1, 0)).map(|(_, c)| c.clone());
        let comes = |take: &&Take| take.step == step && take.generation == self.generation;
        let taken = self.adding.iter().filter(comes).flat_map(|take| take.contributions.iter().cloned());
        HeldSums {
            done: done.chain(taken).collect(),
            adding: self.running.iter().filter(adds).map(|r| r.call.microbatch).collect(),
        }
    }

    /// Are the sums of a step those of these microbatches, and of no others? Always, if none are named.
    #[must_use]
    pub fn has_sums_of(&self, step: Step, microbatches: &BTreeSet<Microbatch>) -> bool {
        let HeldSums { done, adding } = self.sums(step);
        microbatches.is_empty()
            || adding.is_empty()
                && done.len() == microbatches.len()
                && done.iter().all(|c| microbatches.contains(&c.microbatch))
    }

    /// Calls that wait or are computed.
    #[must_use]
    pub fn load(&self) -> usize {
        self.queue.len() + usize::from(self.running.is_some())
    }

    /// The stream to the conductor is new: who we are, and the questions that were not answered.
    pub fn connected(&mut self, out: &mut Vec<PeerEffect>) -> Hello {
        let adding = self.running.as_ref().filter(|r| r.counts).map(|r| r.call.key());
        // Nor may it know of sums that are on their way: those that have not come yet stay where they are.
        self.stream += 1;
        // The conductor may have no memory of what it granted. What nobody waits for is not asked again: it would keep the key from others.
        self.rights.clear();
        let waiting: Vec<Call> = self.queue.values().copied().collect();
        for call in waiting.iter().filter(|c| adding != Some(c.key())) {
            self.ask(call, out);
        }
        if let Some(what) = &self.corrupt {
            out.push(PeerEffect::Tell(PeerReport::Corrupt { what: what.clone() }));
        }
        if self.leaving {
            // How much of the time is left the conductor knew.
            out.push(PeerEffect::Tell(PeerReport::Leaving { within_ms: 0 }));
        }
        self.told_to_clear = false;
        let held = self.stage.filter(|_| self.serving).map(|stage| Held {
            stage,
            step: self.step,
            sums: (self.step..=self.last()).map(|step| self.sums(step)).collect(),
            averaged: self.averaged.clone(),
            scale: self.scale,
            state: self.state.clone(),
            copied: self.copied,
            attempt: if self.has_sums() { self.sums_of } else { self.attempt },
        });
        let arithmetic = Some(self.config.arithmetic);
        Hello { me: self.me.clone(), arithmetic, role: TrainingRole::Peer { held } }
    }

    /// This peer will be gone in so many milliseconds.
    pub fn leave(&mut self, within_ms: u64, out: &mut Vec<PeerEffect>) {
        self.leaving = true;
        out.push(PeerEffect::Tell(PeerReport::Leaving { within_ms }));
    }
}
