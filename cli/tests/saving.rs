//! Checkpoints of real runs whose destination is away, damaged or another's, data that cannot be used, and how `local-train` ends.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod tool;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dunlin_e2e::store::Store;
use dunlin_e2e::training::weights;
use dunlin_train::TrainingConfig;
use dunlin_train::checkpoint::{Claim, ConductorLife};
use serde_json::{Value, json};
use tool::dunlin;

/// Whatever is waited for comes within this time, on a busy machine too.
const LIMIT: Duration = Duration::from_secs(60);

/// A folder of its own, removed at the end.
struct Case {
    folder: PathBuf,
}

impl Drop for Case {
    fn drop(&mut self) {
        // What is left over says what went wrong with its removal.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Case {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("dunlin-saving-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let text = "The dunlin is a small bird of cold shores. ".repeat(100);
        std::fs::write(folder.join("text.txt"), text).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn out(&self) -> PathBuf {
        self.path("out")
    }

    /// A tiny Llama, in two stages unless that is changed.
    fn config(&self, steps: u64, change: impl FnOnce(&mut Value)) -> PathBuf {
        let mut config = json!({
            "model": {"config": {"hiddenSize": 16, "layers": 2, "heads": 2, "ffn": 32, "contextLength": 32}},
            "data": {"text": {"path": self.path("text.txt")}, "validationFraction": 0.1},
            "sequenceLength": 16, "globalBatch": 4, "microbatch": 2, "steps": steps, "seed": 7, "stages": 2,
            "optimizer": {"kind": "AdamW", "learningRate": 0.003},
            "checkpoint": {"everySteps": 4, "keep": 9, "destination": self.out()},
        });
        change(&mut config);
        let file = self.path(&format!("run-{steps}.json"));
        std::fs::write(&file, config.to_string()).unwrap();
        file
    }

    fn start(&self, steps: u64, change: impl FnOnce(&mut Value)) -> Run {
        Run::start(&self.config(steps, change), |_| {})
    }

    /// Runs to the end.
    fn run(&self, steps: u64, change: impl FnOnce(&mut Value)) -> Ended {
        self.start(steps, change).end()
    }

    fn weights(&self, step: u64) -> Vec<(String, Vec<u8>)> {
        weights(&self.out().join(format!("step-{step:08}"))).unwrap()
    }

    /// Every file of all checkpoints, with what is in it.
    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files = Vec::new();
        for folder in std::fs::read_dir(self.out()).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir())
        {
            for file in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
                files.push((file.clone(), std::fs::read(file).unwrap()));
            }
        }
        files.sort();
        files
    }
}

type Lines = Arc<Mutex<Vec<String>>>;

/// `local-train` as a process, and what it says.
struct Run {
    child: Child,
    out: Lines,
    errors: Lines,
    readers: Vec<JoinHandle<()>>,
}

/// How it ended.
struct Ended {
    code: Option<i32>,
    out: Vec<Value>,
    errors: Vec<String>,
}

impl Ended {
    fn steps(&self) -> Vec<u64> {
        self.out.iter().filter_map(|line| line["step"].as_u64()).collect()
    }

    /// The last line on standard error.
    fn last_words(&self) -> &str {
        self.errors.last().map_or("", String::as_str)
    }

    fn says(&self, what: &str) -> bool {
        self.errors.iter().any(|line| line.contains(what))
    }
}

fn collect(from: impl Read + Send + 'static, lines: &Lines) -> JoinHandle<()> {
    let lines = Arc::clone(lines);
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            lines.lock().unwrap().push(line);
        }
    })
}

fn command(config: &Path) -> Command {
    let mut command = Command::new(dunlin());
    command.env("DUNLIN_LOG", "error").args(["local-train", "--peers", "2", "--config"]).arg(config);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl Run {
    fn start(config: &Path, configure: impl FnOnce(&mut Command)) -> Self {
        let mut command = command(config);
        configure(&mut command);
        let mut child = command.spawn().unwrap();
        let (out, errors) = (Lines::default(), Lines::default());
        let readers =
            vec![collect(child.stdout.take().unwrap(), &out), collect(child.stderr.take().unwrap(), &errors)];
        Self { child, out, errors, readers }
    }

    fn out(&self) -> Vec<Value> {
        self.out.lock().unwrap().iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn steps(&self) -> usize {
        self.out().iter().filter(|line| line["step"].is_u64()).count()
    }

    fn says(&self, what: &str) -> bool {
        self.errors.lock().unwrap().iter().any(|line| line.contains(what))
    }

    fn wait(&mut self, what: &str, met: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        while !met(self) {
            let ended = self.child.try_wait().unwrap();
            let errors = self.errors.lock().unwrap().join("\n");
            assert!(ended.is_none(), "it ended before {what}: {ended:?}\n{errors}");
            assert!(begin.elapsed() < LIMIT, "not within {LIMIT:?}: {what}\n{errors}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn pid(&self, role: &str) -> i32 {
        let swarm = &self.out()[0];
        let process = swarm["processes"].as_array().unwrap().iter().find(|p| p["role"] == role).unwrap();
        i32::try_from(process["pid"].as_u64().unwrap()).unwrap()
    }

    /// Waits for its end.
    fn end(mut self) -> Ended {
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            let errors = self.errors.lock().unwrap().join("\n");
            assert!(begin.elapsed() < LIMIT, "it does not end: {:?}\n{errors}", self.out().last());
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(status.signal(), None);
        self.readers.drain(..).for_each(|reader| reader.join().unwrap());
        let errors = self.errors.lock().unwrap().clone();
        Ended { code: status.code(), out: self.out(), errors }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        signal(i32::try_from(self.child.id()).unwrap(), libc::SIGTERM);
        let begin = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && begin.elapsed() < LIMIT {
            std::thread::sleep(Duration::from_millis(20));
        }
        // It has ended by itself when this fails.
        let _ = self.child.kill();
    }
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: kill(2) with the pid of a process that this test has started.
    #[allow(unsafe_code, reason = "std has no signals")]
    unsafe {
        libc::kill(pid, signal);
    }
}

fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.len() - 5;
    bytes[at] ^= 4;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_checkpoint_with_a_wrong_bit_is_passed_over_and_none_that_is_sound_is_no_beginning() {
    let straight = Case::new("straight");
    assert_eq!(straight.run(12, |_| {}).code, Some(0));
    let case = Case::new("damaged");
    assert_eq!(case.run(8, |_| {}).code, Some(0));
    flip(&case.out().join("step-00000008/model-00002-of-00002.safetensors"));
    let ended = case.run(12, |_| {});
    assert_eq!((ended.code, ended.steps()), (Some(0), (4..12).collect()));
    assert!(case.weights(12) == straight.weights(12), "passing over a checkpoint changes the weights");

    for step in ["step-00000004", "step-00000008", "step-00000012"] {
        flip(&case.out().join(step).join("optimizer-00001-of-00002.safetensors"));
    }
    let before = case.files();
    let ended = case.run(16, |_| {});
    let words = ended.last_words();
    assert_eq!(ended.code, Some(78), "{words}");
    for part in
        ["is sound", "step-00000012/optimizer-00001-of-00002.safetensors is damaged", "move what is in"]
    {
        assert!(words.contains(part), "{words}");
    }
    assert!(ended.steps().is_empty() && case.files() == before, "nothing was begun or overwritten");
}

/// The place of checkpoints is away at the start, in the middle, while the conductor is killed, and at the end.
#[test]
fn a_run_waits_for_the_place_of_its_checkpoints_and_goes_on_by_itself() {
    let end = 400;
    let seldom = |config: &mut Value| config["checkpoint"]["everySteps"] = json!(50);
    let straight = Case::new("there");
    assert_eq!(straight.run(end, seldom).code, Some(0));

    let case = Case::new("away");
    std::fs::create_dir(case.path("disk")).unwrap();
    std::fs::write(case.path("nothing"), "").unwrap();
    // What it leads to changes at once: a folder, or a file where there can be no folder.
    let mount = case.path("mount");
    let leads_to = |what: &str| {
        std::os::unix::fs::symlink(case.path(what), case.path("next")).unwrap();
        std::fs::rename(case.path("next"), &mount).unwrap();
    };
    leads_to("nothing");
    let mut run = case.start(end, |config| {
        seldom(config);
        config["checkpoint"]["destination"] = json!(mount.join("out"));
    });
    run.wait("it says that the place cannot be read", |r| r.says("degraded: it cannot be read"));
    assert_eq!(run.steps(), 0);
    leads_to("disk");
    run.wait("a checkpoint", |_| mount.join("out/step-00000050/training.json").exists());
    leads_to("nothing");
    run.wait("it says that checkpoints cannot be written", |r| {
        r.says("degraded: checkpoints cannot be written")
    });
    signal(run.pid("conductor"), libc::SIGKILL);
    run.wait("all steps", |r| r.out().iter().any(|line| line["step"] == end - 1));
    std::thread::sleep(Duration::from_millis(300));
    assert!(run.out().iter().all(|line| line.get("checkpoint").is_none()), "it waits");
    leads_to("disk");
    let ended = run.end();
    assert_eq!(ended.code, Some(0), "{}", ended.last_words());
    assert_eq!(ended.out.last().unwrap()["checkpoint"]["step"], end);
    let found = weights(&mount.join(format!("out/step-{end:08}"))).unwrap();
    assert!(found == straight.weights(end), "waiting changes the weights");
    let left: Vec<_> = std::fs::read_dir(mount.join("out")).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(ended.says("no longer degraded"));
    let halves = left.iter().filter(|p| p.is_dir() && !p.join("training.json").exists()).count();
    assert_eq!(halves, 0, "{left:?}");
}

#[test]
fn a_place_belongs_to_one_run_and_to_its_latest_life() {
    let case = Case::new("owner");
    let mut first = case.start(1_000_000, |_| {});
    first.wait("a checkpoint", |_| case.out().join("step-00000004/training.json").exists());
    let other = case.run(8, |config| config["seed"] = json!(8));
    let words = other.last_words();
    assert!(other.code == Some(78) && words.contains("belongs to another run: seed was 7"), "{words}");
    let steps = first.steps();
    first.wait("it goes on", |r| r.steps() > steps + 4);

    let second = case.start(1_000_000, |_| {});
    let ended = first.end();
    let words = ended.last_words();
    assert!(ended.code == Some(78) && words.contains("has taken over"), "{words}");
    drop(second);
}

/// The same on a server, without processes.
#[test]
fn a_place_on_a_server_belongs_to_one_run_too() {
    let case = Case::new("server");
    let store = Store::start(&case.folder, None).unwrap();
    let run = |seed: u64| {
        let file = case.config(8, |config| {
            config["seed"] = json!(seed);
            config["checkpoint"]["destination"] = json!(format!("{}/out", store.url));
        });
        TrainingConfig::from_json(&std::fs::read_to_string(file).unwrap()).unwrap()
    };
    let destination = run(7).checkpoint.unwrap().destination;
    let take = |seed: u64| Claim::take(&destination, &run(seed), ConductorLife::new("a test").unwrap());
    let first = take(7).unwrap().0;
    let error = take(8).err().unwrap();
    assert!(error.is_refusal() && error.to_string().contains("seed was 7"), "{error}");
    first.check().unwrap();
    let second = take(7).unwrap().0;
    assert!(first.check().unwrap_err().is_refusal());
    second.release().unwrap();
    take(8).unwrap();
}

#[test]
fn what_a_run_goes_on_with_is_said_and_what_makes_it_another_is_refused() {
    let case = Case::new("changes");
    assert_eq!(case.run(8, |_| {}).code, Some(0));
    for (change, said) in [
        (&(|c: &mut Value| c["globalBatch"] = json!(8)) as &dyn Fn(&mut Value), "globalBatch was 4"),
        (&|c| c["sequenceLength"] = json!(8), "sequenceLength was 16"),
        (&|c| c["optimizer"]["kind"] = json!("Lamb"), "optimizer.kind was \"AdamW\""),
    ] {
        let ended = case.run(12, change);
        assert!(ended.code == Some(78) && ended.last_words().contains(said), "{}", ended.last_words());
    }
    let ended = case.run(12, |config| {
        config["optimizer"]["learningRate"] = json!(0.001);
        config["microbatch"] = json!(4);
    });
    assert_eq!((ended.code, ended.steps()), (Some(0), (8..12).collect()));
    for change in ["optimizer.learningRate 0.003 -> 0.001", "microbatch 2 -> 4", "steps 8 -> 12"] {
        assert!(ended.says(&format!("goes on with another {change}")), "{:?}", ended.errors);
    }
    // One that is finished, and one whose steps are fewer than were made, have nothing to do but to say so.
    for steps in [12, 5] {
        let ended = case.run(steps, |config| config["optimizer"]["learningRate"] = json!(0.001));
        assert_eq!((ended.code, ended.steps()), (Some(0), Vec::new()));
        assert_eq!(ended.out.last().unwrap()["checkpoint"]["step"], 12);
    }
}

#[test]
fn a_run_goes_on_with_the_data_that_it_was_begun_with() {
    let case = Case::new("other-data");
    assert_eq!(case.run(8, |_| {}).code, Some(0));
    std::fs::write(case.path("text.txt"), "Another bird of other shores. ".repeat(100)).unwrap();
    let ended = case.run(12, |_| {});
    let words = ended.last_words();
    assert!(
        ended.code == Some(78) && words.contains("has other data than the run was begun with"),
        "{words}"
    );
    assert!(ended.steps().is_empty());
}

/// Whatever another start does not change is said at once, in the last line.
#[test]
fn data_that_cannot_be_used_is_named_at_once() {
    let case = Case::new("data");
    let file = |name: &str, bytes: &[u8]| {
        std::fs::write(case.path(name), bytes).unwrap();
        case.path(name)
    };
    let text = |path: &Path| json!({"text": {"path": path}});
    let lines = |path: &Path| json!({"jsonLines": {"path": path}});
    let good = "{\"text\": \"a long line of text\"}\n".repeat(100);
    let cases = [
        (text(&case.path("missing.txt")), "missing.txt: No such file"),
        (text(&file("empty.txt", b"")), "has 0 tokens, fewer than the 17"),
        (text(&file("short.txt", b"short")), "use more data or a shorter sequenceLength"),
        (text(&file("utf16.txt", b"\xff\xfea\0b\0")), "utf16.txt, line 1: it is not UTF-8"),
        (text(&file("latin.txt", b"one\ntwo\nthr\xe9e\n")), "latin.txt, line 3: it is not UTF-8"),
        (text(Path::new("/dev/zero")), "/dev/zero: it is no file"),
        (
            lines(&file("key.jsonl", format!("{good}{{\"body\": 1}}\n").as_bytes())),
            "key.jsonl, line 101: it has no text",
        ),
        (lines(&file("list.jsonl", b"[1, 2]\n")), "list.jsonl, line 1: it has no text"),
    ];
    for (data, said) in cases {
        let begin = Instant::now();
        let ended = case.run(8, |config| config["data"] = data);
        let words = ended.last_words();
        assert!(ended.code == Some(78) && words.contains("trainer-") && words.contains(said), "{words}");
        assert!(begin.elapsed() < Duration::from_secs(20), "{said}: {:?}", begin.elapsed());
    }
    let no_model = case.run(8, |config| config["model"] = json!({"checkpoint": case.path("no/model")}));
    assert!(
        no_model.code == Some(78) && no_model.last_words().contains("no/model"),
        "{}",
        no_model.last_words()
    );
    let held_back = case.run(8, |config| config["validation"] = json!({"everySteps": 1, "batches": 1000}));
    assert!(held_back.code == Some(78), "{}", held_back.last_words());
    assert!(held_back.last_words().contains("validation.batches is 1000"), "{}", held_back.last_words());
}

#[test]
fn who_reads_no_longer_ends_a_run_in_peace() {
    let case = Case::new("head");
    let mut child = command(&case.config(1_000_000, |_| {})).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("processes") && lines.next().is_some());
    drop(lines);
    let ended = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success() && !errors.contains("panic"), "{:?} {errors}", ended.status);
}

#[test]
fn what_a_killed_run_leaves_among_what_is_temporary_goes_with_the_next() {
    let case = Case::new("temporary");
    let temporary = case.path("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let left = || std::fs::read_dir(&temporary).unwrap().count();
    let mut run = Run::start(&case.config(1_000_000, |_| {}), |c| {
        c.env("TMPDIR", &temporary);
    });
    run.wait("steps", |r| r.steps() > 2);
    let pids: Vec<i32> = ["conductor", "trainer", "peer"].map(|role| run.pid(role)).into();
    signal(i32::try_from(run.child.id()).unwrap(), libc::SIGKILL);
    let begin = Instant::now();
    while pids.iter().any(|pid| Path::new(&format!("/proc/{pid}/exe")).exists()) {
        assert!(begin.elapsed() < LIMIT, "children outlive their supervisor");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(left() > 0, "what a killed process has of its own stays");
    let ended = Run::start(&case.config(8, |_| {}), |c| {
        c.env("TMPDIR", &temporary);
    })
    .end();
    assert_eq!((ended.code, left()), (Some(0), 0));
}
