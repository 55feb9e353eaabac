//! What the planner is given, from what can be seen from outside. Pure.
//!
//! The operator knows from its peers how large each layer is, how much room each peer has and how fast it was over minutes. From outside only
//! sums are seen, so layers are taken as equal, and room and speed as sufficient and alike: [`ASSUMED`].

use std::collections::BTreeMap;

use dunlin_crds::names::{GRPC_PORT, ROLE_STAGE};
use dunlin_crds::{InferenceSwarm, peers_wanted};
use dunlin_planner::{LayoutGoal, Member};
use dunlin_swarm::{Layers, PeerState, Topology};

use crate::pages::{GatewayPage, figures};
use crate::pods::PodFacts;
use crate::status::serving::is_spot;

/// What is not known from outside, and how it is taken.
pub const ASSUMED: &str = "taken for granted: layers are of one size, peers have room for them and compute equally fast; the operator knows each, \
     and may cut the layers elsewhere when it cuts them anew";

/// What the planner is given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inputs {
    /// What a layout is for.
    pub wanted: LayoutGoal,
    /// Peers that may be given layers.
    pub members: Vec<Member>,
    /// By pool: its name, peers wanted, peers that are there, and of them those without a node.
    pub pools: Vec<(String, u32, usize, usize)>,
}

/// `pages`: of gateways; `metrics`: of peers, by pod.
#[must_use]
pub fn inputs(
    swarm: &InferenceSwarm,
    topology: &Topology,
    pods: &[PodFacts],
    pages: &[GatewayPage],
    metrics: &BTreeMap<String, String>,
) -> Inputs {
    let spec = &swarm.spec;
    let there: Vec<&PodFacts> =
        pods.iter().filter(|p| p.role == ROLE_STAGE && !p.is_over() && !p.deleting).collect();
    let pool = |(pool, peers): (&dunlin_crds::PoolSpec, u32)| {
        let of: Vec<_> = there.iter().filter(|p| p.pool == pool.name).collect();
        let homeless = of.iter().filter(|p| p.unschedulable.is_some()).count();
        (pool.name.clone(), if spec.suspend { 0 } else { peers }, of.len(), homeless)
    };
    let pools: Vec<_> = spec.pools.iter().zip(peers_wanted(&spec.pools, spec.replicas)).map(pool).collect();
    let peers = pools.iter().map(|(_, peers, ..)| *peers as usize).sum();
    let layer_bytes = vec![layer_bytes(metrics); topology.layers as usize];
    let wanted = LayoutGoal {
        model: topology.model.clone(),
        layer_bytes,
        peers,
        shadows: spec.redundancy.shadows as usize,
        ..LayoutGoal::default()
    };
    let running = pods.iter().filter(|p| p.role == ROLE_STAGE && p.phase == "Running");
    let member = |pod: &PodFacts| {
        let before = topology.peer(&pod.name.as_str().into());
        let held = held(&pod.name, topology, pages);
        let state = match before.map(|b| b.state) {
            _ if pod.deleting => PeerState::Draining,
            Some(PeerState::Draining) => PeerState::Draining,
            _ if pod.ready => PeerState::Ready,
            _ => PeerState::Loading,
        };
        Member {
            name: pod.name.as_str().into(),
            // What is compared with the plan must not differ in what no plan is about.
            addr: before.map_or_else(|| format!("{}:{GRPC_PORT}", pod.name), |b| b.addr.clone()),
            pool: pod.pool.clone(),
            node: pod.node.clone(),
            zone: before.map(|b| b.zone.clone()).unwrap_or_default(),
            spot: is_spot(&spec.pools, &pod.pool),
            state,
            room_bytes: u64::MAX,
            speed: 0.0,
            held,
        }
    };
    Inputs { wanted, members: running.map(member).collect(), pools }
}

/// What `peer` holds: as a gateway heard from it, otherwise as planned.
#[must_use]
pub fn held(peer: &str, topology: &Topology, pages: &[GatewayPage]) -> Vec<Layers> {
    let heard = pages.iter().flat_map(|page| &page.peers).find(|p| p.name == peer && !p.held.is_empty());
    let planned = || topology.peer(&peer.into()).filter(|p| p.state != PeerState::Loading).map(|p| p.hold());
    heard.map(|p| p.held.clone()).or_else(planned).unwrap_or_default()
}

/// The mean size of a layer, as peers report their weights; 1 when nobody does.
fn layer_bytes(metrics: &BTreeMap<String, String>) -> u64 {
    let (mut bytes, mut layers) = (0.0, 0.0);
    for page in metrics.values() {
        let figures = figures(page);
        bytes += figures.get("dunlin_stage_weight_bytes").copied().unwrap_or(0.0);
        layers += figures.get("dunlin_stage_layers").copied().unwrap_or(0.0);
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a size")]
    if layers > 0.0 { ((bytes / layers) as u64).max(1) } else { 1 }
}
