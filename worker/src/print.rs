//! Lines for whoever reads standard output, who may stop doing so: `dunlin-worker local-train ... | head`.

use std::fmt::Display;
use std::io::{ErrorKind, Write, stdout};
use std::ops::ControlFlow;

/// Prints a line; `Break` when nobody reads any longer, which is an orderly end.
///
/// # Errors
/// When it cannot be printed for another reason.
pub fn line(text: impl Display) -> std::io::Result<ControlFlow<()>> {
    let mut out = stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        Err(error) => Err(error),
    }
}
