//! Peers that go: killed, silent, deleted, drained, two at once.

use anyhow::{Result, ensure};

use super::bench::{Bench, PEERS, Scenario, heal, same};
use crate::chat::Stream;
use crate::swarm::Peer;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "node-killed-without-notice-mid-stream", run: node_killed },
        Scenario { name: "node-silent-mid-stream-and-back-with-its-old-epoch", run: node_silent },
        Scenario { name: "pod-deleted-mid-stream", run: pod_deleted },
        Scenario { name: "node-drained-mid-stream", run: node_drained },
        Scenario { name: "node-shut-down-with-notice-mid-stream", run: node_shut_down },
        Scenario { name: "two-stage-peers-lost-at-once", run: two_lost },
        Scenario { name: "eight-streams-through-a-kill", run: eight_streams },
    ]
}

fn node_killed(bench: &Bench<'_>) -> Result<()> {
    let victim = bench.swarm.middle_peer()?;
    let stream = bench.stream_until_loss(&[&victim.node])?;
    bench.cluster.verb(&["kill", &victim.node])?;
    bench.same_tokens(stream)?;
    bench.swarm.wait_replaced(&[victim], PEERS)
}

fn node_silent(bench: &Bench<'_>) -> Result<()> {
    let victim = bench.swarm.middle_peer()?;
    let stream = bench.stream_until_loss(&[&victim.node])?;
    bench.cluster.verb(&["silence", &victim.node])?;
    bench.same_tokens(stream)?;
    bench.swarm.wait_replaced(std::slice::from_ref(&victim), PEERS)?;
    // The node was never dead: it comes back with the peer of the old epoch still running on it.
    let epoch = bench.swarm.topology()?["epoch"].as_u64();
    bench.cluster.verb(&["unsilence", &victim.node])?;
    bench.same_tokens(Stream::start(&bench.swarm.gateway(&[])?, &bench.question()))?;
    heal(bench.cluster)?;
    bench.swarm.wait_whole(PEERS)?;
    let peers = bench.swarm.peers()?;
    ensure!(peers.iter().all(|p| p.name != victim.name), "the old peer serves again: {peers:?}");
    ensure!(bench.swarm.topology()?["epoch"].as_u64() >= epoch, "the epoch went back");
    bench.same_tokens(Stream::start(&bench.swarm.gateway(&[])?, &bench.question())).map(drop)
}

fn pod_deleted(bench: &Bench<'_>) -> Result<()> {
    let victim = bench.swarm.middle_peer()?;
    let stream = bench.stream_until_loss(&[])?;
    bench.cluster.kubectl(&["delete", "pod", &victim.name, "--wait=false"])?;
    bench.same_tokens(stream)?;
    bench.swarm.wait_replaced(&[victim], PEERS)
}

fn node_drained(bench: &Bench<'_>) -> Result<()> {
    let victim = bench.swarm.middle_peer()?;
    let stream = bench.stream_until_loss(&[&victim.node])?;
    bench.cluster.kubectl(&[
        "drain",
        &victim.node,
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--force",
        "--timeout=60s",
    ])?;
    bench.same_tokens(stream)?;
    bench.swarm.wait_replaced(&[victim], PEERS)
}

fn node_shut_down(bench: &Bench<'_>) -> Result<()> {
    let victim = bench.swarm.middle_peer()?;
    let stream = bench.stream_until_loss(&[&victim.node])?;
    bench.cluster.verb(&["shutdown", &victim.node, "15"])?;
    bench.same_tokens(stream)?;
    bench.swarm.wait_replaced(&[victim], PEERS)
}

/// With one shadow per layer, two neighbours of three hold everything a lost pair held only if their spans and shadows
/// do not coincide; where they do, the stream waits for the replacement and then goes on. Either way no token changes.
fn two_lost(bench: &Bench<'_>) -> Result<()> {
    let peers = bench.swarm.peers()?;
    let victims: Vec<Peer> = peers[1..].to_vec();
    ensure!(victims.len() == 2, "three peers expected: {peers:?}");
    let avoid: Vec<&str> = victims.iter().map(|p| p.node.as_str()).collect();
    let stream = bench.stream_until_loss(&avoid)?;
    std::thread::scope(|scope| -> Result<()> {
        let kills: Vec<_> =
            victims.iter().map(|p| scope.spawn(|| bench.cluster.verb(&["kill", &p.node]))).collect();
        for kill in kills {
            kill.join().map_err(|_| anyhow::anyhow!("the kill panicked"))??;
        }
        Ok(())
    })?;
    bench.same_tokens(stream)?;
    Ok(())
}

fn eight_streams(bench: &Bench<'_>) -> Result<()> {
    let victim = bench.swarm.middle_peer()?;
    let url = bench.swarm.gateway(&[&victim.node])?;
    let questions: Vec<_> = (0..8)
        .map(|i| {
            let mut question = bench.question();
            question.text = format!("{} Chapter {i}.", question.text);
            question.tokens = 80;
            question.temperature = if i % 2 == 0 { 0.0 } else { 0.8 };
            question.seed = i;
            question
        })
        .collect();
    let quiet: Vec<_> = questions.iter().map(|q| crate::chat::ask(&url, q)).collect::<Result<_>>()?;
    let mut streams: Vec<Stream> = questions.iter().map(|q| Stream::start(&url, q)).collect();
    for stream in &mut streams {
        stream.read_tokens(20)?;
    }
    bench.cluster.verb(&["kill", &victim.node])?;
    for (stream, expected) in streams.into_iter().zip(&quiet) {
        same(expected, &stream.finish()?)?;
    }
    Ok(())
}
