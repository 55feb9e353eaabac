//! Tools that wait for an object by the rules of kstatus (Helm, Flux) see what is true.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::bench::{Bench, Scenario};
use super::outage::scale_operator;
use crate::cluster::Cluster;
use crate::deploy;
use crate::kstatus::Kstatus;
use crate::wait;

/// (kind, an example of it, the name there, the name here)
const KINDS: [(&str, &str, &str, &str); 2] = [
    ("InferenceSwarm", "smollm2.yaml", "smollm2", "waited-for-serves"),
    ("TrainingSwarm", "train-bible.yaml", "bible", "waited-for-trains"),
];
/// The operator comes back and looks at everything within this.
const LIMIT: Duration = Duration::from_secs(60);

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario { name: "kstatus-of-swarms-before-while-and-after", run: waited_for }]
}

fn waited_for(bench: &Bench<'_>) -> Result<()> {
    let kstatus = Kstatus::build()?;
    let of = |kind: &str, name: &str| kstatus.of(bench.cluster, kind, name);
    let is = |kind: &str, name: &str, expected: &str| -> Result<()> {
        let (found, why) = of(kind, name)?;
        ensure!(found == expected, "{kind} {name} is {found}, not {expected}: {why}");
        Ok(())
    };
    is("InferenceSwarm", &bench.swarm.name, "Current")?;
    let result = (|| {
        // Nobody is there to say anything of new objects, and so they are not done.
        scale_operator(bench, 0)?;
        for (kind, file, example, name) in KINDS {
            bench.cluster.apply(&suspended(bench.cluster, kind, file, [example, name])?)?;
            is(kind, name, "InProgress").context("no operator has seen it")?;
        }
        scale_operator(bench, 2)?;
        for (kind, .., name) in KINDS {
            wait::until_true(&format!("{kind} {name} is Current"), LIMIT, || {
                let (found, why) = of(kind, name)?;
                Ok((found == "Current", format!("{found}: {why}")))
            })?;
            // Something of the user's keeps it from going at once.
            let finalizers = |list: &str| {
                let patch = format!(r#"{{"metadata": {{"finalizers": {list}}}}}"#);
                bench.cluster.kubectl(&["patch", kind, name, "--type=merge", "-p", &patch])
            };
            finalizers(r#"["example.com/wait"]"#)?;
            bench.cluster.kubectl(&["delete", kind, name, "--wait=false"])?;
            let deleting = is(kind, name, "Terminating");
            finalizers("[]")?;
            deleting?;
        }
        Ok(())
    })();
    scale_operator(bench, 2)?;
    for (kind, .., name) in KINDS {
        bench.cluster.kubectl(&["delete", kind, name, "--ignore-not-found", "--timeout=60s"])?;
    }
    result
}

/// The swarm of an example under another name, running nothing.
fn suspended(cluster: &Cluster, kind: &str, file: &str, [example, name]: [&str; 2]) -> Result<String> {
    let text = deploy::example(cluster, file)?;
    let of_kind = |document: &&str| document.contains(&format!("\nkind: {kind}\n"));
    let document = text.split("\n---\n").find(of_kind).with_context(|| format!("{file} has no {kind}"))?;
    let named = format!("  name: {example}\nspec:\n");
    ensure!(document.contains(&named), "{file} begins in another way");
    Ok(document.replacen(&named, &format!("  name: {name}\nspec:\n  suspend: true\n"), 1))
}
