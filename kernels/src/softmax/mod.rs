//! Helpers of softmax and sampling.

pub mod reference;

use crate::isa::{Isa, vectorised};
use crate::math::exp_lane;

/// Are all values finite?
#[must_use]
pub fn all_finite(x: &[f32]) -> bool {
    // No early exit, so it vectorises.
    let mut bad = 0u32;
    for v in x {
        bad |= u32::from(v.to_bits() & 0x7f80_0000 == 0x7f80_0000);
    }
    bad == 0
}

/// The largest of `x`, whose values are finite; negative infinity when there are none.
#[must_use]
pub fn largest(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (whole, rest) = x.as_chunks::<16>();
    for chunk in whole {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, *v);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| larger(a, b))
}

/// `exp((logit - max) / temperature)` of each logit.
#[must_use]
pub fn weights(logits: &[f32], max: f32, temperature: f32) -> Vec<f32> {
    let mut out = vec![0.0; logits.len()];
    // The instruction set is this machine's.
    weights_into(Isa::best(), logits, max, temperature, &mut out);
    out
}

vectorised! {
    fn weights_into(logits: &[f32], max: f32, temperature: f32, out: &mut [f32]) {
        for (out, logit) in out.iter_mut().zip(logits) {
            *out = exp_lane((logit - max) / temperature);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{all_finite, largest, weights, weights_into};
    use crate::isa::Isa;
    use crate::math::exp;

    fn logits(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + 13) % 1009) as f32 / 31.0 - 20.0).collect()
    }

    #[test]
    fn the_largest_is_found_wherever_it_is() {
        for count in [1, 15, 16, 17, 100] {
            for at in 0..count {
                let mut x = vec![-3.0; count];
                x[at] = -1.0;
                assert_eq!(largest(&x), -1.0);
            }
        }
        assert_eq!(largest(&[]), f32::NEG_INFINITY);
    }

    #[test]
    fn weights_have_the_bits_of_exp_on_every_instruction_set() {
        let logits = logits(1001);
        let max = largest(&logits);
        let want: Vec<f32> = logits.iter().map(|l| exp((l - max) / 0.7)).collect();
        assert_eq!(weights(&logits, max, 0.7), want);
        for isa in Isa::all() {
            let mut out = vec![0.0; logits.len()];
            weights_into(isa, &logits, max, 0.7, &mut out);
            assert_eq!(out, want, "{isa:?}");
        }
    }

    #[test]
    fn finds_what_is_not_finite() {
        let mut x = vec![1.0f32; 100];
        assert!(all_finite(&x));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            x[37] = bad;
            assert!(!all_finite(&x));
        }
    }
}
