//! Paths and handlers.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{Html, Response};
use axum::routing::{get, post};
use serde_json::Value;
use tower_http::cors::{AllowHeaders, Any, CorsLayer};
use tracing::{Instrument, info_span};

use super::answer::answer;
use super::app::App;
use super::error::ApiError;
use super::params::Endpoint;
use super::request::{self, GenerationRequest};
use super::status::{health, models, one_model, swarm};

/// Longest request id that is echoed.
const REQUEST_ID_MAX: usize = 128;
/// A browser asks again after this long whether a page may ask.
const PREFLIGHT: Duration = Duration::from_secs(3600);
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// All paths of the HTTP API.
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
        // The intake has a limit of its own, and refuses in OpenAI's words.
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(app.clone(), request_id))
        .layer(cors())
        .with_state(app)
}

/// Pages of any server may ask, with a key in their headers if they like: there are no cookies that a browser would add.
fn cors() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::GET, Method::POST])
        // `*` would not stand for `authorization`.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([REQUEST_ID, header::RETRY_AFTER])
        .max_age(PREFLIGHT)
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

async fn chat(State(app): State<App>, request: Request) -> Result<Response, ApiError> {
    let (model, GenerationRequest { params, prompts }) = app.read(request, request::chat).await?;
    answer(&app, &model, Endpoint::Chat, params, prompts).await
}

async fn completions(State(app): State<App>, request: Request) -> Result<Response, ApiError> {
    let (model, GenerationRequest { params, prompts }) = app.read(request, request::completions).await?;
    answer(&app, &model, Endpoint::Completions, params, prompts).await
}

async fn tokenize(State(app): State<App>, request: Request) -> Result<axum::Json<Value>, ApiError> {
    Ok(axum::Json(app.read(request, request::tokenize).await?.1))
}

async fn detokenize(State(app): State<App>, request: Request) -> Result<axum::Json<Value>, ApiError> {
    Ok(axum::Json(app.read(request, request::detokenize).await?.1))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use axum::body::{Body, to_bytes};
    use axum::http::{Request, StatusCode};
    use axum::response::Response;
    use dunlin_protocol::{GatewayConfig, GatewayId};
    use dunlin_swarm::{ModelId, Topology};
    use dunlin_wire::{LinksConfig, proto};
    use serde_json::{Value, json};
    use tokio::sync::watch;
    use tower::Service;

    use super::router;
    use crate::driver::{Driver, Handle};
    use crate::metrics::GatewayMetrics;
    use crate::model_text::ModelText;
    use crate::openai::App;
    use crate::testing::{VOCAB, model};

    /// The answer of a gateway without stages.
    async fn ask(path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let method = if body.is_some() { "POST" } else { "GET" };
        let body = body.map_or_else(Body::empty, |body| body.to_string().into());
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        let response = answer(model(), request.body(body).unwrap()).await;
        let status = response.status();
        let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap())
    }

    async fn answer(model: ModelText, request: Request<Body>) -> Response {
        answer_of(without_stages(Arc::default()), model, request).await
    }

    /// The way to a gateway of the model with the digest `own` that reaches no stages.
    fn without_stages(metrics: Arc<GatewayMetrics>) -> Handle {
        let id = GatewayId { name: "g".to_owned(), incarnation: 1 };
        let config = GatewayConfig {
            id,
            model_digest: "own".to_owned(),
            started_ms: 0,
            running_max: 1,
            queue_max: 1,
            stall_ms: 1000,
            retry_after_s: 1,
        };
        let links = LinksConfig::new(proto::Hello::default(), None);
        let (driver, handle) = Driver::new(config, links, metrics, tokio::runtime::Handle::current());
        tokio::spawn(driver.run());
        handle
    }

    #[tokio::test]
    async fn a_topology_of_another_model_is_counted_and_told_to_whoever_asks() {
        let metrics = Arc::<GatewayMetrics>::default();
        let handle = without_stages(Arc::clone(&metrics));
        let of = |epoch, digest: &str| {
            let model = ModelId { name: "base".to_owned(), digest: digest.to_owned() };
            Topology { epoch, model, layers: 1, ..Topology::default() }
        };
        let ask = async || {
            let request = Request::get("/health").body(Body::empty()).unwrap();
            let response = answer_of(handle.clone(), model(), request).await;
            let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
            String::from_utf8(bytes.to_vec()).unwrap()
        };
        handle.set_topology(of(1, "own")).await;
        let said = ask().await;
        assert!(said.contains("no peer holds layer 0"), "{said}");
        handle.set_topology(of(2, "other")).await;
        let said = ask().await;
        assert!(said.contains("the swarm has another model since epoch 2"), "{said}");
        assert!(*handle.other_model().borrow());
        handle.set_topology(of(3, "own")).await;
        let said = ask().await;
        assert!(said.contains("no peer holds layer 0") && !*handle.other_model().borrow(), "{said}");
        let counted = metrics.render();
        assert!(counted.contains("dunlin_topologies_refused_total 1\n"), "{counted}");
        assert!(counted.contains("dunlin_epoch 3\n"), "{counted}");
    }

    async fn answer_of(handle: Handle, model: ModelText, request: Request<Body>) -> Response {
        let (_model, receiver) = watch::channel(Some(Arc::new(model)));
        let (_trouble, trouble) = watch::channel(None);
        let requests = Arc::new(AtomicU64::new(0));
        let (metrics, intake) = (Arc::default(), Arc::default());
        let app = App { handle, model: receiver, trouble, metrics, requests, intake };
        router(app).call(request).await.unwrap()
    }

    #[tokio::test]
    async fn a_base_model_is_not_chatted_with_and_says_what_to_do() {
        let base = ModelText { template: None, ..model() };
        let body = json!({"messages": [{"role": "user", "content": "a"}]}).to_string();
        let request = Request::post("/v1/chat/completions").header("content-type", "application/json");
        let response = answer(base, request.body(body.into()).unwrap()).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let answer: Value = serde_json::from_slice(&bytes).unwrap();
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains("/v1/completions") && message.contains("chat_template.jinja"), "{message}");
    }

    /// A gateway whose sessions have lost their task says so on every stream that is open, and to every request.
    #[tokio::test]
    async fn the_death_of_the_task_that_owns_sessions_is_told_to_everybody() {
        let ask = async |handle: Handle, stream: bool| {
            let body = json!({"prompt": [1, 2], "max_tokens": 9, "stream": stream, "return_token_ids": true});
            let request = Request::post("/v1/completions").header("content-type", "application/json");
            let request = request.body(body.to_string().into()).unwrap();
            let response = answer_of(handle, model(), request).await;
            let status = response.status();
            let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
            (status, String::from_utf8(bytes.to_vec()).unwrap())
        };
        let says = |answer: &Value| {
            let message = answer["error"]["message"].as_str().unwrap_or_default();
            assert!(message.contains("about to end; ask again"), "{answer}");
            assert_eq!(answer["error"]["type"], "server_error");
        };
        let (status, stream) = ask(Handle::of_a_driver_that_dies(vec![65, 66]), true).await;
        let events: Vec<&str> = stream.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        let [first, second, error, "[DONE]"] = events[..] else { panic!("{events:?}") };
        let parsed = |event: &str| serde_json::from_str::<Value>(event).unwrap();
        let tokens = [first, second].map(|event| parsed(event)["choices"][0]["token_ids"].clone());
        assert_eq!((status, tokens), (StatusCode::OK, [json!([65]), json!([66])]));
        says(&parsed(error));

        let handle = Handle::of_a_driver_that_dies(vec![65]);
        for _ in 0..2 {
            let (status, whole) = ask(handle.clone(), false).await;
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
            assert!(whole.contains("the gateway is about to end"), "{whole}");
        }
    }

    #[tokio::test]
    async fn pages_of_other_servers_may_ask() {
        let preflight = Request::options("/v1/chat/completions")
            .header("origin", "http://app.example")
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type")
            .body(Body::empty())
            .unwrap();
        let allowed = answer(model(), preflight).await;
        let header = |name: &str| allowed.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or("");
        assert_eq!((allowed.status(), header("access-control-allow-origin")), (StatusCode::OK, "*"));
        assert_eq!(header("access-control-allow-headers"), "authorization,content-type");
        assert!(header("access-control-allow-methods").contains("POST"));
        let request = Request::get("/v1/nothing").header("origin", "http://app.example");
        let refused = answer(model(), request.body(Body::empty()).unwrap()).await;
        assert_eq!(refused.status(), StatusCode::NOT_FOUND);
        assert_eq!(refused.headers()["access-control-allow-origin"], "*", "errors are readable, too");
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
