//! Parameters of a request: every one that this or another server knows is honoured or refused, if it would change the answer.

use dunlin_protocol::SamplingParams;
use dunlin_protocol::sampling::{LOGIT_BIAS_MAX, LOGPROBS_MAX};
use serde_json::{Map, Value};

use super::error::ApiError;

/// Answers to one prompt.
const N_MAX: u64 = 8;
const STOP_MAX: usize = 16;
const STOP_BYTES_MAX: usize = 1024;

/// The endpoint that a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
}

/// What a client asks for, beside the prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// The model's name, if given.
    pub model: Option<String>,
    /// Stream?
    pub stream: bool,
    /// A last chunk with the usage?
    pub include_usage: bool,
    /// Tokens of the answer at most.
    pub max_tokens: Option<u32>,
    /// Answers.
    pub n: u32,
    /// Stop strings.
    pub stop: Vec<String>,
    /// Go on after the model's end.
    pub ignore_eos: bool,
    /// Report the ids of tokens.
    pub return_token_ids: bool,
    /// How to choose tokens; the seed is 0 when none is given.
    pub sampling: SamplingParams,
    /// A seed was given.
    pub seeded: bool,
}

/// What other servers know and this one does not, with the values that ask for nothing. Any other value would change the answer, so it is
/// refused; fields that no server knows cannot.
const UNSUPPORTED: &[(&str, &[&str])] = &[
    // OpenAI's.
    ("audio", &[]),
    ("best_of", &["1"]),
    ("echo", &["false"]),
    ("function_call", &["\"none\"", "\"auto\""]),
    ("functions", &["[]"]),
    ("modalities", &[r#"["text"]"#]),
    ("response_format", &[r#"{"type":"text"}"#]),
    ("suffix", &["\"\""]),
    ("tool_choice", &["\"none\"", "\"auto\""]),
    ("tools", &["[]"]),
    ("web_search_options", &[]),
    // vLLM's and llama.cpp's.
    ("add_generation_prompt", &["true"]),
    ("add_special_tokens", &[]),
    ("allowed_token_ids", &["[]"]),
    ("bad_words", &["[]"]),
    ("chat_template", &[]),
    ("chat_template_kwargs", &["{}"]),
    ("continue_final_message", &["false"]),
    ("documents", &["[]"]),
    ("dry_multiplier", &["0", "0.0"]),
    ("dynatemp_range", &["0", "0.0"]),
    ("grammar", &["\"\""]),
    ("guided_choice", &[]),
    ("guided_grammar", &[]),
    ("guided_json", &[]),
    ("guided_regex", &[]),
    ("include_stop_str_in_output", &["false"]),
    ("json_schema", &["{}"]),
    ("length_penalty", &["1", "1.0"]),
    ("logits_processors", &["[]"]),
    ("min_tokens", &["0"]),
    ("mirostat", &["0"]),
    ("n_predict", &[]),
    ("n_probs", &["0"]),
    ("prompt_logprobs", &["0"]),
    ("repeat_penalty", &["1", "1.0"]),
    ("skip_special_tokens", &["true"]),
    ("stop_token_ids", &["[]"]),
    ("structured_outputs", &["{}"]),
    ("tfs_z", &["1", "1.0"]),
    ("top_a", &["0", "0.0"]),
    ("truncate_prompt_tokens", &["-1"]),
    ("typical_p", &["1", "1.0"]),
    ("use_beam_search", &["false"]),
    ("xtc_probability", &["0", "0.0"]),
];

struct Fields<'a>(&'a Map<String, Value>);

impl Fields<'_> {
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|v| !v.is_null())
    }

    fn bool(&self, name: &str) -> Result<bool, ApiError> {
        let Some(value) = self.get(name) else { return Ok(false) };
        value.as_bool().ok_or_else(|| ApiError::invalid(name, format!("`{name}` must be true or false")))
    }

    fn integer(&self, name: &str, low: u64, high: u64) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        // Languages with one kind of number write 4.0.
        let whole =
            || value.as_f64().filter(|v| v.fract() == 0.0 && (0.0..=9e15).contains(v)).map(|v| v as u64);
        let number = value.as_u64().or_else(whole).filter(|v| (low..=high).contains(v));
        let wrong =
            || ApiError::invalid(name, format!("`{name}` must be a whole number between {low} and {high}"));
        number.map(Some).ok_or_else(wrong)
    }

    fn number(&self, name: &str, low: f64, high: f64, default: f64) -> Result<f32, ApiError> {
        let Some(value) = self.get(name) else { return Ok(default as f32) };
        let number = value.as_f64().filter(|v| (low..=high).contains(v)).map(|v| v as f32);
        number.ok_or_else(|| {
            ApiError::invalid(name, format!("`{name}` must be a number between {low} and {high}"))
        })
    }
}

impl Params {
    /// Reads and checks everything but the prompt.
    ///
    /// # Errors
    /// 400, naming the parameter.
    pub fn parse(endpoint: Endpoint, body: &Map<String, Value>) -> Result<Self, ApiError> {
        let f = Fields(body);
        refuse_unsupported(endpoint, body)?;
        let model = match f.get("model") {
            None => None,
            Some(Value::String(model)) => Some(model.clone()),
            Some(_) => return Err(ApiError::invalid("model", "`model` must be text")),
        };
        let stream = f.bool("stream")?;
        // A whole answer has its usage anyway.
        let include_usage = f.get("stream_options").is_some_and(|o| o["include_usage"] == Value::Bool(true));
        let max = f.integer("max_completion_tokens", 1, u64::from(u32::MAX))?;
        let max = max.or(f.integer("max_tokens", 1, u64::from(u32::MAX))?);
        let max_tokens = match (max, endpoint) {
            (Some(max), _) => u32::try_from(max).ok(),
            // OpenAI's default for completions.
            (None, Endpoint::Completions) => Some(16),
            (None, Endpoint::Chat) => None,
        };
        let seed = match f.get("seed") {
            None => None,
            Some(seed) => {
                let number = seed.as_i64().map(i64::cast_unsigned).or(seed.as_u64());
                Some(number.ok_or_else(|| ApiError::invalid("seed", "`seed` must be a whole number"))?)
            }
        };
        let sampling = SamplingParams {
            temperature: f.number("temperature", 0.0, 2.0, 1.0)?,
            top_k: top_k(&f)?,
            top_p: f.number("top_p", 0.0, 1.0, 1.0)?,
            min_p: f.number("min_p", 0.0, 1.0, 0.0)?,
            repetition_penalty: f.number("repetition_penalty", 0.01, 10.0, 1.0)?,
            presence_penalty: f.number("presence_penalty", -2.0, 2.0, 0.0)?,
            frequency_penalty: f.number("frequency_penalty", -2.0, 2.0, 0.0)?,
            logit_bias: logit_bias(f.get("logit_bias"))?,
            seed: seed.unwrap_or(0),
            logprobs: logprobs(endpoint, &f)?,
        };
        Ok(Self {
            model,
            stream,
            include_usage,
            max_tokens,
            n: f.integer("n", 1, N_MAX)?.unwrap_or(1) as u32,
            stop: stop(f.get("stop"))?,
            ignore_eos: f.bool("ignore_eos")?,
            return_token_ids: f.bool("return_token_ids")?,
            sampling,
            seeded: seed.is_some(),
        })
    }
}

fn refuse_unsupported(endpoint: Endpoint, body: &Map<String, Value>) -> Result<(), ApiError> {
    for (name, nothing) in UNSUPPORTED {
        let Some(value) = body.get(*name).filter(|value| !value.is_null()) else { continue };
        let text = value.to_string();
        // Chats have their special tokens from the template, other texts from the tokenizer.
        let usual = *name == "add_special_tokens" && *value == Value::Bool(endpoint == Endpoint::Completions);
        if !usual && !nothing.contains(&text.as_str()) {
            return Err(ApiError::unsupported(name));
        }
    }
    // The other endpoint's prompt would not be read.
    let other = if endpoint == Endpoint::Chat { "prompt" } else { "messages" };
    match body.get(other) {
        Some(value) if !value.is_null() => Err(ApiError::unsupported(other)),
        _ => Ok(()),
    }
}

/// vLLM takes -1 and 0 for "all".
fn top_k(f: &Fields<'_>) -> Result<u32, ApiError> {
    if f.get("top_k").and_then(Value::as_i64) == Some(-1) {
        return Ok(0);
    }
    Ok(f.integer("top_k", 0, u64::from(u32::MAX))?.unwrap_or(0) as u32)
}

fn logit_bias(value: Option<&Value>) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(value) = value else { return Ok(Vec::new()) };
    let entries = value.as_object().filter(|o| o.len() <= LOGIT_BIAS_MAX);
    let parse = |(token, bias): (&String, &Value)| {
        let bias = bias.as_f64().filter(|b| (-100.0..=100.0).contains(b))?;
        Some((token.parse().ok()?, bias as f32))
    };
    entries.and_then(|o| o.iter().map(parse).collect()).ok_or_else(|| {
        let message = format!(
            "`logit_bias` must map at most {LOGIT_BIAS_MAX} token ids to numbers between -100 and 100"
        );
        ApiError::invalid("logit_bias", message)
    })
}

fn logprobs(endpoint: Endpoint, f: &Fields<'_>) -> Result<Option<u8>, ApiError> {
    let most = u64::from(LOGPROBS_MAX);
    match endpoint {
        Endpoint::Completions => Ok(f.integer("logprobs", 0, most)?.map(|n| n as u8)),
        Endpoint::Chat => {
            let top = f.integer("top_logprobs", 0, most)?;
            let wanted = f.bool("logprobs")?;
            if top.is_some_and(|top| top > 0) && !wanted {
                return Err(ApiError::invalid("top_logprobs", "`top_logprobs` needs `logprobs`: true"));
            }
            Ok(wanted.then(|| top.unwrap_or(0) as u8))
        }
    }
}

fn stop(value: Option<&Value>) -> Result<Vec<String>, ApiError> {
    let list = match value {
        None => return Ok(Vec::new()),
        Some(Value::String(one)) => Some(vec![one.clone()]),
        Some(Value::Array(many)) => many.iter().map(|v| v.as_str().map(str::to_owned)).collect(),
        Some(_) => None,
    };
    let sound = |list: &Vec<String>| {
        list.len() <= STOP_MAX && list.iter().all(|s| !s.is_empty() && s.len() <= STOP_BYTES_MAX)
    };
    list.filter(sound).ok_or_else(|| {
        let message = format!("`stop` must be text or a list of at most {STOP_MAX} texts, none empty or longer than {STOP_BYTES_MAX} bytes");
        ApiError::invalid("stop", message)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Endpoint, Params};

    fn parse(endpoint: Endpoint, body: &Value) -> Result<Params, String> {
        Params::parse(endpoint, body.as_object().unwrap())
            .map_err(|e| format!("{}: {}", e.param.unwrap_or_default(), e.message))
    }

    #[test]
    fn defaults_are_openai_s() {
        let p = parse(Endpoint::Chat, &json!({"messages": []})).unwrap();
        assert_eq!((p.n, p.stream, p.max_tokens, p.sampling.temperature), (1, false, None, 1.0));
        assert_eq!(parse(Endpoint::Completions, &json!({})).unwrap().max_tokens, Some(16));
    }

    #[test]
    fn what_would_change_the_answer_is_refused_by_name() {
        for body in [
            json!({"tools": [{"type": "function"}]}),
            json!({"response_format": {"type": "json_object"}}),
            json!({"best_of": 3}),
            json!({"tool_choice": "required"}),
            json!({"chat_template_kwargs": {"enable_thinking": false}}),
            json!({"repeat_penalty": 1.1}),
            json!({"stop_token_ids": [1]}),
            json!({"add_special_tokens": true}),
            json!({"prompt": "a"}),
            json!({"max_tokens": 1.5}),
            json!({"temperature": 3}),
            json!({"temperature": "hot"}),
            json!({"n": 99}),
            json!({"stop": ["a", ""]}),
            json!({"logit_bias": {"x": 1}}),
            json!({"top_logprobs": 3}),
            json!({"max_tokens": 0}),
        ] {
            let name = body.as_object().unwrap().keys().next().unwrap().clone();
            let error = parse(Endpoint::Chat, &body).unwrap_err();
            assert!(error.starts_with(&format!("{name}: ")), "{body}: {error}");
        }
    }

    #[test]
    fn what_asks_for_nothing_is_taken() {
        let body = json!({
            "user": "u", "tools": [], "response_format": {"type": "text"}, "seed": null, "best_of": 1, "echo": false,
        });
        assert!(parse(Endpoint::Completions, &body).is_ok());
        for body in [
            json!({"tool_choice": "auto", "functions": [], "function_call": "none", "parallel_tool_calls": false}),
            json!({"reasoning_effort": "low", "verbosity": "medium", "modalities": ["text"], "prediction": null}),
            json!({"chat_template_kwargs": {}, "skip_special_tokens": true, "add_generation_prompt": true}),
            json!({"store": true, "metadata": {"a": "b"}, "service_tier": "auto", "cache_prompt": true}),
            json!({"logprobs": false, "top_logprobs": 0, "stop": [], "no_such_thing": 1, "add_special_tokens": false}),
            json!({"stream_options": {"include_usage": true}}),
        ] {
            assert!(parse(Endpoint::Chat, &body).is_ok(), "{body}");
        }
        let completion = json!({"add_special_tokens": true, "min_tokens": 0});
        assert!(parse(Endpoint::Completions, &completion).is_ok());
        assert_eq!(parse(Endpoint::Chat, &json!({"max_tokens": 4.0})).unwrap().max_tokens, Some(4));
    }
}
