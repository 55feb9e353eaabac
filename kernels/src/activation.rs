//! Element-wise operations of a decoder block.

use crate::math::exp;

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

/// `gate = silu(gate) * up` with `silu(v) = v / (1 + exp(-v))` (Shazeer 2020).
///
/// # Panics
/// When the lengths differ.
pub fn swiglu(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "swiglu: lengths differ");
    #[cfg(target_arch = "x86_64")]
    if crate::isa::Isa::best() >= crate::isa::Isa::Avx2 {
        let whole = gate.len() / 8 * 8;
        // SAFETY: AVX2 and FMA are there.
        unsafe { swiglu_avx2(&mut gate[..whole], &up[..whole]) };
        swiglu_scalar(&mut gate[whole..], &up[whole..]);
        return;
    }
    swiglu_scalar(gate, up);
}

fn swiglu_scalar(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp(-*gate)) * up;
    }
}

/// # Safety
/// Needs AVX2 and FMA; lengths are equal multiples of 8.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn swiglu_avx2(gate: &mut [f32], up: &[f32]) {
    use std::arch::x86_64::{
        _mm256_add_ps, _mm256_div_ps, _mm256_loadu_ps, _mm256_mul_ps, _mm256_set1_ps, _mm256_storeu_ps,
        _mm256_xor_ps,
    };
    let (one, sign) = (_mm256_set1_ps(1.0), _mm256_set1_ps(-0.0));
    for (gate, up) in gate.chunks_exact_mut(8).zip(up.chunks_exact(8)) {
        // SAFETY: both slices have 8 values.
        unsafe {
            let g = _mm256_loadu_ps(gate.as_ptr());
            let e = crate::softmax::exp_avx2(_mm256_xor_ps(g, sign));
            let silu = _mm256_div_ps(g, _mm256_add_ps(one, e));
            _mm256_storeu_ps(gate.as_mut_ptr(), _mm256_mul_ps(silu, _mm256_loadu_ps(up.as_ptr())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{swiglu, swiglu_scalar};

    #[test]
    fn vector_and_scalar_give_the_same_bits() {
        let gate: Vec<f32> =
            (0..1003).map(|i| (i as f32 - 500.0) * 0.31).chain([-100.0, 100.0, 0.0, -0.0]).collect();
        let up: Vec<f32> = (0..gate.len()).map(|i| i as f32 / 100.0 - 3.0).collect();
        let (mut a, mut b) = (gate.clone(), gate.clone());
        swiglu(&mut a, &up);
        swiglu_scalar(&mut b, &up);
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&a), bits(&b));
        for ((a, gate), up) in a.iter().zip(&gate).zip(&up) {
            let (gate, up) = (f64::from(*gate), f64::from(*up));
            let want = gate / (1.0 + (-gate).exp()) * up;
            assert!((f64::from(*a) - want).abs() <= want.abs() * 2e-6 + 1e-30, "{a} {want}");
        }
    }
}
