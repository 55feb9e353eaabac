//! Queues that are bounded by the bytes in them: frames of rows are large, others small.
//!
//! Nothing is refused in normal operation. What waits for a peer is bounded by the room it has announced to each session
//! (`dunlin_protocol::frame::WINDOW_ROWS`), and its openings by their routes, as their tokens are those that the session has anyway; the bound
//! here is for one that breaks its word.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::sync::mpsc;

/// A queue of at most about `bytes_max` bytes.
#[must_use]
pub fn queue<T>(bytes_max: usize) -> (QueueSender<T>, QueueReceiver<T>) {
    let (items_in, items) = mpsc::unbounded_channel();
    let bytes = Arc::new(AtomicUsize::new(0));
    (QueueSender { items: items_in, bytes: Arc::clone(&bytes), bytes_max }, QueueReceiver { items, bytes })
}

/// The end that gives.
pub struct QueueSender<T> {
    items: mpsc::UnboundedSender<(T, usize)>,
    bytes: Arc<AtomicUsize>,
    bytes_max: usize,
}

impl<T> Clone for QueueSender<T> {
    fn clone(&self) -> Self {
        Self { items: self.items.clone(), bytes: Arc::clone(&self.bytes), bytes_max: self.bytes_max }
    }
}

impl<T> QueueSender<T> {
    /// Puts an item of so many bytes at the end. False when the queue has more than it may, or nobody takes anything any more.
    #[must_use]
    pub fn send(&self, item: T, bytes: usize) -> bool {
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if before > 0 && before + bytes > self.bytes_max {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        self.items.send((item, bytes)).is_ok()
    }

    /// Is it the same queue?
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.bytes, &other.bytes)
    }
}

/// The end that takes.
pub struct QueueReceiver<T> {
    items: mpsc::UnboundedReceiver<(T, usize)>,
    bytes: Arc<AtomicUsize>,
}

impl<T> QueueReceiver<T> {
    fn taken(&self, item: Option<(T, usize)>) -> Option<T> {
        let (item, bytes) = item?;
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        Some(item)
    }

    /// The first item; `None` when there will be no more.
    pub async fn recv(&mut self) -> Option<T> {
        let item = self.items.recv().await;
        self.taken(item)
    }

    /// The first item, if there is one.
    pub fn try_recv(&mut self) -> Option<T> {
        let item = self.items.try_recv().ok();
        self.taken(item)
    }
}

impl<T> tokio_stream::Stream for QueueReceiver<T> {
    type Item = T;

    fn poll_next(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        self.items.poll_recv(cx).map(|item| self.taken(item))
    }
}

#[cfg(test)]
mod tests {
    use super::queue;

    #[test]
    fn bytes_are_bounded_not_items_and_one_large_item_always_fits() {
        let (sender, mut receiver) = queue(100);
        assert!((0..100).all(|i| sender.send(i, 1)));
        assert!(!sender.send(100, 1));
        assert_eq!(receiver.try_recv(), Some(0));
        assert!(sender.send(100, 1));
        while receiver.try_recv().is_some() {}
        assert!(sender.send(7, 1000) && !sender.send(8, 1));
        assert_eq!(receiver.try_recv(), Some(7));
        assert!(sender.send(8, 1));
        drop(receiver);
        assert!(!sender.send(9, 1), "nobody takes it");
    }
}
