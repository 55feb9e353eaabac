//! Matrices in bf16: held in f16 where that changes next to nothing, and as they are elsewhere.
//!
//! f16 has three bits of precision more than bf16 and three of range less: values from 2^-17 to 65,504 are the same in both, smaller ones are
//! rounded to multiples of 2^-24. In a matrix of usual size those are few and far below the others, and rounding them is nothing beside what rounding
//! to bf16 did. A matrix whose values are all that small, or that has larger ones, stays in bf16.

use half::{bf16, f16};

/// What rounding to f16 may change of a matrix, as a part of the root of the sum of squares. bf16 itself rounds by 2^-10 of it.
const LOSS_MAX: f64 = 1.0 / 4096.0;
/// Magnitudes: bf16 without its sign.
const MAGNITUDES: usize = 1 << 15;
/// From here on they are infinite or not numbers.
const INFINITE: usize = 0x7f80;

/// How often a matrix has each magnitude: the same in whatever pieces it is read, and so is what is concluded.
pub(super) struct Counts(Box<[u64]>);

impl Counts {
    /// Memory that it takes.
    pub(super) const BYTES: usize = MAGNITUDES * size_of::<u64>();

    pub(super) fn new() -> Self {
        Self(vec![0; MAGNITUDES].into_boxed_slice())
    }

    /// Counts the values of a piece.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        for value in bytes.as_chunks::<2>().0 {
            self.0[usize::from(u16::from_le_bytes(*value)) % MAGNITUDES] += 1;
        }
    }

    pub(super) fn all_finite(&self) -> bool {
        self.0[INFINITE..].iter().all(|count| *count == 0)
    }

    /// Is what f16 would change of the matrix next to nothing?
    pub(super) fn fit_f16(&self) -> bool {
        let (mut squares, mut lost) = (0.0, 0.0);
        for (magnitude, count) in (0u16..).zip(self.0.iter()).filter(|(_, count)| **count > 0) {
            let value = bf16::from_bits(magnitude).to_f32();
            let exact = f64::from(value);
            // One that is too large for f16 becomes infinite, and so does the loss.
            let difference = f16::from_f32(value).to_f64() - exact;
            squares += *count as f64 * exact * exact;
            lost += *count as f64 * difference * difference;
        }
        lost <= LOSS_MAX * LOSS_MAX * squares
    }
}

/// Turns values into f16, in place.
pub(super) fn to_f16(bytes: &mut [u8]) {
    for value in bytes.as_chunks_mut::<2>().0 {
        *value = f16::from_f32(bf16::from_le_bytes(*value).to_f32()).to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use crate::matrix::{Format, Matrix, PackError, Packing};

    /// How a matrix is held whose values are of this size, but for `more`.
    fn held(size: f32, more: &[f32]) -> Result<Packing, PackError> {
        let noise = |i: u32| (i.wrapping_mul(0x9e37_79b9) >> 16) as f32 / 32_768.0 - 1.0;
        let mut values: Vec<f32> = (0..4096).map(|i| size * noise(i)).collect();
        values[..more.len()].copy_from_slice(more);
        let bytes: Vec<u8> = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        let matrix = Matrix::from_ggml(Format::BF16, 64, 64, &bytes)?;
        if matrix.packing == Packing::Bf16 {
            let mut row = [0.0; 64];
            for (i, values) in values.chunks_exact(64).enumerate() {
                matrix.row(i, &mut row);
                assert!(
                    row.iter().zip(values).all(|(got, v)| *got == bf16::from_f32(*v).to_f32()),
                    "row {i}"
                );
            }
        }
        Ok(matrix.packing)
    }

    #[test]
    fn matrices_of_usual_size_are_held_in_f16_with_whatever_small_values() {
        for size in [1e4, 1.0, 0.02, 1e-3, 1e-4] {
            assert_eq!(held(size, &[0.0, 1e-8, -1e-8, 1e-20, 1e-38]), Ok(Packing::F16), "{size}");
        }
        // Rows of tokens that were never trained.
        assert_eq!(held(0.02, &[1e-23; 2048]), Ok(Packing::F16));
        assert_eq!(held(0.0, &[]), Ok(Packing::F16));
    }

    #[test]
    fn what_f16_has_no_room_for_stays_as_it_is() {
        for size in [1e-5, 1e-6, 1e-8, 1e-20, 1e-39, 1e6, 1e30] {
            assert_eq!(held(size, &[]), Ok(Packing::Bf16), "{size}");
        }
        assert_eq!(held(1.0, &[1e5]), Ok(Packing::Bf16));
        assert_eq!(held(1e-6, &[-3e38]), Ok(Packing::Bf16));
    }

    #[test]
    fn values_that_are_not_finite_are_refused() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(held(1.0, &[value]), Err(PackError::NotFinite));
        }
    }
}
