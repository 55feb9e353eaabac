//! Bad manifests are refused with a message that says what to do; bad models stall the swarm and are mended by editing.

use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::bench::{Bench, PEERS, PROMPT, Scenario, TOKENS, same};
use crate::chat::{self, Question};
use crate::deploy;
use crate::swarm::Swarm;

const STALL_LIMIT: Duration = Duration::from_secs(60);

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "bad-manifests-are-refused-with-the-reason", run: refused },
        Scenario { name: "a-second-manager-has-a-pool-of-its-own", run: shared },
        Scenario { name: "bad-models-stall-and-are-mended-by-editing", run: stalled },
    ]
}

fn example(bench: &Bench<'_>) -> Result<String> {
    deploy::example(bench.cluster, "smollm2.yaml")
}

/// (what is replaced, by what, what the refusal must say)
const BAD: &[(&str, &str, &str)] = &[
    ("url: \"http://", "url: \"ftp://", "http"),
    ("sha256: \"b179", "sha256: \"xyz9", "sha256"),
    ("min: 3", "min: 9", "min"),
    ("  pools:\n", "  replicas: 0\n  pools:\n", "replicas"),
    ("name: refused\n", "name: refused.3\n", "the name of a swarm"),
    ("name: refused\n", "name: 3-refused\n", "the name of a swarm"),
    ("host: 512Mi", "host: 0", "at least 16Mi"),
    ("host: 512Mi", "host: a lot", "host"),
    ("request: 200m", "request: 0", "at least 1m"),
    (
        "      memory:\n",
        "      podTemplate: {labels: {dunlin.dev/role: gateway}}\n      memory:\n",
        "are the operator's",
    ),
    ("url: \"http://models.default.svc/", "url: \"http:///", "name a host"),
    (
        "    replicas: 2\n",
        "    replicas: 2\n    resources: {requests: {memory: 2Gi}, limits: {memory: 1Gi}}\n",
        "requests must be at most limits",
    ),
    ("shadows: 1", "shadows: 7", "shadows"),
    ("capacityType: Spot", "capacityType: Cheap", "capacityType"),
    ("  pools:\n", "  replicas: 7\n  pools:\n", "replicas must be at most"),
    (
        "  pools:\n",
        "  adapters:\n    - {name: a, source: {volume: {claimName: c, path: a}}}\n    - {name: a, source: {volume: {claimName: c, path: b}}}\n  pools:\n",
        "duplicate entries for key [name=\"a\"]",
    ),
    (
        "  pools:\n",
        "  adapters:\n    - {name: smollm2-135m, source: {volume: {claimName: c, path: a}}}\n  pools:\n",
        "the name of an adapter must not be that of the model",
    ),
    ("    source:\n", "    source:\n      volume: {claimName: models, path: x.gguf}\n", "exactly one source"),
    ("  gateway:\n", "  quantisation: Q4\n  gateway:\n", "quantisation"),
];

/// The same of a training run.
const BAD_RUNS: &[(&str, &str, &str)] = &[
    ("  data:\n", "  adapter: {lora: {}}\n  data:\n", "adapter needs model.source"),
    ("  data:\n", "  adapter: {lora: {}, prompt: {}}\n  data:\n", "exactly one adapter"),
    ("  data:\n", "  adapter: {lora: {alpha: 0}}\n  data:\n", "alpha must be more than 0"),
    ("  data:\n", "  adapter: {lora: {targets: [Query, Query]}}\n  data:\n", "targets must be unique"),
    ("  data:\n", "  adapter: {lora: {targets: [Norm]}}\n  data:\n", "Norm"),
];

fn refused(bench: &Bench<'_>) -> Result<()> {
    let good = example(bench)?.replace("name: smollm2\n", "name: refused\n");
    let text = deploy::example(bench.cluster, "train-bible.yaml")?;
    let run = text.split("\n---\n").last().unwrap_or_default().replace("name: bible\n", "name: refused\n");
    let all = BAD.iter().map(|bad| (&good, bad)).chain(BAD_RUNS.iter().map(|bad| (&run, bad)));
    for (good, (what, by, must_say)) in all {
        ensure!(good.contains(what), "the example no longer has `{what}`");
        let bad = good.replacen(what, by, 1);
        match bench.cluster.apply(&bad) {
            Ok(_) => bail!("accepted with `{by}`"),
            Err(error) => {
                let text = format!("{error:#}");
                ensure!(
                    text.contains(must_say),
                    "`{by}` is refused, but the message has no `{must_say}`: {text}"
                );
            }
        }
    }
    let renamed = example(bench)?.replace("name: smollm2-135m", "name: another");
    let refusal = bench.cluster.apply(&renamed).err().map(|e| format!("{e:#}")).unwrap_or_default();
    ensure!(refusal.contains("model.name cannot change"), "renaming a served model: {refusal:?}");
    // Selectable fields: what serves this model?
    let selector = format!("--field-selector=spec.model.name={}", bench.swarm.model);
    let found = bench.cluster.kubectl(&["get", "inferenceswarms", &selector, "-o", "name"])?;
    ensure!(found.trim().ends_with(&format!("/{}", bench.swarm.name)), "by model name: {found}");
    Ok(())
}

fn shared(bench: &Bench<'_>) -> Result<()> {
    let ours = format!(
        "{{apiVersion: dunlin.dev/v1alpha1, kind: InferenceSwarm, metadata: {{name: {}, namespace: default}}}}",
        bench.swarm.name
    );
    let pool = "{name: reserve, peers: {min: 0, max: 1}, device: {cpu: {cores: 1}}, memory: {host: 512Mi}}";
    let with_pool = format!("{}, spec: {{pools: [{pool}]}}}}", ours.strip_suffix('}').unwrap_or(&ours));
    let pools = || -> Result<Vec<String>> {
        let list = bench.swarm.object()?["spec"]["pools"].as_array().cloned().unwrap_or_default();
        Ok(list.iter().map(|pool| pool["name"].as_str().unwrap_or_default().to_owned()).collect())
    };
    let result = (|| {
        bench.cluster.apply_as("somebody-else", &with_pool)?;
        bench.cluster.apply(&example(bench)?)?;
        let found = pools()?;
        ensure!(found == ["spot", "reserve"], "each has a pool: {found:?}");
        Ok(())
    })();
    // What a manager no longer applies goes.
    bench.cluster.apply_as("somebody-else", &ours)?;
    result?;
    let found = pools()?;
    ensure!(found == ["spot"], "{found:?}");
    bench.swarm.wait_whole(PEERS)
}

fn stalled(bench: &Bench<'_>) -> Result<()> {
    let good = example(bench)?
        .replace("name: smollm2\n", "name: stalled\n")
        .replace("name: smollm2-135m", "name: stalled-model");
    let url_line = good.lines().find(|l| l.contains("url:")).unwrap_or_default().to_owned();
    let sha_line = good.lines().find(|l| l.contains("sha256:")).unwrap_or_default().to_owned();
    ensure!(!url_line.is_empty() && !sha_line.is_empty(), "the example has no url or sha256");
    let indent = &url_line[..url_line.len() - url_line.trim_start().len()];
    let url = |path: &str| format!("{indent}url: \"http://models.default.svc/{path}\"");
    let swarm =
        Swarm { cluster: bench.cluster, name: "stalled".to_owned(), model: "stalled-model".to_owned() };
    let cases = [
        (
            "unreachable",
            good.replace(&url_line, &format!("{indent}url: \"http://nobody.default.svc/x.gguf\"")),
            "ModelUnreachable",
        ),
        ("missing", good.replace(&url_line, &url("missing.gguf")), "ModelUnreachable"),
        ("wrong digest", good.replace("sha256: \"b179", "sha256: \"0000"), "ModelDigestMismatch"),
        ("truncated", good.replace(&url_line, &url("truncated.gguf")).replace(&sha_line, ""), "ModelInvalid"),
        ("hostile", good.replace(&url_line, &url("hostile.gguf")).replace(&sha_line, ""), "ModelInvalid"),
    ];
    let result = (|| {
        for (name, manifest, reason) in &cases {
            bench.cluster.apply(manifest)?;
            let message = swarm.wait_condition("Stalled", "True", reason, STALL_LIMIT)?;
            ensure!(message.len() > 20, "{name}: the message says too little: {message:?}");
            ensure!(!crate::swarm::conditions(&swarm.object()?).is_empty(), "{name}: no conditions");
        }
        bench.cluster.apply(&good)?;
        swarm.wait_whole(PEERS)?;
        let question = Question::greedy(&swarm.model, PROMPT, TOKENS);
        same(&bench.reference, &chat::ask(&swarm.gateway(&[])?, &question)?)
    })();
    bench.cluster.kubectl(&["delete", "inferenceswarm", "stalled", "--ignore-not-found", "--timeout=60s"])?;
    result
}
