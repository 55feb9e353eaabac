//! The thread that opens the model and its adapters and reads layers, beside the engine that serves those it has.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dunlin_engine::{Command, Engine};
use dunlin_model::{Embedding, Head, LayerWeights, ModelError, ModelFile};
use dunlin_planner::Layers;
use dunlin_planner::topology::layer_set;
use tracing::{info, warn};

use crate::model::{Location, NamedAdapter, Problem, problem};

/// First and longest pause before another try.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// Sizes that the planner needs.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Bytes of each layer in the file.
    pub layer_bytes: Vec<u64>,
    /// Bytes of the embedding.
    pub embedding_bytes: u64,
    /// Bytes of the output matrix.
    pub head_bytes: u64,
    /// Values in a row.
    pub hidden: usize,
    /// Longest sequence.
    pub context_length: u32,
}

/// What the loader has to say.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Known once the header is read.
    pub facts: Option<Facts>,
    /// What a user must mend; cleared when it is mended.
    pub problem: Option<Problem>,
}

/// A handle on the thread.
pub struct Loader {
    wanted: std::sync::mpsc::Sender<Vec<Layers>>,
    progress: Arc<Mutex<Progress>>,
}

/// Makes the engine once the model's shape is known.
pub type StartEngine = Box<dyn FnOnce(&ModelFile) -> std::io::Result<Engine> + Send>;

impl Loader {
    /// Starts the thread; it opens the model at once and starts the engine then.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(
        location: Location,
        adapters: Vec<NamedAdapter>,
        start: StartEngine,
    ) -> std::io::Result<Self> {
        let (wanted, inbox) = channel();
        let progress = Arc::new(Mutex::new(Progress::default()));
        let shared = Arc::clone(&progress);
        std::thread::Builder::new()
            .name("loader".to_owned())
            .spawn(move || run(&location, adapters, start, &inbox, &shared))?;
        Ok(Self { wanted, progress })
    }

    /// Layers to load from now on, those to be executed first.
    pub fn want(&self, layers: Vec<Layers>) {
        // A loader that is gone has said why in its progress.
        let _ = self.wanted.send(layers);
    }

    /// What it has to say.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn set(progress: &Mutex<Progress>, change: impl FnOnce(&mut Progress)) {
    change(&mut progress.lock().unwrap_or_else(PoisonError::into_inner));
}

fn run(
    location: &Location,
    mut adapters: Vec<NamedAdapter>,
    start: StartEngine,
    inbox: &Receiver<Vec<Layers>>,
    progress: &Mutex<Progress>,
) {
    let mut pause = RETRY.0;
    let file = loop {
        match location.open() {
            Ok(file) => break file,
            Err(problem) => {
                warn!(reason = problem.reason, message = problem.message, "the model cannot be opened");
                set(progress, |p| p.problem = Some(problem));
            }
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(RETRY.1);
    };
    let config = file.config();
    let facts = Facts {
        layer_bytes: (0..config.layers).map(|l| file.layer_bytes(l)).collect(),
        embedding_bytes: file.embedding_bytes(),
        head_bytes: file.head_bytes(),
        hidden: config.hidden,
        context_length: config.context_length,
    };
    let engine = match start(&file) {
        Ok(engine) => engine,
        Err(error) => {
            let problem = Problem { reason: "EngineFailed", message: error.to_string() };
            set(progress, |p| p.problem = Some(problem));
            return;
        }
    };
    info!(layers = config.layers, hidden = config.hidden, "the model is open");
    set(progress, |p| *p = Progress { facts: Some(facts), problem: None });
    let mut wanted: Vec<Layers> = Vec::new();
    let mut pause = RETRY.0;
    loop {
        match inbox.recv_timeout(pause) {
            Ok(layers) => wanted = layers,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        while let Ok(newer) = inbox.try_recv() {
            wanted = newer;
        }
        // Who has layers has every adapter: nothing is loaded before.
        let outcome = open_adapters(&file, &engine, &mut adapters)
            .and_then(|()| load(&file, &engine, &wanted, inbox).map_err(|error| problem(&error)));
        match outcome {
            Ok(newer) => {
                pause = RETRY.0;
                match newer {
                    Some(newer) => wanted = newer,
                    None => set(progress, |p| p.problem = None),
                }
            }
            Err(problem) => {
                warn!(reason = problem.reason, message = problem.message, "weights cannot be loaded");
                set(progress, |p| p.problem = Some(problem));
                pause = (pause * 2).min(RETRY.1);
            }
        }
    }
}

/// Gives the engine the adapters that are left in the list.
fn open_adapters(file: &ModelFile, engine: &Engine, adapters: &mut Vec<NamedAdapter>) -> Result<(), Problem> {
    while let Some(adapter) = adapters.last() {
        let opened = adapter.open(file.config())?;
        info!(name = %adapter.name, bytes = opened.bytes(), "an adapter is loaded");
        let _ = engine.send(Command::InstallAdapter(Arc::clone(&adapter.name), Arc::new(opened)));
        adapters.pop();
    }
    Ok(())
}

/// Loads what is wanted and not held; stops early when something else is wanted.
fn load(
    file: &ModelFile,
    engine: &Engine,
    wanted: &[Layers],
    inbox: &Receiver<Vec<Layers>>,
) -> Result<Option<Vec<Layers>>, ModelError> {
    let held = layer_set(&engine.status().held);
    let last = file.config().layers - 1;
    let mut missing: BTreeSet<u32> = layer_set(wanted);
    missing.retain(|l| !held.contains(l));
    if missing.is_empty() {
        return Ok(None);
    }
    let embedding = if missing.contains(&0) { Some(Embedding::load(file)?) } else { None };
    if missing.contains(&last) {
        let head = Head::load(file, embedding.as_ref())?;
        let _ = engine.send(Command::InstallHead(Arc::new(head)));
    }
    if let Some(embedding) = embedding {
        let _ = engine.send(Command::InstallEmbedding(embedding));
    }
    // In the order of `wanted`: the span first.
    for layer in wanted.iter().flat_map(|r| r.iter()).filter(|l| missing.contains(l)) {
        let weights = LayerWeights::load(file, layer)?;
        if !engine.send(Command::Install(layer, Arc::new(weights))) {
            return Ok(None);
        }
        if let Ok(newer) = inbox.try_recv() {
            return Ok(Some(newer));
        }
    }
    info!(layers = missing.len(), "layers are loaded");
    Ok(None)
}
