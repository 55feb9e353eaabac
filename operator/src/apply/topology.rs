//! The ConfigMap from which a gateway or a new operator learns the topology when nobody is there to push it.
//!
//! It is also the fence between leaders: each write names the version it replaces. A leader that was cut off, and whose writes arrive only when
//! another one has long taken over, changes nothing.

use dunlin_swarm::Topology;
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

use crate::labels::Owner;

pub use dunlin_crds::names::TOPOLOGY_KEY as KEY;

/// The ConfigMap.
///
/// # Errors
/// When the topology cannot be written as JSON.
pub fn config_map(owner: &Owner, topology: &Topology) -> Result<Value, serde_json::Error> {
    Ok(json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": owner.metadata(&owner.topology(), ""),
        "data": {KEY: serde_json::to_string(topology)?},
    }))
}

/// What an earlier operator wrote; nothing when it cannot be read: the next plan then starts from what the workers report.
#[must_use]
pub fn read(map: &ConfigMap) -> Option<Topology> {
    Topology::parse(map.data.as_ref()?.get(KEY)?).ok()
}

/// What to go on with when `found` is published and we believed in `ours`: the newer one; where ours is not older but another, it gets an
/// epoch that is newer than both.
#[must_use]
pub fn reconciled(ours: Option<Topology>, found: Option<Topology>) -> Option<Topology> {
    match (ours, found) {
        (Some(ours), Some(found)) if found.epoch > ours.epoch || found == ours => Some(found),
        (Some(ours), Some(found)) => Some(Topology { epoch: ours.epoch.max(found.epoch + 1), ..ours }),
        (ours, found) => ours.or(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_typed, owner};

    #[test]
    fn of_two_topologies_the_newer_one_goes_on() {
        let topology = |epoch, layers| Some(Topology { epoch, layers, ..Topology::default() });
        assert_eq!(reconciled(None, topology(3, 1)), topology(3, 1));
        assert_eq!(reconciled(topology(3, 1), None), topology(3, 1));
        assert_eq!(reconciled(topology(3, 1), topology(5, 2)), topology(5, 2));
        assert_eq!(reconciled(topology(3, 1), topology(3, 1)), topology(3, 1));
        assert_eq!(reconciled(topology(3, 1), topology(3, 2)), topology(4, 1), "two of one epoch");
        assert_eq!(reconciled(topology(7, 1), topology(3, 2)), topology(7, 1), "an old one was put back");
    }

    #[test]
    fn what_is_written_is_read_back() {
        let topology = Topology { epoch: 7, layers: 30, ..Topology::default() };
        let map = config_map(&owner(), &topology).unwrap();
        assert_typed::<ConfigMap>(&map);
        assert_eq!(read(&serde_json::from_value(map).unwrap()), Some(topology));
        assert_eq!(read(&ConfigMap::default()), None);
    }
}
