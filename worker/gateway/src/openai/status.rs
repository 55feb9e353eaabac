//! What there is to know about the swarm: its models, whether it answers, how it looks.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use dunlin_swarm::NumericsClass;
use serde_json::{Value, json};

use super::app::App;
use super::error::ApiError;
use crate::model_text::ModelText;

/// The model and its adapters.
///
/// # Errors
/// While the model is not there.
pub async fn models(State(app): State<App>) -> Result<axum::Json<Value>, ApiError> {
    let model = app.model()?;
    let data: Vec<Value> = model.names().map(|name| card(&model, name)).collect();
    Ok(axum::Json(json!({"object": "list", "data": data})))
}

/// One of them.
///
/// # Errors
/// When there is none of that name.
pub async fn one_model(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<axum::Json<Value>, ApiError> {
    let model = app.model()?;
    if model.names().all(|name| name != id) {
        return Err(ApiError::no_model(&id, model.names()));
    }
    Ok(axum::Json(card(&model, &id)))
}

/// The model or one of its adapters.
fn card(model: &ModelText, name: &str) -> Value {
    let adapter = model.adapter(name);
    let rows = adapter.map_or(0, |a| a.prompt.len());
    json!({
        "id": name, "object": "model", "created": model.since_s, "owned_by": "dunlin", "root": model.name,
        "parent": adapter.map(|_| &model.name), "max_model_len": (model.max_len as usize).saturating_sub(rows),
    })
}

/// 200 when a new request would be answered.
///
/// # Errors
/// When it would not.
pub async fn health(State(app): State<App>) -> Result<Response, ApiError> {
    app.model()?;
    match app.handle.snapshot().await.not_ready {
        None => Ok((StatusCode::OK, "ok").into_response()),
        Some(why) => Err(ApiError::unavailable(why, 1)),
    }
}

/// The swarm as JSON, for the page and for tests.
pub async fn swarm(State(app): State<App>) -> axum::Json<Value> {
    let snapshot = app.handle.snapshot().await;
    let topology = snapshot.topology.unwrap_or_default();
    let peers: Vec<Value> = topology
        .peers
        .iter()
        .map(|peer| {
            let load = snapshot.loads.get(&peer.name).cloned().unwrap_or_default();
            json!({
                "name": peer.name, "node": peer.node, "pool": peer.pool, "spot": peer.spot, "span": peer.span,
                "shadows": peer.shadows, "state": peer.state, "up": snapshot.up.contains(&peer.name),
                "slow": snapshot.slow.contains(&peer.name), "arithmetic": NumericsClass::number_of(load.arithmetic),
                "queue_rows": load.queue_rows, "free_pages": load.free_pages, "total_pages": load.total_pages,
                "rows_per_s_per_layer": load.rows_per_s_per_layer, "held": load.held, "draining": load.draining,
            })
        })
        .collect();
    let sessions: Vec<Value> = snapshot
        .sessions
        .iter()
        .map(|s| {
            json!({
                "id": s.session.to_string(), "tokens": s.tokens, "attempt": s.attempt, "phase": s.phase,
                "route": s.route.iter().map(|(peer, layers)| format!("{peer} {layers}")).collect::<Vec<_>>(),
            })
        })
        .collect();
    let recoveries: Vec<Value> = snapshot
        .recoveries
        .iter()
        .map(|(r, ago_ms)| {
            json!({
                "session": r.session.to_string(), "ago_ms": ago_ms, "reason": r.recovery.reason.as_str(),
                "answered": r.recovery.answered, "stall_ms": r.recovery.stall_ms,
                "replayed_rows": r.recovery.replayed_rows,
            })
        })
        .collect();
    axum::Json(json!({
        "model": topology.model.name, "epoch": topology.epoch, "layers": topology.layers, "peers": peers,
        "sessions": sessions, "recoveries": recoveries, "tokens": app.metrics.tokens(), "not_ready": snapshot.not_ready,
    }))
}
