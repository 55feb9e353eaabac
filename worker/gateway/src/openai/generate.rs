//! One answer: from a running session to pieces of text.

use std::sync::Arc;
use std::time::Duration;

use dunlin_protocol::{FinishReason, SessionId};
use tokio::time::Instant;

use super::error::ApiError;
use super::logprobs::TokenLogProb;
use super::params::Params;
use crate::driver::{Answer, Event, Generation, Handle};
use crate::metrics::GatewayMetrics;
use crate::model_text::{ModelText, ServedAdapter};
use crate::text::{Counter, TextWriter};

/// A part of an answer.
#[derive(Clone, Debug, Default)]
pub struct Piece {
    /// Text that is certain.
    pub text: String,
    /// The token it came with, if any.
    pub token: Option<TokenLogProb>,
    /// `stop` or `length`, with the last piece.
    pub finish: Option<&'static str>,
}

/// A session whose tokens become text.
pub struct Choice {
    answer: Answer,
    writer: TextWriter,
    /// All text so far, what a stop string may yet take back included: only its characters are counted.
    counter: Counter,
    model: Arc<ModelText>,
    metrics: Arc<GatewayMetrics>,
    began: Instant,
    last: Instant,
    /// Tokens so far.
    pub tokens: u32,
    over: bool,
}

/// The sequence of answer number `index` to a prompt: the rows of an adapter, the prompt, room for the answer.
///
/// # Errors
/// When it does not fit, or has a token that the model does not know: behind the vocabulary are the rows of adapters, and no client may
/// name those.
fn generation(
    model: &ModelText,
    adapter: Option<&ServedAdapter>,
    prompt: &[u32],
    params: &Params,
    index: u32,
    limit: Duration,
) -> Result<Generation, ApiError> {
    if prompt.iter().any(|token| *token >= model.vocab) {
        return Err(ApiError::invalid(
            "prompt",
            "the prompt has a token that is not in the model's vocabulary",
        ));
    }
    let rows = adapter.map_or(0..0, |a| a.prompt.clone());
    let most = (model.max_len as usize).saturating_sub(rows.len());
    let room = most.saturating_sub(prompt.len()) as u32;
    if room == 0 || params.max_tokens.is_some_and(|max| max > room) {
        return Err(ApiError::too_long(prompt.len(), most));
    }
    let mut sampling = params.sampling.clone();
    sampling.seed = sampling.seed.wrapping_add(u64::from(index));
    let tokens: Vec<u32> = rows.chain(prompt.iter().copied()).collect();
    Ok(Generation {
        max_len: tokens.len() as u32 + params.max_tokens.unwrap_or(room),
        tokens,
        sampling,
        windows: model.windows.clone(),
        eos: if params.ignore_eos { Vec::new() } else { model.tokenizer.eos().to_vec() },
        adapter: adapter.map(|a| Arc::clone(&a.name)),
        limit,
    })
}

impl Choice {
    /// Starts answer number `index` to a prompt.
    ///
    /// # Errors
    /// When it does not fit, or the gateway does not take it.
    #[expect(clippy::too_many_arguments, reason = "what an answer is made of")]
    pub async fn start(
        handle: &Handle,
        model: &Arc<ModelText>,
        metrics: &Arc<GatewayMetrics>,
        adapter: Option<&ServedAdapter>,
        prompt: &[u32],
        params: &Params,
        index: u32,
        limit: Duration,
    ) -> Result<Self, ApiError> {
        let generation = generation(model, adapter, prompt, params, index, limit)?;
        let answer = handle.submit(generation).await?;
        metrics.prompt(prompt.len());
        let now = Instant::now();
        Ok(Self {
            answer,
            writer: TextWriter::new(params.stop.clone()),
            counter: Counter::default(),
            model: Arc::clone(model),
            metrics: Arc::clone(metrics),
            began: now,
            last: now,
            tokens: 0,
            over: false,
        })
    }

    /// Its session, by which logs and `/swarm` name it.
    pub fn session(&self) -> SessionId {
        self.answer.session()
    }

    /// The next piece; `None` after the one that has `finish`.
    pub async fn next(&mut self) -> Option<Result<Piece, ApiError>> {
        if self.over {
            return None;
        }
        Some(match self.answer.next().await {
            Some(Event::Token { token, logprob, top }) => {
                let now = Instant::now();
                self.metrics.token(now - self.last, self.tokens == 0);
                self.last = now;
                self.tokens += 1;
                let text = self.writer.push(&self.model.tokenizer, token);
                let offset = self.counter.push(&self.model.tokenizer, token);
                let finish = self.writer.stopped().then(|| self.finished("stop"));
                Ok(Piece { text, token: Some(TokenLogProb { token, logprob, top, offset }), finish })
            }
            Some(Event::Finished(reason)) => {
                let text = self.writer.finish();
                let reason =
                    if reason == FinishReason::Eos || self.writer.stopped() { "stop" } else { "length" };
                Ok(Piece { text, token: None, finish: Some(self.finished(reason)) })
            }
            Some(Event::Failed(failure)) => {
                self.over = true;
                Err(failure.into())
            }
            None => {
                self.over = true;
                Err(ApiError::ending())
            }
        })
    }

    fn finished(&mut self, reason: &'static str) -> &'static str {
        self.over = true;
        self.metrics.finished(reason, self.began.elapsed());
        reason
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::super::params::{Endpoint, Params};
    use super::generation;
    use crate::driver::Generation;
    use crate::testing::{VOCAB, model};

    fn started(name: &str, prompt: &[u32], max_tokens: u32) -> Result<Generation, String> {
        let body = json!({"max_tokens": max_tokens});
        let params = Params::parse(Endpoint::Completions, body.as_object().unwrap()).unwrap();
        let model = model();
        let limit = Duration::from_secs(1);
        generation(&model, model.adapter(name), prompt, &params, 0, limit).map_err(|e| e.message)
    }

    #[test]
    fn the_rows_of_a_prompt_stand_before_everything_and_count_in_the_length() {
        let base = started("base", &[298, 5, 6], 17).unwrap();
        assert_eq!((base.tokens, base.max_len, base.adapter), (vec![298, 5, 6], 20, None));
        let lora = started("lora", &[298, 5, 6], 17).unwrap();
        assert_eq!((lora.tokens, lora.max_len, lora.adapter.as_deref()), (vec![298, 5, 6], 20, Some("lora")));
        let prompt = started("prompt", &[298, 5, 6], 14).unwrap();
        assert_eq!(prompt.tokens, [VOCAB, VOCAB + 1, VOCAB + 2, 298, 5, 6]);
        assert_eq!((prompt.max_len, prompt.adapter.as_deref()), (20, Some("prompt")));
        assert!(started("prompt", &[298, 5, 6], 15).unwrap_err().contains("context length is 17 tokens"));
    }

    #[test]
    fn no_client_names_rows_of_an_adapter() {
        for name in ["base", "lora", "prompt"] {
            assert!(started(name, &[1, VOCAB], 4).unwrap_err().contains("not in the model's vocabulary"));
        }
    }
}
