//! A model as a value.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use dunlin_kernels::RopeScaling;

use crate::error::ModelError;
use crate::spec::{BlockSpec, Projection, Rotary};

/// Largest and smallest factor of a rope scaling.
const FACTORS: RangeInclusive<f64> = 1e-3..=1e6;

/// Everything that the forward pass needs to know beside the weights.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family: `llama`, `mistral`, `qwen2`, ...
    pub architecture: String,
    /// Decoder blocks.
    pub layers: u32,
    /// Width of a row.
    pub hidden: usize,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Positions the model was made for.
    pub context_length: u32,
    /// The output matrix is the embedding.
    pub tied: bool,
    /// What rows of the embedding are multiplied by before the first block, if they are.
    pub embedding_scale: Option<f32>,
    /// The block of every layer that is not in `other_blocks`.
    pub block: BlockSpec,
    /// Those of other layers. They differ in how they turn and in what rows see, never in their tensors: a page of KV cache has one size, and a
    /// planner may move any layer anywhere.
    pub other_blocks: BTreeMap<u32, BlockSpec>,
}

impl ModelConfig {
    /// The block of a layer.
    #[must_use]
    pub fn block(&self, layer: u32) -> &BlockSpec {
        self.other_blocks.get(&layer).unwrap_or(&self.block)
    }

    /// All kinds of blocks that there are.
    pub fn blocks(&self) -> impl Iterator<Item = &BlockSpec> {
        std::iter::once(&self.block).chain(self.other_blocks.values())
    }

    /// By layer the positions that its rows see; all when none.
    pub fn windows(&self) -> impl Iterator<Item = Option<u32>> {
        (0..self.layers).map(|layer| self.block(layer).attention.window)
    }

    /// Gives `block` to all layers for which `which` holds.
    pub(crate) fn vary(&mut self, block: &BlockSpec, which: impl Fn(u32) -> bool) {
        let layers = (0..self.layers).filter(|layer| which(*layer));
        self.other_blocks.extend(layers.map(|layer| (layer, block.clone())));
        if self.other_blocks.len() == self.layers as usize {
            self.block = block.clone();
            self.other_blocks.clear();
        }
    }

    /// Ways of turning, each once.
    #[must_use]
    pub fn rotaries(&self) -> Vec<&Rotary> {
        let mut out: Vec<&Rotary> = Vec::new();
        for block in self.blocks() {
            if !out.contains(&&block.rotary) {
                out.push(&block.rotary);
            }
        }
        out
    }

    /// The longest sequence that is trained: inside of a window it changes nothing.
    #[must_use]
    pub fn trained_length_max(&self) -> u32 {
        self.blocks().filter_map(|block| block.attention.window).fold(self.context_length, u32::min)
    }

    /// Bounds that no real model comes near, and relations that the kernels rely on.
    ///
    /// # Errors
    /// The first that is broken.
    pub fn validate(&self, file: &str) -> Result<(), ModelError> {
        let wrong =
            |what: String| Err(ModelError::Malformed { file: file.to_owned(), format: "model", what });
        let BlockSpec { attention, mlp, norm, .. } = &self.block;
        let bounds = [
            ("layers", self.layers as usize, 4096),
            ("hidden", self.hidden, 1 << 17),
            ("heads", attention.heads, 1 << 12),
            ("kv_heads", attention.kv_heads, 1 << 12),
            ("ffn", mlp.width, 1 << 20),
            ("vocab", self.vocab, 1 << 22),
            ("context_length", self.context_length as usize, 1 << 24),
        ];
        for (name, value, limit) in bounds {
            if value == 0 || value > limit {
                return wrong(format!("{name} is {value}, not between 1 and {limit}"));
            }
        }
        let head_dim = attention.head_dim;
        if head_dim == 0 || !head_dim.is_multiple_of(8) || head_dim > 256 {
            return Err(ModelError::Refused {
                what: format!("{file}: the head dimension is {head_dim}"),
                remedy: "multiples of 8 up to 256 run here".to_owned(),
            });
        }
        if !attention.heads.is_multiple_of(attention.kv_heads) {
            let (heads, kv_heads) = (attention.heads, attention.kv_heads);
            return wrong(format!("{heads} heads are not a multiple of {kv_heads} KV heads"));
        }
        if self.embedding_scale.is_some_and(|scale| !scale.is_finite()) {
            return wrong("its embedding is not multiplied by a number".to_owned());
        }
        for block in self.blocks() {
            let base = block.rotary.base;
            if !(norm.eps.is_finite() && norm.eps >= 0.0 && base.is_finite() && base > 1.0) {
                return wrong(format!("rms epsilon {} or rope base {base}", norm.eps));
            }
            if block.attention.window == Some(0) {
                return wrong("a window of no positions".to_owned());
            }
            if block.attention.scale.is_some_and(|scale| !(scale.is_finite() && scale > 0.0)) {
                return wrong("attention is not scaled by a number above 0".to_owned());
            }
            if !sound(&block.rotary.scaling, head_dim) {
                return wrong(format!(
                    "the rope scaling is out of bounds: factors are between {} and {}, as many as pairs, and the low one is below the high one",
                    FACTORS.start(),
                    FACTORS.end()
                ));
            }
            debug_assert_eq!(
                block.tensors(self.hidden),
                self.block.tensors(self.hidden),
                "layers have the same tensors"
            );
        }
        Ok(())
    }

    /// Width of all query heads.
    #[must_use]
    pub fn q_width(&self) -> usize {
        self.block.attention.q_width()
    }

    /// Width of all key heads.
    #[must_use]
    pub fn kv_width(&self) -> usize {
        self.block.attention.kv_width()
    }

    /// Outputs and inputs of a matrix.
    #[must_use]
    pub fn matrix(&self, which: Projection) -> (usize, usize) {
        self.block.matrix(which, self.hidden)
    }
}

/// Are all numbers of a scaling within bounds?
fn sound(scaling: &RopeScaling, head_dim: usize) -> bool {
    let within = |by: &f64| FACTORS.contains(by);
    let context = |positions: &f64| (1.0..=1e9).contains(positions);
    let divisors = |by: &[f64]| by.len() == head_dim / 2 && by.iter().all(within);
    let magnitude = |by: &f32| within(&f64::from(*by));
    match scaling {
        RopeScaling::None => true,
        RopeScaling::Linear(by) => within(by),
        RopeScaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_context } => {
            [factor, low, high].into_iter().all(within) && low < high && context(original_context)
        }
        RopeScaling::Divided { by, magnitude: m } => divisors(by) && magnitude(m),
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original_context, magnitude: by, .. } => {
            [factor, beta_fast, beta_slow].into_iter().all(within)
                && beta_slow < beta_fast
                && context(original_context)
                && magnitude(by)
        }
    }
}
