//! Threads of their own for the sockets of a swarm, and the pulse of the loop behind them.
//!
//! Pings are sent and answered on these threads, so that a process that is busy is not taken for one that is gone. A process whose main
//! loop does not turn any more is as good as gone, however lively its sockets: without a pulse pings are neither sent nor answered.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;

use crate::connection::{Incoming, incoming};
use crate::tls::Credentials;

/// Connections as they come.
pub type Connections = Pin<Box<dyn Stream<Item = std::io::Result<TlsStream<Incoming>>> + Send>>;

/// A main loop that has not turned for this long is stuck.
const STUCK: Duration = Duration::from_secs(3);

/// The threads; they end when this is dropped.
pub struct WireRuntime(Option<Runtime>);

impl WireRuntime {
    /// Starts them.
    ///
    /// # Errors
    /// When the system has no threads to give.
    pub fn start() -> std::io::Result<Self> {
        // Two: one may be busy with TLS or rows while heartbeats go on.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("wire")
            .enable_all()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    /// Where tasks are started.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.0.as_ref().map_or_else(Handle::current, |runtime| runtime.handle().clone())
    }

    /// Runs a server on them: `serve` gets its connections.
    ///
    /// # Errors
    /// When the listener cannot be moved there.
    pub fn serve<F, S>(
        &self,
        listener: TcpListener,
        credentials: Credentials,
        serve: S,
    ) -> std::io::Result<JoinHandle<F::Output>>
    where
        F: Future<Output: Send> + Send + 'static,
        S: FnOnce(Connections) -> F,
    {
        // A socket belongs to the runtime that it was registered with.
        let listener = listener.into_std()?;
        let handle = self.handle();
        let here = handle.enter();
        let future = serve(Box::pin(incoming(TcpListener::from_std(listener)?, credentials)));
        drop(here);
        Ok(handle.spawn(future))
    }
}

impl Drop for WireRuntime {
    fn drop(&mut self) {
        // Streams of a process that ends need no goodbye, and dropping may happen on a thread that must not wait.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// The pulse of a main loop.
#[derive(Clone, Debug)]
pub struct Pulse {
    started: Instant,
    beat_ms: Arc<AtomicU64>,
    stuck: Duration,
}

impl Default for Pulse {
    fn default() -> Self {
        Self::new(STUCK)
    }
}

impl Pulse {
    /// Of a loop that is stuck when it has not turned for `stuck`.
    #[must_use]
    pub fn new(stuck: Duration) -> Self {
        Self { started: Instant::now(), beat_ms: Arc::default(), stuck }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The loop turns; to be called several times a second.
    pub fn beat(&self) {
        self.beat_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// The loop does not turn any more.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        let since_ms = self.now_ms().saturating_sub(self.beat_ms.load(Ordering::Relaxed));
        u128::from(since_ms) > self.stuck.as_millis()
    }
}
