//! A node that has peers of two swarms is drained.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::program::{dunlin, text};
use crate::chat::{self, Question, Stream};
use crate::deploy;
use crate::scenarios::bench::{Bench, LOSS_AT, PEERS, PROMPT, TOKENS, same};
use crate::swarm::{Peer, Swarm};

/// The swarm beside that of the bench.
const OTHER: &str = "smollm2-other";

pub(super) fn drain(bench: &Bench<'_>) -> Result<()> {
    let example = deploy::example(bench.cluster, "smollm2.yaml")?;
    let example = example.replace("  name: smollm2\n", &format!("  name: {OTHER}\n"));
    bench.cluster.apply(&example)?;
    let other = Swarm { cluster: bench.cluster, name: OTHER.to_owned(), model: bench.swarm.model.clone() };
    let result = both(bench, &other);
    bench.cluster.kubectl(&["delete", "inferenceswarm", OTHER, "--timeout=60s"])?;
    result
}

fn both(bench: &Bench<'_>, other: &Swarm<'_>) -> Result<()> {
    other.wait_whole(PEERS)?;
    bench.swarm.wait_whole(PEERS)?;
    let mut by_node: BTreeMap<String, Vec<Peer>> = BTreeMap::new();
    for peer in bench.swarm.peers()?.into_iter().chain(other.peers()?) {
        by_node.entry(peer.node.clone()).or_default().push(peer);
    }
    let of_both = |peers: &&Vec<Peer>| {
        let of_other = peers.iter().filter(|peer| peer.name.starts_with(OTHER)).count();
        of_other > 0 && of_other < peers.len()
    };
    let victims =
        by_node.values().find(of_both).with_context(|| format!("no node has peers of both: {by_node:?}"))?;
    let node = victims[0].node.as_str();

    let question = Question::greedy(&other.model, PROMPT, TOKENS);
    let reference = chat::ask(&other.gateway(&[node])?, &question)?;
    let stream = bench.stream_until_loss(&[node])?;
    let mut beside = Stream::start(&other.gateway(&[node])?, &question);
    beside.read_tokens(LOSS_AT)?;
    let drained = dunlin(bench, &["drain", node])?;
    let said = text(&drained);
    ensure!(drained.status.success(), "{}: {said}", drained.status);
    for victim in victims {
        ensure!(said.contains(&format!("pod {} has left {node}", victim.name)), "{victim:?}: {said}");
    }
    bench.same_tokens(stream)?;
    same(&reference, &beside.finish()?)?;
    let object = bench.cluster.get(&["node", node])?;
    ensure!(
        object["spec"]["unschedulable"] == Value::Bool(true),
        "the node is not cordoned: {}",
        object["spec"]
    );
    let still = [bench.swarm.pods("stage")?, other.pods("stage")?].concat();
    ensure!(still.iter().all(|pod| pod.node != node || pod.deleting), "pods are left on {node}: {still:?}");
    bench.cluster.kubectl(&["uncordon", node])?;
    other.wait_whole(PEERS)?;
    bench.swarm.wait_whole(PEERS)
}
