//! A packed matrix.

use super::format::{Format, PackError};
use super::pack;
use super::packing::{PANEL, Packing};
use super::unpack;
use crate::buffer::Buffer;
use crate::pool::Pool;

/// A packed linear map of `k` inputs to `n` outputs.
pub struct Matrix {
    pub(crate) packing: Packing,
    pub(crate) data: Buffer<u8>,
    pub(super) format: Format,
    pub(super) n: usize,
    pub(super) k: usize,
}

impl Matrix {
    /// From `n` rows of `k` values.
    ///
    /// # Panics
    /// When `w` has another length.
    #[must_use]
    pub fn from_f32(n: usize, k: usize, w: &[f32]) -> Self {
        assert_eq!(w.len(), n * k, "{n} x {k} values");
        Self { packing: Packing::F32, data: pack::f32(n, k, w), format: Format::F32, n, k }
    }

    /// `n` rows of `k` zeroes, to be set later.
    #[must_use]
    pub fn zeroed_f32(n: usize, k: usize) -> Self {
        let data = Buffer::zeroed(n.div_ceil(PANEL) * PANEL * k * size_of::<f32>());
        Self { packing: Packing::F32, data, format: Format::F32, n, k }
    }

    /// Makes it one of f32 with `n` rows of `k` values, which may be anything until they are set; memory is kept when it is enough.
    pub(crate) fn resize_f32(&mut self, n: usize, k: usize) {
        let bytes = n.div_ceil(PANEL) * PANEL * k * size_of::<f32>();
        if self.packing != Packing::F32 || self.data.len() != bytes {
            *self = Self::zeroed_f32(n, k);
        }
        (self.n, self.k) = (n, k);
    }

    /// Replaces the values by `n` rows of `k`, in place.
    ///
    /// # Panics
    /// When `w` has another length or the matrix is not of f32.
    pub fn set(&mut self, pool: &Pool, w: &[f32]) {
        assert!(w.len() == self.n * self.k && self.packing == Packing::F32, "{} x {} values", self.n, self.k);
        let (n, k) = (self.n, self.k);
        let panel_len = k * PANEL;
        pool.split_rows([(self.f32s(), panel_len)], &|range, [panels]| {
            for (p, panel) in range.zip(panels.chunks_exact_mut(panel_len)) {
                let rows = &w[p * panel_len..(p * panel_len + panel_len).min(n * k)];
                pack::panel_f32(pool.isa(), rows, k, panel);
            }
        });
    }

    /// Replaces the values by the transpose of `k` rows of `n`, in place.
    ///
    /// # Panics
    /// When `w` has another length or the matrix is not of f32.
    pub fn set_transposed(&mut self, pool: &Pool, w: &[f32]) {
        assert!(w.len() == self.n * self.k && self.packing == Packing::F32, "{} x {} values", self.n, self.k);
        let (n, panel_len) = (self.n, self.k * PANEL);
        pool.split_rows([(self.f32s(), panel_len)], &|range, [panels]| {
            for (p, panel) in range.zip(panels.chunks_exact_mut(panel_len)) {
                let (column, count) = (p * PANEL, PANEL.min(n - p * PANEL));
                for (row, out) in w.chunks_exact(n).zip(panel.as_chunks_mut::<PANEL>().0) {
                    match row[column..].first_chunk::<PANEL>() {
                        Some(whole) => *out = *whole,
                        None => out[..count].copy_from_slice(&row[column..]),
                    }
                }
            }
        });
    }

    /// The values of a matrix of f32: `[n / 16][k][16]`.
    pub(crate) fn values(&self) -> &[f32] {
        assert!(self.packing == Packing::F32, "values of {:?}", self.format);
        // SAFETY: the buffer is aligned to 64 bytes, its length is a multiple of 4, and any bytes are floats.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr().cast(), self.data.len() / 4) }
    }

    fn f32s(&mut self) -> &mut [f32] {
        // SAFETY: the buffer is aligned to 64 bytes, its length is a multiple of 4, and any bytes are floats.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_mut_ptr().cast(), self.data.len() / 4) }
    }

    /// Memory that a matrix of `n` rows of `k` values of a file takes when it is packed.
    ///
    /// # Errors
    /// When a row does not fill whole blocks.
    pub fn packed_bytes(format: Format, n: usize, k: usize) -> Result<usize, PackError> {
        format.row_bytes(k)?;
        let (values, bytes) = Packing::of(format).block();
        Ok(n.div_ceil(PANEL) * (k / values) * bytes)
    }

    /// Outputs.
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    /// The format it came from.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// How its values are packed.
    #[must_use]
    pub fn packing(&self) -> Packing {
        self.packing
    }

    /// Memory it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// The packed values, padding included.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.data
    }

    pub(crate) fn panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }

    pub(crate) fn panel_bytes(&self) -> usize {
        self.data.len() / self.panels().max(1)
    }

    /// Row `i` as f32: the values that products are computed with.
    ///
    /// # Panics
    /// When `i >= n` or `out` is not `k` long.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        assert!(i < self.n && out.len() == self.k, "row {i} of {} x {}", self.n, self.k);
        let panel = &self.data[i / PANEL * self.panel_bytes()..][..self.panel_bytes()];
        unpack::row(self.packing, panel, i % PANEL, out);
    }
}
