//! From the body of a request to what it asks for: parameters, and prompts as tokens. All of this may take long: see [`super::intake`].

use std::time::SystemTime;

use axum::http::{HeaderMap, header};
use minijinja::value::{Value as Said, ValueKind};
use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::params::{Endpoint, Params};
use crate::model_text::ModelText;
use crate::template::told;

/// Prompts in one completions request.
const PROMPTS_MAX: usize = 16;

/// What a request asks for.
#[derive(Debug)]
pub struct GenerationRequest {
    /// Everything but the prompts.
    pub params: Params,
    /// The prompts, as tokens.
    pub prompts: Vec<Vec<u32>>,
}

/// A chat request.
///
/// # Errors
/// When it makes no sense, or its prompt is too long for any answer.
pub fn chat(model: &ModelText, headers: &HeaderMap, bytes: &[u8]) -> Result<GenerationRequest, ApiError> {
    let body = body(headers, bytes)?;
    let params = Params::parse(Endpoint::Chat, &body)?;
    let template = model.template.as_ref().ok_or_else(ApiError::no_template)?;
    let prompt = template.render(messages(bytes)?, SystemTime::now());
    let refused = |e| ApiError::invalid("messages", format!("the chat template refuses them: {}", told(&e)));
    let prompt = prompt.map_err(refused)?;
    Ok(GenerationRequest { params, prompts: vec![encode(model, &prompt, false, "messages")?] })
}

/// A completions request.
///
/// # Errors
/// As [`chat`].
pub fn completions(
    model: &ModelText,
    headers: &HeaderMap,
    bytes: &[u8],
) -> Result<GenerationRequest, ApiError> {
    let body = body(headers, bytes)?;
    let params = Params::parse(Endpoint::Completions, &body)?;
    Ok(GenerationRequest { params, prompts: prompts(&body, model)? })
}

/// The answer to a request for the tokens of a text.
///
/// # Errors
/// When it makes no sense, or the text is longer than any sequence.
pub fn tokenize(model: &ModelText, headers: &HeaderMap, bytes: &[u8]) -> Result<Value, ApiError> {
    let body = body(headers, bytes)?;
    let text = body.get("prompt").and_then(Value::as_str);
    let text = text.ok_or_else(|| ApiError::invalid("prompt", "`prompt` must be text"))?;
    let whole = body.get("add_special_tokens") != Some(&Value::Bool(false));
    let tokens = encode(model, text, whole, "prompt")?;
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
fn encode(model: &ModelText, text: &str, whole: bool, param: &str) -> Result<Vec<u32>, ApiError> {
    let most = model.max_len as usize;
    let tokens = model.tokenizer.encode_at_most(text, whole, most);
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

/// The messages of a body as templates want them: as they are, in the order of their keys, but with content as one text.
fn messages(bytes: &[u8]) -> Result<Vec<Said>, ApiError> {
    let wrong = |what: &str| ApiError::invalid("messages", format!("`messages` {what}"));
    let body: Said = serde_json::from_slice(bytes)
        .map_err(|e| ApiError::invalid("", format!("the body is not JSON: {e}")))?;
    let list = body.get_attr("messages").ok().filter(|list| list.kind() == ValueKind::Seq);
    let list = list.and_then(|list| list.try_iter().ok()).ok_or_else(|| wrong("must be a list"))?;
    let messages = list.map(|message| said(&message).map_err(|what| wrong(&what)));
    let messages = messages.collect::<Result<Vec<_>, _>>()?;
    if messages.is_empty() {
        return Err(wrong("must not be empty"));
    }
    Ok(messages)
}

/// One message; what is wrong with it otherwise.
fn said(message: &Said) -> Result<Said, String> {
    let field = |name: &str| message.get_attr(name).unwrap_or_default();
    let role = field("role").as_str().ok_or("need a `role` each")?.to_owned();
    if !matches!(role.as_str(), "system" | "developer" | "user" | "assistant" | "tool") {
        return Err(format!("cannot have the role `{role}`"));
    }
    let content = content(&field("content"), role == "assistant")?;
    let mut fields: Vec<(Said, Said)> = Vec::new();
    for name in message.try_iter().into_iter().flatten() {
        let value = match name.as_str() {
            Some("role") => Said::from(if role == "developer" { "system" } else { &role }),
            Some("content") => Said::from(content.as_str()),
            Some("tool_calls") => calls(&field("tool_calls")),
            _ => message.get_item(&name).unwrap_or_default(),
        };
        fields.push((name, value));
    }
    if !fields.iter().any(|(name, _)| name.as_str() == Some("content")) {
        fields.push((Said::from("content"), Said::from(content)));
    }
    Ok(Said::from_pairs(fields))
}

/// The text of a message; parts stand on lines of their own. An assistant that called a tool may have said nothing.
fn content(content: &Said, may_be_silent: bool) -> Result<String, String> {
    const PARTS: &str = "can have parts of type `text` only";
    match content.kind() {
        ValueKind::String => Ok(content.as_str().unwrap_or_default().to_owned()),
        ValueKind::Seq => {
            let text = |part: Said| {
                let is_text = part.get_attr("type").ok()?.as_str() == Some("text");
                part.get_attr("text").ok()?.as_str().filter(|_| is_text).map(str::to_owned)
            };
            let parts: Option<Vec<String>> = content.try_iter().map_err(|_| PARTS)?.map(text).collect();
            Ok(parts.ok_or(PARTS)?.join("\n"))
        }
        ValueKind::None | ValueKind::Undefined if may_be_silent => Ok(String::new()),
        _ => Err("need `content` as text each".to_owned()),
    }
}

/// Calls of tools with arguments as objects: OpenAI has them as text, templates do not.
fn calls(calls: &Said) -> Said {
    let changed = |map: &Said, name: &str, change: &dyn Fn(&Said) -> Said| {
        if map.kind() != ValueKind::Map {
            return map.clone();
        }
        let fields = map.try_iter().into_iter().flatten().map(|key| {
            let value = map.get_item(&key).unwrap_or_default();
            let value = if key.as_str() == Some(name) { change(&value) } else { value };
            (key, value)
        });
        Said::from_pairs(fields.collect::<Vec<_>>())
    };
    let parsed = |arguments: &Said| {
        let object = arguments.as_str().and_then(|text| serde_json::from_str::<Said>(text).ok());
        object.filter(|value| value.kind() == ValueKind::Map).unwrap_or_else(|| arguments.clone())
    };
    if calls.kind() != ValueKind::Seq {
        return calls.clone();
    }
    let calls = calls.try_iter().into_iter().flatten();
    calls
        .map(|call| changed(&call, "function", &|function| changed(function, "arguments", &parsed)))
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::messages;

    fn read(list: &serde_json::Value) -> Result<String, String> {
        let read = messages(json!({ "messages": list }).to_string().as_bytes()).map_err(|e| e.message)?;
        Ok(serde_json::to_string(&read).unwrap())
    }

    #[test]
    fn messages_are_what_templates_want() {
        let body = br#"{"messages": [{"role": "developer", "name": "a", "content": "x"}, {"content": [{"type": "text", "text": "a"},
            {"text": "b", "type": "text"}], "role": "user"}]}"#;
        assert_eq!(
            serde_json::to_string(&messages(body).unwrap()).unwrap(),
            r#"[{"role":"system","name":"a","content":"x"},{"content":"a\nb","role":"user"}]"#
        );
    }

    #[test]
    fn an_assistant_that_called_a_tool_may_have_said_nothing() {
        let call = json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"z\": 1, \"a\": 2}"}});
        let silent = json!([{"role": "assistant", "content": null, "tool_calls": [call]}]);
        let called = r#""tool_calls":[{"function":{"arguments":{"z":1,"a":2},"name":"f"},"id":"1","type":"function"}]"#;
        assert_eq!(read(&silent).unwrap(), format!(r#"[{{"content":"","role":"assistant",{called}}}]"#));
        assert!(read(&json!([{"role": "assistant", "tool_calls": []}])).unwrap().contains(r#""content":"""#));
        assert!(read(&json!([{"role": "tool", "tool_call_id": "1", "content": "42"}])).is_ok());
    }

    #[test]
    fn what_is_wrong_with_messages_is_said() {
        for (list, what) in [
            (json!([]), "must not be empty"),
            (json!("a"), "must be a list"),
            (json!(["a"]), "need a `role` each"),
            (json!([{"role": "function", "content": "a"}]), "cannot have the role `function`"),
            (json!([{"role": "user", "content": null}]), "need `content` as text each"),
            (json!([{"role": "user", "content": [{"type": "image_url"}]}]), "parts of type `text` only"),
        ] {
            let error = read(&list).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
    }
}
