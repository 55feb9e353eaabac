//! What the forward pass needs to know beside the weights.

use dunlin_kernels::{RopeLayout, RopeScaling};

use crate::error::ModelError;

/// Largest and smallest factor of a rope scaling.
const FACTORS: std::ops::RangeInclusive<f64> = 1e-3..=1e6;

/// Everything that the forward pass needs to know beside the weights.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// `llama`, `mistral`, `qwen2`, `qwen3`.
    pub architecture: String,
    /// Decoder blocks.
    pub layers: u32,
    /// Width of a row.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; a multiple of 8 up to 256.
    pub head_dim: usize,
    /// Width inside of the feed-forward part.
    pub ffn: usize,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Epsilon of the norms.
    pub rms_eps: f32,
    /// Base of the rotary embedding.
    pub rope_base: f64,
    /// How the frequencies of the rotary embedding are stretched for longer contexts.
    pub rope_scaling: RopeScaling,
    /// Which values of a head are rotated as a pair.
    pub rope_layout: RopeLayout,
    /// Positions the model was made for.
    pub context_length: u32,
    /// Queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Each head of queries and keys is normed before it is rotated (Qwen3 Technical Report, section 2).
    pub qk_norm: bool,
    /// The output matrix is the embedding.
    pub tied: bool,
}

impl ModelConfig {
    /// Bounds that no real model comes near, and relations that the kernels rely on.
    ///
    /// # Errors
    /// The first that is broken.
    pub fn validate(&self, file: &str) -> Result<(), ModelError> {
        let wrong =
            |what: String| Err(ModelError::Malformed { file: file.to_owned(), format: "model", what });
        let bounds = [
            ("layers", self.layers as usize, 4096),
            ("hidden", self.hidden, 1 << 17),
            ("heads", self.heads, 1 << 12),
            ("kv_heads", self.kv_heads, 1 << 12),
            ("ffn", self.ffn, 1 << 20),
            ("vocab", self.vocab, 1 << 22),
            ("context_length", self.context_length as usize, 1 << 24),
        ];
        for (name, value, limit) in bounds {
            if value == 0 || value > limit {
                return wrong(format!("{name} is {value}, not between 1 and {limit}"));
            }
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(8) || self.head_dim > 256 {
            return Err(ModelError::Refused {
                what: format!("{file}: the head dimension is {}", self.head_dim),
                remedy: "multiples of 8 up to 256 run here".to_owned(),
            });
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return wrong(format!("{} heads are not a multiple of {} KV heads", self.heads, self.kv_heads));
        }
        if !(self.rms_eps.is_finite()
            && self.rms_eps >= 0.0
            && self.rope_base.is_finite()
            && self.rope_base > 1.0)
        {
            return wrong(format!("rms epsilon {} or rope base {}", self.rms_eps, self.rope_base));
        }
        let factors = FACTORS;
        let sound = match &self.rope_scaling {
            RopeScaling::None => true,
            RopeScaling::Linear(by) => factors.contains(by),
            RopeScaling::Llama3 {
                factor: by,
                low_freq_factor: low,
                high_freq_factor: high,
                original_context,
            } => {
                [by, low, high].into_iter().all(|by| factors.contains(by))
                    && low < high
                    && (1.0..=1e9).contains(original_context)
            }
            RopeScaling::Divided(by) => {
                by.len() == self.head_dim / 2 && by.iter().all(|by| factors.contains(by))
            }
        };
        if !sound {
            return wrong(format!(
                "the rope scaling is out of bounds: factors are between {} and {}, and the low one is below the high one",
                factors.start(),
                factors.end()
            ));
        }
        Ok(())
    }

    /// Width of all query heads.
    #[must_use]
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key heads.
    #[must_use]
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}
