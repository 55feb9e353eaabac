//! The training protocol (SWARM Parallelism, Ryabinin et al. 2023), with exactly-once gradients.
//!
//! A *conductor* owns the ledger of the step: which peer of which stage adds which microbatch. *Peers* hold stages and compute;
//! *trainers* drive microbatches through them. A contribution is keyed (step, microbatch, stage): the first peer that claims a key has
//! it, until it is lost; then the key is free again and the microbatch comes back within the same step.
//!
//! * [`message`] what is said, [`ids`] of what
//! * [`ledger`] who adds what
//! * [`conductor`] steps, averaging, membership, recovery of its own memory
//! * [`clip`] the norm of the whole gradient
//! * [`peer`] the side that computes, [`mates`] the peers that it gives values to
//! * [`fetch`] how it gets a stage, and follows updates that it missed
//! * [`serve`] what of it, and to whom; [`reduce`] averages among the peers of a shard
//! * [`driver`] all of that side in one order
//! * [`trainer`] the side that drives, over [`wiring`]
//! * [`speed`] how fast somebody is
//!
//! docs/training.md tells the whole story.

pub mod clip;
pub mod conductor;
pub mod driver;
pub mod fetch;
pub mod ids;
pub mod ledger;
pub mod mates;
pub mod message;
pub mod peer;
pub mod reduce;
pub mod serve;
pub mod speed;
pub mod trainer;
pub mod wiring;

pub use conductor::{Checkpoints, Conductor, ConductorConfig, ConductorEffect, ConductorEvent, Phase};
pub use ids::{AskId, AverageId, Microbatch, ShardId, StageId, Step, StepAttempt};
pub use message::{
    Contribution, Fetch, FetchFailure, Held, HeldSums, Hello, Mate, PeerReport, SaveFailure, StageStart,
    StateDigest, ToPeer, ToTrainer, TrainerReport, TrainingRole,
};
pub use peer::{Call, CallKind, Job, PeerConfig, PeerEffect, PeerNode, Refused, RequestId};
pub use trainer::{CallId, CallOutcome, TrainerCore, TrainerEffect};
