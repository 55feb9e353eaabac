//! The command line.

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use dunlin_kubectl::ClusterCommand;
use dunlin_terminal::exit::EXIT_CODES;
use dunlin_worker::cli::LogArgs;

use crate::bench::average::AverageArgs;
use crate::bench::decode::DecodeArgs;
use crate::bench::member::AverageMemberArgs;
use crate::local::LocalArgs;
use crate::local_train::LocalTrainArgs;
use crate::plan::PlanArgs;
use crate::random_model::RandomModelArgs;
use crate::replay::ReplayArgs;

/// Serves and trains large language models over machines that may vanish: here, or in a cluster.
///
/// A copy of it, or a link to it, that is called kubectl-dunlin and lies on PATH makes all commands commands of `kubectl dunlin`.
#[derive(Parser)]
#[command(name = "dunlin", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: ToolCommand,
    /// How it logs.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Commands.
#[derive(Subcommand)]
pub enum ToolCommand {
    /// Serve a model with a whole swarm as processes on this machine.
    ///
    /// The same stages, gateway and recovery as on Kubernetes. When it serves, it prints a line of JSON with the URL and the processes. Ends
    /// with SIGTERM or Ctrl-C.
    #[command(after_help = "\
Examples:
  dunlin local --model smollm2.gguf                     three stages; the first line says where it answers
  dunlin local --model llama/ --peers 2 --threads 4     a folder of safetensors, two stages of four threads
  dunlin local --model smollm2.gguf --memory 256MiB     as if each stage had a machine of that size")]
    Local(LocalArgs),
    /// Train a model with a whole swarm as processes on this machine.
    ///
    /// Prints a line of JSON with the processes, one for each step, and one with the last checkpoint.
    #[command(after_help = "\
Example:
  dunlin local-train --config run.yaml --peers 8")]
    LocalTrain(LocalTrainArgs),
    /// Say how a model is laid over machines, and why: of a running swarm, of a manifest, or of any model and machines.
    ///
    /// By the planner of the operator and of `dunlin local`; nothing is started or changed. Of a running swarm, by its NAME: which peers would
    /// compute which layers now, what changes, and what is not as it should be; ends with 3 if something is not. Of a manifest, by its FILE, and of
    /// --model over --memory: which layers each machine executes and keeps ready for others, what its memory is used for, how many sessions fit,
    /// and what each loss costs; ends with 78 if the model does not fit, and says what is missing.
    #[command(after_help = "\
Examples:
  dunlin plan smollm2                                   the swarm smollm2 of the cluster
  dunlin plan examples/smollm2.yaml                     what the manifest would get
  dunlin plan examples/volume.yaml --model m.gguf       the same, with the model here instead of on its volume
  dunlin plan --model llama-8b.gguf --memory 8GiB,8GiB,4GiB
  dunlin plan --model https://example.com/llama-8b.gguf --memory 6x4GiB --spot all --max-seq-len 8192
  dunlin plan --model llama-8b.gguf --memory 2x8GiB --output json")]
    Plan(PlanArgs),
    /// What is asked of a cluster.
    #[command(flatten)]
    Cluster(ClusterCommand),
    /// Replay a trace of a spot group: which share of what the machines could have trained a swarm trains.
    #[command(after_help = "\
Examples:
  dunlin replay --trace bamboo-p3.csv --stages 8
  dunlin replay --trace bamboo-p3.csv --stages 8 --fluid --policy none --output json")]
    Replay(ReplayArgs),
    /// Write a random Llama (config.json, safetensors, tokenizer.json).
    #[command(after_help = "\
Example:
  dunlin random-model --layers 4 --hidden 256 --heads 4 --kv-heads 2 --ffn 512 --out model")]
    RandomModel(RandomModelArgs),
    /// Measure parts of a swarm on this machine.
    #[command(subcommand)]
    Bench(Bench),
    /// Print the completions of a shell.
    #[command(after_help = "\
Examples:
  dunlin completions bash > ~/.local/share/bash-completion/completions/dunlin
  dunlin completions zsh > \"${fpath[1]}/_dunlin\"
  dunlin completions fish > ~/.config/fish/completions/dunlin.fish")]
    Completions(CompletionsArgs),
}

/// Benchmarks.
#[derive(Subcommand)]
pub enum Bench {
    /// Tokens per second of a local swarm, one answer at a time, beside llama.cpp's.
    #[command(after_help = "\
Examples:
  dunlin bench decode --model smollm2.gguf --peers 1,3
  dunlin bench decode --model smollm2.gguf --llama llama.cpp/build/bin --record decode.json")]
    Decode(DecodeArgs),
    /// How long processes take to average 25 million gradients.
    #[command(after_help = "\
Example:
  dunlin bench average --members 4 --gradients Q8")]
    Average(AverageArgs),
    /// One of several processes that form averages of numbers of their own, one for every line on stdin.
    #[command(hide = true)]
    AverageMember(AverageMemberArgs),
}

/// For which shell.
#[derive(Args, Clone)]
pub struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    pub shell: Shell,
}
