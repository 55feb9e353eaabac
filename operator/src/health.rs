//! `/metrics`, `/healthz` and `/readyz`.

use std::sync::Arc;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::metrics::OperatorMetrics;

/// What the probes look at.
#[derive(Clone)]
pub struct Health {
    /// Metrics of the process.
    pub metrics: Arc<OperatorMetrics>,
    /// The caches have seen the cluster once.
    pub synced: watch::Receiver<bool>,
}

/// Serves until `stop` becomes true.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(
    address: std::net::SocketAddr,
    health: Health,
    mut stop: watch::Receiver<bool>,
) -> Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let stopped = async move {
        // An error means that the sender is gone: the process is going down.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    axum::serve(listener, router(health)).with_graceful_shutdown(stopped).await.context("http server")
}

fn router(health: Health) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(health)
}

async fn ready(State(health): State<Health>) -> (StatusCode, &'static str) {
    if *health.synced.borrow() {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the first list of the cluster is not complete")
    }
}

async fn metrics(State(health): State<Health>) -> (StatusCode, String) {
    match health.metrics.text() {
        Ok(text) => (StatusCode::OK, text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
