//! Element-wise operations of a decoder block.

pub mod reference;

use crate::isa::{Isa, vectorised};
use crate::math::exp_lane;
use crate::pool::{Pool, SMALL};

/// `y += x`.
///
/// # Panics
/// When the lengths differ.
pub fn add(y: &mut [f32], x: &[f32]) {
    assert_eq!(y.len(), x.len(), "add: lengths differ");
    for (y, x) in y.iter_mut().zip(x) {
        *y += x;
    }
}

/// Adds `bias` to every row of `y`.
///
/// # Panics
/// When `y` is not whole rows.
pub fn add_bias(pool: &Pool, y: &mut [f32], bias: &[f32]) {
    let n = bias.len();
    let all = |y: &mut [f32]| y.chunks_exact_mut(n).for_each(|row| add(row, bias));
    assert!(y.len().is_multiple_of(n), "add_bias: {} values in rows of {n}", y.len());
    if y.len() < SMALL { all(y) } else { pool.split_rows([(y, n)], &|_, [y]| all(y)) }
}

/// `out = silu(gate) * up` with `silu(v) = v / (1 + exp(-v))` (Shazeer 2020).
///
/// # Panics
/// When the lengths differ.
pub fn swiglu(pool: &Pool, gate: &[f32], up: &[f32], out: &mut [f32]) {
    gated(pool, gate, up, out, swiglu_range);
}

/// `out = gelu(gate) * up` with the approximation of GELU by tanh (Hendrycks and Gimpel 2016), `0.5 v (1 + tanh(sqrt(2 / pi) (v + 0.044715 v^3)))`.
///
/// # Panics
/// When the lengths differ.
pub fn geglu(pool: &Pool, gate: &[f32], up: &[f32], out: &mut [f32]) {
    gated(pool, gate, up, out, geglu_range);
}

fn gated(
    pool: &Pool,
    gate: &[f32],
    up: &[f32],
    out: &mut [f32],
    range_of: fn(Isa, &[f32], &[f32], &mut [f32]),
) {
    assert!(gate.len() == up.len() && out.len() == up.len(), "a gated activation: lengths differ");
    if out.len() < SMALL {
        return range_of(pool.isa(), gate, up, out);
    }
    pool.split_rows([(out, 1)], &|range, [out]| {
        range_of(pool.isa(), &gate[range.clone()], &up[range], out);
    });
}

vectorised! {
    fn swiglu_range(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = *gate / (1.0 + exp_lane(-*gate)) * up;
        }
    }
}

vectorised! {
    fn geglu_range(gate: &[f32], up: &[f32], out: &mut [f32]) {
        /// `2 sqrt(2 / pi)`: `(1 + tanh(z)) / 2` is `1 / (1 + exp(-2 z))`.
        const TWICE: f32 = 1.595_769;
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            let z = TWICE * (*gate + 0.044_715 * (*gate * *gate * *gate));
            *out = *gate / (1.0 + exp_lane(-z)) * up;
        }
    }
}

/// The gradients of [`swiglu`], in place: `gate` and `up` become theirs, and `dy`, the gradient of its output, becomes that output again,
/// which the gradient of the next map's weights needs.
///
/// # Panics
/// When the lengths differ.
pub fn swiglu_backward(pool: &Pool, gate: &mut [f32], up: &mut [f32], dy: &mut [f32]) {
    pool.split_rows([(gate, 1), (up, 1), (dy, 1)], &|_, [gate, up, dy]| {
        backward_range(pool.isa(), gate, up, dy);
    });
}

vectorised! {
    fn backward_range(gate: &mut [f32], up: &mut [f32], dy: &mut [f32]) {
        for ((gate, up), dy) in gate.iter_mut().zip(up).zip(dy) {
            let (g, u, d) = (*gate, *up, *dy);
            let below = 1.0 + exp_lane(-g);
            let (silu, sigmoid) = (g / below, 1.0 / below);
            *gate = d * u * silu.mul_add(1.0 - sigmoid, sigmoid);
            *up = d * silu;
            *dy = silu * u;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{geglu_range, swiglu_range};
    use crate::isa::Isa;

    /// Every instruction set gives the bits of the portable one, which are close to `formula` of the gate, times the other value; where that is
    /// smaller than `small` its exponent is too far from 0 to be exact.
    fn check(range_of: fn(Isa, &[f32], &[f32], &mut [f32]), small: f64, formula: impl Fn(f64) -> f64) {
        let gate: Vec<f32> =
            (0..1003).map(|i| (i as f32 - 500.0) * 0.31).chain([-100.0, 100.0, 0.0, -0.0]).collect();
        let up: Vec<f32> = (0..gate.len()).map(|i| i as f32 / 100.0 - 3.0).collect();
        let mut plain = gate.clone();
        range_of(Isa::Scalar, &gate, &up, &mut plain);
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        for isa in Isa::all() {
            let mut found = gate.clone();
            range_of(isa, &gate, &up, &mut found);
            assert_eq!(bits(&found), bits(&plain), "{isa:?}");
        }
        for ((a, gate), up) in plain.iter().zip(&gate).zip(&up) {
            let want = formula(f64::from(*gate)) * f64::from(*up);
            assert!((f64::from(*a) - want).abs() <= want.abs() * 4e-6 + small, "{gate}: {a} {want}");
        }
    }

    #[test]
    fn silu_is_that_of_the_formula() {
        check(swiglu_range, 1e-30, |v| v / (1.0 + (-v).exp()));
    }

    #[test]
    fn gelu_is_that_of_the_formula() {
        check(geglu_range, 1e-9, |v| {
            let z = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044_715 * v * v * v);
            v / (1.0 + (-2.0 * z).exp())
        });
    }
}
