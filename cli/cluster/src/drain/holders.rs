//! What would be lost with a peer, and what became of its sessions. Pure.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_swarm::{Layers, PeerState, Topology, layer_set, ranges};

use crate::pages::GatewayPage;
use crate::plan::inputs::held;
use crate::pods::PodFacts;

/// Layers that `leaving` holds and nobody else who stays and is ready: without them the swarm does not serve.
#[must_use]
pub fn last_held(
    leaving: &str,
    topology: &Topology,
    pods: &[PodFacts],
    pages: &[GatewayPage],
) -> Vec<Layers> {
    let stays = |name: &str| {
        let ready = pods.iter().any(|p| p.name == name && p.ready && !p.deleting);
        let planned = topology.peer(&name.into()).is_none_or(|p| p.state != PeerState::Draining);
        name != leaving && ready && planned
    };
    let others = topology.peers.iter().filter(|p| stays(p.name.as_str()));
    let others: BTreeSet<u32> =
        others.flat_map(|p| layer_set(&held(p.name.as_str(), topology, pages))).collect();
    let own = layer_set(&held(leaving, topology, pages));
    ranges(&own.difference(&others).copied().collect())
}

/// Sessions by gateway and id, each with whether it goes over `peer`.
#[must_use]
pub fn sessions(pages: &BTreeMap<String, Result<GatewayPage, String>>, peer: &str) -> BTreeMap<String, bool> {
    let pages = pages.iter().filter_map(|(pod, page)| Some((pod, page.as_ref().ok()?)));
    let sessions = pages.flat_map(|(pod, page)| page.sessions.iter().map(move |s| (pod, s)));
    sessions.map(|(pod, session)| (format!("{pod} {}", session.id), session.is_on(peer))).collect()
}

/// Of the sessions that were on a peer at some time: those that go on elsewhere, and those that have ended since.
#[must_use]
pub fn outcome(were: &BTreeSet<String>, now: &BTreeMap<String, bool>) -> (usize, usize) {
    let over = were.iter().filter(|id| now.get(*id) == Some(&false)).count();
    let ended = were.iter().filter(|id| !now.contains_key(*id)).count();
    (over, ended)
}

#[cfg(test)]
mod tests {
    use dunlin_swarm::TopologyPeer;
    use serde_json::json;

    use super::*;

    fn topology() -> Topology {
        let peer = |name: &str, span: (u32, u32), shadows: &[(u32, u32)], state| TopologyPeer {
            name: name.into(),
            span: Layers::new(span.0, span.1),
            shadows: shadows.iter().map(|(a, b)| Layers::new(*a, *b)).collect(),
            state,
            ..TopologyPeer::default()
        };
        let peers = vec![
            peer("a", (0, 10), &[(10, 15)], PeerState::Ready),
            peer("b", (10, 20), &[(0, 10)], PeerState::Ready),
            peer("c", (20, 30), &[], PeerState::Draining),
        ];
        Topology { epoch: 1, layers: 30, peers, ..Topology::default() }
    }

    fn pods(ready: &[&str]) -> Vec<PodFacts> {
        let pod = |name: &&str| PodFacts { name: (*name).into(), ready: true, ..PodFacts::default() };
        ready.iter().map(pod).collect()
    }

    #[test]
    fn the_last_holder_of_layers_is_found() {
        let all = pods(&["a", "b", "c"]);
        let last =
            |name: &str, pods: &[PodFacts], pages: &[GatewayPage]| last_held(name, &topology(), pods, pages);
        assert_eq!(last("a", &all, &[]), []);
        assert_eq!(last("b", &all, &[]), [Layers::new(15, 20)]);
        assert_eq!(last("c", &all, &[]), [Layers::new(20, 30)]);
        assert_eq!(last("a", &pods(&["a", "c"]), &[]), [Layers::new(0, 15)], "b is not ready");
        // What a peer has in truth is what counts.
        let page = json!({"peers": [{"name": "a", "held": [{"start": 0, "end": 30}]}]});
        assert_eq!(last("b", &all, &[serde_json::from_value(page).unwrap()]), []);
    }

    #[test]
    fn sessions_go_over_or_end() {
        let page: GatewayPage = serde_json::from_value(json!({"sessions": [
            {"id": "1", "route": ["a [0,10)", "b [10,30)"]}, {"id": "2", "route": ["b [0,30)"]}
        ]}))
        .unwrap();
        let pages = BTreeMap::from([("g".to_owned(), Ok(page)), ("h".to_owned(), Err("away".to_owned()))]);
        let now = sessions(&pages, "a");
        assert_eq!(now, BTreeMap::from([("g 1".to_owned(), true), ("g 2".to_owned(), false)]));
        let were = ["g 1", "g 2", "g 3"].map(str::to_owned).into();
        assert_eq!(outcome(&were, &now), (1, 1), "one is still there");
    }
}
