//! Whoever applies a file of `examples/` on the cluster of the quick start sees it work.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::bench::{Bench, PEERS, Scenario};
use crate::chat::{self, Question};
use crate::cluster::repository;
use crate::deploy;
use crate::swarm::Swarm;
use crate::training::Training;

/// Files that have been applied before, because every scenario needs them.
const APPLIED: [&str; 2] = ["local/models-server.yaml", "smollm2.yaml"];
/// Those of autoscalers: the first is tried with a real HorizontalPodAutoscaler by another scenario, the second needs KEDA.
const ELSEWHERE: [&str; 2] = ["hpa.yaml", "keda.yaml"];
/// In the order in which one needs the other. (file, name, what becomes of it)
const FILES: [(&str, &str, Becomes); 5] = [
    ("volume.yaml", "from-volume", Becomes::Ready("from-volume", PEERS)),
    ("train-bible.yaml", "bible", Becomes::Succeeded),
    ("serve-trained.yaml", "bible-served", Becomes::Ready("bible", 2)),
    ("train-adapter.yaml", "biblical", Becomes::Succeeded),
    ("serve-adapter.yaml", "adapted", Becomes::Ready("biblical", 2)),
];
/// The first update of a run comes within this.
const FIRST_UPDATE: Duration = Duration::from_secs(60);
/// The last within this.
const LAST_UPDATE: Duration = Duration::from_secs(30 * 60);

enum Becomes {
    /// It answers for this model, with so many peers.
    Ready(&'static str, u64),
    /// All its steps are done.
    Succeeded,
}

pub(super) fn long() -> Vec<Scenario> {
    vec![Scenario { name: "every-example-works", run: every_example }]
}

fn every_example(bench: &Bench<'_>) -> Result<()> {
    let told: BTreeSet<String> = APPLIED
        .into_iter()
        .chain(ELSEWHERE)
        .chain(FILES.iter().map(|(file, ..)| *file))
        .map(str::to_owned)
        .collect();
    ensure!(told == there()?, "files of examples/: {:?}, those of this scenario: {told:?}", there()?);
    deploy::storage(bench.cluster)?;
    for (file, name, becomes) in &FILES {
        let applied = Instant::now();
        deploy::apply_example(bench.cluster, file)?;
        let kind = match becomes {
            Becomes::Ready(model, peers) => {
                let swarm =
                    Swarm { cluster: bench.cluster, name: (*name).to_owned(), model: (*model).to_owned() };
                swarm.wait_whole(*peers).with_context(|| (*file).to_owned())?;
                let question = Question::continued(model, "In the beginning", 24);
                let answer = chat::ask(&swarm.gateway(&[])?, &question)?;
                ensure!(!answer.ids.is_empty(), "{file}: no answer");
                "inferenceswarm"
            }
            Becomes::Succeeded => {
                let run = Training { cluster: bench.cluster, name: (*name).to_owned() };
                run.wait_step(1, FIRST_UPDATE).with_context(|| (*file).to_owned())?;
                println!("    {file} trains after {:.0} s", applied.elapsed().as_secs_f64());
                run.wait_condition("Succeeded", "True", "AllStepsDone", LAST_UPDATE)?;
                "trainingswarm"
            }
        };
        println!("    {file} is as it should be after {:.0} s", applied.elapsed().as_secs_f64());
        // The claims stay: what follows reads what is on them.
        bench.cluster.kubectl(&["delete", kind, name, "--timeout=60s"])?;
    }
    Ok(())
}

/// The manifests of `examples/`.
fn there() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for (folder, before) in [("examples", ""), ("examples/local", "local/")] {
        for entry in std::fs::read_dir(repository().join(folder))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.ends_with(".yaml") {
                found.insert(format!("{before}{name}"));
            }
        }
    }
    Ok(found)
}
