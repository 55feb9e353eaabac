//! Time as machines count it.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Counts milliseconds from when it was started.
#[derive(Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// It is 0 now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The time now.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Waits until then; for ever, if there is no such time.
    pub async fn until(&self, at_ms: Option<u64>) {
        match at_ms {
            Some(at_ms) => sleep_until(self.0 + Duration::from_millis(at_ms)).await,
            None => std::future::pending().await,
        }
    }
}
