//! How a kernel is started.

use std::ffi::c_void;

use cudarc::driver::result;

use crate::error::{GpuError, Tried};
use crate::gpu::Gpu;
use crate::memory::{Element, Slice, SliceMut};

/// An argument of a kernel, which reads as many of its bytes as the parameter has, from the first: they are the lowest.
#[derive(Clone, Copy)]
pub(crate) struct Argument(u64);

const _: () =
    assert!(cfg!(target_endian = "little"), "a short argument lies in the first bytes of a long one");

impl From<f32> for Argument {
    fn from(x: f32) -> Self {
        Self(x.to_bits().into())
    }
}

impl From<u32> for Argument {
    fn from(x: u32) -> Self {
        Self(x.into())
    }
}

/// Sizes are `int` on the device, or unsigned.
impl From<usize> for Argument {
    fn from(x: usize) -> Self {
        assert!(i32::try_from(x).is_ok(), "{x} is more than a kernel counts");
        Self(x as u64)
    }
}

impl<T: Element> From<Slice<'_, T>> for Argument {
    fn from(slice: Slice<'_, T>) -> Self {
        Self(slice.address())
    }
}

impl<T: Element> From<SliceMut<'_, T>> for Argument {
    fn from(slice: SliceMut<'_, T>) -> Self {
        Self(slice.address())
    }
}

/// Blocks of threads in each direction.
#[derive(Clone, Copy)]
pub(crate) struct Grid(pub(crate) usize, pub(crate) usize, pub(crate) usize);

impl Grid {
    fn dimensions(self) -> (u32, u32, u32) {
        let size = |n: usize| u32::try_from(n).expect("a grid has less than 2^31 blocks in a direction");
        (size(self.0), size(self.1), size(self.2))
    }
}

impl Gpu {
    /// Puts a kernel on the queue, with so many threads in a block; nothing if the grid is empty.
    ///
    /// # Safety
    /// The arguments are those of the kernel, in number, order and type, and it stays inside of the memory they point to.
    pub(crate) unsafe fn launch<const N: usize>(
        &self,
        kernel: &'static str,
        grid: Grid,
        threads: usize,
        arguments: [Argument; N],
    ) -> Result<(), GpuError> {
        let grid = grid.dimensions();
        if grid.0 == 0 || grid.1 == 0 || grid.2 == 0 {
            return Ok(());
        }
        self.context.bind_to_thread().tried(kernel)?;
        let function = self.kernels[kernel].cu_function();
        // The driver copies what they point to before it returns.
        let mut pointers =
            arguments.each_ref().map(|argument| (&raw const argument.0).cast_mut().cast::<c_void>());
        let (threads, stream) = ((threads as u32, 1, 1), self.compute.cu_stream());
        // SAFETY: promised.
        unsafe { result::launch_kernel(function, grid, threads, 0, stream, &mut pointers) }.tried(kernel)
    }
}

/// The arguments of a kernel, each made one.
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => {
        [$($crate::launch::Argument::from($argument)),*]
    };
}
pub(crate) use arguments;
