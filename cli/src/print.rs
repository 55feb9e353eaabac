//! Lines for whoever reads standard output, who may stop doing so: `dunlin local-train ... | head`.

use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write, stderr, stdout};
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

/// Says something to a person at a terminal, and nothing to a program or a file.
pub fn hint(text: impl Display) {
    let mut out = stderr().lock();
    if out.is_terminal() {
        // A terminal that is gone needs no hint.
        let _ = writeln!(out, "\n{text}\n");
    }
}
