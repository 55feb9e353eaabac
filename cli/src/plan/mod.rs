//! `plan`: how a model is laid over machines, what fits there, and why; or what is missing. Of a running swarm the cluster is asked.

mod machines;
mod manifest;
mod missing;
mod outcome;
mod picture;
mod question;

use std::path::Path;

use anyhow::Context;
use clap::Args;
use dunlin_engine::memory::Needs;
use dunlin_kubectl::ClusterArgs;
use dunlin_terminal::print::{self, Form, OutputArgs};
use dunlin_worker::cli::AdapterArgs;
use dunlin_worker::exit::NeedsUser;
use dunlin_worker::model::{NamedAdapter, adapters};
use dunlin_worker::training::open_model;
use serde_json::json;

use crate::ask::ask;
use machines::{Equal, Spot, machines};
use manifest::Manifest;
use missing::Missing;
use question::PlanQuestion;

/// What to plan.
#[derive(Args, Clone)]
pub struct PlanArgs {
    /// A running swarm by its name, also as isw/NAME; or a manifest, which is what ends in .yaml, .yml or .json.
    #[arg(value_name = "NAME|FILE", required_unless_present_all = ["model", "memory"])]
    pub of: Option<String>,
    /// A GGUF file, a folder with config.json, tokenizer.json and safetensors, or the URL of either, also instead of the manifest's. Only headers are read.
    #[arg(long, value_name = "PATH|URL")]
    pub model: Option<String>,
    /// Memory of each machine: 8GiB,8GiB,4GiB or 2x8GiB,4GiB. Each has one peer. Instead of the manifest's pools.
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = Equal::parse)]
    pub memory: Vec<Equal>,
    /// Machines of --memory that may vanish: their numbers from 1, as in 1,3, or `all`.
    #[arg(long, value_name = "WHICH", value_delimiter = ',', value_parser = Spot::parse, requires = "memory")]
    pub spot: Vec<Spot>,
    /// Other peers that keep each layer ready; what the manifest says, or 1, when not given.
    #[arg(long)]
    pub shadows: Option<usize>,
    /// Longest sequence; what the manifest says, or the model's context length, when not given or 0.
    #[arg(long)]
    pub max_seq_len: Option<u32>,
    /// Adapters.
    #[command(flatten)]
    pub adapters: AdapterArgs,
    /// Where a running swarm is.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Form.
    #[command(flatten)]
    pub output: OutputArgs,
}

impl PlanArgs {
    /// The first option that says what a running swarm's manifest says.
    fn of_no_swarm(&self) -> Option<&'static str> {
        let given = [
            ("--model", self.model.is_some()),
            ("--memory", !self.memory.is_empty()),
            ("--shadows", self.shadows.is_some()),
            ("--max-seq-len", self.max_seq_len.is_some()),
            ("--adapter", !self.adapters.adapters.is_empty()),
        ];
        given.into_iter().find(|(_, given)| *given).map(|(option, _)| option)
    }
}

/// Prints the plan; whether nothing is wrong with it.
///
/// # Errors
/// When the model cannot be read, or does not fit; when the cluster cannot be asked.
pub fn run(args: &PlanArgs) -> anyhow::Result<bool> {
    match &args.of {
        Some(name) if !Manifest::is_named_by(name) => {
            if let Some(option) = args.of_no_swarm() {
                let why = anyhow::anyhow!(
                    "{option} is not for a running swarm, whose manifest says it; for a manifest give a file that ends in .yaml"
                );
                return Err(why).needs_user();
            }
            ask(dunlin_kubectl::plan::show(name, &args.cluster, &args.output))
        }
        file => of_model(args, file.as_deref()).map(|()| true),
    }
}

/// Of a manifest, or of a model and machines.
fn of_model(args: &PlanArgs, file: Option<&str>) -> anyhow::Result<()> {
    if args.cluster != ClusterArgs::default() {
        let why = anyhow::anyhow!(
            "namespace, context and kubeconfig are for the plan of a running swarm: give its name"
        );
        return Err(why).needs_user();
    }
    let manifest = file.map(|file| Manifest::read(Path::new(file))).transpose().needs_user()?;
    let given = &args.adapters.adapters;
    manifest.iter().try_for_each(|manifest| manifest.check(given)).needs_user()?;
    adapters::check(given, None).needs_user()?;
    let model = args.model.clone().or_else(|| manifest.as_ref()?.model.clone());
    let model = model
        .context("the model is on a volume, which is not to be seen from here: give its file with --model")
        .needs_user()?;
    let machines = match &manifest {
        Some(manifest) if args.memory.is_empty() => manifest.machines.clone(),
        _ => machines(&args.memory, &args.spot).map_err(anyhow::Error::msg).needs_user()?,
    };
    let file = open_model(&model)?;
    let bytes = given.iter().map(NamedAdapter::bytes).sum::<Result<u64, _>>();
    let bytes = bytes.map_err(|problem| anyhow::anyhow!(problem.message)).needs_user()?;
    let (context, hidden) = (file.config().context_length, file.config().hidden);
    let asked = args.max_seq_len.or_else(|| manifest.as_ref()?.positions).filter(|positions| *positions > 0);
    let positions = asked.unwrap_or(context).min(context);
    let shadows = args.shadows.or_else(|| Some(manifest.as_ref()?.shadows)).unwrap_or(1);
    let needs = Needs::of(&file, positions, bytes).needs_user()?;
    let question = PlanQuestion { needs, positions, hidden, machines: &machines, shadows };
    match outcome::plan(&question) {
        Ok(plan) => {
            args.output.print(&json!({"fits": true, "plan": plan}), || picture::draw(&plan))?;
            Ok(())
        }
        Err(error) => {
            if let (Form::Json, Some(missing)) = (args.output.output, error.downcast_ref::<Missing>()) {
                // Who reads no longer has seen enough; the error comes in any case.
                let _ = print::line(json!({"fits": false, "missing": missing}))?;
            }
            Err(error).needs_user()
        }
    }
}
