//! `dunlin local` and `local-train`: swarms as processes on this machine, for tests and benchmarks without Kubernetes.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::wait;

/// A running local swarm; dropping it ends it.
pub struct Local {
    supervisor: Supervisor,
    /// `http://127.0.0.1:PORT` of its gateway.
    pub url: String,
    /// What it printed when it served: name, pid, addr, layers, shadows of each peer.
    pub peers: Vec<Value>,
    /// Where its gateway is told what to route over.
    pub gateway_addr: String,
    /// From process start to serving.
    pub start_s: f64,
}

impl Local {
    /// Starts `peers` stages of `threads` threads each for `model` (a GGUF file or a folder).
    ///
    /// # Errors
    /// When it does not serve; its log has gone to the terminal.
    pub fn start(dunlin: &Path, model: &Path, peers: u32, threads: u32) -> Result<Self> {
        Self::start_with_options(dunlin, model, &[], peers, threads)
    }

    /// The same with adapters, `NAME=PATH` each.
    ///
    /// # Errors
    /// When it does not serve; its log has gone to the terminal.
    pub fn start_with(
        dunlin: &Path,
        model: &Path,
        adapters: &[String],
        peers: u32,
        threads: u32,
    ) -> Result<Self> {
        let options: Vec<&str> =
            adapters.iter().flat_map(|adapter| ["--adapter", adapter.as_str()]).collect();
        Self::start_with_options(dunlin, model, &options, peers, threads)
    }

    /// The same with other options of `dunlin local`.
    ///
    /// # Errors
    /// When it does not serve; its log has gone to the terminal.
    pub fn start_with_options(
        dunlin: &Path,
        model: &Path,
        options: &[&str],
        peers: u32,
        threads: u32,
    ) -> Result<Self> {
        let mut command = Self::command(dunlin, model, peers, threads);
        command.args(options);
        Self::run(command)
    }

    /// The command that starts such a swarm, for [`Local::run`] or for those who want it to fail.
    #[must_use]
    pub fn command(dunlin: &Path, model: &Path, peers: u32, threads: u32) -> Command {
        let mut command = Command::new(dunlin);
        command.args(["local", "--listen", "127.0.0.1:0", "--model"]).arg(model);
        command.args(["--peers", &peers.to_string(), "--threads", &threads.to_string()]);
        command
    }

    /// Runs a command made by [`Local::command`] until it serves.
    ///
    /// # Errors
    /// When it does not.
    pub fn run(mut command: Command) -> Result<Self> {
        let started = Instant::now();
        let mut supervisor = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let mut line = String::new();
        let output = supervisor.stdout.take().context("stdout is piped")?;
        BufReader::new(output).read_line(&mut line)?;
        let ready: Value = serde_json::from_str(&line).with_context(|| format!("no JSON line: {line:?}"))?;
        let url = ready["url"].as_str().context("no url")?.to_owned();
        let peers = ready["peers"].as_array().cloned().unwrap_or_default();
        ensure!(!peers.is_empty(), "no peers: {ready}");
        let gateway_addr = ready["gateway"]["addr"].as_str().unwrap_or_default().to_owned();
        let start_s = started.elapsed().as_secs_f64();
        Ok(Self { supervisor: Supervisor(supervisor), url, peers, gateway_addr, start_s })
    }

    /// Processes of the swarm as they are now: name and pid, the gateway among them.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn processes(&self) -> Result<BTreeMap<String, u64>> {
        children(self.supervisor.0.id())
    }

    /// The most memory that was ever resident in each peer, in bytes.
    ///
    /// # Errors
    /// When a peer is gone.
    pub fn peak_bytes(&self) -> Result<Vec<u64>> {
        self.peers.iter().map(|p| memory(p["pid"].as_u64().context("no pid")?, "VmHWM:")).collect()
    }

    /// Resident memory of each peer in bytes.
    ///
    /// # Errors
    /// When a peer is gone.
    pub fn resident_bytes(&self) -> Result<Vec<u64>> {
        self.peers.iter().map(|p| memory(p["pid"].as_u64().context("no pid")?, "VmRSS:")).collect()
    }

    /// The model it serves, without adapters.
    ///
    /// # Errors
    /// When the gateway does not answer.
    pub fn model(&self) -> Result<String> {
        let (status, body) = crate::chat::get(&format!("{}/v1/models", self.url))?;
        ensure!(status == 200, "{status}: {body}");
        let models: Value = serde_json::from_str(&body)?;
        Ok(models["data"][0]["id"].as_str().context("no model")?.to_owned())
    }
}

/// A supervisor of processes that ends them when it is told to.
struct Supervisor(Child);

impl Drop for Supervisor {
    fn drop(&mut self) {
        // SIGTERM lets the supervisor end its children; a second swarm must not meet them.
        // SAFETY: kill(2) with the pid of a child that has not been waited for.
        #[allow(unsafe_code, reason = "std has no way to send SIGTERM")]
        unsafe {
            libc::kill(self.0.id().cast_signed(), libc::SIGTERM);
        }
        let ended = wait::until("the local swarm ends", Duration::from_secs(40), || Ok(self.0.try_wait()?));
        if let Err(error) = ended {
            eprintln!("{error:#}; killing it");
            let _ = self.0.kill();
        }
    }
}

/// A running `dunlin local-train`; dropping it ends it.
pub struct LocalTraining {
    supervisor: Supervisor,
    /// What it prints, as long as nobody else reads it.
    lines: Option<Lines<BufReader<ChildStdout>>>,
    /// Its first line: `url` of the conductor's page, `processes` with role, name, stage, pid, addr.
    pub swarm: Value,
}

impl LocalTraining {
    /// Starts the run of the configuration file `config` on `peers` peers, and waits until every stage has one.
    ///
    /// # Errors
    /// When it does not start; its log has gone to the terminal.
    pub fn start(dunlin: &Path, config: &Path, peers: u32) -> Result<Self> {
        Self::start_with_options(dunlin, config, &[], peers)
    }

    /// The same with other options of `dunlin local-train`.
    ///
    /// # Errors
    /// When it does not start; its log has gone to the terminal.
    pub fn start_with_options(dunlin: &Path, config: &Path, options: &[&str], peers: u32) -> Result<Self> {
        let mut supervisor = Command::new(dunlin)
            .env("DUNLIN_LOG", "warn")
            .args(["local-train", "--peers", &peers.to_string(), "--config"])
            .arg(config)
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", dunlin.display()))?;
        let output = supervisor.stdout.take().context("stdout is piped")?;
        let lines = Some(BufReader::new(output).lines());
        let mut training = Self { supervisor: Supervisor(supervisor), lines, swarm: Value::Null };
        training.swarm = training.line()?.context("it ended before every stage had a peer")?;
        Ok(training)
    }

    /// What it prints next: a step, or the checkpoint at the end; nothing when it has ended well.
    ///
    /// # Errors
    /// When the run has failed, or a line is no JSON.
    pub fn line(&mut self) -> Result<Option<Value>> {
        match self.lines.as_mut().and_then(Iterator::next) {
            Some(line) => {
                let line = line?;
                Ok(Some(serde_json::from_str(&line).with_context(|| format!("no JSON line: {line:?}"))?))
            }
            None => {
                let status = self.supervisor.0.wait()?;
                ensure!(status.success(), "local-train ended with {status}");
                Ok(None)
            }
        }
    }

    /// Pids of the processes with `role`: `conductor`, `trainer`, `peer`.
    #[must_use]
    pub fn pids(&self, role: &str) -> Vec<u64> {
        let all = self.swarm["processes"].as_array().into_iter().flatten();
        all.filter(|p| p["role"] == role).filter_map(|p| p["pid"].as_u64()).collect()
    }

    /// Has all that it prints from now on read by a thread, which ends with it and gives the steps.
    pub fn read_on(&mut self) -> JoinHandle<Vec<u64>> {
        let lines = self.lines.take();
        std::thread::spawn(move || {
            let lines = lines.into_iter().flatten().map_while(Result::ok);
            let step = |line: String| serde_json::from_str::<Value>(&line).ok()?["step"].as_u64();
            lines.filter_map(step).collect()
        })
    }

    /// Pids of the processes with `role` that are there now; those that were lost have others in their place.
    ///
    /// # Errors
    /// When the processes of this machine cannot be listed.
    pub fn present(&self, role: &str) -> Result<Vec<u64>> {
        let role = if role == "peer" { "train-peer" } else { role };
        let parent = self.supervisor.0.id().to_string();
        let mut pids = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let path = entry?.path();
            let Some(pid) = path.file_name().and_then(|n| n.to_str()?.parse::<u64>().ok()) else { continue };
            // A process that ends meanwhile is none.
            let (Ok(stat), Ok(command)) =
                (std::fs::read_to_string(path.join("stat")), std::fs::read(path.join("cmdline")))
            else {
                continue;
            };
            // Behind the name, which is in brackets: state, pid of the parent.
            let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
            let (state, ours) = (fields.next(), fields.next() == Some(&parent));
            if ours && state != Some("Z") && command.split(|b| *b == 0).any(|word| word == role.as_bytes()) {
                pids.push(pid);
            }
        }
        pids.sort_unstable();
        Ok(pids)
    }

    /// The names and stages of peers that serve, as the conductor sees it now; none when it does not answer.
    #[must_use]
    pub fn status(&self) -> Option<Value> {
        let url = self.swarm["url"].as_str()?;
        let (status, body) = crate::chat::get(&format!("{url}/status")).ok()?;
        (status == 200).then(|| serde_json::from_str(&body).ok()).flatten()
    }

    /// Reads to the end: all steps that are left, and the line with the checkpoint.
    ///
    /// # Errors
    /// When the run fails.
    pub fn finish(mut self) -> Result<(Vec<Value>, Value)> {
        let mut steps = Vec::new();
        while let Some(line) = self.line()? {
            steps.push(line);
        }
        let last = steps.pop().context("it printed no line at its end")?;
        ensure!(last.get("checkpoint").is_some(), "the last line names no checkpoint: {last}");
        Ok((steps, last))
    }
}

fn memory(pid: u64, what: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let Some(line) = status.lines().find(|l| l.starts_with(what)) else {
        bail!("process {pid} has no {what}")
    };
    let kib: u64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kib * 1024)
}

/// Children of a local swarm's supervisor that run: the name each was given, and its pid.
///
/// # Errors
/// When they cannot be listed.
pub fn children(supervisor: u32) -> Result<BTreeMap<String, u64>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u64>().ok()) else {
            continue;
        };
        // It may end at any moment.
        let read = |what: &str| std::fs::read_to_string(format!("/proc/{pid}/{what}")).unwrap_or_default();
        let (stat, line) = (read("stat"), read("cmdline"));
        let parent =
            stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        let name = line.split('\0').skip_while(|word| *word != "--name").nth(1);
        if let (true, Some(name)) = (parent == Some(supervisor), name) {
            found.insert(name.to_owned(), pid);
        }
    }
    Ok(found)
}

/// The model of e2e/fetch-model.sh.
///
/// # Errors
/// When it is not in the cache.
pub fn cached_model() -> Result<PathBuf> {
    let cache = std::env::var_os("DUNLIN_CACHE").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/dunlin"));
    let cache = cache.or_else(home).context("neither DUNLIN_CACHE nor HOME is set")?;
    let file = cache.join("models/smollm2-135m-instruct-q4_1.gguf");
    ensure!(file.exists(), "{} is missing: run e2e/fetch-model.sh", file.display());
    Ok(file)
}

/// The release build of the tool, in the target folder of this checkout or in `CARGO_TARGET_DIR`; `dunlin-worker` lies beside it.
#[must_use]
pub fn dunlin() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    target.unwrap_or_else(|| crate::cluster::repository().join("target")).join("release/dunlin")
}
