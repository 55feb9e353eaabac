//! Waiting for a condition, with a limit and a message that says what was seen last.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at again.
const POLL: Duration = Duration::from_millis(100);

/// Polls `look` until it returns `Ok(Some(value))`; an `Err` or `Ok(None)` counts as "not yet".
///
/// # Errors
/// After `limit`, with `what` and the last error or "condition not met".
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    loop {
        let last = match look() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => "condition not met".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        if started.elapsed() > limit {
            bail!("{what}: not within {} s; last: {last}", limit.as_secs());
        }
        std::thread::sleep(POLL);
    }
}

/// [`until`] for a plain yes or no; `look` returns what it saw as the error text of the time-out.
///
/// # Errors
/// After `limit`, with what was seen last.
pub fn until_true(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<(bool, String)>,
) -> Result<()> {
    until(what, limit, || {
        let (met, seen) = look()?;
        if met { Ok(Some(())) } else { bail!("{seen}") }
    })
}
