//! `y = x W^T` for `m` rows: `dunlin_kernels::linear`.

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::launch::{Grid, arguments};
use crate::matrix::DeviceMatrix;
use crate::memory::{DeviceBuffer, Slice, SliceMut};
use crate::names;
pub use crate::names::Width;

/// Inputs of a quantised block, outputs of a panel, rows of a tile: those of `device/common.cuh`.
const BLOCK: usize = 32;
const PANEL: usize = 16;
const TILE: usize = 8;
/// The largest numbers of rows for which the kernels for few rows are the faster ones.
const FEW_QUANTISED: usize = 32;
const FEW_DENSE: usize = 16;

/// Rows of 8-bit integers, as products with quantised weights read them. The memory is kept for the next ones.
pub struct Activations {
    q: DeviceBuffer<u8>,
    /// Scale, and scale times sum, of every block.
    scales: DeviceBuffer<f32>,
    /// The sums of both halves of every block.
    half_sums: DeviceBuffer<i32>,
    tiles: usize,
}

impl Activations {
    /// Without memory.
    ///
    /// # Errors
    /// When an operation before failed.
    pub fn new(gpu: &Gpu) -> Result<Self, GpuError> {
        Ok(Self { q: gpu.buffer(0)?, scales: gpu.buffer(0)?, half_sums: gpu.buffer(0)?, tiles: 0 })
    }

    /// Quantises `m` rows of `k` values.
    fn fill(&mut self, gpu: &Gpu, x: Slice<'_, f32>, m: usize, k: usize) -> Result<(), GpuError> {
        assert!(k.is_multiple_of(BLOCK), "linear: rows of {k} values are not whole blocks");
        let (blocks, tiles) = (k / BLOCK, m.div_ceil(TILE));
        self.tiles = tiles;
        self.q.ensure(blocks * tiles * TILE * BLOCK)?;
        self.scales.ensure(blocks * tiles * TILE * 2)?;
        self.half_sums.ensure(blocks * tiles * TILE * 2)?;
        let (q, scales, half_sums) = (self.q.all_mut(), self.scales.all_mut(), self.half_sums.all_mut());
        let grid = Grid(blocks.div_ceil(8), tiles * TILE, 1);
        // SAFETY: the arguments are those of the kernel, and every block of every row of a tile has its room.
        unsafe { gpu.launch("quantise", grid, 256, arguments![x, m, k, q, scales, half_sums]) }
    }
}

/// What operations need for the time of a call. The memory is kept for the next one.
pub struct Scratch {
    activations: Activations,
    /// Of attention.
    pub(crate) parts: DeviceBuffer<f32>,
    width: Option<Width>,
}

impl Scratch {
    /// Without memory.
    ///
    /// # Errors
    /// When an operation before failed.
    pub fn new(gpu: &Gpu) -> Result<Self, GpuError> {
        Ok(Self { activations: Activations::new(gpu)?, parts: gpu.buffer(0)?, width: None })
    }

    /// From now on products are computed by the kernels of this width, whatever the number of rows; by those that are best for it if none is given. It
    /// is for comparing them: the bits are the same.
    pub fn set_width(&mut self, width: Option<Width>) {
        self.width = width;
    }

    /// The kernels for so many rows.
    fn width_for(&self, w: &DeviceMatrix, m: usize) -> Width {
        let few = if w.is_quantised() { FEW_QUANTISED } else { FEW_DENSE };
        self.width.unwrap_or(match m {
            _ if m > few => Width::Many,
            0..=8 => Width::Eight,
            9..=16 => Width::Sixteen,
            _ => Width::ThirtyTwo,
        })
    }
}

/// `y = x W^T` of one or several maps of the same `m` rows, which are quantised once.
///
/// # Errors
/// When an operation before failed, or there is too little memory.
///
/// # Panics
/// When the lengths do not fit.
pub fn linear(
    gpu: &Gpu,
    scratch: &mut Scratch,
    ws: &[&DeviceMatrix],
    x: Slice<'_, f32>,
    m: usize,
    ys: &mut [SliceMut<'_, f32>],
) -> Result<(), GpuError> {
    run(gpu, scratch, ws, &Rows { x, m, add: false }, ys)
}

/// `y += x W^T`: every output is summed as in [`linear`], then added.
///
/// # Errors
/// When an operation before failed, or there is too little memory.
///
/// # Panics
/// When the lengths do not fit.
pub fn linear_add(
    gpu: &Gpu,
    scratch: &mut Scratch,
    ws: &[&DeviceMatrix],
    x: Slice<'_, f32>,
    m: usize,
    ys: &mut [SliceMut<'_, f32>],
) -> Result<(), GpuError> {
    run(gpu, scratch, ws, &Rows { x, m, add: true }, ys)
}

/// Inputs of a call, and whether outputs are added to what is there.
struct Rows<'a> {
    x: Slice<'a, f32>,
    m: usize,
    add: bool,
}

fn run(
    gpu: &Gpu,
    scratch: &mut Scratch,
    ws: &[&DeviceMatrix],
    rows: &Rows<'_>,
    ys: &mut [SliceMut<'_, f32>],
) -> Result<(), GpuError> {
    let m = rows.m;
    assert_eq!(ws.len(), ys.len(), "as many outputs as maps");
    for (w, y) in ws.iter().zip(ys.iter()) {
        assert!(rows.x.len() == m * w.k(), "linear: {} values for {m} rows of {}", rows.x.len(), w.k());
        assert!(y.len() == m * w.n(), "linear: {} outputs for {m} rows of {}", y.len(), w.n());
    }
    if let Some(w) = ws.iter().find(|w| w.is_quantised()) {
        scratch.activations.fill(gpu, rows.x, m, w.k())?;
    }
    for (w, y) in ws.iter().zip(ys) {
        let width = scratch.width_for(w, m);
        if w.is_quantised() {
            quantised(gpu, &scratch.activations, w, width, rows, y.reborrow())?;
        } else {
            dense(gpu, w, width, rows, y.reborrow())?;
        }
    }
    Ok(())
}

fn quantised(
    gpu: &Gpu,
    a: &Activations,
    w: &DeviceMatrix,
    width: Width,
    rows: &Rows<'_>,
    y: SliceMut<'_, f32>,
) -> Result<(), GpuError> {
    let (panels, tiles) = (w.n().div_ceil(PANEL), a.tiles);
    let grid = match width {
        Width::Eight => Grid(panels, tiles, 1),
        Width::Sixteen => Grid(panels, tiles.div_ceil(2), 1),
        Width::ThirtyTwo => Grid(panels, tiles.div_ceil(4), 1),
        Width::Many => Grid(panels.div_ceil(4), tiles.div_ceil(16), 1),
    };
    let (q, scales, half_sums) = (a.q.all(), a.scales.all(), a.half_sums.all());
    let (n, k, add) = (w.n(), w.k(), usize::from(rows.add));
    let arguments = arguments![w.data(), q, scales, half_sums, y, rows.m, n, k, tiles, add];
    // SAFETY: the arguments are those of the kernel; the panels exist, the tiles were filled, and the output has m rows of n values.
    unsafe { gpu.launch(names::product(w.packing(), width), grid, 256, arguments) }
}

fn dense(
    gpu: &Gpu,
    w: &DeviceMatrix,
    width: Width,
    rows: &Rows<'_>,
    y: SliceMut<'_, f32>,
) -> Result<(), GpuError> {
    let (n, k, m) = (w.n(), w.k(), rows.m);
    let grid = match width {
        Width::Many => Grid(n.div_ceil(64), m.div_ceil(128), 1),
        _ => Grid(n.div_ceil(PANEL), m.div_ceil(TILE), 1),
    };
    let arguments = arguments![w.data(), rows.x, y, m, n, k, usize::from(rows.add)];
    // SAFETY: the arguments are those of the kernel; the panels exist, and there are m rows of k inputs and of n outputs.
    unsafe { gpu.launch(names::product(w.packing(), width), grid, 256, arguments) }
}
