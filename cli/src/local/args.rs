//! Options of a local swarm.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use dunlin_worker::cli::AdapterArgs;
use dunlin_worker::stage::device::DeviceChoice;

use crate::processes::trust::AuthorityArgs;
use crate::processes::worker::WorkerArgs;
use crate::size;

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
    /// What the first stage computes with; the others compute on the processor, and go on with its layers if it is lost.
    #[arg(long, value_enum, default_value_t)]
    pub device: DeviceChoice,
    /// Other peers that keep each layer ready.
    #[arg(long, default_value_t = 1)]
    pub shadows: usize,
    /// Certificates.
    #[command(flatten)]
    pub authority: AuthorityArgs,
    /// Memory of each stage, as in 512MiB; an equal share of what there is when not given.
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub memory: Option<u64>,
    /// Longest sequence; the model's context length when 0.
    #[arg(long, default_value_t = 0)]
    pub max_seq_len: u32,
    /// Program.
    #[command(flatten)]
    pub worker: WorkerArgs,
}
