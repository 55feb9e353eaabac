//! OpenAI's HTTP API: requests in, answers, streams and errors out.

mod error;
mod generate;
mod http;
mod logprobs;
mod params;

pub use error::ApiError;
pub use http::{App, router};
