//! Others, and lists of them.

use std::collections::BTreeSet;

use dunlin_protocol::training::Mate;
use dunlin_protocol::training::mates::Mates;
use dunlin_swarm::PeerName;

use super::check::{MATES_MAX, MessageError, list, name, short};
use crate::proto::training as wire;

pub(super) fn mate_to_wire(Mate { name, addr, host }: Mate) -> wire::Mate {
    wire::Mate { name: name.0, addr, host }
}

pub(super) fn mate_from_wire(mate: wire::Mate) -> Result<Mate, MessageError> {
    Ok(Mate {
        name: name(mate.name, "mate.name")?,
        addr: short(mate.addr, "mate.addr")?,
        host: short(mate.host, "mate.host")?,
    })
}

pub(super) fn list_to_wire(mates: Vec<Mate>) -> Vec<wire::Mate> {
    mates.into_iter().map(mate_to_wire).collect()
}

pub(super) fn list_from_wire(mates: Vec<wire::Mate>, field: &'static str) -> Result<Vec<Mate>, MessageError> {
    list(mates, MATES_MAX, field)?.into_iter().map(mate_from_wire).collect()
}

pub(super) fn names_to_wire(names: impl IntoIterator<Item = PeerName>) -> Vec<String> {
    names.into_iter().map(|name| name.0).collect()
}

pub(super) fn names_from_wire(
    names: Vec<String>,
    field: &'static str,
) -> Result<Vec<PeerName>, MessageError> {
    list(names, MATES_MAX, field)?.into_iter().map(|text| name(text, field)).collect()
}

fn set_from_wire(names: Vec<String>, field: &'static str) -> Result<BTreeSet<PeerName>, MessageError> {
    let mut set = BTreeSet::new();
    for name in names_from_wire(names, field)? {
        if let Some(entry) = set.replace(name) {
            return Err(MessageError::Twice { field, entry: entry.0 });
        }
    }
    Ok(set)
}

pub(super) fn mates_to_wire(Mates { stage, shared }: Mates) -> wire::Mates {
    wire::Mates {
        stage: names_to_wire(stage),
        shared: shared.map(|(shard, peers)| wire::Shared { shard, peers: names_to_wire(peers) }),
    }
}

pub(super) fn mates_from_wire(mates: wire::Mates) -> Result<Mates, MessageError> {
    let shared = |shared: wire::Shared| -> Result<_, MessageError> {
        Ok((shared.shard, set_from_wire(shared.peers, "mates.shared.peers")?))
    };
    Ok(Mates {
        stage: set_from_wire(mates.stage, "mates.stage")?,
        shared: mates.shared.map(shared).transpose()?,
    })
}
