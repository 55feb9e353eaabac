//! An adapter of a real, quantised model: trained through the loss of a node, and served beside the model.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::bench::{Bench, PROMPT, Scenario, TOKENS, heal, same};
use super::clients::models_volume;
use super::edits::{rolled, under_load};
use super::training::{Example, LIMIT, Run};
use crate::chat::{self, Answer, Question};
use crate::deploy;
use crate::local::{Local, dunlin};
use crate::swarm::Swarm;

const BIBLICAL: Example = Example { file: "train-adapter.yaml", name: "biblical", peers: 4 };

/// (what is replaced in the example, by what): a run of a minute.
const SHORT: &[(&str, &str)] = &[
    ("sequenceLength: 64", "sequenceLength: 32"),
    ("globalBatch: 8", "globalBatch: 4"),
    ("steps: 40", "steps: 16"),
    ("batches: 4", "batches: 2"),
    ("warmupSteps: 4", "warmupSteps: 2"),
    ("learningRate: 0.002", "learningRate: 0.005"),
];

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "an-adapter-is-trained-over-a-quantised-model-through-a-kill-and-served-beside-it",
        run: train_and_serve,
    }]
}

fn train_and_serve(bench: &Bench<'_>) -> Result<()> {
    let model = models_volume(bench)?;
    let base = format!("path: {model}");
    let changes = [SHORT, &[("path: smollm2.gguf", base.as_str())]].concat();
    let run = Run::start(bench.cluster, BIBLICAL, &changes)?;

    let step = run.training.wait_step(3, LIMIT)?["step"].as_u64().unwrap_or(0);
    run.whole()?;
    let node = run.node_of_peers_only()?;
    bench.cluster.verb(&["kill", &node])?;
    let status = run.training.wait_step(step + 2, LIMIT).context("after a kill")?;
    ensure!(status["lost"].as_u64() > Some(0), "nobody was lost with node {node}: {status}");
    bench.cluster.verb(&["start", &node])?;
    run.training.wait_condition("Succeeded", "True", "AllStepsDone", Duration::from_secs(300))?;
    let checkpoint = run.same_weights()?;
    heal(bench.cluster)?;

    let path = checkpoint.strip_prefix(&run.folder)?.to_string_lossy().into_owned();
    let example = deploy::example(bench.cluster, "serve-adapter.yaml")?;
    let example = example.replace("path: biblical/step-00000040", &format!("path: {path}"));
    let example = example.replace("path: smollm2.gguf", &format!("path: {model}"));
    let swarm = Swarm { cluster: bench.cluster, name: "adapted".into(), model: "smollm2-135m".into() };
    // First without: the list of adapters may change while a swarm serves.
    let (from, to) = (example.find("  adapters:\n"), example.find("  pools:\n"));
    let (from, to) = from.zip(to).context("serve-adapter.yaml has adapters, then pools")?;
    bench.cluster.apply(&[&example[..from], &example[to..]].concat())?;
    swarm.wait_whole(2)?;
    under_load(&swarm, &bench.reference, || {
        bench.cluster.apply(&example)?;
        rolled(&swarm, 2, true, |pod| pod["spec"]["containers"][0]["args"].to_string().contains("biblical="))
    })
    .context("an adapter is added")?;
    swarm.wait_whole(2)?;
    let ask = |model: &str| -> Result<Answer> {
        chat::ask(&swarm.gateway(&[])?, &Question::greedy(model, PROMPT, TOKENS))
    };
    same(&bench.reference, &ask("smollm2-135m")?).context("the model beside an adapter")?;
    let adapted = ask("biblical")?;
    ensure!(adapted.ids != bench.reference.ids, "the adapter changes nothing: {:?}", adapted.text);
    let file = deploy::fetched("fetch-model.sh")?;
    let adapter = format!("biblical={}", checkpoint.display());
    let local = Local::start_with(&dunlin(), &file, &[adapter], 1, 2)?;
    let alone = chat::ask(&local.url, &Question::greedy("biblical", PROMPT, TOKENS))?;
    same(&alone, &adapted).context("the adapter in a swarm of one process")?;
    drop(local);

    bench.cluster.kubectl(&["delete", "inferenceswarm", "adapted", "--timeout=60s"])?;
    run.remove()?;
    for object in ["persistentvolumeclaim/models", "persistentvolume/models"] {
        bench.cluster.kubectl(&["delete", object, "--ignore-not-found", "--timeout=60s"])?;
    }
    Ok(())
}
