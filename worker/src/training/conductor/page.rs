//! The page of a run, the same as JSON, and metrics.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::Context;
use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::header;
use axum::response::Html;
use axum::routing::get;

use super::record::{Record, lock};

/// Steps in one answer.
const STEPS_MAX: usize = 2000;

/// Serves until the process ends.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(addr: SocketAddr, record: Arc<Mutex<Record>>) -> anyhow::Result<()> {
    let app = Router::new()
        .route("/", get(|| async { Html(include_str!("page.html")) }))
        .route("/status", get(status))
        .route("/steps", get(steps))
        .with_state(record);
    let listener =
        tokio::net::TcpListener::bind(addr).await.with_context(|| format!("cannot listen on {addr}"))?;
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(())
}

type Json = ([(header::HeaderName, &'static str); 1], String);

fn json(text: String) -> Json {
    ([(header::CONTENT_TYPE, "application/json")], text)
}

async fn status(State(record): State<Arc<Mutex<Record>>>) -> Json {
    json(lock(&record).page())
}

/// `?from=STEP`: the steps from there on.
async fn steps(State(record): State<Arc<Mutex<Record>>>, RawQuery(query): RawQuery) -> Json {
    let from = query.as_deref().and_then(|q| q.strip_prefix("from=")?.parse().ok()).unwrap_or(0);
    let steps = lock(&record).steps(from, STEPS_MAX);
    json(serde_json::to_string(&steps).unwrap_or_else(|_| "[]".to_owned()))
}

/// In Prometheus' text format.
pub fn metrics(record: &Record) -> String {
    let mut out = String::new();
    let totals = record.totals();
    let mut put = |name: &str, kind: &str, help: &str, value: f64| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    };
    if let Some(last) = record.last() {
        put("dunlin_training_step", "gauge", "Updates applied.", (last.step + 1) as f64);
        put("dunlin_training_loss", "gauge", "Mean loss of the last step, in nats.", last.loss);
        put("dunlin_training_tokens_per_second", "gauge", "Over the last steps.", last.tokens_per_second);
    }
    put("dunlin_training_redone_total", "counter", "Contributions computed again.", totals.redone as f64);
    put("dunlin_training_peers_lost_total", "counter", "Peers lost without notice.", totals.lost as f64);
    let failing = if record.is_in_trouble() { 1.0 } else { 0.0 };
    put("dunlin_training_checkpoints_failing", "gauge", "1 while checkpoints cannot be written.", failing);
    put("dunlin_training_moves_total", "counter", "Peers that changed stages.", totals.moves as f64);
    let _ =
        writeln!(out, "# HELP dunlin_training_peers Peers of a stage.\n# TYPE dunlin_training_peers gauge");
    for (stage, peers) in record.peers().iter().enumerate() {
        let _ = writeln!(out, "dunlin_training_peers{{stage=\"{stage}\"}} {peers}");
    }
    out
}
