//! What `dunlin local` does when its processes end, when something is wrong that no new process mends, and when nobody listens.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod tool;

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use dunlin_e2e::chat::{self, Question};
use dunlin_e2e::local::{Local, children};
use dunlin_e2e::losses::{self, Signal};
use dunlin_e2e::wait;
use dunlin_model::random_model::{self, RandomModelSpec};
use tempfile::TempDir;
use tool::dunlin;

/// Ends of stages in a row after which the supervisor gives up.
const GIVES_UP_AFTER: usize = 21;

fn model(folder: &TempDir) -> PathBuf {
    let spec =
        RandomModelSpec { layers: 4, hidden: 64, heads: 2, kv_heads: 2, ffn: 128, vocab: 300, seed: 1 };
    let path = folder.path().join("model");
    random_model::write(&path, &spec).unwrap();
    path
}

fn kill(pid: u64) {
    // SAFETY: kill(2) with the pid of a process that this test has started. It may have ended.
    #[allow(unsafe_code, reason = "std cannot kill a process that is not its child")]
    unsafe {
        libc::kill(i32::try_from(pid).unwrap(), libc::SIGKILL);
    }
}

/// What it printed last on standard error.
fn last_line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    text.lines().rfind(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

/// Starts a swarm that is not expected to go on for long, and what it says is read.
fn start(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn as_long_as_something_is_served_in_between_any_number_of_losses_is_survived() {
    let folder = tempfile::tempdir().unwrap();
    let local = Local::start(dunlin(), &model(&folder), 2, 1).unwrap();
    let question = Question::greedy("model", "Hello", 2);
    let expected = chat::ask(&local.url, &question).unwrap().ids;
    for round in 0..GIVES_UP_AFTER + 4 {
        let peers = local.processes().unwrap().into_iter().filter(|(name, _)| name.starts_with("peer-"));
        let (name, pid) = peers.max_by_key(|(_, pid)| *pid).unwrap();
        kill(pid);
        assert_eq!(chat::ask(&local.url, &question).unwrap().ids, expected, "round {round}");
        wait::until_true("the replacement is there", Duration::from_secs(20), || {
            let now = local.processes()?;
            let whole = now.len() == 3 && !now.contains_key(&name);
            Ok((whole, format!("{now:?}")))
        })
        .unwrap();
    }
}

#[test]
fn the_replacement_of_a_lost_stage_serves_while_another_one_is_silent() {
    let folder = tempfile::tempdir().unwrap();
    let local = Local::start(dunlin(), &model(&folder), 3, 1).unwrap();
    let question = Question::greedy("model", "Hello", 2);
    let expected = chat::ask(&local.url, &question).unwrap().ids;
    // The third holds the layers of the first as shadows; nobody is left who holds those of the second.
    let peers = losses::stages(&local).unwrap();
    losses::signal(peers[0].1, Signal::Stop).unwrap();
    losses::signal(peers[1].1, Signal::Kill).unwrap();
    let answered = wait::until("the swarm serves again", Duration::from_secs(20), || {
        Ok(chat::ask(&local.url, &question).ok())
    });
    losses::signal(peers[0].1, Signal::Continue).unwrap();
    assert_eq!(answered.unwrap().ids, expected);
}

#[test]
fn stages_that_end_one_after_the_other_end_the_swarm_and_it_says_how() {
    let folder = tempfile::tempdir().unwrap();
    let mut supervisor = start(&mut Local::command(dunlin(), &model(&folder), 1, 1));
    wait::until_true("the swarm ends", Duration::from_secs(60), || {
        for (name, pid) in children(supervisor.id())? {
            if name.starts_with("peer-") {
                kill(pid);
            }
        }
        Ok((supervisor.try_wait()?.is_some(), "it runs".to_owned()))
    })
    .unwrap();
    let output = supervisor.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    let last = last_line(&output);
    let expected = format!("Error: {GIVES_UP_AFTER} stages ended one after the other, the last one, peer-");
    assert!(last.starts_with(&expected) && last.contains("signal: 9"), "{last}");
    let replaced = said.lines().filter(|line| line.contains("takes its place")).count();
    assert_eq!(replaced, GIVES_UP_AFTER - 1, "{said}");
}

#[test]
fn what_no_other_stage_would_mend_ends_the_swarm_at_once_with_its_cause() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(&folder);
    let weights = model.join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    let cases = [(model, "Error: ModelInvalid: "), (folder.path().join("none"), "Error: ")];
    for (path, begin) in cases {
        let started = Instant::now();
        let output = Local::command(dunlin(), &path, 2, 1).output().unwrap();
        let last = last_line(&output);
        assert!(last.starts_with(begin) && last.contains(&path.display().to_string()), "{last}");
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    }
}

#[test]
fn what_only_the_gateway_objects_to_ends_the_swarm_at_once_with_its_cause() {
    for (file, content, cause) in [
        ("tokenizer.json", None, "Error: ModelInvalid: the tokenizer cannot be used: "),
        ("tokenizer.json", Some("{}"), "Error: ModelInvalid: the tokenizer cannot be used: "),
        ("tokenizer_config.json", Some("{}}"), "Error: ModelInvalid: "),
        ("chat_template.jinja", Some("{% if %}"), "Error: ModelInvalid: its chat template cannot be used: "),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let model = model(&folder);
        match content {
            Some(content) => std::fs::write(model.join(file), content).unwrap(),
            None => std::fs::remove_file(model.join(file)).unwrap(),
        }
        let started = Instant::now();
        let output = Local::command(dunlin(), &model, 2, 1).output().unwrap();
        let last = last_line(&output);
        assert!(last.starts_with(cause), "{file}: {last}");
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    }
}

#[test]
fn a_gateway_that_is_lost_ends_the_swarm_and_it_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let mut supervisor = start(&mut Local::command(dunlin(), &model(&folder), 2, 1));
    let gateway = wait::until("the gateway runs", Duration::from_secs(20), || {
        Ok(children(supervisor.id())?.get("gateway").copied())
    });
    kill(gateway.unwrap());
    let killed = Instant::now();
    wait::until("the swarm ends", Duration::from_secs(20), || Ok(supervisor.try_wait()?)).unwrap();
    assert!(killed.elapsed() < Duration::from_secs(3), "{:?}", killed.elapsed());
    let output = supervisor.wait_with_output().unwrap();
    assert!(last_line(&output).starts_with("Error: the gateway ended (signal: 9"), "{}", last_line(&output));
}

#[test]
fn a_swarm_whose_output_nobody_reads_ends_quietly() {
    let folder = tempfile::tempdir().unwrap();
    let mut supervisor = start(&mut Local::command(dunlin(), &model(&folder), 1, 1));
    drop(supervisor.stdout.take());
    let output = supervisor.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    // An error that ends a program is a line of its own; logs may quote those of links that end with it.
    let ended_by_error = said.lines().any(|line| line.starts_with("Error"));
    assert!(output.status.success() && !said.contains("panicked") && !ended_by_error, "{said}");
}
