//! Training, as plain functions over flat vectors and files: no network peers, no clock, no runtime.
//!
//! * [`checkpoint`] folders that are models, written so that they are whole or not there
//! * [`config`] what a run is, checked before anything runs · [`run`] what every process derives from it · [`stage`] the parameters of a stage
//! * [`data`] text to tokens to batches; which ones is a function of (seed, step, microbatch)
//! * [`optimizer`] AdamW, LAMB, SGD over a stage's flat parameters · [`parts`] those cut in chunks that threads share
//! * [`codec`] rows and gradients as bytes
//! * [`average`] what the peers of a stage make of their gradient sums, and what is kept of the error of codecs
//! * [`scratch`] folders for what is temporary
//! * [`root`] what a state is, in 32 bytes
//! * [`schedule`], [`squares`] learning rate of a step, what a stage knows of the norm of its gradient
//!
//! Everything that changes a weight gives the same bits on every machine and with any number of threads.

pub mod average;
pub mod checkpoint;
pub mod codec;
pub mod config;
pub mod data;
pub mod optimizer;
mod parts;
pub mod root;
pub mod run;
pub mod schedule;
pub mod scratch;
pub mod squares;
pub mod stage;

pub use config::{ConfigError, TrainingConfig};
pub use data::{Batch, DataError, Dataset};
pub use optimizer::{Optimizer, OptimizerState};
pub use parts::TensorRange;
pub use root::StateRoot;
pub use run::Run;
pub use stage::Stage;

#[cfg(test)]
mod testing;
