//! Buffers on the device, and copies.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DeviceRepr, ValidAsZeroBits, result};

use crate::error::{GpuError, Tried};
use crate::gpu::Gpu;

mod sealed {
    /// Nobody else has more of them.
    pub trait Sealed {}
}

/// What a buffer has: numbers, for which any bytes are a value.
pub trait Element: Copy + DeviceRepr + ValidAsZeroBits + sealed::Sealed + 'static {}

macro_rules! elements {
    ($($type:ty),*) => {
        $(
            impl sealed::Sealed for $type {}
            impl Element for $type {}
        )*
    };
}
elements!(f32, i8, i32, i64, u8, u16, u32, u64);

/// Memory on the device for some values. It is freed behind all that was put on the queue before.
pub struct DeviceBuffer<T: Element> {
    stream: Arc<CudaStream>,
    /// None while there are no values.
    data: Option<CudaSlice<T>>,
}

impl<T: Element> DeviceBuffer<T> {
    /// Values that it has room for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.data.as_ref().map_or(0, CudaSlice::len)
    }

    /// Has it no room at all?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes room for `len` values. When it grows, what was there is lost, and the new values are undefined. It never shrinks.
    ///
    /// # Errors
    /// When there is too little memory; the buffer is empty then.
    pub fn ensure(&mut self, len: usize) -> Result<(), GpuError> {
        if self.len() < len {
            // First, so that there is room for the new one.
            self.data = None;
            // SAFETY: any bytes are values.
            self.data = Some(unsafe { self.stream.alloc(len) }.tried("allocating memory")?);
        }
        Ok(())
    }

    /// All values.
    #[must_use]
    pub fn all(&self) -> Slice<'_, T> {
        Slice { at: self.at(), len: self.len(), buffer: PhantomData }
    }

    /// All values, to be written.
    #[must_use]
    pub fn all_mut(&mut self) -> SliceMut<'_, T> {
        SliceMut { at: self.at(), len: self.len(), buffer: PhantomData }
    }

    /// Some values.
    ///
    /// # Panics
    /// When there are not as many.
    #[must_use]
    pub fn range(&self, range: Range<usize>) -> Slice<'_, T> {
        self.all().range(range)
    }

    /// Some values, to be written.
    ///
    /// # Panics
    /// When there are not as many.
    #[must_use]
    pub fn range_mut(&mut self, range: Range<usize>) -> SliceMut<'_, T> {
        let Slice { at, len, .. } = self.all().range(range);
        SliceMut { at, len, buffer: PhantomData }
    }

    fn at(&self) -> u64 {
        // Nobody waits for anything: see `Gpu::open`.
        self.data.as_ref().map_or(0, |data| data.device_ptr(&self.stream).0)
    }
}

/// Some values of a buffer.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a, T> {
    at: u64,
    len: usize,
    buffer: PhantomData<&'a [T]>,
}

impl<T: Element> Slice<'_, T> {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Are there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A part of them.
    ///
    /// # Panics
    /// When there are not as many.
    #[must_use]
    pub fn range(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} values", self.len);
        Self { at: self.at + (range.start * size_of::<T>()) as u64, len: range.len(), ..self }
    }

    /// The address on the device.
    pub(crate) fn address(&self) -> u64 {
        self.at
    }
}

/// Some values of a buffer, to be written.
#[derive(Debug)]
pub struct SliceMut<'a, T> {
    at: u64,
    len: usize,
    buffer: PhantomData<&'a mut [T]>,
}

impl<'a, T: Element> SliceMut<'a, T> {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Are there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// To be read.
    #[must_use]
    pub fn as_slice(&self) -> Slice<'_, T> {
        Slice { at: self.at, len: self.len, buffer: PhantomData }
    }

    /// The same, for a shorter time.
    #[must_use]
    pub fn reborrow(&mut self) -> SliceMut<'_, T> {
        SliceMut { at: self.at, len: self.len, buffer: PhantomData }
    }

    /// The first `at` values, and the others.
    ///
    /// # Panics
    /// When there are not as many.
    #[must_use]
    pub fn split_at(self, at: usize) -> (SliceMut<'a, T>, SliceMut<'a, T>) {
        assert!(at <= self.len, "{at} of {} values", self.len);
        let behind = self.at + (at * size_of::<T>()) as u64;
        (Self { len: at, ..self }, Self { at: behind, len: self.len - at, buffer: PhantomData })
    }

    /// The address on the device.
    pub(crate) fn address(&self) -> u64 {
        self.at
    }
}

impl<'a, T: Element> From<&'a DeviceBuffer<T>> for Slice<'a, T> {
    fn from(buffer: &'a DeviceBuffer<T>) -> Self {
        buffer.all()
    }
}

impl<'a, T: Element> From<&'a mut DeviceBuffer<T>> for SliceMut<'a, T> {
    fn from(buffer: &'a mut DeviceBuffer<T>) -> Self {
        buffer.all_mut()
    }
}

impl Gpu {
    /// A buffer with room for `len` values, which are undefined.
    ///
    /// # Errors
    /// When there is too little memory.
    pub fn buffer<T: Element>(&self, len: usize) -> Result<DeviceBuffer<T>, GpuError> {
        let mut buffer = DeviceBuffer { stream: self.compute.clone(), data: None };
        buffer.ensure(len)?;
        Ok(buffer)
    }

    /// A buffer with these values.
    ///
    /// # Errors
    /// When there is too little memory.
    pub fn upload<T: Element>(&self, values: &[T]) -> Result<DeviceBuffer<T>, GpuError> {
        let mut buffer = self.buffer(values.len())?;
        self.write(&mut buffer, values)?;
        Ok(buffer)
    }

    /// Copies values to the device, to the beginning of `to`. `from` may change as soon as this returns.
    ///
    /// # Errors
    /// When an operation before failed.
    ///
    /// # Panics
    /// When there is no room for them.
    pub fn write<'a, T: Element>(&self, to: impl Into<SliceMut<'a, T>>, from: &[T]) -> Result<(), GpuError> {
        let to = to.into();
        assert!(from.len() <= to.len(), "write: {} values, and room for {}", from.len(), to.len());
        if from.is_empty() {
            return Ok(());
        }
        self.context.bind_to_thread().tried("write")?;
        // SAFETY: there is room on the device. Memory that is not pinned is copied aside before the call returns.
        unsafe { result::memcpy_htod_async(to.address(), from, self.compute.cu_stream()) }.tried("write")
    }

    /// Waits for all that was put on the queue, and copies values from the device.
    ///
    /// # Errors
    /// When an operation before failed.
    ///
    /// # Panics
    /// When there are not as many.
    pub fn read<'a, T: Element>(&self, from: impl Into<Slice<'a, T>>, to: &mut [T]) -> Result<(), GpuError> {
        let from = from.into();
        assert!(to.len() <= from.len(), "read: {} values of {}", to.len(), from.len());
        if !to.is_empty() {
            self.context.bind_to_thread().tried("read")?;
            // SAFETY: there are as many values on the device, and `to` is there until the stream is done.
            unsafe { result::memcpy_dtoh_async(to, from.address(), self.compute.cu_stream()) }
                .tried("read")?;
        }
        self.compute.synchronize().tried("read")
    }

    /// Copies values on the device.
    ///
    /// # Errors
    /// When an operation before failed.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn copy<T: Element>(&self, to: SliceMut<'_, T>, from: Slice<'_, T>) -> Result<(), GpuError> {
        assert_eq!(to.len(), from.len(), "copy: lengths differ");
        if to.is_empty() {
            return Ok(());
        }
        self.context.bind_to_thread().tried("copy")?;
        let bytes = to.len() * size_of::<T>();
        // SAFETY: both have as many bytes, and do not overlap.
        unsafe { result::memcpy_dtod_async(to.address(), from.address(), bytes, self.compute.cu_stream()) }
            .tried("copy")
    }

    /// Sets every byte.
    ///
    /// # Errors
    /// When an operation before failed.
    pub fn fill_bytes<T: Element>(&self, to: SliceMut<'_, T>, byte: u8) -> Result<(), GpuError> {
        if to.is_empty() {
            return Ok(());
        }
        self.context.bind_to_thread().tried("fill")?;
        let bytes = to.len() * size_of::<T>();
        // SAFETY: it has as many bytes.
        unsafe { result::memset_d8_async(to.address(), byte, bytes, self.compute.cu_stream()) }.tried("fill")
    }
}
