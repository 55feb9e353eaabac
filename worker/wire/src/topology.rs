//! Topologies on the wire. What arrives is checked as one that is read from a ConfigMap.

use dunlin_swarm::{Layers, ModelId, PeerState, Topology, TopologyPeer};

use crate::convert::{Senseless, layers_from_wire, layers_to_wire};
use crate::proto;

/// An order to a stage, also for builds that read JSON alone.
#[must_use]
pub fn assignment(topology: &Topology) -> proto::Assignment {
    proto::Assignment { epoch: topology.epoch, json: json(topology), topology: Some(to_wire(topology)) }
}

/// The same for a gateway.
#[must_use]
pub fn push(topology: &Topology) -> proto::TopologyPush {
    proto::TopologyPush { json: json(topology), topology: Some(to_wire(topology)) }
}

fn json(topology: &Topology) -> String {
    // It has no keys that are no texts.
    serde_json::to_string(topology).unwrap_or_default()
}

fn to_wire(topology: &Topology) -> proto::Topology {
    let peer = |peer: &TopologyPeer| proto::TopologyPeer {
        name: peer.name.0.clone(),
        addr: peer.addr.clone(),
        pool: peer.pool.clone(),
        node: peer.node.clone(),
        zone: peer.zone.clone(),
        spot: peer.spot,
        span: Some(layers_to_wire(peer.span)),
        shadows: peer.shadows.iter().copied().map(layers_to_wire).collect(),
        state: match peer.state {
            PeerState::Loading => proto::PeerState::Loading,
            PeerState::Ready => proto::PeerState::Ready,
            PeerState::Draining => proto::PeerState::Draining,
        }
        .into(),
    };
    proto::Topology {
        epoch: topology.epoch,
        model: topology.model.name.clone(),
        digest: topology.model.digest.clone(),
        layers: topology.layers,
        peers: topology.peers.iter().map(peer).collect(),
    }
}

/// The topology of an order.
///
/// # Errors
/// When there is none, or it is not sound.
pub fn from_wire(topology: Option<proto::Topology>) -> Result<Topology, String> {
    let topology = topology.ok_or("an order without a topology; is the operator older than this process?")?;
    let peer = |peer: proto::TopologyPeer| -> Result<TopologyPeer, Senseless> {
        Ok(TopologyPeer {
            // A state that is not known here is one in which it serves.
            state: match peer.state() {
                proto::PeerState::Loading => PeerState::Loading,
                proto::PeerState::Ready => PeerState::Ready,
                proto::PeerState::Draining => PeerState::Draining,
            },
            name: peer.name.into(),
            addr: peer.addr,
            pool: peer.pool,
            node: peer.node,
            zone: peer.zone,
            spot: peer.spot,
            span: layers_from_wire(peer.span)?,
            shadows: peer
                .shadows
                .into_iter()
                .map(|layers| layers_from_wire(Some(layers)))
                .collect::<Result<Vec<Layers>, _>>()?,
        })
    };
    let peers: Result<_, Senseless> = topology.peers.into_iter().map(peer).collect();
    let topology = Topology {
        epoch: topology.epoch,
        model: ModelId { name: topology.model, digest: topology.digest },
        layers: topology.layers,
        peers: peers.map_err(|error| error.to_string())?,
    };
    topology.validate().map_err(|error| error.to_string())?;
    Ok(topology)
}

#[cfg(test)]
mod tests {
    use dunlin_swarm::{LAYERS_MAX, PEERS_MAX};
    use prost::Message;

    use super::*;

    fn topology() -> Topology {
        let peer = |name: &str, span, shadows, state| TopologyPeer {
            name: name.into(),
            addr: format!("{name}:1"),
            pool: "spot".to_owned(),
            node: "n1".to_owned(),
            zone: "z".to_owned(),
            spot: true,
            span,
            shadows,
            state,
        };
        Topology {
            epoch: u64::MAX,
            model: ModelId { name: "m".to_owned(), digest: "d".to_owned() },
            layers: 6,
            peers: vec![
                peer("a", Layers::new(0, 3), vec![Layers::new(4, 6)], PeerState::Ready),
                peer("b", Layers::new(3, 6), vec![], PeerState::Draining),
                peer("c", Layers::new(0, 0), vec![], PeerState::Loading),
            ],
        }
    }

    #[test]
    fn a_topology_comes_back_as_it_was_also_as_json() {
        let topology = topology();
        let order = assignment(&topology);
        assert_eq!((order.epoch, Topology::parse(&order.json).unwrap()), (u64::MAX, topology.clone()));
        assert_eq!(from_wire(order.topology), Ok(topology.clone()));
        let push = push(&topology);
        assert_eq!(Topology::parse(&push.json).unwrap(), topology);
        // With a field that a later build says.
        let mut bytes = push.topology.unwrap().encode_to_vec();
        bytes.extend([0xfa, 0x01, 3, b'n', b'e', b'w']);
        assert_eq!(from_wire(Some(proto::Topology::decode(&bytes[..]).unwrap())), Ok(topology));
    }

    #[test]
    fn a_topology_that_cannot_be_is_refused() {
        let refused = |change: &dyn Fn(&mut proto::Topology)| {
            let mut wire = to_wire(&topology());
            change(&mut wire);
            from_wire(Some(wire)).unwrap_err()
        };
        assert!(from_wire(None).unwrap_err().contains("without a topology"));
        assert!(refused(&|t| t.layers = LAYERS_MAX + 1).contains("layers"));
        assert!(refused(&|t| t.peers = vec![t.peers[2].clone(); PEERS_MAX + 1]).contains("peers"));
        assert!(refused(&|t| t.peers[1].name = "a".to_owned()).contains("listed twice"));
        assert!(refused(&|t| t.peers[1].span = None).contains("no layers"));
        assert!(
            refused(&|t| t.peers[1].span = Some(proto::Layers { start: 3, end: 7 })).contains("6 layers")
        );
    }
}
