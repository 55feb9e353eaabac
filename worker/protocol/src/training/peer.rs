//! A peer of a stage: which request is computed next, and whether its gradient counts here.
//!
//! The shell has one engine that executes jobs strictly in the order in which they are given. So emptying the sums is behind a
//! computation that was under way when the keys went to somebody else.

use std::collections::BTreeMap;

use super::mates::Mates;
use super::message::{
    Contribution, FetchFailure, Held, HeldSums, Hello, Mate, Microbatch, PeerReport, Role, SaveFailure,
    ShardId, StageId, Step, ToPeer,
};

/// A trainer's call; its tensors are the shell's.
pub type RequestId = u64;

/// Requests that may wait; more are refused.
const QUEUE_MAX: usize = 256;

/// What a trainer asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Of which stage.
    pub stage: StageId,
    /// Of which step.
    pub step: Step,
    /// Which.
    pub microbatch: Microbatch,
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
        /// Which.
        request: RequestId,
        /// What.
        call: Call,
        /// Add the parameters' gradients to the sums.
        accumulate: bool,
    },
    /// Empty the sums, of all steps.
    Clear,
    /// Add a mate's sums, which the shell has received. Then [`PeerNode::added`].
    Add(Take),
    /// Update with the averages, empty the sums of their step.
    Apply {
        /// Of which step.
        step: Step,
        /// Factor of the gradient.
        scale: f32,
    },
}

/// The sums of a mate that leaves.
#[derive(Clone, Debug, PartialEq)]
pub struct Take {
    /// Of which step.
    pub step: Step,
    /// Whose.
    pub from: Mate,
    /// What they contain.
    pub contributions: Vec<Contribution>,
    /// Sums that were emptied since do not want them.
    pub generation: u64,
}

/// What the shell must do, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum PeerEffect {
    /// Give the engine a job.
    Run(Job),
    /// End a call without an answer.
    Refuse(RequestId, Refused),
    /// Tell the conductor; lost while there is no stream, the next hello makes up for it.
    Tell(PeerReport),
    /// Get the state of a stage: initial values or a checkpoint. Then [`PeerNode::ready`].
    Load {
        /// Which.
        stage: StageId,
        /// Of which step.
        step: Step,
        /// From a checkpoint.
        checkpoint: bool,
    },
    /// Get it from mates. Then [`PeerNode::ready`].
    Fetch {
        /// Which.
        stage: StageId,
        /// At least this current.
        step: Step,
        /// What is here already, to be brought up to date.
        from: Option<Step>,
        /// Who has it.
        mates: Vec<Mate>,
    },
    /// Form an average. Then [`PeerNode::averaged`] or [`PeerNode::average_failed`].
    Average {
        /// Of which step.
        step: Step,
        /// Which tensors.
        shard: ShardId,
        /// Which attempt.
        round: u64,
        /// Who contributes.
        group: Vec<Mate>,
    },
    /// Receive a mate's sums. Then [`PeerNode::received`].
    Take(Take),
    /// Write a checkpoint of the state after `step` updates, which is the present one. Then tell.
    Save {
        /// Which.
        step: Step,
    },
    /// Give values to these from now on, and to nobody else.
    GiveTo(Mates),
    /// End.
    Retire,
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
    microbatches: u32,
    delayed_updates: bool,
    stage: Option<StageId>,
    step: Step,
    /// It has the state; otherwise it is being fetched.
    serving: bool,
    rights: BTreeMap<(Step, Microbatch), Right>,
    done: BTreeMap<(Step, Microbatch), Contribution>,
    averaged: BTreeMap<ShardId, Vec<f64>>,
    /// The newest attempt at every average.
    rounds: BTreeMap<ShardId, u64>,
    /// Counts how often the sums were emptied without an update.
    generation: u64,
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
}

struct Running {
    request: RequestId,
    call: Call,
    counts: bool,
}

impl PeerNode {
    /// A newcomer. Microbatches from `microbatches` on are for validation. With `delayed_updates` a step is computed with the parameters before
    /// the last update, so the step behind it can be begun.
    #[must_use]
    pub fn new(me: Mate, microbatches: u32, delayed_updates: bool) -> Self {
        Self {
            me,
            microbatches,
            delayed_updates,
            stage: None,
            step: 0,
            serving: false,
            rights: BTreeMap::new(),
            done: BTreeMap::new(),
            averaged: BTreeMap::new(),
            rounds: BTreeMap::new(),
            generation: 0,
            scale: None,
            queue: BTreeMap::new(),
            running: None,
            applying: false,
            told_to_clear: false,
            leaving: false,
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
        self.step + Step::from(self.delayed_updates)
    }

    /// Are the parameters for a call here?
    fn can_compute(&self, call: &Call) -> bool {
        // A validation is of what all updates have made.
        let last = if call.microbatch < self.microbatches { self.last() } else { self.step };
        (self.step..=last).contains(&call.step)
    }

    /// What the sums of a step contain, and what is being added to them.
    fn sums(&self, step: Step) -> HeldSums {
        let adds = |r: &&Running| r.counts && r.call.step == step;
        HeldSums {
            done: self.done.range((step, 0)..(step + 1, 0)).map(|(_, c)| c.clone()).collect(),
            adding: self.running.iter().filter(adds).map(|r| r.call.microbatch).collect(),
        }
    }

    /// Calls that wait or are computed.
    #[must_use]
    pub fn load(&self) -> usize {
        self.queue.len() + usize::from(self.running.is_some())
    }

    /// The stream to the conductor is new: who we are, and the questions that were not answered.
    pub fn connected(&mut self, out: &mut Vec<PeerEffect>) -> Hello {
        let adding = self.running.as_ref().filter(|r| r.counts).map(|r| r.call.key());
        // The conductor may have no memory of what it granted. What nobody waits for is not asked again: it would keep the key from others.
        self.rights.clear();
        let waiting: Vec<Call> = self.queue.values().copied().collect();
        for call in waiting.iter().filter(|c| adding != Some(c.key())) {
            self.ask(call, out);
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
        });
        Hello { me: self.me.clone(), role: Role::Peer { held } }
    }

    /// This peer will be gone in so many milliseconds.
    pub fn leave(&mut self, within_ms: u64, out: &mut Vec<PeerEffect>) {
        self.leaving = true;
        out.push(PeerEffect::Tell(PeerReport::Leaving { within_ms }));
    }

    /// A trainer calls.
    pub fn call(&mut self, request: RequestId, call: Call, out: &mut Vec<PeerEffect>) {
        if self.stage != Some(call.stage) {
            out.push(PeerEffect::Refuse(request, Refused::NotServing));
        } else if call.step < self.step {
            out.push(PeerEffect::Refuse(request, Refused::Stale));
        } else if self.queue.len() >= QUEUE_MAX {
            out.push(PeerEffect::Refuse(request, Refused::Busy));
        } else {
            self.queue.insert(request, call);
            self.ask(&call, out);
            self.next(out);
        }
    }

    /// The caller is gone. What it claimed is free for others.
    pub fn hang_up(&mut self, request: RequestId, out: &mut Vec<PeerEffect>) {
        let Some(call) = self.queue.remove(&request) else { return };
        let same = |other: &Call| (other.kind, other.key()) == (CallKind::Backward, call.key());
        let wanted = self.queue.values().any(same) || self.running.as_ref().is_some_and(|r| same(&r.call));
        // A claim without an answer stays: were it given up and made again, the first answer would be taken for the second.
        let unused = self.rights.get(&call.key()) == Some(&Right::Granted);
        if call.kind == CallKind::Backward && unused && !wanted && !self.done.contains_key(&call.key()) {
            self.rights.remove(&call.key());
            let (step, microbatch) = call.key();
            out.push(PeerEffect::Tell(PeerReport::Released { step, microbatch }));
        }
    }

    /// Asks for the right to add, once per key, as early as possible: the answer comes while the call waits.
    fn ask(&mut self, call: &Call, out: &mut Vec<PeerEffect>) {
        let wants = call.kind == CallKind::Backward && self.can_compute(call) && self.serving;
        if wants && !self.done.contains_key(&call.key()) && !self.rights.contains_key(&call.key()) {
            self.rights.insert(call.key(), Right::Asked);
            out.push(PeerEffect::Tell(PeerReport::Claim { step: call.step, microbatch: call.microbatch }));
        }
    }

    /// The oldest call that can be computed.
    fn next(&mut self, out: &mut Vec<PeerEffect>) {
        if self.running.is_some() || self.applying || !self.serving {
            return;
        }
        let can = |call: &Call| {
            self.can_compute(call)
                && (call.kind != CallKind::Backward
                    || self.done.contains_key(&call.key())
                    || matches!(self.rights.get(&call.key()), Some(Right::Granted | Right::Refused)))
        };
        let Some((&request, &call)) = self.queue.iter().find(|(_, call)| can(call)) else { return };
        self.queue.remove(&request);
        let accumulate = call.kind == CallKind::Backward
            && !self.done.contains_key(&call.key())
            && self.rights.get(&call.key()) == Some(&Right::Granted);
        self.running = Some(Running { request, call, counts: accumulate });
        out.push(PeerEffect::Run(Job::Compute { request, call, accumulate }));
    }

    /// The engine has computed a call, in `took_us` microseconds without what came before; the shell answers it. At the last stage there
    /// is a loss.
    pub fn computed(
        &mut self,
        request: RequestId,
        outcome: Result<Option<f64>, String>,
        took_us: u64,
        out: &mut Vec<PeerEffect>,
    ) {
        let Some(running) = self.running.take_if(|r| r.request == request) else { return };
        let (step, microbatch) = (running.call.step, running.call.microbatch);
        match outcome {
            Ok(loss) if running.counts => {
                let contribution = Contribution { microbatch, loss };
                self.done.insert((step, microbatch), contribution.clone());
                out.push(PeerEffect::Tell(PeerReport::Done { step, contribution, took_us }));
            }
            Ok(_) => {
                // Whoever has the key may be lost: the next call asks again.
                if self.rights.get(&(step, microbatch)) == Some(&Right::Refused) {
                    self.rights.remove(&(step, microbatch));
                    let waiting: Vec<Call> = self.queue.values().copied().collect();
                    for call in waiting {
                        self.ask(&call, out);
                    }
                }
            }
            Err(what) => {
                out.push(PeerEffect::Tell(PeerReport::Failed { step, microbatch, what: what.clone() }));
                out.push(PeerEffect::Refuse(request, Refused::Failed(what)));
            }
        }
        self.next(out);
    }

    /// The engine has updated; `hash` is that of the parameters.
    pub fn applied(&mut self, step: Step, hash: u64, out: &mut Vec<PeerEffect>) {
        if !std::mem::take(&mut self.applying) {
            return;
        }
        self.advance_to(step, out);
        let scale = self.scale.unwrap_or(1.0);
        out.push(PeerEffect::Tell(PeerReport::Applied { step, scale, hash }));
        if std::mem::take(&mut self.told_to_clear) {
            self.clear(out);
            self.tell_ready(out);
        }
        self.next(out);
    }

    /// The state of a stage is complete; sums are empty.
    pub fn ready(&mut self, stage: StageId, step: Step, out: &mut Vec<PeerEffect>) {
        if self.stage != Some(stage) || self.serving {
            return;
        }
        self.serving = true;
        // Before the claims: those that come earlier do not count.
        out.push(PeerEffect::Tell(PeerReport::Ready { stage, step }));
        self.advance_to(step, out);
        self.next(out);
    }

    /// It cannot be had.
    pub fn fetch_failed(
        &mut self,
        stage: StageId,
        failure: FetchFailure,
        why: String,
        out: &mut Vec<PeerEffect>,
    ) {
        if self.stage == Some(stage) && !self.serving {
            self.stage = None;
            self.refuse_all(out);
            out.push(PeerEffect::Tell(PeerReport::FetchFailed { stage, failure, why }));
        }
    }

    /// Claims made before this have no answer to come.
    fn tell_ready(&mut self, out: &mut Vec<PeerEffect>) {
        let Some(stage) = self.stage else { return };
        out.push(PeerEffect::Tell(PeerReport::Ready { stage, step: self.step }));
        self.rights.clear();
        let waiting: Vec<Call> = self.queue.values().copied().collect();
        for call in waiting {
            self.ask(&call, out);
        }
    }

    fn advance_to(&mut self, step: Step, out: &mut Vec<PeerEffect>) {
        self.step = step;
        self.done = self.done.split_off(&(step, 0));
        self.rights = self.rights.split_off(&(step, 0));
        self.averaged.clear();
        self.rounds.clear();
        let stale: Vec<RequestId> =
            self.queue.iter().filter(|(_, c)| c.step < step).map(|(&request, _)| request).collect();
        for request in stale {
            self.queue.remove(&request);
            out.push(PeerEffect::Refuse(request, Refused::Stale));
        }
        let waiting: Vec<Call> = self.queue.values().copied().collect();
        for call in waiting {
            self.ask(&call, out);
        }
    }

    fn refuse_all(&mut self, out: &mut Vec<PeerEffect>) {
        for (request, _) in std::mem::take(&mut self.queue) {
            out.push(PeerEffect::Refuse(request, Refused::NotServing));
        }
    }

    /// An average is complete.
    pub fn averaged(
        &mut self,
        step: Step,
        shard: ShardId,
        round: u64,
        squares: Vec<f64>,
        out: &mut Vec<PeerEffect>,
    ) {
        if step == self.step && self.serving && self.rounds.get(&shard) == Some(&round) {
            self.averaged.insert(shard, squares.clone());
            out.push(PeerEffect::Tell(PeerReport::Averaged { step, shard, round, squares }));
        }
    }

    /// An average could not be formed.
    pub fn average_failed(
        &mut self,
        step: Step,
        shard: ShardId,
        round: u64,
        why: String,
        out: &mut Vec<PeerEffect>,
    ) {
        if step == self.step && self.serving {
            out.push(PeerEffect::Tell(PeerReport::AverageFailed { step, shard, round, why }));
        }
    }

    /// A mate's sums are here, or not: they are added if ours were not emptied meanwhile.
    pub fn received(&mut self, take: Take, arrived: bool, out: &mut Vec<PeerEffect>) {
        if take.generation != self.generation || take.step < self.step {
            return;
        }
        if arrived {
            out.push(PeerEffect::Run(Job::Add(take)));
        } else {
            out.push(PeerEffect::Tell(PeerReport::TakeFailed { step: take.step, from: take.from.name }));
        }
    }

    /// A mate's sums are added.
    pub fn added(&mut self, take: Take, out: &mut Vec<PeerEffect>) {
        if take.generation == self.generation && take.step >= self.step {
            self.done.extend(take.contributions.into_iter().map(|c| ((take.step, c.microbatch), c)));
            out.push(PeerEffect::Tell(PeerReport::Taken { step: take.step, from: take.from.name }));
            self.next(out);
        }
    }

    /// The conductor speaks.
    pub fn hear(&mut self, message: ToPeer, out: &mut Vec<PeerEffect>) {
        match message {
            ToPeer::Grant { step, microbatch, granted } => {
                let key = (step, microbatch);
                if self.rights.get(&key) != Some(&Right::Asked) {
                    return;
                }
                let wants = |c: &Call| (c.kind, c.key()) == (CallKind::Backward, key);
                if !self.queue.values().any(wants) {
                    self.rights.remove(&key);
                    if granted {
                        out.push(PeerEffect::Tell(PeerReport::Released { step, microbatch }));
                    }
                    return;
                }
                self.rights.insert(key, if granted { Right::Granted } else { Right::Refused });
                self.next(out);
            }
            ToPeer::Load { stage, step, checkpoint } => {
                self.start_over(stage, out);
                out.push(PeerEffect::Load { stage, step, checkpoint });
            }
            ToPeer::Fetch { stage, step, mates } => {
                // An update under way is done before anything else.
                let here = self.step + Step::from(self.applying);
                let from = (self.stage == Some(stage) && self.serving).then_some(here);
                self.start_over(stage, out);
                out.push(PeerEffect::Fetch { stage, step, from, mates });
            }
            ToPeer::Average { step, shard, round, group } => {
                if step == self.step && self.serving {
                    self.averaged.remove(&shard);
                    self.rounds.insert(shard, round);
                    out.push(PeerEffect::Average { step, shard, round, group });
                } else {
                    let why = "the state of that step is not here".to_owned();
                    out.push(PeerEffect::Tell(PeerReport::AverageFailed { step, shard, round, why }));
                }
            }
            ToPeer::Apply { step, scale } => {
                // Told again after a conductor's restart, it is done already or under way.
                if step == self.step && self.serving && !self.applying {
                    self.applying = true;
                    self.scale = Some(scale);
                    self.give_up_running(step);
                    out.push(PeerEffect::Run(Job::Apply { step, scale }));
                }
            }
            ToPeer::Take { step, from, contributions } => {
                // An update under way is done before the sums arrive.
                let ahead = Step::from(self.applying);
                if (self.step + ahead..=self.last() + ahead).contains(&step) && self.serving {
                    let generation = self.generation;
                    out.push(PeerEffect::Take(Take { step, from, contributions, generation }));
                } else {
                    out.push(PeerEffect::Tell(PeerReport::TakeFailed { step, from: from.name }));
                }
            }
            ToPeer::Save { step } => {
                if step == self.step && self.serving {
                    out.push(PeerEffect::Save { step });
                } else {
                    let why = format!("the state is that of step {}", self.step);
                    let failure = SaveFailure::OtherStep;
                    out.push(PeerEffect::Tell(PeerReport::SaveFailed { step, failure, why }));
                }
            }
            ToPeer::Clear { step } => {
                if !self.serving {
                    return;
                }
                if self.applying {
                    self.told_to_clear = true;
                    return;
                }
                if step == self.step {
                    self.clear(out);
                }
                self.tell_ready(out);
            }
            ToPeer::Mates(mates) => out.push(PeerEffect::GiveTo(mates)),
            ToPeer::Retire => out.push(PeerEffect::Retire),
        }
    }

    /// What is being computed of a step, or one before, is added to sums that are emptied behind it.
    fn give_up_running(&mut self, step: Step) {
        if let Some(running) = self.running.as_mut().filter(|r| r.call.step <= step) {
            running.counts = false;
        }
    }

    fn clear(&mut self, out: &mut Vec<PeerEffect>) {
        self.give_up_running(Step::MAX);
        self.done.clear();
        self.rights.clear();
        self.averaged.clear();
        self.rounds.clear();
        self.generation += 1;
        out.push(PeerEffect::Run(Job::Clear));
    }

    fn start_over(&mut self, stage: StageId, out: &mut Vec<PeerEffect>) {
        self.clear(out);
        if self.stage != Some(stage) {
            self.refuse_all(out);
        }
        self.stage = Some(stage);
        self.serving = false;
        self.applying = false;
        self.told_to_clear = false;
        self.scale = None;
    }
}
