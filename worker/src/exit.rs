//! How a process ends, and what its supervisor should do about it: Kubernetes' operator, or `dunlin local-train`.
//!
//! Most errors may be gone at the next start. Those that stay until somebody changes something are marked with [`NeedsUser`], and end a
//! process with a code of their own. The last line on standard error is what is wrong, and what to do.

use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;

/// Exit code of a process that another start does not help (`EX_CONFIG` of sysexits.h). The operator knows it, too.
pub const NEEDS_USER: u8 = 78;
/// Names a file that the last line goes to as well, for a supervisor that reads it.
pub const LAST_WORDS: &str = "DUNLIN_LAST_WORDS";

/// An error that stays until a user does something about it.
#[derive(Debug)]
struct Marked(anyhow::Error);

impl fmt::Display for Marked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Marked {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

/// Marks errors that another start does not change.
pub trait NeedsUser<T> {
    /// Marks the error, if it is one.
    ///
    /// # Errors
    /// The same, marked.
    fn needs_user(self) -> anyhow::Result<T>;

    /// Marks it if `stays` says so.
    ///
    /// # Errors
    /// The same, perhaps marked.
    fn needs_user_if(self, stays: bool) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> NeedsUser<T> for Result<T, E> {
    fn needs_user(self) -> anyhow::Result<T> {
        self.map_err(|error| Marked(error.into()).into())
    }

    fn needs_user_if(self, stays: bool) -> anyhow::Result<T> {
        if stays { self.needs_user() } else { self.map_err(Into::into) }
    }
}

/// Is it marked, whatever was said around it?
#[must_use]
pub fn is_for_user(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<Marked>())
}

/// Says how the process ends, and with which code.
#[must_use]
pub fn code(outcome: &anyhow::Result<()>) -> ExitCode {
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    let words = format!("{error:#}").lines().collect::<Vec<_>>().join(" ");
    // Nobody may read it.
    let _ = writeln!(std::io::stderr(), "Error: {words}");
    if let Some(path) = std::env::var_os(LAST_WORDS) {
        // A supervisor that finds nothing there says so.
        let _ = std::fs::write(path, words);
    }
    if is_for_user(error) { NEEDS_USER.into() } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn a_mark_stays_with_an_error_and_says_nothing_itself() {
        let error = Err::<(), _>(anyhow!("the cause")).context("what").needs_user().context("around it");
        let error = error.unwrap_err();
        assert_eq!(format!("{error:#}"), "around it: what: the cause");
        assert!(is_for_user(&error) && !is_for_user(&anyhow!("the cause")));
        let passing = Err::<(), _>(anyhow!("the cause")).needs_user_if(false).unwrap_err();
        assert!(!is_for_user(&passing));
    }
}
