//! A swarm that serves is changed, in its manifest or in its image: pods are replaced one at a time, and clients notice nothing.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::bench::{Bench, PEERS, PROMPT, Scenario, TOKENS, same};
use crate::chat::{self, Answer, Question};
use crate::cluster::Cluster;
use crate::deploy;
use crate::swarm::{Swarm, conditions, is_over};
use crate::wait;

/// How long a swarm of three may take until none of its pods is from before a change.
pub(super) const ROLLED: Duration = Duration::from_secs(180);
const IMAGE: &str = "registry.local/dunlin-worker";

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "an-edited-pool-is-rolled-one-peer-at-a-time-under-load", run: pool },
        Scenario { name: "another-image-is-rolled-one-peer-at-a-time-under-load", run: image },
    ]
}

/// Runs `change` while two clients ask `swarm` one question after another, each time whichever gateway is ready; every answer must be whole
/// and the same as `reference`.
pub(super) fn under_load(
    swarm: &Swarm<'_>,
    reference: &Answer,
    change: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let stop = AtomicBool::new(false);
    let question = Question::greedy(&swarm.model, PROMPT, TOKENS);
    std::thread::scope(|scope| {
        let ask = || -> Result<u32> {
            let mut answers = 0;
            while !stop.load(Ordering::Relaxed) {
                same(reference, &chat::ask(&swarm.gateway(&[])?, &question)?)?;
                answers += 1;
            }
            Ok(answers)
        };
        let clients = [scope.spawn(ask), scope.spawn(ask)];
        let changed = change();
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            let answers = client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
            ensure!(answers > 0, "a client got no answer at all");
        }
        changed
    })
}

/// Waits until every pod of `swarm` passes `is_new` and the swarm says that the change is carried out. On the way at least `peers` stages run.
/// `edited`: the manifest was, so the swarm must not say so any earlier.
pub(super) fn rolled(
    swarm: &Swarm<'_>,
    peers: usize,
    edited: bool,
    is_new: impl Fn(&Value) -> bool,
) -> Result<()> {
    let mut wrong = BTreeSet::new();
    wait::until_true("the change is carried out", ROLLED, || {
        let (object, pods) = (swarm.object()?, running(swarm.cluster, &swarm.name)?);
        let stages = pods.iter().filter(|pod| pod["metadata"]["labels"]["dunlin.dev/role"] == "stage");
        let stages = stages.filter(|pod| pod["status"]["phase"] == "Running").count();
        let name = |pod: &Value| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let older: Vec<String> = pods.iter().filter(|pod| !is_new(pod)).map(name).collect();
        let told = conditions(&object)["Reconciling"].clone();
        let done = object["status"]["observedGeneration"] == object["metadata"]["generation"]
            && told["status"] == "False";
        if stages < peers {
            wrong.insert(format!("only {stages} stages ran"));
        }
        if edited && done && !older.is_empty() {
            wrong.insert(format!("it was said to be carried out while {older:?} were from before"));
        }
        Ok((done && older.is_empty(), format!("from before: {older:?}; {told}")))
    })?;
    ensure!(wrong.is_empty(), "{wrong:?}");
    Ok(())
}

fn pool(bench: &Bench<'_>) -> Result<()> {
    let before = bench.swarm.peers()?;
    let example = deploy::example(bench.cluster, "smollm2.yaml")?;
    let memory = |pod: &Value| pod["spec"]["containers"][0]["resources"]["limits"]["memory"].clone();
    under_load(&bench.swarm, &bench.reference, || {
        bench.cluster.apply(&example.replace("host: 512Mi", "host: 640Mi"))?;
        rolled(&bench.swarm, before.len(), true, |pod| {
            pod["metadata"]["labels"]["dunlin.dev/role"] != "stage" || is_amount(&memory(pod), 640 << 20)
        })
    })?;
    bench.swarm.wait_replaced(&before, PEERS)?;
    let events = bench.cluster.get(&["events"])?.to_string();
    ensure!(events.contains("PeerRolled"), "no Event PeerRolled");
    Ok(())
}

/// Kubernetes writes an amount of bytes in its own way.
pub(super) fn is_amount(quantity: &Value, bytes: u64) -> bool {
    let as_written = [bytes.to_string(), format!("{}Mi", bytes >> 20)];
    quantity.as_str().is_some_and(|quantity| as_written.iter().any(|text| text == quantity))
}

fn image(bench: &Bench<'_>) -> Result<()> {
    let before = bench.swarm.peers()?;
    let (old, new) = (format!("{IMAGE}:dev"), format!("{IMAGE}:next"));
    bench.cluster.verb(&["tag-image", &old, &new])?;
    under_load(&bench.swarm, &bench.reference, || {
        deploy::install_chart(bench.cluster, &["--set", "image.worker.tag=next"])?;
        rolled(&bench.swarm, before.len(), false, |pod| pod["spec"]["containers"][0]["image"] == new.as_str())
    })?;
    bench.swarm.wait_replaced(&before, PEERS)?;
    // The next scenarios are about the image as it was built; this, too, is rolled.
    deploy::install_chart(bench.cluster, &[])?;
    rolled(&bench.swarm, before.len(), false, |pod| pod["spec"]["containers"][0]["image"] == old.as_str())
}

/// Pods of the swarm that run and are not about to go.
fn running(cluster: &Cluster, name: &str) -> Result<Vec<Value>> {
    let list = cluster.get(&["pods", "-l", &format!("dunlin.dev/swarm={name}")])?;
    let pods = list["items"].as_array().cloned().unwrap_or_default();
    let live = |pod: &Value| !is_over(pod) && pod["metadata"]["deletionTimestamp"].is_null();
    Ok(pods.into_iter().filter(live).collect())
}
