//! Sums of bit patterns: what tells whether values in memory are still those that were written.
//!
//! The sum of the patterns of 32 bits does not depend on the order of the values, so a packed matrix has that of the values it was packed from, padding
//! included (zeroes add nothing). One bit that flips changes it, whichever that is.

use crate::isa::{Isa, vectorised};

/// The sum of the bit patterns of some values.
#[must_use]
pub fn of_values(isa: Isa, values: &[f32]) -> u64 {
    sum_values(isa, values)
}

/// The same of values that lie in bytes; what is behind the last whole one counts for nothing.
#[must_use]
pub fn of_bytes(isa: Isa, bytes: &[u8]) -> u64 {
    sum_words(isa, bytes.as_chunks::<4>().0)
}

vectorised! {
    fn sum_values(values: &[f32]) -> u64 {
        values.iter().fold(0u64, |all, value| all.wrapping_add(u64::from(value.to_bits())))
    }
}

vectorised! {
    fn sum_words(words: &[[u8; 4]]) -> u64 {
        words.iter().fold(0u64, |all, word| all.wrapping_add(u64::from(u32::from_le_bytes(*word))))
    }
}

#[cfg(test)]
mod tests {
    use super::{of_bytes, of_values};
    use crate::isa::Isa;
    use crate::matrix::Matrix;
    use crate::pool::Pool;

    #[test]
    fn a_packed_matrix_has_the_sum_of_its_values_in_both_directions() {
        let (n, k) = (37, 21);
        let values: Vec<f32> = (0..n * k).map(|i| (i as f32 * 0.37).sin()).collect();
        for isa in Isa::all() {
            let pool = Pool::with_isa(2, isa);
            let (mut packed, mut transposed) = (Matrix::zeroed_f32(n, k), Matrix::zeroed_f32(k, n));
            packed.set(&pool, &values);
            transposed.set_transposed(&pool, &values);
            let sum = of_values(isa, &values);
            assert_eq!(sum, values.iter().map(|v| u64::from(v.to_bits())).sum::<u64>());
            assert_eq!((of_bytes(isa, packed.as_bytes()), of_bytes(isa, transposed.as_bytes())), (sum, sum));
            for bit in [0, 17, 31] {
                let mut changed = values.clone();
                changed[333] = f32::from_bits(changed[333].to_bits() ^ 1 << bit);
                assert_ne!(of_values(isa, &changed), sum);
            }
        }
    }
}
