//! Memory aligned to a cache line.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

const ALIGN: usize = 64;

/// Types whose all-zero bytes are a valid value and which need no drop.
///
/// # Safety
/// Implementors promise exactly that.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}

// SAFETY: integers and floats are valid for any bytes.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for i8 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}
// SAFETY: as above.
unsafe impl Plain for [i32; 2] {}
// SAFETY: two floats.
unsafe impl Plain for crate::attention::merge::Softmax {}

/// A fixed-size array of `T`, zeroed and aligned to 64 bytes.
pub struct Buffer<T: Plain> {
    data: NonNull<T>,
    len: usize,
}

// SAFETY: the buffer owns its memory and `T` is Send and Sync.
unsafe impl<T: Plain> Send for Buffer<T> {}
// SAFETY: as above; shared access is read-only.
unsafe impl<T: Plain> Sync for Buffer<T> {}

impl<T: Plain> Buffer<T> {
    /// `len` zeroes.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let layout = Self::layout(len);
        // SAFETY: the layout's size is not zero.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(data) = NonNull::new(raw.cast::<T>()) else { handle_alloc_error(layout) };
        Self { data, len }
    }

    /// Makes room for `len` values; what was there is lost when it grows.
    pub fn ensure(&mut self, len: usize) {
        if self.len < len {
            *self = Self::zeroed(len);
        }
    }

    fn layout(len: usize) -> Layout {
        let bytes = len.max(1).checked_mul(size_of::<T>()).expect("a buffer that exists fits in memory");
        Layout::from_size_align(bytes, ALIGN).expect("64 is a power of two and the size fits")
    }
}

impl<T: Plain> Drop for Buffer<T> {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with the same layout.
        unsafe { dealloc(self.data.as_ptr().cast(), Self::layout(self.len)) }
    }
}

impl<T: Plain> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `len` values were allocated and zeroed, and zero is valid for `T`.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

impl<T: Plain> Default for Buffer<T> {
    fn default() -> Self {
        Self::zeroed(0)
    }
}
