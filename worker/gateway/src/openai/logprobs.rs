//! Log-probabilities in the shapes of both endpoints.

use dunlin_model::Tokenizer;
use serde_json::{Map, Value, json};

/// One token with its log-probability and the likeliest ones.
#[derive(Clone, Debug, Default)]
pub struct TokenLogProb {
    /// Index of the token in the vocabulary.
    pub token: u32,
    /// Log-probability of the token, in nats.
    pub logprob: f32,
    /// The likeliest tokens at this place, with theirs.
    pub top: Vec<(u32, f32)>,
    /// Where its text begins: characters of the answer that are whole before it.
    pub offset: usize,
}

/// What a token is called: its text, or its name if it stands for none.
fn text(tokenizer: &Tokenizer, token: u32) -> String {
    tokenizer
        .token_name(token)
        .unwrap_or_else(|| String::from_utf8_lossy(tokenizer.token_bytes(token)).into_owned())
}

fn entry(tokenizer: &Tokenizer, token: u32, logprob: f32) -> Value {
    // OpenAI's way to say that a token stands for no text.
    let bytes = Some(tokenizer.token_bytes(token)).filter(|bytes| !bytes.is_empty());
    json!({"token": text(tokenizer, token), "logprob": logprob, "bytes": bytes})
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

/// The four lists of completions.
pub fn completions(tokenizer: &Tokenizer, tokens: &[TokenLogProb]) -> Value {
    json!({
        "tokens": tokens.iter().map(|t| key(tokenizer, t.token)).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|t| t.logprob).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(|t| likeliest(tokenizer, &t.top)).collect::<Vec<_>>(),
        "text_offset": tokens.iter().map(|t| t.offset).collect::<Vec<_>>(),
    })
}

/// What completions call a token. Bytes that are no whole characters are spelt as OpenAI spells them: `bytes:\xf0\x9f`.
fn key(tokenizer: &Tokenizer, token: u32) -> String {
    let bytes = tokenizer.token_bytes(token);
    if std::str::from_utf8(bytes).is_ok() {
        return text(tokenizer, token);
    }
    bytes.iter().fold("bytes:".to_owned(), |spelt, byte| spelt + &format!("\\x{byte:02x}"))
}

/// The likeliest tokens by what they are called. One that is called nothing, or as a likelier one is, has its number: `token_id:7`.
fn likeliest(tokenizer: &Tokenizer, top: &[(u32, f32)]) -> Value {
    let mut map = Map::new();
    for &(token, logprob) in top {
        let mut key = key(tokenizer, token);
        if key.is_empty() || map.contains_key(&key) {
            key = format!("token_id:{token}");
        }
        map.insert(key, json!(logprob));
    }
    map.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::model;

    #[test]
    fn every_token_has_an_entry_whatever_it_is_called() {
        let tokenizer = model().tokenizer;
        // A letter, two halves of characters, the token that ends sequences, two that the tokenizer does not know.
        let top: Vec<(u32, f32)> = [97, 0xc3, 0xf0, 299, 1000, 1001].map(|token| (token, -1.0)).to_vec();
        let token = TokenLogProb { token: 299, top, ..TokenLogProb::default() };
        let lists = completions(&tokenizer, std::slice::from_ref(&token));
        let keys: Vec<&String> = lists["top_logprobs"][0].as_object().unwrap().keys().collect();
        assert_eq!(keys, ["</s>", "a", "bytes:\\xc3", "bytes:\\xf0", "token_id:1000", "token_id:1001"]);
        assert_eq!(lists["tokens"], json!(["</s>"]));
        let chat = chat(&tokenizer, &[token]);
        assert_eq!(
            (&chat["content"][0]["token"], &chat["content"][0]["bytes"]),
            (&json!("</s>"), &Value::Null)
        );
        assert_eq!(chat["content"][0]["top_logprobs"].as_array().unwrap().len(), 6);
    }
}
