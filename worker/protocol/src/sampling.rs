//! How the next token is chosen, and why a sequence ended.

use serde::{Deserialize, Serialize};

/// Most alternatives whose log-probabilities may be asked for per token.
pub const LOGPROBS_MAX: u8 = 20;
/// Most entries of a logit bias.
pub const LOGIT_BIAS_MAX: usize = 1024;

/// Parameters of the sampler. The choice at a position depends on the logits, these and the tokens before it alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the `k` likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the likeliest tokens whose probabilities add up to this; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this likely relative to the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen before; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Subtracted once from logits of tokens generated before.
    pub presence_penalty: f32,
    /// Subtracted from logits of tokens generated before, once per occurrence.
    pub frequency_penalty: f32,
    /// Added to logits, by token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seeds the generator together with the position.
    pub seed: u64,
    /// How many alternatives to report; `None` reports no log-probabilities at all.
    pub logprobs: Option<u8>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: None,
        }
    }
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum FinishReason {
    /// The model said so.
    Eos,
    /// As many tokens as were asked for.
    Length,
}
