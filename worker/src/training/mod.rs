//! The roles of a training swarm: sockets, threads and tensors around the state machines of `dunlin_protocol::training`.
//!
//! * [`conductor`] owns the ledger, shows a page
//! * [`peer`] computes a stage
//! * [`trainer`] drives microbatches
//! * [`saved`] checkpoints
//! * [`values`] what travels between peers
//! * [`local`] all of them as processes on this machine

pub mod conductor;
pub mod local;
pub mod peer;
pub mod saved;
pub mod trainer;
mod values;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use dunlin_kernels::Pool;
use dunlin_model::ModelFile;
use dunlin_train::config::ModelSource;
use dunlin_train::data::TextTokenizer;
use dunlin_train::{Run, Stage, TrainingConfig};
use dunlin_wire::{LinksConfig, proto};
use tokio::net::UdpSocket;
use tokio::time::sleep;
use tracing::warn;

use crate::certificates::tls;
use crate::cli::ProcessArgs;
use crate::model::Location;

/// First and longest pause before the conductor's name is looked up again.
const RESOLVE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Reads and checks the configuration of a run.
///
/// # Errors
/// When it cannot be read or makes no sense.
pub fn read_config(path: &Path) -> anyhow::Result<TrainingConfig> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    TrainingConfig::from_yaml(&text).with_context(|| format!("in {}", path.display()))
}

/// How this process makes connections.
///
/// # Errors
/// When its certificates cannot be used.
pub fn links(process: &ProcessArgs) -> anyhow::Result<LinksConfig> {
    let hello = proto::Hello { name: process.name.clone(), incarnation: 0, gateway: false };
    Ok(LinksConfig::new(hello, Some(tls(process)?)))
}

/// The run of a configuration: with the model that it names, for the tokens of its tokenizer.
///
/// # Errors
/// When the tokenizer or the model cannot be read, or they do not fit.
pub fn run_of(config: TrainingConfig) -> anyhow::Result<Run> {
    let model = match &config.model {
        ModelSource::Config(shape) => {
            shape.model_config(TextTokenizer::open(&config.data.tokenizer)?.vocab())?
        }
        ModelSource::Checkpoint(path) => {
            let file = open_model(path)?;
            if config.adapter.is_some() {
                return Ok(Run::over(config, file)?);
            }
            file.config().clone()
        }
    };
    Ok(Run::new(config, model)?)
}

/// The model that training goes on from, or that an adapter is trained over.
fn open_model(place: &str) -> anyhow::Result<ModelFile> {
    Location::of_run(place)
        .open()
        .map_err(|problem| anyhow::anyhow!("{}: {}", problem.reason, problem.message))
}

/// A stage with its first values: random ones, also those of an adapter, or those of the model that training starts from.
///
/// # Errors
/// When that model cannot be read.
pub fn first(run: &Arc<Run>, stage: u32, pool: &Pool) -> anyhow::Result<Stage> {
    let folder = match &run.config.model {
        ModelSource::Checkpoint(folder) if run.config.adapter.is_none() => folder,
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
