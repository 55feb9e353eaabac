//! Weights on the device.

use std::collections::BTreeMap;

use dunlin_cuda::{DeviceBuffer, DeviceMatrix, Gpu, GpuError};
use dunlin_model::adapter::LayerAdapter;
use dunlin_model::spec::{Projection, TensorRole};
use dunlin_model::{Adapter, Head, LayerWeights};

/// One decoder block.
pub(crate) struct DeviceLayer {
    /// By [`Projection`].
    matrices: Vec<DeviceMatrix>,
    /// Norms and biases.
    vectors: BTreeMap<TensorRole, DeviceBuffer<f32>>,
}

impl DeviceLayer {
    pub(crate) fn upload(gpu: &Gpu, weights: &LayerWeights) -> Result<Self, GpuError> {
        let matrix = |which| DeviceMatrix::upload(gpu, weights.matrix(which));
        let vector = |(role, values): (TensorRole, &[f32])| Ok((role, gpu.upload(values)?));
        Ok(Self {
            matrices: Projection::ALL.into_iter().map(matrix).collect::<Result<_, _>>()?,
            vectors: weights.vectors().map(vector).collect::<Result<_, GpuError>>()?,
        })
    }

    pub(crate) fn matrix(&self, which: Projection) -> &DeviceMatrix {
        &self.matrices[which as usize]
    }

    pub(crate) fn vector(&self, role: TensorRole) -> &DeviceBuffer<f32> {
        &self.vectors[&role]
    }
}

/// Final norm and output matrix.
pub(crate) struct DeviceHead {
    pub(crate) norm: DeviceBuffer<f32>,
    pub(crate) eps: f32,
    pub(crate) output: DeviceMatrix,
}

impl DeviceHead {
    pub(crate) fn upload(gpu: &Gpu, head: &Head) -> Result<Self, GpuError> {
        let output = DeviceMatrix::upload(gpu, head.output())?;
        Ok(Self { norm: gpu.upload(head.norm())?, eps: head.eps(), output })
    }
}

/// Two thin matrices beside one of a block.
pub(crate) struct DevicePair {
    pub(crate) a: DeviceMatrix,
    pub(crate) b: DeviceMatrix,
    pub(crate) scale: f32,
}

/// What an adapter adds in each block, by [`Projection`].
pub(crate) struct DeviceAdapter(Vec<Vec<Option<DevicePair>>>);

impl DeviceAdapter {
    pub(crate) fn upload(gpu: &Gpu, adapter: &Adapter) -> Result<Self, GpuError> {
        let pair = |layer: &LayerAdapter, which| {
            let Some(pair) = layer.pair(which) else { return Ok(None) };
            let (a, b) = (DeviceMatrix::upload(gpu, pair.a())?, DeviceMatrix::upload(gpu, pair.b())?);
            Ok(Some(DevicePair { a, b, scale: pair.scale() }))
        };
        let layer =
            |layer: &LayerAdapter| Projection::ALL.into_iter().map(|which| pair(layer, which)).collect();
        Ok(Self(adapter.layers().iter().map(layer).collect::<Result<_, GpuError>>()?))
    }

    pub(crate) fn pair(&self, layer: u32, which: Projection) -> Option<&DevicePair> {
        self.0.get(layer as usize)?[which as usize].as_ref()
    }
}
