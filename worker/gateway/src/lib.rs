//! The gateway: OpenAI's HTTP API in front, a swarm of stages behind.
//!
//! * [`run`] everything together
//! * [`driver`] the task that owns sessions: the protocol's gateway, links to stages, ticks
//! * [`openai`] requests, answers, streams and errors in OpenAI's shapes
//! * [`model_text`] what is needed of the model · [`template`] chat templates
//! * [`text`] tokens to text, stop strings
//! * [`metrics`] vLLM's names and ours · [`recent`] recoveries that people may still want to see

pub mod driver;
pub mod metrics;
pub mod model_text;
pub mod openai;
pub mod recent;
pub mod run;
pub mod template;
#[cfg(test)]
mod testing;
pub mod text;

pub use driver::{Driver, Event, Handle, SwarmSnapshot};
pub use model_text::{ModelText, ServedAdapter};
pub use run::{GatewayOptions, serve};
