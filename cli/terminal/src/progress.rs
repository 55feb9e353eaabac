//! Progress of long work on standard error, for a person at a terminal: on a pipe or in a file there is none.

use std::borrow::Cow;
use std::io::{self, Write, stderr};
use std::sync::LazyLock;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Of a sign that something is still going on.
const TICK: Duration = Duration::from_millis(120);
/// Everything that is shown; it is hidden where no terminal is.
static SHOWN: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Work whose end is not foreseen, or comes after so many parts. It vanishes when it is dropped.
pub struct Progress(ProgressBar);

impl Progress {
    /// Work that has no parts.
    #[must_use]
    pub fn waiting(what: impl Into<Cow<'static, str>>) -> Self {
        Self::shown(ProgressBar::no_length(), "{spinner} {msg} ({elapsed})", what)
    }

    /// Work in so many parts.
    #[must_use]
    pub fn of(parts: u64, what: impl Into<Cow<'static, str>>) -> Self {
        Self::shown(ProgressBar::new(parts), "{spinner} {msg} [{wide_bar}] {pos}/{len} (left {eta})", what)
    }

    /// Work on so many bytes.
    #[must_use]
    pub fn of_bytes(bytes: u64, what: impl Into<Cow<'static, str>>) -> Self {
        let template = "{spinner} {msg} [{wide_bar}] {binary_bytes}/{binary_total_bytes} (left {eta})";
        Self::shown(ProgressBar::new(bytes), template, what)
    }

    fn shown(bar: ProgressBar, template: &str, what: impl Into<Cow<'static, str>>) -> Self {
        let bar = SHOWN.add(bar);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what);
        bar.enable_steady_tick(TICK);
        Self(bar)
    }

    /// So much is done.
    pub fn done(&self, parts: u64) {
        self.0.set_position(parts);
    }

    /// What it does now.
    pub fn now(&self, what: impl Into<Cow<'static, str>>) {
        self.0.set_message(what);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Writes to the terminal while nothing of this is on it.
pub fn apart<T>(write: impl FnOnce() -> T) -> T {
    SHOWN.suspend(write)
}

/// Standard error, for lines between what is shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lines;

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        apart(|| stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        stderr().flush()
    }
}
