//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{anyhow, bail};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand};
use dunlin_store::{HttpLocation, Location};

use crate::model::{ModelPlace, NamedAdapter};
use crate::stage::device::DeviceChoice;

/// Commands that are of `dunlin`, the tool that people run by hand, each as it is called there.
const OF_THE_TOOL: [(&str, &str); 5] = [
    ("local", "local"),
    ("local-train", "local-train"),
    ("replay", "replay"),
    ("random-model", "random-model"),
    ("average-member", "bench average"),
];

/// Runs one process of a swarm that serves or trains large language models over preemptible machines.
#[derive(Parser)]
#[command(name = "dunlin-worker", version, after_help = EXIT_CODES)]
pub struct WorkerCli {
    /// What this process does.
    #[command(subcommand)]
    pub role: WorkerRole,
    /// How it logs.
    #[command(flatten)]
    pub log: LogArgs,
}

const EXIT_CODES: &str = "\
Exit codes:
  0   it ended as it was told
  1   an error that may be gone at the next start
  2   wrong arguments
  78  an error that stays until somebody changes something

The operator starts these processes in pods. On one machine `dunlin local` and `dunlin local-train` do.";

impl WorkerCli {
    /// What this process was started with. Ends it when that makes no sense.
    #[must_use]
    pub fn of_process() -> Self {
        Self::try_parse().unwrap_or_else(|error| match of_the_tool(&error) {
            None => error.exit(),
            Some(line) => {
                eprintln!("{line}");
                std::process::exit(error.exit_code())
            }
        })
    }
}

/// The line for somebody who looks for a command of the tool here.
fn of_the_tool(error: &clap::Error) -> Option<String> {
    if error.kind() != ErrorKind::InvalidSubcommand {
        return None;
    }
    let Some(ContextValue::String(asked)) = error.get(ContextKind::InvalidSubcommand) else { return None };
    let (name, there) = OF_THE_TOOL.iter().find(|(name, _)| name == asked)?;
    Some(format!("error: dunlin-worker has no `{name}`: run `dunlin {there}`"))
}

/// Roles.
#[derive(Subcommand)]
pub enum WorkerRole {
    /// Execute layers for the gateways of a swarm.
    Stage(StageArgs),
    /// Serve OpenAI's HTTP API.
    Gateway(GatewayArgs),
    /// Own the ledger of a training swarm.
    Conductor(ConductorArgs),
    /// Compute a stage of a training swarm.
    TrainPeer(TrainPeerArgs),
    /// Drive microbatches through a training swarm.
    Trainer(TrainerArgs),
}

/// Logging.
#[derive(Args, Clone)]
pub struct LogArgs {
    /// Which events, in the syntax of tracing's EnvFilter.
    #[arg(long, env = "DUNLIN_LOG", default_value = "info", global = true)]
    pub log: String,
    /// One JSON object a line instead of text.
    #[arg(long, env = "DUNLIN_LOG_JSON", global = true)]
    pub log_json: bool,
}

/// Where the model is.
#[derive(Args, Clone)]
pub struct ModelArgs {
    /// A GGUF file, or a folder with config.json, tokenizer.json and safetensors.
    #[arg(long, conflicts_with = "model_url")]
    pub model: Option<PathBuf>,
    /// A GGUF file, or the URL of a folder as above, on an HTTP server that knows Range requests.
    #[arg(long)]
    pub model_url: Option<String>,
    /// Its sha256; nothing is served from a file with another one.
    #[arg(long, requires = "model_url")]
    pub model_sha256: Option<String>,
    /// By which the operator tells the model of this process from others: it works with no process that says another one. Not said: with all.
    #[arg(long, env = "DUNLIN_MODEL_DIGEST", default_value = "")]
    pub model_digest: String,
    /// Folder for downloads.
    #[arg(long, default_value = "/var/cache/dunlin")]
    pub cache: PathBuf,
}

impl ModelArgs {
    /// Where that is.
    ///
    /// # Errors
    /// When neither or a malformed one is given.
    pub fn place(&self) -> anyhow::Result<ModelPlace> {
        match (&self.model, &self.model_url) {
            (Some(path), None) => Ok(ModelPlace::path(path)),
            (None, Some(url)) => {
                let sha256 = self.model_sha256.clone();
                let location = Location::Http(HttpLocation { sha256, ..HttpLocation::new(url) });
                location.check().map_err(|wrong| {
                    let option = if wrong.field == ".http.sha256" { "--model-sha256" } else { "--model-url" };
                    anyhow!("{option} {}", wrong.problem)
                })?;
                Ok(ModelPlace::of_model(location, self.cache.clone()))
            }
            _ => bail!("give either --model or --model-url"),
        }
    }
}

/// What is served beside the model.
#[derive(Args, Clone)]
pub struct AdapterArgs {
    /// An adapter in PEFT's form (LoRA or a prompt), served under its name; may be given more than once.
    #[arg(long = "adapter", value_name = "NAME=PATH", value_parser = NamedAdapter::parse)]
    pub adapters: Vec<NamedAdapter>,
}

/// Options of every process of a swarm.
#[derive(Args, Clone)]
pub struct ProcessArgs {
    /// Name of this life of the process, unique in the swarm.
    #[arg(long)]
    pub name: String,
    /// Where the other processes reach it (gRPC).
    #[arg(long, default_value = "0.0.0.0:7070")]
    pub listen: SocketAddr,
    /// /healthz, /readyz, /metrics.
    #[arg(long, default_value = "0.0.0.0:9090")]
    pub health: SocketAddr,
    /// Folder with ca.crt, tls.crt, tls.key: who it is to the others of its swarm.
    #[arg(long, required_unless_present = "tls_stdin")]
    pub tls_dir: Option<PathBuf>,
    /// They come on stdin, as JSON, from the supervisor of a local swarm.
    #[arg(long, hide = true, conflicts_with = "tls_dir")]
    pub tls_stdin: bool,
}

/// Options of a stage.
#[derive(Args, Clone)]
pub struct StageArgs {
    /// Process.
    #[command(flatten)]
    pub process: ProcessArgs,
    /// Model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Adapters.
    #[command(flatten)]
    pub adapters: AdapterArgs,
    /// Threads that compute.
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// What computes. With `nvidia` and no GPU nothing is computed, with `auto` the processor does.
    #[arg(long, value_enum, default_value_t)]
    pub device: DeviceChoice,
    /// Memory it may use, in bytes; what its control group or the machine has when not given, and never more than that.
    #[arg(long)]
    pub memory: Option<u64>,
    /// Longest sequence; the model's context length when 0.
    #[arg(long, default_value_t = 0)]
    pub max_seq_len: u32,
}

/// Options of a gateway.
#[derive(Args, Clone)]
pub struct GatewayArgs {
    /// Process.
    #[command(flatten)]
    pub process: ProcessArgs,
    /// Model, for its tokenizer and chat template.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Adapters.
    #[command(flatten)]
    pub adapters: AdapterArgs,
    /// The HTTP API.
    #[arg(long, default_value = "0.0.0.0:8080")]
    pub http: SocketAddr,
    /// A file with the topology, looked at once a second.
    #[arg(long)]
    pub topology: Option<PathBuf>,
    /// The name clients ask for; that of the model's file, without its ending, when not given.
    #[arg(long)]
    pub model_name: Option<String>,
    /// Longest sequence; the model's context length when 0.
    #[arg(long, default_value_t = 0)]
    pub max_seq_len: u32,
    /// Sessions that run at once.
    #[arg(long, default_value_t = 64)]
    pub running_max: usize,
    /// Sessions that wait for their turn.
    #[arg(long, default_value_t = 256)]
    pub queue_max: usize,
    /// Seconds for requests to end after SIGTERM; those that run still get an error event then.
    #[arg(long, default_value_t = 25)]
    pub drain_s: u64,
}

/// Options of a conductor.
#[derive(Args, Clone)]
pub struct ConductorArgs {
    /// Process.
    #[command(flatten)]
    pub process: ProcessArgs,
    /// The configuration of the run, YAML or JSON.
    #[arg(long)]
    pub config: PathBuf,
    /// The page, /status, /steps.
    #[arg(long, default_value = "0.0.0.0:8080")]
    pub http: SocketAddr,
}

/// Options of a peer that trains.
#[derive(Args, Clone)]
pub struct TrainPeerArgs {
    /// Process.
    #[command(flatten)]
    pub process: ProcessArgs,
    /// The configuration of the run, YAML or JSON.
    #[arg(long)]
    pub config: PathBuf,
    /// The conductor, `host:port`.
    #[arg(long)]
    pub conductor: String,
    /// The machine it runs on: peers of one stage go to different ones.
    #[arg(long, env = "NODE_NAME", default_value = "")]
    pub host: String,
    /// Threads that compute.
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Memory it may use, in bytes: with less than a stage of the run needs it does not start. 0: not known.
    #[arg(long, default_value_t = 0)]
    pub memory: u64,
    /// Disk that it may use for what is temporary, in bytes.
    #[arg(long, default_value_t = 4 << 30)]
    pub disk: u64,
}

/// Options of a trainer.
#[derive(Args, Clone)]
pub struct TrainerArgs {
    /// Process.
    #[command(flatten)]
    pub process: ProcessArgs,
    /// The configuration of the run, YAML or JSON.
    #[arg(long)]
    pub config: PathBuf,
    /// The conductor, `host:port`.
    #[arg(long)]
    pub conductor: String,
}
