//! What handlers share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Bytes;
use axum::extract::Request;
use axum::http::HeaderMap;
use dunlin_wire::proto;
use tokio::sync::watch;

use super::error::ApiError;
use super::intake::Intake;
use crate::driver::Handle;
use crate::metrics::GatewayMetrics;
use crate::model_text::ModelText;

/// What handlers share.
#[derive(Clone)]
pub struct App {
    /// The way to the swarm.
    pub handle: Handle,
    /// Tokenizer and template, once the model is there.
    pub model: watch::Receiver<Option<Arc<ModelText>>>,
    /// Why the model is not there: what a user must mend.
    pub trouble: watch::Receiver<Option<proto::Problem>>,
    /// Figures.
    pub metrics: Arc<GatewayMetrics>,
    /// Numbers requests; begins at a number drawn at start.
    pub requests: Arc<AtomicU64>,
    /// Where bodies are read.
    pub intake: Arc<Intake>,
}

impl App {
    /// The model's text.
    ///
    /// # Errors
    /// While it is not there.
    pub fn model(&self) -> Result<Arc<ModelText>, ApiError> {
        self.model.borrow().clone().ok_or_else(|| {
            let trouble = self.trouble.borrow();
            let why = trouble.as_ref().map_or("it is being opened", |problem| &problem.message);
            ApiError::unavailable(format!("the model is not there yet: {why}"), 1)
        })
    }

    /// An id that nobody else has.
    #[must_use]
    pub fn id(&self, prefix: &str) -> String {
        format!("{prefix}-{:016x}", self.requests.fetch_add(1, Ordering::Relaxed))
    }

    /// Has the intake read a request with the model at hand.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        request: Request,
        read: impl FnOnce(&ModelText, &HeaderMap, &[u8]) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<(Arc<ModelText>, T), ApiError> {
        let model = self.model();
        let work = move |headers: &HeaderMap, bytes: &Bytes| {
            let model = model?;
            let read = read(&model, headers, bytes)?;
            Ok((model, read))
        };
        self.intake.take(request, work).await
    }
}
