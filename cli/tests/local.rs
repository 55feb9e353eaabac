//! A whole swarm as real processes: real sockets, a real model, real SIGKILLs. Needs the model of e2e/fetch-model.sh.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod tool;

use std::path::{Path, PathBuf};
use std::time::Duration;

use dunlin_e2e::chat::{self, Question, Stream};
use dunlin_e2e::local::{self, Local};
use dunlin_e2e::wait;
use tool::dunlin;

fn model() -> PathBuf {
    local::cached_model().unwrap()
}

fn question(local: &Local, tokens: u32) -> Question {
    Question::greedy(&local.model().unwrap(), "Write a story about a lighthouse keeper and a storm.", tokens)
}

fn kill(pid: u64) {
    // SAFETY: kill(2) with the pid of a process that this test has started.
    #[allow(unsafe_code, reason = "std cannot kill a process that is not its child")]
    let killed = unsafe { libc::kill(i32::try_from(pid).unwrap(), libc::SIGKILL) };
    assert_eq!(killed, 0, "no process {pid}");
}

fn pid(local: &Local, peer: usize) -> u64 {
    local.peers[peer]["pid"].as_u64().unwrap()
}

fn is_gone(pid: u64) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn a_killed_peer_changes_no_token_wherever_it_stands_and_is_replaced() {
    let local = Local::start(dunlin(), &model(), 3, 1).unwrap();
    let question = question(&local, 100);
    let undisturbed = chat::ask(&local.url, &question).unwrap();
    assert_eq!(undisturbed.ids.len(), 100);
    assert!(undisturbed.text.to_lowercase().contains("lighthouse"), "{}", undisturbed.text);
    // First, middle and last stage, one after the other; each time the others and the replacement go on.
    for peer in [1, 0, 2] {
        let mut stream = Stream::start(&local.url, &question);
        stream.read_tokens(40).unwrap();
        kill(pid(&local, peer));
        assert_eq!(stream.finish().unwrap().ids, undisturbed.ids, "stage {peer} was killed");
        wait::until_true("the replacement is there", Duration::from_secs(20), || {
            let (_, body) = chat::get(&format!("{}/swarm", local.url))?;
            let swarm: serde_json::Value = serde_json::from_str(&body)?;
            let peers = swarm["peers"].as_array().cloned().unwrap_or_default();
            let whole = peers.len() == 3 && peers.iter().all(|p| p["up"] == true && p["state"] == "Ready");
            Ok((whole, body))
        })
        .unwrap();
        assert_eq!(
            chat::ask(&local.url, &question).unwrap().ids,
            undisturbed.ids,
            "after stage {peer} was replaced"
        );
    }
}

#[test]
fn sampled_streams_side_by_side_survive_a_kill_with_their_tokens() {
    let local = Local::start(dunlin(), &model(), 3, 1).unwrap();
    let questions: Vec<Question> = (0..6)
        .map(|i| Question {
            seed: i,
            temperature: 0.8,
            text: format!("Tell me about the number {i}."),
            ..question(&local, 60)
        })
        .collect();
    let quiet: Vec<_> = questions.iter().map(|q| chat::ask(&local.url, q).unwrap().ids).collect();
    assert!(quiet.windows(2).all(|w| w[0] != w[1]), "different seeds and prompts give different answers");
    let mut streams: Vec<Stream> = questions.iter().map(|q| Stream::start(&local.url, q)).collect();
    for stream in &mut streams {
        stream.read_tokens(10).unwrap();
    }
    kill(pid(&local, 1));
    for (stream, expected) in streams.into_iter().zip(&quiet) {
        assert_eq!(stream.finish().unwrap().ids, *expected);
    }
}

#[test]
fn one_stage_and_three_give_the_same_tokens_and_nothing_outlives_the_supervisor() {
    let mut answers = Vec::new();
    let mut pids = Vec::new();
    for peers in [1, 3] {
        let local = Local::start(dunlin(), &model(), peers, 1).unwrap();
        answers.push(chat::ask(&local.url, &question(&local, 50)).unwrap().ids);
        pids.extend((0..peers as usize).map(|i| pid(&local, i)));
    }
    assert_eq!(answers[0], answers[1]);
    assert!(pids.iter().all(|pid| is_gone(*pid)), "{pids:?}");
}
