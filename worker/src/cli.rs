//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, Parser, Subcommand};
use dunlin_model::random_model::RandomModelSpec;

use crate::model::{Location, NamedAdapter};

/// Serves large language models over preemptible machines.
#[derive(Parser)]
#[command(version)]
pub struct Cli {
    /// What this process does.
    #[command(subcommand)]
    pub role: Role,
    /// How it logs.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Roles.
#[derive(Subcommand)]
pub enum Role {
    /// Execute layers for the gateways of a swarm.
    Stage(StageArgs),
    /// Serve OpenAI's HTTP API.
    Gateway(GatewayArgs),
    /// A whole swarm as processes on this machine.
    Local(LocalArgs),
    /// Replay a trace of a spot group: which share of what the machines could have trained a swarm trains.
    Replay(ReplayArgs),
    /// Write a random Llama (config.json, safetensors, tokenizer.json).
    RandomModel(RandomModelArgs),
    /// Own the ledger of a training swarm.
    Conductor(ConductorArgs),
    /// Compute a stage of a training swarm.
    TrainPeer(TrainPeerArgs),
    /// Drive microbatches through a training swarm.
    Trainer(TrainerArgs),
    /// A whole training swarm as processes on this machine.
    LocalTrain(LocalTrainArgs),
    /// One of several processes that form averages of numbers of their own, one for every line on stdin: see `make bench-average`.
    #[command(hide = true)]
    AverageMember(AverageMemberArgs),
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
    /// Folder for downloads.
    #[arg(long, default_value = "/var/cache/dunlin")]
    pub cache: PathBuf,
}

impl ModelArgs {
    /// Where that is.
    ///
    /// # Errors
    /// When neither or a malformed one is given.
    pub fn location(&self) -> anyhow::Result<Location> {
        match (&self.model, &self.model_url) {
            (Some(path), None) => Ok(Location::Path(path.clone())),
            (None, Some(url)) => {
                let sha256 = self.model_sha256.as_ref().map(|s| s.to_ascii_lowercase());
                if sha256.as_ref().is_some_and(|s| s.len() != 64 || !s.bytes().all(|b| b.is_ascii_hexdigit()))
                {
                    bail!("--model-sha256 must be 64 hexadecimal digits");
                }
                Ok(Location::Url { url: url.clone(), sha256, cache: self.cache.clone() })
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

/// Who issues the certificates of a local swarm.
#[derive(Args, Clone)]
pub struct AuthorityArgs {
    /// Folder with ca.crt and ca.key of the authority that issues the certificates of this swarm, for programs outside that want one, too.
    /// Without it the authority is a new one that never leaves memory.
    #[arg(long, value_name = "FOLDER")]
    pub authority: Option<PathBuf>,
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

/// Options of a local swarm.
#[derive(Args, Clone)]
pub struct LocalArgs {
    /// A GGUF file, or a folder with config.json, tokenizer.json and safetensors.
    #[arg(long)]
    pub model: PathBuf,
    /// Adapters.
    #[command(flatten)]
    pub adapters: AdapterArgs,
    /// Stages.
    #[arg(long, default_value_t = 3)]
    pub peers: usize,
    /// The HTTP API; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Threads of each stage that compute.
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Other peers that keep each layer ready.
    #[arg(long, default_value_t = 1)]
    pub shadows: usize,
    /// Certificates.
    #[command(flatten)]
    pub authority: AuthorityArgs,
    /// Memory of each stage, in bytes; an equal share of what there is when not given.
    #[arg(long)]
    pub memory: Option<u64>,
    /// Longest sequence; the model's context length when 0.
    #[arg(long, default_value_t = 0)]
    pub max_seq_len: u32,
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

/// Options of a local training swarm.
#[derive(Args, Clone)]
pub struct LocalTrainArgs {
    /// The configuration of the run, YAML or JSON.
    #[arg(long)]
    pub config: PathBuf,
    /// Peers, at least as many as stages.
    #[arg(long, default_value_t = 4)]
    pub peers: usize,
    /// Trainers. With two, the loss of one costs nothing: its microbatches go to the other.
    #[arg(long, default_value_t = 2)]
    pub trainers: usize,
    /// Threads of each peer that compute.
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Certificates.
    #[command(flatten)]
    pub authority: AuthorityArgs,
}

/// Options of a member of averages.
#[derive(Args, Clone)]
pub struct AverageMemberArgs {
    /// Where all members listen, `host:port` on loopback.
    #[arg(long, value_delimiter = ',', required = true)]
    pub group: Vec<String>,
    /// Which of them this is.
    #[arg(long)]
    pub index: usize,
    /// Encoding, as `wire.gradients` of a run has it.
    #[arg(long, default_value = "Exact")]
    pub gradients: String,
    /// Width of the feed-forward part of the one block whose gradients they are; it makes the number of values.
    #[arg(long, default_value_t = 6688)]
    pub ffn: usize,
}

/// Shape of a random model.
#[derive(Args, Clone)]
pub struct RandomModelArgs {
    /// Decoder blocks.
    #[arg(long, default_value_t = 8)]
    pub layers: u32,
    /// Width of a row.
    #[arg(long, default_value_t = 512)]
    pub hidden: usize,
    /// Query heads.
    #[arg(long, default_value_t = 8)]
    pub heads: usize,
    /// Key and value heads.
    #[arg(long, default_value_t = 8)]
    pub kv_heads: usize,
    /// Width of the feed-forward part.
    #[arg(long, default_value_t = 1376)]
    pub ffn: usize,
    /// Tokens.
    #[arg(long, default_value_t = 8000)]
    pub vocab: usize,
    /// Seeds the weights.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Folder to write.
    #[arg(long)]
    pub out: PathBuf,
}

impl RandomModelArgs {
    /// The library's form.
    #[must_use]
    pub fn spec(&self) -> RandomModelSpec {
        RandomModelSpec {
            layers: self.layers,
            hidden: self.hidden,
            heads: self.heads,
            kv_heads: self.kv_heads,
            ffn: self.ffn,
            vocab: self.vocab,
            seed: self.seed,
        }
    }
}

/// What to replay, and how.
#[derive(Args)]
pub struct ReplayArgs {
    /// A CSV file: `milliseconds,add|remove,node`, in order of time.
    #[arg(long)]
    pub trace: PathBuf,
    /// Stages of the pipeline.
    #[arg(long, default_value_t = 4)]
    pub stages: usize,
    /// Seconds in which a peer fetches one stage's state.
    #[arg(long, default_value_t = 60)]
    pub download_s: u64,
    /// Seconds between a notice and the loss; 0: without notice.
    #[arg(long, default_value_t = 120)]
    pub notice_s: u64,
    /// Seconds of a step: peers change their stage at its edges.
    #[arg(long, default_value_t = 20)]
    pub step_s: u64,
    /// Peers are a fluid that the planner alone moves; otherwise they run the training protocol, microbatch by microbatch.
    #[arg(long)]
    pub fluid: bool,
    /// Stages' states that a peer has memory for beside its own. Peers that run the protocol have none.
    #[arg(long, default_value_t = 1, requires = "fluid")]
    pub room: usize,
    /// Runs, over which the result is a mean. With the protocol one of a trace of a day takes about half a minute.
    #[arg(long, default_value_t = 3)]
    pub seeds: u64,
    /// Who decides which peer serves what.
    #[arg(long, value_enum, default_value = "dunlin", requires = "fluid")]
    pub policy: ReplayPolicy,
    /// One line of JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// Who decides in a replay.
#[derive(Clone, Copy, clap::ValueEnum)]
pub enum ReplayPolicy {
    /// The planner, as in a run.
    Dunlin,
    /// Nobody: peers go to a random stage and stay.
    None,
}
