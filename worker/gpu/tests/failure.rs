//! A GPU that fails while an engine computes on it. It is a file of its own, as what fails is said by the environment, once for the process.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(unsafe_code, reason = "sets a variable of the environment before threads begin")]

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use dunlin_cuda::Gpu;
use dunlin_engine::{Command, Engine, EngineConfig};
use dunlin_gpu::GpuSpan;
use dunlin_model::random_model::{self, RandomModelSpec};
use dunlin_model::{Embedding, LayerWeights, ModelFile};
use dunlin_protocol::stage::{Input, Line, Output, StageJob, Urgency};
use dunlin_protocol::{Refusal, SessionId};
use dunlin_swarm::Layers;

/// Launches of attention while the first layer is measured: of one row four, of many two.
const MEASURING: usize = 6;
const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn its_sessions_go_elsewhere_and_the_engine_ends_with_the_operation_and_the_layer() {
    dunlin_cuda_emulator::load();
    dunlin_cuda_emulator::allow();
    // The second layer of the first batch.
    let fails = format!("launch:attention:{}", MEASURING + 2);
    // SAFETY: this process has no other threads that look at the environment yet.
    unsafe { std::env::set_var("DUNLIN_EMULATED_FAIL", fails) };
    let folder = tempfile::tempdir().unwrap();
    let spec = RandomModelSpec { layers: 3, hidden: 32, heads: 2, kv_heads: 1, ffn: 64, vocab: 260, seed: 3 };
    random_model::write(folder.path(), &spec).unwrap();
    let file = ModelFile::open_path(folder.path()).unwrap();
    let model = file.config().clone();
    let span = Box::new(GpuSpan::new(Gpu::open(0).unwrap(), &model, 64).unwrap());
    let config = EngineConfig { model, span, positions_max: 64, kv_bytes: 1 << 20 };
    let (results_in, results) = channel();
    let done = move |computed: dunlin_protocol::stage::Computed| results_in.send(computed.output).unwrap();
    let engine = Engine::start(config, Box::new(done)).unwrap();
    assert!(engine.send(Command::InstallEmbedding(Embedding::load(&file).unwrap())));
    for layer in 0..2 {
        let weights = Arc::new(LayerWeights::load(&file, layer).unwrap());
        assert!(engine.send(Command::Install(layer, weights)));
    }
    let layers = Layers::new(0, 2);
    assert!(engine.send(Command::Job(StageJob {
        session: SessionId(1),
        attempt: 1,
        layers,
        adapter: None,
        line: Line { urgency: Urgency::Prompt, born_ms: 1 },
        start: 0,
        count: 3,
        input: Input::Tokens(vec![1, 2, 3]),
        last: false,
        sample: None,
    })));
    let output = results.recv_timeout(LIMIT).unwrap();
    assert_eq!(output, Output::Failed(Refusal::NotHolding { layers }));
    assert_eq!(results.recv_timeout(LIMIT), Err(RecvTimeoutError::Disconnected), "the thread has ended");
    let asked = Instant::now();
    let failure = loop {
        match engine.status().failure {
            Some(failure) => break failure,
            None => assert!(asked.elapsed() < LIMIT, "it says nothing"),
        }
    };
    assert_eq!(failure, "layer 1: attention failed on the GPU: CUDA_ERROR_LAUNCH_FAILED (719)");
}
