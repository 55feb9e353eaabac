//! Whoever asks for too much is refused, with what would be possible: nobody else notices, and nothing is killed.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod tool;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dunlin_e2e::chat::{self, Question, Stream};
use dunlin_e2e::local::Local;
use dunlin_model::random_model::{self, RandomModelSpec};
use serde_json::{Value, json};
use tempfile::TempDir;
use tool::dunlin;

const MIB: u64 = 1 << 20;

fn model(folder: &TempDir, spec: &RandomModelSpec) -> PathBuf {
    let path = folder.path().join("model");
    random_model::write(&path, spec).unwrap();
    path
}

/// Status and answer of a request, and how long it took.
fn post(url: &str, path: &str, body: &Value) -> (u16, Value, Duration) {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let began = Instant::now();
    let request = agent.post(format!("{url}{path}")).header("content-type", "application/json");
    let mut response = request.send(body.to_string()).unwrap();
    let text = response.body_mut().read_to_string().unwrap();
    (response.status().as_u16(), serde_json::from_str(&text).unwrap(), began.elapsed())
}

fn recoveries(url: &str) -> u64 {
    let (_, page) = chat::get(&format!("{url}/metrics")).unwrap();
    let counts = page.lines().filter(|l| l.starts_with("dunlin_recoveries_total"));
    counts.filter_map(|l| l.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// Longest time without a token from token `from` on, in seconds.
fn longest_gap(arrived_s: &[f64], from: usize) -> f64 {
    arrived_s[from..].windows(2).map(|w| w[1] - w[0]).fold(0.0, f64::max)
}

#[test]
fn prompts_of_megabytes_are_refused_and_no_running_stream_notices() {
    let folder = tempfile::tempdir().unwrap();
    let spec =
        RandomModelSpec { layers: 6, hidden: 512, heads: 8, kv_heads: 4, ffn: 1024, vocab: 600, seed: 3 };
    let local = Local::start(dunlin(), &model(&folder, &spec), 3, 1).unwrap();
    let question = Question::greedy("model", "Write a story about a lighthouse keeper.", 600);
    let undisturbed = chat::ask(&local.url, &question).unwrap();
    let mut stream = Stream::start(&local.url, &question);
    stream.read_tokens(100).unwrap();
    // One that is too long by its bytes, one by its tokens, one without a word's end in it, and a list of many.
    let long = "All work and no play makes Jack a dull boy. ".repeat(7_500_000 / 44);
    let chat = json!({"messages": [{"role": "user", "content": long}]});
    let pieces = json!({"prompt": vec!["ab ".repeat(400_000); 6]});
    let word = json!({"prompt": "x".repeat(7_500_000)});
    let text = json!({"prompt": long});
    let asked: [(&str, &Value); 4] = [
        ("/v1/chat/completions", &chat),
        ("/v1/completions", &pieces),
        ("/v1/completions", &word),
        ("/tokenize", &text),
    ];
    std::thread::scope(|scope| {
        let answers = asked.map(|(path, body)| scope.spawn(|| post(&local.url, path, body)));
        for (answer, (path, _)) in answers.into_iter().zip(asked) {
            let (status, body, took) = answer.join().unwrap();
            assert_eq!(
                (status, &body["error"]["code"]),
                (400, &json!("context_length_exceeded")),
                "{path}: {body}"
            );
            println!("{path}: refused after {took:?}");
            assert!(took < Duration::from_secs(10), "{path}: {took:?}");
        }
    });
    assert!(stream.so_far().ids.len() < 600, "the stream was over before the requests were");
    let disturbed = stream.finish().unwrap();
    assert_eq!(disturbed.ids, undisturbed.ids);
    let gaps = (longest_gap(&undisturbed.arrived_s, 10), longest_gap(&disturbed.arrived_s, 100));
    println!("longest gap undisturbed and disturbed: {gaps:?} s");
    // Links are lost after 650 ms of silence. Before there was an intake, these gaps were as long as the tokenizer took.
    assert!(gaps.1 < 0.4, "{gaps:?}");
    assert_eq!(recoveries(&local.url), 0);
}

/// What is behind `before` in `text`, up to something that is no digit.
fn number_behind(text: &str, before: &str) -> u64 {
    let rest = &text[text.find(before).unwrap() + before.len()..];
    rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
}

#[test]
fn a_model_larger_than_its_memory_is_refused_before_it_is_loaded_and_what_is_advised_suffices() {
    let folder = tempfile::tempdir().unwrap();
    let spec =
        RandomModelSpec { layers: 8, hidden: 512, heads: 8, kv_heads: 8, ffn: 1376, vocab: 8000, seed: 1 };
    let path = model(&folder, &spec);
    let start = |peers: u32, memory: u64| {
        let mut command = Local::command(dunlin(), &path, peers, 1);
        command.args(["--memory", &memory.to_string()]);
        command
    };
    let size = std::fs::metadata(path.join("model.safetensors")).unwrap().len();
    let began = Instant::now();
    let output = start(1, size / 2).output().unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rfind(|line| !line.is_empty()).unwrap();
    let begin = "Error: OutOfMemory: layers [0,8) need ";
    assert!(!output.status.success() && last.starts_with(begin), "{last}");
    assert_eq!(said.lines().filter(|line| line.contains("takes its place")).count(), 0, "{said}");
    println!("{last}");
    let advised = number_behind(last, "Give each peer ");
    assert_eq!(number_behind(last, begin), advised);
    let local = Local::run(start(1, advised * MIB)).unwrap();
    assert!(chat::ask(&local.url, &Question::greedy("model", "Hello", 4)).is_ok());
    let used = local.peak_bytes().unwrap()[0];
    println!("{} MiB advised, {} MiB used", advised, used / MIB);
    assert!(used <= advised * MIB, "{used}");
    drop(local);
    assert!(!start(1, (advised - 2) * MIB).output().unwrap().status.success());
}

/// A control group with a limit of memory; dropping it removes it. None where this process may make none.
struct Group(PathBuf);

impl Group {
    fn new(name: &str, limit: u64) -> Option<Self> {
        let name = format!("dunlin-{name}-{}", std::process::id());
        let roots = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        roots.into_iter().find_map(|(root, file)| {
            let folder = Path::new(root).join(&name);
            std::fs::create_dir(&folder).ok()?;
            let group = Self(folder);
            std::fs::write(group.0.join(file), limit.to_string()).ok()?;
            Some(group)
        })
    }

    /// Processes that were killed for want of memory.
    fn killed(&self) -> u64 {
        let read = |file: &str| std::fs::read_to_string(self.0.join(file)).unwrap_or_default();
        let text = read("memory.events") + &read("memory.oom_control");
        text.lines().filter_map(|line| line.strip_prefix("oom_kill ")?.parse::<u64>().ok()).sum()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its processes have ended.
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn a_swarm_whose_kv_cache_is_full_stays_within_its_memory() {
    let folder = tempfile::tempdir().unwrap();
    let spec =
        RandomModelSpec { layers: 6, hidden: 256, heads: 4, kv_heads: 4, ffn: 512, vocab: 600, seed: 3 };
    let path = model(&folder, &spec);
    // Nobody says how much memory a stage may use: its control group does, where there may be one.
    let (peers, limit) = (2, 320 * MIB);
    let share = (limit - limit / 8) / u64::from(peers);
    let group = Group::new("kv", limit);
    let mut command = Local::command(dunlin(), &path, peers, 1);
    match &group {
        Some(Group(folder)) => {
            let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
            command = std::process::Command::new("sh");
            let script = format!("echo $$ > {}/cgroup.procs; exec \"$0\" \"$@\"", folder.display());
            command.args(["-c", &script]).arg(dunlin()).args(arguments);
        }
        None => {
            command.args(["--memory", &share.to_string()]);
        }
    }
    let local = Local::run(command).unwrap();
    let swarm =
        || -> Value { serde_json::from_str(&chat::get(&format!("{}/swarm", local.url)).unwrap().1).unwrap() };
    let pages = |of: &str| -> Vec<u64> {
        swarm()["peers"].as_array().unwrap().iter().map(|p| p[of].as_u64().unwrap()).collect()
    };
    let total = pages("total_pages");
    assert!(total.iter().all(|pages| *pages > 0), "{total:?}");
    // A peer executes three layers, so that a page of each is 16 positions: twice as many as there is room for.
    let room = *total.iter().min().unwrap() / 3 * 16;
    let (length, each) = (2 * room, 1500);
    let prompts: Vec<Vec<u64>> =
        (0..length.div_ceil(each)).map(|i| (0..each).map(|at| (i * 7 + at * 13) % 500).collect()).collect();
    let full = std::thread::scope(|scope| {
        // Every batch has a token of each answer and up to 128 rows of prompts: in so many batches, prompts take more than all the room before the first answer ends.
        let ask = |prompt: &Vec<u64>| {
            let body = json!({"prompt": prompt, "max_tokens": 64, "ignore_eos": true});
            post(&local.url, "/v1/completions", &body)
        };
        let answers: Vec<_> = prompts.iter().map(|prompt| scope.spawn(move || ask(prompt))).collect();
        let mut least = u64::MAX;
        while answers.iter().any(|answer| !answer.is_finished()) {
            least = pages("free_pages").into_iter().min().unwrap().min(least);
            std::thread::sleep(Duration::from_millis(20));
        }
        for answer in answers {
            let (status, body, _) = answer.join().unwrap();
            assert_eq!(status, 200, "{body}");
        }
        least
    });
    let used = local.peak_bytes().unwrap();
    println!(
        "{} prompts in room for {room} positions, {full} pages free at the least; of {share} bytes used {used:?}",
        prompts.len()
    );
    assert!(full < 3 * each / 16, "the KV cache was never full: {full} pages of {total:?} were free");
    assert!(used.iter().all(|used| *used <= share), "{used:?} of {share}");
    drop(local);
    if let Some(group) = group {
        assert_eq!(group.killed(), 0);
    }
}
