//! The weights of a stage, packed for the kernels.

use std::collections::BTreeMap;
use std::sync::Arc;

use dunlin_kernels::{Matrix, Pool, linear, rms_norm};

use crate::adapter::Adapter;
use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::file::{ModelFile, Outer};
use crate::spec::{Projection, TensorRole};

/// One decoder block: the tensors that its [`BlockSpec`](crate::spec::BlockSpec) has.
pub struct LayerWeights {
    /// By [`Projection`].
    matrices: Vec<Matrix>,
    /// Norms and biases.
    vectors: BTreeMap<TensorRole, Vec<f32>>,
}

impl LayerWeights {
    /// Reads block `layer`, piece by piece: see [`ModelFile::load_bytes_max`].
    ///
    /// # Errors
    /// When a tensor is missing, of another shape, or cannot be read.
    pub fn load(file: &ModelFile, layer: u32) -> Result<Self, ModelError> {
        let c = file.config();
        let matrix = |which: Projection| {
            let (n, k) = c.matrix(which);
            file.matrix(&file.layer_name(layer, TensorRole::Matrix(which)), n, k)
        };
        let vector = |(role, n): (TensorRole, usize)| {
            let name = file.layer_name(layer, role);
            let values = if role.is_norm() { file.norm(&name, n)? } else { file.vector(&name, n)? };
            Ok((role, values))
        };
        Ok(Self {
            matrices: Projection::ALL.into_iter().map(matrix).collect::<Result<_, _>>()?,
            vectors: vectors(c).map(vector).collect::<Result<_, ModelError>>()?,
        })
    }

    /// Memory that block `layer` will take.
    ///
    /// # Errors
    /// When a tensor is missing, of another shape, or cannot be packed.
    pub fn bytes_in(file: &ModelFile, layer: u32) -> Result<u64, ModelError> {
        let c = file.config();
        let matrices = Projection::ALL.into_iter().map(|which| {
            let (n, k) = c.matrix(which);
            file.matrix_bytes(&file.layer_name(layer, TensorRole::Matrix(which)), n, k)
        });
        let vectors = vectors(c).map(|(_, n)| n).sum();
        Ok(matrices.sum::<Result<u64, _>>()? + floats(vectors))
    }

    /// A block of zeroes in f32, to be set by training.
    pub(crate) fn zeroed(c: &ModelConfig) -> Self {
        let matrix = |which: Projection| {
            let (n, k) = c.matrix(which);
            Matrix::zeroed_f32(n, k)
        };
        Self {
            matrices: Projection::ALL.map(matrix).into(),
            vectors: vectors(c).map(|(role, n)| (role, vec![0.0; n])).collect(),
        }
    }

    /// One of its matrices.
    #[must_use]
    pub fn matrix(&self, which: Projection) -> &Matrix {
        &self.matrices[which as usize]
    }

    pub(crate) fn matrix_mut(&mut self, which: Projection) -> &mut Matrix {
        &mut self.matrices[which as usize]
    }

    /// A norm or a bias that such blocks have.
    ///
    /// # Panics
    /// When they have none of that role.
    #[must_use]
    pub fn vector(&self, role: TensorRole) -> &[f32] {
        &self.vectors[&role]
    }

    /// All norms and biases.
    pub fn vectors(&self) -> impl Iterator<Item = (TensorRole, &[f32])> {
        self.vectors.iter().map(|(role, values)| (*role, values.as_slice()))
    }

    pub(crate) fn vectors_mut(&mut self) -> impl Iterator<Item = (TensorRole, &mut [f32])> {
        self.vectors.iter_mut().map(|(role, values)| (*role, values.as_mut_slice()))
    }

    /// Memory it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let vectors = self.vectors.values().map(Vec::len).sum::<usize>();
        self.matrices.iter().map(Matrix::bytes).sum::<usize>() + vectors * size_of::<f32>()
    }

    /// The same block with its matrices widened to f32, for comparisons.
    #[must_use]
    pub fn dequantised(&self) -> Self {
        Self { matrices: self.matrices.iter().map(dequantised).collect(), vectors: self.vectors.clone() }
    }
}

/// The norms and biases of a block, and how many values they have.
fn vectors(c: &ModelConfig) -> impl Iterator<Item = (TensorRole, usize)> {
    let tensors = c.block.tensors(c.hidden).into_iter();
    tensors.filter(|(role, _)| !matches!(role, TensorRole::Matrix(_))).map(|(role, shape)| (role, shape[0]))
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
pub struct Embedding {
    table: Arc<Matrix>,
    /// What rows are multiplied by, if they are.
    scale: Option<f32>,
}

impl Embedding {
    /// Reads the embedding matrix.
    ///
    /// # Errors
    /// When it is missing, of another shape, or cannot be read.
    pub fn load(file: &ModelFile) -> Result<Self, ModelError> {
        let c = file.config();
        let table = Arc::new(file.matrix(file.name(Outer::Embedding), c.vocab, c.hidden)?);
        Ok(Self { table, scale: c.embedding_scale })
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
        self.table.n()
    }

    /// The rows of `tokens`, or `None` when one is not in the vocabulary. Tokens right behind the vocabulary are the rows of the adapter's
    /// prompt.
    #[must_use]
    pub fn rows(&self, tokens: &[u32], adapter: Option<&Adapter>) -> Option<Vec<f32>> {
        let (vocab, width) = (self.table.n(), self.table.k());
        let mut out = vec![0.0; tokens.len() * width];
        for (token, row) in tokens.iter().zip(out.chunks_exact_mut(width)) {
            match (*token as usize).checked_sub(vocab) {
                None => {
                    self.table.row(*token as usize, row);
                    if let Some(scale) = self.scale {
                        row.iter_mut().for_each(|v| *v *= scale);
                    }
                }
                Some(beyond) => row.copy_from_slice(adapter?.prompt_row(beyond)?),
            }
        }
        Some(out)
    }

    /// Memory it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.table.bytes()
    }

    /// What is there.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.table.as_bytes()
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
            (true, Some(embedding)) => Arc::clone(&embedding.table),
            (true, None) => Embedding::load(file)?.table,
            (false, _) => Arc::new(file.matrix(file.name(Outer::Head), c.vocab, c.hidden)?),
        };
        Ok(Self { norm: file.norm(file.name(Outer::Norm), c.hidden)?, eps: c.block.norm.eps, output })
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
        Self { norm: vec![0.0; c.hidden], eps: c.block.norm.eps, output }
    }

    /// Logits of `m` rows: `m * vocab` values.
    #[must_use]
    pub fn logits(&self, pool: &Pool, x: &[f32], m: usize) -> Vec<f32> {
        let mut normed = vec![0.0; x.len()];
        rms_norm(pool, x, &self.norm, self.eps, m, &mut normed);
        let mut logits = vec![0.0; m * self.output.n()];
        linear(pool, &self.output, &normed, m, &mut logits);
        logits
    }

    /// Weights of the norm.
    #[must_use]
    pub fn norm(&self) -> &[f32] {
        &self.norm
    }

    /// What is added to the mean of the squares in the norm.
    #[must_use]
    pub fn eps(&self) -> f32 {
        self.eps
    }

    /// The output matrix.
    #[must_use]
    pub fn output(&self) -> &Matrix {
        &self.output
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
