//! Child processes that do not outlive their supervisor.

use std::collections::VecDeque;
use std::io::{PipeReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use dunlin_terminal::progress::Lines;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Time between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(3);
/// Lines of a process that are remembered, and characters of one.
const LINES_KEPT: usize = 64;
const LINE_MAX: usize = 1000;
/// A longer line is passed on in pieces.
const READ_MAX: u64 = 1 << 16;
/// Time in which the last words of a process arrive.
const LISTEN: Duration = Duration::from_millis(500);

/// A process of a swarm.
pub struct Process {
    /// Name of this life of it.
    pub name: String,
    /// Its gRPC server.
    pub addr: SocketAddr,
    child: Child,
    said: Arc<Mutex<VecDeque<String>>>,
    /// Passes on what it says.
    listener: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts a process that listens on `addr`. What it writes to standard error is passed on.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, addr: SocketAddr, mut command: Command) -> anyhow::Result<Self> {
        command.stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| {
            format!("cannot start {} as {name}", command.as_std().get_program().display())
        })?;
        let said = Arc::default();
        let stderr = child.stderr.take();
        let listener = stderr.map(|stderr| tokio::spawn(pass_on(stderr, Arc::clone(&said))));
        Ok(Self { name: name.to_owned(), addr, child, said, listener })
    }

    /// Of one that has ended: why, in its own words if it said any (what follows the last `Error: `, or a panic).
    pub async fn last_words(&mut self) -> Option<String> {
        if let Some(listener) = self.listener.take() {
            // A child of it may keep the pipe open.
            let _ = timeout(LISTEN, listener).await;
        }
        words(&self.said.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Its process id; 0 when it has ended.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        if let Some(pid) = self.child.id() {
            // SAFETY: kill(2) with the id of a child that has not been waited for.
            #[allow(unsafe_code, reason = "std and tokio cannot send SIGTERM")]
            unsafe {
                libc::kill(pid.cast_signed(), libc::SIGTERM);
            }
        }
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        // It has ended by itself when this fails.
        let _ = self.child.start_kill();
    }

    /// Waits for its end, and makes it end after a while.
    pub async fn reap(&mut self) {
        if timeout(GRACE, self.child.wait()).await.is_err() {
            // It has ended by itself when this fails.
            let _ = self.child.kill().await;
        }
    }
}

fn words(said: &VecDeque<String>) -> Option<String> {
    let from = said.iter().rposition(|line| line.starts_with("Error: ") || line.contains("panicked at"))?;
    let traced = |line: &&str| !line.eq_ignore_ascii_case("stack backtrace:");
    let lines = said.iter().skip(from).map(|line| line.trim()).take_while(traced);
    let words = lines.filter(|line| !line.is_empty() && !line.starts_with("note: run with"));
    let words = words.collect::<Vec<_>>().join(" ");
    Some(words.trim_start_matches("Error: ").chars().take(LINE_MAX).collect())
}

/// Passes on lines as they come, and remembers the last ones.
async fn pass_on(stderr: impl AsyncRead + Unpin, said: Arc<Mutex<VecDeque<String>>>) {
    let mut lines = BufReader::new(stderr);
    let mut line = Vec::new();
    while (&mut lines).take(READ_MAX).read_until(b'\n', &mut line).await.is_ok_and(|count| count > 0) {
        // Nobody reads any more: the process must not wait for that.
        let _ = Lines.write_all(&line);
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() == LINES_KEPT {
            said.pop_front();
        }
        said.push_back(String::from_utf8_lossy(&line).chars().take(LINE_MAX).collect());
        line.clear();
    }
}

/// The program `worker` in a role, with `certificates` on its stdin; it dies with its supervisor, however that dies.
pub fn child(worker: &Path, role: &str, name: &str, certificates: PipeReader) -> Command {
    let mut command = Command::new(worker);
    command.args([role, "--name", name, "--tls-stdin"]).kill_on_drop(true);
    command.stdin(certificates).stdout(Stdio::null());
    let supervisor = std::process::id();
    // SAFETY: prctl, getppid and raise are async-signal-safe; nothing is allocated between fork and exec.
    #[allow(unsafe_code, reason = "a child must die with its supervisor, however that dies")]
    unsafe {
        command.pre_exec(move || {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::getppid().cast_unsigned() != supervisor {
                libc::raise(libc::SIGKILL);
            }
            Ok(())
        });
    }
    command
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};

    use super::{LINES_KEPT, pass_on, words};

    #[test]
    fn the_error_that_a_process_ended_with_is_told() {
        let words = |lines: &[&str]| words(&lines.iter().map(|line| format!("{line}\n")).collect());
        let error = ["INFO listens", "Error: cannot bind: in use"];
        assert_eq!(words(&error).as_deref(), Some("cannot bind: in use"));
        let panic = ["thread 'engine' panicked at a.rs:1:2:", "no page", "stack backtrace:", "   0: main"];
        assert_eq!(words(&panic).as_deref(), Some("thread 'engine' panicked at a.rs:1:2: no page"));
        assert_eq!(words(&["INFO listens"]), None);
    }

    #[tokio::test]
    async fn the_last_lines_are_remembered_whole_or_not() {
        let said: Arc<Mutex<VecDeque<String>>> = Arc::default();
        let text: String = (0..100).map(|i| format!("line {i}\n")).collect::<String>() + "the end";
        pass_on(text.as_bytes(), Arc::clone(&said)).await;
        let said: Vec<String> = said.lock().unwrap().iter().cloned().collect();
        assert_eq!(
            (said.len(), said[0].as_str(), said[LINES_KEPT - 1].as_str()),
            (LINES_KEPT, "line 37\n", "the end")
        );
    }
}
