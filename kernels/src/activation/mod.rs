//! Element-wise operations of a decoder block.

pub mod reference;

use crate::isa::vectorised;
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
    assert!(gate.len() == up.len() && out.len() == up.len(), "swiglu: lengths differ");
    if out.len() < SMALL {
        return swiglu_range(pool.isa(), gate, up, out);
    }
    pool.split_rows([(out, 1)], &|range, [out]| {
        swiglu_range(pool.isa(), &gate[range.clone()], &up[range], out);
    });
}

vectorised! {
    fn swiglu_range(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = *gate / (1.0 + exp_lane(-*gate)) * up;
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
    use super::swiglu_range;
    use crate::isa::Isa;

    #[test]
    fn vector_and_scalar_give_the_same_bits() {
        let gate: Vec<f32> =
            (0..1003).map(|i| (i as f32 - 500.0) * 0.31).chain([-100.0, 100.0, 0.0, -0.0]).collect();
        let up: Vec<f32> = (0..gate.len()).map(|i| i as f32 / 100.0 - 3.0).collect();
        let (mut a, mut b) = (gate.clone(), gate.clone());
        swiglu_range(Isa::best(), &gate, &up, &mut a);
        swiglu_range(Isa::Scalar, &gate, &up, &mut b);
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&a), bits(&b));
        for ((a, gate), up) in a.iter().zip(&gate).zip(&up) {
            let (gate, up) = (f64::from(*gate), f64::from(*up));
            let want = gate / (1.0 + (-gate).exp()) * up;
            assert!((f64::from(*a) - want).abs() <= want.abs() * 2e-6 + 1e-30, "{a} {want}");
        }
    }
}
