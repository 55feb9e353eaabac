//! Adapters in a whole swarm of real processes: each request with its own, token by token as one process computes it, also when a stage is
//! killed.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod tool;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::SystemTime;

use dunlin_e2e::chat::{self, Question, Stream};
use dunlin_e2e::local::Local;
use dunlin_gateway::template::{ChatTemplate, Message};
use dunlin_kernels::Pool;
use dunlin_model::adapter::{AdapterShape, LoraShape, Projection, PromptShape, random};
use dunlin_model::generate::Whole;
use dunlin_model::random_model::{self, RandomModelSpec};
use dunlin_model::{Adapter, ModelFile};
use dunlin_protocol::SamplingParams;
use serde_json::{Value, json};
use tempfile::TempDir;
use tool::dunlin;

const TOKENS: u32 = 400;
const PROMPT_ROWS: usize = 5;

/// A random model in the folder `base`, and adapters of it in `lora` and `prompt`.
struct Models {
    folder: TempDir,
}

impl Models {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let spec =
            RandomModelSpec { layers: 6, hidden: 256, heads: 4, kv_heads: 2, ffn: 512, vocab: 600, seed: 3 };
        let models = Self { folder };
        random_model::write(&models.path("base"), &spec).unwrap();
        let file = ModelFile::open_path(&models.path("base")).unwrap();
        let targets = vec![Projection::Query, Projection::Value, Projection::Output, Projection::Up];
        let lora = AdapterShape::Lora(LoraShape { rank: 4, alpha: 8.0, targets });
        random::write(&models.path("lora"), file.config(), &lora, 1).unwrap();
        let prompt = AdapterShape::Prompt(PromptShape { tokens: PROMPT_ROWS });
        random::write(&models.path("prompt"), file.config(), &prompt, 2).unwrap();
        models
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start(&self) -> Local {
        let adapters = ["lora", "prompt"].map(|name| format!("{name}={}", self.path(name).display()));
        Local::start_with(dunlin(), &self.path("base"), &adapters, 3, 1).unwrap()
    }

    /// What one process answers.
    fn reference(&self, question: &Question) -> Vec<u64> {
        let file = ModelFile::open_path(&self.path("base")).unwrap();
        let template = ChatTemplate::new(&file.chat_template().unwrap().unwrap(), BTreeMap::new()).unwrap();
        let message = [("role", "user"), ("content", question.text.as_str())];
        let text = template.render(vec![Message::from_pairs(message)], SystemTime::UNIX_EPOCH).unwrap();
        let text = file.tokenizer().unwrap().encode(&text, false).unwrap();
        let mut whole = Whole::load(&file, Pool::new(1), 1024).unwrap();
        let mut tokens = Vec::new();
        if question.model != "base" {
            let adapter = Adapter::open(&self.path(&question.model), file.config()).unwrap();
            tokens.extend(adapter.prompt_tokens(file.config()));
            whole = whole.with(adapter);
        }
        tokens.extend(text);
        let params = SamplingParams {
            temperature: question.temperature as f32,
            seed: question.seed,
            ..SamplingParams::default()
        };
        let answer = whole.generate(&tokens, question.tokens as usize, &params, &[]).unwrap();
        answer.into_iter().map(u64::from).collect()
    }
}

fn question(model: &str) -> Question {
    Question {
        temperature: 0.8,
        seed: 11,
        ..Question::greedy(model, "Write a story about a lighthouse keeper.", TOKENS)
    }
}

fn recoveries(local: &Local) -> u64 {
    let (_, page) = chat::get(&format!("{}/metrics", local.url)).unwrap();
    let counts = page.lines().filter(|l| l.starts_with("dunlin_recoveries_total"));
    counts.filter_map(|l| l.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// (status, body) of a completion of token ids.
fn complete(local: &Local, model: &str, prompt: &[u32]) -> (u16, Value) {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let body = json!({"model": model, "prompt": prompt, "max_tokens": 3, "ignore_eos": true});
    let request = agent.post(format!("{}/v1/completions", local.url));
    let mut response = request.header("content-type", "application/json").send(body.to_string()).unwrap();
    let text = response.body_mut().read_to_string().unwrap();
    (response.status().as_u16(), serde_json::from_str(&text).unwrap())
}

#[test]
fn requests_with_different_adapters_get_their_own_tokens_also_when_a_stage_is_killed() {
    let models = Models::new();
    let local = models.start();
    let questions = ["base", "lora", "prompt"].map(question);
    let expected = questions.each_ref().map(|q| models.reference(q));
    assert!(expected[0] != expected[1] && expected[0] != expected[2] && expected[1] != expected[2]);

    let streams = questions.each_ref().map(|q| Stream::start(&local.url, q));
    for (stream, expected) in streams.into_iter().zip(&expected) {
        assert_eq!(stream.finish().unwrap().ids, *expected, "at the same time");
    }

    let before = recoveries(&local);
    let mut streams = questions.each_ref().map(|q| Stream::start(&local.url, q));
    for stream in &mut streams {
        stream.read_tokens(20).unwrap();
    }
    let pid = local.peers[1]["pid"].as_u64().unwrap();
    // SAFETY: kill(2) with the pid of a process that this test has started.
    #[allow(unsafe_code, reason = "std cannot kill a process that is not its child")]
    let killed = unsafe { libc::kill(i32::try_from(pid).unwrap(), libc::SIGKILL) };
    assert_eq!(killed, 0, "no process {pid}");
    for (stream, expected) in streams.into_iter().zip(&expected) {
        assert_eq!(stream.finish().unwrap().ids, *expected, "with a stage killed");
    }
    assert!(recoveries(&local) >= before + 3, "each of them was in the middle of its answer");
}

#[test]
fn rows_of_a_prompt_are_neither_counted_nor_named_by_clients() {
    let models = Models::new();
    let local = models.start();
    for model in ["base", "lora", "prompt"] {
        let (status, answer) = complete(&local, model, &[1, 2, 3, 4]);
        assert_eq!((status, &answer["model"]), (200, &json!(model)), "{answer}");
        let usage = json!({"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7});
        assert_eq!(answer["usage"], usage);
        let (status, answer) = complete(&local, model, &[1, 600]);
        assert_eq!(status, 400, "{answer}");
    }
    assert_eq!(complete(&local, "other", &[1]).0, 404);
}

#[test]
fn an_adapter_that_cannot_be_used_is_named() {
    let models = Models::new();
    let wrong = models.path("wrong");
    let other =
        RandomModelSpec { layers: 1, hidden: 64, heads: 2, kv_heads: 2, ffn: 64, vocab: 300, seed: 1 };
    random_model::write(&models.path("other"), &other).unwrap();
    let other = ModelFile::open_path(&models.path("other")).unwrap();
    let prompt = AdapterShape::Prompt(PromptShape { tokens: 2 });
    random::write(&wrong, other.config(), &prompt, 1).unwrap();
    for (adapter, why) in [
        (format!("mine={}", wrong.display()), "AdapterInvalid: adapter mine: "),
        ("mine=/no/such/folder".to_owned(), "AdapterUnreachable: adapter mine: cannot read /no/such/folder/"),
        ("base=/somewhere".to_owned(), "adapter base has the name of the model"),
        ("/somewhere".to_owned(), "NAME=PATH"),
    ] {
        let ended = Command::new(dunlin())
            .args(["local", "--peers", "1", "--adapter", &adapter, "--model"])
            .arg(models.path("base"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(!ended.status.success() && said.contains(why), "{adapter}: {said}");
    }
}
