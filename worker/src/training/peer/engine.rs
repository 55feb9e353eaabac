//! The thread that owns a stage: it does what it is given, strictly in order.

use std::sync::mpsc;

use anyhow::Context;
use dunlin_kernels::Pool;
use dunlin_train::Stage;
use tokio::sync::oneshot;

/// Work on the stage, if there is one yet.
type Work = Box<dyn FnOnce(&mut Workbench) + Send>;

/// The stage and the threads that compute.
pub struct Workbench {
    /// The stage that this peer holds, once it has one.
    pub stage: Option<Stage>,
    /// The threads of the kernels.
    pub pool: Pool,
}

/// A handle of the thread; it ends with the last one.
#[derive(Clone)]
pub struct TrainingEngine(mpsc::Sender<Work>);

/// Ends when the thread does, which it does by itself only when work panics.
pub type EngineEnd = oneshot::Receiver<()>;

impl TrainingEngine {
    /// Starts the thread; `threads` compute.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub fn start(threads: usize) -> anyhow::Result<(Self, EngineEnd)> {
        let (work_in, work) = mpsc::channel::<Work>();
        let (alive, ended) = oneshot::channel();
        std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || {
                // Dropped with the thread's stack, however that ends.
                let _alive: oneshot::Sender<()> = alive;
                let mut bench = Workbench { stage: None, pool: Pool::new(threads) };
                for job in work {
                    job(&mut bench);
                }
            })
            .context("cannot start a thread")?;
        Ok((Self(work_in), ended))
    }

    /// Adds work. How much can be waiting is bounded by who asks: one call at a time, what the conductor wants, and as many pulls as are served at once.
    pub fn run(&self, work: impl FnOnce(&mut Workbench) + Send + 'static) {
        // Whoever started the thread hears when it has ended.
        let _ = self.0.send(Box::new(work));
    }
}
