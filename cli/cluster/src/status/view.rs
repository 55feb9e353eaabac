//! What is shown of a swarm.

use std::collections::BTreeMap;

use dunlin_swarm::Layers;
use serde::Serialize;

/// A swarm.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind")]
pub enum StatusView {
    /// It serves.
    #[serde(rename = "InferenceSwarm")]
    Serving(ServingView),
    /// It trains.
    #[serde(rename = "TrainingSwarm")]
    Training(TrainingView),
}

impl StatusView {
    /// What both kinds say.
    #[must_use]
    pub fn head(&self) -> &SwarmHeader {
        match self {
            Self::Serving(view) => &view.head,
            Self::Training(view) => &view.head,
        }
    }

    pub(crate) fn head_mut(&mut self) -> &mut SwarmHeader {
        match self {
            Self::Serving(view) => &mut view.head,
            Self::Training(view) => &mut view.head,
        }
    }
}

/// What both kinds say.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SwarmHeader {
    /// `inferenceswarm/smollm2`.
    pub id: String,
    /// Its namespace.
    pub namespace: String,
    /// Its condition Ready is True.
    pub ready: bool,
    /// The reason of that condition.
    pub reason: String,
    /// Its message.
    pub message: String,
    /// What is missing, if it serves or trains with less than planned.
    pub degraded: Option<String>,
    /// What may not be looked at, and which right is missing.
    pub unread: Vec<String>,
}

/// A swarm that serves.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ServingView {
    /// What both kinds say.
    #[serde(flatten)]
    pub head: SwarmHeader,
    /// The name clients ask for.
    pub model: String,
    /// Base of the API inside of the cluster.
    pub url: String,
    /// Number of the plan.
    pub epoch: u64,
    /// Layers of the model; 0 while nobody has read it.
    pub layers: u32,
    /// Layers that some peer holds.
    pub served: u32,
    /// Layers that as many others hold as asked for.
    pub shadowed: u32,
    /// Peers in the order of their layers.
    pub peers: Vec<PeerView>,
    /// Its pods could be looked at.
    pub pods_known: bool,
    /// Gateways by name.
    pub gateways: Vec<GatewayView>,
    /// Answers in the making; `None` when no gateway could be asked.
    pub sessions: Option<usize>,
    /// Of them, those that wait for their turn.
    pub queued: usize,
    /// Tokens generated a second, over the last moment.
    pub tokens_per_s: Option<f64>,
    /// Sessions that went on after a disturbance, by reason, since the gateways started.
    pub recoveries: BTreeMap<String, u64>,
    /// The last of them.
    pub last_recovery: Option<String>,
}

/// A peer that holds layers, or is to.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PeerView {
    /// Pod name.
    pub name: String,
    /// Its node; empty when it has none.
    pub node: String,
    /// Its pool.
    pub pool: String,
    /// That is of preemptible capacity.
    pub spot: bool,
    /// `ready`, `loading`, `leaving`, `gone`, or what its pod does.
    pub state: String,
    /// Layers that it computes.
    pub span: Layers,
    /// Layers that it holds for others.
    pub shadows: Vec<Layers>,
}

/// A gateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GatewayView {
    /// Pod name.
    pub name: String,
    /// Its node.
    pub node: String,
    /// Its probe succeeds.
    pub ready: bool,
    /// Why it could not be asked.
    pub silent: Option<String>,
}

/// A swarm that trains.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TrainingView {
    /// What both kinds say.
    #[serde(flatten)]
    pub head: SwarmHeader,
    /// Updates done.
    pub step: u64,
    /// Updates asked for.
    pub steps: u64,
    /// Mean loss of the last step, in nats.
    pub loss: Option<f64>,
    /// Mean loss of held-out data when last measured.
    pub validation_loss: Option<f64>,
    /// Tokens trained on per second.
    pub tokens_per_s: Option<f64>,
    /// Step and folder of the newest checkpoint.
    pub checkpoint: Option<(u64, String)>,
    /// Microbatches computed again, peers lost without notice, peers that changed stages.
    pub redone_lost_moved: [u64; 3],
    /// Stages in the order of their layers.
    pub stages: Vec<StageView>,
    /// Peers without a stage, trainers and the conductor.
    pub others: Vec<RunPodView>,
    /// The last things that the conductor noted.
    pub notes: Vec<String>,
    /// Why the conductor could not be asked.
    pub silent: Option<String>,
}

/// A stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StageView {
    /// Its number.
    pub stage: u32,
    /// `0-7`.
    pub layers: String,
    /// Peers that hold it and are current.
    pub peers: u32,
    /// Those of them that are known by name.
    pub members: Vec<RunPodView>,
}

/// A pod of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RunPodView {
    /// Pod name.
    pub name: String,
    /// `train-peer`, `trainer`, `conductor`.
    pub role: String,
    /// Its node.
    pub node: String,
    /// Its pool; empty for what is in none.
    pub pool: String,
    /// That is of preemptible capacity.
    pub spot: bool,
    /// `ready`, or what its pod does.
    pub state: String,
    /// Rows a second.
    pub rows_per_s: Option<f64>,
}
