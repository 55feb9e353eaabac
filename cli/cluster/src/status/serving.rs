//! What is shown of a swarm that serves. Pure.

use std::collections::BTreeMap;

use dunlin_crds::names::{ROLE_GATEWAY, ROLE_STAGE};
use dunlin_crds::{CapacityType, InferenceSwarm, PoolSpec};
use dunlin_swarm::{PeerState, Topology, TopologyPeer};
use dunlin_terminal::words::span;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::view::{GatewayView, PeerView, ServingView, SwarmHeader};
use crate::pages::{GatewayPage, by_label};
use crate::pods::PodFacts;
use crate::swarm::AnySwarm;

/// What the gateways said.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// By pod: its page, or why it could not be had.
    pub pages: BTreeMap<String, Result<GatewayPage, String>>,
    /// By pod: its metrics, where they could be had.
    pub metrics: BTreeMap<String, String>,
    /// Tokens generated a second.
    pub tokens_per_s: Option<f64>,
}

/// What both kinds say.
#[must_use]
pub fn head(swarm: &AnySwarm) -> SwarmHeader {
    let find = |kind: &str| swarm.conditions().iter().find(|c| c.type_ == kind);
    let told = |of: fn(&Condition) -> &String| find("Ready").map(of).cloned().unwrap_or_default();
    let degraded = find("Degraded").filter(|c| c.status == "True").map(|c| c.message.clone());
    SwarmHeader {
        id: swarm.id(),
        namespace: swarm.namespace(),
        ready: swarm.is_ready(),
        reason: told(|c| &c.reason),
        message: told(|c| &c.message),
        degraded,
        unread: Vec::new(),
    }
}

/// Whether `pool` is of preemptible capacity.
#[must_use]
pub fn is_spot(pools: &[PoolSpec], pool: &str) -> bool {
    pools.iter().any(|p| p.name == pool && p.capacity_type == CapacityType::Spot)
}

/// The swarm as its object, its topology, its pods and its gateways tell. `pods`: `None` when they may not be looked at.
#[must_use]
pub fn view(
    swarm: &InferenceSwarm,
    topology: Option<&Topology>,
    pods: Option<&[PodFacts]>,
    said: &Said,
) -> ServingView {
    let pods_known = pods.is_some();
    let status = swarm.status.clone().unwrap_or_default();
    let pages: Vec<&GatewayPage> = said.pages.values().filter_map(|page| page.as_ref().ok()).collect();
    let sessions = || pages.iter().flat_map(|page| &page.sessions);
    let mut recoveries: BTreeMap<String, u64> = BTreeMap::new();
    for page in said.metrics.values() {
        for (reason, count) in by_label(page, "dunlin_recoveries_total", "reason") {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a counter")]
            let count = count as u64;
            *recoveries.entry(reason).or_default() += count;
        }
    }
    let last = pages.iter().flat_map(|page| &page.recoveries).min_by_key(|r| r.ago_ms);
    let last_recovery = last.map(|r| {
        let ago = span(i64::try_from(r.ago_ms / 1000).unwrap_or(i64::MAX));
        format!("{ago} ago ({}), the next token after {} ms", r.reason, r.stall_ms)
    });
    ServingView {
        head: head(&AnySwarm::Inference(Box::new(swarm.clone()))),
        model: status.model.unwrap_or_default(),
        url: status.url.unwrap_or_default(),
        epoch: topology.map_or(status.epoch, |t| t.epoch),
        layers: topology.map_or(status.layers.total, |t| t.layers),
        served: status.layers.served,
        shadowed: status.layers.shadowed,
        peers: peers(&swarm.spec.pools, topology, pods),
        pods_known,
        gateways: pods
            .unwrap_or_default()
            .iter()
            .filter(|p| p.role == ROLE_GATEWAY && !p.is_over())
            .map(|p| gateway(p, said))
            .collect(),
        sessions: (!pages.is_empty()).then(|| sessions().count()),
        queued: sessions().filter(|s| s.phase.starts_with("queued")).count(),
        tokens_per_s: said.tokens_per_s,
        recoveries,
        last_recovery,
    }
}

fn gateway(pod: &PodFacts, said: &Said) -> GatewayView {
    let silent = said.pages.get(&pod.name).and_then(|page| page.as_ref().err());
    GatewayView { name: pod.name.clone(), node: pod.node.clone(), ready: pod.ready, silent: silent.cloned() }
}

fn peers(pools: &[PoolSpec], topology: Option<&Topology>, pods: Option<&[PodFacts]>) -> Vec<PeerView> {
    let is_known = pods.is_some();
    let pods = pods.unwrap_or_default();
    let planned: Vec<&TopologyPeer> = topology.iter().flat_map(|t| &t.peers).collect();
    let pod = |name: &str| pods.iter().find(|p| p.name == name);
    let of_plan = planned.iter().map(|peer| PeerView {
        name: peer.name.to_string(),
        node: peer.node.clone(),
        pool: peer.pool.clone(),
        spot: peer.spot,
        state: match (peer.state, pod(peer.name.as_str())) {
            (_, None) if !is_known => "not known".into(),
            (_, None) => "gone".into(),
            (_, Some(pod)) if pod.is_over() => "gone".into(),
            (PeerState::Draining, _) => "leaving".into(),
            (_, Some(pod)) if pod.deleting => "leaving".into(),
            (PeerState::Loading, _) => "loading".into(),
            (PeerState::Ready, Some(pod)) => state(pod),
        },
        span: peer.span,
        shadows: peer.shadows.clone(),
    });
    let is_planned = |pod: &&PodFacts| planned.iter().any(|peer| peer.name.as_str() == pod.name);
    let rest =
        pods.iter().filter(|p| p.role == ROLE_STAGE && !p.is_over() && !is_planned(p)).map(|pod| PeerView {
            name: pod.name.clone(),
            node: pod.node.clone(),
            pool: pod.pool.clone(),
            spot: is_spot(pools, &pod.pool),
            state: state(pod),
            ..PeerView::default()
        });
    let mut peers: Vec<PeerView> = of_plan.chain(rest).collect();
    peers.sort_by_key(|peer| (peer.span.is_empty(), peer.span.start, peer.name.clone()));
    peers
}

/// What a pod does, in a word.
#[must_use]
pub fn state(pod: &PodFacts) -> String {
    let word = match pod.phase.as_str() {
        _ if pod.deleting => "leaving",
        _ if pod.ready => "ready",
        "Pending" if pod.unschedulable.is_some() => "no node",
        "Pending" => "starting",
        "Running" => "not ready",
        _ => "gone",
    };
    word.to_owned()
}
