//! Paths and handlers.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use futures::StreamExt;
use futures::stream::SelectAll;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tracing::{Instrument, info_span};

use super::error::ApiError;
use super::generate::{Choice, Piece};
use super::logprobs::{self, TokenLogProb};
use super::params::{Endpoint, Params};
use crate::driver::Handle;
use crate::metrics::Metrics;
use crate::run::ModelText;

/// Largest request.
const BODY_BYTES_MAX: usize = 8 << 20;
/// A request ends after this long at the latest.
const REQUEST_LIMIT: Duration = Duration::from_secs(3600);
/// Prompts in one completions request.
const PROMPTS_MAX: usize = 16;
/// Longest request id that is echoed.
const REQUEST_ID_MAX: usize = 128;
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What handlers share.
#[derive(Clone)]
pub struct App {
    /// The way to the swarm.
    pub handle: Handle,
    /// Tokenizer and template, once the model is there.
    pub model: watch::Receiver<Option<Arc<ModelText>>>,
    /// Why the model is not there yet.
    pub trouble: watch::Receiver<Option<String>>,
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// Numbers requests; begins at a number drawn at start.
    pub requests: Arc<AtomicU64>,
}

/// The routes.
pub fn router(app: App) -> Router {
    Router::new()
        .route("/", get(|| async { Html(include_str!("page.html")) }))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(one_model))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/health", get(health))
        .route("/swarm", get(swarm))
        .route("/metrics", get(|State(app): State<App>| async move { app.metrics.render() }))
        .fallback(|uri: Uri| async move { ApiError::no_path(uri.path()) })
        .method_not_allowed_fallback(|| async { ApiError::no_method() })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(app.clone(), request_id))
        .with_state(app)
}

/// Echoes x-request-id, or makes one; the request's span carries it.
async fn request_id(State(app): State<App>, request: Request, next: Next) -> Response {
    let own =
        || HeaderValue::from_str(&format!("req-{:016x}", app.requests.fetch_add(1, Ordering::Relaxed))).ok();
    let given = request.headers().get(&REQUEST_ID).filter(|v| v.len() <= REQUEST_ID_MAX).cloned();
    let id = given.or_else(own);
    let span = info_span!("request", method = %request.method(), path = request.uri().path(), id = ?id);
    let mut response = next.run(request).instrument(span).await;
    if let Some(id) = id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

impl App {
    fn model(&self) -> Result<Arc<ModelText>, ApiError> {
        self.model.borrow().clone().ok_or_else(|| {
            let trouble = self.trouble.borrow().clone().unwrap_or_else(|| "it is being opened".to_owned());
            ApiError::unavailable(format!("the model is not there yet: {trouble}"), 1)
        })
    }

    fn id(&self, prefix: &str) -> String {
        format!("{prefix}-{:016x}", self.requests.fetch_add(1, Ordering::Relaxed))
    }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn body(headers: &HeaderMap, bytes: &Bytes) -> Result<Map<String, Value>, ApiError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !kind.to_ascii_lowercase().starts_with("application/json") {
        return Err(ApiError::no_json());
    }
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|e| ApiError::invalid("", format!("the body is not JSON: {e}")))?;
    match value {
        Value::Object(map) => Ok(map),
        _ => Err(ApiError::invalid("", "the body must be a JSON object")),
    }
}

/// `[{role, content}]` with content as text, as templates want it.
fn messages(body: &Map<String, Value>) -> Result<Vec<Value>, ApiError> {
    let wrong = |what: &str| ApiError::invalid("messages", format!("`messages` {what}"));
    let list = body.get("messages").and_then(Value::as_array).ok_or_else(|| wrong("must be a list"))?;
    if list.is_empty() {
        return Err(wrong("must not be empty"));
    }
    list.iter()
        .map(|message| {
            let role = message["role"].as_str().ok_or_else(|| wrong("need a `role` each"))?;
            if !matches!(role, "system" | "developer" | "user" | "assistant") {
                return Err(wrong(&format!("cannot have the role `{role}`")));
            }
            let role = if role == "developer" { "system" } else { role };
            let content = match &message["content"] {
                Value::String(text) => text.clone(),
                Value::Array(parts) => {
                    let text = |part: &Value| {
                        (part["type"] == "text").then(|| part["text"].as_str().map(str::to_owned)).flatten()
                    };
                    let parts: Option<Vec<String>> = parts.iter().map(text).collect();
                    parts.ok_or_else(|| wrong("can have parts of type `text` only"))?.concat()
                }
                _ => return Err(wrong("need `content` as text each")),
            };
            Ok(json!({"role": role, "content": content}))
        })
        .collect()
}

/// The prompts of a completions request, as tokens.
fn prompts(body: &Map<String, Value>, model: &ModelText) -> Result<Vec<Vec<u32>>, ApiError> {
    let wrong = || {
        let message = format!(
            "`prompt` must be text, a list of at most {PROMPTS_MAX} texts, or tokens of the vocabulary"
        );
        ApiError::invalid("prompt", message)
    };
    let encode = |text: &str| {
        model.tokenizer.encode(text, true).map_err(|e| ApiError::invalid("prompt", e.to_string()))
    };
    let tokens = |list: &[Value]| -> Option<Vec<u32>> {
        let token =
            |v: &Value| v.as_u64().filter(|t| *t < model.tokenizer.vocab_size() as u64).map(|t| t as u32);
        list.iter().map(token).collect()
    };
    let out = match body.get("prompt") {
        Some(Value::String(text)) => vec![encode(text)?],
        Some(Value::Array(list)) if list.len() > PROMPTS_MAX && !list[0].is_u64() => return Err(wrong()),
        Some(Value::Array(list)) => match list.first() {
            Some(Value::String(_)) => {
                list.iter().map(|t| encode(t.as_str().ok_or_else(wrong)?)).collect::<Result<_, _>>()?
            }
            Some(Value::Array(_)) => {
                let each = |v: &Value| v.as_array().and_then(|l| tokens(l)).ok_or_else(wrong);
                list.iter().map(each).collect::<Result<_, _>>()?
            }
            _ => vec![tokens(list).ok_or_else(wrong)?],
        },
        _ => return Err(wrong()),
    };
    if out.iter().any(Vec::is_empty) {
        return Err(ApiError::invalid("prompt", "`prompt` must not be empty"));
    }
    Ok(out)
}

async fn chat(State(app): State<App>, headers: HeaderMap, bytes: Bytes) -> Result<Response, ApiError> {
    let body = body(&headers, &bytes)?;
    let params = Params::parse(Endpoint::Chat, &body)?;
    let model = app.model()?;
    let messages = messages(&body)?;
    let prompt = model.template.render(&messages);
    let prompt = prompt
        .map_err(|e| ApiError::invalid("messages", format!("the chat template refuses them: {e:#}")))?;
    let prompt =
        model.tokenizer.encode(&prompt, false).map_err(|e| ApiError::invalid("messages", e.to_string()))?;
    answer(&app, &model, Endpoint::Chat, params, vec![prompt]).await
}

async fn completions(State(app): State<App>, headers: HeaderMap, bytes: Bytes) -> Result<Response, ApiError> {
    let body = body(&headers, &bytes)?;
    let params = Params::parse(Endpoint::Completions, &body)?;
    let model = app.model()?;
    let prompts = prompts(&body, &model)?;
    answer(&app, &model, Endpoint::Completions, params, prompts).await
}

/// What every chunk and answer begins with.
struct Envelope {
    endpoint: Endpoint,
    id: String,
    created: u64,
    model: Arc<ModelText>,
    /// What was asked for: the model or an adapter.
    name: String,
    /// Without the rows of an adapter.
    prompt_tokens: usize,
}

impl Envelope {
    fn object(&self, chunk: bool) -> Value {
        let kind = match (self.endpoint, chunk) {
            (Endpoint::Chat, true) => "chat.completion.chunk",
            (Endpoint::Chat, false) => "chat.completion",
            (Endpoint::Completions, _) => "text_completion",
        };
        json!({"id": self.id, "object": kind, "created": self.created, "model": self.name})
    }

    fn usage(&self, generated: u32) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens, "completion_tokens": generated,
            "total_tokens": self.prompt_tokens + generated as usize,
        })
    }

    fn logprobs(&self, tokens: &[TokenLogProb], offset: usize) -> Value {
        match self.endpoint {
            Endpoint::Chat => logprobs::chat(&self.model.tokenizer, tokens),
            Endpoint::Completions => logprobs::completions(&self.model.tokenizer, tokens, offset),
        }
    }
}

async fn answer(
    app: &App,
    model: &Arc<ModelText>,
    endpoint: Endpoint,
    mut params: Params,
    prompts: Vec<Vec<u32>>,
) -> Result<Response, ApiError> {
    let name = params.model.take().unwrap_or_else(|| model.name.clone());
    let adapter = model.adapter(&name);
    if adapter.is_none() && name != model.name {
        return Err(ApiError::no_model(&name, model.names()));
    }
    if !params.seeded {
        // Without a seed answers may differ; the request's number is as good as any.
        params.sampling.seed = app.requests.fetch_add(1, Ordering::Relaxed);
    }
    let mut choices = Vec::new();
    for prompt in &prompts {
        for index in 0..params.n {
            let choice = Choice::start(
                &app.handle,
                model,
                &app.metrics,
                adapter,
                prompt,
                &params,
                index,
                REQUEST_LIMIT,
            )
            .await?;
            choices.push(choice);
        }
    }
    let envelope = Envelope {
        endpoint,
        id: app.id(if endpoint == Endpoint::Chat { "chatcmpl" } else { "cmpl" }),
        created: now_s(),
        model: Arc::clone(model),
        name,
        prompt_tokens: prompts.iter().map(Vec::len).sum(),
    };
    if params.stream {
        Ok(stream(envelope, params, choices))
    } else {
        whole(&envelope, &params, choices).await
    }
}

async fn whole(envelope: &Envelope, params: &Params, choices: Vec<Choice>) -> Result<Response, ApiError> {
    let mut generated = 0;
    let mut out = Vec::new();
    for (index, mut choice) in choices.into_iter().enumerate() {
        let (mut text, mut tokens, mut finish) = (String::new(), Vec::new(), None);
        while let Some(piece) = choice.next().await {
            let Piece { text: more, token, finish: end } = piece?;
            text.push_str(&more);
            tokens.extend(token);
            finish = finish.or(end);
        }
        generated += choice.tokens;
        let mut entry = json!({"index": index, "finish_reason": finish, "logprobs": null});
        match envelope.endpoint {
            Endpoint::Chat => entry["message"] = json!({"role": "assistant", "content": text}),
            Endpoint::Completions => entry["text"] = json!(text),
        }
        if params.sampling.logprobs.is_some() {
            entry["logprobs"] = envelope.logprobs(&tokens, 0);
        }
        if params.return_token_ids {
            entry["token_ids"] = tokens.iter().map(|t| t.token).collect();
        }
        out.push(entry);
    }
    let mut object = envelope.object(false);
    object["choices"] = out.into();
    object["usage"] = envelope.usage(generated);
    Ok(axum::Json(object).into_response())
}

/// One answer of a stream, on its way.
struct Running {
    index: usize,
    choice: Choice,
    first: bool,
    offset: usize,
    over: bool,
}

fn stream(envelope: Envelope, params: Params, choices: Vec<Choice>) -> Response {
    let envelope = Arc::new(envelope);
    let params = Arc::new(params);
    let generated = Arc::new(AtomicU64::new(0));
    let mut all = SelectAll::new();
    for (index, choice) in choices.into_iter().enumerate() {
        let running = Running { index, choice, first: true, offset: 0, over: false };
        let (envelope, params, generated) =
            (Arc::clone(&envelope), Arc::clone(&params), Arc::clone(&generated));
        all.push(Box::pin(futures::stream::unfold(running, move |mut running| {
            let (envelope, params, generated) = (Arc::clone(&envelope), Arc::clone(&params), Arc::clone(&generated));
            async move {
                loop {
                    if running.over {
                        return None;
                    }
                    if std::mem::take(&mut running.first) && envelope.endpoint == Endpoint::Chat {
                        let delta = json!({"role": "assistant", "content": ""});
                        let choice = json!({"index": running.index, "delta": delta, "logprobs": null, "finish_reason": null});
                        return Some((chunk(&envelope, &params, choice), running));
                    }
                    let piece = match running.choice.next().await {
                        None => return None,
                        Some(Ok(piece)) => piece,
                        Some(Err(error)) => {
                            running.over = true;
                            return Some((error.body().to_string(), running));
                        }
                    };
                    generated.fetch_add(u64::from(piece.token.is_some()), Ordering::Relaxed);
                    if let Some(choice) = choice_of(&envelope, &params, &mut running, &piece) {
                        return Some((chunk(&envelope, &params, choice), running));
                    }
                }
            }
        })));
    }
    let usage = Arc::clone(&envelope);
    let wanted = params.include_usage;
    let end = futures::stream::once(async move {
        let mut out = Vec::new();
        if wanted {
            let mut object = usage.object(true);
            object["choices"] = json!([]);
            object["usage"] = usage.usage(generated.load(Ordering::Relaxed) as u32);
            out.push(object.to_string());
        }
        out.push("[DONE]".to_owned());
        futures::stream::iter(out)
    })
    .flatten();
    let events = all.chain(end).map(|data| Ok::<_, Infallible>(SseEvent::default().data(data)));
    Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(5))).into_response()
}

/// The choice object of a piece; `None` when it has nothing to say.
fn choice_of(envelope: &Envelope, params: &Params, running: &mut Running, piece: &Piece) -> Option<Value> {
    let wanted = params.return_token_ids || params.sampling.logprobs.is_some();
    if piece.text.is_empty() && piece.finish.is_none() && !(wanted && piece.token.is_some()) {
        return None;
    }
    let mut choice = json!({"index": running.index, "logprobs": null, "finish_reason": piece.finish});
    match envelope.endpoint {
        Endpoint::Chat if piece.text.is_empty() && piece.finish.is_some() => choice["delta"] = json!({}),
        Endpoint::Chat => choice["delta"] = json!({"content": piece.text}),
        Endpoint::Completions => choice["text"] = json!(piece.text),
    }
    let token = piece.token.as_slice();
    if params.sampling.logprobs.is_some() && !token.is_empty() {
        choice["logprobs"] = envelope.logprobs(token, running.offset);
    }
    if params.return_token_ids {
        choice["token_ids"] = token.iter().map(|t| t.token).collect();
    }
    running.offset += piece.text.chars().count();
    Some(choice)
}

fn chunk(envelope: &Envelope, params: &Params, choice: Value) -> String {
    let mut object = envelope.object(true);
    object["choices"] = json!([choice]);
    if params.include_usage {
        object["usage"] = Value::Null;
    }
    object.to_string()
}

async fn models(State(app): State<App>) -> Result<axum::Json<Value>, ApiError> {
    let model = app.model()?;
    let data: Vec<Value> = model.names().map(|name| card(&model, name)).collect();
    Ok(axum::Json(json!({"object": "list", "data": data})))
}

async fn one_model(State(app): State<App>, Path(id): Path<String>) -> Result<axum::Json<Value>, ApiError> {
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

async fn tokenize(
    State(app): State<App>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Result<axum::Json<Value>, ApiError> {
    let body = body(&headers, &bytes)?;
    let model = app.model()?;
    let text = body.get("prompt").and_then(Value::as_str);
    let text = text.ok_or_else(|| ApiError::invalid("prompt", "`prompt` must be text"))?;
    let tokens =
        model.tokenizer.encode(text, true).map_err(|e| ApiError::invalid("prompt", e.to_string()))?;
    Ok(axum::Json(json!({"tokens": tokens, "count": tokens.len(), "max_model_len": model.max_len})))
}

async fn detokenize(
    State(app): State<App>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Result<axum::Json<Value>, ApiError> {
    let body = body(&headers, &bytes)?;
    let model = app.model()?;
    let tokens: Option<Vec<u32>> = body
        .get("tokens")
        .and_then(Value::as_array)
        .and_then(|list| list.iter().map(|t| t.as_u64().and_then(|t| u32::try_from(t).ok())).collect());
    let tokens = tokens.ok_or_else(|| ApiError::invalid("tokens", "`tokens` must be a list of tokens"))?;
    Ok(axum::Json(json!({"prompt": model.tokenizer.decode(&tokens)})))
}

/// 200 when a new request would be answered.
async fn health(State(app): State<App>) -> Result<Response, ApiError> {
    app.model()?;
    match app.handle.snapshot().await.not_ready {
        None => Ok((StatusCode::OK, "ok").into_response()),
        Some(why) => Err(ApiError::unavailable(why, 1)),
    }
}

/// The swarm as JSON, for the page and for tests.
async fn swarm(State(app): State<App>) -> axum::Json<Value> {
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
    axum::Json(json!({
        "model": topology.model.name, "epoch": topology.epoch, "layers": topology.layers, "peers": peers,
        "sessions": sessions, "not_ready": snapshot.not_ready,
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use axum::body::{Body, to_bytes};
    use axum::http::{Request, StatusCode};
    use dunlin_protocol::{GatewayConfig, GatewayId};
    use dunlin_wire::{LinksConfig, proto};
    use serde_json::{Value, json};
    use tokio::sync::watch;
    use tower::Service;

    use super::{App, router};
    use crate::driver::Driver;
    use crate::testing::{VOCAB, model};

    /// The answer of a gateway without stages.
    async fn ask(path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let id = GatewayId { name: "g".to_owned(), incarnation: 1 };
        let config = GatewayConfig { id, running_max: 1, queue_max: 1, stall_ms: 1000, retry_after_s: 1 };
        let links = LinksConfig::new(proto::Hello::default(), None);
        let (driver, handle) = Driver::new(config, links, Arc::default());
        tokio::spawn(driver.run());
        let (_model, receiver) = watch::channel(Some(Arc::new(model())));
        let (_trouble, trouble) = watch::channel(None);
        let requests = Arc::new(AtomicU64::new(0));
        let app = App { handle, model: receiver, trouble, metrics: Arc::default(), requests };
        let method = if body.is_some() { "POST" } else { "GET" };
        let body = body.map_or_else(Body::empty, |body| body.to_string().into());
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        let response = router(app).call(request.body(body).unwrap()).await.unwrap();
        let status = response.status();
        let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap())
    }

    #[tokio::test]
    async fn adapters_are_listed_behind_their_model() {
        let card = |id: &str, parent: Value, len: u32| {
            json!({"id": id, "object": "model", "created": 7, "owned_by": "dunlin", "root": "base",
                   "parent": parent, "max_model_len": len})
        };
        let data = [
            card("base", Value::Null, 20),
            card("lora", "base".into(), 20),
            card("prompt", "base".into(), 17),
        ];
        assert_eq!(ask("/v1/models", None).await, (StatusCode::OK, json!({"object": "list", "data": data})));
        assert_eq!(ask("/v1/models/prompt", None).await, (StatusCode::OK, data[2].clone()));
    }

    #[tokio::test]
    async fn who_asks_for_another_model_hears_what_there_is() {
        let body = json!({"model": "other", "prompt": "a"});
        for (path, body) in [("/v1/models/other", None), ("/v1/completions", Some(body))] {
            let (status, answer) = ask(path, body).await;
            assert_eq!(
                (status, &answer["error"]["code"]),
                (StatusCode::NOT_FOUND, &json!("model_not_found"))
            );
            let message = answer["error"]["message"].as_str().unwrap();
            assert!(message.ends_with("this swarm serves `base`, `lora`, `prompt`"), "{message}");
        }
    }

    #[tokio::test]
    async fn tokens_behind_the_vocabulary_are_refused_with_and_without_an_adapter() {
        for model in ["base", "prompt"] {
            let body = json!({"model": model, "prompt": [1, VOCAB]});
            let (status, answer) = ask("/v1/completions", Some(body)).await;
            assert_eq!((status, &answer["error"]["param"]), (StatusCode::BAD_REQUEST, &json!("prompt")));
        }
        // One that makes sense gets as far as a swarm without stages lets it.
        let body = json!({"model": "prompt", "prompt": [1, 2], "max_tokens": 2});
        assert_eq!(ask("/v1/completions", Some(body)).await.0, StatusCode::SERVICE_UNAVAILABLE);
    }
}
