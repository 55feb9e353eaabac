//! The thread that owns an engine: takes commands, runs batches, tells how it is doing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dunlin_model::{Adapter, Embedding, Head, LayerWeights, ModelConfig};
use dunlin_protocol::stage::{Computed, StageJob};
use dunlin_protocol::{SessionId, Windows};
use dunlin_schedule::{Batcher, Budget, SegmentKey};
use dunlin_swarm::{Layers, Position};

use crate::runner::ModelRunner;
use crate::span::Span;
use crate::status::EngineStatus;

/// Commands that may wait.
const COMMANDS_MAX: usize = 4096;

/// What the engine is started with.
pub struct EngineConfig {
    /// Shape of the model.
    pub model: ModelConfig,
    /// What computes, still without layers.
    pub span: Box<dyn Span>,
    /// Longest sequence.
    pub positions_max: usize,
    /// Memory for KV cache, in bytes.
    pub kv_bytes: usize,
}

/// What the thread is told, in order.
pub enum Command {
    /// Compute.
    Job(StageJob),
    /// Forget the KV cache of positions from `to` on, and jobs that wait.
    Truncate {
        /// The session whose segment it is.
        session: SessionId,
        /// The layers of the segment.
        layers: Layers,
        /// First position to forget.
        to: Position,
    },
    /// Forget the KV cache and jobs that wait.
    Free {
        /// The session whose segment it is.
        session: SessionId,
        /// The layers of the segment.
        layers: Layers,
    },
    /// Take over a layer.
    Install(u32, Arc<LayerWeights>),
    /// Take over what the first stage needs.
    InstallEmbedding(Embedding),
    /// Take over what the last stage needs.
    InstallHead(Arc<Head>),
    /// Take over an adapter of this name.
    InstallAdapter(Arc<str>, Arc<Adapter>),
    /// Drop layers (and embedding or head with the first or last) that are not in these ranges.
    Retain(Vec<Layers>),
    /// Memory for KV cache is so many bytes from now on. Pages in use beyond it are given up as their sessions end.
    KvBytes(usize),
}

/// A handle on the thread; it ends when the handle is dropped.
#[derive(Clone)]
pub struct Engine {
    commands: SyncSender<Command>,
    status: Arc<Mutex<EngineStatus>>,
    layer_rows: Arc<AtomicU64>,
}

/// Why the engine does not take a command.
pub enum NotTaken {
    /// As many wait as may: here it is back, for later.
    Full(Command),
    /// The thread has ended: its device has failed ([`EngineStatus::failure`]).
    Ended,
}

impl Engine {
    /// Starts the thread; results are given to `done` on that thread, which may block it: whoever takes results must never wait for the
    /// engine to take a command ([`Engine::try_send`]), or the two would wait for each other. `done` is dropped when the thread ends.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(config: EngineConfig, done: Box<dyn Fn(Computed) + Send>) -> std::io::Result<Self> {
        let (commands, inbox) = sync_channel(COMMANDS_MAX);
        let status = Arc::new(Mutex::new(EngineStatus::default()));
        let layer_rows = Arc::new(AtomicU64::new(0));
        let (shared, count) = (Arc::clone(&status), Arc::clone(&layer_rows));
        std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || Executor::new(config, shared, count).run(&inbox, &*done))?;
        Ok(Self { commands, status, layer_rows })
    }

    /// Gives a command; waits while [`COMMANDS_MAX`] others are before it. False when the thread has ended.
    #[must_use]
    pub fn send(&self, command: Command) -> bool {
        self.commands.send(command).is_ok()
    }

    /// Gives a command without ever waiting.
    ///
    /// # Errors
    /// When the queue is full, or the thread has ended.
    pub fn try_send(&self, command: Command) -> Result<(), NotTaken> {
        self.commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(command) => NotTaken::Full(command),
            TrySendError::Disconnected(_) => NotTaken::Ended,
        })
    }

    /// How the engine is doing.
    #[must_use]
    pub fn status(&self) -> EngineStatus {
        let mut status = self.status.lock().map(|s| s.clone()).unwrap_or_default();
        // Within a batch nothing else changes, and a batch may be long.
        status.layer_rows = self.layer_rows.load(Ordering::Relaxed);
        status
    }
}

struct Executor {
    batcher: Batcher,
    runner: ModelRunner,
    status: Arc<Mutex<EngineStatus>>,
}

impl Executor {
    fn new(config: EngineConfig, status: Arc<Mutex<EngineStatus>>, layer_rows: Arc<AtomicU64>) -> Self {
        let EngineConfig { model, span, positions_max, kv_bytes } = config;
        let (hidden, windows) = (model.hidden, Windows::new(model.windows()));
        let runner = ModelRunner::new(model, span, positions_max, layer_rows);
        let batcher = Batcher::new(Budget::ENGINE, hidden, kv_bytes / runner.page_bytes());
        let batcher = batcher.with_windows(windows);
        let executor = Self { batcher, runner, status };
        executor.publish(true);
        executor
    }

    fn run(mut self, inbox: &Receiver<Command>, done: &dyn Fn(Computed)) {
        // Has anything come since the last batch?
        let mut news = false;
        loop {
            // Everything that has arrived is known before a batch is chosen.
            loop {
                match inbox.try_recv() {
                    Ok(command) => self.command(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
                news = true;
            }
            // A session that gives pages back says so with a command.
            let line = self.batcher.line();
            if line.is_empty() || (line.is_starved() && !news) {
                match inbox.recv_timeout(Duration::from_secs(1)) {
                    Ok(command) => {
                        self.command(command);
                        news = true;
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            } else {
                self.batcher.step(&mut self.runner, &mut |computed| done(computed));
                self.runner.keep_spare(self.batcher.pages().free());
                news = false;
            }
            self.publish(false);
            if self.runner.failure().is_some() {
                return;
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Job(job) => self.batcher.push(job),
            Command::Truncate { session, layers, to } => self.truncate((session, layers), to),
            Command::Free { session, layers } => self.truncate((session, layers), 0),
            Command::Install(layer, weights) => {
                self.runner.install(layer, weights);
                self.publish(true);
            }
            Command::InstallEmbedding(embedding) => {
                self.runner.install_embedding(embedding);
                self.publish(true);
            }
            Command::InstallHead(head) => {
                self.runner.install_head(head);
                self.publish(true);
            }
            Command::InstallAdapter(name, adapter) => {
                self.runner.install_adapter(name, adapter);
                self.publish(true);
            }
            Command::Retain(keep) => {
                self.runner.retain(&keep);
                self.publish(true);
            }
            Command::KvBytes(bytes) => {
                self.batcher.resize(bytes / self.runner.page_bytes());
                self.runner.keep_spare(self.batcher.pages().free());
            }
        }
    }

    fn truncate(&mut self, key: SegmentKey, to: Position) {
        self.batcher.truncate(key, to, &mut self.runner);
        self.runner.keep_spare(self.batcher.pages().free());
    }

    /// Tells the rest of the process how the engine is doing.
    fn publish(&self, layers_changed: bool) {
        let Ok(mut status) = self.status.lock() else { return };
        let (line, pages) = (self.batcher.line(), self.batcher.pages());
        status.queue_rows = line.rows();
        status.free_pages = u32::try_from(pages.free()).unwrap_or(u32::MAX);
        status.total_pages = u32::try_from(pages.total()).unwrap_or(u32::MAX);
        status.kv_bytes = (pages.total() * self.runner.page_bytes()) as u64;
        status.starved = line.is_starved();
        status.failure = self.runner.failure().map(ToString::to_string);
        self.runner.describe_pace(&mut status);
        if layers_changed {
            self.runner.describe_layers(&mut status);
        }
    }
}

#[cfg(test)]
mod tests;
