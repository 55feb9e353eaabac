//! `plan`: how a model would be laid over machines, what fits there, and why; or what is missing.

mod machines;
mod missing;
mod outcome;
mod picture;
mod question;

use clap::Args;
use dunlin_engine::memory::Needs;
use dunlin_worker::cli::AdapterArgs;
use dunlin_worker::exit::NeedsUser;
use dunlin_worker::model::{NamedAdapter, adapters};
use dunlin_worker::training::open_model;
use serde_json::json;

use crate::print::{self, Output, OutputArgs};
use machines::{Equal, Spot, machines};
use missing::Missing;
use question::Question;

/// What to plan.
#[derive(Args, Clone)]
pub struct PlanArgs {
    /// A GGUF file, a folder with config.json, tokenizer.json and safetensors, or the URL of either. Only headers are read.
    #[arg(long, value_name = "PATH|URL")]
    pub model: String,
    /// Memory of each machine: 8GiB,8GiB,4GiB or 2x8GiB,4GiB. Each has one peer.
    #[arg(long, value_name = "SIZES", value_delimiter = ',', required = true, value_parser = Equal::parse)]
    pub memory: Vec<Equal>,
    /// Machines that may vanish: their numbers from 1, as in 1,3, or `all`.
    #[arg(long, value_name = "WHICH", value_delimiter = ',', value_parser = Spot::parse)]
    pub spot: Vec<Spot>,
    /// Other peers that keep each layer ready.
    #[arg(long, default_value_t = 1)]
    pub shadows: usize,
    /// Longest sequence; the model's context length when 0.
    #[arg(long, default_value_t = 0)]
    pub max_seq_len: u32,
    /// Adapters.
    #[command(flatten)]
    pub adapters: AdapterArgs,
    /// Form.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Prints the plan.
///
/// # Errors
/// When the model cannot be read, or does not fit.
pub fn run(args: &PlanArgs) -> anyhow::Result<()> {
    let machines = machines(&args.memory, &args.spot).map_err(anyhow::Error::msg).needs_user()?;
    adapters::check(&args.adapters.adapters, None).needs_user()?;
    let file = open_model(&args.model)?;
    let bytes = args.adapters.adapters.iter().map(NamedAdapter::bytes).sum::<Result<u64, _>>();
    let bytes = bytes.map_err(|problem| anyhow::anyhow!(problem.message)).needs_user()?;
    let (context, hidden) = (file.config().context_length, file.config().hidden);
    let positions = if args.max_seq_len == 0 { context } else { args.max_seq_len.min(context) };
    let needs = Needs::of(&file, positions, bytes).needs_user()?;
    let question = Question { needs, positions, hidden, machines: &machines, shadows: args.shadows };
    let plan = match outcome::plan(&question) {
        Ok(plan) => plan,
        Err(error) => {
            if let (Output::Json, Some(missing)) = (args.output.output, error.downcast_ref::<Missing>()) {
                // Who reads no longer has seen enough; the error comes in any case.
                let _ = print::line(json!({"fits": false, "missing": missing}))?;
            }
            return Err(error).needs_user();
        }
    };
    let text = match args.output.output {
        Output::Json => json!({"fits": true, "plan": plan}).to_string(),
        Output::Text => picture::draw(&plan),
    };
    // Who reads no longer has seen enough.
    let _ = print::line(text)?;
    Ok(())
}
