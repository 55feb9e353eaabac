//! What others bring: their client, their volume.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::bench::{Bench, PEERS, PROMPT, Scenario, TOKENS, same};
use crate::chat::{self, Question};
use crate::cluster::repository;
use crate::deploy::{self, fetched};
use crate::swarm::Swarm;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "the-official-openai-client", run: openai },
        Scenario { name: "model-from-a-volume", run: volume },
    ]
}

/// `e2e/openai/test_openai.py` against a gateway of the cluster.
fn openai(bench: &Bench<'_>) -> Result<()> {
    let url = format!("{}/v1", bench.swarm.gateway(&[])?);
    let output = Command::new(repository().join("e2e/openai/run.sh")).arg(&url).output().context("run.sh")?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{told}");
    ensure!(told.contains("Ran ") && !told.contains("Ran 0 tests"), "nothing was tested: {told}");
    Ok(())
}

/// A volume with the model; the name of its file.
pub(super) fn models_volume(bench: &Bench<'_>) -> Result<String> {
    let file = fetched("fetch-model.sh")?;
    let (Some(folder), Some(name)) = (file.parent(), file.file_name()) else {
        anyhow::bail!("fetch-model.sh printed no path: {}", file.display())
    };
    let volume = format!(
        "{{apiVersion: v1, kind: PersistentVolume, metadata: {{name: models}}, spec: {{capacity: {{storage: 1Gi}}, accessModes: \
         [ReadOnlyMany], storageClassName: models, hostPath: {{path: \"{}\"}}}}}}",
        folder.display()
    );
    bench.cluster.apply(&volume)?;
    Ok(name.to_string_lossy().into_owned())
}

/// The same model from a PersistentVolumeClaim: the nodes of the local cluster share the disk of this machine.
fn volume(bench: &Bench<'_>) -> Result<()> {
    let name = models_volume(bench)?;
    let example = deploy::example(bench.cluster, "volume.yaml")?;
    let swarm = Swarm { cluster: bench.cluster, name: "from-volume".into(), model: "from-volume".into() };
    bench.cluster.apply(&example.replace("smollm2.gguf", &name))?;
    swarm.wait_whole(PEERS)?;
    let question = Question::greedy(&swarm.model, PROMPT, TOKENS);
    same(&bench.reference, &chat::ask(&swarm.gateway(&[])?, &question)?)?;
    // Only now: what is left of a failure tells why.
    for object in ["inferenceswarm/from-volume", "persistentvolumeclaim/models", "persistentvolume/models"] {
        bench.cluster.kubectl(&["delete", object, "--ignore-not-found", "--timeout=60s"])?;
    }
    Ok(())
}
