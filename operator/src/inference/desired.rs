//! From the manifest of an InferenceSwarm to what the operator works with: arguments, volumes, pods.

use std::collections::BTreeMap;

use dunlin_crds::{InferenceSwarm, InferenceSwarmSpec, PodTemplateSpec};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::apply::gateway::{self, Gateway};
use crate::apply::network::GRPC_PORT;
use crate::apply::parts::{Image, Mount, model_environment};
use crate::apply::pods::{ADAPTERS_DIR, MODELS_DIR, Nodes, PoolTemplate, WorkerPod, stage_args};
use crate::config::Config;
use crate::key::Kind;
use crate::labels::{Owner, ROLE_GATEWAY, ROLE_STAGE, fingerprint};
use crate::observe::WorkerView;
use crate::pools::{DISK_DEFAULT, PoolDesired, pools};
use crate::roster::{WantedPods, is_current};

/// A swarm as its manifest wants it.
#[derive(Clone, Debug)]
pub struct InferenceDesired {
    /// `metadata.generation` of the manifest.
    pub generation: i64,
    /// The name clients ask for.
    pub model: String,
    /// Fingerprint of the model's source: peers of different ones never work together, and pods of another one go at once.
    pub digest: String,
    /// Arguments about the model and its adapters, for stages and gateways.
    pub model_args: Vec<String>,
    /// Volumes that have them.
    pub mounts: Vec<Mount>,
    /// Roles that read from a URL.
    pub outside: Vec<&'static str>,
    /// Fingerprint of all that pods are made from, of every pool: others may do what these could not.
    pub edition: String,
    /// Image of workers.
    pub image: Image,
    /// Pools in order of preference.
    pub pools: Vec<PoolDesired>,
    /// How many other peers hold each layer.
    pub shadows: u32,
    /// Gateway pods.
    pub gateways: u32,
    /// Seconds that each has for answers it has begun.
    pub drain_s: u32,
    /// Room for what a gateway downloads, in bytes: that of the largest pool.
    pub gateway_cache_bytes: u64,
    /// Resources of a gateway container.
    pub gateway_resources: Value,
    /// What gateways get beside what they need.
    pub gateway_extra: PodTemplateSpec,
    /// Fingerprint of their pods.
    pub gateway_hash: String,
    /// Nothing should run.
    pub suspended: bool,
}

impl InferenceDesired {
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
        let (adapter_args, mounts) = adapters(spec);
        model_args.extend(adapter_args);
        let digest = fingerprint(&json!(spec.model.source));
        let mut pools = pools(&spec.pools, spec.replicas, suspended);
        let gateway_cache_bytes = pools.iter().map(|p| p.template.disk_bytes).max().unwrap_or(DISK_DEFAULT);
        // What has a digest is copied, to check it; everything else is read where it is.
        let copied = spec.model.source.http.as_ref().is_some_and(|http| http.sha256.is_some());
        if copied {
            pools.iter_mut().for_each(|pool| pool.template.request_disk());
        }
        let mut desired = Self {
            generation: swarm.metadata.generation.unwrap_or_default(),
            model: name,
            digest,
            model_args,
            mounts,
            outside: if spec.model.source.http.is_some() { vec![ROLE_STAGE, ROLE_GATEWAY] } else { vec![] },
            edition: String::new(),
            image: config.image(),
            shadows: spec.redundancy.shadows,
            gateways: if suspended { 0 } else { spec.gateway.replicas },
            drain_s: spec.gateway.drain_seconds,
            gateway_cache_bytes,
            gateway_resources: gateway::resources(
                spec.gateway.resources.as_ref(),
                copied.then_some(gateway_cache_bytes),
            ),
            gateway_extra: spec.gateway.pod_template.clone().unwrap_or_default(),
            gateway_hash: String::new(),
            pools,
            suspended,
        };
        desired.mark(&Owner::any(Kind::Inference, swarm.name_any()));
        desired
    }

    /// Takes the fingerprints of all pods.
    fn mark(&mut self, owner: &Owner) {
        let hash = |pool: &PoolDesired| self.stage(owner, "", &pool.template, true, None).hash();
        let hashes: Vec<String> = self.pools.iter().map(hash).collect();
        self.gateway_hash = self.gateway(owner).hash();
        self.edition = fingerprint(&json!([self.digest, hashes]));
        for (pool, hash) in self.pools.iter_mut().zip(hashes) {
            pool.hash = hash;
        }
    }

    /// The stage `name` in `pool`. `marked`: some node of the cluster carries a spot marker; `epoch`: of the plan that asks for it.
    #[must_use]
    pub fn stage<'a>(
        &'a self,
        owner: &'a Owner,
        name: &'a str,
        pool: &'a PoolTemplate,
        marked: bool,
        epoch: Option<u64>,
    ) -> WorkerPod<'a> {
        WorkerPod {
            owner,
            name,
            role: ROLE_STAGE,
            image: &self.image,
            pool,
            nodes: Nodes::Own { marked },
            args: stage_args(pool, &self.model_args),
            ports: &[("grpc", GRPC_PORT)],
            resources: None,
            mounts: self.mounts.clone(),
            environment: vec![model_environment(&self.digest)],
            template: &self.digest,
            epoch,
        }
    }

    /// What the gateways of this swarm are made from.
    #[must_use]
    pub fn gateway<'a>(&'a self, owner: &'a Owner) -> Gateway<'a> {
        Gateway {
            owner,
            image: &self.image,
            replicas: self.gateways,
            drain_s: self.drain_s,
            model: &self.model,
            digest: &self.digest,
            cache_bytes: self.gateway_cache_bytes,
            resources: &self.gateway_resources,
            extra: &self.gateway_extra,
            model_args: &self.model_args,
            mounts: &self.mounts,
        }
    }

    /// What `worker` was made from: [`Self::edition`] if it is as is wanted now.
    #[must_use]
    pub fn edition_of(&self, worker: &WorkerView) -> String {
        let current = worker.template == self.digest && is_current(&self.pools, worker);
        if current { self.edition.clone() } else { worker.hash.clone() }
    }

    /// The pods that are wanted.
    #[must_use]
    pub fn wanted(&self) -> WantedPods<'_> {
        WantedPods { pools: &self.pools, template: &self.digest, suspended: self.suspended }
    }

    /// Peers in all pools.
    #[must_use]
    pub fn peers(&self) -> u32 {
        self.pools.iter().map(|p| p.peers).sum()
    }
}

/// `--adapter` for each adapter, and the volumes with the model and adapters: each claim once.
fn adapters(spec: &InferenceSwarmSpec) -> (Vec<String>, Vec<Mount>) {
    let (mut args, mut mounts, mut folders) = (Vec::new(), Vec::new(), BTreeMap::new());
    if let Some(volume) = &spec.model.source.volume {
        mounts.push(Mount::claim("models", MODELS_DIR, &volume.claim_name, true));
        folders.insert(&volume.claim_name, MODELS_DIR.to_owned());
    }
    for adapter in &spec.adapters {
        let volume = &adapter.source.volume;
        let folder = folders.entry(&volume.claim_name).or_insert_with(|| {
            let folder = format!("{ADAPTERS_DIR}/{}", volume.claim_name);
            // The name of a claim may be longer than that of a volume, and have dots.
            let name = format!("adapters-{}", mounts.len());
            mounts.push(Mount::claim(&name, &folder, &volume.claim_name, true));
            folder
        });
        args.extend(["--adapter".to_owned(), format!("{}={folder}/{}", adapter.name, volume.path)]);
    }
    (args, mounts)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;
    use crate::testing::{assert_restricted, assert_typed, config, owner};

    const ON_A_VOLUME: (&str, &str) = ("models", "llama");

    /// What is wanted of a swarm with a model on a volume, or behind a URL, and adapters: (name, claim, path).
    fn desired(model: Option<(&str, &str)>, adapters: &[(&str, &str, &str)]) -> InferenceDesired {
        let volume = |claim: &str, path: &str| json!({"volume": {"claimName": claim, "path": path}});
        let source = model.map_or(json!({"http": {"url": "http://models/m.gguf"}}), |(c, p)| volume(c, p));
        let adapter =
            |(name, claim, path): &(&str, &str, &str)| json!({"name": name, "source": volume(claim, path)});
        let swarm = json!({
            "apiVersion": "dunlin.dev/v1alpha1",
            "kind": "InferenceSwarm",
            "metadata": {"name": "m"},
            "spec": {
                "model": {"source": source},
                "adapters": adapters.iter().map(adapter).collect::<Vec<_>>(),
                "pools": [{
                    "name": "spot",
                    "peers": {"min": 1, "max": 1},
                    "device": {"cpu": {"cores": 1}},
                    "memory": {"host": "512Mi"},
                }],
            },
        });
        InferenceDesired::new(&serde_json::from_value(swarm).unwrap(), &config())
    }

    /// `claim at folder` for each volume with models or adapters of a stage.
    fn volumes(desired: &InferenceDesired) -> Vec<String> {
        let pool = &desired.pools[0].template;
        let pod = desired.stage(&owner(), "m-spot-x7x7x", pool, true, None).manifest();
        assert_typed::<Pod>(&pod);
        assert_restricted(&pod["spec"]);
        let list = |path: &str| pod.pointer(path).unwrap().as_array().unwrap().clone();
        let mounts = list("/spec/containers/0/volumeMounts");
        let claims = list("/spec/volumes").into_iter().filter(|v| v["persistentVolumeClaim"].is_object());
        let described = claims.map(|volume| {
            let mount = mounts.iter().filter(|m| m["name"] == volume["name"]).collect::<Vec<_>>();
            assert!(mount.len() == 1 && mount[0]["readOnly"] == true, "{volume} {mount:?}");
            let claim = volume["persistentVolumeClaim"]["claimName"].as_str().unwrap();
            format!("{claim} at {}", mount[0]["mountPath"].as_str().unwrap())
        });
        described.collect()
    }

    fn adapter_args(desired: &InferenceDesired) -> Vec<&str> {
        let pairs = desired.model_args.chunks(2).filter(|pair| pair[0] == "--adapter");
        pairs.map(|pair| pair[1].as_str()).collect()
    }

    #[test]
    fn an_adapter_beside_the_model_is_read_from_its_volume() {
        let desired = desired(Some(ON_A_VOLUME), &[("french", "models", "adapters/french")]);
        assert_eq!(desired.model_args[..2], ["--model", "/models/llama"]);
        assert_eq!(adapter_args(&desired), ["french=/models/adapters/french"]);
        assert_eq!(volumes(&desired), ["models at /models"]);
    }

    #[test]
    fn each_claim_is_mounted_once_and_adapters_keep_their_order() {
        let claim = "checkpoints.of-a.run";
        let adapters = [
            ("org/b:1", claim, "run/step-20"),
            ("tone", "tones", "polite"),
            ("beside", "models", "beside"),
            ("a", claim, "run/step-10"),
        ];
        let expected = [
            "org/b:1=/adapters/checkpoints.of-a.run/run/step-20",
            "tone=/adapters/tones/polite",
            "beside=/models/beside",
            "a=/adapters/checkpoints.of-a.run/run/step-10",
        ];
        let beside = desired(Some(ON_A_VOLUME), &adapters);
        assert!(beside.outside.is_empty() && desired(None, &[]).outside == ["stage", "gateway"]);
        assert_eq!(adapter_args(&beside), expected);
        let others = ["checkpoints.of-a.run at /adapters/checkpoints.of-a.run", "tones at /adapters/tones"];
        assert_eq!(volumes(&beside), [&["models at /models"], &others[..]].concat());
        for mount in &beside.mounts {
            let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            assert!(mount.name.len() < 64 && mount.name.chars().all(label), "{}", mount.name);
        }
        // Of a model behind a URL there is no volume.
        let alone = desired(None, &[adapters[0], adapters[1], adapters[3]]);
        assert_eq!(adapter_args(&alone), [expected[0], expected[1], expected[3]]);
        assert_eq!(volumes(&alone), others);
    }

    /// What is wanted of a swarm with this digest of its model and these cores of peers.
    fn with_resources(sha256: Option<&str>, cpu: Value) -> InferenceDesired {
        let swarm = json!({
            "apiVersion": "dunlin.dev/v1alpha1",
            "kind": "InferenceSwarm",
            "metadata": {"name": "m"},
            "spec": {
                "model": {"source": {"http": {"url": "http://models/m.gguf", "sha256": sha256}}},
                "pools": [{
                    "name": "spot",
                    "peers": {"min": 1, "max": 1},
                    "device": {"cpu": cpu},
                    "memory": {"host": "512Mi", "disk": "1Gi"},
                }],
            },
        });
        InferenceDesired::new(&serde_json::from_value(swarm).unwrap(), &config())
    }

    #[test]
    fn room_for_a_copy_of_the_model_is_requested_where_there_will_be_one() {
        let disk = |sha256| {
            let desired = with_resources(sha256, json!({"cores": 1}));
            let (stage, gateway) = (desired.pools[0].template.resources(), desired.gateway_resources);
            [stage, gateway].map(|resources| resources["requests"]["ephemeral-storage"].clone())
        };
        assert_eq!(disk(None), [Value::Null, Value::Null]);
        assert_eq!(disk(Some("ab")), [json!("1073741824"), json!("1073741824")]);
    }

    #[test]
    fn peers_have_a_cpu_limit_when_the_manifest_says_so() {
        let resources = |cpu| with_resources(None, cpu).pools[0].template.resources();
        let limited = resources(json!({"cores": 2, "request": "500m", "limit": 2}));
        assert_eq!(
            (&limited["requests"]["cpu"], &limited["limits"]["cpu"]),
            (&json!("500m"), &json!("2000m"))
        );
        assert_eq!(resources(json!({"cores": 2}))["limits"].get("cpu"), None);
    }

    #[test]
    fn changed_adapters_change_the_pods_and_neither_the_model_nor_who_works_together() {
        let adapter = ("a", "adapters", "a");
        let none = desired(Some(ON_A_VOLUME), &[]);
        let mut hashes = vec![(none.pools[0].hash.clone(), none.gateway_hash)];
        for changed in [
            &[adapter][..],
            &[("b", "adapters", "a")],
            &[("a", "adapters", "b")],
            &[adapter, ("b", "adapters", "a")],
        ] {
            let desired = desired(Some(ON_A_VOLUME), changed);
            let of = (desired.pools[0].hash.clone(), desired.gateway_hash);
            assert!(hashes.iter().all(|(pod, gateway)| *pod != of.0 && *gateway != of.1), "{changed:?}");
            assert_eq!(desired.digest, none.digest);
            hashes.push(of);
        }
    }

    #[test]
    fn stages_and_gateways_are_told_the_model_that_topologies_are_of_and_another_source_is_another_one() {
        let digest = |pod: &Value| {
            let variables = pod["spec"]["containers"][0]["env"].as_array().unwrap().iter();
            let said: Vec<&Value> = variables.filter(|v| v["name"] == "DUNLIN_MODEL_DIGEST").collect();
            assert_eq!(said.len(), 1, "{pod}");
            said[0]["value"].as_str().unwrap().to_owned()
        };
        let mut told = Vec::new();
        for source in [ON_A_VOLUME, ("models", "other"), ("other", "llama")] {
            let desired = desired(Some(source), &[]);
            let (owner, pool) = (owner(), &desired.pools[0].template);
            let stage = desired.stage(&owner, "m-spot-x7x7x", pool, true, None).manifest();
            let deployment = desired.gateway(&owner).manifests().pop().unwrap();
            let pods = [stage, deployment["spec"]["template"].clone()];
            assert_eq!(pods.each_ref().map(digest), [desired.digest.clone(), desired.digest.clone()]);
            assert!(!told.contains(&desired.digest), "{source:?}");
            told.push(desired.digest);
        }
    }

    #[test]
    fn a_pod_has_the_fingerprint_of_its_pool_whatever_it_is_called_and_wherever_it_may_run() {
        let desired = desired(Some(ON_A_VOLUME), &[]);
        let pool = &desired.pools[0];
        for (name, marked, epoch) in [("m-spot-a", true, None), ("m-spot-b", false, Some(7))] {
            let owner = Owner { name: "m".into(), ..owner() };
            let pod = desired.stage(&owner, name, &pool.template, marked, epoch).manifest();
            assert_eq!(pod["metadata"]["labels"][crate::labels::POD_HASH], pool.hash.as_str());
        }
        let deployment = desired.gateway(&Owner { name: "m".into(), ..owner() }).manifests().pop().unwrap();
        let labels = &deployment["spec"]["template"]["metadata"]["labels"];
        assert_eq!(labels[crate::labels::POD_HASH], desired.gateway_hash.as_str());
    }
}
