//! The ConfigMap from which a gateway or a new operator learns the topology when nobody is there to push it.

use dunlin_planner::Topology;
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

use crate::labels::Owner;

/// Key of the JSON in the ConfigMap and name of the file that gateways mount.
pub const KEY: &str = "topology.json";

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_typed, owner};

    #[test]
    fn what_is_written_is_read_back() {
        let topology = Topology { epoch: 7, layers: 30, ..Topology::default() };
        let map = config_map(&owner(), &topology).unwrap();
        assert_typed::<ConfigMap>(&map);
        assert_eq!(read(&serde_json::from_value(map).unwrap()), Some(topology));
        assert_eq!(read(&ConfigMap::default()), None);
    }
}
