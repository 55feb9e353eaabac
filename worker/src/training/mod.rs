//! The roles of a training swarm: sockets, threads and tensors around the state machines of `dunlin_protocol::training`.
//!
//! * [`conductor`] owns the ledger, shows a page
//! * [`peer`] computes a stage
//! * [`trainer`] drives microbatches
//! * [`saved`] checkpoints
//! * [`values`] what travels between peers

pub mod conductor;
pub mod peer;
pub mod saved;
pub mod trainer;
mod values;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use dunlin_kernels::Pool;
use dunlin_model::ModelFile;
use dunlin_store::Location;
use dunlin_train::checkpoint::Texts;
use dunlin_train::config::{InitialModel, model_config};
use dunlin_train::data::TextTokenizer;
use dunlin_train::{Run, Stage, TrainingConfig};
use dunlin_wire::{Credentials, LinksConfig, proto};
use tokio::net::UdpSocket;
use tokio::time::sleep;
use tracing::warn;

use crate::cli::ProcessArgs;
use crate::exit::NeedsUser;
use crate::model::ModelPlace;

/// First and longest pause before the conductor's name is looked up again.
const RESOLVE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Reads and checks the configuration of a run.
///
/// # Errors
/// When it cannot be read or makes no sense.
pub fn read_config(path: &Path) -> anyhow::Result<TrainingConfig> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    TrainingConfig::from_yaml(&text.needs_user()?)
        .with_context(|| format!("in {}", path.display()))
        .needs_user()
}

/// How this process makes connections.
pub fn links(process: &ProcessArgs, credentials: Credentials) -> LinksConfig {
    let hello = proto::Hello { name: process.name.clone(), ..proto::Hello::default() };
    LinksConfig::new(hello, Some(credentials))
}

/// What a run is made from beside its configuration.
pub struct Sources {
    /// The model that training goes on from, or that an adapter is trained over.
    model: Option<ModelFile>,
    /// Text to tokens.
    pub tokenizer: TextTokenizer,
}

impl Sources {
    /// Opens what `config` names.
    ///
    /// # Errors
    /// When the tokenizer or the model cannot be read or used, or they do not fit.
    pub fn open(config: &TrainingConfig) -> anyhow::Result<Self> {
        let model = model_of(config)?;
        let tokenizer = TextTokenizer::open(config, model.as_ref());
        let stays = tokenizer.as_ref().is_err_and(|e| !e.may_pass());
        Ok(Self { tokenizer: tokenizer.needs_user_if(stays)?, model })
    }

    /// What goes beside the weights of a checkpoint.
    ///
    /// # Errors
    /// When a file of the model can no longer be read.
    pub fn texts(&self, config: &TrainingConfig) -> anyhow::Result<Texts> {
        Ok(Texts::open(config, self.model.as_ref(), &self.tokenizer)?)
    }

    /// The run of this configuration, with the shape of the model.
    ///
    /// # Errors
    /// When the model does not fit to the configuration.
    pub fn run(self, config: TrainingConfig) -> anyhow::Result<Run> {
        let vocab = self.tokenizer.vocab();
        run_with(config, self.model, || Ok(vocab))
    }
}

/// The run of a configuration: with the model that it names, for the tokens of its tokenizer.
///
/// # Errors
/// As [`Sources::open`] and [`Sources::run`].
pub fn run_of(config: TrainingConfig) -> anyhow::Result<Run> {
    let model = model_of(&config)?;
    // The tokenizer of a model that is there already says nothing about its shape.
    let vocab = |config: &TrainingConfig| {
        let tokenizer = TextTokenizer::open(config, None);
        let stays = tokenizer.as_ref().is_err_and(|e| !e.may_pass());
        Ok(tokenizer.needs_user_if(stays)?.vocab())
    };
    let of_config = config.clone();
    run_with(config, model, || vocab(&of_config))
}

fn run_with(
    config: TrainingConfig,
    model: Option<ModelFile>,
    vocab: impl FnOnce() -> anyhow::Result<usize>,
) -> anyhow::Result<Run> {
    match (&config.model, model) {
        (InitialModel::Checkpoint(_), Some(file)) if config.adapter.is_some() => {
            Run::over(config, file).needs_user()
        }
        (InitialModel::Checkpoint(place), Some(file)) => {
            if file.folder().is_none() {
                let problem = format!(
                    "{place} is a GGUF file: training all of a model goes on from a folder with config.json and safetensors; over a GGUF file \
                     train an `adapter`"
                );
                return Err(anyhow!(problem)).needs_user();
            }
            let model = file.config().clone();
            Run::new(config, model).needs_user()
        }
        (InitialModel::Config(shape), _) => {
            let model = model_config(shape, vocab()?).needs_user()?;
            Run::new(config, model).needs_user()
        }
        (InitialModel::Checkpoint(_), None) => bail!("the model was not opened"),
    }
}

/// The model that a run names, if it names one.
fn model_of(config: &TrainingConfig) -> anyhow::Result<Option<ModelFile>> {
    match &config.model {
        InitialModel::Config(_) => Ok(None),
        InitialModel::Checkpoint(place) => open_model(place).map(Some),
    }
}

/// A model by its path or URL: what training goes on from, or what an adapter is trained over.
///
/// # Errors
/// When it cannot be read or used.
pub fn open_model(place: &str) -> anyhow::Result<ModelFile> {
    let place = ModelPlace::of_run(place);
    let missing = matches!(&place.location, Location::Path(path) if !path.exists());
    place.open().map_err(|problem| (problem.reason, problem.message)).or_else(|(reason, message)| {
        let stays = missing || reason != "ModelUnreachable";
        Err(anyhow!("{reason}: {message}")).needs_user_if(stays)
    })
}

/// A stage with its first values: random ones, also those of an adapter, or those of the model that training starts from.
///
/// # Errors
/// When that model cannot be read.
pub fn first(run: &Arc<Run>, stage: u32, pool: &Pool) -> anyhow::Result<Stage> {
    let folder = match &run.config.model {
        InitialModel::Checkpoint(folder) if run.config.adapter.is_none() => folder,
        _ => return Ok(Stage::initial(run, stage, pool)?),
    };
    let layout = run.layout(stage);
    let mut parameters = vec![0.0; layout.len()];
    dunlin_model::training::load(&layout, &open_model(folder)?, &mut parameters)?;
    let slots = vec![vec![0.0; layout.len()]; run.optimizer_slots()];
    Ok(Stage::from_state(run, stage, 0, parameters, slots, pool)?)
}

/// The address others reach this process at: where it listens, on the interface that leads to the conductor. Waits until the
/// conductor's name is known: it may get its address later than its peers.
///
/// # Errors
/// When this machine gives out no socket.
pub async fn advertised(listening: SocketAddr, conductor: &str) -> anyhow::Result<String> {
    if !listening.ip().is_unspecified() {
        return Ok(listening.to_string());
    }
    // Nothing is sent: connecting a datagram socket chooses the interface.
    let socket = UdpSocket::bind((listening.ip(), 0)).await?;
    let mut pause = RESOLVE.0;
    while let Err(error) = socket.connect(conductor).await {
        warn!(%error, conductor, "the conductor is not found");
        sleep(pause).await;
        pause = (pause * 2).min(RESOLVE.1);
    }
    Ok(SocketAddr::new(socket.local_addr()?.ip(), listening.port()).to_string())
}
