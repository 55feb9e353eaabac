//! Weights on the device, packed as on the host.

use dunlin_kernels::{Matrix, Packing};

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::memory::{DeviceBuffer, Slice, SliceMut};

/// A linear map of `k` inputs to `n` outputs on the device: the bytes of [`Matrix::as_bytes`].
pub struct DeviceMatrix {
    data: DeviceBuffer<u8>,
    packing: Packing,
    n: usize,
    k: usize,
}

impl DeviceMatrix {
    /// Copies a matrix to the device.
    ///
    /// # Errors
    /// When there is too little memory, or an operation before failed.
    pub fn upload(gpu: &Gpu, matrix: &Matrix) -> Result<Self, GpuError> {
        let mut uploaded = Self::like(gpu, matrix)?;
        gpu.write(uploaded.data_mut(), matrix.as_bytes())?;
        Ok(uploaded)
    }

    /// Room for a matrix of the same size and packing, whose weights are undefined until they are copied into [`data_mut`](Self::data_mut).
    ///
    /// # Errors
    /// When there is too little memory.
    pub fn like(gpu: &Gpu, matrix: &Matrix) -> Result<Self, GpuError> {
        let data = gpu.buffer(matrix.bytes())?;
        Ok(Self { data, packing: matrix.packing(), n: matrix.n(), k: matrix.k() })
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

    /// Memory it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// How the weights are packed.
    #[must_use]
    pub fn packing(&self) -> Packing {
        self.packing
    }

    /// Are inputs quantised first?
    #[must_use]
    pub fn is_quantised(&self) -> bool {
        !matches!(self.packing, Packing::F32 | Packing::F16 | Packing::Bf16)
    }

    /// The packed weights, to be written: the bytes of a matrix of the same size and packing.
    #[must_use]
    pub fn data_mut(&mut self) -> SliceMut<'_, u8> {
        self.data.all_mut()
    }

    pub(crate) fn data(&self) -> Slice<'_, u8> {
        self.data.all()
    }
}
