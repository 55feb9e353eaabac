//! The operations of [`super`] in plain loops.

use crate::math::exp;

/// As [`super::swiglu`], one value after the other.
#[must_use]
pub fn swiglu(gate: &[f32], up: &[f32]) -> Vec<f32> {
    gate.iter().zip(up).map(|(g, u)| g / (1.0 + exp(-g)) * u).collect()
}

/// As [`super::geglu`], one value after the other.
#[must_use]
pub fn geglu(gate: &[f32], up: &[f32]) -> Vec<f32> {
    let z = |g: f32| 1.595_769 * (g + 0.044_715 * (g * g * g));
    gate.iter().zip(up).map(|(g, u)| g / (1.0 + exp(-z(*g))) * u).collect()
}

/// As [`super::swiglu_backward`]: gradients of the gate and of `up`, and the output again.
#[must_use]
pub fn swiglu_backward(gate: &[f32], up: &[f32], dy: &[f32]) -> [Vec<f32>; 3] {
    let mut out = [const { Vec::new() }; 3];
    for ((g, u), dy) in gate.iter().zip(up).zip(dy) {
        let below = 1.0 + exp(-g);
        let silu = g / below;
        let sigmoid = 1.0 / below;
        out[0].push((dy * u) * silu.mul_add(1.0 - sigmoid, sigmoid));
        out[1].push(dy * silu);
        out[2].push(silu * u);
    }
    out
}
