//! Tensors as a file has them.

use dunlin_kernels::{Format, Packer};
use half::{bf16, f16};

use crate::error::ModelError;
use crate::safetensors::Dtype;

/// Bytes of a matrix that are read at once, unless one panel of rows has more.
const PIECE_BYTES: usize = 8 << 20;

/// How its values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    Ggml(Format),
    Plain(Dtype),
}

/// Where a tensor is.
pub(super) struct Place {
    pub(super) shape: Vec<usize>,
    pub(super) stored: Stored,
    pub(super) source: usize,
    pub(super) offset: u64,
    pub(super) bytes: usize,
}

impl Stored {
    /// The format of the bytes that are packed.
    pub(super) fn packed_from(self, name: &str) -> Result<Format, ModelError> {
        match self {
            Self::Ggml(format) => Ok(format),
            Self::Plain(Dtype::F32) => Ok(Format::F32),
            Self::Plain(Dtype::F16) => Ok(Format::F16),
            Self::Plain(Dtype::Bf16) => Ok(Format::BF16),
            Self::Plain(Dtype::Other(dtype)) => Err(of_another_type(name, dtype)),
        }
    }

    /// What is held beside the packed weights to find out how bf16 is held.
    pub(super) fn counts_bytes(self) -> usize {
        match self {
            Self::Ggml(Format::BF16) | Self::Plain(Dtype::Bf16) => Packer::BF16_BYTES,
            _ => 0,
        }
    }
}

/// Bytes of so many of a tensor's `n` rows that they make a panel.
fn panel_bytes(tensor: usize, n: usize) -> usize {
    tensor.checked_div(n).unwrap_or(0).saturating_mul(Packer::ROWS).min(tensor)
}

/// Bytes of a tensor of `n` rows that are read at once: whole panels.
pub(super) fn piece_bytes(tensor: usize, n: usize) -> usize {
    let panel = panel_bytes(tensor, n);
    let panels = PIECE_BYTES.checked_div(panel).unwrap_or(0).max(1);
    panel.saturating_mul(panels).min(tensor)
}

/// Plain floats of a file as f32.
pub(crate) fn widen(name: &str, stored: Stored, bytes: &[u8], out: &mut [f32]) -> Result<(), ModelError> {
    let halves = bytes.as_chunks::<2>().0;
    match stored {
        Stored::Ggml(Format::F32) | Stored::Plain(Dtype::F32) => {
            out.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(out, b)| *out = f32::from_le_bytes(*b));
        }
        Stored::Ggml(Format::F16) | Stored::Plain(Dtype::F16) => {
            out.iter_mut().zip(halves).for_each(|(out, b)| *out = f16::from_le_bytes(*b).to_f32());
        }
        Stored::Ggml(Format::BF16) | Stored::Plain(Dtype::Bf16) => {
            out.iter_mut().zip(halves).for_each(|(out, b)| *out = bf16::from_le_bytes(*b).to_f32());
        }
        Stored::Ggml(format) => return Err(of_another_type(name, &format!("{format:?}"))),
        Stored::Plain(Dtype::Other(dtype)) => return Err(of_another_type(name, dtype)),
    }
    Ok(())
}

/// Where floats are needed.
pub(super) fn of_another_type(name: &str, found: &str) -> ModelError {
    ModelError::Refused {
        what: format!("tensor `{name}` has type {found}"),
        remedy: "F32, F16 and BF16 run here".to_owned(),
    }
}
