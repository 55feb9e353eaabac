//! Copies beside the computation: weights that come while the layer before is computed.
//!
//! Two queues know nothing of each other. What one needs of the other it waits for by an [`StreamEvent`]; when that is left out, nothing fails and the
//! bits are wrong.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, CudaEvent, PinnedHostSlice, result};

use crate::error::{GpuError, Tried};
use crate::gpu::Gpu;
use crate::memory::{Element, SliceMut};

/// A point on a queue: it has come when all that was put on the queue before is done.
#[derive(Clone)]
pub struct StreamEvent(Arc<CudaEvent>);

impl StreamEvent {
    /// Has it come?
    ///
    /// # Errors
    /// When an operation before it failed.
    pub fn has_come(&self) -> Result<bool, GpuError> {
        self.0.try_is_complete().tried("asking for an event")
    }
}

/// Memory of the host that the device reads by itself.
pub struct PinnedBuffer<T: Element> {
    data: PinnedHostSlice<T>,
    /// Behind the last copy from it.
    copied: Mutex<Option<StreamEvent>>,
}

impl<T: Element> PinnedBuffer<T> {
    /// Values that it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Has it none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits for the last copy from it, and sets all values.
    ///
    /// # Errors
    /// When an operation before failed.
    ///
    /// # Panics
    /// When there are not as many.
    pub fn fill(&mut self, values: &[T]) -> Result<(), GpuError> {
        assert_eq!(values.len(), self.len(), "fill: lengths differ");
        self.wait()?;
        self.data.as_mut_slice().tried("filling pinned memory")?.copy_from_slice(values);
        Ok(())
    }

    fn wait(&self) -> Result<(), GpuError> {
        let last = self.copied.lock().unwrap_or_else(PoisonError::into_inner).take();
        last.map_or(Ok(()), |last| last.0.synchronize().tried("waiting for a copy"))
    }
}

impl<T: Element> Drop for PinnedBuffer<T> {
    fn drop(&mut self) {
        // If it failed, nothing is copied any more.
        let _ = self.wait();
    }
}

fn event(context: &Arc<CudaContext>) -> Result<StreamEvent, GpuError> {
    Ok(StreamEvent(Arc::new(context.new_event(None).tried("making an event")?)))
}

impl Gpu {
    /// Pinned memory for `len` values, which are undefined.
    ///
    /// # Errors
    /// When there is too little memory.
    pub fn pinned<T: Element>(&self, len: usize) -> Result<PinnedBuffer<T>, GpuError> {
        // Not the kind that writes fast and reads a hundred times as slowly: the host computes from it as well.
        const PLAIN: u32 = 0;
        // SAFETY: any bytes are values.
        let data = unsafe { self.context.alloc_pinned_with_flags(len, PLAIN) }.tried("pinning memory")?;
        Ok(PinnedBuffer { data, copied: Mutex::new(None) })
    }

    /// The point behind all that is on the queue of computation.
    ///
    /// # Errors
    /// When an operation before failed.
    pub fn computed(&self) -> Result<StreamEvent, GpuError> {
        let event = event(&self.context)?;
        event.0.record(&self.compute).tried("recording an event")?;
        Ok(event)
    }

    /// The computation goes on when `event` has come.
    ///
    /// # Errors
    /// When an operation before failed.
    pub fn wait_for(&self, event: &StreamEvent) -> Result<(), GpuError> {
        self.compute.wait(&event.0).tried("waiting for an event")
    }

    /// Copies values beside the computation, when `after` has come, which is behind the last use of `to` or behind what made it. Until the event
    /// that it returns has come, `to` is undefined.
    ///
    /// # Errors
    /// When an operation before failed.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn copy_beside<T: Element>(
        &self,
        to: SliceMut<'_, T>,
        from: &PinnedBuffer<T>,
        after: &StreamEvent,
    ) -> Result<StreamEvent, GpuError> {
        assert_eq!(to.len(), from.len(), "copy_beside: lengths differ");
        self.copies.wait(&after.0).tried("waiting for an event")?;
        let copied = event(&self.context)?;
        let values = from.data.as_slice().tried("copying beside")?;
        // SAFETY: there is room on the device. The memory is neither written nor freed before `copied` has come.
        unsafe { result::memcpy_htod_async(to.address(), values, self.copies.cu_stream()) }
            .tried("copying beside")?;
        copied.0.record(&self.copies).tried("recording an event")?;
        *from.copied.lock().unwrap_or_else(PoisonError::into_inner) = Some(copied.clone());
        Ok(copied)
    }
}
