//! Matrices in bf16 are held in f16, and what that loses.
//!
//! f16 has three bits more than bf16 and eight times less range: values from 2^-17 to 65,504 are the same in both, smaller ones are
//! rounded to multiples of 2^-24. In a matrix of usual size those are few and far below the others, and rounding them is nothing beside what rounding
//! to bf16 did. In a matrix whose values are all that small, it is not.

use half::{bf16, f16};

use crate::error::ModelError;

/// What rounding may change of a matrix, as a part of the root of the sum of squares. bf16 itself rounds by 2^-10 of it.
const LOSS_MAX: f64 = 1.0 / 4096.0;

/// What a matrix had, and what rounding took.
#[derive(Default)]
pub(super) struct Rounding {
    squares: f64,
    lost: f64,
    too_large: bool,
    not_finite: bool,
}

impl Rounding {
    /// Rounds a piece, in place.
    pub(super) fn bf16_to_f16(&mut self, bytes: &mut [u8]) {
        let (mut squares, mut lost) = (0.0f64, 0.0f64);
        for value in bytes.as_chunks_mut::<2>().0 {
            let exact = bf16::from_le_bytes(*value).to_f32();
            let rounded = f16::from_f32(exact);
            let difference = f64::from(exact) - f64::from(rounded.to_f32());
            squares += f64::from(exact) * f64::from(exact);
            lost += difference * difference;
            self.not_finite |= !exact.is_finite();
            self.too_large |= !rounded.is_finite();
            *value = rounded.to_le_bytes();
        }
        self.squares += squares;
        self.lost += lost;
    }

    /// Was that harmless?
    ///
    /// # Errors
    /// When values of the matrix are too large for f16, or all of them too small.
    pub(super) fn check(&self, name: &str) -> Result<(), ModelError> {
        let wrong = |which| Err(ModelError::Range { name: name.to_owned(), which });
        if self.not_finite {
            return wrong("not finite; use an intact copy of the model");
        }
        if self.too_large {
            return wrong("too large for f16; convert the model to f32");
        }
        if self.lost > LOSS_MAX * LOSS_MAX * self.squares {
            return wrong("all too small for f16; convert the model to f32");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::Rounding;

    /// Values of a matrix whose usual size is `size`.
    fn round(size: f32, more: &[f32]) -> Result<(), String> {
        let noise = |i: u32| (i.wrapping_mul(0x9e37_79b9) >> 16) as f32 / 32_768.0 - 1.0;
        let values = (0..4096).map(|i| size * noise(i)).chain(more.iter().copied());
        let mut bytes: Vec<u8> = values.flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect();
        let mut rounding = Rounding::default();
        // In pieces, as it is read.
        bytes.chunks_mut(512).for_each(|piece| rounding.bf16_to_f16(piece));
        rounding.check("x").map_err(|error| error.to_string())
    }

    #[test]
    fn matrices_of_usual_size_are_taken_with_whatever_small_values() {
        for size in [1e4, 1.0, 0.02, 1e-3, 1e-4] {
            assert_eq!(round(size, &[0.0, 1e-8, -1e-8, 1e-20, 1e-38]), Ok(()), "{size}");
        }
        // Rows of tokens that were never trained.
        let mut tiny = vec![1e-23; 4096];
        tiny[7] = 0.02;
        assert_eq!(round(0.02, &tiny), Ok(()));
        assert_eq!(round(0.0, &[]), Ok(()));
    }

    #[test]
    fn matrices_that_are_small_as_a_whole_are_refused() {
        for size in [1e-5, 1e-6, 1e-8, 1e-20] {
            assert!(
                round(size, &[]).unwrap_err().contains("too small for f16; convert the model to f32"),
                "{size}"
            );
        }
        assert!(round(1.0, &[1e5]).unwrap_err().contains("too large for f16"));
        for value in [f32::NAN, f32::INFINITY] {
            assert!(round(1.0, &[value]).unwrap_err().contains("not finite"));
        }
    }
}
