//! From the body of a request to what it asks for: parameters, and prompts as tokens. All of this may take long: see [`super::intake`].

use axum::http::{HeaderMap, header};
use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::params::{Endpoint, Params};
use crate::run::ModelText;

/// Prompts in one completions request.
const PROMPTS_MAX: usize = 16;

/// What a request asks for.
#[derive(Debug)]
pub struct Asked {
    /// Everything but the prompts.
    pub params: Params,
    /// The prompts, as tokens.
    pub prompts: Vec<Vec<u32>>,
}

/// A chat request.
///
/// # Errors
/// When it makes no sense, or its prompt is too long for any answer.
pub fn chat(model: &ModelText, headers: &HeaderMap, bytes: &[u8]) -> Result<Asked, ApiError> {
    let body = body(headers, bytes)?;
    let params = Params::parse(Endpoint::Chat, &body)?;
    let prompt = model.template.render(&messages(&body)?);
    let prompt = prompt
        .map_err(|e| ApiError::invalid("messages", format!("the chat template refuses them: {e:#}")))?;
    Ok(Asked { params, prompts: vec![encode(model, &prompt, false, "messages")?] })
}

/// A completions request.
///
/// # Errors
/// As [`chat`].
pub fn completions(model: &ModelText, headers: &HeaderMap, bytes: &[u8]) -> Result<Asked, ApiError> {
    let body = body(headers, bytes)?;
    let params = Params::parse(Endpoint::Completions, &body)?;
    Ok(Asked { params, prompts: prompts(&body, model)? })
}

/// The answer to a request for the tokens of a text.
///
/// # Errors
/// When it makes no sense, or the text is longer than any sequence.
pub fn tokenize(model: &ModelText, headers: &HeaderMap, bytes: &[u8]) -> Result<Value, ApiError> {
    let body = body(headers, bytes)?;
    let text = body.get("prompt").and_then(Value::as_str);
    let text = text.ok_or_else(|| ApiError::invalid("prompt", "`prompt` must be text"))?;
    let tokens = encode(model, text, true, "prompt")?;
    Ok(json!({"count": tokens.len(), "tokens": tokens, "max_model_len": model.max_len}))
}

/// The answer to a request for the text of tokens.
///
/// # Errors
/// When it makes no sense.
pub fn detokenize(model: &ModelText, headers: &HeaderMap, bytes: &[u8]) -> Result<Value, ApiError> {
    let body = body(headers, bytes)?;
    let tokens: Option<Vec<u32>> = body
        .get("tokens")
        .and_then(Value::as_array)
        .and_then(|list| list.iter().map(|t| t.as_u64().and_then(|t| u32::try_from(t).ok())).collect());
    let tokens = tokens.ok_or_else(|| ApiError::invalid("tokens", "`tokens` must be a list of tokens"))?;
    Ok(json!({"prompt": model.tokenizer.decode(&tokens)}))
}

/// The tokens of a text, which may not be longer than a sequence.
fn encode(model: &ModelText, text: &str, begin: bool, param: &str) -> Result<Vec<u32>, ApiError> {
    let most = model.max_len as usize;
    let tokens = model.tokenizer.encode_at_most(text, begin, most);
    let tokens = tokens.map_err(|error| ApiError::invalid(param, error.to_string()))?;
    tokens.ok_or_else(|| ApiError::longer_than(param, most))
}

fn body(headers: &HeaderMap, bytes: &[u8]) -> Result<Map<String, Value>, ApiError> {
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
    let encode = |text: &str| encode(model, text, true, "prompt");
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
