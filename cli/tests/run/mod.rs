//! A training run of real processes in a folder of its own, and signals to them.
#![allow(dead_code, clippy::unwrap_used, reason = "a test may panic, and uses what it needs")]

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use dunlin_e2e::local::LocalTraining;
use dunlin_e2e::training::{states, weights};
use dunlin_e2e::wait;
use dunlin_wire::{Authority, Credentials, LinksConfig, Role, Validity, proto};
use serde_json::{Value, json};

use crate::tool::dunlin;

/// A folder of its own, removed at the end.
pub struct Run {
    /// The folder.
    pub folder: PathBuf,
    /// Who issues the certificates of the run.
    authority: Authority,
}

impl Drop for Run {
    fn drop(&mut self) {
        // What is left over says what went wrong with its removal.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Run {
    pub fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("dunlin-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let authority = Authority::generate("test").unwrap();
        std::fs::write(folder.join("ca.crt"), authority.certificate()).unwrap();
        std::fs::write(folder.join("ca.key"), authority.key()).unwrap();
        Self { folder, authority }
    }

    pub fn checkpoints(&self) -> PathBuf {
        self.folder.join("checkpoints")
    }

    /// The step of the newest checkpoint that is complete.
    pub fn newest_checkpoint(&self) -> u64 {
        let steps = std::fs::read_dir(self.checkpoints()).unwrap().flatten().filter_map(|entry| {
            let complete = entry.path().join("training.json").exists();
            entry.file_name().to_str()?.strip_prefix("step-")?.parse::<u64>().ok().filter(|_| complete)
        });
        steps.max().unwrap()
    }

    /// Starts a small Llama of `stages` stages that learns a few words.
    pub fn start_with(&self, stages: u32, peers: u32, change: impl FnOnce(&mut Value)) -> LocalTraining {
        let data = self.folder.join("text.txt");
        std::fs::write(&data, text()).unwrap();
        let mut config = json!({
            "model": {"config": {"architecture": "llama", "hiddenSize": 32, "layers": 4, "heads": 4, "kvHeads": 2,
                                 "ffn": 64, "contextLength": 64, "ropeBase": 10000.0, "rmsEps": 1e-5, "tied": true}},
            "data": {"text": {"path": data}, "tokenizer": "Bytes", "validationFraction": 0.1},
            "sequenceLength": 32, "globalBatch": 16, "microbatch": 2, "steps": 24, "seed": 7,
            "optimizer": {"kind": "AdamW", "learningRate": 0.003, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8,
                          "weightDecay": 0.1, "momentum": 0.0, "clip": 1.0,
                          "schedule": {"kind": "Constant", "warmupSteps": 4}},
            "stages": stages,
            "checkpoint": {"everySteps": 8, "keep": 9, "destination": self.checkpoints()},
            "validation": {"everySteps": 8, "batches": 2},
        });
        change(&mut config);
        if config["validation"].is_null() {
            config.as_object_mut().unwrap().remove("validation");
        }
        let file = self.folder.join("run.json");
        std::fs::write(&file, config.to_string()).unwrap();
        let options = ["--authority", self.folder.to_str().unwrap()];
        LocalTraining::start_with_options(dunlin(), &file, &options, peers).unwrap()
    }

    pub fn start(&self, stages: u32, peers: u32) -> LocalTraining {
        self.start_with(stages, peers, |_| {})
    }

    /// Tensors of the checkpoint of `step`.
    pub fn weights(&self, step: u64) -> Vec<(String, Vec<u8>)> {
        weights(&self.checkpoints().join(format!("step-{step:08}"))).unwrap()
    }

    /// Steps without end, a checkpoint every few, and no validation.
    pub fn without_end(config: &mut Value) {
        config["steps"] = json!(1_000_000);
        config["checkpoint"]["everySteps"] = json!(3);
        config["checkpoint"]["keep"] = json!(2);
        config["validation"] = Value::Null;
    }

    /// Some steps later: ends the run, and compares its newest checkpoint, optimizer included, with that of a run that nothing happened to.
    pub fn ends_as_if_nothing_had_happened(&self, training: LocalTraining, reader: JoinHandle<Vec<u64>>) {
        let from =
            wait::until("the conductor answers", Duration::from_secs(10), || Ok(step(&training))).unwrap();
        wait::until_true("the run goes on", Duration::from_secs(20), || {
            let now = step(&training).unwrap_or_default();
            Ok((now > from + 8, format!("step {now}, {from} before: {:?}", training.status())))
        })
        .unwrap();
        drop(training);
        let seen = reader.join().unwrap();
        assert!(seen.windows(2).all(|w| w[0] < w[1]), "a step came twice: {seen:?}");
        let newest = self.newest_checkpoint();
        let straight = Self::new(&format!("straight-{}", self.folder.file_name().unwrap().to_string_lossy()));
        let (_, last) = straight.start_with(1, 1, |config| config["steps"] = json!(newest)).finish().unwrap();
        assert_eq!(last["checkpoint"]["step"], newest);
        let bits = |run: &Self| states(&run.checkpoints().join(format!("step-{newest:08}"))).unwrap();
        assert!(bits(self) == bits(&straight), "bits differ from those of a run that nothing happened to");
    }

    /// How a stranger with a certificate of the run makes connections.
    pub fn links(&self, role: Role, name: &str) -> LinksConfig {
        let certificate = self.authority.issue(role, &[name.to_owned()], Validity::Authority).unwrap();
        LinksConfig::new(
            proto::Hello { name: name.to_owned(), ..Default::default() },
            Some(Credentials::fixed(certificate).unwrap()),
        )
    }

    /// The name that a process was given.
    pub fn name_of(&self, pid: u64) -> String {
        self.argument(pid, "--name")
    }

    /// What a process was started with behind an option.
    pub fn argument(&self, pid: u64, option: &str) -> String {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = command.split(|b| *b == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        words.find(|word| word == option);
        words.next().unwrap_or_default()
    }
}

/// Words in an order without a pattern (a linear congruential generator), the same each time.
fn text() -> String {
    let words: Vec<&str> =
        "the a peer stage of and run step is in to that it with by from each one last first has state weights sums"
            .split(' ')
            .collect();
    let mut state = 0u64;
    let mut word = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        words[usize::try_from(((state >> 33) * words.len() as u64) >> 31).unwrap()]
    };
    (0..20_000).map(|_| word()).collect::<Vec<_>>().join(" ")
}

/// The step of a run; none when the conductor does not answer.
pub fn step(training: &LocalTraining) -> Option<u64> {
    training.status().and_then(|s| s["step"].as_u64())
}

/// Waits until a peer is named as wrong; what was found.
pub fn named(training: &LocalTraining, name: &str) -> String {
    let found = wait::until(&format!("{name} is named"), Duration::from_secs(20), || {
        let status = training.status();
        let expelled = status.as_ref().and_then(|s| s["expelled"].as_array()).cloned().unwrap_or_default();
        let ours = expelled.iter().find(|e| e["peer"] == name);
        Ok(ours.and_then(|e| e["why"].as_str()).map(str::to_owned))
    });
    found.unwrap()
}

/// Sends a signal; the process may be gone.
pub fn signal(pid: u64, which: i32) {
    // SAFETY: kill(2) with the pid of a process that this test has started.
    #[allow(unsafe_code, reason = "std cannot signal a process that is not its child")]
    unsafe {
        libc::kill(i32::try_from(pid).unwrap(), which);
    }
}

pub fn stop(pid: u64) {
    signal(pid, libc::SIGSTOP);
}

pub fn resume(pid: u64) {
    signal(pid, libc::SIGCONT);
}
