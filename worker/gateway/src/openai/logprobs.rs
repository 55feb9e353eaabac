//! Log-probabilities in the shapes of both endpoints.

use dunlin_model::Tokenizer;
use serde_json::{Map, Value, json};

/// One token with its log-probability and the likeliest ones.
#[derive(Clone, Debug, Default)]
pub struct TokenLogProb {
    /// The token.
    pub token: u32,
    /// Its own.
    pub logprob: f32,
    /// The likeliest.
    pub top: Vec<(u32, f32)>,
}

fn text(tokenizer: &Tokenizer, token: u32) -> String {
    String::from_utf8_lossy(tokenizer.token_bytes(token)).into_owned()
}

fn entry(tokenizer: &Tokenizer, token: u32, logprob: f32) -> Value {
    json!({"token": text(tokenizer, token), "logprob": logprob, "bytes": tokenizer.token_bytes(token)})
}

/// `{"content": [...]}` of chat completions.
pub fn chat(tokenizer: &Tokenizer, tokens: &[TokenLogProb]) -> Value {
    let content: Vec<Value> = tokens
        .iter()
        .map(|t| {
            let mut own = entry(tokenizer, t.token, t.logprob);
            own["top_logprobs"] =
                t.top.iter().map(|&(token, logprob)| entry(tokenizer, token, logprob)).collect();
            own
        })
        .collect();
    json!({"content": content})
}

/// The four lists of completions; `offset` is where the first token's text begins.
pub fn completions(tokenizer: &Tokenizer, tokens: &[TokenLogProb], mut offset: usize) -> Value {
    let mut offsets = Vec::new();
    for t in tokens {
        offsets.push(offset);
        offset += text(tokenizer, t.token).chars().count();
    }
    let top: Vec<Value> = tokens
        .iter()
        .map(|t| {
            t.top.iter().map(|&(token, p)| (text(tokenizer, token), json!(p))).collect::<Map<_, _>>().into()
        })
        .collect();
    json!({
        "tokens": tokens.iter().map(|t| text(tokenizer, t.token)).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|t| t.logprob).collect::<Vec<_>>(),
        "top_logprobs": top,
        "text_offset": offsets,
    })
}
