//! The model of a swarm that serves is changed under load: no answer is of two models, and whoever asks meanwhile is answered or told when to ask again.
//!
//! Both models have one shape and one vocabulary, so that rows and tokens of one would pass for those of the other.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail, ensure};
use serde_json::json;

use super::bench::{Bench, PEERS, PROMPT, Scenario};
use super::edits::{ROLLED, rolled};
use crate::chat::{self, HttpRefusal, Question, Stream};
use crate::deploy;
use crate::local::{Local, dunlin};
use crate::swarm::{Swarm, gateway_url};
use crate::wait;

/// The swarm, and what it calls its model.
const NAME: &str = "changed";
/// Tokens of a long answer, which takes longer than stages have when they are told to go.
const LONG: u32 = 1500;
/// Tokens of the answers of each client.
const CLIENTS: [u32; 4] = [60, 60, LONG, LONG];
/// An answer has begun when so many have come.
const BEGUN: usize = 10;
/// What stages have left when they are told to go, which is not before the edit. No answer is broken off earlier.
const LEFT: Duration = Duration::from_secs(25);

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario { name: "another-model-under-load-and-no-answer-is-of-two", run: another_model }]
}

/// What came of one question.
struct Told {
    asked: Instant,
    ended: Instant,
    /// Tokens that were asked for.
    wanted: u32,
    /// Tokens that came.
    ids: Vec<u64>,
    /// Why no more came.
    error: Option<Error>,
}

/// Answers by what came of them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    /// Whole, of the model before.
    old: usize,
    /// Those among them that ran when the manifest was edited.
    through: usize,
    /// Whole, of the new model.
    new: usize,
    /// Broken off, with the advice to ask again.
    broken: usize,
    /// 503 with Retry-After.
    refused: usize,
}

/// Clients that ask all the time.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    /// Questions so far.
    asked: AtomicUsize,
    /// Answers that have begun.
    begun: AtomicUsize,
    told: Mutex<Vec<Told>>,
}

fn another_model(bench: &Bench<'_>) -> Result<()> {
    let folder = bench.cluster.fresh_folder("two-models")?;
    for (path, seed) in [("one", "1"), ("other", "2")] {
        let mut command = Command::new(dunlin());
        command.args(["random-model", "--seed", seed, "--out"]).arg(folder.join(path));
        let output = command.output().context("dunlin random-model")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "two-models"},
        "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadOnlyMany"], "storageClassName": "two-models",
                 "hostPath": {"path": folder}},
    });
    let mut manifest = deploy::example(bench.cluster, "volume.yaml")?;
    for (what, by) in [
        ("models", "two-models"),
        ("from-volume", NAME),
        ("path: smollm2.gguf", "path: one"),
        ("maxSequenceLength: 1024", "maxSequenceLength: 2048"),
    ] {
        ensure!(manifest.contains(what), "volume.yaml no longer has `{what}`");
        manifest = manifest.replace(what, by);
    }
    let swarm = Swarm { cluster: bench.cluster, name: NAME.to_owned(), model: NAME.to_owned() };
    bench.cluster.apply(&volume.to_string())?;
    bench.cluster.apply(&manifest)?;
    swarm.wait_whole(PEERS)?;
    change(&swarm, &folder, &manifest.replace("path: one", "path: other"))?;
    // Only now: what is left of a failure tells why.
    let swarm = format!("inferenceswarm/{NAME}");
    for object in [&swarm, "persistentvolumeclaim/two-models", "persistentvolume/two-models"] {
        bench.cluster.kubectl(&["delete", object, "--ignore-not-found", "--timeout=60s"])?;
    }
    Ok(())
}

/// Sampled: what is likeliest to a random model may be the same token for ever, and the same one for another model.
fn question(tokens: u32) -> Question {
    Question { temperature: 0.8, seed: 7, ..Question::greedy(NAME, PROMPT, tokens) }
}

/// Applies `manifest`, of the other of the two models in `folder`, under load. Judges every answer when the swarm is whole again.
fn change(swarm: &Swarm<'_>, folder: &Path, manifest: &str) -> Result<()> {
    let alone = |path: &str| -> Result<Vec<u64>> {
        let local = Local::start(&dunlin(), &folder.join(path), 1, 2)?;
        // What runs alone is called as its folder is.
        Ok(chat::ask(&local.url, &Question { model: path.to_owned(), ..question(LONG) })?.ids)
    };
    let (old, new) = (alone("one")?, alone("other")?);
    ensure!(old.len() == LONG as usize && new.len() == old.len(), "{} and {} tokens", old.len(), new.len());
    let pods: BTreeSet<String> =
        swarm.pods("stage")?.into_iter().chain(swarm.pods("gateway")?).map(|pod| pod.name).collect();
    let load = Load::default();
    let edited = load.while_clients_ask(swarm, || {
        wait::until_true("as many answers as there are clients have begun", ROLLED, || {
            let begun = load.begun.load(Ordering::Relaxed);
            Ok((begun >= CLIENTS.len(), format!("{begun} have")))
        })?;
        let edited = Instant::now();
        swarm.cluster.apply(manifest)?;
        rolled(swarm, 0, true, |pod| {
            pod["metadata"]["name"].as_str().is_some_and(|name| !pods.contains(name))
        })?;
        swarm.wait_whole(PEERS)?;
        Ok(edited)
    })?;
    let told = load.told.into_inner().unwrap_or_else(PoisonError::into_inner);
    let tally = judge(&told, edited, &old, &new)?;
    ensure!(tally.through > 0, "no answer ran when the manifest was edited, and ended whole: {tally:?}");
    ensure!(tally.new > 0, "no client has an answer of the new model: {tally:?}");
    for pod in swarm.pods("gateway")?.iter().filter(|pod| !pod.deleting) {
        let answer = chat::ask(&gateway_url(pod), &question(CLIENTS[0]))?;
        ensure!(new.starts_with(&answer.ids), "{} does not answer with the new model", pod.name);
    }
    Ok(())
}

impl Load {
    /// Runs `act`; meanwhile, and until their last answers have ended, clients ask.
    fn while_clients_ask<T>(&self, swarm: &Swarm<'_>, act: impl FnOnce() -> Result<T>) -> Result<T> {
        std::thread::scope(|scope| {
            let clients = CLIENTS.map(|tokens| scope.spawn(move || self.client(swarm, tokens)));
            let acted = act();
            self.stop.store(true, Ordering::Relaxed);
            for client in clients {
                client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
            }
            acted
        })
    }

    /// Asks for one answer after the other. Whoever is refused asks again, a gateway that is ready, if there is one.
    fn client(&self, swarm: &Swarm<'_>, tokens: u32) -> Result<()> {
        let stopped = || self.stop.load(Ordering::Relaxed);
        while !stopped() {
            wait::until("an answer of the changed swarm", ROLLED, || {
                if stopped() {
                    return Ok(Some(()));
                }
                let told = self.ask(&self.gateway(swarm)?, &question(tokens));
                let is_refused = told.ids.is_empty() && told.error.is_some();
                self.told.lock().unwrap_or_else(PoisonError::into_inner).push(told);
                Ok((!is_refused).then_some(()))
            })?;
        }
        Ok(())
    }

    /// A gateway that is ready; if none is, one that listens.
    fn gateway(&self, swarm: &Swarm<'_>) -> Result<String> {
        let mut pods = swarm.pods("gateway")?;
        pods.retain(|pod| !pod.deleting && !pod.ip.is_empty());
        if pods.iter().any(|pod| pod.ready) {
            pods.retain(|pod| pod.ready);
        }
        let turn = self.asked.fetch_add(1, Ordering::Relaxed);
        let Some(pod) = pods.get(turn % pods.len().max(1)) else { bail!("there is no gateway") };
        let url = gateway_url(pod);
        if !pod.ready {
            chat::get(&format!("{url}/health")).with_context(|| format!("{} does not listen", pod.name))?;
        }
        Ok(url)
    }

    fn ask(&self, url: &str, question: &Question) -> Told {
        let asked = Instant::now();
        let mut stream = Stream::start(url, question);
        let read = stream.read_tokens(BEGUN).and_then(|()| {
            self.begun.fetch_add(1, Ordering::Relaxed);
            stream.read_tokens(question.tokens as usize)
        });
        let ids = stream.so_far().ids.clone();
        let error = read.and_then(|()| stream.finish().map(drop)).err();
        Told { asked, ended: Instant::now(), wanted: question.tokens, ids, error }
    }
}

/// Counts answers. `old`, `new`: the tokens of the longest answers of both models alone.
///
/// # Errors
/// When one is of no model or of both, when one is broken off without need or advice, or when a refusal is none.
fn judge(told: &[Told], edited: Instant, old: &[u64], new: &[u64]) -> Result<Tally> {
    let mut tally = Tally::default();
    for Told { asked, ended, wanted, ids, error } in told {
        let after =
            |at: &Instant| at.duration_since(edited).as_secs_f64() - edited.duration_since(*at).as_secs_f64();
        let when = format!(
            "asked for {wanted} tokens {:.1} s after the edit, ended at {:.1} s",
            after(asked),
            after(ended)
        );
        let is_old = old.starts_with(ids);
        match error {
            None if ids.len() == *wanted as usize && is_old => {
                tally.old += 1;
                tally.through += usize::from(*asked < edited && edited < *ended);
            }
            None if ids.len() == *wanted as usize && new.starts_with(ids) => tally.new += 1,
            None => {
                let of = [old, new].map(|all| all.iter().zip(ids).take_while(|(a, b)| a == b).count());
                bail!(
                    "of the {} tokens that came, those of the models are the first {of:?}: {when}",
                    ids.len()
                );
            }
            Some(error) => match error.downcast_ref::<HttpRefusal>() {
                Some(HttpRefusal { status: 503, retry_after_s: Some(1..), .. }) => tally.refused += 1,
                None if !ids.is_empty()
                    && is_old
                    && format!("{error:#}").contains("ask again")
                    && *ended >= edited + LEFT =>
                {
                    tally.broken += 1;
                }
                _ => bail!("{error:#}; {when}; the model before says the same so far: {is_old}"),
            },
        }
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: [u64; 4] = [1, 2, 3, 4];
    const NEW: [u64; 4] = [5, 6, 7, 8];

    /// An answer that ran from a second before the edit to `ended_s` after it.
    fn judged(ids: &[u64], ended_s: u64, error: Option<Error>) -> Result<Tally> {
        let (asked, edited) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        let told =
            Told { asked, ended: edited + Duration::from_secs(ended_s), wanted: 3, ids: ids.to_vec(), error };
        judge(&[told], edited, &OLD, &NEW)
    }

    #[test]
    fn an_answer_is_of_one_model_and_whole_unless_it_is_told_to_ask_again_in_time() {
        let again = || Some(anyhow::anyhow!("ask again").context("after 2 tokens"));
        let refused = |status, retry_after_s| {
            Some(
                Error::from(HttpRefusal { status, retry_after_s, body: String::new() })
                    .context("after 0 tokens"),
            )
        };
        let old = Tally { old: 1, through: 1, ..Tally::default() };
        assert_eq!(judged(&OLD[..3], 1, None).ok(), Some(old));
        assert_eq!(judged(&NEW[..3], 1, None).ok(), Some(Tally { new: 1, ..Tally::default() }));
        assert_eq!(judged(&OLD[..2], 25, again()).ok(), Some(Tally { broken: 1, ..Tally::default() }));
        assert_eq!(
            judged(&[], 1, refused(503, Some(1))).ok(),
            Some(Tally { refused: 1, ..Tally::default() })
        );
        for (ids, ended_s, error) in [
            (&[1, 6, 7][..], 1, None),
            (&[1, 2], 1, None),
            (&[9, 9, 9], 1, None),
            (&[5, 6], 30, again()),
            (&[1, 6], 30, again()),
            (&[1, 2], 24, again()),
            (&[1, 2], 30, Some(anyhow::anyhow!("the connection closed"))),
            (&[], 30, again()),
            (&[], 1, refused(503, None)),
            (&[], 1, refused(500, Some(1))),
        ] {
            assert!(judged(ids, ended_s, error).is_err(), "{ids:?} after {ended_s} s");
        }
    }
}
