//! llama.cpp on the same file: `llama-bench` in one process and, where `ggml-rpc-server` lies beside it, over several of those.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

/// The program that measures.
const BENCH: &str = "llama-bench";
/// The program that computes layers for it elsewhere.
const SERVER: &str = "ggml-rpc-server";
/// How long a server may take to listen.
const START: Duration = Duration::from_secs(10);

/// llama.cpp, and what it is to run.
#[derive(Debug)]
pub struct LlamaCpp {
    bench: PathBuf,
    model: PathBuf,
    threads: usize,
    tokens: usize,
}

/// What one run of `llama-bench` says.
#[derive(Debug, PartialEq)]
pub struct LlamaSpeed {
    /// Tokens a second.
    pub tokens_per_s: f64,
    /// Commit of llama.cpp.
    pub build: String,
}

impl LlamaCpp {
    /// With the programs of `folder`, or those on PATH; `None` without either.
    ///
    /// # Errors
    /// When they are not in `folder`.
    pub fn find(
        folder: Option<&Path>,
        model: PathBuf,
        threads: usize,
        tokens: usize,
    ) -> anyhow::Result<Option<Self>> {
        let bench = match folder {
            Some(folder) => {
                let bench = folder.join(BENCH);
                ensure!(
                    bench.is_file(),
                    "{}: there is no such file; build it with llama.cpp",
                    bench.display()
                );
                Some(bench)
            }
            None => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                std::env::split_paths(&path).map(|folder| folder.join(BENCH)).find(|bench| bench.is_file())
            }
        };
        Ok(bench.map(|bench| Self { bench, model, threads, tokens }))
    }

    /// So many of its servers; `None` for fewer than two, and where the program is not there.
    ///
    /// # Errors
    /// When one does not listen.
    pub fn servers(&self, count: usize) -> anyhow::Result<Option<RpcServers>> {
        let program = self.bench.with_file_name(SERVER);
        if count < 2 || !program.is_file() {
            return Ok(None);
        }
        RpcServers::start(&program, count, self.threads).map(Some)
    }

    /// The speed of one answer, in one process or over `servers`.
    ///
    /// # Errors
    /// When it fails, with its words.
    pub fn run(&self, servers: Option<&RpcServers>) -> anyhow::Result<LlamaSpeed> {
        let mut command = Command::new(&self.bench);
        command.args(["-p", "0", "-r", "1", "-o", "json", "-n", &self.tokens.to_string()]);
        command.args(["-t", &self.threads.to_string(), "-m"]).arg(&self.model);
        command.args(servers.map(RpcServers::options).unwrap_or_default());
        let output = command.output().with_context(|| self.bench.display().to_string())?;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{BENCH} fails: {}", words.trim());
        speed(&output.stdout)
    }
}

fn speed(printed: &[u8]) -> anyhow::Result<LlamaSpeed> {
    let runs: Value = serde_json::from_slice(printed).with_context(|| format!("{BENCH} prints no JSON"))?;
    let tokens_per_s = runs[0]["avg_ts"].as_f64().with_context(|| format!("{BENCH} says no avg_ts"))?;
    ensure!(tokens_per_s > 0.0, "{BENCH} says {tokens_per_s} tokens a second");
    Ok(LlamaSpeed { tokens_per_s, build: runs[0]["build_commit"].as_str().unwrap_or_default().to_owned() })
}

/// llama.cpp's own way to spread a model over processes. Dropping it ends them.
pub struct RpcServers {
    servers: Vec<Child>,
    ports: Vec<u16>,
}

impl RpcServers {
    fn start(program: &Path, count: usize, threads: usize) -> anyhow::Result<Self> {
        let mut started = Self { servers: Vec::new(), ports: Vec::new() };
        for _ in 0..count {
            let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            let server = Command::new(program)
                .args(["-H", "127.0.0.1", "-t", &threads.to_string(), "-p", &port.to_string()])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .with_context(|| program.display().to_string())?;
            started.servers.push(server);
            started.ports.push(port);
        }
        let end = Instant::now() + START;
        for port in &started.ports {
            while TcpStream::connect(("127.0.0.1", *port)).is_err() {
                if Instant::now() > end {
                    bail!("{} does not listen after {} s", program.display(), START.as_secs());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(started)
    }

    fn options(&self) -> Vec<String> {
        let list = |item: &dyn Fn(usize, u16) -> String, with: &str| {
            self.ports.iter().enumerate().map(|(i, port)| item(i, *port)).collect::<Vec<_>>().join(with)
        };
        let addresses = list(&|_, port| format!("127.0.0.1:{port}"), ",");
        let devices = list(&|i, _| format!("RPC{i}"), "/");
        ["-ngl", "99", "--rpc", &addresses, "-dev", &devices].map(str::to_owned).to_vec()
    }
}

impl Drop for RpcServers {
    fn drop(&mut self) {
        for server in &mut self.servers {
            // Gone already when this fails.
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_llama_bench_prints_is_read() {
        let printed = br#"[{"build_commit": "abc", "n_gen": 128, "avg_ts": 70.3}]"#;
        assert_eq!(speed(printed).unwrap(), LlamaSpeed { tokens_per_s: 70.3, build: "abc".into() });
        for (printed, why) in [("[]", "avg_ts"), ("loading", "no JSON"), (r#"[{"avg_ts": 0}]"#, "0 tokens")] {
            let error = format!("{:#}", speed(printed.as_bytes()).unwrap_err());
            assert!(error.contains(why), "{printed}: {error}");
        }
    }

    #[test]
    fn a_folder_without_the_program_is_refused() {
        let error = LlamaCpp::find(Some(Path::new("/no/such")), "m.gguf".into(), 1, 8).unwrap_err();
        assert!(error.to_string().contains("/no/such/llama-bench: there is no such file"), "{error}");
    }
}
