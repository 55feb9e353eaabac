//! What scenarios share: the bench they work at, a whole swarm with the answer that it gives undisturbed.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::chat::{self, Answer, Question, Stream};
use crate::cluster::Cluster;
use crate::deploy;
use crate::swarm::Swarm;
use crate::wait;

/// Peers of the example swarm.
pub const PEERS: u64 = 3;
/// The question of most scenarios.
pub const PROMPT: &str = "Write a long story about a lighthouse keeper and a storm.";
/// Tokens of the answer: long enough that a loss in the middle is in the middle.
pub const TOKENS: u32 = 160;
/// The loss happens after this many tokens.
pub const LOSS_AT: usize = 60;

/// What a scenario works with.
pub struct Bench<'a> {
    /// The cluster, all nodes up.
    pub cluster: &'a Cluster,
    /// The example swarm, whole.
    pub swarm: Swarm<'a>,
    /// The answer to [`PROMPT`] with nothing going wrong.
    pub reference: Answer,
}

/// One promise.
pub struct Scenario {
    /// What is promised, as a sentence in kebab case.
    pub name: &'static str,
    /// Shows it.
    pub run: fn(&Bench<'_>) -> Result<()>,
}

impl Bench<'_> {
    /// The question of most scenarios.
    #[must_use]
    pub fn question(&self) -> Question {
        Question::greedy(&self.swarm.model, PROMPT, TOKENS)
    }

    /// Starts the stream on a gateway outside of `avoid` and reads up to the moment of the loss.
    ///
    /// # Errors
    /// When the stream fails before.
    pub fn stream_until_loss(&self, avoid: &[&str]) -> Result<Stream> {
        let mut stream = Stream::start(&self.swarm.gateway(avoid)?, &self.question());
        stream.read_tokens(LOSS_AT)?;
        Ok(stream)
    }

    /// Reads `stream` to the end and compares with the undisturbed answer.
    ///
    /// # Errors
    /// When a token differs or is missing.
    pub fn same_tokens(&self, stream: Stream) -> Result<Answer> {
        let answer = stream.finish()?;
        same(&self.reference, &answer)?;
        Ok(answer)
    }

    /// Brings every node back, and waits until the swarm is whole with as many peers as the example asks for.
    ///
    /// # Errors
    /// When it does not heal in time.
    pub fn heal(&self) -> Result<()> {
        heal(self.cluster)?;
        // The manifest leaves `replicas` to whoever scales: what a scenario has set there stays.
        let count = format!("--replicas={PEERS}");
        self.cluster.kubectl(&["scale", "inferenceswarm", &self.swarm.name, &count])?;
        deploy::apply_example(self.cluster, "smollm2.yaml")?;
        self.swarm.wait_whole(PEERS)
    }
}

/// All nodes started, uncordoned and Ready.
///
/// # Errors
/// When a node does not come back.
pub fn heal(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes() {
        cluster.verb(&["start", &node])?;
    }
    for node in cluster.nodes() {
        cluster.kubectl(&["uncordon", &node])?;
    }
    wait::until_true("all nodes are Ready", Duration::from_secs(60), || {
        let list = cluster.get(&["nodes"])?;
        let ready = list["items"].as_array().into_iter().flatten().filter(|n| {
            n["status"]["conditions"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|c| c["type"] == "Ready" && c["status"] == "True")
        });
        let ready = ready.count();
        Ok((ready == cluster.nodes().len(), format!("{ready} nodes Ready")))
    })
}

/// Equal token sequences.
///
/// # Errors
/// With the first difference.
pub fn same(expected: &Answer, got: &Answer) -> Result<()> {
    let first = expected.ids.iter().zip(&got.ids).position(|(a, b)| a != b);
    ensure!(
        expected.ids == got.ids,
        "tokens differ: {} expected, {} came, first difference at {first:?}",
        expected.ids.len(),
        got.ids.len()
    );
    ensure!(expected.text == got.text, "same tokens, other text: {:?} / {:?}", expected.text, got.text);
    Ok(())
}

/// Prepares the bench: the undisturbed answer, asked twice on purpose.
///
/// # Errors
/// When the swarm does not answer, or not the same twice.
pub fn bench<'a>(cluster: &'a Cluster, swarm: Swarm<'a>) -> Result<Bench<'a>> {
    let question = Question::greedy(&swarm.model, PROMPT, TOKENS);
    let url = swarm.gateway(&[])?;
    let reference = chat::ask(&url, &question)?;
    ensure!(reference.ids.len() == TOKENS as usize, "{} of {TOKENS} tokens came", reference.ids.len());
    same(&reference, &chat::ask(&url, &question)?)?;
    Ok(Bench { cluster, swarm, reference })
}
