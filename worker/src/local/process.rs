//! Child processes that do not outlive their supervisor.

use std::io::PipeReader;
use std::net::SocketAddr;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use dunlin_wire::Role;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::certificates::LocalTrust;
use crate::cli::LocalArgs;
use crate::model::NamedAdapter;

/// Time between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(3);

/// A stage or the gateway.
pub struct Process {
    /// Name of this life of it.
    pub name: String,
    /// Its gRPC server.
    pub addr: SocketAddr,
    child: Child,
}

impl Process {
    /// Starts a stage.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn stage(
        args: &LocalArgs,
        trust: &LocalTrust,
        name: &str,
        addr: SocketAddr,
        health: SocketAddr,
    ) -> anyhow::Result<Self> {
        let certificates = trust.stdin_of(Role::Stage, &[name])?;
        let mut command = served("stage", name, certificates, addr, health, args)?;
        command.args(["--threads", &args.threads.to_string(), "--memory", &args.memory.to_string()]);
        Self::start(name, addr, command)
    }

    /// Starts the gateway.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn gateway(
        args: &LocalArgs,
        trust: &LocalTrust,
        http: SocketAddr,
        addr: SocketAddr,
    ) -> anyhow::Result<Self> {
        let certificates = trust.stdin_of(Role::Gateway, &["gateway"])?;
        let mut command = served("gateway", "gateway", certificates, addr, "127.0.0.1:0".parse()?, args)?;
        command.args(["--http", &http.to_string()]);
        Self::start("gateway", addr, command)
    }

    /// Starts a process that listens on `addr`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, addr: SocketAddr, mut command: Command) -> anyhow::Result<Self> {
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), addr, child })
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

fn served(
    role: &str,
    name: &str,
    certificates: PipeReader,
    addr: SocketAddr,
    health: SocketAddr,
    args: &LocalArgs,
) -> anyhow::Result<Command> {
    let mut command = child(role, name, certificates)?;
    command
        .args(["--listen", &addr.to_string(), "--health", &health.to_string(), "--model"])
        .arg(&args.model);
    for NamedAdapter { name, path } in &args.adapters.adapters {
        command.args(["--adapter", &format!("{name}={}", path.display())]);
    }
    Ok(command)
}

/// This program in another role, with `certificates` on its stdin; it dies with its supervisor, however that dies.
///
/// # Errors
/// When this program's file cannot be found.
pub fn child(role: &str, name: &str, certificates: PipeReader) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
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
    Ok(command)
}
