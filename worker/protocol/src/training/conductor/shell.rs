//! Between the conductor and its shell: what a run is, what happens, and what is to be done.

use dunlin_planner::rebalance::RebalancePolicy;
use dunlin_swarm::{NumericsClass, PeerName};

use crate::training::ids::{StageId, Step};
use crate::training::message::{Hello, PeerReport, ToPeer, ToTrainer, TrainerReport};

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
    /// A peer that keeps a key from others for longer is taken to be lost; sooner, when its stage is known to be much faster.
    pub claim_ms_max: u64,
    /// A peer that will be gone serves on until so long before.
    pub hand_over_ms: u64,
    /// How eagerly peers change their stage. Its step is measured, and its shadows are not kept.
    pub policy: RebalancePolicy,
    /// Time in which the state of a stage is fetched, as long as that was not measured.
    pub fetch_ms: u64,
    /// Distinguishes this life of the conductor from others: larger than those before.
    pub incarnation: u64,
    /// Which bits this run is.
    pub arithmetic: NumericsClass,
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
        /// Updates in the state that the checkpoint is of.
        step: Step,
        /// What is in the way.
        error: Option<String>,
    },
    /// A checkpoint is there as it was written, or not.
    Confirmed {
        /// Updates in the state that the checkpoint is of.
        step: Step,
        /// What is wrong.
        error: Option<String>,
    },
    /// The run cannot go on here, for this reason, which a user must do something about.
    Refused(String),
    /// The conductor itself did nothing for so long that nobody can be blamed for having hung up: all streams have ended, and whoever is there says hello again.
    Woke,
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
        /// Updates in the state that the checkpoint is of.
        step: Step,
    },
    /// Make the destination ready for another attempt, and find out whether it takes anything. Then [`ConductorEvent::Prepared`].
    Prepare,
    /// Write the manifest of a checkpoint from the records of its stages. Then [`ConductorEvent::Sealed`].
    Seal {
        /// Updates in the state that the checkpoint is of.
        step: Step,
        /// Of every stage, in order.
        records: Vec<String>,
    },
    /// Read the last checkpoint of the run again. Then [`ConductorEvent::Confirmed`].
    Confirm {
        /// Updates in the state that the checkpoint is of.
        step: Step,
    },
    /// A step is complete.
    Committed(Committed),
    /// A peer goes to another stage.
    Moved(Moved),
    /// End a stream: its other side must begin anew.
    Drop(PeerName),
    /// A sentence for the log and the page of the run.
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
    /// The peer that goes.
    pub peer: PeerName,
    /// The stage that it leaves.
    pub from: StageId,
    /// The stage that it goes to.
    pub to: StageId,
    /// Why it goes, for the log and the page of the run.
    pub reason: String,
}

/// A peer of a stage, for people.
#[derive(Clone, Debug, PartialEq)]
pub struct MemberView {
    /// Its name: one life of a process.
    pub name: PeerName,
    /// The machine it runs on. Empty if unknown.
    pub host: String,
    /// Rows a second that it takes forward and back through a stage of cost 1; 0 as long as that is not known. Those of all peers compare.
    pub rows_per_s: f64,
}

/// A peer that was expelled because it was wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expelled {
    /// Its name, under which nobody comes back.
    pub peer: PeerName,
    /// The machine it ran on. Empty if unknown.
    pub host: String,
    /// The step under way.
    pub step: Step,
    /// What was found, for people.
    pub why: String,
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
    /// The run cannot go on: a problem the user has to fix, in words for people.
    Failed(String),
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
    /// Peers that were expelled because they were wrong.
    pub expelled: u64,
}
