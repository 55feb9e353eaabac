//! A whole model in one process, one sequence at a time: for tests, perplexity and comparisons.

use dunlin_kernels::{PAGE, Pool};
use dunlin_protocol::SamplingParams;

use crate::adapter::Adapter;
use crate::block::{Block, BlockWeights, KvPages, RowOf};
use crate::error::ModelError;
use crate::file::ModelFile;
use crate::sampler::{Sampled, sample};
use crate::weights::{Embedding, Head, LayerWeights};

/// All layers of a model and the KV cache of one sequence.
pub struct Whole {
    pool: Pool,
    block: Block,
    embedding: Embedding,
    layers: Vec<LayerWeights>,
    head: Head,
    adapter: Option<Adapter>,
    hidden: usize,
    kv: Vec<KvPages>,
    len: usize,
}

impl Whole {
    /// Loads everything.
    ///
    /// # Errors
    /// When a tensor is missing, of another shape, or cannot be read.
    pub fn load(file: &ModelFile, pool: Pool, positions_max: usize) -> Result<Self, ModelError> {
        let config = file.config();
        let embedding = Embedding::load(file)?;
        let head = Head::load(file, Some(&embedding))?;
        let layers =
            (0..config.layers).map(|i| LayerWeights::load(file, i)).collect::<Result<Vec<_>, _>>()?;
        let block = Block::new(config, positions_max);
        let kv = layers.iter().map(|_| KvPages::default()).collect();
        Ok(Self { pool, block, embedding, layers, head, adapter: None, hidden: config.hidden, kv, len: 0 })
    }

    /// The same model with every matrix widened to f32.
    #[must_use]
    pub fn dequantised(mut self) -> Self {
        self.layers = self.layers.iter().map(LayerWeights::dequantised).collect();
        self.head = self.head.dequantised();
        self
    }

    /// The same model with an adapter.
    #[must_use]
    pub fn with(self, adapter: Adapter) -> Self {
        Self { adapter: Some(adapter), ..self }
    }

    /// Forgets the sequence.
    pub fn reset(&mut self) {
        self.kv.iter_mut().for_each(|kv| kv.pages.clear());
        self.len = 0;
    }

    /// Appends `tokens` and returns the hidden rows behind the last layer (`tokens.len() * hidden`).
    ///
    /// # Errors
    /// When a token is not in the vocabulary or a value is not finite.
    pub fn forward(&mut self, tokens: &[u32]) -> Result<Vec<f32>, ModelError> {
        let outside = || ModelError::Tokenizer("a token is not in the vocabulary".to_owned());
        let mut x = self.embedding.rows(tokens, self.adapter.as_ref()).ok_or_else(outside)?;
        let rows: Vec<RowOf> =
            (0..tokens.len()).map(|i| RowOf { sequence: 0, position: (self.len + i) as u32 }).collect();
        self.len += tokens.len();
        for (i, (layer, kv)) in self.layers.iter().zip(&mut self.kv).enumerate() {
            while kv.pages.len() * PAGE < self.len {
                kv.pages.push(vec![0.0; self.block.page_len()].into_boxed_slice());
            }
            let adapted = self.adapter.as_ref().and_then(|a| a.for_rows(i as u32, 0..rows.len()));
            let block = BlockWeights { layer: i as u32, weights: layer, adapted: adapted.as_slice() };
            self.block.forward(&self.pool, block, &mut x, &rows, &mut [kv])?;
        }
        Ok(x)
    }

    /// Logits of some rows that [`Whole::forward`] gave.
    #[must_use]
    pub fn logits(&self, rows: &[f32]) -> Vec<f32> {
        self.head.logits(&self.pool, rows, rows.len() / self.hidden)
    }

    /// Continues `prompt` by `count` tokens or up to one of `eos`.
    ///
    /// # Errors
    /// As [`Whole::forward`].
    pub fn generate(
        &mut self,
        prompt: &[u32],
        count: usize,
        params: &SamplingParams,
        eos: &[u32],
    ) -> Result<Vec<u32>, ModelError> {
        self.reset();
        let mut tokens = prompt.to_vec();
        let mut rows = self.forward(prompt)?;
        while tokens.len() < prompt.len() + count {
            let last = rows.len() - self.hidden;
            let mut logits = self.logits(&rows[last..]);
            let Sampled { token, .. } =
                sample(&mut logits, params, &tokens, prompt.len(), tokens.len() as u32);
            tokens.push(token);
            if eos.contains(&token) {
                break;
            }
            rows = self.forward(&[token])?;
        }
        Ok(tokens.split_off(prompt.len()))
    }
}
