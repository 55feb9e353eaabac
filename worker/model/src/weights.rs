//! The weights of a stage, packed for the kernels.

use std::sync::Arc;

use dunlin_kernels::{Matrix, Pool, Scratch, linear, rms_norm};

use crate::adapter::{Adapter, Projection};
use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::file::{ModelFile, Outer};

/// One decoder block.
pub struct LayerWeights {
    pub(crate) attention_norm: Vec<f32>,
    pub(crate) q: Matrix,
    pub(crate) k: Matrix,
    pub(crate) v: Matrix,
    /// Biases of q, k and v.
    pub(crate) bias: Option<[Vec<f32>; 3]>,
    /// Weights of the norms of each head of queries and of keys, `head_dim` values each.
    pub(crate) qk_norm: Option<[Vec<f32>; 2]>,
    pub(crate) o: Matrix,
    pub(crate) ffn_norm: Vec<f32>,
    pub(crate) gate: Matrix,
    pub(crate) up: Matrix,
    pub(crate) down: Matrix,
}

impl LayerWeights {
    /// Reads block `layer`, piece by piece: see [`ModelFile::load_bytes_max`].
    ///
    /// # Errors
    /// When a tensor is missing, of another shape, or cannot be read.
    pub fn load(file: &ModelFile, layer: u32) -> Result<Self, ModelError> {
        let c = file.config();
        let name = |role: &str| file.layer_name(layer, role);
        let matrix = |role: &str, n, k| file.matrix(&name(role), n, k);
        let (q_width, kv_width) = (c.q_width(), c.kv_width());
        let bias = if c.qkv_bias {
            Some([
                file.vector(&name("attn_q.bias"), q_width)?,
                file.vector(&name("attn_k.bias"), kv_width)?,
                file.vector(&name("attn_v.bias"), kv_width)?,
            ])
        } else {
            None
        };
        let qk_norm = if c.qk_norm {
            let norm = |role: &str| file.vector(&name(role), c.head_dim);
            Some([norm("attn_q_norm.weight")?, norm("attn_k_norm.weight")?])
        } else {
            None
        };
        Ok(Self {
            attention_norm: file.vector(&name("attn_norm.weight"), c.hidden)?,
            q: matrix("attn_q.weight", q_width, c.hidden)?,
            k: matrix("attn_k.weight", kv_width, c.hidden)?,
            v: matrix("attn_v.weight", kv_width, c.hidden)?,
            bias,
            qk_norm,
            o: matrix("attn_output.weight", c.hidden, q_width)?,
            ffn_norm: file.vector(&name("ffn_norm.weight"), c.hidden)?,
            gate: matrix("ffn_gate.weight", c.ffn, c.hidden)?,
            up: matrix("ffn_up.weight", c.ffn, c.hidden)?,
            down: matrix("ffn_down.weight", c.hidden, c.ffn)?,
        })
    }

    /// Memory that block `layer` will take.
    ///
    /// # Errors
    /// When a tensor is missing, of another shape, or cannot be packed.
    pub fn bytes_in(file: &ModelFile, layer: u32) -> Result<u64, ModelError> {
        let c = file.config();
        let name = |role: &str| file.layer_name(layer, role);
        let (q_width, kv_width) = (c.q_width(), c.kv_width());
        let matrices = [
            ("attn_q.weight", q_width, c.hidden),
            ("attn_k.weight", kv_width, c.hidden),
            ("attn_v.weight", kv_width, c.hidden),
            ("attn_output.weight", c.hidden, q_width),
            ("ffn_gate.weight", c.ffn, c.hidden),
            ("ffn_up.weight", c.ffn, c.hidden),
            ("ffn_down.weight", c.hidden, c.ffn),
        ];
        let matrices = matrices.into_iter().map(|(role, n, k)| file.matrix_bytes(&name(role), n, k));
        let biases = if c.qkv_bias { q_width + 2 * kv_width } else { 0 };
        let norms = 2 * c.hidden + if c.qk_norm { 2 * c.head_dim } else { 0 };
        Ok(matrices.sum::<Result<u64, _>>()? + floats(norms + biases))
    }

    /// A block of zeroes in f32, to be set by training.
    pub(crate) fn zeroed(c: &ModelConfig) -> Self {
        let (q_width, kv_width) = (c.q_width(), c.kv_width());
        Self {
            attention_norm: vec![0.0; c.hidden],
            q: Matrix::zeroed_f32(q_width, c.hidden),
            k: Matrix::zeroed_f32(kv_width, c.hidden),
            v: Matrix::zeroed_f32(kv_width, c.hidden),
            bias: c.qkv_bias.then(|| [vec![0.0; q_width], vec![0.0; kv_width], vec![0.0; kv_width]]),
            qk_norm: c.qk_norm.then(|| [vec![0.0; c.head_dim], vec![0.0; c.head_dim]]),
            o: Matrix::zeroed_f32(c.hidden, q_width),
            ffn_norm: vec![0.0; c.hidden],
            gate: Matrix::zeroed_f32(c.ffn, c.hidden),
            up: Matrix::zeroed_f32(c.ffn, c.hidden),
            down: Matrix::zeroed_f32(c.hidden, c.ffn),
        }
    }

    pub(crate) fn matrix(&self, which: Projection) -> &Matrix {
        match which {
            Projection::Query => &self.q,
            Projection::Key => &self.k,
            Projection::Value => &self.v,
            Projection::Output => &self.o,
            Projection::Gate => &self.gate,
            Projection::Up => &self.up,
            Projection::Down => &self.down,
        }
    }

    pub(crate) fn matrix_mut(&mut self, which: Projection) -> &mut Matrix {
        match which {
            Projection::Query => &mut self.q,
            Projection::Key => &mut self.k,
            Projection::Value => &mut self.v,
            Projection::Output => &mut self.o,
            Projection::Gate => &mut self.gate,
            Projection::Up => &mut self.up,
            Projection::Down => &mut self.down,
        }
    }

    /// Memory it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let matrices = Projection::ALL.map(|which| self.matrix(which));
        let bias = self.bias.iter().flatten().map(Vec::len).sum::<usize>();
        let qk_norm = self.qk_norm.iter().flatten().map(Vec::len).sum::<usize>();
        let vectors = self.attention_norm.len() + self.ffn_norm.len() + bias + qk_norm;
        matrices.iter().map(|m| m.bytes()).sum::<usize>() + vectors * size_of::<f32>()
    }

    /// The same block with its matrices widened to f32, for comparisons.
    #[must_use]
    pub fn dequantised(&self) -> Self {
        Self {
            attention_norm: self.attention_norm.clone(),
            q: dequantised(&self.q),
            k: dequantised(&self.k),
            v: dequantised(&self.v),
            bias: self.bias.clone(),
            qk_norm: self.qk_norm.clone(),
            o: dequantised(&self.o),
            ffn_norm: self.ffn_norm.clone(),
            gate: dequantised(&self.gate),
            up: dequantised(&self.up),
            down: dequantised(&self.down),
        }
    }
}

/// Bytes of so many f32.
fn floats(count: usize) -> u64 {
    (count * size_of::<f32>()) as u64
}

fn dequantised(w: &Matrix) -> Matrix {
    let mut values = vec![0.0; w.n() * w.k()];
    for (i, row) in values.chunks_exact_mut(w.k()).enumerate() {
        w.row(i, row);
    }
    Matrix::from_f32(w.n(), w.k(), &values)
}

/// Token embeddings, for the first stage.
#[derive(Clone)]
pub struct Embedding(Arc<Matrix>);

impl Embedding {
    /// Reads the embedding matrix.
    ///
    /// # Errors
    /// When it is missing, of another shape, or cannot be read.
    pub fn load(file: &ModelFile) -> Result<Self, ModelError> {
        let c = file.config();
        Ok(Self(Arc::new(file.matrix(file.name(Outer::Embedding), c.vocab, c.hidden)?)))
    }

    /// Memory that it will take.
    ///
    /// # Errors
    /// When it is missing, of another shape, or cannot be packed.
    pub fn bytes_in(file: &ModelFile) -> Result<u64, ModelError> {
        let c = file.config();
        file.matrix_bytes(file.name(Outer::Embedding), c.vocab, c.hidden)
    }

    /// Tokens of the vocabulary.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.0.n()
    }

    /// The rows of `tokens`, or `None` when one is not in the vocabulary. Tokens right behind the vocabulary are the rows of the adapter's
    /// prompt.
    #[must_use]
    pub fn rows(&self, tokens: &[u32], adapter: Option<&Adapter>) -> Option<Vec<f32>> {
        let (vocab, width) = (self.0.n(), self.0.k());
        let mut out = vec![0.0; tokens.len() * width];
        for (token, row) in tokens.iter().zip(out.chunks_exact_mut(width)) {
            match (*token as usize).checked_sub(vocab) {
                None => self.0.row(*token as usize, row),
                Some(beyond) => row.copy_from_slice(adapter?.prompt_row(beyond)?),
            }
        }
        Some(out)
    }

    /// Memory it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// What is there.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// Final norm and output matrix, for the last stage.
pub struct Head {
    pub(crate) norm: Vec<f32>,
    pub(crate) eps: f32,
    pub(crate) output: Arc<Matrix>,
}

impl Head {
    /// Reads them; a tied output matrix is shared with `embedding` when that is here, too.
    ///
    /// # Errors
    /// When a tensor is missing, of another shape, or cannot be read.
    pub fn load(file: &ModelFile, embedding: Option<&Embedding>) -> Result<Self, ModelError> {
        let c = file.config();
        let output = match (c.tied, embedding) {
            (true, Some(embedding)) => Arc::clone(&embedding.0),
            (true, None) => Embedding::load(file)?.0,
            (false, _) => Arc::new(file.matrix(file.name(Outer::Head), c.vocab, c.hidden)?),
        };
        Ok(Self { norm: file.vector(file.name(Outer::Norm), c.hidden)?, eps: c.rms_eps, output })
    }

    /// Memory that they will take, the output matrix included also when it is shared.
    ///
    /// # Errors
    /// When a tensor is missing, of another shape, or cannot be packed.
    pub fn bytes_in(file: &ModelFile) -> Result<u64, ModelError> {
        let c = file.config();
        let output = file.name(if c.tied { Outer::Embedding } else { Outer::Head });
        Ok(file.matrix_bytes(output, c.vocab, c.hidden)? + floats(c.hidden))
    }

    /// All zero, to be set by training.
    pub(crate) fn zeroed(c: &ModelConfig) -> Self {
        let output = Arc::new(Matrix::zeroed_f32(c.vocab, c.hidden));
        Self { norm: vec![0.0; c.hidden], eps: c.rms_eps, output }
    }

    /// Logits of `m` rows: `m * vocab` values.
    #[must_use]
    pub fn logits(&self, pool: &Pool, x: &[f32], m: usize, scratch: &mut Scratch) -> Vec<f32> {
        let mut normed = vec![0.0; x.len()];
        rms_norm(pool, x, &self.norm, self.eps, m, &mut normed);
        let mut logits = vec![0.0; m * self.output.n()];
        linear(pool, &self.output, &normed, m, &mut logits, scratch);
        logits
    }

    /// Memory it takes, the output matrix included also when it is shared.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.output.bytes() + self.norm.len() * size_of::<f32>()
    }

    /// The same with the output matrix widened to f32, for comparisons.
    #[must_use]
    pub fn dequantised(&self) -> Self {
        Self { norm: self.norm.clone(), eps: self.eps, output: Arc::new(dequantised(&self.output)) }
    }
}
