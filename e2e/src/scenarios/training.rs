//! A training run loses nothing: nodes killed and reclaimed, its conductor gone, suspended in between, and at the end the weights of a
//! run that nothing happened to, served by an InferenceSwarm.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::bench::{Bench, Scenario, heal, same};
use super::edits::is_amount;
use crate::chat::{self, Question};
use crate::cluster::Cluster;
use crate::deploy::{self, fetched};
use crate::local::{LocalTraining, dunlin};
use crate::swarm::{Pod, Swarm, is_over};
use crate::training::{Training, weights};
use crate::wait;

/// The example with its peers.
pub(super) const BIBLE: Example = Example { file: "train-bible.yaml", name: "bible", peers: 8 };
/// How long the next updates may take, a lost node included.
pub(super) const LIMIT: Duration = Duration::from_secs(120);

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "training-through-losses-and-suspension-has-the-same-weights-and-is-served",
        run: short,
    }]
}

/// What takes long, and has a target of its own.
pub(super) fn long() -> Vec<Scenario> {
    vec![Scenario { name: "training-the-example-through-twenty-kills", run: twenty_kills }]
}

/// (what is replaced in the example, by what): a run of a minute.
const SHORT: &[(&str, &str)] = &[
    ("hiddenSize: 128", "hiddenSize: 64"),
    ("ffn: 352", "ffn: 176"),
    ("sequenceLength: 128", "sequenceLength: 64"),
    ("\n  steps: 1000", "\n  steps: 400"),
];

/// A TrainingSwarm of `examples/`.
#[derive(Clone, Copy)]
pub(super) struct Example {
    /// Name of the file.
    pub(super) file: &'static str,
    /// The swarm's name.
    pub(super) name: &'static str,
    /// Peers that the file asks for.
    pub(super) peers: u64,
}

/// A run of an example on a volume of its own, with all that belongs to it.
pub(super) struct Run<'a> {
    pub(super) training: Training<'a>,
    /// The folder of the volume on this machine.
    pub(super) folder: PathBuf,
    example: Example,
}

impl<'a> Run<'a> {
    /// Applies the example with some texts replaced.
    pub(super) fn start(cluster: &'a Cluster, example: Example, changes: &[(&str, &str)]) -> Result<Self> {
        let folder = cluster.fresh_folder("checkpoints")?;
        let volume = json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "checkpoints"},
            "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"], "storageClassName": "checkpoints",
                     "hostPath": {"path": folder}},
        });
        let mut manifest = deploy::example(cluster, example.file)?;
        for (what, by) in changes {
            ensure!(manifest.contains(what), "{} no longer has `{what}`", example.file);
            manifest = manifest.replace(what, by);
        }
        cluster.apply(&volume.to_string())?;
        cluster.apply(&manifest)?;
        Ok(Self { training: Training { cluster, name: example.name.to_owned() }, folder, example })
    }

    /// What the pods were told, but with text, model, checkpoints and stages as given.
    fn configuration(&self, checkpoints: &Path, stages: u32) -> Result<Value> {
        let map = self.training.cluster.get(&[
            "configmap",
            "-l",
            &format!("dunlin.dev/swarm={}", self.example.name),
            "--ignore-not-found",
        ])?;
        let maps = map["items"].as_array().into_iter().flatten();
        let text = maps.filter_map(|m| m["data"]["training.json"].as_str()).next();
        let mut config: Value = serde_json::from_str(text.context("no ConfigMap has training.json")?)?;
        config["data"]["text"] = json!({"path": fetched("fetch-text.sh")?});
        if config["model"].get("checkpoint").is_some() {
            let model = fetched("fetch-model.sh")?;
            config["model"] = json!({"checkpoint": model});
            config["data"]["tokenizer"] = json!({"path": model});
        }
        config["checkpoint"]["destination"] = json!(checkpoints);
        config["stages"] = json!(stages);
        Ok(config)
    }

    /// The digest of the weights of a run with the same configuration on one peer to which nothing happens; of `last_checkpoint`.
    fn undisturbed(&self) -> Result<(Value, PathBuf)> {
        let folder = self.training.cluster.fresh_folder("undisturbed")?;
        let config = self.configuration(&folder.join(self.example.name), 1)?;
        let file = folder.join("run.json");
        std::fs::write(&file, config.to_string())?;
        let (_, last) = LocalTraining::start(&dunlin(), &file, 1)?.finish()?;
        let path = last["checkpoint"]["path"].as_str().context("no checkpoint")?.to_owned();
        Ok((last, PathBuf::from(path)))
    }

    /// The whole run is over with the weights of an undisturbed one.
    pub(super) fn same_weights(&self) -> Result<PathBuf> {
        let status = self.training.status()?;
        let path = self.folder.join(status["lastCheckpoint"]["path"].as_str().context("no checkpoint")?);
        ensure!(
            status["lastCheckpoint"]["step"] == status["step"],
            "the last checkpoint is not the last step: {status}"
        );
        let (last, expected) = self.undisturbed()?;
        let (ours, theirs) = (weights(&path)?, weights(&expected)?);
        ensure!(ours.len() == theirs.len(), "{} tensors, {} expected", ours.len(), theirs.len());
        let differ: Vec<_> = ours.iter().zip(&theirs).filter(|(a, b)| a != b).map(|(a, _)| &a.0).collect();
        ensure!(differ.is_empty(), "tensors differ from a run that nothing happened to: {differ:?}");
        let close =
            |a: &Value, b: &Value| (a.as_f64().unwrap_or(f64::NAN) - b.as_f64().unwrap_or(0.0)).abs() < 1e-6;
        ensure!(
            close(&status["validationLoss"], &last["validation_loss"]),
            "validation loss: {status} / {last}"
        );
        Ok(path)
    }

    /// Everything that the run was made of; checkpoints stay until the cluster goes.
    pub(super) fn remove(self) -> Result<()> {
        let cluster = self.training.cluster;
        cluster.kubectl(&["delete", "trainingswarm", self.example.name, "--timeout=60s"])?;
        wait::until_true("the pods of the run are gone", LIMIT, || {
            let pods = ["conductor", "train-peer", "trainer"].map(|role| self.training.pods(role));
            let left: usize = pods.into_iter().collect::<Result<Vec<_>>>()?.iter().map(Vec::len).sum();
            Ok((left == 0, format!("{left} pods")))
        })?;
        for object in ["persistentvolumeclaim/checkpoints", "persistentvolume/checkpoints"] {
            cluster.kubectl(&["delete", object, "--timeout=60s"])?;
        }
        Ok(())
    }

    /// A node of peers that has neither the conductor nor a trainer, and no stage for itself: what is lost with it others have, too.
    pub(super) fn node_of_peers_only(&self) -> Result<String> {
        let helpers = [self.training.pods("conductor")?, self.training.pods("trainer")?].concat();
        wait::until("a node of peers only whose stages others serve, too", LIMIT, || {
            let peers: Vec<Pod> = self.training.pods("train-peer")?;
            let status = self.training.conductor("/status")?;
            let stages = status["members"].as_array().context("no members in /status")?;
            let node_of = |member: &Value| peers.iter().find(|p| member == p.name.as_str()).map(|p| &p.node);
            let safe = |node: &String| {
                stages.iter().all(|members| {
                    let mut nodes = members.as_array().into_iter().flatten().filter_map(node_of);
                    nodes.any(|other| other != node)
                })
            };
            let found = peers.iter().filter(|p| p.ready && helpers.iter().all(|h| h.node != p.node));
            match found.map(|p| &p.node).find(|node| safe(node)) {
                Some(node) => Ok(Some(node.clone())),
                None => bail!("members {}, pods {peers:?}, helpers {helpers:?}", status["members"]),
            }
        })
    }

    pub(super) fn whole(&self) -> Result<Value> {
        let peers = Some(self.example.peers);
        self.training.wait("has all its peers", LIMIT, |s| s["peers"]["ready"].as_u64() == peers)
    }
}

fn short(bench: &Bench<'_>) -> Result<()> {
    let run = Run::start(bench.cluster, BIBLE, SHORT)?;
    let training = &run.training;
    let now = |status: &Value| status["step"].as_u64().unwrap_or(0);
    let step = now(&training.wait_step(5, LIMIT)?);

    // A node dies, with all peers on it, and comes back.
    let node = run.node_of_peers_only()?;
    bench.cluster.verb(&["kill", &node])?;
    let status = training.wait_step(step + 15, LIMIT).context("after a kill")?;
    ensure!(status["lost"].as_u64() > Some(0), "nobody was lost with node {node}: {status}");
    bench.cluster.verb(&["start", &node])?;

    // The conductor goes; another asks the peers what they hold.
    let conductor = training.pods("conductor")?.first().context("no conductor")?.name.clone();
    bench.cluster.kubectl(&["delete", "pod", &conductor, "--grace-period=0", "--force"])?;
    training.wait_step(now(&status) + 10, LIMIT).context("after the conductor was deleted")?;

    // A node is reclaimed with notice: nothing is computed again. Should a stage have come to one node, its peers swap first.
    heal(bench.cluster)?;
    let before = run.whole()?;
    ensure!(before["lost"].as_u64() >= status["lost"].as_u64(), "the new conductor forgot losses: {before}");
    let node = run.node_of_peers_only()?;
    bench.cluster.verb(&["shutdown", &node, "15"])?;
    let after = training.wait_step(now(&before) + 10, LIMIT).context("after a reclaim")?;
    ensure!(after["redone"] == before["redone"], "a notice of 15 s, and work was redone: {before} / {after}");
    ensure!(after["lost"] == before["lost"], "a notice of 15 s, and peers were lost: {before} / {after}");
    bench.cluster.verb(&["start", &node])?;

    // The pool is given more memory: its peers are replaced in turn, and the run goes on.
    heal(bench.cluster)?;
    let before = run.whole()?;
    let patch = json!([{"op": "replace", "path": "/spec/pools/0/memory/host", "value": "320Mi"}]).to_string();
    bench.cluster.kubectl(&["patch", "trainingswarm", BIBLE.name, "--type=json", "-p", &patch])?;
    training.wait_condition("Reconciling", "True", "Progressing", LIMIT)?;
    training.wait_condition("Reconciling", "False", "Observed", LIMIT)?;
    let after = training.status()?;
    ensure!(now(&after) > now(&before), "nothing was trained while peers were replaced: {before} / {after}");
    ensure!(
        after["lost"] == before["lost"],
        "peers were lost when their pool was edited: {before} / {after}"
    );
    let list = bench.cluster.get(&["pods", "-l", "dunlin.dev/swarm=bible,dunlin.dev/role=train-peer"])?;
    for pod in list["items"].as_array().into_iter().flatten().filter(|pod| !is_over(pod)) {
        let memory = &pod["spec"]["containers"][0]["resources"]["limits"]["memory"];
        ensure!(is_amount(memory, 320 << 20), "a peer has {memory}");
    }

    // Suspended: all is in a checkpoint, and no pod is left.
    let suspend = |on: bool| {
        let patch = json!({"spec": {"suspend": on}}).to_string();
        bench.cluster.kubectl(&["patch", "trainingswarm", BIBLE.name, "--type=merge", "-p", &patch])
    };
    suspend(true)?;
    training.wait_condition("Ready", "True", "Suspended", LIMIT)?;
    let status = training.status()?;
    ensure!(
        status["lastCheckpoint"]["step"] == status["step"],
        "suspended with steps in no checkpoint: {status}"
    );
    ensure!(training.pods("train-peer")?.is_empty(), "suspended, and peers run");
    ensure!(now(&status) < 400, "the run was over before it was suspended: make it longer");
    suspend(false)?;
    training.wait_step(now(&status) + 5, LIMIT).context("after a suspension")?;

    training.wait_condition("Succeeded", "True", "AllStepsDone", LIMIT)?;
    let checkpoint = run.same_weights()?;
    serve(bench, &run, &checkpoint)?;
    run.remove()?;
    ensure!(checkpoint.join("config.json").exists(), "the checkpoint went with the TrainingSwarm");
    Ok(())
}

/// `examples/serve-trained.yaml` answers with what was trained.
fn serve(bench: &Bench<'_>, run: &Run<'_>, checkpoint: &Path) -> Result<()> {
    let path = checkpoint.strip_prefix(&run.folder)?.to_string_lossy().into_owned();
    let example = deploy::example(bench.cluster, "serve-trained.yaml")?;
    bench.cluster.apply(&example.replace("path: bible/step-00001000", &format!("path: {path}")))?;
    let swarm = Swarm { cluster: bench.cluster, name: "bible-served".into(), model: BIBLE.name.into() };
    swarm.wait_whole(2)?;
    let question = Question::continued(&swarm.model, "In the beginning", 24);
    let answer = chat::ask(&swarm.gateway(&[])?, &question)?;
    ensure!(answer.ids.len() == 24, "{} of 24 tokens came: {:?}", answer.ids.len(), answer.text);
    same(&answer, &chat::ask(&swarm.gateway(&[])?, &question)?)?;
    bench.cluster.kubectl(&["delete", "inferenceswarm", "bible-served", "--timeout=60s"]).map(drop)
}

/// The example as it is, a node killed every half minute.
fn twenty_kills(bench: &Bench<'_>) -> Result<()> {
    let run = Run::start(bench.cluster, BIBLE, &[])?;
    let training = &run.training;
    let mut step = training.wait_step(1, LIMIT)?["step"].as_u64().unwrap_or(0);
    for kill in 0..20 {
        run.whole().with_context(|| format!("before kill {kill}"))?;
        let node = run.node_of_peers_only()?;
        bench.cluster.verb(&["kill", &node])?;
        let status = training.wait_step(step + 2, LIMIT).with_context(|| format!("after kill {kill}"))?;
        bench.cluster.verb(&["start", &node])?;
        step = status["step"].as_u64().unwrap_or(0);
        println!(
            "      kill {:>2}: {node}, step {step}, loss {}, redone {}, lost {}",
            kill + 1,
            status["loss"],
            status["redone"],
            status["lost"]
        );
    }
    training.wait_condition("Succeeded", "True", "AllStepsDone", Duration::from_secs(4 * 3600))?;
    run.same_weights()?;
    run.remove()
}
