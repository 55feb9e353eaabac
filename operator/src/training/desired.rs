//! From the manifest to what the operator works with: the run's configuration as workers read it, volumes, pods.

use dunlin_crds::{
    CheckpointDestination, DataFormat, DataSource, PodTemplateSpec, TokenizerKind, TrainedModelSpec,
    TrainingSwarm, TrainingSwarmSpec,
};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::decide::Post;
use super::write::pod;
use crate::apply::pods::{Image, MODELS_DIR, Mount, PoolTemplate};
use crate::config::Config;
use crate::convert::{PoolDesired, image, pools};
use crate::labels::{CERTIFICATE_ROLE, Kind, Owner, ROLE_CONDUCTOR, ROLE_PEER, ROLE_TRAINER, fingerprint};

/// Where the volume with checkpoints is mounted.
pub const CHECKPOINTS_DIR: &str = "/checkpoints";
/// Where pods see the headers of requests to where checkpoints are.
const HEADERS_DIR: &str = "/etc/dunlin/headers";
/// Where they see what requests to a bucket are signed with.
const S3_DIR: &str = "/etc/dunlin/s3";
/// Where a volume with data is mounted.
const DATA_DIR: &str = "/data";

/// A training run as its manifest wants it.
#[derive(Clone, Debug)]
pub struct Desired {
    /// The run, as workers read it.
    pub config: Value,
    /// Fingerprint of all that pods are made from: another one means a new start from a checkpoint.
    pub template: String,
    /// Image of workers.
    pub image: Image,
    /// Pools of peers in order of preference.
    pub pools: Vec<PoolDesired>,
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

/// Volumes of each role.
#[derive(Clone, Debug)]
pub struct Mounts {
    /// Conductor.
    pub conductor: Vec<Mount>,
    /// Peers.
    pub peers: Vec<Mount>,
    /// Trainers.
    pub trainers: Vec<Mount>,
}

impl Desired {
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
            image: image(config),
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
        let templates = self.templates();
        let hashes = |post: Post, pools: &[PoolDesired]| -> Vec<String> {
            pools
                .iter()
                .map(|pool| pod(post, owner, "", self, &pool.template, &templates, true).hash())
                .collect()
        };
        let conductor = hashes(Post::Conductor, &self.conductor);
        let (peers, trainers) = (hashes(Post::Peer, &self.pools), hashes(Post::Trainer, &self.trainers));
        let pools = self.conductor.iter_mut().chain(&mut self.pools).chain(&mut self.trainers);
        for (pool, hash) in pools.zip([conductor, peers, trainers].concat()) {
            pool.hash = hash;
        }
    }

    /// Peers in all pools.
    #[must_use]
    pub fn peers(&self) -> u32 {
        self.pools.iter().map(|p| p.peers).sum()
    }

    /// What the pools' pods look like.
    #[must_use]
    pub fn templates(&self) -> Vec<PoolTemplate> {
        self.pools.iter().map(|p| p.template.clone()).collect()
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
        memory_bytes,
        disk_bytes,
        disk_request_bytes: 0,
        extra: extra.clone().unwrap_or_default(),
    };
    PoolDesired { template, hash: String::new(), peers: count, peers_max: count }
}

fn mounts(spec: &TrainingSwarmSpec) -> Mounts {
    let kept = &spec.checkpoint.destination;
    let volume = kept.volume.as_ref();
    let volume = volume.map(|v| Mount::claim("checkpoints", CHECKPOINTS_DIR, &v.claim_name, false));
    let secret = secret(kept).map(|(volume, folder, secret)| Mount::secret(volume, folder, secret));
    let checkpoints = volume.or(secret);
    let data = spec.data.source.volume.as_ref().map(|v| Mount::claim("data", DATA_DIR, &v.claim_name, true));
    let model = spec.model.source.as_ref().and_then(|s| s.volume.as_ref());
    let model = model.map(|v| Mount::claim("models", MODELS_DIR, &v.claim_name, true));
    Mounts {
        conductor: [checkpoints.clone(), data.clone(), model.clone()].into_iter().flatten().collect(),
        peers: [checkpoints, model.clone()].into_iter().flatten().collect(),
        trainers: [data, model].into_iter().flatten().collect(),
    }
}

/// Who reads from a URL or writes to one: as [`mounts`] of what is on volumes.
fn outside(spec: &TrainingSwarmSpec) -> Vec<&'static str> {
    let checkpoints = spec.checkpoint.destination.volume.is_none();
    let data = spec.data.source.http.is_some();
    let model = spec.model.source.as_ref().is_some_and(|source| source.http.is_some());
    let needs = [
        (ROLE_CONDUCTOR, checkpoints || data || model),
        (ROLE_PEER, checkpoints || model),
        (ROLE_TRAINER, data || model),
    ];
    needs.into_iter().filter(|(_, needs)| *needs).map(|(role, _)| role).collect()
}

/// The run in the words of `dunlin-train`'s TrainingConfig; every default is spelled out, so that it does not change with the worker.
fn run(spec: &TrainingSwarmSpec) -> Value {
    let optimizer = &spec.optimizer;
    let mut run = json!({
        "model": model(&spec.model),
        "data": data(spec),
        "sequenceLength": spec.sequence_length,
        "globalBatch": spec.global_batch,
        "microbatch": spec.microbatch,
        "steps": spec.steps,
        "seed": spec.seed,
        "optimizer": optimizer,
        "stages": spec.stages,
        "wire": spec.wire,
        "checkpoint": {
            "everySteps": spec.checkpoint.every_steps,
            "keep": spec.checkpoint.keep,
            "destination": destination(&spec.checkpoint.destination),
        },
    });
    if let Some(adapter) = &spec.adapter {
        run["adapter"] = json!(adapter);
    }
    if optimizer.clip == 0.0 {
        run["optimizer"]["clip"] = Value::Null;
    }
    // Without data that is held out there is nothing to measure.
    if spec.data.validation_fraction > 0.0 {
        run["validation"] = json!(spec.validation);
    }
    run
}

/// The Secret that requests to where checkpoints are need: the volume with it, where that is mounted, its name.
fn secret(place: &CheckpointDestination) -> Option<(&'static str, &'static str, &String)> {
    match place {
        CheckpointDestination { http: Some(http), .. } => {
            Some(("headers", HEADERS_DIR, http.headers_secret.as_ref()?))
        }
        CheckpointDestination { s3: Some(s3), .. } => Some(("s3", S3_DIR, &s3.credentials_secret)),
        _ => None,
    }
}

/// As workers name it: a folder where the volume is mounted, a URL, or a bucket; with the folder of what a Secret has.
fn destination(place: &CheckpointDestination) -> Value {
    match place {
        CheckpointDestination { volume: Some(volume), .. } => {
            json!(format!("{CHECKPOINTS_DIR}/{}", volume.path))
        }
        CheckpointDestination { http: Some(http), .. } if http.headers_secret.is_some() => {
            json!({"url": http.url, "headers": HEADERS_DIR})
        }
        CheckpointDestination { http: Some(http), .. } => json!(http.url),
        CheckpointDestination { s3: Some(s3), .. } => {
            let mut bucket = json!(s3);
            // Workers see what is in it, not its name.
            if let Some(fields) = bucket.as_object_mut() {
                fields.remove("credentialsSecret");
            }
            json!({"s3": bucket, "credentials": S3_DIR})
        }
        _ => json!(""),
    }
}

fn model(spec: &TrainedModelSpec) -> Value {
    if let Some(shape) = &spec.config {
        let mut config = json!(shape);
        let family = config["architecture"].as_str().map(str::to_lowercase);
        config["architecture"] = json!(family);
        return json!({"config": config});
    }
    let source = spec.source.clone().unwrap_or_default();
    let volume = source.volume.map(|v| format!("{MODELS_DIR}/{}", v.path));
    json!({"checkpoint": volume.or(source.http.map(|h| h.url))})
}

fn data(spec: &TrainingSwarmSpec) -> Value {
    let kind = match spec.data.format {
        DataFormat::Text => "text",
        DataFormat::JsonLines => "jsonLines",
    };
    let place = match &spec.data.source {
        DataSource { volume: Some(volume), .. } => json!({"path": format!("{DATA_DIR}/{}", volume.path)}),
        DataSource { http, .. } => json!({"http": http}),
    };
    let source = spec.model.source.as_ref();
    let kind_of_tokens = spec.data.tokenizer.unwrap_or(match source {
        Some(_) => TokenizerKind::Model,
        None => TokenizerKind::Bytes,
    });
    let tokenizer = match (kind_of_tokens, source.and_then(|s| s.volume.as_ref())) {
        (TokenizerKind::Bytes, _) => json!("Bytes"),
        (TokenizerKind::Model, Some(volume)) => json!({"path": format!("{MODELS_DIR}/{}", volume.path)}),
        (TokenizerKind::Model, None) => json!("Model"),
    };
    let fraction = spec.data.validation_fraction;
    json!({kind: place, "tokenizer": tokenizer, "validationFraction": fraction})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::training_swarm;

    /// The file that `dunlin-train` must be able to read; its own tests read it, too.
    #[test]
    fn the_run_is_written_as_workers_read_it() {
        let run = run(&training_swarm(1).spec);
        let fixture: Value = serde_json::from_str(include_str!("training.json")).unwrap();
        assert_eq!(run, fixture, "{run:#}");
    }

    #[test]
    fn sources_on_volumes_become_paths_where_they_are_mounted() {
        let mut swarm = training_swarm(1);
        let volume = |claim: &str, path: &str| json!({"claimName": claim, "path": path});
        let source = json!({"source": {"volume": volume("models", "llama")}});
        swarm.spec.model = serde_json::from_value(source).unwrap();
        let data = json!({"source": {"volume": volume("texts", "a.jsonl")}, "format": "JsonLines", "tokenizer": "Model", "validationFraction": 0.0});
        swarm.spec.data = serde_json::from_value(data).unwrap();
        swarm.spec.optimizer.clip = 0.0;
        let run = run(&swarm.spec);
        assert_eq!(run["model"], json!({"checkpoint": "/models/llama"}));
        let expected = json!({"jsonLines": {"path": "/data/a.jsonl"}, "tokenizer": {"path": "/models/llama"}, "validationFraction": 0.0});
        assert_eq!(run["data"], expected);
        assert_eq!((&run["optimizer"]["clip"], run.get("validation")), (&Value::Null, None));
        let names = |mounts: &[Mount]| mounts.iter().map(|m| m.name.clone()).collect::<Vec<_>>();
        let mounts = mounts(&swarm.spec);
        assert_eq!(names(&mounts.conductor), ["checkpoints", "data", "models"]);
        assert_eq!(names(&mounts.peers), ["checkpoints", "models"]);
        assert_eq!(names(&mounts.trainers), ["data", "models"]);
        assert_eq!(outside(&swarm.spec), [""; 0], "everything is on volumes");
        assert!(
            mounts.peers[0].source["persistentVolumeClaim"]["readOnly"] == false
                && !mounts.peers[0].read_only
        );

        let http = json!({"source": {"http": {"url": "http://models/llama"}}});
        swarm.spec.model = serde_json::from_value(http).unwrap();
        assert_eq!(model(&swarm.spec.model), json!({"checkpoint": "http://models/llama"}));
        assert_eq!(outside(&swarm.spec), ["conductor", "train-peer", "trainer"]);
        assert_eq!(outside(&training_swarm(1).spec), ["conductor", "trainer"], "data behind a URL");
        for said in [None, Some(TokenizerKind::Model)] {
            swarm.spec.data.tokenizer = said;
            assert_eq!(self::run(&swarm.spec)["data"]["tokenizer"], "Model");
        }
        swarm.spec.data.tokenizer = Some(TokenizerKind::Bytes);
        assert_eq!(self::run(&swarm.spec)["data"]["tokenizer"], "Bytes");
    }

    #[test]
    fn an_adapter_is_written_with_its_defaults_and_changes_the_template() {
        let mut swarm = training_swarm(1);
        let source = json!({"source": {"volume": {"claimName": "models", "path": "llama.gguf"}}});
        swarm.spec.model = serde_json::from_value(source).unwrap();
        swarm.spec.data.tokenizer = None;
        let mut templates = vec![Desired::new(&swarm, &crate::testing::config()).template];
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
            let template = Desired::new(&swarm, &crate::testing::config()).template;
            assert!(!templates.contains(&template), "{written}");
            templates.push(template);
        }
    }

    #[test]
    fn checkpoints_behind_a_url_need_no_volume() {
        let mut swarm = training_swarm(1);
        let http = json!({"http": {"url": "https://store/run"}});
        swarm.spec.checkpoint.destination = serde_json::from_value(http).unwrap();
        assert_eq!(run(&swarm.spec)["checkpoint"]["destination"], "https://store/run");
        let mounts = mounts(&swarm.spec);
        assert!(mounts.peers.is_empty() && mounts.conductor.is_empty());
        assert!(outside(&swarm.spec).contains(&"train-peer"));

        let secret = json!({"http": {"url": "https://store/run", "headersSecret": "store"}});
        swarm.spec.checkpoint.destination = serde_json::from_value(secret).unwrap();
        let expected = json!({"url": "https://store/run", "headers": "/etc/dunlin/headers"});
        assert_eq!(run(&swarm.spec)["checkpoint"]["destination"], expected);
        let mounts = self::mounts(&swarm.spec);
        for mounted in [&mounts.peers[0], &mounts.conductor[0]] {
            assert_eq!(mounted.source, json!({"secret": {"secretName": "store"}}));
        }
        assert!(mounts.trainers.is_empty());
    }

    /// `dunlin-train` reads the same: see its tests.
    #[test]
    fn checkpoints_in_a_bucket_come_with_the_secret_that_requests_are_signed_with() {
        let mut swarm = training_swarm(1);
        let s3 = json!({"s3": {"endpoint": "https://store", "bucket": "models", "prefix": "runs/tiny", "pathStyle": false, "credentialsSecret": "keys"}});
        swarm.spec.checkpoint.destination = serde_json::from_value(s3).unwrap();
        let bucket = json!({"endpoint": "https://store", "region": "us-east-1", "bucket": "models", "prefix": "runs/tiny", "pathStyle": false});
        let expected = json!({"s3": bucket, "credentials": "/etc/dunlin/s3"});
        assert_eq!(run(&swarm.spec)["checkpoint"]["destination"], expected);
        let mounts = mounts(&swarm.spec);
        for mounted in [&mounts.peers[0], &mounts.conductor[0]] {
            assert_eq!(mounted.source, json!({"secret": {"secretName": "keys"}}));
            assert!(mounted.read_only);
        }
        assert!(mounts.trainers.is_empty());
    }

    #[test]
    fn what_a_run_is_made_from_changes_the_template_and_how_many_run_it_does_not() {
        let config = crate::testing::config();
        let template = |change: &dyn Fn(&mut TrainingSwarmSpec)| {
            let mut swarm = training_swarm(1);
            change(&mut swarm.spec);
            Desired::new(&swarm, &config).template
        };
        let before = template(&|_| {});
        assert_eq!(before, template(&|spec| spec.replicas = 7));
        assert_eq!(before, template(&|spec| spec.suspend = true));
        assert_ne!(before, template(&|spec| spec.steps += 1));
        assert_ne!(before, template(&|spec| spec.optimizer.learning_rate *= 2.0));
    }
}
