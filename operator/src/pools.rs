//! Pools of peers as a manifest wants them: defaults applied, quantities in numbers.

use dunlin_crds::{CapacityType, PoolSpec, peers_wanted};

use crate::apply::pods::PoolTemplate;
use crate::quantity::{bytes, millis};

/// Memory of a worker whose quantity cannot be read; the schema does not let one pass.
const MEMORY_DEFAULT: u64 = 1 << 30;
/// Room for weights that a pool without `memory.disk` gets, in bytes.
pub const DISK_DEFAULT: u64 = 10 << 30;

/// A pool with the number of peers it should have.
#[derive(Clone, Debug)]
pub struct PoolDesired {
    /// What its pods look like.
    pub template: PoolTemplate,
    /// Fingerprint of them; see [`crate::apply::pods::WorkerPod::hash`].
    pub hash: String,
    /// Peers that it should have.
    pub peers: u32,
    /// How many there may be while other pools find no nodes.
    pub peers_max: u32,
}

/// Pools with the number of peers that each should have. `replicas`: of the first one, if its own least is not more.
#[must_use]
pub fn pools(pools: &[PoolSpec], replicas: u32, suspended: bool) -> Vec<PoolDesired> {
    let desired = pools.iter().zip(peers_wanted(pools, replicas)).map(|(pool, peers)| {
        let cpu = &pool.device.cpu;
        PoolDesired {
            peers: if suspended { 0 } else { peers },
            peers_max: if suspended { 0 } else { pool.peers.max.max(peers) },
            template: PoolTemplate {
                name: pool.name.clone(),
                spot: pool.capacity_type == CapacityType::Spot,
                node_selector: pool.node_selector.clone(),
                cpu_millis: cpu.request.as_deref().and_then(millis).unwrap_or(u64::from(cpu.cores) * 1000),
                cpu_millis_max: cpu.limit.as_deref().and_then(millis),
                threads: cpu.cores,
                nvidia: pool.device.nvidia.clone(),
                memory_bytes: bytes(&pool.memory.host).unwrap_or(MEMORY_DEFAULT),
                disk_bytes: pool.memory.disk.as_deref().and_then(bytes).unwrap_or(DISK_DEFAULT),
                disk_request_bytes: 0,
                extra: pool.pod_template.clone().unwrap_or_default(),
            },
            hash: String::new(),
        }
    });
    desired.collect()
}

/// Name of the pool whose size `/scale` sets.
#[must_use]
pub fn scaled(pools: &[PoolDesired]) -> Option<&str> {
    pools.first().map(|pool| pool.template.name.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn replicas_make_the_first_pool_larger_and_never_smaller_than_its_least() {
        let pool = |name: &str, min: u32| -> PoolSpec {
            let (peers, cpu) = (json!({"min": min, "max": 6}), json!({"cores": 1}));
            let memory = json!({"host": "512Mi"});
            let pool = json!({"name": name, "peers": peers, "device": {"cpu": cpu}, "memory": memory});
            serde_json::from_value(pool).unwrap()
        };
        let specs = [pool("spot", 3), pool("steady", 2)];
        let sizes = |replicas, suspended| {
            pools(&specs, replicas, suspended).iter().map(|p| p.peers).collect::<Vec<_>>()
        };
        assert_eq!(sizes(1, false), [3, 2], "what a manifest without replicas says");
        assert_eq!((sizes(3, false), sizes(5, false)), (vec![3, 2], vec![5, 2]));
        assert_eq!(sizes(5, true), [0, 0]);
        assert_eq!(scaled(&pools(&specs, 1, false)), Some("spot"));
    }
}
