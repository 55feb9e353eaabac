//! Compressed training as real processes: real sockets, a real SIGKILL, a tiny model.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod tool;

use std::io::{BufRead, BufReader, Lines};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::{Value, json};
use tool::dunlin;

const STEPS: u64 = 120;

/// A folder that is removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("dunlin-training-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A test that failed may have left it in any state.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Words that follow each other by a rule with exceptions, so that there is something to learn.
fn text() -> String {
    const WORDS: [&str; 32] = [
        "the", "tern", "flies", "over", "a", "grey", "sea", "and", "finds", "small", "fish", "where", "cold",
        "water", "comes", "up", "no", "ship", "has", "been", "seen", "here", "since", "ice", "left", "its",
        "last", "bay", "to", "wind", "rain", "waves",
    ];
    let (mut out, mut z, mut word) = (String::new(), 1u64, 0);
    while out.len() < 100_000 {
        z = z.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let jump = if (z >> 40) % 2 == 0 { (z >> 50) as usize } else { 1 };
        word = (word * 5 + jump) % WORDS.len();
        out.push_str(WORDS[word]);
        out.push(if word == 31 { '\n' } else { ' ' });
    }
    out
}

/// Two stages with one embedding, two peers each.
struct Training {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    processes: Vec<Value>,
    _folder: Folder,
}

impl Training {
    fn start(name: &str, activations: &str, gradients: &str) -> Self {
        let folder = Folder::new(name);
        let (data, config) = (folder.0.join("text.txt"), folder.0.join("run.json"));
        std::fs::write(&data, text()).unwrap();
        let run = json!({
            "model": {"config": {"hiddenSize": 64, "layers": 2, "heads": 4, "kvHeads": 2, "ffn": 128, "contextLength": 64, "tied": true}},
            "data": {"text": {"path": data}, "validationFraction": 0},
            "sequenceLength": 64, "globalBatch": 16, "microbatch": 2, "steps": STEPS, "seed": 1,
            "optimizer": {"kind": "AdamW", "learningRate": 0.001, "schedule": {"kind": "Cosine", "warmupSteps": 5, "finalFraction": 0.1}},
            "stages": 2,
            "wire": {"activations": activations, "gradients": gradients},
        });
        std::fs::write(&config, run.to_string()).unwrap();
        let mut child = Command::new(dunlin())
            .args(["local-train", "--peers", "4", "--config"])
            .arg(&config)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        let processes = first["processes"].as_array().unwrap().clone();
        Self { child, lines, processes, _folder: folder }
    }

    fn next(&mut self) -> Value {
        serde_json::from_str(&self.lines.next().expect("the run goes on").unwrap()).unwrap()
    }

    /// Kills a peer of a stage without notice.
    fn kill(&self, stage: u64) {
        let peer = self.processes.iter().find(|p| p["role"] == "peer" && p["stage"] == stage).unwrap();
        let pid = i32::try_from(peer["pid"].as_u64().unwrap()).unwrap();
        // SAFETY: kill(2) with the pid of a process that this test has started.
        #[allow(unsafe_code, reason = "std cannot kill a process that is not its child")]
        let killed = unsafe { libc::kill(pid, libc::SIGKILL) };
        assert_eq!(killed, 0, "no process {pid}");
    }

    /// The steps to the end. The conductor ends the run when peers of a stage have other averages or weights than their mates.
    fn finish(mut self, mut steps: Vec<Value>) -> (Vec<Value>, Value) {
        let last = loop {
            let line = self.next();
            match line["step"].as_u64() {
                Some(_) => steps.push(line),
                None => break line,
            }
        };
        assert!(self.child.wait().unwrap().success());
        let numbers: Vec<u64> = steps.iter().map(|s| s["step"].as_u64().unwrap()).collect();
        assert_eq!(numbers, (0..STEPS).collect::<Vec<_>>(), "every step once");
        (steps, last)
    }
}

impl Drop for Training {
    fn drop(&mut self) {
        // Those that it has started end with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Mean of the loss over the last ten steps, in nats.
fn final_loss(steps: &[Value]) -> f64 {
    steps[steps.len() - 10..].iter().map(|s| s["loss"].as_f64().unwrap()).sum::<f64>() / 10.0
}

#[test]
fn compressed_training_ends_where_exact_training_does_even_if_a_peer_is_killed() {
    let exact = Training::start("exact", "F32", "Exact").finish(Vec::new()).0;
    let compressed = Training::start("q8", "Q8", "Q8").finish(Vec::new()).0;

    let mut training = Training::start("killed", "Q8", "Q8");
    let mut steps = Vec::new();
    while steps.len() < 20 {
        steps.push(training.next());
    }
    training.kill(1);
    let (killed, last) = training.finish(steps);
    assert!(last["lost"].as_u64().unwrap() >= 1, "{last}");
    // Which stage has one peer for a while is the planner's choice: another may have gone where one was lost.
    let peers =
        |s: &Value| s["peers"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect::<Vec<_>>();
    let seen: Vec<Vec<u64>> = killed.iter().map(peers).collect();
    let alone = seen.iter().position(|p| p.contains(&1)).expect("a stage had one peer");
    assert!(seen[alone..].contains(&vec![2, 2]), "a newcomer took its place: {seen:?}");

    let (exact_loss, first) = (final_loss(&exact), exact[0]["loss"].as_f64().unwrap());
    for (name, steps) in [("Q8", &compressed), ("Q8, a peer killed", &killed)] {
        let loss = final_loss(steps);
        println!("{name}: {first:.3} to {loss:.4} nats, exact to {exact_loss:.4}");
        assert!((loss / exact_loss - 1.0).abs() < 0.02, "{name}: {loss} {exact_loss}");
        assert_ne!(
            steps[STEPS as usize - 1]["loss"],
            exact[STEPS as usize - 1]["loss"],
            "nothing was compressed"
        );
    }
    assert!(exact_loss < first / 2.0, "{first} {exact_loss}");
}
