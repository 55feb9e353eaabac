//! A matrix from a file, some rows at a time: what is held beside the packed weights is what the caller reads at once.

use super::bf16::{self, Counts};
use super::format::{Format, PackError};
use super::pack;
use super::packed::Matrix;
use super::packing::{PANEL, Packing};
use crate::buffer::Buffer;

/// A matrix that has its first rows.
pub struct Packer {
    matrix: Matrix,
    rows: usize,
    /// Of a matrix in bf16.
    counts: Option<Counts>,
}

impl Packer {
    /// The rows of a piece must be a multiple of this, but for the last piece.
    pub const ROWS: usize = PANEL;
    /// Memory that a packer of bf16 takes beside the matrix.
    pub const BF16_BYTES: usize = Counts::BYTES;

    /// For `n` rows of `k` values.
    ///
    /// # Errors
    /// When a row does not fill whole blocks.
    pub fn new(format: Format, n: usize, k: usize) -> Result<Self, PackError> {
        let data = Buffer::zeroed(Matrix::packed_bytes(format, n, k)?);
        let counts = (format == Format::BF16).then(Counts::new);
        Ok(Self { matrix: Matrix { packing: Packing::of(format), data, format, n, k }, rows: 0, counts })
    }

    /// Takes the bytes of the next rows.
    ///
    /// Q4_0 and Q5_0 are kept as scale and minimum (`-8 d` and `-16 d`, exact).
    ///
    /// # Errors
    /// When they are not whole rows, not whole panels before the end, or more than are missing.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), PackError> {
        let Matrix { format, n, k, .. } = self.matrix;
        let row = format.row_bytes(k)?;
        let rows = bytes.len().checked_div(row).unwrap_or(n - self.rows);
        let left = n - self.rows;
        if rows * row != bytes.len() || rows > left || (rows < left && !rows.is_multiple_of(PANEL)) {
            return Err(PackError::Length { format, n, k, expected: left * row, found: bytes.len() });
        }
        let panel_bytes = self.matrix.panel_bytes();
        let first = self.rows / PANEL * panel_bytes;
        let out = &mut self.matrix.data[first..first + rows.div_ceil(PANEL) * panel_bytes];
        pack::rows(format, k, bytes, out);
        if let Some(counts) = &mut self.counts {
            counts.add(bytes);
        }
        self.rows += rows;
        Ok(())
    }

    /// The matrix. One in bf16 is turned into f16 if that changes next to nothing of it.
    ///
    /// # Errors
    /// When rows are missing, or values in bf16 are not finite.
    pub fn finish(mut self) -> Result<Matrix, PackError> {
        let Matrix { format, n, k, .. } = self.matrix;
        if self.rows < n {
            let row = format.row_bytes(k)?;
            return Err(PackError::Length { format, n, k, expected: n * row, found: self.rows * row });
        }
        if let Some(counts) = &self.counts {
            if !counts.all_finite() {
                return Err(PackError::NotFinite);
            }
            if counts.fit_f16() {
                bf16::to_f16(&mut self.matrix.data);
                self.matrix.packing = Packing::F16;
            }
        }
        Ok(self.matrix)
    }
}

impl Matrix {
    /// From the bytes of a tensor of a GGUF file, `n` rows of `k` values, all at once: see [`Packer`].
    ///
    /// # Errors
    /// When a row does not fill whole blocks, the length is not right or values in bf16 are not finite.
    pub fn from_ggml(format: Format, n: usize, k: usize, bytes: &[u8]) -> Result<Self, PackError> {
        let mut packer = Packer::new(format, n, k)?;
        packer.push(bytes)?;
        packer.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMATS: [Format; 15] = [
        Format::F32,
        Format::F16,
        Format::BF16,
        Format::Q8_0,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q4_K,
        Format::Q6_K,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q2_K,
        Format::Q3_K,
        Format::Q5_K,
        Format::IQ4_NL,
        Format::IQ4_XS,
    ];

    fn bytes(format: Format, n: usize, k: usize) -> Vec<u8> {
        // Without the uppermost bit of exponents, so that all are finite.
        let mask = if format == Format::BF16 { 0xbf } else { 0xff };
        (0..format.bytes(n * k).unwrap()).map(|i| (i * 7919 % 251) as u8 & mask).collect()
    }

    #[test]
    fn pieces_give_the_bytes_of_the_whole_and_as_many_as_was_said() {
        for format in FORMATS {
            for n in [1, 16, 40, 64] {
                let (k, bytes) = (256, bytes(format, n, 256));
                let whole = Matrix::from_ggml(format, n, k, &bytes).unwrap();
                assert_eq!(whole.bytes(), Matrix::packed_bytes(format, n, k).unwrap());
                let mut packer = Packer::new(format, n, k).unwrap();
                for piece in bytes.chunks(16 * format.bytes(k).unwrap()) {
                    packer.push(piece).unwrap();
                }
                assert!(packer.finish().unwrap().data[..] == whole.data[..], "{format:?}, {n} rows");
            }
        }
    }

    #[test]
    fn rows_that_do_not_fit_are_refused() {
        let row = 64 * 4;
        let mut packer = Packer::new(Format::F32, 40, 64).unwrap();
        assert!(packer.push(&vec![0; row * 5]).is_err(), "no whole panel");
        assert!(packer.push(&vec![0; row * 16 + 1]).is_err(), "no whole row");
        packer.push(&vec![0; row * 32]).unwrap();
        assert!(packer.push(&vec![0; row * 9]).is_err(), "too many");
        let missing = packer.finish().err().unwrap();
        assert!(matches!(missing, PackError::Length { expected: 10240, found: 8192, .. }), "{missing}");
        assert!(Packer::new(Format::Q8_0, 4, 33).is_err());
    }
}
