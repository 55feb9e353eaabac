//! Which codecs there are, and which of them a configuration means.

use crate::config::{ActivationWire, GradientWire};

/// How values become bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// As they are.
    F32,
    /// Rounded to half precision.
    F16,
    /// The same after scaling each block by a power of two.
    F16Scaled,
    /// One byte a value, and a scale a block.
    Q8,
}

impl From<ActivationWire> for Codec {
    fn from(wire: ActivationWire) -> Self {
        match wire {
            ActivationWire::F32 => Self::F32,
            ActivationWire::F16 => Self::F16,
            ActivationWire::Q8 => Self::Q8,
        }
    }
}

impl Codec {
    /// The codec of gradient sums and of their averages; none when exact sums travel, and averages as f32.
    #[must_use]
    pub fn of_gradients(wire: GradientWire) -> Option<Self> {
        match wire {
            GradientWire::Exact => None,
            GradientWire::F32 => Some(Self::F32),
            GradientWire::F16 => Some(Self::F16Scaled),
            GradientWire::Q8 => Some(Self::Q8),
        }
    }
}
