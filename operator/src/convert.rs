//! From the manifest to what the operator works with: defaults applied, quantities in numbers.

use dunlin_crds::{CapacityType, InferenceSwarm, PoolSpec};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::apply::pods::{Image, MODELS_DIR, PoolTemplate};
use crate::config::Config;
use crate::quantity::{bytes, millis};
use crate::roster::Wanted;

/// Memory of a worker whose quantity cannot be read; the schema does not let one pass.
const MEMORY_DEFAULT: u64 = 1 << 30;
/// Room for weights that a pool without `memory.disk` gets, in bytes.
const DISK_DEFAULT: u64 = 10 << 30;

/// A pool with the number of peers it should have.
#[derive(Clone, Debug)]
pub struct PoolDesired {
    /// What its pods look like.
    pub template: PoolTemplate,
    /// How many.
    pub peers: u32,
    /// How many there may be while other pools find no nodes.
    pub peers_max: u32,
}

/// A swarm as its manifest wants it.
#[derive(Clone, Debug)]
pub struct Desired {
    /// The name clients ask for.
    pub model: String,
    /// Fingerprint of the model's source: peers of different ones never work together.
    pub digest: String,
    /// Arguments about the model, for stages and gateways.
    pub model_args: Vec<String>,
    /// The PersistentVolumeClaim that has it, if one does.
    pub model_claim: Option<String>,
    /// Fingerprint of everything a worker is started with.
    pub template: String,
    /// Image of workers.
    pub image: Image,
    /// Pools in order of preference.
    pub pools: Vec<PoolDesired>,
    /// How many other peers hold each layer.
    pub shadows: u32,
    /// Gateway pods.
    pub gateways: u32,
    /// Room for what a gateway downloads, in bytes: that of the largest pool.
    pub gateway_cache_bytes: u64,
    /// Resources of a gateway container.
    pub gateway_resources: Value,
    /// Nothing should run.
    pub suspended: bool,
}

impl Desired {
    /// What `swarm` asks for.
    #[must_use]
    pub fn new(swarm: &InferenceSwarm, config: &Config) -> Self {
        let spec = &swarm.spec;
        let suspended = spec.suspend;
        let name = spec.model.name.clone().unwrap_or_else(|| swarm.name_any());
        let mut model_args = Vec::new();
        if let Some(http) = &spec.model.source.http {
            model_args.extend(["--model-url".to_owned(), http.url.clone()]);
            if let Some(sha256) = &http.sha256 {
                model_args.extend(["--model-sha256".to_owned(), sha256.clone()]);
            }
        }
        if let Some(volume) = &spec.model.source.volume {
            model_args.extend(["--model".to_owned(), format!("{MODELS_DIR}/{}", volume.path)]);
        }
        if let Some(positions) = spec.model.max_sequence_length {
            model_args.extend(["--max-seq-len".to_owned(), positions.to_string()]);
        }
        let digest = fingerprint(&json!(spec.model.source));
        let template = fingerprint(&json!([spec.model]));
        let pools = pools(&spec.pools, spec.replicas, suspended);
        Self {
            model: name,
            digest,
            model_args,
            model_claim: spec.model.source.volume.as_ref().map(|v| v.claim_name.clone()),
            template,
            image: image(config),
            shadows: spec.redundancy.shadows,
            gateways: if suspended { 0 } else { spec.gateway.replicas },
            gateway_cache_bytes: pools.iter().map(|p| p.template.disk_bytes).max().unwrap_or(DISK_DEFAULT),
            gateway_resources: json!(spec.gateway.resources),
            pools,
            suspended,
        }
    }

    /// The pods that are wanted.
    #[must_use]
    pub fn wanted(&self) -> Wanted<'_> {
        Wanted { pools: &self.pools, template: &self.template, suspended: self.suspended }
    }

    /// Peers in all pools.
    #[must_use]
    pub fn peers(&self) -> u32 {
        self.pools.iter().map(|p| p.peers).sum()
    }
}

/// Pools with the number of peers that each should have. `replicas`: of the first one.
#[must_use]
pub fn pools(pools: &[PoolSpec], replicas: Option<u32>, suspended: bool) -> Vec<PoolDesired> {
    let desired = pools.iter().enumerate().map(|(i, pool)| {
        let asked = if i == 0 { replicas } else { None };
        let peers = asked.unwrap_or(pool.peers.min);
        let cpu = &pool.device.cpu;
        PoolDesired {
            peers: if suspended { 0 } else { peers },
            peers_max: if suspended { 0 } else { pool.peers.max.max(peers) },
            template: PoolTemplate {
                name: pool.name.clone(),
                spot: pool.capacity_type == CapacityType::Spot,
                node_selector: pool.node_selector.clone(),
                cpu_millis: cpu.request.as_deref().and_then(millis).unwrap_or(u64::from(cpu.cores) * 1000),
                threads: cpu.cores,
                memory_bytes: bytes(&pool.memory.host).unwrap_or(MEMORY_DEFAULT),
                disk_bytes: pool.memory.disk.as_deref().and_then(bytes).unwrap_or(DISK_DEFAULT),
            },
        }
    });
    desired.collect()
}

/// Image and pull settings of all pods of swarms.
#[must_use]
pub fn image(config: &Config) -> Image {
    Image {
        reference: config.worker_image.clone(),
        pull_policy: config.worker_image_pull_policy.clone(),
        pull_secrets: config.image_pull_secrets.clone(),
    }
}

/// 16 hex digits that change when `value` does. Stable across processes and versions of the operator.
#[must_use]
pub fn fingerprint(value: &Value) -> String {
    use sha2::Digest;
    let digest = sha2::Sha256::digest(value.to_string().as_bytes());
    digest.iter().take(8).map(|b| format!("{b:02x}")).collect()
}
