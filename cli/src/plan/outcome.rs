//! A model laid over machines, as the operator and `dunlin local` lay it over peers. Pure.

use std::collections::BTreeSet;

use anyhow::bail;
use dunlin_engine::memory::{Fit, MemoryBudget};
use dunlin_planner::degrade::{coverage, degrade};
use dunlin_planner::lint;
use dunlin_swarm::{Layers, PeerName, Topology, TopologyPeer, layer_set, ranges};
use serde::{Serialize, Serializer};

use super::machines::Machine;
use super::missing::Missing;
use super::question::{PlanQuestion, covers};

/// Lengths of sessions that are told, as far as the longest one goes.
const LENGTHS: [u32; 6] = [512, 2048, 8192, 32_768, 131_072, 1_048_576];

/// The outcome.
#[derive(Clone, Debug, Serialize)]
pub struct PlanOutcome {
    /// Of the model.
    pub layers: u32,
    /// Longest sequence.
    pub positions: u32,
    /// In the order of the pipeline.
    pub peers: Vec<PeerPlan>,
    /// How many sessions fit, by their length.
    pub sessions: Vec<Sessions>,
    /// What each loss costs.
    pub losses: Vec<Consequence>,
    /// Why the spans are as they are.
    pub reason: String,
    /// What is not as it should be.
    pub findings: Vec<String>,
}

/// What one peer holds, in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct PeerPlan {
    /// Its name.
    pub name: String,
    /// Its machine may vanish.
    pub spot: bool,
    /// Layers that it executes.
    #[serde(rename = "layers", serialize_with = "pair")]
    pub span: Layers,
    /// Layers that it keeps ready for others.
    #[serde(serialize_with = "pairs")]
    pub shadows: Vec<Layers>,
    /// All that it may use.
    pub memory_bytes: u64,
    /// Weights of the span.
    pub weight_bytes: u64,
    /// Weights of the shadows.
    pub shadow_bytes: u64,
    /// KV cache.
    pub kv_bytes: u64,
    /// Journals.
    pub journal_bytes: u64,
    /// The process itself, its queues and buffers.
    pub other_bytes: u64,
}

/// How many sessions of one length run at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sessions {
    /// Positions of each, prompt and answer.
    pub positions: u32,
    /// So many.
    pub sessions: u64,
    /// The peer with the least room for them.
    pub bound_by: String,
}

/// Machines that vanish at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Consequence {
    /// Which.
    pub peers: Vec<String>,
    /// Who executes their layers then.
    pub taken_over_by: Vec<String>,
    /// Layers that nobody holds then.
    #[serde(serialize_with = "pairs")]
    pub unheld: Vec<Layers>,
}

/// `[0,10]`, the end not included, as `dunlin local` prints layers.
fn pair<S: Serializer>(layers: &Layers, to: S) -> Result<S::Ok, S::Error> {
    [layers.start, layers.end].serialize(to)
}

fn pairs<S: Serializer>(layers: &[Layers], to: S) -> Result<S::Ok, S::Error> {
    layers.iter().map(|l| [l.start, l.end]).collect::<Vec<_>>().serialize(to)
}

/// Lays it out.
///
/// # Errors
/// What is [`Missing`], when it does not fit; or a plan that breaks a rule, which would be a bug.
pub fn plan(question: &PlanQuestion<'_>) -> anyhow::Result<PlanOutcome> {
    let (wanted, members) = (question.wanted(), question.members(0));
    let layout = question.laid(0)?;
    if !covers(&layout) {
        return Err(Missing::of(question)?.into());
    }
    let findings = lint(&layout.topology, &wanted, &members);
    if let Some(error) = findings.iter().find(|finding| finding.is_error()) {
        bail!("{error}");
    }
    let mut findings: Vec<String> = findings.iter().map(ToString::to_string).collect();
    if let Some(shortage) = Missing::for_shadows(question, &layout)? {
        findings.push(shortage);
    }
    let mut stages = question
        .machines
        .iter()
        .filter_map(|machine| Some((machine, layout.topology.peer(&machine.name.as_str().into())?)))
        .map(|(machine, peer)| stage(question, machine, peer))
        .collect::<anyhow::Result<Vec<Stage>>>()?;
    stages.sort_by_key(|of| (of.peer.span.is_empty(), of.peer.span.start));
    let idle = stages.iter().map(|of| &of.peer).filter(|p| p.span.is_empty() && p.shadows.is_empty());
    findings.extend(idle.map(|peer| format!("{} has nothing to do", peer.name)));
    let lengths = LENGTHS.into_iter().filter(|length| *length < question.positions);
    Ok(PlanOutcome {
        layers: wanted.layers(),
        positions: question.positions,
        sessions: lengths.chain([question.positions]).filter_map(|p| sessions(&stages, p)).collect(),
        losses: losses(&layout.topology, question.machines),
        reason: layout.reason.to_string(),
        peers: stages.into_iter().map(|of| of.peer).collect(),
        findings,
    })
}

/// A peer and how it divides its memory.
struct Stage {
    peer: PeerPlan,
    budget: MemoryBudget,
    fit: Fit,
}

/// What the stage on `machine` does with its memory when it is given what `peer` says.
fn stage(question: &PlanQuestion<'_>, machine: &Machine, peer: &TopologyPeer) -> anyhow::Result<Stage> {
    let budget = MemoryBudget::new(machine.memory, question.needs.clone());
    let fit = match budget.fit(peer.span, &peer.shadows, &BTreeSet::new()) {
        Err(error) if !peer.span.is_empty() => return Err(error.into()),
        fit => fit.unwrap_or_default(),
    };
    let weights = question.needs.weights(&peer.span.iter().collect());
    let all = question.needs.weights(&fit.layers);
    let peer = PeerPlan {
        name: machine.name.clone(),
        spot: machine.spot,
        span: peer.span,
        shadows: ranges(&fit.layers.iter().copied().filter(|l| !peer.span.contains(*l)).collect()),
        memory_bytes: machine.memory,
        weight_bytes: weights,
        shadow_bytes: all.saturating_sub(weights),
        kv_bytes: fit.kv_bytes,
        journal_bytes: fit.journal_bytes,
        other_bytes: machine.memory.saturating_sub(all + fit.kv_bytes + fit.journal_bytes),
    };
    Ok(Stage { peer, budget, fit })
}

/// Each session needs room on all stages: that with the least decides.
fn sessions(stages: &[Stage], positions: u32) -> Option<Sessions> {
    let working = stages.iter().filter(|of| !of.peer.span.is_empty());
    let room = working.map(|of| (of.budget.sequences(of.peer.span, &of.fit, positions), &of.peer.name));
    let (sessions, name) = room.min()?;
    Some(Sessions { positions, sessions, bound_by: name.clone() })
}

/// Each machine alone, and all spot machines together.
fn losses(topology: &Topology, machines: &[Machine]) -> Vec<Consequence> {
    let works = |name: &PeerName| topology.peer(name).is_some_and(|peer| !peer.span.is_empty());
    let names = |spot: bool| {
        let of = machines.iter().filter(move |machine| machine.spot || !spot);
        of.map(|machine| PeerName::from(machine.name.as_str())).filter(works)
    };
    let spot: BTreeSet<PeerName> = names(true).collect();
    let mut lost: Vec<BTreeSet<PeerName>> = names(false).map(|name| BTreeSet::from([name])).collect();
    lost.extend((spot.len() > 1).then_some(spot));
    let loss = |lost: BTreeSet<PeerName>| {
        let after = degrade(topology, &lost);
        let held = layer_set(&coverage(&after));
        let unheld: BTreeSet<u32> = (0..topology.layers).filter(|layer| !held.contains(layer)).collect();
        let orphans: BTreeSet<u32> =
            lost.iter().filter_map(|name| topology.peer(name)).flat_map(|peer| peer.span.iter()).collect();
        let takes = after.peers.iter().filter(|peer| {
            let now = topology.peer(&peer.name).map(|before| before.span).unwrap_or_default();
            peer.hold().iter().flat_map(|l| l.iter()).any(|l| orphans.contains(&l) && !now.contains(l))
        });
        Consequence {
            taken_over_by: takes.map(|peer| peer.name.to_string()).collect(),
            unheld: ranges(&unheld),
            peers: lost.iter().map(ToString::to_string).collect(),
        }
    };
    lost.into_iter().map(loss).collect()
}
