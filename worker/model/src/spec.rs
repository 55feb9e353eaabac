//! A decoder block as a value: what serving and training compute, what is loaded, and how much memory it takes all come from here.

use dunlin_kernels::{Heads, RopeLayout, RopeScaling, RopeTable};
pub use dunlin_swarm::run::Projection;

/// One decoder block. The rows go through attention and through the feed-forward part, each behind a norm, and what comes out is added to them.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockSpec {
    /// Of all norms.
    pub norm: Norm,
    /// How queries and keys are turned.
    pub rotary: Rotary,
    /// What rows see of one another.
    pub attention: Attention,
    /// What a row does by itself.
    pub mlp: Mlp,
    /// Attention and feed-forward part have a norm behind them, too, before they are added to the rows (Gemma 3 Technical Report, section 2).
    pub post_norms: bool,
}

/// RMS norms (Zhang and Sennrich 2019).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// What is added to the mean of the squares.
    pub eps: f32,
    /// The file has the weights less 1.
    pub plus_one: bool,
}

/// Rotary position embedding (Su et al. 2021) over whole heads.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// Base of the frequencies.
    pub base: f64,
    /// How frequencies are stretched for longer contexts.
    pub scaling: RopeScaling,
    /// Which values of a head are turned as a pair.
    pub layout: RopeLayout,
}

impl Rotary {
    /// Frequencies as they are, in Hugging Face's layout.
    #[must_use]
    pub fn plain(base: f64) -> Self {
        Self { base, scaling: RopeScaling::None, layout: RopeLayout::Halves }
    }

    /// How heads of this width are turned at positions below `positions_max`.
    #[must_use]
    pub fn table(&self, head_dim: usize, positions_max: usize) -> RopeTable {
        RopeTable::new(head_dim, self.base, self.scaling.clone(), positions_max)
    }
}

/// Causal attention.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; a multiple of 8 up to 256.
    pub head_dim: usize,
    /// Queries, keys and values have biases.
    pub bias: bool,
    /// Each head of queries and keys is normed before it is turned (Qwen3 Technical Report, section 2).
    pub qk_norm: bool,
    /// Positions that a row sees, its own among them; all before it when none.
    pub window: Option<u32>,
    /// What scores are multiplied by; `1 / sqrt(head_dim)` when none.
    pub scale: Option<f32>,
}

impl Attention {
    /// Heads without biases, norms or a window.
    #[must_use]
    pub fn plain(heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        Self { heads, kv_heads, head_dim, bias: false, qk_norm: false, window: None, scale: None }
    }

    /// The heads as kernels take them.
    #[must_use]
    pub fn heads(&self) -> Heads {
        let heads = Heads::new(self.heads, self.kv_heads, self.head_dim);
        Heads { scale: self.scale.unwrap_or(heads.scale), ..heads }
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

    /// The first position that the row at `position` sees.
    #[must_use]
    pub fn first_seen(&self, position: u32) -> u32 {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// The feed-forward part: `down(activation(gate(x)) * up(x))` (Shazeer 2020).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mlp {
    /// Values inside.
    pub width: usize,
    /// What the gate goes through.
    pub activation: Activation,
}

/// What opens and closes the feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `v / (1 + exp(-v))`.
    Silu,
    /// GELU in its approximation by tanh.
    GeluTanh,
}

/// What a tensor is for in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TensorRole {
    /// Weights of the norm before attention.
    AttentionNorm,
    /// A matrix.
    Matrix(Projection),
    /// What is added to queries, keys or values.
    Bias(Projection),
    /// Weights of the norm of each head of queries.
    QueryNorm,
    /// Weights of the norm of each head of keys.
    KeyNorm,
    /// Weights of the norm behind attention.
    AttentionPostNorm,
    /// Weights of the norm before the feed-forward part.
    MlpNorm,
    /// Weights of the norm behind the feed-forward part.
    MlpPostNorm,
}

impl TensorRole {
    /// Is it a norm's?
    #[must_use]
    pub fn is_norm(self) -> bool {
        !matches!(self, Self::Matrix(_) | Self::Bias(_))
    }
}

impl BlockSpec {
    /// A Llama's (Touvron et al. 2023): others are made from it.
    #[must_use]
    pub fn llama(eps: f32, rotary: Rotary, attention: Attention, width: usize) -> Self {
        Self {
            norm: Norm { eps, plus_one: false },
            rotary,
            attention,
            mlp: Mlp { width, activation: Activation::Silu },
            post_norms: false,
        }
    }

    /// Outputs and inputs of a matrix, for rows of `hidden` values.
    #[must_use]
    pub fn matrix(&self, which: Projection, hidden: usize) -> (usize, usize) {
        let Self { attention, mlp, .. } = self;
        match which {
            Projection::Query => (attention.q_width(), hidden),
            Projection::Key | Projection::Value => (attention.kv_width(), hidden),
            Projection::Output => (hidden, attention.q_width()),
            Projection::Gate | Projection::Up => (mlp.width, hidden),
            Projection::Down => (hidden, mlp.width),
        }
    }

    /// Its tensors in canonical order, with their shapes, for rows of `hidden` values.
    #[must_use]
    pub fn tensors(&self, hidden: usize) -> Vec<(TensorRole, Vec<usize>)> {
        let Self { attention, .. } = self;
        let matrix = |which| {
            let (n, k) = self.matrix(which, hidden);
            (TensorRole::Matrix(which), vec![n, k])
        };
        let mut out = vec![(TensorRole::AttentionNorm, vec![hidden])];
        for which in [Projection::Query, Projection::Key, Projection::Value] {
            out.push(matrix(which));
            if attention.bias {
                out.push((TensorRole::Bias(which), vec![self.matrix(which, hidden).0]));
            }
        }
        if attention.qk_norm {
            out.extend(
                [TensorRole::QueryNorm, TensorRole::KeyNorm].map(|role| (role, vec![attention.head_dim])),
            );
        }
        out.push(matrix(Projection::Output));
        if self.post_norms {
            out.push((TensorRole::AttentionPostNorm, vec![hidden]));
        }
        out.push((TensorRole::MlpNorm, vec![hidden]));
        out.extend([Projection::Gate, Projection::Up, Projection::Down].map(matrix));
        if self.post_norms {
            out.push((TensorRole::MlpPostNorm, vec![hidden]));
        }
        out
    }

    /// Values that its buffers hold for each row of a batch, at most.
    #[must_use]
    pub fn row_values(&self, hidden: usize) -> usize {
        let Self { attention, mlp, post_norms, .. } = self;
        // Rows and their norms, projections, the feed-forward part.
        let rows = if *post_norms { 5 } else { 4 };
        rows * hidden + 2 * attention.q_width() + 2 * attention.kv_width() + 3 * mlp.width
    }

    /// Why such blocks are not trained here, if they are not.
    #[must_use]
    pub fn untrained(&self) -> Option<&'static str> {
        if self.attention.qk_norm {
            return Some("norms queries and keys");
        }
        if self.post_norms {
            return Some("has norms behind attention");
        }
        if self.norm.plus_one {
            return Some("has weights of norms less 1 in its files");
        }
        if self.mlp.activation != Activation::Silu {
            return Some("has another activation than SiLU");
        }
        self.attention.scale.is_some().then_some("scales attention in its own way")
    }
}
