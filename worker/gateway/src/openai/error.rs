//! Errors in OpenAI's shape.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use dunlin_protocol::gateway::{Failure, Rejected};
use serde_json::{Value, json};

/// An error as clients see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// `invalid_request_error`, `rate_limit_error`, `server_error`, ...
    pub kind: &'static str,
    /// Stable, for programs.
    pub code: Option<&'static str>,
    /// The parameter at fault.
    pub param: Option<String>,
    /// For people.
    pub message: String,
    /// When to try again, in seconds.
    pub retry_after_s: Option<u32>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, code: None, param: None, message: message.into(), retry_after_s: None }
    }

    /// 400, naming the parameter.
    #[must_use]
    pub fn invalid(param: &str, message: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message);
        error.param = (!param.is_empty()).then(|| param.to_owned());
        error
    }

    /// 400: known, but not done here.
    #[must_use]
    pub fn unsupported(param: &str) -> Self {
        let message = format!("`{param}` is not supported; leave it out");
        Self { code: Some("unsupported_parameter"), ..Self::invalid(param, message) }
    }

    /// 400: a base model.
    #[must_use]
    pub fn no_template() -> Self {
        let message = "the model has no chat template, as base models have none: ask /v1/completions to go on with a text, or put the template \
                       that it was trained with into its folder as chat_template.jinja (in GGUF it is tokenizer.chat_template)";
        Self { code: Some("no_chat_template"), ..Self::invalid("messages", message) }
    }

    /// 400: prompt and answer do not fit. It begins as OpenAI's message does, by which clients such as LiteLLM know it.
    #[must_use]
    pub fn too_long(prompt: usize, limit: usize) -> Self {
        let message = format!(
            "this model's maximum context length is {limit} tokens, prompt and answer together; the prompt has {prompt} tokens: shorten it"
        );
        Self { code: Some("context_length_exceeded"), ..Self::invalid("messages", message) }
    }

    /// 400: the prompt alone is longer than any sequence.
    #[must_use]
    pub fn longer_than(param: &str, limit: usize) -> Self {
        let message = format!(
            "this model's maximum context length is {limit} tokens, prompt and answer together; the prompt has more than {limit} tokens: shorten it"
        );
        Self { code: Some("context_length_exceeded"), ..Self::invalid(param, message) }
    }

    /// 413.
    #[must_use]
    pub fn too_large(limit: usize) -> Self {
        let message = format!("the request has more than {limit} bytes; shorten it");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message)
    }

    /// 408.
    #[must_use]
    pub fn too_slow(limit: Duration) -> Self {
        let message = format!("the request did not arrive within {} s", limit.as_secs());
        Self::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", message)
    }

    /// 429 with Retry-After.
    #[must_use]
    pub fn busy(message: impl Into<String>, retry_after_s: u32) -> Self {
        let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
        error.retry_after_s = Some(retry_after_s);
        error
    }

    /// 500: our fault.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// 503: this process has a second left at most.
    #[must_use]
    pub fn ending() -> Self {
        Self::unavailable("the gateway is about to end; ask again, another one answers", 1)
    }

    /// 404: no such model.
    #[must_use]
    pub fn no_model<'a>(name: &str, have: impl Iterator<Item = &'a str>) -> Self {
        let have = have.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let message = format!("the model `{name}` does not exist; this swarm serves {have}");
        let mut error = Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message);
        error.code = Some("model_not_found");
        error.param = Some("model".to_owned());
        error
    }

    /// 404: no such path.
    #[must_use]
    pub fn no_path(path: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", format!("there is nothing at {path}"))
    }

    /// 405.
    #[must_use]
    pub fn no_method() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "invalid_request_error",
            "this path does not know this method",
        )
    }

    /// 415.
    #[must_use]
    pub fn no_json() -> Self {
        let message = "send JSON with content-type: application/json";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", message)
    }

    /// 503 with Retry-After.
    #[must_use]
    pub fn unavailable(message: impl Into<String>, retry_after_s: u32) -> Self {
        let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message);
        error.retry_after_s = Some(retry_after_s);
        error
    }

    /// The object under `error`.
    #[must_use]
    pub fn body(&self) -> Value {
        json!({"error": {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
        }})
    }
}

impl From<Rejected> for ApiError {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::Busy { retry_after_s } => {
                Self::busy("the queue is full; try again later or give the swarm more peers", retry_after_s)
            }
            Rejected::NoCapacity { retry_after_s, message } => Self::unavailable(message, retry_after_s),
            Rejected::Invalid { message } => Self::invalid("", message),
        }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Deadline { waiting_for } => {
                let message = format!("the request took too long; it was last: {waiting_for}");
                Self::unavailable(message, 5)
            }
            Failure::NonFinite { layer } => {
                Self::internal(format!("the model produced a value that is not finite in layer {layer}"))
            }
            Failure::OtherModel(other) => Self::unavailable(other.to_string(), 1),
            Failure::OtherArithmetic { lacking } => Self::unavailable(
                format!(
                    "the answer began on peers of an earlier build that were lost, and others would go on with other bits ({lacking}): ask again"
                ),
                1,
            ),
            Failure::Ending => Self::ending(),
            Failure::Refused { message } => Self::internal(format!("a stage refused: {message}")),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let headers = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        let mut response = (self.status, headers, self.body().to_string()).into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
