//! Which stage of a training swarm a free peer joins, and which peer serves another stage from now on.
//!
//! A pipeline is as fast as its weakest stage, and a stage as fast as its peers together (SWARM parallelism, section 3.2, adaptive
//! rebalancing). A plan is a function of the whole view, so that it can be made anew on every event: a peer came, left, was told that it
//! will leave, or has fetched what it was sent for. Five things may happen to a peer:
//!
//! * [`MoveKind::Join`] a free peer fetches a stage's state, then serves it
//! * [`MoveKind::Switch`] a peer that has another stage's current state serves that one from the next step's edge on: nobody waits
//! * [`MoveKind::Fetch`] a peer goes on serving and fetches another stage's state behind it, to switch later: because it is known to be needed, or
//!   ahead of need (a shadow, kept current by applying that stage's averaged gradients)
//! * [`MoveKind::Cold`] a peer without memory for a second state stops serving while it fetches, which costs throughput
//! * [`MoveKind::Swap`] two such peers change places, when all peers of a stage are on one machine
//!
//! Switches go along chains: where nobody of a rich stage has the poor stage's state, somebody in between has, and is replaced.

mod balance;
mod outcome;
mod plan;
mod spread;

use std::collections::BTreeSet;
use std::fmt;

use dunlin_swarm::PeerName;

pub use plan::rebalance;

/// One stage of the pipeline.
#[derive(Clone, Debug, PartialEq)]
pub struct PipelineStage {
    /// Work of a row here, against the row of [`Peer::rows_per_s`]; 1 where all stages are cut alike.
    pub cost: f64,
    /// Peers that a move must leave here.
    pub peers_min: usize,
    /// Peers that joiners bring it to, before any stage gets more.
    pub peers_wanted: usize,
    /// Time in which one peer fetches this stage's state (parameters and optimizer).
    pub fetch_ms: u64,
}

impl Default for PipelineStage {
    fn default() -> Self {
        Self { cost: 1.0, peers_min: 1, peers_wanted: 1, fetch_ms: 60_000 }
    }
}

/// State that a peer is fetching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetching {
    /// The stage whose state it fetches.
    pub stage: usize,
    /// When it will have the state, in milliseconds of the caller's clock.
    pub ready_ms: u64,
}

/// One peer as it is now.
#[derive(Clone, Debug, PartialEq)]
pub struct Peer {
    /// Its name: one life of a process.
    pub name: PeerName,
    /// The machine it runs on: its failure domain. Empty if unknown.
    pub host: String,
    /// Rows it does in a second of a stage of cost 1.
    pub rows_per_s: f64,
    /// Rows that wait for it.
    pub queue_rows: f64,
    /// The stage it serves; `None` for a free peer, and for one that cannot serve before it has fetched.
    pub stage: Option<usize>,
    /// What it is fetching. With no [`Peer::stage`] it will serve that stage as soon as it is there.
    pub fetching: Option<Fetching>,
    /// Other stages whose current state it has.
    pub shadows: BTreeSet<usize>,
    /// States that fit into its memory beside the one it serves.
    pub room: usize,
    /// When it last began to serve another stage.
    pub moved_ms: Option<u64>,
    /// When it will be gone, if that is known.
    pub doomed_ms: Option<u64>,
    /// How long it will live from now on, as far as one can expect without a notice.
    pub expected_life_ms: u64,
}

impl Default for Peer {
    fn default() -> Self {
        Self {
            name: PeerName::default(),
            host: String::new(),
            rows_per_s: 1.0,
            queue_rows: 0.0,
            stage: None,
            fetching: None,
            shadows: BTreeSet::new(),
            room: 1,
            moved_ms: None,
            doomed_ms: None,
            expected_life_ms: 3_600_000,
        }
    }
}

impl Peer {
    /// How long it will live from `now_ms` on.
    #[must_use]
    pub fn life_ms(&self, now_ms: u64) -> u64 {
        self.doomed_ms
            .map_or(self.expected_life_ms, |at| at.saturating_sub(now_ms).min(self.expected_life_ms))
    }

    /// Whether it serves, or has the current state of, `stage`.
    #[must_use]
    pub fn has(&self, stage: usize) -> bool {
        self.stage == Some(stage) || self.shadows.contains(&stage)
    }
}

/// The swarm as it is now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PipelineView {
    /// Now.
    pub now_ms: u64,
    /// All stages, in order.
    pub stages: Vec<PipelineStage>,
    /// All peers; in the order of their names a plan does not depend on who came first.
    pub peers: Vec<Peer>,
    /// An averaging is under way: nobody may change its stage.
    pub averaging: bool,
}

/// How eager a plan is.
#[derive(Clone, Debug, PartialEq)]
pub struct RebalancePolicy {
    /// Share by which moves must make the pipeline faster.
    pub gain_min: f64,
    /// A peer that moved stays for this long, unless a stage has fewer peers than its minimum.
    pub cooldown_ms: u64,
    /// Time from one step's edge to the next, about: whoever is gone before then does not count for a switch.
    pub step_ms: u64,
    /// Moves in one plan, joins apart.
    pub moves_max: usize,
    /// Whether peers with memory for it fetch states ahead of need.
    pub shadows: bool,
}

impl Default for RebalancePolicy {
    fn default() -> Self {
        Self { gain_min: 0.05, cooldown_ms: 60_000, step_ms: 10_000, moves_max: 32, shadows: true }
    }
}

/// What a peer has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MoveKind {
    /// Fetch, then serve.
    Join,
    /// Serve from the next step's edge on; the state is there. The old stage's state stays as a shadow.
    Switch,
    /// Fetch while serving on. A shadow that no longer fits is dropped.
    Fetch {
        /// The shadow to drop for it.
        drop: Option<usize>,
    },
    /// Stop serving, fetch, serve.
    Cold,
    /// The same, while a peer of that stage comes here: so that neither stage is on one machine.
    Swap,
}

/// One peer, one thing to do, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Move {
    /// The peer that does it.
    pub peer: PeerName,
    /// The stage it serves now.
    pub from: Option<usize>,
    /// The stage it will serve, or whose state it fetches.
    pub to: usize,
    /// Whether it stops serving meanwhile.
    pub kind: MoveKind,
    /// Why, for people.
    pub reason: String,
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peer, to, reason, .. } = self;
        match (self.kind, self.from) {
            (MoveKind::Join, _) => write!(f, "{peer} joins stage {to}")?,
            (MoveKind::Switch, Some(from)) => write!(f, "{peer} switches from stage {from} to {to}")?,
            (MoveKind::Swap, Some(from)) => write!(f, "{peer} of stage {from} swaps for stage {to}")?,
            (MoveKind::Cold, Some(from)) => write!(f, "{peer} leaves stage {from} and fetches {to}")?,
            (MoveKind::Fetch { drop: None }, Some(from)) => write!(f, "{peer} of stage {from} fetches {to}")?,
            (MoveKind::Fetch { drop: Some(old) }, Some(from)) => {
                write!(f, "{peer} of stage {from} fetches {to} and drops {old}")?;
            }
            (_, None) => write!(f, "{peer} goes to stage {to}")?,
        }
        write!(f, ": {reason}")
    }
}

/// What to do now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RebalancePlan {
    /// Moves, all of them meant together.
    pub moves: Vec<Move>,
    /// Why something that might be expected is not among them.
    pub held: Vec<String>,
    /// Rows per second of the weakest stage in the coming step if nobody switches.
    pub rows_per_s: f64,
    /// Rows per second of the weakest stage in the coming step after the switches of this plan.
    pub after_rows_per_s: f64,
}
