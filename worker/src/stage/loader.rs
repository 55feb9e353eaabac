//! The thread that opens the model and its adapters and reads layers, beside the engine that serves those it has. Before it reads anything,
//! it sees whether there is memory for it.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dunlin_engine::memory::{Fit, MemoryBudget, Needs, without_room};
use dunlin_engine::{Command, Engine};
use dunlin_model::{Embedding, Head, LayerWeights, ModelError, ModelFile};
use dunlin_swarm::{Layers, layer_set, ranges};
use tracing::{info, warn};

use super::device::{DeviceChoice, OpenDevice};
use crate::memory;
use crate::model::{ModelPlace, NamedAdapter, Problem, problem};

/// First and longest pause before another try.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// Pause before it is looked again whether the engine has taken a layer.
const PAUSE: Duration = Duration::from_millis(1);
/// Pause before it is looked again whether the engine has taken or given up what it must.
const WAIT: Duration = Duration::from_millis(50);

/// Layers that a stage is to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hold {
    /// Those that it executes.
    pub span: Layers,
    /// Those that it keeps ready for others.
    pub shadows: Vec<Layers>,
}

impl Hold {
    /// None at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.span.is_empty() && self.shadows.iter().all(|layers| layers.is_empty())
    }
}

/// Sizes that the planner needs.
#[derive(Clone, Debug)]
pub struct ModelFacts {
    /// What the model takes in memory.
    pub needs: Needs,
    /// Room for weights and KV cache.
    pub room: u64,
    /// Values in a row.
    pub hidden: usize,
    /// Longest sequence.
    pub context_length: u32,
}

/// What the loader has to say.
#[derive(Clone, Debug, Default)]
pub struct LoadProgress {
    /// Known once the header is read.
    pub facts: Option<ModelFacts>,
    /// A problem the user has to fix; cleared when it is gone.
    pub problem: Option<Problem>,
    /// What was asked for last, and what of it there is memory for.
    pub fit: Option<(Hold, Fit)>,
}

/// A handle on the thread.
pub struct Loader {
    wanted: std::sync::mpsc::Sender<Hold>,
    progress: Arc<Mutex<LoadProgress>>,
}

/// Makes the engine, without memory for KV cache, once the model's shape is known.
pub type StartEngine = Box<dyn FnOnce(&ModelFile, u32, OpenDevice) -> anyhow::Result<Engine> + Send>;

/// What a stage is made from.
pub struct StageSource {
    /// Where the model is.
    pub place: ModelPlace,
    /// What is served beside it.
    pub adapters: Vec<NamedAdapter>,
    /// Longest sequence; the model's context length when 0.
    pub max_seq_len: u32,
    /// Memory that the process may use, in bytes.
    pub memory: u64,
    /// What computes.
    pub device: DeviceChoice,
    /// Threads of the processor, if it is that.
    pub threads: usize,
}

impl Loader {
    /// Starts the thread; it opens the model at once and starts the engine then.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(source: StageSource, start: StartEngine) -> std::io::Result<Self> {
        let (wanted, inbox) = channel();
        let progress = Arc::new(Mutex::new(LoadProgress::default()));
        let shared = Arc::clone(&progress);
        std::thread::Builder::new()
            .name("loader".to_owned())
            .spawn(move || run(&source, start, &inbox, &shared))?;
        Ok(Self { wanted, progress })
    }

    /// Layers to load from now on.
    pub fn want(&self, layers: Hold) {
        // A loader that is gone has said why in its progress.
        let _ = self.wanted.send(layers);
    }

    /// What it has to say.
    #[must_use]
    pub fn progress(&self) -> LoadProgress {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn set(progress: &Mutex<LoadProgress>, change: impl FnOnce(&mut LoadProgress)) {
    change(&mut progress.lock().unwrap_or_else(PoisonError::into_inner));
}

#[expect(
    clippy::too_many_lines,
    reason = "the life of the thread: it opens the model, and then loads what it is told to hold"
)]
fn run(source: &StageSource, start: StartEngine, inbox: &Receiver<Hold>, progress: &Mutex<LoadProgress>) {
    let mut pause = RETRY.0;
    let (file, positions, budget, device) = loop {
        match open(source) {
            Ok(opened) => break opened,
            Err(problem) => {
                warn!(reason = problem.reason, message = problem.message, "the stage cannot start");
                set(progress, |p| p.problem = Some(problem));
            }
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(RETRY.1);
    };
    let engine = match start(&file, positions, device) {
        Ok(engine) => engine,
        Err(error) => {
            let problem = Problem { reason: "EngineFailed", message: format!("{error:#}") };
            set(progress, |p| p.problem = Some(problem));
            return;
        }
    };
    let config = file.config();
    info!(layers = config.layers, hidden = config.hidden, room = budget.room(), "the model is open");
    let facts = ModelFacts {
        needs: budget.needs().clone(),
        room: budget.room(),
        hidden: config.hidden,
        context_length: config.context_length,
    };
    set(progress, |p| *p = LoadProgress { facts: Some(facts), ..LoadProgress::default() });
    let adapters = source.adapters.clone();
    let mut holder = Holder {
        file,
        engine,
        budget,
        adapters,
        shared: None,
        given: 0,
        kv_bytes: 0,
        wanted: Hold::default(),
    };
    let mut pause = RETRY.0;
    loop {
        match inbox.recv_timeout(pause) {
            Ok(layers) => holder.wanted = layers,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        while let Ok(newer) = inbox.try_recv() {
            holder.wanted = newer;
        }
        match holder.step(inbox, progress) {
            Ok(Step::Newer(newer)) => (holder.wanted, pause) = (newer, Duration::ZERO),
            Ok(Step::Waits) => pause = WAIT,
            Ok(Step::Holds(left_out)) => {
                pause = RETRY.0;
                let message = || without_room(&left_out);
                let problem =
                    (!left_out.is_empty()).then(|| Problem { reason: OUT_OF_MEMORY, message: message() });
                set(progress, |p| p.problem = problem);
            }
            Err(problem) => {
                warn!(reason = problem.reason, message = problem.message, "weights cannot be loaded");
                set(progress, |p| p.problem = Some(problem));
                pause = (pause * 2).clamp(RETRY.0, RETRY.1);
            }
        }
    }
}

/// Reason of a problem with memory.
const OUT_OF_MEMORY: &str = "OutOfMemory";

/// The model, the longest sequence it is served with, what it takes, and what computes it.
fn open(source: &StageSource) -> Result<(ModelFile, u32, MemoryBudget, OpenDevice), Problem> {
    let device = source.device.open(source.threads)?;
    let file = source.place.open()?;
    let context = file.config().context_length;
    let positions = if source.max_seq_len == 0 { context } else { source.max_seq_len.min(context) };
    let adapters = source.adapters.iter().map(NamedAdapter::bytes).sum::<Result<u64, _>>()?;
    let needs = Needs::of(&file, positions, adapters).map_err(|error| problem(&error))?;
    let budget = MemoryBudget::new(source.memory, needs).with_device(device.memory());
    Ok((file, positions, budget, device))
}

/// How far a step has come.
enum Step {
    /// Everything is held but these shadows, for which there is no memory.
    Holds(Vec<Layers>),
    /// The engine must give up KV cache or layers first, or has not taken all that it was given.
    Waits,
    /// Something else is wanted.
    Newer(Hold),
}

/// Sees to it that the engine holds what is wanted.
struct Holder {
    file: ModelFile,
    engine: Engine,
    budget: MemoryBudget,
    /// Those that the engine does not have yet.
    adapters: Vec<NamedAdapter>,
    /// Embedding and output matrix, if they are one: kept as long as one of them is wanted, so that it is never there twice.
    shared: Option<Embedding>,
    /// Layers that the engine was given so far. It may not have taken all of them yet, and may have given some up again.
    given: u64,
    /// What the engine was told.
    kv_bytes: u64,
    wanted: Hold,
}

impl Holder {
    fn step(&mut self, inbox: &Receiver<Hold>, progress: &Mutex<LoadProgress>) -> Result<Step, Problem> {
        // A stage that has layers has every adapter: nothing is loaded before.
        self.open_adapters()?;
        let status = self.engine.status();
        let held = layer_set(&status.held);
        let Hold { span, shadows } = &self.wanted;
        let out_of_memory = |error: dunlin_engine::memory::OutOfMemory| Problem {
            reason: OUT_OF_MEMORY,
            message: error.to_string(),
        };
        if self.wanted.is_empty() {
            return Ok(Step::Holds(Vec::new()));
        }
        let mut fit = self.budget.fit(*span, shadows, &held).map_err(out_of_memory)?;
        // What is here and not wanted any more stays until everything else is, if there is memory for both.
        let others: BTreeSet<u32> = held.difference(&fit.layers).copied().collect();
        let both = self.budget.fit(*span, &[shadows.clone(), ranges(&others)].concat(), &held);
        let both = both.ok().filter(|b| fit.layers.union(&others).all(|layer| b.layers.contains(layer)));
        let keeps = both.is_some();
        match both {
            Some(both) => (fit.kv_bytes, fit.journal_bytes) = (both.kv_bytes, both.journal_bytes),
            None => {
                let _ = self.engine.send(Command::Retain(ranges(&fit.layers)));
            }
        }
        if self.kv_bytes != fit.kv_bytes {
            let bytes = usize::try_from(fit.kv_bytes).unwrap_or(usize::MAX);
            let _ = self.engine.send(Command::KvBytes(bytes));
            self.kv_bytes = fit.kv_bytes;
        }
        let ends = [0, self.file.config().layers - 1];
        if !ends.iter().any(|layer| fit.layers.contains(layer)) {
            self.shared = None;
        }
        set(progress, |p| {
            p.fit = Some((self.wanted.clone(), fit.clone()));
            p.problem.take_if(|problem| problem.reason == OUT_OF_MEMORY && !fit.layers.is_subset(&held));
        });
        if fit.layers.is_subset(&held) {
            return Ok(Step::Holds(fit.left_out));
        }
        if status.installed < self.given || !keeps || self.engine.status().kv_bytes > fit.kv_bytes {
            return Ok(Step::Waits);
        }
        memory::trim();
        let newer = self.load(&(&fit.layers - &held), inbox).map_err(|error| problem(&error))?;
        Ok(newer.map_or(Step::Waits, Step::Newer))
    }

    /// Gives the engine the adapters that are left in the list.
    fn open_adapters(&mut self) -> Result<(), Problem> {
        while let Some(adapter) = self.adapters.last() {
            let opened = adapter.open(self.file.config())?;
            info!(name = %adapter.name, bytes = opened.bytes(), "an adapter is loaded");
            let _ = self.engine.send(Command::InstallAdapter(Arc::clone(&adapter.name), Arc::new(opened)));
            self.adapters.pop();
        }
        Ok(())
    }

    /// Waits until the engine has taken all layers but the last that it was given: they may be on their way to another memory than this process's, and no more than
    /// two are to wait.
    fn wait_for_engine(&self) {
        let mut status = self.engine.status();
        while status.installed + 1 < self.given && status.failure.is_none() {
            std::thread::sleep(PAUSE);
            status = self.engine.status();
        }
    }

    /// Loads layers, those of the span first; stops early when something else is wanted.
    fn load(&mut self, missing: &BTreeSet<u32>, inbox: &Receiver<Hold>) -> Result<Option<Hold>, ModelError> {
        let (file, tied, last) = (&self.file, self.file.config().tied, self.file.config().layers - 1);
        let (first, end) = (missing.contains(&0), missing.contains(&last));
        let embedding = match &self.shared {
            Some(shared) => Some(shared.clone()),
            None if first || (end && tied) => Some(Embedding::load(file)?),
            None => None,
        };
        self.shared = embedding.clone().filter(|_| tied);
        if end {
            let head = Head::load(file, embedding.as_ref())?;
            let _ = self.engine.send(Command::InstallHead(Arc::new(head)));
        }
        if first && let Some(embedding) = embedding {
            let _ = self.engine.send(Command::InstallEmbedding(embedding));
        }
        let own = self.wanted.span.iter().chain(self.wanted.shadows.iter().flat_map(|s| s.iter()));
        for layer in own.filter(|layer| missing.contains(layer)) {
            let weights = LayerWeights::load(file, layer)?;
            self.wait_for_engine();
            if !self.engine.send(Command::Install(layer, Arc::new(weights))) {
                return Ok(None);
            }
            self.given += 1;
            if let Ok(newer) = inbox.try_recv() {
                return Ok(Some(newer));
            }
        }
        info!(layers = missing.len(), "layers are loaded");
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::sync::mpsc::channel;
    use std::time::{Duration, Instant};

    use dunlin_engine::{Command, Engine, EngineConfig};
    use dunlin_model::random_model::{self, RandomModelSpec};
    use dunlin_swarm::Layers;

    use super::{DeviceChoice, Hold, Loader, ModelPlace, OpenDevice, StageSource};

    const LIMIT: Duration = Duration::from_secs(20);

    fn until(what: &str, mut met: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !met() {
            assert!(begin.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn layers_that_were_given_up_are_loaded_again_when_they_are_wanted_again() {
        let folder = tempfile::tempdir().unwrap();
        let spec =
            RandomModelSpec { layers: 3, hidden: 32, heads: 2, kv_heads: 1, ffn: 32, vocab: 300, seed: 1 };
        random_model::write(folder.path(), &spec).unwrap();
        let (engine_in, engines) = channel();
        let source = StageSource {
            place: ModelPlace::path(folder.path()),
            adapters: Vec::new(),
            max_seq_len: 32,
            memory: 1 << 30,
            device: DeviceChoice::Cpu,
            threads: 1,
        };
        let start = move |file: &dunlin_model::ModelFile, positions: u32, device: OpenDevice| {
            let model = file.config().clone();
            let positions_max = positions as usize;
            let span = device.span(&model, positions_max)?;
            let config = EngineConfig { model, span, positions_max, kv_bytes: 0 };
            let engine = Engine::start(config, Box::new(|_| ()))?;
            engine_in.send(engine.clone()).unwrap();
            Ok(engine)
        };
        let loader = Loader::start(source, Box::new(start)).unwrap();
        let engine = engines.recv_timeout(LIMIT).unwrap();
        let (span, shadow) = (Layers::new(1, 3), Layers::new(0, 1));
        for _ in 0..2 {
            loader.want(Hold { span, shadows: vec![shadow] });
            until("span and shadow are held", || engine.status().held == [Layers::new(0, 3)]);
            let less = Hold { span, shadows: Vec::new() };
            loader.want(less.clone());
            until("it is seen what fits", || loader.progress().fit.is_some_and(|(of, _)| of == less));
            assert!(engine.send(Command::Retain(vec![span])));
            until("the shadow is given up", || engine.status().held == [span]);
        }
    }
}
