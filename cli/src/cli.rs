//! The command line.

use clap::{Parser, Subcommand};
use dunlin_worker::cli::LogArgs;

use crate::bench::average::AverageMemberArgs;
use crate::local::LocalArgs;
use crate::local_train::LocalTrainArgs;
use crate::random_model::RandomModelArgs;
use crate::replay::ReplayArgs;

/// Serves and trains large language models over machines that may vanish.
#[derive(Parser)]
#[command(name = "dunlin", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How it logs.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Commands.
#[derive(Subcommand)]
pub enum Command {
    /// Serve a model with a whole swarm as processes on this machine.
    Local(LocalArgs),
    /// Train a model with a whole swarm as processes on this machine.
    LocalTrain(LocalTrainArgs),
    /// Replay a trace of a spot group: which share of what the machines could have trained a swarm trains.
    Replay(ReplayArgs),
    /// Write a random Llama (config.json, safetensors, tokenizer.json).
    RandomModel(RandomModelArgs),
    /// Measure parts of a swarm on this machine.
    #[command(subcommand)]
    Bench(Bench),
}

/// Benchmarks.
#[derive(Subcommand)]
pub enum Bench {
    /// One of several processes that form averages of numbers of their own, one for every line on stdin: see `make bench-average`.
    #[command(hide = true)]
    AverageMember(AverageMemberArgs),
}
