//! The clock that the operator reads: tokio's, which stands still but for what this simulation passes on.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, advance};

/// Virtual time as tokio knows it.
pub(crate) struct Clock {
    runtime: Runtime,
    /// Time 0.
    base: Instant,
    /// What it has been told.
    told_ms: u64,
}

impl Clock {
    /// At time 0.
    pub fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime without threads and sockets needs nothing of the machine");
        let base = runtime.block_on(async { Instant::now() });
        Self { runtime, base, told_ms: 0 }
    }

    /// `now_ms` as the operator's code writes it.
    pub fn at(&self, now_ms: u64) -> Instant {
        self.base + Duration::from_millis(now_ms)
    }

    /// Polls `future` once at `now_ms`.
    pub fn poll<F: Future + Unpin>(&mut self, future: &mut F, now_ms: u64) -> Poll<F::Output> {
        let ahead = Duration::from_millis(now_ms.saturating_sub(self.told_ms));
        self.told_ms = self.told_ms.max(now_ms);
        self.runtime.block_on(async {
            advance(ahead).await;
            poll_fn(|context| Poll::Ready(Pin::new(&mut *future).poll(context))).await
        })
    }
}
