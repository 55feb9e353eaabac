//! Buffers that operations borrow from their pool for the time of a call, so that no call allocates what one before it had.

use std::any::Any;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// Buffers that are kept at most: those of all operations, for a few threads that call them at the same time.
const KEPT_MAX: usize = 64;

/// Buffers of any types that nobody has at present.
#[derive(Default)]
pub(crate) struct Lender(Mutex<Vec<Box<dyn Any + Send>>>);

impl Lender {
    /// A buffer of this type: one that was given back, with what is in there, or a new one.
    pub(crate) fn lend<T: Default + Send + 'static>(&self) -> Lent<'_, T> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().rposition(|buffer| buffer.is::<T>());
        let buffer = at.and_then(|at| kept.swap_remove(at).downcast().ok());
        drop(kept);
        Lent { lender: self, buffer: Some(buffer.unwrap_or_default()) }
    }

    fn take_back(&self, buffer: Box<dyn Any + Send>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT_MAX {
            kept.push(buffer);
        }
    }
}

/// A buffer until it is given back, which is when this is dropped.
pub(crate) struct Lent<'a, T: Send + 'static> {
    lender: &'a Lender,
    /// There until the drop.
    buffer: Option<Box<T>>,
}

impl<T: Send> Deref for Lent<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.buffer.as_ref().expect("a buffer is there until it is given back")
    }
}

impl<T: Send> DerefMut for Lent<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.buffer.as_mut().expect("a buffer is there until it is given back")
    }
}

impl<T: Send> Drop for Lent<'_, T> {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.lender.take_back(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{KEPT_MAX, Lender};

    #[test]
    fn what_is_given_back_is_lent_again() {
        let lender = Lender::default();
        lender.lend::<Vec<u8>>().push(1);
        lender.lend::<Vec<u16>>().push(2);
        let (first, second) = (lender.lend::<Vec<u8>>(), lender.lend::<Vec<u8>>());
        assert_eq!((&first[..], &second[..], &lender.lend::<Vec<u16>>()[..]), (&[1][..], &[][..], &[2][..]));
    }

    #[test]
    fn only_so_many_are_kept() {
        let lender = Lender::default();
        let all: Vec<_> = (0..2 * KEPT_MAX).map(|_| lender.lend::<Vec<u8>>()).collect();
        drop(all);
        assert_eq!(lender.0.lock().unwrap().len(), KEPT_MAX);
    }
}
