//! The command line.

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use dunlin_worker::cli::LogArgs;

use crate::bench::average::AverageArgs;
use crate::bench::decode::DecodeArgs;
use crate::bench::member::AverageMemberArgs;
use crate::local::LocalArgs;
use crate::local_train::LocalTrainArgs;
use crate::plan::PlanArgs;
use crate::random_model::RandomModelArgs;
use crate::replay::ReplayArgs;

/// Serves and trains large language models over machines that may vanish.
#[derive(Parser)]
#[command(name = "dunlin", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How it logs.
    #[command(flatten)]
    pub log: LogArgs,
}

const EXIT_CODES: &str = "\
Exit codes:
  0   done, or ended as it was told
  1   an error that may be gone at the next try
  2   wrong arguments
  78  an error that stays until somebody changes something; the last line says what

Results are on standard output, for a program with --output json. Progress and colours are for terminals; NO_COLOR is honoured.";

/// Commands.
#[derive(Subcommand)]
pub enum Command {
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
    /// Say how a model would be laid over machines, and what fits there; or what is missing.
    ///
    /// By the planner of the operator and of `dunlin local`: which layers each machine executes and keeps ready for others, what its memory is
    /// used for, how many sessions fit, and what each loss costs. Nothing is started. Ends with 78 if the model does not fit.
    #[command(after_help = "\
Examples:
  dunlin plan --model llama-8b.gguf --memory 8GiB,8GiB,4GiB
  dunlin plan --model https://example.com/llama-8b.gguf --memory 6x4GiB --spot all --max-seq-len 8192
  dunlin plan --model llama-8b.gguf --memory 2x8GiB --output json")]
    Plan(PlanArgs),
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
    /// Tokens per second of a local swarm, one answer at a time.
    #[command(after_help = "\
Example:
  dunlin bench decode --model smollm2.gguf --peers 1,3")]
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
