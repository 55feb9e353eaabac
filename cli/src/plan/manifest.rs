//! What a manifest asks for, as a model and machines.

use std::path::Path;

use anyhow::{Context, anyhow, bail};
use dunlin_crds::{CapacityType, InferenceSwarm, ModelSource, peers_wanted};
use dunlin_worker::model::NamedAdapter;
use serde_json::Value;

use super::machines::{MACHINES_MAX, Machine};
use crate::size;

/// What a manifest asks for.
#[derive(Debug)]
pub(super) struct Manifest {
    /// Where the model is; `None` for one on a volume, which is not to be seen from here.
    pub model: Option<String>,
    /// One for each peer.
    pub machines: Vec<Machine>,
    /// Other peers that keep each layer ready.
    pub shadows: usize,
    /// Longest sequence, if it says.
    pub positions: Option<u32>,
    /// Names of adapters.
    pub adapters: Vec<String>,
}

impl Manifest {
    /// Whether an argument names a file with manifests.
    pub(super) fn is_named_by(argument: &str) -> bool {
        [".yaml", ".yml", ".json"].iter().any(|ending| argument.ends_with(ending))
    }

    /// Reads the file.
    ///
    /// # Errors
    /// When it cannot be read, or has not one InferenceSwarm in it.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
        let mut swarms = documents.into_iter().filter(|document| document["kind"] == "InferenceSwarm");
        let (Some(swarm), None) = (swarms.next(), swarms.next()) else {
            bail!("a plan is of one InferenceSwarm: leave that one in the file")
        };
        Self::of(&serde_json::from_value(swarm)?)
    }

    fn of(swarm: &InferenceSwarm) -> anyhow::Result<Self> {
        let spec = &swarm.spec;
        let mut machines = Vec::new();
        for (pool, peers) in spec.pools.iter().zip(peers_wanted(&spec.pools, spec.replicas)) {
            let memory = size::parse(&pool.memory.host)
                .map_err(|why| anyhow!("memory.host of pool {}: {why}", pool.name))?;
            let width = peers.to_string().len();
            machines.extend((1..=peers).map(|number| Machine {
                name: format!("{}-{number:0width$}", pool.name),
                memory,
                spot: pool.capacity_type == CapacityType::Spot,
            }));
        }
        if machines.is_empty() || machines.len() > MACHINES_MAX {
            bail!("it asks for {} peers; a plan is of 1 to {MACHINES_MAX}", machines.len());
        }
        let ModelSource { http, .. } = &spec.model.source;
        Ok(Self {
            model: http.as_ref().map(|http| http.url.clone()),
            machines,
            shadows: spec.redundancy.shadows as usize,
            positions: spec.model.max_sequence_length,
            adapters: spec.adapters.iter().map(|adapter| adapter.name.clone()).collect(),
        })
    }

    /// Adapters take memory: those of the manifest have to be given, too, as their volumes are not to be seen from here.
    ///
    /// # Errors
    /// The first one that is missing.
    pub(super) fn check(&self, given: &[NamedAdapter]) -> anyhow::Result<()> {
        match self.adapters.iter().find(|name| !given.iter().any(|given| *given.name == ***name)) {
            None => Ok(()),
            Some(name) => {
                bail!(
                    "adapter {name} is on a volume, which is not to be seen from here: give its folder with --adapter {name}=PATH"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Manifest;

    const TEXT: &str = "\
# A claim, and the swarm.
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: models}
---
apiVersion: dunlin.dev/v1alpha1
kind: InferenceSwarm
metadata: {name: m}
spec:
  model: {source: {volume: {claimName: models, path: m.gguf}}, maxSequenceLength: 1024}
  adapters: [{name: terse, source: {volume: {claimName: a, path: terse}}}]
  replicas: 3
  pools:
    - {name: spot, capacityType: Spot, peers: {min: 2, max: 4}, device: {cpu: {cores: 1}}, memory: {host: 512Mi}}
    - {name: steady, capacityType: OnDemand, peers: {min: 1, max: 1}, device: {cpu: {cores: 1}}, memory: {host: 1Gi}}
";

    #[test]
    fn pools_are_machines() {
        let found = Manifest::parse(TEXT).unwrap();
        let machines = found.machines.iter().map(|m| format!("{} {} {}", m.name, m.memory >> 20, m.spot));
        assert_eq!(
            machines.collect::<Vec<_>>(),
            ["spot-1 512 true", "spot-2 512 true", "spot-3 512 true", "steady-1 1024 false"]
        );
        assert_eq!((found.model.as_deref(), found.shadows, found.positions), (None, 1, Some(1024)));
        let missing = found.check(&[]).unwrap_err().to_string();
        assert!(missing.contains("--adapter terse=PATH"), "{missing}");
    }

    #[test]
    fn a_plan_is_of_one_swarm_that_serves() {
        let twice = format!("{TEXT}---\n{}", TEXT.split("---\n").nth(1).unwrap());
        for text in [&twice, "kind: TrainingSwarm\n", ""] {
            let refused = Manifest::parse(text).unwrap_err().to_string();
            assert!(refused.contains("one InferenceSwarm"), "{refused}");
        }
        assert!(Manifest::is_named_by("a/b.yaml") && !Manifest::is_named_by("isw/m"));
    }
}
