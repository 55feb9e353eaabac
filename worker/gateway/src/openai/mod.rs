//! OpenAI's HTTP API: requests in, answers, streams and errors out.
//!
//! * [`http`] paths and handlers · [`app`] what these share
//! * [`intake`] bodies are read beside the runtime, a few at a time, into [`request`]s with their [`params`]
//! * [`generate`] one session as text · [`answer`] the sessions of a request as an answer or a stream · [`logprobs`], [`error`] in OpenAI's shapes
//! * [`status`] models, health, the swarm

mod answer;
mod app;
mod error;
mod generate;
mod http;
mod intake;
mod logprobs;
mod params;
mod request;
mod status;

pub use app::App;
pub use error::ApiError;
pub use http::router;
pub use intake::Intake;
