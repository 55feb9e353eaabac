//! What happens in a run, and what came of it.

use dunlin_sim::model::mix;

use crate::flaw::Flaw;

/// What goes wrong, or is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incident {
    /// The container of a stage fails.
    Kill,
    /// A node is gone without a word.
    Vanish,
    /// Its platform says so before, so many seconds.
    Notice(u64),
    /// The operator's process ends; another one leads after a while.
    Restart,
    /// The same in the middle of a pass.
    Cut,
    /// The API server answers nobody for a while.
    Outage,
    /// Some of its answers are lost, whether or not it did what was asked.
    Flaky,
    /// Somebody else writes what is published.
    Conflict,
    /// Watches are late.
    Stale,
    /// Nobody in the swarm reaches a stage, and the operator does.
    Cutoff,
    /// The operator does not reach a stage, and everybody else does.
    Unheard,
    /// The container of a gateway ends and is started again.
    Gateway,
    /// Containers of stages end as soon as they have started, for a while.
    Broken,
    /// No new nodes for preemptible pools for a while, and one is gone.
    Shortage,
    /// Each layer should be on so many other peers.
    Shadows(u32),
    /// The first pool should have so many peers.
    Replicas(u32),
    /// The image of all pods is another one, with this version of the arithmetic.
    Image(u32),
    /// Peers get other memory.
    Memory,
    /// The model is this one: they are counted from 0, which is the first.
    Model(u32),
    /// Nothing should run, for a while.
    Suspend,
}

/// What happens in a run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Everything random follows from it.
    pub seed: u64,
    /// Peers of the pool `spot`.
    pub peers: u32,
    /// It may have so many more when others find no nodes.
    pub spare: u32,
    /// Peers of the pool `steady`, on nodes that stay; without any there is no such pool, or it is for others.
    pub steady: Option<u32>,
    /// How many other peers hold each layer.
    pub shadows: u32,
    /// Gateways.
    pub gateways: u32,
    /// Nodes of each pool that nobody needs.
    pub free_nodes: u32,
    /// What reading a layer takes, at most.
    pub layer_ms: u64,
    /// When what happens.
    pub plan: Vec<(u64, Incident)>,
    /// Nodes come and go as in a trace: when, which, and whether it comes.
    pub nodes: Option<Vec<(u64, String, bool)>>,
    /// How long before a node of the trace goes it is told; 0: never.
    pub notice_ms: u64,
    /// A session begins this often.
    pub session_ms: u64,
    /// What no operator may have.
    pub flaw: Option<Flaw>,
    /// Keep a trace.
    pub trace: bool,
}

/// The first incident is not before.
const FIRST_MS: u64 = 60_000;

impl Scenario {
    /// A scenario drawn from its seed.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        let draw = |what: u64, below: u64| mix(mix(seed, 0x0b5e), what) % below;
        let (mut plan, mut model) = (Vec::new(), 0);
        let mut at = FIRST_MS + draw(100, 20_000);
        for i in 0..draw(0, 7) {
            let incident = if draw(600 + i, 16) == 0 {
                // Another one of three.
                model = (model + 1 + draw(700 + i, 2) as u32) % 3;
                Incident::Model(model)
            } else {
                usual(draw(200 + i, 27), |below| draw(300 + i, below))
            };
            plan.push((at, incident));
            // Some at once, some while the last one is still being mended, some after.
            at += match draw(400 + i, 4) {
                0 => draw(500 + i, 3000),
                1 | 2 => draw(500 + i, 40_000),
                _ => 60_000 + draw(500 + i, 90_000),
            };
        }
        let steady = match draw(1, 3) {
            0 => None,
            1 => Some(0),
            _ => Some(1),
        };
        Self {
            peers: 2 + draw(2, 4) as u32,
            spare: draw(3, 2) as u32,
            steady,
            shadows: [1, 1, 1, 0, 2][draw(4, 5) as usize],
            gateways: 1 + draw(5, 2) as u32,
            free_nodes: draw(6, 2) as u32,
            layer_ms: [200, 1000, 4000][draw(7, 3) as usize],
            plan,
            ..Self::quiet(seed)
        }
    }

    /// A swarm of three with shadows to which nothing happens.
    #[must_use]
    pub fn quiet(seed: u64) -> Self {
        Self {
            seed,
            peers: 3,
            spare: 0,
            steady: None,
            shadows: 1,
            gateways: 2,
            free_nodes: 1,
            layer_ms: 1000,
            plan: Vec::new(),
            nodes: None,
            notice_ms: 0,
            session_ms: 5000,
            flaw: None,
            trace: false,
        }
    }
}

/// The incident of a kind, of 27, that happens in any swarm; `draw` draws a number below another for what it leaves open.
fn usual(kind: u64, draw: impl Fn(u64) -> u64) -> Incident {
    match kind {
        0..=3 => Incident::Kill,
        4..=6 => Incident::Vanish,
        7..=9 => Incident::Notice(if draw(2) == 0 { 30 } else { 120 }),
        10..=11 => Incident::Restart,
        12 => Incident::Cut,
        13 => Incident::Outage,
        14 => Incident::Flaky,
        15 => Incident::Conflict,
        16 => Incident::Stale,
        17 => Incident::Cutoff,
        18 => Incident::Unheard,
        19 => Incident::Gateway,
        20 => Incident::Shortage,
        21 => Incident::Shadows(draw(3) as u32),
        22 => Incident::Replicas(2 + draw(4) as u32),
        23 => Incident::Image(1 + draw(2) as u32),
        24 => Incident::Memory,
        25 => Incident::Broken,
        _ => Incident::Suspend,
    }
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What does not hold.
    pub violations: Vec<String>,
    /// Incidents that happened.
    pub incidents: u32,
    /// Pods of stages that were made.
    pub pods: u32,
    /// Sessions that were answered.
    pub sessions: u32,
    /// Sessions that went on after a disturbance.
    pub recovered: u32,
    /// Answers that were broken off because the model was changed.
    pub broken_off: u32,
    /// The last epoch that was published.
    pub epoch: u64,
    /// Longest time in which some layer was served by nobody although nothing was wrong with the cluster any more.
    pub unserved_ms_max: u64,
    /// How long it took from the last incident until everything was as planned.
    pub settled_ms: u64,
    /// When the run was over.
    pub ended_ms: u64,
    /// What happened, if asked for.
    pub trace: Vec<String>,
}
