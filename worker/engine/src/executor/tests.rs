//! Jobs with adapters, one batch after the other on a random model.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use dunlin_model::adapter::{AdapterShape, LoraShape, Projection, PromptShape, random};
use dunlin_model::random_model::{self, RandomModelSpec};
use dunlin_model::{Adapter, Embedding, Head, LayerWeights, ModelConfig, ModelFile};
use dunlin_protocol::stage::{Computed, Input, Line, Output, StageJob, Urgency};
use dunlin_protocol::{Refusal, SessionId};
use dunlin_swarm::Layers;

use crate::span::cpu::CpuSpan;

use super::{Batcher, Budget, Command, EngineConfig, Executor, Windows};

const VOCAB: u32 = 300;
const PROMPT: u32 = 3;

/// A whole model of three layers with adapters `a`, `b` (LoRA) and `p` (a prompt).
fn executor() -> Executor {
    executor_of(128, |_| {})
}

/// The same, changed, for sequences of up to `positions_max`.
fn executor_of(positions_max: usize, change: impl FnOnce(&mut ModelConfig)) -> Executor {
    let folder = tempfile::tempdir().unwrap();
    let spec = RandomModelSpec {
        layers: 3,
        hidden: 64,
        heads: 4,
        kv_heads: 2,
        ffn: 96,
        vocab: VOCAB as usize,
        seed: 5,
    };
    random_model::write(folder.path(), &spec).unwrap();
    let file = ModelFile::open_path(folder.path()).unwrap();
    let mut model = file.config().clone();
    change(&mut model);
    let span = Box::new(CpuSpan::new(&model, 2, positions_max));
    let config = EngineConfig { model, span, positions_max, kv_bytes: 1 << 22 };
    let mut executor = Executor::new(config, Arc::new(Mutex::default()), Arc::default());
    let embedding = Embedding::load(&file).unwrap();
    executor.command(Command::InstallHead(Arc::new(Head::load(&file, Some(&embedding)).unwrap())));
    executor.command(Command::InstallEmbedding(embedding));
    for layer in 0..3 {
        executor.command(Command::Install(layer, Arc::new(LayerWeights::load(&file, layer).unwrap())));
    }
    let lora = |rank, targets: &[Projection]| {
        AdapterShape::Lora(LoraShape { rank, alpha: 16.0, targets: targets.to_vec() })
    };
    for (name, shape, seed) in [
        ("a", lora(4, &Projection::ALL), 1),
        ("b", lora(7, &[Projection::Query, Projection::Down]), 2),
        ("p", AdapterShape::Prompt(PromptShape { tokens: PROMPT as usize }), 3),
    ] {
        let path = folder.path().join(name);
        random::write(&path, file.config(), &shape, seed).unwrap();
        let adapter = Adapter::open(&path, file.config()).unwrap();
        executor.command(Command::InstallAdapter(name.into(), Arc::new(adapter)));
    }
    executor
}

fn job(session: u64, adapter: Option<&str>, start: u32, tokens: &[u32]) -> StageJob {
    StageJob {
        session: SessionId(session),
        attempt: 1,
        // Rows are looked at, so the last layer is another stage's.
        layers: Layers::new(0, 2),
        adapter: adapter.map(Arc::from),
        line: Line {
            urgency: if tokens.len() > 1 { Urgency::Prompt } else { Urgency::Step },
            born_ms: session,
        },
        start,
        count: tokens.len() as u32,
        input: Input::Tokens(tokens.to_vec()),
        last: false,
        sample: None,
    }
}

/// Runs everything that waits; how many batches it took, and the outputs of each session.
fn run(executor: &mut Executor) -> (usize, BTreeMap<u64, Vec<Output>>) {
    let outputs: RefCell<BTreeMap<u64, Vec<Output>>> = RefCell::default();
    let done = |done: Computed| outputs.borrow_mut().entry(done.session.0).or_default().push(done.output);
    let mut batches = 0;
    while !executor.batcher.line().is_empty() {
        executor.batcher.step(&mut executor.runner, &mut |computed| done(computed));
        batches += 1;
    }
    (batches, outputs.into_inner())
}

/// (adapter, first tokens): a prompt's rows come first.
fn sequences() -> Vec<(Option<&'static str>, Vec<u32>)> {
    let text = vec![17, 99, 250, 3];
    let behind = |rows: std::ops::Range<u32>, text: &[u32]| rows.chain(text.iter().copied()).collect();
    vec![
        (None, text.clone()),
        (Some("a"), text.clone()),
        (Some("b"), text.clone()),
        (Some("p"), behind(VOCAB..VOCAB + PROMPT, &text[..1])),
        (Some("a"), text.clone()),
        (None, vec![8, 1]),
        // Longer than one batch takes beside others.
        (Some("p"), behind(VOCAB..VOCAB + PROMPT, &(0..140).map(|i| i * 2).collect::<Vec<_>>()[..100])),
    ]
}

const MORE: [u32; 5] = [42, 7, 200, 42, 299];

/// Its first tokens, and then the others one by one.
fn push(executor: &mut Executor, session: usize, round: usize) {
    let (adapter, first) = &sequences()[session];
    let (start, tokens) = match round.checked_sub(1) {
        None => (0, &first[..]),
        Some(i) => (first.len() + i, &MORE[i..=i]),
    };
    executor.command(Command::Job(job(session as u64, *adapter, start as u32, tokens)));
}

/// All rounds of some sessions, a batch each; the outputs of each session.
fn rounds(executor: &mut Executor, sessions: std::ops::Range<usize>) -> BTreeMap<u64, Vec<Output>> {
    let mut all: BTreeMap<u64, Vec<Output>> = BTreeMap::new();
    for round in 0..=MORE.len() {
        sessions.clone().for_each(|session| push(executor, session, round));
        let (batches, outputs) = run(executor);
        assert_eq!(batches, 1, "everybody is in every batch");
        outputs.into_iter().for_each(|(session, outputs)| all.entry(session).or_default().extend(outputs));
    }
    all
}

fn bits(outputs: &[Output]) -> Vec<u32> {
    let rows = outputs.iter().flat_map(|output| match output {
        Output::Rows(rows) => rows.as_slice().to_vec(),
        other => panic!("{other:?} is not rows"),
    });
    rows.map(f32::to_bits).collect()
}

#[test]
fn the_bits_of_a_row_do_not_depend_on_the_adapters_of_others_in_the_batch() {
    let mut executor = executor();
    let all = 0..sequences().len();
    let mixed = rounds(&mut executor, all.clone());
    let mixed: Vec<Vec<u32>> = mixed.values().map(|outputs| bits(outputs)).collect();
    for session in all {
        let key = SessionId(session as u64);
        executor.command(Command::Free { session: key, layers: Layers::new(0, 2) });
        let alone = rounds(&mut executor, session..session + 1);
        assert_eq!(bits(&alone[&(session as u64)]), mixed[session], "session {session}");
    }
    assert_eq!(mixed[1], mixed[4], "the same adapter, the same tokens");
    let last = |session: usize| &mixed[session][mixed[session].len() - 64..];
    for (one, other) in [(0, 1), (0, 2), (1, 2), (0, 3)] {
        assert_ne!(last(one), last(other), "{one} and {other} have different adapters");
    }
}

/// One that keeps all pages of its segments.
fn keeping(mut executor: Executor) -> Executor {
    let pages = executor.batcher.pages().total();
    executor.batcher = Batcher::new(Budget::ENGINE, executor.runner.model.hidden, pages);
    executor
}

/// Rows of `text` from `from` on, up to 600 as a prompt, and the others by tens; what came, and how many pages were taken at most.
fn read(executor: &mut Executor, text: &[u32], from: usize) -> (Vec<Output>, usize) {
    let (mut outputs, mut most) = (Vec::new(), 0);
    let prompt = from..text.len().min(600.max(from));
    let tens = (prompt.end..text.len()).step_by(10).map(|at| at..at + 10);
    for rows in std::iter::once(prompt.clone()).chain(tens).filter(|rows| !rows.is_empty()) {
        executor.command(Command::Job(job(1, None, rows.start as u32, &text[rows])));
        outputs.extend(run(executor).1.remove(&1).unwrap_or_default());
        let pages = executor.batcher.pages();
        let taken = pages.total() - pages.free();
        assert_eq!(taken, executor.runner.pages_in_memory(), "what is counted is what is there");
        most = most.max(taken);
    }
    (outputs, most)
}

#[test]
fn pages_behind_windows_are_given_back_and_no_bit_changes() {
    let text: Vec<u32> = (0..900).map(|i| i * 7 % VOCAB).collect();
    let slide = |model: &mut ModelConfig| model.block.attention.window = Some(32);
    let mut frees = executor_of(1024, slide);
    let mut keeps = keeping(executor_of(1024, slide));
    let ((freed, most), (kept, all)) = (read(&mut frees, &text, 0), read(&mut keeps, &text, 0));
    assert_eq!(bits(&freed), bits(&kept));
    let bound = Windows::new([Some(32); 3]).pages(Layers::new(0, 2), 900) as usize;
    assert!(most <= bound && all == 2 * 57, "{most} of {all} pages, {bound} are allowed");
    let cut = |executor: &mut Executor, to| {
        executor.command(Command::Truncate { session: SessionId(1), layers: Layers::new(0, 2), to });
    };
    // As after a loss: it goes on a little before where it was.
    cut(&mut frees, 700);
    let (again, _) = read(&mut frees, &text, 700);
    assert_eq!(bits(&again), bits(&kept)[700 * 64..]);
    cut(&mut frees, 500);
    let pages = frees.batcher.pages();
    assert_eq!((frees.runner.pages_in_memory(), pages.free()), (0, pages.total()));
    let (refused, _) = read(&mut frees, &text[..501], 500);
    assert_eq!(refused, [Output::Failed(Refusal::NeedReplay { have: 0 })]);
    // Layers of both kinds.
    let mixed = |model: &mut ModelConfig| {
        let mut sliding = model.block.clone();
        sliding.attention.window = Some(32);
        model.other_blocks.insert(1, sliding);
    };
    let (mut frees, mut keeps) = (executor_of(1024, mixed), keeping(executor_of(1024, mixed)));
    let ((freed, most), (kept, all)) = (read(&mut frees, &text, 0), read(&mut keeps, &text, 0));
    assert_eq!(bits(&freed), bits(&kept));
    assert!(most < all, "{most} of {all} pages");
}

#[test]
fn a_job_may_have_the_tokens_of_its_own_prompt_and_no_others_beyond_the_vocabulary() {
    let mut executor = executor();
    let mut outcome = |adapter: Option<&str>, token: u32| {
        executor.command(Command::Job(job(1, adapter, 0, &[token])));
        let (_, mut outputs) = run(&mut executor);
        executor.command(Command::Free { session: SessionId(1), layers: Layers::new(0, 2) });
        match outputs.remove(&1).unwrap().remove(0) {
            Output::Failed(refusal) => Some(refusal),
            _ => None,
        }
    };
    assert_eq!(outcome(Some("p"), VOCAB), None);
    assert_eq!(outcome(Some("p"), VOCAB + PROMPT - 1), None);
    for (adapter, token) in
        [(None, VOCAB), (Some("a"), VOCAB), (Some("p"), VOCAB + PROMPT), (Some("p"), u32::MAX)]
    {
        let refusal = outcome(adapter, token);
        assert!(matches!(refusal, Some(Refusal::BadRequest { .. })), "{adapter:?} {token}: {refusal:?}");
    }
    assert_eq!(outcome(Some("c"), 1), Some(Refusal::NoAdapter { name: "c".into() }));
}
