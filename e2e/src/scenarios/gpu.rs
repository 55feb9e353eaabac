//! Nodes with GPUs, which are emulated: their kernels run on the processor, slowly, with the bits of any other device.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::bench::{Bench, PROMPT, Scenario, heal, same};
use crate::chat::{self, Answer, Question, Stream};
use crate::cluster::Cluster;
use crate::deploy::{self, OPERATOR_NAMESPACE};
use crate::gpu::nodes::{GPU, emulated_gpu};
use crate::gpu::{GpuNodes, Offer};
use crate::local::{Local, dunlin};
use crate::report;
use crate::swarm::{Peer, Swarm, gateway_url};
use crate::wait;

/// The swarm, its model, the claim and the volume that the model is on.
const NAME: &str = "on-gpus";
/// Pools of the swarm: the first one has GPUs.
const GPU_POOL: &str = "gpu";
/// Peers of each pool.
const PEERS_EACH: usize = 2;
const ALL_PEERS: u64 = 2 * PEERS_EACH as u64;
/// Tokens of an answer, which takes emulated GPUs some seconds, and how many have come when one goes.
const TOKENS: u32 = 600;
const LOSS_AT: usize = 100;
/// A condition says what is missing within this.
const SAID: Duration = Duration::from_secs(30);
/// A part of a GPU, which counts as one of its own.
const SLICE: &str = "nvidia.com/mig-3g.40gb";

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "a-swarm-that-asks-for-gpus-where-there-are-none-says-what-to-install",
            run: no_gpus,
        },
        Scenario { name: "a-gpu-that-is-not-healthy-is-given-to-no-peer", run: unhealthy },
    ]
}

pub(super) fn long() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "a-gpu-node-dies-and-processors-go-on-with-the-same-tokens",
            run: |bench| gpu_nodes_die(bench, 2),
        },
        Scenario { name: "gpu-nodes-die-twenty-times", run: |bench| gpu_nodes_die(bench, 20) },
    ]
}

fn gpu_nodes_die(bench: &Bench<'_>, rounds: usize) -> Result<()> {
    let stage = Stage::set(bench)?;
    let nodes = spot_nodes(bench.cluster)?;
    let nodes = &nodes[..PEERS_EACH.min(nodes.len())];
    stage.run(|swarm| {
        let expected = stage.alone()?;
        let gpus = GpuNodes::start(swarm.cluster, nodes, &small_gpu(swarm.cluster)?)?;
        swarm.cluster.apply(&manifest(GPU, true))?;
        swarm.wait_whole(ALL_PEERS)?;
        same(&expected, &chat::ask(&swarm.gateway(&[])?, &question())?).context("with GPUs")?;
        let mut stalls = Vec::new();
        for round in 0..rounds {
            let node = &nodes[round % nodes.len()];
            let stall_s = gpu_node_dies(swarm, &gpus, node, &expected)
                .with_context(|| format!("round {} of {rounds}, node {node}", round + 1))?;
            stalls.push(1e3 * stall_s);
            println!(
                "    GPU of {node} lost, round {}: same tokens, longest wait {:.0} ms",
                round + 1,
                1e3 * stall_s
            );
        }
        println!("    median of the longest waits {:.0} ms", report::quantile(&stalls, 0.5));
        Ok(())
    })
}

/// One answer through the loss of the GPU of `node`, which comes back; the longest wait for a token after the loss, in seconds.
fn gpu_node_dies(swarm: &Swarm<'_>, gpus: &GpuNodes<'_>, node: &str, expected: &Answer) -> Result<f64> {
    let victim = gpu_peers(swarm)?.into_iter().find(|peer| peer.node == node);
    let victim = victim.context("no peer with a GPU is on this node")?;
    on_a_gpu(swarm, gpus, &victim)?;
    let before = recoveries(swarm)?;
    let mut stream = Stream::start(&swarm.gateway(&[node])?, &question());
    stream.read_tokens(LOSS_AT)?;
    swarm.cluster.verb(&["kill", node])?;
    let answer = stream.finish()?;
    same(expected, &answer)?;
    // Sessions go on after a loss only if the lost peer was on their route.
    ensure!(
        recoveries(swarm)? > before,
        "no session went on: the answer was over before, or the GPU did not compute it"
    );

    wait::until_true("processors serve the layers of the lost peer", crate::swarm::HEAL_LIMIT, || {
        let (peers, status) = (swarm.peers()?, swarm.object()?["status"].clone());
        let served = status["layers"]["served"] == status["layers"]["total"];
        Ok((served && peers.iter().all(|peer| peer.name != victim.name), format!("{status}, {peers:?}")))
    })?;
    same(expected, &chat::ask(&swarm.gateway(&[node])?, &question())?).context("while the node is away")?;

    let allocated = gpus.plugin(node)?.allocated().len();
    swarm.cluster.verb(&["start", node])?;
    swarm.wait_whole(ALL_PEERS)?;
    let back = gpu_peers(swarm)?.into_iter().find(|peer| peer.node == node);
    let back = back.context("no peer with a GPU is on the node that came back")?;
    ensure!(back.name != victim.name, "the lost peer is there again: {back:?}");
    ensure!(gpus.plugin(node)?.allocated().len() > allocated, "nobody asked for the GPU that came back");
    on_a_gpu(swarm, gpus, &back)?;
    same(expected, &chat::ask(&swarm.gateway(&[])?, &question())?).context("when the node is back")?;
    Ok(answer.stall_s(LOSS_AT))
}

fn no_gpus(bench: &Bench<'_>) -> Result<()> {
    let stage = Stage::set(bench)?;
    let node = spot_nodes(bench.cluster)?.swap_remove(0);
    stage.run(|swarm| {
        swarm.cluster.apply(&manifest(GPU, false))?;
        wait::until_true("a condition says what to install", SAID, || {
            let said = swarm.object()?["status"]["conditions"].to_string();
            let is_said = ["Insufficient nvidia.com/gpu", "device plugin", "device.nvidia"];
            Ok((is_said.iter().all(|words| said.contains(words)), said))
        })?;

        // A node whose GPU comes without a driver: the peer starts, and says what is missing.
        let without_driver = Offer { resource: SLICE.to_owned(), driver: None, ..small_gpu(swarm.cluster)? };
        let gpus = GpuNodes::start(swarm.cluster, std::slice::from_ref(&node), &without_driver)?;
        swarm.cluster.apply(&manifest(SLICE, false))?;
        let message = swarm.wait_condition("Stalled", "True", "NoDevice", 2 * SAID)?;
        ensure!(message.contains("libcuda") && message.contains("device plugin"), "{message}");
        let status = swarm.object()?["status"].clone();
        ensure!(status["peers"]["ready"] == 0, "a peer without its GPU is ready: {status}");
        ensure!(gpus.plugin(&node)?.allocated().len() == 1, "{:?}", gpus.plugin(&node)?.allocated());
        drop(gpus);

        // Somebody installs it.
        let with_driver = Offer { resource: SLICE.to_owned(), ..small_gpu(swarm.cluster)? };
        let _gpus = GpuNodes::start(swarm.cluster, std::slice::from_ref(&node), &with_driver)?;
        for pod in swarm.pods("stage")? {
            swarm.cluster.kubectl(&["delete", "pod", &pod.name, "--wait=false"])?;
        }
        swarm.wait_whole(1)?;
        let answer = chat::ask(&swarm.gateway(&[])?, &question())?;
        ensure!(answer.ids.len() == TOKENS as usize, "{} tokens", answer.ids.len());
        Ok(())
    })
}

fn unhealthy(bench: &Bench<'_>) -> Result<()> {
    let stage = Stage::set(bench)?;
    let nodes = spot_nodes(bench.cluster)?;
    let [ill, well, ..] = &nodes[..] else { bail!("{nodes:?}") };
    stage.run(|swarm| {
        let gpu = small_gpu(swarm.cluster)?;
        let gpus = GpuNodes::start(swarm.cluster, &[ill.clone(), well.clone()], &gpu)?;
        gpus.plugin(ill)?.set_healthy(&gpu.devices[0], false)?;
        gpus.wait_offered(ill, GPU, 0)?;
        swarm.cluster.apply(&manifest(GPU, false))?;
        swarm.wait_whole(1)?;
        let peers = swarm.peers()?;
        ensure!(peers.iter().all(|peer| peer.node == *well), "{peers:?}");
        ensure!(gpus.plugin(ill)?.allocated().is_empty(), "an ill GPU was given away");

        // The other one falls ill as well, and a peer looks for a place.
        gpus.plugin(well)?.set_healthy(&gpu.devices[0], false)?;
        gpus.wait_offered(well, GPU, 0)?;
        swarm.cluster.kubectl(&["delete", "pod", &peers[0].name, "--wait=false"])?;
        wait::until_true("a condition says that no GPU is left", 2 * SAID, || {
            let said = swarm.object()?["status"]["conditions"].to_string();
            Ok((said.contains("Insufficient nvidia.com/gpu"), said))
        })?;
        gpus.plugin(ill)?.set_healthy(&gpu.devices[0], true)?;
        swarm.wait_whole(1)?;
        let peers = swarm.peers()?;
        ensure!(peers.iter().all(|peer| peer.node == *ill), "{peers:?}");
        Ok(())
    })
}

/// What scenarios with GPUs start from: a small model on a volume, and nothing else that computes.
struct Stage<'a> {
    bench: &'a Bench<'a>,
    folder: PathBuf,
}

impl<'a> Stage<'a> {
    fn set(bench: &'a Bench<'a>) -> Result<Self> {
        let folder = bench.cluster.fresh_folder(NAME)?;
        random_model(&folder.join(NAME))?;
        // Emulated GPUs need the processors for themselves.
        let example = deploy::example(bench.cluster, "smollm2.yaml")?;
        bench.cluster.apply(&example.replace("  pools:\n", "  suspend: true\n  pools:\n"))?;
        bench.swarm.wait_condition("Ready", "True", "Suspended", Duration::from_secs(60))?;
        bench.cluster.apply(&volume(&folder).to_string())?;
        Ok(Self { bench, folder })
    }

    /// The answer of one process on processors.
    fn alone(&self) -> Result<Answer> {
        let local = Local::start(&dunlin(), &self.folder.join(NAME), 1, 1)?;
        let answer = chat::ask(&local.url, &question())?;
        ensure!(answer.ids.len() == TOKENS as usize, "{} tokens", answer.ids.len());
        let different = answer.ids.iter().collect::<BTreeSet<_>>().len();
        ensure!(different > 20, "an answer of {different} different tokens shows little: {:?}", answer.ids);
        Ok(answer)
    }

    /// Runs `act`, and removes the swarm and what it needed. What pods said last goes into the error.
    fn run(&self, act: impl FnOnce(&Swarm<'_>) -> Result<()>) -> Result<()> {
        let cluster = self.bench.cluster;
        let swarm = Swarm { cluster, name: NAME.to_owned(), model: NAME.to_owned() };
        let result = act(&swarm);
        let result = result.map_err(|error| error.context(last_words(&swarm)));
        heal(cluster)?;
        let names = ["inferenceswarm", "persistentvolumeclaim", "persistentvolume"]
            .map(|kind| format!("{kind}/{NAME}"));
        for object in &names {
            cluster.kubectl(&["delete", object, "--ignore-not-found", "--timeout=60s"])?;
        }
        result
    }
}

fn last_words(swarm: &Swarm<'_>) -> String {
    let selector = format!("dunlin.dev/swarm={}", swarm.name);
    let said =
        swarm.cluster.kubectl(&["logs", "-l", &selector, "--tail=12", "--prefix", "--max-log-requests=20"]);
    format!("its pods: {}", said.unwrap_or_else(|error| format!("{error:#}")))
}

/// A model so small that emulated GPUs compute a hundred tokens a second with it.
fn random_model(folder: &Path) -> Result<()> {
    let mut command = Command::new(dunlin());
    command.args(["random-model", "--layers", "8", "--hidden", "128", "--heads", "4", "--kv-heads", "2"]);
    command.args(["--ffn", "256", "--vocab", "512", "--out"]).arg(folder);
    let output = command.output().context("dunlin random-model")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Sampled: what is likeliest to a random model may be the same token for ever.
fn question() -> Question {
    Question { temperature: 0.8, seed: 7, ..Question::greedy(NAME, PROMPT, TOKENS) }
}

/// A GPU whose memory, which is its container's, is enough for the model.
fn small_gpu(cluster: &Cluster) -> Result<Offer> {
    let mut offer = emulated_gpu(cluster)?;
    offer.environment.insert("DUNLIN_EMULATED_MEMORY".to_owned(), (64 << 20).to_string());
    Ok(offer)
}

fn volume(folder: &Path) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": NAME},
        "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadOnlyMany"], "storageClassName": NAME,
                 "hostPath": {"path": folder}},
    })
}

/// The claim, and the swarm: two peers with a GPU, which may go, and two without, which hold their layers; or one with a GPU alone.
fn manifest(resource: &str, with_processors: bool) -> String {
    let pool = |name: &str, capacity: &str, peers: usize, device: &Value| {
        json!({"name": name, "capacityType": capacity, "peers": {"min": peers, "max": peers}, "device": device,
               "memory": {"host": "384Mi"}})
    };
    let cpu = json!({"cores": 1, "request": "100m"});
    let gpu = json!({"cpu": cpu, "nvidia": {"resource": resource}});
    let pools = if with_processors {
        let steady = pool("steady", "OnDemand", PEERS_EACH, &json!({"cpu": cpu}));
        vec![pool(GPU_POOL, "Spot", PEERS_EACH, &gpu), steady]
    } else {
        vec![pool(GPU_POOL, "Spot", 1, &gpu)]
    };
    let shadows = usize::from(with_processors);
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": NAME},
        "spec": {"accessModes": ["ReadOnlyMany"], "storageClassName": NAME, "resources": {"requests": {"storage": "1Gi"}}},
    });
    let swarm = json!({
        "apiVersion": "dunlin.dev/v1alpha1", "kind": "InferenceSwarm", "metadata": {"name": NAME},
        "spec": {
            "model": {"name": NAME, "source": {"volume": {"claimName": NAME, "path": NAME}}, "maxSequenceLength": 1024},
            "pools": pools, "redundancy": {"shadows": shadows}, "gateway": {"replicas": 2},
        },
    });
    format!("{claim}\n---\n{swarm}")
}

/// Nodes that may go, those first on which the operator does not run.
fn spot_nodes(cluster: &Cluster) -> Result<Vec<String>> {
    let list = cluster.get(&["nodes", "-l", "karpenter.sh/capacity-type=spot"])?;
    let items = list["items"].as_array().into_iter().flatten();
    let mut nodes: Vec<String> =
        items.filter_map(|node| node["metadata"]["name"].as_str().map(str::to_owned)).collect();
    let operators = cluster.get(&["pods", "-n", OPERATOR_NAMESPACE])?;
    let has_operator: BTreeSet<&str> = operators["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|pod| pod["spec"]["nodeName"].as_str())
        .collect();
    nodes.sort_by_key(|node| (has_operator.contains(node.as_str()), node.clone()));
    ensure!(nodes.len() > 1, "{} spot nodes", nodes.len());
    Ok(nodes)
}

/// Peers of the pool with GPUs that have layers of their own to compute.
fn gpu_peers(swarm: &Swarm<'_>) -> Result<Vec<Peer>> {
    let prefix = format!("{NAME}-{GPU_POOL}-");
    Ok(swarm.peers()?.into_iter().filter(|peer| peer.name.starts_with(&prefix)).collect())
}

/// Shows that `peer` computes on a GPU: its pod has one, and its process found it.
fn on_a_gpu(swarm: &Swarm<'_>, gpus: &GpuNodes<'_>, peer: &Peer) -> Result<()> {
    let pod = swarm.cluster.get(&["pod", &peer.name])?;
    let limits = &pod["spec"]["containers"][0]["resources"]["limits"];
    ensure!(limits[GPU] == "1", "{}: {limits}", peer.name);
    ensure!(!gpus.plugin(&peer.node)?.allocated().is_empty(), "{} has no GPU of the plugin", peer.name);
    let said = swarm.cluster.kubectl(&["logs", &peer.name])?;
    ensure!(said.contains("computes on a GPU"), "{} found no GPU: {said}", peer.name);
    ensure!(peer.end > peer.start, "{} computes no layers", peer.name);
    Ok(())
}

/// Sessions of the gateways that went on after a disturbance.
fn recoveries(swarm: &Swarm<'_>) -> Result<u64> {
    let mut sum = 0;
    for pod in swarm.pods("gateway")?.iter().filter(|pod| pod.ready) {
        let (status, page) = chat::get(&format!("{}/metrics", gateway_url(pod)))?;
        ensure!(status == 200, "{}: {status}", pod.name);
        let lines = page.lines().filter(|line| line.starts_with("dunlin_recoveries_total{"));
        sum += lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>();
    }
    Ok(sum)
}
