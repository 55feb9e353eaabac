//! Looking after processes until they are done, or told to end.

use std::ops::ControlFlow;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

/// Looks `every` so often, until a look says that all is over, or SIGTERM or SIGINT comes.
///
/// # Errors
/// Those of a look, which end it.
pub async fn supervise(
    every: Duration,
    mut look: impl AsyncFnMut() -> anyhow::Result<ControlFlow<()>>,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = ticks.tick() => if look().await?.is_break() {
                return Ok(());
            },
        }
    }
}
