//! From the manifest of a TrainingSwarm to what the operator works with: its run, its pools, its pods.

use dunlin_crds::{PodTemplateSpec, TrainingSwarm};
use dunlin_wire::Role;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::places::{Mounts, mounts, outside, secret};
use super::run::{RUN_DIR, RUN_FILE, run};
use crate::apply::network::{GRPC_PORT, HTTP_PORT};
use crate::apply::parts::{Image, Mount, common_args};
use crate::apply::pods::{Nodes, PoolTemplate, WorkerPod};
use crate::config::Config;
use crate::key::Kind;
use crate::labels::{CERTIFICATE_ROLE, Owner, fingerprint, role_label};
use crate::pools::{PoolDesired, pools};

/// A training run as its manifest wants it.
#[derive(Clone, Debug)]
pub struct TrainingDesired {
    /// `metadata.generation` of the manifest.
    pub generation: i64,
    /// The run, as workers read it.
    pub config: Value,
    /// Fingerprint of all that pods are made from: another one means a new start from a checkpoint.
    pub template: String,
    /// Image of workers.
    pub image: Image,
    /// Pools of peers in order of preference.
    pub pools: Vec<PoolDesired>,
    /// What their pods look like.
    pub templates: Vec<PoolTemplate>,
    /// The one conductor, as a pool.
    pub conductor: [PoolDesired; 1],
    /// Trainers, as a pool.
    pub trainers: [PoolDesired; 1],
    /// Resources of a trainer.
    pub trainer_resources: Option<Value>,
    /// Stages of the run.
    pub stages: u32,
    /// Updates asked for.
    pub steps: u64,
    /// Nothing should run.
    pub suspended: bool,
    /// Volumes of the conductor, of peers and of trainers.
    pub mounts: Mounts,
    /// Roles that read from a URL, or write to one.
    pub outside: Vec<&'static str>,
}

impl TrainingDesired {
    /// What `swarm` asks for.
    #[must_use]
    pub fn new(swarm: &TrainingSwarm, config: &Config) -> Self {
        let spec = &swarm.spec;
        let run = run(spec);
        let kept = &spec.checkpoint.destination;
        let claims = kept.volume.iter().map(|v| &v.claim_name).collect::<Vec<_>>();
        let secret = secret(kept).map(|(_, _, secret)| secret);
        let mut pools = pools(&spec.pools, spec.replicas, false);
        // Peers put updates and checkpoints by.
        pools.iter_mut().for_each(|pool| pool.template.request_disk());
        let disk_bytes = pools.iter().map(|p| p.template.disk_bytes).max().unwrap_or(0);
        let mut desired = Self {
            generation: swarm.metadata.generation.unwrap_or_default(),
            // Pods of two images, or with and without roles in their certificates, do not make one run.
            template: fingerprint(&json!([
                run,
                claims,
                secret,
                spec.data.source.volume,
                spec.model.source,
                config.worker_image,
                CERTIFICATE_ROLE
            ])),
            config: run,
            image: config.image(),
            conductor: [helper("conductor", 1, 50, 256 << 20, disk_bytes, &spec.conductor.pod_template)],
            trainers: [helper(
                "trainer",
                spec.trainers.replicas,
                100,
                512 << 20,
                disk_bytes,
                &spec.trainers.pod_template,
            )],
            trainer_resources: spec.trainers.resources.as_ref().map(|r| json!(r)),
            templates: pools.iter().map(|p| p.template.clone()).collect(),
            pools,
            stages: spec.stages,
            steps: spec.steps.into(),
            suspended: spec.suspend,
            mounts: mounts(spec),
            outside: outside(spec),
        };
        desired.mark(&Owner::any(Kind::Training, swarm.name_any()));
        desired
    }

    /// Takes the fingerprints of all pods.
    fn mark(&mut self, owner: &Owner) {
        let hashes = |role: Role, pools: &[PoolDesired]| -> Vec<String> {
            pools.iter().map(|pool| self.pod(role, owner, "", &pool.template, true).hash()).collect()
        };
        let conductor = hashes(Role::Conductor, &self.conductor);
        let (peers, trainers) = (hashes(Role::Peer, &self.pools), hashes(Role::Trainer, &self.trainers));
        let pools = self.conductor.iter_mut().chain(&mut self.pools).chain(&mut self.trainers);
        for (pool, hash) in pools.zip([conductor, peers, trainers].concat()) {
            pool.hash = hash;
        }
    }

    /// The pod `name` with `role` in `pool`. `marked`: some node of the cluster carries a spot marker.
    #[must_use]
    pub fn pod<'a>(
        &'a self,
        role: Role,
        owner: &'a Owner,
        name: &'a str,
        pool: &'a PoolTemplate,
        marked: bool,
    ) -> WorkerPod<'a> {
        let (listen, http) = (format!("0.0.0.0:{GRPC_PORT}"), format!("0.0.0.0:{HTTP_PORT}"));
        let conductor = format!("{}:{GRPC_PORT}", owner.conductor());
        let args = |more: &[(&str, String)]| {
            let mut args = common_args(role_label(role));
            args.extend(["--config".to_owned(), format!("{RUN_DIR}/{RUN_FILE}")]);
            args.extend(more.iter().flat_map(|(flag, value)| [(*flag).to_owned(), value.clone()]));
            args
        };
        const FRONT: &[(&str, u16)] = &[("grpc", GRPC_PORT), ("http", HTTP_PORT)];
        let anywhere = Nodes::Any(&self.templates);
        let (nodes, args, ports, mounts) = match role {
            Role::Conductor => {
                (anywhere, args(&[("--listen", listen), ("--http", http)]), FRONT, &self.mounts.conductor)
            }
            Role::Trainer => {
                (anywhere, args(&[("--conductor", conductor)]), &FRONT[..0], &self.mounts.trainers)
            }
            _ => {
                let mut args = args(&[("--listen", listen), ("--conductor", conductor)]);
                // The rest is for buffers and the process itself.
                args.extend(pool.args(pool.memory_bytes / 8 * 7));
                args.extend(["--disk".to_owned(), pool.disk_bytes.to_string()]);
                (Nodes::Own { marked }, args, &FRONT[..1], &self.mounts.peers)
            }
        };
        let config = Mount {
            name: "training".to_owned(),
            path: RUN_DIR.to_owned(),
            source: json!({"configMap": {"name": owner.training()}}),
            read_only: true,
        };
        WorkerPod {
            owner,
            name,
            role: role_label(role),
            image: &self.image,
            pool,
            nodes,
            args,
            ports,
            resources: if role == Role::Trainer { self.trainer_resources.clone() } else { None },
            mounts: [config].into_iter().chain(mounts.iter().cloned()).collect(),
            environment: vec![],
            template: &self.template,
            epoch: None,
        }
    }

    /// The pools of pods with `role`.
    #[must_use]
    pub fn pools_of(&self, role: Role) -> &[PoolDesired] {
        match role {
            Role::Conductor => &self.conductor,
            Role::Trainer => &self.trainers,
            _ => &self.pools,
        }
    }

    /// Peers in all pools.
    #[must_use]
    pub fn peers(&self) -> u32 {
        self.pools.iter().map(|p| p.peers).sum()
    }
}

/// Pods without weights, as a pool.
fn helper(
    name: &str,
    count: u32,
    cpu_millis: u64,
    memory_bytes: u64,
    disk_bytes: u64,
    extra: &Option<PodTemplateSpec>,
) -> PoolDesired {
    let template = PoolTemplate {
        name: name.to_owned(),
        spot: false,
        node_selector: Default::default(),
        cpu_millis,
        cpu_millis_max: None,
        threads: 1,
        nvidia: None,
        memory_bytes,
        disk_bytes,
        disk_request_bytes: 0,
        extra: extra.clone().unwrap_or_default(),
    };
    PoolDesired { template, hash: String::new(), peers: count, peers_max: count }
}

#[cfg(test)]
mod tests {
    use dunlin_crds::TrainingSwarmSpec;
    use k8s_openapi::api::core::v1::Pod;

    use super::*;
    use crate::testing::{assert_restricted, assert_typed, config, training_swarm};

    fn owner() -> Owner {
        Owner { kind: Kind::Training, name: "tiny".into(), ..crate::testing::owner() }
    }

    fn made(role: Role) -> Value {
        let (owner, desired) = (owner(), TrainingDesired::new(&training_swarm(1), &config()));
        let pool = &desired.pools_of(role)[0];
        let manifest = desired.pod(role, &owner, "tiny-x", &pool.template, true).manifest();
        assert_typed::<Pod>(&manifest);
        assert_restricted(&manifest["spec"]);
        assert_eq!(manifest["spec"]["restartPolicy"], "Never");
        assert_eq!(manifest["metadata"]["labels"]["dunlin.dev/kind"], "TrainingSwarm");
        assert_eq!(manifest["metadata"]["ownerReferences"][0]["kind"], "TrainingSwarm");
        manifest
    }

    fn args(pod: &Value) -> String {
        let args = pod["spec"]["containers"][0]["args"].as_array().unwrap();
        args.iter().map(|a| a.as_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    fn paths(pod: &Value) -> Vec<&str> {
        let mounts = pod["spec"]["containers"][0]["volumeMounts"].as_array().unwrap();
        mounts.iter().map(|m| m["mountPath"].as_str().unwrap()).collect()
    }

    #[test]
    fn each_role_is_told_what_it_needs() {
        let common = "--name $(POD_NAME) --health 0.0.0.0:9090 --tls-dir /etc/dunlin/tls --config /etc/dunlin/training/training.json";
        let (conductor, peer, trainer) = (made(Role::Conductor), made(Role::Peer), made(Role::Trainer));
        assert_eq!(args(&conductor), format!("conductor {common} --listen 0.0.0.0:7070 --http 0.0.0.0:8080"));
        assert_eq!(
            args(&peer),
            format!(
                "train-peer {common} --listen 0.0.0.0:7070 --conductor tiny-conductor:7070 --threads 1 --memory {} --disk {}",
                (256_u64 << 20) / 8 * 7,
                10_u64 << 30
            )
        );
        assert_eq!(args(&trainer), format!("trainer {common} --conductor tiny-conductor:7070"));
        let own = ["/etc/dunlin/tls", "/tmp", "/var/cache/dunlin", "/etc/dunlin/training"];
        assert_eq!(paths(&trainer), own);
        let with_checkpoints: Vec<&str> = own.into_iter().chain(["/checkpoints"]).collect();
        assert_eq!(paths(&peer), with_checkpoints);
        assert_eq!(paths(&conductor), with_checkpoints);
    }

    #[test]
    fn only_peers_are_bound_to_their_pool() {
        let required = |pod: &Value| {
            let affinity = &pod["spec"]["affinity"]["nodeAffinity"];
            affinity.get("requiredDuringSchedulingIgnoredDuringExecution").is_some()
        };
        assert!(required(&made(Role::Peer)));
        assert!(!required(&made(Role::Conductor)) && !required(&made(Role::Trainer)));
    }

    #[test]
    fn an_adapter_is_written_with_its_defaults_and_changes_the_template() {
        let mut swarm = training_swarm(1);
        let source = json!({"source": {"volume": {"claimName": "models", "path": "llama.gguf"}}});
        swarm.spec.model = serde_json::from_value(source).unwrap();
        swarm.spec.data.tokenizer = None;
        let mut templates = vec![TrainingDesired::new(&swarm, &crate::testing::config()).template];
        assert_eq!(run(&swarm.spec).get("adapter"), None);
        let full = json!({"lora": {"rank": 4, "alpha": 0.5, "targets": ["Gate", "Query"]}});
        for (asked, written) in [
            (json!({"lora": {}}), json!({"lora": {"rank": 8, "alpha": 16.0, "targets": ["Query", "Value"]}})),
            (full.clone(), full),
            (json!({"prompt": {}}), json!({"prompt": {"tokens": 16}})),
            (json!({"prompt": {"tokens": 20}}), json!({"prompt": {"tokens": 20}})),
        ] {
            swarm.spec.adapter = Some(serde_json::from_value(asked).unwrap());
            let run = run(&swarm.spec);
            assert_eq!(run["adapter"], written);
            assert_eq!(run["model"], json!({"checkpoint": "/models/llama.gguf"}));
            assert_eq!(run["data"]["tokenizer"], json!({"path": "/models/llama.gguf"}));
            let template = TrainingDesired::new(&swarm, &crate::testing::config()).template;
            assert!(!templates.contains(&template), "{written}");
            templates.push(template);
        }
    }

    #[test]
    fn what_a_run_is_made_from_changes_the_template_and_how_many_run_it_does_not() {
        let config = crate::testing::config();
        let template = |change: &dyn Fn(&mut TrainingSwarmSpec)| {
            let mut swarm = training_swarm(1);
            change(&mut swarm.spec);
            TrainingDesired::new(&swarm, &config).template
        };
        let before = template(&|_| {});
        assert_eq!(before, template(&|spec| spec.replicas = 7));
        assert_eq!(before, template(&|spec| spec.suspend = true));
        assert_ne!(before, template(&|spec| spec.steps += 1));
        assert_ne!(before, template(&|spec| spec.optimizer.learning_rate *= 2.0));
    }
}
