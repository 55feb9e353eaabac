//! The conductor: which step it is, who serves which stage, and when a step is complete.
//!
//! It carries no tensors and keeps nothing on disk: after a restart it asks the peers what they hold ([`gather`]). One file per concern:
//!
//! * [`roster`] who is there and what stage each serves; joining, leaving
//! * [`mates`] to whom each gives values
//! * [`moves`] which stage a peer should serve
//! * [`open`] the steps that are being done
//! * [`step`] keys, averages, the commit
//! * [`gather`] beginning, and beginning again from what peers or a checkpoint have
//! * [`checkpoints`] what there is to go on from · [`save`] writing more · [`trouble`] when that cannot be done

mod checkpoints;
mod gather;
mod mates;
mod moves;
mod open;
mod roster;
mod save;
#[cfg(test)]
mod save_tests;
mod step;
#[cfg(test)]
mod tests;
mod trouble;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dunlin_planner::PeerName;
use dunlin_planner::rebalance::Policy;

use super::mates::Mates;
use super::message::{
    Held, Hello, Mate, Microbatch, PeerReport, Role, ShardId, StageId, Step, ToPeer, ToTrainer, TrainerReport,
};
use super::speed::Speed;

/// Bounds and shape of a run.
#[derive(Clone, Debug)]
pub struct ConductorConfig {
    /// Number of stages.
    pub stages: u32,
    /// Microbatches of a step.
    pub microbatches: u32,
    /// Rows of a microbatch.
    pub rows: u32,
    /// Work of a row at each stage, in one unit.
    pub costs: Vec<f64>,
    /// Updates in all.
    pub steps: Step,
    /// The microbatches of a step are computed with the parameters before the last update: its averages are formed behind them.
    pub delayed_updates: bool,
    /// The first and the last stage share the embedding.
    pub tied: bool,
    /// Largest global norm of the gradient; above it is scaled down.
    pub clip: Option<f64>,
    /// Is there somewhere to save to? Without, a lost stage begins from its first values.
    pub saves: bool,
    /// A checkpoint every so many steps (and at the end); 0 for the end only.
    pub checkpoint_every: Step,
    /// Validation every so many steps; 0 for never.
    pub validate_every: Step,
    /// Microbatches of a validation.
    pub validation_batches: u32,
    /// How long peers may take to report after a start before those that did go on.
    pub gather_ms: u64,
    /// A peer that keeps a key from others for longer is taken to be lost.
    pub claim_ms_max: u64,
    /// A peer that will be gone serves on until so long before.
    pub hand_over_ms: u64,
    /// How eagerly peers change their stage. Its step is measured, and its shadows are not kept.
    pub policy: Policy,
    /// Time in which the state of a stage is fetched, as long as that was not measured.
    pub fetch_ms: u64,
    /// Distinguishes this life of the conductor from others: larger than those before.
    pub incarnation: u64,
}

/// What happens.
#[derive(Clone, Debug)]
pub enum ConductorEvent {
    /// A stream is open.
    Connected(Hello),
    /// It broke or fell silent.
    Gone(PeerName),
    /// A peer speaks.
    Peer(PeerName, PeerReport),
    /// A trainer speaks.
    Trainer(PeerName, TrainerReport),
    /// What there is to go on from: said at the start, and after [`ConductorEffect::Inspect`].
    Checkpoints(Checkpoints),
    /// The destination cannot be read, for this reason. At the start it is tried again until [`ConductorEvent::Checkpoints`].
    Unread(String),
    /// The destination can take another checkpoint, or why it cannot.
    Prepared(Option<String>),
    /// The files of a checkpoint are complete, or not.
    Sealed {
        /// Of which step.
        step: Step,
        /// What is in the way.
        error: Option<String>,
    },
    /// A checkpoint is there as it was written, or not.
    Confirmed {
        /// Of which step.
        step: Step,
        /// What is wrong.
        error: Option<String>,
    },
    /// The run cannot go on here, for this reason, which a user must do something about.
    Refused(String),
    /// Save and stop at the next edge of a step.
    Suspend,
    /// Time passes.
    Tick,
}

/// What there is to go on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checkpoints {
    /// No checkpoint was ever completed.
    None,
    /// The newest sound one; damaged ones are passed over.
    Newest(Step),
    /// There are some, and none is sound: which, what is wrong with them, and how to begin anew on purpose.
    AllDamaged(String),
}

/// What the shell must do, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum ConductorEffect {
    /// Tell a peer.
    ToPeer(PeerName, ToPeer),
    /// Tell a trainer.
    ToTrainer(PeerName, ToTrainer),
    /// Find the newest checkpoint that is sound, reading all of it. Then [`ConductorEvent::Checkpoints`], or [`ConductorEvent::Unread`].
    Inspect,
    /// Remove what an attempt at a checkpoint left.
    Discard {
        /// Of which step.
        step: Step,
    },
    /// Make the destination ready for another attempt, and find out whether it takes anything. Then [`ConductorEvent::Prepared`].
    Prepare,
    /// Write the manifest of a checkpoint from the records of its stages. Then [`ConductorEvent::Sealed`].
    Seal {
        /// Of which step.
        step: Step,
        /// Of every stage, in order.
        records: Vec<String>,
    },
    /// Read the last checkpoint of the run again. Then [`ConductorEvent::Confirmed`].
    Confirm {
        /// Of which step.
        step: Step,
    },
    /// A step is complete.
    Committed(Committed),
    /// A peer goes to another stage.
    Moved(Moved),
    /// End a stream: its other side must begin anew.
    Drop(PeerName),
    /// For people.
    Note(String),
}

/// What came of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Committed {
    /// Updates applied before it.
    pub step: Step,
    /// Loss summed over the tokens of the global batch.
    pub loss: f64,
    /// Of the validation before the update, if there was one: summed over its tokens.
    pub validation: Option<f64>,
    /// Norm of the gradient before clipping.
    pub norm: f64,
    /// Contributions that were computed again because a peer was lost.
    pub redone: u32,
}

/// One peer that went to another stage, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The step under way.
    pub step: Step,
    /// Who.
    pub peer: PeerName,
    /// From where.
    pub from: StageId,
    /// Where to.
    pub to: StageId,
    /// For people.
    pub reason: String,
}

/// Where a run is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for peers, or for what they hold.
    Gathering,
    /// Steps are made.
    Running,
    /// Waiting for the last checkpoint.
    Finishing,
    /// Done; everybody may go.
    Finished,
    /// Stopped at the edge of a step, with a checkpoint.
    Suspended,
    /// What a user must mend.
    Failed(String),
}

/// The ledger of a run.
pub struct Conductor {
    config: ConductorConfig,
    phase: Phase,
    step: Step,
    stages: Vec<StageState>,
    shards: Vec<ShardState>,
    peers: BTreeMap<PeerName, PeerState>,
    /// What each trainer has.
    trainers: BTreeMap<PeerName, BTreeSet<(Step, Microbatch)>>,
    /// From the step that is decided next on.
    open: VecDeque<open::Open>,
    /// Of the oldest of them.
    validation: BTreeMap<Microbatch, Option<f64>>,
    round: u64,
    gathering: gather::Gathering,
    saving: save::Saving,
    suspend: bool,
    totals: Totals,
    measured: moves::Measured,
    hashes: BTreeMap<(StageId, Step), u64>,
    /// The update that was decided last: the step before this one.
    last_scale: Option<f32>,
    /// Lost while handing over: whether the mate has their sums is not known yet.
    in_doubt: BTreeMap<PeerName, InDoubt>,
    /// Membership changed since others were told.
    roster_changed: bool,
}

/// Counts of the whole run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Contributions computed again.
    pub redone: u64,
    /// Peers lost without notice.
    pub lost: u64,
    /// Peers that went from one stage to another.
    pub moves: u64,
}

/// A lost peer whose sums a mate may or may not have added.
#[derive(Clone, Debug)]
struct InDoubt {
    step: Step,
    stage: StageId,
    mate: PeerName,
}

#[derive(Clone, Debug, Default)]
struct StageState {
    /// Since when it has no peer.
    lost_ms: Option<u64>,
}

/// One set of tensors that is averaged together.
#[derive(Clone, Debug)]
struct ShardState {
    /// Stages that hold it.
    stages: Vec<StageId>,
    averaging: Option<Averaging>,
    /// An average that failed is not formed again before.
    not_before_ms: u64,
}

impl ShardState {
    fn of(stages: Vec<StageId>) -> Self {
        Self { stages, averaging: None, not_before_ms: 0 }
    }
}

#[derive(Clone, Debug)]
struct Averaging {
    round: u64,
    group: BTreeSet<PeerName>,
    squares: BTreeMap<PeerName, Vec<f64>>,
}

impl Averaging {
    fn complete(&self) -> bool {
        !self.group.is_empty() && self.group.iter().all(|peer| self.squares.contains_key(peer))
    }
}

#[derive(Clone, Debug)]
struct PeerState {
    mate: Mate,
    place: Place,
    /// When it will be gone, once it said so.
    doomed_ms: Option<u64>,
    /// That is soon: it hands over, or has to be relieved.
    leaving: bool,
    /// Where it goes once a mate has its sums.
    moving: Option<Moving>,
    /// When it last went to another stage.
    moved_ms: Option<u64>,
    /// Since when it is there.
    since_ms: u64,
    /// Since when it fetches the whole state of its stage.
    fetch_since_ms: Option<u64>,
    /// At stages of cost 1.
    speed: Speed,
    /// Updates it has applied, as far as is known.
    step: Step,
    /// What it holds, while the conductor has not begun.
    held: Option<Held>,
    /// Since when it has brought nothing, or owes nothing.
    quiet_since_ms: u64,
    /// What it asked for meanwhile.
    claims: Vec<(Step, Microbatch)>,
    /// To whom it gives values, as it was told last.
    mates: Mates,
}

/// A peer on its way out of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Moving {
    from: StageId,
    to: StageId,
    reason: String,
}

/// What a peer does.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// Nothing yet.
    Idle,
    /// Gets the state of a stage.
    Fetching { stage: StageId },
    /// Has it, and waits for the edge of the step.
    Parked { stage: StageId },
    /// Serves a stage.
    Member { stage: StageId },
    /// Serves no longer; its sums are being handed over.
    HandingOver { stage: StageId, to: Option<PeerName> },
    /// May go.
    Retired,
}

impl Conductor {
    /// A conductor that knows nobody. Of a run that saves, it waits for [`ConductorEvent::Checkpoints`] before anybody begins with anything.
    #[must_use]
    pub fn new(config: ConductorConfig) -> Self {
        let mut shards: Vec<ShardState> =
            (0..config.stages).map(|stage| ShardState::of(vec![stage])).collect();
        if config.tied && config.stages > 1 {
            shards.push(ShardState::of(vec![0, config.stages - 1]));
        }
        let mut conductor = Self {
            phase: Phase::Gathering,
            step: 0,
            stages: vec![StageState::default(); config.stages as usize],
            shards,
            peers: BTreeMap::new(),
            trainers: BTreeMap::new(),
            open: VecDeque::new(),
            validation: BTreeMap::new(),
            round: config.incarnation << 20,
            gathering: gather::Gathering::default(),
            saving: save::Saving::new(config.saves),
            suspend: false,
            totals: Totals::default(),
            measured: moves::Measured::new(config.stages, config.fetch_ms),
            hashes: BTreeMap::new(),
            last_scale: None,
            in_doubt: BTreeMap::new(),
            roster_changed: false,
            config,
        };
        conductor.open_anew();
        conductor
    }

    /// Where the run is.
    #[must_use]
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Updates decided so far.
    #[must_use]
    pub fn step(&self) -> Step {
        self.step
    }

    /// Counts of the whole run.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// The newest complete checkpoint.
    #[must_use]
    pub fn checkpoint(&self) -> Option<Step> {
        self.saving.newest()
    }

    /// The loss of the validation after the last update, summed over its tokens, once it is complete.
    #[must_use]
    pub fn final_validation(&self) -> Option<f64> {
        let complete = !self.validation.is_empty() && self.validation.values().all(Option::is_some);
        (self.step >= self.config.steps && complete).then(|| self.validation.values().flatten().sum())
    }

    /// Peers that serve each stage.
    #[must_use]
    pub fn members(&self) -> Vec<Vec<PeerName>> {
        (0..self.config.stages).map(|stage| self.members_of(stage).cloned().collect()).collect()
    }

    /// Something happens.
    pub fn handle(&mut self, now_ms: u64, event: ConductorEvent, out: &mut Vec<ConductorEffect>) {
        match event {
            ConductorEvent::Connected(hello) => self.connected(now_ms, hello, out),
            ConductorEvent::Gone(name) => self.gone(now_ms, &name, out),
            ConductorEvent::Peer(name, report) => {
                if self.peers.contains_key(&name) {
                    self.peer_report(now_ms, &name, report, out);
                }
            }
            ConductorEvent::Trainer(name, report) => self.trainer_report(&name, report),
            ConductorEvent::Checkpoints(found) => self.found(now_ms, found, out),
            ConductorEvent::Unread(why) => self.unread(now_ms, why, out),
            ConductorEvent::Prepared(error) => self.prepared(now_ms, error, out),
            ConductorEvent::Sealed { step, error } => self.sealed(now_ms, step, error, out),
            ConductorEvent::Confirmed { step, error } => self.confirmed(now_ms, step, error, out),
            // What becomes of the destination of a run that is over is no longer its business.
            ConductorEvent::Refused(_) if matches!(self.phase, Phase::Finished | Phase::Suspended) => {}
            ConductorEvent::Refused(why) => self.fail(why, out),
            ConductorEvent::Suspend => self.suspend = true,
            ConductorEvent::Tick => self.tick(now_ms, out),
        }
        self.advance(now_ms, out);
    }

    fn connected(&mut self, now_ms: u64, hello: Hello, out: &mut Vec<ConductorEffect>) {
        let name = hello.me.name.clone();
        // A new stream of somebody we know replaces the old one.
        self.gone(now_ms, &name, out);
        match hello.role {
            Role::Trainer { .. } => {
                self.trainers.insert(name.clone(), BTreeSet::new());
                let roster = self.roster();
                out.push(ConductorEffect::ToTrainer(name, roster));
            }
            Role::Peer { held } => self.peer_joins(now_ms, hello.me, held, out),
        }
    }

    fn peer_report(
        &mut self,
        now_ms: u64,
        name: &PeerName,
        report: PeerReport,
        out: &mut Vec<ConductorEffect>,
    ) {
        if self.phase == Phase::Gathering && !self.hear_gathering(name, &report) {
            return;
        }
        if let Some(peer) = self.peers.get_mut(name)
            && !matches!(report, PeerReport::Claim { .. } | PeerReport::Leaving { .. })
        {
            peer.quiet_since_ms = now_ms;
        }
        match report {
            PeerReport::Claim { step, microbatch } => self.claim(now_ms, name, step, microbatch, out),
            PeerReport::Released { step, microbatch } => self.unclaim(now_ms, name, step, microbatch, out),
            PeerReport::Done { step, contribution, took_us } => {
                self.done(name, step, &contribution, took_us, out);
            }
            PeerReport::Failed { step, microbatch, what } => self.failed(step, microbatch, &what, out),
            PeerReport::Averaged { step, shard, round, squares } => {
                self.averaged(name, step, shard, round, squares);
            }
            PeerReport::AverageFailed { step, shard, round, why } => {
                self.average_failed(now_ms, name, step, shard, round, &why, out);
            }
            PeerReport::Applied { step, hash, .. } => self.applied(name, step, hash, out),
            PeerReport::Ready { stage, step } => self.ready(now_ms, name, stage, step, out),
            PeerReport::FetchFailed { stage, failure, why } => {
                self.fetch_failed(now_ms, name, stage, failure, &why, out);
            }
            PeerReport::Taken { step, from } => self.taken(now_ms, name, step, &from, out),
            PeerReport::TakeFailed { step, from } => self.take_failed(now_ms, step, &from, out),
            PeerReport::Leaving { within_ms } => self.doomed(now_ms, name, within_ms, out),
            PeerReport::Saved { step, record } => self.saved(now_ms, name, step, record, out),
            PeerReport::SaveFailed { step, failure, why } => {
                self.save_failed(now_ms, name, step, failure, &why, out);
            }
        }
    }

    /// Everything that has become possible.
    fn advance(&mut self, now_ms: u64, out: &mut Vec<ConductorEffect>) {
        if self.phase == Phase::Gathering {
            self.try_begin(now_ms, out);
        }
        if self.phase == Phase::Running {
            self.try_hand_over(now_ms, out);
            self.admit_parked();
            self.start_averages(now_ms, out);
            self.try_commit(now_ms, out);
        }
        self.try_end(now_ms, out);
        self.tell_roster(out);
        if self.live() {
            self.give_work(out);
        }
    }

    fn tick(&mut self, now_ms: u64, out: &mut Vec<ConductorEffect>) {
        let limit = self.config.claim_ms_max;
        let mut overdue: BTreeSet<PeerName> =
            self.open.iter().flat_map(|open| &open.ledgers).flat_map(|l| l.overdue(now_ms, limit)).collect();
        overdue.extend(self.quiet(now_ms));
        for name in overdue {
            out.push(ConductorEffect::Note(format!(
                "{name} does not do what others wait for: it is taken to be lost"
            )));
            self.gone(now_ms, &name, out);
            out.push(ConductorEffect::Drop(name));
        }
        self.leave_in_time(now_ms, out);
        self.give_up_lost_stages(now_ms, out);
        self.settle(now_ms, out);
    }

    /// Is there something that the loss of a stage would set back?
    fn live(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Finishing)
    }

    fn members_of(&self, stage: StageId) -> impl Iterator<Item = &PeerName> {
        let serves = move |peer: &PeerState| peer.place == Place::Member { stage };
        self.peers.iter().filter(move |(_, peer)| serves(peer)).map(|(name, _)| name)
    }

    fn member_stage(&self, name: &PeerName) -> Option<StageId> {
        match self.peers.get(name)?.place {
            Place::Member { stage } => Some(stage),
            _ => None,
        }
    }

    fn fail(&mut self, why: String, out: &mut Vec<ConductorEffect>) {
        out.push(ConductorEffect::Note(why.clone()));
        self.phase = Phase::Failed(why);
    }

    fn shards_of(&self, stage: StageId) -> Vec<ShardId> {
        (0..).zip(&self.shards).filter(|(_, s)| s.stages.contains(&stage)).map(|(id, _)| id).collect()
    }
}
