//! From running sessions to the answer of a request, whole or as a stream of events.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use futures::stream::SelectAll;
use serde_json::{Value, json};

use super::app::App;
use super::error::ApiError;
use super::generate::{Choice, Piece};
use super::logprobs::{self, TokenLogProb};
use super::params::{Endpoint, Params};
use crate::model_text::ModelText;

/// A request ends after this long at the latest.
const REQUEST_LIMIT: Duration = Duration::from_secs(3600);

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

    fn whole(&self, params: &Params, all: Vec<Finished>, generated: u32) -> Value {
        let entry = |(index, Finished { text, tokens, reason }): (usize, Finished)| {
            let mut entry = json!({"index": index, "finish_reason": reason, "logprobs": null});
            match self.endpoint {
                Endpoint::Chat => entry["message"] = json!({"role": "assistant", "content": text}),
                Endpoint::Completions => entry["text"] = json!(text),
            }
            if params.sampling.logprobs.is_some() {
                entry["logprobs"] = self.logprobs(&tokens);
            }
            if params.return_token_ids {
                entry["token_ids"] = tokens.iter().map(|t| t.token).collect();
            }
            entry
        };
        let mut object = self.object(false);
        object["choices"] = all.into_iter().enumerate().map(entry).collect();
        object["usage"] = self.usage(generated);
        object
    }

    fn logprobs(&self, tokens: &[TokenLogProb]) -> Value {
        match self.endpoint {
            Endpoint::Chat => logprobs::chat(&self.model.tokenizer, tokens),
            Endpoint::Completions => logprobs::completions(&self.model.tokenizer, tokens),
        }
    }
}

/// Answers a request with these prompts: whole or as a stream.
///
/// # Errors
/// When it names no model of this swarm, does not fit, or the gateway does not take it.
pub async fn answer(
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
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        model: Arc::clone(model),
        name,
        prompt_tokens: prompts.iter().map(Vec::len).sum(),
    };
    let sessions: Vec<String> = choices.iter().map(|choice| choice.session().to_string()).collect();
    let mut response = if params.stream {
        stream(envelope, params, choices)
    } else {
        whole(envelope, params, choices).await?
    };
    if let Ok(sessions) = HeaderValue::from_str(&sessions.join(",")) {
        response.headers_mut().insert(SESSIONS, sessions);
    }
    Ok(response)
}

/// The sessions of an answer, by which logs and `/swarm` name them, in the order of its choices.
const SESSIONS: HeaderName = HeaderName::from_static("x-dunlin-sessions");

/// One whole answer.
struct Finished {
    text: String,
    tokens: Vec<TokenLogProb>,
    reason: Option<&'static str>,
}

async fn whole(envelope: Envelope, params: Params, choices: Vec<Choice>) -> Result<Response, ApiError> {
    let mut generated = 0;
    let mut all = Vec::new();
    for mut choice in choices {
        let (mut text, mut tokens, mut reason) = (String::new(), Vec::new(), None);
        while let Some(piece) = choice.next().await {
            let Piece { text: more, token, finish } = piece?;
            text.push_str(&more);
            tokens.extend(token);
            reason = reason.or(finish);
        }
        generated += choice.tokens;
        all.push(Finished { text, tokens, reason });
    }
    // With log-probabilities this may be megabytes of JSON. As many do this at once as sessions run.
    let body = tokio::task::spawn_blocking(move || envelope.whole(&params, all, generated).to_string()).await;
    let body = body.map_err(|error| ApiError::internal(format!("the answer was not written: {error}")))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// One answer of a stream, on its way.
struct Running {
    index: usize,
    choice: Choice,
    first: bool,
    over: bool,
}

fn stream(envelope: Envelope, params: Params, choices: Vec<Choice>) -> Response {
    let envelope = Arc::new(envelope);
    let params = Arc::new(params);
    let generated = Arc::new(AtomicU64::new(0));
    let mut all = SelectAll::new();
    for (index, choice) in choices.into_iter().enumerate() {
        let running = Running { index, choice, first: true, over: false };
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
                    if let Some(choice) = choice_of(&envelope, &params, running.index, &piece) {
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
fn choice_of(envelope: &Envelope, params: &Params, index: usize, piece: &Piece) -> Option<Value> {
    let wanted = params.return_token_ids || params.sampling.logprobs.is_some();
    if piece.text.is_empty() && piece.finish.is_none() && !(wanted && piece.token.is_some()) {
        return None;
    }
    let mut choice = json!({"index": index, "logprobs": null, "finish_reason": piece.finish});
    match envelope.endpoint {
        Endpoint::Chat if piece.text.is_empty() && piece.finish.is_some() => choice["delta"] = json!({}),
        Endpoint::Chat => choice["delta"] = json!({"content": piece.text}),
        Endpoint::Completions => choice["text"] = json!(piece.text),
    }
    let token = piece.token.as_slice();
    if params.sampling.logprobs.is_some() && !token.is_empty() {
        choice["logprobs"] = envelope.logprobs(token);
    }
    if params.return_token_ids {
        choice["token_ids"] = token.iter().map(|t| t.token).collect();
    }
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
