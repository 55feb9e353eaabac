//! Where a run's model, data and checkpoints are: on volumes that pods mount, or behind URLs.

use dunlin_crds::{CheckpointDestination, TrainingSwarmSpec};

use crate::apply::parts::Mount;
use crate::apply::pods::MODELS_DIR;
use crate::labels::{ROLE_CONDUCTOR, ROLE_PEER, ROLE_TRAINER};

/// Where the volume with checkpoints is mounted.
pub const CHECKPOINTS_DIR: &str = "/checkpoints";
/// Where pods see the headers of requests to where checkpoints are.
pub const HEADERS_DIR: &str = "/etc/dunlin/headers";
/// Where they see what requests to a bucket are signed with.
pub const S3_DIR: &str = "/etc/dunlin/s3";
/// Where a volume with data is mounted.
pub const DATA_DIR: &str = "/data";

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

/// What is mounted for `spec`.
#[must_use]
pub fn mounts(spec: &TrainingSwarmSpec) -> Mounts {
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
#[must_use]
pub fn outside(spec: &TrainingSwarmSpec) -> Vec<&'static str> {
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

/// The Secret that requests to where checkpoints are need: the volume with it, where that is mounted, its name.
#[must_use]
pub fn secret(place: &CheckpointDestination) -> Option<(&'static str, &'static str, &String)> {
    match place {
        CheckpointDestination { http: Some(http), .. } => {
            Some(("headers", HEADERS_DIR, http.headers_secret.as_ref()?))
        }
        CheckpointDestination { s3: Some(s3), .. } => Some(("s3", S3_DIR, &s3.credentials_secret)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use dunlin_crds::TokenizerKind;
    use serde_json::{Value, json};

    use super::super::run::run;
    use super::*;
    use crate::testing::training_swarm;

    #[test]
    fn sources_on_volumes_become_paths_where_they_are_mounted() {
        let mut swarm = training_swarm(1);
        let volume = |claim: &str, path: &str| json!({"claimName": claim, "path": path});
        let source = json!({"source": {"volume": volume("models", "llama")}});
        swarm.spec.model = serde_json::from_value(source).unwrap();
        let data = json!({"source": {"volume": volume("texts", "a.jsonl")}, "format": "JsonLines", "tokenizer": "Model", "validationFraction": 0.0});
        swarm.spec.data = serde_json::from_value(data).unwrap();
        swarm.spec.optimizer.clip = None;
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
        assert_eq!(self::run(&swarm.spec)["model"], json!({"checkpoint": "http://models/llama"}));
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
}
